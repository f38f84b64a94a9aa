"""transformers models: `hf:ID_OR_DIR`, or with random weights also `hf:vit` and its like.

The bare encoder is loaded (last_hidden_state, pooler_output), or the classifier where the
checkpoint is one; `?class=NAME` asks for a transformers model class by name.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcompile.errors import ModelError
from tcompile.models.source import LoadedModel, Request, cannot_build, require, unknown_name

try:
    from tcompile.models.hf_packed import PACKED, PACKED_TYPES
except ModuleNotFoundError:  # until it is written
    PACKED, PACKED_TYPES = {}, {}

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
    is_word = "/" not in name and not Path(name).is_dir()
    is_fresh = is_word and (name in FRESH or name in PACKED)
    if request.random_weights and is_word and not is_fresh:
        raise unknown_name(request, [*FRESH, *PACKED])
    if is_fresh and not request.random_weights:
        raise ModelError(
            f"{request.source.text} is a configuration without trained weights",
            hint="add --random-weights, or name a checkpoint: hf:OWNER/MODEL or hf:FOLDER",
        )
    loader = PACKED.get(name) if is_word else PACKED_TYPES.get(_model_type(transformers, name))
    if loader is not None and wanted is None:
        return loader(request)
    notes: tuple[str, ...] = ()
    chatter = logging.getLogger("transformers")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # it reports the text half's weights as unexpected
    try:
        if is_fresh:
            model = _fresh(transformers, wanted or FRESH[name], options, request.image_size)
        else:
            model, notes = _checkpoint(transformers, wanted, request, options)
        vision = getattr(model.config, "vision_config", model.config)
        native = _square(vision.image_size)
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    finally:
        chatter.setLevel(level)
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
        notes=notes,
    )


def _model_type(transformers: Any, name: str) -> str:
    """A checkpoint's family; "" where it cannot be read, which loading it will report."""
    try:
        return str(transformers.AutoConfig.from_pretrained(name).model_type)
    except Exception:  # libraries raise anything on a bad folder
        return ""


def _fresh(transformers: Any, class_name: str, options: Mapping[str, Any], size: int | None) -> Any:
    model_class = getattr(transformers, class_name)
    config = model_class.config_class()
    config = getattr(config, "vision_config", config) if "Vision" in class_name else config
    _apply(config, options, size)
    return model_class(config)


def _checkpoint(
    transformers: Any, wanted: str | None, request: Request, options: Mapping[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    """The checkpoint's model class (as asked, the image tower, the classifier, the encoder).

    Gives the model and notes on its weights. Weights of another shape raise ValueError.
    """
    name = request.source.name
    config = transformers.AutoConfig.from_pretrained(name)
    kinds = [a for a in (config.architectures or []) if a.endswith("ImageClassification")]
    chosen = wanted or _TOWERS.get(config.model_type) or (kinds or [""])[0]
    model_class = getattr(transformers, chosen) if chosen else transformers.AutoModel
    own = getattr(model_class, "config_class", None)
    if own is not None and not isinstance(config, own):
        joint, config = config, config.vision_config
        if hasattr(joint, "projection_dim") and hasattr(config, "projection_dim"):
            config.projection_dim = joint.projection_dim  # the tower's own field may be stale
    # Trained positions are interpolated at every call; random ones are made at the asked size.
    _apply(config, options, request.image_size if request.random_weights else None)
    if request.random_weights:
        model = model_class(config) if chosen else transformers.AutoModel.from_config(config)
        return model, ()
    # Mismatches are let pass only to be named here: transformers names them in its log alone.
    model, found = model_class.from_pretrained(
        name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if found["mismatched_keys"]:
        changed = ", ".join(str(entry[0]) for entry in sorted(found["mismatched_keys"])[:3])
        raise ValueError(f"the checkpoint's weights have other shapes: {changed}")
    missing = sorted(found["missing_keys"])
    note = f"not in the checkpoint, so made at random: {', '.join(missing)}"
    # Checkpoints come in half precision too; what is exported is float32.
    return model.float(), (note,) if missing else ()


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
