"""docs/methods.md: `python -m tcompile.methods > docs/methods.md`."""

from __future__ import annotations

from collections.abc import Iterator

from tcompile.methods.method_page import MethodPage, method_page
from tcompile.methods.presets import PRESETS
from tcompile.methods.schedule_reference import parts

_HEAD = """# Methods

Made by `python -m tcompile.methods > docs/methods.md`, from the presets themselves. `tcompile methods` prints the
same on the command line.

A method is a *score* (how much each token matters), a *reducer* (what happens to those that leave) and a *schedule* (how many
leave where). Every one takes `--keep R`, the share of the patch tokens that leave the encoder, exact where the method's own
shape allows it; or, in its place, the published parameters that set the budget, marked **budget** below. `attn:I` is between
attention and MLP of block I, `block:I` behind its MLP, `around:I` around it, `inside:I` before its attention, with all tokens
back after it, and `output` behind the encoder's last norm. All are re-implemented from their papers: nothing is copied.
"""  # noqa: E501


def page() -> str:
    """The page, in Markdown."""
    cards = [method_page(preset) for preset in PRESETS]
    lines = [_HEAD, "| method | kind | what it does |", "|---|---|---|"]
    for one in cards:
        preset = one.preset
        lines.append(f"| [`{preset.name}`](#{preset.name}) | {preset.family} | {preset.summary} |")
    for one in cards:
        lines += ["", *_section(one)]
    lines += parts()
    return "\n".join(lines) + "\n"


def _section(one: MethodPage) -> Iterator[str]:
    preset = one.preset
    yield f"## {preset.name}"
    yield ""
    yield f"{preset.summary[0].upper()}{preset.summary[1:]}. {preset.reference}."
    yield ""
    yield f"> {preset.formula}"
    yield ""
    yield f"Schedule: {preset.scheduler.words}. For example, {one.example}:"
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


if __name__ == "__main__":
    print(page(), end="")
