"""The cases that every body of a token op is tested on: seeded, of all types, with hostile values.

Numpy alone, so that a machine with a GPU and nothing else can run them (benchmarks/gpu).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tcompile.plugins.spec import FLOATS, Array, TokenOp

#: Largest finite value of a type, and a denormal of it.
_LARGEST = {"f32": 1e30, "f16": 65504.0, "bf16": 1e30}
_DENORMAL = {"f32": 1e-41, "f16": 3e-7, "bf16": 1e-40}

#: What numbers a case is made of. `grid`: small whole numbers, so that most scores tie; `basis`:
#: rows that are multiples of a unit vector by powers of two, whose cosines are exact; `one`: all
#: numbers the same.
STYLES = (
    "normal",
    "normal",
    "normal",
    "grid",
    "basis",
    "one",
    "zero",
    "denormal",
    "large",
    "nan",
    "inf",
)


@dataclass(frozen=True)
class Case:
    """A call of an op.

    Attributes:
        inputs: float32 for floats, already rounded to their type, int64 for indices.
        numbers: the attributes.
        types: kind of tensor (`data`, `table`, `f32`, `index`) → element type.
        style: of `STYLES`.
        seed: what it was made from, for messages.
    """

    op: TokenOp
    inputs: tuple[Array, ...]
    numbers: Mapping[str, int]
    types: Mapping[str, str]
    style: str
    seed: tuple[int, int]

    @property
    def finite(self) -> bool:
        """Return whether all numbers are finite: bodies promise no more (0 · Inf, TopK)."""
        return all(np.isfinite(a).all() for a in self.inputs if a.dtype == np.float32)

    @property
    def exact(self) -> bool:
        """Return whether sums of products are the same in any order, so that indices must agree."""
        return self.style in ("basis", "zero")

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, a.shape)) for a in self.inputs)
        kind = "/".join(self.types[k] for k in ("data", "index"))
        return f"{self.op.name} {kind} {self.style} [{shapes}] {dict(self.numbers)} {self.seed}"


def rounded(x: Array, to: str) -> Array:
    """float32 with the nearest numbers of a type, ties to even."""
    with np.errstate(over="ignore"):
        if to == "f16":
            return x.astype(np.float16).astype(np.float32)
    if to == "bf16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(x), x, up.view(np.float32)).astype(np.float32)
    return x.astype(np.float32)


def cases(
    op: TokenOp, count: int, seed: int = 0, types: tuple[str, ...] = FLOATS
) -> Iterator[Case]:
    """`count` cases of an op; the same for the same seed, whatever the count.

    Args:
        types: of the data, in turns.
    """
    for i in range(count):
        yield case(op, (seed, i), types[i % len(types)])


def case(op: TokenOp, seed: tuple[int, int], data: str) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng([*seed, *op.name.encode()])
    style = STYLES[int(rng.integers(len(STYLES)))]
    types = {
        "data": data,
        "table": FLOATS[int(rng.integers(3))],
        "f32": "f32",
        "index": "i32" if rng.random() < 0.25 else "i64",
    }
    sizes = _sizes(op, rng, seed[1])
    made = _Maker(rng, style, types, sizes).inputs(op)
    numbers = {name: sizes[name] for name in op.fields}
    return Case(op, made, numbers, types, style, seed)


def _sizes(op: TokenOp, rng: np.random.Generator, number: int) -> dict[str, int]:
    """Draw a value for every name of a specification: mostly small, now and then at an edge."""
    pairs = any(word in op.name for word in ("Match", "Partner", "Nearest"))
    many = int(rng.choice([8, 40, 40, 40, 150, 200 if pairs else 300]))
    if number % 60 == 59:
        many = int(rng.choice([1100, 1500] if pairs else [2000, 5000, 16384]))
    T = int(rng.integers(4, many + 1)) if number % 60 != 59 else many
    C = int(rng.choice([*range(1, 20), 31, 32, 33, 64, 65, 96, 128, 200]))
    if number % 60 == 59:
        C = int(rng.integers(1, 6))
    if op.name == "TcMatchTokens" and number in (119, 239):
        # As many keys a thread as there can be.
        T, C = 6000 if number == 119 else 10000, 2
    B = int(rng.integers(1, 4)) if T < 1000 else 1
    half, odd = T - T // 2, T // 2
    K = int(rng.choice([1, T, *rng.integers(1, T, 4)]))
    if "Combine" in op.name:
        K = int(rng.integers(1, T))
        r = T - K
    else:
        r = int(rng.choice([1, half - 1, *rng.integers(1, half, 3)]))
    N = int(rng.integers(K, 2 * many)) if T < 1000 else T
    prefix = int(rng.integers(1, 6))
    if "Partner" in op.name:
        N = int(rng.integers(1, many + 1))
    if "Select" in op.name:
        T = min(T, 16384 - prefix)
        K = min(K, T)
    return {
        "B": B,
        "T": T,
        "C": C,
        "K": K,
        "k": K,
        "r": r,
        "half": half,
        "rest": half - r,
        "odd": odd,
        "N": max(N, 1),
        "prefix": prefix,
        "D": C,
        "M": int(rng.integers(1, many + 1)),
        "E": int(rng.integers(1, 70)),
    }


class _Maker:
    """Makes the inputs of a case by their names in the specification."""

    def __init__(
        self,
        rng: np.random.Generator,
        style: str,
        types: Mapping[str, str],
        sizes: Mapping[str, int],
    ) -> None:
        self.rng, self.style, self.types, self.sizes = rng, style, types, sizes

    def inputs(self, op: TokenOp) -> tuple[Array, ...]:
        known = self._indices(op)
        made = []
        for tensor in op.takes:
            if tensor.name in known:
                made.append(known[tensor.name].astype(np.int64))
                continue
            shape = tuple(self.sizes[d] for d in tensor.dims)
            if tensor.name in ("size", "weight"):
                values = self.rng.integers(1, 9, shape).astype(np.float32)
                if tensor.name == "weight":
                    values *= self.rng.random(shape) + 0.5
                made.append(rounded(values, "f32"))
            else:
                made.append(self._floats(shape, self.types[tensor.kind], op))
        return tuple(made)

    def _indices(self, op: TokenOp) -> dict[str, Array]:
        s, rng = self.sizes, self.rng

        def some(n: int, k: int) -> Array:
            """[B, k] different numbers below n, ascending."""
            return np.sort([rng.permutation(n)[:k] for _ in range(s["B"])], 1)

        name = op.name
        if "Select" in name:
            return {"fixed": np.arange(s["prefix"])}
        if "Gather" in name:
            index = rng.integers(0, s["T"], (s["B"], s["K"]))
            return {"index": np.where(rng.random(index.shape) < 0.1, index - s["T"], index)}
        if "Take" in name:
            return {"rows": rng.integers(0, s["N"], (s["B"], s["M"]))}
        if "Unmerge" in name:
            return {"owner": rng.integers(-1, s["K"], (s["B"], s["N"]))}
        if "Return" in name:
            index = np.stack([rng.permutation(s["N"])[: s["K"]] for _ in range(s["B"])])
            return {"index": index, "slots": np.arange(s["K"]), "stay": s["K"] + np.arange(s["N"])}
        if "Fuse" in name or "Nearest" in name:
            return {"index": some(s["T"], s["K"]), "slots": np.arange(s["K"])}
        if "MergeAll" in name:
            target = rng.integers(0, s["odd"], (s["B"], s["half"]))
            return {"target": target, "slots": np.arange(s["odd"])}
        if "Merge" in name:
            order = np.stack([rng.permutation(s["half"]) for _ in range(s["B"])])
            return {
                "keep": np.sort(order[:, s["r"] :], 1),
                "source": order[:, : s["r"]],
                "target": self._into(s["odd"]),
                "slots": np.arange(s["odd"]),
            }
        if "Combine" in name:
            order = np.stack([rng.permutation(s["T"]) for _ in range(s["B"])])
            return {
                "keep": np.sort(order[:, : s["K"]], 1),
                "source": order[:, s["K"] :],
                "slot": self._into(s["K"]),
                "owner": rng.integers(-1, s["T"], (s["B"], s["N"])),
                "slots": np.arange(s["K"]),
            }
        return {}

    def _into(self, slots: int) -> Array:
        """[B, r] targets: spread, or all of them the same few."""
        few = slots if self.rng.random() < 0.7 else min(slots, 2)
        return self.rng.integers(0, few, (self.sizes["B"], self.sizes["r"]))

    def _floats(self, shape: tuple[int, ...], to: str, op: TokenOp) -> Array:
        rng, style = self.rng, self.style
        x = rng.normal(size=shape)
        if style == "grid":
            x = rng.integers(-2, 3, shape).astype(float)
        elif style == "basis":
            x = np.zeros(shape)
            if shape[-1] > 0:
                place = rng.integers(0, shape[-1], shape[:-1])
                power = rng.choice([-4.0, -1, -0.5, 0, 0.5, 1, 2, 8], shape[:-1])
                np.put_along_axis(x, place[..., None], power[..., None], -1)
        elif style == "one":
            x = np.full(shape, rng.choice([-3.0, 0.1, 1, 7]))
        elif style == "zero":
            x = np.where(rng.random(shape) < 0.5, 0.0, -0.0)
        elif style == "denormal":
            x *= _DENORMAL[to]
        elif style == "large":
            x = rng.choice([-1.0, 1.0, 0.5], shape) * _LARGEST[to]
        if "Mlerp" in op.name and style not in ("one", "zero"):
            # Opposite tokens have no direction between them that rounding could not turn.
            x = np.abs(x)
        if style in ("nan", "inf"):
            strange = np.asarray([np.nan] if style == "nan" else [np.inf, -np.inf])
            hit = rng.random(shape) < rng.choice([0.02, 0.3])
            x = np.where(hit, rng.choice(strange, shape), x)
        return rounded(x.astype(np.float32), to)
