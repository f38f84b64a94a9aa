"""Published facts about latency against tokens, held against modelled numbers only."""

from __future__ import annotations

import math

import pytest

from tcompile.profiling.roofline import device_of, modelled
from tcompile.targets import list_targets, load_target

PUBLISHED = [  # jetson-ai-lab's benchmarks: frames per second of ViT-B in fp16, batch 1
    ("jetson-orin-nano", 197, 16, 158.0),
    ("jetson-orin-nano", 50, 32, 273.0),
    ("jetson-orin-nano", 257, 14, 126.0),
    ("jetson-orin-nano:original", 197, 16, 98.0),
    ("jetson-orin-nano:original", 50, 32, 171.0),
    ("jetson-orin-nano:original", 257, 14, 75.0),
]


@pytest.mark.parametrize(("target", "tokens", "patch", "fps"), PUBLISHED)
def test_orin_nano_is_in_the_published_range(latency, target, tokens, patch, fps):
    ms = latency(tokens, device_of(load_target(target), "fp16"), patch=patch)
    assert 0.65 < ms / (1000 / fps) < 1.35


def test_orin_nano_has_steps_at_tile_multiples(latency):
    device = device_of(load_target("jetson-orin-nano"), "fp16")
    at = {n: latency(n, device) for n in (98, 128, 129, 160, 192, 193, 256, 257)}
    assert at[128] / at[98] < 1.05  # a plateau: 30 tokens more for nothing
    assert at[129] / at[128] > 1.2  # a step: one token more
    assert at[256] / at[193] < 1.15
    assert at[257] / at[256] > 1.15


def test_4090_gains_little_at_batch_1_and_much_at_batch_32(latency):
    device = device_of(load_target("rtx-4090"), "fp16")

    def gain(batch: int) -> float:
        return 1 - latency(120, device, batch) / latency(197, device, batch)

    assert gain(1) < 0.25
    assert gain(32) > 0.35
    assert gain(1) < 0.6 * gain(32)


def test_4090_batch_1_floor_is_not_set_by_tokens(latency):
    device = device_of(load_target("rtx-4090"), "fp16")
    # Halving the tokens once more gains next to nothing.
    assert latency(65, device) / latency(120, device) > 0.85


@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson-agx-orin", "t4"])
def test_int8_has_no_cliff_at_512_tokens(latency, name):
    """Its fused attention ends there, and attention in fp16 takes its place."""
    eight, half = (device_of(load_target(name), p) for p in ("int8", "fp16"))
    assert latency(513, eight) / latency(512, eight) < 1.25
    assert latency(513, eight) < latency(513, half)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_all_devices_give_positive_finite_times(vit, precision):
    for target in list_targets():
        if not target.figures:
            continue
        found = modelled(vit(), device_of(target, precision), precision=precision)
        assert math.isfinite(found.ms)
        assert found.ms > 0
        assert all(k.ms > 0 for k in found.kernels)


def test_lower_precision_is_faster(vit):
    for name in ("jetson-orin-nano", "rtx-4090", "t4"):
        ms = [
            modelled(vit(), device_of(load_target(name), p), precision=p).ms
            for p in ("int8", "fp16", "fp32")
        ]
        assert ms == sorted(ms)
