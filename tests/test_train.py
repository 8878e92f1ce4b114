"""Tests of train.py: schedules, the loop, exact resume after a kill, and what it says about bad input.

python -m pytest tests/test_train.py
"""

import argparse
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, draw, press_ctrl_c, run_command, run_main
from test_data import BUILDERS
from torch.optim.optimizer import register_optimizer_step_pre_hook

import data
import export
import losses
import models
import pictures
import train
from data import epoch_batches
from images import lock, read_image
from training import evaluate, recipes
from training.pixels import AUGMENTATIONS, Pixels, TrainSet, augment, build_train_set, normalise

FLAGS = ["--dataset", "synthetic", "--epochs", "3", "--batch-size", "16", "--warmup-epochs", "0.5", "--device", "cpu",
         "--log-every", "1"]  # fmt: skip


def weights_of(path):
    return models.read_checkpoint(path)["model"]


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Schedules and flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("constant", 7.5, 1.0),
        ("step", 1.99, 1.0), ("step", 2.0, 0.1), ("step", 5.9, 0.01), ("step", 6.0, 0.001),
        ("multi-step", 1.99, 1.0), ("multi-step", 2.0, 0.1), ("multi-step", 5.9, 0.1), ("multi-step", 6.0, 0.01),
        ("cosine", 0, 1.0), ("cosine", 5, 0.5), ("cosine", 10, 0.0), ("cosine", 10 / 3, 0.75),
    ],
)  # fmt: skip
def test_schedules_at_points_worked_by_hand(schedule, progress, expected):
    made = recipes.Schedule(1.0, 10, schedule, warmup_epochs=0, milestones=[2, 6], gamma=0.1)
    assert made.rate(progress) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_from_a_hundredth_and_then_the_schedule_starts():
    made = recipes.Schedule(1.0, 10, "cosine", warmup_epochs=2.0)
    assert [made.rate(p) for p in (0, 1, 2, 6, 10)] == pytest.approx([0.01, 0.505, 1.0, 0.5, 0.0])


def test_loss_flag():
    parser = train.build_parser()
    assert parser.parse_args([]).loss == {"xent": 1.0}
    args = parser.parse_args(["--loss", "triplet:0.5", "xent", "center", "--epochs", "3"])
    assert list(args.loss.items()) == [("triplet", 0.5), ("xent", 1.0), ("center", 0.0005)] and args.epochs == 3
    for wrong in ("xnet", "htri", "xent+triplet", "xent:much", "xent:0", "xent:-1", "xent:inf", "xent:nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            train.loss_weight(wrong)


def test_label_smooth_without_a_number_means_a_tenth():
    parser = train.build_parser()
    assert parser.parse_args(["--label-smooth"]).label_smooth == 0.1
    assert parser.parse_args(["--label-smooth", "0"]).label_smooth == 0.0


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({"kind": "step", "milestones": (1,)}, "--schedule step --milestones 1: the rate falls to 1e-09"),
        ({"kind": "multi-step", "milestones": (5, 40)}, "10 epochs end before 40, where the rate would fall"),
        ({"kind": "step", "milestones": (40, 2)}, "10 epochs end before 40"),
        ({"kind": "multi-step", "milestones": (0.5, 0.75)}, None), ({"kind": "cosine", "milestones": (40,)}, None),
        ({"kind": "step", "milestones": (3, 40)}, None),  # step looks at the first alone
    ],
)  # fmt: skip
def test_milestones_that_end_the_training_or_never_come_are_told(schedule, told):
    remark = recipes.Schedule(1.0, 10, **schedule).remark()
    assert told in remark if told else remark == ""


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [([], 1), (["--epochs", "1"], 0.25), (["--epochs", "3"], 0.75), (["--recipe", "best"], 5),
     (["--recipe", "best", "--epochs", "8"], 2), (["--epochs", "8", "--warmup-epochs", "7"], 7)],
)  # fmt: skip
def test_warm_up_bends_to_the_epochs_that_are_given(flags, epochs):
    assert train.parse(flags)[0].warmup_epochs == epochs


@pytest.mark.parametrize("script", ["train.py", "export.py", "search.py"])
def test_an_interpreter_without_the_packages_is_told_of_the_environment(script):
    hidden = "import runpy, sys; sys.modules.update(torch=None, onnxruntime=None); sys.argv = [sys.argv[1], '--help']; "
    done = run_command("-c", hidden + "runpy.run_path(sys.argv[0], run_name='__main__')", script)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "source .venv/bin/activate" in done.stderr and "pip install -r requirements.txt" in done.stderr


@pytest.mark.parametrize("script", ["train.py", "export.py"])
@pytest.mark.parametrize(("given", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_spin_shortly_unless_somebody_says(script, given, found):
    code = "import atexit, os, runpy, sys; atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'])); "
    code += f"sys.argv = [{script!r}, '--help']; runpy.run_path({script!r}, run_name='__main__')"
    clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = run_command("-c", code, env=clean | given)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == found


def test_every_flag_has_help():
    assert [action.dest for action in train.build_parser()._actions if not action.help] == []


@pytest.mark.parametrize("name", sorted(recipes.OPTIMIZERS))
def test_every_optimizer_lowers_a_square(name):
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    model = torch.nn.ParameterList([weight])
    (optimizer,) = recipes.build_optimizers(model, recipes.Criterion({}, 2, []), name, lr=0.1, weight_decay=0.0)
    assert optimizer.defaults["lr"] == 0.1 and optimizer.defaults.get("amsgrad", False) == (name == "amsgrad")
    for _ in range(20):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().item() < 2.0


# The loop -------------------------------------------------------------------------------------------------------------


def test_two_identities_are_learnt_by_heart(drawn_root):
    """HA-CNN, the losses and the optimizer together reach a loss near zero on 16 images of two persons."""
    items = data.load_dataset("synthetic", drawn_root).train
    two = sorted({item.pid for item in items})[:2]
    items = [item for pid in two for item in [i for i in items if i.pid == pid][:6]]
    labels = torch.from_numpy(data.relabel(items)[0])
    pixels = np.stack([read_image(item.paths[0], (160, 64)) for item in items])
    torch.manual_seed(0)
    model = models.build_model("hacnn", 2).train()
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), model.mean, model.std)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(12):
        logits, features = model(images)
        loss = losses.mean_over_branches(losses.cross_entropy, logits, labels)
        loss = loss + losses.mean_over_branches(losses.batch_hard_triplet, features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert all((branch.argmax(1) == labels).all() for branch in logits)


def test_persons_held_out_are_tested_on(drawn_root, tmp_path, capsys):
    """The scores are those of an evaluation of the same persons; no pixel is decoded anew for it."""
    flags = ["--dataset", "synthetic", "--root", drawn_root, "--cache", tmp_path / "cache", "--device", "cpu"]
    short = ["--epochs", 1, "--batch-size", 16, "--warmup-epochs", 0, "--options", "learn_region=False"]
    assert run_main(capsys, *flags, *short, "--out", tmp_path / "whole")[0] == 0
    cached = sorted(path.name for path in (tmp_path / "cache").glob("synthetic-*.npy"))
    code, printed, _ = run_main(capsys, *flags, *short, "--out", tmp_path / "run", "--holdout", 2)
    assert code == 0 and "tested on 2 of the persons to train on:" in printed
    assert sorted(path.name for path in (tmp_path / "cache").glob("synthetic-*.npy")) == cached and len(cached) == 2
    stored = models.read_checkpoint(tmp_path / "run" / "best.pth")
    splits = data.hold_out(data.read_dataset("synthetic", drawn_root), 2)
    assert stored["pids"] == sorted({item.pid for item in splits.train}) and stored["num_ids"] == 4
    (line,) = re.findall(r"^synthetic, 2 persons held out: .*$", printed, re.MULTILINE)
    assert f"{len(splits.query)} queries" in line
    assert re.search(r"finished: .* % on synthetic, 2 persons held out, epoch 1 of 1", printed)
    weights = ["--evaluate", "--weights", tmp_path / "run" / "best.pth"]
    assert "--holdout 2" in re.search(r"all about it: (.*)", printed)[1]
    code, printed, errors = run_main(capsys, *flags, *weights, "--holdout", 2, "--out", tmp_path / "report")
    assert code == 0 and line in printed and "warning" not in printed + errors
    told = json.loads((tmp_path / "report" / "scores.json").read_text())["ranking"][0]["dataset"]
    assert told == "synthetic, 2 persons held out" == stored["scores"]["synthetic"]["dataset"]
    code, printed, _ = run_main(capsys, *flags, *weights)  # the test persons themselves
    assert code == 0 and "held out" not in printed


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--target", "market1501"], 2, "leave --target and --combine-all out"),
        (["--combine-all"], 2, "leave --target and --combine-all out"),
        (["--holdout", "-1"], 2, "--holdout must be at least 0"),
        (["--holdout", "5"], 1, "--holdout 5: of 6 persons 1 to 4 can be held out"),
    ],
)
def test_what_cannot_be_held_out(drawn_root, tmp_path, capsys, flags, code, told):
    given = ["--dataset", "synthetic", "--root", drawn_root, "--out", tmp_path / "run", "--holdout", "2", *flags]
    found, _, errors = run_main(capsys, *given)
    assert found == code and told in errors


