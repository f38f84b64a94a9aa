"""Several reducers at one site, one after the other (DiffRate, Zero-TPrune, TNT)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.core import Core
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.chain_steps import parts, problem, scores, steps_of
from tcompile.passes.reduce.reducers.common import take
from tcompile.passes.reduce.stage import Stage
from tcompile.planning.parameters import Parameter


class _Left(Core):
    """The attention as those tokens see it that are left."""

    def __init__(self, core: Core, given: ReducerInput, local: gs.Tensor) -> None:
        self.b, self.attention, self.batch = core.b, core.attention, core.batch
        self.node, self.product = core.node, core.product
        self.core, self.given, self.local = core, given, local

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads, of the tokens that are left."""
        return self._of_those(self.core.keys())

    def head_keys(self) -> gs.Tensor:
        """K by head, of the tokens that are left."""
        b, heads = self.b, self.attention.heads
        rows = b.transpose(self.core.head_keys(), [0, 2, 1, 3])
        kept = self._of_those(b.reshape(rows, [0, 0, heads * self.core.width]))
        return b.transpose(b.reshape(kept, [0, 0, heads, self.core.width]), [0, 2, 1, 3])

    def _of_those(self, whole: gs.Tensor) -> gs.Tensor:
        b, given = self.b, self.given
        inner = given.of_patches(whole)
        kept = b.call("TcGatherTokens", inner, self.local, dtypes=[np.float32])[0]
        end = given.prefix + given.stage.count
        parts = [b.slice(whole, 1, 0, given.prefix)] if given.prefix else []
        parts.append(kept)
        if given.suffix:
            parts.append(b.slice(whole, 1, end, None))
        return b.concat(parts, 1)


def chain(given: ReducerInput) -> tuple[gs.Tensor, Stage]:
    """Each step takes what the one before left; keys go with their tokens, and so do scores: the
    site's, or the step's own, which is of all tokens that arrive at the site.
    """
    from tcompile.passes.reduce.reducers import filled_reducer, find_reducer

    steps = steps_of(given.parameters)
    current, grid = given, given.grid
    local: gs.Tensor | None = None
    for i, step in enumerate(steps):
        spec, keep, own = step.reducer, step.keep, step.score
        reducer, values = find_reducer(spec.name), filled_reducer(spec)
        ask = Ask(current.stage.count, keep, values, grid)
        if own is not None:
            assert given.rank is not None
            score = given.rank(own)
            current = replace(
                current, fixed=None, score=score if local is None else take(given.b, score, local)
            )
        stream, after = reducer.run(replace(current, keep=keep, parameters=values, grid=grid))
        grid = reducer.grid(ask)
        if i == len(steps) - 1:
            whole = None if after.local is None else _composed(given.b, local, after.local)
            return stream, replace(after, local=whole)
        if after.local is None:
            raise UsageError(f"'{spec.name}' can only be the last of a chain", where="schedule")
        local = _composed(given.b, local, after.local)
        score = None if given.score is None else take(given.b, given.score, local)
        core = _Left(current.core, current, after.local)
        current = replace(given, x=stream, score=score, core=core, stage=after, fixed=None)
    raise UsageError("a chain without steps", where="schedule")


def _composed(b: Builder, before: gs.Tensor | None, step: gs.Tensor) -> gs.Tensor:
    """[B, K]: where tokens were before the chain began."""
    return step if before is None else take(b, before, step)


REDUCER = Reducer(
    "chain",
    chain,
    {"steps": Parameter(list, [], "what happens in turn: [{reducer, keep, score}, …]")},
    scored=False,
    problem=problem,
    parts=parts,
    scores=scores,
)
