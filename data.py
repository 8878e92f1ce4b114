"""Data sets, images and video: parsers, protocols, checks of what was found.

    splits = load_dataset("market1501", root="data")        # .train .query .gallery: sorted lists of Item
    python data.py --check market1501 mars --root data      # what is there, and what is wrong with it

An Item is a tracklet of one or more image files; an image is a tracklet of one. A parser is a function of the data
set's folder and the number of the split, and a data set is a row of the table at the end of this file; a variant, such
as the hand-drawn boxes of CUHK03, is a row of its own. DATASETS.md says where each set comes from.

Splits that the authors left to chance are drawn here from a private generator that is seeded by their number: the same
on every machine, in any order of calls, and nothing is stored beside the data. Other code drew others, so scores on
such sets compare as means over all splits.
"""

import argparse
import contextlib
import csv
import difflib
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

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
    parse: Callable  # (folder, split) -> Splits
    layout: str  # what lies in the folder, for messages
    counts: tuple | None  # of train, query, gallery: (ids, items, cameras) as published, None where nothing is
    num_splits: int = 1
    protocol: str = "market1501"  # of metrics.py
    persons: str = ""  # sets with the same word here show the same people
    two_id_spaces: bool = False  # a number means one person in train and another one in query and gallery
    nobody: frozenset | range = frozenset()  # pids that are no person to learn: distractors
    access: str = "free for research from its authors"
    parse_multi_query: Callable | None = None  # folder -> items, images that multi-query pools


