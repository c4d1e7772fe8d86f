"""What the records look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from neoteny.lab.study import StudyFigure, StudyTable
from neoteny.probes import cluster_order
from neoteny.studies.plasticity.agents import TREATMENTS
from neoteny.studies.plasticity.labels import DEFAULT, REMEDIES
from neoteny.studies.plasticity.published import FINAL, INITIAL, RISE, published
from neoteny.studies.plasticity.runs import (
    AGENT_STRUCTURE,
    SETTING,
    SETTINGS,
    WALK_STRUCTURE,
    agent_rows,
    at_end,
    case1_rows,
    correlations,
    mixed_fields,
    probed,
    setting_name,
    varied,
    walk_rows,
    width_sweep,
)

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
        factorial = case1_rows(frame)
        if factorial.is_empty():
            return None
        rows = _measured(factorial, metric, place, scale)
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
        if "remedy" not in frame.columns:
            return None
        default = (pl.col("adam_b2") == DEFAULT[0]) & (pl.col("adam_eps_root") == DEFAULT[1])
        relabelled = frame.filter(pl.col("experiment").is_in(["case1", "remedies"]) & default)
        rows = _measured(relabelled, metric, place, scale)
        if rows["remedy"].n_unique() < 2:
            return None
        labels = {(name,): name.replace("_", " ") for name in REMEDIES}
        return _draw(rows, ("remedy",), labels, x_label="task", y_label=y_label)

    return draw


# Walk -------------------------------------------------------------------------------------------------------------

PATHS: dict[tuple, str] = {("gradient",): "gradient descent", ("walk",): "random walk, equal steps"}


def _walk_curve(
    metric: str, place: str, y_label: str, *, y_log: bool = False, scale: float = 1.0
) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import curves, settings

        rows = walk_rows(frame).filter((pl.col("metric") == metric) & (pl.col("place") == place))
        if rows.is_empty() or mixed_fields(rows, WALK_STRUCTURE):
            return None
        rows = rows.with_columns(pl.col("value") * scale)
        looks = settings(rows, ("path",), PATHS)
        return curves(
            rows, x="step", by=("path",), settings=looks, x_label="updates", y_label=y_label, y_log=y_log, x_log=True
        )

    return draw


DENSITY_POINTS, DENSITY_WIDTH = 200, 0.01
"""Points at which a density is drawn, and the Gaussian's standard deviation as a share of the range."""


