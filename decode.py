"""Image files to bytes, one way for all: RGB, resized by Pillow's BILINEAR. Needs numpy and Pillow alone.

loader.py starts `python decode.py` once per core to decode a whole data set: threads would wait for one another, for
half of the work on a small JPEG holds Python's lock. A job comes on standard input, as one line of JSON; a line on
standard output tells of each block that is done.
"""

import json
import sys

import numpy as np
from PIL import Image

BLOCK = 256  # images between two reports


def read_image(path, size):
    """One image file as (H, W, 3) bytes: RGB, resized to size (H, W) by Pillow's BILINEAR, proportions not kept."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def read_or_reason(path, size):
    """read_image, or the reason why it cannot be read as a string."""
    try:
        return read_image(path, size)
    except Exception as error:  # Pillow raises a dozen types for broken files
        return f"{path}: {error}"


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
