"""The outcome of a request: what was asked of tokens, what is given, and why the two differ.

The same words are the first lines of `plan`, of `build`, and of an artifact's report.md; the same
fields are in the JSON of `plan` and in the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tcompile.core.decode import Count, Positive, UnitInterval

#: What is written: the model with fewer tokens, or the dense one.
Emitted = Literal["reduced", "dense"]
#: Why so many tokens are kept:
#: `asked`: it is what was asked for; `exact`: it is, and --exact allowed nothing else;
#: `plateau`: more than asked, which costs nothing on the target; `groups`: patches leave in groups;
#: `method`: the method's own counts; `schedule`: the schedule that was given;
#: `budget`: a budget of latency allows as many; `drop`: the images allow no fewer;
#: `utility`: pomt's choice; `measured`: the reduced model was measured on the target, and dense is
#: emitted instead.
Reason = Literal[
    "asked",
    "exact",
    "plateau",
    "groups",
    "method",
    "schedule",
    "budget",
    "drop",
    "utility",
    "measured",
]


@dataclass(frozen=True)
class Share:
    """Patch tokens out of all.

    Attributes:
        keep: share of the patch tokens; of what was asked, as it was typed.
        patches: patch tokens that leave the encoder.
        of: patch tokens of the dense model.
    """

    keep: UnitInterval
    patches: Count
    of: Positive

    @staticmethod
    def kept(patches: int, of: int) -> Share:
        """A number of patch tokens as a share of all."""
        return Share(patches / of, patches, of)


@dataclass(frozen=True)
class Outcome:
    """The answer to what was asked.

    Attributes:
        emitted: which model.
        reason, why: why so many tokens are kept, as a word and in words.
        kept: tokens that leave the encoder.
        asked: by --keep; None where that was not given.
        others: what else was asked, in words: `at most 6 ms`.
        remark: one more line, such as that a model was measured to be slower; empty for none.
    """

    emitted: Emitted
    reason: Reason
    why: str
    kept: Share
    asked: Share | None = None
    others: tuple[str, ...] = ()
    remark: str = ""

    def summary(self) -> tuple[str, ...]:
        """The first lines of what is shown to people; the very first says so if it is dense."""
        lines = [f"this is the dense model: {self.why}"] if self.emitted == "dense" else []
        asked = list(self.others)
        number = f"{self.kept.patches} of {self.kept.of} patch tokens"
        if self.asked is not None:
            number = str(self.kept.patches)
            asked.insert(
                0,
                f"{share_text(self.asked.keep)} ({self.asked.patches} of "
                f"{self.asked.of} patch tokens)",
            )
        line = f"asked {', '.join(asked)}, " if asked else ""
        line += f"kept {self.kept.keep:.2f} ({number})"
        lines.append(line if self.emitted == "dense" else f"{line}, because {self.why}")
        return (*lines, *([self.remark] if self.remark else []))

    def dense_instead(self, why: str) -> Outcome:
        """The dense model, because of a measurement."""
        every = Share.kept(self.kept.of, self.kept.of)
        return replace(self, emitted="dense", reason="measured", why=why, kept=every, remark="")

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values, for `plan`; the manifest has the same fields."""
        return {
            "emitted": self.emitted,
            "reason": self.reason,
            "asked": None if self.asked is None else vars(self.asked).copy(),
            "kept": vars(self.kept).copy(),
            "summary": list(self.summary()),
        }


def share_text(keep: float) -> str:
    """Two decimals, or as many as were typed."""
    short = f"{keep:.2f}"
    return short if float(short) == keep else f"{keep:.4g}"
