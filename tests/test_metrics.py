"""Metrics: hand counts, published numbers, slow references in plain Python, block sizes, intervals, bad input."""

import gc
import itertools
import math
import tempfile
import warnings
import weakref
from fractions import Fraction
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


def slow_queries(distmat, q_pids, g_pids, q_camids, g_camids, protocol, distances=None):
    """What evaluate says of each query; distmat orders the items, distances are those to report."""
    entries = []
    for number, (keys, pid, camid) in enumerate(zip(distmat, q_pids, q_camids, strict=True)):
        reported = keys if distances is None else distances[number]
        order = ranked(keys, pid, camid, g_pids, g_camids, protocol)
        ranks = [rank for rank, g in enumerate(order, start=1) if g_pids[g] == pid]
        wrong = [g for g in order if g_pids[g] != pid]
        nearest, n = (order[ranks[0] - 1] if ranks else -1), len(ranks)
        entries.append({
            "ap": sum(i / rank for i, rank in enumerate(ranks, start=1)) / n if n else 0,
            "inp": n / ranks[-1] if n else 0,
            "matches": n,
            "first_hit": ranks[0] if n else 0,
            "nearest_match": nearest,
            "nearest_wrong": wrong[0] if wrong else -1,
            "match_distance": reported[nearest] if n else math.inf,
            "wrong_distance": reported[wrong[0]] if wrong else math.inf,
        })
    return entries


def slow_scores(entries, max_rank):
    """CMC, mAP, mINP and the number of valid queries out of slow_queries."""
    valid = [entry for entry in entries if entry["matches"]]
    cmc = [sum(entry["first_hit"] <= rank for entry in valid) / len(valid) for rank in range(1, max_rank + 1)]
    mean_ap, mean_inp = (sum(entry[name] for entry in valid) / len(valid) for name in ("ap", "inp"))
    return np.array(cmc), mean_ap, mean_inp, len(valid)


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
        num_q, num_g, dim = rng.integers(1, 12), rng.integers(1, rng.choice([5, 60])), rng.integers(1, 6)
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


def real_distances(queries, gallery, distance):
    """The distances themselves, in double precision; a vector of zeros has the cosine 0 to all."""
    rows = []
    for x in queries.tolist():
        if distance == "euclidean":
            rows.append([sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in gallery.tolist()])
        else:
            dots = [sum(a * b for a, b in zip(x, y, strict=True)) for y in gallery.tolist()]
            lengths = [math.hypot(*x) * math.hypot(*y) for y in gallery.tolist()]
            rows.append([1 - (dot / length if length else 0) for dot, length in zip(dots, lengths, strict=True)])
    return rows


def assert_scores(scores, expected):
    cmc, mean_ap, mean_inp, number = expected
    assert scores["num_valid_queries"] == number
    assert scores["mAP"] == pytest.approx(mean_ap, abs=1e-12)
    assert scores["mINP"] == pytest.approx(mean_inp, abs=1e-12)
    np.testing.assert_allclose(scores["cmc"].numpy(), cmc, atol=1e-7)


def assert_queries(queries, expected, tolerance=0.0):
    """The dict of tensors against slow_queries: whole numbers alike, distances within the tolerance."""
    assert set(queries) == set(expected[0])
    for name, values in queries.items():
        assert values.device.type == "cpu" and values.shape == (len(expected),)
        wanted = [entry[name] for entry in expected]
        if name in ("matches", "first_hit", "nearest_match", "nearest_wrong"):
            assert values.dtype == torch.int64 and values.tolist() == wanted, name
        else:
            np.testing.assert_allclose(values.numpy(), wanted, rtol=0, atol=tolerance or 1e-12, err_msg=name)


def same_bits(found, expected):
    """Whether two answers, tensors and numbers in dicts, are equal in every bit."""
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(same_bits(found[name], expected[name]) for name in expected)
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    return found == expected


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


def test_many_ties_at_once():
    # 60 queries with 30 matches each, all at one distance: 1800 places to settle among equals.
    ids = [1] * 60, [1, 2, 2] * 30, [0] * 60, [1] * 90
    scores = metrics.evaluate_distances(np.zeros((60, 90)), *ids)
    assert scores["mAP"] == pytest.approx(sum(i / (3 * i - 2) for i in range(1, 31)) / 30)
    assert scores["mINP"] == pytest.approx(30 / 88)


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
    expected = slow_queries(np.zeros((40, 277)), *ids, "market1501")
    features = np.tile(feature, (40, 1)), np.tile(feature, (277, 1))
    for block in (None, (5, 40), (16, 100), (33, 200)):
        scores = metrics.evaluate(*features, *ids, distance=distance, block=block)
        assert_scores(scores, slow_scores(expected, 50))
        assert_queries(scores["queries"], expected, tolerance=1e-3)  # distances near 0 are rounded, not the ranks


@pytest.mark.parametrize("distance", metrics.DISTANCES)
def test_200_random_cases_equal_the_slow_reference(distance):
    for seed in range(200):
        protocol = "market1501" if seed % 4 else "no_camera_rule"
        queries, gallery, *ids = random_case(seed)
        block = [None, (7, 7), (1000, 1000), (3, 11), (1, 1) if len(gallery) < 5 else None][seed % 5]
        distmat, distances = (f(queries, gallery, distance) for f in (exact_distances, real_distances))
        expected = slow_queries(distmat, *ids, protocol, distances)
        options = {"protocol": protocol, "max_rank": 20, "block": block}
        scores = metrics.evaluate(queries, gallery, *ids, distance=distance, **options)
        assert_scores(scores, slow_scores(expected, 20))
        assert_queries(scores["queries"], expected, tolerance=2e-6)
        assert (scores["distance"], scores["protocol"]) == (distance, protocol)
        if (seed + len(distance)) % 2:  # half of the cases for each distance, all of them once
            given = metrics.evaluate_distances(np.array(distmat), *ids, **options)
            assert_scores(given, slow_scores(expected, 20))
            assert_queries(given["queries"], slow_queries(distmat, *ids, protocol))
            assert (given["distance"], given["protocol"]) == ("given", protocol)


def test_the_random_cases_hold_what_they_are_there_for():
    entries, ties = [], 0
    for seed in range(200):
        queries, gallery, *ids = random_case(seed)
        distmat = exact_distances(queries, gallery, "euclidean")
        entries += slow_queries(distmat, *ids, "market1501" if seed % 4 else "no_camera_rule")
        ties += sum(len(set(row)) < len(row) for row in distmat)
    assert ties > 500
    assert sum(entry["matches"] == 0 for entry in entries) > 50
    assert sum(entry["nearest_wrong"] == -1 for entry in entries) > 5
    assert sum(entry["first_hit"] > 3 for entry in entries) > 100


def test_hand_counted_queries():
    # Query 7, camera 0: 0.1 junk, 0.2 wrong, 0.3 hit, 0.4 and twice 0.9 wrong, 0.95 hit. Query 8 has no match. Query 9:
    # nothing wrong is nearer than its two matches, which tie.
    distmat = [[0.95, 0.1, 0.4, 0.2, 0.3, 0.9, 0.9], [6, 5, 4, 3, 2, 7, 8], [3, 3, 3, 3, 3, 2, 2]]
    scores = metrics.evaluate_distances(distmat, [7, 8, 9], [7, 7, 0, 3, 7, 9, 9], [0, 0, 0], [2, 0, 1, 0, 1, 1, 1])
    expected = {
        "ap": [(1 / 2 + 2 / 6) / 2, 0, 1], "inp": [2 / 6, 0, 1], "matches": [2, 0, 2], "first_hit": [2, 0, 1],
        "nearest_match": [4, -1, 5], "nearest_wrong": [3, 4, 0],
        "match_distance": [0.3, math.inf, 2], "wrong_distance": [0.2, 2, 3],
    }  # fmt: skip
    assert {name: values.tolist() for name, values in scores["queries"].items()} == expected


