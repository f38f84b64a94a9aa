"""Measuring a profile: few token counts first, then more where latency has steps.

All token counts are timed in every round, in an order drawn anew, so that what the machine does
meanwhile hits all alike; figures are medians with quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis
from tcompile.core.drafts import scratch
from tcompile.core.errors import UsageError
from tcompile.core.graph import is_const, nbytes
from tcompile.core.progress import Progress, silent
from tcompile.core.subgraph import repeated
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.partition import subgraph
from tcompile.profiling.profile import MeasuredProfile, Subject
from tcompile.profiling.runtimes import Runtime
from tcompile.profiling.sampling import STEPS, Keeps, first_counts, refined, steps_to, whole
from tcompile.profiling.sessions import (
    Session,
    SessionFactory,
    Workload,
    WorkloadId,
    figures,
    rounds,
)
from tcompile.profiling.structure import (
    PartitionedGraph,
    partition_at,
    partition_dense,
    partition_steps,
)

#: Weights that all open sessions together may hold; prepacked ones count twice.
_MOST_BYTES = 5 << 30
_SESSIONS = 24
#: Copies of a step that are run as one.
_COPIES = 4
#: Rounds, and seconds where those are soon over, before more token counts are looked at.
_FIRST, _FIRST_SECONDS = 3, 3.0
#: Token counts below the dense model's, and steps of a method, that are measured however little
#: time there is.
_LEAST_COUNTS, _LEAST_STEPS = 3, 2


@dataclass(frozen=True)
class Effort:
    """The extent of a measurement.

    Attributes:
        seconds: in all, opening the parts included. Nothing is begun that would end later, as far
            as what was seen so far tells; but three token counts, two steps of each method and two
            rounds are always measured.
        rounds: of all token counts, once they are chosen; more where they take little time.
        least: seconds that these rounds take at least, or forty times as many rounds.
        tolerance: how far a time may be from the line through its neighbours, as a share, for no
            count to be measured between.
        seed: of the order.
    """

    seconds: float = 240.0
    rounds: int = 7
    least: float = 20.0
    tolerance: float = 0.02
    seed: int = 0


def measure(
    dense: gs.Graph,
    analysis: Analysis,
    methods: Sequence[Method],
    runtime: Runtime,
    *,
    source: str,
    effort: Effort | None = None,
    progress: Progress = silent,
) -> MeasuredProfile:
    """The profile of a model on a runtime's device.

    Args:
        dense: in normal form.
        methods: whose reducers, and whose halves behind them, are measured.
        source: the model's name.

    Raises:
        UsageError: no method, or one that cannot come down to any count.
    """
    effort = effort or Effort()
    if not methods:
        raise UsageError("no method can be planned on this model", where="--method")
    with scratch() as folder:
        profile_run = ProfileRun(dense, analysis, methods, runtime, folder, effort, progress)
        profile_run.run()
        return profile_run.profile(source)


def _spread(counts: Sequence[int]) -> list[int]:
    """Ascending counts in an order in which the first few tell most: the least, the largest, the
    one in the middle, then those that are farthest from the ones before."""
    left, found = list(counts), list[int]()
    while left:
        chosen = left[0] if not found else max(left, key=lambda n: min(abs(n - f) for f in found))
        found.append(chosen)
        left.remove(chosen)
    return found


class ProfileRun:
    def __init__(
        self,
        dense: gs.Graph,
        analysis: Analysis,
        methods: Sequence[Method],
        runtime: Runtime,
        folder: Path,
        effort: Effort,
        say: Progress,
    ) -> None:
        self.dense, self.analysis, self.methods = dense, analysis, methods
        self.runtime, self.effort, self.say = runtime, effort, say
        self.deadline = time.monotonic() + effort.seconds
        #: Seconds: the longest that it took to open a session or a step; a round over all.
        self.opening = self.round = 0.0
        self.left_out = 0
        weights = sum(nbytes(t) for t in dense.tensors().values() if is_const(t))
        # Halves of attention and MLP are chained apart: each gets half of a session's room.
        room = _MOST_BYTES // (2 * _SESSIONS) // 2
        self.factory = SessionFactory(runtime, folder, min(room, weights) or 1)
        self.halves: dict[int, Session] = {}
        self.steps: list[Session] = []
        self.whole = Session([])

    def run(self) -> None:
        shape = self.analysis.shape
        self.say("opening the dense model and its parts")
        partitioned = partition_dense(self.dense, self.analysis)
        self.halves[shape.tokens] = self._ready(
            lambda: self._with_call(
                self.factory.session([partitioned], stem=True), shape.tokens, partitioned
            )
        )
        self.whole = self._ready(
            lambda: Session(
                [Workload(WorkloadId("dense", "", shape.tokens), self.factory.open(self.dense))]
            )
        )
        grain = max(rule.granularity for m in self.methods for rule in m.sites)
        counts = _spread(first_counts(shape.tokens, shape.prefix, grain))
        self._open(counts[:_LEAST_COUNTS], always=True)
        for method in self.methods:
            self.say(f"opening the steps of {method.key}")
            self.steps.append(self._steps(method))
        self._open(counts[_LEAST_COUNTS:])
        self._rounds(_FIRST, _FIRST_SECONDS)
        level: Sequence[int] = counts
        while level and self._room():
            level = refined(self._total(), shape.prefix, grain, self.effort.tolerance)
            if not self._open(level):
                break
            self._rounds(_FIRST, _FIRST_SECONDS)
        self._rounds(self.effort.rounds, self.effort.least)

    def _rounds(self, count: int, least: float) -> None:
        start = time.monotonic()
        done = rounds(
            self._sessions(),
            count,
            least=least,
            seed=self.effort.seed,
            deadline=self.deadline,
            expected=self.round,
            say=self.say,
        )
        if done:
            self.round = (time.monotonic() - start) / done

    def _ready(self, make: Callable[[], Session]) -> Session:
        """A session that has run once; how long that took tells what there is time for."""
        start = time.monotonic()
        session = make()
        self.opening = max(self.opening, time.monotonic() - start)
        self.round += session.warmed()
        return session

    def _room(self) -> bool:
        """Tell whether there is time to open one more session, and to run all of them."""
        more = self.round / max(len(self._sessions()), 1)
        needed = self.opening + _FIRST * (self.round + more)
        return time.monotonic() + needed <= self.deadline

    def _sessions(self) -> list[Session]:
        return [self.whole, *self.halves.values(), *self.steps]

    def _open(self, counts: Sequence[int], *, always: bool = False) -> int:
        """Open the parts at some token counts, while there is time; how many were opened."""
        opened = 0
        for i, tokens in enumerate(counts):
            if tokens in self.halves:
                continue
            if not always and not self._room():
                self.left_out += len(set(counts[i:]) - set(self.halves))
                break
            self.say(f"opening the parts: {tokens} tokens")
            partitioned = [c for c in (self._cut(m, tokens) for m in self.methods) if c is not None]
            if partitioned:
                made = partial(self._at, tokens, partitioned)
                self.halves[tokens] = self._ready(made)
                opened += 1
        return opened

    def _at(self, tokens: int, partitioned: Sequence[PartitionedGraph]) -> Session:
        return self._with_call(self.factory.session(partitioned), tokens, partitioned[0])

    def _cut(self, method: Method, tokens: int) -> PartitionedGraph | None:
        try:
            partitioned = partition_at(self.dense, method, tokens)
        except UsageError:
            return None  # Too few for it: what others show must do.
        return partitioned if partitioned.tokens == tokens else None

    def _with_call(self, session: Session, tokens: int, partitioned: PartitionedGraph) -> Session:
        """The session, and a call of the runtime that computes nothing."""
        half = next(p for p in partitioned.parts if p.role in ("attn", "mlp"))
        stream = partitioned.graph.tensors()[half.end]
        nothing = gs.Variable("nothing", stream.dtype, stream.shape)
        given = gs.Variable("given", stream.dtype, stream.shape)
        node = gs.Node("Identity", "call", {}, [given], [nothing])
        graph = gs.Graph([node], [given], [nothing], opset=partitioned.graph.opset)
        graph.ir_version = min(partitioned.graph.ir_version or 10, onnx.IR_VERSION)
        workload = Workload(WorkloadId("call", "", tokens), self.factory.open(graph))
        return Session([*session.workloads, workload])

    def _steps(self, method: Method) -> Session:
        """The steps of a method, ready to run; the first ones only where time is short."""
        shape = self.analysis.shape
        rule = method.sites[len(method.sites) // 2]
        workloads: dict[WorkloadId, Workload] = {}
        for i, (start, share) in enumerate(STEPS):
            if len(workloads) >= _LEAST_STEPS and not self._room():
                self.left_out += len(STEPS) - i
                break
            before = whole(start * shape.patches, rule.granularity)
            after = whole(start * share * shape.patches, rule.granularity)
            steps = steps_to(method, before, after, deep=True)
            key = WorkloadId("step", method.key, before + shape.prefix, after + shape.prefix)
            if steps is None or key in workloads:
                continue
            session = self._ready(partial(self._step, method, steps, key))
            workloads[key] = session.workloads[0]
        if not workloads:
            raise UsageError(f"no step of {method.key} can be measured", where="--method")
        return Session(list(workloads.values()))

    def _step(self, method: Method, steps: Keeps, key: WorkloadId) -> Session:
        partitioned = partition_steps(self.dense, method, steps, deduplicate=True)
        # By itself a step is so short that waking the runtime's threads would be most of it.
        part = repeated(subgraph(partitioned.graph, partitioned.parts[partitioned.step]), _COPIES)
        return Session([Workload(key, self.factory.open(part), _COPIES)])

    def _total(self) -> list[tuple[int, Figure]]:
        """(tokens, both halves of all blocks as they are there) of every count so far."""
        found, every = [], figures(self._sessions())
        for tokens in sorted(self.halves):
            halves = [
                f.minus(0, share)
                for key, (f, share) in every.items()
                if key.kind == "half" and key.tokens == tokens
            ]
            ms = sum(f.ms for f in halves)
            spread = float(np.sqrt(sum((f.upper - f.lower) ** 2 for f in halves))) / 2
            found.append((tokens, Figure(ms, ms - spread, ms + spread)))
        return found

    def profile(self, source: str) -> MeasuredProfile:
        shape = self.analysis.shape
        every = figures(self._sessions())
        calls = {key.tokens: figure for key, (figure, _) in every.items() if key.kind == "call"}
        found: dict[str, dict[str, list[tuple[WorkloadId, Figure]]]] = {}
        for key, (figure, share) in every.items():
            if key.kind in ("half", "head", "step"):
                near = min(calls, key=lambda tokens: abs(tokens - key.tokens))
                figure = figure.minus(calls[near].ms, share)
            found.setdefault(key.kind, {}).setdefault(key.name, []).append((key, figure))
        stem = {n: of[0][1] for n, of in found.get("stem", {}).items()}
        halves, heads = (
            {n: Curve.of((key.tokens, f) for key, f in of) for n, of in found.get(k, {}).items()}
            for k in ("half", "head")
        )
        steps = {
            n: StepCost(tuple(sorted((key.tokens, key.after, f) for key, f in of)))
            for n, of in found["step"].items()
        }
        conditions = self.runtime.conditions()
        if self.left_out:
            short = f"{self.left_out} token counts and steps were left out for want of time"
            conditions = replace(conditions, note="; ".join(filter(None, [conditions.note, short])))
        return MeasuredProfile(
            conditions,
            Subject(source, shape.tokens, shape.prefix, shape.blocks),
            stem,
            halves,
            heads,
            steps,
            found["dense"][""][0][1],
        )
