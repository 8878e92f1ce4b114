"""Turns a checkpoint into files that run without this code: ONNX, TorchScript and torch.export feature extractors.

    python export.py --ckpt runs/hacnn-market1501/best.pth       # -> best.onnx, best.torchscript.pt beside it
    python export.py --ckpt best.pth --format pt2                # -> best.pt2
    python export.py --ckpt best.pth --half                      # -> best.half.onnx, best.half.torchscript.pt
    python export.py --ckpt best.pth --uint8-input               # -> best.uint8-input.onnx, ...
    python export.py --ckpt best.pth --int8 --calibrate crops/ --dataset market1501      # -> best.int8.onnx

| format | file | runs with |
|---|---|---|
| onnx | best.onnx | onnxruntime and onnxruntime-gpu from 1.14 on; opset 18 |
| torchscript | best.torchscript.pt | torch.jit.load, libtorch |
| pt2 | best.pt2 | torch.export.load, AOTInductor |

Batch norms are folded and parallel convolutions merged (exporting/fuse.py); any batch size goes. Inputs and outputs by
name:

| input | shape | |
|---|---|---|
| images | float32 (B, 3, H, W) | RGB in 0..1, minus mean, divided by std |
| clips, mask | float32 (B, T, 3, H, W), (B, T) | networks for tracklets; the mask is 1 for frames that count |
| bytes | uint8 (B, h, w, 3) | --uint8-input: RGB, any size, one per call; resized and normalised inside |

Output `features`: float32 (B, D), L2-normalised, so a dot product is the cosine; zeros for a tracklet whose mask is all
0, as where a batch is filled up. What size, mean and std are stands in the file: one JSON document, in the ONNX
metadata under `reid`, in the archives of the others as `reid.json`; search.py reads it and asks for nothing.

--half: weights and activations in fp16, for GPUs. --int8: convolutions in whole numbers, for processors with VNNI and
the like (exporting/quantize.py). Both go with --uint8-input.

Every file is loaded again and compared with PyTorch (exporting/gate.py): on images it was not traced with, prepared as
the file says, in batches of 1, 2, 7 and 67, and with --dataset by rank-1, mAP and the ten nearest of each query. A file
that does not agree is removed and the command fails; until then one of an earlier export stays. What was measured
stands in the file.
"""

import argparse
import contextlib
import copy
import functools
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import types
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # before torch starts OpenMP, whose threads else spin against others on a busy machine
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing}: source .venv/bin/activate (make test makes it), or pip install -r requirements.txt")

import models
from exporting import fuse, gate
from exporting.resize import Resize
from images import Parser, replacing

OPSET = 18  # the lowest that torch's exporter writes: the widest choice of runtimes; its IR 8 is read from 1.14 on
CALIBRATION = 128  # images
FEWEST = 32  # images to calibrate on

# What HA-CNN's graph may consist of. All of it runs where the convolutions do: no Resize, no GridSample.
NODES = {
    "Conv", "MatMul", "Gemm", "AveragePool", "MaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2",
    "Relu", "Sigmoid", "Tanh", "Add", "Sub", "Mul", "Div", "Abs", "Floor", "Sqrt", "Clip", "Max", "Min", "Where",
    "Less", "GreaterOrEqual", "Equal", "And", "Not", "Cast", "Softmax", "IsNaN", "QuantizeLinear", "DequantizeLinear",
    "Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Gather", "Slice", "Expand", "Shape", "Range",
}  # fmt: skip


class Variant(NamedTuple):
    """What a file is to be, beside its format."""

    precision: str = "fp32"  # or fp16, int8
    uint8: bool = False  # input

    @property
    def suffix(self):
        return {"fp32": "", "fp16": ".half", "int8": ".int8"}[self.precision] + ".uint8-input" * self.uint8


FLOAT = Variant()


# ----------------------------------------------------------------------------------------------------------------------
# What is exported: a network with its input and its L2-normalised features


