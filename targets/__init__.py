"""The devices tcompile compiles for: data in `devices/`, one backend a runtime in `backends/`."""

from __future__ import annotations

from tcompile.targets.jetpack import JetPack, jetpacks_for
from tcompile.targets.target import Figure, Target, list_targets, load_target

__all__ = ["Figure", "JetPack", "Target", "jetpacks_for", "list_targets", "load_target"]
