"""How well a network finds people in a data set: features of all images, scores, and what is told about them.

    python train.py --evaluate --weights runs/hacnn-market1501/best.pth --dataset market1501 [--out FOLDER] [--rerank]

train.py calls `scores_of` after an epoch, and `run` for --evaluate: that prints all that metrics.py measures (ranking,
verification, open set) and writes into the folder --out, where it is given,
    queries.csv   per query: AP, rank of the first hit, nearest right and nearest wrong answer with their distances
    scores.json   the numbers that were printed, as fractions
    cmc.png, roc.png
    maps.jpg      with --maps N: what the network looks at in N queries, taken evenly from the whole list
"""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import data
import loader
import metrics
import models
import visualize

RATES = (1e-1, 1e-2, 1e-3, 1e-4)  # false match rates of the table of verification
FALSE_ALARMS = (0.1, 0.01)  # of the open set
RANKS = (1, 5, 10, 20)

# ----------------------------------------------------------------------------------------------------------------------
# Features and scores


def load_pixels(items, model, name, args, device):
    """The pixels of the first image of each item, at the size of the model, on the device where they fit."""
    cache = args.cache or Path(args.root) / ".pixels"
    paths = [item.paths[0] for item in items]
    return loader.load_pixels(paths, model.input_size, cache, name, limit_gb=args.cache_limit).to_device(device)


@torch.inference_mode()
def extract_features(model, pixels, device, batch_size):
    """float32 features (N, D) of all images of `pixels`, on `device`; the model is left in evaluation mode."""
    bare = model.module if isinstance(model, nn.DataParallel) else model
    model.eval()
    features = []
    with tqdm(total=len(pixels), desc="features", unit="img", disable=None, leave=False) as bar:
        for start in range(0, len(pixels), batch_size):
            rows = np.arange(start, min(start + batch_size, len(pixels)))
            images = loader.normalise(pixels.batch(rows, device), bare.mean, bare.std)
            features.append(model(images).float())
            bar.update(len(rows))
    return torch.cat(features)


def ids_of(*parts):
    """pids of each list of items, then camids of each: for query and gallery the order in which metrics.py has them."""
    return [np.array([item[i] for item in part]) for i in (1, 2) for part in parts]


def split_features(model, splits, pixels, device, args):
    """Features of the queries (Q, D) and of the gallery (G, D); pixels: of both, queries first."""
    features = extract_features(model, pixels, device, args.test_batch_size)
    return features.split([len(splits.query), len(splits.gallery)])


def scores_of(model, splits, pixels, device, args):
    """What metrics.evaluate gives for the query split against the gallery split; pixels: of both, queries first."""
    queries, gallery = split_features(model, splits, pixels, device, args)
    ids = ids_of(splits.query, splits.gallery)
    return metrics.evaluate(queries, gallery, *ids, distance=args.distance, protocol=args.protocol)


# ----------------------------------------------------------------------------------------------------------------------
# What is told about them


def summarise(scores, dataset):
    """Plain numbers for a log or a checkpoint, from what metrics.evaluate gives."""
    ranks = {f"rank{rank}": float(scores["cmc"][rank - 1]) for rank in RANKS}
    return {
        "dataset": dataset, **ranks, "mAP": float(scores["mAP"]), "mINP": float(scores["mINP"]),
        "queries": int(scores["num_valid_queries"]), "distance": scores["distance"], "protocol": scores["protocol"],
    }


def score_line(summary):
    """One line with the scores in percent, and what they were measured with."""
    names = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")
    numbers = "  ".join(f"{name.replace('rank', 'rank-')} {100 * summary[name]:.1f}" for name in names)
    how = f"{summary['queries']} queries, {summary['distance']} distance, {summary['protocol']} protocol"
    return f"{summary['dataset']}: {numbers}  (%, {how})"


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


def pooled_queries(model, splits, args, device):
    """Query features for --multi-query: pooled from the images of gt_bbox."""
    items = data.load_multi_query(args.dataset, args.root, splits.query)
    pixels = load_pixels(items, model, f"{args.dataset}-multi-query", args, device)
    features = extract_features(model, pixels, device, args.test_batch_size)
    ids = *ids_of(items), *ids_of(splits.query)
    return metrics.multi_query(features, *ids, pool=args.multi_query, distance=args.distance)


