"""Data sets: parsers, checks of what they found, the table of them.

    splits = load_dataset("market1501", root="data")        # .train .query .gallery: sorted lists of Item

An Item is a tracklet of one or more image files; an image is a tracklet of one. DATASETS.md says where each set comes
from.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

# ----------------------------------------------------------------------------------------------------------------------
# What passes between the rooms


class Item(NamedTuple):
    """A tracklet of one or more image files of one person (pid as the data set names it) under one camera (0-based)."""

    paths: tuple[str, ...]
    pid: int
    camid: int


class Splits(NamedTuple):
    train: list[Item]
    query: list[Item]
    gallery: list[Item]


class Dataset(NamedTuple):
    folder: str  # below root
    parse: Callable  # (folder, **options) -> Splits
    counts: dict | None  # split -> (ids, images) as published, None where nothing is published
    parse_multi_query: Callable | None = None  # folder -> items, images that multi-query pools


# ----------------------------------------------------------------------------------------------------------------------
# Parsers

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def list_images(folder):
    """Sorted image files directly in `folder`, without hidden files (.name, ._name of macOS) and Thumbs.db."""
    names = (entry.name for entry in os.scandir(folder) if entry.is_file())
    return [folder / n for n in sorted(names) if not n.startswith(".") and n.lower().endswith(IMAGE_SUFFIXES)]


def parse_by_name(folder, pattern, first_camid, junk):
    """Items of the images in `folder` whose name begins like `pattern` -> (pid, camera); junk pids are left out."""
    items, strangers = [], []
    for path in list_images(folder):
        match = re.match(pattern, path.name, re.IGNORECASE)
        if match is None:
            strangers.append(path.name)
        elif int(match[1]) not in junk:
            items.append(Item((str(path),), int(match[1]), int(match[2]) - first_camid))
    if strangers:
        print(f"{folder}: {len(strangers)} images left out, not named by the data set's rule: {some(strangers)}")
    return items


def parse_market1501(folder):
    """Zheng et al., ICCV 2015. `0002_c1s1_000451_03.jpg`: person 2, camera 1. Junk is -1, distractors of the gallery 0.

    Only the start of a name is matched: 18 files of the real set end in `.jpg.jpg`.
    """
    return Splits(*parse_market1501_folders(folder, "bounding_box_train", "query", "bounding_box_test"))


def parse_market1501_boxes(folder):
    """The boxes drawn by hand, of all persons: several per person and camera, which multi-query pools."""
    return parse_market1501_folders(folder, "gt_bbox")[0]


def parse_market1501_folders(folder, *names):
    """The items of each of these subfolders."""
    inner = folder / "Market-1501-v15.09.15"
    parts = [(inner if inner.is_dir() else folder) / name for name in names]
    missing = [str(part) for part in parts if not part.is_dir()]
    if missing:
        raise FileNotFoundError(f"not found: {', '.join(missing)}. DATASETS.md shows where the files belong")
    return [parse_by_name(part, r"(-1|\d{4})_c([1-6])(?!\d)", first_camid=1, junk={-1}) for part in parts]


# ----------------------------------------------------------------------------------------------------------------------
# What every data set passes through: checks, table of counts, labels


def some(names, limit=5):
    """The first few of many names, for a message."""
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def check_splits(splits, *, train=True, evaluate=True):
    """The splits without queries that nothing can match; ValueError for what cannot be used as asked."""
    if train and len({item.pid for item in splits.train}) < 2:
        raise ValueError(f"training needs at least 2 persons in the train split, found {len(splits.train)} images")
    shared = {item.pid for item in splits.train} & {item.pid for item in splits.query}
    if train and evaluate and shared:
        print(f"warning: {len(shared)} persons are in both train and query, scores flatter: {some(sorted(shared))}")
    if not evaluate:
        return splits
    for name in ("query", "gallery"):
        if not getattr(splits, name):
            raise ValueError(f"evaluation needs a {name} split, and it is empty: no image was found there")
    cameras = {item.camid for item in splits.query + splits.gallery}
    if len(cameras) == 1:
        raise ValueError(
            f"all query and gallery images come from one camera (number {cameras.pop() + 1} in the file names): the "
            "protocol leaves out images of the query's own camera, so nothing can match. Name the cameras apart"
        )
    seen_by = defaultdict(set)
    for item in splits.gallery:
        seen_by[item.pid].add(item.camid)
    lonely = [item for item in splits.query if not seen_by[item.pid] - {item.camid}]
    if len(lonely) == len(splits.query):
        raise ValueError(
            f"none of the {len(lonely)} queries can be matched: no gallery image shows the same person under another "
            f"camera. First query: {lonely[0].paths[0]}. Check person and camera numbers in the file names"
        )
    if lonely:
        names = some([item.paths[0] for item in lonely])
        print(f"{len(lonely)} queries have no match in the gallery and are left out: {names}")
    return splits._replace(query=[item for item in splits.query if seen_by[item.pid] - {item.camid}])


def describe(splits, counts):
    """The table of ids, images and cameras; a line more where a count is not the published one."""
    lines = [f"{'split':8} {'ids':>6} {'images':>8} {'cameras':>8}"]
    for name, items in splits._asdict().items():
        ids = {item.pid for item in items}
        images = sum(len(item.paths) for item in items)
        lines.append(f"{name:8} {len(ids):6} {images:8} {len({item.camid for item in items}):8}")
        if counts and counts[name] != (len(ids), images):
            lines.append(f"{'':8} the published counts are {counts[name][0]} ids and {counts[name][1]} images")
    return "\n".join(lines)


def relabel(items):
    """(labels (N,) 0..num_ids-1 as int64, sorted pids): what the classifier calls each item, and what label i means."""
    pids = sorted({item.pid for item in items})
    label_of = {pid: label for label, pid in enumerate(pids)}
    return np.array([label_of[item.pid] for item in items], dtype=np.int64), pids


def find_dataset(name, root):
    """The Dataset of that name and its folder below `root`."""
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}. Available: {', '.join(sorted(DATASETS))}")
    folder = Path(root) / DATASETS[name].folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the folder of {name} is not there: {folder} (--root is the folder above it). DATASETS.md says where the "
            "data set comes from; `python synthetic.py` draws a small one"
        )
    return DATASETS[name], folder


def load_dataset(name, root="data", *, train=True, evaluate=True, **options):
    """Splits of data set `name`, whose folder lies below `root`, checked for what is asked of it (train, evaluate)."""
    dataset, folder = find_dataset(name, root)
    splits = dataset.parse(folder, **options)
    print(f"{name} in {folder}\n{describe(splits, dataset.counts)}")
    try:
        return check_splits(splits, train=train, evaluate=evaluate)
    except ValueError as error:
        raise ValueError(f"{name} in {folder}: {error}. DATASETS.md shows what belongs there") from error


def load_multi_query(name, root, queries):
    """Sorted items of the images that multi-query pools: persons of `queries`, under the cameras of the queries."""
    dataset, folder = find_dataset(name, root)
    if dataset.parse_multi_query is None:
        able = ", ".join(other for other, entry in sorted(DATASETS.items()) if entry.parse_multi_query)
        raise ValueError(f"{name} has no images for multi-query; these have: {able}")
    places = {(item.pid, item.camid) for item in queries}
    return [item for item in dataset.parse_multi_query(folder) if (item.pid, item.camid) in places]


# ----------------------------------------------------------------------------------------------------------------------
# The table

MARKET_COUNTS = {"train": (751, 12936), "query": (750, 3368), "gallery": (751, 15913)}

DATASETS = {
    "market1501": Dataset("market1501", parse_market1501, MARKET_COUNTS, parse_market1501_boxes),
    "synthetic": Dataset("synthetic", parse_market1501, None, parse_market1501_boxes),
}
