"""Tests of models.py: regions and resizing beside grid sampling and interpolation, boxes beside what is sampled.

python -m pytest tests/test_crops.py
"""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import models

SIZES = [((80, 32), (24, 28)), ((40, 16), (12, 14)), ((20, 8), (6, 7))]  # maps and regions of HA-CNN's three stages


@pytest.mark.parametrize(("size_in", "size_out"), [(20, 40), (8, 16), (5, 10), (2, 4), (2, 16), (80, 24), (4, 7)])
def test_resize_matrix_is_a_bilinear_resize(size_in, size_out):
    lines = torch.randn(3, 1, size_in, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(lines.double(), size_out, mode="linear", align_corners=True)[:, 0]  # (3, size_out)
    resized = lines[:, 0] @ models.resize_matrix(size_in, size_out).T
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
    torch.testing.assert_close(found, crop.boxes(theta, (160, 64))[0] + half, rtol=0, atol=2e-3)

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
    assert crop.boxes(theta, (160, 64)).tolist() == [[[60, 16, 100, 80]]]


def test_source_samples_no_grid():
    source = Path(models.__file__).read_text()
    assert "RegionCrop" in source and not re.findall(r"grid_sample|affine_grid", source)
