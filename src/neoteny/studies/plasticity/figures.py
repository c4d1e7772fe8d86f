"""What the records look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl

from neoteny.lab.study import StudyFigure
from neoteny.studies.plasticity.labels import DEFAULT, REMEDIES
from neoteny.studies.plasticity.runs import SETTINGS, case1_rows, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _measured(frame: pl.DataFrame, metric: str, place: str | None, scale: float) -> pl.DataFrame:
    """One row a run and task, with whether the run diverged and its panel; `place` None where there is only one."""
    diverged = frame.filter(pl.col("metric") == "diverged")["run"].unique().to_list()
    mixed = varied(frame)
    rows = frame.filter(pl.col("metric") == metric)
    if place is not None:
        rows = rows.filter(pl.col("place") == place)
    panel = pl.concat_str([pl.lit(f"{name} ") + pl.col(name).cast(pl.String) for name in mixed], separator=", ")
    return rows.with_columns(
        pl.col("value") * scale,
        (pl.col("task") + 1).alias("task"),
        pl.col("run").is_in(diverged).alias("diverged"),
        (panel if mixed else pl.lit("")).alias("panel"),
    )


def _draw(rows: pl.DataFrame, by: tuple[str, ...], labels: dict[tuple, str], **labelled: Any) -> Figure:
    """A line for each setting against the task, in a panel for each structure."""
    from neoteny.report.figures import curves, settings

    panel = "panel" if rows["panel"].n_unique() > 1 else None
    looks = settings(rows, by, labels)
    return curves(rows, x="task", by=by, panel=panel, diverged="diverged", settings=looks, **labelled)


def _curve(
    metric: str, y_label: str, *, place: str | None = "", scale: float = 1.0, y_log: bool = False, chance: bool = False
) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        rows = _measured(case1_rows(frame), metric, place, scale)
        if rows.is_empty():
            return None
        ten_classes = chance and set(rows["data"]) <= {"mnist_digits", "digits", "mnist", "fashion_mnist", "cifar10"}
        return _draw(
            rows,
            ("adam_b2", "adam_eps_root"),
            SETTINGS,
            x_label="task (labels redrawn before each)",
            y_label=y_label,
            y_log=y_log,
            references={"chance": 10.0} if ten_classes else None,
        )

    return draw


def _remedies_figure(
    metric: str, y_label: str, place: str = "", scale: float = 1.0
) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        default = (pl.col("adam_b2") == DEFAULT[0]) & (pl.col("adam_eps_root") == DEFAULT[1])
        rows = _measured(frame.filter(default), metric, place, scale)
        if rows["remedy"].n_unique() < 2:
            return None
        labels = {(name,): name.replace("_", " ") for name in REMEDIES}
        return _draw(rows, ("remedy",), labels, x_label="task", y_label=y_label)

    return draw


FIGURES = (
    StudyFigure(
        "accuracy",
        "Accuracy at the end of each task",
        "How well the labels of each task are fitted when its budget of steps is spent, on 4,096 images. "
        "A network that stays able to learn gives a flat line.",
        _curve("accuracy", "accuracy (%)", scale=100, chance=True),
    ),
    StudyFigure(
        "dead_units",
        "Dead units",
        "Share of hidden units that are exactly zero on all training images, mean of the hidden stages.",
        _curve("dead_units", "dead units (%)", place="all", scale=100),
    ),
    StudyFigure(
        "effective_rank",
        "Effective rank of the features",
        "Number of singular values of the last hidden stage's output that make up 99 % of their sum "
        "(Kumar et al. 2021).",
        _curve("effective_rank", "effective rank", place=None),
    ),
    StudyFigure(
        "weight_norm",
        "Weight norm",
        "Global L2 norm of all kernels.",
        _curve("weight_norm", "weight norm", place="all"),
    ),
    StudyFigure(
        "sharpness",
        "Sharpness",
        "Largest eigenvalue of the Hessian of the training loss on 512 images of the task just learned, by Lanczos.",
        _curve("sharpness", "largest Hessian eigenvalue", place="all", y_log=True),
    ),
    StudyFigure(
        "remedies",
        "Remedies under default Adam",
        "Accuracy at the end of each task with what is done about loss of plasticity; none is default Adam above.",
        _remedies_figure("accuracy", "accuracy (%)", scale=100),
    ),
    StudyFigure(
        "remedies_dead_units",
        "Dead units under the remedies",
        "Share of dead units, as above.",
        _remedies_figure("dead_units", "dead units (%)", "all", 100),
    ),
)
