"""Ranked answers for people and programs: a table on the console, CSV, JSON lines, a picture, one HTML page.

    answers = Answers(query_rows, gallery_rows, indices, similarities)     # lists of gallery.Row; what top_k gives
    print_table(answers.first(20), "queries/", "crops/")
    write_csv("ranked.csv", answers)
    write_page("ranked.html", answers.first(500), title="Ranked lists")    # holds its images and its style, no script

All of them take one shape: (query row, [(gallery row, similarity, match), ...]) of each query. match: whether it shows
the query's person: True, False, or None where nobody said who one of them is. File names may hold anything, so what
goes to a terminal or a page passes through `printable`; in files names keep their bytes, so that the paths still open,
and what a spreadsheet would take for a formula is marked as text (gallery.to_cell).
"""

import base64
import csv
import html
import io
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from images import printable, read_image
from pictures import FRAMES, INK, MAT, QUERY, TILE, fit, ranked_grid
from searching.gallery import to_cell
from searching.sources import is_known, is_proposed

DETAILS = ("pid", "camid", "time", "tracklet")  # of a gallery row, in the files
VERDICTS = {True: "right", False: "wrong", None: "unknown"}


class Answers:
    """The answers to each query that has any; made as they are looked at. nobody: see is_match."""

    def __init__(self, queries, rows, indices, similarities, nobody=False):
        self.queries, self.rows, self.indices, self.similarities = queries, rows, indices, similarities
        self.nobody = nobody
        self.ranked = np.flatnonzero(indices[:, 0] >= 0)

    def __len__(self):
        return len(self.ranked)

    def __iter__(self):
        return self.first(len(self.ranked))

    def first(self, count, top=None):
        """Those of so many queries, at most `top` each."""
        for q in self.ranked[:count]:
            query, found = self.queries[q], zip(self.indices[q, :top], self.similarities[q, :top], strict=True)
            yield query, [(self.rows[g], float(s), is_match(query.pid, self.rows[g].pid, self.nobody))
                          for g, s in found if g >= 0]  # fmt: skip


def is_match(query_pid, gallery_pid, nobody=False):
    """None where it cannot be known: an image without a label or with one that was only proposed, or a query that is
    junk or, with nobody, person 0."""
    if not is_known(query_pid, nobody) or gallery_pid is None or is_proposed(gallery_pid):
        return None
    return query_pid == gallery_pid


# ---- on the console ----


def tell(text="", stream="stdout"):
    """Prints one line. Where nobody reads it any more the work goes on all the same, and what follows goes nowhere;
    search.main sees that from the stream, which is another one then."""
    file = getattr(sys, stream)
    try:
        print(printable(text), file=file, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # for what is left in its buffer
        setattr(sys, stream, open(os.devnull, "w"))
        if not isinstance(error, BrokenPipeError) and stream == "stdout":
            tell(f"the console cannot be written to ({error.strerror}); the work goes on", "stderr")


def counted(count, one, many):
    return f"{count:,} {one if count == 1 else many}"


def print_unreadable(unreadable):
    if unreadable:
        tell(f"{counted(len(unreadable), 'image', 'images')} could not be read, left out:")
        for path, reason in unreadable:
            tell(f"  {path}: {reason}")


def common_root(rows):
    """The folder that names in the table are relative to: what all paths share."""
    parents = {os.path.dirname(row.path) for row in rows}
    return os.path.commonpath(parents) if parents and all(map(os.path.isabs, parents)) else "/"


def print_table(answers, query_root, gallery_root):
    """File names are relative to those folders."""
    def name(row, root):
        path = Path(row.path)
        return printable(path.relative_to(root) if path != Path(root) and path.is_relative_to(root) else path.name)

    answers = list(answers)
    width = max(len(name(query, query_root)) for query, _ in answers)
    tell()
    tell(f"{'query':<{width}}  rank  similarity  gallery")
    for query, ranked in answers:
        for number, (row, similarity, match) in enumerate(ranked, start=1):
            verdict = f"  {VERDICTS[match]}" if match is not None else ""
            tell(f"{name(query, query_root):<{width}}  {number:>4}  {similarity:>10.4f}  "
                 f"{name(row, gallery_root)}{verdict}")


# ---- files ----


def open_output(path, console):
    """A file to write text to; '-' is the console. Names that are not valid UTF-8 keep their bytes."""
    path, close = (console.fileno(), False) if path == "-" else (path, True)
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape", closefd=close)


def write_csv(path, answers, columns=("match", *DETAILS), console=None):
    """A line per answer: query, rank, similarity, gallery, and these columns; match is 1, 0 or empty. On a terminal
    names are escaped; in a file, or a pipe, they keep their bytes."""
    escape = path == "-" and console.isatty()
    with open_output(path, console) as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "similarity", "gallery", *columns])
        for query, ranked in answers:
            for number, (row, similarity, match) in enumerate(ranked, start=1):
                verdict = None if match is None else int(match)
                line = [to_cell(query.path, "./"), number, f"{similarity:.6f}", to_cell(row.path, "./")]
                line += [verdict if name == "match" else to_cell(getattr(row, name)) for name in columns]
                writer.writerow([printable(value) if isinstance(value, str) else value for value in line]
                                if escape else line)  # fmt: skip


