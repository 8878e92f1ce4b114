"""Networks that turn an image of a person into a feature, and the files that hold their weights.

    model = build_model("hacnn", num_ids=751)              # a fresh network
    model, info = load_checkpoint("runs/hacnn-market1501/best.pth")

Every model keeps one contract: in evaluation it gives features (B, D); in training it gives
(list of logits (B, N), list of features (B, D_i)), one entry per branch. It carries `input_size` (H, W),
`feature_dim` D, `mean` and `std`. Input: (B, 3, H, W), RGB in 0..1, minus `mean`, divided by `std`.

HA-CNN: Li, Zhu, Gong, "Harmonious Attention Network for Person Re-Identification", CVPR 2018.
Where ours differs from the paper's and the usual implementation:
- Regions are cut by two matrix products instead of grid sampling (see RegionCrop): the same numbers, and it
  exports to every runtime. Positions are computed in fp32 whatever precision the network runs in.
- The four regions pass the local branch as one batch. In evaluation that changes nothing. In training batch norm
  then sees the four regions of a batch together, where a loop over regions normalises each by itself.
- `align_corners` says how a region's positions map to pixels: weights trained with torch < 1.3 expect True.
"""

import argparse
import ast
import difflib
import inspect
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# ----------------------------------------------------------------------------------------------------------------------
# HA-CNN


class ConvBlock(nn.Module):
    """Convolution with bias, batch norm, ReLU."""

    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class InceptionA(nn.Module):
    """Four streams of equal width on the same map size: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        m = out_channels // 4
        self.stream1 = nn.Sequential(ConvBlock(in_channels, m, 1), ConvBlock(m, m, 3, padding=1))
        self.stream2 = nn.Sequential(ConvBlock(in_channels, m, 1), ConvBlock(m, m, 3, padding=1))
        self.stream3 = nn.Sequential(ConvBlock(in_channels, m, 1), ConvBlock(m, m, 3, padding=1))
        self.stream4 = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvBlock(in_channels, m, 1))

    def forward(self, x):
        return torch.cat([self.stream1(x), self.stream2(x), self.stream3(x), self.stream4(x)], dim=1)


class InceptionB(nn.Module):
    """Three streams that halve the map: (B, C_in, H, W) -> (B, C_out, H/2, W/2)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        m = out_channels // 4
        self.stream1 = nn.Sequential(ConvBlock(in_channels, m, 1), ConvBlock(m, m, 3, stride=2, padding=1))
        self.stream2 = nn.Sequential(
            ConvBlock(in_channels, m, 1), ConvBlock(m, m, 3, padding=1), ConvBlock(m, m, 3, stride=2, padding=1)
        )
        self.stream3 = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), ConvBlock(in_channels, 2 * m, 1))

    def forward(self, x):
        return torch.cat([self.stream1(x), self.stream2(x), self.stream3(x)], dim=1)


def resize_taps(size_in, size_out):
    """Which two inputs each output of a linear resize with aligned corners blends: all integers, so exact.

    Output i lies at i * (size_in - 1) / (size_out - 1): input `lower[i]` plus `remainder[i]` / (size_out - 1).
    """
    scaled = torch.arange(size_out) * (size_in - 1)
    return scaled // (size_out - 1), scaled % (size_out - 1)


def hat(positions, index):
    """Linear interpolation as a matrix: the weight of input j at each position, max(0, 1 - |position - j|).

    positions (..., n), index (m,) = 0..m-1 -> (..., n, m). Outside 0..m-1 the weights fade to zero, which is padding
    by zeros. On a pixel the slope is that to the right, as grid sampling has it: the absolute value has slope 0 there,
    and regions, which begin with t_x = 0 and thus exactly on pixels, would never learn to move sideways.
    """
    offset = positions.unsqueeze(-1) - index
    return torch.where(offset < 0, 1 + offset, 1 - offset) * ((offset >= -1) & (offset < 1))


def resize_matrix(size_in, size_out):
    """(size_out, size_in): a linear resize with aligned corners as a matrix."""
    lower, remainder = resize_taps(size_in, size_out)
    return hat(lower + remainder.double() / (size_out - 1), torch.arange(size_in)).float()


