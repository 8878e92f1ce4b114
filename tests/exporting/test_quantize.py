"""Tests of quantize.py: which nodes are in 8 bits, what goes back to float, and that features stay near.

python -m pytest tests/exporting/test_quantize.py
"""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from conftest import draw
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import export
import models
from exporting import gate, quantize


def run(model):
    return export.load_onnx(model.SerializeToString())[1]


def stored(name, *shape, seed=0):
    values = 0.5 * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return numpy_helper.from_array(values, name)


def make_model(wild=False):
    """conv1 -> ReLU -> average -> conv2 -> ReLU, times the sigmoid of conv3, of the images -> mean -> features.

    wild: of the map between conv1 and conv2 one channel is huge and weighed by next to nothing: 8 bits cannot hold it.
    """
    weights = [stored("w1", 4, 3, 3, 3, seed=1), stored("w2", 8, 4, 1, 1, seed=2), stored("w3", 8, 3, 3, 3, seed=3)]
    if wild:
        values = numpy_helper.to_array(weights[0]).copy()
        values[0] *= 2000
        weights[0] = numpy_helper.from_array(values, "w1")
        values = numpy_helper.to_array(weights[1]).copy()
        values[:, 0] /= 2e5
        weights[1] = numpy_helper.from_array(values, "w2")
    axes = numpy_helper.from_array(np.int64([2, 3]), "axes")
    node, pads = helper.make_node, [1, 1, 1, 1]
    nodes = [
        node("Conv", ["images", "w1"], ["a"], "conv1", pads=pads), node("Relu", ["a"], ["b"], "relu1"),
        node("AveragePool", ["b"], ["c"], "pool", kernel_shape=[3, 3], pads=pads, count_include_pad=1),
        node("Conv", ["c", "w2"], ["d"], "conv2"), node("Relu", ["d"], ["e"], "relu2"),
        node("Conv", ["images", "w3"], ["f"], "conv3", pads=pads), node("Sigmoid", ["f"], ["g"], "gate"),
        node("Mul", ["e", "g"], ["h"], "times"), node("ReduceMean", ["h", "axes"], ["i"], "mean", keepdims=0),
        node("LpNormalization", ["i"], ["features"], "norm", axis=1, p=2),
    ]  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "test", [images], [features], [*weights, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def batches(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return [{"images": rng.standard_normal((8, 3, 8, 8), dtype=np.float32)} for _ in range(count)]


def worst_cosine(model, other):
    images = batches(1, seed=9)[0]["images"]
    return gate.agreement(run(model)(images), run(other)(images))[0]


def test_an_average_becomes_a_convolution_that_gives_the_same():
    model = make_model()
    changed = quantize.averages_as_convolutions(model)
    assert Counter(n.op_type for n in changed.graph.node)["AveragePool"] == 0
    assert Counter(n.op_type for n in model.graph.node)["AveragePool"] == 1  # a copy
    images = batches()[0]["images"]
    assert np.abs(run(changed)(images) - run(model)(images)).max() < 1e-6


def test_averages_that_do_not_count_zeros_stay():
    model = make_model()
    pool = next(n for n in model.graph.node if n.op_type == "AveragePool")
    del pool.attribute[[a.name for a in pool.attribute].index("count_include_pad")]
    changed = quantize.averages_as_convolutions(model)
    assert Counter(n.op_type for n in changed.graph.node)["AveragePool"] == 1


def test_layers_and_what_passes_their_maps_on():
    model = quantize.averages_as_convolutions(make_model())
    assert quantize.layers_of(model) == ["conv1", "conv2", "conv3"]
    average = "pool" + quantize.AVERAGE
    assert quantize.nodes_with(model, ["conv1", "conv2", "conv3"]) == [
        "conv1", "relu1", average, "conv2", "relu2", "conv3"
    ]  # fmt: skip  nothing of sigmoid, product, mean
    assert quantize.nodes_with(model, ["conv2"]) == ["conv2", "relu2"]


def test_all_is_quantised_where_nothing_speaks_against_it():
    model, looked = make_model(), []
    found, kept = quantize.quantize(model, batches(), run, lambda compute: looked.append(compute) or [])
    assert kept == [] and len(looked) == 1
    ints = [t for t in found.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert len(ints) == 4  # three layers and the average
    scales = {t.name: t.dims for t in found.graph.initializer if "w3" in t.name and "scale" in t.name}
    assert list(scales.values()) == [[8]]  # one per channel
    assert worst_cosine(found, model) > 0.999


def test_sensitive_layers_go_back_to_float_and_no_other():
    model = make_model(wild=True)
    images = batches(1, seed=5)[0]["images"]
    exact = run(model)(images)

    def judge(compute):
        cosine = gate.agreement(compute(images), exact)[0]
        return [] if cosine > 0.99 else [f"cosine {cosine}"]

    everything = quantize.averages_as_convolutions(model)
    everything = quantize.insert(everything, quantize.find_ranges(everything, batches()), ["conv1", "conv2", "conv3"])
    assert judge(run(everything))  # as a whole it will not do
    found, kept = quantize.quantize(model, batches(), run, judge)
    assert judge(run(found)) == [] and sorted(kept) == ["conv1", "conv2"]
    weights = {t.name for t in found.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4}
    assert weights == {"w3_quantized"}


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 12, 18, 19, 20])
def test_as_few_layers_as_possible_stay_in_float(monkeypatch, needed):
    names, looked = [f"layer{number}" for number in range(20)], []
    monkeypatch.setattr(quantize, "averages_as_convolutions", lambda model: model)
    monkeypatch.setattr(quantize, "find_ranges", lambda *_: None)
    monkeypatch.setattr(quantize, "layers_of", lambda _: names)
    monkeypatch.setattr(quantize, "insert", lambda model, ranges, layers: layers)
    monkeypatch.setattr(quantize, "order_by_sensitivity", lambda *_: names[::-1])

    def judge(layers):
        looked.append(len(layers))
        return [] if len(layers) <= 20 - needed else ["too bad"]

    if needed == 20:
        with pytest.raises(ValueError, match="no layer can be in 8 bits: too bad; raise --budget"):
            quantize.quantize(None, [None], lambda layers: layers, judge)
        return
    found, kept = quantize.quantize(None, [None], lambda layers: layers, judge)
    assert kept == names[::-1][:needed] and found == names[: 20 - needed]
    assert len(looked) <= 2 + 2 * needed.bit_length() and len(looked) == len(set(looked))


class Little(nn.Module):
    """A network of the contract."""

    input_size, feature_dim, mean, std = (16, 8), 16, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean((2, 3))


@pytest.mark.parametrize("more", [[], ["--uint8-input"], ["--dataset"]])
def test_the_command(tmp_path, capsys, monkeypatch, drawn_root, more):
    info = {"arch": "little", "options": {}}
    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (Little().eval(), info))
    for number in range(40):
        draw(tmp_path / "crops" / f"{number}.jpg", number, (8 + number % 3, 20))
    more = more + ["synthetic", "--root", str(drawn_root)] if more == ["--dataset"] else more
    flags = ["--ckpt", str(tmp_path / "best.pth"), "--int8", "--calibrate", str(tmp_path / "crops"), "--budget", "2"]
    assert export.main([*flags, *more]) == 0, capsys.readouterr().err
    (path,) = tmp_path.glob("best*")
    assert path.name == f"best.int8{'.uint8-input' * ('--uint8-input' in more)}.onnx"
    model = onnx.load(path)
    told = export.json.loads({p.key: p.value for p in model.metadata_props}["reid"])
    assert told["precision"] == "int8" and told["gate"]["calibration"] == 40 and told["gate"]["limits"]["mAP"] == 2
    assert ("mAP" in told["gate"]) == ("--dataset" in more) and ("stand_in" in told["gate"]) != ("--dataset" in more)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert ("no mAP measured" in capsys.readouterr().out) != ("--dataset" in more)


