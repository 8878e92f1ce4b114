"""Data sets, images and video: the table of them, and checks of what was found.

    splits = load_dataset("market1501", root="data")        # .train .query .gallery: sorted lists of Item
    python data.py --check market1501 mars --root data      # what is there, and what is wrong with it

An Item is a tracklet of one or more image files; an image is a tracklet of one. A data set is a row of the table at the
end of this file; a variant, such as the hand-drawn boxes of CUHK03, is a row of its own. parsers.py reads the folders,
DATASETS.md says where each set comes from.
"""

import argparse
import difflib
import hashlib
import io
import itertools
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

import parsers
from decode import read_opened
from parsers import DUKE_NAME, MARKET_PARTS, Item, Splits, parse_named, some

PROTOCOLS = ("market1501", "cuhk03", "no_camera_rule")  # those of metrics.py, which takes long to import


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
    parse_multi_query: Callable | None = None  # folder -> items, images that multi-query pools
    parse_more: Callable | None = None  # folder -> train items that the protocol leaves aside


# ----------------------------------------------------------------------------------------------------------------------
# What every data set passes through: the table of counts, checks, labels


def check_splits(splits, *, train=True, evaluate=True, two_id_spaces=False, protocol="market1501"):
    """The splits without queries that nothing can match; ValueError for what cannot be used as asked.

    protocol: one of PROTOCOLS. By the same-camera rule a query is matched by images of its person under other cameras,
    under no_camera_rule by all but the query itself.
    """
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
    lonely = [item for item in splits.query if not shown[item.pid] - {item[told_by]}]
    if len(lonely) == len(splits.query):
        where = "under another camera" if by_camera else "in another image"
        raise ValueError(
            f"none of the {len(lonely)} queries can be matched: no gallery image shows the same person {where}. First "
            f"query: {lonely[0].paths[0]}. Check person and camera numbers in the file names"
        )
    if lonely:
        names = some([item.paths[0] for item in lonely])
        print(f"{len(lonely)} queries have no match in the gallery and are left out: {names}. Fine if they are few, "
              "else check person and camera numbers")  # fmt: skip
    queries = [item for item in splits.query if shown[item.pid] - {item[told_by]}]
    themselves = [item.paths[0] for item in queries if not by_camera and item.paths in shown[item.pid]]
    if themselves:
        print(f"warning: {len(themselves)} queries are in the gallery themselves and under {protocol} find that image, "
              f"so scores flatter: {some(themselves)}. Take them out of the gallery")  # fmt: skip
    return splits._replace(query=queries)


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
            lines.append(f"{'':8} the published counts are {', '.join(told)}: is the archive unpacked whole?")
    return "\n".join(lines)


def has_video(splits):
    """Whether an item has more than one frame."""
    return any(len(item.paths) > 1 for items in splits for item in items)


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
            tested = {item.pid for item in splits.query + splits.gallery}.difference(other.nobody)
            if shared := sorted(tested & pids):
                print(f"warning: {len(shared)} of the {len(tested)} persons that {target} tests on were trained on, "
                      f"as {source} shows them too, so scores flatter: {some(shared)}. Test on others, or on the split "
                      "that was trained on")  # fmt: skip


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


def combine_all(splits, dataset, folder):
    """All there is to train on: persons of query and gallery too, but for those of `nobody`, and images left aside."""
    more = dataset.parse_more(folder) if dataset.parse_more else []
    test = [item for item in splits.query + splits.gallery if item.pid not in dataset.nobody]
    if dataset.two_id_spaces:
        first = max((item.pid for item in splits.train), default=-1) + 1
        test = [item._replace(pid=item.pid + first) for item in test]
    return sorted({*splits.train, *more, *test})  # an image can be both query and gallery


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
    try:
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder of {name} is not there: {folder} (--root is the folder above it)")
        splits = Splits(*map(sorted, dataset.parse(folder, split)))
        for item in itertools.chain(*splits):
            if max(item.pid, item.camid) >= 2**63:
                raise ValueError(f"{item.paths[0]}: the number of its person or camera is beyond 64 bits")
        return splits
    except (FileNotFoundError, ValueError) as error:
        drawn = "" if folder.is_dir() else ". `python synthetic.py` draws a small set to try things with"
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(
            f"{error}. Expected in {folder}: {dataset.layout}. {name} is {dataset.access}, see DATASETS.md{drawn}"
        ) from error


