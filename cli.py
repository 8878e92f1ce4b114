"""What train.py can be told: its flags, what they mean together, and which do not fit together."""

import argparse
import difflib
import math
import shlex
from pathlib import Path

import torch

import data
import distributed
import evaluate
import loader
import metrics
import models
import video
from recipe import AMP, HEADS, LOSSES, OPTIMIZERS, RATES, RECIPES, SCHEDULES


def loss_weight(text):
    """'triplet' or 'triplet:0.5' -> (name, weight): a type for argparse."""
    name, _, weight = text.partition(":")
    if name not in LOSSES:
        raise argparse.ArgumentTypeError(f"no loss {name!r}: of {', '.join(LOSSES)}, as in --loss xent triplet:0.5")
    try:
        weight = float(weight) if weight else LOSSES[name].weight
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
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", nargs="+", default=["market1501"], metavar="NAME",
        help="what to train on (default: market1501), several are put together; of: "
        f"{', '.join(sorted(data.DATASETS))}; folder:PATH is your own")
    add("--target", nargs="+", metavar="NAME",
        help="what to test on, each alone (default: what is trained on, where it has queries); the first decides which "
        "epoch is best, see --best")
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
    add("--test-sample", choices=video.SAMPLING, default="evenly",
        help="frames to test on (default: evenly, up to --seq-len of a tracklet, or what the checkpoint to --evaluate "
        "says)")
    add("--temporal", choices=video.POOLING,
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
    add("--loss", nargs="+", type=loss_weight, action=StorePairs, default={"xent": 1.0}, metavar="NAME[:WEIGHT]",
        help=f"sum of: {', '.join(f'{name}:{loss.weight:g}' for name, loss in LOSSES.items())} (default: xent); the "
        "weights shown are those of a name alone")
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
    add("--optim", choices=OPTIMIZERS, default="adamw", help="default: adamw; sgd suits long runs")
    rates, decays = (", ".join(f"{values[i]:g} for {name}" for name, values in RATES.items()) for i in (0, 1))
    add("--lr", type=float, help=f"highest rate (default: {rates})")
    add("--weight-decay", type=float, metavar="DECAY",
        help=f"default: {decays}; for adamw 1 / (rate x decay) steps should be 5 to 10 epochs")
    add("--momentum", type=float, default=0.9, help="of sgd and rmsprop (default: 0.9)")
    add("--schedule", choices=SCHEDULES, default="cosine",
        help="how the rate falls (default: cosine, to 0 at the end); one-cycle rises for 30 %% of the run first")
    add("--milestones", type=float, nargs="+", default=[20, 40], metavar="EPOCH",
        help="where multi-step lowers the rate (default: 20 40; below 1: parts of --epochs, such as 0.5 0.75); step "
        "lowers it every first of them")
    add("--gamma", type=float, default=0.1, help="what step and multi-step multiply the rate by (default: 0.1)")
    add("--warmup-epochs", type=float, default=1, metavar="N",
        help="epochs in which the rate rises from a hundredth (default: 1); a quarter of a short run is good, 0 is off")
    add("--freeze-bn", action=argparse.BooleanOptionalAction, default=False,
        help="keep the statistics of all batch norms, train scale and shift: for small batches on --pretrained")
    add("--accumulate", type=int, default=1, metavar="N",
        help="batches per step, their gradients averaged (default: 1): a large batch in little memory")
    add("--clip-norm", type=float, default=0, metavar="X",
        help="longest gradient, all weights of the network together (default: 0, any)")
    add("--ema", type=float, default=0, metavar="DECAY",
        help="average the weights over the steps too, 0.999 is usual (default: 0, off); both are tested, and best.pth "
        "holds the better, which flatters it a little")
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
    add("--rerank", action="store_true", help="also: scores after k-reciprocal re-ranking (Zhong et al. 2017)")
    add("--flip", action="store_true", help="test on the mean of the features of each image and of its mirror image")
    add("--best", type=best_rule, default=("mAP", None), metavar="SCORE[:TARGET]",
        help=f"what best.pth is chosen by (default: mAP, of the first target); of: {', '.join(evaluate.SCORES)}")
    add("--maps", type=int, default=0, metavar="N",
        help="with --evaluate and --out: draw what the network looks at in N queries, up to 100, into maps.jpg")
    add("--test-batch-size", type=int, default=128, help="images per step of extraction (default: 128)")
    add = parser.add_argument_group("run").add_argument
    add("--recipe", metavar="NAME",
        help=f"fill flags from recipe.py: {', '.join(RECIPES)}; flags given beside it win, --resume does too")
    add("--out", help="folder of the run (default: runs/ARCH-DATASET), one that holds a run is refused; with "
        "--evaluate: folder for queries.csv, scores.json, cmc.png and roc.png (default: they are not written)")
    add("--resume", metavar="FILE", help="go on from last.pth of a run with its settings; flags given beside it win")
    add("--seed", type=int, default=0, help="of weights, batches and augmentation (default: 0); report several")
    add("--device", default="auto", help="default: auto, all GPUs or else the CPU; cpu, cuda, or cuda:1 for one GPU")
    add("--amp", choices=("auto", *AMP), default="auto",
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
    return parser


def find_recipe(name):
    """Destination of a flag -> value; ValueError with the names that there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"no --recipe {name!r}{hint}: there are {', '.join(RECIPES)}")
    return RECIPES[name]


def parse(argv, description=None):
    """The arguments; with --resume those of the run, overridden by what is given now. Also the checkpoint, or None."""
    parser, checkpoint = build_parser(description), None
    args = parser.parse_args(argv)
    if args.recipe is not None and not args.resume:
        filled = find_recipe(args.recipe)
        parser.set_defaults(**filled)
        args = parser.parse_args(argv)
        args.options = {**filled.get("options", {}), **args.options}
    if args.evaluate and args.weights and Path(args.weights).is_file():  # frames are chosen as that run chose them
        run = models.read_checkpoint(args.weights).get("args", {})
        parser.set_defaults(**{name: run[name] for name in ("seq_len", "test_sample", "min_frames") if name in run})
        args = parser.parse_args(argv)
    if args.resume:
        checkpoint = models.read_checkpoint(args.resume)
        if not {"args", "optimizer", "arch", "pids", "epoch", "step", "record"} <= checkpoint.keys():
            raise ValueError(f"{args.resume} is not last.pth of a run: its weights alone go to --weights")
        if args.arch not in (None, checkpoint["arch"]):
            raise ValueError(f"{args.resume} holds {checkpoint['arch']}, not {args.arch}: leave --arch out")
        checkpoint["args"] = {**vars(parser.parse_args([])), **checkpoint["args"]}  # an older run lacks some
        renamed = {"htri": "triplet"}  # and had another name for a loss
        checkpoint["args"]["loss"] = {renamed.get(name, name): w for name, w in checkpoint["args"]["loss"].items()}
        if isinstance(checkpoint["args"]["dataset"], str):  # and had one data set
            checkpoint["args"]["dataset"] = [checkpoint["args"]["dataset"]]
        parser.set_defaults(**{**checkpoint["args"], "out": str(Path(args.resume).parent)})  # it may have been moved
        args = parser.parse_args(argv)
        args.recipe = checkpoint["args"]["recipe"]
    args.command = shlex.join(argv)
    for name, value in zip(("lr", "weight_decay"), RATES[args.optim], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, value)
    check_flags(parser, args)
    check_splits(args)
    if checkpoint is not None:
        check_resumed_flags(args, checkpoint)
    return args, checkpoint


def check_resumed_flags(args, checkpoint):
    """ValueError where a flag given beside --resume asks for what a saved state cannot be continued with."""
    fixed = ["options", "optim", "weight_decay", "momentum", "fixbase_epochs", "open_layers", "new_layers"]
    fixed += ["temporal", "split", "loss", "ema", "holdout"]
    if checkpoint["step"]:  # in the middle of an epoch, whose batches are drawn
        fixed += ["batch_size", "num_instances", "seed", "sampler", "num_domains", "train_sample", "seq_len"]
        fixed += ["dataset", "min_frames", "combine_all", "accumulate"]
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
    at_least |= {"holdout": 0, "num_domains": 0, "accumulate": 1, "clip_norm": 0, "timeout": 1}
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
    if args.holdout and (args.target or args.combine_all):
        parser.error("--holdout says what to test on: leave --target and --combine-all out")
    if args.combine_all and args.evaluate:
        parser.error("--combine-all says what to train on, and --evaluate does not train")
    both = [name for name in args.target or [] if name in args.dataset]
    if args.combine_all and both:
        parser.error(f"--combine-all trains on the test persons of {', '.join(both)}: leave it out of --target")
    if args.open_layers and not args.fixbase_epochs:
        parser.error("--open-layers says what trains in the first epochs: give their number, --fixbase-epochs N")
    if args.fixbase_epochs and not {"xent", *HEADS} & args.loss.keys():
        heads = ", ".join(["xent", *sorted(HEADS)])
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
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0")
    return device


def has_fast_bf16(device):
    """Whether bf16 trains faster than fp32: on GPUs that have it and on CPUs with AMX; other CPUs are slower in it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()