class Extractor(nn.Module):
    """images (B, 3, H, W), or clips (B, T, 3, H, W) and mask (B, T) for a video model -> features (B, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask=None):
        images = images.to(next(self.model.parameters()).dtype)
        features = self.model(images) if mask is None else self.model(images, mask)
        return F.normalize(features.float(), dim=1)


class BytesExtractor(Extractor):
    """uint8 (B, h, w, 3), RGB, any size -> features (B, D)."""

    def __init__(self, model):
        super().__init__(model)
        self.resize = Resize(model.input_size)
        # not buffers, which --half would round
        self.mean, self.std = (torch.tensor(x).mul(255).view(3, 1, 1) for x in (model.mean, model.std))

    def forward(self, images):
        return super().forward((self.resize(images) - self.mean) / self.std)


def kind_of(model, variant):
    """The name of the first input: images, clips or bytes. ValueError for tracklets of bytes."""
    if not isinstance(model, models.VideoModel):
        return "bytes" if variant.uint8 else "images"
    if variant.uint8:
        raise ValueError("--uint8-input is for networks for images; this one is for tracklets, its input is float32")
    return "clips"


class Traced(NamedTuple):
    """What the formats are built from."""

    graph: torch.fx.GraphModule  # fused
    examples: tuple[torch.Tensor, ...]  # inputs, in sizes that occur nowhere in the networks
    axes: tuple[dict, ...]  # of each input: number of an axis -> Dim, where it is free
    names: list[str]  # of the inputs
    exact: torch.fx.GraphModule | None = None  # of a graph in fp16: the one in fp32


FREE = {"images": ["batch"], "clips": ["batch", "frames"], "bytes": ["batch", "height", "width"]}  # the first axes


def trace(model, variant=FLOAT):
    """The fused graph of a network, for all formats of a variant."""
    kind, (height, width) = kind_of(model, variant), model.input_size
    size = (height + 7, width + 5) if kind == "bytes" else (height, width)
    pictures = gate.draw_patches(6 if kind == "clips" else 2, size, seed=0)
    (arrays,) = gate.inputs_of(pictures, kind, model, [3, 3])
    examples = tuple(map(torch.from_numpy, arrays))
    axes = ({number: torch.export.Dim(name) for number, name in enumerate(FREE[kind])},) * len(examples)
    module = (BytesExtractor if kind == "bytes" else Extractor)(model).eval()
    begin = functools.partial(fuse.trace, examples=examples, dynamic_shapes=axes)
    graph, exact = fuse.fuse(begin(module)), None
    if variant.precision == "fp16":
        graph, exact = fuse.halve(module, begin), graph
    return Traced(graph, examples, axes, [kind, "mask"][: len(examples)], exact)


def hash_model(model, info, program=None):
    """sha256 over what features follow from: the weights by name, the options, size, mean and std; the same in every
    format. program: an ONNX model in 8 bits, whose ranges count as well."""
    said = [info["arch"], info["options"], model.input_size, model.mean, model.std]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    if program is not None:
        digest.update(program.graph.SerializeToString(deterministic=True))
    return digest.hexdigest()


def describe(model, info, kind, precision, program=None):
    """What a user of the exported file must know, as plain values; program: as hash_model has it."""
    return {
        "schema": 2,
        "arch": info["arch"],
        "options": info["options"],
        "input": kind,
        "precision": precision,
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
        "weights_sha256": hash_model(model, info, program),
        "torch": torch.__version__,
        "gate": None,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Formats: how a graph becomes a program, how that becomes a file, and how features come out of the file again


@contextlib.contextmanager
def quiet():
    """Without the warnings of libraries about their own insides."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def build_torchscript(traced):
    """Scripted: a trace would fix sizes. Frozen. (optimize_for_inference belongs after loading: its files break.)"""
    graph = copy.deepcopy(traced.graph)
    graph.graph.set_codegen(torch.fx.graph.CodeGen())  # plain arguments and a plain tensor as the result
    first = next(iter(graph.graph.nodes))
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.target = torch.ops.aten.size.int
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
        if "device" in node.kwargs:  # where the input is, not where the graph was written
            with graph.graph.inserting_before(node):
                device = graph.graph.call_function(getattr, (first, "device"))
            node.kwargs = {**node.kwargs, "device": device}
        if node.op == "output" and isinstance(node.args[0], tuple | list):
            node.args = tuple(node.args[0])
    graph.recompile()
    return torch.jit.freeze(torch.jit.script(graph).eval())


