"""Tests of sources.py: what folders, lists and file names tell.

python -m pytest tests/searching/test_sources.py
"""

import os

import pytest
from tiny_onnx import person

from searching import sources
from searching.gallery import Row
from searching.sources import find_rows, group_tracklets, parse_time, read_name


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        person(1, size=(8, 16)).save(folder / name)
    return folder


def told(row):
    return row.pid, row.camid, row.time, row.tracklet


@pytest.mark.parametrize("labels, name, expected", [
    ("market1501", "0002_c1s1_000451_03.jpg", (2, "1", 451, "0002_c1s1")),
    ("market1501", "0002_c6.jpg", (2, "6", None, "0002_c6")),
    ("market1501", "12_c13_any.jpg", (12, "13", None, "12_c13")),
    ("market1501", "0002_c1_f0044158.jpg", (2, "1", 44158, "0002_c1")),  # DukeMTMC-reID
    ("market1501", "-1_c3s1_000005_01.jpg", (-1, "3", 5, "-1_c3s1")),
    ("market1501", "0000_c3s1_000004_01.jpg", (0, "3", 4, "")),  # many people
    ("mars", "0000C3T0007F001.jpg", (0, "3", 1, "0000C3T0007")),
    ("market1501", "photo.jpg", None),
    ("mars", "0065C1T0002F016.jpg", (65, "1", 16, "0065C1T0002")),
    ("mars", "00-1C1T0001F001.jpg", (-1, "1", 1, "00-1C1T0001")),
    ("mars", "0002_c1s1_000451_03.jpg", None),
    ("none", "0002_c1s1_000451_03.jpg", None),
])  # fmt: skip
def test_read_name(labels, name, expected):
    found = read_name(name, labels)
    assert (tuple(found.get(key, "") for key in ("pid", "camid", "time", "tracklet")) if found else None) == expected


@pytest.mark.parametrize("text, seconds", [("451", 451), ("1e3", 1000), ("0.5", 0.5), ("1970-01-02", 86400),
                                           ("1970-01-01T01:00:00+01:00", 0), ("1970-01-01T00:00:01", 1)])  # fmt: skip
