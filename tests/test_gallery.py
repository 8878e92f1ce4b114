"""Tests of gallery.py: exact ranking beside a full sort, and an index that stays whole whatever happens.

python -m pytest tests/test_gallery.py
"""

import numpy as np
import pytest

import gallery as galleries

# ---- ranking ----

def slow_top_k(queries, gallery, k, left_out):
    """Sorts everything, for each query: the most similar first, equal ones in gallery order."""
    rows = []
    for q, query in enumerate(queries):
        allowed = [g for g in range(len(gallery)) if not left_out[q, g]]
        rows.append(sorted(allowed, key=lambda g: -(gallery[g] @ query))[:k])  # sorted is stable
    return rows


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 5, 60, 300])
def test_top_k_equals_a_full_stable_sort(block, k, monkeypatch):
    """Small whole numbers: products are exact, so they do not depend on the block, and many are equal."""
    monkeypatch.setattr(galleries, "QUERY_BLOCK", 4)
    rng = np.random.default_rng(block + k)
    queries, gallery = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (11, 250))
    query_keys, gallery_keys = rng.integers(0, 5, 11), rng.integers(0, 5, 250)
    more = np.arange(11), np.full(250, 3)  # leaves nothing for query 3
    left_out = (query_keys[:, None] == gallery_keys) | (more[0][:, None] == more[1])
    indices, similarities = galleries.top_k(queries, gallery, k, [(query_keys, gallery_keys), more], block)
    for q, expected in enumerate(slow_top_k(queries, gallery, k, left_out)):
        assert indices[q].tolist() == expected + [-1] * (k - len(expected))
        assert similarities[q, : len(expected)].tolist() == (gallery[expected] @ queries[q]).tolist()
    assert (indices[3] == -1).all()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_top_k_of_real_features(block):
    rng = np.random.default_rng(block)
    queries, gallery = (rng.standard_normal((n, 16)).astype(np.float32) for n in (5, 400))
    indices, similarities = galleries.top_k(queries, gallery, 10, block=block)
    exact = queries.astype(float) @ gallery.T.astype(float)
    assert indices.tolist() == np.argsort(-exact, axis=1, kind="stable")[:, :10].tolist()
    np.testing.assert_allclose(similarities, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)


