"""Devices as data."""

from __future__ import annotations

import json

import pytest

from tcompile.core.errors import UsageError
from tcompile.targets import list_targets, load_target
from tcompile.targets.devices import DEVICES
from tcompile.targets.versions import all_jetpacks, jetpacks_for

NAMES = {
    "cpu",
    "rtx-3060",
    "rtx-3090",
    "rtx-4060",
    "rtx-4070",
    "rtx-4090",
    "rtx-5090",
    "rtx-a2000",
    "l4",
    "a10",
    "t4",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-agx-thor",
}


def test_every_promised_device_is_there() -> None:
    assert {target.name for target in list_targets()} >= NAMES
    assert load_target("jetson-orin").name == "jetson-agx-orin"
    assert load_target(" RTX-4090 ").name == "rtx-4090"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_device_and_its_file_say_the_same(name: str) -> None:
    target = load_target(name)
    assert target.to_json() == json.loads((DEVICES / f"{name}.json").read_text())
    assert target.default_precision == ("fp32" if name == "cpu" else "fp16")
    assert (target.compute_capability is None) == (name == "cpu")
    for figure in target.figures.values():
        assert figure.source
        assert figure.confidence in {"measured", "reported", "computed", "recalled"}
        assert figure.value > 0


@pytest.mark.parametrize("name", sorted(NAMES - {"cpu"}))
def test_peaks_agree_with_sms_and_clock(name: str) -> None:
    """fp16 peak = SMs x clock x FLOP per clock and SM, a power of two; int8 is twice that."""
    target = load_target(name)
    for device in [target, *(target.variant(each) for each in target.variants)]:
        fp16, int8, sms, clock = (
            device.value(each) for each in ("fp16_dense", "int8_dense", "sm_count", "boost_clock")
        )
        assert fp16 is not None
        assert int8 is not None
        assert sms is not None
        assert clock is not None
        expected = {"8.7": 2048, "11.0": 8192}.get(device.compute_capability or "", 1024)
        assert fp16 * 1000 / (sms * clock) == pytest.approx(expected, rel=0.02)
        assert int8 == pytest.approx(2 * fp16, rel=0.02)


def test_a_variant_differs_where_its_data_says() -> None:
    small, large = load_target("jetson-agx-orin:32gb"), load_target("jetson-agx-orin")
    assert (small.value("memory"), large.value("memory")) == (32, 64)
    assert small.value("memory_bandwidth") == large.value("memory_bandwidth")
    assert small.value("no such figure") is None
    with pytest.raises(UsageError, match="jetson-agx-orin:32gb"):
        load_target("jetson-agx-orin:16gb")


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="rtx-4090") as error:
        load_target("rtx4090")
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match=r"known: .*cpu"):
        load_target("?")


def test_jetpacks() -> None:
    assert [j.jetpack for j in jetpacks_for(load_target("jetson-agx-thor"))][:2] == ["7.0", "7.1"]
    orin = {j.jetpack: j for j in jetpacks_for(load_target("jetson-orin-nano"))}
    assert orin["6.2"].trt_version == (10, 3)
    assert "7.0" not in orin  # Thor only
    assert "6.0" not in orin  # TensorRT 8.6
    assert jetpacks_for(load_target("rtx-3060")) == ()
    listed = {each for target in list_targets() for each in target.jetpacks}
    assert listed == {row.jetpack for row in all_jetpacks() if row.supported}
    for target in list_targets():
        family = "thor" if "thor" in target.name else "orin"
        assert all(family in row.families for row in jetpacks_for(target))
