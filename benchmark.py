"""Measures speed beside a straightforward version, and how far methods that learn nothing come on a data set.

    python benchmark.py speed                  # extraction, training step, epoch; ratios measured side by side
    python benchmark.py baselines --dataset synthetic
    python benchmark.py ranking                # metrics.evaluate at Market-1501's size

A ratio compares medians of 5 rounds in one process, the two sides taking turns, so that whatever else the machine does
disturbs both. Each command ends with the hardware, versions and date that belong beside its numbers in BENCHMARK.md.
"""

import argparse
import contextlib
import io
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
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


def medians(functions, device, rounds=ROUNDS):
    """Seconds per call of each function: the median of `rounds`, taken in turns, after one call of each to warm up."""
    seconds = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, record in zip(functions, seconds, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in seconds]


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


def argsort_and_loop(q, g, q_pids, g_pids, q_camids, g_camids):
    """The usual way: the whole distance matrix, numpy's argsort of it, one Python loop over queries; (rank-1, mAP)."""
    distmat = (q**2).sum(1)[:, None] + (g**2).sum(1) - 2 * q @ g.T
    order = np.argsort(distmat, axis=1)
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


def measure_ranking(device, num_queries=3368, num_gallery=15913, dim=1024, ids=750):
    """metrics.evaluate beside argsort_and_loop and beside the bare matrix product, on features drawn at random."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((ids, dim), dtype=np.float32)
    pids = [rng.integers(ids, size=n) for n in (num_queries, num_gallery)]
    camids = [rng.integers(6, size=n) for n in (num_queries, num_gallery)]
    features = [centres[p] + 4 * rng.standard_normal((len(p), dim), dtype=np.float32) for p in pids]
    arrays = (*features, *pids, *camids)
    q, g = (torch.from_numpy(f).to(device) for f in features)

    def ours():
        return metrics.evaluate(q, g, *pids, *camids, distance="euclidean")

    fast, product = medians([ours, lambda: [q[i : i + 512] @ g.T for i in range(0, len(q), 512)]], device)
    start = time.perf_counter()
    rank1, mean_ap = argsort_and_loop(*arrays)
    usual = time.perf_counter() - start
    scores = ours()
    print(f"ranking {num_queries} x {num_gallery} x {dim}: ours {fast:.2f} s, bare product {product:.2f} s "
          f"(ratio {fast / product:.2f}), argsort and loop {usual:.1f} s (ratio {usual / fast:.1f})")
    print(f"same scores: rank-1 {scores['cmc'][0]:.5f} and {rank1:.5f}, mAP {scores['mAP']:.5f} and {mean_ap:.5f}")


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
        print(f"{name:16} {train.score_line(train.summarise(scores, dataset))}")


# ----------------------------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "ranking", "baselines"), help="see above")
    parser.add_argument("--dataset", default="synthetic", help="for baselines (default: synthetic)")
    parser.add_argument("--root", default="data", help="folder above the data set's own (default: data)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda")
    parser.add_argument("--batch-size", type=int, default=32, help="for speed (default: 32)")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="for speed: of both sides (default: off)")
    args = parser.parse_args(argv)
    try:
        device = train.pick_device(args.device)
        if args.what == "speed":
            measure_speed(device, args.batch_size, args.amp == "bf16")
            measure_epoch(device, 2 * args.batch_size, args.amp == "bf16")
        elif args.what == "ranking":
            measure_ranking(device)
        else:
            measure_baselines(args.dataset, args.root)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(hardware(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
