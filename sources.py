"""What there is to embed: from folders, lists and file names to rows of a gallery.

    rows, missing = find_rows(["crops/", "more.csv"], labels="market1501")      # list of Row, [(path, reason)]

| source | rows |
|---|---|
| a folder | its images and those of its subfolders, sorted; with `video`, each folder is a tracklet |
| an image | itself |
| a .txt file | a path per line |
| a .csv file | a header with path and, where known, pid, camid, time, tracklet; then a line per image |

Paths in a list are relative to the folder of the list. What a list says wins over names, and names over folders, in
whatever order the sources come; of two lists, the first:

| labels | file name | pid | camid | time | tracklet |
|---|---|---|---|---|---|
| market1501 | 0002_c1s1_000451_03.jpg | 2 | 1 | 451 | 0002_c1s1 |
| mars | 0002C1T0003F451.jpg | 2 | 1 | 451 | 0002C1T0003 |

A time is a number: the frame, where names tell it, or seconds since 1970. In a list it is such a number or a date in
ISO 8601, 2026-05-01T14:30:00+02:00, UTC where no offset stands. An image without either gets the time its file was
written when it is stored (merge_known). Person -1 is junk (a false detection) and left out. Person 0 is nobody in
particular: under market1501 those are many people, so their names make no tracklet (in MARS each tracklet is one).
"""

import csv
import math
import os
import re
import stat
from datetime import UTC, datetime

from extractor import SUFFIXES, list_images
from gallery import Row, identity

LABELS = {  # matches the start of a file name
    "none": None,
    "market1501": r"(?P<tracklet>(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?)(?:_f?(?P<time>\d+))?",
    "mars": r"(?P<tracklet>(?P<pid>\d{4}|00-1)C(?P<camid>\d)T\d{4})F(?P<time>\d+)",
}
COLUMNS = ("path", "pid", "camid", "time", "tracklet")
LISTS = {".txt", ".csv"}
JUNK, NOBODY = -1, 0


def read_name(name, labels):
    """What a file name tells: {"pid": int, "camid": text, "time": float or None, "tracklet": text}, or {}."""
    match = LABELS[labels] and re.match(LABELS[labels], name)
    if not match:
        return {}
    told = match.groupdict()
    pid = JUNK if told["pid"].endswith("-1") else int(told["pid"])
    found = {"pid": pid, "camid": str(int(told["camid"])), "time": float(told["time"]) if told["time"] else None}
    return found | ({} if pid == NOBODY and labels == "market1501" else {"tracklet": told["tracklet"]})


def parse_time(text):
    """A number, or a date and time in ISO 8601 as seconds since 1970. ValueError for anything else."""
    try:
        time = float(text)
        if math.isfinite(time):
            return time
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
        try:
            titles = lines.fieldnames or ()
        except csv.Error as error:
            raise ValueError(f"{path}, line 1: {error}") from None
        if "path" not in titles:
            raise ValueError(f"{path}: the first line names the columns, path and any of {', '.join(COLUMNS[1:])}; "
                             f"it reads {','.join(titles)[:200]!r}")
        found = []
        while True:
            try:
                line = next(lines, None)
                if line is None:
                    return found
                told = {key: line[key] for key in COLUMNS[1:] if line.get(key)}
                if not line["path"]:
                    raise ValueError("the path is empty")
                if "pid" in told:
                    told["pid"] = int(told["pid"])
                if "time" in told:
                    told["time"] = parse_time(told["time"])
                for key in ("camid", "tracklet"):
                    if "\n" in told.get(key, "") or "\r" in told.get(key, ""):
                        raise ValueError(f"{key} {told[key]!r} holds a line break")
            except (ValueError, csv.Error) as error:  # the latter for a field of more than 131,072 characters
                number = lines.line_num + isinstance(error, csv.Error)  # a line that cannot be cut is not counted
                raise ValueError(f"{path}, line {number}: {error}") from None
            found.append((os.path.join(folder, line["path"]), told))


