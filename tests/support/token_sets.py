"""Tiny ViTs whose tokens are no plain patches of one image, written straight into ONNX.

Files that drop, merge, shuffle or permute tokens themselves, cameras on an axis of their own, two
images in one stream, prompts, learned keys. All take an image of 32 × 32 in patches of 8 (16 of
them), have a width of 32, four blocks, and a class from the first token or the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tcompile.models.onnx_vit import GraphWriter, VitSpec, patch_tokens, random_weights

SPEC = VitSpec(depth=4)
WIDTH, PATCHES, HEADS = SPEC.width, SPEC.patches, SPEC.heads


class Writer(GraphWriter):
    """Parts of the models below; tensors are [B, tokens, width]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(dict(random_weights(SPEC, seed)))
        self.rng = np.random.default_rng(seed + 1)
        self.inputs: dict[str, list[int | str]] = {}

    def image(self, name: str = "image", shape: list[int | str] | None = None) -> str:
        self.inputs[name] = shape or [1, 3, SPEC.image, SPEC.image]
        return name

    def drawn(self, *shape: int) -> str:
        return self.const(0.3 * self.rng.standard_normal(shape), "float32")

    def patches(self, image: str) -> str:
        return self.op("Add", patch_tokens(self, SPEC, image), self.drawn(1, PATCHES, WIDTH))

    def after(self, fixed: str, tokens: str) -> str:
        return self.op("Concat", fixed, tokens, axis=1)

    def rows(self, x: str, first: int, last: int) -> str:
        return self.op("Slice", x, self.const([first]), self.const([last]), self.const([1]))

    def blocks(self, x: str, tokens: int, first: int = 0, last: int = SPEC.depth) -> str:
        for i in range(first, last):
            x = self.block(x, f"blocks.{i}", tokens, WIDTH, HEADS)
        return x

    def layer_norm_of(self, x: str, width: int) -> str:
        return self.op("LayerNormalization", x, self.drawn(width), self.drawn(width), axis=-1)

    def closed(self, x: str, pool: str = "cls", rows: int | str = 1) -> onnx.ModelProto:
        """The model, with `logits` from the first token or the mean of all."""
        normed = self.layer_norm(x, "norm")
        if pool == "cls":
            pooled = self.op("Gather", normed, self.const(0), axis=1)
        else:
            pooled = self.op("ReduceMean", normed, axes=[1], keepdims=0)
        return self.finished({"logits": self.linear(pooled, "head")}, [rows, SPEC.classes])

    def finished(self, outputs: Mapping[str, str], shape: list[Any] | None) -> onnx.ModelProto:
        for name, tensor in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"out_{name}"))
        graph = helper.make_graph(
            self.nodes,
            "vit",
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
                for n, s in self.inputs.items()
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.initializers.items()],
        )
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model

    def picked(self, x: str, index: str, count: int) -> str:
        """Rows of x [1, N, C] at index [1, count]."""
        wide = self.op(
            "Expand", self.op("Unsqueeze", index, self.const([2])), self.const([1, count, WIDTH])
        )
        return self.op("GatherElements", x, wide, axis=1)

    def scores(self, cls: str, tokens: str) -> str:
        """[1, N]: products with the CLS token."""
        return self.op("ReduceSum", self.op("Mul", tokens, cls), self.const([2]), keepdims=0)


def drops(how: str = "elements") -> onnx.ModelProto:
    """Half of the patches go after block 1, by TopK over products with CLS (EViT)."""
    w = Writer()
    x = w.blocks(w.after(w.drawn(1, 1, WIDTH), w.patches(w.image())), 17, 0, 2)
    cls, tokens = w.rows(x, 0, 1), w.rows(x, 1, 17)
    index = w.op("TopK", w.scores(cls, tokens), w.const([8]), outputs=2, axis=-1) + ".1"
    if how == "elements":
        kept = w.picked(tokens, index, 8)
    elif how == "nd":
        pairs = w.op("Unsqueeze", index, w.const([2]))
        kept = w.op("GatherND", tokens, pairs, batch_dims=1)
    else:
        flat = w.op("Squeeze", tokens, w.const([0]))
        kept = w.op("Gather", flat, index, axis=0)
    return w.closed(w.blocks(w.after(cls, kept), 9, 2, 4))


