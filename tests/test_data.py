"""Tests of data.py: the parsers on tiny trees, and the checks of what they found.

python -m pytest tests/test_data.py
"""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw

import data
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


@pytest.mark.parametrize("versioned", [True, False])
def test_market1501_items(tmp_path, versioned, capsys):
    """All that lies in the folders of the real set, in any order, under a parent that looks like a name of the set."""
    root = tmp_path / "exp2_c1" / "2018_c5s1"
    folder = tree(
        root, TRAIN[::-1],
        ["1488_c3s3_065428_00.jpg", "0001_c1s1_001051_00.jpg"],
        [
            "1488_c6s3_094417_08.jpg.jpg", "0001_c2s1_001051_01.jpg", "0000_c4s1_000151_01.jpg",
            "0001_c5s1_000002_00.JPG", "-1_c1s1_000401_03.jpg",
        ],
        versioned,
    )  # fmt: skip
    gallery = folder / "bounding_box_test"
    for hidden in ("._0001_c2s1_001051_01.jpg", ".0001_c3s1_001051_01.jpg"):
        (gallery / hidden).write_bytes(b"resource fork")
    for other in ("Thumbs.db", "desktop.ini", "readme.txt", "0001_c1s1_001051_00.mat"):
        (folder / "query" / other).write_bytes(b"no image")
    (gallery / "0009_c1s1_000001_01.jpg").mkdir()
    splits = data.load_dataset("market1501", root)
    assert splits.train == items(
        folder / "bounding_box_train",
        ("0002_c1s1_000451_03.jpg", 2, 0), ("0002_c2s1_000451_01.jpg", 2, 1), ("0007_c3s2_000001_01.jpg", 7, 2),
    )  # fmt: skip
    assert splits.query == items(
        folder / "query", ("0001_c1s1_001051_00.jpg", 1, 0), ("1488_c3s3_065428_00.jpg", 1488, 2)
    )
    assert splits.gallery == items(
        gallery,
        ("0000_c4s1_000151_01.jpg", 0, 3), ("0001_c2s1_001051_01.jpg", 1, 1), ("0001_c5s1_000002_00.JPG", 1, 4),
        ("1488_c6s3_094417_08.jpg.jpg", 1488, 5),
    )  # fmt: skip
    assert "left out" not in capsys.readouterr().out


def test_versioned_folder_goes_first(tmp_path):
    tree(tmp_path, ["0011_c1s1_000001_01.jpg", "0012_c1s1_000001_01.jpg"], versioned=False)
    tree(tmp_path, ["0021_c1s1_000001_01.jpg", "0022_c1s1_000001_01.jpg"], versioned=True)
    assert [i.pid for i in data.load_dataset("market1501", tmp_path).train] == [21, 22]


STRANGE = ["person.jpg", "0002.jpg", "a0002_c1s1_000001_00.jpg", "00002_c1s1_000001_00.jpg", "0002_c7s1_000001_00.jpg",
           "0002_c12s1_000001_00.jpg", "-2_c1s1_000001_00.jpg"]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_are_left_out_and_told(tmp_path, capsys, name):
    folder = tree(tmp_path, train=[*TRAIN, name])
    splits = data.load_dataset("market1501", tmp_path)
    assert [Path(i.paths[0]).name for i in splits.train] == TRAIN
    printed = capsys.readouterr().out
    assert name in printed and str(folder / "bounding_box_train") in printed and "1 images left out" in printed


def test_missing_root_names_folder_and_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.md") as error:
        data.load_dataset("market1501", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / "market1501") in str(error.value)


def test_root_without_the_parts_names_them(tmp_path):
    (tmp_path / "market1501").mkdir()
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.md") as error:
        data.load_dataset("market1501", tmp_path)
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        assert str(tmp_path / "market1501" / part) in str(error.value)


