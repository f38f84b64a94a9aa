"""Rotary tables for another grid, by the model's own rule."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from tcompile.analysis.axes import Axis
from tcompile.passes.resize.rules import Array, Rules
from tcompile.passes.resize.sizes import Sizes


class Rotary:
    def __init__(self, graph: gs.Graph, sizes: Sizes, rules: Rules) -> None:
        self.graph, self.sizes, self.rules = graph, sizes, rules

    def resized(self, tensor: gs.Tensor, axes: Sequence[Axis]) -> tuple[Array, str] | None:
        return None
