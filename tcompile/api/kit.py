"""`tcompile profile --kit` as a function: models and a script to measure on a Jetson.

The folder goes to the device by whatever means, its script writes one file there, and
`tcompile profile --import` reads that: nothing else passes between the two machines, so that a
command that copies and runs (by SSH, say) needs no more than this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from tcompile.api.profile import checked_precision, planned_methods
from tcompile.core.drafts import new_draft
from tcompile.core.errors import UsageError
from tcompile.core.model_files import describe_tensors
from tcompile.core.progress import Progress, silent
from tcompile.core.save import save
from tcompile.core.schedule import Schedule
from tcompile.methods.method import Method
from tcompile.methods.schedulers import Place
from tcompile.passes.lower import lower
from tcompile.pipeline import apply_schedule, read
from tcompile.planning.request import NO_METHOD
from tcompile.profiling.kit import (
    DENSE,
    FORMAT,
    LEAST_CARRIED,
    VERSION,
    Kit,
    KitModel,
    source_digest,
)
from tcompile.targets.backends.base import Batch
from tcompile.targets.backends.jetson import measured_shapes, shape_flags
from tcompile.targets.backends.measure_script import KIT, RESULT, SCRIPT, measure_script
from tcompile.targets.devices import ON_IMAGES, Target, load_target

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from tcompile.passes.normalize.bind_shapes import Shapes
    from tcompile.passes.stages import Analysed

#: Shares of the patch tokens that the carrier's models keep, unless told.
SHARES = (0.85, 0.7, 0.55, 0.4, 0.25)
#: Where another method's step is measured beside the smallest one.
_HALF = 0.55
#: Weights of this many bytes or more are shared by all models of a kit.
_LARGE = 1024
WEIGHTS = "weights.bin"


@dataclass(frozen=True)
class WrittenKit:
    """A kit that was written.

    Attributes:
        directory: where it lies.
        kit: what is in it.
        bytes: of all files.
    """

    directory: Path
    kit: Kit
    bytes: int

    @property
    def words(self) -> str:
        """What was written and what to do with it."""
        models = len(self.kit.models)
        return (
            f"wrote {self.directory}: {models} models, {self.bytes / 1e6:.0f} MB. Copy it to the "
            f"device, run `sh {SCRIPT}` there, and bring back {RESULT} for --import. An engine of "
            "each is built first; --method topk has the fewest"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"directory": str(self.directory), "bytes": self.bytes, **asdict(self.kit)}


def make_kit(
    model: str | Path,
    directory: str | Path,
    *,
    target: str,
    methods: Sequence[str] = (),
    counts: Sequence[int] = (),
    batch: int = 1,
    precision: str | None = None,
    outputs: str = "reduced",
    shapes: Shapes | None = None,
    prefix: int | None = None,
    tower: str | None = None,
    progress: Progress = silent,
) -> tuple[WrittenKit, tuple[str, ...]]:
    """Read a model and write a kit of it; returns it and notes.

    Args:
        directory: new, or an empty folder.
        counts: see `write_kit`.
        target, methods, batch, precision, outputs, shapes, prefix, tower: see `profile`.

    Raises:
        UsageError, ModelError: see `write_kit` and `pipeline.read`.
    """
    chosen = load_target(target)
    check_kit(chosen, directory)
    level = checked_precision(chosen, precision, modelled=False)
    progress(f"reading {model}")
    found = read(model, shapes=shapes, prefix=prefix, tower=tower)
    notes: list[str] = []
    planned = planned_methods(found, methods, outputs, notes)
    made = write_kit(
        found,
        planned,
        chosen,
        level,
        directory,
        counts=counts,
        batch=batch,
        outputs=outputs,
        progress=progress,
    )
    return made, tuple(notes)


def check_kit(target: Target, directory: str | Path) -> None:
    """Raise UsageError for a target that has no trtexec, or a folder that is not empty."""
    if target.runtime != "jetson":
        raise UsageError(
            f"a kit is measured with trtexec, on a Jetson; {target.name} is not one",
            where="--kit",
            hint="without --kit the profile is measured on this machine, or modelled",
        )
    final = Path(directory).resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UsageError("is there, and is not an empty folder", where=str(directory))


def write_kit(
    model: Analysed,
    methods: Sequence[Method],
    target: Target,
    precision: str,
    directory: str | Path,
    *,
    counts: Sequence[int] = (),
    batch: int = 1,
    outputs: str = "reduced",
    progress: Progress = silent,
) -> WrittenKit:
    """Write a kit, all of it or nothing.

    Args:
        methods: whose steps are measured. One that keeps any number of tokens gives the curve.
        counts: tokens that its models carry, prefix included; spread over all by default.

    Raises:
        UsageError: a precision that needs images, no method with a step to any count, counts that
            the model does not have, or too few of them for a curve.
    """
    if precision in ON_IMAGES:
        raise UsageError(f"a kit has no models in {precision}", where="--precision")
    final = Path(directory).resolve()
    shape = model.analysis.shape
    carrier = _carrier(methods)
    wanted = sorted(set(counts) or _spread(carrier, shape.patches, shape.prefix), reverse=True)
    for count in wanted:
        if not shape.prefix < count < shape.tokens:
            raise UsageError(
                f"{count} is not between the prefix, {shape.prefix}, and the model's "
                f"{shape.tokens} tokens",
                where="--counts",
            )
    plan = [KitModel(DENSE, shape.tokens), *_models(methods, carrier, wanted)]
    if sum(each.method == carrier.text for each in plan) < LEAST_CARRIED:
        counted = ", ".join(map(str, wanted))
        raise UsageError(
            f"{counted} gives {carrier.text} one model only, and a curve needs two",
            where="--counts",
            hint="give a smaller one, such as half the model's tokens",
        )
    kit = Kit(
        Path(model.source).name,
        source_digest(model.source),
        target.name,
        precision,
        batch,
        shape.tokens,
        shape.prefix,
        outputs,
        carrier.text,
        tuple(plan),
    )
    by_text = {m.text: m for m in methods}
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = new_draft(final)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(directory)) from error
    try:
        flags: tuple[str, ...] = ()
        shared = _Weights(draft.folder / WEIGHTS)
        for each in plan:
            progress(f"writing {each.name}")
            method = by_text.get(each.method)
            schedule = Schedule(NO_METHOD, shape, ())
            if method is not None:
                schedule = method.schedule(
                    [Place(method.sites[0].name, each.tokens - shape.prefix)]
                )
            reduced = apply_schedule(model, schedule, outputs)
            lowered: gs.Graph = lower(
                reduced.graph,
                target=target,
                precision=precision,  # type: ignore[arg-type]
                fp32_nodes=reduced.fp32_nodes,
            )
            path = draft.folder / f"{each.name}.onnx"
            save(lowered, path)
            inputs = describe_tensors(onnx.load(str(path), load_external_data=False))[0]
            flags = shape_flags(inputs, Batch(batch, batch, batch))
            shared.take(path)
        document = json.dumps(asdict(kit), indent=1) + "\n"
        (draft.folder / KIT).write_text(document, encoding="utf-8", newline="\n")
        names = [each.name for each in plan]
        head = f'{{"format": "{FORMAT}", "version": {VERSION}, "kit": '
        script = draft.folder / SCRIPT
        text = measure_script(names, flags, measured_shapes(flags), head)
        script.write_text(text, encoding="utf-8", newline="\n")
        script.chmod(0o755)
        size = sum(p.stat().st_size for p in draft.folder.iterdir())
        draft.put_in_place(final, lambda old: None)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(directory)) from error
    finally:
        draft.discard()
    return WrittenKit(Path(directory), kit, size)


def _carrier(methods: Sequence[Method]) -> Method:
    """The method whose first step may keep any number of tokens; the last such: it does least."""
    firsts = [(m, m.sites[0]) for m in methods]
    found = [m for m, r in firsts if r.most_dropped is None and r.name.block is not None]
    if not found:
        raise UsageError(
            "no method here may keep any number of tokens in one step",
            where="--method",
            hint="add --method topk",
        )
    return found[-1]


def _spread(carrier: Method, patches: int, prefix: int) -> list[int]:
    return carrier.reachable(carrier.sites[0], [round(s * patches) + prefix for s in SHARES])


def _models(
    methods: Sequence[Method], carrier: Method, counts: Sequence[int]
) -> Iterator[KitModel]:
    """The smallest step of each method; the carrier's at all counts, the others' at one more."""
    for method in methods:
        rule, shape = method.sites[0], method.context.shape
        if rule.name.block is None:
            continue
        asked = [shape.tokens - rule.granularity]
        if method is carrier:
            asked += counts
        else:
            share = 0.0 if rule.most_dropped is None else 1 - rule.most_dropped
            able = [n for n in counts if n - shape.prefix >= share * shape.patches]
            half = _HALF * shape.patches + shape.prefix
            asked += sorted(able, key=lambda n: abs(n - half))[:1]
        for count in method.reachable(rule, asked):
            name = f"{_plain(method.text)}-{count}"
            yield KitModel(name, count, method.text, str(rule.name))


def _plain(text: str) -> str:
    """A method as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in text)


class _Weights:
    """One file for the weights of several models: what two have alike is in it once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}

    def take(self, path: Path) -> None:
        """Move the large weights of a model into the file."""
        model = onnx.load(str(path))
        with self._path.open("ab") as stream:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < _LARGE:
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if digest not in self._places:
                    self._places[digest] = (stream.tell(), len(data))
                    stream.write(data)
                offset, length = self._places[digest]
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                del tensor.external_data[:]
                for key, value in (
                    ("location", self._path.name),
                    ("offset", str(offset)),
                    ("length", str(length)),
                ):
                    tensor.external_data.add(key=key, value=value)
        beside = path.with_name(f"{path.name}.data")
        beside.unlink(missing_ok=True)
        path.write_bytes(model.SerializeToString())
