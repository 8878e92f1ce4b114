"""Tests of evaluate.py through `train.py --evaluate`: what is printed and written, against features computed here.

python -m pytest tests/training/test_evaluate.py
"""

import csv
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import draw, run_main
from PIL import Image
from test_data import BUILDERS

import data
import models
import pictures
from images import read_image
from training import evaluate
from training.pixels import normalise


def write_weights(path, arch, pids=(), run=None, **options):
    """A checkpoint of a network that has learnt nothing; run: the flags of the run that it pretends to be of."""
    torch.manual_seed(3)
    model = models.build_model(arch, 6, **options)
    content = {"arch": arch, "num_ids": 6, "options": options, "model": model.state_dict(), "distance": "cosine"}
    torch.save(content | ({"args": run, "pids": list(pids)} if run else {}), path)
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
        images = np.stack([read_image(item.paths[0], (160, 64)) for item in items[::-1][start : start + 12]])
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.no_grad():
            features.append(model(normalise(images, model.mean, model.std)).double().numpy())
    features = np.concatenate(features)[::-1]
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def flags_of(weights, root):
    return ["--evaluate", "--weights", weights, "--dataset", "synthetic", "--root", root, "--device", "cpu"]


def test_everything_is_printed_and_written(boxes, weights, tmp_path, capsys, monkeypatch):
    reads, load = [], data.load_multi_query
    monkeypatch.setattr(data, "load_multi_query", lambda name, *rest: reads.append(name) or load(name, *rest))
    extra = ["--rerank", "--expand", 3, "--multi-query", "average", "--maps", 2, "--out", tmp_path / "new" / "report"]
    code, out, _ = run_main(capsys, *flags_of(weights, boxes), *extra)
    assert code == 0 and reads == ["synthetic"]
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
        assert int(row["matches"]) == len(right) and int(row["pid"]) == item.pid and int(row["camid"]) == item.camid + 1
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

    monkeypatch.setattr(pictures, "cmc_curves", missing)
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


@pytest.mark.parametrize("flags", [["--expand", "5"], ["--multi-query", "maximum"]])
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
    draw = pictures.maps_grid
    monkeypatch.setattr(models, "explain", known_maps(given))
    monkeypatch.setattr(pictures, "maps_grid", lambda *parts: drawn.append(parts) or draw(*parts))
    flags = ["--maps", wanted, "--out", tmp_path / "report", "--test-batch-size", 3]
    code, out, _ = run_main(capsys, *flags_of(light_weights, root), *flags)
    assert code == 0 and "maps.jpg" in out.splitlines()[-1]
    queries = data.load_dataset("synthetic", root).query
    assert len(queries) == 16
    names, images, activation, attention, regions = drawn[0]
    assert list(names) == [queries[row].paths[0] for row in expected]
    seen = np.stack([read_image(name, (64, 32)) for name in names])
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
        assert code == 0 and 4 * 160 < picture.width < 6 * 160 and picture.width < 2 * picture.height  # four across


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


# ----------------------------------------------------------------------------------------------------------------------
# Tracklets


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A root with a user's own tracklets of 1 to 11 frames: six persons in two cameras, and weights for them."""
    root, lines = tmp_path_factory.mktemp("shop"), ["path,pid,camid,tracklet,split"]
    for pid, camid in itertools.product(range(1, 7), (1, 2)):
        for frame in range((5 * pid + camid) % 11 + 1):
            name = f"{pid}-{camid}-{frame:02}.png"
            draw(root / "shop" / name, 1000 * pid + 20 * camid + frame)
            lines.append(f"{name},{pid},{camid},{pid}{camid},{'query' if camid == 1 else 'gallery'}")
    (root / "shop" / "items.csv").write_text("\n".join(lines))
    return root, write_weights(root / "image.pth", "osnet_x0_25", input_size=(64, 32))


