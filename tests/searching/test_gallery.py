"""Tests of gallery.py: exact ranking beside a full sort, and an index that stays whole whatever happens.

python -m pytest tests/searching/test_gallery.py
"""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tiny_onnx import person, slow_feature

from searching import gallery as galleries
from searching.gallery import Gallery, Index, Row

# ---- ranking ----

def slow_top_k(queries, gallery, k, left_out):
    """Sorts everything, for each query: the most similar first, equal ones in gallery order."""
    rows = []
    for q, query in enumerate(queries):
        allowed = [g for g in range(len(gallery)) if not left_out[q, g]]
        rows.append(sorted(allowed, key=lambda g: -(gallery[g] @ query))[:k])  # sorted is stable
    return rows


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 5, 60, 300])
def test_top_k_equals_a_full_stable_sort(block, k, monkeypatch):
    """Small whole numbers: products are exact, so they do not depend on the block, and many are equal."""
    monkeypatch.setattr(galleries, "QUERY_BLOCK", 4)
    rng = np.random.default_rng(block + k)
    queries, gallery = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (11, 250))
    query_keys, gallery_keys = rng.integers(0, 5, 11), rng.integers(0, 5, 250)
    more = np.arange(11), np.full(250, 3)  # leaves nothing for query 3
    left_out = (query_keys[:, None] == gallery_keys) | (more[0][:, None] == more[1])
    indices, similarities = galleries.top_k(queries, gallery, k, [(query_keys, gallery_keys), more], block)
    for q, expected in enumerate(slow_top_k(queries, gallery, k, left_out)):
        assert indices[q].tolist() == expected + [-1] * (k - len(expected))
        assert similarities[q, : len(expected)].tolist() == (gallery[expected] @ queries[q]).tolist()
    assert (indices[3] == -1).all()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_top_k_of_real_features(block):
    rng = np.random.default_rng(block)
    queries, gallery = (rng.standard_normal((n, 16)).astype(np.float32) for n in (5, 400))
    indices, similarities = galleries.top_k(queries, gallery, 10, block=block)
    exact = queries.astype(float) @ gallery.T.astype(float)
    assert indices.tolist() == np.argsort(-exact, axis=1, kind="stable")[:, :10].tolist()
    np.testing.assert_allclose(similarities, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)




@pytest.mark.parametrize("count", [1, galleries.FEW, galleries.FEW + 1])
def test_few_queries_and_many_give_the_same(count, monkeypatch):
    """Both ways to multiply, with the gallery cut into many slices, and rows chosen."""
    monkeypatch.setattr(galleries, "SLICE", 4 * 16 * 10)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(-3, 4, (n, 16)).astype(np.float32) for n in (count, 333))
    for rows in (None, np.flatnonzero(rng.random(333) < 0.3), np.array([7]), np.array([], int),
                 np.arange(101, 333), np.flatnonzero(rng.random(333) < 0.1)):  # fmt: skip
        indices, similarities = galleries.top_k(queries, gallery, 5, rows=rows, block=100)
        allowed = np.arange(333) if rows is None else rows
        exact = queries.astype(int) @ gallery[allowed].T.astype(int)
        order = np.argsort(-exact, axis=1, kind="stable")[:, :5]
        assert indices[:, : order.shape[1]].tolist() == allowed[order].tolist()
        assert (indices[:, order.shape[1] :] == -1).all()
        found = np.take_along_axis(exact, order, 1)
        assert similarities[:, : order.shape[1]].tolist() == found.tolist()


def test_left_out_pairs_follow_the_chosen_rows():
    """Keys are those of all gallery rows, also where only some rows are searched."""
    gallery = np.eye(4, dtype=np.float32)
    queries = np.array([[0.5, 0.6, 0.7, 0.8]], np.float32)
    keys = np.array([3]), np.array([0, 0, 0, 3])
    indices, _ = galleries.top_k(queries, gallery, 4, [keys], rows=np.array([1, 2, 3]))
    assert indices.tolist() == [[2, 1, -1, -1]]


