"""Which steps become one kernel under TensorRT, and which one node under ONNX Runtime on a CPU.

The TensorRT part was seen in TensorRT-RTX 1.7.1 plans (docs/roofline.md): products take pointwise
work on their output along; attention is one kernel; everything between them becomes generated
kernels that join pointwise work, data movement and reductions over rows of one length. ONNX Runtime
(1.32) joins little: its known fusions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from tcompile.profiling.roofline.attention import Attention, fuses
from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.steps import Step, Steps, Value
from tcompile.profiling.roofline.work import (
    SCATTERS,
    Work,
    attention_of,
    kind_of,
    kind_of_steps,
    nbytes,
    operations,
    product_of,
    read_bytes,
    scalar,
    sorted_rows,
    swaps_last,
    unfused,
)

#: TensorRT: kind of a kernel → kinds of work behind it that it takes along. What is not named here
#: begins a generated kernel.
_TENSORRT = {
    "gemm": frozenset(["pointwise"]),
    "attention": frozenset[str](),
    "topk": frozenset[str](),
    "generated": frozenset(["pointwise", "gather", "norm", "reduce"]),
}


@dataclass(eq=False)
class _Group:
    """A kernel in the making. A step joins one whose depth is that of its deepest input, so that
    no kernel ever waits for itself.

    Attributes:
        row: length of the rows that it reduces; None where it reduces nothing.
        attention: of a fused attention.
    """

    kind: str
    depth: int
    steps: list[Step]
    row: tuple[int, ...] | None = None
    attention: Attention | None = None

    @property
    def open(self) -> bool:
        """Movement, pointwise work and reductions may join it."""
        return self.kind == "generated" and self.steps[0].op not in SCATTERS

    def takes(self, step: Step) -> bool:
        """Tell whether a step becomes a part of this kernel."""
        if self.kind == "gemm" and step.writes[0].count != self.steps[0].writes[0].count:
            return False
        if step.op in SCATTERS or kind_of(step) not in _TENSORRT[self.kind]:
            return False
        return None in (self.row, _row(step)) or self.row == _row(step)


class _TensorRt:
    """Goes through the steps once."""

    def __init__(self, steps: Steps, device: Device) -> None:
        self.steps, self.device = steps, device
        self.groups: list[_Group] = []
        self.group_of: dict[str, _Group] = {}  # by root name
        self.roots: dict[str, str] = {}  # of views: the tensor whose bytes they are

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    def run(self) -> list[_Group]:
        sizes = {p: _sizes(self.steps, p) for p in self.steps.attentions}
        fused = {p[-1]: p for p, size in sizes.items() if fuses(size, self.device)}
        inside = {position for p in fused.values() for position in p}
        for position, step in enumerate(self.steps.steps):
            kind = kind_of(step)
            if position in fused:
                places = fused[position]
                self.begin("attention", [self.steps.steps[p] for p in places], sizes[places])
            elif position in inside:
                continue
            elif kind == "free":
                for value in step.writes if step.reads else ():
                    self.roots[value.name] = self.root(step.reads[0].name)
            elif kind in _TENSORRT:
                self.begin(kind, [step])
            else:
                self.place(step)
        self.sink()
        return self.groups

    def inputs(self, steps: Iterable[Step]) -> list[_Group]:
        names = [self.root(value.name) for step in steps for value in step.reads]
        return list(dict.fromkeys(self.group_of[n] for n in names if n in self.group_of))

    def begin(self, kind: str, steps: list[Step], attention: Attention | None = None) -> None:
        depth = 1 + max((g.depth for g in self.inputs(steps)), default=0)
        group = _Group(kind, depth, [], attention=attention)
        self.groups.append(group)
        self.add(group, steps)

    def add(self, group: _Group, steps: Sequence[Step], *, first: bool = False) -> None:
        group.steps[:] = [*steps, *group.steps] if first else [*group.steps, *steps]
        if group.kind == "generated":
            group.row = group.row or next((r for r in map(_row, steps) if r is not None), None)
        self.group_of.update({v.name: group for step in steps for v in step.writes})

    def place(self, step: Step) -> None:
        """Join the deepest kernel among the inputs, or begin a new one."""
        inputs = self.inputs([step])
        depth = max((g.depth for g in inputs), default=0)
        deepest = [g for g in inputs if g.depth == depth]
        if deepest and deepest[0].kind == "attention" and step.op == "Transpose":
            # The attention kernel writes [B, N, h, d] as well.
            self.roots[step.writes[0].name] = self.root(step.reads[0].name)
            return
        alike = len({g.row for g in deepest} - {None}) <= 1
        if len(deepest) > 1 and alike and all(g.kind == "generated" for g in deepest):
            for other in deepest[1:]:
                self.groups.remove(other)
                self.add(deepest[0], other.steps)
            del deepest[1:]
        if len(deepest) == 1 and deepest[0].takes(step):
            self.add(deepest[0], [step])
        else:
            self.begin("generated", [step])

    def sink(self) -> None:
        """Do movement and pointwise work that one later generated kernel alone reads there."""
        for group in reversed(list(self.groups)):
            if group.open and not group.row:
                readers = self.readers(group)
                if len(readers) == 1 and readers[0].open:
                    self.groups.remove(group)
                    self.add(readers[0], group.steps, first=True)

    def readers(self, group: _Group) -> list[_Group]:
        """Return the other kernels that read a kernel's results; none where the model gives one."""
        made = {v.name for s in group.steps for v in s.writes}
        if any(self.root(name) in made for name in self.steps.outputs):
            return []
        return [
            g
            for g in self.groups
            if g is not group and any(self.root(v.name) in made for s in g.steps for v in s.reads)
        ]


