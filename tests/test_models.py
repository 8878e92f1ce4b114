"""Tests of models.py: every network of its table, what explain shows, the listing, checkpoints.

HA-CNN, the networks of torchvision and timm, and networks for tracklets have files of their own, test_models_*.py.

python -m pytest tests/test_models.py
"""

import argparse
import copy
import functools
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from test_models_hacnn import FIXTURES, SHAPES, filled, filled_weights, images, reference_input, small, step
from torch import nn

import export
import models
from exporting import gate

# ----------------------------------------------------------------------------------------------------------------------
# Every network of the table


SMALLEST = {"hacnn": (160, 64), "inception_v4": (96, 96), "inception_resnet_v2": (96, 96)}  # others take 64 x 32


def light(arch, num_ids=5, **options):
    """A fresh model for the smallest images that suit it, the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build_model(arch, num_ids, input_size=SMALLEST.get(arch, (64, 32)), **options)


def images_for(model, count=3, seed=0):
    return torch.randn(count, 3, *model.input_size, generator=torch.Generator().manual_seed(seed))


def awake(model):
    """The model without what begins switched off, behind which gradients are zero, exactly and rightly so.

    timm begins residual branches with a normalisation of scale 0. A narrow gate of OSNet, which sees no negative
    numbers, has one or two hidden units: with negative weights alone, their ReLU cuts off every image.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
        elif isinstance(module, models.ChannelGate):
            module.fc1.weight.data.abs_()
    return model


def check_features(model, x):
    """Features are finite and the same whatever else is in the batch; returns them."""
    with torch.no_grad():
        out = model.eval()(x)
        scale = float(out.abs().max())
        assert out.shape == (3, model.feature_dim) and 0 < scale < torch.inf
        torch.testing.assert_close(model(x[:1]), out[:1], rtol=0, atol=1e-5 * scale)
    return out


@pytest.fixture
def one_thread():
    """As fast for such small images, and several times faster where cores are shared and threads wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("arch", models.MODELS)
def test_every_network_evaluates_and_trains(arch):
    """Before and after a step that moves every weight by the same small amount.

    A plain gradient step would not do: before the first step, gradients of 1e7 stand in front of 20 batch norms of
    Inception-v4, and a weight that moves by 1e4 leaves features that overflow, or that are rounded differently in
    batches of different sizes: the running statistics hold a tenth of one batch, measured before the step.
    """
    model = awake(light(arch))
    x = images_for(model)
    before = check_features(model, x)
    assert (before[0] - before[1]).abs().max() > 1e-5 * before.abs().max(), "the image makes no difference"
    logits, features = model.train()(x)
    assert isinstance(logits, list) and isinstance(features, list) and len(features) == len(logits)
    assert {tuple(out.shape) for out in logits} == {(3, 5)}
    assert sum(out.shape[1] for out in features) == model.feature_dim
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    missing = step(model, x, torch.optim.Adam(model.parameters(), lr=1e-3))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    # a bias in front of a batch norm is taken out with the mean: its gradient is 0 up to rounding, or exactly
    blocks = [name for name, module in model.named_modules() if isinstance(module, models.ConvBlock)]
    idle = {f"{name}.conv.bias" for name in blocks}
    assert set(missing) <= idle, f"no gradient: {', '.join(missing)}"
    unchanged = {name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, old[name])}
    assert unchanged <= idle, f"a step does not change {', '.join(sorted(unchanged))}"
    assert not torch.allclose(check_features(model, x), before)


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


def test_the_instance_norms_of_osnet_ibn():
    """In place of conv1's batch norm, and behind the addition of both blocks of conv2; all else is as without them."""
    with torch.device("meta"):
        plain, ibn = (set(models.build_model(f"osnet_{kind}x1_0", 5).state_dict()) for kind in ("", "ibn_"))
    assert ibn - plain == {f"conv2.{block}.IN.{name}" for block in (0, 1) for name in ("weight", "bias")}
    assert plain - ibn == {f"conv1.bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


HEADS = {"bnneck": True, "embedding": 24, "pooling": "gem"}


@pytest.mark.parametrize(
    ("arch", "options"),
    [("hacnn", {}), ("hacnn", {"learn_region": False}), ("mudeep", {}), ("osnet_x0_25", {}), ("resnet18", {}),
     ("resnet18", HEADS), ("test_vit", {"bnneck": True}), ("swin_tiny_patch4_window7_224", {})],
)  # fmt: skip
def test_training_features_make_what_evaluation_gives(arch, options):
    model = light(arch, **options)
    x = images_for(model)
    with torch.no_grad():
        model(x)  # moves the running statistics
        expected = model.eval()(x)
        model.training = True  # of the whole alone: inside, batch norms and dropout are in evaluation
        _, features = model(x)
        assert torch.equal(model.describe(features), expected)
        state = copy.deepcopy(model.state_dict())
        described = model.train().describe(features)
    assert torch.equal(described, expected), "in training mode describe gives the same"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    right = torch.cat([f / f.norm(dim=1, keepdim=True) if len(features) == 2 else f for f in features], dim=1)
    if "bnneck" in options:
        mean, variance, scale = (state[f"bnneck.{name}"] for name in ("running_mean", "running_var", "weight"))
        right = (right - mean) / (variance + 1e-5).sqrt() * scale
    torch.testing.assert_close(described, right)


def test_gradients_are_zero_only_behind_a_scale_of_zero():
    """seresnet50 as timm begins it: the last normalisation of each residual branch has scale 0 and bias 0."""
    model = light("seresnet50")
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "Bottleneck"]
    layers = ("conv1", "bn1", "conv2", "bn2", "conv3", "se")  # bn3 itself and `downsample` are not behind it
    starts = tuple(f"{block}.{layer}." for block in blocks for layer in layers)
    behind = [name for name, _ in model.named_parameters() if name.startswith(starts)]
    assert len(blocks) == 16 and len(behind) == 16 * 11
    assert step(model, images_for(model)) == behind


