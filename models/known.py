"""Exports known to fail, with every cure tried. A test notices when one starts to work."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFailure:
    """A combination that no cure helps.

    Attributes:
        source: regular expression over the SOURCE string.
        exporter: the one that fails.
        error: part of its message.
        instead: the exporter that works.
        example: a SOURCE of this kind.
    """

    source: str
    exporter: str
    error: str
    instead: str
    example: str


KNOWN: tuple[KnownFailure, ...] = ()


def known_hint(source: str, exporter: str) -> str:
    """What to do about a failed export."""
    for failure in KNOWN:
        if failure.exporter == exporter and re.match(failure.source, source):
            return f"known to fail; the exporter {failure.instead} works"
    return "try another exporter, opset or attention"
