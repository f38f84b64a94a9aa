"""Results of benchmarks/methods.py, as a table and a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One method at one keep.

    Attributes:
        tokens: patch tokens that leave the encoder.
        top1: share of the scenes answered right.
        agreement: share of the scenes answered as the dense model does.
        flops: of the whole model, by those of the dense one.
        added: FLOPs of the method itself, by those of the dense model.
        nodes: that the method adds.
        unfused: attentions that its scores keep TensorRT from fusing.
        latency, dense_latency: of a batch in the same rounds: median, lower and upper quartile, ms.
        speedup: ratio of the medians, and its 95 % interval.
        load: the machine's load average while measuring, our own share included.
        notes: what the schedule says of itself, such as that it cannot come closer to the keep.
        missing: why there is nothing.
    """

    method: str
    keep: str
    tokens: int = 0
    top1: float = 0.0
    agreement: float = 0.0
    flops: float = 0.0
    added: float = 0.0
    nodes: int = 0
    unfused: int = 0
    latency: Mapping[str, float] | None = None
    dense_latency: Mapping[str, float] | None = None
    speedup: Mapping[str, float] | None = None
    load: float = 0.0
    notes: tuple[str, ...] = ()
    missing: str = ""

    @property
    def relative(self) -> float:
        """Latency by the dense model's."""
        return 1 / self.speedup["ratio"] if self.speedup else 1.0

    def line(self) -> str:
        """For a log."""
        if self.missing:
            return f"{self.method} {self.keep}: {self.missing}"
        times = f", {1 / self.relative:.2f}x" if self.speedup else ""
        return f"{self.method} {self.keep}: top-1 {self.top1:.1%}{times}"


@dataclass(frozen=True)
class Results:
    """All rows that were measured under the same settings."""

    settings: Mapping[str, Any]
    rows: tuple[Row, ...] = ()
    dense_top1: float = 0.0

    @staticmethod
    def read(path: Path, settings: Mapping[str, Any]) -> Results:
        """Return what the file holds; nothing where it is of other settings, or not there."""
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == settings:
                rows = tuple(Row(**{**row, "notes": tuple(row["notes"])}) for row in found["rows"])
                return Results(settings, rows, found["dense_top1"])
        return Results(settings)

    def write(self, path: Path) -> None:
        """For `read`."""
        document = {"kind": "measured", **asdict(self), "rows": []}
        rows = ",\n".join(f"  {json.dumps(_rounded(asdict(row)))}" for row in self.rows)
        head, _, tail = json.dumps(document, indent=1).rpartition("[]")
        path.write_text(f"{head}[\n{rows}\n ]{tail}\n", encoding="utf-8")

    def has(self, method: str, keep: str) -> bool:
        """Return whether it was measured; what failed is tried again."""
        return any((r.method, r.keep, r.missing) == (method, keep, "") for r in self.rows)

    def with_row(self, row: Row) -> Results:
        """With this row, in place of one of the same method and keep."""
        rest = [r for r in self.rows if (r.method, r.keep) != (row.method, row.keep)]
        return replace(self, rows=(*rest, row))


def answers(path: Path, scenes: int) -> list[Row]:
    """The rows of a file, measured under whatever settings on as many scenes."""
    if not path.is_file():
        return []
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    rows = Results.read(path, settings).rows if settings["scenes"] == scenes else ()
    return [row for row in rows if not row.missing]


def front(rows: Sequence[Row], dense_top1: float) -> list[Row]:
    """The rows that neither another one nor the dense model beats in latency and top-1, fastest
    first."""
    best, found = -1.0, []
    for row in sorted(rows, key=lambda r: (r.relative, -r.top1)):
        if row.top1 > max(best, dense_top1 if row.relative >= 1 else best):
            found.append(row)
            best = row.top1
    return found


def rivals(rows: Sequence[Row], families: Mapping[str, str]) -> list[Row]:
    """The rows that save time on the logits: behind the last block, only noise could."""
    return [r for r in rows if r.speedup and families.get(r.method.partition(":")[0]) != "output"]


