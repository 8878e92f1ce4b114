"""Tests of tools/gpu.py: every stage at toy length on the CPU, and what the runner does about time and failure.

python -m pytest tests/tools/test_gpu.py
"""

import contextlib
import json
import sys
import time

import pytest
import torch

import export
import train
from tools import gpu, study
from tools.benchmark import deployment

CPU = torch.device("cpu")


def run(out, *flags):
    return gpu.main(["--toy", "--out", str(out), *map(str, flags)])


def train_here(self, folder, flags, lock):
    """Study.start without a process of its own, which takes five seconds to begin."""
    began = time.monotonic()
    return train.main([*flags, "--out", str(folder)]), time.monotonic() - began


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stages would take the GPU")
def test_every_stage_at_toy_length(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deployment, "start_up", lambda *_: 1.5)  # these have tests of their own
    monkeypatch.setattr(gpu.training, "measure_devices", lambda device, arch: print(f"{arch} on {device}"))
    monkeypatch.setattr(study.Study, "start", train_here)
    monkeypatch.setattr(train, "until_interrupted", lambda: contextlib.nullcontext([]))  # signals are the main thread's
    monkeypatch.setattr(gpu, "VARIANTS", (export.FLOAT,))  # the others likewise, in tests/test_export.py
    monkeypatch.setattr(deployment, "write_files", lambda *_: {})
    told = {
        "correctness": ["osnet_x0_25 on cpu"],
        "best": ["1 of 1 runs are done"], "fast": ["3 of 3 runs are done"], "seeds": ["2 of 2 runs are done"],
        "training": ["images/s"], "ranking": ["ranking 20 x 100", "re-ranking 20 + 100", "training step, batch 4"],
        "parity": ["served.onnx on cpu: worst cosine"],
        "deployment": ["batch 2, 1 rounds", "search.py over the gallery: "],
        "adapt": ["1 of 1 runs are done"], "reference": ["1 of 1 runs are done"], "choose": ["1 of 1 runs are done"],
    }  # fmt: skip
    assert list(told) != list(gpu.STAGES) and sorted(told) == sorted(gpu.STAGES)
    for name in gpu.STAGES:
        code = run(tmp_path, "--only", name, "--here")
        printed = capsys.readouterr()
        assert code == 0 and all(text in printed.out for text in told[name]), (name, printed)
    assert (tmp_path / "deploy.png").stat().st_size > 10_000 and (tmp_path / "search" / "ranked.csv").is_file()


def script(text):
    """A command that ignores its flags."""
    return [sys.executable, "-c", text]


@pytest.fixture
def job(tmp_path):
    return gpu.Job(str(tmp_path / "data"), tmp_path, CPU, 1, gpu.TOY)


def test_the_next_stage_begins_and_the_same_command_goes_on(job, capsys):
    """best: done; ranking: fails at first; fast: stopped, and goes on."""
    ending = """
import pathlib, sys
name = sys.argv[sys.argv.index("--only") + 1]
place = pathlib.Path(sys.argv[1], name)
tried = place.exists()
place.touch()
print("try 2" if tried else "try 1", name)
sys.exit(0 if tried or name == "best" else 130 if name == "fast" else 7)
"""
    command, names = [*script(ending), str(job.out)], ["best", "ranking", "fast"]
    assert gpu.run_stages(names, job, time.monotonic() + 600, command) == 2
    out = capsys.readouterr().out
    assert "best: done" in out and "ranking: failed: try 1 ranking" in out and "fast: stopped, the same" in out
    summary = (job.out / "summary.md").read_text()
    assert "## best: done" in summary and "## ranking: FAILED: try 1 ranking" in summary
    assert "## fast: stopped" in summary and "## choose: not begun" in summary

    assert gpu.run_stages(names, job, time.monotonic() + 600, command) == 0
    out = capsys.readouterr().out
    assert "best:" not in out and out.index("fast: at most") < out.index("ranking: at most")  # what failed comes last
    status = json.loads((job.out / "fast.json").read_text())
    assert status["code"] == 0 and (job.out / "fast.txt").read_text().split("\n")[:2] == ["try 1 fast", "try 2 fast"]
    assert "FAILED" not in (job.out / "summary.md").read_text()


def test_time_is_up(job, capsys, monkeypatch):
    """A stage that does not end is stopped with its children; none begins behind the deadline."""
    monkeypatch.setattr(gpu, "GRACE", 1)
    hanging = "import subprocess, sys, time; subprocess.Popen(['sleep', '98765']); print('begun', flush=True); "
    began = time.monotonic()
    command = [*script(hanging + "time.sleep(60)"), "x"]
    assert gpu.run_stages(["best", "fast"], job, time.monotonic() + 1, command) == 2
    assert time.monotonic() - began < 20
    out = capsys.readouterr().out
    assert "best: stopped, the same command goes on" in out and "fast: no time is left" in out
    assert json.loads((job.out / "best.json").read_text())["code"] == gpu.STOPPED
    sleeping = [path for path in gpu.Path("/proc").glob("[0-9]*/cmdline") if b"98765" in path.read_bytes()]
    assert not sleeping


def test_children_are_this_command(tmp_path, capsys):
    """The command line that the runner gives its children, once for real, and what is refused."""
    assert run(tmp_path, "--only", "parity", "--minutes", "2") == 1  # nothing is trained
    assert "there is no trained network below" in capsys.readouterr().out
    assert "FAILED: error: ValueError: there is no trained" in (tmp_path / "summary.md").read_text()
    with pytest.raises(SystemExit):
        run(tmp_path, "--only", "bset")
    with pytest.raises(SystemExit):
        run(tmp_path, "--minutes", "0")
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(tmp_path)]) == 1 and "--toy tries all stages" in capsys.readouterr().err
