"""Predicted against measured latency of whole models, over random schedules.

`python -m benchmarks.profiles`: for each model a profile is measured, then random schedules of
several methods are built, timed beside the dense model, and compared with what the profile has; in
each runtime and precision of `--runs` (a target and a precision of it, `cpu:int8`). With
`--exports` what was measured stays there: stopped, the same command goes on; `--fresh` begins
again.

Two errors are told: of milliseconds as predicted; and of the share of the dense model's latency,
which a machine that runs slower today than when it was profiled leaves as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real.fetch import digest
from benchmarks.state import State
from benchmarks.subjects import SUBJECTS, export, find
from tcompile import __version__
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Schedule
from tcompile.methods.method import method_for
from tcompile.methods.portfolio import PORTFOLIO
from tcompile.methods.schedulers import Place
from tcompile.passes.reduce import reduce_graph
from tcompile.pipeline import read
from tcompile.planning.constraints import site_constraints
from tcompile.planning.optimise.tables import Plan, plan_of
from tcompile.planning.options.method_tables import MethodTables, method_tables, prior_of
from tcompile.planning.request import Request
from tcompile.planning.solve.latencies import measured
from tcompile.profiling.profile import Profile
from tcompile.profiling.runtimes import CpuRuntime, Run
from tcompile.profiling.sessions import Session, Workload, WorkloadId, figures, rounds
from tcompile.runtime.timing import machine_name
from tcompile.targets import load_target
from tcompile.targets.backends import openvino, ort

METHODS = PORTFOLIO
#: Of weights, in models that are open at a time; a runtime keeps them twice.
_MOST_BYTES = 4 << 30
#: Models that are timed in the same rounds, at most, and seconds for each at least: many and long,
#: so that no burst of what else the machine does falls on a few of them.
_TOGETHER, _SECONDS = 31, 1.0
RUNS = ("cpu:fp32", "cpu:int8", "cpu-openvino:bf16")


@dataclass(frozen=True)
class Row:
    """One schedule: ms predicted and measured, those of the dense model beside it."""

    model: str
    method: str
    steps: list[tuple[str, int]]
    predicted: float
    measured: float
    dense_predicted: float
    dense_measured: float

    @property
    def error(self) -> float:
        """Error of the milliseconds, as a share."""
        return self.predicted / self.measured - 1

    @property
    def share_error(self) -> float:
        """Error of the share of the dense model's latency."""
        now = self.dense_measured / self.dense_predicted
        return self.predicted * now / self.measured - 1


def random_plans(
    options: Sequence[MethodTables], seed: int
) -> Iterator[tuple[MethodTables, Plan, Schedule]]:
    """One to five steps of a method at random sites, to random counts of its grid, endless."""
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        one = options[number % len(options)]
        tables, sites = one.tables, one.tables.sites
        free = [c for c in tables.counts[:-1] if c > 0.15 * tables.tokens]
        steps = int(rng.integers(1, min(5, len(sites)) + 1))
        at = sorted(rng.choice(len(sites), steps, replace=False).tolist())
        to = sorted(rng.choice(free, steps, replace=False).tolist(), reverse=True)
        taken, count, after = dict(zip(at, to, strict=True)), tables.tokens, []
        for i in range(len(sites)):
            count = taken.get(i, count)
            after.append(count)
        places = [Place(sites[i].name, n - tables.prefix) for i, n in taken.items()]
        try:
            schedule = one.method.schedule(places)
        except UsageError:  # more than the half, of a method that halves at most
            continue
        number += 1
        yield one, plan_of(tables, after), schedule


def compared(
    name: str, path: Path, run: str, schedules: int, least: int, seed: int, threads: int | None
) -> tuple[list[Row], Profile, float]:
    """The rows of a model, its profile, and how long that took in seconds."""
    model = read(path)
    runtime = runtime_of(run, threads)
    room = site_constraints(model.analysis)
    methods = [method_for(model.analysis, room, text) for text in METHODS]
    start = time.perf_counter()
    request = Request(keep=1, threads=threads, seed=seed)
    profile = measured(
        model,
        methods,
        runtime.target,
        request,
        lambda text: None,
        precision=runtime.precision,
        fresh=True,
    )
    seconds = time.perf_counter() - start
    options = [
        method_tables(model.graph, m, profile, prior_of, least=None, eps=0.02) for m in methods
    ]
    together = together_of(path)
    rows: list[Row] = []
    drawn = random_plans(options, seed)
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as folder:
        part = Path(folder) / "model.onnx"
        while len(rows) < schedules:
            some = list(islice(drawn, min(together, schedules - len(rows))))
            calls = [runtime.open(model.graph, part)]
            for _, _, schedule in some:
                made = reduce_graph(model.graph, model.analysis, schedule).graph
                calls.append(runtime.open(made, part))
            dense, *times = timed(calls, least, seed)
            for (one, plan, _), ms in zip(some, times, strict=True):
                steps = [(s.site, s.after) for s in plan.steps]
                rows.append(
                    Row(name, one.method.text, steps, plan.latency_ms, ms, plan.dense_ms, dense)
                )
            del calls
    return rows, profile, seconds


