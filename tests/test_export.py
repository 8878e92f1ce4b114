"""Tests of export.py: every format lets a right file pass and catches planted bugs; what a file says about itself.

python -m pytest tests/test_export.py        (the whole way with HA-CNN is in test_train.py)
"""

import json
import lzma
import resource
import signal
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn

import export
import models
from exporting import gate
from images import read_image
from training.pixels import normalise


class Small(nn.Module):
    """A network of the contract, small enough to export in a second."""

    input_size, feature_dim, mean, std = (16, 8), 6, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)

    def __init__(self, num_ids=3, flaw=None):
        super().__init__()
        torch.manual_seed(0)
        self.flaw = flaw
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.bn.running_var.fill_(0.5)
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        if self.flaw == "channels":
            x = x.flip(1)
        if self.flaw == "mean":
            x = x + 0.05
        if self.flaw == "transposed":
            x = x.transpose(2, 3).reshape(x.shape)
        if self.flaw == "constant":
            x = x * 0
        if self.flaw == "nan":
            x = x / 0
        x = self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
        return x.half().float() if self.flaw == "half" else x


INFO = {"arch": "small", "options": {}, "dataset": "synthetic", "scores": {"rank1": 0.5}, "epoch": 1}
KINDS = [("fp32", False), ("fp16", False), ("fp32", True), ("fp16", True)]


def small(flaw=None):
    return Small(flaw=flaw).eval().requires_grad_(False)


def metadata_of(path, name):
    if name == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return json.loads(session.get_modelmeta().custom_metadata_map["reid"])
    files = {"reid.json": ""}
    if name == "pt2":
        torch.export.load(path, extra_files=files)
    else:
        torch.jit.load(path, _extra_files=files)
    return json.loads(files["reid.json"])


@pytest.mark.parametrize(("precision", "uint8"), KINDS)
@pytest.mark.parametrize("name", export.FORMATS)
def test_a_right_file_passes_and_describes_itself(tmp_path, name, precision, uint8):
    variant = export.Variant(precision, uint8)
    path = tmp_path / f"best{variant.suffix}{export.FORMATS[name].suffix}"
    line = export.export(small(), INFO, name, str(path), variant)
    assert "agrees with PyTorch" in line and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert b"Traceback" not in path.read_bytes() and b"site-packages" not in path.read_bytes()
    told = metadata_of(path, name)
    assert told["schema"] == 2 and told["input"] == ("bytes" if uint8 else "images") and told["precision"] == precision
    assert told["input_size"] == [16, 8] and told["mean"] == [0.4, 0.5, 0.6] and told["feature_dim"] == 6
    assert told["arch"] == "small" and told["scores"] == {"rank1": 0.5} and told["l2_normalised"]
    assert told["threshold"] is None and told["resize"] == "Pillow BILINEAR" and told["colour_order"] == "RGB"
    assert told["weights_sha256"] == export.hash_model(Small(), INFO)
    assert told["gate"]["cosine"] > 0.9999 and len(told["gate"]["trials"]) == 4 and told["gate"]["difference"] < 1e-2
    if name == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        shape = ["batch", "height", "width", 3] if uint8 else ["batch", 3, 16, 8]
        assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [(told["input"], shape)]
        assert [(entry.name, entry.type) for entry in session.get_outputs()] == [("features", "tensor(float)")]
    images = gate.draw_patches(5, (20, 9))
    inputs = images if uint8 else gate.normalised(images, Small).numpy()
    features = export.FORMATS[name].load(path.read_bytes())[1](inputs)
    assert features.dtype == np.float32 and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


