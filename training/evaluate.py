"""How well a network finds people in a data set: features of all images, scores, and what is told about them.

    python train.py --evaluate --weights runs/hacnn-market1501/best.pth --dataset market1501 [--out FOLDER] [--rerank]

train.py calls `scores_of` after an epoch, and `run` for --evaluate: that prints all that metrics.py measures (ranking,
verification, open set) and writes into the folder --out, where it is given (for several targets, into one folder each),
    queries.csv   per query: AP, rank of the first hit, nearest right and nearest wrong answer with their distances
    scores.json   the numbers that were printed, as fractions
    cmc.png, roc.png
    maps.jpg      with --maps N: what the network looks at in N queries, taken evenly from the whole list
"""

import contextlib
import csv
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import data
import metrics
import models
import pictures
from training import distributed
from training.pixels import Pixels, fingerprint, load_pixels, normalise

RATES = (1e-1, 1e-2, 1e-3, 1e-4)  # false match rates of the table of verification
FALSE_ALARMS = (0.1, 0.01)  # of the open set
RANKS = (1, 5, 10, 20)
SCORES = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")

# ----------------------------------------------------------------------------------------------------------------------
# Data sets, features and scores


class Target(NamedTuple):
    """A data set to test on: its splits, the pixels of the frames that are looked at, and which of them are of whom."""

    name: str
    splits: data.Splits
    pixels: Pixels  # of the queries first, then of the gallery
    clips: list[np.ndarray]  # rows of `pixels` of each item
    protocol: str


def load_set(name, args, *, train=True, evaluate=True, combine=False):
    """data.load_dataset with the flags of the run; says once which files are equal, until one of them changes."""
    dataset, _ = data.find_dataset(name, args.root)
    split = args.split if dataset.num_splits > 1 else 0
    splits = data.load_dataset(
        name, args.root, split=split, min_frames=args.min_frames, combine=combine, holdout=args.holdout, train=train,
        evaluate=evaluate, protocol=args.protocol,
    )  # fmt: skip
    paths = [path for items in splits for item in items for path in item.paths]
    roles = [[(item.pid, len(item.paths)) for item in items] for items in splits]  # equal files of whom, in which split
    memory = pixel_folder(args) / f"{file_name(name)}-checked-{fingerprint(paths, roles)}.txt"
    with contextlib.suppress(OSError):
        print(memory.read_text(), end="")
        return splits
    lines, _ = data.check_files(splits, decode=False)  # decoding comes next, and lists what it cannot read
    print("".join(f"{line}\n" for line in lines), end="")
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next run looks again
        memory.parent.mkdir(parents=True, exist_ok=True)
        for stale in memory.parent.glob(f"{file_name(name)}-checked-*.txt"):
            stale.unlink()
        memory.write_text("".join(f"{line}\n" for line in lines))
    return splits


def shown(name, args):
    """What lines and files call the scores of a target: those of persons held out are no test scores."""
    return f"{name}, {args.holdout} persons held out" if args.holdout else name


def file_name(name):
    return re.sub(r"[^\w.-]+", "-", name)


def pixel_folder(args):
    return Path(args.cache or Path(args.root) / ".pixels")


def pixels_of(paths, model, name, args, device, among=None):
    """Their pixels at the size of the model, on the device where they fit; among: as load_pixels has it."""
    pixels = load_pixels(
        paths, model.input_size, pixel_folder(args), file_name(name), limit_gb=args.cache_limit, among=among,
        check=distributed.local_rank() == 0,
    )  # fmt: skip
    return pixels.to_device(device)


def files_to_share(name, splits, args):
    """(name, all files) where flags choose some of them (--split, --seq-len, --holdout), or None: loader's `among`."""
    if args.holdout:  # all are train's; of a set of images the array is that of a run without the flag
        return f"{file_name(name)}-train", sorted({path for items in splits for item in items for path in item.paths})
    if data.find_dataset(name, "")[0].num_splits == 1 and not data.has_video(splits):
        return None
    return file_name(name), sorted({path for items in splits for item in items for path in item.paths})


