"""Losses: values and gradients of the reference, hand-worked numbers, half precision, batches without a negative."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import losses

REFERENCE = np.load(Path(__file__).parent / "fixtures" / "loss_reference.npz")


def reference_center():
    center = losses.CenterLoss(20, 64)
    center.centers.data.copy_(torch.from_numpy(REFERENCE["centers"]))
    return center


CASES = {
    "xent": ("logits", lambda x, y: losses.cross_entropy(x, y)),
    "xent_smooth0.1": ("logits", lambda x, y: losses.cross_entropy(x, y, smoothing=0.1)),
    "triplet0.3": ("features", lambda x, y: losses.batch_hard_triplet(x, y, margin=0.3)),
    "center": ("features", lambda x, y: reference_center()(x, y)),
    "ring": ("features", lambda x, y: losses.RingLoss(1.0)(x)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_reference(name):
    key, loss = CASES[name]
    x = torch.from_numpy(REFERENCE[key]).requires_grad_()
    value = loss(x, torch.from_numpy(REFERENCE["pids"]))
    value.backward()
    assert value.item() == pytest.approx(float(REFERENCE[name]), rel=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), REFERENCE[f"{name}_grad"], rtol=1e-5, atol=1e-7)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    labels = torch.tensor([0])
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(-math.log(0.75), abs=1e-6)
    smoothed = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))  # smoothing 0.2 gives each of the two classes 0.1
    assert losses.cross_entropy(logits, labels, smoothing=0.2).item() == pytest.approx(smoothed, abs=1e-6)


def test_triplet_by_hand():
    # On a line: id 0 at 0 and 3, id 1 at 1 and 7.
    features = torch.tensor([[0.0], [3.0], [1.0], [7.0]], requires_grad=True)
    # anchor 0: 3 - 1 + .5 = 2.5; anchor 3: 3 - 2 + .5 = 1.5; anchor 1: 6 - 1 + .5 = 5.5; anchor 7: 6 - 4 + .5 = 2.5
    loss = losses.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), margin=0.5)
    assert loss.item() == pytest.approx(12.0 / 4, abs=1e-6)
    loss.backward()
    # d(ap) - d(an) of the anchors 0, 3, 1, 7 by each point, signs counted by hand and divided by 4
    # 0: (3-0)-(1-0); 3: (3-0)-(3-1); 1: (7-1)-(1-0); 7: (7-1)-(7-3)
    # x0: -1+1 -1 +1 = 0;  x3: +1 +1-1 +1 = 2;  x1: -1 +1 -1-1 -1 = -3;  x7: +1 +1-1 = 1
    assert features.grad.flatten().tolist() == pytest.approx([0.0, 0.5, -0.75, 0.25], abs=1e-6)


def test_triplet_of_a_satisfied_batch_is_zero():
    features = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]])
    assert losses.batch_hard_triplet(features, torch.tensor([4, 4, 9, 9])).item() == 0.0


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [3]])
def test_triplet_without_a_negative_is_zero_and_connected(labels):
    features = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = losses.batch_hard_triplet(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_triplet_of_ids_with_one_image_has_positive_distance_zero():
    features = torch.tensor([[0.0], [0.2], [1.0]], requires_grad=True)
    loss = losses.batch_hard_triplet(features, torch.tensor([0, 1, 2]))  # 0.3 - 0.2, 0.3 - 0.2, max(0, 0.3 - 0.8)
    loss.backward()
    assert loss.item() == pytest.approx(0.2 / 3, abs=1e-5)
    assert torch.isfinite(features.grad).all()


def test_triplet_of_identical_features_has_a_finite_gradient():
    features = torch.ones(8, 16, requires_grad=True)
    loss = losses.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert torch.isfinite(features.grad).all()


def test_triplet_measures_close_features_exactly():
    # Long features that nearly coincide: |a|^2 + |b|^2 - 2ab has no correct digit left here in float32.
    base = 100.0 * torch.ones(1, 256)
    features = torch.cat([base, base + 1 / 1024, base + 3 / 1024, base + 7 / 1024])  # 16 / 1024 apart
    loss = losses.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), margin=1.0)
    # per anchor in units of 16 / 1024: 1 - 3, 1 - 2, 4 - 2, 4 - 6, plus 1024 / 16 = 64 as the margin
    assert loss.item() == pytest.approx((4 * 64 - 3) / 4 * 16 / 1024, abs=1e-6)


def test_gradients_agree_with_finite_differences():
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(6, 5, generator=rng, dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    center, ring = losses.CenterLoss(3, 5).double(), losses.RingLoss(1.5).double()
    assert torch.autograd.gradcheck(lambda x: losses.cross_entropy(x, y, 0.1), x)
    assert torch.autograd.gradcheck(lambda x: losses.batch_hard_triplet(x, y, 1.0), x)
    assert torch.autograd.gradcheck(lambda x, c: functional_call(center, {"centers": c}, (x, y)), (x, center.centers))
    assert torch.autograd.gradcheck(lambda x, r: functional_call(ring, {"radius": r}, (x,)), (x, ring.radius))


def test_center_and_ring_move_their_parameters():
    center, ring = losses.CenterLoss(3, 2), losses.RingLoss(4.0)
    center.centers.data.zero_()
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    value = center(features, torch.tensor([2, 0]))
    assert value.item() == pytest.approx((25 + 1) / 2)
    value.backward()  # d/dc mean |x - c|^2 = 2 (c - x) / B
    assert center.centers.grad.tolist() == [[0.0, -1.0], [0.0, 0.0], [-3.0, -4.0]]
    value = ring(features)
    assert value.item() == pytest.approx(((5 - 4) ** 2 + (1 - 4) ** 2) / 2)
    value.backward()  # d/dR mean (n - R)^2 = mean 2 (R - n)
    assert ring.radius.grad.item() == pytest.approx(-1 + 3)
    assert [*center.state_dict(), *ring.state_dict()] == ["centers", "radius"]


def test_center_starts_the_same_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    assert torch.equal(losses.CenterLoss(4, 6).centers, losses.CenterLoss(4, 6).centers)
    assert torch.equal(torch.get_rng_state(), before)


def test_ring_of_a_zero_feature_has_a_finite_gradient():
    features = torch.zeros(2, 4, requires_grad=True)
    losses.RingLoss(2.0)(features).backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float32_of_the_same_numbers(name, dtype):
    key, loss = CASES[name]
    x = (30 * torch.from_numpy(REFERENCE[key])).to(dtype)  # squared distances pass float16's 65,504
    y = torch.from_numpy(REFERENCE["pids"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    assert value.dtype == torch.float32
    assert value.item() == loss(x.float(), y).item()
    assert math.isfinite(value.item())


def test_mean_over_branches():
    first, second = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
    labels = torch.tensor([0])
    expected = (math.log(2.0) - math.log(0.75)) / 2
    assert losses.mean_over_branches(losses.cross_entropy, [first, second], labels).item() == pytest.approx(expected)
    assert losses.mean_over_branches(losses.cross_entropy, first, labels).item() == pytest.approx(math.log(2.0))
    smoothed = losses.mean_over_branches(losses.cross_entropy, [second], labels, 0.2).item()
    assert smoothed == losses.cross_entropy(second, labels, smoothing=0.2).item()
    assert losses.mean_over_branches(losses.RingLoss(1.0), [torch.ones(1, 4), torch.ones(1, 9)]).item() == (1 + 4) / 2


def test_mean_over_branches_takes_one_loss_per_branch():
    centers = nn.ModuleList([losses.CenterLoss(2, 3), losses.CenterLoss(2, 5)])
    for center in centers:
        center.centers.data.zero_()
    features = [torch.ones(1, 3), torch.ones(1, 5)]
    assert losses.mean_over_branches(centers, features, torch.tensor([1])).item() == pytest.approx((3 + 5) / 2)
    with pytest.raises(ValueError, match="got 3 branches for 2 losses"):
        losses.mean_over_branches(centers, [*features, features[0]], torch.tensor([1]))
    with pytest.raises(ValueError, match="got 0 branches"):
        losses.mean_over_branches(centers, [], torch.tensor([1]))


FEATURES, LABELS = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])
BAD = {
    "1-D": (FEATURES[0], LABELS, r"\(B, n\)"),
    "empty": (FEATURES[:0], LABELS[:0], "B > 0"),
    "integers": (FEATURES.long(), LABELS, "floating point"),
    "labels too short": (FEATURES, LABELS[:3], r"labels must be \(4,\)"),
    "labels 2-D": (FEATURES, LABELS[:, None], r"labels must be \(4,\)"),
    "float labels": (FEATURES, LABELS.float(), "integers"),
    "bool labels": (FEATURES, LABELS.bool(), "integers"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.batch_hard_triplet, losses.CenterLoss(5, 3)])
def test_bad_batches_get_a_clear_error(loss, case):
    x, y, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        loss(x, y)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.CenterLoss(3, 3)])
@pytest.mark.parametrize("bad", [-1, -100, 3])
def test_labels_out_of_range_get_a_clear_error(loss, bad):
    with pytest.raises(ValueError, match=rf"{bad}.*3 ids"):
        loss(FEATURES, torch.tensor([0, 1, bad, 2]))


def test_center_of_another_width_and_ring_of_another_rank_get_a_clear_error():
    with pytest.raises(ValueError, match="3 columns, but the centres 7"):
        losses.CenterLoss(3, 7)(FEATURES, LABELS)
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        losses.RingLoss()(FEATURES[0])
