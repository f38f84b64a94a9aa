"""`head`: a small network trained elsewhere (Cropr, TNT, SViT, DynamicViT, SPViT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.arrays import read_arrays
from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.scores.base import Score, ScoreInput

#: Bytes that the weights may have.
_MOST = 256 * 2**20

Weights = Mapping[str, np.ndarray[Any, Any]]


def head(inputs: ScoreInput) -> gs.Tensor:
    """score_j = MLP(x_j) for patches j: [B, T]; GELU between the layers, none behind the last.

    `file`: an .npz with 0.weight [out, in], 0.bias (may be left out), 1.weight, … as in PyTorch,
    and norm.weight, norm.bias where a LayerNorm (eps 1e-6) comes first. A last layer of one row
    is the score; of two, the margin of the logit of `keep_class` over the other's (SViT,
    DynamicViT). A single 0.weight [1, C] is Cropr's summed query and TNT's linear layer.
    """
    b, weights = inputs.builder, read(inputs.parameters["file"])
    x, found = inputs.of_patches(inputs.x), layers(weights, inputs.parameters["keep_class"])
    takes, has = found[0][0].shape[1], (inputs.x.shape or [None])[-1]
    if has not in (None, takes):
        raise _wrong(f"0.weight takes {takes} channels, tokens have {has}", None)
    if "norm.weight" in weights:
        x = _layer_norm(b, x, weights)
    for i, (weight, bias) in enumerate(found):
        x = _gelu(b, x) if i else x
        x = b.op("MatMul", x, b.const(weight.T, np.float32))
        x = b.op("Add", x, b.const(bias, np.float32))
    return b.squeeze(x, 2)


def read(file: Any) -> Weights:
    """The arrays of a file of weights.

    Raises:
        UsageError: none inputs, no such file, or something else in it.
    """
    if not file:
        raise _wrong("needs file=PATH, an .npz of weights", None)
    try:
        found = read_arrays(file, most=_MOST)
    except UsageError as error:
        raise _wrong(f"is not an .npz of weights: {error.what}", file) from error
    for name, array in found.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise _wrong(f"'{name}' is not all finite floats", file)
    return found


def layers(weights: Weights, keep: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Weight [out, in] and bias [out] of each layer; the last has one row.

    Raises:
        UsageError: they do not fit together.
    """
    found: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    while f"{len(found)}.weight" in weights:
        i = len(found)
        weight = weights[f"{i}.weight"]
        bias = weights.get(f"{i}.bias", np.zeros(weight.shape[:1]))
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise _wrong(f"{i}.weight and {i}.bias are not [out, in] and [out]", None)
        if found and weight.shape[1] != len(found[-1][1]):
            raise _wrong(
                f"{i}.weight takes {weight.shape[1]} channels of {len(found[-1][1])}", None
            )
        found.append((weight, bias))
    known = {f"{i}.{kind}" for i in range(len(found)) for kind in ("weight", "bias")}
    strange = set(weights) - known - {"norm.weight", "norm.bias"}
    if not found or strange or len(found[-1][1]) not in (1, 2):
        why = f"has '{min(strange)}'" if strange else "needs 0.weight, and a last layer of 1 or 2"
        raise _wrong(why, None)
    for name in ("norm.weight", "norm.bias"):
        if weights.get(name, found[0][0][0]).shape != found[0][0][0].shape:
            raise _wrong(f"{name} is not [{found[0][0].shape[1]}]", None)
    weight, bias = found[-1]
    if len(bias) == 2:
        found[-1] = (weight[[keep]] - weight[[1 - keep]], bias[[keep]] - bias[[1 - keep]])
    return found


def _layer_norm(b: Builder, x: gs.Tensor, weights: Weights) -> gs.Tensor:
    apart = b.op("Sub", x, b.reduce("Mean", x, [2], 1))
    variance = b.reduce("Mean", b.op("Mul", apart, apart), [2], 1)
    length = b.op("Sqrt", b.op("Add", variance, b.const([1e-6], np.float32)))
    scaled = b.op("Mul", b.op("Div", apart, length), b.const(weights["norm.weight"], np.float32))
    shift = weights.get("norm.bias", np.zeros(1))
    return b.op("Add", scaled, b.const(shift, np.float32))


def _gelu(b: Builder, x: gs.Tensor) -> gs.Tensor:
    erf = b.op("Erf", b.op("Mul", x, b.const([2**-0.5], np.float32)))
    gate = b.op("Add", erf, b.const([1], np.float32))
    return b.op("Mul", b.op("Mul", x, gate), b.const([0.5], np.float32))


def _wrong(why: str, file: Any) -> UsageError:
    return UsageError(f"score 'head': {why}", where=str(file) if file else "schedule")


SCORE = Score(
    "head",
    head,
    {
        "file": Parameter(str, None, "an .npz of weights"),
        "keep_class": Parameter(int, 0, "the row that says keep, where there are two", (0, 1)),
    },
    attention=False,
)
