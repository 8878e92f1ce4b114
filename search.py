"""Search: an exported model ranks a gallery of person crops for each query, with onnxruntime and without torch.

    python search.py --model best.onnx --query q.jpg --gallery crops/
    python search.py --model best.onnx --query queries/ --gallery crops/ --top 20 --provider cuda

    from search import Extractor
    features = Extractor("best.onnx")(["a.jpg", "b.jpg"])    # (2, D) float32
    similarity = features[0] @ features[1]                   # their cosine

It writes ranked.csv (everything) and ranked.jpg (the first rows), and ends with the images that it could not read.
Exit code: 0, 2 for a mistake on the command line, 1 for whatever else leaves nothing ranked.

The model says how it wants its pixels: the ONNX metadata property `reid` is one JSON document, written by export.py.
They are made as in training: Pillow, RGB, BILINEAR to (H, W), the whole image. EXIF rotation is not applied, since
data sets are read without it; an animated image gives its first frame. Ranking is by cosine, exact, block by block
over the gallery; equal similarities rank in gallery order.
Letters: N images, Q queries, G gallery, D feature size, H W image size, B batch.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import re
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tqdm import tqdm

from visualize import ranked_grid

# Keys that the metadata of a model has to have, and the values that this file can work with.
NEEDED = ("schema", "arch", "input_size", "mean", "std", "colour_order", "resize", "feature_dim", "l2_normalised",
          "distance")  # fmt: skip
FIXED = {"schema": 1, "colour_order": "RGB", "resize": "Pillow BILINEAR", "l2_normalised": True}
# The default search for convolution algorithms starts anew for each batch size and stalls for seconds.
CUDA = ("CUDAExecutionProvider", {"device_id": 0, "cudnn_conv_algo_search": "HEURISTIC"})
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": [CUDA, "CPUExecutionProvider"]}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
DECODERS = min(8, os.cpu_count() or 1)  # threads; Pillow decodes outside the interpreter lock
QUERY_BLOCK, GALLERY_BLOCK = 1024, 8192  # similarities held at once: 32 MB
DRAWN = 20  # queries, and answers per query, in the picture and the printed table
LABELS = {"none": None, "market1501": r"(-1|\d{4})_c(\d)(?!\d)"}  # matches the start of a file name: pid, camera
JUNK, NO_LABEL = -1, -2


# ---- images ----

def read_image(path, size):
    """The pixels of an image file at size (H, W): uint8 (H, W, 3), RGB. Raises what Pillow raises."""
    with Image.open(path) as image:
        return resize(image, size)


def resize(image, size):
    return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def to_pixels(image, size):
    """A path, PIL image or HxWx3 uint8 RGB array of any size -> uint8 (H, W, 3)."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, size)
    if isinstance(image, Image.Image):
        return resize(image, size)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"an image is a path, a PIL image or a uint8 array (H, W, 3) in RGB order, not {what}")
    return resize(Image.fromarray(image), size)


def pixels_or_error(image, size):
    """(image, its pixels or the error): broken files make Pillow raise nearly every class there is."""
    try:
        return image, to_pixels(image, size)
    except Exception as error:
        return image, error


