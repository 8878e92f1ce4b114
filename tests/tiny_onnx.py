"""Models of a few nodes, and pictures of persons made of coloured blocks, for the tests of search."""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from PIL import Image

H, W, DIM = 32, 16, 24
MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.125]  # unlike each other, so that swapped channels show
METADATA = {
    "schema": 1, "arch": "tiny", "input_size": [H, W], "mean": MEAN, "std": STD, "colour_order": "RGB",
    "resize": "Pillow BILINEAR", "feature_dim": DIM, "l2_normalised": True, "distance": "cosine", "threshold": None,
    "dataset": "market1501", "scores": {"rank1": 0.5}, "weights_sha256": "0" * 64,
}  # fmt: skip
SECOND = METADATA | {"schema": 2, "precision": "fp32", "gate": {"cosine": 1.0}, "input": "images"}


def save(path, nodes, inputs, outputs, metadata, constants=()):
    """inputs and outputs: (name, ONNX type, shape). Returns path."""
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    initializers = [onnx.numpy_helper.from_array(np.array(array), name) for name, array in constants]
    graph = helper.make_graph(nodes, "tiny", *values, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"reid": metadata if isinstance(metadata, str) else json.dumps(metadata)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def write_model(path, metadata=METADATA, batch="batch", size=(H, W), normalise=True, input="images", output="features"):
    """A graph whose features are the means of 8 x 8 patches, L2-normalised."""
    nodes = [
        helper.make_node("AveragePool", [input], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("LpNormalization" if normalise else "Neg", ["flat"], [output]),
    ]
    dim = 3 * (size[0] // 8) * (size[1] // 8)
    return save(path, nodes, [(input, TensorProto.FLOAT, [batch, 3, *size])],
                [(output, TensorProto.FLOAT, [batch, dim])], metadata)  # fmt: skip


def write_clip_model(path, metadata=SECOND | {"input": "clips"}):
    """The same features of 1 + the mean of the frames that the mask counts; so a wrong count turns them."""
    nodes = [
        helper.make_node("Unsqueeze", ["mask", "axes"], ["weights"]),
        helper.make_node("Mul", ["clips", "weights"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["mean", "shift"], ["shifted"]),
        helper.make_node("AveragePool", ["shifted"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("LpNormalization", ["flat"], ["features"]),
    ]
    inputs = [("clips", TensorProto.FLOAT, ["b", "t", 3, H, W]), ("mask", TensorProto.FLOAT, ["b", "t"])]
    constants = [("axes", np.array([2, 3, 4])), ("one", np.array([1])), ("shift", np.float32(1))]
    return save(path, nodes, inputs, [("features", TensorProto.FLOAT, ["b", DIM])], metadata, constants)


def write_byte_model(path, metadata=SECOND | {"input": "bytes", "feature_dim": 3}):
    """Features are the means of red, green and blue over the image as it comes, L2-normalised."""
    nodes = [
        helper.make_node("Cast", ["bytes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["features"]),
    ]
    return save(path, nodes, [("bytes", TensorProto.UINT8, ["b", "h", "w", 3])],
                [("features", TensorProto.FLOAT, ["b", 3])], metadata, [("axes", np.array([1, 2]))])  # fmt: skip


def person(pid, camid=0, size=(64, 128)):
    """A PIL image of 8 x 4 coloured blocks drawn from the pid alone, with a little noise drawn from the camera."""
    blocks = np.random.default_rng(pid).integers(40, 216, (8, 4, 3))
    pixels = np.kron(blocks, np.ones((16, 16, 1))) + np.random.default_rng(camid).integers(-20, 21, (128, 64, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize(size)


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


def broken_images(folder):
    """A truncated JPEG and a text file named .jpg."""
    person(1).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("this is no image")


def cuda_usable():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # plain onnxruntime warns about a provider it was not built with
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )  # fmt: skip
        tiny = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(
            tiny.SerializeToString(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    return session.get_providers()[0] == "CUDAExecutionProvider"