@pytest.mark.usefixtures("quick")
def test_kill_resume_evaluate_export_search(root, tmp_path, capsys):
    """The whole way of a user: killed without warning, resumed to the same bits, deployed in every format."""
    flags = [*FLAGS, "--epochs", "2", "--root", str(root)]
    code, straight, errors = run_main(capsys, *flags, "--out", tmp_path / "straight")
    assert code == 0, errors
    assert "rank-1" in straight and "cosine distance, market1501 protocol" in straight

    out = tmp_path / "killed"
    command = [sys.executable, "train.py", *flags, "--out", str(out)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=buffered)
    for line in process.stdout:
        if line.startswith("epoch   2/2  step    1/"):  # epoch 1 is saved, epoch 2 under way
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=600) == -signal.SIGKILL
    assert models.read_checkpoint(out / "last.pth")["epoch"] == 1
    code, resumed, errors = run_main(capsys, "--resume", out / "last.pth")
    assert code == 0, errors
    assert same_bits(weights_of(out / "last.pth"), weights_of(tmp_path / "straight" / "last.pth"))
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in expected], rel=1e-6)
    assert records[-1]["mAP"] == expected[-1]["mAP"] and records[-1]["protocol"] == "market1501"
    for line in resumed.splitlines():  # log.txt holds what the console showed
        assert line in (out / "log.txt").read_text()

    flags = ["--dataset", "synthetic", "--root", root]
    code, evaluated, errors = run_main(capsys, "--evaluate", "--weights", out / "best.pth", *flags)
    assert code == 0, errors
    score = next(line for line in evaluated.splitlines() if line.startswith("synthetic: rank-1"))
    assert score in straight

    exported = run_command("export.py", "--ckpt", out / "best.pth", "--format", *export.FORMATS)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.count("agrees with PyTorch") == 3
    folder = root / "synthetic" / "Market-1501-v15.09.15"
    flags = ["--query", folder / "query", "--gallery", folder / "bounding_box_test", "--labels", "market1501"]
    found = run_command("search.py", "--model", out / "best.onnx", *flags, "--out", tmp_path / "found")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "found" / "ranked.csv").exists() and (tmp_path / "found" / "ranked.jpg").exists()

    import onnx

    graph = onnx.load(out / "best.onnx").graph
    assert {node.op_type for node in graph.node} <= {
        "Conv", "MatMul", "Gemm", "AveragePool", "MaxPool", "ReduceMean", "ReduceSum", "ReduceL2",
        "Relu", "Sigmoid", "Tanh", "Add", "Sub", "Mul", "Div", "Clip", "Where", "Less", "GreaterOrEqual", "And", "Cast",
        "Concat", "Reshape", "Transpose", "Unsqueeze", "Gather", "Expand", "Shape",
    }  # fmt: skip


def test_ctrl_c_saves_in_the_middle_of_an_epoch_and_resume_gives_the_same_bits(root, tmp_path, capsys, monkeypatch):
    flags = [*FLAGS, "--epochs", 2, "--loss", "xent", "triplet", "--root", root]
    assert run_main(capsys, *flags, "--out", tmp_path / "straight")[0] == 0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 2)
        code, out, _ = run_main(capsys, *flags, "--out", tmp_path / "cut")
    assert code == 130
    assert f"python train.py --resume {tmp_path}/cut/last.pth" in out
    saved = models.read_checkpoint(tmp_path / "cut" / "last.pth")
    assert (saved["epoch"], saved["step"]) == (0, 2)
    assert run_main(capsys, "--resume", tmp_path / "cut" / "last.pth")[0] == 0
    assert same_bits(weights_of(tmp_path / "cut" / "last.pth"), weights_of(tmp_path / "straight" / "last.pth"))


def test_a_closed_terminal_saves_as_sigterm_does_and_nohup_goes_on(monkeypatch):
    with train.until_interrupted() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGHUP, signal.SIGTERM]
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with train.until_interrupted() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_run_whose_terminal_is_closed_saves_and_goes_on_from_there(root, tmp_path):
    """SIGHUP comes, and from then on nothing can be written to where the run has printed."""
    out = tmp_path / "run"
    command = [sys.executable, "train.py", *LIGHT, "--dataset", "synthetic", "--epochs", "50", "--log-every", "1"]
    command += ["--root", str(root), "--out", str(out)]
    master, slave = os.openpty()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    while b"epoch   2/50" not in seen:
        seen += os.read(master, 1000)
    os.close(master)
    process.send_signal(signal.SIGHUP)  # the system sends it to the leader of a session with this terminal
    assert process.wait(timeout=600) != 0
    assert models.read_checkpoint(out / "last.pth")["epoch"] >= 1
    assert "interrupted; saved. Go on with:" in (out / "log.txt").read_text()


@pytest.mark.parametrize("change", ["gone", "new", "another"])
def test_the_middle_of_an_epoch_is_of_the_same_images(root, tmp_path, capsys, monkeypatch, change):
    flags = [*LIGHT, "--dataset", "synthetic", "--epochs", 2, "--root", root, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 2)
        assert run_main(capsys, *flags)[0] == 130
    assert models.read_checkpoint(tmp_path / "run" / "last.pth")["step"] > 0
    folder = next(root.rglob("bounding_box_train"))
    first = sorted(folder.glob("*.jpg"))[0]
    pid, count = int(first.name[:4]), len(list(folder.glob(f"{first.name[:4]}_*.jpg")))
    other = first.with_name(first.name.replace(first.name[-6:], "98.jpg"))
    {"gone": first.unlink, "new": lambda: shutil.copy(first, other), "another": lambda: first.rename(other)}[change]()
    code, _, err = run_main(capsys, "--resume", tmp_path / "run" / "last.pth")
    now = {"gone": count - 1, "new": count + 1}.get(change)
    told = f"person {pid}: {now} instead of {count}" if now else "some have other names"
    assert code == 1 and "stands in the middle of epoch 1" in err and f"({told})" in err
    {"gone": lambda: draw(first), "new": other.unlink, "another": lambda: other.rename(first)}[change]()
    assert run_main(capsys, "--resume", tmp_path / "run" / "last.pth")[0] == 0


def test_a_stored_gpu_that_is_not_there_is_told_with_a_way_on(finished, tmp_path, capsys, monkeypatch):
    moved = shutil.copytree(finished, tmp_path / "moved")
    content = models.read_checkpoint(moved / "last.pth")
    content["args"] |= {"device": "cuda:1", "epochs": 2}
    torch.save(content, moved / "last.pth")
    for count, told in ((0, "give --device cpu"), (1, "give --device cuda:0 to cuda:0, or cpu")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        code, _, err = run_main(capsys, "--resume", moved / "last.pth")
        assert code == 1 and f"--device cuda:1: torch sees {count} GPUs here: {told}" in err
    monkeypatch.undo()
    assert run_main(capsys, "--resume", moved / "last.pth", "--device", "cpu")[0] == 0


def test_core_packages_alone_train_evaluate_and_write_torchscript(root, tmp_path):
    """The six packages of the core, tqdm and what these require: nothing else can be imported."""
    launcher = REPOSITORY / "tests" / "core_only.py"
    best = tmp_path / "run" / "best.pth"
    done = run_command(
        launcher, "train.py", *LIGHT, "--dataset", "synthetic", "--root", root, "--epochs", 1, "--out", best.parent,
        "then", "train.py", "--evaluate", "--weights", best, "--dataset", "synthetic", "--root", root,
        "then", "export.py", "--ckpt", best, "--format", "torchscript",
        "then", "export.py", "--ckpt", best, "--format", "onnx",
    )  # fmt: skip
    assert best.with_suffix(".torchscript.pt").exists() and "open set" in done.stdout, done.stderr
    assert done.returncode == 1 and "No module named 'onnx'" in done.stderr  # the launcher does keep things away


# Precision, layout, compiler, draws of the network itself ---------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_half_precision_reaches_the_loss_of_full_precision(drawn_root, tmp_path, capsys):
    """On a small set whose loss falls by 0.1; a step that is skipped or scaled wrongly would be seen."""
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--batch-size", 8, "--epochs", 6, "--lr", 0.001]
    flags += ["--freeze-bn", "--schedule", "constant", "--augment", "--warmup-epochs", 0, "--label-smooth", 0]
    flags += ["--options", "input_size=32,16"]
    losses_of = {}
    for amp in recipes.AMP:
        code, _, errors = run_main(capsys, *flags, "--amp", amp, "--out", tmp_path / amp)
        assert code == 0, errors
        records = (tmp_path / amp / "log.jsonl").read_text().splitlines()
        losses_of[amp] = [json.loads(record)["loss"] for record in records]
    assert losses_of["off"][0] - losses_of["off"][-1] > 0.05
    for amp in ("bf16", "fp16"):
        assert losses_of[amp] == pytest.approx(losses_of["off"], abs=2e-3)
        assert losses_of[amp] != losses_of["off"]  # it did compute otherwise
    saved = models.read_checkpoint(tmp_path / "fp16" / "last.pth")
    assert saved["scaler"]["scale"] > 1 and "scaler" not in models.read_checkpoint(tmp_path / "bf16" / "last.pth")


def test_gradients_beyond_half_precision_skip_a_step_and_lower_the_scale(monkeypatch):
    """fp16 ends at 65504: with a scale of 2 ** 40 the gradients are infinite, and no weight may become so."""
    model, optimizers, history = train_tiny([0], amp="fp16", scale=2.0**40)
    assert changed(*history) <= STATISTICS
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert changed(*train_tiny([0], amp="fp16", scale=2.0**4)[2]) == HEAD | BASE | STATISTICS


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_compiled_network_trains_as_it_does_without(amp):
    flags = ["--warmup-epochs", 0, "--optim", "sgd", "--lr", 0.003]
    plain = train_tiny(range(2), *flags, amp=amp)[2][-1]
    compiled = train_tiny(range(2), *flags, amp=amp, compiled=True)[2][-1]
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=2e-2 if amp == "bf16" else 1e-4, atol=1e-5, msg=name)