def draw_maps(model, splits, pixels, device, args):
    """maps.jpg of --maps, where the network looks; pixels: of the queries first. All queries where there are fewer."""
    count = min(args.maps, len(splits.query))
    rows = np.arange(count) * len(splits.query) // count  # evenly: images of one person follow one another
    images, parts = pixels.batch(rows, device), []
    for some in images.split(args.test_batch_size):
        parts.append(models.explain(model, loader.normalise(some, model.mean, model.std)))

    def joined(name):  # the maps of each stage, of all batches
        stages = zip(*(part.get(name, ()) for part in parts), strict=True)
        return [torch.cat(stage).numpy() for stage in stages]

    visualize.maps_grid(
        [splits.query[row].paths[0] for row in rows], images.permute(0, 2, 3, 1).cpu().numpy(),
        torch.cat([part["activation"] for part in parts]).numpy(), joined("attention"), joined("regions"),
    ).save(Path(args.out) / "maps.jpg", quality=90, subsampling=0)  # fmt: skip


def run(args, device):
    """--evaluate: prints the scores of the network in --weights, and writes them into the folder --out."""
    model, info = models.load_checkpoint(args.weights, device, arch=args.arch, **args.options)
    if info.get("skipped"):
        print(f"{args.weights}: not used: {data.some(info['skipped'])}")
    args.distance = args.distance or info.get("distance", "cosine")
    splits = data.load_dataset(args.dataset, args.root, train=False)
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # now: not after the work is done
    pixels = load_pixels(splits.query + splits.gallery, model, f"{args.dataset}-test", args, device)
    model = model.to(memory_format=torch.channels_last)
    if args.maps:
        draw_maps(model, splits, pixels, device, args)
    queries, gallery = split_features(model, splits, pixels, device, args)
    ids, how = ids_of(splits.query, splits.gallery), {"distance": args.distance, "protocol": args.protocol}

    rows = {args.dataset: metrics.evaluate(queries, gallery, *ids, **how)}
    if args.multi_query:
        pooled = pooled_queries(model, splits, args, device)
        rows[f"{args.dataset}, multi-query ({args.multi_query})"] = metrics.evaluate(pooled, gallery, *ids, **how)
    if args.expand:
        expanded = metrics.expand_queries(queries, gallery, k=args.expand, distance=args.distance)
        rows[f"{args.dataset}, queries expanded by {args.expand}"] = metrics.evaluate(expanded, gallery, *ids, **how)
    if args.rerank:
        distances = metrics.rerank(queries, gallery, distance=args.distance)
        scores = metrics.evaluate_distances(distances, *ids, protocol=args.protocol)
        rows[f"{args.dataset}, re-ranked"] = {**scores, "distance": f"k-reciprocal {args.distance}"}
    summaries = [summarise(scores, name) for name, scores in rows.items()]
    for summary in summaries:
        print(score_line(summary))
    roc = metrics.verification(queries, gallery, *ids, **how)
    pairs = [metrics.operating_point(roc, fmr=rate) for rate in RATES]
    alarms = [metrics.open_set(rows[args.dataset]["queries"], far) for far in FALSE_ALARMS]
    print(verification_table(roc, pairs))
    print(open_set_line(alarms))
    if args.out:
        folder = Path(args.out)
        write_queries(folder / "queries.csv", rows[args.dataset]["queries"], splits)
        verification = {name: roc[name] for name in ("eer", "num_genuine", "num_impostor", "resolution")}
        verification["points"] = [{"wanted": rate, **point} for rate, point in zip(RATES, pairs, strict=True)]
        content = {"ranking": summaries, "verification": verification, "open_set": alarms, "weights": args.weights}
        (folder / "scores.json").write_text(json.dumps(content, indent=2) + "\n")
        written = ["queries.csv", "scores.json"] + ["maps.jpg"] * bool(args.maps)
        try:
            visualize.cmc_curves({name: scores["cmc"].numpy() for name, scores in rows.items()}, folder / "cmc.png")
            visualize.roc_curve(roc["fmr"].numpy(), roc["tpr"].numpy(), roc["num_impostor"], folder / "roc.png")
            print(f"{folder}: {', '.join(written)}, cmc.png, roc.png")
        except ImportError as error:
            print(f"{folder}: {', '.join(written)}; no curves, as matplotlib is not installed ({error})")
    return 0
