"""Closing the loop: what was asked is built and measured; only a measurement puts dense in its
place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcompile.analysis.memory import Need
from tcompile.artifact.manifest import Fidelity, Flops, Latency, Manifest
from tcompile.builder import emit
from tcompile.builder.attempts import attempt_of
from tcompile.builder.checks import Evidence
from tcompile.builder.emit import Built, Models
from tcompile.builder.job import Job
from tcompile.core.errors import FailedBuildError, TcompileError, UsageError
from tcompile.core.model_files import SourceFile
from tcompile.core.schedule import Reduction, Schedule, Shape, Spec
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.pipeline import building, reducing
from tcompile.planning.memory import Memory
from tcompile.planning.optimise.tables import Plan, Step
from tcompile.planning.options.outcome import Outcome, Share
from tcompile.planning.request import Request
from tcompile.planning.solve import plan_report
from tcompile.planning.solve.plan_report import FixedPlan, PlanReport
from tcompile.profiling.plateaus import Plateau
from tcompile.report.shown import Shown
from tcompile.targets import load_target
from tcompile.targets.backends.base import BatchSizes, EmittedFiles

SHAPE = Shape(17, 1, 16, 3)
DENSE = 20.0


@dataclass(frozen=True)
class Made:
    """Stands for a reduced model and the dense one it came from."""

    schedule: Schedule
    graph: str = "reduced"
    dense: str = "dense"
    fp32_nodes: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Draft:
    """Stands for an artifact that is being written."""

    folder: Path

    def empty(self) -> Path:
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return self.folder


def schedule_of(keep: int) -> Schedule:
    steps = (Reduction("attn:0", Spec("cls"), Spec("topk"), keep),) if keep < 16 else ()
    return Schedule("topk", SHAPE, steps)


def outcome_of(keep: int) -> Outcome:
    return Outcome(
        "reduced" if keep < 16 else "dense",
        "asked",
        "that is what was asked",
        Share.kept(keep, 16),
        Share(0.5, 8, 16),
    )


@dataclass
class World:
    """A device on which a plan for so many ms keeps as many tokens, and takes what `ms` says.

    Attributes:
        ms: (attempt, predicted ms) → measured ms.
        dense_ms: measured; the prediction is DENSE.
        sure: whether what is faster can be told to be.
        quantized: whether the source is.
        pessimism: by which predictions are too high.
        whole: (graph, precision) → ms by the roofline, of a GPU.
        asked: latencies asked for, None for the dense model.
    """

    ms: Callable[[int, float], float]
    dense_ms: float = DENSE
    kind: str = "measured"
    named: bool = False
    refuses: float = 0.0
    sure: bool = True
    quantized: bool = False
    pessimism: float = 1.0
    whole: dict[tuple[str, str], float] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    requests: list[Request | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    filled: int = 0
    reduced: int = 0
    now: float = 0.0

    def read(self, *_: Any) -> Any:
        return SimpleNamespace(
            graph=SimpleNamespace(inputs=[]), analysis=SimpleNamespace(shape=SHAPE)
        )

    def solve(self, _: Any, request: Request, *__: Any) -> tuple[Schedule, PlanReport | FixedPlan]:
        budget = request.latency or 10.0
        self.requests.append(request)
        self.asked.append(budget)
        if budget < self.refuses:
            raise UsageError("no plan takes so little")
        keep, self.now = max(int(budget), 1), budget
        self.kind = "measured" if request.profile == "measure" else self.kind
        plan = Plan(
            (Step("attn:0", 17, keep + 1, 0.1, DENSE - budget),),
            (17,) * 3,
            (keep + 1,) * 3,
            keep + 1,
            self.pessimism * budget,
            DENSE - budget,
            DENSE,
        )
        planned = PlanReport(
            schedule_of(keep),
            plan,
            "a profile",
            self.kind,
            "none",
            outcome_of(keep),
            plateaus=(Plateau(keep, keep + 1, 1.0),),
        )
        own = FixedPlan(outcome_of(keep), {"keep": 0.5})
        return schedule_of(keep), own if self.named else planned

    def reduce(self, _: Any, schedule: Schedule, outputs: str, planned: Any, dump: Any) -> Made:
        if planned is None:
            self.requests.append(None)
            self.asked.append(None)
        return Made(schedule)

    def whole_ms(self, graph: str, target: Any, precision: str, batch: int) -> float | None:
        return None if target.runtime == "onnxruntime" else self.whole.get((graph, precision))

    def write(
        self,
        made: Made,
        lowered: Any,
        source: Any,
        owners: Any,
        job: Job,
        folder: Path,
        scratch: Path,
        memory: Memory,
        plain: Any,
        quantization: Any,
    ) -> Models:
        assert list(folder.iterdir()) == [], "what was built before is still there"
        self.filled += 1
        (folder / "model.onnx").write_text(str(made.schedule.final))
        (folder / "engine").mkdir()
        return Models(
            source=source,
            shipped=folder / "model.onnx",
            dense=scratch / "dense.onnx",
            pair=None,  # type: ignore[arg-type]
            owners=owners,
            schedule=made.schedule,
            token_ops=job.token_ops,
            inputs=(),
            outputs=(),
            flops=Flops(2, 1),
            memory=memory,
            widened=False,
            quantized=self.quantized,
        )

    def measure(
        self, source: Path, shipped: Path, target: Any, *, decide: bool, seconds: float, **_: Any
    ) -> Evidence:
        self.seconds.append(seconds)
        latency: tuple[Latency, ...] = ()
        faster = None
        if target.runtime == "onnxruntime":
            ms = self.dense_ms
            if decide:
                self.reduced += 1
                ms = self.ms(self.reduced, self.now)
                faster = ms < self.dense_ms and self.sure
            latency = (
                Latency("dense", "measured", self.dense_ms, "here", "it"),
                Latency("reduced", "measured", ms, "here", "it"),
            )
        return Evidence(Fidelity("planted", 1, ()), latency, (), faster)

    def build(
        self,
        folder: Path,
        *,
        target: str = "cpu",
        force: bool = False,
        refine: bool = False,
        **asked: Any,
    ) -> Manifest:
        device = load_target(target)
        job = Job(
            path=Path("m.onnx"),
            request=Request(**asked),
            target=device,
            precision="fp32",
            token_ops=choose_token_ops(device),
            batches=BatchSizes(),
            force=force,
            refine=refine,
        )
        made, _ = building._build_best(job, Draft(folder), lambda _: None)  # type: ignore[arg-type]
        return made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def made(ms: Any, **more: Any) -> World:
        found = World(ms if callable(ms) else lambda i, predicted: ms, **more)
        for stage, stand_in in {
            "read_asked": found.read,
            "memory_plan": lambda *_: Memory(Need(4, 3), Need(4, 2), 1),
            "describe_source": lambda path: SourceFile(str(path), 1, "0"),
            "Owners": lambda *_: None,
            "lower": lambda *_, **__: None,
            "write_models": found.write,
            "judge_models": lambda *_: None,
            "emit_model": lambda *_: Built(EmittedFiles(), ("of the build",), None),
            "evidence_of": lambda *_: None,
            "write_trace": lambda *_: (None, "not here"),
            "shown_of": lambda *_: Shown(why="not here"),
            "measure": found.measure,
        }.items():
            monkeypatch.setattr(building, stage, stand_in)
        monkeypatch.setattr(reducing, "schedule_for_request", found.solve)
        monkeypatch.setattr(reducing, "apply_schedule", found.reduce)
        monkeypatch.setattr(plan_report, "whole_ms", found.whole_ms)
        monkeypatch.setattr(emit, "signature", lambda _: SimpleNamespace(preprocessing={}))
        return found

    return made


def kept(folder: Path) -> int:
    """Patches that the one model in the folder keeps."""
    assert sorted(p.name for p in folder.iterdir()) == ["engine", "model.onnx"]
    return int((folder / "model.onnx").read_text())


def test_what_is_faster_stays(world: Any, tmp_path: Path) -> None:
    device = world(10.5)
    made = device.build(tmp_path, latency=10)
    assert (kept(tmp_path), device.filled) == (10, 1)
    assert made.faster is True
    assert (made.emitted, made.reason) == ("reduced", "asked")
    assert made.plan is not None
    assert "declined" not in made.plan
    assert made.plan["measured_off"] == pytest.approx(0.05)
    assert made.plan["front"] == []
    assert made.notes == ("of the build",)


def test_promised_milliseconds_are_measured_for_longer(world: Any, tmp_path: Path) -> None:
    device = world(10.5)
    device.build(tmp_path, latency=10)
    device.build(tmp_path, keep=0.5)
    assert device.seconds[0] >= 1
    assert device.seconds[1] == 0


@pytest.mark.parametrize("named", [False, True])
def test_what_is_not_faster_gives_way_to_dense(world: Any, tmp_path: Path, named: bool) -> None:
    device = world(21.0, named=named)
    made = device.build(tmp_path, keep=0.5)
    assert (kept(tmp_path), device.asked) == (16, [10.0, None])
    assert made.schedule["reductions"] == []
    assert (made.emitted, made.reason) == ("dense", "measured")
    assert made.kept == Share(1.0, 16, 16)
    assert made.asked == Share(0.5, 8, 16)
    first, second = made.summary
    why = (
        "the reduced model (topk, 10 of 16 patch tokens) was measured slower than dense here, "
        "21 ms against 20 ms; --force keeps it"
    )
    assert first == f"this is the dense model: {why}"
    assert second == "asked 0.50 (8 of 16 patch tokens), kept 1.00 (16)"
    assert made.notes == ("of the build",)
    assert made.plan is not None
    tried = made.plan["tried_schedule"]
    assert Schedule.from_json(tried["schedule"]) == schedule_of(10)
    assert (tried["dense_ms"], tried["ms"]) == (20.0, 21.0)
    assert tried["schedule"]["method"] == "topk"
    assert [(f.model, f.milliseconds) for f in made.latency] == [("dense", 20.0)]
    if named:
        assert made.plan["budget"] == {"keep": 0.5}


def test_what_is_as_fast_is_not_called_slower(world: Any, tmp_path: Path) -> None:
    device = world(19.9, sure=False)
    made = device.build(tmp_path, keep=0.5)
    assert made.emitted == "dense"
    assert "not shown to be faster than dense here, 19.9 ms against 20 ms" in made.summary[0]


@pytest.mark.parametrize("named", [False, True])
def test_force_keeps_it(world: Any, tmp_path: Path, named: bool) -> None:
    made = world(21.0, named=named).build(tmp_path, keep=0.5, force=True)
    assert kept(tmp_path) == 10
    assert made.faster is False
    assert bool(made.schedule["reductions"])
    assert made.emitted == "reduced"
    first, second = made.summary
    assert first.startswith("asked 0.50 (8 of 16 patch tokens), kept 0.62 (10), because")
    assert second == (
        "the reduced model was measured slower than dense here, 21 ms against 20 ms; "
        "it is kept because of --force"
    )


@pytest.mark.parametrize("kind", ["measured", "modelled"])
def test_a_prediction_replaces_nothing(world: Any, tmp_path: Path, kind: str) -> None:
    """Predicted to take three times as long, and measured to be faster; or not measured at all."""
    device = world(19.0, kind=kind, pessimism=6.0)
    for target in ("cpu", "jetson-orin"):
        made = device.build(tmp_path, target=target, latency=10)
        assert made.plan is not None
        assert made.plan["predicted_ms"] == 60
        assert (made.emitted, kept(tmp_path)) == ("reduced", 10)
    # What was measured is over the latency asked for, and planned again.
    assert (device.asked == [10, 10]) == (kind == "modelled")
    assert device.asked[-1] == 10


@pytest.mark.parametrize(
    ("ms", "dense_ms", "off"),
    [(10.9, 20.0, None), (11.2, 20.0, 0.12), (8.8, 20.0, -0.12), (20.0, 40.0, None)],
)
def test_a_prediction_that_was_off_is_said(
    world: Any, tmp_path: Path, ms: float, dense_ms: float, off: float | None
) -> None:
    """Shares of the dense latency count: a machine that runs at half its speed runs both so."""
    made = world(ms, dense_ms=dense_ms).build(tmp_path, keep=0.5)
    said = [n for n in made.notes if "predicted" in n]
    assert bool(said) == (off is not None)
    for note in said:
        assert made.plan is not None
        assert made.plan["measured_off"] == pytest.approx(off)
        assert f"{ms:.4g} of {dense_ms:.4g} ms where 10 of 20 ms were predicted" in note
        assert "more than 10% off (measured profile)" in note
        assert "--refine" in note


def test_a_latency_that_was_not_kept_is_said(world: Any, tmp_path: Path) -> None:
    made = world(11.5).build(tmp_path, latency=10)
    assert made.summary[-1] == "measured here it takes 11.5 ms, more than the 10 ms asked for"
    assert any("11.5 ms, more than the 10 ms asked for" in n for n in made.notes)
    other = world(10.9).build(tmp_path, latency=10)
    assert not any("asked for" in n for n in other.notes)


def test_refine_asks_for_as_much_less_as_it_took_longer(world: Any, tmp_path: Path) -> None:
    device = world(lambda i, predicted: 1.25 * predicted)
    made = device.build(tmp_path, latency=10, refine=True)
    assert device.asked == [10, 8]
    assert kept(tmp_path) == 8
    assert made.plan is not None
    assert made.plan["predicted_ms"] == 8
    assert made.plan["budget"] == {"latency_ms": 10}
    assert made.summary[0].startswith("asked 0.50 (8 of 16 patch tokens), at most 10 ms, kept 0.50")
    assert not any("--refine" in n for n in made.notes)


def test_a_latency_that_is_not_kept_is_planned_again(world: Any, tmp_path: Path) -> None:
    late = world(lambda i, predicted: 1.25 * predicted)
    made = late.build(tmp_path, latency=10)
    assert late.asked == [10, 8]
    assert kept(tmp_path) == 8
    assert not any("--refine" in note for note in made.notes)
    for ms, asked in ((10.9, {"latency": 10}), (5.0, {"latency": 10}), (15.0, {"keep": 0.5})):
        device = world(ms)
        device.build(tmp_path, **asked)
        assert len(device.asked) == 1
    modelled = world(12.5, kind="modelled")
    modelled.build(tmp_path, latency=10)
    assert modelled.asked == [10]


@pytest.mark.parametrize("error", [UsageError, FailedBuildError])
def test_a_second_plan_that_fails_leaves_the_first(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[TcompileError]
) -> None:
    device = world(lambda i, predicted: 12.5)
    measure = building.measure

    def fails_once(*given: Any, **more: Any) -> Any:
        if len(device.asked) == 2:
            raise error("no")
        return measure(*given, **more)

    monkeypatch.setattr(building, "measure", fails_once)
    made = device.build(tmp_path, latency=10)
    assert device.asked == [10, 8, 10]
    assert (made.emitted, kept(tmp_path)) == ("reduced", 10)


def test_refine_uses_what_was_left_over(world: Any, tmp_path: Path) -> None:
    device = world(lambda i, predicted: 0.8 * predicted)
    device.build(tmp_path, latency=10, refine=True)
    assert device.asked == [10, pytest.approx(12.5)]
    assert kept(tmp_path) == 12


@pytest.mark.parametrize(
    ("ms", "dense_ms", "asked"),
    [
        (13.0, 26.0, [10]),  # late, for the machine is slower than when it was profiled
        (13.0, 23.0, [10, 10 * 10 / (13 * 20 / 23)]),  # by less than the plan is late
        (7.0, 14.0, [10]),  # there is room, for it is faster
        (7.0, 17.0, [10, 10 * 10 / (7 * 20 / 17)]),
        (9.0, 25.0, [10]),  # as fast as asked, and as profiled there would be room
        (11.0, 19.0, [10, 10 * 10 / 11]),
    ],
)
def test_a_machine_at_another_pace_is_not_planned_for(
    world: Any, tmp_path: Path, ms: float, dense_ms: float, asked: list[float]
) -> None:
    device = world(lambda i, predicted: ms if i == 1 else 9.5, dense_ms=dense_ms)
    made = device.build(tmp_path, latency=10, refine=True)
    assert device.asked[:2] == pytest.approx(asked)
    if len(asked) == 1 and ms > 11:
        (note,) = [n for n in made.notes if "asked for" in n]
        assert note.endswith(
            "the machine is slower now; tcompile profile --fresh measures it again"
        )


def test_a_dense_model_that_the_profile_does_not_have_tells_no_pace(
    world: Any, tmp_path: Path
) -> None:
    """A quantised source may be slower than its fp32 form, which is what was profiled."""
    device = world(lambda i, predicted: 13.0 if i == 1 else 9.5, dense_ms=26.0, quantized=True)
    made = device.build(tmp_path, latency=10)
    assert device.asked == pytest.approx([10, 100 / 13])
    assert not any("slower now" in note for note in made.notes)


def test_dense_in_int8_is_its_own_pace() -> None:
    target = load_target("cpu")
    job = SimpleNamespace(request=Request(latency=10), target=target, refine=False, rounds=True)
    figures = (
        Latency("dense", "measured", 40.0, "here", "it"),
        Latency("reduced", "measured", 13.0, "here", "it"),
    )
    manifest = SimpleNamespace(reduced=False, precision="int8", rival=None, latency=figures)
    made = attempt_of(None, manifest, None, job)  # type: ignore[arg-type]
    assert (made.dense_ms, made.ms) == (13.0, 13.0)


def test_refine_stops_where_there_is_nothing_to_learn(world: Any, tmp_path: Path) -> None:
    for asked in ({"latency": 10}, {"keep": 0.5}):
        device = world(9.5)
        device.build(tmp_path, refine=True, **asked)
        assert device.filled == 1
    device = world(21.0, named=True)
    device.build(tmp_path, keep=0.5, refine=True)
    assert device.asked == [10.0, None]


@pytest.mark.parametrize(
    ("times", "best"), [((15, 13, 14), 1), ((13, 14, 15), 0), ((15, 14, 13), 2)]
)
def test_refine_keeps_the_best_of_three(
    world: Any, tmp_path: Path, times: Sequence[float], best: int
) -> None:
    """None within 10 ms: the one that is the least over."""
    device = world(lambda i, predicted: (*times, times[best])[i - 1])
    device.build(tmp_path, latency=10, refine=True)
    asked = device.asked[:3]
    assert len(asked) == 3
    assert device.asked[3:] == ([] if best == 2 else [asked[best]])
    assert kept(tmp_path) == max(int(asked[best]), 1)


def test_refine_that_asks_too_much_keeps_what_there_was(world: Any, tmp_path: Path) -> None:
    device = world(12.5, refuses=9.0)
    device.build(tmp_path, latency=10, refine=True)
    assert device.asked == [10, 8, 10]
    assert kept(tmp_path) == 10


def test_within_the_budget_less_loss_is_better(world: Any, tmp_path: Path) -> None:
    """7 ms of 10 leave room for 10 · 10 / 7 ms as predicted, which take 9.5 and lose less."""
    device = world(lambda i, predicted: {1: 7.0, 2: 9.5}[i])
    device.build(tmp_path, latency=10, refine=True)
    assert device.asked == [10, pytest.approx(100 / 7)]
    assert kept(tmp_path) == 14


def test_room_that_dense_does_not_fit_in_is_not_taken(world: Any, tmp_path: Path) -> None:
    device = world(lambda i, predicted: 5.0)
    device.build(tmp_path, latency=10, refine=True)
    assert device.asked == [10, 20, 10], "with 20 ms predicted it is the dense model"
    assert kept(tmp_path) == 10


def test_refine_measures_what_was_modelled(world: Any, tmp_path: Path) -> None:
    device = world(lambda i, predicted: 9.5, kind="modelled")
    made = device.build(tmp_path, latency=10, refine=True)
    assert [r.profile for r in device.requests if r] == [None, "measure"]
    assert made.plan is not None
    assert made.plan["latency_kind"] == "measured"


def test_refined_and_still_slower_is_dense(world: Any, tmp_path: Path) -> None:
    device = world(25.0)
    made = device.build(tmp_path, latency=10, refine=True)
    assert kept(tmp_path) == 16
    assert made.plan is not None
    assert "tried_schedule" in made.plan


def test_a_gpu_elsewhere_gets_what_was_modelled(world: Any, tmp_path: Path) -> None:
    made = world(0.0, kind="modelled").build(tmp_path, target="rtx-4090", latency=10)
    assert {(f.model, f.kind, f.milliseconds) for f in made.latency} == {
        ("dense", "modelled", DENSE),
        ("reduced", "modelled", 10.0),
    }
    assert all(f.runtime == "roofline" for f in made.latency)
    assert made.faster is None
    assert kept(tmp_path) == 10


def test_a_method_by_name_has_a_budget_and_a_modelled_latency(world: Any, tmp_path: Path) -> None:
    times = {("dense", "fp32"): 5.0, ("reduced", "fp32"): 4.9, ("reduced", "fp16"): 2.0}
    device = world(0.0, named=True, whole=times)
    made = device.build(tmp_path, target="rtx-4090", keep=0.5)
    assert {(f.model, f.kind, f.milliseconds) for f in made.latency} == {
        ("dense", "modelled", 5.0),
        ("reduced", "modelled", 4.9),
    }
    assert all("within 30%" in f.note for f in made.latency)
    plan = made.plan
    assert plan is not None
    assert (plan["budget"], plan["latency_kind"], plan["band"]) == ({"keep": 0.5}, "modelled", 0.3)
    assert (plan["predicted_ms"], plan["dense_ms"]) == (4.9, 5.0)
    assert made.notes[:2] == (
        "a modelled profile predicts 4.9 ms reduced, 5 ms dense: within the model's error; "
        "measure on the device",
        "fp16 is modelled 2.5 x faster than fp32 here (2 ms against 4.9 ms): --precision fp16",
    )
    assert made.emitted == "reduced"


def test_a_faster_precision_is_named_where_there_is_one(world: Any, tmp_path: Path) -> None:
    for named in (True, False):
        for faster, said in ((2.0, True), (4.5, False), (None, False)):
            times = {("reduced", "fp32"): 4.9}
            if faster is not None:
                times["reduced", "fp16"] = faster
            device = world(0.0, named=named, kind="modelled", whole=times)
            made = device.build(tmp_path, target="rtx-4090", keep=0.5)
            assert any("--precision fp16" in n for n in made.notes) == said
            # On a CPU, which has fp32 by default, nothing is faster.
            made = world(9.0, named=named, whole=times).build(tmp_path, keep=0.5)
            assert not any("--precision" in n for n in made.notes)
