"""The losses that train a re-ID network, each a mean over the batch.

    logits, features = model(images)  # training mode: two lists, one entry per branch
    loss = mean_over_branches(cross_entropy, logits, labels, 0.1)
    loss = loss + mean_over_branches(batch_hard_triplet, features, labels)

| loss | one term per image | source |
|---|---|---|
| cross_entropy | -sum_k t_k log p_k with t = (1 - s) onehot + s / K | label smoothing: Szegedy et al., CVPR 2016 |
| batch_hard_triplet | max(0, d(farthest same id) - d(nearest other id) + margin) | Hermans et al., arXiv 1703.07737 |
| circle_loss | log(1 + sum exp(other ids' terms) * sum exp(same id's terms)) | Sun et al., CVPR 2020, Eq. 6 |
| CenterLoss | squared distance to the learnt centre of the id | Wen et al., ECCV 2016, Eq. 2 |
| RingLoss | (length of the feature - learnt radius)^2 | Zheng et al., CVPR 2018 |
| ArcFace | cross entropy of s cos(angle to each id), the own angle + m | Deng et al., CVPR 2019, Eq. 3 |
| CosFace | cross entropy of s cos(angle to each id), the own cosine - m | Wang et al., CVPR 2018 |
| Prototypes | cross entropy of a classifier that begins at the mean of each id | as in MMT, Ge et al., ICLR 2020 |

Two papers halve their loss and here nothing is halved: a weight of 0.5 gives center and ring as printed there. Wen et
al. move the centres by a rule of their own; here they follow their gradient, which the optimizer scales.
Everything is computed in float32 (float64 stays), under autocast too: squares of half-precision features overflow.

Functions need no state. Modules hold parameters that train beside the model and belong into its checkpoint; all but
RingLoss are built from (num_ids, dim) and called with (features, labels), one per branch. ArcFace,
CosFace and Prototypes are classifiers with a weight of their own beside the model's, so that no loss shapes a model.
Triplet and circle compare images with each other. On several processes, gather features (with gradients) and labels
and take the loss of the whole on each: the mean of the gradients over processes is then the one of a single process.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn


def full_precision(x):
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_batch(rows, labels, what):
    """Raises ValueError unless `rows` is (B, n) floating point with B > 0 and `labels` is (B,) of integers."""
    if rows.ndim != 2 or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(f"{what} must be floating point (B, n) with B > 0, not {rows.dtype} {tuple(rows.shape)}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"labels must be ({len(rows)},), one per row of the {what}, not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {labels.dtype}")


def check_range(labels, num_ids):
    """Raises ValueError where a label is not one of 0..num_ids - 1.

    On the CPU only: on a GPU reading labels back would stall each step, and the kernels used here check by themselves.
    """
    if labels.device.type != "cpu":
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= num_ids:
        raise ValueError(f"labels run from {low} to {high} with {num_ids} ids: relabel them to 0..{num_ids - 1}")


def check_rows(features, labels, rows):
    """Raises ValueError unless features (B, dim) and labels (B,) fit `rows` (num_ids, dim), one per id."""
    check_batch(features, labels, "features")
    num_ids, dim = rows.shape
    if features.shape[1] != dim:
        raise ValueError(
            f"features have {features.shape[1]} columns, but this loss was built for {dim}: give each branch its own"
        )
    check_range(labels, num_ids)


def cross_entropy(logits, labels, smoothing=0.0):
    """Cross entropy with label smoothing, mean over the batch. logits (B, N), labels (B,) -> scalar."""
    check_batch(logits, labels, "logits")
    check_range(labels, logits.shape[1])
    return F.cross_entropy(full_precision(logits), labels.long(), label_smoothing=smoothing)


def mean_where(terms, valid):
    """Mean of the terms (B,) where valid (B,) is true; 0, still connected to the features, where none is."""
    return torch.where(valid, terms, 0.0).sum() / valid.sum().clamp_min(1)


def batch_hard_triplet(features, labels, margin=0.3):
    """Batch-hard triplet loss on Euclidean distances (not squared). features (B, D), labels (B,) -> scalar.

    margin: a number, or "soft" for log(1 + exp(d(farthest same id) - d(nearest other id))), which never stops pulling.
    The anchor itself counts as a positive, so an id with one image has the positive distance 0. An anchor without any
    negative contributes nothing: a batch of a single identity gives 0, still connected to the features.
    """
    check_batch(features, labels, "features")
    if margin != "soft" and not isinstance(margin, int | float):
        raise ValueError(f'margin is a number or "soft", not {margin!r}')
    features = full_precision(features)
    same = labels[:, None] == labels  # (B, B)
    with torch.no_grad():  # mining needs only the order, so the gradient is kept for the B pairs that are chosen
        dist = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B), exact near 0
        positive = dist.masked_fill(~same, -torch.inf).argmax(1)  # (B,)
        negative = dist.masked_fill(same, torch.inf).argmin(1)  # (B,), any index where there is none
    norm = functools.partial(torch.linalg.vector_norm, dim=1)  # its gradient is 0, not NaN, where rows are equal
    gap = norm(features - features[positive]) - norm(features - features[negative])  # (B,)
    return mean_where(F.softplus(gap) if margin == "soft" else F.relu(gap + margin), ~same.all(1))


def unit(x):
    """Rows scaled to length 1, (N, D) -> (N, D). A row of zeros has no direction: it stays 0 and gets no gradient."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (N, 1)
    return torch.where(length < 1e-6, 0.0, x / length.clamp_min(1e-6))  # NaN passes through and is seen


