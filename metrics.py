"""Metrics of re-ID, exact, on any device, in memory that does not grow with Q x G. Torch and numpy, nothing of ours.

    scores = evaluate(query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids)
    scores["mAP"], scores["cmc"][0]  # fractions; cmc[r - 1] is rank r
    evaluate_distances(distmat, query_pids, gallery_pids, query_camids, gallery_camids)  # from a (Q, G) matrix
    open_set(scores["queries"])  # is the person there at all: DIR at FAR
    operating_point(verification(...), fmr=1e-3)  # the same person or not: threshold and error rates, with intervals
    rerank(query_features, gallery_features), expand_queries(...), multi_query(...)  # better answers

Features are tensors, numpy arrays, memory-mapped files, or iterators of blocks (n, D); of any real type, half precision
is compared in float32. Computed where they lie: on the GPU if either side is there. Distances: cosine, which is
1 - q.g / |q||g|, and euclidean, which is |q - g|^2, squared.

For a query, the gallery items of its own person are matches, except those of its own camera: they are junk and dropped.
All other items are wrong answers, distractors (pid 0) included. What a data set tells to ignore (pid -1) is left out by
its parser, not here, where pids are only compared. Items rank by distance; equal distances rank in gallery order, as a
stable sort gives them. With n matches, the i-th of them (from 1) at rank r_i:

    AP = mean over i of i / r_i      mINP = mean over queries of n / r_n      CMC(r) = share of queries with r_1 <= r

(mAP and CMC: Zheng et al., ICCV 2015, AP without interpolation; mINP: Ye et al., TPAMI 2021.) Queries without a match
are left out of all means and counted. CMC keeps its last value where the gallery is shorter than max_rank.

Protocols:
- market1501: as above.
- cuhk03: CMC on a gallery of one random image per person (Li et al., CVPR 2014). Usually some draws are averaged; this
  is the exact expectation over all of them. mAP and mINP are those of the full list.
- no_camera_rule: nothing is junk, everything of the own person is a match. For data that have one camera.
- Multi-query (Zheng et al., ICCV 2015) is one of these with queries that multi_query pools from several images.

How: r_i is i plus the number of wrong answers that are closer, and counting those needs no order. For each block of
queries, one pass over the gallery takes the distances of the matches, from the parts of it where they stand, and a
second one counts what is closer; a small gallery is multiplied once for both. All blocks have one shape, because a
matrix product rounds differently for other shapes, and then a match and a wrong answer with the same feature would no
longer tie (a collapsed model would score at random, or perfectly).
"""

import math
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

DISTANCES = ("cosine", "euclidean")
PROTOCOLS = ("market1501", "cuhk03", "no_camera_rule")
BLOCK = {"cpu": (1024, 4096), "cuda": (4096, 8192)}  # queries x gallery items whose distances are in memory at a time
HELD = {"cpu": 2**24, "cuda": 2**28}  # so many distances of a block of queries to the gallery are computed only once


# Checks of what comes in ---------------------------------------------------------------------------------------------


def as_tensor(array, what):
    """The tensor that shares the memory of a tensor, a numpy array or a memory-mapped file; a list is copied."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
            return torch.from_numpy(np.asarray(array))
    except (TypeError, ValueError) as error:  # strings, None, rows of unequal length
        raise ValueError(f"{what} must be numbers, in a tensor, array or list: {error}") from error


def as_matrix(features, what):
    """`features` as a tensor; what an iterator of blocks gives goes to a temporary file first, as all is read twice."""
    if not isinstance(features, Iterator):
        return as_tensor(features, what)
    width = dtype = None
    with tempfile.TemporaryFile(prefix="reid-") as file:  # no name, gone with its last reader
        for number, block in enumerate(features):
            block = as_tensor(block, f"block {number} of the {what}")
            if block.ndim == 2 and width is None:
                width, dtype = block.shape[1], compare_dtype(block)
            if block.ndim != 2 or (block.shape[1], compare_dtype(block)) != (width, dtype) or block.dtype == torch.bool:
                wanted = f"real numbers of shape (n, {width or 'D'}), all blocks of one precision"
                given = f"{block.dtype} {tuple(block.shape)}"
                raise ValueError(f"block {number} of the {what} must hold {wanted}, not {given}")
            file.write(block.to("cpu", dtype).contiguous().numpy())
        if not file.tell():
            raise ValueError(f"the iterator of {what} gave no block, or empty ones: it may have been used up before")
        file.flush()
        return torch.from_numpy(np.memmap(file, str(dtype).removeprefix("torch."), "r+").reshape(-1, width))


def check_choice(value, allowed, what):
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(allowed)}")


def compare_dtype(matrix):
    """What numbers are compared in: at least float32, and float64 for integers that float32 does not hold exactly."""
    wide = matrix.dtype in (torch.int32, torch.int64)
    return torch.float64 if wide else torch.promote_types(matrix.dtype, torch.float32)


def check_matrix(matrix, what):
    """Raises ValueError unless `matrix` is 2-D, not empty, real and finite; gives the squared lengths of its rows."""
    if matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_complex() or matrix.dtype == torch.bool:
        given = f"{matrix.dtype} {tuple(matrix.shape)}"
        raise ValueError(f"{what} must be a matrix of real numbers that is not empty, not {given}")
    size = min(len(matrix), max(1, 2**22 // matrix.shape[1]))
    squares = torch.empty(len(matrix), dtype=compare_dtype(matrix), device=matrix.device)
    for start in range(0, len(matrix), size):
        start = min(start, len(matrix) - size)  # parts of one shape, so that equal rows have equal sums
        rows = matrix[start : start + size].to(squares.dtype)
        squares[start : start + size] = rows.square().sum(1)
        if not squares[start : start + size].isfinite().all() and not rows.isfinite().all():
            row = start + (~rows.isfinite().all(1)).nonzero()[0].item()
            raise ValueError(f"{what} hold NaN or infinity, first in row {row}: look at what made that row")
    return squares


class Features(NamedTuple):
    """A checked feature matrix (N, D), and the |x|^2 (N,) of its rows."""

    matrix: torch.Tensor
    squares: torch.Tensor


def check_ids(ids, size, device, gallery="gallery_"):
    """pids and camids of queries and gallery, in evaluate's order, as int64 tensors (Q,) or (G,); size is (Q, G)."""
    names, checked = ("query_pids", f"{gallery}pids", "query_camids", f"{gallery}camids"), []
    for values, length, what in zip(ids, 2 * size, names, strict=True):
        values = as_tensor(values, what)
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{what} must be integers, not {values.dtype}")
        if values.shape != (length,):
            raise ValueError(f"{what} must have the shape ({length},), one id per item, not {tuple(values.shape)}")
        checked.append(values.to(device, torch.int64))
    return checked


