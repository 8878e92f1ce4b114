"""Tests of search.py: the commands and the class, end to end with models of a few nodes.

python -m pytest tests/test_search.py
"""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_onnx import (
    METADATA,
    SECOND,
    broken_images,
    cuda_usable,
    person,
    slow_feature,
    write_byte_model,
    write_clip_model,
    write_model,
)

import search
from searching import answers, sources


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
    code = (f"import sys; {prelude} import search, pictures; search.main({argv!r}); "
            "bad = [m for m in ('torch', 'torchvision', 'matplotlib') if sys.modules.get(m)]; assert not bad, bad")
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(search.__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_files_that_readme_tells_to_copy_suffice(model, market, tmp_path):
    """In a folder with nothing else of ours, every subcommand but calibrate, which needs a labelled set, runs."""
    repository = Path(search.__file__).parent
    readme = (repository / "README.md").read_text(encoding="utf-8")
    told = readme[readme.index("Searching needs no torch:") :].partition("the `.onnx` file")[0]
    (tmp_path / "deployed").mkdir()
    for name in re.findall(r"`(\w+(?:\.py|/))`", told):
        (shutil.copytree if name.endswith("/") else shutil.copy)(repository / name, tmp_path / "deployed" / name)
    html = ["--html", str(tmp_path / "r.html"), "--picture", str(tmp_path / "r.jpg")]
    image = str(next(market[0].iterdir()))
    for argv, code in ((index(model, tmp_path / "i", market[1]), 0),
                       ([*query(model, tmp_path / "i", market[0]), *html], 0),
                       (["verify", image, image, "--model", str(model)], search.UNKNOWN)):  # fmt: skip
        run = subprocess.run([sys.executable, "search.py", *argv], cwd=tmp_path / "deployed", capture_output=True,
                             text=True)  # fmt: skip
        assert run.returncode == code, run.stderr


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


def test_paths_are_told_as_they_were_given(model, market, tmp_path, monkeypatch, capsys):
    """Relative, and through a link. A query that is junk is ranked, and nobody knows whether an answer is right."""
    (market[0] / "-1_c1s1_000009_00.jpg").write_bytes((market[0] / "0001_c1s1_000001_00.jpg").read_bytes())
    (market[1] / "text.jpg").write_text("no image")
    (tmp_path / "link").symlink_to(market[1])
    monkeypatch.chdir(tmp_path)
    search.main([*command(model, "./query/", "link", "out"), "--labels", "market1501"])
    rows = read_csv(tmp_path / "out")
    assert {os.path.dirname(row["query"]) for row in rows} == {"query"}
    assert {os.path.dirname(row["gallery"]) for row in rows} == {"link"}
    assert {row["match"] for row in rows if row["query"] == "query/-1_c1s1_000009_00.jpg"} == {""}
    printed = capsys.readouterr().out
    assert "images: 5 query, 6 gallery, 1 unreadable" in printed and "\n  link/text.jpg: cannot identify" in printed


def test_a_model_of_tracklets_ranks_each_image_by_itself(market, tmp_path):
    """Also two that their names tell to be of one tracklet: who keeps tracklets keeps an index."""
    person(2, 7).save(market[1] / "0002_c2s1_000004_01.jpg")
    model = write_clip_model(tmp_path / "clip.onnx")
    search.main([*command(model, market[0] / "0002_c1s1_000001_00.jpg", market[1], tmp_path / "out"),
                 "--labels", "market1501"])  # fmt: skip
    assert {Path(row["gallery"]).name for row in read_csv(tmp_path / "out")} == {
        path.name for path in market[1].iterdir()} - {"0002_c1s1_000002_01.jpg", "-1_c3s1_000005_01.jpg"}


def test_command_with_one_query_and_odd_names(model, market, tmp_path, capsys):
    name = "ein Bild, café 名前.png"
    person(2, 5).save(market[1] / name)
    person(2, 6).save(os.fsencode(market[1]) + b"/caf\xe9.png")  # not UTF-8
    assert search.main(command(model, market[0] / "0002_c1s1_000001_00.jpg", market[1], tmp_path / "out")) == 0
    assert name in capsys.readouterr().out
    data = (tmp_path / "out" / "ranked.csv").read_bytes()
    assert name.encode() in data and b"caf\xe9.png" in data


@pytest.mark.parametrize("query_pid, gallery_pid, match", [
    (1, 1, True), (1, 2, False), (1, 0, False), (-1, 5, None), (None, None, None), (1, None, None), (-1, -1, None),
])  # fmt: skip
def test_is_match(query_pid, gallery_pid, match):
    for nobody in (False, True):
        assert answers.is_match(query_pid, gallery_pid, nobody) is match
    for other in (0, 1):  # person 0 is one like others, but where a set declares it to be nobody
        assert answers.is_match(0, other) is (other == 0) and answers.is_match(0, other, nobody=True) is None


def test_more_queries_than_are_drawn(model, tmp_path, capsys, monkeypatch):
    drawn, draw = [], answers.ranked_grid
    monkeypatch.setattr(answers, "ranked_grid", lambda rows: drawn.extend(rows) or draw(rows))
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


def test_bad_inputs(model, market, tmp_path, capsys):
    query, gallery = market
    empty, bad, out = tmp_path / "empty", tmp_path / "bad", tmp_path / "out"
    empty.mkdir()
    bad.mkdir()
    broken_images(bad)
    text = bad / "text.jpg"
    (tmp_path / "list.csv").write_text("path\n")
    for argv, message in [
        (command(tmp_path / "no.onnx", query, gallery, out), "no.onnx: no such file; a model is an .onnx file, which"),
        (command(tmp_path, query, gallery, out), f"{tmp_path}: is a folder; a model is an .onnx file, which export.py"),
        (command(text, query, gallery, out), "text.jpg: onnxruntime cannot load"),
        (command(model, tmp_path / "list.csv", gallery, out), "list.csv: this takes a folder or an image; lists are"),
        (command(model, tmp_path / "no.jpg", gallery, out), "--query"),
        (command(model, query, tmp_path / "nowhere", out), "nowhere: no such file or folder"),
        (command(model, query, empty, out), "empty: no image in or below this folder"),
        (command(model, empty, gallery, out), "--query"),
        (command(model, query, gallery, text / "out"), "cannot write there (Not a directory)"),
        (command(model, query, gallery, text), "cannot write there (File exists)"),
        (command(model, query, gallery, "/proc"), "--out /proc: cannot write there"),
        (command(model, query, bad, out, "--labels", "market1501"), "--gallery: --labels market1501: no file name "
         "begins as 0002_c1s1_000451_03.jpg does (person 2, camera 1); the first is text.jpg. --labels mars reads "),
        (command(model, query, bad, out), "nothing could be ranked"),
        (command(model, text, gallery, out), "nothing could be ranked"),
        (command(model, gallery / "-1_c3s1_000005_01.jpg", gallery / "-1_c3s1_000005_01.jpg", out), "nothing could"),
    ]:  # fmt: skip
        assert message in fails(capsys, argv, 1)
    printed = capsys.readouterr().out
    assert f"{text}: cannot identify" in printed  # listed even where nothing is left to rank


def test_images_that_vanish_between_embedding_and_drawing(model, market, tmp_path, capsys, monkeypatch):
    rank = search.top_k

    def vanish(*arguments):
        shutil.rmtree(market[1])
        return rank(*arguments)

    monkeypatch.setattr(search, "top_k", vanish)
    assert search.main(command(model, *market, tmp_path / "out", "--top", "2")) == 0
    printed = capsys.readouterr().out
    assert len(read_csv(tmp_path / "out")) == 8 and "0001_c2s1_000003_01.jpg" in printed
    assert "0001_c2s1_000003_01.jpg: not drawn: " in printed
    with Image.open(tmp_path / "out" / "ranked.jpg") as picture:
        assert picture.format == "JPEG"


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


def test_the_other_provider_is_an_error(model, market, tmp_path, capsys):
    if cuda_usable():
        pytest.skip("CUDA works on this machine")
    argv = [*command(model, *market, tmp_path / "out"), "--provider", "cuda"]
    assert "cannot use CUDA here" in fails(capsys, argv, 1)


# ---- index ----

def index(model, folder, *sources):
    return ["index", *map(str, sources), "--model", str(model), "--index", str(folder), "--provider", "cpu"]


def rows_of(folder):
    """{file name: its row} and the features, which have to be those of the images."""
    with search.Index.read(folder) as found:
        rows, features = found.rows, np.array(found.features)
    assert len({row.path for row in rows}) == len(rows) == len(features)
    for row, feature in zip(rows, features, strict=True):
        if os.path.exists(row.path):
            with Image.open(row.path) as image:
                np.testing.assert_allclose(feature, slow_feature(image), atol=1e-5)
    return {os.path.basename(row.path): row for row in rows}


def test_index_again_adds_changes_and_prunes(model, market, tmp_path, capsys):
    _, gallery = market
    folder = tmp_path / "i"
    assert search.main([*index(model, folder, gallery), "--labels", "market1501"]) == 0
    assert len(rows_of(folder)) == 6  # without junk
    assert rows_of(folder)["0002_c2s1_000003_01.jpg"][1:5] == (2, "2", 3, "0002_c2s1")
    stamp = (folder / "items.csv").stat()
    assert search.main([*index(model, folder, gallery), "--labels", "market1501"]) == 0
    assert "6 listed, 0 new, 0 changed, 6 there already" in capsys.readouterr().out
    assert (folder / "items.csv").stat() == stamp

    person(7).save(gallery / "0007_c1s1_000001_01.jpg")
    person(8).save(gallery / "0001_c1s1_000002_01.jpg")  # other pixels under an old name
    (gallery / "0004_c1s1_000006_01.jpg").unlink()
    broken_images(gallery)
    assert search.main([*index(model, folder, gallery), "--labels", "market1501"]) == 0
    printed = capsys.readouterr().out
    assert "8 listed, 3 new, 1 changed, 4 there already" in printed and "7 rows now" in printed
    gone = gallery / "0004_c1s1_000006_01.jpg"
    assert f"1 row is of files that are gone, such as {gone}" in printed and "2 images could not be read" in printed
    assert set(rows_of(folder)) >= {"0007_c1s1_000001_01.jpg", "0004_c1s1_000006_01.jpg"}

    (gallery / "0007_c1s1_000001_01.jpg").write_text("spoilt")
    assert search.main([*index(model, folder, gallery), "--labels", "market1501", "--prune"]) == 0
    printed = capsys.readouterr().out
    assert "2 new, 1 changed, 5 there already" in printed and "5 rows now, 2 removed" in printed
    assert not set(rows_of(folder)) & {"0007_c1s1_000001_01.jpg", "0004_c1s1_000006_01.jpg"}


def test_index_learns_labels_without_embedding_again(model, market, tmp_path, capsys):
    search.main(index(model, tmp_path / "i", market[1]))
    search.main([*index(model, tmp_path / "i", market[1]), "--labels", "market1501"])
    assert "0 new, 0 changed" in capsys.readouterr().out
    assert rows_of(tmp_path / "i")["0001_c2s1_000003_01.jpg"].camid == "2"


def test_a_run_that_knows_less_leaves_what_is_known(model, market, tmp_path, capsys):
    """Once with labels and a list, then without: persons, cameras, times, tracklets stay, also of a file that changed;
    the time of a file that nothing else told follows the file."""
    folder, name = tmp_path / "i", "0001_c2s1_000003_01.jpg"
    (market[1] / "-1_c3s1_000005_01.jpg").unlink()  # without labels it is not known for junk
    (tmp_path / "list.csv").write_text(f"path,time\n{market[1] / name},77\n")
    search.main([*index(model, folder, market[1], tmp_path / "list.csv"), "--labels", "market1501"])
    before = rows_of(folder)
    assert before[name][1:5] == (1, "2", 77, "0001_c2s1")
    search.main(index(model, folder, market[1]))
    assert rows_of(folder) == before and "0 new, 0 changed" in capsys.readouterr().out
    person(9).save(market[1] / name)
    search.main(index(model, folder, market[1]))
    after = rows_of(folder)
    assert after[name][1:5] == (1, "2", 77, "0001_c2s1") and after[name].mtime != before[name].mtime

    person(8).save(tmp_path / "plain.png")
    for seconds in (10, 20):
        os.utime(tmp_path / "plain.png", (seconds, seconds))
        search.main(index(model, tmp_path / "j", tmp_path / "plain.png"))
        assert rows_of(tmp_path / "j")["plain.png"].time == seconds


def test_prune_of_an_emptied_folder_and_alone(model, market, tmp_path, capsys):
    folder, crops = tmp_path / "i", market[1]
    search.main(index(model, folder, crops))
    for path in sorted(crops.iterdir())[:5]:
        path.unlink()
    assert search.main(["index", "--prune", "--index", str(folder)]) == 0
    assert "5 rows removed, 2 left" in capsys.readouterr().out and len(rows_of(folder)) == 2
    assert search.main(["index", "--prune", "--index", str(folder)]) == 0  # again: nothing to do is no failure
    for path in crops.iterdir():
        path.unlink()
    assert "no image in or below" in fails(capsys, index(model, folder, crops), 1)
    assert len(rows_of(folder)) == 2
    assert search.main([*index(model, folder, crops), "--prune"]) == 0
    assert "0 rows now, 2 removed" in capsys.readouterr().out and not rows_of(folder)


def test_the_empty_path_removes_nothing(model, market, tmp_path, capsys, monkeypatch):
    search.main(index(model, tmp_path / "i", market[1]))
    monkeypatch.chdir(market[1])
    message = fails(capsys, ["index", "--index", str(tmp_path / "i"), "--remove", "x", ""], 2)
    assert "--remove '': an empty path" in message and len(rows_of(tmp_path / "i")) == 7


def test_rows_that_were_cut_off_are_told_and_made_again(model, market, tmp_path, capsys):
    folder = tmp_path / "i"
    search.main(index(model, folder, market[1]))
    os.truncate(folder / "features.npy", 128 + 4 * 24 * 5)
    assert search.main(query(model, folder, market[0])) == 0
    told = f"{folder}: the last 2 of 7 rows are gone"
    assert capsys.readouterr().err.splitlines()[-1].startswith(told)  # and not where in the code
    search.main(index(model, folder, market[1]))
    captured = capsys.readouterr()
    assert told in captured.err and "2 new, 0 changed" in captured.out and len(rows_of(folder)) == 7


def test_index_remove(model, market, tmp_path, capsys, monkeypatch):
    query, gallery = market
    search.main(index(model, tmp_path / "i", query, gallery))
    monkeypatch.chdir(gallery)
    remove = ["index", "--index", str(tmp_path / "i"), "--remove"]
    assert search.main([*remove, str(query), "0004_c1s1_000006_01.jpg", "nowhere"]) == 0
    printed = capsys.readouterr().out
    assert "5 rows removed, 6 left" in printed and "nowhere: no row of it or below it" in printed
    assert len(rows_of(tmp_path / "i")) == 6
    assert search.main([*remove, "nowhere"]) == 1


SLOW = """
import sys, time
import search
embed = search.Extractor.run
def run(self, rows):
    time.sleep(0.01)
    return embed(self, rows)
search.Extractor.run, search.COMMIT = run, 0.02
search.main(sys.argv[1:])
"""


def draw_crops(folder, count):
    """The folder, new, with that many small images: 00.png, 01.png, ..."""
    folder.mkdir()
    for number in range(count):
        person(number, size=(16, 32)).save(folder / f"{number:02}.png")
    return folder


def test_a_killed_index_goes_on(model, tmp_path):
    """kill -9 in the middle of the work, twice; then the same command: each image is there once, in order."""
    crops, folder = draw_crops(tmp_path / "crops", 60), tmp_path / "i"
    argv, counts = [*index(model, folder, crops), "--batch-size", "2"], []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SLOW, *argv], cwd=Path(search.__file__).parent,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            lines = (folder / "items.csv").read_bytes().count(b"\n") - 1 if (folder / "items.csv").exists() else 0
            if lines > (counts[-1] if counts else 0) + 4:
                break
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -9
        counts.append(len(rows_of(folder)))
    assert 0 < counts[0] < counts[1] < 60
    assert search.main(argv) == 0
    assert list(rows_of(folder)) == [f"{number:02}.png" for number in range(60)]
    assert np.load(folder / "features.npy").shape == (60, 24)


