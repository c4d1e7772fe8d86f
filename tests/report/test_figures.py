import math
import os
import subprocess
import sys

import matplotlib
import numpy as np
import polars as pl
import pytest
from scipy import stats

import synthetic_study as synthetic
from neoteny.report import curves, estimates, heatmap, intervals, save, scatter, settings
from neoteny.report.figures import _apart


def long(table, *, points=None, setting="a", **more):
    """values (seeds, points) in long format."""
    table = np.asarray(table, float)
    points = range(table.shape[1]) if points is None else points
    return pl.DataFrame(
        [
            {"setting": setting, "seed": seed, "step": point, "value": float(item), **more}
            for seed, line in enumerate(table)
            for point, item in zip(points, line, strict=True)
        ]
    )


def means(axes, label):
    """The data of the mean line called `label`."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def crosses(axes):
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "x"]


def band(collection):
    """{x: (lowest, highest)} over the vertices of a band."""
    vertices = np.concatenate([path.vertices for path in collection.get_paths()])
    return {x: (vertices[vertices[:, 0] == x, 1].min(), vertices[vertices[:, 0] == x, 1].max()) for x in vertices[:, 0]}


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_curves_draw_the_mean_and_the_student_band(level):
    values = np.random.default_rng(0).normal(size=(5, 7))
    other = values[:3] * 2 + 1
    frame = pl.concat([long(values, setting="a"), long(other, setting="b")]).sample(fraction=1, shuffle=True, seed=1)
    (axes,) = curves(frame, x="step", by=["setting"], level=level).axes
    for collection, (name, table) in zip(axes.collections, (("a", values), ("b", other)), strict=True):
        x, y = means(axes, name)
        np.testing.assert_array_equal(x, np.arange(7))
        np.testing.assert_allclose(y, table.mean(axis=0), rtol=1e-12)
        low, high = stats.t.interval(level, len(table) - 1, table.mean(axis=0), stats.sem(table, axis=0))
        edges = band(collection)
        np.testing.assert_allclose([edges[at] for at in x], np.stack([low, high], axis=1), rtol=1e-10)


def test_few_seeds_are_faint_lines_and_many_are_not():
    few = curves(long(np.eye(3)), x="step", by=["setting"]).axes[0]
    many = curves(long(np.eye(12)), x="step", by=["setting"]).axes[0]
    assert len(few.lines) == 4
    assert len(many.lines) == 1
    faint = {tuple(line.get_ydata()) for line in few.lines if line.get_alpha() is not None}
    assert faint == {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}
    assert len(curves(long(np.eye(3)), x="step", by=["setting"], show_seeds=False).axes[0].lines) == 1


def test_one_seed_has_a_line_and_no_band():
    (axes,) = curves(long([[1.0, 2.0, 4.0]]), x="step", by=["setting"]).axes
    np.testing.assert_array_equal(means(axes, "a")[1], [1, 2, 4])
    assert len(axes.lines) == 1
    assert all(not path.vertices.size for collection in axes.collections for path in collection.get_paths())


def test_a_point_between_gaps_gets_a_marker():
    line = np.arange(40.0)
    line[[9, 11]] = np.nan
    (axes,) = curves(long([line]), x="step", by=["setting"]).axes
    (drawn,) = axes.lines
    np.testing.assert_array_equal(np.isnan(drawn.get_ydata()), np.isnan(line))
    assert np.flatnonzero(drawn.get_markevery()).tolist() == [10]


@pytest.mark.parametrize("gone", [math.nan, math.inf, None])
def test_a_diverged_run_ends_in_a_cross_and_the_rest_is_dotted(gone):
    frame = long([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]]).with_columns(
        value=pl.when((pl.col("seed") == 1) & (pl.col("step") > 1)).then(pl.lit(gone)).otherwise("value"),
        diverged=(pl.col("seed") == 1) & (pl.col("step") == 3),
    )
    figure = curves(frame, x="step", by=["setting"], diverged="diverged")
    (axes,) = figure.axes
    assert crosses(axes) == [(1.0, 4.0)]
    np.testing.assert_array_equal(means(axes, "a")[1], [2, 3, np.nan, np.nan])
    dotted = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dotted] == [[2, 3, 3, 4]]
    assert "diverged" in figure.texts[-1].get_text()
    assert not crosses(curves(frame, x="step", by=["setting"]).axes[0])


def test_a_run_that_diverged_before_its_first_value_is_drawn_without_a_cross(tmp_path):
    frame = long([[np.nan, np.nan]], diverged=True)
    figure = curves(frame, x="step", by=["setting"], diverged="diverged", y_log=True)
    assert not crosses(figure.axes[0])
    save(figure, tmp_path, "empty")


def test_settings_keep_colour_and_order_where_some_are_missing():
    frame = pl.concat([long([[1.0, 2.0]], setting=name) for name in ("c", "a", "b")])
    looks = settings(frame, ["setting"], {("b",): "the b", ("a",): "the a"})
    assert [look.label for look in looks.values()] == ["the b", "the a", "c"]
    assert len({look.colour for look in looks.values()}) == 3
    part = frame.filter(pl.col("setting") != "b")
    (axes,) = curves(part, x="step", by=["setting"], settings=looks).axes
    assert {line.get_label(): line.get_color() for line in axes.lines} == {
        "the a": looks[("a",)].colour,
        "c": looks[("c",)].colour,
    }
    assert settings(part, ["setting"], {("b",): "the b", ("a",): "the a"})[("a",)] == looks[("a",)]
    with pytest.raises(KeyError, match="no look for the setting c"):
        curves(part, x="step", by=["setting"], settings={("a",): looks[("a",)]})


def test_twelve_settings_differ_in_looks_and_sort_naturally():
    frame = pl.concat([long([[1.0, 2.0]], setting=f"layer {index}") for index in range(12)])
    looks = settings(frame, ["setting"])
    assert [look.label for look in looks.values()] == [f"layer {index}" for index in range(12)]
    assert len({(look.colour, look.dashes) for look in looks.values()}) == 12
    figure = curves(frame, x="step", by=["setting"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"layer {index}" for index in range(12)]


def test_settings_of_several_columns_are_named_by_them():
    frame = synthetic.records()
    names = [look.label for look in settings(frame, synthetic.BY).values()]
    assert names == [
        "adam_b2 0.9, adam_eps_root 0",
        "adam_b2 0.9, adam_eps_root 0.001",
        "adam_b2 0.999, adam_eps_root 0",
        "adam_b2 0.999, adam_eps_root 0.001",
    ]


def test_panels_hold_their_own_rows_on_one_scale():
    frame = pl.concat([long([[1.0, 2.0]], width=10), long([[30.0, 40.0]], width=2)])
    narrow, wide = curves(frame, x="step", by=["setting"], panel="width").axes
    assert (narrow.get_title("left"), wide.get_title("left")) == ("width 2", "width 10")
    np.testing.assert_array_equal(means(narrow, "a")[1], [30, 40])
    np.testing.assert_array_equal(means(wide, "a")[1], [1, 2])
    assert narrow.get_ylim() == wide.get_ylim()
    apart = curves(frame, x="step", by=["setting"], panel="width", share_y=False).axes
    assert apart[0].get_ylim() != apart[1].get_ylim()


def test_the_band_of_two_seeds_does_not_decide_the_scale():
    (axes,) = curves(long([[0.0, 0.0], [1.0, 1.0]]), x="step", by=["setting"]).axes
    low, high = axes.get_ylim()
    assert -1.5 < low < 0
    assert 1 < high < 2.5


def test_logarithmic_axes(tmp_path):
    frame = long([[1e-3, 1.0, 1e3], [2e-3, 9.0, 1e1]], points=[1, 10, 100])
    (axes,) = curves(frame, x="step", by=["setting"], x_log=True, y_log=True).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert 1e-4 < axes.get_ylim()[0] < 1e-3  # the negative bounds of the band do not stretch it
    zero = curves(long([[0.0, 1.0]], points=[0, 1000]), x="step", by=["setting"], x_log=True, y_log=True)
    assert (zero.axes[0].get_xscale(), zero.axes[0].get_yscale()) == ("symlog", "symlog")
    save(zero, tmp_path, "zero")


def test_an_axis_of_strings_keeps_its_order():
    frame = long([[1.0, 2.0, 3.0]], points=["stem", "body", "head"])
    (axes,) = curves(frame, x="step", by=["setting"]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stem", "body", "head"]
    np.testing.assert_array_equal(means(axes, "a")[1], [1, 2, 3])


def test_what_cannot_be_drawn_is_said():
    frame = long([[1.0, 2.0]])
    with pytest.raises(KeyError, match="no column 'width'"):
        curves(frame, x="step", by=["width"])
    with pytest.raises(ValueError, match="no rows"):
        curves(frame.clear(), x="step", by=["setting"])
    with pytest.raises(ValueError, match="seed 0 has more than one value at step 1"):
        curves(pl.concat([frame, frame.filter(pl.col("step") == 1)]), x="step", by=["setting"])
    with pytest.raises(ValueError, match="more than one value in the setting a"):
        intervals(frame, by=["setting"])


def test_intervals_draw_mean_and_whisker():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    frame = pl.concat([long(values[:, None], setting="a"), long([[5.0]], setting="b"), long([[np.nan]], setting="c")])
    (axes,) = intervals(frame, by=["setting"], reference=0.0).axes
    low, high = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    whiskers = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 2.2]
    np.testing.assert_allclose(whiskers[0], [low, high])
    assert np.isnan(whiskers[1]).all()
    assert means(axes, "a") == (pytest.approx(7 / 3), 0)
    assert means(axes, "b") == (5, 1)
    assert [text.get_text() for text in axes.texts] == ["3 of 4 seeds", "", "n/a"]
    left, right = axes.get_xlim()
    assert left < min(0, low)
    assert right > high


def test_a_scatter_draws_every_row_and_crosses_those_marked():
    frame = pl.DataFrame(
        {"x": [1.0, 2.0, 3.0, 4.0], "y": [4.0, 3.0, 2.0, None], "who": ["a", "a", "b", "b"], "lost": [False, True] * 2}
    )
    figure = scatter(frame, x="x", y="y", by=("who",), crossed="lost")
    (axes,) = figure.axes
    drawn = {(x, line.get_marker()) for line in axes.lines for x in np.asarray(line.get_xdata())}
    assert {x for x, marker in drawn if marker == "x"} == {2.0, 4.0}
    assert {x for x, marker in drawn if marker != "x"} == {1.0, 3.0}
    assert [line.get_color() for line in axes.lines[:2]] != [line.get_color() for line in axes.lines[2:4]]
    with pytest.raises(KeyError, match="no column 'z'"):
        scatter(frame, x="z", y="y")


def test_estimates_draw_what_they_are_given():
    (axes,) = estimates(["x", "y"], [0.5, 2.0], [0.25, math.nan], [1.0, math.nan]).axes
    whiskers = [list(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2.2]
    assert whiskers[0] == [0.25, 1.0]
    assert np.isnan(whiskers[1]).all()
    assert means(axes, "y") == (2, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    with pytest.raises(ValueError, match="one label, value, low and high each"):
        estimates(["x"], [0.5, 1.0], [0.0], [1.0])


def test_heatmap_places_every_value():
    values = np.array([[0.0, 1.0, np.nan], [-3.0, 2.0, 0.5]])
    axes, bar = heatmap(values, rows=["r0", "r1"], columns=[1, 2, 3], centre=0.0, value_label="change").axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0", (1, 0): "1", (0, 1): "−3", (1, 1): "2", (2, 1): "0.5"}
    (mesh,) = axes.collections
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-3.0, 3.0)
    assert len(axes.patches) == 1  # the hatched cell
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is the upper one
    assert bar.get_ylabel() == "change"
    with pytest.raises(ValueError, match="2 rows and 2 columns"):
        heatmap(values, rows=[1, 2], columns=[1, 2])


def test_labels_are_moved_apart_and_keep_their_order():
    sizes = [0.1, 0.2, 0.1]
    placed = _apart([0.95, 0.96, 0.97], sizes)
    assert np.diff(placed).tolist() == pytest.approx([0.15, 0.15], abs=0.01)
    assert placed[-1] <= 0.95 + 1e-9
    assert _apart([0.2, 0.8], [0.1, 0.1]) == [0.2, 0.8]


def test_files_are_the_same_bytes_in_another_process(tmp_path):
    script = (
        "import sys, polars as pl; from pathlib import Path; from neoteny.report import curves, save\n"
        "rows = [{'seed': s, 'x': x, 'value': x * s, 'b': 'name'} for s in range(3) for x in range(4)]\n"
        "frame = pl.DataFrame(rows)\n"
        "save(curves(frame, x='x', by=['b'], title='A title'), sys.argv[1], 'drawn')\n"
        "assert 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {"MPLBACKEND": "agg", "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "0"}
    frame = pl.DataFrame(
        [{"seed": seed, "x": x, "value": x * seed, "b": "name"} for seed in range(3) for x in range(4)]
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other")], check=True, env={**os.environ, **environment}
    )
    figure = curves(frame, x="x", by=["b"], title="A title")
    first, second = save(figure, tmp_path / "first", "drawn"), save(figure, tmp_path / "second", "drawn")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.suffix
        assert one.read_bytes() == (tmp_path / "other" / one.name).read_bytes(), one.suffix
    assert [path.name for path in first] == ["drawn.png", "drawn.svg", "drawn.pdf"]
    assert first.png.read_bytes().startswith(b"\x89PNG")
    assert first.pdf.read_bytes().startswith(b"%PDF")


def test_the_style_of_the_user_neither_changes_nor_is_changed():
    frame = long([[1.0, 2.0]])
    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": False}):
        (axes,) = curves(frame, x="step", by=["setting"]).axes
        assert matplotlib.rcParams["font.size"] == 31.0
    assert axes.xaxis.label.get_fontsize() == 9.0