@pytest.mark.parametrize(
    ("arch", "shape"),
    [(arch, (2, 3, 96, 32)) for arch in ("osnet_x0_25", "mudeep", "resnet18", "test_vit")]
    + [("hacnn", shape) for shape in ((2, 3, 256, 128), (2, 3, 64, 160), (2, 1, 160, 64), (3, 160, 64))],
)
def test_images_of_another_size_than_the_model_s(arch, shape):
    right = "(B, 3, 160, 64)" if arch == "hacnn" else "(B, 3, 64, 32)"
    with pytest.raises(ValueError, match=re.escape(f"takes images {right}, got {shape}")):
        light(arch)(torch.zeros(shape))


@pytest.mark.parametrize("arch", ["hacnn", "resnet18", "test_vit"])
def test_a_new_model_is_in_training_mode(arch):
    assert all(module.training for module in models.build_model(arch, 5).modules())


class Passing(nn.Module):
    """Stands for a block that keeps the shape of its first input."""

    def forward(self, x, *_):
        return x


def shorten(network):
    """Of blocks in a row with weights of the same shapes one is kept: what they compute is the same kind of thing."""
    for parent in list(network.modules()):
        previous = None
        for name, block in list(parent.named_children()):
            shapes = [type(block), *(value.shape for value in block.state_dict().values())]
            repeats = shapes == previous and (len(shapes) > 12 or isinstance(block, models.LightConv3x3))
            if repeats or isinstance(block, models.OSBlock) and isinstance(block.downsample, nn.Identity):
                setattr(parent, name, Passing())
            previous = shapes
    return network


# Writing ONNX takes its time for every layer, so these arguments of the libraries cut depth and width; BENCHMARK.md has
# the table of all networks as they are.
ARGUMENTS = {
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1, 1, 1)},  # two: with and without a shift of the windows
    "timm/convnext_tiny": {"depths": (1, 1, 1, 1)},
}
# Whose layers others have too: OSNet with IBN those of all its widths, SE-ResNet-50 those of ResNet, Inception-v4,
# ShuffleNet and Xception those of the rest
ALIKE = ("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "resnet50", "legacy_seresnet50", "resnext50_32x4d",
         "inception_resnet_v2", "nasnetalarge")  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("arch", [arch for arch in models.MODELS if arch not in ("hacnn", *ALIKE)])
