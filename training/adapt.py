"""Learning from crops without labels: a network groups them, trains on its own groups, and groups them again.

    rows, missing = find_crops(["crops/", "cams.csv"])             # as search.py index takes them; persons stay unread
    found = regroup(model, pixels, rows)                           # -> Round: labels (N,), centres, what can be told

train.py --adapt does this in a loop, a round an epoch: batch norms take up the statistics of the crops, before the
first round; people are found by searching/groups.py, which needs no threshold and knows cameras, tracklets and times;
then an epoch of shuffled batches with a classifier whose rows begin at the means of the groups (losses.Prototypes). Who
stands alone is left out for the round. What is grouped are features of averaged weights: that, and where the classifier
begins, is of MMT (Ge et al., ICLR 2020). BENCHMARK.md says what was tried and left out.

No number that this prints is an accuracy: without labels there is none. What can be seen is how sure the groups are,
whether they stay what they were, whether the two ends of a tracklet find each other, and whether pairs that cannot be
one person look as if they were.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import models
from searching import groups, sources
from searching.gallery import Row, top_k
from training import distributed, evaluate, recipes
from training.pixels import Pixels, normalise


def find_crops(places):
    """(rows, [(path, reason)] of files that are not there), sorted by path as far as the sources say no order."""
    rows, missing = sources.find_rows(places, strict=False, where="--adapt")
    return [row._replace(pid=None) for row in rows], missing


def rows_of(items):
    """A row of each image of data.Item: camera and tracklet, and nothing of the person."""
    return [
        Row(path, camid=str(item.camid), tracklet=str(number) if len(item.paths) > 1 else "")
        for number, item in enumerate(items) for path in item.paths
    ]  # fmt: skip


@torch.no_grad()
def adopt_statistics(model, pixels, batch_size=64):
    """Gives batch norms the mean and deviation that they see on these images, in place of those of elsewhere (Li et
    al., arXiv 1603.04779). Nothing else changes, and nothing at all where there are none, or one image."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual, device = [norm.momentum for norm in norms], evaluate.device_of(model)
    if not norms or len(pixels) < 2:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    order = np.random.default_rng(0).permutation(len(pixels))
    for rows in np.array_split(order, max(1, len(order) // batch_size)):
        model(normalise(pixels.batch(rows, device), model.mean, model.std))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


class Both(nn.Module):
    """What a network gives in evaluation, and behind it the features of its branches, as losses see them, in a row."""

    def __init__(self, model):
        super().__init__()
        self.sizes = model.feature_dim, *recipes.branch_sizes(model)
        self.model = model.frames if isinstance(model, models.VideoModel) else model
        self.mean, self.std, self.feature_dim = model.mean, model.std, sum(self.sizes)

    def forward(self, images):
        branches = self.model.branches(images)
        return torch.cat([self.model.describe(branches), *branches], dim=1)


class Round(NamedTuple):
    """What one grouping found: labels (N,) from 0, -1 for a row that is left out; centers: of each branch (P, D_i);
    told: name -> number, for a line of log.jsonl; notes: what else is to be told."""

    labels: np.ndarray
    centers: list
    told: dict
    notes: list


def regroup(model, pixels: Pixels, rows, before=None, *, batch_size=128) -> Round:
    """Groups the rows by the features of the network, means of each image and its mirror image. before (N,): labels of
    the round before. Several processes take a part of the images each; the first groups them."""
    both = Both(model)
    found = evaluate.extract_features(both, pixels, batch_size=batch_size, flip=True)
    described, *branches = found.split(both.sizes, dim=1)
    features = nn.functional.normalize(described, dim=1).cpu().numpy()
    labels, told, notes = distributed.from_first(lambda: group_rows(features, rows, before))
    known = torch.from_numpy(labels).to(found.device)
    centers = []
    for branch in branches:
        own = known[known >= 0]
        sums = branch.new_zeros(int(known.max()) + 1, branch.shape[1]).index_add_(0, own, branch[known >= 0])
        centers.append(sums / own.bincount(minlength=len(sums)).unsqueeze(1))
    return Round(labels, centers, told, notes)


def group_rows(features, rows, before):
    """(labels (N,), told, notes) of rows with these features (N, D), of length 1."""
    if not np.isfinite(features).all():
        raise ValueError("the network gives features that are not numbers: give other --weights, or a lower --lr")
    found = groups.group(features, rows, tolerance=0)  # two people in one group harm more than one in two
    sizes = np.bincount(found.person[found.person >= 0])
    told = {"people": len(sizes), "grouped": int(sizes.sum()), "confidence": float(found.confidence.mean())}
    if before is not None:
        told["as_before"] = agreement(before, found.person)
    return found.person.astype(np.int64), told | check_tracklets(features, rows, found), found.notes


def agreement(one, other):
    """The share of pairs that both groupings bring together: twice their number by all of either, 0 to 1. Rows of
    label -1 are in no pair."""
    def pairs(*labels):
        counts = np.unique(np.stack(labels), axis=1, return_counts=True)[1]
        return (counts * (counts - 1) / 2).sum()

    both = (one >= 0) & (other >= 0)
    total = pairs(one[one >= 0]) + pairs(other[other >= 0])
    return float(2 * pairs(one[both], other[both]) / total) if total else 1.0


def check_tracklets(features, rows, found):
    """{"whole": share of tracklets whose last image is the most similar of all last images to their first; "conflicts":
    of the pairs of tracklets that cannot be one person, the share that looks more alike than the two ends of the
    median tracklet}; what there is nothing to tell of is left out."""
    tracked = [places for places in found.nodes if len(places) > 1 and rows[places[0]].tracklet]
    told = {}
    if len(tracked) > 1:
        first, last = (features[[places[end] for places in tracked]] for end in (0, -1))
        told["whole"] = float((top_k(first, last, 1)[0][:, 0] == np.arange(len(tracked))).mean())
        apart = groups.find_conflicts(rows, found.nodes, [])
        if len(apart):
            ends = np.einsum("nd,nd->n", first, last)
            means = [features[found.nodes[node]].mean(axis=0) for node in range(len(found.nodes))]
            told["conflicts"] = float(np.mean([means[a] @ means[b] > np.median(ends) for a, b in apart]))
    return told


def line(told, rows):
    """What a round's numbers say, for people."""
    alone = rows - told["grouped"]
    parts = [f"{told['people']:,} people in {told['grouped']:,} of {rows:,} images, {alone:,} stand alone",
             f"sure by {100 * told['confidence']:.0f} %"]  # fmt: skip
    texts = {"as_before": "of the pairs as in the round before", "whole": "of the tracklets find their own end",
             "conflicts": "of the pairs that cannot be one person look like one"}  # fmt: skip
    parts += [f"{100 * told[name]:.0f} % {text}" for name, text in texts.items() if name in told]
    return "; ".join(parts)
