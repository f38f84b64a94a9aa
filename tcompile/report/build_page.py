"""A build as one page of HTML: the report.html of an artifact. It asks nothing of a network.

The words are those of report.md where both say the same.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from tcompile.analysis.memory import size_words
from tcompile.artifact import page as words
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import MissingExtraError, short_names
from tcompile.core.packages import require
from tcompile.deploy.result import TopClass, ranked
from tcompile.planning.front import FrontPlan, front_table
from tcompile.report.charts import depth_chart, front_chart, latency_chart
from tcompile.report.map_pictures import heat, jpeg, overlay
from tcompile.report.shown import Seen, Shown
from tcompile.report.token_maps import counts_words
from tcompile.runtime.metrics import holds_classes, token_cosine

#: Steps of a schedule that are shown at most, the last one among them.
_MOST_STEPS = 24
#: A loss below this is rounding.
NOTHING = 1e-6
#: Grey of an image that is not one.
_NO_IMAGE = np.full((8, 8, 3), 127, np.uint8)


@dataclass(frozen=True)
class Card:
    """A figure of the headline: what it is, the figure, and what to know of it."""

    name: str
    value: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class StepView:
    """A map as the page shows it: its title, in words, and the PNG that lies over the image."""

    title: str
    words: str
    png: str = ""


@dataclass(frozen=True)
class ImageView:
    """An image with its maps.

    Attributes:
        title: `worst image: cat.png`.
        loss: in words.
        jpeg: data URI.
        ratio: width over height.
        steps: none where there are no maps; the first is the image as it came.
        classes: the best classes of the dense model beside those of the reduced one.
        changed: whether the best class is another; None where there are no classes.
        maps: name of an output, caption and data URI of pictures of it.
    """

    title: str
    loss: str
    jpeg: str
    ratio: float
    steps: tuple[StepView, ...]
    classes: tuple[tuple[str, str], ...] = ()
    changed: bool | None = None
    maps: tuple[tuple[str, str, str], ...] = ()


def page_of(manifest: Manifest, shown: Shown) -> tuple[str, str]:
    """The page, or why there is none: a build that is done does not fail for its report."""
    try:
        return render_page(manifest, shown), ""
    except MissingExtraError as error:
        return "", f"no report.html: {error.one_line()}"
    except Exception as error:
        return "", f"no report.html, it could not be made: {type(error).__name__}: {error}"


def render_page(manifest: Manifest, shown: Shown) -> str:
    """The page of a build.

    Args:
        shown: images and maps; `Shown()` with `why` where there are none any more.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    m = manifest
    images = tuple(image_views(shown, token_counts(m)))
    plan = m.plan or {}
    front = [FrontPlan(**p) for p in plan.get("front") or () if isinstance(p, Mapping)]
    steps = [int(step["after"]) for step in plan.get("steps") or () if "after" in step]
    dense = int(m.schedule.get("model", {}).get("tokens") or m.tokens_per_block[0].attention)
    return render(
        "build.html.j2",
        m=m,
        name=short_names(re.split(r"[/\\]", m.source.file)[-1]),
        headline=headline(m),
        summary=m.summary[1:] if m.emitted == "dense" else m.summary,
        cards=cards(m),
        images=images,
        steps=images[0].steps if images else (),
        why=shown.why,
        rank_figure="" if shown.seen is None else f"{shown.seen.figure} of {shown.seen.output}",
        front=front_chart(front),
        front_table=front_table(front) if front else None,
        losses=plan.get("losses", ""),
        latency_kind=plan.get("latency_kind", ""),
        profile=plan.get("profile", ""),
        depth=depth_chart(m.tokens_per_block, dense),
        latency=latency_chart(
            [(n, ms) for n, ms in plan.get("curve") or ()],
            list(dict.fromkeys(steps)),
            plan.get("latency_kind", ""),
        ),
        schedule=words.steps_table(m.schedule),
        latencies=m.latency,
        prediction=words.prediction(m),
        milliseconds=words.milliseconds,
        fidelity=None if m.fidelity is None else words.fidelity_table(m.fidelity),
        fidelity_notes=[] if m.fidelity is None else words.fidelity_notes(m.fidelity),
        fused=words.fused_text(m.fused_attention),
        memory="" if m.memory is None else m.memory.words(reduced=m.reduced),
        notes=[short_names(note) for note in m.notes],
        command=shown.command,
    )