def test_every_network_exports(tmp_path, monkeypatch, arch):
    """HA-CNN is exported where it is trained, in test_train.py."""
    if arch in ARGUMENTS:
        densenet = lambda *_, **__: torchvision.models.DenseNet(**ARGUMENTS[arch])  # noqa: E731
        monkeypatch.setattr(torchvision.models, "get_model", densenet)
        monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **ARGUMENTS[arch]))
    monkeypatch.setattr(gate, "BATCHES", (1, 3))  # written with 2
    model = light(arch, **(HEADS if arch == "resnet18" else {})).eval().requires_grad_(False)
    if arch == "resnet18":  # fresh statistics of a BNNeck change nothing
        nn.init.uniform_(model.bnneck.running_var, 1, 4)
    else:
        shorten(model)
    traced = export.trace(model)
    for name, form in export.FORMATS.items():  # fails where the file does not agree, in batches of several sizes
        if name == "pt2" and arch not in ("osnet_ibn_x1_0", "resnet18", "swin_tiny_patch4_window7_224"):
            continue  # it is the same graph, written in a few seconds more
        path = tmp_path / f"a{form.suffix}"
        export.export(model, {"arch": arch, "options": {}}, name, path, traced=traced)


def test_shortening_leaves_one_of_each_block():
    full, short = light("resnet50"), shorten(light("resnet50"))
    assert [isinstance(block, Passing) for block in short.backbone.layer3] == [False, False] + [True] * 4
    assert short.eval()(images_for(short)).shape == full.eval()(images_for(full)).shape


# ----------------------------------------------------------------------------------------------------------------------
# What a network looks at


def looking(theta, **options):
    """A small HA-CNN whose regions lie at theta (4, 2), the same for every image."""
    model = small(**options)
    for attention in (model.ha1, model.ha2, model.ha3):
        attention.hard_attn.fc.bias.data = torch.atanh(torch.tensor(theta)).flatten()
    return model


STRIPS = [[0.0, -0.75], [0.0, -0.25], [0.0, 0.25], [0.0, 0.75]]


@pytest.mark.parametrize(
    ("theta", "boxes"),
    [
        (STRIPS, [[0, 0, 40, 64], [40, 0, 80, 64], [80, 0, 120, 64], [120, 0, 160, 64]]),
        # 0.1 of half the height is 8 pixels, 0.5 of half the width is 16; a region may leave the image
        ([[0.0, -0.65], [0.5, -0.25], [-0.5, 0.25], [0.0, 0.95]],
         [[8, 0, 48, 64], [40, 16, 80, 80], [80, -16, 120, 48], [136, 0, 176, 64]]),
    ],
)  # fmt: skip
def test_regions_in_pixels(theta, boxes):
    found = models.explain(looking(theta), images())
    assert [tuple(stage.shape) for stage in found["regions"]] == [(2, 4, 4)] * 3
    for stage in found["regions"]:
        torch.testing.assert_close(stage, torch.tensor([boxes, boxes], dtype=torch.float32), rtol=0, atol=1e-3)


def test_regions_in_pixels_with_aligned_corners():
    """Then -1 and 1 are the centres of the first and last row of a map: 80, 40 and 20 rows, of 2, 4 and 8 pixels."""
    theta = [[0.0, -0.5], [0.0, 0.0], [0.0, 0.5], [0.5, 0.0]]
    found = models.explain(looking(theta, align_corners=True), images(1))
    for stage, (rows, columns) in zip(found["regions"], [(80, 32), (40, 16), (20, 8)], strict=True):
        down, right = 0.5 * (160 - 160 / rows) / 2, 0.5 * (64 - 64 / columns) / 2
        boxes = [[60 - down, 0, 100 - down, 64], [60, 0, 100, 64], [60 + down, 0, 100 + down, 64]]
        boxes.append([60, right, 100, 64 + right])
        torch.testing.assert_close(stage[0], torch.tensor(boxes), rtol=0, atol=1e-3)


def test_regions_begin_as_strips_that_tanh_draws_inwards():
    """tanh(0.75) = 0.6351 and tanh(0.25) = 0.2449 of half the height, 80 pixels, from the middle; 40 pixels high."""
    regions = models.explain(small(), images(1))["regions"]
    tops = 80 * torch.tensor([1 - 0.6351490, 1 - 0.2449187, 1 + 0.2449187, 1 + 0.6351490]) - 20
    for stage in regions:
        torch.testing.assert_close(stage[0, :, 0], tops, rtol=0, atol=1e-3)
        torch.testing.assert_close(stage[0, :, 2], tops + 40, rtol=0, atol=1e-3)
        assert stage[0, :, 1].abs().max() == 0 and (stage[0, :, 3] == 64).all()


