"""Files, one way for all: images to bytes, folders listed, names printed, files replaced in one step.

    pixels = read_image("q.jpg", (160, 64))          # uint8 (160, 64, 3), RGB, resized by Pillow's BILINEAR
    with replacing("index.json") as file: ...        # the old file or the new one is there, whatever stops this

Needs numpy, Pillow and tqdm alone.

Training and search both read images by this file. The whole image counts; EXIF rotation is not applied, since data sets
are read without it; an animated image gives its first frame; transparency is dropped, palettes and CMYK become RGB.
Refused with the reason, as files are that cannot be read: formats other than FORMATS, whatever a file is called;
images above MAX_PIXELS or MAX_SIDE, before they are decoded; and grey of more than 8 bits (Pillow's modes I;16, I and
F), which would be clipped: nothing says which of its values is white. File names may hold anything; `printable` is how
they reach a terminal.

To decode a whole data set, this file is started once per core: threads would wait for one another, for half of the work
on a small JPEG holds Python's lock. A job comes on standard input, as one line of JSON; a line on standard output tells
of each block that is done.
"""

import argparse
import codecs
import contextlib
import csv
import difflib
import errno
import io
import itertools
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of image files
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # that are read; of Pillow's others some start programs
BLOCK = 256  # images between two reports
MAX_PIXELS = 2**26  # of one image file: 67 million, 200 MB decoded. A crop of a person has some 10,000
MAX_SIDE = 2**14  # pixels; Pillow has a cost for each line too: 1 x 2**26 pixels would take 2.4 GB


def cpus():
    """Cores that this process may use: under taskset, or in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_image(path):
    """An image file, opened by Pillow and not yet decoded, to be used in `with`. OSError for what is none."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
        raise OSError(f"{path} is not a file" + ", but a folder" * os.path.isdir(path))
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify it as an image: {', '.join(FORMATS)} are read") from None


def read_image(path, size=None):
    """The pixels of an image file at size (H, W), proportions not kept, or as it is: uint8 (H, W, 3), RGB. Raises what
    Pillow raises, and OSError or ValueError for what is refused."""
    with open_image(path) as image:
        if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels are more than a crop of a person can have (limit "
                             f"{MAX_PIXELS:,}, {MAX_SIDE:,} on a side); it was not decoded")  # fmt: skip
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


def open_plainly(path, flags):
    """An opener for open() that follows no link and waits for no pipe, which may have been put there a moment ago."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def hold(file):
    """Locks an open file until it is closed or its process ends, however it ends. False where another process holds it;
    None where nobody can tell, as the system (Windows) or the disk has no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def lock(path):
    """The file `path`, opened and held until it is closed or the process ends; None where another process has it.
    Nothing in it changes. OSError where something else than a file lies there. See `hold` for where nobody checks."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            told = f"{os.path.basename(path)} is a link, a pipe or a folder where a file is to be locked: delete it"
            raise OSError(errno.EINVAL, told, str(path))
    file = open(path, "a", opener=open_plainly)
    if hold(file) is False:
        file.close()
        return None
    return file


def create_partial(path):
    """A new file beside `path`, opened to write bytes and held: what lies there under such a name and is not held was
    left by a process that was killed, in whichever container."""
    while True:
        file = open(f"{path}.{secrets.token_hex(8)}.tmp", "x+b")  # x: nor through a link that somebody put there
        if hold(file) is not False and os.path.exists(file.name):
            return file
        file.close()  # before it was held, another process took it for abandoned


def remove_abandoned(folder):
    """Deletes what processes that were killed were writing into a folder."""
    for path in sorted(Path(folder).glob("*.tmp")):
        if re.fullmatch(r".+\.[0-9a-f]{16}\.tmp", path.name, re.DOTALL):
            with contextlib.suppress(OSError), open(path, "r+b", opener=open_plainly) as file:
                if hold(file):
                    path.unlink()


@contextlib.contextmanager
def replacing(path):
    """A file to write bytes into, which takes the name `path` when the block ends: a kill, an error or a full disk
    leaves the old file as it was. file.name is where it lies until then; flush before you read it."""
    remove_abandoned(os.path.dirname(path) or ".")
    with create_partial(path) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # which renames no open file
                file.close()
            os.replace(file.name, path)  # while it is held: nobody may take it for abandoned
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


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
NUMBERED = re.compile(r"(?:c(?:am(?:era)?)?[\s_.:#-]*)?0*([0-9]+)(?:\.0*)?", re.IGNORECASE)  # names of cameras


def did_you_mean(name, names):
    """' (did you mean NAME?)' where a name is spelt nearly like one of `names`."""
    near = difflib.get_close_matches(name, names, 1, 0.7)
    return f" (did you mean {near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    """Flags are written out in full. One that there is not is told first, with the nearest that there is: of a required
    one that is misspelt, argparse would say that it is missing."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, allow_abbrev=False, **settings)

    def parse_args(self, argv=None):
        argv = sys.argv[1:] if argv is None else list(argv)
        for flag in (word.partition("=")[0] for word in argv[: argv.index("--") if "--" in argv else None]):
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"there is no flag {flag}{self.hint(flag, argv)}")
        return super().parse_args(argv)

    def hint(self, flag, argv):
        return did_you_mean(flag, self._option_string_actions)


def camera_name(value):
    """A camera as it is compared, stored and shown, from what people call it: 01, 1.0, " 1", c1, cam1 and Camera 1 are
    all "1", other names stay but for blanks around them. None and NaN are unknown, which is the empty text."""
    if value is None or value != value:
        return ""
    text = str(value).strip(" \t\u00a0")  # a line break stays, and is refused
    number = NUMBERED.fullmatch(text)
    return number[1] if number else text


def read_list(path):
    """The text of a list. UTF-8, or the UTF-16 that Windows calls Unicode: with a mark at the start, or known by the
    zeros in ASCII. Names that are not valid UTF-8 keep their bytes. ValueError for what is no text."""
    with open(path, "rb") as file:
        content = file.read()
    kinds = {(False, True): "utf-16-le", (True, False): "utf-16-be"}
    encoding = kinds.get(tuple(byte == 0 for byte in content[:2]), "utf-8-sig")
    try:
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return content.decode("utf-16")
        return content.decode(encoding, "surrogateescape")
    except UnicodeError as error:
        raise ValueError(f"{path}: this is no text ({error}); save it as UTF-8") from None


def read_cells(path):
    """Yields (line number, [text, ...]) of the lines of a .csv file that hold anything. Blanks behind a comma do not
    count. ValueError, with the line, for what cannot be cut into cells."""
    lines = csv.reader(io.StringIO(read_list(path), newline=""), strict=True, skipinitialspace=True)
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
            if more := [cell for cell in cells[len(names) :] if cell.strip()]:
                raise ValueError(f"{more[0]!r} stands under no column; what holds a comma has to stand in quotes")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        pairs = zip(names, itertools.chain(cells, itertools.repeat("")), strict=False)
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
    workers, count = [], min(cpus(), len(blocks))
    try:
        for number in range(count):
            job = {"array": str(file), "size": list(size), "blocks": blocks[number::count]}
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
