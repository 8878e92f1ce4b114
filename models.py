"""Networks that turn an image of a person into a feature, and the files that hold their weights.

    model = build_model("hacnn", num_ids=751)              # a fresh network
    model, info = load_checkpoint("runs/hacnn-market1501/best.pth")
    python models.py                                       # lists the networks: sizes, parameters, MACs
    python models.py osnet_x1_0 vit_small_patch16_224      # only these; any name of torchvision or timm

Every model keeps one contract: in evaluation it gives features (B, D); in training it gives
(list of logits (B, N), list of features (B, D_i)), one entry per branch, and `describe` makes of that list of features
what evaluation would give. It carries `input_size` (H, W), `feature_dim` D, `mean` and `std`. Input: (B, 3, H, W), RGB
in 0..1, minus `mean`, divided by `std`.

Sections: HA-CNN, whole; MuDeep; OSNet; every other network of torchvision and timm under one head; tracklets: pooling
over frames; the table and build_model; what a network looks at; options and files; the listing.

HA-CNN: Li, Zhu, Gong, "Harmonious Attention Network for Person Re-Identification", CVPR 2018.
Where ours differs from the paper's and the usual implementation:
- Regions are cut by two matrix products instead of grid sampling (Jaderberg, Simonyan, Zisserman, Kavukcuoglu,
  "Spatial Transformer Networks", NIPS 2015), with positions in fp32 whatever precision the network runs in: the same
  numbers and gradients, from products alone, which every runtime has.
- The four regions pass the local branch as one batch. In evaluation that changes nothing. In training batch norm
  then sees the four regions of a batch together; `joint_norm=False` normalises each by itself, as a loop over them.
- `align_corners` says how a region's positions map to pixels: weights trained with torch < 1.3 expect True.

The papers of the others stand in their sections.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import inspect
import math
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import UnionType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# ----------------------------------------------------------------------------------------------------------------------
# HA-CNN: layers, which other networks share; regions cut out of maps; attention; the network


class ConvBlock(nn.Sequential):
    """Convolution with a bias, batch norm, ReLU."""

    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=0):
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels), relu=nn.ReLU()))


def convs(channels, *steps, stride=1):
    """ConvBlocks in a row, a step being (channels out, kernel); only the last one's stride changes the map's size."""
    blocks = nn.Sequential()
    for number, (out, kernel) in enumerate(steps, start=1):
        padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
        blocks.append(ConvBlock(channels, out, kernel, stride if number == len(steps) else 1, padding))
        channels = out
    return blocks


def pooled_conv(in_channels, out_channels):
    """3x3 averages (zeros outside count), then a 1x1 convolution."""
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), ConvBlock(in_channels, out_channels, 1))


class Streams(nn.Module):
    """Layers side by side on the same map, named stream1, stream2, ...; their channels are concatenated."""

    def __init__(self, *streams):
        super().__init__()
        for number, stream in enumerate(streams, start=1):
            self.add_module(f"stream{number}", stream)

    def forward(self, x):
        return torch.cat([stream(x) for stream in self.children()], dim=1)


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


class Network(nn.Module):
    """The contract of every network. Each gives in `branches` the raw features (B, D_i) of images, one per branch."""

    def __init__(self, title, input_size, feature_dim, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.title, self.input_size, self.feature_dim, self.mean, self.std = title, input_size, feature_dim, mean, std

    def heads(self):
        """(neck, classifier) of each branch."""
        return [(self.bnneck, self.classifier)]

    def describe(self, features):
        """What evaluation gives, (B, D), from the list of features that training gives; running statistics stay.

        A branch is normalised by its neck, where it has one; several are scaled to length 1 and concatenated.
        """
        found = []
        for (neck, _), f in zip(self.heads(), features, strict=True):
            if isinstance(neck, nn.BatchNorm1d):
                f = F.batch_norm(f, neck.running_mean, neck.running_var, neck.weight, neck.bias, eps=neck.eps)
            found.append(f)
        return torch.cat([F.normalize(f, dim=1) for f in found], dim=1) if len(found) > 1 else found[0]

    def forward(self, x):
        size = self.input_size
        if not torch.jit.is_tracing() and tuple(x.shape[1:]) != (3, *size):  # a traced file fixes the size anyway
            raise ValueError(f"{self.title} takes images (B, 3, {size[0]}, {size[1]}), got {tuple(x.shape)}")
        features = self.branches(x)
        if not self.training:
            return self.describe(features)
        return [classify(neck(f)) for (neck, classify), f in zip(self.heads(), features, strict=True)], features


def hat(positions, index):
    """Linear interpolation as a matrix: the weight of input j at each position, max(0, 1 - |position - j|).

    positions (..., n), index (m,) = 0..m-1 -> (..., n, m). Outside 0..m-1 the weights fade to zero, which is padding
    by zeros. On a pixel the slope is that to the right, as grid sampling has it: the absolute value has slope 0 there,
    and regions, which begin with t_x = 0 and thus exactly on pixels, would never learn to move sideways.
    """
    offset = positions.unsqueeze(-1) - index
    return torch.where(offset < 0, 1 + offset, 1 - offset) * ((offset >= -1) & (offset < 1))


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
        # output i of the resize lies at input `lower[i]` plus `remainder[i]` / `last_out`
        scaled = torch.arange(size_out) * (size_in - 1)
        self.register_buffer("lower", scaled // self.last_out, persistent=False)  # integers: .half() leaves them exact
        self.register_buffer("remainder", scaled % self.last_out, persistent=False)
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


def inception_a(channels, out):
    """Four streams of equal width on the same map size: (B, C_in, H, W) -> (B, C_out, H, W)."""
    m = out // 4
    return Streams(*[convs(channels, (m, 1), (m, 3)) for _ in range(3)], pooled_conv(channels, m))


def inception_b(channels, out):
    """Three streams that halve the map: (B, C_in, H, W) -> (B, C_out, H/2, W/2)."""
    m = out // 4
    return Streams(
        convs(channels, (m, 1), (m, 3), stride=2), convs(channels, (m, 1), (m, 3), (m, 3), stride=2),
        nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), ConvBlock(channels, 2 * m, 1)),
    )  # fmt: skip


def resize_matrix(size_in, size_out):
    """(size_in, size_out): the matrix that resizes lines (..., size_in), linearly with aligned corners."""
    units = torch.eye(size_in, dtype=torch.float64)
    return F.interpolate(units[None], size_out, mode="linear", align_corners=True)[0].float()


class SpatialAttention(nn.Module):
    """Where to look (Sec. 3.1.I, spatial): (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self, size):
        super().__init__()
        height, width = size
        self.conv1 = ConvBlock(1, 1, 3, stride=2, padding=1)
        self.conv2 = ConvBlock(1, 1, 1)
        # Bilinear resize back to (H, W): fixed, so two constant matrices, which every runtime multiplies alike.
        self.register_buffer("rows", resize_matrix(height // 2, height).T.contiguous(), persistent=False)  # (H, H/2)
        self.register_buffer("columns", resize_matrix(width // 2, width), persistent=False)  # (W/2, W)

    def forward(self, x):
        x = self.conv1(x.mean(dim=1, keepdim=True))  # (B, 1, H/2, W/2)
        x = self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype)  # (B, 1, H, W)
        return self.conv2(x)


class SoftAttention(nn.Module):
    """Product of spatial and channel attention as a map in 0.5..1 (a sigmoid after a ReLU): (B, C, H, W)."""

    def __init__(self, channels, size):
        super().__init__()
        self.spatial_attn = SpatialAttention(size)
        narrow, wide = ConvBlock(channels, channels // 16, 1), ConvBlock(channels // 16, channels, 1)
        self.channel_attn = nn.Sequential(OrderedDict(conv1=narrow, conv2=wide))
        self.conv = ConvBlock(channels, channels, 1)

    def forward(self, x):
        where = self.spatial_attn(x)  # (B, 1, H, W)
        what = self.channel_attn(x.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1): Sec. 3.1.I, channel
        return torch.sigmoid(self.conv(where * what))


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


class HACNN(Network):
    """HA-CNN for images of 160 x 64: 2.93 M parameters without its two classifiers, 0.54 GMAC.

    Evaluation: (B, 1024), the 512-d global and local features, each L2-normalised, then concatenated (norm sqrt 2).
    Training: two logits (B, num_ids) and two raw features (B, 512), global first.
    learn_region=False: the global branch alone, (B, 512), raw. The layers that place regions keep their names but are
    frozen there: they would get no gradient.
    bnneck=True: a batch norm between each branch's feature and its classifier, which evaluation applies.
    joint_norm=False: in training, the batch norms of the local branch see one region of all images at a time.
    """

    REGIONS = 4
    WIDTHS = (32, 128, 256, 384)  # after `conv` and after each stage
    CROPS = ((24, 28), (12, 14), (6, 7))

    def __init__(
        self, num_ids, *, learn_region=True, align_corners=False, bnneck=False, joint_norm=True, input_size=(160, 64)
    ):
        super().__init__("HA-CNN", input_size, 1024 if learn_region else 512)
        if input_size != (160, 64):
            raise ValueError(f"hacnn takes images of 160 x 64 alone (its regions are cut for them), not {input_size}")
        self.learn_region, self.joint_norm = learn_region, joint_norm
        height, width = input_size
        self.conv = ConvBlock(3, self.WIDTHS[0], 3, stride=2, padding=1)
        self.crops = nn.ModuleList()
        for stage in (1, 2, 3):
            c_in, c_out = self.WIDTHS[stage - 1], self.WIDTHS[stage]
            size_in, size_out = (height >> stage, width >> stage), (height >> stage + 1, width >> stage + 1)
            inception = nn.Sequential(inception_a(c_in, c_out), inception_b(c_out, c_out))
            self.add_module(f"inception{stage}", inception)
            attention = {"soft_attn": SoftAttention(c_out, size_out), "hard_attn": HardAttention(c_out)}
            self.add_module(f"ha{stage}", nn.ModuleDict(attention))
            self.crops.append(RegionCrop(size_in, self.CROPS[stage - 1], align_corners))
        self.fc_global = fully_connected(self.WIDTHS[3], 512)
        self.bnneck_global, self.classifier_global = neck_and_classifier(512, num_ids, bnneck)
        if learn_region:
            for stage in (1, 2, 3):
                self.add_module(f"local_conv{stage}", inception_b(self.WIDTHS[stage - 1], self.WIDTHS[stage]))
            self.fc_local = fully_connected(self.REGIONS * self.WIDTHS[3], 512)
            self.bnneck_local, self.classifier_local = neck_and_classifier(512, num_ids, bnneck)
        else:
            for attention in (self.ha1, self.ha2, self.ha3):
                attention.hard_attn.requires_grad_(False)

    def convolve(self, local_conv, regions):
        """A layer of the local branch: regions (4 B, C, H, W), those of an image together -> (4 B, C', h, w)."""
        if self.joint_norm or not self.training:
            return local_conv(regions)
        each = [local_conv(region) for region in regions.unflatten(0, (-1, self.REGIONS)).unbind(1)]
        return torch.stack(each, dim=1).flatten(0, 1)

    def branches(self, x):
        """Images (B, 3, 160, 64) -> raw features, [global (B, 512)] or [global, local (B, 512)]."""
        x, local = self.conv(x), 0
        for stage, crop in enumerate(self.crops, start=1):
            attention = getattr(self, f"ha{stage}")
            entering, x = x, getattr(self, f"inception{stage}")(x)
            if self.learn_region:
                theta = attention.hard_attn(x)  # (B, 4, 2), from the features before soft attention
                local = self.convolve(getattr(self, f"local_conv{stage}"), crop(entering, theta) + local)
            x = x * attention.soft_attn(x)
        features = [self.fc_global(x.mean(dim=(2, 3)))]
        if self.learn_region:
            means = local.mean(dim=(2, 3)).view(x.shape[0], -1)  # (4 B, 384) -> (B, 4 * 384)
            features.append(self.fc_local(means))
        return features

    def heads(self):
        names = ("global", "local") if self.learn_region else ("global",)
        return [(getattr(self, f"bnneck_{name}"), getattr(self, f"classifier_{name}")) for name in names]


# ----------------------------------------------------------------------------------------------------------------------
# MuDeep: Qian, Fu, Jiang, Xiang, Xue, "Multi-scale Deep Learning Architectures for Person Re-identification", ICCV
# 2017. Its feature is the 4096-d layer before the classifier, in evaluation too.


def check_multiple(name, size, step):
    """ValueError where a network would cut off rows or columns at the edge, or is left with nothing."""
    if min(size) < step or size[0] % step or size[1] % step:
        raise ValueError(
            f"{name} cannot take images of {size[0]} x {size[1]}: height and width must be multiples of {step}, such "
            f"as {256 // step * step} x {128 // step * step}"
        )


class Fusion(nn.Module):
    """Weighed sum of four streams, a weight per channel, then averages: (B, 4 * 256, H, W) -> (B, 256, H/4, W/4)."""

    def __init__(self):
        super().__init__()
        for stream in (1, 2, 3, 4):
            self.register_parameter(f"a{stream}", nn.Parameter(torch.rand(1, 256, 1, 1)))

    def forward(self, x):
        x = x * torch.cat([self.a1, self.a2, self.a3, self.a4], dim=1)
        return F.avg_pool2d(sum(x.chunk(4, dim=1)), 4)


class MuDeep(Network):
    """MuDeep: 138 M parameters, of which 134 M lie between the last map and its 4096-d feature."""

    def __init__(self, num_ids, *, input_size=(256, 128)):
        super().__init__("MuDeep", input_size, 4096)
        check_multiple("mudeep", input_size, 16)
        self.block1 = nn.Sequential(OrderedDict(
            conv1=ConvBlock(3, 48, 3, padding=1), conv2=ConvBlock(48, 96, 3, padding=1), pool=nn.MaxPool2d(3, 2, 1)
        ))  # fmt: skip
        self.block2 = Streams(  # multi-scale A
            convs(96, (96, 1), (24, 3)), pooled_conv(96, 24), ConvBlock(96, 24, 1), convs(96, (16, 1), (24, 3), (24, 3))
        )
        self.block3 = Streams(  # reduction
            nn.MaxPool2d(3, 2, 1), ConvBlock(96, 96, 3, 2, 1), convs(96, (48, 1), (56, 3), (64, 3), stride=2)
        )
        row, column = (1, 3), (3, 1)
        self.block4 = Streams(  # multi-scale B
            pooled_conv(256, 256), convs(256, (64, 1), (128, row), (256, column)), ConvBlock(256, 256, 1),
            convs(256, (64, 1), (64, row), (128, column), (128, row), (256, column)),
        )  # fmt: skip
        self.block5 = Fusion()
        self.fc = fully_connected(256 * (input_size[0] // 16) * (input_size[1] // 16), self.feature_dim)
        self.bnneck, self.classifier = neck_and_classifier(self.feature_dim, num_ids, bnneck=False)

    def branches(self, x):
        x = self.block3(self.block2(self.block1(x)))  # (B, 256, H/4, W/4)
        return [self.fc(self.block5(self.block4(x)).flatten(1))]


# ----------------------------------------------------------------------------------------------------------------------
# OSNet: Zhou, Yang, Cavallaro, Xiang, "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019.


def conv_norm(in_channels, out_channels, kernel=1, stride=1, *, norm=None, relu=True):
    """Convolution without a bias, a norm (batch norm by default), ReLU; only the stride changes the map's size."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    layers = OrderedDict(conv=conv, bn=norm or nn.BatchNorm2d(out_channels))
    return nn.Sequential(layers | {"relu": nn.ReLU()} if relu else layers)


class LightConv3x3(nn.Sequential):
    """3x3 convolution in two cheap steps: across channels, then each channel over space."""

    def __init__(self, channels):
        across = nn.Conv2d(channels, channels, 1, bias=False)
        space = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=channels)
        super().__init__(OrderedDict(conv1=across, conv2=space, bn=nn.BatchNorm2d(channels), relu=nn.ReLU()))


class ChannelGate(nn.Module):
    """Weighs channels by what the image shows (the unified aggregation gate): (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class OSBlock(nn.Module):
    """Residual bottleneck of four streams that see 3x3, 5x5, 7x7 and 9x9, and one gate that mixes them."""

    def __init__(self, in_channels, out_channels, instance_norm=False):
        super().__init__()
        mid = out_channels // 4
        self.conv1 = conv_norm(in_channels, mid)
        self.conv2a = LightConv3x3(mid)
        for name, depth in (("conv2b", 2), ("conv2c", 3), ("conv2d", 4)):
            self.add_module(name, nn.Sequential(*[LightConv3x3(mid) for _ in range(depth)]))
        self.gate = ChannelGate(mid)
        self.conv3 = conv_norm(mid, out_channels, relu=False)
        same = in_channels == out_channels
        self.downsample = nn.Identity() if same else conv_norm(in_channels, out_channels, relu=False)
        self.IN = nn.InstanceNorm2d(out_channels, affine=True) if instance_norm else nn.Identity()

    def forward(self, x):
        entering, x = self.downsample(x), self.conv1(x)
        mixed = sum(self.gate(stream(x)) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d))
        return F.relu(self.IN(self.conv3(mixed) + entering))


class OSNet(Network):
    """OSNet of the given widths after conv1 and after the three stages; ibn adds instance norm to the first two."""

    def __init__(self, widths, ibn, num_ids, *, input_size=(256, 128)):
        super().__init__("OSNet", input_size, 512)
        check_multiple("osnet", input_size, 16)
        norm = nn.InstanceNorm2d(widths[0], affine=True) if ibn else None
        self.conv1 = conv_norm(3, widths[0], 7, stride=2, norm=norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, c_in, c_out in zip((2, 3, 4), widths, widths[1:], strict=False):
            blocks = nn.Sequential(*[OSBlock(c, c_out, ibn and stage == 2) for c in (c_in, c_out)])
            if stage < 4:  # transition
                blocks.append(nn.Sequential(conv_norm(c_out, c_out), nn.AvgPool2d(2)))
            self.add_module(f"conv{stage}", blocks)
        self.conv5 = conv_norm(widths[3], widths[3])
        self.fc = fully_connected(widths[3], self.feature_dim)
        self.bnneck, self.classifier = neck_and_classifier(self.feature_dim, num_ids, bnneck=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def branches(self, x):
        x = self.maxpool(self.conv1(x))  # (B, C, H/4, W/4)
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))  # (B, C, H/16, W/16)
        return [self.fc(x.mean(dim=(2, 3)))]


# ----------------------------------------------------------------------------------------------------------------------
# Networks of torchvision and timm, cut before their pooling, under one head of ours: pooling to one vector, an
# embedding layer, a BNNeck, the classifier. The head is the same for all, so no loss shapes a network.
# BNNeck and last stride 1: Luo, Gu, Liao, Lai, Jiang, "Bag of Tricks and a Strong Baseline for Deep Person
# Re-Identification", CVPR Workshops 2019. GeM: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human
# Annotation", TPAMI 2019.


class GeM(nn.Module):
    """Generalised mean over positions: (B, C, N) -> (B, C). p is learned; 1 is the average, large p the maximum."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return x.float().clamp(min=1e-6).pow(self.p.float()).mean(-1).pow(1 / self.p.float()).to(x.dtype)


class WithHead(Network):
    """A backbone under our head.

    The feature that the losses see stands before the BNNeck, the one that evaluation gives after it; without a BNNeck
    they are the same.
    """

    def __init__(self, arch, backbone, num_channels, num_ids, statistics, input_size, pooling, embedding, bnneck):
        super().__init__(arch, input_size, embedding or num_channels, *statistics)
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

        Libraries write no `backbone.`; old ResNets of the field count their layers, base.0 (conv1) to base.7 (layer4);
        others call the BNNeck a bottleneck.
        Positions that a transformer learned on another grid of patches, a square one, are resampled to ours.
        """
        own, names, position = self.state_dict(), {}, "backbone.pos_embed"
        numbered = {f"base.{number}": name for number, (name, _) in enumerate(self.backbone.named_children())}
        for name in weights:
            ours = re.sub(r"^base\.\d+", lambda found: numbered.get(found[0], found[0]), name)
            ours = re.sub(r"^(heads\.)?bottleneck(\.0)?\.(?=\w+$)", "bnneck.", ours)
            names[name] = f"backbone.{ours}" if f"backbone.{ours}" in own else ours
        grid = getattr(getattr(self.backbone, "patch_embed", None), "grid_size", None)
        learned = [name for name, ours in names.items() if ours == position] if grid and position in own else []
        for name in learned:  # (1, class and register tokens + patches, C)
            from timm.layers import resample_abs_pos_embed  # here: what has a grid is timm's

            value, prefix = weights[name], own[position].shape[1] - grid[0] * grid[1]
            count = value.shape[1] - prefix if value.dim() == 3 else 0
            if value.shape != own[position].shape and count > 0 and math.isqrt(count) ** 2 == count:
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
            raise ValueError(f"{self.title} has no map of its last features, which are of shape {tuple(x.shape)}")
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, -1))  # (B, N, C) -> (B, C, h, w)

    def branches(self, x):
        return [self.fc(self.pool(self.backbone(x)))]


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


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_download(arch, url, error, remedy):
    return ValueError(
        f"no ImageNet weights of {arch} from {url} ({first_line(error)}): {remedy} --weights FILE, or go without "
        "--pretrained"
    )


def on_meta(network, input_size, count=1):
    """What the network gives for so many images, with shapes alone: no content, no arithmetic; it stays as it is."""
    state = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}
    with torch.no_grad():
        return torch.func.functional_call(network, state, (torch.empty(count, 3, *input_size, device="meta"),))


def create_checked(create, arch, input_size):
    """(network, (mean, std), shape of what it gives for one image); raises what the library does if it cannot."""
    network, statistics = create(arch, input_size, False)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if first.stride == first.kernel_size:  # patches: libraries cut off silently what is left over at the edge
        if input_size[0] % first.stride[0] or input_size[1] % first.stride[0]:
            raise ValueError(f"height and width must be multiples of {first.stride[0]}")
    return network, statistics, on_meta(network.eval(), input_size).shape


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


# ----------------------------------------------------------------------------------------------------------------------
# Tracklets: from the features of their frames to one, by the average, the maximum, or an average whose weights are
# learned: temporal attention, as in Gao and Nevatia, "Revisiting Temporal Modeling for Video-based Person ReID", 2018,
# section 3.2, here from the features of each frame alone.

POOLING = ("avg", "max", "attention")


class VideoModel(nn.Module):
    """A network for tracklets around a network for images, `frames`.

    Evaluation: clips (B, T, 3, H, W) and a mask (B, T), 1 for frames that count -> features (B, D), zeros for a clip of
    which no frame counts. Training: clips -> (logits, features) of the branches, pooled over the frames. Logits are
    always averaged (by attention's weights): with a linear classifier those are the logits of the averaged feature.
    Images (B, 3, H, W) pass as `frames` has it.
    """

    def __init__(self, frames, pooling):
        super().__init__()
        if pooling not in POOLING:
            raise ValueError(f"no temporal pooling {pooling!r}: {', '.join(POOLING)}")
        self.frames, self.pooling = frames, pooling
        self.input_size, self.feature_dim, self.mean, self.std = (
            frames.input_size, frames.feature_dim, frames.mean, frames.std
        )  # fmt: skip
        self.attention = None
        if pooling == "attention":
            hidden = nn.Linear(self.feature_dim, 128)
            self.attention = nn.Sequential(hidden, nn.Tanh(), nn.Linear(128, 1))
            nn.init.zeros_(self.attention[2].weight)  # starts as the average

    def weigh(self, features, mask):
        """Features (B, T, D) and mask (B, T) -> weights (B, T) that sum to 1, 0 where the mask is. Those of a clip of
        which no frame counts are finite: pool_frames weighs zeros by them."""
        if self.attention is None:
            return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
        scores = self.attention(F.normalize(features, dim=2)).squeeze(2).float()
        return scores.masked_fill(mask == 0, torch.finfo(torch.float32).min).softmax(dim=1)  # of -inf alone: nan

    def pool_frames(self, features, mask):
        """Features (B, T, D) of the frames that the mask (B, T) counts -> (B, D)."""
        if self.pooling == "max":
            largest = features.masked_fill(mask.unsqueeze(2) == 0, float("-inf")).amax(dim=1)
            return largest.masked_fill(mask.sum(dim=1, keepdim=True) == 0, 0)
        weights = self.weigh(features, mask).unsqueeze(2)
        return (features.masked_fill(mask.unsqueeze(2) == 0, 0) * weights).sum(dim=1)  # 0 * nan would be nan

    def forward(self, clips, mask=None):
        if clips.dim() == 4:
            return self.frames(clips)
        batch, length = clips.shape[:2]
        if mask is None:
            mask = torch.ones(batch, length, device=clips.device)
        out = self.frames(clips.flatten(0, 1))
        if not self.training:
            return self.pool_frames(out.unflatten(0, (batch, length)), mask)
        logits, features = ([x.unflatten(0, (batch, length)) for x in part] for part in out)
        described = self.frames.describe([x.flatten(0, 1) for x in features]).unflatten(0, (batch, length))
        weights = self.weigh(described, mask).unsqueeze(2)  # (B, T, 1)
        logits = [(x * weights).sum(dim=1) for x in logits]
        if self.pooling == "max":
            return logits, [self.pool_frames(x, mask) for x in features]
        return logits, [(x * weights).sum(dim=1) for x in features]


# ----------------------------------------------------------------------------------------------------------------------
# The table, and the two ways to a model

# families of the field, with one or two members each
TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1",
)  # fmt: skip
TIMM = (
    "seresnet50", "legacy_seresnet50", "inception_v4", "inception_resnet_v2", "nasnetalarge", "legacy_xception",
    "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "timm/convnext_tiny",
)  # fmt: skip

MODELS = {  # name -> function of (num_ids, **options)
    "hacnn": HACNN,
    "mudeep": MuDeep,
    "osnet_x1_0": functools.partial(OSNet, (64, 256, 384, 512), False),
    "osnet_x0_75": functools.partial(OSNet, (48, 192, 288, 384), False),
    "osnet_x0_5": functools.partial(OSNet, (32, 128, 192, 256), False),
    "osnet_x0_25": functools.partial(OSNet, (16, 64, 96, 128), False),
    "osnet_ibn_x1_0": functools.partial(OSNet, (64, 256, 384, 512), True),
    # every other name of the two libraries builds as well
    **{name: functools.partial(build_with_head, create_torchvision, name) for name in TORCHVISION},
    **{name: functools.partial(build_with_head, create_timm, name) for name in TIMM},
}


def options_of(builder):
    """Names of the options that a builder takes, with their defaults."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "pretrained"}


def find_builder(arch):
    """The table's entry, or one for any other network of torchvision or timm. ValueError with the nearest names.

    A name that both libraries know is torchvision's unless written timm/NAME; timm is imported only for what is left.
    """
    if arch in MODELS:
        return MODELS[arch]
    import torchvision

    # without torchvision's ViT and MaxViT, which take square images alone; timm's take others
    names = torchvision.models.list_models(module=torchvision.models, exclude=("vit_*", "maxvit_*"))
    if arch in names:
        return functools.partial(build_with_head, create_torchvision, arch)
    try:
        import timm
    except ImportError:
        libraries = "torchvision and, once timm is installed, of timm"
    else:
        timm_names = timm.list_models(pretrained=True) if "." in arch else timm.list_models()
        if arch.removeprefix("timm/") in timm_names:
            return functools.partial(build_with_head, create_timm, arch)
        names, libraries = names + timm_names, "torchvision and timm"
    near = difflib.get_close_matches(arch.lower(), sorted({*MODELS, *names}), n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    raise ValueError(f"no architecture {arch!r}{hint} Available: {', '.join(MODELS)}, all others of {libraries}")


def build_model(arch, num_ids, *, pretrained=False, temporal=None, **options):
    """A network for `num_ids` classes, with fresh weights or with a backbone trained on ImageNet.

    temporal: how frames are pooled, avg, max or attention, makes it a VideoModel, for tracklets. ValueError for
    an unknown arch, an option or a value that it does not have, weights that cannot be had.
    """
    if temporal is not None:
        return VideoModel(build_model(arch, num_ids, pretrained=pretrained, **options), temporal)
    builder = find_builder(arch)
    allowed = options_of(builder)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"{arch} has no option {', '.join(unknown)}; its options: {', '.join(allowed)}")
    for name, value in options.items():
        if allowed[name] is not None and type(value) is not type(allowed[name]):
            kind = type(allowed[name]).__name__
            raise ValueError(f"option {name} of {arch} is of type {kind}, such as {allowed[name]}; got {value!r}")
    size = options.get("input_size", (1, 1))
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"input_size is (height, width) in pixels, such as {allowed['input_size']}; got {size}")
    if not pretrained:
        return builder(num_ids, **options)
    if arch.startswith("osnet"):
        raise ValueError(f"ImageNet weights of {arch} come as a file alone, from its model zoo: --weights FILE")
    if builder in (HACNN, MuDeep):
        raise ValueError(f"{arch} has no ImageNet weights: train from scratch, or start from a file (--weights)")
    return builder(num_ids, pretrained=True, **options)


# ----------------------------------------------------------------------------------------------------------------------
# What a network looks at


def boxes_of(crop, theta, size):
    """The regions theta (B, R, 2) of a RegionCrop as (B, R, 4): top, left, bottom, right, in pixels of an image (H, W).

    They begin and end half a step before and after their samples.
    """
    edges = []
    for axis, shift, length in ((crop.rows, theta[..., 1], size[0]), (crop.columns, theta[..., 0], size[1])):
        centre = (axis.middle + axis.unit * shift + 0.5) / len(axis.index)  # as a fraction of the axis
        edges.append([(centre - axis.scale / 2) * length, (centre + axis.scale / 2) * length])
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], dim=-1)


@torch.no_grad()
def explain(model, images):
    """What a model in evaluation mode looks at in normalised images (B, 3, H, W), as tensors on the CPU.

    activation (B, h, w): L2 norm over the channels of the last features that have a place, from 0 to 1 in each image.
    Of HA-CNN also attention: of each stage, the soft attention map (B, h, w), averaged over channels; and regions: of
    each stage (B, 4, 4), top, left, bottom, right of the four regions in pixels of the image, which they may leave.
    With learn_region=False there are no regions, and the list is empty.
    """
    if model.training:
        raise ValueError("explain takes a model in evaluation mode: call model.eval() first")
    if isinstance(model, HACNN):
        names = ["inception3"] + [f"ha{stage}.{kind}_attn" for stage in (1, 2, 3) for kind in ("soft", "hard")]
    else:
        names = ["block5" if isinstance(model, MuDeep) else "conv5" if isinstance(model, OSNet) else "backbone"]
    seen = {}  # name -> what that layer gave
    with contextlib.ExitStack() as stack:
        for name in names:
            hook = functools.partial(lambda name, _layer, _inputs, out: seen.update({name: out}), name)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        model(images)
    found, last = {}, seen[names[0]]
    if isinstance(model, HACNN):
        last = last * seen["ha3.soft_attn"]
        found["attention"] = [seen[f"ha{stage}.soft_attn"].float().mean(dim=1).cpu() for stage in (1, 2, 3)]
        thetas = [seen[f"ha{stage}.hard_attn"] for stage in (1, 2, 3)] if model.learn_region else []
        pairs = zip(model.crops, thetas, strict=model.learn_region)
        found["regions"] = [boxes_of(crop, theta, model.input_size).cpu() for crop, theta in pairs]
    elif isinstance(model, WithHead):
        last = model.lay_out(last)
    norms = last.float().norm(dim=1).cpu()  # (B, h, w)
    low, high = norms.amin(dim=(1, 2), keepdim=True), norms.amax(dim=(1, 2), keepdim=True)
    # behind a fresh layer norm all norms are equal but for rounding, which must not fill the picture
    return {"activation": (norms - low) / torch.maximum(high - low, 1e-4 * high).clamp(min=1e-12), **found}


# ----------------------------------------------------------------------------------------------------------------------
# Options and files


def parse_option(text):
    """'learn_region=False' -> ('learn_region', False), 'pooling=gem' -> ('pooling', 'gem'): a type for argparse."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value, as learn_region=False is")
    with contextlib.suppress(SyntaxError, ValueError):  # what is no number, truth value or pair is a word
        value = ast.literal_eval(value)
    return name, value


def count_parameters(model):
    """(all, without classifiers): what training holds, and what a deployed feature extractor holds."""
    every = sum(p.numel() for p in model.parameters())
    named = [(name.removeprefix("frames."), p.numel()) for name, p in model.named_parameters()]  # of VideoModel
    heads = sum(count for name, count in named if name.startswith("classifier"))
    return every, every - heads


PLAIN = [argparse.Namespace, np.dtype, np.ndarray, *(type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdFD")]
PLAIN += [  # what may stand beside weights: all of it builds numbers, arrays and bags of values, and does nothing else
    (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")
    for name in ("scalar", "_reconstruct") for core in ("core", "_core")
]  # fmt: skip
FORM = {  # of our own checkpoints: field -> its type
    "arch": str, "num_ids": int, "options": dict, "model": dict, "pids": list, "args": dict, "epoch": int, "step": int,
    "distance": str, "dataset": str, "optimizer": dict, "criterion": dict, "averaged": dict, "scaler": dict,
    "totals": dict, "scores": dict | None, "record": dict | None,
}  # fmt: skip


def why_unreadable(path, error):
    """What a file is that cannot be read as a checkpoint."""
    # not torch's own text: it explains how to load the file all the same, and to run what it holds
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"it holds {named[1]}, which is not data"
    with open(path, "rb") as file:
        first = file.read(2**12)
    if not first:
        return "it is empty"
    if re.match(rb"\s*<(!doctype|html|\?xml)", first, re.IGNORECASE):
        return "it is a web page: download the file itself"
    if first.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: git lfs pull fetches the file itself"
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < 2**27:
        return "it is of the form safetensors: let its name end in .safetensors"
    if first[:1] == b"\x08":  # the field ir_version, which comes first
        return "it is an ONNX model: search.py runs those, here give the checkpoint that it was exported from"
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        if any(name.startswith("code/") or name == "constants.pkl" for name in names):
            return "it is TorchScript: torch.jit.load runs it, here give the checkpoint that it was exported from"
        if "archive_format" in names:
            return "it is of torch.export: torch.export.load runs it, here give the checkpoint it was exported from"
        if "data.pkl" not in names:
            return f"it is an archive of {', '.join(names[:3])}"
    return "cut short, or another kind of file"


SHIPPED = {"synthetic": Path(__file__).parent / "weights" / "synthetic.pth"}  # name in place of a file -> that file


def read_checkpoint(path):
    """The dictionary in a .pth file, read without running any code that it may hold (weights_only); one of ours is of
    the right form. Files of Python 2 are read too. "synthetic" names the weights that come with this code."""
    path = Path(path)
    if not path.is_file():
        path = SHIPPED.get(str(path), path)
    if not path.is_file():
        shipped = f"or {', '.join(SHIPPED)}, which comes with this code"
        raise FileNotFoundError(
            f"no checkpoint at {path}: give a .pth file, such as runs/hacnn-market1501/best.pth, {shipped}"
        )
    try:
        if path.suffix == ".safetensors":  # timm's: tensors alone
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, and about the encoding, which does act here
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except Exception as error:  # torch raises a different type for each kind of broken file
        missing = isinstance(error, ImportError)
        reason = "pip install safetensors, which reads it" if missing else why_unreadable(path, error)
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dictionary of a checkpoint")
    if is_ours(checkpoint):
        check_form(checkpoint, path)
    return checkpoint


def is_ours(checkpoint):
    return {"arch", "num_ids", "options", "model"} <= checkpoint.keys()


def check_form(checkpoint, path):
    """ValueError where a field of one of our checkpoints is not of the type or the size that it has to be."""
    wrong = {
        name: f"{type(checkpoint[name]).__name__} instead of {kind if isinstance(kind, UnionType) else kind.__name__}"
        for name, kind in FORM.items()
        if name in checkpoint and (not isinstance(checkpoint[name], kind) or isinstance(checkpoint[name], bool))
    }
    if not wrong:
        num_ids, heads = checkpoint["num_ids"], classifier_sizes(checkpoint["model"])
        if num_ids < 1 or heads and num_ids not in heads:
            wrong["num_ids"] = f"{num_ids}" + f", its classifier is for {heads[0]}" * bool(heads)
        for name in ("options", "args"):
            if not all(isinstance(key, str) for key in checkpoint.get(name, {})):
                wrong[name] = "names that are no text"
        if not all(type(pid) is int for pid in checkpoint.get("pids", [])):
            wrong["pids"] = "persons that are no whole numbers"
    if wrong:
        told = "; ".join(f"{name}: {what}" for name, what in wrong.items())
        raise ValueError(f"{path} is not of the form of our checkpoints ({told}): take the file that train.py wrote")


CONTAINERS = (
    "model", "state_dict", "model_state_dict", "net", "net_dict", "network", "weights", "params", "state_dict_ema",
)  # fmt: skip


def find_weights(checkpoint):
    """name -> tensor, from our files, {'state_dict': ...} and the like, or a bare dictionary.

    `module.` of nn.DataParallel and `_orig_mod.` of torch.compile are no part of a name.
    """
    inner = next((key for key in CONTAINERS if isinstance(checkpoint.get(key), dict)), None)
    if inner:
        return find_weights(checkpoint[inner])
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    return {re.sub(r"^((module|_orig_mod)\.)+|(?<=\.)_orig_mod\.", "", name): value for name, value in tensors.items()}


def classifier_sizes(weights):
    """The number of classes of each classifier among name -> tensor, by name."""
    return [
        value.shape[0] for name, value in sorted(weights.items())
        if "classifier" in str(name) and isinstance(value, torch.Tensor) and value.dim() == 2
    ]  # fmt: skip


def find_places(model, weights):
    """({name in the file: our name} of the tensors that fit by name and shape, weights), see WithHead.adopt."""
    own, places = model.state_dict(), {name: name for name in weights}
    if isinstance(model, WithHead):
        places, weights = model.adopt(weights)
    fits = {name: places[name] for name, value in weights.items()
            if places[name] in own and own[places[name]].shape == value.shape}  # fmt: skip
    return fits, weights


def unwrap(model, weights):
    """The weights without a prefix that keeps them from fitting, such as `model.`, `base.` or `encoder_q.`."""

    def filled(weights):
        return sum(weights[name].numel() for name in find_places(model, weights)[0])

    prefixes = {".".join(name.split(".")[:count]) + "." for name in weights for count in (1, 2)}
    others = [{name.removeprefix(prefix): value for name, value in weights.items()} for prefix in sorted(prefixes)]
    return max([weights, *others], key=filled)  # of equals the first, so the file as it is


def load_weights(model, weights):
    """Copies the tensors whose name and shape fit; returns (unused, unfilled) names. ValueError where none fits.

    Files of other code name the layers of a backbone in ways of their own, or hold positions for images of another
    size: see WithHead.adopt. A network for tracklets takes the weights of one for images, and the other way round.
    """
    own = model.state_dict()
    if isinstance(model, VideoModel):
        learned = {name for name in own if name.startswith("attention.")}
        unused, unfilled = load_weights(model.frames, {n: value for n, value in weights.items() if n not in learned})
        model.load_state_dict({name: weights[name] for name in learned & set(weights)}, strict=False)
        return unused, sorted([f"frames.{name}" for name in unfilled] + list(learned - set(weights)))
    weights = {name.removeprefix("frames."): value for name, value in weights.items()}
    places, fitted = find_places(model, weights)
    if len(places) < len(weights):
        places, fitted = find_places(model, unwrap(model, weights))
    if not any(fitted[name].dim() > 0 for name in places):
        raise ValueError(
            f"none of the {len(weights)} tensors in the file fits this {type(model).__name__} by name and shape: "
            f"the file has {', '.join(sorted(weights)[:3]) or 'no tensors'}, the model has {', '.join(sorted(own)[:3])}"
        )
    fitting = {ours: fitted[name] for name, ours in places.items()}
    model.load_state_dict(fitting, strict=False)
    return sorted(set(fitted) - set(places)), sorted(set(own) - set(fitting))


def share_filled(model, unfilled):
    """The share (0..1) of the numbers of a model that load_weights filled, its classifiers not counted."""
    sizes = {name: value.numel() for name, value in model.state_dict().items() if "classifier" not in name}
    return 1 - sum(sizes.get(name, 0) for name in unfilled) / sum(sizes.values())


HEAD = r"(^|.*\.)(classifier\w*(\.\d+)?|fc|heads?|head_dist|logits|last_linear|cls|cls_layer)$"  # of a classifier
AUXILIARY = r"aux|num_batches_tracked|relative_position_index|attn_mask|total_(ops|params)"  # not for the feature


def lost_layers(weights, unused):
    """The layers of a file that hold what was learned for the feature, among the `unused` names of its weights.

    A classifier is no such layer: a matrix of a usual name whose outputs no other classifier takes in.
    """
    layers = {}  # layer -> the shapes of its tensors
    for name in unused:
        if name in weights and weights[name].is_floating_point() and not re.search(AUXILIARY, name, re.IGNORECASE):
            layers.setdefault(name.rpartition(".")[0] or name, []).append(weights[name].shape)
    heads = {layer: max(shapes, key=len) for layer, shapes in layers.items() if re.match(HEAD, layer)}
    taken = {shape[1] for name, shape in weights.items() for shape in [shape.shape] if len(shape) > 1
             if re.match(HEAD, name.rpartition(".")[0])}  # fmt: skip
    heads = {layer for layer, shape in heads.items() if len(shape) > 1 and shape[0] not in taken}
    return [layer for layer in layers if layer not in heads]


def options_that_hold(arch, options, weights):
    """Options beside those given with which a network has a place for all learned layers of a file; {} if none does."""
    allowed = options_of(find_builder(arch))
    flips = [{name: not options.get(name, value)} for name, value in allowed.items() if isinstance(value, bool)]
    sizes = {shape.shape[0] for shape in weights.values() if shape.dim() == 2} if "embedding" in allowed else ()
    flips += [{"embedding": size} | more for size in sorted(sizes) for more in ({}, {"bnneck": True})]
    for more in flips:
        model = build_model(arch, (classifier_sizes(weights) or [1])[0], **{**options, **more})
        places, fitted = find_places(model, unwrap(model, weights))
        if not lost_layers(fitted, set(fitted) - set(places)):
            return more
    return {}


def load_checkpoint(path, device="cpu", *, arch=None, skip=(), **options):
    """(model in evaluation mode, info) from the file alone; info is the rest of the checkpoint.

    Our files say which network they hold, and `arch`, if given, must agree. Files of other code do not: give `arch` and
    `options`; the number of ids comes from the classifier's shape, info["skipped"] lists what the file had in excess.
    ValueError where that were learned layers, whose loss changes the features, but for those that `skip` names.
    """
    checkpoint = read_checkpoint(path)
    weights = find_weights(checkpoint)
    if is_ours(checkpoint):
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
            names = ", ".join(MODELS)
            raise ValueError(f"{path} does not say which network it holds: give --arch ({names}, ...)")
        model = build_model(arch, (classifier_sizes(weights) or [1])[0], **options)
        info = {"arch": arch, "options": options, "skipped": load_foreign(model, weights, path, arch, skip, options)}
    return model.to(device).eval(), info


def load_foreign(model, weights, path, arch, skip, options):
    """load_weights of a file of other code, whose features have to be those that were trained; the unused names."""
    unused, missing = load_weights(model, weights)
    missing = [name for name in missing if "classifier" not in name and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} tensors that {arch} needs, such as {', '.join(missing[:3])}")
    lost = lost_layers(unwrap(getattr(model, "frames", model), weights), unused) if unused else []
    lost = [layer for layer in lost if not any(f"{layer}.".startswith(f"{name}.") for name in skip)]
    if lost:
        more = {} if options.get("temporal") else options_that_hold(arch, options, weights)
        hold = "".join(f" {name}={value}" for name, value in more.items())
        hold = f"--options{hold}, which holds them, or " if more else ""
        skips = " ".join(dict.fromkeys(layer.partition(".")[0] for layer in lost))
        raise ValueError(
            f"{path} holds {len(lost)} learned layers that this {arch} does not have, {', '.join(lost[:4])}: its "
            f"features would be others than those that were trained. Give {hold}--skip {skips}, to do without them"
        )
    return unused


# ----------------------------------------------------------------------------------------------------------------------
# Command line: what there is to choose from


def count_macs(model):
    """(in convolutions and linear layers, in products of activations: attention, HA-CNN's crops) for one image."""
    with FlopCounterMode(display=False) as counter:
        on_meta(model.eval(), model.input_size)
    flops = counter.get_flop_counts()["Global"]  # torch counts two FLOPs per multiply-accumulate
    layers = sum(count for op, count in flops.items() if op.__name__ in ("convolution", "addmm", "mm"))
    return layers // 2, (sum(flops.values()) - layers) // 2


def main(argv=None):
    parser = argparse.ArgumentParser(description="Lists networks: input size, parameters, cost and feature size.")
    parser.add_argument("arch", nargs="*", default=list(MODELS), help="default: all of the table; any other name too")
    args = parser.parse_args(argv)
    print("params: millions, with classifiers for 751 ids and without. MACs: billions per image, in convolutions and")
    print("linear layers (the usual figure) and in products of activations (attention, crops); FLOPs: twice their sum.")
    names = ("input", "params", "without", "MACs", "products", "FLOPs", "features")
    print(f"{'name':30} {names[0]:>9} " + " ".join(f"{name:>8}" for name in names[1:]))
    try:
        for arch in args.arch:
            model = build_model(arch, 751)
            size = f"{model.input_size[0]} x {model.input_size[1]}"
            every, deployed = count_parameters(model)
            layers, products = count_macs(model)
            print(
                f"{arch:30} {size:>9} {every / 1e6:8.2f} {deployed / 1e6:8.2f} {layers / 1e9:8.3f} "
                f"{products / 1e9:8.3f} {2 * (layers + products) / 1e9:8.3f} {model.feature_dim:8}", flush=True,
            )  # fmt: skip
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
