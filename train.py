"""Trains a network for person re-identification, or evaluates one.

    python train.py --arch hacnn --dataset market1501                            # -> runs/hacnn-market1501/best.pth
    python train.py --recipe bot --dataset market1501                            # flags that belong together
    python train.py --arch resnet50 --pretrained --fixbase-epochs 5              # fine-tunes: the new head first
    python train.py --dataset mars --seq-len 8 --temporal attention              # video: clips of 8 frames
    python train.py --dataset market1501 cuhk03 --target viper grid              # several sets, tested on others
    python train.py --dataset viper --split all                                  # mean and deviation over 20 splits
    python train.py --adapt crops/ --weights best.pth                            # to one's own cameras, without labels
    python train.py --resume runs/hacnn-market1501/last.pth                      # goes on where a run stopped
    python train.py --evaluate --weights runs/hacnn-market1501/best.pth --dataset market1501
    torchrun --nproc-per-node 4 train.py --dataset market1501                    # on 4 GPUs, a process on each

A run writes into its folder: last.pth after every epoch (and on Ctrl-C), best.pth after an evaluation with the best mAP
so far (or what --best says; with --ema of the raw or of the averaged weights, whichever score better), log.txt (what
the console shows), log.jsonl (one line per epoch), curves.png, and where TensorBoard is installed the folder
tensorboard. --resume continues to the same bits on a CPU: what an epoch draws at random follows from (--seed, epoch,
step), and so does the learning rate.

The way from the command to a step: main -> execute -> run_training -> train_epoch -> train_step. In a notebook:

    train_set = build_train_set(splits.train, load_pixels(paths, model.input_size))      # of training/pixels.py
    training = prepare(model, train_set, lr=3e-3)
    train_epoch(training, fresh_state())
"""
import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # before torch starts OpenMP, whose threads else spin against others on a busy machine
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
try:
    import numpy as np
    import torch
    from torch import nn
    from tqdm import tqdm
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing}: source .venv/bin/activate (make test makes it), or pip install -r requirements.txt")

import data
import metrics
import models
import pictures
from images import Parser, did_you_mean, lock, progress, replacing
from training import adapt, distributed, evaluate, recipes
from training.pixels import AUGMENTATIONS, TrainSet, build_train_set

FIRST_LINE = 5  # steps after which a run tells of itself for the first time

# ----------------------------------------------------------------------------------------------------------------------
# One step, one epoch


class Runner(nn.Module):
    """The model, under autocast where it trains and amp says so.

    Autocast stands inside, because the threads of nn.DataParallel would not inherit its type: they would run fp16.
    with_logits: whether a loss takes them; if not, DistributedDataParallel has to see that no gradient comes that way.
    """

    def __init__(self, model, amp="off", with_logits=True):
        super().__init__()
        self.model, self.dtype, self.with_logits = model, recipes.AMP[amp], with_logits
        self.device_type = evaluate.device_of(model).type
        self.mean, self.std, self.pool_frames = model.mean, model.std, getattr(model, "pool_frames", None)
        self.feature_dim = getattr(model, "feature_dim", None)

    def forward(self, images):
        half = self.training and self.dtype is not None
        with torch.autocast(self.device_type, self.dtype or torch.bfloat16, enabled=half):
            out = self.model(images)
        return ([], out[1]) if self.training and not self.with_logits else out


class Training(NamedTuple):
    """What trains, by what, on what: all that train_epoch needs but for the place where it stands, see fresh_state."""

    model: nn.Module
    runner: nn.Module  # Runner of the model, on several GPUs in nn.DataParallel
    criterion: recipes.Criterion
    optimizers: list  # as recipes.build_optimizers gives them
    train_set: TrainSet
    schedule: recipes.Schedule
    scaler: torch.amp.GradScaler  # of gradients, for fp16
    averaged: nn.Module | None = None  # the network of averaged weights, and their decay
    ema: float = 0.0
    base_lr_mult: float = 0.1  # of the rate, for the second group of the first optimizer
    accumulate: int = 1  # batches that one step of the optimizers takes together
    clip_norm: float = 0.0  # 0: any
    fixbase_epochs: int = 0  # in so many first epochs only open_layers train; no name: the head
    open_layers: Sequence[str] = ()
    freeze_bn: bool = False
    log_every: int = 50  # steps between two lines


def prepare(
    model, train_set, *, losses=None, label_smooth=0.1, margin=0.3, optim="adamw", lr=None, weight_decay=None,
    momentum=0.9, center_lr=0.5, new_layers=None, schedule=None, amp="off", sync_bn=False, ema=0.0, **how,
):  # fmt: skip
    """The Training of a model for the labels of a TrainSet, on the device where it is.

    losses: name -> weight, of recipes.LOSSES (default: cross entropy); lr, weight_decay: None is the optimizer's own;
    schedule: a recipes.Schedule (default: 60 epochs, cosine); how: the last fields of Training. All mean what the flags
    of these names do.
    """
    losses, device = losses or {"xent": 1.0}, evaluate.device_of(model)
    num_ids, sizes = int(train_set.labels.max()) + 1, recipes.branch_sizes(model)
    criterion = recipes.Criterion(losses, num_ids, sizes, label_smooth=label_smooth, margin=margin).to(device)
    if sync_bn:
        model = recipes.synchronise_statistics(model)
    optimizers = recipes.build_optimizers(
        model, criterion, optim, lr=lr, weight_decay=weight_decay, momentum=momentum, center_lr=center_lr,
        new_layers=new_layers,
    )  # fmt: skip
    return Training(
        model, Runner(model, amp, "xent" in losses), criterion, optimizers, train_set,
        schedule=schedule or recipes.Schedule(optimizers[0].defaults["lr"], epochs=60),
        scaler=torch.amp.GradScaler(device.type, enabled=amp == "fp16"),
        averaged=copy.deepcopy(model).requires_grad_(False) if ema else None, ema=ema, **how,
    )  # fmt: skip


def fresh_state():
    """Where a run stands, as last.pth holds it.

    epoch: whole epochs trained; step: steps of the next one; totals: of its log, see Tally; record: line of log.jsonl
    of the last epoch, until it is written; scores: of the last evaluation; updates: of the averaged weights; best_*:
    what best.pth holds, its score by --best and which of the two weights; labels, told: of the last round of --adapt.
    """
    state = {"epoch": 0, "step": 0, "totals": {}, "record": None, "scores": None, "updates": 0}
    state |= {"labels": None, "told": {}}
    return state | {"best_score": -1.0, "best_epoch": 0, "best_weights": "raw"}


class Tally:
    """What an epoch's log shows: images, seconds, and each loss times the images it was taken over.

    Between two lines it is summed on the device: to read a GPU is to wait for it.
    """

    def __init__(self, totals):
        self.totals = Counter(totals)
        self.begin()

    def begin(self):
        self.losses, self.sums, self.images, self.started = [], Counter(), 0, time.perf_counter()

    def add(self, values, images):
        """values: name -> mean over so many images."""
        for name, value in values.items():
            self.sums[name] += value.detach() * images
        self.losses.append(values["loss"].detach())
        self.images += images

    def close(self, epoch, steps):
        """Takes into the totals what came since the last line, `steps` being done of the epoch. FloatingPointError with
        step and value where a loss was infinite or not a number."""
        losses = distributed.average(torch.stack(self.losses).float())
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step = int(bad[0])
            raise FloatingPointError(
                f"the loss is {losses[step]} in epoch {epoch + 1}, step {steps - len(losses) + step + 1}: training "
                "stopped, last.pth stays as it was. A lower --lr, longer --warmup-epochs or --amp off may help"
            )
        means = distributed.average(torch.stack(list(self.sums.values())))
        self.totals.update(dict(zip(self.sums, means.tolist(), strict=True)))
        self.totals["images"] += self.images
        self.totals["seconds"] += time.perf_counter() - self.started
        self.begin()


def speed(totals):
    return totals["images"] / totals["seconds"]


def train_step(training, network, samples, state, step, num_steps):
    """One batch: forward, backward, and with the last of those that are accumulated a step of the optimizers.

    network: the runner, or what averages its gradients over processes. Returns (name -> loss, number of images).
    """
    optimizer, accumulate = training.optimizers[0], training.accumulate
    first = step - step % accumulate  # of the batches that one step of the optimizers takes together
    last = min(first + accumulate, num_steps) - 1
    seed = int(np.random.SeedSequence((training.train_set.seed, state["epoch"], step)).generate_state(1)[0])
    torch.manual_seed(seed + distributed.rank())  # of what a network itself draws, such as dropout
    device, model = evaluate.device_of(training.model), training.model
    images, labels = training.train_set.load(samples, seed, device, model.mean, model.std)
    if step == first:
        rate = training.schedule.rate(state["epoch"] + step / num_steps)
        for group, factor in zip(optimizer.param_groups, (1, training.base_lr_mult), strict=False):
            group["lr"] = rate * factor
        for each in training.optimizers:
            each.zero_grad(set_to_none=True)
    waits = network.no_sync() if network is not training.runner and step != last else contextlib.nullcontext()
    with waits:
        logits, features = network(images)
        loss, parts = training.criterion(logits, features, labels)
        training.scaler.scale(loss / (last - first + 1)).backward()
    if step == last:
        update_weights(training, state)
    if "xent" in training.criterion.weights:  # else the model's classifier has learned nothing
        parts["accuracy"] = (logits[0].detach().argmax(dim=1) == labels).float().mean()
    return {"loss": loss, **parts}, images.shape[:-3].numel() * distributed.world_size()


