"""Makes the weights that this repository ships: of a network that has seen drawn people alone, who belong to nobody.

    python -m tools.weights                                    # -> weights/synthetic.pth, two hours on a core
    python -m tools.weights --out mine.pth --train-ids 4000 --sites 250 -- --arch hacnn --epochs 20

It draws people under many cameras (tools.synthetic), trains on them, goes on from there with others under others as
often as --passes says, and writes what adapting, exporting and testing need: matrices in half precision, no classifier,
no optimizer. What stands behind -- goes to train.py. BENCHMARK.md says what these weights are worth on real people,
docs/adaptation.md how to go on from them without labels.
"""

import sys
import tempfile
from pathlib import Path

import torch

import images
import models
import train
from tools import synthetic

FLAGS = ["--arch", "osnet_x0_5", "--options", "input_size=128,64", "--epochs", "8", "--batch-size", "32", "--lr",
         "0.002", "--augment", "flip", "translate", "jitter", "erase", "--ema", "0.998"]  # fmt: skip
KEPT = ("arch", "options", "input_size", "mean", "std", "feature_dim", "distance", "scores")


def shrink(checkpoint, dataset):
    """What is shipped of a checkpoint of train.py: its matrices in fp16, one class, no state of training."""
    weights = {}
    for name, value in checkpoint["model"].items():
        if "classifier" in name:
            value = torch.zeros_like(value[:1])
        weights[name] = value.half() if value.dim() > 1 else value.clone()
    about = {name: checkpoint[name] for name in KEPT}
    return {"num_ids": 1, "pids": [0], "dataset": dataset, "model": weights, **about}


def main(argv=None):
    parser = images.Parser("python -m tools.weights", description="Make weights from drawn people alone.")
    parser.add_argument("--out", default=str(models.SHIPPED["synthetic"]), help="default: weights/synthetic.pth")
    parser.add_argument("--root", help="folder for the pictures and the run, kept (default: one that is deleted)")
    parser.add_argument("--passes", type=int, default=2, metavar="N", help="times that it draws anew (default: 2)")
    parser.add_argument("--train-ids", type=int, default=1500, metavar="N", help="people of a pass (default: 1500)")
    parser.add_argument("--sites", type=int, default=100, metavar="N",
                        help="places of six cameras, of a pass (default: 100)")  # fmt: skip
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="of train.py, after these: " + " ".join(FLAGS))
    args = parser.parse_args(argv)
    if args.passes < 1:
        parser.error(f"--passes {args.passes}: give 1 or more")
    sizes, before = {"num_train_ids": args.train_ids, "num_test_ids": 60, "num_distractors": 0, "num_junk": 0}, []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(args.passes):
            root = Path(args.root or temporary, str(number))
            try:
                places = {"seed": number, "camera_seed": number + 1, "sites": args.sites}
                synthetic.write_dataset(root / "synthetic", **sizes, **places)
            except (OSError, ValueError) as error:
                raise SystemExit(f"error: {error}") from None
            flags = ["--dataset", "synthetic", "--root", str(root), "--out", str(root / "run"), *FLAGS, *before]
            if code := train.main([*flags, *args.flags]):
                return code
            before = ["--weights", str(root / "run" / "best.pth")]
        about = f"{args.passes * args.train_ids:,} drawn people of {args.passes * args.sites} sites"
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        train.save_atomically(shrink(models.read_checkpoint(root / "run" / "best.pth"), about), out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