def some(names, limit=5):
    """The first few of many names, for a message."""
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ----------------------------------------------------------------------------------------------------------------------
# Reading folders and files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def list_folder(folder, wanted):
    """Sorted names in `folder` of the entries that are `wanted`, hidden ones (.name, ._name of macOS) left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"not found: {folder}")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and wanted(entry))


def list_images(folder):
    """Sorted names of the image files directly in `folder`; ValueError where there are none."""
    names = list_folder(folder, lambda entry: entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file())
    if not names:
        raise ValueError(f"no images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return names


def list_folders(folder, pattern=""):
    """Sorted names of the folders in `folder` that begin like `pattern`; ValueError where there are none."""
    names = list_folder(folder, lambda entry: re.match(pattern, entry.name) and entry.is_dir())
    if not names:
        raise ValueError(f"no folders in {folder}" + (f" with names such as {pattern}" if pattern else ""))
    return names


def match_names(folder, names, pattern):
    """(name, match) of the names that begin like `pattern`; a printed line tells which do not."""
    pattern = re.compile(pattern, re.IGNORECASE)
    matches = [(name, pattern.match(name)) for name in names]
    strangers = [name for name, match in matches if match is None]
    if strangers:
        print(f"{folder}: {len(strangers)} images left out, not named by the data set's rule: {some(strangers)}")
    return [(name, match) for name, match in matches if match]


def camera_from_one(match):
    return int(match[2]) - 1


def by_name(folder, pattern, camid=camera_from_one, junk=()):
    """An item for each image in `folder` whose name begins like `pattern` -> (pid, ...), without pids in `junk`."""
    found = match_names(folder, list_images(folder), pattern)
    return [
        Item((os.path.join(folder, name),), int(match[1]), camid(match))
        for name, match in found
        if int(match[1]) not in junk
    ]


def tracklet(folder, pattern, pid, camid):
    """The images in `folder` as one item; `pattern` finds the number of the frame, which makes the order."""
    frames = match_names(folder, list_images(folder), pattern)
    frames = sorted(frames, key=lambda frame: (int(frame[1][1] or 0), frame[0]))
    return Item(tuple(os.path.join(folder, name) for name, _ in frames), pid, camid)


def read_lines(path):
    """(line number from 1, text) of the lines of a text file that hold anything; CRLF or LF."""
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_mat(path, name):
    """The variable `name` of a MATLAB file (version 5) as numpy gives it."""
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{path} is read with scipy, which is not installed: pip install scipy") from error
    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises a dozen types for broken files
        raise ValueError(f"{path} is broken or no MATLAB file, get it anew: {error}") from error
    if name not in content:
        names = [key for key in sorted(content) if not key.startswith("__")]
        raise ValueError(f"{path} has no variable {name}, only {', '.join(names) or 'none'}: is it the right file?")
    return content[name]


def integers(array):
    """A MATLAB array of any shape and type as int64 (N,): their unsigned numbers would wrap around below zero."""
    return np.asarray(array).ravel().astype(np.int64)


def require_files(source, paths):
    """FileNotFoundError where a list names files that are not there; one look at each folder, not at each file."""
    there = {}
    for folder in {os.path.dirname(path) for path in paths}:
        there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    absent = [path for path in paths if os.path.basename(path) not in there[os.path.dirname(path)]]
    if absent:
        raise FileNotFoundError(f"not found: {len(absent)} of the {len(paths)} files in {source}: {some(absent)}")


# ----------------------------------------------------------------------------------------------------------------------
# Protocols: who is trained on, who is searched


def halve(pids, number):
    """Random half of the persons for training (the smaller one where they are odd), by a generator of its own.

    Of Python's generator only random() is used: its sequence for a seed is promised to stay the same.
    """
    draw = random.Random(number).random
    order = sorted(sorted(set(pids)), key=lambda _: draw())
    return set(order[: len(order) // 2])


def across_views(items, train, test, query_camid=0):
    """Train items of both views; queries are the test persons in one view, the gallery shows them in the other."""
    return Splits(
        [item for item in items if item.pid in train],
        [item for item in items if item.pid in test and item.camid == query_camid],
        [item for item in items if item.pid in test and item.camid != query_camid],
    )


def paired(views):
    """(items, persons) of those who are seen in both of two views."""
    persons = {item.pid for item in views[0]} & {item.pid for item in views[1]}
    return [item for view in views for item in view if item.pid in persons], persons


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: folders of images whose names tell person and camera

MARKET_NAME = r"(-1|\d{4})_c([1-6])(?!\d)"  # 0002_c1s1_000451_03.jpg; ends differ, 18 real files end in .jpg.jpg
DUKE_NAME = r"(\d{4})_c([1-8])(?!\d)"  # 0019_c1_f0051230.jpg


def parse_named(folder, split, *, parts, pattern, inner="", camid=camera_from_one, junk=()):
    """Images in the folders `parts` of each split, below `inner` where that is there.

    Train images may be missing: who tests a network does without, and training stops at the empty split.
    """
    base = folder / inner if (folder / inner).is_dir() else folder
    missing = [str(base / name) for names in parts for name in names if not (base / name).is_dir()]
    found = []
    for names in parts:
        try:
            found.append([item for name in names for item in by_name(base / name, pattern, camid, junk)])
        except (FileNotFoundError, ValueError) as error:
            if found or not any(parts[1:]) or missing == [str(base / name) for part in parts for name in part]:
                raise type(error)(f"not found: {', '.join(missing)}" if missing else str(error)) from error
            print(f"no train images: {error}")
            found.append([])
    return Splits(*found)


MARKET_PARTS = (("bounding_box_train",), ("query",), ("bounding_box_test",))
parse_market1501 = partial(
    parse_named, parts=MARKET_PARTS, pattern=MARKET_NAME, inner="Market-1501-v15.09.15", junk={-1}
)


def parse_market1501_boxes(folder):
    """The boxes drawn by hand, of all persons: several per person and camera, which multi-query pools."""
    return parse_market1501(folder, 0, parts=((), ("gt_bbox",), ())).query


def parse_occluded_reid(folder, split):
    """Whole bodies are searched for with occluded ones; a folder is a person."""
    base = folder / "Occluded_REID" if (folder / "Occluded_REID").is_dir() else folder
    views = []
    for camid, view in enumerate(("occluded_body_images", "whole_body_images")):
        names = list_folders(base / view, r"\d+$")
        views.append([
            Item((str(base / view / name / image),), int(name), camid)
            for name in names for image in list_images(base / view / name)
        ])  # fmt: skip
    return Splits([], *views)


def parse_cuhk02(folder, split):
    """Five pairs of cameras with people of their own: four to train on, the fifth to test."""
    views = []
    for pair in range(1, 6):
        for view in (1, 2):
            images = by_name(folder / "Dataset" / f"P{pair}" / f"cam{view}", r"(\d+)_", lambda _: 0)
            views.append([Item(i.paths, pair * 10000 + i.pid, (pair - 1) * 2 + view - 1) for i in images])
    return Splits([item for view in views[:8] for item in view], views[8], views[9])


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: two views, and random halves of the persons


def two_views(folder, pattern):
    """Items of the images in the folders cam_a (camera 0) and cam_b (camera 1)."""
    return [by_name(folder / name, pattern, lambda _, c=camid: c) for camid, name in enumerate(("cam_a", "cam_b"))]


def parse_viper(folder, split):
    """The angle behind the number differs between the views. An odd split is the one before with the views swapped."""
    items, persons = paired(two_views(folder / "VIPeR", r"(\d{3})_\d"))
    train = halve(persons, split // 2)
    return across_views(items, train, persons - train, split % 2)


def parse_cuhk01(folder, split):
    """0001003.png: person 1, image 3; images 1 and 2 are of one view, 3 and 4 of the other. Directions as in VIPeR."""
    items = by_name(folder / "campus", r"(\d{4})(\d{3})\.", lambda match: (int(match[2]) - 1) // 2)
    persons = {item.pid for item in items}
    train = halve(persons, split // 2)
    return across_views(items, train, persons - train, split % 2)


def parse_prid450s(folder, split):
    """Queries are of view a. The folders also hold masks, which are named otherwise."""
    items, persons = paired(two_views(folder, r"img_(\d+)\.png$"))
    train = halve(persons, split)
    return across_views(items, train, persons - train)


PRID_SHARED = range(1, 201)  # the persons under both cameras; beyond, a number is another person in each view


def parse_prid(folder, split):
    """Single shots: 100 persons are searched among themselves and the 549 whom camera b alone saw."""
    views = two_views(folder / "prid_2011" / "single_shot", r"person_(\d{4})\.")
    items = [item for view in views for item in view if item.pid in PRID_SHARED]
    persons = {item.pid for item in items}
    train = halve(persons, split)
    found = across_views(items, train, persons - train)
    return found._replace(gallery=found.gallery + [item for item in views[1] if item.pid not in PRID_SHARED])


def parse_ilids(folder, split):
    """QMUL's i-LIDS. No cameras are known, so each image counts as one; two of each test person are drawn."""
    items = by_name(folder / "i-LIDS_Pedestrian" / "Persons", r"(\d{4})(\d{3})\.")
    images_of = defaultdict(list)
    for item in items:
        images_of[item.pid].append(item)
    train = halve(images_of, split)
    draw = random.Random(1000 + split).random
    pairs = [sorted(images, key=lambda _: draw())[:2] for pid, images in sorted(images_of.items()) if pid not in train]
    pairs = [pair for pair in pairs if len(pair) == 2]
    train = [item for item in items if item.pid in train]
    return Splits(train, [first for first, _ in pairs], [second for _, second in pairs])


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: lists, and MATLAB files with splits


