"""`--precision auto` at random latencies on `cpu`: is what it builds slower than a dense model in
another precision that one could have had?

`python -m benchmarks.auto_precision`: each request is a model and a share of what its dense model
takes in fp32. Afterwards the artifact is timed beside the dense model in fp32 and in int8 (dynamic,
smoothed, as a build writes it), in the same rounds; a dense model counts where it is within the
latency and loses at most `planning.precisions.HARDLY` on scenes. The artifact is slower where the
whole 95 % interval of its speed-up over the fastest of these lies below 1. What was measured stays
in the work folder: stopped, the same command goes on; `--fresh` begins again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.never_slower import MODELS
from benchmarks.real.fetch import default_cache, digest
from benchmarks.state import State
from benchmarks.subjects import Subject, export
from tcompile import __version__
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import TcompileError
from tcompile.core.save import save
from tcompile.passes.lower import REVISION, lower
from tcompile.passes.lower.int8 import quantized
from tcompile.pipeline import build, read
from tcompile.planning.losses.distance import distance
from tcompile.planning.precisions import AUTO_PRECISION, HARDLY
from tcompile.planning.search.search import summed_up
from tcompile.runtime.samples import run_all
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.runtime.smoothing import smooth_file
from tcompile.runtime.timing import bench_models, machine_name, speedup, time_models
from tcompile.targets import load_target

NAMES = ("glyphs", "vit_tiny", "vit_small_32")
_SCENES, _SEED = 8, 3


@dataclass(frozen=True)
class Draw:
    """A model, and within which share of its dense latency in fp32."""

    subject: Subject
    share: float


@dataclass(frozen=True)
class Row:
    """One request: what was built, beside which dense precision, and the speed-up over that."""

    model: str
    share: float
    built: str
    beside: str = ""
    ratio: float = 1.0
    lower: float = 1.0
    upper: float = 1.0


def drawn(requests: int, seed: int) -> list[Draw]:
    """Random requests; fewer are the first of more."""
    rng = np.random.default_rng(seed)
    subjects = [s for s in MODELS if s.name in NAMES]
    return [
        Draw(subjects[int(rng.integers(len(subjects)))], round(float(rng.uniform(0.25, 0.95)), 2))
        for _ in range(requests)
    ]


def one(draw: Draw, path: Path, rounds: int) -> Row:
    """Build, and time what came of it beside the dense models."""
    row = Row(draw.subject.name, draw.share, "nothing")
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as scratch:
        folder = Path(scratch)
        # As the machine is now: its pace wanders by a third within an hour.
        budget = draw.share * bench_models(path, path, rounds=15).dense.median
        try:
            made = build(
                path,
                target="cpu",
                precision=AUTO_PRECISION,
                latency=budget,
                outputs=draw.subject.outputs,
                output=folder / "artifact",
            )
        except TcompileError as error:
            return replace(row, built=f"nothing: {error.one_line()[:160]}")
        artifact = load_artifact(made)
        manifest = artifact.manifest
        built = f"{manifest.precision}, {manifest.kept.patches} patches"
        if manifest.emitted == "dense":
            return replace(row, built=f"dense {manifest.precision}")
        dense = {"fp32": path, "int8": _int8(path, folder)}
        found = time_models([artifact.model, *dense.values()], rounds=rounds)
        times = dict(zip(dense, found.times[1:], strict=True))
        could = [
            name
            for name, file in dense.items()
            if np.median(times[name]) <= budget and _loses(path, file) <= HARDLY
        ]
        if not could:
            return replace(row, built=built)
        best = min(could, key=lambda name: float(np.median(times[name])))
        gain = speedup(times[best], found.times[0])
    return replace(row, built=built, beside=f"dense {best}", **asdict(gain))


def _int8(path: Path, folder: Path) -> Path:
    """The dense model in int8, as a build writes it."""
    files = [folder / f"{name}.onnx" for name in ("fp32", "smoothed", "int8")]
    save(lower(read(path).graph, target=load_target("cpu"), precision="fp32"), files[0])
    smooth_file(files[0], files[1])
    onnx.save(quantized(onnx.load(files[1]), "dynamic"), files[2])
    return files[2]


def _loses(path: Path, other: Path) -> float:
    """What another form of a model loses, on scenes."""
    samples = scenes_for(signature(path), count=_SCENES, seed=_SEED)
    return float(summed_up(distance(run_all(path, samples), run_all(other, samples))))


def as_json(draw: Draw, path: Path, rounds: int) -> dict[str, Any]:
    """`one`, to be kept."""
    return asdict(one(draw, path, rounds))


def slower(row: Row) -> bool:
    """Tell whether what was built is slower than the dense model beside it."""
    return bool(row.beside) and row.upper < 1


def page(found: dict[str, Any]) -> str:
    """The verdict and a table, as Markdown."""
    rows = [Row(**r) for r in found["rows"]]
    beside = [r for r in rows if r.beside]
    worst = min((r.ratio for r in beside), default=1)
    built = Counter(r.built for r in rows if r.built.startswith("dense"))
    nothing = sum(r.built.startswith("nothing") for r in rows)
    dense, fewer = sum(built.values()), len(rows) - sum(built.values()) - nothing
    slow = sum(map(slower, rows))
    verdict = (
        f"timed beside the fastest of these in {found['rounds']} rounds, **{slow}** of what was "
        "built are slower (the whole 95 % interval of the speed-up below 1); the least speed-up is "
        f"{worst:.2f} ×, the median {np.median([r.ratio for r in beside] or [1]):.2f} ×."
        if beside
        else "so that **0** of what was built are slower."
    )
    lines = [
        "# Precision by itself\n",
        f"Made by `python -m benchmarks.auto_precision -o docs/benchmarks`. {found['machine']}. "
        f"{len(rows)} requests of `--precision auto` with a random latency, as a share of what the "
        f"dense model takes in fp32. Built were: in {dense} the dense model, of them in "
        f"{built['dense fp32']} in fp32, which was within the latency and loses nothing; in "
        f"{fewer} fewer tokens; in {nothing} nothing, since no plan is so fast. In "
        f"{len(beside)} of those with fewer tokens a dense model (fp32, int8) was within the "
        f"latency as well and lost at most {HARDLY:g} on scenes: {verdict}\n",
        "| model | latency | built | beside | speed-up |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        speed = f"{r.ratio:.2f} [{r.lower:.2f}, {r.upper:.2f}]" if r.beside else ""
        lines.append(f"| {r.model} | {r.share:.0%} | {r.built} | {r.beside} | {speed} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Build, measure, print; exit code 1 where one is slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.auto_precision", description=__doc__
    )
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where dense models and what was measured lie")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    folder = given.work or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (folder / "auto_precision.state.jsonl").unlink(missing_ok=True)
    state = State(folder / "auto_precision.state.jsonl")
    rows: list[Row] = []
    for draw in drawn(given.requests, given.seed):
        path = export(draw.subject, folder)
        key = {"model": digest(path), "share": draw.share, "rounds": given.rounds}
        key |= {"machine": machine_name(), "version": __version__, "lowering": REVISION}
        rows.append(Row(**state.get(key, partial(as_json, draw, path, given.rounds))))
        print(f"{len(rows)} of {given.requests}: {rows[-1]}", file=sys.stderr, flush=True)
    found = {"machine": machine_name(), "rounds": given.rounds, "rows": [asdict(r) for r in rows]}
    print(page(found))
    if given.output is not None:
        (given.output / "auto_precision.md").write_text(page(found))
        (given.output / "auto_precision.json").write_text(json.dumps(found, indent=1) + "\n")
    if any(map(slower, rows)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
