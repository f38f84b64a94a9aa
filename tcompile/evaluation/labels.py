"""From the labels of data to the numbers of a model's classes."""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.core.errors import UsageError
from tcompile.data.base import Label, Source

#: Names shown in a message.
_SHOWN = 5


class ClassNumbers:
    """The number of the class that a label means, of an output with `count` classes.

    Numbers are meant as they are, unless the data names its classes and the model has all of those
    names. Names are looked up among the model's, upper and lower case, spaces, `_` and `-` being
    alike; one of several names with commas between them will do. Where the model does not know
    them, names that are whole numbers are these; else, where the data has as many classes as the
    model, they are taken in alphabetical order, as torchvision's ImageFolder does.

    Args:
        source: the data.
        names: of the model's classes; empty: not known.
        where: the output, for messages.

    Attributes:
        rule: how labels were understood, in words.

    Raises:
        UsageError: none of these holds.
    """

    def __init__(self, source: Source, names: Sequence[str], count: int, where: str) -> None:
        self._count, self._where, self._data = count, where, source.name
        known = self._known = _by_name(names) if len(names) == count else {}
        self._numbers: dict[Label, int] = {}
        self.rule = "labels are numbers of the model's classes"
        if not source.classes:
            return
        missing = [name for name in source.classes if plain_name(name) not in known]
        if not missing:
            numbers = [known[plain_name(name)] for name in source.classes]
            self.rule = "labels are names of the model's classes"
        elif all(name.isdigit() for name in source.classes):
            numbers = [int(name) for name in source.classes]
        elif len(source.classes) == count and len(missing) == count:
            numbers = list(range(count))
            self.rule = f"labels are the {count} classes in the order of their names"
            if list(source.classes) != sorted(source.classes):
                self.rule = f"labels are the {count} classes in the order of the data"
        else:
            shown = ", ".join(f"'{name}'" for name in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            has = f"{count} classes" if known else f"{count} classes without names"
            raise UsageError(
                f"labels {shown}{more} are none of the classes of {where}, which has {has}",
                where=source.name,
                hint="give their numbers, in labels.csv or a list with rows file,number; or do "
                "without, --no-labels",
            )
        self._numbers = dict(zip(source.classes, numbers, strict=True))
        self._numbers.update(enumerate(numbers))

    def number(self, label: Label | None, sample: str) -> int:
        """The class of a label, −1 where there is no label.

        Raises:
            UsageError: the model has no such class.
        """
        if label is None:
            return -1
        found = self._numbers.get(label, label)
        if isinstance(found, str) and plain_name(found) in self._known:
            self.rule = "labels are names of the model's classes"
            found = self._known[plain_name(found)]
        if not isinstance(found, int) or not 0 <= found < self._count:
            raise UsageError(
                f"label {label!r} of {sample} is none of the classes 0 to {self._count - 1} of "
                f"{self._where}",
                where=self._data,
                hint="classes are counted from 0; --no-labels does without",
            )
        return found


def plain_name(name: str) -> str:
    """A name without what does not matter: case, `_`, `-`, and spaces at the ends."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Names of classes, and their parts between commas where these mean one class alone."""
    whole = {plain_name(name): i for i, name in enumerate(names)}
    if len(whole) < len(names):  # two of one name
        seen: dict[str, int] = {}
        for name in map(plain_name, names):
            seen[name] = seen.get(name, 0) + 1
        whole = {name: i for name, i in whole.items() if seen[name] == 1}
    parts: dict[str, set[int]] = {}
    for i, name in enumerate(names):
        for part in name.split(","):
            parts.setdefault(plain_name(part), set()).add(i)
    single = {name: next(iter(found)) for name, found in parts.items() if len(found) == 1}
    return {**single, **whole}
