"""Aggregates against SciPy, closed forms, and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from neoteny.analysis import (
    Interval,
    cluster_bootstrap,
    iqm,
    mean_estimate,
    mean_interval,
    optimality_gap,
    paired_difference,
    probability_of_improvement,
    seed_bootstrap,
    stratified_bootstrap,
    task_median,
    wilson_interval,
)

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (5, 2), (5, 7), (4, 4), (10, 13)])
def test_iqm_equals_trimmed_mean(shape):
    scores = np.random.default_rng(sum(shape)).normal(size=shape) ** 3
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)


def test_iqm_trims_over_all_scores_not_within_tasks():
    scores = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0], [3.0, 103.0]])
    assert iqm(scores) == (2 + 3 + 100 + 101) / 4


def test_iqm_of_nan_is_nan_and_of_nothing_an_error():
    assert math.isnan(iqm([[1.0, np.nan], [2.0, 3.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="at least one score"):
        iqm(np.empty((0, 3)))


def test_task_median_takes_means_over_runs_first():
    assert task_median([[0.0, 1.0, 9.0], [4.0, 1.0, 11.0]]) == 2.0


def test_optimality_gap_counts_only_what_is_missing():
    assert optimality_gap([[0.5, 3.0], [1.0, 0.0]]) == pytest.approx((0.5 + 0 + 0 + 1) / 4)
    assert optimality_gap([[2.0], [4.0]], target=3.0) == pytest.approx(0.5)


def test_probability_of_improvement_is_mann_whitney_u_averaged_over_tasks():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=(7, 4)), rng.integers(0, 5, size=(9, 4))  # many ties
    expected = np.mean([stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 63 for t in range(4)])
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-12)
    assert probability_of_improvement(y, x) == pytest.approx(1 - expected, rel=1e-12)


def test_probability_of_improvement_edges():
    assert probability_of_improvement([[1.0]], [[1.0]]) == 0.5
    assert probability_of_improvement([[2.0], [3.0]], [[1.0]]) == 1.0
    assert math.isnan(probability_of_improvement([[np.nan]], [[1.0]]))
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(np.ones((2, 3)), np.ones((2, 2)))


def test_stratified_bootstrap_resamples_within_each_task():
    # Scores are constant within tasks only: resampling within tasks keeps the mean, across tasks it does not.
    scores = np.tile([0.0, 10.0, 20.0], (5, 1))
    found = stratified_bootstrap(scores, np.mean, rng=np.random.default_rng(0), resamples=200)
    assert (found.value, found.low, found.high, found.n) == (10.0, 10.0, 10.0, 5)


def test_stratified_bootstrap_resamples_tasks_independently():
    # x - x is zero if both tasks get the same rows; independent rows make the difference vary.
    column = np.arange(8.0)
    found = stratified_bootstrap(
        np.stack([column, column], axis=1),
        lambda s: s[:, 0].mean() - s[:, 1].mean(),
        rng=np.random.default_rng(0),
        resamples=500,
    )
    assert found.low < -1
    assert found.high > 1


def test_stratified_bootstrap_width_matches_theory():
    scores = np.random.default_rng(3).normal(size=(20, 10))
    found = stratified_bootstrap(scores, np.mean, rng=np.random.default_rng(1), resamples=8_000)
    error = math.sqrt((scores.var(axis=0) / 20).sum()) / 10  # stratified: within-task variance only
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.low < found.value < found.high


def test_stratified_bootstrap_coverage():
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(200):
        scores = rng.normal(size=(15, 4)) + np.arange(4)
        found = stratified_bootstrap(scores, np.mean, rng=rng, resamples=300)
        covered += found.low <= 1.5 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_stratified_bootstrap_repeats_with_its_seed_and_not_without():
    scores = np.random.default_rng(0).normal(size=(6, 3))

    def bounds(seed):
        return stratified_bootstrap(scores, iqm, rng=np.random.default_rng(seed), resamples=300)

    assert bounds(1) == bounds(1)
    assert bounds(1) != bounds(2)


def test_stratified_bootstrap_does_not_depend_on_how_draws_are_chunked(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(6, 3))
    whole = stratified_bootstrap(scores, np.mean, rng=np.random.default_rng(1), resamples=300)
    monkeypatch.setattr("neoteny.analysis.aggregates._CHUNK", 100)
    assert stratified_bootstrap(scores, np.mean, rng=np.random.default_rng(1), resamples=300) == whole


def test_level_widens_the_bootstrap():
    scores = np.random.default_rng(0).normal(size=(10, 2))
    narrow, wide = (
        stratified_bootstrap(scores, np.mean, rng=np.random.default_rng(0), resamples=500, level=level)
        for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (narrow.level, wide.level) == (0.5, 0.99)


def test_one_run_has_no_interval():
    found = stratified_bootstrap([[1.0, 2.0]], np.mean, rng=np.random.default_rng(0))
    assert found.value == 1.5
    assert found.n == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0), np.random])
def test_bootstraps_refuse_anything_but_a_generator(rng):
    for call in (
        lambda: stratified_bootstrap(np.ones((3, 2)), np.mean, rng=rng),
        lambda: seed_bootstrap([np.ones(3)], np.mean, rng=rng),
        lambda: cluster_bootstrap([0, 1], len, rng=rng),
    ):
        with pytest.raises(TypeError, match="Generator"):
            call()


def test_the_generator_is_required():
    with pytest.raises(TypeError, match="rng"):
        stratified_bootstrap(np.ones((3, 2)), np.mean)  # type: ignore


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"level": 1.0}, "level"), ({"level": 0.0}, "level"), ({"resamples": 0}, "resamples")],
)
def test_bootstrap_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        stratified_bootstrap(np.ones((3, 2)), np.mean, rng=np.random.default_rng(0), **arguments)


def test_scores_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"\(runs, tasks\)"):
        stratified_bootstrap(np.ones(3), np.mean, rng=np.random.default_rng(0))


def test_seed_bootstrap_resamples_each_sample_on_its_own():
    x, y = np.random.default_rng(5).normal(size=30), np.random.default_rng(6).normal(size=12)
    found = seed_bootstrap([x, y], lambda a, b: a.mean() - b.mean(), rng=np.random.default_rng(0), resamples=4_000)
    error = math.sqrt(x.var() / 30 + y.var() / 12)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert found.n == 12
    assert found.value == x.mean() - y.mean()
    # The same array given twice is not paired with itself.
    same = seed_bootstrap([x, x], lambda a, b: a.mean() - b.mean(), rng=np.random.default_rng(0), resamples=200)
    assert same.high > same.low


def test_seed_bootstrap_keeps_what_belongs_to_a_seed_together():
    curve = np.random.default_rng(0).normal(size=(8, 1)) * np.array([1.0, -1.0])
    found = seed_bootstrap([curve], lambda c: float(c.sum()), rng=np.random.default_rng(0), resamples=200)
    assert (found.low, found.high) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert math.isnan(seed_bootstrap([[1.0]], np.mean, rng=np.random.default_rng(0)).low)


def test_cluster_bootstrap_brings_whole_clusters():
    clusters = np.array(["a", "b", "a", "b", "c", "c", "c"])
    seen = []

    def statistic(rows):
        seen.append(rows)
        return float(len(rows))

    found = cluster_bootstrap(clusters, statistic, rng=np.random.default_rng(0), resamples=50)
    assert found.n == 3
    assert (found.value, found.low, found.high) == (7.0, pytest.approx(6, abs=0.5), pytest.approx(9, abs=1))
    for rows in seen:
        counts = np.bincount(rows, minlength=7)
        assert counts[0] == counts[2]
        assert counts[1] == counts[3]
        assert counts[4] == counts[5] == counts[6]
        assert counts[0] + counts[1] + counts[4] == 3


def test_cluster_bootstrap_of_one_cluster_has_no_interval():
    found = cluster_bootstrap([4, 4, 4], lambda rows: 1.0, rng=np.random.default_rng(0))
    assert (found.n, found.value) == (1, 1.0)
    assert math.isnan(found.low)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_t_interval_equals_scipy(n, level):
    values = np.random.default_rng(n).normal(3, 2, size=n)
    low, high = stats.t.interval(level, n - 1, values.mean(), stats.sem(values))
    found = mean_estimate(values, level=level)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-10)
    assert (found.n, found.level) == (n, level)


def test_mean_interval_is_elementwise_and_leaves_out_missing_entries():
    values = np.random.default_rng(0).normal(size=(6, 2, 3))
    values[1:3, 0, 0] = np.nan
    values[1:, 1, 2] = np.nan
    values[:, 1, 1] = np.nan
    mean, low, high = mean_interval(values)
    assert mean.shape == low.shape == high.shape == (2, 3)
    kept = values[[0, 3, 4, 5], 0, 0]
    expected = stats.t.interval(0.95, 3, kept.mean(), stats.sem(kept))
    assert (mean[0, 0], low[0, 0], high[0, 0]) == pytest.approx((kept.mean(), *expected))
    assert mean[1, 2] == values[0, 1, 2]
    assert np.isnan([low[1, 2], high[1, 2], mean[1, 1], low[1, 1], high[1, 1]]).all()
    assert np.isfinite([low[0, 1], high[0, 2], low[1, 0]]).all()


def test_one_seed_has_a_mean_and_no_interval():
    found = mean_estimate([3.0])
    assert (found.value, found.n) == (3.0, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(mean_estimate([]).value)


def test_equal_values_have_zero_width_and_infinite_ones_no_interval():
    found = mean_estimate([0.1] * 7)
    assert (found.low, found.high) == (pytest.approx(0.1, rel=1e-15), pytest.approx(0.1, rel=1e-15))
    boot = mean_estimate([0.1] * 7, rng=np.random.default_rng(0))
    assert (boot.low, boot.high) == (0.1, 0.1)
    for rng in (None, np.random.default_rng(0)):
        found = mean_estimate([1.0, np.inf, 2.0, 3.0, 1.0, 1.0], rng=rng)
        assert found.value == math.inf
        assert math.isnan(found.low)


def test_bootstrap_of_means_needs_six_seeds():
    values = np.random.default_rng(1).exponential(size=(40, 2))
    values[5:, 1] = np.nan
    plain, boot = mean_interval(values), mean_interval(values, rng=np.random.default_rng(0))
    assert np.array_equal(plain.mean, boot.mean)
    assert (boot.low[1], boot.high[1]) == (plain.low[1], plain.high[1])  # five seeds: Student's t
    reference = stats.bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=9_999, rng=np.random.default_rng(9)
    ).confidence_interval
    assert (boot.low[0], boot.high[0]) == pytest.approx((reference.low, reference.high), abs=0.02)
    assert boot.low[0] != plain.low[0]


def test_bootstrap_of_means_leaves_out_missing_entries():
    values = np.random.default_rng(1).normal(size=30)
    values -= values.mean()
    with_gaps = np.concatenate([values, np.full(10, np.nan)])
    found = mean_estimate(with_gaps, rng=np.random.default_rng(0))
    error = values.std() / math.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (found.low + found.high) / 2 == pytest.approx(0, abs=0.2 * error)
    assert found.n == 30


def test_bootstrap_of_means_does_not_depend_on_chunks(monkeypatch):
    values = np.random.default_rng(1).normal(size=(8, 5))
    whole = mean_interval(values, rng=np.random.default_rng(0))
    monkeypatch.setattr("neoteny.analysis.aggregates._CHUNK", 20_000)
    assert np.allclose(whole, mean_interval(values, rng=np.random.default_rng(0)), rtol=1e-12)


def test_t_coverage():
    samples = np.random.default_rng(0).normal(size=(5, 4_000))
    _, low, high = mean_interval(samples)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=0.012)


def test_paired_difference_equals_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=9)
    y = x + 0.1 * rng.normal(size=9)
    found = paired_difference(x, y, level=0.9)
    expected = stats.ttest_rel(x, y).confidence_interval(0.9)
    assert (found.value, found.low, found.high) == pytest.approx(((x - y).mean(), *expected))
    # Not the unpaired interval, which is far wider here.
    assert found.high - found.low < 0.3 * np.ptp(stats.ttest_ind(x, y).confidence_interval(0.9))


def test_paired_difference_drops_incomplete_pairs_only():
    x, y = [1.0, np.nan, 3.0, 4.0, 7.0], [0.0, 1.0, np.nan, 1.0, 2.0]
    found = paired_difference(x, y)
    assert (found.value, found.n) == (3.0, 3)
    assert found == mean_estimate([1.0, 3.0, 5.0])
    both_infinite = paired_difference([np.inf, 1.0, 2.0], [np.inf, 0.0, 0.0])
    assert math.isnan(both_infinite.value)
    assert both_infinite.n == 3


def test_paired_difference_refuses_different_lengths():
    with pytest.raises(ValueError, match="paired by seed"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="paired by seed"):
        paired_difference(np.ones((2, 2)), np.ones((2, 2)))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 7), (1, 1), (40, 405)])
def test_wilson_interval_equals_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    found = wilson_interval(successes, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.n == trials


def test_wilson_interval_edges():
    assert math.isnan(wilson_interval(0, 0).value)
    for successes in (-1, 4):
        with pytest.raises(ValueError, match="between 0 and trials"):
            wilson_interval(successes, 3)


def test_interval_refuses_swapped_bounds():
    with pytest.raises(ValueError, match="wrong way round"):
        Interval(0.0, 1.0, -1.0, 3)
    with pytest.raises(ValueError, match="n=-1"):
        Interval(0.0, 0.0, 1.0, -1)


@given(arrays(np.float64, st.integers(2, 12), elements=numbers), st.floats(0.05, 0.99))
def test_t_interval_contains_its_mean_and_grows_with_the_level(values, level):
    found, wider = mean_estimate(values, level=level), mean_estimate(values, level=level + 0.005)
    assert found.low <= found.value <= found.high
    assert wider.low <= found.low
    assert wider.high >= found.high


@given(arrays(np.float64, st.integers(1, 12), elements=numbers), st.floats(-100, 100))
def test_iqm_moves_with_the_scores(values, shift):
    scale = max(1.0, np.abs(values).max(), abs(shift))
    assert iqm(values + shift) == pytest.approx(iqm(values) + shift, abs=1e-9 * scale)
    assert values.min() - 1e-9 * scale <= iqm(values) <= values.max() + 1e-9 * scale
    assert iqm(values[::-1]) == iqm(values)


@settings(max_examples=30)
@given(
    arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=numbers),
    st.integers(0, 2**32),
)
def test_bootstrap_bounds_stay_within_the_scores(scores, seed):
    found = stratified_bootstrap(scores, iqm, rng=np.random.default_rng(seed), resamples=40)
    slack = 1e-9 * max(1.0, np.abs(scores).max())
    assert scores.min() - slack <= found.low <= found.high <= scores.max() + slack
    assert found == stratified_bootstrap(scores, iqm, rng=np.random.default_rng(seed), resamples=40)
