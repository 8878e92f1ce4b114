"""The same person or not: from labelled features to a threshold that stands in the model's file.

    point = calibrate(features, pids, camids, fmr=0.001)            # features (N, D) of length 1
    store(extractor, point | {"dataset": "shop"})                   # in its file; read back as extractor.threshold

Two images are taken for one person where their cosine is at least point["similarity"]. The false match rate (FMR) is
the share of pairs of two persons that are taken for one, the false non-match rate (FNMR) that of pairs of one person
that are not; the equal error rate (EER) is where both meet.

Pairs are counted as metrics.verification does under the market1501 protocol: all pairs of images but those of one
person under one camera, which are nearly the same picture. Person -1 is junk and left out. Where person 0
is declared to be nobody in particular, as Market-1501 and MARS have it, two of those images make no pair.

Two images of one person are taken for two cameras only where both cameras are known and differ. Where all images are
under one camera, or no camera is known at all, all pairs of one person count: point["compared"] says which it was, and
so does the file.
"""

import decimal
import json
import os
import shutil
import warnings

import numpy as np

from images import camera_name, replacing
from searching.extractor import Extractor
from searching.sources import JUNK, NOBODY

BINS = 2**16  # of similarities from -1 to 1: thresholds have that resolution, the rates at a threshold are exact
BLOCK = 1024
LEAST = 10  # impostor pairs accepted at the rate wanted, below which it would be a guess


def describe_pairs(pids, camids):
    """(whether pairs of one person have to be of two cameras, what to say of it). pids (N,): numbers; camids (N,):
    numbers or texts, empty where a camera is unknown."""
    cameras = [camera_name(camid) for pid, camid in zip(pids, camids, strict=True) if pid != JUNK]
    known, unknown = sorted(set(cameras) - {""}), cameras.count("")
    if not known:
        return False, "all pairs of one person, as no camera is known; those under one camera are easier"
    if len(known) == 1 and not unknown:
        return False, f"all pairs of one person, all under camera {known[0]}, which are easier than under two"
    rest = f"; {unknown:,} of {len(cameras):,} images are of unknown cameras and only in pairs of two persons"
    return True, "pairs of one person under two cameras" + rest * bool(unknown)


def count_pairs(features, pids, camids, bins=BINS, nobody=False):
    """Histograms (bins,) of the similarities of genuine and of impostor pairs. pids, camids: see describe_pairs.
    nobody: whether person 0 is nobody in particular."""
    cameras = describe_pairs(pids, camids)[0]
    keep = np.array([pid != JUNK for pid in pids], bool)
    somebody = np.array([not nobody or pid != NOBODY for pid in pids], bool)[keep]
    persons, names = {}, {}  # numbered: a name may have more digits than an integer of NumPy
    pids = np.array([persons.setdefault(pid, len(persons)) for pid in pids], int)[keep]
    camids = np.array([names.setdefault(camera_name(camid), len(names)) for camid in camids], int)[keep]
    features, known = np.ascontiguousarray(features[keep], np.float32), camids != names.get("", -1)
    genuine, impostor = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        scores = features[rows] @ features[start:].T  # (b, n): each pair once, above the diagonal
        places = ((scores + 1) * (bins / 2)).astype(np.int32).clip(0, bins - 1)
        later = np.arange(scores.shape[1]) > np.arange(scores.shape[0])[:, None]
        same = pids[rows, None] == pids[None, start:]
        impostor += np.bincount(places[later & ~same], minlength=bins)
        if cameras:
            later &= (camids[rows, None] != camids[None, start:]) & known[rows, None] & known[None, start:]
        genuine += np.bincount(places[later & same & somebody[rows, None]], minlength=bins)
    return genuine, impostor


