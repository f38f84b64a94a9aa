"""Names that an engine can be looked into by: unique, and printable in its list of kernels."""

from __future__ import annotations

import re

import onnx_graphsurgeon as gs

from tcompile.core.graph import unique_names


def printable(name: str) -> str:
    """A node's name without what encloses names in a plan's list of kernels."""
    return re.sub(r'[\]\[|"\\\x00-\x1f]', "_", name or "")


def rename_nodes(graph: gs.Graph, fp32_nodes: frozenset[str]) -> frozenset[str]:
    """Make node names unique and printable; returns the new names of `fp32_nodes`."""
    kept = [node.name in fp32_nodes for node in graph.nodes]
    for node in graph.nodes:
        node.name = printable(node.name)
    unique_names(graph)
    return frozenset(node.name for node, keep in zip(graph.nodes, kept, strict=True) if keep)
