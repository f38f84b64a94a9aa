"""torchvision models: `torchvision:NAME`; the vision transformers also take overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.models.source import LoadedModel, LoadRequest, cannot_build, require, unknown_name

# torchvision's builders pass these themselves and refuse them as arguments, so a changed ViT is
# built from its class. Patch, layers, heads, width, MLP width, as in torchvision's own functions.
_VITS: dict[str, tuple[int, int, int, int, int]] = {
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
}
_COMMON = {"depth": "num_layers", "embed_dim": "hidden_dim"}


def load(request: LoadRequest) -> LoadedModel:
    """Build a torchvision model with its classification head.

    Raises:
        ModelError: unknown name, or arguments the model does not take.
        MissingExtraError: torchvision is not installed.
    """
    models = require("torchvision", f"loading {request.source.text}").models
    from tcompile.models.outputs import example_image

    name = request.source.name
    if name not in models.list_models():
        raise unknown_name(request, models.list_models())
    try:
        weights = models.get_model_weights(name).DEFAULT
        transforms = weights.transforms()
        size = request.image_size or int(transforms.crop_size[0])
        module = _build(models, request, weights, size)
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    preprocessing = {
        "input": "image",
        "mean": [float(v) for v in transforms.mean],
        "std": [float(v) for v in transforms.std],
        "size": [size, size],
        "interpolation": str(transforms.interpolation.value),
        "crop_pct": float(transforms.crop_size[0] / transforms.resize_size[0]),
        "resize": "crop",
    }
    if not request.random_weights:
        preprocessing["labels"] = list(weights.meta["categories"])
    return LoadedModel(
        module=module,
        base=module,
        example_inputs={"image": example_image(size, size)},
        output_names=("logits",),
        source=request.source.text,
        library="torchvision",
        preprocessing=preprocessing,
    )


def _build(models: Any, request: LoadRequest, weights: Any, size: int) -> Any:
    name = request.source.name
    if name not in _VITS:
        return models.get_model(
            name, weights=None if request.random_weights else weights, **request.options
        )
    module = models.VisionTransformer(**_vit_arguments(name, request.options, size))
    if not request.random_weights:
        from torchvision.models.vision_transformer import interpolate_embeddings

        arguments = _vit_arguments(name, request.options, size)
        state = weights.get_state_dict(progress=False, check_hash=True)
        state = interpolate_embeddings(size, arguments["patch_size"], state)
        module.load_state_dict(state)
    return module


def _vit_arguments(name: str, options: Mapping[str, Any], size: int) -> dict[str, Any]:
    patch, layers, heads, width, mlp = _VITS[name]
    given = {_COMMON.get(key, key): value for key, value in options.items()}
    ratio = given.pop("mlp_ratio", mlp / width)
    hidden = int(given.get("hidden_dim", width))
    return {
        "image_size": size,
        "patch_size": patch,
        "num_layers": layers,
        "num_heads": heads,
        "hidden_dim": hidden,
        "mlp_dim": int(hidden * ratio),
        **given,
    }
