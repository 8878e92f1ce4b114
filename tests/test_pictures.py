import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

import pictures

GREEN, RED, GREY, BLACK = pictures.RIGHT, pictures.WRONG, pictures.UNKNOWN, pictures.QUERY


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
    picture = pictures.ranked_grid(rows)
    assert picture.mode == "RGB"
    first_y = [y for y in range(picture.height) if BLACK in runs(picture, y) and (0, 0, 255) in runs(picture, y)]
    tops = [y for y in first_y if y - 1 not in first_y]
    assert len(tops) == 2 and len(first_y) == 2 * 192  # two rows of tiles of 192 pixels
    kinds = [[colour_kind(colour) for colour in runs(picture, top + 96)] for top in tops]
    assert kinds[0] == ["black", "blue", "black", "green", "blue", "green",
                        "red", "blue", "red", "grey", "blue", "grey"]  # fmt: skip
    assert kinds[1] == ["black", "blue", "black", "red", "blue", "red"]


def test_frame_surrounds_the_tile(tmp_path):
    image = blue_image(tmp_path / "a.png")
    picture = pictures.ranked_grid([(image, [(image, 0.5, True)])])
    green = [(x, y) for x in range(picture.width) for y in range(picture.height) if picture.getpixel((x, y)) == GREEN]
    left, right = min(x for x, _ in green), max(x for x, _ in green)
    top, bottom = min(y for _, y in green), max(y for _, y in green)
    assert right - left + 1 > 96 and bottom - top + 1 > 192
    inside = picture.crop((left, top, right + 1, bottom + 1))
    counts = {colour: count for count, colour in inside.getcolors()}
    assert set(counts) == {GREEN, (0, 0, 255)} and counts[(0, 0, 255)] == 96 * 192
    for corner in ((left, top), (right, top), (left, bottom), (right, bottom)):
        assert picture.getpixel(corner) == GREEN


def test_numbers_and_names_are_drawn_below_and_ranks_above(tmp_path):
    image = blue_image(tmp_path / "a.png")
    one = pictures.ranked_grid([(image, [(image, 0.5, True)])])
    for other in ([(image, 0.25, True)], [(blue_image(tmp_path / "b.png"), 0.5, True)]):
        changed = pictures.ranked_grid([(image, other)])
        different = [y for y in range(one.height) if runs(one, y) != runs(changed, y)]
        assert different and min(different) > max(y for y in range(one.height) if GREEN in runs(one, y))
    header = one.crop((0, 0, one.width, min(y for y in range(one.height) if GREEN in runs(one, y))))
    assert len(header.getcolors(1000)) > 2


@pytest.mark.parametrize("size, box", [((64, 128), (0, 0, 64, 128)), ((100, 100), (0, 32, 64, 96)),
                                       ((20, 160), (24, 0, 40, 128)), ((1, 900), (31, 0, 32, 128))])  # fmt: skip
