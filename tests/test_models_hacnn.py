"""HA-CNN: the reference's names, shapes and outputs, precision, contracts; its crops beside grid sampling.

python -m pytest tests/test_models_hacnn.py
"""

import copy
import functools
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models

FIXTURES = Path(__file__).parent / "fixtures"
REFERENCE = np.load(FIXTURES / "hacnn_reference.npz")
SHAPES = json.loads((FIXTURES / "state_shapes.json").read_text())
CASES = [(region, align) for region in (True, False) for align in (False, True)]


def fill_value(name, shape):
    """The weights that the reference numbers were measured with: each tensor follows from its name alone."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if name.endswith("running_var"):
        return 0.5 + rng.rand(*shape)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * rng.randn(*shape)
    if len(shape) == 1:
        return 1 + 0.1 * rng.randn(*shape)
    return rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))


@functools.lru_cache(maxsize=2)
def filled_weights(name):
    """The state that the reference numbers of one entry of state_shapes.json were measured with."""
    shapes = SHAPES[name]
    values = {name: torch.tensor(fill_value(name, shape), dtype=torch.float32) for name, shape in shapes.items()}
    return {name: value.long() if name.endswith("tracked") else value for name, value in values.items()}


def filled(learn_region=True, align_corners=False):
    """The model of the reference numbers, in evaluation mode."""
    model = models.build_model("hacnn", 751, learn_region=learn_region, align_corners=align_corners)
    model.load_state_dict(filled_weights(f"hacnn(num_classes=751, learn_region={learn_region})"), strict=True)
    return model.eval()


def reference_input():
    return torch.from_numpy(np.random.RandomState(1501).randn(4, 3, 160, 64).astype(np.float32))


def small(num_ids=5, seed=0, **options):
    """A fresh model, in evaluation mode, that is the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build_model("hacnn", num_ids, **options).eval()


def images(count=2, seed=0):
    return torch.randn(count, 3, 160, 64, generator=torch.Generator().manual_seed(seed))


def step(model, x, optimizer=None):
    """Backward through all outputs in training, and a step of `optimizer`; names of parameters without a gradient."""
    logits, features = model.train()(x)
    generator = torch.Generator().manual_seed(0)
    sum((out * torch.randn(out.shape, generator=generator)).sum() for out in logits + features).backward()
    if optimizer:
        optimizer.step()
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for _, p in parameters)
    return [name for name, p in parameters if p.grad is None or not p.grad.any()]


# ----------------------------------------------------------------------------------------------------------------------
# The reference