FLAWS = {
    "channels": "cosine of the worst image", "mean": "largest difference", "transposed": "cosine of the worst image",
    "constant": "same feature", "half": "largest difference", "nan": "cosine of the worst image nan",
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", export.FORMATS)
def test_planted_bugs_are_caught_and_the_file_is_removed(tmp_path, monkeypatch, name, flaw):
    form = export.FORMATS[name]
    path = tmp_path / f"best{form.suffix}"
    path.write_text("the file of an earlier export, which the new one was to replace")
    flawed = form._replace(build=lambda traced: form.build(export.trace(small(flaw))))
    monkeypatch.setitem(export.FORMATS, name, flawed)
    with pytest.raises(ValueError, match=FLAWS[flaw]):
        export.export(small(), INFO, name, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slip", [
    lambda graph, name: getattr(graph, name).data.add_(1e-3),
    lambda graph, name: getattr(graph, name).data.mul_(1.001),
])  # fmt: skip
@pytest.mark.parametrize("last", ["weight", "bias"])
def test_a_last_layer_off_by_a_thousandth_is_caught_in_fp16(tmp_path, last, slip):
    """Its rounding is as large: features alone do not show it."""
    variant = export.Variant("fp16")
    traced = export.trace(small(), variant)
    slip(traced.graph.get_submodule("model.fc"), last)
    with pytest.raises(ValueError, match=f"before it is rounded to fp16(.|\n)*model.fc.{last} is another weight"):
        export.export(small(), INFO, "torchscript", tmp_path / "best.pt", variant, traced=traced)
    traced = export.trace(small(), variant)
    slip(traced.exact.get_submodule("model.fc"), last)
    slip(traced.graph.get_submodule("model.fc"), last)
    with pytest.raises(ValueError, match="before it is rounded to fp16(.|\n)*largest difference"):
        export.export(small(), INFO, "torchscript", tmp_path / "best.pt", variant, traced=traced)


def test_an_onnx_file_has_the_oldest_ir_of_its_opset(tmp_path):
    """A runtime refuses a newer one whatever stands in the graph."""
    for variant in (export.FLOAT, export.Variant("fp16", True)):
        export.export(small(), INFO, "onnx", tmp_path / "best.onnx", variant)
        written = onnx.load(tmp_path / "best.onnx")
        assert written.ir_version == 8 and [(o.domain, o.version) for o in written.opset_import] == [("", 18)]


def say(monkeypatch, name, form, wrong):
    """Has files of a format say wrong things."""
    lying = form._replace(pack=lambda program, told: form.pack(program, told | wrong))
    monkeypatch.setitem(export.FORMATS, name, lying)


