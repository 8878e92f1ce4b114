"""How well a network finds people in a data set: features of all images, scores, and what is told about them.

    model, _ = models.load_checkpoint("runs/hacnn-market1501/best.pth")
    splits = data.load_dataset("market1501")
    score(model, splits)                                       # {"rank1": 0.847, ..., "mAP": 0.670, "mINP": 0.307, ...}
    extract(model, ["a.jpg", "b.jpg"])                         # features (2, D)

train.py calls `scores_of` after an epoch, and `report` for --evaluate: that prints all that metrics.py measures
(ranking, verification, open set) and writes into a folder, where one is given,
    queries.csv   per query: AP, rank of the first hit, nearest right and nearest wrong answer with their distances
    scores.json   the numbers that were printed, as fractions
    cmc.png, roc.png
    maps.jpg      what the network looks at in some queries, taken evenly from the whole list
"""

import contextlib
import csv
import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import data
import metrics
import models
import pictures
from images import progress, replacing
from training import distributed
from training.pixels import Pixels, fingerprint, load_pixels, normalise

RATES = (1e-1, 1e-2, 1e-3, 1e-4)  # false match rates of the table of verification
FALSE_ALARMS = (0.1, 0.01)  # of the open set
RANKS = (1, 5, 10, 20)
SCORES = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")

# ----------------------------------------------------------------------------------------------------------------------
# Data sets, features and scores


class Sets(NamedTuple):
    """Where data sets lie, what is read of them, and where their pixels go."""

    root: str = "data"
    split: int = 0  # of those that have several
    min_frames: int = 0
    holdout: int = 0  # so many persons to train on are tested on instead
    protocol: str | None = None  # None: the data set's own
    cache: str | None = None  # None: below root
    cache_limit: float = 20.0  # GB

    def pixel_folder(self):
        return Path(self.cache or Path(self.root) / ".pixels")

    def shown(self, name):
        """What lines and files call the scores of a target: those of persons held out are no test scores."""
        return f"{name}, {self.holdout} persons held out" if self.holdout else name

    def protocol_of(self, name):
        return self.protocol or data.find_dataset(name, self.root)[0].protocol


class Testing(NamedTuple):
    """How features are taken and ranked."""

    distance: str = "cosine"
    flip: bool = False  # the mean of the features of an image and of its mirror image
    rerank: bool = False  # scores after k-reciprocal re-ranking too
    batch_size: int = 128
    seq_len: int = 8  # frames of a tracklet that are looked at, and which: see data.choose_frames
    sampling: str = "evenly"


class Target(NamedTuple):
    """A data set to test on: its splits, the pixels of the frames that are looked at, and which of them are of whom."""

    name: str
    splits: data.Splits
    pixels: Pixels  # of the queries first, then of the gallery
    clips: list[np.ndarray]  # rows of `pixels` of each item
    protocol: str
    shown: str  # what lines and files call its scores


def load_set(name, sets, *, train=True, evaluate=True, combine=False):
    """data.load_dataset as `sets` says; says once which files are equal, until one of them changes."""
    dataset, _ = data.find_dataset(name, sets.root)
    splits = data.load_dataset(
        name, sets.root, split=sets.split if dataset.num_splits > 1 else 0, min_frames=sets.min_frames,
        combine=combine, holdout=sets.holdout, train=train, evaluate=evaluate, protocol=sets.protocol,
    )  # fmt: skip
    used = splits._replace(query=[], gallery=[]) if combine else splits  # those are trained on, and not tested
    paths = [path for items in used for item in items for path in item.paths]
    roles = [[(item.pid, len(item.paths)) for item in items] for items in used]  # equal files of whom, in which split
    state = fingerprint(paths, roles)
    memory, end = sets.pixel_folder() / f"{file_name(name)}-checked-{state}.txt", f"checked {state}\n"
    told = ""
    with contextlib.suppress(OSError, ValueError):  # it cannot be read
        told = memory.read_text(encoding="utf-8") if memory.is_file() else ""
    if told.endswith(end):
        print(told.removesuffix(end), end="")
        return splits
    lines, _ = data.check_files(used, decode=False)  # decoding comes next, and lists what it cannot read
    told = "".join(f"{line}\n" for line in lines)
    print(told, end="")
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next run looks again
        memory.parent.mkdir(parents=True, exist_ok=True)
        for stale in sorted(memory.parent.glob(f"{file_name(name)}-checked-*.txt")):
            stale.unlink(missing_ok=True)
        with replacing(memory) as file:
            file.write(f"{told}{end}".encode())  # the end: an empty file, or somebody else's, tells nothing
    return splits


