"""Ranked answers on paper: as a table on the console, as CSV, as JSON lines.

    answers = Answers(query_rows, gallery_rows, indices, similarities)     # lists of gallery.Row; what top_k gives
    write_answers_jsonl("ranked.jsonl", answers, sys.stdout)

An answer is a row of the gallery, its similarity, and whether it shows the query's person: True, False, or None where
nobody said who one of them is. File names may hold anything, so what goes to a terminal passes through `printable`; in
files names keep their bytes, so that the paths still open.
"""

import base64
import csv
import html
import io
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from images import printable, read_image
from pictures import INK, MAT, QUERY, RIGHT, UNKNOWN, WRONG, fit

NO_LABEL = -2  # the person of an image whose name tells none
DETAILS = ("pid", "camid", "time", "tracklet")  # of a gallery row, in the files


def tell(text=""):
    """Prints one line."""
    print(printable(text))


def is_match(query_pid, gallery_pid):
    """None where it cannot be known: an image without a label, or a query that is no person."""
    if query_pid is None or gallery_pid is None:
        return None
    return None if query_pid <= 0 or gallery_pid == NO_LABEL else bool(query_pid == gallery_pid)


def print_table(rows, query_root, gallery_root):
    """File names are relative to the folder that the user gave."""
    def name(path, root):
        path = Path(path)
        return printable(path.relative_to(root) if path != Path(root) and path.is_relative_to(root) else path.name)

    width = max(len(name(query, query_root)) for query, _ in rows)
    print(f"\n{'query':<{width}}  rank  similarity  gallery")
    for query, ranked in rows:
        for number, (path, similarity, match) in enumerate(ranked, start=1):
            verdict = {True: "  right", False: "  wrong", None: ""}[match]
            print(f"{name(query, query_root):<{width}}  {number:>4}  {similarity:>10.4f}  "
                  f"{name(path, gallery_root)}{verdict}")


def write_csv(path, rows, labelled):
    """match is 1, 0 or empty. Names that are not valid UTF-8 keep their bytes, so that the paths still open."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "similarity", "gallery"] + ["match"] * labelled)
        for query, ranked in rows:
            for number, (gallery, similarity, match) in enumerate(ranked, start=1):
                verdict = ["" if match is None else int(match)] * labelled
                writer.writerow([query, number, f"{similarity:.6f}", gallery, *verdict])


def open_output(path, console):
    """A file to write text to; '-' is the console. Names that are not valid UTF-8 keep their bytes."""
    path, close = (console.fileno(), False) if path == "-" else (path, True)
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape", closefd=close)


def write_answers_csv(path, answers, console):
    """On a terminal names are escaped; in a file, or a pipe, they keep their bytes."""
    plain = printable if path == "-" and console.isatty() else str
    with open_output(path, console) as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "similarity", "gallery", "match", *DETAILS])
        for query, ranked in answers:
            for number, (row, similarity, match) in enumerate(ranked, start=1):
                details = ["" if value is None else value for value in (getattr(row, name) for name in DETAILS)]
                details = [plain(value) if isinstance(value, str) else value for value in details]
                writer.writerow([plain(query.path), number, f"{similarity:.6f}", plain(row.path),
                                 "" if match is None else int(match), *details])  # fmt: skip


def write_answers_jsonl(path, answers, console):
    """A line per query: {"query": path, "results": [{"rank", "similarity", "gallery", "match", "pid", ...}, ...]}."""
    with open_output(path, console) as file:
        for query, ranked in answers:
            results = [{"rank": number, "similarity": round(similarity, 6), "gallery": row.path, "match": match,
                        **{name: getattr(row, name) for name in DETAILS}}
                       for number, (row, similarity, match) in enumerate(ranked, start=1)]  # fmt: skip
            file.write(json.dumps({"query": query.path, "results": results}) + "\n")


def counted(count, one, many):
    return f"{count:,} {one if count == 1 else many}"


def print_unreadable(unreadable):
    if unreadable:
        tell(f"{counted(len(unreadable), 'image', 'images')} could not be read, left out:")
        for path, reason in unreadable:
            tell(f"  {path}: {reason}")


class Answers:
    """(query row, [(gallery row, similarity, match), ...]) of each query that has any; made as they are looked at."""

    def __init__(self, queries, rows, indices, similarities):
        self.queries, self.rows, self.indices, self.similarities = queries, rows, indices, similarities
        self.ranked = np.flatnonzero(indices[:, 0] >= 0)

    def __len__(self):
        return len(self.ranked)

    def __iter__(self):
        return self.first(len(self.ranked))

    def first(self, count):
        for q in self.ranked[:count]:
            yield self.queries[q], [(self.rows[g], float(s), is_match(self.queries[q].pid, self.rows[g].pid))
                                    for g, s in zip(self.indices[q], self.similarities[q], strict=True)
                                    if g >= 0]  # fmt: skip


def common_root(rows):
    """The folder that names in the table are relative to: what all paths share."""
    parents = {os.path.dirname(row.path) for row in rows}
    return os.path.commonpath(parents) if parents and all(map(os.path.isabs, parents)) else "/"


# ----------------------------------------------------------------------------------------------------------------------
# One HTML page that holds everything: images, style, no script


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
