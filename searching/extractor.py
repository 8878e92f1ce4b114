"""Features from an exported model, with onnxruntime and without torch.

    from searching.extractor import Extractor
    features = Extractor("best.onnx")(["a.jpg", "b.jpg"])    # (2, D) float32
    similarity = features[0] @ features[1]                   # their cosine

The model says how it wants its pixels: the ONNX metadata property `reid` is one JSON document, written by export.py.
A file of another exporter has none; then `preprocessing` says it: {"input_size": [H, W], "mean": [...], "std": [...]}.

| input of the graph | one row of a batch | made from |
|---|---|---|
| images | float32 (3, H, W), normalised | an image: a path, a PIL image or a uint8 array (h, w, 3) in RGB order |
| clips, mask | float32 (T, 3, H, W), (T,) | a tracklet: a list of images; an image is a tracklet of one frame |
| bytes | uint8 (h, w, 3), as it is | an image; the graph resizes and normalises, images of one size run together |

Pixels are made as in training, by images.py: Pillow, RGB, BILINEAR to (H, W), the whole image. What is refused there,
such as huge images and 16-bit grey, is listed like other files that cannot be read.
Letters: N images, D feature size, H W image size, B batch, T frames of a tracklet.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import threading
import warnings
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from images import MAX_SIDE, cpus, open_image, progress, read_image, resize

# Keys that the metadata of a model has to have, and the values that this file can work with.
NEEDED = ("schema", "arch", "input_size", "mean", "std", "colour_order", "resize", "feature_dim", "l2_normalised",
          "distance")  # fmt: skip
FIXED = {"schema": (1, 2), "colour_order": ("RGB",), "resize": ("Pillow BILINEAR",), "l2_normalised": (True,),
         "input": ("images", "clips", "bytes"), "precision": ("fp32", "fp16", "int8")}  # fmt: skip
SIZES = ("input_size", "mean", "std")  # what is to be said about a file without metadata
PROVIDERS = ("cpu", "cuda", "tensorrt")
AHEAD = 2**24  # pixels of images of full size, for 'bytes', in one call of the model: 50 MB, twice that waits decoded
DECODERS = min(8, cpus())  # threads; Pillow decodes outside the interpreter lock
LARGEST_INPUT = 2**22  # pixels of an image as a network takes it, some hundred times what is usual
ORIENTATION = 0x0112  # the EXIF tag
SAME = 0.9999  # cosine of the features of unlike images from which on a model tells nothing apart
TURNED = re.compile(rb"exif|VP8X|^II\*|^MM", re.IGNORECASE)  # in the first bytes of what may say how to turn it
PIECE = 8  # rows of a batch that a CPU computes at once: their maps stay in its caches, which 32 overflow


# ---- images ----

def to_pixels(image, size=None):
    """A path, PIL image or HxWx3 uint8 RGB array of any size -> uint8 (H, W, 3)."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, size)
    if isinstance(image, Image.Image):
        return resize(image, size)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"an image is a path, a PIL image or a uint8 array (H, W, 3) in RGB order, not {what}")
    if not image.size:
        raise ValueError(f"an image of shape {image.shape} has no pixels; a box of a tracker may lie outside its frame")
    return resize(Image.fromarray(image), size)


def crop(frame, boxes):
    """The crops, uint8 (h, w, 3), of what lies under boxes (top, bottom, left, right) in a frame, an image as to_pixels
    takes it. Boxes, of numbers of any kind, are clipped at its edges; ValueError names those of which nothing is left.
    """
    pixels, boxes = to_pixels(frame), np.array([*boxes], float)
    if boxes.size == 0 or boxes.shape == (4,):  # none, or one
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are {boxes.shape}; give (N, 4), of which each is top, bottom, left, right")
    (height, width), rounded = pixels.shape[:2], np.rint(np.nan_to_num(boxes, nan=-1))
    clipped = np.clip(rounded, 0, [height, height, width, width]).astype(int)
    empty = (clipped[:, 0] >= clipped[:, 1]) | (clipped[:, 2] >= clipped[:, 3]) | np.isnan(boxes).any(axis=1)
    if empty.any():
        told = ", ".join(f"number {place} {tuple(boxes[place].tolist())}" for place in np.flatnonzero(empty)[:20])
        raise ValueError(f"{np.count_nonzero(empty)} of {len(boxes)} boxes hold nothing of the frame, which is "
                         f"{height} high and {width} wide: {told} (counted from 0; top, bottom, left, right). Leave "
                         "them out")
    return [pixels[top:bottom, left:right] for top, bottom, left, right in clipped.tolist()]


