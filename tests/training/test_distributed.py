"""Tests of distributed.py: several processes train, evaluate and end as one would.

python -m pytest tests/training/test_distributed.py
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_command, run_main

import models
import train
from training import distributed, evaluate, recipes
from training.pixels import AUGMENTATIONS, Draws, augment

# Batch norms keep their statistics: with those of the batch, which each process sees a part of, losses differ.
FLAGS = ["--arch", "osnet_x0_25", "--options", "input_size=64,32", "--batch-size", "16", "--freeze-bn", "--amp", "off",
         "--device", "cpu", "--log-every", "1", "--optim", "sgd", "--lr", "0.01", "--weight-decay", "0.01",
         "--warmup-epochs", "0"]  # fmt: skip


def torchrun(*arguments, processes=2):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "train.py"]
    return run_command(*command, *arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})


def start_by_hand(*arguments, processes=2):
    """As torchrun does, but nobody ends the others where one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in map(str, range(processes)):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        started.append(subprocess.Popen(
            [sys.executable, "train.py", *map(str, arguments)], cwd=REPOSITORY, text=True,
            env={**os.environ, **group, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    return started


def run_by_hand(*arguments):
    """(output, errors) of each of two processes, which end well: torchrun's own one takes seconds to begin."""
    started = start_by_hand(*arguments)
    told = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return told


def run_here(*arguments):
    """What train.py prints in this process, where it ends well."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train.main([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def score_lines(text):
    return [line for line in text.splitlines() if "rank-1" in line and "protocol" in line]


def assert_same_losses(found, expected):
    """Losses and rates. Not scores: two answers whose distances differ by rounding may change places, which on some
    processors they do; scores are compared by evaluations of one file."""
    assert [r["epoch"] for r in found] == [r["epoch"] for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"images_per_second", "seconds", *evaluate.SCORES}:
            if isinstance(theirs[name], float):
                assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=1e-7), name


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()  # no "module."
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


THOROUGH = ["--dataset", "synthetic", "--epochs", 2, "--loss", "xent", "triplet", "circle:0.1", "center", "arcface:0.1",
            "--num-instances", 2, "--batch-size", 12, "--accumulate", 2, "--clip-norm", 5, "--ema", 0.9, "--augment",
            *AUGMENTATIONS, "--flip", "--rerank", "--test-batch-size", 16]  # fmt: skip


@pytest.fixture(scope="module")
def alone(drawn_root, tmp_path_factory):
    """The folder of a run of one process, and what it printed."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, run_here(*FLAGS, *THOROUGH, "--root", drawn_root, "--out", out)


def test_two_processes_train_and_score_as_one(alone, drawn_root, tmp_path):
    folder, printed = alone
    done = torchrun(*FLAGS, *THOROUGH, "--root", drawn_root, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "2 processes, 6 of 12 images of a batch in each" in done.stdout
    assert_same_losses(records(tmp_path / "run"), records(folder))
    assert done.stdout.count("finished:") == done.stdout.count("epoch   1/2  step    1/") == 1  # nobody else talks
    weights, expected = (models.read_checkpoint(path / "last.pth") for path in (tmp_path / "run", folder))
    for part in ("model", "averaged", "criterion"):
        assert_same_weights(weights[part], expected[part])

    # The same weights: the same scores to the last digit, after re-ranking too, and the same answers per query.
    command = ["--evaluate", "--weights", folder / "best.pth", "--dataset", "synthetic", "--root", drawn_root, "--flip",
               "--rerank", "--expand", 3, "--test-batch-size", 16, "--device", "cpu", "--out"]  # fmt: skip
    one, ((two, _), _) = run_here(*command, tmp_path / "one"), run_by_hand(*command, tmp_path / "two")
    assert score_lines(two) == score_lines(one) and len(score_lines(one)) == 3
    assert "mirror images too" in one and score_lines(one)[0] in printed
    for name in ("queries.csv", "scores.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_two_processes_adapt_as_one(drawn_root, tmp_path):
    """Both group the same people, and begin at the same means."""
    torch.manual_seed(0)
    model = models.build_model("osnet_x0_25", 1, input_size=(64, 32))
    torch.save({"arch": "osnet_x0_25", "options": {"input_size": (64, 32)}, "num_ids": 1, "model": model.state_dict()},
               tmp_path / "weights.pth")  # fmt: skip
    flags = ["--adapt", "--dataset", "synthetic", "--root", drawn_root, "--weights", tmp_path / "weights.pth",
             *FLAGS[4:], "--lr", 1e-4, "--batch-size", 20, "--epochs", 2, "--test-batch-size", 16]  # fmt: skip
    run_here(*flags, "--out", tmp_path / "one")
    (printed, _), (silent, _) = run_by_hand(*flags, "--out", tmp_path / "two")
    assert printed.count("round   2/2") == 1 and "round" not in silent
    two, one = (records(tmp_path / name)[1] for name in ("two", "one"))  # the first round
    assert two["people"] == one["people"] > 1 and two["images"] == one["images"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)  # two steps: rounding grows 30 times in each
    one, two = (models.read_checkpoint(tmp_path / name / "last.pth") for name in ("one", "two"))
    assert torch.equal(one["labels"], two["labels"]) and one["labels"].max() > 0  # of the second round


def test_statistics_of_batch_norms_are_those_of_the_first_process(drawn_root, tmp_path):
    """Each process saw another part of the batches: what is tested has to be what is saved."""
    learning = [flag for flag in FLAGS if flag != "--freeze-bn"]
    flags = ["--dataset", "synthetic", "--root", drawn_root, "--device", "cpu", "--test-batch-size", 16]
    (trained, _), _ = run_by_hand(*learning, *flags, "--epochs", 2, "--out", tmp_path / "run")
    tested = run_here("--evaluate", "--weights", tmp_path / "run" / "best.pth", *flags)
    assert score_lines(tested) == score_lines(trained)


def test_a_killed_process_ends_the_other_and_one_process_goes_on(alone, drawn_root, tmp_path):
    last = tmp_path / "run" / "last.pth"
    first, second = start_by_hand(*FLAGS, *THOROUGH, "--root", drawn_root, "--out", last.parent)
    for line in first.stdout:
        if line.startswith("epoch   2/2  step    1/"):
            break
    second.kill()
    started = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 1 and time.monotonic() - started < 30
    told = r"rank 0: error: another process ended, or .* --timeout 600 s .* --resume goes on, .*"
    assert re.fullmatch(told, errors.strip())
    second.communicate()
    assert models.read_checkpoint(last)["epoch"] == 1
    run_here("--resume", last)
    assert_same_losses(records(last.parent), records(alone[0]))


def test_a_process_that_hangs_ends_the_other_after_the_timeout(drawn_root, tmp_path):
    flags = ["--dataset", "synthetic", "--root", drawn_root, "--epochs", 500, "--timeout", 10, "--out", tmp_path / "a"]
    first, second = start_by_hand(*FLAGS, *flags)
    for line in first.stdout:
        if line.startswith("epoch   2/500"):
            break
    second.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    _, errors = first.communicate(timeout=60)
    second.kill()
    second.communicate()
    assert first.returncode == 1 and "did not answer within --timeout 10 s" in errors
    assert 8 < time.monotonic() - started < 40


def test_a_signal_to_one_process_stops_all_after_the_step_and_the_run_goes_on(drawn_root, tmp_path):
    """Without xent (the classifier stands still) and with a head that trains alone at first."""
    flags = ["--dataset", "synthetic", "--epochs", 2, "--loss", "triplet", "cosface:0.02", "--fixbase-epochs", 1,
             "--batch-size", 4, "--num-instances", 2, "--lr", 0.001, "--root", drawn_root]  # fmt: skip
    run_here(*FLAGS, *flags, "--out", tmp_path / "one")
    last = tmp_path / "two" / "last.pth"
    first, second = start_by_hand(*FLAGS, *flags, "--out", last.parent)
    for line in first.stdout:
        if line.startswith("epoch   2/2  step    1/"):
            break
    second.send_signal(signal.SIGTERM)  # as torchrun does on Ctrl-C
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and not errors and "interrupted; saved" in output, errors
    assert second.wait(timeout=60) == 130
    second.communicate()
    assert models.read_checkpoint(last)["epoch"] == 1 and models.read_checkpoint(last)["step"] > 0
    run_by_hand("--resume", last)
    assert_same_losses(records(last.parent), records(tmp_path / "one"))
    assert_same_weights(*(models.read_checkpoint(path)["model"] for path in (last, tmp_path / "one" / "last.pth")))


def test_video_is_scored_by_two_processes_as_by_one(video_root, tmp_path):
    flags = ["--dataset", "synthetic-video", "--seq-len", 2, "--temporal", "attention", "--batch-size", 4,
             "--epochs", 2, "--root", video_root, "--test-batch-size", 3]  # fmt: skip
    run_here(*FLAGS, *flags, "--out", tmp_path / "one")
    run_by_hand(*FLAGS, *flags, "--out", tmp_path / "two")
    assert_same_losses(records(tmp_path / "two"), records(tmp_path / "one"))


MISTAKES = [
    (["--batch-size", "15"], 1, ["--batch-size 15 is that of all 2 processes", "a multiple of 2"]),
    (["--device", "cuda:1"], 1, ["--device cuda:1: torchrun gives each process a GPU of its own"]),
    (["--sync-bn"], 1, ["--sync-bn is for several processes on GPUs"]),
    (["--epochs", "0"], 2, ["--epochs must be at least 1, got 0"]),
    (["--dataset", "folder:nowhere"], 1, ["the folder of folder:nowhere is not there"]),
]


def test_mistakes_are_told(drawn_root, tmp_path):
    """One after the other in the same two processes, each in a group at a port of its own."""
    started, base = [], ["--dataset", "synthetic", *FLAGS, "--root", drawn_root, "--out", tmp_path / "run"]
    script = """
import os, sys, time, train
for number, flags in enumerate(sys.argv[1].split(";")):
    os.environ["MASTER_PORT"] = sys.argv[3:][number]
    try:
        code = train.main([*sys.argv[2].split(), *flags.split()])
    except SystemExit as stop:
        code = stop.code
    print("code", code, file=sys.stderr, flush=True)
"""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in MISTAKES]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in sockets]
    given = ";".join(" ".join(flags) for flags, *_ in MISTAKES), " ".join(map(str, base)), *ports
    for rank in ("0", "1"):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        started.append(subprocess.Popen(
            [sys.executable, "-c", script, *given], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **group, "OMP_NUM_THREADS": "1"},
        ))  # fmt: skip
    (_, errors), (printed, others) = [process.communicate(timeout=100) for process in started]
    told = re.split(r"code (\d)\n", errors)
    for (_, code, fragments), text, found in zip(MISTAKES, told[::2], told[1::2], strict=False):
        assert int(found) == code and all(fragment in text for fragment in fragments), text
    codes = [str(code) for _, code, _ in MISTAKES]
    assert told[1::2] == re.findall(r"code (\d)", others) == codes and "Traceback" not in errors
    assert printed == ""  # standard output is the first's alone


def test_what_another_process_alone_finds_is_told(tmp_path):
    """Such as a checkpoint that is not on that machine."""
    group = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = run_command("train.py", "--resume", tmp_path / "none.pth", env={**os.environ, **group})
    assert done.returncode == 1 and re.match(r"rank 1: error: .*none\.pth", done.stderr) and not done.stdout


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050"])
def test_synchronised_batch_norms_keep_names_and_features(arch):
    """timm's batch norms hold an activation, which must stay."""
    torch.manual_seed(0)
    model = models.build_model(arch, 3, input_size=(64, 32)).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        before, names = model(images), list(model.state_dict())
        model = recipes.synchronise_statistics(model)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        assert list(model.state_dict()) == names
        torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)


def test_sync_bn_in_one_process_is_refused(drawn_root, capsys):
    code, _, errors = run_main(capsys, "--sync-bn", "--dataset", "synthetic", "--root", drawn_root)
    assert code == 1 and "torchrun --nproc-per-node N train.py" in errors


def test_one_process_gets_back_what_it_gives():
    rows = torch.rand(3, 2, requires_grad=True)
    assert distributed.gather(rows) is rows and distributed.gather_parts(rows) is rows
    assert distributed.average(rows) is rows and distributed.agree(True) is True and distributed.agree(False) is False
    assert distributed.part(5) == slice(0, 5) and distributed.parallel(rows, None) is rows


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_draw_what_one_draws(processes):
    """Augmentation of the parts, put together, is that of the whole batch."""
    images = torch.randint(0, 256, (12, 3, 20, 10), generator=torch.Generator().manual_seed(0)).byte()
    how = AUGMENTATIONS, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    whole = augment(images, Draws(3), *how)
    parts = [
        augment(part, Draws(3, rank, processes), *how)
        for rank, part in enumerate(images.chunk(processes))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    assert not torch.equal(Draws(3, 0, 2).uniform(0, 1, 5), Draws(3, 1, 2).uniform(0, 1, 5))


@pytest.mark.parametrize(("length", "processes"), [(7, 3), (2, 4), (12, 3), (0, 2)])
def test_parts_follow_one_another(length, processes, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    rows = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "1")
        rows.append(np.arange(length)[distributed.part(length)])
    assert np.concatenate(rows).tolist() == list(range(length))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
