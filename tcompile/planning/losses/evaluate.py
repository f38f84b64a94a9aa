"""Running schedules on samples: how far the outputs of a reduced model are from the dense one's.

The dense model runs once. Of a reduced one only what is not known yet does: what lies before the
first step is the dense model's, and what lies before the first step in which it differs from an
earlier schedule is that one's (`partial`). Results are remembered; where more samples are asked for
later, those run alone.

A session is of a form of parts, with the counts as inputs, so that schedules that differ in counts
alone share it. Runs go in parallel, one core each.

The same samples and the same schedules in the same order give the same losses on every run of one
machine. Between machines, and with another number of cores or another order, they differ by
rounding: ONNX Runtime fuses what is one part, and where a run starts depends on what is known.

Memory: `memory` bytes of activations are kept, half of them for the dense model's streams. Besides
them there are the samples, the outputs of the dense model and of the last schedule, the activations
of one run for each core, and a second copy of the weights in a file that all sessions map.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.drafts import scratch
from tcompile.core.errors import ModelError
from tcompile.core.graph import batch_dim, is_const
from tcompile.core.interrupt import checkpoint
from tcompile.core.machine import usable_cores
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce import Shared, reduce_graph
from tcompile.planning.losses.distance import Floats, Outputs, distance
from tcompile.planning.losses.partial import (
    Content,
    Contents,
    Form,
    Part,
    Weights,
    dims_of,
    number_name,
)
from tcompile.planning.losses.stores import Recent, Values
from tcompile.runtime.samples import Samples, by_sample, feed
from tcompile.runtime.token_outputs import is_bookkeeping
from tcompile.targets.backends.ort import OrtRunner

#: Bytes of activations kept.
MEMORY = 512 << 20
#: Samples in a run, where any number will do. More are no faster for each of them, and two runs at
#: a time on one core each are faster than one on two.
_RUN = 2
#: Sessions, and reduced graphs, that are kept.
_SESSIONS, _GRAPHS = 32, 16

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Feeds:
    """The way samples are fed to a model: in runs of a batch each.

    Attributes:
        size: samples in a run; the last one is filled up with its last sample.
        packed: whether a sample has no batch axis (packed patches).
    """

    size: int
    packed: bool

    @staticmethod
    def of(graph: gs.Graph, samples: int) -> Feeds:
        """Feeds for a graph's inputs; runs of two samples where any number will do."""
        first, batch = graph.inputs[0], batch_dim(graph)
        static = len(first.shape) == 2 and all(isinstance(d, int) for d in first.shape)
        packed = static and first.shape[0] != 1 and np.dtype(first.dtype).kind == "f"
        size = batch if isinstance(batch, int) else -(-samples // -(-samples // _RUN))
        return Feeds(1 if packed else size, packed)

    def run(self, graph: gs.Graph, samples: Samples, number: int) -> dict[str, Array]:
        """The inputs of one run."""
        rows = np.arange(number * self.size, (number + 1) * self.size)
        rows = np.minimum(rows, len(samples) - 1)
        return feed(graph.inputs, {name: a[rows] for name, a in samples.arrays.items()})

    def by_sample(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of a run, samples first."""
        found: dict[str, Array] = {}
        for name, array in outputs.items():
            if self.packed and not is_bookkeeping(name):
                array = array[np.newaxis]
            found[name] = by_sample(array, self.size)
        return found


@dataclass(frozen=True)
class _Graph:
    """A graph by content, the dense one or a reduced one.

    Attributes:
        outputs: names.
        keep: tensors from which runs of other graphs may start.
        parts: by what is known of a run, the part that is left to run, and its form.
    """

    contents: Contents
    outputs: Sequence[str]
    keep: Sequence[str]
    parts: dict[frozenset[Content], tuple[Part, Form]] = field(default_factory=dict)

    def part(self, known: Callable[[Content], bool]) -> tuple[Part, Form]:
        """What is left to run where some contents are known."""
        there = frozenset(c for c in self.contents.of.values() if known(c))
        if there not in self.parts:
            part = self.contents.cut(self.outputs, there.__contains__, self.keep)
            self.parts[there] = part, self.contents.form(part)
        return self.parts[there]


@dataclass
class Counted:
    """The work done so far.

    Attributes:
        dense: runs of the dense model.
        runs: runs of parts of models, those of the dense one among them.
        nodes: nodes of those parts, all runs together.
        sessions: sessions opened.
    """

    dense: int = 0
    runs: int = 0
    nodes: int = 0
    sessions: int = 0


class _Session:
    """Parts of one form in ONNX Runtime.

    Args:
        fixed: one part alone, whose numbers the model holds.
    """

    def __init__(
        self, model: onnx.ModelProto, form: Form, folder: Path, threads: int, fixed: bool
    ) -> None:
        path = folder / "part.onnx"
        path.write_bytes(model.SerializeToString())
        self._runner = OrtRunner(path, threads, in_turn=True, lean=True)
        self._inputs, self._fixed = list(form.inputs), fixed
        self._outputs = [str(o.name) for o in model.graph.output]

    def run(self, form: Form, given: Sequence[Array]) -> dict[Content, Array]:
        """The outputs of a part by content.

        Args:
            form: of the part.
            given: its inputs, in the form's order.
        """
        fed = dict(zip(self._inputs, given, strict=True))
        if not self._fixed:
            fed |= {number_name(*place): values for place, values in form.numbers.items()}
        found = self._runner.run(fed)
        return {c: found[name] for c, name in zip(form.outputs, self._outputs, strict=True)}


@dataclass(frozen=True)
class _Job:
    """A run that is about to be done.

    Attributes:
        given: inputs in the form's order.
        known: outputs of the graph that need not be computed, held until the run is over: what
            other runs leave may push them out of where they are kept.
    """

    number: int
    part: Part
    form: Form
    session: _Session | None
    given: Sequence[Array]
    known: Mapping[Content, Array]

    def run(self) -> dict[Content, Array]:
        return {} if self.session is None else self.session.run(self.form, self.given)


class Evaluator:
    """Runs one model under many schedules on the same samples.

    Args:
        graph: the dense model in normal form, weights included.
        samples: inputs of it.
        outputs: `reduced` or `restored`.
        memory: bytes of activations kept.
        threads: runs at a time, each on one core; None: as many as there are cores.
    """

    def __init__(
        self,
        graph: gs.Graph,
        analysis: Analysis,
        samples: Samples,
        outputs: str = "reduced",
        *,
        memory: int = MEMORY,
        threads: int | None = None,
        say: Progress = silent,
    ) -> None:
        self._graph, self._analysis, self._samples = graph, analysis, samples
        self._mode, self._threads, self._say = outputs, threads or usable_cores(), say
        self.counted = Counted()
        self._feeds = Feeds.of(graph, len(samples))
        self._runs = -(-len(samples) // self._feeds.size)
        stack = ExitStack()
        self._folder: Path = stack.enter_context(scratch())
        self._close = weakref.finalize(self, stack.close)
        self._ends, self._streams = Values(math.inf), Values(memory // 2)
        self._states = Values(memory - memory // 2)
        self._dense_outputs: dict[int, dict[str, Array]] = {}
        self._sessions: Recent[object, _Session] = Recent(_SESSIONS)
        self._refused: set[object] = set()
        self._reduced: Recent[str, _Graph] = Recent(_GRAPHS)
        self._losses: dict[str, dict[int, Floats]] = {}
        self._last: tuple[str, dict[int, dict[str, Array]]] = "", {}
        self._shared = Shared(graph)
        self._weights = Weights(graph, self._folder / "weights")
        contents = Contents(graph, self._weights)
        self._of_dense = frozenset(contents.of.values())
        streams = dict.fromkeys(s.tensor for s in analysis.sites if s.tensor in contents.tensors)
        self._dense = _Graph(contents, [str(o.name) for o in graph.outputs], list(streams))

    @property
    def dense(self) -> Outputs:
        """The dense model's outputs, one sample a row."""
        numbers = self._numbers(None)
        self._run_dense(numbers)
        return self._joined([self._dense_outputs[n] for n in numbers], None)

    def losses(self, schedule: Schedule, rows: int | None = None) -> Floats:
        """The distance of each sample's outputs from the dense model's: [rows].

        Args:
            rows: how many of the samples, the first ones; None: all.

        Raises:
            UsageError: the schedule does not fit the model, or nothing can be compared.
        """
        known = self._losses.setdefault(_key(schedule), {})
        numbers = self._numbers(rows)
        missing = [n for n in numbers if n not in known]
        for number, outputs in zip(missing, self._run(schedule, missing), strict=True):
            dense = self._feeds.by_sample(self._dense_outputs[number])
            known[number] = distance(dense, self._feeds.by_sample(outputs))
        return np.asarray(np.concatenate([known[n] for n in numbers])[: self._rows(rows)])

    def outputs(self, schedule: Schedule, rows: int | None = None) -> Outputs:
        """The reduced model's outputs, one sample a row. Arguments as `losses`; those of the last
        schedule alone are remembered."""
        return self._joined(list(self._run(schedule, self._numbers(rows))), rows)

    def check(self, schedule: Schedule) -> None:
        """Look whether a schedule can be run, without running it.

        Raises:
            UsageError: it does not fit the model.
        """
        self._graph_of(schedule)

    def _rows(self, rows: int | None) -> int:
        return len(self._samples) if rows is None else min(rows, len(self._samples))

    def _numbers(self, rows: int | None) -> range:
        """The runs that some rows take."""
        return range(-(-self._rows(rows) // self._feeds.size))

    def _joined(self, runs: Sequence[Mapping[str, Array]], rows: int | None) -> Outputs:
        parts = [self._feeds.by_sample(outputs) for outputs in runs]
        count = self._rows(rows)
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}

    def _graph_of(self, schedule: Schedule) -> _Graph:
        return self._reduced.get(_key(schedule), lambda: self._reduce(schedule))

    def _reduce(self, schedule: Schedule) -> _Graph:
        graph = reduce_graph(
            self._graph, self._analysis, schedule, outputs=self._mode, shared=self._shared
        ).graph
        contents = Contents(graph, self._weights)
        sites = [self._analysis.site(r.site) for r in schedule.reductions]
        streams = [s.tensor for s in sites if s is not None and s.tensor in contents.tensors]
        # What else of the dense model a step reads costs little from its streams, and to keep it
        # would start later runs elsewhere, with sessions of their own.
        keep = [n for n in contents.crossing(streams) if contents.of[n] not in self._of_dense]
        return _Graph(contents, [str(o.name) for o in graph.outputs], keep)

    def _run_dense(self, numbers: Iterable[int]) -> None:
        """Run the dense model where it was not yet; its outputs and streams are kept."""
        missing = [n for n in numbers if n not in self._dense_outputs]
        if missing:
            self._say(f"dense model, {len(missing)} of {self._runs} runs")
        for number, outputs, values in self._results(self._dense, missing):
            self.counted.dense += 1
            self._dense_outputs[number] = outputs
            for name, array in outputs.items():
                self._ends.put((number, self._dense.contents.of[name]), array)
            self._keep_streams(values, number)

    def _keep_streams(self, values: Mapping[Content, Array], number: int) -> None:
        """Keep the dense model's streams, evenly spread in depth where they do not all fit."""
        contents = [self._dense.contents.of[s] for s in self._dense.keep]
        kept = [(c, values[c]) for c in dict.fromkeys(contents) if c in values]
        total = sum(array.nbytes for _, array in kept) * self._runs
        every = max(math.ceil(total / max(self._streams.limit, 1)), 1)
        for content, array in kept[every // 2 :: every]:
            self._streams.put((number, content), array)

    def _run(self, schedule: Schedule, numbers: Sequence[int]) -> Iterator[dict[str, Array]]:
        """The outputs of each run of a reduced model."""
        key = _key(schedule)
        if self._last[0] != key:
            self._last = key, {}
            self._states.begin()
        known = self._last[1]
        missing = [n for n in numbers if n not in known]
        if missing:
            graph = self._graph_of(schedule)
            self._run_dense(missing)
            for number, outputs, values in self._results(graph, missing):
                known[number] = outputs
                for content, array in values.items():
                    self._states.put((number, content), array)
        return iter([known[n] for n in numbers])

    def _results(
        self, graph: _Graph, numbers: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Array], dict[Content, Array]]]:
        """The outputs of each run of a graph, and all that was computed for them."""
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(numbers), self._threads):
                checkpoint()
                jobs = [self._job(graph, n) for n in numbers[start : start + self._threads]]
                for job, values in zip(jobs, pool.map(_Job.run, jobs), strict=True):
                    there = {**job.known, **values}
                    found = {name: there[graph.contents.of[name]] for name in graph.outputs}
                    yield job.number, found, values

    def _job(self, graph: _Graph, number: int) -> _Job:
        stores = (self._ends, self._streams, self._states)
        part, form = graph.part(lambda content: any((number, content) in s for s in stores))
        tensors, contents = graph.contents.tensors, graph.contents.of
        computed = set(form.outputs) if part.outputs else set()
        known = {
            contents[name]: self._value(tensors[name], contents[name], number)
            for name in graph.outputs
            if contents[name] not in computed
        }
        if not part.outputs:
            return _Job(number, part, form, None, (), known)
        given = {n: self._value(tensors[n], part.inputs[n], number) for n in form.inputs}
        self.counted.runs += 1
        self.counted.nodes += len(part.nodes)

        session = self._session(graph, part, form, given)
        return _Job(number, part, form, session, [given[n] for n in form.inputs], known)

    def _session(
        self, graph: _Graph, part: Part, form: Form, given: Mapping[str, Array]
    ) -> _Session:
        """A session of the part's form; of the part alone where ONNX Runtime, which infers shapes
        from numbers, does not accept a model without them."""

        def opened(fixed: bool) -> _Session:
            self.counted.sessions += 1
            model = graph.contents.model(part, form, given, fixed=fixed)
            threads = max(self._threads // self._runs, 1)
            return _Session(model, form, self._folder, threads, fixed)

        key = (form.key, tuple(tuple(dims_of(given[n])) for n in form.inputs))
        if key not in self._refused:
            try:
                return self._sessions.get(key, lambda: opened(False))
            except ModelError:
                self._refused.add(key)
        numbers = tuple(v.tobytes() for v in form.numbers.values())
        shapes = tuple(given[n].shape for n in form.inputs)
        return self._sessions.get((key, numbers, shapes), lambda: opened(True))

    def _value(self, tensor: gs.Tensor, content: Content, number: int) -> Array:
        """A tensor of a run that was kept, or is an input or a constant of the model."""
        for values in (self._ends, self._streams, self._states):
            if (number, content) in values:
                return values.take((number, content))
        if is_const(tensor):
            return np.asarray(tensor.values)
        return self._feeds.run(self._graph, self._samples, number)[str(tensor.name)]


def _key(schedule: Schedule) -> str:
    """All of a schedule that its losses depend on."""
    return repr(([r.to_json() for r in schedule.reductions], schedule.restore))
