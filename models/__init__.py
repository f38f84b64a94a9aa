"""The makers of ONNX files: source libraries, exporters, and the small models we train ourselves.

Nothing here imports torch until a source is loaded (PEP 562), so `import tcompile.models` costs
next to nothing and works with the core alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcompile.models.exporters import export
    from tcompile.models.report import ExportReport
    from tcompile.models.source import SOURCES, LoadedModel, Source, load_source, parse_source

_LAZY = {
    "SOURCES": "tcompile.models.source",
    "ExportReport": "tcompile.models.report",
    "LoadedModel": "tcompile.models.source",
    "Source": "tcompile.models.source",
    "export": "tcompile.models.exporters",
    "load_source": "tcompile.models.source",
    "parse_source": "tcompile.models.source",
}

__all__ = [
    "SOURCES",
    "ExportReport",
    "LoadedModel",
    "Source",
    "export",
    "load_source",
    "parse_source",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tcompile.models' has no attribute {name!r}")
