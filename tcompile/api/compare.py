"""Builds side by side: what each takes and loses, which of them no other beats, and which to take.

Speeds are those over the dense fp32 model that ran beside each, so that builds of several days, on
a machine that is slower now and then, can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Manifest, OutputFidelity
from tcompile.core.errors import UsageError
from tcompile.report.build_page import render, speed
from tcompile.report.charts import Mark, scatter


@dataclass(frozen=True)
class Build:
    """An artifact among others.

    Attributes:
        name: of its directory, or more of the path where two have the same.
        method: that its tokens leave by; `dense` where none leaves.
        kept: share of the patch tokens; None where the manifest is older.
        milliseconds: of a batch; None where it is not known, as for `speed`.
        speed: how many times as fast as the dense model in fp32; on a GPU as the dense one.
        interval: of the speed, 95 %; None where it is modelled or not known.
        kind: of latency and speed.
        loss, worst: 1 - correlation (or cosine) to the dense model of one output, the mean and the
            worst image; None where fidelity was not looked at.
        top1: share of the images whose best class is the same; None where there are no classes.
        file_bytes: of model.onnx.
        flops: of one image.
        data: what losses were seen on.
        images: by which these are known; empty where they are not.
        source: digests of the files of the model that was compiled.
        target: that it is for.
        beaten: another one of the same model and target that is as fast or faster and loses no
            more on the same images; empty: none is.
        fault: the check that it failed, where it was kept for debugging; it is then never one to
            take. Empty: none.
    """

    name: str
    method: str
    precision: str
    kept: float | None
    milliseconds: float | None
    speed: float | None
    interval: tuple[float, float] | None
    kind: str
    loss: float | None
    worst: float | None
    top1: float | None
    file_bytes: int | None
    flops: int
    data: str
    images: str
    source: tuple[str, ...]
    target: str
    beaten: str = ""
    fault: str = ""

    @property
    def verdict(self) -> str:
        """What is said of it among the others."""
        if self.fault:
            return "failed"
        return f"beaten by {self.beaten}" if self.beaten else "not beaten"


@dataclass(frozen=True)
class Comparison:
    """Builds side by side.

    Attributes:
        builds: by falling speed.
        figure: what a loss is.
        take: which to take, a line for each that no other beats, or the one that a limit asks for.
        notes: why figures may not be comparable.
    """

    builds: tuple[Build, ...]
    figure: str
    take: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def compare(
    artifacts: Sequence[str | Path], *, max_loss: float | None = None, latency: float | None = None
) -> Comparison:
    """Compare two or more builds of one model by their manifests; nothing is run.

    Args:
        max_loss: take the fastest that loses no more.
        latency: take the one that loses least within so many milliseconds.

    Raises:
        UsageError: fewer than two; no artifact there.
        ModelError: a manifest that is damaged.
    """
    if len(artifacts) < 2:
        raise UsageError("needs two artifacts or more", where="compare")
    manifests = [load_artifact(path).manifest for path in artifacts]
    output, figure = _figure([m for m in manifests if not m.fault] or manifests)
    builds = [
        _build(name, m, output, figure)
        for name, m in zip(_names(artifacts), manifests, strict=True)
    ]
    builds = [replace(b, beaten=_beaten(b, builds)) for b in builds]
    builds.sort(key=lambda b: (-(b.speed or 0.0), b.loss or 0.0))
    shown = f"1 - {figure} of {output}" if output else "not looked at"
    take = _take(builds, max_loss, latency)
    return Comparison(tuple(builds), shown, tuple(take), tuple(_notes(builds, manifests)))


def page_of(found: Comparison) -> str:
    """The comparison as one page of HTML.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    marks = [
        Mark(
            b.speed,
            b.loss,
            b.precision,
            b.name,
            f"{b.name}: {b.speed:.2f} times as fast, loss {b.loss:.3g}"
            + (", failed" if b.fault else ""),
            not b.beaten and not b.fault,
        )
        for b in found.builds
        if b.speed is not None and b.loss is not None
    ]
    line = sorted((m.x, m.y) for m in marks if m.ring)
    labels = ("times as fast as the dense model", "loss")
    chart = scatter("compare", "Builds by speed and loss", marks, labels, line) if marks else ""
    head, rows = table_of(found)
    return render("compare.html.j2", found=found, head=head, rows=rows, chart=chart)


