import csv
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

import search

H, W, DIM = 32, 16, 24
MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.125]  # unlike each other, so that swapped channels show
METADATA = {
    "schema": 1, "arch": "tiny", "input_size": [H, W], "mean": MEAN, "std": STD, "colour_order": "RGB",
    "resize": "Pillow BILINEAR", "feature_dim": DIM, "l2_normalised": True, "distance": "cosine", "threshold": None,
    "dataset": "market1501", "scores": {"rank1": 0.5}, "weights_sha256": "0" * 64,
}  # fmt: skip


def write_model(path, metadata=METADATA, batch="batch", size=(H, W), normalise=True):
    """A graph whose features are the means of 8 x 8 patches, L2-normalised. Returns path."""
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("LpNormalization" if normalise else "Neg", ["flat"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *size])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 3 * (size[0] // 8) * (size[1] // 8)])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"reid": json.dumps(metadata)})
    onnx.save(model, path)
    return path


def person(pid, camid=0, size=(64, 128)):
    """A PIL image of 8 x 4 coloured blocks drawn from the pid alone, with a little noise drawn from the camera."""
    blocks = np.random.default_rng(pid).integers(40, 216, (8, 4, 3))
    pixels = np.kron(blocks, np.ones((16, 16, 1))) + np.random.default_rng(camid).integers(-20, 21, (128, 64, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize(size)


def broken_images(folder):
    """A truncated JPEG and a text file named .jpg."""
    person(1).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("this is no image")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny.onnx")


@pytest.fixture
def market(tmp_path):
    """Queries of persons 1 to 4 under camera 1. Gallery: 1 and 2 under two cameras each, nobody is 3, 4 under camera 1
    only; a distractor and junk."""
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    query.mkdir()
    gallery.mkdir()
    for pid in (1, 2, 3, 4):
        person(pid, 1).save(query / f"000{pid}_c1s1_000001_00.jpg")
    for pid in (1, 2):
        person(pid, 1).save(gallery / f"000{pid}_c1s1_000002_01.jpg")
        person(pid, 2).save(gallery / f"000{pid}_c2s1_000003_01.jpg")
    person(4, 1).save(gallery / "0004_c1s1_000006_01.jpg")
    person(3, 3).save(gallery / "0000_c3s1_000004_01.jpg")
    person(1, 3).save(gallery / "-1_c3s1_000005_01.jpg")
    return query, gallery


def command(model, query, gallery, out, *more):
    return ["--model", str(model), "--query", str(query), "--gallery", str(gallery), "--out", str(out),
            "--provider", "cpu", *more]  # fmt: skip


def read_csv(out):
    with open(out / "ranked.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cuda_usable():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plain onnxruntime warns about a provider it was not built with
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )  # fmt: skip
        tiny = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(
            tiny.SerializeToString(), options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    return session.get_providers()[0] == "CUDAExecutionProvider"


# ---- imports ----

@pytest.mark.parametrize("prelude", ["", "sys.modules.update(torch=None, torchvision=None, matplotlib=None);"])
def test_search_needs_neither_torch_nor_matplotlib(prelude, model, market, tmp_path):
    """Once watching what a whole search imports, once with both packages made unimportable."""
    argv = command(model, *market, tmp_path / "out")
    code = (f"import sys; {prelude} import search, visualize; search.main({argv!r}); "
            "bad = [m for m in ('torch', 'torchvision', 'matplotlib') if sys.modules.get(m)]; assert not bad, bad")
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(search.__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# ---- images ----

@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_read_image_is_pillow_rgb_bilinear(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    person(5, size=(50, 90)).convert(mode).save(path)
    pixels = search.read_image(path, (H, W))
    assert pixels.shape == (H, W, 3) and pixels.dtype == np.uint8
    expected = Image.open(path).convert("RGB").resize((W, H), Image.Resampling.BILINEAR)
    assert pixels.tobytes() == expected.tobytes()


def test_read_image_leaves_exif_rotation_alone(tmp_path):
    image, exif = person(5), Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "turned.jpg", exif=exif)
    same = [search.read_image(tmp_path / name, (H, W)).tobytes() for name in ("plain.jpg", "turned.jpg")]
    assert same[0] == same[1]


def test_list_images_sorted_recursive_without_hidden_files(tmp_path):
    names = ["b.JPG", "a.jpeg", "sub/c.png", "sub/deep/d.bmp", "e.tif", "f.TIFF", "g.webp", "sub-x/h.jpg"]
    others = [".hidden.jpg", "._a.jpeg", "Thumbs.db", "notes.txt", ".cache/i.jpg", "sub/.git/j.png", "noextension"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in search.list_images(tmp_path)]
    assert found == ["a.jpeg", "b.JPG", "e.tif", "f.TIFF", "g.webp", "sub-x/h.jpg", "sub/c.png", "sub/deep/d.bmp"]


# ---- features ----

def slow_feature(image):
    """What the tiny model means, in float64 with loops."""
    pixels = np.asarray(image.convert("RGB").resize((W, H), Image.Resampling.BILINEAR))
    feature = []
    for channel in range(3):
        for top in range(0, H, 8):
            for left in range(0, W, 8):
                patch = pixels[top : top + 8, left : left + 8, channel]
                feature.append(np.mean((patch / 255 - MEAN[channel]) / STD[channel]))
    return np.array(feature) / np.linalg.norm(feature)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_extractor_equals_slow_reference(batch_size, model):
    images = [person(pid, size=(40 + pid, 70 + 3 * pid)) for pid in range(8)]
    features = search.Extractor(model, "cpu", batch_size)(images)
    assert features.dtype == np.float32 and features.shape == (8, DIM)
    np.testing.assert_allclose(features, [slow_feature(image) for image in images], atol=1e-6)


def test_paths_images_and_arrays_give_the_same_features(model, tmp_path):
    paths = []
    for pid in range(5):
        person(pid).save(tmp_path / f"{pid}.png")
        paths.append(tmp_path / f"{pid}.png")
    extractor = search.Extractor(model, "cpu")
    images = [Image.open(path) for path in paths]
    expected = extractor(paths)
    for same in ([str(path) for path in paths], images, [np.asarray(image) for image in images],
                 np.stack([np.asarray(image) for image in images]), (path for path in paths)):  # fmt: skip
        assert extractor(same).tobytes() == expected.tobytes()
    for one in (paths[0], str(paths[0]), images[0], np.asarray(images[0])):
        np.testing.assert_allclose(extractor(one), expected[:1], atol=1e-6)
    assert extractor([]).shape == (0, DIM)


def test_extractor_says_what_it_is(model):
    extractor = search.Extractor(model, "cpu")
    assert (extractor.input_size, extractor.feature_dim) == ((H, W), DIM)
    assert (extractor.mean, extractor.std) == (tuple(MEAN), tuple(STD))
    assert (extractor.distance, extractor.threshold) == ("cosine", None)
    assert extractor.provider == "CPUExecutionProvider" and extractor.metadata == METADATA


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)])
def test_extractor_refuses_other_arrays(array, model):
    with pytest.raises(TypeError, match=r"uint8 array \(H, W, 3\)"):
        search.Extractor(model, "cpu")([array])


def test_extractor_raises_for_unreadable_image_and_extract_lists_it(model, tmp_path):
    broken_images(tmp_path)
    for pid in range(4):
        person(pid).save(tmp_path / f"{pid}.png")
    paths = [tmp_path / name for name in
             ("0.png", "truncated.jpg", "1.png", "2.png", "text.jpg", "gone.png", "3.png")]  # fmt: skip
    extractor = search.Extractor(model, "cpu", batch_size=2)
    with pytest.raises(OSError, match="truncated"):
        extractor(paths)
    features, read, unreadable = search.extract(extractor, paths)
    assert [path.name for path in read] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_allclose(features, [slow_feature(Image.open(path)) for path in read], atol=1e-6)
    assert [path.name for path, _ in unreadable] == ["truncated.jpg", "text.jpg", "gone.png"]
    for (_, reason), expected in zip(unreadable, ["truncated", "cannot identify", "No such file"], strict=True):
        assert expected in reason


def test_decoding_runs_ahead_but_not_away(monkeypatch):
    """One list in hand and two ahead: a gallery of millions must not pile up in memory."""
    started = []
    monkeypatch.setattr(search, "to_pixels", lambda image, size: started.append(image))
    lists = search.decode_ahead(list(range(20)), (H, W), 2)
    assert [image for image, _ in next(lists)] == [0, 1]
    lists.close()  # waits for the threads
    assert sorted(started) == [0, 1, 2, 3, 4, 5]


def test_features_that_are_not_normalised_are_refused(tmp_path):
    extractor = search.Extractor(write_model(tmp_path / "raw.onnx", normalise=False), "cpu")
    with pytest.raises(ValueError, match="instead of 1"):
        extractor([person(1)])


def test_failure_inside_the_model_is_no_traceback(model, market, tmp_path, monkeypatch):
    """A model that stops in the middle, as it does when a GPU runs out of memory."""
    monkeypatch.setattr(search, "resize", lambda image, size: np.zeros((H + 8, W, 3), np.uint8))
    with pytest.raises(SystemExit, match="CPUExecutionProvider failed on a batch of 4; try fewer .*dimension"):
        search.main(command(model, *market, tmp_path / "out"))


# ---- the model file ----

@pytest.mark.parametrize("change, message", [
    ({"schema": 2}, "schema 2, this search.py reads 1"),
    ({"mean": None, "feature_dim": None}, "lacks mean, feature_dim"),
    ({"colour_order": "BGR"}, "colour_order 'BGR'"),
    ({"resize": "bicubic"}, "resize 'bicubic'"),
    ({"l2_normalised": False}, "l2_normalised False"),
    ({"input_size": [W, H]}, "input_size"),
    ({"feature_dim": 7}, "feature_dim 7"),
])  # fmt: skip
def test_metadata_is_checked(change, message, tmp_path):
    metadata = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        search.Extractor(write_model(tmp_path / "m.onnx", metadata), "cpu")


def test_model_without_metadata_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="not written by export.py.*input_size, mean, std"):
        search.Extractor(write_model(tmp_path / "m.onnx", None), "cpu")


def test_fixed_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="any batch"):
        search.Extractor(write_model(tmp_path / "m.onnx", batch=4), "cpu")


