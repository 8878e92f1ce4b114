"""Everything that waits for a GPU, in the order of its worth: one command for the half hour in which one is at hand.

    python -m tools.gpu --root data --out runs/gpu --minutes 25    # the same command goes on where it stopped
    python -m tools.gpu --root data --out runs/gpu --only ranking  # one stage, or some
    python -m tools.gpu --toy --out runs/toy                       # all of it at toy length, on a CPU too

Each stage is a process of its own under a time limit; Market-1501 lies below --root. What it prints goes to STAGE.txt
in --out, how it ended to STAGE.json, and summary.md is written anew after each: the rows and tables of BENCHMARK.md.
A stage that fails says why and the next begins. Repeated, the command leaves out what is done, goes on with training
that was stopped, and tries last what failed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import torch

import data
import export
import images
import models
import search
from exporting import gate
from searching import extractor
from tools import study, synthetic
from tools.benchmark import deployment, ranking, speed, training
from tools.benchmark.measure import hardware

REPOSITORY = Path(__file__).parent.parent
STOPPED = study.STOPPED  # exit code of a stage whose time was up
GRACE = 60  # seconds for training to save once its time is up


class Lengths(NamedTuple):
    """How much of everything is done."""

    arch: str = "hacnn"
    network: tuple = ()  # flags of train.py for every run that builds one
    flags: tuple = ()  # of train.py, for every run
    choose: str = "choose"  # group or experiment of tools.study
    batches: tuple = (64, 256)  # of training
    modes: tuple = (None, "default", "reduce-overhead")  # of torch.compile; the last captures CUDA graphs
    ranking: tuple = (3368, 15913)  # queries, gallery
    persons: int = 750
    distractors: int = 500_000
    rerank: tuple = (1600, 8000)
    served: tuple = tuple(deployment.ROUNDS)  # batches of a network that is exported
    rounds: int | None = None
    compile_limit: int = 120  # seconds


FULL = Lengths()
TOY = Lengths(
    arch="osnet_x0_25", network=("--arch", "osnet_x0_25", "--options", "input_size=64,32"),
    flags=("--batch-size", "8", "--epochs", "1", "--warmup-epochs", "0"), choose="held-best", batches=(4,),
    modes=(None,), ranking=(20, 100), persons=5, distractors=200, rerank=(20, 100), served=(1, 2), rounds=1,
    compile_limit=0,
)  # fmt: skip
TOY_SET = {"num_train_ids": 6, "num_test_ids": 4, "num_distractors": 4, "num_junk": 2}


class Job(NamedTuple):
    """What a stage is given."""

    root: str
    out: Path
    device: torch.device
    minutes: float  # that training may take
    lengths: Lengths

    @property
    def on_gpu(self):
        return self.device.type == "cuda"


# ----------------------------------------------------------------------------------------------------------------------
# Stages. Each prints what it found, and gives an exit code, or raises


def check_correctness(job):
    """An epoch of train.py alone (nn.DataParallel where there are two cards) and by torchrun, and the GPU tests."""
    training.measure_devices(job.device, job.lengths.arch)
    if job.on_gpu:
        files = ["tests/test_metrics.py", "tests/test_search.py", "tests/searching/test_extractor.py"]
        command = [sys.executable, "-m", "pytest", "-k", "cuda or gpu or GPU", *files]
        return subprocess.run(command, cwd=REPOSITORY, timeout=60 * job.minutes).returncode
    return 0


def train_runs(*names):
    """A stage that trains these runs of tools.study, or goes on with them."""

    def run(job):
        named = [job.lengths.choose if name == "choose" else name for name in names]
        flags = [*named, "--root", job.root, "--out", str(job.out / "study"), "--minutes", f"{job.minutes:.2f}"]
        network = () if "adapted" in names else job.lengths.network
        more = [*network, *job.lengths.flags, *(["--holdout", "2"] if "choose" in names and job.lengths.flags else [])]
        return study.main([*flags, "--", *more])

    return run


def measure_training(job):
    """Images/s of an epoch, eager, compiled and captured, at each batch size."""
    for batch in job.lengths.batches:
        for mode in job.lengths.modes:
            training.measure_training(
                job.device, "market1501", job.root, job.lengths.arch, batch_size=batch, compiled=mode
            )
            sys.stdout.flush()


def measure_ranking(job):
    """metrics at Market-1501's size, with distractors, re-ranked; then HA-CNN beside the plain one, in bf16."""
    size, distractors, persons = job.lengths.ranking, (0, job.lengths.distractors), job.lengths.persons
    ranking.measure_ranking(job.device, size, ids=persons)
    ranking.measure_rerank(job.device, job.lengths.rerank, ids=persons)
    ranking.measure_distractors(job.device, size, distractors, ids=persons)
    short = {"rounds": job.lengths.rounds, "steps": 1} if job.lengths.rounds else {}
    speed.measure_speed(job.device, job.lengths.batches[0], "bf16" if job.on_gpu else "off", **short)


