"""The study's figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from neoteny.lab.study import StudyFigure
from neoteny.studies.lru.claims import Undecidable, final_losses, final_scores, runs_of
from neoteny.studies.lru.models import TITLES
from neoteny.studies.lru.toys import forward_gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[pl.DataFrame], "Figure | None"]


def _where_there(draw: Draw) -> Draw:
    """`draw`, giving None where its records are missing."""

    def drawn(frame: pl.DataFrame) -> Figure | None:
        try:
            return draw(frame)
        except Undecidable:
            return None

    return drawn


def _accuracies(experiment: str, *, beside: str = "") -> Draw:
    """A row for each model, a panel for each task. beside: a model of the ladder to be shown with them."""

    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import intervals, settings

        scores = final_scores(frame, experiment)
        if beside and not runs_of(frame, "ladder", model=beside).is_empty():
            scores = pl.concat([final_scores(frame, "ladder", model=beside), scores])
        looks = settings(scores, ("model",), {(name,): title for name, title in TITLES.items()})
        panel = "data" if scores["data"].n_unique() > 1 else None
        return intervals(
            scores, by=("model",), y="accuracy", panel=panel, settings=looks, value_label="test accuracy (%)"
        )

    return _where_there(draw)


@_where_there
def _stability(frame: pl.DataFrame) -> Figure | None:
    """One row for each ring, a panel for each parametrisation."""
    from neoteny.report.figures import intervals

    scores = final_scores(frame, "stability").sort("r_max", "r_min")
    titles = pl.col("model").replace_strict({name: title for name, title in TITLES.items()})
    return intervals(
        scores.with_columns(titles.alias("parametrisation of the eigenvalues")),
        by=("r_min", "r_max"), y="accuracy", panel="parametrisation of the eigenvalues",
        value_label="test accuracy (%)",
    )  # fmt: skip


@_where_there
def _recall(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    scores = final_scores(frame, "recall").with_columns(
        pl.when(pl.col("model") == "lru").then(pl.lit("gamma")).otherwise(pl.lit("no gamma")).alias("normalisation"),
        pl.format("up to {} pi", (pl.col("max_phase") / np.pi).round(2)).alias("phases"),
    )
    return intervals(
        scores, by=("normalisation", "phases"), y="accuracy", value_label="bits given back (%)", reference=50
    )


@_where_there
def _gain(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    rows = runs_of(frame, "theory", kind="ring").filter(pl.col("metric") == "forward_gain")
    if rows.is_empty():
        return None
    formula = [forward_gain(low, high) for low, high in zip(rows["r_min"], rows["r_max"], strict=True)]
    rows = rows.with_columns((pl.col("value") / pl.Series(formula)).alias("ratio"))
    return intervals(
        rows, by=("r_min", "r_max"), y="ratio", value_label="measured gain over the formula's", reference=1
    )


@_where_there
def _filter(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    losses = final_losses(frame, "filter")
    return curves(
        losses, x="learning_rate", y="loss", by=("model",), x_log=True, y_log=True, x_label="learning rate",
        y_label="training loss",
    )  # fmt: skip


@_where_there
def _phase(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    losses = final_losses(frame, "phase")
    panel = "learning_rate" if losses["learning_rate"].n_unique() > 1 else None
    return curves(
        losses, x="theta", y="loss", by=("parametrisation",), panel=panel, y_log=True,
        x_label="phase to be learned (radians)", y_label="loss after training",
    )  # fmt: skip


@_where_there
def _training(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    rows = frame.filter((pl.col("experiment") == "ladder") & (pl.col("metric") == "train_loss") & (pl.col("step") > 1))
    if rows.is_empty():
        return None
    looks = settings(rows, ("model",), {(name,): title for name, title in TITLES.items()})
    panel = "data" if rows["data"].n_unique() > 1 else None
    return curves(rows, x="step", by=("model",), panel=panel, settings=looks, y_log=True, x_label="update",
                  y_label="training loss")  # fmt: skip


FIGURES = (
    StudyFigure(
        "ladder",
        "The ladder",
        "Test accuracy from the dense tanh network to the LRU, one change at a time, and of S4D and S5 in the same "
        "block and budget. A diverged run counts as chance.",
        _accuracies("ladder"),
    ),
    StudyFigure(
        "training",
        "Training loss on the ladder",
        "Cross-entropy in nats, mean over a hundred updates.",
        _training,
    ),
    StudyFigure(
        "stability",
        "Rings and stability",
        "Test accuracy by the ring the eigenvalues begin on, for the three parametrisations.",
        _stability,
    ),
    StudyFigure(
        "recall",
        "Recall after a long delay",
        "Share of the pattern's bits given back, with and without gamma, with all phases and with small ones.",
        _recall,
    ),
    StudyFigure(
        "text",
        "Bytes of text",
        "Test accuracy of the LRU and of a bag of the same symbols, which knows no order.",
        _accuracies("text"),
    ),
    StudyFigure(
        "discretisation",
        "Discretisations of S4D",
        "Test accuracy with the exact input, with Delta * B, and with Delta of A and B learned apart.",
        _accuracies("discretisation", beside="s4d"),
    ),
    StudyFigure(
        "gain",
        "Forward gain",
        "E||h||^2 over E||B u||^2 of white noise on a ring of 500 eigenvalues, over what the formula says.",
        _gain,
    ),
    StudyFigure(
        "filter",
        "Learning a filter",
        "Training loss of one dense recurrent layer after a fixed number of Adam steps.",
        _filter,
    ),
    StudyFigure(
        "phase",
        "Learning a phase",
        "Squared distance of lambda^100 from its target, from the right modulus and a wrong phase.",
        _phase,
    ),
)
