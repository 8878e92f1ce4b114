"""Networks for tracklets: what pooling makes of the features of their frames, against loops over tracklets.

python -m pytest tests/test_models_video.py
"""

import copy

import numpy as np
import pytest
import torch
from test_models import assert_same_weights
from torch import nn

import models

NETWORKS = {
    "hacnn": {"learn_region": False},
    "osnet_x0_25": {"input_size": (64, 32)},
    "resnet18": {"input_size": (64, 32), "bnneck": True},
}
PAIRS = [(arch, "attention") for arch in NETWORKS] + [("osnet_x0_25", "avg"), ("resnet18", "max")]


def stir(model):
    """Weights of attention that no longer stand at their beginning, and statistics of batch norms too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
        if model.attention is not None:
            for parameter in model.attention.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def build(arch, pooling, num_ids=3):
    torch.manual_seed(0)
    return stir(models.build_model(arch, num_ids, temporal=pooling, **NETWORKS[arch])).eval()


def clips_of(model, *shape, seed=0):
    return torch.randn(*shape, 3, *model.input_size, generator=torch.Generator().manual_seed(seed))


def attention_by_hand(model, frames):
    """Weights (T,) of the frames whose features (T, D) are given, in numpy."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in model.attention.parameters())
    unit = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    scores = np.exp((np.tanh(unit @ w1.T + b1) @ w2.T + b2)[:, 0])
    return scores / scores.sum()


def pool_by_hand(model, frames):
    """The feature (D,) of a tracklet, from those of its frames (T, D)."""
    if model.pooling == "max":
        return frames.max(axis=0)
    if model.pooling == "avg":
        return frames.mean(axis=0)
    return (attention_by_hand(model, frames)[:, None] * frames).sum(axis=0)


def features_of_frames(model, frames):
    with torch.no_grad():
        return np.concatenate([model.frames(frame[None]).double().numpy() for frame in frames])


@pytest.mark.parametrize(("arch", "pooling"), PAIRS)
def test_evaluation_equals_a_loop_over_tracklets(arch, pooling):
    model = build(arch, pooling)
    clips, lengths = clips_of(model, 3, 3), [3, 1, 2]
    expected = [pool_by_hand(model, features_of_frames(model, c[:n])) for c, n in zip(clips, lengths, strict=True)]
    mask = (torch.arange(3) < torch.tensor(lengths)[:, None]).float()
    with torch.no_grad():
        features = model(clips, mask)
        np.testing.assert_allclose(model(clips)[0].numpy(), expected[0], rtol=1e-4, atol=1e-5)  # all count
    assert features.shape == (3, model.feature_dim)
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", models.POOLING)
def test_what_padding_holds_does_not_matter(pooling):
    model = build("osnet_x0_25", pooling)
    clips = clips_of(model, 2, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])
    with torch.no_grad():
        plain = model(clips, mask)
        for content in (0.0, 1000.0, float("inf"), float("nan")):
            padded = torch.where(mask[:, :, None, None, None] == 1, clips, torch.tensor(content))
            for kind in (mask, mask.float(), mask.bool()):
                torch.testing.assert_close(model(padded, kind), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", models.POOLING)
def test_a_clip_of_which_no_frame_counts_gives_zeros(pooling):
    """And changes nothing for the others of its batch."""
    model = build("osnet_x0_25", pooling)
    clips, mask = clips_of(model, 2, 3), torch.tensor([[0, 0, 0], [1, 0, 1]])
    with torch.no_grad():
        expected = model(clips[1:], mask[1:])
        for content in (clips[0], torch.full_like(clips[0], float("nan"))):
            for kind in (mask, mask.float(), mask.bool()):
                found = model(torch.stack([content, clips[1]]), kind)
                assert found[0].eq(0).all()
                torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-6)
    _, (feature,) = model.train()(clips, mask)
    assert feature.isfinite().all() and (pooling == "attention" or feature[0].eq(0).all())


@pytest.mark.parametrize(("arch", "pooling"), PAIRS)
def test_training_gives_pooled_logits_and_features(arch, pooling):
    model = build(arch, pooling)
    described = copy.deepcopy(model.frames)  # batch norms move on with every forward
    model.train()
    clips = clips_of(model, 2, 4)
    logits, features = model(clips)
    logits_of_frames, features_of_frames = described.train()(clips.flatten(0, 1))
    seen = described.describe(features_of_frames).detach().double().numpy().reshape(2, 4, -1)
    assert len(logits) == len(features) == len(logits_of_frames)
    for pooled, frames, kind in ((logits, logits_of_frames, "logits"), (features, features_of_frames, "features")):
        for branch, of_frames in zip(pooled, frames, strict=True):
            for row, tracklet in enumerate(of_frames.detach().double().numpy().reshape(2, 4, -1)):
                weights = attention_by_hand(model, seen[row]) if pooling == "attention" else np.full(4, 0.25)
                expected = (weights[:, None] * tracklet).sum(axis=0)
                if pooling == "max" and kind == "features":
                    expected = tracklet.max(axis=0)
                np.testing.assert_allclose(branch[row].detach().numpy(), expected, rtol=1e-3, atol=1e-4)
    sum(x.square().sum() for x in [*logits, *features]).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    if pooling == "attention":
        assert all(p.grad.abs().max() > 0 for p in model.attention[0].parameters())
        assert model.attention[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("pooling", models.POOLING)
def test_the_mask_counts_in_training_too(pooling):
    model = build("osnet_x0_25", pooling)
    model.train()
    for layer in model.modules():  # the statistics of a batch hold all of it
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.eval()
    clips, mask = clips_of(model, 2, 3), torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    logits, features = model(clips, mask)
    short_logits, short_features = model(clips[:, :2])
    torch.testing.assert_close(logits, short_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, short_features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "pooling"), PAIRS)