LIES = {
    "mean": [0.5] * 3, "std": [0.2, 0.2, 0.21], "input_size": [8, 16], "colour_order": "BGR", "feature_dim": 7,
    "input": "bytes", "precision": "fp16", "weights_sha256": "0", "resize": "bicubic", "schema": 9, "arch": "large",
    "scores": {"rank1": 0.6}, "l2_normalised": False,
}  # fmt: skip


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_that_says_wrong_things_of_itself_is_caught(tmp_path, monkeypatch, name):
    form, model = export.FORMATS[name], small()
    monkeypatch.setattr(export, "hash_model", lambda *_: "a hash")
    traced = export.trace(model)
    program = form.build(traced)
    built = form._replace(build=lambda _: program)
    for key, value in LIES.items():
        say(monkeypatch, name, built, {key: value})
        with pytest.raises(ValueError, match=f"the file says {key} ") as caught:
            export.export(model, INFO, name, tmp_path / f"best{form.suffix}", traced=traced)
        felt = {"mean": "cosine of the worst", "std": "largest difference", "input_size": "batch 1: "}
        assert felt.get(key, "") in str(caught.value)  # its features are those of inputs made as it says
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", export.FORMATS)
def test_the_file_with_the_report_is_looked_at_too(tmp_path, monkeypatch, name):
    form = export.FORMATS[name]
    other = form.build(export.trace(small("channels")))
    late = form._replace(pack=lambda program, told: form.pack(other if told["gate"] else program, told))
    monkeypatch.setitem(export.FORMATS, name, late)
    with pytest.raises(ValueError, match="batch 1: cosine of the worst image"):
        export.export(small(), INFO, name, tmp_path / f"best{form.suffix}")
    wrong = {"std": [1, 1, 1]}
    late = form._replace(pack=lambda program, told: form.pack(program, told | (wrong if told["gate"] else {})))
    monkeypatch.setitem(export.FORMATS, name, late)
    with pytest.raises(ValueError, match="the file says std"):
        export.export(small(), INFO, name, tmp_path / f"best{form.suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", export.FORMATS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_otherwise_leaves_the_earlier_file(tmp_path, monkeypatch, name, stop):
    form = export.FORMATS[name]
    path = tmp_path / f"best{form.suffix}"
    path.write_text("the file of an earlier export")

    def fail(*_):
        raise stop

    for where in ("build", "pack", "load"):
        monkeypatch.setitem(export.FORMATS, name, form._replace(**{where: fail}))
        with pytest.raises(type(stop)):
            export.export(small(), INFO, name, path)
        assert [p.read_text() for p in tmp_path.iterdir()] == ["the file of an earlier export"]


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_threshold_is_kept_while_the_network_is_the_same(tmp_path, name):
    form = export.FORMATS[name]
    path, traced = tmp_path / f"best{form.suffix}", export.trace(small())
    assert "its threshold" not in export.export(small(), INFO, name, path, traced=traced)
    calibrated = {"similarity": 0.5, "fmr": 0.001, "fnmr": 0.2}
    path.write_bytes(form.pack(form.build(traced), form.load(path.read_bytes())[0] | {"threshold": calibrated}))
    assert "its threshold is kept" in export.export(small(), INFO, name, path, traced=traced)
    assert metadata_of(path, name)["threshold"] == calibrated
    other = small()
    other.fc.bias[0] += 1
    assert "threshold was of another network and is gone" in export.export(other, INFO, name, path)
    assert metadata_of(path, name)["threshold"] is None


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_of_fixed_batch_is_caught(tmp_path, monkeypatch, name):
    def build(traced):
        graph = traced.graph.graph
        for node in list(graph.nodes):  # what a trace leaves of a size done wrong
            if node.op == "output":
                with graph.inserting_before(node):
                    fixed = graph.call_function(torch.ops.aten.reshape.default, (node.args[0][0], [2, 6]))
                node.args = ((fixed,),)
        traced.graph.recompile()
        return form.build(traced._replace(axes=({},)))

    form = export.FORMATS[name]
    monkeypatch.setitem(export.FORMATS, name, form._replace(build=build))
    with pytest.raises(ValueError, match="batch 1: does not run(.|\n)*batch 7: does not run"):
        export.export(small(), INFO, name, tmp_path / f"best{form.suffix}")


@pytest.mark.parametrize("flaw", ["columns first", "bgr", "nearest"])
def test_a_flawed_resize_in_the_graph_is_caught(tmp_path, monkeypatch, flaw):
    def forward(self, images):
        if flaw == "nearest":
            rows = torch.arange(16) * images.shape[1] // 16
            columns = torch.arange(8) * images.shape[2] // 8
            return images.permute(0, 3, 1, 2).float()[:, :, rows][:, :, :, columns]
        images = images.flip(3) if flaw == "bgr" else images.transpose(1, 2)
        return resize(self, images)

    resize = export.Resize.forward
    monkeypatch.setattr(export.Resize, "forward", forward)
    with pytest.raises(ValueError, match="cosine of the worst image"):
        export.export(small(), INFO, "torchscript", tmp_path / "best.pt", export.Variant(uint8=True))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_every_image_the_same_feature_fails_although_it_agrees(tmp_path):
    with pytest.raises(ValueError, match="different images give the same feature"):
        export.export(small("constant"), INFO, "torchscript", tmp_path / "best.pt")


def test_uint8_input_meets_the_preprocessing_of_training(tmp_path):
    """The whole preprocessing, from files of several sizes: read_image and normalise."""
    model = models.build_model("osnet_x0_25", 3, input_size=(64, 32)).eval().requires_grad_(False)
    path = tmp_path / "best.pt"
    export.export(model, {"arch": "osnet_x0_25", "options": {}}, "torchscript", path, export.Variant(uint8=True))
    run = export.load_torchscript(path.read_bytes())[1]
    for seed, size in enumerate([(16, 33), (32, 64), (31, 70), (64, 128), (101, 203), (200, 90)]):  # width, height
        file = draw(tmp_path / f"{seed}.jpg", seed, size)
        with Image.open(file) as image:
            ours = run(np.asarray(image.convert("RGB"))[None])
        pixels = torch.from_numpy(read_image(file, model.input_size).copy()).permute(2, 0, 1).unsqueeze(0)
        with torch.inference_mode():
            theirs = export.Extractor(model)(normalise(pixels, model.mean, model.std)).numpy()
        assert gate.agreement(ours, theirs)[0] >= 0.9999


# Tracklets ------------------------------------------------------------------------------------------------------------


def tracklet_model(pooling):
    model = models.VideoModel(small(), pooling)
    if pooling == "attention":
        nn.init.normal_(model.attention[2].weight)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("name", "pooling"), [(n, p) for n in export.FORMATS for p in models.POOLING])
