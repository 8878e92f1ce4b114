"""From image files to batches: pixels that are decoded once, augmentation in batches, what an epoch trains on.

    pixels = load_pixels(paths, (160, 64), "data/.pixels", "market1501-train")     # without a folder: batch by batch
    train_set = build_train_set(items, pixels, batch_size=64, num_instances=4)
    for samples in train_set.batches(epoch=0):
        images, labels = train_set.load(samples, seed, device, mean, std)            # (B, 3, H, W), (B,)

Three things differ from the usual way:
- Images are decoded and resized once, into one array of bytes that later runs map again. What starves a trainer is
  decoding the same JPEGs every epoch.
- Augmentation runs on the whole batch, on the device, with parameters of its own for each image. Translation enlarges
  the resized pixels by 1.125 and crops; the usual code enlarges the original file.
- Nothing touches a global random generator: what an epoch draws follows from (seed, epoch, step) alone, so a run that
  is resumed draws the same.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch

import data
from images import (
    BLOCK,
    cpus,
    decode_block,
    decode_in_processes,
    progress,
    read_or_reason,
    remove_abandoned,
    replacing,
)
from training import distributed

# ----------------------------------------------------------------------------------------------------------------------
# Pixels


def refuse_broken(reasons):
    """ValueError that lists the files which cannot be read, if there are any."""
    if reasons:
        listed = "\n  ".join(reasons[:20]) + (f"\n  and {len(reasons) - 20} more" if len(reasons) > 20 else "")
        raise ValueError(f"{len(reasons)} images cannot be read; replace or remove these files:\n  {listed}")


class Pixels:
    """N images as bytes (N, H, W, 3): an array of all of them, or decoded batch by batch where `array` is None.

    places (N,): the rows of the array that hold them, where it holds others too.
    """

    def __init__(self, paths, size, array=None, places=None):
        self.paths, self.size, self.array, self.places = paths, size, array, places
        self.threads = None if array is not None else ThreadPoolExecutor(cpus())

    def __len__(self):
        return len(self.paths)

    def batch(self, rows, device="cpu"):
        """rows (B,), or (B, T) of clips -> uint8 (B, [T,] 3, H, W) on `device`, channels-last in memory."""
        rows = np.asarray(rows) if self.places is None else self.places[rows]
        if isinstance(self.array, torch.Tensor):  # already on the device
            images = self.array[put(torch.from_numpy(rows), self.array.device)]
        elif self.array is not None:
            images = torch.from_numpy(self.array[rows]).to(device, non_blocking=True)
        else:
            paths = [self.paths[row] for row in rows.flat]
            images = list(self.threads.map(partial(read_or_reason, size=self.size), paths))
            refuse_broken([image for image in images if isinstance(image, str)])
            images = torch.from_numpy(np.stack(images)).to(device, non_blocking=True).unflatten(0, rows.shape)
        return images.movedim(-1, -3)

    def to_device(self, device):
        """Moves the array into the memory of a GPU where it takes less than half of what is free there."""
        if device.type == "cuda" and isinstance(self.array, np.ndarray):
            if len(self) * self.array[0].nbytes < torch.cuda.mem_get_info(device)[0] / 2:
                array = np.array(self.array) if self.places is None else self.array[self.places]
                self.array, self.places = torch.from_numpy(array).to(device), None
        return self


def fingerprint(paths, size):
    """Changes with the list of files, the size or date of one of them, the image size, or the version of Pillow."""
    digest = hashlib.sha256(f"{PIL.__version__} {tuple(size)}".encode())
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def decode_into(array, paths, size, description, file=None):
    """Decodes all files, into array (N, H, W, 3) where there is one; ValueError lists every one that cannot be read.

    file: where the array lies on disk; then many images are decoded by a process per core.
    """
    blocks = [(start, paths[start : start + BLOCK]) for start in range(0, len(paths), BLOCK)]
    broken = []
    with ThreadPoolExecutor(cpus()) as threads, progress(description, len(paths)) as bar:
        if file and len(paths) >= 8 * BLOCK:  # starting a process takes as long as decoding some hundred images
            done = decode_in_processes(file, blocks, size)
        else:
            done = threads.map(lambda block: (len(block[1]), decode_block(array, *block, size)), blocks)
        for count, reasons in done:
            broken += reasons
            bar.update(count)
    refuse_broken(broken)


def map_array(path, shape):
    """The bytes of a file of the cache, as they lie on disk; None where there is none of this shape, or half of one."""
    if not os.path.isfile(path):
        return None
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # another process has just deleted it, or it was never whole
        return None
    return array if (array.dtype, array.shape) == (np.uint8, shape) else None


SHARED = 0.1  # of the limit: so large may an array be that holds more than was asked for


def load_pixels(paths, size, cache=None, name="images", *, limit_gb=20.0, among=None, check=True):
    """Pixels of the files, decoded once into `cache`/NAME-HxW-PLACE-FINGERPRINT.npy, which later runs map again.

    Without a cache, or where that array would pass limit_gb, images are decoded batch by batch instead. Where the cache
    cannot be written or its disk is too full, the array is kept in memory. ValueError lists unreadable images; with
    check=False only where they are decoded here, not those of batches to come: another process has looked.

    among: (name, files with these among them, of which other calls take others). Where they are few, SHARED of limit_gb
    at most, one array of that name holds all of them, for all of those calls.
    """
    if cache is None:
        return Pixels(paths, size)
    height, width = size
    if among and len(among[1]) * height * width * 3 / 1e9 <= SHARED * limit_gb:
        every = load_pixels(among[1], size, cache, among[0], limit_gb=limit_gb, check=check)
        row_of = {path: row for row, path in enumerate(among[1])}
        return Pixels(paths, size, every.array, np.array([row_of[path] for path in paths]))
    shape, gigabytes = (len(paths), height, width, 3), len(paths) * height * width * 3 / 1e9
    if gigabytes > limit_gb:
        print(f"{name}: {gigabytes:.1f} GB of pixels, over the limit of {limit_gb:g}: decoding batch by batch")
        if check:
            decode_into(None, paths, size, f"checking {name}")
        return Pixels(paths, size)
    cache = Path(cache)
    place = hashlib.sha256(os.path.dirname(os.path.abspath(paths[0])).encode()).hexdigest()[:6]
    stem = f"{name}-{height}x{width}-{place}"  # data sets of one name below two roots can share a cache
    target = cache / f"{stem}-{fingerprint(paths, size)}.npy"
    if (array := map_array(target, shape)) is not None:
        return Pixels(paths, size, array)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache)
        free = shutil.disk_usage(cache).free / 1e9
        if free < gigabytes + 1:
            raise OSError(f"{free:.1f} GB free, {gigabytes:.1f} needed")
        with replacing(target) as file:
            array = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.uint8, shape=shape)
            print(f"{name}: decoding {len(paths)} images once, {gigabytes:.2f} GB in {cache}")
            decode_into(array, paths, size, f"decoding {name}", file.name)
            array.flush()
            array = map_array(file.name, shape)  # stays, should a process with another list delete the file
    except ChildProcessError:  # of a file that ends what decodes it: not the cache's fault
        raise
    except OSError as error:
        print(f"{name}: {gigabytes:.2f} GB of pixels stay in memory, {cache} cannot hold them: {error}")
        array = np.empty(shape, dtype=np.uint8)
        decode_into(array, paths, size, f"decoding {name}")
        return Pixels(paths, size, array)
    for stale in sorted(cache.glob(f"{stem}-*.npy")):
        if stale != target:
            stale.unlink(missing_ok=True)  # another process may just do so too
    return Pixels(paths, size, array)


# ----------------------------------------------------------------------------------------------------------------------
# Transforms of a batch


def put(tensor, device):
    """A small tensor of the CPU on `device`, without waiting for what a GPU has to do before."""
    return tensor.to(device, non_blocking=True)


class Draws:
    """Random numbers for the images of a batch, from a generator of its own.

    Where a batch is spread over world_size processes, each draws for all of it and takes what belongs to its part: what
    happens to an image does not depend on how many processes there are.
    """

    def __init__(self, seed, rank=0, world_size=1):
        self.generator = torch.Generator().manual_seed(seed)
        self.rank, self.world_size = rank, world_size

    def uniform(self, low, high, batch, *shape):
        """(batch, *shape) floats, low to high; batch: images of this process."""
        drawn = torch.rand(batch * self.world_size, *shape, generator=self.generator)
        return low + (high - low) * drawn[batch * self.rank : batch * (self.rank + 1)]

    def integers(self, number, batch):
        """(batch,) whole numbers from 0, below `number`."""
        drawn = torch.randint(number, (batch * self.world_size,), generator=self.generator)
        return drawn[batch * self.rank : batch * (self.rank + 1)]

    def coins(self, batch):
        """(batch,) booleans, true with probability 1/2."""
        return self.uniform(0, 1, batch) < 0.5


def move(images, draws, flip, translate):
    """Horizontal flip and translation, each with probability 1/2: float images (B, C, H, W) -> the same shape.

    Translation enlarges by 1.125 and crops H x W at a random whole offset. Both choose source positions on each axis,
    so two interpolation matrices do both: rows (H x H) @ image @ columns (W x W).
    """
    batch, _, height, width = images.shape
    moved, flipped = draws.coins(batch) & translate, draws.coins(batch) & flip
    matrices = []
    for size, flips in ((height, torch.zeros_like(flipped)), (width, flipped)):
        slack = round(size * 1.125) - size
        scale = torch.where(moved, 1 + slack / size, 1.0)
        offset = draws.integers(slack + 1, batch) * moved
        # what is drawn goes to the device, (B, 1) each, and all that is computed from it is computed there
        scale, offset, flips = (put(drawn, images.device).unsqueeze(1) for drawn in (scale, offset, flips))
        index = torch.arange(size, dtype=torch.float32, device=images.device)
        source = (index + offset + 0.5) / scale - 0.5  # (B, size)
        source = torch.where(flips, source.flip(1), source).clamp(0, size - 1)
        matrices.append((1 - (source.unsqueeze(2) - index).abs()).clamp(min=0).to(images.dtype))
    rows, columns = matrices  # (B, H, H), (B, W, W)
    x = rows @ images.permute(0, 2, 3, 1).reshape(batch, height, -1)  # (B, H, W * C)
    x = x.view(batch, height, width, -1).transpose(1, 2).reshape(batch, width, -1)
    x = columns @ x  # (B, W, H * C)
    return x.view(batch, width, height, -1).permute(0, 3, 2, 1)  # (B, W, H, C) -> (B, C, H, W)


def jitter(images, draws, brightness=0.2, contrast=0.15, saturation=0.15):
    """Brightness, contrast and saturation, each by a factor of its own per image, 1 +- the given; images in 0..1.

    Images (B, 3, H, W), or clips (B, T, 3, H, W) with the factors of a clip for all of its frames.
    """

    def factors(strength):
        factor = draws.uniform(1 - strength, 1 + strength, len(images))
        return put(factor.view(-1, *[1] * (images.dim() - 1)), images.device)

    def grey(x):  # ITU-R 601 luma, (..., 1, H, W)
        weights = put(torch.tensor([0.299, 0.587, 0.114]), x.device).view(3, 1, 1)
        return (x * weights).sum(dim=-3, keepdim=True)

    images = (images * factors(brightness)).clamp(0, 1)
    mean = grey(images).mean(dim=(-3, -2, -1), keepdim=True)
    images = (mean + (images - mean) * factors(contrast)).clamp(0, 1)
    middle = grey(images)
    return (middle + (images - middle) * factors(saturation)).clamp(0, 1)


def erasing_boxes(draws, batch, height, width, tries=10):
    """Random erasing (Zhong et al., AAAI 2020): boxes (B, 4) top, bottom, left, right; empty where nothing is erased.

    Probability 1/2, area 0.02 to 0.4 of the image, aspect 0.3 to 1/0.3, the first of some draws that fits inside. Of
    160 x 64 pixels 91 % do, so 10 draws are as good as the 100 of the paper's code: 1 box in 10^10 would need more.
    """
    area = draws.uniform(0.02, 0.4, batch, tries) * height * width
    aspect = draws.uniform(0.3, 1 / 0.3, batch, tries)
    box_h, box_w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()  # (B, tries)
    fits = (box_h < height) & (box_w < width)
    first = fits.float().argmax(dim=1, keepdim=True)
    box_h, box_w = box_h.gather(1, first).squeeze(1), box_w.gather(1, first).squeeze(1)  # (B,)
    erased = draws.coins(batch) & fits.any(dim=1)
    top = (draws.uniform(0, 1, batch) * (height - box_h + 1)).long()
    left = (draws.uniform(0, 1, batch) * (width - box_w + 1)).long()
    return torch.stack([top, top + box_h, left, left + box_w], dim=1) * erased.unsqueeze(1)


def erase(images, draws):
    """Sets a random box of normalised images to zero, which is the mean colour."""
    batch, _, height, width = images.shape
    boxes = put(erasing_boxes(draws, batch, height, width), images.device)
    top, bottom, left, right = boxes.unsqueeze(2).unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (B, H), (B, W)
    return images * ~(inside_y.unsqueeze(2) & inside_x.unsqueeze(1)).unsqueeze(1)  # (B, 1, H, W)


def normalise(images, mean, std):
    """uint8, or float in 0..1, (..., 3, H, W) -> float32 with the given mean and deviation per channel."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean = put(torch.tensor(mean), images.device).view(3, 1, 1) * scale
    std = put(torch.tensor(std), images.device).view(3, 1, 1) * scale
    return (images.float() - mean).div_(std)