FULL = """
import resource, sys
import search
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
search.COMMIT = 0
search.main(sys.argv[1:])
"""


def test_a_full_disk_is_told_and_the_work_goes_on_later(model, tmp_path):
    """No file may grow beyond 2,000 bytes: 19 of 30 features (96 bytes each) fit."""
    crops, folder = draw_crops(tmp_path / "crops", 30), tmp_path / "i"
    argv = [*index(model, folder, crops), "--batch-size", "3"]
    run = subprocess.run([sys.executable, "-c", FULL, *argv], cwd=Path(search.__file__).parent, capture_output=True,
                         text=True)  # fmt: skip
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "could not write (File too large); the" in run.stderr and "start the same command again" in run.stderr
    assert 0 < len(rows_of(folder)) < 20
    assert search.main(argv) == 0
    assert list(rows_of(folder)) == [f"{number:02}.png" for number in range(30)]


def test_a_gallery_that_changes_while_it_is_read(model, tmp_path, capsys, monkeypatch):
    """After the files were listed one vanishes, one grows, one is written anew; none is fatal, and the next run sees
    what changed."""
    crops, folder = tmp_path / "crops", tmp_path / "i"
    crops.mkdir()
    for number in range(4):
        person(number).save(crops / f"{number}.png")
    def find_then_change(*arguments, **flags):
        found = find(*arguments, **flags)
        (crops / "0.png").unlink()
        person(9).save(crops / "1.png")
        return found

    find = sources.find_rows
    monkeypatch.setattr(sources, "find_rows", find_then_change)
    assert search.main(index(model, folder, crops)) == 0
    printed = capsys.readouterr().out
    assert f"{crops / '0.png'}: " in printed and "No such file" in printed
    assert f"1 image changed while being read; the next run reads them again:\n  {crops / '1.png'}\n" in printed
    assert "1 image could not be read, left out:" in printed and "3 rows now" in printed
    monkeypatch.undo()
    search.main(index(model, folder, crops))
    assert "0 new, 1 changed, 2 there already" in capsys.readouterr().out
    assert list(rows_of(folder)) == ["1.png", "2.png", "3.png"]


def test_index_of_odd_files(model, tmp_path, capsys):
    """Bombs, empty files and broken ones are listed; animated, CMYK, palette and turned images are read; so are names
    with spaces, commas, other alphabets, and bytes that are not UTF-8."""
    crops, folder = tmp_path / "crops", tmp_path / "i"
    crops.mkdir()
    broken_images(crops)
    (crops / "empty.png").write_bytes(b"")
    Image.new("1", (8192, 8193)).save(crops / "bomb.png")
    Image.new("1", (14000, 14000)).save(crops / "larger bomb.png")  # Pillow itself refuses it
    exif = Image.Exif()
    exif[0x0112] = 6
    person(1).save(crops / "turned.jpg", exif=exif)
    person(2).convert("CMYK").save(crops / "cmyk.jpg")
    person(3).convert("P").save(crops / "palette.png")
    person(4).save(crops / "moving.webp", save_all=True, append_images=[person(5)])
    person(6).save(crops / 'a, "b"  c 名前.png')
    person(7).save(os.fsencode(crops) + b"/caf\xe9.png")
    assert search.main(index(model, folder, crops)) == 0
    assert len(rows_of(folder)) == 6
    printed = capsys.readouterr().out
    assert "5 images could not be read" in printed and "bomb.png: 8192 x 8193 pixels are more than" in printed
    search.main(index(model, folder, crops))
    assert "0 new" not in capsys.readouterr().out  # what could not be read is tried again
    assert search.main([*query(model, folder, crops / "cmyk.jpg"), "--html", str(tmp_path / "r.html"), "--csv",
                        str(tmp_path / "r.csv"), "--jsonl", str(tmp_path / "r.jsonl"), "--picture",
                        str(tmp_path / "r.png")]) == 0  # fmt: skip
    assert b"caf\xe9.png" in (tmp_path / "r.csv").read_bytes() and "名前" in (tmp_path / "r.html").read_text("utf-8")