def test_channels_last_gives_the_loss_of_the_other_layout():
    torch.manual_seed(0)
    model = models.build_model("hacnn", 4).train()
    images = torch.randn(4, 3, 160, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        logits, _ = model.to(memory_format=layout)(images.contiguous(memory_format=layout))
        found.append(losses.mean_over_branches(losses.cross_entropy, logits, torch.arange(4)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_what_a_network_draws_follows_from_the_step(drawn_root, tmp_path, capsys, monkeypatch):
    """Dropout: a run that is cut and resumed ends with the bits of one that was not."""
    build = models.build_model

    def build_with_dropout(*given, **options):
        model = build(*given, **options)
        model.fc.add_module("dropout", torch.nn.Dropout(0.5))
        return model

    monkeypatch.setattr(models, "build_model", build_with_dropout)
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--epochs", 2, "--batch-size", 8]
    assert run_main(capsys, *flags, "--out", tmp_path / "straight")[0] == 0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 3)
        assert run_main(capsys, *flags, "--out", tmp_path / "cut")[0] == 130
    torch.rand(7)  # what others draw does not matter
    assert run_main(capsys, "--resume", tmp_path / "cut" / "last.pth")[0] == 0
    assert same_bits(*(weights_of(tmp_path / name / "last.pth") for name in ("straight", "cut")))


def test_the_same_command_gives_the_same_bits(drawn_root, tmp_path):
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--epochs", 2, "--batch-size", 8, "--loss", "xent",
             "triplet", "center", "--augment", *AUGMENTATIONS, "--ema", 0.9]  # fmt: skip
    for hash_seed in ("1", "2"):
        done = run_command("train.py", *flags, "--out", tmp_path / hash_seed,
                           env={**os.environ, "PYTHONHASHSEED": hash_seed})  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (models.read_checkpoint(tmp_path / name / "last.pth") for name in ("1", "2"))
    for part in ("model", "averaged", "criterion"):
        assert same_bits(one[part], two[part]), part


def test_the_network_is_compiled_where_asked_for_and_lies_channels_last(drawn_root, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((type(self).__name__, how)))
    built, prepare = [], train.prepare_model
    monkeypatch.setattr(train, "prepare_model", lambda *given: built.append(prepare(*given)) or built[-1])
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--batch-size", 8]
    assert run_main(capsys, *flags, "--out", tmp_path / "plain")[0] == 0 and not compiled
    assert run_main(capsys, *flags, "--compile", "--out", tmp_path / "a")[0] == 0
    assert run_main(capsys, *flags, "--compile", "max-autotune", "--out", tmp_path / "b")[0] == 0
    assert compiled == [("OSNet", {"mode": "default"}), ("OSNet", {"mode": "max-autotune"})]
    weights = [p for p in built[0].parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_a_run_goes_on_in_fp16_and_what_a_killed_process_was_saving_goes(drawn_root, tmp_path, capsys):
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--batch-size", 8, "--out", tmp_path / "run"]
    assert run_main(capsys, *flags)[0] == 0
    (tmp_path / "run" / "last.pth.0123456789abcdef.tmp").write_bytes(b"half")  # no process holds it
    code, _, errors = run_main(capsys, "--resume", tmp_path / "run" / "last.pth", "--epochs", 2, "--amp", "fp16")
    assert code == 0, errors
    assert "scaler" in models.read_checkpoint(tmp_path / "run" / "last.pth")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_run_that_goes_on_with_another_target_seeks_the_best_anew(forest, tmp_path, capsys, quick):
    flags = ["--dataset", "market1501", "--root", forest, "--target", "market1501", "--out", tmp_path / "run"]
    assert run_main(capsys, *LIGHT, *flags)[0] == 0
    last = tmp_path / "run" / "last.pth"
    content = torch.load(last)
    torch.save({**content, "best_score": 2.0}, last)  # beyond what any epoch can reach
    assert run_main(capsys, "--resume", last, "--epochs", 2)[0] == 0
    assert models.read_checkpoint(last)["best_score"] == 2.0
    code, out, errors = run_main(capsys, "--resume", last, "--epochs", 3, "--target", "grid")
    assert code == 0, errors
    assert "the best epoch is sought anew" in out and "on grid, epoch 3 of 3" in out
    assert 0 <= models.read_checkpoint(last)["best_score"] <= 1


def test_attention_without_clips_to_learn_it_from_is_refused(forest, tmp_path, capsys):
    flags = ["--dataset", "market1501", "--target", "mars", "--temporal", "attention", "--root", forest]
    code, _, errors = run_main(capsys, *LIGHT, *flags, "--out", tmp_path / "run")
    assert code == 1 and "--temporal attention is learned from clips" in errors


# Watching and choosing ------------------------------------------------------------------------------------------------


def test_scores_after_re_ranking_and_of_mirror_images_are_told_in_training(drawn_root, tmp_path, capsys):
    flags = ["--dataset", "synthetic", "--root", drawn_root]
    out = tmp_path / "run"
    code, output, errors = run_main(capsys, *LIGHT, *flags, "--epochs", 2, "--eval-every", 1, "--flip", "--rerank",
                                    "--batch-size", 8, "--out", out)  # fmt: skip
    assert code == 0, errors
    assert len(re.findall(r"^synthetic: rank-1 .* cosine distance, market1501 protocol, mirror", output, re.M)) == 2
    assert len(re.findall(r"^synthetic, re-ranked: rank-1 .* k-reciprocal cosine distance", output, re.M)) == 2
    record = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert record["reranked"]["mAP"] != record["mAP"] and record["flip"] is True
    evaluated = run_main(capsys, "--evaluate", "--weights", out / "last.pth", *flags, "--flip", "--rerank")[1]
    for line in evaluated.splitlines():
        if "rank-1" in line and "protocol" in line:
            assert line in output


def test_features_of_mirror_images_are_averaged():
    class Corner(torch.nn.Module):
        mean, std, feature_dim = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 3

        def forward(self, images):
            return images[:, :, 0, 0]

    array = np.zeros((1, 2, 4, 3), dtype=np.uint8)
    array[0, 0, 0], array[0, 0, 3] = (255, 0, 0), (255, 255, 0)  # the upper corners, left and right
    pixels = Pixels(["a.jpg"], (2, 4), array)
    plain, both = (evaluate.extract_features(Corner(), pixels, batch_size=8, flip=f) for f in (False, True))
    assert plain.tolist() == [[1, -1, -1]] and both.tolist() == [[1, 0, -1]]


@pytest.mark.parametrize(
    ("best", "epoch", "told"),
    [
        ([], 1, "mAP 70.0 % on grid"),
        (["--best", "rank1"], 2, "rank-1 60.0 % on grid"),
        (["--best", "rank-1:market1501"], 3, "rank-1 90.0 % on market1501"),
    ],
)
def test_what_chooses_the_best_epoch(forest, tmp_path, capsys, quick, monkeypatch, best, epoch, told):
    rank1 = {"grid": [0.5, 0.6, 0.1], "market1501": [0.2, 0.3, 0.9]}
    mean = {"grid": [0.7, 0.1, 0.2], "market1501": [0.5, 0.6, 0.4]}

    def scores_of(model, target, testing):
        how = {"num_valid_queries": 2, "distance": "cosine", "protocol": target.protocol, "mINP": 0.0}
        return {"cmc": torch.full((50,), rank1[target.name].pop(0)), "mAP": mean[target.name].pop(0), **how}

    monkeypatch.setattr(evaluate, "scores_of", scores_of)
    flags = ["--dataset", "market1501", "--target", "grid", "market1501", "--epochs", 3, "--eval-every", 1, *best]
    code, out, errors = run_main(capsys, *LIGHT, *flags, "--root", forest, "--out", tmp_path / "run")
    assert code == 0, errors
    assert f"{told}, epoch {epoch} of 3" in out
    assert models.read_checkpoint(tmp_path / "run" / "best.pth")["epoch"] == epoch


def test_best_of_what_is_not_tested_is_refused(drawn_root, tmp_path, capsys):
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--out", tmp_path / "run"]
    code, _, errors = run_main(capsys, *flags, "--best", "mAP:viper")
    assert code == 1 and "--best mAP:viper: tested is on synthetic" in errors
    code, _, errors = run_main(capsys, *flags, "--best", "map")
    assert code == 2 and "no score 'map': of rank1, rank5" in errors


def test_curves_and_tensorboard_follow_the_training(drawn_root, tmp_path, capsys, monkeypatch):
    written, drawn = [], []

    class SummaryWriter:  # as torch.utils.tensorboard has it, which may not be installed
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            written.append((name, float(value), epoch))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", argparse.Namespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr(pictures, "training_curves", lambda log, path: drawn.append(len(pictures.read_log(log))))
    clock = itertools.count(0, 20)
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))  # each look at it is 20 s later
    out = tmp_path / "run"
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--batch-size", 8, "--loss", "xent", "ring"]
    code, output, errors = run_main(capsys, *flags, "--epochs", 4, "--eval-every", 2, "--out", out)
    assert code == 0, errors
    assert drawn[0] == 1 and drawn[-1] == 4 and 2 <= len(drawn) < 4  # at most every 30 s, and at the end
    assert written[0] == (out / "tensorboard", 1)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    expected = set()
    for r in records:
        expected |= {(f"loss/{name}", r[name], r["epoch"]) for name in ("loss", "xent", "ring")}
        expected |= {(f"train/{name}", r[name], r["epoch"]) for name in ("accuracy", "lr", "images_per_second")}
        if "mAP" in r:
            expected |= {(f"synthetic/{name}", r[name], r["epoch"]) for name in evaluate.SCORES}
    assert set(written[1:]) == expected and len(written) == len(expected) + 1
    assert f"python train.py --evaluate --weights {out}/best.pth" in output
    assert f"python search.py --model {out}/best.onnx" in output


# Fine-tuning ----------------------------------------------------------------------------------------------------------


class Tiny(torch.nn.Module):
    """A base with a batch norm and with a part that must never train, and a classifier."""

    mean, std, input_size = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (8, 8)

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.odd = torch.nn.Linear(4, 4)
        self.odd.bias.requires_grad_(False)
        self.classifier = torch.nn.Linear(4, 2)

    def forward(self, x):
        feature = self.odd(self.backbone(x).mean(dim=(2, 3)))
        return ([self.classifier(feature)], [feature]) if self.training else feature