def hold_out(splits, count, protocol="market1501"):
    """Splits that test on `count` persons of train in place of the test persons: to choose hyper-parameters by.

    Which persons is drawn from a private generator, so all runs hold out the same ones. As in Market-1501, a query is
    one image (or tracklet) of a person under a camera; all others are the gallery. A camera with one image of a person
    keeps it in the gallery, unless that is so under all cameras: then the first gives the query.
    """
    pids = sorted({item.pid for item in splits.train})
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
    of = f", split {split} of 0 to {dataset.num_splits - 1}" if dataset.num_splits > 1 else ""
    print(f"{name} in {folder}{of} ({dataset.access})\n{describe(splits, dataset.counts)}")
    meant, shorter = dataset.counts or splits, ""
    if min_frames and has_video(splits):
        longest = max(len(item.paths) for items in splits for item in items)
        splits = Splits(*([item for item in items if len(item.paths) >= min_frames] for items in splits))
        print(f"with {min_frames} frames or more:\n{describe(splits)}")
        shorter = f", with --min-frames {min_frames} (the longest tracklet has {longest})"
    train = bool(meant[0]) if train is None else train
    evaluate = bool(meant[1] or meant[2]) if evaluate is None else evaluate
    protocol = protocol or dataset.protocol
    if holdout:
        try:
            splits, shorter = hold_out(splits, holdout, protocol), f"{shorter}, with --holdout {holdout}"
        except ValueError as error:
            raise ValueError(f"{name} in {folder}{shorter}: {error}") from error
        print(f"tested on {holdout} of the persons to train on:\n{describe(splits)}")
    try:
        checked = check_splits(
            splits, train=train, evaluate=evaluate, two_id_spaces=dataset.two_id_spaces, protocol=protocol
        )
    except ValueError as error:
        where = f"{name} in {folder}{shorter}"
        raise ValueError(f"{where}: {error}. Expected: {dataset.layout}, see DATASETS.md") from error
    return checked._replace(train=combine_all(splits, dataset, folder)) if combine else checked


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
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{error}. DATASETS.md says where the images for multi-query come from") from error
    return sorted(item for item in found if (item.pid, item.camid) in places)


# ----------------------------------------------------------------------------------------------------------------------
# What the files hold


def look_into(paths, whole):
    """Of each file (digest of its bytes, None), or (None, why it is no image)."""
    looks = []
    for path in paths:
        try:
            content = Path(path).read_bytes()
            if not content:
                raise ValueError("the file is empty, 0 bytes")
            if whole:
                with Image.open(io.BytesIO(content)) as image:
                    read_opened(image)
            looks.append((hashlib.blake2b(content, digest_size=16).digest(), None))
        except Exception as error:  # Pillow raises a dozen types for broken files
            looks.append((None, f"{path}: {'no image' if isinstance(error, UnidentifiedImageError) else error}"))
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
        for block, looks in zip(blocks, threads.map(partial(look_into, whole=decode), blocks), strict=True):
            for path, (digest, reason) in zip(block, looks, strict=True):
                if reason:
                    broken.append(reason)
                else:
                    same[digest].append(path)
            bar.update(len(block))
    leaks, contradictions, doubles = [], [], []
    for twins in same.values():
        used = [use for path in twins for use in uses[path]]
        parts, persons = {part for part, _ in used}, {pid for _, pid in used}
        both = len(twins) == len(persons) == 1 and len(used) == len(parts) == 2  # query and gallery: that is allowed
        if len(used) > 1 and not (both and "train" not in parts):
            kind = leaks if "train" in parts and len(parts) > 1 else contradictions if len(persons) > 1 else doubles
            kind.append(" = ".join(twins) if len(twins) > 1 else f"{twins[0]} ({len(used)} times)")
    lines = [f"{len(broken)} files cannot be read: {some(broken)}. Get them anew, or delete them"] * bool(broken)
    for kind, what in (
        (leaks, "images of train are in query or gallery too, so scores flatter: {}. Take them out of train"),
        (contradictions, "images have the numbers of two persons: {}. One is wrong: correct or delete it"),
        (doubles, "images are there more than once, and count so: {}. Delete the copies"),
    ):
        lines += [f"{len(kind)} {what.format(some(kind, 3))}"] * bool(kind)
    return lines, bool(broken)