def test_a_gallery_without_a_wrong_answer():
    queries = metrics.evaluate(np.eye(2), np.eye(2)[[0, 1, 1]], [1, 1], [1, 1, 1], [0, 1], [1, 1, 0])["queries"]
    assert queries["nearest_wrong"].tolist() == [-1, -1] and queries["wrong_distance"].tolist() == [math.inf] * 2
    assert queries["matches"].tolist() == [2, 1] and queries["nearest_match"].tolist() == [0, 2]


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
            _, mean_ap, mean_inp, number = slow_scores(slow_queries(distmat, *ids, "cuhk03"), 6)
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
def test_block_sizes_give_the_same_bits(distance, protocol, monkeypatch):
    rng = np.random.default_rng(3)
    queries, gallery = rng.integers(-3, 4, (12, 4)).astype(np.float32), rng.integers(-3, 4, (60, 4)).astype(np.float32)
    ids = rng.integers(1, 9, 12), rng.integers(-1, 12, 60), rng.integers(0, 3, 12), rng.integers(0, 3, 60)
    whole = metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol)
    for block in ((1, 1), (7, 7), (1000, 1000), (12, 1), (1, 60), (3, 32)):
        assert same_bits(
            metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol, block=block), whole
        )
    monkeypatch.setattr(metrics, "HELD", {"cpu": 0})  # no block is kept: each is multiplied anew
    for block in (None, (7, 7)):
        assert same_bits(
            metrics.evaluate(queries, gallery, *ids, distance=distance, protocol=protocol, block=block), whole
        )


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


# Iterators of blocks and files ----------------------------------------------------------------------------------------


def in_blocks(array, sizes):
    """A generator of the array's rows in blocks of these sizes, the last one repeated."""
    start = 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if start >= len(array):
            return
        yield array[start : start + size]
        start += size


def integer_case(num_q=13, num_g=47, dim=4, seed=5):
    """Integer-valued float32 features with ties, and ids with junk, matches and distractors, for any function."""
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(-3, 4, (number, dim)).astype(np.float32) for number in (num_q, num_g))
    ids = rng.integers(1, 6, num_q), rng.integers(0, 6, num_g), rng.integers(0, 3, num_q), rng.integers(0, 3, num_g)
    return queries, gallery, *ids


FUNCTIONS = {  # each takes query features, gallery features and the four ids
    "evaluate": lambda q, g, *ids, **options: metrics.evaluate(q, g, *ids, **options),
    "verification": lambda q, g, *ids, **options: metrics.verification(q, g, *ids, **{"bins": 64} | options),
    "rerank": lambda q, g, *ids, **options: metrics.rerank(q, g, **{"k1": 5, "k2": 2} | options),
    "expand_queries": lambda q, g, *ids, **options: metrics.expand_queries(q, g, **options),
}

AS_BLOCKS = {
    "numpy": lambda array: array,
    "tensor": torch.from_numpy,
    "half": lambda array: torch.from_numpy(array).half(),
    "numpy half": lambda array: array.astype(np.float16),
    "bfloat16": lambda array: torch.from_numpy(array).bfloat16(),
    "strided": lambda array: np.asfortranarray(np.repeat(array, 2, axis=1))[:, ::2],
    "gradients": lambda array: torch.from_numpy(array).requires_grad_() * 1,
}


@pytest.mark.parametrize("kind", AS_BLOCKS)
def test_iterators_of_blocks_give_the_bits_of_the_array(kind):
    queries, gallery, *ids = integer_case()
    expected, kept = metrics.evaluate(queries, gallery, *ids), AS_BLOCKS[kind]
    for sizes in ((1,), (7,), (1000,), (5, 1, 0, 20, 3)):
        blocks = in_blocks(kept(gallery), sizes)
        assert same_bits(metrics.evaluate(queries, blocks, *ids), expected)
    both = [in_blocks(kept(array), (4, 5, 1)) for array in (queries, gallery)]
    assert same_bits(metrics.evaluate(*both, *ids), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int8])