def test_tracklets_are_one_graph(tmp_path, name, pooling):
    path, model = tmp_path / f"best{export.FORMATS[name].suffix}", tracklet_model(pooling)
    export.export(model, INFO, name, path)
    assert metadata_of(path, name)["input"] == "clips"
    if name == "onnx":
        inputs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()
        assert [(i.name, i.shape) for i in inputs] == [("clips", ["batch", "frames", 3, 16, 8]),
                                                       ("mask", ["batch", "frames"])]  # fmt: skip
        assert {node.op_type for node in onnx.load(path).graph.node} <= export.NODES  # none that leaves a GPU
    frames = gate.normalised(gate.draw_patches(15, (16, 8)), Small).unflatten(0, (3, 5)).numpy()
    mask = np.float32([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    garbage = np.where(mask[..., None, None, None] == 0, np.float32(np.nan), frames)
    run = export.FORMATS[name].load(path.read_bytes())[1]
    found = run(garbage, mask)
    for row, kept in enumerate(mask == 1):
        alone = run(frames[row : row + 1, kept], np.ones((1, kept.sum()), np.float32))
        assert np.abs(found[row] - alone[0]).max() < 1e-6
    assert np.abs(found[0] - run(frames, np.ones_like(mask))[0]).max() > 1e-3  # the masked ones would have counted
    mask[1] = 0  # as where a batch is filled up
    for content in (frames, np.where(mask[..., None, None, None] == 0, np.float32(np.nan), frames)):
        filled = run(content, mask)
        assert not filled[1].any() and np.abs(filled[[0, 2]] - found[[0, 2]]).max() < 1e-6


@pytest.mark.parametrize("pooling", models.POOLING)
def test_half_precision_gives_zeros_for_a_tracklet_of_which_no_frame_counts(pooling):
    traced = export.trace(tracklet_model(pooling), export.Variant("fp16"))
    found = traced.graph(torch.ones(2, 3, 3, 16, 8), torch.tensor([[0.0, 0, 0], [1, 0, 1]]))
    assert not found[0].any() and found[1].norm().item() == pytest.approx(1, abs=1e-2)


def test_a_tracklet_graph_that_looks_at_masked_frames_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(models.VideoModel, "pool_frames", lambda self, features, mask: features.nanmean(dim=1))
    traced = export.trace(tracklet_model("avg"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cosine of the worst image"):
        export.export(tracklet_model("avg"), INFO, "torchscript", tmp_path / "best.pt", traced=traced)


def test_tracklets_of_a_file_that_says_a_wrong_mean_are_caught(tmp_path, monkeypatch):
    say(monkeypatch, "torchscript", export.FORMATS["torchscript"], {"mean": [0.6, 0.5, 0.4]})
    with pytest.raises(ValueError, match="the file says mean(.|\n)*cosine of the worst image"):
        export.export(tracklet_model("avg"), INFO, "torchscript", tmp_path / "best.pt")


def test_tracklets_of_bytes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--uint8-input is for networks for images"):
        export.export(tracklet_model("avg"), INFO, "onnx", tmp_path / "a", export.Variant(uint8=True))


# HA-CNN's graph -------------------------------------------------------------------------------------------------------


def test_hacnn_consists_of_nodes_that_run_anywhere():
    """Of the variant with the most kinds of nodes; test_train.py looks at those of the plain one."""
    model = models.build_model("hacnn", 3).eval().requires_grad_(False)
    program = export.build_onnx(export.trace(model, export.Variant("fp16", True)))
    kinds = {node.op_type for node in program.graph.node}
    assert kinds <= export.NODES and not kinds & {"Resize", "GridSample", "BatchNormalization", "Split"}
    assert export.check_nodes(program, model) == ""
    program.graph.node.append(onnx.helper.make_node("GridSample", ["a", "b"], ["c"]))
    with pytest.raises(ValueError, match="HA-CNN has nodes that are not to be in it: 1 GridSample"):
        export.check_nodes(program, model)
    assert export.check_nodes(program, small()) == "; nodes to look at on a GPU: 1 GridSample"


def test_nodes_are_looked_at_in_each_export(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "HACNN", Small)
    monkeypatch.setattr(export, "NODES", export.NODES - {"Conv"})
    with pytest.raises(ValueError, match="HA-CNN has nodes that are not to be in it: 1 Conv"):
        export.export(small(), INFO, "onnx", tmp_path / "best.onnx")
    assert list(tmp_path.iterdir()) == []


# The command ----------------------------------------------------------------------------------------------------------


def test_hash_follows_all_that_features_follow_from():
    model = Small()
    before = export.hash_model(model, INFO)
    assert before == export.hash_model(Small(), INFO) == export.hash_model(Small(), INFO | {"epoch": 2})
    hashes = {before, export.hash_model(model, INFO | {"options": {"align_corners": True}})}
    for name, value in (("input_size", (8, 16)), ("mean", (0.5, 0.5, 0.5)), ("std", (0.3, 0.2, 0.2))):
        other = Small()
        setattr(other, name, value)
        hashes.add(export.hash_model(other, INFO))
    model.conv.bias.data[0] += 1
    assert len(hashes | {export.hash_model(model, INFO)}) == 6


def test_a_checkpoint_of_an_earlier_version_gives_the_features_it_gave(tmp_path):
    """HA-CNN, as train.py wrote it in November 2026; its weights repeat a pattern, so that they take little room."""
    path, before = tmp_path / "best.pth", Path(__file__).parent / "fixtures" / "checkpoint_2026_11"
    path.write_bytes(lzma.decompress(before.with_suffix(".pth.xz").read_bytes()))
    model, info = models.load_checkpoint(path)
    assert info["arch"] == "hacnn" and info["pids"] == [2, 7, 10] and info["args"]["dataset"] == ["market1501"]
    images = torch.linspace(-2, 2, 2 * 3 * 160 * 64).sin().mul(3).sin().view(2, 3, 160, 64)
    images[1] = images[1].flip(1) * images[1]
    with torch.inference_mode():
        found = export.Extractor(model)(images).numpy()
    assert np.abs(found - np.load(before.with_suffix(".npz"))["features"]).max() < 1e-6
    # thresholds calibrated for files of that checkpoint hold on
    assert export.hash_model(model, info) == "f9ad17334a8ad05fcd7b9591172029274d15b9e3fb4816d8bd8fa3e428b682a0"


def test_options_that_a_checkpoint_does_not_have_are_refused(tmp_path, capsys):
    model = models.build_model("osnet_x0_25", 3, input_size=(64, 32))
    content = {"arch": "osnet_x0_25", "num_ids": 3, "options": {"input_size": (64, 32)}, "model": model.state_dict()}
    torch.save(content, tmp_path / "best.pth")
    flags = ["--ckpt", str(tmp_path / "best.pth"), "--format", "torchscript", "--options"]
    assert export.main([*flags, "input_size=128,64"]) == 1
    assert "was trained with input_size=(64, 32)" in capsys.readouterr().err
    assert export.main([*flags, "input_size=64,32"]) == 0


@pytest.mark.parametrize(
    ("content", "flags", "code", "fragment"),
    [
        (None, [], 1, "no checkpoint at"),
        ("text", [], 1, "not a checkpoint"),
        ("text", ["--format", "onx"], 2, "onnx"),
        ("text", ["--options", "align_corners"], 2, "learn_region=False"),
        ("text", ["--uint8-inputs"], 2, "there is no flag --uint8-inputs (did you mean --uint8-input?)"),
        ("text", ["--zzz"], 2, "there is no flag --zzz\n"),
        ("text", ["--half", "--int8"], 2, "give one of them"),
        ("text", ["--int8"], 2, "--int8 needs --calibrate FOLDER"),
        ("text", ["--int8", "--calibrate", ".", "--format", "pt2"], 2, "--int8 is for --format onnx alone"),
        ("text", ["--calibrate", "."], 2, "--calibrate is for --int8 alone"),
        ("text", ["--persons", "-1"], 2, "--persons is a number"),
        ("text", ["--persons", "5"], 2, "--persons says how many of a data set's: give --dataset"),
        ("text", ["--budget", "1"], 2, "--budget is what --int8 may lose"),
        ("foreign", [], 1, "give --arch"),
        ("foreign", ["--arch", "hacnn", "--images", "nowhere"], 1, "there is no folder nowhere"),
        ("foreign", ["--arch", "hacnn", "--dataset", "markt"], 1, "markt"),
    ],
)
def test_bad_input(tmp_path, capsys, content, flags, code, fragment):
    path = tmp_path / "best.pth"
    if content == "text":
        path.write_text("text")
    if content == "foreign":
        torch.save(models.build_model("hacnn", 3).state_dict(), path)
    try:
        got = export.main(["--ckpt", str(path), *flags])
    except SystemExit as stop:
        got = stop.code
    assert got == code and fragment in capsys.readouterr().err
    assert not list(tmp_path.glob("*best.*onnx*"))


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, capfd, monkeypatch, name):
    class Large(Small):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(6, 200_000)

        def forward(self, x):
            return super().forward(x) + self.wide(x.mean((2, 3)).repeat(1, 2))[:, :6]

    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (Large().eval(), INFO))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        code = export.main(["--ckpt", str(tmp_path / "best.pth"), "--format", name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    told = capfd.readouterr().err
    assert code == 1 and "File too large; make room there, or give another folder with --out" in told
    assert f"cannot write {tmp_path}" in told
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_files_after_the_variant(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (small(), INFO))
    for number in range(3):
        draw(tmp_path / "crops" / f"{number}.jpg", number)
    flags = ["--ckpt", str(tmp_path / "best.pth"), "--images", str(tmp_path / "crops")]
    assert export.main([*flags, "--half", "--uint8-input", "--format", "torchscript", "pt2"]) == 0
    names = sorted(path.name for path in tmp_path.glob("best*"))
    assert names == ["best.half.uint8-input.pt2", "best.half.uint8-input.torchscript.pt"]
    assert "of crops (3 images) and drawn patches" in capsys.readouterr().out
    for path in tmp_path.glob("best*"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_where_files_go_is_tried_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (small(), INFO))
    monkeypatch.setattr(export, "gather", lambda *_, **__: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("no folder")
    assert export.main(["--ckpt", "best.pth", "--out", str(tmp_path / "file" / "sub")]) == 1
    assert "give another folder with --out" in capsys.readouterr().err


def test_control_c_ends_without_a_traceback(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load_checkpoint", lambda *_, **__: (small(), INFO))
    monkeypatch.setattr(export, "trace", stop)
    assert export.main(["--ckpt", str(tmp_path / "best.pth")]) == 130
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "split"), [("viper", 3), ("prid", 0)])
def test_the_split_is_the_checkpoints_where_it_learnt_from_that_set(monkeypatch, name, split):
    ranked = lambda *_, split, **__: types.SimpleNamespace(frames=(), split=split)  # noqa: E731
    monkeypatch.setattr(gate, "rank_dataset", ranked)
    info = {"args": {"split": 3, "dataset": ["viper"]}}
    assert export.gather(small(), info, dataset=name).ranking.split == split
