"""Networks of torchvision and timm: layers run as their libraries run them, the head, weights of other code, bad input.

python -m pytest tests/test_models_backbones.py
"""

import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from test_models import assert_same_weights, images_for, light, saved
from torch import nn

import models

# ----------------------------------------------------------------------------------------------------------------------
# Layers and head


@pytest.mark.parametrize(
    ("arch", "last"), [("resnet18", "fc"), ("densenet121", "classifier"), ("mobilenet_v2", "classifier"),
                       ("shufflenet_v2_x0_5", "fc"), ("googlenet", "fc"), ("regnet_y_400mf", "fc"), ("swin_t", "head")],
)  # fmt: skip
def test_torchvision_s_layers_run_as_torchvision_runs_them(arch, last):
    original = torchvision.models.get_model(arch, num_classes=7, **({"init_weights": True} if "goog" in arch else {}))
    model = light(arch, **({"last_stride": 2} if arch.startswith("resnet") else {}))
    skipped, missing = models.load_weights(model, original.state_dict())
    assert {name.split(".")[0] for name in skipped} - {"aux1", "aux2"} == {last}
    assert {name.split(".")[0] for name in missing} == {"classifier"}
    x = images_for(model)
    with torch.no_grad():
        logits = getattr(original.eval(), last)(model.eval()(x))
        torch.testing.assert_close(logits, original(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["legacy_seresnet18", "test_vit", "swin_tiny_patch4_window7_224", "inception_v4"])
def test_timm_s_layers_run_as_timm_runs_them(arch):
    size = {"img_size": (64, 32)} if "vit" in arch or "swin" in arch else {}
    original = timm.create_model(arch, num_classes=0, **size).eval()
    model = light(arch, **({"last_stride": 2} if "resnet" in arch else {})).eval()
    assert models.load_weights(model, original.state_dict()) == ([], ["classifier.bias", "classifier.weight"])
    x = images_for(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "test_vit"])
@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_head_options_mean_the_same_everywhere(arch, pooling):
    model = light(arch, pooling=pooling, embedding=24, bnneck=True)
    torch.nn.init.normal_(model.bnneck.weight)
    x = images_for(model, 4)
    (logits,), (feature,) = model.train()(x)
    assert model.feature_dim == 24 and feature.shape == (4, 24) and feature.min() >= 0
    neck = F.batch_norm(feature, None, None, model.bnneck.weight, training=True)
    torch.testing.assert_close(logits, neck @ model.classifier.weight.T, rtol=1e-4, atol=1e-5)
    assert model.classifier.bias is None and not model.bnneck.bias.requires_grad
    model.eval()
    with torch.no_grad():
        maps = model.backbone(x)  # (B, C, h, w), or (B, 1 + N, C) with the class token first
        positions = maps.flatten(2) if arch == "resnet18" else maps[:, 1:].transpose(1, 2)  # (B, C, N)
        if pooling == "gem":
            positions = positions.clamp(min=1e-6) ** 3
        pooled = positions.mean(-1) ** (1 / 3 if pooling == "gem" else 1)
        torch.testing.assert_close(model(x), model.bnneck(model.fc(pooled)), rtol=1e-4, atol=1e-5)


def test_gem_lies_between_average_and_maximum():
    x = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    gem = models.GeM()
    means = []
    for p in (1.0, 3.0, 80.0):
        gem.p.data.fill_(p)
        means.append(gem(x).detach())
    torch.testing.assert_close(means[0], x.mean(-1))
    torch.testing.assert_close(means[2], x.amax(-1), rtol=0.05, atol=0)
    assert (means[0] < means[1]).all() and (means[1] < means[2]).all()


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "legacy_seresnet18", "timm/resnet26d"])
def test_last_stride_of_resnets(arch):
    model, usual = light(arch), light(arch, last_stride=2)
    x = images_for(model)
    with torch.no_grad():
        assert model.eval().backbone(x).shape[2:] == (4, 2), "the last stage keeps the size unless told otherwise"
        assert usual.eval().backbone(x).shape[2:] == (2, 1)
    assert model.state_dict().keys() == usual.state_dict().keys()


def test_names_of_both_libraries():
    assert "downsample" in str(light("convnext_atto").backbone), "timm's alone"
    for arch in ("resnet18", "resnet34"):  # in our table, and not
        assert type(light(arch).backbone).__name__ == "Sequential"
    assert type(light("timm/resnet18").backbone).__name__ == "ResNet"


