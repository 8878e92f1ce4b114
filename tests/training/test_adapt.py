"""Tests of training/adapt.py and train.py --adapt: crops without labels, which a network groups and learns from.

python -m pytest tests/training/test_adapt.py
"""

import contextlib
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import draw, press_ctrl_c, run_main

import data
import models
import train
from searching.gallery import Row
from training import adapt, evaluate
from training.pixels import Pixels, TrainSet

ARCH = {"arch": "osnet_x0_25", "options": {"input_size": (64, 32)}}
LIGHT = ["--batch-size", 8, "--epochs", 2, "--lr", 0.001, "--amp", "off", "--device", "cpu",
         "--log-every", 1]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a network that was trained on nothing."""
    torch.manual_seed(0)
    model = models.build_model(ARCH["arch"], 3, **ARCH["options"])
    path = tmp_path_factory.mktemp("weights") / "fresh.pth"
    torch.save({**ARCH, "num_ids": 3, "model": model.state_dict(), "dataset": "elsewhere"}, path)
    return path


@pytest.fixture(scope="module")
def plain(drawn_root, weights, tmp_path_factory):
    """(flags of a run of two rounds, its folder, what it printed)."""
    flags = ["--adapt", "--dataset", "synthetic", "--root", drawn_root, "--weights", weights, *LIGHT]
    out, printed = tmp_path_factory.mktemp("plain") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert train.main([str(flag) for flag in [*flags, "--out", out]]) == 0
    return flags, out, printed.getvalue()


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# Parts ----------------------------------------------------------------------------------------------------------------


def test_agreement_by_hand():
    one, other = np.array([0, 0, 0, 1, 1, -1]), np.array([5, 5, 2, 2, 2, 5])
    # pairs: 3 + 1 in one, 3 + 3 in the other; together in both are (0, 1) and (3, 4)
    assert adapt.agreement(one, other) == pytest.approx(2 * 2 / (4 + 6))
    assert adapt.agreement(one, one) == 1 and adapt.agreement(one, np.array([-1] * 6)) == 0
    assert adapt.agreement(np.array([-1, 0]), np.array([0, -1])) == 1  # no pair in either: nothing differs


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1).numpy()


class Found:
    nodes = [[0, 1], [2, 3], [4, 5], [6]]


def test_tracklets_are_checked_by_their_ends_and_by_who_cannot_be_one():
    features = unit([1, 0, 0], [1, 0.05, 0], [0, 1, 0], [1, 0.08, 0], [0, 0, 1], [0, 0.1, 1], [0, 1, 0])
    rows = [Row(str(n), camid="1", tracklet=f"t{n // 2}", time=float(n % 2)) for n in range(6)] + [Row("6", camid="1")]
    told = adapt.check_tracklets(features, rows, Found)
    assert told == {"whole": pytest.approx(2 / 3)}  # the second ends where another does; all begin at 0: no times
    rows = [row._replace(time=number + 0.0) if row.tracklet else row for number, row in enumerate(rows)]
    rows[1] = rows[1]._replace(time=2.5)  # the first and the second are there at the same time
    told = adapt.check_tracklets(features, rows, Found)
    assert told == {"whole": pytest.approx(2 / 3), "conflicts": 0.0}  # 0.51 of their means; of the ends 0.995
    features[2] = features[0]
    assert adapt.check_tracklets(features, rows, Found)["conflicts"] == 1.0
    assert adapt.check_tracklets(features, [row._replace(tracklet="") for row in rows], Found) == {}


def test_rows_of_items_tell_no_person():
    items = [data.Item(("a", "b"), 7, 2), data.Item(("c",), 7, 0), data.Item(("d", "e"), 9, 2)]
    rows = adapt.rows_of(items)
    assert [row.path for row in rows] == list("abcde") and [row.camid for row in rows] == list("22022")
    assert {row.pid for row in rows} == {None}
    assert [row.tracklet for row in rows] == ["0", "0", "", "2", "2"]


@pytest.mark.parametrize("arch, options, branches", [
    ("hacnn", {"bnneck": True}, 2), ("osnet_x0_25", {"input_size": (64, 32), "temporal": "avg"}, 1)])
def test_both_is_what_evaluation_gives_and_what_losses_see(arch, options, branches):
    model = models.build_model(arch, 3, **options)
    images = torch.randn(2, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    both = adapt.Both(model).eval()
    with torch.no_grad():
        found = both(images).split(both.sizes, dim=1)
        assert torch.equal(found[0], model.eval()(images)) and len(found) == 1 + branches
        assert all(map(torch.equal, found[1:], getattr(model, "frames", model).branches(images)))


def test_batch_norms_take_up_what_they_see():
    torch.manual_seed(0)
    model = models.build_model("osnet_x0_25", 3, input_size=(64, 32))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = model.conv1.bn
    momentum, array = first.momentum, np.random.default_rng(0).integers(0, 256, (20, 64, 32, 3), dtype=np.uint8)
    pixels, seen = Pixels([str(number) for number in range(20)], (64, 32), array), []
    hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    adapt.adopt_statistics(model, pixels, batch_size=10)
    hook.remove()
    assert [len(batch) for batch in seen] == [10, 10] and first.momentum == momentum
    torch.testing.assert_close(first.running_mean, torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(dim=0))
    torch.testing.assert_close(first.running_var, torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(dim=0))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt.adopt_statistics(model, Pixels(["0"], (64, 32), array[:1]))
    assert same_bits(model.state_dict(), before)


def test_centres_are_the_means_of_the_groups(drawn_root, weights):
    model, _ = models.load_checkpoint(weights)
    items = data.load_dataset("synthetic", drawn_root).train
    pixels, rows = Pixels([item.paths[0] for item in items], model.input_size), adapt.rows_of(items)
    found = adapt.regroup(model, pixels, rows)
    features = evaluate.extract_features(model, pixels, flip=True)  # of an OSNet what losses see is what is grouped
    assert len(found.labels) == len(items) and found.told["people"] == found.labels.max() + 1 == len(found.centers[0])
    assert found.told["grouped"] == (found.labels >= 0).sum() and "as_before" not in found.told
    for label, center in enumerate(found.centers[0]):
        torch.testing.assert_close(center, features[torch.from_numpy(found.labels == label)].mean(dim=0))
    again = adapt.regroup(model, pixels, rows, before=found.labels)
    assert again.told["as_before"] == 1 and (again.labels == found.labels).all()


def test_batches_leave_out_what_has_no_label():
    labels = np.array([0, -1, 1, 0, 1, -1, 0, 1])
    for instances in (None, 2):
        batches = TrainSet(None, labels, batch_size=4, num_instances=instances).batches(0)
        assert batches and not set(np.concatenate(batches)) & {1, 5}


# The command ----------------------------------------------------------------------------------------------------------


def test_labels_of_the_data_set_are_not_read(plain, weights, tmp_path, capsys, monkeypatch):
    """Shuffled labels give the same bits."""
    flags, out, printed = plain
    load_set = evaluate.load_set

    def shuffled(*args, **kwargs):
        splits = load_set(*args, **kwargs)
        pids = np.random.default_rng(5).permutation([item.pid for item in splits.train]).tolist()
        return splits._replace(train=[item._replace(pid=pid) for item, pid in zip(splits.train, pids, strict=True)])

    monkeypatch.setattr(train.evaluate, "load_set", shuffled)
    code, _, err = run_main(capsys, *flags, "--out", tmp_path / "shuffled")
    assert code == 0, err
    first, second = (models.read_checkpoint(folder / "last.pth") for folder in (out, tmp_path / "shuffled"))
    assert same_bits(first["model"], second["model"]) and torch.equal(first["labels"], second["labels"])
    assert not same_bits(first["model"], models.read_checkpoint(weights)["model"])
    told, other = records(out), records(tmp_path / "shuffled")
    for name in ("people", "confidence", "loss", "mAP"):
        assert [r.get(name) for r in told] == [r.get(name) for r in other]
    assert [r["epoch"] for r in told] == [0, 1, 2] and told[0]["mAP"] and told[2]["mAP"]
    assert "as_before" in told[2] and "of the pairs as in the round before" in printed


def test_an_adapted_network_says_so_and_its_file_too(drawn_root, weights, tmp_path, capsys):
    crops = drawn_root / "synthetic" / "Market-1501-v15.09.15" / "bounding_box_train"
    names, out = sorted(path.name for path in crops.iterdir()), tmp_path / "run"
    with open(tmp_path / "shop.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("path", "pid", "camid"), *((crops / name, 1, name[6]) for name in names)])
    code, printed, err = run_main(capsys, "--adapt", tmp_path / "shop.csv", "--weights", weights, "--root", tmp_path,
                                  *LIGHT, "--epochs", 1, "--out", out)  # fmt: skip
    assert code == 0, err
    assert "nobody knows whether it is better now" in printed and "rank-1" not in printed
    best = models.read_checkpoint(out / "best.pth")
    told = f"elsewhere, adapted to {len(names)} images of shop.csv without labels"
    assert best["dataset"] == told and best["pids"] == [0] and best["best_weights"] == "averaged"
    assert (out / "curves.png").is_file()
    model, info = models.load_checkpoint(out / "best.pth")
    assert info["dataset"] == told and model.input_size == (64, 32)
    args, _ = train.parse(["--resume", str(out / "last.pth"), "--epochs", "2"])
    assert (args.arch, args.dataset, args.recipe) == (ARCH["arch"], [], "adapt")


def test_ctrl_c_in_a_round_resumes_to_the_same_bits(plain, tmp_path, capsys, monkeypatch):
    flags, straight, _ = plain
    steps = max(r["images"] for r in records(straight)[1:]) // 8
    assert steps > 2
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 2)
        assert run_main(capsys, *flags, "--out", tmp_path / "cut")[0] == 130
    last = tmp_path / "cut" / "last.pth"
    assert models.read_checkpoint(last)["step"] == 2
    code, _, err = run_main(capsys, "--resume", last, "--adapt", "elsewhere")
    assert code == 2 or "cannot change" in err
    assert run_main(capsys, "--resume", last)[0] == 0
    a, b = models.read_checkpoint(last), models.read_checkpoint(straight / "last.pth")
    for part in ("model", "averaged", "criterion"):
        assert same_bits(a[part], b[part]), part
    assert torch.equal(a["labels"], b["labels"]) and a["told"] == b["told"] and a["scores"] == b["scores"]


@pytest.mark.parametrize("scores, best", [((0.5, 0.4, 0.3), 0), ((0.5, 0.6, 0.3), 1)])
def test_no_round_is_kept_that_made_it_worse(drawn_root, weights, tmp_path, capsys, monkeypatch, scores, best):
    scores_of, out = train.evaluate.scores_of, tmp_path / "run"

    def of_epoch(*given):
        done = len(records(out)) if (out / "log.jsonl").exists() else 0
        return {**scores_of(*given), "mAP": scores[done]}

    monkeypatch.setattr(train.evaluate, "scores_of", of_epoch)
    flags = ["--adapt", "--dataset", "synthetic", "--target", "synthetic", "--root", drawn_root, "--weights", weights]
    code, printed, err = run_main(capsys, *flags, *LIGHT, "--out", out)
    assert code == 0, err
    found, came = models.read_checkpoint(out / "best.pth"), models.read_checkpoint(weights)["model"]
    bare = {name: value for name, value in found["model"].items() if "classifier" not in name}
    assert found["best_epoch"] == best and f"epoch {best} of 2" in printed
    assert ("no round was better than the network as it came" in printed) == (best == 0)
    assert same_bits(bare, {name: came[name] for name in bare}) == (best == 0)


BAD = [
    (["--adapt", "nowhere"], "--adapt nowhere: no such file or folder"),
    (["--adapt", "empty"], "no image in or below this folder"),
    (["--adapt", "ten"], "of 10 images, and a batch is of 64: give more images, a lower --batch-size"),
    (["--adapt", "one"], "found 0 people in 0 of 1 images"),
    (["--adapt", "equal"], "found 1 people in 12 of 12 images, and a batch is of 2"),
    (["--adapt", "broken"], "1 images cannot be read"),
    (["--adapt", "list.csv"], "1 files cannot be read: .*gone.jpg"),
    (["--adapt", "ten", "--dataset", "synthetic"], "leave --dataset out"),
    (["--adapt", "ten", "--loss", "xent"], "no label, no xent"),
    (["--adapt", "ten", "--holdout", 2], "--adapt does not go with --holdout"),
    (["--adapt", "ten", "--weights", "none.pth"], "no checkpoint at none.pth"),
]


@pytest.mark.parametrize("flags, told", BAD)
def test_bad_input(flags, told, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, count in (("ten", 10), ("one", 1), ("broken", 12)):
        for number in range(count):
            draw(tmp_path / folder / f"{number}.jpg", number)
    for number in range(12):
        draw(tmp_path / "equal" / f"{number}.jpg", 0)
    (tmp_path / "broken" / "x.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("path\nten/0.jpg\ngone.jpg\n")
    given = flags if "--weights" in flags else [*flags, "--weights", weights]
    batch = 2 if "equal" in flags else 64
    code, _, err = run_main(capsys, *given, "--batch-size", batch, "--device", "cpu", *flags[2:])
    assert code in (1, 2) and "Traceback" not in err
    assert any(re.search(told, line) for line in err.splitlines()), err


def test_weights_are_asked_for(capsys):
    code, _, err = run_main(capsys, "--adapt", "crops")
    assert code == 1 and "--adapt needs --weights FILE" in err


def test_weights_that_are_not_numbers_are_told(drawn_root, weights, tmp_path, capsys):
    stored = models.read_checkpoint(weights)
    stored["model"] = {name: value * float("nan") if value.is_floating_point() else value
                       for name, value in stored["model"].items()}  # fmt: skip
    torch.save(stored, tmp_path / "nan.pth")
    code, _, err = run_main(capsys, "--adapt", drawn_root / "synthetic", "--weights", tmp_path / "nan.pth", *LIGHT,
                            "--root", tmp_path, "--out", tmp_path / "run")  # fmt: skip
    assert code == 1 and "not numbers" in err