class RandomPixels:
    def batch(self, rows, device):
        return torch.randint(0, 256, (len(rows), 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def train_tiny(epochs, *flags, parallel=False, amp="off", compiled=False, scale=None):
    """(network, its optimizer, its weights before and after each of `epochs`) of two steps of four images each."""
    args = train.parse(["--batch-size", "4", "--lr", "0.1", "--log-every", "99", "--amp", amp, *map(str, flags)])[0]
    torch.manual_seed(0)
    model, instances = Tiny(), args.num_instances if recipes.NEED_POSITIVES & args.loss.keys() else None
    samples = TrainSet(RandomPixels(), LABELS, batch_size=4, num_instances=instances, augment=())
    training = train.prepare_training(args, model, samples)
    if parallel:
        training = training._replace(runner=torch.nn.DataParallel(training.runner))
    if scale:
        training = training._replace(scaler=torch.amp.GradScaler("cpu", init_scale=scale))
    if compiled:
        model.compile()
    history = []
    for epoch in epochs:
        history.append({name: value.clone() for name, value in model.state_dict().items()})
        assert train.train_epoch(training, {**train.fresh_state(), "epoch": epoch})
        training.runner.eval()  # as an evaluation between two epochs does
    return model, training.optimizers[0], [*history, model.state_dict()]


LABELS = np.array([0, 1] * 4)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


HEAD = {"classifier.weight", "classifier.bias"}
BASE = {"backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "odd.weight"}
STATISTICS = {"backbone.1.running_mean", "backbone.1.running_var", "backbone.1.num_batches_tracked"}


@pytest.mark.parametrize("setting", [{}, {"parallel": True}, {"amp": "bf16"}], ids=["plain", "DataParallel", "bf16"])
@pytest.mark.parametrize("name", sorted(recipes.OPTIMIZERS))
def test_a_frozen_base_stands_still_to_the_bit_and_then_thaws(name, setting):
    flags = ["--optim", name, "--weight-decay", 0.1, "--warmup-epochs", 0, "--fixbase-epochs", 2]
    model, optimizer, weights = train_tiny(range(3), *flags, **setting)
    assert changed(weights[0], weights[1]) == changed(weights[1], weights[2]) == HEAD
    assert changed(weights[2], weights[3]) == HEAD | BASE | STATISTICS  # and never odd.bias
    moments = {key: optimizer.state[p] for key, p in model.named_parameters() if p in optimizer.state}
    steps = {key: int(state["step"]) for key, state in moments.items() if "step" in state}
    if name != "sgd":  # moments of the base begin when it thaws: two steps an epoch
        assert steps == {**dict.fromkeys(HEAD, 6), **dict.fromkeys(BASE, 2)}


def test_open_layers_choose_what_trains():
    flags = ["--warmup-epochs", 0, "--fixbase-epochs", 1, "--open-layers", "backbone", "classifier"]
    _, _, weights = train_tiny([0], *flags)
    assert changed(*weights) == HEAD | STATISTICS | BASE - {"odd.weight"}
    assert changed(*train_tiny([0])[2]) == HEAD | BASE | STATISTICS  # without the flag


@pytest.mark.parametrize(
    ("arch", "options", "head"),
    [
        ("hacnn", {}, ["fc_global", "classifier_global", "fc_local", "classifier_local"]),
        ("osnet_x0_25", {}, ["fc", "classifier"]),
        ("resnet18", {"pooling": "gem", "embedding": 8, "bnneck": True}, ["gem", "fc", "bnneck", "classifier"]),
        ("resnet18", {}, ["classifier"]),
    ],
)
def test_the_head_of_each_network_is_what_opens_without_names(arch, options, head):
    model = models.build_model(arch, 5, **options)
    assert recipes.find_layers(model, [], "--open-layers") == head
    with pytest.raises(ValueError, match=f"--open-layers: no layer layer4 to train; there are: .*{', .*'.join(head)}"):
        recipes.find_layers(model, [head[0], "layer4"], "--open-layers")


@pytest.mark.parametrize(("arch", "options"), [("hacnn", {"learn_region": False}), ("resnet18", {"bnneck": True})])
def test_thawing_spares_what_the_network_itself_freezes(arch, options):
    model = models.build_model(arch, 5, **options)
    optimizer = torch.optim.SGD(recipes.parameter_groups(model), 0.1)
    never = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert never
    recipes.freeze_base(model, optimizer, ["classifier_global"])
    recipes.freeze_base(model, optimizer, None)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == never
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("epoch", "flags", "new", "base"),
    [  # two steps per epoch: the second one, half an epoch later, is the one that leaves its rate
        (0, ["--new-layers"], 0.1 * (0.01 + 0.99 * 0.25), 0.01 * (0.01 + 0.99 * 0.25)),  # a quarter of the warm-up
        (1, ["--new-layers"], 0.1 * (0.01 + 0.99 * 0.75), 0.01 * (0.01 + 0.99 * 0.75)),
        (4, ["--new-layers", "--base-lr-mult", 0.5], 0.1 * 0.1, 0.05 * 0.1),  # past the first milestone
        (7, ["--new-layers", "classifier", "odd", "--base-lr-mult", 0.5], 0.1 * 0.01, 0.05 * 0.01),
        (7, [], 0.1 * 0.01, 0.1 * 0.01),
    ],
)
def test_staged_rates_move_weights_as_worked_by_hand(epoch, flags, new, base):
    """Without momentum and weight decay the last step of SGD moves each weight by its rate times its gradient."""
    flags = ["--optim", "sgd", "--momentum", 0, "--weight-decay", 0, "--schedule", "multi-step", "--milestones", 4, 6,
             "--epochs", 10, "--warmup-epochs", 2, *flags]  # fmt: skip
    seen = []

    def note(optimizer, *_):
        seen[:] = [{id(p): p.detach().clone() for group in optimizer.param_groups for p in group["params"]}]

    hook = register_optimizer_step_pre_hook(note)
    try:
        model, _, _ = train_tiny([epoch], *flags)
    finally:
        hook.remove()
    for name, p in model.named_parameters():
        if name != "odd.bias":
            fast = name in HEAD or (name == "odd.weight" and "odd" in flags)
            rate = new if fast else base
            torch.testing.assert_close(seen[0][id(p)] - p.detach(), rate * p.grad, rtol=1e-2, atol=2e-7)


def test_an_epoch_equals_a_loop_written_out():
    """Weights of the losses, smoothing, margin, warm-up within the epoch, momentum, weight decay, fresh gradients."""
    flags = ["--optim", "sgd", "--momentum", 0.9, "--weight-decay", 0.1, "--warmup-epochs", 1, "--epochs", 3]
    flags += ["--loss", "xent:0.5", "triplet:2", "--num-instances", 2, "--label-smooth", 0.2, "--margin", 0.7]
    trained = train_tiny([0], *flags)[0]
    torch.manual_seed(0)
    model, labels = Tiny(), np.array([0, 1] * 4)
    weights = [p for p in model.parameters() if p.requires_grad]
    velocities = [torch.zeros_like(p) for p in weights]
    batches = epoch_batches(labels, 4, 2, 0, 0)
    assert len(batches) > 1
    for step, rows in enumerate(batches):
        targets = torch.from_numpy(labels[rows])
        logits, features = model(normalise(RandomPixels().batch(rows, None), model.mean, model.std))
        loss = 0.5 * torch.nn.functional.cross_entropy(logits[0], targets, label_smoothing=0.2)
        loss = loss + 2 * losses.batch_hard_triplet(features[0], targets, 0.7)
        for p, velocity, gradient in zip(weights, velocities, torch.autograd.grad(loss, weights), strict=True):
            velocity.mul_(0.9).add_(gradient + 0.1 * p.detach())
            p.data -= 0.1 * (0.01 + 0.99 * step / len(batches)) * velocity
    for name, value in model.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name).detach(), value.detach(), rtol=1e-4, atol=1e-6)


def test_staged_rates_leave_no_parameter_out():
    model = models.build_model("hacnn", 5, learn_region=False)
    new, base = (group["params"] for group in recipes.parameter_groups(model, []))
    assert {id(p) for p in new + base} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(new) + len(base) == len({id(p) for p in new + base})
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    assert {names[id(p)] for p in new} == {"fc_global", "classifier_global"}


def test_resume_inside_and_after_the_frozen_epochs_gives_the_same_bits(root, tmp_path, capsys, monkeypatch):
    flags = [*FLAGS, "--root", root, "--arch", "osnet_x0_25", "--options", "input_size=64,32", "--amp", "off"]
    flags += ["--fixbase-epochs", 2, "--new-layers", "classifier", "--out"]
    code, output, _ = run_main(capsys, *flags, tmp_path / "straight")
    assert code == 0
    assert output.count("epochs 1 to 2 train fc, classifier alone") == 1 and output.count("thaws") == 1
    order = ["epoch   2/3  step", "epoch   3/3  the base thaws", "epoch   3/3  step"]
    assert sorted(order, key=output.index) == order
    assert "--lr for classifier; 0.1 of it for all other layers" in output
    steps = output.count("epoch   1/3  step")
    press_ctrl_c(monkeypatch, 2, steps + 1, 2 * steps + 1)  # in epochs 1, 2 and 3
    last, command = tmp_path / "cut" / "last.pth", [*flags, tmp_path / "cut"]
    torch.manual_seed(0)
    fresh = models.build_model("osnet_x0_25", 6, input_size=(64, 32)).state_dict()
    for at in ((0, 2), (1, 1), (2, 1)):
        assert run_main(capsys, *command)[0] == 130
        saved = models.read_checkpoint(last)
        assert (saved["epoch"], saved["step"]) == at
        moved = {name.split(".")[0] for name in changed(fresh, saved["model"])}
        assert moved == ({"fc", "classifier"} if at[0] < 2 else {name.split(".")[0] for name in fresh})
        command = ["--resume", last]
    assert run_main(capsys, *command)[0] == 0
    straight, resumed = (models.read_checkpoint(path) for path in (tmp_path / "straight" / "last.pth", last))
    assert same_bits(straight["model"], resumed["model"])
    straight, resumed = straight["optimizer"]["state"], resumed["optimizer"]["state"]
    assert straight.keys() == resumed.keys() and all(same_bits(straight[key], resumed[key]) for key in straight)