def calibrate(features, pids, camids, fmr=0.001, bins=BINS, nobody=False):
    """The lowest threshold whose false match rate is at most `fmr`, as a dict: similarity, fmr (reached), fnmr, pairs
    [genuine, impostor], compared (a text), eer. ValueError where there are too few pairs to tell. nobody: see
    count_pairs."""
    if not 0 < fmr < 1:
        raise ValueError(f"a false match rate lies between 0 and 1, not {fmr}")
    genuine, impostor = count_pairs(features, pids, camids, bins, nobody)
    pairs, compared = [int(genuine.sum()), int(impostor.sum())], describe_pairs(pids, camids)[1]
    if pairs[0] == 0:
        raise ValueError(f"no pair of one person to compare ({compared}): label images of the same persons under "
                         "several cameras, or leave all cameras out")
    needed = np.ceil(LEAST / fmr)
    if pairs[1] < needed:
        smallest = "too few"
        if pairs[1] > LEAST:  # rounded up, so that the rate that is told is resolved
            rate = decimal.Context(2, decimal.ROUND_CEILING).create_decimal(LEAST / pairs[1])
            smallest = f"the smallest rate that they resolve is {float(rate):g}"
        raise ValueError(f"{pairs[1]:,} pairs of two persons cannot resolve a false match rate of {fmr:g}, which takes "
                         f"{needed:,.0f} of them ({LEAST} expected false matches): {smallest}; label more images or "
                         "ask for a larger rate")
    # rates at the lower edge of each bin, and above all of them
    accepted = [np.append(part[::-1].cumsum()[::-1], 0) for part in (genuine, impostor)]
    fnmrs, fmrs = 1 - accepted[0] / pairs[0], accepted[1] / pairs[1]
    at = int(np.argmax(fmrs <= fmr))
    crossing = int(np.abs(fmrs - fnmrs).argmin())
    return {"similarity": -1 + 2 * at / bins, "fmr": float(fmrs[at]), "fnmr": float(fnmrs[at]), "pairs": pairs,
            "compared": compared, "eer": float((fmrs[crossing] + fnmrs[crossing]) / 2)}  # fmt: skip


def import_onnx(path):
    """The package onnx, which nothing else in search.py needs; ValueError where it is not installed."""
    try:
        import onnx
    except ImportError:
        raise ValueError(f"{path}: the package onnx is needed to write into the file: pip install onnx (on any "
                         "machine; the file can then be copied)") from None
    return onnx


def store(extractor, threshold):
    """Writes `threshold` into the metadata of the extractor's file, which is replaced in one step, and only where the
    new one gives the same features. A file that says nothing, or not the hash of its weights, is told that too. Of a
    link, the file that it leads to."""
    path, onnx = os.path.realpath(extractor.path), import_onnx(extractor.path)
    try:
        model = onnx.load(path, load_external_data=False)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        document = json.loads(properties["reid"]) if "reid" in properties else extractor.metadata
        if not document.get("weights_sha256"):  # else the file would be another one from now on
            document["weights_sha256"] = extractor.metadata["weights_sha256"]
        onnx.helper.set_model_props(model, properties | {"reid": json.dumps(document | {"threshold": threshold})})
        with replacing(path) as file:
            file.write(model.SerializeToString())
            file.flush()
            shutil.copymode(path, file.name)
            check_stored(file.name, extractor, threshold)
    except OSError as error:
        raise OSError(f"{path}: no threshold could be stored in it ({error.strerror or error}); it was left as it is. "
                      "Writing it anew needs room for a second one beside it") from None


def check_stored(file, extractor, threshold):
    """Raises ValueError unless the new file gives the features of the old one, to the bit, and the threshold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be said of the model was said when it was opened
        new = Extractor(file, "cpu", 2)
        old = Extractor(extractor.path, "cpu", 2, preprocessing=extractor.preprocessing)
    pixels = np.random.default_rng(1).integers(0, 256, (2, *extractor.input_size, 3), dtype=np.uint8)
    if new.threshold != threshold or not np.array_equal(new(list(pixels)), old(list(pixels))):
        raise ValueError(f"{extractor.path}: with a threshold it would give other features; it was left as it is")