def file_name(name):
    return re.sub(r"[^\w.-]+", "-", name)


def pixels_of(paths, model, name, sets, among=None):
    """Their pixels at the size of the model, on its device where they fit; among: as load_pixels has it."""
    pixels = load_pixels(
        paths, model.input_size, sets.pixel_folder(), file_name(name), limit_gb=sets.cache_limit, among=among,
        check=distributed.local_rank() == 0,
    )  # fmt: skip
    return pixels.to_device(device_of(model))


def files_to_share(name, splits, sets):
    """(name, all files) where options choose some of them (split, frames, persons held out), or None: load_pixels'
    `among`."""
    if data.find_dataset(name, "")[0].num_splits == 1 and not data.has_video(splits) and not sets.holdout:
        return None
    part = "-train" * bool(sets.holdout)  # all are train's: of a set of images it is the array of a run without holdout
    return file_name(name) + part, sorted({path for items in splits for item in items for path in item.paths})


def choose_clips(items, testing):
    """(paths of the frames that are looked at, places in that list of each item)."""
    rng = np.random.default_rng(0)  # every evaluation looks at the same frames
    chosen = [data.choose_frames(len(item.paths), testing.seq_len, testing.sampling, rng) for item in items]
    paths = [item.paths[frame] for item, frames in zip(items, chosen, strict=True) for frame in frames]
    return paths, np.split(np.arange(len(paths)), np.cumsum([len(frames) for frames in chosen])[:-1])


def load_target(name, splits, model, sets, testing):
    """The Target, with pixels that are decoded once."""
    if data.has_video(splits):
        how = "all frames" if testing.sampling == "all" else f"up to {testing.seq_len} frames, {testing.sampling},"
        least = f" of {sets.min_frames} frames or more" * bool(sets.min_frames)
        print(f"{name}: {how} of each tracklet{least} (--seq-len, --test-sample, --min-frames)")
    paths, clips = choose_clips(splits.query + splits.gallery, testing)
    pixels = pixels_of(paths, model, f"{name}-test", sets, files_to_share(name, splits, sets))
    return Target(name, splits, pixels, clips, sets.protocol_of(name), sets.shown(name))


def device_of(model):
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@torch.inference_mode()
def extract_features(model, pixels, clips=None, *, batch_size=128, flip=False):
    """float32 features (N, D) of N items on the device of the model, which is left in evaluation mode.

    clips: rows of `pixels` of each item, all of them in order; None where an item is an image. What the frames of a
    tracklet give is pooled as soon as it is complete, so a tracklet may be longer than a batch.
    flip: the mean of the features of an image and of its mirror image.
    Several processes take a part each and get the features of all: whole batches, the same ones as in one process, or
    whole tracklets.
    """
    bare, device = model.module if isinstance(model, nn.DataParallel) else model, device_of(model)
    model.eval()
    is_video = bool(clips) and max(map(len, clips)) > 1
    if is_video:
        mine, ends = distributed.part(len(clips)), np.cumsum([0, *map(len, clips)])
        clips, ends, (first, last) = clips[mine], ends[mine.start + 1 : mine.stop + 1], ends[[mine.start, mine.stop]]
    else:
        mine = distributed.part(math.ceil(len(pixels) / batch_size))
        first, last = mine.start * batch_size, min(mine.stop * batch_size, len(pixels))
    features, waiting = [], torch.empty(0, device=device)
    with progress("features", last - first, hidden=distributed.rank() > 0) as bar:
        for start in range(first, last, batch_size):
            rows = np.arange(start, min(start + batch_size, last))
            images = normalise(pixels.batch(rows, device), bare.mean, bare.std)
            found = model(images).float().clone()  # a CUDA graph (--compile) writes its next output to the same place
            if flip:
                found = (found + model(images.flip(-1))) / 2
            bar.update(len(rows))
            if not is_video:
                features.append(found)
                continue
            waiting = torch.cat([waiting, found])
            complete = int(np.searchsorted(ends, rows[-1] + 1, side="right"))
            for clip in clips[len(features) : complete]:
                frames, waiting = waiting[: len(clip)].unsqueeze(0), waiting[len(clip) :]
                features.append(bare.pool_frames(frames, torch.ones(frames.shape[:2], device=device)))
    own = torch.cat(features) if features else torch.empty(0, bare.feature_dim, device=device)
    return distributed.gather_parts(own)


def ids_of(*parts):
    """pids of each list of items, then camids of each: for query and gallery the order in which metrics.py has them."""
    return [np.array([item[i] for item in part]) for i in (1, 2) for part in parts]


