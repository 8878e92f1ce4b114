"""Ranking and re-ranking beside the usual way, in numpy, and beside deep-person-reid's own functions.

The usual way is what other projects do, written here. --peer-rank and --peer-rerank measure the functions of
deep-person-reid too (github.com/KaiyangZhou/deep-person-reid), out of your own checkout of it.
"""

import math
import runpy
import shutil
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

import metrics
from tools.benchmark.measure import compare


def load_peer(path, name):
    """The function `name` out of a Python file of another project."""
    if not Path(path).is_file():
        raise ValueError(f"there is no Python file {path}: give the path of the file with {name}, see --help")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its compiled part is missing: the Python one is measured
        functions = runpy.run_path(path)
    if name not in functions:
        raise ValueError(f"{path} has no function {name}: give the path of the file with it, see --help")
    return functions[name]


def draw(num_queries, num_gallery, dim, ids, noise=4.0):
    """Random features (Q, D) and (G, D) about one centre per person, pids from 1 and camids of both sides."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((ids, dim), dtype=np.float32)
    pids = [rng.integers(ids, size=n) for n in (num_queries, num_gallery)]
    camids = [rng.integers(6, size=n) for n in (num_queries, num_gallery)]
    features = [centres[p] + noise * rng.standard_normal((len(p), dim), dtype=np.float32) for p in pids]
    return features, [p + 1 for p in pids], camids


def squared_distances(q, g):
    distmat = -2 * q @ g.T
    distmat += (q**2).sum(1)[:, None]
    distmat += (g**2).sum(1)
    return distmat


def argsort_and_loop(q, g, q_pids, g_pids, q_camids, g_camids):
    """The usual way: the whole distance matrix, numpy's argsort of it, one Python loop over queries; (rank-1, mAP)."""
    order = np.argsort(squared_distances(q, g), axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int32)
    first, precisions = [], []
    for row in range(len(q)):
        keep = (g_pids[order[row]] != q_pids[row]) | (g_camids[order[row]] != q_camids[row])
        hits = matches[row][keep]
        if hits.any():
            first.append(hits[0])
            precisions.append((hits.cumsum() / np.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    return np.mean(first), np.mean(precisions)


def product(q, g):
    """The bare matrix product, which is the least that ranking takes."""
    for part in g.split(2**14):
        [q[i : i + 512] @ part.T for i in range(0, len(q), 512)]


def rank1_and_map(*arrays):
    scores = metrics.evaluate(*arrays, distance="euclidean")
    return scores["cmc"][0].item(), scores["mAP"]


def tell_scores(run, first):
    if run.result is None:
        return ""
    return f"rank-1 {np.ravel(run.result[0])[0]:.5f}, mAP {run.result[1]:.5f}"  # a peer gives all of the CMC


def measure_ranking(device, size=(3368, 15913), dim=1024, ids=750, peer_rank=None):
    """metrics.evaluate beside the bare matrix product and the usual way; results are (rank-1, mAP)."""
    peer = peer_rank and load_peer(peer_rank, "eval_market1501")
    features, pids, camids = draw(*size, dim, ids)
    q, g = (torch.from_numpy(f).to(device) for f in features)
    functions = {
        "metrics.evaluate": lambda: rank1_and_map(q, g, *pids, *camids),
        "bare product": lambda: product(q, g),
        "argsort and loop": lambda: argsort_and_loop(*features, *pids, *camids),
    }
    once = "eval_market1501, one run"
    if peer:
        functions[once] = lambda: peer(squared_distances(*features), *pids, *camids, 50)
    print(f"ranking {size[0]} x {size[1]} x {dim}")
    return compare(device, functions, [once], remark=tell_scores)


def write_gallery(folder, gallery, num_distractors):
    """A memory-mapped file with the gallery (G, D) and, below it, distractors, which have no centre in common."""
    shape = len(gallery) + num_distractors, gallery.shape[1]
    needed, free = 4 * math.prod(shape) / 1e9, shutil.disk_usage(folder).free / 1e9
    print(f"writing {needed:.1f} GB to {folder}, where {free:.1f} GB are free", flush=True)
    if free < 1.1 * needed:
        raise ValueError(f"{needed:.1f} GB do not fit well into {free:.1f} GB: set TMPDIR to a folder on a larger disk")
    rng, scale = np.random.default_rng(1), gallery.std()
    array = np.lib.format.open_memmap(f"{folder}/gallery.npy", "w+", np.float32, shape)
    array[: len(gallery)] = gallery
    for rows in np.array_split(array[len(gallery) :], num_distractors // 4096 + 1):
        rows[:] = scale * rng.standard_normal(rows.shape, dtype=np.float32)
    array.flush()
    return array


def measure_distractors(device, size=(3368, 15913), distractors=(0, 100_000, 500_000), dim=1024, ids=750, rounds=3):
    """metrics.evaluate on a memory-mapped gallery with more and more distractors, beside the bare matrix product."""
    (query, gallery), (q_pids, g_pids), (q_camids, g_camids) = draw(*size, dim, ids)
    g_pids = np.pad(g_pids, (0, max(distractors)))  # the pid of distractors is 0
    g_camids = np.append(g_camids, np.random.default_rng(2).integers(6, size=max(distractors)))
    q, sizes, functions = torch.from_numpy(query).to(device), [len(gallery) + n for n in distractors], {}
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        mapped = torch.from_numpy(write_gallery(folder, gallery, max(distractors)))
        near = mapped.to(device)  # on a CPU still the file
        for count in sizes:
            ids_of = q_pids, g_pids[:count], q_camids, g_camids[:count]
            functions[f"{count:,}, from the file"] = partial(rank1_and_map, q, mapped[:count], *ids_of)
            if device.type == "cuda":
                functions[f"{count:,}, on the GPU"] = partial(rank1_and_map, q, near[:count], *ids_of)
            functions[f"{count:,}, bare product"] = partial(product, q, near[:count])
        longer = ", ".join(f"{count / sizes[0]:.2f}" for count in sizes)
        print(f"ranking {size[0]} x gallery x {dim}; galleries are {longer} times as long as the first")
        return compare(device, functions, rounds=rounds, remark=tell_scores)


def dense_rerank(q, g, k1=20, k2=6, lambda_value=0.3):
    """The usual way (Zhong et al., CVPR 2017): N x N matrices and loops over rows; distances (Q, G)."""
    x, half = np.concatenate([q, g]), round(k1 / 2)
    distmat = squared_distances(x, x)
    distmat /= distmat.max(axis=1, keepdims=True)
    order = np.argsort(distmat, axis=1)[:, : k1 + 1].copy()  # the item itself is the first

    def mutual(item, k):
        near = order[item, : k + 1]
        return near[(order[near, : k + 1] == item).any(axis=1)]

    weights = np.zeros_like(distmat)
    for item in range(len(x)):
        own = mutual(item, k1)
        theirs = [mutual(neighbour, half) for neighbour in own]
        near = [t for t in theirs if 3 * len(np.intersect1d(t, own, assume_unique=True)) > 2 * len(t)]
        members = np.unique(np.concatenate([own, *near]))
        closeness = np.exp(-distmat[item, members])
        weights[item, members] = closeness / closeness.sum()
    mean = np.empty_like(weights)
    for item in range(len(x)):
        weights[order[item, :k2]].mean(axis=0, out=mean[item])
    weights = mean
    holders = [np.flatnonzero(column) for column in weights.T]
    result = np.empty((len(q), len(g)), distmat.dtype)
    for item in range(len(q)):
        overlap = np.zeros(len(x), distmat.dtype)
        for member in np.flatnonzero(weights[item]):
            who = holders[member]
            overlap[who] += np.minimum(weights[item, member], weights[who, member])
        jaccard = 1 - overlap[len(q) :] / (2 - overlap[len(q) :])
        result[item] = (1 - lambda_value) * jaccard + lambda_value * distmat[item, len(q) :]
    return result


def tell_difference(run, first):
    """Equal distances but for rounding may sort otherwise on the other side, which changes some results by more than
    that: therefore also the share of results that differ."""
    gap = (torch.as_tensor(run.result).cpu() - first.result.cpu()).abs()
    return f"largest difference {gap.max():.0e}, above 1e-5 in {(gap > 1e-5).double().mean():.4%}"


def measure_rerank(device, size=(1600, 8000), dim=1024, ids=750, alone=False, peer_rerank=None, full=False):
    """metrics.rerank beside the usual way, or alone where the matrices of that do not fit; results are distances."""
    peer = peer_rerank and load_peer(peer_rerank, "re_ranking")
    features, _, _ = draw(*size, dim, ids, noise=2.5)
    q, g = (torch.from_numpy(f).to(device) for f in features)
    ours, once = "metrics.rerank", "re_ranking, one run"
    functions = {ours: lambda: metrics.rerank(q, g, distance="euclidean")}
    if not alone:
        functions["dense numpy"] = lambda: dense_rerank(*features)
    if peer:
        x, y = features
        roots = (np.sqrt(squared_distances(*pair).clip(0)) for pair in ((x, y), (x, x), (y, y)))  # when it is called
        functions[once] = lambda: peer(*roots)  # squares them itself
    print(f"re-ranking {size[0]} + {size[1]}, x {dim}; {4e-6 * size[0] * size[1]:,.0f} MB returned")
    if alone:
        return compare(device, functions, [ours])
    runs = compare(device, functions, [once], rounds=3, remark=tell_difference)
    if full:
        measure_rerank(device, (11659, 82161), ids=3060, alone=True)
    return runs
