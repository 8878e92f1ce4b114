"""What there is to embed: from folders, lists and file names to rows of a gallery.

    rows, missing = find_rows(["crops/", "more.csv"], labels="market1501")      # list of Row, [(path, reason)]

| source | rows |
|---|---|
| a folder | its images and those of its subfolders, sorted; with `video`, each folder is a tracklet |
| an image | itself |
| a .txt file | a path per line |
| a .csv file | a header with path and, where known, pid, camid, time, tracklet; then a line per image |

Paths in a list are relative to the folder of the list, or as Windows writes them; blanks around a cell, and capitals in
the header, do not count. Other columns are not used, which is said, but for a column that looks like a missing one of
these: that is an error. What a list says wins over names, and names over folders, in whatever order the sources come;
of two lists, the first:

| labels | file name | pid | camid | time | tracklet |
|---|---|---|---|---|---|
| market1501 | 0002_c1s1_000451_03.jpg | 2 | 1 | 451 | 0002_c1s1 |
| mars | 0002C1T0003F451.jpg | 2 | 1 | 451 | 0002C1T0003 |

A time is a number: the frame, where names tell it, or seconds since 1970. In a list it is such a number or a date in
ISO 8601, 2026-05-01T14:30:00+02:00, UTC where no offset stands. An image without either gets the time its file was
written when it is stored (merge_known). Person -1 is junk (a false detection) and left out, which is said. Where no
name at all is of the form that `labels` reads, that is an error; where some are not, they are counted.

Person 0 is a person like others, but under `labels`: in those sets it is nobody in particular. In market1501 those are
many people, so their names make no tracklet (in MARS each tracklet is one). Cameras: see images.camera_name.

Links: what is named, as a source or in a list, may be a link to a file or to a folder. Below a folder, links to files
are followed, each an image under its own name, and links to folders are not walked into, so that no walk is endless. A
link that leads nowhere is listed as a file that cannot be read.
"""

import contextlib
import math
import os
import re
import stat
import warnings
from datetime import UTC, datetime

import numpy as np

import images
from images import SUFFIXES, camera_name, is_image, list_images
from searching.gallery import Row, from_cell, identity, list_cameras

LABELS = {  # matches the start of a file name
    "none": None,
    "market1501": r"(?P<tracklet>(?P<pid>-1|\d+)_c(?P<camid>\d+)(?:s\d+)?)(?:_f?(?P<time>\d+))?",
    "mars": r"(?P<tracklet>(?P<pid>\d{4}|00-1)C(?P<camid>\d)T\d{4})F(?P<time>\d+)",
}
EXAMPLES = {"market1501": "0002_c1s1_000451_03.jpg", "mars": "0002C1T0003F451.jpg"}
COLUMNS = ("path", "pid", "camid", "time", "tracklet")
LISTS = {".txt", ".csv"}
JUNK, NOBODY = -1, 0
LINE_BREAK = "its name holds a line break, which a table of names cannot"


def has_nobody(labels):
    """Whether person 0 is nobody in particular: only in sets that declare it."""
    return LABELS[labels] is not None


def is_known(pid, nobody=False):
    """Whether a pid tells a person: junk does not, nor what search.py group proposed and nobody looked at (below -1,
    see review.py), nor with nobody person 0."""
    return pid is not None and pid >= (1 if nobody else 0)


def is_proposed(pid):
    return pid is not None and pid < JUNK


def read_name(name, labels):
    """What a file name tells: {"pid": int, "camid": text, "time": float or None, "tracklet": text}, or {}."""
    match = LABELS[labels] and re.match(LABELS[labels], name)
    if not match:
        return {}
    told = match.groupdict()
    pid = JUNK if told["pid"].endswith("-1") else int(told["pid"])
    found = {"pid": pid, "camid": camera_name(told["camid"]), "time": float(told["time"]) if told["time"] else None}
    return found | ({} if pid == NOBODY and labels == "market1501" else {"tracklet": told["tracklet"]})


