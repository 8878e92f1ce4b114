"""Tests of benchmark.py: what it compares with gives the same results, its memory is measured, its commands run.

python -m pytest tests/test_benchmark.py
"""

import math
import shutil
import sys
import threading
import time

import numpy as np
import pytest
import torch

import benchmark
import metrics
import models

CPU = torch.device("cpu")


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
    seconds = benchmark.medians([lambda: calls.append("a"), lambda: calls.append("b")], CPU, rounds=3)
    assert calls == ["a", "b"] * 4 and len(seconds) == 2
    pauses = iter([0.2, 0, 0])
    assert benchmark.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1) < [0.1]
    assert benchmark.medians([lambda: time.sleep(next(pauses))], CPU, rounds=1, warm_up=0) < [0.1]


def fake_peer(folder, text):
    (folder / "peer.py").write_text(text)
    return str(folder / "peer.py")


RANK_PEER = """
import warnings
import numpy as np

warnings.warn("not compiled")

def eval_market1501(distmat, q_pids, g_pids, q_camids, g_camids, max_rank):
    cmc, precisions = np.zeros(max_rank), []
    for row, distances in enumerate(distmat):
        found, seen, total = 0, 0, 0.0
        for item in np.argsort(distances):
            if g_pids[item] == q_pids[row] and g_camids[item] == q_camids[row]:
                continue
            seen += 1
            if g_pids[item] == q_pids[row]:
                found += 1
                total += found / seen
                if found == 1:
                    cmc[seen - 1:] += 1
        if found:
            precisions.append(total / found)
    return cmc / len(precisions), np.mean(precisions)
"""


def test_ranking_gives_the_same_scores_on_all_sides(tmp_path, capsys, recwarn):
    path = fake_peer(tmp_path, RANK_PEER)
    runs = benchmark.measure_ranking(CPU, 20, 60, dim=8, ids=6, peer_rank=path)
    ours, _, *others = [run.result for run in runs.values()]
    assert 0 < ours[0] < 1 and 0 < ours[1] < 1 and len(others) == 2 and not recwarn.list
    for rank1, mean_ap in others:
        assert (np.ravel(rank1)[0], mean_ap) == pytest.approx(ours, abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert len({line.partition("rank-1")[2] for line in lines if "rank-1" in line}) == 1  # shown as they are


def test_distractors_give_the_scores_of_the_usual_way_on_the_whole_gallery(monkeypatch):
    galleries, write = [], benchmark.write_gallery
    monkeypatch.setattr(benchmark, "write_gallery", lambda *a: galleries.append(write(*a)) or galleries[0])
    runs = benchmark.measure_distractors(CPU, 20, 60, distractors=(0, 40, 5000), dim=8, ids=6, rounds=1)
    (query, gallery), pids, camids = benchmark.draw(20, 60, 8, 6)
    mapped = galleries[0]
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped[:60], gallery)
    results = [run.result for run in runs.values() if run.result is not None]
    distractors = np.array(mapped[60:])
    assert len(np.unique(distractors, axis=0)) == 5000 and min(pids[0]) > 0
    assert distractors.std() == pytest.approx(gallery.std(), rel=0.05)
    for number, result in zip((0, 40, 5000), results, strict=True):
        longer = np.concatenate([gallery, distractors[:number]])
        g_pids, g_camids = (np.append(ids[1], np.zeros(number, int)) for ids in (pids, camids))
        expected = benchmark.argsort_and_loop(query, longer, pids[0], g_pids, camids[0], g_camids)
        assert result == pytest.approx(expected, abs=1e-6)
    assert results[0][1] > results[1][1] > results[2][1]


def test_a_disk_that_is_too_small(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 4000, 4000)
    monkeypatch.setattr(benchmark.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="TMPDIR"):
        benchmark.write_gallery(tmp_path, np.ones((60, 8), np.float32), 60)  # 3,840 bytes, too close
    assert not list(tmp_path.iterdir())


