"""Sequences with padding, and the layers around a recurrent block: embedding, masked norm, pooling, readout.

A batch of sequences is an array (batch, length, features). Where sequences differ in length it is `Padded`: the values
with a mask of the real steps, which every stage takes and gives, so that padding enters no moment, no mean and no
state. Padding is at the end; padded values are zero.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from neoteny.networks._checks import features_last, positive
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Layer, Statistic

PADDING = 0
"""The token that fills a sequence up; real symbols are numbered from 1."""


class Padded(NamedTuple):
    """Sequences of unequal length: values (batch, length, features), zero where `mask` (batch, length) is False."""

    values: Float[Array, "batch length features"]
    mask: Bool[Array, "batch length"]


Sequences = Array | Padded
"""(batch, length, features), every step real, or `Padded`."""


def split(x: Sequences) -> tuple[Array, Array | None]:
    """(values, mask); the mask is None where every step is real."""
    return (x.values, x.mask) if isinstance(x, Padded) else (x, None)


def join(values: Array, mask: Array | None) -> Sequences:
    """The inverse of `split`; with a mask, padded values become zero."""
    return values if mask is None else Padded(jnp.where(mask[..., None], values, 0), mask)


def values_of(x: Sequences) -> Array:
    """The values alone, padding zero: what probes look at."""
    return split(x)[0]


def masked_mean(x: Sequences) -> Float[Array, "batch features"]:
    """Mean over the real steps; zero for a sequence without any."""
    values, mask = split(x)
    if mask is None:
        return jnp.mean(values, axis=1)
    steps = jnp.maximum(jnp.sum(mask, axis=1), 1)
    return jnp.sum(jnp.where(mask[..., None], values, 0), axis=1) / steps[:, None]


class Embedding(Layer):
    """A row of `weight` for every token: (batch, length) integers to `Padded` (batch, length, width).

    Token 0 is padding (`PADDING`). Entries are standard normal over sqrt(width), so that a row has a mean square norm
    of 1; the width of the tables is what `Arrays.tokens` says. Tokens out of range give NaN rather than another symbol.
    """

    weight: Float[Array, "tokens width"]
    tokens: int = eqx.field(static=True)

    def __init__(self, tokens: int, width: int, *, key: PRNGKeyArray):
        self.tokens = positive(tokens, "tokens")
        shape = (self.tokens, positive(width, "width"))
        self.weight = jax.random.normal(named_key(key, "weight"), shape) / jnp.sqrt(jnp.float32(width))

    def __call__(self, x, *, train=False, key=None):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"Embedding takes whole numbers (batch, length), and got {x.dtype} of shape {x.shape}")
        rows = jnp.take(self.weight, x.astype(jnp.int32), axis=0, mode="fill", fill_value=jnp.nan)
        return join(rows, x != PADDING), self


class MaskedBatchNorm(Layer):
    """Batch norm over batch and time that leaves padding out; of unpadded sequences it is `BatchNorm`.

    Moments are of the real steps only, the variance biased in the normalisation and unbiased in the running
    one, in one pass shifted by the first value as there. ValueError when training on a single step.
    """

    scale: Float[Array, " size"]
    bias: Float[Array, " size"]
    mean: Statistic
    variance: Statistic
    size: int = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.size = positive(size, "size")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum, the weight of the newest batch, must be in (0, 1], got {momentum}")
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, or constant inputs divide by zero; got {epsilon}")
        self.momentum, self.epsilon = float(momentum), float(epsilon)
        self.scale, self.bias = jnp.ones(self.size, jnp.float32), jnp.zeros(self.size, jnp.float32)
        self.mean = Statistic(jnp.zeros(self.size, jnp.float32))
        self.variance = Statistic(jnp.ones(self.size, jnp.float32))

    def __call__(self, x, *, train=False, key=None):
        values, mask = split(x)
        features_last(values, self.size, "MaskedBatchNorm", "size")
        if not train:
            factor = self.scale * lax.rsqrt(self.variance.value + self.epsilon)
            return join((values - self.mean.value) * factor + self.bias, mask), self
        if values.shape[0] * values.shape[1] < 2:
            raise ValueError(f"MaskedBatchNorm needs at least two steps to train on; got shape {values.shape}")
        shift = lax.stop_gradient(values[0, 0])
        centred = values - shift
        if mask is None:
            count = jnp.float32(values.shape[0] * values.shape[1])
        else:
            count = jnp.maximum(jnp.sum(mask), 2).astype(jnp.float32)
            centred = jnp.where(mask[..., None], centred, 0)
        mean = jnp.sum(centred, axis=(0, 1)) / count
        variance = jnp.maximum(jnp.sum(jnp.square(centred), axis=(0, 1)) / count - jnp.square(mean), 0)
        normalised = (values - (shift + mean)) * (self.scale * lax.rsqrt(variance + self.epsilon)) + self.bias
        updated = eqx.tree_at(
            lambda layer: (layer.mean, layer.variance),
            self,
            (self._moved(self.mean, shift + mean), self._moved(self.variance, variance * (count / (count - 1)))),
        )
        return join(normalised, mask), updated

    def _moved(self, statistic: Statistic, batch: Array) -> Statistic:
        old = statistic.value
        return Statistic(old + self.momentum * (lax.stop_gradient(batch) - old))


class Positionwise(Layer):
    """A layer of plain arrays applied to the values of every step; padding stays zero."""

    layer: Layer

    def __call__(self, x, *, train=False, key=None):
        values, mask = split(x)
        y, layer = self.layer(values, train=train, key=key)
        return join(y, mask), Positionwise(layer)


class MeanPool(Layer):
    """Mean over the real steps: (batch, length, features) to (batch, features)."""

    def __call__(self, x, *, train=False, key=None):
        return masked_mean(x), self


class LastSteps(Layer):
    """The last `steps` steps of unpadded sequences: (batch, length, features) to (batch, steps, features)."""

    steps: int = eqx.field(static=True)

    def __init__(self, steps: int):
        self.steps = positive(steps, "steps")

    def __call__(self, x, *, train=False, key=None):
        values, mask = split(x)
        if mask is not None:
            raise ValueError("LastSteps reads the end of sequences of one length; these are padded")
        if values.shape[1] < self.steps:
            raise ValueError(f"LastSteps({self.steps}) got sequences of {values.shape[1]} steps")
        return values[:, -self.steps :], self


class Pairs(Layer):
    """Documents of a pair as a batch of their own: (batch, 2, length) tokens to (2 batch, length), firsts first.

    Inverse in spirit of `Compare`: the network between encodes both with the same weights.
    """

    def __call__(self, x, *, train=False, key=None):
        if x.ndim < 3 or x.shape[1] != 2:
            raise ValueError(f"Pairs takes (batch, 2, length, ...), and got {x.shape}")
        return jnp.concatenate([x[:, 0], x[:, 1]]), self


class Compare(Layer):
    """Features of a pair's two documents as one vector: (2 batch, d) to (batch, 4 d), [x, y, x y, x - y].

    As in the archive's dual encoder for retrieval (Tay et al. 2021, Long Range Arena).
    """

    def __call__(self, x, *, train=False, key=None):
        if x.ndim != 2 or x.shape[0] % 2:
            raise ValueError(f"Compare takes (2 batch, features), and got {x.shape}")
        first, second = jnp.split(x, 2)
        return jnp.concatenate([first, second, first * second, first - second], axis=-1), self
