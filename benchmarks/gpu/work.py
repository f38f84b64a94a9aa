"""The work that is measured: calls of token ops, the bytes and operations each cannot do without,
the aims.

Numpy alone. A piece of work is one call, or a step of a method as a chain of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import starmap
from math import prod

import numpy as np

from benchmarks.gpu.cases import rounded
from tcompile.plugins.ops import find_op
from tcompile.plugins.shapes import evaluate
from tcompile.plugins.spec import Array, TokenOp

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4, "i64": 8}

#: Rows that a call reads of an input that it does not read whole.
_ROWS = {
    "TcGatherTokens": {"x": "K"},
    "TcTakeTokens": {"x": "M", "size": "M", "table": "M"},
    "TcUnmergeTokens": {"x": "K"},
    "TcReturnTokens": {"x": "N-K"},
    "TcFuseTokens": {"x": "T-K", "weight": "T-K"},
    "TcCombineDropTokens": {"x": "K"},
}
#: Rows and columns of the similarities that a call has to compute.
_PAIRS = {
    "TcMatchTokens": ("T-T/2", "T/2", "D"),
    "TcMatchAllTokens": ("T-T/2", "T/2", "D"),
    "TcPartnerTokens": ("M", "N", "D"),
    "TcNearestTokens": ("T", "K", "C"),
}


@dataclass(frozen=True)
class Call:
    """One call of an op; tensors by name in the work's own namespace, in the op's order."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[str, int]

    @property
    def spec(self) -> TokenOp:
        """The op's specification."""
        return find_op(self.op)


@dataclass(frozen=True)
class Aim:
    """Aim: what a figure should reach.

    Attributes:
        share: of the floor's time, at least; None: no such aim.
        microseconds: at most.
        faster: than the rival of that name, at least `times`.
    """

    text: str
    share: float | None = None
    microseconds: float | None = None
    faster: str = ""
    times: float = 0.0


