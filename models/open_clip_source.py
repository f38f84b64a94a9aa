"""open_clip image towers: `open_clip:ARCH`, or `open_clip:ARCH?pretrained=TAG`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcompile.models.source import LoadedModel, LoadRequest, cannot_build, require, unknown_name

_COMMON = {"depth": "layers", "embed_dim": "width"}


def load(request: LoadRequest) -> LoadedModel:
    """Build the image tower of an open_clip model; its output is the image embedding.

    Overrides are fields of the architecture's `vision_cfg`; `output_dim` is the embedding's width.

    Raises:
        ModelError: unknown architecture, no pretrained weights for it, or a field it lacks.
        MissingExtraError: open_clip is not installed.
    """
    open_clip = require("open_clip", f"loading {request.source.text}")
    from tcompile.models.outputs import TensorOutputs, example_image, output_names

    name = request.source.name
    config = open_clip.get_model_config(name)
    if config is None:
        raise unknown_name(request, open_clip.list_models())
    options = dict(request.options)
    pretrained = options.pop("pretrained", None)
    try:
        if request.random_weights:
            tower, stats = _random_tower(config, options, request.image_size), None
        else:
            tower, stats = _pretrained_tower(open_clip, name, pretrained, request.image_size)
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    size = tower.image_size
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    inputs = {"image": example_image(height, width)}
    names = output_names(tower.eval(), inputs)
    single = len(names) == 1
    return LoadedModel(
        module=tower if single else TensorOutputs(tower, (), {}),
        base=tower,
        example_inputs=inputs,
        output_names=("image_embeds",) if single else ("image_embeds", "tokens"),
        source=request.source.text,
        library="open_clip",
        preprocessing={"input": "image", "size": [height, width], **_statistics(stats)},
    )


def _random_tower(config: dict[str, Any], options: dict[str, Any], size: int | None) -> Any:
    """Only the tower: a whole CLIP model would also build and throw away its text half."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    vision = dict(config["vision_cfg"])
    output_dim = int(options.pop("output_dim", config["embed_dim"]))
    heads = options.pop("num_heads", None)
    for key, value in options.items():
        vision[_COMMON.get(key, key)] = value
    if size is not None:
        vision["image_size"] = size
    if heads is not None:
        vision["head_width"] = int(vision.get("width", 768)) // int(heads)
    quick = bool(config.get("quick_gelu", False))
    return _build_vision_tower(output_dim, CLIPVisionCfg(**vision), quick_gelu=quick)


def _pretrained_tower(
    open_clip: Any, name: str, tag: str | None, size: int | None
) -> tuple[Any, Any]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise ValueError(f"open_clip has no weights for {name}")
    model = open_clip.create_model(name, pretrained=tag or tags[0], force_image_size=size)
    return model.visual, open_clip.get_model_preprocess_cfg(model)


def _statistics(stats: Mapping[str, Any] | None) -> dict[str, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    stats = stats or {}
    return {
        "mean": [float(v) for v in stats.get("mean", OPENAI_DATASET_MEAN)],
        "std": [float(v) for v in stats.get("std", OPENAI_DATASET_STD)],
        "interpolation": str(stats.get("interpolation", "bicubic")),
        "crop_pct": 1.0,
        "resize": "squash" if stats.get("resize_mode") == "squash" else "crop",
    }
