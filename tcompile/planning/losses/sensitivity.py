"""The loss of one step, measured: the model's own outputs on samples, with and without it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.methods.context import SiteRule
from tcompile.methods.method import Method
from tcompile.passes.reduce.reducers import traits_of
from tcompile.planning.losses.base import SiteLosses, through, whole_counts
from tcompile.planning.losses.distance import unit
from tcompile.planning.losses.evaluate import MEMORY, Evaluator
from tcompile.runtime.samples import Samples


def measured_losses(
    graph: gs.Graph,
    method: Method,
    sites: Sequence[SiteRule],
    counts: Sequence[int],
    samples: Samples,
    *,
    progress: Progress = silent,
    memory: int = MEMORY,
) -> SiteLosses:
    """The mean distance of the outputs when one step of a method leaves each count at each site.

    All else is dense. Nothing is drawn here: the same samples give the same losses.

    Args:
        graph: the dense model in normal form, weights included.
        sites: where to measure; other sites are interpolated in depth.
        counts: whole token counts to measure, prefix included; N is added. Where tokens leave in
            groups, the next larger count that can be is measured instead.
        memory: bytes of activations kept at a time.

    Raises:
        UsageError: no site can be measured, or nothing can be compared.
    """
    shape = method.context.shape
    evaluator = Evaluator(
        graph,
        method.analysis,
        samples,
        method.outputs,
        memory=memory,
        say=lambda text: progress(f"calibrating: {text}"),
    )
    notes: list[str] = []
    steps = _steps(evaluator, method, sites, counts, notes)
    if not steps:
        raise UsageError(
            f"no step of {method.preset.name} can be measured at "
            f"{', '.join(s.name for s in sites)}",
            where="--calibration",
            hint=notes[0] if notes else "",
        )
    found: dict[str, dict[int, float]] = {}
    for number, (site, count, step) in enumerate(steps, 1):
        lost = float(evaluator.losses(step).mean())
        found.setdefault(site.name, {})[count] = lost
        progress(f"calibrating: {site.name} to {count} tokens ({100 * number // len(steps)} %)")
    grid = whole_counts(shape, counts)
    merges = any("merge" in traits_of(r.reducer) for r in steps[0][2].reductions)
    return SiteLosses(
        grid,
        {site: through(lost, grid, shape.prefix) for site, lost in found.items()},
        shape.blocks,
        shape.prefix,
        unit(evaluator.dense),
        "calibrated",
        len(samples),
        samples.source,
        "share" if merges else "difference",
        tuple(notes),
    )


def _steps(
    evaluator: Evaluator,
    method: Method,
    sites: Sequence[SiteRule],
    counts: Sequence[int],
    notes: list[str],
) -> list[tuple[SiteRule, int, Schedule]]:
    """Every step that the reducer can do; those that it cannot are noted, a line a site."""
    found: list[tuple[SiteRule, int, Schedule]] = []
    for site in sites:
        skipped: list[int] = []
        why = ""
        for count in method.reachable(site, counts):
            step = method.single_step(site, count)
            try:
                evaluator.check(step)
            except UsageError as error:
                skipped, why = [*skipped, count], error.what
                continue
            found.append((site, count, step))
        if skipped:
            listed = ", ".join(map(str, skipped))
            notes.append(f"{site.name}: not measured at {listed} tokens: {why}")
    return found
