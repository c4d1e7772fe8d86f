"""Spectral normalisation: a weight divided by its largest singular value (Miyato et al. 2018, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Chain, Layer, Maker, Network, Statistic, as_network, check_maker

FIRST_STEPS = 30
"""Power iterations at initialisation, so that training begins with a norm near the true one."""

SMALLEST = 1e-12
"""No vector and no weight is divided by less; a zero weight stays zero."""


class SpectralNorm(Layer):
    """A dense layer with the weight W / sigma, sigma its largest singular value by power iteration.

    One iteration (`steps`) a training pass, on a left singular vector that is kept between passes: a `Statistic`, which
    evaluation leaves as it is. The gradient goes through sigma = u^T W v with u and v constant, so that the trained
    weight has no gradient along itself. The bias is not divided.
    """

    dense: Dense
    left: Statistic
    steps: int = eqx.field(static=True)

    def __init__(self, dense: Dense, *, key: PRNGKeyArray, steps: int = 1):
        self.dense = dense
        self.steps = positive(steps, "steps")
        drawn = _unit(jax.random.normal(key, (dense.out_size,), jnp.float32))
        self.left = Statistic(_iterated(dense.weight, drawn, FIRST_STEPS))

    def __call__(self, x, *, train=False, key=None):
        weight = self.dense.weight
        constant = jax.lax.stop_gradient(weight)
        left = _iterated(constant, self.left.value, self.steps if train else 0)
        sigma = left @ weight @ _unit(constant.T @ left)
        divided = eqx.tree_at(lambda dense: dense.weight, self.dense, weight / jnp.maximum(sigma, SMALLEST))
        y, _ = divided(x, train=train, key=key)
        return y, eqx.tree_at(lambda layer: layer.left.value, self, left)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), SMALLEST)


def _iterated(weight: Array, left: Array, steps: int) -> Array:
    """The left singular vector after so many power iterations."""
    for _ in range(steps):
        left = _unit(weight @ _unit(weight.T @ left))
    return left


@dataclass(frozen=True)
class SpectrallyNormalized:
    """A maker of networks with normalised dense layers; made by `with_spectral_norm`."""

    maker: Maker
    stages: tuple[str, ...]
    steps: int

    def __call__(self, key: PRNGKeyArray) -> Network:
        network = as_network(self.maker(key))
        return network.replace(
            **{name: self._changed(network.stage(name), name, named_key(key, name)) for name in self.stages}
        )

    def _changed(self, stage: Layer, name: str, key: PRNGKeyArray) -> Layer:
        layers = stage.layers if isinstance(stage, Chain) else (stage,)
        for index, layer in enumerate(layers):
            if isinstance(layer, Dense):
                normed = SpectralNorm(layer, key=named_key(key, "spectral_norm"), steps=self.steps)
                return Chain(*layers[:index], normed, *layers[index + 1 :]) if isinstance(stage, Chain) else normed
        raise ValueError(f"stage {name!r} has no dense layer for spectral normalisation")


def with_spectral_norm(maker: Maker, stages: Sequence[str], *, steps: int = 1) -> SpectrallyNormalized:
    """The maker's networks, with `SpectralNorm` on the first dense layer of each of these stages.

    All else, draws included, is the maker's own. KeyError for a stage the networks lack, ValueError for one without a
    dense layer, both when a network is made.
    """
    return SpectrallyNormalized(check_maker(maker), tuple(stages), positive(steps, "steps"))
