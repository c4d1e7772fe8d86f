import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Initializer


def _waves(key, shape, fan_in):
    phase = (jax.random.key_data(key)[-1] % 4096).astype(jnp.float32)
    wave = jnp.sin(phase + 1.7 * jnp.arange(np.prod(shape), dtype=jnp.float32))
    return np.float32(2 / np.sqrt(fan_in)) * wave.reshape(shape)


@pytest.fixture
def waves():
    """Weights and biases that depend on the key, of the variance of `he`, without compiling random draws."""
    return Initializer(_waves, _waves)
