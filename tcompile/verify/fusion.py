"""Counting the fused attention kernels in an artifact's engine."""

from __future__ import annotations

from tcompile.artifact.directory import Artifact
from tcompile.targets.backends.base import FusedAttention


def fused_attention(artifact: Artifact) -> FusedAttention | None:
    """Expected, found and missing attention kernels, counted anew.

    None for an artifact without an engine, and for fp32, for which there are no fused kernels.
    """
    engines = sorted(artifact.directory.glob("engine/*.engine"))
    if not engines or artifact.manifest.fused_attention is None:
        return None
    from tcompile.core.load import load
    from tcompile.targets.backends.fusion import fused_attention as count

    return count(engines[0].read_bytes(), load(artifact.model))


def fused_on_device(artifact: Artifact) -> tuple[str, FusedAttention] | None:
    """The layers file of an engine that was built on a Jetson, the newest, and what it says of
    fused attention; None where there is no such file, it names no layers, or none are expected."""
    files = sorted(artifact.directory.glob("engine/*.layers.json"), key=lambda p: p.stat().st_mtime)
    if not files or artifact.manifest.precision == "fp32":
        return None
    from tcompile.core.load import load
    from tcompile.targets.backends.fusion import compare_kernels, layers_of_device

    layers = layers_of_device(files[-1].read_text(encoding="utf-8", errors="replace"))
    if not layers:
        return None
    name = files[-1].relative_to(artifact.directory).as_posix()
    return name, compare_kernels(layers, load(artifact.model))


def fusion_fault(fused: FusedAttention) -> str:
    """A sentence naming the layers that are not fused; empty when all are."""
    if fused.ok:
        return ""
    layers = f": {', '.join(fused.missing)}" if fused.missing else ""
    return (
        f"{fused.expected - fused.found} of {fused.expected} attention layers are not fused{layers}"
    )
