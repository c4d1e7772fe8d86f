"""Figures and the HTML page of a study; no JAX, and matplotlib and jinja2 only once something is drawn or
rendered."""

from neoteny.report.figures import (
    COLOURS,
    Saved,
    Setting,
    curves,
    estimates,
    heatmap,
    house_style,
    intervals,
    save,
    scatter,
    settings,
)
from neoteny.report.page import (
    ConfigField,
    Cost,
    NextCommand,
    Page,
    Paper,
    RenderedFigure,
    RunRow,
    Table,
    read_figure,
    render,
)

__all__ = [
    "COLOURS",
    "ConfigField",
    "Cost",
    "NextCommand",
    "Page",
    "Paper",
    "RenderedFigure",
    "RunRow",
    "Saved",
    "Setting",
    "Table",
    "curves",
    "estimates",
    "heatmap",
    "house_style",
    "intervals",
    "read_figure",
    "render",
    "save",
    "scatter",
    "settings",
]
