"""What there is to embed: from folders, lists and file names to rows of a gallery.

    rows, missing = find_rows(["crops/", "more.csv"], labels="market1501")      # list of Row, [(path, reason)]

| source | rows |
|---|---|
| a folder | its images and those of its subfolders, sorted; with `video`, each folder is a tracklet |
| an image | itself |
| a .txt file | a path per line |
| a .csv file | a header with path and, where known, pid, camid, time, tracklet; then a line per image |

Paths in a list are relative to the folder of the list. What a list says wins over names, and names over folders:

| labels | file name | pid | camid | time | tracklet |
|---|---|---|---|---|---|
| market1501 | 0002_c1s1_000451_03.jpg | 2 | 1 | 451 | 0002_c1s1 |
| mars | 0002C1T0003F451.jpg | 2 | 1 | 451 | 0002C1T0003 |

A time is a number: the frame, where names tell it, or seconds since 1970. In a list it is such a number or a date in
ISO 8601, 2026-05-01T14:30:00+02:00, UTC where no offset stands. An image without either has the time its file was
written. Person -1 is junk (a false detection) and left out; person 0 is nobody in particular.
"""

import csv
import os
import re
from datetime import UTC, datetime

from extractor import SUFFIXES, list_images
from gallery import Row

LABELS = {  # matches the start of a file name
    "none": None,
    "market1501": r"(?P<tracklet>(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?)(?:_f?(?P<time>\d+))?",
    "mars": r"(?P<tracklet>(?P<pid>\d{4}|00-1)C(?P<camid>\d)T\d{4})F(?P<time>\d+)",
}
COLUMNS = ("path", "pid", "camid", "time", "tracklet")
LISTS = {".txt", ".csv"}
JUNK = -1


def read_name(name, labels):
    """What a file name tells: {"pid": int, "camid": text, "time": float or None, "tracklet": text}, or {}."""
    match = LABELS[labels] and re.match(LABELS[labels], name)
    if not match:
        return {}
    told = match.groupdict()
    return {"pid": JUNK if told["pid"].endswith("-1") else int(told["pid"]), "camid": str(int(told["camid"])),
            "time": float(told["time"]) if told["time"] else None, "tracklet": told["tracklet"]}  # fmt: skip


def parse_time(text):
    """A number, or a date and time in ISO 8601 as seconds since 1970. ValueError for anything else."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time: give a number (frame, or seconds since 1970) or a date and time such "
                         "as 2026-05-01T14:30:00+02:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def read_list(path):
    """(path, {column: value}) of the lines of a .txt or .csv file; ValueError names the line that cannot be read."""
    folder = os.path.dirname(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.lower().endswith(".txt"):
            return [(os.path.join(folder, line.strip("\r\n")), {}) for line in file if line.strip()]
        lines = csv.DictReader(file)
        if "path" not in (lines.fieldnames or ()):
            raise ValueError(f"{path}: the first line names the columns, path and any of {', '.join(COLUMNS[1:])}; "
                             f"it reads {','.join(lines.fieldnames or ())!r}")
        found = []
        for line in lines:
            told = {key: line[key] for key in COLUMNS[1:] if line.get(key)}
            try:
                if not line["path"]:
                    raise ValueError("the path is empty")
                if "pid" in told:
                    told["pid"] = int(told["pid"])
                if "time" in told:
                    told["time"] = parse_time(told["time"])
            except ValueError as error:
                raise ValueError(f"{path}, line {lines.line_num}: {error}") from None
            found.append((os.path.join(folder, line["path"]), told))
        return found


def resolve(path):
    """The absolute path under which an image or a folder is listed, whatever link leads to its folder."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def find_paths(source, video):
    """[(absolute path, {column: value})] of one source. FileNotFoundError or ValueError where there is nothing."""
    source = str(source)
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source}: no such file or folder")
    if os.path.isdir(source):
        paths = [str(path) for path in list_images(resolve(source))]
        if not paths:
            raise ValueError(f"{source}: no image in or below this folder ({' '.join(sorted(SUFFIXES))})")
        return [(path, {"tracklet": os.path.dirname(path)} if video else {}) for path in paths]
    if os.path.splitext(source)[1].lower() not in LISTS:
        return [(resolve(source), {})]
    found, folders = read_list(source), {}
    if not found:
        raise ValueError(f"{source}: this list is empty")
    for folder in {os.path.dirname(path) for path, _ in found}:
        folders[folder] = os.path.realpath(folder)
    return [(os.path.join(folders[os.path.dirname(path)], os.path.basename(path)), told) for path, told in found]


def find_rows(sources, labels="none", video=False):
    """Rows of all images of the sources, each path once, junk left out; and [(path, reason)] of files that are not
    there. Raises as find_paths does."""
    rows, missing = {}, []
    for source in sources:
        is_list = os.path.splitext(str(source))[1].lower() in LISTS and not os.path.isdir(source)
        for path, told in find_paths(source, video):
            named = read_name(os.path.basename(path), labels)
            told = {**named, **told} if is_list else {**told, **named}
            if told.get("pid") == JUNK or path in rows:
                continue
            if "\n" in path or "\r" in path:
                missing.append((path, "its name holds a line break, which a table of names cannot"))
                continue
            try:
                stat = os.stat(path)
            except OSError as error:
                missing.append((path, error.strerror))
                continue
            time = told.pop("time", None)
            rows[path] = Row(path, **told, time=stat.st_mtime if time is None else time, size=stat.st_size,
                             mtime=stat.st_mtime_ns)  # fmt: skip
    return list(rows.values()), missing


def group_tracklets(rows):
    """Rows of frames -> (rows of tracklets, the paths of each): for models that take whole tracklets. Rows without a
    tracklet are one of a single frame."""
    groups = {}
    for row in rows:
        key = (row.tracklet, row.pid, row.camid) if row.tracklet else row.path
        groups.setdefault(key, []).append(row)
    tracklets = [frames[0]._replace(frames=len(frames), size=sum(row.size for row in frames),
                                    mtime=max(row.mtime for row in frames)) for frames in groups.values()]  # fmt: skip
    return tracklets, [[row.path for row in frames] for frames in groups.values()]


def has_changed(paths, row):
    """Whether the files of a row are others than when it was listed: size or time of writing, or gone."""
    try:
        stats = [os.stat(path) for path in paths]
    except OSError:
        return True
    return (sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)) != (row.size, row.mtime)


def is_below(path, places):
    """Whether a path is one of the absolute paths `places`, or lies below one that is a folder."""
    return any(path == place or path.startswith(place + os.sep) for place in places)
