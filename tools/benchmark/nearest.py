"""The nearest of a large gallery: gallery.top_k of search.py, in numpy, beside the least that it takes."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from searching import gallery
from tools.benchmark.measure import compare
from tools.benchmark.ranking import write_gallery


def read_all(features, pool, parts):
    """Reads memory as fast as it goes: sums of slices, in as many threads as gallery.products uses."""
    edges = np.linspace(0, len(features), parts + 1).astype(int).tolist()
    return sum(pool.map(lambda ends: features[slice(*ends)].sum(), zip(edges[:-1], edges[1:], strict=True)))


def measure_search(device, size=1_000_000, dim=1024, queries=100, top=10, rounds=7):
    """gallery.top_k in a memory-mapped file beside the least that it takes: one query has to read all features, many
    have to be multiplied with them. {number of queries: runs}. device is not looked at: this is numpy."""
    rng, found = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory(prefix="reid-") as folder, ThreadPoolExecutor(gallery.READERS) as pool:
        write_gallery(folder, rng.standard_normal((8, dim), dtype=np.float32), size - 8)
        mapped = np.load(f"{folder}/gallery.npy", mmap_mode="r")
        features = np.asarray(mapped)  # the same memory without what memmap adds to each slice
        print(f"the {top} best of {size:,} x {dim} features, {4e-9 * size * dim:.1f} GB, in the cache of the system")
        for count in (1, queries):
            asked = rng.standard_normal((count, dim), dtype=np.float32)
            sides = {"reading them": partial(read_all, features, pool, 8 * gallery.READERS)}
            if count > 1:
                sides = {"bare product": partial(np.matmul, asked, features.T)}
            sides["gallery.top_k"] = partial(gallery.top_k, asked, mapped, top)
            print(f"{count} {'query' if count == 1 else 'queries'}")
            found[count] = compare(
                device, sides, rounds=rounds, remark=lambda run, first: f"{4e-9 * size * dim / run.seconds:.1f} GB/s"
            )
            check_answers(found[count]["gallery.top_k"].result[0], asked, features)
    return found


def check_answers(indices, asked, features):
    """Raises ValueError unless nothing outside of the answers (Q, k) has a larger product than the last of them."""
    products = asked @ features.T
    last = np.take_along_axis(products, indices, 1).min(1, keepdims=True)
    np.put_along_axis(products, indices, -np.inf, 1)
    if (products.max(1, keepdims=True) > last + 1e-3).any():  # products of other routines differ in the last digits
        raise ValueError("gallery.top_k does not give the best")