def test_blocks_of_wide_numbers_are_compared_as_the_array_is(dtype):
    rng = np.random.default_rng(1)
    features = [rng.integers(-100, 100, (n, 3)) for n in (5, 30)]
    if dtype == np.int64:  # differences that float32 cannot hold
        features = [part + 2**30 for part in features]
    elif dtype == np.float64:
        features = [1 + part * 1e-12 for part in features]
    queries, gallery = (part.astype(dtype) for part in features)
    ids = [1] * 5, [1, 2] * 15, [0] * 5, [1] * 30
    expected = metrics.evaluate(queries, gallery, *ids, distance="euclidean")
    blocks = in_blocks(gallery, (4, 9))
    assert same_bits(metrics.evaluate(in_blocks(queries, (2,)), blocks, *ids, distance="euclidean"), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_iterators_and_files(name, tmp_path):
    queries, gallery, *ids = integer_case()
    expected = FUNCTIONS[name](queries, gallery, *ids)
    files = []
    for part in (queries, gallery):
        np.save(tmp_path / "part.npy", part)
        files.append(np.load(tmp_path / "part.npy", mmap_mode="r"))
        (tmp_path / "part.npy").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(FUNCTIONS[name](in_blocks(queries, (3, 4)), in_blocks(gallery, (10, 1)), *ids), expected)
        assert same_bits(FUNCTIONS[name](*files, *ids), expected)
        assert same_bits(FUNCTIONS[name](torch.from_numpy(queries), gallery, *ids), expected)


def test_multi_query_takes_an_iterator():
    images = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    ids = [1, 1, 1, 2, 2, 2, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1, 0, 0], [2, 1, 2], [0, 0, 1]
    assert same_bits(metrics.multi_query(in_blocks(images, (2, 5)), *ids), metrics.multi_query(images, *ids))


def test_one_block_of_an_iterator_is_held_at_a_time():
    queries, gallery, *ids = integer_case()
    alive = []

    def blocks():
        for start in range(0, len(gallery), 5):
            assert sum(block() is not None for block in alive) <= 1
            block = gallery[start : start + 5].copy()
            alive.append(weakref.ref(block))
            yield block
            del block

    metrics.evaluate(queries, blocks(), *ids)
    gc.collect()
    assert len(alive) == 10 and not any(block() is not None for block in alive)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at open files the way of Linux")
@pytest.mark.parametrize("fails", [False, True])
def test_the_temporary_file_of_an_iterator_is_gone_afterwards(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def files():
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [str(link) for link in links if str(tmp_path) in str(link)]

    queries, gallery, *ids = integer_case()
    during = []

    def blocks():
        for block in in_blocks(gallery, (20,)):
            yield block
            during.append(len(files()))
        if fails:
            yield gallery[:, :2]

    if fails:
        with pytest.raises(ValueError, match="block 3"):
            metrics.evaluate(queries, blocks(), *ids)
    else:
        metrics.evaluate(queries, blocks(), *ids)
    gc.collect()
    assert during == [1, 1, 1]  # it is in that folder, as long as it is needed
    assert not files() and not list(tmp_path.iterdir())
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


BAD_BLOCKS = {
    "used up": (lambda rows: in_blocks(rows, (50,)), "gave no block, or empty ones: it may have been used up before"),
    "no block": (lambda rows: iter([]), "gave no block, or empty ones"),
    "empty blocks": (lambda rows: iter([rows[:0], rows[:0]]), "gave no block, or empty ones"),
    "other width": (lambda rows: iter([rows[:9], rows[9:, :3]]), r"block 1 of the gallery .*\(n, 4\), .* \(38, 3\)"),
    "1-D": (lambda rows: iter(rows), r"block 0 of the gallery features must hold .* shape \(n, D\), .* not .* \(4,\)"),
    "1-D later": (lambda rows: iter([rows, rows[:, 0]]), r"block 1 of the gallery .* \(n, 4\), .* not .* \(47,\)"),
    "bool": (lambda rows: iter([rows > 0]), r"block 0 of the gallery features must hold real .* not torch.bool"),
    "None": (lambda rows: iter([rows, None]), "block 1 of the gallery features must be numbers"),
    "finer": (lambda rows: iter([rows[:9], rows[9:].astype(np.float64)]), "block 1 .* all blocks of one precision"),
    "NaN": (lambda rows: iter([rows[:9], rows[9:] * np.nan]), "gallery features hold NaN or infinity, first in row 9"),
    "too few": (lambda rows: in_blocks(rows[:-1], (20,)), r"gallery_pids must have the shape \(46,\)"),
    "other width than the queries": (lambda rows: iter([rows[:, :3]]), "query features have 4 columns, gallery .* 3"),
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_bad_iterators_get_a_clear_error(case):
    queries, gallery, *ids = integer_case()
    make, message = BAD_BLOCKS[case]
    blocks = make(gallery)
    if case == "used up":
        list(blocks)
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(queries, blocks, *ids)


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_block_sizes_give_the_same_bits_for_every_function(name, distance):
    queries, gallery, *ids = integer_case(7, 23)
    whole = FUNCTIONS[name](queries, gallery, *ids, distance=distance)
    for block in ((1, 1), (7, 7), (1000, 1000), (4, 13)):
        found = FUNCTIONS[name](queries, gallery, *ids, distance=distance, block=block)
        if name == "rerank":  # sums over neighbours are split elsewhere
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
        else:
            assert same_bits(found, whole)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_takes_larger_blocks_than_asked(name, monkeypatch):
    seen, real = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **kw: seen.append((len(a), b.shape[1])) or real(a, b, **kw))
    FUNCTIONS[name](*integer_case(num_q=70, num_g=200), block=(20, 32))
    assert max(rows for rows, _ in seen) <= 20 and max(columns for _, columns in seen) <= 32
    assert len(seen) >= 4 * 7


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_is_touched_by_autocast_or_gradients(name):
    queries, gallery, *ids = integer_case(30, 40)
    expected = FUNCTIONS[name](queries / 7, gallery / 7, *ids)
    tensors = [(torch.from_numpy(part) / 7).requires_grad_() for part in (queries, gallery)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FUNCTIONS[name](*tensors, *ids)
    assert same_bits(found, expected)
    assert isinstance(found, dict) or not found.requires_grad
    assert all(torch.equal(t, torch.from_numpy(a) / 7) for t, a in zip(tensors, (queries, gallery), strict=True))


# Open sets -----------------------------------------------------------------------------------------------------------


def slow_open_set(distmat, q_pids, g_pids, q_camids, g_camids, far):
    """DIR, FAR and threshold by trying every distance, and infinity, as the threshold."""
    alarms, answers = [], []  # per query: nearest item if the person were away; nearest item and whether it is right
    for distances, pid, camid in zip(distmat, q_pids, q_camids, strict=True):
        order = ranked(distances, pid, camid, g_pids, g_camids, "market1501")
        alarms.append(min((distances[g] for g in order if g_pids[g] != pid), default=math.inf))
        if any(g_pids[g] == pid for g in order):
            answers.append((distances[order[0]], g_pids[order[0]] == pid))
    reached = {}
    for threshold in sorted({float(d) for row in distmat for d in row} | set(alarms) | {math.inf}):
        rate = Fraction(sum(alarm < threshold for alarm in alarms), len(alarms))
        if rate <= far:
            right = sum(hit and distance < threshold for distance, hit in answers)
            reached = {"dir": right / len(answers), "far": float(rate), "threshold": threshold}
    return reached


def test_open_set_equals_the_slow_reference_over_every_threshold():
    for seed in range(60):
        _, _, *ids = random_case(seed)
        rng = np.random.default_rng(1000 + seed)
        size = len(ids[0]), len(ids[1])
        distmat = rng.integers(0, 9, size) / 1 if seed % 2 else rng.random(size)  # ties in every other case
        if not any(entry["matches"] for entry in slow_queries(distmat, *ids, "market1501")):
            continue
        queries = metrics.evaluate_distances(distmat, *ids)["queries"]
        for far in (Fraction(1, 100), Fraction(1, 10), Fraction(1, 5), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10)):
            assert metrics.open_set(queries, float(far)) == slow_open_set(distmat, *ids, far)


def test_hand_counted_open_set():
    # Ten queries, the nearest wrong answers at 1 .. 10; eight have a match: six nearer than the wrong answer (0.5 away
    # each), one farther (hit at rank 2), one at 4.5 with its wrong answer at 5. Two have none.
    wrong = torch.arange(1.0, 11.0)
    match = torch.tensor([0.5, 0.5, 2.5, 3.9, 4.5, 5.5, 6.5, 9.0, torch.inf, torch.inf])
    matches, first_hit = torch.tensor([1] * 8 + [0] * 2), torch.tensor([1, 1, 1, 1, 1, 1, 1, 2, 0, 0])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    queries = {"wrong_distance": wrong, "match_distance": match, "matches": matches, "first_hit": first_hit}
    queries = {name: values[order] for name, values in queries.items()}
    # FAR 0.1: one wrong answer may be closer, so the threshold is 2: two of eight are answered rightly.
    assert metrics.open_set(queries, far=0.1) == {"dir": 2 / 8, "far": 0.1, "threshold": 2.0}
    assert metrics.open_set(queries, far=0.19) == metrics.open_set(queries, far=0.1)
    assert metrics.open_set(queries, far=0.5) == {"dir": 6 / 8, "far": 0.5, "threshold": 6.0}
    assert metrics.open_set(queries, far=0.95) == {"dir": 7 / 8, "far": 0.9, "threshold": 10.0}
    assert metrics.open_set(queries) == {"dir": 2 / 8, "far": 0.0, "threshold": 1.0}


def test_open_set_does_not_answer_at_the_threshold():
    queries = {
        "wrong_distance": torch.tensor([2.0, 2.0, 2.0, 5.0]), "match_distance": torch.tensor([2.0, 1.0, 3.0, 2.0]),
        "matches": torch.ones(4, dtype=torch.int64), "first_hit": torch.tensor([1, 1, 2, 1]),
    }  # fmt: skip
    # One false alarm would be allowed, but the three at 2 come together: the threshold is 2 and lets in none of them.
    assert metrics.open_set(queries, far=0.25) == {"dir": 1 / 4, "far": 0.0, "threshold": 2.0}


def test_queries_without_a_match_count_in_the_far_alone():
    ids = [1, 2, 8, 9], [1, 2, 3], [0] * 4, [1] * 3
    distmat = [[1.0, 5.0, 6.0], [5.0, 1.0, 6.0], [7.0, 7.0, 3.0], [7.0, 7.0, 0.5]]
    queries = metrics.evaluate_distances(distmat, *ids)["queries"]
    assert metrics.open_set(queries, far=0.2) == {"dir": 0.0, "far": 0.0, "threshold": 0.5}
    assert metrics.open_set(queries, far=0.25) == {"dir": 1.0, "far": 0.25, "threshold": 3.0}


@pytest.mark.parametrize("alarms", [7, 29, 57, 58])  # 0.29 * 100 is 28.999999999999996, 0.07 * 100 7.000000000000001
def test_a_far_that_is_reached_exactly_is_allowed(alarms):
    queries = {"wrong_distance": torch.arange(100.0), "match_distance": torch.full((100,), -1.0)}
    queries |= {name: torch.ones(100, dtype=torch.int64) for name in ("matches", "first_hit")}
    assert metrics.open_set(queries, far=alarms / 100) == {"dir": 1.0, "far": alarms / 100, "threshold": alarms}


def test_open_set_without_wrong_answers_takes_everybody():
    queries = metrics.evaluate(np.eye(2), np.eye(2), [1, 1], [1, 1], [0, 0], [1, 1])["queries"]
    assert metrics.open_set(queries, far=0.5) == {"dir": 1.0, "far": 0.0, "threshold": math.inf}


@pytest.mark.parametrize("far", [0, 1, -0.1, 1.5, math.nan])
def test_open_set_wants_a_rate(far):
    queries = metrics.evaluate_distances([[1.0, 2.0]], [1], [1, 2], [0], [1, 1])["queries"]
    with pytest.raises(ValueError, match="far must lie between 0 and 1"):
        metrics.open_set(queries, far)


# Verification --------------------------------------------------------------------------------------------------------


def slow_pairs(distances, q_pids, g_pids, q_camids, g_camids, protocol):
    """Genuine and impostor pairs as (distance, query's pid, item's pid), junk left out."""
    genuine, impostor = [], []
    for q, g in itertools.product(range(len(q_pids)), range(len(g_pids))):
        pair = distances[q][g], q_pids[q], g_pids[g]
        if q_pids[q] != g_pids[g]:
            impostor.append(pair)
        elif q_camids[q] != g_camids[g] or protocol == "no_camera_rule":
            genuine.append(pair)
    return genuine, impostor


def real_case(seed, num_q=9, num_g=31, dim=5):
    """Normal features of a few persons, whose distances do not tie: features and ids."""
    rng = np.random.default_rng(seed)
    q_pids, g_pids = rng.integers(1, 6, num_q), rng.integers(0, 8, num_g)
    centres = rng.standard_normal((8, dim))
    queries, gallery = (centres[pids] + 0.7 * rng.standard_normal((len(pids), dim)) for pids in (q_pids, g_pids))
    return queries, gallery, q_pids, g_pids, rng.integers(0, 3, num_q), rng.integers(0, 3, num_g)


@pytest.mark.parametrize("protocol", ["market1501", "no_camera_rule"])
@pytest.mark.parametrize("distance", metrics.DISTANCES)
def test_verification_equals_the_slow_reference_at_every_threshold(distance, protocol):
    for seed in range(4):
        queries, gallery, *ids = real_case(seed)
        distances = real_distances(queries, gallery, distance)
        genuine, impostor = slow_pairs(distances, *ids, protocol)
        options = {"distance": distance, "protocol": protocol, "bins": 37}
        roc = metrics.verification(queries, gallery, *ids, **options)
        longest = (max(map(np.linalg.norm, queries)) + max(map(np.linalg.norm, gallery))) ** 2
        longest = longest if distance == "euclidean" else 2.0
        thresholds = roc["threshold"].tolist()
        np.testing.assert_allclose(thresholds, np.linspace(0, longest, 38))
        assert roc["resolution"] == pytest.approx(longest / 37)
        assert (roc["num_genuine"], roc["num_impostor"]) == (len(genuine), len(impostor))
        assert roc["tpr"].tolist() == [sum(pair[0] < t for pair in genuine) / len(genuine) for t in thresholds]
        assert roc["fmr"].tolist() == [sum(pair[0] < t for pair in impostor) / len(impostor) for t in thresholds]
        assert roc["fnmr"].tolist() == [sum(pair[0] >= t for pair in genuine) / len(genuine) for t in thresholds]
        rates = list(zip(roc["fmr"].tolist(), roc["fnmr"].tolist(), strict=True))
        assert roc["eer"] == sum(min(rates, key=lambda pair: abs(pair[0] - pair[1]))) / 2
        persons = sorted(set(ids[0].tolist()))
        for table, pairs in (("genuine", [(d, q, -1) for d, q, _ in genuine]), ("impostor", impostor)):
            expected = np.zeros((len(persons), 37))
            for d, *both in pairs:
                for person in both:
                    if person in persons:
                        expected[persons.index(person), int(d / longest * 37)] += 1
            np.testing.assert_array_equal(roc[f"{table}_by_person"].numpy(), expected)
        for block in ((1, 1), (4, 7), (1000, 1000)) if seed == 0 else ():
            assert same_bits(metrics.verification(queries, gallery, *ids, **options, block=block), roc)


def test_verification_counts_ties_outside_the_threshold():
    # Squared distances 0, 1, 4, 9 and 16, the largest there can be: with 16 bins thresholds are whole numbers.
    gallery = np.array([[0.0], [1], [2], [3], [-4], [1], [2]], np.float32)
    ids = [1], [1, 1, 1, 1, 1, 2, 3], [0], [1] * 7
    queries = np.zeros((1, 1), np.float32)
    roc = metrics.verification(queries, gallery, *ids, distance="euclidean", bins=16)
    assert roc["threshold"].tolist() == list(range(17)) and roc["resolution"] == 1.0
    assert roc["tpr"].tolist() == [n / 5 for n in [0, 1] + [2] * 3 + [3] * 5 + [4] * 6 + [5]]
    assert roc["fmr"].tolist() == [n / 2 for n in [0, 0] + [1] * 3 + [2] * 12]
    assert roc["fnmr"].tolist() == [n / 5 for n in [5, 4] + [3] * 3 + [2] * 5 + [1] * 6 + [0]]
    assert (roc["num_genuine"], roc["num_impostor"]) == (5, 2)
    assert (roc["distance"], roc["protocol"]) == ("euclidean", "market1501")


def test_verification_leaves_junk_out_and_keeps_distractors():
    queries, gallery = np.eye(3)[[0]], np.eye(3)[[0, 0, 1, 2]]
    ids = [1], [1, 1, 0, 4], [0], [0, 1, 0, 0]  # junk, genuine, distractor and wrong, both under the query's camera
    roc = metrics.verification(queries, gallery, *ids, bins=2)
    assert (roc["num_genuine"], roc["num_impostor"]) == (1, 2)
    assert metrics.verification(queries, gallery, *ids, bins=2, protocol="no_camera_rule")["num_genuine"] == 2
    assert roc["fmr"].tolist() == [0, 0, 1] and roc["tpr"].tolist() == [0, 1, 1]


def test_equal_error_rates():
    rng = np.random.default_rng(0)
    gallery, ids = rng.standard_normal((400, 3)), ([1] * 40, [1, 2] * 200, [0] * 40, [1] * 400)
    assert metrics.verification(rng.standard_normal((40, 3)), gallery, *ids)["eer"] == pytest.approx(0.5, abs=0.05)
    apart = np.tile([[0.0, 1.0], [1.0, 0.0]], (200, 1))
    assert metrics.verification(np.tile([[0.0, 1.0]], (40, 1)), apart, *ids)["eer"] == 0.0
    queries, gallery, *ids = real_case(1, 40, 120)
    genuine, impostor = slow_pairs(real_distances(queries, gallery, "cosine"), *ids, "market1501")
    genuine, impostor = (np.sort([pair[0] for pair in pairs]) for pairs in (genuine, impostor))
    rates = [(np.mean(genuine >= t), np.mean(impostor < t)) for t in np.concatenate([genuine, impostor])]
    crossing = min(rates, key=lambda pair: abs(pair[0] - pair[1]))
    assert metrics.verification(queries, gallery, *ids)["eer"] == pytest.approx(sum(crossing) / 2, abs=0.003)


def test_more_persons_than_rows_share_rows():
    queries, gallery, *ids = real_case(3, 20, 30)
    ids[0][:], ids[1][:] = np.arange(20), np.arange(30) % 20
    ids[2][:], ids[3][:] = 0, 1
    few, many = (metrics.verification(queries, gallery, *ids, bins=bins) for bins in (2**10, 2**20))
    assert few["genuine_by_person"].shape == (20, 2**10) and many["genuine_by_person"].shape == (16, 2**20)
    assert torch.equal(many["fmr"][:: 2**10], few["fmr"]) and torch.equal(many["tpr"][:: 2**10], few["tpr"])
    for table in ("genuine_by_person", "impostor_by_person"):
        assert torch.equal(many[table].sum(0).view(-1, 2**10).sum(1), few[table].sum(0))
        shared = few[table].sum(1)
        shared[:4] += shared[16:]  # persons 16 apart
        assert torch.equal(many[table].sum(1), shared[:16])


def test_verification_needs_both_kinds_of_pairs():
    features = np.eye(3)
    with pytest.raises(ValueError, match="no pair of one person among queries and gallery"):
        metrics.verification(features[:2], features, [1, 2], [1, 2, 3], [0, 0], [0, 0, 1])
    with pytest.raises(ValueError, match="no pair of two persons among queries and gallery"):
        metrics.verification(features[:2], features, [1, 1], [1, 1, 1], [0, 0], [0, 0, 1])
    for bins in (1, 0, 2.5):
        with pytest.raises(ValueError, match="bins must be a whole number from 2"):
            metrics.verification(features[:2], features, [1, 2], [1, 2, 3], [0, 0], [1, 1, 1], bins=bins)


# Operating points ----------------------------------------------------------------------------------------------------


def ten_by_ten():
    """A ROC of one query: ten genuine pairs at 1.5 .. 10.5, eleven others at 4.5 .. 13.5 and 17; bins of width 1."""
    gallery = np.sqrt(np.concatenate([np.arange(1.5, 11), np.arange(4.5, 14), [17]]))[:, None]
    ids = [1], [1] * 10 + [2] * 11, [0], [1] * 21
    return metrics.verification(np.zeros((1, 1)), gallery, *ids, distance="euclidean", bins=17)


def test_thresholds_of_operating_points():
    roc = ten_by_ten()
    for false in range(11):
        for rate in (false / 11, (false + 0.5) / 11) if false else (0.5 / 11,):
            point = metrics.operating_point(roc, fmr=rate, draws=1)
            threshold = false + 4 if false < 10 else 16  # the largest threshold ends before the next false match
            assert (point["fmr"], point["threshold"]) == (false / 11, pytest.approx(threshold))
            assert point["fnmr"] == max(0, 11 - threshold) / 10
    for missed in range(10):
        point = metrics.operating_point(roc, fnmr=(missed + 0.5) / 10, draws=1)
        threshold = 11 - missed  # the smallest threshold ends after the farthest pair that is needed
        assert (point["fnmr"], point["threshold"]) == (missed / 10, pytest.approx(threshold))
        assert point["fmr"] == max(0, threshold - 4) / 11


@pytest.mark.parametrize("missed", range(1, 10))
def test_a_false_non_match_rate_that_is_reached_exactly_is_allowed(missed):
    point = metrics.operating_point(ten_by_ten(), fnmr=missed / 10, draws=1)
    assert point["fnmr"] == missed / 10
    assert point["threshold"] == pytest.approx(11 - missed)


def test_a_rate_that_cannot_be_measured_allows_no_false_match():
    point = metrics.operating_point(ten_by_ten(), fmr=1e-6, draws=5)
    assert (point["fmr"], point["threshold"]) == (0.0, pytest.approx(4))


def test_intervals_follow_the_seed_and_hold_the_point():
    queries, gallery, *ids = world(40, np.random.default_rng(2))
    roc = metrics.verification(queries, gallery, *ids, bins=512)
    for chosen in ({"fmr": 0.1}, {"fnmr": 0.1}):
        point = metrics.operating_point(roc, **chosen)
        assert point == metrics.operating_point(roc, **chosen, seed=0, draws=1000, confidence=0.95)
        other = metrics.operating_point(roc, **chosen, seed=1)
        wide = metrics.operating_point(roc, **chosen, confidence=0.999)
        for name in ("threshold", "fmr", "fnmr"):
            low, high = point[f"{name}_interval"]
            assert low < point[name] < high
            assert other[name] == point[name]
            assert wide[f"{name}_interval"][0] < low and high < wide[f"{name}_interval"][1]
        assert other["fmr_interval"] != point["fmr_interval"]
        assert other["fmr_interval"] == pytest.approx(point["fmr_interval"], rel=0.15)


def test_intervals_equal_a_bootstrap_pair_by_pair():
    rng = np.random.default_rng(7)
    queries, gallery, *ids = world(12, rng)
    ids[1][-6:] = 0  # distractors, who belong to nobody that is drawn
    roc = metrics.verification(queries, gallery, *ids, bins=64)
    point = metrics.operating_point(roc, fmr=0.1, draws=3000)
    distances = real_distances(queries, gallery, "cosine")
    genuine, impostor = slow_pairs(distances, *ids, "market1501")
    persons, rates = sorted(set(ids[0].tolist())), []
    close = {name: np.array([d < point["threshold"] for d, *_ in pairs]) for name, pairs in
             (("fnmr", genuine), ("fmr", impostor))}  # fmt: skip
    thresholds = []
    found = np.array([d for d, *_ in impostor])
    for _ in range(3000):
        drawn = np.bincount(rng.integers(0, len(persons), len(persons)), minlength=len(persons))
        times = dict(zip(persons, drawn.tolist(), strict=True))
        of_genuine = np.array([times[q] for _, q, _ in genuine])
        # Each side's draws change the count of a pair, where that side is drawn at all: to first order they add up.
        of_impostor = np.array([times[q] + times.get(g, 1) - 1 for _, q, g in impostor])
        false, missed = of_impostor @ close["fmr"], of_genuine @ ~close["fnmr"]
        rates.append([false / of_impostor.sum(), missed / of_genuine.sum()])
        if len(thresholds) < 800:
            rate = [of_impostor @ (found < t) / of_impostor.sum() for t in roc["threshold"].numpy()[:40]]
            thresholds.append(roc["threshold"][np.flatnonzero(np.array(rate) <= 0.1)[-1]])
    expected = np.quantile(rates, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(point["fmr_interval"], expected[:, 0], rtol=0.08)
    np.testing.assert_allclose(point["fnmr_interval"], expected[:, 1], rtol=0.12, atol=0.01)
    np.testing.assert_allclose(point["threshold_interval"], np.quantile(thresholds, [0.025, 0.975]), atol=0.04)


def world(persons, rng, families=6):
    """Queries of camera 0 (2 images a person) and gallery of camera 1 (3 images) of persons drawn from one population.

    Persons of one family look alike, persons differ in how much their images do: pairs of a person are not independent.
    """
    family = np.random.default_rng(0).standard_normal((families, 8))  # the same population in every world
    centre = family[rng.integers(0, families, persons)] + 0.6 * rng.standard_normal((persons, 8))
    spread = rng.uniform(0.2, 0.7, (persons, 1, 1))
    images = centre[:, None] + spread * rng.standard_normal((persons, 5, 8))  # (persons, 5, D)
    pids = np.arange(1, persons + 1)
    queries, gallery = images[:, :2].reshape(-1, 8), images[:, 2:].reshape(-1, 8)
    ids = pids.repeat(2), pids.repeat(3), np.zeros(2 * persons, int), np.ones(3 * persons, int)
    return queries.astype(np.float32), gallery.astype(np.float32), *ids


def test_intervals_cover_the_truth_over_many_worlds():
    # At a threshold fixed beforehand the true rates are those of a huge world; 95 % intervals should hold them in about
    # 95 % of the worlds, and the bootstrap's spread should be that of the estimates from world to world.
    truth = metrics.verification(*world(1500, np.random.default_rng(99)), bins=256)
    bin_ = int((truth["fmr"] <= 0.05).sum()) - 1
    true = {"fmr": truth["fmr"][bin_].item(), "fnmr": 1 - truth["tpr"][bin_].item()}
    inside, widths, estimates = {"fmr": 0, "fnmr": 0}, {"fmr": [], "fnmr": []}, {"fmr": [], "fnmr": []}
    number = 120
    for seed in range(number):
        roc = metrics.verification(*world(50, np.random.default_rng(seed)), bins=256)
        point = metrics.operating_point(roc, fmr=roc["fmr"][bin_].item(), draws=200)
        for name in true:
            low, high = point[f"{name}_interval"]
            inside[name] += low <= true[name] <= high
            widths[name].append((high - low) / 2 / 1.96)
            estimates[name].append(point[name])
    for name in true:
        assert 0.87 < inside[name] / number <= 0.995, name
        assert 0.8 < np.mean(widths[name]) / np.std(estimates[name]) < 1.25, name


BAD_POINTS = {
    "none": ({}, "give fmr or fnmr, one of them"),
    "both": ({"fmr": 0.1, "fnmr": 0.1}, "give fmr or fnmr, one of them"),
    "fmr 0": ({"fmr": 0.0}, "fmr must lie between 0 and 1"),
    "fnmr 1": ({"fnmr": 1}, "fnmr must lie between 0 and 1"),
    "confidence": ({"fmr": 0.1, "confidence": 95}, "confidence must lie between 0 and 1"),
    "draws": ({"fmr": 0.1, "draws": 0}, "draws must be a whole number from 1"),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_bad_operating_points_get_a_clear_error(case):
    options, message = BAD_POINTS[case]
    with pytest.raises(ValueError, match=message):
        metrics.operating_point(ten_by_ten(), **options)


# Several images per query, query expansion ---------------------------------------------------------------------------


def slow_multi_query(features, pids, camids, query_pids, query_camids, pool, distance):
    pooled = []
    for pid, camid in zip(query_pids, query_camids, strict=True):
        rows = [x for x, p, c in zip(features.tolist(), pids, camids, strict=True) if (p, c) == (pid, camid)]
        if distance == "cosine":
            rows = [[value / math.hypot(*row) for value in row] for row in rows]
        pooled.append([sum(c) / len(c) if pool == "average" else max(c) for c in zip(*rows, strict=True)])
    return pooled


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("pool", ["average", "maximum"])
def test_multi_query_equals_the_slow_reference(pool, distance):
    rng = np.random.default_rng(2)
    images, pids, camids = rng.standard_normal((80, 3)) - 2, rng.integers(-1, 5, 80), rng.integers(0, 3, 80)
    places = sorted(set(zip(pids.tolist(), camids.tolist(), strict=True)))
    chosen = [places[i] for i in rng.integers(0, len(places), 25)]  # some twice, in any order
    ids = pids, camids, [pid for pid, _ in chosen], [camid for _, camid in chosen]
    pooled = metrics.multi_query(images, *ids, pool=pool, distance=distance)
    np.testing.assert_allclose(pooled.numpy(), slow_multi_query(images, *ids, pool, distance), atol=1e-12)


def test_hand_counted_multi_query():
    images = torch.tensor([[3.0, 0.0], [0.0, 1.0], [8.0, 8.0], [-6.0, 0.0]])
    ids = [1, 1, 1, 2], [0, 0, 1, 0], [2, 1], [0, 0]
    average = metrics.multi_query(images, *ids, distance="euclidean")
    assert average.tolist() == [[-6.0, 0.0], [1.5, 0.5]]
    assert metrics.multi_query(images, *ids).tolist() == [[-1.0, 0.0], [0.5, 0.5]]
    assert metrics.multi_query(images, *ids, pool="maximum").tolist() == [[-1.0, 0.0], [1.0, 1.0]]
    largest = metrics.multi_query(images, *ids, pool="maximum", distance="euclidean")
    assert largest.tolist() == [[-6.0, 0.0], [3.0, 1.0]]
    assert metrics.multi_query(images.half(), *ids).dtype == torch.float32
    assert metrics.multi_query(images.int(), *ids, distance="euclidean").tolist() == average.tolist()


def test_multi_query_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.multi_query(np.eye(2), [1, 2], [0, 0], [1], [0])


BAD_POOLS = {
    "missing": ({3: [1, 7], 4: [0, 0]}, "1 of 2 queries have no image to pool, first pid 7, camid 0"),
    "other camera": ({4: [2, 2]}, "2 of 2 queries have no image to pool, first pid 1, camid 2"),
    "pool": ({"pool": "median"}, "unknown pool 'median': choose one of average, maximum"),
    "distance": ({"distance": "l1"}, "unknown distance 'l1'"),
    "NaN": ({0: np.full((3, 2), np.nan)}, "features hold NaN or infinity, first in row 0"),
    "no image": ({0: np.zeros((0, 2))}, "features must be a matrix"),
    "no query": ({3: np.zeros(0, int), 4: np.zeros(0, int)}, "query_pids are empty"),
    "short pids": ({1: [1, 2]}, r"^pids must have the shape \(3,\)"),
    "short query camids": ({4: [0]}, r"query_camids must have the shape \(2,\)"),
    "float camids": ({2: [0.0, 0.0, 0.0]}, "^camids must be integers, not torch.float64"),
}


@pytest.mark.parametrize("case", BAD_POOLS)
def test_bad_pools_get_a_clear_error(case):
    change, message = BAD_POOLS[case]
    args, options = [np.eye(3)[:, :2] + 1, [1, 2, 2], [0, 0, 0], [1, 2], [0, 0]], {}
    metrics.multi_query(*args)  # is fine before the change
    for key, value in change.items():
        if isinstance(key, str):
            options[key] = value
        else:
            args[key] = value
    with pytest.raises(ValueError, match=message):
        metrics.multi_query(*args, **options)


def slow_expand(queries, gallery, k, distance):
    rows = []
    for x, distances in zip(queries, real_distances(queries, gallery, distance), strict=True):
        near = sorted(range(len(gallery)), key=lambda g: round(distances[g], 9))[:k]  # stable
        both = [x, *gallery[near]]
        rows.append(np.mean([v / np.linalg.norm(v) for v in both] if distance == "cosine" else both, axis=0))
    return rows


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("k", [1, 5, 300])
def test_expand_queries_equals_the_slow_reference(distance, k):
    queries, gallery, *_ = real_case(k, num_q=300, num_g=40)
    gallery[20:25], gallery[0] = gallery[0], queries[0]
    for block in (None, (7, 9)):
        expanded = metrics.expand_queries(queries, gallery, k=k, distance=distance, block=block)
        assert expanded.shape == queries.shape
        np.testing.assert_allclose(expanded.numpy(), slow_expand(queries, gallery, k, distance), atol=1e-12)


def test_hand_counted_query_expansion():
    queries, gallery = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 9.0], [0.0, 2.0], [2.0, 0.0], [0.0, -2.0]])
    one = metrics.expand_queries(queries, gallery, k=1, distance="euclidean")
    assert one.tolist() == [[0.0, 1.0]]  # of three at one distance the first in the gallery
    two = metrics.expand_queries(queries, gallery, k=2, distance="euclidean")
    torch.testing.assert_close(two, torch.tensor([[2 / 3, 2 / 3]]))
    everything = metrics.expand_queries(queries, gallery, k=99, distance="euclidean")
    torch.testing.assert_close(everything, torch.tensor([[11 / 5, 9 / 5]]))
    default = metrics.expand_queries(torch.tensor([[5.0, 0.0]]), torch.tensor([[7.0, 0.0], [0.0, -3.0]]))
    torch.testing.assert_close(default, torch.tensor([[2 / 3, -1 / 3]]))  # k 5, cosine: all count with length 1


# Re-ranking ----------------------------------------------------------------------------------------------------------


def dense_rerank(queries, gallery, k1, k2, lambda_value, distance):
    """Zhong et al., CVPR 2017, Sec. 3.2 - 3.4, item by item; the list of k neighbours holds the item itself besides."""
    items = np.concatenate([queries, gallery]).astype(np.float64)
    number, num_q = len(items), len(queries)
    if distance == "cosine":
        items /= np.linalg.norm(items, axis=1, keepdims=True)
    dots = (items[:, None] * items).sum(2)  # each pair by itself, so that equal items have equal distances
    squares = (items**2).sum(1)
    distances = 1 - dots if distance == "cosine" else squares[:, None] + squares - 2 * dots
    distances = distances.clip(0)
    distances = distances / distances.max(1, keepdims=True)
    ranking = distances.argsort(axis=1, kind="stable").tolist()

    def mutual(item, k):
        return {other for other in ranking[item][: k + 1] if item in ranking[other][: k + 1]}

    weights = np.zeros((number, number))
    for item in range(number):
        own = mutual(item, k1)
        members = set(own)
        for other in own:
            theirs = mutual(other, round(k1 / 2))
            if Fraction(len(theirs & own)) > Fraction(2, 3) * len(theirs):
                members |= theirs
        for member in members:
            weights[item, member] = math.exp(-distances[item, member])
        if members:
            weights[item] /= weights[item].sum()
    weights = np.array([weights[ranking[item][:k2]].mean(0) for item in range(number)])
    smaller = np.array([[np.minimum(weights[q], weights[g]).sum() for g in range(num_q, number)] for q in range(num_q)])
    larger = np.array([[np.maximum(weights[q], weights[g]).sum() for g in range(num_q, number)] for q in range(num_q)])
    # Eq. 10; where all weights sum to 1 the maxima sum to 2 minus the sum of the minima
    jaccard = 1 - smaller / np.where(larger > 0, larger, 1)
    return (1 - lambda_value) * jaccard + lambda_value * distances[:num_q, num_q:]


RERANKS = [  # Q, G, k1, k2, lambda
    (20, 60, 20, 6, 0.3), (15, 50, 9, 4, 0.3), (15, 50, 7, 1, 0.5), (10, 60, 5, 2, 0.0), (10, 40, 10, 6, 1.0),
    (6, 30, 1, 1, 0.3), (6, 30, 1, 2, 0.3), (3, 14, 4, 3, 0.3), (12, 30, 3, 3, 0.2), (4, 9, 20, 6, 0.3),
    (1, 1, 20, 6, 0.3), (2, 3, 4, 3, 0.3), (1, 5, 2, 2, 0.7),
]  # fmt: skip


def person_features(num_q, num_g, dim=6, seed=0):
    """Images around some centres each, so that neighbourhoods have a structure: float64."""
    rng = np.random.default_rng(seed)
    persons = max(1, (num_q + num_g) // 7)
    centres = 2 * rng.standard_normal((persons, dim))
    rows = centres[rng.integers(0, persons, num_q + num_g)] + rng.standard_normal((num_q + num_g, dim))
    return rows[:num_q], rows[num_q:]


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("sizes", RERANKS, ids=str)
def test_rerank_equals_the_dense_reference(sizes, distance):
    num_q, num_g, k1, k2, share = sizes
    queries, gallery = person_features(num_q, num_g)
    expected = dense_rerank(queries, gallery, k1, k2, share, distance)
    options = {"k1": k1, "k2": k2, "lambda_value": share, "distance": distance}
    blocks = ((7, 13), None) if num_q + num_g > 20 else ((1, 1), (2, 5), None)
    for block in blocks:
        found = metrics.rerank(queries, gallery, **options, block=block)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)
    found = metrics.rerank(queries.astype(np.float32), torch.from_numpy(gallery).float(), **options)
    assert found.dtype == torch.float32 and found.shape == (num_q, num_g)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_rerank_has_the_parameters_of_the_paper():
    queries, gallery = person_features(20, 60, seed=4)
    np.testing.assert_allclose(
        metrics.rerank(queries, gallery), dense_rerank(queries, gallery, 20, 6, 0.3, "cosine"), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("k1", [3, 5, 6, 7, 9, 10, 13])  # half of them rounded to even: 2, 2, 3, 4, 4, 5, 6
def test_half_of_the_neighbours_is_rounded_to_even(k1):
    queries, gallery = person_features(8, 40, seed=k1)
    expected = dense_rerank(queries, gallery, k1, 2, 0.3, "euclidean")
    found = metrics.rerank(queries, gallery, k1=k1, k2=2, distance="euclidean")
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("k1", [1, 2, 3])
def test_rerank_averages_over_more_items_than_the_sets_hold(k1):
    queries, gallery = person_features(8, 30, seed=2)
    expected = dense_rerank(queries, gallery, k1, 6, 0.3, "cosine")
    np.testing.assert_allclose(metrics.rerank(queries, gallery, k1=k1, k2=6).numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("distance", metrics.DISTANCES)
@pytest.mark.parametrize("copies", [2, 4, 9])
def test_rerank_breaks_ties_of_equal_items_by_index(distance, copies):
    queries, gallery = person_features(9, 36, seed=1)
    for item in range(3):
        gallery[item : item + 4 * copies : 4] = queries[item]  # the same image on both sides, up to more than k1 times
    queries[8] = queries[0]
    expected = dense_rerank(queries, gallery, 6, 3, 0.3, distance)
    for block in ((7, 13), None):
        found = metrics.rerank(queries, gallery, k1=6, k2=3, distance=distance, block=block)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)


def test_rerank_of_integer_features_full_of_ties():
    for seed in range(6):
        queries, gallery, *_ = integer_case(dim=2, seed=seed)
        expected = dense_rerank(queries, gallery, 6, 3, 0.3, "euclidean")
        for block in ((7, 13), None):
            found = metrics.rerank(queries, gallery, k1=6, k2=3, distance="euclidean", block=block)
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_rerank_of_many_items_equals_the_dense_reference_of_the_few_that_matter():
    # A crowd that is nobody's neighbour but its own stands before the gallery that counts, and the farthest item of all
    # after it: without the crowd, distances and neighbours of the rest are the same.
    rng = np.random.default_rng(0)
    queries, gallery = person_features(120, 80, seed=6)
    crowd, farthest = rng.standard_normal((4200, 6)) + 500, np.full((1, 6), 2000.0)
    expected = dense_rerank(queries, np.concatenate([gallery, farthest]), 20, 6, 0.3, "euclidean")
    found = metrics.rerank(queries, np.concatenate([crowd, gallery, farthest]), distance="euclidean")
    np.testing.assert_allclose(found[:, 4200:-1].numpy(), expected[:, :-1], rtol=0, atol=1e-9)
    assert (found[:, :4200] > 0.7).all()


def test_rerank_of_a_collapsed_model_is_finite():
    drawn = np.random.default_rng(4).standard_normal((1, 33)).astype(np.float32)  # distances are 0 but for rounding
    for feature, distance, k2 in itertools.product((np.ones((1, 4)), drawn), metrics.DISTANCES, (1, 3)):
        found = metrics.rerank(feature.repeat(3, axis=0), feature.repeat(30, axis=0), k1=5, k2=k2, distance=distance)
        assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1


def test_rerank_leaves_its_input_as_it_was_and_feeds_evaluate_distances():
    queries, gallery, *ids = integer_case()
    before = queries.copy(), gallery.copy()
    ranks = metrics.evaluate_distances(metrics.rerank(queries, gallery, k1=4), *ids)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(gallery, before[1])
    assert 0 < ranks["mAP"] <= 1


BAD_OPTIONS = {
    "rerank": [({"k1": 0}, "k1 must be a whole number from 1, not 0"), ({"k2": 0}, "k2 must be a whole"),
               ({"k1": 2.0}, "k1 must be a whole"), ({"k2": True}, "k2 must be a whole"),
               ({"lambda_value": -0.1}, "lambda_value must lie in 0..1, not -0.1"),
               ({"lambda_value": 1.1}, "lambda_value must lie"), ({"lambda_value": math.nan}, "lambda_value must lie")],
    "expand_queries": [({"k": 0}, "k must be a whole number from 1, not 0"), ({"k": 1.5}, "k must be a whole number")],
    "verification": [({"protocol": "mars"}, "unknown protocol 'mars'")],
    "evaluate": [({"max_rank": -1}, "max_rank must be a whole number from 1")],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_get_a_clear_error(name):
    common = [({"distance": "l1"}, "unknown distance 'l1'"), ({"block": (0, 5)}, "block must be two whole numbers")]
    for options, message in BAD_OPTIONS[name] + common:
        with pytest.raises(ValueError, match=message):
            FUNCTIONS[name](*integer_case(), **options)


def with_row(rows, number, value):
    rows = rows.copy()
    rows[number, 2] = value
    return rows


BAD_FEATURES = {
    "NaN": (0, lambda rows: with_row(rows, 3, np.nan), "query features hold NaN or infinity, first in row 3"),
    "infinity": (1, lambda rows: with_row(rows, 46, -np.inf), "gallery features hold NaN or infinity, first in row 46"),
    "no query": (0, lambda rows: rows[:0], "query features must be a matrix .* not empty"),
    "no gallery": (1, lambda rows: rows[:0], "gallery features must be a matrix .* not empty"),
    "no columns": (0, lambda rows: rows[:, :0], "query features must be a matrix"),
    "1-D": (1, lambda rows: rows[:, 0], "gallery features must be a matrix"),
    "3-D": (0, lambda rows: rows[None], "query features must be a matrix"),
    "other width": (1, lambda rows: rows[:, :2], "query features have 4 columns, gallery features 2"),
    "complex": (0, lambda rows: rows + 1j, "query features must be a matrix of real numbers"),
    "bool": (1, lambda rows: rows > 0, "gallery features must be a matrix of real numbers"),
    "too long": (0, lambda rows: rows * np.float32(1e20), "scale the features down"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_features_get_a_clear_error(name, case):
    side, change, message = BAD_FEATURES[case]
    args = list(integer_case())
    args[side] = change(args[side])
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](*args)


BAD_IDS = {
    "float": (2, lambda ids: ids / 1, "query_pids must be integers, not torch.float64"),
    "short": (3, lambda ids: ids[:-1], r"gallery_pids must have the shape \(47,\), .* not \(46,\)"),
    "long": (4, lambda ids: np.append(ids, 0), r"query_camids must have the shape \(13,\), .* not \(14,\)"),
    "2-D": (5, lambda ids: ids[:, None], r"gallery_camids must have the shape \(47,\), .* not \(47, 1\)"),
    "bool": (5, lambda ids: ids > 0, "gallery_camids must be integers, not torch.bool"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_verification_wants_ids_of_the_right_kind(case):
    position, change, message = BAD_IDS[case]
    args = list(integer_case())
    args[position] = change(args[position])
    with pytest.raises(ValueError, match=message):
        metrics.verification(*args)


def test_verification_of_features_that_are_all_zero():
    ids = [1, 2], [1, 2, 1], [0, 0], [1, 1, 1]
    for distance in metrics.DISTANCES:
        roc = metrics.verification(np.zeros((2, 2)), np.zeros((3, 2)), *ids, distance=distance)
        assert roc["eer"] == 0.5 and roc["resolution"] > 0 and roc["threshold"].diff().min() > 0
        assert (roc["fmr"] == (roc["threshold"] > (distance == "cosine"))).all()  # the cosine distance of zeros is 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_squared_distances_do_not_overflow_in_silence(name):
    far = np.float32(1.3e19)  # its square is finite, the squared distance to the opposite is not
    args = np.array([[far]]), np.array([[-far]] * 3), [1], [1, 1, 3], [0], [0, 1, 1]
    with pytest.raises(ValueError, match="scale the features down"):
        FUNCTIONS[name](*args, distance="euclidean")
    args = np.array([[far]]) / 2, np.array([[-far]] * 3) / 2, *args[2:]
    queries = metrics.evaluate(*args, distance="euclidean")["queries"]
    assert queries["first_hit"].tolist() == [1] and queries["nearest_wrong"].tolist() == [2]


@pytest.mark.parametrize("ids", [["0001", "0002"], [None, None], None, [[1], [1, 2]]])
def test_ids_that_are_no_numbers_get_a_clear_error(ids):
    with pytest.raises(ValueError, match="query_pids must be numbers, in a tensor, array or list"):
        metrics.evaluate(np.eye(2), np.eye(2), ids, [1, 2], [0, 0], [1, 1])
    with pytest.raises(ValueError, match="gallery_camids must be numbers"):
        metrics.verification(np.eye(2), np.eye(2), [1, 2], [1, 2], [0, 0], ids)
    with pytest.raises(ValueError, match="^camids must be numbers"):
        metrics.multi_query(np.eye(2), [1, 2], ids, [1], [0])
    with pytest.raises(ValueError, match="gallery features must be numbers"):
        metrics.rerank(np.eye(2), ids)


def test_open_set_wants_a_query_with_a_match():
    queries = metrics.evaluate_distances([[1.0, 2.0], [1.0, 2.0]], [1, 9], [1, 2], [0, 0], [1, 1])["queries"]
    for part in (slice(1, 2), slice(2, 2)):
        with pytest.raises(ValueError, match="none of the [01] queries has a match"):
            metrics.open_set({name: values[part] for name, values in queries.items()})


@pytest.mark.parametrize("block", [5, (1.5, 2), (4, 4, 4), (0, 5), ()])
def test_a_block_that_is_no_pair_of_whole_numbers_gets_a_clear_error(block):
    with pytest.raises(ValueError, match="block must be two whole numbers from 1"):
        metrics.evaluate(np.eye(2), np.eye(2), [1, 2], [1, 2], [0, 0], [1, 1], block=block)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("distance", metrics.DISTANCES)
def test_gpu_gives_the_rest_of_the_numbers_of_the_cpu(distance):
    queries, gallery, *ids = (torch.from_numpy(part) for part in integer_case(40, 120))
    on_gpu = queries.cuda(), gallery.cuda()
    expected = metrics.evaluate(queries, gallery, *ids, distance=distance)["queries"]
    found = metrics.evaluate(*on_gpu, *ids, distance=distance)["queries"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if distance == "euclidean":  # whole numbers: no rounding puts a pair into another bin
        roc = metrics.verification(queries, gallery, *ids, distance=distance)
        assert same_bits(metrics.verification(*on_gpu, *ids, distance=distance), roc)
        assert same_bits(metrics.verification(on_gpu[0], gallery, *ids, distance=distance), roc)
    rows = person_features(20, 60)
    expected = dense_rerank(*rows, 20, 6, 0.3, distance)
    for device in ("cpu", "cuda"):
        found = metrics.rerank(torch.from_numpy(rows[0]).float().cuda(), torch.from_numpy(rows[1]).to(device),
                               distance=distance, block=(30, 50))  # fmt: skip
        assert found.is_cuda
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=1e-5)
    expanded = metrics.expand_queries(*on_gpu, distance=distance).cpu()
    torch.testing.assert_close(expanded, metrics.expand_queries(queries, gallery, distance=distance))


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


def test_every_row_of_a_large_matrix_is_looked_at():
    gallery = np.zeros((4200, 1024), np.float32)  # more numbers than are looked at in one go
    gallery[:, 0], gallery[:, 1] = np.divmod(np.arange(4200), 64)
    ids = [1, 1], [1] * 4200, [0, 0], [1] * 4200
    queries = metrics.evaluate(gallery[[4199, 5]], gallery, *ids, distance="euclidean")["queries"]
    assert queries["nearest_match"].tolist() == [4199, 5] and queries["match_distance"].tolist() == [0, 0]
    gallery[4199, 1023] = np.nan
    with pytest.raises(ValueError, match="gallery features hold NaN or infinity, first in row 4199"):
        metrics.evaluate(gallery[:2], gallery, *ids)


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
