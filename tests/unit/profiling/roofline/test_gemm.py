from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.profiling.roofline.device import Device, Tile, device_of
from tcompile.profiling.roofline.times import Product, memory_time, product_time, resident_tiles
from tcompile.targets import load_target

#: 4 cores of 100 FLOP a clock at 1 GHz; nothing but the arithmetic of one tile shape costs time.
PLAIN = Device(
    name="plain",
    cpu=False,
    precision="fp16",
    cores=4,
    clock=1e9,
    matrix=100.0,
    vector=100.0,
    memory=1e15,
    cache=1e15,
    cache_size=1e9,
    scratch=1.0,
    launch=0.0,
    mainloop=1.0,
    prologue=0.0,
    tiles=(Tile(64, 64, 8),),
)
ORIN = device_of(load_target("jetson-orin-nano"), "fp16")


def seconds(device: Device, rows: int, columns: int, inner: int, batch: int = 1) -> float:
    return product_time(Product(batch, rows, columns, inner, weight=True), device).work


def test_one_wave_of_one_tile_each():
    # A tile: 2·64·64·1024 / 100 clocks, and an eighth more for its eight warps.
    tile = 2 * 64 * 64 * 1024 / 100 * 1e-9 * 9 / 8
    assert seconds(PLAIN, 128, 128, 1024) == pytest.approx(tile)


def test_a_fast_core_waits_for_its_loads():
    # 32 steps of 64 bytes along K, two loads of 800 clocks in flight.
    assert seconds(replace(PLAIN, matrix=1e6), 128, 128, 1024) == pytest.approx(32 * 400e-9)


def test_waves_follow_each_other():
    one = seconds(PLAIN, 128, 128, 1024)
    assert seconds(PLAIN, 129, 128, 1024) == pytest.approx(2 * one)  # 6 tiles on 4 cores
    assert seconds(PLAIN, 256, 128, 1024) == pytest.approx(2 * one)
    assert seconds(PLAIN, 257, 128, 1024) == pytest.approx(3 * one)


def test_tiles_on_one_core_hide_each_others_waits():
    device = replace(PLAIN, scratch=1e9)
    assert resident_tiles(device, Tile(64, 64, 8)) == 8
    tile = 2 * 64 * 64 * 1024 / 100 * 1e-9
    assert seconds(device, 256, 128, 1024) == pytest.approx((2 + 1 / 8) * tile)


@pytest.mark.parametrize(
    ("scratch_kib", "tile", "count"),
    [
        (100, Tile(128, 128, 8), 2),  # registers: 64 KiB of accumulators each
        (64, Tile(128, 128, 8), 1),  # 48 KiB of shared memory each
        (164, Tile(256, 128, 8), 1),
        (164, Tile(64, 64, 4), 6),
    ],
)
def test_resident_tiles(scratch_kib, tile, count):
    assert resident_tiles(replace(PLAIN, scratch=scratch_kib * 1024), tile) == count


def test_split_k_fills_idle_cores_only():
    free = replace(PLAIN, cache=1e18)
    single = seconds(free, 64, 64, 8192)  # one tile, four cores
    whole = seconds(free, 128, 128, 8192)  # four tiles
    assert single < 0.5 * whole
    costly = replace(PLAIN, launch=1.0)  # adding the parts up is another kernel
    assert seconds(costly, 64, 64, 8192) == pytest.approx(whole)


def test_the_batch_joins_the_rows_of_a_weight_only():
    shared = product_time(Product(4, 50, 768, 768, weight=True), ORIN)
    assert shared == product_time(Product(1, 200, 768, 768, weight=True), ORIN)
    own = product_time(Product(4, 50, 768, 768), ORIN)
    assert own.memory > shared.memory


def test_a_row_times_a_matrix_takes_what_reading_the_matrix_takes():
    found = product_time(Product(1, 1, 4096, 4096, weight=True), ORIN)
    assert found.memory == pytest.approx(2 * 4096 * 4096 / (0.75 * 102e9), rel=0.01)
    assert found.work >= found.memory


def test_what_exceeds_half_the_cache_goes_to_memory():
    device = replace(PLAIN, memory=1e9, cache=1e12, cache_size=2e6)
    assert memory_time(device, 0, 1e6) == pytest.approx(1e-6)
    assert memory_time(device, 0, 3e6) == pytest.approx(2e-3)
    assert memory_time(device, 1e6, 0) == pytest.approx(1e-3)


def test_plateaus_and_steps_on_orin():
    # N = 3072 in tiles of 128: 24 columns of tiles, three waves of 8 for each 128 rows.
    ms = {n: seconds(ORIN, n, 3072, 768) for n in (96, 128, 129, 250, 256, 257)}
    assert ms[128] < 1.02 * ms[96]
    assert ms[129] > 1.3 * ms[128]
    assert ms[256] < 1.02 * ms[250]
    assert ms[257] > 1.2 * ms[256]


def test_more_of_anything_is_never_slower():
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows, columns, inner = (int(v) for v in rng.integers(1, 3000, 3))
        batch = int(rng.integers(1, 13))
        product = Product(batch, rows, columns, inner, bool(rng.integers(2)))
        base = replace(ORIN, cores=int(rng.integers(1, 60)))
        base = replace(base, cache=base.cores * 32e9)
        more = base.cores + int(rng.integers(1, 40))
        time = product_time(product, base).work
        # Each core brings its own bandwidth from the cache.
        assert product_time(product, replace(base, cores=more, cache=more * 32e9)).work <= time
        for figure in ("memory", "cache", "matrix", "cache_size"):
            changed = replace(base, **{figure: getattr(base, figure) * 1.7})
            assert product_time(product, changed).work <= time * (1 + 1e-12)
        taller = replace(product, rows=rows + 1)
        assert product_time(taller, base).work >= time * (1 - 1e-12)
