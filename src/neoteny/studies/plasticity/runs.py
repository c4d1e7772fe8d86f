"""Records of the plasticity study: what its claims and figures ask of them."""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.analysis import Verdict, not_run

FACTORIAL = ((0.999, 0.0), (0.9, 0.0), (0.999, 1e-3), (0.9, 1e-3))
"""Neither change, each alone, both."""

SETTINGS: dict[tuple, str] = {
    (0.999, 0.0): "default Adam",
    (0.9, 0.0): "b2 = 0.9",
    (0.999, 1e-3): "eps_root = 1e-3",
    (0.9, 1e-3): "tuned: both",
}


STRUCTURE = ("data", "width", "depth", "batch", "tasks", "steps_per_task", "until_fitted", "learning_rate", "l2")
"""What must be one setting for the claims; the report draws a panel for each where there are several."""


def case1_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """The 2 x 2 factorial, without remedies."""
    return frame.filter((pl.col("experiment") == "case1") & (pl.col("remedy") == "none"))


def varied(rows: pl.DataFrame) -> list[str]:
    """The fields of `STRUCTURE` in which these rows differ."""
    return [name for name in STRUCTURE if name in rows.columns and rows[name].n_unique() > 1]


def by_task(frame: pl.DataFrame, setting: tuple[float, float], metric: str, place: str = "") -> dict[int, np.ndarray]:
    """A metric at the end of every task: seed -> (tasks,), NaN where a diverged run has none; finished runs only."""
    rows = case1_rows(frame).filter((pl.col("adam_b2") == setting[0]) & (pl.col("adam_eps_root") == setting[1]))
    found: dict[int, np.ndarray] = {}
    for (seed,), run in rows.partition_by("seed", as_dict=True, maintain_order=True).items():
        scored = run.filter(pl.col("metric") == "accuracy")["task"].n_unique()
        if scored < run["tasks"][0]:
            continue
        values = np.full(scored, np.nan)
        chosen = run.filter((pl.col("metric") == metric) & (pl.col("place") == place))
        values[chosen["task"].to_numpy()] = chosen["value"].to_numpy()
        found[seed] = values
    return found


def together(*columns: dict[int, np.ndarray]) -> list[np.ndarray]:
    """(seeds, tasks) of each, for the seeds that all have, in one order."""
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    return [np.array([column[seed] for seed in seeds]) for column in columns]


def accuracy_by_task(frame: pl.DataFrame, setting: tuple[float, float]) -> dict[int, np.ndarray]:
    """Accuracy in percent at the end of every task: seed -> (tasks,). A diverged run is scored by its last finite
    network.
    """
    return {seed: 100 * values for seed, values in by_task(frame, setting, "accuracy").items()}


def last_third(values: np.ndarray) -> np.ndarray:
    """Mean over the last third of tasks, for each seed."""
    third = values.shape[1] // 3
    return np.nanmean(values[:, -third:], axis=1)


def change(values: np.ndarray) -> np.ndarray:
    """Last third of tasks less first third, for each seed."""
    third = values.shape[1] // 3
    return last_third(values) - np.nanmean(values[:, :third], axis=1)


def why_unfit(frame: pl.DataFrame, *settings: tuple[float, float]) -> Verdict | None:
    """Why these records cannot decide a claim about these Adam settings; None if they can."""
    rows = case1_rows(frame)
    mixed = varied(rows)
    if mixed:
        return not_run(f"the runs differ in {', '.join(mixed)}; claims are about one value of each")
    for setting in settings:
        accuracy = accuracy_by_task(frame, setting)
        if not accuracy:
            return not_run(f"needs finished runs of case1 with {SETTINGS[setting]}")
        if min(len(values) for values in accuracy.values()) < 3:
            return not_run("needs at least three tasks")
    return None
