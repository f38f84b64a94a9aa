"""Sites: points where tokens may leave, and the reasons where they may not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from tcompile.analysis.model import analyse
from tcompile.passes.normalize import normalize

_BLOCK = """
   {o}q = MatMul ({x}, {o}w)
   {o}k = MatMul ({x}, {o}w)
   {o}t = Transpose <perm = [0, 2, 1]> ({o}k)
   {o}l = MatMul ({o}q, {o}t)
   {o}p = Softmax <axis = -1> ({o}l)
   {o}v = MatMul ({x}, {o}w)
   {o}c = MatMul ({o}p, {o}v)
   {o} = Add ({x}, {o}c)"""


def _narrowing() -> onnx.ModelProto:
    """Two blocks over 8 features, a projection to 4, and one block more."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
g (float[1,3,8,8] image) => (float[1,16,4] y)
<int64[3] flat = {1, 8, 16}>
{
   patches = Conv <kernel_shape = [2, 2], strides = [2, 2]> (image, kernel)
   rows = Reshape (patches, flat)
   x = Transpose <perm = [0, 2, 1]> (rows)"""
        + _BLOCK.format(x="x", o="a")
        + _BLOCK.format(x="a", o="b")
        + "\n   narrow = MatMul (b, down)"
        + _BLOCK.format(x="narrow", o="y")
        + "\n}"
    )
    rng = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 2, 2), "aw": (8, 8), "bw": (8, 8), "down": (8, 4), "yw": (4, 4)}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


def test_tokens_bypass_no_block_that_changes_the_number_of_features() -> None:
    found = analyse(normalize(_narrowing()).graph)
    around = {s.name.block: s.reason for s in found.sites if s.kind == "around"}
    assert [around[0], around[2]] == ["", ""]
    assert around[1] == "the stream has 8 features before the block and 4 behind it"


def test_tokens_bypass_no_block_that_joins_them_in_two_orders() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
g (float[1,3,8,8] image) => (float[1,16,8] y)
<int64[3] flat = {1, 8, 16}, int64[16] back = {15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0}>
{
   patches = Conv <kernel_shape = [2, 2], strides = [2, 2]> (image, kernel)
   rows = Reshape (patches, flat)
   x = Transpose <perm = [0, 2, 1]> (rows)"""
        + _BLOCK.format(x="x", o="a")
        + """
   up = MatMul (a, wide)
   turned = Gather <axis = 1> (up, back)
   gated = Mul (up, turned)
   b = Add (a, gated)"""
        + _BLOCK.format(x="b", o="y")
        + "\n}"
    )
    rng = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 2, 2), "aw": (8, 8), "wide": (8, 8), "yw": (8, 8)}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    found = analyse(normalize(model).graph)
    around = {s.name.block: s.reason for s in found.sites if s.kind == "around"}
    assert "in another order" in around[0]
    assert around[1] == ""