class SpatialAttention(nn.Module):
    """Where to look (Sec. 3.1.I, spatial): (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self, size):
        super().__init__()
        height, width = size
        self.conv1 = ConvBlock(1, 1, 3, stride=2, padding=1)
        self.conv2 = ConvBlock(1, 1, 1)
        # Bilinear resize back to (H, W): fixed, so two constant matrices, which every runtime multiplies alike.
        self.register_buffer("rows", resize_matrix(height // 2, height), persistent=False)  # (H, H/2)
        self.register_buffer("columns", resize_matrix(width // 2, width).T.contiguous(), persistent=False)  # (W/2, W)

    def forward(self, x):
        x = self.conv1(x.mean(dim=1, keepdim=True))  # (B, 1, H/2, W/2)
        x = self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)  # (B, 1, H, W)
        return self.conv2(x)


class ChannelAttention(nn.Module):
    """What to look at (Sec. 3.1.I, channel; squeeze and excitation): (B, C, H, W) -> (B, C, 1, 1)."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.conv1 = ConvBlock(channels, channels // reduction, 1)
        self.conv2 = ConvBlock(channels // reduction, channels, 1)

    def forward(self, x):
        return self.conv2(self.conv1(x.mean(dim=(2, 3), keepdim=True)))


class SoftAttention(nn.Module):
    """Product of spatial and channel attention as a map in 0.5..1 (a sigmoid after a ReLU): (B, C, H, W)."""

    def __init__(self, channels, size):
        super().__init__()
        self.spatial_attn = SpatialAttention(size)
        self.channel_attn = ChannelAttention(channels)
        self.conv = ConvBlock(channels, channels, 1)

    def forward(self, x):
        return torch.sigmoid(self.conv(self.spatial_attn(x) * self.channel_attn(x)))


class HardAttention(nn.Module):
    """Where the four regions lie (Sec. 3.1.II): (B, C, H, W) -> theta (B, 4, 2), pairs (t_x, t_y) in -1..1, fp32."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, 8)
        nn.init.zeros_(self.fc.weight)
        with torch.no_grad():  # four horizontal strips to begin with
            self.fc.bias.copy_(torch.tensor([0, -0.75, 0, -0.25, 0, 0.25, 0, 0.75]))

    def forward(self, x):
        pooled = x.mean(dim=(2, 3), dtype=torch.float32)  # (B, C)
        # A product and a sum, not a Linear: autocast would run that in half precision, which moves a region by up to
        # half a pixel.
        theta = (pooled.unsqueeze(1) * self.fc.weight.float()).sum(-1) + self.fc.bias.float()  # (B, 8)
        return torch.tanh(theta).view(-1, 4, 2)


class HarmoniousAttention(nn.Module):
    """Soft and hard attention on the same features: (B, C, H, W) -> map (B, C, H, W), theta (B, 4, 2)."""

    def __init__(self, channels, size):
        super().__init__()
        self.soft_attn = SoftAttention(channels, size)
        self.hard_attn = HardAttention(channels)


class CropMatrix(nn.Module):
    """One axis of RegionCrop as matrices: shift (B, R), in -1..1, -> (B, R, size_out, size_in), fp32.

    Sampling the whole axis at scale * x + shift and then resizing it (aligned corners) blends, for each output, the
    interpolation weights of two neighbouring sampling positions. Elementwise, so autocast leaves it in fp32: half
    precision would move positions by up to 0.04 of a pixel in fp16 and 0.5 in bf16.
    """

    def __init__(self, size_in, size_out, scale, align_corners):
        super().__init__()
        self.scale, self.last_out, self.middle = scale, size_out - 1, (size_in - 1) / 2
        # -1 and 1 are the centres of the first and last pixel, or the outer edges of them
        self.unit = (size_in - 1) / 2 if align_corners else size_in / 2
        lower, remainder = resize_taps(size_in, size_out)
        self.register_buffer("lower", lower, persistent=False)  # integers: .half() leaves them exact
        self.register_buffer("remainder", remainder, persistent=False)
        self.register_buffer("index", torch.arange(size_in), persistent=False)

    def forward(self, shift):
        centre = self.middle + self.unit * shift.unsqueeze(-1)  # (B, R, 1)
        first = centre + self.scale * (self.lower.float() - self.middle)  # (B, R, size_out)
        share = (self.remainder.float() / self.last_out).unsqueeze(-1)  # (size_out, 1)
        return (1 - share) * hat(first, self.index) + share * hat(first + self.scale, self.index)


class RegionCrop(nn.Module):
    """Cuts R regions, theta (B, R, 2), out of maps (B, C, H, W): (B * R, C, h, w), the regions of an image together.

    By definition (a spatial transformer of fixed scale): sample the map over its full size (H, W) with the affine map
    [[1, 0, t_x], [0, 1/4, t_y]], bilinear, zeros outside; then resize to (h, w), bilinear with aligned corners. Nothing
    in it rotates or shears, so it is separable: rows (h x H) @ map @ columns (W x w). Only these two products run in
    the precision of the map.
    """

    def __init__(self, size_in, size_out, align_corners):
        super().__init__()
        self.size_out = size_out
        self.rows = CropMatrix(size_in[0], size_out[0], 0.25, align_corners)  # a quarter of the height
        self.columns = CropMatrix(size_in[1], size_out[1], 1.0, align_corners)  # the full width

    def forward(self, x, theta):
        batch, channels, height, width = x.shape
        regions, (h, w) = theta.shape[1], self.size_out
        rows = self.rows(theta[..., 1]).to(x.dtype)  # (B, R, h, H)
        columns = self.columns(theta[..., 0]).to(x.dtype)  # (B, R, w, W)
        x = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # (B, H, W * C): a view in channels-last
        x = rows.reshape(batch, regions * h, height) @ x  # (B, R * h, W * C)
        x = columns.unsqueeze(2) @ x.view(batch, regions, h, width, channels)  # (B, R, h, w, C)
        return x.view(batch * regions, h, w, channels).permute(0, 3, 1, 2)  # (B * R, C, h, w)


class HACNN(nn.Module):
    """HA-CNN for images of 160 x 64: 2.93 M parameters without its two classifiers, 0.54 GMAC.

    Evaluation: (B, 1024), the 512-d global and local features, each L2-normalised, then concatenated (norm sqrt 2).
    Training: two logits (B, num_ids) and two raw features (B, 512), global first.
    learn_region=False: the global branch alone, (B, 512), raw. The layers that place regions keep their names but are
    frozen there: they would get no gradient.
    """

    REGIONS = 4
    WIDTHS = (32, 128, 256, 384)  # after `conv` and after each stage
    CROPS = ((24, 28), (12, 14), (6, 7))

    def __init__(self, num_ids, *, learn_region=True, align_corners=False):
        super().__init__()
        self.learn_region = learn_region
        self.input_size, self.mean, self.std = (160, 64), IMAGENET_MEAN, IMAGENET_STD
        self.feature_dim = 1024 if learn_region else 512
        height, width = self.input_size
        self.conv = ConvBlock(3, self.WIDTHS[0], 3, stride=2, padding=1)
        self.crops = nn.ModuleList()
        for stage in (1, 2, 3):
            c_in, c_out = self.WIDTHS[stage - 1], self.WIDTHS[stage]
            size_in, size_out = (height >> stage, width >> stage), (height >> stage + 1, width >> stage + 1)
            inception = nn.Sequential(InceptionA(c_in, c_out), InceptionB(c_out, c_out))
            self.add_module(f"inception{stage}", inception)
            self.add_module(f"ha{stage}", HarmoniousAttention(c_out, size_out))
            self.crops.append(RegionCrop(size_in, self.CROPS[stage - 1], align_corners))
        self.fc_global = nn.Sequential(nn.Linear(self.WIDTHS[3], 512), nn.BatchNorm1d(512), nn.ReLU())
        self.classifier_global = nn.Linear(512, num_ids)
        if learn_region:
            for stage in (1, 2, 3):
                self.add_module(f"local_conv{stage}", InceptionB(self.WIDTHS[stage - 1], self.WIDTHS[stage]))
            local_dim = self.REGIONS * self.WIDTHS[3]
            self.fc_local = nn.Sequential(nn.Linear(local_dim, 512), nn.BatchNorm1d(512), nn.ReLU())
            self.classifier_local = nn.Linear(512, num_ids)
        else:
            for attention in (self.ha1, self.ha2, self.ha3):
                attention.hard_attn.requires_grad_(False)

    def branches(self, x):
        """Images (B, 3, 160, 64) -> raw features, [global (B, 512)] or [global, local (B, 512)]."""
        x, local = self.conv(x), 0
        for stage, crop in enumerate(self.crops, start=1):
            attention = getattr(self, f"ha{stage}")
            entering, x = x, getattr(self, f"inception{stage}")(x)
            if self.learn_region:
                theta = attention.hard_attn(x)  # (B, 4, 2), from the features before soft attention
                local = getattr(self, f"local_conv{stage}")(crop(entering, theta) + local)  # (4 B, C, h, w)
            x = x * attention.soft_attn(x)
        features = [self.fc_global(x.mean(dim=(2, 3)))]
        if self.learn_region:
            means = local.mean(dim=(2, 3)).view(x.shape[0], -1)  # (4 B, 384) -> (B, 4 * 384)
            features.append(self.fc_local(means))
        return features

    def forward(self, x):
        if not torch.jit.is_tracing() and tuple(x.shape[1:]) != (3, *self.input_size):
            height, width = self.input_size
            raise ValueError(f"HA-CNN takes images (B, 3, {height}, {width}), got {tuple(x.shape)}")
        features = self.branches(x)
        if self.training:
            classifiers = [self.classifier_global] + ([self.classifier_local] if self.learn_region else [])
            return [classify(f) for classify, f in zip(classifiers, features, strict=True)], features
        if not self.learn_region:
            return features[0]
        return torch.cat([F.normalize(f, dim=1) for f in features], dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# The table, and the two ways to a model

MODELS = {"hacnn": HACNN}  # name -> class(num_ids, **options)


def build_model(arch, num_ids, *, pretrained=False, **options):
    """A network with fresh weights for `num_ids` classes. Raises ValueError for an unknown arch or option."""
    if arch not in MODELS:
        near = difflib.get_close_matches(arch.lower(), sorted(MODELS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no architecture {arch!r}{hint} Available: {', '.join(sorted(MODELS))}")
    allowed = [p.name for p in inspect.signature(MODELS[arch]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"{arch} has no option {', '.join(unknown)}; its options: {', '.join(allowed) or 'none'}")
    if pretrained:
        raise ValueError(f"{arch} has no ImageNet weights: train from scratch, or start from a file (--weights)")
    return MODELS[arch](num_ids, **options)


def parse_option(text):
    """'learn_region=False' -> ('learn_region', False): a type for argparse."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value, as learn_region=False is") from error


