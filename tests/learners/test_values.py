"""Distributions over a support against loops in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.learners.values import Categorical, Scalar, TwoHot

LOW, HIGH, BINS = -2.0, 3.0, 11


def shared_out(value: float, weight: float, target: np.ndarray) -> None:
    """Bellemare et al. 2017, algorithm 1: one atom's weight to the bins below and above."""
    place = (np.clip(value, LOW, HIGH) - LOW) / ((HIGH - LOW) / (BINS - 1))
    below, above = int(np.floor(place)), int(np.ceil(place))
    if below == above:
        target[below] += weight
    else:
        target[below] += weight * (above - place)
        target[above] += weight * (place - below)


def softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", [TwoHot, Categorical])
def test_targets_are_those_of_the_loop(kind):
    rng = np.random.default_rng(0)
    chosen, following = rng.normal(size=(2, 12, BINS))
    rewards, discounts = rng.normal(size=12) * 2, np.where(rng.random(12) < 0.3, 0.0, 0.9)
    rewards[0], discounts[0] = 0.5, 0.0  # right on a bin
    rewards[1] = 9.0  # beyond the support
    values, centres = kind(LOW, HIGH, BINS), np.linspace(LOW, HIGH, BINS)
    as_jax = [jnp.asarray(x, jnp.float32) for x in (chosen, rewards, discounts, following)]
    losses, errors = values.loss(*as_jax)
    for row in range(12):
        target, shares = np.zeros(BINS), softmax(following[row])
        if kind is TwoHot:
            number = rewards[row] + discounts[row] * shares @ centres
            shared_out(number, 1.0, target)
        else:
            for atom, share in zip(centres, shares, strict=True):
                shared_out(rewards[row] + discounts[row] * atom, share, target)
            number = target @ centres
        assert target.sum() == pytest.approx(1.0)
        assert float(losses[row]) == pytest.approx(-target @ np.log(softmax(chosen[row])), rel=1e-5)
        assert float(errors[row]) == pytest.approx(number - softmax(chosen[row]) @ centres, abs=1e-5)
    gradient = jax.grad(lambda f: values.loss(*as_jax[:3], f)[0].sum())(as_jax[3])
    np.testing.assert_array_equal(gradient, 0)


def test_expected_values_are_means_over_the_support():
    rng = np.random.default_rng(1)
    values = TwoHot(LOW, HIGH, BINS)
    outputs = rng.normal(size=(4, 3 * BINS))
    found = values.expected(values.by_action(jnp.asarray(outputs, jnp.float32)))
    expected = softmax(outputs.reshape(4, 3, BINS)) @ np.linspace(LOW, HIGH, BINS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # sums of terms up to 3 that cancel
    assert values.outputs(3) == 33
    assert Scalar().outputs(3) == 3


@pytest.mark.parametrize(
    "make", [lambda: Scalar(0.0), lambda: Scalar(scale=0.0), lambda: TwoHot(1.0, 1.0), lambda: Categorical(0.0, 1.0, 1)]
)
def test_supports_that_cannot_be_are_refused(make):
    with pytest.raises(ValueError, match=r"must be positive|from low to high|at least 2 bins"):
        make()


def test_two_hot_encodes_and_decodes_numbers_on_the_support():
    values = TwoHot(-1.0, 100.0, 51)
    centres = np.asarray(values.centres)
    inside = np.concatenate([np.random.default_rng(0).uniform(-1, 100, 500), centres]).astype(np.float32)
    shares = np.asarray(values.two_hot(inside), np.float64)
    np.testing.assert_allclose(shares.sum(axis=-1), 1, atol=1e-6)
    assert ((shares > 0).sum(axis=-1) <= 2).all()
    np.testing.assert_allclose(shares @ centres, inside, atol=2e-5)
    # A number that is a bin has all its mass there.
    np.testing.assert_allclose(values.two_hot(centres), np.eye(51), atol=51 * 2**-23)  # float32 places up to 50
    exact = TwoHot(-2.0, 3.0, 11)
    np.testing.assert_array_equal(exact.two_hot(exact.centres), np.eye(11))
    np.testing.assert_array_equal(exact.two_hot(np.array([-9.0, 9.0])), np.eye(11)[[0, 10]])


def test_regression_is_each_form_s_own_loss_on_given_numbers():
    rng = np.random.default_rng(2)
    outputs, targets = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    scalar = Scalar(bound=0.1).regression(jnp.asarray(outputs), jnp.asarray(targets))  # the bound is of TD errors
    np.testing.assert_allclose(scalar, (outputs - targets) ** 2, rtol=1e-5)
    values = TwoHot(LOW, HIGH, BINS)
    logits = rng.normal(size=(4, 3, BINS))
    losses = np.asarray(values.regression(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)))
    for row, action in np.ndindex(4, 3):
        target = np.zeros(BINS)
        shared_out(targets[row, action], 1.0, target)
        assert losses[row, action] == pytest.approx(-target @ np.log(softmax(logits[row, action])), rel=1e-5)


@pytest.mark.parametrize(("bound", "scale"), [(None, 0.5), (None, 1.0), (1.0, 0.5), (0.5, 1.0)])
def test_scalars_are_fitted_by_so_many_times_the_squared_error_up_to_the_bound(bound, scale):
    chosen, rewards = jnp.asarray([0.0, 0.0, 0.0]), jnp.asarray([0.25, -0.5, 3.0])
    losses, errors = Scalar(bound, scale).loss(chosen, rewards, jnp.zeros(3), chosen)
    np.testing.assert_allclose(errors, rewards)
    limit = np.inf if bound is None else bound
    for loss, error in zip(losses, np.abs(np.asarray(rewards)), strict=True):
        expected = error**2 if error <= limit else limit * (2 * error - limit)
        assert float(loss) == pytest.approx(scale * expected)
