"""Tests of images.py: pixels, folders listed, files replaced in one step (many at once: training/test_pixels.py).

python -m pytest tests/test_images.py
"""

import os
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from tiny_onnx import H, W, person

import images
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


@pytest.mark.parametrize("size", [(1, 2**26), (2**26, 1), (2**14 + 1, 2)])
def test_an_image_of_one_long_side_is_not_decoded(size, tmp_path, monkeypatch):
    """A PNG of 69 bytes that would take 2.4 GB: its header is enough."""
    header = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "long.png").write_bytes(content)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels are more.*16,384 on a side"):
        read_image(tmp_path / "long.png", (H, W))


def test_a_long_image_within_the_limit_is_read(tmp_path):
    person(1, size=(2**14, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (3, 2**14, 3)


@pytest.mark.parametrize("form", ["EPS", "PPM", "TGA", "ICO", "PDF", "PCX"])
def test_other_formats_are_refused_whatever_the_file_is_called(form, tmp_path, monkeypatch):
    """An EPS would start Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    person(1).save(tmp_path / "a.jpg", form)
    with pytest.raises(OSError, match="cannot identify it as an image: BMP, GIF, JPEG, PNG, TIFF, WEBP are read"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("form", [*images.FORMATS, "MPO"])  # MPO: a JPEG of a phone, with more images behind it
def test_all_formats_are_read_whatever_the_file_is_called(form, tmp_path):
    more = {"save_all": True, "append_images": [person(2)]} if form == "MPO" else {}
    person(1).save(tmp_path / "a.bmp", form, **more)
    with Image.open(tmp_path / "a.bmp") as image:
        assert image.format == form
        expected = np.asarray(image.convert("RGB"))
    assert read_image(tmp_path / "a.bmp").tobytes() == expected.tobytes()


def test_the_formats_are_those_of_the_names():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in images.SUFFIXES} == set(images.FORMATS)


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


def start(code, *arguments):
    """A process that runs the code in the repository, and says "ready" when it has done what it has to."""
    command = [sys.executable, "-c", f"import sys; import images\n{code}\nprint('ready', flush=True); sys.stdin.read()"]
    process = subprocess.Popen([*command, *map(str, arguments)], cwd=REPOSITORY, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def end(process, number=None):
    if number:
        process.send_signal(number)
    process.communicate()


WRITES = "writes = images.replacing(sys.argv[1]); writes.__enter__().write(b'half')"


def test_what_a_killed_process_left_goes_with_the_next_file_and_a_live_one_keeps_its(tmp_path):
    """Whatever host and process number they have: containers share a folder, and each has a process 1."""
    killed, running = start(WRITES, tmp_path / "a.json"), start(WRITES, tmp_path / "a.json")
    end(killed, signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 2
    others = ["a.tmp", "a.json.1234.tmp", "0123456789abcdef.tmp"]  # of somebody else
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "b.json") as file:
        file.write(b"new")
    (left,) = set(os.listdir(tmp_path)) - {*others, "b.json"}
    assert left.startswith("a.json.") and left.endswith(".tmp")
    end(running)
    with replacing(tmp_path / "b.json") as file:
        file.write(b"newer")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "b.json"])


def test_two_writers_of_one_file_have_one_each(tmp_path):
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first.name != second.name
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first" and os.listdir(tmp_path) == ["a"]


def test_a_file_that_was_taken_for_abandoned_before_it_was_held_is_made_anew(tmp_path, monkeypatch):
    hold, calls = images.hold, []

    def late(file):
        calls.append(file.name)
        if len(calls) == 1:  # another process was faster
            os.unlink(file.name)
        return hold(file)

    monkeypatch.setattr(images, "hold", late)
    with replacing(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole" and len(calls) == 2


def test_a_partial_file_is_not_written_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.0123456789abcdef.tmp").symlink_to("precious")
    monkeypatch.setattr(images.secrets, "token_hex", lambda _: "0123456789abcdef")
    with pytest.raises(FileExistsError), replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.0123456789abcdef.tmp", "precious"]


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    code = f"from images import lock; print(lock({str(tmp_path / 'lock')!r}))"

    def other():
        return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True).stdout

    with lock(tmp_path / "lock") as held:
        assert held and other() == "None\n" and lock(tmp_path / "lock") is None
    assert other().startswith("<_io.TextIOWrapper")


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_lock_is_a_file_and_nothing_else(kind, tmp_path):
    (tmp_path / "precious").write_text("precious")
    path = tmp_path / "lock"
    {"link": lambda: path.symlink_to("precious"), "dangling": lambda: path.symlink_to("nothing"),
     "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()  # fmt: skip
    with pytest.raises(OSError, match="lock is a link, a pipe or a folder where a file is to be locked: delete it"):
        lock(path)
    assert (tmp_path / "precious").read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["lock", "precious"]


def test_a_link_that_comes_between_the_look_and_the_lock_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to("precious")
    monkeypatch.setattr(os, "lstat", lambda _: os.stat(tmp_path / "precious"))
    with pytest.raises(OSError):
        lock(tmp_path / "lock")


def test_what_stands_in_a_locked_file_stays(tmp_path):
    (tmp_path / "lock").write_text("precious")
    lock(tmp_path / "lock").close()
    assert (tmp_path / "lock").read_text() == "precious"


# ----------------------------------------------------------------------------------------------------------------------
# Cores


def test_cores_are_those_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import images; print(images.cpus())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_there_are_no_more_processes_than_blocks(tmp_path, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(images, "cpus", lambda: 96)
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: started.append(given) or popen(*given, **named))
    person(1).save(tmp_path / "a.png")
    array = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(3, H, W, 3))
    blocks = [(row, [str(tmp_path / "a.png")]) for row in range(3)]
    assert list(images.decode_in_processes(tmp_path / "a.npy", blocks, (H, W))) == [[1, []]] * 3
    assert len(started) == 3 and (array == read_image(tmp_path / "a.png", (H, W))).all()
