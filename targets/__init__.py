"""The devices tcompile compiles for: data in `devices/`, one backend a runtime in `backends/`."""

from __future__ import annotations

from tcompile.targets.devices import Target, list_targets, load_target

__all__ = ["Target", "list_targets", "load_target"]
