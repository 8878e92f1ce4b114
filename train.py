"""Trains a network for person re-identification, or evaluates one.

    python train.py --arch hacnn --dataset market1501                            # -> runs/hacnn-market1501/best.pth
    python train.py --arch resnet50 --pretrained --fixbase-epochs 5              # fine-tunes: the new head first
    python train.py --dataset mars --seq-len 8 --temporal attention              # video: clips of 8 frames
    python train.py --dataset market1501 cuhk03 --target viper grid              # several sets, tested on others
    python train.py --dataset viper --split all                                  # mean and deviation over 20 splits
    python train.py --resume runs/hacnn-market1501/last.pth                      # goes on where a run stopped
    python train.py --evaluate --weights runs/hacnn-market1501/best.pth --dataset market1501   # see evaluate.py

A run writes into its folder: last.pth after every epoch (and on Ctrl-C), best.pth after an evaluation with the best mAP
so far, log.txt (what the console shows), log.jsonl (one line per epoch) and curves.png. --resume continues to the same
bits on a CPU: what an epoch draws at random follows from (--seed, epoch, step), and so does the learning rate.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import data
import evaluate
import loader
import losses
import metrics
import models
import video
import visualize

# ----------------------------------------------------------------------------------------------------------------------
# Losses, optimizers, schedules: tables and functions

LOSSES = {  # name -> function of (logits, features, labels, args); branches are averaged
    "xent": lambda logits, features, labels, args: losses.mean_over_branches(
        losses.cross_entropy, logits, labels, args.label_smooth
    ),
    "htri": lambda logits, features, labels, args: losses.mean_over_branches(
        losses.batch_hard_triplet, features, labels, args.margin
    ),
}

OPTIMIZERS = {
    "adam": lambda params, args: torch.optim.Adam(params, args.lr, weight_decay=args.weight_decay),
    "amsgrad": lambda params, args: torch.optim.Adam(params, args.lr, weight_decay=args.weight_decay, amsgrad=True),
    "adamw": lambda params, args: torch.optim.AdamW(params, args.lr, weight_decay=args.weight_decay),
    "sgd": lambda params, args: torch.optim.SGD(params, args.lr, args.momentum, weight_decay=args.weight_decay),
}

SCHEDULES = {  # name -> factor on --lr at `progress`, counted in epochs
    "constant": lambda progress, args: 1.0,
    "step": lambda progress, args: args.gamma ** (progress // args.milestones[0]),
    "multi-step": lambda progress, args: args.gamma ** sum(progress >= milestone for milestone in args.milestones),
    "cosine": lambda progress, args: (
        0.5 + 0.5 * math.cos(math.pi * (progress - args.warmup_epochs) / (args.epochs - args.warmup_epochs))
    ),
}


def learning_rate(progress, args):
    """The rate at `progress` epochs: a linear rise from a hundredth over --warmup-epochs, then --schedule."""
    if progress < args.warmup_epochs:
        return args.lr * (0.01 + 0.99 * progress / args.warmup_epochs)
    return args.lr * SCHEDULES[args.schedule](progress, args)


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning: which layers train, and how fast. A layer is a top-level child of the network


def layers_of(model):
    """Name -> module of the top-level children; of a video model, those of its network for frames among them."""
    children = dict(model.named_children())
    if isinstance(model, video.VideoModel):
        children |= children.pop("frames").named_children()
    return children


def find_layers(model, names, flag):
    """`names`, or those of the model's head where there are none. ValueError with the layers that can train."""
    layers = [name for name, layer in layers_of(model).items() if next(layer.parameters(), None) is not None]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ValueError(f"{flag}: no layer {', '.join(unknown)} to train; there are: {', '.join(layers)}")
    return names or [name for name in layers if name.startswith(("classifier", "fc", "bnneck", "gem", "attention"))]


def parameter_groups(model, args):
    """What the optimizer trains: all in one group, or the parameters of --new-layers and those of the other layers."""
    if args.new_layers is None:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    new = find_layers(model, args.new_layers, "--new-layers")
    groups = ([], [])
    for name, layer in layers_of(model).items():
        groups[name not in new].extend(p for p in layer.parameters() if p.requires_grad)
    return [{"params": group} for group in groups]


