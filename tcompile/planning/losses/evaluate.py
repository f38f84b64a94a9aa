"""Running schedules on samples: how far the outputs of a reduced model are from the dense one's.

The dense model runs once. Of a reduced one only what is not known yet does: what lies before the
first step is the dense model's, and what lies before the first step in which it differs from an
earlier schedule is that one's (`partial`). Results are remembered; where more samples are asked for
later, those run alone.

The same samples and the same schedule give the same losses on every run of one machine; between
machines they differ by rounding, as ONNX Runtime's kernels and its number of threads do.

Memory: `memory` bytes of activations are kept, half of them for the dense model's streams, and
besides them the samples, the outputs of the dense model, one run's activations, and a second copy
of the weights in a file that all sessions map.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.drafts import scratch
from tcompile.core.graph import batch_dim, is_const
from tcompile.core.interrupt import checkpoint
from tcompile.core.progress import Progress, silent
from tcompile.core.schedule import Schedule
from tcompile.passes.reduce import reduce_graph
from tcompile.planning.losses.distance import Floats, Outputs, distance
from tcompile.planning.losses.partial import Content, Contents, Part, Weights
from tcompile.runtime.samples import Samples, by_sample, feed
from tcompile.runtime.token_outputs import is_bookkeeping
from tcompile.targets.backends.ort import OrtRunner

#: Bytes of activations kept.
MEMORY = 512 << 20
#: Samples in a run, where any number will do: candidates are weighed on 4, then on 8, then on 16.
_RUN = 4
#: Sessions, and reduced graphs, that are kept.
_SESSIONS, _GRAPHS = 16, 16

Array = npt.NDArray[Any]
K = TypeVar("K")
V = TypeVar("V")


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
        """Feeds for a graph's inputs; runs of about four samples where any number will do."""
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


class Recent(Generic[K, V]):
    """The values that were made, or asked for, last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key not in self._found:
            self._found[key] = make()
        self._found.move_to_end(key)
        while len(self._found) > self._most:
            self._found.popitem(last=False)
        return self._found[key]


class Values:
    """Tensors of runs by content, as many as fit into so many bytes.

    What an earlier evaluation left goes first. What this one took or left stays, even if later
    values of this one find no room: all of its runs come by again, and would push out each other's.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = self._now = 0
        self._found: OrderedDict[tuple[int, Content], tuple[Array, int]] = OrderedDict()

    def begin(self) -> None:
        """Begin another evaluation."""
        self._now += 1

    def __contains__(self, key: tuple[int, Content]) -> bool:
        return key in self._found

    def take(self, key: tuple[int, Content]) -> Array:
        """A value that is there: a run's tensor."""
        array, _ = self._found[key]
        self._found[key] = array, self._now
        self._found.move_to_end(key)
        return array

    def put(self, key: tuple[int, Content], array: Array) -> None:
        """Keep a tensor of a run, if there is room."""
        while self._found and self._bytes + array.nbytes > self.limit:
            oldest, (values, used) = next(iter(self._found.items()))
            if used == self._now:
                return
            del self._found[oldest]
            self._bytes -= values.nbytes
        if key not in self._found and self._bytes + array.nbytes <= self.limit:
            self._found[key] = array, self._now
            self._bytes += array.nbytes


@dataclass(frozen=True)
class _Reduced:
    """A reduced graph by content.

    Attributes:
        keep: tensors at its steps, from which other schedules may start.
    """

    contents: Contents
    outputs: Sequence[str]
    keep: Sequence[str]


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
    """A part of a graph in ONNX Runtime.

    Attributes:
        inputs: names with their content.
        outputs: names by content.
    """

    def __init__(
        self, part: Part, model: onnx.ModelProto, folder: Path, threads: int | None
    ) -> None:
        path = folder / "part.onnx"
        path.write_bytes(model.SerializeToString())
        self._runner = OrtRunner(path, threads, in_turn=True)
        self.inputs = [(str(t.name), c) for c, t in part.inputs]
        self.outputs = {c: str(t.name) for c, t in part.outputs.items()}

    def run(self, given: Mapping[Content, Array]) -> dict[Content, Array]:
        found = self._runner.run({name: given[c] for name, c in self.inputs})
        return {c: found[name] for c, name in self.outputs.items()}