def test_most_rows_of_a_block_are_not_copied():
    """A filter that most rows pass must not copy a gallery that may be larger than memory."""
    class Watched(np.ndarray):
        def __getitem__(self, key):
            assert isinstance(key, slice), "rows were copied"
            return super().__getitem__(key)

    gallery = np.eye(40, dtype=np.float32).view(Watched)
    indices, _ = galleries.top_k(np.ones((1, 40), np.float32), gallery, 3, block=16, rows=np.arange(1, 40))
    assert indices.tolist() == [[1, 2, 3]]


def test_ascending_similarities_are_the_worst_case():
    """Every block beats all that came before."""
    gallery = np.linspace(0, 1, 5000, dtype=np.float32)[:, None]
    indices, _ = galleries.top_k(np.ones((2, 1), np.float32), gallery, 3, block=64)
    assert indices.tolist() == [[4999, 4998, 4997]] * 2


@pytest.mark.parametrize("count", [1, galleries.FEW + 1])
@pytest.mark.parametrize("block", [7, 1000])
def test_rows_that_are_not_numbers_hide_no_answer(block, count):
    """As many as are asked for, and more, before and behind the others."""
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 16)).astype(np.float32) for n in (count, 300))
    gallery[[0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 299]] = np.nan
    good = np.setdiff1d(np.arange(300), np.flatnonzero(np.isnan(gallery[:, 0])))
    indices, _ = galleries.top_k(queries, gallery, 10, block=block)
    expected = good[np.argsort(-(queries.astype(float) @ gallery[good].T.astype(float)), axis=1)[:, :10]]
    assert indices.tolist() == expected.tolist()
    assert (galleries.top_k(queries, gallery, 300, block=block)[0][:, len(good) :] == -1).all()


def test_ranking_needs_nothing_that_numpy_1_lacks(monkeypatch):
    monkeypatch.delattr(np, "vecdot", raising=False)
    assert galleries.top_k(np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32), 1)[0].tolist() == [[0]]


# ---- tracklets and filters ----

def unit(*values):
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_average_tracklets_by_hand():
    """Rows 0 and 2 are one tracklet; the same name under another camera is another one; row 3 has none."""
    rows = [Row("a", 1, "1", tracklet="t"), Row("b", 1, "2", tracklet="t"), Row("c", 1, "1", tracklet="t"), Row("d"),
            Row("e")]  # fmt: skip
    features = np.array([unit(1, 0), unit(1, 1), unit(0, 1), unit(3, 4), unit(1, 0)])
    means, merged, members = galleries.average_tracklets(features, rows)
    assert members == [[0, 2], [1], [3], [4]]
    assert [(row.path, row.frames) for row in merged] == [("a", 2), ("b", 1), ("d", 1), ("e", 1)]
    np.testing.assert_allclose(means, [unit(1, 1), unit(1, 1), unit(3, 4), unit(1, 0)], atol=1e-6)
    means, merged, members = galleries.average_tracklets(features, rows, [2, 3])
    assert members == [[2], [3]]
    assert [(row.path, row.frames) for row in merged] == [("c", 1), ("d", 1)]
    np.testing.assert_allclose(means, [unit(0, 1), unit(3, 4)], atol=1e-6)


@pytest.mark.parametrize("value, name", [
    ("1", "1"), ("01", "1"), ("1.0", "1"), (" 1", "1"), ("1 ", "1"), ("c1", "1"), ("C01", "1"), ("cam1", "1"),
    ("Camera 1", "1"), ("CAM_01", "1"), ("camera-1", "1"), ("cam #1", "1"), ("\u00a01", "1"), (1, "1"), (1.0, "1"),
    (np.float32(1), "1"), (np.int64(1), "1"), ("0", "0"), ("00", "0"), ("c0", "0"), ("10", "10"), ("c010", "10"),
    ("left", "left"), (" right ", "right"), ("Left", "Left"), ("c", "c"), ("cam", "cam"), ("1.5", "1.5"), ("-1", "-1"),
    ("c1s1", "c1s1"), ("1a", "1a"), ("door 1", "door 1"), ("9" * 20, "9" * 20), (None, ""), (float("nan"), ""),
    ("  ", ""),
])  # fmt: skip
def test_camera_name(value, name):
    assert galleries.camera_name(value) == name == galleries.camera_name(name)


