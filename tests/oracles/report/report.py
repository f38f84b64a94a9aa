"""Every figure of a report, beside the same figure computed without the code that wrote it.

Read are report.html, report.md and what `tcompile build` printed. Computed is from the model files
(run in ONNX Runtime), the images, the rounds that were timed and the profile. The manifest is read
for what is no figure, and for the rounds and points that figures follow from.
"""

from __future__ import annotations

import re

from tests.oracles.report import fidelity, plan, work
from tests.oracles.report.evidence import Evidence, Given
from tests.oracles.report.shown import Check, Reading

__all__ = ["Check", "Given", "Report"]


class Report:
    """The report of an artifact, and what its figures are computed from."""

    def __init__(self, given: Given) -> None:
        self.evidence, self.printed = Evidence(given), given.printed
        html = (given.artifact / "report.html").read_text("utf-8")
        self.pictures = fidelity.pictures(html, self.evidence)
        self.html = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", html)  # pictures are no figures
        self.markdown = (given.artifact / "report.md").read_text("utf-8")

    def checks(
        self, *, html: str | None = None, markdown: str | None = None, printed: str | None = None
    ) -> list[Check]:
        """All figures; of other texts than the artifact's, where these are given."""
        texts = (html, self.html), (markdown, self.markdown), (printed, self.printed)
        read = Reading(*(own if other is None else other for other, own in texts), self.pictures)
        parts = (
            work.work,
            work.tokens,
            work.memory,
            work.speed,
            fidelity.fidelity,
            plan.plan,
            plan.made_of,
        )
        return [check for part in parts for check in part(self.evidence, read)]
