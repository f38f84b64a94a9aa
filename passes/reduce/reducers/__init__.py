"""Reducers: what happens to the tokens that leave. The list below is the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.reducers.fuse import fuse
from tcompile.passes.reduce.reducers.merge import merge
from tcompile.passes.reduce.reducers.topk import topk
from tcompile.passes.reduce.stage import Stage


@dataclass(frozen=True)
class ReducerInput:
    """What a reducer may read.

    Attributes:
        b: where to write nodes.
        x: the stream [B, N, C], prefix first.
        score: [B, T] fp32, or None.
        core: the attention of the site's block.
        stage: the tokens before.
        prefix, suffix: fixed tokens before and after the patches.
        patches: T0, patches of the dense model.
        keep: patch tokens that go on.
        parameters: of the reducer.
    """

    b: Builder
    x: gs.Tensor
    score: gs.Tensor | None
    core: Core
    stage: Stage
    prefix: int
    suffix: int
    patches: int
    keep: int
    parameters: Mapping[str, Any]

    def of_patches(self, x: gs.Tensor, **kw: Any) -> gs.Tensor:
        """The patch rows of a [B, N, C] tensor."""
        if not self.prefix and not self.suffix:
            return x
        return self.b.slice(x, 1, self.prefix, self.prefix + self.stage.count, **kw)

    def joined(self, patches: gs.Tensor, **kw: Any) -> gs.Tensor:
        """[prefix | patches | suffix] of the stream with new patches."""
        parts: list[gs.Tensor] = []
        if self.prefix:
            parts.append(self.b.slice(self.x, 1, 0, self.prefix, **kw))
        parts.append(patches)
        if self.suffix:
            parts.append(self.b.slice(self.x, 1, self.prefix + self.stage.count, None, **kw))
        return self.b.concat(parts, 1, **kw)


Reducer = Callable[[ReducerInput], tuple[gs.Tensor, Stage]]

REDUCERS: Mapping[str, Reducer] = {"topk": topk, "fuse": fuse, "merge": merge}


def find_reducer(name: str) -> Reducer:
    """The reducer of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in REDUCERS:
        raise UsageError(f"unknown reducer '{name}'", hint=f"there are: {', '.join(REDUCERS)}")
    return REDUCERS[name]
