import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

import visualize

GREEN, RED, GREY, BLACK = visualize.RIGHT, visualize.WRONG, visualize.UNKNOWN, visualize.QUERY


def blue_image(path, size=(64, 128)):
    Image.new("RGB", size, (0, 0, 255)).save(path)
    return path


def runs(picture, y, background=(255, 255, 255)):
    """The colours met along row y, each once per stretch, without the paper between."""
    line = [picture.getpixel((x, y)) for x in range(picture.width)]
    return [colour for i, colour in enumerate(line) if colour != background and (i == 0 or line[i - 1] != colour)]


def colour_kind(rgb):
    """What a person would call it, so that a mix-up of the constants shows."""
    red, green, blue = rgb
    if max(rgb) - min(rgb) < 20:
        return "black" if red < 60 else "grey"
    return {red: "red", green: "green", blue: "blue"}[max(rgb)]


def test_frames_stand_at_the_expected_places(tmp_path):
    """Along a line through the middle of each row of tiles: frame, image, frame for each tile, left to right."""
    image = blue_image(tmp_path / "0001_c1s1_000001_00.png")
    rows = [(image, [(image, 0.9, True), (image, 0.8, False), (image, 0.7, None)]), (image, [(image, 0.5, False)])]
    picture = visualize.ranked_grid(rows, scale=1)
    assert picture.mode == "RGB"
    first_y = [y for y in range(picture.height) if BLACK in runs(picture, y) and (0, 0, 255) in runs(picture, y)]
    tops = [y for y in first_y if y - 1 not in first_y]
    assert len(tops) == 2 and len(first_y) == 2 * 128  # two rows of tiles of 128 pixels
    kinds = [[colour_kind(colour) for colour in runs(picture, top + 64)] for top in tops]
    assert kinds[0] == ["black", "blue", "black", "green", "blue", "green",
                        "red", "blue", "red", "grey", "blue", "grey"]  # fmt: skip
    assert kinds[1] == ["black", "blue", "black", "red", "blue", "red"]


def test_frame_surrounds_the_tile(tmp_path):
    image = blue_image(tmp_path / "a.png")
    picture = visualize.ranked_grid([(image, [(image, 0.5, True)])], scale=1)
    green = [(x, y) for x in range(picture.width) for y in range(picture.height) if picture.getpixel((x, y)) == GREEN]
    left, right = min(x for x, _ in green), max(x for x, _ in green)
    top, bottom = min(y for _, y in green), max(y for _, y in green)
    assert right - left + 1 > 64 and bottom - top + 1 > 128
    inside = picture.crop((left, top, right + 1, bottom + 1))
    counts = {colour: count for count, colour in inside.getcolors()}
    assert set(counts) == {GREEN, (0, 0, 255)} and counts[(0, 0, 255)] == 64 * 128
    for corner in ((left, top), (right, top), (left, bottom), (right, bottom)):
        assert picture.getpixel(corner) == GREEN


def test_numbers_and_names_are_drawn_below_and_ranks_above(tmp_path):
    image = blue_image(tmp_path / "a.png")
    one = visualize.ranked_grid([(image, [(image, 0.5, True)])])
    for other in ([(image, 0.25, True)], [(blue_image(tmp_path / "b.png"), 0.5, True)]):
        changed = visualize.ranked_grid([(image, other)])
        different = [y for y in range(one.height) if runs(one, y) != runs(changed, y)]
        assert different and min(different) > max(y for y in range(one.height) if GREEN in runs(one, y))
    header = one.crop((0, 0, one.width, min(y for y in range(one.height) if GREEN in runs(one, y))))
    assert len(header.getcolors(1000)) > 2


@pytest.mark.parametrize("size, box", [((64, 128), (0, 0, 64, 128)), ((100, 100), (0, 32, 64, 96)),
                                       ((20, 160), (24, 0, 40, 128)), ((1, 900), (31, 0, 32, 128))])  # fmt: skip