def split_features(model, target, testing):
    """Features of the queries (Q, D) and of the gallery (G, D)."""
    how = {"batch_size": testing.batch_size, "flip": testing.flip}
    features = extract_features(model, target.pixels, target.clips, **how)
    return features.split([len(target.splits.query), len(target.splits.gallery)])


def rank(queries, gallery, target, distance):
    """What metrics.evaluate gives for these features; several processes rank a part of the queries each."""
    query_pids, gallery_pids, query_camids, gallery_camids = ids_of(target.splits.query, target.splits.gallery)
    mine, gather = distributed.part(len(queries)), distributed.gather_parts
    if len(queries) < distributed.world_size():
        mine, gather = slice(None), None
    ids = query_pids[mine], gallery_pids, query_camids[mine], gallery_camids
    how = {"distance": distance, "protocol": target.protocol, "gather": gather}
    return metrics.evaluate(queries[mine], gallery, *ids, **how)


def rank_again(queries, gallery, target, distance):
    """The scores after k-reciprocal re-ranking, of all queries in this process."""
    distances = metrics.rerank(queries, gallery, distance=distance)
    ids = ids_of(target.splits.query, target.splits.gallery)
    scores = metrics.evaluate_distances(distances, *ids, protocol=target.protocol)
    return {**scores, "distance": f"k-reciprocal {distance}"}


def scores_of(model, target, testing):
    """What metrics.evaluate gives for the query split against the gallery split.

    Where re-ranking is asked for, in the first process, also `reranked`: the same after it.
    """
    queries, gallery = split_features(model, target, testing)
    scores = rank(queries, gallery, target, testing.distance)
    if testing.rerank:
        if distributed.rank() == 0:
            scores["reranked"] = rank_again(queries, gallery, target, testing.distance)
        distributed.wait_patiently()
    return scores


def score(model, splits, *, protocol="market1501", **testing):
    """The scores of a network on the queries and the gallery of `splits`, as plain numbers: see summarise.

    testing: fields of Testing, such as distance="euclidean" or flip=True. Images are decoded batch by batch.
    """
    testing = Testing(**testing)
    if data.has_video(splits) and not isinstance(model, models.VideoModel):
        model = models.VideoModel(model, "avg")
    paths, clips = choose_clips(splits.query + splits.gallery, testing)
    target = Target("", splits, Pixels(paths, model.input_size), clips, protocol, "")
    return summarise(scores_of(model, target, testing), "", testing.flip)


def extract(model, paths, *, batch_size=128, flip=False):
    """Features (N, D) of image files, on the device of the model; flip: as in Testing."""
    return extract_features(model, Pixels(paths, model.input_size), batch_size=batch_size, flip=flip)


# ----------------------------------------------------------------------------------------------------------------------
# What is told about them


def summarise(scores, dataset, flip=False):
    """Plain numbers for a log or a checkpoint, from what metrics.evaluate gives; flip: of which features."""
    ranks = {f"rank{rank}": float(scores["cmc"][rank - 1]) for rank in RANKS}
    return {
        "dataset": dataset, **ranks, "mAP": float(scores["mAP"]), "mINP": float(scores["mINP"]),
        "queries": int(scores["num_valid_queries"]), "distance": scores["distance"], "protocol": scores["protocol"],
        "flip": flip,
    }


def score_line(summary):
    """One line with the scores in percent, and what they were measured with."""
    numbers = "  ".join(f"{name.replace('rank', 'rank-')} {100 * summary[name]:.1f}" for name in SCORES)
    how = f"{summary['queries']} queries, {summary['distance']} distance, {summary['protocol']} protocol"
    how += ", mirror images too" * summary["flip"]
    return f"{summary['dataset']}: {numbers}  (%, {how})"


def tell(scores, target, flip=False, which=""):
    """Prints the line of what scores_of gives, and that after re-ranking; returns the summary, with both.

    which: what is added to the name of the target, such as the kind of weights.
    """
    shown = target.shown + which
    summary = summarise(scores, target.shown, flip)
    print(score_line({**summary, "dataset": shown}))
    if "reranked" in scores:
        summary["reranked"] = summarise(scores["reranked"], target.shown, flip)
        print(score_line({**summary["reranked"], "dataset": f"{shown}, re-ranked"}))
    return summary


