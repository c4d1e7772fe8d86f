"""Read a result directory: what ran, what was measured, what it cost, and what became of the claims.

python examples/read_results.py results/plasticity-quick
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl

import neoteny


def settings(frame: pl.DataFrame) -> list[str]:
    """The configuration fields that differ between runs, seeds aside."""
    fields = frame.columns[frame.columns.index("flops_search") + 1 :]
    return [name for name in fields if name != "seed" and frame[name].n_unique() > 1]


def scores(frame: pl.DataFrame, metric: str = "accuracy") -> pl.DataFrame:
    """Mean and standard deviation over seeds of a metric at the first and the last task, for each setting."""
    by = settings(frame)
    rows = frame.filter(pl.col("metric") == metric)
    ends = rows.filter((pl.col("task") == 0) | (pl.col("task") == pl.col("task").max()))
    seeds = ends.group_by(*by, "task", "seed").agg(pl.col("value").mean())
    table = seeds.group_by(*by, "task").agg(
        pl.len().alias("seeds"), pl.col("value").mean().alias("mean"), pl.col("value").std().alias("sd")
    )
    return table.sort(*by, "task")


def cost(frame: pl.DataFrame) -> pl.DataFrame:
    """Floating-point operations of all runs by account, in TFLOP. The columns are cumulative within a run."""
    accounts = ["flops_train", "flops_forward", "flops_probe"]
    return frame.group_by("run").agg(pl.col(accounts).max()).select((pl.col(accounts).sum() / 1e12).round(4))


def main(directory: Path | str) -> pl.DataFrame:
    """Print runs, scores, cost and claims; returns the table of scores."""
    frame = neoteny.load(directory)
    print(f"{frame['run'].n_unique()} runs; metrics: {', '.join(sorted(frame['metric'].unique()))}")
    diverged = frame.filter(pl.col("metric") == "diverged")
    print(f"{diverged['run'].n_unique()} runs diverged")
    table = scores(frame)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, float_precision=3, tbl_hide_dataframe_shape=True):
        print(table)
        print(cost(frame))
    claims = Path(directory) / "claims.json"
    if claims.exists():
        for claim in json.loads(claims.read_text()):
            print(f"{claim['id']:<8} {claim['verdict']:<13} {claim['statement']}")
    return table


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "results/plasticity-quick")
