"""Tests of what tools/benchmark compares ranking, re-ranking and search with: it gives the same results.

python -m pytest tests/tools/benchmark/test_ranking.py
"""

import shutil

import numpy as np
import pytest
import torch

import metrics
from tools.benchmark import __main__ as command
from tools.benchmark import nearest, ranking
from tools.benchmark.measure import Run

CPU = torch.device("cpu")


def test_the_usual_ranking_gives_the_same_scores():
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 60)]
    pids, camids = [rng.integers(6, size=n) for n in (20, 60)], [rng.integers(3, size=n) for n in (20, 60)]
    rank1, mean_ap = ranking.argsort_and_loop(*features, *pids, *camids)
    scores = metrics.evaluate(*features, *pids, *camids, distance="euclidean")
    assert scores["cmc"][0].item() == pytest.approx(rank1, abs=1e-6)
    assert scores["mAP"] == pytest.approx(mean_ap, abs=1e-6)


def test_search_is_measured_beside_reading_and_multiplying(capsys, monkeypatch):
    turns, compare = [], nearest.compare

    def watched(device, sides, **rest):  # what is searched by what
        asked, features, _ = sides["gallery.top_k"].args
        turns.append((asked, np.array(features)))
        return compare(device, sides, **rest)

    monkeypatch.setattr(nearest, "compare", watched)
    found = nearest.measure_search(CPU, size=5000, dim=16, queries=5, top=3, rounds=1)
    assert list(found[1]) == ["reading them", "gallery.top_k"]
    assert list(found[5]) == ["bare product", "gallery.top_k"]
    printed = capsys.readouterr().out
    assert "\n1 query\n" in printed and "\n5 queries\n" in printed and printed.count("GB/s") == 4
    (_, features), (asked, _) = turns
    read, product = found[1]["reading them"].result, found[5]["bare product"].result
    assert read == pytest.approx(features.sum(dtype=np.float64), rel=1e-3)  # all of it was read
    assert np.allclose(product, asked @ features.T, atol=1e-4)


def test_wrong_answers_are_noticed():
    features = np.eye(4, dtype=np.float32)
    asked = np.array([[4, 3, 2, 1]], np.float32)
    nearest.check_answers(np.array([[0, 1]]), asked, features)
    with pytest.raises(ValueError, match="does not give the best"):
        nearest.check_answers(np.array([[0, 2]]), asked, features)


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
    runs = ranking.measure_ranking(CPU, (20, 60), dim=8, ids=6, peer_rank=path)
    ours, _, *others = [run.result for run in runs.values()]
    assert 0 < ours[0] < 1 and 0 < ours[1] < 1 and len(others) == 2 and not recwarn.list
    for rank1, mean_ap in others:
        assert (np.ravel(rank1)[0], mean_ap) == pytest.approx(ours, abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert len({line.partition("rank-1")[2] for line in lines if "rank-1" in line}) == 1  # shown as they are


def test_distractors_give_the_scores_of_the_usual_way_on_the_whole_gallery(monkeypatch):
    galleries, write = [], ranking.write_gallery
    monkeypatch.setattr(ranking, "write_gallery", lambda *a: galleries.append(write(*a)) or galleries[0])
    runs = ranking.measure_distractors(CPU, (20, 60), distractors=(0, 40, 5000), dim=8, ids=6, rounds=1)
    (query, gallery), pids, camids = ranking.draw(20, 60, 8, 6)
    mapped = galleries[0]
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped[:60], gallery)
    results = [run.result for run in runs.values() if run.result is not None]
    distractors = np.array(mapped[60:])
    assert len(np.unique(distractors, axis=0)) == 5000 and min(pids[0]) > 0
    assert distractors.std() == pytest.approx(gallery.std(), rel=0.05)
    for number, result in zip((0, 40, 5000), results, strict=True):
        longer = np.concatenate([gallery, distractors[:number]])
        g_pids, g_camids = (np.append(ids[1], np.zeros(number, int)) for ids in (pids, camids))
        expected = ranking.argsort_and_loop(query, longer, pids[0], g_pids, camids[0], g_camids)
        assert result == pytest.approx(expected, abs=1e-6)
    assert results[0][1] > results[1][1] > results[2][1]


def test_a_disk_that_is_too_small(monkeypatch, tmp_path):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 4000, 4000)
    monkeypatch.setattr(ranking.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="TMPDIR"):
        ranking.write_gallery(tmp_path, np.ones((60, 8), np.float32), 60)  # 3,840 bytes, too close
    assert not list(tmp_path.iterdir())


def test_the_usual_reranking_gives_the_same_distances(tmp_path):
    peer = """
import numpy as np

def re_ranking(q_g, q_q, g_g):
    from tools.benchmark import ranking
    assert q_g.shape == (20, 100) and q_q.shape == (20, 20) and g_g.shape == (100, 100)
    (q, g), _, _ = ranking.draw(20, 100, 16, 12, noise=2.5)
    for distances, a, b in ((q_g, q, g), (q_q, q, q), (g_g, g, g)):
        assert np.allclose(distances**2, ((a[:, None] - b) ** 2).sum(2), atol=1e-2)
    return ranking.dense_rerank(q, g)
"""
    runs = ranking.measure_rerank(CPU, (20, 100), dim=16, ids=12, peer_rerank=fake_peer(tmp_path, peer))
    ours, *others = [np.asarray(run.result) for run in runs.values()]
    assert ours.shape == (20, 100) and ours.std() > 0.01 and len(others) == 2
    for other in others:
        assert np.allclose(ours, other, atol=1e-5)
    alone = ranking.measure_rerank(CPU, (20, 100), dim=16, ids=12, alone=True)
    assert [np.array_equal(run.result, ours) for run in alone.values()] == [True]


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (6, 1, 0.0), (9, 3, 1.0)])
def test_dense_reranking_in_float64(k1, k2, lambda_value):
    features, _, _ = ranking.draw(15, 90, 16, 10, noise=2.5)
    q, g = (f.astype(np.float64) for f in features)
    dense = ranking.dense_rerank(q, g, k1, k2, lambda_value)
    ours = metrics.rerank(q, g, k1=k1, k2=k2, lambda_value=lambda_value, distance="euclidean")
    assert np.allclose(dense, ours, atol=1e-9)


def test_what_is_said_of_a_difference():
    ours = torch.zeros(4, 5)
    result = np.zeros((4, 5), np.float32)
    result[0, 0], result[1, 1] = -0.25, 1e-6
    told = ranking.tell_difference(Run(result, [1], 0, 0), Run(ours, [1], 0, 0))
    assert told == "largest difference 2e-01, above 1e-5 in 5.0000%"


@pytest.mark.parametrize("flags", [["ranking", "--peer-rank"], ["rerank", "--peer-rerank"]])
def test_a_peer_that_is_not_there(flags, tmp_path, capsys):
    assert command.main([*flags, "nowhere/rank.py", "--device", "cpu"]) == 1
    assert "no Python file nowhere/rank.py" in capsys.readouterr().err
    assert command.main([*flags, fake_peer(tmp_path, "x = 1"), "--device", "cpu"]) == 1
    assert "has no function" in capsys.readouterr().err
