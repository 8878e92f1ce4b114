"""Tests of recipes.py, and of train.py with what it offers: losses with parameters, averages, accumulation, recipes.

python -m pytest tests/training/test_recipes.py
"""

import copy
import json
import math
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, press_ctrl_c, run_command, run_main
from torch.optim.optimizer import register_optimizer_step_pre_hook

import data
import losses
import models
import train
from data import epoch_batches
from training import recipes
from training.pixels import TrainSet, normalise

LIGHT = ["--arch", "osnet_x0_25", "--options", "input_size=64,32", "--dataset", "synthetic", "--batch-size", "16",
         "--warmup-epochs", "0", "--device", "cpu", "--amp", "off", "--log-every", "1"]  # fmt: skip
CPU = torch.device("cpu")


def arguments(*flags):
    return train.parse([str(flag) for flag in flags])[0]


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Two(torch.nn.Module):
    """A network of two branches, sizes 3 and 5, with a batch norm before each classifier."""

    mean, std, input_size = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (4, 4)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 4), torch.nn.BatchNorm2d(8)
        self.classifier_a, self.classifier_b = torch.nn.Linear(3, 2), torch.nn.Linear(5, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(1)  # (B, 8)
        a, b = x[:, :3], x[:, 3:]
        return ([self.classifier_a(a), self.classifier_b(b)], [a, b]) if self.training else x


class Pixels:
    """Row i is always the same picture."""

    images = torch.randint(0, 256, (12, 3, 4, 4), generator=torch.Generator().manual_seed(1)).byte()

    def batch(self, rows, device):
        return self.images[torch.from_numpy(rows)]


LABELS = np.array([0, 1] * 6)


def prepared(*flags):
    """The Training of a fresh run on 12 pictures; SGD without anything beside the rate."""
    args = arguments("--optim", "sgd", "--momentum", 0, "--weight-decay", 0, "--warmup-epochs", 0, "--augment",
                     "--schedule", "constant", "--lr", 0.1, "--batch-size", 4, "--log-every", 99, "--amp", "off",
                     *flags)  # fmt: skip
    torch.manual_seed(0)
    samples = TrainSet(Pixels(), LABELS, batch_size=args.batch_size, augment=args.augment, seed=args.seed)
    return train.prepare_training(args, Two(), samples)


def train_epochs(epochs, *flags):
    """What `prepared` gives, after these epochs."""
    training, state = prepared(*flags), train.fresh_state()
    for epoch in epochs:
        state.update(epoch=epoch, step=0, totals={})
        assert train.train_epoch(training, state)
    return training


def pictures(model, rows):
    return normalise(Pixels().batch(rows, None), model.mean, model.std)


# Losses ---------------------------------------------------------------------------------------------------------------


def outputs(batch=6, num_ids=4):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, num_ids, generator=generator) for _ in range(2)]
    features = [torch.randn(batch, size, generator=generator) for size in (3, 5)]
    return logits, features, torch.tensor([0, 0, 1, 1, 2, 3])


def test_every_loss_is_the_weighted_mean_of_its_branches():
    logits, features, labels = outputs()
    expected = {
        "xent": [F.cross_entropy(x, labels, label_smoothing=0.2) for x in logits],
        "triplet": [losses.batch_hard_triplet(x, labels, 0.7) for x in features],
        "triplet-soft": [losses.batch_hard_triplet(x, labels, "soft") for x in features],
        "circle": [losses.circle_loss(x, labels) for x in features],
        "center": [losses.CenterLoss(4, x.shape[1])(x, labels) for x in features],
        "ring": [(x.norm(dim=1) - 1).square().mean() for x in features],
        "arcface": [losses.ArcFace(4, x.shape[1])(x, labels) for x in features],
        "cosface": [losses.CosFace(4, x.shape[1])(x, labels) for x in features],
        "prototypes": [losses.Prototypes(4, x.shape[1], 0.2)(x, labels) for x in features],
    }
    assert expected.keys() == recipes.LOSSES.keys()
    criterion = recipes.Criterion(dict.fromkeys(expected, 3.0), 4, [3, 5], label_smooth=0.2, margin=0.7)
    total, parts = criterion(logits, features, labels)
    assert list(parts) == list(expected)
    for name, (first, second) in expected.items():
        torch.testing.assert_close(parts[name], (first + second) / 2)
    torch.testing.assert_close(total, 3 * sum(parts.values()))


