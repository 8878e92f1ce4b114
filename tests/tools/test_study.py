"""Tests of tools/study.py: its table of experiments, running and going on, and what it tells of them.

python -m pytest tests/tools/test_study.py
"""

import json
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import images
import models
import train
from tools import study

TINY = ["--dataset", "synthetic", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--holdout", "2",
        "--arch", "osnet_x0_25", "--options", "input_size=64,32"]  # fmt: skip
RUN = "global-alone-0"


def run(root, out, *names, more=TINY, flags=()):
    return study.main([*names, "--root", str(root), "--out", str(out), *flags, "--", *more])


@pytest.mark.parametrize("name", study.EXPERIMENTS)
def test_every_experiment_is_a_command_of_train(name):
    runs = study.commands([name], "data", [])
    assert list(runs) == [f"{name}-{seed}" for seed in study.EXPERIMENTS[name].seeds]
    args, _ = train.parse(runs[f"{name}-0"])
    if not args.evaluate:  # its options are those of the network
        models.build_model(args.arch or "hacnn", 2, **args.options)
    assert args.seed == 0 and (args.holdout == 151) == (study.EXPERIMENTS[name].group == "choose")


def test_what_is_chosen_from_differs_from_the_recipe_in_one_thing():
    def flags_of(name):
        return vars(train.parse(study.commands([name], "data", [])[f"{name}-0"])[0])

    base, optimizer = flags_of("held-best"), {"optim", "lr", "weight_decay"}  # a rate belongs to its optimizer
    for name in [name for name, _ in study.choose(["choose"]) if name != "held-best"]:
        changed = {key for key, value in flags_of(name).items() if value != base[key]} - {"command"}
        if "triplet" in name or "circle" in name:  # as they are used, behind a BNNeck
            changed.remove("options")
        assert len(changed) == 1 or changed == optimizer, name


def test_names_and_groups():
    assert study.choose(["best"]) == [("best", 0), ("best", 1), ("best", 2)]
    assert study.choose(["best-2", "best-0"]) == [("best", 0), ("best", 2)]
    fast = [("fast-30", 0), ("fast-60", 0), ("fast-90", 0)]
    assert study.choose(["fast", "best-1"]) == [("best", 1), *fast]  # in the order of the table
    assert list(dict(study.choose(["all"]))) == list(study.EXPERIMENTS)
    told = "no experiment or group bset; groups: choose, .*best.*experiments: held-best, decay-0.01"
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
    told = f"| synthetic, 2 persons held out | {100 * scores['rank1']:.1f} | {100 * scores['mAP']:.1f} |"
    assert told in rows["global-alone"]
    flags = json.loads((tmp_path / RUN / "study.json").read_text())["flags"]
    assert f"`{shlex.join(flags[:-2]).replace(' --seed 0', '')}" in rows["global-alone"]
    assert torch.__version__ in rows["global-alone"] and "not run yet" in rows["best"]
    assert "1 learning curves" in printed
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000

    assert run(drawn_root, tmp_path, "global-alone", more=[*TINY, "--lr", "0.1"]) == 1
    assert "was run with other flags" in capsys.readouterr().err


def progress_of(weights):
    """(epochs, steps of the next one) that a checkpoint holds."""
    if not weights.exists():
        return 0, 0
    saved = models.read_checkpoint(weights)
    return saved["epoch"], saved["step"]


class Impatient(subprocess.Popen):
    """A process whose time is up as soon as it has saved more than there was."""

    def wait(self, timeout=None):
        if timeout is None:
            return super().wait()
        place = Path(self.args[self.args.index("--out") + 1] if "--out" in self.args else self.args[-1])
        weights = place if place.suffix else place / "last.pth"
        before = progress_of(weights)
        while self.poll() is None and progress_of(weights) <= before:
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(self.args, timeout)