@quiet()
def pack_by_torch(save, extra_files, program, metadata):
    """The bytes of an archive by torch's function `save`, whose argument of that name takes further files."""
    buffer = io.BytesIO()  # torch ends the process where it cannot write to a disk that is full
    save(program, buffer, **{extra_files: {"reid.json": json.dumps(metadata)}})
    return buffer.getvalue()


@quiet()
def load_torchscript(content):
    files = {"reid.json": ""}
    module = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=files)
    return json.loads(files["reid.json"]), gate.on_arrays(module)


@quiet()
def build_pt2(traced):
    program = torch.export.export(traced.graph, traced.examples, dynamic_shapes=traced.axes)
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)  # paths of the machine that exported
    return program


@quiet()
def load_pt2(content):
    files = {"reid.json": ""}
    program = torch.export.load(io.BytesIO(content), extra_files=files)
    return json.loads(files["reid.json"]), gate.on_arrays(program.module())


@quiet()
def build_onnx(traced):
    import onnx  # here, so that TorchScript can be written where onnx is not installed

    model = torch.onnx.export(
        traced.graph, traced.examples, dynamic_shapes=traced.axes, input_names=traced.names, output_names=["features"],
        opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
    ).model_proto  # fmt: skip
    graph = model.graph
    for part in [graph, *graph.node, *graph.value_info, *graph.input, *graph.output]:
        part.ClearField("metadata_props")  # stack traces with the paths of the machine that exported
        part.ClearField("doc_string")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)  # old runtimes refuse newer
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET:  # the exporter goes on with another opset where it cannot convert
        raise ValueError(f"the exporter wrote opset {opsets.get('')} instead of {OPSET}")
    return model


def pack_onnx(model, metadata):
    import onnx

    onnx.helper.set_model_props(model, {"reid": json.dumps(metadata)})
    return model.SerializeToString()


def load_onnx(content):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    run = lambda *inputs: session.run(["features"], dict(zip(names, inputs, strict=True)))[0]  # noqa: E731
    return json.loads(session.get_modelmeta().custom_metadata_map.get("reid", "null")), run


class Format(NamedTuple):
    suffix: str
    build: Callable  # Traced -> program in float
    pack: Callable  # (program, metadata) -> bytes of the file
    load: Callable  # bytes -> metadata, function from inputs to features (B, D), numpy


FORMATS = {
    "onnx": Format(".onnx", build_onnx, pack_onnx, load_onnx),
    "torchscript": Format(
        ".torchscript.pt", build_torchscript, functools.partial(pack_by_torch, torch.jit.save, "_extra_files"),
        load_torchscript,
    ),
    "pt2": Format(".pt2", build_pt2, functools.partial(pack_by_torch, torch.export.save, "extra_files"), load_pt2),
}
DEFAULT = ("onnx", "torchscript")


# ----------------------------------------------------------------------------------------------------------------------
# One file


class Evidence(NamedTuple):
    """What the gate looks at, and what int8 is calibrated on; pictures are bytes (h, w, 3) at their own sizes."""

    pictures: Sequence[np.ndarray] = ()
    source: str = "drawn patches"
    ranking: gate.Ranking | None = None
    calibration: Sequence[np.ndarray] = ()
    budget: float = gate.LIMITS["int8"].mAP  # points of mAP that int8 may lose


PATCHES = Evidence()


def check_nodes(program, model):
    """What is to be said about the nodes of an ONNX model; ValueError where HA-CNN's has others than NODES."""
    found = Counter(node.op_type for node in program.graph.node if node.op_type not in NODES)
    unusual = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    if unusual and isinstance(getattr(model, "frames", model), models.HACNN):
        raise ValueError(f"the graph of HA-CNN has nodes that are not to be in it: {unusual}")
    return f"; nodes to look at on a GPU: {unusual}" if unusual else ""


