"""Which steps become one kernel under TensorRT.

Seen in TensorRT-RTX 1.7.1 plans (docs/roofline.md): products take pointwise work on their output
along; attention is one kernel; everything between them becomes generated kernels that join
pointwise work, data movement and one reduction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tcompile.profiling.roofline.attention import Attention, fuses
from tcompile.profiling.roofline.cores import Core, cores_of, links_of
from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.kinds import SCATTERS, kind_of
from tcompile.profiling.roofline.pieces import Piece, kind_of_steps, nbytes, operations, read_bytes
from tcompile.profiling.roofline.products import attention_of, product_of, unfused
from tcompile.profiling.roofline.steps import Step, Steps, Value


@dataclass
class _Group:
    """A kernel in the making. A step joins one whose depth is that of its deepest input, so that
    no kernel ever waits for itself."""

    kind: str
    depth: int
    steps: list[Step] = field(default_factory=list)
    reduces: tuple[int, ...] | None = None
    core: Core | None = None
    out: int = 0

    @property
    def generated(self) -> bool:
        return self.kind == "generated"


class _Fusion:
    """Goes through the steps once."""

    def __init__(self, steps: Steps, device: Device) -> None:
        self.steps, self.device = steps, device
        self.groups: list[_Group] = []
        self.group_of: dict[str, _Group] = {}  # by root name
        self.roots: dict[str, str] = {}
        links = links_of(steps)
        cores = [c for c in cores_of(steps, links) if fuses(c.sizes, device)]
        self.core_of = {p: c for c in cores for p in c.positions}

    def root(self, value: Value) -> str:
        return self.roots.get(value.name, value.name)

    def run(self) -> list[_Group]:
        for position, step in enumerate(self.steps.steps):
            kind = kind_of(step)
            core = self.core_of.get(position)
            if core is not None:
                if position == core.positions[-1]:
                    self.open("attention", [self.steps.steps[p] for p in core.positions], core)
            elif kind == "free":
                for value in step.writes:
                    if step.reads:
                        self.roots[value.name] = self.root(step.reads[0])
            elif kind in {"gemm", "attention", "topk"}:
                self.open(kind, [step])
            else:
                self.place(step, kind)
        return self.sunk()

    def inputs(self, steps: Iterable[Step]) -> list[_Group]:
        found: dict[int, _Group] = {}
        for step in steps:
            for value in step.reads:
                group = self.group_of.get(self.root(value))
                if group is not None:
                    found[id(group)] = group
        return list(found.values())

    def open(self, kind: str, steps: list[Step], core: Core | None = None) -> None:
        depth = 1 + max((g.depth for g in self.inputs(steps)), default=0)
        group = _Group(kind, depth, steps, core=core, out=steps[-1].writes[0].count)
        self.groups.append(group)
        self.mark(group, steps)

    def mark(self, group: _Group, steps: Iterable[Step]) -> None:
        for step in steps:
            for value in step.writes:
                self.group_of[value.name] = group

    def place(self, step: Step, kind: str) -> None:
        """Join the deepest kernel among the inputs, or begin a new one."""
        inputs = self.inputs([step])
        depth = max((g.depth for g in inputs), default=0)
        deepest = [g for g in inputs if g.depth == depth]
        chosen = deepest[0] if deepest else None
        if chosen is not None and chosen.kind == "attention" and step.op == "Transpose":
            # The attention kernel writes [B, N, h, d] as well.
            self.roots[step.writes[0].name] = self.root(step.reads[0])
            return
        if chosen is not None and len(deepest) == 1 and self.joins(chosen, step, kind):
            self.join(chosen, step, kind)
        elif len(deepest) > 1 and all(g.generated for g in deepest) and self.mergeable(deepest):
            for other in deepest[1:]:
                self.merge(other, deepest[0])
            self.place(step, kind)
        else:
            self.open("generated", [step])
            self.groups[-1].reduces = _row(step) if kind in {"norm", "reduce"} else None

    def joins(self, group: _Group, step: Step, kind: str) -> bool:
        if group.kind == "gemm":
            return kind == "pointwise" and step.writes[0].count == group.out
        if not group.generated or step.op in SCATTERS:
            return False
        return kind not in {"norm", "reduce"} or group.reduces in {None, _row(step)}

    def mergeable(self, groups: list[_Group]) -> bool:
        return len({g.reduces for g in groups} - {None}) <= 1

    def join(self, group: _Group, step: Step, kind: str) -> None:
        group.steps.append(step)
        if kind in {"norm", "reduce"}:
            group.reduces = _row(step)
        self.mark(group, [step])

    def merge(self, source: _Group, target: _Group) -> None:
        target.steps.extend(source.steps)
        target.reduces = target.reduces or source.reduces
        self.mark(target, source.steps)
        self.groups = [g for g in self.groups if g is not source]

    def sunk(self) -> list[_Group]:
        """Movement and pointwise work that one later generated kernel alone reads is done there."""
        for group in reversed(list(self.groups)):
            if not group.generated or group.reduces or group.steps[0].op in SCATTERS:
                continue
            readers = self.readers(group)
            if (
                len(readers) == 1
                and readers[0].generated
                and readers[0].steps[0].op not in SCATTERS
            ):
                readers[0].steps[:0] = group.steps
                self.mark(readers[0], group.steps)
                self.groups = [g for g in self.groups if g is not group]
        return self.groups

    def readers(self, group: _Group) -> list[_Group]:
        """Other kernels that read a kernel's results; itself, where the model gives one out."""
        made = {v.name for s in group.steps for v in s.writes}
        if any(self.roots.get(name, name) in made for name in self.steps.outputs):
            return [group, group]
        found = {
            id(g): g
            for g in self.groups
            for s in g.steps
            for v in s.reads
            if self.root(v) in made and g is not group
        }
        return list(found.values())


