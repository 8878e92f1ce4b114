"""Parsers: from the folder of a data set, as its authors ship it, to lists of items.

    splits = parse_mars(Path("data/mars"), split=0)         # train, query, gallery: lists of Item

A parser is a function of the folder and the number of the split. data.py has the table of data sets, which says what is
parsed how, and all checks. Facts about the layouts are those of the data sets' own readmes and of deep-person-reid.

Splits that the authors left to chance are drawn here from a private generator that is seeded by their number: the same
on every machine, in any order of calls, and nothing is stored beside the data. Other code drew others, so scores on
such sets compare as means over all splits.
"""

import contextlib
import csv
import itertools
import json
import os
import random
import re
import shutil
from collections import defaultdict
from functools import partial
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


def some(names, limit=5):
    """The first few of many names, for a message."""
    return ", ".join(map(str, names[:limit])) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ----------------------------------------------------------------------------------------------------------------------
# Reading folders and files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LITTER = ("thumbs.db", "desktop.ini")  # of file managers


def is_image(entry):
    """Whether an entry of a folder is an image file, or a link to one."""
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


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


def list_images(folder):
    """Sorted names of the image files directly in `folder`; ValueError where there are none."""
    names = list_folder(folder, is_image)
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
    """(name, match) of the names that begin like `pattern`; a line tells which do not, ValueError where none does."""
    pattern = re.compile(pattern, re.IGNORECASE)
    matches = [(name, pattern.match(name)) for name in names]
    strangers = [name for name, match in matches if match is None]
    if len(strangers) == len(names):
        raise ValueError(f"{folder}: no image is named by the data set's rule, {pattern.pattern}: {some(strangers)}")
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
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {number}: not encoded in UTF-8, save it anew so ({error})") from error
    lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: get it anew")
    return lines


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
    if not isinstance(content[name], np.ndarray):
        raise ValueError(f"{path}: {name} is no array but a {type(content[name]).__name__}: is it the right file?")
    return content[name]


def integers(array):
    """A MATLAB array of whole numbers of any type as int64: unsigned ones would wrap around below zero."""
    with np.errstate(invalid="ignore"):  # NaN
        whole = array.astype(np.int64) if array.dtype.kind in "biuf" else None
    if whole is None or not np.array_equal(whole, array):
        raise ValueError(f"whole numbers are expected, not {array.dtype} {array.shape}: is it the right file?")
    return whole


def read_integers(path, name):
    """The variable `name` of a MATLAB file as int64 of any shape."""
    array = read_mat(path, name)
    try:
        return integers(array)
    except ValueError as error:
        raise ValueError(f"{path}, {name}: {error}") from error


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
    names = [name for part in parts for name in part]
    flat = not (folder / inner).is_dir() and any((folder / name).is_dir() for name in names)
    base = folder if flat else folder / inner
    missing = [name for name in names if not (base / name).is_dir()]
    tested = [name for part in parts[1:] for name in part]
    if any(name in tested for name in missing) or (missing and not tested):
        raise FileNotFoundError(f"not found: {', '.join(str(base / name) for name in missing)}")
    found = []
    for part in parts:
        try:
            found.append([item for name in part for item in by_name(base / name, pattern, camid, junk)])
        except (FileNotFoundError, ValueError) as error:
            if found or not tested:
                raise
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
    return Splits(*(read_msmt17_list(folder, part) for part in Splits._fields))


def parse_msmt17_validation(folder):
    """More images of the train persons, which the standard protocol leaves aside."""
    return read_msmt17_list(folder, "val")


