"""Tests of tools/benchmark/deployment.py: every format is measured beside PyTorch.

python -m pytest tests/tools/benchmark/test_deployment.py
"""

import re
import time

import pytest
import torch

import models
from tools.benchmark import __main__ as command
from tools.benchmark import deployment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def light_checkpoint(tmp_path_factory):
    path, options = tmp_path_factory.mktemp("deploy") / "best.pth", {"input_size": (64, 32)}
    torch.manual_seed(0)
    model = models.build_model("squeezenet1_1", 3, **options)
    torch.save({"arch": "squeezenet1_1", "num_ids": 3, "options": options, "model": model.state_dict()}, path)
    return path


def test_deploy_measures_every_format_and_draws(light_checkpoint, tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(deployment, "start_up", lambda form, *_: begun.append(form) or 1.5)
    monkeypatch.setattr(deployment, "compile_side", lambda extractor, images, seconds: extractor)
    flags = ["deploy", "--ckpt", str(light_checkpoint), "--batches", "1", "3", "--rounds", "2", "--device", "cpu"]
    assert command.main([*flags, "--out", str(tmp_path / "deploy.png")]) == 0
    out = capsys.readouterr().out
    names = ["eager", "TorchScript", "pt2", "ONNX fp32", "ONNX fp16", "ONNX int8"]
    for name in names:
        assert f"  {name:12}    1.50 s, a file of " in out
    found = re.findall(r"^  (.{12}) cosine ([\d.]+) to eager", out, re.MULTILINE)
    cosines = {name.strip(): float(cosine) for name, cosine in found}
    assert list(cosines) == ["eager", "compiled", *names[1:]]
    assert min(cosines.values()) > 0.98 and cosines["ONNX fp32"] > 0.99999
    tables = out.partition("batch 1, 2 rounds")[2].split("batch 3, 2 rounds")
    for table in tables:
        rows = [line[2:32].strip() for line in table.splitlines() if " x " in line]
        assert rows == list(cosines) and table.count("p99") - table.count("(p99") == len(rows)
    assert (tmp_path / "deploy.png").stat().st_size > 10_000
    assert sorted(begun) == ["checkpoint", "onnx", "onnx", "onnx", "pt2", "torchscript"]


def test_deploy_beside_the_plain_network(monkeypatch, tmp_path, capsys):
    """HA-CNN has one more side; no file is written here, that takes long."""
    model = models.build_model("hacnn", 3).eval()
    monkeypatch.setattr(models, "load_checkpoint", lambda path: (model, {"arch": "hacnn", "num_ids": 3, "options": {}}))
    monkeypatch.setattr(deployment, "write_files", lambda *_: {})
    monkeypatch.setattr(deployment, "start_up", lambda *_: 1.5)
    (tmp_path / "best.pth").write_bytes(b"weights")
    found = deployment.measure_deployment(CPU, tmp_path / "best.pth", [2], rounds=2, compile_limit=0)
    assert list(found) == [2] and list(found[2]) == ["plain", "eager"]
    assert all(len(run.times) == 2 and run.seconds <= deployment.p99(run) for run in found[2].values())


def test_start_up_runs_a_new_process_to_its_first_image(light_checkpoint, tmp_path):
    assert 0.1 < deployment.start_up("checkpoint", light_checkpoint, (1, 3, 64, 32))
    with pytest.raises(deployment.subprocess.CalledProcessError):
        deployment.start_up("onnx", tmp_path / "missing.onnx", (1, 3, 64, 32))


def test_compiling_ends_at_its_limit():
    with pytest.raises(TimeoutError, match="this took longer than 1 s"):
        with deployment.time_limit(1, "this"):
            time.sleep(5)
    with deployment.time_limit(1, "this"):
        pass
    time.sleep(1.2)  # no alarm is left behind
