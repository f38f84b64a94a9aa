"""Models to profile, with side inputs and without; and a runtime whose times are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.save import save
from tcompile.methods.method import Method, method_for
from tcompile.models.onnx_vit import GraphWriter, patch_tokens, pool, prefix_tokens
from tcompile.passes.stages import Analysed
from tcompile.planning.constraints import site_constraints
from tcompile.profiling import sessions
from tcompile.profiling.partition import Segment, subgraph
from tcompile.profiling.profile import Conditions
from tcompile.targets.backends.ort import OrtRunner
from tests.support.tiny_vit import VitSpec, random_weights, save_tiny_vit

Array = np.ndarray[Any, Any]

CONDITIONS = Conditions(
    "fake",
    "a clock",
    "none",
    {"fake": "1"},
    "fp32",
    1,
    1,
    "1 GHz",
    "15 W",
    "2026-01-02T03:04:05+00:00",
    "",
)


def tiny(folder: Path, spec: VitSpec | None = None, batch: int | None = 1) -> Analysed:
    """A tiny ViT, read."""
    return pipeline.read(save_tiny_vit(folder / "tiny.onnx", spec, batch=batch))


class _Sided(GraphWriter):
    """Attention with rotary positions on queries and keys, and a bias for each pair of tokens: one
    table and one bias for all blocks."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__(random_weights(spec))
        size, rng = spec.width // spec.heads, np.random.default_rng(3)
        angles = np.arange(spec.patches)[:, None] / 10.0 ** np.linspace(0, 2, size // 2)
        angles = np.concatenate([np.zeros((spec.prefix, size // 2)), angles])
        both = np.concatenate([angles, angles], axis=1)[None, None]
        self.cos, self.sin = (self.const(f(both), "float32") for f in (np.cos, np.sin))
        bias = rng.standard_normal((1, 1, spec.tokens, spec.tokens))
        self.bias = self.const(bias, "float32")

    def rotated(self, x: str, size: int) -> str:
        half, axis = size // 2, self.const([3])
        low = self.op("Slice", x, self.const([0]), self.const([half]), axis)
        high = self.op("Slice", x, self.const([half]), self.const([size]), axis)
        turned = self.op("Concat", self.op("Neg", high), low, axis=3)
        kept, moved = self.op("Mul", x, self.cos), self.op("Mul", turned, self.sin)
        return self.op("Add", kept, moved)

    def attention(self, x: str, name: str, tokens: int, width: int, heads: int) -> str:
        size = width // heads
        qkv = self.linear(x, f"{name}.qkv")
        split = self.op("Reshape", qkv, self.const([0, tokens, 3, heads, size]))
        stacked = self.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", stacked, self.const(i), axis=0) for i in range(3))
        q, k = self.rotated(q, size), self.rotated(k, size)
        scaled = self.op("Mul", q, self.const(size**-0.5, "float32"))
        scores = self.op("MatMul", scaled, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Add", scores, self.bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        joined = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(
            self.op("Reshape", joined, self.const([0, tokens, width])), f"{name}.proj"
        )


def sided(folder: Path, spec: VitSpec | None = None, batch: int = 2) -> Analysed:
    """A tiny ViT whose attentions read rotary tables and a bias, read."""
    spec = spec or VitSpec()
    writer = _Sided(spec)
    x = prefix_tokens(writer, spec, patch_tokens(writer, spec, "image"), batch)
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    logits = writer.linear(pool(writer, spec, writer.layer_norm(x, "norm")), "head")
    path = folder / "sided.onnx"
    onnx.save(writer.model(spec.image, {"logits": (logits, [batch, spec.classes])}), str(path))
    return pipeline.read(path)


def mapped(folder: Path) -> Analysed:
    """A tiny ViT that gives a map as large as the image, of a free batch, which Resize is told."""
    spec = VitSpec()
    writer = GraphWriter(random_weights(spec))
    side, size = int(spec.patches**0.5), writer.op("Shape", "image", start=0, end=1)
    x = prefix_tokens(writer, spec, patch_tokens(writer, spec, "image"), None)
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    const = writer.const
    x = writer.op("Slice", x, const([spec.prefix]), const([spec.tokens]), const([1]))
    rows = writer.op("Transpose", writer.layer_norm(x, "norm"), perm=[0, 2, 1])
    grid = writer.op("Reshape", rows, const([0, spec.width, side, side]))
    sizes = writer.op("Concat", size, const([spec.width, spec.image, spec.image]), axis=0)
    large = writer.op("Resize", grid, "", "", sizes, mode="linear")
    shape: list[int | str] = ["batch", spec.width, spec.image, spec.image]
    path = folder / "mapped.onnx"
    onnx.save(writer.model(spec.image, {"map": (large, shape)}), str(path))
    return pipeline.read(path)


def method(model: Analysed, text: str, outputs: str = "reduced") -> Method:
    """A method on a model."""
    return method_for(model.analysis, site_constraints(model.analysis, outputs), text, outputs)


def run_parts(graph: gs.Graph, parts: list[Segment], feed: dict[str, Array], folder: Path) -> Any:
    """The parts one after another, each fed what those before it gave."""
    known = dict(feed)
    for i, part in enumerate(parts):
        piece = subgraph(graph, part)
        given = {t.name: known[t.name] for t in piece.inputs}
        known |= _run(piece, given, folder / f"part{i}.onnx")
    return {o.name: known[o.name] for o in graph.outputs}


def run_whole(graph: gs.Graph, feed: dict[str, Array], folder: Path) -> dict[str, Array]:
    """The graph as a whole."""
    return _run(graph, feed, folder / "whole.onnx")


def _run(graph: gs.Graph, feed: dict[str, Array], path: Path) -> dict[str, Array]:
    save(graph, path)
    runner = OrtRunner(path, threads=1, optimize=False)
    return runner.run({i.name: feed[i.name] for i in runner.inputs})


@dataclass
class Clock:
    """Seconds that pass only when something runs."""

    now: float = 0.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In place of the clocks of sessions and measurements; and no garbage is collected."""
        monkeypatch.setattr(sessions.gc, "collect", lambda: 0)
        monkeypatch.setattr(sessions.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(sessions.time, "monotonic", lambda: self.now)


@dataclass
class FakeRuntime:
    """Runs nothing; each call takes `cost(graph)` ms, and `call` besides; to open one takes
    `opening` seconds."""

    clock: Clock
    cost: Callable[[gs.Graph], float]
    call: float = 0.5
    batch: int = 1
    opening: float = 0.0
    opened: list[str] = field(default_factory=list)

    def open(self, graph: gs.Graph, path: Path) -> Callable[[], object]:
        ms = self.call + (0.0 if [n.op for n in graph.nodes] == ["Identity"] else self.cost(graph))
        self.opened.append(graph.nodes[0].name)
        self.clock.now += self.opening

        def run() -> None:
            self.clock.now += ms / 1e3

        return run

    def conditions(self) -> Conditions:
        return CONDITIONS


@lru_cache(maxsize=1)
def trtexec_times() -> list[dict[str, float]]:
    """Records as trtexec 10 writes them with --exportTimes: 21 runs of 2.0 to 2.2 ms."""
    found = []
    for i in range(21):
        start, compute = 3.0 * i, 2.0 + 0.01 * i
        found.append(
            {
                "startEnqMs": start,
                "endEnqMs": start + 0.1,
                "startH2dMs": start,
                "endH2dMs": start + 0.2,
                "startComputeMs": start + 0.2,
                "endComputeMs": start + 0.2 + compute,
                "startD2hMs": start + 0.2 + compute,
                "endD2hMs": start + 0.3 + compute,
                "h2dMs": 0.2,
                "computeMs": compute,
                "d2hMs": 0.1,
                "latencyMs": compute + 0.3,
            }
        )
    return found
