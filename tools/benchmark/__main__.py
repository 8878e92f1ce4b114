"""Measures speed beside a straightforward version, and how far methods that learn nothing come on a data set.

    python -m tools.benchmark speed                  # extraction, training step, epoch; ratios measured side by side
    python -m tools.benchmark training               # a whole epoch on Market-1501, and what of it is not the network
    python -m tools.benchmark devices                # nn.DataParallel and torchrun once, on however many GPUs there are
    python -m tools.benchmark networks               # images/s of light networks in fp32 and bf16; or of those you name
    python -m tools.benchmark baselines --dataset synthetic
    python -m tools.benchmark data                   # parsing, decoding, training from a large cache
    python -m tools.benchmark ranking                # metrics.evaluate at Market-1501's size
    python -m tools.benchmark distractors            # with 500,000 distractors, in a file of 2.1 GB
    python -m tools.benchmark rerank                 # metrics.rerank, N = 9,600; --full: also at MSMT17's size
    python -m tools.benchmark search                 # the ten best of 1,000,000 x 1,024 features, in a file of 4.1 GB
    python -m tools.benchmark deploy --ckpt best.pth # what serves a network: PyTorch, TorchScript, torch.export, ONNX

Times compared are medians of several rounds in one process, the sides taking turns, so that whatever else the machine
does disturbs all of them. Hardware, versions and date come last. "Memory beyond the features" is the most that a first
call adds: anonymous memory (no pages of files), sampled every 5 ms, and on a GPU what torch has allocated there.

The usual way is what other projects do, in numpy, written here. --peer-rank and --peer-rerank measure the functions of
deep-person-reid too (github.com/KaiyangZhou/deep-person-reid), out of your own checkout of it.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import io
import math
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import export
import losses
import metrics
import models
import train
from exporting import gate
from searching import extractor, gallery
from tools import synthetic
from training import evaluate, recipes
from training.pixels import Draws, Pixels, augment, load_pixels


def told_by(path, key):
    """What a file of Linux's /proc says about a key; None where there is neither."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def hardware(device):
    chip = f"{told_by('/proc/cpuinfo', 'model name') or platform.processor()}, {torch.get_num_threads()} threads"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else chip
    return f"{chip}; torch {torch.__version__}, Python {platform.python_version()}; {date.today()}"


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(functions, device, rounds=5, warm_up=1):
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
    return [float(np.median(record)) for record in seconds]


def anonymous_memory():
    """Bytes in memory that are of no file; NaN where /proc does not tell."""
    told = told_by("/proc/self/status", "RssAnon")  # "1234 kB"
    return int(told.split()[0]) * 1024 if told else math.nan


Run = namedtuple("Run", "result seconds anonymous gpu")  # bytes beyond what was there before; NaN: not measured


def watch(function, device):
    """One call of a function: the Run."""
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be used again unseen
    samples, done = [anonymous_memory()], threading.Event()

    def sample():
        while not done.wait(0.005):
            samples.append(anonymous_memory())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        gpu_before = torch.cuda.memory_allocated(device)
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as ending:
        ending.callback(done.set)  # also where the function fails: the pool waits for the sampler
        pool.submit(sample)
        start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds = time.perf_counter() - start
        samples.append(anonymous_memory())
    gpu = torch.cuda.max_memory_allocated(device) - gpu_before if device.type == "cuda" else math.nan
    return Run(result, seconds, max(samples) - samples[0], gpu)


def compare(device, functions, once=None, rounds=5, remark=lambda result, first: ""):
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
        said = "" if run.result is None else remark(run.result, first.result)
        times = f"{run.seconds:9.3f} s {run.seconds / first.seconds:7.2f} x"
        print(f"  {name:30} {times} {memory:>28}  {said}".rstrip(), flush=True)
    return runs


def load_peer(path, name):
    """The function `name` out of a Python file of another project."""
    if not Path(path).is_file():
        raise ValueError(f"there is no Python file {path}: give the path of the file with {name}, see --help")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its compiled part is missing: the Python one is measured
        functions = runpy.run_path(path)
    if name not in functions:
        raise ValueError(f"{path} has no function {name}: give the path of the file with it, see --help")
    return functions[name]


# ----------------------------------------------------------------------------------------------------------------------
# Speed of networks


class LoopedHACNN(models.HACNN):
    """The same network written straight from the paper: regions one by one, cut by affine_grid and grid_sample."""

    def attend(self, soft, x):
        """Soft attention with interpolate in place of the constant matrices."""
        spatial = soft.spatial_attn.conv1(x.mean(dim=1, keepdim=True))
        spatial = soft.spatial_attn.conv2(F.interpolate(spatial, x.shape[2:], mode="bilinear", align_corners=True))
        return torch.sigmoid(soft.conv(spatial * soft.channel_attn(x)))

    def cut(self, x, shift, size):
        """One region of each image: x (B, C, H, W), shift (B, 2) -> (B, C, h, w)."""
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = 1.0, 0.25, shift
        region = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
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


def extraction(model, images, bf16):
    model.eval()

    def extract():
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images)

    return extract


def training_step(model, images, bf16, labels):
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4)

    def step():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits, _ = model(images)
        optimizer.zero_grad(set_to_none=True)
        losses.mean_over_branches(losses.cross_entropy, logits, labels).backward()
        optimizer.step()

    return step


def report(what, images, seconds, sides=("ours", "plain"), remark=""):
    rates = ", ".join(f"{images / s:8.1f} img/s {side}" for s, side in zip(seconds, sides, strict=True))
    print(f"{what:28} {rates}, ratio {seconds[1] / seconds[0]:.2f}  {remark}", flush=True)


