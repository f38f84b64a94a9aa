"""transformers' vision towers whose input is not one plain image: Qwen-VL, Pixtral, Mllama, Llama4.

`hf:qwen2-vl` and its like build them with random weights; of a whole vision-language checkpoint
the tower alone is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

from tcompile.models.packed_grid import FixedGrid
from tcompile.models.source import LoadedModel, Request, cannot_build, require

_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# Qwen towers have no size of their own; processors make this of a small image.
_NATIVE = 448


@dataclass(frozen=True)
class Ready:
    """What a family makes of its tower: see the fields of `LoadedModel`."""

    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    fixed_batch: str = ""


@dataclass(frozen=True)
class Family:
    """One kind of tower.

    Attributes:
        package: of the model, in transformers.
        model_class: of the tower, in that package.
        make: from the tower, the asked image size and the options of `options`.
        statistics: mean and std of the family's images, for a checkpoint that does not say.
        options: options that are not fields of the configuration.
        fields: what the options common to all libraries are called in the configuration.
        defaults: where the library's own default configuration is not a sound one.
        layers: lists of layer indices, which follow a change of depth; True where the last layer
            is one of them.
        weights: how the tower's weights start in a checkpoint of the whole model.
    """

    package: str
    model_class: str
    make: Callable[[Any, int | None, Mapping[str, Any]], Ready]
    statistics: tuple[list[float], list[float]]
    options: tuple[str, ...]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, bool] = field(default_factory=dict)
    weights: str = r"^(model\.)?visual\."


def load(family: Family, request: Request, *, is_fresh: bool) -> LoadedModel:
    """Build or load a tower.

    Raises:
        ModelError: a configuration that cannot be built, or a checkpoint that cannot be read.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", f"loading {request.source.text}")
    options = dict(request.options)
    own = {name: options.pop(name) for name in family.options if name in options}
    try:
        library = import_module(f"transformers.models.{family.package}.modeling_{family.package}")
        model_class = getattr(library, family.model_class)
        start = model_class.config_class(**family.defaults)
        if not is_fresh:
            start = transformers.AutoConfig.from_pretrained(request.source.name)
            start = getattr(start, "vision_config", start)
        size = request.image_size if is_fresh or request.random_weights else None
        config = configured(start, family, options, size)
        notes: tuple[str, ...] = ()
        if request.random_weights:
            tower = model_class(config)
        else:
            tower, notes = _trained(model_class, request.source.name, config, family.weights)
        ready = family.make(tower.eval(), request.image_size, own)
        with torch.no_grad():
            result = ready.module(*ready.inputs.values())
    except Exception as error:  # libraries raise anything on a bad argument
        raise cannot_build(request, error) from error
    count = 1 if isinstance(result, torch.Tensor) else len(result)
    mean, std = family.statistics
    trained = {} if request.random_weights else _processor(request.source.name)
    return LoadedModel(
        module=ready.module,
        base=tower,
        example_inputs=ready.inputs,
        output_names=ready.outputs[:count],
        source=request.source.text,
        library="hf",
        preprocessing={
            "input": "pixel_values",
            "mean": [float(v) for v in trained.get("image_mean") or mean],
            "std": [float(v) for v in trained.get("image_std") or std],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "resize": "squash",
            **ready.preprocessing,
        },
        resized=any(hasattr(m, "interpolate_pos_encoding") for m in tower.modules()),
        notes=(*ready.notes, *notes),
        fixed_batch=ready.fixed_batch,
    )


def configured(start: Any, family: Family, options: Mapping[str, Any], size: int | None) -> Any:
    """A configuration like `start` with `options` changed; what depends on them follows.

    Raises:
        TypeError: the configuration has no such field.
    """
    given = {family.fields.get(key, key): value for key, value in options.items()}
    if size is not None and hasattr(start, "image_size"):
        given.setdefault("image_size", size)
    for key in given:
        if not hasattr(start, key) and key != "mlp_ratio":
            raise TypeError(f"{type(start).__name__} has no field '{key}'")
    width, depth = family.fields["embed_dim"], family.fields["depth"]
    if hasattr(start, "intermediate_size") and "intermediate_size" not in given:
        ratio = given.pop("mlp_ratio", None)
        ratio = ratio or start.intermediate_size / getattr(start, width)
        given["intermediate_size"] = int(given.get(width, getattr(start, width)) * ratio)
    for name, ends in family.layers.items():
        if depth in given and name not in given:
            given[name] = _spread(getattr(start, name), getattr(start, depth), given[depth], ends)
    return type(start)(**{**start.to_dict(), **given})


