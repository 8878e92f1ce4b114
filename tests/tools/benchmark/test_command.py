"""Tests of tools/benchmark/__main__.py: sub-commands, their flags, and what is told of a bad one.

python -m pytest tests/tools/benchmark/test_command.py
"""

import pytest
import torch

from tools.benchmark import __main__ as command

CPU = torch.device("cpu")


def test_commands_and_their_own_flags(monkeypatch, capsys):
    calls = []
    for name, module in (
        ("speed", command.speed), ("networks", command.networks), ("ranking", command.ranking),
        ("distractors", command.ranking), ("rerank", command.ranking), ("baselines", command.baselines),
    ):  # fmt: skip
        monkeypatch.setattr(module, f"measure_{name}", lambda *a, name=name, **o: calls.append((name, a, o)))
    lines = ("speed --amp bf16 --batch-size 8", "networks", "networks hacnn --batch-size 4 --compile resnet18 hacnn")
    lines += ("baselines --dataset synthetic", "distractors", "ranking --peer-rank a.py", "rerank --full")
    for line in lines:
        assert command.main([*line.split(), "--device", "cpu"]) == 0
    assert calls == [
        ("speed", (CPU,), {"amp": "bf16", "batch_size": 8}),
        ("networks", (CPU,), {"names": command.networks.LIGHT, "batch_size": None, "compiled": ()}),
        ("networks", (CPU,), {"names": ["hacnn"], "batch_size": 4, "compiled": ["resnet18", "hacnn"]}),
        ("baselines", (CPU,), {"dataset": "synthetic", "root": "data"}),
        ("distractors", (CPU,), {}), ("ranking", (CPU,), {"peer_rank": "a.py"}),
        ("rerank", (CPU,), {"peer_rerank": None, "full": True}),
    ]
    with pytest.raises(SystemExit):
        command.main(["speed", "--full"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys):
    assert command.main(["speed", "--device", "cuda"]) == 1
    assert "torch sees 0 GPUs" in capsys.readouterr().err