def parse_msmt17(folder, split):
    """`0000/0000_000_01_0303morning_0015_0.jpg 0` per line: the third field of the name is the camera."""
    versions = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}
    present = [name for name in versions if (folder / name).is_dir()]
    if not present:
        raise FileNotFoundError(f"not found: {' or '.join(str(folder / name) for name in versions)}")
    base, (train, test) = folder / present[0], versions[present[0]]
    return Splits(*(read_msmt17_list(base / f"list_{name}.txt", base / images)
                    for name, images in (("train", train), ("query", test), ("gallery", test))))  # fmt: skip


def read_msmt17_list(path, images):
    items, prefix = [], f"{images}{os.sep}"
    for number, line in read_lines(path):
        name, _, pid = line.rpartition(" ")
        fields = name.rpartition("/")[2].split("_")
        if not (len(fields) > 3 and fields[2].isdecimal() and pid.isdecimal()):
            raise ValueError(f"{path}, line {number}: {line!r} is not of the form 0000/0000_000_01_..._0.jpg 0")
        items.append(Item((prefix + name,), int(pid), int(fields[2]) - 1))
    require_files(path, [item.paths[0] for item in items])
    return items


def parse_grid(folder, split):
    """Ten splits in features_and_partitions.mat; 775 people of the gallery, all of number 0, have no query."""
    base = folder / "underground_reid"
    mat = base / "features_and_partitions.mat"
    trials = read_mat(mat, "trainIdxAll").ravel()
    try:
        train = set(integers(trials[split].ravel()[0][2]).tolist())  # the third field of the struct
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{mat}: split {split} of trainIdxAll has no list of persons: {error}") from error
    probe, gallery = (by_name(base / name, r"(\d{4})_(\d)_") for name in ("probe", "gallery"))
    return Splits(
        [item for item in probe + gallery if item.pid in train],
        [item for item in probe if item.pid not in train],
        [item for item in gallery if item.pid not in train],
    )


CUHK03_NAME = r"([1-5])_(\d{3})_([12])_(\d{2})\.png$"  # pair of cameras, person of that pair, view, image


def parse_cuhk03(folder, split, *, boxes, classic):
    """Zhong's new split of 767 / 700 persons, or the classic 20 splits of 1,367 / 100; boxes detected or labeled.

    The images lie in a MATLAB file, and are written once into images_detected or images_labeled beside it. A pid is
    1000 * pair of cameras + person, for persons are numbered anew in each pair.
    """
    mat, images = folder / "cuhk03_release" / "cuhk-03.mat", folder / f"images_{boxes}"
    if not images.is_dir():
        extract_cuhk03(mat, boxes, images)
    of_name = {}
    for name, match in match_names(images, list_images(images), CUHK03_NAME):
        of_name[name] = Item((str(images / name),), 1000 * int(match[1]) + int(match[2]), int(match[3]) - 1)
    if classic:
        test = {1000 * pair + person for pair, person in read_cuhk03_test_set(mat, split)}
        items = list(of_name.values())
        searched = [item for item in items if item.pid in test]
        return Splits([item for item in items if item.pid not in test], searched, searched)
    config = folder / f"cuhk03_new_protocol_config_{boxes}.mat"
    names = [str(np.ravel(cell)[0]) for cell in read_mat(config, "filelist").ravel()]
    parts = [integers(read_mat(config, f"{part}_idx")) - 1 for part in ("train", "query", "gallery")]  # MATLAB: from 1
    if any(len(rows) and not 0 <= rows.min() <= rows.max() < len(names) for rows in parts):
        raise ValueError(f"{config}: an index points outside of the {len(names)} names in filelist, get the file anew")
    listed = [[names[row] for row in rows] for rows in parts]
    absent = [name for part in listed for name in part if name not in of_name]
    if absent:
        raise FileNotFoundError(
            f"not found: {len(absent)} of the images in {config}: {some(absent)}. Delete {images}, and they are "
            "written anew from cuhk-03.mat"
        )
    return Splits(*([of_name[name] for name in part] for part in listed))