@pytest.mark.parametrize(
    ("arch", "options", "sizes"),
    [
        ("hacnn", {}, [512, 512]),
        ("hacnn", {"learn_region": False}, [512]),
        ("hacnn", {"temporal": "attention"}, [512, 512]),
        ("resnet18", {"embedding": 32, "bnneck": True}, [32]),
        ("mudeep", {}, [4096]),
    ],
)
def test_the_sizes_of_the_branches_are_found_and_nothing_changes(arch, options, sizes):
    model = models.build_model(arch, 3, **options)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert recipes.branch_sizes(model) == sizes
    assert same_bits(before, model.state_dict()) and torch.equal(random, torch.get_rng_state())


def test_centres_and_radius_move_at_their_own_rate_whatever_weight_and_branches():
    """By hand for a batch of two images of id 0 and one of id 1: gradients of the unweighted losses, times 0.25."""
    criterion = recipes.Criterion({"center": 0.0005, "ring": 0.01}, 3, [3, 5])
    model = torch.nn.Linear(1, 1)
    main, own = recipes.build_optimizers(model, criterion, center_lr=0.25)
    generator = torch.Generator().manual_seed(0)
    features, labels = [torch.randn(3, size, generator=generator) for size in (3, 5)], torch.tensor([0, 0, 1])
    before = copy.deepcopy(criterion.state_dict())
    criterion(None, features, labels)[0].backward()
    own.step()
    for branch, feature in enumerate(features):
        centres, radius = (before[f"learned.{name}"] for name in (f"center.{branch}.centers", f"ring.{branch}.radius"))
        moved = centres.clone()
        moved[0] -= 0.25 * 2 / 3 * (2 * centres[0] - feature[0] - feature[1])
        moved[1] -= 0.25 * 2 / 3 * (centres[1] - feature[2])
        torch.testing.assert_close(criterion.learned["center"][branch].centers.detach(), moved)
        radius = radius - 0.25 * 2 * (radius - feature.norm(dim=1).mean())
        torch.testing.assert_close(criterion.learned["ring"][branch].radius.detach(), radius)
    held = {id(p) for group in main.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


def test_heads_train_with_the_main_optimizer_at_its_full_rate():
    training = prepared("--loss", "arcface", "cosface", "--new-layers", "--base-lr-mult", 0.5)
    criterion, optimizers = training.criterion, training.optimizers
    assert len(optimizers) == 1
    new, base = (group["params"] for group in optimizers[0].param_groups)
    heads = {id(p) for name in ("arcface", "cosface") for p in criterion.learned[name].parameters()}
    assert len(heads) == 4 and heads <= {id(p) for p in new} and not heads & {id(p) for p in base}
    before = copy.deepcopy(criterion.state_dict())
    after = train_epochs([0], "--loss", "arcface", "cosface").criterion.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_another_parameter_takes_the_place_of_one_and_nothing_is_remembered():
    kept, old, new = (torch.nn.Parameter(torch.ones(size)) for size in (2, 3, 4))
    optimizer = torch.optim.AdamW([kept, old], lr=0.1)
    (kept.sum() + old.sum()).backward()
    optimizer.step()
    recipes.replace_parameter(optimizer, old, new)
    assert [p is q for p, q in zip(optimizer.param_groups[0]["params"], (kept, new), strict=True)] == [True, True]
    assert list(optimizer.state) == [kept]
    new.sum().backward()
    optimizer.step()
    assert (new < 1).all() and len(optimizer.state_dict()["state"]) == 2


def test_without_xent_the_classifier_stands_still_and_no_accuracy_is_told(drawn_root, tmp_path, capsys):
    flags = [*LIGHT, "--epochs", 1, "--loss", "arcface", "--root", drawn_root, "--out", tmp_path / "run"]
    code, out, err = run_main(capsys, *flags)
    assert code == 0, err
    assert "accuracy" not in out and "accuracy" not in (tmp_path / "run" / "log.jsonl").read_text()
    torch.manual_seed(0)
    fresh = models.build_model("osnet_x0_25", 6, input_size=(64, 32)).state_dict()
    trained = models.read_checkpoint(tmp_path / "run" / "last.pth")
    assert torch.equal(fresh["classifier.weight"], trained["model"]["classifier.weight"])  # no weight decay either
    assert not torch.equal(fresh["fc.0.weight"], trained["model"]["fc.0.weight"])
    assert trained["criterion"].keys() == {"learned.arcface.0.weight"}


def test_a_head_alone_trains_while_the_base_is_frozen():
    """The opened classifier is not arcface's concern: nothing of the model has a gradient, and the head trains."""
    training = prepared("--loss", "arcface")
    before, fresh = training.model.state_dict(), training.criterion.state_dict()
    flags = ["--loss", "arcface", "--fixbase-epochs", 1, "--open-layers", "classifier_a"]
    training = train_epochs([0], *flags)
    model, criterion = training.model, training.criterion
    assert same_bits(before, model.state_dict())
    assert not torch.equal(fresh["learned.arcface.0.weight"], criterion.state_dict()["learned.arcface.0.weight"])


@pytest.mark.parametrize(
    ("names", "sampler", "expected"),
    [
        (["xent"], None, None), (["center", "ring", "arcface", "cosface"], None, None),
        (["xent", "triplet"], None, 4), (["triplet-soft"], None, 4), (["circle", "xent"], None, 4),
        (["prototypes"], None, None),
        (["xent"], "identity", 4), (["triplet"], "shuffle", None),
    ],
)  # fmt: skip
def test_batches_hold_several_images_of_a_person_where_a_loss_needs_them(names, sampler, expected):
    flags = ["--loss", *names, "--batch-size", 8, *(["--sampler", sampler] if sampler else [])]
    items = [data.Item((str(number),), number // 4, 0) for number in range(16)]
    assert train.prepare_train_set(arguments(*flags), items, None).num_instances == expected


# Steps ----------------------------------------------------------------------------------------------------------------


def written_out(groups, flags=(), clip=None, freeze=True):
    """Weights after one SGD step per group of rows, by a loop that takes each group as one large batch."""
    model, criterion = prepared(*flags).model, prepared(*flags).criterion
    for rows in groups:
        model.train()
        model.norm.train(not freeze)
        logits, features = model(pictures(model, rows))
        loss, _ = criterion(logits, features, torch.from_numpy(LABELS[rows]))
        weights = [p for p in model.parameters()]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        length = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        factor = min(1, clip / length) if clip else 1
        for p, gradient in zip(weights, gradients, strict=True):
            p.data -= 0.1 * factor * gradient
    return model


def assert_same_weights(model, expected):
    for name, value in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-5, atol=1e-6, msg=name)


def test_accumulated_batches_equal_a_large_one_and_the_rest_of_an_epoch_steps_too():
    """Three batches of four, two per step: the last one is a step by itself."""
    batches = epoch_batches(LABELS, 4, None, 0, 0)
    assert len(batches) == 3
    trained = train_epochs([0], "--freeze-bn", "--accumulate", 2).model
    assert_same_weights(trained, written_out([np.concatenate(batches[:2]), batches[2]]))
    whole = train_epochs([0], "--freeze-bn", "--accumulate", 5).model
    assert_same_weights(whole, written_out([np.concatenate(batches)]))
    large = train_epochs([0], "--freeze-bn", "--batch-size", 12).model
    assert_same_weights(whole, large)


def test_accumulated_batches_take_the_rate_of_their_first():
    flags = ["--schedule", "multi-step", "--milestones", 1 / 3, "--epochs", 1, "--freeze-bn", "--accumulate", 2]
    seen = []

    def note(optimizer, *_):
        seen.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    try:
        train_epochs([0], *flags)
    finally:
        hook.remove()
    assert seen == pytest.approx([0.1, 0.01])  # batches 1 and 2 from the start, batch 3 at two thirds


def test_clipping_shortens_the_gradient_of_the_network_and_leaves_centres_alone():
    batches, flags = epoch_batches(LABELS, 4, None, 0, 0), ["--loss", "xent", "center:0.5"]
    free = train_epochs([0], "--freeze-bn", "--loss", "xent").model
    assert_same_weights(free, written_out(batches, ["--loss", "xent"]))
    clipped = train_epochs([0], "--freeze-bn", "--clip-norm", 0.3, "--loss", "xent").model
    assert_same_weights(clipped, written_out(batches, ["--loss", "xent"], clip=0.3))
    assert not torch.equal(free.conv.weight, clipped.conv.weight)
    still = train_epochs([0], *flags, "--lr", 1e-30, "--freeze-bn", "--clip-norm", 1e-9).criterion
    moving = train_epochs([0], *flags, "--lr", 1e-30, "--freeze-bn").criterion
    assert same_bits(still.state_dict(), moving.state_dict())
    fresh = prepared(*flags).criterion.state_dict()
    assert not torch.equal(still.state_dict()["learned.center.0.centers"], fresh["learned.center.0.centers"])


def test_frozen_statistics_stand_still_while_scale_and_shift_train():
    before = prepared().model.state_dict()
    after = train_epochs([0, 1], "--freeze-bn").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith(("norm.running", "norm.num"))}
    opened = train_epochs([0], "--freeze-bn", "--fixbase-epochs", 1, "--open-layers", "norm").model.state_dict()
    assert {n for n in before if not torch.equal(before[n], opened[n])} == {"norm.weight", "norm.bias"}
    thawed = train_epochs([0]).model.state_dict()
    assert not torch.equal(before["norm.running_mean"], thawed["norm.running_mean"])


def test_frozen_statistics_reach_all_kinds_of_batch_norm():
    model = models.build_model("resnet18", 3, bnneck=True, embedding=8, input_size=(64, 32)).train()
    recipes.freeze_statistics(model)
    kinds = {type(module).__name__ for module in model.modules() if not module.training}
    assert kinds == {"BatchNorm2d", "BatchNorm1d"} and model.bnneck.weight.requires_grad
    timm = models.build_model("timm/efficientnet_b0", 3, input_size=(64, 32)).train()
    recipes.freeze_statistics(timm)
    before = copy.deepcopy(timm.state_dict())
    timm(torch.rand(2, 3, 64, 32))
    assert same_bits(before, timm.state_dict())


def test_an_average_is_worked_by_hand():
    """Decays 1/10, 2/11, 3/12, then the one that was asked for; the counter of batches is copied."""
    model, averaged = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    expected = {"weight": 1.0, "running_mean": 0.0}
    for n, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        with torch.no_grad():
            model.weight.fill_(10.0 * n)
            model.running_mean.fill_(7.0 - n)
            model.num_batches_tracked.fill_(n + 5)
        expected["weight"] = decay * expected["weight"] + (1 - decay) * 10 * n
        expected["running_mean"] = decay * expected["running_mean"] + (1 - decay) * (7 - n)
        recipes.update_average(averaged, model, 0.3, n)
        assert averaged.weight.item() == pytest.approx(expected["weight"], rel=1e-6)
        assert averaged.running_mean.item() == pytest.approx(expected["running_mean"], rel=1e-6)
        assert averaged.num_batches_tracked.item() == n + 5


def test_the_average_follows_every_step_of_the_optimizer_and_trains_nothing():
    training = train_epochs([0], "--ema", 0.9, "--accumulate", 2)
    expected = Two()
    expected.load_state_dict(prepared().model.state_dict())
    batches = epoch_batches(LABELS, 4, None, 0, 0)
    running = prepared().model
    for n, group in enumerate((batches[:2], batches[2:])):
        total = [torch.zeros_like(p) for p in running.parameters()]
        for rows in group:
            logits, features = running.train()(pictures(running, rows))
            loss = prepared().criterion(logits, features, torch.from_numpy(LABELS[rows]))[0]
            for t, g in zip(total, torch.autograd.grad(loss, list(running.parameters())), strict=True):
                t += g / len(group)
        with torch.no_grad():
            for p, t in zip(running.parameters(), total, strict=True):
                p -= 0.1 * t
        recipes.update_average(expected, running, 0.9, n)
    assert_same_weights(training.model, running)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(training.averaged.state_dict()[name], value, rtol=1e-4, atol=1e-6)


# Schedules ------------------------------------------------------------------------------------------------------------


def test_one_cycle_is_that_of_torch():
    """torch counts steps and lets each phase end on one; ours counts the share of the training."""
    total = 1000
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total)
    top = 0.3 * total - 1
    for step in range(total):
        done = 0.3 * step / top if step <= top else 0.3 + 0.7 * (step - top) / (total - 1 - top)
        assert recipes.one_cycle(done) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_one_cycle_has_no_warm_up_but_its_own():
    rates = [recipes.Schedule(2, 10, "one-cycle", 2).rate(epoch) for epoch in (0, 1.5, 3, 10)]
    assert rates == pytest.approx([2 / 25, 2 * (1 / 25 + 24 / 25 / 2), 2, 2 / 250_000])


