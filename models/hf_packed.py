"""transformers' vision towers whose input is not one plain image: Qwen-VL, Pixtral, Mllama, Llama4.

`hf:qwen2-vl` and its like build them with random weights; of a whole vision-language checkpoint
the tower alone is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch

from tcompile.models import hf_config
from tcompile.models.hf_packed_families import PACKED_FAMILIES, TYPES, PackedFamily
from tcompile.models.packed import Ready
from tcompile.models.source import LoadedModel, LoadRequest, cannot_build, require


def load(family: PackedFamily, request: LoadRequest, *, is_fresh: bool) -> LoadedModel:
    """Build or load a tower.

    Raises:
        ModelError: a configuration that cannot be built, or a checkpoint that cannot be read.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", f"loading {request.source.text}")
    options = dict(request.options)
    own = {name: options.pop(name) for name in family.options if name in options}
    with hf_config.quiet():
        try:
            ready, tower, notes = _ready(transformers, family, request, options, own, is_fresh)
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
        notes=(*ready.notes, *notes),
        fixed_batch=ready.fixed_batch,
    )


def _ready(
    transformers: Any,
    family: PackedFamily,
    request: LoadRequest,
    options: Mapping[str, Any],
    own: Mapping[str, Any],
    is_fresh: bool,
) -> tuple[Ready, Any, tuple[str, ...]]:
    """The tower, what the family makes of it, and notes on its weights."""
    library = import_module(f"transformers.models.{family.package}.modeling_{family.package}")
    model_class = getattr(library, family.model_class)
    start = model_class.config_class(**family.defaults)
    if not is_fresh:
        start = transformers.AutoConfig.from_pretrained(request.source.name)
        start = getattr(start, "thinker_config", start)  # of models that also hear and speak
        start = getattr(start, "vision_config", start)
    # Trained positions have one size; random ones are made at the asked size.
    config = configured(
        start, family, options, request.image_size if request.random_weights else None
    )
    notes: tuple[str, ...] = ()
    if request.random_weights:
        tower = model_class(config)
    else:
        tower, notes = _trained(model_class, request.source.name, config, family.weights)
    return family.make(tower.eval(), request.image_size, own), tower, notes


def configured(
    start: Any, family: PackedFamily, options: Mapping[str, Any], size: int | None
) -> Any:
    """A configuration like `start` with `options` changed; what depends on them follows.

    Raises:
        TypeError: the configuration has no such field.
    """
    given = {
        name: value
        for key, value in options.items()
        for name in family.fields.get(key, key).split()
    }
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
        if depth in given and name not in given and hasattr(start, name):
            given[name] = _spread(getattr(start, name), getattr(start, depth), given[depth], ends)
    if not given:
        return start
    # What is no field of its own is worked out from the fields (Pixtral's head_dim).
    declared = {entry.name for entry in dataclasses.fields(start)}
    kept = {name: value for name, value in start.to_dict().items() if name in declared}
    return type(start)(**{**kept, **given})


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
    note = f"not in the checkpoint, so initialised at random: {', '.join(missing)}"
    return model.float(), (note,) if missing else ()


def _processor(name: str) -> Mapping[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        read, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # a checkpoint without one
        return {}
    return dict(read)


#: What `hf:WORD --random-weights` builds.
PACKED: Mapping[str, Callable[[LoadRequest], LoadedModel]] = {
    name: partial(load, family, is_fresh=True) for name, family in PACKED_FAMILIES.items()
}
#: Of checkpoints with this `model_type`, the tower.
PACKED_TYPES: Mapping[str, Callable[[LoadRequest], LoadedModel]] = {
    kind: partial(load, family, is_fresh=False) for kind, family in TYPES.items()
}