@pytest.mark.parametrize("given", ["01", 1, 1.0, "c1", ["Camera 1"], np.array([1.0]), (" 1", "2")])
def test_filters_know_cameras_by_all_their_names(given, recwarn):
    rows = [Row("a", camid="1"), Row("b", camid="2"), Row("c", camid="left")]
    assert galleries.choose_rows(rows, not_cameras=given).tolist()[-1] == 2
    assert galleries.choose_rows(rows, cameras=given).tolist()[0] == 0 and not list(recwarn)


def test_a_filter_that_names_an_unknown_camera_says_so():
    rows = [Row("a", camid="10"), Row("b", camid="2"), Row("c", camid="left"), Row("d")]
    for flags in ({"not_cameras": ["3"]}, {"cameras": ["2", "cam3"]}):
        with pytest.warns(UserWarning, match="^no row is of camera 3; there are: left, 2, 10$"):
            galleries.choose_rows(rows, **flags)
    with warnings.catch_warnings(record=True) as told:  # as a command asks: the rows to count them, then the search
        warnings.simplefilter("default")
        galleries.choose_rows(rows, not_cameras=["4"])
        galleries.choose_rows(rows, not_cameras=["4"])
    assert len(told) == 1


@pytest.mark.parametrize("flags, chosen", [
    ({}, None), ({"cameras": [1]}, [0, 3]), ({"cameras": ["1", "2"]}, [0, 1, 3]), ({"not_cameras": [1]}, [1, 2]),
    ({"after": 5}, [1, 3]), ({"before": 5}, [0, 1]), ({"after": 5, "before": 5}, [1]), ({"cameras": [9]}, []),
    ({"cameras": [1], "after": 5.5}, [3]), ({"after": 0}, [0, 1, 3]), ({"cameras": np.array([1, 2])}, [0, 1, 3]),
    ({"cameras": "1"}, [0, 3]), ({"not_cameras": 1}, [1, 2]), ({"not_cameras": np.array([])}, None),
])  # fmt: skip
def test_choose_rows(flags, chosen):
    rows = [Row("a", camid="1", time=1.0), Row("b", camid="2", time=5.0), Row("c"), Row("d", camid="1", time=9.0)]
    found = galleries.choose_rows(rows, **flags)
    assert found is chosen if chosen is None else found.tolist() == chosen


# ---- galleries in memory and on disk ----

DIM = 8
ABOUT = {"model": "m.onnx", "weights_sha256": "a" * 64, "arch": "tiny", "precision": "fp32", "feature_dim": DIM}


def feature_of(number):
    """A unit vector that tells its number."""
    vector = np.random.default_rng(number).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def some_rows(*numbers):
    return np.array([feature_of(n) for n in numbers]).reshape(-1, DIM), [Row(f"/x/{n}.jpg", n, size=n) for n in numbers]


def check_index(folder, numbers=None):
    """The index is whole: as many features as items, each row is that of its item; returns the numbers."""
    with Index.read(folder) as index:
        found = [row.pid for row in index.rows]
        assert [row.path for row in index.rows] == [f"/x/{n}.jpg" for n in found]
        assert len(index.features) == len(found)
        for feature, number in zip(index.features, found, strict=True):
            assert np.array_equal(feature, feature_of(number))
    if numbers is not None:
        assert found == list(numbers)
        plain = np.load(folder / "features.npy")  # as other programs read it
        assert plain.dtype == np.float32 and plain.shape == (len(found), DIM)
        assert len((folder / "items.csv").read_text().splitlines()) == 1 + len(found)
        assert (folder / "features.npy").stat().st_size == galleries.HEAD + 4 * DIM * len(found)
    return found


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_append_and_keep(kind, tmp_path):
    gallery = Gallery(DIM) if kind == "memory" else Index.open(tmp_path / "i", ABOUT)
    gallery.append(*some_rows())
    assert gallery.features.shape == (0, DIM) and len(gallery) == 0
    for numbers in ((0, 1, 2), (3,), tuple(range(4, 40))):
        gallery.append(*some_rows(*numbers))
    before = gallery.features
    gallery.keep([0, 2, 38, 39])
    gallery.append(*some_rows(50))
    assert [row.pid for row in gallery.rows] == [0, 2, 38, 39, 50]
    assert np.array_equal(gallery.features, some_rows(0, 2, 38, 39, 50)[0])
    assert np.array_equal(before, some_rows(*range(40))[0])  # whoever looks at the old one goes on seeing it
    if kind == "disk":
        gallery.close()
        check_index(tmp_path / "i", [0, 2, 38, 39, 50])
        with Index.open(tmp_path / "i", ABOUT) as again:
            again.append(*some_rows(51))
        check_index(tmp_path / "i", [0, 2, 38, 39, 50, 51])


