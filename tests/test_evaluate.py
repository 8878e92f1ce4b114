"""Tests of evaluate.py through `train.py --evaluate`: what is printed and written, against features computed here.

python -m pytest tests/test_evaluate.py
"""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_main
from PIL import Image

import data
import decode
import evaluate
import loader
import models
import visualize


def write_weights(path, arch, **options):
    """A checkpoint of a network that has learnt nothing."""
    torch.manual_seed(3)
    model = models.build_model(arch, 6, **options)
    content = {"arch": arch, "num_ids": 6, "options": options, "model": model.state_dict(), "distance": "cosine"}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "fresh.pth", "hacnn")


@pytest.fixture(scope="module")
def light_weights(tmp_path_factory):
    """For tests of what is said and written, which any network serves."""
    path = tmp_path_factory.mktemp("weights") / "light.pth"
    return write_weights(path, "squeezenet1_1", input_size=(64, 32))


@pytest.fixture
def quick(monkeypatch):
    """No rows in the table of verification: their intervals take longest of all."""
    monkeypatch.setattr(evaluate, "RATES", ())


@pytest.fixture
def boxes(root):
    """A root whose set has a gt_bbox: for each query a copy of it, as other shots would be."""
    folder = root / "synthetic" / "Market-1501-v15.09.15"
    shutil.copytree(folder / "query", folder / "gt_bbox")
    return root


def features_of(items, weights):
    """Unit features, in small batches from the last image to the first: order and company must not matter."""
    model, _ = models.load_checkpoint(weights)
    features = []
    for start in range(0, len(items), 12):
        images = np.stack([decode.read_image(item.paths[0], (160, 64)) for item in items[::-1][start : start + 12]])
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.no_grad():
            features.append(model(loader.normalise(images, model.mean, model.std)).double().numpy())
    features = np.concatenate(features)[::-1]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def flags_of(weights, root):
    return ["--evaluate", "--weights", weights, "--dataset", "synthetic", "--root", root, "--device", "cpu"]


