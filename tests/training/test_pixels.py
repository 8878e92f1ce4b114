"""Tests of pixels.py: decoded pixels, transforms of a batch.

python -m pytest tests/training/test_pixels.py
"""

import os
import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import draw, run_command
from PIL import Image

import search
from images import read_image, replacing
from training.pixels import (
    AUGMENTATIONS,
    Draws,
    augment,
    erase,
    erasing_boxes,
    jitter,
    load_pixels,
    move,
    normalise,
    shutil,
)

SIZE = (32, 16)  # height, width
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def global_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Pixels


def paths_of(folder, count=5):
    return [str(draw(folder / f"{number}.jpg", number, size=(20 + number, 40))) for number in range(count)]


def expected_pixels(paths):
    return np.stack([np.asarray(Image.open(p).convert("RGB").resize((16, 32), Image.BILINEAR)) for p in paths])


def bytes_of(pixels, rows=None):
    """uint8 (B, H, W, 3) as Pixels.batch gives it, after checks of its form."""
    rows = np.arange(len(pixels)) if rows is None else rows
    batch = pixels.batch(rows)
    assert batch.dtype == torch.uint8 and batch.shape == (len(rows), 3, *SIZE)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    return batch.permute(0, 2, 3, 1).numpy()


def in_cache(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


IMAGES = {  # name -> (suffix, function of an RGB image of uint8)
    "RGB": ("jpg", lambda image: image),
    "L": ("png", lambda image: image.convert("L")),
    "LA": ("png", lambda image: image.convert("LA")),
    "RGBA": ("png", lambda image: Image.merge("RGBA", [*image.split(), image.getchannel(0)])),
    "P": ("png", lambda image: image.quantize(17)),
    "1": ("png", lambda image: image.convert("1")),
    "CMYK": ("jpg", lambda image: image.convert("CMYK")),
}


@pytest.mark.parametrize("size", [(64, 128), (16, 32), (5, 7), (121, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("mode", IMAGES)
def test_one_way_to_make_pixels(tmp_path, mode, size):
    suffix, convert = IMAGES[mode]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    convert(Image.fromarray(noise)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = read_image(path, SIZE)
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected_pixels([path])[0])
    assert np.array_equal(pixels, search.read_image(path, SIZE))
    assert np.array_equal(pixels, search.to_pixels(str(path), SIZE))


def test_pixels_are_decoded_once(tmp_path, monkeypatch):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    expected = expected_pixels(paths)
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected)
    (name,) = in_cache(cache)
    assert re.fullmatch(r"set-32x16-[0-9a-f]{6}-[0-9a-f]{16}\.npy", name)
    written = (cache / name).stat().st_mtime_ns

    monkeypatch.setattr("images.read_image", lambda *args, **kwargs: pytest.fail("decoded again"))
    again = load_pixels(paths, SIZE, cache, "set")
    rows = np.array([3, 0, 3])
    assert np.array_equal(bytes_of(again, rows), expected[rows])
    assert in_cache(cache) == [name] and (cache / name).stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["pixels", "date", "list"])
def test_changed_files_are_decoded_again(tmp_path, change):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    load_pixels(paths, SIZE, cache, "set")
    load_pixels(paths, SIZE, cache, "another")
    before = in_cache(cache)
    if change == "pixels":
        draw(Path(paths[2]), seed=77, size=(30, 30))
    elif change == "date":
        stat = os.stat(paths[2])
        os.utime(paths[2], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    else:
        paths = paths[::-1]
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected_pixels(paths))
    after = in_cache(cache)
    assert len(after) == 2, "the stale array is removed"
    assert after[0] == before[0] and after[1] != before[1], "and the array of another set is not"


def test_each_size_has_an_array_of_its_own(tmp_path):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    for size in ((8, 4), SIZE, (8, 4)):
        load_pixels(paths, size, cache, "set")
    assert len(in_cache(cache)) == 2


@pytest.mark.parametrize("limit_gb", [20, 0], ids=["decoded_once", "batch_by_batch"])
def test_unreadable_images_are_all_listed(tmp_path, limit_gb):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    whole = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(whole[: len(whole) // 2])
    Path(paths[3]).write_text("this is no image")
    Path(paths[4]).write_bytes(b"")
    with pytest.raises(ValueError, match="3 images cannot be read") as error:
        load_pixels(paths, SIZE, cache, "set", limit_gb=limit_gb)
    assert [path in str(error.value) for path in paths] == [False, True, False, True, True]
    assert in_cache(cache) == []


@pytest.mark.parametrize("limit_gb", [20, 0], ids=["decoded_once", "batch_by_batch"])
def test_huge_images_and_grey_of_more_than_eight_bits_are_listed(tmp_path, monkeypatch, limit_gb):
    """As search refuses them, and a huge one before it is decoded."""
    assert read_image is search.read_image
    paths, cache, decoded = paths_of(tmp_path / "a\x1b[31m"), tmp_path / "cache", []
    Image.new("1", (8192, 8193)).save(paths[1], "PNG")
    Image.fromarray(np.full((4, 4), 7, np.uint16)).save(paths[3], "PNG")
    convert = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda image, *a: decoded.append(image.width) or convert(image, *a))
    with pytest.raises(ValueError, match="2 images cannot be read; replace or remove these files") as error:
        load_pixels(paths, SIZE, cache, "set", limit_gb=limit_gb)
    shown = [path.replace("\x1b", "\\x1b") for path in paths]  # as a terminal may have it
    assert f"{shown[1]}: 8192 x 8193 pixels are more than a crop of a person can have" in str(error.value)
    assert f"{shown[3]}: grey of more than 8 bits (Pillow's mode I;16)" in str(error.value)
    assert sorted(decoded) == [20, 22, 24] and in_cache(cache) == []


def test_interrupted_decoding_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"

    def interrupted(path, size):
        if str(path) == paths[3]:
            raise KeyboardInterrupt
        return np.zeros((*size, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr("images.read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_pixels(paths, SIZE, cache, "set")
    assert in_cache(cache) == []
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected_pixels(paths))


@pytest.mark.parametrize("problem", ["not_a_folder", "full_disk"])
def test_cache_that_cannot_hold_pixels(tmp_path, capsys, monkeypatch, problem):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    if problem == "not_a_folder":
        cache.write_text("a file, where a folder should be")
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pixels = load_pixels(paths, SIZE, cache, "set")
    assert np.array_equal(bytes_of(pixels), expected_pixels(paths))
    assert "in memory" in capsys.readouterr().out and in_cache(cache) == []


def test_batch_by_batch_gives_the_same_bytes(tmp_path):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    pixels = load_pixels(paths, SIZE, cache, "set", limit_gb=0)
    rows = np.array([4, 1, 1, 0])
    assert pixels.array is None and len(pixels) == 5 and in_cache(cache) == []
    assert np.array_equal(bytes_of(pixels, rows), expected_pixels(paths)[rows])


def test_batch_by_batch_names_a_file_that_breaks_later(tmp_path):
    paths = paths_of(tmp_path / "images")
    pixels = load_pixels(paths, SIZE, tmp_path / "cache", "set", limit_gb=0)
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:300])
    with pytest.raises((ValueError, OSError), match=re.escape(paths[2])):
        pixels.batch([1, 2])


@pytest.mark.parametrize("limit_gb", [20, 0], ids=["decoded_once", "batch_by_batch"])
def test_clips_have_a_shape_of_their_own(tmp_path, limit_gb):
    paths = paths_of(tmp_path / "images")
    pixels = load_pixels(paths, SIZE, tmp_path / "cache", "set", limit_gb=limit_gb)
    rows = np.array([[4, 1, 1], [0, 2, 3]])
    clips = pixels.batch(rows)
    assert clips.dtype == torch.uint8 and clips.shape == (2, 3, 3, *SIZE)
    assert np.array_equal(clips.permute(0, 1, 3, 4, 2).numpy(), expected_pixels(paths)[rows])


@pytest.mark.parametrize("broken", [[], [5, 1]])
def test_blocks_of_images_come_to_the_same(tmp_path, monkeypatch, broken):
    """More images than a thread decodes at a time, and a last block that is not full."""
    monkeypatch.setattr("training.pixels.BLOCK", 3)
    paths = paths_of(tmp_path / "images", 8)
    for number in broken:
        Path(paths[number]).write_bytes(b"no image")
    if broken:
        with pytest.raises(ValueError, match="2 images cannot be read") as error:
            load_pixels(paths, SIZE, tmp_path / "cache", "set")
        assert str(error.value).index(paths[1]) < str(error.value).index(paths[5]), "in the order of the files"
    else:
        assert np.array_equal(
            bytes_of(load_pixels(paths, SIZE, tmp_path / "cache", "set")), expected_pixels(paths)
        )


def test_a_killed_build_is_made_anew_and_what_it_left_goes(tmp_path):
    """SIGKILL with half of the images decoded: nothing of that try stays, or is taken for whole."""
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    script = (
        "import os, signal, sys; import images; from training import pixels; read = images.read_image\n"
        "def killed(path, size):\n"
        "    if path == sys.argv[4]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(path, size)\n"
        "images.read_image = killed\n"
        "pixels.load_pixels(sys.argv[2:], (32, 16), sys.argv[1], 'set')"
    )
    done = run_command("-c", script, cache, *paths)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = in_cache(cache)
    assert left.endswith(".tmp")
    with replacing(cache / "other.npy") as running:  # of another one that decodes
        pixels = load_pixels(paths, SIZE, cache, "set")
        assert [str(cache / name) for name in in_cache(cache) if not name.endswith(".npy")] == [running.name]
    assert np.array_equal(bytes_of(pixels), expected_pixels(paths))


def test_two_processes_with_different_lists_of_a_folder_both_have_their_pixels(tmp_path, monkeypatch):
    """Each takes the other's array for stale: at any moment it may delete it, or have it deleted."""
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    replace, unlink, others = os.replace, Path.unlink, paths[:3]

    def replaced_and_deleted(source, target):
        replace(source, target)
        unlink(Path(target))

    monkeypatch.setattr(os, "replace", replaced_and_deleted)
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected_pixels(paths))
    assert in_cache(cache) == []
    monkeypatch.setattr(os, "replace", replace)
    pixels = load_pixels(others, SIZE, cache, "set")
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (unlink(path), unlink(path, **how)))
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected_pixels(paths))
    assert np.array_equal(bytes_of(pixels), expected_pixels(others)), "mapped, although it was deleted"