@contextlib.contextmanager
def open_cuhk03(mat):
    """The HDF5 file that MATLAB 7.3 wrote, where every axis is reversed and a cell is a reference."""
    if not mat.is_file():
        raise FileNotFoundError(f"not found: {mat}")
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{mat} is read with h5py, which is not installed: pip install h5py") from error
    try:
        with h5py.File(mat, "r") as file:
            yield file
    except (KeyError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and "HDF5" not in str(error):
            raise  # of the disk that is written to
        raise ValueError(f"{mat} is broken or another file, get it anew: {error}") from error


def read_cuhk03_test_set(mat, split):
    """(pair, person) of the 100 test persons of a classic split."""
    with open_cuhk03(mat) as file:
        return [tuple(map(int, row)) for row in file[file["testsets"][0, split]][()].T]


def extract_cuhk03(mat, boxes, images):
    """Writes the images of cuhk-03.mat as PAIR_PERSON_VIEW_IMAGE.png; all of them, or none where it is interrupted."""
    temporary = images.with_name(f"{images.name}.{os.getpid()}.tmp")
    try:
        with open_cuhk03(mat) as file:
            temporary.mkdir(parents=True)
            for pair, reference in enumerate(file[boxes][0], 1):
                cells = file[reference][()].T  # (persons, 10): five images of one view, then five of the other
                for person, row in enumerate(tqdm(cells, f"{images.name}, pair {pair}", disable=None), 1):
                    for image, cell in enumerate(row, 1):
                        pixels = file[cell][()]
                        if pixels.ndim == 3:  # MATLAB's empty cell is a vector of two zeros
                            name = f"{pair}_{person:03}_{1 if image <= 5 else 2}_{image:02}.png"
                            Image.fromarray(pixels.transpose(2, 1, 0)).save(temporary / name)
        os.replace(temporary, images)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: video


def parse_mars(folder, split):
    """Tracklets are runs of lines in the lists of names; rows of the .mat files are first line, last line, pid, camera.

    Junk, -1, is left out; the gallery is what is no query. 140 of the 1,980 queries have no match.
    """
    parts = {}
    for part in ("train", "test"):
        names = folder / "info" / f"{part}_name.txt"
        prefix = f"{folder / f'bbox_{part}'}{os.sep}"
        lines = [f"{prefix}{name[:4]}{os.sep}{name}" for _, name in read_lines(names)]
        require_files(names, lines)
        mat = folder / "info" / f"tracks_{part}_info.mat"
        rows = read_mat(mat, f"track_{part}_info").astype(np.int64)
        if rows.ndim != 2 or rows.shape[1] != 4 or (rows[:, 0] < 1).any() or (rows[:, 1] > len(lines)).any():
            raise ValueError(f"{mat}: rows of 4 numbers that point into the {len(lines)} lines of {names} are expected")
        parts[part] = []
        for first, last, pid, camera in rows.tolist():
            if mixed := [line for line in lines[first - 1 : last] if not tells_mars(line, pid, camera)]:
                raise ValueError(f"{mat}: a tracklet of person {pid}, camera {camera} holds {some(mixed)}")
            frames = sorted(lines[first - 1 : last], key=lambda line: (len(line), line))  # F999 before F1000
            parts[part].append(Item(tuple(frames), pid, camera - 1))
    mat = folder / "info" / "query_IDX.mat"
    is_query = np.zeros(len(parts["test"]) + 1, dtype=bool)
    try:
        is_query[integers(read_mat(mat, "query_IDX"))] = True
    except IndexError as error:
        raise ValueError(f"{mat} points outside of the {len(parts['test'])} test tracklets: {error}") from error
    test = [(item, query) for item, query in zip(parts["test"], is_query[1:], strict=True) if item.pid != -1]
    return Splits(parts["train"], [item for item, query in test if query], [item for item, query in test if not query])


def tells_mars(path, pid, camera):
    """Whether the file's name, 0001C1T0001F001.jpg, tells this person and camera; 00-1 is -1."""
    name = os.path.basename(path)
    return name.startswith(f"{'00-1' if pid == -1 else f'{pid:04}'}C{camera}")


def read_trials(mat, count):
    """ls_set (trials, persons): places from 1 in the sorted list of persons; the first half is for testing."""
    trials = read_mat(mat, "ls_set").astype(np.int64)
    if trials.ndim != 2 or sorted(trials[0].tolist()) != list(range(1, count + 1)):
        raise ValueError(f"{mat}: ls_set {trials.shape} does not number the {count} persons found: is one missing?")
    return trials - 1


def parse_ilidsvid(folder, split, *, kind):
    """Ten splits of 150 / 150 persons; kind: sequences, or images, the single shots. Queries are of camera 1."""
    base, items, persons = folder / "i-LIDS-VID" / kind, [], []
    for camid, view in enumerate(("cam1", "cam2")):
        persons = list_folders(base / view, r"person\d+$")
        pattern = r"cam[12]_person\d+(?:_(\d+))?\."
        items += [tracklet(base / view / name, pattern, int(name[6:]), camid) for name in persons]
    mat = folder / "train-test people splits" / "train_test_splits_ilidsvid.mat"
    trials, pids = read_trials(mat, len(persons)), np.array([int(name[6:]) for name in persons])
    test, train = np.split(pids[trials[split]], 2)
    return across_views(items, set(train.tolist()), set(test.tolist()))


PRID2011_FRAMES = 27  # in both views: 178 of the 200 persons have them


def parse_prid2011(folder, split):
    """Ten splits of 89 / 89 persons, from splits_prid2011.json or the .mat file that comes with iLIDS-VID."""
    views = []
    for camid, view in enumerate(("cam_a", "cam_b")):
        base = folder / "prid_2011" / "multi_shot" / view
        names = [name for name in list_folders(base, r"person_\d{4}$") if int(name[7:]) in PRID_SHARED]
        views.append([tracklet(base / name, r"(\d{4})\.", int(name[7:]), camid) for name in names])
    listed = folder / "splits_prid2011.json"
    if listed.is_file():
        try:
            trial = json.loads(listed.read_text())[split]
            train, test = ({int(name.rpartition("_")[2]) for name in trial[part]} for part in ("train", "test"))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            form = '{"train": ["person_0001", ...], "test": [...]}'
            raise ValueError(f"{listed}: split {split} is not of the form {form}: {error}") from error
    else:
        items, persons = paired([[item for item in view if len(item.paths) >= PRID2011_FRAMES] for view in views])
        name = "train_test_splits_prid.mat"
        places = [folder / name, folder.parent / "ilids-vid" / "train-test people splits" / name]
        mat = next((place for place in places if place.is_file()), None)
        if mat is None:
            raise FileNotFoundError(f"not found: {listed}, nor {' or '.join(map(str, places))}")
        pids = np.array(sorted(persons))
        test, train = (set(half.tolist()) for half in np.split(pids[read_trials(mat, len(pids))[split]], 2))
    return across_views([item for view in views for item in view], train, test)


def parse_dukemtmcvidreid(folder, split):
    """A folder per person, and in it one per tracklet. Some tracklets do not start at frame 1, some have holes."""
    base = folder / "DukeMTMC-VideoReID" if (folder / "DukeMTMC-VideoReID").is_dir() else folder
    parts = []
    for part in ("train", "query", "gallery"):
        items = []
        for person in list_folders(base / part, r"\d+$"):
            for name in list_folders(base / part / person):
                pattern = r"\d{4}_?C[1-8]_?F(\d+)_?[XD]\d+\."  # 0001_C6_F0099_X30823.jpg, or without underscores
                item = tracklet(base / part / person / name, pattern, int(person), 0)
                cameras = {int(os.path.basename(path)[4:].lstrip("_")[1]) for path in item.paths}
                if len(cameras) != 1:
                    raise ValueError(f"{base / part / person / name}: cameras {sorted(cameras)} in one tracklet")
                items.append(item._replace(camid=cameras.pop() - 1))
        parts.append(items)
    return Splits(*parts)


# ----------------------------------------------------------------------------------------------------------------------
# Parser of a user's own images


def parse_own(folder, split):
    """items.csv, or folders train, query and gallery (those that there are) of images named PID_cCAMERA....

    The header of items.csv is path,pid,camid[,tracklet][,split]: path relative to the folder, cameras from 1, split
    train (also where there is no such column), query or gallery. Rows of one split with the same tracklet, pid and
    camid are the frames of one item, in the order of the file; an empty tracklet is an item of its own.
    """
    if (folder / "items.csv").is_file():
        return read_own_list(folder / "items.csv")
    parts = ("train", "query", "gallery")
    there = [(part,) if (folder / part).is_dir() else () for part in parts]
    if not any(there):
        raise FileNotFoundError(f"not found: {folder / 'items.csv'}, nor a folder of {', '.join(parts)} in {folder}")
    return parse_named(folder, split, parts=there, pattern=r"(\d+)_c([1-9]\d*)(?!\d)")


def read_own_list(path):
    items = {part: {} for part in Splits._fields}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"path", "pid", "camid"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path}, line 1: no column {', '.join(sorted(missing))}")
        for row in rows:
            part, pid, camid = row.get("split") or "train", row["pid"] or "", row["camid"] or ""
            if not (row["path"] and part in items and pid.isdecimal() and camid.isdecimal() and int(camid)):
                raise ValueError(
                    f"{path}, line {rows.line_num}: pid is a number, camid a number from 1, split one of "
                    f"{', '.join(items)}; got {', '.join(f'{k} {v!r}' for k, v in row.items())}"
                )
            key = (int(pid), int(camid) - 1, row.get("tracklet") or rows.line_num)
            items[part].setdefault(key, []).append(os.path.join(path.parent, row["path"]))
    splits = Splits(*([Item(tuple(v), *key[:2]) for key, v in part.items()] for part in items.values()))
    if not any(splits):
        raise ValueError(f"{path} lists no images")
    require_files(path, [name for part in splits for item in part for name in item.paths])
    return splits


