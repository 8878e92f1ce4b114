"""Measures speed beside a straightforward version, and how far methods that learn nothing come on a data set.

    python benchmark.py speed                  # extraction, training step, epoch; ratios measured side by side
    python benchmark.py baselines --dataset synthetic
    python benchmark.py ranking                # metrics.evaluate at Market-1501's size
    python benchmark.py distractors            # with 500,000 distractors, in a file of 2.1 GB
    python benchmark.py rerank                 # metrics.rerank, N = 9,600; --full: also at MSMT17's size

A ratio compares medians of several rounds in one process, the sides taking turns, so that whatever else the machine
does disturbs all of them. Each command ends with the hardware, versions and date that belong beside its numbers in
BENCHMARK.md. "Memory beyond the features" is the most that a first call has in memory beyond what was there before:
anonymous memory (no pages of files), sampled every 5 ms, and on a GPU what torch has allocated there.

The usual way is what other projects do, in numpy, written here. --peer-rank and --peer-rerank measure the functions of
deep-person-reid too (github.com/KaiyangZhou/deep-person-reid), out of your own checkout of it.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import io
import math
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import evaluate
import losses
import metrics
import models
import train

ROUNDS = 5


def hardware(device):
    if device.type == "cuda":
        chip = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        chip = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{chip}; torch {torch.__version__}, Python {platform.python_version()}; {date.today()}"


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(functions, device, rounds=ROUNDS, warm_up=1):
    """Seconds per call of each function: the median of `rounds`, taken in turns, after `warm_up` calls of each."""
    seconds = [[] for _ in functions]
    for turn in range(warm_up + rounds):
        for function, record in zip(functions, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if turn >= warm_up:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in seconds]


def anonymous_memory():
    """Bytes in memory that are of no file; NaN where /proc does not tell (it does on Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]  # given in kB
    return sizes[0] if sizes else math.nan


class Run(NamedTuple):
    result: Any
    seconds: float
    anonymous: float  # bytes beyond what was there before; NaN: not measured
    gpu: float


def watch(function, device):
    """One call of a function: the Run."""
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be used again unseen
    before, gpu, done = anonymous_memory(), math.nan, threading.Event()
    samples = [before]

    def sample():
        while not done.wait(0.005):
            samples.append(anonymous_memory())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        gpu_before = torch.cuda.memory_allocated(device)
    thread, start = threading.Thread(target=sample, daemon=True), time.perf_counter()
    thread.start()
    try:
        result = function()
        synchronize(device)
        seconds = time.perf_counter() - start
        samples.append(anonymous_memory())
    finally:
        done.set()
        thread.join()
    if device.type == "cuda":
        gpu = torch.cuda.max_memory_allocated(device) - gpu_before
    return Run(result, seconds, max(samples) - before, gpu)


def compare(device, functions, once=None, rounds=ROUNDS, remark=lambda result, first: ""):
    """Prints and returns {name: Run} with medians as seconds, or those of a single run for the functions of `once`.

    Ratios are to the first function. remark(result, result of the first): what is said of a result.
    """
    print(f"  {'':30} {'seconds':>11} {'ratio':>9} {'memory beyond the features':>28}")
    runs = {name: watch(function, device) for name, function in (functions | (once or {})).items()}
    for name, seconds in zip(functions, medians(functions.values(), device, rounds, warm_up=0), strict=True):
        runs[name] = runs[name]._replace(seconds=seconds)
    first = next(iter(runs.values()))
    for name, run in runs.items():
        anonymous = "not measured" if math.isnan(run.anonymous) else f"{run.anonymous / 1e6:,.0f} MB"
        memory = anonymous + ("" if math.isnan(run.gpu) else f", GPU {run.gpu / 1e6:,.0f} MB")
        times = f"{run.seconds:9.3f} s {run.seconds / first.seconds:7.2f} x"
        print(f"  {name:30} {times} {memory:>28}  {remark(run.result, first.result)}".rstrip(), flush=True)
    return runs


def load_peer(path, name):
    """The function `name` out of a Python file of another project."""
    spec = importlib.util.spec_from_file_location("peer", path) if Path(path).is_file() else None
    if spec is None:
        raise ValueError(f"there is no Python file {path}: give the path of the file with {name}, see --help")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its compiled part is missing: the Python one is measured
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no function {name}: give the path of the file with it, see --help")
    return getattr(module, name)


# ----------------------------------------------------------------------------------------------------------------------
# Speed of HA-CNN


