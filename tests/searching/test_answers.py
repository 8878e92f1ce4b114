"""Tests of answers.py: one page that holds everything, whatever files are called.

python -m pytest tests/searching/test_answers.py
"""

import base64
import csv
import io
import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from tiny_onnx import person

from pictures import TILE
from searching import answers
from searching.gallery import Row


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / name for name in ("q.png", "a.png", "b.png", "c.png")]
    for number, path in enumerate(paths):
        person(number).save(path)
    return paths


def test_a_page_holds_everything(images, tmp_path):
    q, a, b, c = map(Row, map(str, images))
    rows = [(q, [(a._replace(camid="3"), 0.93, True), (b, 0.5, False), (c, -0.25, None)]), (a, [])]
    answers.write_page(tmp_path / "page.html", rows, title="Ranked", notes=["2 queries"])
    page = Page(tmp_path / "page.html")
    assert [i["alt"] for i in page.all("img")] == ["q.png", "a.png", "b.png", "c.png", "a.png"]
    assert [i["class"] for i in page.all("img")] == ["query", "right", "wrong", "unknown", "query"]
    for image in page.all("img"):
        data = image["src"].removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == TILE
    text = " ".join(" ".join(page.text).split())
    for words in ("2 queries", "1. 0.930 right camera 3", "2. 0.500 wrong", "3. -0.250 c.png", "1. q.png", "2. a.png"):
        assert words in text
    assert not [t for t, _ in page.tags if t in ("script", "link", "iframe")]
    data = (tmp_path / "page.html").read_text()
    assert "http" not in data and "url(" not in data  # nothing is loaded from elsewhere


def test_ten_answers_fit_in_a_row_and_endings_are_whole(tmp_path):
    """The sum that the browser makes at 1,300 pixels, less 15 for a scroll bar; and what may not be broken."""
    style = answers.style()
    li, gap = (int(re.search(pattern, style)[1]) for pattern in (r"li { width: (\d+)px", r"gap: (\d+)px"))
    padding, body = int(re.search(r"padding: 0 0 0 (\d+)px", style)[1]), int(re.search(r"margin: (\d+)px;", style)[1])
    assert 2 * body + padding + 10 * li + 9 * gap <= 1285
    assert f"margin: 0 {padding - li - gap}px 0 -{padding}px" in style and ".end { white-space: nowrap; }" in style
    names = ["0002_c1s1_000451_03.jpg", "a.png", "none", "x" * 200 + ".jpeg", "a.long_ending"]
    rows = [(Row(f"/nowhere/{name}"), []) for name in names]
    answers.write_page(tmp_path / "page.html", rows, title="x")
    page = (tmp_path / "page.html").read_text()
    assert re.findall('<span class="end">(.*?)</span>', page) == ["1_03.jpg", "a.png", "none", "xxxx.jpeg"]
    assert '>0002_c1s1_00045<span class="end">1_03.jpg</span></small>' in page and ">a.long_ending</small>" in page


def test_cells_of_tables_are_no_formulas(tmp_path):
    """Paths open still; numbers are numbers."""
    query = Row("=q.png", 1, "1")
    rows = [Row("+a.png", 0, "=1+1", -5.0, "@t"), Row("/x/=b.png", 1, "-", None, "-t")]
    answers.write_csv(tmp_path / "r.csv", [(query, [(rows[0], -0.5, False), (rows[1], 0.5, True)])])
    with open(tmp_path / "r.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["./=q.png", "1", "-0.500000", "./+a.png", "0", "0", "'=1+1", "-5.0", "'@t"],
            ["./=q.png", "2", "0.500000", "/x/=b.png", "1", "1", "'-", "", "'-t"]]  # fmt: skip


def test_names_are_escaped(tmp_path):
    """Names that look like HTML, non-ASCII ones, one that is not UTF-8, and a very long one."""
    names = ['<script>alert("1")</script> & \'x\'.png', "名前 é.png", "x" * 240 + ".png"]
    names = [name.replace("/", "∕") for name in names]
    paths = [os.path.join(tmp_path, name) for name in names] + [os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")]
    for path in paths:
        person(1).save(path)
    rows = [(Row(path), [(Row(path, camid="<b>", frames=3), 0.5, None)]) for path in paths]
    answers.write_page(tmp_path / "page.html", rows, title="<i>", notes=["<u> & co"])
    page = Page(tmp_path / "page.html")
    assert not {"script", "i", "u"} & {tag for tag, _ in page.tags}
    assert [image["alt"] for image in page.all("img")][::2] == [*names, "caf\\xe9.png"]
    assert all(li["title"] for li in page.all("li"))
    assert "camera <b>, 3 frames" in page.text and "<u> & co" in page.text


def test_images_that_are_gone_leave_a_place(images, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    gone, text, q = (Row(str(path)) for path in (tmp_path / "gone.png", tmp_path / "text.jpg", images[0]))
    rows = [(gone, [(text, 0.5, True), (q, 0.4, True)])]
    answers.write_page(tmp_path / "page.html", rows, title="x")
    page = Page(tmp_path / "page.html")
    assert len(page.all("img")) == 1 and page.text.count("image cannot be read") == 2
    assert {div["class"] for div in page.all("div")} == {"gone query", "gone right"}
