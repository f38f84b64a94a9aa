"""Reducers: what happens to the tokens that leave. The list below is the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.reducers.bypass import bypass
from tcompile.passes.reduce.reducers.fuse import fuse
from tcompile.passes.reduce.reducers.merge import merge
from tcompile.passes.reduce.reducers.topk import topk
from tcompile.passes.reduce.stage import Stage
from tcompile.planning.schedule import Spec


@dataclass(frozen=True)
class ReducerInput:
    """What a reducer may read.

    Attributes:
        b: where to write nodes.
        x: the stream [B, N, C], prefix first.
        width: C.
        score: [B, T] fp32, or None.
        core: the attention of the site's block.
        stage: the tokens before.
        prefix, suffix: fixed tokens before and after the patches.
        patches: T0, patches of the dense model.
        keep: patch tokens that go on.
        parameters: of the reducer.
        table: [groups, g], the patches of each group, where tokens leave in whole groups.
    """

    b: Builder
    x: gs.Tensor
    width: int
    score: gs.Tensor | None
    core: Core
    stage: Stage
    prefix: int
    suffix: int
    patches: int
    keep: int
    parameters: Mapping[str, Any]
    table: np.ndarray[Any, Any] | None = None

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

REDUCERS: Mapping[str, Reducer] = {
    "topk": topk, "fuse": fuse, "merge": merge, "bypass": bypass,
}  # fmt: skip


#: What each takes besides; a parameter it does not know is a mistake to be told of.
PARAMETERS: Mapping[str, Mapping[str, type]] = {"merge": {"prop_attn": bool}}


def check_parameters(spec: Spec) -> None:
    """Hold the parameters of a reducer (or score) in a schedule against those it takes.

    Raises:
        UsageError: an unknown one, or a value of the wrong type.
    """
    known = PARAMETERS.get(spec.name, {})
    for key, given in spec.parameters.items():
        if key not in known:
            hint = f"it has: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"'{key}' is not a parameter of {spec.name}", where="schedule",
                             hint=hint)  # fmt: skip
        if not isinstance(given, known[key]):
            raise UsageError(
                f"{key}={given!r} of {spec.name} is no {known[key].__name__}", where="schedule"
            )


def find_reducer(name: str) -> Reducer:
    """The reducer of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in REDUCERS:
        raise UsageError(f"unknown reducer '{name}'", hint=f"there are: {', '.join(REDUCERS)}")
    return REDUCERS[name]
