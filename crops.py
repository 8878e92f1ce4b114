"""Regions cut out of feature maps, and maps resized, by matrix products: HA-CNN's attention rests on them.

    crop = RegionCrop((80, 32), (24, 28), align_corners=False)
    regions = crop(maps, theta)                      # maps (B, C, 80, 32), theta (B, 4, 2) -> (4 B, C, 24, 28)
    boxes = crop.boxes(theta, (160, 64))             # the same regions in pixels of the image

The usual way is grid sampling. Regions that are shifted and scaled, never turned, are cut as well by one matrix per
axis: the same numbers and gradients from products alone, which every runtime has. Positions are computed in fp32
whatever precision the network runs in.

Sampling by an affine map: Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks", NIPS 2015.
"""

import torch
from torch import nn


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

    def edges(self, shift):
        """Where regions begin and end, as fractions of the axis: half a step before and after their samples."""
        centre = (self.middle + self.unit * shift + 0.5) / len(self.index)
        return centre - self.scale / 2, centre + self.scale / 2


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

    def boxes(self, theta, size):
        """theta (B, R, 2) -> (B, R, 4): top, left, bottom, right, in pixels of an image of this size (H, W)."""
        (top, bottom), (left, right) = self.rows.edges(theta[..., 1]), self.columns.edges(theta[..., 0])
        return torch.stack([top * size[0], left * size[1], bottom * size[0], right * size[1]], dim=-1)