def test_attention_and_activation_of_hacnn():
    model, x = filled(), reference_input()
    found = models.explain(model, x)
    with torch.no_grad():
        maps, attention = model.conv(x), []
        for stage in (1, 2, 3):
            maps = getattr(model, f"inception{stage}")(maps)
            attention.append(getattr(model, f"ha{stage}").soft_attn(maps))
            maps = maps * attention[-1]
    for ours, full in zip(found["attention"], attention, strict=True):
        torch.testing.assert_close(ours, full.mean(dim=1))
    norms = maps.square().sum(dim=1).sqrt()
    for ours, right in zip(found["activation"], norms, strict=True):
        torch.testing.assert_close(ours, (right - right.min()) / (right.max() - right.min()), rtol=0, atol=1e-5)


def test_hacnn_without_regions_explains_the_rest():
    found = models.explain(small(learn_region=False), images())
    assert found["regions"] == []
    assert [tuple(stage.shape) for stage in found["attention"]] == [(2, 40, 16), (2, 20, 8), (2, 10, 4)]


@pytest.mark.parametrize(
    ("arch", "shape"),
    [("mudeep", (4, 2)), ("osnet_x0_25", (4, 2)), ("resnet18", (4, 2)), ("test_vit", (4, 2)),
     ("swin_tiny_patch4_window7_224", (2, 1))],
)  # fmt: skip
def test_activation_of_every_kind(arch, shape):
    model = light(arch).eval()
    x = images_for(model)
    before = model(x).detach()
    found = models.explain(model, x)
    assert found.keys() == {"activation"} and found["activation"].shape == (3, *shape)
    peaks = found["activation"].amax(dim=(1, 2))
    assert (found["activation"].amin(dim=(1, 2)) == 0).all() and (peaks <= 1).all()
    assert (peaks == 1).all() or arch in ("test_vit", "swin_tiny_patch4_window7_224"), "layer norms level the rest"
    assert not any(module._forward_hooks for module in model.modules()) and torch.equal(model(x), before)


def test_activation_lies_where_the_image_does():
    """Patches keep their place: of a ViT without blocks, only the patch that is not like the others stands out."""
    model = light("test_vit").eval()
    model.backbone.blocks = nn.Identity()
    model.backbone.norm = nn.Identity()
    model.backbone.pos_embed.data.zero_()
    x = torch.zeros(1, 3, 64, 32)
    x[:, :, 32:48, 16:] = 50.0  # third row of patches, second column
    assert models.explain(model, x)["activation"][0].argmax() == 2 * 2 + 1


def test_activation_of_a_map_without_any_difference_is_zero():
    model = light("resnet18").eval()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.Threshold(1e9, 2.0))
    model.classifier = nn.Identity()
    assert not models.explain(model, images_for(model))["activation"].any()


def test_explain_refuses_a_model_in_training():
    with pytest.raises(ValueError, match="evaluation mode"):
        models.explain(small().train(), images())


# ----------------------------------------------------------------------------------------------------------------------
# The listing


