"""Initialisers: how a layer's weight and bias are drawn, as values that compare and hash by what they are."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

Draw = Callable[[PRNGKeyArray, tuple[int, ...], int], Array]
"""`draw(key, shape, fan_in) -> array` of `shape`, float32; `fan_in` inputs are summed by one output unit."""


@dataclass(frozen=True)
class Normal:
    """N(0, gain^2 / fan_in)."""

    gain: float = 1.0

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
        return self.gain / math.sqrt(fan_in) * jax.random.normal(key, shape, jnp.float32)


@dataclass(frozen=True)
class Uniform:
    """U(-b, b) with b = gain sqrt(3 / fan_in), so of variance gain^2 / fan_in."""

    gain: float = 1.0

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
        bound = self.gain * math.sqrt(3 / fan_in)
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@dataclass(frozen=True)
class Orthogonal:
    """gain times a Haar-distributed orthogonal matrix: all axes but the last by the last (Saxe et al. 2014).

    Columns are orthonormal if there are at least as many rows as columns, rows otherwise. Does not depend on
    `fan_in`.
    """

    gain: float = 1.0

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        normal = jax.random.normal(key, (max(rows, columns), min(rows, columns)), jnp.float32)
        q, r = jnp.linalg.qr(normal)
        # Without the signs, Q would follow LAPACK's convention instead of the Haar measure (Mezzadri 2007).
        q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(jnp.float32)
        return (self.gain * (q if rows >= columns else q.T)).reshape(shape)


@dataclass(frozen=True)
class Constant:
    """`value` everywhere."""

    value: float = 0.0

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
        return jnp.full(shape, self.value, jnp.float32)


@dataclass(frozen=True)
class Initializer:
    """How a layer draws its weight and its bias; any hashable `Draw` will do for either."""

    weight: Draw
    bias: Draw = Constant(0.0)


he = Initializer(Normal(math.sqrt(2)))
"""N(0, 2 / fan_in), zero bias: keeps the second moment through ReLU layers (He et al. 2015, eq. 10)."""

he_uniform = Initializer(Uniform(math.sqrt(2)))
"""U(-b, b), b = sqrt(6 / fan_in), zero bias: the variance of `he`."""

lecun = Initializer(Normal(1.0))
"""N(0, 1 / fan_in), zero bias (LeCun et al. 1998, eq. 16)."""

torch_uniform = Initializer(Uniform(1 / math.sqrt(3)), Uniform(1 / math.sqrt(3)))
"""U(-b, b), b = 1 / sqrt(fan_in), weight and bias alike: the default of PyTorch's Linear and Conv2d."""

orthogonal = Initializer(Orthogonal(1.0))
"""Orthogonal weight of gain 1, zero bias; `Initializer(Orthogonal(gain))` for another gain."""

zeros = Initializer(Constant(0.0))
"""Zero weight and bias."""


def named_key(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """`key` folded with crc32(name): a draw depends on what it is for, never on how many others there are."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