class LoopedHACNN(models.HACNN):
    """The same network written straight from the paper: regions one by one, cut by affine_grid and grid_sample."""

    def attend(self, soft, x):
        """Soft attention with interpolate in place of the constant matrices."""
        spatial = soft.spatial_attn.conv1(x.mean(dim=1, keepdim=True))
        spatial = F.interpolate(spatial, size=x.shape[2:], mode="bilinear", align_corners=True)
        spatial = soft.spatial_attn.conv2(spatial)
        return torch.sigmoid(soft.conv(spatial * soft.channel_attn(x)))

    def cut(self, x, shift, size):
        """One region of each image: x (B, C, H, W), shift (B, 2) -> (B, C, h, w)."""
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = 1.0, 0.25, shift
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        region = F.grid_sample(x, grid, align_corners=False)
        return F.interpolate(region, size=size, mode="bilinear", align_corners=True)

    def branches(self, x):
        x, local = self.conv(x), [0] * self.REGIONS
        for stage in (1, 2, 3):
            attention, entering = getattr(self, f"ha{stage}"), x
            x = getattr(self, f"inception{stage}")(x)
            theta = attention.hard_attn(x)
            for region in range(self.REGIONS):
                cut = self.cut(entering, theta[:, region], self.CROPS[stage - 1])
                local[region] = getattr(self, f"local_conv{stage}")(cut + local[region])
            x = x * self.attend(attention.soft_attn, x)
        means = torch.cat([region.mean(dim=(2, 3)) for region in local], dim=1)
        return [self.fc_global(x.mean(dim=(2, 3))), self.fc_local(means)]


def training_step(model, images, labels, amp):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            logits, _ = model(images)
        optimizer.zero_grad(set_to_none=True)
        losses.mean_over_branches(losses.cross_entropy, logits, labels).backward()
        optimizer.step()

    return step


def measure_speed(device, batch, amp):
    torch.manual_seed(0)
    ours = models.build_model("hacnn", 751).to(device, memory_format=torch.channels_last)
    plain = LoopedHACNN(751).to(device)
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(batch, 3, 160, 64, device=device)
    fast = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device)

    def extract(model, images):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return model(images)

    ours.eval(), plain.eval()
    difference = (extract(ours, fast) - extract(plain, images)).abs().max().item()
    rows = medians([lambda: extract(ours, fast), lambda: extract(plain, images)], device)
    report(f"extraction, batch {batch}", batch, rows, f"same features to {difference:.0e}")
    ours.train(), plain.train()
    steps = [training_step(ours, fast, labels, amp), training_step(plain, images, labels, amp)]
    report(f"training step, batch {batch}", batch, medians(steps, device))


def report(what, images, seconds, remark=""):
    ours, plain = seconds
    rates = f"{images / ours:8.1f} img/s ours, {images / plain:8.1f} img/s plain"
    print(f"{what:28} {rates}, ratio {plain / ours:.2f}  {remark}", flush=True)


def measure_epoch(device, batch, amp, steps=6):
    """An epoch of train.py (cached pixels, augmented) beside the same steps on one batch that stays in memory."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        array = np.lib.format.open_memmap(f"{folder}/a.npy", "w+", np.uint8, (batch * steps, 160, 64, 3))
        array[:] = rng.integers(0, 256, array.shape, dtype=np.uint8)
        array.flush()
        pixels = data.Pixels([""] * len(array), (160, 64), np.load(f"{folder}/a.npy", mmap_mode="r")).to_device(device)
        labels = np.arange(len(array)) % 16
        flags = ["--batch-size", str(batch), "--epochs", "9", "--log-every", "1000", "--amp", "bf16" if amp else "off"]
        args = train.build_parser().parse_args(flags)
        torch.manual_seed(0)
        model = models.build_model("hacnn", 16).to(device, memory_format=torch.channels_last)
        runner, optimizer = train.Runner(model, device, amp), torch.optim.AdamW(model.parameters(), args.lr)

        def epoch():
            state = {"epoch": 0, "step": 0, "totals": {}}
            with contextlib.redirect_stdout(io.StringIO()):
                train.train_one_epoch(runner, pixels, labels, optimizer, device, state, args)

        images = data.augment(pixels.batch(np.arange(batch), device), torch.Generator(), (), model.mean, model.std)
        step = training_step(model, images, torch.from_numpy(labels[:batch]).to(device), amp)

        def same_batch():
            model.train()
            for _ in range(steps):
                step()

        whole, bare = medians([epoch, same_batch], device)
    rates = f"{steps * batch / whole:8.1f} img/s from the cache, {steps * batch / bare:8.1f} img/s one batch"
    print(f"{f'epoch, batch {batch}':28} {rates}, ratio {bare / whole:.2f}", flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# Ranking


def draw(num_queries, num_gallery, dim, ids, noise=4.0):
    """Random features (Q, D) and (G, D) about one centre per person, pids from 1 and camids of both sides."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((ids, dim), dtype=np.float32)
    pids = [rng.integers(ids, size=n) for n in (num_queries, num_gallery)]
    camids = [rng.integers(6, size=n) for n in (num_queries, num_gallery)]
    features = [centres[p] + noise * rng.standard_normal((len(p), dim), dtype=np.float32) for p in pids]
    return features, [p + 1 for p in pids], camids


