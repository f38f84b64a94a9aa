"""`zoo:NAME`: the small models that tcompile trains and ships itself."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tcompile.models.source import LoadedModel, Request, cannot_build, unknown_name

ZOO: dict[str, str] = {"glyphs": "tcompile.models.glyphs"}


def load(request: Request) -> LoadedModel:
    """Load a zoo model with its trained weights (with fresh ones under `random_weights`).

    Each zoo package has `load() -> nn.Module`, whose outputs are (logits, patch_logits), and may
    have `PREPROCESSING` (see `LoadedModel.preprocessing`).

    Raises:
        ModelError: unknown name, or an option the model does not take.
    """
    from tcompile.models.outputs import example_image

    name = request.source.name
    if name not in ZOO:
        raise unknown_name(request, ZOO)
    package = import_module(ZOO[name])
    try:
        module = package.load(**request.options)
    except TypeError as error:
        raise cannot_build(request, error) from error
    if request.random_weights:
        _reset(module)
    own: Any = getattr(package, "PREPROCESSING", {})
    preprocessing: dict[str, Any] = {
        "input": "image",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "size": [56, 56],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "resize": "crop",
        **(dict(own) if isinstance(own, Mapping) else {}),
    }
    height, width = preprocessing["size"]
    return LoadedModel(
        module=module.eval(),
        base=module,
        example_inputs={"image": example_image(height, width)},
        output_names=("logits", "patch_logits"),
        source=request.source.text,
        library="zoo",
        preprocessing=preprocessing,
    )


def _reset(module: Any) -> None:
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
