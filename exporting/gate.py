"""What an exported file has to show before it gets its name: the features of PyTorch, on any batch, and its ranking.

    trials = make_trials(extractor, pictures, (1, 2, 7, 32))      # inputs, and what PyTorch gives for them
    findings, report = check(run, trials, LIMITS["fp32"], ranking)

`run` takes the inputs of the graph as numpy arrays and gives features, whatever runs it. A finding is a sentence about
a limit that is not kept; no findings: passed. The report is what was measured, as plain values.

Features of pictures: in batches of several sizes, none of which the graph was written with; uint8 input in several
image sizes, larger and smaller than the network's; tracklets of several lengths with frames masked out, other pictures
or NaN, which PyTorch never sees. Where a data set is at hand, a ranking too: rank-1, mAP, and how much of each query's
ten nearest stay.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import metrics
from images import read_or_reason
from training.pixels import Pixels, normalise, refuse_broken

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LENGTHS = (1, 4, 3, 2)  # frames of the tracklets of each batch, in turn
SCALES = (1, 0.45, 1.7, 2.9)  # of the images of each batch for uint8 input, in turn, beside their own size
ROWS = 32  # items at once, over a data set


class Limits(NamedTuple):
    cosine: float  # to the feature that PyTorch gives, of the worst image, at least
    difference: float  # of any number in a feature, at most
    rank1: float  # lost over a data set, in points (a hundredth of all queries), at most; one query may always be
    mAP: float
    top10: float  # share of PyTorch's ten nearest gallery images that are among the file's ten nearest, at least


LIMITS = {  # by precision; the formats have no excuse to differ
    "fp32": Limits(0.99999, 1e-5, 0.1, 0.05, 0.999),
    "fp16": Limits(0.9999, 5e-4, 0.5, 0.2, 0.98),
    "int8": Limits(0.98, 5e-2, 1.0, 0.5, 0.9),
}
RESIZED = Limits(0.9999, 5e-3, 0.5, 0.2, 0.98)  # uint8 input: Pillow's rounding is met but for single units of 255


def limits_of(precision, kind):
    """The row of the table, or for uint8 input the looser of two numbers in each column."""
    row = LIMITS[precision]
    if kind != "bytes":
        return row
    loosest = (min, max, max, max, min)
    return Limits(*(pick(pair) for pick, *pair in zip(loosest, row, RESIZED, strict=True)))


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_patches(count, size, seed=1):
    """bytes (count, H, W, 3): patches of colour with noise on them, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    patches = F.interpolate(torch.rand(count, 3, 6, 3, generator=generator), size=size, mode="bilinear")
    noisy = (patches + 0.1 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)
    return (noisy * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def list_pictures(folder):
    """Image files below a folder, sorted. ValueError where there is none."""
    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}: give one with images of persons ({', '.join(SUFFIXES)})")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"no images ({', '.join(SUFFIXES)}) below {folder}")
    return found


def spread(items, count):
    """`count` of the items, or all if there are fewer, evenly from the whole list."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def open_pictures(paths):
    """bytes (h, w, 3) of each file, at its own size, RGB. ValueError names those that cannot be read."""
    pictures = [read_or_reason(path) for path in paths]
    refuse_broken([picture for picture in pictures if isinstance(picture, str)])
    return pictures


def resized(picture, size):
    """bytes (h, w, 3) -> (H, W, 3) as read_image does it."""
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def normalised(pictures, model):
    """bytes (h, w, 3) of any sizes -> float32 (N, 3, H, W) as in training."""
    stack = np.stack([resized(picture, model.input_size) for picture in pictures])
    return normalise(torch.from_numpy(stack).permute(0, 3, 1, 2), model.mean, model.std)


# ----------------------------------------------------------------------------------------------------------------------
# Trials: inputs, and what PyTorch gives for them


class Trial(NamedTuple):
    name: str
    inputs: tuple[np.ndarray, ...]  # of the graph
    reference: np.ndarray  # features (B, D)


def bytes_trial(extractor, pictures, number):
    """Pictures of one size, not the network's: PyTorch has them resized by Pillow."""
    height, width = (max(1, round(side * SCALES[number % len(SCALES)])) for side in pictures[0].shape[:2])
    pictures = [resized(picture, (height, width)) for picture in pictures]
    name = f"batch {len(pictures)} of {height} x {width}"
    return Trial(name, (np.stack(pictures),), extractor(normalised(pictures, extractor.model)).numpy())


