"""transformers models: `hf:ID_OR_DIR`, or with random weights also `hf:vit` and its like.

The bare encoder is loaded (last_hidden_state, pooler_output), or the classifier where the
checkpoint is one, or the image half of a model of images and text (`hf_families`); `?part=NAME`
asks for another part of it, `?class=NAME` for a transformers model class by name. `hf:NAME` with
random weights makes a model of any such class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile.core.errors import ModelError
from tcompile.models import hf_config
from tcompile.models.hf_packed import PACKED, PACKED_TYPES
from tcompile.models.source import LoadedModel, LoadRequest, cannot_build, require, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from tcompile.models.hf_families import Family


@dataclass(frozen=True)
class _Made:
    """A model and how it came about.

    Attributes:
        model: the model, or the tower of one.
        cut: see `Family.cut`.
        loaded: name and identity of each parameter that a checkpoint may hold.
        report: what transformers says of loading them.
    """

    model: Any
    cut: Callable[[Any, tuple[int, int]], nn.Module] | None = None
    loaded: Mapping[str, int] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


def load(request: LoadRequest) -> LoadedModel:
    """Load a checkpoint, or build a configuration with random weights.

    Raises:
        ModelError: no such checkpoint or name, or a configuration that cannot be built.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", f"loading {request.source.text}")
    from tcompile.models.hf_families import FAMILIES, of_class

    name, options = request.source.name, dict(request.options)
    wanted, part = options.pop("class", None), options.pop("part", None)
    names = [*FAMILIES, *PACKED]
    may_be_name = "/" not in name and not Path(name).is_dir()
    is_name = may_be_name and (name in names or _is_class(transformers, name))
    if request.random_weights and may_be_name and not is_name:
        raise unknown_name(request, names)
    if is_name and not request.random_weights:
        raise ModelError(
            f"{request.source.text} is a configuration without trained weights",
            hint="add --random-weights, or name a checkpoint: hf:OWNER/MODEL or hf:FOLDER",
        )
    loader = PACKED.get(name) if is_name else None
    with hf_config.quiet():
        try:
            config = None if is_name else transformers.AutoConfig.from_pretrained(name)
            if config is not None and wanted is None and part is None:
                loader = PACKED_TYPES.get(config.model_type)
            if loader is None:
                if is_name:
                    size = request.image_size
                    family = FAMILIES.get(name) or of_class(transformers, name)
                    made = _fresh(transformers, family, wanted, options, size)
                else:
                    made = _checkpoint(transformers, config, part, wanted, request, options)
                return _finish(request, made)
        except Exception as error:  # libraries raise anything on a bad argument
            raise cannot_build(request, error) from error
    return loader(request)


def _is_class(transformers: Any, name: str) -> bool:
    """Return whether it is a model class of transformers: `hf:YolosModel` means its default."""
    return name.isidentifier() and hasattr(getattr(transformers, name, None), "config_class")


def _finish(request: LoadRequest, made: _Made) -> LoadedModel:
    """Cut out what is exported, and say what goes in and what comes out."""
    from tcompile.models.outputs import TensorOutputs, example_image, output_names

    native = hf_config.image_side(made.model.config)
    size = (request.image_size, request.image_size) if request.image_size else native
    vision = hf_config.tower_config(made.model.config)
    base = made.model.eval() if made.cut is None else made.cut(made.model.eval(), size).eval()
    call = {"interpolate_pos_encoding": True} if size != native and _interpolates(base) else {}
    image = example_image(*size, int(getattr(vision, "num_channels", 3)))
    frames = hf_config.frames(vision)
    if frames is not None:
        image = image[:, None].repeat(1, frames, 1, 1, 1).cumsum(dim=1)
    inputs = {"pixel_values": image}
    module = TensorOutputs(base, tuple(inputs), call)
    return LoadedModel(
        module=module,
        base=base,
        example_inputs=inputs,
        output_names=output_names(module, inputs),
        source=request.source.text,
        library="hf",
        preprocessing=hf_config.preprocessing(request, made.model, size),
        call=call,
        notes=_weights(made, base),
    )


def _fresh(
    transformers: Any,
    family: Family,
    wanted: str | None,
    options: Mapping[str, Any],
    size: int | None,
) -> _Made:
    """Return the model of a family with random weights."""
    from tcompile.models.hf_families import empty_text

    class_name = wanted or family.model
    model_class = getattr(transformers, class_name)
    config = model_class.config_class()
    if wanted is None:
        hf_config.apply(config, family.config, None)
        empty_text(config)
    hf_config.apply(config, options, size)
    return _Made(model_class(config), None if wanted else family.cut)