def write_jsonl(path, answers, console=None):
    """A line per query: {"query": path, "results": [{"rank", "similarity", "gallery", "match", "pid", ...}, ...]}."""
    with open_output(path, console) as file:
        for query, ranked in answers:
            results = [{"rank": number, "similarity": round(similarity, 6), "gallery": row.path, "match": match,
                        **{name: getattr(row, name) for name in DETAILS}}
                       for number, (row, similarity, match) in enumerate(ranked, start=1)]  # fmt: skip
            file.write(json.dumps({"query": query.path, "results": results}) + "\n")


def write_picture(path, answers):
    """Ranked lists as pictures.ranked_grid draws them. Returns [(path, reason)] of images that are gone or spoilt since
    they were embedded; their tiles say so."""
    drawn = [(query.path, [(row.path, similarity, match) for row, similarity, match in ranked])
             for query, ranked in answers]  # fmt: skip
    reasons = {}
    for image in {image for query, ranked in drawn for image in (query, *(answer[0] for answer in ranked))}:
        try:
            read_image(image)
        except Exception as error:  # as many classes as there are kinds of broken files
            reasons[image] = f"not drawn: {error}"
    jpeg = Path(path).suffix.lower() in (".jpg", ".jpeg")
    ranked_grid(drawn).save(path, **({"quality": 90, "subsampling": 0} if jpeg else {}))
    return sorted(reasons.items())


# ---- one HTML page ----


STYLE = Template("""
body { font: 14px/1.4 system-ui, sans-serif; margin: 24px; color: $ink; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } h1, h2, p { overflow-wrap: anywhere; }
h2 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .4rem; padding-top: .6rem; border-top: 1px solid #ddd; }
p { margin: 0 0 .5rem; color: #5f5f5f; }
/* ten answers in a row of 1300 pixels with a scroll bar: 2 x 24 + 126 + 10 x 102 + 9 x 8 = 1266 */
ol { list-style: none; margin: 0; padding: 0 0 0 126px; display: flex; flex-wrap: wrap; gap: 8px; }
li { width: 102px; font-size: 11px; overflow-wrap: anywhere; }
li:first-child { margin: 0 16px 0 -126px; } /* a column of its own, also where answers wrap: -126 + 102 + 16 + 8 = 0 */
img, .gone { display: block; box-sizing: border-box; width: 102px; height: 198px; border: 3px solid; background: $mat; }
.gone { padding: .5rem; color: #5f5f5f; }
b { font-size: 13px; } small { font-size: 11px; color: #5f5f5f; display: block; }
.name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.end { white-space: nowrap; }
.query { border-color: $query; } .right { border-color: $right; }
.wrong { border-color: $wrong; } .unknown { border-color: $unknown; }
@media print { h2 { break-before: auto; } ol { break-inside: avoid; } }
""")


def style():
    colours = {"ink": INK, "mat": MAT, "query": QUERY, **{VERDICTS[match]: FRAMES[match] for match in VERDICTS}}
    return STYLE.substitute({name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in colours.items()})


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
    stem, suffix = os.path.splitext(name)
    stem, end = stem[:-4], stem[-4:] + suffix  # no line ends within .jpg, or just before it
    shown = f"{show(stem)}<span class=\"end\">{show(end)}</span>" if len(suffix) < 6 else show(name)
    picture = f'<img class="{kind}" src="{uri}" alt="{show(name)}">' if uri else \
        f'<div class="gone {kind}">image cannot be read</div>'  # fmt: skip
    return f'<li title="{show(path)}">{picture}{"".join(lines)}<small class="name">{shown}</small></li>'


def write_page(path, answers, *, title, notes=()):
    """notes: lines under the title."""
    with open_output(path, None) as file:
        file.write(f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{show(title)}</title>\n'
                   '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                   f"<style>{style()}</style></head>\n<body><h1>{show(title)}</h1>\n")
        for note in notes:
            file.write(f"<p>{show(note)}</p>\n")
        for number, (query, ranked) in enumerate(answers, start=1):
            file.write(f'<h2 id="q{number}">{number}. {show(os.path.basename(query.path))}</h2>\n<ol>')
            file.write(tile(query.path, "query", ["<b>query</b>"]))
            for rank, (row, similarity, match) in enumerate(ranked, start=1):
                lines = [f"<b>{rank}.</b> {similarity:.3f}" + (f" {VERDICTS[match]}" if match is not None else "")]
                told = [f"camera {row.camid}"] * bool(row.camid) + [f"{row.frames} frames"] * (row.frames > 1)
                lines += [f"<small>{show(', '.join(told))}</small>"] if told else []
                file.write("\n" + tile(row.path, VERDICTS[match], lines))
            file.write("</ol>\n")
        file.write("</body></html>\n")