def test_fit_keeps_the_aspect(size, box):
    """Expected boxes by hand: scale min(64 / w, 128 / h), centred."""
    tile = pictures.fit(Image.new("RGB", size, (0, 0, 255)), (64, 128))
    assert tile.size == (64, 128)
    blue = (np.asarray(tile) == (0, 0, 255)).all(axis=2)
    assert Image.fromarray(blue).getbbox() == box


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_image_modes_are_drawn(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    pictures.ranked_grid([(path, [])])
    with Image.open(path) as image:  # a palette cannot be interpolated, so colours come first
        expected = pictures.fit(image.convert("RGB"), (64, 128))
        assert pictures.fit(image, (64, 128)).tobytes() == expected.tobytes()


def test_a_tile_is_of_a_format_and_a_size_that_are_read(tmp_path):
    """An EPS would start Ghostscript, an image of one pixel's width take 2 GB."""
    Image.new("RGB", (20, 40), (200, 0, 0)).save(tmp_path / "eps.jpg", "EPS")
    Image.new("1", (2**14 + 1, 1)).save(tmp_path / "long.png")
    (tmp_path / "text.jpg").write_text("no image")
    expected = pictures.ranked_grid([(tmp_path / "text.jpg", [])]).crop((0, 0, 200, 240)).tobytes()
    for name in ("eps.jpg", "long.png"):
        assert pictures.ranked_grid([(tmp_path / name, [])]).crop((0, 0, 200, 240)).tobytes() == expected


def test_what_cannot_be_read_leaves_a_tile_that_says_so(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", pictures.TILE, (9, 99, 199)).save(tmp_path / "a.png")
    ranked = [(tmp_path / name, 0.5, True) for name in ("text.jpg", "a.png")]
    picture = pictures.ranked_grid([(tmp_path / "gone.png", ranked)])
    tiles = []
    for column in range(3):
        x, y = (edge + pictures.FRAME for edge in pictures.corner(0, column))
        tiles.append(np.asarray(picture.crop((x, y, x + 96, y + 192))))
    assert (tiles[2] == (9, 99, 199)).all()
    for tile in tiles[:2]:  # a pale tile with words on it
        pale = (tile == pictures.MAT).all(axis=2)
        assert pale[:30].all() and 0.02 < 1 - pale.mean() < 0.3


def test_shorten_keeps_both_ends():
    font = ImageFont.load_default(size=12)
    name = "0002_c1s1_000451_03.jpg"
    assert pictures.shorten(name, 12, 1000) == name
    short = pictures.shorten(name, 12, 80)
    assert font.getlength(short) <= 80 and short[:2] == "00" and short[-2:] == "pg" and "…" in short
    assert font.getlength(name) > 80 and pictures.shorten(name, 12, 1) == "…"


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        pictures.ranked_grid([])


def test_import_brings_neither_torch_nor_matplotlib():
    code = "import sys, pictures; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(pictures.__file__).parent, check=True)


# ---- what a network looks at ----

HEIGHT, TILE = 320, 128  # how large an image of 160 x 64 is drawn
COAT, COAT_GREY = (200, 40, 90), 93.5  # 0.299 red + 0.587 green + 0.114 blue


def plain_images(count=1):
    """Images of one colour that nothing else in the picture has."""
    return np.broadcast_to(np.uint8(COAT), (count, 160, 64, 3)).copy()


def draw_plain(activation=None, attention=(), regions=()):
    """Pixels of the picture for one plain image, and the box (left, top, right, bottom) of the query in it."""
    activation = np.zeros((1, 5, 2)) if activation is None else activation[None]
    pixels = np.asarray(pictures.maps_grid(["a.jpg"], plain_images(), activation, attention, regions)).astype(int)
    left, top = np.argwhere((pixels == COAT).all(axis=2).T)[0]  # the leftmost column first
    assert (pixels[top : top + HEIGHT, left : left + TILE] == COAT).all()  # aspect as the network sees it
    assert (pixels[top - 1, left] != COAT).any() and (pixels[top + HEIGHT, left] != COAT).any()
    assert (pixels[top, left + TILE] != COAT).any()
    return pixels, (left, top, left + TILE, top + HEIGHT)


def lightness(rgb):
    """L* of sRGB colours (..., 3) (CIE 1976)."""
    linear = np.array(rgb) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_heat_gets_lighter_in_even_steps():
    steps = np.diff(lightness(pictures.heat_colours(np.linspace(0, 1, 9))))
    assert (steps > 0.6 * steps.mean()).all() and (steps < 1.4 * steps.mean()).all() and steps.sum() > 75
    assert (pictures.heat_colours(np.array([0.0, 1.0])) == pictures.HEAT[[0, -1]]).all()


def test_frames_of_regions_differ_in_lightness():
    steps = np.diff(lightness(pictures.REGIONS))
    assert len(steps) == 3 and (steps < -14).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (9, 0), (9, 3), (2, 1)])
def test_heat_lies_where_the_map_is_hot(row, column):
    """A map of 10 x 4 with one hot cell: its centre is the lightest place of the tile, cells far away are all cold."""
    tile = np.zeros((10, 4))
    tile[row, column] = 1
    pixels, (left, top, _, bottom) = draw_plain(tile)
    right = pixels.shape[1] - left  # the last column is as far from the edge as the first
    drawn = pixels[top:bottom, right - TILE : right]
    y, x = 32 * row + 16, 32 * column + 16  # a cell is 32 x 32 pixels
    hot, cold = (0.45 * COAT_GREY + 0.55 * pictures.HEAT[end] for end in (-1, 0))
    assert abs(drawn[y, x] - hot).max() <= 12  # the very centre lies between two pixels
    away = np.ones((HEIGHT, TILE), bool)
    away[max(0, y - 48) : y + 48, max(0, x - 48) : x + 48] = False
    assert abs(drawn[away] - cold).max() <= 2
    assert lightness(drawn).argmax() in {(y + dy) * TILE + x + dx for dy in range(-17, 16) for dx in range(-17, 16)}


