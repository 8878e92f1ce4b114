"""What an exported file has to show before it gets its name: the features of PyTorch, on any batch, and its ranking.

    trials = make_trials(extractor, "images", pictures)      # inputs, and what PyTorch gives for them
    findings, report = check(run, trials, LIMITS["fp32"], ranking)

`run` takes the inputs of the graph as numpy arrays and gives features, whatever runs it. A finding is a sentence about
a limit that is not kept; no findings: passed. The report is what was measured, as plain values.

Features of pictures: in batches of several sizes, none of which the graph was written with, the largest beyond the 32
and 64 of a runtime's blocks, one of plain white and black; uint8 input in several image sizes, larger and smaller than
the network's, and in its own, where nothing is resized and the limits are those without a resize; tracklets of several
lengths with frames masked out, other pictures or NaN, which PyTorch never sees. Where a data set is at hand, a ranking
too: rank-1, mAP, and how much of each query's ten nearest stay.

What passes all the same: what goes wrong from row 67 of a batch on, or in other pictures alone; in fp16 what is no
larger than its rounding, which moves a feature of HA-CNN by 2e-4 (so export.py holds the weights against those of the
graph in fp32, bit by bit); in 8 bits what costs less than its limits, or turns white and black into other numbers,
and came in after the check in float; of uint8 input an error of the resize below RESIZED.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import images as files
import metrics
from training.pixels import normalise, refuse_broken

BATCHES = (1, 2, 7, 67)
PLAIN = (255, 0)  # of the batch of two: white and black, on which statistics of an image have no spread
LENGTHS = (1, 4, 3, 2)  # frames of the tracklets of each batch, in turn
SCALES = (None, 0.45, 1.7, 2.9)  # of the images of each batch for uint8 input, in turn; None: as the network takes them
ROWS = 32  # pictures at once, over a data set


class Limits(NamedTuple):
    cosine: float  # to the feature that PyTorch gives, of the worst image, at least
    difference: float  # of any number in a feature, at most
    rank1: float  # lost over a data set, in points (a hundredth of all queries), at most; one query may always be
    mAP: float
    top10: float  # share of PyTorch's ten nearest gallery images that are among the file's ten nearest, at least


LIMITS = {  # by precision; the formats have no excuse to differ
    "fp32": Limits(0.99999, 1e-5, 0.1, 0.05, 0.999),
    "fp16": Limits(0.99999, 5e-4, 0.5, 0.2, 0.98),
    "int8": Limits(0.98, 5e-2, 1.0, 0.5, 0.9),
}
# Of images that are resized in the graph: Pillow's rounding is met but for single units of 255. And of plain ones, on
# which a norm may divide by next to nothing.
RESIZED = Limits(0.9999, 5e-3, 0.5, 0.2, 0.98)


def limits_of(precision, kind):
    """The Limits of a file. With uint8 input a ranking is one of resized images; of trials, `check` knows which are."""
    limits = LIMITS[precision]
    if kind == "bytes" and precision != "int8":
        return RESIZED._replace(cosine=limits.cosine, difference=limits.difference)
    return limits


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def draw_patches(count, size, seed=1):
    """bytes (count, H, W, 3): patches of colour with noise on them, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    patches = F.interpolate(torch.rand(count, 3, 6, 3, generator=generator), size=size, mode="bilinear")
    noisy = (patches + 0.1 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)
    return (noisy * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def list_pictures(folder):
    """Paths of the image files in and below a folder, sorted. ValueError where there is none."""
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder}: give one with images of persons ({', '.join(files.SUFFIXES)})")
    found = files.list_images(folder)
    if not found:
        raise ValueError(f"no images ({', '.join(files.SUFFIXES)}) below {folder}")
    return found


