import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Dense, Flatten

KEY = jax.random.key(0)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("middle", [(), (3,), (2, 5)])
def test_values(use_bias, middle, waves):
    layer = Dense(4, 6, key=KEY, initializer=waves, use_bias=use_bias)
    x = np.random.default_rng(0).normal(size=(7, *middle, 4))
    y, same = layer(jnp.asarray(x, jnp.float32))
    bias = np.asarray(layer.bias, np.float64) if use_bias else 0
    np.testing.assert_allclose(y, x @ np.asarray(layer.weight, np.float64).T + bias, atol=1e-6)
    assert same is layer


def test_flatten_is_row_major_and_idempotent():
    x = jnp.arange(24.0).reshape(2, 3, 2, 2)
    y, _ = Flatten()(x)
    np.testing.assert_array_equal(y, np.arange(24.0).reshape(2, 12))
    np.testing.assert_array_equal(Flatten()(y)[0], y)


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 4, 3)])
def test_wrong_input(shape, waves):
    with pytest.raises(ValueError, match="in_size=4"):
        Dense(4, 2, key=KEY, initializer=waves)(jnp.zeros(shape))


@pytest.mark.parametrize("bad", [0, -1, 2.0, "3", True, None])
def test_bad_sizes(bad):
    with pytest.raises(ValueError, match="in_size must be a positive whole number"):
        Dense(bad, 2, key=KEY)
    with pytest.raises(ValueError, match="out_size must be a positive whole number"):
        Dense(2, bad, key=KEY)
