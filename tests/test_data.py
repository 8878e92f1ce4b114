"""Tests of data.py: the parsers on tiny trees, and the checks of what they found.

python -m pytest tests/test_data.py
"""

import json
import os
import random
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw, run_command
from PIL import Image

import data
import metrics
from data import Item

TRAIN = ["0002_c1s1_000451_03.jpg", "0002_c2s1_000451_01.jpg", "0007_c3s2_000001_01.jpg"]
QUERY = ["0001_c1s1_001051_00.jpg"]
GALLERY = ["0001_c2s1_001051_01.jpg", "0004_c1s1_000001_01.jpg"]


def tree(root, train=TRAIN, query=QUERY, gallery=GALLERY, versioned=True):
    """A data set in Market-1501's layout below `root`; returns the folder of its three parts."""
    folder = root / "market1501" / ("Market-1501-v15.09.15" if versioned else "")
    for part, names in (("bounding_box_train", train), ("query", query), ("bounding_box_test", gallery)):
        (folder / part).mkdir(parents=True)
        for seed, name in enumerate(names):
            draw(folder / part / name, seed)
    return folder


def items(folder, *rows):
    """Items of rows (name, pid, camid) that lie in `folder`."""
    return [Item((str(folder / name),), pid, camid) for name, pid, camid in rows]


def item(pid, camid, name="x.jpg"):
    return Item((name,), pid, camid)


def global_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# ----------------------------------------------------------------------------------------------------------------------
# The parser


def test_versioned_folder_goes_first(tmp_path):
    tree(tmp_path, ["0011_c1s1_000001_01.jpg", "0012_c1s1_000001_01.jpg"], versioned=False)
    tree(tmp_path, ["0021_c1s1_000001_01.jpg", "0022_c1s1_000001_01.jpg"], versioned=True)
    assert [i.pid for i in data.load_dataset("market1501", tmp_path).train] == [21, 22]


