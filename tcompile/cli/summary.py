"""What `tcompile build` says of an artifact: in a few lines, or with -v in all of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tcompile.cli.common import verbose
from tcompile.cli.tables import print_table
from tcompile.cli.text import echo

if TYPE_CHECKING:
    from tcompile.artifact.manifest import Flops, Manifest, SpeedUp

#: Notes of which a few words are shown.
_NOTES = 2


def print_summary(directory: Path) -> None:
    """Print what was asked, what is given and why; then what was built, in a few rows."""
    from tcompile.artifact.directory import load_artifact

    m = load_artifact(directory).manifest
    for line in m.summary:
        echo(line)
    failed = [("FAILED", m.fault)] if m.fault else []
    rows = _all_rows(m) if verbose() else _few_rows(directory, m)
    method = m.schedule.get("method")
    title = f"{directory}: {m.source.file} for {m.target.name}, {m.precision}, {method}"
    print_table(("", ""), [*failed, *rows], title=title)


def _few_rows(directory: Path, m: Manifest) -> list[tuple[str, str]]:
    """What a person wants to know: speed, loss, work, what to note, and where the rest is."""
    from tcompile.artifact.directory import PAGE, REPORT
    from tcompile.artifact.page import fidelity_words, giga, milliseconds

    rows: list[tuple[str, str]] = []
    times = ", ".join(f"{f.model} {milliseconds(f.milliseconds)}" for f in m.latency)
    if m.latency:
        first = m.latency[0]
        gains = [] if m.speedup is None else [_gain(m.speedup)]
        if m.rival is not None and m.rival.speedup is not None:
            gains.append(_gain(m.rival.speedup))
        said = "; ".join([*gains, times, *_tried(m)])
        rows.append((f"speed, {first.kind}", f"{said} ({first.device}, {first.runtime})"))
    lost = m.most_lost
    if lost is not None and m.fidelity is not None:
        rows.append((f"output {lost.output}", f"{fidelity_words(lost)}; {m.fidelity.data}"))
    work = _flops(m.flops) if m.reduced else f"{giga(m.flops.dense)} FLOPs"
    if m.memory is not None:
        work += f"; {m.memory.words(reduced=m.reduced).partition('; batch')[0]}"
    rows.append(("work", work))
    reminder = m.fidelity.reminder if m.fidelity is not None else ""
    notes = [*m.notes, *filter(None, [reminder])]
    if notes:
        more = f"; and {len(notes) - _NOTES} more (-v)" if len(notes) > _NOTES else ""
        rows.append(("note", "; ".join(notes[:_NOTES]) + more))
    there = {f.path for f in m.files}
    page = PAGE if PAGE in there else REPORT
    opens = f" (tcompile view {shlex.quote(str(directory))})" if page == PAGE else ""
    rows.append(("report", f"{directory / page}{opens}"))
    return rows


def _gain(s: SpeedUp) -> str:
    return f"{s.ratio:.2f} × [{s.lower:.2f}, {s.upper:.2f}] (95 %) over {s.over}"


def _tried(m: Manifest) -> list[str]:
    from tcompile.artifact.page import milliseconds

    tried = (m.plan or {}).get("tried_schedule")
    if not tried:
        return []
    return [f"{tried['schedule']['method']} {milliseconds(tried['ms'])}, tried, not emitted"]


def _flops(flops: Flops) -> str:
    from tcompile.artifact.page import giga

    times = flops.dense / max(flops.reduced, 1)
    return f"{giga(flops.dense)} dense, {giga(flops.reduced)} reduced ({times:.2f} x fewer)"


def _all_rows(m: Manifest) -> list[tuple[str, str]]:
    """Everything that there is to say."""
    from tcompile.artifact.page import (
        fidelity_notes,
        fidelity_words,
        giga,
        given_back,
        milliseconds,
        quantization_words,
    )

    first, last = m.tokens_per_block[0], m.tokens_per_block[-1]
    rows: list[tuple[str, str]] = [
        ("tokens", f"{first.attention} enter the first block, {last.mlp} the last MLP"),
        ("FLOPs", _flops(m.flops) if m.reduced else giga(m.flops.dense)),
    ]
    if m.memory is not None:
        rows.append(("memory, predicted", m.memory.words(reduced=m.reduced)))
    if words := given_back(m.schedule):
        rows.append(("row of a dropped token", words))
    for figure in m.latency:
        where = f"{figure.device}, {figure.runtime}"
        rows.append(
            (f"{figure.model}, {figure.kind}", f"{milliseconds(figure.milliseconds)} ({where})")
        )
    if m.speedup is not None:
        rows.append(("speed-up, measured", _gain(m.speedup)))
    if m.rival is not None and m.rival.speedup is not None:
        rows.append(("speed-up, measured", _gain(m.rival.speedup)))
    tried = (m.plan or {}).get("tried_schedule")
    if tried:
        rows.append(
            (
                f"{tried['schedule']['method']}, measured",
                f"{milliseconds(tried['ms'])}; tried, not emitted",
            )
        )
    if m.fidelity:
        for out in m.fidelity.outputs:
            rows.append((f"output {out.output}", f"{fidelity_words(out)}; {m.fidelity.data}"))
        rows += [("fidelity", note) for note in fidelity_notes(m.fidelity)]
    if m.rival is not None:
        rows += [
            (f"dense {m.precision}, output {out.output}", fidelity_words(out))
            for out in m.rival.fidelity.outputs
        ]
    if m.quantization:
        rows.append((m.precision, quantization_words(m.quantization)))
    if m.fused_attention:
        fused = m.fused_attention
        rows.append(("fused attention", f"{fused.found} of {fused.expected} layers"))
    if m.token_ops:
        rows.append(("token ops", f"{m.token_ops.form}: {m.token_ops.reason}"))
    if m.batch_sizes:
        rows.append(("batches", m.batch_sizes.words))
    rows += [("note", note) for note in m.notes]
    rows.append(("files", ", ".join(f.path for f in m.files)))
    return rows
