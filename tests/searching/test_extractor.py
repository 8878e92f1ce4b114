"""Tests of extractor.py: pixels, features beside a slow reference, what is refused, what is said of it.

python -m pytest tests/searching/test_extractor.py
"""

import hashlib
import json
import os
import threading
import time
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tiny_onnx import (
    DIM,
    MEAN,
    METADATA,
    SECOND,
    STD,
    H,
    W,
    broken_images,
    cuda_usable,
    person,
    save,
    slow_feature,
    write_byte_model,
    write_clip_model,
    write_model,
)

from searching import extractor
from searching.extractor import Extractor

# ---- images ----

@pytest.mark.parametrize("mode, kind", [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_grey_of_more_than_eight_bits_is_refused(mode, kind, model, tmp_path):
    """Also where all of its values lie below 256: nothing says which one is white. Of files and of PIL images."""
    path = tmp_path / ("grey.png" if mode == "I;16" else "grey.tif")
    Image.fromarray(np.arange(64 * 4, dtype=kind).reshape(64, 4)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        for given in (path, image):
            with pytest.raises(ValueError, match=f"mode {mode}. would be clipped to 0..255; convert it to 8 bits"):
                extractor.to_pixels(given, (H, W))
    person(1).save(tmp_path / "good.png")
    features, read, unreadable = extractor.extract(Extractor(model, "cpu"), [path, tmp_path / "good.png"])
    assert read == [tmp_path / "good.png"] and [image for image, _ in unreadable] == [path]


@pytest.mark.parametrize("count, most, chosen", [(5, 0, [0, 1, 2, 3, 4]), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]),
                                                 (9, 3, [1, 4, 7]), (10, 2, [2, 7]), (7, 1, [3])])  # fmt: skip
def test_frames_are_spread_evenly(count, most, chosen):
    assert list(extractor.spread(count, most)) == chosen


# ---- features ----

@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_extractor_equals_slow_reference(batch_size, model):
    images = [person(pid, size=(40 + pid, 70 + 3 * pid)) for pid in range(8)]
    features = Extractor(model, "cpu", batch_size)(images)
    assert features.dtype == np.float32 and features.shape == (8, DIM)
    np.testing.assert_allclose(features, [slow_feature(image) for image in images], atol=1e-6)


def test_paths_images_and_arrays_give_the_same_features(model, tmp_path):
    paths = []
    for pid in range(5):
        person(pid).save(tmp_path / f"{pid}.png")
        paths.append(tmp_path / f"{pid}.png")
    embed = Extractor(model, "cpu", threads=1)
    images = [Image.open(path) for path in paths]
    expected = embed(paths)
    for same in ([str(path) for path in paths], images, [np.asarray(image) for image in images],
                 np.stack([np.asarray(image) for image in images]), (path for path in paths)):  # fmt: skip
        assert embed(same).tobytes() == expected.tobytes()
    for one in (paths[0], str(paths[0]), images[0], np.asarray(images[0])):
        np.testing.assert_allclose(embed(one), expected[:1], atol=1e-6)
    assert embed([]).shape == (0, DIM)


def test_extractor_says_what_it_is(model):
    embed = Extractor(model, "cpu")
    assert (embed.input_size, embed.feature_dim) == ((H, W), DIM)
    assert (embed.mean, embed.std) == (tuple(MEAN), tuple(STD))
    assert (embed.distance, embed.threshold, embed.input, embed.precision) == ("cosine", None, "images", "fp32")
    assert embed.provider == "CPUExecutionProvider" and embed.metadata == METADATA and embed.on_cpu == []


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)])
def test_extractor_refuses_other_arrays(array, model):
    with pytest.raises(TypeError, match=r"uint8 array \(H, W, 3\)"):
        Extractor(model, "cpu")([array])


def test_a_box_outside_of_its_frame_is_refused(model):
    """And named, whatever stands before it."""
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^number 2, from 0: .* shape \(0, 8, 3\) has no pixels; a box of a tracker"):
        Extractor(model, "cpu", 2)([image, image, image[:0], image])
    with pytest.raises(TypeError, match="^number 1, from 0: an image is a path"):
        Extractor(model, "cpu")([image, None])