@dataclass(frozen=True)
class Work:
    """Calls in order, and their inputs.

    Attributes:
        name: op or step.
        data: type of the tokens.
        shapes: of the inputs, by name.
        sizes: what the names in the specifications are.
        results: tensors to compare with rivals.
        aim: None where the issue has none.
    """

    name: str
    data: str
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    aim: Aim | None = None

    @property
    def title(self) -> str:
        """For a row of a table."""
        main = max(self.shapes.values(), key=prod)
        numbers = ", ".join(f"{k}={v}" for k, v in self.sizes.items() if k in ("K", "k", "r", "N"))
        return f"{self.name} [{', '.join(map(str, main))}] {self.data}" + (
            f", {numbers}" if numbers else ""
        )

    @property
    def bytes(self) -> int:
        """Bytes that must cross memory: each thing read or written once."""
        return sum(starmap(self._bytes, ((c.spec, c) for c in self.calls)))

    @property
    def flops(self) -> int:
        """Operations of the similarities; the rest is nothing beside the bytes."""
        total = 0
        for call in self.calls:
            if call.op in _PAIRS:
                total += 2 * self.sizes["B"] * prod(self._value(t) for t in _PAIRS[call.op])
        return total

    def floor(self, bandwidth: float, peak: float) -> float:
        """Seconds that no kernel can beat: bytes/s and flop/s of the device."""
        return max(self.bytes / bandwidth, self.flops / peak)

    def inputs(self, seed: int = 0) -> dict[str, tuple[Array, str]]:
        """Name → (values, element type)."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        return {name: self._input(name, shape, rng) for name, shape in self.shapes.items()}

    def _bytes(self, op: TokenOp, call: Call) -> int:
        width = {"data": BYTES[self.data], "table": BYTES[self.data], "f32": 4, "index": 8}
        total = 0
        for tensor in (*op.takes, *op.gives):
            if tensor.name in op.unused:
                continue
            dims = [evaluate(d, {**self.sizes, **call.numbers}) for d in tensor.dims]
            rows = _ROWS.get(op.name, {}).get(tensor.name)
            if rows and tensor in op.takes:
                place = 0 if tensor.kind == "table" else 1
                dims[place] = min(dims[place], self._value(rows))
            total += prod(dims) * width[tensor.kind]
        return total

    def _value(self, text: str) -> int:
        return evaluate(text, self.sizes)

    def _input(
        self, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[Array, str]:
        s = self.sizes
        if name in ("size", "weight"):
            return rng.integers(1, 5, shape).astype(np.float32), "f32"
        if name in ("fixed", "slots"):
            return np.arange(shape[0]), "i64"
        if name == "stay":
            return s["K"] + np.arange(shape[0]), "i64"
        if name == "owner":
            return rng.integers(0, s.get("T", s.get("K", 1)), shape), "i64"
        if name == "slot":
            return rng.integers(0, s["K"], shape), "i64"
        if name == "target":
            return rng.integers(0, s["T"] // 2, shape), "i64"
        if name in ("index", "rows"):
            return self._some(s["T"] if "T" in s else s["N"], shape, rng), "i64"
        if name in ("keep", "source"):
            among = s["T"] if "slot" in self.shapes else s["T"] - s["T"] // 2
            order = np.stack([np.random.default_rng(b).permutation(among) for b in range(shape[0])])
            staying = among - (s["r"] if "slot" not in self.shapes else among - s["K"])
            made = np.sort(order[:, :staying], 1) if name == "keep" else order[:, staying:]
            return made, "i64"
        return rounded(rng.normal(size=shape).astype(np.float32), self.data), self.data

    @staticmethod
    def _some(among: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        return np.sort(np.stack([rng.permutation(among)[: shape[1]] for _ in range(shape[0])]), 1)


def one(op_name: str, data: str, aim: Aim | None = None, **sizes: int) -> Work:
    """A call by itself. `sizes` are the names of the specification, fields among them."""
    op = find_op(op_name)
    known = dict(sizes)
    if "half" in op.fields:
        known |= {"half": known["T"] - known["T"] // 2}
    if op_name in ("TcMatchTokens", "TcMergeTokens"):
        known["rest"] = known["T"] - known["T"] // 2 - known["r"]
    shapes = {t.name: tuple(evaluate(d, known) for d in t.dims) for t in op.takes}
    numbers = {name: known[name] for name in op.fields}
    call = Call(op_name, tuple(shapes), tuple(t.name for t in op.gives), numbers)
    return Work(op_name, data, shapes, known, (call,), call.outputs, aim)


def tome_step(data: str, aim: Aim | None = None, **sizes: int) -> Work:
    """ToMe between attention and MLP: match by the keys' mean over heads [B,T,D], merge x [B,T,C]
    weighted by size."""
    known = dict(sizes)
    T, r = known["T"], known["r"]
    known |= {"half": T - T // 2, "rest": T - T // 2 - r}
    shapes = {
        "metric": (known["B"], T, known["D"]),
        "x": (known["B"], T, known["C"]),
        "size": (known["B"], T),
        "slots": (T // 2,),
    }
    match = Call(
        "TcMatchTokens",
        ("metric",),
        ("keep", "source", "target"),
        {k: known[k] for k in ("r", "half", "rest")},
    )
    merge = Call(
        "TcMergeTokens", ("x", "size", "keep", "source", "target", "slots"), ("y", "new_size"), {}
    )
    return Work("ToMe step", data, shapes, known, (match, merge), ("y", "new_size"), aim)


def evit_step(data: str, aim: Aim | None = None, **sizes: int) -> Work:
    """EViT after attention: keep the K most attended, fuse the rest by their scores."""
    known = {**sizes, "k": sizes["K"]}
    shapes = {
        "scores": (known["B"], known["T"]),
        "x": (known["B"], known["T"], known["C"]),
        "weight": (known["B"], known["T"]),
    }
    calls = (
        Call("TcTopKTokens", ("scores",), ("index",), {"k": known["K"]}),
        Call("TcGatherTokens", ("x", "index"), ("y",), {}),
        Call("TcFuseTokens", ("x", "weight", "index"), ("fused",), {}),
    )
    return Work("EViT step", data, shapes, known, calls, ("y", "fused"), aim)


_COPY = Aim("at least 85 % of the device's copy bandwidth", share=0.85)


def tiny_works(data: str) -> tuple[Work, ...]:
    """The same ops and steps at shapes for a processor."""
    return (
        *_singles({"B": 2, "T": 40, "C": 24}, {"B": 2, "T": 37, "D": 16}, data),
        tome_step(data, B=1, T=33, C=24, D=8, r=6),
        evit_step(data, B=2, T=33, C=24, K=20),
    )


def works() -> tuple[Work, ...]:
    """Everything that is measured, at the issue's shapes and some around them."""
    return (
        *_singles({"B": 8, "T": 4096, "C": 1024}, {"B": 1, "T": 1370, "D": 64}, "f16"),
        one("TcTopKTokens", "f32", Aim("at most 8 µs", microseconds=8), B=1, T=1370, k=685),
        one("TcTopKTokens", "f32", B=8, T=16384, k=8192),
        one("TcGatherTokens", "f16", B=1, T=577, C=1024, K=288),
        one("TcGatherTokens", "f32", _COPY, B=8, T=4096, C=1024, K=2048),
        one("TcGatherTokens", "bf16", B=8, T=4096, C=1023, K=2048),
        one("TcMatchTokens", "f16", B=1, T=577, D=64, r=23),
        tome_step(
            "f16",
            Aim("at least 5 x faster than eager torch", faster="eager", times=5),
            B=1,
            T=577,
            C=1024,
            D=64,
            r=23,
        ),
        tome_step("f16", B=8, T=4096, C=1024, D=64, r=1024),
        evit_step("f16", B=1, T=577, C=1024, K=403),
    )


