"""Tests of images.py: pixels, folders listed, files replaced in one step (many at once: training/test_pixels.py).

python -m pytest tests/test_images.py
"""

import os
import platform
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from tiny_onnx import H, W, person

from images import list_images, lock, read_image, replacing


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_read_image_is_pillow_rgb_bilinear(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    person(5, size=(50, 90)).convert(mode).save(path)
    pixels = read_image(path, (H, W))
    assert pixels.shape == (H, W, 3) and pixels.dtype == np.uint8
    expected = Image.open(path).convert("RGB").resize((W, H), Image.Resampling.BILINEAR)
    assert pixels.tobytes() == expected.tobytes()


def test_read_image_leaves_exif_rotation_alone(tmp_path):
    image, exif = person(5), Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "turned.jpg", exif=exif)
    same = [read_image(tmp_path / name, (H, W)).tobytes() for name in ("plain.jpg", "turned.jpg")]
    assert same[0] == same[1]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_an_animated_image_gives_its_first_frame(suffix, tmp_path):
    options = {"lossless": True} if suffix == ".webp" else {}
    person(1).save(tmp_path / f"a{suffix}", save_all=True, append_images=[person(2), person(3)], **options)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.n_frames == 3
    assert read_image(tmp_path / f"a{suffix}").tobytes() == np.asarray(person(1)).tobytes()


def test_sixteen_bit_colour_is_read(tmp_path):
    """Pillow keeps the upper byte of each channel: nothing is clipped."""
    data = np.zeros((2, 2, 3), ">u2")
    data[..., 0], data[..., 1], data[1, 1] = 0xFFFF, 0x80FF, 0x1234
    lines = b"".join(b"\0" + row.tobytes() for row in data)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    png = b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
                   for name, body in chunks)  # fmt: skip
    (tmp_path / "rgb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert read_image(tmp_path / "rgb.png").tolist() == [[[255, 128, 0]] * 2, [[255, 128, 0], [18, 18, 18]]]


def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch, recwarn):
    """8192 x 8193 pixels of one colour are a PNG of 200 kB and would be 201 MB."""
    Image.new("1", (8192, 8193)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="8192 x 8193 pixels are more"):
        read_image(tmp_path / "bomb.png", (H, W))


def test_list_images_sorted_recursive_without_hidden_files(tmp_path):
    names = ["b.JPG", "a.jpeg", "sub/c.png", "sub/deep/d.bmp", "e.tif", "f.TIFF", "g.webp", "sub-x/h.jpg", "i.gif"]
    others = [".hidden.jpg", "._a.jpeg", "Thumbs.db", "notes.txt", ".cache/i.jpg", "sub/.git/j.png", "noextension"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "sub")  # a link to a folder, whatever it is called
    found = [os.path.relpath(path, tmp_path) for path in list_images(tmp_path)]
    assert found == ["a.jpeg", "b.JPG", "e.tif", "f.TIFF", "g.webp", "i.gif", "sub-x/h.jpg", "sub/c.png",
                     "sub/deep/d.bmp"]  # fmt: skip


def test_a_file_is_replaced_when_all_of_it_is_written(tmp_path):
    """Whoever looks sees the old one until then; an error leaves it, and nothing beside it."""
    path = tmp_path / "a.json"
    for data in (b"first", b"second"):
        with replacing(path) as file:
            file.write(data)
            assert path.exists() == (data == b"second")
        assert path.read_bytes() == data
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_goes_with_the_next_file(tmp_path):
    running, dead = os.getpid(), 99999999  # no process has that number
    names = [f"a.json.{platform.node()}.{dead}.tmp", f"a.json.{platform.node()}.{running}.tmp",
             f"a.json.elsewhere.{dead}.tmp", f"a.json.{platform.node()}.word.tmp", "a.tmp"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    with replacing(tmp_path / "b.json") as file:
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], "b.json"])


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    code = f"from images import lock; print(lock({str(tmp_path / 'lock')!r}))"

    def other():
        return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True).stdout

    with lock(tmp_path / "lock") as held:
        assert held and other() == "None\n" and lock(tmp_path / "lock") is None
    assert other().startswith("<_io.TextIOWrapper")
