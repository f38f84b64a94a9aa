"""timm models: `timm:NAME`, options being the model's own arguments (`?global_pool=avg`)."""

from __future__ import annotations

import re
from typing import Any

from tcompile.models.source import LoadedModel, LoadRequest, cannot_build, require, unknown_name


def load(request: LoadRequest) -> LoadedModel:
    """Build a timm model, with its classification head unless `num_classes=0` is asked for.

    `features_only=true` makes a backbone of it, whose outputs are maps of several depths.

    Raises:
        ModelError: unknown name, or arguments the model does not take.
        MissingExtraError: timm is not installed.
    """
    timm = require("timm", f"loading {request.source.text}")
    import torch

    from tcompile.models.outputs import TensorOutputs, example_image, named_tensors

    name = request.source.name
    if name.split(".")[0] not in timm.list_models() and "/" not in name:
        raise unknown_name(request, timm.list_models())
    arguments = dict(request.options)
    if request.image_size is not None:
        arguments["img_size"] = request.image_size
    try:
        base = _made(timm, name, not request.random_weights, arguments).eval()
        cfg: dict[str, Any] = dict(base.pretrained_cfg)
        height, width = _image_size(base, request.image_size, cfg)
        inputs = {"image": example_image(height, width, int(cfg.get("input_size", (3, 0, 0))[0]))}
        # With `features_only` there are several; and not every model takes every size.
        with torch.no_grad():
            result = base(*inputs.values())
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    single = isinstance(result, torch.Tensor)
    name_of_one = "logits" if getattr(base, "num_classes", 0) > 0 else "features"
    several = tuple(f"features_{i}" for i in range(len(named_tensors(result))))
    return LoadedModel(
        module=base if single else TensorOutputs(base, (), {}),
        base=base,
        example_inputs=inputs,
        output_names=(name_of_one,) if single else several,
        source=request.source.text,
        library="timm",
        preprocessing={
            "input": "image",
            "mean": [float(v) for v in cfg["mean"]],
            "std": [float(v) for v in cfg["std"]],
            "size": [height, width],
            "interpolation": str(cfg.get("interpolation", "bicubic")),
            "crop_pct": float(cfg.get("crop_pct") or 1.0),
            "resize": "squash" if cfg.get("crop_mode") == "squash" else "crop",
            **({} if request.random_weights else _labels(base, str(cfg.get("tag", "")))),
        },
    )


def _made(timm: Any, name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
    # A model without tables of positions takes images of any size, and no such argument.
    rest = {key: value for key, value in arguments.items() if key != "img_size"}
    return timm.create_model(name, pretrained=pretrained, **rest)


def _image_size(module: Any, asked: int | None, cfg: dict[str, Any]) -> tuple[int, int]:
    built = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if built is not None:
        return int(built[0]), int(built[1])
    if asked is not None:
        return asked, asked
    return int(cfg["input_size"][1]), int(cfg["input_size"][2])


def _labels(module: Any, tag: str) -> dict[str, list[str]]:
    """ImageNet names, when the head is one of timm's ImageNet heads."""
    from timm.data import ImageNetInfo

    if getattr(module, "num_classes", 0) != 1000 or not re.search(r"in1k", tag):
        return {}
    return {"labels": list(ImageNetInfo("imagenet-1k").label_descriptions(detailed=False))}