def freeze_base(model, optimizer, open_layers):
    """Training mode for the layers of that name alone, or for all where it is None.

    A frozen layer stands still to the bit: in evaluation mode its batch norms keep their statistics, and a parameter
    without gradient is skipped by every optimizer, weight decay and momentum included. Parameters that the optimizer
    does not hold were never meant to train and stay as they are.
    """
    model.train()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    for name, layer in layers_of(model).items():
        if open_layers is not None and name not in open_layers:
            layer.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------------------
# Files of a run


def save_atomically(content, path):
    """torch.save such that `path` holds the old or the new content whole, whenever the process is killed."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the previous one is kept" if path.exists() else "there is no previous one"
        raise OSError(f"checkpoint {path} could not be written ({error}); {kept}") from error


def append_record(path, record):
    """Adds one JSON line to log.jsonl, in place of lines of this and later epochs that an interrupted run left."""
    lines = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in lines if json.loads(line)["epoch"] < record["epoch"]]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join([*lines, json.dumps(record)]) + "\n")
    os.replace(temporary, path)


class Tee:
    """Standard output that is also written to a file."""

    def __init__(self, console, path):
        self.console, self.file = console, open(path, "a", encoding="utf-8")

    def write(self, text):
        self.file.write(text)
        self.file.flush()
        self.console.write(text)
        self.console.flush()  # into a pipe too: who reads along waits for the line
        return len(text)

    def flush(self):
        self.console.flush()


@contextlib.contextmanager
def until_interrupted():
    """Inside, Ctrl-C and SIGTERM only note themselves in the list that is given: a step is never cut in the middle."""
    received = []
    previous = {s: signal.signal(s, lambda number, _: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------------------------------------------
# One epoch


def check_finite(values, epoch, first_step):
    """FloatingPointError with step and value where a loss since first_step (from 0) is infinite or not a number."""
    values = torch.stack(values).float().cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f"the loss is {values[step]} in epoch {epoch + 1}, step {first_step + step + 1}: training stopped, last.pth"
            " stays as it was. A lower --lr, longer --warmup-epochs or --amp off may help"
        )


class Runner(nn.Module):
    """The model, in bf16 where it trains and that is asked for.

    Autocast stands inside, because the threads of nn.DataParallel would not inherit its type: they would run fp16.
    """

    def __init__(self, model, device, bf16):
        super().__init__()
        self.model, self.device_type, self.bf16 = model, device.type, bf16
        self.mean, self.std, self.pool_frames = model.mean, model.std, getattr(model, "pool_frames", None)

    def forward(self, images):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16 and self.training):
            return self.model(images)


class TrainSet(NamedTuple):
    """What is trained on. A sample is an image, or a tracklet of which every step takes a clip."""

    pixels: loader.Pixels  # of all images and frames
    labels: np.ndarray  # (N,) of the samples
    tracklets: list | None = None  # rows of `pixels` of each sample; None where row i is sample i
    domains: np.ndarray | None = None  # (N,) camera or data set of the samples, where batches are made by them

    def batches(self, args, epoch):
        """Of one epoch, arrays of samples (B,)."""
        return loader.epoch_batches(
            self.labels, args.batch_size, instances(args), args.seed, epoch, self.domains, args.num_domains
        )

    def rows(self, samples, args, seed):
        """Rows of `pixels`: (B,), or (B, T) of clips."""
        if self.tracklets is None:
            return samples
        rng, clips = np.random.default_rng(seed), []
        for rows in (self.tracklets[sample] for sample in samples):
            frames = video.choose_frames(len(rows), args.seq_len, args.train_sample, rng)
            clips.append(rows[video.fill_clip(frames, args.seq_len)])
        return np.stack(clips)


def build_train_set(items, sources, pixels, args):
    """The TrainSet of these items, whose frames `pixels` holds one after the other; sources (N,): their data sets."""
    labels, _ = data.relabel(items)
    domains = {"camera": np.array([item.camid for item in items]), "dataset": sources}.get(args.sampler)
    lengths = [len(item.paths) for item in items]
    if max(lengths) > 1 and args.train_sample != "frames":
        return TrainSet(pixels, labels, np.split(np.arange(len(pixels)), np.cumsum(lengths)[:-1]), domains)
    return TrainSet(pixels, labels.repeat(lengths), None, None if domains is None else domains.repeat(lengths))


def instances(args):
    """K of the P x K batches that triplets need; None where batches are made otherwise."""
    sampler = args.sampler or ("identity" if "htri" in args.loss else "shuffle")
    return args.num_instances if sampler == "identity" else None


def train_one_epoch(model, train_set, optimizer, device, state, args, interrupts=()):
    """Trains from state["step"] to the end of epoch state["epoch"]; False where `interrupts` filled and cut it short.

    state["totals"] sums what the epoch's log shows: images, seconds, and each loss times the images it was taken over.
    """
    epoch, totals = state["epoch"], Counter(state["totals"])
    bare = model.module if isinstance(model, nn.DataParallel) else model
    batches = train_set.batches(args, epoch)
    model.train()
    frozen = epoch < args.fixbase_epochs
    freeze_base(bare.model, optimizer, find_layers(bare.model, args.open_layers, "--open-layers") if frozen else None)
    recent, sums, started = [], Counter(), time.perf_counter()
    bar = tqdm(total=len(batches), initial=state["step"], desc=f"epoch {epoch + 1}", disable=None, leave=False)
    with bar:
        for step in range(state["step"], len(batches)):
            samples = batches[step]
            seed = int(np.random.SeedSequence((args.seed, epoch, step)).generate_state(1)[0])
            rows = train_set.rows(samples, args, seed)
            images = train_set.pixels.batch(rows, device)  # uint8 (B, 3, H, W), clips (B, T, 3, H, W)
            images = loader.augment(images, torch.Generator().manual_seed(seed), args.augment, bare.mean, bare.std)
            targets = torch.from_numpy(train_set.labels[samples]).to(device, non_blocking=True)  # (B,)
            rate = learning_rate(epoch + step / len(batches), args)
            for group, factor in zip(optimizer.param_groups, (1, args.base_lr_mult), strict=False):
                group["lr"] = rate * factor
            logits, features = model(images)
            parts = {name: LOSSES[name](logits, features, targets, args) for name in args.loss}
            loss = sum(weight * parts[name] for name, weight in args.loss.items())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            accuracy = (logits[0].detach().argmax(dim=1) == targets).float().mean()
            for name, value in {"loss": loss, "accuracy": accuracy, **parts}.items():
                sums[name] += value.detach() * rows.size
            recent.append(loss.detach())
            bar.update()
            stop = bool(interrupts)
            if len(recent) == args.log_every or step + 1 == len(batches) or stop:
                check_finite(recent, epoch, step + 1 - len(recent))  # here only: it waits for the GPU
                totals.update({name: float(value) for name, value in sums.items()})
                totals["images"] += len(recent) * rows.size
                totals["seconds"] += time.perf_counter() - started
                recent, sums, started = [], Counter(), time.perf_counter()
                tqdm.write(progress_line(epoch, step, len(batches), totals, optimizer.param_groups[0]["lr"], args))
                bar.set_postfix_str(f"loss {totals['loss'] / totals['images']:.3f}, {speed(totals):.0f} img/s")
            state.update(step=step + 1, totals=dict(totals))
            if stop:
                return False
    return True


def speed(totals):
    return totals["images"] / totals["seconds"]


def progress_line(epoch, step, num_steps, totals, lr, args):
    images = totals["images"]
    names = ["loss", *args.loss] if len(args.loss) > 1 else ["loss"]
    parts = "  ".join(f"{name} {totals[name] / images:.4f}" for name in names)
    steps_left = (args.epochs - epoch) * num_steps - step - 1
    left = timedelta(seconds=round(steps_left * images / (step + 1) / speed(totals)))
    return (
        f"epoch {epoch + 1:3}/{args.epochs}  step {step + 1:4}/{num_steps}  {parts}  "
        f"accuracy {100 * totals['accuracy'] / images:5.1f} %  lr {lr:.2e}  {speed(totals):5.0f} img/s  {left} left"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def loss_weights(text):
    """'xent+htri' or 'xent+htri:0.5' -> {'xent': 1.0, 'htri': 0.5}."""
    weights = {}
    for part in text.split("+"):
        name, _, weight = part.partition(":")
        if name not in LOSSES:
            raise argparse.ArgumentTypeError(f"no loss {name!r}: sum up {', '.join(LOSSES)}, as in xent+htri:0.5")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{weight!r} is no weight for {name}; write {name}:0.5") from None
    return weights


def split_number(text):
    """'3' -> 3; 'all' stays."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no split: a number from 0, or all")
    return text if text == "all" else int(text)


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", default=["market1501"], metavar="NAME",
        help="what to train on (default: market1501), several are put together; of: "
        f"{', '.join(sorted(data.DATASETS))}; folder:PATH is your own")
    add("--target", nargs="+", metavar="NAME",
        help="what to test on, each alone (default: what is trained on, where it has queries); the first decides which "
        "epoch is best")
    add("--root", default="data", help="folder above the data sets' own (default: data), see DATASETS.md")
    add("--split", type=split_number, metavar="N",
        help="of data sets that have several (default: 0, or the checkpoint's); all: each in turn, mean and deviation. "
        "With --evaluate, --weights can be the folder of a run over all")
    add("--combine-all", action="store_true",
        help="train on the test persons too, for a product; nothing is left to test on but other sets (--target)")
    add("--min-frames", type=int, default=0, metavar="N", help="leave out shorter tracklets (default: 0)")
    add("--cache", help="folder for decoded pixels (default: ROOT/.pixels): best on a fast disk, safe to delete")
    add("--cache-limit", type=float, default=20, metavar="GB", help="decode batch by batch beyond this (default: 20)")
    add = parser.add_argument_group("video, where items are tracklets of frames").add_argument
    add("--seq-len", type=int, default=8, metavar="T", help="frames of a clip (default: 8)")
    add("--train-sample", choices=("random", "evenly", "frames"), default="random",
        help="frames of a clip to train on (default: random); or frames: each frame is a sample by itself")
    add("--test-sample", choices=video.SAMPLING, default="evenly",
        help="frames to test on (default: evenly, up to --seq-len of a tracklet)")
    add("--temporal", choices=video.POOLING,
        help="how frames make a feature (default: avg, or what the checkpoint says); attention is learned")
    add = parser.add_argument_group("model").add_argument
    add("--arch", help="default: hacnn, or what the checkpoint holds; `python models.py` lists the usual ones, and any "
        "name of torchvision or timm goes")
    add("--options", nargs="+", type=models.parse_option, default=[], metavar="NAME=VALUE",
        help="of hacnn: learn_region=False (global branch alone), align_corners=True (old weights); of all others: "
        "input_size=384,128; of those from torchvision and timm: pooling=gem (or avg, token), embedding=512, "
        "bnneck=True, and for ResNets last_stride=2 (a smaller last map)")
    add("--pretrained", action="store_true",
        help="start from ImageNet weights, downloaded once; beside --weights or --resume nothing is: that file wins")
    add("--weights", metavar="FILE", help="start from these weights, or test them; what does not fit is left out")
    add = parser.add_argument_group("fine-tuning (LAYER: a top-level child of the network)").add_argument
    add("--fixbase-epochs", type=int, default=0, metavar="N",
        help="in the first N of the --epochs (default: 0) only --open-layers train, the rest stays to the bit")
    add("--open-layers", nargs="*", default=[], metavar="LAYER",
        help="these (default, or no name: the head, so classifier*, fc*, bnneck, gem)")
    add("--new-layers", nargs="*", metavar="LAYER",
        help="train these (no name: the head) with --lr, and all others with --base-lr-mult of it (default: all alike)")
    add("--base-lr-mult", type=float, default=0.1, metavar="X", help="default: 0.1, beside --new-layers")
    add = parser.add_argument_group("loss").add_argument
    add("--loss", type=loss_weights, default="xent", metavar="NAMES",
        help="xent (default), or xent+htri for batch-hard triplets too; xent+htri:0.5 halves their weight")
    add("--label-smooth", type=float, nargs="?", const=0.1, default=0.1, metavar="EPS",
        help="share of the target spread over all classes (default: 0.1); 0 for a handful of classes")
    add("--margin", type=float, default=0.3, help="of the triplet loss (default: 0.3), rarely worth changing")
    add("--num-instances", type=int, default=4, metavar="K", help="images per person where htri is used (default: 4)")
    add("--sampler", choices=("shuffle", "identity", "camera", "dataset"),
        help="how batches are made (default: identity where htri is used, P persons x K images, else shuffle); camera, "
        "dataset: equal shares of --num-domains of them")
    add("--num-domains", type=int, default=0, metavar="N",
        help="cameras or data sets in a batch of --sampler camera or dataset (default: 0, all)")
    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=60, help="passes over the training images (default: 60); 300 is the long way")
    add("--batch-size", type=int, default=64, help="images or clips per step (default: 64); change --lr in proportion")
    add("--optim", choices=OPTIMIZERS, default="adamw", help="default: adamw; sgd with --lr 0.03 suits long runs")
    add("--lr", type=float, default=3e-3, help="highest rate (default: 0.003 for adamw); 0.0003 for adam and amsgrad")
    add("--weight-decay", type=float, default=0.01, help="default: 0.01 for adamw; 0.0005 for the others")
    add("--momentum", type=float, default=0.9, help="of sgd (default: 0.9)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="how the rate falls (default: cosine, to 0 at the end)")
    add("--milestones", type=float, nargs="+", default=[20, 40], metavar="EPOCH",
        help="where multi-step lowers the rate (default: 20 40); step lowers it every first of them")
    add("--gamma", type=float, default=0.1, help="what step and multi-step multiply the rate by (default: 0.1)")
    add("--warmup-epochs", type=float, default=1, metavar="N",
        help="epochs in which the rate rises from a hundredth (default: 1); a quarter of a short run is good, 0 is off")
    add("--augment", nargs="*", choices=loader.AUGMENTATIONS, default=["flip", "translate"], metavar="NAME",
        help=f"of {', '.join(loader.AUGMENTATIONS)} (default: flip translate); erase pays in long runs; none: no name")
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
    add("--rerank", action="store_true", help="with --evaluate, also: k-reciprocal re-ranking (Zhong et al. 2017)")
    add("--maps", type=int, default=0, metavar="N",
        help="with --evaluate and --out: draw what the network looks at in N queries, up to 100, into maps.jpg")
    add("--test-batch-size", type=int, default=128, help="images per step of extraction (default: 128)")
    add = parser.add_argument_group("run").add_argument
    add("--out", help="folder of the run (default: runs/ARCH-DATASET), one that holds a run is refused; with "
        "--evaluate: folder for queries.csv, scores.json, cmc.png and roc.png (default: they are not written)")
    add("--resume", metavar="FILE", help="go on from last.pth of a run with its settings; flags given beside it win")
    add("--seed", type=int, default=0, help="of weights, batches and augmentation (default: 0); report several")
    add("--device", default="auto", help="default: auto, all GPUs or else the CPU; cpu, cuda, or cuda:1 for one GPU")
    add("--amp", choices=("auto", "bf16", "off"), default="auto",
        help="mixed precision (default: auto: bf16 on GPUs and CPUs with AMX); off to compare across machines")
    add("--log-every", type=int, default=50, metavar="STEPS", help="steps between lines of the log (default: 50)")
    return parser


def parse(argv):
    """The arguments; with --resume those of the run, overridden by what is given now. Also the checkpoint, or None."""
    parser, checkpoint = build_parser(), None
    args = parser.parse_args(argv)
    if args.resume:
        checkpoint = models.read_checkpoint(args.resume)
        if not {"args", "optimizer", "arch", "pids", "epoch", "step", "record"} <= checkpoint.keys():
            raise ValueError(f"{args.resume} is not last.pth of a run: its weights alone go to --weights")
        if args.arch not in (None, checkpoint["arch"]):
            raise ValueError(f"{args.resume} holds {checkpoint['arch']}, not {args.arch}: leave --arch out")
        checkpoint["args"] = {**vars(parser.parse_args([])), **checkpoint["args"]}  # an older run lacks newer flags
        if isinstance(checkpoint["args"]["dataset"], str):  # and had one data set
            checkpoint["args"]["dataset"] = [checkpoint["args"]["dataset"]]
        parser.set_defaults(**{**checkpoint["args"], "out": str(Path(args.resume).parent)})  # it may have been moved
        args = parser.parse_args(argv)
    args.options, args.command = dict(args.options), shlex.join(argv)
    check_flags(parser, args)
    check_splits(args)
    if checkpoint is not None:
        check_resumed_flags(args, checkpoint)
    return args, checkpoint


def check_resumed_flags(args, checkpoint):
    """ValueError where a flag given beside --resume asks for what a saved state cannot be continued with."""
    fixed = ["options", "optim", "weight_decay", "momentum", "fixbase_epochs", "open_layers", "new_layers"]
    fixed += ["temporal", "split"]
    if checkpoint["step"]:  # in the middle of an epoch, whose batches are drawn
        fixed += ["batch_size", "num_instances", "loss", "seed", "sampler", "num_domains", "train_sample", "seq_len"]
    changed = [name for name in fixed if getattr(args, name) != checkpoint["args"][name]]
    if changed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"{names} cannot change on --resume: leave it out, or start anew with --weights {args.resume}")
    if checkpoint["epoch"] >= args.epochs and not checkpoint["record"]:
        raise ValueError(
            f"{args.resume} is through with its {checkpoint['epoch']} epochs: give a larger --epochs, or test it with "
            f"--evaluate --weights {args.resume}"
        )


