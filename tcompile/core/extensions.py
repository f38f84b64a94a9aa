"""Scores, reducers and presets of other packages, found by entry points (docs/extending.md).

A name of tcompile always means its own, so that a schedule says the same wherever it is read.
Nothing of another package is imported before its name is asked for, or all are listed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypeVar

from tcompile.core.errors import TcompileError, UsageError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


Kind = TypeVar("Kind", bound=Named)


def extensions(group: str, kind: type[Kind], own: Iterable[Named] = ()) -> list[Kind]:
    """Load what other packages offer in a group, by name; without what has a name of `own`.

    Raises:
        UsageError: one that cannot be loaded or is something else, two of one name; names the
            packages.
    """
    points = _points(group)
    ours = {one.name for one in own}
    return [_load(points[name], kind) for name in sorted(points) if name not in ours]


def find(what: str, name: str, own: Iterable[Kind], group: str, kind: type[Kind]) -> Kind:
    """Return the one of that name, those of tcompile before others.

    Raises:
        UsageError: there is none (names the nearest), or it cannot be loaded.
    """
    ours = {one.name: one for one in own}
    if name in ours:
        return ours[name]
    others = _points(group)
    if name in others:
        return _load(others[name], kind)
    names = [*ours, *others]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise UsageError(f"unknown {what} '{name}'", hint=hint)


def _points(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _load(points: Sequence[EntryPoint], kind: type[Kind]) -> Kind:
    """The one behind entry points of one name."""
    point, group = points[0], points[0].group
    package = _package(point)
    # One package may be found twice, by two entries of sys.path.
    others = {_package(p) for p in points if p.value != point.value}
    if others:
        raise UsageError(
            f"{' and '.join(sorted({package, *others}))} both have a '{point.name}'",
            where=f"entry points {group}",
            hint="uninstall one of them",
        )
    try:
        found = point.load()
    except Exception as error:  # whatever another package's import may do
        raise UsageError(
            f"'{point.name}' of {package} cannot be loaded: {type(error).__name__}: {error}",
            where=f"entry point {group}",
            hint=f"fix or uninstall {package}",
        ) from error
    if not isinstance(found, kind) or found.name != point.name:
        raise UsageError(
            f"'{point.name}' of {package} is not a {kind.__name__} of that name",
            where=f"entry point {group}",
            hint=f"fix or uninstall {package}",
        )
    if hasattr(found, "run"):
        one: Any = found
        guarded: Kind = replace(one, run=_guarded(one.run, f"'{point.name}' of {package}"))
        return guarded
    return found


def _guarded(run: Callable[[Any], Any], what: str) -> Callable[[Any], Any]:
    """Return the same function; an error in it is reported as its author's to fix."""

    def guarded(given: Any) -> Any:
        try:
            return run(given)
        except TcompileError:
            raise
        except Exception as error:
            raise UsageError(
                f"{what} failed: {type(error).__name__}: {error}", hint="--debug shows where"
            ) from error

    return guarded


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
