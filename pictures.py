"""Pictures for people to look at: ranked lists, what a network looks at, training curves, CMC and ROC.

    from pictures import maps_grid, ranked_grid, training_curves
    ranked_grid([("q.jpg", [("a.jpg", 0.93, True), ("b.jpg", 0.71, False)])]).save("ranked.jpg")
    maps_grid(["q.jpg"], images, activation, attention, regions).save("maps.jpg")    # arrays, see there
    training_curves("runs/hacnn-market1501/log.jsonl", "curves.png")

A ranked list has one row per query: the query in a black frame, a gap, then the gallery images from the most similar
on, each in a green frame (same person), a red one (another person) or a grey one (nobody said who it is). Colours that
mean right and wrong are also told apart by their lightness, for readers who do not see red and green; so are those of
maps_grid, heat and the frames of regions. NumPy and Pillow; matplotlib only for curves.
"""

import contextlib
import itertools
import json
import math
import textwrap
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from images import read_image

QUERY, RIGHT, WRONG, UNKNOWN = (20, 20, 20), (60, 179, 90), (192, 24, 32), (150, 150, 150)  # frame colours
FRAMES = {True: RIGHT, False: WRONG, None: UNKNOWN}
# From low to high, lightness rising in even steps: nine colours of "plasma" (Smith, van der Walt, CC0)
HEAT = np.array([(13, 8, 135), (76, 2, 161), (126, 3, 168), (170, 35, 149), (204, 71, 120), (230, 108, 92),
                 (248, 149, 64), (253, 196, 39), (240, 249, 33)])  # fmt: skip
REGIONS = (250, 232, 70), (86, 180, 233), (213, 80, 20), (60, 25, 135)  # frames, from the lightest to the darkest
PAPER, MAT, INK, FAINT = (255, 255, 255), (238, 238, 238), (30, 30, 30), (95, 95, 95)
TILE, FRAME = (96, 192), 4  # of a ranked list, in pixels: an image (W, H), and the frame around it
MARGIN, HEADER, GAP = 15, 27, 21  # around a ranked list, above its first row, between the query and the answers
STEP = TILE[0] + 2 * FRAME + 10, TILE[1] + 2 * FRAME + 54  # (x, y) from tile to tile; below is room for two lines
HEIGHT, SMALL = 320, 12  # of an image in maps_grid, in pixels, and of the letters below
WIDEST = 1500  # pixels that maps_grid fills where the tiles of one image are narrow


@lru_cache
def font(size):
    return ImageFont.load_default(size=size)


def fit(image, size):
    """A PIL image scaled to lie inside size (W, H), aspect kept, centred on a pale mat."""
    image = image.convert("RGB")
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    tile = Image.new("RGB", size, MAT)
    tile.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return tile


def shorten(text, size, width):
    """text, with its middle left out where it is wider than width pixels: both ends of a file name tell most."""
    cuts = [f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}" for keep in range(len(text) - 1, 1, -1)]
    return next((short for short in (text, *cuts) if font(size).getlength(short) <= width), "…")


def corner(row, column):
    """(x, y) of the outer corner of a frame in a ranked list. Column 0 is the query, column 1 the best answer."""
    return MARGIN + column * STEP[0] + (GAP if column else 0), MARGIN + HEADER + row * STEP[1]


def ranked_grid(rows):
    """A ranked list as a PIL image. rows: [(query path, [(gallery path, similarity, match), ...]), ...]; match is True,
    False or None (unknown). Gallery lists may differ in length. The tile of a file which cannot be read, or no longer,
    says so."""
    if not rows:
        raise ValueError("ranked_grid got no rows: give at least one (query path, [(gallery path, similarity, match)])")
    columns = max(len(ranked) for _, ranked in rows)
    size = corner(0, columns)[0] + TILE[0] + 2 * FRAME + MARGIN, corner(len(rows), 0)[1] + MARGIN
    picture = Image.new("RGB", size, PAPER)
    for column in range(columns + 1):
        x, y = corner(0, column)
        heading = str(column) if column else "query"
        ImageDraw.Draw(picture).text((x + FRAME + TILE[0] / 2, y - FRAME), heading, INK, font(16), anchor="md")
    for row, (query, ranked) in enumerate(rows):
        draw_tile(picture, corner(row, 0), query, QUERY)
        for column, (path, similarity, match) in enumerate(ranked, start=1):
            draw_tile(picture, corner(row, column), path, FRAMES[match], f"{similarity:.3f}")
    return picture