def clips_trial(extractor, pictures, count, number, told):
    """Tracklets with frames masked out: PyTorch has each by itself, without those; half of them are NaN in the file."""
    length = LENGTHS[number % len(LENGTHS)]
    own, clips = (normalised(pictures, by).unflatten(0, (count, length)) for by in (extractor.model, told))
    mask = np.random.default_rng(number).random((count, length)) < 0.6
    mask[np.arange(count), np.arange(count) % length] = True  # at least one frame, not always the first
    kept = [clip[torch.from_numpy(row)].unsqueeze(0) for clip, row in zip(own, mask, strict=True)]
    reference = torch.cat([extractor(clip, torch.ones(clip.shape[:2])) for clip in kept])
    spoilt = ~mask & (np.add.outer(np.arange(count), np.arange(length)) % 2 == 0)
    clips = np.where(spoilt[:, :, None, None, None], np.float32(np.nan), clips.numpy())
    return Trial(f"batch {count} of {length} frames", (clips, mask.astype(np.float32)), reference.numpy())


@torch.inference_mode()
def make_trials(extractor, kind, pictures, batches, told=None):
    """A trial per batch size. kind: images, clips or bytes; pictures: bytes (h, w, 3), used again where they run out.

    extractor: the network with L2-normalised features, (images) or (clips, mask) -> features, `model` inside; told:
    what has the input_size, mean and std that inputs are to be made by, if not that model. PyTorch's features follow
    its own all the same, so that a file which says wrong ones does not agree.
    """
    told, trials, start = told or extractor.model, [], 0
    for number, count in enumerate(batches):
        needed = count * (LENGTHS[number % len(LENGTHS)] if kind == "clips" else 1)
        chosen = [pictures[(start + step) % len(pictures)] for step in range(needed)]
        start += needed
        if kind == "bytes":
            trials.append(bytes_trial(extractor, chosen, number))
        elif kind == "clips":
            trials.append(clips_trial(extractor, chosen, count, number, told))
        else:
            own, images = (normalised(chosen, by) for by in (extractor.model, told))
            trials.append(Trial(f"batch {count}", (images.numpy(),), extractor(own).numpy()))
    return trials


def feed(pictures, kind, model):
    """[{name of an input: array}, ...] of pictures (h, w, 3), as tracklets of one frame where the graph takes those."""
    if kind == "bytes":
        return [{"bytes": picture[None]} for picture in pictures]  # sizes differ
    batches = [normalised(pictures[n : n + ROWS], model).numpy() for n in range(0, len(pictures), ROWS)]
    if kind == "images":
        return [{"images": batch} for batch in batches]
    return [{"clips": batch[:, None], "mask": np.ones((len(batch), 1), np.float32)} for batch in batches]


# ----------------------------------------------------------------------------------------------------------------------
# A ranking over a data set