@pytest.mark.parametrize("spoilt", ["empty", "half", "foreign", "shape", "pipe"])
def test_an_array_that_is_not_whole_is_made_anew(tmp_path, spoilt):
    paths, cache = paths_of(tmp_path / "images"), tmp_path / "cache"
    load_pixels(paths, SIZE, cache, "set")
    (name,) = in_cache(cache)
    whole = (cache / name).read_bytes()
    (cache / name).unlink()
    if spoilt == "pipe":
        os.mkfifo(cache / name)
    elif spoilt == "shape":
        with open(cache / name, "wb") as file:
            np.save(file, np.zeros((4, 32, 16, 3), np.uint8))
    else:
        content = {"empty": b"", "half": whole[: len(whole) // 2], "foreign": b"no array"}[spoilt]
        (cache / name).write_bytes(content)
    assert np.array_equal(bytes_of(load_pixels(paths, SIZE, cache, "set")), expected_pixels(paths))
    assert (cache / name).read_bytes() == whole


@pytest.mark.parametrize(("script", "told"), [
    ("import os; os.kill(os.getpid(), 9)", r"was killed \(signal 9\), at one of \S*/0.jpg to \S*/1.jpg"),
    ("import sys; sys.stdin.readline(); print('[1000, []]', flush=True); sys.exit(3)",
     r"ended with code 3, at one of \S*/\d+.jpg to"),
    ("import sys; sys.stdin.readline(); print('[2, ', end='', flush=True); sys.exit(3)", "ended with code 3"),
])  # fmt: skip
def test_a_decoding_process_that_ends_is_told_with_its_files(tmp_path, monkeypatch, script, told):
    """An error of the operating system, which the commands tell in a line; and nothing looks whole."""
    (tmp_path / "images.py").write_text(script)
    monkeypatch.setattr("training.pixels.BLOCK", 1000)
    monkeypatch.setattr("images.__file__", str(tmp_path / "images.py"))
    paths, cache = paths_of(tmp_path / "images", 2) * 4000, tmp_path / "cache"  # more names than a pipe holds
    with pytest.raises(OSError, match=told):
        load_pixels(paths, SIZE, cache, "set")
    assert in_cache(cache) == []


def test_one_array_for_all_that_choose_among_the_same_files(tmp_path, monkeypatch):
    paths, cache = paths_of(tmp_path / "images", 6), tmp_path / "cache"
    expected, among = expected_pixels(paths), ("all", paths)
    pixels = load_pixels([paths[4], paths[1]], SIZE, cache, "set-test", among=among)
    assert len(pixels) == 2 and np.array_equal(bytes_of(pixels), expected[[4, 1]])
    monkeypatch.setattr("images.read_image", lambda *_: pytest.fail("decoded again"))
    other = load_pixels([paths[5], paths[0], paths[1]], SIZE, cache, "set-train", among=among)
    assert np.array_equal(bytes_of(other, np.array([2, 0])), expected[[1, 5]])
    assert other.batch([[0, 1], [2, 2]]).shape == (2, 2, 3, *SIZE)
    (name,) = in_cache(cache)
    assert name.startswith("all-32x16-")


def test_a_gpu_holds_of_a_shared_array_what_was_asked_for(tmp_path, monkeypatch):
    """Without a GPU: what would be moved there."""
    paths = paths_of(tmp_path / "images", 6)
    pixels = load_pixels([paths[4], paths[1]], SIZE, tmp_path / "cache", "set", among=("all", paths))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 2 * 32 * 16 * 3 + 1,) * 2)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    pixels.to_device(SimpleNamespace(type="cuda"))
    assert isinstance(pixels.array, torch.Tensor) and len(pixels.array) == len(pixels) == 2
    assert np.array_equal(bytes_of(pixels), expected_pixels([paths[4], paths[1]]))


