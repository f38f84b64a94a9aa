"""Losses kept by content: measured once for a model, a method, data and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcompile._version import __version__
from tcompile.core.cache import cached
from tcompile.core.model_files import describe_source
from tcompile.planning.losses.base import SCHEMA, SiteLosses

if TYPE_CHECKING:
    from tcompile.planning.request import Request

KIND = "losses"


def losses_key(
    model: str | Path,
    method: str,
    digest: str,
    sites: Sequence[str],
    counts: Sequence[int],
    request: Request,
) -> dict[str, Any]:
    """All that losses depend on, as JSON values.

    Args:
        method: as in `--method`, parameters included.
        digest: of the calibration data.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": describe_source(model).digests,
        "method": method,
        "data": digest,
        "sites": list(sites),
        "counts": sorted(set(counts)),
        "kind": request.losses,
        "outputs": request.outputs,
        "seed": request.seed,
        "bound": {**request.bound, "tower": request.tower},
    }


def cached_losses(key: Mapping[str, Any], make: Callable[[], SiteLosses]) -> SiteLosses:
    """The losses of a key, measured unless they were before."""
    found = cached(KIND, key, lambda: make().to_json(), SiteLosses.from_json)
    return SiteLosses.from_json(found)
