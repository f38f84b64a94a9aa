"""This machine's CPU as a device: a handful of figures from a short run of ONNX Runtime."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.parser

from tcompile.core.machine import usable_cores
from tcompile.core.packages import require
from tcompile.profiling.roofline.device import CPU_TILES, Device

#: A large product [192, 1024] · [1024, 1024].
_ROWS, _SIDE = 192, 1024
#: Elements of tensors that lie in the caches (1 MiB, another one in each node: activations come
#: from the last level, weights have passed since), and of ones that do not (64 MiB).
_IN_CACHE, _BEYOND = 2**18, 2**24
_CHAIN, _TINY_CHAIN = 12, 200
#: Of the rate of products: what elementwise work reaches (seen at Erf and Softmax).
_ELEMENTWISE = 1 / 6
#: Nodes that starting one of a batch of small products costs as much as.
_START = 0.5
#: Bytes that are read between runs to empty the caches.
_FLUSH = 2**26


def cpu_device(threads: int | None = None) -> Device:
    """Measure what this machine's CPU does under ONNX Runtime, in about two seconds.

    Four figures: FLOP/s of a large fp32 product, bytes/s of adding tensors that lie in the caches
    and of ones that do not, and what a node costs when it has nothing to do, the caches being
    empty (a node runs once a pass, and weights go by in between). Measured once per process and
    number of threads; with one thread in CPU time, which other work does not spoil.

    Args:
        threads: inside an operator; None takes all cores this process may use.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    return _measured(threads or usable_cores())


@lru_cache(maxsize=8)
def _measured(threads: int) -> Device:
    seconds = {
        "product": _seconds(_product(), threads, runs=50),
        "cached": _seconds(_additions(_IN_CACHE, _CHAIN, fresh=True), threads, runs=100),
        "beyond": _seconds(_additions(_BEYOND, 1), threads, runs=8),
        "tiny": _seconds(_additions(16, _TINY_CHAIN), threads, runs=25, cold=True),
    }
    return from_figures(threads, seconds)


def from_figures(threads: int, seconds: dict[str, float]) -> Device:
    """Return the device that four measured times describe; see `cpu_device`."""
    launch = seconds["tiny"] / _TINY_CHAIN
    # An addition reads two tensors and writes one.
    cache = 12 * _IN_CACHE / max(seconds["cached"] / _CHAIN - launch, 1e-9)
    memory = 12 * _BEYOND / max(seconds["beyond"] - launch, 1e-9)
    matrix = 2 * _ROWS * _SIDE * _SIDE / max(seconds["product"], 1e-9) / threads / 1e9
    return Device(
        name="cpu",
        cpu=True,
        precision="fp32",
        cores=threads,
        clock=1e9,
        matrix=matrix,
        vector=matrix * _ELEMENTWISE,
        memory=min(memory, cache),
        cache=cache,
        cache_size=32 * 2**20,
        scratch=2**15,
        launch=launch,
        mainloop=1.0,
        prologue=_START * launch,
        tiles=CPU_TILES,
    )


def _seconds(model: onnx.ModelProto, threads: int, runs: int, cold: bool = False) -> float:
    """Return the lower decile of some runs, the undisturbed ones; two before are not counted."""
    ort = require("onnxruntime", "cpu", "measuring this CPU")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed: dict[str, Any] = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    clock = time.thread_time if threads == 1 else time.perf_counter
    flush = np.ones(_FLUSH // 8 if cold else 0)
    times = []
    for _ in range(runs + 2):
        flush += 1.0
        start = clock()
        session.run(names, feed)
        times.append(clock() - start)
    return float(np.percentile(times[2:], 10))


def _product() -> onnx.ModelProto:
    model = _model(f"float{[_ROWS, _SIDE]} x", [_ROWS, _SIDE], "y = MatMul(x, w)")
    weight = np.ones((_SIDE, _SIDE), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def _additions(count: int, length: int, fresh: bool = False) -> onnx.ModelProto:
    """Return y = x + b + b …, `length` times, on vectors of `count`; with `fresh` another b each
    time."""
    names = ["x", *(f"t{i}" for i in range(length - 1)), "y"]
    others = [f"b{i if fresh else 0}" for i in range(length)]
    inputs = ", ".join(f"float[{count}] {name}" for name in dict.fromkeys(["x", *others]))
    body = [f"{names[i + 1]} = Add({names[i]}, {others[i]})" for i in range(length)]
    return _model(inputs, [count], "\n".join(body))


def _model(inputs: str, output: list[int], body: str) -> onnx.ModelProto:
    head = f'<ir_version: 9, opset_import: ["" : 17]> probe ({inputs}) => (float{output} y)'
    return onnx.parser.parse_model(f"{head} {{ {body} }}")