def is_turned(image):
    """Whether an image file, or a PIL image, says that it is to be shown turned or mirrored; False for what cannot be
    read, which is told elsewhere. Opening a file takes a sixth of the time of reading it, so most are not opened."""
    try:
        if isinstance(image, Image.Image):
            return image.getexif().get(ORIENTATION, 1) != 1
        if not isinstance(image, (str, os.PathLike)) or not os.path.isfile(image):
            return False
        with open(image, "rb") as file:
            if not TURNED.search(file.read(4096)):
                return False
        with open_image(image) as opened:
            return opened.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # Pillow raises a dozen types for broken files
        return False


def spread(count, most):
    """Ascending numbers of at most `most` of `count` frames, evenly spread; all of them where most is 0."""
    return range(count) if not most or count <= most else [(2 * i + 1) * count // (2 * most) for i in range(most)]


def count_pixels(image):
    """Of a path, PIL image or array; the file is not decoded. 0 for what is none of them or cannot be read, which is
    told when it is read."""
    try:
        if isinstance(image, (str, os.PathLike)):
            with open_image(image) as file:
                return file.width * file.height
        return image.width * image.height if isinstance(image, Image.Image) else image.shape[0] * image.shape[1]
    except Exception:  # Pillow raises a dozen types for broken files
        return 0


def cut_lists(items, size, weigh=None, most=0):
    """Yields lists of up to `size` items, with weigh of up to `most` in the sum of weigh(item), but at least one."""
    part, total = [], 0
    for item in items:
        weight = weigh(item) if weigh else 0
        if part and (len(part) == size or total + weight > most):
            yield part
            part, total = [], 0
        part.append(item)
        total += weight
    if part:
        yield part


def work_ahead(function, lists, threads=DECODERS):
    """Yields [function(item), ...] of each list of items; threads work two lists ahead of the caller."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque()
        for items in lists:
            ahead.append(pool.map(function, items))
            if len(ahead) > 2:
                yield list(ahead.popleft())
        while ahead:
            yield list(ahead.popleft())


# ---- sessions ----

def provider_options(provider, path):
    """onnxruntime's list of providers; what the first ones cannot run goes to the next."""
    # The default search for convolution algorithms starts anew for each batch size and stalls for seconds.
    cuda = ("CUDAExecutionProvider", {"device_id": 0, "cudnn_conv_algo_search": "HEURISTIC"})
    # Engines take minutes to build, so they are kept beside the model.
    tensorrt = ("TensorrtExecutionProvider", {"device_id": 0, "trt_engine_cache_enable": True,
                                              "trt_engine_cache_path": f"{path}.trt"})  # fmt: skip
    return {"cpu": [], "cuda": [cuda], "tensorrt": [tensorrt, cuda]}[provider] + ["CPUExecutionProvider"]


def open_session(path, provider="auto", threads=0):
    """An onnxruntime session on the provider asked for: 'cuda' and 'tensorrt' raise RuntimeError where they cannot be
    used, 'auto' takes CUDA where it works, else the CPU. onnxruntime itself would carry on on the CPU, with a line on
    stderr at most. threads: of one operator; 0 lets onnxruntime take the physical cores."""
    if provider not in ("auto", *PROVIDERS):
        raise ValueError(f"provider {provider!r} is unknown; choose from auto, {', '.join(PROVIDERS)}")
    if threads < 0:
        raise ValueError(f"threads is {threads}; give the number of them, or 0 for one per physical core")
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; a model is an .onnx file, which export.py writes from a checkpoint")
    quiet = provider == "auto"
    session = None if provider == "cpu" else create_gpu_session(path, "cuda" if quiet else provider, threads, quiet)
    return session or create_session(path, "cpu", threads)


def create_session(path, provider, threads=0, options=None):
    """A session without onnxruntime's own fallback, which would change the provider of a session that fails later."""
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=provider_options(provider, path),
                                            enable_fallback=0)  # fmt: skip
    except Exception as error:  # onnxruntime has a dozen error classes of its own, all straight below Exception
        raise ValueError(f"{path}: onnxruntime cannot load this file as an ONNX model ({error}); export.py writes one "
                         "from a checkpoint") from None


