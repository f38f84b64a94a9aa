from __future__ import annotations

from dataclasses import replace

import pytest

from tcompile.profiling.roofline.device import device_of
from tcompile.profiling.roofline.times import Attention, attention_time, fuses
from tcompile.targets import load_target

HALF, FULL, INT8 = (device_of(load_target("jetson-orin-nano"), p) for p in ("fp16", "fp32", "int8"))


def self_attention(n: int, size: int = 64, heads: int = 12) -> Attention:
    return Attention(1, heads, n, n, size)


@pytest.mark.parametrize(
    ("size", "fused"), [(8, False), (16, True), (20, False), (72, True), (256, True), (264, False)]
)
def test_head_sizes_that_fuse_in_half_precision(size, fused):
    assert fuses(self_attention(197, size), HALF) is fused


def test_what_never_fuses():
    assert not fuses(self_attention(197), FULL)
    assert not fuses(Attention(1, 12, 1, 197, 64), HALF)
    assert not fuses(Attention(1, 12, 1, 197, 64), INT8)


def test_attention_in_int8_is_that_in_fp16():
    for attention in (self_attention(512), self_attention(513), self_attention(197, 80)):
        assert fuses(attention, INT8)
        assert attention_time(attention, INT8) == attention_time(attention, HALF)


def test_keys_count_in_tiles_of_64():
    at = {
        n: attention_time(replace(self_attention(128), keys=n), HALF).compute
        for n in (129, 192, 193)
    }
    assert at[129] == at[192] < at[193]


def test_queries_count_in_blocks():
    # 12 heads on 8 cores; up to 32 rows are one block of the smallest tile.
    at = {n: attention_time(Attention(1, 12, n, 512, 64), HALF).compute for n in (17, 32, 33)}
    assert at[17] == at[32] < at[33]


def test_many_tokens_cost_their_square():
    ratio = attention_time(self_attention(4096), HALF).work
    ratio /= attention_time(self_attention(2048), HALF).work
    assert ratio == pytest.approx(4, rel=0.1)


def test_it_never_beats_the_matrix_peak():
    for n in (64, 197, 577, 2048):
        flops = 4 * 12 * n * n * 64
        peak = HALF.matrix * HALF.clock * HALF.cores
        assert attention_time(self_attention(n), HALF).work > flops / peak
