"""Which steps become one node under ONNX Runtime on a CPU: few; its known fusions, no others."""

from __future__ import annotations

from dataclasses import replace

from tcompile.profiling.roofline.cores import Links, links_of
from tcompile.profiling.roofline.device import Device
from tcompile.profiling.roofline.kinds import kind_of, scalar, swaps_last
from tcompile.profiling.roofline.pieces import Piece, nbytes, operations, read_bytes
from tcompile.profiling.roofline.products import attention_of, product_of, unfused
from tcompile.profiling.roofline.steps import Step, Steps, Value

#: Gone before the model runs.
_GONE = frozenset(["Identity", "Dropout", "Shape", "Size", "Constant", "ConstantOfShape", "Range"])


def cpu_pieces(steps: Steps, device: Device) -> list[Piece]:
    """The nodes of a graph after ONNX Runtime's optimiser (1.32).

    Fused: a stored bias into the product before it, which becomes a `Gemm` with a `Reshape` on
    either side; a scalar factor or a transpose of the last two axes into a product of two
    activations; Div → Erf → Add → Mul → Mul into `Gelu`.
    """
    links = links_of(steps)
    fused = _fused(steps, links)
    found = []
    for position, step in enumerate(steps.steps):
        if position in fused or step.op in _GONE or not step.writes:
            continue
        found.append(_piece(step, device))
    return found


def _fused(steps: Steps, links: Links) -> set[int]:
    found: set[int] = set()
    for position, step in enumerate(steps.steps):
        if step.op == "MatMul":
            found |= _around_product(steps, links, step)
        elif step.op == "Erf":
            found |= _gelu(steps, links, position)
    return found


def _around_product(steps: Steps, links: Links, step: Step) -> set[int]:
    after = _only_reader(steps, links, step.writes[0])
    if any(v.constant for v in step.reads):
        if after is not None and steps.steps[after].op == "Add":
            others = [v for v in steps.steps[after].reads if v.name != step.writes[0].name]
            if all(v.constant and v.count == step.writes[0].shape[-1] for v in others):
                return {after}
        return set()
    found: set[int] = set()
    if after is not None and _scales(steps.steps[after]):
        found.add(after)
    for value in step.reads:
        before = links.maker.get(value.name)
        while before is not None and len(links.readers[steps.steps[before].writes[0].name]) == 1:
            maker = steps.steps[before]
            if not _scales(maker) and not (maker.op == "Transpose" and swaps_last(maker)):
                break
            found.add(before)
            before = links.maker.get(maker.reads[0].name)
    return found


def _scales(step: Step) -> bool:
    return step.op in {"Mul", "Div"} and len(step.reads) == 2 and scalar(step.reads[1])


def _gelu(steps: Steps, links: Links, position: int) -> set[int]:
    """The Div before an Erf, and the Add and two Mul after it; the Erf stands for all."""
    before = links.maker.get(steps.steps[position].reads[0].name)
    if before is None or steps.steps[before].op != "Div":
        return set()
    found, at = {before}, position
    for op in ("Add", "Mul", "Mul"):
        after = _only_reader(steps, links, steps.steps[at].writes[0])
        if after is None or steps.steps[after].op != op:
            return set()
        found.add(after)
        at = after
    return found


def _only_reader(steps: Steps, links: Links, value: Value) -> int | None:
    readers = links.readers.get(value.name, ())
    return readers[0] if len(readers) == 1 and value.name not in steps.outputs else None


def _piece(step: Step, device: Device) -> Piece:
    kind = kind_of(step)
    written = sum(nbytes(v, device) for v in step.writes)
    if kind == "gemm":
        flattened = step.op == "MatMul" and step.reads[1].constant and len(step.reads[0].shape) > 2
        return Piece("gemm", (step,), launches=3 if flattened else 1, products=(product_of(step),))
    if kind == "attention":
        sizes = attention_of(step)
        scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys * device.itemsize
        return Piece("attention", (step,), 2 * scores, products=unfused(sizes))
    if kind == "free":
        return Piece("view", (step,))
    read = read_bytes([step], (), {}, device)
    piece = Piece(kind, (step,), read + written, operations=operations([step]))
    if kind == "topk":
        length = step.reads[0].shape[-1]
        return replace(piece, sort=(step.reads[0].count // max(1, length), length))
    return piece