def test_the_usual_reranking_gives_the_same_distances(tmp_path):
    peer = """
import numpy as np

def re_ranking(q_g, q_q, g_g):
    import benchmark
    assert q_g.shape == (20, 100) and q_q.shape == (20, 20) and g_g.shape == (100, 100)
    (q, g), _, _ = benchmark.draw(20, 100, 16, 12, noise=2.5)
    for distances, a, b in ((q_g, q, g), (q_q, q, q), (g_g, g, g)):
        assert np.allclose(distances**2, ((a[:, None] - b) ** 2).sum(2), atol=1e-2)
    return benchmark.dense_rerank(q, g)
"""
    runs = benchmark.measure_rerank(CPU, 20, 100, dim=16, ids=12, peer_rerank=fake_peer(tmp_path, peer))
    ours, *others = [np.asarray(run.result) for run in runs.values()]
    assert ours.shape == (20, 100) and ours.std() > 0.01 and len(others) == 2
    for other in others:
        assert np.allclose(ours, other, atol=1e-5)
    alone = benchmark.measure_rerank(CPU, 20, 100, dim=16, ids=12, alone=True)
    assert [np.array_equal(run.result, ours) for run in alone.values()] == [True]


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (6, 1, 0.0), (9, 3, 1.0)])
def test_dense_reranking_in_float64(k1, k2, lambda_value):
    features, _, _ = benchmark.draw(15, 90, 16, 10, noise=2.5)
    q, g = (f.astype(np.float64) for f in features)
    dense = benchmark.dense_rerank(q, g, k1, k2, lambda_value)
    ours = metrics.rerank(q, g, k1=k1, k2=k2, lambda_value=lambda_value, distance="euclidean")
    assert np.allclose(dense, ours, atol=1e-9)


def test_what_is_said_of_a_difference():
    ours = torch.zeros(4, 5)
    result = np.zeros((4, 5), np.float32)
    result[0, 0], result[1, 1] = -0.25, 1e-6
    assert benchmark.difference(result, ours) == "largest difference 2e-01, above 1e-5 in 5.0000%"


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is told by Linux alone")


@linux
def test_the_memory_of_an_array_is_seen_after_it_is_gone():
    def work():
        array = np.ones(25_000_000)  # 200 MB, freed before the function returns
        time.sleep(0.1)
        return array[::1000].sum()

    run = benchmark.watch(work, CPU)
    assert run.result == 25_000 and run.seconds > 0
    assert 190e6 < run.anonymous < 230e6


@linux
def test_the_memory_of_a_mapped_file_and_of_what_was_there_before_is_not_counted(tmp_path):
    np.ones(25_000_000).tofile(tmp_path / "a")
    before = np.ones(25_000_000)
    mapped = np.memmap(tmp_path / "a", np.float64, "r")
    run = benchmark.watch(lambda: mapped.sum() + before.sum(), CPU)
    assert run.result == 50_000_000
    assert -20e6 < run.anonymous < 20e6


def test_memory_that_is_not_measured_is_said_to_be_so(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "anonymous_memory", lambda: math.nan)
    runs = benchmark.compare(CPU, {"first": lambda: 1, "second": lambda: 2}, {"third": lambda: 3}, rounds=2)
    assert [run.result for run in runs.values()] == [1, 2, 3]
    assert capsys.readouterr().out.count("not measured") == 3


def test_a_sampler_ends_with_a_function_that_fails():
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        benchmark.watch(lambda: 1 // 0, CPU)
    assert threading.active_count() == threads


def test_ratios_are_those_of_the_medians(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "medians", lambda functions, *args, **options: [0.5, 2.0])
    benchmark.compare(CPU, {"ours": lambda: 1, "theirs": lambda: 2}, remark=lambda result, first: f"{result}/{first}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    shown = [(words[0], words[1], words[3], words[-1]) for words in lines]
    assert shown == [("ours", "0.500", "1.00", "1/1"), ("theirs", "2.000", "4.00", "2/1")]


@pytest.mark.parametrize("command", [["ranking", "--peer-rank"], ["rerank", "--peer-rerank"]])
def test_a_peer_that_is_not_there(command, tmp_path, capsys):
    assert benchmark.main([*command, "nowhere/rank.py", "--device", "cpu"]) == 1
    assert "no Python file nowhere/rank.py" in capsys.readouterr().err
    assert benchmark.main([*command, fake_peer(tmp_path, "x = 1"), "--device", "cpu"]) == 1
    assert "has no function" in capsys.readouterr().err


def test_commands_and_their_own_flags(monkeypatch, capsys):
    calls = []
    for name in ("speed", "epoch", "ranking", "distractors", "rerank", "baselines"):
        monkeypatch.setattr(benchmark, f"measure_{name}", lambda *a, name=name, **o: calls.append((name, a, o)))
    lines = ("speed --amp bf16 --batch-size 8", "baselines --dataset synthetic", "distractors")
    for line in (*lines, "ranking --peer-rank a.py", "rerank", "rerank --full"):
        assert benchmark.main([*line.split(), "--device", "cpu"]) == 0
    assert [(name, [x for x in given if x != CPU], options) for name, given, options in calls] == [
        ("speed", [8, True], {}), ("epoch", [16, True], {}), ("baselines", ["synthetic", "data"], {}),
        ("distractors", [], {}), ("ranking", [], {"peer_rank": "a.py"}), ("rerank", [], {"peer_rerank": None}),
        ("rerank", [], {"peer_rerank": None}), ("rerank", [11659, 82161], {"ids": 3060, "alone": True}),
    ]
    with pytest.raises(SystemExit):
        benchmark.main(["speed", "--full"])


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