@pytest.mark.parametrize("features, message", [
    (np.ones((1, DIM), np.float32), "of length 1"), (np.full((1, DIM), np.nan, np.float32), "of length 1"),
    (feature_of(0)[None, :4], r"this gallery holds \(N, 8\)"), (some_rows(0, 1)[0], "2 features, but 1 rows"),
])  # fmt: skip
def test_what_cannot_be_appended(features, message, tmp_path):
    for gallery in (Gallery(DIM), Index.open(tmp_path / "i", ABOUT)):
        with pytest.raises(ValueError, match=message):
            gallery.append(features, [Row("a")])
        assert len(gallery) == 0


@pytest.mark.parametrize("row, message", [
    (Row("a\nb"), "path 'a.nb' holds a line break"), (Row("a", camid="c\r"), "camid 'c.r' holds a line break"),
    (Row("a", tracklet="t\n"), "tracklet 't.n' holds a line break"),
    (Row("x" * 131072), "path 'xxx.* has 131,072 characters"), (Row("\ud800"), "surrogates"),
    (Row("a", time=float("nan")), "time nan of a"), (Row("a", time=float("inf")), "time inf of a"),
])  # fmt: skip
def test_rows_that_would_spoil_the_table_are_refused(row, message, tmp_path):
    for gallery in (Gallery(DIM), Index.open(tmp_path / "i", ABOUT)):
        with pytest.raises(ValueError, match=message):
            gallery.append(some_rows(0, 1)[0], [Row("b"), row])
        assert len(gallery) == 0
    check_index(tmp_path / "i", [])


def test_rows_come_back_as_they_were(tmp_path):
    rows = [Row("/x/a, \"b\" c.jpg", 3, "door", 1795738704.779287, "t/1", 4, 77, 1795738704779287975),
            Row("/x/名前.jpg"), Row("/x/caf\udce9.jpg", time=451.0),
            Row("/x/ space .jpg", camid="0", time=0.5)]  # fmt: skip
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(some_rows(*range(4))[0], rows)
    assert Index.read(tmp_path / "i").rows == rows


def test_cameras_of_an_index_of_before_have_their_normal_names(tmp_path):
    """Also of rows that are added."""
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(some_rows(0)[0], [Row("/x/0.jpg", camid="Cam 01")])
        assert index.rows[0].camid == "1"
    items = tmp_path / "i" / "items.csv"
    items.write_text(items.read_text().replace("/x/0.jpg,,1,", "/x/0.jpg,,01,"))
    assert Index.read(tmp_path / "i").rows[0].camid == "1"


def test_cells_that_a_spreadsheet_would_compute_are_marked_and_come_back(tmp_path):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''=1", "'plain", "plain", "\uff1d1"]
    rows = [Row(text, camid=text.strip(), tracklet=text) for text in texts]
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(some_rows(*range(len(rows)))[0], rows)
    assert Index.read(tmp_path / "i").rows == rows
    with open(tmp_path / "i" / "items.csv", newline="", encoding="utf-8") as file:
        for line in csv.reader(file):
            assert not [cell for cell in line if cell[:1] and cell[0] in "=+-@\t\uff1d"]


def spoil_features(folder):
    with open(folder / "features.npy", "ab") as file:
        file.write(b"\1" * (4 * DIM * 2 + 5))


def spoil_items(folder):
    with open(folder / "items.csv", "a") as file:
        file.write("/x/9.jpg,9,,,,1,9")  # the line was being written


def promise_a_row(folder):
    with open(folder / "items.csv", "a") as file:
        file.write("/x/9.jpg,9,,,,1,9,0\n")


