"""Losses are measured once for a model, a method, data and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile.core.cache import entry_path
from tcompile.pipeline import read
from tcompile.planning.losses.base import SiteLosses
from tcompile.planning.losses.data import Calibration
from tcompile.planning.request import Request
from tcompile.planning.solve import method_tables
from tcompile.planning.solve.method_tables import losses_key, losses_on
from tcompile.runtime.samples import Samples
from tests.support.planted import method
from tests.support.tiny_vit import VitSpec, save_tiny_vit

LOSSES = SiteLosses((5, 9, 17), {"attn:0": (0.3, 0.1, 0.0)}, 1, 1, "nats", "calibrated", 2, "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "cache"))


def data(seed: int) -> Calibration:
    images = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)
    return Calibration.of(Samples({"image": images}, "2", True), None)


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(*_: Any, **__: Any) -> SiteLosses:
        calls.append(1)
        return LOSSES

    monkeypatch.setattr(method_tables, "measured_losses", measure)
    model = read(save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1)))
    given = (model, Request(), data(0), print, method(model, "topk"))
    n = np.array(LOSSES.counts)
    first, again = (losses_on(*given)[0]("attn:0", n[-1:], n) for _ in range(2))
    assert first.tolist() == again.tolist() == [0.3, 0.1, 0.0]
    assert len(calls) == 1
    (entry,) = (tmp_path / "cache" / "losses").glob("*.json")
    # Losses that fall as more tokens stay no longer: valid JSON, but not what was written.
    entry.write_text(entry.read_text().replace("0.3", "0.05"))
    assert losses_on(*given)[0]("attn:0", n[-1:], n).tolist() == first.tolist()
    assert len(calls) == 2


def test_whatever_losses_depend_on_is_in_the_key(tmp_path: Path) -> None:
    one = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    other = save_tiny_vit(tmp_path / "other.onnx", VitSpec(depth=1), seed=1)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(one.read_bytes())

    def key(
        model: Path = one,
        method: str = "topk",
        images: int = 0,
        sites: str = "attn:0",
        counts: tuple[int, ...] = (5, 9),
        **more: Any,
    ) -> str:
        digest, request = data(images).digest, Request(**more)
        made = losses_key(model, method, digest, [sites], counts, request)
        return entry_path("losses", made).name

    assert key() == key(copy) == key(counts=(9, 5, 5))
    changed = [
        key(),
        key(other),
        key(method="topk:site=block"),
        key(images=1),
        key(sites="block:0"),
        key(counts=(5,)),
        key(losses="attention"),
        key(outputs="restored"),
        key(seed=1),
        key(prefix=2),
        key(tower="image"),
        key(shapes={"image": ["batch"]}),
    ]
    assert len(set(changed)) == len(changed)
