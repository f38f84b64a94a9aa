"""Signatures: what makes two parts the same to a profile: their structure, not their weights or
token count."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, value
from tcompile.profiling.partition import Segment

_SMALL = 8


def signature(graph: gs.Graph, part: Segment) -> str:
    """Twelve hex digits of operators, attributes, how they are joined, and weights' shapes.

    Whole numbers among the inputs (what to reshape to, where to slice) count by how many there are:
    they follow from the token count and the weights. Floats count by value where they are few
    (scales, epsilons), by shape where they are many.
    """
    mine = [n for n in graph.nodes if n.name in part.nodes]
    names: dict[str, str] = {part.start: "stream"} if part.start else {}
    lines: list[str] = []
    for i, node in enumerate(mine):
        inputs = [_input(t, names) for t in node.inputs]
        attrs = [f"{k}={_attribute(v)}" for k, v in sorted(node.attrs.items())]
        lines.append(f"{node.domain or ''}:{node.op}({','.join(inputs)}){{{','.join(attrs)}}}")
        for j, out in enumerate(node.outputs):
            names[out.name] = f"%{i}.{j}"
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _input(tensor: gs.Tensor, names: dict[str, str]) -> str:
    if not tensor.name:
        return "-"
    if not is_const(tensor):
        rank = "?" if tensor.shape is None else len(tensor.shape)
        return names.get(tensor.name, f"side[{rank}]{np.dtype(tensor.dtype or np.float32)}")
    dims, dtype = tuple(tensor.shape), np.dtype(tensor.dtype)
    if dtype.kind in "iub":
        return f"{dtype}[{int(np.prod(dims))}]"
    if np.prod(dims) <= _SMALL:
        return f"{dtype}{[float(f'{v:.6g}') for v in value(tensor).reshape(-1)]}"
    return f"{dtype}{list(dims)}"


def _attribute(given: Any) -> str:
    if isinstance(given, gs.Tensor):
        return f"tensor{list(given.shape or ())}"
    if isinstance(given, float):
        return f"{given:.6g}"
    return str(given)
