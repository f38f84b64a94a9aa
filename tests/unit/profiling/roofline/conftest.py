"""ViT graphs to model, without PyTorch and without the cost of random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile.models.onnx_vit import (
    OPSET,
    GraphWriter,
    VitSpec,
    patch_tokens,
    pool,
    prefix_tokens,
    random_weights,
)
from tcompile.profiling.roofline import Device, Modelled, modelled

Vit = Callable[..., gs.Graph]
Latency = Callable[..., float]


@lru_cache(maxsize=64)
def _vit(
    tokens: int, width: int, heads: int, depth: int, batch: int | None, patch: int
) -> gs.Graph:
    """As `build_vit`, but weights are shapes without values: nobody runs this."""
    side = int((tokens - 1) ** 0.5)
    spec = VitSpec(
        image=side * patch,
        patch=patch,
        width=width,
        heads=heads,
        depth=depth,
        classes=1000,
        mlp_ratio=4,
        prefix=tokens - side * side,
    )
    small = VitSpec(image=patch, patch=patch, width=8, depth=depth, prefix=spec.prefix)
    weights = {
        name: np.broadcast_to(
            np.float32(1), [_size(name, i, d, spec) for i, d in enumerate(array.shape)]
        )
        for name, array in random_weights(small).items()
    }
    writer = GraphWriter(weights)
    x = prefix_tokens(writer, spec, patch_tokens(writer, spec, "image"), batch)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(depth):
        x = writer.block(x, f"blocks.{i}", tokens, width, heads)
    logits = writer.linear(pool(writer, spec, writer.layer_norm(x, "norm")), "head")
    image = onnx.helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, [batch or "batch", 3, spec.image, spec.image]
    )
    graph = onnx.helper.make_graph(
        writer.nodes,
        "vit",
        [image],
        [onnx.helper.make_empty_tensor_value_info(logits)],
        [_stored(name, array) for name, array in writer.initializers.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    return gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True)).toposort()


def _stored(name: str, array: np.ndarray) -> onnx.TensorProto:
    if array.nbytes < 1024:
        return onnx.numpy_helper.from_array(array, name)
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    return tensor


def _size(name: str, axis: int, dim: int, spec: VitSpec) -> int:
    if name == "pos_embed":
        return (1, spec.tokens, spec.width)[axis]
    if name == "patch_embed.proj.weight":
        return (spec.width, 3, spec.patch, spec.patch)[axis]
    if name.startswith("head"):
        return spec.classes if axis == 0 else spec.width
    if "qkv" in name:
        return 3 * spec.width if axis == 0 else spec.width
    if "fc1" in name:
        return 4 * spec.width if axis == 0 else spec.width
    if "fc2.weight" in name:
        return (spec.width, 4 * spec.width)[axis]
    return dim if dim in (1, spec.prefix - 1) and axis < 2 and "_token" in name else spec.width


@pytest.fixture(scope="session")
def vit() -> Vit:
    """A plain ViT of so many tokens: ViT-B, one block, if nothing else is asked for."""

    def make(
        tokens: int = 197,
        width: int = 768,
        heads: int = 12,
        depth: int = 1,
        batch: int | None = None,
        patch: int = 16,
    ) -> gs.Graph:
        return _vit(tokens, width, heads, depth, batch, patch)

    return make


@pytest.fixture(scope="session")
def latency(vit: Vit) -> Latency:
    """Milliseconds of a ViT-B of 12 blocks: that of one, and eleven times what a second adds."""

    def total(tokens: int, device: Device, batch: int = 1, patch: int = 16) -> float:
        def of(depth: int) -> Modelled:
            graph = vit(tokens, depth=depth, patch=patch)
            return modelled(graph, device, precision=device.precision, batch=batch)

        one, two = of(1).ms, of(2).ms
        return one + 11 * (two - one)

    return total