@pytest.mark.parametrize(
    ("given", "epochs", "expected"),
    [([0.5, 0.75], 300, [150, 225]), ([0.5, 0.75], 30, [15, 22.5]), ([1, 40], 60, [1, 40]), ([0.5, 9], 10, [5, 9])],
)
def test_milestones_below_one_are_parts_of_the_epochs(given, epochs, expected):
    assert recipes.Schedule(1, epochs, milestones=given).drops() == expected


def test_relative_milestones_lower_the_rate():
    schedule = recipes.Schedule(1, 30, "multi-step", 0, [0.5, 0.75])
    assert [schedule.rate(epoch) for epoch in (14.9, 15, 22.4, 22.5)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert schedule._replace(kind="step").rate(29.9) == pytest.approx(0.1)


# Recipes --------------------------------------------------------------------------------------------------------------


def parse(*flags):
    return train.parse([str(flag) for flag in flags])[0]


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_a_recipe_fills_the_flags_and_nothing_else(name):
    plain, args = vars(parse()), vars(parse("--recipe", name))
    changed = {key: value for key, value in args.items() if value != plain[key]}
    assert changed.keys() - {"recipe", "command"} <= recipes.RECIPES[name].keys() <= plain.keys()
    assert all(args[key] == value for key, value in recipes.RECIPES[name].items()) and args["recipe"] == name


def test_recipes_say_what_their_sources_say():
    """Numbers typed from the papers and from issue 27 of deep-person-reid, not from the table."""
    paper, reference, bot, best = (parse("--recipe", name) for name in ("paper", "reference", "bot", "best"))
    assert (paper.optim, paper.lr, paper.epochs, paper.batch_size, paper.augment) == ("adam", 0.0005, 150, 32, [])
    assert [train.schedule_of(paper).rate(epoch) for epoch in (0, 149)] == [0.0005, 0.0005]
    assert (reference.optim, reference.epochs, reference.augment) == ("sgd", 300, ["flip", "translate"])
    rates = [train.schedule_of(reference).rate(epoch) for epoch in (0, 149.9, 150, 224.9, 225)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003])
    assert bot.loss == {"xent": 1, "triplet": 1, "center": 0.0005} and bot.options == {"bnneck": True}
    assert (bot.pretrained, bot.batch_size, bot.num_instances, bot.epochs) == (True, 64, 4, 120)
    assert bot.label_smooth == 0.1 and "erase" in bot.augment and bot.center_lr == 0.5
    rates = [train.schedule_of(bot).rate(epoch) for epoch in (0, 10, 39.9, 40, 69.9, 70)]
    assert rates == pytest.approx([3.5e-6, 3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6])
    model = models.build_model(bot.arch, 5, **bot.options)
    last = [module.stride for module in model.backbone.layer4.modules() if isinstance(module, torch.nn.Conv2d)]
    assert set(last) == {(1, 1)} and isinstance(model.bnneck, torch.nn.BatchNorm1d)

    steps = {name: 12_936 / args.batch_size for name, args in (("reference", reference), ("best", best))}  # of an epoch
    forgotten = 1 / (best.lr * best.weight_decay) / steps["best"]  # epochs
    assert best.optim == "adamw" and forgotten == pytest.approx(8.2, abs=0.1)
    rate = reference.lr / (1 - reference.momentum)
    assert 1 / (rate * reference.weight_decay) / steps["reference"] == pytest.approx(16.5, abs=0.1)


