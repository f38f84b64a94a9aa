"""tcompile: compile vision transformers so that they carry fewer tokens.

The public API is re-exported lazily (PEP 562), so `import tcompile` costs next to nothing and needs
no optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tcompile._version import __version__

# In a checkout the sibling folders (passes/, plugins/, targets/, models/) are our subpackages;
# an installed package has them inside and this does nothing.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "passes").is_dir():
    __path__.append(str(_root))

#: Public name → the module it lives in.
_LAZY = {
    **dict.fromkeys(
        ("build", "explain", "inspect", "plan", "price", "reduce"), "tcompile.pipeline"
    ),
    **dict.fromkeys(("export", "load_source"), "tcompile.models"),
    **dict.fromkeys(("load_target", "list_targets"), "tcompile.targets"),
    "load": "tcompile.deploy.load",
    "init_app": "tcompile.deploy.app",
    "evaluate": "tcompile.api.evaluate",
    "profile": "tcompile.api.profile",
    "doctor": "tcompile.api.doctor",
    "Schedule": "tcompile.core.schedule",
    "TcompileError": "tcompile.core.errors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tcompile' has no attribute {name!r}")