def update_weights(training, state):
    """A step of the optimizers on the gradients that are there."""
    optimizer, scaler = training.optimizers[0], training.scaler
    distributed.average_gradients(training.criterion.parameters())
    if training.clip_norm:
        scaler.unscale_(optimizer)
        clipped = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(clipped, training.clip_norm)
    for each in training.optimizers:
        scaler.step(each)
    scaler.update()
    if training.averaged is not None:
        recipes.update_average(training.averaged, training.model, training.ema, state["updates"])
        state["updates"] += 1


def train_epoch(training, state, interrupts=()):
    """Trains from state["step"] to the end of epoch state["epoch"]; False where `interrupts` filled, and cut it short.
    """
    epoch, tally = state["epoch"], Tally(state["totals"])
    batches = training.train_set.batches(epoch)
    opened = None
    if epoch < training.fixbase_epochs:
        opened = recipes.find_layers(training.model, training.open_layers, "--open-layers")
    training.runner.train()
    recipes.freeze_base(training.model, training.optimizers[0], opened)
    if training.freeze_bn:
        recipes.freeze_statistics(training.model)
    with_logits = "xent" in training.criterion.weights
    network = distributed.parallel(training.runner, evaluate.device_of(training.model), find_unused=not with_logits)
    with progress(f"epoch {epoch + 1}", len(batches), "steps", hidden=distributed.rank() > 0) as bar:
        bar.update(state["step"])
        for step in range(state["step"], len(batches)):
            tally.add(*train_step(training, network, batches[step], state, step, len(batches)))
            bar.update()
            may_stop = (step + 1) % training.accumulate == 0 or step + 1 == len(batches)  # no gradients are summed half
            stop = may_stop and distributed.agree(bool(interrupts))
            early = step + 1 == min(FIRST_LINE, training.log_every) and epoch == 0  # whether all is well, and how fast
            if len(tally.losses) == training.log_every or step + 1 == len(batches) or stop or early:
                tally.close(epoch, step + 1)
                tqdm.write(progress_line(training, epoch, step, len(batches), tally.totals))
                bar.set_postfix_str(f"loss {tally.totals['loss'] / tally.totals['images']:.3f}")
            state.update(step=step + 1, totals=dict(tally.totals))
            if stop:
                return False
    return True


def progress_line(training, epoch, step, num_steps, totals):
    images, epochs, losses = totals["images"], training.schedule.epochs, training.criterion.weights
    names = ["loss", *losses] if len(losses) > 1 else ["loss"]
    parts = "  ".join(f"{name} {totals[name] / images:.4f}" for name in names)
    steps_left = (epochs - epoch) * num_steps - step - 1
    left = timedelta(seconds=round(steps_left * images / (step + 1) / speed(totals)))
    if "accuracy" in totals:
        parts += f"  accuracy {100 * totals['accuracy'] / images:5.1f} %"
    return (
        f"epoch {epoch + 1:3}/{epochs}  step {step + 1:4}/{num_steps}  {parts}  "
        f"lr {training.optimizers[0].param_groups[0]['lr']:.2e}  {speed(totals):5.0f} img/s  {left} left"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Files of a run


def save_atomically(content, path):
    """torch.save such that `path` holds the old or the new content whole, whenever the process is killed."""
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by RuntimeError
        kept = "the previous one is kept" if path.exists() else "there is no previous one"
        with contextlib.suppress(OSError):  # the folder may be gone
            kept += f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free on its disk"
        raise OSError(f"checkpoint {path} could not be written ({error}); {kept}") from error


def append_record(path, record):
    """Adds one JSON line to log.jsonl, in place of lines of this and later epochs that an interrupted run left."""
    lines = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in lines if json.loads(line)["epoch"] < record["epoch"]]
    with replacing(path) as file:
        file.write("".join(f"{line}\n" for line in [*lines, json.dumps(record)]).encode())


class Tee:
    """Standard output that is also written to a file."""

    def __init__(self, console, path):
        self.console, self.file = console, open(path, "a", encoding="utf-8")

    def write(self, text):
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            kept = "last.pth is kept, --resume goes on"
            raise OSError(f"{self.file.name} could not be written ({error}); {kept}") from error
        with contextlib.suppress(OSError):  # the terminal was closed: the file holds what it would have shown
            self.console.write(text)
            self.console.flush()  # into a pipe too: who reads along waits for the line
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self.console.flush()