def test_crop_clips_boxes_and_names_those_of_which_nothing_is_left(model):
    frame = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    embed = Extractor(model, "cpu")
    boxes = [(0, 20, 0, 30), (-5, 6, -60, 5), (2.4, 7.6, 28, 99), (10, 11, 3, 4)]
    expected = [frame, frame[:6, :5], frame[2:8, 28:], frame[10:11, 3:4]]
    for given in (boxes, np.array(boxes), map(tuple, boxes)):
        crops = embed.crop(frame, given)
        assert all(np.array_equal(*pair) for pair in zip(crops, expected, strict=True))
    assert np.array_equal(embed.crop(frame, boxes[2])[0], expected[2]) and embed.crop(frame, []) == []
    bad = [(0, 20, -60, -5), (5, 5, 0, 9), (20, 25, 0, 9), (9, 2, 0, 9), (0, 9, 0, float("nan"))]
    with pytest.raises(ValueError, match="5 of 9 boxes hold nothing of the frame, which is 20 high and 30") as error:
        embed.crop(frame, [*boxes, *bad])
    assert "number 4 (0.0, 20.0, -60.0, -5.0), number 5 (5.0, 5.0, 0.0, 9.0)," in str(error.value)
    with pytest.raises(ValueError, match=r"boxes are \(4, 5\); give \(N, 4\)"):
        embed.crop(frame, np.zeros((4, 5)))
    with pytest.raises(TypeError, match="an image is a path"):
        embed.crop(frame.astype(float), boxes)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "image"])
def test_a_rotation_that_is_not_applied_is_told_once(kind, model, tmp_path, recwarn):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, images = Image.Exif(), []
    plain[0x0112] = 1
    for number, data in enumerate([plain, exif, exif]):
        path = tmp_path / f"{number}.{'jpg' if kind == 'image' else kind}"
        person(number).save(path, exif=data)
        images.append(Image.open(path) if kind == "image" else path)
    warnings.simplefilter("always")
    embed = Extractor(model, "cpu", threads=1)
    assert embed(images[:1]).shape == (1, DIM) and not list(recwarn)
    embed(images)
    embed(images)
    (told,) = [str(warning.message) for warning in recwarn]
    assert told.startswith(f"{path.with_stem('1')}: its EXIF data say to turn it, which is not done here, as in trai")


def test_extractor_raises_for_unreadable_image_and_extract_lists_it(model, tmp_path):
    broken_images(tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    for pid in range(4):
        person(pid).save(tmp_path / f"{pid}.png")
    paths = [tmp_path / name for name in
             ("0.png", "truncated.jpg", "1.png", "2.png", "text.jpg", "gone.png", "3.png", "empty.jpg")]  # fmt: skip
    embed = Extractor(model, "cpu", batch_size=2)
    with pytest.raises(OSError, match="truncated"):
        embed(paths)
    features, read, unreadable = extractor.extract(embed, paths)
    assert [path.name for path in read] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_allclose(features, [slow_feature(Image.open(path)) for path in read], atol=1e-6)
    assert [path.name for path, _ in unreadable] == ["truncated.jpg", "text.jpg", "gone.png", "empty.jpg"]
    told = ["truncated", "cannot identify", "No such file", "cannot identify"]
    for (_, reason), expected in zip(unreadable, told, strict=True):
        assert expected in reason


def test_another_format_is_refused_whatever_the_file_is_called(model, tmp_path, monkeypatch):
    """An EPS would start Ghostscript; a model with uint8 input looks at the size first, and opens the file for it."""
    person(1).save(tmp_path / "a.jpg", "EPS")
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path, formats: plain(path, formats=formats))  # it has to be told which
    with pytest.raises(OSError, match="cannot identify it as an image: BMP, GIF, JPEG, PNG, TIFF, WEBP are read"):
        Extractor(model, "cpu")(tmp_path / "a.jpg")
    assert extractor.count_pixels(tmp_path / "a.jpg") == 0


def test_a_pipe_is_not_waited_for(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="pipe.png is not a file"):
        Extractor(model, "cpu")(tmp_path / "pipe.png")