def test_an_index_of_another_model(model, market, tmp_path, capsys):
    other = write_model(tmp_path / "other.onnx", METADATA | {"weights_sha256": "f" * 64})
    search.main(index(model, tmp_path / "i", market[1]))
    for argv in (index(other, tmp_path / "i", market[0]), query(other, tmp_path / "i", market[0])):
        message = fails(capsys, argv, 1)
        assert "0" * 64 in message and "f" * 64 in message and "another folder" in message
    rounded = write_model(tmp_path / "int8.onnx", SECOND | {"precision": "int8"})
    assert "features of fp32, " in fails(capsys, index(rounded, tmp_path / "i", market[0]), 1)
    capsys.readouterr()
    assert search.main(query(rounded, tmp_path / "i", market[0])) == 0
    assert "note: the index holds fp32 features, the model gives int8" in capsys.readouterr().out


def test_an_index_of_tracklets(tmp_path, capsys):
    """A model of tracklets makes a row of each; an image queries it as a tracklet of one frame."""
    model, folder = write_clip_model(tmp_path / "clip.onnx"), tmp_path / "i"
    crops = draw_tracklets(tmp_path / "crops", {pid: range(pid) for pid in (1, 2, 3)})
    assert search.main([*index(model, folder, crops), "--video"]) == 0
    with search.Index.read(folder) as found:
        assert [(os.path.basename(os.path.dirname(row.path)), row.frames) for row in found.rows] == [
            ("1", 1), ("2", 2), ("3", 3)]  # fmt: skip
    search.main([*index(model, folder, crops), "--video"])
    assert "0 new, 0 changed, 3 there already" in capsys.readouterr().out
    person(2, 9).save(crops / "2" / "9.png")  # the tracklet grows
    search.main([*index(model, folder, crops), "--video"])
    assert "0 new, 1 changed, 2 there already" in capsys.readouterr().out
    person(3, 5).save(tmp_path / "q.png")
    search.main([*query(model, folder, tmp_path / "q.png"), "--csv", str(tmp_path / "r.csv")])
    with open(tmp_path / "r.csv", newline="") as file:
        assert next(csv.DictReader(file))["gallery"] == str(crops / "3" / "0.png")
    verify = ["verify", str(crops / "3"), str(tmp_path / "q.png"), "--model", str(model), "--provider", "cpu"]
    assert search.main(verify) == search.UNKNOWN


def draw_tracklets(folder, frames):
    """A folder per person, with an image for each of the frames that `frames` lists: {pid: frames}."""
    for pid, numbers in frames.items():
        (folder / str(pid)).mkdir(parents=True)
        for number in numbers:
            person(pid, number).save(folder / str(pid) / f"{number}.png")
    return folder


def frames_of(folder):
    """{tracklet's last part: (first frame, frames)} of an index of tracklets, which stand there once."""
    with search.Index.read(folder) as found:
        rows = {os.path.basename(row.tracklet): (os.path.basename(row.path), row.frames) for row in found.rows}
        assert len(rows) == len(found.rows)
        return rows


def test_a_tracklet_stays_one_row_when_its_first_frame_changes(tmp_path, capsys):
    model, folder = write_clip_model(tmp_path / "clip.onnx"), tmp_path / "i"
    crops = draw_tracklets(tmp_path / "crops", {1: (2, 3, 4), 2: (2, 3, 4)})
    argv = [*index(model, folder, crops), "--video"]
    search.main(argv)
    person(1, 1).save(crops / "1" / "1.png")  # sorts first
    (crops / "2" / "2.png").unlink()  # was the first
    search.main(argv)
    assert "0 new, 2 changed, 0 there already" in capsys.readouterr().out
    assert frames_of(folder) == {"1": ("1.png", 4), "2": ("3.png", 2)}
    embed = search.Extractor(model, "cpu")
    with search.Index.read(folder) as found:
        for row, feature in zip(found.rows, found.features, strict=True):
            frames = sorted(Path(row.tracklet).iterdir())
            np.testing.assert_allclose(feature, embed([frames])[0], atol=1e-6)
    (tmp_path / "list.csv").write_text("path,pid\n" + "".join(f"crops/2/{n}.png,7\n" for n in (3, 4)))
    search.main([*index(model, folder, crops, tmp_path / "list.csv"), "--video"])  # the person is learnt
    search.main(argv)  # and stays
    assert "0 new, 0 changed" in capsys.readouterr().out and frames_of(folder)["2"] == ("3.png", 2)
    with search.Index.read(folder) as found:
        assert [row.pid for row in found.rows] == [None, 7]
    (crops / "2" / "3.png").unlink()
    search.main(argv)  # knows less than the row, whose first frame is gone
    assert frames_of(folder) == {"1": ("1.png", 4), "2": ("4.png", 1)}
    (tmp_path / "list.csv").write_text("path,pid\ncrops/1/1.png,8\n")  # one frame of four is somebody else
    search.main([*index(model, folder, crops, tmp_path / "list.csv"), "--video"])
    with search.Index.read(folder) as found:
        assert sorted((row.path[-5:], row.pid or 0, row.frames) for row in found.rows) == [
            ("1.png", 8, 1), ("2.png", 0, 3), ("4.png", 7, 1)]  # fmt: skip
    assert "give --video, --labels or the list as before" in fails(capsys, index(model, folder, crops), 1)


@pytest.mark.parametrize("given, left", [("crops/1", {"2"}), ("crops/1/3.png", {"2"}), ("crops/1/2.png", {"2"}),
                                         ("crops/1/gone.png", {"2"}), ("crops/1/sub", {"1", "2"}),
                                         ("crops", set())])  # fmt: skip
def test_a_frame_or_the_folder_removes_a_tracklet(given, left, tmp_path):
    model, folder = write_clip_model(tmp_path / "clip.onnx"), tmp_path / "i"
    crops = draw_tracklets(tmp_path / "crops", {1: (2, 3), 2: (2, 3)})
    search.main([*index(model, folder, crops), "--video"])
    search.main(["index", "--index", str(folder), "--remove", str(tmp_path / given)])
    assert set(frames_of(folder)) == left
    shutil.rmtree(crops / "2")
    search.main(["index", "--index", str(folder), "--prune"])
    assert set(frames_of(folder)) == left - {"2"}


def test_a_frame_does_not_find_the_tracklet_it_lies_in(tmp_path):
    model, folder = write_clip_model(tmp_path / "clip.onnx"), tmp_path / "i"
    crops = draw_tracklets(tmp_path / "crops", {1: (2, 3), 2: (2, 3)})
    search.main([*index(model, folder, crops), "--video"])
    for source in (crops / "1" / "3.png", crops / "1"):
        answers_of(query(model, folder, source), tmp_path)
        lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
        assert [[hit["gallery"] for hit in line["results"]] for line in lines] == [
            [str(crops / "2" / "2.png")]] * (1 if source.suffix else 2)  # fmt: skip


# ---- query ----

def query(model, folder, source):
    return ["query", "--model", str(model), "--index", str(folder), "--query", str(source), "--provider", "cpu"]


@pytest.fixture
def shop(model, market, tmp_path):
    search.main([*index(model, tmp_path / "shop", market[1]), "--labels", "market1501"])
    return tmp_path / "shop"


