"""neoteny against the same training loop in PyTorch, on this machine's CPU.

    python benchmarks/supervised.py [--quick] [--case NAME ...] [--out FILE]
    python benchmarks/supervised.py --write-notes FILE

Contestants live in processes of their own and train in turn, block by block. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cases import CASES, Case
from contestants import BuildError, Process, alternate, apart, measured
from first_update import measure

CHECKED_UPDATES = 20
LOSS_TOLERANCE = 1e-5
"""Largest relative difference of a loss among the first updates that counts as agreement."""

CHANGE_TOLERANCE = 1e-2
"""The same for what an update does to all parameters together. Adam steps by the sign of gradients that are near 0."""

BUSY_SHARE = 0.05
"""Others' share of the CPUs from which on timings are not to be trusted."""

NOTES = Path(__file__).with_name("supervised.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


# What is built in a contestant's own process; each framework is imported there only. -----------------------


def _neoteny(case: Case, lanes: int):
    from neoteny_side import Neoteny

    return Neoteny(case, lanes)


def _neoteny_floor(case: Case, lanes: int):
    from neoteny_side import Floor

    return Floor(case, lanes)


def _torch_plain(case: Case, lanes: int, trial: float):
    from torch_side import plain

    return plain(case, lanes, trial)


def _torch_eager(case: Case, lanes: int, trial: float):
    from torch_side import eager

    return eager(case, lanes, trial)


def _torch_compiled(case: Case, lanes: int, trial: float):
    from torch_side import compiled

    return compiled(case, lanes, trial)


def _torch_ensemble(case: Case, lanes: int, trial: float):
    from torch_side import ensemble

    return ensemble(case, lanes, trial)


def _torch_ensemble_compiled(case: Case, lanes: int, trial: float):
    from torch_side import ensemble_compiled

    return ensemble_compiled(case, lanes, trial)


def _floor(case: Case, lanes: int, library: str):
    from torch_side import Floor

    return Floor(case, lanes, library)


def _first_updates(case: Case, lanes: int, updates: int):
    from neoteny_side import first_updates

    return tuple(first_updates(case, lanes, updates))


def _replay(case: Case, steps, rows):
    from torch_side import replay

    return replay(case, steps, rows)


# Measuring ----------------------------------------------------------------------------------------------


def _norm(arrays) -> float:
    return float(np.sqrt(sum(np.sum(np.square(array.astype(np.float64))) for array in arrays)))


def check(case: Case, lanes: int) -> dict[str, Any]:
    """Does each of the last lane's first updates equal PyTorch's in float64, from the same state on the same rows?

    Every update is compared from neoteny's own state before it: rounding then has one update to grow in, and a
    wrong gradient, moment, bias correction or batch shows at once.
    """
    steps, rows, losses = apart(_first_updates, case, lanes, CHECKED_UPDATES)
    theirs, their_losses = apart(_replay, case, steps[:-1], rows)
    changes = [
        _norm([a - b for a, b in zip(after.parameters, expected, strict=True)])
        / _norm([b - p for b, p in zip(expected, before.parameters, strict=True)])
        for before, after, expected in zip(steps[:-1], steps[1:], theirs, strict=True)
    ]
    loss = float(np.max(np.abs(losses - their_losses) / np.abs(their_losses)))
    each_once = all(len(np.unique(batch)) == len(batch) for batch in rows)
    passed = loss <= LOSS_TOLERANCE and max(changes) <= CHANGE_TOLERANCE and losses[-1] < losses[0] and each_once
    return {
        "updates": CHECKED_UPDATES,
        "loss": loss,
        "change": max(changes),
        "losses": [float(losses[0]), float(losses[-1])],
        "passed": bool(passed),
    }


def contestants(case: Case, lanes: int, trial: float) -> list[Process]:
    """Everyone who takes part, neoteny first; who cannot be built is named and left out."""
    cores = len(os.sched_getaffinity(0))
    offers: list[tuple] = [
        ("neoteny", _neoteny, (case, lanes), 1),
        ("torch, plain", _torch_plain, (case, lanes, trial), 1),
        ("torch, eager", _torch_eager, (case, lanes, trial), 1),
        ("torch, compiled", _torch_compiled, (case, lanes, trial), 1),
    ]
    if lanes > 1:
        offers += [
            ("torch, ensemble", _torch_ensemble, (case, lanes, trial), 1),
            ("torch, ensemble, compiled", _torch_ensemble_compiled, (case, lanes, trial), 1),
        ]
        if cores > 1:
            offers += [
                ("neoteny, one process a core", _neoteny, (case, lanes), cores),
                ("torch, eager, one process a core", _torch_eager, (case, lanes, trial), cores),
            ]
    offers += [
        ("floor, jnp.dot", _neoteny_floor, (case, lanes), 1),
        ("floor, torch.mm", _floor, (case, lanes, "torch"), 1),
        ("floor, np.matmul", _floor, (case, lanes, "numpy"), 1),
    ]
    built = []
    for name, build, arguments, copies in offers:
        try:
            built.append(Process(name, build, *arguments, copies=copies))
            print(f"  {name}: ready after {built[-1].detail['build_seconds']:.1f} s", flush=True)
        except BuildError as error:
            print(f"  {name} takes no part: {str(error).strip().splitlines()[-1]}")
    return built


def run(case: Case, lanes: int, *, seconds: float, repeats: int, starts: int) -> dict[str, Any]:
    """One comparison."""
    print(f"\n{case.title}, {'one lane' if lanes == 1 else f'per lane of {lanes}'}", flush=True)
    checked = check(case, lanes)
    print(f"  {agreement(checked)}", flush=True)
    taking_part = contestants(case, lanes, trial=min(seconds, 0.5))
    others = alternate(taking_part, seconds=seconds, repeats=repeats)
    for contestant in taking_part:
        contestant.close()
    results = {contestant.name: measured(contestant, taking_part[0]) for contestant in taking_part}
    first_update = {}
    if starts > 0:
        for name in ("neoteny", "torch", "torch-compiled"):
            first_update[name] = measure(name, case.name, lanes, warm_repeats=starts)
    result = {
        "case": case.name,
        "title": case.title,
        "lanes": lanes,
        "matmul_flops": case.matmul_flops(),
        "check": checked,
        "others_cpu_share": float(np.median(others)),
        "contestants": results,
        "first_update_seconds": first_update,
    }
    print(table(result))
    return result


# Showing ------------------------------------------------------------------------------------------------


def agreement(checked: dict[str, Any]) -> str:
    """What `check` found, in a sentence."""
    first, last = checked["losses"]
    return (
        f"Each of the first {checked['updates']} updates against one float64 update of PyTorch's from the same state: "
        f"losses within {checked['loss']:.1e}, changes of the parameters within {checked['change']:.1e} "
        f"(relative; {'passed' if checked['passed'] else 'FAILED'}). Loss {first:.3f} to {last:.3f}."
    )


def _learns(entry: dict[str, Any]) -> str:
    first = entry["detail"].get("first_loss")
    if first is None:
        return ""
    return f"{first:.2f} -> {entry['last_loss']:.2g}"


def _how(entry: dict[str, Any]) -> str:
    chosen = entry["detail"].get("chosen")
    if chosen is None:
        return ""
    form = "" if chosen["form"] == "loop" else f"{chosen['form']}, "
    return f"{form}Adam {chosen['adam']}, {chosen['threads']} thread{'s' if chosen['threads'] > 1 else ''}"


def table(result: dict[str, Any]) -> str:
    """One comparison as a Markdown table."""
    lines = [
        "| contestant | ms an update and lane (quartiles; least) | times neoteny's (quartiles) "
        "| GFLOP/s | loss | chosen |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in result["contestants"].items():
        ms, times = entry["milliseconds"], entry["times_reference"]
        lines.append(
            f"| {name} | {ms['median']:.4g} ({ms['q1']:.4g} to {ms['q3']:.4g}; {ms['min']:.4g}) "
            f"| {times['median']:.2f} ({times['q1']:.2f} to {times['q3']:.2f}) "
            f"| {1e-6 * result['matmul_flops'] / ms['median']:.0f} | {_learns(entry)} | {_how(entry)} |"
        )
    share = result["others_cpu_share"]
    notes = [
        f"Others used {100 * share:.0f} % of the CPUs meanwhile"
        + (": DO NOT TRUST THESE TIMES." if share > BUSY_SHARE else ".")
    ]
    compiling = result["contestants"]["neoteny"]["detail"]["compile_seconds"]
    notes.append(f"neoteny traced and compiled for {compiling:.1f} s.")
    first = result["first_update_seconds"]
    if first:
        spelt = "; ".join(f"{name} {s['cold']:.2f} s cold, {s['warm']:.2f} s warm" for name, s in first.items())
        notes.append(f"From starting Python to the first update: {spelt}.")
    best = min(
        (entry["milliseconds"]["median"], name)
        for name, entry in result["contestants"].items()
        if name.startswith("floor")
    )
    reached = best[0] / result["contestants"]["neoteny"]["milliseconds"]["median"]
    notes.append(f"neoteny reaches {100 * reached:.0f} % of the best floor ({best[1].removeprefix('floor, ')}).")
    return "\n".join([*lines, "", " ".join(notes)])


def dots_table(result: dict[str, Any]) -> str:
    """GFLOP/s of every matrix product, by library."""
    floors = {
        name: entry["detail"]["gflops"] for name, entry in result["contestants"].items() if name.startswith("floor")
    }
    lines = [
        f"| product | {' | '.join(name.removeprefix('floor, ') for name in floors)} |",
        "|---|" + "---|" * len(floors),
    ]
    for dot in next(iter(floors.values())):
        lines.append(f"| {dot} | {' | '.join(f'{values[dot]:.0f}' for values in floors.values())} |")
    return "\n".join(lines)


def write_notes(results: dict[str, Any]) -> None:
    """Put the tables between the markers of supervised.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"Measured {results['date']} on {results['machine']} ({results['cores']} cores), {versions}; "
        f"{results['repeats']} rounds of {results['seconds']} s blocks.",
    ]
    for result in results["comparisons"]:
        lanes = "one lane" if result["lanes"] == 1 else f"per lane of {result['lanes']}"
        parts += [
            f"### {result['title']}, {lanes}",
            table(result),
            agreement(result["check"]),
            "GFLOP/s of the bare products, the best of all blocks:",
            dots_table(result),
        ]
    text = NOTES.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    NOTES.write_text(f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{tail}")


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure and print, or write the notes."""
    parser = argparse.ArgumentParser(description="neoteny against the same loop in PyTorch")
    parser.add_argument("--quick", action="store_true", help="short blocks, few rounds, one warm start")
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--seconds", type=float, help="length of a block (default 1; quick 0.3)")
    parser.add_argument("--repeats", type=int, help="rounds (default 9; quick 5)")
    parser.add_argument(
        "--starts",
        type=int,
        help="warm starts for the time to the first update, 0: leave it out (default 3; quick 1)",
    )
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    parser.add_argument(
        "--write-notes",
        type=Path,
        metavar="FILE",
        help="measure nothing; put a JSON file's tables into supervised.md",
    )
    options = parser.parse_args()
    if options.write_notes:
        write_notes(json.loads(options.write_notes.read_text()))
        return
    seconds = options.seconds or (0.3 if options.quick else 1.0)
    repeats = options.repeats or (5 if options.quick else 9)
    starts = (1 if options.quick else 3) if options.starts is None else options.starts
    results: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "versions": {name: metadata.version(name) for name in ("jax", "equinox", "optax", "torch", "numpy")},
        "seconds": seconds,
        "repeats": repeats,
        "comparisons": [],
    }
    start = time.perf_counter()
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        for lanes in (1, case.lanes):
            results["comparisons"].append(run(case, lanes, seconds=seconds, repeats=repeats, starts=starts))
            if options.out:
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if not all(result["check"]["passed"] for result in results["comparisons"]):
        raise SystemExit("the first updates are wrong, see above")


if __name__ == "__main__":
    main()
