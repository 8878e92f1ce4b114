"""Tests of review.py: the table of people, and the page, which a browser without a screen works through.

python -m pytest tests/searching/test_review.py
"""

import csv
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import draw

from searching import review
from searching.gallery import Row
from searching.groups import Groups

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def some_people(tmp_path, known=()):
    """Eight images: persons 2 (four, of which the last is a stranger) and 3 (three), and one that stands alone."""
    paths = [str(draw(tmp_path / f"{number}, \"so\".png", number)) for number in range(8)]
    rows = [Row(path, pid=dict(known).get(number)) for number, path in enumerate(paths)]
    person = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    doubts = [[[0, 1, 2], [3], True], [[0, 1, 2, 3], [4, 5, 6], False], [[4, 5, 6], [7], False], [[4], [5, 6], True]]
    found = Groups(person, np.array([0.9, 0.8, 0.9, 0.5, 0.7, 0.7, 0.6, 0.4]), {}, [[number] for number in range(8)],
                   doubts, 0.3, [])  # fmt: skip
    return rows, found


def test_people_are_numbered_from_2_or_behind_those_known():
    def number(person, known, pids):
        found = Groups(np.array(person), None, known, [], [], 0, [])
        return review.number_people(found, [Row("a", pid=pid) for pid in pids])

    assert number([0, 1, -1, 1], {}, [None, None, -1, -40]) == [2, 3, None, 3]
    assert number([0, 1, 2, 0], {1: 7, 2: 1}, [None, 7, 1, None]) == [8, 7, 1, 8]


def test_the_table_comes_back(tmp_path):
    rows, found = some_people(tmp_path, known=[(4, 9)])
    numbers = [2, 2, 2, 2, 9, 9, 9, None]
    review.write_people(tmp_path / "people.csv", rows, numbers, found.confidence)
    persons, reviewed = review.read_people(str(tmp_path / "people.csv"))
    assert persons == {row.path: number for row, number in zip(rows, numbers, strict=True)}
    assert reviewed == {rows[4].path}  # which was known before
    with open(tmp_path / "people.csv", newline="") as file:
        assert list(next(csv.DictReader(file)).values()) == [rows[0].path, "2", "0.900", "0"]


def test_a_list_by_hand_is_reviewed_and_relative(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "people.csv").write_text("Path, Person\na.png,4\nb,-1\nc,\n")
    persons, reviewed = review.read_people(str(tmp_path / "people.csv"))
    assert persons == {"a.png": 4, str(tmp_path / "a.png"): 4, "b": -1, "c": None} and reviewed == set(persons)


@pytest.mark.parametrize(("text", "message"), [
    ("path,pid\na,1\n", "no column person"),
    ("path,person\na,anna\n", "line 2: person 'anna'"),
    ("path,person,reviewed\na,1,yes\n", "line 2: person '1', reviewed 'yes'"),
    ("path,person\na,-7\n", "line 2: person -7"),
    ("path,person\na,1\na,2\n", "line 3: a is person 1 and 2"),
])  # fmt: skip
def test_tables_that_cannot_be_read(text, message, tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        review.read_people(str(path))


def test_the_page_holds_the_most_doubtful(tmp_path, monkeypatch):
    rows, found = some_people(tmp_path)
    monkeypatch.setattr(review, "CROPS", 5)
    assert review.write_page(tmp_path / "p.html", rows, [2, 2, 2, 2, 3, 3, 3, None], found, "<who>") == 3
    text = (tmp_path / "p.html").read_text()
    assert "<title>&lt;who&gt;</title>" in text and "http" not in text.replace("http-equiv", "")
    data = json.loads(re.search('id="data">(.*?)</script>', text)[1])
    assert len(data["crops"]) == 5 and {crop["person"] for crop in data["crops"]} == {2, 3}
    assert all(crop["image"].startswith("data:image/jpeg;base64,") for crop in data["crops"])


def browse(page, script):
    """The page's table after a script, in a browser without a screen: {number in the file's name: (person, reviewed)}.
    """
    script += "; document.body.innerHTML = '<pre></pre>'; document.querySelector('pre').textContent = table();"
    text = f"{page.read_text()}<script>{script}</script>"
    (page.parent / "run.html").write_text(text)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}",
               "--dump-dom", (page.parent / "run.html").as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    table = html.unescape(re.search("<pre>(.*)</pre>", shown, re.DOTALL)[1])
    lines = list(csv.DictReader(io.StringIO(table)))
    return {int(re.search(r"(\d), \"so", line["path"])[1]): (line["person"], line["reviewed"]) for line in lines}


KEYS = """
const press = key => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const tiles = [...document.querySelectorAll('#cards .crop')];
const choose = name => tiles.find(crop => crop.title.includes('/' + name + ', ')).click();
"""
PLAIN = {**dict.fromkeys(range(4), ("2", "0")), **dict.fromkeys(range(4, 7), ("3", "0")), 7: ("", "0")}


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize(("script", "changed"), [
    ("", {}),
    ("press('n')", {0: ("2", "1"), 1: ("2", "1"), 2: ("2", "1"), 3: ("4", "1")}),
    ("press('y')", dict.fromkeys(range(4), ("2", "1"))),
    ("press(' '); press('y')", dict.fromkeys(range(7), ("2", "1"))),
    ("press(' '); press(' '); press('y')", dict.fromkeys(range(4, 8), ("3", "1"))),
    ("press(' '); press(' '); press('n')", {**dict.fromkeys(range(4, 7), ("3", "1")), 7: ("4", "1")}),
    ("press('n'); press('u')", {}),
    ("choose(3); press('s')", {3: ("4", "1")}),
    ("choose(3); choose(4); press('m')", {3: ("2", "1"), 4: ("2", "1"), 5: ("2", "0"), 6: ("2", "0")}),
    ("choose(7); press('x'); choose(0); press('Escape'); press('m')", {7: ("-1", "1")}),
    ("choose(3); press('s'); press('n')", {**dict.fromkeys(range(3), ("2", "1")), 3: ("4", "1")}),
    ("choose(1); press('s'); press('y')", {**dict.fromkeys([0, 2, 3], ("2", "1")), 1: ("4", "1")}),
    ("[...document.querySelectorAll('main button')].find(b => b.textContent.startsWith('all of')).click()",
     dict.fromkeys(range(4, 7), ("3", "1"))),
])  # fmt: skip
def test_decisions_by_keys_and_by_mouse(script, changed, tmp_path):
    rows, found = some_people(tmp_path)
    review.write_page(tmp_path / "people.html", rows, [2, 2, 2, 2, 3, 3, 3, None], found, "who")
    assert browse(tmp_path / "people.html", KEYS + script) == {**PLAIN, **changed}


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_what_was_decided_is_there_when_the_page_is_opened_again(tmp_path):
    rows, found = some_people(tmp_path)
    review.write_page(tmp_path / "people.html", rows, [2, 2, 2, 2, 3, 3, 3, None], found, "who")
    first = browse(tmp_path / "people.html", KEYS + "press('n')")
    assert first[3] == ("4", "1") and browse(tmp_path / "people.html", "") == first