def old_header(folder):
    with open(folder / "features.npy", "r+b") as file:
        file.write(galleries.header(1, DIM))


@pytest.mark.parametrize("spoil", [spoil_features, spoil_items, promise_a_row, old_header])
def test_what_a_kill_leaves_is_not_looked_at_and_cut_off(spoil, tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1, 2))
    spoil(tmp_path / "i")
    assert check_index(tmp_path / "i") == [0, 1, 2]
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(3))
    check_index(tmp_path / "i", [0, 1, 2, 3])


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("stage", ["before the marker", "marked", "one in place", "all in place"])
def test_a_kill_while_rows_are_removed(stage, reader, tmp_path, monkeypatch):
    """Every moment at which a kill can strike: the old index or the new one, never a mixture."""
    folder, moments = tmp_path / "i", iter(["marked", "one in place", "all in place"])
    with Index.open(folder, ABOUT) as index:
        index.append(*some_rows(*range(6)))
        replace, stop = os.replace, RuntimeError("killed")

        def watched(source, target):
            if Path(target).name == "replacing" and stage == "before the marker":
                raise stop
            if str(source).endswith(".new") and next(moments) == stage:
                raise stop
            replace(source, target)

        def unlink(path, missing_ok=False):
            if path.name == "replacing" and stage == "all in place":
                raise stop
            if path.exists():
                os.unlink(path)

        monkeypatch.setattr(os, "replace", watched)
        monkeypatch.setattr(Path, "unlink", unlink)
        with pytest.raises(RuntimeError, match="killed"):
            index.keep([1, 4])
    monkeypatch.undo()
    expected = list(range(6)) if stage == "before the marker" else [1, 4]
    if reader:
        check_index(folder, expected)
    with Index.open(folder, ABOUT) as index:
        assert [row.pid for row in index.rows] == expected
        index.append(*some_rows(9))
    check_index(folder, [*expected, 9])
    assert sorted(path.name for path in folder.iterdir()) == ["features.npy", "index.json", "items.csv", "lock"]


def test_files_that_were_being_written_are_cleared_away(tmp_path):
    Index.open(tmp_path / "i", ABOUT).close()
    for name in ("items.csv.partial", "items.csv.new.partial", "replacing.partial", "features.npy.new",
                 "index.json.1234.tmp", "features.npy.new.1234.tmp", "items.csv.bak"):  # fmt: skip
        (tmp_path / "i" / name).write_text("half")
    Index.open(tmp_path / "i", ABOUT).close()
    assert sorted(os.listdir(tmp_path / "i")) == ["features.npy", "index.json", "items.csv", "items.csv.bak", "lock"]


APPEND_FOREVER = """
import sys
sys.path[:0] = {path!r}
from test_gallery import ABOUT, Index, some_rows
with Index.open({folder!r}, ABOUT) as index:
    print("ready", flush=True)
    number = len(index)
    while True:
        index.append(*some_rows(*range(number, number + 3)))
        number += 3
        if number > 60:
            index.keep(range(30))
            number = 30
"""


def test_kill_minus_nine_at_any_moment(tmp_path):
    """A process that appends and removes without end is killed again and again; rows are never lost, doubled, mixed."""
    code = APPEND_FOREVER.format(path=[str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)],
                                 folder=str(tmp_path / "i"))  # fmt: skip
    for wait in (0.0, 0.003, 0.011, 0.023, 0.037):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.kill()
        process.wait()
        found = check_index(tmp_path / "i")
        assert found == list(range(len(found)))
    assert found


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(*range(20)))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:  # no file of this process may grow beyond that
            resource.setrlimit(resource.RLIMIT_FSIZE, (galleries.HEAD + 4 * DIM * 30, before[1]))
            with pytest.raises(OSError):
                index.append(*some_rows(*range(20, 60)))
            with pytest.raises(OSError):
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
                index.keep(range(19))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert len(index) == 20
        index.append(*some_rows(20))
    check_index(tmp_path / "i", range(21))