def test_pretrained_without_a_network_is_one_clear_message(drawn_root, tmp_path, capsys, monkeypatch):
    def urlopen(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    flags = [*FLAGS, "--root", drawn_root, "--out", tmp_path / "out", "--arch", "resnet18", "--pretrained"]
    code, _, err = run_main(capsys, *flags)
    assert code == 1 and err.startswith("error: no ImageNet weights of resnet18") and err.count("\n") == 1
    assert "no route to host" in err and "--weights FILE" in err and "without --pretrained" in err


def test_a_checkpoint_wins_over_pretrained():
    checkpoint = {"model": models.build_model("hacnn", 2).state_dict()}
    args = argparse.Namespace(arch="hacnn", options={}, pretrained=True, weights=None, seed=0)
    model = train.prepare_model(args, {}, checkpoint, 2, torch.device("cpu"))
    assert same_bits(model.state_dict(), checkpoint["model"])
    with pytest.raises(ValueError, match="hacnn has no ImageNet weights"):
        train.prepare_model(args, {}, None, 2, torch.device("cpu"))


def test_the_default_folder_does_not_nest():
    args, _ = train.parse([*FLAGS, "--arch", "timm/convnext_tiny"])
    assert train.default_folder(args) == "runs/timm-convnext_tiny-synthetic"


# Data sets, targets, splits -------------------------------------------------------------------------------------------

LIGHT = ["--arch", "osnet_x0_25", "--options", "input_size=64,32", "--epochs", "1", "--batch-size", "2",
         "--warmup-epochs", "0", "--device", "cpu", "--amp", "off"]  # fmt: skip
PLANTED = ("market1501", "prid450s", "msmt17", "grid", "mars", "cuhksysu")


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """A root with a miniature tree of one set of each shape; do not spoil it."""
    root = tmp_path_factory.mktemp("forest")
    for name in PLANTED:
        BUILDERS[name](root)
    lines = ["path,pid,camid,tracklet,split"]  # a user's own: persons 1 and 2, then 3 and 4, in two cameras
    for pid, camid, frame in itertools.product((1, 2, 3, 4), (1, 2), (1, 2)):
        split = "train" if pid < 3 else "query" if camid == 1 else "gallery"
        draw(root / "shop" / f"{pid}-{camid}-{frame}.jpg", 100 * pid + 10 * camid + frame)
        lines.append(f"{pid}-{camid}-{frame}.jpg,{pid},{camid},{pid}{camid},{split}")
    (root / "shop" / "items.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def quick(monkeypatch):
    """No pictures, and no rows in the table of verification, whose intervals take long."""
    monkeypatch.setattr(pictures, "training_curves", lambda *_: None)
    monkeypatch.setattr(pictures, "cmc_curves", lambda *_: None)
    monkeypatch.setattr(pictures, "roc_curve", lambda *_: None)
    monkeypatch.setattr(evaluate, "RATES", ())


def arguments(root, *flags):
    return train.parse([*LIGHT, "--root", str(root), *map(str, flags)])[0]


def sets_of(root, *flags):
    """What train.load_sets gives for these flags, as train.execute would call it."""
    args = arguments(root, *flags)
    args.split = args.split or 0
    return train.load_sets(args)[:3]


def score_lines(out):
    return [line for line in out.splitlines() if ": rank-1 " in line]


@pytest.mark.parametrize(
    ("name", "ids", "queries", "flags"),
    [
        ("market1501", 2, 2, []),
        ("prid450s", 3, 4, ["--split", 2]),
        ("msmt17", 2, 2, []),
        ("grid", 2, 2, ["--split", 9]),
        ("folder:shop", 2, 2, ["--train-sample", "evenly"]),
        ("mars", 2, 1, ["--seq-len", 2, "--temporal", "attention"]),
    ],
)
def test_every_shape_of_data_set_is_trained_on_and_evaluated(
    forest, tmp_path, capsys, quick, name, ids, queries, flags
):
    code, out, err = run_main(capsys, *LIGHT, "--dataset", name, "--root", forest, "--out", tmp_path / "run", *flags)
    assert code == 0, err
    (line,) = score_lines(out)
    assert line.startswith(f"{name}: ") and f"{queries} queries" in line
    info = models.read_checkpoint(tmp_path / "run" / "best.pth")
    assert info["num_ids"] == ids == len(info["pids"]) and info["dataset"] == name
    assert info["options"].get("temporal") == {"folder:shop": "avg", "mars": "attention"}.get(name)
    again = ["--evaluate", "--weights", tmp_path / "run" / "best.pth", "--dataset", name, "--root", forest]
    code, out, err = run_main(capsys, *again, "--device", "cpu")  # the split, frames and pooling are the checkpoint's
    assert code == 0 and score_lines(out) == [line], err


def test_persons_and_cameras_of_several_sets_do_not_meet(forest):
    names = ["market1501", "grid", "mars"]
    items, sources, _ = sets_of(forest, "--dataset", *names)
    alone = [data.read_dataset(name, forest).train for name in names]
    assert sources.tolist() == [number for number, part in enumerate(alone) for _ in part]
    assert [item.paths for item in items] == [item.paths for part in alone for item in part]
    for field in (1, 2):  # pid, camid
        found = [item[field] for item in items]
        own = [(number, item[field]) for number, part in enumerate(alone) for item in part]
        pairs = set(zip(found, own, strict=True))
        assert len(pairs) == len(set(found)) == len(set(own)), "one number for each, and for no other"
    assert len({item.pid for item in items}) == 2 + 2 + 2 and len({item.camid for item in items}) == 3 + 4 + 3


@pytest.mark.parametrize("sampler", ["camera", "dataset"])
@pytest.mark.parametrize("sample", ["random", "frames"])
def test_domains_of_samples(forest, sampler, sample):
    flags = ["--sampler", sampler, "--train-sample", sample, "--batch-size", 6]
    args = arguments(forest, "--dataset", "market1501", "mars", *flags)
    args.split = 0
    items, sources, *_ = train.load_sets(args)
    pixels = [(number, item) for number, item in enumerate(items) for _ in item.paths]
    train_set = train.prepare_train_set(args, items, sources)
    samples = pixels if sample == "frames" else list(enumerate(items))
    numbers = {pid: label for label, pid in enumerate(sorted({item.pid for item in items}))}
    assert train_set.labels.tolist() == [numbers[item.pid] for _, item in samples]
    expected = [item.camid if sampler == "camera" else sources[number] for number, item in samples]
    assert train_set.domains.tolist() == expected and len(set(expected)) == (6 if sampler == "camera" else 2)
    rows = train_set.rows(np.arange(len(samples)), 0)
    for (number, _), some in zip(samples, rows, strict=True):
        assert {pixels[row][0] for row in np.atleast_1d(some)} == {number}


def test_layers_of_a_video_network_are_those_of_its_frames_and_its_attention():
    model = models.build_model("osnet_x0_25", 5, temporal="attention", input_size=(64, 32))
    assert recipes.find_layers(model, [], "--open-layers") == ["attention", "fc", "classifier"]
    new, base = (group["params"] for group in recipes.parameter_groups(model, ["attention", "classifier"]))
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].removeprefix("frames.").split(".")[0] for p in new} == {"attention", "classifier"}
    assert sorted(names) == sorted(id(p) for p in new + base)
    recipes.freeze_base(model, torch.optim.SGD(new + base, 0.1), ["attention"])
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"attention"}
    assert {name for name, module in model.named_modules() if module.training} <= {
        "", "frames", "attention", "attention.0", "attention.1", "attention.2"
    }  # fmt: skip


def test_clips_to_train_on():
    tracklets = [np.arange(0, 2), np.arange(2, 22), np.arange(22, 23)]
    train_set = TrainSet(None, np.array([0, 1, 2]), tracklets, seq_len=4, sampling="evenly")
    assert train_set.rows(np.array([2, 1, 0]), 0).tolist() == [[22] * 4, [2, 7, 12, 17], [0, 1, 1, 1]]
    train_set = train_set._replace(sampling="random")
    drawn = {seed: train_set.rows(np.array([1, 1]), seed).tolist() for seed in (1, 2)}
    assert drawn[1] == train_set.rows(np.array([1, 1]), 1).tolist() != drawn[2]
    assert drawn[1][0] != drawn[1][1], "a tracklet that comes twice shows other frames"
    assert all(clip == sorted(set(clip)) and set(clip) <= set(range(2, 22)) for clip in drawn[1] + drawn[2])


@pytest.mark.parametrize(
    ("flags", "targets"),
    [
        (["--dataset", "market1501"], ["market1501"]),
        (["--dataset", "grid", "market1501"], ["grid", "market1501"]),
        (["--dataset", "cuhksysu", "market1501"], ["market1501"]),  # what has no queries is trained on alone
        (["--dataset", "cuhksysu"], []),
        (["--dataset", "cuhksysu", "--target", "mars", "grid"], ["mars", "grid"]),
        (["--dataset", "market1501", "--target", "grid", "market1501"], ["grid", "market1501"]),
        (["--dataset", "market1501", "--combine-all"], []),
        (["--dataset", "market1501", "--combine-all", "--target", "grid"], ["grid"]),
    ],
)
def test_what_is_tested_on(forest, flags, targets):
    assert list(sets_of(forest, *flags)[2]) == targets


def test_several_targets_score_as_each_alone(forest, tmp_path, capsys, quick):
    flags = ["--dataset", "market1501", "grid", "--target", "mars", "grid", "--root", forest]
    code, trained, err = run_main(capsys, *LIGHT, *flags, "--sampler", "dataset", "--out", tmp_path / "run")
    assert code == 0, err
    lines = score_lines(trained)
    assert [line.split(":")[0] for line in lines] == ["mars", "grid"]
    evaluation = ["--evaluate", "--weights", tmp_path / "run" / "best.pth", "--root", forest, "--device", "cpu"]
    both = run_main(capsys, *evaluation, "--target", "mars", "grid", "--out", tmp_path / "report")[1]
    alone = [run_main(capsys, *evaluation, "--target", name)[1] for name in ("mars", "grid")]
    assert score_lines(both) == lines == [score_lines(out)[0] for out in alone]
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert list(record["targets"]) == ["mars", "grid"] and record["dataset"] == "mars"
    assert record["mAP"] == record["targets"]["mars"]["mAP"]
    for name in ("mars", "grid"):
        content = json.loads((tmp_path / "report" / name / "scores.json").read_text())
        assert content["ranking"] == [record["targets"][name]]


def test_the_first_target_decides_which_epoch_is_best(forest, tmp_path, capsys, quick, monkeypatch):
    scores = {"grid": [0.5, 0.7, 0.6], "market1501": [0.9, 0.1, 0.95]}

    def scores_of(model, target, testing):
        value = scores[target.name].pop(0)
        how = {"num_valid_queries": 2, "distance": "cosine", "protocol": target.protocol}
        return {"cmc": torch.full((50,), value), "mAP": value, "mINP": value, **how}

    monkeypatch.setattr(evaluate, "scores_of", scores_of)
    flags = ["--dataset", "market1501", "--target", "grid", "market1501", "--epochs", 3, "--eval-every", 1]
    code, out, _ = run_main(capsys, *LIGHT, *flags, "--root", forest, "--out", tmp_path / "run")
    assert code == 0 and scores == {"grid": [], "market1501": []} and "mAP 70.0 % on grid" in out
    best = models.read_checkpoint(tmp_path / "run" / "best.pth")
    assert best["epoch"] == 2 and best["scores"]["market1501"]["mAP"] == 0.1


def test_a_set_without_test_images_alone(forest, tmp_path, capsys, quick):
    code, out, _ = run_main(capsys, *LIGHT, "--dataset", "cuhksysu", "--root", forest, "--out", tmp_path / "run")
    assert code == 0 and "no data set to test it on" in out and score_lines(out) == []
    model, info = models.load_checkpoint(tmp_path / "run" / "best.pth")
    assert info["num_ids"] == 2 and info["epoch"] == 1


@pytest.mark.parametrize(("name", "ids"), [("market1501", 4), ("msmt17", 4)])
def test_combine_all_trains_on_test_persons_and_is_not_tested_on_them(forest, tmp_path, capsys, quick, name, ids):
    """Market-1501: persons 2 and 1500, 1 and 1488, without 0, who is nobody. MSMT17: 0 and 1, and another 0, and 2."""
    flags = ["--dataset", name, "--combine-all", "--root", forest, "--out"]
    code, out, _ = run_main(capsys, *LIGHT, *flags, tmp_path / "run")
    assert code == 0 and score_lines(out) == [] and "no data set to test it on" in out
    assert models.read_checkpoint(tmp_path / "run" / "best.pth")["num_ids"] == ids
    code, _, err = run_main(capsys, *LIGHT, *flags, tmp_path / "other", "--target", "grid", name)
    assert code == 2 and f"trains on the test persons of {name}" in err