class Evaluator:
    """Runs one model under many schedules on the same samples.

    Args:
        graph: the dense model in normal form, weights included.
        samples: inputs of it.
        outputs: `reduced` or `restored`.
        memory: bytes of activations kept.
        threads: of ONNX Runtime; None leaves it to it.
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
        self._mode, self._threads, self._say = outputs, threads, say
        self.counted = Counted()
        self._feeds = Feeds.of(graph, len(samples))
        self._runs = -(-len(samples) // self._feeds.size)
        stack = ExitStack()
        self._folder: Path = stack.enter_context(scratch())
        self._close = weakref.finalize(self, stack.close)
        self._weights = Weights(graph, self._folder / "weights")
        self._streams, self._states = Values(memory // 2), Values(memory - memory // 2)
        self._kept = (self._streams, self._states)
        self._dense_outputs: dict[int, dict[str, Array]] = {}
        self._sessions: Recent[object, _Session] = Recent(_SESSIONS)
        self._reduced: Recent[object, _Reduced] = Recent(_GRAPHS)
        self._losses: dict[str, dict[int, Floats]] = {}
        self._last: tuple[str, dict[int, dict[str, Array]]] = "", {}
        self._dense = Contents(graph, self._weights)

    @property
    def dense(self) -> Outputs:
        """The dense model's outputs, one sample a row."""
        return self._joined(self._dense_run, None)

    def losses(self, schedule: Schedule, rows: int | None = None) -> Floats:
        """The distance of each sample's outputs from the dense model's: [rows].

        Args:
            rows: how many of the samples, the first ones; None: all.

        Raises:
            UsageError: the schedule does not fit the model, or nothing can be compared.
        """
        key = _key(schedule)
        known = self._losses.setdefault(key, {})
        for number in self._numbers(rows):
            if number not in known:
                dense = self._feeds.by_sample(self._dense_run(number))
                reduced = self._feeds.by_sample(self._run(schedule, number))
                known[number] = distance(dense, reduced)
        found = np.concatenate([known[n] for n in self._numbers(rows)])
        return np.asarray(found[: self._rows(rows)])

    def outputs(self, schedule: Schedule, rows: int | None = None) -> Outputs:
        """The reduced model's outputs, one sample a row. Arguments as `losses`."""
        return self._joined(lambda number: self._run(schedule, number), rows)

    def check(self, schedule: Schedule) -> None:
        """Look whether a schedule can be run, without running it.

        Raises:
            UsageError: it does not fit the model.
        """
        self._of(schedule)

    def _rows(self, rows: int | None) -> int:
        return len(self._samples) if rows is None else min(rows, len(self._samples))

    def _numbers(self, rows: int | None) -> range:
        return range(-(-self._rows(rows) // self._feeds.size))

    def _joined(self, run: Callable[[int], Mapping[str, Array]], rows: int | None) -> Outputs:
        parts = [self._feeds.by_sample(run(number)) for number in self._numbers(rows)]
        count = self._rows(rows)
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}

    def _of(self, schedule: Schedule) -> _Reduced:
        return self._reduced.get(_key(schedule), lambda: self._reduce(schedule))

    def _reduce(self, schedule: Schedule) -> _Reduced:
        made = reduce_graph(self._graph, self._analysis, schedule, outputs=self._mode)
        contents = Contents(made.graph, self._weights)
        keep: dict[str, None] = {}
        for step in schedule.reductions:
            site = self._analysis.site(step.site)
            if site is not None and site.tensor in contents.tensors:
                keep |= dict.fromkeys(contents.crossing(site.tensor))
        return _Reduced(contents, [str(o.name) for o in made.graph.outputs], list(keep))

    def _dense_run(self, number: int) -> dict[str, Array]:
        """The dense model's outputs of a run; its streams are kept."""
        if number not in self._dense_outputs:
            self._say(f"dense model, {number + 1} of {self._runs}")
            names = [str(o.name) for o in self._graph.outputs]
            streams = [s.tensor for s in self._analysis.sites if s.tensor in self._dense.tensors]
            part = self._dense.cut(names, lambda _: False, streams)
            values = self._compute(self._dense, part, number)
            self.counted.dense += 1
            self._dense_outputs[number] = self._named(self._dense, names, values, number)
            self._keep_streams(streams, values, number)
        return self._dense_outputs[number]

    def _keep_streams(
        self, streams: Sequence[str], values: Mapping[Content, Array], number: int
    ) -> None:
        """Keep the dense model's streams, evenly spread in depth where they do not all fit."""
        contents = dict.fromkeys(self._dense.of[s] for s in streams)
        kept = [(c, values[c]) for c in contents if c in values]
        total = sum(array.nbytes for _, array in kept) * self._runs
        every = max(-(-total // max(self._streams.limit, 1)), 1)
        for content, array in kept[every // 2 :: every]:
            self._streams.put((number, content), array)

    def _run(self, schedule: Schedule, number: int) -> dict[str, Array]:
        """A reduced model's outputs of a run; those that no step reaches are the dense model's."""
        key = _key(schedule)
        if self._last[0] != key:
            self._last = key, {}
            self._states.begin()
        if number not in self._last[1]:
            checkpoint()
            self._last[1][number] = self._evaluate(self._of(schedule), number)
        return self._last[1][number]

    def _evaluate(self, one: _Reduced, number: int) -> dict[str, Array]:
        contents, dense = one.contents, self._dense_run(number)
        same = {self._dense.of[name]: array for name, array in dense.items()}

        def known(content: Content) -> bool:
            return content in same or any((number, content) in v for v in self._kept)

        part = contents.cut(one.outputs, known, one.keep)
        values = self._compute(contents, part, number, same)
        found = self._named(contents, one.outputs, {**same, **values}, number)
        for content, array in values.items():
            self._states.put((number, content), array)
        return found

    def _compute(
        self,
        contents: Contents,
        part: Part,
        number: int,
        same: Mapping[Content, Array] | None = None,
    ) -> dict[Content, Array]:
        """Run a part on what is known of a run.

        Args:
            same: the dense model's outputs.
        """
        if not part.outputs:
            return {}
        given = dict(same or {})
        for content, tensor in part.inputs:
            if content not in given:
                given[content] = self._value(tensor, content, number)
        self.counted.runs += 1
        self.counted.nodes += len(part.nodes)
        return self._sessions.get(part.key, lambda: self._open(contents, part)).run(given)

    def _value(self, tensor: gs.Tensor, content: Content, number: int) -> Array:
        """A tensor of a run that was kept, or is an input or a constant of the model."""
        for values in self._kept:
            if (number, content) in values:
                return values.take((number, content))
        if is_const(tensor):
            return np.asarray(tensor.values)
        return self._feeds.run(self._graph, self._samples, number)[tensor.name]

    def _open(self, contents: Contents, part: Part) -> _Session:
        self.counted.sessions += 1
        return _Session(part, contents.model(part), self._folder, self._threads)

    def _named(
        self, contents: Contents, names: Sequence[str], values: Mapping[Content, Array], number: int
    ) -> dict[str, Array]:
        """Outputs by name; those that were not computed now are known."""
        return {
            name: values[content]
            if content in values
            else self._value(contents.tensors[name], content, number)
            for name, content in ((n, contents.of[n]) for n in names)
        }


def _key(schedule: Schedule) -> str:
    return repr([r.to_json() for r in schedule.reductions])