# Distances, block by block -------------------------------------------------------------------------------------------


@contextmanager
def exact_products(device):
    """Matrix products in full precision, whatever TF32, bf16 or autocast setting the training left behind."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def block_shape(block, device, size):
    """The shape of a block of keys out of `size`: at most `block`, evenly cut."""
    block = BLOCK["cuda" if device.type == "cuda" else "cpu"] if block is None else block
    if not isinstance(block, tuple) or [type(part) for part in block] != [int, int] or min(block) < 1:
        raise ValueError(f"block must be two whole numbers from 1, (queries, gallery items), not {block}")
    return tuple(-(-n // -(-n // most)) for n, most in zip(size, block, strict=True))  # both divisions round up


class Comparison:
    """Features against features, a block of (queries, gallery items) at a time.

    Keys are numbers that order the gallery as the distance does. What depends on the query alone is left out of them
    (|q|^2 of the squared Euclidean distance, 1 / |q| of the cosine): so integer-valued features have the same keys in
    blocks of any size.
    """

    def __init__(self, queries, gallery, device, distance, block=None):
        self.queries, self.gallery, self.device, self.distance = queries, gallery, device, distance
        self.dtype = torch.promote_types(queries.squares.dtype, gallery.squares.dtype)
        self.query_squares = queries.squares.to(device, self.dtype)  # (Q,)
        self.gallery_squares = gallery.squares.to(device, self.dtype)  # (G,)
        self.lengths = self.query_squares.sqrt().clamp_min(1e-12)
        self.scale = -1 / self.gallery_squares.sqrt().clamp_min(1e-12)
        self.size = len(self.lengths), len(self.scale)
        self.shape = block_shape(block, device, self.size)

    def load(self, features, index, least=0):
        """Rows (n, D) of features, and rows of zeros behind them where there are less than `least`."""
        index = index if isinstance(index, slice) else index.to(features.matrix.device)
        rows = features.matrix[index].to(self.device, self.dtype)
        return F.pad(rows, (0, 0, 0, least - len(rows))) if len(rows) < least else rows

    def keys(self, rows):
        """For rows (B,) of queries a function: start -> keys (B, n) of the block of the gallery that begins there."""
        # all products are of one shape; below 16 another routine multiplies, which rounds equal rows differently
        height, width = (max(16, side) for side in self.shape)
        query_block = self.load(self.queries, rows, height)

        def of_block(start):
            columns = slice(start, start + self.shape[1])
            products = torch.mm(query_block, self.load(self.gallery, columns, width).T)
            return self.to_keys(products[: len(rows), : len(self.scale[columns])], columns)

        return of_block

    def to_keys(self, products, columns):
        """Products (B, n) or (n,) with columns (n,) of the gallery -> keys, in their place."""
        if self.distance == "euclidean":
            return torch.add(self.gallery_squares[columns], products, alpha=-2, out=products)
        return products.mul_(self.scale[columns])

    def to_distance(self, keys, rows):
        """Keys (B,) or (B, n) of rows (B,) -> distances."""
        rows = rows.view(-1, *[1] * (keys.ndim - 1))
        if self.distance == "euclidean":
            return (keys + self.query_squares[rows]).clamp_min(0)
        return (1 + keys / self.lengths[rows]).clamp_min(0)


class GivenDistances:
    """The same for a matrix of distances (Q, G), which are their own keys."""

    def __init__(self, distmat, block=None):
        self.distmat = as_tensor(distmat, "distances")
        check_matrix(self.distmat, "distances")
        self.size, self.device, self.dtype = tuple(self.distmat.shape), self.distmat.device, compare_dtype(self.distmat)
        self.shape = block_shape(block, self.device, self.size)

    def keys(self, rows):
        return lambda start: self.distmat[rows, start : start + self.shape[1]].to(self.dtype)

    def to_distance(self, keys, rows):
        return keys


def compare(query_features, gallery_features, distance, block=None):
    """The Comparison of two feature matrices, which are checked."""
    check_choice(distance, DISTANCES, "distance")
    sides = []
    for features, what in ((query_features, "query features"), (gallery_features, "gallery features")):
        matrix = as_matrix(features, what)
        sides.append(Features(matrix, check_matrix(matrix, what)))
        if not (4 * sides[-1].squares).isfinite().all():  # the largest number that distances are made of
            raise ValueError(f"{what}: squared lengths overflow {sides[-1].squares.dtype}: scale the features down")
    queries, gallery = (side.matrix for side in sides)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {queries.shape[1]} columns, gallery features {gallery.shape[1]}")
    return Comparison(*sides, queries.device if queries.is_cuda else gallery.device, distance, block)


# Ranks ---------------------------------------------------------------------------------------------------------------


def count_per_row(row, num_rows):
    """For row numbers in ascending order (P,): how many each row has (num_rows,), and which of its row each is (P,)."""
    count = torch.bincount(row, minlength=num_rows)
    return count, torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]


def sort_rows(keys):
    """A copy (B, n) with sorted rows. numpy sorts numbers alone, with vector instructions: 20 times faster on a CPU."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    ordered = keys.clone(memory_format=torch.contiguous_format)
    threads = min(torch.get_num_threads(), ordered.numel() // 2**18)  # starting one takes as long as sorting so many
    if threads < 2:
        ordered.numpy().sort(axis=1)
        return ordered
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(ordered.numpy(), threads)))
    return ordered