def test_statistics_follow_the_weights():
    assert light("resnet18").mean == (0.485, 0.456, 0.406)
    for arch in ("legacy_xception", "test_vit", "googlenet"):
        model = light(arch)
        assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), arch


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("arch", "options", "fragments"),
    [
        ("resnet18", {"poling": "gem"}, ["resnet18 has no option poling", "pooling, embedding, bnneck, last_stride"]),
        ("mobilenet_v2", {"last_stride": 1}, ["no option last_stride", "input_size, pooling, embedding, bnneck"]),
        ("osnet_x0_25", {"learn_region": False}, ["osnet_x0_25 has no option learn_region", "options: input_size"]),
        ("resnet18", {"pooling": "token"}, ["no pooling 'token'", "avg, gem"]),
        ("resnet18", {"bnneck": "yes"}, ["bnneck of resnet18 is of type bool", "'yes'"]),
        ("hacnn", {"learn_region": "false"}, ["learn_region of hacnn is of type bool", "'false'"]),
        ("resnet18", {"last_stride": 3}, ["last_stride is 1", "or 2", "not 3"]),
        ("resnet18", {"input_size": (256,)}, ["(height, width)", "(256, 128)", "(256,)"]),
        ("hacnn", {"input_size": (256, 128)}, ["hacnn takes images of 160 x 64 alone", "(256, 128)"]),
        ("mudeep", {"input_size": (250, 128)}, ["250 x 128", "multiples of 16", "256 x 128"]),
        ("osnet_x0_25", {"input_size": (8, 8)}, ["8 x 8", "multiples of 16"]),
        ("test_vit", {"input_size": (250, 120)}, ["250 x 120", "multiples of 16", "it takes: 256 x 128"]),
        ("squeezenet1_1", {"input_size": (8, 8)}, ["squeezenet1_1 cannot take images of 8 x 8", "it takes: 32 x 32"]),
        ("hacnn", {"learn_regions": False}, ["no option learn_regions", "options: learn_region, align_corners"]),
        ("hacn", {}, ["'hacn'", "did you mean 'hacnn'"]),
        ("hac-nn", {}, ["'hac-nn'", "did you mean 'hacnn'"]),
        ("HACNN", {}, ["'HACNN'", "did you mean 'hacnn'"]),
        ("zzz", {}, ["'zzz'. Available: hacnn, mudeep"]),
        ("vit_tiny_patch14", {}, ["'vit_tiny_patch14'", "'vit_tiny_patch16_224'"]),
        ("resnet51", {}, ["'resnet51'", "did you mean", "'resnet50'"]),
        ("resnet50.nonsense", {}, ["'resnet50.nonsense'", "did you mean 'resnet50"]),
    ],
)
def test_bad_arch_option_or_size(arch, options, fragments):
    with pytest.raises(ValueError) as error:
        models.build_model(arch, 5, **options)
    assert not [fragment for fragment in fragments if fragment not in str(error.value)], error.value


def test_without_timm_its_networks_say_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # import fails
    with pytest.raises(ValueError, match="seresnet50 comes from a package that is missing.*pip install timm"):
        models.build_model("seresnet50", 5)
    with pytest.raises(ValueError, match="did you mean .* and, once timm is installed, of timm"):
        models.build_model("resnet51", 5)
    assert models.build_model("resnet18", 5).feature_dim == 512


# ----------------------------------------------------------------------------------------------------------------------
# ImageNet weights


def test_torchvision_s_weights_are_found_where_the_message_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", raising(OSError("no route")))
    with pytest.raises(ValueError, match="resnet18.*https://.*pth.*no route.*--weights FILE") as error:
        models.build_model("resnet18", 5, pretrained=True)
    original = torchvision.models.resnet18()
    folder = Path(re.search(r"put that file into (\S+),", str(error.value))[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(original.state_dict(), folder / re.search(r"/([^/]*\.pth)", str(error.value))[1])
    model = models.build_model("resnet18", 5, pretrained=True)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    assert model.classifier.out_features == 5


def test_timm_s_weights(monkeypatch):
    original = timm.create_model("test_vit", num_classes=1000)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: original.state_dict())
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: True)
    model = models.build_model("test_vit", 5, pretrained=True)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)
    assert model.backbone.pos_embed.shape != original.pos_embed.shape, "positions are resampled for 256 x 128"
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", raising(OSError("no route")))
    with pytest.raises(ValueError, match="test_vit.*huggingface.co/timm/test_vit.*no route.*--weights FILE"):
        models.build_model("test_vit", 5, pretrained=True)


