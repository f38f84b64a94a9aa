"""A report with one number changed, for every number that it shows: checks must see each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

#: What is not read by people: tags with their attributes, styles, scripts, drawn shapes.
_HIDDEN = re.compile(r"<(style|script|desc)\b.*?</\1>|<[^>]*>", re.DOTALL)
#: Numbers that stand by themselves: not the 1 of `1 - cosine` and of `top-1`.
_NUMBER = re.compile(r"(?<![\w.])(?<!top-)(?!1 [-\N{MINUS SIGN}] c)\d[\d.,]*")


def mutants(text: str, *, html: bool) -> Iterator[tuple[str, str]]:
    """Each number that is shown, with what stands around it, and the text in which it is another:
    its last digit is five more, which is beyond what sums in another order make of it."""
    hidden = [m.span() for m in _HIDDEN.finditer(text)] if html else []
    for number in _NUMBER.finditer(text):
        at = number.end() - 1
        while not text[at].isdigit():
            at -= 1
        if any(first <= at < last for first, last in hidden):
            continue
        changed = f"{text[:at]}{(int(text[at]) + 5) % 10}{text[at + 1 :]}"
        around = text[max(number.start() - 60, 0) : number.end() + 30]
        if html:
            around = re.sub(r"^[^<]*>|<[^>]*>|<[^>]*$", " ", around)
        yield " ".join(around.split()), changed


def unseen(text: str, seen: Callable[[str], bool], *, html: bool) -> list[str]:
    """The numbers that may be anything: what stands around those whose change is not seen."""
    return [around for around, changed in mutants(text, html=html) if not seen(changed)]