def to_int8(program, feed, look):
    """(ONNX program in 8 bits, what its report says, what is to be said); look: the `judge` of quantize.py."""
    from exporting import quantize  # here: it needs onnx

    layers = quantize.layers_of(program)
    program, kept = quantize.quantize(program, feed, lambda p: load_onnx(p.SerializeToString())[1], look)
    said = f"; {len(kept)} of {len(layers)} layers in float"
    if 2 * len(kept) > len(layers):
        said += ", MORE THAN HALF: little is gained; calibrate on more images, or raise --budget"
    count = sum(len(batch[next(iter(batch))]) for batch in feed)
    return program, {"calibration": count, "layers": len(layers), "in_float": kept}, said


def check_metadata(told, content, name, model, info, traced):
    """Findings about what the content of a file says of itself, against the network and the file's own graph."""
    precision, program = "fp32", None
    if any(value.dtype == torch.float16 for value in traced.graph.state_dict().values()):
        precision = "fp16"
    if name == "onnx":
        import onnx

        written = onnx.load_from_string(content)
        if any(node.op_type == "QuantizeLinear" for node in written.graph.node):
            precision, program = "int8", written
    right = describe(model, info, traced.names[0], precision, program)
    wrong = [key for key, value in right.items() if json.dumps(told.get(key)) != json.dumps(value)]
    return [f"the file says {key} {told.get(key)!r}, it is {right[key]!r}" for key in wrong
            if key not in ("threshold", "gate")]  # fmt: skip


def keep_threshold(form, path, metadata):
    """Puts the threshold of the file that is to be replaced into the metadata where it holds on; what is to be told."""
    try:
        earlier, _ = form.load(path.read_bytes())
        threshold, same = earlier["threshold"], earlier["weights_sha256"] == metadata["weights_sha256"]
    except Exception:  # there is none, or it is not ours: whatever its reader says of it
        return ""
    if threshold is None:
        return ""
    if same and earlier["precision"] == metadata["precision"]:
        metadata["threshold"] = threshold
        return "; its threshold is kept"
    return "; the earlier file's threshold was of another network and is gone: calibrate again"


