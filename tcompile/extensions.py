"""Scores, reducers and presets of other packages, found by entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from tcompile.errors import UsageError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


Kind = TypeVar("Kind", bound=Named)


def extensions(group: str, kind: type[Kind]) -> list[Kind]:
    """What other packages offer in a group, loaded.

    Raises:
        UsageError: one that cannot be loaded or is something else; names the package.
    """
    return [_load(point, kind) for point in sorted(entry_points(group=group))]


def find(what: str, name: str, own: Iterable[Kind], group: str, kind: type[Kind]) -> Kind:
    """The one of that name, ours before others'.

    Raises:
        UsageError: there is none; names the nearest.
    """
    ours = {one.name: one for one in own}
    if name in ours:
        return ours[name]
    others = {point.name: point for point in entry_points(group=group)}
    if name in others:
        return _load(others[name], kind)
    names = [*ours, *others]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise UsageError(f"unknown {what} '{name}'", hint=hint)


def _load(point: Any, kind: type[Kind]) -> Kind:
    package = point.dist.name if point.dist is not None else point.value
    try:
        found = point.load()
    except Exception as error:  # whatever another package's import may do
        raise UsageError(
            f"'{point.name}' of {package} cannot be loaded: {type(error).__name__}: {error}",
            where=f"entry point {point.group}",
            hint=f"mend or uninstall {package}",
        ) from error
    if not isinstance(found, kind) or found.name != point.name:
        raise UsageError(
            f"'{point.name}' of {package} is no {kind.__name__} of that name",
            where=f"entry point {point.group}",
            hint=f"mend or uninstall {package}",
        )
    return found
