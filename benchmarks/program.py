"""Where an update's time goes: the compiled chunk program's copies, transposes and operations.

    python benchmarks/program.py CASE LANES [--hlo FILE] [--seconds S]

Copies are counted in the optimised program, the same on a busy machine; times are XLA's own, by operation.
"""

from __future__ import annotations

import argparse
import collections
import math
import re
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from cases import CASES, Case
from neoteny.training.events import Train
from neoteny.training.runner import Runner
from neoteny_side import make_runner

_COMPUTATION = re.compile(r"\n(?=%|ENTRY)")
_MOVE = re.compile(r"%(\S+) = (\w+)\[([\d,]*)\]\S* (copy|transpose)\(")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "bf16": 2, "f64": 8, "s64": 8}


def chunk_hlo(runner: Runner) -> str:
    """The optimised program of the chunk the runner trains with."""
    event = next(event for event in runner.script if isinstance(event, Train))
    lowered = runner.programs.chunk.lower(
        runner.state, runner.lanes, runner.data.arrays(event.task, "train"), runner.clock, np.int32(1),
        transform=event.task.transform, until=event.until,
    )  # fmt: skip
    return lowered.compile().as_text() or ""


def moves(hlo: str, least_bytes: int = 1024) -> list[tuple[str, str, int, str]]:
    """Copies and transposes of at least so many bytes: (computation, kind, bytes, name)."""
    found = []
    for computation in _COMPUTATION.split(hlo):
        name = computation.split(" ", 1)[0].lstrip("%")
        for instruction, kind, shape, what in _MOVE.findall(computation):
            size = _BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
            if size >= least_bytes:
                found.append((name, what, size, f"{instruction} {kind}[{shape}]"))
    return sorted(found, key=lambda move: -move[2])


def operation_seconds(ticks, lanes: int, seconds: float) -> tuple[float, list[tuple[float, float, str]]]:
    """Seconds an update, and (seconds, runs, operation) an update from XLA's profiler, dearest first."""
    updates, totals, counts = 0, collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                updates += next(ticks).updates // lanes
            taken = time.perf_counter() - start
        (path,) = Path(directory).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if not event.name.startswith(("$", "Thunk", "Pjit", "CommonPjRt", "np.asarray", "end: ")):
                        totals[event.name] += 1e-9 * event.duration_ns
                        counts[event.name] += 1
    table = [(total / updates, counts[name] / updates, name) for name, total in totals.most_common()]
    return taken / updates, table


def main() -> None:
    """Print both for one case."""
    parser = argparse.ArgumentParser(description="where an update's time goes")
    parser.add_argument("case", choices=[case.name for case in CASES])
    parser.add_argument("lanes", type=int)
    parser.add_argument("--hlo", type=Path, help="write the optimised program here")
    parser.add_argument("--seconds", type=float, default=1.0, help="of training that are profiled (default 1)")
    options = parser.parse_args()
    case: Case = next(case for case in CASES if case.name == options.case)
    runner = make_runner(case, options.lanes)
    ticks, quiet = runner.ticks(), 0
    while quiet < 4:
        quiet = quiet + 1 if next(ticks).compilations == 0 else 0
    hlo = chunk_hlo(runner)
    if options.hlo:
        options.hlo.write_text(hlo)
    print(f"{case.title}, {options.lanes} lanes\n\ncopies and transposes of a kilobyte or more, by computation")
    for computation, what, size, name in moves(hlo):
        print(f"  {size / 1024:>10,.0f} KiB  {what:<9} {name:<40} in {computation[:60]}")
    whole, table = operation_seconds(ticks, options.lanes, options.seconds)
    print(f"\noperations, microseconds an update of all lanes ({1e6 * whole:.0f} in all by the clock)")
    for taken, times, name in table[:40]:
        print(f"  {1e6 * taken:>10.1f}  {times:>8.3f} runs  {name}")


if __name__ == "__main__":
    main()
