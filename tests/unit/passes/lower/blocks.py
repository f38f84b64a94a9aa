"""Small transformer graphs for tests of lowering and of backends, written with onnx.helper.

Nodes are called `blockI/softmax`, `blockI/attention` and so on, so that tests can speak of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tcompile.targets.backends.ort import OrtRunner

HEADS, SIZE = 2, 32
WIDTH = HEADS * SIZE


class _Writer:
    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        value = shift + scale * self.rng.standard_normal(shape)
        return self.constant(name, value.astype(self.dtype))

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name, **attrs))
        return f"{name}:0"


def attention_blocks(
    depth: int = 3,
    tokens: int = 33,
    *,
    dtype: type[np.generic] = np.float32,
    batch: int | str = 1,
    operator: bool = False,
    mask: Literal["shared", "full"] | None = None,
    tapped: Sequence[int] = (),
    single: Sequence[int] = (),
) -> onnx.ModelProto:
    """Pre-norm transformer blocks, x [batch, tokens, 64] to y of the same shape.

    Args:
        depth, tokens, dtype, batch: as they say; a string is a symbolic batch.
        operator: one `Attention` a block (opset 23), not its plain spelling (opset 20).
        mask: an additive mask, [1,1,1,N] shared by all queries or [1,1,N,N].
        tapped: blocks whose probabilities are read a second time, into output `tapI`.
        single: blocks whose attention is fp32 between casts, for a graph of another type.
    """
    g = _Writer(dtype)
    kind = helper.np_dtype_to_tensor_dtype(g.dtype)
    x, taps = "x", []
    for i in range(depth):
        b = f"block{i}"
        h = _norm(g, x, f"{b}/norm1")
        q, k, v = (_heads(g, h, f"{b}/{each}", operator or each != "key") for each in _QKV)
        if i in single:
            q, k, v = (
                g.node("Cast", f"{b}/up{n}", [t], to=TensorProto.FLOAT)
                for n, t in enumerate((q, k, v))
            )
        extra = [_mask(g, b, tokens, mask)] if mask else []
        if operator:
            mixed = g.node("Attention", f"{b}/attention", [q, k, v, *extra], scale=SIZE**-0.5)
        else:
            scores = g.node("MatMul", f"{b}/scores", [q, k])
            scale = np.array(SIZE**-0.5, np.float32 if i in single else g.dtype)
            scores = g.node("Mul", f"{b}/scale", [scores, g.constant(f"{b}/root", scale)])
            if extra:
                scores = g.node("Add", f"{b}/mask", [scores, *extra])
            weights = g.node("Softmax", f"{b}/softmax", [scores], axis=-1)
            if i in tapped:
                axes = g.constant(f"{b}/axes", np.array([1, 2], np.int64))
                taps.append(g.node("ReduceMean", f"tap{i}", [weights, axes], keepdims=0))
            mixed = g.node("MatMul", f"{b}/mix", [weights, v])
        if i in single:
            mixed = g.node("Cast", f"{b}/down", [mixed], to=kind)
        mixed = g.node("Transpose", f"{b}/join", [mixed], perm=[0, 2, 1, 3])
        flat = g.constant(f"{b}/flat", np.array([0, -1, WIDTH], np.int64))
        mixed = g.node("Reshape", f"{b}/merge", [mixed, flat])
        x = g.node("Add", f"{b}/add1", [x, _linear(g, mixed, f"{b}/proj", WIDTH, WIDTH)])
        h = _linear(g, _norm(g, x, f"{b}/norm2"), f"{b}/up", WIDTH, 2 * WIDTH)
        h = _linear(g, g.node("Gelu", f"{b}/gelu", [h]), f"{b}/down", 2 * WIDTH, WIDTH)
        x = g.node("Add", f"{b}/add2", [x, h])
    inputs = [helper.make_tensor_value_info("x", kind, [batch, tokens, WIDTH])]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in (x, *taps)]
    graph = helper.make_graph(g.nodes, "blocks", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 23 if operator else 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


_QKV = ("query", "key", "value")


def _norm(g: _Writer, x: str, name: str) -> str:
    scale = g.weight(f"{name}/scale", WIDTH, scale=0.1, shift=1.0)
    return g.node("LayerNormalization", name, [x, scale, g.weight(f"{name}/bias", WIDTH)], axis=-1)


def _linear(g: _Writer, x: str, name: str, rows: int, columns: int) -> str:
    product = g.node("MatMul", name, [x, g.weight(f"{name}/w", rows, columns, scale=rows**-0.5)])
    return g.node("Add", f"{name}/add", [product, g.weight(f"{name}/b", columns, scale=0.1)])


def _heads(g: _Writer, x: str, name: str, rows_first: bool) -> str:
    shape = g.constant(f"{name}/shape", np.array([0, -1, HEADS, SIZE], np.int64))
    apart = g.node("Reshape", f"{name}/split", [_linear(g, x, name, WIDTH, WIDTH), shape])
    order = [0, 2, 1, 3] if rows_first else [0, 2, 3, 1]
    return g.node("Transpose", f"{name}/turn", [apart], perm=order)


def _mask(g: _Writer, block: str, tokens: int, kind: str) -> str:
    return g.weight(f"{block}/bias", 1, 1, tokens if kind == "full" else 1, tokens)


def parse(text: str) -> onnx.ModelProto:
    """A model from onnx.parser's text, checked, with its shapes inferred."""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Check a model strictly and write it into `folder`."""
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(folder / name))
    return folder / name


def run(path: Path, seed: int = 0, batch: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    """Run a model in ONNX Runtime on seeded normal inputs."""
    runner = OrtRunner(path, threads=1)
    rng = np.random.default_rng(seed)
    feed = {
        info.name: rng.standard_normal(
            [dim if isinstance(dim, int) else batch for dim in info.shape]
        )
        for info in runner.inputs
    }
    return runner.run(feed)


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference of any output, relative to the output's largest value."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k] - b[k]).max() / np.abs(b[k]).max()) for k in a)