def test_more_than_a_tenth_of_the_limit_is_not_decoded_for_others(tmp_path):
    paths, cache = paths_of(tmp_path / "images", 6), tmp_path / "cache"
    gigabytes = 6 * 32 * 16 * 3 / 1e9
    for limit, names in ((gigabytes / 0.1 * 0.99, ["set-test"]), (gigabytes / 0.1 * 1.01, ["all", "set-test"])):
        pixels = load_pixels(paths[2:4], SIZE, cache, "set-test", limit_gb=limit, among=("all", paths))
        assert np.array_equal(bytes_of(pixels), expected_pixels(paths[2:4]))
        assert [name.split("-32x16")[0] for name in in_cache(cache)] == names
    assert load_pixels(paths[:1], SIZE, cache, "a", limit_gb=0, among=("all", paths)).array is None


# ----------------------------------------------------------------------------------------------------------------------
# Transforms


def noise(batch, height, width, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return Draws(seed)


def candidates(image):
    """Everything that flip and translation may make of image (3, H, W): (flipped, offset or None) -> image."""
    _, height, width = image.shape
    large = (round(height * 1.125), round(width * 1.125))
    enlarged = F.interpolate(image[None], large, mode="bilinear", align_corners=False)[0]
    crops = {None: image}
    for top in range(large[0] - height + 1):
        for left in range(large[1] - width + 1):
            crops[top, left] = enlarged[:, top : top + height, left : left + width]
    flips = {(True, key): crop.flip(2) for key, crop in crops.items()}
    return flips | {(False, key): crop for key, crop in crops.items()}


def what_was_done(images, moved):
    """For each image the one candidate that it became: list of (flipped, offset or None)."""
    found = []
    for image, result in zip(images, moved, strict=True):
        errors = {key: (result - value).abs().max().item() for key, value in candidates(image).items()}
        best = min(errors, key=errors.get)
        assert errors[best] <= (0 if best[1] is None else 2e-6), f"like nothing that it may become: {errors[best]}"
        found.append(best)
    return found


@pytest.mark.parametrize("size", [(32, 16), (16, 16), (20, 12)], ids=["tall", "square", "no_multiple_of_8"])
def test_flip_and_translation(size):
    images = noise(400, *size)
    done = what_was_done(images, move(images, seeded(), flip=True, translate=True))
    for share in (np.mean([flipped for flipped, _ in done]), np.mean([offset is not None for _, offset in done])):
        assert abs(share - 0.5) < 0.1  # four standard deviations
    both = np.mean([flipped and offset is not None for flipped, offset in done])
    assert abs(both - 0.25) < 0.09, "flip and translation are drawn apart"
    slack = [round(side * 1.125) - side for side in size]
    offsets = [offset for _, offset in done if offset is not None]
    for axis in (0, 1):
        assert {offset[axis] for offset in offsets} == set(range(slack[axis] + 1)), "both ends belong to it"


def test_flip_alone_is_torch_flip():
    images = noise(64, 32, 16)
    moved = move(images, seeded(), flip=True, translate=False)
    flips = [torch.equal(result, image.flip(2)) for image, result in zip(images, moved, strict=True)]
    same = [torch.equal(result, image) for image, result in zip(images, moved, strict=True)]
    assert all(a != b for a, b in zip(flips, same, strict=True)) and 16 < sum(flips) < 48


def test_translation_alone_never_flips():
    images = noise(64, 32, 16)
    done = what_was_done(images, move(images, seeded(), flip=False, translate=True))
    assert not any(flipped for flipped, _ in done) and 16 < sum(offset is not None for _, offset in done) < 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_asked_moves_nothing(dtype):
    images = noise(8, 24, 24).to(dtype)
    moved = move(images, seeded(), flip=False, translate=False)
    assert moved.dtype == dtype and torch.equal(moved, images)


def test_translation_is_that_of_pillow():
    """On bytes, within the rounding of Pillow's two passes."""
    pixels = (noise(40, 160, 64) * 255).byte()
    moved = move(pixels.float(), seeded(), flip=False, translate=True)
    compared = 0
    for image, result in zip(pixels, moved, strict=True):
        if torch.equal(image.float(), result):
            continue
        enlarged = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((72, 180), Image.BILINEAR)
        enlarged = torch.from_numpy(np.array(enlarged)).permute(2, 0, 1).float()
        errors = [
            (enlarged[:, top : top + 160, left : left + 64] - result).abs().max().item()
            for top in range(21) for left in range(9)
        ]  # fmt: skip
        assert min(errors) <= 1.01
        compared += 1
    assert compared > 10


def test_jitter_is_brightness_then_contrast_then_saturation():
    images = 0.3 + 0.3 * noise(64, 12, 8)  # far from 0 and 1: nothing is cut off
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)

    def grey(x):
        return (x * luma).sum(dim=1, keepdim=True)

    def factors(after, before, strength):
        """The factor per image, (B,): one for all pixels of an image, within 1 +- strength, and of its own."""
        ratio = after.flatten(1) / before.flatten(1)
        certain = before.flatten(1).abs() > 0.02
        of_image = torch.stack([r[c].median() for r, c in zip(ratio, certain, strict=True)])
        torch.testing.assert_close(after, before * of_image.view(-1, 1, 1, 1), rtol=0, atol=1e-5)
        assert (of_image - 1).abs().max() <= strength + 1e-4
        assert of_image.min() < 1 - strength / 2 and of_image.max() > 1 + strength / 2
        assert len(set(of_image.tolist())) == len(of_image)

    bright = jitter(images, seeded(), contrast=0, saturation=0)
    factors(bright, images, 0.2)
    contrasted = jitter(images, seeded(), brightness=0, saturation=0)
    mean = grey(images).mean(dim=(1, 2, 3), keepdim=True)
    factors(contrasted - mean, images - mean, 0.15)
    saturated = jitter(images, seeded(), brightness=0, contrast=0)
    factors(saturated - grey(images), images - grey(images), 0.15)
    # all three, in that order: the same draws one after the other
    in_turn, generator = images, torch.Generator().manual_seed(0)
    factor = [1 + s * (2 * torch.rand(64, 1, 1, 1, generator=generator) - 1) for s in (0.2, 0.15, 0.15)]
    in_turn = in_turn * factor[0]
    mean = grey(in_turn).mean(dim=(1, 2, 3), keepdim=True)
    in_turn = mean + (in_turn - mean) * factor[1]
    in_turn = grey(in_turn) + (in_turn - grey(in_turn)) * factor[2]
    torch.testing.assert_close(jitter(images, seeded()), in_turn, rtol=0, atol=1e-6)


