"""The `--shape` options that settle the free dims of a file, read off the file and tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

import onnx

from tcompile.core.graph import BATCH
from tcompile.core.op_traits import ELEMENTWISE
from tcompile.passes.normalize.bind_shapes import Shapes

Fits = Callable[[Shapes], bool]

#: Sides and lengths that people use, for a file that names none itself.
_SIDES = (224, 256, 384, 336, 448, 512, 518)
_LENGTHS = (77, 64, 128)
#: Axes of images.
_RANK = 4
#: Rows of a table of positions at most; a vocabulary has more.
_LONGEST = 1024
#: Ops whose stored operand is a weight, and no table.
_PRODUCTS = {"MatMul", "Gemm", "Conv"}
#: Tokens before the patches that a table of positions may have rows for.
_PREFIX = 6
_MOST_TRIED = 16
_KEEPS = ELEMENTWISE | {"Add", "Sub", "Mul", "Div", "Pad", "Slice", "Clip", "Cast", "Identity"}
_KEEPS |= {"QuantizeLinear", "DequantizeLinear", "BatchNormalization", "InstanceNormalization"}


@dataclass(frozen=True)
class _Image:
    """An input as the first convolution sees it.

    Attributes:
        channels: their number, and the axis of the input that they lie along.
        rows, columns: axes of the input.
        patch: height and width of what one token is made of.
        width: channels of a token.
        resized: height and width that the file itself resizes images to.
    """

    channels: tuple[int, int]
    rows: int
    columns: int
    patch: tuple[int, int]
    width: int
    resized: tuple[int, int] | None


def shape_options(model: onnx.ModelProto, fits: Fits, *, batch: int | None = None) -> str:
    """Return the options that settle what is free in the model; empty where none is found.

    Args:
        fits: tells whether the model can be read with such shapes.
        batch: for the first dims; None: they stay free.
    """
    for shapes in islice(_candidates(model, batch), _MOST_TRIED):
        if not shapes or fits(shapes):
            return " ".join(f"--shape {n}={','.join(map(str, d))}" for n, d in shapes.items())
    return ""


def _candidates(model: onnx.ModelProto, batch: int | None) -> Iterator[dict[str, list[int | str]]]:
    """Shapes of every input that has something free, the likeliest first."""
    initialised = {t.name for t in model.graph.initializer}
    stored = {name: tuple(t.dims) for name, t in _values(model).items()}
    products = [n for n in model.graph.node if n.op_type in _PRODUCTS]
    weights = {name for n in products for name in n.input}
    tables = {n: d for n, d in stored.items() if n not in weights}
    free: dict[str, list[list[int | str]]] = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        shape = value.type.tensor_type.shape
        dims = [_dim(d) for d in shape.dim]
        first = dims[0] if dims and dims[0] is not None else _name(shape)
        literal = [d for d in dims[1:] if isinstance(d, int)]
        if len(literal) < len(dims[1:]):
            free[value.name] = list(_of_input(model, value.name, first, dims, stored, tables))
        elif dims and not isinstance(dims[0], int) and batch is not None:
            free[value.name] = [[batch, *literal]]
    for found in product(*free.values()):
        shapes = dict(zip(free, found, strict=True))
        if batch is not None:
            for of_one in shapes.values():
                of_one[0] = of_one[0] if isinstance(of_one[0], int) else batch
        yield shapes


def _of_input(
    model: onnx.ModelProto,
    name: str,
    first: int | str,
    dims: Sequence[int | None],
    stored: Mapping[str, tuple[int, ...]],
    tables: Mapping[str, tuple[int, ...]],
) -> Iterator[list[int | str]]:
    """Dims of one input, the likeliest first.

    Args:
        first: the first one, a name where it stays free.
        stored: dims of all that is stored.
        tables: dims of what is stored and may be a table of positions.
    """
    image = _image(model, name, len(dims), stored)
    if len(dims) != _RANK:
        lengths = sorted(n for n in _tables(tables) if n <= _LONGEST)
        frames = [1] if len(dims) > _RANK else []
        for length in dict.fromkeys((*frames, *lengths, *_LENGTHS)):
            yield [first, *(length if d is None else d for d in dims[1:])]
        return
    if image is None:
        last = dims[3] in (1, 3, 4)
        image = _Image((3, 3 if last else 1), 1 if last else 2, 2 if last else 3, (1, 1), 0, None)
    for height, width in dict.fromkeys(_sides(image, dims, tables)):
        sizes = {image.channels[1]: image.channels[0], image.rows: height, image.columns: width}
        yield [first if i == 0 else sizes.get(i, 1) if d is None else d for i, d in enumerate(dims)]


def _sides(
    image: _Image, dims: Sequence[int | None], tables: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[int, int]]:
    """Heights and widths, the likeliest first."""
    down, across = image.patch
    height, width = dims[image.rows], dims[image.columns]
    if image.resized is not None:
        yield image.resized
    for count in _tables(tables, image.width):
        for patches in range(count, max(count - _PREFIX, 0), -1):
            if height is not None and height % down == 0 and patches % max(height // down, 1) == 0:
                yield height, patches // (height // down) * across
            elif (
                width is not None and width % across == 0 and patches % max(width // across, 1) == 0
            ):
                yield patches // (width // across) * down, width
            elif math.isqrt(patches) ** 2 == patches and patches > 1:
                yield math.isqrt(patches) * down, math.isqrt(patches) * across
    for dims_ in tables.values():
        if len(dims_) == 4 and dims_[0] == 1 and image.width in dims_[1:]:
            grid = dims_[2:] if dims_[1] == image.width else dims_[1:3]
            if min(grid) > 1 and max(grid) <= 2 * min(grid):
                yield grid[0] * down, grid[1] * across
    for side in _SIDES:
        if side % down == 0 and side % across == 0:
            yield height or side, width or side
    if height is None and width is None:
        for count in _tables(tables, image.width)[:2]:
            for patches in (count - 1, count):
                yield from ((h * down, w * across) for h, w in _oblong(patches))


def _oblong(count: int) -> list[tuple[int, int]]:
    """Grids of so many patches at most twice as long as wide, the squarest first."""
    rows = [h for h in range(2, math.isqrt(max(count, 1)) + 1) if count % h == 0]
    return [(h, count // h) for h in reversed(rows) if count // h <= 2 * h]


def _tables(tables: Mapping[str, tuple[int, ...]], width: int | None = None) -> list[int]:
    """Rows of what may be tables of positions: [N, C] or [1, N, C]; long ones first."""
    found = []
    for dims in tables.values():
        rows = dims[1:] if len(dims) == 3 and dims[0] == 1 else dims
        if len(rows) == 2 and rows[0] > 1 and (width is None or rows[1] == width):
            found.append(rows[0])
    return sorted(set(found), reverse=True)


def _values(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Everything stored, initialisers and constants."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _name(shape: onnx.TensorShapeProto) -> str:
    """The name of a free first dim."""
    name = shape.dim[0].dim_param if shape.dim else ""
    return name if name.isidentifier() else BATCH


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """A dim that is a number, also one that is written as a text of digits."""
    if dim.dim_param.isdigit():
        return int(dim.dim_param)
    return dim.dim_value if dim.dim_value > 0 else None


def _image(
    model: onnx.ModelProto, name: str, rank: int, stored: Mapping[str, tuple[int, ...]]
) -> _Image | None:
    """Follow an input to its first convolution over two axes; None where it does not meet one."""
    known, values = dict(stored), _values(model)
    makers = {out: node for node in model.graph.node for out in node.output}
    axes: dict[str, tuple[int, ...]] = {name: tuple(range(rank))}
    sizes: dict[str, tuple[int, int] | None] = {name: None}
    for node in model.graph.node:
        source = next((n for n in node.input if n in axes), None)
        if source is None:
            # A weight may be cast or scaled from how it is stored.
            if node.input and node.input[0] in known and node.op_type in _KEEPS:
                known[node.output[0]] = known[node.input[0]]
            continue
        order = axes[source]
        if node.op_type == "Conv" and len(order) == 4:
            weight = known.get(node.input[1])
            if weight is None or len(weight) != 4:
                return None
            told = {a.name: a for a in node.attribute}
            group = told["group"].i if "group" in told else 1
            steps = tuple(told["strides"].ints) if "strides" in told else (1, 1)
            return _Image(
                (weight[1] * group, order[1]),
                order[2],
                order[3],
                (steps[0], steps[1]),
                weight[0],
                sizes[source],
            )
        if node.op_type == "Transpose" and node.attribute:
            axes[node.output[0]] = tuple(order[i] for i in node.attribute[0].ints)
        elif node.op_type in _KEEPS or node.op_type in ("Resize", "Upsample"):
            axes[node.output[0]] = order
        else:
            continue
        sizes[node.output[0]] = _resized(node, values, makers) or sizes[source]
    return None


def _resized(
    node: onnx.NodeProto,
    values: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> tuple[int, int] | None:
    """The rows and columns that a Resize of [B, C, H, W] is told to make."""
    if node.op_type != "Resize" or len(node.input) < 4:
        return None
    told, maker = values.get(node.input[3]), makers.get(node.input[3])
    if told is None and maker is not None and maker.op_type == "Concat":
        told = values.get(maker.input[-1])  # behind the first dims of the image
    if told is None or told.data_location == onnx.TensorProto.EXTERNAL:
        return None
    sizes = [int(v) for v in onnx.numpy_helper.to_array(told).reshape(-1)]
    return (sizes[-2], sizes[-1]) if len(sizes) in (2, 4) else None
