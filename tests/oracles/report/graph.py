"""What a report says of a graph, counted from the shapes that ONNX Runtime gives its tensors.

Nothing of the compiler has a part in it: no shape inference, no op table. Definitions are those of
the report: a multiply-add counts as two; a result lives until its last reader ran; a view takes
nothing; what works on each value or row by itself may write over an operand that nothing else
needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

Array = np.ndarray[Any, Any]

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_ELEMENTWISE = """
Add Sub Mul Div Pow Max Min Sqrt Erf Exp Log Neg Abs Relu Sigmoid Tanh Clip Reciprocal Where Equal
Greater Less GreaterOrEqual LessOrEqual And Or Not Cast Floor Ceil Round Sign Gelu
"""
_IN_PLACE = {*_ELEMENTWISE.split(), "Softmax", "LogSoftmax"}


@dataclass(frozen=True)
class Recorded:
    """A graph that ran.

    Attributes:
        sizes: shape and bytes of every tensor, by name.
        stored: names of the tensors that the file has the values of.
        batch: images that it ran with.
    """

    graph: onnx.GraphProto
    sizes: Mapping[str, tuple[tuple[int, ...], int]]
    stored: frozenset[str]
    batch: int

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.sizes[name][0]

    @cached_property
    def flops(self) -> int:
        """Of matrix products and convolutions, for one image: 2 · M · N · K each."""
        return sum(map(self._flops, self.graph.node)) // self.batch

    def _flops(self, node: onnx.NodeProto) -> int:
        given = [self._shape(name) if name else () for name in node.input]
        if node.op_type in ("MatMul", "Gemm"):
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * prod(self._shape(node.output[0])) * given[0][-2 if turned else -1]
        if (
            node.op_type == "Conv"
        ):  # each result is a sum over the channels of its group, and window
            return 2 * prod(self._shape(node.output[0])) * prod(given[1][1:])
        if node.op_type == "ConvTranspose":  # each value is spread over channels and a window
            return 2 * prod(given[0]) * prod(given[1][1:])
        assert node.op_type not in ("Einsum", "Attention", "MatMulInteger", "ConvInteger")
        return 0

    @cached_property
    def weights(self) -> int:
        """Bytes of what is stored in the file."""
        return sum(self.sizes[name][1] for name in self.stored)

    @cached_property
    def attention_tokens(self) -> list[int]:
        """Queries of each softmax over pairs of tokens, in order: [B, heads, N, N]."""
        shapes = [self._shape(n.output[0]) for n in self.graph.node if n.op_type == "Softmax"]
        return [s[-2] for s in shapes if len(s) == 4 and s[-1] == s[-2] > 1]

    @cached_property
    def mlp_tokens(self) -> list[int]:
        """Rows of each GELU on [B, N, C] (an Erf), in order: those of MLPs."""
        shapes = [self._shape(n.output[0]) for n in self.graph.node if n.op_type == "Erf"]
        return [s[1] for s in shapes if len(s) == 3]

    def peak(self) -> int:
        """Most bytes of inputs and results that are alive at one time."""
        nodes = [n for n in self.graph.node if n.op_type not in _VIEWS or n.input[0] in self.stored]
        home = {o: o for n in self.graph.node for o in n.output} | {i: i for i in self._inputs}
        for node in self.graph.node:
            if node.op_type in _VIEWS and node.input[0] in home:
                home[node.output[0]] = home[node.input[0]]
        stays = self._inputs | {home[o.name] for o in self.graph.output}
        last = {home[i]: at for at, n in enumerate(nodes) for i in n.input if i in home}
        alive, most = set(self._inputs), 0
        for at, node in enumerate(nodes):
            made = {o for o in node.output if o and o not in self.stored}
            ends = {home[i] for i in node.input if i in home and last[home[i]] == at} - stays
            over = max((self.sizes[name][1] for name in ends), default=0)
            size = sum(self.sizes[name][1] for name in made)
            reused = min(size, over) if node.op_type in _IN_PLACE else 0
            most = max(most, sum(self.sizes[name][1] for name in alive) + size - reused)
            alive = (alive | {o for o in made if o in last or o in stays}) - ends
        return most

    @property
    def _inputs(self) -> frozenset[str]:
        return frozenset(i.name for i in self.graph.input)


def recorded(path: Path, batch: int = 1) -> Recorded:
    """Run a file with every tensor among its outputs, and note how large each is.

    Args:
        batch: where it is free.
    """
    model = onnx.load(path)
    graph = model.graph
    feed = {i.name: _noise(i, batch) for i in graph.input}
    known = {o.name for o in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in known]
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    whole = model.SerializeToString()
    del graph.output[len(known) :]
    session = ort.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    arrays: dict[str, Array] = dict(zip(names, session.run(names, feed), strict=True)) | feed
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    stored |= {n.output[0]: arrays[n.output[0]] for n in graph.node if n.op_type == "Constant"}
    sizes = {name: (array.shape, array.nbytes) for name, array in (arrays | stored).items()}
    size = next(iter(feed.values())).shape[0]
    return Recorded(graph, sizes, frozenset(stored), size)


def _noise(value: onnx.ValueInfoProto, batch: int) -> Array:
    dims = [d.dim_value or batch for d in value.type.tensor_type.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.random.default_rng(0).random(dims).astype(kind)
