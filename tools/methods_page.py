"""docs/methods.md: `python -m tools.methods_page > docs/methods.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence

from tcompile.core.parameters import Parameter
from tcompile.methods.method_page import MethodPage, method_page
from tcompile.methods.presets import ALL
from tcompile.passes.reduce.reducers import REDUCERS, Reducer
from tcompile.passes.reduce.scores import SCORES, Score

_HEAD = """# Methods

Made by `python -m tools.methods_page > docs/methods.md`, from the presets themselves. `tcompile methods` prints the
same on the command line.

A method is a *score* (how much each token matters), a *reducer* (what happens to those that leave) and a *schedule* (how many
leave where). Every one takes `--keep R`, the share of the patch tokens that leave the encoder, exact where the method's own
shape allows it; or, in its place, the published parameters that set the budget, marked **budget** below. `attn:I` is between
attention and MLP of block I, `block:I` behind its MLP, `around:I` around it, `inside:I` before its attention, with all tokens
back after it, and `output` behind the encoder's last norm. All are re-implemented from their papers: nothing is copied.
"""  # noqa: E501

_SCHEDULE = """
# Scores and reducers

What the methods are made of, and what a schedule written by hand may name (`tcompile plan --json` prints one to begin with;
`tcompile build --schedule FILE` follows it):

    {"site": "attn:3", "score": {"name": "cls", "agg": "max"}, "reducer": {"name": "topk"}, "keep": 98}

`keep` counts patch tokens after the step. Scores are larger for what is to stay, in fp32; ties go to the lower index."""  # noqa: E501


def page() -> str:
    """The page, in Markdown."""
    cards = [method_page(preset) for preset in ALL]
    lines = [_HEAD, "| method | kind | what it does |", "|---|---|---|"]
    for one in cards:
        preset = one.preset
        lines.append(f"| [`{preset.name}`](#{preset.name}) | {preset.family} | {preset.summary} |")
    for one in cards:
        lines += ["", *_section(one)]
    lines += _parts()
    return "\n".join(lines) + "\n"


def _section(one: MethodPage) -> Iterator[str]:
    preset = one.preset
    yield f"## {preset.name}"
    yield ""
    yield f"{preset.summary[0].upper()}{preset.summary[1:]}. {preset.reference}."
    yield ""
    yield f"> {preset.formula}"
    yield ""
    example = f" For example, {one.example}:" if one.rows else ""
    yield f"Schedule: {preset.scheduler.words}.{example}"
    if one.rows:
        yield ""
        yield "| site | score | reducer | patch tokens left |"
        yield "|---|---|---|---|"
    for row in one.rows:
        yield f"| {row.sites} | {row.score} | {row.reducer} | {row.keep} |"
    if preset.parameters:
        yield ""
        for name, parameter in preset.parameters.items():
            default = "" if parameter.default is None else f", default {_plain(parameter.default)}"
            budget = " (**budget**)" if name in preset.budget else ""
            yield f"- `{name}`{budget}: {parameter.meaning}{default}"
    yield ""
    if preset.published:
        yield f"Published: {preset.published}.  "
    yield f"Needs {'; '.join(one.needs) if one.needs else 'nothing in particular'}.  "
    fused = "stays fused" if one.fused else "is not fused where the score reads it"
    yield f"Attention {fused}.{f' {_sentence(preset.note)}' if preset.note else ''}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _parts() -> Iterator[str]:
    """The scores and reducers that schedules are written with."""
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


if __name__ == "__main__":
    print(page(), end="")