@contextlib.contextmanager
def until_interrupted():
    """Inside, Ctrl-C, SIGTERM and SIGHUP (a terminal was closed) only note themselves in the list that is given: a step
    is never cut in the middle."""
    received, signals = [], [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: it is to go on
        signals.append(signal.SIGHUP)
    previous = {s: signal.signal(s, lambda number, _: received.append(number)) for s in signals}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def open_board(out, epoch):
    """A TensorBoard writer for a run that goes on after `epoch` epochs; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(out / "tensorboard", purge_step=epoch + 1)  # what a killed run wrote of later epochs goes


def write_board(board, record):
    """The numbers of a line of log.jsonl, under names such as loss/xent and market1501/mAP."""
    kinds = {name: "loss" for name in ("loss", *recipes.LOSSES)}
    kinds |= {name: "train" for name in ("accuracy", "lr", "images_per_second")}
    found = {f"{kinds[name]}/{name}": value for name, value in record.items() if name in kinds}
    for target, summary in record.get("targets", {}).items():
        found |= {f"{target}/{name}": summary[name] for name in evaluate.SCORES}
    for name, value in found.items():
        board.add_scalar(name, value, record["epoch"])
    board.flush()


# ----------------------------------------------------------------------------------------------------------------------
# A run: prepare, then epoch by epoch train, evaluate, save, tell


class Run(NamedTuple):
    """What stays the same from the first epoch of a run to the last; what changes is its state, see fresh_state."""

    args: argparse.Namespace
    out: Path
    training: Training
    testing: evaluate.Testing
    targets: list  # of evaluate.Target
    runners: dict  # raw, and with --ema averaged -> the network as it is tested
    best: tuple  # (score, name of the target) by which best.pth is chosen
    about: dict  # what a checkpoint says of the network, see models.load_checkpoint
    board: object  # of TensorBoard, or None
    crops: list  # rows of the images of --adapt


def sets_of(args, split=0):
    """Where the flags say that data lie."""
    return evaluate.Sets(args.root, split, args.min_frames, args.holdout, args.protocol, args.cache, args.cache_limit)


def trained_on(args):
    """A name of what is trained on."""
    return "+".join([*args.dataset, *(os.path.basename(os.path.abspath(place)) for place in args.adapt or [])])


def testing_of(args):
    return evaluate.Testing(args.distance, args.flip, args.rerank, args.test_batch_size, args.seq_len, args.test_sample)


def schedule_of(args):
    return recipes.Schedule(args.lr, args.epochs, args.schedule, args.warmup_epochs, args.milestones, args.gamma)


def load_crops(args):
    """What load_sets gives, of --adapt: nobody's label is read, so that all items are of one person."""
    sets, tests = sets_of(args, args.split), args.target or args.dataset
    if args.adapt:
        rows, missing = adapt.find_crops(args.adapt)
        if missing:
            listed = data.some([f"{path} ({reason})" for path, reason in missing])
            raise ValueError(f"--adapt: {len(missing)} files cannot be read: {listed}")
    else:
        items = data.merge([evaluate.load_set(name, sets, evaluate=False).train for name in args.dataset])
        rows = adapt.rows_of(items)
    items = [data.Item((row.path,), 0, 0) for row in rows]  # cameras count in grouping, which takes the rows
    return items, None, {name: evaluate.load_set(name, sets, train=False) for name in tests}, rows


def load_sets(args):
    """(train items of all --dataset, the number of the data set of each, name -> Splits of what is tested on, rows of
    --adapt)."""
    if args.adapt is not None:
        return load_crops(args)
    found, sets = {}, sets_of(args, args.split)
    for name in dict.fromkeys([*args.dataset, *(args.target or [])]):
        trains = name in args.dataset
        tests = name in args.target if args.target else False if args.combine_all else None
        found[name] = evaluate.load_set(name, sets, train=trains, evaluate=tests, combine=trains and args.combine_all)
    parts = [found[name].train for name in args.dataset]
    targets = args.target or [name for name in args.dataset if found[name].query and not args.combine_all]
    for name in args.dataset:  # what its own test shows of its train persons, load_set has said
        pids = {item.pid for item in found[name].train}
        data.warn_of_shared_persons({name: pids}, {target: found[target] for target in targets if target != name})
    of_set = np.repeat(np.arange(len(parts)), list(map(len, parts)))
    return data.merge(parts), of_set, {name: found[name] for name in targets}, []


def check_devices(args, device):
    """The number of GPUs of nn.DataParallel, or 1. ValueError where they, or processes, do not fit the flags."""
    processes = distributed.world_size()
    cards = torch.cuda.device_count() if device == torch.device("cuda") else 1  # torchrun gives each process cuda:N
    if args.batch_size % processes or args.batch_size < 2 * processes:
        raise ValueError(
            f"--batch-size {args.batch_size} is that of all {processes} processes together: give a multiple of "
            f"{processes} that leaves at least 2 images to each"
        )
    if args.batch_size < 2 * cards:
        raise ValueError(f"--batch-size {args.batch_size} is that of all {cards} GPUs together: 2 images each at least")
    if args.compile and cards > 1:
        raise ValueError("--compile does not go with nn.DataParallel: use torchrun, or one GPU, --device cuda:0")
    return cards


def choose_options(args, items, tests, checkpoint):
    """The options of the network, with the pooling of frames where there are tracklets. ValueError where the flags, the
    data and the run that goes on do not agree about those."""
    options = dict(args.options)
    if any(len(item.paths) > 1 for item in items) or any(data.has_video(splits) for splits in tests.values()):
        options["temporal"] = args.temporal or "avg"
    elif args.temporal:
        raise ValueError(f"--temporal {args.temporal} pools frames, and all items here are single images: leave it out")
    if args.temporal == "attention" and max(len(item.paths) for item in items) == 1:
        raise ValueError("--temporal attention is learned from clips, and what is trained on are images: avg or max")
    if checkpoint is not None and options.get("temporal") != checkpoint["options"].get("temporal"):
        raise ValueError(
            f"{args.resume} is of a network for {'tracklets' if 'temporal' in checkpoint['options'] else 'images'}: "
            "leave --dataset, --target and --temporal out, or start anew with --weights"
        )
    return options


def prepare_train_set(args, items, sources):
    """The TrainSet of the flags, without pixels. ValueError where it makes no batches."""
    domains = {"camera": np.array([item.camid for item in items]), "dataset": sources}.get(args.sampler)
    sampler = args.sampler or ("identity" if recipes.NEED_POSITIVES & args.loss.keys() else "shuffle")
    train_set = build_train_set(
        items, domains=domains, sampling=args.train_sample, batch_size=args.batch_size, num_domains=args.num_domains,
        num_instances=args.num_instances if sampler == "identity" else None, seq_len=args.seq_len,
        augment=args.augment, seed=args.seed,
    )  # fmt: skip
    if args.adapt is None:  # else there are no persons yet
        data.check_batches(
            train_set.labels, args.batch_size, train_set.num_instances, train_set.domains, args.num_domains
        )  # fmt: skip
    return train_set


def prepare_model(args, options, checkpoint, num_ids, device):
    """The network, with the weights of --resume or --weights where they are given."""
    torch.manual_seed(args.seed)  # fresh weights are drawn from torch's own generator
    pretrained = args.pretrained and checkpoint is None and not args.weights
    model = models.build_model(args.arch, num_ids, pretrained=pretrained, **options)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
    elif args.weights:
        content = models.read_checkpoint(args.weights)
        if content.get("arch", args.arch) != args.arch:
            raise ValueError(f"{args.weights} holds {content['arch']}, not {args.arch}: give --arch {content['arch']}")
        stored = {name: value for name, value in content.get("options", {}).items() if name != "temporal"}
        if {**stored, **args.options} != args.options:
            print(f"warning: {args.weights} was trained with --options {stored}, this run has {args.options}")
        skipped, missing = models.load_weights(model, models.find_weights(content))
        share = models.share_filled(model, missing)
        told = f"{args.weights} fills {100 * share:.1f} % of {args.arch}, its classifiers not counted"
        print(f"{told}; not used: {data.some(skipped) or 'none'}; stays fresh: {data.some(missing) or 'none'}")
        if share < 0.5:
            raise ValueError(f"{told}: it is of another network; give its --arch and --options, or leave --weights out")
    every, deployed = models.count_parameters(model)
    print(
        f"{args.arch}: {every:,} parameters, {deployed:,} without classifiers; "
        f"input {model.input_size}, feature {model.feature_dim}"
    )
    return model.to(device, memory_format=torch.channels_last)


def prepare_training(args, model, train_set):
    """The Training of the flags."""
    training = prepare(
        model, train_set, losses=args.loss, label_smooth=args.label_smooth, margin=args.margin, optim=args.optim,
        lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum, center_lr=args.center_lr,
        new_layers=args.new_layers, schedule=schedule_of(args), amp=args.amp, sync_bn=args.sync_bn, ema=args.ema,
        base_lr_mult=args.base_lr_mult, accumulate=args.accumulate, clip_norm=args.clip_norm,
        fixbase_epochs=args.fixbase_epochs, open_layers=args.open_layers, freeze_bn=args.freeze_bn,
        log_every=args.log_every,
    )  # fmt: skip
    if training.schedule.remark():
        print(f"warning: {training.schedule.remark()}")
    if args.new_layers is not None:
        new = recipes.find_layers(model, args.new_layers, "--new-layers")
        print(f"--lr for {', '.join(new)}; {args.base_lr_mult:g} of it for all other layers")
    if args.fixbase_epochs:
        opened = recipes.find_layers(model, args.open_layers, "--open-layers")
        print(f"epochs 1 to {args.fixbase_epochs} train {', '.join(opened)} alone, the base is frozen")
    return training


def load_all_pixels(args, items, tests, training, testing):
    """(the Training with the pixels it trains on, the evaluate.Target of each of `tests`)."""
    sets, model = sets_of(args, args.split), training.model
    alone = tests.get(args.dataset[0]) if len(args.dataset) == 1 and args.adapt is None else None
    among = alone and evaluate.files_to_share(args.dataset[0], alone, sets)
    paths = [path for item in items for path in item.paths]
    with distributed.first_on_machine():
        pixels = evaluate.pixels_of(paths, model, f"{trained_on(args)}-train", sets, among)
        targets = [evaluate.load_target(name, splits, model, sets, testing) for name, splits in tests.items()]
    return training._replace(train_set=training.train_set._replace(pixels=pixels)), targets


def restore(args, checkpoint, training):
    """The state of the run that goes on, whose optimizers and losses take up theirs."""
    training.optimizers[0].load_state_dict(checkpoint["optimizer"])
    training.criterion.load_state_dict(checkpoint.get("criterion", {}))  # an older run had no loss with parameters
    if training.scaler.is_enabled() and "scaler" in checkpoint:
        training.scaler.load_state_dict(checkpoint["scaler"])
    if training.averaged is not None:
        training.averaged.load_state_dict(checkpoint["averaged"])
    state = {name: checkpoint.get(name, fresh) for name, fresh in fresh_state().items()}
    if "best_mAP" in checkpoint:  # of an older run
        state["best_score"] = checkpoint["best_mAP"]
    measured = "dataset", "target", "best", "flip", "distance", "protocol", "seq_len", "test_sample", "min_frames"
    if any(getattr(args, name) != checkpoint["args"][name] for name in measured):
        print("the best epoch is sought anew: what it is judged by has changed")
        state.update(best_score=-1.0, best_epoch=0)
    print(f"going on from {args.resume}: epoch {state['epoch'] + 1}, step {state['step'] + 1}")
    return state


def count_images(items):
    """What a checkpoint says of the images it was trained on: those of each person, and a digest of all their names."""
    counts, names = Counter(), hashlib.sha256()
    for item in items:
        counts[item.pid] += len(item.paths)
        names.update("\n".join([*map(os.path.basename, item.paths), "\n"]).encode(errors="surrogateescape"))
    return {"persons": dict(counts), "names": names.hexdigest()}


def check_same_images(args, checkpoint, now):
    """ValueError where the images are others than those that batches were drawn from, in the middle of an epoch."""
    began = checkpoint.get("images")  # an older run does not say
    if began in (None, now) or not checkpoint["step"]:
        return
    before, after = began["persons"], now["persons"]
    changed = [f"person {pid}: {after[pid]} instead of {n}" for pid, n in before.items() if after[pid] != n]
    raise ValueError(
        f"{args.resume} stands in the middle of epoch {checkpoint['epoch'] + 1}, whose batches were drawn from "
        f"{sum(before.values()):,} images; now there are {sum(after.values()):,} in {args.root} "
        f"({data.some(changed) or 'some have other names'}): put back what was there, or start anew with --weights "
        f"{args.resume}"
    )


def prepare_run(args, checkpoint, device):
    """(Run, state) of the flags, from the start or from where the checkpoint stands."""
    cards, processes = check_devices(args, device), distributed.world_size()
    with distributed.first_on_machine():
        items, sources, tests, crops = load_sets(args)
    (metric, target), pids = args.best, data.relabel(items)[1]
    if target is not None and target not in tests:
        raise ValueError(f"--best {metric}:{target}: tested is on {', '.join(tests) or 'nothing'}, name one of these")
    best = metric, target or next(iter(tests), None)
    if checkpoint is not None and checkpoint["pids"] != pids:
        raise ValueError(
            f"{args.resume} was trained on {len(checkpoint['pids'])} persons, the {len(pids)} of "
            f"{' '.join(args.dataset)} in {args.root} are not the same ones: resume on the data it began with, or "
            "start anew with --weights"
        )
    images_of = count_images(items)
    if checkpoint is not None:
        check_same_images(args, checkpoint, images_of)
    train_set, options = prepare_train_set(args, items, sources), choose_options(args, items, tests, checkpoint)
    if checkpoint is not None and checkpoint.get("labels") is not None:
        train_set = train_set._replace(labels=checkpoint["labels"].numpy())
    training = prepare_training(args, prepare_model(args, options, checkpoint, len(pids), device), train_set)
    testing, model = testing_of(args), training.model
    training, targets = load_all_pixels(args, items, tests, training, testing)
    state = fresh_state() if checkpoint is None else restore(args, checkpoint, training)
    if args.adapt is not None and checkpoint is None:
        state["record"] = {"epoch": 0}  # judged as it came
    runners = {"raw": training.runner}
    if training.averaged is not None:
        runners["averaged"] = Runner(training.averaged)
    if cards > 1:
        runners = {kind: nn.DataParallel(runner) for kind, runner in runners.items()}
        print(f"nn.DataParallel over {cards} GPUs")
    if processes > 1:
        print(f"{processes} processes, {args.batch_size // processes} of {args.batch_size} images of a batch in each")
    if args.compile:
        model.compile(mode=args.compile)  # in place: no name changes. Averaged weights, rarely used, stay as they are
    about = {
        "arch": args.arch, "num_ids": len(pids), "options": options, "input_size": model.input_size,
        "mean": model.mean, "std": model.std, "feature_dim": model.feature_dim, "distance": args.distance,
        "dataset": " ".join(args.dataset), "pids": pids, "images": images_of,
    }  # fmt: skip
    if args.adapt is not None:
        about["dataset"] = f"{args.adapted_from}, adapted to {len(crops):,} images of {trained_on(args)} without labels"
    board = open_board(Path(args.out), state["epoch"]) if distributed.rank() == 0 else None
    training = training._replace(runner=runners["raw"])
    return Run(args, Path(args.out), training, testing, targets, runners, best, about, board, crops), state


def save(run, state, name, model):
    """A checkpoint of these weights, by the first process. Averaged ones are for use: no run can go on from them."""
    training = run.training
    if distributed.rank() > 0:
        return
    content = {**run.about, "model": model.state_dict(), "args": vars(run.args), **state}
    if model is training.model:
        content |= {"optimizer": training.optimizers[0].state_dict(), "criterion": training.criterion.state_dict()}
        content |= {"averaged": training.averaged.state_dict()} if training.averaged is not None else {}
        content |= {"scaler": training.scaler.state_dict()} if training.scaler.is_enabled() else {}
    save_atomically(content, run.out / name)


def evaluate_epoch(run, state):
    """Tests after an epoch where it is due; best.pth, if it is the best so far."""
    args, record, last = run.args, state["record"], state["epoch"] == run.args.epochs
    networks = {"raw": run.training.model, "averaged": run.training.averaged}
    first = state["epoch"] == 0  # of --adapt, the network as it came
    if run.targets and (first or last or (args.eval_every and state["epoch"] % args.eval_every == 0)):
        kinds = ["raw"] if first else list(run.runners)
        found = {kind: {} for kind in kinds}  # raw or averaged -> name of target -> summary
        for kind, target in itertools.product(kinds, run.targets):
            distributed.copy_from_first(networks[kind])
            scores = evaluate.scores_of(run.runners[kind], target, run.testing)
            which = ", averaged weights" * (kind == "averaged")
            found[kind][target.name] = evaluate.tell(scores, target, args.flip, which)
        metric, name = run.best
        scores_of_best = {kind: scores[name][metric] for kind, scores in found.items()}
        better = max(found, key=scores_of_best.get)
        state["scores"] = found[better]
        record.update(state["scores"][run.targets[0].name], targets=state["scores"])
        if len(found) > 1:
            record.update(weights=better, **found)
        if scores_of_best[better] > state["best_score"]:
            state.update(best_score=scores_of_best[better], best_epoch=state["epoch"], best_weights=better)
            save(run, state, "best.pth", networks[better])
            if len(found) > 1:
                print(f"best.pth holds the {better} weights of epoch {state['epoch']}")
    elif last:  # nothing to test on: the last is the best, and of two the one that was asked for
        state.update(best_weights=list(run.runners)[-1], best_epoch=state["epoch"])
        save(run, state, "best.pth", networks[state["best_weights"]])


def write_logs(run, state, drawn):
    """log.jsonl, TensorBoard and curves.png after an epoch; when the last was drawn (drawn: before), a second's work
    that some epochs are shorter than."""
    append_record(run.out / "log.jsonl", state["record"])
    if run.board:
        write_board(run.board, state["record"])
    if state["epoch"] < run.args.epochs and time.monotonic() - drawn < 30:
        return drawn
    with contextlib.suppress(ImportError, OSError, ValueError):  # no matplotlib, or no log: no picture
        pictures.training_curves(run.out / "log.jsonl", run.out / "curves.png")
    return time.monotonic()


def begin_round(run, state):
    """The Run of a round of --adapt, with the people that the network finds now. ValueError where they are too few."""
    training, crops = run.training, run.crops
    teacher = training.model if training.averaged is None else training.averaged
    if not state["epoch"]:
        adapt.adopt_statistics(training.model, training.train_set.pixels)
        teacher.load_state_dict(training.model.state_dict())
    distributed.copy_from_first(teacher)
    before = None if state["labels"] is None else state["labels"].numpy()
    found = adapt.regroup(teacher, training.train_set.pixels, crops, before, batch_size=run.args.test_batch_size)
    if before is None:  # what the crops lack they lack in all rounds
        print("what a round tells of itself is no accuracy: without labels there is none")
        for note in found.notes:
            print(f"note: {note}")
    print(f"round {state['epoch'] + 1:3}/{run.args.epochs}  {adapt.line(found.told, len(crops))}")
    if found.told["people"] < 2 or found.told["grouped"] < run.args.batch_size:
        raise ValueError(
            f"--adapt found {found.told['people']} people in {found.told['grouped']} of {len(crops):,} images, and a "
            f"batch is of {run.args.batch_size}: give more images, a lower --batch-size, or --weights of a network "
            "that tells people apart here"
        )
    for head, centers in zip(training.criterion.learned["prototypes"], found.centers, strict=True):
        recipes.replace_parameter(training.optimizers[0], head.begin(centers), head.weight)
    state.update(labels=torch.from_numpy(found.labels), told=found.told)
    return run._replace(training=training._replace(train_set=training.train_set._replace(labels=found.labels)))


def end_epoch(run, state):
    """Moves the state to the next epoch, with the line of log.jsonl that is to be written of this one."""
    totals, epoch = state["totals"], state["epoch"] + 1
    record = {name: totals[name] / totals["images"] for name in totals if name not in ("images", "seconds")}
    record |= {"epoch": epoch, "lr": run.training.optimizers[0].param_groups[0]["lr"], "images": totals["images"]}
    record |= {"images_per_second": speed(totals), "seconds": totals["seconds"], **state["told"]}
    state.update(epoch=epoch, step=0, totals={}, record=record)


def run_training(run, state):
    """Trains; returns (exit code, name -> summary of the scores at the end)."""
    args = run.args
    drawn = -math.inf  # when curves.png was
    while True:
        if state["record"]:  # of an epoch that has ended, now or before this run went on
            evaluate_epoch(run, state)
            if distributed.rank() == 0:
                drawn = write_logs(run, state, drawn)
            state["record"] = None
            save(run, state, "last.pth", run.training.model)
        if state["epoch"] >= args.epochs:
            break
        if state["epoch"] == args.fixbase_epochs > 0 and not state["step"]:
            print(f"epoch {state['epoch'] + 1:3}/{args.epochs}  the base thaws: all layers train")
        if args.adapt is not None and not state["step"]:
            run = begin_round(run, state)
        with until_interrupted() as interrupts:
            if train_epoch(run.training, state, interrupts):
                end_epoch(run, state)
            save(run, state, "last.pth", run.training.model)
        if distributed.agree(bool(interrupts)):
            processes = distributed.world_size()
            start = f"torchrun --nproc-per-node {processes}" if distributed.launched() else "python"
            last = shlex.quote(f"{run.out}/last.pth")
            print(f"interrupted; saved. Go on with: {start} train.py --resume {last}")
            return 130, {}
    if distributed.rank() == 0:
        print_summary(run, state)
    return 0, state["scores"] or {}


def print_summary(run, state):
    """What a run leaves, and the commands that follow."""
    args, out = run.args, run.out
    best, data_flags = shlex.quote(f"{out}/best.pth"), shlex.join(["--root", args.root])
    told = "no data set to test it on"
    if run.targets:
        metric, name = run.best
        shown = next(target.shown for target in run.targets if target.name == name)
        told = f"{metric.replace('rank', 'rank-')} {100 * state['best_score']:.1f} % on {shown}"
        more = ["--protocol", args.protocol] if args.protocol else []
        more += ["--holdout", str(args.holdout)] if args.holdout else []
        data_flags = shlex.join(["--dataset", *(args.target or args.dataset), "--root", args.root, *more])
    told += f" ({state['best_weights']} weights)" if args.ema else ""
    told += f", epoch {state['best_epoch']} of {args.epochs}"
    if args.adapt is not None and not run.targets:
        print("nobody knows whether it is better now: --target judges by a small labelled set of these cameras")
    elif args.adapt is not None and not state["best_epoch"]:
        print("no round was better than the network as it came, so best.pth holds that")
    with contextlib.suppress(OSError, ValueError):
        seconds = sum(record.get("seconds", 0) for record in pictures.read_log(out / "log.jsonl"))
        print(f"trained for {timedelta(seconds=round(seconds))}; log.txt, log.jsonl and curves.png are in {out}")
    report, model = (shlex.quote(f"{out}/{name}") for name in ("report", "best.onnx"))
    if run.targets:
        print(f"all about it: python train.py --evaluate --weights {best} {data_flags} --out {report}")
    print(f"once exported: python search.py --model {model} --query q.jpg --gallery crops/")
    print(f"finished: {best}, {told}. Next: python export.py --ckpt {best}")


def run_evaluation(args, device):
    """--evaluate: tells how the network in --weights does on each target; returns name -> summaries."""
    model, info = models.load_checkpoint(args.weights, device, arch=args.arch, skip=args.skip, **args.options)
    if info.get("skipped"):
        print(f"{args.weights}: not used: {data.some(info['skipped'])}")
    args.distance = args.distance or info.get("distance", "cosine")
    learnt = info.get("args", {})  # of a run of ours: tested on the data set it was trained on, its split is taken
    learnt_sets, testing, splits, sets, boxes = learnt.get("dataset", []), testing_of(args), {}, {}, {}
    learnt_sets = [learnt_sets] if isinstance(learnt_sets, str) else learnt_sets
    if args.temporal:
        model = evaluate.pool_otherwise(model, args.temporal, args.weights)
    model = model.to(memory_format=torch.channels_last)
    if learnt.get("combine_all") and set(learnt_sets) & set(args.target):
        print(f"warning: {args.weights} was trained with --combine-all, on the test persons too: scores flatter")
    for name in args.target:  # all of them: what is wrong with the last is said before the work on the first
        learnt_split = (learnt.get("split") or 0) if name in learnt_sets else 0
        sets[name] = sets_of(args, learnt_split if args.split is None else args.split)
        with distributed.first_on_machine():
            splits[name] = evaluate.load_set(name, sets[name], train=False)
        if args.multi_query:
            boxes[name] = data.load_multi_query(name, args.root, splits[name].query)
    known = [name for name in learnt_sets if any(data.show_same_people(name, target) for target in splits)]
    data.warn_of_shared_persons(evaluate.trained_persons(info, known, args.root), splits)
    if any(map(data.has_video, splits.values())) and not isinstance(model, models.VideoModel):
        model = models.VideoModel(model, "avg").eval()
    folders = dict.fromkeys(splits)
    if args.out:
        several = len(splits) > 1
        folders = {name: Path(args.out, *[evaluate.file_name(name)] * several) for name in splits}
    for folder in filter(None, folders.values()):
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)  # now: not after the work is done
    with distributed.first_on_machine():
        targets = [evaluate.load_target(name, found, model, sets[name], testing) for name, found in splits.items()]
    summaries = {}
    for target in targets:
        name = target.name
        summaries[name] = evaluate.report(
            model, target, testing, sets[name], folders[name], pool=args.multi_query, boxes=boxes.get(name, ()),
            expand=args.expand, maps=args.maps, weights=args.weights,
        )  # fmt: skip
        distributed.wait_patiently()
    return summaries