def raising(error):
    def function(*_, **__):
        raise error

    return function


@pytest.mark.parametrize(
    ("arch", "fragment"),
    [("hacnn", "hacnn has no ImageNet weights"), ("mudeep", "mudeep has no ImageNet weights"),
     ("osnet_x1_0", "as a file.*--weights FILE")],
)  # fmt: skip
def test_own_networks_say_where_their_weights_are(arch, fragment):
    with pytest.raises(ValueError, match=fragment):
        models.build_model(arch, 5, pretrained=True)


# ----------------------------------------------------------------------------------------------------------------------
# Files of other code


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_backbone_weights_of_other_code(tmp_path, prefix):
    """As files of torchvision or of the reference name them, with an embedding layer and a classifier for 9 ids."""
    model = light("resnet18", 9, embedding=16, last_stride=2)
    weights = {
        name if prefix == "backbone." else "module." * (prefix == "module.") + name.removeprefix("backbone."): value
        for name, value in model.state_dict().items()
    }
    path = saved(tmp_path, {"state_dict": weights})
    options = {"embedding": 16, "last_stride": 2, "input_size": (64, 32)}
    loaded, info = models.load_checkpoint(path, arch="resnet18", **options)
    assert_same_weights(loaded, model)
    assert info["skipped"] == [] and loaded.classifier.out_features == 9


def test_a_resnet_whose_layers_are_counted(tmp_path):
    """base.0 to base.7: what nn.Sequential makes of the children of torchvision's ResNet without its last two."""
    original = torchvision.models.resnet18(num_classes=9)
    network = nn.Module()
    network.base, network.classifier = nn.Sequential(*list(original.children())[:-2]), original.fc
    names = set(network.state_dict())
    assert {"base.0.weight", "base.1.running_var", "base.4.0.conv1.weight", "base.7.1.bn2.bias"} < names
    path = saved(tmp_path, {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}})
    loaded, info = models.load_checkpoint(path, arch="resnet18", last_stride=2, input_size=(64, 32))
    assert info["skipped"] == [] and loaded.classifier.out_features == 9
    x = images_for(loaded)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(loaded(x)), original.eval()(x))


def test_a_layer_counted_beyond_the_last_is_skipped():
    weights = {**light("resnet18").state_dict(), "base.8.weight": torch.zeros(3), "base.0": torch.zeros(3)}
    skipped, missing = models.load_weights(light("resnet18"), weights)
    assert (skipped, missing) == (["base.0", "base.8.weight"], [])


def strong_baseline(neck="bottleneck"):
    """(network, its weights as reid-strong-baseline names them, and fast-reid with heads.bottleneck.0)."""
    model = light("resnet18", 9, last_stride=2, bnneck=True)
    nn.init.uniform_(model.bnneck.weight)
    nn.init.uniform_(model.bnneck.running_mean)
    names = {name: name.replace("backbone.", "base.").replace("bnneck.", f"{neck}.") for name in model.state_dict()}
    return model, {names[name]: value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("neck", ["bottleneck", "heads.bottleneck.0", "bnneck"])
def test_a_bottleneck_is_not_dropped(tmp_path, neck):
    model, weights = strong_baseline(neck)
    path, options = saved(tmp_path, weights), {"last_stride": 2, "input_size": (64, 32)}
    with pytest.raises(ValueError, match=rf"1 learned layers .*resnet18 does not have.*{neck}.*--options bnneck=True"):
        models.load_checkpoint(path, arch="resnet18", **options)
    loaded, info = models.load_checkpoint(path, arch="resnet18", bnneck=True, **options)
    assert info["skipped"] == []
    assert_same_weights(loaded, model)
    skipped = models.load_checkpoint(path, arch="resnet18", skip=[neck], **options)[1]["skipped"]
    assert {name.rpartition(".")[0] for name in skipped} == {neck}


@pytest.mark.parametrize("bnneck", [False, True])
def test_an_embedding_is_not_dropped(tmp_path, bnneck):
    model = light("resnet18", 9, embedding=24, bnneck=bnneck)
    weights = {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}
    path = saved(tmp_path, weights)
    more = "embedding=24 bnneck=True" if bnneck else "embedding=24"
    with pytest.raises(ValueError, match=rf"does not have, .*fc.0, fc.1: .*--options {more}, "):
        models.load_checkpoint(path, arch="resnet18", input_size=(64, 32))
    loaded, info = models.load_checkpoint(path, arch="resnet18", input_size=(64, 32), embedding=24, bnneck=bnneck)
    assert info["skipped"] == []
    assert_same_weights(loaded, model)


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        ({"classifier.weight": (9, 512)}, []), ({"fc.weight": (1000, 512), "fc.bias": (1000,)}, []),
        ({"head.fc.weight": (9, 512)}, []), ({"classifier.classifier.0.weight": (9, 512)}, []),
        ({"aux1.conv.weight": (3, 3, 1, 1), "layer.total_ops": (1,)}, []), ({"heads.weight": (9, 512)}, []),
        ({"fc.weight": (64, 512), "classifier.weight": (9, 64)}, ["fc"]),  # an embedding without a batch norm
        ({"classifier.add_block.0.weight": (64, 512), "classifier.classifier.0.weight": (9, 64)},
         ["classifier.add_block.0"]),
        ({"head.norm.weight": (512,)}, ["head.norm"]), ({"queue": (512, 9)}, ["queue"]),
    ],
)  # fmt: skip
def test_which_layers_are_lost(names, lost):
    weights = {name: torch.zeros(shape) for name, shape in names.items()}
    assert models.lost_layers(weights, sorted(weights)) == lost


