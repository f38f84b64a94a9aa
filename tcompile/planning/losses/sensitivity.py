"""The loss of one step, measured: the model's own outputs on images, with and without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import settled
from tcompile.core.progress import Progress, silent
from tcompile.core.site import SiteName
from tcompile.methods.method import Method
from tcompile.methods.site_rule import SiteRule
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.reduce.reducers import traits_of
from tcompile.planning.losses.base import SiteLosses, through, whole_counts
from tcompile.planning.losses.distance import distance, unit
from tcompile.planning.losses.partial_execution import (
    Array,
    Feed,
    Feeds,
    Suffix,
    run_feeds,
    suffix,
    with_outputs,
)
from tcompile.runtime.samples import Samples

#: Bytes of activations kept at a time.
MEMORY = 512 << 20


@dataclass(frozen=True)
class _Case:
    """One step alone: where, to how many tokens, and the tensors of the dense model that it starts
    from, with their bytes for one sample."""

    site: SiteRule
    count: int
    crossing: tuple[str, ...]
    sample_bytes: int


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

    All else is dense. The dense model runs once for each group of sites whose activations fit into
    `memory`; of a reduced one only what follows the site does. Nothing is drawn here: the same
    samples give the same losses.

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
    notes: list[str] = []
    cases = _cases(graph, method, sites, counts, notes)
    if not cases:
        raise UsageError(
            f"no step of {method.preset.name} can be measured at "
            f"{', '.join(s.name for s in sites)}",
            where="calibration",
            hint=notes[0] if notes else "",
        )
    feeds = Feeds.of(graph, len(samples))
    found: dict[str, dict[int, list[float]]] = {}
    named, done = "", 0
    groups = _groups(cases, feeds, len(samples), memory)
    for number, (group, rows) in enumerate(groups, 1):
        part = Samples({k: a[rows] for k, a in samples.arrays.items()}, samples.source, True)
        progress(f"calibrating: dense model, {number} of {len(groups)}")
        dense = _Dense.of(graph, [n for c in group for n in c.crossing], feeds, part)
        named = unit(dense.outputs)
        for case in group:
            reduced = _reduced(_suffix(graph, method, case.site, case.count), dense, feeds)
            of_site = found.setdefault(case.site.name, {})
            of_site.setdefault(case.count, []).extend(distance(dense.outputs, reduced).tolist())
            done += len(part)
            progress(
                f"calibrating: {case.site.name} to {case.count} tokens "
                f"({100 * done // (len(cases) * len(samples))} %)"
            )
    grid = whole_counts(shape, counts)
    at = {
        site: through({n: float(np.mean(v)) for n, v in lost.items()}, grid, shape.prefix)
        for site, lost in found.items()
    }
    first = method.single_step(cases[0].site, cases[0].count)
    merges = any("merge" in traits_of(r.reducer) for r in first.reductions)
    return SiteLosses(
        grid,
        at,
        shape.blocks,
        shape.prefix,
        named,
        "calibrated",
        len(samples),
        samples.source,
        "share" if merges else "difference",
        tuple(notes),
    )


def _suffix(graph: gs.Graph, method: Method, rule: SiteRule, count: int) -> Suffix:
    """The model that takes one step, from there on. Raises UsageError if the reducer cannot."""
    made = method.single_step(rule, count)
    reduced = reduce_graph(graph, method.analysis, made, outputs=method.outputs).graph
    site = method.analysis.site(rule.name)
    assert site is not None
    return suffix(graph, reduced, site)


def _cases(
    graph: gs.Graph,
    method: Method,
    sites: Sequence[SiteRule],
    counts: Sequence[int],
    notes: list[str],
) -> list[_Case]:
    """Every step that the reducer can do; those that it cannot are noted, a line a site."""
    found: list[_Case] = []
    for site in sites:
        skipped: list[int] = []
        why = ""
        for count in method.reachable(site, counts):
            try:
                part = _suffix(graph, method, site, count)
            except UsageError as error:
                skipped, why = [*skipped, count], error.what
                continue
            found.append(_Case(site, count, tuple(part.sources.values()), _bytes(part.graph)))
        if skipped:
            listed = ", ".join(map(str, skipped))
            notes.append(f"{site.name}: not measured at {listed} tokens: {why}")
    return found


def _bytes(part: gs.Graph) -> int:
    """Bytes of the inputs of a part, for one sample."""
    # A free batch, perhaps joined with another axis, stands for one sample.
    return sum(
        math.prod(settled(d, 1) for d in t.shape) * np.dtype(t.dtype).itemsize for t in part.inputs
    )


def _groups(
    cases: Sequence[_Case], feeds: Feeds, samples: int, memory: int
) -> list[tuple[list[_Case], slice]]:
    """Sites and samples to do at a time, so that what they start from fits into memory.

    As few cuts of the samples as can be, since every case makes a session for each of them.
    """
    sites = list(dict.fromkeys(c.site.name for c in cases))
    own = {s: max(c.sample_bytes for c in cases if c.site.name == s) for s in sites}
    largest = max(1, *own.values())
    rows = max(memory // largest // feeds.size * feeds.size, feeds.size)
    found: list[tuple[list[_Case], slice]] = []
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        groups: list[list[SiteName]] = [[]]
        for site in sites:
            if groups[-1] and sum(own[s] for s in [*groups[-1], site]) * count > memory:
                groups.append([])
            groups[-1].append(site)
        for group in groups:
            chosen = [c for c in cases if c.site.name in group]
            found.append((chosen, slice(start, start + count)))
    return found


@dataclass(frozen=True)
class _Dense:
    """The dense model's outputs, one sample a row, and what suffixes start from, run by run."""

    outputs: Mapping[str, Array]
    runs: list[tuple[Feed, int]]

    @staticmethod
    def of(graph: gs.Graph, crossing: Sequence[str], feeds: Feeds, samples: Samples) -> _Dense:
        names, wanted = {str(o.name) for o in graph.outputs}, set(crossing)
        runs: list[tuple[Feed, int]] = []
        outputs: list[Feed] = []
        given = list(feeds.runs(graph, samples))
        results = run_feeds(with_outputs(graph, crossing), [feed for feed, _ in given])
        for (feed, true), result in zip(given, results, strict=True):
            runs.append(({n: a for n, a in {**feed, **result}.items() if n in wanted}, true))
            outputs.append({n: a for n, a in result.items() if n in names})
        return _Dense(feeds.joined(outputs, [true for _, true in runs]), runs)


def _reduced(part: Suffix, dense: _Dense, feeds: Feeds) -> dict[str, Array]:
    """The reduced model's outputs; those that the step does not reach are the dense model's."""
    results = run_feeds(part.graph, [part.feed(feed) for feed, _ in dense.runs])
    return {**dense.outputs, **feeds.joined(results, [true for _, true in dense.runs])}