def test_jitter_stays_in_range():
    images = noise(64, 12, 8).round()  # zeros and ones
    jittered = jitter(images, seeded())
    assert jittered.min() >= 0 and jittered.max() <= 1 and not torch.equal(jittered, images)


def test_a_box_that_fits_is_found_for_every_image(monkeypatch):
    draws = seeded()
    monkeypatch.setattr(draws, "coins", lambda batch: torch.ones(batch, dtype=torch.bool))
    assert (erasing_boxes(draws, 20_000, 160, 64)[:, 1] > 0).all()


def test_erasing_boxes():
    height, width, count = 160, 64, 4000
    boxes = erasing_boxes(seeded(), count, height, width)
    erased = boxes[:, 1] > boxes[:, 0]
    assert abs(erased.float().mean() - 0.5) < 4 * (0.25 / count) ** 0.5
    assert boxes[~erased].abs().max() == 0
    top, bottom, left, right = boxes[erased].double().unbind(1)
    box_h, box_w = bottom - top, right - left
    assert top.min() == 0 and bottom.max() == height and left.min() == 0 and right.max() == width
    assert box_h.max() < height and box_w.max() < width, "strictly smaller than the image"
    # within the limits, up to the rounding of each side to whole pixels
    assert ((box_h + 0.5) * (box_w + 0.5) >= 0.02 * height * width).all()
    assert ((box_h - 0.5) * (box_w - 0.5) <= 0.4 * height * width).all()
    assert ((box_h + 0.5) / (box_w - 0.5) >= 0.3).all() and ((box_h - 0.5) / (box_w + 0.5) <= 1 / 0.3).all()
    area, aspect = box_h * box_w / (height * width), box_h / box_w
    assert area.min() < 0.03 and area.max() > 0.37 and aspect.min() < 0.4 and aspect.max() > 3.1
    assert len(set(map(tuple, boxes[erased].tolist()))) > 1900, "each image draws its own"


