"""Networks of torchvision and timm, cut before their pooling, under one head of ours.

    network = build_with_head(create_timm, "vit_small_patch16_224", num_ids=751, input_size=(256, 128))

models.build_model reaches every name of both libraries through here. The head is the same for all: pooling to one
vector, an embedding layer, a BNNeck, the classifier; so no loss shapes a network.

BNNeck and last stride 1: Luo, Gu, Liao, Lai, Jiang, "Bag of Tricks and a Strong Baseline for Deep Person
Re-Identification", CVPR Workshops 2019. GeM: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human
Annotation", TPAMI 2019.
"""

import contextlib
import functools
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def fully_connected(in_features, out_features):
    """Linear, batch norm, ReLU: (B, in) -> (B, out)."""
    return nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features), nn.ReLU())


def neck_and_classifier(dim, num_ids, bnneck):
    """(BNNeck or nothing, classifier behind it) for a feature (B, dim) that other losses see before the neck."""
    classifier = nn.Linear(dim, num_ids, bias=not bnneck)
    if not bnneck:
        return nn.Identity(), classifier
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)  # a shift would move the features off the origin, from which the cosine measures
    nn.init.normal_(classifier.weight, std=0.001)
    return neck, classifier


def behind_neck(neck, feature):
    """What evaluation makes of a feature (B, dim): normalised by the running statistics of its neck, where it has one.

    In training mode too: they stay as they are.
    """
    if isinstance(neck, nn.Identity):
        return feature
    return F.batch_norm(feature, neck.running_mean, neck.running_var, neck.weight, neck.bias, eps=neck.eps)


def check_images(name, x, size):
    """ValueError where x is not (B, 3, H, W); a trace skips it, its file fixes the size anyway."""
    if not torch.jit.is_tracing() and tuple(x.shape[1:]) != (3, *size):
        raise ValueError(f"{name} takes images (B, 3, {size[0]}, {size[1]}), got {tuple(x.shape)}")


class GeM(nn.Module):
    """Generalised mean over positions: (B, C, N) -> (B, C). p is learned; 1 is the average, large p the maximum."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return x.float().clamp(min=1e-6).pow(self.p.float()).mean(-1).pow(1 / self.p.float()).to(x.dtype)


class WithHead(nn.Module):
    """A backbone under our head: pooling to one vector, embedding layer, BNNeck, classifier.

    The feature that the losses see stands before the BNNeck, the one that evaluation gives after it; without a BNNeck
    they are the same.
    """

    def __init__(self, arch, backbone, num_channels, num_ids, statistics, input_size, pooling, embedding, bnneck):
        super().__init__()
        self.arch, self.input_size, (self.mean, self.std) = arch, input_size, statistics
        self.feature_dim = embedding or num_channels
        self.backbone, self.pooling = backbone, pooling
        self.channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        self.num_prefix_tokens = getattr(backbone, "num_prefix_tokens", 0)
        self.gem = GeM() if pooling == "gem" else None
        self.fc = fully_connected(num_channels, embedding) if embedding else nn.Identity()
        self.bnneck, self.classifier = neck_and_classifier(self.feature_dim, num_ids, bnneck)

    def pool(self, x):
        """Maps (B, C, h, w), in timm's Swin (B, h, w, C), or tokens (B, N, C) -> (B, C)."""
        if x.dim() == 2:  # the backbone pools in a way of its own
            return x
        if x.dim() == 4:
            x = (x.permute(0, 3, 1, 2) if self.channels_last else x).flatten(2)  # (B, C, h * w)
        elif self.pooling == "token":
            return x[:, 0]
        else:
            x = x[:, self.num_prefix_tokens :].transpose(1, 2)  # (B, N, C) -> (B, C, N without class token)
        return self.gem(x) if self.gem else x.mean(-1)

    def adopt(self, weights):
        """({name in a file: our name}, weights) for a file of other code.

        Libraries write no `backbone.`; old ResNets of the field count their layers, base.0 (conv1) to base.7 (layer4).
        Positions that a transformer learned on another grid of patches, a square one, are resampled to ours.
        """
        own, names = self.state_dict(), {}
        numbered = {f"base.{number}": name for number, (name, _) in enumerate(self.backbone.named_children())}
        for name in weights:
            ours = re.sub(r"^base\.\d+", lambda found: numbered.get(found[0], found[0]), name)
            names[name] = f"backbone.{ours}" if f"backbone.{ours}" in own else ours
        grid = getattr(getattr(self.backbone, "patch_embed", None), "grid_size", None)
        position = own.get("backbone.pos_embed") if grid else None  # (1, class and register tokens + patches, C)
        for name, value in weights.items() if position is not None else ():
            if names[name] == "backbone.pos_embed" and value.dim() == 3 and value.shape != position.shape:
                from timm.layers import resample_abs_pos_embed  # here: what has a grid is timm's

                prefix = position.shape[1] - grid[0] * grid[1]
                count = value.shape[1] - prefix
                if count > 0 and math.isqrt(count) ** 2 == count:
                    weights = {**weights, name: resample_abs_pos_embed(value, grid, num_prefix_tokens=prefix)}
        return names, weights

    def lay_out(self, x):
        """The backbone's last features as maps (B, C, h, w), with patches where they lie in the image."""
        if x.dim() == 4:
            return x.permute(0, 3, 1, 2) if self.channels_last else x
        height, width = self.input_size
        count = x.shape[1] - self.num_prefix_tokens if x.dim() == 3 else 0
        rows = round((count * height / width) ** 0.5)  # patches are square
        if rows == 0 or rows * rows * width != count * height:
            raise ValueError(f"{self.arch} has no map of its last features, which are of shape {tuple(x.shape)}")
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, -1))  # (B, N, C) -> (B, C, h, w)

    def describe(self, features):
        """What evaluation gives, (B, D), from the list of features that training gives."""
        return behind_neck(self.bnneck, features[0])

    def forward(self, x):
        check_images(self.arch, x, self.input_size)
        features = [self.fc(self.pool(self.backbone(x)))]
        if not self.training:
            return self.describe(features)
        return [self.classifier(self.bnneck(features[0]))], features


