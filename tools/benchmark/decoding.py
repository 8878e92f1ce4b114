"""From files to batches: parsing, decoding, and training from more pixels than fit into memory."""

import contextlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
import models
import train
from images import open_image
from tools.benchmark.measure import anonymous_memory, compare, medians, per_second, watch
from tools.benchmark.training import run_epoch
from training.pixels import Pixels, TrainSet, load_pixels


def fake_msmt17(folder):
    """Lists of MSMT17's length and the files that they name, all empty, below `folder`."""
    base = folder / "msmt17" / "MSMT17_V1"
    for part, images, persons, count in (
        ("train", "train", 1041, 30248), ("val", "train", 1041, 2373),
        ("query", "test", 3060, 11659), ("gallery", "test", 3060, 82161),
    ):  # fmt: skip
        for pid in range(persons):
            (base / images / f"{pid:04}").mkdir(parents=True, exist_ok=True)
        pids = [n % persons for n in range(count)]
        names = [f"{pid:04}/{pid:04}_{n:06}_{n % 15 + 1:02}_0303morning_{part}_0.jpg" for n, pid in enumerate(pids)]
        for name in names:
            open(base / images / name, "w").close()
        lines = (f"{name} {pid}\n" for name, pid in zip(names, pids, strict=True))
        (base / f"list_{part}.txt").write_text("".join(lines))


def decode_plainly(paths, size):
    """One process, one image after the other."""
    array = np.empty((len(paths), *size, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        with open_image(path) as image:
            array[row] = np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    return array


def measure_data(device, dataset, root, gigabytes):
    """Parsing of a data set and of lists as long as MSMT17's, decoding into the cache and without; then training."""
    size = (160, 64)
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        folder = Path(folder)
        fake_msmt17(folder)
        parse = [lambda: data.read_dataset(dataset, root), lambda: data.read_dataset("msmt17", folder)]
        with contextlib.redirect_stdout(io.StringIO()):
            seconds, splits = medians(parse, device), data.read_dataset(dataset, root)
        paths = [path for items in splits for item in items for path in item.paths]
        items = sum(map(len, splits))
        print(f"parsing {dataset}, {items:,} items: {seconds[0]:.2f} s; MSMT17's lists: {seconds[1]:.2f} s")

        def decode():
            with contextlib.redirect_stdout(io.StringIO()):
                load_pixels(paths, size, folder / "pixels", "decoded")
            shutil.rmtree(folder / "pixels")

        print(f"decoding {dataset}, {len(paths):,} images")
        sides = {"into the cache, all cores": decode, "plain loop": lambda: decode_plainly(paths, size)}
        compare(device, sides, rounds=3, remark=per_second(len(paths)))
    batches = np.random.default_rng(0).permutation(len(paths))[: len(paths) // 64 * 64].reshape(-1, 64)[:100]
    each_time = Pixels(paths, size)
    (seconds,) = medians([lambda: [each_time.batch(rows) for rows in batches]], device, rounds=3)
    print(f"decoding batch by batch, beyond --cache-limit: {batches.size / seconds:.0f} images/s")
    measure_large_cache(device, gigabytes)


def measure_large_cache(device, gigabytes, size=(160, 64), batch=16, steps=20):
    """Builds a cache of that size as a run does, and trains from all of it; prints and returns anonymous memory, bytes.

    An epoch draws its batches from the whole array; its last `steps` steps are taken. Code that copied the array, or
    kept what it decodes, would need that much memory more.
    """
    count, amp = int(gigabytes * 1e9 / (3 * size[0] * size[1])), "bf16" if train.has_fast_bf16(device) else "off"
    model = models.build_model("hacnn", 16).to(device, memory_format=torch.channels_last)
    train_set = TrainSet(None, np.arange(count) % 16, batch_size=batch)
    training, first = train.prepare(model, train_set, amp=amp), len(train_set.batches(0)) - steps
    before = anonymous_memory()
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        noise = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{folder}/a.jpg")

        def build_and_train():
            paths = [f"{folder}/a.jpg"] * count
            with contextlib.redirect_stdout(io.StringIO()):
                pixels = load_pixels(paths, size, Path(folder, "pixels"), "large", limit_gb=2 * gigabytes)
            if not isinstance(pixels.array, np.memmap):
                raise ValueError(f"{folder} cannot hold {gigabytes:g} GB: set TMPDIR to a folder on a larger disk")
            run_epoch(training._replace(train_set=train_set._replace(pixels=pixels)), step=first)

        peak = before + watch(build_and_train, device).anonymous
    print(f"building and training from a cache of {gigabytes:g} GB, batch {batch}, {amp.replace('off', 'fp32')}: "
          f"at most {peak / 1e9:.2f} GB of anonymous memory in the process")  # fmt: skip
    return peak
