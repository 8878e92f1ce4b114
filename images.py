"""Files, one way for all: images to bytes, folders listed, names printed, files replaced in one step.

    pixels = read_image("q.jpg", (160, 64))          # uint8 (160, 64, 3), RGB, resized by Pillow's BILINEAR
    with replacing("index.json") as file: ...        # the old file or the new one is there, whatever stops this

Needs numpy, Pillow and tqdm alone.

Training and search both read images by this file. The whole image counts; EXIF rotation is not applied, since data sets
are read without it; an animated image gives its first frame; transparency is dropped, palettes and CMYK become RGB.
Refused with the reason, as files are that cannot be read: images above MAX_PIXELS, before they are decoded, and grey of
more than 8 bits (Pillow's modes I;16, I and F), which would be clipped: nothing says which of its values is white.
File names may hold anything; `printable` is how they reach a terminal.

To decode a whole data set, this file is started once per core: threads would wait for one another, for half of the work
on a small JPEG holds Python's lock. A job comes on standard input, as one line of JSON; a line on standard output tells
of each block that is done.
"""

import contextlib
import csv
import difflib
import glob
import io
import itertools
import json
import os
import platform
import re
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of image files
BLOCK = 256  # images between two reports
MAX_PIXELS = 2**26  # of one image file: 67 million, 200 MB decoded. A crop of a person has some 10,000


def read_image(path, size=None):
    """The pixels of an image file at size (H, W), proportions not kept, or as it is: uint8 (H, W, 3), RGB. Raises what
    Pillow raises, and OSError or ValueError for what is refused."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
        raise OSError(f"{path} is not a file" + ", but a folder" * os.path.isdir(path))
    with Image.open(path) as image:
        return read_opened(image, size)


def read_opened(image, size=None):
    """resize of a file that Pillow has opened. ValueError for what is too large to be a person, before it is read."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than a crop of a person can have "
                         f"(limit {MAX_PIXELS:,}); it was not decoded")  # fmt: skip
    return resize(image, size)


def resize(image, size=None):
    """A PIL image as uint8 (H, W, 3), at size (H, W) where one is given. ValueError for grey of more than 8 bits."""
    if image.mode.partition(";")[0] in ("I", "F"):
        raise ValueError(f"grey of more than 8 bits (Pillow's mode {image.mode}) would be clipped to 0..255; convert "
                         "it to 8 bits, scaled so that white is 255")  # fmt: skip
    image = image.convert("RGB")
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR) if size else image)


def printable(text):
    """text without what a terminal would obey, or show as nothing: control characters, line breaks and tabs among
    them, and bytes that are not UTF-8 stand there as \\x1b, \\n, \\xe9. Spaces of all kinds stay."""
    def escape(match):
        code = ord(match[0])
        if match[0].isprintable() or unicodedata.category(match[0]) == "Zs":
            return match[0]
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()

    return re.sub(r"[^ -~]", escape, str(text))


def read_or_reason(path, size=None):
    """read_image, or the reason why it cannot be read as a string, to be printed."""
    try:
        return read_image(path, size)
    except Exception as error:  # Pillow raises a dozen types for broken files
        return printable(f"{path}: {error}")


# ----------------------------------------------------------------------------------------------------------------------
# Folders and files


def is_image(name):
    """Whether a file of this name is taken for an image; hidden ones, as macOS leaves them, are not."""
    return not name.startswith((".", "__MAC")) and name.lower().endswith(SUFFIXES)