def cosines(a, b):
    """Every row of a with every row of b, cosines where all are of length 1: (B, D) x (N, D) -> (B, N)."""
    with torch.autocast(a.device.type, enabled=False):  # it would multiply in half precision
        return a @ b.T


def circle_loss(features, labels, margin=0.25, gamma=64.0):
    """Circle loss between the images of a batch, on cosines. features (B, D), labels (B,) -> scalar.

    Per anchor log(1 + sum_n exp(gamma a_n (s_n - margin)) * sum_p exp(-gamma a_p (s_p - 1 + margin))) over the cosines
    s_n to other ids and s_p to other images of its id, with a_n = max(0, s_n + margin), a_p = max(0, 1 + margin - s_p).
    As in the paper's gradient, a_n and a_p are weights: they get none. An anchor needs a positive and a negative and
    contributes nothing without; where no anchor has both, the loss is 0, still connected to the features.
    """
    check_batch(features, labels, "features")
    features = unit(full_precision(features))
    cosine = cosines(features, features)  # (B, B)
    same = labels[:, None] == labels  # (B, B)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pull = -gamma * F.relu(1 + margin - cosine.detach()) * (cosine - 1 + margin)
    push = gamma * F.relu(cosine.detach() + margin) * (cosine - margin)
    pull = pull.masked_fill(~positive, -1e9).logsumexp(1)  # (B,); a row of -inf would give NaN on the way back
    push = push.masked_fill(same, -1e9).logsumexp(1)  # (B,)
    return mean_where(F.softplus(pull + push), positive.any(1))  # log(1 + e^pull e^push) without overflow


def draw_rows(num_ids, dim):
    """(num_ids, dim) standard normal draws of a private generator: the same in every run and on every process."""
    return torch.randn(num_ids, dim, generator=torch.Generator().manual_seed(0))


class CenterLoss(nn.Module):
    """Mean over the batch of the squared distance to the own id's centre; `.centers` (num_ids, dim) is a parameter.

    The centres start as standard normal draws. Memory: (B, dim), no distance to the centres of other ids is taken.
    """

    def __init__(self, num_ids, dim):
        super().__init__()
        self.centers = nn.Parameter(draw_rows(num_ids, dim))

    def forward(self, features, labels):
        check_rows(features, labels, self.centers)
        return (full_precision(features) - F.embedding(labels.long(), self.centers)).square().sum(1).mean()


class RingLoss(nn.Module):
    """Mean over the batch of (|feature| - radius)^2; `.radius`, a scalar, is a parameter."""

    def __init__(self, radius=1.0):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(float(radius)))

    def forward(self, features, labels=None):  # labels: as all other losses are called; they do not matter here
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features must be (B, D) with B > 0, not {tuple(features.shape)}")
        return (torch.linalg.vector_norm(full_precision(features), dim=1) - self.radius).square().mean()