def spread(items, count):
    """`count` of the items, or all if there are fewer, evenly from the whole list."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def open_pictures(paths):
    """bytes (h, w, 3) of each file, at its own size, RGB. ValueError names those that cannot be read."""
    with ThreadPoolExecutor(files.cpus()) as threads:
        pictures = list(threads.map(files.read_or_reason, paths))
    refuse_broken([picture for picture in pictures if isinstance(picture, str)])
    return pictures


def resized(pictures, size):
    """bytes (h, w, 3) of any sizes -> (N, H, W, 3), as read_image does it."""
    return np.stack([files.resize(Image.fromarray(picture), size) for picture in pictures])


def normalised(pictures, model):
    """bytes (h, w, 3) of any sizes -> float32 (N, 3, H, W) as in training."""
    stack = torch.from_numpy(resized(pictures, model.input_size))
    return normalise(stack.permute(0, 3, 1, 2), model.mean, model.std)


def inputs_of(pictures, kind, model, lengths=None):
    """[inputs of the graph, ...] for pictures (h, w, 3): one, or for bytes as many as sizes follow one another.

    lengths: how many pictures make each tracklet (default: one), padded to the longest and masked.
    """
    if kind == "bytes":
        return [(np.stack(list(alike)),) for _, alike in itertools.groupby(pictures, key=np.shape)]
    images = normalised(pictures, model).numpy()
    if kind == "images":
        return [(images,)]
    lengths = np.array(lengths or [1] * len(pictures))
    mask = np.arange(lengths.max()) < lengths[:, None]  # (N, T)
    clips = np.zeros((*mask.shape, *images.shape[1:]), np.float32)
    clips[mask] = images
    return [(clips, mask.astype(np.float32))]


def feed(pictures, kind, model):
    """[{name of an input: array}, ...], what quantize.py measures ranges on."""
    blocks = [pictures[start : start + ROWS] for start in range(0, len(pictures), ROWS)]
    inputs = [one for block in blocks for one in inputs_of(block, kind, model)]
    return [dict(zip((kind, "mask"), arrays, strict=False)) for arrays in inputs]


# ----------------------------------------------------------------------------------------------------------------------
# Trials: inputs, and what PyTorch gives for them


class Trial(NamedTuple):
    name: str
    inputs: tuple[np.ndarray, ...]  # of the graph
    reference: np.ndarray  # features (B, D)
    wide: bool = False  # judged by RESIZED, where that is wider
    plain: bool = False  # the pictures are of one colour


def bytes_trial(extractor, pictures, number):
    """Pictures of one size, the network's or another, from which PyTorch has them resized by Pillow."""
    scale, own = SCALES[number % len(SCALES)], extractor.model.input_size
    size = own if scale is None else tuple(max(1, round(side * scale)) for side in pictures[0].shape[:2])
    pictures = resized(pictures, size)
    name, wide = f"batch {len(pictures)} of {size[0]} x {size[1]}", size != tuple(own)
    return Trial(name, (pictures,), extractor(normalised(pictures, extractor.model)).numpy(), wide)


def clips_trial(extractor, pictures, length, told):
    """Tracklets with frames masked out: PyTorch has each by itself, without those; half of them are NaN in the file."""
    count = len(pictures) // length
    own, clips = (normalised(pictures, by).unflatten(0, (count, length)) for by in (extractor.model, told))
    mask = np.random.default_rng(count).random((count, length)) < 0.6
    mask[np.arange(count), np.arange(count) % length] = True  # at least one frame, not always the first
    kept = [clip[torch.from_numpy(row)].unsqueeze(0) for clip, row in zip(own, mask, strict=True)]
    reference = torch.cat([extractor(clip, torch.ones(clip.shape[:2])) for clip in kept])
    spoilt = ~mask & (np.add.outer(np.arange(count), np.arange(length)) % 2 == 0)
    clips = np.where(spoilt[:, :, None, None, None], np.float32(np.nan), clips.numpy())
    return Trial(f"batch {count} of {length} frames", (clips, mask.astype(np.float32)), reference.numpy())


def pictures_needed(kind):
    return sum(BATCHES) * (max(LENGTHS) if kind == "clips" else 1)


