"""Who is who without a label: rows of a gallery become people. No torch; needs scipy.

    found = group(features, rows)               # features (N, D) of length 1, rows: N of gallery.Row
    found.person[3], found.confidence[3]        # whom row 3 shows (-1: it stands alone), and how sure that is, 0 to 1

1. Nodes. A tracklet is one node, the mean of its frames; a row without one is a node; rows with the same features to
   the bit are one. A tracklet whose frames fall into two unlike halves is not trusted: it becomes two nodes, and is
   told. The mean of each camera is moved to that of all (shrunk where a camera has few nodes), since two cameras differ
   more than many two persons.
2. Similarity. The k-reciprocal neighbours of a node weigh exp(-distance / mean distance), averaged over its nearest
   nodes; two nodes are as alike as their weights overlap (Jaccard), 0 to 1 (Zhong et al., CVPR 2017). Most pairs share
   nothing, so these are sparse matrices: memory grows with N, time with N^2 for the neighbours and N for the rest.
3. Average linkage of those similarities, exact: in each round all pairs that are nearest to each other merge, which
   gives the same tree as one pair at a time, since a merger is never nearer to a third than its closer part was
   (Murtagh, The Computer Journal 26(4), 1983). Rows whose person is known begin as one; two tracklets of one camera
   that overlap in time, and two known persons, are never merged.
4. The cut. A node's margin is its mean similarity to its own group less that to the next group (what a silhouette
   has above its line; Rousseeuw, 1987). Of the levels at which the tree may be cut, the one of the purest groups whose
   mean margin lies within a standard error of the best. No label is looked at.
5. k. All of this is done for several k, since the right one is about the number of nodes of a person, and the largest
   is taken that leaves rows nearly as sure of their groups as the best does.

Times cut nothing off where they are dates of files, or where they start anew in each tracklet, as in MARS.
Letters: N rows, M nodes, D feature size, k neighbours.
"""

from typing import NamedTuple

import numpy as np

from searching.gallery import identity, mean_features, merge_tracklets, top_k
from searching.sources import is_file_date, is_known

NEIGHBOURS, EXPANSION = (4, 6, 10, 15), 6  # k of the reciprocal neighbours; of those whose weights are averaged
TOLERANCE = 0.04  # of the mean confidence, within which more neighbours are better
FEW_OF_A_CAMERA = 20  # nodes at which a camera's mean is moved half of the way
LEVELS = np.linspace(0.05, 0.95, 46)  # similarities at which the tree may be cut
ENTRIES = 2**22  # of a sparse product at a time: about 200 MB
BLOCK = 2**16  # pairs
SAMPLE = 1000  # nodes that tell how alike two are
UNLIKE, APART = 0.75, 2  # two halves of a tracklet: less alike than a quarter of all pairs; so much farther apart
SURE = 0.75  # confidence from which on a row counts as sure


class Groups(NamedTuple):
    """What `group` found. person (N,): numbers from 0, the largest group first, -1 for a row that stands alone;
    confidence (N,): the row's similarity to its own group, as a share of that and of the one to the next group;
    known {person: pid} of those that were known before; nodes: [numbers of the rows of each]; doubts: see list_doubts;
    notes: what is to be told."""

    person: np.ndarray
    confidence: np.ndarray
    known: dict
    nodes: list
    doubts: list
    cut: float
    notes: list


def import_sparse():
    """scipy.sparse; ValueError where scipy is missing, which nothing else in search.py needs."""
    try:
        from scipy import sparse
        from scipy.sparse import csgraph  # noqa: F401
    except ImportError as error:
        raise ValueError(f"grouping needs scipy ({error}): pip install scipy") from None
    return sparse


# ---- nodes ----