def check_flags(parser, args):
    """Ends the program with a usage message where flags do not fit together."""
    at_least = {"epochs": 1, "batch_size": 2, "test_batch_size": 1, "log_every": 1}
    at_least |= {"eval_every": 0, "seed": 0, "expand": 0, "fixbase_epochs": 0, "seq_len": 1, "min_frames": 0}
    at_least |= {"num_domains": 0}
    for name, low in at_least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    if not 0 <= args.label_smooth < 1:
        parser.error(f"--label-smooth must lie in 0..1, got {args.label_smooth}")
    if args.lr <= 0 or min(args.milestones) <= 0:
        parser.error("--lr and --milestones must be positive")
    if not 0 <= args.warmup_epochs < args.epochs:
        parser.error(f"--warmup-epochs must lie between 0 and --epochs {args.epochs}, got {args.warmup_epochs:g}")
    if args.num_domains and args.sampler not in ("camera", "dataset"):
        parser.error("--num-domains counts cameras or data sets: give --sampler camera or --sampler dataset")
    if args.temporal == "attention" and args.train_sample == "frames" and not args.evaluate:
        parser.error("--temporal attention is learned from clips: --train-sample random or evenly")
    if args.combine_all and args.evaluate:
        parser.error("--combine-all says what to train on, and --evaluate does not train")
    if args.open_layers and not args.fixbase_epochs:
        parser.error("--open-layers says what trains in the first epochs: give their number, --fixbase-epochs N")
    if args.fixbase_epochs and not args.loss.get("xent"):
        parser.error("--fixbase-epochs trains the classifier, and --loss without xent does not reach that")
    if args.base_lr_mult <= 0 or args.base_lr_mult != 0.1 and args.new_layers is None:
        parser.error("--base-lr-mult must be positive, and stands beside --new-layers: all layers but these take it")
    if args.evaluate and not args.weights:
        parser.error("--evaluate needs --weights FILE, such as runs/hacnn-market1501/best.pth")
    if not args.evaluate and (args.multi_query or args.expand or args.rerank):
        parser.error("--multi-query, --expand and --rerank belong to --evaluate: training ends with the plain scores")
    if not 0 <= args.maps <= 100 or (args.maps and not (args.evaluate and args.out)):
        parser.error("--maps takes 0 to 100 queries, and draws them into the folder --out of --evaluate: give both")
    if args.evaluate and args.resume:
        parser.error("--evaluate tests --weights, --resume goes on training: give one of them")


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
    return max(counts.values())


