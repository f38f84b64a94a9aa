"""The little language of the shapes and limits of a specification.

A dimension is a sum of terms: `K`, `1`, `T/2` (rounded down), `T-r`, `prefix+k+suffix`. A limit is
two of them with `<=` or `==` between. The plugin library reads the same language
(`cuda/check.cpp`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TERM = re.compile(r"([+-]?)(\w+)(?:/(\d+))?")


def terms(text: str) -> list[tuple[int, str, int]]:
    """(sign, name or number, divisor) of each term.

    Raises:
        ValueError: it is not an expression.
    """
    found, end = [], 0
    for match in _TERM.finditer(text):
        if match.start() != end:
            break
        sign, name, divisor = match.groups()
        found.append((-1 if sign == "-" else 1, name, int(divisor or 1)))
        end = match.end()
    if not found or end != len(text):
        raise ValueError(f"'{text}' is not a sum of names and numbers")
    return found


def symbols(text: str) -> tuple[str, ...]:
    """The names in an expression."""
    return tuple(name for _, name, _ in terms(text) if not name.isdigit())


def evaluate(text: str, known: Mapping[str, int]) -> int:
    """Its value.

    Raises:
        KeyError: a name is not known.
    """
    return sum(
        sign * ((int(name) if name.isdigit() else known[name]) // divisor)
        for sign, name, divisor in terms(text)
    )


def holds(limit: str, known: Mapping[str, int]) -> bool:
    """Return whether `a<=b` or `a==b` is true."""
    left, sign, right = re.split("(<=|==)", limit)
    a, b = evaluate(left, known), evaluate(right, known)
    return a <= b if sign == "<=" else a == b
