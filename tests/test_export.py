"""Tests of export.py: the gate lets a right file pass and catches planted bugs; what the file says about itself.

python -m pytest tests/test_export.py        (the whole way with HA-CNN is in test_train.py)
"""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import export
import models


class Small(nn.Module):
    """A network of the contract, small enough to export in a second."""

    input_size, feature_dim, mean, std = (16, 8), 6, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)

    def __init__(self, num_ids=3, flaw=None):
        super().__init__()
        torch.manual_seed(0)
        self.flaw = flaw
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x):
        if self.flaw == "channels":
            x = x.flip(1)
        if self.flaw == "mean":
            x = x + 0.05
        if self.flaw == "transposed":
            x = x.transpose(2, 3).reshape(x.shape)
        if self.flaw == "constant":
            x = x * 0
        if self.flaw == "half":
            return self.bn(self.conv(x)).mean((2, 3)).half().float()
        if self.flaw == "nan":
            x = x / 0
        return self.bn(self.conv(x)).mean((2, 3))


INFO = {"arch": "small", "options": {}, "dataset": "synthetic", "scores": {"rank1": 0.5}, "epoch": 1}


@pytest.mark.parametrize("name", sorted(export.FORMATS))
def test_a_right_file_passes_and_describes_itself(tmp_path, name):
    path = tmp_path / f"best{export.FORMATS[name].suffix}"
    line = export.export(Small().eval(), INFO, name, path)
    assert "agrees with PyTorch" in line and [p.name for p in tmp_path.iterdir()] == [path.name]
    if name == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["reid"])
        assert session.get_inputs()[0].shape == ["batch", 3, 16, 8]
        assert b"Traceback" not in path.read_bytes() and b"site-packages" not in path.read_bytes()
    else:
        files = {"reid.json": ""}
        torch.jit.load(path, _extra_files=files)
        metadata = json.loads(files["reid.json"])
    assert metadata["input_size"] == [16, 8] and metadata["mean"] == [0.4, 0.5, 0.6] and metadata["feature_dim"] == 6
    assert metadata["arch"] == "small" and metadata["scores"] == {"rank1": 0.5} and metadata["l2_normalised"]
    assert metadata["weights_sha256"] == export.hash_weights(Small())
    features = export.FORMATS[name].run(path)(export.test_images(5, (16, 8), Small.mean, Small.std).numpy())
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "flaw", "fragment"),
    [
        ("onnx", "channels", "cosine of the worst image"),
        ("torchscript", "channels", "cosine of the worst image"),
        ("torchscript", "mean", "largest difference"),
        ("torchscript", "transposed", "cosine of the worst image"),
        ("torchscript", "constant", "same feature"),
        ("torchscript", "half", "largest difference"),
        ("torchscript", "nan", "cosine of the worst image nan"),
    ],
)
def test_planted_bugs_are_caught_and_the_file_is_removed(tmp_path, monkeypatch, name, flaw, fragment):
    path, form = tmp_path / "best", export.FORMATS[name]
    path.write_text("the file of an earlier export, which the new one was to replace")

    def write_flawed(extractor, *arguments):
        form.write(export.Extractor(Small(flaw=flaw)).eval(), *arguments)

    monkeypatch.setitem(export.FORMATS, name, form._replace(write=write_flawed))
    with pytest.raises(ValueError, match=fragment):
        export.export(Small().eval(), INFO, name, path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_every_image_the_same_feature_fails_although_it_agrees(tmp_path):
    with pytest.raises(ValueError, match="two different images give the same feature"):
        export.export(Small(flaw="constant").eval(), INFO, "torchscript", tmp_path / "best.pt")


def test_a_file_of_fixed_batch_is_caught(tmp_path, monkeypatch):
    class FixedBatch(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            features = nn.functional.normalize(self.model(images), dim=1)
            return features.reshape(2, 6)  # what a trace leaves of features.reshape(len(features), 6) done wrong

    form = export.FORMATS["torchscript"]
    flawed = form._replace(write=lambda extractor, *rest: form.write(FixedBatch(extractor.model).eval(), *rest))
    monkeypatch.setitem(export.FORMATS, "torchscript", flawed)
    with pytest.raises(ValueError, match="batch 1: does not run.*\n.*batch 7: does not run"):
        export.export(Small().eval(), INFO, "torchscript", tmp_path / "best.pt")


def test_limits_are_what_the_formats_promise():
    assert {(f.min_cosine, f.max_difference) for f in export.FORMATS.values()} == {(0.99999, 1e-5)}
    assert export.BATCHES == (1, 2, 7, 32)


def test_images_of_the_check_are_not_those_of_the_trace():
    traced = export.test_images(2, (16, 8), Small.mean, Small.std, seed=0)
    checked = export.test_images(sum(export.BATCHES), (16, 8), Small.mean, Small.std)
    assert (traced[:, None] - checked[None]).abs().amax((2, 3, 4)).min() > 0.1


def test_hash_follows_the_weights():
    model = Small()
    before = export.hash_weights(model)
    assert before == export.hash_weights(Small())
    model.conv.bias.data[0] += 1
    assert export.hash_weights(model) != before


@pytest.mark.parametrize(
    ("content", "flags", "code", "fragment"),
    [
        (None, [], 1, "no checkpoint at"),
        ("text", [], 1, "not a checkpoint"),
        ("text", ["--format", "onx"], 2, "onnx"),
        ("text", ["--options", "align_corners"], 2, "learn_region=False"),
        ("foreign", [], 1, "give --arch"),
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