def drops_often() -> onnx.ModelProto:
    """A quarter of the patches goes before each block but the first."""
    w = Writer()
    x = w.after(w.drawn(1, 1, WIDTH), w.patches(w.image()))
    for i, n in enumerate((16, 12, 9, 6)):
        if i:
            cls, tokens = w.rows(x, 0, 1), w.rows(x, 1, 100)
            index = w.op("TopK", w.scores(cls, tokens), w.const([n]), outputs=2, axis=-1) + ".1"
            x = w.after(cls, w.picked(tokens, index, n))
        x = w.blocks(x, n + 1, i, i + 1)
    return w.closed(x)


def merges() -> onnx.ModelProto:
    """Four pairs of patches become one each after block 1 (ToMe)."""
    w = Writer()
    x = w.blocks(w.patches(w.image()), 16, 0, 2)
    step = [w.const([2])]
    even = w.op("Slice", x, w.const([0]), w.const([16]), w.const([1]), *step)
    odd = w.op("Slice", x, w.const([1]), w.const([16]), w.const([1]), *step)
    alike = w.op("MatMul", even, w.op("Transpose", odd, perm=[0, 2, 1]))
    best, target = (
        w.op("ReduceMax", alike, axes=[2], keepdims=0),
        w.op("ArgMax", alike, axis=2, keepdims=0),
    )
    order = w.op("TopK", best, w.const([8]), outputs=2, axis=-1) + ".1"
    ends = [(0, 4), (4, 8)]
    source, rest = (w.op("Slice", order, w.const([a]), w.const([b]), w.const([1])) for a, b in ends)
    into = w.op("GatherElements", target, source, axis=1)
    wide = w.op("Expand", w.op("Unsqueeze", into, w.const([2])), w.const([1, 4, WIDTH]))
    moved = w.picked(even, source, 4)
    summed = w.op("ScatterElements", odd, wide, moved, axis=1, reduction="add")
    return w.closed(w.blocks(w.after(w.picked(even, rest, 4), summed), 12, 2, 4), "mean")


def shuffles(pool: str = "mean") -> onnx.ModelProto:
    """A quarter of the patches is encoded, in the order of a second input, and put back among
    stored ones (ViTMAE)."""
    w = Writer()
    tokens = w.patches(w.image())
    w.inputs["noise"] = [1, PATCHES]
    order = w.op("TopK", "noise", w.const([16]), outputs=2, axis=-1, largest=0) + ".1"
    back = (
        w.op(
            "TopK",
            w.op("Cast", order, to=TensorProto.FLOAT),
            w.const([16]),
            outputs=2,
            axis=-1,
            largest=0,
        )
        + ".1"
    )
    seen = w.op("Slice", order, w.const([0]), w.const([4]), w.const([1]))
    x = w.blocks(w.after(w.drawn(1, 1, WIDTH), w.picked(tokens, seen, 4)), 5, 0, 2)
    full = w.after(w.rows(x, 1, 5), w.drawn(1, 12, WIDTH))
    y = w.after(w.rows(x, 0, 1), w.op("Add", w.picked(full, back, 16), w.drawn(1, 16, WIDTH)))
    return w.closed(w.blocks(y, 17, 2, 4), pool)


def batch_of(count: int) -> onnx.ModelProto:
    """The encoder of `cameras` for a plain batch of images: a class of each."""
    w = Writer()
    size = [count, 3, SPEC.image, SPEC.image]
    flat = w.op("Reshape", w.image("images", [*size]), w.const(size))
    x = w.patches(flat)
    cls = w.op("Expand", w.drawn(1, 1, WIDTH), w.const([count, 1, WIDTH]))
    x = w.layer_norm(w.blocks(w.after(cls, x), PATCHES + 1), "norm")
    pooled = w.op("Gather", x, w.const(0), axis=1)
    return w.finished({"logits": w.linear(pooled, "head")}, [count, SPEC.classes])


def fuses() -> onnx.ModelProto:
    """Half of the patches go on, and the mean of the others as one token (EViT)."""
    w = Writer()
    x = w.blocks(w.after(w.drawn(1, 1, WIDTH), w.patches(w.image())), 17, 0, 2)
    cls, tokens = w.rows(x, 0, 1), w.rows(x, 1, 17)
    order = w.op("TopK", w.scores(cls, tokens), w.const([16]), outputs=2, axis=-1) + ".1"
    halves = [w.op("Slice", order, w.const([a]), w.const([a + 8]), w.const([1])) for a in (0, 8)]
    best, others = (w.picked(tokens, half, 8) for half in halves)
    fused = w.op("ReduceMean", others, axes=[1], keepdims=1)
    return w.closed(w.blocks(w.op("Concat", cls, best, fused, axis=1), 10, 2, 4))