def _singles(big: Mapping[str, int], small: Mapping[str, int], data: str) -> tuple[Work, ...]:
    """Every op once: moves and merges at `big`, selection and matching at `small`."""
    B, T, C = big["B"], big["T"], big["C"]
    K, r = T // 2, T // 4
    pairs = {"B": B, "T": T, "D": small["D"]}
    match = Aim("at least 60 % of the roofline of its own arithmetic", share=0.6)
    whole = {"B": B, "T": T, "C": C, "K": T - r, "r": r, "N": T}
    return (
        one("TcTopKTokens", data, B=small["B"], T=small["T"], k=small["T"] // 2),
        one("TcSelectTokens", data, B=small["B"], T=small["T"], k=small["T"] // 2, prefix=5),
        one("TcGatherTokens", data, _COPY, B=B, T=T, C=C, K=K),
        one("TcTakeTokens", data, B=B, N=T, C=C, E=small["D"], M=K),
        one("TcUnmergeTokens", data, B=B, K=K, C=C, N=T, k=K),
        one("TcReturnTokens", data, B=B, N=T, C=C, K=K),
        one("TcFuseTokens", data, B=B, T=T, C=C, K=K),
        one("TcPartnerTokens", data, match, B=B, M=T // 2, N=T // 2, D=small["D"]),
        one("TcNearestTokens", data, match, B=B, T=T, C=small["D"], K=K),
        one("TcMatchTokens", data, match, **pairs, r=r),
        one("TcMatchAllTokens", data, match, **pairs),
        one("TcMergeTokens", data, _COPY, B=B, T=T, C=C, r=r),
        one("TcMergeAllTokens", data, _COPY, B=B, T=T, C=C),
        one("TcCombineMeanTokens", data, _COPY, **whole),
        one("TcCombinePlainTokens", data, **whole),
        one("TcCombineMlerpTokens", data, **whole),
        one("TcCombineDropTokens", data, **whole),
    )