def test_everything_is_printed_and_written(boxes, weights, tmp_path, capsys):
    extra = ["--rerank", "--expand", 3, "--multi-query", "average", "--maps", 2, "--out", tmp_path / "new" / "report"]
    code, out, _ = run_main(capsys, *flags_of(weights, boxes), *extra)
    assert code == 0
    splits = data.load_dataset("synthetic", boxes)
    capsys.readouterr()
    q, g = np.split(features_of(splits.query + splits.gallery, weights), [len(splits.query)])
    content = json.loads((tmp_path / "new" / "report" / "scores.json").read_text())
    plain, pooled, expanded, reranked = content["ranking"]
    for summary in content["ranking"]:
        assert evaluate.score_line(summary) in out.splitlines()
    assert pooled["mAP"] == pytest.approx(plain["mAP"], abs=1e-6)  # each place has one image, the query itself
    assert expanded["mAP"] != plain["mAP"] and reranked["mAP"] not in (plain["mAP"], expanded["mAP"])
    assert reranked["distance"] == "k-reciprocal cosine"

    with open(tmp_path / "new" / "report" / "queries.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == [item.paths[0] for item in splits.query]
    assert np.mean([float(row["ap"]) for row in rows]) == pytest.approx(plain["mAP"], abs=1e-6)
    assert np.mean([row["first_hit"] == "1" for row in rows]) == pytest.approx(plain["rank1"], abs=1e-6)
    place = {item.paths[0]: i for i, item in enumerate(splits.gallery)}
    for i, (row, item) in enumerate(zip(rows, splits.query, strict=True)):
        distances = 1 - g @ q[i]
        right = [j for j, other in enumerate(splits.gallery) if other.pid == item.pid and other.camid != item.camid]
        wrong = [j for j, other in enumerate(splits.gallery) if other.pid != item.pid]
        assert int(row["matches"]) == len(right) and int(row["pid"]) == item.pid and int(row["camid"]) == item.camid
        for kind, among in (("match", right), ("wrong", wrong)):
            nearest = place[row[f"nearest_{kind}"]]
            assert nearest in among
            assert float(row[f"{kind}_distance"]) == pytest.approx(distances[nearest], abs=3e-6)
            assert distances[nearest] == pytest.approx(distances[among].min(), abs=3e-6)
        assert int(row["wrong_pid"]) == splits.gallery[place[row["nearest_wrong"]]].pid

    verification = content["verification"]
    pids = np.array([item.pid for item in splits.query])[:, None] == [item.pid for item in splits.gallery]
    camids = np.array([item.camid for item in splits.query])[:, None] == [item.camid for item in splits.gallery]
    genuine, impostor = (1 - q @ g.T)[pids & ~camids], (1 - q @ g.T)[~pids]
    assert (verification["num_genuine"], verification["num_impostor"]) == (len(genuine), len(impostor))
    assert f"{len(impostor):,} of two" in out
    for point in verification["points"][:2]:  # at 0.1 and 0.01
        assert point["fmr"] <= point["wanted"]
        assert point["fmr"] == pytest.approx((impostor < point["threshold"]).mean(), abs=2 / len(impostor))
        assert 1 - point["fnmr"] == pytest.approx((genuine < point["threshold"]).mean(), abs=2 / len(genuine))
    assert "(DIR)" in out and len(content["open_set"]) == 2
    for name in ("cmc.png", "roc.png", "maps.jpg"):
        with Image.open(tmp_path / "new" / "report" / name) as picture:
            assert picture.format == {"png": "PNG", "jpg": "JPEG"}[name[-3:]] and picture.width > 400


def test_nothing_is_written_without_out_and_flags_choose_the_protocol(
    root, light_weights, capsys, tmp_path, monkeypatch, quick
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    flags = flags_of(light_weights, root)
    code, out, _ = run_main(capsys, *flags)
    assert code == 0 and sorted(tmp_path.iterdir()) == before
    other = run_main(capsys, *flags, "--protocol", "no_camera_rule", "--distance", "euclidean")[1]
    line = next(line for line in other.splitlines() if line.startswith("synthetic: rank-1"))
    assert "euclidean distance, no_camera_rule protocol" in line and line not in out
    pairs = [next(line for line in text.splitlines() if line.startswith("verification")) for text in (out, other)]
    assert pairs[0] != pairs[1]  # with the own camera there are more pairs of one person


def test_without_matplotlib_the_tables_are_written(root, light_weights, capsys, tmp_path, monkeypatch, quick):
    def missing(*arguments):
        raise ImportError("No module named 'matplotlib'")

    monkeypatch.setattr(visualize, "cmc_curves", missing)
    code, out, _ = run_main(capsys, *flags_of(light_weights, root), "--out", tmp_path / "report")
    assert code == 0 and "matplotlib is not installed" in out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["queries.csv", "scores.json"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--multi-query", "average"], 1, "/gt_bbox. DATASETS.md says"),
        (["--multi-query", "mean"], 2, "average"),
        (["--expand", "-1"], 2, "--expand must be at least 0"),
        (["--protocol", "mars"], 2, "no_camera_rule"),
        (["--maps", "4"], 2, "the folder --out of --evaluate"),
        (["--maps", "-1", "--out", "x"], 2, "0 to 100 queries"),
        (["--maps", "101", "--out", "x"], 2, "0 to 100 queries"),
    ],
)
def test_wrong_flags(root, light_weights, capsys, flags, code, message):
    got, _, err = run_main(capsys, *flags_of(light_weights, root), *flags)
    assert got == code and message in err


@pytest.mark.parametrize("flags", [["--rerank"], ["--expand", "5"], ["--multi-query", "maximum"]])
def test_flags_of_evaluation_are_refused_in_training(root, capsys, flags):
    code, _, err = run_main(capsys, "--dataset", "synthetic", "--root", root, *flags)
    assert code == 2 and "belong to --evaluate" in err


def test_maps_are_refused_in_training(root, capsys, tmp_path):
    code, _, err = run_main(capsys, "--dataset", "synthetic", "--root", root, "--maps", 2, "--out", tmp_path / "run")
    assert code == 2 and "the folder --out of --evaluate" in err and not (tmp_path / "run").exists()


def known_maps(given):
    """A models.explain that answers with the mean of each image, and keeps what it was given."""

    def explain(model, images):
        assert not model.training
        given.append(images)
        level = images.mean(dim=(1, 2, 3))[:, None, None]  # (B, 1, 1), tells which image it was
        stages = [level + torch.full((len(images), stage, 2), float(stage)) for stage in (1, 2, 3)]
        boxes = [level + torch.tensor([0, 0, 16, 32 + stage]).expand(1, 4, 4) for stage in (1, 2, 3)]
        return {"activation": level.expand(-1, 4, 2), "attention": stages, "regions": boxes}

    return explain


@pytest.mark.parametrize(("wanted", "expected"), [(4, [0, 4, 8, 12]), (1, [0]), (100, list(range(16)))])
def test_maps_show_queries_of_the_whole_list(
    wanted, expected, root, light_weights, capsys, tmp_path, monkeypatch, quick
):
    """What is drawn: these queries, as the network sees them, each with what explain says of it."""
    given, drawn = [], []
    draw = visualize.maps_grid
    monkeypatch.setattr(models, "explain", known_maps(given))
    monkeypatch.setattr(visualize, "maps_grid", lambda *parts: drawn.append(parts) or draw(*parts))
    flags = ["--maps", wanted, "--out", tmp_path / "report", "--test-batch-size", 3]
    code, out, _ = run_main(capsys, *flags_of(light_weights, root), *flags)
    assert code == 0 and "maps.jpg" in out.splitlines()[-1]
    queries = data.load_dataset("synthetic", root).query
    assert len(queries) == 16
    names, images, activation, attention, regions = drawn[0]
    assert list(names) == [queries[row].paths[0] for row in expected]
    seen = np.stack([decode.read_image(name, (64, 32)) for name in names])
    assert (images == seen).all()
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    levels = ((seen / 255 - mean) / deviation).mean(axis=(1, 2, 3))
    assert activation.shape == (len(expected), 4, 2)
    np.testing.assert_allclose(activation[:, 0, 0], levels, atol=1e-5)
    for stage, (maps, boxes) in enumerate(zip(attention, regions, strict=True), start=1):
        assert maps.shape == (len(expected), stage, 2) and boxes.shape == (len(expected), 4, 4)
        np.testing.assert_allclose(maps[:, 0, 0], levels + stage, atol=1e-5)
        np.testing.assert_allclose(boxes[:, 3, 3], levels + 32 + stage, atol=1e-5)
    assert [len(batch) for batch in given][:-1] == [3] * (len(given) - 1)
    with Image.open(tmp_path / "report" / "maps.jpg") as picture:
        assert picture.format == "JPEG" and picture.height > 320 * len(expected)


def test_maps_of_a_network_without_attention(root, light_weights, capsys, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(models, "explain", lambda _, x: {"activation": torch.zeros(len(x), 2, 1)})
    code, _, _ = run_main(capsys, *flags_of(light_weights, root), "--maps", 2, "--out", tmp_path)
    with Image.open(tmp_path / "maps.jpg") as picture:
        assert code == 0 and picture.width < 3 * 160 < picture.height  # two columns of 160 x 320


def test_a_folder_that_cannot_be_made_is_said_before_the_work(root, light_weights, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, out, err = run_main(capsys, *flags_of(light_weights, root), "--out", tmp_path / "file" / "report")
    assert code == 1 and "file/report" in err and "rank-1" not in out


def test_rates_that_so_few_pairs_cannot_show_are_not_printed():
    roc = {"num_genuine": 20, "num_impostor": 500, "eer": 0.1}
    point = {"threshold": 0.4, "fmr": 0.02, "fnmr": 0.25, "fmr_interval": (0.01, 0.03), "fnmr_interval": (0.2, 0.4)}
    lines = evaluate.verification_table(roc, [point] * 4).splitlines()
    assert "75.00 %" in lines[2] and "60.0..80.0 %" in lines[2] and "1.00e-02..3.00e-02" in lines[3]
    assert all("cannot be measured" in line for line in lines[4:]) and len(lines) == 6
