"""Tests of tools/benchmark/training.py: the share of an epoch that is not the network, and training on devices.

python -m pytest tests/tools/benchmark/test_training.py
"""

import re
import subprocess
import time

import pytest
import torch

from tools.benchmark import __main__ as command
from tools.benchmark import training
from training import pixels


def test_the_stopwatch_counts_what_the_network_takes_and_undoes_itself(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))  # each look at it a second later
    model, criterion = torch.nn.Linear(2, 1), torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    backward, step = torch.Tensor.backward, optimizer.step
    methods = [(model, "forward"), (criterion, "forward"), (torch.Tensor, "backward"), (optimizer, "step")]
    with training.stopwatch(*methods) as seconds:
        criterion(model(torch.ones(3, 2)), torch.ones(3, 1)).backward()
        optimizer.step()
        sum(torch.ones(3))  # no part of it
    assert seconds == [1, 1, 1, 1]  # forward, loss, backward, step: one second each
    assert torch.Tensor.backward is backward and optimizer.step == step
    model(torch.ones(3, 2))
    assert len(seconds) == 4


def test_training_tells_the_share_that_is_not_the_network(drawn_root, capsys, monkeypatch):
    augment, late, clock = pixels.augment, [0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(late))

    def slow(*given):
        late.append(60)  # seconds
        return augment(*given)

    flags = ["training", "--dataset", "synthetic", "--root", str(drawn_root), "--arch", "osnet_x0_25"]
    shares = []
    for function in (augment, slow):
        monkeypatch.setattr(pixels, "augment", function)
        assert command.main([*flags, "--batch-size", "4", "--steps", "2", "--amp", "off", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert "an epoch of synthetic, 8 images, osnet_x0_25, batch 4, off" in printed
        shares.append(float(re.search(r"([\d.]+) % of it outside", printed)[1]))
    assert shares[0] < 40 < shares[1]


def test_devices_trains_scores_and_saves_alone_and_by_torchrun(capsys):
    assert command.main(["devices", "--device", "cpu", "--arch", "osnet_x0_25"]) == 0
    printed = capsys.readouterr().out
    assert "one process, 1 devices: mAP of the file differs by 0.0e+00" in printed
    assert "torchrun, 1 processes, 1 devices: mAP of" in printed and printed.count("finished:") == 2


@pytest.mark.parametrize(
    ("names", "found", "code", "told"),
    [
        (["fc.weight"], 0.4, 0, "differs by 1.0e-01"),
        (["module.fc.weight"], 0.5, 0, "names with module.: .*fc"),
        (["fc.weight"], 0.5, 1, "train.py did not work:\nwhat went wrong"),
    ],
)
def test_devices_notices_a_file_that_is_not_what_was_trained(monkeypatch, names, found, code, told):
    done = subprocess.CompletedProcess([], code, "finished:", "what went wrong")
    monkeypatch.setattr(training.subprocess, "run", lambda *_, **__: done)
    for module, name in ((training.synthetic, "write_dataset"), (training.data, "load_dataset")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    scores = {"scores": {"synthetic": {"mAP": 0.5}}}
    monkeypatch.setattr(training.models, "load_checkpoint", lambda path, device: (None, scores))
    monkeypatch.setattr(training.models, "read_checkpoint", lambda path: {"model": dict.fromkeys(names)})
    monkeypatch.setattr(training.evaluate, "score", lambda model, splits: {"mAP": found})
    with pytest.raises(ValueError, match=told):
        training.measure_devices(torch.device("cpu"))