def test_listing(capsys):
    assert models.main(["hacnn", "osnet_x1_0", "squeezenet1_1"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    head = ["height", "x", "width", *rows.pop("name")[1:]]
    rows = {name: dict(zip(head, row, strict=True)) for name, row in rows.items()}
    assert {name: row["height"] + row["x"] + row["width"] for name, row in rows.items()} == {
        "hacnn": "160x64", "osnet_x1_0": "256x128", "squeezenet1_1": "256x128",
    }  # fmt: skip
    # counts of the literature
    assert (rows["hacnn"]["without"], rows["hacnn"]["params"], rows["hacnn"]["MACs"]) == ("2.93", "3.70", "0.544")
    assert (rows["osnet_x1_0"]["without"], rows["osnet_x1_0"]["MACs"]) == ("2.17", "0.979")
    assert rows["hacnn"]["features"] == "1024"
    assert float(rows["osnet_x1_0"]["FLOPs"]) == pytest.approx(2 * 0.979, abs=0.002)


def test_listing_of_an_unknown_name(capsys):
    assert models.main(["hacn"]) == 1
    assert "did you mean 'hacnn'" in capsys.readouterr().err


def test_macs_of_well_known_networks():
    """At 224 x 224, as torchvision's page and timm's table give them (ViT-S: 4.6 GMAC with attention)."""
    counts = {
        arch: models.count_macs(models.build_model(arch, 5, input_size=(224, 224), **options))
        for arch, options in {"resnet18": {"last_stride": 2}, "mobilenet_v2": {}, "vit_small_patch16_224": {}}.items()
    }
    assert counts["resnet18"] == (pytest.approx(1.81e9, abs=0.01e9), 0)
    assert counts["mobilenet_v2"] == (pytest.approx(0.30e9, abs=0.005e9), 0)
    assert sum(counts["vit_small_patch16_224"]) == pytest.approx(4.6e9, abs=0.05e9)


# ----------------------------------------------------------------------------------------------------------------------
# Options and checkpoints


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
    """Half of what was learned would be left out: the option that holds it is named, or one says that one knows."""
    model = small()
    path = saved(tmp_path, model.state_dict())
    lost = ["fc_local", "local_conv1", "local_conv2", "local_conv3"]
    told = rf"a.pth holds \d+ learned layers that this hacnn .*--options learn_region=True, .*--skip {' '.join(lost)},"
    with pytest.raises(ValueError, match=told):
        models.load_checkpoint(path, arch="hacnn", learn_region=False)
    loaded, info = models.load_checkpoint(path, arch="hacnn", learn_region=False, skip=lost)
    assert sorted(loaded.state_dict()) == sorted(set(model.state_dict()) - set(info["skipped"]))
    assert {name.split(".")[0] for name in info["skipped"]} == {*lost, "classifier_local"}


def test_foreign_checkpoint_with_less_than_the_model(tmp_path):
    path = saved(tmp_path, small(**ONE_BRANCH).state_dict())
    with pytest.raises(ValueError, match=r"a.pth lacks \d+ tensors that hacnn needs, such as fc_local"):
        models.load_checkpoint(path, arch="hacnn")


@pytest.mark.parametrize("content", [{"layer.weight": torch.zeros(3, 3)}, {"epoch": 3}, {}])
def test_nothing_fits(tmp_path, content):
    with pytest.raises(ValueError, match="none of the . tensors in the file fits"):
        models.load_checkpoint(saved(tmp_path, content), arch="hacnn")


@pytest.mark.parametrize(
    ("text", "option"),
    [("learn_region=False", ("learn_region", False)), ("pooling=gem", ("pooling", "gem")),
     ("embedding=512", ("embedding", 512)), ("input_size=384,128", ("input_size", (384, 128)))],
)  # fmt: skip
def test_options_as_they_are_typed(text, option):
    assert models.parse_option(text) == option


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


def torchscript():
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.pt")
    return Path("script.pt").read_bytes()


def zipped():
    with zipfile.ZipFile("some.zip", "w") as archive:
        archive.writestr("photos/a.txt", "hello")
    return Path("some.zip").read_bytes()


def safetensors_file():
    import safetensors.torch

    return safetensors.torch.save({"a": torch.zeros(3)})


def onnx_file():
    from tiny_onnx import write_model

    return Path(write_model("tiny.onnx")).read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"), (b"hello\n", "cut short, or another"), (b"\x80\x02garbage", "cut short, or another"),
        (truncated_zip, "cut short, or another"), (b"\n<!DOCTYPE html><p>Sign in", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"), (torchscript, "TorchScript"),
        (zipped, "an archive of a.txt"), (safetensors_file, r"let its name end in \.safetensors"),
        (onnx_file, "an ONNX model"),
    ],
)  # fmt: skip
def test_no_checkpoint_at_all(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(ValueError, match=f"a.pth is not a checkpoint that can be read safely: .*{reason}"):
        models.load_checkpoint(path)


def test_safetensors_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="a.safetensors is not .*: pip install safetensors"):
        models.read_checkpoint(tmp_path / "a.safetensors")


def as_python_2_wrote_it(content):
    """A pickle whose texts are strings of bytes, as those of Python 2 are."""

    def shorter(match):
        text = match[0][5 : 5 + int.from_bytes(match[0][1:5], "little")]
        return b"U" + bytes([len(text)]) + text + match[0][5 + len(text) :]

    return re.sub(rb"X[\x01-\x7f]\x00\x00\x00[\x20-\x7e]+", shorter, content)


def test_a_file_of_python_2(tmp_path):
    model = small(**ONE_BRANCH)
    weights = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = saved(tmp_path, {"state_dict": weights, "arch": "hacnn"}, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    path.write_bytes(as_python_2_wrote_it(written))
    assert b"U\nstate_dict" in path.read_bytes() and b"X\n\x00\x00\x00state_dict" not in path.read_bytes()
    assert_same_weights(models.load_checkpoint(path, arch="hacnn", **ONE_BRANCH)[0], model)


def test_a_numpy_score_of_python_2(tmp_path):
    """Its eight bytes are a string, most of which is no UTF-8."""
    score = struct.pack("<d", 0.909)
    with pytest.raises(UnicodeDecodeError):
        score.decode()
    dtype = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"\x80\x02}U\x05rank1cnumpy.core.multiarray\nscalar\n" + dtype + b"U\x08" + score + b"\x86Rs."
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(part, 2) for part in (torch.serialization.MAGIC_NUMBER, 1001, system)]
    (tmp_path / "a.pth").write_bytes(b"".join([*parts, content, pickle.dumps([], 2)]))
    assert models.read_checkpoint(tmp_path / "a.pth") == {"rank1": 0.909}


@pytest.mark.parametrize("wrapper", [*models.CONTAINERS, "state_dict/model"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.module.", "model.", "base.", "encoder_q.", "mixed", "a.b."])
def test_containers_and_prefixes(tmp_path, wrapper, prefix):
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 2, 1), fc=torch.nn.Linear(2, 2)))
    names = list(model.state_dict())
    start = {name: "module." * (place % 2) if prefix == "mixed" else prefix for place, name in enumerate(names)}
    content = {start[name] + name: value for name, value in model.state_dict().items()}
    for key in reversed(wrapper.split("/")):
        content = {key: content, "epoch": np.int64(3), "best": np.bool_(True), "half": np.float16(0.5),
                   "args": argparse.Namespace(lr=0.1), "history": np.arange(3)}  # fmt: skip
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.conv.weight)
    checkpoint = models.read_checkpoint(saved(tmp_path, content))
    assert models.load_weights(twin, models.find_weights(checkpoint)) == ([], [])
    assert_same_weights(twin, model)


