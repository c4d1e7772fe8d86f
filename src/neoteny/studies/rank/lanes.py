"""Records of the rank study as one row a lane, and as series over checkpoints: what its claims and figures ask."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl

from neoteny.lab.configs import digest
from neoteny.studies.rank.scripts import VARIANTS
from neoteny.studies.rank.settings import LARGEST_VALUE, Config

RANK = "effective_rank"

COLLAPSED_SHARE, COLLAPSED_OF_FIRST = 0.1, 0.5
"""Collapse: the last rank is below this share of the largest possible one, and of the first."""

SET = ("level", "noise", "action", "data_episodes", "data_seed", "file")
"""Fields that say which data set a lane learned from."""

QUIET, NOISY = 1, 2
"""Tasks of a run: the environment without action noise, and with it."""

FREE = ("objective", "activation", "learning_rate", "seed", *SET)
"""Fields the sweep varies; all others must have one value for a claim."""


def set_name(text: str) -> str:
    """A data set as a panel is called."""
    level, noise, *more = text.split("|")
    words = {"catch": "Catch", "mountain_car": "MountainCar", "cartpole": "CartPole"}
    return f"{words.get(level, level)}, noise {float(noise):g}" + "".join(f", {each}" for each in more if each)


def _source(file: str) -> str:
    """Where given data come from: a file, or the digest of a recipe that another run recorded by."""
    if file.startswith("{"):
        return f"recorded {digest(json.loads(file))} "
    return f"file {file} " if file else ""


def with_set(frame: pl.DataFrame) -> pl.DataFrame:
    """With the column `set`: level, noise, and what differs from a data set's defaults."""
    default = Config()
    parts = [pl.col("level"), pl.lit("|"), pl.col("noise").cast(pl.String), pl.lit("|")]
    parts += [
        pl.when(pl.col(name) == getattr(default, name)).then(pl.lit("")).otherwise(
            pl.format(f"{name} {{}} ", pl.col(name))
        )
        for name in SET[2:-1]
    ]  # fmt: skip
    parts.append(pl.col("file").map_elements(_source, pl.String, skip_nulls=False))
    return frame.with_columns(pl.concat_str(parts).alias("set"))


def _metric(frame: pl.DataFrame, metric: str, name: str, *conditions: pl.Expr) -> pl.DataFrame:
    rows = frame.filter(pl.col("metric") == metric, *conditions)
    return rows.select("run", "step", pl.col("value").alias(name))


def series(frame: pl.DataFrame, experiment: str = "sweep") -> pl.DataFrame:
    """One row a lane and checkpoint: its fields, rank, most, dead, constant, live, return, score, diverged.

    rank, dead and constant are of the penultimate stage, NaN from the checkpoint on at which the lane had diverged.
    most: the largest possible rank, the smaller of the states it was measured on (seen_states) and units. return: mean
    undiscounted, without action noise; score: normalised by the random policy's (0) and the behaviour's best (1).
    behaviour: its mean, likewise.
    """
    rows = frame.filter(pl.col("experiment") == experiment)
    returned = _metric(rows, "return", "return", pl.col("task") == QUIET)
    if returned.is_empty():
        return returned.with_columns(pl.lit("").alias("set"))
    last_stage = pl.col("place") == pl.format("hidden{}", pl.col("depth"))
    table = returned
    for metric, name, *conditions in (
        (RANK, "rank"),
        ("dead_units", "dead", last_stage),
        ("constant_units", "constant", last_stage),
        ("largest_value", "largest"),
        ("states", "seen_states"),
        ("units", "units"),
        ("behaviour", "random", pl.col("place") == "random"),
        ("behaviour", "mean", pl.col("place") == "mean"),
        ("behaviour", "best", pl.col("place") == "best"),
    ):
        table = table.join(_metric(rows, metric, name, *conditions), on=("run", "step"), how="left")
    fields = [field.name for field in dataclasses.fields(Config)]
    table = table.join(rows.select("run", *fields).unique("run"), on="run", how="left").sort("run", "step")
    # a dead lane is probed no more: what belongs to its data and structure is that of the checkpoints before
    shared = [pl.col(name).forward_fill().over("run") for name in ("seen_states", "units", "random", "mean", "best")]
    table = table.with_columns(*shared)
    wild = (pl.col("objective") != "bc") & (pl.col("largest") > LARGEST_VALUE)
    lost = pl.col("rank").is_null() | pl.col("rank").is_nan() | wild.fill_null(False)
    table = table.with_columns(lost.cast(pl.Int8).cum_max().over("run").cast(pl.Boolean).alias("diverged"))
    span = pl.col("best") - pl.col("random")
    seen = {
        name: pl.when("diverged").then(float("nan")).otherwise(pl.col(name)) for name in ("rank", "dead", "constant")
    }
    return with_set(
        table.with_columns(
            pl.min_horizontal("seen_states", "units").alias("most"),
            ((pl.col("return") - pl.col("random")) / span).alias("score"),
            ((pl.col("mean") - pl.col("random")) / span).alias("behaviour"),
            **seen,
        ).with_columns((pl.col("units") * (1 - pl.col("dead"))).alias("live"))
    )


def final_lanes(frame: pl.DataFrame, experiment: str = "sweep") -> pl.DataFrame:
    """One row a finished lane, after its last update: as `series`, with `first_rank`, `collapsed`, `noisy_return`, and
    a column for each variant of the rank.
    """
    table = series(frame, experiment)
    if table.is_empty():
        return table
    first = table.filter(pl.col("step") == 0).select("run", pl.col("rank").alias("first_rank"))
    table = table.filter(pl.col("step") == pl.col("updates")).join(first, on="run", how="left")
    rows = frame.filter(pl.col("experiment") == experiment)
    for probe in VARIANTS:
        table = table.join(_metric(rows, probe.name, probe.name), on=("run", "step"), how="left")
    noisy = _metric(rows, "return", "noisy_return", pl.col("task") == NOISY)
    table = table.join(noisy, on=("run", "step"), how="left")
    small = pl.col("rank") < COLLAPSED_SHARE * pl.col("most")
    low = small & (pl.col("rank") < COLLAPSED_OF_FIRST * pl.col("first_rank"))
    table = table.with_columns((low & ~pl.col("diverged")).fill_null(False).alias("collapsed"))
    return table.sort("set", "objective", "activation", "learning_rate", "seed")


def varied(lanes: pl.DataFrame) -> list[str]:
    """Fields that differ between the lanes although the sweep does not vary them."""
    fields = [field.name for field in dataclasses.fields(Config) if field.name not in FREE]
    return [name for name in fields if lanes[name].n_unique() > 1]


def ranks(lanes: pl.DataFrame, name: str = "rank") -> np.ndarray:
    """(lanes,) a measure of rank; 0, below all others, for lanes that diverged."""
    values = lanes[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return np.where(lanes["diverged"].to_numpy() | np.isnan(values), 0.0, values)


def column(lanes: pl.DataFrame, name: str) -> np.ndarray:
    """(lanes,) float64; null is NaN."""
    return lanes[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
