"""From the frames of a tracklet to one feature: which frames are looked at, and how what they give is pooled.

    rows = choose_frames(len(item.paths), 8, "evenly")                # numbers of 8 frames
    model = VideoModel(models.build_model("hacnn", 625), "attention")
    features = model(clips, mask)                                     # (B, T, 3, H, W), (B, T) -> (B, D)

Any network of models.py gives the features of the frames. They are pooled by their average, their maximum, or an
average whose weights are learned: temporal attention, as in Gao and Nevatia, "Revisiting Temporal Modeling for
Video-based Person ReID", 2018, section 3.2, here from the features of each frame alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SAMPLING = ("evenly", "random", "all")
POOLING = ("avg", "max", "attention")


def choose_frames(num_frames, seq_len, method, rng=None):
    """Ascending numbers of at most seq_len of num_frames frames: evenly spread, random without repeats, or all of them.

    Evenly, as in deep-person-reid: the last num_frames % seq_len frames are cut off, then every n-th is taken.
    """
    if method == "all" or num_frames <= seq_len:
        return np.arange(num_frames)
    if method == "evenly":
        return np.arange(seq_len) * (num_frames // seq_len)
    return np.sort(rng.choice(num_frames, seq_len, replace=False))


def fill_clip(frames, seq_len):
    """Numbers of exactly seq_len frames: the last one of a short tracklet is repeated."""
    return np.pad(frames, (0, seq_len - len(frames)), mode="edge")


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
            return logits, [x.masked_fill(mask.unsqueeze(2) == 0, float("-inf")).amax(dim=1) for x in features]
        return logits, [(x * weights).sum(dim=1) for x in features]