@pytest.mark.parametrize(
    "flags, rate, decay",
    [
        ([], 0.003, 0.2),
        (["--optim", "adam"], 0.0003, 0.0005),  # deep-person-reid's own
        (["--optim", "sgd"], 0.03, 0.0005),  # where a decay of 0.2 would wipe the network out
        (["--optim", "sgd", "--lr", 0.1, "--weight-decay", 0], 0.1, 0),
        (["--recipe", "paper"], 0.0005, 0),
        (["--recipe", "best", "--lr", 0.001], 0.001, 0.2),
    ],
)
def test_rate_and_decay_belong_to_the_optimizer_where_they_are_not_given(flags, rate, decay):
    args = arguments(*flags)
    assert (args.lr, args.weight_decay) == (rate, decay)


def test_the_quick_recipe_is_the_command_that_was_measured():
    row = next(line for line in (REPOSITORY / "BENCHMARK.md").read_text().splitlines() if "--recipe quick`" in line)
    measured = vars(parse(*re.search(r"`(--epochs .*?)`", row)[1].split()))
    assert "--epochs" in measured.pop("command") and measured.pop("recipe") is None
    quick = vars(parse("--recipe", "quick"))
    assert measured == {name: quick[name] for name in measured}


def test_flags_given_win_over_the_recipe():
    args = parse("--recipe", "bot", "--lr", 0.1, "--loss", "xent", "--no-pretrained", "--arch", "resnet18")
    assert (args.lr, args.loss, args.pretrained, args.arch, args.optim) == (0.1, {"xent": 1}, False, "resnet18", "adam")
    assert parse("--lr", 0.003, "--recipe", "bot").lr == 0.003  # also where it is the flag's own default
    options = parse("--recipe", "bot", "--options", "pooling=gem").options
    assert options == {"bnneck": True, "pooling": "gem"}
    assert parse("--recipe", "bot", "--options", "bnneck=False").options == {"bnneck": False}
    assert recipes.RECIPES["bot"]["options"] == {"bnneck": True}
    assert parse().options == {}


