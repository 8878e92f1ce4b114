"""Tests of what a notebook calls: features of files and of tracklets, scores of splits, an epoch on a list of items.

python -m pytest tests/training/test_extraction.py
"""

import numpy as np
import pytest
import torch
from conftest import draw
from torch import nn

import data
import metrics
import models
import train
from images import read_image
from training import evaluate
from training.pixels import Pixels, build_train_set, load_pixels, normalise

LENGTHS = [1, 3, 7, 2, 1, 12, 5]


class Projection(nn.Module):
    """A network whose feature is a linear map of the pixels; notes how many images it was given at a time."""

    input_size, feature_dim, mean, std = (4, 2), 6, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

    def __init__(self):
        super().__init__()
        self.layer, self.given = nn.Linear(24, 6), []

    def forward(self, x):
        self.given.append(len(x))
        return self.layer(x.flatten(1))


def video_model(pooling):
    """Around a Projection, with weights of attention that no longer stand at their beginning."""
    torch.manual_seed(2)
    model = models.VideoModel(Projection(), pooling)
    for parameter in model.attention.parameters() if model.attention is not None else ():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("batch_size", [1, 3, 7, 31, 1000])
@pytest.mark.parametrize("pooling", models.POOLING)
def test_extraction_equals_one_tracklet_at_a_time(pooling, batch_size):
    model = video_model(pooling).train()
    array = np.random.default_rng(0).integers(0, 256, (sum(LENGTHS), 4, 2, 3), dtype=np.uint8)
    clips = np.split(np.arange(len(array)), np.cumsum(LENGTHS)[:-1])
    found = evaluate.extract_features(model, Pixels(["x"] * len(array), (4, 2), array), clips, batch_size=batch_size)
    assert found.dtype == torch.float32 and found.shape == (len(LENGTHS), 6) and not model.training
    assert max(model.frames.given) <= batch_size and sum(model.frames.given) == len(array), "each frame once"
    x = torch.tensor((array / 255 - model.mean) / model.std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.cat([model(x[rows].unsqueeze(0)) for rows in clips])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_extraction_of_tracklets_of_one_frame_needs_no_pooling():
    model = video_model("attention")
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 2, 3), dtype=np.uint8)
    pixels, clips = Pixels(["x"] * 5, (4, 2), array), np.split(np.arange(5), 5)
    plain = evaluate.extract_features(model.frames, pixels, batch_size=2)
    assert torch.equal(evaluate.extract_features(model.frames, pixels, clips, batch_size=2), plain)
    torch.testing.assert_close(evaluate.extract_features(model, pixels, clips, batch_size=2), plain)


@pytest.mark.parametrize(("method", "numbers"), [("evenly", [0, 2, 4, 6]), ("all", list(range(11))), ("random", None)])
def test_frames_that_are_tested_on(method, numbers):
    lengths = enumerate([2, 11, 1])
    items = [data.Item(tuple(f"{pid}_{frame}.jpg" for frame in range(length)), pid, 0) for pid, length in lengths]
    testing = evaluate.Testing(seq_len=4, sampling=method)
    paths, clips = evaluate.choose_clips(items, testing)
    assert evaluate.choose_clips(items, testing)[0] == paths, "every evaluation looks at the same frames"
    assert np.array_equal(np.concatenate(clips), np.arange(len(paths)))
    chosen = [[paths[row] for row in rows] for rows in clips]
    assert chosen[0] == list(items[0].paths) and chosen[2] == list(items[2].paths)
    if numbers is None:
        assert len(chosen[1]) == 4 and chosen[1] == sorted(set(chosen[1]), key=items[1].paths.index)
    else:
        assert chosen[1] == [items[1].paths[frame] for frame in numbers]


def test_features_of_files(tmp_path):
    paths = [str(draw(tmp_path / f"{n}.jpg", n, size=(9, 5 + n))) for n in range(5)]
    model = video_model("avg").frames
    x = torch.from_numpy(np.stack([read_image(path, (4, 2)) for path in paths])).permute(0, 3, 1, 2)
    with torch.no_grad():
        straight, mirrored = (model(normalise(side, model.mean, model.std)) for side in (x, x.flip(-1)))
    torch.testing.assert_close(evaluate.extract(model, paths, batch_size=2), straight)
    torch.testing.assert_close(evaluate.extract(model, paths, flip=True), (straight + mirrored) / 2)


def test_the_five_lines_of_readme(drawn_root, tmp_path, capsys):
    """Load a checkpoint, load a data set, score: what metrics.py gives for features that are taken here."""
    torch.manual_seed(0)
    fresh = models.build_model("osnet_x0_25", 6, input_size=(64, 32))
    content = {"arch": "osnet_x0_25", "num_ids": 6, "options": {"input_size": (64, 32)}, "model": fresh.state_dict()}
    torch.save(content, tmp_path / "best.pth")

    model, _ = models.load_checkpoint(tmp_path / "best.pth")
    splits = data.load_dataset("synthetic", drawn_root)
    scores = evaluate.score(model, splits)

    sides = [evaluate.extract(model, [item.paths[0] for item in side]) for side in (splits.query, splits.gallery)]
    pids, camids = ([np.array([item[i] for item in side]) for side in (splits.query, splits.gallery)] for i in (1, 2))
    expected = metrics.evaluate(*sides, *pids, *camids)
    assert scores["mAP"] == pytest.approx(float(expected["mAP"]), abs=1e-6) and 0 < scores["mAP"] < 1
    assert scores["rank1"] == float(expected["cmc"][0]) and scores["queries"] == len(splits.query)
    other = evaluate.score(model, splits, distance="euclidean", flip=True, protocol="no_camera_rule")
    assert (other["distance"], other["flip"], other["protocol"]) == ("euclidean", True, "no_camera_rule")


def test_scores_of_tracklets_in_a_notebook(video_root):
    splits = data.load_dataset("synthetic-video", video_root)
    model = models.build_model("osnet_x0_25", 3, input_size=(64, 32))
    assert 0 < evaluate.score(model, splits, seq_len=2)["mAP"] <= 1
    assert evaluate.score(models.VideoModel(model, "max"), splits, seq_len=2)["queries"] == len(splits.query)


def test_an_epoch_on_a_list_of_items(drawn_root, tmp_path, capsys):
    """As the module docstring of train.py has it; the same epoch from decoded pixels as from files."""
    items = data.load_dataset("synthetic", drawn_root).train
    paths, ended = [path for item in items for path in item.paths], []
    for cache in (None, tmp_path):
        torch.manual_seed(0)
        model = models.build_model("osnet_x0_25", 6, input_size=(64, 32))
        train_set = build_train_set(items, load_pixels(paths, model.input_size, cache), batch_size=8)
        state = train.fresh_state()
        assert train.train_epoch(train.prepare(model, train_set, lr=1e-3), state)
        ended.append(model.state_dict())
        assert state["step"] == len(items) // 8 and state["totals"]["images"] == 8 * (len(items) // 8)
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    assert "accuracy" in capsys.readouterr().out