@pytest.mark.parametrize("value", ["black", "broken"])
def test_images_without_a_feature_of_length_1_are_listed(value, tmp_path):
    """A black image gives zeros, and with them 0 / 0 where the model scales by itself."""
    mean = "mean" if value == "black" else "scaled"
    nodes = [helper.make_node("Cast", ["bytes"], ["float"], to=TensorProto.FLOAT),
             helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
             helper.make_node("Div", ["mean", "mean"], ["scaled"]),
             helper.make_node("LpNormalization", [mean], ["features"])]  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, [("bytes", TensorProto.UINT8, ["b", "h", "w", 3])],
                [("features", TensorProto.FLOAT, ["b", 3])], SECOND | {"input": "bytes", "feature_dim": 3},
                [("axes", np.array([1, 2]))])  # fmt: skip
    images = [tmp_path / f"{number}.png" for number in range(3)]
    for number, image in enumerate(images):
        Image.new("RGB", (4, 4), (0, 0, 0) if number == 1 else (10, 20, 200)).save(image)
    embed = Extractor(path, "cpu")
    features, read, unreadable = extractor.extract(embed, images)
    assert read == [images[0], images[2]] and features.shape == (2, 3)
    assert [image for image, _ in unreadable] == [images[1]] and "which cannot be ranked" in unreadable[0][1]
    with pytest.raises(ValueError, match="1.png: .* gives it a feature of length (0|nan), which cannot be ranked"):
        embed(images)
    with pytest.raises(ValueError, match="number 0, from 0: "):
        embed([np.zeros((2, 2, 3), np.uint8)])


def test_images_of_full_size_are_bounded_by_their_pixels(tmp_path, monkeypatch):
    """Three lists are in memory at a time: none may hold more than AHEAD pixels, but for an image larger than that."""
    monkeypatch.setattr(extractor, "AHEAD", 1000)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path, size in zip(paths, [(10, 40), (10, 60), (10, 10), (50, 50), (5, 5), (20, 40)], strict=True):
        Image.new("RGB", size, (1, 2, 3)).save(path)
    (tmp_path / "text.png").write_text("")
    images = [*paths[:3], tmp_path / "text.png", Image.open(paths[3]), np.asarray(Image.open(paths[4])), paths[5]]
    embed, lists = Extractor(write_byte_model(tmp_path / "bytes.onnx"), "cpu"), []
    run = embed.run
    monkeypatch.setattr(embed, "run", lambda rows: lists.append([row[:, :, 0].size for row in rows]) or run(rows))
    assert len(extractor.extract(embed, images)[0]) == 6
    assert lists == [[400, 600], [100], [2500], [25, 800]]


def test_work_runs_ahead_but_not_away():
    """One list in hand and two ahead: a gallery of millions must not pile up in memory."""
    started = []
    lists = extractor.work_ahead(lambda item: started.append(item) or item, extractor.cut_lists(range(20), 2))
    assert next(lists) == [0, 1]
    lists.close()  # waits for the threads
    assert sorted(started) == [0, 1, 2, 3, 4, 5]


def test_decoding_and_normalising_overlap_the_model(model, monkeypatch):
    """While the model runs, rows of the next lists are made: not before it, not by its thread."""
    embed, prepare, ahead = Extractor(model, "cpu", batch_size=2), Extractor.prepare, []
    started, running = threading.Event(), threading.Event()

    def watched(self, item):
        if item[0, 0, 0] >= 2:
            assert started.wait(10)  # of the second list on: made while the first one is in the model
            ahead.append((running.is_set(), threading.current_thread() is threading.main_thread()))
        return prepare(self, item)

    def slow(rows):
        running.set()
        started.set()
        time.sleep(0.05)
        features = Extractor.run(embed, rows)
        running.clear()
        return features

    monkeypatch.setattr(Extractor, "prepare", watched)
    monkeypatch.setattr(embed, "run", slow)
    embed([np.full((8, 8, 3), value, np.uint8) for value in range(6)])
    assert len(ahead) == 4 and ahead[0] == (True, False)


def test_features_that_are_not_normalised_are_refused(tmp_path):
    with pytest.raises(ValueError, match="instead of 1"):
        Extractor(write_model(tmp_path / "raw.onnx", normalise=False), "cpu")