def create_torchvision(arch, input_size, pretrained):
    """(network up to its last feature map, (mean, std)) from torchvision."""
    import torchvision  # here: importing it takes a second, and our own networks do without

    # these two scale their input from ImageNet's statistics to (x - 0.5) / 0.5 themselves, outside the layers below
    scaled = arch in ("googlenet", "inception_v3")
    options = {"init_weights": True} if scaled and not pretrained else {}
    weights = torchvision.models.get_model_weights(arch).DEFAULT if pretrained else None
    try:
        network = torchvision.models.get_model(arch, weights=weights, **options)
    except OSError as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise no_download(arch, weights.url, error, f"put that file into {folder}, or give it by") from error
    backbone = nn.Sequential()
    for name, layer in network.named_children():  # in the order in which they run, except in ViT
        if name in ("avgpool", "classifier", "fc"):
            break
        if not name.lower().startswith("aux"):
            backbone.add_module(name, layer)
    if arch.startswith("densenet"):  # of what stands behind their feature maps, these two need a part
        backbone.add_module("relu", nn.ReLU())
    if arch.startswith("convnext"):
        backbone.add_module("norm", network.classifier[0])
    return backbone, ((0.5,) * 3, (0.5,) * 3) if scaled else (IMAGENET_MEAN, IMAGENET_STD)


def create_timm(arch, input_size, pretrained):
    """(network without pooling and classifier, (mean, std)) from timm."""
    import timm

    name = arch.removeprefix("timm/")
    config = timm.get_pretrained_cfg(name)
    options = {"img_size": input_size} if config.fixed_input_size else {}
    create = functools.partial(timm.create_model, name, num_classes=0, pretrained=pretrained, **options)
    try:
        try:
            network = create(global_pool="")
        except AssertionError:  # some transformers insist on their own pooling
            network = create()
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        page = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url or "timm"
        raise no_download(arch, page, error, "download the weights elsewhere and give them by") from error
    return network, (tuple(config.mean), tuple(config.std))


def find_backbone(arch):
    """(function that creates arch, or None; names that were looked through; their libraries).

    A name that both libraries know is torchvision's unless written timm/NAME; timm is imported only for what is left.
    """
    import torchvision

    # without torchvision's ViT and MaxViT, which take square images alone; timm's take others
    names = torchvision.models.list_models(module=torchvision.models, exclude=("vit_*", "maxvit_*"))
    if arch in names:
        return create_torchvision, names, "torchvision"
    try:
        import timm
    except ImportError:
        return None, names, "torchvision and, once timm is installed, of timm"
    timm_names = timm.list_models(pretrained=True) if "." in arch else timm.list_models()
    known = arch.removeprefix("timm/") in timm_names
    return create_timm if known else None, names + timm_names, "torchvision and timm"


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_download(arch, url, error, remedy):
    return ValueError(
        f"no ImageNet weights of {arch} from {url} ({first_line(error)}): {remedy} --weights FILE, or go without "
        "--pretrained"
    )


