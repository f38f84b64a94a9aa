"""What a device was found to take for the models of a kit, as a profile of the model's parts.

`tcompile profile --kit DIR` writes models and a script; the script runs where trtexec is and writes
one file, `measured.json`; `--import` of that file comes here. A model of the kit loses its tokens
in one step, as early as it can: the parts before the step still carry all of them, and the step
itself takes time. Both are taken out again, so that what is left is the latency of a model that
carries n tokens throughout, as `imported_profile` wants it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcompile.core.decode import decode, read_json
from tcompile.core.errors import UsageError
from tcompile.core.model_files import describe_source
from tcompile.core.site import SiteName
from tcompile.methods.method import Method
from tcompile.profiling.curve import Curve, Figure, StepCost
from tcompile.profiling.imported import Work
from tcompile.profiling.structure import Layout

FORMAT, VERSION = "tcompile-measured", 1
NOTE = (
    "whole models with one early step each; the step and what runs before it were taken out, and "
    "parts are assumed to take time in proportion to FLOPs"
)
DENSE = "dense"
#: How far apart the dense model's slowest and fastest round may be before it is worth a note.
_DRIFT = 0.05
#: Token counts of the carrier that a curve needs: its step is told from one, a point is another.
LEAST_CARRIED = 2
_STEP_SITE = re.compile(r"(attn|block|around|inside):[0-9]{1,6}")


@dataclass(frozen=True)
class KitModel:
    """A model of a kit.

    Attributes:
        name: of its file, without the ending.
        tokens: behind its step, prefix included.
        method: of its step, as in `--method`; empty for the dense model.
        site: of its step.
    """

    name: str
    tokens: int
    method: str = ""
    site: str = ""


@dataclass(frozen=True)
class Kit:
    """What a kit is made of and for.

    Attributes:
        source, sha256: the model's file.
        target, precision, batch: that it is measured for.
        tokens, prefix: of the dense model.
        outputs: `reduced` or `restored`.
        carrier: the method whose models give the curve of latency against tokens.
        models: the dense one first.
    """

    source: str
    sha256: str
    target: str
    precision: str
    batch: int
    tokens: int
    prefix: int
    outputs: str
    carrier: str
    models: tuple[KitModel, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that it has models of, the carrier first."""
        named = [m.method for m in self.models if m.method]
        return tuple(dict.fromkeys([self.carrier, *named]))


@dataclass(frozen=True)
class Measured:
    """The file that the kit's script writes on the device.

    Attributes:
        kit: which was measured.
        tensorrt: the version, as trtexec writes it: 100300.
        board, power_mode: as the device tells them; empty where it does not.
        date: UTC.
        rounds: model → ms of each run, round after round.
    """

    kit: Kit
    tensorrt: str
    board: str
    power_mode: str
    date: str
    rounds: Mapping[str, tuple[tuple[float, ...], ...]]

    @property
    def version(self) -> str:
        """TensorRT's version as people write it."""
        number = int(self.tensorrt)
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def figure(self, name: str) -> Figure:
        """What all runs of a model took: median and quartiles, in ms."""
        return Figure.of([ms for each in self.rounds[name] for ms in each])

    @property
    def drift_note(self) -> str:
        """A sentence where the dense model did not take the same in all rounds; else empty."""
        medians = [Figure.of(list(each)).ms for each in self.rounds[DENSE]]
        apart = max(medians) / min(medians) - 1
        if apart <= _DRIFT:
            return ""
        return (
            f"the dense model's rounds lie {apart:.0%} apart: lock the clocks (sudo jetson_clocks) "
            "and measure again"
        )


def is_measured(path: str | Path) -> bool:
    """Tell whether a file is what a kit's script writes, whatever its name."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as stream:
        return FORMAT.encode() in stream.read(200)


def read_measured(path: str | Path) -> Measured:
    """Read the file.

    Raises:
        UsageError: it cannot be read, is not such a file or of another version, its kit is none
            that can be written, or a model of it was not measured; says which.
    """
    document = read_json(path, "what a kit's script writes")
    where = str(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UsageError("is not what a kit's script writes", where=where)
    if document.get("version") != VERSION:
        raise UsageError(f"is of version {document.get('version')}, this is {VERSION}", where=where)
    fields = {k: v for k, v in document.items() if k not in ("format", "version")}
    try:
        found = decode(Measured, fields)
        int(found.tensorrt)
    except ValueError as error:
        raise UsageError(f"is damaged: {error}", where=where) from error
    fault = _fault(found.kit)
    if fault:
        raise UsageError(f"is damaged: {fault}", where=where)
    for model in found.kit.models:
        rounds = found.rounds.get(model.name, ())
        times = [ms for each in rounds for ms in each]
        if not rounds or not all(rounds):
            raise UsageError(f"has no times of {model.name}", where=where)
        if not all(math.isfinite(ms) and ms > 0 for ms in times):
            raise UsageError(f"has times of {model.name} that are none", where=where)
    return found


def _fault(kit: Kit) -> str:
    """A sentence where a kit's models do not give a curve; else empty."""
    first, steps = kit.models[:1], kit.models[1:]
    if not first or first[0].name != DENSE or first[0].tokens != kit.tokens:
        return f"its first model is not the dense one, of {kit.tokens} tokens"
    for model in steps:
        if not 0 <= kit.prefix < model.tokens < kit.tokens:
            return (
                f"{model.name} has {model.tokens} tokens, which is not between the prefix, "
                f"{kit.prefix}, and the model's {kit.tokens}"
            )
        if not model.method or not _STEP_SITE.fullmatch(model.site):
            return f"{model.name} has its step at '{model.site}', which is not a site"
    if len({m.tokens for m in steps if m.method == kit.carrier}) < LEAST_CARRIED:
        return f"it has fewer than two models of {kit.carrier or 'its carrier'} with a step"
    return ""


