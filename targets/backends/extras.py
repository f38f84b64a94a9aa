"""Optional dependencies, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tcompile.core.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise MissingExtraError(module, extra, purpose) from error
