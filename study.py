"""The experiments behind `--recipe best`: every run of BENCHMARK.md's tables on Market-1501, from one table.

    python study.py                                # lists the experiments, and which are done
    python study.py choose --root data             # runs a group, or experiments by name; all: every one
    python study.py best reference --minutes 60    # stops in time; the same command goes on
    python study.py table                          # what was measured: Markdown, and learning curves as a picture
    python study.py all -- --epochs 1 --warmup-epochs 0.5    # flags behind -- go to every run, and win

Each run is one command of train.py in a folder below --out. Scores are those of the last epoch; with --ema those of the
averaged weights. Hyper-parameters are chosen by the group `choose`: trained on 600 of the 751 training persons and
tested on the other 151 (--holdout 151), so that the test persons stay unseen.

To try all of it where there is no GPU, a small synthetic set stands for Market-1501, which has the same layout:

    python synthetic.py --root toy --name market1501 --train-ids 24 --test-ids 20 --distractors 10 --junk 5
    python synthetic.py --root toy --train-ids 20 --test-ids 20 --distractors 10 --junk 5
    tiny="--epochs 1 --warmup-epochs 0 --batch-size 16"
    python study.py small choose --root toy --out toy/study -- $tiny --holdout 8
    python study.py best reference paper fast use cross --root toy --out toy/study -- $tiny
"""

import argparse
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import data
import visualize
from benchmark import hardware


class Experiment(NamedTuple):
    group: str
    flags: str  # of train.py, behind --dataset market1501; {out} is the folder of all runs
    seeds: tuple = (0,)


def held_out(flags=""):
    return Experiment("choose", f"--recipe best --holdout 151 {flags}".strip())


def fast(epochs):
    """Large batches, which fill a GPU; weights forget in as many epochs as under `best`."""
    return Experiment("fast", f"--recipe best --batch-size 256 --lr 0.006 --weight-decay 0.2 --epochs {epochs}")


def small(flags="", seeds=(0,)):
    short = "--root {out}/small --holdout 151 --epochs 10 --warmup-epochs 2 --batch-size 32 --lr 0.002"
    return Experiment("small", f"{short} {flags}".strip(), seeds)


EXPERIMENTS = {
    # what a CPU can tell in ten minutes a run: 100 persons to train on, 151 others to test on
    "small-base": small("", (0, 1)),
    "small-sgd": small("--optim sgd --lr 0.03 --weight-decay 0.0005"),
    "small-decay-0.1": small("--weight-decay 0.1"),
    "small-decay-0.5": small("--weight-decay 0.5"),
    "small-erase": small("--augment flip translate erase"),
    "small-bnneck": small("--options bnneck=True"),
    "small-triplet": small("--options bnneck=True --loss xent triplet"),
    "small-cosface": small("--loss cosface"),
    "small-separate-norms": small("--options joint_norm=False"),
    "small-align-corners": small("--options align_corners=True"),
    # what each part of the recipe is worth, and what else was tried, on persons held out of train
    "held-best": held_out(),
    "decay-0.01": held_out("--weight-decay 0.01"),
    "decay-0.5": held_out("--weight-decay 0.5"),
    "half-rate": held_out("--lr 0.0015"),
    "double-rate": held_out("--lr 0.006"),
    "sgd": held_out("--optim sgd --lr 0.03 --weight-decay 0.0005"),
    "average": held_out("--ema 0.999"),
    "no-erase": held_out("--augment flip translate"),
    "jitter": held_out("--augment flip translate jitter erase"),
    "no-smoothing": held_out("--label-smooth 0"),
    "bnneck": held_out("--options bnneck=True"),
    "triplet": held_out("--options bnneck=True --loss xent triplet"),
    "triplet-0.1": held_out("--options bnneck=True --loss xent triplet:0.1"),
    "circle-0.02": held_out("--options bnneck=True --loss xent circle:0.02"),
    "cosface": held_out("--loss cosface"),
    # the network
    "separate-norms": held_out("--options joint_norm=False"),
    "align-corners": held_out("--options align_corners=True"),
    "global-alone": held_out("--options learn_region=False"),
    # on the test persons
    "an-hour": Experiment(
        "cpu", "--recipe best --epochs 8 --warmup-epochs 2 --batch-size 32 --lr 0.002 --weight-decay 0.2 "
        "--augment flip translate"
    ),
    "an-hour-mirrored": Experiment("cpu", "--evaluate --weights {out}/an-hour-0/best.pth --flip --rerank"),
    "an-hour-to-synthetic": Experiment("cpu", "--evaluate --weights {out}/an-hour-0/best.pth --dataset synthetic"),
    "demo-to-market": Experiment(
        "cpu", "--dataset synthetic --epochs 4 --batch-size 32 --lr 0.002 --target market1501 synthetic"
    ),
    "best": Experiment("best", "--recipe best", (0, 1, 2)),
    "reference": Experiment("reference", "--recipe reference"),
    "paper": Experiment("paper", "--recipe paper"),
    "fast-30": fast(30),
    "fast-60": fast(60),
    "fast-90": fast(90),
    "mirrored": Experiment("use", "--evaluate --weights {out}/best-0/best.pth --flip --rerank"),
    # from one domain to another
    "from-synthetic": Experiment("cross", "--recipe best --dataset synthetic --target market1501 synthetic"),
    "to-synthetic": Experiment("cross", "--evaluate --weights {out}/best-0/best.pth --dataset synthetic"),
}