def sorts(skip: bool = False) -> onnx.ModelProto:
    """All patches in the order of a score, after block 1.

    Args:
        skip: added to what they were before.
    """
    w = Writer()
    x = w.blocks(w.patches(w.image()), PATCHES, 0, 2)
    score = w.op("ReduceMean", x, axes=[2], keepdims=0)
    index = w.op("TopK", score, w.const([PATCHES]), outputs=2, axis=-1) + ".1"
    y = w.picked(x, index, PATCHES)
    return w.closed(w.blocks(w.op("Add", x, y) if skip else y, PATCHES, 2, 4), "mean")


def reordered() -> onnx.ModelProto:
    """All patches in a stored order, after block 1: the columns of the grid are its rows."""
    w = Writer()
    x = w.blocks(w.patches(w.image()), PATCHES, 0, 2)
    order = np.arange(PATCHES).reshape(4, 4).T.reshape(-1)
    x = w.op("Gather", x, w.const(order), axis=1)
    return w.closed(w.blocks(x, PATCHES, 2, 4), "mean")


def free_cameras(count: int = 3) -> onnx.ModelProto:
    """As `cameras`, for a free batch [B, count, 3, S, S]."""
    w = Writer()
    images = w.image("images", ["batch", count, 3, SPEC.image, SPEC.image])
    x = w.patches(w.op("Reshape", images, w.const([-1, 3, SPEC.image, SPEC.image])))
    size = w.op("Gather", w.op("Shape", x), w.const([0]), axis=0)
    shape = w.op("Concat", size, w.const([1, WIDTH]), axis=0)
    x = w.after(w.op("Expand", w.drawn(1, 1, WIDTH), shape), x)
    x = w.layer_norm(w.blocks(x, PATCHES + 1), "norm")
    pooled = w.op("Gather", x, w.const(0), axis=1)
    apart = w.op("Reshape", pooled, w.const([-1, count, WIDTH]))
    mean = w.op("ReduceMean", apart, axes=[1], keepdims=0)
    return w.finished({"logits": w.linear(mean, "head")}, ["batch", SPEC.classes])


def cameras(count: int = 3, prefix: bool = True, join: str = "mean") -> onnx.ModelProto:
    """Images [1, count, 3, S, S], each encoded apart; the mean of what the cameras give."""
    w = Writer()
    images = w.image("images", [1, count, 3, SPEC.image, SPEC.image])
    flat = w.op("Reshape", images, w.const([count, 3, SPEC.image, SPEC.image]))
    x, n = w.patches(flat), PATCHES
    if prefix:
        cls = w.op("Expand", w.drawn(1, 1, WIDTH), w.const([count, 1, WIDTH]))
        x, n = w.after(cls, x), n + 1
    x = w.layer_norm(w.blocks(x, n), "norm")
    if join == "mean":
        pooled = (
            w.op("Gather", x, w.const(0), axis=1)
            if prefix
            else w.op("ReduceMean", x, axes=[1], keepdims=0)
        )
        x = w.op("Reshape", pooled, w.const([1, count, WIDTH]))
        x = w.op("ReduceMean", x, axes=[1], keepdims=0)
    else:
        x = w.op("Reshape", x, w.const([1, count * n, WIDTH]))
        x = w.op("ReduceMean", x, axes=[1], keepdims=0)
    return w.finished({"logits": w.linear(x, "head")}, [1, SPEC.classes])


def two_images(prefix: bool = True, pool: str = "mean", search: bool = False) -> onnx.ModelProto:
    """Template and search image in one stream (trackers); a class, or a map of the search image."""
    w = Writer()
    both = w.op("Concat", w.patches(w.image("template")), w.patches(w.image("search")), axis=1)
    x, n = both, 2 * PATCHES
    if prefix:
        x, n = w.after(w.drawn(1, 1, WIDTH), x), n + 1
    x = w.blocks(x, n)
    if search:
        found = w.rows(w.layer_norm(x, "norm"), n - PATCHES, n)
        return w.finished({"map": found}, [1, PATCHES, WIDTH])
    return w.closed(x, pool)


