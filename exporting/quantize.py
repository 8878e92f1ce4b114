"""An ONNX model in 8 bits: static, a scale per channel of the weights, sensitive layers left in float.

    model, kept = quantize(model, batches, run, judge)

onnxruntime's tools put QuantizeLinear and DequantizeLinear around the nodes that are named here, with ranges seen on
the calibration images: uint8 activations, int8 weights. Runtimes make one integer kernel of such a group.

Which nodes: convolutions and layers with stored weights, and what merely passes their maps on (ReLU, pooling,
concatenation, sums of two such maps). All else stays in float: attention, positions, averages, norms cost little time
and much accuracy. An average pooling is written as a convolution, for onnxruntime's integer one takes nine times as
long as the float one.

Which layers of those: all, where `judge` has nothing to say against it. Else each layer is quantised alone, and by how
far that moves the features they are ordered; the first 1, 2, 4, ... go back to float until judge is content, and then
as few as possible, by bisection.

For processors that multiply bytes (VNNI: Intel from 2019 on, AMD from Zen 4 on; Arm with dot products). Older x86 sums
pairs of products in 16 bits, which saturate: measure there before use. GPUs need TensorRT to gain.
"""

import bisect
import contextlib
import copy
import functools
import io
import logging
import tempfile
import types
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from images import progress

LAYERS = ("Conv", "Gemm", "MatMul")  # with stored weights
PASSING = ("Relu", "Clip", "MaxPool", "Concat", "Add")
AVERAGE = ":average"  # ends the name of a convolution that was an average pooling
OPTIONS = {"ActivationSymmetric": False, "WeightSymmetric": True}


def averages_as_convolutions(model):
    """A copy with each average over a window (zeros outside counted) as a convolution that gives the same."""
    model = copy.deepcopy(model)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type != "AveragePool" or node.input[0] not in shapes:
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        leaves_out = any(given.get("pads", ())) and not given.get("count_include_pad")
        window, channels = given["kernel_shape"], shapes[node.input[0]][1]
        if leaves_out or given.get("ceil_mode") or given.get("auto_pad", b"NOTSET") != b"NOTSET" or not channels:
            continue
        kept = [a for a in node.attribute if a.name in ("kernel_shape", "pads", "strides", "dilations")]
        weights = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
        name = node.name + AVERAGE
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, f"{name}.weight"))
        inputs = [node.input[0], f"{name}.weight"]
        conv = onnx.helper.make_node("Conv", inputs, node.output, name=name, group=channels)
        conv.attribute.extend(kept)
        node.CopyFrom(conv)
    return model


def layers_of(model):
    """Names of the nodes that multiply by stored weights, in their order, without those that were average poolings."""
    stored, nodes = {tensor.name for tensor in model.graph.initializer}, model.graph.node
    return [n.name for n in nodes if n.op_type in LAYERS and n.input[1] in stored and not n.name.endswith(AVERAGE)]


def nodes_with(model, layers):
    """Names of these layers and of the nodes that pass on what comes from them alone."""
    stored = {tensor.name for tensor in model.graph.initializer}
    layers, maps, names = set(layers), set(), []
    for node in model.graph.node:
        entering = [name for name in node.input if name and name not in stored]
        passes = node.op_type in PASSING or node.name.endswith(AVERAGE)
        if node.name in layers or passes and entering and maps.issuperset(entering):
            names.append(node.name)
            maps.update(node.output)
    return names


def find_ranges(model, batches):
    """Least and largest value of each tensor over the batches (dictionaries of inputs by name)."""
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        plain, augmented = (str(Path(folder, name)) for name in ("model.onnx", "augmented.onnx"))
        onnx.save(model, plain)
        calibrator = create_calibrator(plain, [*LAYERS, *PASSING], augmented)
        calibrator.collect_data(types.SimpleNamespace(get_next=functools.partial(next, iter(batches), None)))
        return calibrator.compute_data()


def insert(model, ranges, layers):
    """A copy of the model with these layers, and what passes their maps on, in 8 bits."""
    names = nodes_with(model, layers)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # the tools advise steps that are done already
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tool = QDQQuantizer(
                copy.deepcopy(model), True, False, QuantType.QInt8, QuantType.QUInt8, ranges, names, [],
                [*LAYERS, *PASSING], OPTIONS,
            )  # fmt: skip
            tool.quantize_model()
    finally:
        logging.root.setLevel(level)
    return tool.model.model


def order_by_sensitivity(model, ranges, layers, batches, run):
    """The layers, first those that move the features most where they alone are in 8 bits."""
    exact = [run(model)(*batch.values()) for batch in batches]
    moved = {}
    with progress("sensitivity of layers", len(layers), "layer") as bar:
        for layer in layers:
            compute = run(insert(model, ranges, [layer]))
            cosines = [(compute(*b.values()) * e).sum(axis=1) for b, e in zip(batches, exact, strict=True)]
            moved[layer] = 1 - float(np.concatenate(cosines).mean())
            bar.update()
    return sorted(layers, key=lambda layer: -moved[layer])


def quantize(model, batches, run, judge):
    """(model in 8 bits, names of the layers that stayed in float). ValueError where nothing in 8 bits will do.

    batches: dictionaries from the names of the inputs to arrays, what the ranges are measured on; run: model ->
    function from inputs to L2-normalised features; judge: such a function -> what speaks against it, as sentences.
    """
    model = averages_as_convolutions(model)
    ranges, layers = find_ranges(model, batches), layers_of(model)
    best = insert(model, ranges, layers)
    if not judge(run(best)):
        return best, []
    order = order_by_sensitivity(model, ranges, layers, batches[: max(1, len(batches) // 4)], run)

    @functools.cache
    def attempt(count):
        candidate = insert(model, ranges, [layer for layer in layers if layer not in order[:count]])
        return candidate, judge(run(candidate))

    most = len(layers) - 1
    counts = [*(2**n for n in range(most.bit_length()) if 2**n < most), most]
    step = next((step for step, count in enumerate(counts) if not attempt(count)[1]), None)
    if step is None:
        raise ValueError("no layer can be in 8 bits: " + "; ".join(attempt(most)[1]) + "; raise --budget, or calibrate "
                         "on more images like those to come (--calibrate)")  # fmt: skip
    too_few = counts[step - 1] if step else 0
    fewest = bisect.bisect_left(range(counts[step]), True, lo=too_few + 1, key=lambda count: not attempt(count)[1])
    return attempt(fewest)[0], order[:fewest]