@pytest.mark.parametrize("provider", ["cpu", "auto"])
@pytest.mark.parametrize("content", [b"", b"this is no model", "half"])
def test_foreign_file_is_refused(provider, content, model, tmp_path):
    data = model.read_bytes()
    (tmp_path / "bad.onnx").write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match="bad.onnx: onnxruntime cannot load"):
        search.Extractor(tmp_path / "bad.onnx", provider)


def test_unknown_provider(model):
    with pytest.raises(ValueError, match="'gpu' is unknown; choose from auto, cpu, cuda"):
        search.Extractor(model, "gpu")


def test_cuda_fails_rather_than_fall_back(model, market, tmp_path):
    if cuda_usable():
        pytest.skip("CUDA works on this machine")
    with pytest.raises(RuntimeError, match="cannot use CUDA here"):
        search.Extractor(model, "cuda")
    with pytest.raises(SystemExit, match="cannot use CUDA here"):
        search.main([*command(model, *market, tmp_path / "out"), "--provider", "cuda"])


def test_cuda_gives_the_features_of_the_cpu(model):
    if not cuda_usable():
        pytest.skip("no CUDA device that onnxruntime can use")
    images = [person(pid) for pid in range(7)]
    extractor = search.Extractor(model, "cuda")
    assert extractor.provider == "CUDAExecutionProvider" == search.Extractor(model, "auto").provider
    np.testing.assert_allclose(extractor(images), search.Extractor(model, "cpu")(images), atol=1e-5)


