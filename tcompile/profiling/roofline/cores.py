"""Attention spelled out, found among steps: MatMul → [scale, mask, cast] → Softmax → MatMul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tcompile.profiling.roofline.attention import Attention
from tcompile.profiling.roofline.kinds import ATTENTION
from tcompile.profiling.roofline.products import attention_of
from tcompile.profiling.roofline.steps import Steps, Value

_BEFORE = frozenset(["Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape"])
_AFTER = frozenset(["Where", "Cast", "Identity", "Dropout", "Reshape"])


@dataclass(frozen=True)
class Core:
    """One attention: positions of its steps, its sizes, and its Q, K and V by name."""

    positions: tuple[int, ...]
    sizes: Attention
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Links:
    """Who makes and who reads each tensor: positions of steps."""

    maker: Mapping[str, int]
    readers: Mapping[str, Sequence[int]]


def links_of(steps: Steps) -> Links:
    """The makers and readers of all tensors."""
    maker: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for position, step in enumerate(steps.steps):
        for value in step.writes:
            maker[value.name] = position
        for value in step.reads:
            readers.setdefault(value.name, []).append(position)
    return Links(maker, readers)


def cores_of(steps: Steps, links: Links) -> list[Core]:
    """The attentions that nothing else looks into: a second reader of the scores or of the
    probabilities keeps TensorRT from fusing them (FACTS B.5)."""
    found = []
    for position, step in enumerate(steps.steps):
        if step.op in ATTENTION and len(step.reads) >= 3:
            operands = tuple(v.name for v in step.reads[:3])
            found.append(Core((position,), attention_of(step), operands))
        elif step.op == "Softmax":
            core = _spelled_out(steps, links, position)
            if core is not None:
                found.append(core)
    return found


def _spelled_out(steps: Steps, links: Links, position: int) -> Core | None:
    before = _back(steps, links, steps.steps[position].reads[0])
    after = _forward(steps, links, steps.steps[position].writes[0])
    if before is None or after is None:
        return None
    scores, mixed = steps.steps[before[-1]], steps.steps[after[-1]]
    shape = scores.writes[0].shape
    if len(shape) < 2:
        return None
    sizes = Attention(1, prod(shape[:-2]), shape[-2], shape[-1], scores.reads[0].shape[-1])
    operands = (scores.reads[0].name, scores.reads[1].name, mixed.reads[1].name)
    return Core((*reversed(before), position, *after), sizes, operands)


def _back(steps: Steps, links: Links, value: Value) -> list[int] | None:
    """Positions from what feeds the softmax back to the product."""
    if not _only_once(steps, links, value) or value.name not in links.maker:
        return None
    position = links.maker[value.name]
    step = steps.steps[position]
    if step.op == "MatMul":
        return None if any(v.constant for v in step.reads) else [position]
    if step.op not in _BEFORE:
        return None
    for read in step.reads:
        if read.count == value.count and not read.constant:
            further = _back(steps, links, read)
            if further is not None:
                return [position, *further]
    return None


def _forward(steps: Steps, links: Links, value: Value) -> list[int] | None:
    """Positions from what reads the probabilities to the product with V."""
    if not _only_once(steps, links, value):
        return None
    position = links.readers[value.name][0]
    step = steps.steps[position]
    if step.op == "MatMul":
        plain = step.reads[0].name == value.name and not step.reads[1].constant
        return [position] if plain else None
    if step.op not in _AFTER:
        return None
    further = _forward(steps, links, step.writes[0])
    return None if further is None else [position, *further]


def _only_once(steps: Steps, links: Links, value: Value) -> bool:
    return len(links.readers.get(value.name, ())) == 1 and value.name not in steps.outputs
