"""A figure as a report shows it beside the same figure as it was computed, and a report's texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.oracles.report.reading import Page, Table, markdown_tables

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]
BOTH = ("dense", "reduced")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


@dataclass(frozen=True)
class Check:
    """A figure of a report: where it is, as it is shown, and as it was computed here."""

    figure: str
    shown: str
    found: str

    @property
    def equal(self) -> bool:
        """Tell whether both are the same text."""
        return self.shown == self.found


#: What sums in another order may make of a likeness or a relative error.
ROUNDING = 3e-7


def near(figure: str, shown: str, value: float, form: str, slack: float = 0.0) -> Check:
    """Compare a number as it is shown with a value in the same format, which may be off by
    `slack`."""
    number = _NUMBER.search(shown)
    texts = [format(value + s, form) for s in (0.0, -slack, slack)]
    have = shown if number is None else number[0] + ("%" if form.endswith("%") else "")
    return Check(figure, have, have if have in texts else texts[0])


class Reading:
    """The texts of a report, and the names of the samples that its pictures are of, by the class of
    each."""

    def __init__(self, html: str, markdown: str, printed: str, pictures: Mapping[str, str]) -> None:
        self.pictures = pictures
        self.page, self.words, self.printed = Page(html), markdown, " ".join(printed.split())
        self.tables = markdown_tables(markdown)
        texts = (
            ("report.md", self.words),
            ("report.html", self.page.text),
            ("summary", self.printed),
        )
        self.texts = [(where, text) for where, text in texts if text]

    def md(self, *head: str) -> Table:
        """The first table of report.md whose head begins so."""
        found = [t for t in self.tables if t.head[: len(head)] == list(head)]
        assert found, f"no table {head}"
        return found[0]

    def both(self, *head: str) -> list[tuple[str, Table]]:
        """That table, and the one of report.html."""
        found = self.page.table(*head)
        assert found is not None
        return [("report.md", self.md(*head)), ("report.html", found)]


def not_all(share: float, most: float) -> float:
    """A share that is not called 100 % where it is less."""
    return share if share == 1 else min(share, most)


def after(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else "not there"


# ---- numbers as people read them -----------------------------------------------------------------


def flops_text(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def ms_text(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def size_text(count: int) -> str:
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        text = f"{count / scale:.3g}" if count / scale < 99.95 else f"{count / scale:.0f}"
        if float(text) < 1000:
            return f"{text} {unit}"
    raise ValueError(count)