def runtime_of(run: str, threads: int | None) -> CpuRuntime:
    """A runtime of this CPU: `cpu:int8`."""
    target, _, precision = run.partition(":")
    return CpuRuntime(load_target(target), threads=threads, precision=precision or "fp32")


def together_of(path: Path) -> int:
    """Return how many models of this size are timed beside the dense one."""
    return int(np.clip(_MOST_BYTES // path.stat().st_size, 2, _TOGETHER)) - 1


def timed(calls: Sequence[Run], least: int, seed: int) -> list[float]:
    """Median ms of models, each run over and over as on a device: once without the clock, to have
    its own weights in the caches, then with it; interleaved, in an order drawn anew each round."""
    sessions = [
        Session([Workload(WorkloadId("dense", str(i), 0), call)]) for i, call in enumerate(calls)
    ]
    seconds = _SECONDS * len(calls)
    rounds(sessions, least, least=seconds, seed=seed, deadline=time.monotonic() + 600)
    return [figure.ms for figure, _ in figures(sessions).values()]


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Median, 95th percentile and worst of both errors."""
    raw, share = (np.abs([getattr(r, k) for r in rows]) for k in ("error", "share_error"))
    return {
        "schedules": len(rows),
        "median": float(np.median(raw)),
        "p95": float(np.quantile(raw, 0.95)),
        "worst": float(raw.max()),
        "share_median": float(np.median(share)),
        "share_p95": float(np.quantile(share, 0.95)),
        "share_worst": float(share.max()),
    }


def page(found: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        "# Predicted against measured latency\n",
        "Made by `python -m benchmarks.profiles -o docs/benchmarks`. "
        f"{found['machine']}, {found['software']}, {found['threads']} threads.\n",
        "Each profile was measured once; then random schedules (one to five steps of "
        f"{', '.join(f'`{m}`' for m in METHODS)}) were timed beside the dense model. *ms* is the "
        "error of the predicted milliseconds, *share* that of the share of the dense model's "
        "latency, which a machine that runs slower or faster than when it was profiled leaves as "
        "it is.\n",
        "| model | run by | schedules | profile took | dense, profiled | dense, beside "
        "| ms: median | 95 % | worst | share: median | 95 % | worst |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:
        s = one["summary"]
        lines.append(
            f"| {one['model']} | {one['run']} | {s['schedules']} | {one['seconds']:.0f} s | "
            f"{one['dense_profiled']:.3g} ms | {one['dense_beside']:.3g} ms | {s['median']:.1%} | "
            f"{s['p95']:.1%} | {s['worst']:.1%} | {s['share_median']:.1%} | {s['share_p95']:.1%} | "
            f"{s['share_worst']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _row(name: str, path: Path, run: str, given: argparse.Namespace) -> dict[str, Any]:
    rows, profile, seconds = compared(
        name, path, run, given.schedules, given.rounds, given.seed, given.threads
    )
    assert profile.dense is not None
    return {
        "model": name,
        "run": run,
        "summary": summary(rows),
        "seconds": seconds,
        "dense_profiled": profile.dense.ms,
        "dense_beside": float(np.median([r.dense_measured for r in rows])),
        "schedules": [asdict(r) for r in rows],
    }


def main() -> None:
    """Profile, build, time, print; with -o also write profiles.md and profiles.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[s.name for s in SUBJECTS if not s.photos])
    parser.add_argument("--schedules", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--exports", type=Path, help="where dense models are kept between runs")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), metavar="TARGET:PRECISION")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    given = parser.parse_args()
    conditions = runtime_of("cpu", given.threads).conditions()
    found: dict[str, Any] = {
        "machine": machine_name(),
        "software": f"ONNX Runtime {ort.version()}, OpenVINO {openvino.version()}",
        "threads": conditions.threads,
        "date": conditions.date[:10],
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as scratch:
        folder = given.exports or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if given.fresh:
            (folder / "profiles.state.jsonl").unlink(missing_ok=True)
        state = State(folder / "profiles.state.jsonl")
        for name in given.models:
            path = export(find(name), folder)
            for run in given.runs:
                asked = {k: getattr(given, k) for k in ("schedules", "rounds", "seed", "threads")}
                same = {k: found[k] for k in ("machine", "software")}
                same |= {"version": __version__, "methods": list(METHODS)}
                key = {"model": digest(path), "run": run, **asked, **same}
                row = state.get(key, partial(_row, name, path, run, given))
                found["rows"].append(row)
                print(name, run, json.dumps(row["summary"]), file=sys.stderr, flush=True)
    print(page(found))
    if given.output is not None:
        (given.output / "profiles.md").write_text(page(found))
        (given.output / "profiles.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