def create_gpu_session(path, provider, threads, quiet):
    """A session that runs on the provider; where it cannot, RuntimeError, or None if quiet, which also keeps the
    complaints of a machine without a GPU off the console. The list of available providers says only what was compiled
    in, so the one way to know is to try."""
    first, problem = provider_options(provider, path)[0][0], ""
    if first in onnxruntime.get_available_providers():
        if quiet:
            onnxruntime.set_default_logger_severity(4)
        try:
            if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries that pip installed
                with contextlib.redirect_stdout(io.StringIO() if quiet else sys.stderr):
                    onnxruntime.preload_dlls()
            session = create_session(path, provider, threads)
            if session.get_providers()[0] == first:
                return session
        except ValueError as error:
            if not quiet:
                create_session(path, "cpu")  # raises where the file is what is wrong
            problem = f" ({error})"
        finally:
            if quiet:
                onnxruntime.set_default_logger_severity(2)  # warnings, onnxruntime's default; it cannot be asked
    if quiet:
        return None
    name, needs = {"cuda": ("CUDA", "CUDA and cuDNN libraries: pip install 'onnxruntime-gpu[cuda,cudnn]'"),
                   "tensorrt": ("TensorRT", "CUDA, cuDNN and TensorRT libraries (libnvinfer.so.10)")}[provider]
    raise RuntimeError(
        f"provider {provider}: onnxruntime {onnxruntime.__version__} cannot use {name} here (built with "
        f"{', '.join(onnxruntime.get_available_providers())}). It needs an NVIDIA GPU with its driver, and {needs}. Or "
        f"choose the provider cpu or auto.{problem}")


def nodes_on_cpu(path, provider, feed):
    """Names and types of the nodes that compute on the CPU, found by profiling one run on `feed`, input name -> array.

    onnxruntime puts the arithmetic of shapes there on purpose: nodes that give nothing but integers of 32 or 64 bits
    and truth values. (The setting session.disable_cpu_ep_fallback would forbid those too.)
    """
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, os.path.join(folder, "run")
        session = create_session(path, provider, options=options)
        session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    found = {}
    for event in events:
        told = event.get("args", {})
        kinds = {kind for output in told.get("output_type_shape", []) for kind in output}
        if told.get("provider") == "CPUExecutionProvider" and not kinds <= {"int64", "int32", "bool"}:
            found[event["name"].removesuffix("_kernel_time")] = told.get("op_name", "?")
    return sorted(found.items())


def pin(array):
    """Page-locks the memory of a numpy array for as long as it lives, so that a GPU fetches from it directly; False
    where there is no CUDA runtime to ask."""
    for name in ("libcudart.so.13", "libcudart.so.12"):
        with contextlib.suppress(OSError, AttributeError):
            runtime = ctypes.CDLL(name)  # the one that onnxruntime has loaded
            address = ctypes.c_void_p(array.ctypes.data)
            if runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), 0) == 0:
                weakref.finalize(array, runtime.cudaHostUnregister, address)
                return True
    return False