def check(name, root, split, min_frames, protocol=None):
    """Prints what is there and what is wrong with it; ValueError where it cannot be used for what it is there for."""
    splits = load_dataset(
        name, root, split=split, min_frames=min_frames, train=None, evaluate=None, protocol=protocol
    )  # fmt: skip
    lines, broken = check_files(splits)
    for line in lines[1:] if broken else lines or ["all files can be read, no two are equal"]:
        print(line)
    if broken:
        raise ValueError(f"{name}: {lines[0]}")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Checks data sets: counts, queries without match, files.")
    names = f"of {', '.join(sorted(DATASETS))}; folder:PATH"
    parser.add_argument("--check", nargs="+", required=True, metavar="NAME", help=names)
    parser.add_argument("--root", default="data", help="folder above the data sets' own (default: data)")
    parser.add_argument("--split", type=int, default=0, help="number of the split, from 0 (default: 0)")
    parser.add_argument("--min-frames", type=int, default=0, help="leave out tracklets with fewer (default: 0)")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="matches are judged by (default: the data set's own)")
    args, failed = parser.parse_args(argv), False
    for name in args.check:
        try:
            check(name, args.root, args.split, args.min_frames, args.protocol)
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
    "market1501", parsers.parse_market1501,
    "Market-1501-v15.09.15/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg",
    ((751, 12936, 6), (750, 3368, 6), (751, 15913, 6)), persons="Market-1501", nobody=NOBODY,
    parse_multi_query=parsers.parse_market1501_boxes,
)  # fmt: skip
cuhk03 = Dataset(
    "cuhk03", partial(parsers.parse_cuhk03, boxes="detected", classic=False),
    "cuhk03_release/cuhk-03.mat (or images_detected/) and cuhk03_new_protocol_config_{detected,labeled}.mat",
    ((767, 7365, 2), (700, 1400, 2), (700, 5332, 2)), persons="CUHK03",
)  # fmt: skip
cuhk03_classic = cuhk03._replace(
    parse=partial(parsers.parse_cuhk03, boxes="detected", classic=True), layout="cuhk03_release/cuhk-03.mat",
    counts=((1367, None, 2), (100, None, 2), (100, None, 2)), num_splits=20, protocol="cuhk03",
)  # fmt: skip
dukemtmcreid = Dataset(
    "dukemtmc-reid", partial(parse_named, parts=MARKET_PARTS, pattern=DUKE_NAME, inner="DukeMTMC-reID"),
    "DukeMTMC-reID/{bounding_box_train,query,bounding_box_test}/0002_c1_f0044158.jpg",
    ((702, 16522, 8), (702, 2228, 8), (1110, 17661, 8)), persons="DukeMTMC", access=WITHDRAWN,
)  # fmt: skip
mars = Dataset(
    "mars", parsers.parse_mars,
    "bbox_{train,test}/0001/0001C1T0001F001.jpg, info/{train_name.txt,test_name.txt,tracks_train_info.mat,"
    "tracks_test_info.mat,query_IDX.mat}",
    ((625, 8298, 6), (626, 1980, 6), (621, 9330, 6)), persons="Market-1501", numbering="MARS", nobody=NOBODY,
)  # fmt: skip
ilidsvid = Dataset(
    "ilids-vid", partial(parsers.parse_ilidsvid, kind="sequences"),
    "i-LIDS-VID/sequences/cam{1,2}/person001/cam1_person001_00317.png, train-test people splits/*.mat",
    ((150, 300, 2), (150, 150, 1), (150, 150, 1)), num_splits=10, persons="iLIDS-VID",
)  # fmt: skip

