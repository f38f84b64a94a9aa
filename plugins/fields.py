"""The fields of a plugin, and the attributes by which a node fills them.

TensorRT's ONNX parser reads a plugin's field from the node's attribute of that name. It takes whole
numbers (as INT32), not the int64 tensors that function bodies need (`TokenOp.attributes`): those
arrive with their type lost (seen in TensorRT-RTX 1.7.1; the open parser of 10.1 does the same). So
a field is called differently from its attribute, and a node has both: beside `k`, the tensor for
the body, `plugin_k`, the number for the plugin, as `plugin_namespace` and `plugin_version` are.
The C++ side of this is `trt/fields.h`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcompile.plugins.spec import TokenOp

PREFIX = "plugin_"


def field_names(op: TokenOp) -> tuple[str, ...]:
    """Names of the plugin's fields, in the order of the specification."""
    return tuple(PREFIX + name for name in op.fields)


def node_attributes(op: TokenOp, numbers: Mapping[str, int]) -> dict[str, int]:
    """Return what a node needs, beside namespace and version, to become the plugin.

    Args:
        numbers: of each attribute of the op.

    Raises:
        KeyError: one is missing.
    """
    return {PREFIX + name: int(numbers[name]) for name in op.fields}