def squared_distances(q, g):
    distmat = q @ g.T
    distmat *= -2
    distmat += (q**2).sum(1)[:, None]
    distmat += (g**2).sum(1)
    return distmat


def argsort_and_loop(q, g, q_pids, g_pids, q_camids, g_camids):
    """The usual way: the whole distance matrix, numpy's argsort of it, one Python loop over queries; (rank-1, mAP)."""
    order = np.argsort(squared_distances(q, g), axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int32)
    first, precisions = [], []
    for row in range(len(q)):
        keep = (g_pids[order[row]] != q_pids[row]) | (g_camids[order[row]] != q_camids[row])
        hits = matches[row][keep]
        if not hits.any():
            continue
        first.append(hits[0])
        precisions.append((hits.cumsum() / np.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    return np.mean(first), np.mean(precisions)


def product(q, g):
    """The bare matrix product, which is the least that ranking takes."""
    for part in g.split(2**14):
        [q[i : i + 512] @ part.T for i in range(0, len(q), 512)]


def rank1_and_map(*arrays):
    scores = metrics.evaluate(*arrays, distance="euclidean")
    return scores["cmc"][0].item(), scores["mAP"]


def score_remark(result, first):
    if result is None:  # of the bare product
        return ""
    return f"rank-1 {np.ravel(result[0])[0]:.5f}, mAP {result[1]:.5f}"  # a peer gives all of the CMC


def measure_ranking(device, num_queries=3368, num_gallery=15913, dim=1024, ids=750, peer_rank=None):
    """metrics.evaluate beside the bare matrix product and the usual way; results are (rank-1, mAP)."""
    peer = peer_rank and load_peer(peer_rank, "eval_market1501")
    features, pids, camids = draw(num_queries, num_gallery, dim, ids)
    q, g = (torch.from_numpy(f).to(device) for f in features)
    functions = {
        "metrics.evaluate": lambda: rank1_and_map(q, g, *pids, *camids),
        "bare product": lambda: product(q, g),
        "argsort and loop": lambda: argsort_and_loop(*features, *pids, *camids),
    }
    peers_way = {"eval_market1501, one run": lambda: peer(squared_distances(*features), *pids, *camids, 50)}
    print(f"ranking {num_queries} x {num_gallery} x {dim}")
    return compare(device, functions, peers_way if peer else {}, remark=score_remark)


def write_gallery(folder, gallery, num_distractors):
    """A memory-mapped file with the gallery (G, D) and, below it, distractors, which have no centre in common."""
    shape = len(gallery) + num_distractors, gallery.shape[1]
    needed, free = 4 * math.prod(shape) / 1e9, shutil.disk_usage(folder).free / 1e9
    print(f"writing {needed:.1f} GB to {folder}, where {free:.1f} GB are free", flush=True)
    if free < 1.1 * needed:
        raise ValueError(f"{needed:.1f} GB do not fit well into {free:.1f} GB: set TMPDIR to a folder on a larger disk")
    rng, scale = np.random.default_rng(1), gallery.std()
    array = np.lib.format.open_memmap(f"{folder}/gallery.npy", "w+", np.float32, shape)
    array[: len(gallery)] = gallery
    for start in range(len(gallery), len(array), 4096):
        rows = array[start : start + 4096]
        rows[:] = scale * rng.standard_normal(rows.shape, dtype=np.float32)
    array.flush()
    return array


def measure_distractors(
    device, num_queries=3368, num_gallery=15913, distractors=(0, 100_000, 500_000), dim=1024, ids=750, rounds=3
):
    """metrics.evaluate on a memory-mapped gallery with more and more distractors, beside the bare matrix product."""
    (query, gallery), (q_pids, g_pids), (q_camids, g_camids) = draw(num_queries, num_gallery, dim, ids)
    g_pids = np.pad(g_pids, (0, max(distractors)))  # the pid of distractors is 0
    g_camids = np.append(g_camids, np.random.default_rng(2).integers(6, size=max(distractors)))
    q, sizes, functions = torch.from_numpy(query).to(device), [num_gallery + n for n in distractors], {}
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        mapped = torch.from_numpy(write_gallery(folder, gallery, max(distractors)))
        near = mapped.to(device)  # on a CPU still the file
        for size in sizes:
            ids_of = q_pids, g_pids[:size], q_camids, g_camids[:size]
            functions[f"{size:,}, from the file"] = partial(rank1_and_map, q, mapped[:size], *ids_of)
            if device.type == "cuda":
                functions[f"{size:,}, on the GPU"] = partial(rank1_and_map, q, near[:size], *ids_of)
            functions[f"{size:,}, bare product"] = partial(product, q, near[:size])
        longer = ", ".join(f"{size / sizes[0]:.2f}" for size in sizes)
        print(f"ranking {num_queries} x gallery x {dim}; galleries are {longer} times as long as the first")
        return compare(device, functions, rounds=rounds, remark=score_remark)


# ----------------------------------------------------------------------------------------------------------------------
# Re-ranking


def dense_rerank(q, g, k1=20, k2=6, lambda_value=0.3):
    """The usual way (Zhong et al., CVPR 2017): N x N matrices and loops over rows; distances (Q, G)."""
    x, half = np.concatenate([q, g]), round(k1 / 2)
    distmat = squared_distances(x, x)
    distmat /= distmat.max(axis=1, keepdims=True)
    order = np.argsort(distmat, axis=1)[:, : k1 + 1].copy()  # the item itself is the first

    def mutual(item, k):
        near = order[item, : k + 1]
        return near[(order[near, : k + 1] == item).any(axis=1)]

    weights = np.zeros_like(distmat)
    for item in range(len(x)):
        own = mutual(item, k1)
        sets = [own]
        for neighbour in own:
            theirs = mutual(neighbour, half)
            if 3 * len(np.intersect1d(theirs, own, assume_unique=True)) > 2 * len(theirs):
                sets.append(theirs)
        members = np.unique(np.concatenate(sets))
        closeness = np.exp(-distmat[item, members])
        weights[item, members] = closeness / closeness.sum()
    if k2 > 1:
        mean = np.empty_like(weights)
        for item in range(len(x)):
            weights[order[item, :k2]].mean(axis=0, out=mean[item])
        weights = mean
    holders = [np.flatnonzero(column) for column in weights.T]
    result = np.empty((len(q), len(g)), distmat.dtype)
    for item in range(len(q)):
        overlap = np.zeros(len(x), distmat.dtype)
        for member in np.flatnonzero(weights[item]):
            who = holders[member]
            overlap[who] += np.minimum(weights[item, member], weights[who, member])
        jaccard = 1 - overlap[len(q) :] / (2 - overlap[len(q) :])
        result[item] = (1 - lambda_value) * jaccard + lambda_value * distmat[item, len(q) :]
    return result


def difference(result, ours):
    gap = (torch.as_tensor(result).cpu() - ours.cpu()).abs()
    return f"largest difference {gap.max():.0e}, above 1e-5 in {(gap > 1e-5).double().mean():.4%}"


def measure_rerank(device, num_queries=1600, num_gallery=8000, dim=1024, ids=750, alone=False, peer_rerank=None):
    """metrics.rerank beside the usual way, or alone where the matrices of that do not fit; results are distances.

    Neighbours that are equally far but for the rounding of float32 may come in another order on the other side, and
    change some results by more than rounding does: therefore also the share of results that differ.
    """
    peer = peer_rerank and load_peer(peer_rerank, "re_ranking")
    features, _, _ = draw(num_queries, num_gallery, dim, ids, noise=2.5)
    q, g = (torch.from_numpy(f).to(device) for f in features)

    def peers_way():  # squares the distances itself
        x, y = features
        return peer(*(np.sqrt(squared_distances(*pair).clip(0)) for pair in ((x, y), (x, x), (y, y))))

    ours = {"metrics.rerank": lambda: metrics.rerank(q, g, distance="euclidean")}
    print(f"re-ranking {num_queries} + {num_gallery}, x {dim}; {4e-6 * num_queries * num_gallery:,.0f} MB returned")
    if alone:
        return compare(device, {}, once=ours)
    both = ours | {"dense numpy": lambda: dense_rerank(*features)}
    return compare(device, both, {"re_ranking, one run": peers_way} if peer else {}, rounds=3, remark=difference)


# ----------------------------------------------------------------------------------------------------------------------
# Baselines that learn nothing


def raw_pixels(images):
    """bytes (N, H, W, 3) -> (N, D): the image at 32 x 16, its mean taken out, scaled to length 1."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(32, 16), mode="area").flatten(1)
    return F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)


def hsv_histograms(images, stripes=6, bins=(8, 4, 4)):
    """bytes (N, H, W, 3) -> (N, D): square roots of HSV histograms of horizontal stripes, for Hellinger's distance.

    The outer quarter of the width is left out: it is background.
    """
    features, edge = [], images.shape[2] // 8
    for image in images:
        hsv = np.asarray(Image.fromarray(image).convert("HSV"))[:, edge:-edge].astype(np.int64)
        codes = hsv * bins // 256  # (H, W, 3)
        codes = (codes[..., 0] * bins[1] + codes[..., 1]) * bins[2] + codes[..., 2]
        counts = [np.bincount(part.ravel(), minlength=np.prod(bins)) for part in np.array_split(codes, stripes)]
        features.append(np.sqrt(np.concatenate(counts) / codes.size))
    return torch.tensor(np.array(features), dtype=torch.float32)


def measure_baselines(dataset, root):
    splits = data.load_dataset(dataset, root, train=False)
    items = splits.query + splits.gallery
    images = data.load_pixels([i.paths[0] for i in items], (160, 64), Path(root) / ".pixels", f"{dataset}-test").array
    pids, camids = np.array([i.pid for i in items]), np.array([i.camid for i in items])
    n = len(splits.query)
    for name, describe in (("raw pixels", raw_pixels), ("HSV histograms", hsv_histograms)):
        features = describe(np.asarray(images))
        scores = metrics.evaluate(
            features[:n], features[n:], pids[:n], pids[n:], camids[:n], camids[n:], distance="euclidean"
        )
        print(f"{name:16} {evaluate.score_line(evaluate.summarise(scores, dataset))}")


# ----------------------------------------------------------------------------------------------------------------------


def build_parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", metavar="command", required=True)

    def command(name, text):
        return commands.add_parser(name, help=text, description=text, parents=[common])

    speed = command("speed", "HA-CNN and the training loop beside plain versions")
    speed.add_argument("--batch-size", type=int, default=32, help="of extraction and training step (default: 32)")
    speed.add_argument("--amp", choices=("off", "bf16"), default="off", help="of both sides (default: off)")
    baselines = command("baselines", "scores of features that nobody trained")
    baselines.add_argument("--dataset", default="synthetic", help="a name train.py knows (default: synthetic)")
    baselines.add_argument("--root", default="data", help="folder above the data set's own (default: data)")
    ranking = command("ranking", "metrics.evaluate at Market-1501's size beside the usual way and the bare product")
    ranking.add_argument("--peer-rank", metavar="FILE", help="torchreid/metrics/rank.py of deep-person-reid: it too")
    command("distractors", "metrics.evaluate with 500,000 distractors, in a temporary file (2.1 GB; TMPDIR says where)")
    rerank = command("rerank", "metrics.rerank for 1,600 + 8,000 items beside the usual way")
    rerank.add_argument("--peer-rerank", metavar="FILE", help="torchreid/utils/rerank.py of deep-person-reid: it too")
    rerank.add_argument("--full", action="store_true", help="at MSMT17's size too, 11,659 + 82,161; 3.8 GB returned")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    try:
        device = train.pick_device(args.device)
        if args.what == "speed":
            measure_speed(device, args.batch_size, args.amp == "bf16")
            measure_epoch(device, 2 * args.batch_size, args.amp == "bf16")
        elif args.what == "baselines":
            measure_baselines(args.dataset, args.root)
        elif args.what == "ranking":
            measure_ranking(device, peer_rank=args.peer_rank)
        elif args.what == "distractors":
            measure_distractors(device)
        else:
            measure_rerank(device, peer_rerank=args.peer_rerank)
            if args.full:
                measure_rerank(device, 11659, 82161, ids=3060, alone=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(hardware(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