def test_one_frame_and_an_image_give_what_the_network_gives(arch, pooling):
    model = build(arch, pooling)
    images = clips_of(model, 2)
    with torch.no_grad():
        expected = model.frames(images)
        assert torch.equal(model(images), expected) and torch.equal(model(images[:, None]), expected)


class Projection(nn.Module):
    """A network whose feature is a linear map of the pixels."""

    input_size, feature_dim, mean, std = (4, 2), 6, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(24, 6)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_attention_starts_as_the_average():
    torch.manual_seed(0)
    model = models.VideoModel(Projection(), "attention").eval()
    clips = clips_of(model, 2, 5)
    with torch.no_grad():
        found, average = model(clips), model.frames(clips.flatten(0, 1)).view(2, 5, -1).mean(dim=1)
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-6)


class Marked(nn.Module):
    """A network for images (B, 3, 2, 1) whose feature is their first 4 numbers; only its classifier learns."""

    input_size, feature_dim, mean, std = (2, 1), 4, (0.0,) * 3, (1.0,) * 3

    def __init__(self, num_ids):
        super().__init__()
        self.classifier = nn.Linear(4, num_ids)

    def describe(self, features):
        return features[0]

    def forward(self, x):
        features = [x.flatten(1)[:, :4]]
        return ([self.classifier(features[0])], features) if self.training else self.describe(features)


def marked_clips(count, seed):
    """Clips of 6 frames of which one, with 4 in its third number, tells the person; the others are loud noise."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.zeros(count, 6, 3, 2, 1)
    clips[:, :, 0, :, 0] = 3 * torch.randn(count, 6, 2, generator=generator)
    labels = torch.randint(2, (count,), generator=generator)
    marked = torch.randint(6, (count,), generator=generator)
    rows = torch.arange(count)
    clips[rows, marked, 0, 0, 0] = labels * 2.0 - 1
    clips[rows, marked, 1, 0, 0] = 4.0
    return clips, labels


def test_attention_learns_which_frame_tells_the_person():
    right = {}
    for pooling in ("avg", "attention"):
        torch.manual_seed(0)
        model = models.VideoModel(Marked(2), pooling)
        optimizer = torch.optim.Adam(model.parameters(), 0.03)
        for step in range(150):
            clips, labels = marked_clips(64, step)
            loss = nn.functional.cross_entropy(model(clips)[0][0], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clips, labels = marked_clips(400, 1000)
        with torch.no_grad():
            right[pooling] = (model(clips)[0][0].argmax(dim=1) == labels).float().mean().item()
    assert right["avg"] < 0.75 < 0.95 < right["attention"]


@pytest.mark.parametrize(("arch", "pooling"), PAIRS)
def test_weights_of_an_image_network_and_a_checkpoint_of_a_video_network(arch, pooling, tmp_path):
    torch.manual_seed(1)
    image = models.build_model(arch, 3, **NETWORKS[arch]).eval()
    model = build(arch, pooling)
    skipped, missing = models.load_weights(model, image.state_dict())
    assert skipped == [] and all(name.startswith("attention.") for name in missing)
    images = clips_of(model, 2)
    with torch.no_grad():
        assert torch.equal(model(images[:, None]), image(images))
    back = models.build_model(arch, 3, **NETWORKS[arch])
    skipped, missing = models.load_weights(back, model.state_dict())
    assert_same_weights(back, image)
    assert missing == []
    assert all(name.startswith("attention.") for name in skipped) and bool(skipped) == (pooling == "attention")
    content = {"arch": arch, "num_ids": 3, "options": {**NETWORKS[arch], "temporal": pooling}}
    torch.save({**content, "model": model.state_dict()}, tmp_path / "video.pth")
    again, _ = models.load_checkpoint(tmp_path / "video.pth")
    clips = clips_of(model, 1, 3)
    with torch.no_grad():
        assert again.pooling == pooling and torch.equal(again(clips), model(clips))


def test_classifiers_are_counted_as_in_an_image_network():
    image = models.build_model("osnet_x0_25", 7, input_size=(64, 32))
    every, deployed = models.count_parameters(image)
    assert models.count_parameters(models.VideoModel(image, "avg")) == (every, deployed) and every > deployed
    learned = 512 * 128 + 128 + 128 + 1
    assert models.count_parameters(models.VideoModel(image, "attention")) == (every + learned, deployed + learned)


@pytest.mark.parametrize("pooling", models.POOLING)
def test_bf16(pooling):
    """Against fp32 on a network of one layer: in a deep one rounding grows behind every batch norm of so few images."""
    torch.manual_seed(0)
    model = stir(models.VideoModel(Marked(3), pooling)).train()
    clips = clips_of(model, 4, 5)
    (exact,), (exact_feature,) = model(clips)
    with torch.autocast("cpu", torch.bfloat16):
        (half,), (half_feature,) = model(clips)
    for found, expected in ((half, exact), (half_feature, exact_feature)):
        assert (found.float() - expected).norm() < 0.02 * expected.norm()  # 8 bits, twice or so
    model = build("osnet_x0_25", pooling).train()
    with torch.autocast("cpu", torch.bfloat16):
        (logits,), (feature,) = model(clips_of(model, 2, 4))
    (logits.float().square().mean() + feature.float().square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_pooling_that_there_is_not():
    with pytest.raises(ValueError, match="no temporal pooling 'mean': avg, max, attention"):
        models.build_model("osnet_x0_25", 3, temporal="mean")
