"""Several reducers at one site, one after the other, by one score (DiffRate, Zero-TPrune, TNT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.errors import InternalError, UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import take
from tcompile.passes.reduce.stage import Stage
from tcompile.planning.parameters import Parameter
from tcompile.planning.schedule import Spec


class _Left(Core):
    """The attention as those tokens see it that are left."""

    def __init__(self, core: Core, given: ReducerInput, local: gs.Tensor) -> None:
        self.b, self.attention, self.batch = core.b, core.attention, core.batch
        self.node, self.product = core.node, core.product
        self.core, self.given, self.local = core, given, local

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads, of the tokens that are left."""
        b, given = self.b, self.given
        whole = self.core.keys()
        inner = given.of_patches(whole)
        kept = b.call("TcGatherTokens", inner, self.local, dtypes=[np.float32])[0]
        end = given.prefix + given.stage.count
        parts = [b.slice(whole, 1, 0, given.prefix)] if given.prefix else []
        parts.append(kept)
        if given.suffix:
            parts.append(b.slice(whole, 1, end, None))
        return b.concat(parts, 1)


def chain(given: ReducerInput) -> tuple[gs.Tensor, Stage]:
    """Each step takes what the one before left; scores and keys go with their tokens."""
    from tcompile.passes.reduce.reducers import filled_reducer, find_reducer

    steps = list(_steps(given.parameters))
    current, grid = given, given.grid
    local: gs.Tensor | None = None
    for i, (spec, keep) in enumerate(steps):
        reducer, values = find_reducer(spec.name), filled_reducer(spec)
        ask = Ask(current.stage.count, keep, values, grid)
        stream, after = reducer.run(replace(current, keep=keep, parameters=values, grid=grid))
        grid = reducer.grid(ask)
        if i == len(steps) - 1:
            whole = None if after.local is None else _composed(given.b, local, after.local)
            return stream, replace(after, local=whole)
        if after.local is None:
            raise InternalError(f"reducer '{spec.name}' does not say where its tokens were")
        local = _composed(given.b, local, after.local)
        score = None if current.score is None else take(given.b, current.score, after.local)
        core = _Left(current.core, current, after.local)
        current = replace(given, x=stream, score=score, core=core, stage=after, fixed=None)
    raise InternalError("a chain without steps")


def _composed(b: Builder, before: gs.Tensor | None, step: gs.Tensor) -> gs.Tensor:
    """[B, K]: where tokens were before the chain began."""
    return step if before is None else take(b, before, step)


def _steps(parameters: Mapping[str, Any]) -> list[tuple[Spec, int]]:
    found: list[tuple[Spec, int]] = []
    for step in parameters["steps"]:
        try:
            reducer, keep = dict(step["reducer"]), int(step["keep"])
            found.append((Spec(str(reducer.pop("name")), reducer), keep))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"a step of a chain is {{reducer, keep}}, not {step!r}",
                             where="schedule") from error  # fmt: skip
    return found


def _parts(parameters: Mapping[str, Any]) -> list[Spec]:
    return [spec for spec, _ in _steps(parameters)]


def _problem(ask: Ask) -> str:
    from tcompile.passes.reduce.reducers import filled_reducer, find_reducer

    count, grid, steps = ask.count, ask.grid, _steps(ask.parameters)
    if not steps or steps[-1][1] != ask.keep:
        return f"the last step of a chain must keep the {ask.keep} that the site keeps"
    for i, (spec, keep) in enumerate(steps):
        reducer, values = find_reducer(spec.name), filled_reducer(spec)
        if not 1 <= keep < count:
            return f"a step of the chain keeps {keep} of {count} tokens; it must keep fewer"
        if "fuse" in reducer.traits and i < len(steps) - 1:
            return f"'{spec.name}' can only be the last of a chain"
        problem = reducer.problem(Ask(count, keep, values, grid, ask.whole))
        if problem:
            return problem
        grid, count = reducer.grid(Ask(count, keep, values, grid, ask.whole)), keep
    return ""


def _grid(ask: Ask) -> Grid:
    return ()


REDUCER = Reducer(
    "chain",
    chain,
    {"steps": Parameter(list, [], "what happens in turn: [{reducer, keep}, …]")},
    scored=False,
    problem=_problem,
    grid=_grid,
    parts=_parts,
)
