"""What several test files share: a tiny synthetic data set, and running the commands as a user does."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import synthetic

REPOSITORY = Path(__file__).parent.parent


def draw(path, seed=0, size=(16, 32)):
    """A small JPEG, size (width, height), of pixels that follow from the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=90)
    return path


def run_command(*arguments, **options):
    """`python ARGUMENTS` in a process of its own, in the repository; returns it finished, with its output as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, **options)


def run_main(capsys, *arguments):
    """(exit code, standard output, standard error) of train.main in this process."""
    import train  # not above: most test files do without

    try:
        code = train.main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def press_ctrl_c(patch, *calls):
    """Ctrl-C in those calls of augment (from 1), one for each batch; returns the list that their images fill."""
    from training import pixels

    augment, seen = pixels.augment, []

    def augment_and_interrupt(images, *arguments):
        seen.append(images)
        if len(seen) in calls:
            os.kill(os.getpid(), signal.SIGINT)
        return augment(images, *arguments)

    patch.setattr(pixels, "augment", augment_and_interrupt)
    return seen


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory):
    """A root with a tiny synthetic set, drawn once; do not write into it."""
    root = tmp_path_factory.mktemp("root")
    synthetic.write_dataset(
        root / "synthetic", num_train_ids=6, num_test_ids=4, num_distractors=4, num_junk=2, seed=0, processes=1
    )
    return root


@pytest.fixture(scope="session")
def video_root(tmp_path_factory):
    """A root with a tiny synthetic set of tracklets, drawn once; do not write into it."""
    root = tmp_path_factory.mktemp("video")
    synthetic.write_video_dataset(
        root / "synthetic-video", num_train_ids=3, num_test_ids=3, num_distractors=3, num_junk=2, seed=0, processes=1
    )
    return root


@pytest.fixture
def root(drawn_root, tmp_path):
    """A copy of the tiny set that a test may spoil."""
    shutil.copytree(drawn_root / "synthetic", tmp_path / "root" / "synthetic")
    return tmp_path / "root"


@pytest.fixture
def model(tmp_path):
    """The file of an exported model of a few nodes, for the tests of search."""
    from tiny_onnx import write_model  # not above: most test files do without onnx

    return write_model(tmp_path / "tiny.onnx")


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    """Tiny batches run faster on two threads than on many."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
