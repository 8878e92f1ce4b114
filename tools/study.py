"""The experiments behind `--recipe best`: every run of BENCHMARK.md's tables on Market-1501, from one table.

    python -m tools.study                                # lists the experiments, and which are done
    python -m tools.study choose --root data             # runs a group, an experiment, or one seed of it (best-1)
    python -m tools.study best reference --minutes 60    # stops in time; the same command goes on
    python -m tools.study table                          # what was measured: Markdown, and learning curves as a picture
    python -m tools.study all -- --epochs 1 --warmup-epochs 0.5    # flags behind -- go to every run, and win

Each run is one command of train.py in a folder below --out. Scores are those of the last epoch; with --ema those of the
averaged weights. Hyper-parameters are chosen by the group `choose`: trained on 600 of the 751 training persons and
tested on the other 151 (--holdout 151), so that the test persons stay unseen.

To try all of it where there is no GPU, a small synthetic set stands for Market-1501, which has the same layout:

    python -m tools.synthetic --root toy --name market1501 --train-ids 24 --test-ids 20 --distractors 10 --junk 5
    python -m tools.synthetic --root toy --train-ids 20 --test-ids 20 --distractors 10 --junk 5
    tiny="--epochs 1 --warmup-epochs 0 --batch-size 16"
    python -m tools.study choose --root toy --out toy/study -- $tiny --holdout 8
    python -m tools.study best reference paper fast use cross --root toy --out toy/study -- $tiny
"""

import argparse
import json
import math
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import images
import models
import pictures
from tools.benchmark.measure import hardware

REPOSITORY = Path(__file__).parent.parent
STOPPED = 130  # exit code of train.py, and of this, after Ctrl-C or where the time is up


class Experiment(NamedTuple):
    group: str
    flags: str  # of train.py, behind --dataset market1501; {out} is the folder of all runs
    seeds: tuple = (0,)


def held_out(flags=""):
    return Experiment("choose", f"--recipe best --holdout 151 {flags}".strip())


def fast(epochs):
    """Large batches, which fill a GPU; weights forget in as many epochs as under `best`."""
    return Experiment("fast", f"--recipe best --batch-size 256 --lr 0.006 --weight-decay 0.4 --epochs {epochs}")


