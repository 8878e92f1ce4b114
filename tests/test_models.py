"""Tests of models.py: the reference's names, shapes and outputs, the region crop, gradients, contracts, checkpoints.

python -m pytest tests/test_models.py
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


@pytest.mark.parametrize(("size_in", "size_out"), [(20, 40), (8, 16), (5, 10), (2, 4), (2, 16), (80, 24), (4, 7)])
def test_resize_matrix_is_a_bilinear_resize(size_in, size_out):
    lines = torch.randn(3, 1, size_in, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(lines.double(), size_out, mode="linear", align_corners=True)[:, 0]  # (3, size_out)
    resized = lines[:, 0] @ models.resize_matrix(size_in, size_out).T
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("arch", ["osnet_x1_0", "osnet_x0_25", "mudeep"])
def test_other_networks_are_the_reference_s(arch):
    name = f"{arch}(num_classes=751)"
    with torch.device("meta"):  # MuDeep's 138 M weights need not be drawn first
        model = models.build_model(arch, 751)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == SHAPES[name]
    model.load_state_dict(filled_weights(name), strict=True, assign=True)
    shape, seed = (2, 3, 256, 128), 1502 if arch == "mudeep" else 1503
    with torch.no_grad():
        features = model.eval()(torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))).numpy()
    expected = np.load(FIXTURES / f"{arch}_reference.npz")["features"]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert (expected > 0).mean() > 0.2, "too few numbers to compare"


# ----------------------------------------------------------------------------------------------------------------------
# Region crop


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
    height, width = 80 >> stage, 32 >> stage
    size_out = models.HACNN.CROPS[stage]
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
    theta = small().ha1.hard_attn(torch.zeros(3, 128, 40, 16)).detach()  # (3, 4, 2)

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


def test_source_samples_no_grid():
    source = Path(models.__file__).read_text()
    assert not re.findall(r"grid_sample|affine_grid", source)


# ----------------------------------------------------------------------------------------------------------------------
# Contracts


def test_four_regions_as_one_batch_equal_a_loop():
    model, x = filled(), reference_input()
    with torch.no_grad():
        stages, entering = [], model.conv(x)
        for stage, crop in enumerate(model.crops, start=1):
            attention = getattr(model, f"ha{stage}")
            maps = getattr(model, f"inception{stage}")(entering)
            stages.append((entering, attention.hard_attn(maps), crop, getattr(model, f"local_conv{stage}")))
            entering = maps * attention.soft_attn(maps)
        means = []
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
    logits, features = model.train()(images(3))
    generator = torch.Generator().manual_seed(0)
    sum((out * torch.randn(out.shape, generator=generator)).sum() for out in logits + features).backward()
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in parameters if p.grad is None or not p.grad.isfinite().all()]


def test_every_parameter_gets_a_gradient():
    model = small()
    missing = without_gradient(model)
    assert not missing, f"no gradient: {', '.join(missing)}"


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


@pytest.mark.parametrize("shape", [(2, 3, 256, 128), (2, 3, 64, 160), (2, 1, 160, 64), (3, 160, 64)])
def test_wrong_input_size_names_both(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, 160, 64\)") as error:
        small()(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("name", ["hacn", "hac-nn", "HACNN"])
def test_unknown_architecture_names_the_nearest(name):
    with pytest.raises(ValueError, match=f"'{name}'.*did you mean 'hacnn'"):
        models.build_model(name, 5)


def test_unknown_architecture_lists_what_there_is():
    with pytest.raises(ValueError, match="'zzz'.*Available: .*hacnn"):
        models.build_model("zzz", 5)


def test_unknown_option_names_the_options():
    with pytest.raises(ValueError, match="learn_regions.*learn_region, align_corners"):
        models.build_model("hacnn", 5, learn_regions=False)


def test_pretrained_is_refused_where_there_is_nothing():
    with pytest.raises(ValueError, match="hacnn has no ImageNet weights"):
        models.build_model("hacnn", 5, pretrained=True)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints

ONE_BRANCH = {"learn_region": False}  # half the bytes to write


def ours(model, num_ids, options, **more):
    return {"arch": "hacnn", "num_ids": num_ids, "options": options, "model": model.state_dict(), **more}


def saved(tmp_path, content, **options):
    path = tmp_path / "a.pth"
    torch.save(content, path, **options)
    return path


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_our_checkpoint_needs_nothing_else(tmp_path):
    options = {"align_corners": True}
    model = small(5, **options)
    path = saved(tmp_path, ours(model, 5, options, distance="cosine", epoch=3))
    loaded, info = models.load_checkpoint(path)
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert info == {"arch": "hacnn", "num_ids": 5, "options": options, "distance": "cosine", "epoch": 3}
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images())), "align_corners got lost"
    assert_same_weights(models.load_checkpoint(path, arch="hacnn")[0], model)


def test_our_checkpoint_with_another_arch(tmp_path):
    path = saved(tmp_path, ours(small(**ONE_BRANCH), 5, ONE_BRANCH))
    with pytest.raises(ValueError, match="a.pth holds hacnn, not osnet_x1_0"):
        models.load_checkpoint(path, arch="osnet_x1_0")


def test_our_checkpoint_with_options_that_do_not_fit(tmp_path):
    path = saved(tmp_path, ours(small(), 5, {}))
    with pytest.raises(ValueError, match="a.pth"):
        models.load_checkpoint(path, learn_region=False)


def test_checkpoint_with_arch_but_without_our_other_keys(tmp_path):
    model = small(**ONE_BRANCH)
    path = saved(tmp_path, {"arch": "hacnn", "model": model.state_dict()})
    loaded, _ = models.load_checkpoint(path, arch="hacnn", **ONE_BRANCH)
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_checkpoint(tmp_path, prefix, wrap):
    model = small(9, **ONE_BRANCH)
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    path = saved(tmp_path, weights if wrap == "bare" else {wrap: weights, "epoch": 60})
    loaded, info = models.load_checkpoint(path, arch="hacnn", **ONE_BRANCH)
    assert_same_weights(loaded, model)
    assert loaded.classifier_global.out_features == 9, "the number of ids comes from the classifier's shape"
    assert info["arch"] == "hacnn" and info["options"] == ONE_BRANCH and info["skipped"] == []


def test_foreign_checkpoint_does_not_say_what_it_is(tmp_path):
    path = saved(tmp_path, small(**ONE_BRANCH).state_dict())
    with pytest.raises(ValueError, match=r"a.pth does not say.*--arch.*hacnn"):
        models.load_checkpoint(path)


def test_foreign_checkpoint_with_another_head(tmp_path):
    model = small(**ONE_BRANCH)
    weights = {n: value for n, value in model.state_dict().items() if "classifier" not in n}
    path = saved(tmp_path, {**weights, "head.weight": torch.zeros(9, 512)})
    loaded, info = models.load_checkpoint(path, arch="hacnn", **ONE_BRANCH)
    assert info["skipped"] == ["head.weight"]
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))


def test_foreign_checkpoint_with_more_than_the_model(tmp_path):
    model = small()
    loaded, info = models.load_checkpoint(saved(tmp_path, model.state_dict()), arch="hacnn", learn_region=False)
    assert sorted(loaded.state_dict()) == sorted(set(model.state_dict()) - set(info["skipped"]))
    assert {name.split(".")[0] for name in info["skipped"]} == {
        "local_conv1", "local_conv2", "local_conv3", "fc_local", "classifier_local",
    }  # fmt: skip


def test_foreign_checkpoint_with_less_than_the_model(tmp_path):
    path = saved(tmp_path, small(**ONE_BRANCH).state_dict())
    with pytest.raises(ValueError, match=r"a.pth lacks \d+ tensors that hacnn needs, such as fc_local"):
        models.load_checkpoint(path, arch="hacnn")


@pytest.mark.parametrize("content", [{"layer.weight": torch.zeros(3, 3)}, {"epoch": 3}, {}])
def test_nothing_fits(tmp_path, content):
    with pytest.raises(ValueError, match="none of the . tensors in the file fits"):
        models.load_checkpoint(saved(tmp_path, content), arch="hacnn")


def test_weights_for_another_number_of_ids():
    source, model = small(5, seed=1), small(8)
    skipped, missing = models.load_weights(model, source.state_dict())
    heads = [f"classifier_{branch}.{kind}" for branch in ("global", "local") for kind in ("bias", "weight")]
    assert skipped == heads == missing
    assert model.classifier_local.out_features == 8
    with torch.no_grad():
        assert torch.equal(model(images()), source(images()))


@pytest.mark.parametrize("number", [np.float64(0.909), np.float32(0.909)], ids=["float64", "float32"])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"], ids=["numpy2", "numpy1"])
def test_checkpoint_with_a_numpy_score(tmp_path, module, number):
    """Files of 2018: before zip archives, 'module.' or not, and rank-1 as a number of numpy, named as numpy 1 did."""
    model = small(**ONE_BRANCH)
    content = {"state_dict": model.state_dict(), "rank1": number, "epoch": 59}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", module))
    assert b"c" + module + b"\nscalar" in path.read_bytes()
    assert_same_weights(models.load_checkpoint(path, arch="hacnn", **ONE_BRANCH)[0], model)
    assert models.read_checkpoint(path)["rank1"] == number


class Attack:
    """Unpickled without care, it writes a file."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoint_with_code_is_refused_and_not_run(tmp_path, zipped):
    victim = tmp_path / "victim"
    path = saved(tmp_path, {"model": Attack(victim)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="a.pth is not a checkpoint that can be read safely") as error:
        models.read_checkpoint(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the attack of this test does not work"
    message = str(error.value)
    assert "\x1b" not in message and "weights_only" not in message, "it must not tell how to run the code"


def truncated_zip():
    torch.save({"a": torch.zeros(5000)}, "whole.pth")
    return Path("whole.pth").read_bytes()[:9000]


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x80\x02garbage", truncated_zip], ids=repr)
def test_no_checkpoint_at_all(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(ValueError, match="a.pth is not a checkpoint"):
        models.load_checkpoint(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 3])
def test_not_a_dictionary(tmp_path, content):
    with pytest.raises(ValueError, match=f"a.pth holds a {type(content).__name__}, not the dictionary"):
        models.load_checkpoint(saved(tmp_path, content), arch="hacnn")


@pytest.mark.parametrize("name", ["no.pth", "."])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))):
        models.load_checkpoint(tmp_path / name)


def test_a_copied_model_is_independent():
    model = small(**ONE_BRANCH)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.fc_global[0].weight.zero_()
    assert model.fc_global[0].weight.any()
