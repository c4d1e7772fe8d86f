"""How a network's outputs stand for action values: numbers, or distributions over a fixed support.

`expected` reads action values from outputs; `loss` compares the outputs for the action taken with the reward and the
outputs for the action that follows. Targets carry no gradient.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


class Values(abc.ABC):
    """One way to represent action values. Subclasses are frozen dataclasses."""

    @abc.abstractmethod
    def outputs(self, actions: int) -> int:
        """How many outputs the network needs."""

    @abc.abstractmethod
    def by_action(self, outputs: Float[Array, "batch outputs"]) -> Array:
        """Outputs (batch, actions, ...)."""

    @abc.abstractmethod
    def expected(self, by_action: Array) -> Float[Array, ...]:
        """The value of each."""

    @abc.abstractmethod
    def loss(
        self, chosen: Array, rewards: Float[Array, " batch"], discounts: Float[Array, " batch"], following: Array
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """Loss per example, and the error of the expected value (target minus prediction)."""

    @abc.abstractmethod
    def regression(self, by_action: Array, targets: Float[Array, "batch actions"]) -> Float[Array, "batch actions"]:
        """Loss per example and action of fitting given numbers."""


@dataclass(frozen=True)
class Scalar(Values):
    """One number an action, fitted by `scale` times the squared error.

    bound: beyond it the error counts linearly (Huber), that is, the gradient by the error is clipped to +-bound, times
    2 * scale; DQN Zoo's clipping of a batch's mean gradient to 1/32 at batch size 32 is a bound of 1. None: never.
    """

    bound: float | None = 1.0
    scale: float = 0.5

    def __post_init__(self):
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"bound of the TD error must be positive or None, not {self.bound}")
        if not self.scale > 0:
            raise ValueError(f"scale of the squared TD error must be positive, not {self.scale}")

    def outputs(self, actions):
        return actions

    def by_action(self, outputs):
        return outputs

    def expected(self, by_action):
        return by_action

    def loss(self, chosen, rewards, discounts, following):
        error = rewards + discounts * jax.lax.stop_gradient(following) - chosen
        if self.bound is None:
            return self.scale * jnp.square(error), error
        return 2 * self.scale * optax.huber_loss(error, delta=self.bound), error

    def regression(self, by_action, targets):
        return jnp.square(by_action - targets)


@dataclass(frozen=True)
class _Support(Values):
    """Logits over `bins` equally spaced values from `low` to `high`, an action at a time."""

    low: float
    high: float
    bins: int = 51

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"the support must go from low to high, not from {self.low} to {self.high}")
        if self.bins < 2:
            raise ValueError(f"the support needs at least 2 bins, not {self.bins}")

    @property
    def centres(self) -> Float[Array, " bins"]:
        """The values of the support."""
        return jnp.linspace(self.low, self.high, self.bins, dtype=jnp.float32)

    def outputs(self, actions):
        return actions * self.bins

    def by_action(self, outputs):
        return outputs.reshape(outputs.shape[0], -1, self.bins)

    def expected(self, by_action):
        return jax.nn.softmax(by_action, axis=-1) @ self.centres

    def project(
        self, values: Float[Array, "batch atoms"], weights: Float[Array, "batch atoms"]
    ) -> Float[Array, "batch bins"]:
        """Weights at arbitrary values shared between the two nearest bins; beyond the support, its last bin."""
        place = (jnp.clip(values, self.low, self.high) - self.low) / (self.high - self.low) * (self.bins - 1)
        near = jnp.maximum(0.0, 1.0 - jnp.abs(place[..., None] - jnp.arange(self.bins)))
        return jnp.einsum("nak,na->nk", near, weights)

    def two_hot(self, values: Float[Array, ...]) -> Float[Array, "... bins"]:
        """Each value as a distribution over the support: all on the two bins beside it, in proportion."""
        flat = jnp.asarray(values, jnp.float32).reshape(-1, 1)
        return self.project(flat, jnp.ones_like(flat)).reshape(*jnp.shape(values), self.bins)

    def regression(self, by_action, targets):
        return self._cross_entropy(by_action, self.two_hot(targets))

    def _cross_entropy(self, logits: Array, target: Array) -> Array:
        return -jnp.sum(jax.lax.stop_gradient(target) * jax.nn.log_softmax(logits, axis=-1), axis=-1)


@dataclass(frozen=True)
class TwoHot(_Support):
    """The target is a number, put on the two bins beside it; cross-entropy (Farebrother et al. 2024, section 3)."""

    def loss(self, chosen, rewards, discounts, following):
        target = jax.lax.stop_gradient(rewards + discounts * self.expected(following))
        return self._cross_entropy(chosen, self.two_hot(target)), target - self.expected(chosen)


@dataclass(frozen=True)
class Categorical(_Support):
    """The target is the following distribution, shrunk, shifted and projected; cross-entropy (Bellemare et al. 2017,
    algorithm 1).
    """

    def loss(self, chosen, rewards, discounts, following):
        atoms = rewards[:, None] + discounts[:, None] * self.centres
        target = self.project(atoms, jax.nn.softmax(jax.lax.stop_gradient(following), axis=-1))
        return self._cross_entropy(chosen, target), target @ self.centres - self.expected(chosen)
