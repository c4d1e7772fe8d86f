"""Association against SciPy, closed forms, and the slow bootstrap over repeated rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neoteny.analysis import (
    Coefficient,
    association,
    association_within,
    kendall,
    partial_spearman,
    simpson,
    spearman,
)
from neoteny.analysis.association import _cluster_pairs, _resampled_rank_correlation, _tau


def tied(seed, n=40, levels=6):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, size=n).astype(float)
    return x, np.round(x + 2 * rng.normal(size=n)), np.round(0.5 * x + rng.normal(size=n))


@pytest.mark.parametrize("seed", range(4))
def test_coefficients_equal_scipy_with_ties(seed):
    x, y, _ = tied(seed)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_kendall_crosses_its_blocks():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, size=1_100), rng.normal(size=1_100)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("coefficient", [spearman, kendall])
def test_coefficient_edges(coefficient):
    assert coefficient([1, 2, 3], [10, 20, 1e9]) == pytest.approx(1)
    assert coefficient([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert coefficient([-np.inf, 0, np.inf], [1, 2, 3]) == pytest.approx(1)
    for x, y in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1, np.nan, 3], [1, 2, 3]), ([1], [2])):
        assert math.isnan(coefficient(x, y))
    with pytest.raises(ValueError, match="one length"):
        coefficient([1, 2], [1, 2, 3])


def test_partial_spearman_equals_the_closed_form():
    x, y, z = tied(1)
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_spearman(x, y, z) == pytest.approx(expected, abs=1e-12)
    assert abs(expected - xy) > 0.05


def test_partial_spearman_with_two_covariates_equals_residual_correlation():
    x, y, z = tied(2)
    w = np.random.default_rng(9).normal(size=len(x)) + 0.3 * y
    rx, ry, rz, rw = (stats.rankdata(v) for v in (x, y, z, w))
    design = np.stack([np.ones_like(rz), rz, rw], axis=1)
    residual = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (rx, ry)]
    found = partial_spearman(x, y, np.stack([z, w], axis=1))
    assert found == pytest.approx(np.corrcoef(*residual)[0, 1], abs=1e-10)


def test_partial_spearman_with_covariates_that_say_nothing_new():
    x, y, z = tied(3)
    assert partial_spearman(x, y, np.ones_like(x)) == pytest.approx(spearman(x, y), abs=1e-12)
    twice = np.stack([z, 3 * z + 1, np.zeros_like(z)], axis=1)
    assert partial_spearman(x, y, twice) == pytest.approx(partial_spearman(x, y, z), abs=1e-9)
    assert math.isnan(partial_spearman(x, y, x))
    assert math.isnan(partial_spearman(x, y, -(y**3)))
    assert math.isnan(partial_spearman(x, y, np.where(np.arange(len(x)) == 3, np.nan, z)))
    with pytest.raises(ValueError, match="covariates must be"):
        partial_spearman(x, y, z[:-1])


@pytest.mark.parametrize("labels", ["five", "each"])
def test_resampled_coefficients_equal_those_of_the_repeated_rows(labels):
    x, y, z = tied(4, n=25)
    group = np.arange(25) % 5 if labels == "five" else np.arange(25)
    count = group.max() + 1
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=20).astype(float)
    pooled = _resampled_rank_correlation([x, y], group, weights)
    partial = _resampled_rank_correlation([x, y, z], group, weights)
    tau = _tau(_cluster_pairs(x, y, group), weights)
    for index, weight in enumerate(weights):
        rows = np.repeat(np.arange(25), weight[group].astype(int))
        assert pooled[index] == pytest.approx(stats.spearmanr(x[rows], y[rows]).statistic, abs=1e-10)
        assert tau[index] == pytest.approx(stats.kendalltau(x[rows], y[rows]).statistic, abs=1e-10)
        assert partial[index] == pytest.approx(partial_spearman(x[rows], y[rows], z[rows]), abs=1e-10)


def test_resamples_do_not_depend_on_chunks(monkeypatch):
    x, y, _ = tied(4, n=25)
    whole = association(x, y, rng=np.random.default_rng(0), resamples=100)
    monkeypatch.setattr("neoteny.analysis.aggregates._CHUNK", 300)
    assert association(x, y, rng=np.random.default_rng(0), resamples=100) == whole


@pytest.mark.parametrize(("method", "reference"), [(Coefficient.SPEARMAN, spearman), (Coefficient.KENDALL, kendall)])
def test_association_is_the_coefficient_with_an_interval(method, reference):
    x, y, _ = tied(5, n=60)
    found = association(x, y, method=method, rng=np.random.default_rng(0), resamples=2_000)
    assert found.value == reference(x, y)
    assert found.low < found.value < found.high
    assert found.n == 60
    assert found == association(x, y, method=method, rng=np.random.default_rng(0), resamples=2_000)
    assert found != association(x, y, method=method, rng=np.random.default_rng(1), resamples=2_000)


def test_the_association_interval_matches_the_slow_bootstrap():
    x, y, _ = tied(6, n=40)
    seeds = np.arange(40) % 8
    found = association(x, y, clusters=seeds, rng=np.random.default_rng(0), resamples=4_000)
    rng, slow = np.random.default_rng(1), []
    for _ in range(1_500):
        rows = np.concatenate([np.flatnonzero(seeds == s) for s in rng.integers(8, size=8)])
        slow.append(spearman(x[rows], y[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.03)


def test_clusters_widen_the_interval_of_duplicated_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=8), rng.normal(size=8)
    seeds = np.repeat(np.arange(8), 20)
    rows = np.repeat(np.arange(8), 20)
    alone = association(x[rows], y[rows], rng=rng, resamples=800)
    together = association(x[rows], y[rows], clusters=seeds, rng=rng, resamples=800)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert (alone.n, together.n) == (160, 8)


def test_coverage_of_clustered_rows():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        shift = np.repeat(rng.normal(size=(20, 2)), 5, axis=0)
        x, y = (shift + 0.3 * rng.normal(size=shift.shape)).T
        found = association(x, y, clusters=np.repeat(np.arange(20), 5), rng=rng, resamples=300)
        covered += found.low <= 0 <= found.high
    assert 0.86 <= covered / 100 <= 0.99


def test_association_given_covariates_is_partial():
    x, y, z = tied(7)
    found = association(x, y, covariates=z, rng=np.random.default_rng(0), resamples=300)
    assert found.value == partial_spearman(x, y, z)
    assert found.low < found.value < found.high


def test_association_without_an_answer():
    rng = np.random.default_rng(0)
    nan = association([1, 2, np.nan], [1, 2, 3], rng=rng)
    constant = association([1, 1, 1], [1, 2, 3], rng=rng)
    for found in (nan, constant):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert found.n == 3
    one = association([1, 2, 3], [1, 3, 2], clusters=["s", "s", "s"], rng=rng)
    assert (one.value, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    # One row differs and is missing from about a third of all resamples, which are left out.
    rare = association([0, 0, 0, 1], [0, 0, 0, 1], clusters=[0, 1, 2, 3], rng=rng, resamples=500)
    assert (rare.value, rare.low, rare.high) == (1.0, 1.0, 1.0)


def test_too_few_defined_resamples_give_no_interval(monkeypatch):
    monkeypatch.setattr("neoteny.analysis.aggregates.LEAST_DEFINED", 0.9)
    found = association([0, 0, 0, 1], [0, 0, 0, 1], rng=np.random.default_rng(0), resamples=500)
    assert found.value == 1.0
    assert math.isnan(found.low)


def test_association_mistakes_are_named():
    x, y, z = tied(0)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="partial Kendall"):
        association(x, y, method=Coefficient.KENDALL, covariates=z, rng=rng)
    with pytest.raises(TypeError, match="Coefficient"):
        association(x, y, method="kendall", rng=rng)  # type: ignore
    with pytest.raises(TypeError, match="Generator"):
        association(x, y, rng=0)  # type: ignore
    with pytest.raises(ValueError, match="clusters must"):
        association(x, y, clusters=[1, 2], rng=rng)
    with pytest.raises(ValueError, match="cells must"):
        association_within(x, y, [1, 2], rng=rng)


def test_association_within_cells_is_that_of_the_cells_rows():
    # Inside each cell the relation rises; pooled it falls (Simpson's paradox).
    rng = np.random.default_rng(0)
    base = np.tile(np.arange(10.0), 3)
    cells = np.repeat(["a", "b", "c"], 10)
    shift = np.repeat([0.0, 20.0, 40.0], 10)
    x, y = base + shift, base - 2 * shift
    seeds = np.tile(np.arange(10), 3)
    assert spearman(x, y) < 0
    found = association_within(x, y, cells, clusters=seeds, rng=rng, resamples=200)
    assert list(found) == ["a", "b", "c"]
    assert list(association_within(x, y, cells.astype(object), rng=rng, resamples=20)) == ["a", "b", "c"]
    for interval in found.values():
        assert (interval.value, interval.n) == (pytest.approx(1), 10)
    z = rng.normal(size=30)
    partial = association_within(x, y + z, cells, covariates=z, rng=rng, resamples=50)
    rows = cells == "b"
    assert partial["b"].value == pytest.approx(partial_spearman(x[rows], (y + z)[rows], z[rows]))


values = st.lists(st.integers(-3, 3), min_size=3, max_size=12)


@settings(max_examples=60)
@given(values, st.integers(0, 2**32 - 1))
def test_rank_coefficients_ignore_increasing_maps_and_row_order(x, seed):
    rng = np.random.default_rng(seed)
    x = np.array(x, dtype=float)
    y = rng.integers(0, 4, size=len(x)).astype(float)
    order = rng.permutation(len(x))
    for coefficient in (spearman, kendall):
        value = coefficient(x, y)
        if math.isnan(value):
            assert len(set(x)) == 1 or len(set(y)) == 1
            continue
        assert -1 <= value <= 1
        assert coefficient(np.exp(x), y**3) == pytest.approx(value, abs=1e-12)
        assert coefficient(x, -y) == pytest.approx(-value, abs=1e-12)
        assert coefficient(y[order], x[order]) == pytest.approx(value, abs=1e-12)


def test_pooling_that_turns_the_sign_is_reported():
    rng = np.random.default_rng(0)
    cells = np.repeat([0, 1, 2], 30)
    inside = rng.normal(size=90)
    x, y = inside + 10 * cells, -inside + 10 * cells + 0.1 * rng.normal(size=90)
    seeds = np.tile(np.arange(10), 9)
    report = simpson(x, y, cells, clusters=seeds, rng=rng, resamples=200)
    assert report.reversed
    assert report.pooled.value > 0.5
    assert set(report.within) == {0, 1, 2} == set(report.opposite)
    expected = np.mean([spearman(x[cells == c], y[cells == c]) for c in (0, 1, 2)])
    assert report.mean == pytest.approx(expected)
    assert report.mean < -0.9


def test_pooling_that_keeps_the_sign_is_not_a_reversal():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y, cells = x + 0.5 * rng.normal(size=60), np.repeat(["a", "b"], 30)
    report = simpson(x, y, cells, rng=rng, resamples=200)
    assert not report.reversed
    assert report.opposite == ()
    # cells in which a variable is constant say nothing, and count for nothing
    constant = np.where(cells == "b", 0.0, y)
    alone = simpson(x, constant, cells, rng=rng, resamples=200)
    assert math.isnan(alone.within["b"].value)
    assert alone.mean == pytest.approx(alone.within["a"].value)