def test_a_disk_that_is_full_when_the_lines_are_written(tmp_path):
    """Paths are long: their lines reach the limit when the features are written already."""
    def long_rows(*numbers):
        features, rows = some_rows(*numbers)
        return features, [row._replace(path=f"/{'x' * 300}/{row.pid}.jpg") for row in rows]

    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*long_rows(*range(5)))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
            with pytest.raises(OSError):
                index.append(*long_rows(*range(5, 25)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert index.data.stat().st_size == galleries.HEAD + 5 * 4 * DIM  # not only hidden, but gone
        assert index.items.stat().st_size == index.items_end
        index.append(*long_rows(5))
    with Index.read(tmp_path / "i") as index:
        assert [row.pid for row in index.rows] == list(range(6))


def test_two_writers_and_a_reader(tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        with pytest.raises(ValueError, match="another process writes"):
            Index.open(tmp_path / "i", ABOUT)
        index.append(*some_rows(0))
        check_index(tmp_path / "i", [0])  # reading need not wait
    Index.open(tmp_path / "i", ABOUT).close()


def test_two_processes_that_start_on_a_new_folder(tmp_path, monkeypatch):
    """While the second looks at the folder, the first makes the index, fills it and goes on writing, or ends."""
    look, folder, first = os.listdir, tmp_path / "i", []

    def overtaken(path):
        found = look(path)
        monkeypatch.setattr(os, "listdir", look)
        first.append(Index.open(folder, ABOUT))
        first[-1].append(*some_rows(0, 1))
        if ends:
            first[-1].close()
        return found

    for ends in (False, True):
        monkeypatch.setattr(os, "listdir", overtaken)
        if ends:
            Index.open(folder, ABOUT).close()
        else:
            with pytest.raises(ValueError, match="another process writes into it"):
                Index.open(folder, ABOUT)
        first[-1].close()
        check_index(folder, [0, 1])
        folder = tmp_path / "j"


@pytest.mark.parametrize("gone", [["index.json"], ["index.json", "features.npy"], ["index.json", "items.csv"],
                                  ["index.json", "lock"]])  # fmt: skip
def test_features_without_index_json_are_left_alone(gone, tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1))
    for name in gone:
        (tmp_path / "i" / name).unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()}
    with pytest.raises(ValueError, match="index.json, which tells what made them, is missing"):
        Index.open(tmp_path / "i", ABOUT)
    assert {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()} == before


@pytest.mark.parametrize("left", [{}, {"features.npy": b""}, {"features.npy": galleries.header(0, 99)},
                                  {"features.npy": galleries.header(0, DIM), "items.csv": b"path,pid"},
                                  {"items.csv": galleries.TITLE, "index.json.partial": b"{", "lock": b""},
                                  {"items.csv": galleries.TITLE, "index.json.77.tmp": b"{", "lock": b""}])  # fmt: skip
def test_an_interrupted_creation_goes_on(left, tmp_path):
    for name, data in left.items():
        (tmp_path / name).write_bytes(data)
    with Index.open(tmp_path, ABOUT) as index:
        index.append(*some_rows(0))
    check_index(tmp_path, [0])
    assert sorted(os.listdir(tmp_path)) == ["features.npy", "index.json", "items.csv", "lock"]


def test_places_that_cannot_become_an_index(tmp_path, monkeypatch):
    (tmp_path / "q.jpg").write_bytes(b"")
    for path in (tmp_path / "q.jpg", tmp_path / "q.jpg" / "i"):
        with pytest.raises(ValueError, match="is a file, or lies in one; an index is a folder"):
            Index.open(path, ABOUT)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(galleries, "replacing", full)
    with pytest.raises(OSError, match="i: cannot be written to .No space left on device.; make room"):
        Index.open(tmp_path / "i", ABOUT)
    monkeypatch.undo()
    Index.open(tmp_path / "i", ABOUT).close()


def test_features_of_another_precision_are_not_added(tmp_path):
    Index.open(tmp_path / "i", ABOUT).close()
    with pytest.raises(ValueError, match="holds features of fp32, m.onnx gives int8"):
        Index.open(tmp_path / "i", ABOUT | {"precision": "int8"})


@pytest.mark.parametrize("rows", [np.zeros((2, DIM + 1), np.float32), np.zeros((2, DIM)),
                                  np.zeros((2, DIM), np.float16), np.zeros(2 * DIM, np.float32),
                                  np.zeros((2, DIM), np.float32, "F")])  # fmt: skip
def test_features_that_do_not_fit_index_json_are_refused(rows, tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1))
    np.save(tmp_path / "i" / "features.npy", rows)
    for use in (Index.read, lambda folder: Index.open(folder, ABOUT)):
        with pytest.raises(ValueError, match=r"features.npy holds .*, index.json tells float32 \(N, 8\)"):
            use(tmp_path / "i")


