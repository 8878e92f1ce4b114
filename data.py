"""Data sets, images and video: the table of them, every parser, the checks of what was found, and every sampler.

    splits = load_dataset("market1501", root="data")         # .train .query .gallery: sorted lists of Item
    labels, pids = relabel(splits.train)                     # (N,) 0..num_ids-1 for the classifier
    batches = epoch_batches(labels, 64, 4, seed=1, epoch=0)  # rows of `labels`, 16 persons x 4 images each
    python data.py --check market1501 mars --root data       # what is there, and what is wrong with it

A data set is a row of the table DATASETS, with a parser: a function of folder and number of the split. A variant, such
as the hand-drawn boxes of CUHK03, is a row of its own. DATASETS.md says where each comes from, and its protocol.

P x K batches are of Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", arXiv 1703.07737.
Where this differs from deep-person-reid: a rule of names is for the name alone, not for the path; every listing is
sorted; random splits are drawn by a generator of their own and need no file; who is nobody is told per data set (0 is a
person in VIPeR); a query that nothing can match is told and left out; the number of batches of an epoch is exact.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from images import SUFFIXES, camera_name, cpus, is_image, printable, progress, read_image, read_table

PROTOCOLS = ("market1501", "cuhk03", "no_camera_rule")  # those of metrics.py, which takes long to import
SAMPLING = ("evenly", "random", "all")  # of frames
STRANGER = -2  # pid of who is called nobody in a user's own set, where 0 is a person like others


# ----------------------------------------------------------------------------------------------------------------------
# What passes between the rooms


class Item(NamedTuple):
    """A tracklet of one or more image files of one person (pid as the data set names it) under one camera (0-based; of
    a user's own set, whose cameras may begin at 0, the number that stands there less one)."""

    paths: tuple[str, ...]
    pid: int
    camid: int


class Splits(NamedTuple):
    train: list[Item]
    query: list[Item]
    gallery: list[Item]


def pids_of(items):
    return {item.pid for item in items}


def some(names, limit=5):
    """The first few of many names, for a message."""
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextlib.contextmanager
def explained(before="", after="", kinds=(FileNotFoundError, ValueError)):
    """Raises errors of these kinds again, with more around their text: FileNotFoundError, or else ValueError."""
    try:
        yield
    except kinds as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{before}{error}{after}") from error


# ----------------------------------------------------------------------------------------------------------------------
# Reading folders and files

LITTER = ("thumbs.db", "desktop.ini")  # of file managers
ANOTHER_FORM = (AttributeError, LookupError, TypeError, ValueError)  # raised where a file holds what nobody expected


def within(folder, inner, names):
    """The folder `inner` of an archive; the one around it where folders of these names lie directly there."""
    flat = not (folder / inner).is_dir() and any((folder / name).is_dir() for name in names)
    return folder if flat else folder / inner


def list_folder(folder, wanted):
    """Sorted names in `folder` of the entries that are `wanted`, but for hidden ones and what macOS adds."""
    if not folder.is_dir():
        raise FileNotFoundError(f"not found: {folder}")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith((".", "__MAC")) and wanted(entry))
    strange = [ascii(name) for name in names if not name.isascii() and re.search("[\ud800-\udfff]", name)]
    if strange:  # they could neither be printed nor written into a list
        raise ValueError(f"{folder}: {len(strange)} names are not encoded in UTF-8: {some(strange)}. Rename them")
    return names


def find_folders(folder, pattern=""):
    """(path, match) of the folders in `folder` whose names begin like `pattern`, sorted; ValueError without any."""
    names = list_folder(folder, lambda entry: re.match(pattern, entry.name) and entry.is_dir())
    if not names:
        raise ValueError(f"no folders in {folder}" + (f" with names such as {pattern}" if pattern else ""))
    return [(folder / name, re.match(pattern, name)) for name in names]


def find_images(folder, pattern=""):
    """(path, match) of the images directly in `folder` whose names begin like `pattern`, sorted.

    A line tells of images that are named otherwise; ValueError where all are, or where there is none.
    """
    names = list_folder(folder, lambda entry: is_image(entry.name) and entry.is_file())
    if not names:
        raise ValueError(f"no images in {folder}: expected files that end in {', '.join(SUFFIXES)}")
    rule = re.compile(pattern, re.IGNORECASE)
    matches = {name: rule.match(name) for name in names}
    strangers = [name for name, match in matches.items() if match is None]
    if len(strangers) == len(names):
        raise ValueError(f"{folder}: no image is named by the data set's rule, {pattern}: {some(strangers)}")
    if strangers:
        print(f"{folder}: {len(strangers)} images left out, not named by the data set's rule: {some(strangers)}")
    return [(os.path.join(folder, name), match) for name, match in matches.items() if match]


def by_name(folder, pattern, first_camera=1):
    """An item for each image in `folder` whose name begins like `pattern` -> (person, camera), without person -1, junk.

    Cameras are numbered from first_camera; all images are of camera 0 where the pattern finds none.
    """
    items = []
    for path, match in find_images(folder, pattern):
        camid = int(match[2]) - first_camera if match.re.groups > 1 else 0
        items.append(Item((path,), STRANGER if match[1].lower() == "nobody" else int(match[1]), camid))
    return [item for item in items if item.pid != -1]


def tracklet(folder, pattern, pid, camid=0):
    """The images in `folder` as one item; `pattern` finds the number of the frame, which makes the order."""
    frames = sorted((int(match[1] or 0), path) for path, match in find_images(folder, pattern))
    return Item(tuple(path for _, path in frames), pid, camid)


def tracklets(folder, views, person, pattern, pids):
    """Those of these persons in each view; `person` makes the name of a folder out of a number."""
    return [
        tracklet(folder / view / person.format(pid), pattern, pid, camid)
        for camid, view in enumerate(views) for pid in sorted(pids)
    ]  # fmt: skip


def in_views(folder, views, read):
    """The items that `read` finds in each of these folders; the place of the folder is their camera."""
    return [item._replace(camid=camid) for camid, view in enumerate(views) for item in read(folder / view)]


def read_lines(path):
    """(line number from 1, text) of the lines of a text file that hold anything."""
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not encoded in UTF-8, save it anew so ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: get it anew")
    return lines


def reader_of(path, module):
    """The module that reads the file `path`, from a package that few data sets need."""
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{path} is read with {package}, which is not installed: pip install {package}") from error


def read_mat(path, name, integers=True):
    """The variable `name` of a MATLAB file (version 5), as int64 or as numpy gives it: there unsigned numbers wrap
    around below zero."""
    loadmat = reader_of(path, "scipy.io").loadmat
    with explained(f"{path} is broken or no MATLAB file, get it anew: ", kinds=Exception):  # scipy has a dozen types
        content = loadmat(path)
    if name not in content:
        names = [key for key in sorted(content) if not key.startswith("__")]
        raise ValueError(f"{path} has no variable {name}, only {', '.join(names) or 'none'}: is it the right file?")
    array = content[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {name} is no array but a {type(array).__name__}: is it the right file?")
    if not integers:
        return array
    with np.errstate(invalid="ignore"):  # NaN
        whole = array.astype(np.int64) if array.dtype.kind in "biuf" else None
    if whole is None or not np.array_equal(whole, array):
        raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}, no whole numbers: is it the right file?")
    return whole


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


def across_views(items, train, test, query_camid=0):
    """Train items of both views; queries are the test persons in one view, the gallery shows them in the other."""
    return Splits(
        [item for item in items if item.pid in train],
        [item for item in items if item.pid in test and item.camid == query_camid],
        [item for item in items if item.pid in test and item.camid != query_camid],
    )