def execute(args, checkpoint, device):
    """One run, training or evaluation: (exit code, name of target -> summary of the scores)."""
    if args.evaluate:
        args.target = args.target or args.dataset
        return 0, {name: summaries[0] for name, summaries in run_evaluation(args, device).items()}
    if checkpoint is not None and checkpoint["epoch"] >= args.epochs and not checkpoint["record"]:
        print(
            f"{args.resume} is finished already, all {checkpoint['epoch']} epochs: to go on give a larger --epochs, to "
            f"test it --evaluate --weights {args.resume}"
        )
        return 0, checkpoint["scores"] or {}
    changed = changed_settings(args)
    args.arch, args.distance, args.split = args.arch or "hacnn", args.distance or "cosine", args.split or 0
    args.out = args.out or default_folder(args)
    if args.amp == "auto":
        args.amp = "bf16" if has_fast_bf16(device) else "off"
    if distributed.rank() > 0:
        return run_training(*prepare_run(args, checkpoint, device))
    resumed_here = args.resume and Path(args.resume).resolve().parent == Path(args.out).resolve()
    is_new = not Path(args.out).exists()
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        held = lock(Path(args.out, "lock"))
    except OSError as error:
        raise ValueError(f"--out {args.out} cannot be written: {error}") from error
    if held is None:
        raise ValueError(f"another run is at work in {args.out}: wait until it ends, or give another --out")
    with held:
        if Path(args.out, "last.pth").exists() and not resumed_here:
            raise ValueError(
                f"{args.out} already holds a run: go on with it (--resume {args.out}/last.pth), give another --out, or "
                "delete it"
            )
        try:
            tee = Tee(sys.stdout, Path(args.out) / "log.txt")
        except OSError as error:
            raise ValueError(f"--out {args.out} cannot be written: {error}") from error
        with contextlib.redirect_stdout(tee):
            print(f"python train.py {args.command}")
            print(f"not as by default: {changed or 'nothing'} (all settings: {args.out}/log.txt)")
            print("  ".join(f"{name}={value}" for name, value in sorted(vars(args).items())), file=tee.file)
            try:
                run, state = prepare_run(args, checkpoint, device)
            except BaseException:
                if is_new:  # what did not begin leaves nothing
                    shutil.rmtree(args.out, ignore_errors=True)
                raise
            try:
                return run_training(run, state)
            except Exception:
                print(traceback.format_exc(), file=tee.file, flush=True)  # the console shows the message alone
                raise


