"""Tests of search.py: the commands and the class, end to end with models of a few nodes.

python -m pytest tests/test_search.py
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_onnx import broken_images, person, write_model

import search


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny.onnx")


@pytest.fixture
def market(tmp_path):
    """Queries of persons 1 to 4 under camera 1. Gallery: 1 and 2 under two cameras each, nobody is 3, 4 under camera 1
    only; a distractor and junk."""
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    query.mkdir()
    gallery.mkdir()
    for pid in (1, 2, 3, 4):
        person(pid, 1).save(query / f"000{pid}_c1s1_000001_00.jpg")
    for pid in (1, 2):
        person(pid, 1).save(gallery / f"000{pid}_c1s1_000002_01.jpg")
        person(pid, 2).save(gallery / f"000{pid}_c2s1_000003_01.jpg")
    person(4, 1).save(gallery / "0004_c1s1_000006_01.jpg")
    person(3, 3).save(gallery / "0000_c3s1_000004_01.jpg")
    person(1, 3).save(gallery / "-1_c3s1_000005_01.jpg")
    return query, gallery


def command(model, query, gallery, out, *more):
    return ["--model", str(model), "--query", str(query), "--gallery", str(gallery), "--out", str(out),
            "--provider", "cpu", *more]  # fmt: skip


def read_csv(out):
    with open(out / "ranked.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- imports ----

@pytest.mark.parametrize("prelude", ["", "sys.modules.update(torch=None, torchvision=None, matplotlib=None);"])
def test_search_needs_neither_torch_nor_matplotlib(prelude, model, market, tmp_path):
    """Once watching what a whole search imports, once with both packages made unimportable."""
    argv = command(model, *market, tmp_path / "out")
    code = (f"import sys; {prelude} import search, visualize; search.main({argv!r}); "
            "bad = [m for m in ('torch', 'torchvision', 'matplotlib') if sys.modules.get(m)]; assert not bad, bad")
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(search.__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# ---- the command ----

def test_command_under_market1501_protocol(model, market, tmp_path, capsys):
    """By hand, all queries being of camera 1: query 1 may see 0001_c2, both 0002, the distractor and 0004, not 0001_c1
    and not junk. The same for 2. Query 3 has no match; the distractor, which looks like 3, is a wrong answer. The only
    match of query 4 is left out."""
    query, gallery = market
    broken_images(gallery)
    (gallery / "truncated.jpg").rename(gallery / "0001_c4s1_000009_01.jpg")
    out = tmp_path / "new" / "out"
    assert search.main(command(model, query, gallery, out, "--labels", "market1501", "--top", "3")) == 0
    printed = capsys.readouterr().out
    rows = read_csv(out)
    assert list(rows[0]) == ["query", "rank", "similarity", "gallery", "match"]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 4
    assert [int(Path(row["query"]).name[:4]) for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert rows[0]["gallery"] == str(gallery / "0001_c2s1_000003_01.jpg")
    assert rows[3]["gallery"] == str(gallery / "0002_c2s1_000003_01.jpg")
    assert rows[6]["gallery"] == str(gallery / "0000_c3s1_000004_01.jpg")
    assert [row["match"] for row in rows] == ["1", "0", "0", "1", "0", "0", *"000000"]
    a, b = (search.Extractor(model, "cpu")(Path(rows[0][key])) for key in ("query", "gallery"))
    assert float(rows[0]["similarity"]) == pytest.approx(float(a[0] @ b[0]), abs=1e-5)
    listed = {Path(row["gallery"]).name for row in rows[:3]}
    assert not listed & {"0001_c1s1_000002_01.jpg", "-1_c3s1_000005_01.jpg", "0001_c4s1_000009_01.jpg"}
    assert "rank-1: 2 of the 2 queries that have a match" in printed
    assert "runs on: CPUExecutionProvider" in printed and "images/s" in printed
    assert "2 images could not be read" in printed
    assert f"{gallery / '0001_c4s1_000009_01.jpg'}: image file is truncated" in printed
    assert f"{gallery / 'text.jpg'}: cannot identify" in printed
    with Image.open(out / "ranked.jpg") as picture:
        assert picture.format == "JPEG"


def test_command_without_labels_and_with_itself_as_gallery(model, market, tmp_path, capsys):
    """Each image but the query itself is ranked, also when one path goes through a symbolic link. No array is as
    large as --top says."""
    _, gallery = market
    (tmp_path / "link").symlink_to(gallery)
    assert search.main(command(model, tmp_path / "link", gallery, tmp_path / "out", "--top", str(10**13))) == 0
    rows = read_csv(tmp_path / "out")
    assert list(rows[0]) == ["query", "rank", "similarity", "gallery"]
    assert len(rows) == 7 * 6
    assert all(Path(row["query"]).name != Path(row["gallery"]).name for row in rows)
    assert f"--top {10**13} is more than the gallery's 7" in capsys.readouterr().out


def test_command_with_one_query_and_odd_names(model, market, tmp_path, capsys):
    name = "ein Bild, café 名前.png"
    person(2, 5).save(market[1] / name)
    person(2, 6).save(os.fsencode(market[1]) + b"/caf\xe9.png")  # not UTF-8
    assert search.main(command(model, market[0] / "0002_c1s1_000001_00.jpg", market[1], tmp_path / "out")) == 0
    assert name in capsys.readouterr().out
    data = (tmp_path / "out" / "ranked.csv").read_bytes()
    assert name.encode() in data and b"caf\xe9.png" in data


@pytest.mark.parametrize("query_pid, gallery_pid, match", [
    (1, 1, True), (1, 2, False), (1, 0, False), (0, 0, None), (-1, 5, None), (search.NO_LABEL, search.NO_LABEL, None),
    (1, search.NO_LABEL, None),
])  # fmt: skip
def test_is_match(query_pid, gallery_pid, match):
    assert search.is_match(query_pid, gallery_pid) is match


def test_more_queries_than_are_drawn(model, tmp_path, capsys, monkeypatch):
    drawn, draw = [], search.ranked_grid
    monkeypatch.setattr(search, "ranked_grid", lambda rows: drawn.extend(rows) or draw(rows))
    for pid in range(23):
        person(pid).save(tmp_path / f"{pid:02d}.png")
    assert search.main(command(model, tmp_path, tmp_path, tmp_path / "out", "--top", "22")) == 0
    assert len(read_csv(tmp_path / "out")) == 23 * 22
    printed = capsys.readouterr().out
    assert [len(ranked) for _, ranked in drawn] == [20] * 20
    assert "all 23 queries" in printed and "the first 20, 20 answers each" in printed


def fails(capsys, argv, code):
    """The message of a command that must end with this exit code."""
    with pytest.raises(SystemExit) as stop:
        search.main(argv)
    if code == 2:
        assert stop.value.code == 2
        return capsys.readouterr().err
    assert isinstance(stop.value.code, str)  # python prints it on stderr and exits with 1
    return stop.value.code


@pytest.mark.parametrize("more, message", [
    (["--top", "0"], "--top 0, --batch-size 32: both have to be at least 1"),
    (["--top", "ten"], "--top: invalid int value: 'ten'"),
    (["--batch-size", "-1"], "--batch-size -1: both have to be at least 1"),
    (["--provider", "gpu"], "invalid choice: 'gpu'"),
    (["--labels", "duke"], "invalid choice: 'duke'"),
    (["--galery", "x"], "unrecognized arguments: --galery x"),
])  # fmt: skip
def test_usage_errors(more, message, model, market, tmp_path, capsys):
    assert message in fails(capsys, [*command(model, *market, tmp_path / "out"), *more], 2)


def test_missing_flag(capsys):
    assert "required: --query, --gallery" in fails(capsys, ["--model", "m.onnx"], 2)


def test_bad_inputs(model, market, tmp_path, capsys):
    query, gallery = market
    empty, bad, out = tmp_path / "empty", tmp_path / "bad", tmp_path / "out"
    empty.mkdir()
    bad.mkdir()
    broken_images(bad)
    text = bad / "text.jpg"
    for argv, message in [
        (command(tmp_path / "no.onnx", query, gallery, out), "no.onnx: no such file"),
        (command(text, query, gallery, out), "text.jpg: onnxruntime cannot load"),
        (command(model, tmp_path / "no.jpg", gallery, out), "--query"),
        (command(model, query, tmp_path / "nowhere", out), "nowhere: no such file or folder"),
        (command(model, query, empty, out), "empty: no image in or below this folder"),
        (command(model, empty, gallery, out), "--query"),
        (command(model, query, gallery, text / "out"), "cannot write there (Not a directory)"),
        (command(model, query, gallery, text), "cannot write there (File exists)"),
        (command(model, query, gallery, "/proc"), "--out /proc: cannot write there"),
        (command(model, query, bad, out, "--labels", "market1501"), "--gallery: no name gives person and camera"),
        (command(model, query, bad, out), "nothing could be ranked"),
        (command(model, text, gallery, out), "nothing could be ranked"),
        (command(model, gallery / "-1_c3s1_000005_01.jpg", gallery / "-1_c3s1_000005_01.jpg", out), "nothing could"),
    ]:  # fmt: skip
        assert message in fails(capsys, argv, 1)
    printed = capsys.readouterr().out
    assert f"{text}: cannot identify" in printed  # listed even where nothing is left to rank


def test_unwritable_folder_is_found_before_the_work(market, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "Extractor", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(capsys, command("m.onnx", *market, tmp_path / "file" / "out"), 1)


def test_results_that_cannot_be_written(model, market, tmp_path, capsys):
    (tmp_path / "out" / "ranked.csv").mkdir(parents=True)
    assert "could not write the results" in fails(capsys, command(model, *market, tmp_path / "out"), 1)


def test_exit_codes_of_the_process(model, market, tmp_path):
    for more, code in (([], 0), (["--top", "0"], 2), (["--gallery", "nowhere"], 1)):
        argv = [sys.executable, search.__file__, *command(model, *market, tmp_path / "out"), *more]
        run = subprocess.run(argv, capture_output=True, text=True)
        assert run.returncode == code and "Traceback" not in run.stderr, run.stderr
