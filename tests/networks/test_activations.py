import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from neoteny.networks import (
    Activation,
    crelu,
    elu,
    gelu,
    identity,
    leaky_relu,
    output_size,
    relu,
    silu,
    tanh,
)

X = np.concatenate([np.linspace(-6, 6, 101), [-30.0, 30.0]])[None]
REFERENCES = {
    relu: lambda x: np.maximum(x, 0),
    tanh: np.tanh,
    elu: lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    gelu: lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    silu: lambda x: x / (1 + np.exp(-x)),
    leaky_relu: lambda x: np.where(x >= 0, x, 0.01 * x),
    identity: lambda x: x,
    crelu: lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], -1),
}


@pytest.mark.parametrize("function", REFERENCES, ids=lambda f: f.__name__)
def test_values(function):
    with jax.enable_x64(True):
        layer = Activation(function)
        y, same = layer(jnp.asarray(X))
        np.testing.assert_allclose(y, REFERENCES[function](X), rtol=1e-12, atol=1e-12)
    assert same is layer
    assert y.shape[-1] == output_size(function, X.shape[-1])


@pytest.mark.parametrize("function", REFERENCES, ids=lambda f: f.__name__)
def test_gradients_are_finite_everywhere(function):
    x = jnp.asarray([[-1e30, -100.0, 0.0, 100.0, 1e30]])
    assert np.isfinite(jax.grad(lambda x: jnp.sum(function(x) * 1e-3))(x)).all()


def test_gelu_in_single_precision():
    x = np.linspace(-12, 12, 2001, dtype=np.float32)
    exact = REFERENCES[gelu](x.astype(np.float64))
    assert np.max(np.abs(gelu(jnp.asarray(x)) - exact) / np.maximum(1, np.abs(x))) < 2e-7


def test_derivative_of_relu_at_zero_is_zero():
    assert jax.grad(lambda x: relu(x))(0.0) == 0


def test_sizes_and_equality():
    assert output_size(crelu, 5) == 10
    assert output_size(relu, 5) == 5
    assert Activation(relu) == Activation(relu)
    assert jax.tree.structure(Activation(relu)) != jax.tree.structure(Activation(tanh))
