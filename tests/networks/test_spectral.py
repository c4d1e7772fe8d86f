"""Spectral normalisation against singular values."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Dense, SpectralNorm, mlp, split_trainable, with_spectral_norm

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(9), (40, 30))


def layer() -> SpectralNorm:
    return SpectralNorm(Dense(30, 20, key=KEY), key=jax.random.key(1))


def effective(spectral: SpectralNorm) -> np.ndarray:
    """The matrix the layer multiplies by."""
    bias = spectral(jnp.zeros((1, 30)))[0]
    return np.asarray(spectral(jnp.eye(30))[0] - bias).T


def test_the_largest_singular_value_is_one_once_power_iteration_has_converged():
    spectral = layer()
    for _ in range(300):
        _, spectral = spectral(X, train=True)
    assert np.linalg.svd(effective(spectral), compute_uv=False)[0] == pytest.approx(1, abs=1e-5)
    assert np.linalg.svd(spectral.dense.weight, compute_uv=False)[0] > 1.5


def test_it_begins_near_one_and_follows_the_weight():
    spectral = layer()
    assert np.linalg.svd(effective(spectral), compute_uv=False)[0] == pytest.approx(1, abs=0.05)
    larger = eqx.tree_at(lambda s: s.dense.weight, spectral, 7 * spectral.dense.weight)
    np.testing.assert_allclose(effective(larger), effective(spectral), rtol=1e-4, atol=1e-6)


def test_training_moves_the_vector_and_evaluation_does_not():
    spectral = layer()
    _, trained = spectral(X, train=True)
    _, evaluated = spectral(X)
    np.testing.assert_array_equal(evaluated.left.value, spectral.left.value)
    assert np.abs(trained.left.value - spectral.left.value).max() > 0
    np.testing.assert_allclose(jnp.linalg.norm(trained.left.value), 1, rtol=1e-6)


def test_the_gradient_goes_through_the_norm_and_the_vector_is_not_trained():
    spectral = layer()
    parameters, rest = split_trainable(spectral)
    assert len(jax.tree.leaves(parameters)) == 2  # weight and bias

    def loss(parameters):
        return jnp.sum(jnp.sin(eqx.combine(parameters, rest)(X)[0]))

    gradient = jax.grad(loss)(parameters).dense.weight
    # The output does not change along the weight itself, so neither does any loss.
    along = (
        jnp.sum(gradient * spectral.dense.weight) / jnp.linalg.norm(gradient) / jnp.linalg.norm(spectral.dense.weight)
    )
    assert abs(float(along)) < 1e-4
    assert float(jnp.linalg.norm(gradient)) > 0.1


def test_a_zero_weight_stays_zero():
    spectral = eqx.tree_at(lambda s: s.dense.weight, layer(), jnp.zeros((20, 30)))
    y, after = spectral(X, train=True)
    assert np.isfinite(y).all()
    assert np.isfinite(after.left.value).all()


def test_makers_get_it_where_they_are_told_and_keep_their_draws():
    plain, normed = mlp(30, [8, 8], 3), with_spectral_norm(mlp(30, [8, 8], 3), ("hidden1",))
    one, two = plain(KEY), normed(KEY)
    (spectral,) = [item for item in two.stage("hidden1").layers if isinstance(item, SpectralNorm)]
    np.testing.assert_array_equal(spectral.dense.weight, one.stage("hidden1").layers[1].weight)
    for stage in ("hidden2", "head"):
        assert eqx.tree_equal(one.stage(stage), two.stage(stage))
    assert normed == with_spectral_norm(mlp(30, [8, 8], 3), ["hidden1"])
    bare = with_spectral_norm(mlp(30, [8], 3), ("head",))(KEY)
    assert isinstance(bare.stage("head"), SpectralNorm)


def test_what_cannot_be_normalised_is_named():
    with pytest.raises(KeyError, match="hidden7"):
        with_spectral_norm(mlp(30, [8], 3), ("hidden7",))(KEY)
    with pytest.raises(ValueError, match="'body' has no dense layer"):
        with_spectral_norm(lambda key: eqx.nn.Linear(3, 2, key=key), ("body",))(KEY)
    with pytest.raises(ValueError, match="steps"):
        with_spectral_norm(mlp(30, [8], 3), ("head",), steps=0)
