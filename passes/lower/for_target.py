"""The last rewriting: from a graph that any runtime could take to what one target takes best."""

from __future__ import annotations

import re

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.graph import unique_names
from tcompile.passes.lower.attention import decompose_attention, query_rows
from tcompile.passes.lower.norm import decompose_rms_norm
from tcompile.passes.lower.opset import lower_opset
from tcompile.passes.lower.pixels import cast_pixels_first
from tcompile.passes.lower.precision import to_fp16
from tcompile.passes.lower.shapes import complete
from tcompile.passes.lower.spell_fp32_matmul import spell_products
from tcompile.passes.lower.token_casts import move_casts
from tcompile.passes.lower.token_fuse import fuse_calls
from tcompile.passes.lower.token_ops import TokenOps, lower_token_ops
from tcompile.targets.devices import Precision, Target

#: What TensorRT 10.3, the oldest on a supported JetPack, was made for.
_JETSON_OPSET = 20


def lower(
    graph: gs.Graph,
    *,
    target: Target,
    precision: Precision,
    fp32_nodes: frozenset[str] = frozenset(),
    token_ops: TokenOps = "native",
) -> gs.Graph:
    """A copy of the graph in the form that the target takes best.

    - `Attention` is spelled out for TensorRT, which fuses the plain spelling into the same kernels
      and builds it too where it has none (fp32, one query row, wide heads); for ONNX Runtime only
      where all queries share a mask, which ONNX allows and ONNX Runtime 1.32 does not.
    - `RMSNormalization` is spelled out for a Jetson.
    - For TensorRT 8-bit images are cast to float before they are moved: see `cast_pixels_first`.
    - fp16: see `to_fp16`; inputs and outputs stay fp32.
    - For a Jetson the opset becomes 20, unless an operator does not allow it (logged).
    - Products of fp32 matrices are spelled as sums for a Turing GPU.
    - Token ops get the form asked for: see `token_ops`, `token_fuse` and `token_casts`.
    - Node names become unique and printable, since an engine's kernels refer to them.

    Args:
        graph: reduced, fp32, topologically sorted. It is left as it is.
        target: what to lower for.
        precision: of most of the result.
        fp32_nodes: names of nodes that stay fp32 in an fp16 graph.
        token_ops: as `choose_token_ops` gave it.

    Raises:
        UsageError: the target does not know the precision.
        ModelError: an attention that has to be spelled out cannot be; control flow in fp16.
    """
    if precision not in target.precisions:
        raise UsageError(
            f"target {target.name} has no precision '{precision}'",
            where="--precision",
            hint=f"one of {', '.join(target.precisions)}",
        )
    lowered = graph.copy()
    lowered.functions = [function.copy() for function in graph.functions]
    complete(lowered)
    keep = _rename(lowered, fp32_nodes)
    if token_ops != "native":
        fuse_calls(lowered)
    tensorrt = target.runtime != "onnxruntime"
    replaced = dict(decompose_attention(lowered, lambda n: tensorrt or _has_shared_mask(n)))
    if target.runtime == "jetson":
        replaced.update(decompose_rms_norm(lowered))
    if tensorrt:
        cast_pixels_first(lowered)
    keep = keep.union(*(names for old, names in replaced.items() if old in keep))
    complete(lowered)
    if precision == "fp16":
        lowered = to_fp16(lowered, fp32_nodes=frozenset(keep))
    if target.runtime == "tensorrt-rtx" and target.compute_capability == "7.5":
        spell_products(lowered)
    if target.runtime == "jetson":
        lower_opset(lowered, _JETSON_OPSET)
    if token_ops != "native":
        move_casts(lowered)
    lower_token_ops(lowered, token_ops)
    return lowered


def _has_shared_mask(node: gs.Node) -> bool:
    """Whether one mask row serves all queries of an `Attention` node."""
    masks = [t for t in node.inputs[3:4] if not t.is_empty()]
    return any(not t.shape or len(t.shape) < 2 or t.shape[-2] != query_rows(node) for t in masks)


def printable(name: str) -> str:
    """A node's name without what encloses names in a plan's list of kernels."""
    return re.sub(r'[\]\[|"\\\x00-\x1f]', "_", name or "")


def _rename(graph: gs.Graph, fp32_nodes: frozenset[str]) -> set[str]:
    """Make node names unique and printable; the new names of `fp32_nodes`."""
    kept = [node.name in fp32_nodes for node in graph.nodes]
    for node in graph.nodes:
        node.name = printable(node.name)
    unique_names(graph)
    return {node.name for node, keep in zip(graph.nodes, kept, strict=True) if keep}