@pytest.mark.parametrize("row, told", [
    (np.full(DIM, np.nan), "nan"), (np.full(DIM, np.inf), "inf"), (np.zeros(DIM), "0"), (feature_of(1) * 1.05, "1.05"),
    (np.where(np.arange(DIM) == 3, np.nan, feature_of(1)), "nan"),
])  # fmt: skip
def test_an_index_with_rows_that_cannot_be_ranked_is_refused(row, told, tmp_path, monkeypatch):
    monkeypatch.setattr(galleries, "GALLERY_BLOCK", 2)
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1, 2, 3))
    with open(tmp_path / "i" / "features.npy", "r+b") as file:
        file.seek(galleries.HEAD + 4 * DIM * 3)
        file.write(row.astype(np.float32).tobytes())
    for use in (Index.read, lambda folder: Index.open(folder, ABOUT)):
        with pytest.raises(ValueError, match=f"row 3 of features.npy, /x/3.jpg, is of length {told} instead of 1"):
            use(tmp_path / "i")


@pytest.mark.parametrize("name", ["lock", "features.npy", "items.csv", "index.json"])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
@pytest.mark.parametrize("made", [True, False])
def test_nothing_is_written_through_links_and_no_pipe_is_waited_for(name, kind, made, tmp_path):
    """Readers may follow links, in an index that is there."""
    folder, target = tmp_path / "i", tmp_path / "target"
    if made:
        with Index.open(folder, ABOUT) as index:
            index.append(*some_rows(0, 1))
        target.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
    else:
        folder.mkdir()
        target.write_bytes(b"")
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(target if kind == "link" else tmp_path / "nowhere")
    before = target.read_bytes()
    with pytest.raises(ValueError, match=f"i: {name} is not a file, but a (link|pipe)"):
        Index.open(folder, ABOUT)
    assert target.read_bytes() == before and not (tmp_path / "nowhere").exists()
    if made and kind == "link":
        assert len(Index.read(folder)) == 2
    elif made and kind == "pipe":
        with pytest.raises(ValueError, match="is not a file, but a pipe"):
            Index.read(folder)


@pytest.mark.parametrize("name, size", [("features.npy", galleries.HEAD + 4 * DIM * 2 - 3), ("items.csv", 70)])
def test_rows_that_were_cut_off_are_reported(name, size, tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1, 2))
    os.truncate(tmp_path / "i" / name, size)
    with pytest.warns(UserWarning, match="i: the last 2 of 3 rows are gone"):
        check_index(tmp_path / "i", None)
    with pytest.warns(UserWarning, match="the last 2 of 3 rows are gone"):
        Index.open(tmp_path / "i", ABOUT).close()
    check_index(tmp_path / "i", [0])  # said once


def test_an_index_of_another_model_is_refused_with_both_hashes(tmp_path):
    Index.open(tmp_path / "i", ABOUT).close()
    with pytest.raises(ValueError, match=f"made by another model: m.onnx.*{'a' * 64}.*x.onnx.*{'b' * 64}.*anew"):
        Index.open(tmp_path / "i", ABOUT | {"weights_sha256": "b" * 64, "model": "x.onnx"})
    with pytest.raises(ValueError, match="another model"):
        Index.open(tmp_path / "i", ABOUT | {"feature_dim": 9})
    Index.open(tmp_path / "i", ABOUT).close()  # the lock was given back


