"""What a kernel is made of, and the bytes that go in and out of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tcompile.profiling.roofline.attention import Attention
from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.gemm import Product
from tcompile.profiling.roofline.kinds import PICKS, SCATTERS, kind_of
from tcompile.profiling.roofline.steps import Step, Value


@dataclass(frozen=True)
class Piece:
    """One kernel, or one node on a CPU.

    Attributes:
        kind: gemm, attention, norm, pointwise, gather, topk, reduce or view.
        steps: what it computes.
        moved: bytes of activations in and out, operands of products not among them.
        launches: how many kernels (nodes) it really is.
        operations: FLOPs outside matrix products.
        products: its matrix products, one after the other.
        attention: set for a fused attention.
        sort: rows and their length, of a TopK.
    """

    kind: str
    steps: tuple[Step, ...]
    moved: int = 0
    launches: int = 1
    operations: int = 0
    products: tuple[Product, ...] = ()
    attention: Attention | None = None
    sort: tuple[int, int] | None = None


def nbytes(value: Value, device: Device) -> int:
    """Bytes of a tensor on the device; integers are 32 bits wide on a GPU, 64 on a CPU."""
    if value.floating:
        return value.count * device.itemsize
    wide = 8 if device.cpu and value.itemsize == 4 else value.itemsize
    return value.count * wide


def read_bytes(
    steps: Sequence[Step], made: Iterable[str], roots: Mapping[str, str], device: Device
) -> int:
    """Bytes that steps read from outside: each tensor once, of a picked one only what is picked."""
    inside = set(made)
    full: dict[str, int] = {}
    picked: dict[str, int] = {}
    for step in steps:
        for position, value in enumerate(step.reads):
            root = roots.get(value.name, value.name)
            if root in inside or (value.constant and value.count <= 16):
                continue
            size = nbytes(value, device)
            if position == 0 and step.op in PICKS:
                taken = sum(nbytes(v, device) for v in step.writes)
                picked[root] = min(size, picked.get(root, 0) + taken)
            else:
                full[root] = max(full.get(root, 0), size)
    return sum(full.values()) + sum(size for root, size in picked.items() if root not in full)


def operations(steps: Iterable[Step]) -> int:
    """FLOPs of elementwise work: 4 an element, 10 in a norm, 16 in Erf, Gelu, Exp and the like."""
    total = 0
    for step in steps:
        kind = kind_of(step)
        if kind == "pointwise":
            each = 16 if step.op in _SLOW else 4
        else:
            each = {"norm": 10, "reduce": 2}.get(kind, 0)
        values = step.reads if kind == "reduce" else step.writes
        total += each * max((v.count for v in values), default=0)
    return total


_SLOW = frozenset(
    [
        "Erf",
        "Gelu",
        "Exp",
        "Log",
        "Tanh",
        "Sigmoid",
        "Sin",
        "Cos",
        "Pow",
        "QuickGelu",
        "Softplus",
        "Mish",
    ]
)


def kind_of_steps(steps: Sequence[Step]) -> str:
    """What a generated kernel is called after: the most telling of its steps."""
    kinds = [kind_of(s) for s in steps]
    for kind in ("norm", "reduce", "gather", "pointwise"):
        if kind in kinds:
            if kind == "gather" and any(s.op in SCATTERS for s in steps):
                return "scatter"
            return kind
    return "view"
