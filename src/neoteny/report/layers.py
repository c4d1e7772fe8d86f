"""The layer-wise page of one network: linear probes, rank, variances, similarity, and where the tunnel starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neoteny.lab.store import write_atomic
from neoteny.report import formats
from neoteny.report.figures import curves, heatmap, save
from neoteny.report.page import ConfigField, NextCommand, Page, RenderedFigure, Table, read_figure, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from neoteny.probes import LayerTable

_NAMES = {
    "linear_probe": "linear probe",
    "linear_probe_degenerate": "degenerate",
    "numerical_rank": "rank",
    "rank_bound": "rank at most",
    "class_within": "within classes",
    "class_between": "between classes",
    "class_ratio": "within / between",
    "cka_to_last": "CKA to the last",
}
"""Column of a table's frame -> its heading; what is not here is not shown."""

_PANELS = {
    "numerical_rank": "numerical rank",
    "class_ratio": "variance within / between",
    "cka_to_last": "CKA to the last stage",
}


@dataclass(frozen=True)
class Subject:
    """What was measured: the run, the moment, the data. configuration: of the run. command: makes the page again."""

    study: str
    preset: str
    experiment: str
    checkpoint: str
    data: str
    update: int
    threshold: float
    configuration: Mapping[str, Any]
    environment: Mapping[str, str]
    command: str


def write_layers(folder: Path, table: LayerTable, subject: Subject) -> Path:
    """Write report.html and figures/ into `folder`; returns the page's path."""
    rendered = []
    for name, (title, caption, figure) in _figures(table, subject).items():
        paths = save(figure, folder / "figures", name)
        rendered.append(read_figure(name, caption, list(paths), page_folder=folder, title=title))
    path = folder / "report.html"
    write_atomic(path, render(_page(table, subject, rendered)).encode())
    return path


def describe(table: LayerTable) -> str:
    """The table and the start of the tunnel, as plain text."""
    columns, rows = _rows(table)
    texts = [list(columns), *([formats.value(item) for item in row] for row in rows)]
    widths = [max(len(row[place]) for row in texts) for place in range(len(columns))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in texts]
    return "\n".join([*lines, *(text.replace("`", "") for text in _answer(table))])


def _rows(table: LayerTable) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    frame = table.frame()
    shown = [name for name in _NAMES if name in frame.columns]
    if "linear_probe_degenerate" in shown and not frame["linear_probe_degenerate"].any():
        shown.remove("linear_probe_degenerate")
    return ("layer", "stage", *(_NAMES[name] for name in shown)), frame.select("layer", "stage", *shown).rows()


def _answer(table: LayerTable, threshold: float | None = None) -> tuple[str, ...]:
    if table.tunnel is None or table.final_accuracy is None:
        return ()
    layers, start = len(table.stages), table.tunnel
    own = f"The network itself reaches {100 * table.final_accuracy:.1f} % on the test split."
    share = "the asked-for share" if threshold is None else f"{100 * threshold:g} %"
    if np.isnan(start.layer):
        return (own, "Some accuracy is not finite, so no tunnel was looked for.")
    if not start.found:
        return (own, f"No layer's linear probe reaches {share} of that: no tunnel was found.")
    stage = table.stages[int(start.layer) - 1]
    length = 100 * (layers - start.layer) / layers
    told = (
        f"The first linear probe to reach {share} of that is `{stage}`'s, layer {start.layer} of {layers}; "
        f"the tunnel after it is {length:.0f} % of the layers."
    )
    if start.layer == 1:
        told += " The first layer already separates these classes, so they cannot test for a tunnel."
    return (own, told)


def _figures(table: LayerTable, subject: Subject) -> dict[str, tuple[str, str, Figure]]:
    """Name -> title, caption, figure."""
    import polars as pl

    frame = table.frame()
    drawn: dict[str, tuple[str, str, Figure]] = {}
    if table.accuracy is not None:
        final = table.final_accuracy
        lines = {} if final is None else {
            "the network": final, f"{100 * subject.threshold:g} % of it": subject.threshold * final
        }  # fmt: skip
        drawn["linear_probe"] = (
            "Linear probes",
            "Test accuracy of a linear layer trained on each stage's features."
            + ("" if final is None else " Dotted: the network's own, and the share of it that starts a tunnel."),
            curves(
                frame.select("layer", value="linear_probe"),
                x="layer",
                y_label="linear-probe accuracy",
                references=lines,
            ),
        )
    panels = [name for name in _PANELS if name in frame.columns]
    if panels:
        long = pl.concat(
            [
                frame.select(
                    pl.col("layer"),
                    pl.lit(_PANELS[name]).alias("measure"),
                    pl.col(name).cast(pl.Float64).alias("value"),
                )
                for name in panels
            ]
        )
        drawn["layers"] = (
            "Rank, variances, similarity",
            "Of the test features: covariance eigenvalues above 0.001 of the largest; scatter within classes over the "
            "distance between their means; linear CKA to the last stage.",
            curves(long, x="layer", panel="measure", share_y=False, y_label=""),
        )
    if table.cka is not None and len(table.stages) > 1:
        drawn["cka"] = (
            "Similarity of stages",
            "Linear CKA of every pair of stages.",
            heatmap(table.cka, rows=table.stages, columns=table.stages, value_label="linear CKA", limits=(0.0, 1.0)),
        )
    return drawn


def _page(table: LayerTable, subject: Subject, figures: Sequence[RenderedFigure]) -> Page:
    columns, rows = _rows(table)
    fields = tuple(ConfigField(name, (value,)) for name, value in subject.configuration.items())
    return Page(
        title="Layer by layer",
        study=subject.study,
        preset=subject.preset,
        subtitle=f"{subject.checkpoint}, after {subject.update:,} updates",
        question=f"What do the layers of this network do? Measured on {subject.data}.",
        answer=_answer(table, subject.threshold),
        tables=(Table("Every stage", columns, tuple(rows)),),
        figures=tuple(figures),
        configuration={subject.experiment: fields},
        next_commands=(NextCommand(subject.command, "This page again, or with other options:"),),
        environment=subject.environment,
        made_by="neoteny probe",
    )