def choose(names):
    """Experiments by name, by group, or all: in the order of the table. ValueError for a name that is neither."""
    groups = list(dict.fromkeys(experiment.group for experiment in EXPERIMENTS.values()))
    unknown = sorted(set(names) - set(EXPERIMENTS) - set(groups) - {"all"})
    if unknown:
        raise ValueError(
            f"no experiment or group {', '.join(unknown)}; groups: {', '.join(groups)}, all; experiments: "
            f"{', '.join(EXPERIMENTS)}"
        )
    return [name for name, (group, *_) in EXPERIMENTS.items() if {"all", name, group} & set(names)]


# ----------------------------------------------------------------------------------------------------------------------
# Running


def commands(names, root, more):
    """run -> flags of train.py but for --out, of the experiments `names`; a run is an experiment with a seed."""
    runs = {}
    for name in names:
        for seed in EXPERIMENTS[name].seeds:
            flags = ["--dataset", "market1501", "--root", root, *EXPERIMENTS[name].flags.split(), "--seed", str(seed)]
            runs[f"{name}-{seed}"] = [*flags, *more]
    return runs


def link_some_persons(root, out, count=251):
    """out/small/market1501: Market-1501 with so many of its training persons, as links to the files below root."""
    (train, *_), target = data.read_dataset("market1501", root), out / "small" / "market1501"
    if target.is_dir():
        return
    folder = Path(train[0].paths[0]).resolve().parent.parent
    persons = sorted({item.pid for item in train})
    kept = set(random.Random(1).sample(persons, min(count, len(persons))))
    unfinished = target.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "bounding_box_train").mkdir(parents=True)
    for item in train:
        if item.pid in kept:
            file = Path(item.paths[0]).resolve()
            (unfinished / "bounding_box_train" / file.name).symlink_to(file)
    for part in ("query", "bounding_box_test"):
        (unfinished / part).symlink_to(folder / part)
    unfinished.rename(target)


def read_status(folder):
    """What study.json of a run says; empty where it has not begun."""
    path = Path(folder, "study.json")
    return json.loads(path.read_text()) if path.is_file() else {}