def test_rows_that_are_removed_while_a_reader_reads(tmp_path, monkeypatch):
    """The reader has the old features.npy open and has read items.csv, when both are replaced."""
    with Index.open(tmp_path / "i", ABOUT) as writer:
        writer.append(*some_rows(*range(6)))
        samestat, waiting = os.path.samestat, [[1, 4], [1]]

        def remove_first(a, b):
            if waiting:
                kept = waiting.pop(0)
                writer.keep([number for number, row in enumerate(writer.rows) if row.pid in kept])
            return samestat(a, b)

        monkeypatch.setattr(os.path, "samestat", remove_first)
        check_index(tmp_path / "i", [1])


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "index.json").unlink(), "is not an index: it has no index.json"),
    (lambda f: (f / "features.npy").unlink(), "it has no features.npy"),
    (lambda f: (f / "index.json").write_text("{"), "cannot be read as an index"),
    (lambda f: (f / "index.json").write_text("{}"), "cannot be read as an index"),
    (lambda f: (f / "index.json").write_text('{"schema": 1, "feature_dim": 0}'), "feature_dim is 0"),
    (lambda f: (f / "items.csv").write_bytes(galleries.TITLE + b"x" * 140000 + b"\n"), "cannot be read as an index"),
    (lambda f: (f / "index.json").write_text('{"schema": 2}'), "schema 2, this search.py reads 1"),
    (lambda f: (f / "features.npy").write_bytes(b"x" * 400), "not what index wrote"),
    (lambda f: (f / "items.csv").write_text("a,b\n"), "not what index wrote"),
    (lambda f: (f / "items.csv").write_text((f / "items.csv").read_text() + "x,y\n"), "cannot be read as an index"),
])  # fmt: skip
def test_spoilt_indices_are_refused(spoil, message, tmp_path):
    with Index.open(tmp_path / "i", ABOUT) as index:
        index.append(*some_rows(0, 1))
    spoil(tmp_path / "i")
    with pytest.raises(ValueError, match=message):
        Index.read(tmp_path / "i")


def test_a_folder_of_other_things_is_no_place_for_an_index(tmp_path):
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="no index and not empty .it holds a.jpg"):
        Index.open(tmp_path / "crops", ABOUT)
    with pytest.raises(ValueError, match="no such folder"):
        Index.read(tmp_path / "nowhere")
    assert os.listdir(tmp_path / "crops") == ["a.jpg"]


def test_an_index_of_an_earlier_version_is_read_searched_and_added_to(tmp_path):
    """tests/fixtures/index-before, made before searching/ was a folder: search.py index crops list.csv. What that
    version left in the middle of its work is cut off and cleared away too."""
    folder = shutil.copytree(REPOSITORY / "tests" / "fixtures" / "index-before", tmp_path / "i")
    with Index.read(folder) as index:
        told = [(os.path.basename(row.path), *row[1:6], row.size) for row in index.rows]
        assert told[0] == ("0000_c3s1_000004_01.png", 0, "3", 4.0, "", 1, 19098)
        assert told[2] == ("0001_c2s1_000003_01.png", 1, "2", 3.0, "0001_c2s1", 1, 19087)
        assert told[5:] == [("plain, 名.png", None, "", 1.7e9, "", 1, 19107),
                            ("list.png", 7, "door", 1777638600.0, "visit", 1, 19104)]  # fmt: skip
        query = slow_feature(person(1, 9)).astype(np.float32)[None]
        indices, similarities = galleries.top_k(query, index.features, 3)
        assert indices.tolist() == [[1, 2, 0]]
        np.testing.assert_allclose(similarities, [[0.999859, 0.999771, 0.589754]], atol=1e-5)  # what it gave then
        about, before = index.about, np.array(index.features)
    (folder / "items.csv.new.partial").write_text("half")
    (folder / "features.npy.new").write_bytes(b"half")
    with open(folder / "items.csv", "a") as file:
        file.write("/data/shop/crops/0003_c1s1_00")
    with Index.open(folder, about) as index:
        index.append(query, [Row("/data/shop/new.png")])
        index.keep([1, 2, 3, 7])
    with Index.read(folder) as index:
        assert [os.path.basename(row.path)[:7] for row in index.rows] == ["0001_c1", "0001_c2", "0002_c1", "new.png"]
        assert np.array_equal(index.features, np.concatenate([before[1:4], query]))
    assert sorted(os.listdir(folder)) == ["features.npy", "index.json", "items.csv", "lock"]
