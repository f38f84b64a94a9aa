"""`zoo:NAME`: the small models that tcompile trains and ships itself."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.core.errors import ModelError
from tcompile.models.source import LoadedModel, LoadRequest, unknown_name


def load(request: LoadRequest) -> LoadedModel:
    """Load a zoo model with its trained weights (with fresh ones under `random_weights`).

    Raises:
        ModelError: unknown name, an image size or option it does not take, damaged weights.
    """
    if request.source.name not in ZOO:
        raise unknown_name(request, ZOO)
    fixed = {"image_size": request.image_size, **request.options}
    if any(value is not None for value in fixed.values()):
        asked = ", ".join(key for key, value in fixed.items() if value is not None)
        raise ModelError(f"is trained as it is and takes no {asked}", where=request.source.text)
    return ZOO[request.source.name](request)


def _glyphs(request: LoadRequest) -> LoadedModel:
    from tcompile.models import glyphs
    from tcompile.models.glyphs import data
    from tcompile.models.outputs import example_image

    module = glyphs.untrained() if request.random_weights else glyphs.load()
    return LoadedModel(
        module=module,
        base=module,
        example_inputs={"image": example_image(data.IMAGE_SIZE, data.IMAGE_SIZE)},
        output_names=("logits", "patch_logits"),
        source=request.source.text,
        library="zoo",
        preprocessing={
            "input": "image",
            "mean": list(data.MEAN),
            "std": list(data.STD),
            "size": [data.IMAGE_SIZE] * 2,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "resize": "crop",
            "labels": [str(data.SUM_MIN + i) for i in range(data.CLASSES)],
        },
    )


ZOO: dict[str, Callable[[LoadRequest], LoadedModel]] = {"glyphs": _glyphs}
