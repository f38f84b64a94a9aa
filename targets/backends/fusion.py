"""The attention layers of a model that an engine runs as one fused kernel.

A TensorRT plan embeds Myelin's list of kernels as text, one `function={ name=... layers="..." }`
each, where `layers` names the ONNX nodes that went into the kernel. Fused attention has `_mha` in
the kernel's name (`_gemm_mha_v2`). Seen with TensorRT-RTX 1.7.1 on plans for SM75 to SM120.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from tcompile.analysis.attention import AttentionMatch, attentions
from tcompile.core.decode import parse_json
from tcompile.core.domain import WRITTEN
from tcompile.targets.backends.base import FusedAttention

Plan = bytes | memoryview

_KERNEL = re.compile(rb'function=\{ name=([A-Za-z0-9_]+) [^\n]*?layers="([^"]*)"')
_NAME = re.compile(rb"function=\{ name=([A-Za-z0-9_]+)")
# A node inside a model-local function reads `inner | call (Function)`, which is left out.
_LAYER = re.compile(r"\[ONNX Layer: ([^\]|]*)\]")


@dataclass(frozen=True)
class Kernel:
    """A kernel in a plan, and the names of the ONNX nodes that it computes."""

    name: str
    layers: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """Tell whether it is a fused attention kernel."""
        return "_mha" in self.name


def kernels(plan: Plan) -> list[Kernel]:
    """The kernels that a plan lists, in its order."""
    found = []
    for match in _KERNEL.finditer(plan):
        layers = _LAYER.findall(bytes(match[2]).decode("utf-8", "replace"))
        found.append(Kernel(bytes(match[1]).decode(), tuple(layers)))
    return found


def layers_of_device(text: str) -> list[Kernel]:
    """The layers that TensorRT's inspector names: what `build_engine.sh` has trtexec write beside
    an engine. Nothing where the text is something else, or was written without details.

    `{"Layers": [{"Name": "_gemm_mha_v2_…", "Metadata": "[ONNX Layer: …][ONNX Layer: …]", …}, …]}`
    """
    try:
        layers = parse_json(text).get("Layers", ())
    except (ValueError, AttributeError):
        return []
    rows = [row for row in layers if isinstance(row, dict)] if isinstance(layers, list) else []
    return [
        Kernel(str(row.get("Name", "")), tuple(_LAYER.findall(str(row.get("Metadata", "")))))
        for row in rows
    ]


def listed_kernels(plan: Plan) -> str:
    """The kernels of a plan as JSON, for people: the engine inspector, which would say more, needs
    the GPU."""
    rows = [{"name": k.name, "onnx_nodes": k.layers} for k in kernels(plan)]
    return (
        json.dumps({"source": "the plan's own list of kernels", "kernels": rows}, indent=1) + "\n"
    )


def attention_layers(model: onnx.ModelProto) -> list[AttentionMatch]:
    """Return the attentions of a model, in its order, without those that scores compute.

    A score may compute all rows of an attention once more, beside the one that is to be fused. It
    is known by its name: `verify` has a file and its engine, and nothing of the pass that wrote it.
    """
    found = attentions(gs.import_onnx(model))
    return [layer for layer in found if not layer.node.name.startswith(WRITTEN)]


def expected_fused(model: onnx.ModelProto) -> list[str]:
    """Return the names of the attentions that a half precision engine should fuse.

    An attention of one query row (attention pooling) is a matrix-vector product that costs 1/N of
    an attention: TensorRT fuses it for some sizes and not for others, and either is well. One with
    an operator inside that no fused kernel computes is not expected either.
    """
    layers = attention_layers(model)
    return [_name(m) for m in layers if m.queries != 1 and not m.unfused_ops]


def unfused_notes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Name the attentions that no engine fuses, whatever it is built with: nothing is checked."""
    found = [m for m in attention_layers(model) if m.queries != 1 and m.unfused_ops]
    return tuple(
        f"attention '{_name(m)}' is not fused: no kernel of TensorRT computes "
        f"{', '.join(dict.fromkeys(m.unfused_ops))} inside an attention"
        for m in found
    )


def _name(layer: AttentionMatch) -> str:
    """Return the name that TensorRT's parser gives it: a nameless node is called by its output."""
    return layer.node.name or f"node_of_{layer.node.outputs[0].name}"


def fused_attention(plan: Plan, model: onnx.ModelProto) -> FusedAttention:
    """Compare the attentions of a model with the fused kernels in the plan built from it.

    The result's `missing` holds the layers that no fused kernel names. A plan that names no layers
    at all can only be counted: `missing` is then empty, and `found` tells.
    """
    count = sum(b"_mha" in bytes(name) for name in _NAME.findall(plan))
    return compare_kernels(kernels(plan), model, count)


def compare_kernels(
    found: Sequence[Kernel], model: onnx.ModelProto, count: int = 0
) -> FusedAttention:
    """The same of kernels that are listed already.

    Args:
        count: fused ones, where none of them names its layers.
    """
    expected = expected_fused(model)
    fused = [kernel for kernel in found if kernel.fused_attention]
    count = count or len(fused)
    if count and not any(kernel.layers for kernel in fused):
        return FusedAttention(len(expected), count)
    named = {layer for kernel in fused for layer in kernel.layers}
    missing = tuple(name for name in expected if name not in named)
    return FusedAttention(len(expected), len(expected) - len(missing), missing)