@pytest.mark.parametrize("learn_region", [True, False])
def test_names_and_shapes_are_the_reference_s(learn_region):
    state = models.build_model("hacnn", 751, learn_region=learn_region).state_dict()
    expected = SHAPES[f"hacnn(num_classes=751, learn_region={learn_region})"]
    assert {name: list(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(("learn_region", "align_corners"), CASES)
def test_features_are_the_reference_s(learn_region, align_corners, memory_format):
    model = filled(learn_region, align_corners).to(memory_format=memory_format)
    with torch.no_grad():
        features = model(reference_input().contiguous(memory_format=memory_format))
    expected = REFERENCE[f"features_region{int(learn_region)}_align{int(align_corners)}"]
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-5)


def test_global_branch_in_training_is_the_reference_s():
    with torch.no_grad():
        logits, features = filled().train()(reference_input())
    np.testing.assert_allclose(logits[0].numpy(), REFERENCE["train_global_logits"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(features[0].numpy(), REFERENCE["train_global_features"], rtol=0, atol=1e-3)


def test_number_of_parameters():
    assert models.count_parameters(models.build_model("hacnn", 751)) == (3_699_638, 2_929_112)


def test_regions_begin_as_four_strips():
    theta = small().ha2.hard_attn(torch.randn(3, 256, 20, 8))
    assert theta.shape == (3, 4, 2)
    assert theta[:, :, 0].abs().max() == 0
    assert theta[1, :, 1].tolist() == pytest.approx([-0.635, -0.245, 0.245, 0.635], abs=1e-3)


def test_soft_attention_lies_between_one_half_and_one():
    maps = filled().ha1.soft_attn(torch.randn(2, 128, 40, 16))
    assert maps.shape == (2, 128, 40, 16)
    assert maps.min() >= 0.5 and maps.max() <= 1 and maps.std() > 0.01


# ----------------------------------------------------------------------------------------------------------------------
# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["autocast", "converted"])
def test_theta_is_computed_in_single_precision(how, dtype):
    attention = filled().ha1.hard_attn
    x = (3 + torch.randn(4, 128, 40, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    if how == "converted":
        attention.to(dtype)
    weight, bias = attention.fc.weight.double(), attention.fc.bias.double()
    expected = torch.tanh(x.double().mean(dim=(2, 3)) @ weight.T + bias).view(4, 4, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        theta = attention(x)
    assert theta.dtype == torch.float32
    torch.testing.assert_close(theta.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["autocast", "half", "bfloat16"])
def test_forward_in_reduced_precision(how):
    model, x = filled(), reference_input()
    if how != "autocast":
        model, x = getattr(model, how)(), getattr(x, how)()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        features = model(x).float()
    cosine = F.cosine_similarity(features, torch.from_numpy(REFERENCE["features_region1_align0"]))
    assert cosine.min() > 0.99


def test_training_under_autocast():
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = model(images())
    sum(out.float().square().mean() for out in logits + features).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ----------------------------------------------------------------------------------------------------------------------
# Contracts


def local_stages(model, x):
    """(map that regions are cut from, theta, crop, local_conv) of each stage."""
    stages, entering = [], model.conv(x)
    for stage, crop in enumerate(model.crops, start=1):
        attention = getattr(model, f"ha{stage}")
        maps = getattr(model, f"inception{stage}")(entering)
        stages.append((entering, attention.hard_attn(maps), crop, getattr(model, f"local_conv{stage}")))
        entering = maps * attention.soft_attn(maps)
    return stages


def test_four_regions_as_one_batch_equal_a_loop():
    model, x = filled(), reference_input()
    with torch.no_grad():
        stages, means = local_stages(model, x), []
        for region in range(4):
            local = 0
            for entered, theta, crop, local_conv in stages:
                local = local_conv(crop(entered, theta[:, region : region + 1]) + local)
            means.append(local.mean(dim=(2, 3)))  # (B, 384)
        looped = F.normalize(model.fc_local(torch.cat(means, dim=1)), dim=1)
        torch.testing.assert_close(model(x)[:, 512:], looped, rtol=0, atol=1e-6)


def without_gradient(model):
    """Names of the parameters that training should change and that a step gives no gradient.

    A gradient of zeros counts as one: batch norm takes away what the bias before it adds, exactly.
    """
    step(model, images(3))
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_separate_norms_train_as_a_loop_over_regions_does():
    model, x = small(joint_norm=False, seed=3), images(3)
    loop, counted = copy.deepcopy(model).train(), model.local_conv1.stream1[0].bn.num_batches_tracked
    logits, features = model.train()(x)
    local = [0] * 4
    for entered, theta, crop, local_conv in local_stages(loop, x):
        for region in range(4):
            local[region] = local_conv(crop(entered, theta[:, region : region + 1]) + local[region])
    expected = loop.fc_local(torch.cat([maps.mean(dim=(2, 3)) for maps in local], dim=1))
    torch.testing.assert_close(features[1], expected, rtol=0, atol=1e-5)
    assert counted == 4  # batches that each batch norm of the local branch has seen
    state = loop.state_dict()  # running statistics went the same way, the regions in turn
    for name, value in model.state_dict().items():
        if name.startswith("local_conv"):
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-6)
    joint = small(seed=3).train()
    assert (joint(x)[1][1] - features[1]).abs().max() > 0.1
    joint.load_state_dict(model.state_dict())
    assert torch.equal(joint.eval()(x), model.eval()(x))  # in evaluation they are one and the same
    assert not without_gradient(small(joint_norm=False))


@pytest.mark.parametrize("learn_region", [True, False])
def test_bnneck_of_hacnn(learn_region):
    model, plain = small(learn_region=learn_region, bnneck=True), small(learn_region=learn_region)
    branches = ["global", "local"][: 1 + learn_region]
    added, gone = set(model.state_dict()) - set(plain.state_dict()), set(plain.state_dict()) - set(model.state_dict())
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert added == {f"bnneck_{branch}.{name}" for branch in branches for name in statistics}
    assert gone == {f"classifier_{branch}.bias" for branch in branches}

    necks = [getattr(model, f"bnneck_{branch}") for branch in branches]
    assert not any(neck.bias.requires_grad for neck in necks)
    spreads = [getattr(model, f"classifier_{branch}").weight.std().item() for branch in branches]
    assert spreads == pytest.approx([0.001] * len(branches), rel=0.1)
    for seed, neck in enumerate(necks):
        generator = torch.Generator().manual_seed(seed)
        neck.running_mean.copy_(torch.rand(512, generator=generator))
        neck.running_var.copy_(0.5 + torch.rand(512, generator=generator))
        neck.weight.data.copy_(0.5 + torch.rand(512, generator=generator))
    x = images(3)
    with torch.no_grad():
        raw = model.branches(x)
        pairs = zip(raw, necks, strict=True)
        by_hand = [(f - neck.running_mean) / (neck.running_var + 1e-5).sqrt() * neck.weight for f, neck in pairs]
        expected = torch.cat([f / f.norm(dim=1, keepdim=True) for f in by_hand], dim=1) if learn_region else by_hand[0]
        torch.testing.assert_close(model(x), expected, rtol=0, atol=2e-6 if learn_region else 2e-5)

        logits, features = model.train()(x)
        before = [neck.running_mean.clone() for neck in necks]
        described = model.describe(features)  # in training mode: the statistics are used and stay
        assert all(torch.equal(a, neck.running_mean) for a, neck in zip(before, necks, strict=True))
        assert described.shape == (3, model.feature_dim)
        for branch, out, feature, neck in zip(branches, logits, features, necks, strict=True):
            centred = (feature - feature.mean(dim=0)) / (feature.var(dim=0, unbiased=False) + 1e-5).sqrt() * neck.weight
            classify = getattr(model, f"classifier_{branch}")
            torch.testing.assert_close(out, centred @ classify.weight.T, rtol=0, atol=1e-4)
    assert without_gradient(small(learn_region=learn_region, bnneck=True)) == []


def test_regions_learn_both_coordinates_from_the_local_branch():
    model = small().train()
    model(images(3))[1][1].square().sum().backward()  # the local feature alone
    for attention in (model.ha1, model.ha2, model.ha3):
        assert attention.hard_attn.fc.bias.grad.abs().min() > 0


def test_without_regions_only_the_region_layers_are_frozen():
    model = small(learn_region=False)
    missing = without_gradient(model)
    assert not missing, f"no gradient: {', '.join(missing)}"
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"ha{stage}.hard_attn.fc.{kind}" for stage in (1, 2, 3) for kind in ("weight", "bias")}


@pytest.mark.parametrize(("learn_region", "branches"), [(True, 2), (False, 1)])
def test_training_gives_two_lists(learn_region, branches):
    model = small(7, learn_region=learn_region).train()
    logits, features = model(images(3))
    assert isinstance(logits, list) and isinstance(features, list)
    assert [tuple(out.shape) for out in logits] == [(3, 7)] * branches
    assert [tuple(out.shape) for out in features] == [(3, 512)] * branches
    norms = features[0].norm(dim=1)
    assert (norms - 1).abs().max() > 0.1, "features are raw in training"
    heads = [model.classifier_global] + ([model.classifier_local] if learn_region else [])
    for head, out, feature in zip(heads, logits, features, strict=True):
        torch.testing.assert_close(head(feature), out)


@pytest.mark.parametrize(("learn_region", "dim"), [(True, 1024), (False, 512)])
def test_evaluation_gives_features(learn_region, dim):
    model = filled(learn_region)
    assert (model.input_size, model.feature_dim) == ((160, 64), dim)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        features = model(reference_input())
        one = model(reference_input()[:1])
    assert features.shape == (4, dim) and one.shape == (1, dim)
    torch.testing.assert_close(features[:1], one, rtol=0, atol=1e-6)
    if learn_region:
        halves = features.view(4, 2, 512).norm(dim=2)
        torch.testing.assert_close(halves, torch.ones(4, 2))


def test_state_holds_no_constants_of_the_geometry():
    assert not [name for name in small().state_dict() if name.startswith("crops") or "rows" in name]


# ----------------------------------------------------------------------------------------------------------------------
# Regions and resizing, beside grid sampling and interpolation


SIZES = [((80, 32), (24, 28)), ((40, 16), (12, 14)), ((20, 8), (6, 7))]  # maps and regions of HA-CNN's three stages


@pytest.mark.parametrize(("size_in", "size_out"), [(20, 40), (8, 16), (5, 10), (2, 4), (2, 16), (80, 24), (4, 7)])
def test_resize_matrix_is_a_bilinear_resize(size_in, size_out):
    lines = torch.randn(3, 1, size_in, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(lines.double(), size_out, mode="linear", align_corners=True)[:, 0]  # (3, size_out)
    resized = lines[:, 0] @ models.resize_matrix(size_in, size_out)
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-6)


def crop_by_grid_sampling(x, theta, size_out, align_corners):
    """The definition of RegionCrop, region by region: affine_grid, grid_sample, interpolate."""
    regions = []
    for shift in theta.unbind(dim=1):  # (B, 2)
        zero, one = torch.zeros_like(shift[:, 0]), torch.ones_like(shift[:, 0])
        rows = [torch.stack([one, zero, shift[:, 0]], dim=1), torch.stack([zero, one / 4, shift[:, 1]], dim=1)]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=align_corners)
        sampled = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
        regions.append(F.interpolate(sampled, size_out, mode="bilinear", align_corners=True))
    return torch.stack(regions, dim=1).flatten(0, 1)  # (B, R, C, h, w) -> (B * R, C, h, w)


def random_theta(low, high, seed=0):
    theta = low + (high - low) * torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(seed))
    theta[0, 0], theta[0, 1] = torch.tensor([0.0, 0.75]), torch.tensor([low, high])
    return theta


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("bound", [1.0, 2.5], ids=["inside_and_edges", "outside"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_region_crop_is_grid_sampling(stage, bound, align_corners):
    (height, width), size_out = SIZES[stage]
    generator = torch.Generator().manual_seed(stage)
    x, theta = torch.randn(3, 6, height, width, generator=generator), random_theta(-bound, bound)
    upstream = torch.randn(12, 6, *size_out, generator=generator)
    results = []
    for crop in (models.RegionCrop((height, width), size_out, align_corners), None):
        dtype = torch.float32 if crop else torch.float64  # in single, positions of the yardstick err by 1e-5
        inputs = [value.to(dtype, copy=True).requires_grad_() for value in (x, theta)]
        out = crop(*inputs) if crop else crop_by_grid_sampling(*inputs, size_out, align_corners)
        results.append([value.double() for value in (out, *torch.autograd.grad((out * upstream).sum(), inputs))])
    (ours, ours_x, ours_theta), (right, right_x, right_theta) = results
    torch.testing.assert_close(ours, right, rtol=0, atol=2e-5)
    torch.testing.assert_close(ours_x, right_x, rtol=0, atol=2e-4)
    torch.testing.assert_close(ours_theta[1:], right_theta[1:], rtol=1e-3, atol=1e-2)  # [0] has points on a kink


@pytest.mark.parametrize("align_corners", [False, True])
def test_regions_can_leave_the_places_where_they_begin(align_corners):
    """Strips begin at t_x = 0, where samples lie on pixels and the slope differs to the left and to the right.

    A gradient of zero there, as the absolute value has it at 0, would hold every region at t_x = 0 for ever.
    """
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(3, 6, 40, 16, generator=generator), torch.randn(3, 4, 6, 12, 14, generator=generator)
    theta = torch.tanh(torch.tensor([[0, -0.75], [0, -0.25], [0, 0.25], [0, 0.75]])).repeat(3, 1, 1)  # (3, 4, 2)

    def objective(theta):
        """(B, R), by the yardstick in double precision."""
        regions = crop_by_grid_sampling(x.double(), theta.double(), (12, 14), align_corners)
        return (regions.view_as(upstream) * upstream).sum(dim=(2, 3, 4))

    step = torch.tensor([1e-4, 0.0])
    slopes = [(objective(theta + step) - objective(theta)) / 1e-4, (objective(theta) - objective(theta - step)) / 1e-4]
    low, high = torch.minimum(*slopes), torch.maximum(*slopes)
    theta.requires_grad_()
    regions = models.RegionCrop((40, 16), (12, 14), align_corners)(x, theta)
    (gradient,) = torch.autograd.grad((regions.view_as(upstream) * upstream).sum(), theta)
    slack = 0.02 * (low.abs() + high.abs())
    assert ((low - slack <= gradient[..., 0]) & (gradient[..., 0] <= high + slack)).all(), gradient[..., 0]
    assert (gradient[..., 0] != 0).all()


def test_region_outside_the_map_is_empty():
    crop = models.RegionCrop((40, 16), (12, 14), False)
    out = crop(torch.ones(1, 2, 40, 16), torch.tensor([[[0.0, 3.0], [-2.5, 0.0], [0.0, 0.0]]]))
    assert out[:2].abs().max() == 0
    # the middle quarter of the height holds ones; at the full width, the outermost samples lie in the first pixel
    assert out[2].min() == pytest.approx(1, abs=1e-6) == out[2].max()


@pytest.mark.parametrize("convert", ["autocast", "half", "bfloat16"])
def test_crop_matrices_stay_in_single_precision(convert):
    crop = models.RegionCrop((80, 32), (24, 28), False)
    theta = random_theta(-1, 1)
    expected = crop.rows(theta[..., 1]), crop.columns(theta[..., 0])
    if convert != "autocast":
        getattr(crop, convert)()
    with torch.autocast("cpu", torch.bfloat16, enabled=convert == "autocast"):
        matrices = crop.rows(theta[..., 1]), crop.columns(theta[..., 0])
    for matrix, right in zip(matrices, expected, strict=True):
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, right)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_boxes_are_what_the_crop_samples(stage, align_corners):
    """A map whose channels hold where in the image its pixels lie: a crop of it says where it looked."""
    (height, width), size_out = SIZES[stage]
    step = 160 / height
    crop = models.RegionCrop((height, width), size_out, align_corners)
    y, x = (step * (torch.arange(height) + 0.5)), (step * (torch.arange(width) + 0.5))
    places = torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])  # (2, H, W)
    theta = torch.tensor([[[0.0, 0.0], [0.0, -0.37], [0.0, 0.61], [0.0, 0.1234]]])
    seen = crop(places[None], theta)  # (4, 2, h, w)
    found = torch.stack([seen[:, 0, 0, 0], seen[:, 1, 0, 0], seen[:, 0, -1, -1], seen[:, 1, -1, -1]], dim=1)
    half = torch.tensor([step / 4, step, step / 4, step]) / 2 * torch.tensor([1, 1, -1, -1])  # half a sampling step
    torch.testing.assert_close(found, models.boxes_of(crop, theta, (160, 64))[0] + half, rtol=0, atol=2e-3)

    band = torch.zeros(1, 1, height, width)
    band[:, :, height // 4 : height // 2] = 1  # pixels 40 to 80 of the image
    means = [float(crop(band, torch.tensor([[[0.0, t]]])).mean()) for t in (-0.75, -0.25, 0.25)]
    assert means[1] > 0.85 and means[0] < 0.15 and means[2] < 0.15, means


def test_sideways_shift_moves_the_box_as_it_moves_the_crop():
    crop = models.RegionCrop((80, 32), (24, 28), False)
    places = (2 * (torch.arange(32) + 0.5)).expand(1, 1, 80, 32)
    theta = torch.tensor([[[0.5, 0.0]]])  # 16 pixels to the right; the right quarter lies outside and is empty
    assert crop(places, theta)[0, 0, 12, 0] == pytest.approx(1 + 16)
    assert crop(places, theta)[0, 0, 12, -5:].abs().max() == 0
    assert models.boxes_of(crop, theta, (160, 64)).tolist() == [[[60, 16, 100, 80]]]


def test_source_samples_no_grid():
    source = Path(models.__file__).read_text()
    assert "RegionCrop" in source and not re.findall(r"grid_sample|affine_grid", source)
