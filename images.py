"""Image files to bytes, one way for all: RGB, resized by Pillow's BILINEAR. Needs numpy and Pillow alone.

Training and search both read images by this file. The whole image counts; EXIF rotation is not applied, since data sets
are read without it; an animated image gives its first frame; transparency is dropped, palettes and CMYK become RGB.
Refused with the reason, as files are that cannot be read: images above MAX_PIXELS, before they are decoded, and grey of
more than 8 bits (Pillow's modes I;16, I and F), which would be clipped: nothing says which of its values is white.
File names may hold anything; `printable` is how they reach a terminal.

loader.py starts `python decode.py` once per core to decode a whole data set: threads would wait for one another, for
half of the work on a small JPEG holds Python's lock. A job comes on standard input, as one line of JSON; a line on
standard output tells of each block that is done.
"""

import json
import os
import re
import stat
import sys
import unicodedata

import numpy as np
from PIL import Image

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


def main():
    job = json.loads(sys.stdin.readline())  # array: file, size: [H, W], blocks: [[first row, [path, ...]], ...]
    array = np.load(job["array"], mmap_mode="r+")
    for first_row, paths in job["blocks"]:
        print(json.dumps([len(paths), decode_block(array, first_row, paths, job["size"])]), flush=True)
    array.flush()


if __name__ == "__main__":
    main()