def count_closer(keys, ordered, limits, place):
    """How many keys (B, n) of the row rank before each limit (B, M). A tie does if its column is below place (B, M)."""
    closer = torch.searchsorted(ordered, limits)  # (B, M), strictly
    tied = (ordered.gather(1, closer.clamp(max=keys.shape[1] - 1)) == limits) & (place > 0)
    columns = torch.arange(keys.shape[1], device=keys.device)
    for row, match in (part.T for part in tied.nonzero().split(1024)):
        equal = (keys[row] == limits[row, match, None]) & (columns < place[row, match, None])  # (1024, n)
        closer[row, match] += equal.sum(1)
    return closer


def count_closer_by_person(of_block, size, row, column, limits, person, images):
    """Before each match (P,), as (row, column, key): how many items of each other person rank, (P, persons)."""
    counts = torch.zeros(len(row), len(images), device=limits.device)
    for start in range(0, len(person), size):
        keys, own = of_block(start), person[start : start + size]
        columns = torch.arange(start, start + len(own), device=keys.device)
        for part in torch.arange(len(row), device=keys.device).split(1024):
            key, limit = keys[row[part]], limits[part, None]  # (1024, n), (1024, 1)
            ahead = (key < limit) | ((key == limit) & (columns < column[part, None]))
            counts[part] = counts[part].index_add(1, own, ahead.to(counts.dtype))
    return counts.scatter_(1, person[column, None], 0)


def successes(probabilities, most):
    """P(k of the independent events happen), k = 0 .. most - 1. (P, N) probabilities -> (P, most): Poisson binomial."""
    result = torch.zeros(len(probabilities), most, dtype=torch.float64, device=probabilities.device)
    result[:, 0] = 1
    for column in (probabilities > 0).any(0).nonzero()[:, 0]:
        p = probabilities[:, column, None]
        one_more = result[:, :-1] * p
        result *= 1 - p
        result[:, 1:] += one_more
    return result


def entries(first, count):
    """Of lists of count (B,) entries that stand from first (B,) on: whose and which each entry is, (P,), (P,)."""
    row = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return row, first[row] + count_per_row(row, len(count))[1]


