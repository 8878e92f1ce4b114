"""Tests of tools/benchmark: the memory of training from a large cache, and baselines that learn nothing.

python -m pytest tests/tools/benchmark/test_decoding.py
"""

import sys

import numpy as np
import pytest
import torch

from tools.benchmark import __main__ as command
from tools.benchmark import baselines, decoding
from training import pixels

CPU = torch.device("cpu")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is told by Linux alone")


@linux
def test_the_memory_of_training_from_a_large_cache_is_that_of_a_copy_where_code_copies(monkeypatch, capsys):
    """A file of 250 MB: mapped, none of it counts; a loader that copies it when it takes a batch is found out."""
    peaks, take = [], pixels.Pixels.batch

    def copying(self, rows, device="cpu"):
        self.copy = np.array(self.array)
        return take(self, rows, device)

    for batch in (take, take, copying):  # the first call warms up
        monkeypatch.setattr(pixels.Pixels, "batch", batch)
        peaks.append(decoding.measure_large_cache(CPU, 0.25, batch=2, steps=1))
    assert peaks[1] - peaks[0] < 100e6 and peaks[2] - peaks[1] > 200e6
    assert f"0.25 GB, batch 2, fp32: at most {peaks[2] / 1e9:.2f} GB" in capsys.readouterr().out.replace("bf16", "fp32")


def test_baselines_command(drawn_root, capsys):
    assert command.main(["baselines", "--root", str(drawn_root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "rank-1" in line] == ["raw", "HSV"]


def test_baselines_on_pictures_whose_answer_is_known():
    """Red and green people: a histogram knows them apart wherever they stand, equal pictures have equal features."""
    red, green = np.zeros((2, 32, 16, 3), np.uint8)
    red[:, :, 0], green[:, :, 1] = 200, 200
    histogram = baselines.hsv_histograms(np.stack([red, red, green]))
    assert torch.equal(histogram[0], histogram[1]) and histogram[0] @ histogram[2] == 0
    pixels = baselines.raw_pixels(np.stack([red, red, green]))
    assert torch.equal(pixels[0], pixels[1]) and pixels[0] @ pixels[2] < 0.5
