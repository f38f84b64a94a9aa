"""Measured losses equal those of whole reduced models, whatever crosses the cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.save import save
from tcompile.core.site import SiteName
from tcompile.methods.context import SiteRule
from tcompile.methods.method import Method
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.losses.base import SiteLosses
from tcompile.planning.losses.distance import distance
from tcompile.planning.losses.sensitivity import measured_losses
from tcompile.runtime.samples import Samples, run_all, samples_for
from tcompile.runtime.signature import signature
from tests.support.planted import method as method_on
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPEC = VitSpec(image=32, patch=8, width=32, heads=2, depth=3)
SITES = ("attn:0", "block:1", "attn:2", "output")


def tiny(folder: Path, **changes: object) -> Path:
    spec = VitSpec(**{**vars(SPEC), **changes})  # type: ignore[arg-type]
    return save_tiny_vit(folder / "vit.onnx", spec, batch=None)


def fixed(folder: Path) -> Path:
    return save_tiny_vit(folder / "vit.onnx", SPEC, batch=2)


def early(folder: Path) -> Path:
    """Tokens, and besides them the stream behind block 0, which later steps do not reach."""
    path = tiny(folder, pool="none")
    name = read(path).analysis.blocks[0].stream_out
    proto = onnx.load(path)
    shape = ["batch", SPEC.tokens, SPEC.width]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    onnx.save(proto, path)
    return path


def odd(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pytest.importorskip("torch")
        from tcompile.models import export
        from tests.oracles import exports

        loaded, _ = exports.masked(dark=True) if name == "masked" else exports.odd(name)
        path = folder / "odd.onnx"
        export(loaded, path, batch="dynamic", exporter="torchscript", check=False)
        return path

    return write


MODELS: dict[str, Callable[[Path], Path]] = {
    "classes": tiny,
    "tokens": lambda folder: tiny(folder, pool="none", prefix=2),
    "mean": lambda folder: tiny(folder, pool="mean", prefix=0),
    "fixed batch": fixed,
    "early": early,
    "rotary": odd("rotary"),
    "masked by the image": odd("masked"),
}

#: spatten reads the attention of every block so far.
METHODS = {
    "classes": ("topk", "tome", "evit", "spatten"),
    "rotary": ("topk", "tome"),
    "masked by the image": ("topk", "spatten"),
}


def rules(model: Analysed, *names: str) -> list[SiteRule]:
    """Sites to measure at, those among them that the method's own schedule has none of."""
    sites = [site for name in names if (site := model.analysis.site(name)) and site.legal]
    return [SiteRule(s.name, max(s.step("reduced"), 1)) for s in sites]


def whole(model: Analysed, one: Method, site: str, count: int, samples: Samples) -> float:
    """The loss of one step by running the dense and the reduced file."""
    (rule,) = rules(model, site)
    path = Path(model.source).with_name("whole.onnx")
    save(reduce_graph(model.graph, model.analysis, one.single_step(rule, count)).graph, path)
    return float(distance(run_all(model.source, samples), run_all(path, samples)).mean())


def measure(
    model: Analysed, method: str, counts: list[int], samples: Samples, memory: int = 1 << 29
) -> SiteLosses:
    one, sites = method_on(model, method), rules(model, *SITES)
    return measured_losses(model.graph, one, sites, counts, samples, memory=memory)


@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_whole_models(kind: str, tmp_path: Path) -> None:
    path = MODELS[kind](tmp_path)
    model, samples = read(path), samples_for(signature(path), count=5)
    tokens = model.analysis.shape.tokens
    count = (3 * tokens) // 4
    reached = False
    for method in METHODS.get(kind, ("topk", "evit")):
        found = measure(model, method, [count], samples)
        assert found.counts == (count, tokens)
        for site, (value, last) in found.at.items():
            expected = whole(model, method_on(model, method), site, count, samples)
            assert value == pytest.approx(expected, abs=1e-6)
            assert last == 0.0
            reached = reached or expected > 1e-4
    assert reached


def test_little_memory_gives_the_same(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=9)
    some = measure(model, "topk", [9], samples)
    for memory in (1, 200_000):
        less = measure(model, "topk", [9], samples, memory=memory)
        for site in some.at:
            np.testing.assert_allclose(less.at[site], some.at[site], atol=1e-7)


def test_what_a_reducer_cannot_do_is_noted_and_extrapolated(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    found = measure(read(path), "tome", [5, 12], samples_for(signature(path), count=2))
    # 16 patches merge in pairs: 8 stay at least.
    assert found.counts == (5, 12, 17)
    assert any("attn:0: not measured at 5 tokens" in note for note in found.notes)
    low, measured, _ = found.at["attn:0"]
    odds = measured / (1 - measured) * (0.75**2 / 0.25) / ((5 / 16) ** 2 / (11 / 16))
    assert low == pytest.approx(odds / (1 + odds))


def test_nothing_to_measure_is_said(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    samples = samples_for(signature(path), count=2)
    with pytest.raises(UsageError, match="no step of tome can be measured"):
        measure(read(path), "tome", [3], samples)


def test_the_same_twice_and_progress_is_shown(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    model, samples = read(path), samples_for(signature(path), count=3)
    one, sites = method_on(model, "evit"), rules(model, "attn:1", "attn:0")
    said: list[str] = []
    first, second = (
        measured_losses(model.graph, one, sites, [5, 9, 13], samples, progress=said.append)
        for _ in range(2)
    )
    assert first == second
    assert (first.images, first.kind) == (3, "calibrated")
    assert said[-1].endswith("(100 %)")


def test_counts_are_rounded_up_to_groups(tmp_path: Path) -> None:
    model = read(tiny(tmp_path))
    one = method_on(model, "topk")
    assert one.reachable(SiteRule(SiteName("attn:0")), [1, 2, 5, 17, 30, 5]) == [5, 2]
    assert one.reachable(SiteRule(SiteName("attn:0"), 4), [1, 2, 5, 6, 12, 15, 17]) == [13, 9, 5]
