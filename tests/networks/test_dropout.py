import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Dropout

KEY = jax.random.key(0)


def test_training_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.full((100, 1000), 3.0)
    y, _ = Dropout(0.2)(x, train=True, key=KEY)
    np.testing.assert_allclose(np.unique(y), [0, 3 / 0.8])
    assert np.mean(np.asarray(y) == 0) == pytest.approx(0.2, abs=0.01)
    # Entries are dropped one by one, not by rows or columns.
    assert 0 < np.mean(np.asarray(y[0]) == 0) < 1
    assert 0 < np.mean(np.asarray(y[:, 0]) == 0) < 1


def test_evaluation_and_rate_zero_change_nothing():
    x = jnp.ones((2, 3))
    assert Dropout(0.5)(x, key=KEY)[0] is x
    assert Dropout(0.0)(x, train=True)[0] is x


def test_keys_decide():
    x, layer = jnp.ones((10, 10)), Dropout(0.5)
    a, b, c = (layer(x, train=True, key=key)[0] for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_errors():
    with pytest.raises(ValueError, match="needs a key"):
        Dropout(0.5)(jnp.ones((2, 3)), train=True)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            Dropout(rate)
