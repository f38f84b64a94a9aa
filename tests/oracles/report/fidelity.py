"""Fidelity of a report, and the images that it shows."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from tests.oracles.report.evidence import Evidence
from tests.oracles.report.likeness import same_class, softmax
from tests.oracles.report.reading import read_table, text_of
from tests.oracles.report.shown import ROUNDING, Array, Check, Reading, after, near, not_all


def fidelity(e: Evidence, r: Reading) -> Iterator[Check]:
    found, names = e.likenesses, e.given.names
    for where, table in r.both("output", "compared on"):
        for name, f in found.items():
            yield from f.checks(f"{where}: {name}", table, names)
    worst = min(found.values(), key=lambda f: float(f.main.mean()))
    loss = 1 - worst.main
    kind = "cosine" if worst.correlation is None else "correlation"
    lines = r.page.card_lines["Loss"]
    yield near("card Loss", r.page.cards["Loss"], float(loss.mean()), ".3g", ROUNDING)
    yield Check(
        "card Loss: of", lines[0], f"1 − {kind} to the dense model, mean; output {worst.name}"
    )
    yield near(
        "card Loss: worst", lines[1].removeprefix("worst "), float(loss.max()), ".3g", ROUNDING
    )
    yield Check(
        "card Loss: worst image", lines[1].partition("(")[2].rstrip(")"), names[int(loss.argmax())]
    )
    same = same_class(*e.outputs)
    if same is not None:
        same = not_all(same, 0.99)
        yield near("headline: top-1", after(r.page.lead, r"top-1 the same in (\d+%)"), same, ".0%")
        told = after("\n".join(lines), r"top-1 the same in (\d+%)")
        yield near("card Loss: top-1", told, same, ".0%")
    else:
        yield near(
            f"headline: {kind}",
            after(r.page.lead, rf"{kind} ([\d.]+)"),
            float(worst.main.mean()),
            ".3f",
            ROUNDING,
        )
    if r.printed:
        text = f"{kind} {worst.main.mean():.4f} to dense, worst {worst.main.min():.4f} ("
        text += f"{names[int(loss.argmax())]})"
        text += f", cosine {worst.cosine.mean():.4f}" if kind == "correlation" else ""
        text += f", relative error {worst.error.mean():.2g}"
        text += "" if worst.same is None else f", top-1 {not_all(worst.same, 0.99):.0%} the same"
        length = len(f"output {worst.name} ")
        at = r.printed.find(f"output {worst.name} ") + length
        yield Check("summary: likeness", r.printed[at : at + len(text)], text)
    yield from _images(e, r, loss, worst.name, kind)


def _images(e: Evidence, r: Reading, loss: Array, output: str, kind: str) -> Iterator[Check]:
    """The images that are shown: which, their losses, classes and maps."""
    order = np.argsort(-loss, kind="stable")
    places: dict[int, str] = {}
    for share, rank in ((0, "worst"), (0.25, "worse than 3 of 4"), (0.5, "typical"), (1, "best")):
        places.setdefault(int(order[round(share * (len(order) - 1))]), rank)
    titles = [f"{rank}: {e.given.names[row]}" for row, rank in places.items()]
    html = r.page.html
    radios = [text_of(r) for r in re.findall(r'<label><input type="radio".*?</label>', html)]
    yield Check("images to choose from", str(radios), str(titles))
    parts = re.findall(r'<section class="image.*?</section>', html, re.DOTALL)
    heads = [text_of(re.findall(r"<h3>.*?</h3>", part)[0]) for part in parts]
    yield Check("images, by loss", str(heads), str([t[0].upper() + t[1:] for t in titles]))
    top = text_of(re.findall(r"<figcaption>.*?</figcaption>", html, re.DOTALL)[0])
    yield Check(
        "worst image, on top", after(top, r"^(.*?)\. 1 - "), titles[0][0].upper() + titles[0][1:]
    )
    used = [sorted(set(re.findall(r'class="pic (i\d+)"', text))) for text in (html, *parts)]
    shown = [[r.pictures[name] for name in names] for names in used]
    meant = [e.given.names[row] for row in places]
    yield Check("pictures: whose they are", str(shown), str([meant, *([name] for name in meant)]))
    for (row, rank), part in zip(places.items(), parts, strict=True):
        name = f"{rank}: {e.given.names[row]}"
        for where, text in ((name, text_of(part)), ("worst image, on top", top)):
            if where == name or rank == "worst":
                told = after(text, rf"1 - {kind} of {output}: ([-\d.e]+)")
                yield near(f"loss, {where}", told.rstrip("."), float(loss[row]), ".3g", ROUNDING)
        yield from _classes(e, r, row, name, part, top if rank == "worst" else "")
        yield from _maps(e, r, row, name, part, top if rank == "worst" else "")


def pictures(html: str, e: Evidence) -> dict[str, str]:
    """The name of the sample that each picture of a page is of, by the class that shows it."""
    found = re.findall(r'\.(i\d+) \{ background-image: url\("data:[^,"]+,([^"]+)"', html)
    return {name: e.given.names[_row_of(picture, e)] for name, picture in found}


def _row_of(picture: str, e: Evidence) -> int:
    """Which of the inputs a picture is of: that whose values go with its pixels most."""
    inputs = next(iter(e.given.seen.values()))
    image = Image.open(io.BytesIO(base64.b64decode(picture))).resize(inputs.shape[:1:-1])
    pixels = np.asarray(image, np.float64).transpose(2, 0, 1)
    return int(
        np.argmax([np.mean(list(map(_alike, pixels, row.astype(np.float64)))) for row in inputs])
    )


def _alike(pixels: Array, values: Array) -> float:
    return float(np.corrcoef(pixels.ravel(), values.ravel())[0, 1])


def _classes(e: Evidence, r: Reading, row: int, name: str, part: str, top: str) -> Iterator[Check]:
    if "logits" not in e.outputs[0]:
        return
    best = [_best(outputs["logits"][row], e.labels) for outputs in e.outputs]
    shown = read_table(re.findall(r"<table.*?</table>", part, re.DOTALL)[0]).rows
    yield Check(f"classes, {name}", str(shown), str([list(p) for p in zip(*best, strict=True)]))
    if top:
        text = f"Dense: {best[0][0]}; reduced: {best[1][0]} ("
        told = "Dense" + after(top, r"Dense(: .*?\) \().*class") if "Dense" in top else "not there"
        yield Check("worst image, on top: classes", told.replace(") (", ") ("), text)


def _maps(e: Evidence, r: Reading, row: int, name: str, part: str, top: str) -> Iterator[Check]:
    captions = [text_of(c) for c in re.findall(r"<figcaption>.*?</figcaption>", part, re.DOTALL)]
    steps = [f"{r[-2].partition('(')[0]} at {r[0]}" for r in r.md("site").rows]
    patches = e.dense.attention_tokens[0] - e.prefix
    yield Check(f"map, {name}", captions[0], f"as it came: all {patches} patch tokens")
    owners = [owner[row] for owner in e.owners]
    for step, owner in list(zip(steps[::-1], owners[::-1], strict=False)):
        text = f"{step}: {_map_words(owner)}"
        yield Check(f"map, {name}, {step}", captions[1 + steps.index(step)], text)
    if top and owners:
        told = after(top, r"At the end (.*)\.")
        yield Check("worst image, on top: map", told, _map_words(owners[-1]))


def _best(logits: Array, labels: Sequence[str]) -> list[str]:
    """The three best classes with their shares."""
    shares = softmax(logits)
    order = np.argsort(-shares, kind="stable")[:3]
    return [f"{labels[i] if labels else f'class {i}'} ({shares[i]:.0%})" for i in order]


def _map_words(owner: Array) -> str:
    """What became of the patches of an image, from the row that stands for each."""
    sizes = np.bincount(owner[owner >= 0])
    several, gone = sizes[sizes > 1], int((owner < 0).sum())
    text = f"{(sizes > 0).sum()} of {len(owner)} patch tokens are left"
    if len(several):
        text += f"; {several.sum()} patches are in {len(several)} merged regions"
        text += f", the largest of {several.max()}"
    return text + (f"; {gone} are dropped" if gone else "")