def test_min_frames_leaves_out_short_tracklets(forest):
    items, _, tests = sets_of(forest, "--dataset", "mars", "--min-frames", 2)
    assert [len(item.paths) for item in items] == [2, 3, 2]
    assert [(item.pid, len(item.paths)) for item in tests["mars"].query] == [(2, 2)]  # 6 has no match
    assert [(item.pid, len(item.paths)) for item in tests["mars"].gallery] == [(0, 2), (2, 2)]
    with pytest.raises(ValueError, match="at least 2 persons"):
        sets_of(forest, "--dataset", "mars", "--min-frames", 3)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--dataset", "mars", "--target", "market1501"], "mars and market1501"),
        (["--dataset", "market1501", "mars"], "market1501 and mars"),
        (["--dataset", "market1501", "--target", "grid"], None),
        (["--dataset", "market1501"], None),
    ],
)
def test_sets_that_show_the_same_people_are_told_of(forest, capsys, flags, names):
    sets_of(forest, *flags)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "both show people" in line]
    assert bool(warnings) == bool(names) and all("Market-1501" in line for line in warnings)
    assert names is None or names in warnings[0]


def test_persons_of_a_set_in_its_own_test_are_told_of_once(forest, tmp_path, capsys):
    shutil.copytree(forest / "shop", tmp_path / "shop")
    with open(tmp_path / "shop" / "items.csv", "a") as file:
        file.write("\n3-1-1.jpg,3,1,31,train")
    sets_of(tmp_path, "--dataset", "folder:shop")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "1 persons are in both train and test" in warnings[0]


@pytest.mark.parametrize(
    ("flags", "code", "fragments"),
    [
        (["--dataset", "grid", "--split", 10], 1, ["no --split 10", "count from 0", "grid has 10"]),
        (["--dataset", "market1501", "--split", 1], 1, ["no --split 1", "market1501 has 1"]),
        (["--dataset", "grid", "--target", "viper", "--split", 10], 1, ["no --split 10", "viper has 20"]),
        (["--dataset", "grid", "--split", "-1"], 2, ["--split"]),
        (["--dataset", "grid", "--split", "one"], 2, ["'one' is no split", "all"]),
        (["--dataset", "market1501", "--split", "all"], 1, ["several splits", "market1501 has 1"]),
        (["--dataset", "grid", "--target", "viper", "--split", "all"], 1, ["grid has 10", "viper has 20"]),
        (["--dataset", "market1501", "--target", "grid", "--split", "all"], 1, ["train once", "--evaluate"]),
        (["--dataset", "grid", "market1501", "grid"], 2, ["--dataset names grid twice"]),
        (["--dataset", "market1501", "--temporal", "max"], 1, ["--temporal max", "single images"]),
        (["--dataset", "mars", "--temporal", "attention", "--train-sample", "frames"], 2, ["learned from clips"]),
        (["--dataset", "mars", "--temporal", "mean"], 2, ["attention"]),
        (["--dataset", "mars", "--seq-len", 0], 2, ["--seq-len must be at least 1"]),
        (["--dataset", "market1501", "--num-domains", 2], 2, ["--sampler camera or --sampler dataset"]),
        (["--dataset", "market1501", "--sampler", "camera"], 1, ["3 domains", "--batch-size 2"]),
        (["--dataset", "mars", "--batch-size", 5], 1, ["--batch-size 5", "lower it"]),  # 4 tracklets of 8 frames
        (["--dataset", "market1501", "--sampler", "identity"], 1, ["--num-instances 4", "--batch-size 2"]),
        (["--dataset", "grid", "--combine-all", "--evaluate", "--weights", "x"], 2, ["--evaluate does not train"]),
        (["--dataset", "grid", "--target", "cuhksysu"], 1, ["cuhksysu", "query split"]),
        (["--dataset", "grid", "--target", "mrs"], 1, ["'mrs'", "mars"]),
    ],
)
def test_sets_and_splits_that_do_not_fit(forest, tmp_path, capsys, flags, code, fragments):
    got, out, err = run_main(capsys, *LIGHT, "--root", forest, "--out", tmp_path / "run", *flags)
    assert got == code and "decoding" not in out, "before any long work"
    for fragment in fragments:
        assert fragment in err


def test_all_splits(forest, tmp_path, capsys, quick, monkeypatch):
    """Four instead of ten, to be quick: their mean and deviation, and going on where one is missing."""
    monkeypatch.setitem(data.DATASETS, "prid450s", data.DATASETS["prid450s"]._replace(num_splits=4))
    epochs, train_epoch = [], train.train_epoch
    monkeypatch.setattr(train, "train_epoch", lambda *given: epochs.append(given) or train_epoch(*given))
    runs = tmp_path / "runs"
    command = [*LIGHT, "--dataset", "prid450s", "--split", "all", "--root", forest, "--out", runs]
    code, out, err = run_main(capsys, *command)
    assert code == 0 and len(epochs) == 4, err
    assert sorted(path.name for path in runs.iterdir()) == [*(f"split-{n}" for n in range(4)), "summary.json"]
    records = [json.loads((runs / f"split-{n}" / "log.jsonl").read_text()) for n in range(4)]
    assert [models.read_checkpoint(runs / f"split-{n}" / "best.pth")["args"]["split"] for n in range(4)] == [0, 1, 2, 3]
    assert len({record["mAP"] for record in records}) > 1, "splits that score alike would show nothing"
    summary = json.loads((runs / "summary.json").read_text())
    assert list(summary) == ["prid450s"]
    for name in ("rank1", "rank5", "mAP", "mINP"):
        values = [record[name] for record in records]
        assert summary["prid450s"][name]["splits"] == values
        assert summary["prid450s"][name]["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert summary["prid450s"][name]["deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    values = [100 * record["mAP"] for record in records]
    last = out.splitlines()[-1]
    assert f"mAP {np.mean(values):.1f} +- {np.std(values, ddof=1):.1f}" in last and "4 splits" in last

    weights = weights_of(runs / "split-2" / "last.pth")
    shutil.rmtree(runs / "split-2")
    code, again, _ = run_main(capsys, *command)
    assert code == 0 and len(epochs) == 5 and again.count("is finished") == 3
    assert same_bits(weights, weights_of(runs / "split-2" / "last.pth"))
    assert again.splitlines()[-1] == last and json.loads((runs / "summary.json").read_text()) == summary

    flags = ["--dataset", "prid450s", "--split", "all", "--root", forest, "--device", "cpu"]
    code, evaluated, err = run_main(capsys, "--evaluate", "--weights", runs, *flags, "--out", tmp_path / "report")
    assert code == 0 and evaluated.splitlines()[-1] == last, err
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary
    assert (tmp_path / "report" / "split-3" / "queries.csv").exists()
    code, _, err = run_main(capsys, *command, "--lr", 0.1)
    assert code == 1 and "another lr" in err and "--out" in err
    assert len(epochs) == 5
    (runs / "split-1" / "best.pth").unlink()
    code, _, err = run_main(capsys, "--evaluate", "--weights", runs, *flags)
    assert code == 1 and str(runs / "split-1" / "best.pth") in err


def test_all_splits_go_on_inside_one_that_was_interrupted(forest, tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "prid450s", data.DATASETS["prid450s"]._replace(num_splits=2))
    calls = press_ctrl_c(monkeypatch, 4)  # three steps in each epoch: the first of the second split
    command = [*LIGHT, "--dataset", "prid450s", "--split", "all", "--root", forest, "--out"]
    assert run_main(capsys, *command, tmp_path / "cut")[0] == 130
    assert models.read_checkpoint(tmp_path / "cut" / "split-1" / "last.pth")["step"] == 1
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert run_main(capsys, *command, tmp_path / "cut")[0] == 0 and len(calls) == 6
    assert run_main(capsys, *command, tmp_path / "straight")[0] == 0
    for split in ("split-0", "split-1"):
        cut, straight = (weights_of(tmp_path / run / split / "last.pth") for run in ("cut", "straight"))
        assert same_bits(cut, straight)


@pytest.mark.parametrize("temporal", ["attention", "avg"])
def test_an_interrupted_video_run_goes_on_to_the_same_bits(forest, tmp_path, capsys, quick, monkeypatch, temporal):
    flags = [*LIGHT, "--dataset", "mars", "--epochs", 2, "--seq-len", 2, "--root", forest]
    flags += ["--temporal", temporal, "--augment", "flip", "translate", "jitter", "erase"]
    flags += ["--sampler", "shuffle", "--loss", "xent", "triplet", "center"]
    assert run_main(capsys, *flags, "--out", tmp_path / "straight")[0] == 0
    with monkeypatch.context() as patch:
        calls = press_ctrl_c(patch, 3)
        assert run_main(capsys, *flags, "--out", tmp_path / "cut")[0] == 130
    assert [images.shape for images in calls] == [(2, 2, 3, 64, 32)] * 3
    last = tmp_path / "cut" / "last.pth"
    saved = models.read_checkpoint(last)
    assert (saved["epoch"], saved["step"], saved["options"]["temporal"]) == (1, 1, temporal)
    for flag, value in (
        ("--seq-len", 3), ("--train-sample", "evenly"), ("--temporal", "max"), ("--sampler", "camera"),
        ("--min-frames", 2), ("--dataset", "market1501"),
    ):  # fmt: skip
        code, _, err = run_main(capsys, "--resume", last, flag, value)
        assert code == 1 and f"{flag} cannot change" in err
    assert run_main(capsys, "--resume", last)[0] == 0
    assert same_bits(weights_of(last), weights_of(tmp_path / "straight" / "last.pth"))
    moved = changed(saved["model"], weights_of(last))
    assert any(name.startswith("attention") for name in moved) == (temporal == "attention")


def test_clips_and_single_frames_are_both_trained_on(forest, tmp_path, capsys, quick, monkeypatch):
    shapes = []
    watched = lambda x, *rest: shapes.append(x.shape[:-3]) or augment(x, *rest)  # noqa: E731
    monkeypatch.setattr("training.pixels.augment", watched)
    for sample, flags, expected in (
        ("random", ["--seq-len", 3], [(2, 3)] * 2),  # 4 tracklets
        ("evenly", ["--seq-len", 5], [(2, 5)] * 2),
        ("frames", [], [(2,)] * 4),  # 8 frames
    ):
        shapes.clear()
        out = ["--train-sample", sample, "--dataset", "mars", "--root", forest, "--out", tmp_path / sample]
        assert run_main(capsys, *LIGHT, *out, *flags)[0] == 0 and shapes == expected


# Files of a run -------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    train.save_atomically({"epoch": 1}, path)

    def write_half(content, file):
        file.write(b"PK half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="the previous one is kept"):
        train.save_atomically({"epoch": 2}, path)
    assert models.read_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_disk_that_fills_up_in_a_run_ends_it_and_the_run_goes_on_later(drawn_root, tmp_path, capsys):
    out, one_megabyte = tmp_path / "run", (2**20, 2**20)
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--epochs", 1, "--out", out]
    assert run_main(capsys, *flags)[0] == 0
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, one_megabyte)}
    full = run_command("train.py", "--resume", out / "last.pth", "--epochs", 2, **limit)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert re.search(r"error: checkpoint .*last.pth could not be written .*the previous one is kept", full.stderr)
    assert models.read_checkpoint(out / "last.pth")["epoch"] == 1 and not list(out.glob("*.tmp"))
    assert run_main(capsys, "--resume", out / "last.pth", "--epochs", 2)[0] == 0
    assert models.read_checkpoint(out / "last.pth")["epoch"] == 2


