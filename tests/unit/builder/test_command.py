"""The command that a report shows, typed again: it asks for the same."""

from __future__ import annotations

import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tcompile.builder.command import command_of
from tcompile.builder.job import Job
from tcompile.cli.build import build
from tcompile.cli.schedule_options import asked_of
from tcompile.passes.lower.token_ops import choose_token_ops
from tcompile.planning.request import Request
from tcompile.targets import load_target
from tcompile.targets.backends.base import BatchSizes
from tcompile.targets.compatibility import Compatibility, checked_compatibility

#: Options of the command that are no part of a request.
OTHERS = (
    *("model", "target", "precision", "token_ops", "output", "force", "refine", "keep_failed"),
    "workspace",
)
COMPATIBLE = ("version_compatible", "exclude_lean_runtime", "hardware_compatibility_level")
SIZES = ("min_batch", "opt_batch", "max_batch", "dump", "as_json")


def job(asked: dict[str, Any], target: str = "cpu", **more: Any) -> Job:
    device = load_target(target)
    settings = {
        "precision": device.default_precision,
        "token_ops": choose_token_ops(device),
        "batches": BatchSizes(),
        **more,
    }
    return Job(path=Path("my model.onnx"), request=Request(**asked), target=device, **settings)


@pytest.mark.parametrize(
    ("target", "asked", "more"),
    [
        ("cpu", {"keep": Fraction(3, 5)}, {}),
        ("cpu", {"keep": 0.6, "exact": True, "method": "tome"}, {"force": True}),
        ("cpu", {"latency": 12.5, "profile": "measure", "threads": 2}, {"precision": "int8"}),
        ("cpu-openvino", {"max_drop": 0.01, "calibration": Path("a b/im"), "seed": 3}, {}),
        ("cpu", {"schedule": "s.json", "outputs": "restored", "restore": "nearest"}, {}),
        (
            "jetson-orin",
            {"keep": 0.5, "shapes": {"image": ("n", 3, 32, 32)}, "batch": 2},
            {"batches": BatchSizes(1, 2, 4, 2), "refine": True, "workspace": 512},
        ),
        ("jetson-orin", {}, {"compatibility": Compatibility(version=True, lean_runtime=True)}),
        ("jetson-orin", {}, {"compatibility": Compatibility(version=True)}),
        ("rtx-4090", {}, {"compatibility": Compatibility(hardware="ampere-plus")}),
    ],
)
def test_typed_again_it_asks_for_the_same(
    target: str, asked: dict[str, Any], more: dict[str, Any]
) -> None:
    made = job(asked, target, **more)
    program, command, *words = shlex.split(command_of(made))
    assert (program, command) == ("tcompile", "build")
    options = build.make_context("build", words).params
    assert options["model"] == Path("my model.onnx")
    assert load_target(options["target"]) == made.target
    assert (options["precision"] or made.target.default_precision) == made.precision
    for name in ("force", "refine", "keep_failed", "workspace"):
        assert options[name] == getattr(made, name)
    version, exclude, hardware = (options[name] for name in COMPATIBLE)
    assert made.compatibility == checked_compatibility(
        made.target, version=version, exclude_lean_runtime=exclude, hardware=hardware
    )
    sizes = {f"--{n.replace('_', '-')}": options[n] for n in SIZES[:3] if options[n] is not None}
    assert sizes == dict(made.batches.asked)
    rest = {n: v for n, v in options.items() if n not in (*OTHERS, *COMPATIBLE, *SIZES)}
    again, want = Request.of(asked_of(rest)), made.request
    for name in vars(want):
        have, given = getattr(again, name), getattr(want, name)
        if name == "keep":
            have, given = (None if v is None else float(v) for v in (have, given))
        if name in ("schedule", "calibration"):
            have, given = (None if v is None else str(v) for v in (have, given))
        assert (have or None) == (given or None), name


def test_what_is_not_typed_is_said() -> None:
    said = command_of(job({"schedule": {"schema": 1}}))
    assert "--schedule SCHEDULE.json  # SCHEDULE.json: the schedule that was given as" in said