@torch.inference_mode()
def make_trials(extractor, kind, pictures=(), told=None):
    """A trial per batch size. kind: images, clips or bytes; pictures: bytes (h, w, 3), and patches where they run out.

    extractor: the network with L2-normalised features, (images) or (clips, mask) -> features, `model` inside; told:
    what has the input_size, mean and std that inputs are to be made by, if not that model. PyTorch's features follow
    its own all the same, so that a file which says wrong ones does not agree.
    """
    told, trials = told or extractor.model, []
    missing = max(pictures_needed(kind) - len(pictures), 0)
    rest = iter([*pictures, *draw_patches(missing, extractor.model.input_size)])
    for number, count in enumerate(BATCHES):
        length = LENGTHS[number % len(LENGTHS)] if kind == "clips" else 1
        chosen = list(itertools.islice(rest, count * length))
        plain = count == len(PLAIN)
        if plain:
            chosen = [np.full_like(chosen[0], level) for level in PLAIN for _ in range(length)]
        if kind == "bytes":
            trials.append(bytes_trial(extractor, chosen, number))
        elif kind == "clips":
            trials.append(clips_trial(extractor, chosen, length, told))
        else:
            own, images = (normalised(chosen, by) for by in (extractor.model, told))
            trials.append(Trial(f"batch {count}", (images.numpy(),), extractor(own).numpy()))
        if plain:
            trials[-1] = trials[-1]._replace(name=f"{trials[-1].name}, white and black", wide=True, plain=True)
    return trials


# ----------------------------------------------------------------------------------------------------------------------
# A ranking


def on_arrays(module):
    """The module as a function from inputs to features that are numpy arrays."""
    return torch.inference_mode()(lambda *inputs: module(*map(torch.from_numpy, inputs)).numpy())


