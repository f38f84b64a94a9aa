"""An encoder's weights are found under the names that transformers has for them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from benchmarks.real import models
from tcompile.core.errors import ModelError

C = 4


def exported(cls_tokens: int = 1) -> onnx.ModelProto:
    """A graph as TorchScript writes one: weights of MatMul are turned and renamed."""
    rng = np.random.default_rng(0)
    arrays = {
        "backbone.embeddings.cls_token": (1, 1, C),
        "backbone.encoder.layer.0.norm1.weight": (C,),
        "decoder.final.weight": (C,),
        "onnx::Concat_1": (1, cls_tokens, C),
        "onnx::Reshape_2": (1, 9, C),
    }
    nodes = []
    for number, name in enumerate(models._MATMULS.values()):
        weight = f"onnx::MatMul_{number}"
        arrays[weight] = (C, C + number)
        path = f"/backbone/encoder/layer.0/{name}"
        nodes.append(helper.make_node("MatMul", [f"x{number}", weight], [f"y{number}"], path))
    kept = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in arrays.items()
    ]
    return helper.make_model(helper.make_graph(nodes, "exported", [], [], kept))


def test_weights_are_turned_back() -> None:
    model = exported()
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = models.encoder_weights(model)
    assert "final.weight" not in found
    fc2 = found["encoder.layer.0.mlp.fc2.weight"]
    np.testing.assert_array_equal(fc2, arrays["onnx::MatMul_5"].T)
    table = found["embeddings.position_embeddings"]
    np.testing.assert_array_equal(table[:, :1], arrays["onnx::Concat_1"])
    np.testing.assert_array_equal(table[:, 1:], arrays["onnx::Reshape_2"])
    assert found["embeddings.mask_token"].shape == (1, C)


def test_another_table_is_refused() -> None:
    with pytest.raises(ModelError, match="position table"):
        models.encoder_weights(exported(cls_tokens=2))