def test_a_disk_that_fills_up_is_told_of_however_torch_does(tmp_path):
    """In the middle of a large tensor torch.save ends with a RuntimeError, not with that of the system."""
    script = (
        "import resource, sys, torch, train; from pathlib import Path\n"
        "path = Path(sys.argv[1]); train.save_atomically({'w': torch.ones(3)}, path)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "train.save_atomically({'w': torch.zeros(1_000_000)}, path)"
    )
    done = run_command("-c", script, tmp_path / "last.pth")
    assert "OSError: checkpoint" in done.stderr and "the previous one is kept" in done.stderr
    assert models.read_checkpoint(tmp_path / "last.pth")["w"].shape == (3,)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_folder_that_is_lost_in_a_run_is_one_message(drawn_root, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(train, "save_atomically", lost(out, train.save_atomically))
    flags = [*LIGHT, "--dataset", "synthetic", "--root", drawn_root, "--epochs", 1, "--out", out]
    code, _, errors = run_main(capsys, *flags)
    assert code == 1 and f"checkpoint {out}/last.pth could not be written" in errors
    assert "there is no previous one" in errors


def lost(folder, save):
    def remove_and_save(*given):
        shutil.rmtree(folder)
        save(*given)

    return remove_and_save


def test_a_kill_while_saving_leaves_a_loadable_file(tmp_path):
    """Kills at several delays in a process that saves without pause: the file loads every time."""
    script = (
        "import sys, torch, train; from pathlib import Path\n"
        "content = {'w': torch.zeros(300_000)}\n"
        "train.save_atomically(content, Path(sys.argv[1])); print('go', flush=True)\n"
        "while True: train.save_atomically(content, Path(sys.argv[1]))"
    )
    for delay in (0.0, 0.003, 0.011):
        path = tmp_path / f"{delay}.pth"
        process = subprocess.Popen([sys.executable, "-c", script, path], cwd=REPOSITORY, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        assert models.read_checkpoint(path)["w"].shape == (300_000,)


def test_records_of_an_interrupted_run_are_replaced(tmp_path):
    path = tmp_path / "log.jsonl"
    for epoch in (1, 2, 3, 2):
        train.append_record(path, {"epoch": epoch})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]


# Bad input ------------------------------------------------------------------------------------------------------------


def market(root):
    return root / "synthetic" / "Market-1501-v15.09.15"


def rename_cameras(root):
    for path in sorted(market(root).rglob("*.jpg")):
        path.rename(path.with_name(re.sub(r"_c\ds", "_c1s", path.name).replace(".jpg", f"_{path.name[6]}.jpg")))


def empty_folder(root):
    for path in (market(root) / "bounding_box_train").iterdir():
        path.unlink()


def part_queries_from_gallery(root):
    for number, path in enumerate(sorted((market(root) / "query").iterdir())):
        path.rename(path.with_name(f"{1400 + number}{path.name[4:]}"))


def truncate_image(root):
    path = sorted((market(root) / "bounding_box_train").glob("*.jpg"))[3]
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("spoil", "fragments"),
    [
        (lambda root: shutil.rmtree(root / "synthetic"), ["root/synthetic", "DATASETS.md", "tools.synthetic"]),
        (lambda root: shutil.rmtree(market(root) / "query"), ["/query", "DATASETS.md"]),
        (empty_folder, ["at least 2 persons", "found 0"]),
        (rename_cameras, ["one camera"]),
        (part_queries_from_gallery, ["queries can be matched", "1400_c"]),
        (truncate_image, ["1 images cannot be read", "bounding_box_train", "truncated"]),
    ],
    ids=["no folder", "no query folder", "empty folder", "one camera", "no match", "truncated image"],
)
def test_spoilt_data_is_refused_before_training(root, tmp_path, capsys, spoil, fragments):
    spoil(root)
    code, out, err = run_main(capsys, *FLAGS, "--root", root, "--out", tmp_path / "out")
    assert code == 1 and "step" not in out.replace("step=", "").replace("multi-step", "")
    for fragment in fragments:
        assert fragment in err


@pytest.mark.parametrize(
    ("flags", "code", "fragments"),
    [
        (["--batch-size", 18, "--loss", "xent", "triplet"], 1, ["--num-instances 4", "--batch-size 18"]),
        (["--batch-size", 4000], 1, ["--batch-size 4000", "lower it"]),
        (["--batch-size", 32, "--loss", "xent", "triplet"], 1, ["8 persons x 4", "has 6"]),
        (["--dataset", "market1502"], 1, ["market1502", "did you mean market1501"]),
        (["--arch", "hacn"], 1, ["'hacnn'"]),
        (["--options", "learn_regions=False"], 1, ["learn_regions", "learn_region"]),
        (["--options", "learn_region"], 2, ["learn_region=False"]),
        (["--loss", "xnet"], 2, ["no loss 'xnet' (did you mean xent?)", "xent triplet:0.5", "cosface"]),
        (["--loss", "xent", "center:0"], 2, ["'center:0'", "positive"]),
        (["--loss", "xent", "xent:2"], 2, ["xent xent", "twice"]),
        (["--center-lr", 1.5], 2, ["--center-lr", "1.5"]),
        (["--ema", 1], 2, ["--ema", "0.999"]),
        (["--accumulate", 0], 2, ["--accumulate must be at least 1"]),
        (["--accumulate", 2, "--compile", "reduce-overhead"], 2, ["CUDA graphs", "--accumulate 1"]),
        (["--gamma", -1], 2, ["--gamma must be positive"]),
        (["--momentum", 2], 2, ["--momentum lie in 0..1"]),
        (["--lr", "inf"], 2, ["--lr and --clip-norm be numbers"]),
        (["--clip-norm", "nan"], 2, ["--lr and --clip-norm be numbers"]),
        (["--clip-norm", -1], 2, ["--clip-norm must be at least 0"]),
        (["--recipe", "papr"], 1, ["'papr'", "did you mean paper", "paper, reference, bot, best, adapt, quick"]),
        (["--recipe", "bot", "--evaluate", "--weights", "x"], 2, ["--recipe", "does not train"]),
        (["--optim", "adm"], 2, ["adamw"]),
        (["--warmup-epochs", 3], 2, ["--warmup-epochs", "--epochs 3"]),
        (["--evaluate"], 2, ["--weights FILE"]),
        (["--device", "cuda:9x"], 1, ["cuda:9x"]),
        (["--device", "cuda:99"], 1, ["cuda:99", "GPUs"]),
        (["--device", "mps"], 1, ["mps", "cpu"]),
        (["--epoch", 3], 2, ["there is no flag --epoch (did you mean --epochs?)"]),
        (["--batchsize=3"], 2, ["there is no flag --batchsize (did you mean --batch-size?)"]),
        (["--frobnicate"], 2, ["there is no flag --frobnicate\n"]),
        (["--threads", -1], 2, ["--threads must be at least 0"]),
        (["--weights", "nowhere.pth"], 1, ["nowhere.pth"]),
        (["--arch", "osnet_x1_0", "--pretrained"], 1, ["osnet_x1_0", "--weights FILE"]),
        (["--fixbase-epochs", -1], 2, ["--fixbase-epochs must be at least 0"]),
        (["--fixbase-epochs", 1, "--open-layers", "classifier"], 1, ["--open-layers: no layer classifier", "fc_local"]),
        (["--open-layers", "fc_local"], 2, ["--open-layers", "--fixbase-epochs N"]),
        (["--fixbase-epochs", 1, "--loss", "triplet", "center"], 2, ["--fixbase-epochs", "xent, arcface, cosface"]),
        (["--new-layers", "fc_local", "crops"], 1, ["--new-layers: no layer crops", "conv, inception1, ha1"]),
        (["--new-layers", "--base-lr-mult", 0], 2, ["--base-lr-mult", "positive"]),
        (["--base-lr-mult", 0.5], 2, ["--base-lr-mult", "--new-layers"]),
    ],
)
def test_wrong_flags(drawn_root, tmp_path, capsys, flags, code, fragments):
    got, _, err = run_main(capsys, *FLAGS, "--root", drawn_root, "--out", tmp_path / "out", *flags)
    assert got == code
    for fragment in fragments:
        assert fragment in err


