"""The plan of a report, what it was made of, and what is said in many places."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from importlib import metadata
from platform import python_version

import numpy as np
import onnxruntime as ort

from tests.oracles.report.evidence import Evidence
from tests.oracles.report.reading import text_of
from tests.oracles.report.shown import Check, Reading, after, ms_text, near
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
    dense = next(row for row in table.rows if row[1] == "dense")
    yield Check("plans: tokens of dense", dense[2], str(e.dense.attention_tokens[0] - e.prefix))
    yield Check("plans: loss of dense", dense[4], "0")
    if (lost := e.lost) is not None:
        quarter = np.sort(lost)[-max(len(lost) // 4, 1) :]
        both = float(lost.mean() + quarter.mean()) / 2
        yield near("plans: loss of the chosen one", chosen[4], both, ".3g", 1e-4)
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
    yield near("plans: latency of dense", dense[3], found.dense, ".4g", 1e-6)
    yield near("plans: latency of the chosen one", chosen[3], found.chosen, ".4g", 1e-5)
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
    digest = hashlib.sha256(e.given.source.read_bytes()).hexdigest()
    yield Check("report.md: sha256 of the source", after(r.words, r"sha256 `(\w+)`"), digest)
    yield Check("report.html: sha256 of the source", after(r.page.text, r"sha256 (\w+)"), digest)
    for where, text in (("report.md", r.words), ("report.html", r.page.text)):
        told = after(text, r"(python [\d.]+, tcompile .*?[\d\w])\.(?:\s|$)")
        names = [each.partition(" ")[0] for each in told.split(", ")]
        found = [python_version() if n == "python" else metadata.version(n) for n in names]
        versions = ", ".join(f"{n} {v}" for n, v in zip(names, found, strict=True))
        yield Check(f"{where}: versions", told, versions)
        tool = after(text, r"(tcompile [\d.]+) for onnxruntime")
        yield Check(f"{where}: tool", tool, f"tcompile {metadata.version('tcompile')}")
    yield from _said(e, r)
    rows = r.md("", "name", "type").rows
    session = ort.InferenceSession(
        e.given.artifact / "model.onnx", providers=["CPUExecutionProvider"]
    )
    ends = [("input", t) for t in session.get_inputs()] + [
        ("output", t) for t in session.get_outputs()
    ]
    kinds = {"float": "float32", "int64": "int64", "int32": "int32", "uint8": "uint8"}
    told = [
        [kind, f"`{t.name}`", kinds[t.type[7:-1]], " × ".join(map(str, t.shape))]
        for kind, t in ends
    ]
    yield Check("report.md: inputs and outputs", str(rows), str(told))


def _said(e: Evidence, r: Reading) -> Iterator[Check]:
    """What stands in many places: on which samples, on what machine, of what batch."""
    total, name = e.given.total
    seen, lost = len(e.given.names), 0 if e.lost is None else len(e.lost)
    cores, runtime = len(os.sched_getaffinity(0)), metadata.version("onnxruntime")
    threads, batch = e.given.threads, e.reduced.batch
    phrases = {
        r"\d+ of \d+ samples from \S+ that the plan was not made with \(seed \d+\)": f"{seen} of "
        f"{total} samples from {name} that the plan was not made with (seed 0)",
        r"measured on \d+ of \d+ samples from \S+ to plan with \(seed \d+\)": f"measured on {lost} of "
        f"{total} samples from {name} to plan with (seed 0)",
        r"\d+ cores, ONNX Runtime [\d.]+ on": f"{cores} cores, ONNX Runtime {runtime} on",
        r"rounds, \d+ threads": f"rounds, {threads} threads",
        r"ms, batch \d+": f"ms, batch {batch}",
        r"on the CPU(?: \|)? \d+ ": f"on the CPU {batch} ",
        r"; batch \d+;": f"; batch {batch};",
        r"of a batch of \d+;": f"of a batch of {batch};",
        r"\(\d+ %\)": "(95 %)",
    }
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
