"""Trains a network for person re-identification, or evaluates one.

    python train.py --arch hacnn --dataset market1501                            # -> runs/hacnn-market1501/best.pth
    python train.py --arch resnet50 --pretrained --fixbase-epochs 5              # fine-tunes: the new head first
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


def find_layers(model, names, flag):
    """`names`, or those of the model's head where there are none. ValueError with the layers that can train."""
    layers = list(dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters()))
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ValueError(f"{flag}: no layer {', '.join(unknown)} to train; there are: {', '.join(layers)}")
    return names or [name for name in layers if name.startswith(("classifier", "fc", "bnneck", "gem"))]


def parameter_groups(model, args):
    """What the optimizer trains: all in one group, or the parameters of --new-layers and those of the other layers."""
    trainable = [(name.partition(".")[0], p) for name, p in model.named_parameters() if p.requires_grad]
    if args.new_layers is None:
        return [{"params": [p for _, p in trainable]}]
    new = find_layers(model, args.new_layers, "--new-layers")
    return [{"params": [p for layer, p in trainable if (layer in new) == wanted]} for wanted in (True, False)]


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
    for name, layer in model.named_children():
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
        self.mean, self.std = model.mean, model.std

    def forward(self, images):
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16 and self.training):
            return self.model(images)


def instances(args):
    """K of the P x K batches that triplets need; None where batches are simply shuffled."""
    return args.num_instances if "htri" in args.loss else None


def train_one_epoch(model, pixels, labels, optimizer, device, state, args, interrupts=()):
    """Trains from state["step"] to the end of epoch state["epoch"]; False where `interrupts` filled and cut it short.

    state["totals"] sums what the epoch's log shows: images, seconds, and each loss times the images it was taken over.
    """
    epoch, totals = state["epoch"], Counter(state["totals"])
    bare = model.module if isinstance(model, nn.DataParallel) else model
    batches = loader.epoch_batches(labels, args.batch_size, instances(args), args.seed, epoch)
    model.train()
    frozen = epoch < args.fixbase_epochs
    freeze_base(bare.model, optimizer, find_layers(bare.model, args.open_layers, "--open-layers") if frozen else None)
    recent, sums, started = [], Counter(), time.perf_counter()
    bar = tqdm(total=len(batches), initial=state["step"], desc=f"epoch {epoch + 1}", disable=None, leave=False)
    with bar:
        for step in range(state["step"], len(batches)):
            rows = batches[step]
            seed = int(np.random.SeedSequence((args.seed, epoch, step)).generate_state(1)[0])
            images = pixels.batch(rows, device)  # uint8 (B, 3, H, W)
            images = loader.augment(images, torch.Generator().manual_seed(seed), args.augment, bare.mean, bare.std)
            targets = torch.from_numpy(labels[rows]).to(device, non_blocking=True)  # (B,)
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
                sums[name] += value.detach() * len(rows)
            recent.append(loss.detach())
            bar.update()
            stop = bool(interrupts)
            if len(recent) == args.log_every or step + 1 == len(batches) or stop:
                check_finite(recent, epoch, step + 1 - len(recent))  # here only: it waits for the GPU
                totals.update({name: float(value) for name, value in sums.items()})
                totals["images"] += len(recent) * args.batch_size
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
    left = timedelta(seconds=round(steps_left * args.batch_size / speed(totals)))
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


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="market1501", help=f"default: market1501; of: {', '.join(sorted(data.DATASETS))}")
    add("--root", default="data", help="folder above the data set's own (default: data), see DATASETS.md")
    add("--cache", help="folder for decoded pixels (default: ROOT/.pixels): best on a fast disk, safe to delete")
    add("--cache-limit", type=float, default=20, metavar="GB", help="decode batch by batch beyond this (default: 20)")
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
    add = parser.add_argument_group("optimization").add_argument
    add("--epochs", type=int, default=60, help="passes over the training images (default: 60); 300 is the long way")
    add("--batch-size", type=int, default=64, help="images per step (default: 64); change --lr in proportion")
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
    add("--protocol", choices=metrics.PROTOCOLS, default="market1501",
        help="market1501 (default); cuhk03: one gallery image per person; no_camera_rule: the own camera counts too")
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
        parser.set_defaults(**{**checkpoint["args"], "out": str(Path(args.resume).parent)})  # it may have been moved
        args = parser.parse_args(argv)
    args.options = dict(args.options)
    check_flags(parser, args)
    if checkpoint is not None:
        check_resumed_flags(args, checkpoint)
    return args, checkpoint


def check_resumed_flags(args, checkpoint):
    """ValueError where a flag given beside --resume asks for what a saved state cannot be continued with."""
    fixed = ["options", "optim", "weight_decay", "momentum", "fixbase_epochs", "open_layers", "new_layers"]
    if checkpoint["step"]:  # in the middle of an epoch, whose batches are drawn
        fixed += ["batch_size", "num_instances", "loss", "seed"]
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
    at_least |= {"eval_every": 0, "seed": 0, "expand": 0, "fixbase_epochs": 0}
    for name, low in at_least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(args, name)}")
    if not 0 <= args.label_smooth < 1:
        parser.error(f"--label-smooth must lie in 0..1, got {args.label_smooth}")
    if args.lr <= 0 or min(args.milestones) <= 0:
        parser.error("--lr and --milestones must be positive")
    if not 0 <= args.warmup_epochs < args.epochs:
        parser.error(f"--warmup-epochs must lie between 0 and --epochs {args.epochs}, got {args.warmup_epochs:g}")
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


