"""Tests of the samplers of data.py: which rows make a batch, and which frames a clip.

python -m pytest tests/test_samplers.py
"""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from data import check_batches, choose_frames, epoch_batches, fill_clip


def global_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Batches


def test_shuffle_gives_every_image_once_and_drops_the_rest():
    batches = epoch_batches(np.zeros(23, np.int64), 5, None, seed=0, epoch=0)
    assert [len(rows) for rows in batches] == [5] * 4
    rows = np.concatenate(batches).tolist()
    assert len(set(rows)) == 20 and set(rows) < set(range(23)) and rows != sorted(rows)
    whole = epoch_batches(np.zeros(20, np.int64), 5, None, seed=0, epoch=0)
    assert sorted(np.concatenate(whole).tolist()) == list(range(20))


def labels_of(counts):
    """Labels (N,) with counts[label] images each, in mixed order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def test_identity_batches_hold_p_persons_with_k_images():
    counts, persons, k = [8, 5, 4, 2, 1, 13, 4], 3, 4
    labels = labels_of(counts)
    for epoch in range(20):
        batches = epoch_batches(labels, persons * k, k, seed=0, epoch=epoch)
        groups = Counter()
        for rows in batches:
            by_person = labels[rows].reshape(persons, k)
            assert (by_person == by_person[:, :1]).all(), "images of a person stand together"
            assert len(set(by_person[:, 0])) == persons
            groups.update(by_person[:, 0].tolist())
        for label, count in enumerate(counts):
            drawn = [row for rows in batches for row in rows if labels[row] == label]
            if count >= k:
                assert len(set(drawn)) == len(drawn), "no image twice in an epoch"
        # an epoch ends exactly where fewer than P persons have groups of K left
        left = [label for label, count in enumerate(counts) if max(count // k, 1) > groups[label]]
        assert len(left) < persons
        assert all(groups[label] <= max(count // k, 1) for label, count in enumerate(counts))


def test_identity_batches_of_equal_persons_use_all():
    labels = labels_of([8, 8])
    batches = epoch_batches(labels, 8, 4, seed=3, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(16)) and len(batches) == 2


def test_incomplete_groups_wait_for_another_epoch():
    labels = labels_of([6, 6])
    epochs = [np.concatenate(epoch_batches(labels, 8, 4, 0, epoch)) for epoch in range(30)]
    assert all(len(rows) == 8 for rows in epochs)
    assert set(np.concatenate(epochs).tolist()) == set(range(12)), "every image has its turn"


@pytest.mark.parametrize(
    ("batch_size", "k", "message"),
    [
        (10, 4, "--num-instances 4 must .* divide --batch-size 10"),
        (4, 8, "--num-instances 8 must .* divide --batch-size 4"),
        (8, 1, "--num-instances 1 must be 2 or more"),
        (16, 2, "8 persons x 2 images .* train split has 6: lower --batch-size to 12"),
        (4, 4, "person"),  # a batch of one person has no negative: its triplet loss is zero for ever
        (40, None, "--batch-size 40 is more than the 34 images or tracklets"),
    ],
)
def test_batches_that_cannot_be_made(batch_size, k, message):
    with pytest.raises(ValueError, match=message):
        check_batches(labels_of([8, 5, 4, 2, 9, 6]), batch_size, k)


@pytest.mark.parametrize(("batch_size", "k"), [(34, None), (24, 4), (12, 2), (8, 4)])
def test_batches_that_can_be_made(batch_size, k):
    labels = labels_of([8, 5, 4, 2, 9, 6])
    check_batches(labels, batch_size, k)
    assert epoch_batches(labels, batch_size, k, 0, 0)


DOMAINS = np.random.default_rng(1).permutation(np.repeat([0, 3, 4], [11, 30, 17]))  # cameras with gaps in their numbers


def drawn_by_domain(num_domains, batch_size=6, seed=0, epoch=0):
    return epoch_batches(np.zeros(len(DOMAINS)), batch_size, None, seed, epoch, DOMAINS, num_domains)


@pytest.mark.parametrize(("num_domains", "drawn"), [(0, 3), (3, 3), (2, 2), (1, 1)])
def test_batches_by_domain_have_equal_shares(num_domains, drawn):
    share, chosen = 6 // drawn, Counter()
    for epoch in range(20):
        batches = drawn_by_domain(num_domains, epoch=epoch)
        rows = np.concatenate(batches)
        assert len(set(rows.tolist())) == len(rows), "no image twice in an epoch"
        used = Counter()
        for batch in batches:
            counts = Counter(DOMAINS[batch].tolist())
            assert len(batch) == 6 and list(counts.values()) == [share] * drawn
            used.update(counts)
            chosen[tuple(sorted(counts))] += 1
        # the epoch ends where one that was drawn has too few: so no batch could have been made of it
        assert any(used[domain] + share > count for domain, count in ((0, 11), (3, 30), (4, 17)))
        if drawn == 3:
            assert len(batches) == 11 // 2, "the smallest domain bounds the epoch"
    assert len(chosen) == {3: 1, 2: 3, 1: 3}[drawn], "every choice of domains has its turn"


SAMPLERS = {  # name -> (num_instances, domains of the 34 labels, num_domains), and rows of the first and last batch
    "shuffled": ((None, None, 0), [30, 2, 21, 31, 23, 0, 22, 10], [27, 16, 14, 24, 26, 18, 11, 12]),
    "P x K": ((4, None, 0), [8, 4, 12, 18, 33, 13, 7, 26], [23, 0, 11, 14, 9, 28, 19, 16]),
    "domains": ((None, np.arange(34) % 3, 2), [29, 11, 8, 2, 31, 22, 19, 25], [3, 33, 12, 9, 32, 5, 14, 20]),
}


def drawn(sampler, seed, epoch):
    k, domains, num_domains = SAMPLERS[sampler][0]
    return np.array(epoch_batches(labels_of([8, 5, 4, 2, 9, 6]), 8, k, seed, epoch, domains, num_domains))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_follow_from_seed_and_epoch(sampler):
    before = global_states()
    one = drawn(sampler, seed=7, epoch=2)
    assert global_states() == before
    np.random.seed(1)
    assert np.array_equal(one, drawn(sampler, seed=7, epoch=2))
    for seed, epoch in ((7, 3), (8, 2)):
        assert not np.array_equal(one, drawn(sampler, seed, epoch))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_are_those_of_earlier_versions(sampler):
    """A run that one of them began goes on with the same."""
    batches, (_, first, last) = drawn(sampler, seed=7, epoch=2).tolist(), SAMPLERS[sampler]
    assert [batches[0], batches[-1]] == [first, last]


@pytest.mark.parametrize(
    ("batch_size", "num_domains", "fragments"),
    [
        (12, 4, ["--num-domains 4", "of 3 domains", "--batch-size 12 or 15 with --num-domains 3",
                 "--num-domains 2 or 3 with --batch-size 12"]),
        (10, 0, ["--num-domains 0 (0 means all)", "of 3 domains", "--batch-size 9 or 12 with --num-domains 3",
                 "--num-domains 1 or 2 with --batch-size 10"]),
        (9, 2, ["--num-domains 2", "--batch-size 8 or 10 with --num-domains 2",
                "--num-domains 1 or 3 with --batch-size 9"]),
        (36, 3, ["smallest has 11", "give --batch-size 33 with --num-domains 3"]),
        (12, 1, ["smallest has 11", "--batch-size 11 with --num-domains 1", "--num-domains 2 or 3 with --batch"]),
        (2, 0, ["--batch-size 3 or 6 with --num-domains 3"]),
        (60, 0, ["--batch-size 60 is more than the 58"]),
    ],
)
def test_batches_by_domain_that_cannot_be_made(batch_size, num_domains, fragments):
    with pytest.raises(ValueError) as error:
        check_batches(np.zeros(len(DOMAINS)), batch_size, None, DOMAINS, num_domains)
    for fragment in fragments:
        assert fragment in str(error.value)
    # the ways out that are told are ways out, and the batch sizes are the nearest of all
    told = re.findall(r"--(batch-size|num-domains) ([\d or]+) with --\S+ (\d+)", str(error.value).partition("give")[2])
    for flag, numbers, other in told:
        for number in map(int, numbers.split(" or ")):
            pair = (number, int(other)) if flag == "batch-size" else (int(other), number)
            check_batches(np.zeros(len(DOMAINS)), pair[0], None, DOMAINS, pair[1])
    if batch_size < len(DOMAINS):
        drawn = next(int(other) for flag, _, other in told if flag == "batch-size")
        near = next(list(map(int, numbers.split(" or "))) for flag, numbers, _ in told if flag == "batch-size")
        good = [size for size in range(2, 60) if size % drawn == 0 and size // drawn <= 11]
        assert min(good, key=lambda size: abs(size - batch_size)) in near


def test_a_single_image_of_a_camera_leaves_another_sampler():
    with pytest.raises(ValueError, match="give another --sampler"):
        check_batches(np.zeros(9), 8, None, np.array([0] * 8 + [1]), 1)


@pytest.mark.parametrize(("batch_size", "num_domains"), [(12, 0), (33, 3), (22, 2), (11, 1)])
def test_batches_by_domain_that_can_be_made(batch_size, num_domains):
    check_batches(np.zeros(len(DOMAINS)), batch_size, None, DOMAINS, num_domains)
    assert all(drawn_by_domain(num_domains, batch_size, epoch=epoch) for epoch in range(5))


# ----------------------------------------------------------------------------------------------------------------------
# Frames of a clip


@pytest.mark.parametrize(
    ("num_frames", "seq_len", "expected"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 8, [0, 1, 2, 3, 4, 5, 6, 7]),  # 9 - 9 mod 8 = 8, in steps of 1
        (17, 5, [0, 3, 6, 9, 12]),  # 15 in steps of 3
        (20, 5, [0, 4, 8, 12, 16]),
        (920, 4, [0, 230, 460, 690]),
        (3, 8, [0, 1, 2]),
        (1, 1, [0]),
        (5, 1, [0]),
    ],
)
def test_evenly_spread_frames_worked_by_hand(num_frames, seq_len, expected):
    assert choose_frames(num_frames, seq_len, "evenly").tolist() == expected


@pytest.mark.parametrize(("num_frames", "seq_len"), [(10, 4), (10, 9), (4, 4), (3, 4), (1, 4)])
def test_random_frames_are_distinct_and_ascend(num_frames, seq_len):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        frames = choose_frames(num_frames, seq_len, "random", rng).tolist()
        assert frames == sorted(set(frames)) and len(frames) == min(seq_len, num_frames)
        seen |= set(frames)
    assert seen == set(range(num_frames)), "each has its turn, and no other"


def test_random_frames_follow_from_their_generator():
    chosen = [choose_frames(100, 8, "random", np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("num_frames", [1, 8, 920])
def test_all_frames(num_frames):
    assert choose_frames(num_frames, 8, "all").tolist() == list(range(num_frames))


def test_a_short_clip_repeats_its_last_frame():
    assert fill_clip(np.array([0, 1, 2]), 6).tolist() == [0, 1, 2, 2, 2, 2]
    assert fill_clip(np.array([4, 7, 9]), 3).tolist() == [4, 7, 9]