def write_table(
    results: Results, keeps: Sequence[str], families: Mapping[str, str], folder: Path
) -> str:
    """Write methods.md and methods.csv; returns the Markdown.

    Args:
        families: of each method, by its name before any parameters.
    """
    rows = [row for row in results.rows if row.keep in keeps]
    text = table(results, rows, keeps, families)
    (folder / "methods.md").write_text(text)
    with (folder / "methods.csv").open("w", newline="") as file:
        flat = [_rounded(_flat(row)) for row in rows]
        writer = csv.DictWriter(file, list(dict.fromkeys(k for row in flat for k in row)))
        writer.writeheader()
        writer.writerows(flat)
    return text


def _rounded(value: Any) -> Any:
    """Six digits are more than anything here is good for."""
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in asdict(row).items():
        if key in ("latency", "dense_latency", "speedup"):
            found |= {f"{key}_{name}": number for name, number in (value or {}).items()}
        else:
            found[key] = value
    return found


def table(
    results: Results, rows: Sequence[Row], keeps: Sequence[str], families: Mapping[str, str]
) -> str:
    """One row for each method; a cell is `top-1 (agreement) speed-up`, the best ones bold."""
    best = {(r.method, r.keep) for r in front(rivals(rows, families), results.dense_top1)}
    middle = keeps[(len(keeps) - 1) // 2]
    given = results.settings
    loads = [r.load for r in rows if r.load]
    busy = bool(loads) and max(loads) > given["threads"] + 0.5
    lines = [
        "# Methods on `zoo:glyphs`",
        "",
        f"Measured on {given['machine']}: top-1 and agreement with the dense model in percent of "
        f"{given['scenes']} held-out scenes, speed-up over the dense model at batch "
        f"{given['batch']} on {given['threads']} threads, medians of {given['rounds']} interleaved "
        f"rounds of {given['runs']} runs. Dense: {results.dense_top1:.1%} top-1. FLOPs are of the "
        "whole model at keep "
        f"{middle}, and of the method alone, both in percent of the dense model's; nodes are those "
        "that the method adds, unfused the attentions that it keeps TensorRT from fusing. Bold: no "
        "other cell, nor the dense model, is both faster and more accurate. Methods of the family "
        "output let tokens leave behind the last block: these logits stay what they are, and what "
        "is saved is in whatever reads the tokens.",
        "",
        "![Top-1 against latency](methods.svg)",
    ]
    if busy:
        lines += [
            "",
            f"**The machine was busy (load average up to {max(loads):.1f}): speed-ups "
            "are not to be quoted.**",
        ]
    head = ["method", "family", *keeps, f"FLOPs at {middle}", "added", "nodes", "unfused"]
    lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for method in dict.fromkeys(row.method for row in rows):
        mine = {row.keep: row for row in rows if row.method == method and not row.missing}
        if mine:
            cells = [_cell(mine.get(keep), best) for keep in keeps]
            name = [method, families.get(method.partition(":")[0], "")]
            lines.append(f"| {' | '.join([*name, *cells, *_costs(mine.get(middle))])} |")
    notes = [(row.method, row.keep, note) for row in rows for note in row.notes]
    lines += _remarks("Notes", notes)
    lines += _remarks("Not there", [(r.method, r.keep, r.missing) for r in rows if r.missing])
    return "\n".join(lines) + "\n"


def _cell(row: Row | None, best: set[tuple[str, str]]) -> str:
    if row is None:
        return "—"
    text = f"{100 * row.top1:.1f} ({100 * row.agreement:.1f})"
    text += f" {1 / row.relative:.2f}×" if row.speedup else ""
    return f"**{text}**" if (row.method, row.keep) in best else text


def _costs(row: Row | None) -> list[str]:
    if row is None:
        return ["—"] * 4
    added = f"{100 * row.added:.2f}"
    return [f"{100 * row.flops:.1f}", added, str(row.nodes), str(row.unfused or "")]


def _remarks(title: str, remarks: Sequence[tuple[str, str, str]]) -> list[str]:
    """One line for each method and text, with the keeps that it is of."""
    found: dict[tuple[str, str], list[str]] = {}
    for method, keep, text in remarks:
        found.setdefault((method, text), []).append(keep)
    lines = [f"- `{m}` at {', '.join(keeps)}: {text}" for (m, text), keeps in found.items()]
    return ["", f"{title}:", "", *lines] if lines else []