# ----------------------------------------------------------------------------------------------------------------------
# What every data set passes through: the table of counts, checks, labels


def check_splits(splits, *, train=True, evaluate=True, two_id_spaces=False):
    """The splits without queries that nothing can match; ValueError for what cannot be used as asked."""
    if train and len({item.pid for item in splits.train}) < 2:
        raise ValueError(f"training needs at least 2 persons in the train split, found {len(splits.train)} items")
    shared = {item.pid for item in splits.train} & {item.pid for item in splits.query + splits.gallery}
    if train and evaluate and shared and not two_id_spaces:
        print(f"warning: {len(shared)} persons are in both train and test, so scores flatter: {some(sorted(shared))}. "
              "Take them out of one of the two")  # fmt: skip
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


def describe(splits, counts=None):
    """The table of ids, items, cameras and frames; a line more where a count is not the published one."""
    video = has_video(splits)
    lines = [f"{'split':8} {'ids':>6} {'items':>8} {'cameras':>8}"]
    lines[0] += video * f" {'frames: min':>12} {'mean':>7} {'max':>5}"
    for (name, items), published in zip(splits._asdict().items(), counts or (None,) * 3, strict=True):
        found = (len({item.pid for item in items}), len(items), len({item.camid for item in items}))
        line = f"{name:8} {found[0]:6} {found[1]:8} {found[2]:8}"
        if video and items:
            frames = [len(item.paths) for item in items]
            line += f" {min(frames):12} {sum(frames) / len(frames):7.1f} {max(frames):5}"
        lines.append(line)
        if published and any(p not in (None, f) for p, f in zip(published, found, strict=True)):
            told = (f"{p} {unit}" for p, unit in zip(published, ("ids", "items", "cameras"), strict=True) if p)
            lines.append(f"{'':8} the published counts are {', '.join(told)}")
    return "\n".join(lines)


def has_video(splits):
    """Whether an item has more than one frame."""
    return any(len(item.paths) > 1 for items in splits for item in items)


def warn_of_shared_persons(sources, targets):
    """Says which of the data sets to test on show people of another one that is trained on."""
    for source in sources:
        for target in targets:
            people = find_dataset(source, "")[0].persons
            if source != target and people and people == find_dataset(target, "")[0].persons:
                print(f"warning: {source} and {target} both show people of {people}: scores on {target} may flatter")


def relabel(items):
    """(labels (N,) 0..num_ids-1 as int64, sorted pids): what the classifier calls each item, and what label i means."""
    pids = sorted({item.pid for item in items})
    label_of = {pid: label for label, pid in enumerate(pids)}
    return np.array([label_of[item.pid] for item in items], dtype=np.int64), pids


