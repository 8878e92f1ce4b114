"""Measures speed beside a straightforward version, and how far methods that learn nothing come on a data set.

    python -m tools.benchmark -h                     # lists the subjects; each has a -h of its own
    python -m tools.benchmark speed                  # extraction, training step, epoch; ratios measured side by side
    python -m tools.benchmark deploy --ckpt best.pth # what serves a network: PyTorch, TorchScript, torch.export, ONNX

Times compared are medians of several rounds in one process, the sides taking turns, so that whatever else the machine
does disturbs all of them. Hardware, versions and date come last. "Memory beyond the inputs" is the most that a first
call adds: anonymous memory (no pages of files), sampled every 5 ms, and on a GPU what torch has allocated there.
"""

import argparse
import sys

import train
from tools.benchmark import (
    baselines,
    decoding,
    deployment,
    grouping,
    nearest,
    networks,
    postgres,
    ranking,
    speed,
    training,
)
from tools.benchmark.measure import hardware
from training import recipes


def build_parser():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda")
    parser = argparse.ArgumentParser(
        "python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name, run, text):
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added.add_argument

    add = command("speed", speed.measure_speed, "HA-CNN and the training loop beside plain versions")
    add("--batch-size", type=int, default=32, help="of extraction and training step (default: 32)")
    add("--amp", choices=("off", "bf16"), default="off", help="of both sides (default: off)")
    add = command("training", training.measure_training, "images/s of an epoch, and the share that is not the network")
    add("--dataset", default="market1501", help="of images (default: market1501)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add("--arch", default="hacnn", help="default: hacnn")
    add("--batch-size", type=int, default=64, help="default: 64")
    add("--amp", choices=("auto", *recipes.AMP), default="auto", help="as train.py has it (default: auto)")
    add("--compile", dest="compiled", nargs="?", const="default", help="as train.py has it")
    add("--steps", type=int, default=0, help="of the epoch, images spread over all (default: 0, a whole epoch)")
    add = command("devices", training.measure_devices, "trains, scores and saves on all GPUs, and by torchrun")
    add("--arch", default="hacnn", help="default: hacnn")
    add = command("networks", networks.measure_networks, "images/s of networks, in each precision and layout")
    add("names", nargs="*", default=networks.LIGHT, metavar="NAME", help=f"default: {' '.join(networks.LIGHT)}")
    add("--batch-size", type=int, help="default: 16 on a CPU, 64 on a GPU")
    add("--compile", dest="compiled", nargs="+", default=(), metavar="NAME", help="compiled too; takes minutes each")
    add = command("baselines", baselines.measure_baselines, "scores of features that nobody trained")
    add("--dataset", default="synthetic", help="a name train.py knows (default: synthetic)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add = command("data", decoding.measure_data, "parsing, decoding, and training from a large cache below TMPDIR")
    add("--dataset", default="market1501", help="what is parsed and decoded (default: market1501)")
    add("--root", default="data", help="folder above the data set's own (default: data)")
    add("--gigabytes", type=float, default=5, help="of the large cache (default: 5)")
    add = command("ranking", ranking.measure_ranking, "metrics.evaluate at Market-1501's size beside the usual way")
    add("--peer-rank", metavar="FILE", help="torchreid/metrics/rank.py of deep-person-reid: it too")
    command("distractors", ranking.measure_distractors, "it with 500,000 distractors, in a file of 2.1 GB below TMPDIR")
    add = command("deploy", deployment.measure_deployment, "a checkpoint in every format of export.py beside PyTorch")
    add("--ckpt", required=True, metavar="FILE", help="checkpoint of train.py")
    add("--batches", type=int, nargs="+", default=list(deployment.ROUNDS), metavar="B", help="default: 1 8 32 128")
    add("--rounds", type=int, help="of each batch size (default: 100 of batch 1 down to 10 of batch 128)")
    add("--compile-limit", type=int, default=600, metavar="S", help="seconds for torch.compile; 0: without it")
    add("--calibrate", metavar="FOLDER", help="images for int8 (default: patches that are drawn, for its speed alone)")
    add("--out", default="deploy.png", metavar="FILE", help="the plot (default: deploy.png)")
    add = command("rerank", ranking.measure_rerank, "metrics.rerank for 1,600 + 8,000 items beside the usual way")
    add("--peer-rerank", metavar="FILE", help="torchreid/utils/rerank.py of deep-person-reid: it too")
    add("--full", action="store_true", help="at MSMT17's size too, 11,659 + 82,161; 3.8 GB returned")
    add = command("search", nearest.measure_search, "gallery.top_k beside reading and multiplying, in a file of 4.1 GB")
    add("--size", type=int, default=1_000_000, help="rows of the gallery (default: 1000000)")
    add = command("postgres", postgres.measure_postgres, "a gallery in PostgreSQL beside the folder, both below TMPDIR")
    add("--sizes", type=int, nargs="+", default=[100_000, 300_000], metavar="N",
        help="rows of the galleries, ascending (default: 100000 300000)")
    add("--address", help="of a gallery on a server of yours, that is filled (default: a server of its own)")
    add("--no-hnsw", dest="hnsw", action="store_false", help="without the index for approximate searches")
    add = command("group", grouping.measure_grouping, "people without labels: what is found, in what time and memory")
    add("--index", help="one whose persons are known (default: drawn features)")
    add("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000], metavar="N",
        help="rows of drawn features (default: 10000 30000 100000)")
    return parser


def main(argv=None):
    flags = vars(build_parser().parse_args(argv))
    try:
        device = train.pick_device(flags.pop("device"))
        flags.pop("run")(device, **flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(hardware(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