def test_time_is_up_and_the_same_command_goes_on(drawn_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study.subprocess, "Popen", Impatient)
    assert run(drawn_root, tmp_path, "global-alone", flags=["--minutes", "0"]) == 130
    assert "python train.py" not in capsys.readouterr().out  # not even begun
    long, weights = [*TINY, "--epochs", "100000"], tmp_path / RUN / "last.pth"
    assert run(drawn_root, tmp_path, "global-alone", more=long, flags=["--minutes", "60"]) == 130
    assert "stopped, the same command goes on" in capsys.readouterr().out
    saved = progress_of(weights)
    assert saved > (0, 0)
    assert run(drawn_root, tmp_path, "global-alone", more=long, flags=["--minutes", "60"]) == 130
    assert f"--resume {weights}" in capsys.readouterr().out
    assert progress_of(weights) > saved
    parts = json.loads((tmp_path / RUN / "study.json").read_text())["parts"]
    assert len(parts) == 2 and all(part["seconds"] > 1 for part in parts)
    assert run(drawn_root, tmp_path, "global-alone", more=[*long, "--lr", "0.1"]) == 1  # it has begun with another
    assert "was run with other flags" in capsys.readouterr().err


def test_minutes_are_minutes_and_a_run_that_nobody_saw_end_is_done(drawn_root, tmp_path, monkeypatch, capsys):
    waited = []

    class Told(subprocess.Popen):
        def wait(self, timeout=None):
            waited.append(timeout)
            return super().wait()

    monkeypatch.setattr(study.subprocess, "Popen", Told)
    assert run(drawn_root, tmp_path, "global-alone", flags=["--minutes", "60"]) == 0
    assert 3500 < waited[0] <= 3600
    path = tmp_path / RUN / "study.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps({**status, "code": None}))
    assert run(drawn_root, tmp_path, "global-alone") == 0 and json.loads(path.read_text())["code"] == 0
    path.unlink()  # nothing says with which flags
    assert run(drawn_root, tmp_path, "global-alone") == 1 and "nothing says which" in capsys.readouterr().err
    path.write_text('{"flags": [')
    assert study.main(["--out", str(tmp_path)]) == 1 and f"{path} is not what study wrote" in capsys.readouterr().err