def on_meta(network, input_size):
    """What the network gives for one image, with shapes alone: no content, no arithmetic."""
    state = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}
    with torch.no_grad():
        return torch.func.functional_call(network.eval(), state, (torch.empty(1, 3, *input_size, device="meta"),))


def create_checked(create, arch, input_size):
    """(network, (mean, std), shape of what it gives for one image); raises what the library does if it cannot."""
    network, statistics = create(arch, input_size, False)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if first.stride == first.kernel_size:  # patches: libraries cut off silently what is left over at the edge
        if input_size[0] % first.stride[0] or input_size[1] % first.stride[0]:
            raise ValueError(f"height and width must be multiples of {first.stride[0]}")
    return network, statistics, on_meta(network, input_size).shape


def sizes_near(create, arch, input_size):
    """Up to three sizes (H, W) that the network can take, nearest first."""
    rounded = tuple(max(32, 32 * round(side / 32)) for side in input_size)
    candidates = {rounded, (256, 128), (252, 126), (224, 224), (384, 128)}
    found = []
    for size in sorted(candidates, key=lambda size: np.hypot(size[0] - input_size[0], size[1] - input_size[1])):
        with contextlib.suppress(Exception):  # each library and network has exceptions of its own
            create_checked(create, arch, size)
            found.append(size)
    return found[:3]


def set_last_stride(network, stride):
    """The last stage of a ResNet keeps the map of the stage before (stride 1) or halves it (2, as it was built)."""
    if stride not in (1, 2):
        raise ValueError(f"last_stride is 1 (a map twice as large) or 2 (that of ImageNet), not {stride!r}")
    for module in network.layer4.modules() if stride == 1 else ():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d) and module.stride in (2, (2, 2)):
            module.kernel_size = module.stride = 1


def build_with_head(
    create, arch, num_ids, *, pretrained=False, input_size=(256, 128), pooling=None, embedding=0, bnneck=False,
    last_stride=None,
):  # fmt: skip
    """A backbone that `create` takes out of a library, under our head.

    pooling: avg, gem, or token (a transformer's class token, the default where there is one); embedding: width of a
    layer after the pooling, 0 for none; last_stride of ResNets: 1 (default) or 2.
    """
    try:
        network, statistics, shape = create_checked(create, arch, input_size)
    except ImportError as error:
        raise ValueError(f"{arch} comes from a package that is missing ({error}): pip install timm") from error
    except Exception as error:
        sizes = ", ".join(f"{h} x {w}" for h, w in sizes_near(create, arch, input_size)) or "none that was tried"
        size = f"{input_size[0]} x {input_size[1]}"
        raise ValueError(f"{arch} cannot take images of {size} ({first_line(error)}); it takes: {sizes}") from error
    if pretrained:
        network, statistics = create(arch, input_size, True)
    if hasattr(network, "layer4"):
        set_last_stride(network, last_stride or 1)
    elif last_stride is not None:
        options = "input_size, pooling, embedding, bnneck"
        raise ValueError(f"{arch} has no option last_stride, which ResNets alone have; its options: {options}")
    allowed = {2: (None,), 3: (None, "avg", "gem"), 4: (None, "avg", "gem")}[len(shape)]
    if getattr(network, "cls_token", None) is not None:
        allowed += ("token",)
        pooling = pooling or "token"
    if pooling not in allowed:
        raise ValueError(f"{arch} has no pooling {pooling!r}: it is one of {', '.join(map(str, allowed))}")
    channels = shape[1] if len(shape) == 4 and getattr(network, "output_fmt", "NCHW") == "NCHW" else shape[-1]
    return WithHead(arch, network, channels, num_ids, statistics, input_size, pooling, embedding, bnneck).train()


FIELD = {  # families of the field, with one or two members each
    **dict.fromkeys(("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2"), create_torchvision),
    **dict.fromkeys(("shufflenet_v2_x1_0", "squeezenet1_1"), create_torchvision),
    **dict.fromkeys(("seresnet50", "legacy_seresnet50", "inception_v4", "inception_resnet_v2"), create_timm),
    **dict.fromkeys(("nasnetalarge", "legacy_xception", "vit_small_patch16_224"), create_timm),
    **dict.fromkeys(("swin_tiny_patch4_window7_224", "timm/convnext_tiny"), create_timm),
}
