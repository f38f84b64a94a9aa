"""What a token op is: an ONNX model-local function in the domain `tcompile`, and its numpy meaning.

A runtime without our plugin inlines the function body; one with the plugin dispatches on the name.
Parsers match the bare op type and ignore the domain, so names start with `Tc` (DESIGN 5.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

DOMAIN = "tcompile"
Reference = Callable[..., tuple[np.ndarray[Any, Any], ...]]


@dataclass(frozen=True)
class TokenOp:
    """One token op.

    Attributes:
        name: op type, globally unique.
        inputs, outputs: name and shape, as `scores [B,T] f32`.
        attributes: int64 tensors [1], each `name: meaning`. Tensors, since ONNX Runtime up to 1.23
            (the newest for Python 3.10) forgets the shape of a `Constant` made from plain integers.
        body: the function body in ONNX text; `@name` refers to an attribute.
        reference: the same in numpy: (*inputs, **attributes) → outputs.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    body: str
    reference: Reference

    def function(self, opset: int) -> onnx.FunctionProto:
        """The ONNX function under the given version of the default opset."""
        names = ", ".join(a.split(":")[0] for a in self.attributes)
        attributes = f"<{names}>" if names else ""
        ins = ", ".join(i.split(" ")[0] for i in self.inputs)
        outs = ", ".join(o.split(" ")[0] for o in self.outputs)
        text = (
            f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
            f"{self.name} {attributes} ({ins}) => ({outs})\n{{\n{self.body}\n}}"
        )
        return onnx.parser.parse_function(text)


def add_functions(graph: gs.Graph) -> None:
    """Give the graph the function body of every token op that it calls."""
    from tcompile.plugins.ops import OPS

    used = {n.op for n in graph.nodes if n.domain == DOMAIN}
    have = {f.name for f in graph.functions}
    shell = onnx.helper.make_model(
        onnx.helper.make_graph([], "functions", [], []),
        functions=[op.function(graph.opset) for op in OPS if op.name in used - have],
        opset_imports=[
            onnx.helper.make_opsetid("", graph.opset),
            onnx.helper.make_opsetid(DOMAIN, 1),
        ],
    )
    graph.functions.extend(gs.import_onnx(shell).functions)