def test_a_run_that_does_not_begin_leaves_no_folder(drawn_root, tmp_path, capsys):
    """One that was there stays, with what lies in it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for out in ("new", "there"):
        flags = ["--root", drawn_root, "--batch-size", 4000, "--out", tmp_path / out]
        assert run_main(capsys, *FLAGS, *flags)[0] == 1
    assert not (tmp_path / "new").exists() and (tmp_path / "there" / "notes.txt").read_text() == "mine"


def test_the_console_shows_what_is_not_as_by_default(finished):
    """And log.txt all of it."""
    log = (finished / "log.txt").read_text()
    told = next(line for line in log.splitlines() if line.startswith("not as by default: "))
    names = {pair.partition("=")[0] for pair in told.removeprefix("not as by default: ").split("  ")}
    assert {"batch_size", "dataset", "epochs", "out", "root"} <= names and not names & {"lr", "arch", "momentum", "amp"}
    assert "momentum=0.9" in log and "momentum=0.9" not in told


def test_an_output_folder_that_cannot_be_written(drawn_root, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_main(capsys, *FLAGS, "--root", drawn_root, "--out", tmp_path / "file" / "run")
    assert code == 1 and "cannot be written" in err


def test_loss_that_is_not_a_number_stops_with_step_and_value(drawn_root, tmp_path, capsys):
    flags = ["--optim", "sgd", "--lr", "1e30", "--warmup-epochs", 0, "--augment"]
    code, _, err = run_main(capsys, *FLAGS, *flags, "--root", drawn_root, "--out", tmp_path / "out")
    assert code == 1
    assert "the loss is nan" in err and "epoch 1, step 2" in err
    assert not (tmp_path / "out" / "last.pth").exists()
    assert "the loss is nan" in (tmp_path / "out" / "log.txt").read_text()


@pytest.fixture(scope="module")
def finished(drawn_root, tmp_path_factory):
    """A finished run of one epoch."""
    out = tmp_path_factory.mktemp("finished") / "run"
    flags = [*FLAGS, "--epochs", "1", "--root", str(drawn_root), "--out", str(out), "--cache", str(out / "pixels")]
    assert train.main(flags) == 0
    return out


def test_checkpoint_is_plain_and_rebuilds_the_model_alone(finished):
    model, info = models.load_checkpoint(finished / "best.pth")
    assert not model.training and info["arch"] == "hacnn" and info["distance"] == "cosine" and info["epoch"] == 1
    assert info["input_size"] == (160, 64) and 0 <= info["scores"]["synthetic"]["mAP"] <= 1
    last = torch.load(finished / "last.pth", weights_only=True)
    assert last.keys() >= {"optimizer", "args", "pids"}


def test_a_folder_that_holds_a_run_is_not_overwritten(finished, drawn_root, capsys):
    before = (finished / "last.pth").read_bytes()
    code, _, err = run_main(capsys, *FLAGS, "--root", drawn_root, "--out", finished)
    assert code == 1 and "already holds a run" in err and "--resume" in err
    assert (finished / "last.pth").read_bytes() == before


def test_a_run_that_was_moved_resumes_where_it_lies(finished, tmp_path, capsys):
    moved = shutil.copytree(finished, tmp_path / "moved")
    before = (finished / "last.pth").read_bytes()
    assert run_main(capsys, "--resume", moved / "last.pth", "--epochs", 2)[0] == 0
    assert models.read_checkpoint(moved / "last.pth")["epoch"] == 2
    assert (finished / "last.pth").read_bytes() == before
    code, _, err = run_main(capsys, "--resume", moved / "last.pth", "--epochs", 3, "--out", finished)
    assert code == 1 and "already holds a run" in err and (finished / "last.pth").read_bytes() == before


def test_a_finished_run_is_finished_already_and_stays_as_it_is(finished, capsys):
    """Exit code 0: what tries until it succeeds comes to an end."""
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    code, out, err = run_main(capsys, "--resume", finished / "last.pth")
    assert code == 0 and f"{finished}/last.pth is finished already, all 1 epochs" in out, err
    assert before == {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}


def test_a_folder_is_for_one_run_at_a_time(finished, root, tmp_path, capsys):
    flags = [*FLAGS, "--root", root, "--out", tmp_path / "new"]
    (tmp_path / "new").mkdir()
    with lock(tmp_path / "new" / "lock"):
        code, _, err = run_main(capsys, *flags)
        assert code == 1 and f"another run is at work in {tmp_path}/new: wait until it ends, or give another" in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lock"]
    moved = shutil.copytree(finished, tmp_path / "moved")
    before = (moved / "log.txt").read_bytes()
    with lock(moved / "lock"):
        code, _, err = run_main(capsys, "--resume", moved / "last.pth", "--epochs", 2)
    assert code == 1 and "another run is at work" in err and (moved / "log.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--epochs", 2, "--optim", "sgd"], "--optim cannot change"),
        (["--epochs", 2, "--weight-decay", 0.3, "--momentum", 0.5], "--weight-decay, --momentum cannot change"),
        (["--epochs", 2, "--options", "learn_region=False"], "--options cannot change"),
        (["--epochs", 2, "--fixbase-epochs", 2], "--fixbase-epochs cannot change"),
        (["--epochs", 2, "--fixbase-epochs", 2, "--open-layers", "fc_local"], "--open-layers cannot change"),
        (["--epochs", 2, "--new-layers"], "--new-layers cannot change"),
    ],
)
def test_flags_that_a_resumed_run_cannot_take(finished, capsys, flags, fragment):
    code, _, err = run_main(capsys, "--resume", finished / "last.pth", *flags)
    assert code == 1 and fragment in err


@pytest.mark.parametrize(("name", "value"), [("epochs", "3"), ("loss", ["xent"]), ("root", None), ("flip", 0)])
def test_settings_of_another_type_are_refused(finished, tmp_path, name, value):
    checkpoint = models.read_checkpoint(finished / "last.pth")
    checkpoint["args"][name] = value
    torch.save(checkpoint, tmp_path / "last.pth")
    with pytest.raises(ValueError, match=rf"last.pth is not of the form of our checkpoints \({name} is"):
        train.parse(["--resume", str(tmp_path / "last.pth"), "--epochs", "2"])


def test_weights_are_tested_on_their_own_data_set_where_none_is_given(finished, drawn_root, tmp_path):
    weights = ["--evaluate", "--weights", str(finished / "best.pth")]
    args, _ = train.parse(weights)
    assert (args.dataset, args.target, args.root) == (["synthetic"], None, str(drawn_root))
    args, _ = train.parse([*weights, "--root", "elsewhere"])
    assert (args.dataset, args.root) == (["synthetic"], "elsewhere")
    for flag in ("--dataset", "--target"):
        args, _ = train.parse([*weights, flag, "viper"])
        assert (args.target or args.dataset) == ["viper"] and args.root == "data"


def test_weights_of_another_network_are_refused(finished, drawn_root, tmp_path, capsys):
    """Next to nothing fits: what trained would be a fresh network."""
    weights = models.read_checkpoint(finished / "best.pth")["model"]
    torch.save({"conv.conv.weight": weights["conv.conv.weight"]}, tmp_path / "some.pth")
    flags = ["--root", drawn_root, "--weights", tmp_path / "some.pth", "--out", tmp_path / "run"]
    code, _, err = run_main(capsys, *FLAGS, *flags)
    assert code == 1 and "some.pth fills 0.0 % of hacnn, its classifiers not counted: it is of another" in err


def test_the_first_line_of_a_run_comes_after_five_steps(capsys):
    state, seen = train.fresh_state(), []
    items = [data.Item((f"{number}.jpg",), number % 2, 0) for number in range(32)]
    pixels = Pixels([""] * 32, (32, 16), np.zeros((32, 32, 16, 3), np.uint8))
    train_set = build_train_set(items, pixels, batch_size=4)
    training = train.prepare(models.build_model("osnet_x0_25", 2, input_size=(32, 16)), train_set, log_every=50)
    for _ in range(2):
        assert train.train_epoch(training, state)
        seen.append([int(line.split("step")[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()])
        state.update(epoch=state["epoch"] + 1, step=0, totals={})
    assert seen == [[5, 8], [8]]


def test_a_run_older_than_a_flag_resumes_with_its_default(finished, tmp_path):
    checkpoint = models.read_checkpoint(finished / "last.pth")
    for name in ("pretrained", "fixbase_epochs", "open_layers", "new_layers", "base_lr_mult"):
        del checkpoint["args"][name]
    torch.save(checkpoint, tmp_path / "old.pth")
    args, _ = train.parse(["--resume", str(tmp_path / "old.pth"), "--epochs", "2"])
    assert args.fixbase_epochs == 0 and args.new_layers is None and args.batch_size == 16
    with pytest.raises(ValueError, match="--new-layers cannot change"):
        train.parse(["--resume", str(tmp_path / "old.pth"), "--epochs", "2", "--new-layers"])


def test_resume_on_other_ids(finished, root, capsys):
    for path in (market(root) / "bounding_box_train").glob("0001_*"):
        path.unlink()
    code, _, err = run_main(capsys, "--resume", finished / "last.pth", "--epochs", 2, "--root", root)
    assert code == 1 and "not the same ones" in err and "--weights" in err


def test_checkpoints_that_do_not_fit(finished, drawn_root, tmp_path, capsys):
    checkpoint = models.read_checkpoint(finished / "best.pth")
    torch.save({**checkpoint, "arch": "osnet"}, tmp_path / "other_arch.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"state_dict": checkpoint["model"]}, tmp_path / "foreign.pth")
    run = [*FLAGS, "--root", drawn_root, "--out", tmp_path / "out"]
    for flags, fragment in (
        ([*run, "--weights", tmp_path / "other_arch.pth"], "holds osnet, not hacnn"),
        ([*run, "--weights", tmp_path / "text.pth"], "not a checkpoint"),
        (["--resume", tmp_path / "text.pth"], "not a checkpoint"),
        (["--resume", tmp_path / "foreign.pth"], "not last.pth of a run"),
        (["--resume", finished / "last.pth", "--arch", "osnet"], "holds hacnn, not osnet"),
        ([*run, "--evaluate", "--weights", tmp_path / "foreign.pth"], "give --arch"),
    ):
        code, _, err = run_main(capsys, *flags)
        assert code == 1 and fragment in err


def test_weights_of_other_ids_start_a_run_and_foreign_files_are_evaluated(finished, drawn_root, tmp_path, capsys):
    checkpoint = models.read_checkpoint(finished / "best.pth")
    torch.manual_seed(1)
    more = models.build_model("hacnn", 9)
    models.load_weights(more, checkpoint["model"])
    torch.save({"state_dict": {f"module.{k}": v for k, v in more.state_dict().items()}}, tmp_path / "foreign.pth")
    # pretrained would be an error without the file: hacnn has no ImageNet weights
    args = argparse.Namespace(arch="hacnn", options={}, pretrained=True, weights=tmp_path / "foreign.pth", seed=0)
    model = train.prepare_model(args, {}, None, 6, torch.device("cpu"))
    assert torch.equal(model.fc_local[0].weight, checkpoint["model"]["fc_local.0.weight"])
    assert "classifier_global.weight" in capsys.readouterr().out
    flags = ["--dataset", "synthetic", "--root", drawn_root, "--cache", finished / "pixels", "--device", "cpu"]
    foreign = run_main(capsys, "--evaluate", "--weights", tmp_path / "foreign.pth", "--arch", "hacnn", *flags)[1]
    ours = run_main(capsys, "--evaluate", "--weights", finished / "best.pth", *flags)[1]
    assert foreign.splitlines()[-1] == ours.splitlines()[-1] != ""


def test_help_begins_with_what_the_program_does_and_examples(capsys):
    code, out, _ = run_main(capsys, "--help")
    assert code == 0
    assert "Trains a network" in out and "    python train.py --resume runs" in out
