"""Activations as module-level functions, the layer that applies one, and what one does to a layer's size."""

from __future__ import annotations

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from neoteny.networks.network import Layer

ActivationFunction = Callable[[Array], Array]
"""Maps (..., size) to (..., size'), usually entry by entry; a module-level function: makers compare it."""


def relu(x: Array) -> Array:
    """max(x, 0); the derivative at 0 is 0."""
    return jax.nn.relu(x)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent."""
    return jnp.tanh(x)


def elu(x: Array) -> Array:
    """x if x > 0, else exp(x) - 1 (Clevert et al. 2016, alpha 1)."""
    return jax.nn.elu(x)


def gelu(x: Array) -> Array:
    """x Phi(x) with the exact normal distribution function, not by tanh (Hendrycks & Gimpel 2016).

    Phi by erf, as PyTorch has it: in float32 exact to 1e-7 of x. JAX's own takes erfc, whose exponential and two
    branches cost a block of a sequence network a sixth of its update on a CPU (benchmarks/recurrence.md).
    """
    return 0.5 * x * (1 + jax.scipy.special.erf(x * math.sqrt(0.5)))


def silu(x: Array) -> Array:
    """x sigmoid(x), also called swish (Elfwing et al. 2018)."""
    return jax.nn.silu(x)


def leaky_relu(x: Array) -> Array:
    """x if x >= 0, else 0.01 x (Maas et al. 2013)."""
    return jax.nn.leaky_relu(x, 0.01)


def identity(x: Array) -> Array:
    """x."""
    return x


def crelu(x: Array) -> Array:
    """(relu(x), relu(-x)) along the last axis, which doubles (Shang et al. 2016): no unit is ever silent."""
    return jnp.concatenate((relu(x), relu(-x)), axis=-1)


class Activation(Layer):
    """`function` applied to the batch: (batch, ..., size) to (batch, ..., `output_size(function, size)`)."""

    function: ActivationFunction = eqx.field(static=True)

    def __call__(self, x, *, train=False, key=None):
        return self.function(x), self


def output_size(activation: ActivationFunction, size: int) -> int:
    """What `activation` makes of a last axis of `size`: what the next layer must expect (CReLU: 2 size)."""
    return jax.eval_shape(activation, jax.ShapeDtypeStruct((1, size), jnp.float32)).shape[-1]


def check_activation(activation: ActivationFunction) -> ActivationFunction:
    """`activation`, or a TypeError if it is not a function of an array."""
    if isinstance(activation, Layer) or not callable(activation):
        raise TypeError(f"activation must be a function of an array, such as activations.relu; got {activation!r}")
    return activation