def changed_settings(args):
    """name=value of the settings that are not as by default, as text."""
    usual = vars(parse([])[0])
    changed = {name: value for name, value in sorted(vars(args).items()) if value != usual[name] and name != "command"}
    return "  ".join(f"{name}={value}" for name, value in changed.items())


def default_folder(args):
    adapted = "-adapted" * (args.adapt is not None)
    return f"runs/{(args.arch or 'hacnn').replace('/', '-')}-{evaluate.file_name(trained_on(args))}{adapted}"


def execute_all_splits(args, argv, device):
    """Each split in turn, then mean and standard deviation of their scores, also in summary.json; the exit code.

    Training goes into a folder per split, and where that is there already it goes on: a run that was stopped is started
    with the same command.
    """
    if args.resume:
        raise ValueError("--split all goes on by itself with what is there: give the first command again, no --resume")
    out, found = Path(args.out or default_folder(args)), []
    if not args.evaluate and all(data.find_dataset(name, args.root)[0].num_splits == 1 for name in args.dataset):
        raise ValueError(
            f"--split all trains anew for each split, and {' '.join(args.dataset)} has one: train once, without it, "
            "then test on all splits of --target by --evaluate --weights FILE --split all"
        )
    for split in range(check_splits(args)):
        name, now = f"split-{split}", ["--split", str(split)]
        last = out / name / "last.pth"
        print(f"--- split {split}")
        if args.evaluate:
            if Path(args.weights).is_dir():
                now += ["--weights", str(Path(args.weights, name, "best.pth"))]
            now += ["--out", str(Path(args.out, name))] if args.out else []
        elif last.is_file():
            stored = models.read_checkpoint(last)
            free = {"split", "out", "resume", "command", "amp", "arch", "distance"}
            changed = [key for key in sorted(set(stored["args"]) - free) if stored["args"][key] != getattr(args, key)]
            if changed:
                raise ValueError(f"{last} was trained with another {data.some(changed)}: give another --out")
            now += ["--resume", str(last)]
        now += ["--out", str(out / name)] if not args.evaluate else []
        code, scores = execute(*parse([*argv, *now]), device)
        if code:
            print("the command that was given, again, goes on there and with the other splits")
            return code
        found.append(scores)
    summary = {}
    for target in found[0]:
        table = np.array([[scores[target][name] for name in evaluate.SCORES] for scores in found])  # (splits, scores)
        means, deviations = table.mean(axis=0), table.std(axis=0, ddof=1)
        columns = zip(evaluate.SCORES, means, deviations, strict=True)
        told = "  ".join(f"{name.replace('rank', 'rank-')} {100 * m:.1f} +- {100 * d:.1f}" for name, m, d in columns)
        print(f"{target}, mean +- standard deviation of {len(found)} splits: {told}  (%)")
        rows = zip(evaluate.SCORES, means, deviations, table.T.tolist(), strict=True)
        summary[target] = {name: {"mean": m, "deviation": d, "splits": values} for name, m, d, values in rows}
    if distributed.rank() == 0 and (args.out or not args.evaluate):
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Flags: what they are, what they mean together, and which do not fit together