def trained_network(job):
    """best.pth of the first run that has one. ValueError where there is none."""
    found = [job.out / "study" / name / "best.pth" for name in ("best-0", "fast-90-0", "fast-60-0", "fast-30-0")]
    found = [path for path in found if path.is_file()]
    if not found:
        raise ValueError(f"there is no trained network below {job.out / 'study'}: the stage `best` has to come before")
    return found[0]


VARIANTS = export.FLOAT, export.Variant("fp16"), export.Variant(uint8=True), export.Variant("fp16", True)


def check_served(job):
    """Files of export.py on onnxruntime's provider: every batch of the gate, and no node on the CPU."""
    model, info = models.load_checkpoint(trained_network(job))
    model.requires_grad_(False)
    provider = "cuda" if job.on_gpu else "cpu"
    paths = [item.paths[0] for item in data.read_dataset("market1501", job.root).query]
    shown = gate.open_pictures(gate.spread(paths, gate.pictures_needed("images")))
    findings = []
    for variant in VARIANTS:
        path, kind = job.out / f"served{variant.suffix}.onnx", export.kind_of(model, variant)
        print(export.export(model, info, "onnx", path, variant, export.Evidence(shown, "market1501")), flush=True)
        trials = gate.make_trials(export.Extractor(model).eval(), kind, shown)
        runs = {provider: extractor.Extractor(path, provider).call}  # RuntimeError where a node is left to the CPU
        if job.on_gpu and variant == export.FLOAT:  # what its rounding to TF32 costs
            exact = onnxruntime.InferenceSession(str(path), providers=[("CUDAExecutionProvider", {"use_tf32": "0"})])
            runs["cuda without TF32"] = lambda arrays, exact=exact: exact.run(["features"], {"images": arrays[0]})[0]
        for name, call in runs.items():
            limits = gate.limits_of(variant.precision, kind)
            found, report = gate.check(lambda *arrays, call=call: call(list(arrays)), trials, limits)
            print(f"{path.name} on {name}: {gate.describe(report)}", *found, sep="\n  ", flush=True)
            findings += [f"{path.name} on {name}: {text}" for text in found]
    if findings:
        raise ValueError("; ".join(findings))


def measure_served(job):
    """Images/s of every format beside eager and compiled PyTorch, and search.py over the whole gallery."""
    sizes = {"batches": job.lengths.served, "rounds": job.lengths.rounds, "compile_limit": job.lengths.compile_limit}
    deployment.measure_deployment(job.device, trained_network(job), **sizes, out=job.out / "deploy.png")
    (query, *_), gallery = data.read_dataset("market1501", job.root)[1:]
    folders = (str(Path(item.paths[0]).parent) for item in (query, gallery[0]))
    flags = [*zip(("--query", "--gallery"), folders, strict=True), ("--labels", "market1501")]
    flags += [("--provider", "cuda" if job.on_gpu else "cpu"), ("--batch-size", "128"), ("--top", "10")]
    model = "served.half.onnx" if job.on_gpu else "served.onnx"
    flags += [("--model", str(job.out / model)), ("--out", str(job.out / "search"))]
    began = time.perf_counter()
    code = search.main([text for pair in flags for text in pair])
    print(f"search.py over the gallery: {time.perf_counter() - began:.1f} s, decoding and pictures included")
    return code


class Stage(NamedTuple):
    run: Callable  # (job) -> exit code, or None
    minutes: float  # that it may take
    command: str  # that gives it again by itself


STAGES = {
    "correctness": Stage(check_correctness, 3, "pytest -k 'cuda or gpu' and python -m tools.benchmark devices"),
    "best": Stage(train_runs("best-0"), 15, "python -m tools.study best-0"),
    "fast": Stage(train_runs("fast"), 9, "python -m tools.study fast"),
    "training": Stage(measure_training, 6, "python -m tools.benchmark training --batch-size N --compile MODE"),
    "ranking": Stage(measure_ranking, 4, "python -m tools.benchmark ranking, rerank, distractors, speed --amp bf16"),
    "parity": Stage(check_served, 4, "python -m tools.gpu --only parity"),
    "deployment": Stage(measure_served, 6, "python -m tools.benchmark deploy and search.py --provider cuda"),
    "adapt": Stage(train_runs("adapted"), 12, "python -m tools.study adapted"),
    "reference": Stage(train_runs("reference"), 30, "python -m tools.study reference"),
    "seeds": Stage(train_runs("best-1", "best-2"), 30, "python -m tools.study best-1 best-2"),
    "choose": Stage(train_runs("choose"), 240, "python -m tools.study choose"),
}