class Ranking:
    """Queries and gallery, and what PyTorch makes of them.

    query, gallery: data.Item each, tracklets of at most seq_len frames, evenly; protocol: that of metrics.evaluate.
    None stands for pictures of nobody knows whom, in place of a data set: instead of scores, features are compared.
    """

    def __init__(self, extractor, kind, name, query, gallery, protocol=None, seq_len=8):
        self.kind, self.model, self.name, self.protocol = kind, extractor.model, name, protocol
        self.num_queries = len(query)
        self.ids = [np.array([item[i] for item in part]) for i in (1, 2) for part in (query, gallery)]
        self.frames = [
            [item.paths[n] for n in data.choose_frames(len(item.paths), seq_len, "evenly")]
            for item in [*query, *gallery]
        ]
        self.reference = self.features(on_arrays(extractor), "clips" if kind == "clips" else "images")
        self.expected = self.scores(self.reference)

    def features(self, run, kind=None):
        """(N, D) of all items by `run`. Files are read anew each time: a data set may be larger than memory."""
        rows, found = max(1, ROWS // max(map(len, self.frames))), []
        for start in range(0, len(self.frames), rows):
            block = self.frames[start : start + rows]
            pictures = open_pictures([path for frames in block for path in frames])
            inputs = inputs_of(pictures, kind or self.kind, self.model, [len(frames) for frames in block])
            found += [run(*arrays) for arrays in inputs]
        return np.concatenate(found)

    def split(self, features):
        return np.split(features, [self.num_queries])

    def scores(self, features):
        """rank-1 and mAP in percent; nothing without a protocol."""
        if self.protocol is None:
            return {}
        found = metrics.evaluate(*self.split(features), *self.ids, protocol=self.protocol)
        return {"rank1": 100 * float(found["cmc"][0]), "mAP": 100 * float(found["mAP"])}

    def check(self, run, limits):
        """(findings, report) of the features that `run` gives."""
        features = self.features(run)
        if features.shape != self.reference.shape or not np.isfinite(features).all():
            return [f"{self.name}: features {features.shape} with NaN or of another shape"], {}
        found, kept = self.scores(features), top_overlap(self.split(features), self.split(self.reference))
        findings, report = [], {"dataset" if self.protocol else "stand_in": self.name}
        told = self.name if self.protocol else f"{self.name}, which stand in for a data set"
        allowed = {"rank1": max(limits.rank1, 100.1 / self.num_queries), "mAP": limits.mAP}
        for name, expected in self.expected.items():
            report |= {name: round(found[name], 3), f"{name}_pytorch": round(expected, 3)}
            if not expected - found[name] <= allowed[name]:
                findings.append(f"{told}: {name} {found[name]:.2f} instead of {expected:.2f}, "
                                f"at most {allowed[name]:.2f} points may be lost")  # fmt: skip
        if not kept >= limits.top10:
            findings.append(f"{told}: {100 * kept:.1f} % of the ten nearest stay, {100 * limits.top10:g} % asked")
        cosine = agreement(features, self.reference)[0]
        if not self.protocol and not cosine >= limits.cosine:
            findings.append(f"{told}: cosine of the worst image {cosine:.7f}, at least {limits.cosine} asked")
        return findings, report | {"top10_overlap": round(kept, 4)}


def rank_dataset(extractor, kind, name, root, *, split=0, persons=100, seq_len=8):
    """The Ranking of a data set's test, of so many of its persons (0: all) with their share of the distractors."""
    splits = data.load_dataset(name, root, split=split, train=False)
    if data.has_video(splits) and kind != "clips":
        raise ValueError(f"--dataset {name} is of tracklets, the network is for images: name a set of images")
    everyone = {item.pid for item in splits.query}
    chosen = set(spread(sorted(everyone), persons or len(everyone)))
    strangers = [item for item in splits.gallery if item.pid not in everyone]
    query, gallery = ([item for item in part if item.pid in chosen] for part in (splits.query, splits.gallery))
    gallery += spread(strangers, round(len(strangers) * len(chosen) / len(everyone)))
    told = f"{name}, {len(chosen)} of {len(everyone)} persons, {len(query)} queries, {len(gallery)} in gallery"
    return Ranking(extractor, kind, told, query, gallery, data.find_dataset(name, root)[0].protocol, seq_len)


def rank_pictures(extractor, kind, name, paths):
    """Stands in for a data set: every other one of some image files seeks its nearest among the rest."""
    items = [data.Item((path,), 0, 0) for path in paths]
    return Ranking(extractor, kind, name, items[0::2], items[1::2])


def top_overlap(ours, reference, count=10):
    """Share of the reference's `count` nearest gallery items of each query that are among ours, over all queries."""
    count, nearest = min(count, len(reference[1])), []
    for side in (ours, reference):
        queries, gallery = map(torch.from_numpy, side)
        nearest.append(torch.cat([(part @ gallery.T).topk(count, dim=1).indices for part in queries.split(256)]))
    return (nearest[0].unsqueeze(2) == nearest[1].unsqueeze(1)).any(dim=2).double().mean().item()


# ----------------------------------------------------------------------------------------------------------------------
# The check


def agreement(ours, reference):
    """(cosine of the worst row, largest difference of any number) of features (B, D). Where the reference is zero, as
    features behind a ReLU may be of a plain image, the difference says it all."""
    cosines = np.where(reference.any(axis=1), (ours * reference).sum(axis=1), 1)
    return float(cosines.min()), float(np.abs(ours - reference).max())


def check(run, trials, limits, ranking=None):
    """(findings, report): see above. A ranking is looked at only where the trials leave nothing to say."""
    findings, cosines, differences = [], [], []
    for name, inputs, reference, wide, plain in trials:
        least, most = limits.cosine, limits.difference
        if plain and limits.cosine < RESIZED.cosine:  # 8 bits, their ranges measured on others: any numbers will do
            least, most = -2, 2
        elif wide:
            least, most = min(least, RESIZED.cosine), max(most, RESIZED.difference)
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
        if not plain:  # which are met less exactly, and nobody searches for
            cosines.append(cosine)
            differences.append(difference)
        if not cosine >= least:  # written so that NaN fails
            findings.append(f"{name}: cosine of the worst image {cosine:.7f}, at least {least} asked")
        if not difference <= most:
            findings.append(f"{name}: largest difference {difference:.2e}, at most {most:.0e} allowed")
        if len(ours) > 1 and not plain and np.abs(ours - ours[0]).max() <= LIMITS["fp32"].difference:
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
