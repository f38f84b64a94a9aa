"""The loss of one step, measured: the model's own outputs on images, with and without it.

A reduced model runs from its first step on only, fed with what the dense model computed before it:
all that the stream at a site is computed from is the same in the dense and in the reduced model, so
it is computed once for all counts. What crosses the cut is found, not assumed: the stream, queries
and keys that scores and metrics read, rotary tables, masks, inputs of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.sites import Site
from tcompile.core.errors import UsageError
from tcompile.core.graph import batch_dim, producer, settled
from tcompile.core.progress import Progress, silent
from tcompile.core.save import saved
from tcompile.core.site import SiteName
from tcompile.core.subgraph import extract, needed_nodes
from tcompile.methods.context import SiteRule
from tcompile.methods.method import Method
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.reduce.reducers import traits_of
from tcompile.planning.losses.base import SiteLosses, through, whole_counts
from tcompile.planning.losses.distance import distance, unit
from tcompile.runtime.samples import Samples, batches, by_sample, feed
from tcompile.runtime.token_outputs import is_bookkeeping

#: Bytes of activations kept at a time.
MEMORY = 512 << 20


Array = npt.NDArray[Any]
#: An array for each tensor, by name.
Feed = dict[str, Array]


@dataclass(frozen=True)
class Suffix:
    """A reduced graph without what the stream at its first site is computed from.

    Attributes:
        graph: what is left. Outputs that the step does not reach are not among its outputs.
        sources: input of it → tensor of the dense graph. Names differ where the reduced graph gave
            the name of an output to another tensor.
    """

    graph: gs.Graph
    sources: Mapping[str, str]

    def feed(self, run: Mapping[str, Array]) -> Feed:
        """The graph's inputs, from tensors of the dense model by name."""
        return {name: run[source] for name, source in self.sources.items()}


def suffix(dense: gs.Graph, reduced: gs.Graph, site: Site) -> Suffix:
    """Cut a graph that was reduced at one site."""
    before = needed_nodes([dense.tensors()[site.tensor]])
    outputs = [o for o in reduced.outputs if not o.inputs or o.inputs[0].name not in before]
    after = needed_nodes(outputs, before)
    part = extract(reduced, after, [str(o.name) for o in outputs])
    nodes = {n.name: n for n in dense.nodes}
    tensors = reduced.tensors()
    sources: dict[str, str] = {}
    for given in part.inputs:
        name, maker = str(given.name), producer(tensors[given.name])
        if maker is None:
            sources[name] = name
            continue
        place = next(i for i, o in enumerate(maker.outputs) if o.name == name)
        sources[name] = str(nodes[maker.name].outputs[place].name)
    return Suffix(part, sources)


@dataclass(frozen=True)
class Feeds:
    """The way samples are fed to a model: in runs of a batch each.

    Attributes:
        size: samples in a run.
        packed: whether a sample has no batch axis (packed patches).
    """

    size: int
    packed: bool

    @staticmethod
    def of(graph: gs.Graph, samples: int) -> Feeds:
        """Feeds for a graph's inputs; eight samples at a time where any number will do."""
        first, batch = graph.inputs[0], batch_dim(graph)
        static = len(first.shape) == 2 and all(isinstance(d, int) for d in first.shape)
        packed = static and first.shape[0] != 1 and np.dtype(first.dtype).kind == "f"
        size = batch if isinstance(batch, int) else min(samples, 8)
        return Feeds(1 if packed else size, packed)

    def runs(self, graph: gs.Graph, samples: Samples) -> Iterator[tuple[Feed, int]]:
        """The feed of each run, and how many of its samples count."""
        for arrays, true in batches(samples, self.size):
            yield feed(graph.inputs, arrays), true

    def joined(self, results: Iterable[Feed], true: Sequence[int]) -> Feed:
        """The outputs of all runs, samples first, of which `true` count in each run."""
        parts: dict[str, list[Array]] = {}
        for result, count in zip(results, true, strict=True):
            for name, array in result.items():
                if self.packed and not is_bookkeeping(name):
                    array = array[np.newaxis]
                parts.setdefault(name, []).append(by_sample(array, self.size)[:count])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def run_feeds(graph: gs.Graph, runs: Sequence[Mapping[str, Array]]) -> Iterator[Feed]:
    """Every output of a graph for each run, on ONNX Runtime; what it does not read is ignored.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: ONNX Runtime does not accept the graph.
    """
    from tcompile.targets.backends.ort import OrtRunner

    with saved(graph) as path:
        runner = OrtRunner(path)
        for given in runs:
            yield runner.run({t.name: given[t.name] for t in runner.inputs})


def with_outputs(graph: gs.Graph, names: Sequence[str]) -> gs.Graph:
    """A copy that gives these tensors too."""
    copy = graph.copy()
    tensors = copy.tensors()
    given = {str(o.name) for o in copy.outputs}
    inputs = {str(t.name) for t in copy.inputs}
    copy.outputs += [tensors[n] for n in dict.fromkeys(names) if n not in given | inputs]
    return copy


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
            where="--calibration",
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
        results = run_feeds(with_outputs(graph, crossing), [inputs for inputs, _ in given])
        for (inputs, true), result in zip(given, results, strict=True):
            runs.append(({n: a for n, a in {**inputs, **result}.items() if n in wanted}, true))
            outputs.append({n: a for n, a in result.items() if n in names})
        return _Dense(feeds.joined(outputs, [true for _, true in runs]), runs)


def _reduced(part: Suffix, dense: _Dense, feeds: Feeds) -> dict[str, Array]:
    """The reduced model's outputs; those that the step does not reach are the dense model's."""
    results = run_feeds(part.graph, [part.feed(run) for run, _ in dense.runs])
    return {**dense.outputs, **feeds.joined(results, [true for _, true in dense.runs])}