class Ranking:
    """Queries and gallery of a data set, of all test persons or of some, and what PyTorch makes of them."""

    def __init__(self, extractor, kind, name, root, *, split=0, persons=100, seq_len=8):
        splits = data.load_dataset(name, root, split=split, train=False)
        if data.has_video(splits) and kind != "clips":
            raise ValueError(f"--dataset {name} is of tracklets, the network is for images: name a set of images")
        everyone = sorted({item.pid for item in splits.query})
        chosen = set(spread(everyone, persons or len(everyone)))
        share = len(chosen) / len(everyone)
        strangers = [item for item in splits.gallery if item.pid not in set(everyone)]  # their share as in the whole
        gallery = [item for item in splits.gallery if item.pid in chosen]
        gallery += spread(strangers, round(share * len(strangers)))
        query = [item for item in splits.query if item.pid in chosen]
        self.kind, self.model, self.items, self.num_queries = kind, extractor.model, query + gallery, len(query)
        self.ids = [np.array([item[i] for item in part]) for i in (1, 2) for part in (query, gallery)]
        self.protocol = data.find_dataset(name, root)[0].protocol
        self.name = f"{name}, {len(chosen)} of {len(everyone)} persons, {len(query)} queries, {len(gallery)} in gallery"
        rng = np.random.default_rng(0)
        self.frames = [
            [item.paths[n] for n in data.choose_frames(len(item.paths), seq_len, "evenly", rng)] for item in self.items
        ]
        run = lambda *inputs: extractor(*map(torch.from_numpy, inputs)).numpy()  # noqa: E731
        with torch.inference_mode():
            self.reference = self.features(run, "clips" if kind == "clips" else "images")
        self.expected = self.scores(self.reference)

    def inputs_of(self, frames, kind):
        """Inputs of the graph for some items, given as lists of paths; several where pixels differ in size."""
        if kind == "bytes":
            pictures = open_pictures([paths[0] for paths in frames])
            if len({picture.shape for picture in pictures}) > 1:
                return [(picture[None],) for picture in pictures]
            return [(np.stack(pictures),)]
        pixels = Pixels([path for paths in frames for path in paths], self.model.input_size)
        images = normalise(pixels.batch(np.arange(len(pixels))), self.model.mean, self.model.std).numpy()
        pixels.threads.shutdown()
        if kind == "images":
            return [(images,)]
        clips = np.zeros((len(frames), max(map(len, frames)), *images.shape[1:]), np.float32)
        mask, start = np.zeros(clips.shape[:2], np.float32), 0
        for row, paths in enumerate(frames):
            clips[row, : len(paths)] = images[start : start + len(paths)]
            mask[row, : len(paths)] = 1
            start += len(paths)
        return [(clips, mask)]

    def features(self, run, kind=None):
        """(N, D) of all items by `run`."""
        rows = max(1, ROWS // max(map(len, self.frames)))
        blocks = [self.frames[start : start + rows] for start in range(0, len(self.frames), rows)]
        return np.concatenate([run(*one) for block in blocks for one in self.inputs_of(block, kind or self.kind)])

    def split(self, features):
        return np.split(features, [self.num_queries])

    def scores(self, features):
        """rank-1 and mAP in percent."""
        found = metrics.evaluate(*map(torch.from_numpy, self.split(features)), *self.ids, protocol=self.protocol)
        return {"rank1": 100 * float(found["cmc"][0]), "mAP": 100 * float(found["mAP"])}

    def check(self, run, limits):
        """(findings, report) of the features that `run` gives."""
        features = self.features(run)
        if features.shape != self.reference.shape or not np.isfinite(features).all():
            return [f"{self.name}: features {features.shape} with NaN or of another shape"], {}
        found, kept = self.scores(features), top_overlap(self.split(features), self.split(self.reference))
        findings = []
        for name, allowed in (("rank1", max(limits.rank1, 100.1 / self.num_queries)), ("mAP", limits.mAP)):
            lost = self.expected[name] - found[name]
            if not lost <= allowed:
                findings.append(f"{self.name}: {name} {found[name]:.2f} instead of {self.expected[name]:.2f}, "
                                f"at most {allowed:.2f} points may be lost")  # fmt: skip
        if not kept >= limits.top10:
            findings.append(f"{self.name}: {100 * kept:.1f} % of the ten nearest stay, {100 * limits.top10:g} % asked")
        report = {"dataset": self.name, **{name: round(value, 3) for name, value in found.items()}}
        report |= {f"{name}_pytorch": round(value, 3) for name, value in self.expected.items()}
        return findings, report | {"top10_overlap": round(kept, 4)}


class Neighbours:
    """Stands in for a ranking where there is no data set: half of some pictures seek their nearest among the rest."""

    def __init__(self, extractor, kind, pictures):
        self.feed, self.count = feed(pictures, kind, extractor.model), len(pictures)
        run = lambda *inputs: extractor(*map(torch.from_numpy, inputs)).numpy()  # noqa: E731
        plain = feed(pictures, "clips" if kind == "clips" else "images", extractor.model)
        with torch.inference_mode():
            self.reference = np.concatenate([run(*batch.values()) for batch in plain])

    def check(self, run, limits):
        """(findings, report) as Ranking.check."""
        features = np.concatenate([run(*batch.values()) for batch in self.feed])
        halves = [(side[0::2], side[1::2]) for side in (features, self.reference)]
        kept, cosine = top_overlap(*halves), agreement(features, self.reference)[0]
        report = {"stand_in": f"{self.count} calibration images", "top10_overlap": round(kept, 4)}
        findings, told = [], f"{self.count} calibration images, which stand in for a data set"
        if not kept >= limits.top10:
            findings.append(f"{told}: {100 * kept:.1f} % of the ten nearest stay, {100 * limits.top10:g} % asked")
        if not cosine >= limits.cosine:
            findings.append(f"{told}: cosine of the worst image {cosine:.7f}, at least {limits.cosine} asked")
        return findings, report


def top_overlap(ours, reference, count=10):
    """Share of the reference's `count` nearest gallery items of each query that are among ours, over all queries."""
    count = min(count, len(reference[1]))
    nearest = []
    for queries, gallery in (ours, reference):
        q, g = torch.from_numpy(queries), torch.from_numpy(gallery)
        nearest.append(torch.cat([(part @ g.T).topk(count, dim=1).indices for part in q.split(256)]))
    return (nearest[0].unsqueeze(2) == nearest[1].unsqueeze(1)).any(dim=2).double().mean().item()


# ----------------------------------------------------------------------------------------------------------------------
# The check


def agreement(ours, reference):
    """(cosine of the worst row, largest difference of any number) of features (B, D)."""
    return float((ours * reference).sum(axis=1).min()), float(np.abs(ours - reference).max())


def check(run, trials, limits, ranking=None):
    """(findings, report): see above. A ranking is looked at only where the trials leave nothing to say."""
    findings, cosines, differences = [], [], []
    for name, inputs, reference in trials:
        try:
            ours = run(*inputs)
        except Exception as error:  # each runtime has exceptions of its own; whatever they say is a finding
            lines = str(error).strip().splitlines() or [type(error).__name__]  # TorchScript has the reason at the end
            findings.append(f"{name}: does not run: {lines[-1 if 'TorchScript' in lines[0] else 0]}")
            continue
        if ours.shape != reference.shape or ours.dtype != np.float32:
            findings.append(f"{name}: features are {ours.dtype} {ours.shape}, PyTorch gives float32 {reference.shape}")
            continue
        cosine, difference = agreement(ours, reference)
        cosines.append(cosine)
        differences.append(difference)
        if not cosine >= limits.cosine:  # written so that NaN fails
            findings.append(f"{name}: cosine of the worst image {cosine:.7f}, at least {limits.cosine} asked")
        if not difference <= limits.difference:
            findings.append(f"{name}: largest difference {difference:.2e}, at most {limits.difference:.0e} allowed")
        if len(ours) > 1 and np.abs(ours - ours[0]).max() <= LIMITS["fp32"].difference:
            findings.append(f"{name}: different images give the same feature")
    report = {"trials": [trial.name for trial in trials], "cosine": min(cosines, default=None),
              "difference": max(differences, default=None)}  # fmt: skip
    if ranking and not findings:
        findings, ranked = ranking.check(run, limits)
        report |= ranked
    return findings, report


def describe(report):
    """The report as a line to print."""
    line = f"worst cosine {report['cosine']:.7f}, largest difference {report['difference']:.1e}"
    if "mAP" in report:
        line += "; {dataset}: mAP {mAP:.2f} ({mAP_pytorch:.2f} by PyTorch), rank-1 {rank1:.2f} ({rank1_pytorch:.2f})"
    if "stand_in" in report:
        line += "; no mAP measured (no --dataset), {stand_in}"
    if "top10_overlap" in report:
        line += f", {100 * report['top10_overlap']:.1f} % of the ten nearest stay"
    return line.format(**report)
