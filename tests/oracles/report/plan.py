"""The plan of a report, what it was made of, and what is said in many places."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from tests.oracles.report.evidence import Evidence, version_of
from tests.oracles.report.reading import text_of
from tests.oracles.report.shown import ROUNDING, Check, Reading, after, ms_text, near
from tests.oracles.report.speed import Predicted, median


def plan(e: Evidence, r: Reading) -> Iterator[Check]:
    table = next((t for t in r.tables if t.head[:2] == ["precision", "plan"]), None)
    if table is None:
        return
    page = r.page.table("precision", "plan")
    assert page is not None
    yield Check(
        "report.html: plans", str([r[:-1] for r in page.rows]), str([r[:-1] for r in table.rows])
    )
    (chosen,) = (row for row in table.rows if row[-1] == "chosen")
    mlp = e.reduced.mlp_tokens
    yield Check("plans: tokens of the chosen one", chosen[2], str(mlp[-1] - e.prefix))
    (dense,) = (row for row in table.rows if row[1:2] == ["dense"] and row[0] == chosen[0])
    yield Check("plans: tokens of dense", dense[2], str(e.dense.attention_tokens[0] - e.prefix))
    yield Check("plans: loss of dense", dense[4], "0")
    if (lost := e.lost) is not None:
        yield near("plans: loss of the chosen one", chosen[4], e.chosen_loss, ".3g", ROUNDING)
        yield near("plans: images", chosen[5].partition(", ")[2], len(lost), ".0f")
    points = [(float(r[3].split()[0]), float(r[4])) for r in table.rows if r[4] != "not run"]
    beaten = [any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points) for p in points]
    told = [r[-1] == "beaten by another" for r in table.rows if r[4] != "not run"]
    yield Check("plans: beaten", str(told), str(beaten))
    if e.predicted is not None:
        yield from _predicted(e, r, e.predicted, dense, chosen)


def _predicted(
    e: Evidence, r: Reading, found: Predicted, dense: list[str], chosen: list[str]
) -> Iterator[Check]:
    yield near("plans: latency of dense", dense[3], found.dense, ".4g", ROUNDING)
    yield near("plans: latency of the chosen one", chosen[3], found.chosen, ".4g", ROUNDING)
    for where, table in r.both("latency", "dense"):
        row = table.rows[0]
        yield Check(
            f"{where}: predicted",
            str(row[1:]),
            str([ms_text(found.dense), ms_text(found.chosen), f"{found.dense / found.chosen:.2f}"]),
        )
        times = {name: median(each) for name, each in e.rounds.items()}
        a, b = times.get(f"dense {e.m['precision']}", times["dense"]), times["reduced"]
        yield Check(
            f"{where}: measured",
            str(table.rows[1][1:]),
            str([ms_text(a), ms_text(b), f"{a / b:.2f}"]),
        )
    curve = e.m["plan"]["curve"]
    far = max(abs(found.curve(n) - ms) / ms for n, ms in curve)
    yield Check(
        f"latency against tokens: {len(curve)} points",
        "as computed",
        "as computed" if far < 1e-6 else f"{far:.1e} off",
    )


def made_of(e: Evidence, r: Reading) -> Iterator[Check]:
    """The source, versions, the command, inputs and outputs."""
    yield Check("report.md: sha256 of the source", after(r.words, r"sha256 `(\w+)`"), e.digest)
    yield Check("report.html: sha256 of the source", after(r.page.text, r"sha256 (\w+)"), e.digest)
    for where, text in (("report.md", r.words), ("report.html", r.page.text)):
        told = after(text, r"(python [\d.]+, tcompile .*?[\d\w])\.(?:\s|$)")
        names = [each.partition(" ")[0] for each in told.split(", ")]
        found = [version_of(n) for n in names]
        versions = ", ".join(f"{n} {v}" for n, v in zip(names, found, strict=True))
        yield Check(f"{where}: versions", told, versions)
        tool = after(text, r"(tcompile [\d.]+) for onnxruntime")
        yield Check(f"{where}: tool", tool, f"tcompile {version_of('tcompile')}")
    yield from _said(e, r)
    rows = r.md("", "name", "type").rows
    told = [
        [kind, f"`{name}`", dtype, " × ".join(map(str, dims))] for kind, name, dtype, dims in e.ends
    ]
    yield Check("report.md: inputs and outputs", str(rows), str(told))


def _noted(e: Evidence) -> dict[str, str]:
    """Notes on what was measured, where it differs from what was predicted or hoped for."""
    times = {name: median(each) for name, each in e.rounds.items()}
    dense, now, gain = times["dense"], times["reduced"], times["dense"] / times["reduced"]
    low, high = e.intervals["dense"]
    number = r"[\d.,e+]+"
    notes = {
        rf"{number} ms against {number} ms": f"{now:.4g} ms against {dense:.4g} ms",
        rf"faster than dense here: {number} × \[{number}, {number}\]": "faster than dense here: "
        f"{gain:.2f} × [{low:.2f}, {high:.2f}]",
    }
    notes[r"and \d+ more \(-v\)"] = f"and {len(e.m['notes']) - 2} more (-v)"  # two are printed
    if e.lost is not None:
        others = f"and {len(e.lost) - e.given.own} procedural scenes (seed 1)"
        notes[r"and \d+ procedural scenes \(seed \d+\)"] = others
        notes[rf"lost instead of {number} with"] = f"lost instead of {e.chosen_loss:.3g} with"
    if e.predicted is not None:
        notes[
            rf"measured {number} of {number} ms where {number} of {number} ms were \S+: .*? off"
        ] = (
            f"measured {now:.4g} of {dense:.4g} ms where {e.predicted.chosen:.4g} of "
            f"{e.predicted.dense:.4g} ms were predicted: more than {e.m['plan']['band']:.0%} off"
        )
    return notes


def _said(e: Evidence, r: Reading) -> Iterator[Check]:
    """What stands in many places: on which samples, on what machine, of what batch."""
    total, name = e.given.total
    seen, own = len(e.given.names), e.given.own
    cores, runtime = os.cpu_count(), version_of("onnxruntime")
    if hasattr(os, "sched_getaffinity"):  # not on Windows and macOS
        cores = len(os.sched_getaffinity(0))
    threads, batch = e.given.threads, e.reduced.batch
    phrases = {
        r"\d+ of \d+ samples from \S+ that the plan was not made with \(seed \d+\)": f"{seen} of "
        f"{total} samples from {name} that the plan was not made with (seed 0)",
        r"measured on \d+ of \d+ samples from \S+ to plan with \(seed \d+\)": "measured on "
        f"{own} of {total} samples from {name} to plan with (seed 0)",
        r"\d+ cores, ONNX Runtime [\d.]+ on": f"{cores} cores, ONNX Runtime {runtime} on",
        r"rounds, \d+ threads": f"rounds, {threads} threads",
        r"ms, batch \d+": f"ms, batch {batch}",
        r"on the CPU(?: \|)? \d+ ": f"on the CPU {batch} ",
        r"; batch \d+;": f"; batch {batch};",
        r"of a batch of \d+;": f"of a batch of {batch};",
        r"\(\d+ %\)": "(95 %)",
    }
    phrases |= _noted(e)
    if e.given.profile is not None:
        p = json.loads(e.given.profile.read_text("utf-8"))
        c, band = p["conditions"], {"measured": "10%", "modelled": "30%"}[p["kind"]]
        words = (
            f"{p['kind']}, {c['device']}, {c['runtime']}, batch {c['batch']}, {c['precision']}, "
        )
        words += f"{c['threads']} threads" + (f" on {c['date'][:10]}" if c["date"] else "")
        phrases[r"Predicted within \d+%, from: .*?\.(?= )"] = (
            f"Predicted within {band}, from: {words}."
        )
        phrases[r"counts of this plan\. .*?\.(?= )"] = (
            f"counts of this plan. {words[0].upper()}{words[1:]}."
        )
    for where, text in r.texts:
        text = " ".join(text.partition("## Checks by polygraphy")[0].split())
        for pattern, meant in phrases.items():
            for shown in sorted(set(re.findall(pattern, text))):
                yield Check(f"{where}: {meant[:30]} …", shown.replace("| ", ""), meant)
    if e.given.command:
        shown = text_of(after(r.page.html, r"<pre>(.*?)</pre>"))
        yield Check("report.html: the command", shown, e.given.command)
