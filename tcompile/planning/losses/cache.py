"""Losses kept by content: measured once for a model, a method, data and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tcompile._version import __version__
from tcompile.core.cache import cached
from tcompile.core.model_files import describe_source
from tcompile.planning.losses.base import SCHEMA, SiteLosses
from tcompile.planning.losses.data import Calibration

KIND = "losses"


def losses_key(
    model: str | Path,
    method: str,
    calibration: Calibration,
    sites: Sequence[str],
    counts: Sequence[int],
    *,
    kind: str = "calibrated",
    outputs: str = "reduced",
    seed: int = 0,
    bound: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that losses depend on, as JSON values.

    Args:
        method: as in `--method`, parameters included.
        bound: what else the model was read with (`shapes`, `prefix`).
    """
    source = describe_source(model)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "model": [source.sha256, *(f"{e.path} {e.sha256}" for e in source.external_data)],
        "method": method,
        "data": calibration.digest,
        "sites": list(sites),
        "counts": sorted(set(map(int, counts))),
        "kind": kind,
        "outputs": outputs,
        "seed": seed,
        "bound": dict(bound or {}),
    }


def cached_losses(key: Mapping[str, Any], make: Callable[[], SiteLosses]) -> SiteLosses:
    """The losses of a key, measured unless they were before."""
    found = cached(KIND, key, lambda: make().to_json(), SiteLosses.from_json)
    return SiteLosses.from_json(found)
