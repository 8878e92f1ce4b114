"""Metrics: hand-counted rankings, published numbers, a slow reference over random cases, block sizes, bad input."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import metrics

REFERENCE = np.load(Path(__file__).parent / "fixtures" / "rank_reference.npz")
NAMES = ("q", "g", "q_pids", "g_pids", "q_camids", "g_camids")


def reference_case(name):
    return [REFERENCE[f"{name}.{key}"] for key in NAMES]


# A slow reference in plain Python ------------------------------------------------------------------------------------


def ranked(distances, pid, camid, g_pids, g_camids, protocol):
    """Gallery indices of one query in order, junk left out."""
    keep = [g for g in range(len(g_pids)) if protocol == "no_camera_rule" or (g_pids[g], g_camids[g]) != (pid, camid)]
    return sorted(keep, key=lambda g: distances[g])  # Python's sort is stable


def slow_evaluate(distmat, q_pids, g_pids, q_camids, g_camids, protocol, max_rank):
    """CMC, mAP, mINP and the number of valid queries by walking down each list."""
    aps, inps, first_hits = [], [], []
    for distances, pid, camid in zip(distmat, q_pids, q_camids, strict=True):
        order = ranked(distances, pid, camid, g_pids, g_camids, protocol)
        hits, precisions = 0, []
        for rank, g in enumerate(order, start=1):
            if g_pids[g] == pid:
                hits += 1
                precisions.append(hits / rank)
        if hits:
            aps.append(sum(precisions) / hits)
            inps.append(precisions[-1])
            first_hits.append([g_pids[g] == pid for g in order].index(True) + 1)
    cmc = [sum(first <= rank for first in first_hits) / len(first_hits) for rank in range(1, max_rank + 1)]
    return np.array(cmc), sum(aps) / len(aps), sum(inps) / len(inps), len(aps)


def all_draws_cmc(distmat, q_pids, g_pids, q_camids, g_camids, max_rank):
    """CMC of the cuhk03 protocol by listing every way to keep one image of each person."""
    rows = []
    for distances, pid, camid in zip(distmat, q_pids, q_camids, strict=True):
        order = ranked(distances, pid, camid, g_pids, g_camids, "cuhk03")
        people = sorted({g_pids[g] for g in order})
        if pid not in people:
            continue
        cmc, draws = np.zeros(max_rank), 0
        for kept in itertools.product(*[[g for g in order if g_pids[g] == person] for person in people]):
            first = [g_pids[g] for g in order if g in kept].index(pid)
            cmc[first:] += 1
            draws += 1
        rows.append(cmc / draws)
    return np.mean(rows, axis=0)


def random_case(seed):
    """Integer features with many ties, junk, distractors (pid 0), galleries of 1 to 60; some query has a match."""
    rng = np.random.default_rng(seed)
    while True:
        num_q, num_g, dim = rng.integers(1, 12), rng.integers(1, 60), rng.integers(1, 6)
        q_pids, g_pids = rng.integers(1, 8, num_q), rng.integers(0, 8, num_g)
        q_camids, g_camids = rng.integers(0, 3, num_q), rng.integers(0, 3, num_g)
        queries, gallery = rng.integers(-2, 3, (num_q, dim)), rng.integers(-2, 3, (num_g, dim))
        if ((q_pids[:, None] == g_pids) & (q_camids[:, None] != g_camids)).any():
            return queries.astype(np.float32), gallery.astype(np.float32), q_pids, g_pids, q_camids, g_camids


def exact_distances(queries, gallery, distance):
    """Integers that order as the distance does, ties exact."""
    q, g = queries.astype(int).tolist(), gallery.astype(int).tolist()
    if distance == "euclidean":
        return [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in g] for x in q]
    rows = []
    for x in q:
        dots = [sum(a * b for a, b in zip(x, y, strict=True)) for y in g]
        squares = [sum(b * b for b in y) for y in g]
        # cos = dot / sqrt(square): order by sign(dot) dot^2 / square, all over one common denominator
        common = int(np.lcm.reduce([s for s in squares if s] or [1]))
        terms = zip(dots, squares, strict=True)
        rows.append([-dot * abs(dot) * (common // square) if square else 0 for dot, square in terms])
    return rows


def assert_scores(scores, expected):
    cmc, mean_ap, mean_inp, number = expected
    assert scores["num_valid_queries"] == number
    assert scores["mAP"] == pytest.approx(mean_ap, abs=1e-12)
    assert scores["mINP"] == pytest.approx(mean_inp, abs=1e-12)
    np.testing.assert_allclose(scores["cmc"].numpy(), cmc, atol=1e-7)


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["market_small", "market_wide"])
def test_reference_numbers(case):
    scores = metrics.evaluate(*reference_case(case), distance="euclidean")
    np.testing.assert_allclose(scores["cmc"].numpy(), REFERENCE[f"{case}.cmc"], atol=1e-6)
    assert scores["mAP"] == pytest.approx(float(REFERENCE[f"{case}.mAP"]), abs=1e-6)
    assert scores["num_valid_queries"] == len(REFERENCE[f"{case}.q"])


def test_cuhk03_agrees_with_random_draws():
    scores = metrics.evaluate(*reference_case("cuhk03_classic"), distance="euclidean", protocol="cuhk03")
    np.testing.assert_allclose(scores["cmc"].numpy(), REFERENCE["cuhk03_classic.cmc"], atol=0.003)
    assert scores["mAP"] == pytest.approx(float(REFERENCE["cuhk03_classic.mAP"]), abs=1e-6)
    assert scores["num_valid_queries"] == 100 - 29


def test_hand_counted_ranking():
    # Query 7 seen by camera 0. Ranked: 0.1 junk (7, same camera), 0.2 wrong, 0.3 hit, 0.4 wrong (distractor), 0.5 hit.
    distmat = [[0.5, 0.1, 0.4, 0.2, 0.3]]
    scores = metrics.evaluate_distances(distmat, [7], [7, 7, 0, 3, 7], [0], [2, 0, 1, 0, 1], max_rank=4)
    assert scores["cmc"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert scores["mAP"] == (1 / 2 + 2 / 4) / 2
    assert scores["mINP"] == 2 / 4
    assert scores["cmc"].dtype == torch.float32 and scores["cmc"].device.type == "cpu"


def test_mean_over_two_queries_with_different_numbers_of_matches():
    distmat = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    # Query 5: hits at ranks 1 and 4. Query 6: one hit at rank 3.
    scores = metrics.evaluate_distances(distmat, [5, 6], [5, 1, 6, 5], [0, 0], [1, 1, 1, 1], max_rank=5)
    assert scores["mAP"] == pytest.approx(((1 + 2 / 4) / 2 + 1 / 3) / 2)
    assert scores["mINP"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert scores["cmc"].tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]  # the gallery ends at 4, the last value is kept


def test_queries_without_a_match_are_left_out_and_counted():
    distmat = [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    # Query 5 has its only image under its own camera, query 9 has none, query 6 has its hit at rank 1 or 2.
    scores = metrics.evaluate_distances(distmat, [5, 6, 9], [5, 6], [1, 0, 0], [1, 1])
    assert scores["num_valid_queries"] == 1
    assert (scores["mAP"], scores["mINP"]) == (0.5, 0.5)
    assert scores["cmc"][:3].tolist() == [0.0, 1.0, 1.0]


def test_no_camera_rule_keeps_the_own_camera():
    distmat = [[3.0, 1.0, 2.0]]
    ids = [5], [5, 5, 6], [0], [1, 0, 1]
    assert metrics.evaluate_distances(distmat, *ids)["mAP"] == 1 / 2
    assert metrics.evaluate_distances(distmat, *ids, protocol="no_camera_rule")["mAP"] == (1 + 2 / 3) / 2


def test_equal_distances_rank_in_gallery_order():
    for place in range(6):
        g_pids = [1] * 6
        g_pids[place] = 5
        scores = metrics.evaluate_distances(np.ones((1, 6)), [5], g_pids, [0], [1] * 6, max_rank=6)
        assert scores["mAP"] == 1 / (place + 1)


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("dim", [64, 1000])
def test_a_collapsed_model_scores_as_gallery_order(distance, dim):
    # Every feature is the same: all distances tie, however the products are rounded.
    rng = np.random.default_rng(dim)
    feature = rng.standard_normal(dim).astype(np.float32)
    g_pids, q_pids = rng.integers(0, 20, 277), rng.integers(1, 20, 40)
    ids = q_pids, g_pids, np.zeros(40, int), np.ones(277, int)
    expected = slow_evaluate(np.zeros((40, 277)), *ids, "market1501", 50)
    features = np.tile(feature, (40, 1)), np.tile(feature, (277, 1))
    for block in (None, (5, 40), (16, 100), (33, 200)):
        assert_scores(metrics.evaluate(*features, *ids, distance=distance, block=block), expected)


@pytest.mark.parametrize("distance", metrics.DISTANCES)
def test_200_random_cases_equal_the_slow_reference(distance):
    for seed in range(200):
        protocol = "market1501" if seed % 4 else "no_camera_rule"
        queries, gallery, *ids = random_case(seed)
        distmat = exact_distances(queries, gallery, distance)
        expected = slow_evaluate(distmat, *ids, protocol, 20)
        scores = metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol, max_rank=20)
        assert_scores(scores, expected)
        assert (scores["distance"], scores["protocol"]) == (distance, protocol)
        assert_scores(metrics.evaluate_distances(np.array(distmat), *ids, protocol=protocol, max_rank=20), expected)


def test_cuhk03_equals_the_list_of_all_draws():
    for seed in range(15):
        rng = np.random.default_rng(seed)
        q_pids, g_pids = rng.integers(1, 4, 5), rng.integers(0, 5, 11)
        q_pids[0], g_pids[0] = 1, 1  # under different cameras: one query has a match
        q_camids, g_camids = rng.integers(0, 2, 5), rng.integers(0, 2, 11)
        g_camids[0] = 1 - q_camids[0]
        distmat = rng.integers(0, 6, (5, 11))
        ids = q_pids, g_pids, q_camids, g_camids
        for block in (None, (1, 1), (2, 4)):
            scores = metrics.evaluate_distances(distmat, *ids, protocol="cuhk03", max_rank=6, block=block)
            np.testing.assert_allclose(scores["cmc"].numpy(), all_draws_cmc(distmat, *ids, 6), atol=1e-7)
            _, mean_ap, mean_inp, number = slow_evaluate(distmat, *ids, "cuhk03", 6)
            assert (scores["mAP"], scores["mINP"]) == (pytest.approx(mean_ap), pytest.approx(mean_inp))
            assert scores["num_valid_queries"] == number


def test_cuhk03_cut_at_max_rank_is_the_start_of_the_longer_curve():
    case = reference_case("cuhk03_classic")
    long = metrics.evaluate(*case, protocol="cuhk03", max_rank=120)["cmc"]
    assert torch.equal(metrics.evaluate(*case, protocol="cuhk03", max_rank=3)["cmc"], long[:3])
    assert long[-1] == pytest.approx(1.0, abs=1e-6)


# Blocks and kinds of arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_block_sizes_give_the_same_bits(distance, protocol):
    rng = np.random.default_rng(3)
    queries, gallery = rng.integers(-3, 4, (12, 4)).astype(np.float32), rng.integers(-3, 4, (60, 4)).astype(np.float32)
    ids = rng.integers(1, 9, 12), rng.integers(-1, 12, 60), rng.integers(0, 3, 12), rng.integers(0, 3, 60)
    whole = metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol)
    for block in ((1, 1), (7, 7), (1000, 1000), (12, 1), (1, 60), (3, 32)):
        scores = metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol, block=block)
        assert all(torch.equal(value, whole["queries"][name]) for name, value in scores.pop("queries").items())
        assert torch.equal(scores.pop("cmc"), whole["cmc"])
        assert scores == {key: whole[key] for key in scores}


@pytest.mark.parametrize("seed", range(10))
def test_block_sizes_give_the_same_bits_where_queries_have_unlike_numbers_of_matches(seed):
    rng = np.random.default_rng(seed)
    distmat, pids = rng.random((40, 300)), rng.geometric(0.1, 340)  # persons of 1 to 40 images
    ids = pids[:40], pids[40:], np.zeros(40, int), np.ones(300, int)
    whole = metrics.evaluate_distances(distmat, *ids)
    for size in (1, 3, 7):  # a block is as wide as the most matches that one of its queries has
        scores = metrics.evaluate_distances(distmat, *ids, block=(size, 300))
        assert (scores["mAP"], scores["mINP"]) == (whole["mAP"], whole["mINP"])


@pytest.mark.parametrize("block", [(7, 50), (1000, 1000), (33, 65)])
def test_blocks_of_real_features_agree_with_the_reference(block):
    scores = metrics.evaluate(*reference_case("market_small"), distance="euclidean", block=block)
    assert scores["mAP"] == pytest.approx(float(REFERENCE["market_small.mAP"]), abs=1e-6)


def test_no_block_of_distances_is_larger_than_asked(monkeypatch):
    seen = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **kw: seen.append((len(a), b.shape[1])) or real(a, b, **kw))
    metrics.evaluate(*reference_case("market_wide"), block=(20, 128))
    assert max(rows for rows, _ in seen) <= 20 and max(columns for _, columns in seen) <= 128
    assert len(seen) >= 5 * 24


KINDS = ["tensor", "list", "readonly", "fortran", "memmap", "float64", "ids as tensors", "int32 ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays(kind, tmp_path):
    queries, gallery, *ids = reference_case("market_small")
    expected = metrics.evaluate(queries, gallery, *ids)["mAP"]
    if kind == "tensor":
        queries, gallery = torch.from_numpy(queries).requires_grad_(), torch.from_numpy(gallery)
    elif kind == "list":
        queries, gallery = queries.tolist(), gallery.tolist()
    elif kind == "readonly":
        gallery = gallery.copy()
        gallery.flags.writeable = False
    elif kind == "fortran":
        gallery = np.asfortranarray(gallery)
    elif kind == "memmap":
        np.save(tmp_path / "gallery.npy", gallery)
        gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    elif kind == "float64":
        queries = queries.astype(np.float64)
    elif kind == "ids as tensors":
        ids = [torch.from_numpy(part) for part in ids]
    else:
        ids = [part.astype(np.int32) for part in ids]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.evaluate(queries, gallery, *ids)["mAP"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    queries, gallery, *ids = reference_case("market_wide")
    queries, gallery = torch.from_numpy(queries).to(dtype), torch.from_numpy(gallery).to(dtype)
    expected = metrics.evaluate(queries.float(), gallery.float(), *ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = metrics.evaluate(queries, gallery, *ids)
    assert (scores["mAP"], scores["mINP"]) == (expected["mAP"], expected["mINP"])


def test_lowered_matmul_precision_is_set_aside_and_restored():
    case = reference_case("market_wide")
    expected = metrics.evaluate(*case)["mAP"]
    torch.set_float32_matmul_precision("medium")  # bf16 products, where the CPU has them
    try:
        assert metrics.evaluate(*case)["mAP"] == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_cosine_ignores_length_and_euclidean_does_not():
    queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[10.0, 1.0], [0.9, 0.5], [0.0, 0.0]])
    ids = [1], [1, 2, 3], [0], [1, 1, 1]
    assert metrics.evaluate(queries, gallery, *ids, distance="cosine")["mAP"] == 1.0
    assert metrics.evaluate(queries, gallery, *ids, distance="euclidean")["mAP"] == 1 / 3


def test_inputs_are_left_as_they_were():
    queries, gallery, *ids = (torch.from_numpy(part) for part in reference_case("market_small"))
    distmat = torch.cdist(queries, gallery)
    copies = [part.clone() for part in (queries, gallery, distmat)]
    metrics.evaluate(queries, gallery, *ids)
    metrics.evaluate_distances(distmat, *ids)
    assert all(torch.equal(*pair) for pair in zip(copies, (queries, gallery, distmat), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", ["market_small", "market_wide", "cuhk03_classic"])
def test_gpu_gives_the_numbers_of_the_cpu(case):
    protocol = "cuhk03" if case == "cuhk03_classic" else "market1501"
    queries, gallery, *ids = reference_case(case)
    expected = metrics.evaluate(queries, gallery, *ids, distance="euclidean", protocol=protocol)
    scores = metrics.evaluate(torch.from_numpy(queries).cuda(), gallery, *ids, distance="euclidean", protocol=protocol)
    assert scores["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    torch.testing.assert_close(scores["cmc"], expected["cmc"])


# Bad input -----------------------------------------------------------------------------------------------------------

BAD = {
    "NaN": ({0: "nan"}, "query features hold NaN or infinity, first in row 1"),
    "infinity": ({1: "inf"}, "gallery features hold NaN or infinity, first in row 1"),
    "too long": ({1: "huge"}, "scale the features down"),
    "no query": ({0: np.zeros((0, 3))}, "query features must be a matrix"),
    "no gallery": ({1: np.zeros((0, 3))}, "gallery features must be a matrix"),
    "1-D features": ({0: np.zeros(3)}, "query features must be a matrix"),
    "other width": ({1: np.zeros((4, 5))}, "query features have 3 columns, gallery features 5"),
    "float pids": ({2: [1.0, 2.0]}, "query_pids must be integers"),
    "short pids": ({3: [1, 2]}, r"gallery_pids must have the shape \(4,\).*\(2,\)"),
    "2-D camids": ({4: [[0], [0]]}, r"query_camids must have the shape \(2,\)"),
    "bool camids": ({5: [True] * 4}, "gallery_camids must be integers"),
    "no match": ({2: [8, 9]}, "none of the 2 queries can be matched: protocol market1501"),
    "one camera": ({5: [0, 0, 0, 0]}, "no_camera_rule"),
    "distance": ({"distance": "l1"}, "unknown distance 'l1': choose one of cosine, euclidean"),
    "protocol": ({"protocol": "mars"}, "unknown protocol 'mars': choose one of market1501, cuhk03"),
    "max_rank": ({"max_rank": 0}, "max_rank must be a whole number from 1, not 0"),
    "block": ({"block": (0, 5)}, "block must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_error(case):
    change, message = BAD[case]
    args = [np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), [1, 2], [1, 2, 1, 2], [0, 0], [1, 1, 1, 1]]
    metrics.evaluate(*args)  # is fine before the change
    options = {}
    for key, value in change.items():
        if isinstance(key, str):
            options[key] = value
        elif isinstance(value, str):
            args[key][1, 2] = {"nan": np.nan, "inf": np.inf, "huge": 1e30}[value]
        else:
            args[key] = value
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(*args, **options)


def test_bad_distances_get_a_clear_error():
    ids = [1, 2], [1, 2, 1], [0, 0], [1, 1, 1]
    bad = torch.ones(2, 3)
    bad[1, 0] = torch.nan
    with pytest.raises(ValueError, match="distances hold NaN or infinity, first in row 1"):
        metrics.evaluate_distances(bad, *ids)
    with pytest.raises(ValueError, match=r"query_pids must have the shape \(3,\)"):
        metrics.evaluate_distances(torch.ones(3, 2), *ids)
    with pytest.raises(ValueError, match="none of the 2 .* no_camera_rule needs the same pid"):
        metrics.evaluate_distances(torch.ones(2, 3), [8, 9], *ids[1:], protocol="no_camera_rule")
    assert metrics.evaluate_distances(1e30 * torch.ones(2, 3), *ids)["mAP"] > 0  # large but finite is fine
