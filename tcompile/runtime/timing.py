"""Timing models against each other on this machine's CPU, interleaved.

All models run in every round, in random order, so that what the machine does meanwhile hits each.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tcompile.core.errors import UsageError
from tcompile.core.machine import usable_cores
from tcompile.core.progress import Progress, silent
from tcompile.runtime.samples import feed, samples_for
from tcompile.runtime.signature import signature

if TYPE_CHECKING:
    from tcompile.runtime.resident import Resident
    from tcompile.targets.backends.cpu import OnCpu

Array = npt.NDArray[Any]
Call = Callable[[], object]
#: After which no more rounds are begun to tell which of two models is faster.
_DECIDE_SECONDS = 20.0


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one batch: median, and lower and upper quartile."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Speedup:
    """Median of dense over median of reduced, with a 95 % bootstrap interval."""

    ratio: float
    lower: float
    upper: float


def dense_in(precision: str) -> str:
    """The dense model in the precision of the reduced one, in words."""
    return f"the dense model in {precision}"


#: What the reduced model is compared with: the file that was compiled, or, where that computes in
#: fp16, its form in fp32. ONNX Runtime only emulates fp16 on a CPU, and a speed-up over that would
#: be the precision's, not that of fewer tokens.
#: OpenVINO takes plain ONNX, which the file may not be.
AS_IT_CAME, NORMAL_FORM = "the dense model as it came", "the fp32 normal form of the fp16 model"
PLAIN = "the dense model, in fp32"
EMULATED = (
    "the fp16 model as it came, most of which ONNX Runtime computes in fp32 between casts on a CPU"
)


@dataclass(frozen=True)
class Benchmark:
    """A measurement: of what, where, and how.

    Attributes:
        dense: what the reduced model is compared with, `compared`.
        speedup: of the reduced model over that.
        source, source_speedup: the fp16 model as it came, and the reduced one over it; None where
            `dense` is the model as it came.
        rival, rival_speedup: the dense model in the precision of a reduced one in int8 or bf16, and
            that over it; None of any other model.
        precision: of the reduced model and its rival.
        memory: `dense`, `reduced`, `rival` → memory of a process that runs it alone; empty where it
            was not measured.
        times: `dense`, `reduced`, `source`, `rival` → milliseconds of each round, in their order.
    """

    dense: Timing
    reduced: Timing
    speedup: Speedup
    flop_ideal: float | None
    rounds: int
    batch: int
    threads: int
    machine: str
    runtime: str
    note: str
    compared: str = AS_IT_CAME
    source: Timing | None = None
    source_speedup: Speedup | None = None
    rival: Timing | None = None
    rival_speedup: Speedup | None = None
    precision: str = "fp32"
    memory: Mapping[str, Resident] = field(default_factory=dict)
    times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values; all of them measured."""
        return {"kind": "measured", **asdict(self)}


def interleave(
    calls: Sequence[Call], *, rounds: int, warmup: int = 3, seed: int = 0
) -> list[list[float]]:
    """Time each call once a round, in an order drawn anew each round: milliseconds by call."""
    rng = np.random.default_rng(seed)
    for call in calls:
        for _ in range(warmup):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for which in rng.permutation(len(calls)):
            start = time.perf_counter()
            calls[which]()
            # To a tenth of a microsecond: they are stored, and clocks tell no more.
            times[which].append(round((time.perf_counter() - start) * 1e3, 4))
    return times


def summarise(times: Sequence[float]) -> Timing:
    """Median and quartiles of some times."""
    lower, median, upper = np.percentile(times, [25, 50, 75])
    return Timing(float(median), float(lower), float(upper))


def speedup(dense: Sequence[float], reduced: Sequence[float]) -> Speedup:
    """Ratio of medians, and its interval from 2000 resamples of the rounds.

    Rounds are resampled, not single times: both times of a round share what the machine did then.
    """
    a, b = np.asarray(dense), np.asarray(reduced)
    rows = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    ratios = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
    lower, upper = np.percentile(ratios, [2.5, 97.5])
    return Speedup(float(np.median(a) / np.median(b)), float(lower), float(upper))


@dataclass(frozen=True)
class Rounds:
    """Times of several models, all in the same rounds.

    Attributes:
        times: milliseconds of each model, a round each.
        batch, threads: that they ran with.
    """

    times: list[list[float]]
    batch: int
    threads: int


