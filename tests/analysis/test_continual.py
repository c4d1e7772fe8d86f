"""Continual World metrics against examples worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neoteny.analysis import (
    average_performance,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    forward_transfer_by_task,
    seed_bootstrap,
)
from neoteny.analysis.continual import window

# Two tasks, three evaluations a phase, one seed.
HAND = np.array([[[0.0, 0.3, 0.9, 0.6, 0.3, 0.0], [0.1, 0.1, 0.1, 0.4, 0.5, 0.6]]])


def test_hand_worked_example():
    # The window is a whole phase, three evaluations, because five are not there.
    assert window(HAND) == 3
    assert average_performance(HAND) == pytest.approx([(0.3 + 0.5) / 2])
    assert forgetting_by_task(HAND) == pytest.approx(np.array([[0.4 - 0.3, 0.0]]))
    assert forgetting(HAND) == pytest.approx([0.05])
    baseline = np.array([[[0.0, 0.1, 0.2], [0.5, 0.5, 0.5]]])
    assert forward_transfer_by_task(HAND, baseline) == pytest.approx(np.array([[0.3 / 0.9, 0.0]]))
    assert forward_transfer(HAND, baseline) == pytest.approx([1 / 6])


def test_the_last_evaluations_are_averaged():
    assert average_performance(HAND, last=1) == pytest.approx([0.3])
    assert forgetting_by_task(HAND, last=1) == pytest.approx(np.array([[0.9, 0.0]]))
    assert forgetting_by_task(HAND, last=2) == pytest.approx(np.array([[0.6 - 0.15, 0.0]]))


def test_five_evaluations_are_the_default():
    curves = np.zeros((1, 2, 16))
    curves[0, 0, 3:8] = 1.0  # the last five of its own phase, and none of the evaluation before
    curves[0, 0, 2] = 50.0
    curves[0, 1, 11:] = 0.5
    curves[0, 1, 10] = 50.0
    assert forgetting_by_task(curves) == pytest.approx(np.array([[1.0, 0.0]]))
    assert average_performance(curves) == pytest.approx([0.25])


def test_area_covers_exactly_the_own_phase():
    curves = np.full((1, 3, 6), np.nan)  # anything outside its own phase would give NaN
    for task in range(3):
        curves[0, task, 2 * task : 2 * task + 2] = [0.2, 0.2 + 0.2 * task]
    found = forward_transfer_by_task(curves, np.zeros((2, 3, 2)))
    assert found == pytest.approx(np.array([[0.2, 0.3, 0.4]]))


def test_equal_to_baseline_is_zero_and_perfect_is_one():
    baseline = np.random.default_rng(0).uniform(0, 0.9, size=(4, 3, 5))
    own = np.zeros((4, 3, 15))
    for task in range(3):
        own[:, task, 5 * task : 5 * task + 5] = baseline[:, task]
    assert forward_transfer_by_task(own, baseline).mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert forward_transfer(np.ones((2, 3, 15)), baseline) == pytest.approx([1.0, 1.0])


def test_mean_over_seeds_is_the_ratio_of_seed_means():
    rng = np.random.default_rng(1)
    curves, baseline = rng.uniform(size=(5, 2, 8)), rng.uniform(size=(7, 2, 4))
    area = np.array([curves[:, 0, :4].mean(), curves[:, 1, 4:].mean()])
    base = baseline.mean(axis=(0, 2))
    assert forward_transfer(curves, baseline).mean() == pytest.approx(((area - base) / (1 - base)).mean())
    # Averaging ratios over baseline seeds is another number, and not what is wanted.
    ratios = [(area - b) / (1 - b) for b in baseline.mean(axis=2)]
    assert forward_transfer(curves, baseline).mean() != pytest.approx(np.mean(ratios), rel=1e-3)


def test_saturated_baseline_is_nan_and_left_out():
    curves = np.full((2, 2, 4), 0.5)
    baseline = np.stack([np.ones((3, 2)), np.zeros((3, 2))], axis=1)
    found = forward_transfer_by_task(curves, baseline)
    assert np.isnan(found[:, 0]).all()
    assert found[:, 1] == pytest.approx([0.5, 0.5])
    assert forward_transfer(curves, baseline) == pytest.approx([0.5, 0.5])
    assert np.isnan(forward_transfer(curves, np.ones((3, 2, 2)))).all()


def test_missing_curves_are_not_left_out():
    curves = np.full((2, 2, 4), 0.5)
    curves[0, 0, 1] = np.nan
    found = forward_transfer(curves, np.zeros((1, 2, 2)))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(0.5)
    assert np.isnan(forgetting(curves)[0])
    baseline = np.zeros((2, 2, 2))
    baseline[1, 0, 0] = np.nan
    assert np.isnan(forward_transfer(np.full((2, 2, 4), 0.5), baseline)).all()


def test_transfer_goes_far_below_minus_one():
    curves, baseline = np.zeros((1, 1, 2)), np.full((1, 1, 2), 0.9)
    assert forward_transfer(curves, baseline) == pytest.approx([-9.0])


def test_forgetting_of_a_dropped_task_is_its_drop():
    curves = np.zeros((1, 4, 20))
    curves[0, 1, 5:10] = 0.8
    curves[0, 1, 10:] = 0.1
    assert forgetting_by_task(curves) == pytest.approx(np.array([[0, 0.7, 0, 0]]))
    assert forgetting(curves) == pytest.approx([0.175])


@given(st.integers(1, 4), st.integers(1, 7), st.floats(0, 1))
def test_constant_curves_forget_nothing(tasks, phase, level):
    curves = np.full((2, tasks, tasks * phase), level)
    assert np.allclose(forgetting(curves), 0, atol=1e-12)
    assert np.allclose(average_performance(curves), level)


@given(arrays(np.float64, (2, 3, 12), elements=st.floats(0, 1)))
def test_the_last_task_is_never_forgotten(curves):
    assert np.allclose(forgetting_by_task(curves)[:, -1], 0, atol=1e-12)


def test_interval_with_the_baseline_resampled_on_its_own():
    rng = np.random.default_rng(0)
    curves, baseline = rng.uniform(size=(6, 2, 8)), rng.uniform(size=(9, 2, 4))
    found = seed_bootstrap(
        [curves, baseline], lambda c, b: forward_transfer(c, b).mean(), rng=rng, resamples=300, level=0.9
    )
    assert found.low < found.value < found.high
    assert found.n == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_performance(np.ones((2, 3, 7))), "step 0"),
        (lambda: average_performance(np.ones((2, 3))), "seeds, tasks, evaluations"),
        (lambda: forgetting(np.ones((0, 3, 3))), "non-empty"),
        (lambda: forgetting(np.ones((1, 3, 3)), last=0), "at least 1"),
        (lambda: forward_transfer(np.ones((1, 3, 3)), np.ones((1, 2, 1))), "3 tasks and the baseline has 2"),
        (lambda: forward_transfer(np.ones((1, 3, 3)), np.ones((3, 1))), "baseline must be"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