def check_sites(measured: Measured, layout: Layout, work: Work, where: str) -> None:
    """Raise UsageError for a step at a block that the model does not have, or behind all of it.

    Args:
        where: the file that was read.
        layout, work: of the dense model.
    """
    blocks = len(layout.dense)
    for model in measured.kit.models[1:]:
        site = SiteName(model.site)
        if (site.block or 0) >= blocks:
            fault = f"the model has {blocks} blocks"
        elif _share_before(layout, work, site, model.tokens) > 1 - 1e-9:
            fault = "nothing runs behind it"
        else:
            continue
        raise UsageError(f"is damaged: {model.name} has its step at {site}; {fault}", where=where)


def source_digest(path: str | Path) -> str:
    """SHA-256 of a model, the weights beside it included."""
    source = describe_source(path)
    if not source.external_data:
        return source.sha256
    digests = [source.sha256, *(entry.sha256 for entry in source.external_data)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def curve_and_steps(
    measured: Measured, methods: Sequence[Method], layout: Layout, work: Work
) -> tuple[Curve, dict[str, StepCost]]:
    """Return the latency of a model that carries n tokens throughout, and what steps take.

    With T(n) that latency, F(n) the FLOPs of halves and head at n tokens, B(n) those of the halves
    before the step, and N the dense model's tokens, a model with a step from N to n takes
    T_stem + (T(N) − T_stem) · B(N) / F(N) + step + (T(n) − T_stem) · (1 − B(n) / F(n)).
    The carrier's step is what a model that loses the fewest tokens takes more than the dense one;
    T(n) follows from the carrier's models, and the other methods' steps from theirs and T.

    Args:
        methods: those of the kit that are wanted, by `Method.text`.
        layout, work: of the dense model.
    """
    kit = measured.kit
    dense = measured.figure(DENSE)
    whole = max(work.stem + work.total(kit.tokens), 1.0)
    stem = dense.ms * work.stem / whole

    def before(model: KitModel, tokens: int) -> float:
        return _share_before(layout, work, SiteName(model.site), tokens)

    def early(model: KitModel) -> float:
        return stem + (dense.ms - stem) * before(model, kit.tokens)

    steps: dict[str, list[tuple[int, int, Figure]]] = {}
    carried = sorted((m for m in kit.models if m.method == kit.carrier), key=lambda m: -m.tokens)
    step = measured.figure(carried[0].name).minus(dense.ms)
    steps[kit.carrier] = [(kit.tokens, carried[0].tokens, step)]
    points = {kit.tokens: dense}
    for model in carried[1:]:
        late = 1 - before(model, model.tokens)
        points[model.tokens] = _shifted(
            measured.figure(model.name), stem, -(step.ms + early(model)), 1 / late
        )
    curve = Curve.of(points.items())
    for model in kit.models:
        if model.method in ("", kit.carrier):
            continue
        through = float(curve.at([model.tokens])[0])
        late = (through - stem) * (1 - before(model, model.tokens))
        found = measured.figure(model.name).minus(early(model) + late)
        steps.setdefault(model.method, []).append((kit.tokens, model.tokens, found))
    keys = {m.text: m.key for m in methods}
    return curve, {keys[k]: StepCost(tuple(sorted(v))) for k, v in steps.items() if k in keys}


def _share_before(layout: Layout, work: Work, site: SiteName, tokens: int) -> float:
    """Share of FLOPs before a step, where all carries that many tokens."""
    names = _before(layout, site)
    return sum(work.of(s, tokens) for s in names) / max(work.total(tokens), 1.0)


def _before(layout: Layout, site: SiteName) -> list[str]:
    """Signatures of the halves that run before a site `attn:3` or `block:3`."""
    index = site.block or 0
    names = [s for pair in layout.dense[:index] for s in pair]
    names += layout.dense[index][: 1 if site.kind == "attn" else 2]
    return [s for s in names if s]


def _shifted(figure: Figure, base: float, by: float, times: float) -> Figure:
    low, middle, high = (
        base + max((t + by) * times, 0.0) for t in (figure.lower, figure.ms, figure.upper)
    )
    return Figure(middle, low, high, figure.runs)
