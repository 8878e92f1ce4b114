"""What all subjects measure with: calls that take turns, the memory that they add, one table, the hardware."""

import contextlib
import ctypes
import math
import platform
import threading
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch


def told_by(path, key):
    """What a file of Linux's /proc says about a key; None where there is neither."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def hardware(device):
    """One line: chip, versions, date."""
    chip = f"{told_by('/proc/cpuinfo', 'model name') or platform.processor()}, {torch.get_num_threads()} threads"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else chip
    return f"{chip}; torch {torch.__version__}, Python {platform.python_version()}; {date.today()}"


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(functions, device, rounds, pause=0.0):
    """[seconds of each round, ...] of each function; pause: seconds between two calls."""
    seconds = [[] for _ in functions]
    for _ in range(rounds):
        for function, record in zip(functions, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            record.append(time.perf_counter() - start)
            time.sleep(pause)
    return seconds


def medians(functions, device, rounds=5, warm_up=1):
    """Seconds per call of each function: the median of `rounds`, taken in turns, after `warm_up` calls of each."""
    take_turns(functions, device, warm_up)
    return [float(np.median(record)) for record in take_turns(functions, device, rounds)]


def anonymous_memory():
    """Bytes in memory that are of no file; NaN where /proc does not tell."""
    told = told_by("/proc/self/status", "RssAnon")  # "1234 kB"
    return int(told.split()[0]) * 1024 if told else math.nan


class Run(NamedTuple):
    result: object  # of the first call
    times: list  # seconds of each round
    anonymous: float  # bytes that the first call added; NaN: not measured
    gpu: float

    @property
    def seconds(self):
        return float(np.median(self.times))


def watch(function, device):
    """The Run of one call."""
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be used again unseen
    samples, done = [anonymous_memory()], threading.Event()

    def sample():
        while not done.wait(0.005):
            samples.append(anonymous_memory())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        gpu_before = torch.cuda.memory_allocated(device)
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        start = time.perf_counter()
        result = function()
        synchronize(device)
        seconds = time.perf_counter() - start
        samples.append(anonymous_memory())
    finally:
        done.set()
        sampler.join()
    gpu = torch.cuda.max_memory_allocated(device) - gpu_before if device.type == "cuda" else math.nan
    return Run(result, [seconds], max(samples) - samples[0], gpu)


def per_second(count, unit="images"):
    """A remark for compare: how many of what a call handles that makes in a second."""
    return lambda run, first: f"{count / run.seconds:.1f} {unit}/s"


def compare(device, functions, once=(), rounds=5, pause=0.0, remark=lambda run, first: ""):
    """Calls functions by name in turns, prints a table of medians, and returns {name: Run}.

    Ratios are to the first function. once: names of those that are called once only. remark(run, first run): what is
    said of it. A first call of each is watched for its memory, and not timed where others follow.
    """
    runs = {name: watch(function, device) for name, function in functions.items()}
    again = {name: function for name, function in functions.items() if name not in once}
    for name, times in zip(again, take_turns(again.values(), device, rounds, pause), strict=True):
        runs[name] = runs[name]._replace(times=times)
    first = next(iter(runs.values()))
    print(f"  {'':30} {'seconds':>11} {'ratio':>9} {'memory beyond the inputs':>28}")
    for name, run in runs.items():
        memory = "not measured" if math.isnan(run.anonymous) else f"{run.anonymous / 1e6:,.0f} MB"
        memory += "" if math.isnan(run.gpu) else f", GPU {run.gpu / 1e6:,.0f} MB"
        times = f"{run.seconds:9.3f} s {run.seconds / first.seconds:7.2f} x"
        print(f"  {name:30} {times} {memory:>28}  {remark(run, first)}".rstrip(), flush=True)
    return runs
