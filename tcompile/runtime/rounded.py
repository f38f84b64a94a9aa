"""Graphs run on a CPU as a build for it is run: in int8 or bf16, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.drafts import scratch
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.passes.lower.int8 import check_quantized, quantized, save_quantized
from tcompile.runtime.samples import Array, Samples, feeds, run_all
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.runtime.smoothing import smooth_file
from tcompile.targets.backends.cpu import on_cpu
from tcompile.targets.devices import Target

#: Scenes that static ranges are taken from, and their seed.
_RANGES, _SEED = 8, 7


def save_in(
    graph: gs.Graph,
    path: Path,
    target: Target,
    precision: str,
    sample: Callable[[], Mapping[str, Array]],
) -> None:
    """Write a graph, which may call token ops, as a CPU target takes it in a precision.

    int8 is dynamic in ONNX Runtime, for which no samples are needed (a build measures whether
    static is better), and static in OpenVINO.

    Args:
        sample: gives inputs, to take static ranges from.

    Raises:
        ModelError: its weights take 2 GB or more; ONNX Runtime's quantizer does not take it.
    """
    plain = target.runtime == "openvino"
    lowered = lower(graph, target=target, precision="fp32")
    if precision != "int8":
        save(lowered, path)
    elif plain:
        save_quantized(lowered, path, "static", [sample()])
    else:
        save_quantized(lowered, path)


def run_in(graph: gs.Graph, samples: Samples, target: Target, precision: str) -> dict[str, Array]:
    """Return every output of a graph for every sample, run as a build for a CPU target is; static
    ranges are of other scenes than those of a build.

    Raises:
        ModelError: as `save_in`; nothing in it can be int8.
    """
    how = on_cpu(target, precision)
    with scratch() as folder:
        path = folder / "model.onnx"
        if precision != "int8":
            save_in(graph, path, target, precision, dict)
            return run_all(path, samples, how)
        source, smoothed = folder / "fp32.onnx", folder / "smoothed.onnx"
        save(lower(graph, target=target, precision="fp32"), source)
        smooth_file(source, smoothed)
        if target.runtime == "openvino":
            model = signature(source)
            # Of a seed that nothing is planned with, so that a loss on those is not of its ranges.
            ranges = scenes_for(model, count=_RANGES, seed=_SEED)
            made = quantized(onnx.load(smoothed), "static", list(feeds(model, ranges)))
        else:
            made = quantized(onnx.load(smoothed), "dynamic")
        check_quantized(made)
        onnx.save(made, path)
        return run_all(path, samples, how)