def export(model, info, name, path, variant=FLOAT, evidence=PATCHES, traced=None):
    """Writes one file, once its content has been checked; returns a line about it. ValueError, and no file, where it
    does not agree; any other end leaves the file of an earlier export as it was.

    traced: trace(model, variant), where several formats are written.
    """
    form, kind, path = FORMATS[name], kind_of(model, variant), Path(path)
    quantised = variant.precision == "int8"
    if quantised and name != "onnx":
        raise ValueError(f"--int8 is for onnx alone, not {name}: give --format onnx, or leave --int8 out")
    limits = gate.limits_of(variant.precision, kind)
    make_trials = functools.partial(gate.make_trials, Extractor(model).eval(), kind, evidence.pictures)

    def refuse(findings, what=""):
        if findings:
            path.unlink(missing_ok=True)
            raise ValueError(f"{path} does not agree with PyTorch{what} and was removed:\n  " + "\n  ".join(findings))

    traced = traced or trace(model, variant)
    if traced.exact is not None:  # what fp16 rounds would hide a slip of the last layers
        found, _ = gate.check(gate.on_arrays(traced.exact), make_trials(), gate.limits_of("fp32", kind))
        found += [f"{name} is another weight" for name in fuse.other_weights(traced.graph, traced.exact)]
        refuse(found, " before it is rounded to fp16")
    program, how = form.build(traced), {"images": evidence.source}
    said = check_nodes(program, model) if name == "onnx" else ""
    if quantised:  # its limits would let slips of the preprocessing pass
        trials, limits = make_trials(), limits._replace(mAP=evidence.budget)
        found, _ = gate.check(load_onnx(form.pack(program, {}))[1], trials, gate.limits_of("fp32", kind))
        refuse(found, " before it is quantised")
        look = lambda run: gate.check(run, trials, limits, evidence.ranking)[0]  # noqa: E731
        program, told, more = to_int8(program, gate.feed(evidence.calibration, kind, model), look)
        how, said = how | told, said + more
    metadata = describe(model, info, kind, variant.precision, program if quantised else None)
    said += keep_threshold(form, path, metadata)
    content = form.pack(program, metadata)
    told, run = form.load(content)
    trials = make_trials(types.SimpleNamespace(**told))
    findings = check_metadata(told, content, name, model, info, traced)
    found, report = gate.check(run, trials, limits, None if findings else evidence.ranking)
    refuse(findings + found)
    # the same program once more, with the report: it is read again, too
    content = form.pack(program, metadata | {"gate": how | report | {"limits": limits._asdict()}})
    told, run = form.load(content)
    findings = check_metadata(told, content, name, model, info, traced)
    refuse(findings + gate.check(run, trials[:1], limits)[0])
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(f"cannot write {path} ({len(content) / 1e6:.1f} MB): {error.strerror}; make room there, or give "
                      "another folder with --out") from error  # fmt: skip
    sizes = ", ".join(map(str, gate.BATCHES))
    measured = f"batches {sizes} of {evidence.source}: {gate.describe(report)}"
    return f"{path}  {len(content) / 1e6:.1f} MB  agrees with PyTorch, {measured}{said}"


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def build_parser():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", required=True, metavar="FILE", help="checkpoint of train.py; best.pth is the one to deploy")
    add("--format", nargs="+", choices=FORMATS, help=f"default: {' '.join(DEFAULT)}; with --int8 onnx")
    add("--out", metavar="FOLDER", help="where the files go (default: beside the checkpoint)")
    add("--arch", help="network, for checkpoints of other code that do not say; python models.py lists them")
    add("--options", nargs="+", type=models.parse_option, default=[], metavar="NAME=VALUE",
        help="its options, such as align_corners=True for weights of torch before 1.3")
    add("--skip", nargs="+", default=[], metavar="LAYER", help="learned layers of such a file to do without")
    add("--half", action="store_true", help="weights and activations in fp16, the output in fp32: for GPUs")
    add("--int8", action="store_true", help="convolutions in 8 bits, for processors; needs --calibrate")
    add("--uint8-input", action="store_true", help="takes bytes of any size; resizes and normalises in the graph")
    add("--calibrate", metavar="FOLDER",
        help=f"images of persons like those to come, but not those of --dataset's test, for --int8: {FEWEST} at "
             f"least, 100 or more are better; {CALIBRATION} of them are taken evenly")
    add("--budget", type=float, metavar="POINTS",
        help="of mAP that --int8 may lose on --dataset (default: 0.5); the most sensitive layers stay in float for it")
    add("--images", metavar="FOLDER", help="images that the gate looks at (default: those of --dataset, else of "
        "--calibrate, else patches that are drawn)")
    add("--dataset", metavar="NAME", help="rank-1, mAP and nearest neighbours of the file are compared on it, too")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add("--persons", type=int, metavar="N",
        help="of the data set's test that are looked at, with their share of distractors; 0: all (default: 100)")
    return parser


def check_flags(parser, args):
    """Exits with a message where flags do not go together; fills in --format."""
    if args.half and args.int8:
        parser.error("--half and --int8: give one of them, a file has one precision")
    if args.int8 and not args.calibrate:
        parser.error("--int8 needs --calibrate FOLDER: a hundred images or more of the kind that will come")
    if args.calibrate and not args.int8:
        parser.error("--calibrate is for --int8 alone; --images FOLDER gives the gate images")
    if args.int8 and set(args.format or ["onnx"]) != {"onnx"}:
        parser.error("--int8 is for --format onnx alone: the other formats have no int8")
    if (args.persons or 0) < 0 or not 0 <= (args.budget or 0) < 100:
        parser.error("--persons is a number of persons, 0 for all; --budget points of mAP, such as 0.5")
    if args.persons is not None and not args.dataset:
        parser.error("--persons says how many of a data set's: give --dataset, or leave it out")
    if args.budget is not None and not args.int8:
        parser.error("--budget is what --int8 may lose: give --int8 too, or leave it out")
    args.format = args.format or (["onnx"] if args.int8 else list(DEFAULT))


