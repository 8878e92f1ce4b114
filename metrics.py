"""Retrieval metrics of re-ID, exact, on any device: CMC, mAP and mINP without a sorted gallery or a Q x G matrix.

    scores = evaluate(query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids)
    scores["mAP"], scores["cmc"][0]  # fractions; cmc[r - 1] is rank r
    evaluate_distances(distmat, query_pids, gallery_pids, query_camids, gallery_camids)  # from a (Q, G) matrix

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

How: r_i is i plus the number of wrong answers that are closer, and counting those needs no order. One pass over blocks
of queries and gallery takes the distances of the matches, a second one counts what is closer. Both passes multiply
blocks of one shape, because a matrix product rounds differently for other shapes, and then a match and a wrong answer
with the same feature would no longer tie (a collapsed model would score at random, or perfectly).
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

DISTANCES = ("cosine", "euclidean")  # euclidean ranks by the squared distance: the order is the same
PROTOCOLS = ("market1501", "cuhk03", "no_camera_rule")
BLOCK = {"cpu": (512, 2048), "cuda": (4096, 8192)}  # queries x gallery items whose distances are in memory at a time


# Checks of what comes in ---------------------------------------------------------------------------------------------


def as_tensor(array):
    """The tensor that shares the memory of a tensor, a numpy array or a memory-mapped file; a list is copied."""
    if isinstance(array, torch.Tensor):
        return array.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing here writes to it
        return torch.from_numpy(np.asarray(array))


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


def check_ids(ids, length, what, device):
    """`ids` as an int64 tensor (length,); raises ValueError where they are anything else."""
    ids = as_tensor(ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{what} must be integers, not {ids.dtype}")
    if ids.shape != (length,):
        raise ValueError(f"{what} must have the shape ({length},), one id per item, not {tuple(ids.shape)}")
    return ids.to(device, torch.int64)


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


def feature_keys(queries, gallery, squares, distance, device, shape):
    """Gives rows -> (columns -> keys): numbers (len(rows), len(columns)) that order the gallery as the distance does.

    rows is an index tensor, columns too or a slice. What depends on the query alone is left out (|q|^2 of the squared
    Euclidean distance, 1 / |q| of the cosine): so integer-valued features have the same keys in blocks of any size.
    """
    offset = squares.to(device, compare_dtype(queries))  # (G,)
    scale = -1 / offset.sqrt().clamp_min(1e-12)

    def load(features, index, size):
        index = index.to(features.device) if isinstance(index, torch.Tensor) else index
        part = features[index].to(device, scale.dtype)
        missing = max(16, size) - len(part)  # below 16 another routine multiplies, which rounds equal rows differently
        return F.pad(part, (0, 0, 0, missing)) if missing else part

    def of_rows(rows):
        query_block = load(queries, rows, shape[0])  # (rows, D)

        def of_columns(columns):
            products = torch.mm(query_block, load(gallery, columns, shape[1]).T)
            products = products[: len(rows), : len(offset[columns])]
            if distance == "euclidean":
                return torch.add(offset[columns], products, alpha=-2)
            return products.mul_(scale[columns])

        return of_columns

    return of_rows


def matrix_keys(distmat):
    """The same from a given (Q, G) matrix."""

    def of_rows(rows):
        def of_columns(columns):
            picked = (rows, columns) if isinstance(columns, slice) else (rows[:, None], columns)
            return distmat[picked].to(compare_dtype(distmat))

        return of_columns

    return of_rows


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
    parts = np.array_split(ordered.numpy(), torch.get_num_threads() if ordered.numel() > 2**16 else 1)
    if len(parts) == 1:  # starting threads would take longer
        parts[0].sort(axis=1)
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(lambda part: part.sort(axis=1), parts))
    return ordered


def count_closer(keys, limits, place):
    """How many keys (B, n) of the row rank before each limit (B, M). A tie does if its column is below place (B, M)."""
    ordered = sort_rows(keys)
    closer = torch.searchsorted(ordered, limits)  # (B, M), strictly
    tied = (ordered.gather(1, closer.clamp(max=keys.shape[1] - 1)) == limits) & (place > 0)
    columns = torch.arange(keys.shape[1], device=keys.device)
    for row, match in (part.T for part in tied.nonzero().split(1024)):
        equal = (keys[row] == limits[row, match, None]) & (columns < place[row, match, None])  # (1024, n)
        closer[row, match] += equal.sum(1)
    return closer


def count_closer_by_person(keys, limits, place, row, match, person, counts):
    """Adds the same to counts (P, persons), for the P pairs (row, match), by the person (n,) of each column."""
    columns = torch.arange(keys.shape[1], device=keys.device)
    for part in torch.arange(len(row), device=keys.device).split(1024):
        at = row[part], match[part]
        key, limit = keys[at[0]], limits[at][:, None]  # (1024, n), (1024, 1)
        ahead = (key < limit) | ((key == limit) & (columns < place[at][:, None]))
        counts[part] = counts[part].index_add(1, person, ahead.to(counts.dtype))


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


def same_person_pairs(rows, query_pids, gallery_pids, by_pid):
    """The (query, item) pairs of one person: position in rows (P,) and column (P,), both ascending. by_pid: argsort."""
    pids, ordered = query_pids[rows], gallery_pids[by_pid]
    first = torch.searchsorted(ordered, pids)
    count = torch.searchsorted(ordered, pids, right=True) - first
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(count)  # (P,)
    return row, by_pid[first[row] + count_per_row(row, len(rows))[1]]


def keys_of_pairs(of_columns, row, column, size):
    """Keys (P,) of the pairs (row, column), out of blocks with the `size` next columns that any pair needs."""
    needed, position = column.unique(return_inverse=True)
    keys = []
    for start in range(0, len(needed), size):
        inside = ((position >= start) & (position < start + size)).nonzero()[:, 0]
        keys.append((inside, of_columns(needed[start : start + size])[row[inside], position[inside] - start]))
    index, values = (torch.cat(parts) for parts in zip(*keys, strict=True))
    return values[index.argsort()]


def closest_first(keys, column, row, nth, count):
    """The matches (P,) in rows: keys (B, M) with infinity to fill, columns (B, M) with 0 to fill, where no key ties."""
    limits = keys.new_full((len(count), int(count.max())), torch.inf)
    limits[row, nth] = keys
    limits, order = limits.sort(dim=1, stable=True)
    place = torch.zeros_like(order)
    place[row, nth] = column
    return limits, place.gather(1, order)


def count_wrong(of_columns, same, limits, place, hits, person, by_person, size):
    """Wrong answers before each match (B, M), gallery block by block; adds them up by person too where asked.

    same: the pairs (row, column) of one person, which are no wrong answers; hits: (row, nth) of the matches.
    """
    row, column = same
    wrong = torch.zeros_like(place)
    for start in range(0, len(person), size):
        block = of_columns(slice(start, start + size))  # (B, n)
        inside = (column >= start) & (column < start + size)
        block[row[inside], column[inside] - start] = torch.inf
        wrong += count_closer(block, limits, place - start)
        if by_person is not None:
            count_closer_by_person(block, limits, place - start, *hits, person[start : start + size], by_person)
    return wrong


def rank_queries(keys, query_pids, gallery_pids, query_camids, gallery_camids, protocol, max_rank, shape):
    """Per query AP (Q,), INP (Q,), P(first hit at rank r) (Q, max_rank), number of matches (Q,); zeros without one."""
    device = query_pids.device
    by_pid = gallery_pids.argsort(stable=True)
    _, person, images = gallery_pids.unique(return_inverse=True, return_counts=True)
    ap, inp = torch.zeros(2, len(query_pids), dtype=torch.float64, device=device)
    first_hit = torch.zeros(len(query_pids), max_rank, dtype=torch.float64, device=device)
    num_matches = torch.zeros(len(query_pids), dtype=torch.int64, device=device)
    for rows in query_pids.argsort(stable=True).split(shape[0]):  # queries of one person together: they share matches
        row, column = same_person_pairs(rows, query_pids, gallery_pids, by_pid)
        is_match = gallery_camids[column] != query_camids[rows[row]]
        if protocol == "no_camera_rule":
            is_match = torch.ones_like(is_match)
        if not is_match.any():
            continue
        of_columns = keys(rows)
        hit_row, hit_column = row[is_match], column[is_match]  # (P,)
        count, nth = count_per_row(hit_row, len(rows))  # (B,), (P,)
        hit_keys = keys_of_pairs(of_columns, hit_row, hit_column, shape[1])
        limits, place = closest_first(hit_keys, hit_column, hit_row, nth, count)  # (B, M)
        by_person = torch.zeros(len(hit_row), len(images), device=device) if protocol == "cuhk03" else None
        wrong = count_wrong(of_columns, (row, column), limits, place, (hit_row, nth), person, by_person, shape[1])

        seen = count.clamp_min(1)
        hits = torch.arange(1, wrong.shape[1] + 1, device=device)
        precision = hits / (hits + wrong).double()  # (B, M)
        last = seen[:, None] - 1
        ap[rows] = precision.cumsum(1).gather(1, last)[:, 0] / seen  # added in order, so that M plays no part
        inp[rows] = precision.gather(1, last)[:, 0]
        num_matches[rows] = count
        if protocol == "cuhk03":  # any of the matches may be the image that is drawn of the person
            chances = successes(by_person.double() / images, max_rank) / seen[hit_row, None]
            first_hit[rows] = torch.zeros_like(first_hit[rows]).index_add(0, hit_row, chances)
        else:
            found = (wrong[:, 0] < max_rank) & (count > 0)
            first_hit[rows[found], wrong[found, 0]] = 1
    found = num_matches > 0
    return ap * found, inp * found, first_hit, num_matches


def block_shape(block, device, query_pids, gallery_pids):
    """The shape of a block of keys: at most `block`, evenly cut, and fewer queries where a person has many images."""
    rows, columns = block or BLOCK["cuda" if device.type == "cuda" else "cpu"]
    if min(rows, columns) < 1:
        raise ValueError(f"block must be two numbers from 1 (queries, gallery items), not {block}")
    images = gallery_pids[torch.isin(gallery_pids, query_pids)].unique(return_counts=True)[1]
    rows = min(rows, max(1, 2**23 // max([1, *images.tolist()])))
    lengths = (len(query_pids), rows), (len(gallery_pids), columns)
    return [-(-length // -(-length // size)) for length, size in lengths]  # both divisions round up


def score(keys, ids, distance, protocol, max_rank, shape):
    """The dict that evaluate and evaluate_distances give."""
    ap, inp, first_hit, num_matches = rank_queries(keys, *ids, protocol, max_rank, shape)
    valid = num_matches > 0
    number = int(valid.sum())
    if number == 0:
        rule = "the same pid in the gallery" + (" under another camid" if protocol != "no_camera_rule" else "")
        advice = "pass the same ids and the real camids for both sides" + (
            ", or protocol='no_camera_rule' if there is one camera" if protocol != "no_camera_rule" else ""
        )
        raise ValueError(f"none of the {len(ap)} queries can be matched: protocol {protocol} needs {rule}; {advice}")
    return {
        "cmc": (first_hit.sum(0).cumsum(0) / number).float().cpu(),
        "mAP": ap.sum().item() / number,
        "mINP": inp.sum().item() / number,
        "num_valid_queries": number,
        "distance": distance,
        "protocol": protocol,
    }


# What others call ----------------------------------------------------------------------------------------------------


def check_all_ids(query_pids, gallery_pids, query_camids, gallery_camids, num_queries, num_gallery, device):
    """The four id vectors as int64 tensors on the device."""
    return (
        check_ids(query_pids, num_queries, "query_pids", device),
        check_ids(gallery_pids, num_gallery, "gallery_pids", device),
        check_ids(query_camids, num_queries, "query_camids", device),
        check_ids(gallery_camids, num_gallery, "gallery_camids", device),
    )


def check_max_rank(max_rank):
    if not isinstance(max_rank, int) or max_rank < 1:
        raise ValueError(f"max_rank must be a whole number from 1, not {max_rank!r}")


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
):
    """Scores of query features (Q, D) against gallery features (G, D); definitions at the top of this file.

    Features: tensors, numpy arrays or memory-mapped files, of any real type; half precision is compared in float32. It
    runs where they lie: on the GPU if either is there. block: (queries, gallery items) in memory at a time.
    Returns cmc (max_rank,) on the CPU, mAP and mINP as fractions, num_valid_queries, distance and protocol.
    Raises ValueError for features that are not finite, ids of the wrong length or type, and no query with a match.
    """
    check_choice(distance, DISTANCES, "distance")
    check_choice(protocol, PROTOCOLS, "protocol")
    check_max_rank(max_rank)
    queries, gallery = as_tensor(query_features), as_tensor(gallery_features)
    squares = check_matrix(queries, "query features"), check_matrix(gallery, "gallery features")
    if not all(part.isfinite().all() for part in squares):
        raise ValueError("a feature is longer than the square root of the largest float32: scale the features down")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {queries.shape[1]} columns, gallery features {gallery.shape[1]}")
    device = queries.device if queries.is_cuda else gallery.device
    ids = check_all_ids(query_pids, gallery_pids, query_camids, gallery_camids, len(queries), len(gallery), device)
    shape = block_shape(block, device, *ids[:2])
    with exact_products(device):
        keys = feature_keys(queries, gallery, squares[1], distance, device, shape)
        return score(keys, ids, distance, protocol, max_rank, shape)


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
    check_max_rank(max_rank)
    distmat = as_tensor(distmat)
    check_matrix(distmat, "distances")
    ids = check_all_ids(query_pids, gallery_pids, query_camids, gallery_camids, *distmat.shape, distmat.device)
    shape = block_shape(block, distmat.device, *ids[:2])
    return score(matrix_keys(distmat), ids, "given", protocol, max_rank, shape)
