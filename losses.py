"""The losses that train a re-ID network, each a mean over the batch.

    logits, features = model(images)  # training mode: two lists, one entry per branch
    loss = mean_over_branches(cross_entropy, logits, labels, 0.1)
    loss = loss + mean_over_branches(batch_hard_triplet, features, labels)

| loss | one term per image | source |
|---|---|---|
| cross_entropy | -sum_k t_k log p_k with t = (1 - s) onehot + s / K | label smoothing: Szegedy et al., CVPR 2016 |
| batch_hard_triplet | max(0, d(farthest same id) - d(nearest other id) + margin) | Hermans et al., arXiv 1703.07737 |
| CenterLoss | squared distance to the learnt centre of the id | Wen et al., ECCV 2016 |
| RingLoss | (length of the feature - learnt radius)^2 | Zheng et al., CVPR 2018 |

Two papers halve their loss and here nothing is halved: a weight of 0.5 gives center and ring as printed there. Wen et
al. move the centres by a rule of their own; here they follow their gradient, which the optimizer scales.
Everything is computed in float32 (float64 stays), under autocast too: squares of half-precision features overflow.
"""

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
    """Raises ValueError where a label is not one of 0..num_ids - 1."""
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= num_ids:
        raise ValueError(f"labels run from {low} to {high} with {num_ids} ids: relabel them to 0..{num_ids - 1}")


def cross_entropy(logits, labels, smoothing=0.0):
    """Cross entropy with label smoothing, mean over the batch. logits (B, N), labels (B,) -> scalar."""
    check_batch(logits, labels, "logits")
    if labels.device.type == "cpu":  # on a GPU reading them back would stall each step, and the kernel checks by itself
        check_range(labels, logits.shape[1])
    return F.cross_entropy(full_precision(logits), labels.long(), label_smoothing=smoothing)


def distance(a, b):
    """Euclidean distance row by row, (B, D) x (B, D) -> (B,); the gradient is 0, not NaN, where rows are equal."""
    return (a - b).square().sum(1).clamp_min(1e-12).sqrt()


def batch_hard_triplet(features, labels, margin=0.3):
    """Batch-hard triplet loss on Euclidean distances (not squared). features (B, D), labels (B,) -> scalar.

    The anchor itself counts as a positive, so an id with one image has the positive distance 0. An anchor without any
    negative contributes nothing: a batch of a single identity gives 0, still connected to the features.
    """
    check_batch(features, labels, "features")
    features = full_precision(features)
    same = labels[:, None] == labels  # (B, B)
    with torch.no_grad():  # mining needs only the order, so the gradient is kept for the B pairs that are chosen
        dist = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B), exact near 0
        positive = dist.masked_fill(~same, -torch.inf).argmax(1)  # (B,)
        negative = dist.masked_fill(same, torch.inf).argmin(1)  # (B,), any index where there is none
        valid = ~same.all(1)
    hinge = F.relu(distance(features, features[positive]) - distance(features, features[negative]) + margin)
    return torch.where(valid, hinge, 0.0).sum() / valid.sum().clamp_min(1)


class CenterLoss(nn.Module):
    """Mean over the batch of the squared distance to the own id's centre; `.centers` (num_ids, dim) is a parameter.

    The centres start as standard normal draws of a fixed private generator: the same in every run and on every rank.
    """

    def __init__(self, num_ids, dim):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_ids, dim, generator=torch.Generator().manual_seed(0)))

    def forward(self, features, labels):
        check_batch(features, labels, "features")
        num_ids, dim = self.centers.shape
        if features.shape[1] != dim:
            raise ValueError(f"features have {features.shape[1]} columns, but the centres {dim}: one loss per branch")
        check_range(labels, num_ids)  # a negative label would silently pick a centre from the end
        return (full_precision(features) - self.centers[labels.long()]).square().sum(1).mean()


class RingLoss(nn.Module):
    """Mean over the batch of (|feature| - radius)^2; `.radius`, a scalar, is a parameter."""

    def __init__(self, radius=1.0):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(float(radius)))

    def forward(self, features):
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features must be (B, D) with B > 0, not {tuple(features.shape)}")
        return (torch.linalg.vector_norm(full_precision(features), dim=1) - self.radius).square().mean()


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