def test_the_person_stays_visible_under_the_heat():
    """Left half black, right half white under a flat map: the same hue, far apart in lightness."""
    pixels = np.zeros((160, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    drawn = np.asarray(pictures.overlay(Image.fromarray(pixels), np.full((5, 2), 0.5)))
    assert lightness(drawn[:, 40:]).min() - lightness(drawn[:, :24]).max() > 30


def test_attention_is_stretched_for_each_map_and_its_range_written_below():
    """Two images whose maps have the same shape but other ranges look the same; what stands below differs."""
    ramp = np.linspace(0, 1, 40).reshape(1, 20, 2)
    flat = np.full((2, 20, 2), 0.7)
    attention = [np.concatenate([0.5 + 0.02 * ramp, 0.6 + 0.3 * ramp]), flat]
    picture = pictures.maps_grid(["a.jpg"] * 2, plain_images(2), np.zeros((2, 5, 2)), attention)
    pixels = np.asarray(picture).astype(int)
    rows = (pixels == COAT).all(axis=2).sum(axis=1) == TILE  # along these rows lies a query
    tops = np.flatnonzero(np.diff(rows.astype(int), prepend=0) == 1)
    assert len(tops) == 2
    tiles = [pixels[top : top + HEIGHT] for top in tops]
    assert (tiles[0] == tiles[1]).all()
    assert np.ptp(lightness(tiles[0][:, TILE + 20 : 2 * TILE])) > 25
    below = [pixels[top + HEIGHT : top + HEIGHT + 25] for top in tops]
    assert (below[0] != below[1]).any() and (below[0] < 200).any()
    assert (pictures.stretch(flat[0]) == 0).all()


REGION_BOXES = {  # top, left, bottom, right in pixels of the network
    "strips": [(0, 0, 40, 64), (40, 0, 80, 64), (80, 0, 120, 64), (120, 0, 160, 64)],
    "outside": [(-10, -20, 30, 44), (45, 5, 85, 69), (85, 30, 125, 94), (130, -2, 170, 62)],
    "above and left": [(-15, -25, 25, 39), (40, 0, 80, 64), (80, 0, 120, 64), (120, 0, 160, 64)],
}


@pytest.mark.parametrize("name", REGION_BOXES)
def test_frames_of_regions_lie_where_the_boxes_are(name):
    boxes = np.array(REGION_BOXES[name], float)
    pixels, (_, top, query_right, bottom) = draw_plain(regions=[boxes[None]])
    mat = np.flatnonzero((pixels[top - 2] == pictures.MAT).all(axis=1))  # the surroundings, above all images
    left = (mat.min() + mat.max() + 1) // 2 - TILE // 2  # of the image amid its surroundings
    assert left > query_right
    if name == "outside":  # between the first two frames: mat, image, mat
        image = np.flatnonzero((pixels[top + 74, query_right:] == COAT).all(axis=1)) + query_right
        assert (image.min(), image.max(), len(image)) == (left, left + TILE - 1, TILE)
    body = pixels[: bottom + 36]  # without the legend
    for colour, (box_top, box_left, box_bottom, box_right) in zip(pictures.REGIONS, boxes, strict=True):
        found = Image.fromarray((body == colour).all(axis=2)).getbbox()
        expected = left + 2 * box_left, top + 2 * box_top, left + 2 * box_right, top + 2 * box_bottom
        assert np.abs(np.array(found) - expected).max() <= 1
        middle = int(top + box_top + box_bottom)  # through the middle of the frame: line, image, line
        line = (body[middle, int(expected[0]) : int(expected[2])] == colour).all(axis=1)
        assert line[1] and line[-2] and not line[8:-8].any()


def test_regions_far_outside_do_not_blow_up_the_picture():
    boxes = np.array([[[-500, -900, 40, 900.0]]])
    picture = pictures.maps_grid(["a.jpg"], plain_images(), np.zeros((1, 5, 2)), (), [boxes])
    assert picture.width < 5 * TILE and picture.height < 3 * HEIGHT


def test_maps_grid_has_a_heading_and_a_name_for_each_and_fits_its_legend():
    """Headings and names are cut at no edge; two columns leave room for the notes by breaking them."""
    for attention, regions, columns in (((), (), 2), ([np.zeros((1, 5, 2))] * 3, [np.zeros((1, 4, 4))] * 3, 8)):
        regions = [boxes + [0, 0, 40, 64] for boxes in regions]
        long_name = "0002_c1s1_000451_03_of_a_long_name.jpg"
        picture = pictures.maps_grid([long_name], plain_images(), np.zeros((1, 5, 2)), attention, regions)
        pixels = np.asarray(picture)
        assert picture.width >= columns * TILE
        for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
            assert (edge == 255).all()


@pytest.mark.parametrize(("count", "across"), [(1, 1), (3, 3), (4, 4), (10, 4)])
def test_maps_of_a_network_without_attention_stand_side_by_side(count, across):
    """Ten images of two tiles each one below the other would be a strip."""
    images = np.zeros((count, 256, 128, 3), np.uint8)
    images[-1] = 255  # the last one is white, the others are black
    activation = np.zeros((count, 8, 4))
    picture = pictures.maps_grid([f"{number}.jpg" for number in range(count)], images, activation)
    assert across * 334 < picture.width <= pictures.WIDEST
    assert picture.height < picture.width * (1.3 if count in (1, 10) else 1)
    pixels = np.asarray(picture)
    row, column = divmod(count - 1, across)
    left, top = 16 + column * 362, 16 + 26 + row * 350
    assert (pixels[top : top + 320, left : left + 160] == 255).all()  # the white one, in its place
    assert ((pixels == 0).all(axis=2).sum(axis=0)[16:176] > 0).all() == (count > 1)


def test_maps_grid_other_sizes_and_no_images():
    picture = pictures.maps_grid(["a.jpg"], np.zeros((1, 299, 299, 3), np.uint8), np.zeros((1, 8, 8)))
    assert 2 * 320 < picture.width < 2.5 * 320
    with pytest.raises(ValueError, match="no images"):
        pictures.maps_grid([], np.zeros((0, 160, 64, 3), np.uint8), np.zeros((0, 5, 2)))


def test_maps_are_drawn_where_matplotlib_is_missing():
    code = ("import sys; sys.modules['matplotlib'] = sys.modules['torch'] = None; import numpy as np, pictures; "
            "pictures.maps_grid(['a'], np.zeros((1, 160, 64, 3), np.uint8), np.zeros((1, 5, 2)), "
            "[np.zeros((1, 5, 2))], [np.full((1, 4, 4), [0, 0, 40, 64])])")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=Path(pictures.__file__).parent, check=True)


# ---- curves ----

def write_log(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def test_read_log_last_record_of_an_epoch_wins_and_half_a_line_is_left_out(tmp_path):
    records = [{"epoch": epoch, "loss": loss} for epoch, loss in ((1, 6.0), (2, 5.0), (3, 9.0), (3, 4.0))]
    log = write_log(tmp_path / "log.jsonl", records, tail='{"epoch": 4, "lo')
    assert pictures.read_log(log) == [records[0], records[1], records[3]]


@pytest.mark.parametrize("text, message", [("", "no epoch yet"), ('oops\n{"epoch": 1}\n', "line 1: not JSON")])
def test_read_log_errors(text, message, tmp_path):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        pictures.read_log(tmp_path / "log.jsonl")


@pytest.mark.parametrize("evaluated", [True, False])
def test_training_curves_draw_what_the_log_says(evaluated, tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    records = [{"epoch": e, "loss": 7.0 - e, "lr": 1e-3, "images_per_second": 100.0} for e in (1, 2, 3, 4)]
    if evaluated:
        records[1].update(rank1=0.5, mAP=0.25)
        records[3].update(rank1=0.75, mAP=0.5)
    pictures.training_curves(write_log(tmp_path / "log.jsonl", records), tmp_path / "curves.png")
    loss, rate, scores = drawn[0].axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 6], [2, 5], [3, 4], [4, 3]]]
    assert [line.get_xydata().tolist() for line in rate.lines] == [[[e, 1e-3] for e in (1, 2, 3, 4)]]
    expected = {"rank-1": [[2, 50], [4, 75]], "mAP": [[2, 25], [4, 50]]} if evaluated else {}
    assert {line.get_label(): line.get_xydata().tolist() for line in scores.lines} == expected