def list_images(folder):
    """Paths of the image files in and below a folder, sorted by their path in it. Links to files are followed, those
    that lead nowhere listed all the same; hidden folders and links to folders are not walked into."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if is_image(name)]
    return sorted(found, key=lambda path: os.path.relpath(path, folder).replace(os.sep, "/"))


def partial_name(path):
    """Where a file lies while this process writes it."""
    return f"{path}.{platform.node()}.{os.getpid()}.tmp"


def remove_abandoned(folder):
    """Deletes what processes of this machine that were killed were writing into a folder."""
    for path in sorted(Path(folder).glob(f"*.{glob.escape(platform.node())}.*.tmp")):
        try:
            if os.name == "posix":  # elsewhere the call would not only ask
                os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            pass  # not ours


@contextlib.contextmanager
def replacing(path):
    """A file to write bytes into, which takes the name `path` when the block ends: a kill, an error or a full disk
    leaves the old file as it was. file.name is where it lies until then; flush before you read it."""
    partial = partial_name(path)
    remove_abandoned(os.path.dirname(partial) or ".")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def lock(path):
    """The file `path`, opened and locked until it is closed or the process ends; None where another process has it.
    Where the system has no such locks (Windows), nobody checks."""
    file = open(path, "w")
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
    return file


def progress(title, total, unit="img", hidden=False):
    """A bar on a terminal, to be used in `with` and told by .update(count); nothing where there is no terminal."""
    return tqdm(desc=title, total=total, unit=f" {unit}", leave=False, disable=True if hidden else None)


# ----------------------------------------------------------------------------------------------------------------------
# Lists: .csv files with a line per image

ALIKE = {  # column of a list -> what others call it, beside what is spelt nearly alike
    "path": ("file", "filename", "image", "img", "imagepath"), "pid": ("id", "person", "personid", "identity", "label"),
    "camid": ("cam", "camera", "cameraid", "view"), "tracklet": ("track", "trackid", "sequence", "seq", "clip"),
    "time": ("frame", "date", "datetime", "timestamp"), "split": ("set", "subset", "fold", "part", "phase"),
}  # fmt: skip


def read_cells(path):
    """Yields (line number, [text, ...]) of the lines of a .csv file that hold anything. Blanks behind a comma do not
    count. ValueError, with the line, for what cannot be cut into cells."""
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise ValueError(f"{path} is encoded in UTF-16: save it as UTF-8")
    text = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
    lines = csv.reader(text, strict=True, skipinitialspace=True)
    while True:
        number = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:  # for a cell of more than 131,072 characters, too
            raise ValueError(f"{path}, line {number}: {error}; quotes end in the line where they began") from None
        if cells is None:
            return
        if any("\n" in cell or "\r" in cell for cell in cells):
            raise ValueError(f"{path}, line {number}: a line break in a cell; quotes end in the line where they began")
        if any(map(str.strip, cells)):
            yield number, cells


def name_columns(titles, columns, needed):
    """For each title the one of `columns` that it names, blanks and case aside, or None. ValueError where one that is
    `needed` is missing, and where a title looks like a missing one."""
    plain = [title.strip().lower() for title in titles]
    known = f"The columns of a list are {', '.join(columns)}"
    twice = sorted({title for title in plain if title in columns and plain.count(title) > 1})
    if twice:
        raise ValueError(f"two columns {', '.join(twice)} in {','.join(titles)[:200]}. {known}")
    for title in plain:
        letters = re.sub("[^a-z]", "", title)
        alike = [name for name, others in ALIKE.items() if letters in others]
        near = (alike or difflib.get_close_matches(letters, ALIKE, 1, 0.7) or [None])[0]
        if title not in columns and near in columns and near not in plain:
            raise ValueError(f"the column {title!r} is unknown; did you mean {near}? {known}: rename or delete it")
    missing = sorted(set(needed) - set(plain))
    if missing:
        raise ValueError(f"no column {', '.join(missing)} in {','.join(titles)[:200]} (commas part columns). {known}")
    return [title if title in columns else None for title in plain]


def read_table(path, columns, needed):
    """([(line number, {column: text})], titles that are not used) of a .csv file whose first line names its columns.

    Blanks around a text are no part of it, but for those of a path. ValueError, with the line, for what is wrong.
    """
    rows, names, titles = [], None, []
    for number, cells in read_cells(path):
        try:
            if names is None:
                titles, names = cells, name_columns(cells, columns, needed)
                continue
            if len(cells) > len(names):
                raise ValueError(f"{len(cells)} cells, and the first line names {len(names)} columns")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        pairs = itertools.zip_longest(names, cells, fillvalue="")
        rows.append((number, {name: cell if name == "path" else cell.strip() for name, cell in pairs if name}))
    if names is None:
        raise ValueError(f"{path} is empty: its first line names the columns, of {', '.join(columns)}")
    return rows, [title for title, name in zip(titles, names, strict=True) if name is None]


# ----------------------------------------------------------------------------------------------------------------------
# Many images, by a process per core


def decode_block(array, first_row, paths, size):
    """Fills rows of the array (N, H, W, 3), if there is one; returns the reasons of files that cannot be read."""
    broken = []
    for row, path in enumerate(paths, first_row):
        image = read_or_reason(path, size)
        if isinstance(image, str):
            broken.append(image)
        elif array is not None:
            array[row] = image
    return broken


def decode_in_processes(file, blocks, size):
    """Yields (images done, reasons) of blocks that a process per core decodes into the array in `file`."""
    workers = []
    try:
        for number in range(os.cpu_count()):
            job = {"array": str(file), "size": list(size), "blocks": blocks[number :: os.cpu_count()]}
            command = [sys.executable, __file__]
            workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            with contextlib.suppress(BrokenPipeError):  # it has ended, and says nothing below
                workers[-1].stdin.write(json.dumps(job) + "\n")
                workers[-1].stdin.close()
        for turn, (_, paths) in enumerate(blocks):
            worker = workers[turn % len(workers)]
            line = worker.stdout.readline()
            if not line.endswith("\n"):
                code = worker.wait()
                how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code}"
                raise ChildProcessError(
                    f"a process that decodes images {how}, at one of {paths[0]} to {paths[-1]}: start again, with more "
                    "memory if it was full; if it ends there again, replace or remove the file that it stops at"
                )
            yield json.loads(line)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def main():
    job = json.loads(sys.stdin.readline())  # array: file, size: [H, W], blocks: [[first row, [path, ...]], ...]
    array = np.load(job["array"], mmap_mode="r+")
    for first_row, paths in job["blocks"]:
        print(json.dumps([len(paths), decode_block(array, first_row, paths, job["size"])]), flush=True)
    array.flush()


if __name__ == "__main__":
    main()