def count_parameters(model):
    """(all, without classifiers): what training holds, and what a deployed feature extractor holds."""
    every = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for name, p in model.named_parameters() if name.startswith("classifier"))
    return every, every - heads


def read_checkpoint(path):
    """The dictionary in a .pth file, read without running any code that it may hold (weights_only)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give a .pth file, such as runs/hacnn-market1501/best.pth")
    # files of 2018 hold the score as a numpy scalar; these names build numbers and nothing else
    scalar = np._core.multiarray.scalar  # numpy 1 wrote it without the underscore
    number_types = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype]
    number_types += [np.dtypes.Float64DType, np.dtypes.Float32DType]
    try:
        with torch.serialization.safe_globals(number_types):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of broken file
        # not torch's own text: it explains how to load the file all the same, and to run what it holds
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {named[1]}, which is not data" if named else "cut short, or another kind of file"
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dictionary of a checkpoint")
    return checkpoint


def find_weights(checkpoint):
    """name -> tensor, from our files, {'state_dict': ...} or a bare dictionary; 'module.' prefixes are removed."""
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def load_weights(model, weights):
    """Copies the tensors whose name and shape fit; returns (unused, unfilled) names. ValueError where none fits."""
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not any(value.dim() > 0 for value in fitting.values()):
        raise ValueError(
            f"none of the {len(weights)} tensors in the file fits this {type(model).__name__} by name and shape: "
            f"the file has {', '.join(sorted(weights)[:3]) or 'no tensors'}, the model has {', '.join(sorted(own)[:3])}"
        )
    model.load_state_dict(fitting, strict=False)
    return sorted(set(weights) - set(fitting)), sorted(set(own) - set(fitting))


def load_checkpoint(path, device="cpu", *, arch=None, **options):
    """(model in evaluation mode, info) from the file alone; info is the rest of the checkpoint.

    Our files say which network they hold, and `arch`, if given, must agree. Files of other code do not: give `arch` and
    `options`; the number of ids comes from the classifier's shape, info["skipped"] lists what the file had in excess.
    """
    checkpoint = read_checkpoint(path)
    weights = find_weights(checkpoint)
    if {"arch", "num_ids", "options", "model"} <= checkpoint.keys():
        if arch not in (None, checkpoint["arch"]):
            raise ValueError(f"{path} holds {checkpoint['arch']}, not {arch}: leave --arch out, or give another file")
        options = {**checkpoint["options"], **options}
        model = build_model(checkpoint["arch"], checkpoint["num_ids"], **options)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the weights in {path} do not fit {checkpoint['arch']} with options {options}") from error
        info = {key: value for key, value in checkpoint.items() if key != "model"}
    else:
        if arch is None:
            names = ", ".join(sorted(MODELS))
            raise ValueError(f"{path} does not say which network it holds: give --arch (one of {names})")
        heads = [value.shape[0] for name, value in sorted(weights.items()) if "classifier" in name and value.dim() == 2]
        model = build_model(arch, heads[0] if heads else 1, **options)
        skipped, missing = load_weights(model, weights)
        missing = [name for name in missing if "classifier" not in name and not name.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} tensors that {arch} needs, such as {', '.join(missing[:3])}")
        info = {"arch": arch, "options": options, "skipped": skipped}
    return model.to(device).eval(), info
