"""Grouping without labels: what it finds of labelled rows, beside the best cut in hindsight, and how it grows."""

from collections import Counter

import numpy as np

from searching import groups, sources, stores
from searching.gallery import Row, identity
from tools.benchmark.measure import watch

SPREAD = 0.6  # of drawn features around their persons
IMAGES = 20  # of each person that is drawn


def b_cubed(found, truth):
    """(F1, precision, recall) of groups found (N,) of persons (N,): means over rows (Amigo et al., Information
    Retrieval 12, 2009). Rows of -1 in either stand alone."""
    sides = [np.where(side < 0, -1 - np.arange(len(side)), side).tolist() for side in (found, truth)]
    pairs, (ours, theirs) = Counter(zip(*sides, strict=True)), map(Counter, sides)
    precision, recall = (sum(count**2 / sizes[pair[side]] for pair, count in pairs.items()) / len(found)
                         for side, sizes in enumerate((ours, theirs)))  # fmt: skip
    return 2 * precision * recall / (precision + recall), precision, recall


def best_in_hindsight(features, rows, truth):
    """F1 of the best of all k and cuts, which takes labels to know."""
    nodes, _ = groups.prepare(features, rows)
    of_row, scores = np.empty(len(rows), int), []
    for tree in groups.grow_trees(nodes):
        for level in groups.LEVELS:
            for places, number in zip(nodes.places, groups.cut_tree(nodes.begin, tree.mergers, level), strict=True):
                of_row[places] = number
            scores.append(b_cubed(of_row, truth)[0])
    return max(scores)


def measure_index(device, index):
    """Groups the rows of an index whose persons are known, without a look at them: with nothing but their features,
    with cameras, with tracklets and times too. Person 0 is taken for nobody: its rows are each of their own."""
    with stores.read_index(index) as gallery:
        keep = [number for number, row in enumerate(gallery.rows) if row.pid is not None and row.pid >= 0]
        features, rows = gallery.features[:][keep], [gallery.rows[number] for number in keep]
    truth = np.array([row.pid if row.pid != sources.NOBODY else -1 for row in rows])
    persons, strangers = len(set(truth[truth > 0].tolist())), (truth < 0).sum()
    print(f"{len(rows):,} rows of {persons:,} persons, and {strangers:,} strangers")
    names = {identity(row): f"t{number}" for number, row in enumerate(rows)}
    plain = [row._replace(pid=None, camid="", tracklet="", time=None) for row in rows]
    tracked = [row._replace(pid=None, tracklet=row.tracklet and names[identity(row)]) for row in rows]
    known = {"features": plain, "and cameras": [row._replace(tracklet="", time=None) for row in tracked],
             "and tracklets": tracked}  # fmt: skip
    for name, told in known.items():
        run = watch(lambda told=told: groups.group(features, told), device)
        scores, person = b_cubed(run.result.person, truth), run.result.person
        print(f"{name:<14} F1 {scores[0]:.3f} (precision {scores[1]:.3f}, recall {scores[2]:.3f}), in hindsight "
              f"{best_in_hindsight(features, told, truth):.3f}; {person.max() + 1:,} persons, "
              f"{(person < 0).sum():,} alone; {run.seconds:.1f} s, {run.anonymous / 1e9:.2f} GB")


def measure_growth(device, sizes, dim=1024):
    """Drawn features of persons with IMAGES each, at growing sizes."""
    for size in sizes:
        rng = np.random.default_rng(0)
        truth = np.arange(size) // IMAGES
        features = rng.standard_normal((size // IMAGES + 1, dim), dtype=np.float32)[truth]
        features += SPREAD * rng.standard_normal((size, dim), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        rows = [Row(f"/{number}.jpg") for number in range(size)]
        run = watch(lambda features=features, rows=rows: groups.group(features, rows), device)
        print(f"{size:>9,} rows: {run.seconds:.1f} s, {run.anonymous / 1e9:.2f} GB beyond the features; F1 "
              f"{b_cubed(run.result.person, truth)[0]:.3f}")  # fmt: skip


def measure_grouping(device, index, sizes):
    """Of an index, or of drawn features. device is not looked at: this is numpy and scipy."""
    if index:
        measure_index(device, index)
    else:
        measure_growth(device, sizes)