def gather(
    model, info, variant=FLOAT, *, images=None, dataset=None, root="data", persons=100, calibrate=None,
    budget=PATCHES.budget,
):  # fmt: skip
    """The Evidence of folders with images and of a data set; what they are is told at the flags of these names."""
    kind, extractor, learnt = kind_of(model, variant), Extractor(model).eval(), info.get("args", {})
    paths, source, ranking, calibration = [], "drawn patches", None, []
    if calibrate:
        listed = gate.list_pictures(calibrate)
        if len(listed) < FEWEST:
            raise ValueError(f"--calibrate {calibrate} has {len(listed)} images, too few to measure ranges on: "
                             f"{FEWEST} at least, 100 or more are better")  # fmt: skip
        chosen = gate.spread(listed, CALIBRATION)
        calibration = gate.open_pictures(chosen)
        paths, source = sorted(set(listed) - set(chosen)) or listed, Path(calibrate).resolve().name
    if dataset:
        split = learnt.get("split") or 0 if dataset in learnt.get("dataset", []) else 0
        seq_len = learnt.get("seq_len", 8)
        ranking = gate.rank_dataset(extractor, kind, dataset, root, split=split, persons=persons, seq_len=seq_len)
        paths, source = sorted({path for frames in ranking.frames for path in frames}), dataset
    elif calibrate:
        ranking = gate.rank_pictures(extractor, kind, f"{len(chosen)} calibration images", chosen)
    if images:  # of a folder its name alone: a file does not tell where it was made
        paths, source = gate.list_pictures(images), Path(images).resolve().name
    needed = gate.pictures_needed(kind)
    pictures = gate.open_pictures(gate.spread(paths, needed))
    if 0 < len(pictures) < needed:
        source += f" ({len(pictures)} images) and drawn patches"
    return Evidence(pictures, source, ranking, calibration, budget)


def refuse_options(path, given, info):
    """ValueError where a checkpoint of train.py, which says its own options, is given others."""
    if "num_ids" not in info:  # of other code: they are what was given
        return
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    own = models.options_of(models.find_builder(info["arch"])) | info["options"]
    others = [(name, value) for name, value in given if name in own and plain(own[name]) != plain(value)]
    if others:
        asked, told = ", ".join(f"{n}={v}" for n, v in others), ", ".join(f"{n}={own[n]}" for n, _ in others)
        raise ValueError(f"--options {asked}: {path} was trained with {told}, and its features would be others than "
                         "those that were tested; leave --options out")  # fmt: skip


def open_folder(path):
    """The folder, made where it is missing; OSError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"cannot write into {path}: {error.strerror}; give another folder with --out") from error
    return path


def main(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    check_flags(parser, args)
    variant = Variant("fp16" if args.half else "int8" if args.int8 else "fp32", args.uint8_input)
    try:
        model, info = models.load_checkpoint(args.ckpt, arch=args.arch, skip=args.skip, **dict(args.options))
        refuse_options(args.ckpt, args.options, info)
        model.requires_grad_(False)
        out = open_folder(Path(args.out or Path(args.ckpt).parent))
        given = {name: getattr(args, name) for name in ("images", "dataset", "root", "persons", "calibrate", "budget")}
        evidence = gather(model, info, variant, **{key: value for key, value in given.items() if value is not None})
        traced = trace(model, variant)
        for name in args.format:
            path = out / (Path(args.ckpt).name.removesuffix(".pth") + variant.suffix + FORMATS[name].suffix)
            print(export(model, info, name, path, variant, evidence, traced), flush=True)
    except ImportError as error:
        print(f"error: {error}: pip install -r requirements.txt, or give --format torchscript", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: what is not named above is as it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