def measure_speed(device, batch_size, amp):
    """Extraction and training step of HA-CNN beside the plain one; then measure_epoch."""
    batch, bf16 = batch_size, amp == "bf16"
    torch.manual_seed(0)
    ours = models.build_model("hacnn", 751).to(device, memory_format=torch.channels_last)
    plain = LoopedHACNN(751).to(device)
    plain.load_state_dict(ours.state_dict())
    images, labels = torch.randn(batch, 3, 160, 64, device=device), torch.arange(batch, device=device)
    sides = (ours, images.contiguous(memory_format=torch.channels_last)), (plain, images)
    extract = [extraction(*side, bf16) for side in sides]
    remark = f"same features to {(extract[0]() - extract[1]()).abs().max():.0e}"
    report(f"extraction, batch {batch}", batch, medians(extract, device), remark=remark)
    steps = [training_step(*side, bf16, labels) for side in sides]
    report(f"training step, batch {batch}", batch, medians(steps, device))
    measure_epoch(device, 2 * batch, bf16)


def measure_epoch(device, batch, bf16, steps=6):
    """An epoch of train.py (cached pixels, augmented) beside the same steps on one batch that stays in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (batch * steps, 160, 64, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/a.npy", noise)
        array = np.load(f"{folder}/a.npy", mmap_mode="r")
        pixels = Pixels([""] * len(array), (160, 64), array).to_device(device)
        labels = np.arange(len(array)) % 16
        flags = ["--batch-size", str(batch), "--epochs", "9", "--log-every", "1000", "--amp", "bf16" if bf16 else "off"]
        args = train.parse(flags)[0]
        torch.manual_seed(0)
        model = models.build_model("hacnn", 16).to(device, memory_format=torch.channels_last)
        runner = train.Runner(model, device, args.amp)
        criterion = recipes.Criterion(args, 16, recipes.branch_sizes(model))
        optimizers, samples = recipes.build_optimizers(model, criterion, args), train.TrainSet(pixels, labels)

        def epoch():
            state = {"epoch": 0, "step": 0, "totals": {}}
            with contextlib.redirect_stdout(io.StringIO()):
                train.train_one_epoch(runner, criterion, samples, optimizers, device, state, args)

        images = augment(pixels.batch(np.arange(batch), device), Draws(0), (), model.mean, model.std)
        step = training_step(model, images, bf16, torch.from_numpy(labels[:batch]).to(device))
        seconds = medians([epoch, lambda: [step() for _ in range(steps)]], device)
    report(f"epoch, batch {batch}", steps * batch, seconds, ("from the cache", "one batch"))


# ----------------------------------------------------------------------------------------------------------------------
# Training


class Stopwatch:
    """Seconds inside forward, backward and step of what runs in its `with`; for the CPU, where nothing runs ahead."""

    def __init__(self, runner, criterion, optimizers):
        self.seconds, self.undo = 0.0, contextlib.ExitStack()
        self.timed = [(module, "forward") for module in (runner, criterion)] + [(o, "step") for o in optimizers]

    def watch(self, owner, name):
        function = getattr(owner, name)

        def timed(*given, **named):
            start = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - start

        self.undo.enter_context(mock.patch.object(owner, name, timed))

    def __enter__(self):
        for owner, name in [*self.timed, (torch.Tensor, "backward")]:
            self.watch(owner, name)
        return self

    def __exit__(self, *error):
        self.undo.close()


def matmul_peak(device, size=8192):
    """FLOP/s of a bf16 matrix product on this GPU: what its tensor cores reach, not what a table says."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / medians([lambda: a @ b], device, rounds=20, warm_up=3)[0]