EXPERIMENTS = {
    # what each part of the recipe is worth, and what else was tried, on persons held out of train
    "held-best": held_out(),
    "decay-0.01": held_out("--weight-decay 0.01"),
    "decay-0.1": held_out("--weight-decay 0.1"),
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
    "two-hours": Experiment(
        "cpu", "--recipe best --epochs 20 --warmup-epochs 2 --batch-size 32 --lr 0.002 --weight-decay 0.2"
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
    "adapted": Experiment("adapt", "--adapt --weights synthetic --target market1501 --eval-every 5"),  # no label read
    "to-synthetic": Experiment("cross", "--evaluate --weights {out}/best-0/best.pth --dataset synthetic"),
}


def choose(names):
    """Runs (experiment, seed) by group, experiment or their own name, `best-1`, or all: in the order of the table.

    ValueError for a name that is none of these.
    """
    called = {  # run -> what it may be called
        (name, seed): {"all", group, name, f"{name}-{seed}"}
        for name, (group, _, seeds) in EXPERIMENTS.items() for seed in seeds
    }  # fmt: skip
    unknown = sorted(set(names).difference(*called.values()))
    if unknown:
        groups = dict.fromkeys(experiment.group for experiment in EXPERIMENTS.values())
        known = f"groups: {', '.join(groups)}, all; experiments: {', '.join(EXPERIMENTS)}"
        raise ValueError(f"no experiment or group {', '.join(unknown)}; {known}")
    return [run for run, some in called.items() if some & set(names)]


# ----------------------------------------------------------------------------------------------------------------------
# Running


def commands(names, root, more):
    """Name of a run -> flags of train.py but for --out, of what choose finds for `names`."""
    if "--seed" in more:
        raise ValueError("--seed behind -- would make all runs of an experiment the same: the table says its seeds")
    runs = {}
    for name, seed in choose(names):
        flags = ["--dataset", "market1501", "--root", root, *EXPERIMENTS[name].flags.split(), "--seed", str(seed)]
        runs[f"{name}-{seed}"] = [*flags, *more]
    return runs


def read_status(folder):
    """What study.json of a run says; empty where it has not begun."""
    path = Path(folder, "study.json")
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not what study wrote ({error}): delete the folder, and run it again") from error


def write_status(folder, **status):
    with images.replacing(folder / "study.json") as file:
        file.write(f"{json.dumps(status, indent=2)}\n".encode())


def is_through(folder):
    """Whether last.pth is that of a run which ended, although nobody was there to note it."""
    if not (folder / "last.pth").is_file():
        return False
    last = models.read_checkpoint(folder / "last.pth")
    return last["epoch"] >= last["args"]["epochs"] and not last["record"]


def check_flags(runs, out):
    """ValueError where a run has begun with other flags: what it learned does not belong to these."""
    for run, flags in runs.items():
        status = read_status(out / run)
        trained = status.get("code") == 0 or (out / run / "last.pth").exists()
        if trained and status.get("flags") != flags:
            began = f"({shlex.join(status['flags'])})" if status else "(nothing says which)"
            raise ValueError(f"{out / run} was run with other flags {began}: give another --out, or delete it")


class Study:
    """Runs commands of train.py in folders below `out`, until `deadline` (time.monotonic) or Ctrl-C."""

    def __init__(self, out, deadline, device, speed):
        self.out, self.deadline, self.device, self.speed = out, deadline, device, speed
        self.interrupted = threading.Event()

    def execute(self, run, flags):
        """Runs one command, or goes on with it; its exit code. Its folder is locked as long as a process trains."""
        folder = self.out / run
        folder.mkdir(parents=True, exist_ok=True)
        lock = images.lock(folder / "study.lock")  # train.py has its own, "lock"
        if lock is None:
            print(f"{run}: another process is at work on {folder}", flush=True)
            return 1
        with lock:
            status = read_status(folder)
            if status.get("code") == 0:
                return 0
            code, parts = None, status.get("parts", [])
            if is_through(folder):
                code = 0
            elif time.monotonic() >= self.deadline or self.interrupted.is_set():
                return STOPPED
            else:
                write_status(folder, flags=flags, code=code, parts=parts)  # before: these are the flags, whatever comes
                code, seconds = self.start(folder, flags, lock)
                parts = [*parts, {"hardware": hardware(self.device), "seconds": seconds}]
            write_status(folder, flags=flags, code=code, parts=parts)
            return code

    def start(self, folder, flags, lock):
        """(exit code, seconds) of train.py, whose process holds the lock too."""
        run, last = folder.name, folder / "last.pth"
        given = ["--resume", str(last)] if last.exists() else [*flags, "--out", str(folder)]
        given = [text.replace("{out}", str(self.out)) for text in given]
        given += [] if "--evaluate" in flags else self.speed
        print(f"{run}: python train.py {shlex.join(given)}", flush=True)
        began, timed_out = time.monotonic(), False
        with open(folder / "printed.txt", "a") as printed:
            command = [sys.executable, str(REPOSITORY / "train.py"), *given]
            child = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()])
            try:
                code = child.wait(None if math.isinf(self.deadline) else max(0.1, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                timed_out = True
                child.send_signal(signal.SIGTERM)  # in an epoch train.py saves first; before, there is nothing to save
                code = child.wait()
        if code and (timed_out or self.interrupted.is_set()):
            code = STOPPED
        seconds = time.monotonic() - began
        said = (folder / "printed.txt").read_text().strip().splitlines()[-1:]
        told = {0: "done", STOPPED: "stopped, the same command goes on"}
        print(f"{run}: {told.get(code, f'failed, see {folder}/printed.txt: {said}')} ({seconds:.0f} s)", flush=True)
        return code, seconds

    def execute_all(self, runs, parallel):
        """Exit codes of all runs; those that evaluate what others train come after these."""
        codes = []
        for evaluates in (False, True):
            some = [pair for pair in runs.items() if ("--evaluate" in pair[1]) == evaluates]
            with ThreadPoolExecutor(parallel) as pool:
                futures = [pool.submit(self.execute, *pair) for pair in some]
                try:
                    codes += [future.result() for future in futures]
                except KeyboardInterrupt:  # train.py has got it too, saves, and ends
                    self.interrupted.set()
                    print("interrupted: waiting for what is running to save", file=sys.stderr)
                    codes += [future.result() for future in futures]
        return codes


# ----------------------------------------------------------------------------------------------------------------------
# What was measured


def scores_of(folder):
    """What the scores are of -> scores, of the last epoch or of an evaluation; empty where nothing was tested."""
    if Path(folder, "scores.json").is_file():
        summaries = json.loads(Path(folder, "scores.json").read_text())["ranking"]
    else:
        last = pictures.read_log(folder / "log.jsonl")[-1]
        summaries = list((last.get("averaged") or last.get("targets", {})).values())
    return {summary["dataset"]: summary for summary in summaries}


def spread(values):
    """Mean in percent, and where there are several values their standard deviation."""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def rows_of(name, experiment, out):
    """Rows of the table: one for each thing that was tested on, and for each set of flags that seeds were run with."""
    found = defaultdict(list)  # (flags without the seed, tested on) -> (seed, scores, minutes, images/s, hardware)
    for seed in experiment.seeds:
        folder = out / f"{name}-{seed}"
        status = read_status(folder)
        if status.get("code") != 0:
            continue
        log = pictures.read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
        minutes = sum(record["seconds"] for record in log) / 60
        rate = np.median([record["images_per_second"] for record in log] or [0])
        chips = list(dict.fromkeys(part["hardware"] for part in status["parts"]))
        command = shlex.join(status["flags"]).replace(f" --seed {seed}", "", 1)
        for target, summary in scores_of(folder).items():
            found[command, target].append((seed, summary, minutes, rate, chips))
    rows = [] if found else [f"| {name} | | | | | not run yet | `{experiment.flags}` | |"]
    for (command, target), runs in found.items():
        seeds, summaries, minutes, rates, chips = zip(*runs, strict=True)
        cells = [spread([summary[key] for summary in summaries]) for key in ("rank1", "mAP", "mINP")]
        took = f"{np.mean(minutes):.1f} min, {np.mean(rates):,.0f} img/s" if any(rates) else ""
        machines = "; ".join(dict.fromkeys(chip for some in chips for chip in some))
        told = ", ".join(map(str, seeds))
        rows.append(f"| {name} | {target} | {' | '.join(cells)} | {took} | `{command}`, seeds {told} | {machines} |")
    return rows


def table(out):
    """Lines of a Markdown table of all runs that are done, and those that are not."""
    if not out.is_dir():
        raise ValueError(f"there is no folder {out}: nothing was run there")
    names = "experiment", "tested on", "rank-1", "mAP", "mINP", "training", "command, seeds", "hardware, date"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return lines + [row for name, experiment in EXPERIMENTS.items() for row in rows_of(name, experiment, out)]


LEGIBLE = 6  # curves on one pair of axes


def draw_curves(out, path):
    """Training loss and accuracy by epoch of all runs that have begun, as a PNG with some of a group in each row; how
    many there are."""
    logs = {name: out / f"{name}-{e.seeds[0]}" / "log.jsonl" for name, e in EXPERIMENTS.items()}
    logs = {name: pictures.read_log(log) for name, log in logs.items() if log.is_file()}
    if not logs:
        return 0
    groups = defaultdict(list)
    for name in logs:
        groups[EXPERIMENTS[name].group].append(name)
    rows = [names[start : start + LEGIBLE] for names in groups.values() for start in range(0, len(names), LEGIBLE)]
    with pictures.drawing(path, (12, 3.2 * len(rows)), (1, 1), len(rows)) as axes:
        for names, (left, right) in zip(rows, zip(axes[::2], axes[1::2], strict=True), strict=True):
            for name in names:
                epochs = [record["epoch"] for record in logs[name]]
                accuracy = [100 * record.get("accuracy", math.nan) for record in logs[name]]  # a head may tell none
                pictures.plot_epochs(left, epochs, [record["loss"] for record in logs[name]], name)
                pictures.plot_epochs(right, epochs, accuracy, name)
            left.set(title=f"{EXPERIMENTS[names[0]].group}: training loss", xlabel="epoch")
            right.set(title="accuracy on the batches, %", xlabel="epoch")
            for axes_of_one in (left, right):
                axes_of_one.legend(frameon=False, fontsize=8)
    return len(logs)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    argv, more = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = images.Parser(
        "python -m tools.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="groups, experiments or runs; table; nothing: list them")
    add("--root", default="data", help="folder above market1501 and synthetic (default: data)")
    add("--out", type=Path, default=Path("runs/study"), help="folder of all runs (default: runs/study)")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="stop, and save, after M (default: never)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at once on one device (default: 1)")
    add("--compile", default="auto", choices=("auto", "off", "default", "reduce-overhead", "max-autotune"),
        help="as train.py has it (default: auto, reduce-overhead on a GPU, off on a CPU)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.parallel < 1 or not args.minutes >= 0:
        parser.error(f"--parallel must be at least 1 and --minutes 0 or more, got {args.parallel} and {args.minutes:g}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not args.names:
            for name, experiment in EXPERIMENTS.items():
                codes = [read_status(args.out / f"{name}-{seed}").get("code") for seed in experiment.seeds]
                done = f"{codes.count(0)} of {len(codes)} done"
                print(f"{experiment.group:10} {name:20} {done:12} {experiment.flags}")
            return 0
        if args.names == ["table"]:
            print("\n".join(table(args.out)))
            picture = args.out / "curves.png"
            try:
                print(f"\n{draw_curves(args.out, picture)} learning curves: {picture}")
            except ImportError as error:
                print(f"\nno learning curves, as matplotlib is not installed ({error})")
            return 0
        runs = commands(args.names, args.root, more)
        check_flags(runs, args.out)
        mode = {"auto": "reduce-overhead" if device.type == "cuda" else "off"}.get(args.compile, args.compile)
        speed = [] if mode == "off" else ["--compile", mode]
        study = Study(args.out, time.monotonic() + 60 * args.minutes, device, speed)
        codes = study.execute_all(runs, args.parallel)
        again = f"python -m tools.study table --out {args.out}"
        print(f"{codes.count(0)} of {len(codes)} runs are done; {again} shows them")
        return next(filter(None, codes), 0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