def test_training_curves_draw_each_loss_and_each_target(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    records = [{"epoch": e, "loss": 7.0 - e, "xent": 5.0 - e, "ring": 3.0 - e, "lr": 1e-3} for e in (1, 2)]
    a, b = {"rank1": 0.5, "mAP": 0.25}, {"rank1": 0.75, "mAP": 0.5}
    records[1].update(**a, targets={"a": a, "b": b})
    pictures.training_curves(write_log(tmp_path / "log.jsonl", records), tmp_path / "curves.png")
    loss, _, scores = ({line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in drawn[0].axes)
    assert loss == {"weighted sum": [[1, 6], [2, 5]], "xent": [[1, 4], [2, 3]], "ring": [[1, 2], [2, 1]]}
    assert scores == {"a: rank-1": [[2, 50]], "a: mAP": [[2, 25]], "b: rank-1": [[2, 75]], "b: mAP": [[2, 50]]}


def test_a_curve_of_one_epoch_is_a_point_with_its_value(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    record = {"epoch": 3, "loss": 5.125, "xent": 5.0, "ring": 0.125, "lr": 3.5e-4, "rank1": 0.75, "mAP": 0.5}
    pictures.training_curves(write_log(tmp_path / "log.jsonl", [record]), tmp_path / "curves.png")
    assert [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn[0].axes] == [
        ["weighted sum: 5.12", "xent: 5", "ring: 0.125"], ["rate: 0.00035"], ["rank-1", "mAP"]]  # fmt: skip
    assert sorted(text.get_text() for text in drawn[0].axes[2].texts) == ["50.0", "75.0"]
    for axes in drawn[0].axes:
        assert {line.get_marker() for line in axes.lines} == {"o"}
        assert axes.get_xlim() == (2.5, 4.5)


def test_the_names_of_losses_are_those_of_the_recipe():
    recipes = pytest.importorskip("training.recipes")
    assert pictures.LOSS_PARTS == tuple(recipes.LOSSES)


def test_training_curves_write_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    log = write_log(tmp_path / "log.jsonl", [{"epoch": 1, "loss": 6.5, "rank1": 0.3, "mAP": 0.1}])
    pictures.training_curves(str(log), str(tmp_path / "curves.png"))
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > image.height > 300


def test_cmc_curves_draw_what_they_are_given(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    pictures.cmc_curves({"a": np.array([0.5, 0.75]), "b": [0.25, 1.0]}, tmp_path / "cmc.png")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines == {"a: 50.0 at rank 1": [[1, 50], [2, 75]], "b: 25.0 at rank 1": [[1, 25], [2, 100]]}
    assert not drawn[0].axes[0].spines["top"].get_visible()


def test_roc_curve_marks_the_rates_that_the_pairs_can_show(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, path, **kwargs: drawn.append(self))
    fpr, tpr = np.array([0, 0, 0.004, 0.05, 0.2, 1]), np.array([0, 0.3, 0.5, 0.6, 0.9, 1])
    pictures.roc_curve(fpr, tpr, 250, tmp_path / "roc.png")
    curve, *marks = [line.get_xydata().tolist() for line in drawn[0].axes[0].lines]
    assert curve == [[0.004, 50], [0.05, 60], [0.2, 90], [1, 100]]
    assert marks == [[[0.01, 50]], [[0.1, 60]]]  # one of 250 pairs is 0.004: 0.001 cannot be seen


def test_roc_and_cmc_write_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    pictures.cmc_curves({"a": [0.5, 1.0]}, tmp_path / "cmc.png")
    pictures.roc_curve(np.array([0, 0.5, 1]), np.array([0, 0.9, 1]), 10, tmp_path / "roc.png")
    for name in ("cmc.png", "roc.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.width > image.height > 300
