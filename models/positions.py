"""How a model's own code has its positions for another image size, as `export` records it.

The rule is read from that code: what the library's function does with a table of positions when the
image has another size. What cannot be read is left out.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tcompile.core.decode import parse_json

if TYPE_CHECKING:
    import torch

    from tcompile.models.source import LoadedModel

POSITIONS_KEY = "tcompile.positions"
#: What transformers calls its functions, and DINOv2's own code.
_METHODS = (
    "interpolate_pos_encoding",
    "interpolate_pos_embeddings",
    "resize_positional_embeddings",
)
_MODE = re.compile(r"mode\s*=\s*[\"'](bicubic|bilinear)[\"']")
#: timm's grids of rotary positions.
_TIMM_GRIDS = {"pixel": "corners", "centered": "centred"}


def read_positions(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the rules that `export` recorded, by `table`, `relative` and `rotary`; those that are
    not there are not known."""
    try:
        found = parse_json(metadata.get(POSITIONS_KEY, "{}"))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def recorded_positions(loaded: LoadedModel) -> dict[str, str]:
    """Return the entry of a model's metadata; none where nothing is known."""
    rules = dict(_rules(loaded.library, loaded.base))
    return {POSITIONS_KEY: json.dumps(rules)} if rules else {}


def _rules(library: str, base: torch.nn.Module) -> Iterator[tuple[str, str]]:
    if library in ("timm", "open_clip"):
        yield "table", "bicubic-antialias"
        if library == "timm":
            yield "relative", "geometric"
    elif library == "torchvision":
        yield "table", "bicubic-corners"
    else:
        rules = {rule for m in base.modules() if (rule := _of_code(m)) is not None}
        if len(rules) == 1:
            yield "table", rules.pop()
    rotary = {rule for m in base.modules() if (rule := _rotary(library, m)) is not None}
    if len(rotary) == 1:
        yield "rotary", rotary.pop()


def _of_code(module: torch.nn.Module) -> str | None:
    """The rule that a module's own function follows."""
    for name in _METHODS:
        function = getattr(type(module), name, None)
        if function is None:
            continue
        try:
            code = inspect.getsource(function)
        except (OSError, TypeError):
            return None
        mode = _MODE.search(code)
        if mode is None:
            continue
        if re.search(r"align_corners\s*=\s*True", code):
            return f"{mode[1]}-corners"
        if re.search(r"antialias\s*=\s*True", code):
            return f"{mode[1]}-antialias"
        return f"{mode[1]}-offset" if re.search(r"\+\s*0\.1\b", code) else mode[1]
    return None


def _rotary(library: str, module: torch.nn.Module) -> str | None:
    """The rule of a module that makes rotary tables; None of others."""
    if library != "timm" or not hasattr(module, "ref_feat_shape"):
        return None
    kind = getattr(module, "grid_type", None) or (
        "pixel" if getattr(module, "in_pixels", False) else "index"
    )
    by_index = "index" if module.ref_feat_shape is None else "scaled"
    return _TIMM_GRIDS.get(str(kind), by_index)
