"""Tests of threshold.py: pairs and rates by hand and beside metrics.verification; storing them in a file.

python -m pytest tests/searching/test_threshold.py
"""

import os
import re
import stat

import numpy as np
import onnx
import pytest
import torch
from tiny_onnx import METADATA, person, write_model

import metrics
from searching import threshold
from searching.extractor import Extractor


def labelled(count, persons, seed=0, noise=0.6):
    """Features (N, D) of length 1 around a centre per person, pids from 1, camids."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((persons, 16))
    pids, camids = rng.integers(persons, size=count), rng.integers(4, size=count)
    features = centres[pids] + noise * rng.standard_normal((count, 16))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), pids + 1, camids


def test_pairs_by_hand():
    """Angles of 0, 90 and 180 degrees. Person 1 under cameras 1 and 2 and again 1, person 2, nobody twice, junk."""
    x, y = [1, 0], [0, 1]
    features = np.array([x, x, y, [-1, 0], y, y, x], np.float32)
    pids, camids = [1, 1, 1, 2, 0, 0, -1], ["1", "1", "2", "1", "1", "2", "1"]
    # genuine: 0-2 and 1-2 at 90 degrees; 0-1 is one camera. impostor: 0-3, 1-3 opposite; 2-3 at 90; each of 4 with both
    # of nobody: 0, 1 and 3 at 90, 2 at 0 degrees; nobody with nobody, and junk, are no pairs.
    for nobody, same in ((True, 0), (False, 1)):  # in a set of one's own, the two of person 0 are one person
        genuine, impostor = threshold.count_pairs(features, pids, camids, bins=4, nobody=nobody)
        assert genuine.tolist() == [0, 0, 2, same] and impostor.tolist() == [2, 0, 7, 2]
    names = ["01", "c1", "cam 2", "Camera 1", "1.0", 2, 1]
    assert threshold.count_pairs(features, pids, names, bins=4)[0].tolist() == [0, 0, 2, 1]
    large = [pid + 10**20 if pid > 0 else pid for pid in pids]  # 21 digits
    assert threshold.count_pairs(features, large, camids, bins=4)[0].tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize("camids, count, said", [
    (["", "", "", ""], 3, "all pairs of one person, as no camera is known; those under one camera are easier"),
    (["3", "3", "3", "3"], 3, "all pairs of one person, all under camera 3, which are easier than under two"),
    (["3", "3", "4", "4"], 2, "pairs of one person under two cameras"),
    (["3", "", "4", "4"], 1, "pairs of one person under two cameras; 1 of 4 images are of unknown cameras and only in "
                             "pairs of two persons"),
    (["3", "3", "", ""], 0, "pairs of one person under two cameras; 2 of 4 images are of unknown cameras and only in "
                            "pairs of two persons"),
    ([3, 3, 4, 4], 2, "pairs of one person under two cameras"),
])  # fmt: skip
def test_which_pairs_count_follows_from_the_cameras_and_is_said(camids, count, said, monkeypatch):
    """Three images of person 1, one of 2, and junk under another camera, which does not count as one."""
    features, pids, camids = np.array([[1, 0]] * 5, np.float32), [1, 1, 1, 2, -1], [*camids, "9"]
    genuine, impostor = threshold.count_pairs(features, pids, camids, bins=4)
    assert genuine.tolist() == [0, 0, 0, count] and impostor.tolist() == [0, 0, 0, 3]
    monkeypatch.setattr(threshold, "LEAST", 1)
    if count:
        assert threshold.calibrate(features, pids, camids, 0.5)["compared"] == said
        return
    with pytest.raises(ValueError, match="no pair of one person to compare") as error:
        threshold.calibrate(features, pids, camids, 0.5)
    assert f"({said}): label images of the same persons under several cameras" in str(error.value)


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("fmr", [0.001, 0.01, 0.1])
def test_rates_are_those_of_metrics_verification(fmr, block, monkeypatch):
    """All against all, where each pair stands twice, which changes no rate."""
    monkeypatch.setattr(threshold, "BLOCK", block)
    features, pids, camids = labelled(400, 30)
    point = threshold.calibrate(features, pids, camids, fmr, bins=4096)
    ids = [torch.from_numpy(ids) for ids in (pids, pids, camids, camids)]
    roc = metrics.verification(features, features, *ids, bins=4096)
    theirs = metrics.operating_point(roc, fmr=fmr, draws=1)
    assert point["pairs"] == [roc["num_genuine"] // 2, roc["num_impostor"] // 2]
    assert point["similarity"] == pytest.approx(1 - theirs["threshold"], abs=2 * roc["resolution"])
    tolerance = 3 / point["pairs"][0]  # pairs within rounding of a bin's edge
    assert point["fnmr"] == pytest.approx(theirs["fnmr"], abs=tolerance)
    assert point["fmr"] == pytest.approx(theirs["fmr"], abs=fmr / 20) and point["fmr"] <= fmr
    assert point["eer"] == pytest.approx(roc["eer"], abs=tolerance)


def test_the_threshold_keeps_what_it_promises():
    """Counted anew from the similarities, pair by pair."""
    features, pids, camids = labelled(150, 12)
    point = threshold.calibrate(features, pids, camids, 0.02)
    genuine, impostor = [], []
    for i in range(150):
        for j in range(i):
            if pids[i] != pids[j]:
                impostor.append(features[i] @ features[j])
            elif camids[i] != camids[j]:
                genuine.append(features[i] @ features[j])
    assert point["pairs"] == [len(genuine), len(impostor)]
    assert np.mean(np.array(impostor) >= point["similarity"]) == pytest.approx(point["fmr"], abs=1e-9)
    assert np.mean(np.array(genuine) < point["similarity"]) == pytest.approx(point["fnmr"], abs=1e-9)
    lower = point["similarity"] - 2 / threshold.BINS
    assert np.mean(np.array(impostor) >= lower) > 0.02  # the next lower one would not


def test_rates_that_cannot_be_resolved_are_refused():
    features, pids, camids = labelled(40, 5)
    _, impostor = threshold.count_pairs(features, pids, camids)
    with pytest.raises(ValueError, match=rf"{impostor.sum():,} pairs of two .* rate of 0.001, which takes 10,000 of"):
        threshold.calibrate(features, pids, camids, 0.001)
    smallest = threshold.LEAST / impostor.sum()
    threshold.calibrate(features, pids, camids, smallest * 1.01)
    for count in (40, 41, 50, 60):  # the rate that is told is resolved, and one of its digits less is not
        features, pids, camids = labelled(count, 5)
        with pytest.raises(ValueError, match="the smallest rate that they resolve is ") as error:
            threshold.calibrate(features, pids, camids, 0.001)
        told = re.search("resolve is ([^;]*);", str(error.value))[1]
        threshold.calibrate(features, pids, camids, float(told))
        with pytest.raises(ValueError, match="cannot resolve"):
            threshold.calibrate(features, pids, camids, float(told) - 10.0 ** -(len(told) - 2))


def test_what_cannot_be_calibrated():
    features, pids, camids = labelled(40, 5)
    with pytest.raises(ValueError, match="no pair of one person to compare .pairs of one person under two cameras"):
        threshold.calibrate(features, np.arange(1, 41), camids, 0.1)
    with pytest.raises(ValueError, match="between 0 and 1, not 2"):
        threshold.calibrate(features, pids, camids, 2)


POINT = {"similarity": 0.6, "fmr": 0.001, "fnmr": 0.2, "dataset": "shop", "pairs": [10, 10000]}


def test_store_changes_nothing_but_the_threshold(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    os.chmod(path, 0o640)
    before, images = Extractor(path, "cpu"), [person(1), person(2)]
    threshold.store(before, POINT)
    after = Extractor(path, "cpu")
    assert after.threshold == POINT and after.metadata == METADATA | {"threshold": POINT}
    assert after(images).tobytes() == before(images).tobytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and os.listdir(tmp_path) == ["m.onnx"]
    threshold.store(after, POINT | {"fmr": 0.01})
    assert Extractor(path, "cpu").threshold["fmr"] == 0.01


def test_store_writes_into_the_file_that_a_link_leads_to(tmp_path):
    (tmp_path / "store").mkdir()
    path = write_model(tmp_path / "store" / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    threshold.store(Extractor(tmp_path / "link.onnx", "cpu"), POINT)
    assert (tmp_path / "link.onnx").is_symlink() and Extractor(path, "cpu").threshold == POINT
    assert sorted(os.listdir(tmp_path)) == ["link.onnx", "store"] and os.listdir(tmp_path / "store") == ["m.onnx"]


def test_store_leaves_the_file_where_something_fails(tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.onnx")
    data = path.read_bytes()

    embed, run = Extractor(path, "cpu"), Extractor.run

    def drift(self, rows):
        stored = {entry.key for entry in onnx.load(self.path).metadata_props}
        assert stored == {"reid"}
        features = run(self, rows)
        return features if self.threshold is None else features[:, ::-1]

    monkeypatch.setattr(Extractor, "run", drift)
    with pytest.raises(ValueError, match="m.onnx: with a threshold it would give other features; it was left as it is"):
        threshold.store(embed, POINT)
    monkeypatch.undo()
    assert path.read_bytes() == data and os.listdir(tmp_path) == ["m.onnx"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="m.onnx: no threshold could be stored in it .No space left on device"):
        threshold.store(embed, POINT)
    assert path.read_bytes() == data and os.listdir(tmp_path) == ["m.onnx"]