def test_auto_takes_the_cpu_without_a_word(model, capfd):
    if cuda_usable():
        pytest.skip("CUDA works on this machine")
    capfd.readouterr()
    assert search.Extractor(model, "auto").provider == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        cuda_usable()
        assert "CUDA" in capfd.readouterr().err  # onnxruntime speaks up again for whoever uses it next


# ---- ranking ----

def slow_top_k(queries, gallery, k, left_out):
    """Sorts everything, for each query: the most similar first, equal ones in gallery order."""
    rows = []
    for q, query in enumerate(queries):
        allowed = [g for g in range(len(gallery)) if not left_out[q, g]]
        rows.append(sorted(allowed, key=lambda g: -(gallery[g] @ query))[:k])  # sorted is stable
    return rows


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 5, 60, 300])
def test_top_k_equals_a_full_stable_sort(block, k, monkeypatch):
    """Small whole numbers: products are exact, so they do not depend on the block, and many are equal."""
    monkeypatch.setattr(search, "QUERY_BLOCK", 4)
    rng = np.random.default_rng(block + k)
    queries, gallery = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (11, 250))
    query_keys, gallery_keys = rng.integers(0, 5, 11), rng.integers(0, 5, 250)
    more = np.arange(11), np.full(250, 3)  # leaves nothing for query 3
    left_out = (query_keys[:, None] == gallery_keys) | (more[0][:, None] == more[1])
    indices, similarities = search.top_k(queries, gallery, k, [(query_keys, gallery_keys), more], block)
    for q, expected in enumerate(slow_top_k(queries, gallery, k, left_out)):
        assert indices[q].tolist() == expected + [-1] * (k - len(expected))
        assert similarities[q, : len(expected)].tolist() == (gallery[expected] @ queries[q]).tolist()
    assert (indices[3] == -1).all()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_top_k_of_real_features(block):
    rng = np.random.default_rng(block)
    queries, gallery = (rng.standard_normal((n, 16)).astype(np.float32) for n in (5, 400))
    indices, similarities = search.top_k(queries, gallery, 10, block=block)
    exact = queries.astype(float) @ gallery.T.astype(float)
    assert indices.tolist() == np.argsort(-exact, axis=1, kind="stable")[:, :10].tolist()
    np.testing.assert_allclose(similarities, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)