def resolve(path):
    """The absolute path under which an image or a folder is listed, whatever link leads to its folder."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def find_paths(source, video, empty_ok=False):
    """[(absolute path, {column: value})] of one source. FileNotFoundError or ValueError where there is nothing;
    empty_ok: but for a folder without images."""
    source = str(source)
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source}: no such file or folder")
    if os.path.isdir(source):
        paths = [str(path) for path in list_images(resolve(source))]
        if not paths and not empty_ok:
            raise ValueError(f"{source}: no image in or below this folder ({' '.join(sorted(SUFFIXES))})")
        return [(path, {"tracklet": os.path.dirname(path)} if video else {}) for path in paths]
    if not os.path.isfile(source):
        raise ValueError(f"{source} is neither a folder nor a file, but a device or a pipe")
    if os.path.splitext(source)[1].lower() not in LISTS:
        return [(resolve(source), {})]
    found, folders = read_list(source), {}
    if not found:
        raise ValueError(f"{source}: this list is empty")
    for folder in {os.path.dirname(path) for path, _ in found}:
        folders[folder] = os.path.realpath(folder)
    return [(os.path.join(folders[os.path.dirname(path)], os.path.basename(path)), told) for path, told in found]


def find_rows(sources, labels="none", video=False, empty_ok=False):
    """Rows of all images of the sources, each path once, junk left out; and [(path, reason)] of files that are not
    there. The time is None where nothing tells it. Raises as find_paths does."""
    found = {}  # path -> what folders, names and lists tell of it, the best last
    for source in sources:
        is_list = os.path.splitext(str(source))[1].lower() in LISTS and not os.path.isdir(source)
        for path, told in find_paths(source, video, empty_ok):
            known = found.setdefault(path, [{}, read_name(os.path.basename(path), labels), {}])
            place = 2 if is_list else 0
            known[place] = {**told, **known[place]}
    rows, missing = [], []
    for path, (by_folder, by_name, by_list) in found.items():
        told = {**by_folder, **by_name, **by_list}
        if told.get("pid") == JUNK:
            continue
        if "\n" in path or "\r" in path:
            missing.append((path, "its name holds a line break, which a table of names cannot"))
            continue
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:  # the latter for a path with a zero byte
            missing.append((path, getattr(error, "strerror", None) or str(error)))
            continue
        if not stat.S_ISREG(status.st_mode):
            missing.append((path, "not a file" + ", but a folder" * stat.S_ISDIR(status.st_mode)))
            continue
        rows.append(Row(path, **told, size=status.st_size, mtime=status.st_mtime_ns))
    return rows, missing


def group_tracklets(rows):
    """Rows of frames -> (rows of tracklets, the paths of each): for models that take whole tracklets. Rows without a
    tracklet are one of a single frame."""
    groups = {}
    for row in rows:
        groups.setdefault(identity(row) or row.path, []).append(row)
    tracklets = [frames[0]._replace(frames=len(frames), size=sum(row.size for row in frames),
                                    mtime=max(row.mtime for row in frames)) for frames in groups.values()]  # fmt: skip
    return tracklets, [[row.path for row in frames] for frames in groups.values()]


def merge_known(row, old=None):
    """A row to be stored: what it does not know stays as the old row of the same file has it. A time that nothing tells
    is when the file was written."""
    kept = {}
    if old:
        kept = {name: getattr(old, name) for name in ("pid", "camid", "tracklet") if getattr(row, name) in (None, "")}
    if row.time is None:
        # the old time was told, rather than taken from the file; 1000 ns is more than a float rounds
        told = old and old.time is not None and abs(old.time * 1e9 - old.mtime) > 1000
        kept["time"] = old.time if told else row.mtime / 1e9
    return row._replace(**kept)


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


def is_frame(path, row):
    """Whether an absolute path names a frame of a stored tracklet. The row tells its first frame, and the tracklet: a
    folder, or how the names of its frames begin."""
    folder, name = os.path.split(path)
    if row.frames == 1 or os.path.splitext(name)[1].lower() not in SUFFIXES:
        return False
    if os.path.isabs(row.tracklet):
        return folder == row.tracklet
    rest = name[len(row.tracklet) :]
    return folder == os.path.dirname(row.path) and name.startswith(row.tracklet) and not rest[:1].isdigit()


def is_gone(row):
    """Whether the file of a row, or the folder of a tracklet, is no longer there; no file belongs to other names."""
    path = row.tracklet if row.frames > 1 and os.path.isabs(row.tracklet) else row.path
    return os.path.isabs(path) and not os.path.exists(path)