@pytest.mark.parametrize("size", [(32, 16), (24, 24)])
def test_erase_sets_one_box_to_zero(size):
    images = noise(200, *size) - 2  # below zero, as normalised pixels can be
    erased, boxes = erase(images, seeded(5)), erasing_boxes(seeded(5), 200, *size)
    for image, result, (top, bottom, left, right) in zip(images, erased, boxes.tolist(), strict=True):
        expected = image.clone()
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(result, expected)
    assert 0.3 < (erased == 0).any(dim=3).any(dim=2).any(dim=1).float().mean() < 0.7


@pytest.mark.parametrize("kind", ["bytes", "fractions"])
def test_normalise(kind):
    pixels = (noise(4, 6, 5) * 255).byte()
    expected = (pixels.numpy() / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    normalised = normalise(pixels if kind == "bytes" else pixels.float() / 255, MEAN, STD)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised.numpy(), expected, rtol=0, atol=2e-6)


def test_augment_applies_what_is_named_in_order():
    pixels = (noise(16, 32, 16) * 255).byte()
    plain = normalise(pixels, MEAN, STD)
    torch.testing.assert_close(augment(pixels, seeded(), (), MEAN, STD), plain, rtol=0, atol=2e-6)
    generator = seeded(3)
    step = jitter(move(pixels.float() / 255, generator, True, True), generator)
    step = erase(normalise(step, MEAN, STD), generator)
    augmented = augment(pixels, seeded(3), ("erase", "jitter", "translate", "flip"), MEAN, STD)
    torch.testing.assert_close(augmented, step, rtol=0, atol=1e-6)
    assert augmented.is_contiguous(memory_format=torch.channels_last) and augmented.dtype == torch.float32


