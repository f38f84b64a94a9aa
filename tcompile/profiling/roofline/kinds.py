"""Which operators do what kind of work."""

from __future__ import annotations

from tcompile.profiling.roofline.steps import Step, Value

#: Nothing is moved: another view of the same bytes, or a value known when compiling.
FREE = frozenset(
    [
        "Reshape",
        "Identity",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Dropout",
        "Shape",
        "Size",
        "Constant",
        "ConstantOfShape",
        "QuantizeLinear",
        "DequantizeLinear",
        "Range",
    ]
)
PRODUCTS = frozenset(["MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "Einsum"])
ATTENTION = frozenset(("Attention", "MultiHeadAttention"))
MOVES = frozenset(
    [
        "Transpose",
        "Slice",
        "Split",
        "Concat",
        "Gather",
        "GatherElements",
        "GatherND",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Pad",
        "Tile",
        "Expand",
        "OneHot",
        "EyeLike",
    ]
)
#: Those that read only what they write.
PICKS = frozenset(["Slice", "Split", "Gather", "GatherElements", "GatherND"])
SCATTERS = frozenset(("Scatter", "ScatterElements", "ScatterND"))
NORMS = frozenset(
    [
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "Softmax",
        "LogSoftmax",
        "LpNormalization",
    ]
)
REDUCTIONS = frozenset(
    [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSumExp",
        "ArgMax",
        "ArgMin",
        "CumSum",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Resize",
    ]
)


def kind_of(step: Step) -> str:
    """free, gemm, attention, topk, norm, reduce, gather or pointwise."""
    if step.op in FREE or not step.writes:
        return "free"
    if step.op == "Transpose" and keeps_order(step):
        return "free"
    if step.op in PRODUCTS:
        return "gemm"
    if step.op in ATTENTION:
        return "attention"
    if step.op == "TopK":
        # With k = 1 it is an ArgMax.
        return "reduce" if step.writes[0].shape[-1:] == (1,) else "topk"
    if step.op in NORMS:
        return "norm"
    if step.op in REDUCTIONS:
        return "reduce"
    return "gather" if step.op in MOVES else "pointwise"


def keeps_order(step: Step) -> bool:
    """Whether a Transpose only moves axes of size 1: the bytes stay where they are."""
    shape = step.reads[0].shape
    perm = step.attributes.get("perm") or list(reversed(range(len(shape))))
    long = [int(p) for p in perm if shape[int(p)] != 1]
    return long == sorted(long)


def swaps_last(step: Step) -> bool:
    """Whether a Transpose swaps the last two axes and nothing else: a product does that itself."""
    rank = len(step.reads[0].shape)
    perm = [int(p) for p in step.attributes.get("perm") or reversed(range(rank))]
    return rank >= 2 and perm == [*range(rank - 2), rank - 1, rank - 2]


def scalar(value: Value) -> bool:
    """Whether it is a stored single number."""
    return value.constant and value.count == 1
