"""Ranked lists as one HTML page that holds everything: images, style, no script, nothing loaded from elsewhere.

    write_page("ranked.html", [("q.jpg", [("a.jpg", 0.93, True, "camera 3")])], title="crops")

One section per query: the query, then the gallery images from the most similar on, each framed green (same person), red
(another person) or grey (nobody said who it is), with what a screen reader or a reader who does not see red and green
needs: the verdict stands there as a word too. Images are shrunk to what is shown. NumPy is not needed; Pillow is.
"""

import base64
import html
import io
import os
from functools import lru_cache

from PIL import Image

from decode import printable, read_image
from visualize import INK, MAT, QUERY, RIGHT, UNKNOWN, WRONG, fit

TILE = 96, 192  # pixels, as they are shown
VERDICTS = {True: ("right", RIGHT), False: ("wrong", WRONG), None: ("unknown", UNKNOWN)}


def colour(rgb):
    return "#{:02x}{:02x}{:02x}".format(*rgb)


STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: INK; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } h1, h2, p { overflow-wrap: anywhere; }
h2 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .4rem; padding-top: .6rem; border-top: 1px solid #ddd; }
p { margin: 0 0 .5rem; color: #5f5f5f; }
ol { list-style: none; margin: 0; padding: 0 0 0 130px; display: flex; flex-wrap: wrap; gap: 10px; }
li { width: 104px; font-size: 11px; overflow-wrap: anywhere; }
li:first-child { margin: 0 16px 0 -130px; } /* a column of its own, also where answers wrap: -130 + 104 + 16 + 10 = 0 */
img, .gone { display: block; box-sizing: border-box; width: 102px; height: 198px; border: 3px solid; background: MAT; }
.gone { padding: .5rem; color: #5f5f5f; }
b { font-size: 13px; } small { font-size: 11px; color: #5f5f5f; display: block; }
.name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.query { border-color: QUERYCOLOUR; } RULES
@media print { h2 { break-before: auto; } ol { break-inside: avoid; } }
"""


def style():
    rules = " ".join(f".{name} {{ border-color: {colour(rgb)}; }}" for name, rgb in VERDICTS.values())
    text = STYLE.replace("QUERYCOLOUR", colour(QUERY)).replace("RULES", rules)
    return text.replace("INK", colour(INK)).replace("MAT", colour(MAT))


def show(text):
    """A name for people: escaped for HTML; control characters and bytes that are not UTF-8 written as \\x1b, \\xe9."""
    return html.escape(printable(text))


@lru_cache(maxsize=4096)  # the same gallery image answers many queries
def data_uri(path):
    """A shrunk JPEG inside a data URI; None where the file cannot be read, or no longer."""
    try:
        image = Image.fromarray(read_image(path))
    except Exception:  # as many classes as there are kinds of broken files
        return None
    file = io.BytesIO()
    fit(image, TILE).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def tile(path, kind, lines):
    """One list entry: the image, or a word where it is gone, then lines of HTML."""
    uri, name = data_uri(path), os.path.basename(path)
    picture = f'<img class="{kind}" src="{uri}" alt="{show(name)}">' if uri else \
        f'<div class="gone {kind}">image cannot be read</div>'  # fmt: skip
    return f'<li title="{show(path)}">{picture}{"".join(lines)}<small class="name">{show(name)}</small></li>'


def write_page(path, rows, *, title, notes=()):
    """rows: [(query path, [(gallery path, similarity, match, remark), ...]), ...]; match is True, False or None; remark
    is a text below the similarity, such as the camera. notes: lines under the title."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{show(title)}</title>\n'
                   '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                   f"<style>{style()}</style></head>\n<body><h1>{show(title)}</h1>\n")
        for note in notes:
            file.write(f"<p>{show(note)}</p>\n")
        for number, (query, ranked) in enumerate(rows, start=1):
            file.write(f'<h2 id="q{number}">{number}. {show(os.path.basename(query))}</h2>\n<ol>')
            file.write(tile(query, "query", ["<b>query</b>"]))
            for rank, (gallery, similarity, match, remark) in enumerate(ranked, start=1):
                verdict, _ = VERDICTS[match]
                lines = [f"<b>{rank}.</b> {similarity:.3f}" + (f" {verdict}" if match is not None else "")]
                lines += [f"<small>{show(remark)}</small>"] if remark else []
                file.write("\n" + tile(gallery, verdict, lines))
            file.write("</ol>\n")
        file.write("</body></html>\n")
