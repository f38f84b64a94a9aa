"""Choice of the profile to plan with: given, measured before, measured now, or modelled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tcompile.core import cache
from tcompile.core.errors import UsageError
from tcompile.methods.method import Method
from tcompile.passes.stages import Analysed
from tcompile.planning.request import Request
from tcompile.planning.solve import latencies
from tcompile.planning.solve.latencies import dense_elsewhere, profile_for, profile_key
from tcompile.profiling import measure, runtimes
from tcompile.profiling.curve import Curve, Figure
from tcompile.profiling.profile import MeasuredProfile, ModelledProfile, Profile
from tcompile.targets import load_target
from tests.support.planted import CONDITIONS, Planted, method, model
from tests.support.tiny_vit import VitSpec, save_tiny_vit


@dataclass
class World:
    """Stands for the device: counts what is measured on it, and by which methods."""

    given: Analysed
    measured: list[list[str]] = field(default_factory=list)
    planted: Planted = field(default_factory=Planted)

    def measure(
        self, graph: Any, analysis: Any, methods: Sequence[Method], *_: Any, **__: Any
    ) -> Profile:
        self.measured.append([m.key for m in methods])
        return self.planted.profile(self.given, methods)

    def ask(self, *names: str, target: str = "cpu", **asked: Any) -> Profile:
        methods = [method(self.given, n) for n in names]
        return profile_for(
            self.given, methods, load_target(target), Request(**asked), "fp32", lambda _: None
        )


class FakeRuntime:
    def __init__(self, batch: int, threads: int | None) -> None:
        self.batch, self.threads = batch, threads

    def conditions(self) -> Any:
        return replace(CONDITIONS, batch=self.batch, threads=self.threads or 1, date="2001")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(model())
    monkeypatch.setattr(measure, "measure", found.measure)
    monkeypatch.setattr(
        runtimes,
        "runtime_for",
        lambda target, batch=1, threads=None, precision=None: FakeRuntime(batch, threads),
    )
    return found


def test_without_a_budget_of_latency_nothing_is_timed(world: World) -> None:
    assert world.ask("topk", keep=0.5).kind == "modelled"
    assert world.measured == []


@pytest.mark.parametrize(
    "asked", [{"latency": 5.0}, {"max_drop": 0.1, "calibration": "x"}, {"profile": "measure"}]
)
def test_what_has_to_be_exact_is_measured_and_kept(world: World, asked: dict[str, Any]) -> None:
    first = world.ask("topk", **asked)
    assert isinstance(first, MeasuredProfile)
    assert world.measured == [["topk"]]
    assert world.ask("topk", **asked) == first
    assert world.ask("topk", keep=0.5) == first, "measured before: better than the model"
    assert world.measured == [["topk"]]
    assert world.ask("topk", profile="model", latency=5).kind == "modelled"


def test_what_a_busy_machine_measured_is_not_taken_unasked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*given: Any, **more: Any) -> Profile:
        made = world.measure(*given, **more)
        curves = {
            part: Curve(
                tuple((n, replace(f, lower=0.8 * f.ms, upper=1.2 * f.ms)) for n, f in curve.points)
            )
            for part, curve in made.halves.items()
        }
        return replace(made, halves=curves)

    monkeypatch.setattr(measure, "measure", noisy)
    asked = world.ask("topk", latency=5)
    assert asked.busy
    assert world.ask("topk", latency=5) == asked, "asked for, it is"
    assert world.ask("topk", keep=0.5).kind == "modelled"


def test_a_method_that_lacks_is_measured_and_added(world: World) -> None:
    world.ask("topk", latency=5)
    assert world.ask("tome", keep=0.5).kind == "modelled"
    both = world.ask("topk", "tome", latency=5)
    assert world.measured == [["topk"], ["tome"]]
    assert set(both.reducers) == {"topk", "tome"}
    again = world.ask("tome", keep=0.5)
    assert again.kind == "measured"
    assert set(again.reducers) == {"topk", "tome"}
    assert len(world.measured) == 2


def test_other_conditions_are_measured_apart(world: World) -> None:
    world.ask("topk", latency=5)
    world.ask("topk", latency=5, batch=2)
    world.ask("topk", latency=5, threads=3)
    world.ask("topk", latency=5, outputs="restored")
    assert len(world.measured) == 4
    world.ask("topk", latency=5, threads=1)
    assert len(world.measured) == 4
    keys = [
        json.dumps(profile_key(given, load_target("cpu"), Request(latency=5)))
        for given in (world.given, model(VitSpec(depth=2)))
    ]
    assert keys[0] != keys[1]


def test_the_key_has_no_date(world: World) -> None:
    key = json.dumps(profile_key(world.given, load_target("cpu"), Request(keep=0.5)))
    assert "2001" not in key
    same = save_tiny_vit(Path(world.given.source).with_name("other.onnx"))
    from tcompile.pipeline import read

    moved = profile_key(read(same), load_target("cpu"), Request(keep=0.5))
    assert json.dumps(moved) == key, "a model is known by its content"


def test_a_damaged_entry_is_measured_again(world: World, own_cache: Path) -> None:
    world.ask("topk", latency=5)
    (entry,) = (own_cache / latencies.KIND).glob("*.json")
    document = json.loads(entry.read_text())
    document["value"]["halves"] = "gone"
    entry.write_text(json.dumps(document))
    assert world.ask("topk", keep=0.5).kind == "modelled"
    assert world.ask("topk", latency=5).kind == "measured"
    assert world.measured == [["topk"], ["topk"]]


def test_a_file_or_an_object_is_taken_as_it_is(world: World, tmp_path: Path) -> None:
    made = world.planted.profile(world.given, [method(world.given, "topk")], kind="modelled")
    path = tmp_path / "p.json"
    path.write_text(json.dumps(made.to_json()))
    assert world.ask("topk", latency=5, profile=made) is made
    assert world.ask("topk", latency=5, profile=path).to_json() == made.to_json()
    assert world.ask("topk", latency=5, profile=str(path)).kind == "modelled"
    assert world.measured == []
    path.write_text("{}")
    for wrong in (path, tmp_path / "nothing.json"):
        with pytest.raises(UsageError, match=wrong.name):
            world.ask("topk", latency=5, profile=wrong)


def test_a_gpu_that_is_not_here_is_modelled(world: World) -> None:
    found = world.ask("topk", target="rtx-4090", latency=5)
    assert isinstance(found, ModelledProfile)
    assert found.conditions.precision == "fp32"
    assert world.measured == []


def test_the_dense_model_is_known_in_a_precision_that_was_measured_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(precision: str, target: str = "cpu", **asked: Any) -> dict[str, float]:
        request = Request(keep=0.5, **asked)
        return dense_elsewhere(world.given, load_target(target), request, precision)

    def whole(*given: Any, **named: Any) -> Profile:
        return replace(world.measure(*given, **named), dense=Figure(7.5, 7.0, 8.0, 5))

    monkeypatch.setattr(measure, "measure", whole)
    assert known("int8") == {}
    world.ask("topk", latency=5.0)
    assert known("int8") == {"fp32": 7.5}
    assert known("fp32") == {}, "that is the plan's own"
    assert known("int8", batch=2) == {}
    assert known("fp16", target="rtx-4090") == {}
    assert known("int8", profile="p.json") == {}, "of another machine, or hour"
    assert len(world.measured) == 1


def test_a_gpu_that_is_not_here_is_not_measured() -> None:
    with pytest.raises(UsageError):
        World(model()).ask("topk", target="rtx-4090", profile="measure")


def test_what_was_measured_is_never_lost(
    world: World, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*names: str, fresh: bool = False) -> Profile:
        methods = [method(world.given, n) for n in names]
        asked = (world.given, methods, load_target("cpu"), Request(latency=5), lambda _: None)
        return latencies.measured(*asked, fresh=fresh)

    measured("topk", "evit")
    (entry,) = (own_cache / latencies.KIND).glob("*.json")
    kept = entry.read_bytes()

    def interrupted(*_: Any, **__: Any) -> Profile:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "measure", interrupted)
        for fresh, names in ((False, ("topk", "tome")), (True, ("topk",))):
            with pytest.raises(KeyboardInterrupt):
                measured(*names, fresh=fresh)
            assert entry.read_bytes() == kept
    measured("topk", fresh=True)
    assert world.measured == [["topk", "evit"], ["topk"]]
    assert set(measured("topk", "evit").reducers) == {"topk", "evit"}
    # A cache that cannot be written is done without, and what is in it is still read.
    monkeypatch.setattr(cache, "_write", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert set(measured("tome", "topk").reducers) == {"topk", "evit", "tome"}
    assert set(measured("topk", "evit").reducers) == {"topk", "evit"}


def test_a_cache_that_cannot_be(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TCOMPILE_CACHE", str(tmp_path / "file" / "below"))
    for _ in range(2):
        assert world.ask("topk", latency=5).kind == "measured"
    assert len(world.measured) == 2
