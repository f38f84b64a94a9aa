"""The last part of docs/methods.md: the scores and reducers that schedules are written with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers import REDUCERS, Reducer
from tcompile.passes.reduce.scores import SCORES, Score

_SCHEDULE = """
# Scores and reducers

What the methods are made of, and what a schedule written by hand may name (`tcompile plan --json` prints one to begin with;
`tcompile build --schedule FILE` follows it):

    {"site": "attn:3", "score": {"name": "cls", "agg": "max"}, "reducer": {"name": "topk"}, "keep": 98}

`keep` counts patch tokens after the step. Scores are larger for what is to stay, in fp32; ties go to the lower index."""  # noqa: E501


def parts() -> Iterator[str]:
    """The lines of the page."""
    yield _SCHEDULE
    yield from _table("score", sorted(SCORES, key=lambda one: one.name))
    yield from _table("reducer", sorted(REDUCERS, key=lambda one: one.name))


def _table(kind: str, ones: Sequence[Score | Reducer]) -> Iterator[str]:
    yield ""
    yield f"| {kind} | what it is | parameters |"
    yield "|---|---|---|"
    for one in ones:
        items = "; ".join(_parameter(k, p) for k, p in one.parameters.items())
        yield f"| `{one.name}` | {_what(one)} | {items} |"


def _what(one: Score | Reducer) -> str:
    """The first sentence of its file, without its own name and references to our notes."""
    text = (sys.modules[one.run.__module__].__doc__ or "").strip().split("\n\n")[0]
    text = re.sub(r"\s*\((METHODS|DESIGN)[^)]*\)", "", " ".join(text.split()))
    text = re.sub(r"^(`\w+`|[RU]\d[^:]*): ", "", text)
    return text.rstrip(".").replace("|", "\\|")


def _parameter(name: str, parameter: Parameter) -> str:
    default = "" if parameter.default is None else f"={_plain(parameter.default)}"
    choices = f" ({', '.join(map(str, parameter.choices))})" if parameter.choices else ""
    return f"`{name}{default}`: {parameter.meaning}{choices}".replace("|", "\\|")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