def merge(parts):
    """One list of the items of several, in which persons and cameras of different lists have different numbers."""
    merged, first_pid, first_camid = [], 0, 0
    for items in parts:
        merged += [Item(item.paths, item.pid + first_pid, item.camid + first_camid) for item in items]
        first_pid = max((item.pid for item in merged), default=-1) + 1
        first_camid = max((item.camid for item in merged), default=-1) + 1
    return merged


def combine_all(splits, dataset):
    """The splits with query and gallery persons in train too, but for those of `nobody`."""
    test = [item for item in splits.query + splits.gallery if item.pid not in dataset.nobody]
    if dataset.two_id_spaces:
        first = max((item.pid for item in splits.train), default=-1) + 1
        test = [item._replace(pid=item.pid + first) for item in test]
    return splits._replace(train=sorted({*splits.train, *test}))  # an image can be both query and gallery


def find_dataset(name, root):
    """The Dataset of that name and its folder below `root`; folder:PATH is a user's own."""
    kind, _, path = name.partition(":")
    if kind not in DATASETS or (kind == "folder") != bool(path):
        near = difflib.get_close_matches(name.lower(), DATASETS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"no data set {name!r}{hint} Available: {', '.join(sorted(DATASETS))} (folder:PATH is yours)")
    dataset = DATASETS[kind]
    return dataset, Path(root) / (path or dataset.folder)


def read_dataset(name, root="data", *, split=0):
    """Splits of data set `name`, whose folder lies below `root`, as its parser finds them; each list is sorted."""
    dataset, folder = find_dataset(name, root)
    if not 0 <= split < dataset.num_splits:
        raise ValueError(f"{name} has splits 0 to {dataset.num_splits - 1}, got {split}")
    try:
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder of {name} is not there: {folder} (--root is the folder above it)")
        return Splits(*map(sorted, dataset.parse(folder, split)))
    except (FileNotFoundError, ValueError) as error:
        drawn = "; `python synthetic.py` draws a small one" if isinstance(error, FileNotFoundError) else ""
        raise type(error)(
            f"{error}. Expected in {folder}: {dataset.layout}. {name} is {dataset.access}, see DATASETS.md{drawn}"
        ) from error


def load_dataset(name, root="data", *, split=0, min_frames=0, combine=False, train=True, evaluate=True):
    """Splits of data set `name`, whose folder lies below `root`, checked for what is asked of it (train, evaluate).

    evaluate=None asks for it where there are queries or gallery images; min_frames: shorter tracklets are left out;
    combine: the test persons are trained on too.
    """
    dataset, folder = find_dataset(name, root)
    splits = read_dataset(name, root, split=split)
    of = f", split {split} of 0 to {dataset.num_splits - 1}" if dataset.num_splits > 1 else ""
    print(f"{name} in {folder}{of} ({dataset.access})\n{describe(splits, dataset.counts)}")
    if min_frames:
        splits = Splits(*([item for item in items if len(item.paths) >= min_frames] for items in splits))
        print(f"with {min_frames} frames or more:\n{describe(splits)}")
    evaluate = bool(splits.query or splits.gallery) if evaluate is None else evaluate
    try:
        checked = check_splits(splits, train=train, evaluate=evaluate, two_id_spaces=dataset.two_id_spaces)
    except ValueError as error:
        raise ValueError(f"{name} in {folder}: {error}. Expected: {dataset.layout}, see DATASETS.md") from error
    return combine_all(checked, dataset) if combine else checked


def load_multi_query(name, root, queries):
    """Sorted items of the images that multi-query pools: persons of `queries`, under the cameras of the queries."""
    dataset, folder = find_dataset(name, root)
    if dataset.parse_multi_query is None:
        able = ", ".join(other for other, entry in sorted(DATASETS.items()) if entry.parse_multi_query)
        raise ValueError(f"{name} has no images for multi-query; these have: {able}")
    places = {(item.pid, item.camid) for item in queries}
    try:
        found = dataset.parse_multi_query(folder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}. DATASETS.md says where the images for multi-query come from") from error
    return sorted(item for item in found if (item.pid, item.camid) in places)


# ----------------------------------------------------------------------------------------------------------------------
# What the files hold


def look_into(paths, decode):
    """Of each file (digest of its bytes, None), or (None, why it is no image)."""
    looks = []
    for path in paths:
        try:
            content = Path(path).read_bytes()
            if not content:
                raise ValueError("the file is empty, 0 bytes")
            if decode:
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
            looks.append((hashlib.blake2b(content, digest_size=16).digest(), None))
        except Exception as error:  # Pillow raises a dozen types for broken files
            looks.append((None, f"{path}: {error}"))
    return looks


def check_files(splits, decode=True):
    """(lines about files that cannot be read or that are equal, each with its remedy; whether one cannot be read)."""
    uses = defaultdict(list)  # path -> [(split, pid), ...]
    for part, items in splits._asdict().items():
        for item in items:
            for path in item.paths:
                uses[path].append((part, item.pid))
    paths, same, broken = sorted(uses), defaultdict(list), []
    blocks = [paths[start : start + 256] for start in range(0, len(paths), 256)]  # MARS has a million files
    with ThreadPoolExecutor(os.cpu_count()) as threads, tqdm(desc="checking", total=len(paths), disable=None) as bar:
        for block, looks in zip(blocks, threads.map(partial(look_into, decode=decode), blocks), strict=True):
            for path, (digest, reason) in zip(block, looks, strict=True):
                if reason:
                    broken.append(reason)
                else:
                    same[digest].append(path)
            bar.update(len(block))
    leaks, contradictions, doubles = [], [], []
    for twins in same.values():
        if len(twins) > 1:
            parts = {part for path in twins for part, _ in uses[path]}
            persons = {pid for path in twins for _, pid in uses[path]}
            kind = leaks if "train" in parts and len(parts) > 1 else contradictions if len(persons) > 1 else doubles
            kind.append(" = ".join(twins))
    lines = [f"{len(broken)} files cannot be read: {some(broken)}. Get them anew, or delete them"] * bool(broken)
    for kind, what in (
        (leaks, "images of train are in query or gallery too, so scores flatter: {}. Take them out of train"),
        (contradictions, "images have the numbers of two persons: {}. One is wrong: correct or delete it"),
        (doubles, "images are there more than once, and count so: {}. Delete the copies"),
    ):
        lines += [f"{len(kind)} {what.format(some(kind, 3))}"] * bool(kind)
    return lines, bool(broken)