def test_augment_fills_with_the_mean_colour():
    pixels = torch.full((64, 3, 32, 16), 250, dtype=torch.uint8)
    augmented = augment(pixels, seeded(), ("erase",), MEAN, STD)
    white = normalise(pixels[:1], MEAN, STD)
    boxed = (augmented == 0).all(dim=1)  # (B, H, W)
    assert 16 < boxed.any(dim=2).any(dim=1).sum() < 48
    kept = ~boxed.unsqueeze(1).expand_as(augmented)
    torch.testing.assert_close(augmented[kept], white.expand_as(augmented)[kept], rtol=0, atol=2e-6)


def test_augmentation_follows_from_its_generator():
    pixels = (noise(16, 32, 16) * 255).byte()
    before = global_states()
    one = augment(pixels, seeded(1), AUGMENTATIONS, MEAN, STD)
    assert global_states() == before
    torch.manual_seed(9)
    assert torch.equal(one, augment(pixels, seeded(1), AUGMENTATIONS, MEAN, STD))
    assert not torch.equal(one, augment(pixels, seeded(2), AUGMENTATIONS, MEAN, STD))
    assert torch.equal(pixels, (noise(16, 32, 16) * 255).byte()), "the pixels given stay as they were"


# ----------------------------------------------------------------------------------------------------------------------
# Clips: all frames of one share what is drawn, and different clips differ