def pick_device(name):
    """auto is the first GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is no device: auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name} is not supported: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0")
    return device


def has_fast_bf16(device):
    """Whether bf16 trains faster than fp32: on GPUs that have it and on CPUs with AMX; other CPUs are slower in it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


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
        print(f"{args.weights}: not used: {data.some(skipped) or 'none'}; stays fresh: {data.some(missing) or 'none'}")
    return model.to(device, memory_format=torch.channels_last)


def load_sets(args):
    """(train items of all --dataset, the number of the data set of each, name -> Splits of what is tested on)."""
    found = {}
    for name in dict.fromkeys([*args.dataset, *(args.target or [])]):
        trains = name in args.dataset
        tests = name in args.target if args.target else False if args.combine_all else None
        found[name] = evaluate.load_set(name, args, train=trains, evaluate=tests, combine=trains and args.combine_all)
    data.warn_of_shared_persons(args.dataset, args.target or [])
    parts = [found[name].train for name in args.dataset]
    targets = args.target or [name for name in args.dataset if found[name].query and not args.combine_all]
    return data.merge(parts), np.repeat(np.arange(len(parts)), list(map(len, parts))), {n: found[n] for n in targets}


def run_training(args, checkpoint, device):
    """Trains; returns (exit code, name -> summary of the scores at the end)."""
    out = Path(args.out)
    items, sources, tests = load_sets(args)
    pids = data.relabel(items)[1]
    if checkpoint is not None and checkpoint["pids"] != pids:
        raise ValueError(
            f"{args.resume} was trained on {len(checkpoint['pids'])} persons, the {len(pids)} of "
            f"{' '.join(args.dataset)} in {args.root} are not the same ones: resume on the data it began with, or "
            "start anew with --weights"
        )
    options = dict(args.options)
    if any(len(item.paths) > 1 for item in items) or any(data.has_video(splits) for splits in tests.values()):
        options["temporal"] = args.temporal or "avg"
    elif args.temporal:
        raise ValueError(f"--temporal {args.temporal} pools frames, and all items here are single images: leave it out")

    model = prepare_model(args, options, checkpoint, len(pids), device)
    every, deployed = models.count_parameters(model)
    print(
        f"{args.arch}: {every:,} parameters, {deployed:,} without classifiers; "
        f"input {model.input_size}, feature {model.feature_dim}"
    )
    optimizer = OPTIMIZERS[args.optim](parameter_groups(model, args), args)
    if args.new_layers is not None:
        new = find_layers(model, args.new_layers, "--new-layers")
        print(f"--lr for {', '.join(new)}; {args.base_lr_mult:g} of it for all other layers")
    if args.fixbase_epochs:
        opened = find_layers(model, args.open_layers, "--open-layers")
        print(f"epochs 1 to {args.fixbase_epochs} train {', '.join(opened)} alone, the base is frozen")
    pixels = evaluate.load_pixels(
        [path for item in items for path in item.paths], model, f"{'+'.join(args.dataset)}-train", args, device
    )
    train_set = build_train_set(items, sources, pixels, args)
    loader.check_batches(train_set.labels, args.batch_size, instances(args), train_set.domains, args.num_domains)
    targets = [evaluate.load_target(name, splits, model, args, device) for name, splits in tests.items()]
    # epoch: whole epochs trained; step: steps of the next one; record: log line of the last epoch, until it is written
    state = {"epoch": 0, "step": 0, "totals": {}, "record": None, "scores": None, "best_mAP": -1.0}
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        state = {name: checkpoint[name] for name in state}
        torch.set_rng_state(checkpoint["torch_random_state"])
        print(f"going on from {args.resume}: epoch {state['epoch'] + 1}, step {state['step'] + 1}")

    def save(name):
        content = {
            "arch": args.arch, "num_ids": len(pids), "options": options, "input_size": model.input_size,
            "mean": model.mean, "std": model.std, "feature_dim": model.feature_dim, "distance": args.distance,
            "dataset": " ".join(args.dataset), "pids": pids, "model": model.state_dict(),
            "optimizer": optimizer.state_dict(), "torch_random_state": torch.get_rng_state(), "args": vars(args),
            **state,
        }
        save_atomically(content, out / name)

    runner = Runner(model, device, args.amp == "bf16")
    if device == torch.device("cuda") and torch.cuda.device_count() > 1:
        runner = nn.DataParallel(runner)
        print(f"nn.DataParallel over {torch.cuda.device_count()} GPUs")
    while True:
        if state["record"]:
            last = state["epoch"] == args.epochs
            if targets and (last or (args.eval_every and state["epoch"] % args.eval_every == 0)):
                found = [(t.name, evaluate.scores_of(runner, t, device, args)) for t in targets]
                state["scores"] = {name: evaluate.summarise(scores, name) for name, scores in found}
                for summary in state["scores"].values():
                    print(evaluate.score_line(summary))
                first = state["scores"][targets[0].name]
                state["record"].update(first, targets=state["scores"])
                if first["mAP"] > state["best_mAP"]:
                    state["best_mAP"] = first["mAP"]
                    save("best.pth")
            elif last:  # nothing to test on: the last is the best
                save("best.pth")
            append_record(out / "log.jsonl", state["record"])
            state["record"] = None
            save("last.pth")
        if state["epoch"] >= args.epochs:
            break
        if state["epoch"] == args.fixbase_epochs > 0 and not state["step"]:
            print(f"epoch {state['epoch'] + 1:3}/{args.epochs}  the base thaws: all layers train")
        with until_interrupted() as interrupts:
            if train_one_epoch(runner, train_set, optimizer, device, state, args, interrupts):
                totals, epoch = state["totals"], state["epoch"] + 1
                record = {name: totals[name] / totals["images"] for name in ("loss", *args.loss, "accuracy")}
                record |= {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "images": totals["images"]}
                record |= {"images_per_second": speed(totals), "seconds": totals["seconds"]}
                state.update(epoch=epoch, step=0, totals={}, record=record)
            save("last.pth")
        if interrupts:
            print(f"interrupted; saved. Go on with: python train.py --resume {shlex.quote(f'{out}/last.pth')}")
            return 130, {}
    with contextlib.suppress(ImportError, OSError, ValueError):  # no matplotlib, or no log: no picture
        visualize.training_curves(out / "log.jsonl", out / "curves.png")
    best = f"{out}/best.pth"
    told = f"mAP {100 * state['best_mAP']:.1f} % on {targets[0].name}" if targets else "no data set to test it on"
    print(f"finished: {best}, {told}. Next: python export.py --ckpt {best}")
    return 0, state["scores"] or {}