def test_learning_curves_of_many_runs_are_drawn_some_at_a_time(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    names = [name for name, experiment in study.EXPERIMENTS.items() if experiment.group in ("choose", "cpu")]
    for name in names:
        (tmp_path / f"{name}-0").mkdir()
        lines = [json.dumps({"epoch": epoch, "loss": 5 / epoch, "accuracy": 0.5}) for epoch in (1, 2)]
        (tmp_path / f"{name}-0" / "log.jsonl").write_text("\n".join(lines))
    assert study.draw_curves(tmp_path, tmp_path / "curves.png") == len(names) > 15
    shown = [[line.get_label() for line in axes.lines] for axes in drawn[0].axes]
    assert max(map(len, shown)) <= 6 and sum(shown[::2], []) == names == sum(shown[1::2], [])
    assert drawn[0].axes[-2].get_title() == "cpu: training loss"
    assert all(axes.get_legend() for axes in drawn[0].axes)


def test_a_folder_is_for_one_process(drawn_root, tmp_path, capsys):
    (tmp_path / RUN).mkdir()
    with images.lock(tmp_path / RUN / "study.lock"):
        assert run(drawn_root, tmp_path, "global-alone") == 1
    assert "another process is at work" in capsys.readouterr().out and not (tmp_path / RUN / "last.pth").exists()


def test_flags_that_never_trained_may_change(drawn_root, tmp_path, capsys):
    assert run(drawn_root / "nowhere", tmp_path, "global-alone") == 1
    assert "failed, see" in capsys.readouterr().out
    assert run(drawn_root, tmp_path, "global-alone") == 0


def test_evaluations_come_after_training(tmp_path, monkeypatch):
    began = []
    monkeypatch.setattr(study.Study, "execute", lambda self, run, flags: began.append((run, flags)) or 0)
    assert study.main(["use", "best", "--out", str(tmp_path), "--parallel", "2", "--", "--epochs", "1"]) == 0
    assert [run for run, _ in began][-1] == "mirrored-0" and len(began) == 4
    assert all(flags[-2:] == ["--epochs", "1"] for _, flags in began)
    seeds = [flags[flags.index("--seed") + 1] for run, flags in began if run.startswith("best")]
    assert sorted(seeds) == ["0", "1", "2"]


def test_an_evaluation_finds_the_weights_of_its_run(drawn_root, tmp_path):
    assert run(drawn_root, tmp_path, "global-alone") == 0
    (tmp_path / "best-0").symlink_to(tmp_path / RUN)
    assert run(drawn_root, tmp_path, "to-synthetic", more=[]) == 0
    (row,) = study.rows_of("to-synthetic", study.EXPERIMENTS["to-synthetic"], tmp_path)
    scores = json.loads((tmp_path / "to-synthetic-0" / "scores.json").read_text())["ranking"][0]
    assert f"| to-synthetic | synthetic | {100 * scores['rank1']:.1f} |" in row


def test_rows_are_means_over_seeds_of_the_same_flags(tmp_path):
    def write(name, seed, rank1, code=0, more=()):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        flags = study.commands([name], "data", list(more))[f"{name}-{seed}"]
        study.write_status(folder, flags=flags, code=code, parts=[{"hardware": f"card {seed}", "seconds": 1}])
        scores = {"dataset": "market1501", "rank1": rank1, "mAP": rank1 / 2, "mINP": 0.1}
        record = {"epoch": 1, "loss": 1.0, "seconds": 60 * (seed + 1), "images_per_second": 100.0}
        record |= {"accuracy": 0.5} if seed else {}  # a loss without the classifier tells none
        (folder / "log.jsonl").write_text(json.dumps({**record, "targets": {"market1501": scores}}) + "\n")

    write("best", 0, 0.9)
    write("best", 1, 0.8)
    write("best", 2, 0.1, code=130)  # on its way
    (row,) = study.rows_of("best", study.EXPERIMENTS["best"], tmp_path)
    assert "| market1501 | 85.0 ± 7.1 | 42.5 ± 3.5 | 10.0 ± 0.0 | 1.5 min, 100 img/s |" in row
    assert "seeds 0, 1 |" in row and "card 0; card 1" in row and "--seed" not in row
    write("fast-30", 0, 0.3)
    assert study.draw_curves(tmp_path, tmp_path / "curves.png") == 2
    (tmp_path / "best-1" / "study.json").unlink()
    study.write_status(tmp_path / "best-1", flags=["--lr", "1", "--seed", "1"], code=0, parts=[])
    assert len(study.rows_of("best", study.EXPERIMENTS["best"], tmp_path)) == 2  # other flags: no mean of these


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["best", "--parallel", "0"], 2, "--parallel must be at least 1"),
        (["best", "--minutes", "nan"], 2, "--minutes 0 or more"),
        (["table", "--out", "nowhere"], 1, "there is no folder nowhere"),
        (["bset"], 1, "no experiment or group bset"),
        (["best", "--", "--seed", "5"], 1, "--seed behind -- would make all runs"),
    ],
)
def test_bad_input_is_told(argv, code, told, capsys):
    try:
        found = study.main(argv)
    except SystemExit as stop:
        found = stop.code
    assert found == code and told in capsys.readouterr().err


def test_a_run_that_fails_is_told(drawn_root, tmp_path, capsys):
    assert run(drawn_root, tmp_path, "global-alone", more=[*TINY, "--batch-size", "1000"]) == 1
    printed = capsys.readouterr().out
    assert "failed, see" in printed and "--batch-size 1000 is more than" in printed


def test_averaged_weights_count_where_there_are_some(tmp_path):
    targets = {"market1501": {"dataset": "market1501", "rank1": 0.5}}
    (tmp_path / "log.jsonl").write_text(json.dumps({"epoch": 1, "targets": targets}) + "\n")
    assert study.scores_of(tmp_path) == targets
    averaged = {"market1501": {"dataset": "market1501", "rank1": 0.4}}
    both = {"epoch": 2, "targets": targets, "raw": targets, "averaged": averaged}
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write(json.dumps(both) + "\n")
    assert study.scores_of(tmp_path) == both["averaged"]


def test_mean_and_deviation_in_percent():
    assert study.spread([0.5]) == "50.0"
    assert study.spread([0.90, 0.92, 0.94]) == "92.0 ± 2.0"
