"""Pareto fronts against the definition, and bootstrapped membership."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoteny.analysis import front_membership, pareto_front


def test_front_by_hand():
    points = [(3, 5), (1, 1), (2, 4), (2, 3), (4, 5), (1, 1), (9, 9), (0, np.nan), (np.nan, 99)]
    # (4, 5) costs more than (3, 5) for the same score; (2, 3) scores less than (2, 4) for the same cost.
    assert pareto_front(points).tolist() == [1, 5, 2, 0, 6]
    assert pareto_front([(1, 2)]).tolist() == [0]
    assert pareto_front(np.empty((0, 2))).tolist() == []
    with pytest.raises(ValueError, match="cost and score"):
        pareto_front([1, 2, 3])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    for index, (cost, score) in enumerate(points):
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        assert (index in front) != beaten
    costs = [points[index][0] for index in front]
    assert costs == sorted(costs)


def test_membership_is_sure_where_methods_are_far_apart():
    costs = np.array([[1.0, 1.1, 0.9], [2.0, 2.1, 2.2], [3.0, 3.0, 3.0], [1.5, 1.5, 1.5]])
    scores = np.array([[0.1, 0.2, 0.1], [0.8, 0.9, 0.8], [0.5, 0.5, 0.4], [np.nan, 1.0, 1.0]])
    found = front_membership(costs, scores, rng=np.random.default_rng(0), resamples=100)
    assert found.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_membership_resamples_seeds_in_pairs():
    # Method 1 scores 0.01 more than method 0 in every seed, at a higher cost; unpaired it would not always.
    scores = np.random.default_rng(0).normal(size=8)
    found = front_membership(
        [np.ones(8), np.full(8, 2.0)], [scores, scores + 0.01], rng=np.random.default_rng(0), resamples=200
    )
    assert found.tolist() == [1.0, 1.0]
    again = [
        front_membership(np.ones((2, 5)), np.random.default_rng(3).normal(size=(2, 5)), rng=np.random.default_rng(s))
        for s in (1, 1, 2)
    ]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])
    assert again[0].sum() == pytest.approx(1)


def test_membership_mistakes_are_named():
    with pytest.raises(ValueError, match="methods, seeds"):
        front_membership(np.ones((2, 3)), np.ones((2, 2)), rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match="Generator"):
        front_membership(np.ones((2, 3)), np.ones((2, 3)), rng=1)  # type: ignore