def copy_bandwidth(device, gigabytes=2):
    """Bytes/s that a copy inside the GPU's memory reads and writes."""
    source = torch.empty(int(gigabytes * 1e9), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / medians([lambda: target.copy_(source)], device, rounds=20, warm_up=3)[0]


def measure_training(device, dataset, root, arch="hacnn", batch_size=64, amp="auto", compiled=None, steps=0):
    """Images/s of an epoch of train.py and the share of it that is spent outside forward, backward and step."""
    flags = ["--arch", arch, "--batch-size", str(batch_size), "--log-every", "50", "--epochs", "9", "--root", root]
    args = train.parse([*flags, "--dataset", dataset, "--warmup-epochs", "0"])[0]
    args.amp = amp if amp != "auto" else "bf16" if train.has_fast_bf16(device) else "off"
    args.split = 0
    items = evaluate.load_set(dataset, args, evaluate=False).train
    items = items[:: max(1, len(items) // (steps * batch_size))][: steps * batch_size] if steps else items
    labels, pids = data.relabel(items)
    torch.manual_seed(0)
    model = models.build_model(arch, len(pids)).to(device, memory_format=torch.channels_last)
    pixels = evaluate.pixels_of([item.paths[0] for item in items], model, f"{dataset}-benchmark", args, device)
    runner = train.Runner(model, device, args.amp)
    criterion = recipes.Criterion(args, len(pids), recipes.branch_sizes(model)).to(device)
    optimizers, samples = recipes.build_optimizers(model, criterion, args), train.TrainSet(pixels, labels)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    if compiled:
        model.compile(mode=compiled)

    def epoch(number=0, count=None):
        part = samples if count is None else train.TrainSet(pixels, labels[: count * batch_size])
        state = {"epoch": number, "step": 0, "totals": {}}
        with contextlib.redirect_stdout(io.StringIO()):
            train.train_one_epoch(runner, criterion, part, optimizers, device, state, args, scaler=scaler)
        synchronize(device)
        return state["totals"]["images"]

    epoch(count=4 if device.type == "cuda" else 1)  # warm up: compilers, algorithms, caches
    images = pixels.batch(np.arange(batch_size), device)
    images = augment(images, Draws(0), args.augment, model.mean, model.std)
    targets = torch.from_numpy(labels[:batch_size]).to(device)

    def step():
        logits, features = runner.train()(images)
        loss, _ = criterion(logits, features, targets)
        optimizers[0].zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizers[0])
        scaler.update()

    if device.type == "cuda":
        start = time.perf_counter()
        count = epoch(1)
        seconds = time.perf_counter() - start
        inside = count / batch_size * medians([step], device, rounds=50, warm_up=5)[0]
    else:
        with Stopwatch(runner, criterion, optimizers) as watched:
            start = time.perf_counter()
            count = epoch(1)
            seconds = time.perf_counter() - start
        inside = watched.seconds
    print(f"an epoch of {dataset}, {count} images, {arch}, batch {batch_size}, {args.amp}"
          f"{f', compiled ({compiled})' * bool(compiled)}: {seconds:.1f} s, {count / seconds:.1f} images/s, "
          f"{100 * max(0, 1 - inside / seconds):.1f} % of it outside forward, backward and step")  # fmt: skip
    if device.type == "cuda":
        flops = 3 * 2 * sum(models.count_macs(models.build_model(arch, 1)))  # backward: about twice the forward pass
        peak, bandwidth = matmul_peak(device), copy_bandwidth(device)
        reached = flops * count / seconds
        print(f"  {reached / 1e12:.1f} TFLOP/s, {100 * reached / peak:.1f} % of a product's {peak / 1e12:.0f}; "
              f"a copy moves {bandwidth / 1e12:.2f} TB/s; memory at most "
              f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")  # fmt: skip
        profile_step(step, device)


def profile_step(step, device, rows=12):
    """Prints what a training step spends the GPU's time on, and for how much of it the GPU has nothing to do."""
    from torch.profiler import ProfilerActivity, profile

    step()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as told:
        start = time.perf_counter()
        for _ in range(5):
            step()
        synchronize(device)
        seconds = time.perf_counter() - start
    table = told.key_averages()
    busy = sum(row.self_device_time_total for row in table) / 1e6
    print(f"  profiled: kernels run for {100 * busy / seconds:.0f} % of the time; the longest:")
    for row in sorted(table, key=lambda row: -row.self_device_time_total)[:rows]:
        print(f"    {100 * row.self_device_time_total / 1e6 / busy:5.1f} %  {row.key[:100]}")


def measure_devices(device, arch="hacnn"):
    """Trains, scores and saves through nn.DataParallel over all GPUs, then by torchrun with a process on each."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        synthetic.write_dataset(Path(folder, "synthetic"), num_train_ids=8, num_test_ids=4, num_distractors=4,
                                num_junk=2, seed=0, processes=1)  # fmt: skip
        flags = ["--dataset", "synthetic", "--root", folder, "--batch-size", str(8 * count), "--epochs", "1"]
        flags += ["--arch", arch, "--lr", "0.001", "--warmup-epochs", "0", "--loss", "xent", "triplet", "center"]
        args = train.parse(flags)[0]
        args.split, args.distance, args.target = 0, "cosine", args.dataset
        splits = evaluate.load_set("synthetic", args)
        labels, pids = data.relabel(splits.train)
        torch.manual_seed(0)
        model = models.build_model(arch, len(pids)).to(device, memory_format=torch.channels_last)
        criterion = recipes.Criterion(args, len(pids), recipes.branch_sizes(model)).to(device)
        optimizers = recipes.build_optimizers(model, criterion, args)
        wrapped = nn.DataParallel(train.Runner(model, device, "bf16" if device.type == "cuda" else "off"))
        pixels = evaluate.pixels_of([item.paths[0] for item in splits.train], model, "synthetic-train", args, device)
        state = {"epoch": 0, "step": 0, "totals": {}}
        train.train_one_epoch(wrapped, criterion, train.TrainSet(pixels, labels), optimizers, device, state, args)
        target = evaluate.load_target("synthetic", splits, model, args, device)
        scores = evaluate.scores_of(wrapped, target, device, args)
        print(evaluate.score_line(evaluate.summarise(scores, "synthetic")))
        path = Path(folder, "saved.pth")
        train.save_atomically({"arch": arch, "num_ids": len(pids), "options": {}, "model": model.state_dict()}, path)
        loaded = models.load_checkpoint(path, device)[0].to(memory_format=torch.channels_last)
        features = [evaluate.extract_features(m, target.pixels, device, 128) for m in (wrapped, loaded)]
        difference = float((features[0] - features[1]).abs().max())
        prefixed = [name for name in model.state_dict() if name.startswith("module.")]
        print(f"nn.DataParallel over {count} devices: features of the file differ by {difference:.1e}, "
              f"{len(prefixed)} names with module.")  # fmt: skip
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        launch += ["train.py", *flags, "--device", device.type, "--out", str(Path(folder, "run"))]
        launch += ["--sync-bn"] if device.type == "cuda" else []
        done = subprocess.run(launch, cwd=Path(__file__).parent, capture_output=True, text=True)
        if done.returncode or difference > 1e-3 or prefixed:
            raise ValueError(f"it did not work:\n{done.stderr[-3000:]}")
        print(f"torchrun, {count} processes:", *done.stdout.splitlines()[-6:], sep="\n  ")


# ----------------------------------------------------------------------------------------------------------------------
# Networks to choose from

LIGHT = [n for n in models.MODELS if n.startswith(("hacnn", "osnet", "resnet18", "mobile", "shuffle", "squeeze"))]
VARIANTS = ("fp32", "bf16", "fp32 cl", "bf16 cl", "fp32 comp", "bf16 comp")


def variants_of(model, batch, device, compiled=False):
    """{name of VARIANTS: (network, images, bf16)}: the same weights and images; training moves a copy per layout."""
    images = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    last = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
    pairs = [(model.to(device), images), (last, images.contiguous(memory_format=torch.channels_last))]
    pairs += [(torch.compile(last), pairs[1][1])] if compiled else []
    return dict(zip(VARIANTS, [(*pair, bf16) for pair in pairs for bf16 in (False, True)], strict=False))


def rates(functions, images, device, rounds):
    """{name: images per second}, or what went wrong, as text, where a function's first call fails."""
    found, working = dict.fromkeys(functions), {}
    for name, function in functions.items():
        try:
            function()
            synchronize(device)
            working[name] = function
        except Exception as error:  # each library and each compiler has exceptions of its own
            found[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    seconds = medians(working.values(), device, rounds, warm_up=0)
    return found | {name: images / median for name, median in zip(working, seconds, strict=True)}


def measure_network(name, device, batch, rounds, compiled=False):
    """Prints its two rows and returns {"extraction" or "training": {variant: images/s, or what went wrong}}."""
    torch.manual_seed(0)
    model, labels = models.build_model(name, 751), torch.arange(batch, device=device) % 751
    lead = f"{name:20} {'{} x {}'.format(*model.input_size):>9} {models.count_parameters(model)[1] / 1e6:6.2f} "
    lead += f"{models.count_macs(model)[0] / 1e9:6.3f}"
    variants, found = variants_of(model, batch, device, compiled), {}
    for what, prepare in (("extraction", extraction), ("training", partial(training_step, labels=labels))):
        found[what] = row = rates({n: prepare(*parts) for n, parts in variants.items()}, batch, device, rounds)
        errors = [f"{variant}: {error}" for variant, error in row.items() if isinstance(error, str)]
        best = max((rate for rate in row.values() if not isinstance(rate, str)), default=None)
        cells = [f"{'failed':>10} " if isinstance(r, str) else f"{r:10.1f}{' *'[r == best]}" for r in row.values()]
        print(f"{lead:45}{what:10}{''.join(cells)}".rstrip(), *errors, sep="\n    ", flush=True)
        lead = ""
    return found


def measure_networks(device, names=LIGHT, batch_size=None, compiled=(), rounds=None):
    """One network after the other, those of `compiled` in more variants; {name: what measure_network gives}."""
    names, found, gpu = list(dict.fromkeys([*names, *compiled])), {}, device.type == "cuda"
    for name in names:
        models.build_model(name, 1)  # what cannot be built ends the run before anything is measured
    batch, rounds = batch_size or (64 if gpu else 16), rounds or (20 if gpu else 3)
    print(f"images per second, batch {batch}, * the best of its row; training: forward, cross entropy over 751 ids,")
    print("backward, AdamW; bf16: by autocast, cl: channels-last, comp: that compiled; params: millions, no classifier")
    heads = "".join(f"{variant + ' ':>11}" for variant in VARIANTS[: 6 if compiled else 4])
    print(f"{'name':20} {'input':>9} {'params':>6} {'GMAC':>6} {'':10}{heads}".rstrip())
    for name in names:
        found[name] = measure_network(name, device, batch, rounds, name in compiled)
        if name in compiled:
            torch.compiler.reset()  # it keeps the network
        gc.collect()  # networks and optimizers are parts of cycles
        torch.cuda.empty_cache()  # nothing without a GPU
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Deployment

ROUNDS = {1: 100, 8: 50, 32: 20, 128: 10}  # of each batch size
FILES = {  # name of a side -> (format of export.py, precision)
    "TorchScript": ("torchscript", "fp32"), "pt2": ("pt2", "fp32"), "ONNX fp32": ("onnx", "fp32"),
    "ONNX fp16": ("onnx", "fp16"), "ONNX int8": ("onnx", "int8"),
}  # fmt: skip
START = {  # what a fresh process runs up to its first features
    "checkpoint": "import torch, models; m, _ = models.load_checkpoint({path!r}); m(torch.zeros({shape}))",
    "torchscript": "import torch; torch.jit.load({path!r})(torch.zeros({shape}))",
    "pt2": "import torch; torch.export.load({path!r}).module()(torch.zeros({shape}))",
    "onnx": "import numpy, onnxruntime; onnxruntime.InferenceSession({path!r}, providers=['CPUExecutionProvider'])"
            ".run(None, dict(images=numpy.zeros({shape}, 'f')))",
}  # fmt: skip


def start_up(form, path, shape):
    """Seconds of a new process from its start to its end, with one image in between, on the CPU; median of three."""
    command = [sys.executable, "-W", "ignore", "-c", START[form].format(path=str(Path(path).resolve()), shape=shape)]
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def load_onnx(path, device):
    """images, a tensor on the device -> features on the CPU, by what search.py calls, or on a GPU left there."""
    if device.type != "cuda":
        served = extractor.Extractor(path, "cpu", threads=torch.get_num_threads())
        return lambda images: torch.from_numpy(served.call([images.numpy()]))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    number = device.index or 0
    settings = {"device_id": number, "cudnn_conv_algo_search": "HEURISTIC"}
    session = onnxruntime.InferenceSession(str(path), options, providers=[("CUDAExecutionProvider", settings)])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("onnxruntime cannot use CUDA here: see python search.py --provider cuda")

    def run(images):
        images, binding = images.contiguous(), session.io_binding()
        shape, place = tuple(images.shape), images.data_ptr()
        binding.bind_input("images", "cuda", number, np.float32, shape, place)
        binding.bind_output("features", "cuda", number)
        session.run_with_iobinding(binding)
        return torch.from_numpy(binding.copy_outputs_to_cpu()[0])

    return run


def load_side(form, path, device):
    """The function of an exported file."""
    if form == "onnx":
        return load_onnx(path, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        if form == "torchscript":
            return torch.jit.load(str(path), map_location=device)
        program = torch.export.load(str(path))
        if device.type == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        return program.module()


@contextlib.contextmanager
def time_limit(seconds, what):
    """TimeoutError after so many seconds, where the system has alarms."""

    def stop(*_):
        raise TimeoutError(f"{what} took longer than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def compile_side(eager, images, seconds):
    """The compiled extractor, for any batch size, after its first calls."""
    compiled = torch.compile(eager, dynamic=True)
    with time_limit(seconds, "torch.compile"):
        for count in sorted({1, 2, len(images)}):  # one image is compiled by itself
            compiled(images[:count])
    return compiled


def write_files(model, info, folder, pictures):
    """{name of a side: file}, each through the gate of export.py; int8 is calibrated on pictures."""
    evidence = {"fp32": export.PATCHES, "fp16": export.PATCHES}
    evidence["int8"] = export.Evidence(pictures, "pictures", None, pictures)
    traced = {p: export.trace(model, export.Variant(p)) for p in ("fp32", "fp16")}
    traced["int8"], files = traced["fp32"], {}
    for name, (form, precision) in FILES.items():
        variant = export.Variant(precision)
        path = Path(folder, f"model{variant.suffix}{export.FORMATS[form].suffix}")
        try:
            print(export.export(model, info, form, path, variant, evidence[precision], traced[precision]), flush=True)
            files[name] = path
        except (ValueError, ImportError) as error:
            print(f"{name}: left out: {error}", flush=True)
    return files


def time_rounds(sides, inputs, device, rounds):
    """{name: seconds of each round}, the sides taking turns with the inputs of theirs, after a first call of each."""
    seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            synchronize(device)
            begin = time.perf_counter()
            with torch.inference_mode():
                run(inputs[name])
            synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
            time.sleep(0.05)  # threads of onnxruntime look out for more work first, and would disturb the next side
    return seconds


def measure_deployment(device, ckpt, batches=tuple(ROUNDS), rounds=None, compile_limit=600, calibrate=None, out=None):
    """Every way to serve a network side by side; {batch: {side: (p50, p99, images/s)}}."""
    model, info = models.load_checkpoint(ckpt)
    if isinstance(model, models.VideoModel):
        raise ValueError(f"{ckpt} is of a network for tracklets: deploy measures networks for images")
    shape = (1, 3, *model.requires_grad_(False).input_size)
    pictures = gate.draw_patches(max(*batches, 32), model.input_size, seed=2)
    if calibrate:
        pictures = gate.open_pictures(gate.spread(gate.list_pictures(calibrate), export.CALIBRATION))
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        files = write_files(model, info, folder, pictures)
        sizes = {name: path.stat().st_size for name, path in files.items()}
        starts = {name: start_up(FILES[name][0], path, shape) for name, path in files.items()}
        sides = {name: load_side(FILES[name][0], path, device) for name, path in files.items()}
    sizes["eager"], starts["eager"] = Path(ckpt).stat().st_size, start_up("checkpoint", ckpt, shape)
    eager = export.Extractor(model).eval().to(device, memory_format=torch.channels_last)
    sides = {"eager": eager, **sides}
    if isinstance(model, models.HACNN) and model.learn_region and not info["options"].get("align_corners"):
        plain = LoopedHACNN(info["num_ids"]).eval().to(device)
        plain.load_state_dict(model.state_dict())
        sides = {"plain": export.Extractor(plain).eval(), **sides}
    images = [pictures[number % len(pictures)] for number in range(max(batches))]
    images = gate.normalised(images, model).to(device)  # channels-last in memory, as training makes them
    if compile_limit:
        try:
            begin = time.perf_counter()
            with torch.inference_mode():
                sides["compiled"] = compile_side(eager, images, compile_limit)
            print(f"torch.compile: {time.perf_counter() - begin:.0f} s", flush=True)
        except Exception as error:  # a compiler has exceptions of its own; the rest is measured all the same
            print(f"compiled: left out: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", flush=True)
    found, few = {}, images[: min(8, len(images))]
    with torch.inference_mode():
        exact = eager(few).cpu()
        cosines = {name: (run(few).cpu() * exact).sum(1).min().item() for name, run in sides.items()}
    print(f"{'':12} {'start-up':>9} {'file':>9} {'cosine':>9}" + "".join(f"{f'batch {b}':>30}" for b in batches))
    print(" " * 42 + "".join(f"{'p50 ms':>11}{'p99 ms':>9}{'img/s':>10}" for _ in batches))
    for batch in batches:
        rest = rounds or ROUNDS.get(batch, 10)
        inputs = {name: images[:batch] for name in sides}
        if "plain" in sides:  # else it would compute in channels-last, which is not how it is written
            inputs["plain"] = images[:batch].contiguous()
        times = time_rounds(sides, inputs, device, rest)
        print(f"batch {batch}: {rest} rounds of {len(sides)} sides", flush=True)
        found[batch] = {name: (*np.percentile(t, [50, 99]), batch / np.median(t)) for name, t in times.items()}
    for name in sides:
        start = f"{starts[name]:7.2f} s" if name in starts else ""
        size = f"{sizes[name] / 1e6:6.1f} MB" if name in sizes else ""
        cells = "".join(f"{1e3 * p50:11.2f}{1e3 * p99:9.2f}{rate:10.1f}" for p50, p99, rate in
                        (found[batch][name] for batch in batches))  # fmt: skip
        print(f"{name:12} {start:>9} {size:>9} {cosines[name]:9.6f}{cells}")
    counts = ", ".join(f"{rounds or ROUNDS.get(batch, 10)} at {batch}" for batch in batches)
    print(f"rounds in turn: {counts} (p99 of fewer than 100: near the slowest); start-up: a new process on the CPU")
    print("up to its first image, libraries included; the file of eager is the checkpoint, optimizer included")
    base = next(side for side in ("plain", "eager") if side in sides)
    for batch in batches:
        ratios = ", ".join(f"{n} {found[batch][base][0] / found[batch][n][0]:.2f}" for n in sides if n != base)
        print(f"batch {batch}, times as fast as {base} by p50: {ratios}")
    if out:
        plot_deployment(found, info["arch"], out)
        print(f"{out}: the same as a picture")
    return found


def plot_deployment(found, title, path):
    """Images/s of each side by batch size, and p50 and p99 of single images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches, (left, right) = sorted(found), (None, None)
    names = list(found[batches[0]])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(3, 2), layout="constrained")
    for number, name in enumerate(names):
        rates = [found[batch][name][2] for batch in batches]
        left.plot(range(len(batches)), rates, marker="o", label=name, color=f"C{number}")
        p50, p99 = (1e3 * value for value in found[batches[0]][name][:2])
        right.barh(number, p50, color=f"C{number}")
        right.plot([p50, p99], [number, number], color="black", linewidth=1, marker="|")
    left.set_xticks(range(len(batches)), batches)
    left.set(xlabel="batch", ylabel="images/s", ylim=(0, None), title=f"{title}: images per second")
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xlabel="ms", title=f"batch {batches[0]}: median, line up to p99")
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ----------------------------------------------------------------------------------------------------------------------
# Ranking and re-ranking


def draw(num_queries, num_gallery, dim, ids, noise=4.0):
    """Random features (Q, D) and (G, D) about one centre per person, pids from 1 and camids of both sides."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((ids, dim), dtype=np.float32)
    pids = [rng.integers(ids, size=n) for n in (num_queries, num_gallery)]
    camids = [rng.integers(6, size=n) for n in (num_queries, num_gallery)]
    features = [centres[p] + noise * rng.standard_normal((len(p), dim), dtype=np.float32) for p in pids]
    return features, [p + 1 for p in pids], camids


def squared_distances(q, g):
    distmat = -2 * q @ g.T
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
        if hits.any():
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
    return f"rank-1 {np.ravel(result[0])[0]:.5f}, mAP {result[1]:.5f}"  # a peer gives all of the CMC


def measure_ranking(device, size=(3368, 15913), dim=1024, ids=750, peer_rank=None):
    """metrics.evaluate beside the bare matrix product and the usual way; results are (rank-1, mAP)."""
    peer = peer_rank and load_peer(peer_rank, "eval_market1501")
    features, pids, camids = draw(*size, dim, ids)
    q, g = (torch.from_numpy(f).to(device) for f in features)
    functions = {
        "metrics.evaluate": lambda: rank1_and_map(q, g, *pids, *camids),
        "bare product": lambda: product(q, g),
        "argsort and loop": lambda: argsort_and_loop(*features, *pids, *camids),
    }
    once = {"eval_market1501, one run": lambda: peer(squared_distances(*features), *pids, *camids, 50)} if peer else {}
    print(f"ranking {size[0]} x {size[1]} x {dim}")
    return compare(device, functions, once, remark=score_remark)


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
    for rows in np.array_split(array[len(gallery) :], num_distractors // 4096 + 1):
        rows[:] = scale * rng.standard_normal(rows.shape, dtype=np.float32)
    array.flush()
    return array


def measure_distractors(device, size=(3368, 15913), distractors=(0, 100_000, 500_000), dim=1024, ids=750, rounds=3):
    """metrics.evaluate on a memory-mapped gallery with more and more distractors, beside the bare matrix product."""
    (query, gallery), (q_pids, g_pids), (q_camids, g_camids) = draw(*size, dim, ids)
    g_pids = np.pad(g_pids, (0, max(distractors)))  # the pid of distractors is 0
    g_camids = np.append(g_camids, np.random.default_rng(2).integers(6, size=max(distractors)))
    q, sizes, functions = torch.from_numpy(query).to(device), [len(gallery) + n for n in distractors], {}
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        mapped = torch.from_numpy(write_gallery(folder, gallery, max(distractors)))
        near = mapped.to(device)  # on a CPU still the file
        for count in sizes:
            ids_of = q_pids, g_pids[:count], q_camids, g_camids[:count]
            functions[f"{count:,}, from the file"] = partial(rank1_and_map, q, mapped[:count], *ids_of)
            if device.type == "cuda":
                functions[f"{count:,}, on the GPU"] = partial(rank1_and_map, q, near[:count], *ids_of)
            functions[f"{count:,}, bare product"] = partial(product, q, near[:count])
        longer = ", ".join(f"{count / sizes[0]:.2f}" for count in sizes)
        print(f"ranking {size[0]} x gallery x {dim}; galleries are {longer} times as long as the first")
        return compare(device, functions, rounds=rounds, remark=score_remark)


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
        theirs = [mutual(neighbour, half) for neighbour in own]
        near = [t for t in theirs if 3 * len(np.intersect1d(t, own, assume_unique=True)) > 2 * len(t)]
        members = np.unique(np.concatenate([own, *near]))
        closeness = np.exp(-distmat[item, members])
        weights[item, members] = closeness / closeness.sum()
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


def measure_rerank(device, size=(1600, 8000), dim=1024, ids=750, alone=False, peer_rerank=None, full=False):
    """metrics.rerank beside the usual way, or alone where the matrices of that do not fit; results are distances.

    Equal distances but for rounding may sort otherwise on the other side, which changes some results by more than that:
    therefore also the share of results that differ.
    """
    peer = peer_rerank and load_peer(peer_rerank, "re_ranking")
    features, _, _ = draw(*size, dim, ids, noise=2.5)
    q, g = (torch.from_numpy(f).to(device) for f in features)
    x, y = features
    roots = (np.sqrt(squared_distances(*pair).clip(0)) for pair in ((x, y), (x, x), (y, y)))  # made when it is called
    once = {"re_ranking, one run": lambda: peer(*roots)} if peer else {}  # squares them itself
    ours = {"metrics.rerank": lambda: metrics.rerank(q, g, distance="euclidean")}
    print(f"re-ranking {size[0]} + {size[1]}, x {dim}; {4e-6 * size[0] * size[1]:,.0f} MB returned")
    if alone:
        return compare(device, {}, once=ours)
    both = ours | {"dense numpy": lambda: dense_rerank(*features)}
    runs = compare(device, both, once, rounds=3, remark=difference)
    if full:
        measure_rerank(device, (11659, 82161), ids=3060, alone=True)
    return runs


# ----------------------------------------------------------------------------------------------------------------------
# Search: gallery.top_k, in numpy


def read_all(features, pool, parts):
    """Reads memory as fast as it goes: sums of slices, in as many threads as gallery.products uses."""
    edges = np.linspace(0, len(features), parts + 1).astype(int).tolist()
    return sum(pool.map(lambda ends: features[slice(*ends)].sum(), zip(edges[:-1], edges[1:], strict=True)))


def measure_search(device, size=1_000_000, dim=1024, queries=100, top=10, rounds=7):
    """gallery.top_k in a memory-mapped file beside the least that it takes: one query has to read all features, many
    have to be multiplied with them. Returns {number of queries: ratio}. device is not looked at: this is numpy."""
    rng, ratios = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory(prefix="reid-") as folder, ThreadPoolExecutor(gallery.READERS) as pool:
        write_gallery(folder, rng.standard_normal((8, dim), dtype=np.float32), size - 8)
        mapped = np.load(f"{folder}/gallery.npy", mmap_mode="r")
        features = np.asarray(mapped)  # the same memory without what memmap adds to each slice
        print(f"the {top} best of {size:,} x {dim} features, {4e-9 * size * dim:.1f} GB, in the cache of the system")
        for count, what in ((1, "reading them"), (queries, "bare product")):
            asked = rng.standard_normal((count, dim), dtype=np.float32)
            least = partial(read_all, features, pool, 8 * gallery.READERS)
            if count > 1:
                least = partial(np.matmul, asked, features.T)
            ours = partial(gallery.top_k, asked, mapped, top)
            check_answers(ours()[0], asked, features)
            seconds = medians([ours, least], device, rounds)
            ratios[count] = seconds[0] / seconds[1]
            rate = f", {4e-9 * size * dim / seconds[1]:.1f} GB/s" if count == 1 else ""
            print(f"{count:4} {'query' if count == 1 else 'queries'}: {seconds[0]:.3f} s; {what} {seconds[1]:.3f} s"
                  f"{rate}; ratio {ratios[count]:.2f}", flush=True)  # fmt: skip
    return ratios


def check_answers(indices, asked, features):
    """Raises ValueError unless nothing outside of the answers (Q, k) has a larger product than the last of them."""
    products = asked @ features.T
    last = np.take_along_axis(products, indices, 1).min(1, keepdims=True)
    np.put_along_axis(products, indices, -np.inf, 1)
    if (products.max(1, keepdims=True) > last + 1e-3).any():  # products of other routines differ in the last digits
        raise ValueError("gallery.top_k does not give the best")


# ----------------------------------------------------------------------------------------------------------------------
# Baselines that learn nothing


def raw_pixels(images):
    """bytes (N, H, W, 3) -> (N, D): the image at 32 x 16, its mean taken out, scaled to length 1."""
    x = F.interpolate(torch.tensor(images).permute(0, 3, 1, 2).float(), size=(32, 16), mode="area").flatten(1)
    return F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)


def hsv_histograms(images, stripes=6, bins=(8, 4, 4)):
    """bytes (N, H, W, 3) -> (N, D): square roots of HSV histograms of horizontal stripes, for Hellinger's distance."""
    features, edge = [], images.shape[2] // 8  # the outer quarter of the width is background
    for image in images:
        hsv = np.asarray(Image.fromarray(image).convert("HSV"))[:, edge:-edge].astype(np.int64)
        codes = hsv * bins // 256  # (H, W, 3)
        codes = (codes[..., 0] * bins[1] + codes[..., 1]) * bins[2] + codes[..., 2]
        counts = [np.bincount(part.ravel(), minlength=np.prod(bins)) for part in np.array_split(codes, stripes)]
        features.append(np.sqrt(np.concatenate(counts) / codes.size))
    return torch.tensor(np.array(features), dtype=torch.float32)


def measure_baselines(device, dataset, root):
    splits = data.load_dataset(dataset, root, train=False)
    items = splits.query + splits.gallery
    images = load_pixels([i.paths[0] for i in items], (160, 64), Path(root) / ".pixels", f"{dataset}-test").array
    ids, n = evaluate.ids_of(splits.query, splits.gallery), len(splits.query)
    for name, describe in (("raw pixels", raw_pixels), ("HSV histograms", hsv_histograms)):
        features = describe(np.asarray(images)).to(device)
        scores = metrics.evaluate(features[:n], features[n:], *ids, distance="euclidean")
        print(f"{name:16} {evaluate.score_line(evaluate.summarise(scores, dataset))}")


# ----------------------------------------------------------------------------------------------------------------------
# Data: parsing, decoding, and training from more pixels than fit into memory


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
        with Image.open(path) as image:
            array[row] = np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    return array


def measure_data(device, dataset, root, gigabytes):
    size = (160, 64)
    with tempfile.TemporaryDirectory(prefix="reid-") as folder, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(folder)
        fake_msmt17(folder)
        parsing = medians(
            [lambda: data.read_dataset(dataset, root), lambda: data.read_dataset("msmt17", folder)], device
        )  # fmt: skip
        splits = data.read_dataset(dataset, root)
        paths = [path for items in splits for item in items for path in item.paths]

        def decode():
            load_pixels(paths, size, folder / "pixels", "decoded")
            shutil.rmtree(folder / "pixels")

        decoding = medians([decode, lambda: decode_plainly(paths, size)], device, rounds=3)
        batches = np.random.default_rng(0).permutation(len(paths))[: len(paths) // 64 * 64].reshape(-1, 64)[:100]
        each_time = Pixels(paths, size)
        by_batch = medians([lambda: [each_time.batch(rows) for rows in batches]], device, rounds=3)[0]
    print(f"parsing {dataset}, {sum(map(len, splits)):,} items: {parsing[0]:.2f} s; MSMT17's lists: {parsing[1]:.2f} s")
    report(f"decoding {dataset} into the cache", len(paths), decoding, ("all cores", "plain loop"))
    print(f"decoding batch by batch, beyond --cache-limit: {batches.size / by_batch:.0f} images/s")
    measure_large_cache(device, gigabytes)


def measure_large_cache(device, gigabytes, size=(160, 64), batch=16, steps=20):
    """Builds a cache of that size as a run does, and trains from all of it; prints and returns anonymous memory, bytes.

    An epoch draws its batches from the whole array; its last `steps` steps are taken. Code that copied the array, or
    kept what it decodes, would need that much memory more.
    """
    count = int(gigabytes * 1e9 / (3 * size[0] * size[1]))
    args = train.parse(["--batch-size", str(batch), "--log-every", "1000"])[0]
    model = models.build_model("hacnn", 16).to(device, memory_format=torch.channels_last)
    criterion = recipes.Criterion(args, 16, recipes.branch_sizes(model))
    optimizers = recipes.build_optimizers(model, criterion, args)
    bf16 = train.has_fast_bf16(device)  # as --amp auto
    runner = train.Runner(model, device, "bf16" if bf16 else "off")
    labels, before = np.arange(count) % 16, anonymous_memory()
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        noise = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{folder}/a.jpg")

        def build_and_train():
            pixels = load_pixels(
                [f"{folder}/a.jpg"] * count, size, Path(folder, "pixels"), "large", limit_gb=2 * gigabytes
            )  # fmt: skip
            if not isinstance(pixels.array, np.memmap):
                raise ValueError(f"{folder} cannot hold {gigabytes:g} GB: set TMPDIR to a folder on a larger disk")
            samples = train.TrainSet(pixels, labels)
            state = {"epoch": 0, "step": len(samples.batches(args, 0)) - steps, "totals": {}}
            train.train_one_epoch(runner, criterion, samples, optimizers, device, state, args)

        with contextlib.redirect_stdout(io.StringIO()):
            peak = before + watch(build_and_train, device).anonymous
    print(f"building and training from a cache of {gigabytes:g} GB, batch {batch}, {'bf16' if bf16 else 'fp32'}: "
          f"at most {peak / 1e9:.2f} GB of anonymous memory in the process")  # fmt: skip
    return peak


# ----------------------------------------------------------------------------------------------------------------------


def build_parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name, run, text):
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added.add_argument

    add = command("speed", measure_speed, "HA-CNN and the training loop beside plain versions")
    add("--batch-size", type=int, default=32, help="of extraction and training step (default: 32)")
    add("--amp", choices=("off", "bf16"), default="off", help="of both sides (default: off)")
    add = command("training", measure_training, "images/s of an epoch, and what share of it is not the network")
    add("--dataset", default="market1501", help="of images (default: market1501)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add("--arch", default="hacnn", help="default: hacnn")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--amp", choices=("auto", *recipes.AMP), default="auto", help="as train.py has it (default: auto)")
    add("--compile", dest="compiled", nargs="?", const="default", help="as train.py has it")
    add("--steps", type=int, default=0, help="of the epoch, images spread over all (default: 0, a whole epoch)")
    add = command("devices", measure_devices, "trains, scores and saves through nn.DataParallel and torchrun once")
    add("--arch", default="hacnn", help="default: hacnn")
    add = command("networks", measure_networks, "images/s of networks to choose from, in each precision and layout")
    add("names", nargs="*", default=LIGHT, metavar="NAME", help=f"default: {' '.join(LIGHT)}")
    add("--batch-size", type=int, help="default: 16 on a CPU, 64 on a GPU")
    add("--compile", dest="compiled", nargs="+", default=(), metavar="NAME", help="compiled too; takes minutes each")
    add = command("baselines", measure_baselines, "scores of features that nobody trained")
    add("--dataset", default="synthetic", help="a name train.py knows (default: synthetic)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add = command("data", measure_data, "parsing, decoding, and training from a large cache below TMPDIR")
    add("--dataset", default="market1501", help="what is parsed and decoded (default: market1501)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add("--gigabytes", type=float, default=5, help="of the large cache (default: 5)")
    add = command("ranking", measure_ranking, "metrics.evaluate at Market-1501's size beside the usual way")
    add("--peer-rank", metavar="FILE", help="torchreid/metrics/rank.py of deep-person-reid: it too")
    command("distractors", measure_distractors, "it with 500,000 distractors, in a file of 2.1 GB below TMPDIR")
    add = command("deploy", measure_deployment, "a checkpoint in every format of export.py beside PyTorch")
    add("--ckpt", required=True, metavar="FILE", help="checkpoint of train.py")
    add("--batches", type=int, nargs="+", default=list(ROUNDS), metavar="B", help="default: 1 8 32 128")
    add("--rounds", type=int, help="of each batch size (default: 100 of batch 1 down to 10 of batch 128)")
    add("--compile-limit", type=int, default=600, metavar="S", help="seconds for torch.compile; 0: without it")
    add("--calibrate", metavar="FOLDER", help="images for int8 (default: patches that are drawn, for its speed alone)")
    add("--out", default="deploy.png", metavar="FILE", help="the plot (default: deploy.png)")
    add = command("rerank", measure_rerank, "metrics.rerank for 1,600 + 8,000 items beside the usual way")
    add("--peer-rerank", metavar="FILE", help="torchreid/utils/rerank.py of deep-person-reid: it too")
    add("--full", action="store_true", help="at MSMT17's size too, 11,659 + 82,161; 3.8 GB returned")
    add = command("search", measure_search, "gallery.top_k beside reading and multiplying, in a file of 4.1 GB")
    add("--size", type=int, default=1_000_000, help="rows of the gallery (default: 1000000)")
    return parser


def main(argv=None):
    flags = vars(build_parser().parse_args(argv))
    try:
        device = train.pick_device(flags.pop("device"))
        flags.pop("run")(device, **flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(hardware(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