def verification_table(roc, points):
    """The lines of --evaluate about pairs; points: what metrics.operating_point gives at RATES."""
    lines = [
        f"verification, same person or not: {roc['num_genuine']:,} pairs of one person, {roc['num_impostor']:,} of "
        f"two; equal error rate {100 * roc['eer']:.2f} %",
        f"{'FPR wanted':>12} {'reached':>9} {'95 % interval':>19} {'TPR':>8} {'95 % interval':>16}  distance below",
    ]
    for wanted, point in zip(RATES, points, strict=True):
        if wanted * roc["num_impostor"] < 1:
            lines.append(f"{wanted:12.0e} cannot be measured with so few pairs")
            continue
        false, missed = point["fmr_interval"], point["fnmr_interval"]
        lines.append(
            f"{wanted:12.0e} {point['fmr']:9.2e} {f'{false[0]:.2e}..{false[1]:.2e}':>19} "
            f"{100 - 100 * point['fnmr']:6.2f} % {f'{100 - 100 * missed[1]:.1f}..{100 - 100 * missed[0]:.1f} %':>16} "
            f"{point['threshold']:15.4f}"
        )
    return "\n".join(lines)


def open_set_line(points):
    """The line of --evaluate about people who may not be in the gallery; points: metrics.open_set at FALSE_ALARMS."""
    rates = (f"{100 * p['dir']:.1f} % at {100 * far:g} % (distance below {p['threshold']:.4f})"
             for far, p in zip(FALSE_ALARMS, points, strict=True))  # fmt: skip
    return f"open set, found and right (DIR) at false alarms (FAR): {', '.join(rates)}"


def write_queries(path, queries, splits):
    """queries.csv; `queries` as metrics.evaluate gives them."""
    names = [item.paths[0] for item in splits.gallery] + [""]  # the last one for -1, nothing there
    columns = {name: values.tolist() for name, values in queries.items()}
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["query", "pid", "camid", "matches", "ap", "first_hit", "nearest_match", "match_distance",
                    "nearest_wrong", "wrong_pid", "wrong_distance"])  # fmt: skip
    for i, item in enumerate(splits.query):
        match, wrong = columns["nearest_match"][i], columns["nearest_wrong"][i]
        table.writerow([
            item.paths[0], item.pid, item.camid + 1, columns["matches"][i], f"{columns['ap'][i]:.6f}",
            columns["first_hit"][i], names[match], f"{columns['match_distance'][i]:.6f}",
            names[wrong], splits.gallery[wrong].pid if wrong >= 0 else "", f"{columns['wrong_distance'][i]:.6f}",
        ])  # fmt: skip
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def pooled_queries(model, target, items, pool, sets, testing):
    """Query features for --multi-query: pooled from the images of `items`, as data.load_multi_query gives them."""
    paths, clips = choose_clips(items, testing)
    pixels = pixels_of(paths, model, f"{target.name}-multi-query", sets)
    features = extract_features(model, pixels, clips, batch_size=testing.batch_size, flip=testing.flip)
    return metrics.multi_query(features, *ids_of(items), *ids_of(target.splits.query), pool=pool,
                               distance=testing.distance)  # fmt: skip


