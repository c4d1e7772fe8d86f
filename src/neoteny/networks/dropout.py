"""Dropout."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from neoteny.networks.network import Layer


class Dropout(Layer):
    """With `train`, zero each entry with probability `rate` and divide the others by 1 - rate.

    Srivastava et al. 2014, with the division moved from evaluation to training. ValueError when training
    without a key.
    """

    rate: float = eqx.field(static=True)

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise ValueError(f"rate, the probability of dropping an entry, must be in [0, 1), got {rate}")
        self.rate = float(rate)

    def __call__(self, x, *, train=False, key=None):
        if not train or self.rate == 0:
            return x, self
        if key is None:
            raise ValueError("Dropout needs a key to train: network(x, train=True, key=key)")
        kept = jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x)), self