@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_empty_folder_names_folder_and_way_out(tmp_path, part):
    folder = tree(tmp_path, **{part: []})
    with pytest.raises(ValueError, match=f"(?s){part}.*DATASETS.md") as error:
        data.load_dataset("market1501", tmp_path)
    assert str(folder) in str(error.value) or str(tmp_path / "market1501") in str(error.value)


def test_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="'market'.*market1501"):
        data.load_dataset("market", tmp_path)


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


def test_multi_query_without_its_images(tmp_path, monkeypatch):
    tree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gt_bbox.*DATASETS\.md"):
        data.load_multi_query("market1501", tmp_path, [])
    monkeypatch.setitem(data.DATASETS, "other", data.Dataset("market1501", data.parse_market1501, None))
    with pytest.raises(ValueError, match="other has no images for multi-query; these have: market1501, synthetic"):
        data.load_multi_query("other", tmp_path, [])


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
    tree(tmp_path, train=[])
    found = data.load_dataset("market1501", tmp_path, train=False)
    assert (len(found.train), len(found.query), len(found.gallery)) == (0, 1, 2)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_evaluation_needs_query_and_gallery(part):
    with pytest.raises(ValueError, match=f"{part}.*empty"):
        data.check_splits(splits(**{part: ()}))


def test_one_camera_only():
    with pytest.raises(ValueError, match=r"one camera \(number 3 in the file names\)"):
        data.check_splits(splits(query=((5, 2), (6, 2)), gallery=((5, 2), (6, 2))))


@pytest.mark.parametrize("gallery", [((7, 1), (8, 0)), ((5, 0), (6, 1))], ids=["other_persons", "own_cameras"])
def test_no_query_can_be_matched(gallery):
    with pytest.raises(ValueError, match="none of the 2 queries can be matched.*query0.jpg"):
        data.check_splits(splits(gallery=gallery))


def test_lonely_queries_are_counted_listed_and_left_out(capsys):
    found = data.check_splits(splits(query=((5, 0), (6, 0), (9, 1)), gallery=((5, 0), (5, 1), (6, 0), (0, 1))))
    assert [i.paths[0] for i in found.query] == ["query0.jpg"]
    assert len(found.gallery) == 4
    printed = capsys.readouterr().out
    assert printed.startswith("2 queries") and "query1.jpg, query2.jpg" in printed


def test_persons_in_train_and_query_are_warned_of(capsys):
    data.check_splits(splits(train=((1, 0), (5, 0), (6, 0))))
    assert re.search(r"warning: 2 persons .*5, 6", capsys.readouterr().out)


def test_table_of_counts_and_published_counts():
    found = splits(train=((1, 0), (1, 1), (2, 3)))
    counts = {"train": (2, 3), "query": (2, 2), "gallery": (751, 15913)}
    lines = [line.split() for line in data.describe(found, counts).splitlines()]
    assert lines[:4] == [
        ["split", "ids", "images", "cameras"], ["train", "2", "3", "3"], ["query", "2", "2", "2"],
        ["gallery", "2", "2", "2"],
    ]  # fmt: skip
    assert "751" in lines[4] and "15913" in lines[4] and len(lines) == 5
    assert len(data.describe(found, None).splitlines()) == 4


def test_published_counts_of_market1501(tmp_path, capsys):
    counts = data.DATASETS["market1501"].counts
    assert counts == {"train": (751, 12936), "query": (750, 3368), "gallery": (751, 15913)}
    tree(tmp_path)
    data.load_dataset("market1501", tmp_path)
    assert "751 ids and 12936 images" in capsys.readouterr().out


def test_tracklets_count_their_images():
    video = data.Splits([Item(("a", "b"), 1, 0), Item(("c",), 1, 1)], [], [])
    assert data.describe(video, None).splitlines()[1].split() == ["train", "1", "3", "2"]


def test_labels_follow_the_sorted_pids():
    labels, pids = data.relabel([item(1488, 0), item(2, 0), item(7, 1), item(2, 1)])
    assert labels.tolist() == [2, 0, 1, 0] and labels.dtype == np.int64
    assert pids == [2, 7, 1488]