STRANGE = {  # data set -> folder and name of an image, and names of another form
    "market1501": ("market1501/bounding_box_train/0002_c1s1_000451_03.jpg", [
        "person.jpg", "0002.jpg", "a0002_c1s1_000001_00.jpg", "00002_c1s1_000001_00.jpg", "0002_c7s1_000001_00.jpg",
        "0002_c12s1_000001_00.jpg", "-2_c1s1_000001_00.jpg",
    ]),
    "folder:own": ("own/train/5_c5_good.jpg", [
        "1_x.jpg", "a1_c1_x.jpg", "1_c_x.jpg", "-1_c1_x.jpg", "1_c1",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name, strange", [(name, strange) for name, (_, all) in STRANGE.items() for strange in all])
def test_strange_names_are_left_out_and_told(tmp_path, capsys, name, strange):
    tree(tmp_path, train=[], versioned=False)
    good = draw(tmp_path / STRANGE[name][0])
    draw(good.parent / strange)
    assert [i.paths for i in data.read_dataset(name, tmp_path).train] == [(str(good),)]
    printed = capsys.readouterr().out
    assert strange in printed and str(good.parent) in printed
    assert "1 images left out" in printed or "1 other files" in printed  # without the end of an image


def test_root_without_the_parts_names_them(tmp_path):
    (tmp_path / "market1501").mkdir()
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.md") as error:
        data.load_dataset("market1501", tmp_path)
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        assert str(tmp_path / "market1501" / "Market-1501-v15.09.15" / part) in str(error.value)


def test_multi_query_takes_persons_under_the_cameras_of_their_queries(tmp_path):
    folder = tree(tmp_path)
    queries = items(folder / "query", ("0001_c1s1_001051_00.jpg", 1, 0), ("0003_c2s1_000001_00.jpg", 3, 1))
    (folder / "gt_bbox").mkdir()
    names = ["0003_c2s2_000009_00.jpg", "0001_c1s1_000009_00.jpg", "0001_c1s1_000002_00.jpg", "0001_c2s1_000009_00.jpg",
             "0002_c1s1_000009_00.jpg", "-1_c1s1_000009_00.jpg"]  # fmt: skip
    for name in names:
        (folder / "gt_bbox" / name).write_bytes(b"")
    assert data.load_multi_query("market1501", tmp_path, queries) == items(
        folder / "gt_bbox",
        ("0001_c1s1_000002_00.jpg", 1, 0), ("0001_c1s1_000009_00.jpg", 1, 0), ("0003_c2s2_000009_00.jpg", 3, 1),
    )  # fmt: skip


def test_multi_query_without_its_images(tmp_path):
    tree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gt_bbox.*DATASETS\.md"):
        data.load_multi_query("market1501", tmp_path, [])
    able = "market1501, market1501-500k, synthetic"
    with pytest.raises(ValueError, match=f"viper has no images for multi-query; these have: {able}$"):
        data.load_multi_query("viper", tmp_path, [])


# ----------------------------------------------------------------------------------------------------------------------
# Miniature trees, one per layout, and what the parsers must find in them. A row is `split pid camid path`; the other
# frames of a tracklet follow, as names beside the first.

CASES = []  # (name, split, base below root, rows)
BUILDERS = {}  # name -> the function that builds its tree below a root


def reads(name, base, rows, split=0):
    """Notes that `read_dataset(name, root, split=split)` finds `rows`, whose paths lie in root / base."""

    def note(build):
        BUILDERS[name] = build
        if rows is not None:  # None: a random split, whose properties are tested instead
            CASES.append((name, split, base, rows))
        return build

    return note


def plant(folder, names):
    """Draws an 8 x 16 image of its own for each of the names, in their order."""
    for name in names.split():
        path = folder / name
        draw(path, zlib.crc32("/".join(path.parts[-4:]).encode()), size=(8, 16))


def litter(folder, like):
    """What lies around in unpacked archives; `like` is a name that the parser of this folder would take.
    A folder has it too, where it is the name of an image."""
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "readme.txt", f"._{like}", f".{like}", f"__MACOSX/._{like}"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    if "." in like:
        (folder / like).mkdir()


def write_mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(path, variables)


def cell(values, shape):
    """A MATLAB cell array."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array.reshape(shape)


def expected_splits(root, base, rows):
    found = data.Splits([], [], [])
    for row in rows.split("\n"):
        if row.strip():
            split, pid, camid, first, *rest = row.split()
            first = root / base / first
            paths = (str(first), *(str(first.parent / name) for name in rest))
            getattr(found, split).append(Item(paths, int(pid), int(camid)))
    return data.Splits(*map(sorted, found))


MARKET_ROWS = """
    train      2 0  bounding_box_train/0002_c1s1_000451_03.jpg
    train      2 5  bounding_box_train/0002_c6s1_000451_01.jpg
    train   1500 2  bounding_box_train/1500_c3s2_000001_01.JPG
    query      1 0  query/0001_c1s1_001051_00.jpg
    query   1488 2  query/1488_c3s3_065428_00.jpg
    gallery    0 3  bounding_box_test/0000_c4s1_000151_01.jpg
    gallery    1 1  bounding_box_test/0001_c2s1_001051_01.jpg
    gallery 1488 5  bounding_box_test/1488_c6s3_094417_08.jpg.jpg
"""


@reads("market1501", "market1501/Market-1501-v15.09.15", MARKET_ROWS)
@reads("market1501-500k", "market1501/Market-1501-v15.09.15", f"""{MARKET_ROWS}
    gallery    0 1  images/0000_c2s3_000001_01.jpg
    gallery    0 5  images/0000_c6s1_123456_99.jpg
""")  # fmt: skip
@reads("synthetic", "synthetic", MARKET_ROWS)
def market1501(root):
    for base in (root / "market1501" / "Market-1501-v15.09.15", root / "synthetic"):
        plant(base / "bounding_box_train", """
            1500_c3s2_000001_01.JPG 0002_c6s1_000451_01.jpg 0002_c1s1_000451_03.jpg""")
        plant(base / "query", "1488_c3s3_065428_00.jpg 0001_c1s1_001051_00.jpg")
        plant(base / "bounding_box_test", """
            1488_c6s3_094417_08.jpg.jpg 0001_c2s1_001051_01.jpg 0000_c4s1_000151_01.jpg -1_c1s1_000401_03.jpg""")
        plant(base / "images", "0000_c6s1_123456_99.jpg 0000_c2s3_000001_01.jpg")
        for part in ("bounding_box_train", "query", "bounding_box_test", "images"):
            litter(base / part, "0001_c2s1_001051_09.jpg")


DUKE_ROWS = """
    train      1 1  bounding_box_train/0001_c2_f0046182.jpg
    train   7139 7  bounding_box_train/7139_c8_f0044158.jpg
    query     19 0  query/0019_c1_f0051230.jpg
    gallery    2 0  bounding_box_test/0002_c1_f0044158.jpg
    gallery   19 7  bounding_box_test/0019_c8_f0051230.JPG
"""


@reads("dukemtmcreid", "dukemtmc-reid/DukeMTMC-reID", DUKE_ROWS)
def dukemtmcreid(root):
    duke_tree(root / "dukemtmc-reid" / "DukeMTMC-reID")


@reads("occluded_duke", "occluded_duke/Occluded_Duke", DUKE_ROWS)
def occluded_duke(root):
    duke_tree(root / "occluded_duke" / "Occluded_Duke")


def duke_tree(base):
    plant(base / "bounding_box_train", "7139_c8_f0044158.jpg 0001_c2_f0046182.jpg")
    plant(base / "query", "0019_c1_f0051230.jpg")
    plant(base / "bounding_box_test", "0019_c8_f0051230.JPG 0002_c1_f0044158.jpg")
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        litter(base / part, "0019_c5_f0000001.jpg")


CUHK03_NP_ROWS = """
    train      3 0  {0}/bounding_box_train/0003_c1_1.png
    train      3 1  {0}/bounding_box_train/0003_c2_6.png
    train   1467 1  {0}/bounding_box_train/1467_c2_10.png
    query      4 0  {0}/query/0004_c1_2.png
    gallery    4 1  {0}/bounding_box_test/0004_c2_7.png
"""


@reads("cuhk03-np", "cuhk03-np", CUHK03_NP_ROWS.format("detected"))
@reads("cuhk03-np-labeled", "cuhk03-np", CUHK03_NP_ROWS.format("labeled"))
def cuhk03_np(root):
    for mode in ("detected", "labeled"):
        base = root / "cuhk03-np" / mode
        plant(base / "bounding_box_train", "1467_c2_10.png 0003_c2_6.png 0003_c1_1.png")
        plant(base / "query", "0004_c1_2.png")
        plant(base / "bounding_box_test", "0004_c2_7.png")
        litter(base / "query", "0004_c2_9.png")


# CUHK03: pair_person_view_index. Person 1 is in each pair, 2_002 and 1_002 of `labeled` have one view only.
CUHK03_NAMES = {
    "detected": """1_001_1_01 1_001_1_05 1_001_2_06 1_001_2_10  1_002_1_03 1_002_2_08  1_003_1_01 1_003_1_02 1_003_2_08
        1_003_2_09  2_001_1_02 2_001_2_07  2_002_2_06 2_002_2_07  3_001_1_01 3_001_2_06  4_001_1_05 4_001_1_04
        4_001_2_09  5_001_1_01 5_001_1_04 5_001_2_10 5_001_2_06""".split(),
    "labeled": """1_001_1_02 1_001_2_06  1_002_1_03  1_003_1_01 1_003_1_02 1_003_2_08  2_001_1_02 2_001_2_07
        2_002_2_06 2_002_2_07  3_001_1_01 3_001_2_06  4_001_1_05 4_001_1_04 4_001_2_09  5_001_1_01
        5_001_2_06""".split(),
}
CUHK03_TEST = {"detected": ("1_003", "5_001"), "labeled": ("1_003", "4_001")}  # of the new protocol
CUHK03_QUERY = {
    "detected": ("1_003_1_02", "1_003_2_08", "5_001_1_01", "5_001_2_10"),
    "labeled": ("1_003_1_01", "1_003_2_08", "4_001_1_05", "4_001_2_09"),
}


def cuhk03_image(mode, name):
    """(H, W, 3), each of its own size and pixels."""
    generator = np.random.default_rng(zlib.crc32(f"{mode}{name}".encode()))
    return generator.integers(0, 256, (*generator.integers((12, 5), (20, 10)), 3), dtype=np.uint8)


def write_cuhk03_mat(path):
    """cuhk-03.mat as h5py sees it: every axis reversed, cells are references, an empty cell is uint64 [0, 0]."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("#refs#")

        def put(values):
            return group.create_dataset(str(len(group)), data=values).ref

        def references(rows):
            return np.array(rows, dtype=h5py.ref_dtype)

        for mode, names in CUHK03_NAMES.items():
            pairs = []
            for pair, persons in enumerate((3, 2, 1, 1, 1), 1):
                rows = []
                for index in range(1, 11):
                    cells = [f"{pair}_{person:03}_{(index + 4) // 5}_{index:02}" for person in range(1, persons + 1)]
                    empty = np.zeros(2, np.uint64)
                    rows.append([put(cuhk03_image(mode, c).transpose(2, 1, 0) if c in names else empty) for c in cells])
                pairs.append(put(references(rows)))
            file[mode] = references([pairs])
        # split 0 tests 1_003 and 2_001, split 19 tests 1_001 and 2_002
        tests = [np.array([[1, 2], [(split + 2) % 3 + 1, split % 2 + 1]], np.float64) for split in range(20)]
        file["testsets"] = references([[put(test) for test in tests]])


def write_cuhk03_config(folder, mode):
    """cuhk03_new_protocol_config_MODE.mat: counts from 1, whole numbers without a sign."""
    names = sorted(CUHK03_NAMES[mode])
    persons = sorted({name[:5] for name in names})
    test = [i for i, name in enumerate(names, 1) if name.startswith(CUHK03_TEST[mode])]
    query = [i for i in test if names[i - 1] in CUHK03_QUERY[mode]]
    parts = {
        "train_idx": [i for i in range(1, len(names) + 1) if i not in test], "query_idx": query,
        "gallery_idx": [i for i in test if i not in query],
    }  # fmt: skip
    write_mat(
        folder / f"cuhk03_new_protocol_config_{mode}.mat",
        filelist=cell([f"{name}.png" for name in names], (-1, 1)),
        labels=np.array([[persons.index(name[:5]) + 1] for name in names], np.uint16),
        camId=np.array([[int(name[6])] for name in names], np.uint8),
        **{name: np.array(rows, np.uint16)[:, None] for name, rows in parts.items()},
    )


def cuhk03_rows(mode, test, query=None):
    """Without `query` the classic protocol: query and gallery are all images of the test persons."""
    rows = []
    for name in CUHK03_NAMES[mode]:
        splits = ("train",)
        if name.startswith(test):
            splits = ("query", "gallery") if query is None else ("query",) if name in query else ("gallery",)
        pid, camid = int(name[0]) * 1000 + int(name[2:5]), int(name[6]) - 1
        rows += [f"{split} {pid} {camid} images_{mode}/{name}.png" for split in splits]
    return "\n".join(rows)


@reads("cuhk03", "cuhk03", cuhk03_rows("detected", CUHK03_TEST["detected"], CUHK03_QUERY["detected"]))
@reads("cuhk03-labeled", "cuhk03", cuhk03_rows("labeled", CUHK03_TEST["labeled"], CUHK03_QUERY["labeled"]))
@reads("cuhk03-classic", "cuhk03", cuhk03_rows("detected", ("1_003", "2_001")))
@reads("cuhk03-classic", "cuhk03", cuhk03_rows("detected", ("1_001", "2_002")), split=19)
@reads("cuhk03-classic-labeled", "cuhk03", cuhk03_rows("labeled", ("1_002", "2_001")), split=2)
def cuhk03(root):
    write_cuhk03_mat(root / "cuhk03" / "cuhk03_release" / "cuhk-03.mat")
    for mode in CUHK03_NAMES:
        write_cuhk03_config(root / "cuhk03", mode)


@reads("msmt17", "msmt17/MSMT17_V1", """
    train   0  0  train/0000/0000_000_01_0303morning_0015_0.jpg
    train   0 14  train/0000/0000_001_15_0303noon_0040_1_ex.jpg
    train   1  6  train/0001/0001_019_07_0303afternoon_0020_1.jpg
    query   0  4  test/0000/0000_019_05_0303morning_0040_0.jpg
    query   2  8  test/0002/0002_000_09_0113noon_0001_0.jpg
    gallery 0 14  test/0000/0000_020_15_0303morning_0040_0.jpg
    gallery 2  1  test/0002/0002_001_02_0303morning_0040_0.JPG
""")
def msmt17(root):
    """Both versions; of V2 nothing may be seen while V1 is there."""
    write_msmt17(root / "msmt17" / "MSMT17_V1", "train", "test")
    write_msmt17(root / "msmt17" / "MSMT17_V2", "mask_train_v2", "mask_test_v2")


def write_msmt17(base, train, test):
    """Lists with CRLF and blank last lines; a pid counts for train or for test only."""
    plant(base / train, """0001/0001_019_07_0303afternoon_0020_1.jpg 0000/0000_001_15_0303noon_0040_1_ex.jpg
        0000/0000_000_01_0303morning_0015_0.jpg 0000/0000_002_03_0303morning_0015_0.jpg""")
    plant(base / test, """0002/0002_001_02_0303morning_0040_0.JPG 0002/0002_000_09_0113noon_0001_0.jpg
        0000/0000_020_15_0303morning_0040_0.jpg 0000/0000_019_05_0303morning_0040_0.jpg""")
    lists = {
        "train": "0001/0001_019_07_0303afternoon_0020_1.jpg 1\r\n0000/0000_001_15_0303noon_0040_1_ex.jpg 0\r\n"
                 "0000/0000_000_01_0303morning_0015_0.jpg 0\r\n\r\n",
        "val": "0000/0000_002_03_0303morning_0015_0.jpg 0\r\n",
        "query": "0002/0002_000_09_0113noon_0001_0.jpg 2 \r\n0000/0000_019_05_0303morning_0040_0.jpg 0\r\n \r\n\r\n",
        "gallery": "0000/0000_020_15_0303morning_0040_0.jpg 0\r\n0002/0002_001_02_0303morning_0040_0.JPG 2",
    }  # fmt: skip
    for name, text in lists.items():
        (base / f"list_{name}.txt").write_bytes(text.encode())


@reads("viper", "viper/VIPeR", None)
def viper(root):
    plant(root / "viper/VIPeR/cam_a", "873_0.bmp 395_90.BMP 246_45.bmp 002_45.bmp 001_45.bmp 003_0.bmp 000_45.bmp")
    plant(root / "viper/VIPeR/cam_b", "000_45.bmp 873_180.bmp 395_135.bmp 246_90.BMP 002_90.bmp 001_90.bmp 003_90.bmp")
    litter(root / "viper/VIPeR/cam_a", "004_45.bmp")


@reads("cuhk01", "cuhk01/campus", None)
def cuhk01(root):
    for person in ("0971", "0004", "0001", "0970", "0003"):
        plant(root / "cuhk01/campus", f"{person}004.png {person}002.png {person}003.PNG {person}001.png")
    litter(root / "cuhk01/campus", "0005001.png")


@reads("prid450s", "prid450s", None)
def prid450s(root):
    for view in ("cam_a", "cam_b"):
        plant(root / "prid450s" / view, "img_450.png img_003.png img_004.png img_001.png img_448.PNG img_447.png")
        plant(root / "prid450s" / view, "img_002.png")
        plant(root / "prid450s" / view, "mask_001.png img_001_mask.png img_005_seg.png mask_img_006.png")
        litter(root / "prid450s" / view, "img_009.png")


@reads("ilids", "ilids/i-LIDS_Pedestrian/Persons", None)
def ilids(root):
    names = "0119002 0119001 0003004 0003003 0003002 0003001 0002001 0002002 0002003 0001002 0001001 0007001 0007002"
    plant(root / "ilids/i-LIDS_Pedestrian/Persons", " ".join(f"{name}.jpg" for name in names.split()))
    litter(root / "ilids/i-LIDS_Pedestrian/Persons", "0004001.jpg")


GRID_GALLERY = """
    gallery 0 0  gallery/0000_1_25698_101_16_87_246.jpeg
    gallery 0 7  gallery/0000_8_25699_101_16_87_246.jpeg
    gallery 0 4  gallery/0000_5_25700_101_16_87_246.jpeg
"""


@reads("grid", "grid/underground_reid", f"""{GRID_GALLERY}
    train   1 0  probe/0001_1_25004_107_32_106_221.jpeg
    train   1 1  gallery/0001_2_25023_116_134_128_330.jpeg
    train 250 5  probe/0250_6_3_1_2_3_4.jpeg
    train 250 7  gallery/0250_8_4_1_2_3_4.jpeg
    query   2 2  probe/0002_3_1_1_2_3_4.jpeg
    query   4 0  probe/0004_1_1_1_2_3_4.jpeg
    gallery 2 3  gallery/0002_4_2_1_2_3_4.jpeg
    gallery 4 4  gallery/0004_5_2_1_2_3_4.JPEG
""")
@reads("grid", "grid/underground_reid", f"""{GRID_GALLERY}
    train   2 2  probe/0002_3_1_1_2_3_4.jpeg
    train   2 3  gallery/0002_4_2_1_2_3_4.jpeg
    train   4 0  probe/0004_1_1_1_2_3_4.jpeg
    train   4 4  gallery/0004_5_2_1_2_3_4.JPEG
    query   1 0  probe/0001_1_25004_107_32_106_221.jpeg
    query 250 5  probe/0250_6_3_1_2_3_4.jpeg
    gallery 1 1  gallery/0001_2_25023_116_134_128_330.jpeg
    gallery 250 7  gallery/0250_8_4_1_2_3_4.jpeg
""", split=9)  # fmt: skip
def grid(root):
    base = root / "grid" / "underground_reid"
    plant(base / "probe", """0250_6_3_1_2_3_4.jpeg 0004_1_1_1_2_3_4.jpeg 0002_3_1_1_2_3_4.jpeg
        0001_1_25004_107_32_106_221.jpeg""")
    plant(base / "gallery", """0250_8_4_1_2_3_4.jpeg 0004_5_2_1_2_3_4.JPEG 0002_4_2_1_2_3_4.jpeg
        0001_2_25023_116_134_128_330.jpeg 0000_1_25698_101_16_87_246.jpeg 0000_8_25699_101_16_87_246.jpeg
        0000_5_25700_101_16_87_246.jpeg""")
    litter(base / "probe", "0003_6_3_1_2_3_4.jpeg")
    # The fields of a split are known by their place: the third holds the persons to train on
    write_mat(base / "features_and_partitions.mat", trainIdxAll=cell([
        {"a": np.array([[4, 2]], np.uint8), "b": np.array([[3]], np.uint8), "c": np.array([train], np.uint8)}
        for train in [[250, 1]] * 9 + [[2, 4]]
    ], (1, 10)))  # fmt: skip


@reads("prid", "prid2011/prid_2011/single_shot", None)
@reads("prid2011", "prid2011/prid_2011/multi_shot", """
    train    1 0  cam_a/person_0001/0001.png 0002.png 0010.png
    train    1 1  cam_b/person_0001/0001.png
    train  200 0  cam_a/person_0200/0001.png
    train  200 1  cam_b/person_0200/0009.png 0010.png
    query    2 0  cam_a/person_0002/0001.png
    query    5 0  cam_a/person_0005/0001.png
    gallery  2 1  cam_b/person_0002/0001.png
    gallery  5 1  cam_b/person_0005/0001.png
""")
@reads("prid2011", "prid2011/prid_2011/multi_shot", """
    train    1 0  cam_a/person_0001/0001.png 0002.png 0010.png
    train    1 1  cam_b/person_0001/0001.png
    train    5 0  cam_a/person_0005/0001.png
    train    5 1  cam_b/person_0005/0001.png
    query    2 0  cam_a/person_0002/0001.png
    query  200 0  cam_a/person_0200/0001.png
    gallery  2 1  cam_b/person_0002/0001.png
    gallery 200 1  cam_b/person_0200/0009.png 0010.png
""", split=9)  # fmt: skip
def prid2011(root):
    """Beyond 200 the same number is another person in each view; 3 has too few frames and is in no split."""
    base = root / "prid2011" / "prid_2011"
    plant(base / "single_shot" / "cam_a", " ".join(f"person_{n:04}.png" for n in (385, 201, 200, 5, 3, 2, 1)))
    plant(base / "single_shot" / "cam_b", " ".join(f"person_{n:04}.png" for n in (749, 300, 201, 200, 5, 3, 2, 1)))
    litter(base / "single_shot" / "cam_b", "person_0748.png")
    plant(base / "multi_shot" / "cam_a", """person_0200/0001.png person_0001/0010.png person_0001/0002.png
        person_0001/0001.png person_0005/0001.png person_0003/0001.png person_0002/0001.png person_0201/0001.png""")
    plant(base / "multi_shot" / "cam_b", """person_0200/0010.png person_0200/0009.png person_0001/0001.png
        person_0005/0001.png person_0003/0001.png person_0002/0001.png person_0201/0001.png""")
    litter(base / "multi_shot" / "cam_a", "person_0006")
    litter(base / "multi_shot" / "cam_a" / "person_0001", "0003.png")
    splits = [{"test": ["person_0005", "person_0002"], "train": ["person_0200", "person_0001"]}] * 9
    splits.append({"test": ["person_0002", "person_0200"], "train": ["person_0005", "person_0001"]})
    (root / "prid2011" / "splits_prid2011.json").write_text(json.dumps(splits))


@reads("sensereid", "sensereid/SenseReID", """
    query       1 0  test_probe/00001_0.jpg
    query       1 1  test_probe/00001_1.jpg
    query    1717 0  test_probe/01717_0.JPG
    gallery     1 0  test_gallery/00001_0.jpg
    gallery   900 1  test_gallery/00900_1.jpg
    gallery  1717 1  test_gallery/01717_1.jpg
""")
def sensereid(root):
    plant(root / "sensereid/SenseReID/test_probe", "01717_0.JPG 00001_1.jpg 00001_0.jpg")
    plant(root / "sensereid/SenseReID/test_gallery", "01717_1.jpg 00900_1.jpg 00001_0.jpg")
    litter(root / "sensereid/SenseReID/test_probe", "00002_1.jpg")


@reads("cuhk02", "cuhk02/Dataset", """
    train   10001 0  P1/cam1/001_1.png
    train   10001 0  P1/cam1/001_2.png
    train   10001 1  P1/cam2/001_1.png
    train   10971 1  P1/cam2/971_1.png
    train   20001 2  P2/cam1/001_1.png
    train   20306 3  P2/cam2/306_1.png
    train   30001 4  P3/cam1/001_1.png
    train   30001 5  P3/cam2/001_1.png
    train   40193 6  P4/cam1/193_1.png
    train   40001 7  P4/cam2/001_1.png
    query   50001 8  P5/cam1/001_1.png
    query   50239 8  P5/cam1/239_2.png
    gallery 50001 9  P5/cam2/001_1.png
    gallery 50239 9  P5/cam2/239_1.png
""")
def cuhk02(root):
    """Persons are counted anew in each of the five pairs."""
    plant(root / "cuhk02/Dataset", """P5/cam2/239_1.png P5/cam2/001_1.png P5/cam1/239_2.png P5/cam1/001_1.png
        P4/cam2/001_1.png P4/cam1/193_1.png P3/cam2/001_1.png P3/cam1/001_1.png P2/cam2/306_1.png P2/cam1/001_1.png
        P1/cam2/971_1.png P1/cam2/001_1.png P1/cam1/001_2.png P1/cam1/001_1.png""")
    litter(root / "cuhk02/Dataset/P5/cam1", "002_1.png")
    litter(root / "cuhk02/Dataset/P1/cam2", "002_1.png")


@reads("cuhksysu", "cuhksysu/cropped_images", """
    train     7 0  p7_s4_2.jpg
    train     7 0  p7_s4_10.jpg
    train 11422 0  p11422_s16929_1.jpg
""")
def cuhksysu(root):
    plant(root / "cuhksysu/cropped_images", "p7_s4_10.jpg p11422_s16929_1.jpg p7_s4_2.jpg")
    litter(root / "cuhksysu/cropped_images", "p8_s4_2.jpg")


@reads("occluded_reid", "occluded_reid/Occluded_REID", """
    query     1 0  occluded_body_images/001/001_01.tif
    query     1 0  occluded_body_images/001/001_02.tif
    query   200 0  occluded_body_images/200/200_1.tif
    gallery   1 1  whole_body_images/001/001_01.TIF
    gallery   2 1  whole_body_images/002/002_01.tif
    gallery 200 1  whole_body_images/200/200_01.tif
""")
def occluded_reid(root):
    base = root / "occluded_reid" / "Occluded_REID"
    plant(base / "occluded_body_images", "200/200_1.tif 001/001_02.tif 001/001_01.tif")
    plant(base / "whole_body_images", "200/200_01.tif 002/002_01.tif 001/001_01.TIF")
    litter(base / "whole_body_images", "003")
    litter(base / "whole_body_images/002", "002_02.tif")


# MARS: (first four characters of the names, camera, tracklet number, frames in the order of the list)
MARS_TRAIN = [("0001", 1, 1, (2, 1)), ("0001", 2, 1, (999, 1000, 1001)), ("0001", 2, 2, (1,)), ("0007", 6, 1, (1, 2))]
MARS_TEST = [
    ("00-1", 1, 1, (1, 2)), ("0000", 1, 1, (1,)), ("0000", 4, 2, (1, 2)), ("0002", 1, 1, (1, 2)), ("0002", 1, 2, (1,)),
    ("0002", 6, 1, (1, 2)), ("0004", 3, 1, (1,)), ("0004", 3, 2, (1,)), ("0006", 5, 1, (1, 2)),
]  # fmt: skip
MARS_QUERY = [9, 4, 7]  # rows of the test, from 1; 0004 was seen by one camera, 0006 is in no other row
MARS_ROWS = """
    train    1 0  bbox_train/0001/0001C1T0001F001.jpg 0001C1T0001F002.jpg
    train    1 1  bbox_train/0001/0001C2T0001F999.jpg 0001C2T0001F1000.jpg 0001C2T0001F1001.jpg
    train    1 1  bbox_train/0001/0001C2T0002F001.jpg
    train    7 5  bbox_train/0007/0007C6T0001F001.jpg 0007C6T0001F002.jpg
    query    2 0  bbox_test/0002/0002C1T0001F001.jpg 0002C1T0001F002.jpg
    query    4 2  bbox_test/0004/0004C3T0001F001.jpg
    query    6 4  bbox_test/0006/0006C5T0001F001.jpg 0006C5T0001F002.jpg
    gallery  0 0  bbox_test/0000/0000C1T0001F001.jpg
    gallery  0 3  bbox_test/0000/0000C4T0002F001.jpg 0000C4T0002F002.jpg
    gallery  2 0  bbox_test/0002/0002C1T0002F001.jpg
    gallery  2 5  bbox_test/0002/0002C6T0001F001.jpg 0002C6T0001F002.jpg
    gallery  4 2  bbox_test/0004/0004C3T0002F001.jpg
"""


@reads("mars", "mars", MARS_ROWS)
def mars(root):
    write_mars(root / "mars")


@reads("synthetic-video", "synthetic-video", MARS_ROWS)
def synthetic_video(root):
    write_mars(root / "synthetic-video")


def write_mars(base):
    for part, tracks in (("train", MARS_TRAIN), ("test", MARS_TEST)):
        names, rows = [], []
        for person, camera, number, frames in tracks:
            rows.append((len(names) + 1, len(names) + len(frames), int(person.lstrip("0") or 0), camera))
            names += [f"{person}C{camera}T{number:04}F{frame:03}.jpg" for frame in frames]
        plant(base / f"bbox_{part}", " ".join(f"{name[:4]}/{name}" for name in names[::-1]))
        litter(base / f"bbox_{part}" / names[0][:4], "0001C1T0001F003.jpg")
        write_mat(base / "info" / f"tracks_{part}_info.mat", **{f"track_{part}_info": np.array(rows, np.int32)})
        (base / "info" / f"{part}_name.txt").write_bytes("".join(f"{name}\r\n" for name in [*names, ""]).encode())
    write_mat(base / "info" / "query_IDX.mat", query_IDX=np.array([MARS_QUERY], np.uint16))


@reads("ilidsvid", "ilids-vid/i-LIDS-VID/sequences", """
    train    2 0  cam1/person002/cam1_person002_00001.png
    train    2 1  cam2/person002/cam2_person002_00007.png
    train  319 0  cam1/person319/cam1_person319_00002.png
    train  319 1  cam2/person319/cam2_person319_00001.png cam2_person319_00002.png
    query    1 0  cam1/person001/cam1_person001_00317.png cam1_person001_00318.png cam1_person001_00319.png
    query    5 0  cam1/person005/cam1_person005_00001.png
    gallery  1 1  cam2/person001/cam2_person001_00099.png cam2_person001_00100.png
    gallery  5 1  cam2/person005/cam2_person005_00001.png
""")
@reads("ilidsvid-single", "ilids-vid/i-LIDS-VID/images", """
    train    1 0  cam1/person001/cam1_person001.png
    train    1 1  cam2/person001/cam2_person001.png
    train    2 0  cam1/person002/cam1_person002.png
    train    2 1  cam2/person002/cam2_person002.png
    query    5 0  cam1/person005/cam1_person005.png
    query  319 0  cam1/person319/cam1_person319.png
    gallery  5 1  cam2/person005/cam2_person005.png
    gallery 319 1  cam2/person319/cam2_person319.png
""", split=9)  # fmt: skip
def ilidsvid(root):
    base = root / "ilids-vid" / "i-LIDS-VID"
    sequences = {
        1: {"319": (2,), "002": (1,), "001": (319, 317, 318), "005": (1,)},
        2: {"319": (2, 1), "002": (7,), "001": (100, 99), "005": (1,)},
    }
    for camera, persons in sequences.items():
        for person, frames in persons.items():
            name = f"cam{camera}_person{person}"
            folder = f"cam{camera}/person{person}"
            plant(base / "sequences" / folder, " ".join(f"{name}_{frame:05}.png" for frame in frames))
            plant(base / "images" / folder, f"{name}.png")
        for kind in ("sequences", "images"):
            litter(base / kind / f"cam{camera}", "person000")
            (base / kind / f"cam{camera}" / ".person001").mkdir()
        litter(base / "sequences" / f"cam{camera}" / "person001", f"cam{camera}_person001_00001.png")
    trials = [[1, 3, 4, 2]] * 9 + [[4, 3, 2, 1]]  # places among the sorted folders, from 1: half test, half train
    write_mat(
        root / "ilids-vid" / "train-test people splits" / "train_test_splits_ilidsvid.mat",
        ls_set=np.array(trials, np.float64),
    )


@reads("dukemtmcvidreid", "dukemtmc-vidreid/DukeMTMC-VideoReID", """
    train      1 5  train/0001/0003/0001_C6_F0002_X30823.jpg 0001_C6_F0004_X30847.jpg
    train      1 5  train/0001/0010/0001_C6_F0001_X40000.jpg
    train      2 0  train/0002/0001/0002C1F0001X001.jpg 0002C1F0002X013.jpg
    train      2 7  train/0002/0002/0002_C8_F9999_X30823.jpg 0002_C8_F10000_X30835.jpg
    query     19 1  query/0019/0001/0019_C2_F0001_X1.jpg
    gallery   19 2  gallery/0019/0002/0019_C3_F0001_X1.JPG 0019_C3_F0002_X13.jpg
    gallery 7140 4  gallery/7140/0001/7140C5F0001D1.jpg
""")  # fmt: skip
def dukemtmcvidreid(root):
    base = root / "dukemtmc-vidreid" / "DukeMTMC-VideoReID"
    plant(base / "train", """0002/0002/0002_C8_F10000_X30835.jpg 0002/0002/0002_C8_F9999_X30823.jpg
        0002/0001/0002C1F0002X013.jpg 0002/0001/0002C1F0001X001.jpg 0001/0010/0001_C6_F0001_X40000.jpg
        0001/0003/0001_C6_F0004_X30847.jpg 0001/0003/0001_C6_F0002_X30823.jpg""")
    plant(base / "query", "0019/0001/0019_C2_F0001_X1.jpg")
    plant(base / "gallery", """7140/0001/7140C5F0001D1.jpg 0019/0002/0019_C3_F0002_X13.jpg
        0019/0002/0019_C3_F0001_X1.JPG""")
    litter(base / "train", "0009")
    litter(base / "train/0001", "0009")
    litter(base / "train/0001/0003", "0001_C6_F0001_X30811.jpg")


@reads("folder:own/images", "own/images", """
    train      7 0  train/7_c1_a.jpg
    train      7 9  train/0007_c10_b.JPEG
    train      8 0  train/8_c1_moving.gif
    train  12345 1  train/12345_c2_monday.webp
    query      1 0  query/1_c1_.png
    gallery    1 1  gallery/01_c2_x.y.jpg.jpg
    gallery    2 11 gallery/2_c12_a_c3_b.bmp
    gallery    3 1  gallery/0003_c02_x.png
""")
def own_folders(root):
    plant(root / "own/images/train", "7_c1_a.jpg 12345_c2_monday.webp 0007_c10_b.JPEG 8_c1_moving.gif")
    plant(root / "own/images/query", "1_c1_.png")
    plant(root / "own/images/gallery", "2_c12_a_c3_b.bmp 01_c2_x.y.jpg.jpg 0003_c02_x.png")
    litter(root / "own/images/gallery", "1_c3_x.jpg")


@reads("folder:own/listed", "own/listed", """
    train      7 0  a/x.jpg
    train      9 2  a/y.jpg
    query      1 0  clips/2.png 10.png 1.png
    query      1 1  clips/3.png
    gallery    1 1  clips/4.png
    gallery    1 11 clips/5.png
    gallery    1 11 clips/6.png
""")
def own_list(root):
    """Frames keep the order of the rows; the same name of a tracklet under another camera is another tracklet."""
    base = root / "own" / "listed"
    plant(base, "a/y.jpg a/x.jpg clips/1.png clips/10.png clips/2.png clips/3.png clips/4.png clips/5.png clips/6.png")
    (base / "items.csv").write_bytes(b"\r\n".join([
        b"path,pid,camid,tracklet,split", b"clips/2.png,1,1,t1,query", b"clips/3.png,1,2,t1,query",
        b"a/y.jpg,9,3,,train", b"clips/10.png,1,1,t1,query", b"clips/4.png,1,2,t9,gallery", b"a/x.jpg,7,1,,train",
        b"clips/1.png,1,1,t1,query", b"clips/6.png,1,12,,gallery", b"clips/5.png,1,12,,gallery", b"", b"",
    ]))  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Every parser on its tree


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """A root with the trees of all data sets, below folders that look like names of images; do not write into it."""
    root = tmp_path_factory.mktemp("data") / "exp2_c1" / "0009_c5s1_p3_s4_1"
    for build in dict.fromkeys(BUILDERS.values()):
        build(root)
    return root


def num_splits(name):
    return data.DATASETS[name.split(":")[0]].num_splits


def test_every_data_set_has_a_tree():
    assert {name.split(":")[0] for name in BUILDERS} == set(data.DATASETS)
    assert set(RANDOM) == set(BUILDERS) - {name for name, *_ in CASES}


@pytest.mark.parametrize("name, split, base, rows", CASES, ids=[f"{name}-{split}" for name, split, *_ in CASES])
def test_items(forest, name, split, base, rows):
    assert data.read_dataset(name, forest, split=split) == expected_splits(forest, base, rows)


READ_ALL = """
import sys, data
for name in sys.argv[2:]:
    for split in range(data.DATASETS[name.split(":")[0]].num_splits):
        print(name, split, data.read_dataset(name, sys.argv[1], split=split))
"""


def test_two_processes_and_this_one_find_the_same(forest, capsys, monkeypatch):
    """With different hash seeds: the order of a set decides nothing."""
    arguments = ("-c", READ_ALL, forest, *sorted(BUILDERS))
    outputs = []
    for seed in ("0", "1234"):
        done = run_command(*arguments, env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        outputs.append([line for line in done.stdout.splitlines() if "Splits(" in line])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == sum(map(num_splits, BUILDERS))
    here = [f"{name} {k} {data.read_dataset(name, forest, split=k)}" for name in sorted(BUILDERS)
            for k in range(num_splits(name))]  # fmt: skip
    assert here == outputs[0]


def test_order_in_the_folder_does_not_matter(forest, monkeypatch):
    """A file system lists a folder in any order; here backwards."""
    before = {name: data.read_dataset(name, forest) for name in BUILDERS}
    listdir, scandir = os.listdir, os.scandir

    class Backwards:
        def __init__(self, path="."):
            with scandir(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __iter__(self):
            return self.entries

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "scandir", Backwards)
    assert {name: data.read_dataset(name, forest) for name in BUILDERS} == before


def test_reading_leaves_data_and_random_states_alone(forest):
    """But for the images of CUHK03, which come out of the .mat once."""

    def snapshot():
        return {path: path.stat().st_mtime_ns for path in forest.rglob("*") if "cuhk03" not in path.parts}

    before, states = snapshot(), global_states()
    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        states = global_states()
        found.append({name: data.read_dataset(name, forest, split=num_splits(name) - 1) for name in BUILDERS})
        assert global_states() == states
    assert found[0] == found[1]
    assert snapshot() == before


# Sets whose splits nobody published. All images: (pid, camid, path); prid's gallery has strangers in every split.
RANDOM = {
    "viper": ("viper/VIPeR", 20, """
        0 0 cam_a/000_45.bmp   1 0 cam_a/001_45.bmp   2 0 cam_a/002_45.bmp   3 0 cam_a/003_0.bmp
        246 0 cam_a/246_45.bmp   395 0 cam_a/395_90.BMP   873 0 cam_a/873_0.bmp
        0 1 cam_b/000_45.bmp   1 1 cam_b/001_90.bmp   2 1 cam_b/002_90.bmp   3 1 cam_b/003_90.bmp
        246 1 cam_b/246_90.BMP   395 1 cam_b/395_135.bmp   873 1 cam_b/873_180.bmp"""),
    "cuhk01": ("cuhk01/campus", 20, " ".join(f"""
        {n} 0 {n:04}001.png   {n} 0 {n:04}002.png   {n} 1 {n:04}003.PNG   {n} 1 {n:04}004.png"""
        for n in (1, 3, 4, 970, 971))),
    "prid450s": ("prid450s", 10, " ".join(f"""
        {int(n[:3])} 0 cam_a/img_{n}   {int(n[:3])} 1 cam_b/img_{n}"""
        for n in "001.png 002.png 003.png 004.png 447.png 448.PNG 450.png".split())),
    "prid": ("prid2011/prid_2011/single_shot", 10, " ".join(f"""
        {n} 0 cam_a/person_{n:04}.png   {n} 1 cam_b/person_{n:04}.png""" for n in (1, 2, 3, 5, 200))),
    "ilids": ("ilids/i-LIDS_Pedestrian/Persons", 10, """
        1 0 0001001.jpg   1 1 0001002.jpg   2 0 0002001.jpg   2 1 0002002.jpg   2 2 0002003.jpg
        3 0 0003001.jpg   3 1 0003002.jpg   3 2 0003003.jpg   3 3 0003004.jpg
        7 0 0007001.jpg   7 1 0007002.jpg   119 0 0119001.jpg   119 1 0119002.jpg"""),
}  # fmt: skip


def all_images(root, name):
    base, _, rows = RANDOM[name]
    rows = np.array(rows.split()).reshape(-1, 3).tolist()
    return sorted(Item((str(root / base / path),), int(pid), int(camid)) for pid, camid, path in rows)


def of_persons(items, pids, camid=None):
    return [i for i in items if i.pid in pids and camid in (None, i.camid)]


def persons(items):
    return {i.pid for i in items}


@pytest.fixture(scope="module")
def drawn_splits(forest):
    return {name: [data.read_dataset(name, forest, split=k) for k in range(RANDOM[name][1])] for name in RANDOM}


@pytest.mark.parametrize("name", RANDOM)
def test_random_splits_halve_the_persons(forest, drawn_splits, name):
    images = all_images(forest, name)
    assert num_splits(name) == len(drawn_splits[name])
    for found in drawn_splits[name]:
        train = persons(found.train)
        assert len(train) == len(persons(images)) // 2
        assert found.train == of_persons(images, train)
        assert persons(found.query) == persons(images) - train
    chosen = [frozenset(persons(found.train)) for found in drawn_splits[name]]
    assert len(set(chosen)) > len(set(chosen[::2])) / 2 > 1
    assert set().union(*chosen) == persons(images)  # nobody is kept from the training in all of them


@pytest.mark.parametrize("name", ["viper", "cuhk01"])
def test_random_splits_go_in_both_directions(forest, drawn_splits, name):
    images = all_images(forest, name)
    for there, back in zip(drawn_splits[name][::2], drawn_splits[name][1::2], strict=True):
        test = persons(images) - persons(there.train)
        assert there.query == back.gallery == of_persons(images, test, camid=0)
        assert there.gallery == back.query == of_persons(images, test, camid=1)
        assert there.train == back.train


@pytest.mark.parametrize("name", ["prid450s", "prid"])
def test_random_splits_from_view_a_to_view_b(forest, drawn_splits, name):
    images = all_images(forest, name)
    base = forest / RANDOM[name][0]
    strangers = {"prid450s": [], "prid": [(f"cam_b/person_0{n}.png", n, 1) for n in (201, 300, 749)]}[name]
    for found in drawn_splits[name]:
        assert found.query == of_persons(images, persons(found.query), camid=0)
        assert found.gallery == sorted(of_persons(images, persons(found.query), camid=1) + items(base, *strangers))


def test_random_splits_of_ilids_take_two_images_a_person(forest, drawn_splits):
    images = all_images(forest, "ilids")
    for found in drawn_splits["ilids"]:
        assert set(found.query + found.gallery) <= set(images)
        assert not set(found.query) & set(found.gallery)
        assert [len(found.query), len(found.gallery)] == [3, 3]
        assert persons(found.query) == persons(found.gallery)
    third = {i.camid for found in drawn_splits["ilids"] for i in found.query if i.pid in (2, 3)}
    assert third > {0, 1}  # any image may be the query


@pytest.mark.parametrize("name", RANDOM)
def test_random_splits_do_not_depend_on_the_place(forest, drawn_splits, tmp_path, name):
    BUILDERS[name](tmp_path)
    moved = data.read_dataset(name, tmp_path, split=3)
    assert str(moved).replace(str(tmp_path), str(forest)) == str(drawn_splits[name][3])


# ----------------------------------------------------------------------------------------------------------------------
# Other layouts of the same sets


INNER = ("market1501", "dukemtmcreid", "occluded_duke", "sensereid", "occluded_reid", "dukemtmcvidreid")


@pytest.mark.parametrize("name", INNER)
def test_the_first_folder_of_an_archive_may_be_left_out(tmp_path, name):
    """And a file beside does not change that."""
    BUILDERS[name](tmp_path)
    base, rows = next((base, rows) for case, _, base, rows in CASES if case == name)
    for path in sorted((tmp_path / base).iterdir()):
        path.rename(tmp_path / base / ".." / path.name)
    (tmp_path / base).rmdir()
    (tmp_path / base).parent.joinpath("readme.txt").touch()
    assert data.read_dataset(name, tmp_path) == expected_splits(tmp_path, Path(base).parent, rows)


def test_msmt17_second_version(tmp_path):
    msmt17(tmp_path)
    shutil.rmtree(tmp_path / "msmt17" / "MSMT17_V1")
    rows = next(rows for name, _, _, rows in CASES if name == "msmt17")
    rows = rows.replace(" train/", " mask_train_v2/").replace(" test/", " mask_test_v2/")
    assert data.read_dataset("msmt17", tmp_path) == expected_splits(tmp_path, "msmt17/MSMT17_V2", rows)


def test_msmt17_list_with_a_blank_in_a_path_and_a_pid_unlike_its_folder(tmp_path):
    msmt17(tmp_path)
    base = tmp_path / "msmt17" / "MSMT17_V1"
    draw(base / "test" / "day_2 c_3" / "0002_000_09_0113noon_0001_0.jpg")
    (base / "list_query.txt").write_text("day_2 c_3/0002_000_09_0113noon_0001_0.jpg 41\n")
    query = data.read_dataset("msmt17", tmp_path).query
    assert query == items(base / "test", ("day_2 c_3/0002_000_09_0113noon_0001_0.jpg", 41, 8))


def test_prid2011_without_its_json_reads_the_trials(tmp_path):
    """The persons with 27 frames or more in both views are counted: 6 has too few, 7 is in one view only."""
    base = tmp_path / "prid2011" / "prid_2011" / "multi_shot"
    counts = {"cam_a": {1: 27, 2: 30, 3: 27, 4: 27, 5: 27, 6: 26, 8: 27, 201: 27},
              "cam_b": {1: 27, 2: 27, 3: 28, 4: 27, 5: 27, 6: 27, 7: 27, 8: 27, 201: 27}}  # fmt: skip
    for view, frames in counts.items():
        for person, count in frames.items():
            folder = base / view / f"person_{person:04}"
            folder.mkdir(parents=True)
            for frame in range(count, 0, -1):
                (folder / f"{frame:04}.png").touch()
    trials = [[1, 2, 3, 4, 5, 6]] * 9 + [[6, 3, 5, 1, 2, 4]]
    splits = tmp_path / "ilids-vid" / "train-test people splits" / "train_test_splits_prid.mat"
    write_mat(splits, ls_set=np.array(trials, np.float64))
    first, last = (data.read_dataset("prid2011", tmp_path, split=split) for split in (0, 9))
    assert [persons(part) for part in first] == [{4, 5, 8}, {1, 2, 3}, {1, 2, 3}]
    assert [persons(part) for part in last] == [{1, 2, 4}, {8, 3, 5}, {8, 3, 5}]
    assert {i.camid for i in first.query} == {0} and {i.camid for i in first.gallery} == {1}
    assert [len(i.paths) for i in last.train] == [27, 30, 27, 27, 27, 27]
    splits.unlink()
    with pytest.raises(FileNotFoundError, match="splits_prid2011.json"):
        data.read_dataset("prid2011", tmp_path)


def test_occluded_reid_takes_the_number_of_the_folder(tmp_path):
    base = tmp_path / "occluded_reid" / "Occluded_REID"
    plant(base / "occluded_body_images", "017/0_1.jpg")
    plant(base / "whole_body_images", "017/x.tif")
    found = data.read_dataset("occluded_reid", tmp_path)
    assert found.query == items(base / "occluded_body_images", ("017/0_1.jpg", 17, 0))
    assert found.gallery == items(base / "whole_body_images", ("017/x.tif", 17, 1))


def test_own_list_without_split_and_tracklet(tmp_path):
    plant(tmp_path / "mine", "b.png a.png")
    (tmp_path / "mine" / "items.csv").write_text("path,pid,camid\nb.png,3,1\na.png,3,2\n", encoding="utf-8-sig")
    found = data.read_dataset(f"folder:{tmp_path / 'mine'}", tmp_path / "nowhere")  # the path may be absolute
    assert found == data.Splits(items(tmp_path / "mine", ("a.png", 3, 1), ("b.png", 3, 0)), [], [])


def test_own_folder_may_have_some_parts_only(tmp_path):
    plant(tmp_path / "mine" / "train", "1_c1_a.jpg 2_c2_a.jpg")
    assert [len(part) for part in data.read_dataset("folder:mine", tmp_path)] == [2, 0, 0]


def test_people_that_somebody_looked_at_are_a_set_to_test_on(tmp_path):
    plant(tmp_path, "a.jpg b.jpg c.jpg d.jpg e.jpg f.jpg =g.jpg")
    lines = ["a.jpg,7,0.9,1", "b.jpg,7,0.8,1", "c.jpg,7,0.5,0", "d.jpg,7,0.9,1", "e.jpg,-1,0,1", "f.jpg,,0,1"]
    lines += ["./=g.jpg,8,1,1"]
    path = tmp_path / "people.csv"
    path.write_text("\n".join(["path,person,confidence,reviewed", *lines]))
    how = {"train": False, "protocol": "no_camera_rule"}
    found = data.load_dataset("folder:people.csv", tmp_path, **how)
    assert found.train == [] and found.query == items(tmp_path, ("b.jpg", 7, 0))
    gallery = [(Path(*item.paths).name, item.pid) for item in found.gallery]
    assert gallery == [("=g.jpg", 8), ("a.jpg", 7), ("d.jpg", 7)]
    with pytest.raises(ValueError, match="one camera.*--protocol no_camera_rule"):
        data.load_dataset("folder:people.csv", tmp_path, train=False)
    for text, told in (("path,person,reviewed\na.jpg,7,0\n", "nobody has looked at a line"),
                       ("path,person\na.jpg,x\n", "line 2: person 'x' is no number"),
                       ("path,person\ngone.jpg,7\nb.jpg,7\n", "gone.jpg"), ("path,pid\na.jpg,7\n", "no column person")):
        path.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            data.load_dataset("folder:people.csv", tmp_path, **how)
    with pytest.raises(FileNotFoundError, match="the folder of folder:none.csv is not there"):
        data.read_dataset("folder:none.csv", tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# CUHK03: images out of the .mat


@pytest.mark.parametrize("mode", ["detected", "labeled"])
def test_cuhk03_images_are_those_of_the_mat(tmp_path, mode):
    cuhk03(tmp_path)
    data.read_dataset("cuhk03" if mode == "detected" else "cuhk03-labeled", tmp_path)
    folder = tmp_path / "cuhk03" / f"images_{mode}"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.png" for name in CUHK03_NAMES[mode])
    for name in CUHK03_NAMES[mode]:
        with Image.open(folder / f"{name}.png") as image:
            assert np.array_equal(np.array(image), cuhk03_image(mode, name)), name


def test_cuhk03_is_extracted_once(tmp_path, monkeypatch):
    """And extracted images with the small .mat file are enough for the new protocol."""
    cuhk03(tmp_path)
    before = data.read_dataset("cuhk03", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert data.read_dataset("cuhk03", tmp_path) == before
    assert data.read_dataset("cuhk03-classic", tmp_path, split=3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times
    (tmp_path / "cuhk03" / "cuhk03_release" / "cuhk-03.mat").unlink()
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert data.read_dataset("cuhk03", tmp_path) == before
    with pytest.raises(FileNotFoundError, match=r"cuhk-03\.mat"):
        data.read_dataset("cuhk03-classic", tmp_path)


@pytest.mark.parametrize("saved", [0, 5])
def test_killed_extraction_starts_again(tmp_path, monkeypatch, saved):
    cuhk03(tmp_path)
    with monkeypatch.context() as patch:
        save, calls = Image.Image.save, []

        def killed(image, *args, **kwargs):
            calls.append(image)
            if len(calls) > saved:
                raise KeyboardInterrupt
            save(image, *args, **kwargs)

        patch.setattr(Image.Image, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            data.read_dataset("cuhk03", tmp_path)
    assert len(calls) == saved + 1
    assert not list(tmp_path.rglob("*.png"))
    left = tmp_path / "cuhk03" / "images_detected.12.tmp"  # of a process that had no time to remove it
    draw(left / "images_detected" / "1_001_1_01.png")
    rows = cuhk03_rows("detected", CUHK03_TEST["detected"], CUHK03_QUERY["detected"])
    assert data.read_dataset("cuhk03", tmp_path) == expected_splits(tmp_path, "cuhk03", rows)
    assert len(list(tmp_path.rglob("*.png"))) == len(CUHK03_NAMES["detected"]) and not left.exists()


def test_two_processes_may_extract_at_once(tmp_path, monkeypatch):
    """What the faster one wrote stays, and nothing of the other."""
    cuhk03(tmp_path)
    mat, images = tmp_path / "cuhk03/cuhk03_release/cuhk-03.mat", tmp_path / "cuhk03/images_detected"
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, place: (draw(images / "a.png"), replace(source, place)))
    data.extract_cuhk03(mat, "detected", images)
    assert [path.name for path in images.iterdir()] == ["a.png"]
    assert sorted(path.name for path in images.parent.iterdir() if "images" in path.name) == ["images_detected"]


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("name", BUILDERS)
def test_missing_folder_names_it_and_the_layout(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        data.read_dataset(name, tmp_path / "root")
    first = name.split(":")[1] if ":" in name else data.DATASETS[name].folder
    assert str(tmp_path / "root" / first) in str(error.value) and "see DATASETS.md" in str(error.value)


MISSING = [  # (data set, what is taken away, a word that only the expected layout has)
    ("market1501", "market1501/Market-1501-v15.09.15/query", "bounding_box_train"),
    ("market1501-500k", "market1501/Market-1501-v15.09.15/images", "images"),
    ("synthetic", "synthetic/query", "tools.synthetic"),
    ("dukemtmcreid", "dukemtmc-reid/DukeMTMC-reID/bounding_box_test", "query"),
    ("occluded_duke", "occluded_duke/Occluded_Duke/query", "bounding_box_train"),
    ("cuhk03", "cuhk03/cuhk03_release/cuhk-03.mat", "cuhk03_new_protocol_config"),
    ("cuhk03", "cuhk03/cuhk03_new_protocol_config_detected.mat", "cuhk-03.mat"),
    ("cuhk03-labeled", "cuhk03/cuhk03_new_protocol_config_labeled.mat", "cuhk-03.mat"),
    ("cuhk03-classic", "cuhk03/cuhk03_release/cuhk-03.mat", "cuhk-03.mat"),
    ("cuhk03-np", "cuhk03-np/detected/query", "bounding_box_test"),
    ("cuhk03-np-labeled", "cuhk03-np/labeled", "labeled/"),
    ("msmt17", "msmt17/MSMT17_V1/list_gallery.txt", "list_"),
    ("msmt17", "msmt17/MSMT17_V1/test/0002/0002_000_09_0113noon_0001_0.jpg", "list_"),
    ("viper", "viper/VIPeR/cam_b", "cam_a"),
    ("grid", "grid/underground_reid/probe", "gallery"),
    ("grid", "grid/underground_reid/features_and_partitions.mat", "probe"),
    ("cuhk01", "cuhk01/campus", "0001001.png"),
    ("prid450s", "prid450s/cam_a", "cam_b"),
    ("ilids", "ilids/i-LIDS_Pedestrian/Persons", "0001001.jpg"),
    ("ilidsvid", "ilids-vid/i-LIDS-VID/sequences/cam2", "cam1"),
    ("ilidsvid", "ilids-vid/i-LIDS-VID/sequences/cam1/person005", "sequences"),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", "sequences"),
    ("ilidsvid-single", "ilids-vid/i-LIDS-VID/images/cam1", "train-test people splits"),
    ("prid", "prid2011/prid_2011/single_shot/cam_b", "cam_a"),
    ("prid2011", "prid2011/prid_2011/multi_shot/cam_a", "cam_b"),
    ("prid2011", "prid2011/prid_2011/multi_shot/cam_a/person_0002", "cam_b"),
    ("sensereid", "sensereid/SenseReID/test_gallery", "test_probe"),
    ("cuhk02", "cuhk02/Dataset/P4/cam2", "P{1,2,3,4,5}"),
    ("cuhksysu", "cuhksysu/cropped_images", "p11422_s16929_1.jpg"),
    ("occluded_reid", "occluded_reid/Occluded_REID/whole_body_images", "occluded_body_images"),
    ("mars", "mars/bbox_train", "info"),
    ("mars", "mars/bbox_test/0002/0002C6T0001F002.jpg", "info"),
    ("mars", "mars/info/query_IDX.mat", "info"),
    ("mars", "mars/info/test_name.txt", "info"),
    ("mars", "mars/info/tracks_train_info.mat", "info"),
    ("dukemtmcvidreid", "dukemtmc-vidreid/DukeMTMC-VideoReID/gallery", "query"),
    ("folder:own/images", "own/images", "items.csv"),
    ("folder:own/listed", "own/listed/clips/10.png", "items.csv"),
]


@pytest.mark.parametrize("name, path, word", MISSING, ids=[f"{name}-{path}" for name, path, _ in MISSING])
def test_missing_part_names_it_and_the_layout(tmp_path, name, path, word):
    BUILDERS[name](tmp_path)
    path = tmp_path / path
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.read_dataset(name, tmp_path)
    message = str(error.value)
    assert str(path) in message and word in message.replace(str(path), "")


EMPTY = [  # (data set, folder that has no image any more)
    ("market1501", "market1501/Market-1501-v15.09.15/bounding_box_test"),
    ("market1501-500k", "market1501/Market-1501-v15.09.15/images"),
    ("dukemtmcreid", "dukemtmc-reid/DukeMTMC-reID/query"),
    ("occluded_duke", "occluded_duke/Occluded_Duke/query"),
    ("cuhk03-np", "cuhk03-np/detected/bounding_box_test"),
    ("viper", "viper/VIPeR/cam_b"),
    ("grid", "grid/underground_reid/probe"),
    ("grid", "grid/underground_reid/gallery"),
    ("cuhk01", "cuhk01/campus"),
    ("prid450s", "prid450s/cam_a"),
    ("ilids", "ilids/i-LIDS_Pedestrian/Persons"),
    ("ilidsvid", "ilids-vid/i-LIDS-VID/sequences/cam2"),
    ("ilidsvid", "ilids-vid/i-LIDS-VID/sequences/cam1/person005"),
    ("ilidsvid-single", "ilids-vid/i-LIDS-VID/images/cam1"),
    ("ilidsvid-single", "ilids-vid/i-LIDS-VID/images/cam1/person005"),
    ("prid", "prid2011/prid_2011/single_shot/cam_b"),
    ("prid2011", "prid2011/prid_2011/multi_shot/cam_a/person_0002"),
    ("sensereid", "sensereid/SenseReID/test_gallery"),
    ("cuhk02", "cuhk02/Dataset/P5/cam1"),
    ("cuhksysu", "cuhksysu/cropped_images"),
    ("occluded_reid", "occluded_reid/Occluded_REID/whole_body_images"),
    ("dukemtmcvidreid", "dukemtmc-vidreid/DukeMTMC-VideoReID/query"),
    ("folder:own/images", "own/images/query"),
]


empty = pytest.mark.parametrize("name, folder", EMPTY, ids=[f"{name}-{folder}" for name, folder in EMPTY])


def images_in(folder):
    """All but the litter, which is no image and stays."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith((".", "Thumbs"))]


@empty
def test_folder_without_images_is_an_error(tmp_path, name, folder):
    BUILDERS[name](tmp_path)
    for path in images_in(tmp_path / folder):
        path.unlink()
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        data.read_dataset(name, tmp_path)
    assert str(tmp_path / folder) in str(error.value) and "see DATASETS.md" in str(error.value)


@empty
def test_folder_of_images_named_by_another_rule_is_an_error(tmp_path, name, folder):
    """As an empty one: not fewer items, and no tracklet without frames."""
    BUILDERS[name](tmp_path)
    for path in images_in(tmp_path / folder):
        path.rename(path.with_name(f"a photo {path.name}"))
    if name == "occluded_reid":  # the folder tells the person
        assert len(data.read_dataset(name, tmp_path).gallery) == 3
        return
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        data.read_dataset(name, tmp_path)
    assert str(tmp_path / folder) in str(error.value)


MATS = [  # (data set, file, what it has to be read with)
    ("grid", "grid/underground_reid/features_and_partitions.mat", "scipy"),
    ("mars", "mars/info/tracks_train_info.mat", "scipy"),
    ("mars", "mars/info/tracks_test_info.mat", "scipy"),
    ("mars", "mars/info/query_IDX.mat", "scipy"),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", "scipy"),
    ("ilidsvid-single", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", "scipy"),
    ("cuhk03", "cuhk03/cuhk03_new_protocol_config_detected.mat", "scipy"),
    ("cuhk03-labeled", "cuhk03/cuhk03_new_protocol_config_labeled.mat", "scipy"),
    ("cuhk03", "cuhk03/cuhk03_release/cuhk-03.mat", "h5py"),
    ("cuhk03-classic-labeled", "cuhk03/cuhk03_release/cuhk-03.mat", "h5py"),
    ("prid2011", "prid2011/splits_prid2011.json", None),
]
mats = pytest.mark.parametrize("name, path, package", MATS, ids=[f"{name}-{path}" for name, path, _ in MATS])


@mats
@pytest.mark.parametrize("spoil", ["text", "half", "empty", "other"])
def test_broken_mat_is_named(tmp_path, name, path, package, spoil):
    BUILDERS[name](tmp_path)
    path = tmp_path / path
    whole = path.read_bytes()
    other = tmp_path / "other.mat"
    if package == "h5py":
        with pytest.importorskip("h5py").File(other, "w") as file:
            file["other"] = np.zeros((1, 5))
    else:
        write_mat(other, other=np.ones((10, 4)))
    path.write_bytes({"text": b"<html>404</html>", "half": whole[: len(whole) // 2], "empty": b"",
                      "other": other.read_bytes()}[spoil])  # fmt: skip
    with pytest.raises(ValueError) as error:
        data.read_dataset(name, tmp_path)
    assert str(path) in str(error.value)


@mats
def test_missing_package_is_named(tmp_path, monkeypatch, name, path, package):
    if package is None:
        return
    BUILDERS[name](tmp_path)
    for module in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install.*{package}"):
        data.read_dataset(name, tmp_path)


NUMBERS = [  # (data set, file, variables with a number that leads nowhere)
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": [[1, 3, 4, 5]] * 10}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": [[1, 3, 4, 0]] * 10}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat",  # the split asked for only
     {"ls_set": [[1, 3, 4, 2]] * 9 + [[1, 3, 4, 5]]}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat",
     {"ls_set": [[1, 3, 4, 2]] * 9 + [[1, 3, 4, 4]]}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": [[1, 3, 4, 2]] * 9}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": [[4, 10]]}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": [[4, 0]]}),
    ("mars", "mars/info/tracks_train_info.mat",
     {"track_train_info": [[1, 2, 1, 1], [3, 5, 1, 2], [6, 6, 1, 2], [7, 9, 7, 6]]}),
    ("mars", "mars/info/tracks_train_info.mat",  # persons that the names do not tell
     {"track_train_info": [[1, 2, 1, 1], [3, 5, 2, 2], [6, 6, 1, 2], [7, 8, 7, 6]]}),
    ("mars", "mars/info/tracks_train_info.mat",  # frames of two cameras in a tracklet
     {"track_train_info": [[1, 3, 1, 1], [4, 5, 1, 2], [6, 6, 1, 2], [7, 8, 7, 6]]}),
    ("grid", "grid/underground_reid/features_and_partitions.mat", {"trainIdxAll": [[1, 2, 4]]}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": np.zeros((1, 0))}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": [[4, 2.5]]}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": "0002"}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": {"a": 1}}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": cell(["a", "b"], (1, 2))}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": [[np.nan, 1]]}),
    ("mars", "mars/info/query_IDX.mat", {"query_IDX": [[1 + 2j, 1]]}),
    ("mars", "mars/info/tracks_train_info.mat",  # the last line before the first
     {"track_train_info": [[1, 2, 1, 1], [5, 3, 1, 2], [6, 6, 1, 2], [7, 8, 7, 6]]}),
    ("mars", "mars/info/tracks_train_info.mat", {"track_train_info": cell([[1, 2, 1, 1]] * 4, (4, 1))}),
    ("mars", "mars/info/tracks_train_info.mat", {"track_train_info": [[1, 2, 1, 1.5]]}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": "1342"}),
    ("ilidsvid", "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat",
     {"ls_set": cell([[1, 3, 4, 2]] * 10, (10, 1))}),
    ("grid", "grid/underground_reid/features_and_partitions.mat",
     {"trainIdxAll": cell([{"a": 1, "b": 2, "c": "persons"}] * 10, (1, 10))}),
    ("grid", "grid/underground_reid/features_and_partitions.mat", {"trainIdxAll": "text"}),
    ("cuhk03", "cuhk03/cuhk03_new_protocol_config_detected.mat",
     {"filelist": [[1, 2]], "train_idx": [[1]], "query_idx": [[1]], "gallery_idx": [[2]]}),
    ("cuhk03", "cuhk03/cuhk03_new_protocol_config_detected.mat",
     {"filelist": cell([np.zeros(0)], (1, 1)), "train_idx": [[1]], "query_idx": [[1]], "gallery_idx": [[1]]}),
    ("cuhk03", "cuhk03/cuhk03_new_protocol_config_detected.mat",
     {"filelist": cell(["1_001_1_01.png"], (1, 1)), "train_idx": "all", "query_idx": [[1]], "gallery_idx": [[1]]}),
]  # fmt: skip


@pytest.mark.parametrize("name, path, variables", NUMBERS)
def test_numbers_of_a_mat_that_lead_nowhere(tmp_path, name, path, variables):
    BUILDERS[name](tmp_path)
    write_mat(tmp_path / path, **variables)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        data.read_dataset(name, tmp_path, split=num_splits(name) - 1)
    assert str(tmp_path / path) in str(error.value) and "\n" not in str(error.value)


def test_a_sparse_mat_is_named(tmp_path):
    mars(tmp_path)
    sparse = pytest.importorskip("scipy.sparse").csc_matrix(np.array([[4.0, 9.0]]))
    write_mat(tmp_path / "mars/info/query_IDX.mat", query_IDX=sparse)
    with pytest.raises(ValueError, match=r"query_IDX\.mat: query_IDX is no array but a csc_"):
        data.read_dataset("mars", tmp_path)


ODD = {  # what stands in the place of an image, of a pair of cameras, of all pairs, of the test sets
    "floats": ("image", np.ones((3, 5, 9))), "grey": ("image", np.ones((5, 9), np.uint8)),
    "two colours": ("image", np.ones((2, 5, 9), np.uint8)), "text": ("image", "picture"),
    "one number": ("image", np.uint8(3)), "empty": ("images", np.zeros(2, np.uint64)),
    "no pairs": ("detected", np.zeros((1, 5))), "a vector": ("detected", np.zeros(5)),
    "no test sets": ("testsets", np.zeros((1, 20))), "few test sets": ("testsets", np.zeros(3)),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_mat_of_cuhk03_is_named_and_leaves_nothing(tmp_path, odd):
    cuhk03(tmp_path)
    mat, (place, content) = tmp_path / "cuhk03" / "cuhk03_release" / "cuhk-03.mat", ODD[odd]
    h5py = pytest.importorskip("h5py")
    with h5py.File(mat, "a") as file:
        if place in ("image", "images"):
            for pair in file["detected"][0]:
                for references in file[pair][()][: 1 if place == "image" else 10]:
                    for reference in references:
                        name = file[reference].name
                        if file[name].size > 2:
                            del file[name]
                            file[name] = content
        else:
            del file[place]
            file[place] = content
    with pytest.raises(ValueError) as error:
        data.read_dataset("cuhk03-classic", tmp_path, split=7)
    assert str(mat) in str(error.value) and "\n" not in str(error.value)
    left = sorted(path.name for path in (tmp_path / "cuhk03").iterdir() if "images" in path.name)
    assert left == (["images_detected"] if place == "testsets" else [])


LINES = [  # (data set, list, its line 2)
    ("msmt17", "msmt17/MSMT17_V1/list_query.txt", "0000/0000_019_05_0303morning_0040_0.jpg"),
    ("msmt17", "msmt17/MSMT17_V1/list_train.txt", "0000/0000_000_01_0303morning_0015_0.jpg zero"),
    ("msmt17", "msmt17/MSMT17_V1/list_gallery.txt", "0000/person.jpg 0"),
    ("msmt17", "msmt17/MSMT17_V1/list_gallery.txt", "0000/0000_020_xx_0303morning_0040_0.jpg 0"),
    ("mars", "mars/info/train_name.txt", "0001C1.jpg"),
    ("mars", "mars/info/test_name.txt", "../../secret.jpg"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,seven,1,,train"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7,,,train"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7,nobody,,train"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7,1,,test"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7,1,,"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7"),
    ("folder:own/listed", "own/listed/items.csv", "a/x.jpg,7,1,,train,more,and more"),
    ("folder:own/listed", "own/listed/items.csv", ",7,1,,train"),
]


@pytest.mark.parametrize("name, path, line", LINES)
def test_line_that_does_not_parse_is_named_with_its_number(tmp_path, name, path, line):
    BUILDERS[name](tmp_path)
    path = tmp_path / path
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=r"\b2\b") as error:
        data.read_dataset(name, tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name, path", [("folder:own/listed", "own/listed/items.csv"),
                                        ("mars", "mars/info/test_name.txt"),
                                        ("msmt17", "msmt17/MSMT17_V1/list_train.txt")])  # fmt: skip
def test_an_empty_list_is_named(tmp_path, name, path):
    BUILDERS[name](tmp_path)
    (tmp_path / path).write_bytes(b"\r\n \r\n")
    with pytest.raises(ValueError, match="is empty: (get it anew|its first line names)") as error:
        data.read_dataset(name, tmp_path)
    assert str(tmp_path / path) in str(error.value)


def test_a_tracklet_of_two_cameras_is_named(tmp_path):
    dukemtmcvidreid(tmp_path)
    folder = tmp_path / "dukemtmc-vidreid/DukeMTMC-VideoReID/train/0001/0003"
    draw(folder / "0001_C5_F0006_X30859.jpg")
    with pytest.raises(ValueError, match=f"{folder}: cameras 5, 6 in one tracklet"):
        data.read_dataset("dukemtmcvidreid", tmp_path)


def test_a_folder_without_its_path(tmp_path):
    for name in ("folder", "folder:"):
        with pytest.raises(ValueError, match="did you mean folder:PATH"):
            data.read_dataset(name, tmp_path)


@pytest.mark.parametrize("name, path", [("folder:own/listed", "own/listed/items.csv"),
                                        ("mars", "mars/info/test_name.txt"),
                                        ("msmt17", "msmt17/MSMT17_V1/list_query.txt")])  # fmt: skip
def test_list_in_another_encoding_is_named(tmp_path, name, path):
    BUILDERS[name](tmp_path)
    path = tmp_path / path
    content = path.read_bytes() + b"\r\n"
    path.write_bytes(content + "stra\u00dfe/x.jpg,1,1,,train\r\n".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        data.read_dataset(name, tmp_path)
    line = content.count(b"\n") + 1
    assert str(error.value).startswith(f"{path}, line {line}: not encoded in UTF-8, save it anew")


def test_versions_of_msmt17(tmp_path, capsys):
    """Both are told; an empty folder of the first does not hide the second; blanks in a list may be two."""
    BUILDERS["msmt17"](tmp_path)
    folder = tmp_path / "msmt17"
    shutil.rmtree(folder / "MSMT17_V2", ignore_errors=True)
    first = data.read_dataset("msmt17", tmp_path)
    assert "MSMT17_V1 and MSMT17_V2" not in capsys.readouterr().out
    for path in (folder / "MSMT17_V1").glob("list_*.txt"):
        path.write_text(path.read_text().replace(" ", "   "))
    assert data.read_dataset("msmt17", tmp_path) == first
    shutil.copytree(folder / "MSMT17_V1", folder / "MSMT17_V2")
    for old, new in (("train", "mask_train_v2"), ("test", "mask_test_v2")):
        (folder / "MSMT17_V2" / old).rename(folder / "MSMT17_V2" / new)
    assert data.read_dataset("msmt17", tmp_path) == first
    assert "holds MSMT17_V1 and MSMT17_V2: the first is read" in capsys.readouterr().out
    shutil.rmtree(folder / "MSMT17_V1")
    (folder / "MSMT17_V1").mkdir()
    second = data.read_dataset("msmt17", tmp_path)
    assert [len(part) for part in second] == [len(part) for part in first] and "V2" in second.train[0].paths[0]


def own(root, *lines, header="path,pid,camid,tracklet,split"):
    """A user's own list with these lines below its header, and the images a.png to d.png, all different."""
    plant(root / "own", "a.png b.png c.png d.png")
    (root / "own" / "items.csv").write_text("\n".join([header, *lines]))
    return root / "own"


@pytest.mark.parametrize("lines, number, word", [
    (['"a.png",1,1,,train', '"b', '.png",2,1,,train'], 3, "quotes"),  # a line break inside of quotes
    (['a.png,1,1,,"train', "b.png,2,1,,train"], 2, "quotes"),
    (["a.png,1,1,,train", f"b.png,{2**63},1,,train"], 3, "18 digits"),
    (["a.png,1,1,,train", f"b.png,{'9' * 5000},1,,train"], 3, "18 digits"),  # more than int() takes
    (["a.png,1,1,,train", f"b.png,2,{2**64},,train"], 3, "18 digits"),
    (["a.png,1,1,,train", "b.png,2,1,,train", "", "./a.png,2,1,,train"], 5, "line 2"),  # whose is it
    (["a.png,1,1,,train", "b.png,2,1,,train", "a.png,1,2,,train"], 4, "line 2"),  # under which camera
    (["a.png,1,1,,train", "a.png,2,1,,query"], 3, "line 2"),
])  # fmt: skip
def test_own_list_names_the_line(tmp_path, lines, number, word):
    folder = own(tmp_path, *lines)
    with pytest.raises(ValueError, match=word) as error:
        data.read_dataset("folder:own", tmp_path)
    message = str(error.value)
    assert message.startswith(f"{folder / 'items.csv'}, line {number}: ") and "\n" not in message


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("path;pid;camid", "no column camid, path, pid in path;pid;camid (commas part columns)"),
        ("path,who,camid", "no column pid in path,who,camid (commas part columns)"),
        ("path,person,camid", "the column 'person' is unknown; did you mean pid?"),
        ("path,pid,camid,tracklet_id,split", "the column 'tracklet_id' is unknown; did you mean tracklet?"),
        *((f"path,pid,camid,tracklet,{name}", f"the column {name.lower()!r} is unknown; did you mean split?")
          for name in ("set", "Subset", "fold", "splits", "spilt")),
        ("path,pid,camid,split,Split", "two columns split in"),
        ("path,pid,camera_id", "the column 'camera_id' is unknown; did you mean camid?"),
    ],
)  # fmt: skip
def test_own_list_without_its_columns_shows_its_header(tmp_path, header, told):
    folder = own(tmp_path, "a.png,1,1", header=header)
    with pytest.raises(ValueError) as error:
        data.read_dataset("folder:own", tmp_path)
    assert str(error.value).startswith(f"{folder / 'items.csv'}, line 1: {told}")


@pytest.mark.parametrize("header", ["path,pid,camid,tracklet,Split", " path, pid ,CAMID,Tracklet, split"])
def test_blanks_and_case_of_a_list_do_not_count(tmp_path, header):
    """Else the test people would be trained on."""
    folder = own(tmp_path, "a.png,1, 1 ,t, Train", "b.png,1,1,t,TRAIN ", "c.png,2,1,,query", "d.png, 2,2,,Gallery",
                 header=header)  # fmt: skip
    train, query, gallery = data.read_dataset("folder:own", tmp_path)
    assert train == [Item((str(folder / "a.png"), str(folder / "b.png")), 1, 0)]
    assert query == items(folder, ("c.png", 2, 0)) and gallery == items(folder, ("d.png", 2, 1))


def test_columns_that_are_not_used_are_told(tmp_path, capsys):
    folder = own(tmp_path, "a.png,1,1,noon", header="path,pid,camid,light")
    data.read_dataset("folder:own", tmp_path)
    assert capsys.readouterr().out == (
        f"{folder / 'items.csv'}: not used: light; its columns are path, pid, camid, tracklet, split\n"
    )


def test_a_list_as_windows_writes_it(tmp_path):
    """In UTF-16, and cameras in whatever form."""
    folder = own(tmp_path, "a.png,1,c1,,train", "b.png,2,01,,train", "c.png,3,Cam 2,,train", "d.png,3,1.0,,train")
    (folder / "items.csv").write_text((folder / "items.csv").read_text(), encoding="utf-16")
    found = data.read_dataset("folder:own", tmp_path).train
    assert [(item.pid, item.camid) for item in found] == [(1, 0), (2, 0), (3, 1), (3, 0)]


def test_person_and_camera_0_are_like_others_in_own_sets(tmp_path):
    """And who is called nobody is a stranger; in a list and in names alike."""
    folder = own(tmp_path, "a.png,0,0,,train", "b.png,nobody,2,,gallery")
    found = data.read_dataset("folder:own", tmp_path)
    assert found.train == items(folder, ("a.png", 0, -1)) and found.gallery == items(folder, ("b.png", -2, 1))
    plant(tmp_path / "named" / "train", "0_c0_a.jpg 0_c1_b.jpg")
    plant(tmp_path / "named" / "gallery", "nobody_c2_c.jpg")
    found = data.read_dataset("folder:named", tmp_path)
    assert found.train == items(tmp_path / "named/train", ("0_c0_a.jpg", 0, -1), ("0_c1_b.jpg", 0, 0))
    assert found.gallery == items(tmp_path / "named/gallery", ("nobody_c2_c.jpg", -2, 1))


def cameras_of(merged):
    return [item.camid for item in merged]


def test_cameras_from_0_stay_apart_where_lists_are_put_together():
    first, second = [item(1, -1), item(1, 0)], [item(1, -1), item(1, 3)]
    merged = data.merge([first, second])
    assert len(set(cameras_of(merged))) == 4 and cameras_of(merged)[1] - cameras_of(merged)[0] == 1


@pytest.mark.parametrize("name, nobody", [("market1501", 0), ("folder:own", "nobody")])
def test_nobody_is_neither_learned_nor_asked_for(tmp_path, capsys, name, nobody):
    """Strangers would be one class, and right answers to one another; in the gallery they stay."""
    def name_of(pid, camera):
        return f"{pid:04}_c{camera}s1_000001_00.jpg" if pid != "nobody" else f"nobody_c{camera}_x.jpg"

    parts = dict(zip(("train", "query", "gallery"), ("train", "query", "gallery") if name == "folder:own" else
                     (part[0] for part in data.MARKET_PARTS), strict=True))  # fmt: skip
    base = tmp_path / name.removeprefix("folder:")
    for part, who in (("train", [(1, 1), (2, 1), (nobody, 1), (nobody, 2)]), ("query", [(3, 1), (nobody, 1)]),
                      ("gallery", [(3, 2), (nobody, 2), (nobody, 3)])):  # fmt: skip
        for pid, camera in who:
            draw(base / parts[part] / name_of(pid, camera))
    found = data.load_dataset(name, tmp_path)
    printed = capsys.readouterr().out
    assert data.pids_of(found.train) == {1, 2} and data.pids_of(found.query) == {3} and len(found.gallery) == 3
    called = "nobody" if name == "folder:own" else "person 0, who is nobody in particular"
    assert f"2 train items left out, of {called}: strangers" in printed
    assert f"1 query items left out, of {called}: strangers" in printed
    combined = data.load_dataset(name, tmp_path, combine=True)
    assert data.pids_of(combined.train) == {1, 2, 3}
    assert "2 gallery items of nobody in particular are not trained on" in capsys.readouterr().out


def test_in_own_sets_person_0_is_learned_and_asked_for(tmp_path):
    for part, names in (("train", "0_c1_a.jpg 1_c1_a.jpg"), ("query", "0_c1_b.jpg 5_c1_b.jpg"),
                        ("gallery", "0_c2_c.jpg 5_c2_c.jpg")):  # fmt: skip
        plant(tmp_path / "own" / part, names)
    found = data.load_dataset("folder:own", tmp_path)
    assert [len(part) for part in found] == [2, 2, 2]
    assert data.pids_of(data.load_dataset("folder:own", tmp_path, combine=True).train) == {0, 1, 5}


def test_a_line_that_stands_twice_counts_once(tmp_path, capsys):
    """The same image of the same tracklet, in whatever spelling; and train and test may not share it unseen."""
    folder = own(tmp_path, "a.png,1,1,,train", "b.png,2,1,t,train", "c.png,2,1,t,train", "a.png,1,1,,train",
                 "./b.png,2,1,t,train")  # fmt: skip
    found = data.read_dataset("folder:own", tmp_path)
    both = (str(folder / "b.png"), str(folder / "c.png"))
    assert found.train == [Item((str(folder / "a.png"),), 1, 0), Item(both, 2, 0)]
    assert "2 lines are there already, and do not count again: line 5, 6" in capsys.readouterr().out


def test_names_of_files_in_another_encoding_are_refused(tmp_path, capsys):
    """They could not be printed: the first print would end in a traceback."""
    plant(tmp_path / "own" / "train", "1_c1_a.jpg 2_c2_b.jpg")
    shutil.copy(tmp_path / "own/train/1_c1_a.jpg", os.fsencode(tmp_path / "own" / "train") + b"/3_c1_caf\xe9.jpg")
    code, printed = check(capsys, "--check", "folder:own", "--root", tmp_path)
    assert code == 1 and f"{tmp_path / 'own' / 'train'}: 1 names are not encoded in UTF-8: '3_c1_caf\\udce9" in printed
    plant(tmp_path / "good" / "train", "1_c1_\u00e9t\u00e9.jpg 2_c2_b.jpg")
    assert check(capsys, "--check", "folder:good", "--root", tmp_path)[0] == 0


def test_numbers_in_names_that_64_bits_do_not_hold(tmp_path):
    plant(tmp_path / "train", f"{2**63 - 1}_c1_a.jpg 2_c2_b.jpg")
    labels, _ = data.relabel(data.read_dataset(f"folder:{tmp_path}").train)
    assert labels.tolist() == [0, 1]
    plant(tmp_path / "train", f"{2**63}_c1_a.jpg")
    with pytest.raises(ValueError, match=f"/{2**63}_c1_a.jpg: .* 64 bits"):
        data.read_dataset(f"folder:{tmp_path}")


def test_what_is_passed_over_among_own_images_is_told(tmp_path, capsys):
    """Links are followed; folders inside, other kinds of files and links to nothing are counted and named."""
    base = tmp_path / "own"
    plant(base / "train", "1_c1_a.jpg")
    plant(tmp_path / "elsewhere", "b.jpg")
    plant(base / "train" / "person2", "2_c1_a.jpg")
    (base / "train" / "2_c1_link.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (base / "train" / "3_c1_lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (base / "train" / "4_c1_moving.mp4").write_bytes(b"no image")
    (base / "test").mkdir()
    litter(base / "train", "1_c3_x.jpg")
    (base / "train" / "readme.txt").unlink()
    found = data.read_dataset("folder:own", tmp_path)
    assert found.train == items(base / "train", ("1_c1_a.jpg", 1, 0), ("2_c1_link.jpg", 2, 0))
    printed = capsys.readouterr().out
    assert f"{base}: passed over 1 folders: test." in printed
    told = "2 folders: 1_c3_x.jpg, person2; 1 links to nothing: 3_c1_lost.jpg; 1 other files: 4_c1_moving.mp4."
    assert f"{base / 'train'}: passed over {told} Images are read from train, query and gallery directly" in printed
    assert len(printed.splitlines()) == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_split_out_of_range(forest, name):
    for split in (-1, num_splits(name)):
        with pytest.raises(ValueError, match=rf"splits 0 to {num_splits(name) - 1}, got {split}\b"):
            data.read_dataset(name, forest, split=split)


@pytest.mark.parametrize("name, near", [("market", "market1501"), ("market1051", "market1501"), ("Mars", "mars"),
                                        ("cuhk-03", "cuhk03"), ("iLIDS-VID", "ilidsvid")])  # fmt: skip
def test_unknown_name_tells_the_nearest(tmp_path, name, near):
    with pytest.raises(ValueError, match=rf"{name}.*\b{near}\b"):
        data.read_dataset(name, tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# load_dataset


def test_loading_gives_what_reading_gives(forest):
    for name in BUILDERS:
        found = data.read_dataset(name, forest)
        seen = {(i.pid, camid) for i in found.gallery for camid in range(20) if camid != i.camid}
        loaded = data.load_dataset(name, forest, train=bool(found.train), evaluate=bool(found.query))
        assert loaded == found._replace(query=[i for i in found.query if (i.pid, i.camid) in seen]), name


@pytest.mark.parametrize("name", ["sensereid", "occluded_reid"])
def test_sets_for_testing_only(forest, name):
    assert data.load_dataset(name, forest, train=False).query
    with pytest.raises(ValueError, match="training"):
        data.load_dataset(name, forest)


def test_set_for_training_only(forest):
    assert data.load_dataset("cuhksysu", forest, evaluate=False).train
    with pytest.raises(ValueError, match="evaluation"):
        data.load_dataset("cuhksysu", forest)


def test_mars_leaves_out_queries_without_a_match(forest, capsys):
    assert [i.pid for i in data.load_dataset("mars", forest).query] == [2]
    printed = capsys.readouterr().out
    assert "2 queries" in printed and "0004C3T0001F001.jpg" in printed and "0006C5T0001F001.jpg" in printed


def test_short_tracklets_are_dropped(forest):
    found = data.load_dataset("mars", forest, min_frames=2)
    whole = data.read_dataset("mars", forest)
    assert found.train == [i for i in whole.train if len(i.paths) >= 2] and len(found.train) == 3
    assert found.gallery == [i for i in whole.gallery if len(i.paths) >= 2] and len(found.gallery) == 2
    assert [i.pid for i in found.query] == [2]
    with pytest.raises(ValueError, match="training"):
        data.load_dataset("mars", forest, min_frames=4)
    gallery = data.load_dataset("dukemtmcvidreid", forest, min_frames=2, evaluate=False).gallery
    assert [Path(i.paths[0]).name for i in gallery] == ["0019_C3_F0001_X1.JPG"]


def test_video_table_tells_frames(forest, capsys):
    data.load_dataset("mars", forest)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("train"))
    # ids, tracklets, cameras; least, mean, most frames
    assert [float(number) for number in re.findall(r"[\d.]+", line)] == [2, 4, 3, 1, 2, 3]


def test_persons_of_two_id_spaces_do_not_overlap(forest, capsys):
    """0 of the training is another person than 0 of the test in MSMT17; not so in a set of one id space."""
    data.load_dataset("msmt17", forest)
    assert "warning" not in capsys.readouterr().out
    data.load_dataset("folder:own/listed", forest)
    assert "warning" not in capsys.readouterr().out


def test_evaluation_where_there_is_something_to_evaluate(forest):
    assert data.load_dataset("cuhksysu", forest, evaluate=None).train
    assert len(data.load_dataset("mars", forest, evaluate=None).query) == 1


def warned(capsys, trained, name, splits):
    """What is said of testing on the data set `name` after training on `trained`: name -> pids."""
    capsys.readouterr()
    data.warn_of_shared_persons(trained, {name: splits})
    return capsys.readouterr().out


@pytest.mark.parametrize("source, target, people", [
    ("cuhk01", "cuhk02", "CUHK campus"), ("market1501", "mars", "Market-1501"), ("mars", "market1501-500k", "Market"),
    ("dukemtmcreid", "dukemtmcvidreid", "Duke"), ("cuhk03", "cuhk03-np", "CUHK03"),
    ("cuhk03-np-labeled", "cuhk03", "CUHK03"), ("synthetic", "market1501", None), ("folder:x", "synthetic", None),
    ("synthetic", "synthetic-video", None),
    ("viper", "folder:x", None), ("grid", "prid", None),
])  # fmt: skip
def test_sets_that_show_the_same_people_under_other_numbers(capsys, source, target, people):
    """Nobody knows which persons they are, whatever the numbers say."""
    for pids in ({1}, {2}, None):
        printed = warned(capsys, {source: pids}, target, splits(query=((1, 0),), gallery=((1, 1), (3, 0))))
        assert (f"{source} and {target}" in printed and people in printed) if people else not printed


@pytest.mark.parametrize("source, target", [
    ("market1501", "market1501-500k"), ("market1501-500k", "market1501"), ("dukemtmcreid", "occluded_duke"),
    ("cuhk03", "cuhk03-labeled"), ("cuhk03-classic", "cuhk03"), ("cuhk03-np", "cuhk03-np-labeled"),
    ("prid", "prid2011"), ("ilidsvid", "ilidsvid-single"), ("folder:x", "folder:x"), ("viper", "viper"),
    ("grid", "grid"),
])  # fmt: skip
def test_persons_of_sets_with_the_same_numbers_are_compared(capsys, source, target):
    tested = splits(query=((11, 0), (12, 0), (13, 1)), gallery=((11, 1), (12, 1), (13, 0), (14, 0)))
    assert warned(capsys, {source: {1, 2, 99}}, target, tested) == ""
    printed = warned(capsys, {source: {1, 12, 13, 14}}, target, tested)
    assert "3 of the 4 persons" in printed and "12, 13, 14" in printed and source in printed and target in printed
    assert ("both show" in warned(capsys, {source: None}, target, tested)) or source == target


def test_nobody_is_no_person_who_was_trained_on(capsys):
    """And a number of MSMT17 is one person in train and another one in test."""
    for name, pid in (("market1501", 0), ("prid", 300)):
        assert warned(capsys, {name: {pid, 1}}, name, splits(gallery=((5, 1), (6, 0), (pid, 0)))) == ""
    assert warned(capsys, {"msmt17": {5, 6}}, "msmt17", splits()) == ""


@pytest.mark.parametrize("name", ["viper", "cuhk01", "prid450s", "grid", "prid2011", "cuhk03-classic", "ilids"])
def test_splits_that_share_their_train_persons_are_not_warned_of(forest, capsys, name):
    """VIPeR and CUHK01: 2 k and 2 k + 1 are two directions of one split; elsewhere every split is one of its own."""
    found = [data.read_dataset(name, forest, split=k) for k in range(num_splits(name))]
    for k, m in ((0, 1), (1, 0), (3, 2), (1, 2), (0, 9), (4, 4)):
        told = warned(capsys, {name: persons(found[k].train)}, name, found[m])
        assert bool(told) == bool(persons(found[k].train) & persons(found[m].query)), (k, m)
        if k // 2 == m // 2 and name in ("viper", "cuhk01"):
            assert not told
    assert warned(capsys, {name: persons(found[0].train)}, name, found[-1]) or name in ("grid", "prid2011")


def combined(name, root, split=0):
    return data.load_dataset(name, root, split=split, combine=True)


def test_combining_trains_on_the_test_persons_too(forest):
    """Each image once; but for nobody: distractors, and the persons of PRID that one camera saw."""
    whole = data.read_dataset("market1501", forest)
    found = combined("market1501", forest)
    assert found.train == sorted(i for part in whole for i in part if i.pid != 0)
    assert found[1:] == whole[1:]
    assert persons(combined("grid", forest).train) == {1, 2, 4, 250}
    assert persons(combined("prid", forest).train) == {1, 2, 3, 5, 200}
    for split in range(4):  # 0 is a person in VIPeR
        assert combined("viper", forest, split).train == all_images(forest, "viper")
    classic = data.read_dataset("cuhk03-classic", forest)  # where an image is both query and gallery
    assert combined("cuhk03-classic", forest).train == sorted(classic.train + classic.gallery)


def test_combining_two_id_spaces_and_the_validation_images(forest):
    """MSMT17: 0 of the test is a person of its own; list_val is of the training's persons."""
    found = combined("msmt17", forest)
    names = [[Path(i.paths[0]).relative_to(forest / "msmt17/MSMT17_V1").parts[:2] for i in found.train if i.pid == pid]
             for pid in sorted(persons(found.train))]  # fmt: skip
    assert [sorted(set(name)) for name in names] == [
        [("train", "0000")], [("train", "0001")], [("test", "0000")], [("test", "0002")]]  # fmt: skip
    assert [len(name) for name in names] == [3, 1, 2, 2]
    assert len(data.load_dataset("msmt17", forest).train) == 3


# ----------------------------------------------------------------------------------------------------------------------
# python data.py --check


def check(capsys, *arguments):
    """(exit code, what it printed) of data.main in this process."""
    try:
        code = data.main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code or 0, captured.out + captured.err


def test_check_of_all_trees(forest, capsys):
    code, printed = check(capsys, "--check", *BUILDERS, "--root", forest)
    assert code == 0
    for name in BUILDERS:
        assert name.split(":")[-1] in printed
    for rumour in ("cannot be read", "more than once", "scores flatter", "empty"):
        assert rumour not in printed.replace("all files can be read, no two are equal", "")


def test_check_as_a_command(forest):
    done = run_command("data.py", "--check", "mars", "viper", "--root", forest, "--split", "0")
    assert done.returncode == 0, done.stderr
    assert "625" in done.stdout and "8298" in done.stdout.replace(",", "")  # the published counts
    assert "2 queries" in done.stdout


@pytest.mark.parametrize("name, word", [("dukemtmcreid", "withdrawn"), ("occluded_duke", "withdrawn"),
                                        ("dukemtmcvidreid", "withdrawn"), ("msmt17", "agreement")])  # fmt: skip
def test_check_tells_who_gives_the_data_away(forest, tmp_path, capsys, name, word):
    assert word in check(capsys, "--check", name, "--root", forest)[1]
    code, printed = check(capsys, "--check", name, "--root", tmp_path)  # most of all where it is not there
    assert code == 1 and word in printed


def test_check_goes_on_after_a_bad_set(forest, capsys):
    code, printed = check(capsys, "--check", "folder:nowhere", "viper", "--root", forest)
    assert code == 1
    assert str(forest / "nowhere") in printed and "316" in printed


def test_check_of_a_split_that_is_not_there(forest, capsys):
    assert check(capsys, "--check", "viper", "--root", forest, "--split", 19)[0] == 0
    code, printed = check(capsys, "--check", "viper", "--root", forest, "--split", 20)
    assert code == 1 and "19" in printed


def test_check_tells_each_finding_once(tmp_path, capsys):
    mars(tmp_path)
    market1501(tmp_path)
    draw(tmp_path / "market1501/Market-1501-v15.09.15/query/stranger.jpg", 5)
    printed = check(capsys, "--check", "market1501", "mars", "--root", tmp_path)[1]
    assert printed.count("stranger.jpg") == printed.count("0006C5T0001F001.jpg") == 1


@pytest.fixture
def market(tmp_path):
    market1501(tmp_path)
    return tmp_path / "market1501" / "Market-1501-v15.09.15"


def check_market(capsys, market):
    return check(capsys, "--check", "market1501", "--root", market.parent.parent)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut short"])
@pytest.mark.parametrize("path", ["bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c1s1_001051_00.jpg",
                                  "bounding_box_test/0000_c4s1_000151_01.jpg"])  # fmt: skip
def test_check_finds_unreadable_images(market, capsys, content, path):
    whole = (market / path).read_bytes()
    (market / path).write_bytes(whole[:-40] if content is None else content)
    code, printed = check_market(capsys, market)
    assert code == 1 and str(market / path) in printed and "all files" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("error: market1501: 1 files cannot be read: ") and str(market / path) in last
    assert printed.count("cannot be read") == 1
    assert ("empty" in printed) == (content == b"") and "BytesIO" not in printed


def test_check_refuses_what_training_would(market, capsys):
    """Grey of 16 bits, and images too large to be a person: images.py refuses them."""
    deep, large = (market / "bounding_box_train" / f"0002_c{n}s1_009999_01.png" for n in (3, 4))
    Image.fromarray(np.full((32, 16), 40_000, np.uint16)).save(deep)
    Image.new("1", (10_000, 10_000)).save(large)
    code, printed = check_market(capsys, market)
    assert code == 1 and "2 files cannot be read" in printed
    assert f"{deep}: grey of more than 8 bits" in printed and f"{large}: 10000 x 10000 pixels are more" in printed


def test_check_finds_several_empty_files_and_does_not_call_them_equal(market, capsys):
    for path in ("bounding_box_train/0002_c1s1_000451_03.jpg", "query/0001_c1s1_001051_00.jpg"):
        (market / path).write_bytes(b"")
    code, printed = check_market(capsys, market)
    assert code == 1 and "more than once" not in printed and "scores flatter" not in printed


@pytest.mark.parametrize("source, copy", [
    ("bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_train/0002_c1s1_000451_04.jpg"),
    ("bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_train/0003_c1s1_000451_04.jpg"),
    ("bounding_box_train/0002_c1s1_000451_03.jpg", "bounding_box_test/0000_c1s1_000451_04.jpg"),
    ("query/0001_c1s1_001051_00.jpg", "bounding_box_test/0001_c3s1_001051_07.jpg"),
])  # fmt: skip
def test_check_finds_equal_images(market, capsys, source, copy):
    shutil.copy(market / source, market / copy)
    code, printed = check_market(capsys, market)
    assert code == 0 and str(market / source) in printed and str(market / copy) in printed


@pytest.mark.parametrize("lines, told", [
    (["a.png,1,1,,train", "b.png,2,1,,train", "a.png,1,1,,query", "c.png,1,2,,gallery"], "1 images of train are in"),
    (["a.png,1,1,,train", "b.png,2,1,,train", "a.png,1,1,,gallery", "c.png,1,2,,query"], "1 images of train are in"),
    (["a.png,1,1,t,train", "b.png,2,1,,train", "a.png,1,1,u,train"], "1 images are there more than once"),
    (["a.png,1,1,,query", "b.png,1,2,,query", "a.png,1,1,,gallery", "b.png,1,2,,gallery"], None),  # as CUHK03 has it
])  # fmt: skip
def test_check_finds_one_file_in_several_places(tmp_path, capsys, lines, told):
    folder = own(tmp_path, *lines)
    code, printed = check(capsys, "--check", "folder:own", "--root", tmp_path)
    assert code == 0
    if told:
        assert told in printed and f"{folder / 'a.png'} (2 times)" in printed
    else:
        assert "no two are equal" in printed


@pytest.mark.parametrize("name", ["mars", "folder:own/listed", "dukemtmcvidreid"])
def test_check_with_more_frames_than_there_are(forest, capsys, name):
    """Nothing is left, so it cannot be used: not `all well`."""
    code, printed = check(capsys, "--check", name, "--root", forest, "--min-frames", 50)
    assert code == 1 and re.search(r"with --min-frames 50 \(the longest tracklet has [23]\): training needs", printed)


def test_images_have_no_frames_to_be_too_few(forest, capsys):
    code, printed = check(capsys, "--check", "grid", "--root", forest, "--min-frames", 50)
    assert code == 0 and "frames" not in printed
    assert data.load_dataset("grid", forest, min_frames=50) == data.load_dataset("grid", forest)


def test_check_reads_the_frames_of_tracklets(tmp_path, capsys):
    mars(tmp_path)
    (tmp_path / "mars" / "bbox_train" / "0001" / "0001C2T0001F1000.jpg").write_bytes(b"")
    code, printed = check(capsys, "--check", "mars", "--root", tmp_path)
    assert code == 1 and "0001C2T0001F1000.jpg" in printed


def test_check_of_what_cannot_be_trained_on(market, capsys):
    (market / "bounding_box_train" / "1500_c3s2_000001_01.JPG").unlink()
    code, printed = check_market(capsys, market)
    assert code == 1 and "at least 2 persons" in printed


def test_check_of_what_cannot_be_measured(market, capsys):
    for path in (market / "bounding_box_test").glob("[01]*"):
        path.rename(path.with_name(f"0009{path.name[4:]}"))
    code, printed = check_market(capsys, market)
    assert code == 1 and "none of the 2 queries" in printed


def test_check_of_persons_in_train_and_test(market, capsys):
    for path in (market / "query").glob("1488*"):
        path.rename(path.with_name(path.name.replace("1488", "1500")))
    plant(market / "bounding_box_test", "1500_c1s1_001051_00.jpg")
    code, printed = check_market(capsys, market)
    assert code == 0 and re.search(r"1 persons .*\b1500\b", printed)


# ----------------------------------------------------------------------------------------------------------------------
# Checks, counts, labels


def splits(train=((1, 0), (2, 0)), query=((5, 0), (6, 1)), gallery=((5, 1), (6, 0))):
    """Splits of items (pid, camid), each with a file name of its own."""
    named = {"train": train, "query": query, "gallery": gallery}
    parts = ([item(*row, f"{name}{i}.jpg") for i, row in enumerate(rows)] for name, rows in named.items())
    return data.Splits(*parts)


def test_good_splits_pass_as_they_are(capsys):
    assert data.check_splits(splits()) == splits()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("train", [(), ((1, 0),), ((1, 0), (1, 1))])
def test_training_needs_two_persons(train):
    with pytest.raises(ValueError, match="at least 2 persons"):
        data.check_splits(splits(train=train))
    assert data.check_splits(splits(train=train), train=False) == splits(train=train)


def test_training_alone_needs_no_query():
    train_only = splits(query=(), gallery=())
    assert data.check_splits(train_only, evaluate=False) == train_only


def test_evaluation_needs_no_train_images(tmp_path):
    folder = tree(tmp_path, train=[])
    found = data.load_dataset("market1501", tmp_path, train=False)
    assert (len(found.train), len(found.query), len(found.gallery)) == (0, 1, 2)
    (folder / "bounding_box_train").rmdir()
    assert data.load_dataset("market1501", tmp_path, train=False) == found
    with pytest.raises(ValueError, match=rf"{tmp_path / 'market1501'}: .* in the train split.* see DATASETS\.md"):
        data.load_dataset("market1501", tmp_path)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_evaluation_needs_query_and_gallery(part):
    with pytest.raises(ValueError, match=f"{part}.*empty"):
        data.check_splits(splits(**{part: ()}))


def test_one_camera_only():
    with pytest.raises(ValueError, match=r"one camera \(number 3 in the file names\)"):
        data.check_splits(splits(query=((5, 2), (6, 2)), gallery=((5, 2), (6, 2))))


@pytest.mark.parametrize("gallery", [((7, 1), (8, 0)), ((5, 0), (6, 1))], ids=["other_persons", "own_cameras"])
def test_no_query_can_be_matched(gallery):
    for protocol in ("market1501", "cuhk03"):
        with pytest.raises(ValueError, match="none of the 2 queries can be matched.*query0.jpg"):
            data.check_splits(splits(gallery=gallery), protocol=protocol)


def test_protocols_are_those_of_the_metrics():
    assert data.PROTOCOLS == metrics.PROTOCOLS


def test_without_the_camera_rule_any_other_image_of_the_person_is_a_match(capsys):
    """As metrics.py counts: with equal cameras, and in a set that has one. Nobody is left out who could be found."""
    one_camera = splits(query=((5, 2), (6, 2), (9, 2)), gallery=((5, 2), (6, 2), (8, 2)))
    with pytest.raises(ValueError, match="--protocol no_camera_rule"):
        data.check_splits(one_camera)
    found = data.check_splits(one_camera, protocol="no_camera_rule")
    assert found.query == one_camera.query[:2]
    assert capsys.readouterr().out.startswith("1 queries have no match in the gallery and are left out: query2.jpg. ")
    ids = [np.array([i[field] for i in part]) for field in (1, 2) for part in one_camera[1:]]
    scores = metrics.evaluate_distances(torch.rand(3, 3), *ids, protocol="no_camera_rule")
    assert (scores["queries"]["matches"] > 0).tolist() == [i in found.query for i in one_camera.query]
    own_cameras = splits(gallery=((5, 0), (6, 1)))
    assert data.check_splits(own_cameras, protocol="no_camera_rule") == own_cameras
    with pytest.raises(ValueError, match="none of the 2 queries can be matched.* in another image"):
        data.check_splits(splits(gallery=((7, 1), (8, 0))), protocol="no_camera_rule")


def test_without_the_camera_rule_a_query_does_not_match_itself(capsys):
    query, other = [item(5, 0, "a.jpg"), item(6, 0, "b.jpg")], [item(6, 0, "c.jpg"), item(7, 0, "d.jpg")]
    train = [item(1, 0), item(2, 0)]
    with pytest.raises(ValueError, match="none of the 2 queries"):
        data.check_splits(data.Splits(train, query, query), protocol="no_camera_rule")
    found = data.check_splits(data.Splits(train, query, query + other), protocol="no_camera_rule")
    assert found.query == query[1:]
    printed = capsys.readouterr().out
    assert "1 queries have no match in the gallery and are left out: a.jpg" in printed
    assert "warning: 1 queries are in the gallery themselves" in printed and "flatter: b.jpg" in printed


@pytest.mark.parametrize("protocol, queries", [(None, 2), ("market1501", 2), ("cuhk03", 2), ("no_camera_rule", 4)])
def test_check_judges_by_the_protocol(tmp_path, capsys, protocol, queries):
    """Persons 1 and 2 were seen by another camera in the gallery, 3 and 4 by the same one."""
    rows = "path,pid,camid,split\n" + "".join(
        f"{pid}-{camid}-{split}.png,{pid},{camid},{split}\n"
        for pid in (1, 2, 3, 4) for camid, split in ((1, "query"), (1 + (pid < 3), "gallery"))
    )  # fmt: skip
    for line in rows.split()[1:]:
        plant(tmp_path / "own", line.split(",")[0])
    (tmp_path / "own" / "items.csv").write_text(rows)
    flags = ["--protocol", protocol] * bool(protocol)
    code, printed = check(capsys, "--check", "folder:own", "--root", tmp_path, *flags)
    assert code == 0 and ("2 queries have no match" in printed) == (queries == 2)
    assert len(data.load_dataset("folder:own", tmp_path, train=False, protocol=protocol).query) == queries


def test_classic_cuhk03_is_checked_by_the_camera_rule_of_its_own_protocol(forest, capsys):
    """Query and gallery are the same images, each person under two cameras; without the rule all find themselves."""
    found = data.load_dataset("cuhk03-classic", forest)
    assert found.query == found.gallery and "warning" not in capsys.readouterr().out
    data.load_dataset("cuhk03-classic", forest, protocol="no_camera_rule")
    assert f"warning: {len(found.query)} queries are in the gallery themselves" in capsys.readouterr().out


def test_lonely_queries_are_counted_listed_and_left_out(capsys):
    found = data.check_splits(splits(query=((5, 0), (6, 0), (9, 1)), gallery=((5, 0), (5, 1), (6, 0), (0, 1))))
    assert [i.paths[0] for i in found.query] == ["query0.jpg"]
    assert len(found.gallery) == 4
    printed = capsys.readouterr().out
    assert printed.startswith("2 queries") and "query1.jpg, query2.jpg" in printed


def test_persons_in_train_and_query_are_warned_of(capsys):
    data.check_splits(splits(train=((1, 0), (5, 0), (6, 0))))
    assert re.search(r"warning: 2 persons .*5, 6", capsys.readouterr().out)


# Persons held out of train --------------------------------------------------------------------------------------------


def many_items():
    """12 persons: 0 to 9 under cameras 0 and 1 with three images each, 10 under camera 0 alone, 11 once per camera."""
    found = [item(pid, camid, f"{pid}_{camid}_{n}.jpg") for pid in range(10) for camid in (0, 1) for n in range(3)]
    found += [item(10, 0, f"10_0_{n}.jpg") for n in range(3)]
    found += [item(11, camid, f"11_{camid}.jpg") for camid in range(3)]
    return data.Splits(found, [item(99, 0, "q.jpg")], [item(99, 1, "g.jpg")])


def test_persons_held_out_are_tested_on_and_not_trained_on():
    splits = many_items()
    found = data.hold_out(splits, 5)
    held = {i.pid for i in found.query + found.gallery}
    assert len(held) == 5 and not held & {i.pid for i in found.train}
    assert sorted(found.train + found.query + found.gallery) == sorted(splits.train)  # each once
    assert found == data.hold_out(many_items(), 5)
    assert len({frozenset(i.pid for i in data.hold_out(splits, n).train) for n in range(2, 11)}) == 9
    assert held != set(range(5)) and held != set(range(7, 12))  # drawn, not the first or the last ones


def test_a_camera_gives_one_query_and_keeps_images_in_the_gallery():
    found = data.hold_out(many_items(), 10)  # all but two
    left = {i.pid for i in found.train}
    usual = [pid for pid in range(10) if pid not in left]
    asked = [(i.pid, i.camid) for i in found.query]
    assert [place for place in asked if place[0] < 10] == [(pid, camid) for pid in usual for camid in (0, 1)]
    assert 10 not in left | {i.pid for i in found.query}  # no other camera: nothing would match
    assert 11 not in left and [place for place in asked if place[0] == 11] == [(11, 0)]  # one image per camera
    assert len({i.paths[0][-5] for i in found.query if i.pid < 10}) > 1  # not always the first image
    assert data.check_splits(found) == found  # no query without a match


def test_without_the_camera_rule_a_person_under_one_camera_is_asked_for():
    found = data.hold_out(many_items(), 10, "no_camera_rule")
    assert [(i.pid, i.camid) for i in found.query if i.pid == 10] == [(10, 0)]
    once = data.Splits([item(pid, 0, f"{pid}_{n}.jpg") for pid in range(6) for n in range(1 + pid % 2)], [], [])
    found = data.hold_out(once, 4, "no_camera_rule")
    counts = {pid: sum(i.pid == pid for i in found.query + found.gallery) for pid in {i.pid for i in found.gallery}}
    assert {i.pid for i in found.query} == {pid for pid, count in counts.items() if count == 2} != set(counts)


@pytest.mark.parametrize("count", [11, 13, -1])
def test_two_persons_stay_to_train_on(count):
    with pytest.raises(ValueError, match=f"--holdout {count}: of 12 persons 1 to 10"):
        data.hold_out(many_items(), count)


def test_what_cannot_be_held_out_is_told():
    with pytest.raises(ValueError, match="takes persons to train on, and there are none"):
        data.hold_out(data.Splits([], *many_items()[1:]), 2)
    one_camera = data.Splits([i._replace(camid=0) for i in many_items().train], [], [])
    with pytest.raises(ValueError, match="under one camera alone.*--protocol no_camera_rule"):
        data.hold_out(one_camera, 2)
    assert len(data.hold_out(one_camera, 2, "no_camera_rule").query) == 2


def test_loading_with_persons_held_out_needs_no_test_persons(tmp_path, capsys):
    names = [f"{pid:04}_c{camid}s1_00000{n}_01.jpg" for pid in (1, 2, 3, 4) for camid in (1, 2) for n in (1, 2)]
    tree(tmp_path, train=names)
    splits = data.load_dataset("market1501", tmp_path, holdout=2, train=None, evaluate=None)
    assert [len({i.pid for i in part}) for part in splits] == [2, 2, 2]
    assert {i.pid for i in splits.query} == {i.pid for i in splits.gallery} <= {1, 2, 3, 4}
    assert "tested on 2 of the persons to train on:" in capsys.readouterr().out
    assert data.load_dataset("market1501", tmp_path, holdout=2, evaluate=False) == splits  # tested on all the same
    with pytest.raises(ValueError, match="market1501 in .*: --holdout 3: of 4 persons 1 to 2"):
        data.load_dataset("market1501", tmp_path, holdout=3)


def test_loading_holds_out_by_the_protocol(tmp_path):
    names = [f"{pid:04}_c1s1_00000{n}_01.jpg" for pid in (1, 2, 3, 4) for n in (1, 2)]
    tree(tmp_path, train=names)
    splits = data.load_dataset("market1501", tmp_path, holdout=2, protocol="no_camera_rule")
    assert [len(part) for part in splits] == [4, 2, 2]


def test_table_of_counts_and_published_counts():
    found = splits(train=((1, 0), (1, 1), (2, 3)))
    counts = ((2, 3, 3), (2, None, 2), (751, 15913, 6))
    lines = [line.split() for line in data.describe(found, counts).splitlines()]
    assert lines[:4] == [
        ["split", "ids", "items", "cameras"], ["train", "2", "3", "3"], ["query", "2", "2", "2"],
        ["gallery", "2", "2", "2"],
    ]  # fmt: skip
    assert {"751", "15913", "6"} <= set(lines[4]) and len(lines) == 5
    assert len(data.describe(found, None).splitlines()) == 4


@pytest.mark.parametrize("counts", [(3, 3, 3), (2, 4, 3), (2, 3, 4)])
def test_each_published_count_is_compared(counts):
    found = splits(train=((1, 0), (1, 1), (2, 3)))
    told = data.describe(found, (counts, None, None)).splitlines()
    assert len(told) == 5 and all(str(count) in told[2] for count in counts)


PUBLISHED = {  # ids, items, cameras; None where no number is sure
    "market1501": ((751, 12936, 6), (750, 3368, 6), (751, 15913, 6)),
    "cuhk03": ((767, 7365, 2), (700, 1400, 2), (700, 5332, 2)),
    "cuhk03-labeled": ((767, 7368, 2), (700, 1400, 2), (700, 5328, 2)),
    "dukemtmcreid": ((702, 16522, 8), (702, 2228, 8), (1110, 17661, 8)),
    "msmt17": ((1041, 30248, 15), (3060, 11659, 15), (3060, 82161, 15)),
    "viper": ((316, 632, 2), (316, 316, 1), (316, 316, 1)),
    "grid": ((125, 250, None), (125, 125, None), (126, 900, None)),
    "cuhk01": ((485, 1940, 2), (486, 972, 1), (486, 972, 1)),
    "prid450s": ((225, 450, 2), (225, 225, 1), (225, 225, 1)),
    "prid": ((100, 200, 2), (100, 100, 1), (649, 649, 1)),
    "sensereid": (None, (522, 1040, None), (1717, 3388, None)),
    "mars": ((625, 8298, 6), (626, 1980, 6), (621, 9330, 6)),
    "dukemtmcvidreid": ((702, 2196, 8), (702, 702, 8), (1110, 2636, 8)),
    "ilidsvid": ((150, 300, 2), (150, 150, 1), (150, 150, 1)),
    "ilidsvid-single": ((150, 300, 2), (150, 150, 1), (150, 150, 1)),
    "prid2011": ((89, 178, 2), (89, 89, 1), (89, 89, 1)),
    "cuhk02": ((1577, 6308, 8), (239, 478, 1), (239, 478, 1)),
    "cuhksysu": ((11934, 34574, 1), None, None),
    "occluded_duke": ((702, 15618, 8), (519, 2210, 8), (1110, 17661, 8)),
    "occluded_reid": (None, (200, 1000, 1), (200, 1000, 1)),
}


def test_published_counts(tmp_path, capsys):
    assert {name: data.DATASETS[name].counts for name in PUBLISHED} == PUBLISHED
    tree(tmp_path)
    data.load_dataset("market1501", tmp_path)
    assert re.search("751 ids.*12936", capsys.readouterr().out)


def test_kinds_of_the_data_sets(forest):
    assert {name for name in BUILDERS if data.has_video(data.read_dataset(name, forest))} == {
        "mars", "ilidsvid", "prid2011", "dukemtmcvidreid", "synthetic-video", "folder:own/listed"}  # fmt: skip
    assert {name for name, row in data.DATASETS.items() if row.protocol != "market1501"} == {
        "cuhk03-classic", "cuhk03-classic-labeled"}  # fmt: skip
    several = {name: row.num_splits for name, row in data.DATASETS.items() if row.num_splits > 1}
    assert several == {"viper": 20, "cuhk01": 20, "cuhk03-classic": 20, "cuhk03-classic-labeled": 20, "grid": 10,
                       "prid450s": 10, "ilids": 10, "ilidsvid-single": 10, "prid": 10, "ilidsvid": 10,
                       "prid2011": 10}  # fmt: skip


def test_labels_follow_the_sorted_pids():
    labels, pids = data.relabel([item(1488, 0), item(2, 0), item(7, 1), item(2, 1)])
    assert labels.tolist() == [2, 0, 1, 0] and labels.dtype == np.int64
    assert pids == [2, 7, 1488]


def test_merged_lists_share_no_person_and_no_camera():
    merged = data.merge([[item(5, 1, "a"), item(0, 0, "b")], [], [item(0, 0, "c"), item(5, 2, "d")]])
    assert [(i.paths[0], i.pid, i.camid) for i in merged] == [("a", 5, 1), ("b", 0, 0), ("c", 6, 2), ("d", 11, 4)]