class Bound:
    """Runs a session with inputs that stay on the device, one set of buffers per shape, filled from page-locked memory.

    The batch is padded to a power of two, and so is the number of frames: few shapes, each of which cuDNN has to look
    at once. Padding repeats the last row; added frames have the mask 0.
    """

    KEPT = 16  # shapes; beyond that, as with images of many sizes, all are given up and made anew

    def __init__(self, session, device="cuda"):
        self.session, self.device, self.output = session, device, session.get_outputs()[0].name
        self.shapes, self.lock = {}, threading.Lock()
        self.pinned = None  # whether the host's side is page-locked; known after the first run

    def bind(self, names, arrays, shapes):
        binding, hosts, values = self.session.io_binding(), [], []
        for name, array, shape in zip(names, arrays, shapes, strict=True):
            hosts.append(np.zeros(shape, array.dtype))
            values.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, array.dtype.type, self.device, 0))
            binding.bind_ortvalue_input(name, values[-1])
        binding.bind_output(self.output, self.device, 0)
        self.pinned = all([pin(host) for host in hosts])
        return binding, hosts, values

    def run(self, names, arrays):
        """Features (B, D) of input arrays that all begin with B."""
        count, axes = len(arrays[0]), 2 if "mask" in names else 1
        shapes = [[1 << (n - 1).bit_length() for n in array.shape[:axes]] + list(array.shape[axes:])
                  for array in arrays]  # fmt: skip
        key = str(shapes)
        with self.lock:
            if key not in self.shapes:
                if len(self.shapes) >= self.KEPT:
                    self.shapes.clear()
                self.shapes[key] = self.bind(names, arrays, shapes)
            binding, hosts, values = self.shapes[key]
            for host, value, array in zip(hosts, values, arrays, strict=True):
                host[tuple(map(slice, array.shape))] = array
                if axes == 2:
                    host[:count, array.shape[1] :] = 0
                host[count:] = host[count - 1]
                value.update_inplace(host)
            self.session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[0][:count]


# ---- what the file says ----

def check_sizes(sizes, path):
    """Raises ValueError unless input_size is two whole numbers that images may have, mean and std three numbers, std
    above 0."""
    size, mean, std = (sizes[key] for key in SIZES)
    numbers = all(isinstance(part, (list, tuple)) and all(type(x) in (int, float) and math.isfinite(x) for x in part)
                  for part in (size, mean, std))  # fmt: skip
    if not (numbers and [len(size), len(mean), len(std)] == [2, 3, 3] and min(std) > 0
            and all(type(x) is int and x > 0 for x in size)):  # fmt: skip
        raise ValueError(f"{path}: input_size {size}, mean {mean}, std {std}; they have to be two whole numbers "
                         "(height, width), three numbers (red, green, blue; for pixels from 0 to 1) and three above 0")
    if max(size) > MAX_SIDE or size[0] * size[1] > LARGEST_INPUT:
        raise ValueError(f"{path}: input_size {size}, at most {LARGEST_INPUT:,} pixels and {MAX_SIDE:,} on a side are "
                         "allowed: a batch of larger images would fill the memory")
    if max(*map(abs, mean), *std) > 1:
        mean = [x / 255 for x in mean] if max(map(abs, mean)) > 1 else mean
        std = [x / 255 for x in std] if max(std) >= 1 else std
        told = " ".join(f"--{key} {' '.join(f'{x:.4g}' for x in part)}" for key, part in (("mean", mean), ("std", std)))
        raise ValueError(f"{path}: mean {sizes['mean']}, std {sizes['std']} are for pixels from 0 to 255; here pixels "
                         f"are from 0 to 1, so give a 255th: {told}")


def read_metadata(session, path, preprocessing=None):
    """The JSON document that export.py left in the file, checked: the keys, their values, and against the graph. For a
    file without one: such a document made of `preprocessing` and of what the graph tells."""
    text = session.get_modelmeta().custom_metadata_map.get("reid")
    if text is None:
        return describe_foreign(session, path, preprocessing)
    if preprocessing:
        raise ValueError(f"{path} says its own {', '.join(SIZES)}; leave them out")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: the metadata property 'reid' is not JSON ({error}); export it again") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: the metadata property 'reid' is not a JSON object; export the model again")
    if metadata.get("foreign"):  # search.py calibrate has written down what it was told
        told = {key: metadata[key] for key in ("weights_sha256", "threshold") if metadata.get(key)}
        return describe_foreign(session, path, {key: metadata.get(key) for key in SIZES}) | told
    for key, values in FIXED.items():
        if metadata.get(key, values[0]) not in values:
            raise ValueError(f"{path}: its metadata says {key} {metadata[key]!r}, this search.py reads "
                             f"{' or '.join(map(repr, values))} only; take export.py and search.py of one version")
    missing = [key for key in NEEDED if key not in metadata]
    if missing:
        raise ValueError(f"{path}: the metadata property 'reid' lacks {', '.join(missing)}; export the model again")
    check_sizes(metadata, path)
    check_graph(session, path, metadata)
    if not metadata.get("weights_sha256"):  # by which an index knows the model that made it
        metadata["weights_sha256"] = hash_file(path)
    return metadata


