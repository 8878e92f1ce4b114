"""Turns a checkpoint into files that run without this code: ONNX and TorchScript feature extractors.

    python export.py --ckpt runs/hacnn-market1501/best.pth       # -> best.onnx, best.torchscript.pt beside it

| format | file | runs with |
|---|---|---|
| onnx | best.onnx | onnxruntime, onnxruntime-gpu; opset 18, dynamic batch |
| torchscript | best.torchscript.pt | torch.jit.load, libtorch; dynamic batch |

Input `images`: float32 (B, 3, H, W), RGB in 0..1, minus mean, divided by std. Output `features`: float32 (B, D),
L2-normalised, so a dot product is the cosine. What size, mean and std are stands in the file: one JSON document, in the
ONNX metadata under `reid`, in the TorchScript archive as `reid.json`; search.py reads it and asks for nothing.

Every file is loaded again and compared with PyTorch on images it was not traced with. A file that does not agree is
removed and the command fails.
"""

import argparse
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import loader
import models
import video

OPSET = 18  # the lowest that torch's exporter writes: the widest choice of runtimes
BATCHES = (1, 2, 7, 32)


class Extractor(nn.Module):
    """A model whose features are L2-normalised: (B, 3, H, W) -> (B, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return F.normalize(self.model(images), dim=1)


def hash_weights(model):
    """sha256 over names and bytes of all weights: the same network gives the same hash in every format."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe(model, info):
    """What a user of the exported file must know, as plain values."""
    return {
        "schema": 1,
        "arch": info["arch"],
        "options": info["options"],
        "input_size": list(model.input_size),
        "mean": list(model.mean),
        "std": list(model.std),
        "colour_order": "RGB",
        "resize": "Pillow BILINEAR",
        "feature_dim": model.feature_dim,
        "l2_normalised": True,
        "distance": "cosine",
        "threshold": None,
        "dataset": info.get("dataset"),
        "epoch": info.get("epoch"),
        "scores": info.get("scores"),
        "weights_sha256": hash_weights(model),
        "torch": torch.__version__,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Formats: how a file is written, and how features come out of it again


def write_torchscript(extractor, example, path, metadata):
    """Traced and frozen, which folds batch norm. (optimize_for_inference belongs after loading: its files break.)"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is (deprecated|not supported).*")
        frozen = torch.jit.freeze(torch.jit.trace(extractor, example))
        torch.jit.save(frozen, str(path), _extra_files={"reid.json": json.dumps(metadata)})


def run_torchscript(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is (deprecated|not supported).*")
        module = torch.jit.load(str(path), map_location="cpu")
    return lambda images: module(torch.from_numpy(images)).numpy()


def write_onnx(extractor, example, path, metadata):
    import onnx  # here, so that TorchScript can be written where onnx is not installed

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            extractor, (example,), input_names=["images"], output_names=["features"], opset_version=OPSET, dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )
    graph = program.model_proto
    for node in graph.graph.node:
        node.ClearField("metadata_props")  # stack traces with the paths of the machine that exported
        node.ClearField("doc_string")
    for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph.graph]:
        value.ClearField("metadata_props")
    onnx.helper.set_model_props(graph, {"reid": json.dumps(metadata)})
    onnx.checker.check_model(graph, full_check=True)
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets.get("") != OPSET:  # the exporter goes on with another opset where it cannot convert
        raise ValueError(f"the exporter wrote opset {opsets.get('')} instead of {OPSET}")
    onnx.save(graph, str(path))


def run_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": images})[0]


class Format(NamedTuple):
    suffix: str
    write: Callable  # (extractor, example, path, metadata)
    run: Callable  # path -> function from images (B, 3, H, W) to features (B, D), numpy float32
    min_cosine: float  # of the worst image
    max_difference: float  # of any element


FORMATS = {
    "onnx": Format(".onnx", write_onnx, run_onnx, 0.99999, 1e-5),
    "torchscript": Format(".torchscript.pt", write_torchscript, run_torchscript, 0.99999, 1e-5),
}

# ----------------------------------------------------------------------------------------------------------------------
# The gate


def test_images(count, size, mean, std, seed=1):
    """Normalised float32 images (count, 3, H, W): patches of colour with noise on them, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    patches = F.interpolate(torch.rand(count, 3, 6, 3, generator=generator), size=size, mode="bilinear")
    noisy = (patches + 0.1 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)
    return loader.normalise(noisy, mean, std)


def compare(ours, reference, form):
    """Finding per check that fails, for features (B, D) of the exported file and of PyTorch."""
    if ours.shape != reference.shape or ours.dtype != np.float32:
        return [f"features are {ours.dtype} {ours.shape}, PyTorch gives float32 {reference.shape}"]
    cosine = float((ours * reference).sum(axis=1).min())
    difference = float(np.abs(ours - reference).max())
    findings = []
    if not cosine >= form.min_cosine:  # written so that NaN fails
        findings.append(f"cosine of the worst image {cosine:.7f}, at least {form.min_cosine} asked")
    if not difference <= form.max_difference:
        findings.append(f"largest difference {difference:.2e}, at most {form.max_difference:.0e} allowed")
    return findings


def closest_pair(features):
    """The smallest, over pairs of images, of the largest difference of their features."""
    apart = np.abs(features[:, None] - features[None]).max(axis=2)  # (B, B)
    return float(apart[~np.eye(len(features), dtype=bool)].min())


@torch.inference_mode()
def check(path, extractor, form):
    """Findings, empty where the file agrees with PyTorch on every batch size, and a line with what was measured."""
    model, run = extractor.model, form.run(path)
    images = test_images(sum(BATCHES), model.input_size, model.mean, model.std)
    findings, start, worst_cosine, worst_difference = [], 0, 1.0, 0.0
    for batch in BATCHES:
        part = images[start : start + batch]
        start += batch
        reference = extractor(part).numpy()
        try:
            ours = run(part.numpy())
        except Exception as error:  # each runtime has exceptions of its own; whatever they say is a finding
            findings.append(f"batch {batch}: does not run: {str(error).strip().splitlines()[0]}")
            continue
        findings += [f"batch {batch}: {finding}" for finding in compare(ours, reference, form)]
        if ours.shape == reference.shape:
            worst_cosine = min(worst_cosine, float((ours * reference).sum(axis=1).min()))
            worst_difference = max(worst_difference, float(np.abs(ours - reference).max()))
            if batch > 1 and closest_pair(ours) <= form.max_difference:
                findings.append(f"batch {batch}: two different images give the same feature")
    sizes = ", ".join(map(str, BATCHES))
    return findings, f"batches {sizes}: worst cosine {worst_cosine:.7f}, largest difference {worst_difference:.1e}"


def export(model, info, name, path):
    """Writes and checks one file; returns a line about it. ValueError, and no file, where it does not agree."""
    form, extractor = FORMATS[name], Extractor(model).eval()
    example = test_images(2, model.input_size, model.mean, model.std, seed=0)
    path.unlink(missing_ok=True)
    partial = path.with_name(path.name + ".partial")  # what has not passed never bears the final name
    try:
        form.write(extractor, example, partial, describe(model, info))
        findings, measured = check(partial, extractor, form)
        if findings:
            raise ValueError(f"{path} does not agree with PyTorch and was removed:\n  " + "\n  ".join(findings))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return f"{path}  {path.stat().st_size / 1e6:.1f} MB  agrees with PyTorch, {measured}"


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--ckpt", required=True, metavar="FILE", help="checkpoint of train.py; best.pth is the one to deploy")
    add("--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all of them")
    add("--out", metavar="FOLDER", help="where the files go (default: beside the checkpoint)")
    add("--arch", help="network, for checkpoints of other code that do not say; python models.py lists them")
    add("--options", nargs="+", type=models.parse_option, default=[], metavar="NAME=VALUE",
        help="its options, such as align_corners=True for weights of torch before 1.3")
    return parser


def main(argv=None):
    args = build_parser().parse_args(argv)
    try:
        model, info = models.load_checkpoint(args.ckpt, arch=args.arch, **dict(args.options))
        if isinstance(model, video.VideoModel):
            if model.pooling == "attention":
                raise ValueError(f"{args.ckpt} weighs frames by a learned attention, which is not exported yet")
            pool = {"avg": "average", "max": "maximum"}[model.pooling]
            print(f"{args.ckpt} is of a video network: features of frames are exported, take their {pool}")
            model = model.frames
        model.requires_grad_(False)
        out = Path(args.out or Path(args.ckpt).parent)
        out.mkdir(parents=True, exist_ok=True)
        for name in args.format:
            path = out / (Path(args.ckpt).name.removesuffix(".pth") + FORMATS[name].suffix)
            print(export(model, info, name, path))
    except ImportError as error:
        print(f"error: {error}: pip install -r requirements.txt, or give --format torchscript", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
