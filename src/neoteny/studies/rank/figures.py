"""The figures of the rank study."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import TYPE_CHECKING

import polars as pl

from neoteny.lab.study import StudyFigure
from neoteny.studies.rank.lanes import SET, final_lanes, series, set_name
from neoteny.studies.rank.settings import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"q": "Q", "bve": "behaviour values", "bc": "cloning"}
ACTIVATIONS = {"relu": "ReLU", "tanh": "tanh", "elu": "ELU"}
CELLS: dict[tuple[Hashable, ...], str] = {
    (loss, activation): f"{loss}, {activation}" for loss in NAMES.values() for activation in ACTIVATIONS.values()
}
"""Objective and activation in words, in the order of the legends."""


def _named(lanes: pl.DataFrame) -> pl.DataFrame:
    """With the columns `data`, `loss`, `cell` and `activation` in words; diverged lanes at rank 0."""
    rank = pl.when("diverged").then(0.0).otherwise(pl.col("rank")).alias("rank")
    loss = pl.col("objective").replace_strict(NAMES, return_dtype=pl.String)
    activation = pl.col("activation").replace_strict(ACTIVATIONS, return_dtype=pl.String)
    return lanes.with_columns(
        rank,
        loss.alias("loss"),
        activation,
        pl.col("set").map_elements(set_name, return_dtype=pl.String).alias("data"),
    ).with_columns(pl.format("{}, {}", "loss", "activation").alias("cell"))


def _panel(table: pl.DataFrame) -> str | None:
    return "data" if table["data"].n_unique() > 1 else None


def _rank_against_return(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import scatter

    lanes = final_lanes(frame)
    if lanes.is_empty():
        return None
    table = _named(lanes)
    return scatter(
        table,
        x="rank",
        y="score",
        by=("loss", "activation"),
        labels=CELLS,
        panel=_panel(table),
        crossed="diverged",
        x_label="effective rank",
        y_label="normalised return",
    )


def _over_rates(frame: pl.DataFrame, measure: str, y_label: str, *conditions: pl.Expr) -> Figure | None:
    """Mean over seeds against the learning rate, a line for each objective and activation."""
    from neoteny.report.figures import curves, settings

    lanes = final_lanes(frame)
    if lanes.is_empty():
        return None
    table = _named(lanes).filter(*conditions) if conditions else _named(lanes)
    if table.is_empty():
        return None
    by = ("loss", "activation")
    return curves(
        table,
        x="learning_rate",
        y=measure,
        by=by,
        panel=_panel(table),
        settings=settings(table, by, CELLS),
        x_log=True,
        x_label="learning rate",
        y_label=y_label,
    )


def _dead_units(frame: pl.DataFrame) -> Figure | None:
    return _over_rates(frame, "dead", "share of dead units", pl.col("activation") == "ReLU")


def _rank_by_rate(frame: pl.DataFrame) -> Figure | None:
    return _over_rates(frame, "rank", "effective rank")


def _return_by_rate(frame: pl.DataFrame) -> Figure | None:
    return _over_rates(frame, "score", "normalised return")


def _phases(measure: str, y_label: str):
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import curves, settings

        table = series(frame)
        if table.is_empty():
            return None
        chosen = table.filter((pl.col("objective") == "q") & (pl.col("activation") == "relu"))
        if chosen.is_empty():
            return None
        # a logarithmic axis has no place for 0: the first checkpoint stands at 1
        shown = _named(chosen).with_columns(pl.max_horizontal(pl.col("step"), 1).alias("update"))
        shown = shown.sort("data", "run", "step")
        rates = sorted(shown["learning_rate"].unique().to_list())
        looks = settings(shown, ("learning_rate",), {(rate,): f"{rate:g}" for rate in rates})
        return curves(
            shown,
            x="update",
            y=measure,
            by=("learning_rate",),
            panel=_panel(shown),
            diverged="diverged",
            settings=looks,
            x_log=True,
            x_label="updates (before the first: at 1)",
            y_label=y_label,
        )

    return draw


WORDS = {
    ("features", "frozen"): "frozen features",
    ("layer_norm", True): "layer normalisation",
    ("double", False): "single Q",
    ("huber", True): "Huber loss",
    "sharpness_radius": "SAM",
    "rank_coefficient": "rank penalty",
}
"""What a changed setting is called where its field's name does not say it: (field, value), or field."""

COMMON = ("learning_rate", "seed", *SET)
"""Fields that are no intervention."""


def _change(lane: dict) -> str:
    """What an intervention changes: every field of its lanes that is not the default."""
    changed = []
    for field in dataclasses.fields(Config):
        value = lane[field.name]
        if field.name in COMMON or value == field.default:
            continue
        words = WORDS.get(field.name, field.name.replace("_", " "))
        told = f"{value:g}" if isinstance(value, int | float) else value
        changed.append(WORDS.get((field.name, value), f"{words} {told}"))
    return ", ".join(changed) or "baseline"


def _interventions(measure: str, value_label: str):
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import intervals

        lanes = final_lanes(frame, "interventions")
        if lanes.is_empty():
            return None
        names = [_change(lane) for lane in lanes.iter_rows(named=True)]
        table = _named(lanes).with_columns(pl.Series("change", names))
        if table["data"].n_unique() > 1:
            table = table.with_columns(pl.format("{}: {}", "data", "change").alias("change"))
        return intervals(table, by=("change",), y=measure, panel="learning_rate", value_label=value_label)

    return draw


FIGURES = (
    StudyFigure(
        "scatter",
        "Rank against return",
        "Every lane after its last update, by objective and activation. A cross is a lane that diverged: its rank "
        "counts as 0, its return is that of its last finite policy. 0 is the return of a random policy, 1 the "
        "behaviour's best.",
        _rank_against_return,
    ),
    StudyFigure("rank", "Rank against learning rate", "Mean over seeds; diverged lanes count as 0.", _rank_by_rate),
    StudyFigure(
        "return",
        "Return against learning rate",
        "Mean over seeds; 0 is a random policy, 1 the behaviour's best.",
        _return_by_rate,
    ),
    StudyFigure(
        "dead_units",
        "Dead units against learning rate",
        "Share of ReLU units of the penultimate layer that are zero on every state measured; diverged lanes are left "
        "out.",
        _dead_units,
    ),
    StudyFigure(
        "phases_rank",
        "Rank while learning",
        "Q with ReLU, a line for each learning rate.",
        _phases("rank", "effective rank"),
    ),
    StudyFigure(
        "phases_return",
        "Return while learning",
        "The same lanes as above.",
        _phases("score", "normalised return"),
    ),
    StudyFigure(
        "interventions_rank",
        "Interventions: effect on rank",
        "Q with ReLU, one setting at a time otherwise, after the last update.",
        _interventions("rank", "effective rank"),
    ),
    StudyFigure(
        "interventions_return",
        "Interventions: effect on return",
        "The same lanes as above.",
        _interventions("score", "normalised return"),
    ),
)