CHOICES = [(name,) for name in AUGMENTATIONS] + [("flip", "translate"), AUGMENTATIONS]


@pytest.mark.parametrize("names", CHOICES, ids="+".join)
def test_a_clip_of_one_frame_is_augmented_as_an_image(names):
    pixels = (noise(16, 32, 16) * 255).byte()
    images = augment(pixels, seeded(3), names, MEAN, STD)
    clips = augment(pixels[:, None], seeded(3), names, MEAN, STD)
    assert clips.shape == (16, 1, 3, 32, 16)
    torch.testing.assert_close(clips[:, 0], images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", CHOICES, ids="+".join)
def test_equal_frames_of_a_clip_stay_equal_and_equal_clips_do_not(names):
    pixels = (noise(1, 32, 16) * 255).byte().expand(24, 4, 3, 32, 16)
    clips = augment(pixels, seeded(3), names, MEAN, STD)
    assert clips.shape == pixels.shape and clips.dtype == torch.float32
    assert torch.equal(clips, clips[:, :1].expand_as(clips))
    different = {clip.numpy().tobytes() for clip in clips[:, 0].contiguous()}
    assert len(different) == 2 if names == ("flip",) else len(different) > 8


def test_frames_of_a_clip_are_augmented_each_by_its_own_content():
    """What is drawn belongs to the clip, what it is done to belongs to the frame: as an image in the same place."""
    pixels = (noise(24, 32, 16, seed=1) * 255).byte().view(6, 4, 3, 32, 16)
    for names in (("flip", "translate"), ("erase",), ("jitter",), AUGMENTATIONS):
        clips = augment(pixels, seeded(5), names, MEAN, STD)
        for frame in range(4):
            images = augment(pixels[:, frame], seeded(5), names, MEAN, STD)
            torch.testing.assert_close(clips[:, frame], images, rtol=0, atol=1e-6)