def answers_of(argv, tmp_path):
    """{query's name: [gallery's name, ...]} out of the JSON lines, after checking the CSV against them."""
    assert search.main([*argv, "--jsonl", str(tmp_path / "r.jsonl"), "--csv", str(tmp_path / "r.csv")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    with open(tmp_path / "r.csv", newline="") as file:
        table = [(row["query"], int(row["rank"]), row["gallery"], float(row["similarity"]), row["match"])
                 for row in csv.DictReader(file)]  # fmt: skip
    assert table == [(line["query"], hit["rank"], hit["gallery"], hit["similarity"],
                      "" if hit["match"] is None else str(int(hit["match"])))
                     for line in lines for hit in line["results"]]  # fmt: skip
    return {Path(line["query"]).name: [Path(hit["gallery"]).name for hit in line["results"]] for line in lines}


def test_query_gives_what_the_single_command_gives(model, market, shop, tmp_path, capsys):
    """The same rows under the same rule, which the line names. Where only an index tells the persons, a flag asks for
    it; without it the line says so."""
    search.main(command(model, *market, tmp_path / "out", "--labels", "market1501", "--top", "3"))
    (printed, argv), expected = (capsys.readouterr().out, [*query(model, shop, market[0]), "--top", "3"]), {}
    found = answers_of([*argv, "--labels", "market1501"], tmp_path)
    line = "\nrank-1: 2 of the 2 queries that have a match (cosine, market1501 protocol)\n"
    assert line in printed and line in capsys.readouterr().out
    for row in read_csv(tmp_path / "out"):
        expected.setdefault(Path(row["query"]).name, []).append(Path(row["gallery"]).name)
    assert found == expected
    with open(tmp_path / "r.csv", newline="") as file:
        assert [row["match"] for row in csv.DictReader(file)] == [row["match"] for row in read_csv(tmp_path / "out")]
    search.main([*index(model, tmp_path / "q", market[0]), "--labels", "market1501"])
    argv = ["query", "--index", str(shop), "--query-index", str(tmp_path / "q"), "--top", "3"]
    for more in (["--leave-out-same-camera"], ["--labels", "market1501"]):
        capsys.readouterr()
        assert answers_of([*argv, *more], tmp_path) == expected and line in capsys.readouterr().out
    assert answers_of(argv, tmp_path) != expected
    told = "rank-1: 3 of the 3 queries that have a match (cosine, no protocol: rows of the query's person under its ca"
    assert told in capsys.readouterr().out
    search.main([*argv, "--camera", "2"])  # of the rows that are searched
    assert "rank-1: 2 of the 2 queries that have a match (cosine, no" in capsys.readouterr().out


def test_person_0_is_a_person_but_where_the_set_declares_otherwise(model, tmp_path, capsys):
    """Two images each of persons 0 to 3, in a list of one's own, then by names of Market-1501; told each time."""
    crops = tmp_path / "crops"
    draw_two_each(crops, "{:04}_c{}s1_000001_01.png", persons=3)
    for shot in (1, 2):
        person(9, shot).save(crops / f"0000_c{shot}s1_000001_01.png")
    names = sorted(os.listdir(crops))
    (tmp_path / "list.csv").write_text("path,pid,camid\n" + "".join(f"crops/{n},{int(n[:4])},{n[6]}\n" for n in names))
    person_0, nobody = "note: person 0, with {} images, is taken for a person", "person 0, with {} images, is nobody in"
    for source, labels, said, found in [(tmp_path / "list.csv", [], person_0, "8 of the 8"),
                                        (crops, ["--labels", "market1501"], nobody, "6 of the 6")]:  # fmt: skip
        assert search.main([*index(model, tmp_path / f"i{len(labels)}", source), *labels]) == 0
        assert said.format(2) in capsys.readouterr().out
        argv = [*query(model, tmp_path / f"i{len(labels)}", source), *labels, "--leave-out-same-camera"]
        answers_of([*argv, "--top", "1"], tmp_path)
        printed = capsys.readouterr().out
        assert said.format(4) in printed and f"rank-1: {found} queries that have a match" in printed
        hits = [json.loads(line)["results"][0]["match"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
        assert hits == ([True] * 8 if not labels else [None] * 2 + [True] * 6)
    assert search.main([*command(model, crops, crops, tmp_path / "out"), "--labels", "market1501"]) == 0
    printed = capsys.readouterr().out
    assert nobody.format(4) in printed and "rank-1: 6 of the 6 queries that have a match" in printed
    flags = ["--model", str(model), "--fmr", "0.5", "--provider", "cpu", "--labelled"]
    for source, said, persons in [([tmp_path / "list.csv"], person_0, 4), ([crops], person_0, 4),
                                  ([crops, "--labels", "market1501"], nobody, 3)]:  # fmt: skip
        assert search.main(["calibrate", *flags, *map(str, source)]) == 0
        printed = capsys.readouterr().out
        assert said.format(2) in printed and f"pairs: {persons} of one person" in printed
        assert f"of {persons} persons" in printed


def test_cameras_are_one_however_they_are_written(model, market, tmp_path, capsys):
    """In lists of gallery and queries, in filters, in an index of before."""
    lists = {}
    for side, folder, cameras in (("q", market[0], ["01", "c1", "1.0", " 1"]), ("g", market[1], ["Cam 1", "2"])):
        lines = [f"{path},{int(path.name[:4])},{cameras[number % len(cameras)]}\n"
                 for number, path in enumerate(sorted(folder.glob("0*")))]  # fmt: skip
        lists[side] = tmp_path / f"{side}.csv"
        lists[side].write_text("path,pid,camid\n" + "".join(lines))
    search.main(index(model, tmp_path / "i", lists["g"]))
    argv = [*query(model, tmp_path / "i", lists["q"]), "--leave-out-same-camera"]
    capsys.readouterr()
    answers_of([*argv, "--html", str(tmp_path / "r.html")], tmp_path)
    assert "no camera" not in capsys.readouterr().out and "camera 1<" in (tmp_path / "r.html").read_text()
    for line in map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines()):
        assert {hit["camid"] for hit in line["results"]} == {"1", "2"}
        pid = int(Path(line["query"]).name[:4])
        assert not [hit for hit in line["results"] if (hit["pid"], hit["camid"]) == (pid, "1")]
    for name in ("01", "cam1", "1.0"):
        found = answers_of([*query(model, tmp_path / "i", lists["q"]), "--not-camera", name], tmp_path)
        assert found == answers_of([*query(model, tmp_path / "i", lists["q"]), "--camera", "2"], tmp_path)
    capsys.readouterr()
    search.main([*argv, "--not-camera", "3", "c4"])
    assert "no row is of camera 3, 4; there are: 1, 2\n" in capsys.readouterr().err
    images = sorted(market[0].iterdir())
    lists["q"].write_text(f"path,pid,camid\n{images[0]},1,left\n{images[1]},2, right \n")
    search.main(argv)
    told = "note: no camera of the queries (left, right) is one of the gallery's (1, 2): none counts as the same camera"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("flags, names", [
    (["--camera", "2"], {"0001_c2", "0002_c2"}),
    (["--camera", "2", "3"], {"0001_c2", "0002_c2", "0000_c3"}),
    (["--not-camera", "1", "3"], {"0001_c2", "0002_c2"}),
    (["--after", "3", "--before", "4"], {"0001_c2", "0002_c2", "0000_c3"}),
    (["--before", "1970-01-01T00:00:02"], {"0001_c1", "0002_c1"}),
])  # fmt: skip
def test_filters(flags, names, model, market, shop, tmp_path):
    found = answers_of([*query(model, shop, market[0] / "0003_c1s1_000001_00.jpg"), *flags], tmp_path)
    assert {name[:7] for name in found["0003_c1s1_000001_00.jpg"]} == names


def test_a_filter_that_leaves_nothing_says_what_there_is(model, market, shop, capsys):
    message = fails(capsys, [*query(model, shop, market[0]), "--camera", "9"], 1)
    assert "no row of" in message and "its cameras: 1, 2, 3; its times: from 2 to 6" in message


def test_index_against_index_needs_no_model(model, market, shop, tmp_path, capsys):
    """The same answers as with the images, and rows that are in both are left out of their own ranking."""
    search.main([*index(model, tmp_path / "q", market[0]), "--labels", "market1501"])
    argv = ["query", "--index", str(shop), "--query-index"]
    found = answers_of([*argv, str(tmp_path / "q"), "--top", "2"], tmp_path)
    assert found == answers_of([*query(model, shop, market[0]), "--top", "2"], tmp_path)
    capsys.readouterr()
    own = answers_of([*argv, str(shop), "--tracklets", "gallery"], tmp_path)
    assert "6 queries, 6 of 6 rows searched, as 6 tracklets" in capsys.readouterr().out
    own = answers_of([*argv, str(shop)], tmp_path)
    assert len(own) == 6 and all(len(names) == 5 and name not in names for name, names in own.items())


def test_tracklets_are_averaged(model, tmp_path):
    """Two frames each of persons 1 and 3; the tracklets' similarity is that of the means."""
    crops, queries = tmp_path / "crops", tmp_path / "queries"
    crops.mkdir()
    queries.mkdir()
    for camid in (1, 2):
        person(1, camid).save(crops / f"0001_c1s1_00000{camid}_01.png")
        person(3, camid).save(crops / f"0003_c1s1_00000{camid}_01.png")
        person(1, camid + 4).save(queries / f"0001_c2s1_00000{camid}_01.png")
    search.main([*index(model, tmp_path / "i", crops), "--labels", "market1501"])
    argv = [*query(model, tmp_path / "i", queries), "--labels", "market1501", "--tracklets"]
    assert {name: len(hits) for name, hits in answers_of([*argv, "gallery"], tmp_path).items()} == {
        f"0001_c2s1_00000{camid}_01.png": 2 for camid in (1, 2)}  # fmt: skip
    assert {name: len(hits) for name, hits in answers_of([*argv, "query"], tmp_path).items()} == {
        "0001_c2s1_000001_01.png": 4}  # fmt: skip
    both = answers_of([*argv, "both"], tmp_path)
    assert both == {"0001_c2s1_000001_01.png": ["0001_c1s1_000001_01.png", "0003_c1s1_000001_01.png"]}
    embed = search.Extractor(model, "cpu")
    means = [embed([person(1, camid) for camid in camids]).mean(0) for camids in ((1, 2), (5, 6))]
    expected = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    hit = json.loads((tmp_path / "r.jsonl").read_text())["results"][0]
    assert hit["similarity"] == pytest.approx(expected, abs=1e-5)
    # a query that lies in the gallery does not find the tracklet it is a frame of, whichever frame it is
    for kind, left in (("gallery", 1), ("query", 2), ("both", 1)):
        argv = [*query(model, tmp_path / "i", crops), "--labels", "market1501", "--tracklets", kind]
        for name, hits in answers_of(argv, tmp_path).items():
            assert len(hits) == left and all(hit[:7] != name[:7] for hit in hits), (kind, name, hits)


def test_query_on_the_console(model, market, shop, capfd):
    """The table by default; with - nothing but the answers on standard output."""
    argv = [*query(model, shop, market[0]), "--labels", "market1501", "--top", "1"]
    assert search.main(argv) == 0
    printed = capfd.readouterr().out
    assert re.search(r"\n0001_c1s1_000001_00.jpg     1      0.99..  0001_c2s1_000003_01.jpg  right\n", printed)
    assert "rank-1: 2 of the 2 queries that have a match (cosine, market1501 protocol)\n" in printed
    assert search.main([*argv, "--jsonl", "-"]) == 0
    out, err = capfd.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 4 and "runs on: CPU" in err
    assert search.main([*argv, "--csv", "-"]) == 0
    assert len(list(csv.DictReader(capfd.readouterr().out.splitlines()))) == 4


def test_pictures_and_pages_are_made_and_gone_images_listed(model, market, shop, tmp_path, capsys):
    (market[1] / "0001_c1s1_000002_01.jpg").unlink()
    argv = [*query(model, shop, market[0]), "--picture", str(tmp_path / "r.jpg")]
    argv += ["--html", str(tmp_path / "new/r.html")]
    assert search.main(argv) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'r.jpg'}: all queries" in printed and f"{tmp_path / 'new/r.html'}: all queries" in printed
    assert f"{market[1] / '0001_c1s1_000002_01.jpg'}: not drawn" in printed
    with Image.open(tmp_path / "r.jpg") as picture:
        assert picture.format == "JPEG"
    assert "image cannot be read" in (tmp_path / "new/r.html").read_text()
    shutil.rmtree(market[1])  # nothing is left to draw but the queries: there is a picture still
    assert search.main(argv) == 0
    for flag, path, message in [
        ("--picture", "r.xyz", "--picture r.xyz: Pillow writes no such files; let the name end in .jpg or .png"),
        ("--html", str(tmp_path), f"--html {tmp_path}: this is a folder; name a file"),
        ("--html", "/dev/full", "could not write the results ([Errno 28]"),
    ]:
        assert message in fails(capsys, [*argv, flag, path], 1)


# ---- links, and names that a terminal would obey ----

@pytest.fixture
def linked(market, tmp_path):
    """The gallery and beside it: links to two of its files, to itself in a loop, to a folder with one more image, and
    one that leads nowhere."""
    crops, more = market[1], tmp_path / "more"
    more.mkdir()
    person(9).save(more / "0009_c1s1_000001_01.jpg")
    (crops / "0001_c5s1_000002_01.jpg").symlink_to(crops / "0001_c1s1_000002_01.jpg")
    (crops / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (crops / "loop").symlink_to(crops)
    (crops / "more").symlink_to(more)
    return crops


def test_links_are_treated_alike_by_all_commands(model, linked, tmp_path, capsys):
    """Junk left out, 7 images: the 6 of before, and the link under its own name. What leads nowhere is listed."""
    gone = f"{linked / 'gone.jpg'}: "
    assert search.main(command(model, linked, linked, tmp_path / "out")) == 0
    captured = capsys.readouterr().out
    assert "images: 8 query, 8 gallery, 2 unreadable" in captured and captured.count(gone) == 2
    labels = ["--labels", "market1501"]
    assert search.main([*index(model, tmp_path / "i", linked), *labels]) == 0
    assert "7 rows now" in (captured := capsys.readouterr().out) and gone in captured
    rows = rows_of(tmp_path / "i")
    assert rows["0001_c5s1_000002_01.jpg"].camid == "5" and "0009_c1s1_000001_01.jpg" not in rows
    assert search.main([*query(model, tmp_path / "i", linked), *labels]) == 0
    assert "8 queries, 7 of 7 rows searched" in (captured := capsys.readouterr().out) and gone in captured
    flags = ["--model", str(model), "--provider", "cpu", "--fmr", "0.9"]
    assert search.main(["calibrate", *flags, "--labelled", str(linked)]) == 0
    assert "from 7 images of 4 persons" in (captured := capsys.readouterr().out) and gone in captured
    (tmp_path / "link").symlink_to(linked)  # what is named may be a link
    assert search.main([*index(model, tmp_path / "i", tmp_path / "link"), *labels]) == 0
    assert "7 listed, 0 new, 0 changed" in capsys.readouterr().out
    verify = ["verify", str(tmp_path / "link" / "0001_c5s1_000002_01.jpg"), str(linked / "0001_c1s1_000002_01.jpg")]
    assert search.main([*verify, *flags[:4]]) == search.SAME
    assert "similarity 1.0000" in capsys.readouterr().out
    (linked / "0001_c1s1_000002_01.jpg").unlink()  # the link leads nowhere now
    assert search.main(["index", "--prune", "--index", str(tmp_path / "i")]) == 0
    assert "2 rows removed, 5 left" in capsys.readouterr().out


def test_the_frames_of_a_tracklet_may_be_links(tmp_path, capsys):
    model, crops, folder = write_clip_model(tmp_path / "clip.onnx"), tmp_path / "crops", tmp_path / "i"
    for path in draw_tracklets(tmp_path / "store", {1: (2, 3), 2: (2, 3)}).glob("*/*.png"):
        (crops / path.parent.name).mkdir(parents=True, exist_ok=True)
        (crops / path.parent.name / path.name).symlink_to(path)
    (crops / "3").symlink_to(tmp_path / "store" / "2")
    assert search.main([*index(model, folder, crops), "--video"]) == 0
    assert frames_of(folder) == {"1": ("2.png", 2), "2": ("2.png", 2)}
    capsys.readouterr()
    sides = [str(crops / "2"), str(crops / "3")]  # links to files, and a link to a folder
    assert search.main(["verify", *sides, "--model", str(model), "--provider", "cpu"]) == search.UNKNOWN
    assert "similarity 1.0000" in capsys.readouterr().out
    search.main([*index(model, tmp_path / "j", tmp_path / "store"), "--video"])
    answers_of(query(model, tmp_path / "j", crops / "1" / "3.png"), tmp_path)  # a link to a frame of the index
    results = json.loads((tmp_path / "r.jsonl").read_text())["results"]
    assert [hit["gallery"] for hit in results] == [str(tmp_path / "store" / "2" / "2.png")]


@pytest.mark.parametrize("linked_side", ["query", "gallery", "both"])
@pytest.mark.parametrize("flags", [[], ["--tracklets", "both"]])
def test_a_query_and_a_row_that_are_one_file_by_links_leave_each_other_out(linked_side, flags, model, market, tmp_path):
    crops, links, name = market[1], tmp_path / "links", "0001_c1s1_000002_01.jpg"
    links.mkdir()
    for path in sorted(crops.iterdir()):
        (links / path.name).symlink_to(path)
    (tmp_path / "other.jpg").symlink_to(crops / name)
    source = {"query": tmp_path / "other.jpg", "gallery": crops / name, "both": tmp_path / "other.jpg"}[linked_side]
    gallery = crops if linked_side == "query" else links
    search.main(index(model, tmp_path / "i", gallery))
    (found,) = answers_of([*query(model, tmp_path / "i", source), *flags], tmp_path).values()
    assert len(found) == 6 and name not in found
    search.main(command(model, source, gallery, tmp_path / "out"))
    assert [Path(row["gallery"]).name for row in read_csv(tmp_path / "out")] == found


ODD = ["a\x1b[31mred.png", "b\ttab.png", "c\x07bell\x9b.png", "d\u202eleft.png"]
SHOWN = ["a\\x1b[31mred.png", "b\\ttab.png", "c\\x07bell\\x9b.png", "d\\u202eleft.png"]


def clean(*texts):
    """Whether nothing in them but ends of lines is a control character."""
    return not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", "".join(texts))


def test_control_characters_in_names_do_not_reach_the_terminal(model, tmp_path, capfd):
    """In tables, lists of unreadable files, notes, and messages; files hold the names as they are."""
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, name in enumerate(ODD):
        person(number).save(crops / name)
        (crops / f"broken {name}").write_text("no image")
    person(8).save(crops / "e\nline.png")  # in no table
    person(9).save(os.fsencode(crops) + b"/caf\xe9 \xe3\x80\x80.png")
    outputs = [part for kind in ("csv", "jsonl", "html") for part in (f"--{kind}", str(tmp_path / f"r.{kind}"))]
    person(3).save(crops / "0001_c1s1_000001_00.png")
    labels = ["--labels", "market1501"]
    for argv in ([*index(model, tmp_path / "i", crops), *labels], [*query(model, tmp_path / "i", crops), *outputs],
                 [*command(model, crops, crops, tmp_path / "out"), *labels]):  # fmt: skip
        assert search.main(argv) == 0
        out, err = capfd.readouterr()
        assert ("such as a\\x1b[31mred.png; they tell no person" in err) == (labels[0] in argv)
        assert clean(out, err) and f"e\\nline.png: {sources.LINE_BREAK}" in out
        assert all(f"{crops}/broken {name}: cannot identify" in out for name in SHOWN)
        if argv[0] != "index":
            assert all(f"\n{name} " in out for name in [*SHOWN, "caf\\xe9 \u3000.png"])
    for name in ("r.csv", "out/ranked.csv"):
        with open(tmp_path / name, newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert {os.path.basename(row["query"]) for row in csv.DictReader(file)} > set(ODD)
    text, page = (tmp_path / "r.jsonl").read_text(), (tmp_path / "r.html").read_text()
    assert clean(page) and all(f'alt="{name}"' in page for name in SHOWN)
    assert clean(text) and {os.path.basename(json.loads(line)["query"]) for line in text.splitlines()} > set(ODD)
    for name in ODD:  # gone, and changed
        (crops / name).unlink()
        (crops / f"broken {name}").unlink()
    search.main(index(model, tmp_path / "i", crops))
    search.main(["index", "--index", str(tmp_path / "i"), "--remove", "x\x1by"])
    assert clean(*capfd.readouterr())
    for argv in (index(model, tmp_path / "i", "x\x1by"), index("m\x1b.onnx", tmp_path / "i", crops),
                 command(model, crops, "\x1b", tmp_path / "out"), ["verify", "a", "b", "c\x1b", "--model", "m"]):
        with pytest.raises(SystemExit) as stop:
            search.main(argv)
        assert clean(str(stop.value.code), *capfd.readouterr())


def test_columns_and_cameras_are_escaped_too(model, market, tmp_path, capfd):
    (tmp_path / "list.csv").write_text("path,camid,od\x1bd\ngallery/0001_c1s1_000002_01.jpg,do\x1bor,1\n")
    search.main(index(model, tmp_path / "i", tmp_path / "list.csv"))
    out, err = capfd.readouterr()
    assert clean(out, err) and r"not used: 'od\x1bd'" in err
    with pytest.raises(SystemExit) as stop:
        search.main([*query(model, tmp_path / "i", market[0]), "--camera", "9"])
    assert r"its cameras: do\x1bor" in stop.value.code


def test_csv_on_a_terminal_is_escaped_and_in_a_pipe_it_is_not(model, tmp_path, monkeypatch):
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, name in enumerate(ODD[:2]):
        person(number).save(crops / name)
    search.main(index(model, tmp_path / "i", crops))
    for make, expected in ((os.openpty, SHOWN), (os.pipe, ODD)):
        ends = make()  # openpty: (master, slave); pipe: (to read, to write)
        with open(ends[1], "w") as console:
            monkeypatch.setattr(sys, "stdout", console)
            search.main([*query(model, tmp_path / "i", crops), "--csv", "-"])
            monkeypatch.undo()
        text = b""
        with contextlib.suppress(OSError):  # the end of what a terminal has to say
            while part := os.read(ends[0], 100000):
                text += part
        os.close(ends[0])
        text = text.decode()
        assert all(name in text for name in expected[:2]) and clean(text.replace("\r", "")) == (make is os.openpty)


def test_cells_of_ranked_csv_are_no_formulas(model, tmp_path, monkeypatch):
    (tmp_path / "=crops").mkdir()
    for number in range(3):
        person(number).save(tmp_path / "=crops" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert search.main(command(model, "=crops", "=crops", tmp_path / "out")) == 0
    for row in read_csv(tmp_path / "out"):
        assert row["query"].startswith("./=crops/") and os.path.exists(row["gallery"])


# ---- what is told to nobody ----

def run_into(rest, *argv):
    """The exit code of `search.py ARGV REST` in bash, and standard error. Each line is written at once."""
    program = [sys.executable, "-u", search.__file__, *map(str, argv)]
    shell = ["bash", "-o", "pipefail", "-c", f'"$@" {rest}', "bash"]
    run = subprocess.run([*shell, *program], capture_output=True, text=True)
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr, run.stderr
    return run.returncode, run.stderr


def test_a_reader_that_leaves_is_no_success_and_stops_no_work(model, market, tmp_path):
    image, folder = str(next(market[0].iterdir())), tmp_path / "i"
    point = {"similarity": 0.5, "fmr": 0.01, "fnmr": 0.1}
    sure = write_model(tmp_path / "sure.onnx", METADATA | {"threshold": point})
    verify = ["verify", image, image, "--model", sure]
    assert run_into("| true", *verify) == (1, "")
    assert run_into("| cat > /dev/null", *verify) == (search.SAME, "")
    assert run_into("| true", *index(model, folder, market[1])) == (1, "") and len(rows_of(folder)) == 7
    files = {f"--{kind}": tmp_path / f"r.{kind}" for kind in ("html", "jsonl", "csv")}
    for more in (files, files | {"--csv": "-"}):
        argv = [*query(model, folder, market[0]), *(part for pair in more.items() for part in pair)]
        assert run_into("| true", *argv)[0] == 1
        assert sorted(path.name for path in tmp_path.glob("r.*")) == sorted(
            path.name for path in more.values() if path != "-")  # fmt: skip
        for path in tmp_path.glob("r.*"):
            path.unlink()
    code, error = run_into("> /dev/full", *index(model, tmp_path / "full", market[1]))
    assert code == 1 and "the console cannot be written to (No space left on device); the work goes on" in error
    assert len(rows_of(tmp_path / "full")) == 7


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", ">&- 2>&- <&-"])
def test_closed_streams(closed, model, market, tmp_path):
    """No file of an index takes their number, which libraries print to."""
    (market[1] / "text.jpg").write_text("no image")
    code, _ = run_into(closed, *index(model, tmp_path / "i", market[1]), "--labels", "market1501")
    assert code == 0 and len(rows_of(tmp_path / "i")) == 6
    assert run_into(closed, *index(model, tmp_path / "j", tmp_path / "nowhere"))[0] == 1
    assert run_into(closed, *query(model, tmp_path / "i", market[0]), "--top", "0")[0] == 2


# ---- verify and calibrate ----

def draw_two_each(folder, name="{:04}_c{}.png", persons=8):
    """Makes the folder, with two images of each of persons 1, 2, ..., called name by person and 1 or 2."""
    folder.mkdir()
    for pid in range(1, persons + 1):
        for shot in (1, 2):
            person(pid, shot).save(folder / name.format(pid, shot))


def test_calibrate_then_verify(model, tmp_path, capsys):
    """Persons under two cameras, whose images differ by noise: the threshold lies between them and strangers."""
    crops = tmp_path / "shop"
    draw_two_each(crops, "{:04}_c{}s1_000001_01.png", persons=30)
    flags = ["--model", str(model), "--provider", "cpu"]
    pair = [str(crops / f"{name}s1_000001_01.png") for name in ("0001_c1", "0001_c2", "0002_c1")]
    assert search.main(["verify", *pair[:2], *flags]) == search.UNKNOWN == 4
    assert "no verdict" in capsys.readouterr().out
    calibrate = ["calibrate", *flags, "--labelled", str(crops)]
    assert "cannot resolve a false match rate of 0.001" in fails(capsys, calibrate, 1)
    assert search.Extractor(model, "cpu").threshold is None
    before = search.Extractor(model, "cpu")(pair)
    assert search.main([*calibrate, "--fmr", "0.01"]) == 0
    stored = search.Extractor(model, "cpu").threshold
    assert stored["dataset"] == "shop" and stored["fmr"] <= 0.01 and stored["fnmr"] == 0
    assert stored["pairs"] == [30, 30 * 29 // 2 * 4]
    assert set(stored) == {"similarity", "fmr", "fnmr", "dataset", "pairs", "compared"}
    assert stored["compared"] == "pairs of one person under two cameras"
    assert "compared: pairs of one person under two cameras\npairs: 30 of one" in capsys.readouterr().out
    assert search.Extractor(model, "cpu")(pair).tobytes() == before.tobytes()
    capsys.readouterr()
    assert search.main(["verify", *pair[:2], *flags]) == search.SAME == 0
    printed = capsys.readouterr().out
    assert "the same person: similarity" in printed and f"threshold {stored['similarity']:.4f}" in printed
    assert f"{stored['fmr']:.3g} of pairs of two persons are taken for one" in printed and "on shop" in printed
    assert search.main(["verify", pair[0], pair[2], *flags]) == search.OTHER == 3
    assert "not the same person" in capsys.readouterr().out
    searcher = search.Searcher(model, provider="cpu")
    assert searcher.verify(*pair[:2])[1:] == (True, stored["similarity"], stored["fmr"])
    assert searcher.verify(pair[0], pair[2]).same is False


def test_calibrate_says_what_it_compares_and_whom_it_leaves_out(model, tmp_path, capsys):
    """Without a column of cameras, with one camera, with two, with some unknown; stored with the threshold, too."""
    crops = tmp_path / "crops"
    draw_two_each(crops, "{}-{}.png")
    person(20).save(crops / "somebody.png")
    flags = ["calibrate", "--model", str(model), "--provider", "cpu", "--fmr", "0.2", "--labelled"]
    across = "pairs of one person under two cameras"
    for column, camid, said in [
        ("", lambda pid, shot: "", "all pairs of one person, as no camera is known; those under one camera are easier"),
        (",camid", lambda pid, shot: ",door", "all pairs of one person, all under camera door, which are easier than"),
        (",camid", lambda pid, shot: f",{shot}", across),
        (",camid", lambda pid, shot: f",{shot if pid > 1 else ''}", f"{across}; 2 of 16 images are of unknown cameras"),
    ]:  # fmt: skip
        lines = [f"crops/{pid}-{shot}.png,{pid}{camid(pid, shot)}\n" for pid in range(1, 9) for shot in (1, 2)]
        rest = "crops/somebody.png," + "," * bool(column) + "\n"
        (tmp_path / "list.csv").write_text(f"path,pid{column}\n" + "".join(lines) + rest)
        assert search.main([*flags, str(tmp_path / "list.csv")]) == 0
        captured = capsys.readouterr()
        stored = search.Extractor(model, "cpu").threshold
        assert f"compared: {said}" in captured.out and stored["compared"].startswith(said) and captured.err == ""
        assert stored["pairs"] == [7 if "unknown" in said else 8, 16 * 15 // 2 - 8]
        assert f"note: 1 image of unknown persons left out, such as {crops / 'somebody.png'}" in captured.out
    with pytest.raises(SystemExit, match="did you mean camid"):
        (tmp_path / "list.csv").write_text("path,pid,camera\ncrops/1-1.png,1,2\n")
        search.main([*flags, str(tmp_path / "list.csv")])


def test_calibrate_a_file_of_another_exporter(tmp_path, capsys):
    """What it was told is written down with the threshold: after that the file needs no flags, and an index stays
    good."""
    model, crops = write_model(tmp_path / "m.onnx", None, input="x", output="y"), tmp_path / "crops"
    draw_two_each(crops)
    assert "--input-size 32 16" in fails(capsys, index(model, tmp_path / "i", crops), 1)
    sizes = ["--input-size", "32", "16", "--mean", "0.2", "0.4", "0.6", "--std", "0.5", "0.25", "0.125"]
    assert search.main([*index(model, tmp_path / "i", crops), *sizes]) == 0
    assert search.main(["calibrate", "--model", str(model), "--labelled", str(crops), "--fmr", "0.2", *sizes]) == 0
    assert search.main(query(model, tmp_path / "i", crops)) == 0
    assert len(rows_of(tmp_path / "i")) == 16
    a, b = crops / "0001_c1.png", crops / "0001_c2.png"
    assert search.main(["verify", str(a), str(b), "--model", str(model)]) == 0


def test_calibrate_writes_into_the_file_that_a_link_leads_to(model, tmp_path, capsys):
    (tmp_path / "link.onnx").symlink_to(model)
    draw_two_each(tmp_path / "crops")
    argv = ["calibrate", "--model", str(tmp_path / "link.onnx"), "--labelled", str(tmp_path / "crops"), "--fmr", "0.2"]
    assert search.main(argv) == 0
    assert (tmp_path / "link.onnx").is_symlink() and search.Extractor(model, "cpu").threshold["dataset"] == "crops"


def test_calibrate_without_onnx_says_so_before_the_work(model, market, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(sources, "find_rows", lambda *_: pytest.fail("it began"))
    argv = ["calibrate", "--model", str(model), "--labelled", str(market[1])]
    assert "the package onnx is needed" in fails(capsys, argv, 1)


# ---- the class ----

def test_searcher_in_memory_takes_boxes_of_frames(model):
    """What a tracker has: arrays, cut out of a frame, with ids of its own."""
    frame = np.concatenate([np.asarray(person(pid)) for pid in (1, 2, 3)], axis=1)  # (128, 192, 3)
    boxes = [(0, 128, 64 * i, 64 * i + 64) for i in range(3)]
    searcher = search.Searcher(model, provider="cpu")
    assert searcher.search([person(1)]) == [[]] and len(searcher) == 0
    crops = searcher.crop(frame, boxes)
    assert np.array_equal(crops[1], frame[:, 64:128])
    assert np.array_equal(searcher.crop(frame, [(-9, 128, 64, 300)])[0], frame[:, 64:])
    with pytest.raises(ValueError, match="1 of 2 boxes hold nothing of the frame, .*: number 1 "):
        searcher.crop(frame, [boxes[0], (0, 128, -60, -5)])
    assert searcher.add(crops, names=["one", "two", "three"], camids=[1, 1, 2], times=[0.0, 1.0, None]) == 3
    hits = searcher.search(frame[:, 64:128], top=2)[0]
    assert hits[0].row.path == "two" and hits[0].similarity == pytest.approx(1, abs=1e-6) and len(hits) == 2
    features = searcher.embed(crops)
    assert [[hit.row.path for hit in ranked][0] for ranked in searcher.search(features)] == ["one", "two", "three"]
    assert [hit.row.path for hit in searcher.search([person(1)], cameras=[2])[0]] == ["three"]
    assert [hit.row.path for hit in searcher.search([person(1)], after=0.5)[0]] == ["two"]
    assert {hit.row.path for hit in searcher.search([person(1)], not_cameras=["2"], before=0.5)[0]} == {"one"}
    assert searcher.remove(["two", "four"]) == 1 and len(searcher) == 2
    searcher.add(crops[1:2])
    assert searcher.gallery.rows[-1].path == "#3"
    assert searcher.gallery.features.shape == (3, 24)
    assert searcher.verify(crops[0], crops[0]) == (pytest.approx(1, abs=1e-6), None, None, None)


def test_numbers_of_unnamed_images_do_not_come_again(model, tmp_path):
    searcher = search.Searcher(model, provider="cpu")
    images = [person(pid) for pid in range(3)]
    searcher.add(images)
    searcher.remove(["#0"])
    searcher.add(images[:1])
    assert [row.path for row in searcher.gallery.rows] == ["#1", "#2", "#3"]
    searcher.remove("#3")  # the last one
    searcher.add(images[:1])
    assert [row.path for row in searcher.gallery.rows] == ["#1", "#2", "#4"]
    with search.Searcher(searcher.extractor, tmp_path / "i", write=True) as first:
        first.add(images)
        first.remove(["#0", "#1"])
    with search.Searcher(searcher.extractor, tmp_path / "i", write=True) as second:
        second.add(images[:1])
        assert [row.path for row in second.gallery.rows] == ["#2", "#3"]


def test_searcher_takes_what_its_type_hints_say(model, tmp_path):
    searcher, images = search.Searcher(model, provider="cpu"), [person(pid) for pid in range(3)]
    searcher.add(images, names=range(3), camids=np.array([1, 2, 12]), pids=np.array([5, 6, 7]), times=np.arange(3.0),
                 tracklets=np.array([1, 1, 2]))  # fmt: skip
    searcher.add(images, camids=[None, 2, "x"], pids=[None, 1, 2], times=[None, 1, 2], tracklets=["a", None, None])
    told = [row[:5] for row in searcher.gallery.rows]
    assert told == [("0", 5, "1", 0.0, "1"), ("1", 6, "2", 1.0, "1"), ("2", 7, "12", 2.0, "2"),
                    ("#3", None, "", None, "a"), ("#4", 1, "2", 1.0, ""), ("#5", 2, "x", 2.0, "")]  # fmt: skip
    assert {type(value) for row in told for value in row} == {str, int, float, type(None)}
    person(7).save(tmp_path / "a.png")
    assert searcher.add(str(tmp_path / "a.png"), camids="12") == 7 and searcher.add(np.asarray(person(8)), "it") == 8
    assert [row.path for row in searcher.gallery.rows[6:]] == [str(tmp_path / "a.png"), "it"]
    with pytest.raises(ValueError, match="1 of path for 3 images"):
        searcher.add(images, names="abc")

    feature = searcher.embed(images)
    for cameras in ("12", ["12"], np.array([12]), 12, (c for c in ["12"])):
        assert [hit.row.path for hit in searcher.search(feature[0], cameras=cameras)[0]].count("2") == 1
    expected = searcher.search(feature)
    for same in (feature.astype(np.float64), list(feature), feature * 5, feature.astype(np.float64) / 7,
                 [row.astype(np.float64) for row in feature]):  # fmt: skip
        found = searcher.search(same)
        assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in expected]
        assert found[0][0].similarity == pytest.approx(1, abs=1e-6)
    assert searcher.search(feature[1])[0][0].row.path in ("1", "#4") and len(searcher.search(feature[1])) == 1
    with pytest.raises(ValueError, match=r"features are \(3, 7\), this gallery holds \(N, 24\)"):
        searcher.search(feature[:, :7])
    for bad in (feature * 0, feature * np.nan):
        with pytest.raises(ValueError, match="no direction to rank by"):
            searcher.search(bad)


def test_searcher_removes_what_add_was_given(model):
    searcher, images = search.Searcher(model, provider="cpu"), [person(pid) for pid in range(4)]
    searcher.add(images, names=[1, 2, 3, 4.5], camids=["01", 1.0, np.int64(1), float("nan")])
    assert [row.camid for row in searcher.gallery.rows] == ["1", "1", "1", ""]
    assert searcher.remove(2) == 1 and searcher.remove(np.int64(3)) == 1 and searcher.remove(4.5) == 1
    assert searcher.remove(np.array([1, 7])) == 1 and len(searcher) == 0


def test_searcher_refuses_what_would_spoil_the_index(model, tmp_path):
    with search.Searcher(model, tmp_path / "i", write=True, provider="cpu") as searcher:
        for fields in ({"names": ["a\nb"]}, {"camids": ["a\rb"]}, {"tracklets": ["\n"]}, {"times": [np.nan]}):
            with pytest.raises(ValueError, match="holds a line break|time nan"):
                searcher.add([person(1)], **fields)
        searcher.add([person(1)])
    assert len(search.Searcher(searcher.extractor, tmp_path / "i")) == 1
    rounded = write_model(tmp_path / "int8.onnx", SECOND | {"precision": "int8"})
    with pytest.raises(ValueError, match="holds features of fp32, int8.onnx gives int8"):
        search.Searcher(rounded, tmp_path / "i", write=True, provider="cpu")
    search.Searcher(rounded, tmp_path / "i", provider="cpu")  # to search in is another matter


def test_a_model_without_a_hash_makes_an_index_that_can_be_opened_again(tmp_path, capsys):
    """Also after a threshold was stored in its file, which changes the file."""
    metadata = {key: value for key, value in METADATA.items() if key != "weights_sha256"}
    model, crops = write_model(tmp_path / "m.onnx", metadata), tmp_path / "crops"
    draw_two_each(crops)
    for _ in range(2):
        assert search.main(index(model, tmp_path / "i", crops)) == 0
        search.main(["calibrate", "--model", str(model), "--labelled", str(crops), "--fmr", "0.2"])
    assert search.main(query(model, tmp_path / "i", crops)) == 0


def test_a_spoilt_threshold_is_told_and_can_be_calibrated_anew(tmp_path, capsys):
    spoilt = {"similarity": None, "fmr": "a", "fnmr": float("nan")}
    model, crops = write_model(tmp_path / "m.onnx", METADATA | {"threshold": spoilt}), tmp_path / "crops"
    draw_two_each(crops)
    verify = ["verify", str(crops / "0001_c1.png"), str(crops / "0001_c2.png"), "--model", str(model)]
    assert "calibrate it again" in fails(capsys, verify, 1)
    assert search.main(["calibrate", "--model", str(model), "--labelled", str(crops), "--fmr", "0.2"]) == 0
    assert search.main(verify) == search.SAME


def test_verify_does_not_wait_for_a_pipe(model, market, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    argv = ["verify", str(tmp_path / "pipe.jpg"), str(next(market[0].iterdir())), "--model", str(model)]
    assert "verify needs two images" in fails(capsys, argv, 1)
    assert "pipe.jpg is not a file" in capsys.readouterr().out


def test_an_image_without_a_feature_is_listed_and_the_others_go_on(tmp_path, capsys):
    model, crops = write_byte_model(tmp_path / "b.onnx"), tmp_path / "crops"
    crops.mkdir()
    for number, colour in enumerate([(1, 2, 3), (0, 0, 0), (3, 2, 1)]):
        Image.new("RGB", (8, 8), colour).save(crops / f"{number}.png")
    assert search.main(index(model, tmp_path / "i", crops)) == 0
    printed = capsys.readouterr().out
    assert "2 rows now" in printed and f"  {crops / '1.png'}: {model} gives it a feature of length" in printed
    assert len(search.Index.read(tmp_path / "i")) == 2


def test_just_at_the_threshold_two_images_are_the_same():
    """As calibrate counts them: at least the threshold."""
    threshold = {"similarity": 0.5, "fmr": 0.01, "fnmr": 0.1}
    assert search.judge(0.5, threshold).same and not search.judge(np.nextafter(0.5, 0), threshold).same


def test_searcher_averages_tracklets(model):
    searcher = search.Searcher(model, provider="cpu")
    searcher.add([person(1, 1), person(1, 2), person(2, 1)], tracklets=["a", "a", "b"])
    assert [(h.row.tracklet, h.row.frames) for h in searcher.search(person(1), average=True)[0]] == [("a", 2), ("b", 1)]


def test_searcher_on_an_index(model, market, tmp_path):
    paths = sorted(market[1].iterdir())
    with search.Searcher(model, tmp_path / "i", write=True, provider="cpu") as searcher:
        searcher.add(paths[:3])
        with pytest.raises(ValueError, match="2 of pid for 1 images"):
            searcher.add(paths[3:4], pids=[1, 2])
        with pytest.raises(OSError):
            searcher.add([tmp_path / "gone.png"])
        assert searcher.remove(paths[:1]) == 1
        searcher.add([person(1)], names=["no file"])
    search.main([*index(model, tmp_path / "i", market[1]), "--prune"])
    with search.Searcher(searcher.extractor, tmp_path / "i", write=True) as searcher:
        assert searcher.remove(["no file"]) == 1 and searcher.remove(paths[3:]) == len(paths) - 3
        searcher.remove(paths[:1])
    with search.Searcher(searcher.extractor, tmp_path / "i") as reader:
        assert [hit.row.path for hit in reader.search(paths[1])[0]][0] == str(paths[1]) and len(reader) == 2
        with pytest.raises(ValueError, match="opened to search in"):
            reader.add(paths[3:4])
    other = write_model(tmp_path / "other.onnx", METADATA | {"weights_sha256": "f" * 64})
    with pytest.raises(ValueError, match="another model"):
        search.Searcher(other, tmp_path / "i", provider="cpu")


# ---- mistakes ----

PLAIN = ["--model", "m", "--query", "q", "--gallery", "g"]


@pytest.mark.parametrize("argv, message", [
    ([*PLAIN, "--top", "0"], "--top 0, --batch-size 32: both have to be at least 1"),
    ([*PLAIN, "--top", "ten"], "--top: invalid int value: 'ten'"),
    ([*PLAIN, "--batch-size", "-1"], "--batch-size -1: both have to be at least 1"),
    ([*PLAIN, "--provider", "gpu"], "invalid choice: 'gpu'"),
    ([*PLAIN, "--labels", "duke"], "invalid choice: 'duke'"),
    ([*PLAIN, "--label=mars"], "there is no flag --label (did you mean --labels?)"),
    ([*PLAIN, "--xyz"], "there is no flag --xyz; search.py --help lists all"),
    ([*PLAIN, "index", "--index", "i"], "there is no flag --index; a command comes first: search.py index ..."),
    ([*PLAIN, "a\x1b[31m"], "unrecognized arguments: a\\x1b[31m"),
    (["--model", "m"], "required: --query, --gallery"),
    (["--model", "m", "--galery", "x"], "there is no flag --galery (did you mean --gallery?)"),
    (["index", "crops"], "required: --index"),
    (["index", "crops", "--index", "i"], "--model is required where something is to be embedded"),
    (["index", "--index", "i", "--model", "m"], "give sources to index, or --remove PATH"),
    (["index", "c", "--index", "i", "--model", "m", "--remove", "x", "--prune"], "one of them"),
    (["index", "c", "--index", "i", "--remove", "x"], "one of them"),
    (["query", "--index", "i"], "give --query or --query-index"),
    (["query", "--index", "i", "--query", "q", "--query-index", "j"], "one of them"),
    (["query", "--index", "i", "--query", "q", "--after", "noon"], "'noon' is no time"),
    (["query", "--index", "i", "--query", "q", "--csv", "-", "--jsonl", "-"], "one of them may go to the console"),
    (["query", "--index", "i", "--query", "q", "--top", "0"], "--top 0, --batch-size 32: both have to be at least 1"),
    (["verify", "a.jpg", "--model", "m"], "IMAGE"),
    (["verify", "a", "b", "--model", "m", "--batch-size", "0"], "--batch-size 0: it has to be at least 1"),
    (["verify", "a", "b", "--model", "m", "--threads", "-1"], "--threads -1"),
    (["calibrate", "--model", "m", "--labelled", "l", "--fmr", "1"], "--fmr 1.0: a rate lies between 0 and 1"),
    (["indx", "crops"], "there is no command 'indx' (did you mean index?); choose from index, query, verify, calib"),
    (["crops"], "there is no command 'crops'; choose from index, query, verify, calibrate, group, label, copy"),
    ([], "there is nothing to do; choose from index, query, verify, calibrate, group, label, copy, or give "),
])  # fmt: skip
def test_usage_errors(argv, message, capsys):
    assert message in fails(capsys, argv, 2)


def test_bad_inputs_of_subcommands(model, market, shop, tmp_path, capsys):
    crops, bad = market[1], tmp_path / "bad"
    bad.mkdir()
    broken_images(bad)
    flags, empty = ["--model", str(model), "--provider", "cpu"], tmp_path / "empty"
    assert search.main([*index(model, empty, crops), "--prune"]) == 0 == search.main(
        ["index", "--index", str(empty), "--remove", str(crops)])  # fmt: skip
    for argv, message in [
        (index(model, tmp_path / "i", tmp_path / "nowhere"), "nowhere: no such file or folder"),
        (index(model, crops, crops), "is no index and not empty"),
        (index(model, tmp_path / "i", bad), "is empty: no image could be read"),
        (query(model, tmp_path / "nothing", crops), "no such folder; python search.py index makes an index"),
        (query(model, crops, crops), "is not an index: it has no index.json"),
        (["query", "--index", str(shop), "--query", str(crops)], "--query needs --model"),
        (query(model, empty, crops), "empty holds no rows; python search.py index puts images into it"),
        (index(model, tmp_path / "i", ""), "'': no such file or folder"),
        (command(model, "", crops, tmp_path / "out"), "--query '': no such file or folder"),
        (query(model, shop, bad), "nothing could be ranked"),
        ([*query(model, shop, crops), "--html", "/proc/r.html"], "/proc/r.html: cannot write there"),
        (["index", "--index", str(bad), "--remove", "x"], "is not an index"),
        (["verify", str(bad / "text.jpg"), str(bad / "text.jpg"), *flags], "verify needs two images"),
        (["verify", str(crops), str(crops), *flags], "verify compares images"),
        (["calibrate", *flags, "--labelled", str(crops), "--labels", "mars"], "--labels mars: no file name begins as"),
        (["calibrate", *flags, "--labelled", str(bad)], "no image has a label; the first is text.jpg. It takes"),
        ([*query(model, shop, crops), "--labels", "mars"], "--labels mars: no file name begins as 0002C1T0003F451.jpg"),
        ([*index(model, tmp_path / "i", crops), "--labels", "mars"], "--labels mars: no file name begins as 0002C1T00"),
        (query(model, bad / "text.jpg", crops), "text.jpg: is a file, and an index is a folder"),
        (index(model, bad / "text.jpg", crops), "is a file, or lies in one; an index is a folder: name another"),
    ]:  # fmt: skip
        assert message in fails(capsys, argv, 1), argv


def test_help_of_each_subcommand(capsys):
    for name in search.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            search.main([name, "--help"])
        assert stop.value.code == 0 and f"search.py {name}" in capsys.readouterr().out


# ---- who is who ----

ABOUT = {"model": "m.onnx", "weights_sha256": "0" * 64, "arch": "tiny", "feature_dim": 3, "input": "images",
         "precision": "fp32", "distance": "cosine"}  # fmt: skip


def nameless(folder):
    """An index of three persons, 20 images each under two cameras, whom nobody has named."""
    features = np.eye(3)[np.repeat([0, 1, 2], 20)] + 0.1 * np.random.default_rng(0).standard_normal((60, 3))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    with search.Index.open(folder, ABOUT) as index:
        index.append(features, [search.Row(f"/shop/{number}.jpg", camid=str(1 + number % 2)) for number in range(60)])
    return str(folder)


def pids_of(folder):
    return [row.pid for row in search.Index.read(folder).rows]


def test_group_and_label(tmp_path, capsys):
    folder, table = nameless(tmp_path / "shop.index"), tmp_path / "people.csv"
    group = ["group", "--index", folder, "--into", folder]
    assert search.main([*group, "--csv", str(table), "--html", str(tmp_path / "p.html")]) == 0
    out = capsys.readouterr().out
    assert "3 persons in 60 rows, of which 0 stand alone" in out and "60 rows as proposed" in out
    assert pids_of(folder) == [-2] * 20 + [-3] * 20 + [-4] * 20 and (tmp_path / "p.html").exists()
    first, *lines = table.read_text().splitlines()
    assert first == "path,person,confidence,reviewed" and re.fullmatch(r"/shop/0.jpg,2,[01].\d{3},0", lines[0])
    lines = [line[:-1] + str(int(number < 30)) for number, line in enumerate(lines)]  # half was looked at
    lines[3] = "/shop/3.jpg,-1,0.9,1"
    table.write_text("\n".join([first, *lines, "/shop/none.jpg,2,0.5,1"]) + "\n")
    assert search.main(["label", str(table), "--index", folder]) == 0
    out = capsys.readouterr().out
    assert "30 rows as reviewed, 30 rows as proposed" in out and "1 listed image is not in it" in out
    found = pids_of(folder)
    assert found == [2, 2, 2, -1] + [2] * 16 + [3] * 10 + [-3] * 10 + [-4] * 20
    assert search.main(group) == 0  # once more: who is known stays, with their groups; junk is left out
    out = capsys.readouterr().out
    assert "3 persons in 59 rows" in out and "2 persons are known" in out and pids_of(folder) == found
    assert search.main(["label", str(table), "--index", folder, "--reviewed"]) == 0
    assert pids_of(folder)[30:] == [3] * 10 + [4] * 20


def test_proposals_are_not_taken_for_known(model, tmp_path, capsys):
    """calibrate refuses them until somebody looked; in answers they are neither right nor wrong."""
    crops, folder = tmp_path / "crops", str(tmp_path / "crops.index")
    draw_two_each(crops, "{:04}_c{}s1_000001_01.png", persons=30)
    flags = ["--model", str(model), "--provider", "cpu"]
    assert search.main(["index", str(crops), "--index", folder, "--labels", "market1501", *flags]) == 0
    calibrate = ["calibrate", *flags, "--labelled", folder, "--fmr", "0.01"]
    assert search.main(calibrate) == 0
    threshold = search.Extractor(model, "cpu").threshold
    assert threshold["pairs"] == [30, 30 * 29 // 2 * 4] and threshold["dataset"] == "crops.index"
    with search.Index.open(folder, search.Index.read(folder).about) as index:
        index.rows[:] = [row._replace(pid=-row.pid if row.pid > 1 else None) for row in index.rows]
        index.keep(range(len(index)))
    message = fails(capsys, calibrate, 1)
    assert "58 rows are proposals of search.py group" in message and "--reviewed" in message
    with search.Index.open(folder, search.Index.read(folder).about) as index:
        pids = [-(row.pid or -1) for row in index.rows]
        index.rows[:] = [row._replace(pid=pid if pid <= 20 else -pid)  # persons up to 20 were looked at
                         for row, pid in zip(index.rows, pids, strict=True)]  # fmt: skip
        index.keep(range(len(index)))
    capsys.readouterr()
    assert search.main(calibrate[:-1] + ["0.02"]) == 0
    assert search.Extractor(model, "cpu").threshold["pairs"] == [20, 20 * 19 // 2 * 4]
    assert "20 rows are proposals" in capsys.readouterr().out
    assert search.main([*calibrate, "--reviewed"]) == 0
    assert search.Extractor(model, "cpu").threshold == threshold
    capsys.readouterr()
    query = ["query", "--index", folder, "--query", str(crops), "--labels", "market1501", *flags]
    assert search.main(query) == 0
    assert "rank-1: 40 of the 40 queries that have a match" in capsys.readouterr().out
    assert "an index stands alone" in fails(capsys, [*calibrate, "--labelled", folder, str(crops)], 1)


def test_what_group_and_label_cannot_do(model, tmp_path, capsys):
    folder, table = nameless(tmp_path / "shop.index"), tmp_path / "people.csv"
    assert "give sources or --index, one of them" in fails(capsys, ["group"], 2)
    assert "give sources or --index, one of them" in fails(capsys, ["group", "crops", "--index", folder], 2)
    assert "--model is required" in fails(capsys, ["group", "crops"], 2)
    assert "did you mean --html?" in fails(capsys, ["group", "--index", folder, "--htm", "a"], 2)
    assert "--csv" in fails(capsys, ["group", "--index", folder, "--csv", folder], 1)
    assert "no such folder" in fails(capsys, ["group", "--index", str(tmp_path / "none")], 1)
    assert "No such file" in fails(capsys, ["label", str(table), "--index", folder], 1)
    table.write_text("path,person\n/elsewhere.jpg,2\n")
    assert "none of the 1 images that are listed is in it" in fails(capsys, ["label", str(table), "--index", folder], 1)
    with search.Index.open(folder, ABOUT) as index:
        index.rows[:] = [row._replace(pid=-1) for row in index.rows]
        index.keep(range(60))
    assert "nothing to group" in fails(capsys, ["group", "--index", folder], 1)


def test_group_takes_images(model, market, capsys):
    _, gallery = market[:2]
    assert search.main(["group", str(gallery), "--model", str(model), "--provider", "cpu"]) == 0
    assert "are few to tell people by" in capsys.readouterr().out