def decode_ahead(images, size, batch_size):
    """Yields pixels_or_error of all images in lists of batch_size; threads decode two lists ahead of the caller."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead = deque()
        for start in range(0, len(images), batch_size):
            ahead.append(pool.map(pixels_or_error, images[start : start + batch_size], repeat(size)))
            if len(ahead) > 2:
                yield list(ahead.popleft())
        while ahead:
            yield list(ahead.popleft())


def list_images(folder):
    """The image files below a folder, sorted by their path in it; nothing hidden (.name, ._name, .folder/)."""
    found = []
    for path in Path(folder).rglob("*"):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            found.append((inside.as_posix(), path))
    return [path for _, path in sorted(found)]


# ---- the model ----

def open_session(path, provider):
    """An onnxruntime session on the provider asked for: 'cuda' raises RuntimeError where CUDA cannot be used, 'auto'
    then takes the CPU. onnxruntime itself would carry on on the CPU, with a line on stderr at most."""
    if provider not in ("auto", *PROVIDERS):
        raise ValueError(f"provider {provider!r} is unknown; choose from auto, {', '.join(PROVIDERS)}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; export.py writes the model that search.py reads")
    if provider == "cpu":
        return create_session(path, "cpu")
    session = create_cuda_session(path, quiet=provider == "auto")
    if session is None and provider == "cuda":
        raise RuntimeError(
            f"provider cuda: onnxruntime {onnxruntime.__version__} cannot use CUDA here (built with "
            f"{', '.join(onnxruntime.get_available_providers())}). It needs an NVIDIA GPU with its driver, and CUDA "
            "and cuDNN libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'. Or choose the provider cpu or auto.")
    return session or create_session(path, "cpu")


def create_session(path, provider):
    """A session without onnxruntime's own fallback, which would change the provider of a session that fails later."""
    try:
        return onnxruntime.InferenceSession(str(path), providers=PROVIDERS[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime has a dozen error classes of its own, all straight below Exception
        raise ValueError(f"{path}: onnxruntime cannot load this file as an ONNX model ({error})") from None


def create_cuda_session(path, quiet):
    """A session that runs on CUDA, or None. The list of available providers says only what was compiled in, so the
    one way to know is to try; quiet keeps the complaints of a machine without a GPU off the console."""
    if CUDA[0] not in onnxruntime.get_available_providers():
        return None
    if quiet:
        onnxruntime.set_default_logger_severity(4)
    try:
        if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries that pip installed
            with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):
                onnxruntime.preload_dlls()
        session = create_session(path, "cuda")
    except ValueError:
        if not quiet:
            raise
        return None
    finally:
        if quiet:
            onnxruntime.set_default_logger_severity(2)  # warnings, onnxruntime's default; it cannot be asked
    return session if session.get_providers()[0] == CUDA[0] else None


def read_metadata(session, path):
    """The JSON document that export.py left in the file, checked: the keys, their values, and against the graph."""
    text = session.get_modelmeta().custom_metadata_map.get("reid")
    if text is None:
        raise ValueError(f"{path} was not written by export.py: it has no metadata property 'reid', the JSON document "
                         f"that gives {', '.join(NEEDED)}. Export the checkpoint with export.py.")
    metadata = json.loads(text)
    for key, value in FIXED.items():
        if metadata.get(key, value) != value:
            raise ValueError(f"{path}: its metadata says {key} {metadata[key]!r}, this search.py reads {value!r} only; "
                             "take export.py and search.py from the same version")
    missing = [key for key in NEEDED if key not in metadata]
    if missing:
        raise ValueError(f"{path}: the metadata property 'reid' lacks {', '.join(missing)}; export the model again")
    images, features = session.get_inputs()[0], session.get_outputs()[0]
    graph = (images.type, list(images.shape[1:]), list(features.shape[1:]), isinstance(images.shape[0], int))
    if graph != ("tensor(float)", [3, *metadata["input_size"]], [metadata["feature_dim"]], False):
        raise ValueError(f"{path}: the graph maps {images.type} {images.shape} to {features.shape}, its metadata says "
                         f"input_size {metadata['input_size']}, feature_dim {metadata['feature_dim']}, any batch")
    return metadata


class Extractor:
    """An exported model: extractor(images) -> (N, D) float32, L2-normalised, so a dot product is the cosine.

    Carries input_size (H, W), feature_dim, mean, std, distance, threshold (None where not calibrated), provider (the
    one in use, by onnxruntime's name) and metadata (all that the file says). Set batch_size for speed or memory.
    """

    def __init__(self, path, provider="auto", batch_size=32):
        self.session = open_session(path, provider)
        self.metadata = read_metadata(self.session, path)
        self.provider = self.session.get_providers()[0]
        self.batch_size = batch_size
        self.input_size = tuple(self.metadata["input_size"])
        self.feature_dim = self.metadata["feature_dim"]
        self.mean, self.std = tuple(self.metadata["mean"]), tuple(self.metadata["std"])
        self.distance, self.threshold = self.metadata["distance"], self.metadata.get("threshold")

    def __call__(self, images):
        """images: a list of paths, PIL images or HxWx3 uint8 RGB arrays of any size, or one of them."""
        single = isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", None) == 3
        return extract(self, [images] if single else list(images), skip=False)[0]

    def run(self, pixels):
        """uint8 (B, H, W, 3) -> float32 (B, D), one call of the model."""
        batch = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # (B, H, W, 3) -> (B, 3, H, W)
        batch /= 255
        batch -= np.float32(self.mean).reshape(3, 1, 1)
        batch /= np.float32(self.std).reshape(3, 1, 1)
        try:
            features = self.session.run(["features"], {"images": batch})[0]
        except Exception as error:  # as in create_session; mostly it is memory
            raise RuntimeError(f"{self.provider} failed on a batch of {len(batch)}; try fewer ({error})") from error
        norms = np.linalg.norm(features, axis=1)
        if not (abs(norms - 1) < 0.01).all():  # also true for NaN, which no ranking survives
            raise ValueError(f"the model gives features of length {norms.min()} to {norms.max()} instead of 1")
        return features


def extract(extractor, images, *, skip=True, title=None):
    """Features (N, D) of the readable images, those N images, and [(image, reason)] of the others; without skip the
    first unreadable one raises. title: of a progress bar."""
    features, read, unreadable = [np.empty((0, extractor.feature_dim), np.float32)], [], []
    with tqdm(total=len(images), desc=title, unit=" images", disable=None if title else True) as bar:
        for batch in decode_ahead(images, extractor.input_size, extractor.batch_size):
            good = []
            for image, pixels in batch:
                if not isinstance(pixels, Exception):
                    good.append(pixels)
                    read.append(image)
                elif skip:
                    unreadable.append((image, str(pixels) or type(pixels).__name__))
                else:
                    raise pixels
            if good:
                features.append(extractor.run(np.stack(good)))
            bar.update(len(batch))
    return np.concatenate(features), read, unreadable


# ---- ranking ----

def top_k(query_features, gallery_features, k, leave_out=(), block=GALLERY_BLOCK):
    """The k gallery rows with the largest dot product with each query -> (indices, similarities), both (Q, k).

    leave_out: pairs (query_keys (Q,), gallery_keys (G,)); where the keys are equal, that gallery row is left out for
    that query. Equal similarities rank in gallery order. Index -1 fills up a query that has fewer than k rows.
    """
    if k < 1:
        raise ValueError(f"k is {k}; a ranking needs at least 1")
    indices = np.full((len(query_features), k), -1)
    similarities = np.full((len(query_features), k), -np.inf, np.float32)
    for start in range(0, len(gallery_features), block):
        columns = slice(start, start + block)
        for first in range(0, len(query_features), QUERY_BLOCK):
            rows = slice(first, first + QUERY_BLOCK)
            scores = query_features[rows] @ gallery_features[columns].T  # (q, D) x (D, g) -> (q, g)
            for query_keys, gallery_keys in leave_out:
                scores[query_keys[rows, None] == gallery_keys[None, columns]] = -np.inf
            merge(indices[rows], similarities[rows], scores, start)
    return indices, similarities


def merge(indices, similarities, scores, start):
    """Updates the best (q, k) in place with the scores (q, g) of the gallery rows from start on."""
    q, k = indices.shape
    # (q, k + g). Earlier gallery rows stand first, and so do the empty places (-1), before what is left out (-inf).
    scores = np.concatenate([similarities, scores], axis=1)
    floor = np.partition(scores, -k, axis=1)[:, -k, None]
    rows, columns = np.divmod(np.flatnonzero(scores >= floor), scores.shape[1])  # k of each row, more where tied
    values = scores[rows, columns]
    order = np.lexsort((-values, rows))  # stable, so equal values stay in gallery order
    firsts = np.searchsorted(rows, np.arange(q))[:, None] + np.arange(k)  # (q, k): rows is sorted
    columns = columns[order][firsts]
    similarities[:] = values[order][firsts]
    old = np.take_along_axis(indices, np.minimum(columns, k - 1), axis=1)
    indices[:] = np.where(columns < k, old, columns - k + start)


# ---- the command ----

def read_ids(paths, pattern):
    """pids and camids (N,) that pattern finds in the file names; both NO_LABEL where it finds none."""
    found = [pattern and re.match(pattern, path.name) for path in paths]
    pids = [int(match[1]) if match else NO_LABEL for match in found]
    camids = [int(match[2]) - 1 if match else NO_LABEL for match in found]
    return np.array(pids, int), np.array(camids, int)


def same_file(queries, gallery):
    """Keys for top_k: equal where a query and a gallery image are one file on disk."""
    numbers = {}
    return [np.array([numbers.setdefault(os.path.realpath(path), len(numbers)) for path in paths], int)
            for paths in (queries, gallery)]


def same_person_and_camera(query_ids, gallery_ids):
    """Keys for top_k; distractors (pid 0), junk and unlabelled images are like nothing else."""
    return [np.where(pids > 0, pids * 16 + camids, other)
            for (pids, camids), other in ((query_ids, -1), (gallery_ids, -2))]


def is_match(query_pid, gallery_pid):
    """None where it cannot be known: an image without a label, or a query that is no person."""
    return None if query_pid <= 0 or gallery_pid == NO_LABEL else bool(query_pid == gallery_pid)


def print_table(rows, query_root, gallery_root):
    """File names are relative to the folder that the user gave."""
    def name(path, root):
        return str(path.relative_to(root) if path != Path(root) else path.name)

    width = max(len(name(query, query_root)) for query, _ in rows)
    print(f"\n{'query':<{width}}  rank  similarity  gallery")
    for query, ranked in rows:
        for number, (path, similarity, match) in enumerate(ranked, start=1):
            verdict = {True: "  right", False: "  wrong", None: ""}[match]
            print(f"{name(query, query_root):<{width}}  {number:>4}  {similarity:>10.4f}  "
                  f"{name(path, gallery_root)}{verdict}")


def write_csv(path, rows, labelled):
    """match is 1, 0 or empty. Names that are not valid UTF-8 keep their bytes, so that the paths still open."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "rank", "similarity", "gallery"] + ["match"] * labelled)
        for query, ranked in rows:
            for number, (gallery, similarity, match) in enumerate(ranked, start=1):
                verdict = ["" if match is None else int(match)] * labelled
                writer.writerow([query, number, f"{similarity:.6f}", gallery, *verdict])


def find_images(path, flag):
    """The images that a flag names: one file, or all of a folder."""
    path = Path(path)
    if not path.exists():
        raise SystemExit(f"{flag} {path}: no such file or folder")
    images = [path] if path.is_file() else list_images(path)
    if not images:
        raise SystemExit(f"{flag} {path}: no image in or below this folder ({' '.join(sorted(SUFFIXES))})")
    return images


def writable_folder(path):
    """The folder, made where it was missing; found out now rather than after the work."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        raise SystemExit(f"--out {path}: cannot write there ({error.strerror}); name another folder") from None


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description="Rank a gallery of person crops for each query with an exported model.",
        epilog="Pixels are read as in training: the whole image, no EXIF rotation. Crop people before you search.")
    add = parser.add_argument
    add("--model", required=True, help="ONNX file written by export.py; it brings its size and normalisation along")
    add("--query", required=True, help="one image, or a folder of them; a query that lies in the gallery too is left "
        "out of its own ranking")
    add("--gallery", required=True, help="folder of person crops, searched with its subfolders, or one image")
    add("--top", type=int, default=10, help="gallery images listed per query; 10 fits a screen, 50 is for "
        f"careful looking; the picture shows {DRAWN} at most (default: %(default)s)")
    add("--provider", choices=["auto", *PROVIDERS], default="auto", help="auto takes CUDA where it works, else the "
        "CPU, and says which; cuda stops rather than fall back: for services that count on it (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images per call of the model; 32 suits a CPU, 128 a GPU, "
        "fewer where memory is short (default: %(default)s)")
    add("--labels", choices=list(LABELS), default="none", help="market1501 reads person and camera from names like "
        "0002_c1s1_000451_03.jpg, marks right and wrong answers, and leaves out junk (-1) and the query's person under "
        "the query's camera, as the standard protocol does (default: %(default)s)")
    add("--out", default="runs/search", help="folder for ranked.csv and ranked.jpg, overwritten (default: %(default)s)")
    args = parser.parse_args(argv)
    if min(args.top, args.batch_size) < 1:
        parser.error(f"--top {args.top}, --batch-size {args.batch_size}: both have to be at least 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that no console can show
    pattern = LABELS[args.labels]

    # ---- what there is, and its features ----
    out = writable_folder(args.out)
    queries, gallery = find_images(args.query, "--query"), find_images(args.gallery, "--gallery")
    gallery = [path for path, pid in zip(gallery, read_ids(gallery, pattern)[0], strict=True) if pid != JUNK]
    for flag, paths in (("--query", queries), ("--gallery", gallery)):
        if pattern and (read_ids(paths, pattern)[0] < 0).all():
            raise SystemExit(f"{flag}: no name gives person and camera as 0002_c1s1_000451_03.jpg does; "
                             "leave --labels out")
    try:
        extractor = Extractor(args.model, args.provider, args.batch_size)
        about, (height, width) = extractor.metadata, extractor.input_size
        print(f"model: {args.model}, {about['arch']} trained on {about.get('dataset') or 'an unnamed set'}, "
              f"{height} x {width} pixels -> {extractor.feature_dim} features")
        print(f"runs on: {extractor.provider} (onnxruntime {onnxruntime.__version__})")
        start = time.perf_counter()
        query_features, queries, unreadable = extract(extractor, queries, title="query")
        gallery_features, gallery, others = extract(extractor, gallery, title="gallery")
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    unreadable += others
    count, seconds = len(queries) + len(gallery) + len(unreadable), time.perf_counter() - start
    print(f"images: {len(queries)} query, {len(gallery)} gallery, {len(unreadable)} unreadable; "
          f"{count / seconds:.0f} images/s, decoding included")

    # ---- ranking ----
    query_ids, gallery_ids = read_ids(queries, pattern), read_ids(gallery, pattern)
    leave_out = [same_file(queries, gallery), same_person_and_camera(query_ids, gallery_ids)]
    found = top_k(query_features, gallery_features, min(args.top, max(1, len(gallery))), leave_out)
    rows = []
    for query, query_pid, indices, similarities in zip(queries, query_ids[0], *found, strict=True):
        ranked = [(gallery[g], float(similarity), is_match(query_pid, gallery_ids[0][g]))
                  for g, similarity in zip(indices, similarities, strict=True) if g >= 0]
        rows += [(query, ranked)] if ranked else []

    # ---- results ----
    if rows:
        try:  # files first: a table that is piped into head must not lose them
            write_csv(out / "ranked.csv", rows, bool(pattern))
            picture = ranked_grid([(query, ranked[:DRAWN]) for query, ranked in rows[:DRAWN]])
            picture.save(out / "ranked.jpg", quality=90, subsampling=0)
        except OSError as error:
            raise SystemExit(f"--out {out}: could not write the results ({error})") from None
        print_table(rows[:DRAWN], args.query, args.gallery)
        print(f"\n{out / 'ranked.csv'}: all {len(rows)} queries; {out / 'ranked.jpg'}: the first "
              f"{min(DRAWN, len(rows))}" + f", {DRAWN} answers each" * (args.top > DRAWN))
    if args.top > len(gallery):
        print(f"--top {args.top} is more than the gallery's {len(gallery)} readable images; all of them are ranked")
    if pattern:
        answerable = sum(pid > 0 and ((gallery_ids[0] == pid) & (gallery_ids[1] != camid)).any()
                         for pid, camid in zip(*query_ids, strict=True))
        hits = sum(bool(ranked[0][2]) for _, ranked in rows)
        print(f"rank-1: {hits} of the {answerable} queries that have a match (cosine, market1501 protocol)")
    if unreadable:
        print(f"{len(unreadable)} images could not be read and were left out:")
        for path, reason in unreadable:
            print(f"  {path}: {reason}")
    if not rows:
        raise SystemExit("nothing could be ranked: no readable query, or every gallery image unreadable or left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