def closest_first(of_block, size, column, is_match, dtype):
    """Keys and columns of the matches (B, M), sorted by key; infinity and 0, where no key ties, for all else.

    The keys come out of the blocks that hold any match.
    """
    limits = torch.full_like(column, torch.inf, dtype=dtype)
    for number in (column[is_match] // size).unique().tolist():
        row, nth = (is_match & (column // size == number)).nonzero().T
        limits[row, nth] = of_block(size * number)[row, column[row, nth] % size]
    limits, order = limits.sort(dim=1, stable=True)
    return limits, column.gather(1, order).where(limits < torch.inf, 0)


def count_wrong(of_block, size, num_gallery, column, same, limits, place):
    """Wrong answers before each match (B, M), and key and column (B,) of the nearest one; gallery block by block.

    The columns (B, M) of the same person are no wrong answers.
    """
    wrong, nearest = torch.zeros_like(place), place.new_full(place.shape[:1], -1)
    nearest_key = torch.full_like(limits[:, 0], torch.inf)
    for start in range(0, num_gallery, size):
        block = of_block(start)  # (B, n)
        row, nth = (same & (column // size == start // size)).nonzero().T
        block[row, column[row, nth] - start] = torch.inf
        ordered = sort_rows(block)
        wrong += count_closer(block, ordered, limits, place - start)
        nearer = (ordered[:, 0] < nearest_key).nonzero()[:, 0]  # strictly: of equal ones the first is kept
        nearest_key[nearer] = ordered[nearer, 0]
        nearest[nearer] = start + block[nearer].argmin(1)  # the first of equal ones
    return wrong, nearest_key, nearest


def rank_queries(comparison, ids, protocol, max_rank):
    """The dict `queries` of evaluate, and P(first hit at rank r) (Q, max_rank), which is 0 for queries without one."""
    device, size = comparison.device, comparison.shape[1]
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    by_pid = gallery_pids.argsort(stable=True)
    ordered = gallery_pids[by_pid]
    pids, person, images = gallery_pids.unique(return_inverse=True, return_counts=True)
    most = max([1, *images[torch.isin(pids, query_pids)].tolist()])
    parts, order = [], query_pids.argsort(stable=True)  # queries of one person together: they share matches
    first_hit = torch.zeros(len(query_pids), max_rank, dtype=torch.float64, device=device)
    for rows in order.split(min(comparison.shape[0], max(1, 2**23 // most))):
        first = torch.searchsorted(ordered, query_pids[rows])
        count = torch.searchsorted(ordered, query_pids[rows], right=True) - first  # items of the same person
        hits = torch.arange(max(1, int(count.max())), device=device)
        same = hits < count[:, None]  # (B, M)
        column = by_pid[(first[:, None] + hits).clamp_max(len(by_pid) - 1)]
        is_match = same & ((gallery_camids[column] != query_camids[rows, None]) | (protocol == "no_camera_rule"))
        of_block = comparison.keys(rows)
        if len(rows) * len(gallery_pids) <= HELD[device.type]:
            of_block = cache(of_block)
        limits, place = closest_first(of_block, size, column, is_match, comparison.dtype)  # (B, M)
        wrong, wrong_key, nearest_wrong = count_wrong(of_block, size, len(person), column, same, limits, place)
        count = is_match.sum(1)
        found, seen = count > 0, count.clamp_min(1)
        precision = (hits + 1) / (hits + 1 + wrong).double()  # (B, M)
        last = seen[:, None] - 1
        parts.append({
            "ap": precision.cumsum(1).gather(1, last)[:, 0] / seen * found,  # added in order, so that M plays no part
            "inp": precision.gather(1, last)[:, 0] * found,
            "matches": count,
            "first_hit": (wrong[:, 0] + 1) * found,
            "nearest_match": place[:, 0].where(found, -1),
            "match_distance": comparison.to_distance(limits[:, 0], rows),
            "nearest_wrong": nearest_wrong,
            "wrong_distance": comparison.to_distance(wrong_key, rows),
        })
        if protocol == "cuhk03":  # any of the matches may be the image that is drawn of the person
            row, nth = (limits < torch.inf).nonzero().T  # (P,)
            ahead = count_closer_by_person(of_block, size, row, place[row, nth], limits[row, nth], person, images)
            chances = successes(ahead.double() / images, max_rank) / seen[row, None]
            first_hit[rows] = torch.zeros_like(first_hit[rows]).index_add(0, row, chances)
        else:
            shown = (wrong[:, 0] < max_rank) & found
            first_hit[rows[shown], wrong[shown, 0]] = 1
    back = order.argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}, first_hit


def score(comparison, ids, distance, protocol, max_rank, gather=None):
    """The dict that evaluate and evaluate_distances give."""
    queries, first_hit = rank_queries(comparison, ids, protocol, max_rank)
    if gather:
        queries, first_hit = {name: gather(values) for name, values in queries.items()}, gather(first_hit)
    number = int((queries["matches"] > 0).sum())
    if number == 0:
        rule = "the same pid in the gallery" + (" under another camid" if protocol != "no_camera_rule" else "")
        advice = "pass the same ids and the real camids for both sides" + (
            ", or protocol='no_camera_rule' if there is one camera" if protocol != "no_camera_rule" else ""
        )
        total = len(first_hit)
        raise ValueError(f"none of the {total} queries can be matched: protocol {protocol} needs {rule}; {advice}")
    return {
        "cmc": (first_hit.sum(0).cumsum(0) / number).float().cpu(),
        "mAP": queries["ap"].sum().item() / number,
        "mINP": queries["inp"].sum().item() / number,
        "num_valid_queries": number,
        "distance": distance,
        "protocol": protocol,
        "queries": {name: values.cpu() for name, values in queries.items()},
    }


def check_whole(value, low, what):
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{what} must be a whole number from {low}, not {value!r}")


@torch.no_grad()
def evaluate(
    query_features,
    gallery_features,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    distance="cosine",
    protocol="market1501",
    max_rank=50,
    block=None,
    gather=None,
):
    """Scores of query features (Q, D) against gallery features (G, D); definitions at the top of this file.

    block: (queries, gallery items) that are multiplied at a time; the gallery is read once for each block of queries,
    and the parts of it that hold matches twice where it is large.
    gather: where several processes rank a part of the queries each, the function that puts rows (q, ...) of all
    together; every process then returns the scores of all queries.
    Returns cmc (max_rank,) on the CPU, mAP and mINP as fractions, num_valid_queries, distance, protocol, and `queries`:
    per query, tensors (Q,) on the CPU, ap and inp (0 without a match), matches (how many), first_hit (its rank, 0
    without one), nearest_match and nearest_wrong (gallery index, -1 where there is none), match_distance and
    wrong_distance (infinite where there is none).
    Raises ValueError for features that are not finite, ids of the wrong length or type, and no query with a match.
    """
    check_whole(max_rank, 1, "max_rank")
    check_choice(protocol, PROTOCOLS, "protocol")
    comparison = compare(query_features, gallery_features, distance, block)
    ids = check_ids((query_pids, gallery_pids, query_camids, gallery_camids), comparison.size, comparison.device)
    with exact_products(comparison.device):
        return score(comparison, ids, distance, protocol, max_rank, gather)


@torch.no_grad()
def evaluate_distances(
    distmat,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    protocol="market1501",
    max_rank=50,
    block=None,
):
    """The same from a matrix of distances (Q, G), smaller is closer: tensor, numpy array or memory-mapped file."""
    check_choice(protocol, PROTOCOLS, "protocol")
    check_whole(max_rank, 1, "max_rank")
    comparison = GivenDistances(distmat, block)
    ids = check_ids((query_pids, gallery_pids, query_camids, gallery_camids), comparison.size, comparison.device)
    return score(comparison, ids, "given", protocol, max_rank)


# Open sets: is the person there at all -------------------------------------------------------------------------------


def check_rate(rate, what):
    if not 0 < rate < 1:
        raise ValueError(f"{what} must lie between 0 and 1, such as 0.01, not {rate}")


def open_set(queries, far=0.01):
    """Detection and identification rate (DIR) at a false alarm rate (FAR), from the `queries` that evaluate gives.

    A query is answered with its nearest gallery item where that is closer than a threshold. DIR: the share of the
    queries with a match that are answered, and rightly (Phillips, Grother, Micheals, "Evaluation methods in face
    recognition", 2011, at rank 1). FAR: the share of all queries that would be answered if their person had no image in
    the gallery. The threshold is the largest that keeps the FAR within `far`.
    Returns dir, far (as reached), threshold (a distance, as evaluate measures it).
    """
    check_rate(far, "far")
    wrong, known = queries["wrong_distance"].sort().values, queries["matches"] > 0
    if not known.any():
        raise ValueError(f"none of the {len(known)} queries has a match: there is nothing to find")
    answered = math.floor(far * len(wrong) + 1e-9)  # so many false alarms are allowed; far < 1, so it is an index
    threshold = wrong[answered]
    right = known & (queries["first_hit"] == 1) & (queries["match_distance"] < threshold)
    return {
        "dir": right.sum().item() / known.sum().item(),
        "far": (wrong < threshold).sum().item() / len(wrong),
        "threshold": threshold.item(),
    }


# Verification: the same person or not --------------------------------------------------------------------------------


def count_distances(comparison, ids, protocol, query_group, gallery_group, groups, bins, high):
    """Histograms: genuine pairs by person, impostor pairs by both of their persons (groups, bins), and all (bins,)."""
    query_pids, gallery_pids, query_camids, gallery_camids = ids
    width = high / bins
    # a row more for persons without a query, a column more for pairs that do not count
    genuine, impostor = torch.zeros(2, (groups + 1) * (bins + 1), dtype=torch.int64, device=comparison.device)
    every = torch.zeros(bins + 1, dtype=torch.int64, device=comparison.device)
    one = torch.ones((), dtype=torch.int64, device=comparison.device)
    for rows in torch.arange(len(query_pids), device=comparison.device).split(comparison.shape[0]):
        of_block, group = comparison.keys(rows), query_group[rows, None] * (bins + 1)
        for start in range(0, len(gallery_pids), comparison.shape[1]):
            columns = slice(start, start + comparison.shape[1])
            distances = comparison.to_distance(of_block(start), rows)  # (B, n)
            number = (distances / width).long().clamp_(0, bins - 1)
            same = query_pids[rows, None] == gallery_pids[columns]
            same_camera = query_camids[rows, None] == gallery_camids[columns]
            right = same if protocol == "no_camera_rule" else same & ~same_camera
            index = (group + number)[right]
            genuine.index_add_(0, index, one.expand_as(index))
            number[same] = bins
            every += number.flatten().bincount(minlength=bins + 1)
            for side in (group, gallery_group[columns] * (bins + 1)):
                index = (side + number).flatten()
                impostor.index_add_(0, index, one.expand_as(index))
    tables = (table.view(groups + 1, bins + 1)[:groups, :bins].cpu() for table in (genuine, impostor))
    return *tables, every[:bins].cpu()


@torch.no_grad()
def verification(
    query_features,
    gallery_features,
    query_pids,
    gallery_pids,
    query_camids,
    gallery_camids,
    *,
    distance="cosine",
    protocol="market1501",
    bins=2**14,
    block=None,
):
    """ROC over all pairs of a query and a gallery item, junk left out: a pair is accepted below a threshold.

    Distances are counted in `bins` bins of equal width over all that is possible: thresholds have that resolution,
    the rates at a threshold are exact. At the last one, the largest possible distance, every pair is accepted.
    Returns threshold, fmr, fnmr and tpr (bins + 1,): false match rate (FPR), false non-match rate, true positive rate;
    eer (equal error rate), num_genuine, num_impostor, resolution, distance, protocol; and for operating_point the
    counts by person, (persons with a query, bins), where an impostor pair stands under both of its persons. More than
    2**24 / bins persons share rows.
    """
    check_whole(bins, 2, "bins")
    check_choice(protocol, PROTOCOLS, "protocol")
    comparison = compare(query_features, gallery_features, distance, block)
    ids = check_ids((query_pids, gallery_pids, query_camids, gallery_camids), comparison.size, comparison.device)
    high = 2.0  # no distance lies above
    if distance == "euclidean":
        longest = comparison.query_squares.max().sqrt() + comparison.gallery_squares.max().sqrt()
        high = longest.square().item() or 1.0  # 1: all features are 0
    persons, query_person = ids[0].unique(return_inverse=True)
    gallery_person = torch.searchsorted(persons, ids[1]).clamp_max(len(persons) - 1)
    groups = min(len(persons), max(1, 2**24 // bins))
    gallery_group = torch.where(persons[gallery_person] == ids[1], gallery_person % groups, groups)
    with exact_products(comparison.device):
        genuine, impostor, every = count_distances(
            comparison, ids, protocol, query_person % groups, gallery_group, groups, bins, high
        )
    for number, what in ((genuine.sum(), "of one person"), (every.sum(), "of two persons")):
        if number == 0:
            raise ValueError(f"no pair {what} among queries and gallery: a ROC needs both kinds (protocol {protocol})")
    false, true = (F.pad(part.cumsum(0), (1, 0)) for part in (every, genuine.sum(0)))  # pairs accepted
    fmr, tpr, fnmr = false / false[-1].double(), true / true[-1].double(), (true[-1] - true) / true[-1].double()
    return {
        "threshold": torch.linspace(0, high, bins + 1, dtype=torch.float64), "fmr": fmr, "fnmr": fnmr, "tpr": tpr,
        "eer": ((fmr + fnmr) / 2)[(fmr - fnmr).abs().argmin()].item(),
        "num_genuine": int(genuine.sum()), "num_impostor": int(every.sum()), "resolution": high / bins,
        "distance": distance, "protocol": protocol,
        "genuine_by_person": genuine, "impostor_by_person": impostor, "impostor": every,
    }


def operating_point(roc, *, fmr=None, fnmr=None, confidence=0.95, draws=1000, seed=0):
    """The threshold at a chosen rate, the error rates there, and intervals over persons, from what verification gives.

    fmr: the largest threshold whose false match rate is at most that; fnmr: the smallest whose false non-match rate is.
    Intervals: bootstrap over the persons of the queries, `draws` times as many persons drawn with replacement, with all
    of their pairs. An impostor pair belongs to two persons, so a draw changes its count by the draws of both (the first
    order of a bootstrap of both sides; pairs of one person are far from independent). threshold_interval: where the
    threshold would have been chosen; fmr_interval and fnmr_interval: the rates at the threshold that is returned.
    In simulations the 95 % intervals held the truth in 93 to 97 % of the cases with 150 persons or more, in 89 to 94 %
    with 20 to 50. Gallery items of persons without a query, distractors too, are taken as given.
    A rate below 1 / num_impostor cannot be measured: the threshold is then one without any false match.
    """
    if (fmr is None) == (fnmr is None):
        raise ValueError("give fmr or fnmr, one of them: the rate to find a threshold for")
    check_rate(fmr if fnmr is None else fnmr, "fmr" if fnmr is None else "fnmr")
    check_rate(confidence, "confidence")
    check_whole(draws, 1, "draws")

    def choose(fmrs, fnmrs):
        return (fmrs <= fmr).sum(-1) - 1 if fnmr is None else (fnmrs > fnmr).sum(-1)

    at = choose(roc["fmr"], roc["fnmr"])
    genuine, impostor = (F.pad(roc[f"{name}_by_person"].double().cumsum(1), (1, 0)) for name in ("genuine", "impostor"))
    every = F.pad(roc["impostor"].double().cumsum(0), (1, 0))
    rng, persons = np.random.default_rng(seed), len(genuine)
    samples = []
    for start in range(0, draws, 64):
        number = min(64, draws - start)
        drawn = torch.from_numpy(rng.multinomial(persons, np.full(persons, 1 / persons), number)).double()
        hits = drawn @ genuine  # (draws, bins + 1)
        false = (every + (drawn - 1) @ impostor).clamp_min(0)
        fnmrs = (hits[:, -1:] - hits) / hits[:, -1:].clamp_min(1)
        fmrs = (false / false[:, -1:].clamp_min(1)).clamp_max(1)
        samples.append(torch.stack([roc["threshold"][choose(fmrs, fnmrs)], fmrs[:, at], fnmrs[:, at]]))
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.cat(samples, dim=1).quantile(ends, dim=1).tolist()  # of threshold, FMR, FNMR
    point = {"threshold": roc["threshold"][at], "fmr": roc["fmr"][at], "fnmr": roc["fnmr"][at]}
    intervals = zip(point, low, high, strict=True)
    return {name: value.item() for name, value in point.items()} | {f"{n}_interval": (a, b) for n, a, b in intervals}


# Several images per query, query expansion ---------------------------------------------------------------------------


def scaled_rows(features, distance):
    """Rows as they enter a mean: of length 1 for the cosine distance, which looks at directions alone."""
    return F.normalize(features, dim=1) if distance == "cosine" else features


@torch.no_grad()
def multi_query(features, pids, camids, query_pids, query_camids, *, pool="average", distance="cosine"):
    """Query features (Q, D), each pooled from all images (N, D) of its person under its camera: average or maximum.

    Market-1501's multi-query protocol (Zheng et al., ICCV 2015): the images are those of gt_bbox, the queries the
    standard ones. For the cosine distance every image counts with length 1.
    """
    check_choice(pool, ("average", "maximum"), "pool")
    check_choice(distance, DISTANCES, "distance")
    features = as_matrix(features, "features")
    check_matrix(features, "features")
    size = as_tensor(query_pids, "query_pids").numel(), len(features)
    if size[0] == 0:
        raise ValueError("query_pids are empty: there is no query to pool images for")
    ids = check_ids((query_pids, pids, query_camids, camids), size, features.device, gallery="")
    features = scaled_rows(features.to(compare_dtype(features)), distance)
    seen = torch.cat([torch.stack(ids[::2], dim=1), torch.stack(ids[1::2], dim=1)])  # (Q + N, 2): pid, camid
    places, place = seen.unique(dim=0, return_inverse=True)
    query_place, place = place.split(size)
    missing = (torch.bincount(place, minlength=len(places))[query_place] == 0).nonzero()[:, 0]
    if len(missing):
        pid, camid = seen[missing[0]].tolist()
        raise ValueError(f"{len(missing)} of {size[0]} queries have no image to pool, first pid {pid}, camid {camid}")
    pooled = features.new_zeros(len(places), features.shape[1])
    how = {"average": "mean", "maximum": "amax"}[pool]
    pooled.scatter_reduce_(0, place[:, None].expand_as(features), features, how, include_self=False)
    return pooled[query_place]


def neighbours(comparison, k, kept=None):
    """The k nearest gallery items of each query, (Q, k) ascending, and the distance to the farthest of all, (Q,).

    kept (q, g): a matrix that takes the keys of the first q queries with the last g items.
    """
    nearest, farthest, k = [], [], min(k, comparison.size[1])
    for rows in torch.arange(comparison.size[0], device=comparison.device).split(comparison.shape[0]):
        of_block = comparison.keys(rows)
        best = torch.full((len(rows), k), torch.inf, dtype=comparison.dtype, device=comparison.device)
        columns, last = torch.zeros_like(best, dtype=torch.int64), torch.full_like(best[:, 0], -torch.inf)
        for start in range(0, comparison.size[1], comparison.shape[1]):
            keys = of_block(start)
            last = torch.maximum(last, keys.amax(1))
            if kept is not None and rows[0] < len(kept):
                skipped = comparison.size[1] - kept.shape[1] - start  # columns in front of the kept ones
                part = keys[: len(kept) - int(rows[0]), max(0, skipped) :]
                kept[rows[: len(part)], max(0, -skipped) : max(0, -skipped) + part.shape[1]] = part
            # few may enter the list: of the first block those up to its k-th, later what is closer than the last of the
            # list, as what ties with that comes after it
            first = keys.topk(min(k, keys.shape[1]), dim=1, largest=False).values[:, -1:] if start == 0 else None
            row, column = (keys < best[:, -1:] if first is None else keys <= first).nonzero().T
            count, nth = count_per_row(row, len(rows))
            more = keys.new_full((len(rows), int(count.max())), torch.inf)
            more_columns = torch.zeros_like(more, dtype=torch.int64)
            more[row, nth], more_columns[row, nth] = keys[row, column], column + start
            best, order = torch.cat([best, more], dim=1).sort(dim=1, stable=True)
            best, columns = best[:, :k], torch.cat([columns, more_columns], dim=1).gather(1, order[:, :k])
        nearest.append(columns)
        farthest.append(comparison.to_distance(last, rows))
    return torch.cat(nearest), torch.cat(farthest)


@torch.no_grad()
def expand_queries(query_features, gallery_features, *, k=5, distance="cosine", block=None):
    """Average query expansion (Chum et al., ICCV 2007): mean of each query and its k nearest gallery items, (Q, D).

    For the cosine distance all of them count with length 1.
    """
    check_whole(k, 1, "k")
    comparison = compare(query_features, gallery_features, distance, block)
    with exact_products(comparison.device):
        nearest, _ = neighbours(comparison, k)
    expanded = []
    for rows in torch.arange(len(nearest), device=comparison.device).split(256):
        total = scaled_rows(comparison.load(comparison.queries, rows), distance)  # (B, D)
        for column in nearest[rows].T:
            total = total + scaled_rows(comparison.load(comparison.gallery, column), distance)
        expanded.append(total / (1 + nearest.shape[1]))
    return torch.cat(expanded)


# Re-ranking ----------------------------------------------------------------------------------------------------------


def reciprocal(nearest):
    """Whether each of the nearest (N, k) has the item in its own nearest: bool (N, k)."""
    parts = []
    for rows in torch.arange(len(nearest), device=nearest.device).split(max(1, 2**22 // nearest.shape[1] ** 2)):
        parts.append((nearest[nearest[rows]] == rows[:, None, None]).any(2))
    return torch.cat(parts)


def expanded_sets(nearest, half):
    """The pairs (item, member) of the expanded k-reciprocal sets R* (Sec. 3.2), both ascending: (P,), (P,).

    R* of an item: its reciprocal neighbours, and those of each of them, among half as many neighbours, of which more
    than two thirds are also its own.
    """
    near, mutual, mutual_half = nearest[:, :half], reciprocal(nearest), reciprocal(nearest[:, :half])
    width, pairs = nearest.shape[1], []
    for rows in torch.arange(len(nearest), device=nearest.device).split(max(1, 2**22 // (width**2 * half))):
        own = nearest[rows].where(mutual[rows], -1)  # (B, k)
        theirs, valid = near[nearest[rows]], mutual_half[nearest[rows]]  # (B, k, half)
        common = (theirs[..., None] == own[:, None, None]).any(3) & valid
        joins = mutual[rows] & (3 * common.sum(2) > 2 * valid.sum(2))  # (B, k)
        theirs = theirs.where(valid & joins[..., None], -1).flatten(1)  # (B, k * half)
        members = torch.cat([own, theirs], dim=1).sort(dim=1).values
        first = F.pad(members[:, 1:] != members[:, :-1], (1, 0), value=True) & (members >= 0)
        which, place = first.nonzero().T
        pairs.append((rows[which], members[which, place]))
    return [torch.cat(part) for part in zip(*pairs, strict=True)]


def pair_distances(comparison, first, second):
    """Distances (P,) of given pairs of rows, of what is compared with itself."""
    features = comparison.queries.matrix
    size = max(1, 2**18 // features.shape[1])  # rows of both that stay in a CPU's cache
    pairs = zip(first.split(size), second.split(size), strict=True)
    dots = torch.cat([(features[one] * features[other]).sum(1) for one, other in pairs])
    return comparison.to_distance(comparison.to_keys(dots, second), first)


def mean_of_rows(row, column, value, lists):
    """A sparse matrix (N, N), row by row in entries (P,) -> one whose rows are means of its rows: lists (N, k)."""
    number, k = lists.shape
    count = torch.bincount(row, minlength=number)
    first, parts = count.cumsum(0) - count, []
    for rows in torch.arange(number, device=row.device).split(4096):
        chosen = lists[rows].flatten()
        which, entry = entries(first[chosen], count[chosen])
        key, inverse = (which // k * number + column[entry]).unique(return_inverse=True)
        sums = value.new_zeros(len(key)).index_add_(0, inverse, value[entry])
        parts.append((rows[0] + key // number, key % number, sums / k))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def overlaps(row, column, value, num_queries, num_gallery):
    """Of such a matrix, Q + G a side: the sums over all columns of the smaller of a query's and an item's weights.

    Yields the numbers of some queries (B,) with their sums (B, G).
    """
    begin = torch.searchsorted(row, num_queries)
    by_column, order = column[begin:].sort(stable=True)  # the gallery's part, column by column
    item, weight = row[begin:][order] - num_queries, value[begin:][order]
    count = torch.bincount(by_column, minlength=num_queries + num_gallery)
    first = count.cumsum(0) - count
    for rows in torch.arange(num_queries, device=row.device).split(32):
        own = slice(*torch.searchsorted(row, torch.stack([rows[0], rows[-1] + 1])).tolist())
        which, entry = entries(first[column[own]], count[column[own]])
        place = (row[own] - rows[0])[which] * num_gallery + item[entry]
        sums = value.new_zeros(len(rows) * num_gallery)
        sums.index_add_(0, place, torch.minimum(value[own][which], weight[entry]))
        yield rows, sums.view(len(rows), num_gallery)


@torch.no_grad()
def rerank(query_features, gallery_features, *, k1=20, k2=6, lambda_value=0.3, distance="cosine", block=None):
    """Distances (Q, G) after k-reciprocal re-ranking (Zhong et al., CVPR 2017), for evaluate_distances.

    N = Q + G items are compared with each other; each keeps a list of k1 neighbours and a sparse row of weights, so the
    memory beyond the matrix that is returned is O(N k) and one copy of the features. lambda_value: the share of the
    original distance, which is divided by the largest of the query. As the authors' code has it, the item itself is the
    first of its k1 + 1 neighbours, and the weights (Eq. 7) take the divided distances.
    """
    check_whole(k1, 1, "k1")
    check_whole(k2, 1, "k2")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must lie in 0..1, not {lambda_value}")
    sides = compare(query_features, gallery_features, distance, block)
    matrix = torch.cat([side.matrix.to(sides.device, sides.dtype) for side in (sides.queries, sides.gallery)])
    both = Features(matrix, torch.cat([sides.query_squares, sides.gallery_squares]))
    comparison = Comparison(both, both, sides.device, distance, block)
    with exact_products(sides.device):
        result = torch.empty(sides.size, dtype=sides.dtype, device=sides.device)
        nearest, farthest = neighbours(comparison, max(k1 + 1, k2), kept=result)  # (N, k), (N,)
        farthest = farthest.clamp_min(1e-12)
        item, member = expanded_sets(nearest[:, : k1 + 1], round(k1 / 2) + 1)
        # at most 1, but for rounding where all items are alike
        divided = (pair_distances(comparison, item, member) / farthest[item]).clamp_max(1)
        closeness = (-divided).exp()
        total = closeness.new_zeros(len(nearest)).index_add_(0, item, closeness)
        weights = item, member, closeness / total[item]  # V (Eq. 7), rows that sum to 1
        if k2 > 1:
            weights = mean_of_rows(*weights, nearest[:, :k2])  # local query expansion (Sec. 3.4)
        for rows, overlap in overlaps(*weights, *result.shape):
            jaccard = 2 - 2 / (2 - overlap)  # Eq. 10, 1 - s / (2 - s)
            part = result[rows[0] : rows[0] + len(rows)]
            original = comparison.to_distance(part, rows).div_(farthest[rows, None])
            torch.lerp(jaccard, original, lambda_value, out=part)
    return result