def test_fit_keeps_the_aspect(size, box):
    """Expected boxes by hand: scale min(64 / w, 128 / h), centred."""
    tile = visualize.fit(Image.new("RGB", size, (0, 0, 255)), (64, 128))
    assert tile.size == (64, 128)
    blue = (np.asarray(tile) == (0, 0, 255)).all(axis=2)
    assert Image.fromarray(blue).getbbox() == box


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_image_modes_are_drawn(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    visualize.ranked_grid([(path, [])])
    with Image.open(path) as image:  # a palette cannot be interpolated, so colours come first
        expected = visualize.fit(image.convert("RGB"), (64, 128))
        assert visualize.fit(image, (64, 128)).tobytes() == expected.tobytes()


def test_shorten_keeps_both_ends():
    font = ImageFont.load_default(size=12)
    name = "0002_c1s1_000451_03.jpg"
    assert visualize.shorten(name, font, 1000) == name
    short = visualize.shorten(name, font, 80)
    assert font.getlength(short) <= 80 and short[:2] == "00" and short[-2:] == "pg" and "…" in short
    assert font.getlength(name) > 80 and visualize.shorten(name, font, 1) == "…"


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        visualize.ranked_grid([])


def test_import_brings_neither_torch_nor_matplotlib():
    code = "import sys, visualize; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(visualize.__file__).parent, check=True)


# ---- curves ----

def write_log(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def test_read_log_last_record_of_an_epoch_wins_and_half_a_line_is_left_out(tmp_path):
    records = [{"epoch": epoch, "loss": loss} for epoch, loss in ((1, 6.0), (2, 5.0), (3, 9.0), (3, 4.0))]
    log = write_log(tmp_path / "log.jsonl", records, tail='{"epoch": 4, "lo')
    assert visualize.read_log(log) == [records[0], records[1], records[3]]


@pytest.mark.parametrize("text, message", [("", "no epoch yet"), ('oops\n{"epoch": 1}\n', "line 1: not JSON")])
def test_read_log_errors(text, message, tmp_path):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        visualize.read_log(tmp_path / "log.jsonl")


@pytest.mark.parametrize("evaluated", [True, False])
def test_training_curves_draw_what_the_log_says(evaluated, tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    records = [{"epoch": e, "loss": 7.0 - e, "lr": 1e-3, "images_per_second": 100.0} for e in (1, 2, 3, 4)]
    if evaluated:
        records[1].update(rank1=0.5, mAP=0.25)
        records[3].update(rank1=0.75, mAP=0.5)
    visualize.training_curves(write_log(tmp_path / "log.jsonl", records), tmp_path / "curves.png")
    loss, scores = drawn[0].axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 6], [2, 5], [3, 4], [4, 3]]]
    expected = {"rank-1": [[2, 50], [4, 75]], "mAP": [[2, 25], [4, 50]]} if evaluated else {"rank-1": [], "mAP": []}
    assert {line.get_label(): line.get_xydata().tolist() for line in scores.lines} == expected


def test_training_curves_write_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    log = write_log(tmp_path / "log.jsonl", [{"epoch": 1, "loss": 6.5, "rank1": 0.3, "mAP": 0.1}])
    visualize.training_curves(str(log), str(tmp_path / "curves.png"))
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > image.height > 300


def test_cmc_curves_draw_what_they_are_given(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    visualize.cmc_curves({"a": np.array([0.5, 0.75]), "b": [0.25, 1.0]}, tmp_path / "cmc.png")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines == {"a: 50.0 at rank 1": [[1, 50], [2, 75]], "b: 25.0 at rank 1": [[1, 25], [2, 100]]}


def test_roc_curve_marks_the_rates_that_the_pairs_can_show(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    fpr, tpr = np.array([0, 0, 0.004, 0.05, 0.2, 1]), np.array([0, 0.3, 0.5, 0.6, 0.9, 1])
    visualize.roc_curve(fpr, tpr, 250, tmp_path / "roc.png")
    curve, *marks = [line.get_xydata().tolist() for line in drawn[0].axes[0].lines]
    assert curve == [[0.004, 50], [0.05, 60], [0.2, 90], [1, 100]]
    assert marks == [[[0.01, 50]], [[0.1, 60]]]  # one of 250 pairs is 0.004: 0.001 cannot be seen


def test_roc_and_cmc_write_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    visualize.cmc_curves({"a": [0.5, 1.0]}, tmp_path / "cmc.png")
    visualize.roc_curve(np.array([0, 0.5, 1]), np.array([0, 0.9, 1]), 10, tmp_path / "roc.png")
    for name in ("cmc.png", "roc.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.width > image.height > 300