def check_names(paths, labels, where="", known=()):
    """ValueError where no file name is of the form that `labels` reads; where some are not, a warning counts them.
    where: what the message begins with, such as the flag that names the files; known: paths that a list tells of."""
    if labels == "none":
        return
    others = [path for path in paths if not read_name(os.path.basename(path), labels)]
    unknown = [path for path in others if path not in known]
    if not unknown:
        return
    first, example, where = os.path.basename(unknown[0]), EXAMPLES[labels], where and f"{where}: "
    if len(others) < len(paths):
        told = f"{len(unknown):,} of {len(paths):,} file names do not begin as {example} does, such as {first}"
        warnings.warn(f"{where}--labels {labels}: {told}; they tell no person and no camera", stacklevel=3)
        return
    forms = ", ".join(f"--labels {other} reads {name}" for other, name in EXAMPLES.items() if other != labels)
    raise ValueError(f"{where}--labels {labels}: no file name begins as {example} does (person 2, camera 1); the first "
                     f"is {first}. {forms}; or leave --labels out")


def parse_time(text):
    """A number, or a date and time in ISO 8601 as seconds since 1970. ValueError for anything else."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text)
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise ValueError(f"{text!r} is no time: give a number (frame, or seconds since 1970) or a date and time such as "
                     "2026-05-01T14:30:00+02:00")


def read_list(path):
    """(path, {column: value}) of the lines of a .txt or .csv file; ValueError names the line that cannot be read. A
    warning tells of columns that are not used; those of an index's items.csv, which files tell anew, may stand there.
    """
    folder, found = os.path.dirname(path), []
    if path.lower().endswith(".txt"):
        names = re.split("\r\n|\r|\n", images.read_list(path))
        return [(find_listed(folder, name), {}) for name in names if name.strip()]
    lines, unused = images.read_table(path, COLUMNS, COLUMNS[:1])
    unused = [title for title in unused if title.strip().lower() not in Row._fields]
    if unused:
        told = ", ".join(map(repr, unused))[:200]
        warnings.warn(f"{path}: not used: {told}; the columns of a list are {', '.join(COLUMNS)}", stacklevel=2)
    for number, line in lines:
        try:
            found.append((find_listed(folder, line["path"]), read_fields(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def find_listed(folder, written):
    """The path of a file of a list: as it is written, or where there is no such file, without blanks around it, or with
    the backslashes of Windows as slashes."""
    paths = [os.path.join(folder, name) for name in (written, written.strip(), written.strip().replace("\\", "/"))]
    return next((path for path in paths if os.path.lexists(path)), paths[0])


def read_fields(line):
    """{column: value} of a line of a list, but its path. ValueError where one is not what the column holds."""
    if not line["path"].strip():
        raise ValueError("the path is empty")
    kinds = {"pid": int, "camid": lambda text: camera_name(from_cell(text)), "time": parse_time, "tracklet": from_cell}
    return {key: kinds[key](line[key]) for key in COLUMNS[1:] if line.get(key)}


def breaks_line(text):
    return "\n" in text or "\r" in text


def is_list(path):
    return os.path.splitext(path)[1].lower() in LISTS and not os.path.isdir(path)


def no_images(folder):
    """What to say of a folder in which list_images found nothing."""
    with os.scandir(folder) as entries:
        linked = sorted(entry.name for entry in entries if entry.is_symlink() and entry.is_dir())
    return (f"no image in or below this folder ({' '.join(SUFFIXES)})"
            + (f"; links to folders, such as {linked[0]}, are not walked into: name those folders" if linked else ""))


def resolve(path):
    """The absolute path under which an image or a folder is listed, whatever link leads to its folder."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def find_paths(source, video=False, empty_ok=False, where=""):
    """[(absolute path, {column: value})] of one source. FileNotFoundError or ValueError where there is nothing;
    empty_ok: but for a folder without images."""
    name = f"{where} {source or repr(source)}".lstrip()
    if not os.path.exists(source):
        raise FileNotFoundError(f"{name}: no such file or folder")
    if os.path.isdir(source):
        paths = list_images(resolve(source))
        if not paths and not empty_ok:
            raise ValueError(f"{name}: {no_images(source)}")
        return [(path, {"tracklet": os.path.dirname(path)} if video else {}) for path in paths]
    if not os.path.isfile(source):
        raise ValueError(f"{name} is neither a folder nor a file, but a device or a pipe")
    if not is_list(source):
        return [(resolve(source), {})]
    found = read_list(source)
    if not found:
        raise ValueError(f"{name}: this list is empty")
    folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(path) for path, _ in found}}
    return [(os.path.join(folders[os.path.dirname(path)], os.path.basename(path)), told) for path, told in found]


