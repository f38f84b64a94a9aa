"""The fuzz run (`python -m tests.fuzz`): a slice of it, and that it can be taken up again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main, read
from tests.fuzz.cases import OUTCOMES, Result, bases, case, tried
from tests.fuzz.page import FAULTS, page
from tests.fuzz.workers import run
from tests.support.fuzz_following import FOLLOWING

#: The slice, in parts that workers share.
MANY, PARTS = 60, 3


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    found = cache / "fuzz"
    found.mkdir(exist_ok=True)
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_a_slice_has_no_faults(part: int, folder: Path, tmp_path: Path) -> None:
    results = [tried(seed, folder, tmp_path) for seed in range(part, MANY, PARTS)]
    assert [r for r in results if r.outcome in FAULTS] == []
    assert {"refused", "equal"} <= {r.outcome for r in results}


def test_a_seed_makes_one_case(folder: Path) -> None:
    for seed in (3, 4):
        one, two = case(seed, folder), case(seed, folder)
        assert one[0].SerializeToString() == two[0].SerializeToString()
        assert one[1:] == two[1:]


def test_every_mutation_is_met(folder: Path) -> None:
    """Of a hundred cases each of the new kinds has some, and every base model is sound."""
    met = Counter(name.partition(":")[0] for seed in range(100) for name in case(seed, folder)[3])
    assert all(met[f.__name__] > 2 for f in FOLLOWING)


def test_a_run_is_taken_up_again(folder: Path, tmp_path: Path) -> None:
    state, output = tmp_path / "state.jsonl", tmp_path / "page.md"
    known = Result(0, "wrong", "was found before", "some-base", "topk", ("mix_batch: x",))
    # The run before was killed in the middle of a line.
    state.write_text(json.dumps(known.to_json()) + "\n" + '{"seed": 1, "outc')
    arguments = ["--models", "2", "--workers", "1", "--state", str(state), "-o", str(output)]
    assert main(arguments) == 1
    found = read(state)
    assert found[0] == known
    assert found[1].outcome in OUTCOMES
    assert "`--case 0` wrong: some-base, topk; mix_batch: x: was found before" in output.read_text()
    before = state.read_text()
    main(arguments)
    assert state.read_text() == before
    main([*arguments, "--again"])
    assert read(state)[0].base != "some-base"


def test_a_case_that_takes_too_long_is_a_fault(folder: Path, tmp_path: Path) -> None:
    found: list[Result] = []
    run([0, 1], folder, tmp_path, count=1, limit=-60.0, done=found.append)
    assert [r.outcome for r in found] == ["slow", "slow"]
    assert {r.seed for r in found} == {0, 1}


def test_the_page_counts(folder: Path) -> None:
    results = [
        Result(1, "equal", "", "a", "topk", ("mix_batch: x", "mix_batch: y")),
        Result(0, "crashed", "boom", "a", "tome", ("permute_branch: z",)),
    ]
    text = page(results, len(bases(folder)))
    assert "Seeds 0 to 1." in text
    assert "| mix_batch | 1 | 0 |" in text
    assert "- `--case 0` crashed: a, tome; permute_branch: z: boom" in text
    assert "No faults." in page(results[:1], 1)
