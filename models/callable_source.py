"""`pkg.mod:callable`: a function of yours that returns a module, or (module, example inputs)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tcompile.core.errors import ModelError
from tcompile.models.source import SOURCES, LoadedModel, LoadRequest, cannot_build


def load(request: LoadRequest) -> LoadedModel:
    """Call the function with the source's options and take what it gives.

    It returns an `nn.Module`, then fed one [1, 3, S, S] image (S from `image_size`, or the
    module's own `image_size` or `img_size`, or 224), or `(module, example_inputs)`, these being a
    tensor, a sequence or a mapping of tensors with batch 1. A module may carry a `preprocessing`
    mapping.

    Raises:
        ModelError: the function cannot be imported or called, or returned something else.
    """
    from torch import nn

    from tcompile.models.outputs import TensorOutputs, output_names

    function = _find(request)
    try:
        made = function(**request.options)
    except Exception as error:  # it is the caller's code: report whatever it raises
        raise cannot_build(request, error) from error
    module, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"returned {type(module).__name__}, not a torch module",
            where=request.source.text,
            hint="return an nn.Module, or (module, example_inputs)",
        )
    module.eval()
    inputs = _inputs(module, given, request)
    wrapped = TensorOutputs(module, tuple(inputs) if isinstance(given, Mapping) else (), {})
    try:
        names = output_names(wrapped, inputs)
    except Exception as error:  # the module's own failure on the example inputs
        raise cannot_build(request, error) from error
    if not names:
        raise ModelError("its module returns no tensors", where=request.source.text)
    return LoadedModel(
        module=wrapped,
        base=module,
        example_inputs=inputs,
        output_names=names,
        source=request.source.text,
        library="callable",
        preprocessing=_preprocessing(module, inputs),
    )


def _find(request: LoadRequest) -> Any:
    path, _, name = request.source.name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # a console script does not have the working directory on its path; people expect it
        sys.path.insert(0, here)
    try:
        found: Any = import_module(path)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"cannot import '{request.source.name}': {error}",
            hint="possible sources: " + "; ".join(SOURCES.values()),
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise ModelError("is not callable", where=request.source.name)
    return found


def _inputs(module: Any, given: Any, request: LoadRequest) -> dict[str, Any]:
    import torch

    from tcompile.models.outputs import example_image

    if isinstance(given, torch.Tensor):
        return {"image": given}
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    if isinstance(given, Sequence):
        return {f"input_{i}": value for i, value in enumerate(given)}
    own: Any = getattr(module, "image_size", getattr(module, "img_size", 224))
    size = request.image_size or own
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return {"image": example_image(height, width)}


def _preprocessing(module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    own = getattr(module, "preprocessing", None)
    if isinstance(own, Mapping):
        return dict(own)
    name, tensor = next(iter(inputs.items()))
    if tensor.dim() != 4:
        return {"input": name}
    return {
        "input": name,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "size": [int(tensor.shape[2]), int(tensor.shape[3])],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "resize": "crop",
    }