def read_msmt17_list(folder, part):
    """`0000/0000_000_01_0303morning_0015_0.jpg 0` per line: the third field of the name is the camera."""
    versions = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}
    present = [name for name in versions if (folder / name).is_dir()]
    if not present:
        raise FileNotFoundError(f"not found: {' or '.join(str(folder / name) for name in versions)}")
    base, images = folder / present[0], versions[present[0]][part not in ("train", "val")]
    path, items, prefix = base / f"list_{part}.txt", [], f"{base / images}{os.sep}"
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
        train = set(integers(trials[split].ravel()[0][2]).ravel().tolist())  # the third field of the struct
    except (AttributeError, IndexError, TypeError, ValueError) as error:
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
    names = [str(np.ravel(cell)[0]) if np.size(cell) else "" for cell in read_mat(config, "filelist").ravel()]
    parts = [read_integers(config, f"{part}_idx").ravel() - 1 for part in ("train", "query", "gallery")]  # from 1
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
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OSError) as error:  # h5py has them all
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
                        if pixels.shape == (2,):  # MATLAB's empty cell is a vector of two zeros
                            continue
                        name = f"{pair}_{person:03}_{1 if image <= 5 else 2}_{image:02}.png"
                        if pixels.ndim != 3 or len(pixels) != 3 or pixels.dtype != np.uint8:
                            raise ValueError(f"{boxes}, {name}: {pixels.dtype} {pixels.shape} is no image in colour")
                        Image.fromarray(pixels.transpose(2, 1, 0)).save(temporary / name)
            if not any(temporary.iterdir()):
                raise ValueError(f"no image in {boxes}")
        os.replace(temporary, images)
    except OSError:
        if not images.is_dir():  # else another process was faster
            raise
    finally:
        done = images.is_dir()  # then what killed processes left goes too
        for abandoned in [temporary, *(images.parent.glob(f"{images.name}.*.tmp") if done else ())]:
            shutil.rmtree(abandoned, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------------------
# Parsers: video


MARS_NAME = re.compile(r"(\d{4}|00-1)C[1-6]T\d{4}F\d{3,4}\.jpg", re.IGNORECASE)


def parse_mars(folder, split):
    """Tracklets are runs of lines in the lists of names; rows of the .mat files are first line, last line, pid, camera.

    Junk, -1, is left out; the gallery is what is no query. 140 of the 1,980 queries have no match.
    """
    parts = {}
    for part in ("train", "test"):
        names = folder / "info" / f"{part}_name.txt"
        prefix = f"{folder / f'bbox_{part}'}{os.sep}"
        lines = []
        for number, name in read_lines(names):
            if not MARS_NAME.fullmatch(name):
                raise ValueError(f"{names}, line {number}: {name!r} is not of the form 0001C1T0001F001.jpg")
            lines.append(f"{prefix}{name[:4]}{os.sep}{name}")
        require_files(names, lines)
        mat = folder / "info" / f"tracks_{part}_info.mat"
        rows = read_integers(mat, f"track_{part}_info")
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"{mat}: rows of 4 numbers are expected, not {rows.shape}: is it the right file?")
        wrong = (rows[:, 0] < 1) | (rows[:, 0] > rows[:, 1]) | (rows[:, 1] > len(lines))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{mat}, row {row + 1}: lines {rows[row, 0]} to {rows[row, 1]} are no part of the {len(lines)} lines "
                f"of {names}: get both anew"
            )
        parts[part] = []
        for first, last, pid, camera in rows.tolist():
            if mixed := [line for line in lines[first - 1 : last] if not tells_mars(line, pid, camera)]:
                raise ValueError(f"{mat}: a tracklet of person {pid}, camera {camera} holds {some(mixed)}")
            frames = sorted(lines[first - 1 : last], key=lambda line: (len(line), line))  # F999 before F1000
            parts[part].append(Item(tuple(frames), pid, camera - 1))
    mat = folder / "info" / "query_IDX.mat"
    rows, count = set(read_integers(mat, "query_IDX").ravel().tolist()), len(parts["test"])
    if not rows or not 1 <= min(rows) <= max(rows) <= count:
        found = f"{min(rows)} to {max(rows)}" if rows else "none"
        raise ValueError(f"{mat} numbers test tracklets from 1 to {count}; found {found}: get the file anew")
    test = [(item, number in rows) for number, item in enumerate(parts["test"], 1) if item.pid != -1]
    return Splits(parts["train"], [item for item, query in test if query], [item for item, query in test if not query])


def tells_mars(path, pid, camera):
    """Whether the file's name, 0001C1T0001F001.jpg, tells this person and camera; 00-1 is -1."""
    name = os.path.basename(path)
    return name.startswith(f"{'00-1' if pid == -1 else f'{pid:04}'}C{camera}")


def read_trial(mat, split, pids):
    """(train, test) persons of a row of ls_set: places from 1 in the sorted list of persons, test ones first."""
    trials = read_integers(mat, "ls_set")
    if trials.ndim != 2 or len(trials) <= split or sorted(trials[split].tolist()) != list(range(1, len(pids) + 1)):
        raise ValueError(
            f"{mat}: row {split + 1} of ls_set {trials.shape} does not hold the places 1 to {len(pids)} of the persons "
            "found: is one missing on the disk?"
        )
    test, train = np.split(np.array(sorted(pids))[trials[split] - 1], 2)
    return set(train.tolist()), set(test.tolist())


