"""Sessions: all parts of a model that run at one token count, ready to be timed in turn.

A session runs its parts one after another as the model would, once without the clock and then with
it: the caches are then as the model leaves them, whose weights they may or may not hold.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, nbytes
from tcompile.core.progress import Progress, silent
from tcompile.profiling.curve import Figure
from tcompile.profiling.detrend import detrended
from tcompile.profiling.partition import Role, Segment, chained, subgraph
from tcompile.profiling.runtimes import Run, Runtime
from tcompile.profiling.structure import PartitionedGraph

#: In the order in which a model runs them.
Kind = Literal["stem", "half", "head", "step", "dense", "call"]

#: A time shorter than this is measured over several runs, in ms.
_SHORT = 2.0
_MOST_RUNS = 20


@dataclass(frozen=True)
class WorkloadId:
    """A structure, or a method's step, at a token count: what a time is of."""

    kind: Kind
    name: str
    tokens: int
    after: int = 0


@dataclass(frozen=True, eq=False)
class Workload:
    """Something to run, and how many copies of its structure that holds."""

    key: WorkloadId
    run: Run
    share: int = 1


@dataclass(eq=False)
class Session:
    """Workloads that run in turn; `times` of each, and `when` they began, grow by one a round."""

    workloads: Sequence[Workload]
    times: dict[WorkloadId, list[float]] = field(default_factory=dict)
    when: dict[WorkloadId, list[float]] = field(default_factory=dict)
    runs: dict[WorkloadId, int] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """The number of rounds that were timed."""
        return min(
            (len(self.times.get(workload.key, [])) for workload in self.workloads), default=0
        )

    def warmed(self) -> float:
        """Run all workloads once, which readies the runtime; return about how many seconds a round
        takes."""
        start = time.monotonic()
        for workload in self.workloads:
            workload.run()
        # A round runs each twice, and what is short for longer.
        return 2 * (time.monotonic() - start) + len(self.workloads) * _SHORT / 1e3

    def round(self) -> None:
        """Run all workloads once without the clock, and then with it."""
        for workload in self.workloads:
            start = time.perf_counter()
            workload.run()
            ms = (time.perf_counter() - start) * 1e3
            self.runs.setdefault(workload.key, int(np.clip(_SHORT / max(ms, 1e-3), 1, _MOST_RUNS)))
        for workload in self.workloads:
            runs = self.runs[workload.key]
            start = time.perf_counter()
            for _ in range(runs):
                workload.run()
            ms = (time.perf_counter() - start) * 1e3 / runs
            self.times.setdefault(workload.key, []).append(ms)
            self.when.setdefault(workload.key, []).append(start)


def figures(sessions: Iterable[Session]) -> dict[WorkloadId, tuple[Figure, int]]:
    """Return the figure of each workload, with its share; the machine's own pace is taken out."""
    every = list(sessions)
    share = {workload.key: workload.share for session in every for workload in session.workloads}
    times = {key: ms for session in every for key, ms in session.times.items()}
    when = {key: at for session in every for key, at in session.when.items()}
    return {key: (Figure.of(ms), share[key]) for key, ms in detrended(times, when).items()}


class SessionFactory:
    """Opens parts of partitioned graphs on a runtime.

    Args:
        folder: for the files that a runtime reads.
        most_bytes: of weights in one chain of halves.
    """

    def __init__(self, runtime: Runtime, folder: Path, most_bytes: int) -> None:
        self.runtime, self.folder, self.most_bytes = runtime, folder, most_bytes

    def session(self, partitioned: Sequence[PartitionedGraph], *, stem: bool = False) -> Session:
        """Open the halves and heads of graphs at one token count, each structure once."""
        workloads: dict[WorkloadId, Workload] = {}
        for graph in partitioned:
            for sign, parts in graph.halves().items():
                key = WorkloadId("half", sign, graph.tokens)
                if key not in workloads:
                    workloads[key] = self.halves(key, graph.graph, parts)
            others: Sequence[Role] = ("stem", "head") if stem else ("head",)
            for part in graph.behind(*others):
                kind: Kind = "stem" if part.role == "stem" else "head"
                key = WorkloadId(kind, part.signature, graph.tokens)
                if key not in workloads:
                    workloads[key] = Workload(key, self.open(subgraph(graph.graph, part)))
        order = get_args(Kind)
        return Session(sorted(workloads.values(), key=lambda made: order.index(made.key.kind)))

    def halves(self, key: WorkloadId, graph: gs.Graph, parts: Sequence[Segment]) -> Workload:
        """A chain of halves of one structure, as many as the weights allow."""
        one = chained(graph, parts[:1])
        weights = sum(nbytes(t) for t in one.tensors().values() if is_const(t))
        length = int(np.clip(self.most_bytes // max(weights, 1), 1, len(parts)))
        # From the last ones on: nothing but their weights tells them apart.
        chosen = parts[len(parts) - length :]
        return Workload(key, self.open(chained(graph, chosen)), length)

    def open(self, graph: gs.Graph) -> Run:
        run = self.runtime.open(graph, self.folder / "part.onnx")
        gc.collect()  # Graphs refer to themselves; their weights would pile up.
        return run


def rounds(
    sessions: Sequence[Session],
    count: int,
    *,
    least: float,
    seed: int,
    deadline: float,
    expected: float = 0.0,
    say: Progress = silent,
) -> int:
    """Run so many rounds over all sessions, each in an order drawn anew; return how many were run.

    Args:
        least: seconds; where the rounds take less, more follow, up to forty times as many.
        deadline: of `time.monotonic`; none begins that may end behind it, once every session had
            two.
        expected: seconds that a round takes, as far as it is known.
    """
    rng = np.random.default_rng(seed)
    longest, begun, number = expected, time.monotonic(), 0
    needed = max((2 - session.rounds for session in sessions), default=0)
    while number < count or (time.monotonic() < begun + least and number < 40 * count):
        if number >= needed and time.monotonic() + longest > deadline:
            break
        if number < count:
            say(f"timing {len(sessions)} token counts and steps: round {number + 1} of {count}")
        start = time.monotonic()
        for which in rng.permutation(len(sessions)):
            sessions[which].round()
        longest = max(longest, time.monotonic() - start)
        number += 1
    return number
