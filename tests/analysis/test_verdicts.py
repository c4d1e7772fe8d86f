"""Every branch of the rule from interval to verdict, and Holm's correction."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from neoteny.analysis import (
    Above,
    AllOf,
    AtMost,
    Below,
    Equivalent,
    Interval,
    NonInferior,
    Outcome,
    Verdict,
    all_of,
    holm,
    holm_verdicts,
    inconclusive,
    mean_estimate,
    not_run,
    paired_difference,
    verdict,
)

HOLDS, FAILS, INCONCLUSIVE, NOT_RUN = Outcome.HOLDS, Outcome.FAILS, Outcome.INCONCLUSIVE, Outcome.NOT_RUN


def interval(low, high, n=5):
    return Interval((low + high) / 2, low, high, n)


@pytest.mark.parametrize(
    ("expectation", "low", "high", "outcome"),
    [
        (Above(1), 1.1, 2.0, HOLDS),
        (Above(1), 1.0, 2.0, INCONCLUSIVE),  # the threshold is outside the claim
        (Above(1), 0.5, 1.5, INCONCLUSIVE),
        (Above(1), 0.0, 1.0, FAILS),
        (Above(1), -3.0, 0.9, FAILS),
        (Below(1), 0.0, 0.9, HOLDS),
        (Below(1), 0.0, 1.0, INCONCLUSIVE),
        (Below(1), 0.9, 1.1, INCONCLUSIVE),
        (Below(1), 1.0, 2.0, FAILS),
        (Below(1), 1.1, 2.0, FAILS),
        (Equivalent(-1, 2), -1.0, 2.0, HOLDS),  # the bounds are inside the claim
        (Equivalent(-1, 2), 0.0, 0.5, HOLDS),
        (Equivalent(-1, 2), -1.1, 0.0, INCONCLUSIVE),
        (Equivalent(-1, 2), 1.0, 2.1, INCONCLUSIVE),
        (Equivalent(-1, 2), -5.0, 5.0, INCONCLUSIVE),
        (Equivalent(-1, 2), 2.0, 3.0, INCONCLUSIVE),  # 2 itself was claimed
        (Equivalent(-1, 2), -3.0, -1.0, INCONCLUSIVE),
        (Equivalent(-1, 2), 2.1, 3.0, FAILS),
        (Equivalent(-1, 2), -3.0, -1.1, FAILS),
        (Equivalent(4, 4), 4.0, 4.0, HOLDS),
        (AtMost(3), -1.0, 3.0, HOLDS),  # the bound is included, and there is none below
        (AtMost(3), 2.0, 3.1, INCONCLUSIVE),
        (AtMost(3), 3.0, 4.0, INCONCLUSIVE),
        (AtMost(3), 3.1, 4.0, FAILS),
        (NonInferior(0.5), -0.4, 3.0, HOLDS),
        (NonInferior(0.5), -0.4, -0.1, HOLDS),  # worse, but by less than the margin
        (NonInferior(0.5), -0.5, 1.0, INCONCLUSIVE),
        (NonInferior(0.5), -1.0, -0.5, FAILS),
        (NonInferior(0.5), -2.0, -0.6, FAILS),
        (NonInferior(0), 0.1, 0.2, HOLDS),
        (Above(0), 0.3, math.inf, HOLDS),
        (Above(0), -math.inf, math.inf, INCONCLUSIVE),
    ],
)
def test_rule(expectation, low, high, outcome):
    estimate = Interval(1.0, low, high, 7)
    found = verdict(estimate, expectation)
    assert found.outcome is outcome
    assert (found.measured, found.interval, found.n, found.parts) == (1.0, (low, high), 7, ())
    assert str(expectation) in found.reason
    assert "95 %" in found.reason


@pytest.mark.parametrize("expectation", [Above(0), Below(0), Equivalent(-1, 1), NonInferior(1)])
def test_no_verdict_without_an_interval(expectation):
    one = verdict(Interval(5.0, math.nan, math.nan, 1), expectation)
    assert (one.outcome, one.n, one.measured) == (INCONCLUSIVE, 1, 5.0)
    assert "n = 1" in one.reason
    # Even finite bounds do not make one seed enough.
    assert verdict(Interval(5.0, 5.0, 5.0, 1), expectation).outcome is INCONCLUSIVE
    nan = verdict(Interval(math.nan, math.nan, math.nan, 4), expectation)
    assert nan.outcome is INCONCLUSIVE
    assert "not a number" in nan.reason
    for low, high in ((math.nan, 9.0), (5.0, math.nan)):
        half = verdict(Interval(5.0, low, high, 4), expectation)
        assert half.outcome is INCONCLUSIVE
        assert "bounds" in half.reason
    for nothing in (None, Interval(math.nan, math.nan, math.nan, 0)):
        assert verdict(nothing, expectation) == not_run("no data")
    assert not_run("no data").outcome is NOT_RUN


def test_all_of_asks_each_part_about_its_own_estimate():
    claim = AllOf((Below(3), Above(0)), names=("size", "drop"))
    found = verdict([interval(1, 2, n=9), interval(0.5, 1, n=4)], claim)
    assert (found.outcome, found.n, found.measured, found.interval) == (HOLDS, 4, None, None)
    assert [part.name for part in found.parts] == ["size", "drop"]
    assert [part.measured for part in found.parts] == [1.5, 0.75]
    swapped = verdict([interval(4, 5), interval(0.5, 1)], claim)
    assert swapped.outcome is FAILS
    assert "size" in swapped.reason
    assert "drop" not in swapped.reason


def test_all_of_one_estimate_and_nested():
    band = AllOf((Above(0), Below(1)))
    assert verdict(interval(0.1, 0.9), band).outcome is HOLDS
    assert verdict(interval(0.1, 1.9), band).outcome is INCONCLUSIVE
    assert verdict(None, band).outcome is NOT_RUN
    nested = AllOf((band, Above(5)))
    found = verdict([[interval(0.1, 0.9), interval(2, 3)], interval(6, 7)], nested)
    assert found.outcome is FAILS
    assert [part.outcome for part in found.parts[0].parts] == [HOLDS, FAILS]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([HOLDS], HOLDS),
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, FAILS], FAILS),
        ([NOT_RUN, FAILS, INCONCLUSIVE], FAILS),
        ([HOLDS, NOT_RUN], NOT_RUN),
        ([INCONCLUSIVE, NOT_RUN], NOT_RUN),
        ([HOLDS, INCONCLUSIVE], INCONCLUSIVE),
    ],
)
def test_all_of_outcomes(outcomes, expected):
    for order in (outcomes, outcomes[::-1]):
        assert all_of([Verdict(outcome, None, None, 3, "") for outcome in order]).outcome is expected


def test_withheld_verdict_shows_its_estimate():
    found = inconclusive("setting", interval(1, 3))
    assert (found.outcome, found.measured, found.interval, found.n) == (INCONCLUSIVE, 2.0, (1, 3), 5)
    assert inconclusive("setting").measured is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NonInferior(-1), ValueError, "margin"),
        (lambda: Equivalent(1, 0), ValueError, "low <= high"),
        (lambda: Above(math.nan), ValueError, "finite"),
        (lambda: Below(math.inf), ValueError, "finite"),
        (lambda: AllOf(()), ValueError, "at least one"),
        (lambda: AllOf((Above(0),), names=("a", "b")), ValueError, "2 names"),
        (lambda: all_of([]), ValueError, "at least one"),
        (lambda: verdict([None], AllOf((Above(0), Above(1)))), ValueError, "1 estimates for 2 parts"),
        (lambda: verdict(interval(0, 1), 0.5), TypeError, "expectation"),  # type: ignore
        (lambda: verdict((0, 1), Above(0)), TypeError, "tuple"),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


finite = st.floats(-100, 100)


@given(finite, st.floats(0, 10), finite, finite)
def test_verdict_is_monotone_in_the_threshold(low, width, one, other):
    assume(one < other)
    order = {HOLDS: 2, INCONCLUSIVE: 1, FAILS: 0}
    estimate = interval(low, low + width)
    above = [order[verdict(estimate, Above(t)).outcome] for t in (one, other)]
    below = [order[verdict(estimate, Below(t)).outcome] for t in (one, other)]
    assert above[0] >= above[1]
    assert below[0] <= below[1]


@given(finite, st.floats(0.001, 10), finite)
def test_a_claim_and_its_opposite_never_both_hold(low, width, threshold):
    estimate = interval(low, low + width)
    above, below = (verdict(estimate, claim(threshold)).outcome for claim in (Above, Below))
    assert {above, below} in ({HOLDS, FAILS}, {INCONCLUSIVE}, {FAILS, INCONCLUSIVE})


def test_interval_in_bounds_is_tost_at_half_the_error():
    values = np.random.default_rng(0).normal(0.2, 1, size=12)
    for margin in np.linspace(0.3, 2, 30):
        p = max(
            stats.ttest_1samp(values, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(values, margin, alternative="less").pvalue,
        )
        holds = verdict(mean_estimate(values, level=0.9), Equivalent(-margin, margin)).outcome is HOLDS
        assert holds == (p <= 0.05)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04, made monotone.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]).shape == (0,)
    with_nan = holm([np.nan, 0.02])
    assert math.isnan(with_nan[0])
    assert with_nan[1] == pytest.approx(0.04)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])


def t_family(shifts, seed=0, n=8):
    rng = np.random.default_rng(seed)
    return [rng.normal(shift, 1, size=n) for shift in shifts]


@pytest.mark.parametrize("seed", range(25))
def test_holm_verdicts_equal_holm_on_p_values(seed):
    samples = t_family([0, 0.7, 0.9, 1.2, 1.6], seed)
    found = holm_verdicts([lambda level, s=s: mean_estimate(s, level=level) for s in samples], Above(0))
    # One-sided p values against one half of the error, the other half being that of the other direction.
    greater = holm([stats.ttest_1samp(s, 0, alternative="greater").pvalue for s in samples]) <= 0.025
    less = holm([stats.ttest_1samp(s, 0, alternative="less").pvalue for s in samples]) <= 0.025
    expected = [HOLDS if up else FAILS if down else INCONCLUSIVE for up, down in zip(greater, less, strict=True)]
    assert [each.outcome for each in found] == expected


def test_holm_steps_down_and_is_stricter_than_no_correction():
    # t intervals by their one-sided p value.
    def at(p, level):
        t = stats.t.ppf(1 - p, 9)
        half = stats.t.ppf((1 + level) / 2, 9)
        return Interval(t, t - half, t + half, 10, level)

    def outcomes(*ps):
        return [v.outcome for v in holm_verdicts([partial(at, p) for p in ps], Above(0))]

    assert outcomes(0.012) == [HOLDS]
    assert outcomes(0.012, 0.2, 0.001) == [HOLDS, INCONCLUSIVE, HOLDS]  # after one step 0.012 <= 0.025 / 2
    assert outcomes(0.012, 0.2, 0.010) == [INCONCLUSIVE] * 3  # 0.010 > 0.025 / 3: nothing starts
    assert outcomes(0.9999, 0.012) == [FAILS, HOLDS]
    assert outcomes(0.98, 0.001) == [INCONCLUSIVE, HOLDS]  # failing is not helped by what holds


def test_holm_verdicts_report_the_interval_that_decided():
    samples = t_family([3.0, 0.0])
    found = holm_verdicts(
        [lambda level, s=s: paired_difference(s, np.zeros(8), level=level) for s in samples], Above(0)
    )
    assert found[0].interval == pytest.approx(stats.ttest_1samp(samples[0], 0).confidence_interval(0.975))
    assert found[1].interval == pytest.approx(stats.ttest_1samp(samples[1], 0).confidence_interval(0.975))
    assert "97.5 %" in found[0].reason
    assert "Holm" in found[0].reason


def test_a_family_may_ask_something_else_of_each_estimate():
    sure = partial(mean_estimate, np.array([5.0, 5.1, 4.9, 5.0]))
    estimates = [lambda level: sure(level=level)] * 3
    found = holm_verdicts(estimates, [Above(4), Below(4), Equivalent(0, 4)])
    assert [each.outcome for each in found] == [HOLDS, FAILS, FAILS]
    with pytest.raises(ValueError, match="2 expectations for 3 estimates"):
        holm_verdicts(estimates, [Above(4), Below(4)])


def test_what_was_not_run_keeps_its_place_in_the_family():
    nothing = lambda level: None  # noqa: E731
    single = lambda level: Interval(5.0, math.nan, math.nan, 1, level)  # noqa: E731
    strong = partial(mean_estimate, np.array([5.0, 5.1, 4.9]))
    found = holm_verdicts([nothing, lambda level: strong(level=level), single], Above(0))
    assert [each.outcome for each in found] == [NOT_RUN, HOLDS, INCONCLUSIVE]
    assert "98.3333 %" in found[1].reason
    assert holm_verdicts([], Above(0)) == []


def test_intervals_that_are_not_nested_are_refused():
    def wild(level):
        return interval(1, 2) if level > 0.96 else interval(-2, -1)

    with pytest.raises(ValueError, match="not nested"):
        holm_verdicts([wild, lambda level: interval(-2, -1)], Above(0))


def test_holm_verdicts_err_rarely():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        samples = rng.normal(size=(4, 6))
        found = holm_verdicts([lambda level, s=s: mean_estimate(s, level=level) for s in samples], Above(0))
        wrong += any(each.outcome is HOLDS for each in found)
    assert wrong / 300 < 0.05  # 0.025 expected; without correction it would be about 0.1
