"""Search: an exported model ranks a gallery of person crops for each query, with onnxruntime and without torch.

    python search.py --model best.onnx --query q.jpg --gallery crops/          # everything at once; --help says more

    python search.py index crops/ --model best.onnx --index shop.index         # embed once; again: only what is new
    python search.py query --model best.onnx --index shop.index --query q.jpg --html ranked.html
    python search.py calibrate --model best.onnx --labelled labelled/          # a threshold, stored in best.onnx
    python search.py verify a.jpg b.jpg --model best.onnx                      # the same person or not
    python search.py group --index shop.index --html people.html               # who is who, without a label
    python search.py label people.csv --index shop.index                       # what somebody looked at, put into it
    python search.py copy --from shop.index --to "postgresql://user@host/db?gallery=shop"

    from search import Searcher
    searcher = Searcher("best.onnx")                                           # for other programs; in memory
    searcher.add(searcher.crop(frame, boxes), names=ids)                       # uint8 (H, W, 3), RGB
    hits = searcher.search(searcher.crop(frame, box), top=5)[0]                # [Hit(row, similarity), ...]

The first form writes ranked.csv (everything) and ranked.jpg (the first rows). Each ends with the images that it could
not read. Exit code: 0, 2 for a mistake on the command line, 1 for whatever else leaves nothing to tell, or nobody to
read it: the work is done all the same. verify: 0 the same person, 3 not, 4 no threshold is calibrated.

The model says how it wants its pixels. Ranking is by cosine, exact (searching/gallery.py). What folders, lists and
file names tell of a person, a camera, a time and a tracklet stands in searching/sources.py.
Letters: N images, Q queries, G gallery, D feature size, H W image size.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
    import onnxruntime
    from PIL import Image
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"{missing}: source .venv/bin/activate (make test makes it), or pip install -r requirements.txt")

from images import Parser, camera_name, did_you_mean, printable, progress, read_image
from searching import answers, groups, review, sources, stores, threshold
from searching.answers import counted, tell
from searching.extractor import PROVIDERS, SIZES, Extractor, collect, crop, extract, is_single, stream, to_pixels
from searching.gallery import (
    Gallery,
    Index,
    Row,
    average_tracklets,
    check_same_model,
    choose_rows,
    describe,
    list_cameras,
    merge_tracklets,
    top_k,
)

__all__ = ["Extractor", "Gallery", "Hit", "Index", "Row", "Searcher", "Verdict", "extract", "read_image", "to_pixels",
           "top_k"]  # fmt: skip
FORMS = ", ".join(f"{name} from {example}" for name, example in sources.EXAMPLES.items())
LINKS = "Below a folder, links to files are followed, links to folders are not; a folder that you name may be a link."
DRAWN = 20  # queries, and answers per query, in the picture and the printed table
PAGE = 500  # queries on the HTML page
COMMIT = 2.0  # seconds of work that a kill may cost while an index is made
NUMBERS = (int, float, np.generic)
SAME, OTHER, UNKNOWN = 0, 3, 4  # exit codes of verify


# ---- the class ----


class Hit(NamedTuple):
    """An answer: the row of the gallery (path or name, pid, camid, time, tracklet) and its cosine with the query."""

    row: Row
    similarity: float


class Verdict(NamedTuple):
    """Whether two images show one person. same, threshold and fmr (the false match rate that the threshold stands for)
    are None where the model has no calibrated threshold."""

    similarity: float
    same: bool | None
    threshold: float | None
    fmr: float | None


class Searcher:
    """A model and a gallery, for use inside another program.

        searcher = Searcher("best.onnx")                                  # a gallery in memory
        searcher = Searcher("best.onnx", "shop.index")                    # an index on disk, to search in
        searcher = Searcher("best.onnx", "shop.index", write=True)        # and to add to; made where it is missing
        searcher = Searcher("best.onnx", "postgresql://user@host/db?gallery=shop")  # a gallery in PostgreSQL

    An image is a path, a PIL image or a uint8 array (h, w, 3) in RGB order; for a model of tracklets also a list of
    those. Unlike the commands, which list what they cannot read, methods raise what Pillow raises (mostly OSError).
    extractor and gallery are open to be used directly: gallery.features is a float32 array (N, D), gallery.rows says
    what its rows are. In PostgreSQL each search sees what all processes have stored by then.
    """

    def __init__(
        self, model: str | os.PathLike | Extractor, index: str | os.PathLike | None = None, *, write: bool = False,
        provider: str = "auto", batch_size: int = 32, threads: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(model, Extractor):
            model = Extractor(model, provider, batch_size, threads=threads)
        self.extractor: Extractor = model
        self.gallery: Gallery
        if index is None:
            self.gallery = Gallery(model.feature_dim)
        elif write:
            self.gallery = stores.open_index(index, describe(model))
        else:
            self.gallery = stores.read_index(index, live=True)
            check_same_model(self.gallery.about, describe(model), self.gallery.folder)
        rows = self.gallery.rows if write else ()  # which need not be read to search in PostgreSQL
        numbers = [int(row.path[1:]) for row in rows if row.path[:1] == "#" and row.path[1:].isdecimal()]
        self.added = max([len(rows), *(number + 1 for number in numbers)])  # what unnamed images are called by

    def __len__(self) -> int:
        return len(self.gallery)

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes write into the index."""
        self.gallery.close()

    def crop(self, frame: object, boxes: Iterable) -> list[np.ndarray]:
        """What lies under boxes (top, bottom, left, right) in a frame, an image, clipped at its edges; ValueError names
        boxes of which nothing is left."""
        return crop(frame, boxes)

    def embed(self, images: object) -> np.ndarray:
        """Features float32 (N, D), each of length 1, of a list of images or of one."""
        return self.extractor(images)

    def add(
        self, images: Sequence, names: Iterable[str] | None = None, *, pids: Iterable[int | None] | None = None,
        camids: Iterable[str | int | None] | None = None, times: Iterable[float | None] | None = None,
        tracklets: Iterable[str | int | None] | None = None,
    ) -> int:  # fmt: skip
        """Embeds images, or one, and puts them into the gallery; returns how many there are now. names: what `remove`
        and the answers call them; paths name themselves, other images are numbered, #0 for the first that was ever
        added, and no number comes again while the program runs. A name may come again. None is an unknown value."""
        images = [images] if is_single(images) else list(images)
        columns = {"path": (names, str), "pid": (pids, int), "camid": (camids, camera_name), "time": (times, float),
                   "tracklet": (tracklets, str)}  # fmt: skip
        fields = {}
        for name, (values, kind) in columns.items():
            if values is not None:
                values = [values] if isinstance(values, (str, *NUMBERS)) else list(values)
                if len(values) != len(images):
                    raise ValueError(f"{len(values)} of {name} for {len(images)} images; give one each")
                unknown = Row._field_defaults.get(name, "")
                fields[name] = [unknown if value is None else kind(value) for value in values]
        if names is None:
            fields["path"] = [sources.resolve(image) if isinstance(image, (str, os.PathLike)) else f"#{number}"
                              for number, image in enumerate(images, start=self.added)]  # fmt: skip
        rows = [Row(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]
        self.writable().append(self.embed(images), rows)
        self.added += len(rows)
        return len(self.gallery)

    def remove(self, names: Iterable[str | int | os.PathLike]) -> int:
        """Removes all rows of these names or paths, or of one; returns how many were removed."""
        names = {str(name) for name in ([names] if isinstance(names, (str, os.PathLike, *NUMBERS)) else names)}
        names |= {sources.resolve(name) for name in names}
        keep = [number for number, row in enumerate(self.gallery.rows) if row.path not in names]
        removed = len(self.gallery.rows) - len(keep)
        if removed:
            self.writable().keep(keep)
        return removed

    def search(
        self, queries: object, top: int = 10, *, cameras: Iterable[str | int] = (),
        not_cameras: Iterable[str | int] = (), after: float | None = None, before: float | None = None,
        average: bool = False, approximate: bool = False,
    ) -> list[list[Hit]]:  # fmt: skip
        """The `top` most similar rows for each query, the best first. queries: as for embed, or features, floats
        (Q, D), (D,) or a list of such rows, of any length. cameras, not_cameras, after, before: only rows under these
        cameras (or this one), none of those, of these times (inclusive). average: one answer per tracklet, by the mean
        of its features. approximate: by the HNSW index of a gallery in PostgreSQL."""
        features = as_features(queries, self.extractor.feature_dim)
        if features is None:
            features = self.embed(queries)
        flags = {"approximate": True} if approximate else {}
        rows, *found = self.gallery.search(features, top, cameras=cameras, not_cameras=not_cameras, after=after,
                                           before=before, average=average, **flags)  # fmt: skip
        return [[Hit(rows[g], float(s)) for g, s in zip(*pair, strict=True) if g >= 0]
                for pair in zip(*found, strict=True)]  # fmt: skip

    def verify(self, a: object, b: object) -> Verdict:
        """Whether two images show the same person, by the threshold that `search.py calibrate` stored in the model."""
        first, second = self.extractor([a]), self.extractor([b])
        return judge(float(first[0] @ second[0]), self.extractor.threshold)

    def writable(self):
        if not getattr(self.gallery, "lock", True):  # one in memory has none
            raise ValueError(f"{self.gallery.folder} was opened to search in; Searcher(..., write=True) may write")
        return self.gallery


def as_features(queries, dim):
    """Features (Q, D), (D,) or a list of (D,) as float32 (Q, D) of length 1; None where these are images. ValueError
    where they have another size, or no direction."""
    if isinstance(queries, (list, tuple)) and queries and all(getattr(row, "ndim", None) == 1 for row in queries):
        queries = np.stack(queries)
    if not isinstance(queries, np.ndarray) or queries.dtype.kind != "f" or queries.ndim not in (1, 2):
        return None
    features = np.atleast_2d(queries).astype(np.float32)
    if features.shape[1] != dim:
        raise ValueError(f"features are {queries.shape}, this gallery holds (N, {dim})")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("features of length 0, or with NaN in them, have no direction to rank by")
    return features / lengths


def judge(similarity, threshold):
    """The Verdict for a similarity, by a threshold as a model's metadata has it."""
    if threshold is None:
        return Verdict(similarity, None, None, None)
    return Verdict(similarity, similarity >= threshold["similarity"], threshold["similarity"], threshold["fmr"])


# ---- the commands ----


def open_extractor(args):
    """The model that the flags name; prints what it is and where it runs."""
    sizes = {key: getattr(args, key) for key in SIZES if getattr(args, key)}
    extractor = Extractor(args.model, args.provider, args.batch_size, threads=args.threads, preprocessing=sizes)
    about, (height, width) = extractor.metadata, extractor.input_size
    tell(f"model: {args.model}, {about['arch']} trained on {about.get('dataset') or 'an unnamed set'}, "
         f"{height} x {width} pixels -> {extractor.feature_dim} features")
    tell(f"runs on: {extractor.provider} (onnxruntime {onnxruntime.__version__})"
         + f", but for {len(extractor.on_cpu)} nodes, which run on the CPU" * bool(extractor.on_cpu))
    return extractor


def writable_folder(path, given=None):
    """The folder, made where it was missing; found out now rather than after the work."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        given = given or f"--out {path}"
        raise ValueError(f"{given}: cannot write there ({error.strerror}); name another folder") from None


def embed(extractor, rows, title):
    """Features (n, D) of rows, those n rows, the paths of each, and [(path, reason)] of files that cannot be read. For
    a model of tracklets, rows of frames become rows of tracklets."""
    clips = extractor.input == "clips"
    rows, files = sources.group_tracklets(rows, clips)
    features, places, problems = collect(extractor, files if clips else [row.path for row in rows], title=title)
    return features, [rows[place] for place in places], [files[place] for place in places], problems


def tell_nobody(labels, rows):
    """Says how person 0 is taken, where there is one."""
    count = sum(row.pid == sources.NOBODY for row in rows)
    if count and sources.has_nobody(labels):
        tell(f"note: --labels {labels}: person 0, with {counted(count, 'image', 'images')}, is nobody in particular: "
             "no two images of it are taken for one person")
    elif count:
        tell(f"note: person 0, with {counted(count, 'image', 'images')}, is taken for a person like others; with "
             f"--labels {' or '.join(sources.EXAMPLES)} it is nobody in particular")


def run_index(args):
    if args.hnsw:
        stores.check_not_folder(args.index, "--hnsw")
    if not args.sources:
        return remove_from_index(args)
    extractor = open_extractor(args)
    rows, problems = sources.find_rows(args.sources, args.labels, args.video, empty_ok=args.prune)
    tell_nobody(args.labels, rows)
    rows, files = sources.group_tracklets(rows, extractor.input == "clips")
    with stores.open_index(args.index, describe(extractor)) as index:
        before = len(index)
        todo, updated = sources.plan(index, rows, files, extractor.input == "clips")
        new = sum(place is None for _, _, place in todo)
        tell(f"{args.index}: {before} rows; {len(rows)} listed, {new} new, {len(todo) - new} changed, "
             f"{len(rows) - len(todo)} there already")
        start = time.perf_counter()
        try:
            spoilt, more, changed = embed_into(index, extractor, todo)
            gone = [place for place, row in enumerate(index.rows) if sources.is_gone(row)]
            example = index.rows[gone[0]].path if gone else None
            drop = set(spoilt) | (set(gone) if args.prune else set())
            if drop or updated or new < len(todo):
                index.keep([place for place in range(len(index.rows)) if place not in drop])
        except OSError as error:
            raise ValueError(f"{args.index}: could not write ({error.strerror}); the {len(index)} rows that are in it "
                             "stay good. Make room and start the same command again") from None
        seconds = time.perf_counter() - start
        tell(f"{args.index}: {len(index)} rows now" + f", {len(drop)} removed" * bool(drop)
             + f"; {len(todo) / seconds:.0f} {extractor.unit}/s, decoding included" * bool(todo))
        if gone and not args.prune:
            tell(f"{counted(len(gone), 'row is', 'rows are')} of files that are gone, such as {example}; they stay in "
                 "the index, --prune removes them")
        answers.print_unreadable(problems + more)
        if changed:
            tell(f"{counted(len(changed), 'image', 'images')} changed while being read; the next run reads them again:")
            for path in changed:
                tell(f"  {path}")
        if not len(index) and not drop:
            raise ValueError(f"{args.index} is empty: no image could be read")
        if args.hnsw:
            build_hnsw(args, index)
    return 0


def embed_into(index, extractor, todo):
    """Embeds and stores what sources.plan lists; a kill costs the last seconds. Returns places of rows whose files are
    now unreadable, [(path, reason)] of all unreadable files, and the paths of rows whose files changed meanwhile."""
    images = [paths if extractor.input == "clips" else paths[0] for _, paths, _ in todo]
    new, read, problems, changed, since = [], set(), [], [], time.monotonic()

    def commit():
        if new:
            index.append(np.stack([feature for feature, _ in new]), [row for _, row in new])
        new.clear()

    for part, places, errors in stream(extractor, images, title="index"):
        problems += errors
        read.update(places)
        for place, feature in zip(places, part, strict=True):
            row, paths, old = todo[place]
            if sources.has_changed(paths, row):
                changed.append(row.path)
            if old is None:
                new.append((feature, row))
            else:
                index.overwrite(old, feature, row)
        if time.monotonic() - since > COMMIT:
            commit()
            since = time.monotonic()
    commit()
    spoilt = [old for place, (_, _, old) in enumerate(todo) if place not in read and old is not None]
    return spoilt, problems, changed


def build_hnsw(args, index):
    """--hnsw: the index for approximate searches, and what its answers are worth."""
    start = time.perf_counter()
    index.build_hnsw(args.half)
    seconds = time.perf_counter() - start
    recall, count = index.recall()
    tell(f"{args.index}: an HNSW index for query --approximate, built in {seconds:.0f} s; recall@10 against exact "
         f"{recall:.3f} (mean of {counted(count, 'row', 'rows')} of the gallery as queries)")


def open_there(place):
    """To write into an index that there is, whatever model made it."""
    with stores.read_index(place) as there:
        about = there.about
    return stores.open_index(place, about)


def remove_from_index(args):
    """--remove, and --prune or --hnsw without anything to embed."""
    with open_there(args.index) as index:
        if args.hnsw and not args.remove and not args.prune:
            build_hnsw(args, index)
            return 0
        removed = set()
        for given in args.remove or ():
            place = sources.resolve(given)
            hit = {number for number, row in enumerate(index.rows)
                   if sources.is_below(row.path, place) or sources.is_frame(place, row)}  # fmt: skip
            if not hit:
                tell(f"{given}: no row of it or below it in {args.index}")
            removed |= hit
        if args.prune:
            removed |= {number for number, row in enumerate(index.rows) if sources.is_gone(row)}
        if removed:
            try:
                index.keep([number for number in range(len(index.rows)) if number not in removed])
            except OSError as error:
                raise ValueError(f"{args.index}: could not write ({error.strerror}); nothing was removed. Removing "
                                 "needs room for a second features.npy") from None
        tell(f"{args.index}: {len(removed)} rows removed, {len(index)} left")
    return 0 if removed or not args.remove else 1


def run_copy(args):
    """Rows of one gallery into another, from and to either store."""
    with stores.read_index(args.source) as source:
        about = {key: value for key, value in source.about.items() if key != "schema"}
        with stores.open_index(args.to, about) as target, progress("copy", len(source), "rows") as bar:
            before, start = len(target), time.perf_counter()
            added, changed = stores.copy_rows(source, target, bar.update)
            seconds = time.perf_counter() - start
        with stores.read_index(args.to) as target:
            tell(f"{args.to}: {before:,} rows; {len(source):,} in {args.source}, {added:,} new, {changed:,} changed, "
                 f"{len(source) - added - changed:,} there already; {len(target):,} rows now"
                 + f"; {(added + changed) / seconds:,.0f} rows/s" * bool(added + changed))
    return 0


def run_query(args):
    if args.approximate:
        stores.check_not_folder(args.index, "--approximate")
    for flag in ("csv", "jsonl", "picture", "html"):
        path = getattr(args, flag)
        if path and path != "-":
            check_output(path, f"--{flag} {path}")
    if args.picture and Path(args.picture).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--picture {args.picture}: Pillow writes no such files; let the name end in .jpg or .png")
    console = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if "-" in (args.csv, args.jsonl) else contextlib.nullcontext():
        return answer(args, console)


def check_output(path, given):
    """That a file can be written there, found out before the work."""
    writable_folder(Path(path).parent, given)
    if os.path.isdir(path):
        raise ValueError(f"{given}: this is a folder; name a file")


def answer(args, console):
    with stores.read_index(args.index) as index:
        return answer_from(index, args, console)


def answer_from(index, args, console):
    if not len(index):
        raise ValueError(f"{args.index} holds no rows; python search.py index puts images into it")
    queries, query_rows, files, unreadable = embed_queries(args, index)
    filters = {"cameras": args.camera, "not_cameras": args.not_camera, "after": args.after, "before": args.before}
    chosen = choose_rows(index.rows, **filters)
    if chosen is not None and not len(chosen):
        raise ValueError(f"no row of {args.index} passes the filters; {extent(index.rows)}")
    searched = len(index) if chosen is None else len(chosen)
    rows, members, asked, frames, averaged = index.rows, None, query_rows, None, args.tracklets in ("gallery", "both")
    if averaged:
        rows, members = merge_tracklets(rows, chosen)
    if args.tracklets in ("query", "both"):
        queries, asked, frames = average_tracklets(queries, query_rows)
    nobody, protocol = sources.has_nobody(args.labels), args.labels != "none" or args.leave_out_same_camera
    tell_nobody(args.labels, [*asked, *rows])
    leave_out = sources.own_rows(query_rows, files, index.rows, frames, members)
    if protocol:
        leave_out.append(sources.same_person_and_camera(asked, rows, nobody))
    tell_cameras(asked, rows)
    start = time.perf_counter()
    flags = {"approximate": True} if args.approximate else {}
    found = index.search(queries, args.top, leave_out, average=averaged, **filters, **flags)
    seconds = time.perf_counter() - start
    ranked = answers.Answers(asked, *found, nobody)
    tell(f"{counted(len(asked), 'query', 'queries')}, {searched:,} of {len(index):,} rows searched"
         + f", as {len(rows):,} tracklets" * averaged + f": {seconds:.2f} s")
    if not len(ranked):
        answers.print_unreadable(unreadable)
        raise ValueError("nothing could be ranked: no readable query, or every row left out")
    # files first: a table that is piped into head must not lose them
    notes = [f"{counted(len(ranked), 'query', 'queries')}, {searched:,} gallery rows searched; "
             f"{index.about.get('arch')}, {index.about.get('model')}; cosine similarity"]  # fmt: skip
    unreadable += write_outputs(args, ranked, notes, console)
    if "-" not in (args.csv, args.jsonl):
        shown = ranked.first(DRAWN, DRAWN)
        answers.print_table(shown, answers.common_root(asked), answers.common_root(rows))
        if len(ranked) > DRAWN:
            more = counted(len(ranked) - DRAWN, "more query", "more queries")
            tell(f"... and {more}: --csv, --jsonl and --html show more")
        tell()
    for path, most in ((args.csv, None), (args.jsonl, None), (args.picture, DRAWN), (args.html, PAGE)):
        if path and path != "-":
            tell(f"{path}: " + (f"the first {most} queries" if most and len(ranked) > most else "all queries"))
    tell_rank1(ranked, rows, leave_out, None if averaged else chosen, protocol)
    answers.print_unreadable(unreadable)
    return 0


def tell_cameras(queries, rows):
    if told := sources.compare_cameras(queries, rows):
        tell(told)


def tell_rank1(ranked, rows, leave_out, chosen, protocol):
    """How many of the queries with a match among the rows that they may find (of `rows` those `chosen`, or all) have it
    first; by what rule. Nothing where no person is known."""
    places, answerable = {}, 0  # person -> numbers of the rows
    for number in range(len(rows)) if chosen is None else chosen:
        places.setdefault(None if sources.is_proposed(rows[number].pid) else rows[number].pid, []).append(number)
    for number, query in enumerate(ranked.queries):
        if answers.is_match(query.pid, query.pid, ranked.nobody) and query.pid in places:
            same = np.array(places[query.pid])
            left = [ours[number] == theirs[same] for ours, theirs in leave_out]
            answerable += not np.logical_or.reduce(left).all() if left else 1
    if not set(places) - {None} or all(query.pid is None for query in ranked.queries):
        return
    hits = sum(bool(match) for _, [(_, _, match)] in ranked.first(len(ranked), 1))
    rule = "market1501 protocol" if protocol else (
        "no protocol: rows of the query's person under its camera count too; --leave-out-same-camera leaves them out")
    tell(f"rank-1: {hits} of the {answerable} queries that have a match (cosine, {rule})")


def embed_queries(args, index):
    """What `embed` gives, of the images of --query or of the rows of --query-index."""
    if args.query_index:
        with stores.read_index(args.query_index) as queries:
            check_same_model(queries.about, index.about, args.query_index)
            return queries.features[:], queries.rows, [[row.path] for row in queries.rows], []
    if not args.model:
        raise ValueError("--query needs --model, the model that made the index; only --query-index does without")
    extractor = open_extractor(args)
    check_same_model(index.about, describe(extractor), args.index)
    if index.about.get("precision", "fp32") != extractor.precision:
        tell(f"note: the index holds {index.about.get('precision')} features, the model gives {extractor.precision}; "
             "similarities differ in the third digit")
    rows, missing = sources.find_rows([args.query], args.labels, args.video, junk=True)
    *found, problems = embed(extractor, rows, "query")
    return *found, missing + problems


def extent(rows):
    """What there would be to filter by, for a message."""
    times = [row.time for row in rows if row.time is not None]
    return (f"its cameras: {list_cameras(rows)}; "
            + (f"its times: from {min(times):.15g} to {max(times):.15g}" if times else "no times known"))


def write_outputs(args, ranked, notes, console):
    """What the flags name, the console last, whose reader may leave; [(path, reason)] of images that could not be
    drawn."""
    gone, tables = [], [(args.csv, answers.write_csv), (args.jsonl, answers.write_jsonl)]
    try:
        for path, write in tables:
            if path and path != "-":
                write(path, ranked)
        if args.picture:
            gone = answers.write_picture(args.picture, ranked.first(DRAWN, DRAWN))
        if args.html:
            notes += [f"the first {PAGE} queries are shown"] * (len(ranked) > PAGE)
            answers.write_page(args.html, ranked.first(PAGE), title=f"Ranked lists from {args.index}", notes=notes)
        for path, write in tables:
            if path == "-":
                write(path, ranked, console=console)
    except BrokenPipeError:  # --csv - into head
        raise
    except (OSError, ValueError, KeyError) as error:  # the last two: Pillow, for a name without a known ending
        raise ValueError(f"could not write the results ({error})") from None
    return gone


def side(path, extractor):
    """What Extractor takes for one side of verify: an image, or for a model of tracklets also a folder of frames."""
    if not os.path.isdir(path):
        return path
    if extractor.input != "clips":
        raise ValueError(f"{path} is a folder; verify compares images (with a model of tracklets, folders too)")
    return [frame for frame, _ in sources.find_paths(path)]


def run_verify(args):
    extractor = open_extractor(args)
    sides = [side(path, extractor) for path in args.images]
    features, _, unreadable = extract(extractor, sides)
    answers.print_unreadable(unreadable)
    if len(features) < 2:
        raise ValueError("verify needs two images that can be read")
    verdict = judge(float(features[0] @ features[1]), extractor.threshold)
    if verdict.same is None:
        tell(f"similarity {verdict.similarity:.4f}; no verdict: {args.model} has no calibrated threshold. Label "
             f"images of your own cameras and run: python search.py calibrate --model {args.model} --labelled FOLDER")
        return UNKNOWN
    told = extractor.threshold
    tell(f"{'the same person' if verdict.same else 'not the same person'}: similarity {verdict.similarity:.4f}, "
         f"threshold {verdict.threshold:.4f}, at which {verdict.fmr:.3g} of pairs of two persons are taken for one "
         f"and {told['fnmr']:.3g} of pairs of one person are missed (on {told.get('dataset') or 'an unnamed set'})")
    return SAME if verdict.same else OTHER


def labelled_rows(args, extractor):
    """(features (N, D) of an index, or None where images are still to be embedded; rows; [(path, reason)] of files that
    are not there)."""
    if not any(map(stores.is_index, args.labelled)):
        return None, *sources.find_rows(args.labelled, args.labels or "market1501", args.video,
                                        strict=bool(args.labels))  # fmt: skip
    if len(args.labelled) > 1:
        raise ValueError(f"--labelled {' '.join(args.labelled)}: an index stands alone")
    with stores.read_index(args.labelled[0]) as index:
        check_same_model(index.about, describe(extractor), args.labelled[0])
        return index.features[:], list(index.rows), []


def run_calibrate(args):
    extractor = open_extractor(args)
    if not os.access(os.path.dirname(os.path.realpath(args.model)), os.W_OK):
        raise ValueError(f"{args.model}: the threshold is stored in this file, and its folder cannot be written to")
    threshold.import_onnx(args.model)  # now, rather than after the work
    features, rows, missing = labelled_rows(args, extractor)
    proposed = sum(sources.is_proposed(row.pid) for row in rows)
    if proposed and not args.reviewed:
        told = (f"the persons of {counted(proposed, 'row', 'rows')} are proposals of search.py group that nobody has "
                "looked at (group --html, then label; or --reviewed)")
        if not any(sources.is_known(row.pid) for row in rows):
            raise ValueError(f"{args.labelled[0]}: {told}")
        tell(f"note: {told}; they are left out")
    rows = [row._replace(pid=-row.pid if args.reviewed else None) if sources.is_proposed(row.pid) else row
            for row in rows]  # fmt: skip
    strangers = [row.path for row in rows if row.pid is None]
    known = [number for number, row in enumerate(rows) if row.pid is not None]
    rows = [rows[number] for number in known]
    if not rows:
        first = f"; the first is {os.path.basename(strangers[0])}" if strangers else ""
        raise ValueError(f"{args.labelled[0]}: no image has a label{first}. It takes names as 0002_c1s1_000451_03.jpg "
                         "(person 2, camera 1), or those of --labels mars, or a list with the columns path, pid, camid")
    if strangers:
        tell(f"note: {counted(len(strangers), 'image', 'images')} of unknown persons left out, such as {strangers[0]}")
    nobody = sources.has_nobody(args.labels or "none")  # names may be read as those of Market-1501 without being so
    tell_nobody(args.labels or "none", rows)
    problems = []
    if features is None:
        features, rows, _, problems = embed(extractor, rows, "calibrate")
    else:
        features = features[known]
    point = threshold.calibrate(features, [row.pid for row in rows], [row.camid for row in rows], args.fmr,
                                nobody=nobody)  # fmt: skip
    equal, persons = point.pop("eer"), len({row.pid for row in rows} - ({sources.NOBODY} if nobody else set()))
    point["dataset"] = args.name or os.path.basename(os.path.abspath(args.labelled[0]))
    threshold.store(extractor, point)
    tell(f"compared: {point['compared']}")
    tell(f"pairs: {point['pairs'][0]:,} of one person, {point['pairs'][1]:,} of two, from {len(rows)} "
         f"{extractor.unit} of {persons} persons; equal error rate {equal:.2%}")
    tell(f"threshold {point['similarity']:.4f}: false match rate {point['fmr']:.3g} (asked: at most {args.fmr:g}), "
         f"false non-match rate {point['fnmr']:.3g}; stored in {args.model}")
    answers.print_unreadable(missing + problems)
    return 0


def run_group(args):
    groups.import_sparse()  # now, rather than after the work
    for flag in ("csv", "html"):
        if path := getattr(args, flag):
            check_output(path, f"--{flag} {path}")
    if args.index:
        with stores.read_index(args.index) as index:
            features, rows, unreadable = index.features[:], list(index.rows), []
    else:
        extractor = open_extractor(args)
        rows, missing = sources.find_rows(args.sources, args.labels, args.video)
        features, rows, _, problems = embed(extractor, rows, "group")
        unreadable = missing + problems
    keep = [number for number, row in enumerate(rows) if row.pid != sources.JUNK]
    if not keep:
        answers.print_unreadable(unreadable)
        raise ValueError("there is nothing to group: no readable image that is not junk")
    features, rows = features[keep], [rows[number] for number in keep]
    tell_nobody(args.labels, rows)
    start = time.perf_counter()
    found = groups.group(features, rows, sources.has_nobody(args.labels))
    seconds = time.perf_counter() - start
    numbers = review.number_people(found, rows)
    alone, sure = numbers.count(None), (found.confidence >= groups.SURE).mean()
    tell(f"{counted(len(set(numbers) - {None}), 'person', 'persons')} in {counted(len(rows), 'row', 'rows')}, of which "
         f"{alone:,} {'stands' if alone == 1 else 'stand'} alone; {seconds:.1f} s")
    tell(f"sure (confidence {groups.SURE} or more) of {sure:.0%} of the rows; cut at a similarity of {found.cut:.2f}")
    for note in found.notes:
        tell(f"note: {note}")
    if args.csv:
        review.write_people(args.csv, rows, numbers, found.confidence)
        tell(f"{args.csv}: a line per row; what somebody looked at, search.py label puts into an index")
    if args.html:
        left = review.write_page(args.html, rows, numbers, found, f"Who is who in {args.index or args.sources[0]}")
        tell(f"{args.html}: open it in a browser; it asks of the pairs most in doubt, and gives people.csv back"
             + f". It holds {review.CROPS:,} crops, the {left:,} surest are left out" * bool(left))
    if args.into:
        persons = {row.path: number for row, number in zip(rows, numbers, strict=True)}
        store_persons(args.into, persons, set())
    answers.print_unreadable(unreadable)
    return 0


def run_label(args):
    persons, reviewed = review.read_people(args.people)
    store_persons(args.index, persons, set(persons) if args.reviewed else reviewed)
    return 0


def store_persons(place, persons, reviewed):
    """Puts persons {path: number or None} into the rows of an index: what was reviewed as known, the rest as
    proposals, which change no person that is known."""
    with open_there(place) as index:
        known, proposed, found = 0, 0, set()
        for number, row in enumerate(index.rows):
            if row.path not in persons:
                continue
            person, pid = persons[row.path], row.pid
            found.add(row.path)
            if row.path in reviewed:
                pid, known = person, known + 1
            elif not sources.is_known(row.pid) and row.pid != sources.JUNK:
                pid = None if person is None else -person
                proposed += person is not None
            index.rows[number] = row._replace(pid=pid)
        if not found:
            raise ValueError(f"{place}: none of the {len(persons):,} images that are listed is in it")
        index.keep(range(len(index.rows)))
    tell(f"{place}: {counted(known, 'row', 'rows')} as reviewed, {counted(proposed, 'row', 'rows')} as proposed, which "
         "no check takes for known")
    if missing := len(set(persons) - found):
        tell(f"note: {counted(missing, 'listed image is', 'listed images are')} not in it")


def rank_folder(args):
    """python search.py --model --query --gallery: embeds both sides and ranks, nothing is kept but the results."""
    out = writable_folder(args.out)
    (query_rows, missing), (rows, others) = list_side("--query", args), list_side("--gallery", args)
    extractor = open_extractor(args)
    start = time.perf_counter()
    queries, query_rows, files, unreadable = embed(extractor, query_rows, "query")
    features, rows, _, more = embed(extractor, rows, "gallery")
    unreadable = [(as_given(path, source), reason) for source, problems in
                  ((args.query, missing + unreadable), (args.gallery, others + more))
                  for path, reason in problems]  # fmt: skip
    count, seconds = len(query_rows) + len(rows) + len(unreadable), time.perf_counter() - start
    tell(f"images: {len(query_rows)} query, {len(rows)} gallery, {len(unreadable)} unreadable; "
         f"{count / seconds:.0f} images/s, decoding included")

    nobody = sources.has_nobody(args.labels)
    tell_nobody(args.labels, [*query_rows, *rows])
    tell_cameras(query_rows, rows)
    leave_out = sources.own_rows(query_rows, files, rows)
    leave_out.append(sources.same_person_and_camera(query_rows, rows, nobody))
    found = top_k(queries, features, min(args.top, max(1, len(rows))), leave_out)
    shown = [[row._replace(path=as_given(row.path, source)) for row in side]
             for side, source in ((query_rows, args.query), (rows, args.gallery))]  # fmt: skip
    ranked, labelled = answers.Answers(*shown, *found, nobody), args.labels != "none"

    if len(ranked):
        try:  # files first: a table that is piped into head must not lose them
            answers.write_csv(out / "ranked.csv", ranked, ("match",) * labelled)
            unreadable += answers.write_picture(out / "ranked.jpg", ranked.first(DRAWN, DRAWN))
        except OSError as error:
            raise ValueError(f"--out {out}: could not write the results ({error})") from None
        answers.print_table(ranked.first(DRAWN), args.query, args.gallery)
        tell()
        tell(f"{out / 'ranked.csv'}: all {len(ranked)} queries; {out / 'ranked.jpg'}: the first "
             f"{min(DRAWN, len(ranked))}" + f", {DRAWN} answers each" * (args.top > DRAWN))
    if args.top > len(rows):
        tell(f"--top {args.top} is more than the gallery's {len(rows)} readable images; all of them are ranked")
    if labelled:
        tell_rank1(ranked, rows, leave_out, None, protocol=True)
    answers.print_unreadable(unreadable)
    if not len(ranked):
        raise ValueError("nothing could be ranked: no readable query, or every gallery image unreadable or left out")
    return 0


def list_side(flag, args):
    """Rows of the images that --query or --gallery names, and [(path, reason)] of what is not there. Tracklets that
    names tell do not count: each image is ranked by itself."""
    source = args.query if flag == "--query" else args.gallery
    if sources.is_list(source):
        raise ValueError(f"{flag} {Path(source)}: this takes a folder or an image; lists are for search.py index, and "
                         "for search.py query")
    rows, missing = sources.find_rows([source], args.labels, junk=flag == "--query", where=flag)
    return [row._replace(tracklet="") for row in rows], missing


def as_given(path, source):
    """A path that lies in the source, or is the source, as the user would write it: sources.resolve followed links."""
    return str(Path(source + path[len(sources.resolve(source)) :]))


# ---- flags ----


class SafeParser(Parser):
    """A message shows no control characters, and no password."""

    def error(self, message):
        super().error(printable(stores.without_passwords(message)))

    def hint(self, flag, argv):
        late = [word for word in argv if word in COMMANDS and self.prog == "search.py"]
        near = f"; a command comes first: search.py {late[0]} ..." if late else super().hint(flag, argv)
        return near or f"; {self.prog} --help lists all"


def place_flag(text):
    try:
        return stores.Address(text) if stores.is_address(text) else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_model_flags(parser, required=True):
    add = parser.add_argument
    add("--model", required=required, metavar="FILE", help="ONNX file written by export.py; it brings its size and "
        "normalisation along")
    add("--provider", choices=["auto", *PROVIDERS], default="auto", help="auto takes CUDA where it works, else the "
        "CPU, and says which; cuda stops rather than fall back, be it for one node: for services that count on it; "
        "tensorrt builds engines beside the model, which takes minutes the first time (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images per call of the model; 32 suits a CPU, 128 a GPU, "
        "fewer where memory is short (default: %(default)s)")
    add("--threads", type=int, default=0, help="of the model on a CPU, and of decoding; fewer where other programs "
        "need the cores (default: 0, one per core)")
    foreign = parser.add_argument_group("for an ONNX file that export.py did not write, all three as it was trained")
    foreign.add_argument("--input-size", type=int, nargs=2, metavar=("H", "W"), help="such as 256 128")
    foreign.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of pixels from 0 to 1; of "
                         "numbers for 0 to 255, a 255th")  # fmt: skip
    foreign.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of pixels from 0 to 1")


def add_source_flags(parser, labels="none", more=""):
    add = parser.add_argument
    add("--labels", choices=list(sources.LABELS), default=labels, help="read person, camera, frame and tracklet from "
        f"file names: {FORMS}; images of person -1 (junk) are left out, person 0 is nobody in particular, and what a "
        "list says wins. Names of another form are counted; where none is of it, that is an error"
        f"{more} (default: {labels or 'names as of market1501 are read, and person 0 is a person like others'})")
    add("--video", action="store_true", help="each folder that holds images is a tracklet, where names tell none")


def start_parser():
    parser = SafeParser(
        prog="search.py", description="Rank a gallery of person crops for each query with an exported model.",
        epilog="Subcommands, for galleries that are kept: search.py {index,query,verify,calibrate,group,"
        "label,copy} --help. "
        f"Pixels are read as in training: the whole image, no EXIF rotation. Crop people before you search. {LINKS}",
    )  # fmt: skip
    add_model_flags(parser)
    add = parser.add_argument
    add("--query", required=True, help="one image, or a folder of them; a query that lies in the gallery too is left "
        "out of its own ranking")
    add("--gallery", required=True, help="folder of person crops, searched with its subfolders, or one image")
    add("--top", type=int, default=10, help="gallery images listed per query; 10 fits a screen, 50 is for "
        f"careful looking; the picture shows {DRAWN} at most (default: %(default)s)")
    add("--labels", choices=list(sources.LABELS), default="none", help="read person and camera from file names: "
        f"{FORMS}; marks right and wrong answers, and leaves out junk (-1) and the query's person under the query's "
        "camera, as the standard protocol does. Names of another form are counted; where none is of it, that is an "
        "error (default: %(default)s)")
    add("--out", default="runs/search", help="folder for ranked.csv and ranked.jpg, overwritten (default: %(default)s)")
    return parser


def index_parser():
    parser = SafeParser(
        prog="search.py index", description="Embed a gallery once and keep its features in a folder: features.npy, "
        "which other programs load too, items.csv, which says what each row is, index.json, which says by what model. "
        "Start it again to add what is new, to embed again what has changed, or to go on after a kill.", epilog=LINKS,
    )  # fmt: skip
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="folder of person crops with its subfolders, an image, a .txt "
        "file with a path per line, or a .csv file with the columns path and, where known, pid, camid, time, tracklet; "
        "other columns are not used")
    add("--index", required=True, metavar="FOLDER", type=place_flag, help=f"the index, made where it is missing; or "
        f"{stores.FORM}, into which several processes may write at once")
    add_model_flags(parser, required=False)
    add_source_flags(parser)
    add("--prune", action="store_true", help="remove rows whose files are gone; also alone, without SOURCE and "
        "--model. A row of a model of tracklets is gone with the folder of its frames, or, where a tracklet is no "
        "folder, with its first frame")
    add("--remove", nargs="+", metavar="PATH", help="remove these images, or all below these folders; needs no "
        "--model. Of a model of tracklets, whose rows are a tracklet each, a frame removes all of it: any frame "
        "where tracklets are folders or told by names in one folder, the first frame where a list tells them")
    add("--hnsw", action="store_true", help="of a gallery in PostgreSQL: build, in the end or alone, the index for "
        "query --approximate, and print its recall")
    add("--half", action="store_true", help="with --hnsw: of 16-bit floats, in half of the room")
    return parser


def copy_parser():
    parser = SafeParser(
        prog="search.py copy", description="Bring the rows of one gallery into another: what is missing there, and "
        "what is known otherwise there. Each of the two is a folder or a gallery in PostgreSQL. Start it again to go "
        "on after a kill; what only --to has stays there.",
    )  # fmt: skip
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="INDEX", type=place_flag, help=f"a folder, or {stores.FORM}")
    add("--to", required=True, metavar="INDEX", type=place_flag, help="the same; made where it is missing")
    return parser


def query_parser():
    parser = SafeParser(
        prog="search.py query", description="Rank the rows of an index for each query: the most similar first, exact.",
        epilog=LINKS,
    )  # fmt: skip
    add = parser.add_argument
    add("--index", required=True, metavar="FOLDER", type=place_flag, help="what search.py index made; or "
        f"{stores.FORM}")
    add("--query", metavar="PATH", help="image, folder, or list as search.py index takes it; a query that lies in the "
        "index too is left out of its own ranking")
    add("--query-index", metavar="FOLDER", type=place_flag, help="instead: each row of another index is a "
        "query; needs no --model")
    add_model_flags(parser, required=False)
    add_source_flags(parser, more="; rows of the query's person under the query's camera are left out, as the standard "
                     "protocol of these sets does")  # fmt: skip
    add("--top", type=int, default=10, help="answers per query (default: %(default)s)")
    add("--approximate", action="store_true", help="of a gallery in PostgreSQL: by the index that index --hnsw built, "
        "which finds most of the most similar and not always all (default: exact)")
    which = parser.add_argument_group("which rows are searched")
    which.add_argument("--camera", nargs="+", default=[], help="only those of these cameras")
    which.add_argument("--not-camera", nargs="+", default=[], metavar="CAMERA", help="none of these cameras; "
                       "01, c1 and Camera 1 are camera 1")  # fmt: skip
    when = "as the index has them: frame numbers where names tell them, else seconds since 1970, when the file was " \
        "written unless a list says; a date such as 2026-05-01T14:30:00+02:00 stands for its seconds"  # fmt: skip
    which.add_argument("--after", type=time_flag, metavar="TIME", help=f"from this time on; times are {when}")
    which.add_argument("--before", type=time_flag, metavar="TIME", help="up to this time")
    which.add_argument("--leave-out-same-camera", action="store_true", help="leave out rows of the query's person "
                       "under the query's camera, as with --labels, also where lists tell them")  # fmt: skip
    which.add_argument("--tracklets", choices=["query", "gallery", "both"], help="one feature per tracklet, the mean "
                       "of those of its images")  # fmt: skip
    out = parser.add_argument_group("what is written beside the table; - is the console, in its place")
    out.add_argument("--csv", metavar="FILE", help="a line per answer")
    out.add_argument("--jsonl", metavar="FILE", help="a line of JSON per query")
    out.add_argument("--picture", metavar="FILE", help=f"the first {DRAWN} queries as a .jpg or .png")
    out.add_argument("--html", metavar="FILE", help=f"one page that holds all its images, of the first {PAGE} queries")
    return parser


def group_parser():
    parser = SafeParser(
        prog="search.py group", description="Tell who is who without a label: rows of an index, or images, become "
        "people. Cameras, tracklets and times help where they are known; persons that are known stay as they are.",
        epilog=f"A proposal is no truth until somebody has looked at it: open the page of --html. {LINKS}",
    )  # fmt: skip
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE", help="instead of --index: what search.py index takes; needs --model")
    add("--index", metavar="FOLDER", type=place_flag, help=f"what search.py index made; or {stores.FORM}")
    add_model_flags(parser, required=False)
    add_source_flags(parser)
    out = parser.add_argument_group("what is written")
    out.add_argument("--csv", metavar="FILE", help="a line per row: path, person (empty where it stands alone), "
                     "confidence, reviewed")  # fmt: skip
    out.add_argument("--html", metavar="FILE", help="one page to look at the people and to correct them, the most "
                     f"doubtful first; up to {review.CROPS:,} crops")  # fmt: skip
    out.add_argument("--into", metavar="FOLDER", type=place_flag, help="an index whose rows get the persons, as "
                     "proposals, which no check takes for known")  # fmt: skip
    return parser


def label_parser():
    parser = SafeParser(
        prog="search.py label", description="Put persons into the rows of an index, from a list as search.py group or "
        "its page write it: lines with reviewed 1 as known, the others as proposals. A list without that column is "
        "taken as reviewed.",
    )  # fmt: skip
    add = parser.add_argument
    add("people", metavar="PEOPLE.CSV", help="with the columns path and person: a number, -1 for what is no person, "
        "empty for unknown")
    add("--index", required=True, metavar="FOLDER", type=place_flag, help=f"what search.py index made; or "
        f"{stores.FORM}")
    add("--reviewed", action="store_true", help="take all lines as reviewed: somebody has looked at them")
    return parser


def time_flag(text):
    try:
        return sources.parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def verify_parser():
    parser = SafeParser(
        prog="search.py verify", description="Tell whether two images show the same person, at the calibrated "
        "threshold.", epilog=f"Exit code: {SAME} the same person, {OTHER} not, {UNKNOWN} the model has no calibrated "
        f"threshold; 1 where an image or the model cannot be read, 2 for a mistake on the command line. {LINKS}",
    )  # fmt: skip
    parser.add_argument("images", nargs=2, metavar="IMAGE",
        help="an image file; a model of tracklets takes folders of frames too")
    add_model_flags(parser)
    return parser


def calibrate_parser():
    parser = SafeParser(
        prog="search.py calibrate", description="Find the threshold of 'the same person' on images whose persons are "
        "known, and store it in the model's file.",
        epilog="Take images of your own cameras: no threshold holds everywhere. Pairs of one person under one camera "
        "are left out; where no camera is known, or all images are of one, all pairs of one person are taken. Which it "
        f"was is printed, and stored with the threshold. {LINKS}",
    )  # fmt: skip
    add = parser.add_argument
    add("--labelled", required=True, nargs="+", metavar="SOURCE", type=place_flag, help="folder whose names tell "
        "person and camera, a .csv file with the columns path, pid and, where known, camid, or an index")
    add("--reviewed", action="store_true", help="take the persons that group proposed in an index for known, as "
        "somebody has looked at them; else they are left out")
    add_model_flags(parser)
    add_source_flags(parser, labels=None)
    add("--fmr", type=float, default=0.001, help="the false match rate wanted: the share of pairs of two persons that "
        "may be taken for one (default: %(default)s)")
    add("--name", help="what verify calls the labelled set (default: the name of the first source)")
    return parser


def parse(parser, argv):
    args = parser.parse_args(argv)
    counts = {flag: getattr(args, flag) for flag in ("top", "batch_size") if hasattr(args, flag)}
    if min(counts.values(), default=1) < 1:
        told = ", ".join(f"--{flag.replace('_', '-')} {value}" for flag, value in counts.items())
        parser.error(f"{told}: both have to be at least 1" if len(counts) > 1 else f"{told}: it has to be at least 1")
    if getattr(args, "threads", 0) < 0:
        parser.error(f"--threads {args.threads}: it has to be 0 or more")
    if parser.prog.endswith("index"):
        if bool(args.sources) == bool(args.remove) and (args.sources or not (args.prune or args.hnsw)):
            parser.error("give sources to index, or --remove PATH; one of them. --prune and --hnsw may stand alone")
        if args.half and not args.hnsw:
            parser.error("--half says how --hnsw builds its index: give both")
        if args.remove and not all(args.remove):
            parser.error("--remove '': an empty path; write . for the working directory, which removes all below it")
        if args.sources and not args.model:
            parser.error("--model is required where something is to be embedded")
    if parser.prog.endswith("query") and bool(args.query) == bool(args.query_index):
        parser.error("give --query or --query-index, one of them")
    if parser.prog.endswith("query") and [args.csv, args.jsonl].count("-") > 1:
        parser.error("--csv - and --jsonl -: one of them may go to the console")
    if parser.prog.endswith("group") and bool(args.sources) == bool(args.index):
        parser.error("give sources or --index, one of them")
    if parser.prog.endswith("group") and args.sources and not args.model:
        parser.error("--model is required where something is to be embedded")
    if parser.prog.endswith("calibrate") and not 0 < args.fmr < 1:
        parser.error(f"--fmr {args.fmr}: a rate lies between 0 and 1, 0.001 is one in a thousand")
    return args


COMMANDS = {"index": (index_parser, run_index), "query": (query_parser, run_query),
            "verify": (verify_parser, run_verify), "calibrate": (calibrate_parser, run_calibrate),
            "group": (group_parser, run_group), "label": (label_parser, run_label),
            "copy": (copy_parser, run_copy)}  # fmt: skip


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    open_streams()
    offer = f"choose from {', '.join(COMMANDS)}, or give --model, --query and --gallery; --help says more"
    if not argv:
        start_parser().error(f"there is nothing to do; {offer}")
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        start_parser().error(f"there is no command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}; {offer}")
    build, run = COMMANDS.get(argv[0], (start_parser, rank_folder))
    args = parse(build(), argv[1:] if run is not rank_folder else argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that no console can show
    console = sys.stdout, sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are listed as unreadable
        warnings.showwarning = lambda message, *_: tell(message, "stderr")  # no line of the code
        try:
            code = run(args)
        except BrokenPipeError:  # of --csv - or --jsonl -, after all else was done
            os.dup2(os.open(os.devnull, os.O_WRONLY), console[0].fileno())
            return 1
        except KeyboardInterrupt:
            raise SystemExit("stopped" + "; the same command goes on" * (run in (run_index, run_copy))) from None
        except (OSError, ValueError, RuntimeError) as error:
            raise SystemExit(printable(stores.without_passwords(error))) from None
    return code if (sys.stdout, sys.stderr) == console else 1  # see tell: the reader has left, which is no success


def open_streams():
    """Standard output and error that were closed go nowhere. Else the next file would take their number, and what
    libraries print would be written into it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