def _family_of(transformers: Any, config: Any, part: str | None) -> Family | None:
    """Return what a checkpoint is read as; None: as the class that it was saved from.

    Raises:
        ValueError: it has no such part.
    """
    from tcompile.models.hf_families import FAMILIES, TYPES, of_class

    usual = TYPES.get(config.model_type)
    if part is None and usual is not None:
        return FAMILIES[usual]
    if part is None:
        is_joint = hasattr(config, "vision_config") and type(config) in transformers.MODEL_MAPPING
        if not is_joint:
            return None
        return of_class(transformers, transformers.MODEL_MAPPING[type(config)].__name__)
    parts = [name for name in FAMILIES if usual and _stem(name) == _stem(usual)]
    if part not in parts:
        raise ValueError(f"has no part '{part}', only {', '.join(parts) or 'the model itself'}")
    return FAMILIES[part]


def _stem(name: str) -> str:
    return name.split("-")[0]


def _checkpoint(
    transformers: Any,
    config: Any,
    part: str | None,
    wanted: str | None,
    request: LoadRequest,
    options: Mapping[str, Any],
) -> _Made:
    """The checkpoint's model: of the class asked for, else what `Family` and its own class say."""
    from tcompile.models.hf_families import empty_text

    kinds = [a for a in (config.architectures or []) if a.endswith("ImageClassification")]
    if type(config) not in transformers.MODEL_MAPPING:  # there is no bare encoder of its kind
        kinds = kinds or list(config.architectures or [])
    family = None if wanted else _family_of(transformers, config, part)
    if kinds and part is None and family is not None and family.cut is None:
        family = None  # a classifier on the tower
    chosen = wanted or (family.model if family else (kinds or [""])[0])
    inside = ""
    if family is not None and family.inside is not None:
        whole = getattr(transformers, family.inside[0])
        if isinstance(config, whole.config_class):
            chosen, inside = family.inside
    model_class = getattr(transformers, chosen) if chosen else transformers.AutoModel
    own = getattr(model_class, "config_class", None)
    if own is not None and not isinstance(config, own):
        joint, config = config, config.vision_config
        if hasattr(joint, "projection_dim") and hasattr(config, "projection_dim"):
            config.projection_dim = joint.projection_dim  # the tower's own field may be stale
    if family is not None:
        empty_text(config)
    # Trained positions are interpolated at every call; random ones are made at the asked size.
    hf_config.apply(config, options, request.image_size if request.random_weights else None)
    cut = family.cut if family is not None else None
    if request.random_weights:
        model = model_class(config) if chosen else transformers.AutoModel.from_config(config)
        return _Made(getattr(model, inside) if inside else model, cut)
    # Mismatches are let pass only to be named here: transformers names them in its log alone.
    model, found = model_class.from_pretrained(
        request.source.name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model = model.float()  # checkpoints come in half precision too; what is exported is float32
    loaded = {key: id(parameter) for key, parameter in model.named_parameters()}
    return _Made(getattr(model, inside) if inside else model, cut, loaded, found)


def _weights(made: _Made, base: nn.Module) -> tuple[str, ...]:
    """Notes on the checkpoint's weights of what is exported; the rest of it does not matter.

    Raises:
        ValueError: they have other shapes, or there are none.
    """
    if not made.loaded:
        return ()
    kept = {id(parameter) for parameter in base.parameters()}
    names = {name for name, identity in made.loaded.items() if identity in kept}
    mismatched = sorted({entry[0] for entry in made.report["mismatched_keys"]} & names)
    if mismatched:
        raise ValueError(f"the checkpoint's weights have other shapes: {', '.join(mismatched[:3])}")
    missing = sorted(set(made.report["missing_keys"]) & names)
    if missing and len(missing) == len(names):
        raise ValueError(f"the checkpoint has no weights for {type(made.model).__name__}")
    return (
        (f"not in the checkpoint, so initialised at random: {', '.join(missing)}",)
        if missing
        else ()
    )


def _interpolates(base: nn.Module) -> bool:
    """Return whether the model must be told to resize its table of positions; some need not."""
    flag = "interpolate_pos_encoding"
    return any(flag in inspect.signature(module.forward).parameters for module in base.modules())