def test_parse_time(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["noon", "nan", "inf", "-Infinity"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=f"'{text}' is no time"):
        parse_time(text)


def test_a_folder(tmp_path):
    draw(tmp_path, "b.png", "sub/0002_c1s1_000451_03.png", "sub/-1_c1s1_000451_03.png")
    with (pytest.warns(UserWarning, match="1 of 3 file names do not begin as .*, such as b.png"),
          pytest.warns(UserWarning, match="person -1 is junk: 1 of 3 images left out")):
        rows, missing = find_rows([tmp_path], "market1501")
    assert [os.path.relpath(row.path, tmp_path) for row in rows] == ["b.png", "sub/0002_c1s1_000451_03.png"]
    assert told(rows[1]) == (2, "1", 451, "0002_c1s1") and missing == []
    stat = (tmp_path / "b.png").stat()
    assert told(rows[0]) == (None, "", None, "")
    assert sources.merge_known(rows[0]).time == pytest.approx(stat.st_mtime, abs=1e-6)  # nothing else tells a time
    assert (rows[0].size, rows[0].mtime, rows[0].frames) == (stat.st_size, stat.st_mtime_ns, 1)


def test_one_path_for_one_image(tmp_path, monkeypatch):
    """Whatever way leads there: given twice, by a link to the folder, relative, as a file of its own."""
    draw(tmp_path, "crops/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "crops")
    monkeypatch.chdir(tmp_path)
    rows, _ = find_rows(["crops", tmp_path / "link", "link/a.png", "./crops/../crops"])
    assert [row.path for row in rows] == [str(tmp_path / "crops" / "a.png")]


def test_links_to_files_are_followed_and_links_to_folders_only_where_they_are_named(tmp_path):
    """A link to a file is an image under its own name; one that leads nowhere, or in a ring, is listed."""
    draw(tmp_path, "store/0002_c1.png", "crops/0001_c1.png", "crops/sub/0003_c1.png", "elsewhere/0004_c1.png")
    crops = tmp_path / "crops"
    for name, target in [("0007_c3.png", "store/0002_c1.png"), ("linked", "elsewhere"), ("loop", "crops"),
                         ("gone.png", "nowhere.png"), ("ring.png", "crops/ring.png")]:  # fmt: skip
        (crops / name).symlink_to(tmp_path / target)
    with pytest.warns(UserWarning, match="2 of 5 file names do not begin as"):
        rows, missing = find_rows([crops], "market1501", video=True)
    assert [(os.path.relpath(row.path, crops), row.pid, row.camid) for row in rows] == [
        ("0001_c1.png", 1, "1"), ("0007_c3.png", 7, "3"), ("sub/0003_c1.png", 3, "1")]  # fmt: skip
    assert rows[1].size == (tmp_path / "store/0002_c1.png").stat().st_size
    assert missing == [(str(crops / "gone.png"), "No such file or directory"),
                       (str(crops / "ring.png"), "Too many levels of symbolic links")]  # fmt: skip
    assert [row.tracklet for row in find_rows([crops], video=True)[0]] == [str(crops), str(crops), str(crops / "sub")]

    (tmp_path / "list.txt").write_text("crops/linked/0004_c1.png\ncrops/0007_c3.png\n")
    named = [find_rows([source])[0] for source in (crops / "linked", tmp_path / "list.txt", crops / "0007_c3.png")]
    assert [[os.path.relpath(row.path, tmp_path) for row in rows] for rows in named] == [
        ["elsewhere/0004_c1.png"], ["elsewhere/0004_c1.png", "crops/0007_c3.png"], ["crops/0007_c3.png"]]  # fmt: skip
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "crops").symlink_to(crops)
    with pytest.raises(ValueError, match="no image in .*; links to folders, such as crops, are not walked into"):
        find_rows([tmp_path / "links"])


def test_folders_as_tracklets(tmp_path):
    draw(tmp_path, "x/1/a.png", "x/1/b.png", "x/2/a.png", "y/1/0003C2T0001F007.png")
    with pytest.warns(UserWarning, match="3 of 4 file names do not begin as 0002C1T0003F451.jpg does, such as a.png"):
        rows, _ = find_rows([tmp_path / "x", tmp_path / "y"], "mars", video=True)
    assert [row.tracklet for row in rows] == [str(tmp_path / "x/1")] * 2 + [str(tmp_path / "x/2"), "0003C2T0001"]
    tracklets, frames = group_tracklets(rows)
    assert [(os.path.relpath(row.path, tmp_path), row.frames) for row in tracklets] == [
        ("x/1/a.png", 2), ("x/2/a.png", 1), ("y/1/0003C2T0001F007.png", 1)]  # fmt: skip
    assert frames[0] == [str(tmp_path / "x/1" / name) for name in ("a.png", "b.png")]
    assert tracklets[0].size == rows[0].size + rows[1].size and tracklets[0].mtime == max(r.mtime for r in rows[:2])
    rows, _ = find_rows([tmp_path / "x"])
    assert group_tracklets(rows)[1] == [[row.path] for row in rows]  # no tracklets: each image by itself


def test_a_list_of_paths(tmp_path):
    draw(tmp_path, "in/a b.png", "in/名.png")
    (tmp_path / "list.txt").write_text("in/a b.png\n\nin/名.png\r\n/nowhere/x.png\n", encoding="utf-8")
    rows, missing = find_rows([tmp_path / "list.txt"])
    assert [row.path for row in rows] == [str(tmp_path / "in" / name) for name in ("a b.png", "名.png")]
    assert missing == [("/nowhere/x.png", "No such file or directory")]


def test_a_list_wins_over_names(tmp_path):
    draw(tmp_path, "0002_c1s1_000451_03.png", "0003_c1s1_000451_03.png", "x.png")
    (tmp_path / "list.csv").write_text("path,camid,pid,time,tracklet,other\n"
                                       "0002_c1s1_000451_03.png,door,7,1970-01-02,t,?\n"
                                       "0003_c1s1_000451_03.png,,,,\nx.png,,-1,,\n")  # fmt: skip
    with (pytest.warns(UserWarning, match="list.csv: not used: 'other'; the columns of a list are path, pid, camid"),
          pytest.warns(UserWarning, match="person -1 is junk: 1 of 3")):
        rows, _ = find_rows([tmp_path / "list.csv"], "market1501")
    assert list(map(told, rows)) == [(7, "door", 86400, "t"), (3, "1", 451, "0003_c1s1")]


@pytest.mark.parametrize("column, meant", [
    ("camera", "camid"), ("cam", "camid"), ("camera_id", "camid"), ("camd", "camid"), ("id", "pid"), ("pids", "pid"),
    ("person", "pid"), ("person_id", "pid"), ("label", "pid"), ("timestamp", "time"), ("frame", "time"),
    ("track", "tracklet"), ("track_id", "tracklet"), ("traclet", "tracklet"),
])  # fmt: skip
def test_a_misspelt_column_is_an_error_where_the_right_one_is_missing(column, meant, tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(f"path,{column}\na.png,7\n")
    with pytest.raises(ValueError, match=f"list.csv, line 1: the column '{column}' .*did you mean {meant}[?]"):
        find_rows([tmp_path / "list.csv"])
    (tmp_path / "list.csv").write_text(f"path,{meant},{column}\na.png,7,8\n")
    with pytest.warns(UserWarning, match=f"list.csv: not used: '{column}'; the columns of a list are path, "):
        rows, _ = find_rows([tmp_path / "list.csv"])
    assert str(getattr(rows[0], meant)) == ("7.0" if meant == "time" else "7")


@pytest.mark.parametrize("column", ["CamID", " camid", "CAMID ", "\u00a0camid"])
def test_blanks_and_capitals_in_the_header_do_not_count(column, tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(f" Path ,{column}, PID\na.png,7, 5\n")
    assert told(find_rows([tmp_path / "list.csv"])[0][0]) == (5, "7", None, "")
    (tmp_path / "list.csv").write_text(f"path,{column},camid\na.png,7,8\n")
    with pytest.raises(ValueError, match="list.csv, line 1: two columns camid in"):
        find_rows([tmp_path / "list.csv"])


def test_a_list_as_windows_and_spreadsheets_write_it(tmp_path):
    """Backslashes, blanks around cells, lines of nothing, UTF-16. A name that holds blanks keeps them."""
    draw(tmp_path, "in/a.png", "in/b  c.png", "in/名.png")
    names = ["in/a.png", "in/b  c.png", "in/名.png"]
    text = "path , camid,tracklet\nin\\a.png  , Camera 01 ,  \n in/b  c.png,c1, t \n,,\n  \nin\\名.png,1.0,\n"
    lines = "in\\a.png  \n\n  \nin/b  c.png\n in\\名.png\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "list.csv").write_text(text, encoding=encoding)
        rows, missing = find_rows([tmp_path / "list.csv"])
        assert [os.path.relpath(row.path, tmp_path) for row in rows] == names and missing == []
        assert [(row.camid, row.tracklet) for row in rows] == [("1", ""), ("1", "t"), ("1", "")]
        (tmp_path / "list.txt").write_text(lines, encoding=encoding)
        rows, missing = find_rows([tmp_path / "list.txt"])
        assert [os.path.relpath(row.path, tmp_path) for row in rows] == names and missing == []
    draw(tmp_path, "in\\a.png")  # where there is such a file, it is meant
    assert os.path.basename(find_rows([tmp_path / "list.txt"])[0][0].path) == "in\\a.png"
    (tmp_path / "list.csv").write_bytes(text.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="list.csv: this is no text .*; save it as UTF-8"):
        find_rows([tmp_path / "list.csv"])


def test_loops_of_links_are_told(tmp_path):
    for name, target in [("a.png", "b.png"), ("b.png", "a.png"), ("loop.txt", "loop.txt"), ("loop", "loop")]:
        (tmp_path / name).symlink_to(tmp_path / target)
    draw(tmp_path, "c.png")
    (tmp_path / "list.txt").write_text("a.png\nloop/d.png\nc.png\n")
    rows, missing = find_rows([tmp_path / "list.txt"])
    assert [row.path for row in rows] == [str(tmp_path / "c.png")]
    assert [reason for _, reason in missing] == ["Too many levels of symbolic links"] * 2
    for name in ("a.png", "loop.txt", "loop"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            find_rows([tmp_path / name])


def test_names_of_many_digits(tmp_path):
    """More than an integer of 64 bits holds."""
    long = "12345678901234567890"
    draw(tmp_path, f"{long}_c{long}s1_{long}_00.png")
    rows, _ = find_rows([tmp_path], "market1501")
    assert told(rows[0]) == (int(long), long, float(long), f"{long}_c{long}s1")
    keys, others = sources.same_person_and_camera(rows, [*rows, rows[0]._replace(pid=int(long) + 1)])
    assert keys.tolist() == [others[0]] and others[1] not in keys


def test_same_person_and_camera():
    """Junk, unlabelled images and those of unknown cameras are like nothing; person 0 only where it is declared so."""
    rows = [Row("a", 7, "1"), Row("b", 0, "1"), Row("c", -1, "1"), Row("d", None, "1"), Row("e", 7), Row("f", 7, "2")]
    for nobody, left in ((False, ["aa", "bb", "ff"]), (True, ["aa", "ff"])):
        ours, theirs = sources.same_person_and_camera(rows, rows, nobody)
        assert [q.path + g.path for q, x in zip(rows, ours, strict=True)
                for g, y in zip(rows, theirs, strict=True) if x == y] == left  # fmt: skip


def test_cameras_that_nobody_shares_are_told():
    a, b, unknown = [Row("a", camid="front")], [Row("b", camid="2"), Row("c", camid="10")], [Row("d")]
    told = sources.compare_cameras(a, b)
    assert "no camera of the queries (front) is one of the gallery's (2, 10): none counts as the same camera" in told
    assert not sources.compare_cameras(a, a + b) and not sources.compare_cameras(a, unknown)


def test_a_row_without_a_tracklet_is_not_all_of_its_folder():
    rows = [Row("/x/a.png", frames=4), Row("/x/t.png", tracklet="t", frames=4)]
    assert not sources.is_frame("/x/b.png", rows[0])
    assert sources.own_rows([Row("/x/b.png")], [["/x/b.png"]], rows) == []
    (keys, numbers), = sources.own_rows([Row("/x/b.png", tracklet="t")], [["/x/b.png"]], rows)
    assert keys.tolist() == [1] and numbers.tolist() == [0, 1]
    assert sources.own_rows([Row("/x/a.png")], [["/x/a.png"]], rows, gallery=[]) == []


def test_columns_that_are_like_none_are_named_and_those_of_an_index_pass(tmp_path, recwarn):
    draw(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path,name,split,title,,weather\na.png,x,query,t,0,rain\n")
    rows, _ = find_rows([tmp_path / "list.csv"])
    assert [str(warning.message) for warning in recwarn] == [
        f"{tmp_path / 'list.csv'}: not used: 'name', 'split', 'title', '', 'weather'; the columns of a list are path, "
        "pid, camid, time, tracklet"]  # fmt: skip
    assert told(rows[0]) == (None, "", None, "")
    recwarn.clear()
    (tmp_path / "list.csv").write_text(",".join(Row._fields) + "\na.png,7,door,3,t,1,5,6\n")
    assert told(find_rows([tmp_path / "list.csv"])[0][0]) == (7, "door", 3, "t") and not list(recwarn)


def test_names_of_another_form(tmp_path, recwarn):
    """None of the form that is asked for: an error. Some: counted. A person that a list tells needs no name."""
    draw(tmp_path, "crops/0002_c1s1_000451_03.png", "crops/x.png")
    with pytest.raises(ValueError) as error:
        find_rows([tmp_path / "crops"], "mars")
    assert str(error.value) == (
        "--labels mars: no file name begins as 0002C1T0003F451.jpg does (person 2, camera 1); the first is "
        "0002_c1s1_000451_03.png. --labels market1501 reads 0002_c1s1_000451_03.jpg; or leave --labels out"
    )
    assert len(find_rows([tmp_path / "crops"], "mars", strict=False)[0]) == len(find_rows([tmp_path / "crops"])[0]) == 2
    assert not list(recwarn)
    find_rows([tmp_path / "crops"], "market1501")
    assert [str(warning.message) for warning in recwarn] == [
        "--labels market1501: 1 of 2 file names do not begin as 0002_c1s1_000451_03.jpg does, such as x.png; they tell "
        "no person and no camera"]  # fmt: skip
    recwarn.clear()
    (tmp_path / "list.csv").write_text("path,pid\ncrops/x.png,4\n")
    find_rows([tmp_path / "crops", tmp_path / "list.csv"], "market1501")
    find_rows([tmp_path / "list.csv"], "mars")
    assert not list(recwarn)
    with pytest.raises(ValueError, match="--labels mars: no file name begins"):
        find_rows([tmp_path / "crops", tmp_path / "list.csv"], "mars")


@pytest.mark.parametrize("order", [["crops", "list.csv", "more.csv"], ["list.csv", "more.csv", "crops"],
                                   ["list.csv", "crops", "more.csv"]])  # fmt: skip
def test_a_list_wins_in_any_order(order, tmp_path):
    """Also over junk in a name, and junk in a list over a folder; of two lists the first wins, field by field."""
    draw(tmp_path, *(f"crops/{name}" for name in ("0002_c1.png", "-1_c1.png", "0003_c1.png", "x.png")))
    (tmp_path / "list.csv").write_text("path,pid,time\ncrops/0002_c1.png,7,\ncrops/-1_c1.png,5,\n"
                                       "crops/0003_c1.png,-1,\n")  # fmt: skip
    (tmp_path / "more.csv").write_text("path,pid,time\ncrops/0002_c1.png,9,33\n")
    with (pytest.warns(UserWarning, match="1 of 4 file names do not begin as .*, such as x.png"),
          pytest.warns(UserWarning, match="person -1 is junk: 1 of 4")):
        rows, missing = find_rows([tmp_path / name for name in order], "market1501")
    found = {os.path.basename(row.path): told(row)[:3] for row in rows}
    assert found == {"0002_c1.png": (7, "1", 33), "-1_c1.png": (5, "1", None), "x.png": (None, "", None)}
    assert missing == []


def test_what_is_not_known_stays_and_the_time_of_a_file_follows_it():
    old = Row("/a", 7, "door", 5.0, "t", size=1, mtime=10**18)
    assert sources.merge_known(Row("/a", size=2, mtime=2 * 10**18), old) == old._replace(size=2, mtime=2 * 10**18)
    assert sources.merge_known(Row("/a", 8, "", 6.0), old)[1:5] == (8, "door", 6.0, "t")
    plain = sources.merge_known(Row("/a", mtime=10**18))
    assert plain.time == 1e9 and sources.merge_known(Row("/a", mtime=2 * 10**18), plain).time == 2e9
    assert sources.merge_known(Row("/a", 0), old).pid == 0


@pytest.mark.parametrize("text, message", [
    ("path,camid\n\"a.png\",\"x\ny\"\n", "line 2: a line break in a cell"),
    ("path,tracklet\na.png,\"x\ry\"\n", "line 2: a line break in a cell"),
    ("path,time\na.png,nan\n", "list.csv, line 2: 'nan' is no time"),
    (f"path,pid\n{'x' * 140000},3\n", "list.csv, line 2: field larger than"),
    (f"path,{'x' * 140000}\n", "list.csv, line 1: field larger than"),
    ("a.png\n", "line 1: no column path in a.png .* The columns of a list are path, pid"),
    ("path,pid\na.png,seven\n", "list.csv, line 2: invalid literal for int.*'seven'"),
    ("path,time\na.png,1\nb.png,noon\n", "list.csv, line 3: 'noon' is no time"),
    ("path\na, b.png\n", "line 2: 'b.png' stands under no column; what holds a comma has to stand in quotes"),
    ("path,pid\n,3\n", "line 2: the path is empty"), ("", "first line"), ("path\n", "this list is empty"),
])  # fmt: skip
def test_lists_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_rows([tmp_path / "list.csv"])


def test_nothing_to_embed(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        find_rows([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no image in or below this folder"):
        find_rows([tmp_path])


def test_a_name_with_a_line_break_is_listed(tmp_path):
    draw(tmp_path, "a\nb.png", "c.png")
    rows, missing = find_rows([tmp_path])
    assert [row.path for row in rows] == [str(tmp_path / "c.png")]
    assert missing == [(str(tmp_path / "a\nb.png"), "its name holds a line break, which a table of names cannot")]


def test_pipes_and_folders_in_a_list_are_listed(tmp_path):
    """A pipe would be waited for without end."""
    draw(tmp_path, "a.png", "sub/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text("pipe.png\n/dev/null\nsub\na.png\nzero\0byte.png\n")
    rows, missing = find_rows([tmp_path / "list.txt"])
    assert [row.path for row in rows] == [str(tmp_path / "a.png")]
    assert [reason for _, reason in missing[:3]] == ["not a file", "not a file", "not a file, but a folder"]
    assert [os.path.basename(path) for path, _ in missing] == ["pipe.png", "null", "sub", "zero\0byte.png"]
    os.mkfifo(tmp_path / "pipe.txt")
    for pipe in ("pipe.png", "pipe.txt"):
        with pytest.raises(ValueError, match="neither a folder nor a file"):
            find_rows([tmp_path / pipe])


def test_an_empty_folder_where_that_is_allowed(tmp_path):
    assert find_rows([tmp_path], empty_ok=True) == ([], [])


@pytest.mark.parametrize("path, tracklet, frame, found", [
    ("/x/1/a.png", "/x/1", "/x/1/b.png", True), ("/x/1/a.png", "/x/1", "/x/1/sub/b.png", False),
    ("/x/1/a.png", "/x/1", "/x/1/sub", False),
    ("/x/0002C1T0003F001.jpg", "0002C1T0003", "/x/0002C1T0003F009.jpg", True),
    ("/x/0002_c1s1_1.jpg", "0002_c1s1", "/x/0002_c1s12_1.jpg", False),
    ("/x/0002_c1s1_1.jpg", "0002_c1s1", "/y/0002_c1s1_2.jpg", False), ("/x/a.jpg", "", "/x/b.jpg", False),
])  # fmt: skip
def test_frames_of_a_stored_tracklet(path, tracklet, frame, found):
    assert sources.is_frame(frame, Row(path, tracklet=tracklet, frames=2 if tracklet else 1)) is found


def test_has_changed(tmp_path):
    draw(tmp_path, "a.png")
    row = find_rows([tmp_path])[0][0]
    assert not sources.has_changed([row.path], row)
    os.utime(row.path, ns=(0, row.mtime + 1))
    assert sources.has_changed([row.path], row)
    os.unlink(row.path)
    assert sources.has_changed([row.path], row)


@pytest.mark.parametrize("path, below", [("/a/b", True), ("/a/b/c.jpg", True), ("/a/bc", False), ("/a", False)])
def test_is_below(path, below):
    assert sources.is_below(path, "/a/b") is below
