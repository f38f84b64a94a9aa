"""Stations: all parts of a model that run at one token count, ready to be timed in turn.

A station runs its parts one after another as the model would, once without the clock and then with
it: the caches are then as the model leaves them, whose weights they may or may not hold.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, nbytes
from tcompile.core.progress import Progress, silent
from tcompile.profiling.curve import Figure
from tcompile.profiling.detrend import detrended
from tcompile.profiling.partition import Segment, chained, subgraph
from tcompile.profiling.runtimes import Run, Runtime
from tcompile.profiling.structure import PartitionedGraph

Kind = Literal["stem", "half", "head", "step", "dense", "call"]

#: A time shorter than this is measured over several runs, in ms.
_SHORT = 2.0
_MOST_RUNS = 20


@dataclass(frozen=True)
class WorkloadId:
    """What a time is of: a structure, or a method's step, at a token count."""

    kind: Kind
    name: str
    tokens: int
    after: int = 0


@dataclass(frozen=True, eq=False)
class Workload:
    """Something to run, and how many of what it is of it holds."""

    key: WorkloadId
    run: Run
    share: int = 1


@dataclass(eq=False)
class Session:
    """Jobs that run in turn; `times` of each, and `when` they began, grow by one a round."""

    jobs: Sequence[Workload]
    times: dict[WorkloadId, list[float]] = field(default_factory=dict)
    when: dict[WorkloadId, list[float]] = field(default_factory=dict)
    runs: dict[WorkloadId, int] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds were timed."""
        return min((len(self.times.get(job.key, [])) for job in self.jobs), default=0)

    def warmed(self) -> float:
        """Run all jobs once, which readies the runtime; how many seconds a round takes, about."""
        start = time.monotonic()
        for job in self.jobs:
            job.run()
        # A round runs each twice, and what is short for longer.
        return 2 * (time.monotonic() - start) + len(self.jobs) * _SHORT / 1e3

    def round(self) -> None:
        """Run all jobs once without the clock, and then with it."""
        for job in self.jobs:
            start = time.perf_counter()
            job.run()
            ms = (time.perf_counter() - start) * 1e3
            self.runs.setdefault(job.key, int(np.clip(_SHORT / max(ms, 1e-3), 1, _MOST_RUNS)))
        for job in self.jobs:
            runs = self.runs[job.key]
            start = time.perf_counter()
            for _ in range(runs):
                job.run()
            ms = (time.perf_counter() - start) * 1e3 / runs
            self.times.setdefault(job.key, []).append(ms)
            self.when.setdefault(job.key, []).append(start)


def figures(stations: Iterable[Session]) -> dict[WorkloadId, tuple[Figure, int]]:
    """Of each job, with its share; the machine's own pace is taken out (`drift`)."""
    every = list(stations)
    share = {job.key: job.share for station in every for job in station.jobs}
    times = {key: ms for station in every for key, ms in station.times.items()}
    when = {key: at for station in every for key, at in station.when.items()}
    return {key: (Figure.of(ms), share[key]) for key, ms in detrended(times, when).items()}


class SessionFactory:
    """Opens parts of cut graphs on a meter.

    Args:
        folder: for the files that a runtime reads.
        most_bytes: of weights in one chain of halves.
    """

    def __init__(self, meter: Runtime, folder: Path, most_bytes: int) -> None:
        self.meter, self.folder, self.most_bytes = meter, folder, most_bytes

    def station(
        self,
        cuts: Sequence[PartitionedGraph],
        known: Mapping[str, str] | None = None,
        *,
        stem: bool = False,
    ) -> Session:
        """The halves and heads of some cuts at one token count, each structure once."""
        jobs: dict[WorkloadId, Workload] = {}
        for given in cuts:
            for sign, parts in given.halves().items():
                key = WorkloadId("half", sign, given.tokens)
                if key not in jobs:
                    jobs[key] = self.halves(key, given.graph, parts)
            head = given.head()
            if head is not None:
                key = WorkloadId("head", head[1], given.tokens)
                if key not in jobs:
                    jobs[key] = Workload(key, self.open(subgraph(given.graph, head[0])))
            if stem:
                for part, sign in zip(given.parts, given.signatures, strict=True):
                    if part.role == "stem":
                        key = WorkloadId("stem", sign, given.tokens)
                        jobs[key] = Workload(key, self.open(subgraph(given.graph, part)))
        return Session(_in_model_order(list(jobs.values())))

    def halves(self, key: WorkloadId, graph: gs.Graph, parts: Sequence[Segment]) -> Workload:
        """A chain of halves of one structure, as many as the weights allow."""
        one = chained(graph, parts[:1])
        weights = sum(nbytes(t) for t in one.tensors().values() if is_const(t))
        length = int(np.clip(self.most_bytes // max(weights, 1), 1, len(parts)))
        # From the last ones on: nothing but their weights tells them apart.
        chosen = parts[len(parts) - length :]
        return Workload(key, self.open(chained(graph, chosen)), length)

    def open(self, graph: gs.Graph) -> Run:
        run = self.meter.open(graph, self.folder / "part.onnx")
        gc.collect()  # Graphs refer to themselves; their weights would pile up.
        return run


def _in_model_order(jobs: list[Workload]) -> list[Workload]:
    order: Mapping[Kind, int] = {"stem": 0, "half": 1, "head": 2, "step": 3, "dense": 4, "call": 5}
    return sorted(jobs, key=lambda job: order[job.key.kind])


def rounds(
    stations: Sequence[Session],
    count: int,
    *,
    least: float,
    seed: int,
    deadline: float,
    expected: float = 0.0,
    say: Progress = silent,
) -> int:
    """So many rounds over all stations, each in an order drawn anew; gives how many were run.

    Args:
        least: seconds; where the rounds take less, more follow, up to forty times as many.
        deadline: of `time.monotonic`; none begins that may end behind it, once every station had
            two.
        expected: seconds that a round takes, as far as it is known.
    """
    rng = np.random.default_rng(seed)
    longest, begun, number = expected, time.monotonic(), 0
    needed = max((2 - station.rounds for station in stations), default=0)
    while number < count or (time.monotonic() < begun + least and number < 40 * count):
        if number >= needed and time.monotonic() + longest > deadline:
            break
        if number < count:
            say(f"round {number + 1} of {count}, {len(stations)} token counts and steps")
        start = time.monotonic()
        for which in rng.permutation(len(stations)):
            stations[which].round()
        longest = max(longest, time.monotonic() - start)
        number += 1
    return number
