"""Losses: values and gradients of the reference, the papers' formulas as loops, hand-worked numbers, finite
differences, half precision, batches with nothing to compare."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
LOSSES = CASES | {  # those that the reference does not have, on the same batch: ids below 20, 64 columns
    "triplet_soft": ("features", lambda x, y: losses.batch_hard_triplet(x, y, margin="soft")),
    "circle": ("features", losses.circle_loss),
    "arcface": ("features", losses.ArcFace(20, 64)),
    "cosface": ("features", losses.CosFace(20, 64)),
    "prototypes": ("features", losses.Prototypes(20, 64)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_reference(name):
    key, loss = CASES[name]
    x = torch.from_numpy(REFERENCE[key]).requires_grad_()
    value = loss(x, torch.from_numpy(REFERENCE["pids"]))
    value.backward()
    assert value.item() == pytest.approx(float(REFERENCE[name]), rel=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), REFERENCE[f"{name}_grad"], rtol=1e-5, atol=1e-7)


def mixed_batch():
    """Ids of three images, two and one, in no order; ids below 10."""
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, torch.tensor([7, 2, 7, 5, 2, 7, 0, 2, 9])


def triplet_by_loop(x, y, term):
    terms = []
    for i in range(len(x)):
        far = max(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if y[j] == y[i])
        near = min(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if y[j] != y[i])
        terms.append(term(far - near))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    "margin, term", [(1.5, lambda gap: max(0.0, gap + 1.5)), ("soft", lambda gap: math.log(1 + math.exp(gap)))]
)
def test_triplet_equals_a_loop(margin, term):
    x, y = mixed_batch()
    expected = triplet_by_loop(x.numpy(), y.tolist(), term)
    assert losses.batch_hard_triplet(x, y, margin).item() == pytest.approx(expected, rel=1e-9)


def test_soft_margin_of_far_gaps_does_not_overflow():
    features = torch.tensor([[0.0], [3000.0], [1.0], [7000.0]], requires_grad=True)
    loss = losses.batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), "soft")
    loss.backward()
    assert loss.item() == pytest.approx((2999 + math.log(1 + math.e) + 6998 + 2999) / 4, rel=1e-6)
    assert torch.isfinite(features.grad).all()


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def circle_by_loop(x, y, margin, gamma, weights_of=None):
    """Eq. 6 of the paper, with the weights of Eq. 5 taken at the features `weights_of` (x itself if None)."""
    s = unit_rows(x) @ unit_rows(x).T
    at = s if weights_of is None else unit_rows(weights_of) @ unit_rows(weights_of).T
    terms = []
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if y[j] == y[i] and j != i]
        negatives = [j for j in range(len(x)) if y[j] != y[i]]
        pull = [math.exp(-gamma * max(0, 1 + margin - at[i, j]) * (s[i, j] - (1 - margin))) for j in positives]
        push = [math.exp(gamma * max(0, at[i, j] - (-margin)) * (s[i, j] - margin)) for j in negatives]
        if pull and push:
            terms.append(math.log(1 + sum(push) * sum(pull)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("margin, gamma", [(0.25, 64.0), (0.4, 5.0), (0.0, 1.0)])
def test_circle_equals_a_loop(margin, gamma):
    x, y = mixed_batch()
    expected = circle_by_loop(x.numpy(), y.tolist(), margin, gamma)
    assert losses.circle_loss(x, y, margin, gamma).item() == pytest.approx(expected, rel=1e-9)
    assert losses.circle_loss(x, y).item() == losses.circle_loss(x, y, 0.25, 64.0).item()


def test_circle_gradient_equals_finite_differences_with_the_weights_held():
    x, y = mixed_batch()
    x.requires_grad_()
    losses.circle_loss(x, y, 0.25, 5.0).backward()
    start, step, numeric = x.detach().numpy(), 1e-6, np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        moved = [start.copy(), start.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (circle_by_loop(m, y.tolist(), 0.25, 5.0, weights_of=start) for m in moved)
        numeric[place] = (up - down) / (2 * step)
    np.testing.assert_allclose(x.grad.numpy(), numeric, rtol=1e-6, atol=1e-8)


def test_circle_by_hand():
    # Id 0 at 0 and 90 degrees, id 1 at 90 degrees: cosines 0 within id 0, 0 and 1 to id 1; id 1 has no positive.
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    pull = math.exp(2 * 1.25 * 0.75)  # a_p = 1.25 - 0, and 0 lacks 0.75 to 1 - margin
    push_first, push_second = math.exp(2 * 0.25 * -0.25), math.exp(2 * 1.25 * 0.75)
    expected = (math.log(1 + push_first * pull) + math.log(1 + push_second * pull)) / 2
    assert losses.circle_loss(features, torch.tensor([0, 0, 1]), 0.25, 2.0).item() == pytest.approx(expected, rel=1e-6)


def margin_softmax_by_loop(x, y, w, angle, cosine, scale):
    s = np.clip(unit_rows(x) @ unit_rows(w).T, -1, 1)
    terms = []
    for i in range(len(x)):
        turned = math.acos(s[i, y[i]]) + angle
        own = math.cos(turned) if turned <= math.pi else -2 - math.cos(turned)
        others = sum(math.exp(scale * s[i, j]) for j in range(len(w)) if j != y[i])
        own = math.exp(scale * (own - cosine))
        terms.append(-math.log(own / (own + others)))
    return sum(terms) / len(terms)


MARGINS = {  # name: (module for 10 ids and 6 columns, angle, cosine, scale)
    "arcface": (losses.ArcFace(10, 6), 0.5, 0.0, 64.0),
    "cosface": (losses.CosFace(10, 6), 0.0, 0.35, 64.0),
    "both": (losses.MarginSoftmax(10, 6, angle=2.0, cosine=0.1, scale=3.0), 2.0, 0.1, 3.0),  # half pass pi
    "neither": (losses.MarginSoftmax(10, 6, scale=3.0), 0.0, 0.0, 3.0),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margin_softmax_equals_a_loop(name):
    x, y = mixed_batch()
    head, *numbers = MARGINS[name]
    expected = margin_softmax_by_loop(x.numpy(), y.tolist(), head.weight.detach().double().numpy(), *numbers)
    assert head(x, y).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", MARGINS)
def test_margin_softmax_gradients_agree_with_finite_differences(name):
    x, y = mixed_batch()
    head, _, _, scale = MARGINS[name]
    weight = head.weight.detach().double().requires_grad_()
    passes_pi = (torch.cosine_similarity(x, weight[y]) < -math.cos(2.0)).tolist()
    assert 0 < sum(passes_pi) < len(y)  # "both" is checked on both sides
    call = lambda x, w: functional_call(head, {"weight": w}, (x, y)) / scale  # noqa: E731
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), weight))


@pytest.mark.parametrize("angle, cosine", [(0.5, 0.0), (0.0, 0.35), (1.5, 0.0)])
def test_own_logit_falls_all_the_way_and_without_a_jump(angle, cosine):
    head = losses.MarginSoftmax(2, 3, angle, cosine, scale=2.0).double()
    head.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=torch.float64)  # the other cosine stays 0
    thetas = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    rows = torch.stack([thetas.cos(), thetas.sin(), torch.zeros_like(thetas)], 1)
    values = torch.stack([head(row[None], torch.tensor([0])) for row in rows])  # log(1 + e^(-2 own))
    own = -torch.log(torch.expm1(values)) / 2
    assert own[0].item() == pytest.approx(math.cos(angle) - cosine)
    assert own[-1].item() == pytest.approx(-2 + math.cos(angle) - cosine)
    steps = own[:-1] - own[1:]
    assert (steps > 0).all() and (steps < 1.001 * math.pi / 1000).all()


@pytest.mark.parametrize("theta", [0.0, 1e-6, 1e-3, 3e-3, 1.0, math.pi - 1e-3, math.pi])
def test_margin_softmax_gradient_is_bounded_and_right_near_the_poles(theta):
    head = losses.MarginSoftmax(2, 2, angle=0.5, scale=2.0)
    head.weight.data = torch.eye(2)
    x = torch.tensor([[math.cos(theta), math.sin(theta)]], requires_grad=True)
    head(x, torch.tensor([0])).backward()
    assert x.grad.norm().item() <= 2 * 2.0  # |d cos / dx| <= 1 for both ids
    if 1e-4 < theta < math.pi - 1e-4:  # at the poles the direction is undefined
        own = math.cos(theta + 0.5) if theta + 0.5 <= math.pi else -2 - math.cos(theta + 0.5)
        slope = math.sin(theta + 0.5) * (1 if theta + 0.5 <= math.pi else -1)  # -d own / d theta
        probability = 1 / (1 + math.exp(2 * (own - math.sin(theta))))  # of the other id, whose cosine is sin theta
        along = 2 * probability * (math.cos(theta) + slope)  # d loss / d theta
        expected = [-math.sin(theta) * along, math.cos(theta) * along]
        assert x.grad[0].tolist() == pytest.approx(expected, abs=2e-3)


def test_margins_make_it_harder():
    x, y = mixed_batch()
    plain, arc, cos = (MARGINS[name][0](x, y).item() for name in ("neither", "arcface", "cosface"))
    scaled = losses.MarginSoftmax(10, 6)(x, y).item()
    assert plain < scaled < min(arc, cos)


@pytest.mark.parametrize("name", ["circle", "arcface", "cosface"])
def test_losses_on_cosines_ignore_lengths(name):
    x, y = mixed_batch()
    if name == "circle":
        assert losses.circle_loss(x, y).item() == pytest.approx(losses.circle_loss(7 * x, y).item(), rel=1e-9)
    else:
        head = {"arcface": losses.ArcFace, "cosface": losses.CosFace}[name](10, 6).double()
        before = head(x, y).item()
        head.weight.data *= torch.arange(1, 11)[:, None]
        assert head(7 * x, y).item() == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_the_batch_and_names_of_the_ids_do_not_matter(name):
    key, loss = LOSSES[name]
    x, y = torch.from_numpy(REFERENCE[key]).double(), torch.from_numpy(REFERENCE["pids"])
    before = loss(x, y).item()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    assert loss(x[order], y[order]).item() == pytest.approx(before, rel=1e-9)
    assert loss(x, y.to(torch.uint8)).item() == before
    new_name = torch.randperm(20, generator=torch.Generator().manual_seed(2))  # of each id
    if "face" in name:
        renamed = losses.ArcFace(20, 64) if name == "arcface" else losses.CosFace(20, 64)
        renamed.weight.data[new_name] = loss.weight.data
        loss = renamed
    if name in ("center", "prototypes") or key == "logits":
        return  # rows of centres and columns of logits: plain look-ups, the reference's values pin them
    assert loss(x, new_name[y]).item() == pytest.approx(before, rel=1e-9)


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
    assert torch.autograd.gradcheck(lambda x: losses.batch_hard_triplet(x, y, "soft"), x)
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


@pytest.mark.parametrize("module", [losses.CenterLoss, losses.ArcFace, losses.CosFace, losses.Prototypes])
def test_modules_start_the_same_and_leave_the_global_generator_alone(module):
    before = torch.get_rng_state()
    first, second = module(4, 6).state_dict(), module(4, 6).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == list(second) == ["centers" if module is losses.CenterLoss else "weight"]
    assert all(torch.equal(first[name], second[name]) and first[name].shape == (4, 6) for name in first)


def test_prototypes_by_hand():
    head = losses.Prototypes(1, 2, smoothing=0.2, scale=5.0)
    before = head.weight
    assert head.begin(torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])) is before  # lengths of 2 in the mean
    assert head.weight.tolist() == [[2.5, 0], [0, 2.5], [-2.5, 0]] and isinstance(head.weight, torch.nn.Parameter)
    x, y = torch.tensor([[0.6, 0.8], [2.0, 0.0], [0.0, 9.0]], requires_grad=True), torch.tensor([0, 0, 1])
    logits = torch.tensor([[1.5, 2.0, -1.5], [5.0, 0.0, -5.0], [0.0, 22.5, 0.0]])  # lengths count
    value = head(x, y)
    assert value.item() == pytest.approx(F.cross_entropy(logits, y, label_smoothing=0.2).item(), rel=1e-6)
    value.backward()
    assert x.grad.abs().sum() > 0 and head.weight.grad.abs().sum() > 0


def test_the_gradient_of_prototypes_agrees_with_finite_differences():
    head = losses.Prototypes(10, 6).double()
    x, y = mixed_batch()
    assert torch.autograd.gradcheck(lambda x: head(x, y), x.requires_grad_())


def test_directions_of_the_ids_start_with_length_one():
    torch.testing.assert_close(losses.ArcFace(50, 64).weight.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float32_of_the_same_numbers(name, dtype):
    key, loss = LOSSES[name]
    x = (30 * torch.from_numpy(REFERENCE[key])).to(dtype).requires_grad_()  # squared distances pass float16's 65,504
    y = torch.from_numpy(REFERENCE["pids"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    value.backward()
    assert value.dtype == torch.float32
    full = x.detach().float().requires_grad_()
    in_full = loss(full, y)
    in_full.backward()
    assert value.item() == in_full.item()
    assert math.isfinite(value.item())
    assert torch.equal(x.grad, full.grad.to(dtype)) and torch.isfinite(x.grad).all()


POOR = {  # batches in which something to compare is missing: (labels, features)
    "one id": ([3, 3, 3, 3], "random"),
    "one image": ([3], "random"),
    "no positives": ([0, 1, 2, 3], "random"),
    "equal features": ([0, 0, 1, 1], "equal"),
    "equal features of one id": ([3, 3, 3, 3], "equal"),
    "zeros": ([0, 0, 1, 2], "zeros"),
    "equal pairs": ([0, 0, 1, 1], "pairs"),
    "opposite": ([0, 0, 1, 1], "opposite"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", POOR)
@pytest.mark.parametrize("name", LOSSES)
def test_poor_batches_have_a_finite_loss_and_gradient(name, batch, dtype):
    labels, kind = POOR[batch]
    row = torch.randn(1, 20 if LOSSES[name][0] == "logits" else 64, generator=torch.Generator().manual_seed(0))
    x = {
        "random": torch.randn(len(labels), row.shape[1], generator=torch.Generator().manual_seed(1)),
        "equal": row.repeat(4, 1),
        "zeros": torch.zeros(4, row.shape[1]),
        "pairs": torch.cat([row, row, 2 - row, 2 - row]),
        "opposite": torch.cat([row, -row, row, -row]),
    }[kind]
    x = x.to(dtype).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either, which a mask would hide
        value = LOSSES[name][1](x, torch.tensor(labels))
        value.backward()
    assert math.isfinite(value.item()) and value.item() >= 0
    assert torch.isfinite(x.grad).all()
    if batch in ("one id", "one image") and name in ("triplet0.3", "triplet_soft", "circle"):
        assert value.item() == 0 and not x.grad.any()
    if batch == "no positives" and name == "circle":
        assert value.item() == 0 and not x.grad.any()


def test_poor_batches_by_hand():
    equal, y = torch.ones(4, 8), torch.tensor([0, 0, 1, 1])
    assert losses.batch_hard_triplet(equal, y, "soft").item() == pytest.approx(math.log(2))
    # All cosines 1: one positive exp(-0.25 * 0.25 g), two negatives exp(1.25 * 0.75 g) each.
    expected = math.log(1 + 2 * math.exp(2 * (1.25 * 0.75 - 0.25 * 0.25)))
    assert losses.circle_loss(equal, y, 0.25, 2.0).item() == pytest.approx(expected, rel=1e-6)
    for head in (losses.ArcFace(5, 8), losses.CosFace(5, 8)):  # a feature without direction has cosine 0 to every id
        margin = head.scale * head.cosine
        own, all_ids = math.exp(-margin), 4 + math.exp(-margin)
        assert head(torch.zeros(4, 8), y).item() == pytest.approx(-math.log(own / all_ids), rel=1e-6)


@pytest.mark.parametrize("at", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LOSSES)
def test_features_that_are_not_finite_are_not_hidden(name, at):
    key, loss = LOSSES[name]
    x = torch.from_numpy(REFERENCE[key]).clone()
    x[5, 3] = at
    assert not math.isfinite(loss(x, torch.from_numpy(REFERENCE["pids"])).item())


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


TAKE_LABELS = [losses.cross_entropy, losses.batch_hard_triplet, losses.circle_loss]


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(
    "loss", [*TAKE_LABELS, losses.CenterLoss(5, 3), losses.ArcFace(5, 3), losses.Prototypes(5, 3)]
)
def test_bad_batches_get_a_clear_error(loss, case):
    x, y, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        loss(x, y)


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.CenterLoss(3, 3), losses.CosFace(3, 3), losses.Prototypes(3, 3)]
)
@pytest.mark.parametrize("bad", [-1, -100, 3])
def test_labels_out_of_range_get_a_clear_error(loss, bad):
    with pytest.raises(ValueError, match=rf"{bad}.*3 ids"):
        loss(FEATURES, torch.tensor([0, 1, bad, 2]))


@pytest.mark.parametrize("module", [losses.CenterLoss, losses.ArcFace, losses.Prototypes])
def test_features_of_another_width_get_a_clear_error(module):
    with pytest.raises(ValueError, match="3 columns, but this loss was built for 7"):
        module(3, 7)(FEATURES, LABELS)


def test_ring_of_another_rank_gets_a_clear_error():
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        losses.RingLoss()(FEATURES[0])


def test_bad_margins_get_a_clear_error():
    for margin in ("hard", None):
        with pytest.raises(ValueError, match=f'a number or "soft", not {margin!r}'):
            losses.batch_hard_triplet(FEATURES, LABELS, margin)
    for angle in (-0.1, 28.6):  # degrees
        with pytest.raises(ValueError, match=f"radians, 0 to pi, not {angle}"):
            losses.ArcFace(3, 3, angle=angle)
