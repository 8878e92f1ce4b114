"""A checkpoint in every format of export.py, beside PyTorch and the plain HA-CNN."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

import export
import models
import pictures
from exporting import gate
from images import list_images
from searching import extractor
from tools.benchmark.measure import compare
from tools.benchmark.speed import LoopedHACNN

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
        subprocess.run(command, cwd=Path(models.__file__).parent, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def load_onnx(path, device):
    """images, a tensor on the device -> features on the CPU, by what search.py calls; on a GPU images stay there."""
    if device.type != "cuda":
        served = extractor.Extractor(path, "cpu", threads=torch.get_num_threads())
        return lambda images: torch.from_numpy(served.call([images.numpy()]))
    session = extractor.open_session(path, "cuda")

    def run(images):
        images, binding = images.contiguous(), session.io_binding()
        binding.bind_input("images", "cuda", 0, np.float32, tuple(images.shape), images.data_ptr())
        binding.bind_output("features", "cuda", 0)
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
    """TimeoutError after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"{what} took longer than {seconds} s")

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


def write_files(model, info, folder, shown):
    """{name of a side: file}, each through the gate of export.py; int8 is calibrated on the pictures shown."""
    evidence = {"fp32": export.PATCHES, "fp16": export.PATCHES}
    evidence["int8"] = export.Evidence(shown, "pictures", None, shown)
    traced = {precision: export.trace(model, export.Variant(precision)) for precision in ("fp32", "fp16")}
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


def torch_sides(model, info, device, images, compile_limit):
    """{name: function of images} of what serves a network in PyTorch: plain, where it is HA-CNN, eager and compiled."""
    sides, eager = {}, export.Extractor(model).eval().to(device, memory_format=torch.channels_last)
    if isinstance(model, models.HACNN) and model.learn_region and not info["options"].get("align_corners"):
        plain = LoopedHACNN(info["num_ids"]).eval().to(device)
        plain.load_state_dict(model.state_dict())
        extract = export.Extractor(plain).eval()
        sides["plain"] = lambda images: extract(images.contiguous())  # it is not written for channels-last
    sides["eager"] = eager
    if compile_limit:
        try:
            begin = time.perf_counter()
            sides["compiled"] = compile_side(eager, images, compile_limit)
            print(f"torch.compile: {time.perf_counter() - begin:.0f} s", flush=True)
        except Exception as error:  # a compiler has exceptions of its own; the rest is measured all the same
            print(f"compiled: left out: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", flush=True)
    return sides


def p99(run):
    return float(np.percentile(run.times, 99))


@torch.inference_mode()
def measure_deployment(device, ckpt, batches=tuple(ROUNDS), rounds=None, compile_limit=600, calibrate=None, out=None):
    """Every way to serve a network side by side; {batch: {name of a side: Run}}."""
    model, info = models.load_checkpoint(ckpt)
    if isinstance(model, models.VideoModel):
        raise ValueError(f"{ckpt} is of a network for tracklets: deploy measures networks for images")
    shape = (1, 3, *model.requires_grad_(False).input_size)
    shown = gate.draw_patches(max(*batches, 32), model.input_size, seed=2)
    if calibrate:
        shown = gate.open_pictures(gate.spread(list_images(calibrate), export.CALIBRATION))
    with tempfile.TemporaryDirectory(prefix="reid-") as folder, torch.inference_mode(False):
        files = write_files(model, info, folder, shown)
        served = {name: load_side(FILES[name][0], path, device) for name, path in files.items()}
        print("start-up: a new process on the CPU up to its first image, libraries included")
        for name, path in {"eager": ckpt, **files}.items():
            seconds = start_up(FILES.get(name, ["checkpoint"])[0], path, shape)
            print(f"  {name:12} {seconds:7.2f} s, a file of {Path(path).stat().st_size / 1e6:.1f} MB")
    images = [shown[number % len(shown)] for number in range(max(batches))]
    images = gate.normalised(images, model).to(device)  # channels-last in memory, as training makes them
    sides = torch_sides(model, info, device, images, compile_limit) | served
    exact = sides["eager"](images[:8]).cpu()
    for name, run in sides.items():
        cosine = (run(images[:8]).cpu() * exact).sum(1).min().item()
        print(f"  {name:12} cosine {cosine:.6f} to eager, of the worst image")
    found = {}
    for batch in batches:
        count = rounds or ROUNDS.get(batch, 10)
        print(f"batch {batch}, {count} rounds: p50 (p99 of fewer than 100: near the slowest)")
        functions = {name: partial(run, images[:batch]) for name, run in sides.items()}
        found[batch] = compare(
            device, functions, rounds=count, pause=0.05,  # threads of onnxruntime look out for more work first
            remark=lambda run, first: f"p99 {p99(run):.3f} s, {batch / run.seconds:.1f} images/s",  # noqa: B023
        )  # fmt: skip
    if out:
        plot_deployment(found, info["arch"], out)
        print(f"{out}: the same as a picture")
    return found


def plot_deployment(found, title, path):
    """Images/s of each side by batch size, and p50 and p99 of the first."""
    first = min(found)
    with pictures.drawing(path, (12, 4.5), (3, 2)) as (left, right):
        for name, run in found[first].items():
            left.plot(list(map(str, found)), [batch / found[batch][name].seconds for batch in found], "o-", label=name)
            right.barh(name, 1e3 * run.seconds, xerr=[[0], [1e3 * (p99(run) - run.seconds)]])
        left.set(xlabel="batch", ylabel="images/s", ylim=(0, None), title=f"{title}: images per second")
        left.legend(fontsize="small", frameon=False)
        right.set(xlabel="ms", title=f"batch {first}: median, line up to p99")
        right.invert_yaxis()
