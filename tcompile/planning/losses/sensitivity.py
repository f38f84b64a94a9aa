"""What one step loses, measured: the model's own outputs on images, with and without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import settled
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.core.site import SiteName
from tcompile.methods.context import Values
from tcompile.methods.presets import Preset
from tcompile.passes.reduce import reduce_graph
from tcompile.planning.losses.base import SiteLosses
from tcompile.planning.losses.curves import fitted
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.losses.partial_execution import (
    Array,
    Feed,
    Feeds,
    run_graph,
    suffix,
    with_outputs,
)
from tcompile.planning.losses.steps import composition, single_step, snapped
from tcompile.runtime.samples import Samples

if TYPE_CHECKING:
    from tcompile.analysis.model import Analysis

#: Of cached activations at a time.
MEMORY = 512 << 20


@dataclass(frozen=True)
class _Case:
    """One step alone: what it is, and the tensors of the dense model that it starts from."""

    site: str
    count: int
    schedule: Schedule
    crossing: tuple[str, ...]
    sample_bytes: int


def measured_losses(
    graph: gs.Graph,
    analysis: Analysis,
    preset: Preset,
    values: Values,
    sites: Sequence[str],
    counts: Sequence[int],
    samples: Samples,
    *,
    outputs: str = "reduced",
    seed: int = 0,
    progress: Progress = silent,
    memory: int = MEMORY,
) -> SiteLosses:
    """The mean distance of the outputs when one step of a method leaves each count at each site.

    All else is dense. The dense model runs once for each group of sites whose activations fit into
    `memory`; of a reduced one only what follows the site does. Nothing is drawn here: the same
    samples give the same losses.

    Args:
        graph: the dense model in normal form, weights included.
        preset, values: the method and its parameters (`methods.parse_method`).
        sites: such as `attn:3`, `block:3` or `output`; others are interpolated in depth.
        counts: whole token counts to measure, prefix included; N is added. Where tokens leave in
            groups, the next larger count that can be is measured instead.
        seed: noted in the result: what the samples were drawn with.
        memory: bytes of activations kept at a time.

    Raises:
        UsageError: no site can be measured, or nothing can be compared.
    """
    shape = analysis.shape
    notes: list[str] = []
    cases = _cases(graph, analysis, preset, values, sites, counts, outputs, notes)
    if not cases:
        raise UsageError(
            f"no step of {preset.name} can be measured at {', '.join(sites)}",
            where="calibration",
            hint=notes[0] if notes else "",
        )
    feeds = Feeds.of(graph, len(samples))
    found: dict[tuple[str, int], list[float]] = {(c.site, c.count): [] for c in cases}
    named, done = "", 0
    steps = sum(1 for _ in _groups(cases, feeds, len(samples), memory))
    for number, (group, rows) in enumerate(_groups(cases, feeds, len(samples), memory)):
        part = Samples({k: a[rows] for k, a in samples.arrays.items()}, samples.source, True)
        progress(f"calibrating: dense model, {number + 1} of {steps}")
        dense = _Dense.of(graph, [n for c in group for n in c.crossing], feeds, part)
        named = unit(dense.outputs)
        for case in group:
            reduced = _reduced(graph, analysis, case, outputs, dense, feeds)
            found[case.site, case.count] += distance(dense.outputs, reduced).tolist()
            done += len(part)
            progress(
                f"calibrating: {case.site} to {case.count} tokens "
                f"({100 * done // (len(cases) * len(samples))} %)"
            )
    grid = sorted({n for n in counts if shape.prefix < n < shape.tokens} | {shape.tokens})
    at: dict[str, tuple[float, ...]] = {}
    for site in dict.fromkeys(c.site for c in cases):
        means = {n: float(np.mean(v)) for (s, n), v in found.items() if s == site}
        curve = fitted(means, shape.tokens, shape.prefix)
        at[site] = tuple(curve(grid).tolist())
    return SiteLosses(
        tuple(grid),
        at,
        shape.blocks,
        shape.prefix,
        named,
        "calibrated",
        len(samples),
        seed,
        samples.source,
        composition(cases[0].schedule),
        tuple(notes),
    )


def _cases(
    graph: gs.Graph,
    analysis: Analysis,
    preset: Preset,
    values: Values,
    sites: Sequence[str],
    counts: Sequence[int],
    outputs: str,
    notes: list[str],
) -> list[_Case]:
    """Every step that the reducer can do; those that it cannot are noted, a line a site."""
    found: list[_Case] = []
    for name in sites:
        site = analysis.site(name)
        if site is None:
            raise UsageError(f"no site '{name}'", where="calibration")
        skipped: list[int] = []
        why = ""
        for count in snapped(analysis, name, counts, outputs):
            schedule = single_step(analysis, preset, values, SiteName(name), count, outputs)
            try:
                reduced = reduce_graph(graph, analysis, schedule, outputs=outputs)
            except UsageError as error:
                skipped, why = [*skipped, count], error.what
                continue
            part = suffix(graph, reduced.graph, site)
            crossing = tuple(part.sources.values())
            found.append(_Case(name, count, schedule, crossing, _bytes(part.graph)))
        if skipped:
            notes.append(f"{name}: not measured at {', '.join(map(str, skipped))} tokens: {why}")
    return found


def _bytes(part: gs.Graph) -> int:
    """Of the inputs of a part, for one sample."""
    total = 0
    for tensor in part.inputs:
        # A free batch, perhaps joined with another axis, stands for one sample.
        dims = [settled(d, 1) for d in tensor.shape]
        total += math.prod(dims) * np.dtype(tensor.dtype).itemsize
    return total


def _groups(
    cases: Sequence[_Case], feeds: Feeds, samples: int, memory: int
) -> list[tuple[list[_Case], slice]]:
    """Sites and samples to do at a time, so that what they start from fits into memory.

    As few cuts of the samples as can be, since every case makes a session for each of them.
    """
    sites = list(dict.fromkeys(c.site for c in cases))
    own = {s: max(c.sample_bytes for c in cases if c.site == s) for s in sites}
    largest = max(1, *own.values())
    rows = max(memory // largest // feeds.size * feeds.size, feeds.size)
    found: list[tuple[list[_Case], slice]] = []
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        group: list[str] = []
        for site in sites:
            if group and sum(own[s] for s in [*group, site]) * count > memory:
                found.append(([c for c in cases if c.site in group], slice(start, start + count)))
                group = []
            group.append(site)
        found.append(([c for c in cases if c.site in group], slice(start, start + count)))
    return found


@dataclass(frozen=True)
class _Dense:
    """The dense model's outputs, one sample a row, and what suffixes start from, run by run."""

    outputs: Mapping[str, Array]
    runs: list[tuple[Feed, int]]

    @staticmethod
    def of(graph: gs.Graph, crossing: Sequence[str], feeds: Feeds, samples: Samples) -> _Dense:
        given = list(feeds.runs(graph, samples))
        names, wanted = [str(o.name) for o in graph.outputs], set(crossing)
        parts: dict[str, list[Array]] = {n: [] for n in names}
        runs: list[tuple[Feed, int]] = []
        results = run_graph(with_outputs(graph, crossing), [f for f, _ in given])
        for (feed, true), result in zip(given, results, strict=True):
            for name in names:
                parts[name].append(feeds.by_sample(name, result[name], true))
            kept = {n: a for n, a in {**feed, **result}.items() if n in wanted}
            runs.append((kept, true))
        return _Dense({n: np.concatenate(p) for n, p in parts.items()}, runs)


def _reduced(
    graph: gs.Graph, analysis: Analysis, case: _Case, outputs: str, dense: _Dense, feeds: Feeds
) -> dict[str, Array]:
    """What the reduced model gives, outputs that the step does not reach included."""
    site = analysis.site(case.site)
    assert site is not None
    whole = reduce_graph(graph, analysis, case.schedule, outputs=outputs).graph
    part = suffix(graph, whole, site)
    parts: dict[str, list[Array]] = {}
    results = run_graph(part.graph, [part.feed(f) for f, _ in dense.runs])
    for (_, true), result in zip(dense.runs, results, strict=True):
        for name, array in result.items():
            parts.setdefault(name, []).append(feeds.by_sample(name, array, true))
    rest = {str(o.name) for o in whole.outputs} - set(parts)
    same = {n: a for n, a in dense.outputs.items() if n in rest}
    return {**same, **{n: np.concatenate(p) for n, p in parts.items()}}