def find_rows(sources, labels="none", video=False, *, empty_ok=False, strict=True, junk=False, where=""):
    """Rows of all images of the sources, each path once; and [(path, reason)] of files that are not there. The time is
    None where nothing tells it. Raises as find_paths does, and where `labels` reads no name and a list does not tell
    every person; not strict: no name has to be of that form. junk: is kept. where: the flag that names the sources."""
    found = {}  # path -> what folders, names and lists tell of it, the best last
    for source in map(str, sources):
        place = 2 if is_list(source) else 0
        for path, told in find_paths(source, video, empty_ok, where):
            known = found.setdefault(path, [{}, read_name(os.path.basename(path), labels), {}])
            known[place] = {**told, **known[place]}
    if strict:
        check_names(found, labels, where, {path for path, (_, _, by_list) in found.items() if "pid" in by_list})
    rows, missing, left_out = [], [], 0
    for path, (by_folder, by_name, by_list) in found.items():
        told = {**by_folder, **by_name, **by_list}
        if told.get("pid") == JUNK and not junk:
            left_out += 1
            continue
        status = look_at(path)
        if isinstance(status, str):
            missing.append((path, status))
        else:
            rows.append(Row(path, **told, size=status.st_size, mtime=status.st_mtime_ns))
    if left_out:
        warnings.warn(f"person {JUNK} is junk: {left_out:,} of {len(found):,} images left out", stacklevel=2)
    return rows, missing


def look_at(path):
    """What os.stat tells of an image file, or as text why it cannot be listed."""
    if breaks_line(path):
        return LINE_BREAK
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # the latter for a path with a zero byte
        return getattr(error, "strerror", None) or str(error)
    return status if stat.S_ISREG(status.st_mode) else "not a file" + ", but a folder" * stat.S_ISDIR(status.st_mode)


def group_tracklets(rows, tracklets=True):
    """Rows of frames -> (rows of tracklets, the paths of each), for models that take whole tracklets: rows without a
    tracklet are one of a single frame. Without tracklets: rows as they are, a path each."""
    if not tracklets:
        return rows, [[row.path] for row in rows]
    groups = {}
    for row in rows:
        groups.setdefault(identity(row) or row.path, []).append(row)
    merged = [frames[0]._replace(frames=len(frames), size=sum(row.size for row in frames),
                                 mtime=max(row.mtime for row in frames)) for frames in groups.values()]  # fmt: skip
    return merged, [[row.path for row in frames] for frames in groups.values()]


# ---- what an index holds, beside what is there now ----


def is_file_date(row):
    """Whether the time of a row is when its file was written, rather than one that was told."""
    return abs(row.time * 1e9 - row.mtime) <= 1000  # more than a float rounds


def merge_known(row, old=None):
    """A row to be stored: what it does not know stays as the old row of the same file has it. A time that nothing tells
    is when the file was written."""
    kept = {}
    if old:
        kept = {name: getattr(old, name) for name in ("pid", "camid", "tracklet") if getattr(row, name) in (None, "")}
    if row.time is None:
        told = old and old.time is not None and not is_file_date(old)
        kept["time"] = old.time if told else row.mtime / 1e9
    return row._replace(**kept)


def has_changed(paths, row):
    """Whether the files of a row are others than when it was listed: size or time of writing, or gone."""
    try:
        stats = [os.stat(path) for path in paths]
    except OSError:
        return True
    return (sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)) != (row.size, row.mtime)


def is_below(path, place):
    """Whether a path is the absolute path `place`, or lies below it where that is a folder."""
    return path == place or path.startswith(place + os.sep)


def whereabouts(row):
    """(folder, how names begin) of the frames of a stored tracklet, which is a folder or told by names in one."""
    return (row.tracklet, "") if os.path.isabs(row.tracklet) else (os.path.dirname(row.path), row.tracklet)


def is_frame(path, row):
    """Whether an absolute path names a frame of a stored tracklet, whose row tells its first frame."""
    if row.frames == 1 or not row.tracklet:
        return False
    (folder, start), name = whereabouts(row), os.path.basename(path)
    cut = start and name[len(start) :][:1].isdigit()  # _c1s1 of _c1s12
    return is_image(name) and os.path.dirname(path) == folder and name.startswith(start) and not cut