def execute(args, checkpoint):
    """One run, training or evaluation: (exit code, name of target -> summary of the scores)."""
    device = pick_device(args.device)
    if args.evaluate:
        args.target = args.target or args.dataset
        return 0, {name: summaries[0] for name, summaries in evaluate.run(args, device).items()}
    args.arch, args.distance, args.split = args.arch or "hacnn", args.distance or "cosine", args.split or 0
    args.out = args.out or default_folder(args)
    resumed_here = args.resume and Path(args.resume).resolve().parent == Path(args.out).resolve()
    if Path(args.out, "last.pth").exists() and not resumed_here:
        raise ValueError(
            f"{args.out} already holds a run: go on with it (--resume {args.out}/last.pth), give another --out, or "
            "delete it"
        )
    if args.amp == "auto":
        args.amp = "bf16" if has_fast_bf16(device) else "off"
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
        tee = Tee(sys.stdout, Path(args.out) / "log.txt")
    except OSError as error:
        raise ValueError(f"--out {args.out} cannot be written: {error}") from error
    with contextlib.redirect_stdout(tee):
        print(f"python train.py {args.command}")
        print("  ".join(f"{name}={value}" for name, value in sorted(vars(args).items())))
        try:
            return run_training(args, checkpoint, device)
        except Exception:
            print(traceback.format_exc(), file=tee.file, flush=True)  # the console shows the message alone
            raise