def check(name, root, split, min_frames):
    """Prints what is there and what is wrong with it; whether it can be used for what it is meant for."""
    dataset, folder = find_dataset(name, root)
    splits = read_dataset(name, root, split=split)
    meant = dataset.counts or [bool(items) for items in splits]
    train, evaluate = bool(meant[0]), bool(meant[1] or meant[2])
    load_dataset(name, root, split=split, min_frames=min_frames, train=train, evaluate=evaluate)
    lines, broken = check_files(splits)
    print("\n".join(lines) or "all files can be read, no two are equal")
    if broken:
        raise ValueError(f"{name} in {folder} holds files that cannot be read, and training would stop at them")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Checks data sets: counts, queries without match, files.")
    parser.add_argument("--check", nargs="+", required=True, metavar="NAME", help=f"of {', '.join(sorted(DATASETS))}")
    parser.add_argument("--root", default="data", help="folder above the data sets' own (default: data)")
    parser.add_argument("--split", type=int, default=0, help="number of the split, from 0 (default: 0)")
    parser.add_argument("--min-frames", type=int, default=0, help="leave out tracklets with fewer (default: 0)")
    args, failed = parser.parse_args(argv), False
    for name in args.check:
        try:
            check(name, args.root, args.split, args.min_frames)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


# ----------------------------------------------------------------------------------------------------------------------
# The table

WITHDRAWN = "withdrawn by its authors in 2019, without an official download"
AGREED = "to be had from its authors after signing an agreement"
NOBODY = frozenset({0})  # distractors of the gallery

market1501 = Dataset(
    "market1501", parse_market1501,
    "Market-1501-v15.09.15/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg",
    ((751, 12936, 6), (750, 3368, 6), (751, 15913, 6)), persons="Market-1501", nobody=NOBODY,
    parse_multi_query=parse_market1501_boxes,
)  # fmt: skip
cuhk03 = Dataset(
    "cuhk03", partial(parse_cuhk03, boxes="detected", classic=False),
    "cuhk03_release/cuhk-03.mat (or images_detected/) and cuhk03_new_protocol_config_{detected,labeled}.mat",
    ((767, 7365, 2), (700, 1400, 2), (700, 5332, 2)), persons="CUHK03",
)  # fmt: skip
cuhk03_classic = cuhk03._replace(
    parse=partial(parse_cuhk03, boxes="detected", classic=True), layout="cuhk03_release/cuhk-03.mat",
    counts=((1367, None, 2), (100, None, 2), (100, None, 2)), num_splits=20, protocol="cuhk03",
)  # fmt: skip
dukemtmcreid = Dataset(
    "dukemtmc-reid", partial(parse_named, parts=MARKET_PARTS, pattern=DUKE_NAME, inner="DukeMTMC-reID"),
    "DukeMTMC-reID/{bounding_box_train,query,bounding_box_test}/0002_c1_f0044158.jpg",
    ((702, 16522, 8), (702, 2228, 8), (1110, 17661, 8)), persons="DukeMTMC", access=WITHDRAWN,
)  # fmt: skip
mars = Dataset(
    "mars", parse_mars,
    "bbox_{train,test}/0001/0001C1T0001F001.jpg, info/{train_name.txt,test_name.txt,tracks_train_info.mat,"
    "tracks_test_info.mat,query_IDX.mat}",
    ((625, 8298, 6), (626, 1980, 6), (621, 9330, 6)), persons="Market-1501", nobody=NOBODY,
)  # fmt: skip
ilidsvid = Dataset(
    "ilids-vid", partial(parse_ilidsvid, kind="sequences"),
    "i-LIDS-VID/sequences/cam{1,2}/person001/cam1_person001_00317.png, train-test people splits/*.mat",
    ((150, 300, 2), (150, 150, 1), (150, 150, 1)), num_splits=10, persons="iLIDS-VID",
)  # fmt: skip

