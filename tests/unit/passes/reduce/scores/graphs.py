"""Scores taken out of reduced tiny ViTs, and what the dense ones compute, for formulas in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort

from tcompile import pipeline
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.models import onnx_vit as vit_graph
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tests.support.onnx_models import plain_options, to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

Array = np.ndarray[Any, Any]

#: How an attention may be written: by head, heads in the batch, scaled before or behind the
#: product, as one operator of rank 4 or 3.
SPELLINGS = ("plain", "joined", "leading", "behind", "op4", "op3")
SPEC = VitSpec(depth=3, pool="none")


class Writer(vit_graph.GraphWriter):
    """A writer that spells attention differently."""

    spelling = "plain"

    def attention(self, x: str, name: str, tokens: int, width: int, heads: int) -> str:
        if self.spelling == "plain":
            return super().attention(x, name, tokens, width, heads)
        size, rank3 = width // heads, self.spelling == "op3"
        qkv = self.linear(x, f"{name}.qkv")
        flat = self.op("Reshape", qkv, self.const([0, tokens, 3, width]))
        each = self.op("Transpose", flat, perm=[2, 0, 1, 3])
        parts = [self.op("Gather", each, self.const(i), axis=0) for i in range(3)]
        if not rank3:
            parts = [self.op("Reshape", t, self.const([0, tokens, heads, size])) for t in parts]
            parts = [self.op("Transpose", t, perm=[0, 2, 1, 3]) for t in parts]
        if self.spelling.startswith("op"):
            counts = {"q_num_heads": heads, "kv_num_heads": heads} if rank3 else {}
            mixed = self.op("Attention", *parts, **counts)
        else:
            mixed = self.spelled(parts, tokens, size)
        if not rank3:
            back = self.op("Reshape", mixed, self.const([-1, heads, tokens, size]))
            turned = self.op("Transpose", back, perm=[0, 2, 1, 3])
            mixed = self.op("Reshape", turned, self.const([0, tokens, width]))
        return self.linear(mixed, f"{name}.proj")

    def spelled(self, parts: list[str], tokens: int, size: int) -> str:
        """softmax(Q·Kᵀ)·V of tensors [B, h, N, d]."""
        shapes = {"joined": [-1, tokens, size], "leading": [1, -1, tokens, size]}
        shape = shapes.get(self.spelling)
        if shape:
            parts = [self.op("Reshape", t, self.const(shape)) for t in parts]
        q, k, v = parts
        perm = [0, 2, 1] if self.spelling == "joined" else [0, 1, 3, 2]
        logits = self.op("MatMul", q, self.op("Transpose", k, perm=perm))
        logits = self.op("Div", logits, self.const(size**0.5, "float32"))
        return self.op("MatMul", self.op("Softmax", logits, axis=-1), v)


@contextmanager
def _writing(spelling: str) -> Iterator[None]:
    writer = type("Spelled", (Writer,), {"spelling": spelling})
    opset = 23 if spelling.startswith("op") else vit_graph.OPSET
    with (
        mock.patch.object(vit_graph, "GraphWriter", writer),
        mock.patch.object(vit_graph, "OPSET", opset),
    ):
        yield


#: Site, score, reducer, tokens kept.
Step = tuple[str, Spec | None, str, int]


@dataclass(frozen=True)
class Taps:
    """Values that a block of the dense model computes.

    Attributes:
        x: [B, N, C], the stream at the site.
        q, k, v: [B, h, N, d], q not scaled.
    """

    x: Array
    q: Array
    k: Array
    v: Array

    @property
    def logits(self) -> Array:
        return np.asarray(self.q @ self.k.swapaxes(2, 3) / np.sqrt(self.q.shape[-1]))

    @property
    def attention(self) -> Array:
        return softmax(self.logits)

    @property
    def context(self) -> Array:
        return np.asarray(self.attention @ self.v)


@cache
def analysed(spec: VitSpec = SPEC, spelling: str = "plain") -> Analysed:
    """A random ViT with a free batch, read."""
    with _writing(spelling), TemporaryDirectory() as folder:
        path = Path(folder) / "vit.onnx"
        onnx.save(build_vit(spec, random_weights(spec), batch=None), str(path))
        return pipeline.read(path)


def images(batch: int, spec: VitSpec = SPEC, seed: int = 0) -> Array:
    shape = (batch, 3, spec.image, spec.image)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def taps(x: Array, site: str, spec: VitSpec = SPEC, spelling: str = "plain") -> Taps:
    """Return what the dense model computes at a site of the kinds attn, block or around."""
    read, block = analysed(spec, spelling), int(site.partition(":")[2])
    where = read.analysis.site(site)
    assert where is not None
    bias = f"blocks.{block}.attn.qkv.bias"
    named = [n for n in read.graph.nodes if bias in [str(t.name) for t in n.inputs]]
    names = [where.tensor, str(named[0].outputs[0].name)]
    stream, qkv = _run(read.graph.copy(), names, x)
    split = qkv.reshape(*qkv.shape[:2], 3, spec.heads, -1).transpose(2, 0, 3, 1, 4)
    return Taps(stream, *split.astype(np.float64))


def schedule(read: Analysed, steps: Sequence[Step]) -> Schedule:
    reductions = (
        Reduction(site, score, Spec(reducer), keep) for site, score, reducer, keep in steps
    )
    return Schedule("custom", read.analysis.shape, tuple(reductions))


def scored(
    score: Spec,
    x: Array,
    site: str = "attn:1",
    *,
    keep: int = 5,
    before: Sequence[Step] = (),
    spec: VitSpec = SPEC,
    spelling: str = "plain",
) -> Array:
    """[B, T] of a score at a site, where `keep` tokens are kept by it.

    Args:
        before: steps (site, score, reducer, keep) that come first.
    """
    return _scored(score, x, site, keep, before, spec, spelling)[0]


def beside(
    score: Spec, x: Array, block: int, before: Sequence[Step], spelling: str = "plain"
) -> tuple[Array, Array]:
    """The same at attn:`block`, and the probabilities [B, h, N, N] that the block itself computes
    in that graph."""
    own = analysed(SPEC, spelling).analysis.blocks[block].attention.node
    found, rows = _scored(score, x, f"attn:{block}", 2, before, SPEC, spelling, own)
    return found, rows.reshape(len(x), SPEC.heads, *rows.shape[-2:])


def _scored(
    score: Spec,
    x: Array,
    site: str,
    keep: int,
    before: Sequence[Step],
    spec: VitSpec,
    spelling: str,
    *nodes: str,
) -> list[Array]:
    read = analysed(spec, spelling)
    reducer = "bypass" if site.startswith("around") else "topk"
    made = reduce_graph(
        read.graph, read.analysis, schedule(read, [*before, (site, score, reducer, keep)])
    ).graph
    scope = f"tcompile/{site.replace(':', '_')}/{reducer}/TcTopKTokens"
    by_name = {n.name: n for n in made.nodes}
    wanted = [by_name[scope].inputs[0], *(by_name[n].outputs[0] for n in nodes)]
    return _run(made, [str(t.name) for t in wanted], x)


def kept(steps: Sequence[Step], x: Array, spec: VitSpec = SPEC) -> Array:
    """[B, K] the original patches that are left at the end."""
    read = analysed(spec)
    made = reduce_graph(read.graph, read.analysis, schedule(read, steps)).graph
    index = _run(made, ["token_index"], x)[0][:, spec.prefix :]
    return np.asarray(np.where(index >= 0, index - spec.prefix, -1))


def _run(graph: Any, names: Sequence[str], x: Array) -> list[Array]:
    tensors = graph.tensors()
    had = [str(o.name) for o in graph.outputs]
    graph.outputs.extend(tensors[n] for n in names if n not in had)
    session = ort.InferenceSession(
        to_onnx(graph).SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(a) for a in session.run(list(names), {session.get_inputs()[0].name: x})]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def cosines(x: Array, y: Array) -> Array:
    """[B, n, m] of [B, n, d] and [B, m, d]."""
    x, y = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, y))
    return np.asarray(x @ y.swapaxes(1, 2))


def close(found: Array, expected: Array) -> None:
    """Equal up to fp32."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
