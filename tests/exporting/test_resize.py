"""Tests of resize.py: whole numbers equal to Pillow's where the order of the axes is the same, within 1 elsewhere.

python -m pytest tests/exporting/test_resize.py
"""

import numpy as np
import pytest
import torch
from PIL import Image

from exporting.resize import Resize, weights

SIZE = (160, 64)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(image, size):
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)


def ours(image, size):
    found = Resize(size)(torch.from_numpy(image).unsqueeze(0))
    assert found.dtype == torch.float32 and found.shape == (1, 3, *size)
    return found[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("size", [(160, 64), (160, 200), (160, 31), (301, 64), (7, 64), (1, 64), (160, 1)])
def test_one_axis_equals_pillow_in_every_bit(size):
    image = noise(*size)
    assert np.array_equal(ours(image, SIZE), by_pillow(image, SIZE))


@pytest.mark.parametrize("size", [(300, 120), (480, 192), (47, 31), (333, 77), (80, 500), (2, 3), (1, 1)])
def test_both_axes_equal_pillow_axis_by_axis_and_pillow_at_once_within_one(size):
    image = noise(*size)
    rows_first = by_pillow(by_pillow(image, (SIZE[0], size[1])).astype(np.uint8), SIZE)
    found = ours(image, SIZE)
    assert np.array_equal(found, rows_first)
    assert np.abs(found - by_pillow(image, SIZE)).max() <= 1


def test_weights_are_whole_numbers_that_sum_to_one():
    for size_in in (5, 64, 1920, 20_000):
        high, low = weights(size_in, 64, "cpu")
        assert torch.equal(high, high.round()) and torch.equal(low, low.round())
        assert 0 <= high.min() and high.max() <= 2048 and 0 <= low.min() and low.max() <= 2048
        total = (2048 * high.double() + low).sum(dim=1)
        assert (total - 2**22).abs().max() <= size_in  # each is rounded by itself


def test_images_of_a_batch_do_not_mix():
    images = torch.from_numpy(np.stack([noise(90, 40, seed) for seed in range(3)]))
    together = Resize(SIZE)(images)
    for image, found in zip(images, together, strict=True):
        assert torch.equal(Resize(SIZE)(image.unsqueeze(0))[0], found)
