"""The table as Markdown."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from importlib import metadata

from tcompile.artifact.page import table
from tests.coverage.measure import METHODS, Cell, Row
from tests.coverage.rows import ALL

HEAD = """# Coverage

What tcompile makes of each family of models, in whatever way it was exported. Written by
`python -m tests.coverage`, never by hand. Each model is small, its weights redrawn so that mistakes
show; of its patch tokens 60 % are kept.

- `1e-06 of 2e-05` says that the export compiles: the largest difference from PyTorch code that
  removes the same tokens inside the model's own modules (of `resolution`: that gets the smaller
  image, its positions resized by its library's code), and what is allowed, 10 × the difference
  of the dense export itself. ᴿ: with `--outputs restored`, where no fewer tokens can leave the
  model. "compiled": there is no such PyTorch code of this model.
- *masked* is a second, independent check of `topk`: the dense file with −1e9 on the logits of
  dropped keys, and what is allowed there. "–" with a number: masks cannot say it, for the reason
  of that number below.
- ✗ with a number: refused, for the reason of that number below.
"""

_SHOWN = re.compile(r"'[^']*'|\d+")


def page(rows: Sequence[Row]) -> str:
    """The document, ending in a newline."""
    notes = Notes()
    parts = [HEAD, _summary(rows), _families(rows)]
    parts.append("## Every export\n\n" + _exports(rows, notes))
    parts.append(notes.section())
    parts.append(_not_exported(rows))
    parts.append(_versions())
    return "\n".join(filter(None, parts)).rstrip() + "\n"


def failures(rows: Iterable[Row]) -> list[str]:
    """Return what must not be in the table: wrong numbers, crashes."""
    found = []
    for row in rows:
        if row.failed:
            found.append(f"{row.id}: {row.failed}")
        cells = {**row.cells, "masked": row.masked}
        found += [
            f"{row.id}: {name}: {c.reason}"
            for name, c in cells.items()
            if c and c.status == "failed"
        ]
    return found


class Notes:
    """Reasons by number; those that differ in names and numbers only share one."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def number(self, reason: str) -> int:
        key = _SHOWN.sub("#", reason)
        self.texts.setdefault(key, reason)
        return list(self.texts).index(key) + 1

    def section(self) -> str:
        if not self.texts:
            return ""
        lines = [f"{i}. {escape(text)}" for i, text in enumerate(self.texts.values(), 1)]
        head = (
            "\n## Reasons\n\nNames and numbers are those of the first export with that reason.\n\n"
        )
        return head + "\n".join(lines) + "\n"


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _cell(cell: Cell | None, notes: Notes) -> str:
    if cell is None:
        return "–"
    if cell.status == "failed":
        return "**FAILED**"
    if cell.status == "refused":
        return f"✗ {notes.number(cell.reason)}"
    mark = " ᴿ" if cell.outputs == "restored" else ""
    if cell.error is None:
        return (
            f"compiled{mark}" if cell.reason == "no reference" else f"– {notes.number(cell.reason)}"
        )
    return f"{cell.error:.0e} of {cell.tolerance:.0e}{mark}"


def _summary(rows: Sequence[Row]) -> str:
    cells = [c for r in rows for c in r.cells.values()]
    checked = [c for c in cells if c.error is not None]
    masked = [r.masked for r in rows if r.masked and r.masked.error is not None]
    worst = max((c.error / c.tolerance for c in checked if c.tolerance), default=0.0)  # type: ignore[operator]
    wrong = len(failures(rows))
    return (
        f"{len({r.case for r in rows})} models, {len(rows)} exports, {len(cells)} times a method: "
        f"{len(checked)} compiled and held against PyTorch (the worst at {worst:.0%} of what is "
        f"allowed), {len(masked)} of them against masks as well, "
        f"{sum(c.status == 'refused' for c in cells)} refused with a reason, "
        f"{sum(not r.cells for r in rows)} exports that do not exist"
        + (f", **{wrong} FAILED**" if wrong else "")
        + "."
    )


def _families(rows: Sequence[Row]) -> str:
    """One line for each model: where tokens may leave, and which methods there are."""
    lines = []
    for case_id in dict.fromkeys(r.case for r in rows):
        mine = [r for r in rows if r.case == case_id and r.cells]
        case = ALL.get(case_id)
        legal = " / ".join(dict.fromkeys(r.legal for r in mine)) or "no export"
        methods = [_method(m, [r.cells[m] for r in mine if m in r.cells]) for m in METHODS]
        exporters = ", ".join(dict.fromkeys(r.exporter for r in mine))
        name = (case.family if case else case_id).replace("hf:", "transformers ")
        notes = case.notes if case else ""
        lines.append((name, f"`{case_id}`", escape(notes), exporters, legal, *methods))
    head = ("family", "model", "what is special", "exporters", "tokens may leave at", *METHODS)
    return "\n## Families\n\n" + table(head, lines) + "\n"


def _method(method: str, cells: Sequence[Cell]) -> str:
    kinds = {
        (
            "FAILED"
            if c.status == "failed"
            else "✗"
            if c.status == "refused"
            else "restored"
            if c.outputs == "restored"
            else "✓"
        )
        for c in cells
    }
    return " / ".join(sorted(kinds))


def _exports(rows: Sequence[Row], notes: Notes) -> str:
    lines = [
        (
            f"`{r.case}`",
            r.exporter,
            r.attention or "own",
            r.opset,
            r.batch,
            *(
                ["**FAILED**"] * (len(METHODS) + 1)
                if r.failed
                else [_cell(r.cells.get(m), notes) for m in METHODS] + [_cell(r.masked, notes)]
            ),
        )
        for r in rows
        if not r.export
    ]
    return table(("model", "exporter", "attention", "opset", "batch", *METHODS, "masked"), lines)


def _not_exported(rows: Sequence[Row]) -> str:
    missing = [r for r in rows if r.export]
    if not missing:
        return ""
    lines = [
        (f"`{r.case}`", r.exporter, r.attention or "own", r.opset, r.batch, escape(r.export[:300]))
        for r in missing
    ]
    head = ("model", "exporter", "attention", "opset", "batch", "what `tcompile export` says")
    return "\n## What cannot be exported\n\n" + table(head, lines) + "\n"


def _versions() -> str:
    names = (
        "torch",
        "timm",
        "transformers",
        "open_clip_torch",
        "torchvision",
        "onnx",
        "onnxscript",
        "onnxruntime",
    )
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"\n## Made with\n\nPython {platform.python_version()}, {', '.join(found)}.\n"