def test_a_recipe_is_printed_stored_and_loses_against_resume(drawn_root, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*LIGHT, "--recipe", "paper", "--epochs", 1, "--root", drawn_root]
    code, printed, err = run_main(capsys, *flags, "--out", out)
    assert code == 0, err
    assert "recipe=paper" in printed and "weight_decay=0.0" in printed and "lr=0.0005" in printed
    assert "euclidean distance" in printed
    stored = models.read_checkpoint(out / "last.pth")["args"]
    assert (stored["recipe"], stored["lr"], stored["optim"], stored["batch_size"]) == ("paper", 0.0005, "adam", 16)
    args, _ = train.parse(["--resume", str(out / "last.pth"), "--recipe", "bot", "--epochs", "2"])
    assert {**vars(args), "epochs": 1} == {**stored, "resume": args.resume, "command": args.command, "out": str(out)}


# Resume and best.pth --------------------------------------------------------------------------------------------------

FULL = ["--epochs", 3, "--loss", "xent", "center", "ring", "cosface:0.1", "--ema", 0.9, "--accumulate", 2,
        "--clip-norm", 5, "--schedule", "one-cycle", "--optim", "rmsprop", "--lr", 1e-4]  # fmt: skip


def test_a_killed_run_with_center_average_and_accumulation_resumes_to_the_same_bits(root, tmp_path):
    flags = [*LIGHT, *map(str, FULL), "--root", str(root), "--out"]
    straight = run_command("train.py", *flags, tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    steps = int(re.search(r"step +1/(\d+)", straight.stdout)[1])
    epoch, step = np.random.default_rng().integers((2, 1), (4, steps + 1))  # another moment each time, told if it fails
    command = [sys.executable, "train.py", *flags, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(f"epoch   {epoch}/3  step {step:4}/"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=600)
    last = tmp_path / "killed" / "last.pth"
    assert models.read_checkpoint(last)["epoch"] in (epoch - 1, epoch)  # it may have gone on for a moment
    resumed = run_command("train.py", "--resume", last)
    assert resumed.returncode == 0, f"killed in epoch {epoch}, step {step}: {resumed.stderr}"
    print(f"killed in epoch {epoch}, step {step}")
    assert_same_state(last, tmp_path / "straight" / "last.pth")


def assert_same_state(a, b):
    a, b = models.read_checkpoint(a), models.read_checkpoint(b)
    for part in ("model", "criterion", "averaged"):
        assert same_bits(a[part], b[part]), part
    assert a["updates"] == b["updates"] > 0 and a["optimizer"]["state"].keys() == b["optimizer"]["state"].keys()
    for key, state in a["optimizer"]["state"].items():
        assert same_bits(state, b["optimizer"]["state"][key])
    assert a["scores"] == b["scores"]


def test_ctrl_c_waits_for_the_step_and_resumes_to_the_same_bits(drawn_root, tmp_path, capsys, monkeypatch):
    flags = [*LIGHT, *FULL, "--loss", "triplet", "center", "--num-instances", 2, "--accumulate", 3, "--freeze-bn"]
    flags += ["--batch-size", 8, "--root", drawn_root, "--out"]
    code, out, err = run_main(capsys, *flags, tmp_path / "straight")
    assert code == 0, err
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 1)  # the first of the batches of a step
        assert run_main(capsys, *flags, tmp_path / "cut")[0] == 130
    last = tmp_path / "cut" / "last.pth"
    steps = int(re.search(r"step +1/(\d+)", out)[1])
    saved = models.read_checkpoint(last)
    assert steps > 3 and (saved["epoch"], saved["step"], saved["updates"]) == (0, 3, 1)
    for flag, value in (("--accumulate", [2]), ("--ema", [0.8]), ("--loss", ["xent"])):
        code, _, err = run_main(capsys, "--resume", last, flag, *value)
        assert code == 1 and f"{flag} cannot change" in err
    assert run_main(capsys, "--resume", last)[0] == 0
    assert_same_state(last, tmp_path / "straight" / "last.pth")


@pytest.mark.parametrize("better", ["raw", "averaged"])
def test_best_holds_the_better_of_raw_and_averaged_weights(drawn_root, tmp_path, capsys, monkeypatch, better):
    """The scores of one of the two are raised, and its weights have to be the ones that are kept and told."""
    scores_of, wanted = train.evaluate.scores_of, {"raw": False, "averaged": True}[better]

    def raised(runner, *given):
        scores = scores_of(runner, *given)
        is_averaged = not any(p.requires_grad for p in runner.model.parameters())
        return {**scores, "mAP": 0.9 if is_averaged == wanted else 0.1}

    monkeypatch.setattr(train.evaluate, "scores_of", raised)
    out = tmp_path / "run"
    flags = [*LIGHT, "--epochs", 1, "--ema", 0.5, "--root", drawn_root, "--out", out]
    code, printed, err = run_main(capsys, *flags)
    assert code == 0, err
    last, best = (models.read_checkpoint(out / name) for name in ("last.pth", "best.pth"))
    assert not same_bits(last["model"], last["averaged"])
    assert same_bits(best["model"], last["model" if better == "raw" else "averaged"])
    assert best["best_weights"] == last["best_weights"] == better and best["scores"]["synthetic"]["mAP"] == 0.9
    assert f"best.pth holds the {better} weights of epoch 1" in printed
    assert f"mAP 90.0 % on synthetic ({better} weights)" in printed
    assert "synthetic: rank-1" in printed and "synthetic, averaged weights: rank-1" in printed
    record = json.loads((out / "log.jsonl").read_text())
    assert record["mAP"] == 0.9 and record["weights"] == better
    told = {kind: record[kind]["synthetic"]["mAP"] for kind in ("raw", "averaged")}
    assert told == {"raw": 0.1, "averaged": 0.1, better: 0.9}
    if better == "averaged":
        code, _, err = run_main(capsys, "--resume", out / "best.pth", "--epochs", 2)
        assert code == 1 and "not last.pth" in err and "--weights" in err


def test_with_nothing_to_test_on_the_average_is_kept(drawn_root, tmp_path, capsys):
    flags = [*LIGHT, "--epochs", 1, "--ema", 0.5, "--combine-all", "--root", drawn_root, "--out", tmp_path]
    code, printed, err = run_main(capsys, *flags)
    assert code == 0, err
    last, best = (models.read_checkpoint(tmp_path / name) for name in ("last.pth", "best.pth"))
    assert same_bits(best["model"], last["averaged"]) and not same_bits(best["model"], last["model"])
    assert best["best_weights"] == "averaged" and "(averaged weights)" in printed.splitlines()[-1]


def test_states_of_two_heads_are_not_exchanged_by_the_order_of_their_names():
    places = []
    for order in (["arcface", "cosface"], ["cosface", "arcface"]):
        training = prepared("--loss", *order)
        names = {id(p): name for name, p in training.criterion.named_parameters()}
        places.append([names.get(id(p)) for group in training.optimizers[0].param_groups for p in group["params"]])
    assert places[0] == places[1] and places[0][-4:] != [None] * 4


def test_a_run_from_before_losses_had_parameters_resumes(drawn_root, tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*LIGHT, "--epochs", 1, "--loss", "xent", "triplet", "--num-instances", 4, "--root", drawn_root]
    assert run_main(capsys, *flags, "--out", out)[0] == 0
    saved = models.read_checkpoint(out / "last.pth")
    saved["args"]["loss"] = {"xent": 1.0, "htri": 1.0}
    for name in ("criterion", "updates", "best_weights"):
        del saved[name]
    for name in ("ema", "accumulate", "clip_norm", "freeze_bn", "center_lr", "recipe"):
        del saved["args"][name]
    torch.save(saved, out / "last.pth")
    code, printed, err = run_main(capsys, "--resume", out / "last.pth", "--epochs", 2)
    assert code == 0, err
    assert "triplet" in printed and math.isfinite(json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"])