def prepare_model(args, checkpoint, num_ids, device):
    """The network, with the weights of --resume or --weights where they are given."""
    torch.manual_seed(args.seed)  # fresh weights are drawn from torch's own generator
    pretrained = args.pretrained and checkpoint is None and not args.weights
    model = models.build_model(args.arch, num_ids, pretrained=pretrained, **args.options)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
    elif args.weights:
        content = models.read_checkpoint(args.weights)
        if content.get("arch", args.arch) != args.arch:
            raise ValueError(f"{args.weights} holds {content['arch']}, not {args.arch}: give --arch {content['arch']}")
        stored = content.get("options", args.options)
        if {**stored, **args.options} != args.options:
            print(f"warning: {args.weights} was trained with --options {stored}, this run has {args.options}")
        skipped, missing = models.load_weights(model, models.find_weights(content))
        print(f"{args.weights}: not used: {data.some(skipped) or 'none'}; stays fresh: {data.some(missing) or 'none'}")
    return model.to(device, memory_format=torch.channels_last)


def run_training(args, checkpoint, device):
    out = Path(args.out)
    splits = data.load_dataset(args.dataset, args.root)
    labels, pids = data.relabel(splits.train)
    loader.check_batches(labels, args.batch_size, instances(args))
    if checkpoint is not None and checkpoint["pids"] != pids:
        raise ValueError(
            f"{args.resume} was trained on {len(checkpoint['pids'])} persons, the {len(pids)} of {args.dataset} in "
            f"{args.root} are not the same ones: resume on the data it began with, or start anew with --weights"
        )

    model = prepare_model(args, checkpoint, len(pids), device)
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
    train_pixels = evaluate.load_pixels(splits.train, model, f"{args.dataset}-train", args, device)
    test_pixels = evaluate.load_pixels(splits.query + splits.gallery, model, f"{args.dataset}-test", args, device)
    # epoch: whole epochs trained; step: steps of the next one; record: log line of the last epoch, until it is written
    state = {"epoch": 0, "step": 0, "totals": {}, "record": None, "scores": None, "best_mAP": -1.0}
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        state = {name: checkpoint[name] for name in state}
        torch.set_rng_state(checkpoint["torch_random_state"])
        print(f"going on from {args.resume}: epoch {state['epoch'] + 1}, step {state['step'] + 1}")

    def save(name):
        content = {
            "arch": args.arch, "num_ids": len(pids), "options": args.options, "input_size": model.input_size,
            "mean": model.mean, "std": model.std, "feature_dim": model.feature_dim, "distance": args.distance,
            "dataset": args.dataset, "pids": pids, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "torch_random_state": torch.get_rng_state(), "args": vars(args), **state,
        }
        save_atomically(content, out / name)

    runner = Runner(model, device, args.amp == "bf16")
    if device == torch.device("cuda") and torch.cuda.device_count() > 1:
        runner = nn.DataParallel(runner)
        print(f"nn.DataParallel over {torch.cuda.device_count()} GPUs")
    while True:
        if state["record"]:
            if state["epoch"] == args.epochs or (args.eval_every and state["epoch"] % args.eval_every == 0):
                scores = evaluate.scores_of(runner, splits, test_pixels, device, args)
                state["scores"] = evaluate.summarise(scores, args.dataset)
                state["record"].update(state["scores"])
                print(evaluate.score_line(state["scores"]))
                if state["scores"]["mAP"] > state["best_mAP"]:
                    state["best_mAP"] = state["scores"]["mAP"]
                    save("best.pth")
            append_record(out / "log.jsonl", state["record"])
            state["record"] = None
            save("last.pth")
        if state["epoch"] >= args.epochs:
            break
        if state["epoch"] == args.fixbase_epochs > 0 and not state["step"]:
            print(f"epoch {state['epoch'] + 1:3}/{args.epochs}  the base thaws: all layers train")
        with until_interrupted() as interrupts:
            if train_one_epoch(runner, train_pixels, labels, optimizer, device, state, args, interrupts):
                totals, epoch = state["totals"], state["epoch"] + 1
                record = {name: totals[name] / totals["images"] for name in ("loss", *args.loss, "accuracy")}
                record |= {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "images": totals["images"]}
                record |= {"images_per_second": speed(totals), "seconds": totals["seconds"]}
                state.update(epoch=epoch, step=0, totals={}, record=record)
            save("last.pth")
        if interrupts:
            print(f"interrupted; saved. Go on with: python train.py --resume {shlex.quote(f'{out}/last.pth')}")
            return 130
    with contextlib.suppress(ImportError, OSError, ValueError):  # no matplotlib, or no log: no picture
        visualize.training_curves(out / "log.jsonl", out / "curves.png")
    best = f"{out}/best.pth"
    print(f"finished: {best}, mAP {100 * state['best_mAP']:.1f} %. Next: python export.py --ckpt {best}")
    return 0


def main(argv=None):
    try:
        args, checkpoint = parse(argv)
        device = pick_device(args.device)
        if args.evaluate:
            return evaluate.run(args, device)
        args.arch = args.arch or "hacnn"
        args.distance = args.distance or "cosine"
        args.out = args.out or f"runs/{args.arch.replace('/', '-')}-{args.dataset}"
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
            print(f"python train.py {shlex.join(sys.argv[1:] if argv is None else argv)}")
            print("  ".join(f"{name}={value}" for name, value in sorted(vars(args).items())))
            try:
                return run_training(args, checkpoint, device)
            except Exception:
                print(traceback.format_exc(), file=tee.file, flush=True)  # the console shows the message alone
                raise
    except (ValueError, OSError, FloatingPointError) as error:
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
