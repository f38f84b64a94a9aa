"""Several reducers at one site, one after the other (DiffRate, Zero-TPrune, TNT)."""

from __future__ import annotations

from dataclasses import replace

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.chain_steps import parts, problem, scores, steps_of
from tcompile.passes.reduce.reducers.common import rows, take
from tcompile.passes.reduce.token_state import TokenState


class _Left(AttentionView):
    """The attention as those tokens see it that are left."""

    def __init__(self, core: AttentionView, given: ReducerInput, local: gs.Tensor) -> None:
        self.b, self.attention, self.batch = core.b, core.attention, core.batch
        self.node, self.product = core.node, core.product
        self.core, self.given, self.local = core, given, local

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads, of the tokens that are left."""
        return _left(self.given, self.core.keys(), self.local)

    def head_keys(self) -> gs.Tensor:
        """K by head, of the tokens that are left."""
        b, heads = self.b, self.attention.heads
        keys = b.transpose(self.core.head_keys(), [0, 2, 1, 3])
        lined = b.reshape(keys, [0, 0, heads * self.core.width])
        kept = _left(self.given, lined, self.local)
        return b.transpose(b.reshape(kept, [0, 0, heads, self.core.width]), [0, 2, 1, 3])


def _left(
    given: ReducerInput, whole: gs.Tensor, local: gs.Tensor, *, fp32: bool = True
) -> gs.Tensor:
    """[B, N', D]: those rows of [B, N, D] whose tokens are left, at `local` [B, K]; the others are
    the prefix's and the suffix's."""
    kept = rows(given.b, given.of_patches(whole, fp32=fp32), local, fp32=fp32)
    return replace(given, x=whole).joined(kept, fp32=fp32)


def chain(given: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """Each step takes what the one before left; keys go with their tokens, and so does the stream
    beside an attention, and so do scores: the site's, or the step's own, which is of all tokens
    that arrive at the site.
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
            whole = None if after.local is None else take(given.b, local, after.local)
            return stream, replace(after, local=whole)
        if after.local is None:
            raise UsageError(f"'{spec.name}' can only be the last of a chain", where="schedule")
        local = take(given.b, local, after.local)
        score = None if given.score is None else take(given.b, given.score, local)
        core, beside = _Left(current.core, current, after.local), current.beside
        if beside is not None:
            beside = _left(current, beside, after.local, fp32=False)
        current = replace(
            given, x=stream, score=score, core=core, stage=after, fixed=None, beside=beside
        )
    raise UsageError("a chain without steps", where="schedule")


REDUCER = Reducer(
    "chain",
    chain,
    {"steps": Parameter(list, [], "what happens in turn: [{reducer, keep, score}, …]")},
    scored=False,
    problem=problem,
    parts=parts,
    scores=scores,
)
