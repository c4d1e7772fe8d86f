"""Figures in one house style: they take a polars frame or arrays, and draw.

Every figure is a `matplotlib.figure.Figure` of its own; pyplot and its global state are never touched, so
figures can be drawn on any machine, with or without a display. A `Setting` (label, colour, dashes, marker) is
decided once for all figures of a study by `settings`, so that a setting looks the same wherever it appears.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neoteny.analysis.aggregates import mean_interval
from neoteny.report import formats

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Key = tuple[Hashable, ...]
"""The values of the `by` columns that name a setting."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#6B6B6B")
"""Okabe and Ito (2008), told apart with any colour vision; purple (Tol 2021) for their pink and grey for
black and yellow, which on white are too pale or look like axes."""

_DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 1.6), (1.4, 1.2))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _QUIET, _GRID = "#22262b", "#666c74", "#e6e8eb"

WIDTH = 8.0
"""Width of every figure in inches; text of 9 pt is then readable at the width of the report."""

FEW_SEEDS, FEW_SETTINGS, FEW_POINTS = 10, 5, 25
"""Up to here the seeds of a setting are drawn as faint lines, settings are labelled at the end of their
line, and every point gets a marker."""

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same glyphs on every machine
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#a4a9b0",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.use_mathtext": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#a4a9b0",
    "ytick.color": "#a4a9b0",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "text.color": _INK,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "round",
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.6,
    "figure.facecolor": "white",
    "figure.dpi": 100.0,
    "savefig.dpi": 200.0,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "neoteny",  # element names in an SVG are random without it
    "pdf.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Everything matplotlib makes inside is in the house style, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


@dataclass(frozen=True)
class Setting:
    """How one setting looks in every figure."""

    label: str
    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"


def settings(frame: pl.DataFrame, by: Sequence[str], labels: Mapping[Key, str] | None = None) -> dict[Key, Setting]:
    """One look for each combination of the columns `by` in `frame`; made once, then passed to every figure of
    a study.

    `labels` maps a combination to its name, and its order is the order of the figures; combinations it lacks
    come after it, sorted, and are called by their values. KeyError if a column is missing.
    """
    _require(frame, by)
    found = _sorted_keys(
        [tuple(row) for row in frame.select(by).unique(maintain_order=True).iter_rows()] if by else [()]
    )
    named = dict(labels or {})
    order = [key for key in named if key in found] + [key for key in found if key not in named]
    # colours go by the place in `labels`, so a frame that lacks a setting does not shift the others' colours
    places = {key: place for place, key in enumerate([*named, *(key for key in found if key not in named)])}
    return {key: _look(places[key], named.get(key) or _name(by, key)) for key in order}


def _look(place: int, label: str) -> Setting:
    cycle, colour = divmod(place, len(COLOURS))
    return Setting(label, COLOURS[colour], _DASHES[cycle % len(_DASHES)], _MARKERS[(place + cycle) % len(_MARKERS)])


def _name(by: Sequence[str], key: Key) -> str:
    if len(by) == 1 and isinstance(key[0], str):
        return key[0]
    return ", ".join(f"{column} {formats.value(entry)}" for column, entry in zip(by, key, strict=True))


def _sorted_keys(keys: list) -> list:
    """Sorted where the values can be compared ("layer 9" before "layer 10"); else in order of appearance."""
    try:
        return sorted(keys, key=_natural)
    except TypeError:
        return keys


def _natural(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_natural(part) for part in key)
    if isinstance(key, str):
        return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", key))]
    return key


