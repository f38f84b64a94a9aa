"""The last rewriting: from a graph that any runtime could take to what one target takes best."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.ir import unique_names
from tcompile.passes.lower.attention import decompose_attention, head_size, query_rows
from tcompile.passes.lower.norm import decompose_rms_norm
from tcompile.passes.lower.opset import lower_opset
from tcompile.passes.lower.precision import to_fp16
from tcompile.passes.lower.shapes import complete
from tcompile.targets.target import Precision, Target

#: What TensorRT 10.3, the oldest on a supported JetPack, was made for.
_JETSON_OPSET = 20
#: The widest head for which TensorRT has a fused kernel.
_WIDEST_HEAD = 256


def lower(
    graph: gs.Graph,
    *,
    target: Target,
    precision: Precision,
    fp32_nodes: frozenset[str] = frozenset(),
) -> gs.Graph:
    """A copy of the graph in the form that the target takes best.

    - `Attention` is spelled out for a Jetson (JetPack 6 does not know it), for TensorRT-RTX where
      it has no kernel (fp32, one query row, wide heads, a boolean mask), and for ONNX Runtime where
      it has a mask that all queries share.
    - `RMSNormalization` is spelled out for a Jetson.
    - fp16: see `to_fp16`; inputs and outputs stay fp32.
    - For a Jetson the opset becomes 20, unless an operator does not allow it (logged).
    - Node names become unique and printable, since an engine's kernels refer to them.

    Args:
        graph: reduced, fp32, topologically sorted. It is left as it is.
        target: what to lower for.
        precision: of most of the result.
        fp32_nodes: names of nodes that stay fp32 in an fp16 graph.

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
    replaced: Mapping[str, frozenset[str]]
    if target.runtime == "jetson":
        replaced = {**decompose_attention(lowered), **decompose_rms_norm(lowered)}
    elif target.runtime == "tensorrt-rtx":
        single = keep if precision == "fp16" else {node.name for node in lowered.nodes}
        replaced = decompose_attention(lowered, lambda n: n.name in single or not _has_kernel(n))
    else:
        replaced = decompose_attention(lowered, _has_shared_mask)
    keep = keep.union(*(names for old, names in replaced.items() if old in keep))
    complete(lowered)
    if precision == "fp16":
        lowered = to_fp16(lowered, fp32_nodes=frozenset(keep))
    if target.runtime == "jetson":
        lower_opset(lowered, _JETSON_OPSET)
    return lowered


def _has_kernel(node: gs.Node) -> bool:
    """Whether TensorRT-RTX 1.7 has a fused kernel for an fp16 `Attention` node, and a good one: a
    boolean mask takes eight more kernels to prepare there."""
    size, rows = head_size(node), query_rows(node)
    if size is None or size > _WIDEST_HEAD or rows is None or rows == 1:
        return False
    return not any(t.dtype == bool for t in node.inputs[3:4] if not t.is_empty())


def _has_shared_mask(node: gs.Node) -> bool:
    """Whether one mask row serves all queries of an `Attention` node: ONNX lets it broadcast, and
    ONNX Runtime 1.32 refuses it when it runs."""
    masks = [t for t in node.inputs[3:4] if not t.is_empty()]
    return any(not t.shape or len(t.shape) < 2 or t.shape[-2] != query_rows(node) for t in masks)


def _rename(graph: gs.Graph, fp32_nodes: frozenset[str]) -> set[str]:
    """Make node names unique and printable; the new names of `fp32_nodes`."""
    kept = [node.name in fp32_nodes for node in graph.nodes]
    for node in graph.nodes:
        # A plan's list of kernels encloses names in these.
        node.name = re.sub(r'[\]\[|"\\\x00-\x1f]', "_", node.name or "")
    unique_names(graph)
    return {node.name for node, keep in zip(graph.nodes, kept, strict=True) if keep}
