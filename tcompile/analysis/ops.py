"""The op table: all that the analysis knows of each op kind, in one row.

Four functions describe an op: how axes go through it (`transfer`), which axes it mixes positions
along (`mixes`), what it needs once its inputs carry fewer tokens (`effect`), and how a value that
grows with the number of tokens passes through it (`counts`). Its traits, which hold in every graph,
are in `core.op_traits`. An op without a row is opaque: no site upstream of it is legal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.analysis import count_rules as count
from tcompile.analysis import effect_rules as effect
from tcompile.analysis import mixes
from tcompile.analysis import transfer as axes
from tcompile.analysis import transfer_grid as grid
from tcompile.analysis import transfer_picks as picked
from tcompile.analysis.count_rules import CountRule
from tcompile.analysis.effect_rules import EffectRule
from tcompile.analysis.mixes import Mixes
from tcompile.analysis.transfer import Transfer
from tcompile.core.errors import InternalError
from tcompile.core.graph import is_standard
from tcompile.core.op_traits import TRAITS, Trait


@dataclass(frozen=True)
class Op:
    """One op kind."""

    traits: Trait
    transfer: Transfer
    mixes: Mixes
    effect: EffectRule
    counts: CountRule


#: (op kinds, transfer, mixed axes, effect, counts).
_ROWS: tuple[tuple[str, Transfer, Mixes, EffectRule, CountRule], ...] = (
    # Every position by itself.
    (
        "Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
        "HardSwish Log Mish Round Selu Sigmoid Sin Sinh Softplus Softsign Swish Tan Tanh "
        "ThresholdedRelu",
        *(axes.same, mixes.apart, effect.nothing, count.opaque),
    ),
    (
        "Abs Cast Dropout Identity LeakyRelu Neg Relu QuantizeLinear DequantizeLinear",
        *(axes.same, mixes.apart, effect.nothing, count.linear),
    ),
    ("IsInf IsNaN Not Sign", axes.same, mixes.apart, effect.nothing, count.forgets),
    ("Clip", axes.same, mixes.apart, effect.nothing, count.clipped),
    ("Reciprocal", axes.same, mixes.apart, effect.nothing, count.reciprocal),
    ("Sqrt", axes.same, mixes.apart, effect.nothing, count.root),
    # Broadcasting.
    ("Add Max Mean Min Sub Sum Where", axes.broadcast, mixes.apart, effect.nothing, count.combined),
    ("Mul Div", axes.broadcast, mixes.apart, effect.nothing, count.product),
    ("Pow", axes.broadcast, mixes.apart, effect.nothing, count.raised),
    ("PRelu", axes.broadcast, mixes.apart, effect.nothing, count.linear),
    (
        "BitwiseAnd BitwiseOr BitwiseXor Mod",
        *(axes.broadcast, mixes.apart, effect.nothing, count.opaque),
    ),
    (
        "And Equal Greater GreaterOrEqual Less LessOrEqual Or Xor",
        *(axes.broadcast, mixes.apart, effect.nothing, count.forgets),
    ),
    # Other dims, other places.
    ("Flatten Squeeze Unsqueeze", axes.reshape, mixes.apart, effect.nothing, count.linear),
    ("Reshape", axes.reshape, mixes.apart, effect.set_shape, count.linear),
    ("Transpose", axes.transpose, mixes.apart, effect.nothing, count.linear),
    ("Expand", axes.expand, mixes.apart, effect.set_shape, count.linear),
    ("Tile", axes.expand, mixes.apart, effect.tile, count.linear),
    ("Slice", axes.slice_, mixes.slice_, effect.slice_, count.linear),
    ("Split", axes.split, mixes.along_first, effect.split, count.linear),
    ("Gather", axes.gather, mixes.gather, effect.gather, count.linear),
    # By computed indices.
    ("TopK", picked.top_k, mixes.along_last, effect.picks, count.opaque),
    ("GatherElements", picked.gather_elements, mixes.along_first, effect.picks, count.opaque),
    ("GatherND", picked.gather_nd, mixes.everything, effect.picks, count.opaque),
    ("ScatterElements", picked.scatter_elements, mixes.along_first, effect.picks, count.opaque),
    ("ScatterND", picked.scatter_nd, mixes.everything, effect.picks, count.opaque),
    ("Concat", axes.concat, mixes.along_first, effect.nothing, count.combined),
    ("Pad", grid.pad, mixes.apart, effect.pad, count.linear),
    (
        "SpaceToDepth DepthToSpace",
        *(grid.blocks_to_depth, mixes.per_image, effect.grid, count.linear),
    ),
    # Sums and the like along an axis.
    ("MatMul", axes.matmul, mixes.product, effect.contract, count.weighted),
    ("Gemm", axes.gemm, mixes.product, effect.contract, count.weighted),
    ("Einsum", axes.einsum, mixes.einsum, effect.einsum, count.weighted),
    ("Attention", axes.attention, mixes.attention, effect.attention, count.opaque),
    ("Softmax", axes.normalise, mixes.along_last, effect.softmax, count.chances),
    ("LogSoftmax", axes.normalise, mixes.along_last, effect.along, count.chances),
    ("LpNormalization", axes.normalise, mixes.along_last, effect.along, count.forgets),
    (
        "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
        *(axes.normalise, mixes.trailing, effect.normalise, count.forgets),
    ),
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare",
        *(axes.reduce, mixes.reduced, effect.reduce, count.reduced),
    ),
    ("ArgMax ArgMin", axes.reduce, mixes.along_first, effect.reduce, count.forgets),
    ("CumSum", axes.same, mixes.cumsum, effect.cumsum, count.linear),
    # The grid and the channels.
    ("Conv", grid.spatial, mixes.per_image, effect.spatial, count.weighted),
    (
        "AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool Resize",
        *(grid.spatial, mixes.per_image, effect.spatial, count.linear),
    ),
    ("BatchNormalization", axes.same, mixes.apart, effect.channelwise, count.affine),
    ("InstanceNormalization", axes.same, mixes.per_image, effect.channelwise, count.forgets),
    ("GroupNormalization LRN", axes.same, mixes.per_image, effect.channelwise, count.opaque),
    # Shapes.
    ("ConstantOfShape", axes.expand, mixes.everything, effect.unsupported, count.forgets),
    ("Shape Size", axes.untold, mixes.everything, effect.unsupported, count.forgets),
)


def _table() -> Mapping[str, Op]:
    found: dict[str, Op] = {}
    for names, transfer, mixed, rule, counts in _ROWS:
        for name in names.split():
            if name in found or name not in TRAITS:
                raise InternalError(f"the op '{name}' has two rows, or a row and no traits")
            found[name] = Op(TRAITS[name], transfer, mixed, rule, counts)
    return found


#: Op kind → its description.
OPS = _table()


def op_of(node: gs.Node) -> Op | None:
    """The description of a node's op; None for one that tcompile does not know."""
    return OPS.get(node.op) if is_standard(node) else None


def mixed_axes(node: gs.Node, operand: int) -> list[int]:
    """The axes of an operand that the node mixes or picks positions along; all where unknown."""
    op = OPS.get(node.op)
    return (mixes.everything if op is None else op.mixes)(node, operand)