def parse_ilidsvid(folder, split, *, kind):
    """Ten splits of 150 / 150 persons; kind: sequences, or images, the single shots. Queries are of camera 1."""
    base, views = folder / "i-LIDS-VID" / kind, []
    for camid, view in enumerate(("cam1", "cam2")):
        names, pattern = list_folders(base / view, r"person\d+$"), r"cam[12]_person\d+(?:_(\d+))?\."
        views.append([tracklet(base / view / name, pattern, int(name[6:]), camid) for name in names])
    items, persons = paired(views)
    if lonely := sorted({item.pid for view in views for item in view} - persons):
        both = " or ".join(str(base / view / f"person{lonely[0]:03}") for view in ("cam1", "cam2"))
        raise FileNotFoundError(f"not found: {both}; one of the two views of persons {some(lonely)} is missing")
    mat = folder / "train-test people splits" / "train_test_splits_ilidsvid.mat"
    return across_views(items, *read_trial(mat, split, persons))


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
        for view, items in zip(("cam_a", "cam_b"), views, strict=True):
            if lost := sorted((train | test) - {item.pid for item in items}):
                raise FileNotFoundError(f"not found: {folder / 'prid_2011/multi_shot' / view / f'person_{lost[0]:04}'}")
    else:
        persons = paired([[item for item in view if len(item.paths) >= PRID2011_FRAMES] for view in views])[1]
        name = "train_test_splits_prid.mat"
        places = [folder / name, folder.parent / "ilids-vid" / "train-test people splits" / name]
        mat = next((place for place in places if place.is_file()), None)
        if mat is None:
            raise FileNotFoundError(f"not found: {listed}, nor {' or '.join(map(str, places))}")
        train, test = read_trial(mat, split, persons)
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
    tell_passed_over(folder, lambda entry: entry.is_dir() and entry.name not in parts)
    for part in there:
        if part:
            tell_passed_over(folder / part[0], lambda entry: not is_image(entry))
    return parse_named(folder, split, parts=there, pattern=r"(\d+)_c0*([1-9]\d*)(?!\d)")


def tell_passed_over(folder, wanted):
    """Says what a user may take for read: what is `wanted` in the folder, but for the litter of file managers."""
    kinds = defaultdict(list)
    for name in list_folder(folder, lambda entry: wanted(entry) and entry.name.lower() not in LITTER):
        path = folder / name
        kinds["folders" if path.is_dir() else "other files" if path.exists() else "links to nothing"].append(name)
    if kinds:
        told = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in sorted(kinds.items()))
        print(f"{folder}: passed over {told}. Images are read from train, query and gallery directly, "
              f"if they end in {', '.join(IMAGE_SUFFIXES)}")  # fmt: skip


NUMBER = r"\d{1,18}"  # what 64 bits hold


def read_own_list(path):
    (first, header), *rows = ((number, read_cells(path, number, line)) for number, line in read_lines(path))
    if missing := {"path", "pid", "camid"} - set(header):
        raise ValueError(
            f"{path}, line {first}: no column {', '.join(sorted(missing))} in {','.join(header)} (commas part columns)"
        )
    items, first_line, twice = {part: {} for part in Splits._fields}, {}, []
    for number, cells in rows:
        row = dict(itertools.zip_longest(header, cells))
        part, pid, camid = row.get("split") or "train", row["pid"] or "", row["camid"] or ""
        numbers = re.fullmatch(NUMBER, pid) and re.fullmatch(NUMBER, camid) and int(camid)
        if not (row["path"] and part in items and numbers) or None in row:  # None: cells without a header
            raise ValueError(
                f"{path}, line {number}: pid is a number of up to 18 digits, camid one from 1, split one of "
                f"{', '.join(items)}; got " + ", ".join(f"{name} {value!r}" for name, value in row.items())
            )
        file = os.path.join(path.parent, row["path"])
        place, who = os.path.normpath(file), (int(pid), int(camid) - 1)
        before, known = first_line.setdefault(place, (number, who))
        if known != who:
            raise ValueError(
                f"{path}, line {number}: {row['path']} shows person {who[0]} under camera {who[1] + 1}, but by line "
                f"{before} person {known[0]} under camera {known[1] + 1}: correct one of them"
            )
        frames = items[part].setdefault((*who, row.get("tracklet") or (place,)), {})
        if place in frames:
            twice.append(number)
        frames.setdefault(place, file)
    if twice:
        print(f"{path}: {len(twice)} lines are there already, and do not count again: line {some(twice)}")
    splits = Splits(*([Item((*frames.values(),), *key[:2]) for key, frames in part.items()] for part in items.values()))
    if not any(splits):
        raise ValueError(f"{path} lists no images")
    require_files(path, [name for part in splits for item in part for name in item.paths])
    return splits


def read_cells(path, number, line):
    """The cells of a line of a CSV file."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: {error}; quotes must end in the line where they began") from error
