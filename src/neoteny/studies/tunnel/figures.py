"""The figures of the tunnel study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from neoteny.lab.study import StudyFigure
from neoteny.studies.tunnel.runs import (
    AFTER_TASK_1,
    AT_THE_END,
    COMBINATIONS,
    Run,
    all_runs,
    network_name,
    swap_family,
    swapped,
    swaps,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame | None:
    return pl.DataFrame(rows, infer_schema_length=None) if rows else None


def _by_layer(runs: Sequence[Run], curves: Mapping[str, Callable[[Run], np.ndarray]]) -> pl.DataFrame | None:
    """One row a run, curve and layer."""
    return _table(
        [
            {"network": network_name(run), "seed": run.seed, "layer": layer, "curve": name, "value": float(value)}
            for run in runs
            for name, measure in curves.items()
            for layer, value in enumerate(measure(run), 1)
        ]
    )


def _layer_figure(
    runs: Sequence[Run], curves: Mapping[str, Callable[[Run], np.ndarray]], **labelled: Any
) -> Figure | None:
    """A panel for each network, its mean K as a vertical line."""
    from neoteny.report.figures import curves as draw
    from neoteny.report.figures import settings

    table = _by_layer(runs, curves)
    if table is None:
        return None
    looks = settings(table, ("curve",), {(name,): name for name in curves})
    names = table["network"].unique(maintain_order=True).to_list()
    panel = "network" if len(names) > 1 else None
    figure = draw(table, x="layer", by=("curve",), panel=panel, settings=looks, columns=2, x_label="layer", **labelled)
    for axes, name in zip(figure.axes, names, strict=False):
        cuts = [run.start().layer for run in runs if network_name(run) == name]
        axes.tick_params(labelbottom=True)  # networks have different numbers of layers
        axes.axvline(float(np.mean(cuts)), color="#666c74", linewidth=1.0, linestyle=(0, (4, 2)), zorder=1.1)
    return figure


def runs_looked_at(frame: pl.DataFrame) -> list[Run]:
    """The runs looked at layer by layer, the deepest first."""
    found = all_runs(frame, "depth") + all_runs(frame, "families")
    return sorted(found, key=lambda run: (-run.layers, network_name(run), run.seed))


def _percent(metric: str, **where: Any) -> Callable[[Run], np.ndarray]:
    return lambda run: 100 * run.curve(metric, **where)


def _probes_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "in distribution": _percent("linear_probe"),
        "out of distribution": _percent("linear_probe", task=1),
        "in distribution, untrained": _percent("linear_probe", branch="untrained"),
    }
    return _layer_figure(runs_looked_at(frame), curves, y_label="linear probe accuracy (%)")


def _rank_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "trained": lambda run: run.curve("numerical_rank"),
        "untrained": lambda run: run.curve("numerical_rank", branch="untrained"),
    }
    runs = runs_looked_at(frame)
    classes = {run.classes for run in runs}
    references = {f"{count} classes": float(count) for count in classes} if len(classes) == 1 else {}
    return _layer_figure(runs, curves, y_label="numerical rank", y_log=True, references=references)


def _variance_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "within classes": lambda run: run.curve("class_within"),
        "between classes": lambda run: run.curve("class_between"),
        "within / between": lambda run: run.curve("class_ratio"),
    }
    return _layer_figure(runs_looked_at(frame), curves, y_label="variance of features", y_log=True)


def _change_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "relative to the initial norm": lambda run: run.curve("weight_change_relative")[: run.layers],
        "root mean square": lambda run: run.curve("weight_change")[: run.layers],
    }
    return _layer_figure(runs_looked_at(frame), curves, y_label="weight change", y_log=True)


def _reset_figure(frame: pl.DataFrame) -> Figure | None:
    def resets(which: str) -> Callable[[Run], np.ndarray]:
        return lambda run: (
            100 * np.array([run.value("reset_accuracy", f"{which}:{m}") for m in range(1, run.layers + 1)])
        )

    from neoteny.report.figures import curves, settings

    table = _by_layer(runs_looked_at(frame), {"last layers": resets("last"), "first layers": resets("first")})
    if table is None:
        return None
    panel = "network" if table["network"].n_unique() > 1 else None
    looks = settings(table, ("curve",), {("last layers",): "last layers", ("first layers",): "first layers"})
    return curves(
        table, x="layer", by=("curve",), panel=panel, settings=looks, columns=2,
        x_label="layers put back to initialisation", y_label="test accuracy (%)",
    )  # fmt: skip


def _cka_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import heatmap

    runs = runs_looked_at(frame)
    if not runs:
        return None
    most = runs[0].layers
    matrices = [_cka(run) for run in runs if run.layers == most and network_name(run) == network_name(runs[0])]
    names = [str(layer) for layer in range(1, most + 1)]
    return heatmap(
        np.mean(matrices, axis=0), rows=names, columns=names, row_label="layer", column_label="layer",
        value_label="linear CKA", limits=(0.0, 1.0),
    )  # fmt: skip


def _cka(run: Run) -> np.ndarray:
    """(layers, layers), 1 on the diagonal."""
    rows = run.rows.filter((pl.col("metric") == "linear_cka") & (pl.col("branch") == ""))
    stages = run._values("linear_probe", "", 0, None, AT_THE_END)["place"].to_list()
    matrix = np.eye(len(stages))
    for place, value in zip(rows["place"].to_list(), rows["value"].to_list(), strict=True):
        one, other = (stages.index(name) for name in place.split(":"))
        matrix[one, other] = matrix[other, one] = value
    return matrix


def _depth_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    parts = {"extractor (K)": lambda run: run.cut, "tunnel": lambda run: run.layers - run.cut}
    table = _table(
        [
            {"depth": run.field("depth"), "seed": run.seed, "part": name, "value": float(measure(run))}
            for run in all_runs(frame, "depth")
            for name, measure in parts.items()
        ]
    )
    if table is None or table["depth"].n_unique() < 2:
        return None
    looks = settings(table, ("part",), {(name,): name for name in parts})
    return curves(table, x="depth", by=("part",), settings=looks, x_label="depth of the MLP", y_label="layers")


def _width_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    varied = all_runs(frame, "width")
    mlps = {run.field("depth") for run in varied if run.field("network") == "mlp"}
    others = {run.field("network") for run in varied} - {"mlp"}
    same = [run for run in all_runs(frame, "depth") if run.field("depth") in mlps]
    same += [run for run in all_runs(frame, "families") if run.field("network") in others]
    same = [run for run in same if run.field("data") in {run.field("data") for run in varied}]
    usual = max((run.field("width") for run in same if run.field("network") == "mlp"), default=1)

    def width(run: Run) -> float:
        return run.field("width") / usual if run.field("network") == "mlp" else run.field("factor")

    def name(run: Run) -> str:
        mlp = run.field("network") == "mlp"
        return f"MLP-{run.field('depth')}, 1 is {usual}" if mlp else f"{run.field('network')}, 1 is the published width"

    table = _table(
        [
            {"network": name(run), "width": width(run), "seed": run.seed, "value": run.percent()}
            for run in [*same, *varied]
        ]
    )
    if table is None or table["width"].n_unique() < 2:
        return None
    names = table["network"].unique(maintain_order=True).to_list()
    looks = settings(table, ("network",), {(name,): name for name in names})
    return curves(
        table, x="width", by=("network",), settings=looks, x_log=True,
        x_label="width", y_label="tunnel length (% of layers)",
    )  # fmt: skip


def _classes_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    table = _table(
        [
            {"classes": run.classes, "seed": run.seed, "samples": run.field("samples"), "value": run.percent()}
            for run in all_runs(frame, "classes")
        ]
    )
    if table is None or table["classes"].n_unique() < 2:
        return None
    equal = table.group_by("samples").len().sort("len", "samples")["samples"][-1]
    return curves(
        table.filter(pl.col("samples") == equal), x="classes", by=(), x_log=True,
        x_label=f"classes, {equal:,} training images in all", y_label="tunnel length (% of layers)",
    )  # fmt: skip


def _swap_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals, settings

    runs = swaps(frame)
    table = _table(
        [
            {"combination": name, "task": f"on task {task + 1}", "seed": run.seed, "value": swapped(run, name, task)}
            for run in runs.fitted
            for task in (0, 1)
            for name in COMBINATIONS
        ]
    )
    if table is None:
        return None
    looks = settings(table, ("combination",), {(name,): name for name in COMBINATIONS})
    return intervals(table, by=("combination",), panel="task", settings=looks, value_label="test accuracy (%)")


def _short_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    parts = {
        "task 1, before task 2": lambda run: 100 * run.accuracy(when=AFTER_TASK_1),
        "task 1, after task 2": lambda run: 100 * run.accuracy(when=AT_THE_END),
        "task 2": lambda run: 100 * run.accuracy(task=1),
    }
    table = _table(
        [
            {"layers": run.layers, "seed": run.seed, "part": name, "network": run.field("network"), "value": of(run)}
            for run in all_runs(swap_family(frame), "swap")
            for name, of in parts.items()
        ]
    )
    if table is None or table["layers"].n_unique() < 2:
        return None
    looks = settings(table, ("part",), {(name,): name for name in parts})
    return curves(table, x="layers", by=("part",), settings=looks, x_label="hidden layers", y_label="test accuracy (%)")


def _dynamics_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    rows = frame.filter(
        (pl.col("experiment") == "dynamics") & (pl.col("metric") == "numerical_rank") & (pl.col("network") == "mlp")
    )
    if rows.is_empty():
        return None
    names = {run.field("run"): network_name(run) for run in map(Run, rows.partition_by("run", maintain_order=True))}
    rows = rows.with_columns(pl.col("run").replace_strict(names).alias("panel"))
    # on a logarithmic axis there is no 0: the untrained network stands at a half
    rows = rows.with_columns(pl.when(pl.col("step") == 0).then(0.5).otherwise(pl.col("step")).alias("update"))
    places = rows["place"].unique(maintain_order=True).to_list()
    looks = settings(rows, ("place",), {(name,): f"layer {number}" for number, name in enumerate(places, 1)})
    return curves(
        rows, x="update", by=("place",), panel="panel" if len(set(names.values())) > 1 else None, settings=looks,
        x_log=True, y_log=True, columns=2,
        x_label="updates (0 drawn at 0.5)", y_label="numerical rank",
    )  # fmt: skip


FIGURES = (
    StudyFigure(
        "probes",
        "Linear probes, layer by layer",
        "Test accuracy of a linear layer trained on the frozen features of each layer: of the data set trained on, of "
        "another one, and of the untrained network. The dashed line is K, the mean over seeds of the first layer that "
        "reaches 95 % of the network's own accuracy; what comes after it is the tunnel.",
        _probes_figure,
    ),
    StudyFigure(
        "rank",
        "Numerical rank, layer by layer",
        "Singular values of the covariance of test features above a thousandth of the largest. The dashed line is K.",
        _rank_figure,
    ),
    StudyFigure(
        "depth",
        "Extractor and tunnel against depth",
        "K and what is left. If the extractor's length does not depend on depth, its line is flat.",
        _depth_figure,
    ),
    StudyFigure(
        "width",
        "Tunnel length against width",
        "The deepest MLP, and in `paper` a convolutional network, narrower or wider.",
        _width_figure,
    ),
    StudyFigure(
        "cka",
        "Similarity of layers",
        "Linear CKA of every pair of layers of the deepest network, mean over seeds.",
        _cka_figure,
    ),
    StudyFigure(
        "variances",
        "Variance within and between classes",
        "Of test features. Their scale drifts with depth; the ratio does not depend on it. The dashed line is K.",
        _variance_figure,
    ),
    StudyFigure(
        "weight_change",
        "How far weights moved",
        "Change of every layer's kernel from initialisation to the end of training. The dashed line is K.",
        _change_figure,
    ),
    StudyFigure(
        "resets",
        "Layers put back to their initialisation",
        "Test accuracy without any further training when the last, or the first, so many layers are as they were "
        "before "
        "training; the head is kept.",
        _reset_figure,
    ),
    StudyFigure(
        "dynamics",
        "Rank while training begins",
        "Numerical rank of every layer on 2,000 test images.",
        _dynamics_figure,
    ),
    StudyFigure(
        "classes",
        "Tunnel length against the number of classes",
        "Subsets of the classes of one data set, with as many training images in all.",
        _classes_figure,
    ),
    StudyFigure(
        "swaps",
        "Extractors and tunnels of two tasks exchanged",
        "E1T2 is the extractor after task 1 with the tunnel after task 2, cut after the K that was measured after "
        "task 1; "
        "each task is answered by its own head. FT: a linear probe trained on that task on frozen features, of the "
        "whole "
        "network (E2T1) or of the extractor alone (E2). Networks without a tunnel after task 1 are not here.",
        _swap_figure,
    ),
    StudyFigure(
        "shortened",
        "Shortened networks",
        "Two tasks in order, by networks of different depths.",
        _short_figure,
    ),
)
