"""The form that calls of token ops take: function bodies, our plugins, or kernels compiled ahead.

A token op is a call of a model-local function. Whether a parser of TensorRT takes the function or a
plugin of the same name depends on its version: `targets.versions`. What follows:

native   the bodies, nothing else: every runtime of TensorRT inlines them. For ONNX Runtime they are
         inlined here, `inline`: other readers of ONNX know no model-local functions.
plugin   calls say which plugin they mean (`plugin_namespace`, `plugin_version`); bodies stay, so
         that ONNX Runtime runs the same file, and TensorRT without the library too. A TensorRT that
         takes a body whenever there is one reads the same file up to where they begin.
aot      as plugin; what is registered under these names are kernels that go into the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.errors import UsageError
from tcompile.core.graph import value
from tcompile.plugins.fields import field_names, node_attributes
from tcompile.plugins.ops import OPS, SPELLED, find_op
from tcompile.plugins.spec import PLUGIN_NAMESPACE, PLUGIN_VERSION
from tcompile.targets.devices import Target
from tcompile.targets.versions import first_with_aot, jetpacks_for, parser_rule

TokenOps = Literal["native", "plugin", "aot"]
FORMS: tuple[TokenOps, ...] = get_args(TokenOps)

#: What a node's attributes are called by which a parser finds its plugin.
NAMESPACE, VERSION = "plugin_namespace", "plugin_version"
_NAMES = frozenset(op.name for op in (*OPS, *SPELLED))


_REFUSED = {
    "onnxruntime": "ONNX Runtime knows no TensorRT plugins; token ops are standard operators there",
    "openvino": "OpenVINO knows no TensorRT plugins; token ops are standard operators there",
    "tensorrt-rtx": "TensorRT-RTX ends the process when its parser comes to a plugin, and "
    "takes no kernels compiled ahead of time (seen with 1.7.1)",
}
_NATIVE = {
    "onnxruntime": _REFUSED["onnxruntime"],
    "openvino": _REFUSED["openvino"],
    "tensorrt-rtx": _REFUSED["tensorrt-rtx"],
    "jetson": "function bodies need nothing on the device but TensorRT; how much faster our "
    "kernels are there has not been measured yet",
}


@dataclass(frozen=True)
class TokenOpsChoice:
    """The form of the token ops in a model, and why it was taken.

    Attributes:
        form: function bodies, our TensorRT plugins, or kernels compiled ahead of time.
    """

    form: TokenOps
    reason: str


def choose_token_ops(target: Target, wanted: str | None = None) -> TokenOpsChoice:
    """The form for a target: the one asked for, or the target's own.

    Raises:
        UsageError: no such form, or one that the target cannot take; says why.
    """
    if wanted is None:
        return TokenOpsChoice("native", _NATIVE[target.runtime])
    form = next((form for form in FORMS if form == wanted), None)
    if form is None:
        raise UsageError(
            f"no form '{wanted}' of token ops",
            where="--token-ops",
            hint=f"one of {', '.join(FORMS)}",
        )
    if form != "native" and target.runtime in _REFUSED:
        raise UsageError(
            f"{target.name} cannot take '{form}': {_REFUSED[target.runtime]}",
            where="--token-ops",
            hint="use native",
        )
    if form == "aot" and not any(parser_rule(j.trt_version).aot for j in jetpacks_for(target)):
        raise UsageError(
            f"no JetPack of {target.name} has TensorRT {first_with_aot()}, the first to take "
            "kernels compiled ahead of time",
            where="--token-ops",
            hint="plugin is built on any",
        )
    return TokenOpsChoice(form, "asked for")


def lower_token_ops(graph: gs.Graph, form: TokenOps) -> int:
    """Give the calls of token ops their form, in place, and drop bodies that nothing calls; returns
    how many calls there are.

    Bodies stay in the graph in every form; `core.save.save` writes them last, so that a file for a
    TensorRT whose rule `takes_body_first` is the beginning of the file (`without_bodies`).
    """
    calls = [node for node in graph.nodes if is_call(node)]
    for node in calls:
        op = find_op(str(node.op))
        for name in (NAMESPACE, VERSION, *field_names(op)):
            node.attrs.pop(name, None)
        if form != "native":
            numbers = {name: int(value(node.attrs[name]).reshape(-1)[0]) for name in op.fields}
            node.attrs.update({NAMESPACE: PLUGIN_NAMESPACE, VERSION: PLUGIN_VERSION})
            # What the body reads as int64 tensors, TensorRT's parser takes as plain numbers.
            node.attrs.update(node_attributes(op, numbers))
    called = {node.op for node in graph.nodes if node.domain == DOMAIN}
    # Last of all: a copy of a graph brings back what its functions know of each other.
    graph.functions[:] = [f for f in graph.functions if f.domain != DOMAIN or f.name in called]
    return len(calls)


def is_call(node: gs.Node) -> bool:
    """Tell whether a node is a call of a token op."""
    return node.domain == DOMAIN and node.op in _NAMES
