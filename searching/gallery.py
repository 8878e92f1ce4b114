"""A gallery of features, in memory or as a folder on disk, and exact search in it. No torch.

    gallery = Gallery(1024)                                         # in memory
    gallery = Index.open("shop.index", about)                       # a folder, made where it is missing, to write into
    gallery = Index.read("shop.index")                              # the same, to search in
    gallery.append(features, rows)                                  # (n, D) float32 of length 1, n of Row
    indices, similarities = top_k(queries, gallery.features, 10)

| file of an index | what |
|---|---|
| features.npy | float32 (N, D), each row of length 1: a plain NumPy file, for FAISS, pgvector, Milvus or Qdrant |
| items.csv | what row i is of, in the same order: path, pid, camid, time, tracklet, frames, size, mtime; see to_cell |
| index.json | which model made the features (hash of its weights, network, precision) and their size |

An index is consistent at any moment, whatever stops the process that writes it. Rows are appended behind the length
that the header of features.npy tells, then their lines to items.csv, then the header is brought up to date: what a kill
or a full disk leaves unfinished is cut off when the index is next opened to write, and not looked at before. Rows are
removed by writing both files anew beside the old ones; a file `replacing` says that both are complete, and whoever
finds it puts them in place. One process writes at a time; readers need not wait. What is no file of its own (a pipe,
which would be waited for without end; a link, through which a writer would spoil what it leads to) is refused, and so
is an index in which a row is not of length 1: NaN among its features would hide other answers.

Ranking is by dot product, exact, block by block, so features may lie in a file larger than memory. Equal similarities
rank in gallery order; they are equal up to the rounding of float32, which depends on how many rows are multiplied at
once, so two copies of an image may swap places.
Letters: N rows, D feature size, Q queries, G gallery, q g a block of them.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import stat
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from images import camera_name, cpus, lock, replacing

FILES = "features.npy", "items.csv", "index.json", "replacing"  # of an index; the last while rows are removed
HEAD = 128  # bytes before the rows in features.npy
QUERY_BLOCK, GALLERY_BLOCK = 1024, 8192  # at the least
LARGEST = 2**17  # rows of a block for few queries; the library's matrix product is faster where blocks are large
HELD = 2**23  # similarities at once: 32 MB
FEW = 3  # queries up to which rows are read once and multiplied one by one: what counts then is reading them
SLICE = 2**24  # bytes of the gallery that a thread multiplies at a time; fewer, and the calls take longer
READERS = min(8, cpus())  # threads that do so
SPARSE = 0.25, 0.5  # of the rows of a block, for few queries and for more: below that the chosen ones are copied
LONGEST = 2**17 - 1  # characters of a field, which is what Python's csv module reads
FORMULA = re.compile(r"'*[=+@\t\r\uff1d\uff0b\uff20\uff0d-]")  # how they begin; of full width, too


class Row(NamedTuple):
    """What is known of a row of features: of an image, or of a tracklet, whose path is that of its first frame."""

    path: str
    pid: int | None = None  # the person, as names or a list give it; None: unknown
    camid: str = ""  # the camera, as names or a list give it; empty: unknown
    time: float | None = None  # frame number, or seconds since 1970
    tracklet: str = ""
    frames: int = 1
    size: int = 0  # of the file, bytes; of a tracklet, of all
    mtime: int = 0  # when the file was last written, nanoseconds; of a tracklet, the latest


TITLE = ",".join(Row._fields).encode() + b"\n"  # the first line of items.csv

# ---- ranking ----

def top_k(query_features, gallery_features, k, leave_out=(), block=None, rows=None):
    """The k gallery rows with the largest dot product with each query -> (indices, similarities), both (Q, k).

    leave_out: pairs (query_keys (Q,), gallery_keys (G,)); where the keys are equal, that gallery row is left out for
    that query. rows: ascending numbers of the gallery rows that are searched at all; None: all of them. Equal
    similarities rank in gallery order. Index -1 fills up a query that has fewer than k rows; a row whose product is NaN
    is none.
    """
    if k < 1:
        raise ValueError(f"k is {k}; a ranking needs at least 1")
    count = len(gallery_features)
    indices = np.full((len(query_features), k), -1)
    similarities = np.full((len(query_features), k), -np.inf, np.float32)
    block = block or min(LARGEST, max(GALLERY_BLOCK, HELD // max(1, len(query_features))))
    leave_out = [(ours, theirs, np.isin(ours, theirs)) for ours, theirs in leave_out]
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, count, block):
            stop = min(start + block, count)
            chosen, numbers, dropped = slice(start, stop), np.arange(start, stop), None
            if rows is not None:
                inside = rows[slice(*np.searchsorted(rows, (start, stop)))]
                if not len(inside):
                    continue
                if len(inside) < SPARSE[len(query_features) > FEW] * len(numbers):
                    chosen = numbers = inside
                else:  # multiplying the others too takes less time than copying these
                    dropped = np.ones(len(numbers), bool)
                    dropped[inside - start] = False
            part = gallery_features[chosen]  # (g, D): a view, or a copy of few rows
            for first in range(0, len(query_features), QUERY_BLOCK):
                queries = slice(first, first + QUERY_BLOCK)
                scores = products(query_features[queries], part, pool)  # (q, g)
                for query_keys, gallery_keys, shared in leave_out:
                    some = np.flatnonzero(shared[queries])  # mostly none; comparing all takes as long as multiplying
                    row, column = np.nonzero(query_keys[queries][some, None] == gallery_keys[None, chosen])
                    scores[some[row], column] = -np.inf
                if dropped is not None:
                    scores[:, dropped] = -np.inf
                merge(indices[queries], similarities[queries], scores, numbers)
    return indices, similarities


def products(queries, part, pool):
    """queries (q, D) x part (g, D) -> (q, g). A few queries are multiplied row by row while a slice of the gallery is
    in the cache: the library's matrix product first copies what it multiplies, which takes longer than to read it."""
    part = np.asarray(part)  # slices of a memory-mapped array take longer to make
    if len(queries) > FEW:
        return queries @ part.T
    scores = np.empty((len(queries), len(part)), np.float32)
    step = max(1, SLICE // (4 * part.shape[1]))

    def fill(span):
        for start in range(span.start, span.stop, step):
            columns = slice(start, min(start + step, span.stop))
            for query, line in zip(queries, scores, strict=True):
                # np.vecdot, which NumPy 1.26 lacks, to the bit
                np.matmul(part[columns, None], query[:, None], out=line[columns, None, None])

    edges = np.linspace(0, len(part), 8 * READERS + 1).astype(int).tolist()
    list(pool.map(fill, map(slice, edges[:-1], edges[1:])))
    return scores


def merge(indices, similarities, scores, numbers):
    """Updates the best (q, k) in place with the scores (q, g) of the rows of these numbers (g,). All of them stand
    behind the earlier ones: what ties with the last of the best comes too late."""
    k = indices.shape[1]
    floor = similarities[:, -1:]  # to be beaten
    better = scores > floor
    if scores.shape[1] > k and np.count_nonzero(better) > 8 * better.shape[0] + better.size // 64:
        # many: the k best of this block are enough. (NaN, which is not better, would be the largest to np.partition.)
        floor = np.partition(np.where(better, scores, -np.inf), -k, axis=1)[:, -k, None]
        better &= scores >= floor
    rows, columns = np.divmod(np.flatnonzero(better), scores.shape[1])
    if not len(rows):
        return
    changed, first = np.unique(rows, return_index=True)
    for row, begin, end in zip(changed, first, [*first[1:], len(rows)], strict=True):
        new = columns[begin:end]
        values = np.concatenate([similarities[row], scores[row, new]])
        order = np.argsort(-values, kind="stable")[:k]
        similarities[row], indices[row] = values[order], np.concatenate([indices[row], numbers[new]])[order]


def identity(row):
    """What tells tracklets apart: rows of another person or camera are another tracklet. Of a row without one: None."""
    return (row.tracklet, row.pid, row.camid) if row.tracklet else None


def average_tracklets(features, rows, chosen=None):
    """One feature per tracklet: the mean of those of its rows, of length 1 again; rows without one stay by themselves.
    chosen: numbers of the rows that count. -> (features, rows, [numbers of the rows of each]), in order of the first
    row of each."""
    merged, members = merge_tracklets(rows, chosen)
    return mean_features(features, members), merged, members


def mean_features(features, members):
    """(M, D): the mean of the rows of each of members, of length 1 again."""
    means = np.empty((len(members), features.shape[1]), np.float32)
    for mean, places in zip(means, members, strict=True):
        np.sum(features[places], axis=0, out=mean)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means


def merge_tracklets(rows, chosen=None):
    """What average_tracklets says of them, without their features: (rows, [numbers of the rows of each])."""
    groups = {}
    for place in range(len(rows)) if chosen is None else chosen:
        groups.setdefault(identity(rows[place]) or place, []).append(place)
    members = list(groups.values())
    merged = [rows[places[0]]._replace(frames=sum(rows[place].frames for place in places)) for places in members]
    return merged, members


def choose_rows(rows, *, cameras=(), not_cameras=(), after=None, before=None):
    """Ascending numbers of the rows under one of `cameras` (any where empty), under none of `not_cameras`, from time
    `after` on and up to `before`, both included; a row without a time passes no limit of time. None: all rows. One
    camera may stand for itself, without a list. A warning names cameras that no row is of."""
    cameras, not_cameras = (
        {camera_name(name) for name in ([given] if isinstance(given, (str, int, float, np.generic)) else given)}
        for given in (cameras, not_cameras))  # fmt: skip
    if not cameras and not not_cameras and after is None and before is None:
        return None
    if unknown := sorted((cameras | not_cameras) - {row.camid for row in rows}):
        # of this line, so that a command that asks twice tells once
        warnings.warn(f"no row is of camera {', '.join(unknown)}; there are: {list_cameras(rows)}", stacklevel=1)
    low, high = -np.inf if after is None else after, np.inf if before is None else before
    timed = after is not None or before is not None
    return np.array([number for number, row in enumerate(rows)
                     if (not cameras or row.camid in cameras) and row.camid not in not_cameras
                     and (not timed or (row.time is not None and low <= row.time <= high))], int)  # fmt: skip


def list_cameras(rows):
    """The cameras that rows know, for a message, numbers in their order."""
    known = sorted({row.camid for row in rows if row.camid}, key=lambda name: (name.isdecimal(), name.zfill(20)))
    return (", ".join(known[:20]) or "none known") + f" and {len(known) - 20} more" * (len(known) > 20)


# ---- the gallery ----

def check_features(features, dim):
    """features as float32 (n, D); ValueError where they are not of length 1 or not of that size."""
    features = np.ascontiguousarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != dim:
        raise ValueError(f"features are {features.shape}, this gallery holds (N, {dim})")
    if len(not_of_length_1(features)):
        raise ValueError("features have to be of length 1, as an Extractor gives them")
    return features


def not_of_length_1(features):
    """Numbers of the rows that cannot be ranked."""
    return np.flatnonzero(~(abs(np.sqrt(np.einsum("nd,nd->n", features, features)) - 1) < 0.01))  # also true for NaN


def check_rows(rows):
    """ValueError where a field cannot stand in items.csv, whose every line is one row."""
    for row in rows:
        for name in ("path", "camid", "tracklet"):
            value = str(getattr(row, name))
            if "\n" in value or "\r" in value:
                raise ValueError(f"{name} {value[:100]!r} holds a line break, which a row of a gallery cannot")
            if len(value) > LONGEST:
                raise ValueError(f"{name} {value[:100]!r}... has {len(value):,} characters; {LONGEST:,} are the most")
            value.encode("utf-8", "surrogateescape")  # raises a ValueError that says which character
        if row.time is not None and not math.isfinite(row.time):
            raise ValueError(f"time {row.time} of {row.path}: a time is a number, or None where it is unknown")


class Gallery:
    """rows, a list of Row, and features, float32 (N, D), in memory."""

    def __init__(self, dim):
        self.dim, self.rows, self.buffer = dim, [], np.empty((0, dim), np.float32)

    def __len__(self):
        return len(self.rows)

    @property
    def features(self):
        return self.buffer[: len(self.rows)]

    def append(self, features, rows):
        features = check_features(features, self.dim)
        rows = [row._replace(camid=camera_name(row.camid)) for row in rows]
        if len(features) != len(rows):
            raise ValueError(f"{len(features)} features, but {len(rows)} rows that say what they are of")
        check_rows(rows)
        if rows:
            self.store(features, rows)
            self.rows += rows

    def store(self, features, rows):
        """Puts features behind those that are there; Index does it on disk."""
        count, needed = len(self.rows), len(self.rows) + len(rows)
        if needed > len(self.buffer):
            grown = np.empty((max(needed, 2 * len(self.buffer)), self.dim), np.float32)
            grown[:count] = self.features
            self.buffer = grown
        self.buffer[count:needed] = features

    def search(self, queries, top, leave_out=(), *, average=False, **filters):
        """The `top` rows most similar to each of queries (Q, D), at most as many as there are -> (rows, indices into
        them (Q, k), similarities (Q, k)), as top_k gives them. filters: see choose_rows. average: answers are
        tracklets, by the mean of their rows that pass. leave_out: as top_k takes it, of the rows, or, for averages, of
        what merge_tracklets makes of those that pass."""
        features, rows, chosen = self.features, self.rows, choose_rows(self.rows, **filters)
        if average:
            features, rows, _ = average_tracklets(features, rows, chosen)
            chosen = None
        return rows, *top_k(queries, features, min(top, max(1, len(rows))), leave_out, rows=chosen)

    def close(self):
        """Nothing is held open in memory."""

    def keep(self, numbers):
        """Removes all rows but those with these ascending numbers."""
        self.buffer = self.features[numbers]  # a copy: somebody may look at the old one
        self.rows = [self.rows[number] for number in numbers]


def header(count, dim):
    """The first HEAD bytes of a NumPy file (format 1.0) of float32 (count, dim)."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}"
    return b"\x93NUMPY\x01\x00" + (HEAD - 10).to_bytes(2, "little") + text.ljust(HEAD - 11).encode() + b"\n"


def read_header(data, dim):
    """N, from the first HEAD bytes of a features.npy. ValueError where the file is not float32 (N, dim) in our form."""
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or shape[1] != dim or file.tell() != HEAD:
        raise ValueError(f"features.npy holds {dtype} {shape}{' in Fortran order' * fortran}, index.json tells float32 "
                         f"(N, {dim})")
    return shape[0]


def to_cell(value, mark="'"):
    """A value for a table that people may open: text that a spreadsheet would take for a formula has a mark before it,
    and so has text that looks marked. A path may have "./" for its mark, with which it still opens."""
    return mark + value if isinstance(value, str) and FORMULA.match(value) else value


def from_cell(text):
    """What to_cell was given. Cells that are not marked, as earlier versions wrote them, are as they are."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def to_lines(rows):
    """Lines of items.csv, as bytes. Names that are not valid UTF-8 keep their bytes."""
    def plain(value):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return "" if value is None else to_cell(value)

    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(map(plain, row) for row in rows)
    return lines.getvalue().encode("utf-8", "surrogateescape")


def parse_row(fields):
    path, pid, camid, time, tracklet, frames, size, mtime = fields
    return Row(from_cell(path), int(pid) if pid else None, camera_name(from_cell(camid)), float(time) if time else None,
               from_cell(tracklet), int(frames), int(size), int(mtime))  # fmt: skip


def is_leftover(name):
    """Whether a killed process was writing a file of an index under this name; .partial: one of an earlier version."""
    return name.startswith(FILES) and name.endswith((".tmp", ".partial"))


class Index(Gallery):
    """A Gallery in a folder, see the top. `about` is what index.json says. Close one that was opened to write."""

    @classmethod
    def read(cls, folder):
        """To search in. ValueError where it is no index, or one that cannot be read."""
        return cls(folder)

    @classmethod
    def open(cls, folder, about):
        """To write into; made where the folder is missing or empty. about: what made the features, see describe;
        ValueError where the index says otherwise."""
        return cls(folder, about)

    def __init__(self, folder, about=None):
        self.folder, self.lock, self.file = Path(folder), None, None
        self.data, self.items, self.description, self.marker = (self.folder / name for name in FILES)
        try:
            self.check_files(to_write=about is not None)
            if about is not None:
                self.claim(about)
            elif not self.folder.is_dir():
                what = "is a file, and an index is a folder" if self.folder.exists() else "no such folder"
                raise ValueError(f"{self.folder}: {what}; python search.py index makes an index")
            self.about = json.loads(self.description.read_text(encoding="utf-8"))
            if self.about["schema"] != 1:
                raise ValueError(f"schema {self.about['schema']}, this search.py reads 1")
            if type(self.about["feature_dim"]) is not int or self.about["feature_dim"] < 1:
                raise ValueError(f"feature_dim is {self.about['feature_dim']!r} in index.json")
            super().__init__(self.about["feature_dim"])
            if about is not None:
                check_same_model(self.about, about, self.folder, to_add=True)
            self.load()
            self.check_lengths()
            if about is not None:
                self.trim()
        except FileNotFoundError as error:
            self.close()
            raise ValueError(f"{folder} is not an index: it has no {Path(error.filename).name}; python search.py index "
                             "makes one") from None  # fmt: skip
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            self.close()
            if isinstance(error, ValueError) and str(error).startswith(str(self.folder)):
                raise
            raise ValueError(f"{folder} cannot be read as an index ({type(error).__name__}: {error}); make it again "
                             "with python search.py index") from None  # fmt: skip
        except BaseException:
            self.close()
            raise

    def check_files(self, to_write):
        """ValueError where one of them is a pipe or a device, or to be written into, and a link."""
        for path in (self.data, self.items, self.description, self.folder / "lock"):
            with contextlib.suppress(OSError):  # it is not there
                mode = (os.lstat if to_write else os.stat)(path).st_mode
                if not stat.S_ISREG(mode):
                    what = "a link, through which nothing is written" if stat.S_ISLNK(mode) else "a pipe or the like"
                    raise ValueError(f"{self.folder}: {path.name} is not a file, but {what}; put the file itself "
                                     "there, or name another folder")

    def claim(self, about):
        """The right to write into the folder, which is made where it is missing, and so are its files, with no row."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.check_free()  # before anything is put there
            self.lock = lock(self.folder / "lock")
            if not self.lock:
                raise ValueError(f"{self.folder}: another process writes into it; wait until it is done")
            if not self.description.exists():  # made last: a folder that has it has the others
                self.data.write_bytes(header(0, about["feature_dim"]))
                self.items.write_bytes(TITLE)
                with replacing(self.description) as file:
                    file.write(json.dumps({"schema": 1, **about}, indent=1).encode())
            self.finish_removal()
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"{self.folder} is a file, or lies in one; an index is a folder: name another") from None
        except OSError as error:
            raise OSError(f"{self.folder}: cannot be written to ({error.strerror}); make room, or name another "
                          "folder") from None  # fmt: skip

    def check_free(self):
        """ValueError unless the folder holds an index, nothing, or what is left where a creation was interrupted: no
        rows. index.json is looked for last, since another process may just make it."""
        ours, problem = {*FILES[:3], "lock"}, ""
        strangers = sorted(name for name in os.listdir(self.folder) if name not in ours and not is_leftover(name))
        if strangers:
            problem = f"is no index and not empty (it holds {strangers[0]}); name a new folder"
        elif (self.data.exists() and self.data.stat().st_size > HEAD) or (
                self.items.exists() and not TITLE.startswith(self.items.read_bytes())):  # fmt: skip
            problem = ("holds features.npy or items.csv with rows, but index.json, which tells what made them, is "
                       "missing; bring it back, or name a new folder")  # fmt: skip
        if problem and not self.description.exists():
            raise ValueError(f"{self.folder} {problem}")

    def close(self):
        """Lets others write. Features that were handed out stay readable."""
        for file in (self.lock, self.file):
            if file:
                file.close()
        self.lock = self.file = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def load(self):
        """Reads items.csv up to its last whole line that has its row of features. Both files have to be of one time:
        a process that removes rows may just put new ones in place."""
        for _ in range(100):
            if self.marker.exists() and not self.lock:  # a process is at it, or was killed in the middle
                if claimed := lock(self.folder / "lock"):
                    with claimed:
                        self.finish_removal()
            self.file = open(self.data, "rb")
            head = self.file.read(HEAD)  # before the lines: a process that writes adds to them first
            with open(self.items, "rb") as items:
                lines = items.readlines()
                same = all(os.path.samestat(os.fstat(file.fileno()), os.stat(path))
                           for file, path in ((self.file, self.data), (items, self.items)))  # fmt: skip
            if same and not self.marker.exists():
                break
            self.file.close()
            time.sleep(0.05)
        else:
            raise ValueError(f"{self.folder} is being changed by another process; try again")
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # it was being written
        if not head.startswith(b"\x93NUMPY\x01\x00") or lines[:1] != [TITLE]:
            raise ValueError("features.npy or items.csv is not what index wrote")
        promised = read_header(head, self.dim)
        stored = (os.fstat(self.file.fileno()).st_size - HEAD) // (4 * self.dim)
        table, used = csv.reader(line.decode("utf-8", "surrogateescape") for line in lines), 1
        next(table)
        for fields in table:
            row = parse_row(fields)
            if len(self.rows) < stored:
                self.rows.append(row)
                used = table.line_num
        self.items_end = sum(map(len, lines[:used]))
        lost = promised - len(self.rows)  # above 0 by no kill of ours
        if lost > 0:
            warnings.warn(f"{self.folder}: the last {lost:,} of {promised:,} rows are gone, features.npy or "
                          "items.csv was cut off; index the images again", stacklevel=4)  # fmt: skip

    def check_lengths(self):
        """ValueError unless all rows are of length 1. It takes as long as to search for one query."""
        features = np.asarray(self.features)
        for start in range(0, len(features), GALLERY_BLOCK):
            part = features[start : start + GALLERY_BLOCK]
            spoilt = not_of_length_1(part)
            if len(spoilt) and not self.lock:
                time.sleep(0.05)  # a process that writes may just be in the middle of a row that changed
                spoilt = not_of_length_1(part)
            if len(spoilt):
                number = start + spoilt[0]
                raise ValueError(f"row {number} of features.npy, {self.rows[number].path}, is of length "
                                 f"{np.linalg.norm(features[number]):g} instead of 1")

    def trim(self):
        """Cuts off what was begun and not finished, of both files; the header then tells the number of rows."""
        if self.items.stat().st_size > self.items_end:
            os.truncate(self.items, self.items_end)
        with open(self.data, "r+b") as file:
            file.truncate(HEAD + 4 * self.dim * len(self.rows))
            file.write(header(len(self.rows), self.dim))
            os.fsync(file.fileno())

    @property
    def features(self):
        """The rows of the file, memory-mapped and read-only: (N, D)."""
        if not self.rows:
            return np.empty((0, self.dim), np.float32)
        return np.memmap(self.file, np.float32, "r", HEAD, (len(self.rows), self.dim))

    def store(self, features, rows):
        """Features, lines, header, in this order. OSError (a full disk) where it fails, and nothing was added."""
        count, lines = len(self.rows), to_lines(rows)
        try:
            with open(self.data, "r+b") as file:
                file.seek(HEAD + 4 * self.dim * count)
                file.write(features.tobytes())
                file.flush()
                os.fsync(file.fileno())  # before the lines that promise them
                with open(self.items, "r+b") as items:
                    items.seek(self.items_end)
                    items.write(lines)
                    items.flush()
                    os.fsync(items.fileno())
                file.seek(0)
                file.write(header(count + len(rows), self.dim))
        except OSError:
            with contextlib.suppress(OSError):
                self.trim()
            raise
        self.items_end += len(lines)

    def overwrite(self, number, feature, row):
        """One row anew, of a file that changed. items.csv follows with `keep`: killed before that, it tells the old
        time of the file, so the row is made once more."""
        with open(self.data, "r+b") as file:
            file.seek(HEAD + 4 * self.dim * number)
            file.write(check_features(feature[None], self.dim).tobytes())
        self.rows[number] = row

    def keep(self, numbers):
        """Removes all rows but those with these ascending numbers; items.csv says what rows says now."""
        rows = [self.rows[number] for number in numbers]
        lines = TITLE + to_lines(rows)
        if len(rows) == len(self.rows):
            with replacing(self.items) as file:
                file.write(lines)
        else:
            self.write_removal(numbers, lines)
            self.finish_removal()
            self.file.close()
            self.file = open(self.data, "rb")
        self.rows, self.items_end = rows, len(lines)

    def write_removal(self, numbers, lines):
        """Both files anew beside the old ones, without the rows that go, then the marker. OSError: nothing is left."""
        old, new = self.features, [Path(f"{path}.new") for path in (self.data, self.items)]
        try:
            with replacing(new[0]) as file:
                file.write(header(len(numbers), self.dim))
                for start in range(0, len(numbers), GALLERY_BLOCK):
                    file.write(old[np.asarray(numbers[start : start + GALLERY_BLOCK], int)].tobytes())
            with replacing(new[1]) as file:
                file.write(lines)
            with replacing(self.marker) as file:
                file.write(b"features.npy.new and items.csv.new are complete\n")
        except OSError:
            for path in new:
                path.unlink(missing_ok=True)
            raise

    def finish_removal(self):
        """Puts files in place that are complete; does away with those that are not. For whoever has the lock."""
        complete = self.marker.exists()
        for path in (self.data, self.items):
            new = Path(f"{path}.new")
            if complete and new.exists():  # else in place already
                os.replace(new, path)
            new.unlink(missing_ok=True)
        self.marker.unlink(missing_ok=True)
        for name in filter(is_leftover, os.listdir(self.folder)):
            (self.folder / name).unlink(missing_ok=True)


def describe(extractor):
    """What index.json says of the model that makes the features."""
    told = extractor.metadata
    return {"model": os.path.basename(extractor.path), "weights_sha256": told.get("weights_sha256"),
            "arch": told["arch"], "dataset": told.get("dataset"), "precision": extractor.precision,
            "input": extractor.input, "feature_dim": extractor.feature_dim,
            "distance": extractor.distance}  # fmt: skip


def check_same_model(index, model, where, *, to_add=False):
    """Raises ValueError unless an index (its `about`) holds features of this model, or of the other index; to_add: and
    unless they are of one precision, not of fp32 where the model gives int8, or the like."""
    ours, theirs = index.get("weights_sha256"), model.get("weights_sha256")
    if ours is None or ours != theirs or index["feature_dim"] != model["feature_dim"]:
        raise ValueError(
            f"{where} was made by another model: {index.get('model')} ({index.get('arch')}, {index['feature_dim']} "
            f"features, weights {ours}), not by {model.get('model')} ({model.get('arch')}, {model['feature_dim']} "
            f"features, weights {theirs}). Features of two models cannot be compared: give that model, or index the "
            "images anew into another folder")
    ours, theirs = index.get("precision", "fp32"), model.get("precision", "fp32")
    if to_add and ours != theirs:
        raise ValueError(f"{where} holds features of {ours}, {model.get('model')} gives {theirs}: their similarities "
                         "differ in the third digit. Add to it with the file that made it, or index anew")
