"""Tiny ONNX ViTs for fast tests: no torch, no files, a second's work at most."""

from __future__ import annotations

from pathlib import Path

import onnx

from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights

__all__ = ["VitSpec", "build_vit", "random_weights", "save_outlying_vit", "save_tiny_vit"]


def save_tiny_vit(
    path: Path, spec: VitSpec | None = None, *, batch: int | None = 1, seed: int = 0
) -> Path:
    """Write a random ViT (17 tokens, width 32, three blocks unless told) and return its path."""
    spec = spec or VitSpec()
    model = build_vit(spec, random_weights(spec, seed), batch=batch)
    onnx.save(model, str(path))
    return path


def save_outlying_vit(path: Path, spec: VitSpec) -> Path:
    """Write one whose norms make one channel 1e6 times as large as the others, and what reads it
    makes up for it: nothing changes in fp32, and bytes hold nothing but that channel."""
    weights = random_weights(spec)
    reads = {f"blocks.{i}.norm1": f"blocks.{i}.attn.qkv" for i in range(spec.depth)}
    reads |= {f"blocks.{i}.norm2": f"blocks.{i}.mlp.fc1" for i in range(spec.depth)}
    for norm, reader in {**reads, "norm": "head"}.items():
        weights[f"{norm}.weight"][7] *= 1e6
        weights[f"{norm}.bias"][7] *= 1e6
        weights[f"{reader}.weight"][:, 7] *= 1e-6
    onnx.save(build_vit(spec, weights, batch=1), str(path))
    return path
