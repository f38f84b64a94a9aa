"""A plain ViT written straight into ONNX, with no PyTorch at hand.

`tcompile demo` builds its trained model with this, and tests build tiny ones. Weights carry timm's
names and layouts, so a state dict of a timm `VisionTransformer` (or of a module with the same
names) goes in as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, np.dtype[Any]]

OPSET = 17
Pooling = Literal["cls", "avg", "none"]


@dataclass(frozen=True)
class VitSpec:
    """The shape of the model.

    `prefix` tokens (CLS first, then registers) come before (image / patch)² patch tokens. `pool` is
    what the head sees: the CLS row, the mean over patch tokens, or `none` for an output of all
    tokens [B, N, width] in place of logits [B, classes].
    """

    image: int = 32
    patch: int = 8
    width: int = 32
    heads: int = 2
    depth: int = 3
    classes: int = 10
    prefix: int = 1
    mlp_ratio: int = 2
    pool: Pooling = "cls"

    @property
    def patches(self) -> int:
        """Return how many patch tokens there are."""
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """All tokens, prefix included."""
        return self.prefix + self.patches


def random_weights(spec: VitSpec, seed: int = 0) -> dict[str, Array]:
    """Weights under timm's names, all drawn at random so that no branch is dead or duplicated."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 0.0, centre: float = 0.0) -> Array:
        scale = scale or (2.0 / (shape[-1] + shape[0])) ** 0.5
        return (centre + scale * rng.standard_normal(shape)).astype(np.float32)

    c, hidden = spec.width, spec.width * spec.mlp_ratio
    weights = {
        "patch_embed.proj.weight": draw(c, 3, spec.patch, spec.patch, scale=0.1),
        "patch_embed.proj.bias": draw(c, scale=0.1),
        "pos_embed": draw(1, spec.tokens, c, scale=0.3),
        "norm.weight": draw(c, scale=0.1, centre=1.0),
        "norm.bias": draw(c, scale=0.1),
    }
    if spec.prefix > 0:
        weights["cls_token"] = draw(1, 1, c, scale=0.3)
    if spec.prefix > 1:
        weights["reg_token"] = draw(1, spec.prefix - 1, c, scale=0.3)
    if spec.pool != "none":
        weights["head.weight"] = draw(spec.classes, c)
        weights["head.bias"] = draw(spec.classes, scale=0.1)
    for i in range(spec.depth):
        for name, shape in {
            "norm1": (c,),
            "norm2": (c,),
            "attn.qkv": (3 * c, c),
            "attn.proj": (c, c),
            "mlp.fc1": (hidden, c),
            "mlp.fc2": (c, hidden),
        }.items():
            norm = len(shape) == 1
            weights[f"blocks.{i}.{name}.weight"] = (
                draw(*shape, scale=0.1, centre=1.0) if norm else draw(*shape)
            )
            weights[f"blocks.{i}.{name}.bias"] = draw(shape[0], scale=0.1)
    return weights


