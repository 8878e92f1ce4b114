"""Pillow's BILINEAR resize as matrix products: bytes of any size in, the bytes that Pillow would give out, as floats.

    pixels = Resize((160, 64))(images)          # uint8 (B, h, w, 3), any h and w -> float32 (B, 3, 160, 64), 0..255

It goes into exported graphs (export.py --uint8-input). A Resize node would not do: runtimes and their versions differ
in what they make of it, some have no antialiased one on a GPU, and none rounds where Pillow does. Products and sums of
whole numbers are the same everywhere.

What Pillow does (src/libImaging/Resample.c): one axis, then the other. Each output pixel is a mean of input pixels
weighed by a triangle, which is as wide as an output pixel where the image shrinks. Weights are rounded to 22 binary
places, and what each of the two passes gives is rounded to whole numbers. Which axis comes first depends, in Pillow 13,
on the sizes; here it is always the rows, as there for crops that shrink. In the same order nothing differs, in the
other one some pixels do by 1 of 255.
"""

import torch
from torch import nn

HALF_PLACES = 2**11  # a weight of 22 places is held as two whole numbers of 11


def weights(size_in, size_out, device):
    """Two matrices (size_out, size_in) of whole numbers up to 2048: Pillow's weights times 2**22 are 2048 high + low.

    Positions are counted in 1 / (2 size_out) of an input pixel: there, centres of pixels are whole numbers, and the
    triangle's heights are, too. They are divided by their sum as one does on paper, in two steps of 11 places: float32
    holds what occurs in the first up to inputs of 4,096 pixels, and beyond them next to exactly.
    """
    pixel_in = torch.arange(size_in, dtype=torch.float32, device=device)  # (size_in,)
    pixel_out = torch.arange(size_out, dtype=torch.float32, device=device).unsqueeze(1)  # (size_out, 1)
    length = pixel_in[-1:] + 1  # (1,): size_in as a tensor, for it stays variable in a graph
    distance = ((2 * pixel_in + 1) * size_out - (2 * pixel_out + 1) * length).abs()  # (size_out, size_in)
    heights = (2 * length.clamp(min=size_out) - distance).clamp(min=0)
    heights, total = heights * HALF_PLACES, heights.sum(dim=1, keepdim=True)
    high = torch.floor(heights / total)
    return high, torch.floor((heights - high * total) * HALF_PLACES / total + 0.5)


def rounded(high, low):
    """Products with both matrices -> whole numbers: (2048 high + low) / 2**22, rounded half up.

    All that occurs is below 2**24, and factors are at most 2**11: exact in float32, and in TF32 on a GPU.
    """
    return torch.floor((high + torch.floor((low + HALF_PLACES**2 / 2) / HALF_PLACES)) / HALF_PLACES)


class Resize(nn.Module):
    """uint8 (B, h, w, 3) -> float32 (B, 3, H, W), whole numbers in 0..255."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, images):
        batch, height, width = images.shape[:3]
        x = images.float().flatten(2)  # (B, h, 3 w)
        high, low = weights(height, self.size[0], images.device)
        x = rounded(high @ x, low @ x)  # (B, H, 3 w)
        x = x.view(batch, self.size[0], width, 3).permute(0, 3, 1, 2)  # (B, 3, H, w)
        high, low = weights(width, self.size[1], images.device)
        return rounded(x @ high.transpose(0, 1), x @ low.transpose(0, 1))  # (B, 3, H, W)