def frames(count: int = 3) -> onnx.ModelProto:
    """Joint space and time: all patches of all frames [1, count, 3, S, S] in one stream."""
    w = Writer()
    images = w.image("video", [1, count, 3, SPEC.image, SPEC.image])
    flat = w.op("Reshape", images, w.const([count, 3, SPEC.image, SPEC.image]))
    x = w.op("Reshape", w.patches(flat), w.const([1, count, PATCHES, WIDTH]))
    x = w.op("Add", x, w.drawn(1, count, 1, WIDTH))
    x = w.op("Reshape", x, w.const([1, count * PATCHES, WIDTH]))
    return w.closed(w.blocks(w.after(w.drawn(1, 1, WIDTH), x), count * PATCHES + 1))


def swapped() -> onnx.ModelProto:
    """Both images in one stream, to which they are added the other way round after block 1."""
    w = Writer()
    one, two = w.patches(w.image("template")), w.patches(w.image("search"))
    x = w.blocks(w.op("Concat", one, two, axis=1), 2 * PATCHES, 0, 2)
    x = w.op("Add", x, w.op("Concat", two, one, axis=1))
    return w.closed(w.blocks(x, 2 * PATCHES, 2, 4), "mean")


def each_with_cls() -> onnx.ModelProto:
    """Two images in one stream, each behind a CLS token of its own."""
    w = Writer()
    both = [w.after(w.drawn(1, 1, WIDTH), w.patches(w.image(n))) for n in ("left", "right")]
    return w.closed(w.blocks(w.op("Concat", *both, axis=1), 34))


def tokens_given(cameras: int = 0) -> onnx.ModelProto:
    """The input is the stream itself [1, (cameras,) N, C]: nothing is known of its axes."""
    w = Writer()
    w.inputs["tokens"] = [1, *([cameras] if cameras else []), PATCHES, WIDTH]
    x = w.op("Reshape", "tokens", w.const([cameras, PATCHES, WIDTH])) if cameras else "tokens"
    x = w.blocks(x, PATCHES)
    if not cameras:
        return w.closed(x, "mean")
    mean = w.op("ReduceMean", x, axes=[1], keepdims=0)
    flat = w.op("Reshape", mean, w.const([1, cameras * WIDTH]))
    return w.finished({"y": w.op("MatMul", flat, w.drawn(cameras * WIDTH, 4))}, [1, 4])


def by_turns(special: bool = False, count: int = 3) -> onnx.ModelProto:
    """Attention within each image and over all of them by turns.

    Args:
        special: each image has two tokens of its own.
    """
    w = Writer()
    images = w.image("images", [1, count, 3, SPEC.image, SPEC.image])
    x, n = w.patches(w.op("Reshape", images, w.const([count, 3, SPEC.image, SPEC.image]))), PATCHES
    if special:
        tokens = w.op("Expand", w.drawn(1, 2, WIDTH), w.const([count, 2, WIDTH]))
        x, n = w.after(tokens, x), n + 2
    for i in range(SPEC.depth):
        if i % 2:
            x = w.blocks(w.op("Reshape", x, w.const([1, count * n, WIDTH])), count * n, i, i + 1)
            x = w.op("Reshape", x, w.const([count, n, WIDTH]))
        else:
            x = w.blocks(x, n, i, i + 1)
    mean = w.op("ReduceMean", x, axes=[0, 1], keepdims=0)
    one = w.op("Reshape", mean, w.const([1, WIDTH]))
    return w.finished({"logits": w.linear(one, "head")}, [1, SPEC.classes])


def prompted(count: int = 3, *, shallow: bool = False) -> onnx.ModelProto:
    """Learned tokens between CLS and patches, put in anew before each block (VPT-deep)."""
    w = Writer()
    x = w.after(w.drawn(1, 1, WIDTH), w.patches(w.image()))
    for i in range(SPEC.depth):
        if i == 0 or not shallow:
            first = 1 if i == 0 else 1 + count
            cls, rest = w.rows(x, 0, 1), w.rows(x, first, 100)
            x = w.op("Concat", cls, w.drawn(1, count, WIDTH), rest, axis=1)
        x = w.blocks(x, PATCHES + 1 + count, i, i + 1)
    return w.closed(x)


