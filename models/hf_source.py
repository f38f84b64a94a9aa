"""transformers models: `hf:ID_OR_DIR`, or with random weights also `hf:vit` and its like.

The bare encoder is loaded (last_hidden_state, pooler_output), or the classifier where the
checkpoint is one; `?class=NAME` asks for a transformers model class by name.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcompile.errors import ModelError
from tcompile.models.source import LoadedModel, Request, cannot_build, require, unknown_name

# What `hf:WORD --random-weights` builds: the model class, its configuration class read off it.
FRESH: dict[str, str] = {
    "vit": "ViTModel",
    "vit-classify": "ViTForImageClassification",
    "deit": "DeiTModel",
    "deit-classify": "DeiTForImageClassification",
    "deit-distilled": "DeiTForImageClassificationWithTeacher",
    "clip-vision": "CLIPVisionModel",
    "clip-vision-projection": "CLIPVisionModelWithProjection",
    "siglip-vision": "SiglipVisionModel",
    "siglip-classify": "SiglipForImageClassification",
    "dinov2": "Dinov2Model",
    "dinov2-classify": "Dinov2ForImageClassification",
    "dinov2-registers": "Dinov2WithRegistersModel",
    "dinov2-registers-classify": "Dinov2WithRegistersForImageClassification",
    "blip-vision": "BlipVisionModel",
}
# Checkpoints of two-tower models: the class that takes the image tower out of them.
_TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "blip": "BlipVisionModel",
}
_COMMON = {
    "depth": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_classes": "num_labels",
    "reg_tokens": "num_register_tokens",
}
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_STATISTICS = {"deit": _IMAGENET, "dinov2": _IMAGENET, "clip": _CLIP, "blip": _CLIP}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def load(request: Request) -> LoadedModel:
    """Load a checkpoint, or build a configuration with random weights.

    Raises:
        ModelError: no such checkpoint or word, or a configuration that cannot be built.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", f"loading {request.source.text}")
    from tcompile.models.outputs import TensorOutputs, example_image, output_names

    name, options = request.source.name, dict(request.options)
    wanted = options.pop("class", None)
    is_folder = Path(name).is_dir()
    if request.random_weights and not is_folder and name not in FRESH and "/" not in name:
        raise unknown_name(request, FRESH)
    if not request.random_weights and not is_folder and name in FRESH:
        raise ModelError(
            f"{request.source.text} is a configuration without trained weights",
            hint="add --random-weights, or name a checkpoint: hf:OWNER/MODEL or hf:FOLDER",
        )
    try:
        if request.random_weights and not is_folder and name in FRESH:
            model = _fresh(transformers, wanted or FRESH[name], options, request.image_size)
        elif request.random_weights:
            config = transformers.AutoConfig.from_pretrained(name)
            config = getattr(config, "vision_config", config)
            _apply(config, options, request.image_size)
            model = _class(transformers, wanted, config)(config)
        else:
            config = transformers.AutoConfig.from_pretrained(name)
            model = _class(transformers, wanted, config).from_pretrained(name, **options)
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    vision = getattr(model.config, "vision_config", model.config)
    native = _square(vision.image_size)
    size = (request.image_size, request.image_size) if request.image_size else native
    resized = size != native
    takes = inspect.signature(model.forward).parameters
    call = {"interpolate_pos_encoding": True} if resized and _interpolates(takes, model) else {}
    inputs = {"pixel_values": example_image(*size, int(getattr(vision, "num_channels", 3)))}
    module = TensorOutputs(model.eval(), tuple(inputs), call)
    try:
        names = output_names(module, inputs)
    except Exception as error:  # for instance an image size that the patches do not divide
        raise cannot_build(request, error) from error
    return LoadedModel(
        module=module,
        base=model,
        example_inputs=inputs,
        output_names=names,
        source=request.source.text,
        library="hf",
        preprocessing=_preprocessing(request, model, size),
        call=call,
        resized=resized,
    )