def make_nodes(features, rows):
    """(features (M, D) of the nodes, [numbers of the rows of each], [rows of tracklets that are not trusted])."""
    _, members = merge_tracklets(rows)
    some, nodes, doubted = mean_features(features, members[:: len(members) // SAMPLE + 1]), [], []
    strange = np.quantile((some @ some.T)[np.triu_indices(len(some), 1)], UNLIKE) if len(some) > 1 else -1
    for places in members:
        halves = split_tracklet(features[places], strange) if len(places) > 3 else None
        if halves is None:
            nodes.append(places)
        else:
            doubted.append(places)
            nodes += [[place for place, right in zip(places, halves, strict=True) if right == side] for side in (0, 1)]
    same = {}  # bits of the features -> its rows, of all that have the same
    for places in nodes:
        row = rows[places[0]]
        key = (features[places[0]].tobytes(), row.pid) if len(places) == 1 and not row.tracklet else places[0]
        same.setdefault(key, []).extend(places)
    nodes = list(same.values())
    return mean_features(features, nodes), nodes, doubted


def split_tracklet(features, strange):
    """Which of the frames (n, D) lie on the far side (n,) along the direction in which they differ most; None where the
    two sides are more alike than `strange`, or not twice as far from each other as frames of one side are."""
    centred = features - features.mean(axis=0)
    far = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    sides = features[~far], features[far]
    if min(map(len, sides)) < 2:
        return None
    within = sum((len(side) ** 2 - (side @ side.T).sum()) / (len(side) - 1) for side in sides) / len(features)
    means = [side.mean(axis=0) for side in sides]
    alike = means[0] @ means[1] / max(np.linalg.norm(means[0]) * np.linalg.norm(means[1]), 1e-12)
    return far if alike < strange and 1 - means[0] @ means[1] > APART * within else None


def level_cameras(features, cameras):
    """Features (M, D) with the mean of each camera, of few nodes less, moved to that of all; cameras (M,): names, empty
    where they are unknown. Features of length 1 again."""
    moved, mean = features.copy(), features.mean(axis=0)
    for camera in sorted(set(cameras) - {""}):
        own = np.flatnonzero(cameras == camera)
        moved[own] -= len(own) / (len(own) + FEW_OF_A_CAMERA) * (features[own].mean(axis=0) - mean)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def find_conflicts(rows, nodes, notes):
    """Pairs of nodes (P, 2) that cannot be one person: tracklets of one camera that overlap in time."""
    tracked = [number for number, places in enumerate(nodes) if rows[places[0]].tracklet and len(places) > 1]
    timed = [number for number in tracked if all(rows[place].time is not None for place in nodes[number])]
    dated = [number for number in timed if all(is_file_date(rows[place]) for place in nodes[number])]
    if dated:
        notes.append(f"the times of {len(dated):,} tracklets are dates of files: they keep nobody apart")
    spans, pairs, counted = {}, [], []  # camera -> [(first time, last time, node)]
    for number in sorted(set(timed) - set(dated)):
        times = [rows[place].time for place in nodes[number]]
        if camera := rows[nodes[number][0]].camid:
            spans.setdefault(camera, []).append((min(times), max(times), number))
    for camera, found in sorted(spans.items()):
        found.sort()
        begins = np.array([begin for begin, _, _ in found])
        if len(found) > 2 and np.unique(begins, return_counts=True)[1].max() > len(found) / 2:
            counted.append(camera)
            continue
        for place, (_, end, number) in enumerate(found):
            for _, _, other in found[place + 1 : np.searchsorted(begins, end)]:
                if identity(rows[nodes[number][0]]) != identity(rows[nodes[other][0]]):  # halves of one
                    pairs.append((number, other))
    if counted:
        notes.append(f"most tracklets of camera {', '.join(counted[:20])} begin at the same time, so times seem to "
                     "start anew in each: they keep nobody apart")
    return np.array(pairs, int).reshape(-1, 2)


# ---- similarities ----


def count_neighbours(count):
    """The values of k to try, of so many nodes: where there are few, all would be neighbours."""
    return sorted({min(k, max(2, count // 3), count - 1) for k in NEIGHBOURS})


def neighbours(features, k):
    """The k + 1 nearest of each node of (M, D), itself among them, and their cosines: (M, k + 1), (M, k + 1)."""
    nearest, cosines = top_k(features, features, k + 1)
    lost = np.flatnonzero((nearest != np.arange(len(features))[:, None]).all(axis=1))  # among nearly equal nodes
    nearest[lost] = np.concatenate([lost[:, None], nearest[lost, :-1]], axis=1)
    return nearest, cosines


def similarities(features, nearest, cosines):
    """How alike nodes (M, D) with these neighbours are, sparse (M, M), symmetric, without a diagonal; nodes that share
    nothing have no entry."""
    sparse, k = import_sparse(), nearest.shape[1] - 1
    weights = reciprocal_weights(features, nearest, k, max(1e-6, float(1 - cosines[:, 1:].mean())))
    expansion = link(nearest[:, :EXPANSION]).multiply(link(nearest).T).tocsr()
    return overlaps(sparse.diags(1 / expansion.sum(axis=1).A1) @ expansion @ weights)


def link(nearest):
    """The graph of lists (M, k) as a sparse matrix of ones (M, M)."""
    sparse, (count, k) = import_sparse(), nearest.shape
    ones = np.ones(count * k, np.float32)
    return sparse.csr_matrix((ones, nearest.ravel(), np.arange(0, count * k + 1, k)), (count, count))


def reciprocal_weights(features, nearest, k, scale):
    """Weights (M, M), rows that sum to 1, of the expanded k-reciprocal neighbours of each node (Sec. 3.2): those that
    have it among their own k, and those of each of them, among half as many, of which more than two thirds are also
    its own."""
    sparse = import_sparse()
    whole, half = (link(nearest[:, : n + 1]) for n in (k, round(k / 2)))
    mutual, mutual_half = (graph.multiply(graph.T).tocsr() for graph in (whole, half))
    joins = (mutual @ mutual_half.T).multiply(mutual).tocsr()  # how many members both have
    joins.data = (3 * joins.data > 2 * mutual_half.sum(axis=1).A1[joins.indices]).astype(np.float32)
    found = (mutual + joins @ mutual_half).tocsr()
    found.eliminate_zeros()
    row, column = np.repeat(np.arange(len(features)), np.diff(found.indptr)), found.indices
    for start in range(0, len(row), BLOCK):
        pairs = slice(start, start + BLOCK)
        cosines = np.einsum("nd,nd->n", features[row[pairs]], features[column[pairs]])
        found.data[pairs] = np.exp((cosines - 1) / scale)
    return sparse.diags(1 / found.sum(axis=1).A1) @ found


def overlaps(weights):
    """Of rows (M, M) that sum to 1: sum of the smaller of two rows' weights, as a share of the sum of the larger."""
    sparse, count = import_sparse(), weights.shape[0]
    weights, columns = weights.tocsr(), weights.tocsc()
    lengths = np.diff(columns.indptr)
    cost = np.concatenate([[0], np.cumsum(lengths[weights.indices])])[weights.indptr]  # products up to each row
    parts, start = [], 0
    while start < count:
        stop = max(start + 1, int(np.searchsorted(cost, cost[start] + ENTRIES, "right")) - 1)
        entries = slice(weights.indptr[start], weights.indptr[stop])
        column = weights.indices[entries]
        repeats, row = lengths[column], np.repeat(np.arange(stop - start), np.diff(weights.indptr[start : stop + 1]))
        place = np.arange(repeats.sum()) + np.repeat(columns.indptr[column] - np.cumsum(repeats) + repeats, repeats)
        smaller = np.minimum(np.repeat(weights.data[entries], repeats), columns.data[place])
        part = sparse.csr_matrix((smaller, (np.repeat(row, repeats), columns.indices[place])), (stop - start, count))
        part.data /= 2 - part.data
        parts.append(part)
        start = stop
    found = sparse.vstack(parts).tocsr()
    found.setdiag(0)
    found.eliminate_zeros()
    return ((found + found.T) / 2).tocsr()  # equal to the bit on both sides, on which the order of mergers depends


# ---- the tree ----


def merge_all(similar, begin, apart):
    """Average linkage of sparse similarities (M, M) -> mergers [(group, group, similarity)], groups called by their
    first node, and begin (M,) itself: the first node of the group that each is in from the start. apart (P, 2): pairs
    of nodes that are never brought together."""
    sparse = import_sparse()
    first, begin = np.unique(begin, return_inverse=True)
    similar, forbidden, size = collect(similar.astype(float), begin), None, np.bincount(begin)
    if len(apart):
        pairs = np.concatenate([apart, apart[:, ::-1]])
        pairs = sparse.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(begin), len(begin)))
        forbidden = collect(pairs, begin)
    mergers = []
    while True:
        count = len(size)
        row = np.repeat(np.arange(count), np.diff(similar.indptr))
        mean = similar.data / (size[row] * size[similar.indices])
        if forbidden is not None:  # one that is not to be has a mean below all others
            mean[is_in(forbidden, row, similar.indices)] = -1
        best, nearest = np.zeros(count), np.full(count, -1)
        np.maximum.at(best, row, mean)
        ties = np.flatnonzero(mean >= np.maximum(best[row], 1e-9) * (1 - 1e-9))[::-1]  # of equal ones the first
        nearest[row[ties]] = similar.indices[ties]
        pair = (nearest > np.arange(count)) & (nearest[nearest] == np.arange(count))
        if not pair.any():
            return mergers
        one, other = np.flatnonzero(pair), nearest[pair]
        mergers += zip(first[one].tolist(), first[other].tolist(), best[one].tolist(), strict=True)
        into = np.arange(count)
        into[other] = one
        kept, into = np.unique(into, return_inverse=True)
        similar, first, size = collect(similar, into), first[kept], np.bincount(into, size).astype(int)
        forbidden = None if forbidden is None else collect(forbidden, into)


def collect(matrix, into):
    """The sums (K, K) of a matrix (M, M) over groups into (M,), without what lies within one; columns ascend."""
    sparse = import_sparse()
    groups = sparse.csr_matrix((np.ones(len(into)), (into, np.arange(len(into)))))
    found = (groups @ matrix @ groups.T).tocsr()
    found.setdiag(0)
    found.eliminate_zeros()
    found.sort_indices()
    return found


def is_in(matrix, row, column):
    """Whether a sparse matrix has entries at places (n,), (n,)."""
    entries = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) * matrix.shape[1] + matrix.indices
    return np.isin(row * matrix.shape[1] + column, entries)


def cut_tree(begin, mergers, level):
    """Numbers (M,) of the groups of nodes after all mergers of at least that similarity."""
    sparse, count = import_sparse(), len(begin)
    pairs = np.array([(one, other) for one, other, similarity in mergers if similarity >= level], int).reshape(-1, 2)
    row, column = np.concatenate([pairs.T, [begin, np.arange(count)]], axis=1)
    graph = sparse.csr_matrix((np.ones(len(row)), (row, column)), (count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def compare(similar, group):
    """Mean similarity of each node to the others of its group, and to the next group: (M,), (M,). Of a node alone in
    its group the first is 0."""
    sparse, count, size = import_sparse(), len(group), np.bincount(group)
    sums = (similar @ sparse.csr_matrix((np.ones(count), (np.arange(count), group)))).tocsr()
    row = np.repeat(np.arange(count), np.diff(sums.indptr))
    is_own, own, other = sums.indices == group[row], np.zeros(count), np.zeros(count)
    own[row[is_own]] = sums.data[is_own] / np.maximum(size[sums.indices[is_own]] - 1, 1)
    np.maximum.at(other, row[~is_own], sums.data[~is_own] / size[sums.indices[~is_own]])
    return own, other


def choose_cut(similar, begin, mergers):
    """Of the levels, the highest whose mean margin lies within a standard error of the best. The margin of a node: its
    similarity to its own group less that to the next; alone in its group it has none."""
    margins = []
    for level in LEVELS:
        group = cut_tree(begin, mergers, level)
        own, other = compare(similar, group)
        margins.append(np.where(np.bincount(group)[group] > 1, own - other, 0))
    means = np.mean(margins, axis=1)
    best = int(means.argmax())
    error = np.std(margins[best]) / len(begin) ** 0.5
    return float(LEVELS[np.flatnonzero(means >= means[best] - error)[-1]])


def list_doubts(begin, mergers, cut, most=500):
    """The mergers nearest to the cut, on both sides of it: [(nodes, nodes, whether they were brought together)], those
    that are most in doubt first. Of one that lies below the cut, both sides as they are at the cut."""
    ranked = sorted(mergers, key=lambda merger: (abs(merger[2] - cut), merger[:2]))[:most]
    wanted, members = set(ranked), {}
    for node, group in enumerate(begin.tolist()):
        members.setdefault(group, []).append(node)
    found = {}
    for merger in mergers:
        one, other, similarity = merger
        if merger in wanted:
            found[merger] = [sorted(members[one]), sorted(members[other]), similarity >= cut]
        members[one] += members.pop(other)
    return [found[merger] for merger in ranked]


# ---- all of it ----


class Nodes(NamedTuple):
    """What is grouped: features (M, D), levelled by camera; places: [numbers of the rows of each]; begin (M,) and apart
    (P, 2): see merge_all; first {pid: node} of persons that are known."""

    features: np.ndarray
    places: list
    begin: np.ndarray
    apart: np.ndarray
    first: dict

    @property
    def sizes(self):
        return np.array([len(places) for places in self.places])


def prepare(features, rows, nobody=False):
    """(Nodes, what is to be told of them): see group."""
    notes = []
    means, nodes, doubted = make_nodes(features, rows)
    if doubted:
        names = ", ".join(sorted(rows[places[0]].tracklet for places in doubted)[:5])
        notes.append(f"{len(doubted):,} tracklets seem to hold two people each and are taken apart: {names}"
                     + " ..." * (len(doubted) > 5))
    pids = [next((rows[place].pid for place in places if is_known(rows[place].pid, nobody)), None) for places in nodes]
    apart = find_conflicts(rows, nodes, notes)
    begin, first = np.arange(len(nodes)), {}
    for node, pid in enumerate(pids):
        begin[node] = node if pid is None else first.setdefault(pid, node)
    if first:
        notes.append(f"{len(first):,} persons are known already and stay as they are")
    between = begin[apart]
    if len(inside := np.flatnonzero(between[:, 0] == between[:, 1])):
        notes.append(f"{len(inside):,} pairs of tracklets of one known person overlap in time under one camera")
    persons = np.array(sorted(first.values()), int)
    both = np.stack(np.triu_indices(len(persons), 1), axis=1)
    apart = np.concatenate([np.delete(apart, inside, axis=0), persons[both]])
    if 1 < len(nodes) and count_neighbours(len(nodes))[-1] < NEIGHBOURS[-1]:
        notes.append(f"{len(nodes):,} images or tracklets are few to tell people by their neighbours: look at them")
    means = level_cameras(means, np.array([rows[places[0]].camid for places in nodes]))
    return Nodes(means, nodes, begin, apart, first), notes


class Tree(NamedTuple):
    """How nodes merge, with k neighbours: see merge_all, cut_tree. group and confidence: (M,)."""

    mergers: list
    cut: float
    group: np.ndarray
    confidence: np.ndarray


def grow_trees(nodes):
    """A Tree for each k, ascending."""
    sizes = nodes.sizes
    if len(sizes) == 1:
        return [Tree([], 1.0, np.array([0]), np.array([float(sizes[0] > 1)]))]
    counts, trees = count_neighbours(len(sizes)), []
    nearest, cosines = neighbours(nodes.features, counts[-1])
    for k in counts:
        similar = similarities(nodes.features, nearest[:, : k + 1], cosines[:, : k + 1])
        mergers = merge_all(similar, nodes.begin, nodes.apart)
        cut = choose_cut(similar, nodes.begin, mergers)
        found = cut_tree(nodes.begin, mergers, cut)
        own, other = compare(similar, found)
        alone = np.bincount(found)[found] == 1
        confidence = np.where(alone, (sizes > 1) * (1 - other), own / np.maximum(own + other, 1e-12))
        trees.append(Tree(mergers, cut, found, confidence))
    return trees


def choose_tree(trees, sizes, tolerance=TOLERANCE):
    """Of trees with more and more neighbours, the last whose confidence, a mean over rows, is next to the best. Where k
    is more than there are nodes of a person, all lose confidence; where it is less, persons fall apart unseen."""
    means = [np.average(tree.confidence, weights=sizes) for tree in trees]
    return [tree for tree, mean in zip(trees, means, strict=True) if mean >= max(means) - tolerance][-1]


def group(features, rows, nobody=False, tolerance=TOLERANCE):
    """Rows of a gallery, N of gallery.Row with features (N, D) of length 1, as people -> Groups. Persons that rows know
    (pid 0 and up; with nobody, 1 and up) stay as they are. tolerance: see choose_tree; at 0 persons rather fall apart
    than together. ValueError where there is no row, or scipy is missing."""
    import_sparse()
    if not rows:
        raise ValueError("there is no row to group")
    nodes, notes = prepare(features, rows, nobody)
    tree = choose_tree(grow_trees(nodes), nodes.sizes, tolerance)
    of_row, sure = np.empty(len(rows), int), np.empty(len(rows))
    for node, places in enumerate(nodes.places):
        of_row[places], sure[places] = tree.group[node], tree.confidence[node]
    size = np.bincount(of_row)
    start = np.unique(of_row, return_index=True)[1]
    order = np.lexsort((start, -size))  # the largest first; of equal ones that of the first row
    known = {int(tree.group[node]): pid for pid, node in nodes.first.items()}
    people = [number for number in order.tolist() if size[number] > 1 or number in known]
    number = np.full(len(size), -1)
    number[people] = np.arange(len(people))
    known = {int(number[place]): pid for place, pid in known.items()}
    doubts = list_doubts(nodes.begin, tree.mergers, tree.cut)
    return Groups(number[of_row], sure, known, nodes.places, doubts, tree.cut, notes)