def loss_weight(text):
    """'triplet' or 'triplet:0.5' -> (name, weight): a type for argparse."""
    name, _, weight = text.partition(":")
    if name not in recipes.LOSSES:
        known = f"of {', '.join(recipes.LOSSES)}, as in xent triplet:0.5"
        raise argparse.ArgumentTypeError(f"no loss {name!r}{did_you_mean(name, recipes.LOSSES)}: {known}")
    try:
        weight = float(weight) if weight else recipes.LOSSES[name].weight
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a weight is a positive number, as in {name}:0.5")
    return name, weight


class StorePairs(argparse.Action):
    """Makes a dictionary of pairs (name, value)."""

    def __call__(self, parser, namespace, pairs, flag=None):
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise argparse.ArgumentError(self, f"a name stands twice in {' '.join(names)}: once is enough")
        setattr(namespace, self.dest, dict(pairs))


def best_rule(text):
    """'mAP' or 'rank1:viper' -> (score, name of the target or None): a type for argparse."""
    metric, _, target = text.partition(":")
    metric = metric.replace("rank-", "rank")
    if metric not in evaluate.SCORES:
        raise argparse.ArgumentTypeError(f"no score {metric!r}: of {', '.join(evaluate.SCORES)}, as in rank1:viper")
    return metric, target or None


