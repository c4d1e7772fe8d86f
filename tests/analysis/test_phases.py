"""Phases of a series of ranks, from both sides of every threshold."""

import math

import numpy as np
import pytest

from neoteny.analysis import detect_phases
from neoteny.analysis.phases import smoothed

# fall from 40 to 20, rise to 40, collapse to 10; held twice, so that the median keeps the turning points
FULL = np.array([40, 30, 20, 20, 30, 40, 40, 10, 10], float)


def test_the_median_takes_out_one_outlier_and_keeps_the_ends():
    np.testing.assert_array_equal(smoothed([5, 1, 9, 2, 3]), [5, 5, 2, 3, 3])
    np.testing.assert_array_equal(smoothed([2, 1]), [2, 1])
    with pytest.raises(ValueError, match="vector"):
        smoothed(np.zeros((2, 2)))


def test_fall_rise_and_collapse_are_found_where_they_are():
    found = detect_phases(FULL, np.arange(9.0), 50)
    assert (found.bottom, found.top, found.collapse) == (3, 5, True)
    assert found.all_three
    assert found.together == pytest.approx(1)
    assert detect_phases(FULL, -np.arange(9.0), 50).together == pytest.approx(-1)


@pytest.mark.parametrize(("low", "bottom"), [(36.1, None), (35.9, 2)])
def test_a_fall_is_a_tenth_of_the_first_rank(low, bottom):
    rank = [40, low, low, 40, 40]
    assert detect_phases(rank, range(5), 50).bottom == bottom


@pytest.mark.parametrize(("high", "top"), [(24.9, None), (25.1, 3)])
def test_a_rise_is_a_tenth_of_the_largest_possible_rank(high, top):
    rank = [40, 20, 20, high, high]
    assert detect_phases(rank, range(5), 50).top == top


@pytest.mark.parametrize(("last", "collapse"), [(32.1, False), (31.9, True)])
def test_a_collapse_ends_a_fifth_below_the_top(last, collapse):
    rank = [40, 20, 20, 40, 40, last, last]
    assert detect_phases(rank, range(7), 50).collapse is collapse


def test_thresholds_are_parameters():
    rank = [40, 38, 38, 39, 39, 38, 38]
    assert not detect_phases(rank, range(7), 50).all_three
    loose = {"least_fall": 0.01, "least_rise": 0.01, "least_collapse": 0.01}
    assert detect_phases(rank, range(7), 50, **loose).all_three


def test_a_series_is_judged_up_to_its_first_missing_value():
    rank = FULL.copy()
    rank[7:] = math.nan
    found = detect_phases(rank, np.arange(9.0), 50)
    assert (found.bottom, found.top, found.collapse) == (3, 5, False)
    assert detect_phases([math.nan, 1], [0, 0], 50).bottom is None


def test_a_series_that_only_falls_has_no_rise():
    found = detect_phases([40, 30, 20, 10], range(4), 50)
    assert found.bottom == 3
    assert found.top is None
    assert math.isnan(found.together)
    with pytest.raises(ValueError, match="one length"):
        detect_phases([1, 2], [1], 50)