def load_clips(items, model, name, args, device, among=None):
    """(pixels of the frames that --test-sample takes of each item, rows of them per item)."""
    rng = np.random.default_rng(0)  # every evaluation looks at the same frames
    chosen = [data.choose_frames(len(item.paths), args.seq_len, args.test_sample, rng) for item in items]
    paths = [item.paths[frame] for item, frames in zip(items, chosen, strict=True) for frame in frames]
    clips = np.split(np.arange(len(paths)), np.cumsum([len(frames) for frames in chosen])[:-1])
    return pixels_of(paths, model, name, args, device, among), clips


def load_target(name, splits, model, args, device):
    if data.has_video(splits):
        how = "all frames" if args.test_sample == "all" else f"up to {args.seq_len} frames, {args.test_sample},"
        least = f" of {args.min_frames} frames or more" * bool(args.min_frames)
        print(f"{name}: {how} of each tracklet{least} (--seq-len, --test-sample, --min-frames)")
    items, among = splits.query + splits.gallery, files_to_share(name, splits, args)
    pixels, clips = load_clips(items, model, f"{name}-test", args, device, among)
    return Target(name, splits, pixels, clips, args.protocol or data.find_dataset(name, args.root)[0].protocol)


@torch.inference_mode()
def extract_features(model, pixels, device, batch_size, clips=None, flip=False):
    """float32 features (N, D) of N items on `device`; the model is left in evaluation mode.

    clips: rows of `pixels` of each item, all of them in order; None where an item is an image. What the frames of a
    tracklet give is pooled as soon as it is complete, so a tracklet may be longer than a batch.
    flip: the mean of the features of an image and of its mirror image.
    Several processes take a part each and get the features of all: whole batches, the same ones as in one process, or
    whole tracklets.
    """
    bare = model.module if isinstance(model, nn.DataParallel) else model
    model.eval()
    is_video = bool(clips) and max(map(len, clips)) > 1
    if is_video:
        mine, ends = distributed.part(len(clips)), np.cumsum([0, *map(len, clips)])
        clips, ends, (first, last) = clips[mine], ends[mine.start + 1 : mine.stop + 1], ends[[mine.start, mine.stop]]
    else:
        mine = distributed.part(math.ceil(len(pixels) / batch_size))
        first, last = mine.start * batch_size, min(mine.stop * batch_size, len(pixels))
    features, waiting = [], torch.empty(0, device=device)
    with tqdm(total=last - first, desc="features", unit="img", disable=distributed.hides_bars(), leave=False) as bar:
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


def split_features(model, target, device, args):
    """Features of the queries (Q, D) and of the gallery (G, D)."""
    features = extract_features(model, target.pixels, device, args.test_batch_size, target.clips, args.flip)
    return features.split([len(target.splits.query), len(target.splits.gallery)])


def rank(queries, gallery, target, args):
    """What metrics.evaluate gives for these features; several processes rank a part of the queries each."""
    query_pids, gallery_pids, query_camids, gallery_camids = ids_of(target.splits.query, target.splits.gallery)
    mine, gather = distributed.part(len(queries)), distributed.gather_parts
    if len(queries) < distributed.world_size():
        mine, gather = slice(None), None
    ids = query_pids[mine], gallery_pids, query_camids[mine], gallery_camids
    how = {"distance": args.distance, "protocol": target.protocol}
    return metrics.evaluate(queries[mine], gallery, *ids, **how, gather=gather)


def rank_again(queries, gallery, target, args):
    """The scores after k-reciprocal re-ranking, of all queries in this process."""
    distances = metrics.rerank(queries, gallery, distance=args.distance)
    ids = ids_of(target.splits.query, target.splits.gallery)
    scores = metrics.evaluate_distances(distances, *ids, protocol=target.protocol)
    return {**scores, "distance": f"k-reciprocal {args.distance}"}


def scores_of(model, target, device, args):
    """What metrics.evaluate gives for the query split against the gallery split.

    With --rerank, in the first process, also `reranked`: the same after re-ranking.
    """
    queries, gallery = split_features(model, target, device, args)
    scores = rank(queries, gallery, target, args)
    if args.rerank:
        if distributed.rank() == 0:
            scores["reranked"] = rank_again(queries, gallery, target, args)
        distributed.wait_patiently()
    return scores


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


