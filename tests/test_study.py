"""Tests of study.py: its table of experiments, running and going on, and what it tells of them.

python -m pytest tests/test_study.py
"""

import json
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
import data
import models
import study

TINY = ["--dataset", "synthetic", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--holdout", "2"]
RUN = "global-alone-0"  # half the network


def run(root, out, *names, more=TINY, flags=()):
    return study.main([*names, "--root", str(root), "--out", str(out), *flags, "--", *more])


@pytest.mark.parametrize("name", study.EXPERIMENTS)
def test_every_experiment_is_a_command_of_train(name):
    runs = study.commands([name], "data", [])
    assert list(runs) == [f"{name}-{seed}" for seed in study.EXPERIMENTS[name].seeds]
    args, _ = cli.parse(runs[f"{name}-0"])
    if not args.evaluate:  # its options are those of the network
        models.build_model(args.arch or "hacnn", 2, **args.options)
    assert args.seed == 0 and (args.holdout == 151) == (study.EXPERIMENTS[name].group in ("choose", "small"))


@pytest.mark.parametrize(("group", "base"), [("choose", "held-best"), ("small", "small-base")])
def test_experiments_of_a_group_differ_from_its_first_in_one_thing(group, base):
    def flags_of(name):
        return vars(cli.parse(study.commands([name], "data", [])[f"{name}-0"])[0])

    first, optimizer = flags_of(base), {"optim", "lr", "weight_decay"}  # a rate belongs to its optimizer
    for name in [name for name in study.choose([group]) if name != base]:
        changed = {key for key, value in flags_of(name).items() if value != first[key]} - {"command"}
        if "triplet" in name or "circle" in name:  # as they are used, behind a BNNeck
            changed.remove("options")
        assert len(changed) == 1 or changed == optimizer, name


def test_some_persons_alone_stand_in_a_folder_of_links(drawn_root, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "market1501").symlink_to(drawn_root / "synthetic")
    for _ in range(2):  # a second time nothing changes
        study.link_some_persons(tmp_path / "root", tmp_path, count=4)
    whole = data.read_dataset("market1501", tmp_path / "root")
    some = data.read_dataset("market1501", tmp_path / "small")
    names = [Path(item.paths[0]).name for item in whole.train if item.pid in {item.pid for item in some.train}]
    assert [Path(item.paths[0]).name for item in some.train] == names
    assert len({item.pid for item in some.train}) == 4 and len({item.pid for item in whole.train}) == 6
    assert [len(part) for part in some[1:]] == [len(part) for part in whole[1:]]


def test_names_and_groups():
    assert study.choose(["best"]) == ["best"]
    assert study.choose(["fast", "best"]) == ["best", "fast-30", "fast-60", "fast-90"]  # in the order of the table
    assert study.choose(["all"]) == list(study.EXPERIMENTS)
    told = "no experiment or group bset; groups: small, choose, .*best.*experiments: small-base, small-sgd"
    with pytest.raises(ValueError, match=told):
        study.choose(["best", "bset"])


def test_a_run_is_done_once_and_told(drawn_root, tmp_path, capsys):
    assert run(drawn_root, tmp_path, "global-alone") == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out
    weights = tmp_path / RUN / "last.pth"
    written = weights.stat().st_mtime_ns
    assert run(drawn_root, tmp_path, "global-alone") == 0 and weights.stat().st_mtime_ns == written
    assert "python train.py" not in capsys.readouterr().out

    assert study.main(["--out", str(tmp_path)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(study.EXPERIMENTS)
    assert "1 of 1 done" in lines["global-alone"] and "0 of 3 done" in lines["best"]

    assert study.main(["table", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("|")}
    scores = json.loads((tmp_path / RUN / "log.jsonl").read_text())["targets"]["synthetic"]
    assert f"| synthetic | {100 * scores['rank1']:.1f} | {100 * scores['mAP']:.1f} |" in rows["global-alone"]
    flags = json.loads((tmp_path / RUN / "study.json").read_text())["flags"]
    assert f"`{shlex.join(flags[:-2]).replace(' --seed 0', '')}" in rows["global-alone"]
    assert torch.__version__ in rows["global-alone"] and "not run yet" in rows["best"]
    assert "1 learning curves" in printed
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000

    assert run(drawn_root, tmp_path, "global-alone", more=[*TINY, "--lr", "0.1"]) == 1
    assert "was run with other flags" in capsys.readouterr().err


class Impatient(subprocess.Popen):
    """A process whose time is up as soon as it has saved something."""

    def wait(self, timeout=None):
        if timeout is None:
            return super().wait()
        weights = Path(self.args[self.args.index("--out") + 1] if "--out" in self.args else self.args[-1])
        weights = weights if weights.suffix else weights / "last.pth"
        before = weights.stat().st_mtime_ns if weights.exists() else 0
        while self.poll() is None and not (weights.exists() and weights.stat().st_mtime_ns > before):
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(self.args, timeout)


def test_time_is_up_and_the_same_command_goes_on(drawn_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study.subprocess, "Popen", Impatient)
    assert run(drawn_root, tmp_path, "global-alone", flags=["--minutes", "0"]) == 130
    assert "python train.py" not in capsys.readouterr().out  # not even begun
    long = [*TINY, "--epochs", "100000"]
    assert run(drawn_root, tmp_path, "global-alone", more=long, flags=["--minutes", "60"]) == 130
    assert "stopped, the same command goes on" in capsys.readouterr().out
    saved = models.read_checkpoint(tmp_path / RUN / "last.pth")
    assert saved["epoch"] + saved["step"] > 0
    assert run(drawn_root, tmp_path, "global-alone", more=long, flags=["--minutes", "60"]) == 130
    assert f"--resume {tmp_path}/{RUN}/last.pth" in capsys.readouterr().out
    again = models.read_checkpoint(tmp_path / RUN / "last.pth")
    assert (again["epoch"], again["step"]) > (saved["epoch"], saved["step"])
    parts = json.loads((tmp_path / RUN / "study.json").read_text())["parts"]
    assert len(parts) == 2 and all(part["seconds"] > 1 for part in parts)


def test_a_run_that_fails_is_told(drawn_root, tmp_path, capsys):
    assert run(drawn_root, tmp_path, "global-alone", more=[*TINY, "--batch-size", "1000"]) == 1
    printed = capsys.readouterr().out
    assert "failed, see" in printed and "--batch-size 1000 is more than" in printed


def test_averaged_weights_count_where_there_are_some(tmp_path):
    targets = {"market1501": {"rank1": 0.5}}
    (tmp_path / "log.jsonl").write_text(json.dumps({"epoch": 1, "targets": targets}) + "\n")
    assert study.scores_of(tmp_path) == targets
    both = {"epoch": 2, "targets": targets, "raw": targets, "averaged": {"market1501": {"rank1": 0.4}}}
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(json.dumps(both) + "\n")
    assert study.scores_of(tmp_path) == both["averaged"]


def test_mean_and_deviation_in_percent():
    assert study.spread([0.5]) == "50.0"
    assert study.spread([0.90, 0.92, 0.94]) == "92.0 ± 2.0"
