"""Reducers: what happens to the tokens that leave; the list below is the registry.

Reducers of other packages are found by entry points of the group `tcompile.reducers`.
"""

from __future__ import annotations

from typing import Any

from tcompile.core.extensions import find
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.reducers import (
    assign,
    base,
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
    return find_reducer(spec.name).bind(spec)[0]


def filled_reducer(spec: Spec) -> dict[str, Any]:
    """Its parameters, defaults filled in.

    Raises:
        UsageError: an unknown one, or a value that it cannot have.
    """
    return find_reducer(spec.name).bind(spec)[1]


def traits_of(spec: Spec) -> frozenset[Trait]:
    """Return what a reducer, or what it is made of, does to the tokens."""
    return base.traits_of(spec, find_reducer)


def drops(spec: Spec) -> bool:
    """Tell if tokens leave and the sizes of the others do not grow by as much: a chain may drop
    some and merge some, and sizes may grow by less than what was merged."""
    reducer, parameters = find_reducer(spec.name).bind(spec)
    if parts := reducer.parts(parameters):
        return any(map(drops, parts))
    return "merge" not in reducer.traits or parameters.get("sizes", True) not in (True, "sum")


def needs_score(spec: Spec) -> bool:
    """Tell if a reducer, or what it is made of, needs a score."""
    reducer, parameters = find_reducer(spec.name).bind(spec)
    return reducer.scored or any(map(needs_score, reducer.parts(parameters)))