def tell(scores, target, shown, flip=False):
    """Prints the line of what scores_of gives, and that after re-ranking; returns the summary, with both.

    shown: what the lines call it.
    """
    summary = summarise(scores, target, flip)
    print(score_line({**summary, "dataset": shown}))
    if "reranked" in scores:
        summary["reranked"] = summarise(scores["reranked"], target, flip)
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
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["query", "pid", "camid", "matches", "ap", "first_hit", "nearest_match", "match_distance",
                        "nearest_wrong", "wrong_pid", "wrong_distance"])  # fmt: skip
        for i, item in enumerate(splits.query):
            match, wrong = columns["nearest_match"][i], columns["nearest_wrong"][i]
            table.writerow([
                item.paths[0], item.pid, item.camid, columns["matches"][i], f"{columns['ap'][i]:.6f}",
                columns["first_hit"][i], names[match], f"{columns['match_distance'][i]:.6f}",
                names[wrong], splits.gallery[wrong].pid if wrong >= 0 else "", f"{columns['wrong_distance'][i]:.6f}",
            ])  # fmt: skip


def pooled_queries(model, target, items, args, device):
    """Query features for --multi-query: pooled from the images of `items`, as data.load_multi_query gives them."""
    queries = target.splits.query
    pixels, clips = load_clips(items, model, f"{target.name}-multi-query", args, device)
    features = extract_features(model, pixels, device, args.test_batch_size, clips, args.flip)
    ids = *ids_of(items), *ids_of(queries)
    return metrics.multi_query(features, *ids, pool=args.multi_query, distance=args.distance)


