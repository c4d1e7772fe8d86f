import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Conv2d, Dense, he, he_uniform, lecun, named_key, orthogonal, torch_uniform, zeros
from neoteny.networks.initializers import Constant, Initializer, Normal, Orthogonal, Uniform

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("initializer", "variance", "kurtosis"),
    [
        (he, 2 / 50, 3.0),
        (he_uniform, 2 / 50, 1.8),
        (lecun, 1 / 50, 3.0),
        (torch_uniform, 1 / (3 * 50), 1.8),
    ],
)
def test_moments(initializer, variance, kurtosis):
    # fan_in differs from both sizes of the array, so taking either of them instead would show.
    draw = np.asarray(initializer.weight(KEY, (300, 400), 50), np.float64)
    assert draw.mean() == pytest.approx(0, abs=4 * math.sqrt(variance / draw.size))
    assert draw.var() == pytest.approx(variance, rel=0.02)
    assert (draw**4).mean() / draw.var() ** 2 == pytest.approx(kurtosis, rel=0.03)


def test_torch_uniform_reaches_its_bound_in_weight_and_bias():
    layer = Dense(25, 4000, key=KEY, initializer=torch_uniform)
    assert layer.bias is not None
    for array in (layer.weight, layer.bias):
        assert 0.99 * 0.2 < float(jnp.abs(array).max()) <= 0.2 + 1e-7
        assert float(array.min()) < -0.19
    assert not np.array_equal(layer.weight[0], layer.bias)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 1, 4), (2, 2, 1, 6)])
def test_orthogonal_is_orthogonal(shape):
    matrix = np.asarray(Orthogonal(3.0)(KEY, shape, 1), np.float64).reshape(-1, shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, 9 * np.eye(len(gram)), atol=1e-5)


def test_orthogonal_is_haar_distributed():
    # Without the sign correction LAPACK's Q has a diagonal of one sign.
    draws = jax.jit(jax.vmap(lambda key: Orthogonal()(key, (3, 3), 3)))(jax.random.split(KEY, 2000))
    assert np.abs(np.asarray(draws).mean(0)).max() < 5 / math.sqrt(3 * 2000)


def test_zeros():
    layer = Dense(3, 4, key=KEY, initializer=zeros)
    assert not np.any(layer.weight)
    assert not np.any(layer.bias)


def test_layers_tell_their_fan_in():
    def fan_ins(key, shape, fan_in):
        return jnp.full(shape, fan_in, jnp.float32)

    for layer, fan_in in (
        (Dense(4, 5, key=KEY, initializer=Initializer(fan_ins, fan_ins)), 4),
        (Conv2d(2, 7, (3, 5), key=KEY, initializer=Initializer(fan_ins, fan_ins)), 2 * 3 * 5),
    ):
        assert np.unique(layer.weight) == fan_in
        assert np.unique(layer.bias) == fan_in


@pytest.mark.parametrize("draw", [Normal(2.0), Uniform(2.0), Orthogonal(2.0), Constant(2.0)])
def test_draws_are_strongly_typed_float32_and_hashable_by_value(draw):
    array = draw(KEY, (4, 5), 4)
    assert array.dtype == jnp.float32
    assert not array.weak_type
    assert array.shape == (4, 5)
    assert hash(Initializer(draw)) == hash(Initializer(type(draw)(2.0)))
    assert Initializer(draw) == Initializer(type(draw)(2.0)) != Initializer(type(draw)(1.0))


def test_layers_draw_weight_and_bias_by_name():
    layer = Dense(4, 4, key=KEY, initializer=Initializer(Normal(), Normal()))
    np.testing.assert_array_equal(layer.weight, Normal()(named_key(KEY, "weight"), (4, 4), 4).T)
    np.testing.assert_array_equal(layer.bias, Normal()(named_key(KEY, "bias"), (4,), 4))
    assert Dense(4, 4, key=KEY, use_bias=False).bias is None
    assert orthogonal.weight == Orthogonal(1.0)