class MarginSoftmax(nn.Module):
    """Cross entropy of scale * cosines to one direction per id, the own id's made harder by a margin.

    angle: added to the angle to the own id, radians (ArcFace). cosine: taken off the own cosine (CosFace).
    Where the own angle + angle passes pi, cos would rise again and reward a worse feature: from there on it is
    mirrored to -2 - cos, which goes on falling without a jump or a kink (as SphereFace, Liu et al., CVPR 2017, does).
    `.weight` (num_ids, dim) is a parameter; only its directions matter. They start as even draws, rows of length 1.
    """

    def __init__(self, num_ids, dim, angle=0.0, cosine=0.0, scale=64.0):
        super().__init__()
        if not 0 <= angle <= math.pi:
            raise ValueError(f"angle is a margin in radians, 0 to pi, not {angle}")
        self.angle, self.cosine, self.scale = angle, cosine, scale
        self.weight = nn.Parameter(unit(draw_rows(num_ids, dim)))

    def forward(self, features, labels):
        check_rows(features, labels, self.weight)
        features = unit(full_precision(features))
        weight, labels = unit(self.weight.to(features.dtype)), labels.long()
        own = F.embedding(labels, weight)  # (B, dim)
        cos = (features * own).sum(1)  # (B,)
        # The sine is the length of what own does not explain: sqrt(1 - cos^2) is noise at cos = 1, its slope infinite.
        sin = torch.linalg.vector_norm(features - cos[:, None] * own, dim=1)
        target = cos * math.cos(self.angle) - sin * math.sin(self.angle)  # cos(own angle + angle)
        target = torch.where(cos < -math.cos(self.angle), -2 - target, target) - self.cosine
        logits = cosines(features, weight).scatter(1, labels[:, None], target[:, None])  # (B, num_ids)
        return cross_entropy(self.scale * logits, labels)


# The margins and the scale of the papers; re-ID code often takes a scale of 30.
ArcFace = functools.partial(MarginSoftmax, angle=0.5)
CosFace = functools.partial(MarginSoftmax, cosine=0.35)


class Prototypes(nn.Module):
    """Cross entropy of a linear classifier without bias, whose rows begin as prototypes: a mean feature for each id.

    `.weight` (num_ids, dim) is a parameter. It starts as even draws; `begin` gives it other ids, with logits about as
    far apart as those of `scale` * cosines are: few, so that the classifier learns to tell the ids, before features
    that are good already are bent to do so.
    """

    def __init__(self, num_ids, dim, smoothing=0.1, scale=2.0):
        super().__init__()
        self.smoothing, self.scale = smoothing, scale
        self.weight = nn.Parameter(unit(draw_rows(num_ids, dim)))

    def begin(self, means):
        """means (num_ids, dim): of the features of each id. -> the parameter that was, which no longer counts."""
        before, length = self.weight, torch.linalg.vector_norm(means, dim=1).mean().clamp_min(1e-6)
        self.weight = nn.Parameter((self.scale / length * unit(full_precision(means))).to(before.device))
        return before

    def forward(self, features, labels):
        check_rows(features, labels, self.weight)
        features = full_precision(features)
        return cross_entropy(cosines(features, self.weight.to(features.dtype)), labels, self.smoothing)


def mean_over_branches(loss, outputs, *args):
    """Mean of loss(output, *args) over the branches of a model (HA-CNN has two).

    loss: one callable for all branches, or a list / nn.ModuleList with one per branch (center loss: own centres each).
    outputs: list of (B, n), one per branch; a single tensor counts as one branch.
    """
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    per_branch = loss if isinstance(loss, list | tuple | nn.ModuleList) else [loss] * len(outputs)
    if len(outputs) == 0 or len(per_branch) != len(outputs):
        raise ValueError(f"got {len(outputs)} branches for {len(per_branch)} losses: give one loss, or one per branch")
    return torch.stack([one(output, *args) for one, output in zip(per_branch, outputs, strict=True)]).mean()