def test_one_prefix_among_others(tmp_path):
    """Two copies of a network, as contrastive learning leaves them: the one that fits is taken, the other is told."""
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 2, 1)))
    other = torch.nn.Conv2d(3, 2, 1)
    weights = {"encoder_k.conv.weight": other.weight.data, "encoder_k.conv.bias": other.bias.data}
    weights |= {f"encoder_a.{name}": value for name, value in model.state_dict().items()}
    twin = copy.deepcopy(model)
    assert models.load_weights(twin, weights) == (["encoder_k.conv.bias", "encoder_k.conv.weight"], [])
    assert_same_weights(twin, model)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("arch", ["hacnn"], "arch: list instead of str"), ("num_ids", "5", "num_ids: str instead of int"),
        ("num_ids", -1, "num_ids: -1, its classifier is for 5"), ("num_ids", True, "num_ids: bool instead of int"),
        ("num_ids", 10**12, "num_ids: 1000000000000, its classifier is for 5"), ("options", None, "options: NoneType"),
        ("options", {1: 2}, "options: names that are no text"), ("model", [], "model: list instead of dict"),
        ("pids", 7, "pids: int instead of list"), ("pids", ["a"] * 5, "pids: persons that are no whole numbers"),
        ("args", [], "args: list instead of dict"),
        ("epoch", "3", "epoch: str"), ("record", 3, "record: int instead of dict | None"), ("args", {3: 4}, "no text"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_form(tmp_path, field, value, told):
    content = {**ours(small(**ONE_BRANCH), 5, ONE_BRANCH), field: value}
    with pytest.raises(ValueError, match=f"a.pth is not of the form of our checkpoints.*{re.escape(told)}"):
        models.load_checkpoint(saved(tmp_path, content))


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
