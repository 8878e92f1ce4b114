"""Tests of groups.py: similarities beside the paper's sets, the tree beside scipy's, and people that are known.

python -m pytest tests/searching/test_groups.py
"""

import itertools
import sys

import numpy as np
import pytest
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from searching import groups
from searching.gallery import Row

NONE = np.empty((0, 2), int)


def unit(features):
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def people(count, images, spread=0.25, seed=0, dim=32):
    """Features (count * images, dim) around a direction per person, and the person of each."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((count, dim)))
    truth = np.repeat(np.arange(count), images)
    return unit(centres[truth] + spread * rng.standard_normal((len(truth), dim)) / dim**0.5 * 2), truth


def rows_of(count, **columns):
    return [Row(f"/{number}.jpg", **{name: values[number] for name, values in columns.items()})
            for number in range(count)]  # fmt: skip


def partition(labels):
    """The same for the same groups, whatever their numbers."""
    members = {}
    for place, label in enumerate(labels.tolist() if isinstance(labels, np.ndarray) else labels):
        members.setdefault(label, []).append(place)
    return sorted(members.values())


def with_alone(person):
    """Each -1 as a group of its own."""
    return [("alone", place) if number < 0 else number for place, number in enumerate(person.tolist())]


# ---- similarities ----


def slow_similarities(features, k, expansion):
    """Sec. 3.2 to 3.4 of Zhong et al. by sets and dense matrices."""
    cosines = features @ features.T
    order = np.argsort(-cosines, axis=1, kind="stable")

    def mutual(item, size):
        return {int(other) for other in order[item, : size + 1] if item in order[other, : size + 1]}

    scale = 1 - np.sort(cosines, axis=1)[:, ::-1][:, 1 : k + 1].mean()
    weights = np.zeros_like(cosines)
    for item in range(len(features)):
        found = set(mutual(item, k))
        for other in mutual(item, k):
            theirs = mutual(other, round(k / 2))
            if len(theirs & mutual(item, k)) > 2 / 3 * len(theirs):
                found |= theirs
        for other in found:
            weights[item, other] = np.exp(-(1 - cosines[item, other]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = np.stack([weights[[other for other in order[item, :expansion] if other in mutual(item, k)]].mean(axis=0)
                        for item in range(len(features))])  # fmt: skip
    smaller = np.minimum(weights[:, None], weights[None]).sum(axis=2)
    larger = np.maximum(weights[:, None], weights[None]).sum(axis=2)
    np.fill_diagonal(smaller, 0)
    return smaller / larger


@pytest.mark.parametrize("entries", [50, 2**22])
def test_similarities_are_those_of_the_paper(entries, monkeypatch):
    monkeypatch.setattr(groups, "ENTRIES", entries)
    monkeypatch.setattr(groups, "BLOCK", 100)
    features, _ = people(20, 12, 0.6)
    found = groups.similarities(features, *groups.neighbours(features, 15))
    np.testing.assert_allclose(found.toarray(), slow_similarities(features, 15, 6), atol=2e-6)
    assert (found != found.T).nnz == 0


# ---- the tree ----


def some_similarities(count, seed, steps=0):
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.random((count, count)) * (rng.random((count, count)) < 0.3), 1)
    dense = np.round(dense * steps) / steps if steps else dense  # many are equal
    return sparse.csr_matrix(dense + dense.T)


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_is_that_of_average_linkage(seed):
    similar = some_similarities(60, seed)
    tree = linkage(squareform(1 - similar.toarray() - np.eye(60), checks=False), "average")
    mergers = groups.merge_all(similar, np.arange(60), NONE)
    for level in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        found = groups.cut_tree(np.arange(60), mergers, level)
        assert partition(found) == partition(fcluster(tree, 1 - level, "distance"))


def slow_mergers(similar, begin, apart):
    """The nearest two groups that may merge, one pair at a time -> [(nodes of both, similarity)]."""
    clusters = [frozenset(places) for places in partition(begin)]
    forbidden, found = {frozenset(pair) for pair in apart.tolist()}, []
    while True:
        best = None
        for one, other in itertools.combinations(clusters, 2):
            if any(frozenset((a, b)) in forbidden for a in one for b in other):
                continue
            mean = np.mean([similar[a, b] for a in one for b in other])
            if mean > 0 and (best is None or mean > best[0]):
                best = mean, one, other
        if best is None:
            return found
        clusters = [cluster for cluster in clusters if cluster not in best[1:]] + [best[1] | best[2]]
        found.append((best[1] | best[2], best[0]))


@pytest.mark.parametrize("seed", range(4))
def test_pairs_that_are_kept_apart_never_meet(seed):
    similar, rng = some_similarities(24, seed), np.random.default_rng(seed)
    begin = np.arange(24)
    begin[[5, 9]] = 2  # known to be one
    apart = np.array([pair for pair in rng.integers(0, 24, (20, 2)) if begin[pair[0]] != begin[pair[1]]])
    mergers = groups.merge_all(similar, begin, apart)
    expected = slow_mergers(similar.toarray(), begin, apart)
    for level in [1e-9, *np.sort([mean for _, mean in expected])[:-1:3] * (1 + 1e-6)]:
        found = groups.cut_tree(begin, mergers, level)
        joined = np.arange(24)
        joined[[5, 9]] = 2
        for nodes, mean in expected:
            if mean >= level:
                joined[sorted(nodes)] = min(nodes)
        assert partition(found) == partition(joined)
        assert (found[apart[:, 0]] != found[apart[:, 1]]).all()


def test_equal_similarities_end():
    for steps in (1, 2):
        mergers = groups.merge_all(some_similarities(40, 0, steps), np.arange(40), NONE)
        assert len({*groups.cut_tree(np.arange(40), mergers, 1e-9).tolist()}) == 1


def test_doubts_are_what_lies_nearest_to_the_cut():
    mergers = [(0, 1, 0.9), (2, 3, 0.8), (0, 2, 0.4), (0, 4, 0.1)]
    doubts = groups.list_doubts(np.arange(5), mergers, 0.5, most=3)
    assert doubts == [[[0, 1], [2, 3], False], [[2], [3], True], [[0, 1, 2, 3], [4], False]] or \
        doubts == [[[0, 1], [2, 3], False], [[2], [3], True], [[0], [1], True]]  # fmt: skip


# ---- people ----


def test_people_are_found_without_a_label():
    features, truth = people(12, 9)
    found = groups.group(features, rows_of(len(truth)))
    assert partition(found.person) == partition(truth)
    assert (found.confidence > groups.SURE).all() and not found.notes


@pytest.mark.parametrize(("count", "images"), [(60, 4), (30, 8), (12, 20)])
def test_few_images_of_each_person_and_many(count, images):
    """No single k is right for all of them."""
    features, truth = people(count, images)
    found = groups.group(features, rows_of(len(truth)))
    assert partition(found.person) == partition(truth)


def test_the_tree_of_most_neighbours_is_taken_that_is_next_to_the_best():
    sure = ((0.1, 0.5), (0.2, 0.8), (0.3, 0.77))
    trees = [groups.Tree([], cut, None, np.array([mean, mean, 0.4])) for cut, mean in sure]
    assert [groups.choose_tree(trees, [1, 1, 1], tolerance).cut for tolerance in (groups.TOLERANCE, 0.01, 0, 1)] == [
        0.3, 0.2, 0.2, 0.3]  # fmt: skip
    assert groups.choose_tree(trees, [0, 0, 1], 0).cut == 0.3  # a mean over rows: here all are alike


def test_someone_seen_once_stands_alone():
    features, truth = people(12, 20)
    stranger = unit(np.random.default_rng(9).standard_normal((1, 32)))
    found = groups.group(np.concatenate([features, stranger]), rows_of(len(truth) + 1))
    assert found.person[-1] == -1 and partition(found.person[:-1]) == partition(truth)


def test_cameras_that_shift_all_features_do_not_part_people():
    features, truth = people(12, 12)
    cameras = np.tile(["1", "2"], len(truth) // 2)
    shift = 1.2 * unit(np.random.default_rng(3).standard_normal((1, 32)))
    features = unit(features + shift * (cameras == "2")[:, None])
    known = groups.group(features, rows_of(len(truth), camid=cameras))
    unknown = groups.group(features, rows_of(len(truth)))
    assert partition(known.person) == partition(truth) != partition(unknown.person)


def test_the_largest_group_is_the_first():
    features, truth = people(3, 8)
    found = groups.group(features[4:], rows_of(20))
    assert np.bincount(found.person).tolist() == [8, 8, 4] and found.person[0] == 2


def test_frames_of_a_tracklet_are_one_person():
    features, truth = people(6, 8, spread=0.9, seed=1)  # too far apart for what they are
    tracklets = [f"t{number}" for number in truth]
    found = groups.group(features, rows_of(48, tracklet=tracklets))
    assert all(len({*found.person[truth == number].tolist()}) == 1 for number in range(6))
    assert len(found.nodes) == 6


def tracked(lookalikes=True):
    """Six persons, two tracklets each under one camera, of five frames; 0 and 1 look alike and pass together."""
    features, truth = people(6, 10, spread=0.1)
    if lookalikes:
        rng = np.random.default_rng(5)
        features[10:20] = unit(features[:10] + 0.02 * rng.standard_normal((10, 32)))
    frame = np.tile(np.arange(5.0), 12)
    begin = np.array([0, 100, 2, 102, 200, 300, 400, 500, 600, 700, 800, 900.0])
    return features, truth, {"tracklet": [f"t{n}" for n in np.repeat(np.arange(12), 5)], "camid": ["1"] * 60,
                             "time": (np.repeat(begin, 5) + frame).tolist()}  # fmt: skip


def test_tracklets_of_one_camera_that_overlap_are_two_persons():
    features, truth, columns = tracked()
    rows = rows_of(60, **columns)
    means, nodes, _ = groups.make_nodes(features, rows)
    assert groups.find_conflicts(rows, nodes, []).tolist() == [[0, 2], [1, 3]]
    found = groups.group(features, rows)
    assert not ({*found.person[:10].tolist()} & {*found.person[10:20].tolist()}) - {-1}
    elsewhere = rows_of(60, **columns | {"camid": ["1"] * 10 + ["2"] * 10 + ["1"] * 40})
    assert {*groups.group(features, elsewhere).person[:20].tolist()} == {0}  # they pass under two cameras


@pytest.mark.parametrize(("times", "told"), [("files", "dates of files"), ("anew", "start anew")])
def test_times_that_tell_nothing_keep_nobody_apart(times, told):
    features, truth, columns = tracked()
    if times == "files":
        rows = [row._replace(mtime=round(row.time * 1e9)) for row in rows_of(60, **columns)]
    else:
        rows = rows_of(60, **columns | {"time": np.tile(np.arange(5.0), 12).tolist()})
    notes = []
    assert not len(groups.find_conflicts(rows, groups.make_nodes(features, rows)[1], notes))
    assert len(notes) == 1 and told in notes[0]
    assert told in groups.group(features, rows).notes[0]


def test_a_tracklet_of_two_people_is_told_and_taken_apart():
    features, truth = people(12, 100, spread=0.15)
    tracklets = [f"t{place // 5}" for place in range(1200)]
    tracklets[105:110] = ["t1"] * 5  # a second person among those of person 0
    found = groups.group(features, rows_of(1200, tracklet=tracklets))
    halves = [places for places in found.nodes if {*places} & {5, 105}]
    assert halves == [[5, 6, 7, 8, 9], [105, 106, 107, 108, 109]]
    assert {*found.person[:10].tolist()} == {found.person[0]} != {*found.person[105:110].tolist()}
    assert found.person[105] == found.person[110]
    assert len(found.notes) == 1 and "two people" in found.notes[0] and found.notes[0].endswith(": t1")


def test_known_persons_stay_as_they_are():
    features, truth = people(8, 8)
    pids = [None] * 64
    pids[0], pids[8], pids[9] = 7, 7, 30  # person 0 and 1 by half; row 9 is another one
    found = groups.group(features, rows_of(64, pid=pids))
    known = {pid: number for number, pid in found.known.items()}
    assert found.person[0] == found.person[8] == known[7] and found.person[9] == known[30] != known[7]
    assert "2 persons are known" in found.notes[0]
    alone = groups.group(features, rows_of(64, pid=[-1] * 32 + [-5] * 32))  # junk, and what was proposed
    assert partition(alone.person) == partition(truth) and not alone.known
    nobody = groups.group(features, rows_of(64, pid=[0] * 16 + [None] * 48), nobody=True)
    assert partition(nobody.person) == partition(truth)


# ---- what there may be ----


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_rows(count):
    features, truth = people(2, 5, spread=0.1)
    found = groups.group(features[:count], rows_of(count))
    assert len(found.person) == count and np.isfinite(found.confidence).all()
    assert partition(with_alone(found.person)) == partition(truth[:count])


def test_one_person_stays_one():
    features, _ = people(1, 40, spread=0.1)
    found = groups.group(features, rows_of(40))
    assert {*found.person.tolist()} == {0} and "few to tell" in found.notes[0]


def test_equal_rows_are_one_person():
    features = np.tile(people(1, 1)[0], (300, 1))
    assert {*groups.group(features, rows_of(300)).person.tolist()} == {0}
    others, truth = people(8, 20)
    found = groups.group(np.concatenate([features, others]), rows_of(460))
    assert {*found.person[:300].tolist()} == {0}
    assert (found.person[300:320] == found.person[300]).mean() > 0.9


def test_nothing_and_no_scipy(monkeypatch):
    with pytest.raises(ValueError, match="no row"):
        groups.group(np.empty((0, 4), np.float32), [])
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ValueError, match="pip install scipy"):
        groups.group(*people(2, 3)[:1], rows_of(6))
