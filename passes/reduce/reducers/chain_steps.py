"""The steps of a chain, and what they cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec, whole_number
from tcompile.passes.reduce.reducers.base import Ask

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
        UsageError: they are no such thing.
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
    """How deep chains are nested in the steps of one."""
    level, depth = [parameters], 0
    while level and depth <= _DEEPEST:
        steps = [s for p in level if isinstance(p, Mapping) for s in _list(p.get("steps"))]
        level, depth = [s.get("reducer") for s in steps if isinstance(s, Mapping)], depth + 1
    return depth - 1


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _spec(document: Mapping[str, Any]) -> Spec:
    parameters = dict(document)
    return Spec(str(parameters.pop("name")), parameters)


def parts(parameters: Mapping[str, Any]) -> list[Spec]:
    """The reducers that go by the score of the site."""
    return [step.reducer for step in steps_of(parameters) if step.score is None]


def scores(parameters: Mapping[str, Any]) -> list[Spec]:
    """The scores of steps that have their own."""
    return [step.score for step in steps_of(parameters) if step.score is not None]


def problem(ask: Ask) -> str:
    """Why the chain cannot do what is asked; empty if it can."""
    from tcompile.passes.reduce.reducers import filled_reducer, reducer_of, traits_of

    count, grid, steps = ask.count, ask.grid, steps_of(ask.parameters)
    if not steps or steps[-1].keep != ask.keep:
        return f"the last step of a chain must keep the {ask.keep} that the site keeps"
    for i, step in enumerate(steps):
        spec, keep = step.reducer, step.keep
        reducer, values = reducer_of(spec), filled_reducer(spec)
        if reducer.first and i:
            return f"'{spec.name}' can only be the first of a chain"
        if reducer.around:
            return f"'{spec.name}' is no step of a chain: its place is around a block"
        if not 1 <= keep < count:
            return f"a step of the chain keeps {keep} of {count} tokens; it must keep fewer"
        if "fuse" in traits_of(spec) and i < len(steps) - 1:
            return f"'{spec.name}' can only be the last of a chain"
        why = reducer.problem(Ask(count, keep, values, grid, ask.whole))
        if why:
            return why
        grid, count = reducer.grid(Ask(count, keep, values, grid, ask.whole)), keep
    return ""