def table_of(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table for people."""
    from tcompile.analysis.memory import size_words
    from tcompile.artifact.page import giga, milliseconds, share

    head = ["build", "method", "precision", "tokens", "latency", "speed", "95 %"]
    head += ["loss", "worst", "top-1 same", "FLOPs", "file", ""]
    rows = []
    for b in found.builds:
        spread = "" if b.interval is None else f"{b.interval[0]:.2f}–{b.interval[1]:.2f}"
        row = [b.name, b.method, b.precision]
        row += ["" if b.kept is None else f"{b.kept:.0%}"]
        row += ["" if b.milliseconds is None else f"{milliseconds(b.milliseconds)}, {b.kind}"]
        row += ["" if b.speed is None else f"{b.speed:.2f} ×", spread]
        row += ["" if v is None else f"{v:.3g}" for v in (b.loss, b.worst)]
        row += ["" if b.top1 is None else share(b.top1), giga(b.flops)]
        row += ["" if b.file_bytes is None else size_words(b.file_bytes)]
        rows.append([*row, b.verdict])
    return head, rows


def _names(artifacts: Sequence[str | Path]) -> list[str]:
    """Names of directories, with as much of their paths as tells them apart."""
    paths = [Path(path).resolve() for path in artifacts]
    for length in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-length:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same artifact twice", where="compare")


def _figure(manifests: Sequence[Manifest]) -> tuple[str, str]:
    """The output by which all are compared, the one that loses most over all, and its figure;
    empty where there is none that all have."""
    each = [{o.output: o for o in m.fidelity.outputs} if m.fidelity else {} for m in manifests]
    common = [name for name in each[0] if all(name in known for known in each)]
    if not common:
        return "", ""
    figures = {
        name: "correlation"
        if all(known[name].correlation_mean is not None for known in each)
        else "cosine"
        for name in common
    }
    lost = {n: sum(_likeness(k[n], figures[n])[0] for k in each) for n in common}
    output = min(common, key=lambda name: lost[name])
    return output, figures[output]


def _likeness(out: OutputFidelity, figure: str) -> tuple[float, float]:
    if figure == "correlation" and out.correlation_mean is not None:
        low = out.correlation_min
        return out.correlation_mean, out.correlation_mean if low is None else low
    return out.cosine_mean, out.cosine_min


def _build(name: str, m: Manifest, output: str, figure: str) -> Build:
    gain = speed(m)
    dense = not m.reduced
    times = {str(f.model): f for f in m.latency}
    own = times.get("reduced") or times.get(f"dense {m.precision}")
    if own is None and dense and m.precision == "fp32":
        own = times.get("dense")
        gain = gain or ((1.0, own.kind) if own is not None else None)
    loss = worst = top1 = None
    if m.fidelity is not None:
        known = {o.output: o for o in m.fidelity.outputs}
        if output in known:
            mean, low = _likeness(known[output], figure)
            loss, worst = 1 - mean, 1 - low
        top1 = next(
            (o.top1_agreement for o in known.values() if o.top1_agreement is not None), None
        )
    s = m.speedup
    return Build(
        name=name,
        method="dense" if dense else str(m.schedule.get("method", "?")),
        precision=m.precision,
        kept=None if m.kept is None else m.kept.keep,
        milliseconds=None if own is None else own.milliseconds,
        speed=None if gain is None else gain[0],
        interval=None if s is None else (s.lower, s.upper),
        kind="" if gain is None else gain[1],
        loss=loss,
        worst=worst,
        top1=top1,
        file_bytes=None if m.memory is None else m.memory.file,
        flops=m.flops.reduced,
        data="" if m.fidelity is None else m.fidelity.data,
        images="" if m.fidelity is None else m.fidelity.known_by,
        source=tuple(m.source.digests),
        target=m.target.name,
        fault=m.fault or "",
    )


def _beaten(one: Build, all_of_them: Sequence[Build]) -> str:
    """A build of the same model and target that is as fast or faster, by the medians, and loses no
    more on the same images."""
    if one.fault or one.speed is None or one.loss is None:
        return ""
    for other in all_of_them:
        if other is one or other.fault or not one.images or other.images != one.images:
            continue
        if (other.source, other.target) != (one.source, one.target):
            continue
        if other.speed is None or other.loss is None:
            continue
        same = (other.speed, other.loss) == (one.speed, one.loss)
        if other.speed >= one.speed and other.loss <= one.loss and not same:
            return other.name
    return ""


def _apart(a: Build, b: Build) -> int:
    """1 where a is faster than b, beyond both intervals; -1 the other way; 0: not told apart."""
    low_a, high_a = a.interval or (a.speed or 0.0, a.speed or 0.0)
    low_b, high_b = b.interval or (b.speed or 0.0, b.speed or 0.0)
    return 1 if low_a > high_b else -1 if low_b > high_a else 0


def _take(builds: Sequence[Build], max_loss: float | None, latency: float | None) -> list[str]:
    sound = [b for b in builds if not b.fault]
    if not sound:
        return ["none can be taken: all of them failed a check"]
    known = [b for b in sound if b.speed is not None and b.loss is not None]
    if not known:
        return ["nothing to choose by: no build has both a speed and a loss"]
    if why := _incomparable(known):
        return [f"which to take cannot be said: {why}"]
    if max_loss is not None:
        known = [b for b in known if (b.loss or 0.0) <= max_loss]
        if not known:
            return [f"none loses at most {max_loss:g}"]
    if latency is not None:
        known = [b for b in known if b.milliseconds is not None and b.milliseconds <= latency]
        if not known:
            return [f"none takes at most {latency:g} ms"]
        return [f"take {_words(min(known, key=lambda b: b.loss or 0.0))}"]
    if max_loss is not None:
        return [f"take {_words(max(known, key=lambda b: b.speed or 0.0))}"]
    best = sorted((b for b in known if not b.beaten), key=lambda b: b.loss or 0.0)
    if len(best) == 1:
        return [f"take {_words(best[0])}: none is faster, and none loses less"]
    lines = []
    for one, after in zip(best, [*best[1:], None], strict=True):
        close = after is not None and _apart(after, one) == 0
        lines.append(
            f"for a loss of at most {one.loss:.3g}: {one.name}, {one.speed:.2f} ×"
            + (f"; not shown to be slower than {after.name}" if close and after else "")
        )
    return lines


def _incomparable(builds: Sequence[Build]) -> str:
    """Why builds cannot be ranked against each other; empty where they can."""
    if len({b.source for b in builds}) > 1:
        return "they are not builds of one model file"
    if len({b.target for b in builds}) > 1:
        return "they are for several targets; compare those of one"
    if why := _seen_apart(builds):
        return f"{why}; build all of them with the same --calibration, or all without"
    return ""


def _seen_apart(builds: Sequence[Build]) -> str:
    """Why losses are not of the same images; empty where they are."""
    images = {b.images for b in builds}
    if len(builds) < 2 or (len(images) == 1 and "" not in images):
        return ""
    said = "; ".join(sorted({b.data for b in builds}))
    if "" in images:
        old = ", ".join(b.name for b in builds if not b.images)
        return (
            f"it is not known whether losses were seen on the same images ({said}): no digest of "
            f"them is in the manifest of {old}"
        )
    if len({b.data for b in builds}) == 1:
        said = f"{said}, but other ones"
    return f"losses were not seen on the same images: {said}"


def _words(one: Build) -> str:
    return f"{one.name}, {one.speed:.2f} × with a loss of {one.loss:.3g}"


def _notes(builds: Sequence[Build], manifests: Sequence[Manifest]) -> list[str]:
    """What failed, and why figures may not be comparable."""
    notes = [
        f"{b.name} failed and is kept for debugging only: {b.fault}" for b in builds if b.fault
    ]
    if len({tuple(m.source.digests) for m in manifests}) > 1:
        notes.append("they are not builds of one model file")
    if len({m.target.name for m in manifests}) > 1:
        notes.append("they are for several targets, each has the speed of its own")
    if why := _seen_apart([b for b in builds if b.loss is not None]):
        notes.append(why)
    reminders = [m.fidelity.reminder for m in manifests if m.fidelity is not None]
    notes += list(dict.fromkeys(filter(None, reminders)))
    kinds = {f.kind for m in manifests for f in m.latency}
    if len(kinds) > 1:
        notes.append("some latencies are measured, others modelled")
    devices = {f.device for m in manifests for f in m.latency}
    if len(devices) > 1:
        notes.append(f"latencies are of several devices: {', '.join(sorted(devices))}")
    return notes
