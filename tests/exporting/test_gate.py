"""Tests of gate.py: features and rankings that agree pass, others are named; what it looks at.

python -m pytest tests/exporting/test_gate.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn

from exporting import gate


class Means(nn.Module):
    """(B, 3, H, W) -> (B, 12): colours of four stripes."""

    input_size, feature_dim, mean, std = (32, 16), 12, (0.5,) * 3, (0.25,) * 3

    def forward(self, x):
        return x.unflatten(2, (4, -1)).mean((3, 4)).flatten(1)


class Extractor(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Means()

    def forward(self, images):
        return nn.functional.normalize(self.model(images), dim=1)


def run_with(change):
    """What an exported file would give, changed."""
    return lambda images: change(Extractor()(torch.from_numpy(images)).numpy())


def turned(features, angle):
    """Each feature turned by an angle towards an axis."""
    other = np.roll(features, 1, axis=1)
    other -= (other * features).sum(1, keepdims=True) * features
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return np.float32(np.cos(angle) * features + np.sin(angle) * other)


@pytest.fixture(autouse=True)
def batches(monkeypatch):
    monkeypatch.setattr(gate, "BATCHES", (1, 3))


def trials(told=None):
    return gate.make_trials(Extractor(), "images", gate.draw_patches(3, (32, 16), seed=2), told)


def one_bad_row(features):
    if len(features) == 3:
        features[2] = turned(features[2:], 0.1)[0]
    return features


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f, []),
        (one_bad_row, ["batch 3: cosine of the worst image 0.9950", "batch 3: largest difference"]),
        (lambda f: f.astype(np.float16), ["batch 1: features are float16", "batch 3: features are float16"]),
        (lambda f: f[:1], ["batch 3: features are float32 (1, 12)"]),
        (lambda f: f * np.nan, ["batch 1: cosine", "batch 1: largest", "batch 3: cosine", "batch 3: largest"]),
    ],
)
def test_findings_name_the_batch_and_the_check(change, expected):
    findings, report = gate.check(run_with(change), trials(), gate.LIMITS["fp32"])
    assert len(findings) == len(expected)
    assert all(found.startswith(start) for found, start in zip(findings, expected, strict=True))
    assert report["trials"] == ["batch 1", "batch 3"]


def test_the_report_holds_the_worst_of_all_batches():
    _, report = gate.check(run_with(one_bad_row), trials(), gate.LIMITS["fp32"])
    assert report["cosine"] == pytest.approx(np.cos(0.1), abs=1e-5) and report["difference"] > 0.01


def test_limits():
    assert gate.LIMITS["fp32"][:2] == (0.99999, 1e-5) and gate.LIMITS["int8"].mAP == 0.5
    assert gate.limits_of("fp32", "bytes")[:2] == (0.99999, 1e-5)  # what is resized in the graph is judged by RESIZED
    assert gate.limits_of("fp32", "bytes").top10 == gate.RESIZED.top10 == 0.98
    assert gate.limits_of("int8", "bytes") == gate.LIMITS["int8"] and gate.limits_of("fp16", "images").cosine == 0.99999


def bytes_run(mean=Means.mean, std=Means.std):
    """What a file with uint8 input would give that has this mean and deviation inside."""
    model = Means()
    model.mean, model.std = mean, std
    return lambda pixels: Extractor()(gate.normalised(list(pixels), model)).numpy()


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_uint8_input_is_held_to_the_limits_without_a_resize_where_there_is_none(kind, monkeypatch):
    """A mean that is off by one of 255 levels in one channel, or a deviation by a hundredth, drowns in RESIZED."""
    monkeypatch.setattr(gate, "BATCHES", (1, 2, 3, 4))
    found = {}
    slips = {"none": {}, "mean": {"mean": (0.5 + 1 / 255, 0.5, 0.5)}, "std": {"std": (0.25, 0.25, 0.2525)}}
    trials = gate.make_trials(Extractor(), "bytes", gate.draw_patches(10, (40, 21)))  # no picture of the network's size
    assert [trial.wide for trial in trials] == [False, True, True, True]
    for name, slip in slips.items():
        findings, _ = gate.check(bytes_run(**slip), trials, gate.limits_of(kind, "bytes"))
        found[name] = [finding for finding in findings if finding.startswith("batch 1 of 32 x 16: largest difference")]
    assert {name: len(findings) for name, findings in found.items()} == {"none": 0, "mean": 1, "std": 1}


def test_white_and_black_are_looked_at(monkeypatch):
    monkeypatch.setattr(gate, "BATCHES", (1, 2, 3))
    made = gate.make_trials(Extractor(), "images", gate.draw_patches(6, (32, 16)))
    white, black = made[1].inputs[0]
    assert (white == 2).all() and (black == -2).all() and made[1].name == "batch 2, white and black"
    for level in (2, -2):
        blind = lambda images, level=level: np.where(  # noqa: E731
            (images == level).all(axis=(1, 2, 3))[:, None], np.float32(np.nan), run_with(lambda f: f)(images))
        findings, _ = gate.check(blind, made, gate.LIMITS["fp32"])
        assert len(findings) == 2 and all("batch 2, white and black" in finding for finding in findings)
    assert gate.check(run_with(lambda f: f), made, gate.LIMITS["fp32"])[0] == []


def test_features_that_are_zero_on_plain_pictures_may_be(monkeypatch):
    monkeypatch.setattr(gate, "BATCHES", (2,))

    class Blind(Extractor):
        def forward(self, images):
            return super().forward(images) * (images.std(dim=(1, 2, 3), keepdim=True) > 0).flatten(1)

    made = gate.make_trials(Blind(), "images")
    assert not made[0].reference.any()
    assert gate.check(gate.on_arrays(Blind()), made, gate.LIMITS["fp32"])[0] == []
    assert len(gate.check(run_with(lambda f: f), made, gate.LIMITS["fp32"])[0]) == 1


@pytest.mark.parametrize("first", [32, 64])
def test_rows_beyond_the_blocks_of_a_runtime_are_looked_at(monkeypatch, first):
    monkeypatch.undo()  # the batches of the product
    made = gate.make_trials(Extractor(), "images")
    negated = lambda f: np.concatenate([f[:first], -f[first:]])  # noqa: E731
    findings, _ = gate.check(run_with(negated), made, gate.LIMITS["int8"])
    assert [finding.split(":")[0] for finding in findings] == ["batch 67"] * 2


def test_pictures_of_the_check_are_not_those_of_the_trace():
    traced, checked = gate.draw_patches(6, (32, 16), seed=0), gate.draw_patches(42, (32, 16))
    apart = np.abs(traced[:, None].astype(int) - checked[None]).max(axis=(2, 3, 4))
    assert apart.min() > 25


def test_inputs_are_made_by_what_a_file_says_and_features_by_the_network():
    class Said:
        input_size, mean, std = (16, 8), (0.4,) * 3, (0.5,) * 3

    for ours, own in zip(trials(Said), trials(), strict=True):
        assert ours.inputs[0].shape[2:] == (16, 8) and np.array_equal(ours.reference, own.reference)
    picture = gate.draw_patches(3, (32, 16), seed=2)[:1]
    assert np.array_equal(trials(Said)[0].inputs[0], gate.normalised(picture, Said).numpy())


def test_patches_stand_in_where_there_are_too_few_pictures():
    patches = gate.draw_patches(1, (32, 16))
    *_, last = trials()[-1].inputs[0]
    assert np.array_equal(last, gate.normalised(patches, Means)[0].numpy())


def test_bytes_come_in_sizes_above_and_below_the_networks(monkeypatch):
    monkeypatch.setattr(gate, "BATCHES", (1, 2, 3, 4))
    made = gate.make_trials(Extractor(), "bytes", gate.draw_patches(10, (32, 16)))
    heights = [trial.inputs[0].shape[1] for trial in made]
    assert min(heights) < 32 < max(heights) and len(set(heights)) == 4
    assert all(trial.inputs[0].dtype == np.uint8 for trial in made)


def test_bytes_are_batched_as_long_as_their_size_stays():
    pictures = [picture for size in ((8, 4), (9, 4), (8, 4)) for picture in gate.draw_patches(2, size)]
    inputs = gate.inputs_of(pictures, "bytes", Means)
    assert [pixels.shape for (pixels,) in inputs] == [(2, 8, 4, 3), (2, 9, 4, 3), (2, 8, 4, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, (p for (block,) in inputs for p in block), strict=True))


def test_pictures_are_spread_over_a_folder_and_broken_ones_are_named(tmp_path):
    for number in range(10):
        draw(tmp_path / "a b" / f"{number}é.jpg", number, (10 + number, 20))
    (tmp_path / "notes.txt").write_text("no image")
    paths = gate.list_pictures(tmp_path)
    assert [Path(path).name for path in gate.spread(paths, 4)] == ["0é.jpg", "2é.jpg", "5é.jpg", "7é.jpg"]
    assert [picture.shape for picture in gate.open_pictures(paths[:2])] == [(20, 10, 3), (20, 11, 3)]
    (tmp_path / "broken.jpg").write_bytes(Path(paths[0]).read_bytes()[:200])
    Image.fromarray(np.full((32, 16), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"2 images cannot be read(.|\n)*broken.jpg(.|\n)*deep.png: grey of more"):
        gate.open_pictures(gate.list_pictures(tmp_path))
    with pytest.raises(ValueError, match="no images"):
        (tmp_path / "empty").mkdir()
        gate.list_pictures(tmp_path / "empty")


# A ranking ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranking(drawn_root):
    return gate.rank_dataset(Extractor(), "images", "synthetic", drawn_root)


def test_ranking_of_the_same_features_is_the_same(ranking):
    findings, report = ranking.check(run_with(lambda f: f), gate.LIMITS["fp32"])
    assert findings == [] and report["top10_overlap"] == 1 and report["mAP"] == report["mAP_pytorch"]
    assert "4 of 4 persons" in report["dataset"]


def test_ranking_that_gets_worse_is_named(ranking):
    rng = np.random.default_rng(0)
    noisy = lambda f: np.float32(f + rng.standard_normal(f.shape))  # noqa: E731
    findings, _ = ranking.check(run_with(noisy), gate.LIMITS["int8"])
    assert any("mAP" in finding for finding in findings) and any("ten nearest" in finding for finding in findings)


@pytest.mark.parametrize("score", ["rank1", "mAP"])
def test_each_score_of_a_ranking_is_looked_at(ranking, monkeypatch, score):
    worse = ranking.expected | {score: ranking.expected[score] - 100.2 / ranking.num_queries - 1}
    monkeypatch.setattr(ranking, "scores", lambda _: worse)
    findings, _ = ranking.check(run_with(lambda f: f), gate.LIMITS["fp32"])
    assert len(findings) == 1 and f": {score} {worse[score]:.2f} instead of" in findings[0]


def test_a_ranking_of_bytes_reads_files_as_they_are(ranking, drawn_root):
    files = gate.rank_dataset(Extractor(), "bytes", "synthetic", drawn_root)
    run = lambda pixels: Extractor()(gate.normalised(pixels, Means)).numpy()  # noqa: E731
    assert np.abs(files.features(run) - ranking.reference).max() < 1e-6


def test_some_persons_keep_their_share_of_distractors(drawn_root, ranking):
    some = gate.rank_dataset(Extractor(), "images", "synthetic", drawn_root, persons=2)
    pids = [set(ids.tolist()) for ids in some.ids[:2]]
    strangers = [int((r.ids[1] == 0).sum()) for r in (some, ranking)]
    assert len(pids[0]) == 2 and pids[0] == pids[1] - {0} and strangers[0] == strangers[1] / 2
    assert some.name.startswith("synthetic, 2 of 4 persons")


def test_tracklets_are_refused_for_a_network_for_images(video_root):
    with pytest.raises(ValueError, match="synthetic-video is of tracklets"):
        gate.rank_dataset(Extractor(), "images", "synthetic-video", video_root)


class Tracklets(Extractor):
    def forward(self, clips, mask):
        features = 1 + self.model(clips.flatten(0, 1)).unflatten(0, mask.shape)  # of black frames something is seen
        return nn.functional.normalize((features * mask.unsqueeze(2)).sum(1), dim=1)


def test_tracklets_of_a_set_are_padded_and_masked(video_root):
    ranked = gate.rank_dataset(Tracklets(), "clips", "synthetic-video", video_root, seq_len=12)
    run = lambda clips, mask: Tracklets()(torch.from_numpy(clips), torch.from_numpy(mask)).numpy()  # noqa: E731
    findings, report = ranked.check(run, gate.LIMITS["fp32"])
    assert findings == [] and report["mAP"] == report["mAP_pytorch"]
    assert len(set(map(len, ranked.frames))) > 1
    blind = lambda clips, mask: run(clips, np.ones_like(mask))  # noqa: E731
    assert np.abs(ranked.features(run) - ranked.reference).max() < 1e-6
    assert np.abs(ranked.features(blind) - ranked.reference).max() > 1e-3


def test_top_overlap_counts_by_hand():
    gallery = np.eye(4, dtype=np.float32)
    query = np.float32([[4, 3, 2, 1]])
    other = np.float32([[4, 1, 2, 3]])
    assert gate.top_overlap((query, gallery), (query, gallery), 2) == 1
    assert gate.top_overlap((other, gallery), (query, gallery), 2) == 0.5
    assert gate.top_overlap((other, gallery), (query, gallery), 10) == 1  # all there are


def test_pictures_stand_in_where_there_is_no_data_set(tmp_path):
    paths = [draw(tmp_path / f"{number}.png", number, (20, 40)) for number in range(40)]
    stand_in = gate.rank_pictures(Extractor(), "images", "40 calibration images", paths)
    assert stand_in.check(run_with(lambda f: f), gate.LIMITS["int8"])[0] == []
    rng = np.random.default_rng(0)
    noisy = lambda f: np.float32(f + rng.standard_normal(f.shape))  # noqa: E731
    findings, report = stand_in.check(run_with(noisy), gate.LIMITS["int8"])
    assert len(findings) == 2 and "stand in for a data set" in findings[0]
    assert report["stand_in"] == "40 calibration images"