def draw_tile(picture, corner, path, colour, number=""):
    """One image in a frame, whose corner is (x, y), and under it a number and the file name."""
    (x, y), draw = corner, ImageDraw.Draw(picture)
    width, height = TILE[0] + 2 * FRAME, TILE[1] + 2 * FRAME
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    middle, below = x + width / 2, y + height + FRAME
    try:
        picture.paste(fit(Image.fromarray(read_image(path)), TILE), (x + FRAME, y + FRAME))
    except Exception:  # as many classes as there are kinds of broken files
        picture.paste(MAT, (x + FRAME, y + FRAME, x + width - FRAME, y + height - FRAME))
        told = "image\ncannot\nbe read"
        draw.text((middle, y + height / 2), told, FAINT, font(16), anchor="mm", align="center")
    if number:
        draw.text((middle, below), number, INK, font(16), anchor="ma")
        below += 16 * 1.2
    draw.text((middle, below), shorten(Path(path).name, 10, width), FAINT, font(10), anchor="ma")


def stretch(values):
    """values, (h, w), from their lowest as 0 to their highest as 1; all 0 where they do not differ."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def heat_colours(values):
    """The colours (..., 3) of values in 0..1: bytes, between the colours of HEAT."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, stops, channel) for channel in HEAT.T], axis=-1).round().astype(np.uint8)


def overlay(image, values):
    """A PIL image under the colours of a map (h, w) in 0..1, resized to it; grey, as colours mean heat."""
    heat = Image.fromarray(np.asarray(values, np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(heat_colours(np.asarray(heat))), 0.55)


def rim(colour):
    """What stands out from a colour: black or white."""
    return PAPER if sum(colour) < 300 else QUERY


def draw_frame(draw, box, colour):
    """A coloured frame just inside box (left, top, right, bottom), in pixels: its edges; with a rim on both sides."""
    left, top, right, bottom = box
    draw.rectangle((left - 1, top - 1, right, bottom), outline=rim(colour), width=5)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=3)


