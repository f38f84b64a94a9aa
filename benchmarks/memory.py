"""Memory that is predicted against what is written and what ONNX Runtime takes.

`python -m benchmarks.memory --work DIR -o docs/benchmarks`: each model dense and reduced, in fp32
and int8 in ONNX Runtime and in fp16 as an engine of TensorRT-RTX (which needs no GPU); weights are
held against bytes of the file, activations against what ONNX Runtime's arena asks for in a second
run, by its own log, both together against what a process holds that runs the model.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from benchmarks.subjects import SUBJECTS, export, find
from tcompile.analysis.memory import Need, memory_of
from tcompile.artifact.page import table
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.passes.lower.int8 import save_quantized
from tcompile.pipeline import reduce
from tcompile.planning.memory import storage_of
from tcompile.runtime.resident import measure_resident
from tcompile.runtime.timing import machine_name
from tcompile.targets import load_target
from tcompile.targets.backends import emit, ort
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.cpu import ORT
from tcompile.targets.devices import Precision

#: Target and precision of each row.
RUNS = (("cpu", "fp32"), ("cpu", "int8"), ("rtx-4090", "fp16"))
METHOD = "evit:rate=0.7"


@dataclass(frozen=True)
class Row:
    """One model; sizes in bytes.

    Attributes:
        file: that was written: of an engine, the engine.
        arena: that ONNX Runtime's arena asks for in a run.
        running: that the process holds beyond what it held before the model was opened.
    """

    model: str
    which: str
    precision: str
    need: Need
    file: int
    arena: int | None
    running: int | None


def rows_of(name: str, source: Path, work: Path) -> list[Row]:
    """All rows of a model."""
    reduced = reduce(source, method=METHOD)
    found = []
    for run in RUNS:
        for which, graph in (("dense", reduced.dense), ("reduced", reduced.graph)):
            print(name, which, *run, file=sys.stderr)
            found.append(_row(name, which, graph, reduced.fp32_nodes, run, work))
    return found


def _row(
    name: str, which: str, graph: gs.Graph, fp32: frozenset[str], run: tuple[str, str], work: Path
) -> Row:
    device, precision, path = load_target(run[0]), run[1], work / "model.onnx"
    need = memory_of(graph, storage_of(device, precision, fp32))
    level: Precision = "fp16" if precision == "fp16" else "fp32"  # int8 is made of the file
    lowered = lower(graph, target=device, precision=level, fp32_nodes=fp32)
    if precision == "int8":
        save_quantized(lowered, path)
    else:
        save(lowered, path)
    if not device.on_cpu:
        emit(path, work, target=device, precision=level, batch=Batch(1, 1, 1), token_ops="native")
        engines = [p for p in (work / "engine").iterdir() if p.is_file()]
        return Row(name, which, precision, need, max(p.stat().st_size for p in engines), None, None)
    held = measure_resident(path, ORT, threads=1)
    size, running = path.stat().st_size, None if held is None else held.running
    return Row(name, which, precision, need, size, arena_of(path), running)


def arena_of(path: Path) -> int:
    """Bytes that ONNX Runtime's arena asks for in the second run of a model, which it lays out by
    the pattern of the first; its log says so."""
    command = [sys.executable, "-m", "benchmarks.memory", "--arena", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    second = done.stderr.partition("second run")[2]
    return sum(map(int, re.findall(r"Extended allocation by (\d+)", second)))


def _run_in_arena(path: Path) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_asked = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": 256}
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(as_asked))
    # Weights lie apart, and what the first run took is given back.
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    shrunk = onnxruntime.RunOptions()
    shrunk.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {
        i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], np.float32)
        for i in session.get_inputs()
    }
    session.run(None, feed, shrunk)
    print("second run", file=sys.stderr, flush=True)
    session.run(None, feed, shrunk)


def page(rows: list[Row], machine: str, runtime: str) -> str:
    """The page."""
    head = (
        "model",
        "",
        "precision",
        "weights",
        "written",
        "of that",
        "activations",
        "arena asks for",
        "times",
        "together",
        "process holds",
        "times",
    )
    cells = [_cells(row) for row in rows]
    near = [row.need.weights / row.file for row in rows if row.arena is not None]
    times = [row.arena / row.need.activations for row in rows if row.arena is not None]
    held = [row.running / row.need.total for row in rows if row.running is not None]
    return "\n".join(
        [
            "# Memory, predicted and measured\n",
            f"Made by `python -m benchmarks.memory` on {machine}, ONNX Runtime {runtime}. MB are "
            f"10⁶ bytes. Batch 1, {METHOD}.\n",
            "What is predicted is counted from the graph ([planner.md](../planner.md)): weights as "
            "they are stored, and the activations that are alive at one time.\n",
            f"- **Weights** are {min(near):.1%} to {max(near):.1%} of the bytes of the ONNX file; "
            "the rest is the graph itself. `fp16` is held against an engine of TensorRT-RTX for "
            "compute capability 8.9, which holds kernels besides.",
            "- **Activations**: what ONNX Runtime's arena asks for in a second run, laid out by "
            f"the pattern of the first, is {min(times):.2f} to {max(times):.2f} times as much: "
            "kernels work in memory as well, softmax is not always done in place, and not all that "
            "was freed is used again. Inputs, which are counted, are not in it.",
            "- **Together** they are what a process needs at least. One that runs the model in "
            f"ONNX Runtime holds {min(held):.1f} to {max(held):.1f} times as much: weights that "
            "are packed anew, an arena that grows by doubling, and the session itself, which is "
            "most of it for a small model.",
            "- Fewer tokens take neither weights nor, as long as the first blocks run on all of "
            "them, the most of the activations: memory is saved by precision, and by methods that "
            "reduce in the first block.\n",
            table(head, cells),
            "",
        ]
    )


def _cells(row: Row) -> tuple[str, ...]:
    mb = [f"{size / 1e6:.1f}" for size in (row.need.weights, row.file)]
    mb.append(f"{row.need.weights / row.file:.1%}")
    most = row.need.activations
    mb.append(f"{most / 1e6:.1f}")
    mb += ["", ""] if row.arena is None else [f"{row.arena / 1e6:.1f}", f"{row.arena / most:.2f}"]
    total = row.need.total
    mb.append(f"{total / 1e6:.1f}")
    held = row.running
    mb += ["", ""] if held is None else [f"{held / 1e6:.0f}", f"{held / total:.1f}"]
    return row.model, row.which, row.precision, *mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="takes exports and models")
    parser.add_argument("--models", nargs="*", default=[s.name for s in SUBJECTS if not s.photos])
    parser.add_argument("-o", "--output", type=Path, help="folder for memory.md and memory.json")
    parser.add_argument("--arena", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arena:
        _run_in_arena(asked.arena)
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for name in asked.models
        for row in rows_of(name, export(find(name), asked.work), asked.work)
    ]
    text = page(rows, machine_name(), ort.version())
    print(text)
    if asked.output:
        (asked.output / "memory.md").write_text(text, encoding="utf-8")
        document = json.dumps([asdict(row) for row in rows], indent=1)
        (asked.output / "memory.json").write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