def command(tmp_path, count=40):
    for number in range(count):
        draw(tmp_path / "crops" / f"{number}.jpg", number, (8, 20))
    return ["--ckpt", str(tmp_path / "best.pth"), "--int8", "--calibrate", str(tmp_path / "crops"), "--budget", "2"]


def test_too_few_images_are_refused_before_the_work(tmp_path, capsys, monkeypatch):
    info = {"arch": "little", "options": {}}
    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (Little().eval(), info))
    monkeypatch.setattr(export, "trace", lambda *_: pytest.fail("work was begun"))
    assert export.main(command(tmp_path, 31)) == 1
    assert "31 images, too few to measure ranges on: 32 at least, 100 or more are better" in capsys.readouterr().err


def test_the_gate_looks_at_other_images_than_were_calibrated_on(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION", 32)
    command(tmp_path)
    evidence = export.gather(Little().eval(), {"arch": "little", "options": {}}, calibrate=tmp_path / "crops")
    seen, calibrated = ({picture.tobytes() for picture in part} for part in (evidence.pictures, evidence.calibration))
    assert len(seen) == 8 and len(calibrated) == 32 and not seen & calibrated
    assert evidence.source == "crops (8 images) and drawn patches"  # not where the folder lies


def evidence():
    pictures = gate.draw_patches(40, (20, 9), seed=5)
    return export.Evidence((), "patches", None, pictures, 100)


def test_a_slip_of_the_preprocessing_that_8_bits_would_hide_is_caught(tmp_path, monkeypatch):
    resize = export.Resize.forward
    monkeypatch.setattr(export.Resize, "forward", lambda self, images: resize(self, images) + 1)  # of 255
    path, info = tmp_path / "best.onnx", {"arch": "little", "options": {}}
    with pytest.raises(ValueError, match="does not agree with PyTorch before it is quantised"):
        export.export(Little().eval(), info, "onnx", path, export.Variant("int8", True), evidence())
    assert list(tmp_path.iterdir()) == []


def test_the_hash_follows_the_ranges_and_wrong_metadata_are_caught(tmp_path, monkeypatch):
    path, info, model = tmp_path / "best.onnx", {"arch": "little", "options": {}}, Little().eval()
    hashes = []
    for pictures in (evidence().calibration, evidence().calibration, evidence().calibration[::2] // 2):
        export.export(model, info, "onnx", path, export.Variant("int8"), evidence()._replace(calibration=pictures))
        hashes.append(export.load_onnx(path.read_bytes())[0]["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2] and export.hash_model(model, info) not in hashes
    form = export.FORMATS["onnx"]
    lying = form._replace(pack=lambda program, told: form.pack(program, told | {"precision": "fp32"}))
    monkeypatch.setitem(export.FORMATS, "onnx", lying)
    with pytest.raises(ValueError, match="the file says precision 'fp32', it is 'int8'"):
        export.export(model, info, "onnx", path, export.Variant("int8"), evidence())


def test_many_layers_in_float_are_told_of(tmp_path, monkeypatch):
    def quantise(program, *_):
        layers = quantize.layers_of(program)
        model = quantize.averages_as_convolutions(program)
        return quantize.insert(model, quantize.find_ranges(model, gate.feed(evidence().calibration, "images", Little)),
                               layers[1:]), layers[:1] * 2  # fmt: skip

    monkeypatch.setattr(quantize, "quantize", quantise)
    path, info = tmp_path / "best.onnx", {"arch": "little", "options": {}}
    said = export.export(Little().eval(), info, "onnx", path, export.Variant("int8"), evidence())
    assert "2 of 2 layers in float, MORE THAN HALF" in said