def hash_file(path, before=b""):
    """The SHA-256 of these bytes and then the file's, as text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(before)).hexdigest()


def check_graph(session, path, metadata):
    """Raises ValueError where the graph is not what the metadata says."""
    free, image = "any", [3, *metadata["input_size"]]
    inputs = {
        "images": [("images", "tensor(float)", [free, *image])],
        "clips": [("clips", "tensor(float)", [free, free, *image]), ("mask", "tensor(float)", [free, free])],
        "bytes": [("bytes", "tensor(uint8)", [free, free, free, 3])],
    }[metadata.get("input", "images")]
    outputs = [("features", "tensor(float)", [free, metadata["feature_dim"]])]

    def told(values):  # axes of any length have a name, or nothing
        return [(v.name, v.type, [n if isinstance(n, int) else free for n in v.shape]) for v in values]

    def show(values):
        return ", ".join(f"{name} {kind} {shape}" for name, kind, shape in values)

    graph = told(session.get_inputs()), told(session.get_outputs())
    if graph != (inputs, outputs):
        raise ValueError(f"{path}: the graph maps {show(graph[0])} to {show(graph[1])}, its metadata says "
                         f"input_size {metadata['input_size']}, feature_dim {metadata['feature_dim']}, any batch: "
                         f"{show(inputs)} to {show(outputs)}")


def describe_foreign(session, path, preprocessing):
    """Metadata of a file that another exporter wrote: nothing is guessed, the graph confirms what the user says."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if inputs else []
    problem = ""
    if len(outputs) != 1:
        told = ", ".join(f"{value.name} {value.shape}" for value in outputs)
        problem = (f"gives {len(outputs)} outputs ({told}); nothing says which are the features: export it with that "
                   "output alone")  # fmt: skip
    elif len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4:
        told = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs) or "nothing"
        problem = f"takes {told}; such a file is read where it takes one float32 batch of images (B, 3, H, W)"
    elif shape[1] != 3:
        layout = "which is channels-last: export it with channels first" if shape[3] == 3 else "not three channels"
        problem = f"takes {shape}, {layout}, (B, 3, H, W)"
    elif isinstance(shape[0], int):
        problem = f"takes batches of {shape[0]} only; export it with any batch (a dynamic first axis)"
    if problem:
        raise ValueError(f"{path} was not written by export.py, and its graph {problem}")
    missing = [key for key in SIZES if not (preprocessing or {}).get(key)]
    if missing:
        size = " ".join(str(n) for n in shape[2:]) if all(isinstance(n, int) for n in shape[2:]) else "HEIGHT WIDTH"
        raise ValueError(
            f"{path} was not written by export.py: it has no metadata property 'reid', the JSON document that gives "
            f"{', '.join(NEEDED)}. Export the checkpoint with export.py, or say {', '.join(missing)} as it was "
            f"trained: --input-size {size} --mean RED GREEN BLUE --std RED GREEN BLUE (for pixels from 0 to 1)")
    sizes = {key: list(preprocessing[key]) for key in SIZES}
    check_sizes(sizes, path)
    if any(isinstance(n, int) and n != size for n, size in zip(shape[2:], sizes["input_size"], strict=True)):
        raise ValueError(f"{path}: input_size {sizes['input_size']} does not fit its graph, which takes {shape}")
    digest = hash_file(path, json.dumps(sizes).encode())  # features follow from the file and from these
    return {"schema": 1, "foreign": True, "arch": "unknown network", **sizes, "colour_order": "RGB",
            "resize": "Pillow BILINEAR", "feature_dim": None, "l2_normalised": False, "distance": "cosine",
            "threshold": None, "input": "images",
            "precision": "fp32", "dataset": None, "weights_sha256": digest}  # fmt: skip


# ---- the class ----