DATASETS = {
    "cuhk01": Dataset(
        "cuhk01", parse_cuhk01, "campus/0001001.png",
        ((485, 1940, 2), (486, 972, 1), (486, 972, 1)), num_splits=20, persons="CUHK campus",
    ),
    "cuhk02": Dataset(
        "cuhk02", parse_cuhk02, "Dataset/P{1,2,3,4,5}/cam{1,2}/001_....png",
        ((1577, 6308, 8), (239, 478, 1), (239, 478, 1)), persons="CUHK campus",
    ),
    "cuhk03": cuhk03,
    "cuhk03-labeled": cuhk03._replace(
        parse=partial(parse_cuhk03, boxes="labeled", classic=False), layout=cuhk03.layout.replace("s_det", "s_lab"),
        counts=((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)),
    ),
    "cuhk03-classic": cuhk03_classic,
    "cuhk03-classic-labeled": cuhk03_classic._replace(parse=partial(parse_cuhk03, boxes="labeled", classic=True)),
    "cuhk03-np": Dataset(
        "cuhk03-np", partial(parse_named, parts=MARKET_PARTS, pattern=r"(\d{4})_c([12])(?!\d)", inner="detected"),
        "detected/{bounding_box_train,query,bounding_box_test}/0001_c1_....png", cuhk03.counts, persons="CUHK03",
    ),
    "cuhk03-np-labeled": Dataset(
        "cuhk03-np", partial(parse_named, parts=MARKET_PARTS, pattern=r"(\d{4})_c([12])(?!\d)", inner="labeled"),
        "labeled/{bounding_box_train,query,bounding_box_test}/0001_c1_....png",
        ((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)), persons="CUHK03",
    ),
    "cuhksysu": Dataset(
        "cuhksysu",
        partial(parse_named, parts=(("cropped_images",), (), ()), pattern=r"p(\d+)_s\d+_\d+", camid=lambda _: 0),
        "cropped_images/p11422_s16929_1.jpg", ((11934, 34574, 1), None, None),
    ),
    "dukemtmcreid": dukemtmcreid,
    "dukemtmcvidreid": Dataset(
        "dukemtmc-vidreid", parse_dukemtmcvidreid,
        "DukeMTMC-VideoReID/{train,query,gallery}/0001/0003/0001_C6_F0099_X30823.jpg",
        ((702, 2196, 8), (702, 702, 8), (1110, 2636, 8)), persons="DukeMTMC", access=WITHDRAWN,
    ),
    "folder": Dataset(
        "", parse_own,
        "items.csv: path,pid,camid[,tracklet][,split], or {train,query,gallery}/12_c3_any.jpg (person 12, camera 3)",
        None, access="your own",
    ),
    "grid": Dataset(
        "grid", parse_grid,
        "underground_reid/{probe,gallery}/0001_1_25004_107_32_106_221.jpeg and features_and_partitions.mat",
        ((125, 250, None), (125, 125, None), (126, 900, None)), num_splits=10, nobody=NOBODY,
    ),
    "ilids": Dataset(
        "ilids", parse_ilids, "i-LIDS_Pedestrian/Persons/0001001.jpg",
        ((59, None, None), (60, 60, None), (60, 60, None)), num_splits=10,
    ),
    "ilidsvid": ilidsvid,
    "ilidsvid-single": ilidsvid._replace(
        parse=partial(parse_ilidsvid, kind="images"),
        layout="i-LIDS-VID/images/cam{1,2}/person001/cam1_person001.png, train-test people splits/*.mat",
    ),
    "market1501": market1501,
    "market1501-500k": market1501._replace(
        parse=partial(market1501.parse, parts=(*MARKET_PARTS[:2], ("bounding_box_test", "images"))),
        layout=f"{market1501.layout}, images/ with the distractors", counts=(*market1501.counts[:2], None),
    ),
    "mars": mars,
    "msmt17": Dataset(
        "msmt17", parse_msmt17,
        "MSMT17_V1/{train,test}/0000/*.jpg (of V2: MSMT17_V2/{mask_train_v2,mask_test_v2}), "
        "list_{train,query,gallery}.txt",
        ((1041, 30248, 15), (3060, 11659, 15), (3060, 82161, 15)), two_id_spaces=True, access=AGREED,
    ),
    "occluded_duke": dukemtmcreid._replace(
        folder="occluded_duke", parse=partial(dukemtmcreid.parse, inner="Occluded_Duke"),
        layout=dukemtmcreid.layout.replace("DukeMTMC-reID", "Occluded_Duke"),
        counts=((702, 15618, 8), (519, 2210, 8), (1110, 17661, 8)),
    ),
    "occluded_reid": Dataset(
        "occluded_reid", parse_occluded_reid, "Occluded_REID/{occluded_body_images,whole_body_images}/001/001_01.tif",
        (None, (200, 1000, 1), (200, 1000, 1)),
    ),
    "prid": Dataset(
        "prid2011", parse_prid, "prid_2011/single_shot/{cam_a,cam_b}/person_0001.png",
        ((100, 200, 2), (100, 100, 1), (649, 649, 1)), num_splits=10, persons="PRID2011", nobody=range(201, 10000),
    ),
    "prid2011": Dataset(
        "prid2011", parse_prid2011, "prid_2011/multi_shot/{cam_a,cam_b}/person_0001/0001.png, splits_prid2011.json",
        ((89, 178, 2), (89, 89, 1), (89, 89, 1)), num_splits=10, persons="PRID2011",
    ),
    "prid450s": Dataset(
        "prid450s", parse_prid450s, "{cam_a,cam_b}/img_001.png",
        ((225, 450, 2), (225, 225, 1), (225, 225, 1)), num_splits=10,
    ),
    "sensereid": Dataset(
        "sensereid",
        partial(parse_named, parts=((), ("test_probe",), ("test_gallery",)), pattern=r"(\d+)_(\d+)", inner="SenseReID",
                camid=lambda match: int(match[2])),
        "SenseReID/{test_probe,test_gallery}/00001_0.jpg", (None, (522, 1040, None), (1717, 3388, None)),
    ),
    "synthetic": market1501._replace(
        folder="synthetic", counts=None, persons="", access="drawn, nobody in it exists",
        layout="what `python synthetic.py` writes",
    ),
    "synthetic-video": mars._replace(
        folder="synthetic-video", counts=None, persons="", access="drawn, nobody in it exists",
        layout="what `python synthetic.py --video` writes",
    ),
    "viper": Dataset(
        "viper", parse_viper, "VIPeR/{cam_a,cam_b}/000_45.bmp",
        ((316, 632, 2), (316, 316, 1), (316, 316, 1)), num_splits=20,
    ),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
