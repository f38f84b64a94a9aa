"""A model that is being changed at random."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Dims = tuple[int | str, ...]


class Draft:
    """A model that is being changed, with the shapes of its tensors as they were at first."""

    def __init__(self, model: onnx.ModelProto, rng: random.Random) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.rng = rng
        self.shapes = shapes_of(model)
        self.count = 0

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    @property
    def opset(self) -> int:
        return max(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def node(self, *ops: str) -> onnx.NodeProto | None:
        """A random node, of these op types."""
        found = [n for n in self.graph.node if not ops or n.op_type in ops]
        return self.rng.choice(found) if found else None

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"fuzz_{self.count}_{hint}"

    def constant(self, value: Any) -> str:
        name = self.fresh("constant")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def floats(self, *dims: int) -> str:
        values = np.random.default_rng(self.rng.randrange(1 << 30)).standard_normal(dims)
        return self.constant(values.astype(np.float32))

    def edge(self, rank: int = 0) -> tuple[onnx.NodeProto, int, list[int]] | None:
        """A random float tensor on its way into a node: (reader, input position, dims)."""
        floats = self._floats()
        found = []
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                dims = self.shapes.get(name)
                if name in floats and dims and len(dims) >= rank:
                    found.append((node, i, [d if isinstance(d, int) else 0 for d in dims]))
        return self.rng.choice(found) if found else None

    def _floats(self) -> set[str]:
        """Tensors that nodes write and that are not integers, as far as their readers tell."""
        ops = {"Shape", "Gather", "Concat", "Cast", "Constant", "ConstantOfShape", "Range", "Equal"}
        return {name for n in self.graph.node if n.op_type not in ops for name in n.output}

    def insert(self, edge: tuple[onnx.NodeProto, int, list[int]], *chain: onnx.NodeProto) -> None:
        """Put nodes on an edge; the first reads `@`, the last writes what the reader will read."""
        node, position, _ = edge
        source = node.input[position]
        for link in chain:
            for i, name in enumerate(link.input):
                if name == "@":
                    link.input[i] = source
        at = next(i for i, n in enumerate(self.graph.node) if n is node or n == node)
        for link in reversed(chain):
            self.graph.node.insert(at, link)
        self.graph.node[at + len(chain)].input[position] = chain[-1].output[0]

    def make(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
        name = self.fresh(op)
        return helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes)


def shapes_of(model: onnx.ModelProto) -> dict[str, Dims]:
    """Dims of every tensor that inference knows the rank of; a symbolic dim is its name."""
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a model broken on purpose
        return {}
    found: dict[str, Dims] = {}
    for info in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = info.type.tensor_type
        if kind.HasField("shape"):
            found[info.name] = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim
            )
    for tensor in model.graph.initializer:
        found[tensor.name] = tuple(tensor.dims)
    return found