def _row(step: Step) -> tuple[int, ...] | None:
    """Return how long the rows are that a step reduces: kernels share one walk over rows of a
    length. None: it reduces nothing."""
    if kind_of(step) not in {"norm", "reduce"}:
        return None
    given, result = step.reads[0].shape, step.writes[0].shape
    if result == given:
        return given[-1:]
    return tuple(sorted(set(given) - set(result))) or given[-1:]


def _sizes(steps: Steps, positions: tuple[int, ...]) -> Attention:
    first = steps.steps[positions[0]]
    if len(positions) == 1:
        return attention_of(first)
    *heads, queries, keys = first.writes[0].shape
    return Attention(1, prod(heads), queries, keys, first.reads[0].shape[-1])


def tensorrt_kernels(steps: Steps, device: Device) -> list[Work]:
    """Return the kernels of a graph on a GPU."""
    fusion = _TensorRt(steps, device)
    groups = fusion.run()
    outputs = {fusion.root(name) for name in steps.outputs}
    readers: dict[str, set[_Group]] = {}
    for group in groups:
        for step in group.steps:
            for value in step.reads:
                readers.setdefault(fusion.root(value.name), set()).add(group)
    fused = {g for g in groups if g.attention is not None}
    operands = {fusion.root(v.name) for g in fused for v in _operands(g)}
    attentions = {g for g in groups if g.kind == "attention"}
    found: list[Work] = []
    for group in groups:
        made = {v.name: v for s in group.steps for v in s.writes}
        out = [v for n, v in made.items() if n in outputs or readers.get(n, set()) - {group}]
        written = sum(nbytes(v, device) for v in out)
        read = read_bytes(group.steps, made, fusion.roots, device)
        found.extend(_works(group, device, read, written))
        if group.kind == "generated" and out:
            # Each operand of a fused attention is laid out by a kernel of its own.
            only = all(v.name in operands and readers.get(v.name, set()) <= attentions for v in out)
            found[-1] = replace(found[-1], launches=len(out) if only else 1)
    return found


def _operands(group: _Group) -> tuple[Value, ...]:
    """Return Q, K and V of a fused attention."""
    first, last = group.steps[0], group.steps[-1]
    return first.reads[:3] if first is last else (*first.reads[:2], last.reads[1])


def _works(group: _Group, device: Device, read: int, written: int) -> list[Work]:
    steps = tuple(group.steps)
    first = steps[0]
    if group.kind == "gemm":
        extra = max(0, read - sum(nbytes(v, device) for v in first.reads[:2]))
        return [Work("gemm", steps, products=(product_of(first, extra=extra),))]
    if group.attention is not None:
        sizes = group.attention
        operands = (2 * sizes.keys + sizes.queries) * sizes.size * sizes.batch * sizes.heads
        extra = max(0, read - operands * device.itemsize)
        return [Work("attention", steps, attention=replace(sizes, extra=extra))]
    if group.kind == "attention":
        # An Attention node without a fused kernel: product, softmax, product.
        sizes = attention_of(first)
        scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys
        before, after = (Work("gemm", steps, products=(p,)) for p in unfused(sizes))
        moved = 2 * scores * device.itemsize
        return [before, Work("norm", steps, moved, operations=10 * scores), after]
    if group.kind == "topk":
        return [Work("topk", steps, read + written, sort=sorted_rows(first))]
    return [Work(kind_of_steps(steps), steps, read + written, operations=operations(steps))]


