"""The devices tcompile compiles for: data in `devices/`, one backend a runtime in `backends/`."""

from __future__ import annotations

from tcompile.targets.devices import DeviceFigure, Target, list_targets, load_target
from tcompile.targets.versions import JetPack, jetpacks_for

__all__ = ["DeviceFigure", "JetPack", "Target", "jetpacks_for", "list_targets", "load_target"]
