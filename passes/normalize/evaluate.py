"""Small graphs in ONNX Runtime, as they are: nothing is optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tcompile.core.errors import MissingExtraError, ModelError

Array = np.ndarray[Any, Any]

_INTEGERS = {
    getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}


class Evaluator:
    """A graph whose values are wanted, in a session.

    Dividing integers by zero ends the process in ONNX Runtime; here it is an error with the node.

    Args:
        model: names its outputs without types; changed on the way.
        what: is computed, for messages.
        hint: what a reader may do where it cannot be computed.
    """

    def __init__(self, model: onnx.ModelProto, what: str, hint: str) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "cpu", "reading a model") from error
        self._what, self._hint = what, hint
        typed = onnx.shape_inference.infer_shapes(model)  # ONNX Runtime wants typed outputs
        self._zeros = _keep_from_zero(typed)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                typed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise self._fault(error) from error

    def __call__(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Return the values of those outputs.

        Raises:
            ModelError: there are none.
        """
        try:
            found = self._session.run([*names, *self._zeros], dict(feeds))
        except Exception as error:
            raise self._fault(error) from error
        for value, node in zip(found[len(names) :], self._zeros.values(), strict=True):
            if np.any(value):
                raise ModelError(f"{node} divides integers by 0", hint=self._hint)
        return [np.asarray(v) for v in found[: len(names)]]

    def _fault(self, error: Exception) -> ModelError:
        reason = " ".join(str(error).split())[:300]
        return ModelError(f"ONNX Runtime cannot compute {self._what}: {reason}", hint=self._hint)


def _keep_from_zero(model: onnx.ModelProto) -> dict[str, str]:
    """Let integers be divided by 1 where it is by 0; return outputs that say so → the node."""
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {
        v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)
    }
    types |= {t.name: t.data_type for t in model.graph.initializer}
    found: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    made = onnx.helper.make_node
    for node in model.graph.node:
        if node.op_type in ("Div", "Mod") and not node.domain and len(node.input) == 2:
            kind = next((types[n] for n in node.input if types.get(n)), 0)
            if kind in _INTEGERS:
                by, tag = node.input[1], f"{node.output[0]}/divisor"
                whole = onnx.TensorProto.INT64
                nodes += [
                    made("Cast", [by], [f"{tag}/int"], to=whole),
                    made("Cast", [f"{tag}/int"], [f"{tag}/some"], to=onnx.TensorProto.BOOL),
                    made("Not", [f"{tag}/some"], [f"{tag}/none"]),
                    made("Cast", [f"{tag}/none"], [f"{tag}/one"], to=whole),
                    made("Add", [f"{tag}/int", f"{tag}/one"], [f"{tag}/safe"]),
                    made("Cast", [f"{tag}/safe"], [tag], to=kind),
                ]
                node.input[1] = tag
                found[f"{tag}/none"] = f"{node.op_type} '{node.name}'"
        nodes.append(node)
    if found:
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.BOOL, None) for n in found
        )
    return found
