"""Between the compiler's schedules and the oracles' reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.oracles import schedules
from tests.oracles.compare import Subject
from tests.oracles.methods import Reduction

#: What a schedule calls a reducer, and what the oracles call it.
KINDS = {"topk": "topk", "fuse": "fuse", "merge": "tome", "bypass": "bypass"}


def reductions(schedule: dict[str, Any]) -> list[Reduction]:
    """A schedule's JSON as the oracles understand it."""
    return [
        Reduction(
            site=step["site"],
            kind=KINDS[step["reducer"]["name"]],
            keep=step["keep"],
            score=(step.get("score") or {"name": "cls"})["name"],
            proportional=step["reducer"].get("prop_attn", True),
        )
        for step in schedule["reductions"]
    ]


def document(cuts: list[Reduction], found: Subject) -> dict[str, Any]:
    """The schedule that asks for these reductions, as a person would write it by hand."""
    names = {kind: name for name, kind in KINDS.items()}
    prefix, patches = found.encoder.prefix, found.patches
    return {
        "schema": 1,
        "method": "custom",
        "model": {
            "tokens": prefix + patches,
            "prefix": prefix,
            "patches": patches,
            "blocks": len(found.encoder.blocks),
        },
        "reductions": [
            {
                "site": cut.site,
                "score": None if cut.kind == "tome" else {"name": cut.score},
                "reducer": {"name": names[cut.kind]},
                "keep": cut.keep,
            }
            for cut in cuts
        ],
    }


def expected(method: str, found: Subject, keep: str, outputs: str = "reduced") -> list[Reduction]:
    """Return what the papers and the definition of `--keep` say the schedule is.

    Where patches are joined in groups, whole groups are kept, if not every token returns. Where
    some blocks have windows, only the others are bypassed. As many tokens leave each segment. A
    block whose attention and MLP stand
    side by side loses its tokens after both.
    """
    patches, blocks = found.patches, len(found.encoder.blocks)
    unit = found.encoder.segments
    if found.encoder.groups is not None and outputs == "reduced" and method != "bypass":
        unit *= found.encoder.groups.shape[1]
    if method == "bypass":
        windows = [block.windows for block in found.encoder.blocks]
        score = "norm" if any(windows) else found.score
        count = schedules.final_count(keep, patches // unit) * unit
        first = 0 if any(windows) else blocks // 4
        around = [i for i in range(first, blocks) if not windows[i]]
        return [Reduction(f"around:{i}", "bypass", count, score) for i in around]
    if method == "tome":
        cuts = schedules.tome_keep(keep, patches, blocks)
    elif method == "evit":
        cuts = schedules.evit_keep(keep, patches, blocks, found.score)
    else:
        cuts = schedules.topk_keep(keep, patches // unit, blocks, found.score)
        cuts = [replace(cut, keep=cut.keep * unit) for cut in cuts]
    cuts = [replace(cut, keep=-(-cut.keep // unit) * unit) for cut in cuts]
    return [replace(cut, site=_present(cut.site, found)) for cut in cuts]


def _present(site: str, found: Subject) -> str:
    half, _, block = site.partition(":")
    return f"block:{block}" if found.encoder.blocks[int(block)].parallel else f"{half}:{block}"
