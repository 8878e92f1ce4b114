"""How far methods that learn nothing come on a data set."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import metrics
from training import evaluate
from training.pixels import load_pixels


def raw_pixels(images):
    """bytes (N, H, W, 3) -> (N, D): the image at 32 x 16, its mean taken out, scaled to length 1."""
    x = F.interpolate(torch.tensor(images).permute(0, 3, 1, 2).float(), size=(32, 16), mode="area").flatten(1)
    return F.normalize(x - x.mean(dim=1, keepdim=True), dim=1)


def hsv_histograms(images, stripes=6, bins=(8, 4, 4)):
    """bytes (N, H, W, 3) -> (N, D): square roots of HSV histograms of horizontal stripes, for Hellinger's distance."""
    features, edge = [], images.shape[2] // 8  # the outer quarter of the width is background
    for image in images:
        hsv = np.asarray(Image.fromarray(image).convert("HSV"))[:, edge:-edge].astype(np.int64)
        codes = hsv * bins // 256  # (H, W, 3)
        codes = (codes[..., 0] * bins[1] + codes[..., 1]) * bins[2] + codes[..., 2]
        counts = [np.bincount(part.ravel(), minlength=np.prod(bins)) for part in np.array_split(codes, stripes)]
        features.append(np.sqrt(np.concatenate(counts) / codes.size))
    return torch.tensor(np.array(features), dtype=torch.float32)


def measure_baselines(device, dataset, root):
    splits = data.load_dataset(dataset, root, train=False)
    items = splits.query + splits.gallery
    images = load_pixels([i.paths[0] for i in items], (160, 64), Path(root) / ".pixels", f"{dataset}-test").array
    ids, n = evaluate.ids_of(splits.query, splits.gallery), len(splits.query)
    for name, describe in (("raw pixels", raw_pixels), ("HSV histograms", hsv_histograms)):
        features = describe(np.asarray(images)).to(device)
        scores = metrics.evaluate(features[:n], features[n:], *ids, distance="euclidean")
        print(f"{name:16} {evaluate.score_line(evaluate.summarise(scores, dataset))}")