def execute(run, flags, out, deadline, device):
    """Runs one command, or goes on with it; its exit code. What it prints goes into printed.txt of its folder."""
    folder = out / run
    status = read_status(folder)
    if status and status["flags"] != flags:
        raise ValueError(
            f"{folder} was run with other flags ({shlex.join(status['flags'])}): give another --out, or delete it"
        )
    if status.get("code") == 0:
        return 0
    if time.monotonic() > deadline:
        return 130
    given = ["--resume", f"{folder}/last.pth"] if Path(folder, "last.pth").exists() else [*flags, "--out", str(folder)]
    given = [text.replace("{out}", str(out)) for text in given]
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{run}: python train.py {shlex.join(given)}", flush=True)
    began = time.monotonic()
    with open(folder / "printed.txt", "a") as printed:
        command = [sys.executable, str(Path(__file__).with_name("train.py")), *given]
        child = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            code = child.wait(None if deadline == float("inf") else max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)  # in an epoch train.py saves first; before, there is nothing to save
            child.wait()
            code = 130
    parts = [*status.get("parts", []), {"hardware": hardware(device), "seconds": time.monotonic() - began}]
    (folder / "study.json").write_text(json.dumps({"flags": flags, "code": code, "parts": parts}, indent=2) + "\n")
    last = (folder / "printed.txt").read_text().strip().splitlines()[-1:]
    told = {0: "done", 130: "stopped, the same command goes on"}.get(code, f"failed, see {folder}/printed.txt: {last}")
    print(f"{run}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return code


# ----------------------------------------------------------------------------------------------------------------------
# What was measured


def scores_of(folder):
    """What the scores are of -> scores, of the last epoch or of an evaluation; empty where nothing was tested."""
    if Path(folder, "scores.json").is_file():
        ranking = json.loads(Path(folder, "scores.json").read_text())["ranking"]
        return {summary["dataset"]: summary for summary in ranking}
    last = visualize.read_log(folder / "log.jsonl")[-1]
    return last.get("averaged") or last.get("targets", {})


def spread(values):
    """Mean in percent, and where there are several values their standard deviation."""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def table(out):
    """Lines of a Markdown table of all runs that are done, and those that are not."""
    names = "experiment", "tested on", "rank-1", "mAP", "mINP", "training", "command, seeds", "hardware, date"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, experiment in EXPERIMENTS.items():
        found, trained, rates, chips, given = defaultdict(list), [], [], [], {}
        for seed in experiment.seeds:
            folder = out / f"{name}-{seed}"
            status = read_status(folder)
            if status.get("code") != 0:
                continue
            for target, summary in scores_of(folder).items():
                found[target].append(summary)
            if (folder / "log.jsonl").exists():
                log = visualize.read_log(folder / "log.jsonl")
                trained.append(sum(record["seconds"] for record in log) / 60)
                rates.append(np.median([record["images_per_second"] for record in log]))
            chips += [part["hardware"] for part in status["parts"]]
            given[seed] = shlex.join(status["flags"])
        if not found:
            lines.append(f"| {name} | | | | | not run yet | `{experiment.flags}` | |")
        for target, summaries in found.items():
            cells = [spread([summary[key] for summary in summaries]) for key in ("rank1", "mAP", "mINP")]
            took = f"{np.mean(trained):.1f} min, {np.mean(rates):,.0f} img/s" if trained else ""
            first, command = next(iter(given.items()))
            command, seeds = command.replace(f" --seed {first}", ""), ", ".join(map(str, given))
            lines.append(
                f"| {name} | {target} | {' | '.join(cells)} | {took} | `{command}`, seeds {seeds} | "
                f"{'; '.join(dict.fromkeys(chips))} |"
            )
    return lines


def draw_curves(out, path):
    """Training loss and accuracy by epoch of all runs that have begun, as a PNG; how many there are."""
    from matplotlib.figure import Figure

    logs = {name: out / f"{name}-{e.seeds[0]}" / "log.jsonl" for name, e in EXPERIMENTS.items()}
    logs = {name: visualize.read_log(log) for name, log in logs.items() if log.is_file()}
    figure = Figure(figsize=(12, 5), layout="constrained")
    kinds = ("loss", 1, "training loss"), ("accuracy", 100, "accuracy on the batches, %")
    for axes, (key, factor, title) in zip(figure.subplots(1, 2), kinds, strict=True):
        for number, (name, records) in enumerate(logs.items()):
            told = [(record["epoch"], factor * record[key]) for record in records if key in record]
            style = ("-", "--", ":", "-.")[number // 10 % 4]  # matplotlib has ten colours
            axes.plot(*zip(*told, strict=True), style, marker="." if len(told) < 20 else None, label=name)
        axes.set(title=title, xlabel="epoch")
        visualize.tidy(axes)
    if logs:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
        figure.savefig(path, dpi=120, format="png")
    return len(logs)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    argv, more = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="groups or experiments to run; table; nothing: list them")
    add("--root", default="data", help="folder above market1501 and synthetic (default: data)")
    add("--out", type=Path, default=Path("runs/study"), help="folder of all runs (default: runs/study)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="stop, and save, after M (default: never)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at once on one device (default: 1)")
    add("--compile", default="auto", choices=("auto", "off", "default", "reduce-overhead", "max-autotune"),
        help="as train.py has it (default: auto, reduce-overhead on a GPU, off on a CPU)")  # fmt: skip
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not args.names:
            for name, experiment in EXPERIMENTS.items():
                codes = [read_status(args.out / f"{name}-{seed}").get("code") for seed in experiment.seeds]
                done = f"{codes.count(0)} of {len(codes)} done"
                print(f"{experiment.group:10} {name:15} {done:12} {experiment.flags}")
            return 0
        if args.names == ["table"]:
            print("\n".join(table(args.out)))
            picture = args.out / "curves.png"
            print(f"\n{draw_curves(args.out, picture)} learning curves: {picture}")
            return 0
        mode = {"auto": "reduce-overhead" if device.type == "cuda" else "off"}.get(args.compile, args.compile)
        runs = commands(choose(args.names), args.root, more)
        if any("{out}/small" in flags for flags in runs.values()):
            link_some_persons(args.root, args.out)
        deadline = time.monotonic() + 60 * args.minutes
        speed = [] if mode == "off" else ["--compile", mode]

        def start(pair):
            run, flags = pair
            return execute(run, flags + speed * ("--evaluate" not in flags), args.out, deadline, device)

        with ThreadPoolExecutor(args.parallel) as pool:
            codes = list(pool.map(start, runs.items()))
        print(f"{codes.count(0)} of {len(codes)} runs are done; python study.py table --out {args.out} shows them")
        return 0 if not any(codes) else next(filter(None, codes))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
