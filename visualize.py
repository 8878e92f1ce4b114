"""Pictures for people to look at: ranked lists, training curves, CMC and ROC. Pillow; matplotlib only for curves.

    from visualize import ranked_grid, training_curves
    ranked_grid([("q.jpg", [("a.jpg", 0.93, True), ("b.jpg", 0.71, False)])]).save("ranked.jpg")
    training_curves("runs/hacnn-market1501/log.jsonl", "curves.png")

A ranked list has one row per query: the query in a black frame, a gap, then the gallery images from the most similar
on, each in a green frame (same person), a red one (another person) or a grey one (nobody said who it is). Colours that
mean right and wrong are also told apart by their lightness, for readers who do not see red and green.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

QUERY, RIGHT, WRONG, UNKNOWN = (20, 20, 20), (60, 179, 90), (192, 24, 32), (150, 150, 150)  # frame colours
FRAMES = {True: RIGHT, False: WRONG, None: UNKNOWN}
PAPER, MAT, INK, FAINT = (255, 255, 255), (238, 238, 238), (30, 30, 30), (95, 95, 95)


def fit(image, size):
    """A PIL image scaled to lie inside size (W, H), aspect kept, centred on a pale mat."""
    image = image.convert("RGB")
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    tile = Image.new("RGB", size, MAT)
    tile.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return tile


def shorten(text, font, width):
    """text, with its middle left out where it is wider than width pixels: both ends of a file name tell most."""
    if font.getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
        if font.getlength(short) <= width:
            return short
    return "…"


class Layout:
    """Where things stand in a ranked list, in pixels. column 0 is the query, column 1 the best gallery image."""

    def __init__(self, columns, scale):
        self.tile = round(64 * scale), round(128 * scale)  # (W, H)
        self.frame = max(2, round(3 * scale))
        self.number_font = ImageFont.load_default(size=max(10, round(11 * scale)))
        self.name_font = ImageFont.load_default(size=max(8, round(7 * scale)))
        self.space, self.gap, self.margin = round(7 * scale), round(14 * scale), round(10 * scale)
        self.header = round(18 * scale)
        self.step_x = self.tile[0] + 2 * self.frame + self.space
        self.step_y = self.tile[1] + 2 * self.frame + round(36 * scale)
        self.width = 2 * self.margin + (columns + 1) * self.step_x - self.space + (self.gap if columns else 0)

    def corner(self, row, column):
        """(x, y) of the outer corner of a frame."""
        x = self.margin + column * self.step_x + (self.gap if column else 0)
        return x, self.margin + self.header + row * self.step_y


def ranked_grid(rows, *, scale=1.5):
    """A ranked list as a PIL image. rows: [(query path, [(gallery path, similarity, match), ...]), ...]; match is True,
    False or None (unknown). Gallery lists may differ in length. A tile is 64 x 128 pixels times scale."""
    if not rows:
        raise ValueError("ranked_grid got no rows: give at least one (query path, [(gallery path, similarity, match)])")
    columns = max(len(ranked) for _, ranked in rows)
    at = Layout(columns, scale)
    picture = Image.new("RGB", (at.width, 2 * at.margin + at.header + len(rows) * at.step_y), PAPER)
    draw = ImageDraw.Draw(picture)
    for column in range(columns + 1):
        x, y = at.corner(0, column)
        heading = str(column) if column else "query"
        draw.text((x + at.frame + at.tile[0] / 2, y - at.frame), heading, INK, at.number_font, anchor="md")
    for row, (query, ranked) in enumerate(rows):
        draw_tile(picture, draw, at, (row, 0), query, QUERY)
        for column, (path, similarity, match) in enumerate(ranked, start=1):
            draw_tile(picture, draw, at, (row, column), path, FRAMES[match], f"{similarity:.3f}")
    return picture


def draw_tile(picture, draw, at, place, path, colour, number=None):
    """One framed image with its number and its file name under it; place is (row, column)."""
    x, y = at.corner(*place)
    width, height = at.tile[0] + 2 * at.frame, at.tile[1] + 2 * at.frame
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    with Image.open(path) as image:
        picture.paste(fit(image, at.tile), (x + at.frame, y + at.frame))
    middle, below = x + width / 2, y + height + at.frame
    if number:
        draw.text((middle, below), number, INK, at.number_font, anchor="ma")
        below += at.number_font.size * 1.2
    draw.text((middle, below), shorten(Path(path).name, at.name_font, width), FAINT, at.name_font, anchor="ma")


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


def training_curves(log_jsonl, path):
    """Writes a PNG: loss by epoch on the left, rank-1 and mAP of the epochs that were evaluated on the right."""
    from matplotlib.figure import Figure  # not pyplot: it keeps global state and may want a display
    from matplotlib.ticker import MaxNLocator

    records = read_log(log_jsonl)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["epoch"] for r in records], [r["loss"] for r in records], color="black", marker=".")
    left.set(title="training loss", xlabel="epoch", ylabel="loss")
    evaluated = [r for r in records if "rank1" in r]
    for key, name, colour in (("rank1", "rank-1", "tab:blue"), ("mAP", "mAP", "tab:orange")):
        scores = [100 * r[key] for r in evaluated]
        right.plot([r["epoch"] for r in evaluated], scores, color=colour, marker=".", label=name)
        if scores:
            right.annotate(f"{scores[-1]:.1f}", (evaluated[-1]["epoch"], scores[-1]), (5, 0),
                           textcoords="offset points", color=colour, va="center")
    right.set(title="retrieval", xlabel="epoch", ylabel="%", ylim=(0, 100), xlim=left.get_xlim())
    if evaluated:
        right.legend(loc="lower right", frameon=False)
    else:
        right.text(0.5, 0.5, "not evaluated", transform=right.transAxes, ha="center", color="grey")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        tidy(axes)
    figure.savefig(path, dpi=120, format="png")


def tidy(axes):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def cmc_curves(curves, path):
    """Writes a PNG of cumulative match characteristics. curves: name -> (R,), share of queries with a hit by rank r."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, cmc in curves.items():
        percent = [100 * float(value) for value in cmc]
        axes.plot(range(1, len(cmc) + 1), percent, marker=".", label=f"{name}: {percent[0]:.1f} at rank 1")
    axes.set(title="CMC", xlabel="rank", ylabel="queries with a hit so far, %", ylim=(None, 100.5), xlim=(0.5, None))
    axes.legend(loc="lower right", frameon=False)
    tidy(axes)
    figure.savefig(path, dpi=120, format="png")


def roc_curve(fpr, tpr, num_impostor, path):
    """Writes a PNG of a ROC with a logarithmic false positive rate, down to one pair out of num_impostor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    measured = fpr > 0
    axes.plot(fpr[measured], 100 * tpr[measured], color="black")
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        if rate * num_impostor >= 1:
            value = 100 * tpr[fpr <= rate][-1]
            axes.plot(rate, value, "o", color="black")
            axes.annotate(f"{value:.1f}", (rate, value), (4, -4), textcoords="offset points", va="top", color="gray")
    axes.set(title="ROC", xlabel="false positive rate (pairs of two persons)", ylabel="true positive rate, %",
             xscale="log", xlim=(max(1 / num_impostor, 1e-6), 1), ylim=(0, 100.5))  # fmt: skip
    tidy(axes)
    figure.savefig(path, dpi=120, format="png")
