"""Op kinds and their traits: properties of an ONNX op that hold in every graph.

A trait is a property that several passes ask for, such as "gives values that it was given". It is
written here once; a set of ops in another file is one of these sets, or is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto


class Trait(Flag):
    """Properties of an op kind.

    Attributes:
        NONE: an op that is known and has none of these traits.
        ELEMENTWISE: computes each element of the result from one of its first input.
        BROADCASTS: computes each element of the result from one of every input, broadcast.
        MOVES: gives values that its first input (a Concat: every input) holds.
        RESHAPES: gives the same elements in the same order under other dims.
        REARRANGES: gives each element of its input once, perhaps in another type.
        PASSES: keeps shape and meaning; the values at most lose precision.
        REDUCES: computes one number from those along some axes.
        SPATIAL: looks at the neighbours of a position: convolution, pooling, resizing.
        PRODUCT: sums products of two inputs along an axis.
        COMPARES: holds two numbers against each other.
        CALCULATES: reads a number as a value, not as a size or a position.
        READS_SHAPE: depends on the shape of its input only.
    """

    NONE = 0
    ELEMENTWISE = auto()
    BROADCASTS = auto()
    MOVES = auto()
    RESHAPES = auto()
    REARRANGES = auto()
    PASSES = auto()
    REDUCES = auto()
    SPATIAL = auto()
    PRODUCT = auto()
    COMPARES = auto()
    CALCULATES = auto()
    READS_SHAPE = auto()


_ROWS: tuple[tuple[Trait, str], ...] = (
    (
        Trait.ELEMENTWISE,
        "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
        "HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
        "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Dropout",
    ),
    (Trait.ELEMENTWISE | Trait.CALCULATES, "Clip"),
    (Trait.ELEMENTWISE | Trait.PASSES, "QuantizeLinear DequantizeLinear"),
    (Trait.ELEMENTWISE | Trait.PASSES | Trait.REARRANGES, "Cast"),
    (Trait.ELEMENTWISE | Trait.PASSES | Trait.REARRANGES | Trait.MOVES, "Identity"),
    (Trait.BROADCASTS, "And BitwiseAnd BitwiseOr BitwiseXor Or Xor"),
    (Trait.BROADCASTS | Trait.CALCULATES, "Add Div Max Mean Min Mod Mul PRelu Pow Sub Sum Where"),
    (
        Trait.BROADCASTS | Trait.CALCULATES | Trait.COMPARES,
        "Equal Greater GreaterOrEqual Less LessOrEqual",
    ),
    (Trait.MOVES | Trait.RESHAPES | Trait.REARRANGES, "Reshape Flatten Squeeze Unsqueeze"),
    (Trait.MOVES | Trait.REARRANGES, "Transpose"),
    (Trait.REARRANGES, "SpaceToDepth DepthToSpace"),
    (Trait.MOVES, "Expand Tile Slice Split Gather GatherElements GatherND Concat"),
    (
        Trait.REDUCES,
        "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
        "ReduceMin ReduceProd ReduceSum ReduceSumSquare",
    ),
    (Trait.SPATIAL, "Conv MaxPool AveragePool GlobalAveragePool GlobalMaxPool Resize LpPool"),
    (Trait.PRODUCT | Trait.CALCULATES, "MatMul Gemm"),
    (Trait.PRODUCT, "Einsum"),
    (Trait.CALCULATES, "Attention"),
    (Trait.READS_SHAPE, "Shape Size"),
    (
        Trait.NONE,
        "BatchNormalization ConstantOfShape CumSum GroupNormalization InstanceNormalization LRN "
        "LayerNormalization LogSoftmax LpNormalization Pad RMSNormalization ScatterElements "
        "ScatterND SimplifiedLayerNormalization Softmax TopK",
    ),
)

#: Op kind → its traits.
TRAITS: Mapping[str, Trait] = {op: trait for trait, ops in _ROWS for op in ops.split()}


def ops_with(trait: Trait) -> frozenset[str]:
    """The op kinds that have a trait."""
    return frozenset(op for op, traits in TRAITS.items() if trait in traits)


ELEMENTWISE = ops_with(Trait.ELEMENTWISE)
BROADCASTS = ops_with(Trait.BROADCASTS)
MOVES = ops_with(Trait.MOVES)
RESHAPES = ops_with(Trait.RESHAPES)
REARRANGES = ops_with(Trait.REARRANGES)
PASSES = ops_with(Trait.PASSES)
REDUCES = ops_with(Trait.REDUCES)
SPATIAL = ops_with(Trait.SPATIAL)
PRODUCTS = ops_with(Trait.PRODUCT)
COMPARES = ops_with(Trait.COMPARES)
CALCULATES = ops_with(Trait.CALCULATES)
READS_SHAPE = ops_with(Trait.READS_SHAPE)