# ----------------------------------------------------------------------------------------------------------------------
# One stage after the other


def read_status(out, name):
    """How a stage ended: code, seconds, hardware, reason; empty where it has not been tried."""
    path = out / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def run_stage(name, job):
    """The exit code of a stage, in this process; why it failed is the last line that it prints."""
    try:
        return STAGES[name].run(job) or 0
    except Exception as error:  # whatever it is, it is this stage's; the next one begins
        print(f"error: {type(error).__name__}: {error}")
        return 1


def run_apart(command, seconds, log):
    """Exit code of a command whose output goes to the file `log`; STOPPED where it takes longer than that."""
    with open(log, "ab") as file:
        child = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = STOPPED
        except KeyboardInterrupt:
            code = None
        for number in (signal.SIGTERM, signal.SIGKILL):  # its own children too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE / 2)
        if code is None:
            raise KeyboardInterrupt
        return code


def write_summary(job):
    """summary.md: what was trained as a table, then what each other stage printed."""
    lines = [f"# What waited for a GPU: {hardware(job.device)}", ""]
    if (job.out / "study").is_dir():
        rows = study.table(job.out / "study")
        lines += [row for row in rows if "| not run yet |" not in row] + [""]
    for name, stage in STAGES.items():
        status = read_status(job.out, name)
        ended = {0: "done", STOPPED: "stopped, its time was up", None: "not begun"}
        told = ended.get(status.get("code"), f"FAILED: {status.get('reason')}")
        lines += [f"## {name}: {told}", "", f"`{stage.command}`"]
        if status:
            lines[-1] += f", {status['seconds']:.0f} s, {status['hardware']}"
            lines += ["", "```", (job.out / f"{name}.txt").read_text(errors="replace").strip(), "```"]
        lines += [""]
    with images.replacing(job.out / "summary.md") as file:
        file.write("\n".join(lines).encode())


def run_stages(names, job, deadline, command):
    """Runs what is not done, until the deadline; the number of stages that are not done after it."""
    first = [name for name in names if read_status(job.out, name).get("code") in (None, STOPPED)]
    failed = [name for name in names if read_status(job.out, name).get("code") not in (None, STOPPED, 0)]
    for name in [*first, *failed]:
        left = (deadline - time.monotonic()) / 60
        if left <= 0:
            print(f"{name}: no time is left; the same command goes on", flush=True)
            continue
        minutes, began = min(STAGES[name].minutes, left), time.monotonic()
        print(f"{name}: at most {minutes:.1f} minutes, {job.out / name}.txt", flush=True)
        log = job.out / f"{name}.txt"
        given = [*command, "--only", name, "--minutes", f"{minutes:.2f}", "--here"]
        code = run_apart(given, 60 * minutes + GRACE, log)
        seconds = time.monotonic() - began + read_status(job.out, name).get("seconds", 0)
        reason = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
        status = {"code": code, "seconds": seconds, "hardware": hardware(job.device), "reason": reason if code else ""}
        with images.replacing(job.out / f"{name}.json") as file:
            file.write(json.dumps(status, indent=2).encode())
        write_summary(job)
        told = {0: "done", STOPPED: "stopped, the same command goes on"}.get(code, f"failed: {reason}")
        print(f"{name}: {told} ({seconds:.0f} s)", flush=True)
    return sum(read_status(job.out, name).get("code") != 0 for name in names)


def main(argv=None):
    parser = images.Parser(
        "python -m tools.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", default="data", help="folder above market1501 (default: data)")
    add("--out", type=Path, default=Path("runs/gpu"), help="folder of all results (default: runs/gpu)")
    add("--minutes", type=float, default=25, metavar="M", help="for all of it (default: 25)")
    add("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}")
    add("--toy", action="store_true", help="toy length, on a few drawn persons; --root is not looked at")
    add("--here", action="store_true", help="in this process, without a time limit, what it prints to the console")
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes:g}: give more than 0")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.toy:
        print("error: torch sees no GPU here; --toy tries all stages on a CPU at toy length", file=sys.stderr)
        return 1
    out = args.out.resolve()
    root = str(out / "data") if args.toy else str(Path(args.root).resolve())
    job = Job(root, out, device, args.minutes, TOY if args.toy else FULL)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if args.toy:
            synthetic.write_dataset(out / "data" / "market1501", **TOY_SET, processes=1)
        data.read_dataset("market1501", root)  # that it is there
        if args.here:
            return max([run_stage(name, job) for name in args.only])
        command = [sys.executable, "-m", "tools.gpu", "--root", root, "--out", str(out), *["--toy"] * args.toy]
        missing = run_stages(args.only, job, time.monotonic() + 60 * args.minutes, command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(args.only) - missing} of {len(args.only)} stages are done: {out / 'summary.md'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