def random_halves(items, split, directions=1):
    """Trained on a random half of the persons; of two directions, an odd split swaps the views of the one before.

    Of Python's generator only random() is used: its sequence for a seed is promised to stay the same.
    """
    draw = random.Random(split // directions).random
    order = sorted(sorted(pids_of(items)), key=lambda _: draw())
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    return across_views(items, set(train), set(test), split % directions)


def paired(items):
    """The items of those who are seen in both of two views."""
    seen = {(item.pid, item.camid) for item in items}
    return [item for item in items if (item.pid, 1 - item.camid) in seen]


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: folders of images whose names tell person and camera

MARKET_NAME = r"(-1|\d{4})_c([1-6])(?!\d)"  # 0002_c1s1_000451_03.jpg; ends differ, 18 real files end in .jpg.jpg
DUKE_NAME = r"(\d{4})_c([1-8])(?!\d)"  # 0019_c1_f0051230.jpg
MARKET_PARTS = (("bounding_box_train",), ("query",), ("bounding_box_test",))


def parse_named(folder, split, *, parts, pattern, inner="", first_camera=1):
    """Images in the folders `parts` of each split, below `inner` where that is there.

    Train images may be missing: who tests a network does without, and training stops at the empty split.
    """
    base, tested, found = within(folder, inner, itertools.chain(*parts)), any(parts[1:]), []
    missing = [[str(base / name) for name in part if not (base / name).is_dir()] for part in parts]
    if any(missing[tested:]):
        raise FileNotFoundError(f"not found: {', '.join(itertools.chain(*missing))}")
    for part in parts:
        try:
            found.append([item for name in part for item in by_name(base / name, pattern, first_camera)])
        except (FileNotFoundError, ValueError) as error:
            if found or not tested:
                raise
            print(f"no train images: {error}")
            found.append([])
    return Splits(*found)


parse_market1501 = partial(parse_named, parts=MARKET_PARTS, pattern=MARKET_NAME, inner="Market-1501-v15.09.15")
parse_cuhk03_np = partial(parse_named, parts=MARKET_PARTS, pattern=r"(\d{4})_c([12])(?!\d)")


def parse_occluded_reid(folder, split):
    """Whole bodies are searched for with occluded ones; a folder is a person."""
    views, splits = ("occluded_body_images", "whole_body_images"), Splits([], [], [])
    for camid, view in enumerate(views):
        for images, person in find_folders(within(folder, "Occluded_REID", views) / view, r"\d+$"):
            splits[camid + 1].extend(Item((path,), int(person[0]), camid) for path, _ in find_images(images))
    return splits


def parse_cuhk02(folder, split):
    """Five pairs of cameras with people of their own: four to train on, the fifth to test."""
    views = [f"P{pair}/cam{view}" for pair in range(1, 6) for view in (1, 2)]
    items = in_views(folder / "Dataset", views, partial(by_name, pattern=r"(\d+)_"))
    items = [item._replace(pid=(item.camid // 2 + 1) * 10000 + item.pid) for item in items]
    test = {pid for pid in pids_of(items) if pid >= 50000}
    return across_views(items, pids_of(items) - test, test, query_camid=8)


def parse_pairs(folder, split, *, pattern, inner="", directions=1):
    """Persons who are in both folders, cam_a and cam_b."""
    items = in_views(folder / inner, ("cam_a", "cam_b"), partial(by_name, pattern=pattern))
    return random_halves(paired(items), split, directions)


def parse_cuhk01(folder, split):
    """0001003.png: person 1, image 3; images 1 and 2 are of one view, 3 and 4 of the other."""
    images = by_name(folder / "campus", r"(\d{4})(\d{3})\.")  # each as of a camera of its own
    return random_halves([item._replace(camid=item.camid // 2) for item in images], split, directions=2)


PRID_SHARED = range(1, 201)  # the persons under both cameras; beyond, a number is another person in each view


def parse_prid(folder, split):
    """Single shots: 100 persons are searched among themselves and the 549 whom camera b alone saw."""
    read = partial(by_name, pattern=r"person_(\d{4})\.")
    items = in_views(folder / "prid_2011" / "single_shot", ("cam_a", "cam_b"), read)
    found = random_halves([item for item in items if item.pid in PRID_SHARED], split)
    strangers = [item for item in items if item.pid not in PRID_SHARED and item.camid == 1]
    return found._replace(gallery=found.gallery + strangers)


def parse_ilids(folder, split):
    """QMUL's i-LIDS. No cameras are known, so each image counts as one; two of each test person are drawn."""
    items = by_name(folder / "i-LIDS_Pedestrian" / "Persons", r"(\d{4})(\d{3})\.")
    train, *test = random_halves(items, split)
    draw = random.Random(1000 + split).random
    persons = itertools.groupby(sorted(itertools.chain(*test)), key=lambda item: item.pid)
    pairs = [sorted(images, key=lambda _: draw())[:2] for _, images in persons]
    pairs = [pair for pair in pairs if len(pair) == 2]
    return Splits(train, [first for first, _ in pairs], [second for _, second in pairs])


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: lists, and MATLAB files with splits


MSMT17 = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}  # version -> its folders


def parse_msmt17(folder, split):
    found = Splits(*(read_msmt17_list(folder, part) for part in Splits._fields))
    if all((folder / version / "list_query.txt").is_file() for version in MSMT17):
        print(f"{folder} holds {' and '.join(MSMT17)}: the first is read; move it away to have the other")
    return found


def read_msmt17_list(folder, part):
    """`0000/0000_000_01_0303morning_0015_0.jpg 0` per line: the third field of the name is the camera."""
    there = [version for version in MSMT17 if (folder / version).is_dir()]
    filled = [version for version in there if any((folder / version).iterdir())]  # an empty folder hides no other
    version = (filled or there or list(MSMT17)[-1:])[0]
    path = folder / version / f"list_{part}.txt"
    prefix = folder / version / MSMT17[version][part not in ("train", "val")]
    items = []
    for number, line in read_lines(path):
        name, pid = [*line.rsplit(maxsplit=1), ""][:2]  # one blank or several between them
        fields = name.rpartition("/")[2].split("_")
        if not (len(fields) > 3 and fields[2].isdecimal() and pid.isdecimal()):
            raise ValueError(f"{path}, line {number}: {line!r} is not of the form 0000/0000_000_01_..._0.jpg 0")
        items.append(Item((os.path.join(prefix, name),), int(pid), int(fields[2]) - 1))
    require_files(path, [item.paths[0] for item in items])
    return items


def parse_grid(folder, split):
    """Ten splits in features_and_partitions.mat; 775 people of the gallery, all of number 0, have no query."""
    base = folder / "underground_reid"
    mat = base / "features_and_partitions.mat"
    trials = read_mat(mat, "trainIdxAll", integers=False).ravel()
    with explained(f"{mat}: split {split} of trainIdxAll has no list of persons: ", kinds=ANOTHER_FORM):
        train = {int(pid) for pid in trials[split].ravel()[0][2].ravel()}  # the third field of the struct
    probe, gallery = (by_name(base / name, r"(\d{4})_(\d)_") for name in ("probe", "gallery"))
    return Splits(
        [item for item in probe + gallery if item.pid in train],
        [item for item in probe if item.pid not in train],
        [item for item in gallery if item.pid not in train],
    )


def parse_cuhk03(folder, split, *, boxes):
    """The new split of 767 / 700 persons (Zhong et al., CVPR 2017); boxes: detected or labeled."""
    items, config = read_cuhk03(folder, boxes), folder / f"cuhk03_new_protocol_config_{boxes}.mat"
    filelist = read_mat(config, "filelist", integers=False).ravel()
    names = [str(np.ravel(cell)[0]) if np.size(cell) else "" for cell in filelist]
    parts = [read_mat(config, f"{part}_idx").ravel() - 1 for part in Splits._fields]  # counted from 1
    if any(len(rows) and not 0 <= rows.min() <= rows.max() < len(names) for rows in parts):
        raise ValueError(f"{config}: an index points outside of the {len(names)} names in filelist, get the file anew")
    absent = [names[row] for rows in parts for row in rows if names[row] not in items]
    if absent:
        raise FileNotFoundError(
            f"not found: {len(absent)} of the images in {config}: {some(absent)}. Delete {folder / f'images_{boxes}'}, "
            "and they are written anew from cuhk-03.mat"
        )
    return Splits(*([items[names[row]] for row in rows] for rows in parts))


def parse_cuhk03_classic(folder, split, *, boxes):
    """The first 20 splits, of 1,367 / 100 persons: all images of the latter are both query and gallery."""
    items = read_cuhk03(folder, boxes).values()
    with open_cuhk03(folder / CUHK03_MAT) as file:
        test = {1000 * int(pair) + int(person) for pair, person in file[file["testsets"][0, split]][()].T}
    searched = [item for item in items if item.pid in test]
    return Splits([item for item in items if item.pid not in test], searched, searched)


CUHK03_MAT = "cuhk03_release/cuhk-03.mat"
CUHK03_NAME = r"([1-5])_(\d{3})_([12])_(\d{2})\.png$"  # pair of cameras, person of that pair, view, image


def read_cuhk03(folder, boxes):
    """Name -> item of each image of images_detected or images_labeled, which are written there once.

    A pid is 1000 * pair of cameras + person, for persons are numbered anew in each pair.
    """
    images, items = folder / f"images_{boxes}", {}
    if not images.is_dir():
        extract_cuhk03(folder / CUHK03_MAT, boxes, images)
    for path, match in find_images(images, CUHK03_NAME):
        items[os.path.basename(path)] = Item((path,), 1000 * int(match[1]) + int(match[2]), int(match[3]) - 1)
    return items


@contextlib.contextmanager
def open_cuhk03(mat):
    """The HDF5 file that MATLAB 7.3 wrote, where every axis is reversed and a cell is a reference."""
    h5py = reader_of(mat, "h5py")
    kinds = (*ANOTHER_FORM, RuntimeError, OSError)  # h5py has them all
    with explained(f"{mat} is broken or another file, get it anew: ", kinds=kinds), h5py.File(mat, "r") as file:
        yield file


def images_in_cuhk03(mat, boxes):
    """Yields (PAIR_PERSON_VIEW_IMAGE.png, pixels (H, W, 3)) of all images of cuhk-03.mat."""
    with open_cuhk03(mat) as file:
        for pair, reference in enumerate(file[boxes][0], 1):
            cells = file[reference][()].T  # (persons, 10): five images of one view, then five of the other
            for (person, image), cell in np.ndenumerate(cells):
                name = f"{pair}_{person + 1:03}_{image // 5 + 1}_{image + 1:02}.png"
                pixels = file[cell][()]
                if pixels.shape == (2,):  # MATLAB's empty cell is a vector of two zeros
                    continue
                if pixels.ndim != 3 or len(pixels) != 3 or pixels.dtype != np.uint8:
                    raise ValueError(f"{boxes}, {name}: {pixels.dtype} {pixels.shape} is no image in colour")
                yield name, pixels.transpose(2, 1, 0)


def extract_cuhk03(mat, boxes, folder):
    """Writes the images of cuhk-03.mat into `folder`: all of them, or none where it is interrupted."""
    beside = {"dir": folder.parent, "prefix": f"{folder.name}.", "suffix": ".tmp", "ignore_cleanup_errors": True}
    try:
        with tempfile.TemporaryDirectory(**beside) as temporary, progress(folder.name, None) as bar:
            images = Path(temporary, folder.name)
            images.mkdir()
            for name, pixels in images_in_cuhk03(mat, boxes):
                Image.fromarray(pixels).save(images / name)
                bar.update()
            if not any(images.iterdir()):
                raise ValueError(f"{mat}: no image in {boxes}, get it anew")
            os.replace(images, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    for abandoned in sorted(folder.parent.glob(f"{folder.name}.*.tmp")):  # by processes that were killed
        shutil.rmtree(abandoned, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: video


def parse_mars(folder, split):
    """Junk, -1, is left out; the gallery is what is no query. 140 of the 1,980 queries have no match."""
    train, test = (read_mars_tracklets(folder, part) for part in ("train", "test"))
    mat = folder / "info" / "query_IDX.mat"
    rows = set(read_mat(mat, "query_IDX").ravel().tolist())
    if not rows or not 1 <= min(rows) <= max(rows) <= len(test):
        found = f"{min(rows)} to {max(rows)}" if rows else "none"
        raise ValueError(f"{mat} numbers test tracklets from 1 to {len(test)}; found {found}: get the file anew")
    query = [item for number, item in enumerate(test, 1) if number in rows and item.pid != -1]
    gallery = [item for number, item in enumerate(test, 1) if number not in rows and item.pid != -1]
    return Splits(train, query, gallery)


def read_mars_tracklets(folder, part):
    """Runs of lines in the list of names; rows of the .mat file are first line, last line, pid, camera."""
    listed, mat = folder / "info" / f"{part}_name.txt", folder / "info" / f"tracks_{part}_info.mat"
    names = [name for _, name in read_lines(listed)]
    rows = read_mat(mat, f"track_{part}_info")
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"{mat}: rows of 4 numbers are expected, not {rows.shape}: is it the right file?")
    items, prefix = [], f"{folder / f'bbox_{part}'}{os.sep}"
    for number, (first, last, pid, camera) in enumerate(rows.tolist(), 1):
        who = f"{'00-1' if pid == -1 else f'{pid:04}'}C{camera}"
        rule = re.compile(rf"{who}T\d{{4}}F\d{{3,4}}\.jpg", re.IGNORECASE)
        frames = names[first - 1 : last] if 1 <= first <= last <= len(names) else []
        if not frames or not all(map(rule.fullmatch, frames)):
            raise ValueError(
                f"{mat}, row {number}: lines {first} to {last} of {listed} are not the frames of person {pid} under "
                f"camera {camera}, such as {who}T0001F001.jpg: get both anew"
            )
        frames.sort(key=lambda name: (len(name), name))  # F999 before F1000
        items.append(Item(tuple(f"{prefix}{name[:4]}{os.sep}{name}" for name in frames), pid, camera - 1))
    require_files(listed, [path for item in items for path in item.paths])
    return items


def read_trial(mat, split, pids):
    """(train, test) persons of a row of ls_set: places from 1 in the sorted list of persons, test ones first."""
    trials = read_mat(mat, "ls_set")
    if trials.ndim != 2 or len(trials) <= split or sorted(trials[split].tolist()) != list(range(1, len(pids) + 1)):
        raise ValueError(
            f"{mat}: row {split + 1} of ls_set {trials.shape} does not hold the places 1 to {len(pids)} of the persons "
            "found: is one missing on the disk?"
        )
    test, train = np.split(np.array(sorted(pids))[trials[split] - 1], 2)
    return set(train.tolist()), set(test.tolist())


def parse_ilidsvid(folder, split, *, kind):
    """Ten splits of 150 / 150 persons; kind: sequences, or images, the single shots. Queries are of camera 1."""
    base, views = folder / "i-LIDS-VID" / kind, ("cam1", "cam2")
    pids = {int(name[1]) for view in views for _, name in find_folders(base / view, r"person(\d+)$")}
    items = tracklets(base, views, "person{:03}", r"cam[12]_person\d+(?:_(\d+))?\.", pids)
    mat = folder / "train-test people splits" / "train_test_splits_ilidsvid.mat"
    return across_views(items, *read_trial(mat, split, pids))


PRID2011_FRAMES = 27  # in both views: 178 of the 200 persons have them


def parse_prid2011(folder, split):
    """Ten splits of 89 / 89 persons, from splits_prid2011.json or the .mat file that comes with iLIDS-VID."""
    base, views = folder / "prid_2011" / "multi_shot", ("cam_a", "cam_b")
    read = partial(tracklets, base, views, "person_{:04}", r"(\d{4})\.")
    listed, name = folder / "splits_prid2011.json", "train_test_splits_prid.mat"
    if listed.is_file():
        form = '{"train": ["person_0001", ...], "test": [...]}'
        with explained(f"{listed}: split {split} is not of the form {form}: ", kinds=ANOTHER_FORM):
            trial = json.loads(listed.read_text())[split]
            train, test = ({int(name.rpartition("_")[2]) for name in trial[part]} for part in ("train", "test"))
        return across_views(read(train | test), train, test)
    mats = [folder / name, folder.parent / "ilids-vid" / "train-test people splits" / name]
    there = [mat for mat in mats if mat.is_file()]
    if not there:
        raise FileNotFoundError(f"not found: {listed}, nor {' or '.join(map(str, mats))}")
    seen = ({int(name[1]) for _, name in find_folders(base / view, r"person_(\d{4})$")} for view in views)
    items = read(set(PRID_SHARED).intersection(*seen))
    items = paired([item for item in items if len(item.paths) >= PRID2011_FRAMES])
    return across_views(items, *read_trial(there[0], split, pids_of(items)))


def parse_dukemtmcvidreid(folder, split):
    """A folder per person, and in it one per tracklet. Some tracklets do not start at frame 1, some have holes."""
    base, splits = within(folder, "DukeMTMC-VideoReID", Splits._fields), Splits([], [], [])
    rule = r"\d{4}_?C[1-8]_?F(\d+)_?[XD]\d+\."  # 0001_C6_F0099_X30823.jpg, or without underscores
    for part, items in splits._asdict().items():
        for folder, person in find_folders(base / part, r"\d+$"):
            for path, _ in find_folders(folder):
                item = tracklet(path, rule, int(person[0]))
                cameras = {os.path.basename(frame)[4:].lstrip("_")[1] for frame in item.paths}
                if len(cameras) > 1:
                    raise ValueError(f"{path}: cameras {', '.join(sorted(cameras))} in one tracklet")
                items.append(item._replace(camid=int(cameras.pop()) - 1))
    return splits


# ----------------------------------------------------------------------------------------------------------------------
# Parser of a user's own images


def parse_own(folder, split):
    """items.csv, or folders train, query and gallery (those that there are) of images named PID_cCAMERA....

    The header of items.csv is path,pid,camid[,tracklet][,split]: path relative to the folder, split train (also where
    there is no such column), query or gallery. Rows of one split with the same tracklet, pid and camid are the frames
    of one item, in the order of the file; an empty tracklet is an item of its own. Person 0 and camera 0 are like
    others; who is not to be told apart, a stranger in the gallery, is called nobody in place of the person's number.
    A file in place of the folder is people.csv of search.py group.
    """
    if folder.is_file():
        return parse_people(folder)
    if (folder / "items.csv").is_file():
        return read_own_list(folder / "items.csv")
    names = Splits._fields
    parts = [(name,) if (folder / name).is_dir() else () for name in names]
    if not any(parts):
        raise FileNotFoundError(f"not found: {folder / 'items.csv'}, nor a folder of {', '.join(names)} in {folder}")
    tell_passed_over(folder, lambda entry: entry.is_dir() and entry.name not in names)
    for name in itertools.chain(*parts):
        tell_passed_over(folder / name, lambda entry: not (is_image(entry.name) and entry.is_file()))
    return parse_named(folder, split, parts=parts, pattern=r"(nobody|\d+)_c(\d+)(?!\d)")


def tell_passed_over(folder, wanted):
    """Says what a user may take for read: what is `wanted` in the folder, but for the litter of file managers."""
    kinds = defaultdict(list)
    for name in list_folder(folder, lambda entry: wanted(entry) and entry.name.lower() not in LITTER):
        path = folder / name
        kinds["folders" if path.is_dir() else "other files" if path.exists() else "links to nothing"].append(name)
    if kinds:
        told = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in sorted(kinds.items()))
        print(f"{folder}: passed over {told}. Images are read from train, query and gallery directly, "
              f"if they end in {', '.join(SUFFIXES)}")  # fmt: skip


def read_own_list(path):
    """Splits of items.csv."""
    clips, first_line, twice = {}, {}, []
    for number, name, *who, tracklet, split in read_own_rows(path):
        file = os.path.join(path.parent, name)
        place = os.path.normpath(file)
        before, known = first_line.setdefault(place, (number, who))
        if known != who:
            raise ValueError(
                f"{path}, line {number}: {name} shows person {who[0]} under camera {who[1] + 1}, but by line "
                f"{before} person {known[0]} under camera {known[1] + 1}: correct one of them"
            )
        frames = clips.setdefault((split, *who, tracklet or (place,)), {})
        if place in frames:
            twice.append(number)
        frames.setdefault(place, file)
    if not clips:
        raise ValueError(f"{path} lists no images")
    if twice:
        print(f"{path}: {len(twice)} lines are there already, and do not count again: line {some(twice)}")
    require_files(path, [file for frames in clips.values() for file in frames.values()])
    splits = Splits([], [], [])
    for (part, pid, camid, _), frames in clips.items():
        getattr(splits, part).append(Item(tuple(frames.values()), pid, camid))
    return splits


COLUMNS = ("path", "pid", "camid", "tracklet", "split")  # of items.csv


def read_own_rows(path):
    """[(line number, path, pid, camid, tracklet, split)] of items.csv, checked."""
    lines, unused = read_table(path, COLUMNS, COLUMNS[:3])
    if unused:
        print(f"{path}: not used: {some(unused)}; its columns are {', '.join(COLUMNS)}")
    rows = []
    for number, line in lines:
        told, split = [line["pid"].lower(), camera_name(line["camid"])], line.get("split", "train").lower()
        if not line["path"].isascii() and re.search("[\ud800-\udfff]", line["path"]):
            raise ValueError(f"{path}, line {number}: not encoded in UTF-8, save it anew so")
        numbers = all(re.fullmatch(r"\d{1,18}", text) for text in told if text != "nobody")  # 64 bits hold them
        if not (line["path"] and numbers and told[1] != "nobody" and split in Splits._fields):
            raise ValueError(
                f"{path}, line {number}: pid is a number of up to 18 digits or nobody (a stranger in the gallery), "
                f"camid such a number, split one of {', '.join(Splits._fields)}; got "
                + ", ".join(f"{name} {value!r}" for name, value in line.items())
            )
        pid = STRANGER if told[0] == "nobody" else int(told[0])
        rows.append((number, line["path"], pid, int(told[1]) - 1, line.get("tracklet"), split))
    return rows


def parse_people(file):
    """Lines of people.csv that somebody looked at, all under one camera and none to train on: of each person the
    second, fourth, ... are queries, the others the gallery. A list without the column reviewed counts as a whole."""
    lines, _ = read_table(file, ("path", "person", "confidence", "reviewed"), ("path", "person"))
    splits, seen = Splits([], [], []), Counter()
    for number, line in lines:
        if line.get("reviewed", "1") != "1" or line["person"] in ("", "-1"):
            continue
        if not line["person"].isdecimal():
            raise ValueError(f"{file}, line {number}: person {line['person']!r} is no number from 0 on")
        item = Item((os.path.join(file.parent, line["path"]),), int(line["person"]), 0)
        (splits.query if seen[item.pid] % 2 else splits.gallery).append(item)
        seen[item.pid] += 1
    if not seen:
        raise ValueError(f"{file}: nobody has looked at a line: reviewed is 1 in none that has a person")
    require_files(file, [item.paths[0] for items in splits for item in items])
    return splits


# ----------------------------------------------------------------------------------------------------------------------
# The table


class Dataset(NamedTuple):
    folder: str  # below root
    parse: Callable  # (folder, split) -> Splits
    layout: str  # what lies in the folder, for messages
    counts: tuple | None  # of train, query, gallery: (ids, items, cameras) as published, None where nothing is
    num_splits: int = 1
    protocol: str = "market1501"  # of metrics.py
    persons: str = ""  # sets with the same word here show the same people
    numbering: str = ""  # and where this word is another one, under other numbers
    two_id_spaces: bool = False  # a number means one person in train and another one in query and gallery
    nobody: frozenset | range = frozenset()  # pids that are no person to learn: distractors
    access: str = "given out by its authors for research"
    parse_multi_query: Callable | None = None  # (folder, split) -> Splits, whose queries are what multi-query pools
    parse_more: Callable | None = None  # folder -> train items that the protocol leaves aside


WITHDRAWN = "withdrawn by its authors in 2019, without an official download"
AGREED = "to be had from its authors after signing an agreement"
NOBODY = frozenset({0})  # distractors of the gallery

market1501 = Dataset(
    "market1501", parse_market1501,
    "Market-1501-v15.09.15/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg",
    ((751, 12936, 6), (750, 3368, 6), (751, 15913, 6)), persons="Market-1501", nobody=NOBODY,
    parse_multi_query=partial(parse_market1501, parts=((), ("gt_bbox",), ())),  # drawn by hand, of all persons
)  # fmt: skip
cuhk03 = Dataset(
    "cuhk03", partial(parse_cuhk03, boxes="detected"),
    "cuhk03_release/cuhk-03.mat (or images_detected/) and cuhk03_new_protocol_config_{detected,labeled}.mat",
    ((767, 7365, 2), (700, 1400, 2), (700, 5332, 2)), persons="CUHK03",
)  # fmt: skip
cuhk03_classic = cuhk03._replace(
    parse=partial(parse_cuhk03_classic, boxes="detected"), layout="cuhk03_release/cuhk-03.mat",
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
    ((625, 8298, 6), (626, 1980, 6), (621, 9330, 6)), persons="Market-1501", numbering="MARS", nobody=NOBODY,
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
        ((1577, 6308, 8), (239, 478, 1), (239, 478, 1)), persons="CUHK campus", numbering="CUHK02",
    ),
    "cuhk03": cuhk03,
    "cuhk03-labeled": cuhk03._replace(
        parse=partial(parse_cuhk03, boxes="labeled"),
        layout=cuhk03.layout.replace("images_detected", "images_labeled"),
        counts=((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)),
    ),
    "cuhk03-classic": cuhk03_classic,
    "cuhk03-classic-labeled": cuhk03_classic._replace(parse=partial(parse_cuhk03_classic, boxes="labeled")),
    "cuhk03-np": Dataset(
        "cuhk03-np", partial(parse_cuhk03_np, inner="detected"),
        "detected/{bounding_box_train,query,bounding_box_test}/0001_c1_....png", cuhk03.counts, persons="CUHK03",
        numbering="CUHK03-NP",
    ),
    "cuhk03-np-labeled": Dataset(
        "cuhk03-np", partial(parse_cuhk03_np, inner="labeled"),
        "labeled/{bounding_box_train,query,bounding_box_test}/0001_c1_....png",
        ((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)), persons="CUHK03", numbering="CUHK03-NP",
    ),
    "cuhksysu": Dataset(
        "cuhksysu", partial(parse_named, parts=(("cropped_images",), (), ()), pattern=r"p(\d+)_s\d+_\d+"),
        "cropped_images/p11422_s16929_1.jpg", ((11934, 34574, 1), None, None),
    ),
    "dukemtmcreid": dukemtmcreid,
    "dukemtmcvidreid": Dataset(
        "dukemtmc-vidreid", parse_dukemtmcvidreid,
        "DukeMTMC-VideoReID/{train,query,gallery}/0001/0003/0001_C6_F0099_X30823.jpg",
        ((702, 2196, 8), (702, 702, 8), (1110, 2636, 8)), persons="DukeMTMC", numbering="VideoReID", access=WITHDRAWN,
    ),
    "folder": Dataset(
        "", parse_own,
        "items.csv: path,pid,camid[,tracklet][,split], or {train,query,gallery}/12_c3_any.jpg (person 12, camera 3)",
        None, nobody=frozenset({STRANGER}), access="your own",
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
        parse_more=partial(read_msmt17_list, part="val"),
    ),
    "occluded_duke": dukemtmcreid._replace(
        folder="occluded_duke", parse=partial(dukemtmcreid.parse, inner="Occluded_Duke"),
        layout=dukemtmcreid.layout.replace("DukeMTMC-reID", "Occluded_Duke"),
        counts=((702, 15618, 8), (519, 2210, 8), (1110, 17661, 8)),
    ),
    "occluded_reid": Dataset(
        "occluded_reid", parse_occluded_reid,
        "Occluded_REID/{occluded_body_images,whole_body_images}/001/001_01.tif", (None, (200, 1000, 1), (200, 1000, 1)),
    ),
    "prid": Dataset(
        "prid2011", parse_prid, "prid_2011/single_shot/{cam_a,cam_b}/person_0001.png",
        ((100, 200, 2), (100, 100, 1), (649, 649, 1)), num_splits=10, persons="PRID2011", nobody=range(201, 10000),
    ),
    "prid2011": Dataset(
        "prid2011", parse_prid2011,
        "prid_2011/multi_shot/{cam_a,cam_b}/person_0001/0001.png, splits_prid2011.json",
        ((89, 178, 2), (89, 89, 1), (89, 89, 1)), num_splits=10, persons="PRID2011",
    ),
    "prid450s": Dataset(
        "prid450s", partial(parse_pairs, pattern=r"img_(\d+)\.png$"),  # masks are named otherwise
        "{cam_a,cam_b}/img_001.png",
        ((225, 450, 2), (225, 225, 1), (225, 225, 1)), num_splits=10,
    ),
    "sensereid": Dataset(
        "sensereid", partial(parse_named, parts=((), ("test_probe",), ("test_gallery",)), pattern=r"(\d+)_(\d+)",
                             inner="SenseReID", first_camera=0),
        "SenseReID/{test_probe,test_gallery}/00001_0.jpg", (None, (522, 1040, None), (1717, 3388, None)),
    ),
    "synthetic": market1501._replace(
        folder="synthetic", counts=None, persons="", access="drawn, nobody in it exists",
        layout="what `python -m tools.synthetic` writes",
    ),
    "synthetic-video": mars._replace(
        folder="synthetic-video", counts=None, persons="", access="drawn, nobody in it exists",
        layout="what `python -m tools.synthetic --video` writes",
    ),
    "viper": Dataset(
        "viper", partial(parse_pairs, pattern=r"(\d{3})_\d", inner="VIPeR", directions=2),  # the angle differs
        "VIPeR/{cam_a,cam_b}/000_45.bmp",
        ((316, 632, 2), (316, 316, 1), (316, 316, 1)), num_splits=20,
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# What every data set passes through: the table of counts, checks, labels


def find_dataset(name, root):
    """The Dataset of that name and its folder below `root`; folder:PATH is a user's own."""
    kind, _, path = name.partition(":")
    if kind not in DATASETS or (kind == "folder") != bool(path):
        near = ["folder:PATH"] if kind == "folder" else difflib.get_close_matches(name.lower(), DATASETS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"no data set {name!r}{hint} Available: {', '.join(sorted(DATASETS))} (folder:PATH is yours)")
    dataset = DATASETS[kind]
    return dataset, Path(root) / (path or dataset.folder)


def read_dataset(name, root="data", *, split=0):
    """Splits of data set `name`, whose folder lies below `root`, as its parser finds them; each list is sorted."""
    dataset, folder = find_dataset(name, root)
    if not 0 <= split < dataset.num_splits:
        raise ValueError(f"{name} has splits 0 to {dataset.num_splits - 1}, got {split}")
    drawn = "" if folder.is_dir() else ". `python -m tools.synthetic` draws a small set to try things with"
    with explained(
        after=f". Expected in {folder}: {dataset.layout}. {name} is {dataset.access}, see DATASETS.md{drawn}"
    ):
        if not folder.is_dir() and not (dataset.parse is parse_own and folder.is_file()):
            raise FileNotFoundError(f"the folder of {name} is not there: {folder} (--root is the folder above it)")
        splits = Splits(*map(sorted, dataset.parse(folder, split)))
        for item in itertools.chain(*splits):
            if max(item.pid, item.camid) >= 2**63:
                raise ValueError(f"{item.paths[0]}: the number of its person or camera is beyond 64 bits")
    return splits


def load_dataset(
    name, root="data", *, split=0, min_frames=0, combine=False, holdout=0, train=True, evaluate=True, protocol=None
):  # fmt: skip
    """Splits of data set `name`, whose folder lies below `root`, checked for what is asked of it (train, evaluate).

    None asks for what the data set is there for; min_frames: shorter tracklets of a video set are left out; combine:
    the test persons are trained on too; holdout: so many train persons are tested on instead, see hold_out; protocol:
    None is the data set's own.
    """
    dataset, folder = find_dataset(name, root)
    splits = read_dataset(name, root, split=split)
    where = f"{name} in {folder}"
    of = f", split {split} of 0 to {dataset.num_splits - 1}" if dataset.num_splits > 1 else ""
    print(f"{where}{of} ({dataset.access})\n{describe(splits, dataset.counts)}")
    meant = dataset.counts or splits
    train = bool(meant[0]) if train is None else train
    evaluate = bool(meant[1] or meant[2]) if evaluate is None else evaluate
    protocol = protocol or dataset.protocol
    splits = leave_out_nobody(splits, dataset.nobody)
    if min_frames and has_video(splits):
        longest = max(len(item.paths) for items in splits for item in items)
        where += f", with --min-frames {min_frames} (the longest tracklet has {longest})"
        splits = Splits(*([item for item in items if len(item.paths) >= min_frames] for items in splits))
        print(f"with {min_frames} frames or more:\n{describe(splits)}")
    if holdout:
        with explained(f"{where}: "):
            splits = hold_out(splits, holdout, protocol)
        print(f"tested on {holdout} of the persons to train on:\n{describe(splits)}")
    with explained(f"{where}: ", f". Expected: {dataset.layout}, see DATASETS.md"):
        checked = check_splits(
            splits, train=train, evaluate=evaluate, two_id_spaces=dataset.two_id_spaces, protocol=protocol
        )
    return checked._replace(train=combine_all(splits, dataset, folder)) if combine else checked


def describe(splits, counts=None):
    """The table of ids, items, cameras and frames; a line more where a count is not the published one."""
    video = has_video(splits)
    lines = [f"{'split':8} {'ids':>6} {'items':>8} {'cameras':>8}"]
    lines[0] += video * f" {'frames: min':>12} {'mean':>7} {'max':>5}"
    for (name, items), published in zip(splits._asdict().items(), counts or (None,) * 3, strict=True):
        found = (len(pids_of(items)), len(items), len({item.camid for item in items}))
        line = f"{name:8} {found[0]:6} {found[1]:8} {found[2]:8}"
        if video and items:
            frames = [len(item.paths) for item in items]
            line += f" {min(frames):12} {sum(frames) / len(frames):7.1f} {max(frames):5}"
        lines.append(line)
        if published and any(p not in (None, f) for p, f in zip(published, found, strict=True)):
            told = (f"{p} {unit}" for p, unit in zip(published, ("ids", "items", "cameras"), strict=True) if p)
            lines.append(f"{'':8} the published counts are {', '.join(told)}: is the archive unpacked whole?")
    return "\n".join(lines)


def has_video(splits):
    """Whether an item has more than one frame."""
    return any(len(item.paths) > 1 for items in splits for item in items)


def leave_out_nobody(splits, nobody):
    """The splits without train and query items of `nobody`; a line tells of each: strangers are no class to learn, and
    not right answers to one another."""
    kept = {}
    for name in ("train", "query"):
        items = getattr(splits, name)
        kept[name] = [item for item in items if item.pid not in nobody]
        strangers = sorted(pids_of(items).intersection(nobody))
        if strangers:
            called = "nobody" if strangers == [STRANGER] else f"person {some(strangers)}, who is nobody in particular"
            print(f"{len(items) - len(kept[name])} {name} items left out, of {called}: strangers are for the gallery")
    return splits._replace(**kept)


def check_splits(splits, *, train=True, evaluate=True, two_id_spaces=False, protocol="market1501"):
    """The splits without queries that nothing can match; ValueError for what cannot be used as asked."""
    if train and len(pids_of(splits.train)) < 2:
        raise ValueError(f"training needs at least 2 persons in the train split, found {len(splits.train)} items")
    shared = pids_of(splits.train) & pids_of(splits.query + splits.gallery)
    if train and evaluate and shared and not two_id_spaces:
        print(f"warning: {len(shared)} persons are in both train and test, so scores flatter: {some(sorted(shared))}. "
              "Take them out of one of the two")  # fmt: skip
    if not evaluate:
        return splits
    for name in ("query", "gallery"):
        if not getattr(splits, name):
            raise ValueError(f"evaluation needs a {name} split, and it is empty: no image was found there")
    return splits._replace(query=matched_queries(splits, protocol))


def matched_queries(splits, protocol):
    """The queries that something can match: images of their person under other cameras, or, under no_camera_rule, all
    but the query itself. Lines tell of the others, and of queries that find themselves; ValueError where none is left.
    """
    by_camera = protocol != "no_camera_rule"
    cameras = {item.camid for item in splits.query + splits.gallery}
    if by_camera and len(cameras) == 1:
        raise ValueError(
            f"all query and gallery images come from one camera (number {cameras.pop() + 1} in the file names): the "
            "protocol leaves out images of the query's own camera, so nothing can match. Name the cameras apart, or, "
            "if there is one only, give --protocol no_camera_rule"
        )
    told_by = Item._fields.index("camid" if by_camera else "paths")  # what sets a match apart from the query
    shown = defaultdict(set)
    for item in splits.gallery:
        shown[item.pid].add(item[told_by])
    queries = [item for item in splits.query if shown[item.pid] - {item[told_by]}]
    lonely = [item.paths[0] for item in splits.query if not shown[item.pid] - {item[told_by]}]
    if not queries:
        where = "under another camera" if by_camera else "in another image"
        raise ValueError(
            f"none of the {len(lonely)} queries can be matched: no gallery image shows the same person {where}. First "
            f"query: {lonely[0]}. Check person and camera numbers in the file names"
        )
    if lonely:
        print(f"{len(lonely)} queries have no match in the gallery and are left out: {some(lonely)}. Fine if they are "
              "few, else check person and camera numbers")  # fmt: skip
    themselves = [item.paths[0] for item in queries if not by_camera and item.paths in shown[item.pid]]
    if themselves:
        print(f"warning: {len(themselves)} queries are in the gallery themselves and under {protocol} find that image, "
              f"so scores flatter: {some(themselves)}. Take them out of the gallery")  # fmt: skip
    return queries


def hold_out(splits, count, protocol="market1501"):
    """Splits that test on `count` persons of train in place of the test persons: to choose hyper-parameters by.

    Which persons is drawn from a private generator, so all runs hold out the same ones. As in Market-1501, a query is
    one image (or tracklet) of a person under a camera; all others are the gallery. A camera with one image of a person
    keeps it in the gallery, unless that is so under all cameras: then the first gives the query.
    """
    pids = sorted(pids_of(splits.train))
    if not pids:
        raise ValueError(f"--holdout {count} takes persons to train on, and there are none: leave it out")
    if not 0 < count < len(pids) - 1:  # training needs two
        raise ValueError(f"--holdout {count}: of {len(pids)} persons 1 to {len(pids) - 2} can be held out")
    rng = np.random.default_rng(0)
    held = set(rng.choice(pids, count, replace=False).tolist())
    persons = defaultdict(lambda: defaultdict(list))  # pid -> camid -> items
    for item in splits.train:
        if item.pid in held:
            persons[item.pid][item.camid].append(item)
    query, gallery = [], []
    for _, cameras in sorted(persons.items()):
        asking = [camid for camid, items in sorted(cameras.items()) if len(items) > 1] or [min(cameras)]
        several = sum(map(len, cameras.values())) > 1
        matched = len(cameras) > 1 or several and protocol == "no_camera_rule"
        for camid, items in sorted(cameras.items()):
            if matched and camid in asking:
                query.append(items.pop(int(rng.integers(len(items)))))
            gallery += items
    if not query:
        raise ValueError(
            f"--holdout {count}: each of these persons is under one camera alone, so no query has a match: give "
            "--protocol no_camera_rule, where images of one camera count too, or another number"
        )
    return Splits([item for item in splits.train if item.pid not in held], query, gallery)


def combine_all(splits, dataset, folder):
    """All there is to train on: persons of query and gallery too, but for those of `nobody`, and images left aside."""
    more = dataset.parse_more(folder) if dataset.parse_more else []
    test = [item for item in splits.query + splits.gallery if item.pid not in dataset.nobody]
    strangers = len(splits.query + splits.gallery) - len(test)
    if strangers:
        print(f"{strangers} gallery items of nobody in particular are not trained on")
    if dataset.two_id_spaces:
        first = max(pids_of(splits.train), default=-1) + 1
        test = [item._replace(pid=item.pid + first) for item in test]
    return sorted({*splits.train, *more, *test})  # an image can be both query and gallery


def merge(parts):
    """One list of the items of several, in which persons and cameras of different lists have different numbers."""
    merged = []
    for items in parts:
        first_pid = max((item.pid for item in merged), default=-1) + 1
        first_camid = max((item.camid for item in merged), default=-1) + 1 - min((i.camid for i in items), default=0)
        merged += [Item(item.paths, item.pid + first_pid, item.camid + first_camid) for item in items]
    return merged


def relabel(items):
    """(labels (N,) 0..num_ids-1 as int64, sorted pids): what the classifier calls each item, and what label i means."""
    pids = sorted(pids_of(items))
    label_of = {pid: label for label, pid in enumerate(pids)}
    return np.array([label_of[item.pid] for item in items], dtype=np.int64), pids


def load_multi_query(name, root, queries):
    """Sorted items of the images that multi-query pools: persons of `queries`, under the cameras of the queries."""
    dataset, folder = find_dataset(name, root)
    if dataset.parse_multi_query is None:
        able = ", ".join(other for other, entry in sorted(DATASETS.items()) if entry.parse_multi_query)
        raise ValueError(f"{name} has no images for multi-query; these have: {able}")
    places = {(item.pid, item.camid) for item in queries}
    with explained(after=". DATASETS.md says where the images for multi-query come from"):
        return sorted(item for item in dataset.parse_multi_query(folder, 0).query if (item.pid, item.camid) in places)


def show_same_people(*names):
    """Whether two data sets do: one and the same, or with the same word in the table."""
    people = [find_dataset(name, "")[0].persons for name in names]
    return names[0] == names[1] or people[0] == people[1] != ""


def warn_of_shared_persons(trained, tests):
    """Says which sets to test on show people who were trained on.

    trained: name of a data set -> set of its pids, None where they are not known; tests: name -> Splits.
    """
    for (source, pids), (target, splits) in itertools.product(trained.items(), tests.items()):
        one, other = find_dataset(source, "")[0], find_dataset(target, "")[0]
        if not show_same_people(source, target):
            continue
        if pids is None or (source != target and one.numbering != other.numbering):
            print(f"warning: {source} and {target} both show people of {one.persons}: scores on {target} may flatter, "
                  "test on others too")  # fmt: skip
        elif not other.two_id_spaces:
            tested = pids_of(splits.query + splits.gallery).difference(other.nobody)
            if shared := sorted(tested & pids):
                print(f"warning: {len(shared)} of the {len(tested)} persons that {target} tests on were trained on, "
                      f"as {source} shows them too, so scores flatter: {some(shared)}. Test on others, or on the split "
                      "that was trained on")  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Frames of a tracklet, and samplers: which rows make which batch, one epoch at a time, so its length is exact


def choose_frames(num_frames, seq_len, method, rng=None):
    """Ascending numbers of at most seq_len of num_frames frames: evenly spread, random without repeats, or all of them.

    Evenly, as in deep-person-reid: the last num_frames % seq_len frames are cut off, then every n-th is taken.
    """
    if method == "all" or num_frames <= seq_len:
        return np.arange(num_frames)
    if method == "evenly":
        return np.arange(seq_len) * (num_frames // seq_len)
    return np.sort(rng.choice(num_frames, seq_len, replace=False))


def fill_clip(frames, seq_len):
    """Numbers of exactly seq_len frames: the last one of a short tracklet is repeated."""
    return np.pad(frames, (0, seq_len - len(frames)), mode="edge")

def identity_batches(labels, batch_size, num_instances, rng):
    """P x K: batches of P = batch_size / K distinct ids with K = num_instances images of each.

    Each id's images are shuffled and cut into groups of K; an id with fewer draws K with replacement, and a last
    incomplete group waits for another epoch. Batches take P random ids with groups left until fewer than P have any.
    """
    rows_of, groups = defaultdict(list), {}
    for row, label in enumerate(labels):
        rows_of[int(label)].append(row)
    for label, rows in sorted(rows_of.items()):
        if len(rows) < num_instances:
            groups[label] = [rng.choice(rows, num_instances)]
        else:
            whole = len(rows) - len(rows) % num_instances
            groups[label] = list(rng.permutation(rows)[:whole].reshape(-1, num_instances))
    batches, ids = [], batch_size // num_instances
    while len(groups) >= ids:
        drawn = rng.choice(sorted(groups), ids, replace=False)
        batches.append(np.concatenate([groups[label].pop() for label in drawn]))  # (P, K) -> (B,)
        groups = {label: left for label, left in groups.items() if left}
    return batches


def domain_batches(domains, batch_size, num_domains, rng):
    """Batches with equal shares of images from `num_domains` of the domains (cameras, data sets); 0 means all of them.

    No image comes twice in an epoch, which ends where a domain that was drawn has too few left: the smallest bounds it.
    """
    rows_of = {domain: rng.permutation(np.flatnonzero(domains == domain)) for domain in np.unique(domains)}
    drawn_at_once = num_domains or len(rows_of)
    share, used, batches = batch_size // drawn_at_once, Counter(), []
    while True:
        drawn = rng.choice(sorted(rows_of), drawn_at_once, replace=False)
        if any(len(rows_of[domain]) < used[domain] + share for domain in drawn):
            return batches
        batches.append(np.concatenate([rows_of[domain][used[domain] : used[domain] + share] for domain in drawn]))
        used.update({domain: share for domain in drawn})


def ways_out(sizes, batch_size, drawn):
    """The batch sizes nearest below and above that fit `drawn` domains of these sizes, and what fits the batch size."""
    drawn = drawn if 1 <= drawn <= len(sizes) else len(sizes)
    share = min(max(batch_size // drawn, 1), sizes.min())
    near = [n * drawn for n in (share, share + 1) if n <= sizes.min() and n * drawn > 1]
    fit = [n for n in range(1, len(sizes) + 1) if batch_size % n == 0 and batch_size // n <= sizes.min()]
    ways = [f"--batch-size {' or '.join(map(str, near))} with --num-domains {drawn}"] * bool(near)
    return ways + [f"--num-domains {' or '.join(map(str, fit))} with --batch-size {batch_size}"] * bool(fit)


def check_batches(labels, batch_size, num_instances=None, domains=None, num_domains=0):
    """ValueError where no epoch can be made of these labels: before any training, with the way out."""
    if len(labels) < batch_size:
        raise ValueError(f"--batch-size {batch_size} is more than the {len(labels)} images or tracklets: lower it")
    if domains is not None:
        sizes = np.unique(domains, return_counts=True)[1]
        drawn = num_domains or len(sizes)
        if not 1 <= drawn <= len(sizes) or batch_size % drawn or batch_size // drawn > sizes.min():
            ways = ways_out(sizes, batch_size, drawn) or ["another --sampler"]
            raise ValueError(
                f"--batch-size {batch_size} with --num-domains {num_domains} (0 means all) takes no equal shares of "
                f"{len(sizes)} domains (cameras or data sets), whose smallest has {sizes.min()} images: give "
                + ", or ".join(ways)
            )
    if num_instances is None:
        return
    if num_instances < 2 or batch_size % num_instances:
        raise ValueError(
            f"--num-instances {num_instances} must be 2 or more and divide --batch-size {batch_size}: a batch holds P "
            f"persons x K images, such as 16 x 4 = 64"
        )
    if batch_size == num_instances:
        raise ValueError(f"--batch-size {batch_size} holds one person, and triplets need two: give a multiple of it")
    persons, num_ids = batch_size // num_instances, len(np.unique(labels))
    if num_ids < persons:
        raise ValueError(
            f"a batch of {persons} persons x {num_instances} images needs that many persons, the train split has "
            f"{num_ids}: lower --batch-size to {num_ids * num_instances} or less"
        )


def epoch_batches(labels, batch_size, num_instances, seed, epoch, domains=None, num_domains=0):
    """The batches of one epoch, arrays of rows (B,): shuffled, P x K where num_instances is given, or by domain."""
    rng = np.random.default_rng((seed, epoch))
    if domains is not None:
        return domain_batches(domains, batch_size, num_domains, rng)
    if num_instances is not None:
        return identity_batches(labels, batch_size, num_instances, rng)
    order = rng.permutation(len(labels))  # what is left over at the end makes no batch
    return [order[start : start + batch_size] for start in range(0, len(order) - batch_size + 1, batch_size)]


# ----------------------------------------------------------------------------------------------------------------------
# What the files hold


def look_into(path, decode):
    """(digest of the file's bytes, None), or (None, why it is no image)."""
    try:
        content = Path(path).read_bytes()
        if not content:
            raise ValueError("the file is empty, 0 bytes")
        if decode:
            read_image(path)
        return hashlib.blake2b(content, digest_size=16).digest(), None
    except Exception as error:  # Pillow raises a dozen types for broken files
        return None, printable(f"{path}: {error}")


def check_files(splits, decode=True):
    """(lines about files that cannot be read or that are equal, each with its remedy; whether one cannot be read)."""
    uses = defaultdict(list)  # path -> [(split, pid), ...]
    for part, items in splits._asdict().items():
        for item in items:
            for path in item.paths:
                uses[path].append((part, item.pid))
    paths, same, broken = sorted(uses), defaultdict(list), []
    with ThreadPool(cpus()) as threads, progress("checking", len(paths)) as bar:
        looks = threads.imap(partial(look_into, decode=decode), paths, chunksize=256)  # MARS has a million files
        for path, (digest, reason) in zip(paths, looks, strict=True):
            if reason:
                broken.append(reason)
            else:
                same[digest].append(path)
            bar.update()
    equal = defaultdict(list)
    for twins in same.values():
        used = [use for path in twins for use in uses[path]]
        parts, persons = {part for part, _ in used}, {pid for _, pid in used}
        searched = len(twins) == len(persons) == 1 and sorted(part for part, _ in used) == ["gallery", "query"]
        if len(used) > 1 and not searched:  # a query may be in the gallery itself, as in CUHK03
            kind = "train" if "train" in parts and len(parts) > 1 else "persons" if len(persons) > 1 else "doubles"
            equal[kind].append(" = ".join(twins) if len(twins) > 1 else f"{twins[0]} ({len(used)} times)")
    lines = []
    for found, what in (
        (broken, "files cannot be read: {}. Get them anew, or delete them"),
        (equal["train"], "images of train are in query or gallery too, so scores flatter: {}. Take them out of train"),
        (equal["persons"], "images have the numbers of two persons: {}. One is wrong: correct or delete it"),
        (equal["doubles"], "images are there more than once, and count so: {}. Delete the copies"),
    ):
        lines += [f"{len(found)} {what.format(some(found))}"] * bool(found)
    return lines, bool(broken)


# ----------------------------------------------------------------------------------------------------------------------
# python data.py --check


def main(argv=None):
    parser = argparse.ArgumentParser(description="Checks data sets: counts, queries without match, files.")
    names = f"of {', '.join(sorted(DATASETS))}; folder:PATH"
    parser.add_argument("--check", nargs="+", required=True, metavar="NAME", help=names)
    parser.add_argument("--root", default="data", help="folder above the data sets' own (default: data)")
    parser.add_argument("--split", type=int, default=0, help="number of the split, from 0 (default: 0)")
    parser.add_argument("--min-frames", type=int, default=0, help="leave out tracklets with fewer (default: 0)")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="matches are judged by (default: the data set's own)")
    args, failed = parser.parse_args(argv), False
    options = {"split": args.split, "min_frames": args.min_frames, "protocol": args.protocol}
    for name in args.check:
        try:
            lines, broken = check_files(load_dataset(name, args.root, train=None, evaluate=None, **options))
            for line in lines[broken:] or ["all files can be read, no two are equal"] * (not broken):
                print(line)
            if broken:
                raise ValueError(f"{name}: {lines[0]}")
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