def _fresh(transformers: Any, class_name: str, options: Mapping[str, Any], size: int | None) -> Any:
    model_class = getattr(transformers, class_name)
    config = model_class.config_class()
    config = getattr(config, "vision_config", config) if "Vision" in class_name else config
    _apply(config, options, size)
    return model_class(config)


def _class(transformers: Any, wanted: str | None, config: Any) -> Any:
    """The model class for a checkpoint: as asked, the image tower, the classifier, the encoder."""
    architectures = [a for a in (config.architectures or []) if a.endswith("ImageClassification")]
    name = wanted or _TOWERS.get(config.model_type) or (architectures or [""])[0]
    return getattr(transformers, name) if name else transformers.AutoModel


def _apply(config: Any, options: Mapping[str, Any], size: int | None) -> None:
    """Change a configuration in place. Only known fields: a misspelt one must not pass unseen."""
    given = {_COMMON.get(key, key): value for key, value in options.items()}
    if size is not None:
        given["image_size"] = size
    target = getattr(config, "vision_config", config)
    _follow_width(given, target)
    for key, value in given.items():
        holder = config
        *path, leaf = key.split(".")
        for part in path:
            holder = getattr(holder, part)
        if isinstance(value, Mapping):
            _apply(getattr(holder, leaf), value, None)
            continue
        if not hasattr(holder, leaf) and hasattr(target, leaf):
            holder = target
        if not hasattr(holder, leaf):
            raise TypeError(f"{type(holder).__name__} has no field '{leaf}'")
        if isinstance(value, float) and isinstance(getattr(holder, leaf), int):
            value = int(value) if value.is_integer() else value  # fields are typed strictly
        setattr(holder, leaf, value)


def _follow_width(given: dict[str, Any], target: Any) -> None:
    """Let the fields that go with the width follow it, unless they are given themselves."""
    if "hidden_size" not in given and "mlp_ratio" not in given:
        return
    width = int(given.get("hidden_size", target.hidden_size))
    if "intermediate_size" not in given and hasattr(target, "intermediate_size"):
        ratio = given.pop("mlp_ratio", None) or target.intermediate_size / target.hidden_size
        given["intermediate_size"] = int(width * ratio)
    if "pooler_output_size" not in given and hasattr(target, "pooler_output_size"):
        given["pooler_output_size"] = width


def _interpolates(parameters: Mapping[str, Any], model: Any) -> bool:
    if "interpolate_pos_encoding" in parameters:
        return True
    # Some classes only pass it on through **kwargs; DINOv2 takes no flag and always interpolates.
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return takes_any and not model.config.model_type.startswith("dinov2")


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _preprocessing(request: Request, model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """From the checkpoint's own `preprocessor_config.json`, else what the family uses."""
    kind = str(model.config.model_type)
    mean, std = next((v for k, v in _STATISTICS.items() if kind.startswith(k)), _HALF)
    own = {} if request.random_weights else _processor(request.source.name)
    crop = _side(own.get("crop_size")) if own.get("do_center_crop") else None
    resize = _side(own.get("size"))
    by_edge = isinstance(own.get("size"), Mapping) and "shortest_edge" in own["size"]
    found: dict[str, Any] = {
        "input": "pixel_values",
        "mean": [float(v) for v in own.get("image_mean") or mean],
        "std": [float(v) for v in own.get("image_std") or std],
        "size": list(size),
        "interpolation": _RESAMPLE.get(own.get("resample", 3), "bicubic"),
        "crop_pct": min(1.0, crop / resize) if crop and resize else 1.0,
        "resize": "crop" if crop or by_edge or kind.startswith(("clip", "dinov2")) else "squash",
    }
    labels = getattr(model.config, "id2label", None)
    if not request.random_weights and hasattr(model, "classifier") and labels:
        found["labels"] = [str(labels[i]) for i in range(len(labels)) if i in labels]
    return found


def _processor(name: str) -> dict[str, Any]:
    path: Path | None = Path(name) / "preprocessor_config.json"
    if not Path(name).is_dir():
        from transformers.utils import cached_file

        found = cached_file(
            name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
        path = Path(found) if found else None
    if path is None or not path.is_file():
        return {}
    read = json.loads(path.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if size else None
