"""docs/benchmarks/fuzz.md: what came of every mutation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.fuzz.cases import OUTCOMES, Result
from tests.fuzz.workers import MEMORY

HEAD = """# Fuzz run

{count} small encoders, each changed at random, reduced, and held against the oracle. Written by
`python -m tests.fuzz`, never by hand; `python -m tests.fuzz --case SEED` tries one case again.

Seeds {first} to {last}. A seed chooses one of {bases} sound models (2 or 3 blocks, 0 to 3 special
tokens, batch 1, 2 or free, every kind of head), a method, and one to four changes.

The oracle is `tests/oracles/present_walk.py`: the dense file worked out op by op in float64, each
tensor knowing which of its elements are made of tokens that are left. It shares nothing with the
passes. A process may take {memory} GiB of memory beyond its imports; a case that wants more is a
crash, one that takes more than its time (`--limit`, 60 s) is slow.

| outcome | what it means | cases |
| --- | --- | --- |
{outcomes}

## By mutation

A case with several counts for each of them.

| mutation | {columns} |
| --- | {dashes} |
{rows}

{faults}"""

_MEANING = {
    "equal": "reduced, and equal to the oracle",
    "ran": "reduced and run, finite, of the right shapes; the oracle has no answer for this model",
    "dense": "nothing was reduced",
    "refused": "refused in one line",
    "broken": "ONNX Runtime does not take the changed model either, or it is random",
    "wrong": "**silently wrong**",
    "crashed": "**a crash, or an error that calls itself a bug**",
    "slow": "**not done in time**",
}
FAULTS = ("wrong", "crashed", "slow")


def page(results: Sequence[Result], bases: int) -> str:
    """The page, of results in any order; without times, so that the same code writes the same."""
    results = sorted(results, key=lambda r: r.seed)
    total = Counter(r.outcome for r in results)
    by: dict[str, Counter[str]] = {}
    for result in results:
        for name in result.mutations:
            by.setdefault(name, Counter())[result.outcome] += 1
    faults = [r for r in results if r.outcome in FAULTS]
    lines = [
        f"- `--case {r.seed}` {r.outcome}: {r.base}, {r.method}; {'; '.join(r.did)}: {r.note}"
        for r in faults
    ]
    return HEAD.format(
        count=len(results),
        first=results[0].seed if results else 0,
        last=results[-1].seed if results else 0,
        bases=bases,
        memory=MEMORY >> 30,
        outcomes="\n".join(f"| {o} | {_MEANING[o]} | {total[o]} |" for o in OUTCOMES),
        columns=" | ".join(OUTCOMES),
        dashes=" | ".join("---" for _ in OUTCOMES),
        rows="\n".join(
            f"| {name} | {' | '.join(str(by[name][o]) for o in OUTCOMES)} |" for name in sorted(by)
        ),
        faults=("## Faults\n\n" + "\n".join(lines) if lines else "No faults.") + "\n",
    )
