from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from tcompile.core.errors import UsageError
from tcompile.profiling.roofline import device_of
from tcompile.targets import list_targets, load_target


@pytest.mark.parametrize(
    ("name", "precision", "rate"),
    [
        ("jetson-orin-nano", "fp16", 2048),  # FLOP per clock and SM
        ("jetson-orin-nano", "int8", 4096),
        ("jetson-orin-nano", "fp32", 1024),  # TF32
        ("rtx-4090", "fp16", 512),  # GeForce: half with fp32 accumulate
        ("rtx-4090", "int8", 2048),
        ("rtx-a2000", "fp16", 1024),  # the same chip family, full rate
        ("t4", "fp16", 1024),
        ("t4", "fp32", 128),  # no TF32: 64 FMA lanes
    ],
)
def test_matrix_rates(name, precision, rate):
    assert device_of(load_target(name), precision).matrix == pytest.approx(rate, rel=0.03)


def test_only_geforce_is_halved():
    halved = {
        t.name
        for t in list_targets()
        if t.figures and device_of(t, "fp16").matrix * 4 <= device_of(t, "int8").matrix * 1.05
    }
    assert halved == {t.name for t in list_targets() if t.name.startswith("rtx-")} - {"rtx-a2000"}


def test_figures_become_units_of_one():
    device = device_of(load_target("t4"), "fp16")
    assert (device.cores, device.clock) == (40, 1.59e9)
    assert device.memory == pytest.approx(0.85 * 320e9)
    assert device.cache_size == 4 * 2**20
    assert device.scratch == 64 * 2**10
    assert device.feed * 40 == device.cache


def test_a_jetson_launches_slower_than_a_desktop():
    jetson, desktop = (device_of(load_target(n), "fp16") for n in ("jetson-orin-nano", "rtx-4090"))
    assert 1.5e-6 <= desktop.launch <= 2.5e-6 < jetson.launch


def test_variants_have_their_own_figures():
    fast, slow = (load_target(n) for n in ("jetson-orin-nano", "jetson-orin-nano:original"))
    assert device_of(slow, "fp16").clock < device_of(fast, "fp16").clock
    assert device_of(slow, "fp16").matrix == pytest.approx(device_of(fast, "fp16").matrix, rel=0.01)


def test_errors_name_what_is_missing():
    with pytest.raises(UsageError, match="cpu has no figures"):
        device_of(load_target("cpu"), "fp32")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        device_of(load_target("t4"), "fp8")
    t4 = load_target("t4")
    without = {k: v for k, v in t4.figures.items() if k != "l2_cache"}
    with pytest.raises(UsageError, match="l2_cache"):
        device_of(replace(t4, figures=MappingProxyType(without)), "fp16")
