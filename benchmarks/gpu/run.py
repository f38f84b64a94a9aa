"""Correctness and speed of the kernels on a GPU; see run.sh.

python -m benchmarks.gpu.run --library LIB -o docs/benchmarks    everything, on a GPU
python -m benchmarks.gpu.run --library LIB --check 500           correctness alone
python -m benchmarks.gpu.run --library LIB --dry                 the host build: tiny, nothing timed
python -m benchmarks.gpu.run --predict -o docs/benchmarks        the page without figures
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import page
from benchmarks.gpu.cases import cases
from benchmarks.gpu.compare import problems
from benchmarks.gpu.work import Work, tiny_works, works
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import TokenOp

if TYPE_CHECKING:
    from benchmarks.gpu.device import Device, Times

#: Copies of the data that a call works on in turn are at most so many.
_COPIES = 8


def check_ops(
    device: Device, count: int, seed: int = 0, ops: Sequence[TokenOp] = OPS
) -> dict[str, dict[str, Any]]:
    """Each op on its cases, against numpy: number of cases, and what is wrong."""
    from benchmarks.gpu.device import TORCH, overran

    found: dict[str, dict[str, Any]] = {}
    for op in ops:
        wrong: list[str] = []
        for case in cases(op, count, seed):
            inputs = [
                device.put(a, case.types[t.kind])
                for a, t in zip(case.inputs, op.takes, strict=True)
            ]
            ready = device.prepare(op, inputs, case.numbers, case.types["index"])
            device.launch(ready)
            device.wait()
            got = tuple(
                (o.float() if o.dtype in (TORCH["f32"], TORCH["f16"], TORCH["bf16"]) else o.long())
                .cpu()
                .numpy()
                for o in ready.outputs
            )
            faults = problems(case, got)
            if overran(ready):
                faults.append("writes behind an output")
            wrong += [f"{case}: {fault}" for fault in faults]
        found[op.name] = {"cases": count, "wrong": wrong}
        print(f"{op.name}: {count} cases, {len(wrong)} wrong", file=sys.stderr, flush=True)
    return found


def agreement(device: Device, work: Work) -> dict[str, float]:
    """Return how far ours is from the rival: the share of numbers that are not close, by result."""
    import torch

    from benchmarks.gpu.rivals import RIVALS

    tensors = device.inputs_of(work)
    given = dict(tensors)
    for ready in device.chain(work.calls, tensors):
        device.launch(ready)
    device.wait()
    rival = RIVALS[work.name](given, _numbers(work))
    apart = {}
    for name in work.results:
        ours, theirs = tensors[name], rival[name]
        if ours.dtype.is_floating_point:
            near = 1e-4 if work.data == "f32" else 2e-2
            close = torch.isclose(ours.float(), theirs.float(), rtol=near, atol=near)
        else:
            close = ours == theirs
        apart[name] = float((~close).float().mean())
    return apart


def measure(device: Device, work: Work, rates: Mapping[str, float]) -> dict[str, Any]:
    """Times of a piece of work and of its rivals, beside the prediction."""
    import torch

    from benchmarks.gpu.device import by_graph, by_stream
    from benchmarks.gpu.rivals import RIVALS, compiled

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    fits = work.bytes < cache // 2
    copies = 1 if fits else max(2, min(_COPIES, 2 * cache // work.bytes + 1))
    sets = [device.inputs_of(work, i) for i in range(copies)]
    given = [dict(s) for s in sets]
    chains = [device.chain(work.calls, s) for s in sets]

    def ours(i: int) -> Callable[[], None]:
        def run() -> None:
            for ready in chains[i]:
                device.launch(ready)

        return run

    row = page.row_json(work) | {"floor_us": page.floors(work, rates), "copies": copies}
    row["ours_us"] = asdict(by_graph([ours(i) for i in range(copies)]))
    row["launched_us"] = asdict(by_stream(ours(0)))
    row["apart"] = agreement(device, work)
    numbers, rivals = _numbers(work), {}
    for name, rival in (("eager", RIVALS[work.name]), ("compile", compiled(RIVALS[work.name]))):
        runs = [lambda t=t, rival=rival: rival(t, numbers) for t in given]
        rivals[name] = _try(lambda runs=runs: by_stream(runs[0]), f"{work.title}: {name}")
        rivals[f"{name} graph"] = _try(lambda runs=runs: by_graph(runs), f"{work.title}: {name}")
    row["rivals"] = {name: asdict(t) if t else None for name, t in rivals.items()}
    row["met"] = met(work, row)
    return row


def met(work: Work, row: Mapping[str, Any]) -> bool | None:
    """Return whether the aim was reached; None where there is none, or no rival to compare with."""
    aim, ours = work.aim, row["ours_us"]["median"]
    if aim is None:
        return None
    if aim.share is not None:
        return bool(row["floor_us"] / ours >= aim.share)
    if aim.microseconds is not None:
        return bool(ours <= aim.microseconds)
    rival = row["rivals"].get(aim.faster)
    return None if rival is None else bool(rival["median"] / ours >= aim.times)


def _numbers(work: Work) -> dict[str, int]:
    return dict(work.sizes)


def _try(time: Callable[[], Times], what: str) -> Times | None:
    """None where PyTorch cannot: not every sequence of operations can be captured or compiled."""
    try:
        return time()
    except Exception as error:  # of any kind: it is not our code
        print(f"{what} cannot be timed: {error}", file=sys.stderr)
        return None


def _about(sanitizer: str) -> dict[str, str]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "sanitizer": sanitizer,
        "date": datetime.date.today().isoformat(),
    }


def dry_rows(device: Device, items: Iterable[Work]) -> list[dict[str, Any]]:
    """Everything but the clock."""
    return [page.row_json(work) | {"apart": agreement(device, work)} for work in items]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the top; 1 where a kernel is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", type=Path)
    parser.add_argument("--check", type=int, metavar="CASES", help="correctness alone")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--sanitizer", default="not run", help="what it said, for the page")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args(arguments)
    if given.predict:
        page.write(given.output or Path(), page.prediction(), page.predicted_json())
        return 0
    if given.library is None:
        parser.error("--library is needed")
    from benchmarks.gpu import device as devices

    device = devices.Device(given.library, gpu=not given.dry)
    if given.check is not None or given.dry:
        count = given.check or given.cases
        found: dict[str, Any] = {"correctness": check_ops(device, count)}
        if given.dry:
            found["rows"] = dry_rows(device, tiny_works("f32"))
        print(json.dumps(found, indent=1))
        return int(any(v["wrong"] for v in found["correctness"].values()))
    rates = {"bandwidth": devices.copy_bandwidth(), **devices.peaks()}
    correctness = check_ops(device, given.cases)
    rows = []
    for work in works():
        rows.append(measure(device, work, rates))
        row = rows[-1]
        print(
            f"{work.title}: {row['ours_us']['median']:.3g} µs, floor {row['floor_us']:.3g} µs, "
            f"met: {row['met']}",
            file=sys.stderr,
            flush=True,
        )
    results = {
        "measured": True,
        "about": _about(given.sanitizer),
        "rates": rates,
        "correctness": correctness,
        "rows": rows,
    }
    page.write(given.output or Path(), page.measured(results), results)
    return int(any(v["wrong"] for v in correctness.values()))


if __name__ == "__main__":
    sys.exit(main())