def test_failure_inside_the_model_says_what_to_do(model, monkeypatch):
    """A model that stops in the middle, as it does when a GPU runs out of memory."""
    embed = Extractor(model, "cpu")
    monkeypatch.setattr(extractor, "resize", lambda image, size: np.zeros((H + 8, W, 3), np.uint8))
    with pytest.raises(RuntimeError, match="CPUExecutionProvider failed on a batch of 4; try fewer .*dimension"):
        embed([person(1)] * 4)


# ---- models of tracklets, and of bytes ----

def slow_tracklet(frames):
    """1 + the mean over the normalised pixels of all frames, then as slow_feature."""
    pixels = [np.asarray(frame.convert("RGB").resize((W, H), Image.Resampling.BILINEAR)) / 255 for frame in frames]
    mean = 1 + (np.mean(pixels, axis=0) - MEAN) / STD
    feature = mean.reshape(H // 8, 8, W // 8, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()
    return feature / np.linalg.norm(feature)


@pytest.mark.parametrize("batch_size", [1, 16, 100])
def test_tracklets_of_any_length(batch_size, tmp_path):
    """Padded frames do not count; an image is a tracklet of one frame; longer ones are looked at evenly."""
    embed = Extractor(write_clip_model(tmp_path / "clip.onnx"), "cpu", batch_size, frames=4)
    tracklets = [[person(pid, camid) for camid in range(length)] for pid, length in enumerate((3, 1, 4, 2, 9))]
    expected = [slow_tracklet(frames) for frames in tracklets[:4]]
    expected.append(slow_tracklet([tracklets[4][i] for i in (1, 3, 5, 7)]))
    features = embed([*tracklets[:3], tracklets[3], tracklets[4]])
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(embed([person(1, 0)]), expected[1:2], atol=1e-5)
    np.testing.assert_allclose(embed([np.stack([np.asarray(f) for f in tracklets[0]])]), expected[:1], atol=1e-5)


def test_frames_that_cannot_be_read_are_left_out_of_their_tracklet(tmp_path):
    broken_images(tmp_path)
    person(3).save(tmp_path / "good.png")
    embed = Extractor(write_clip_model(tmp_path / "clip.onnx"), "cpu")
    bad, text, good = (tmp_path / name for name in ("truncated.jpg", "text.jpg", "good.png"))
    features, read, unreadable = extractor.extract(embed, [[bad, good], [text], []])
    assert read == [[bad, good]]
    np.testing.assert_allclose(features, [slow_tracklet([person(3)])], atol=1e-5)
    assert [path for path, _ in unreadable] == [bad, text, []]


def test_bytes_go_in_as_they_are(tmp_path):
    """Images of several sizes in one list: each is run with those of its size, and the order stays."""
    embed = Extractor(write_byte_model(tmp_path / "bytes.onnx"), "cpu", batch_size=7)
    images = [person(pid, size=size) for pid, size in enumerate([(20, 30), (5, 9), (20, 30), (64, 128), (5, 9)])]
    means = np.array([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(images), expected, atol=1e-6)


# ---- the model file ----

@pytest.mark.parametrize("change, message", [
    ({"schema": 3}, "schema 3, this search.py reads 1 or 2"),
    ({"mean": None, "feature_dim": None}, "lacks mean, feature_dim"),
    ({"colour_order": "BGR"}, "colour_order 'BGR'"),
    ({"resize": "bicubic"}, "resize 'bicubic'"),
    ({"l2_normalised": False}, "l2_normalised False"),
    ({"input": "frames"}, "input 'frames'"),
    ({"input": "clips"}, "the graph maps images .* its metadata says .*clips"),
    ({"precision": "int4"}, "precision 'int4'"),
    ({"input_size": [W, H]}, "input_size"),
    ({"input_size": "160x64"}, "input_size 160x64"),
    ({"input_size": [H, W, 3]}, "two whole numbers"),
    ({"input_size": [100_000, 100_000]}, "input_size .100000, 100000., at most 4,194,304 pixels and 16,384 on a side"),
    ({"input_size": [20_000, 1]}, "at most 4,194,304 pixels and 16,384 on a side are allowed"),
    ({"input_size": [2049, 2048]}, "at most 4,194,304 pixels"),
    ({"mean": [0.5]}, r"mean \[0.5\]"),
    ({"std": [0, 1, 1]}, "three above 0"),
    ({"feature_dim": 7}, "feature_dim 7"),
    ({"threshold": 0.7}, "threshold 0.7, not numbers named similarity"),
    ({"threshold": {"similarity": float("nan"), "fmr": 0.1, "fnmr": 0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": "0.7", "fmr": 0.1, "fnmr": 0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": 0.7, "fmr": "0.1", "fnmr": 0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": 0.7, "fmr": 0.1, "fnmr": [0.1]}}, "calibrate it again"),
    ({"threshold": {"similarity": 0.7}}, "calibrate it again"),
    ({"threshold": {"similarity": -5, "fmr": 0.1, "fnmr": 0.1}}, r"similarity \(from -1 to 1\), fmr and fnmr"),
    ({"threshold": {"similarity": 1.01, "fmr": 0.1, "fnmr": 0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": 0.7, "fmr": 2, "fnmr": 0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": 0.7, "fmr": 0.1, "fnmr": -0.1}}, "calibrate it again"),
    ({"threshold": {"similarity": True, "fmr": 0.1, "fnmr": 0.1}}, "calibrate it again"),
    ({"input_size": [100000, 100000]}, r"\[100000, 100000\], at most 4,194,304 pixels and 16,384 on a side"),
    ({"mean": [123.675, 116.28, 103.53]}, "give a 255th: --mean 0.485 0.456 0.406 --std 0.5 0.25 0.125"),
])  # fmt: skip
@pytest.mark.parametrize("base", [METADATA, SECOND])
def test_metadata_is_checked(base, change, message, tmp_path):
    metadata = {key: value for key, value in {**base, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        assert Extractor(write_model(tmp_path / "m.onnx", metadata), "cpu").threshold


@pytest.mark.parametrize("text, message", [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_metadata_that_is_no_json_object(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Extractor(write_model(tmp_path / "m.onnx", text), "cpu")


def test_a_file_without_the_hash_of_its_weights_is_known_by_its_own(tmp_path):
    for missing in ({"weights_sha256": None}, {}):
        metadata = {key: value for key, value in METADATA.items() if key != "weights_sha256"} | missing
        path = write_model(tmp_path / "m.onnx", metadata)
        expected = hashlib.sha256(path.read_bytes()).hexdigest()
        assert Extractor(path, "cpu").metadata["weights_sha256"] == expected


def test_schema_2_is_read(tmp_path):
    threshold = {"similarity": 0.6, "fmr": 0.001, "fnmr": 0.2, "dataset": "x", "pairs": [10, 10000]}
    metadata = SECOND | {"precision": "fp16", "threshold": threshold}
    embed = Extractor(write_model(tmp_path / "m.onnx", metadata), "cpu")
    assert (embed.precision, embed.threshold, embed.metadata["gate"]) == ("fp16", threshold, {"cosine": 1.0})


def test_fixed_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="any batch"):
        Extractor(write_model(tmp_path / "m.onnx", batch=4), "cpu")


@pytest.mark.parametrize("provider", ["cpu", "auto"])
@pytest.mark.parametrize("content", [b"", b"this is no model", "half"])
def test_foreign_file_is_refused(provider, content, model, tmp_path):
    data = model.read_bytes()
    (tmp_path / "bad.onnx").write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match="bad.onnx: onnxruntime cannot load"):
        Extractor(tmp_path / "bad.onnx", provider)


# ---- files of other exporters ----

SIZES = {"input_size": [H, W], "mean": MEAN, "std": STD}


def test_model_without_metadata_asks_for_what_is_missing(tmp_path):
    path = write_model(tmp_path / "m.onnx", None)
    with pytest.raises(ValueError, match=f"not written by export.py.*say input_size, mean, std.*--input-size {H} {W}"):
        Extractor(path, "cpu")
    with pytest.raises(ValueError, match="say std as it was"):
        Extractor(path, "cpu", preprocessing={"input_size": [H, W], "mean": MEAN})


def test_model_without_metadata_works_with_what_the_user_says(tmp_path):
    """Its names are others, and its features have another length: they are scaled."""
    path = write_model(tmp_path / "m.onnx", None, normalise=False, input="x", output="y")
    embed = Extractor(path, "cpu", preprocessing=SIZES)
    features = embed([person(3), person(4)])
    np.testing.assert_allclose(features, [-slow_feature(person(3)), -slow_feature(person(4))], atol=1e-6)  # Neg
    assert embed.feature_dim == DIM and len(embed.metadata["weights_sha256"]) == 64
    again = Extractor(path, "cpu", preprocessing=SIZES).metadata["weights_sha256"]
    other = Extractor(path, "cpu", preprocessing=SIZES | {"mean": [0.5] * 3}).metadata["weights_sha256"]
    assert embed.metadata["weights_sha256"] == again != other  # other pixels make other features


def test_what_the_user_says_has_to_fit(model, tmp_path):
    with pytest.raises(ValueError, match="says its own input_size, mean, std; leave them out"):
        Extractor(model, "cpu", preprocessing=SIZES)
    path = write_model(tmp_path / "m.onnx", None)
    with pytest.raises(ValueError, match=r"input_size \[16, 32\] does not fit its graph"):
        Extractor(path, "cpu", preprocessing=SIZES | {"input_size": [W, H]})
    with pytest.raises(ValueError, match="three above 0"):
        Extractor(path, "cpu", preprocessing=SIZES | {"std": [1, 1, -1]})


@pytest.mark.parametrize("mean, std, told", [
    ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"),
    ([123.675, 116.28, 103.53], [0.229, 0.224, 0.225], "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"),
    ([127.5] * 3, [1] * 3, "--mean 0.5 0.5 0.5 --std 0.003922 0.003922 0.003922"),
    ([0] * 3, [255] * 3, "--mean 0 0 0 --std 1 1 1"),
])  # fmt: skip
def test_means_for_pixels_up_to_255_are_refused_with_their_255th(mean, std, told, tmp_path):
    path = write_model(tmp_path / "m.onnx", None)
    with pytest.raises(ValueError, match=f"are for pixels from 0 to 255; here pixels are from 0 to 1.*: {told}$"):
        Extractor(path, "cpu", preprocessing={"input_size": [H, W], "mean": mean, "std": std})
    Extractor(path, "cpu", preprocessing={"input_size": [H, W], "mean": [0] * 3, "std": [1] * 3})


@pytest.mark.parametrize("kind", ["images", "clips", "bytes"])
def test_a_model_that_gives_unlike_images_one_feature_is_told_when_it_is_opened(kind, tmp_path, recwarn):
    write = {"images": write_model, "clips": write_clip_model, "bytes": write_byte_model}[kind]
    Extractor(write(tmp_path / "m.onnx"), "cpu")
    assert not list(recwarn)
    model = onnx.load(tmp_path / "m.onnx")
    for node in model.graph.node:  # the feature is that of what is added to it, a thousand times as large
        node.input[:] = ["small" if name == node.input[0] and node.op_type == "LpNormalization" else name
                         for name in node.input]  # fmt: skip
    last = next(node for node in model.graph.node if node.op_type == "LpNormalization")
    first = {"images": "flat", "clips": "flat", "bytes": "mean"}[kind]
    place = list(model.graph.node).index(last)
    model.graph.node.insert(place, helper.make_node("Add", [first, "much"], ["small"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e6), "much"))
    onnx.save(model, tmp_path / "same.onnx")
    Extractor(tmp_path / "same.onnx", "cpu")
    assert [str(warning.message)[:90] for warning in recwarn] == [
        f"{tmp_path / 'same.onnx'} gives unlike images the same feature (cosine 1.000000)"[:90]]


@pytest.mark.parametrize("shape, kind, message", [
    (["b", H, W, 3], TensorProto.FLOAT, "channels-last: export it with channels first"),
    (["b", 1, H, W], TensorProto.FLOAT, "not three channels"),
    ([8, 3, H, W], TensorProto.FLOAT, "batches of 8 only"),
    (["b", 3, H], TensorProto.FLOAT, r"one float32 batch of images \(B, 3, H, W\)"),
    (["b", 3, H, W], TensorProto.FLOAT16, "takes x tensor.float16"),
])  # fmt: skip
def test_odd_graphs_are_refused_with_the_reason(shape, kind, message, tmp_path):
    nodes = [helper.make_node("Flatten", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [("x", kind, shape)], [("y", kind, ["b", "d"])], None)
    with pytest.raises(ValueError, match=message):
        Extractor(path, "cpu", preprocessing=SIZES)


def test_a_file_of_another_exporter_with_several_outputs_is_refused(tmp_path):
    nodes = [helper.make_node("Flatten", ["x"], ["logits"]), helper.make_node("Neg", ["logits"], ["embedding"])]
    outputs = [(name, TensorProto.FLOAT, ["b", 3 * H * W]) for name in ("logits", "embedding")]
    path = save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, ["b", 3, H, W])], outputs, None)
    with pytest.raises(ValueError, match=r"gives 2 outputs \(logits \['b', 1536\], embedding .*with that output alone"):
        Extractor(path, "cpu", preprocessing=SIZES)


def test_a_graph_with_features_of_another_shape(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    shape = ["b", 3, H, W]
    path = save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], None)
    with pytest.raises(ValueError, match=r"gives float32 \(1, 3, 32, 16\) for a batch of 1, not float32 \(1, D\)"):
        Extractor(path, "cpu", preprocessing=SIZES)


# ---- providers ----

def test_unknown_provider(model):
    with pytest.raises(ValueError, match="'gpu' is unknown; choose from auto, cpu, cuda, tensorrt"):
        Extractor(model, "gpu")
    with pytest.raises(ValueError, match="threads is -1"):
        Extractor(model, "cpu", threads=-1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Extractor(model, "cpu", 0)


def test_threads_are_those_of_the_session(model):
    assert Extractor(model, "cpu", threads=1).session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_also_those_that_decode(threads, model, monkeypatch):
    monkeypatch.setattr(extractor, "DECODERS", 8)
    embed, prepare, seen = Extractor(model, "cpu", threads=threads), Extractor.prepare, set()

    def watched(self, item):
        seen.add(threading.get_ident())
        time.sleep(0.002)
        return prepare(self, item)

    monkeypatch.setattr(Extractor, "prepare", watched)
    embed([person(1)] * 12)
    assert len(seen) == threads


@pytest.mark.parametrize("provider, name", [("cuda", "CUDA"), ("tensorrt", "TensorRT")])
def test_a_gpu_asked_for_fails_rather_than_fall_back(provider, name, model, tmp_path):
    if cuda_usable():
        pytest.skip("CUDA works on this machine")
    with pytest.raises(RuntimeError, match=f"cannot use {name} here"):
        Extractor(model, provider)


def test_order_of_providers():
    names = [[p if isinstance(p, str) else p[0] for p in extractor.provider_options(name, "m.onnx")]
             for name in extractor.PROVIDERS]  # fmt: skip
    cpu, cuda, tensorrt = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
    assert names == [[cpu], [cuda, cpu], [tensorrt, cuda, cpu]]


def test_cuda_gives_the_features_of_the_cpu(model):
    if not cuda_usable():
        pytest.skip("no CUDA device that onnxruntime can use")
    images = [person(pid) for pid in range(7)]
    embed = Extractor(model, "cuda")
    assert embed.provider == "CUDAExecutionProvider" == Extractor(model, "auto").provider and embed.on_cpu == []
    for count in (1, 2, 7):
        np.testing.assert_allclose(embed(images[:count]), Extractor(model, "cpu")(images[:count]), atol=1e-5)
    assert embed.bound.pinned


def test_auto_takes_the_cpu_without_a_word(model, capfd):
    if cuda_usable():
        pytest.skip("CUDA works on this machine")
    capfd.readouterr()
    assert Extractor(model, "auto").provider == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        cuda_usable()
        assert "CUDA" in capfd.readouterr().err  # onnxruntime speaks up again for whoever uses it next


def test_nodes_on_the_cpu_are_found_but_not_the_arithmetic_of_shapes(tmp_path):
    """A real profile: Shape and Gather give int64 and do not count, the nodes that compute features do."""
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"], name="how_large"),
        helper.make_node("Gather", ["shape", "zero"], ["count"], name="how_many"),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0, name="target_shape"),
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["one"], name="flatten"),
        helper.make_node("Expand", ["one", "target"], ["flat"], name="repeat"),  # Reshape would swallow shape nodes
        helper.make_node("LpNormalization", ["flat"], ["features"], name="scale"),
    ]
    constants = [("zero", np.array([0])), ("rest", np.array([DIM]))]
    path = save(tmp_path / "m.onnx", nodes, [("images", TensorProto.FLOAT, ["b", 3, H, W])],
                [("features", TensorProto.FLOAT, ["b", DIM])], METADATA, constants)  # fmt: skip
    found = extractor.nodes_on_cpu(path, "cpu", {"images": np.ones((2, 3, H, W), np.float32)})
    computing = ["AveragePool", "Expand", "Flatten", "LpNormalization"]
    assert sorted(kind for _, kind in found if "Reorder" not in kind) == computing
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = session.get_provider_graph_assignment_info()
    assert {"Shape", "Gather", "Concat"} <= {node.op_type for part in parts for node in part.get_nodes()}
    assert not list(tmp_path.glob("run*"))


def test_single_nodes_left_to_the_cpu_are_an_error_where_the_gpu_was_asked_for(model, monkeypatch):
    embed = Extractor(model, "cpu")
    embed.provider = "CUDAExecutionProvider"  # as if; the profile is that of a CPU
    monkeypatch.setattr(extractor, "nodes_on_cpu", lambda path, provider, feed: [("pool", "AveragePool")])
    with pytest.raises(RuntimeError, match=r"runs on the GPU but for 1 nodes, which CUDA.* pool \(AveragePool\)"):
        embed.check_placement("cuda")
    embed.check_placement("auto")
    assert embed.on_cpu == [("pool", "AveragePool")]


@pytest.mark.parametrize("kind", ["images", "clips", "bytes"])
def test_bound_runs_give_the_same_features(kind, tmp_path):
    """The path of a GPU, with buffers on the CPU: padded batches, buffers used again, rows of a larger batch gone."""
    write = {"images": write_model, "clips": write_clip_model, "bytes": write_byte_model}[kind]
    embed, plain = (Extractor(write(tmp_path / f"{n}.onnx"), "cpu", 8) for n in range(2))
    embed.bound = extractor.Bound(embed.session, "cpu")
    images = [person(pid) for pid in range(7)]
    if kind == "clips":
        images = [[person(pid, camid) for camid in range(1 + pid % 3)] for pid in range(7)]
    for count in (7, 1, 3, 7, 2):
        np.testing.assert_allclose(embed(images[:count]), plain(images[:count]), atol=1e-6)
    sets = embed.bound.shapes
    assert embed.bound.pinned is False and len(sets) <= 6  # powers of two only
    for _, hosts, _ in sets.values():
        assert all(n & (n - 1) == 0 for host in hosts for n in host.shape[: 2 if kind == "clips" else 1])


def test_bound_pads_with_the_last_row_and_frames_that_do_not_count(tmp_path):
    """What an earlier, larger batch left in the same buffers must not stay: its frames would count, and its rows, read
    as they are, could be anything."""
    embed, plain = (Extractor(write_clip_model(tmp_path / f"{n}.onnx"), "cpu", 32) for n in range(2))
    embed.bound = extractor.Bound(embed.session, "cpu")
    clips = [[person(pid, camid) for camid in range(4)] for pid in range(4)]
    for count, frames in ((4, 4), (3, 3), (4, 4)):
        given = [clip[:frames] for clip in clips[:count]]
        np.testing.assert_allclose(embed(given), plain(given), atol=1e-6)
        (_, hosts, _), = embed.bound.shapes.values()  # one set of buffers
        if count == 3:
            assert np.array_equal(hosts[0][3, :3], hosts[0][2, :3]) and hosts[1].tolist() == [[1, 1, 1, 0]] * 4


def test_bound_gives_up_old_shapes(tmp_path):
    embed = Extractor(write_byte_model(tmp_path / "b.onnx"), "cpu")
    embed.bound = extractor.Bound(embed.session, "cpu")
    for size in range(1, 40):
        embed([np.full((size, 4, 3), 9, np.uint8)])
    assert len(embed.bound.shapes) <= extractor.Bound.KEPT


def test_the_json_of_the_file_is_what_is_read(model):
    stored = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    assert json.loads(stored["reid"]) == Extractor(model, "cpu").metadata