def draw_number(draw, x, y, number):
    """The number of a region (from 0) on its colour; (x, y) is the middle of the upper edge."""
    colour, size = REGIONS[number], SMALL
    draw.rectangle((x - size // 2, y, x + size // 2, y + round(1.2 * size)), fill=colour, outline=rim(colour))
    draw.text((x + 0.5, y + 0.65 * size), str(number + 1), rim(colour), font(size), anchor="mm")


def region_tile(image, boxes, scale, overhang):
    """image with frames. boxes (R, 4): top, left, bottom, right in pixels of the network; scale: pixels drawn for one;
    overhang (x, y): how much of the surroundings is shown on each side, as regions may reach outside."""
    tile = Image.new("RGB", (image.width + 2 * overhang[0], image.height + 2 * overhang[1]), MAT)
    tile.paste(image, overhang)
    draw = ImageDraw.Draw(tile)
    edges = (np.asarray(boxes) * scale).round().astype(int)[:, [1, 0, 3, 2]]  # left, top, right, bottom
    frames = (edges + [*overhang, *overhang]).tolist()
    for frame, colour in zip(frames, REGIONS, strict=False):
        draw_frame(draw, frame, colour)
    for number, (left, top, right, _) in enumerate(frames):  # side by side: regions may lie on one another
        draw_number(draw, left + round((right - left) * (number + 0.5) / len(REGIONS)), top, number)
    return tile


def overhang_of(regions, size, scale):
    """(x, y): how many pixels are shown around images of size (H, W): what regions need, up to half of the image."""
    boxes = np.concatenate([np.reshape(boxes, (-1, 4)) for boxes in regions])
    outside = np.maximum([-boxes[:, :2].min(0), boxes[:, 2:].max(0) - size], 0).max(0)  # (y, x)
    y, x = np.ceil(np.minimum(outside, np.array(size) / 2) * scale + 2).astype(int).tolist()  # 2: a frame and its rim
    return x, y


def maps_grid(names, images, activation, attention=(), regions=()):
    """What a network looks at, as a PIL image with a row for each image, drawn HEIGHT pixels high; where activation is
    all, with as many images in a row as WIDEST pixels hold.

    names: N file names; images (N, H, W, 3), bytes as the network sees them; activation (N, h, w) in 0..1; attention:
    for each stage (N, h, w), of any range, stretched map by map; regions: for each stage (N, R, 4), R up to 4: top,
    left, bottom, right in pixels of `images`, partly outside or not.
    """
    if not len(images):
        raise ValueError("maps_grid got no images: give at least one")
    size = images.shape[1:3]
    scale, width = HEIGHT / size[0], round(size[1] * HEIGHT / size[0])
    x_over, y_over = overhang_of(regions, size, scale) if len(regions) else (0, 0)
    headings = ["query", *(f"attention {i + 1}" for i in range(len(attention))),
                *(f"regions {i + 1}" for i in range(len(regions))), "activation"]  # fmt: skip
    widths = [width + 2 * x_over * heading.startswith("regions") for heading in headings]
    margin, gap, header, step = 16, 14, 26, HEIGHT + 2 * y_over + 30
    wide = sum(widths) + gap * (len(widths) - 1)  # the tiles of an image
    room = 1 if len(attention) or len(regions) else (WIDEST - 2 * margin + 2 * gap) // (wide + 2 * gap)
    across = max(1, min(len(images), room))
    middles = [margin + sum(widths[:i]) + gap * i + widths[i] // 2 for i in range(len(widths))]
    total, rows = 2 * margin + across * (wide + 2 * gap) - 2 * gap, math.ceil(len(images) / across)
    notes, foot = legend(total - 2 * margin, len(attention) > 0, len(regions) > 0), margin + header + rows * step
    picture = Image.new("RGB", (total, foot + 6 + notes.height + margin), PAPER)
    picture.paste(notes, (margin, foot + 6))
    draw = ImageDraw.Draw(picture)
    for column in range(across):
        for middle, heading in zip(middles, headings, strict=True):
            draw.text((column * (wide + 2 * gap) + middle, margin), heading, INK, font(15), anchor="ma")
    for number, (name, pixels) in enumerate(zip(names, images, strict=True)):
        image = Image.fromarray(pixels).resize((width, HEIGHT), Image.Resampling.LANCZOS)
        maps = [stage[number] for stage in attention]
        tiles = [(image, shorten(Path(name).name, SMALL, width))]
        tiles += [(overlay(image, stretch(values)), f"{values.min():.2f} to {values.max():.2f}") for values in maps]
        tiles += [(region_tile(image, stage[number], scale, (x_over, y_over)), "") for stage in regions]
        tiles.append((overlay(image, activation[number]), ""))
        row, column = divmod(number, across)
        top = margin + header + row * step + y_over  # of the images; what surrounds a region tile begins above
        for middle, (tile, text) in zip(middles, tiles, strict=True):
            middle += column * (wide + 2 * gap)
            picture.paste(tile, (middle - tile.width // 2, top + (HEIGHT - tile.height) // 2))
            draw.text((middle, top + HEIGHT + 5), text, FAINT, font(SMALL), anchor="ma")
    return picture


def legend(width, with_attention, with_regions):
    """What stands under maps_grid, as a PIL image: the scale of heat, the numbers of regions, and notes."""
    notes = ["attention: soft attention of each stage, mean over channels; each map is stretched from its lowest value "
             "to its highest, which stand below it"] * with_attention  # fmt: skip
    notes += ["regions: the parts that the local branch cuts out at each stage; outside the image it sees zeros"] \
        * with_regions  # fmt: skip
    notes.append("activation: how strongly the last features answer, from the lowest to the highest in each image")
    small, lines = font(SMALL), []
    for note in notes:
        lines += textwrap.wrap(note, int(0.9 * width / small.getlength(note) * len(note)))  # 0.9: letters differ
    picture = Image.new("RGB", (width, round(1.4 * SMALL * (len(lines) + 1.5))), PAPER)
    draw, x = ImageDraw.Draw(picture), round(small.getlength("low")) + 6
    draw.text((0, 0), "low", INK, small)
    grey, ramp = Image.new("RGB", (120, SMALL), (128, 128, 128)), np.linspace(0, 1, 120)[None]
    picture.paste(overlay(grey, ramp), (x, 2))
    draw.text((x + 126, 0), "high", INK, small)
    if with_regions:
        draw.text((x + 200, 0), "regions", INK, small)
        for number in range(len(REGIONS)):
            draw_number(draw, x + 216 + round(small.getlength("regions")) + 20 * number, 0, number)
    for number, line in enumerate(lines):
        draw.text((0, 1.4 * SMALL * (number + 1.5)), line, FAINT, small)
    return picture


def read_log(log_jsonl):
    """The records of a log of train.py by epoch; where a resumed run repeated an epoch, its last record."""
    lines = Path(log_jsonl).read_text(encoding="utf-8").splitlines()
    records = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a run that was killed while it wrote its last line
                continue
            raise ValueError(f"{log_jsonl}, line {number}: not JSON ({error})") from None
        records[record["epoch"]] = record
    if not records:
        raise ValueError(f"{log_jsonl} holds no epoch yet: train.py writes one line when an epoch ends")
    return [records[epoch] for epoch in sorted(records)]


# Those of training.recipes.LOSSES, as log.jsonl names them: torch stays out of this file
LOSS_PARTS = ("xent", "triplet", "triplet-soft", "circle", "center", "ring", "arcface", "cosface", "prototypes")


@contextlib.contextmanager
def drawing(path, size, widths=(1,), rows=1):
    """Axes side by side, of these relative widths, to draw on; they are written as a PNG when the block ends. Of
    several rows the axes of all, row by row, with one scale in each column."""
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and may want a display

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(rows, len(widths), width_ratios=widths, squeeze=False, sharey="col").flat
    for axes in figure.axes:
        tidy(axes)
    figure.savefig(path, dpi=120, format="png")


def tidy(axes):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def plot_epochs(axes, epochs, values, label, **style):
    """A line with a point at each epoch; of one epoch a large point, and its value behind the label: side by side, as
    points may lie on one another."""
    single = len(epochs) == 1
    label = f"{label}: {values[0]:.3g}" if single else label
    axes.plot(epochs, values, marker="o" if single else ".", label=label, **style)


def training_curves(log_jsonl, path):
    """Writes a PNG, by epoch: losses, learning rate, and rank-1 and mAP of each target where it was evaluated."""
    records = read_log(log_jsonl)
    trained = [r for r in records if r["epoch"]]  # epoch 0 has scores alone: of a network before it adapts
    epochs = [r["epoch"] for r in trained]
    parts = [name for name in LOSS_PARTS if name in records[-1]]
    with drawing(path, (13, 3.8), (1, 0.7, 1)) as (left, middle, right):
        plot_epochs(left, epochs, [r["loss"] for r in trained], "weighted sum", color="black")
        left.set(title="training loss", xlabel="epoch", ylabel="loss")
        if len(parts) > 1:
            for name in parts:
                plot_epochs(left, epochs, [r.get(name) for r in trained], name, linewidth=1)
            left.set_yscale("log")  # center is counted in hundreds, cross entropy in ones
        if len(parts) > 1 or len(epochs) == 1:
            left.legend(frameon=False)
        if all("lr" in r for r in trained):
            plot_epochs(middle, epochs, [r["lr"] for r in trained], "rate", color="black")
            if len(epochs) == 1:
                middle.legend(frameon=False)
        middle.set(title="learning rate", xlabel="epoch", ylabel="rate", ylim=(0, None))
        if len(epochs) == 1:
            left.set_xlim(epochs[0] - 0.5, epochs[0] + 1.5)
            middle.set_xlim(left.get_xlim())
        if len(trained) < len(records):
            left.set_xlim(left=-0.2)
        plot_scores(right, records)
        right.set(title="retrieval", xlabel="epoch", ylabel="%", ylim=(0, 100), xlim=left.get_xlim())
        for axes in (left, middle, right):
            axes.locator_params("x", integer=True, steps=[1, 2, 5, 10])


def plot_scores(axes, records):
    """rank-1 and mAP by epoch of the records that have them; several targets by line style."""
    evaluated = [r for r in records if "rank1" in r]
    if not evaluated:
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center", color="grey")
        return
    targets, ends = list(evaluated[-1].get("targets", {})) or [None], []
    for target, style in zip(targets, itertools.cycle(("-", "--", ":", "-.")), strict=False):
        told = [(r["epoch"], r.get("targets", {}).get(target) if target else r) for r in evaluated]
        found = [(epoch, summary) for epoch, summary in told if summary]
        for key, name, colour in (("rank1", "rank-1", "tab:blue"), ("mAP", "mAP", "tab:orange")):
            scores = [100 * summary[key] for _, summary in found]
            label = f"{target}: {name}" if len(targets) > 1 else name
            marker = "." if len(found) > 1 else "o"
            axes.plot([epoch for epoch, _ in found], scores, style, color=colour, marker=marker, label=label)
            ends.append((scores[-1], found[-1][0], colour))
    height = -math.inf
    for score, epoch, colour in sorted(ends):
        height = max(score, height + 5)  # a number is 5 points high, and must not lie on another one
        axes.annotate(f"{score:.1f}", (epoch, height), (5, 0), textcoords="offset points", color=colour, va="center")
    axes.legend(frameon=False)


def cmc_curves(curves, path):
    """Writes a PNG of cumulative match characteristics. curves: name -> (R,), share of queries with a hit by rank r."""
    with drawing(path, (6, 4.2)) as (axes,):
        for name, cmc in curves.items():
            percent = [100 * float(value) for value in cmc]
            axes.plot(range(1, len(cmc) + 1), percent, marker=".", label=f"{name}: {percent[0]:.1f} at rank 1")
        axes.set(title="CMC", xlabel="rank", ylabel="queries with a hit so far, %", ylim=(None, 100.5),
                 xlim=(0.5, None))  # fmt: skip
        axes.legend(loc="lower right", frameon=False)


def roc_curve(fpr, tpr, num_impostor, path):
    """Writes a PNG of a ROC with a logarithmic false positive rate, down to one pair out of num_impostor."""
    measured = fpr > 0
    with drawing(path, (6, 4.2)) as (axes,):
        axes.plot(fpr[measured], 100 * tpr[measured], color="black")
        for rate in (1e-4, 1e-3, 1e-2, 1e-1):
            if rate * num_impostor >= 1:
                value = 100 * tpr[fpr <= rate][-1]
                axes.plot(rate, value, "o", color="black")
                axes.annotate(f"{value:.1f}", (rate, value), (4, -4), textcoords="offset points", va="top",
                              color="gray")  # fmt: skip
        axes.set(title="ROC", xlabel="false positive rate (pairs of two persons)", ylabel="true positive rate, %",
                 xscale="log", xlim=(max(1 / num_impostor, 1e-6), 1), ylim=(0, 100.5))  # fmt: skip