def time_models(
    paths: Sequence[str | Path],
    how: Sequence[OnCpu] = (),
    *,
    rounds: int,
    decide: tuple[int, int] = (0, 1),
    most: int | None = None,
    seconds: float = 0.0,
    threads: int | None = None,
    batch: int | None = None,
    progress: Progress = silent,
) -> Rounds:
    """Measure ONNX files on the same random inputs, those of the second one.

    Args:
        how: each is run; in ONNX Runtime by default.
        decide: the two of which it is to be told which is faster.
        rounds, most, seconds, threads, batch: as for `bench_models`.
    """
    from tcompile.targets.backends.cpu import ORT

    threads = threads or usable_cores()
    models = [signature(path) for path in paths]
    size = models[0].batch or models[1].batch or batch or 1
    # The dense model's image size may be free; the reduced one's never is.
    samples = samples_for(models[1].whole, count=size)
    ways = how or [ORT] * len(models)
    runners = [way.open(m.path, threads, in_turn=True) for way, m in zip(ways, models, strict=True)]
    calls = [
        partial(
            runner.run, feed(m.inputs, m.host.fed(samples.arrays) if m.host else samples.arrays)
        )
        for runner, m in zip(runners, models, strict=True)
    ]
    progress(f"{rounds} interleaved rounds on {threads} threads")
    times = interleave(calls, rounds=rounds)
    begun, limit = time.monotonic(), most or 0
    while True:
        lasted = time.monotonic() - begun
        few = len(times[0]) < limit and lasted <= _DECIDE_SECONDS
        more_to_tell = few and _undecided(*(times[i] for i in decide))
        if lasted >= seconds and not more_to_tell:
            return Rounds(times, size, threads)
        some = rounds if lasted < seconds else min(rounds, limit - len(times[0]))
        more = interleave(calls, rounds=some, warmup=0, seed=len(times[0]))
        times = [[*a, *b] for a, b in zip(times, more, strict=True)]


def bench_models(
    dense: str | Path,
    reduced: str | Path,
    *,
    rounds: int = 50,
    most: int | None = None,
    seconds: float = 0.0,
    threads: int | None = None,
    batch: int | None = None,
    flop_ideal: float | None = None,
    note: str = "",
    source: str | Path | None = None,
    rival: str | Path | None = None,
    how: OnCpu | None = None,
    precision: str = "fp32",
    progress: Progress = silent,
) -> Benchmark:
    """Measure two ONNX files on the same random inputs.

    Args:
        rival: where `reduced` is in int8 or bf16, the dense model in the same, which is measured in
            the same rounds; it is then told which of these two is faster.
        how: `reduced` and `rival` are run, the others in the same runtime in fp32; by default in
            ONNX Runtime.
        precision: of `reduced` and `rival`.
        source: where `dense` is the fp32 normal form of an fp16 model, that model as it came, which
            is measured in the same rounds.
        rounds: timed runs of each model, after three that are not.
        most: rounds at most; more than `rounds` are run, a few seconds long, while the interval of
            the speed-up has 1 in it.
        seconds: that the rounds take at least, whatever `most` says: medians of a shorter time are
            those of a moment, where others use the machine as well.
        threads: of the runtime; by default as many as this process may use.
        batch: for models whose batch is free; a fixed batch is what it is.
    """
    from tcompile.targets.backends.cpu import ORT

    how = how or ORT
    if rounds < 5:
        raise UsageError("needs at least 5 rounds", where="--rounds")
    others = [path for path in (source, rival) if path is not None]
    found = time_models(
        [dense, reduced, *others],
        [how.exact, how, *(how if path is rival else how.exact for path in others)],
        rounds=rounds,
        decide=(0 if rival is None else -1, 1),
        most=most,
        seconds=seconds,
        threads=threads,
        batch=batch,
        progress=progress,
    )
    times = found.times
    compared = AS_IT_CAME if source is None else NORMAL_FORM
    if how.runtime != ORT.runtime:
        compared = PLAIN
    came = times[2] if source is not None else None
    rivals = times[-1] if rival is not None else None
    return Benchmark(
        dense=summarise(times[0]),
        reduced=summarise(times[1]),
        speedup=speedup(times[0], times[1]),
        flop_ideal=flop_ideal,
        rounds=len(times[0]),
        batch=found.batch,
        threads=found.threads,
        machine=machine_name(),
        runtime=how.words,
        note=note,
        compared=compared,
        source=None if came is None else summarise(came),
        source_speedup=None if came is None else speedup(came, times[1]),
        rival=None if rivals is None else summarise(rivals),
        rival_speedup=None if rivals is None else speedup(rivals, times[1]),
        precision=precision,
        times={
            name: tuple(each)
            for name, each in (
                ("dense", times[0]),
                ("reduced", times[1]),
                ("source", came),
                ("rival", rivals),
            )
            if each is not None
        },
    )


def _undecided(first: Sequence[float], second: Sequence[float]) -> bool:
    found = speedup(first, second)
    return found.lower <= 1 <= found.upper


def machine_name() -> str:
    """The processor's name and the number of usable cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {usable_cores()} cores"