def _spread(layers: Any, before: int, depth: int, ends: bool) -> Any:
    """As many of `depth` layers, in proportion, as `layers` were of `before`; at least one."""
    if depth == before:
        return layers
    count = max(1, round(len(layers) * depth / before))
    if ends:
        return [(i + 1) * depth // count - 1 for i in range(count)]
    return sorted({(i + 1) * depth // (count + 1) for i in range(count)})


def _trained(model_class: Any, name: str, config: Any, weights: str) -> tuple[Any, tuple[str, ...]]:
    """The tower out of a checkpoint, with notes on its weights."""
    # Mismatches are let pass only to be named here: transformers names them in its log alone.
    model, found = model_class.from_pretrained(
        name,
        config=config,
        key_mapping={weights: ""},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if found["mismatched_keys"]:
        changed = ", ".join(str(entry[0]) for entry in sorted(found["mismatched_keys"])[:3])
        raise ValueError(f"the checkpoint's weights have other shapes: {changed}")
    missing = sorted(found["missing_keys"])
    if len(missing) == len(model.state_dict()):
        raise ValueError("the checkpoint has none of the tower's weights")
    note = f"not in the checkpoint, so made at random: {', '.join(missing)}"
    return model.float(), (note,) if missing else ()


def _processor(name: str) -> Mapping[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        read, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # a checkpoint without one
        return {}
    return dict(read)


# ---- Qwen2-VL, Qwen2.5-VL, Qwen3-VL --------------------------------------------------------------


def _qwen(tower: Any, image_size: int | None, options: Mapping[str, Any]) -> Ready:
    config = tower.config
    patch, merge, time = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    unit = patch * merge
    if "grid" in options:
        grid = _integers("grid", options["grid"], 3)
    else:
        size = image_size or max(1, round(_NATIVE / unit)) * unit
        if size % unit:
            raise ValueError(f"an image of {size} pixels is not made of {unit} x {unit} squares")
        frames = int(options.get("frames", 1))
        grid = (max(1, -(-frames // time)), size // patch, size // patch)
    frames, height, width = grid
    if frames < 1 or height < 1 or width < 1 or height % merge or width % merge:
        raise ValueError(f"grid {grid} is not made of squares of {merge} x {merge} patches")
    module = FixedGrid(tower, grid)
    generator = torch.Generator().manual_seed(0)
    channels = int(config.in_channels) * time * patch * patch
    still = "an image" if frames == 1 else f"a video of {frames * time} frames"
    deep = len(getattr(config, "deepstack_visual_indexes", ()))
    return Ready(
        module,
        {"pixel_values": torch.randn(module.patches, channels, generator=generator)},
        ("image_embeds", *(f"deepstack_{i}" for i in range(deep))),
        {
            "size": [height * patch, width * patch],
            "layout": "patches",
            "patch_size": patch,
            "merge_size": merge,
            "temporal_patch_size": time,
            "frames": frames * time,
        },
        (
            f"the grid is fixed: grid_thw = {list(grid)}, {still} of {height * patch} x"
            f" {width * patch} pixels",
        ),
        "the first axis of pixel_values holds the patches of a fixed grid",
    )


def _integers(name: str, value: Any, count: int) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != count:
        raise ValueError(f"{name} takes {count} numbers, {name}={','.join('1' * count)}")
    return tuple(int(part) for part in parts)


_QWEN2 = {"embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads"}
_QWEN3 = {**_QWEN2, "embed_dim": "hidden_size", "output_dim": "out_hidden_size"}
_GRID = ("grid", "frames")
QWEN2 = Family(
    "qwen2_vl",
    "Qwen2VisionTransformerPretrainedModel",
    _qwen,
    _CLIP,
    _GRID,
    {**_QWEN2, "output_dim": "hidden_size"},
)
QWEN25 = Family(
    "qwen2_5_vl",
    "Qwen2_5_VisionTransformerPretrainedModel",
    _qwen,
    _CLIP,
    _GRID,
    _QWEN3,
    # transformers' default is the width of the language model; this is the released tower's.
    defaults={"hidden_size": 1280},
    layers={"fullatt_block_indexes": True},
)
QWEN3 = Family(
    "qwen3_vl",
    "Qwen3VLVisionModel",
    _qwen,
    _HALF,
    _GRID,
    _QWEN3,
    layers={"deepstack_visual_indexes": False},
)

_WORDS = {"qwen2-vl": QWEN2, "qwen2.5-vl": QWEN25, "qwen3-vl": QWEN3}
_TYPES = {
    "qwen2_vl": QWEN2,
    "qwen2_vl_vision": QWEN2,
    "qwen2_5_vl": QWEN25,
    "qwen2_5_vl_vision": QWEN25,
    "qwen3_vl": QWEN3,
    "qwen3_vl_vision": QWEN3,
}

#: What `hf:WORD --random-weights` builds.
PACKED: Mapping[str, Callable[[Request], LoadedModel]] = {
    word: partial(load, family, is_fresh=True) for word, family in _WORDS.items()
}
#: Of checkpoints with this `model_type`, the tower.
PACKED_TYPES: Mapping[str, Callable[[Request], LoadedModel]] = {
    kind: partial(load, family, is_fresh=False) for kind, family in _TYPES.items()
}