def learned_keys(count: int = 3, *, behind: bool = False) -> onnx.ModelProto:
    """Learned rows before the keys and values of every attention (prefix tuning)."""
    w = Writer()
    size, n = WIDTH // HEADS, PATCHES + 1

    def attention(x: str, name: str, tokens: int, width: int, heads: int) -> str:
        split = w.op("Reshape", w.linear(x, f"{name}.qkv"), w.const([0, tokens, 3, heads, size]))
        stacked = w.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (w.op("Gather", stacked, w.const(i), axis=0) for i in range(3))
        more = [w.drawn(1, heads, count, size) for _ in range(2)]
        pairs = [(t, m) if behind else (m, t) for t, m in zip((k, v), more, strict=True)]
        k, v = (w.op("Concat", *pair, axis=2) for pair in pairs)
        scores = w.op(
            "MatMul",
            w.op("Mul", q, w.const(0.25, "float32")),
            w.op("Transpose", k, perm=[0, 1, 3, 2]),
        )
        mixed = w.op(
            "Transpose", w.op("MatMul", w.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3]
        )
        return w.linear(w.op("Reshape", mixed, w.const([0, tokens, width])), f"{name}.proj")

    w.attention = attention  # type: ignore[method-assign]
    return w.closed(w.blocks(w.after(w.drawn(1, 1, WIDTH), w.patches(w.image())), n))


def merger(grid: bool = False) -> onnx.ModelProto:
    """Four neighbours become one after the blocks, column by column (patch merging of Swin).

    Args:
        grid: the stream is a grid [1, h, w, C] there.
    """
    w = Writer()
    x = w.blocks(w.patches(w.image()), PATCHES)
    if grid:
        x = w.op("Add", w.op("Reshape", x, w.const([1, 4, 4, WIDTH])), w.drawn(WIDTH))
    split = w.op("Reshape", x, w.const([1, 2, 2, 2, 2, WIDTH]))
    joined = w.op("Transpose", split, perm=[0, 1, 3, 4, 2, 5])
    flat = w.op("Reshape", joined, w.const([1, 4, 4 * WIDTH]))
    y = w.op("MatMul", w.layer_norm_of(flat, 4 * WIDTH), w.drawn(4 * WIDTH, WIDTH))
    return w.closed(y, "mean")


def depths() -> onnx.ModelProto:
    """Outputs of two depths: all tokens behind block 1, the patches at the end, and both again."""
    w = Writer()
    early = w.blocks(w.after(w.drawn(1, 1, WIDTH), w.patches(w.image())), 17, 0, 2)
    last = w.layer_norm(w.blocks(early, 17, 2, 4), "norm")
    patches = w.rows(last, 1, 17)
    outputs = {"early": early, "patches": patches, "again": w.op("Neg", patches), "all": last}
    return w.finished(outputs, [1, None, WIDTH])


def unknown(op: str = "Trilu", place: str = "early") -> onnx.ModelProto:
    """An op that tcompile does not know, before the first block or after the second."""
    w = Writer()
    x = w.patches(w.image())
    if place == "early":
        x = w.op(op, x)
    x = w.blocks(x, PATCHES, 0, 2)
    if place != "early":
        x = w.op(op, x)
    return w.closed(w.blocks(x, PATCHES, 2, 4), "mean")


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    "drops": drops,
    "drops-nd": lambda: drops("nd"),
    "drops-gather": lambda: drops("gather"),
    "drops-often": drops_often,
    "merges": merges,
    "shuffles": shuffles,
    "cameras": cameras,
    "cameras-no-cls": lambda: cameras(prefix=False),
    "cameras-joined": lambda: cameras(join="all"),
    "two-images": two_images,
    "two-images-no-cls": lambda: two_images(prefix=False),
    "two-images-map": lambda: two_images(search=True),
    "frames": frames,
    "prompted": prompted,
    "prompted-shallow": lambda: prompted(shallow=True),
    "learned-keys": learned_keys,
    "learned-keys-behind": lambda: learned_keys(behind=True),
    "merger": merger,
    "merger-grid": lambda: merger(grid=True),
    "depths": depths,
    "fuses": fuses,
    "sorts": sorts,
    "reordered": reordered,
    "sorts-and-adds": lambda: sorts(skip=True),
    "free-cameras": free_cameras,
    "swapped": swapped,
    "each-with-cls": each_with_cls,
    "tokens-given": tokens_given,
    "tokens-given-of-cameras": lambda: tokens_given(3),
    "by-turns": by_turns,
    "by-turns-special": lambda: by_turns(special=True),
    "unknown": unknown,
    "unknown-late": lambda: unknown(place="late"),
}