AUGMENTATIONS = ("flip", "translate", "jitter", "erase")


def augment(images, draws, names, mean, std):
    """Bytes -> augmented, normalised float images of the same shape; `names` out of AUGMENTATIONS, in that order.

    Images (B, 3, H, W) have parameters of their own; in clips (B, T, 3, H, W) all frames of one share theirs, for what
    flips or moves between two frames is not what a camera sees.
    """
    shape = images.shape
    images = images.float().div_(255)
    if "flip" in names or "translate" in names:  # frames as channels
        images = move(images.flatten(1, -3), draws, "flip" in names, "translate" in names).reshape(shape)
    if "jitter" in names:
        images = jitter(images, draws)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    images = normalise(images, mean, std)
    return erase(images.flatten(1, -3), draws).reshape(shape) if "erase" in names else images


# ----------------------------------------------------------------------------------------------------------------------
# What an epoch trains on


class TrainSet(NamedTuple):
    """Samples with labels, how they make batches, and what is done to their images.

    A sample is an image, or a tracklet of which every step takes a clip of seq_len frames. What stands behind labels is
    that of data.epoch_batches and data.choose_frames.
    """

    pixels: Pixels | None  # of all images and frames; None until they are decoded
    labels: np.ndarray  # (N,) of the samples; -1: left out
    tracklets: list | None = None  # rows of `pixels` of each sample; None where row i is sample i
    domains: np.ndarray | None = None  # (N,) camera or data set of the samples, where batches are made by them
    batch_size: int = 64
    num_instances: int | None = None
    num_domains: int = 0
    seq_len: int = 8
    sampling: str = "random"
    augment: Sequence[str] = ("flip", "translate")
    seed: int = 0

    def batches(self, epoch):
        """Of one epoch, arrays of samples (B,), without those of label -1. ValueError where none can be made."""
        known = np.flatnonzero(self.labels >= 0)
        domains = None if self.domains is None else self.domains[known]
        how = self.batch_size, self.num_instances, self.seed, epoch, domains, self.num_domains
        return [known[batch] for batch in data.epoch_batches(self.labels[known], *how)]

    def rows(self, samples, seed):
        """Rows of `pixels`: (B,), or (B, T) of clips."""
        if self.tracklets is None:
            return samples
        rng, clips = np.random.default_rng(seed), []
        for rows in (self.tracklets[sample] for sample in samples):
            frames = data.choose_frames(len(rows), self.seq_len, self.sampling, rng)
            clips.append(rows[data.fill_clip(frames, self.seq_len)])
        return np.stack(clips)

    def load(self, samples, seed, device, mean, std):
        """(augmented, normalised images (B, [T,] 3, H, W), labels (B,)) of a batch: this process's part of it."""
        mine = distributed.part(len(samples))
        images = self.pixels.batch(self.rows(samples, seed)[mine], device)  # uint8
        images = augment(images, Draws(seed, distributed.rank(), distributed.world_size()), self.augment, mean, std)
        return images, torch.from_numpy(self.labels[samples[mine]]).to(device, non_blocking=True)


def build_train_set(items, pixels=None, *, domains=None, sampling="random", **settings):
    """The TrainSet of items whose pixels stand one after the other; domains (N,): of the items, where batches need
    them. sampling "frames": each frame of a tracklet is a sample by itself."""
    labels, _ = data.relabel(items)
    lengths = [len(item.paths) for item in items]
    if max(lengths) > 1 and sampling != "frames":
        tracklets = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
        return TrainSet(pixels, labels, tracklets, domains, sampling=sampling, **settings)
    domains = None if domains is None else domains.repeat(lengths)
    return TrainSet(pixels, labels.repeat(lengths), None, domains, **settings)