def test_the_share_that_weights_fill():
    model, weights = strong_baseline()
    twin = light("resnet18", 4)
    unfilled = models.load_weights(twin, weights)[1]
    assert models.share_filled(twin, unfilled) == 1  # its base. is our backbone, and classifiers do not count
    large = light("resnet50", 4)
    sizes = {name: value.numel() for name, value in large.state_dict().items() if "classifier" not in name}
    unfilled = models.load_weights(large, model.state_dict())[1]
    filled = sum(size for name, size in sizes.items() if name not in unfilled)
    assert models.share_filled(large, unfilled) == pytest.approx(filled / sum(sizes.values())) and filled > 0


@pytest.mark.parametrize("square", [224, 96, 64])
def test_positions_of_another_grid_are_resampled(square):
    """As timm resamples them when a network of its own is to take another size."""
    source = timm.create_model("test_vit", num_classes=0, img_size=square)
    nn.init.normal_(source.pos_embed)
    weights = {name: value.clone() for name, value in source.state_dict().items()}
    model = models.build_model("test_vit", 5, input_size=(128, 64))
    assert models.load_weights(model, weights) == ([], ["classifier.bias", "classifier.weight"])
    source.set_input_size(img_size=(128, 64))
    assert source.pos_embed.shape == (1, 1 + 8 * 4, 64)
    assert torch.equal(model.backbone.pos_embed, source.pos_embed)


@pytest.mark.parametrize("shape", [(1, 1 + 8, 64), (1, 1, 64), (1, 1 + 16, 32), (65,)])
def test_positions_that_do_not_tell_their_grid_are_skipped(shape):
    weights = {**light("test_vit").state_dict(), "backbone.pos_embed": torch.ones(shape)}
    model = models.build_model("test_vit", 5, input_size=(128, 64))
    before = model.backbone.pos_embed.clone()
    assert models.load_weights(model, weights) == (["backbone.pos_embed"], ["backbone.pos_embed"])
    assert torch.equal(model.backbone.pos_embed, before)
    swin = light("swin_tiny_patch4_window7_224")  # a grid, and no positions
    more = {**swin.state_dict(), "backbone.pos_embed": torch.ones(shape)}
    assert models.load_weights(swin, more) == (["backbone.pos_embed"], [])


def test_our_checkpoint_of_a_library_s_network(tmp_path):
    options = {"input_size": (64, 32), "pooling": "gem", "bnneck": True}
    model = models.build_model("test_vit", 5, **options).eval()
    content = {"arch": "test_vit", "num_ids": 5, "options": options, "model": model.state_dict()}
    loaded, info = models.load_checkpoint(saved(tmp_path, content))
    assert info["options"] == options
    with torch.no_grad():
        assert torch.equal(loaded(images_for(model)), model(images_for(model)))


def test_weights_in_a_safetensors_file(tmp_path):
    import safetensors.torch

    source, model = light("test_vit"), light("test_vit")
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(source.backbone.state_dict(), path)
    skipped, missing = models.load_weights(model, models.find_weights(models.read_checkpoint(path)))
    assert (skipped, missing) == ([], ["classifier.bias", "classifier.weight"])
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="model.safetensors is not a checkpoint"):
        models.read_checkpoint(path)
