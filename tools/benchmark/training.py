"""An epoch of train.py on a data set, and training on several devices."""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import data
import models
import train
from tools import synthetic
from tools.benchmark.measure import medians, synchronize
from training import evaluate
from training.pixels import build_train_set


def run_epoch(training, epoch=0, step=0):
    """Trains an epoch from `step` on, and prints nothing; the number of images."""
    state = train.fresh_state() | {"epoch": epoch, "step": step}
    with contextlib.redirect_stdout(io.StringIO()):
        train.train_epoch(training, state)
    return state["totals"]["images"]


@contextlib.contextmanager
def stopwatch(*methods):
    """A list that fills with the seconds of each call of these (owner, name); for the CPU, where nothing runs ahead."""
    seconds = []

    def timed(function):
        def call(*given, **named):
            start = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                seconds.append(time.perf_counter() - start)

        return call

    with contextlib.ExitStack() as patches:
        for owner, name in methods:
            patches.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        yield seconds


def repeat_step(training, images, labels):
    """A function that takes a training step on the same batch each time."""

    def step():
        logits, features = training.runner.train()(images)
        loss, _ = training.criterion(logits, features, labels)
        training.optimizers[0].zero_grad(set_to_none=True)
        training.scaler.scale(loss).backward()
        train.update_weights(training, {})

    return step


def measure_training(device, dataset, root, arch="hacnn", batch_size=64, amp="auto", compiled=None, steps=0):
    """Images/s of an epoch of train.py and the share of it that is spent outside forward, backward and step."""
    amp = amp if amp != "auto" else "bf16" if train.has_fast_bf16(device) else "off"
    sets, gpu = evaluate.Sets(root), device.type == "cuda"
    items = evaluate.load_set(dataset, sets, evaluate=False).train
    items = items[:: max(1, len(items) // (steps * batch_size))][: steps * batch_size] if steps else items
    torch.manual_seed(0)
    model = models.build_model(arch, len(data.relabel(items)[1])).to(device, memory_format=torch.channels_last)
    pixels = evaluate.pixels_of([item.paths[0] for item in items], model, f"{dataset}-benchmark", sets)
    train_set = build_train_set(items, pixels, batch_size=batch_size)
    training = train.prepare(model, train_set, amp=amp)
    if compiled:
        model.compile(mode=compiled)
    few = train_set._replace(labels=train_set.labels[: (4 if gpu else 1) * batch_size])
    run_epoch(training._replace(train_set=few))  # warm up: compilers, algorithms, caches
    synchronize(device)
    methods = [(optimizer, "step") for optimizer in training.optimizers]
    methods += [(training.runner, "forward"), (training.criterion, "forward"), (torch.Tensor, "backward")]
    with stopwatch(*methods if not gpu else ()) as inside:
        start = time.perf_counter()
        count = run_epoch(training, 1)
        synchronize(device)
        seconds = time.perf_counter() - start
    step = repeat_step(training, *train_set.load(np.arange(batch_size), 0, device, model.mean, model.std))
    if gpu:
        inside = [count / batch_size * medians([step], device, rounds=50, warm_up=5)[0]]
    print(f"an epoch of {dataset}, {count} images, {arch}, batch {batch_size}, {amp}"
          f"{f', compiled ({compiled})' * bool(compiled)}: {seconds:.1f} s, {count / seconds:.1f} images/s, "
          f"{100 * max(0, 1 - sum(inside) / seconds):.1f} % of it outside forward, backward and step")  # fmt: skip
    if gpu:
        flops = 3 * 2 * sum(models.count_macs(models.build_model(arch, 1)))  # backward: about twice the forward pass
        compare_with_peaks(device, flops * count / seconds)
        profile_step(step, device)


def compare_with_peaks(device, reached, size=8192):
    """Prints what share of a GPU the FLOP/s that were reached are: of its tensor cores, not of what a table says."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source, target = torch.empty(2, 2 * 10**9, dtype=torch.uint8, device=device)
    product, copy = medians([lambda: a @ b, lambda: target.copy_(source)], device, rounds=20, warm_up=3)
    peak = 2 * size**3 / product
    print(f"  {reached / 1e12:.1f} TFLOP/s, {100 * reached / peak:.1f} % of a product's {peak / 1e12:.0f}; "
          f"a copy moves {2e-12 * source.numel() / copy:.2f} TB/s; memory at most "
          f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")  # fmt: skip


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
    """Trains, scores and saves by train.py alone, which takes all GPUs by nn.DataParallel, then by torchrun with a
    process on each. ValueError where the file does not score as the run said."""
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        sizes = {"num_train_ids": 4 * count, "num_test_ids": 2, "num_distractors": 2, "num_junk": 1}
        synthetic.write_dataset(Path(folder, "synthetic"), **sizes, processes=1)
        splits = data.load_dataset("synthetic", folder)
        flags = ["--dataset", "synthetic", "--root", folder, "--batch-size", str(8 * count), "--epochs", "1"]
        flags += ["--arch", arch, "--lr", "0.001", "--warmup-epochs", "0", "--loss", "xent", "triplet", "center"]
        flags += ["--device", device.type]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        sync = ["--sync-bn"] if device.type == "cuda" else []
        for name, before, after in (("one process", [], []), (f"torchrun, {count} processes", torchrun, sync)):
            command = [sys.executable, *before, "train.py", *flags, *after, "--out", f"{folder}/{name}"]
            done = subprocess.run(command, cwd=Path(train.__file__).parent, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{name}: train.py did not work:\n{done.stderr[-3000:]}")
            path = f"{folder}/{name}/best.pth"
            model, info = models.load_checkpoint(path, device)
            gap = abs(evaluate.score(model, splits)["mAP"] - info["scores"]["synthetic"]["mAP"])
            prefixed = [key for key in models.read_checkpoint(path)["model"] if key.startswith("module.")]
            if gap > 1e-3 or prefixed:
                raise ValueError(f"{name}: mAP of the file differs by {gap:.1e}; names with module.: {prefixed[:3]}")
            print(f"{name}, {count} devices: mAP of the file differs by {gap:.1e}")
            print(*done.stdout.splitlines()[-6:], sep="\n  ")
