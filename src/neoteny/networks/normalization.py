"""Normalisation layers.

Moments are computed in float32 at least. Every layer's `scale` and `bias` are per feature (the last axis), so
that the same layer serves vectors (batch, features) and feature maps (batch, height, width, channels).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from neoteny.networks._checks import features_last, positive
from neoteny.networks.activations import Activation, identity
from neoteny.networks.network import Layer, Statistic


class LayerNorm(Layer):
    """(x - mean) / sqrt(var + epsilon) over the last axis, times `scale` plus `bias` (Ba et al. 2016, eq. 4).

    On feature maps every place is normalised over its channels. To normalise over height, width and channels
    together, as PyTorch's `LayerNorm([channels, height, width])` does, use `GroupNorm(size, groups=1)`. A
    constant row gives `bias`.
    """

    scale: Float[Array, " size"] | None
    bias: Float[Array, " size"] | None
    size: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, *, epsilon: float = 1e-5, affine: bool = True):
        self.size = positive(size, "size")
        self.epsilon = _epsilon(epsilon)
        self.scale, self.bias = _affine(self.size, affine)

    def __call__(self, x, *, train=False, key=None):
        features_last(x, self.size, "LayerNorm", "size")
        y = _at_least_float32(x)
        centred = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normalised = centred * lax.rsqrt(variance + self.epsilon)
        return _scaled(normalised, self.scale, self.bias).astype(x.dtype), self


class GroupNorm(Layer):
    """Features in `groups` equal groups, each normalised over its features and all places (Wu & He 2018).

    The variance is E[d^2] - E[d]^2 in one pass, with d = x - s and s the group's first value, held constant
    under differentiation (the result does not depend on s). Its relative error is about
    1e-7 (1 + (mean - s)^2 / var): a few roundings for a typical s, at most 1e-7 times the number of values in
    a group; without the shift it would grow with mean^2 / var.
    """

    scale: Float[Array, " size"] | None
    bias: Float[Array, " size"] | None
    size: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, groups: int, *, epsilon: float = 1e-5, affine: bool = True):
        self.size = positive(size, "size")
        self.groups = positive(groups, "groups")
        if self.size % self.groups:
            raise ValueError(f"groups must divide size, and {self.groups} does not divide {self.size}")
        self.epsilon = _epsilon(epsilon)
        self.scale, self.bias = _affine(self.size, affine)

    def __call__(self, x, *, train=False, key=None):
        features_last(x, self.size, "GroupNorm", "size")
        y = _at_least_float32(x).reshape(x.shape[0], -1, self.size)

        def by_group(moments: Array) -> Array:  # (batch, size) to (batch, groups, size / groups)
            return moments.reshape(x.shape[0], self.groups, -1)

        def to_features(values: Array) -> Array:  # (batch, groups, 1) to (batch, 1, size)
            spread = jnp.broadcast_to(values, (x.shape[0], self.groups, self.size // self.groups))
            return spread.reshape(x.shape[0], 1, self.size)

        y = y - to_features(lax.stop_gradient(by_group(y[:, 0])[..., :1]))
        # Per feature first, then per group: twice as fast on CPU as reducing places and features together.
        mean = jnp.mean(by_group(jnp.mean(y, axis=1)), axis=-1, keepdims=True)
        square = jnp.mean(by_group(jnp.mean(jnp.square(y), axis=1)), axis=-1, keepdims=True)
        factor = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + self.epsilon)
        normalised = _folded(y, to_features(mean), to_features(factor), self.scale, self.bias)
        return normalised.reshape(x.shape).astype(x.dtype), self


class BatchNorm(Layer):
    """Each feature normalised over the batch and all places (Ioffe & Szegedy 2015, algorithm 1).

    With `train`, by the batch's moments (biased variance), and the running moments move by `momentum` towards
    them: running <- (1 - momentum) running + momentum batch, the variance being the unbiased one (n - 1), as
    in PyTorch. Otherwise by the running moments. Moments are computed in one pass as in `GroupNorm`, shifted
    by each feature's first value. The running moments are `Statistic`s: never trained, no gradient.
    ValueError when training on a single value per feature, which has no variance.
    """

    scale: Float[Array, " size"] | None
    bias: Float[Array, " size"] | None
    mean: Statistic
    variance: Statistic
    size: int = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, *, momentum: float = 0.1, epsilon: float = 1e-5, affine: bool = True):
        self.size = positive(size, "size")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum, the weight of the newest batch, must be in (0, 1], got {momentum}")
        self.momentum = float(momentum)
        self.epsilon = _epsilon(epsilon)
        self.scale, self.bias = _affine(self.size, affine)
        self.mean = Statistic(jnp.zeros(self.size, jnp.float32))
        self.variance = Statistic(jnp.ones(self.size, jnp.float32))

    def __call__(self, x, *, train=False, key=None):
        features_last(x, self.size, "BatchNorm", "size")
        y = _at_least_float32(x)
        if not train:
            normalised = (y - self.mean.value) * lax.rsqrt(self.variance.value + self.epsilon)
            return _scaled(normalised, self.scale, self.bias).astype(x.dtype), self
        count = math.prod(x.shape[:-1])
        if count < 2:
            raise ValueError(f"BatchNorm needs at least two values per feature to train on; got shape {x.shape}")
        axes = tuple(range(x.ndim - 1))
        shift = lax.stop_gradient(y[(0,) * (x.ndim - 1)])
        y = y - shift
        mean = jnp.mean(y, axis=axes)
        variance = jnp.maximum(jnp.mean(jnp.square(y), axis=axes) - jnp.square(mean), 0)
        normalised = _folded(y, mean, lax.rsqrt(variance + self.epsilon), self.scale, self.bias)
        updated = eqx.tree_at(
            lambda layer: (layer.mean, layer.variance),
            self,
            (
                self._moved(self.mean, shift + mean),
                self._moved(self.variance, variance * (count / (count - 1))),
            ),
        )
        return normalised.astype(x.dtype), updated

    def _moved(self, statistic: Statistic, batch: Array) -> Statistic:
        old = statistic.value
        return Statistic(old + self.momentum * (lax.stop_gradient(batch).astype(old.dtype) - old))


Normalizer = Callable[[int], Layer]
"""`normalizer(size) -> Layer` for features of that size: a `Norm`, a layer class such as `LayerNorm`."""

GROUP_SIZE = 16
"""Channels in a group of `Norm.GROUP` (Wu & He 2018, table 3)."""


class Norm(enum.Enum):
    """The normalisations a maker can be asked for by name; calling one with a size makes the layer.

    GROUP has groups of about 16: the most groups that divide the size with at least 16 features each.
    """

    NONE = "none"
    LAYER = "layer"
    BATCH = "batch"
    GROUP = "group"

    def __call__(self, size: int) -> Layer:
        match self:
            case Norm.NONE:
                return Activation(identity)
            case Norm.LAYER:
                return LayerNorm(size)
            case Norm.BATCH:
                return BatchNorm(size)
            case Norm.GROUP:
                most = max(size // GROUP_SIZE, 1)
                return GroupNorm(size, max(groups for groups in range(1, most + 1) if size % groups == 0))


def check_norm(norm: Normalizer | None) -> Normalizer:
    """`norm`, NONE for None; TypeError for what cannot make a layer of a size."""
    if norm is None:
        return Norm.NONE
    if isinstance(norm, Layer) or not callable(norm):
        raise TypeError(f"norm must make a layer of a size, such as Norm.LAYER or LayerNorm; got {norm!r}")
    return norm


def norm_layers(norm: Normalizer, size: int) -> tuple[Layer, ...]:
    """The layer `norm` makes for `size`, or none at all."""
    return () if norm is Norm.NONE else (norm(size),)


def _epsilon(epsilon: float) -> float:
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, or constant inputs divide by zero; got {epsilon}")
    return float(epsilon)


def _affine(size: int, affine: bool) -> tuple[Array | None, Array | None]:
    return (jnp.ones(size, jnp.float32), jnp.zeros(size, jnp.float32)) if affine else (None, None)


def _scaled(x: Array, scale: Array | None, bias: Array | None) -> Array:
    return x if scale is None or bias is None else x * scale + bias


def _folded(y: Array, mean: Array, factor: Array, scale: Array | None, bias: Array | None) -> Array:
    """(y - mean) * factor * scale + bias as one product and one sum a number.

    Its gradient then needs two sums over batch and places instead of four, and these are most of a norm's time on a
    CPU: half as long, forward and backward.
    """
    factor = factor if scale is None else factor * scale
    shift = -mean * factor
    return y * factor + (shift if bias is None else shift + bias)


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