def _density(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    rows = walk_rows(frame).filter(pl.col("metric") == "output_spectrum")
    if rows.is_empty() or mixed_fields(rows, WALK_STRUCTURE):
        return None
    rows = rows.filter((pl.col("step") == pl.col("step").max()) & pl.col("value").is_finite())
    nodes = rows.filter(pl.col("place").str.starts_with("eigenvalue:"))
    if nodes.is_empty():
        return None
    low, high = (float(nodes["value"].to_numpy().min()), float(nodes["value"].to_numpy().max()))
    grid, width = np.linspace(low, high, DENSITY_POINTS), max(DENSITY_WIDTH * (high - low), 1e-12)
    found = []
    for (path, seed), part in rows.partition_by("path", "seed", as_dict=True, maintain_order=True).items():
        held = dict(part.select("place", "value").iter_rows())
        count = sum(place.startswith("eigenvalue:") for place in held)
        where, share = (np.array([held[f"{kind}:{i}"] for i in range(count)]) for kind in ("eigenvalue", "weight"))
        heights = np.exp(-0.5 * ((grid[:, None] - where) / width) ** 2) / (width * np.sqrt(2 * np.pi)) @ share
        found += [
            {"path": path, "seed": seed, "eigenvalue": x, "value": max(y, 1e-8)}
            for x, y in zip(grid, heights, strict=True)
        ]
    table = pl.DataFrame(found)
    looks = settings(table, ("path",), PATHS)
    return curves(
        table, x="eigenvalue", by=("path",), settings=looks, y_log=True, show_seeds=False,
        x_label="eigenvalue", y_label="spectral density",
    )  # fmt: skip


def _cosines(path: str) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import heatmap

        rows = walk_rows(frame)
        if rows.is_empty() or mixed_fields(rows, WALK_STRUCTURE):
            return None
        rows = rows.filter((pl.col("metric") == "gradient_cosines") & (pl.col("path") == path))
        rows = rows.filter(pl.col("seed") == pl.col("seed").min())
        if rows.is_empty():
            return None
        pairs = {tuple(map(int, place.split("|"))): value for place, value in rows.select("place", "value").iter_rows()}
        size = 1 + max(j for _, j in pairs)
        matrix = np.eye(size)
        for (i, j), value in pairs.items():
            matrix[i, j] = matrix[j, i] = np.nan if value is None else value
        order = cluster_order(matrix, rng=np.random.default_rng(0))
        shown = matrix[np.ix_(order, order)]
        names = [str(number) for number in order]
        return heatmap(
            shown, rows=names, columns=names, centre=0.0, limits=(-1.0, 1.0), annotate=False,
            row_label="example", column_label="example", value_label="cosine",
        )  # fmt: skip

    return draw


# Agents -----------------------------------------------------------------------------------------------------------

NAMES: dict[tuple, str] = {
    ("none", "scalar"): "none",
    ("none", "two_hot"): "two-hot",
    **{
        (treatment, output): f"{'two-hot, ' if output == 'two_hot' else ''}{treatment.replace('_', ' ')}"
        for output in ("scalar", "two_hot")
        for treatment in TREATMENTS
        if treatment != "none"
    },
}
"""(treatment, output) -> what it is called, in the order of figures and tables."""


def _agents(frame: pl.DataFrame, *experiments: str) -> pl.DataFrame:
    """What their probe tasks gave, with a panel for each setting; empty where runs differ in anything else."""
    table = probed(frame, *experiments)
    if table.is_empty() or mixed_fields(table, AGENT_STRUCTURE):
        return table.clear()
    panels = [setting_name(row) for row in table.select(SETTING).iter_rows()]
    return table.with_columns(panel=pl.Series(panels))


def _probe_curve(column: str, y_label: str) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import curves, settings

        table = _agents(frame, "interventions")
        if table.is_empty():
            return None
        by = ("treatment", "output")
        looks = settings(table, by, NAMES)
        panel = "panel" if table["panel"].n_unique() > 1 else None
        return curves(
            table, x="iteration", y=column, by=by, panel=panel, settings=looks, diverged="died", show_seeds=False,
            x_label="iterations", y_label=y_label, columns=2,
        )  # fmt: skip

    return draw


def _rises(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals, settings

    # The same agents in two experiments would be one seed twice.
    table = at_end(_agents(frame, "interventions", "combined"))
    if table.is_empty():
        return None
    looks = settings(table, ("treatment", "output"), NAMES)
    panel = "panel" if table["panel"].n_unique() > 1 else None
    return intervals(
        table, by=("treatment", "output"), y="rise", panel=panel, settings=looks, reference=0.0, columns=2,
        value_label="rise of the probe loss",
    )  # fmt: skip


def _curvature(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    rows = agent_rows(frame, "interventions").filter(pl.col("metric") == "output_sharpness")
    if rows.is_empty() or mixed_fields(rows, AGENT_STRUCTURE):
        return None
    panels = [setting_name(row) for row in rows.select(SETTING).iter_rows()]
    rows = rows.with_columns(panel=pl.Series(panels))
    looks = settings(rows, ("treatment", "output"), NAMES)
    panel = "panel" if rows["panel"].n_unique() > 1 else None
    return curves(
        rows, x="step", by=("treatment", "output"), panel=panel, settings=looks, y_log=True, show_seeds=False,
        x_label="updates", y_label="largest Hessian eigenvalue", columns=2,
    )  # fmt: skip


def _falsification(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import estimates

    found = [
        (f"{name.replace('_', ' ')}, {setting}", interval)
        for name, groups in correlations(frame).items()
        for setting, interval in groups.items()
        if np.isfinite(interval.value)
    ]
    if not found:
        return None
    labels, measured = zip(*found, strict=True)
    return estimates(
        labels, [each.value for each in measured], [each.low for each in measured], [each.high for each in measured],
        value_label="Spearman's correlation with the rise over agents",
    )  # fmt: skip


def _width_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    table = width_sweep(frame)
    if table.is_empty():
        return None
    table = table.sort("target_period", "width").with_columns(
        pl.col("width").cast(pl.String),
        panel=pl.format("target copied every {}", pl.col("target_period")),
    )
    return curves(  # scales of their own: without a target network values may run away
        table, x="width", y="rise", panel="panel", diverged="died", share_y=False, x_label="width",
        y_label="rise of the probe loss", references={"none": 0.0},
    )  # fmt: skip


# Games ------------------------------------------------------------------------------------------------------------

NORMS: dict[tuple, str] = {(False,): "no norm", (True,): "layer norm"}


def _returns(experiment: str, frames_a_step: int) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        from neoteny.report.figures import curves, settings

        if "layer_norm" not in frame.columns:
            return None
        rows = frame.filter((pl.col("experiment") == experiment) & (pl.col("metric") == "return"))
        if rows.is_empty():
            return None
        rows = rows.with_columns(frames=frames_a_step * pl.col("env_steps") / 1e6)
        looks = settings(rows, ("layer_norm",), NORMS)
        return curves(
            rows, x="frames", by=("layer_norm",), panel="game", settings=looks, share_y=False,
            x_label="million frames", y_label="return",
        )  # fmt: skip

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
        "Largest eigenvalue of the Hessian of the training loss on 256 images of the task just learned, by Lanczos.",
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
    StudyFigure(
        "walk_curvature",
        "Curvature along gradient descent and along a random walk",
        "Largest eigenvalue of the Hessian of a loss without targets (Lyle et al. 2023, appendix A), by Lanczos. The "
        "walk takes a Gaussian step as long as every gradient step.",
        _walk_curve("output_spectrum", "largest", "largest Hessian eigenvalue", y_log=True),
    ),
    StudyFigure(
        "walk_interference",
        "Interference along both paths",
        "Share of pairs of examples whose gradients of the training loss point away from each other.",
        _walk_curve("gradient_covariance", "negative", "negative cosines (%)", scale=100),
    ),
    StudyFigure(
        "walk_density",
        "Spectral density at the end of both paths",
        "Of the same Hessian, by stochastic Lanczos quadrature, every node a Gaussian of a hundredth of the range; "
        "mean over seeds.",
        _density,
    ),
    StudyFigure(
        "cosines_gradient",
        "Cosines of gradients after gradient descent",
        "Of pairs of examples, of one seed; rows in the order of k-means clusters.",
        _cosines("gradient"),
    ),
    StudyFigure(
        "cosines_walk",
        "Cosines of gradients after a random walk",
        "The same of the walk.",
        _cosines("walk"),
    ),
    StudyFigure(
        "probe_loss",
        "Loss on the probe task",
        "What copies of the agent's network end at on new random functions, in the decoded squared error; the mean "
        "over functions.",
        _probe_curve("final", "probe loss at the end"),
    ),
    StudyFigure(
        "rise",
        "Loss of plasticity",
        "Rise of the probe loss from the first update to the end of the run; to the right is worse. Beside the final "
        "loss above: a network that is bad from the start has a small rise.",
        _rises,
    ),
    StudyFigure(
        "agents_curvature",
        "Curvature while agents learn",
        "Largest eigenvalue of the Hessian of a loss without targets. Two-hot networks have other outputs, and their "
        "numbers another scale.",
        _curvature,
    ),
    StudyFigure(
        "falsification",
        "Statistics against loss of plasticity",
        "Spearman's correlation over agents, resampled by seed. A statistic that explained loss of plasticity would "
        "have one sign everywhere.",
        _falsification,
    ),
    StudyFigure(
        "width",
        "Loss of plasticity against width",
        "Rise of the probe loss of agents nothing is done about, by the period of the target network.",
        _width_figure,
    ),
    StudyFigure(
        "minatar_returns",
        "MinAtar with and without layer norm",
        "Return of evaluated episodes of Double DQN; nothing but the norm differs.",
        _returns("games", 1),
    ),
    StudyFigure(
        "atari_returns",
        "Atari with and without layer norm",
        "Return of evaluated episodes of DQN Zoo's Double DQN with a replay of 100,000 and epsilon 0.1.",
        _returns("atari", 4),
    ),
)


# Beside the paper's table -----------------------------------------------------------------------------------------


def beside_the_paper(frame: pl.DataFrame) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """(header, rows): probe losses of every treatment in every setting, ours and the paper's."""
    table = at_end(_agents(frame, "interventions", "combined"))
    if table.is_empty():
        return None
    losses, tables = ("initial", "final", "rise"), (INITIAL, FINAL, RISE)
    header = ("setting", "treatment", "seeds", *losses, "regret", *(f"paper: {name}" for name in losses))
    rows = []
    order = {key: place for place, key in enumerate(NAMES)}
    parts = table.partition_by(*SETTING, "treatment", "output", as_dict=True, maintain_order=True)
    for key, part in sorted(parts.items(), key=lambda item: (str(item[0][: len(SETTING)]), order[item[0][-2:]])):
        setting, (treatment, output) = key[: len(SETTING)], key[-2:]
        where = dict(zip(SETTING, setting, strict=True))
        theirs = [published(each, where["data"], treatment, output, where["network"]) for each in tables]
        ours = [_mean_and_deviation(part[column].drop_nulls().to_numpy()) for column in (*losses, "regret")]
        name = NAMES[treatment, output]
        rows.append((setting_name(setting), name, str(part["seed"].n_unique()), *ours, *theirs))
    return header, rows


def _mean_and_deviation(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.2f}" if len(values) else "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


TABLES = (
    StudyTable(
        "beside_the_paper",
        "Probe losses beside the paper's",
        "Mean ± standard deviation over seeds, as the paper prints its own (over an unstated number of seeds, of all "
        "its tasks of a data set together). Initial: the loss at the end of the first probe; final: of the last; rise: "
        "their difference. Regret: final less that of a fresh network on the same targets. The paper's numbers are "
        "those of its nearest data set and network: its budget and its width are others.",
        beside_the_paper,
    ),
)