DATASETS = {
    "cuhk01": Dataset(
        "cuhk01", parsers.parse_cuhk01, "campus/0001001.png",
        ((485, 1940, 2), (486, 972, 1), (486, 972, 1)), num_splits=20, persons="CUHK campus",
    ),
    "cuhk02": Dataset(
        "cuhk02", parsers.parse_cuhk02, "Dataset/P{1,2,3,4,5}/cam{1,2}/001_....png",
        ((1577, 6308, 8), (239, 478, 1), (239, 478, 1)), persons="CUHK campus", numbering="CUHK02",
    ),
    "cuhk03": cuhk03,
    "cuhk03-labeled": cuhk03._replace(
        parse=partial(parsers.parse_cuhk03, boxes="labeled", classic=False),
        layout=cuhk03.layout.replace("images_detected", "images_labeled"),
        counts=((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)),
    ),
    "cuhk03-classic": cuhk03_classic,
    "cuhk03-classic-labeled": cuhk03_classic._replace(
        parse=partial(parsers.parse_cuhk03, boxes="labeled", classic=True)
    ),
    "cuhk03-np": Dataset(
        "cuhk03-np", partial(parse_named, parts=MARKET_PARTS, pattern=r"(\d{4})_c([12])(?!\d)", inner="detected"),
        "detected/{bounding_box_train,query,bounding_box_test}/0001_c1_....png", cuhk03.counts, persons="CUHK03",
        numbering="CUHK03-NP",
    ),
    "cuhk03-np-labeled": Dataset(
        "cuhk03-np", partial(parse_named, parts=MARKET_PARTS, pattern=r"(\d{4})_c([12])(?!\d)", inner="labeled"),
        "labeled/{bounding_box_train,query,bounding_box_test}/0001_c1_....png",
        ((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)), persons="CUHK03", numbering="CUHK03-NP",
    ),
    "cuhksysu": Dataset(
        "cuhksysu",
        partial(parse_named, parts=(("cropped_images",), (), ()), pattern=r"p(\d+)_s\d+_\d+", camid=lambda _: 0),
        "cropped_images/p11422_s16929_1.jpg", ((11934, 34574, 1), None, None),
    ),
    "dukemtmcreid": dukemtmcreid,
    "dukemtmcvidreid": Dataset(
        "dukemtmc-vidreid", parsers.parse_dukemtmcvidreid,
        "DukeMTMC-VideoReID/{train,query,gallery}/0001/0003/0001_C6_F0099_X30823.jpg",
        ((702, 2196, 8), (702, 702, 8), (1110, 2636, 8)), persons="DukeMTMC", numbering="VideoReID", access=WITHDRAWN,
    ),
    "folder": Dataset(
        "", parsers.parse_own,
        "items.csv: path,pid,camid[,tracklet][,split], or {train,query,gallery}/12_c3_any.jpg (person 12, camera 3)",
        None, nobody=NOBODY, access="your own",
    ),
    "grid": Dataset(
        "grid", parsers.parse_grid,
        "underground_reid/{probe,gallery}/0001_1_25004_107_32_106_221.jpeg and features_and_partitions.mat",
        ((125, 250, None), (125, 125, None), (126, 900, None)), num_splits=10, nobody=NOBODY,
    ),
    "ilids": Dataset(
        "ilids", parsers.parse_ilids, "i-LIDS_Pedestrian/Persons/0001001.jpg",
        ((59, None, None), (60, 60, None), (60, 60, None)), num_splits=10,
    ),
    "ilidsvid": ilidsvid,
    "ilidsvid-single": ilidsvid._replace(
        parse=partial(parsers.parse_ilidsvid, kind="images"),
        layout="i-LIDS-VID/images/cam{1,2}/person001/cam1_person001.png, train-test people splits/*.mat",
    ),
    "market1501": market1501,
    "market1501-500k": market1501._replace(
        parse=partial(market1501.parse, parts=(*MARKET_PARTS[:2], ("bounding_box_test", "images"))),
        layout=f"{market1501.layout}, images/ with the distractors", counts=(*market1501.counts[:2], None),
    ),
    "mars": mars,
    "msmt17": Dataset(
        "msmt17", parsers.parse_msmt17,
        "MSMT17_V1/{train,test}/0000/*.jpg (of V2: MSMT17_V2/{mask_train_v2,mask_test_v2}), "
        "list_{train,query,gallery}.txt",
        ((1041, 30248, 15), (3060, 11659, 15), (3060, 82161, 15)), two_id_spaces=True, access=AGREED,
        parse_more=parsers.parse_msmt17_validation,
    ),
    "occluded_duke": dukemtmcreid._replace(
        folder="occluded_duke", parse=partial(dukemtmcreid.parse, inner="Occluded_Duke"),
        layout=dukemtmcreid.layout.replace("DukeMTMC-reID", "Occluded_Duke"),
        counts=((702, 15618, 8), (519, 2210, 8), (1110, 17661, 8)),
    ),
    "occluded_reid": Dataset(
        "occluded_reid", parsers.parse_occluded_reid,
        "Occluded_REID/{occluded_body_images,whole_body_images}/001/001_01.tif", (None, (200, 1000, 1), (200, 1000, 1)),
    ),
    "prid": Dataset(
        "prid2011", parsers.parse_prid, "prid_2011/single_shot/{cam_a,cam_b}/person_0001.png",
        ((100, 200, 2), (100, 100, 1), (649, 649, 1)), num_splits=10, persons="PRID2011", nobody=range(201, 10000),
    ),
    "prid2011": Dataset(
        "prid2011", parsers.parse_prid2011,
        "prid_2011/multi_shot/{cam_a,cam_b}/person_0001/0001.png, splits_prid2011.json",
        ((89, 178, 2), (89, 89, 1), (89, 89, 1)), num_splits=10, persons="PRID2011",
    ),
    "prid450s": Dataset(
        "prid450s", parsers.parse_prid450s, "{cam_a,cam_b}/img_001.png",
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
        "viper", parsers.parse_viper, "VIPeR/{cam_a,cam_b}/000_45.bmp",
        ((316, 632, 2), (316, 316, 1), (316, 316, 1)), num_splits=20,
    ),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
