"""Reducers: what happens to the tokens that leave; the list below is the registry.

Reducers of other packages are found by entry points of the group `tcompile.reducers`.
"""

from __future__ import annotations

from typing import Any

from tcompile.core.extensions import find
from tcompile.core.parameters import filled
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.reducers import (
    assign,
    bypass,
    chain,
    contextual,
    diverse,
    fuse,
    lines,
    merge,
    neighbours,
    pool,
    propagate,
    restore,
    soft,
    topk,
    windows,
)
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput, Trait

__all__ = [
    "REDUCERS",
    "Ask",
    "Reducer",
    "ReducerInput",
    "drops",
    "filled_reducer",
    "find_reducer",
    "needs_score",
    "reducer_of",
    "traits_of",
]

REDUCERS: tuple[Reducer, ...] = (
    topk.REDUCER,
    fuse.REDUCER,
    merge.REDUCER,
    bypass.REDUCER,
    chain.REDUCER,
    restore.REDUCER,
    assign.REDUCER,
    contextual.REDUCER,
    neighbours.REDUCER,
    soft.REDUCER,
    propagate.REDUCER,
    pool.REDUCER,
    lines.REDUCER,
    windows.REDUCER,
    diverse.REDUCER,
)


def find_reducer(name: str) -> Reducer:
    """The reducer of that name.

    Raises:
        UsageError: there is none.
    """
    return find("reducer", name, REDUCERS, "tcompile.reducers", Reducer)


def reducer_of(spec: Spec) -> Reducer:
    """The reducer of a step, as it is with its parameters. Raises as `filled_reducer`."""
    return find_reducer(spec.name).of(filled_reducer(spec))


def traits_of(spec: Spec) -> frozenset[Trait]:
    """What a reducer, or what it is made of, does to the tokens."""
    reducer = reducer_of(spec)
    return reducer.traits.union(*map(traits_of, reducer.parts(filled_reducer(spec))))


def drops(spec: Spec) -> bool:
    """Whether tokens leave and the sizes of the others do not grow by as much: a chain may drop
    some and merge some, and sizes may grow by less than what was merged."""
    reducer, parameters = reducer_of(spec), filled_reducer(spec)
    parts = reducer.parts(parameters)
    if parts:
        return any(map(drops, parts))
    return "merge" not in reducer.traits or parameters.get("sizes", True) not in (True, "sum")


def needs_score(spec: Spec) -> bool:
    """Whether a reducer, or what it is made of, needs a score."""
    reducer = reducer_of(spec)
    return reducer.scored or any(map(needs_score, reducer.parts(filled_reducer(spec))))


def filled_reducer(spec: Spec) -> dict[str, Any]:
    """Its parameters, defaults filled in.

    Raises:
        UsageError: an unknown one, or a value that it cannot have.
    """
    return filled(find_reducer(spec.name).parameters, spec.parameters, spec.name, "schedule")
