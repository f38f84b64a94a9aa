"""Predicted activations against what ONNX Runtime's arena asks for, and the page of it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.memory import METHOD, Row, arena_of, page
from tcompile import pipeline
from tcompile.analysis.memory import Need, Storage, memory_of
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, save_tiny_vit


def test_the_arena_asks_for_no_less(tmp_path: Path) -> None:
    """At 257 tokens logits are most of it, at 65 the hidden layer. Inputs are not in the arena."""
    cpu = load_target("cpu")
    for image, width in ((128, 16), (64, 128)):
        spec = VitSpec(image=image, patch=8, width=width, heads=2, depth=3, mlp_ratio=4)
        path = save_tiny_vit(tmp_path / "vit.onnx", spec)
        dense = pipeline.reduce(path, method=METHOD).dense
        save(lower(dense, target=cpu, precision="fp32"), path)
        need = memory_of(dense, Storage()).activations - 3 * image**2 * 4
        assert need <= arena_of(path) <= 4 * need


def test_the_page_says_how_far_it_is_off() -> None:
    rows = [
        Row("m", "dense", "fp32", Need(90_000_000, 10_000_000), 100_000_000, 25_000_000, None),
        Row("m", "reduced", "int8", Need(30_000_000, 10_000_000), 31_000_000, 20_000_000, 80 << 20),
        Row("m", "dense", "fp16", Need(45_000_000, 5_000_000), 90_000_000, None, None),
    ]
    text = page(rows, "a machine", "1.32")
    assert "**Weights** are 90.0% to 96.8% of the bytes" in text
    assert "is 2.00 to 2.50 times as much" in text
    assert "holds 2.1 to 2.1 times as much" in text
    assert "| m | dense | fp32 | 90.0 | 100.0 | 90.0% | 10.0 | 25.0 | 2.50 | 100.0 |  |  |" in text
    assert "| m | dense | fp16 | 45.0 | 90.0 | 50.0% | 5.0 |  |  | 50.0 |  |  |" in text