def rows_of(folder):
    with open(folder / "queries.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("flags", "seq_len", "pool"),
    [
        ([], 8, np.mean),  # a network for images tests tracklets by the average
        (["--temporal", "max", "--test-batch-size", 3], 8, np.max),
        (["--temporal", "avg", "--seq-len", 2], 2, np.mean),
        (["--test-sample", "all", "--seq-len", 2, "--test-batch-size", 4], 99, np.mean),
    ],
)
def test_a_network_for_images_tests_tracklets(shop, tmp_path, capsys, quick, flags, seq_len, pool):
    root, weights = shop
    model, _ = models.load_checkpoint(weights)
    features = {}
    splits = data.read_dataset("folder:shop", root)
    for item in splits.query + splits.gallery:
        count = min(len(item.paths), seq_len)  # by hand: every n-th, n as large as it can be
        paths = item.paths[:: len(item.paths) // count][:count]
        images = torch.from_numpy(np.stack([read_image(path, (64, 32)) for path in paths])).permute(0, 3, 1, 2)
        with torch.no_grad():
            frames = model(normalise(images, model.mean, model.std)).double().numpy()
        feature = pool(frames, axis=0)
        features[item] = feature / np.linalg.norm(feature)
    flags = [*flags, "--dataset", "folder:shop", "--root", root, "--device", "cpu", "--out", tmp_path]
    code, out, err = run_main(capsys, "--evaluate", "--weights", weights, *flags)
    assert code == 0 and "6 queries" in out, err
    for row, query in zip(rows_of(tmp_path), splits.query, strict=True):
        distances = {item.pid: 1 - features[query] @ features[item] for item in splits.gallery}
        wrong = min((distance, pid) for pid, distance in distances.items() if pid != query.pid)
        assert row["query"] == query.paths[0] and int(row["pid"]) == query.pid
        assert float(row["match_distance"]) == pytest.approx(distances[query.pid], abs=3e-6)
        assert float(row["wrong_distance"]) == pytest.approx(wrong[0], abs=3e-6)


def test_pooling_may_be_exchanged_where_nothing_is_learned():
    image = models.build_model("osnet_x0_25", 2, input_size=(64, 32))
    for model, temporal, pooling in (
        (image, "avg", "avg"), (image, "max", "max"), (models.VideoModel(image, "avg"), "max", "max"),
        (models.VideoModel(image, "max"), "max", "max"),
        (models.VideoModel(image, "attention"), "attention", "attention"),
    ):  # fmt: skip
        found = evaluate.pool_otherwise(model, temporal, "run/best.pth")
        assert found.pooling == pooling and found.frames is image and (found.training is False or found is model)
    for model, temporal in (
        (image, "attention"), (models.VideoModel(image, "avg"), "attention"),
        (models.VideoModel(image, "attention"), "avg"), (models.VideoModel(image, "attention"), "max"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"--temporal {temporal}: run/best.pth was trained with another"):
            evaluate.pool_otherwise(model, temporal, "run/best.pth")


def test_maps_show_the_middle_of_a_tracklet(shop, capsys, tmp_path, monkeypatch, quick):
    root, weights = shop
    drawn = []
    draw_grid = pictures.maps_grid
    monkeypatch.setattr(models, "explain", known_maps([]))
    monkeypatch.setattr(pictures, "maps_grid", lambda *parts: drawn.append(parts) or draw_grid(*parts))
    flags = ["--dataset", "folder:shop", "--root", root, "--device", "cpu", "--out", tmp_path, "--test-sample", "all"]
    assert run_main(capsys, "--evaluate", "--weights", weights, *flags, "--maps", 6)[0] == 0
    queries = data.read_dataset("folder:shop", root).query
    expected = [read_image(item.paths[len(item.paths) // 2], (64, 32)) for item in queries]
    assert np.array_equal(drawn[0][1], np.stack(expected))


def test_frames_are_chosen_as_the_run_of_the_checkpoint_did_and_flags_win(shop, tmp_path, capsys, quick):
    root, plain = shop
    run = {"dataset": ["folder:shop"], "seq_len": 3, "test_sample": "random", "min_frames": 5}
    weights = write_weights(tmp_path / "run.pth", "osnet_x0_25", run=run, input_size=(64, 32))
    older = write_weights(tmp_path / "old.pth", "osnet_x0_25", run={"dataset": "folder:shop"}, input_size=(64, 32))

    def evaluated(weights, *flags):
        flags = ["--dataset", "folder:shop", "--root", root, "--device", "cpu", *flags]
        code, out, err = run_main(capsys, "--evaluate", "--weights", weights, *flags)
        assert code == 0, err
        lines = out.splitlines()
        told = next(line for line in lines if "of each tracklet" in line)
        return told, next(line for line in lines if line.startswith("folder:shop: rank-1"))

    told, line = evaluated(weights)
    assert "up to 3 frames, random, of each tracklet of 5 frames or more" in told
    asked = ["--seq-len", 3, "--test-sample", "random", "--min-frames", 5]
    assert (told, line) == evaluated(plain, *asked) and line != evaluated(plain)[1]
    told, line = evaluated(weights, "--seq-len", 8, "--test-sample", "evenly", "--min-frames", 0)
    assert (told, line) == evaluated(plain) == evaluated(older)
    assert "up to 8 frames, evenly, of each tracklet (--seq-len" in told
    assert "all frames of each tracklet of 5 " in evaluated(weights, "--test-sample", "all")[0]


def test_a_network_that_left_out_short_tracklets_tests_images_all_the_same(root, tmp_path, capsys, quick):
    run = {"dataset": ["mars"], "min_frames": 4}
    weights = write_weights(tmp_path / "run.pth", "squeezenet1_1", run=run, input_size=(64, 32))
    code, out, err = run_main(capsys, *flags_of(weights, root))
    assert code == 0 and "of each tracklet" not in out, err


# ----------------------------------------------------------------------------------------------------------------------
# Targets


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """A root with the miniature trees of some sets; do not write into it."""
    root = tmp_path_factory.mktemp("forest")
    for name in ("viper", "market1501", "prid", "ilidsvid"):
        BUILDERS["prid2011" if name == "prid" else name](root)
    return root


def evaluated(capsys, weights, root, *flags):
    """What train.py --evaluate prints."""
    code, out, err = run_main(capsys, "--evaluate", "--weights", weights, "--root", root, "--device", "cpu", *flags)
    assert code == 0, err
    return out


def test_persons_who_were_trained_on_are_warned_of(forest, tmp_path, capsys, quick):
    """Of VIPeR an odd split is the one before in the other direction; market1501-500k has the persons of market1501."""
    pids = {name: [{i.pid for i in data.read_dataset(name, forest, split=k).train} for k in range(10)]
            for name in ("viper", "prid", "prid2011", "ilidsvid")}  # fmt: skip

    def weights(name, split=0, learnt=(), **run):
        run = {"dataset": name.split(), "split": split, **run}
        return write_weights(tmp_path / "w.pth", "squeezenet1_1", pids=sorted(learnt), run=run, input_size=(64, 32))

    cases = [  # trained on, split, pids, flags of the test, whether it warns
        ("viper", 2, pids["viper"][2], ["--dataset", "viper"], None),
        ("viper", 2, pids["viper"][2], ["--dataset", "viper", "--split", 3], None),
        ("viper", 2, pids["viper"][2], ["--dataset", "viper", "--split", 4], "persons that viper tests on"),
        ("market1501", 0, {2, 1500}, ["--dataset", "market1501-500k", "market1501"], None),
        ("market1501", 0, {1, 2, 1500}, ["--dataset", "market1501-500k"], "1 of the 2 persons that market1501-500k"),
        ("ilidsvid", 9, pids["ilidsvid"][9], ["--dataset", "ilidsvid-single", "--split", 9], None),
        ("ilidsvid", 9, pids["ilidsvid"][9], ["--dataset", "ilidsvid-single"], "that ilidsvid-single tests on"),
        ("prid2011", 0, pids["prid2011"][0], ["--dataset", "prid", "--split", 0], "trained on"),
        ("prid2011 viper", 4, {1, 2, 3}, ["--dataset", "viper", "--split", 5], None),  # several, numbered anew
        ("prid2011 viper", 4, {1, 2, 3}, ["--dataset", "viper", "--split", 0], "that viper tests on"),
        ("mars prid2011", 4, {1, 2, 3}, ["--dataset", "market1501"], "mars and market1501 both show people"),
        ("grid", 4, {1, 2, 3}, ["--dataset", "viper", "--split", 5], None),
    ]
    assert pids["prid2011"][0] & {i.pid for i in data.read_dataset("prid", forest).query}
    for name, split, learnt, flags, warning in cases:
        out = evaluated(capsys, weights(name, split, learnt), forest, *flags)
        assert ("warning" in out) == bool(warning) and (warning or "") in out, (name, split, flags, out)
    out = evaluated(capsys, weights("market1501", 0, {1, 2, 1488, 1500}, combine_all=True), forest,
                    "--dataset", "market1501-500k")  # fmt: skip
    assert "2 of the 2 persons that market1501-500k tests on were trained on, as market1501 shows them" in out
    for combine in (False, True):  # several sets, numbered anew
        weights("viper market1501", 0, {1, 2, 3}, combine_all=combine)
        out = evaluated(capsys, tmp_path / "w.pth", forest, "--dataset", "market1501-500k")
        assert ("2 of the 2 persons that market1501-500k tests on" in out) == combine == ("warning" in out)


def test_what_is_wrong_with_the_last_target_is_said_before_the_work_on_the_first(forest, tmp_path, capsys, monkeypatch):
    weights = write_weights(tmp_path / "w.pth", "squeezenet1_1", input_size=(64, 32))
    BUILDERS["viper"](tmp_path)
    BUILDERS["market1501"](tmp_path)
    monkeypatch.setattr(evaluate, "report", lambda *_: pytest.fail("the first is worked on"))
    spoilt = next((tmp_path / "viper/VIPeR/cam_b").glob("0*.bmp"))
    flags = ["--evaluate", "--weights", weights, "--root", tmp_path, "--device", "cpu", "--dataset", "market1501"]
    for spoil in (lambda: spoilt.write_bytes(b"no image"), lambda: shutil.rmtree(tmp_path / "viper")):
        spoil()
        code, _, err = run_main(capsys, *flags, "viper")
        assert code == 1 and "viper" in err
    code, out, err = run_main(capsys, *flags, "--multi-query", "average")
    assert code == 1 and "gt_bbox" in err and "decoding" not in out


def test_splits_and_numbers_of_frames_are_decoded_once(forest, tmp_path, capsys, quick, monkeypatch):
    weights = write_weights(tmp_path / "w.pth", "squeezenet1_1", input_size=(64, 32))
    cache = ["--cache", tmp_path / "cache"]
    alone = {}
    for name, flag, values in (("viper", "--split", (0, 1, 6)), ("ilidsvid", "--seq-len", (2, 1, 3))):
        for value in values:
            with monkeypatch.context() as patch:
                if value != values[0]:
                    patch.setattr("images.read_image", lambda *_: pytest.fail("decoded again"))
                out = evaluated(capsys, weights, forest, "--dataset", name, flag, value, *cache)
            alone[name, value] = [line for line in out.splitlines() if ": rank-1 " in line]
    monkeypatch.setattr("training.pixels.SHARED", 0)  # each by itself: the same scores
    for name, flag, values in (("viper", "--split", (0, 1, 6)), ("ilidsvid", "--seq-len", (2, 1, 3))):
        for value in values:
            out = evaluated(capsys, weights, forest, "--dataset", name, flag, value, "--cache", tmp_path / "other")
            assert [line for line in out.splitlines() if ": rank-1 " in line] == alone[name, value]


def test_a_set_of_one_camera(tmp_path, capsys, quick):
    for pid, part in itertools.product((1, 2, 3), ("train", "query", "gallery")):
        draw(tmp_path / "shop" / part / f"{pid + 10 * (part == 'train')}_c1_{part}.jpg", seed=100 * pid + len(part))
    weights = write_weights(tmp_path / "w.pth", "squeezenet1_1", input_size=(64, 32))
    flags = ["--evaluate", "--weights", weights, "--dataset", "folder:shop", "--root", tmp_path, "--device", "cpu"]
    code, _, err = run_main(capsys, *flags)
    assert code == 1 and "one camera" in err and "--protocol no_camera_rule" in err
    code, out, err = run_main(capsys, *flags, "--protocol", "no_camera_rule")
    assert code == 0 and "(%, 3 queries, cosine distance, no_camera_rule protocol)" in out, err
    light = ["--arch", "squeezenet1_1", "--options", "input_size=64,32", "--epochs", 1, "--warmup-epochs", 0]
    light += ["--batch-size", 2, "--out", tmp_path / "run", "--protocol", "no_camera_rule"]
    code, out, err = run_main(capsys, *light, *flags[3:])
    assert code == 0 and "no_camera_rule protocol)" in out, err
    (command,) = re.findall(r"python train.py (--evaluate .*)", out)  # what the run proposes works
    assert run_main(capsys, *command.split(), "--device", "cpu")[0] == 0


# ----------------------------------------------------------------------------------------------------------------------
# Files that are equal


def test_equal_files_are_told_of_before_training_and_remembered_until_one_changes(tmp_path, capsys, monkeypatch):
    root = tmp_path / "root"
    BUILDERS["market1501"](root)
    base = root / "market1501" / "Market-1501-v15.09.15"
    train, query = base / "bounding_box_train/0002_c1s1_000451_03.jpg", base / "query/0001_c1s1_001051_00.jpg"
    shutil.copyfile(train, query)
    light = ["--arch", "osnet_x0_25", "--options", "input_size=64,32", "--epochs", 1, "--batch-size", 2]
    light += ["--warmup-epochs", 0, "--device", "cpu", "--dataset", "market1501", "--root", root, "--out"]
    told = f"1 images of train are in query or gallery too, so scores flatter: {train} = {query}. Take them out of "
    out = run_main(capsys, *light, tmp_path / "first")[1]
    assert out.count(told) == 1 and out.index(told) < out.index("step    1/")

    with monkeypatch.context() as patch:
        patch.setattr(data, "check_files", lambda *_, **__: pytest.fail("every file is read again"))
        evaluate.load_set("market1501", evaluate.Sets(str(root)))
    assert capsys.readouterr().out.count(told) == 1
    draw(query, seed=77)
    for _ in range(2):
        evaluate.load_set("market1501", evaluate.Sets(str(root)))
        assert "flatter" not in capsys.readouterr().out
    assert len(list((root / ".pixels").glob("*-checked-*"))) == 1, "what is stale goes"
    shutil.copyfile(train, query)
    for content in (b"", b"somebody else's\n", b"\xff\xfe", None):
        evaluate.load_set("market1501", evaluate.Sets(str(root)))
        (memo,) = (root / ".pixels").glob("*-checked-*")
        memo.unlink()
        os.mkfifo(memo) if content is None else memo.write_bytes(content)
        capsys.readouterr()
        evaluate.load_set("market1501", evaluate.Sets(str(root)))
        assert told in capsys.readouterr().out, "a memo that is empty, or of somebody else, counts as none"
        assert memo.read_text().count(told) == 1
    (tmp_path / "file").write_text("a file, where the cache should be")
    evaluate.load_set("market1501", evaluate.Sets(str(root), cache=str(tmp_path / "file")))
    assert told in capsys.readouterr().out


def test_what_equal_files_mean_depends_on_the_split(tmp_path, capsys):
    """Two persons with the same picture: a leak where one of them is trained on, else a contradiction."""
    BUILDERS["prid450s"](tmp_path)
    shutil.copyfile(tmp_path / "prid450s/cam_a/img_001.png", tmp_path / "prid450s/cam_a/img_450.png")
    sides = []
    for split in (0, 1, 2, 3, 0, 1, 2, 3):
        splits = evaluate.load_set("prid450s", evaluate.Sets(str(tmp_path), split))
        out = capsys.readouterr().out
        trained = {item.pid for item in splits.train} & {1, 450}
        sides.append(len(trained) == 1)
        assert ("images of train are in query" in out) == sides[-1]
        assert ("the numbers of two persons" in out) != sides[-1]
    assert len(set(sides)) == 2, "both occur"


def test_what_equal_files_mean_depends_on_whose_they_are(tmp_path, capsys):
    """The same files with other numbers in items.csv."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw(tmp_path / "own" / f"{name}.jpg", seed)
    for pid, fragment in ((2, "have the numbers of two persons"), (1, "are there more than once")):
        (tmp_path / "own" / "items.csv").write_text(f"path,pid,camid\na.jpg,1,1\nb.jpg,{pid},2\nc.jpg,3,2\n")
        for _ in range(2):
            evaluate.load_set("folder:own", evaluate.Sets(str(tmp_path)), evaluate=False)
            assert f"1 images {fragment}" in capsys.readouterr().out