def _row(step: Step) -> tuple[int, ...]:
    """How long the rows are that a step reduces: kernels share one walk over rows of a length."""
    given = step.reads[0].shape
    if step.writes[0].shape == given:
        return given[-1:]
    return tuple(sorted(set(given) - set(step.writes[0].shape))) or given[-1:]


def gpu_pieces(steps: Steps, device: Device) -> list[Piece]:
    """The kernels of a graph."""
    fusion = _Fusion(steps, device)
    groups = fusion.run()
    given = {fusion.roots.get(name, name) for name in steps.outputs}
    read_by: dict[str, set[int]] = {}
    for group in groups:
        for step in group.steps:
            for value in step.reads:
                read_by.setdefault(fusion.root(value), set()).add(id(group))
    operands = {fusion.roots.get(n, n) for g in groups if g.core for n in g.core.operands}
    attentions = {id(g) for g in groups if g.kind == "attention"}
    found: list[Piece] = []
    for group in groups:
        made = {v.name: v for s in group.steps for v in s.writes}
        out = [v for n, v in made.items() if n in given or read_by.get(n, set()) - {id(group)}]
        written = sum(nbytes(v, device) for v in out)
        read = read_bytes(group.steps, made, fusion.roots, device)
        found.extend(_pieces(group, device, read, written))
        if group.generated and out:
            # Each operand of a fused attention is laid out by a kernel of its own.
            only = all(v.name in operands and read_by.get(v.name, set()) <= attentions for v in out)
            found[-1] = replace(found[-1], launches=len(out) if only else 1)
    return found


def _pieces(group: _Group, device: Device, read: int, written: int) -> list[Piece]:
    steps = tuple(group.steps)
    if group.kind == "gemm":
        first = steps[0]
        operands = sum(nbytes(v, device) for v in first.reads[:2])
        product = product_of(first, extra=max(0, read - operands))
        return [Piece("gemm", steps, products=(product,))]
    if group.kind == "attention":
        sizes = group.core.sizes if group.core else attention_of(steps[0])
        if group.core:
            operands = (2 * sizes.keys + sizes.queries) * sizes.size * sizes.batch * sizes.heads
            extra = max(0, read - operands * device.itemsize)
            return [Piece("attention", steps, attention=replace(sizes, extra=extra))]
        return _spelled(steps, sizes, device)
    if group.kind == "topk":
        shape = steps[0].reads[0].shape
        rows = steps[0].reads[0].count // max(1, shape[-1])
        return [Piece("topk", steps, read + written, sort=(rows, shape[-1]))]
    return [Piece(kind_of_steps(steps), steps, read + written, operations=operations(steps))]


def _spelled(steps: tuple[Step, ...], sizes: Attention, device: Device) -> list[Piece]:
    """An Attention node without a fused kernel: product, softmax, product."""
    scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys
    first, second = unfused(sizes)
    softmax = Piece("norm", steps, 2 * scores * device.itemsize, operations=10 * scores)
    return [
        Piece("gemm", steps, products=(first,)),
        softmax,
        Piece("gemm", steps, products=(second,)),
    ]