def split_number(text):
    """'3' -> 3; 'all' stays."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no split: a number from 0, or all")
    return text if text == "all" else int(text)


def build_parser(description=None):
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", default=["market1501"], metavar="NAME",
        help="what to train on (default: market1501), several are put together; of: "
        f"{', '.join(sorted(data.DATASETS))}; folder:PATH is your own")
    add("--target", nargs="+", metavar="NAME",
        help="what to test on, each alone (default: what is trained on, where it has queries); the first decides which "
        "epoch is best, see --best")
    add("--adapt", nargs="*", metavar="SOURCE",
        help="adapt the network in --weights to one's own cameras, without labels: folders, images, .txt and .csv "
        "lists, as search.py index takes them; no SOURCE: the images to train on of --dataset, whose labels are not "
        "read. A round an epoch; --target judges before and after each")
    add("--root", default="data", help="folder above the data sets' own (default: data), see DATASETS.md")
    add("--split", type=split_number, metavar="N",
        help="of data sets that have several (default: 0, or the checkpoint's); all: each in turn, mean and deviation. "
        "With --evaluate, --weights can be the folder of a run over all")
    add("--combine-all", action="store_true",
        help="train on the test persons too, for a product; nothing is left to test on but other sets (--target)")
    add("--holdout", type=int, default=0, metavar="N",
        help="test on N of the persons to train on, the same ones in every run, in place of the test persons (default: "
        "0, off): choose flags by that, or the test persons have been trained on in a way")
    add("--min-frames", type=int, default=0, metavar="N", help="leave out shorter tracklets (default: 0, or what the "
        "checkpoint to --evaluate says)")
    add("--cache", help="folder for decoded pixels (default: ROOT/.pixels): best on a fast disk, safe to delete")
    add("--cache-limit", type=float, default=20, metavar="GB", help="decode batch by batch beyond this (default: 20)")
    add = parser.add_argument_group("video, where items are tracklets of frames").add_argument
    add("--seq-len", type=int, default=8, metavar="T", help="frames of a clip (default: 8, or what the checkpoint to "
        "--evaluate says)")
    add("--train-sample", choices=("random", "evenly", "frames"), default="random",
        help="frames of a clip to train on (default: random); or frames: each frame is a sample by itself")
    add("--test-sample", choices=data.SAMPLING, default="evenly",
        help="frames to test on (default: evenly, up to --seq-len of a tracklet, or what the checkpoint to --evaluate "
        "says)")
    add("--temporal", choices=models.POOLING,
        help="how frames make a feature (default: avg, or what the checkpoint says); attention is learned")
    add = parser.add_argument_group("model").add_argument
    add("--arch", help="default: hacnn, or what the checkpoint holds; `python models.py` lists the usual ones, and any "
        "name of torchvision or timm goes")
    add("--options", nargs="+", type=models.parse_option, action=StorePairs, default={}, metavar="NAME=VALUE",
        help="of hacnn: learn_region=False (global branch alone), align_corners=True (old weights), bnneck=True, "
        "joint_norm=False (batch norms see one region at a time); of all others: "
        "input_size=384,128; of those from torchvision and timm: pooling=gem (or avg, token), embedding=512, "
        "bnneck=True, and for ResNets last_stride=2 (a smaller last map)")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=False,
        help="start from ImageNet weights, downloaded once; beside --weights or --resume nothing is: that file wins")
    add("--weights", metavar="FILE", help="start from these weights, or test them; what does not fit is left out, and "
        "said. synthetic: those of this repository, which have seen drawn people alone")
    add("--skip", nargs="+", default=[], metavar="LAYER",
        help="with --evaluate: learned layers of a file of other code that this network does without")
    add = parser.add_argument_group("fine-tuning (LAYER: a top-level child of the network)").add_argument
    add("--fixbase-epochs", type=int, default=0, metavar="N",
        help="in the first N of the --epochs (default: 0) only --open-layers train, the rest stays to the bit")
    add("--open-layers", nargs="*", default=[], metavar="LAYER",
        help="these (default, or no name: the head, so classifier*, fc*, bnneck, gem)")
    add("--new-layers", nargs="*", metavar="LAYER",
        help="train these (no name: the head) with --lr, and all others with --base-lr-mult of it (default: all alike)")
    add("--base-lr-mult", type=float, default=0.1, metavar="X", help="default: 0.1, beside --new-layers")
    add = parser.add_argument_group("loss").add_argument
    add("--loss", nargs="+", type=loss_weight, action=StorePairs, default={"xent": 1.0}, metavar="NAME[:WEIGHT]",
        help=f"sum of: {', '.join(f'{name}:{loss.weight:g}' for name, loss in recipes.LOSSES.items())} (default: "
        "xent); the weights shown are those of a name alone")
    add("--label-smooth", type=float, nargs="?", const=0.1, default=0.1, metavar="EPS",
        help="share of the target spread over all classes (default: 0.1); 0 for a handful of classes")
    add("--margin", type=float, default=0.3, help="of the triplet loss (default: 0.3), rarely worth changing")
    add("--center-lr", type=float, default=0.5, metavar="LR",
        help="rate of the centres of center and the radius of ring, whatever their weight (default: 0.5, constant)")
    add("--num-instances", type=int, default=4, metavar="K",
        help="images per person in a batch of P persons x K images (default: 4)")
    add("--sampler", choices=("shuffle", "identity", "camera", "dataset"),
        help="how batches are made (default: identity, P persons x K images, for triplet, triplet-soft and circle; "
        "else shuffle); camera, dataset: equal shares of --num-domains of them")
    add("--num-domains", type=int, default=0, metavar="N",
        help="cameras or data sets in a batch of --sampler camera or dataset (default: 0, all)")
    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=60, help="passes over the training images (default: 60); 300 is the long way")
    add("--batch-size", type=int, default=64, help="images or clips per step (default: 64); change --lr in proportion")
    add("--optim", choices=recipes.OPTIMIZERS, default="adamw", help="default: adamw; sgd suits long runs")
    optimizers = recipes.OPTIMIZERS.items()
    rates, decays = (", ".join(f"{usual[i]:g} for {name}" for name, usual in optimizers) for i in (1, 2))
    add("--lr", type=float, help=f"highest rate (default: {rates})")
    add("--weight-decay", type=float, metavar="DECAY",
        help=f"default: {decays}; for adamw 1 / (rate x decay) steps should be 5 to 10 epochs")
    add("--momentum", type=float, default=0.9, help="of sgd and rmsprop (default: 0.9)")
    add("--schedule", choices=recipes.SCHEDULES, default="cosine",
        help="how the rate falls (default: cosine, to 0 at the end); one-cycle rises for 30 %% of the run first")
    add("--milestones", type=float, nargs="+", default=[20, 40], metavar="EPOCH",
        help="where multi-step lowers the rate (default: 20 40; below 1: parts of --epochs, such as 0.5 0.75); step "
        "lowers it every first of them")
    add("--gamma", type=float, default=0.1, help="what step and multi-step multiply the rate by (default: 0.1)")
    add("--warmup-epochs", type=float, default=1, metavar="N",
        help="epochs in which the rate rises from a hundredth (default: 1, of a short run a quarter); 0 is off")
    add("--freeze-bn", action=argparse.BooleanOptionalAction, default=False,
        help="keep the statistics of all batch norms, train scale and shift: for small batches on --pretrained")
    add("--accumulate", type=int, default=1, metavar="N",
        help="batches per step, their gradients averaged (default: 1): a large batch in little memory")
    add("--clip-norm", type=float, default=0, metavar="X",
        help="longest gradient, all weights of the network together (default: 0, any)")
    add("--ema", type=float, default=0, metavar="DECAY",
        help="average the weights over the steps too, 0.999 is usual (default: 0, off); both are tested, and best.pth "
        "holds the better, which flatters it a little")
    add("--augment", nargs="*", choices=AUGMENTATIONS, default=["flip", "translate"], metavar="NAME",
        help=f"of {', '.join(AUGMENTATIONS)} (default: flip translate); erase pays in long runs; none: no name")
    add = parser.add_argument_group("evaluation").add_argument
    add("--evaluate", action="store_true", help="only test the network in --weights; with --out, write all about it")
    add("--eval-every", type=int, default=0, metavar="N",
        help="test every N epochs (default: 0, after the last alone); picking the best epoch flatters the score")
    add("--distance", choices=metrics.DISTANCES, help="between features (default: cosine, or what the checkpoint says)")
    add("--protocol", choices=metrics.PROTOCOLS,
        help="default: the data set's own; market1501, cuhk03 (one gallery image per person), or no_camera_rule "
        "(images of the query's camera count too)")
    add("--multi-query", choices=("average", "maximum"), metavar="POOL",
        help="with --evaluate, also: queries pooled from the images of gt_bbox; of: average, maximum")
    add("--expand", type=int, default=0, metavar="K",
        help="with --evaluate, also: queries averaged with their K nearest gallery images; 5 is a good start")
    add("--rerank", action="store_true", help="also: scores after k-reciprocal re-ranking (Zhong et al. 2017)")
    add("--flip", action="store_true", help="test on the mean of the features of each image and of its mirror image")
    add("--best", type=best_rule, default=("mAP", None), metavar="SCORE[:TARGET]",
        help=f"what best.pth is chosen by (default: mAP, of the first target); of: {', '.join(evaluate.SCORES)}")
    add("--maps", type=int, default=0, metavar="N",
        help="with --evaluate and --out: draw what the network looks at in N queries, up to 100, into maps.jpg")
    add("--test-batch-size", type=int, default=128, help="images per step of extraction (default: 128)")
    add = parser.add_argument_group("run").add_argument
    add("--recipe", metavar="NAME",
        help=f"fill flags, of {', '.join(recipes.RECIPES)}: see training/recipes.py; flags given beside it win, and "
        "--resume does")
    add("--out", help="folder of the run (default: runs/ARCH-DATASET), one that holds a run is refused; with "
        "--evaluate: folder for queries.csv, scores.json, cmc.png and roc.png (default: they are not written)")
    add("--resume", metavar="FILE", help="go on from last.pth of a run with its settings; flags given beside it win")
    add("--seed", type=int, default=0, help="of weights, batches and augmentation (default: 0); report several")
    add("--device", default="auto", help="default: auto, all GPUs or else the CPU; cpu, cuda, or cuda:1 for one GPU")
    add("--threads", type=int, default=0, metavar="N",
        help="that compute on a CPU (default: 0, one per core); fewer where other programs need the cores")
    add("--amp", choices=("auto", *recipes.AMP), default="auto",
        help="mixed precision (default: auto: bf16 on GPUs and CPUs with AMX); fp16, with scaled gradients, for older "
        "GPUs; off to compare across machines")
    add("--compile", nargs="?", const="default", choices=("default", "reduce-overhead", "max-autotune"), metavar="MODE",
        help="torch.compile the network: minutes at the start, faster steps on a GPU; reduce-overhead captures CUDA "
        "graphs, max-autotune also tries kernels")
    add("--sync-bn", action=argparse.BooleanOptionalAction, default=False,
        help="torchrun on GPUs: batch norms see the whole batch, not the part of their process")
    add("--timeout", type=float, default=600, metavar="SECONDS",
        help="torchrun: a process that does not answer for so long ends the run (default: 600)")
    add("--log-every", type=int, default=50, metavar="STEPS", help="steps between lines of the log (default: 50)")
    parser.set_defaults(adapted_from="")  # of --adapt: what the network was trained on before
    return parser


def flags_given(argv):
    """Destinations of the flags that stand in argv."""
    parser = build_parser()
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([]))))
    return {name for name, value in vars(parser.parse_args(argv)).items() if value is not None}


def find_recipe(name):
    """Destination of a flag -> value; ValueError with the names that there are."""
    if name not in recipes.RECIPES:
        known = ", ".join(recipes.RECIPES)
        raise ValueError(f"no --recipe {name!r}{did_you_mean(name, recipes.RECIPES)}: there are {known}")
    return recipes.RECIPES[name]


def settings_of(weights, given):
    """Flag -> value of the run that made a checkpoint, for its evaluation: frames are chosen as that run chose them,
    and where no data set is given it is tested on its own."""
    stored = models.read_checkpoint(weights)
    run = stored.get("args", {}) if models.is_ours(stored) else {}
    taken = {name: run[name] for name in ("seq_len", "test_sample", "min_frames") if name in run}
    own = run.get("target") or run.get("dataset")
    if own and not given & {"dataset", "target"}:
        taken["dataset"] = [own] if isinstance(own, str) else own  # an older run had one
        if "root" not in given and Path(run["root"]).is_dir():
            taken["root"] = run["root"]
    return taken


def settings_to_adapt(args, given):
    """Flag -> value: what --adapt takes from the network in --weights, and from what it is to be judged by."""
    if not args.weights:
        raise ValueError("--adapt needs --weights FILE of a network that tells people apart somewhere, or synthetic")
    stored = models.read_checkpoint(args.weights)
    taken = {"adapted_from": "others' weights"}
    if models.is_ours(stored):
        options = {name: value for name, value in stored["options"].items() if name != "temporal"}
        taken = {"arch": stored["arch"], "options": options, "distance": stored.get("distance")}
        taken["adapted_from"] = stored.get("dataset", "other images")
    if args.adapt and "dataset" not in given:
        taken["dataset"] = []
    return taken | ({"eval_every": 1} if args.target else {})


def parse(argv, description=None):
    """The arguments; with --resume those of the run, overridden by what is given now. Also the checkpoint, or None."""
    parser, checkpoint = build_parser(description), None
    args, given = parser.parse_args(argv), flags_given(argv)
    if args.adapt is not None and not args.resume:
        args.recipe = args.recipe or "adapt"
    if args.recipe is not None and not args.resume:
        filled = find_recipe(args.recipe)
        if args.adapt is not None:
            filled = {**filled, **settings_to_adapt(args, given), "recipe": args.recipe}
        parser.set_defaults(**filled)
        args = parser.parse_args(argv)
        args.options = {**filled.get("options", {}), **args.options}
    if args.evaluate and args.weights and Path(args.weights).is_file():
        parser.set_defaults(**settings_of(args.weights, given))
        args = parser.parse_args(argv)
    if args.resume:
        checkpoint = models.read_checkpoint(args.resume)
        if not {"args", "optimizer", "arch", "pids", "epoch", "step", "record"} <= checkpoint.keys():
            raise ValueError(f"{args.resume} is not last.pth of a run: its weights alone go to --weights")
        if args.arch not in (None, checkpoint["arch"]):
            raise ValueError(f"{args.resume} holds {checkpoint['arch']}, not {args.arch}: leave --arch out")
        checkpoint["args"] = {**vars(parser.parse_args([])), **checkpoint["args"]}  # an older run lacks some
        if isinstance(checkpoint["args"]["dataset"], str):  # and had one data set
            checkpoint["args"]["dataset"] = [checkpoint["args"]["dataset"]]
        check_settings(args.resume, checkpoint["args"])
        renamed = {"htri": "triplet"}  # and had another name for a loss
        checkpoint["args"]["loss"] = {renamed.get(name, name): w for name, w in checkpoint["args"]["loss"].items()}
        parser.set_defaults(**{**checkpoint["args"], "out": str(Path(args.resume).parent)})  # it may have been moved
        args = parser.parse_args(argv)
        args.recipe = checkpoint["args"]["recipe"]
    args.command = shlex.join(argv)
    if "warmup_epochs" not in given and not args.resume:  # the default, or a recipe's, suits longer runs
        args.warmup_epochs = min(args.warmup_epochs, args.epochs / 4)
    usual = recipes.OPTIMIZERS[args.optim]
    args.lr = usual.lr if args.lr is None else args.lr
    args.weight_decay = usual.weight_decay if args.weight_decay is None else args.weight_decay
    check_flags(parser, args)
    check_splits(args)
    if checkpoint is not None:
        check_resumed_flags(args, checkpoint)
    return args, checkpoint


def check_settings(path, settings):
    """ValueError where a flag of a run that is to go on has a value of another type than its default."""
    for name, usual in vars(build_parser().parse_args([])).items():
        value, number = settings.get(name), isinstance(usual, (int, float)) and not isinstance(usual, bool)
        if usual is not None and not isinstance(value, (int, float) if number else type(usual)):
            raise ValueError(
                f"{path} is not of the form of our checkpoints ({name} is {value!r}, not of the type of {usual!r}): "
                "take the file that train.py wrote"
            )


def check_resumed_flags(args, checkpoint):
    """ValueError where a flag given beside --resume asks for what a saved state cannot be continued with."""
    fixed = ["options", "optim", "weight_decay", "momentum", "fixbase_epochs", "open_layers", "new_layers"]
    fixed += ["temporal", "split", "loss", "ema", "holdout", "adapt"]
    if checkpoint["step"]:  # in the middle of an epoch, whose batches are drawn
        fixed += ["batch_size", "num_instances", "seed", "sampler", "num_domains", "train_sample", "seq_len"]
        fixed += ["dataset", "min_frames", "combine_all", "accumulate"]
    changed = [name for name in fixed if getattr(args, name) != checkpoint["args"][name]]
    if changed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"{names} cannot change on --resume: leave it out, or start anew with --weights {args.resume}")


def check_flags(parser, args):
    """Ends the program with a usage message where flags do not fit together."""
    at_least = {"epochs": 1, "batch_size": 2, "test_batch_size": 1, "log_every": 1}
    at_least |= {"eval_every": 0, "seed": 0, "expand": 0, "fixbase_epochs": 0, "seq_len": 1, "min_frames": 0}
    at_least |= {"holdout": 0, "num_domains": 0, "accumulate": 1, "clip_norm": 0, "timeout": 1, "threads": 0}
    for name, low in at_least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    if not 0 <= args.label_smooth < 1:
        parser.error(f"--label-smooth must lie in 0..1, got {args.label_smooth}")
    if not 0 < args.center_lr <= 1:
        parser.error(f"--center-lr must lie above 0 and not above 1, where centres overshoot, got {args.center_lr:g}")
    if args.compile not in (None, "default") and args.accumulate > 1:
        parser.error(f"--compile {args.compile} captures CUDA graphs, which do not add up gradients: --accumulate 1")
    if not args.gamma > 0 or not 0 <= args.momentum < 1 or not math.isfinite(args.lr + args.clip_norm):
        parser.error("--gamma must be positive, --momentum lie in 0..1, --lr and --clip-norm be numbers")
    if not 0 <= args.ema < 1:
        parser.error(f"--ema must be a decay below 1, such as 0.999, or 0 for none, got {args.ema:g}")
    if args.lr <= 0 or min(args.milestones) <= 0:
        parser.error("--lr and --milestones must be positive")
    if not 0 <= args.warmup_epochs < args.epochs:
        parser.error(f"--warmup-epochs must lie between 0 and --epochs {args.epochs}, got {args.warmup_epochs:g}")
    if args.num_domains and args.sampler not in ("camera", "dataset"):
        parser.error("--num-domains counts cameras or data sets: give --sampler camera or --sampler dataset")
    if args.temporal == "attention" and args.train_sample == "frames" and not args.evaluate:
        parser.error("--temporal attention is learned from clips: --train-sample random or evenly")
    twice = [name for name in dict.fromkeys(args.dataset) if args.dataset.count(name) > 1]
    if twice:
        parser.error(f"--dataset names {', '.join(twice)} twice, and its persons would count as others: once is enough")
    if args.adapt is not None:
        check_adapt(parser, args)
    if args.holdout and (args.target or args.combine_all):
        parser.error("--holdout says what to test on: leave --target and --combine-all out")
    if args.combine_all and args.evaluate:
        parser.error("--combine-all says what to train on, and --evaluate does not train")
    both = [name for name in args.target or [] if name in args.dataset]
    if args.combine_all and both:
        parser.error(f"--combine-all trains on the test persons of {', '.join(both)}: leave it out of --target")
    if args.open_layers and not args.fixbase_epochs:
        parser.error("--open-layers says what trains in the first epochs: give their number, --fixbase-epochs N")
    if args.fixbase_epochs and not {"xent", *recipes.HEADS} & args.loss.keys():
        heads = ", ".join(["xent", *sorted(recipes.HEADS)])
        parser.error(f"--fixbase-epochs trains the classifier: that takes one of {heads} in --loss")
    if args.base_lr_mult <= 0 or args.base_lr_mult != 0.1 and args.new_layers is None:
        parser.error("--base-lr-mult must be positive, and stands beside --new-layers: all layers but these take it")
    if args.evaluate and args.recipe:
        parser.error("--recipe says how to train, and --evaluate does not train: leave it out")
    if args.evaluate and not args.weights:
        parser.error("--evaluate needs --weights FILE, such as runs/hacnn-market1501/best.pth")
    if not args.evaluate and (args.multi_query or args.expand):
        parser.error("--multi-query and --expand belong to --evaluate: training ends with the plain scores")
    if not 0 <= args.maps <= 100 or (args.maps and not (args.evaluate and args.out)):
        parser.error("--maps takes 0 to 100 queries, and draws them into the folder --out of --evaluate: give both")
    if args.evaluate and args.resume:
        parser.error("--evaluate tests --weights, --resume goes on training: give one of them")


def check_adapt(parser, args):
    """Ends the program where --adapt does not go with other flags."""
    if args.adapt and args.dataset:
        parser.error("--adapt SOURCE says what to train on: leave --dataset out; --target says what to test on")
    if "prototypes" not in args.loss or "xent" in args.loss:
        parser.error("--adapt trains by the loss prototypes, alone or beside triplet and the like: no label, no xent")
    never = {"--evaluate": args.evaluate, "--combine-all": args.combine_all, "--holdout": args.holdout,
             "--sampler": args.sampler not in (None, "identity"), "--split all": args.split == "all",
             "--fixbase-epochs": args.fixbase_epochs, "--pretrained": args.pretrained}  # fmt: skip
    if wrong := [flag for flag, given in never.items() if given]:
        parser.error(f"--adapt does not go with {', '.join(wrong)}: leave it out")


def check_splits(args):
    """The number of splits of --split all, or ValueError where the data sets do not have that split."""
    names = [*args.dataset, *(args.target or [])]
    counts = {name: data.find_dataset(name, args.root)[0].num_splits for name in names}
    several = {name: count for name, count in counts.items() if count > 1}
    told = ", ".join(f"{name} has {count}" for name, count in counts.items())
    if args.split == "all" and len(set(several.values())) != 1:
        raise ValueError(f"--split all needs data sets with several splits, the same number of them: {told}")
    if args.split not in (None, "all") and any(args.split >= count for count in (several or counts).values()):
        raise ValueError(f"there is no --split {args.split}, they count from 0: {told}")
    return max(counts.values(), default=1)


def pick_device(name):
    """auto is the first GPU where there is one, else the CPU; under torchrun each process has a GPU of its own."""
    if distributed.launched():
        return distributed.pick_gpu(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is no device: auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name} is not supported: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        others = f"cuda:0 to cuda:{last}, or " if last >= 0 else ""
        raise ValueError(f"--device {name}: torch sees {last + 1} GPUs here: give --device {others}cpu")
    return device


def has_fast_bf16(device):
    """Whether bf16 trains faster than fp32: on GPUs that have it and on CPUs with AMX; other CPUs are slower in it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        with distributed.silent_others(errors=True):
            args, checkpoint = parse(argv, __doc__)
            device = pick_device(args.device)
            if args.threads:
                torch.set_num_threads(args.threads)
            if args.sync_bn and not (distributed.launched() and device.type == "cuda"):
                raise ValueError(
                    "--sync-bn is for several processes on GPUs, torchrun --nproc-per-node N train.py ...; elsewhere "
                    "leave it out, or give --no-sync-bn on --resume"
                )
    except (ValueError, OSError) as error:
        distributed.complain(error)
        return 1
    try:
        with distributed.group(device, args.timeout):
            if args.split == "all":
                return execute_all_splits(args, argv, device)
            return execute(args, checkpoint, device)[0]
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        distributed.complain(error)
        return 1
    except torch.OutOfMemoryError as error:
        distributed.complain(error, "\nLower --batch-size or --test-batch-size")
        return 1
    except KeyboardInterrupt:  # outside an epoch there is nothing to save: last.pth is up to date if it exists
        print("interrupted outside an epoch; if the run's folder holds last.pth, --resume goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    distributed.leave(main())