def draw_maps(model, target, device, args, folder):
    """maps.jpg of --maps: where the network looks in the middle frames of N queries, or of all if there are fewer."""
    queries = target.splits.query
    count = min(args.maps, len(queries))
    drawn = np.arange(count) * len(queries) // count  # evenly: images of one person follow one another
    middles = [target.clips[row][len(target.clips[row]) // 2] for row in drawn]
    images, parts = target.pixels.batch(middles, device), []
    model = model.frames if isinstance(model, models.VideoModel) else model
    for some in images.split(args.test_batch_size):
        parts.append(models.explain(model, normalise(some, model.mean, model.std)))

    def joined(name):  # the maps of each stage, of all batches
        stages = zip(*(part.get(name, ()) for part in parts), strict=True)
        return [torch.cat(stage).numpy() for stage in stages]

    pictures.maps_grid(
        [queries[row].paths[0] for row in drawn], images.permute(0, 2, 3, 1).cpu().numpy(),
        torch.cat([part["activation"] for part in parts]).numpy(), joined("attention"), joined("regions"),
    ).save(folder / "maps.jpg", quality=90, subsampling=0)  # fmt: skip


def report(model, target, device, args, folder, boxes):
    """Prints all about one target and writes it into the folder, where there is one; returns its summaries.

    boxes: the items that --multi-query pools, where it is given.
    Of several processes the first does so alone, once all have extracted and ranked their parts.
    """
    name, ids = shown(target.name, args), ids_of(target.splits.query, target.splits.gallery)
    how = {"distance": args.distance, "protocol": target.protocol}
    queries, gallery = split_features(model, target, device, args)
    rows = {name: rank(queries, gallery, target, args)}
    pooled = pooled_queries(model, target, boxes, args, device) if args.multi_query else None
    if distributed.rank() > 0:
        return [summarise(rows[name], name, args.flip)]

    if args.maps:
        draw_maps(model, target, device, args, folder)
    if args.multi_query:
        rows[f"{name}, multi-query ({args.multi_query})"] = metrics.evaluate(pooled, gallery, *ids, **how)
    if args.expand:
        expanded = metrics.expand_queries(queries, gallery, k=args.expand, distance=args.distance)
        rows[f"{name}, queries expanded by {args.expand}"] = metrics.evaluate(expanded, gallery, *ids, **how)
    if args.rerank:
        rows[f"{name}, re-ranked"] = rank_again(queries, gallery, target, args)
    summaries = [summarise(scores, name, args.flip) for name, scores in rows.items()]
    for summary in summaries:
        print(score_line(summary))
    try:
        roc = metrics.verification(queries, gallery, *ids, **how)
        pairs = [metrics.operating_point(roc, fmr=rate) for rate in RATES]
    except ValueError as error:  # a single person: the ranking above counts all the same
        print(f"no verification: {error}")
        roc = pairs = None
    alarms = [metrics.open_set(rows[name]["queries"], far) for far in FALSE_ALARMS]
    if roc:
        print(verification_table(roc, pairs))
    print(open_set_line(alarms))
    if folder:
        write_queries(folder / "queries.csv", rows[name]["queries"], target.splits)
        verification = {}
        if roc:
            verification = {key: roc[key] for key in ("eer", "num_genuine", "num_impostor", "resolution")}
            verification["points"] = [{"wanted": rate, **point} for rate, point in zip(RATES, pairs, strict=True)]
        content = {"ranking": summaries, "verification": verification, "open_set": alarms, "weights": args.weights}
        (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
        written = ["queries.csv", "scores.json"] + ["maps.jpg"] * bool(args.maps)
        try:
            pictures.cmc_curves({name: scores["cmc"].numpy() for name, scores in rows.items()}, folder / "cmc.png")
            if roc:
                pictures.roc_curve(roc["fmr"].numpy(), roc["tpr"].numpy(), roc["num_impostor"], folder / "roc.png")
            print(f"{folder}: {', '.join(written)}, cmc.png{', roc.png' * bool(roc)}")
        except ImportError as error:
            print(f"{folder}: {', '.join(written)}; no curves, as matplotlib is not installed ({error})")
    return summaries


def pool_otherwise(model, args):
    """The model with the pooling of --temporal, which needs no weights: average and maximum can be exchanged."""
    learned = isinstance(model, models.VideoModel) and model.pooling == "attention"
    if args.temporal != "attention" and not learned:
        return models.VideoModel(getattr(model, "frames", model), args.temporal).eval()
    if args.temporal == "attention" and learned:
        return model
    raise ValueError(f"--temporal {args.temporal}: {args.weights} was trained with another pooling, leave it out")


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


def run(args, device):
    """--evaluate: tells how the network in --weights does on each target; returns name -> summaries."""
    model, info = models.load_checkpoint(args.weights, device, arch=args.arch, **args.options)
    if info.get("skipped"):
        print(f"{args.weights}: not used: {data.some(info['skipped'])}")
    args.distance = args.distance or info.get("distance", "cosine")
    learnt = info.get("args", {})  # of a run of ours: tested on the data set it was trained on, its split is taken
    learnt_sets, asked, splits, boxes = learnt.get("dataset", []), args.split, {}, {}
    learnt_sets = [learnt_sets] if isinstance(learnt_sets, str) else learnt_sets
    if args.temporal:
        model = pool_otherwise(model, args)
    model = model.to(memory_format=torch.channels_last)
    if learnt.get("combine_all") and set(learnt_sets) & set(args.target):
        print(f"warning: {args.weights} was trained with --combine-all, on the test persons too: scores flatter")
    for name in args.target:  # all of them: what is wrong with the last is said before the work on the first
        args.split = asked if asked is not None else (learnt.get("split") or 0) if name in learnt_sets else 0
        with distributed.first_on_machine():
            splits[name] = load_set(name, args, train=False)
        if args.multi_query:
            boxes[name] = data.load_multi_query(name, args.root, splits[name].query)
    known = [name for name in learnt_sets if any(data.show_same_people(name, target) for target in splits)]
    data.warn_of_shared_persons(trained_persons(info, known, args.root), splits)
    if any(map(data.has_video, splits.values())) and not isinstance(model, models.VideoModel):
        model = models.VideoModel(model, "avg").eval()
    folders = {name: Path(args.out, *[file_name(name)] * (len(splits) > 1)) if args.out else None for name in splits}
    for folder in filter(None, folders.values()):
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)  # now: not after the work is done
    with distributed.first_on_machine():
        targets = [load_target(name, found, model, args, device) for name, found in splits.items()]
    summaries = {}
    for target in targets:
        summaries[target.name] = report(model, target, device, args, folders[target.name], boxes.get(target.name))
        distributed.wait_patiently()
    return summaries
