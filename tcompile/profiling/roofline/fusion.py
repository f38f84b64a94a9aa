"""Steps that become one kernel under TensorRT, or one node under ONNX Runtime on a CPU.

The TensorRT part was seen in TensorRT-RTX 1.7.1 plans (docs/roofline.md): products take pointwise
work on their output along; attention is one kernel; everything between them becomes generated
kernels that join pointwise work, data movement and reductions over rows of one length. ONNX Runtime
(1.32) joins little: its known fusions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.steps import Step, Steps, Value
from tcompile.profiling.roofline.times import Attention, fuses
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
        attention: of a fused attention.
    """

    kind: str
    depth: int
    steps: list[Step]
    attention: Attention | None = None

    @property
    def row(self) -> tuple[int, ...] | None:
        """Return the length of the rows that a generated kernel reduces; None where it does not."""
        return next(filter(None, map(_row, self.steps)), None) if self.kind == "generated" else None

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
        return len({self.row, _row(step)} - {None}) <= 1


class _TensorRt:
    """The kernels of some steps, found by going through them once.

    Attributes:
        groups: the kernels, in order.
        group_of: tensor → the kernel that makes it.
        roots: of views: the tensor whose bytes they are.
    """

    def __init__(self, steps: Steps, device: Device) -> None:
        self.groups: list[_Group] = []
        self.group_of: dict[str, _Group] = {}
        self.roots: dict[str, str] = {}
        sizes = {p: _sizes(steps, p) for p in steps.attentions}
        fused = {p[-1]: p for p, size in sizes.items() if fuses(size, device)}
        inside = {position for p in fused.values() for position in p}
        for position, step in enumerate(steps.steps):
            kind = kind_of(step)
            if position in fused:
                places = fused[position]
                self.begin("attention", [steps.steps[p] for p in places], sizes[places])
            elif position in inside:
                continue
            elif kind == "free":
                for value in step.writes if step.reads else ():
                    self.roots[value.name] = self.root(step.reads[0].name)
            elif kind in _TENSORRT:
                self.begin(kind, [step])
            else:
                self.place(step)
        self.outputs = {self.root(name) for name in steps.outputs}
        self.sink()

    def root(self, name: str) -> str:
        return self.roots.get(name, name)

    def inputs(self, steps: Iterable[Step]) -> list[_Group]:
        names = [self.root(value.name) for step in steps for value in step.reads]
        return list(dict.fromkeys(self.group_of[n] for n in names if n in self.group_of))

    def begin(self, kind: str, steps: list[Step], attention: Attention | None = None) -> None:
        depth = 1 + max((g.depth for g in self.inputs(steps)), default=0)
        self.groups.append(_Group(kind, depth, [], attention))
        self.add(self.groups[-1], steps)

    def add(self, group: _Group, steps: Sequence[Step], *, first: bool = False) -> None:
        group.steps[:] = [*steps, *group.steps] if first else [*group.steps, *steps]
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
        if alike and all(g.kind == "generated" for g in deepest):
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
                made, readers = _made(group), self.readers()
                found = {g for n in made for g in readers.get(n, ())} - {group}
                if len(found) == 1 and self.outputs.isdisjoint(made) and (to := found.pop()).open:
                    self.groups.remove(group)
                    self.add(to, group.steps, first=True)

    def readers(self) -> dict[str, set[_Group]]:
        """Return tensor → the kernels that read it."""
        found: dict[str, set[_Group]] = {}
        for group in self.groups:
            for value in (v for step in group.steps for v in step.reads):
                found.setdefault(self.root(value.name), set()).add(group)
        return found


def _made(group: _Group) -> dict[str, Value]:
    return {value.name: value for step in group.steps for value in step.writes}


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
    readers = fusion.readers()
    fused = (g for g in fusion.groups if g.attention is not None)
    operands = {fusion.root(v.name) for g in fused for v in _operands(g)}
    found: list[Work] = []
    for group in fusion.groups:
        made = _made(group)
        out = [v for n, v in made.items() if n in fusion.outputs or readers.get(n, set()) - {group}]
        written = sum(nbytes(v, device) for v in out)
        read = read_bytes(group.steps, made, fusion.roots, device)
        found.extend(_works(group, device, read, written))
        users = {g.kind for v in out for g in readers.get(v.name, ())}
        if group.kind == "generated" and out and users <= {"attention"}:
            # Each operand of a fused attention is laid out by a kernel of its own.
            laid_out = all(v.name in operands for v in out)
            found[-1] = replace(found[-1], launches=len(out) if laid_out else 1)
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
        return [Work("gemm", steps, products=(replace(product_of(first), extra=extra),))]
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
        return [Work("topk", steps, read + written)]
    return [Work(kind_of_steps(steps), steps, read + written, operations=operations(steps))]


#: ONNX Runtime: gone before the model runs.
_GONE = frozenset(["Identity", "Dropout", "Shape", "Size", "Constant", "ConstantOfShape", "Range"])
#: ONNX Runtime: the operators before and behind an Erf that become one `Gelu` with it.
_GELU = ["Div", "Add", "Mul", "Mul"]


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
    if step.op == "MatMul":
        weight = any(v.constant for v in step.reads)
        joins = _is_bias if weight else _scales
        behind = [p for p in islice(_behind(steps, position), 1) if joins(steps.steps[p], step)]
        return behind if weight else [*behind, *_in_front(steps, step)]
    before = steps.makers.get(step.reads[0].name) if step.op == "Erf" else None
    if before is None:
        return []
    others = [before, *islice(_behind(steps, position), 3)]
    return others if [steps.steps[p].op for p in others] == _GELU else []


def _scales(step: Step, _: Step) -> bool:
    """Tell whether a step multiplies by, or divides by, a stored single number."""
    factors = step.reads[1:] if step.op in {"Mul", "Div"} else ()
    return [(v.constant, v.count) for v in factors] == [(True, 1)]


def _is_bias(step: Step, product: Step) -> bool:
    out = product.writes[0]
    others = [v for v in step.reads if v.name != out.name]
    return step.op == "Add" and all(v.constant and v.count == out.shape[-1] for v in others)


def _behind(steps: Steps, position: int) -> Iterator[int]:
    """Yield the position of the sole reader of a step, of that one's sole reader, and so on."""
    while writes := steps.steps[position].writes:
        readers = steps.readers.get(writes[0].name, ())
        if len(readers) != 1 or writes[0].name in steps.outputs:
            return
        position = readers[0]
        yield position


def _in_front(steps: Steps, product: Step) -> Iterator[int]:
    """Yield the scalar factors and transposes that a product of activations reads through."""
    for value in product.reads:
        name = value.name
        while (before := steps.makers.get(name)) is not None:
            step = steps.steps[before]
            joins = _scales(step, product) or (step.op == "Transpose" and swaps_last(step))
            if not joins or len(steps.readers[step.writes[0].name]) != 1:
                break
            yield before
            name = step.reads[0].name


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
    return Work(kind, (step,), moved, operations=operations([step]))
