"""SOURCE strings (`timm:NAME`, `hf:ID_OR_DIR`, `pkg.mod:callable`, ...) and what loading one gives.

A library's own recipe lives in its own file, `<library>_source.py`; `SOURCES` is the list of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tcompile.core import packages
from tcompile.core.decode import parse_json
from tcompile.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

SOURCES: dict[str, str] = {
    "timm": "timm:NAME, a timm model",
    "hf": "hf:ID_OR_DIR, a transformers checkpoint (or hf:vit and its like with random weights)",
    "open_clip": "open_clip:ARCH, the image tower of an open_clip model",
    "torchvision": "torchvision:NAME, a torchvision model",
    "zoo": "zoo:NAME, a small trained model that comes with tcompile",
    "callable": "pkg.mod:callable, your own function that returns a torch module",
}
_RECIPES = {
    "timm": "tcompile.models.timm_source",
    "hf": "tcompile.models.hf_source",
    "open_clip": "tcompile.models.open_clip_source",
    "torchvision": "tcompile.models.torchvision_source",
    "zoo": "tcompile.models.zoo",
    "callable": "tcompile.models.callable_source",
}
_CALLABLE = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*\Z")


@dataclass(frozen=True)
class Source:
    """A parsed SOURCE string.

    Attributes:
        text: the string as given.
        library: a key of `SOURCES`.
        name: what the library is asked for; for `callable`, `pkg.mod:callable`.
        options: what followed `?`, as `k=v&k=v`, values read as JSON where they are JSON.
    """

    text: str
    library: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadRequest:
    """The model that a recipe is asked to make.

    Attributes:
        source: the parsed SOURCE.
        random_weights: build without a checkpoint (and so without a network), from seed 0.
        image_size: side of the square image in pixels, or None for the model's own.
        options: the source's options with the caller's overrides on top.
    """

    source: Source
    random_weights: bool
    image_size: int | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for export.

    Attributes:
        module: in eval mode, without gradients; called with the example inputs in order, it gives
            a tensor or a tuple of tensors.
        base: the library's own module inside `module` (the same object where nothing is wrapped).
        example_inputs: batch 1, by name, in call order; images are [1, 3, H, W] float32.
        output_names: one a tensor that `module` gives back.
        source: the SOURCE string.
        library: a key of `SOURCES`.
        preprocessing: `mean`, `std` (3 each, for pixels in 0..1), `size` [H, W], `interpolation`,
            `crop_pct`, `resize` ("crop", "squash" or "pad"), `input`; `labels` where known.
        call: further keyword arguments that `base` needs at every call (transformers).
        notes: what the person should know about the weights; they go into the export's report.
        fixed_batch: why the first axis of the inputs cannot be left free; empty where it can.
    """

    module: torch.nn.Module
    base: torch.nn.Module
    example_inputs: Mapping[str, torch.Tensor]
    output_names: tuple[str, ...]
    source: str
    library: str
    preprocessing: Mapping[str, Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fixed_batch: str = ""


def parse_source(text: str) -> Source:
    """Split a SOURCE string.

    Raises:
        UsageError: it has none of the possible forms; the message lists them.
    """
    head, _, query = text.partition("?")
    scheme, colon, name = head.partition(":")
    if not colon or not scheme or not name:
        raise UsageError(f"'{text}' is not a model source", hint=_forms())
    options = dict(_option(text, part) for part in query.split("&") if part)
    if scheme in SOURCES and scheme != "callable":
        return Source(text, scheme, name, options)
    if _CALLABLE.match(scheme) and _CALLABLE.match(name):
        return Source(text, "callable", head, options)
    raise UsageError(f"'{text}' is not a model source", hint=_forms())


def load_source(
    source: str | Source,
    *,
    random_weights: bool = False,
    image_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    perturb: bool = False,
    attention: str | None = None,
) -> LoadedModel:
    """Make the model that a SOURCE names.

    Args:
        source: see `SOURCES`.
        random_weights: no checkpoint is read and no network is used; weights come from seed 0.
        image_size: side of the square input image in pixels; None for the model's own.
        overrides: changes to the model's configuration. `depth`, `embed_dim`, `num_heads`,
            `mlp_ratio`, `patch_size`, `num_classes` are understood by every library; any other
            key is the library's own. They need random weights where they change a weight's shape.
        perturb: add N(0, 0.02) to every parameter (seed 0). Fresh models have branches that are
            zero and norms that are all alike; perturbed, every mistake shows.
        attention: "sdpa" or "eager", to leave set on the module; None for the library's default.

    Raises:
        UsageError: the source has no known form.
        ModelError: no such model, or one that cannot be built this way.
        MissingExtraError: the source's library is not installed.
    """
    parsed = parse_source(source) if isinstance(source, str) else source
    require("torch", f"loading {parsed.text}")
    import torch

    options = {**parsed.options, **(overrides or {})}
    request = LoadRequest(parsed, random_weights, image_size, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loaded: LoadedModel = import_module(_RECIPES[parsed.library]).load(request)
        if random_weights:
            _wake(loaded.module)
        if perturb:
            torch.manual_seed(0)
            _perturb(loaded.module)
    loaded.module.eval().requires_grad_(False)
    if attention is not None:
        from tcompile.models.attention import set_attention

        set_attention(loaded.base, attention)
    return loaded


def require(module: str, purpose: str) -> Any:
    """Import an optional module, or say which extra brings it.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
    """
    return packages.require(module, "export", purpose)


def unknown_name(request: LoadRequest, names: Iterable[str]) -> ModelError:
    """The error for a name that the library does not have, with the nearest ones it has."""
    source = request.source
    near = get_close_matches(source.name, list(names), n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "see the library's list of models"
    return ModelError(f"{source.library} has no model '{source.name}'", hint=hint)


def cannot_build(request: LoadRequest, error: Exception) -> ModelError:
    """The error for a library that refused the configuration."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    fresh = request.random_weights or request.source.library in ("callable", "zoo")
    hint = "" if fresh else "--random-weights builds the architecture without a checkpoint"
    return ModelError(f"cannot be built: {reason}", where=request.source.text, hint=hint)


def _option(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals or not key:
        raise UsageError(
            f"'{part}' in '{text}' is not an option", hint="write ?key=value&key=value"
        )
    try:
        return key, parse_json(value)
    except ValueError:
        return key, value


def _forms() -> str:
    return "possible sources: " + "; ".join(SOURCES.values())


def _wake(module: torch.nn.Module) -> None:
    """Fill linear layers that start at zero: a model that always answers 0 proves nothing."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.Linear) and not bool(part.weight.any()):
            torch.nn.init.normal_(part.weight, std=0.02)


def _perturb(module: torch.nn.Module) -> None:
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.02)
