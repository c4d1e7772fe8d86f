"""What is not training: import, the first update, and what events, records and commits take of a run.

    python benchmarks/overhead.py [DIR] [--starts N]

DIR is a result directory, `neoteny run plasticity --out DIR` for example; without one only import and
first update are measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from cases import CASES
from first_update import measure

EXTRAS = ("torch", "mlxtend", "sklearn", "PIL", "datasets", "matplotlib", "scipy")
"""Modules that importing neoteny and its command line must not import."""

IMPORTED = "neoteny", "neoteny.cli", "neoteny.training.runner"


def import_seconds(module: str, starts: int) -> tuple[float, float]:
    """Median seconds of importing a module and of the whole process; asserts that no extra comes along."""
    code = (
        f"import time; start = time.perf_counter(); import {module}; taken = time.perf_counter() - start\n"
        f"import sys; extras = [name for name in {EXTRAS!r} if name in sys.modules]\n"
        f"assert not extras, 'import {module} imports ' + ', '.join(extras)\n"
        "print(taken)"
    )
    taken, whole = [], []
    for _ in range(starts + 1):
        start = time.perf_counter()
        child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        whole.append(time.perf_counter() - start)
        taken.append(float(child.stdout))
    # The first start reads files that are not in the page cache.
    return statistics.median(taken[1:]), statistics.median(whole[1:])


def shares(directory: Path) -> pl.DataFrame:
    """Seconds by kind of work in a result directory, compilation apart, and their share of the whole."""
    from neoteny.lab.results import read

    timings = read(directory).timings
    if timings.is_empty():
        raise SystemExit(f"{directory} holds no timings yet")
    work = timings.select("kind", "updates", seconds=pl.col("seconds") - pl.col("compile_seconds"))
    compiling = timings.select(kind=pl.lit("(compilation)"), updates=0 * pl.col("updates"), seconds="compile_seconds")
    return (
        pl.concat([work, compiling.filter(pl.col("seconds") > 0)])
        .group_by("kind")
        .agg(pl.len().alias("times"), pl.col("updates").sum(), pl.col("seconds").sum())
        .with_columns(percent=100 * pl.col("seconds") / timings["seconds"].sum())
        .sort("seconds", descending=True)
    )


def show_shares(directory: Path) -> None:
    """The table of `shares`, and what a lane-update costs in training and in all."""
    table = shares(directory)
    print(f"{directory}: {table['seconds'].sum():.1f} s in all, {table['updates'].sum():,} lane-updates")
    print(f"{'kind':<14} {'times':>8} {'seconds':>10} {'percent':>8}")
    for kind, times, _, seconds, percent in table.rows():
        print(f"{kind:<14} {times:>8,} {seconds:>10.2f} {percent:>8.2f}")
    training = float(table.filter(pl.col("kind") == "train")["seconds"].sum())
    everything, updates = float(table["seconds"].sum()), int(table["updates"].sum())
    if updates:
        print(
            f"a lane-update: {1e3 * training / updates:.4f} ms in train events, "
            f"{1e3 * everything / updates:.4f} ms with everything"
        )


def main() -> None:
    """Print import times, times to the first update, and a directory's shares."""
    parser = argparse.ArgumentParser(description="what a run spends on anything but training")
    parser.add_argument("directory", type=Path, nargs="?", help="a result directory")
    parser.add_argument("--starts", type=int, default=5, help="processes started for every figure (default 5)")
    options = parser.parse_args()
    if options.directory:
        show_shares(options.directory)
        print()
    print(f"load average {os.getloadavg()[0]:.1f}; medians of {options.starts} starts")
    bare = import_seconds("sys", options.starts)[1]
    print(f"starting Python: {bare:.2f} s")
    for module in IMPORTED:
        taken, whole = import_seconds(module, options.starts)
        print(f"import {module}: {taken:.2f} s ({whole:.2f} s with starting Python); no extra imported")
    for case in CASES:
        seconds = measure("neoteny", case.name, case.lanes, warm_repeats=options.starts)
        print(
            f"first update, {case.title}, {case.lanes} lanes: {seconds['cold']:.2f} s with an empty "
            f"compilation cache, {seconds['warm']:.2f} s with a warm one"
        )


if __name__ == "__main__":
    main()