def _require(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise KeyError(f"no column {column!r} to draw; the columns are {', '.join(frame.columns)}")
    if frame.is_empty():
        raise ValueError("nothing to draw: the frame has no rows; check the filter on metric, event and place")


class Series(NamedTuple):
    """The numbers of one line: x (points,), values (seeds, points) with NaN where nothing finite was
    recorded, and which seeds diverged (seeds,)."""

    x: np.ndarray
    values: np.ndarray
    diverged: np.ndarray


def _series(frame: pl.DataFrame, x: str, y: str, seeds: str, diverged: str | None, places: Mapping | None) -> Series:
    """The rows of one setting as a table of seeds and points. ValueError if a seed has two values at one
    point."""
    xs = [places[item] if places else float(item) for item in frame[x].to_list()]
    who = frame[seeds].to_list() if seeds in frame.columns else [0] * len(xs)
    ys = np.array([math.nan if item is None else float(item) for item in frame[y].to_list()])
    points, names = sorted(set(xs)), _sorted_keys(list(dict.fromkeys(who)))
    column = {point: index for index, point in enumerate(points)}
    row = {name: index for index, name in enumerate(names)}
    cells = [(row[name], column[point]) for name, point in zip(who, xs, strict=True)]
    if len(set(cells)) < len(cells):
        (who_twice, where), _ = Counter(cells).most_common(1)[0]
        raise ValueError(
            f"{seeds} {names[who_twice]} has more than one {y} at {x} {formats.value(points[where])} in one "
            "setting; filter the frame to one metric, split and place, or name the column that differs in "
            "`by` or `panel`"
        )
    values = np.full((len(names), len(points)), math.nan)
    for cell, item in zip(cells, ys, strict=True):
        values[cell] = item if math.isfinite(item) else math.nan
    ended = np.zeros(len(names), bool)
    if diverged is not None:
        for name, flag in zip(who, frame[diverged].to_list(), strict=True):
            ended[row[name]] |= bool(flag)
    return Series(np.array(points, float), values, ended)


def curves(
    frame: pl.DataFrame,
    *,
    x: str,
    y: str = "value",
    by: Sequence[str] = (),
    panel: str | None = None,
    seeds: str = "seed",
    diverged: str | None = None,
    settings: Mapping[Key, Setting] | None = None,
    level: float = 0.95,
    title: str = "",
    x_label: str | None = None,
    y_label: str | None = None,
    x_log: bool = False,
    y_log: bool = False,
    y_limits: tuple[float, float] | None = None,
    references: Mapping[str, float] | None = None,
    columns: int = 3,
    share_y: bool = True,
    show_seeds: bool | None = None,
) -> Figure:
    """One line for each setting: the mean over seeds with its Student t band, against `x`.

    frame: long format, one row for each seed and point. by: the columns that name a setting. panel: a column
    whose values get a panel each, in a grid of at most `columns`. diverged: a boolean column, true in any row
    of a run that diverged; such a run ends in a cross at its last finite value. settings: looks and order
    from `settings`. level: of the band. x_log, y_log: logarithmic axes, linear around zero where values are
    not positive. references: label -> height of a dotted line (chance level, say). show_seeds: faint lines of
    single seeds; by default where seeds and settings are few. An `x` of strings (layers, say) is drawn in
    order of appearance.

    Non-finite values are gaps. Where only some seeds have a value, the mean of those is dotted. One seed has
    no band. KeyError for a missing column; ValueError for an empty frame or a seed with two values at one
    point.
    """
    needed = [x, y, *by, *(name for name in (panel, diverged) if name is not None)]
    _require(frame, needed)
    looks = _looks(frame, by, settings)
    places = None
    if not frame[x].dtype.is_numeric():
        places = {item: index for index, item in enumerate(dict.fromkeys(frame[x].to_list()))}
    panels = _panels(frame, panel)
    drawn = [
        {key: _series(part, x, y, seeds, diverged, places) for key, part in _split(rows, by).items()}
        for _, rows in panels
    ]
    direct = len(panels) == 1 and 1 < len(looks) <= FEW_SETTINGS
    note = _seed_note([series.values for cell in drawn for series in cell.values()], level, "band", _words(seeds))
    if any(series.diverged.any() for cell in drawn for series in cell.values()):
        note += " · × where a run diverged"
    if any(_partial(series.values).any() for cell in drawn for series in cell.values()):
        note += f" · dotted: some {_words(seeds)}s missing"
    if show_seeds is None:
        most = max(len(series.values) for cell in drawn for series in cell.values())
        show_seeds = most <= FEW_SEEDS and len(looks) <= FEW_SETTINGS
    with house_style():
        figure, grid = _grid(
            len(panels), columns, title, [] if direct or len(looks) == 1 else list(looks.values()), note
        )
        for index, (axes, (name, _), cell) in enumerate(zip(grid, panels, drawn, strict=True)):
            if panel is not None:
                axes.set_title(_name([panel], (name,)))
            extremes = drawn if share_y else [cell]
            floor = _floor(extremes) if y_log else -math.inf
            for key, look in looks.items():
                if key in cell:
                    _draw_curve(axes, cell[key], look, level, show_seeds, floor)
            for reference, height in (references or {}).items():
                _reference(axes, height, reference if index == 0 else "")
            if places:
                axes.set_xticks(range(len(places)), [str(item) for item in places])
                axes.grid(visible=False, axis="x")
            _scale_y(axes, extremes, level, y_log, y_limits, list((references or {}).values()))
            if x_log and not places:
                _log(axes, "x", np.concatenate([series.x for group in extremes for series in group.values()]))
            elif not places:
                _whole_ticks(axes, cell)
            if index + columns >= len(panels):
                axes.set_xlabel(x_label if x_label is not None else _words(x))
            else:
                axes.tick_params(labelbottom=False)
            if index % columns == 0:
                axes.set_ylabel(y_label if y_label is not None else _words(y))
            elif share_y:
                axes.tick_params(labelleft=False)
        if direct:
            _label_ends(figure, grid[0], [(looks[key], drawn[0][key], level) for key in looks if key in drawn[0]])
    return figure


def _draw_curve(axes: Axes, series: Series, look: Setting, level: float, show_seeds: bool, floor: float) -> None:
    x, values, diverged = series
    middle, low, high = mean_interval(values, level=level)
    if show_seeds and len(values) > 1:
        for line in values:
            axes.plot(x, line, color=look.colour, linewidth=0.7, alpha=0.3, zorder=1.5)
    axes.fill_between(x, np.maximum(low, floor), high, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
    partial = _partial(values)
    if partial.any():
        seen = np.isfinite(middle)
        axes.plot(x[seen], middle[seen], color=look.colour, linewidth=1.3, linestyle=(0, (1, 1.6)), zorder=2.8)
    full = np.where(partial, math.nan, middle)
    marked = _alone(full) if len(x) > FEW_POINTS else np.isfinite(full)
    axes.plot(
        x,
        full,
        color=look.colour,
        dashes=look.dashes or (None, None),
        marker=look.marker,
        markevery=marked.tolist(),
        markeredgewidth=0,
        label=look.label,
        zorder=3,
    )
    for line in values[diverged]:
        seen = np.flatnonzero(np.isfinite(line))
        if len(seen):
            axes.plot(
                x[seen[-1]],
                line[seen[-1]],
                linestyle="none",
                marker="x",
                markersize=7,
                markeredgewidth=1.8,
                color=look.colour,
                zorder=4,
                clip_on=False,
            )


def _floor(cells: list[dict[Key, Series]]) -> float:
    """Where a band ends on a logarithmic axis if its lower bound is not positive: out of sight."""
    seen = np.concatenate([series.values[np.isfinite(series.values)] for cell in cells for series in cell.values()])
    return float(seen.min()) / 10 if len(seen) and (seen > 0).all() else -math.inf


def _partial(values: np.ndarray) -> np.ndarray:
    """Points that some seeds have and some lack."""
    count = np.isfinite(values).sum(axis=0)
    return (count > 0) & (count < len(values))


def _alone(line: np.ndarray) -> np.ndarray:
    """Finite points without a finite neighbour, which a line would not show."""
    seen = np.concatenate([[False], np.isfinite(line), [False]])
    return seen[1:-1] & ~seen[:-2] & ~seen[2:]


def scatter(
    frame: pl.DataFrame,
    *,
    x: str,
    y: str,
    by: Sequence[str] = (),
    labels: Mapping[Key, str] | None = None,
    panel: str | None = None,
    crossed: str | None = None,
    title: str = "",
    x_label: str | None = None,
    y_label: str | None = None,
    columns: int = 3,
) -> Figure:
    """A point for every row: `x` against `y`, a look for each setting.

    by, panel, columns: as in `curves`. labels: as in `settings`. crossed: a boolean column; rows in which it is true
    are crosses. Rows in which x or y is not finite are left out. KeyError for a missing column; ValueError for an
    empty frame.
    """
    _require(frame, [x, y, *by, *(name for name in (panel, crossed) if name is not None)])
    looks = settings(frame, by, labels)
    panels = _panels(frame, panel)
    note = f"{len(frame)} points"
    if crossed is not None and frame[crossed].any():
        note += f" · × {_words(crossed)}"
    with house_style():
        figure, grid = _grid(len(panels), columns, title, list(looks.values()) if len(looks) > 1 else [], note)
        for index, (axes, (name, rows)) in enumerate(zip(grid, panels, strict=True)):
            if panel is not None:
                axes.set_title(_name([panel], (name,)))
            for key, part in _split(rows, by).items():
                look = looks[key]
                xs, ys = (np.array([_finite(item) for item in part[column].to_list()]) for column in (x, y))
                marks = part[crossed].to_numpy().astype(bool) if crossed is not None else np.zeros(len(xs), bool)
                style = {"linestyle": "none", "color": look.colour, "alpha": 0.7, "zorder": 3}
                axes.plot(xs[~marks], ys[~marks], marker=look.marker, markeredgewidth=0, label=look.label, **style)
                axes.plot(xs[marks], ys[marks], marker="x", markeredgewidth=1.4, **style)
            if index + columns >= len(panels):
                axes.set_xlabel(x_label if x_label is not None else _words(x))
            if index % columns == 0:
                axes.set_ylabel(y_label if y_label is not None else _words(y))
    return figure


def intervals(
    frame: pl.DataFrame,
    *,
    by: Sequence[str],
    y: str = "value",
    panel: str | None = None,
    seeds: str = "seed",
    settings: Mapping[Key, Setting] | None = None,
    level: float = 0.95,
    title: str = "",
    value_label: str | None = None,
    log: bool = False,
    reference: float | None = None,
    columns: int = 3,
) -> Figure:
    """One row for each setting: the mean over seeds as a dot, its Student t interval as a whisker, seeds
    faint.

    frame: one row for each seed of each setting (and panel). reference: a dotted line, 0 for differences. A
    seed without a finite value is left out, and the row says how many are left. Errors as in `curves`.
    """
    _require(frame, [y, *by, *([panel] if panel is not None else [])])
    looks = _looks(frame, by, settings)
    panels = _panels(frame, panel)
    drawn = []
    for _, rows in panels:
        cell = {}
        for key, part in _split(rows, by).items():
            if seeds in part.columns and part[seeds].n_unique() < len(part):
                raise ValueError(
                    f"a {seeds} has more than one {y} in the setting {_name(by, key)}; filter the frame to "
                    "one metric and point, or name the column that differs in `by` or `panel`"
                )
            cell[key] = np.array([_finite(item) for item in part[y].to_list()])
        drawn.append(cell)
    note = _seed_note([values[:, None] for cell in drawn for values in cell.values()], level, "interval", _words(seeds))
    rows = []
    for cell in drawn:
        estimates = []
        for key, look in looks.items():
            if key not in cell:
                estimates.append(_Estimate(look, math.nan, math.nan, math.nan, np.array([]), ""))
                continue
            values = cell[key]
            middle, low, high = (float(item) for item in mean_interval(values, level=level))
            left = int(np.isfinite(values).sum())
            remark = "" if left == len(values) else f"{left} of {len(values)} {_words(seeds)}s"
            estimates.append(_Estimate(look, middle, low, high, values[np.isfinite(values)], remark))
        rows.append(estimates)
    names = ["" if panel is None else _name([panel], (name,)) for name, _ in panels]
    label = value_label if value_label is not None else _words(y)
    return _dots(rows, names, title, label, log, reference, columns, note)


def estimates(
    labels: Sequence[str],
    measured: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    *,
    title: str = "",
    value_label: str = "",
    log: bool = False,
    reference: float | None = 0.0,
    colour: str = COLOURS[0],
) -> Figure:
    """A dot and a whisker for each of `labels`, from numbers computed elsewhere (a bootstrap, a contrast, a
    claim).

    All arguments have one length; NaN in `low` or `high` means no whisker. ValueError if lengths differ or
    are 0.
    """
    if not labels or len({len(labels), len(measured), len(low), len(high)}) != 1:
        raise ValueError(
            "estimates need one label, value, low and high each; "
            f"got {len(labels)}, {len(measured)}, {len(low)}, {len(high)}"
        )
    rows = [
        _Estimate(Setting(label, colour), _finite(middle), _finite(below), _finite(above), np.array([]), "")
        for label, middle, below, above in zip(labels, measured, low, high, strict=True)
    ]
    return _dots([rows], [""], title, value_label, log, reference, 1, "")


class _Estimate(NamedTuple):
    look: Setting
    middle: float
    low: float
    high: float
    seeds: np.ndarray
    remark: str


def _dots(
    panels: list[list[_Estimate]],
    names: list[str],
    title: str,
    label: str,
    log: bool,
    reference: float | None,
    columns: int,
    note: str,
) -> Figure:
    with house_style():
        texts = [_wrap(row.look.label, 34) for row in panels[0]]
        tall = 0.75 + sum(0.14 + 0.16 * (1 + text.count("\n")) for text in texts)
        figure, grid = _grid(len(panels), columns, title, [], note, height=max(tall, 1.3))
        # whiskers by the numbers of all panels, on one scale: they are there to be compared
        everything = [entry for rows in panels for row in rows for entry in (row.low, row.middle, row.high, *row.seeds)]
        for index, (axes, rows, name) in enumerate(zip(grid, panels, names, strict=True)):
            axes.grid(visible=False, axis="y")
            axes.set_title(name)
            for place, row in enumerate(rows):
                axes.plot(
                    row.seeds,
                    np.full(len(row.seeds), place),
                    linestyle="none",
                    marker="o",
                    markersize=4,
                    color=row.look.colour,
                    markeredgewidth=0,
                    alpha=0.3,
                    zorder=2,
                )
                axes.plot([row.low, row.high], [place, place], color=row.look.colour, linewidth=2.2, zorder=3)
                axes.plot(
                    [row.middle],
                    [place],
                    linestyle="none",
                    marker=row.look.marker,
                    markersize=7,
                    color=row.look.colour,
                    markeredgecolor="white",
                    markeredgewidth=0.9,
                    label=row.look.label,
                    zorder=4,
                )
                measured = math.isfinite(row.middle)
                axes.annotate(
                    row.remark if measured else formats.MISSING,
                    (row.middle, place) if measured else (0.5, place),
                    (0, 6 if measured else -3),
                    "data" if measured else ("axes fraction", "data"),
                    "offset points",
                    ha="center",
                    fontsize=7.5,
                    color=_QUIET,
                )
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_yticks(range(len(rows)), texts if index % columns == 0 else [""] * len(rows))
            if reference is not None:
                axes.axvline(reference, color=_QUIET, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
            finite = np.array(
                [entry for entry in [*everything, reference] if entry is not None and math.isfinite(entry)]
            )
            if log:
                _log(axes, "x", finite)
            elif len(finite):
                margin = 0.06 * (np.ptp(finite) or abs(finite[0]) or 1.0)
                axes.set_xlim(finite.min() - margin, finite.max() + margin)
            if index + columns >= len(panels):
                axes.set_xlabel(label)
    return figure


def heatmap(
    values: np.ndarray,
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    title: str = "",
    row_label: str = "",
    column_label: str = "",
    value_label: str = "",
    centre: float | None = None,
    limits: tuple[float, float] | None = None,
    annotate: bool | None = None,
) -> Figure:
    """`values` (rows, columns) as coloured cells; NaN is a hatched cell.

    centre: the value that is white in a two-sided scale (0 for differences). limits: of the scale, by default
    the finite values'. annotate: numbers in the cells, by default up to 12 x 12. ValueError if the labels do
    not fit.
    """
    import matplotlib
    from matplotlib.colors import Normalize, to_rgb

    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"a heatmap of {len(rows)} rows and {len(columns)} columns needs values of that shape; got {values.shape}"
        )
    finite = values[np.isfinite(values)]
    low, high = limits or ((float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0))
    if centre is not None and limits is None:
        reach = max(abs(low - centre), abs(high - centre)) or 1.0
        low, high = centre - reach, centre + reach
    if annotate is None:
        annotate = max(values.shape) <= 12
    with house_style():
        tall = min(max(0.34 * len(rows), 1.2), 7.0) + 0.9
        figure, (axes,) = _grid(1, 1, title, [], "", height=tall)
        shades = matplotlib.colormaps["cividis" if centre is None else "RdBu_r"]
        scale = Normalize(low, high if high > low else low + 1.0)
        axes.set_facecolor("#f3f4f6")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        # rectangles, not an image: an image is resampled, and blurs in an SVG
        mesh = axes.pcolormesh(
            np.arange(len(columns) + 1) - 0.5,
            np.arange(len(rows) + 1) - 0.5,
            np.ma.masked_invalid(values),
            cmap=shades,
            norm=scale,
            edgecolors="white",
            linewidth=0.8,
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        # of long axes only every so many labels, or they would run into each other
        column_places = range(0, len(columns), math.ceil(len(columns) / 24))
        row_places = range(0, len(rows), math.ceil(len(rows) / 30))
        names = [formats.value(columns[place]) for place in column_places]
        slanted = max(len(name) for name in names) * len(names) > 90
        axes.set_xticks(column_places, names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        axes.set_yticks(row_places, [_wrap(formats.value(rows[place]), 34) for place in row_places])
        axes.set_xlabel(column_label)
        axes.set_ylabel(row_label)
        for (row, column), item in np.ndenumerate(values):
            if not math.isfinite(item):
                axes.fill(
                    np.array([-0.5, 0.5, 0.5, -0.5]) + column,
                    np.array([-0.5, -0.5, 0.5, 0.5]) + row,
                    facecolor="#f3f4f6",
                    edgecolor="#c3c7cd",
                    linewidth=0,
                    hatch="////",
                )
            elif annotate:
                red, green, blue = to_rgb(shades(scale(item)))
                light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
                axes.text(
                    column,
                    row,
                    formats.number(item, 2),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=_INK if light else "white",
                )
        bar = figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.04, label=value_label)
        bar.outline.set_visible(False)
    return figure


def _looks(frame: pl.DataFrame, by: Sequence[str], given: Mapping[Key, Setting] | None) -> dict[Key, Setting]:
    """The looks of the settings in `frame`, in the order of `given`; KeyError if it lacks one."""
    own = settings(frame, by)
    if given is None:
        return own
    for key in own:
        if key not in given:
            raise KeyError(f"no look for the setting {_name(by, key)}; make `settings` from a frame that holds it")
    return {key: look for key, look in given.items() if key in own}


def _split(frame: pl.DataFrame, by: Sequence[str]) -> dict[Key, pl.DataFrame]:
    return frame.partition_by(by, as_dict=True, maintain_order=True) if by else {(): frame}


def _panels(frame: pl.DataFrame, panel: str | None) -> list[tuple[object, pl.DataFrame]]:
    if panel is None:
        return [(None, frame)]
    parts = {key[0]: rows for key, rows in _split(frame, [panel]).items()}
    # strings in order of appearance (layers, stages), numbers in their own
    names = list(parts) if not frame[panel].dtype.is_numeric() else _sorted_keys(list(parts))
    return [(name, parts[name]) for name in names]


def _finite(item: float | None) -> float:
    return math.nan if item is None or not math.isfinite(item) else float(item)


def _wrap(label: str, width: int) -> str:
    """`label` in lines of at most `width` characters, broken after commas where that is enough."""
    lines = [""]
    for piece in label.split(", "):
        joined = f"{lines[-1]}, {piece}" if lines[-1] else piece
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines[-1:] = [f"{lines[-1]},", piece] if lines[-1] else [piece]
    return "\n".join(short for line in lines for short in textwrap.wrap(line, width))


def _words(column: str) -> str:
    return column.replace("_", " ")


def _seed_note(tables: list[np.ndarray], level: float, kind: str, unit: str) -> str:
    counts = sorted({len(values) for values in tables})
    if counts == [1]:
        return f"one {unit}"
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {many} {unit}s, {formats.number(100 * level)} % {kind} (Student t)"


def _grid(
    count: int, columns: int, title: str, legend: list[Setting], note: str, height: float | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, a title and a legend above them and a note below, each in a band of its
    own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(columns, count)
    down = math.ceil(count / across)
    each = height if height is not None else {1: 3.5, 2: 2.7}.get(across, 2.2)
    labels, legend_columns, legend_height = _legend_layout([look.label for look in legend])
    top = (0.34 if title else 0.0) + legend_height
    bottom = 0.24 if note else 0.0
    total = top + each * down + bottom
    figure = Figure(figsize=(WIDTH, total), layout="constrained")
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, bottom / total, 1.0, (total - top - bottom) / total), h_pad=0.06, w_pad=0.06)  # pyright: ignore
    if title:
        figure.text(0.008, 1 - 0.08 / total, title, va="top", fontsize=11, fontweight="bold", in_layout=False)
    if note:
        figure.text(0.008, 0.07 / total, note, va="bottom", fontsize=7.5, color=_QUIET, in_layout=False)
    if legend:
        handles = [
            Line2D(
                [],
                [],
                color=look.colour,
                dashes=look.dashes or (None, None),
                marker=look.marker,
                markeredgewidth=0,
                label=label,
            )
            for look, label in zip(legend, labels, strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="upper left",
            ncols=legend_columns,
            borderaxespad=0,
            borderpad=0,
            bbox_to_anchor=(0.01, 1 - ((0.36 if title else 0.06) / total)),
        ).set_in_layout(False)
    axes = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    return figure, axes


def _legend_layout(labels: list[str]) -> tuple[list[str], int, float]:
    """Wrapped labels, number of columns and height in inches of the flattest legend that fits the figure."""
    if not labels:
        return [], 0, 0.0
    best = None
    for columns in range(1, min(len(labels), 6) + 1):
        width = int((WIDTH * 72 / columns - 48) / 5.2)
        wrapped = [_wrap(label, max(width, 8)) for label in labels]
        down = math.ceil(len(labels) / columns)  # a legend is filled column by column
        tallest = max(
            sum(10.8 * (label.count("\n") + 1) + 4.5 for label in wrapped[start : start + down])
            for start in range(0, len(labels), down)
        )
        fits = max(len(line) for label in wrapped for line in label.split("\n")) <= width
        if best is None or (fits and tallest < best[2]):
            best = wrapped, columns, tallest
    assert best is not None
    return best[0], best[1], best[2] / 72 + 0.12


def _reference(axes: Axes, height: float, label: str) -> None:
    axes.axhline(height, color=_QUIET, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1.2)
    if label:
        axes.annotate(
            label,
            (0, height),
            (3, 2.5),
            ("axes fraction", "data"),
            "offset points",
            fontsize=7.5,
            color=_QUIET,
            zorder=5,
        )


def _scale_y(
    axes: Axes,
    cell: list[dict[Key, Series]],
    level: float,
    log: bool,
    limits: tuple[float, float] | None,
    heights: list[float],
) -> None:
    """Limits that show every seed, every height and the bands: but a band no further than the seeds' own
    range beyond them, because with two seeds a band is a dozen times as wide as what was measured."""
    tables = [series.values for group in cell for series in group.values()]
    seen = np.concatenate([*(values[np.isfinite(values)] for values in tables), np.array(heights, float)])
    if log:
        _log(axes, "y", seen)
    if limits is not None:
        axes.set_ylim(*limits)
    elif len(seen) and not (log and (seen > 0).all()):
        low, high = float(seen.min()), float(seen.max())
        bounds = [mean_interval(values, level=level)[1:] for values in tables]
        edges = np.concatenate([edge[np.isfinite(edge)] for pair in bounds for edge in pair])
        room = high - low
        if len(edges):
            low, high = max(min(low, edges.min()), low - room), min(max(high, edges.max()), high + room)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)


def _log(axes: Axes, which: str, seen: np.ndarray) -> None:
    """A logarithmic axis over `seen`; linear between the smallest sizes where there are values of 0 or
    below."""
    seen = seen[np.isfinite(seen)]
    if not len(seen) or not (seen != 0).any():
        return
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    if (seen > 0).all():
        low, high = float(seen.min()), float(seen.max())
        room = (high / low) ** 0.05 if high > low else 2.0
        set_scale("log")
        set_limits(low / room, high * room)
    else:
        set_scale("symlog", linthresh=float(np.abs(seen[seen != 0]).min()))


def _whole_ticks(axes: Axes, cell: dict[Key, Series]) -> None:
    """Whole numbers on an axis of whole numbers (tasks, layers)."""
    from matplotlib.ticker import MaxNLocator

    if all(float(point).is_integer() for series in cell.values() for point in series.x):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _label_ends(figure: Figure, axes: Axes, lines: list[tuple[Setting, Series, float]]) -> None:
    """The name of every line at its right end, moved apart where they would touch."""
    placed = []
    for look, series, level in lines:
        middle = mean_interval(series.values, level=level)[0]
        seen = np.flatnonzero(np.isfinite(middle))
        if len(seen):
            placed.append((look, _wrap(look.label, 28), float(series.x[seen[-1]]), float(middle[seen[-1]])))
    for _, text, _, _ in placed:  # the labels' widths decide how wide the axes are
        axes.annotate(text, (1, 0.5), (8, 0), "axes fraction", "offset points", fontsize=8.5, annotation_clip=False)
    figure.draw_without_rendering()
    for artist in list(axes.texts[-len(placed) :] if placed else []):
        artist.remove()
    box = axes.get_window_extent()
    line = 8.5 * 1.3 / 72 * figure.dpi / box.height
    low, high = axes.get_ylim()
    wanted = []
    for look, text, x, y in placed:
        shown = (axes.transData.transform((x, min(max(y, low), high)))[1] - box.y0) / box.height
        wanted.append((shown, look, text, x, y))
    wanted.sort(key=lambda entry: entry[0])
    sizes = [(text.count("\n") + 1) * line for _, _, text, _, _ in wanted]
    heights = _apart([entry[0] for entry in wanted], sizes)
    for (_, look, text, x, y), height in zip(wanted, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1.025, height),
            "data",
            "axes fraction",
            va="center",
            fontsize=8.5,
            color=_darker(look.colour),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.7,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def _apart(centres: list[float], sizes: list[float]) -> list[float]:
    """Sorted `centres` moved as little as a few sweeps can, so that boxes of `sizes` in [0, 1] do not
    overlap."""
    placed = list(centres)
    for _ in range(50):
        for index in range(1, len(placed)):
            overlap = (sizes[index] + sizes[index - 1]) / 2 - (placed[index] - placed[index - 1])
            if overlap > 0:
                placed[index - 1] -= overlap / 2
                placed[index] += overlap / 2
        placed = [min(max(at, size / 2), 1 - size / 2) for at, size in zip(placed, sizes, strict=True)]
    return placed


def _darker(colour: str) -> tuple[float, float, float]:
    """The colour as text: dark enough to read on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = (0.72 * part for part in to_rgb(colour))
    return red, green, blue


class Saved(NamedTuple):
    """The files of one figure."""

    png: Path
    svg: Path
    pdf: Path


def save(figure: Figure, folder: Path | str, name: str) -> Saved:
    """Write `figure` as NAME.png (200 dots per inch), NAME.svg and NAME.pdf in `folder`, made if it is not
    there.

    The bytes depend on the figure and the version of matplotlib alone: no dates, no random names.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    saved = Saved(*(folder / f"{name}.{kind}" for kind in Saved._fields))
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with house_style():
        for kind, path in zip(Saved._fields, saved, strict=True):
            figure.savefig(path, format=kind, metadata=undated[kind])
    return saved