def draw_maps(model, target, count, batch_size, path):
    """A picture of where the network looks in the middle frames of `count` queries, or of all if there are fewer."""
    queries = target.splits.query
    count = min(count, len(queries))
    drawn = np.arange(count) * len(queries) // count  # evenly: images of one person follow one another
    middles = [target.clips[row][len(target.clips[row]) // 2] for row in drawn]
    images, parts = target.pixels.batch(middles, device_of(model)), []
    model = model.frames if isinstance(model, models.VideoModel) else model
    for some in images.split(batch_size):
        parts.append(models.explain(model, normalise(some, model.mean, model.std)))

    def joined(name):  # the maps of each stage, of all batches
        stages = zip(*(part.get(name, ()) for part in parts), strict=True)
        return [torch.cat(stage).numpy() for stage in stages]

    pictures.maps_grid(
        [queries[row].paths[0] for row in drawn], images.permute(0, 2, 3, 1).cpu().numpy(),
        torch.cat([part["activation"] for part in parts]).numpy(), joined("attention"), joined("regions"),
    ).save(path, quality=90, subsampling=0)  # fmt: skip


def verify_pairs(queries, gallery, target, distance):
    """(metrics.verification, its operating points at RATES), or (None, None) where there are no pairs to compare."""
    ids = ids_of(target.splits.query, target.splits.gallery)
    try:
        roc = metrics.verification(queries, gallery, *ids, distance=distance, protocol=target.protocol)
        return roc, [metrics.operating_point(roc, fmr=rate) for rate in RATES]
    except ValueError as error:  # a single person: the ranking counts all the same
        print(f"no verification: {error}")
        return None, None


def report(model, target, testing, sets=None, folder=None, *, pool=None, boxes=(), expand=0, maps=0, weights=""):
    """Prints all about one target and writes it into the folder, where there is one; returns its summaries.

    pool: of --multi-query, the features of the items `boxes`, whose pixels go where `sets` says; expand: queries are
    averaged with so many nearest gallery images; maps: so many queries are drawn; weights: what the file says of them.
    Of several processes the first does so alone, once all have extracted and ranked their parts.
    """
    name, ids = target.shown, ids_of(target.splits.query, target.splits.gallery)
    how = {"distance": testing.distance, "protocol": target.protocol}
    queries, gallery = split_features(model, target, testing)
    rows = {name: rank(queries, gallery, target, testing.distance)}
    pooled = pooled_queries(model, target, boxes, pool, sets, testing) if pool else None
    if distributed.rank() > 0:
        return [summarise(rows[name], name, testing.flip)]

    if maps and folder:
        draw_maps(model, target, maps, testing.batch_size, folder / "maps.jpg")
    if pool:
        rows[f"{name}, multi-query ({pool})"] = metrics.evaluate(pooled, gallery, *ids, **how)
    if expand:
        expanded = metrics.expand_queries(queries, gallery, k=expand, distance=testing.distance)
        rows[f"{name}, queries expanded by {expand}"] = metrics.evaluate(expanded, gallery, *ids, **how)
    if testing.rerank:
        rows[f"{name}, re-ranked"] = rank_again(queries, gallery, target, testing.distance)
    summaries = [summarise(scores, name, testing.flip) for name, scores in rows.items()]
    for summary in summaries:
        print(score_line(summary))
    roc, points = verify_pairs(queries, gallery, target, testing.distance)
    if roc:
        print(verification_table(roc, points))
    alarms = [metrics.open_set(rows[name]["queries"], far) for far in FALSE_ALARMS]
    print(open_set_line(alarms))
    if folder:
        write_queries(folder / "queries.csv", rows[name]["queries"], target.splits)
        content = {"ranking": summaries, "verification": {}, "open_set": alarms, "weights": weights}
        if roc:
            content["verification"] = {key: roc[key] for key in ("eer", "num_genuine", "num_impostor", "resolution")}
            told = [{"wanted": rate, **point} for rate, point in zip(RATES, points, strict=True)]
            content["verification"]["points"] = told
        with replacing(folder / "scores.json") as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
        curves = draw_curves(folder, rows, roc)
        print(f"{folder}: queries.csv, scores.json{', maps.jpg' * bool(maps)}{curves}")
    return summaries


def draw_curves(folder, rows, roc):
    """Writes cmc.png and roc.png; what is to be said of them."""
    try:
        pictures.cmc_curves({name: scores["cmc"].numpy() for name, scores in rows.items()}, folder / "cmc.png")
        if roc:
            pictures.roc_curve(roc["fmr"].numpy(), roc["tpr"].numpy(), roc["num_impostor"], folder / "roc.png")
        return ", cmc.png" + ", roc.png" * bool(roc)
    except ImportError as error:
        return f"; no curves, as matplotlib is not installed ({error})"


def pool_otherwise(model, pooling, path):
    """The model with another pooling, which needs no weights: average and maximum can be exchanged."""
    learned = isinstance(model, models.VideoModel) and model.pooling == "attention"
    if pooling != "attention" and not learned:
        return models.VideoModel(getattr(model, "frames", model), pooling).eval()
    if pooling == "attention" and learned:
        return model
    raise ValueError(f"--temporal {pooling}: {path} was trained with another pooling, leave it out")


def trained_persons(info, names, root):
    """Of the data sets `names` that a run of ours trained on: name -> pids; None where nothing tells them any more."""
    run, found = info.get("args", {}), {}
    if len(names) == 1 and run["dataset"] in (names, names[0]):  # an older run had one, as text
        return {names[0]: set(info["pids"])}
    for name in names:  # numbered anew when they were put together
        dataset, folder = data.find_dataset(name, root)
        try:
            splits = data.read_dataset(name, root, split=run.get("split") or 0 if dataset.num_splits > 1 else 0)
            if run.get("holdout"):
                splits = data.hold_out(splits, run["holdout"], run.get("protocol") or dataset.protocol)
            items = data.combine_all(splits, dataset, folder) if run.get("combine_all") else splits.train
            found[name] = {item.pid for item in items}
        except (ValueError, OSError, ImportError):
            found[name] = None
    return found