# ---- the command ----

def test_command_under_market1501_protocol(model, market, tmp_path, capsys):
    """By hand, all queries being of camera 1: query 1 may see 0001_c2, both 0002, the distractor and 0004, not 0001_c1
    and not junk. The same for 2. Query 3 has no match; the distractor, which looks like 3, is a wrong answer. The only
    match of query 4 is left out."""
    query, gallery = market
    broken_images(gallery)
    (gallery / "truncated.jpg").rename(gallery / "0001_c4s1_000009_01.jpg")
    out = tmp_path / "new" / "out"
    assert search.main(command(model, query, gallery, out, "--labels", "market1501", "--top", "3")) == 0
    printed = capsys.readouterr().out
    rows = read_csv(out)
    assert list(rows[0]) == ["query", "rank", "similarity", "gallery", "match"]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 4
    assert [int(Path(row["query"]).name[:4]) for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert rows[0]["gallery"] == str(gallery / "0001_c2s1_000003_01.jpg")
    assert rows[3]["gallery"] == str(gallery / "0002_c2s1_000003_01.jpg")
    assert rows[6]["gallery"] == str(gallery / "0000_c3s1_000004_01.jpg")
    assert [row["match"] for row in rows] == ["1", "0", "0", "1", "0", "0", *"000000"]
    a, b = (search.Extractor(model, "cpu")(Path(rows[0][key])) for key in ("query", "gallery"))
    assert float(rows[0]["similarity"]) == pytest.approx(float(a[0] @ b[0]), abs=1e-5)
    listed = {Path(row["gallery"]).name for row in rows[:3]}
    assert not listed & {"0001_c1s1_000002_01.jpg", "-1_c3s1_000005_01.jpg", "0001_c4s1_000009_01.jpg"}
    assert "rank-1: 2 of the 2 queries that have a match" in printed
    assert "runs on: CPUExecutionProvider" in printed and "images/s" in printed
    assert "2 images could not be read" in printed
    assert f"{gallery / '0001_c4s1_000009_01.jpg'}: image file is truncated" in printed
    assert f"{gallery / 'text.jpg'}: cannot identify" in printed
    with Image.open(out / "ranked.jpg") as picture:
        assert picture.format == "JPEG"


def test_command_without_labels_and_with_itself_as_gallery(model, market, tmp_path, capsys):
    """Each image but the query itself is ranked, also when one path goes through a symbolic link. No array is as
    large as --top says."""
    _, gallery = market
    (tmp_path / "link").symlink_to(gallery)
    assert search.main(command(model, tmp_path / "link", gallery, tmp_path / "out", "--top", str(10**13))) == 0
    rows = read_csv(tmp_path / "out")
    assert list(rows[0]) == ["query", "rank", "similarity", "gallery"]
    assert len(rows) == 7 * 6
    assert all(Path(row["query"]).name != Path(row["gallery"]).name for row in rows)
    assert f"--top {10**13} is more than the gallery's 7" in capsys.readouterr().out


def test_command_with_one_query_and_odd_names(model, market, tmp_path, capsys):
    name = "ein Bild, café 名前.png"
    person(2, 5).save(market[1] / name)
    person(2, 6).save(os.fsencode(market[1]) + b"/caf\xe9.png")  # not UTF-8
    assert search.main(command(model, market[0] / "0002_c1s1_000001_00.jpg", market[1], tmp_path / "out")) == 0
    assert name in capsys.readouterr().out
    data = (tmp_path / "out" / "ranked.csv").read_bytes()
    assert name.encode() in data and b"caf\xe9.png" in data


@pytest.mark.parametrize("query_pid, gallery_pid, match", [
    (1, 1, True), (1, 2, False), (1, 0, False), (0, 0, None), (-1, 5, None), (search.NO_LABEL, search.NO_LABEL, None),
    (1, search.NO_LABEL, None),
])  # fmt: skip
def test_is_match(query_pid, gallery_pid, match):
    assert search.is_match(query_pid, gallery_pid) is match


def test_more_queries_than_are_drawn(model, tmp_path, capsys, monkeypatch):
    drawn, draw = [], search.ranked_grid
    monkeypatch.setattr(search, "ranked_grid", lambda rows: drawn.extend(rows) or draw(rows))
    for pid in range(23):
        person(pid).save(tmp_path / f"{pid:02d}.png")
    assert search.main(command(model, tmp_path, tmp_path, tmp_path / "out", "--top", "22")) == 0
    assert len(read_csv(tmp_path / "out")) == 23 * 22
    printed = capsys.readouterr().out
    assert [len(ranked) for _, ranked in drawn] == [20] * 20
    assert "all 23 queries" in printed and "the first 20, 20 answers each" in printed


def fails(capsys, argv, code):
    """The message of a command that must end with this exit code."""
    with pytest.raises(SystemExit) as stop:
        search.main(argv)
    if code == 2:
        assert stop.value.code == 2
        return capsys.readouterr().err
    assert isinstance(stop.value.code, str)  # python prints it on stderr and exits with 1
    return stop.value.code


@pytest.mark.parametrize("more, message", [
    (["--top", "0"], "--top 0, --batch-size 32: both have to be at least 1"),
    (["--top", "ten"], "--top: invalid int value: 'ten'"),
    (["--batch-size", "-1"], "--batch-size -1: both have to be at least 1"),
    (["--provider", "gpu"], "invalid choice: 'gpu'"),
    (["--labels", "duke"], "invalid choice: 'duke'"),
    (["--galery", "x"], "unrecognized arguments: --galery x"),
])  # fmt: skip
def test_usage_errors(more, message, model, market, tmp_path, capsys):
    assert message in fails(capsys, [*command(model, *market, tmp_path / "out"), *more], 2)


def test_missing_flag(capsys):
    assert "required: --query, --gallery" in fails(capsys, ["--model", "m.onnx"], 2)


def test_bad_inputs(model, market, tmp_path, capsys):
    query, gallery = market
    empty, bad, out = tmp_path / "empty", tmp_path / "bad", tmp_path / "out"
    empty.mkdir()
    bad.mkdir()
    broken_images(bad)
    text = bad / "text.jpg"
    for argv, message in [
        (command(tmp_path / "no.onnx", query, gallery, out), "no.onnx: no such file"),
        (command(text, query, gallery, out), "text.jpg: onnxruntime cannot load"),
        (command(model, tmp_path / "no.jpg", gallery, out), "--query"),
        (command(model, query, tmp_path / "nowhere", out), "nowhere: no such file or folder"),
        (command(model, query, empty, out), "empty: no image in or below this folder"),
        (command(model, empty, gallery, out), "--query"),
        (command(model, query, gallery, text / "out"), "cannot write there (Not a directory)"),
        (command(model, query, gallery, text), "cannot write there (File exists)"),
        (command(model, query, gallery, "/proc"), "--out /proc: cannot write there"),
        (command(model, query, bad, out, "--labels", "market1501"), "--gallery: no name gives person and camera"),
        (command(model, query, bad, out), "nothing could be ranked"),
        (command(model, text, gallery, out), "nothing could be ranked"),
        (command(model, gallery / "-1_c3s1_000005_01.jpg", gallery / "-1_c3s1_000005_01.jpg", out), "nothing could"),
    ]:  # fmt: skip
        assert message in fails(capsys, argv, 1)
    printed = capsys.readouterr().out
    assert f"{text}: cannot identify" in printed  # listed even where nothing is left to rank


def test_unwritable_folder_is_found_before_the_work(market, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search, "Extractor", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(capsys, command("m.onnx", *market, tmp_path / "file" / "out"), 1)


def test_results_that_cannot_be_written(model, market, tmp_path, capsys):
    (tmp_path / "out" / "ranked.csv").mkdir(parents=True)
    assert "could not write the results" in fails(capsys, command(model, *market, tmp_path / "out"), 1)


def test_exit_codes_of_the_process(model, market, tmp_path):
    for more, code in (([], 0), (["--top", "0"], 2), (["--gallery", "nowhere"], 1)):
        argv = [sys.executable, search.__file__, *command(model, *market, tmp_path / "out"), *more]
        run = subprocess.run(argv, capture_output=True, text=True)
        assert run.returncode == code and "Traceback" not in run.stderr, run.stderr
