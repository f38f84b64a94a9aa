"""Several reducers at one site, one after the other (DiffRate, Zero-TPrune, TNT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec, whole_number
from tcompile.passes.reduce.attention_view import AttentionView
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput, traits_of
from tcompile.passes.reduce.reducers.common import rows, take
from tcompile.passes.reduce.token_state import TokenState

#: How deep chains may be nested: who needs more has written a loop.
_DEEPEST = 4


@dataclass(frozen=True)
class Step:
    """A step: what it does, how many patch tokens it leaves, and a score of its own or None."""

    reducer: Spec
    keep: int
    score: Spec | None


def steps_of(parameters: Mapping[str, Any]) -> list[Step]:
    """The steps of a chain.

    Raises:
        UsageError: they are not the steps of a chain.
    """
    if _depth(parameters) > _DEEPEST:
        raise UsageError(f"chains are nested more than {_DEEPEST} deep", where="schedule")
    found: list[Step] = []
    for step in parameters["steps"]:
        try:
            own = step.get("score")
            score = _spec(own) if own else None
            found.append(Step(_spec(step["reducer"]), whole_number(step["keep"]), score))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"a step of a chain is {{reducer, keep, score}}, not {step!r}", where="schedule"
            ) from error
    return found


def _depth(parameters: Any) -> int:
    """Return how deep chains are nested in the steps of one."""
    level, depth = [parameters], 0
    while level and depth <= _DEEPEST:
        steps = [s for p in level if isinstance(p, Mapping) for s in _list(p.get("steps"))]
        level, depth = [s.get("reducer") for s in steps if isinstance(s, Mapping)], depth + 1
    return depth - 1


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _spec(document: Mapping[str, Any]) -> Spec:
    parameters = dict(document)
    return Spec(str(parameters.pop("name")), parameters)


def _parts(parameters: Mapping[str, Any]) -> list[Spec]:
    """The reducers that go by the score of the site."""
    return [step.reducer for step in steps_of(parameters) if step.score is None]


def _scores(parameters: Mapping[str, Any]) -> list[Spec]:
    """The scores of steps that have their own."""
    return [step.score for step in steps_of(parameters) if step.score is not None]


class _Left(AttentionView):
    """The attention as those tokens see it that are left."""

    def __init__(self, inputs: ReducerInput, local: gs.Tensor) -> None:
        vars(self).update(vars(inputs.attention))
        self.inputs, self.local = inputs, local

    def keys(self) -> gs.Tensor:
        """Keys averaged over heads, of the tokens that are left."""
        return _left(self.inputs, self.inputs.attention.keys(), self.local)

    def head_keys(self) -> gs.Tensor:
        """K by head, of the tokens that are left."""
        b, heads, whole = self.builder, self.matched.heads, self.inputs.attention
        keys = b.transpose(whole.head_keys(), [0, 2, 1, 3])
        lined = b.reshape(keys, [0, 0, heads * whole.width])
        kept = _left(self.inputs, lined, self.local)
        return b.transpose(
            b.reshape(kept, [0, 0, heads, self.inputs.attention.width]), [0, 2, 1, 3]
        )


def _left(
    inputs: ReducerInput, whole: gs.Tensor, local: gs.Tensor, *, fp32: bool = True
) -> gs.Tensor:
    """[B, N', D]: those rows of [B, N, D] whose tokens are left, at `local` [B, K]; the others are
    the prefix's and the suffix's."""
    kept = rows(inputs.builder, inputs.of_patches(whole, fp32=fp32), local, fp32=fp32)
    return replace(inputs, x=whole).joined(kept, fp32=fp32)


def chain(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """Each step takes what the one before left; keys go with their tokens, and so does the stream
    beside an attention, and so do scores: the site's, or the step's own, which is of all tokens
    that arrive at the site.
    """
    steps = steps_of(inputs.parameters)
    current, grid = inputs, inputs.grid
    local: gs.Tensor | None = None
    parts: list[TokenState] = []
    for i, step in enumerate(steps):
        reducer, values = inputs.find(step.reducer.name).bind(step.reducer)
        if step.score is not None:
            score = inputs.score_fn(step.score)
            score = score if local is None else take(inputs.builder, score, local)
            current = replace(current, fixed_score=None, score=score)
        current = replace(current, keep=step.keep, parameters=values, grid=grid)
        stream, after = reducer.run(current)
        if i == len(steps) - 1:
            whole = None if after.local is None else take(inputs.builder, local, after.local)
            return stream, replace(after, local=whole, parts=(*parts, after))
        if after.local is None:
            raise UsageError(f"'{reducer.name}' can only be the last of a chain", where="schedule")
        parts.append(after)
        grid = reducer.grid(current.ask)
        local = take(inputs.builder, local, after.local)
        residual = current.residual
        if residual is not None:
            residual = _left(current, residual, after.local, fp32=False)
        current = replace(
            inputs,
            x=stream,
            score=None if inputs.score is None else take(inputs.builder, inputs.score, local),
            attention=_Left(current, after.local),
            state=after,
            fixed_score=None,
            residual=residual,
        )
    raise UsageError("a chain without steps", where="schedule")


def _problem(ask: Ask) -> str:
    """Return why the chain cannot do what is asked; empty if it can."""
    count, grid, steps = ask.count, ask.grid, steps_of(ask.parameters)
    if not steps or steps[-1].keep != ask.keep:
        return f"the last step of a chain must keep the {ask.keep} that the site keeps"
    for i, step in enumerate(steps):
        reducer, values = ask.find(step.reducer.name).bind(step.reducer)
        if reducer.first and i:
            return f"'{reducer.name}' can only be the first of a chain"
        if reducer.around:
            return f"'{reducer.name}' cannot be a step of a chain: its place is around a block"
        if not 1 <= step.keep < count:
            return f"a step of the chain keeps {step.keep} of {count} tokens; it must keep fewer"
        if "fuse" in traits_of(step.reducer, ask.find) and i < len(steps) - 1:
            return f"'{reducer.name}' can only be the last of a chain"
        each = replace(ask, count=count, keep=step.keep, parameters=values, grid=grid)
        if why := reducer.problem(each):
            return why
        grid, count = reducer.grid(each), step.keep
    return ""


REDUCER = Reducer(
    "chain",
    chain,
    {"steps": Parameter(list, [], "what happens in turn: [{reducer, keep, score}, …]")},
    scored=False,
    problem=_problem,
    parts=_parts,
    scores=_scores,
)