def is_gone(row):
    """Whether the file of a row, or the folder of a tracklet, is no longer there; no file belongs to other names."""
    path = row.tracklet if row.frames > 1 and os.path.isabs(row.tracklet) else row.path
    return os.path.isabs(path) and not os.path.exists(path)


def plan(index, rows, files, tracklets):
    """What is to be done: [(row, its files, its place in the index or None)] of what is new or has changed, and how
    many rows only know more now; those are brought up to date. A row of an image is known by its path, one of a
    tracklet by what tells tracklets apart, as its first frame may be another one today."""
    places, known = {row.path: place for place, row in enumerate(index.rows)}, {}
    for place, row in enumerate(index.rows if tracklets else ()):
        if row.tracklet:
            known[identity(row)] = place
            known.setdefault((row.tracklet, None, ""), place)  # a run that knows less
    todo, updated, used = [], 0, set()
    for row, paths in zip(rows, files, strict=True):
        place = known.get(identity(row), places.get(row.path))
        place = None if place in used else place
        used.add(place)
        old = None if place is None else index.rows[place]
        if tracklets and old and old.frames > 1 and not row.tracklet:
            raise ValueError(f"{index.folder} holds {row.path} as a frame of the tracklet {old.tracklet}, and nothing "
                             "tells its tracklet now; give --video, --labels or the list as before")  # fmt: skip
        row = merge_known(row, old)
        if old is None or (old.size, old.mtime, old.frames) != (row.size, row.mtime, row.frames):
            todo.append((row, paths, place))
        elif old != row:
            index.rows[place], updated = row, updated + 1
    return todo, updated


# ---- who is left out of a ranking: pairs of keys for gallery.top_k, equal where a query must not find a row ----


def follow_link(path):
    """The path of the file that a link leads to; else the path. (No link leads to its folder: see resolve.)"""
    return os.path.realpath(path) if os.path.islink(path) else path


def own_rows(query_rows, files, rows, queries=None, gallery=None):
    """Equal where a row of the gallery holds a file of the query, or is the tracklet that one is a frame of. files: the
    paths of each of query_rows. queries, gallery: numbers of the rows that each of them is made of; None: one each."""
    wanted = {}
    for number, places in enumerate(zip(range(len(query_rows))) if queries is None else queries):
        for row, paths in ((query_rows[place], files[place]) for place in places):
            paths = {*paths, *map(follow_link, paths)}
            keys = paths | {(os.path.dirname(path), "") for path in paths}
            if row.tracklet:
                keys.add(whereabouts(row))
            for key in keys:
                wanted.setdefault(key, []).append(number)
    sought = {(row.size, row.mtime) for row in query_rows}  # of a million rows, few links need to be followed
    held = {}  # query -> its rows of the gallery
    for number, places in enumerate(zip(range(len(rows))) if gallery is None else gallery):
        for row in (rows[place] for place in places):
            keys = [row.path]
            if (row.size, row.mtime) in sought:
                keys.append(follow_link(row.path))
            if row.frames > 1 and row.tracklet:  # without a name it would be all of its folder
                keys.append(whereabouts(row))
            for key in keys:
                for query in wanted.get(key, ()):
                    held.setdefault(query, set()).add(number)
    ours = np.full((max(map(len, held.values()), default=0), len(query_rows if queries is None else queries)), -1)
    for query, numbers in held.items():
        ours[: len(numbers), query] = sorted(numbers)
    return [(keys, np.arange(len(rows if gallery is None else gallery))) for keys in ours]


def same_person_and_camera(query_rows, rows, nobody=False):
    """Equal where person and camera are. Junk, unlabelled images, those of unknown cameras, and with nobody those of
    person 0 (see has_nobody) are like nothing else."""
    def is_told(row):
        return row.camid and is_known(row.pid, nobody)

    numbers = {}
    return [np.array([numbers.setdefault((row.pid, row.camid), len(numbers)) if is_told(row) else nothing
                      for row in side], int) for side, nothing in ((query_rows, -1), (rows, -2))]  # fmt: skip


def compare_cameras(query_rows, rows):
    """What to say where both sides know cameras, and none of them is on both; else nothing."""
    ours, theirs = ({row.camid for row in side if row.camid} for side in (query_rows, rows))
    if not ours or not theirs or ours & theirs:
        return ""
    return (f"note: no camera of the queries ({list_cameras(query_rows)}) is one of the gallery's "
            f"({list_cameras(rows)}): none counts as the same camera")