def render(template: str, **values: Any) -> str:
    """A template of this package with its values; texts are escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "cpu", "report.html")
    folder = files("tcompile.report")
    loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template(template).render(**values))


def headline(m: Manifest) -> str:
    """What a person wants to know, in a sentence."""
    if m.fault:
        return f"This build failed and is kept for debugging only: {m.fault}"
    if m.emitted == "dense":
        return m.summary[0][0].upper() + m.summary[0][1:] if m.summary else "The dense model."
    said = []
    gain = speed(m)
    if gain is not None:
        ratio, kind = gain
        said.append(f"{ratio:.2f} × as fast ({kind})")
    if m.flops.dense:
        said.append(f"{1 - m.flops.reduced / m.flops.dense:.0%} fewer FLOPs")
    if m.fidelity is not None and m.fidelity.outputs:
        worst = m.most_lost
        assert worst is not None
        agreed = [o for o in m.fidelity.outputs if o.top1_agreement is not None]
        if agreed:
            said.append(_same_class(agreed[0].top1_agreement))
        else:
            value, figure = worst.likeness
            said.append(f"{figure} {value:.3f} to the dense model")
        said[-1] += f" of {m.fidelity.data}" if agreed else f", on {m.fidelity.data}"
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _same_class(share: float | None) -> str:
    return f"top-1 the same in {words.share(share or 0.0)}"


def speed(m: Manifest) -> tuple[float, str] | None:
    """How many times as fast as the dense model in fp32 it is, or on a GPU as the dense one in the
    same precision, and whether that was measured or modelled; None where nothing is known."""
    if m.speedup is not None:
        return m.speedup.ratio, "measured"
    times = {str(f.model): f for f in m.latency}
    dense, other = times.get("dense"), times.get("reduced") or times.get(f"dense {m.precision}")
    if dense is None or other is None or not other.milliseconds:
        return None
    return dense.milliseconds / other.milliseconds, other.kind


def cards(m: Manifest) -> list[Card]:
    """The four figures of the headline."""
    return [_speed_card(m), _tokens_card(m), _loss_card(m), _size_card(m)]


def loss_text(loss: float) -> str:
    """Three digits; what rounding alone makes is 0."""
    return "0" if abs(loss) < NOTHING else f"{loss:.3g}"


def _speed_card(m: Manifest) -> Card:
    gain = speed(m)
    if m.emitted == "dense" and gain is None:
        lines = [f"{f.model}, {f.kind}: {words.milliseconds(f.milliseconds)}" for f in m.latency]
        return Card("Speed", "as dense", (*lines, "it is the dense model"))
    if gain is None:
        return Card("Speed", "not measured", ("`tcompile bench` measures it on the device",))
    ratio, kind = gain
    lines = [f"{f.model} {words.milliseconds(f.milliseconds)}, batch {f.batch}" for f in m.latency]
    if m.speedup is not None:
        s = m.speedup
        lines.insert(0, f"95 % interval {s.lower:.2f} to {s.upper:.2f}, over {s.over}")
    if m.rival is not None and m.rival.speedup is not None:
        s = m.rival.speedup
        lines.insert(1, f"{s.ratio:.2f} × ({s.lower:.2f} to {s.upper:.2f}) over {s.over}")
    where = f"{m.latency[0].device}, {m.latency[0].runtime}" if m.latency else m.target.name
    return Card(f"Speed, {kind}", f"{ratio:.2f} ×", (*lines, where))


def _tokens_card(m: Manifest) -> Card:
    first, last = m.tokens_per_block[0].attention, m.tokens_per_block[-1].mlp
    kept = f"{m.kept.keep:.0%}" if m.kept is not None else f"{last} of {first}"
    lines = []
    if m.asked is not None:
        share = m.asked
        lines.append(f"asked {share.keep:g}: {share.patches} of {share.of} patch tokens")
    else:
        asked = words.asked_words(m)
        lines.append(f"asked {asked}" if asked else "")
    if m.kept is not None:
        lines.append(f"kept {m.kept.patches} of {m.kept.of} patch tokens")
    lines.append(f"method {m.schedule.get('method', '?')}, {m.precision}")
    return Card("Tokens kept", kept, tuple(filter(None, lines)))


def _loss_card(m: Manifest) -> Card:
    worst = m.most_lost
    if worst is None or m.fidelity is None:
        return Card("Loss", "not looked at", ("`tcompile verify` does",))
    value, figure = worst.likeness
    low = worst.cosine_min if figure == "cosine" else worst.correlation_min
    lines = [f"1 − {figure} to the dense model, mean; output {short_names(worst.output)}"]
    if low is not None:
        lines.append(f"worst {loss_text(1 - low)}" + (f" ({worst.worst})" if worst.worst else ""))
    agreed = [o for o in m.fidelity.outputs if o.top1_agreement is not None]
    lines += [_same_class(agreed[0].top1_agreement)] if agreed else []
    lines.append(f"on {m.fidelity.data}")
    return Card("Loss", loss_text(1 - value), tuple(lines))


def _size_card(m: Manifest) -> Card:
    times = m.flops.dense / max(m.flops.reduced, 1)
    lines = [f"FLOPs of one image: {words.giga(m.flops.dense)}, now {words.giga(m.flops.reduced)}"]
    source = m.source.bytes + sum(e.bytes for e in m.source.external_data)
    if m.memory is not None and m.memory.file is not None:
        lines.append(f"file {size_words(source)}, now {size_words(m.memory.file)}")
    if m.memory is not None:
        dense, now = m.memory.dense, m.memory.reduced
        both = f"{size_words(dense.total)}, now {size_words(now.total)}"
        lines.append(f"memory, predicted: {both}")
    return Card("Work", f"{times:.2f} × less", tuple(lines))


def token_counts(m: Manifest) -> frozenset[int]:
    """Lengths that say that the rows of an output [B, N, C] are tokens."""
    shape = m.schedule.get("model") or {}
    return frozenset(int(shape[name]) for name in ("tokens", "patches") if name in shape)


def image_views(shown: Shown, tokens: frozenset[int] = frozenset()) -> Iterator[ImageView]:
    """The images of a page, worst first; none where none is an image, or nothing is lost.

    Args:
        tokens: see `token_counts`.
    """
    seen = shown.seen
    if seen is None or not any(p is not None for p in shown.pictures):
        return
    if not shown.steps and float(np.nan_to_num(seen.losses).max(initial=0)) < NOTHING:
        return
    picked = _picked(len(shown.steps))
    for i, (picture, rank, name) in enumerate(
        zip(shown.pictures, seen.ranks, seen.names, strict=True)
    ):
        pixels = _NO_IMAGE if picture is None else picture
        steps = [StepView("as it came", f"all {shown.grid[0] * shown.grid[1]} patch tokens")]
        for number in picked:
            step = shown.steps[number]
            region = step.region[i]
            png = _uri("png", overlay(region, shown.grid))
            steps.append(StepView(step.title, counts_words(step, region), png))
        yield ImageView(
            f"{rank}: {name}",
            f"{seen.figure} of {short_names(seen.output)}: {loss_text(seen.losses[seen.rows[i]])}",
            _uri("jpeg", jpeg(pixels)),
            pixels.shape[1] / pixels.shape[0],
            tuple(steps) if picked else (),
            *_classes(seen, i, shown.labels),
            tuple(_output_maps(seen, i, tokens)),
        )


def _picked(count: int) -> list[int]:
    """Which of so many steps are shown."""
    if count <= _MOST_STEPS:
        return list(range(count))
    return sorted({i * (count - 1) // (_MOST_STEPS - 1) for i in range(_MOST_STEPS)})


def _classes(
    seen: Seen, row: int, labels: Sequence[str]
) -> tuple[tuple[tuple[str, str], ...], bool | None]:
    """The three best classes of both models, side by side, and whether the best one changed."""
    for name, want in seen.dense.items():
        have = seen.reduced.get(name)
        if have is None or have.shape != want.shape or want.ndim != 2 or want.shape[1] < 2:
            continue
        if holds_classes(name, want):
            both = [ranked(array[row], 3, labels) for array in (want, have)]
            rows = tuple((_class(a), _class(b)) for a, b in zip(*both, strict=False))
            changed = bool(both[0] and both[1]) and both[0][0].index != both[1][0].index
            return rows, changed
    return (), None


def _class(one: TopClass) -> str:
    return f"{one.label or f'class {one.index}'} ({one.probability:.0%})"


def _output_maps(seen: Seen, row: int, tokens: frozenset[int]) -> Iterator[tuple[str, str, str]]:
    """Pictures of outputs that are maps [B, 1, h, w] or [B, h, w], both on one scale; of those with
    several channels, how alike each place is."""
    for name, want in seen.dense.items():
        have = seen.reduced.get(name)
        if have is None or have.shape != want.shape or want.dtype.kind != "f":
            continue
        if want.ndim not in (3, 4) or min(want.shape[-2:]) < 8:
            continue
        if want.ndim == 3 and tokens & set(want.shape[1:]):
            continue  # rows of tokens
        title = short_names(name)
        if want.ndim == 4 and want.shape[1] > 1:
            alike = token_cosine(*(a[row].transpose(1, 2, 0) for a in (want, have)))
            yield title, "alike: white is 1, black 0", _uri("png", heat(alike, 0, 1))
            continue
        pair = [np.asarray(a[row], np.float32).reshape(a.shape[-2:]) for a in (want, have)]
        low, high = (float(f(pair[0])) for f in (np.nanmin, np.nanmax))
        for caption, values in zip(("dense", "reduced"), pair, strict=True):
            yield title, caption, _uri("png", heat(values, low, high))


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
