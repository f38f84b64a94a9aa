"""A model whose answer anyone can work out: the mean colour of an image, [B, 3]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tcompile.models.preprocess import PREPROCESS_KEY

NAMES = ("red", "green", "blue")
#: Pixels of 0 to 1, the whole image squashed to 8 × 8.
RECORD = {
    "input": "image",
    "size": [8, 8],
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "resize": "squash",
    "interpolation": "nearest",
}


def save_colours(
    path: Path,
    bias: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    labels: Sequence[str] = NAMES,
    output: str = "logits",
    batch: int | str = "n",
) -> Path:
    """Write a model: the mean of each channel, plus a bias."""
    body = f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[{batch},3,8,8] image) => (float[{batch},3] {output}) {{
        axes = Constant <value_ints = [2, 3]> ()
        mean = ReduceMean <keepdims = 0> (image, axes)
        {output} = Add (mean, bias)
    }}"""
    return _save(path, body, {"bias": np.asarray(bias, np.float32)}, labels)


def save_map(path: Path, gain: Sequence[float], *, output: str = "scores") -> Path:
    """Write a model: each pixel of each channel times a gain, a quarter as large, [n, 3, 4, 4]."""
    body = f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[n,3,8,8] image) => (float[n,3,4,4] {output}) {{
        small = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (image)
        {output} = Mul (small, gain)
    }}"""
    weights = {"gain": np.asarray(gain, np.float32).reshape(1, 3, 1, 1)}
    return _save(path, body, weights, NAMES)


def save_boxes(path: Path, shift: float) -> Path:
    """Write a model: two boxes [n, 2, 4], the left and the right half moved by a share of the
    image; scores [n, 2, 4] of red, green, blue and no object, of the whole image's colour."""
    body = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[n,3,8,8] image) => (float[n,2,4] logits, float[n,2,4] pred_boxes) {
        axes = Constant <value_ints = [2, 3]> ()
        mean = ReduceMean <keepdims = 0> (image, axes)
        none = ReduceMin <keepdims = 1> (mean, last)
        four = Concat <axis = 1> (mean, none)
        one = Unsqueeze (four, last)
        both = Concat <axis = 2> (one, one)
        logits = Transpose <perm = [0, 2, 1]> (both)
        nothing = Mul (logits, zero)
        pred_boxes = Add (nothing, boxes)
    }"""
    boxes = [[0.25 + shift, 0.5, 0.5, 1.0], [0.75 + shift, 0.5, 0.5, 1.0]]
    weights = {
        "last": np.asarray([-1], np.int64),
        "zero": np.zeros(1, np.float32),
        "boxes": np.asarray([boxes], np.float32),
    }
    return _save(path, body, weights, NAMES)


def _save(path: Path, body: str, weights: dict[str, np.ndarray], labels: Sequence[str]) -> Path:
    model = onnx.parser.parse_model(body)
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    record = {**RECORD, "labels": list(labels)} if labels else RECORD
    helper.set_model_props(model, {PREPROCESS_KEY: json.dumps(record)})
    onnx.save(model, str(path))
    return path


def save_image(path: Path, colour: Sequence[int]) -> Path:
    """Write an image of one colour, with its folders."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), tuple(colour)).save(path)
    return path
