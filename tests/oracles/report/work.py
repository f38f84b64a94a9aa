"""Work, tokens, memory and speed of a report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from math import ceil

from tests.oracles.report.evidence import Evidence
from tests.oracles.report.plots import chart_checks
from tests.oracles.report.shown import (
    BOTH,
    Check,
    Reading,
    after,
    flops_text,
    ms_text,
    near,
    size_text,
)
from tests.oracles.report.speed import median


def work(e: Evidence, r: Reading) -> Iterator[Check]:
    dense, now = e.dense.flops, e.reduced.flops
    saved, times = 1 - now / dense, dense / now
    yield near("headline: fewer FLOPs", after(r.page.lead, r";? ?([\d.]+%) fewer"), saved, ".0%")
    yield near("card Work", r.page.cards["Work"], times, ".2f")
    line = r.page.card_lines["Work"][0]
    both = re.findall(r"[\d.]+ [GM]\b", line)
    yield from (
        Check(f"card Work: FLOPs {w}", s, flops_text(v))
        for w, s, v in zip(BOTH, both, (dense, now), strict=True)
    )
    (line,) = re.findall(r"FLOPs for one image: .*", r.words)
    both = re.findall(r"[\d.]+ [GM]\b", line)
    yield from (
        Check(f"report.md: FLOPs {w}", s, flops_text(v))
        for w, s, v in zip(BOTH, both, (dense, now), strict=True)
    )
    yield near("report.md: FLOPs less", after(line, r"([\d.]+%) less"), saved, ".1%")
    if r.printed:
        shown = re.search(
            r"work ([\d.]+ [GM]) dense, ([\d.]+ [GM]) reduced \(([\d.]+) x", r.printed
        )
        assert shown is not None
        yield Check("summary: FLOPs dense", shown[1], flops_text(dense))
        yield Check("summary: FLOPs reduced", shown[2], flops_text(now))
        yield near("summary: x fewer", shown[3], times, ".2f")


def tokens(e: Evidence, r: Reading) -> Iterator[Check]:
    attention, mlp = e.reduced.attention_tokens, e.reduced.mlp_tokens
    patches = e.dense.attention_tokens[0] - e.prefix
    kept, asked = mlp[-1] - e.prefix, ceil(Fraction(e.given.keep) * patches)
    share, both = kept / patches, f"{kept} of {patches} patch tokens"
    lines = r.page.card_lines["Tokens kept"]
    yield near("card Tokens kept", r.page.cards["Tokens kept"], share, ".0%")
    yield Check(
        "card: asked", lines[0], f"asked {float(e.given.keep):g}: {asked} of {patches} patch tokens"
    )
    yield Check("card: kept", lines[1], f"kept {both}")
    yield Check("report.md: asked", r.md("asked").head[1], f"--keep {float(e.given.keep):g}")
    yield Check("report.md: kept", r.md("asked").row("kept")[1], f"{share:.1%}: {both}")
    line = f"sked {float(e.given.keep):.2f} ({asked} of {patches} patch tokens), kept "
    line += f"{share:.2f} ({kept})"
    for where, text in r.texts:
        told = after(text, r"[Aa](sked [\d.]+ \(.*?\), kept [\d.]+ \(\d+\))")
        yield Check(f"{where}: first line", told, line)
    rows = r.md("block", "tokens into attention").rows
    counted = [
        [str(i), str(a), str(b)] for i, (a, b) in enumerate(zip(attention, mlp, strict=True))
    ]
    yield Check("report.md: tokens of each block", str(rows), str(counted))
    before, steps = e.dense.attention_tokens[0], []
    for i, pair in enumerate(zip(attention, mlp, strict=True)):
        for site, count in zip((f"block:{i - 1}", f"attn:{i}"), pair, strict=True):
            steps += [(site, str(count - e.prefix))] if count < before else []
            before = count
    for where, table in r.both("site"):
        shown = [(row[0], row[-1]) for row in table.rows]
        yield Check(f"{where}: steps and patch tokens kept", str(shown), str(steps))
    yield from chart_checks(
        r.page, Check, attention, mlp, e.dense.attention_tokens[0], e.m["plan"] or {}
    )


def memory(e: Evidence, r: Reading) -> Iterator[Check]:
    source, file = e.given.source.stat().st_size, (e.given.artifact / "model.onnx").stat().st_size
    need = dict(
        zip(BOTH, zip((e.dense.weights, e.reduced.weights), e.peaks, strict=True), strict=True)
    )
    total = {name: sum(parts) for name, parts in need.items()}
    lines = r.page.card_lines["Work"]
    yield Check("card Work: files", lines[1], f"file {size_text(source)}, now {size_text(file)}")
    yield Check(
        "card Work: memory",
        lines[2],
        f"memory, predicted: {size_text(total['dense'])}, now {size_text(total['reduced'])}",
    )
    for name, parts in need.items():
        shown = r.md("model", "weights").row(name)[1:]
        yield Check(
            f"report.md: memory {name}",
            str(shown),
            str([*map(size_text, parts), size_text(total[name])]),
        )
    yield Check(
        "report.md: file", after(r.words, r"Written: model\.onnx ([\d.]+ [kMG]B)"), size_text(file)
    )
    said = "weights {}, activations {}; dense {} and {}".format(
        *map(size_text, (*need["reduced"], *need["dense"]))
    )
    for where, text in (("report.html", r.page.text), ("summary", r.printed)):
        if text:
            yield Check(
                f"{where}: memory",
                after(text, r"(weights [\d.]+ \wB, act.*? and [\d.]+ [kMG]B)"),
                said,
            )


def speed(e: Evidence, r: Reading) -> Iterator[Check]:
    rounds = e.rounds
    lines, title = r.page.card_lines["Speed, measured"], "Speed, measured"
    gain = median(rounds["dense"]) / median(rounds["reduced"])
    low, high = e.intervals["dense"]
    yield near("card Speed", r.page.cards[title], gain, ".2f")
    yield near("headline: as fast", r.page.lead, gain, ".2f")
    yield Check(
        "card Speed: interval",
        " ".join(lines[0].split()[:6]),
        f"95 % interval {low:.2f} to {high:.2f},",
    )
    text = rf"{gain:.2f} × [{low:.2f}, {high:.2f}]"
    yield Check("report.md: speed-up", after(r.words, r"Speed-up of .*?: (.*?\])"), text)
    if r.printed:
        yield Check("summary: speed-up", after(r.printed, r"speed, measured (.*?\])"), text)
    for name, times in rounds.items():
        ms = ms_text(median(times))
        told = after("\n".join(lines), rf"(?m)^({name} [\d.,]+ ms),")
        yield Check(f"card Speed: {name}", told, f"{name} {ms}")
        for where, table in r.both("model", "median"):
            yield Check(f"{where}: median of {name}", table.row(name)[1], ms)
            yield near(
                f"{where}: rounds of {name}",
                table.row(name)[5].rpartition(";")[2],
                len(times),
                ".0f",
            )
        if r.printed:
            yield Check(
                f"summary: {name}", after(r.printed, rf"[,;] ({name} [\d.,]+ ms)"), f"{name} {ms}"
            )
