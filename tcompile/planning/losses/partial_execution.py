"""Reduced models from their first step on, fed with what the dense model computed before it.

All that the stream at a site is computed from is the same in the dense and in the reduced model, so
it is computed once for all counts. What crosses the cut is found, not assumed: the stream, queries
and keys that scores and metrics read, rotary tables, masks, inputs of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from tcompile.analysis.sites import Site
from tcompile.core.graph import batch_dim, producer
from tcompile.core.save import saved
from tcompile.core.subgraph import extract, needed_nodes
from tcompile.runtime.samples import Samples, batches, by_sample
from tcompile.runtime.token_outputs import is_bookkeeping

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
            yield {t.name: self._fit(t, arrays[t.name]) for t in graph.inputs}, true

    def _fit(self, tensor: gs.Tensor, array: Array) -> Array:
        # Packed patches have no batch axis: the one sample stands for itself.
        array = array[0] if array.ndim == len(tensor.shape) + 1 else array
        return array.astype(tensor.dtype, copy=False)

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
        for feed in runs:
            yield runner.run({t.name: feed[t.name] for t in runner.inputs})


def with_outputs(graph: gs.Graph, names: Sequence[str]) -> gs.Graph:
    """A copy that gives these tensors too."""
    copy = graph.copy()
    tensors = copy.tensors()
    given = {str(o.name) for o in copy.outputs}
    inputs = {str(t.name) for t in copy.inputs}
    copy.outputs += [tensors[n] for n in dict.fromkeys(names) if n not in given | inputs]
    return copy