#: ONNX Runtime: gone before the model runs.
_GONE = frozenset(["Identity", "Dropout", "Shape", "Size", "Constant", "ConstantOfShape", "Range"])


def _scales(step: Step, _: Step) -> bool:
    return step.op in {"Mul", "Div"} and len(step.reads) == 2 and scalar(step.reads[1])


def _is_bias(step: Step, product: Step) -> bool:
    out = product.writes[0]
    others = [v for v in step.reads if v.name != out.name]
    return step.op == "Add" and all(v.constant and v.count == out.shape[-1] for v in others)


def _is(op: str) -> Callable[[Step, Step], bool]:
    return lambda step, _: step.op == op


#: ONNX Runtime: what a node is → what behind it becomes part of it, one after another.
_ONNX_RUNTIME = {
    "product with a weight": (_is_bias,),
    "product of activations": (_scales,),
    "Erf": (_is("Add"), _is("Mul"), _is("Mul")),
}


def onnxruntime_nodes(steps: Steps, device: Device) -> list[Work]:
    """Return the nodes of a graph after ONNX Runtime's optimiser, on a CPU.

    Fused: a stored bias into the product before it, which becomes a `Gemm` with a `Reshape` on
    either side; a scalar factor or a transpose of the last two axes into a product of two
    activations; Div → Erf → Add → Mul → Mul into `Gelu`.
    """
    inside = {p for position in range(len(steps.steps)) for p in _absorbed(steps, position)}
    return [
        _node(step, device)
        for position, step in enumerate(steps.steps)
        if position not in inside and step.op not in _GONE and step.writes
    ]


def _absorbed(steps: Steps, position: int) -> list[int]:
    """Return the positions of the steps that become part of the node at a position."""
    step = steps.steps[position]
    if step.op not in {"MatMul", "Erf"}:
        return []
    weight = any(v.constant for v in step.reads)
    product = "product with a weight" if weight else "product of activations"
    tests = _ONNX_RUNTIME[product if step.op == "MatMul" else step.op]
    behind = _behind(steps, position, tests)
    if step.op == "Erf":
        before = steps.makers.get(step.reads[0].name)
        whole = before is not None and steps.steps[before].op == "Div" and len(behind) == len(tests)
        return [before, *behind] if before is not None and whole else []
    return behind if weight else [*behind, *_in_front(steps, step)]


def _behind(
    steps: Steps, position: int, tests: Sequence[Callable[[Step, Step], bool]]
) -> list[int]:
    """Return sole readers, one after another, as far as they pass the tests."""
    found, at = list[int](), steps.steps[position]
    for test in tests:
        name = at.writes[0].name
        readers = steps.readers.get(name, ())
        if len(readers) != 1 or name in steps.outputs or not test(steps.steps[readers[0]], at):
            break
        found.append(readers[0])
        at = steps.steps[readers[0]]
    return found


def _in_front(steps: Steps, product: Step) -> list[int]:
    """Return the scalar factors and transposes that a product of activations reads through."""
    found = []
    for value in product.reads:
        before = steps.makers.get(value.name)
        while before is not None:
            step = steps.steps[before]
            joins = _scales(step, product) or (step.op == "Transpose" and swaps_last(step))
            if not joins or len(steps.readers[step.writes[0].name]) != 1:
                break
            found.append(before)
            before = steps.makers.get(step.reads[0].name)
    return found


def _node(step: Step, device: Device) -> Work:
    kind = kind_of(step)
    if kind == "gemm":
        flattened = step.op == "MatMul" and step.reads[1].constant and len(step.reads[0].shape) > 2
        return Work("gemm", (step,), launches=3 if flattened else 1, products=(product_of(step),))
    if kind == "attention":
        sizes = attention_of(step)
        scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys * device.itemsize
        return Work("attention", (step,), 2 * scores, products=unfused(sizes))
    if kind == "free":
        return Work("view", (step,))
    moved = read_bytes([step], (), {}, device) + sum(nbytes(v, device) for v in step.writes)
    sort = sorted_rows(step) if kind == "topk" else None
    return Work(kind, (step,), moved, operations=operations([step]), sort=sort)
