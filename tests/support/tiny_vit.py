"""Tiny ONNX ViTs for fast tests: no torch, no files, a second's work at most."""

from __future__ import annotations

from pathlib import Path

import onnx

from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights

__all__ = ["VitSpec", "build_vit", "random_weights", "save_tiny_vit"]


def save_tiny_vit(
    path: Path, spec: VitSpec | None = None, *, batch: int | None = 1, seed: int = 0
) -> Path:
    """Write a random ViT (17 tokens, width 32, three blocks unless told) and return its path."""
    spec = spec or VitSpec()
    model = build_vit(spec, random_weights(spec, seed), batch=batch)
    onnx.save(model, str(path))
    return path
