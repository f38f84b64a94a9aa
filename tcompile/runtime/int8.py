"""Graphs run in int8 as ONNX Runtime runs them on a CPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.drafts import scratch
from tcompile.passes.lower import lower
from tcompile.passes.lower.int8 import check_quantized, save_quantized
from tcompile.runtime.samples import Array, Samples, run_all
from tcompile.targets.devices import load_target


def save_int8(graph: gs.Graph, path: Path) -> None:
    """Write a graph, which may call token ops, in dynamic int8: no samples are needed for it, and a
    build measures whether static is better.

    Raises:
        ModelError: its weights take 2 GB or more; ONNX Runtime's quantizer does not take it.
    """
    save_quantized(lower(graph, target=load_target("cpu"), precision="fp32"), path)


def run_int8(graph: gs.Graph, samples: Samples) -> dict[str, Array]:
    """Return every output of a graph in int8 for every sample, as `run_graph` does in fp32.

    Raises:
        ModelError: as `save_int8`; nothing in it can be int8.
    """
    with scratch() as folder:
        save_int8(graph, folder / "model.onnx")
        check_quantized(onnx.load(folder / "model.onnx"))
        return run_all(folder / "model.onnx", samples)