class Extractor:
    """An exported model: extractor(images) -> (N, D) float32, L2-normalised, so a dot product is the cosine.

    Carries input_size (H, W), feature_dim, mean, std, distance, input, precision, threshold (None where not calibrated,
    else a dict: similarity, fmr, fnmr, dataset, pairs, compared), provider (the one in use, by onnxruntime's name),
    on_cpu (nodes that a GPU left to the CPU) and metadata (all that the file says). Threads may share it. Set
    batch_size for speed or memory. threads: so many compute on a CPU, and as many decode; 0 for one per core. frames:
    of a longer tracklet so many are looked at, evenly spread; 0 for all.
    """

    def __init__(self, path, provider="auto", batch_size=32, *, threads=0, frames=32, preprocessing=None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it has to be at least 1")
        self.path, self.batch_size, self.frames, self.preprocessing = str(path), batch_size, frames, preprocessing
        self.decoders = min(DECODERS, threads or DECODERS)
        self.session = open_session(path, provider, threads)
        self.provider = self.session.get_providers()[0]
        self.metadata = read_metadata(self.session, path, preprocessing)
        self.input_size = tuple(self.metadata["input_size"])
        self.mean, self.std = tuple(self.metadata["mean"]), tuple(self.metadata["std"])
        self.distance = self.metadata["distance"]
        self.input = self.metadata.get("input", "images")  # schema 1 knows nothing else
        self.unit = "tracklets" if self.input == "clips" else "images"  # what it counts, in words
        self.precision = self.metadata.get("precision", "fp32")
        self.names = [value.name for value in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name
        self.bound, self.on_cpu = None, []
        self.turned, self.told = [], False  # images with an EXIF rotation: the first ones, and whether they were told
        if self.provider != "CPUExecutionProvider":
            self.check_placement(provider)
            self.bound = Bound(self.session)
        self.warm_up()

    def check_placement(self, provider):
        """Fills on_cpu; RuntimeError where the GPU was asked for by name and does not do it all."""
        name = "tensorrt" if self.provider.startswith("Tensorrt") else "cuda"
        self.on_cpu = nodes_on_cpu(self.path, name, dict(zip(self.names, self.batch([self.noise()]), strict=True)))
        if self.on_cpu and provider != "auto":
            told = ", ".join(f"{node} ({kind})" for node, kind in self.on_cpu[:5])
            raise RuntimeError(f"provider {provider}: {self.path} runs on the GPU but for {len(self.on_cpu)} nodes, "
                               f"which {self.provider} leaves to the CPU: {told}. Export it again, or choose auto.")

    def warm_up(self):
        """Runs the model once, on the GPU also with a whole batch: the first call is slow, and a file that does not
        work should say so now. Called when a model is opened."""
        noise = self.noise()
        features = self.run([noise])
        if not has_length_1(features)[0]:
            raise ValueError(f"{self.path} gives features of length {np.linalg.norm(features[0])} instead of 1")
        self.feature_dim = features.shape[1]  # which another exporter's file need not say
        features = np.concatenate([features, self.run(self.colours())])
        features = features[has_length_1(features)]
        lowest = (features @ features.T).min()
        if len(features) > 1 and lowest > SAME:
            warnings.warn(f"{self.path} gives unlike images the same feature (cosine {lowest:.6f}), so its rankings "
                          "mean nothing: it is not trained, or input size, mean and std are not those of its training",
                          stacklevel=3)  # fmt: skip
        if self.bound:
            self.run([noise] * self.list_size)

    def noise(self):
        """A row for a batch, of grey noise."""
        pixels = np.random.default_rng(0).integers(0, 256, (*self.input_size, 3), dtype=np.uint8)
        return self.prepare(pixels)[0]

    def colours(self):
        """Two rows more, as unlike each other as images are: halves of blue and red, of yellow and black."""
        pixels = np.zeros((2, *self.input_size, 3), np.uint8)
        pixels[0, :, :, 2] = pixels[1, : self.input_size[0] // 2, :, :2] = 255
        pixels[0, :, self.input_size[1] // 2 :] = 255, 0, 0
        return [self.prepare(image)[0] for image in pixels]

    @property
    def threshold(self):
        """Checked where it is asked for: to calibrate anew, or to search, takes none."""
        threshold, lowest = self.metadata.get("threshold"), {"similarity": -1, "fmr": 0, "fnmr": 0}
        told = threshold if isinstance(threshold, dict) else {}
        sound = all(type(told.get(name)) in (int, float) and low <= told[name] <= 1 for name, low in lowest.items())
        if threshold is not None and not sound:
            raise ValueError(f"{self.path}: its metadata has the threshold {threshold!r}, not numbers named similarity "
                             "(from -1 to 1), fmr and fnmr (from 0 to 1); calibrate it again")
        return threshold

    crop = staticmethod(crop)

    @property
    def list_size(self):
        """Images, or tracklets of up to 8 times as many frames in all, that run together."""
        return max(1, self.batch_size // 8) if self.input == "clips" else self.batch_size

    def __call__(self, images):
        """images: a list of paths, PIL images or HxWx3 uint8 RGB arrays of any size, or one of them. A model of
        tracklets also takes lists of such lists: the frames of each tracklet."""
        return extract(self, [images] if is_single(images) else list(images), skip=False)[0]

    def normalise(self, pixels):
        """uint8 (H, W, 3) -> float32 (3, H, W)."""
        image = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        image /= 255
        image -= np.float32(self.mean).reshape(3, 1, 1)
        image /= np.float32(self.std).reshape(3, 1, 1)
        return image

    def prepare(self, item):
        """An image, or for a model of tracklets a list of them, -> (its row of a batch or None where nothing of it can
        be read, [(image, error)] of what cannot). Broken files make Pillow raise nearly every class there is."""
        frames = [item]
        if self.input == "clips" and (isinstance(item, (list, tuple)) or getattr(item, "ndim", None) == 4):
            frames = [item[i] for i in spread(len(item), self.frames)]
        rows, errors = [], []
        for frame in frames:
            if not self.turned and is_turned(frame):
                self.turned.append(getattr(frame, "filename", "an image") or "an image"
                                   if isinstance(frame, Image.Image) else frame)
            try:
                pixels = to_pixels(frame, None if self.input == "bytes" else self.input_size)
                rows.append(pixels if self.input == "bytes" else self.normalise(pixels))
            except Exception as error:
                errors.append((frame, error))
        if not frames:
            errors.append((item, ValueError("a tracklet without frames")))
        if not rows:
            return None, errors
        return np.stack(rows) if self.input == "clips" else rows[0], errors

    def batch(self, rows):
        """The arrays that the graph takes, from rows of prepare; those of 'bytes' have to be of one size."""
        if self.input != "clips":
            return [np.stack(rows)]
        length = max(map(len, rows))
        clips, mask = np.zeros((len(rows), length, *rows[0].shape[1:]), np.float32), np.zeros((len(rows), length), "f4")
        for row, clip in enumerate(rows):
            clips[row, : len(clip)], mask[row, : len(clip)] = clip, 1
        return [clips, mask]

    def run(self, rows):
        """B rows of prepare -> float32 (B, D), one call of the model, of 'bytes' one for each size. Of length 1, but
        where the model has nothing to say of an image, see has_length_1."""
        shapes = [row.shape for row in rows] if self.input == "bytes" else [None] * len(rows)
        features = None
        for shape in dict.fromkeys(shapes):
            places = [place for place, other in enumerate(shapes) if other == shape]
            part = self.call(self.batch([rows[place] for place in places]))
            features = np.empty((len(rows), part.shape[1]), np.float32) if features is None else features
            features[places] = part
        return features

    def call(self, arrays):
        try:
            if self.bound:
                features = self.bound.run(self.names, arrays)
            else:
                parts = []
                for start in range(0, len(arrays[0]), PIECE):
                    piece = [array[start : start + PIECE] for array in arrays]
                    parts += self.session.run([self.output], dict(zip(self.names, piece, strict=True)))
                features = np.concatenate(parts)
        except Exception as error:  # as in create_session; mostly it is memory
            raise RuntimeError(f"{self.provider} failed on a batch of {len(arrays[0])}; try fewer ({error})") from error
        if features.ndim != 2 or len(features) != len(arrays[0]) or features.dtype != np.float32:
            raise ValueError(f"{self.path}: the model gives {features.dtype} {features.shape} for a batch of "
                             f"{len(arrays[0])}, not float32 ({len(arrays[0])}, D)")
        if not self.metadata["l2_normalised"]:
            norms = np.linalg.norm(features, axis=1, keepdims=True)
            features = np.divide(features, norms, out=np.zeros_like(features), where=(norms > 0) & np.isfinite(norms))
        return features


def has_length_1(features):
    """Which rows (N,) can be ranked. Zeros and NaN cannot: a black image may give them, or half precision."""
    return abs(np.linalg.norm(features, axis=1) - 1) < 0.01


def is_single(images):
    """Whether one image was given rather than a list."""
    return isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", None) == 3


def stream(extractor, images, *, skip=True, title=None):
    """Yields, list by list: features (n, D), the places of those n in images, and [(image, reason)] of what cannot be
    read, or has a feature that cannot be ranked; without skip the first of those raises. Decoding, resizing and
    normalising run ahead in threads. title: of a progress bar."""
    weigh = count_pixels if extractor.input == "bytes" else None
    lists = cut_lists(images, extractor.list_size, weigh, AHEAD)
    with progress(title, len(images), extractor.unit, hidden=not title) as bar:
        start = 0
        for prepared in work_ahead(extractor.prepare, lists, extractor.decoders):
            errors = [pair for _, pairs in prepared for pair in pairs]
            if errors and not skip:
                raise_named(*next((place, *pairs[0]) for place, (_, pairs) in enumerate(prepared, start) if pairs))
            if extractor.turned and not extractor.told:
                extractor.told = True
                warnings.warn(f"{extractor.turned[0]}: its EXIF data say to turn it, which is not done here, as in "
                              "training: people see it upright, the model does not. Turn the pixels of such images, "
                              "say with PIL.ImageOps.exif_transpose (told once)", stacklevel=2)  # fmt: skip
            places = [place for place, (row, _) in enumerate(prepared, start) if row is not None]
            rows = [row for row, _ in prepared if row is not None]
            features = extractor.run(rows) if rows else np.empty((0, extractor.feature_dim), np.float32)
            good = has_length_1(features)
            for place, feature in zip(np.array(places)[~good].tolist(), features[~good], strict=True):
                name = name_of(images[place], place)
                error = ValueError(f"{extractor.path} gives it a feature of length {np.linalg.norm(feature):g}, which "
                                   "cannot be ranked")  # fmt: skip
                if not skip:
                    raise ValueError(f"{name}: {error}")
                errors.append((name, error))
            told = [(image, str(error) or type(error).__name__) for image, error in errors]
            yield features[good], [place for place, fine in zip(places, good, strict=True) if fine], told
            start += len(prepared)
            bar.update(len(prepared))


def name_of(image, place):
    """What to call an image, or a tracklet: its path, or that of its first frame, or its number."""
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    first = getattr(first, "filename", None) or first  # of a PIL image that was opened from a file
    return first if isinstance(first, (str, os.PathLike)) else f"number {place}, from 0"


def raise_named(place, image, error):
    """Raises the error, with the number of an image that has no path; what Pillow raises tells the path itself."""
    if isinstance(image, (str, os.PathLike)) or not isinstance(error, (TypeError, ValueError)):
        raise error
    kind = TypeError if isinstance(error, TypeError) else ValueError
    raise kind(f"{name_of(image, place)}: {error}") from error


def collect(extractor, images, *, skip=True, title=None):
    """All that `stream` yields, in one: features (N, D), the places of those N in images, [(image, reason)]."""
    features, places, unreadable = [np.empty((0, extractor.feature_dim), np.float32)], [], []
    for part, good, errors in stream(extractor, images, skip=skip, title=title):
        features.append(part)
        places += good
        unreadable += errors
    return np.concatenate(features), places, unreadable


def extract(extractor, images, *, skip=True, title=None):
    """Features (N, D) of the readable images, those N images, and [(image, reason)] of the others; without skip the
    first unreadable one raises."""
    features, places, unreadable = collect(extractor, images, skip=skip, title=title)
    return features, [images[place] for place in places], unreadable
