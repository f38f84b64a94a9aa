"""`zoo:glyphs`: every preset at every keep, accuracy against measured latency.

`python -m benchmarks.methods` measures, and writes a table (Markdown, CSV, JSON) and a plot (PNG,
SVG). What was measured stays in methods.json: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods_given import families, prepare
from benchmarks.methods_page import Results, Row, answers, write_table
from benchmarks.methods_plot import plot
from tcompile.api.demo import write_glyphs
from tcompile.core.errors import TcompileError
from tcompile.core.machine import usable_cores
from tcompile.core.save import save
from tcompile.methods.presets import ALL
from tcompile.models.glyphs import data
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED, evaluate
from tcompile.pipeline import reduce
from tcompile.planning.cost import cost_of
from tcompile.runtime.timing import interleave, machine_name, speedup, summarise
from tcompile.targets.backends.ort import OrtRunner

KEEPS = ("0.8", "0.6", "0.5", "0.4", "0.3", "0.2")


@dataclass(frozen=True)
class Settings:
    """Settings that the figures depend on; what was measured under others is measured again."""

    scenes: int
    rounds: int
    batch: int
    threads: int
    machine: str
    runs: int = 8  # in a time: one run of so small a model is shorter than what else goes on


@dataclass(frozen=True)
class Model:
    """An ONNX file and what it answers on the held-out scenes."""

    path: Path
    top1: float
    classes: np.ndarray[Any, Any]


def answered(path: Path, settings: Settings) -> Model:
    """Run a model on the held-out scenes."""
    runner = OrtRunner(path, threads=settings.threads)
    classes: list[Any] = []

    def predict(images: Any) -> dict[str, Any]:
        outputs = runner.run({"image": images})
        classes.append(outputs["logits"].argmax(-1))
        return outputs

    found = evaluate(predict, n=settings.scenes, batch_size=50)
    return Model(path, found.top1, np.concatenate(classes))


def measure(
    method: str,
    source: Path,
    dense: Model,
    keeps: Sequence[str],
    settings: Settings,
    folder: Path,
    known: Sequence[Row] = (),
) -> Iterator[Row]:
    """The rows of one method; dense and all its keeps are timed in the same rounds.

    Args:
        known: rows whose answers are taken over where the graph is still the same.
    """
    models: list[tuple[Row, Path]] = []
    for number, keep in enumerate(keeps):
        row, path = Row(method, keep), folder / f"{number}.onnx"
        try:
            text, options = prepare(method, keep, source, folder)
            made = reduce(source, target="cpu", keep=keep, method=text, **options)
            cost = cost_of(made)
            save(made.graph, path)
            same = (cost.reduced / cost.dense, cost.added / cost.dense, cost.nodes)
            old = next((r for r in known if _graph(r) == (method, keep, *_near(same))), None)
            if old is None:
                model = answered(path, settings)
                agreement = float((model.classes == dense.classes).mean())
                row = replace(row, top1=model.top1, agreement=agreement)
            else:
                row = replace(row, top1=old.top1, agreement=old.agreement)
        except TcompileError as error:
            yield replace(row, missing=error.one_line().replace(str(folder), "…"))
            continue
        except Exception as error:  # one method's bug is no reason to lose the others' figures
            yield replace(row, missing=f"BUG: {type(error).__name__}: {str(error)[:300]}")
            continue
        row = replace(
            row,
            tokens=made.schedule.final,
            flops=cost.reduced / cost.dense,
            added=cost.added / cost.dense,
            nodes=cost.nodes,
            unfused=len(cost.unfused),
            notes=made.schedule.notes,
        )
        models.append((row, path))
    if models:
        yield from _timed(models, dense, settings)


def _graph(row: Row) -> tuple[str, str, float, float, int]:
    """Return what is known of the graph that a row is about."""
    return (row.method, row.keep, *_near((row.flops, row.added, row.nodes)))


def _near(figures: tuple[float, float, int]) -> tuple[float, float, int]:
    flops, added, nodes = figures
    return round(flops, 4), round(added, 4), nodes


def _timed(models: list[tuple[Row, Path]], dense: Model, settings: Settings) -> Iterator[Row]:
    images = {"image": data.preprocess(data.batch(HELD_OUT_SEED, 0, settings.batch)[0])}
    paths = [dense.path, *(path for _, path in models)]
    runners = [OrtRunner(path, threads=settings.threads) for path in paths]
    calls = [_call(runner, images, settings.runs) for runner in runners]
    load = os.getloadavg()[0]
    base, *times = (
        [time / settings.runs for time in each]
        for each in interleave(calls, rounds=settings.rounds)
    )
    load = round(max(load, os.getloadavg()[0]), 1)
    for (row, _), mine in zip(models, times, strict=True):
        ratio = speedup(base, mine)
        yield replace(
            row,
            latency=asdict(summarise(mine)),
            dense_latency=asdict(summarise(base)),
            speedup=asdict(ratio),
            load=load,
        )


def _call(runner: OrtRunner, images: dict[str, Any], runs: int) -> Callable[[], object]:
    return lambda: [runner.run(images) for _ in range(runs)]


def run(
    methods: Sequence[str],
    keeps: Sequence[str],
    settings: Settings,
    output: Path,
    known: Sequence[Row] = (),
) -> Results:
    """Measure what `output` does not hold yet, and write all of it there.

    Args:
        known: as in `measure`.
    """
    results = Results.read(output / "methods.json", asdict(settings))
    with tempfile.TemporaryDirectory(prefix="tcompile-bench-") as name:
        folder = Path(name)
        write_glyphs(folder / "dense.onnx")
        dense = answered(folder / "dense.onnx", settings)
        results = replace(results, dense_top1=dense.top1)
        for at, method in enumerate(methods, 1):
            left = [keep for keep in keeps if not results.has(method, keep)]
            found = (
                measure(method, dense.path, dense, left, settings, folder, known) if left else ()
            )
            for row in found:
                results = results.with_row(row)
                _say(f"[{at}/{len(methods)}] {row.line()}")
            results.write(output / "methods.json")
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is missing, write table and plot, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000, help="held-out scenes to answer")
    parser.add_argument("--methods", nargs="+", default=[m.name for m in ALL])
    parser.add_argument("--keeps", nargs="+", default=list(KEEPS))
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds in which every model is timed"
    )
    parser.add_argument("--batch", type=int, default=1, help="images in a timed run")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--quick", action="store_true", help="200 scenes, 10 rounds")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument(
        "--retime", action="store_true", help="times again; answers of the same graphs are kept"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("methods"), help="a folder")
    given = parser.parse_args()
    if given.quick:
        given.scenes, given.rounds = 200, 10
    given.output.mkdir(parents=True, exist_ok=True)
    known = answers(given.output / "methods.json", given.scenes) if given.retime else []
    if given.fresh or given.retime:
        (given.output / "methods.json").unlink(missing_ok=True)
    machine = f"{machine_name()}, ONNX Runtime {_version()}"
    settings = Settings(given.scenes, given.rounds, given.batch, given.threads, machine)
    results = run(given.methods, given.keeps, settings, given.output, known)
    print(write_table(results, given.keeps, families(), given.output))
    plot(results, [r for r in results.rows if r.keep in given.keeps], families(), given.output)
    if any("BUG" in row.missing for row in results.rows):
        raise SystemExit(1)


def _version() -> str:
    from tcompile.targets.backends.ort import version

    return version()


if __name__ == "__main__":
    main()