class GraphWriter:
    """Appends nodes and initialisers; every method returns the name of the tensor it made."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add one node; with several outputs the names are `<first>`, `<first>.1`, …"""
        import onnx

        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, name=name, **attributes))
        return name

    def weight(self, name: str, transpose: bool = False) -> str:
        """An initialiser from the weights; `transpose` turns torch's [out, in] into [in, out]."""
        import numpy as np

        array = np.asarray(self.weights[name], dtype=np.float32)
        self.initializers[name] = np.ascontiguousarray(array.T) if transpose else array
        return name

    def const(self, value: Any, dtype: str = "int64") -> str:
        """A new constant initialiser."""
        import numpy as np

        name = f"const_{len(self.initializers)}"
        self.initializers[name] = np.asarray(value, dtype=dtype)
        return name

    def linear(self, x: str, name: str) -> str:
        """x @ weightᵀ + bias over the last axis."""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", transpose=True))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def layer_norm(self, x: str, name: str) -> str:
        """LayerNorm over the last axis."""
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

    def gelu(self, x: str) -> str:
        """Exact GELU, spelled out: the Gelu operator only exists from opset 20."""
        erf = self.op("Erf", self.op("Mul", x, self.const(2**-0.5, "float32")))
        gate = self.op("Add", erf, self.const(1.0, "float32"))
        return self.op("Mul", self.op("Mul", x, gate), self.const(0.5, "float32"))

    def attention(self, x: str, name: str, tokens: int, width: int, heads: int) -> str:
        """Multi-head self-attention, [B, tokens, width] to the same shape."""
        size = width // heads
        qkv = self.linear(x, f"{name}.qkv")
        split = self.op("Reshape", qkv, self.const([0, tokens, 3, heads, size]))
        stacked = self.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", stacked, self.const(i), axis=0) for i in range(3))
        scaled = self.op("Mul", q, self.const(size**-0.5, "float32"))
        scores = self.op("MatMul", scaled, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        joined = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        flat = self.op("Reshape", joined, self.const([0, tokens, width]))
        return self.linear(flat, f"{name}.proj")

    def block(
        self,
        x: str,
        name: str,
        tokens: int,
        width: int,
        heads: int,
        mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2"),
    ) -> str:
        """One pre-norm transformer layer; `mlp` is what its two linear layers are called."""
        attended = self.attention(
            self.layer_norm(x, f"{name}.norm1"), f"{name}.attn", tokens, width, heads
        )
        x = self.op("Add", x, attended)
        hidden = self.linear(self.layer_norm(x, f"{name}.norm2"), f"{name}.{mlp[0]}")
        return self.op("Add", x, self.linear(self.gelu(hidden), f"{name}.{mlp[1]}"))

    def model(
        self,
        image: int,
        outputs: Mapping[str, tuple[str, list[int | str]]],
        metadata: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """Close the graph.

        Args:
            image: side of the input `image` [B, 3, image, image].
            outputs: tensor and shape by name; the first axis is the batch everywhere.
            metadata: entries for metadata_props.
        """
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        batch = next(iter(outputs.values()))[1][0]
        for name, (tensor, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"out_{name}"))

        def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "vit",
            [value("image", [batch, 3, image, image])],
            [value(name, shape) for name, (_, shape) in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in self.initializers.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model, full_check=True)
        return model


def build_vit(
    spec: VitSpec, weights: Mapping[str, Array] | None = None, *, batch: int | None = 1
) -> onnx.ModelProto:
    """A checked ONNX model: `image` [B, 3, S, S] to `logits` [B, classes] or `tokens` [B, N, C].

    Args:
        weights: timm-named arrays; random ones if left out.
        batch: a number, or None for a symbolic batch.
    """
    writer = GraphWriter(random_weights(spec) if weights is None else weights)
    x = patch_tokens(writer, spec, "image")
    x = prefix_tokens(writer, spec, x, batch)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    rows: int | str = "batch" if batch is None else batch
    if spec.pool == "none":
        x = writer.layer_norm(x, "norm")
        shape = [rows, spec.tokens, spec.width]
        return writer.model(spec.image, {"tokens": (x, shape)})
    pooled = pool(writer, spec, writer.layer_norm(x, "norm"))
    logits = writer.linear(pooled, "head")
    return writer.model(spec.image, {"logits": (logits, [rows, spec.classes])})


def patch_tokens(writer: GraphWriter, spec: VitSpec, image: str) -> str:
    """Cut the image into patches: [B, patches, width]."""
    embedded = writer.op(
        "Conv",
        image,
        writer.weight("patch_embed.proj.weight"),
        writer.weight("patch_embed.proj.bias"),
        kernel_shape=[spec.patch] * 2,
        strides=[spec.patch] * 2,
    )
    flat = writer.op("Reshape", embedded, writer.const([0, spec.width, spec.patches]))
    return writer.op("Transpose", flat, perm=[0, 2, 1])


def prefix_tokens(writer: GraphWriter, spec: VitSpec, patches: str, batch: int | None) -> str:
    """Put CLS and registers before the patches, once for each image of the batch."""
    names = ["cls_token", "reg_token"][: min(spec.prefix, 2)]
    if not names:
        return patches
    if batch is None:
        size = writer.op("Gather", writer.op("Shape", patches), writer.const([0]), axis=0)
    else:
        size = writer.const([batch])
    parts = []
    for name in names:
        count = 1 if name == "cls_token" else spec.prefix - 1
        shape = writer.op("Concat", size, writer.const([count, spec.width]), axis=0)
        parts.append(writer.op("Expand", writer.weight(name), shape))
    return writer.op("Concat", *parts, patches, axis=1)


def pool(writer: GraphWriter, spec: VitSpec, tokens: str) -> str:
    """[B, N, width] to [B, width]: the CLS row, or the mean over the patch tokens."""
    if spec.pool == "cls":
        return writer.op("Gather", tokens, writer.const(0), axis=1)
    if spec.prefix:
        starts, ends = writer.const([spec.prefix]), writer.const([spec.tokens])
        tokens = writer.op("Slice", tokens, starts, ends, writer.const([1]))
    return writer.op("ReduceMean", tokens, axes=[1], keepdims=0)