def default_folder(args):
    return f"runs/{(args.arch or 'hacnn').replace('/', '-')}-{evaluate.file_name('+'.join(args.dataset))}"


def execute_all_splits(args, argv):
    """Each split in turn, then mean and standard deviation of their scores, also in summary.json; the exit code.

    Training goes into a folder per split, and where that is there already it goes on: a run that was stopped is started
    with the same command.
    """
    if args.resume:
        raise ValueError("--split all goes on by itself with what is there: give the first command again, no --resume")
    out, found = Path(args.out or default_folder(args)), []
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
            if stored["epoch"] >= args.epochs and not stored["record"]:
                print(f"{last.parent} is finished")
                found.append(stored["scores"] or {})
                continue
            now += ["--resume", str(last)]
        now += ["--out", str(out / name)] if not args.evaluate else []
        code, scores = execute(*parse([*argv, *now]))
        if code:
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
    if args.out or not args.evaluate:
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args, checkpoint = parse(argv)
        if args.split == "all":
            return execute_all_splits(args, argv)
        return execute(args, checkpoint)[0]
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(f"error: {error}\nLower --batch-size or --test-batch-size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # outside an epoch there is nothing to save: last.pth is up to date if it exists
        print("interrupted outside an epoch; if the run's folder holds last.pth, --resume goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
