"""Tests of benchmark.py: what it compares with is the same network and the same ranking, and its commands run.

python -m pytest tests/test_benchmark.py
"""

import numpy as np
import pytest
import torch

import benchmark
import metrics
import models


def test_the_plain_network_is_the_same_network():
    torch.manual_seed(0)
    ours, plain = models.build_model("hacnn", 5).eval(), benchmark.LoopedHACNN(5).eval()
    for attention in (ours.ha1, ours.ha2, ours.ha3):  # regions off their starting places, some partly outside
        torch.nn.init.normal_(attention.hard_attn.fc.weight, std=0.3)
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 160, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(images), plain(images), atol=1e-5)


def test_the_usual_ranking_gives_the_same_scores():
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 60)]
    pids, camids = [rng.integers(6, size=n) for n in (20, 60)], [rng.integers(3, size=n) for n in (20, 60)]
    rank1, mean_ap = benchmark.argsort_and_loop(*features, *pids, *camids)
    scores = metrics.evaluate(*features, *pids, *camids, distance="euclidean")
    assert scores["cmc"][0].item() == pytest.approx(rank1, abs=1e-6)
    assert scores["mAP"] == pytest.approx(mean_ap, abs=1e-6)


def test_medians_takes_turns_and_leaves_the_first_call_out():
    calls = []
    seconds = benchmark.medians([lambda: calls.append("a"), lambda: calls.append("b")], torch.device("cpu"), rounds=3)
    assert calls == ["a", "b"] * 4 and len(seconds) == 2


def test_baselines_command(drawn_root, capsys):
    assert benchmark.main(["baselines", "--root", str(drawn_root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "rank-1" in line] == ["raw", "HSV"]


def test_baselines_on_pictures_whose_answer_is_known():
    """Red and green people: a histogram knows them apart wherever they stand, equal pictures have equal features."""
    red, green = np.zeros((2, 32, 16, 3), np.uint8)
    red[:, :, 0], green[:, :, 1] = 200, 200
    histogram = benchmark.hsv_histograms(np.stack([red, red, green]))
    assert torch.equal(histogram[0], histogram[1]) and histogram[0] @ histogram[2] == 0
    pixels = benchmark.raw_pixels(np.stack([red, red, green]))
    assert torch.equal(pixels[0], pixels[1]) and pixels[0] @ pixels[2] < 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys):
    assert benchmark.main(["speed", "--device", "cuda"]) == 1
    assert "torch sees 0 GPUs" in capsys.readouterr().err
