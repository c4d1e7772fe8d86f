"""What learners of action values share: an online network that descends on a loss, and a target network behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from neoteny.learners.descent import descend, trained_stages
from neoteny.learners.learner import Learner, LearnerState, Origin, View, init_stages
from neoteny.learners.supervised import ONLINE
from neoteny.networks.network import Maker, Network, as_network, check_maker, split_trainable
from neoteny.regularizers import NoPenalty, Regularizer
from neoteny.regularizers.regularizer import sum_of_squares
from neoteny.training.clock import Clock

TARGET = "target"


@dataclass(frozen=True)
class CopyEvery:
    """A copy of the online network every `period` updates of the shared clock (Mnih et al. 2015)."""

    period: int

    def __post_init__(self):
        if self.period < 1:
            raise ValueError(f"target_period must be at least 1 update, not {self.period}")

    def __call__(self, online: PyTree, target: PyTree, clock: Clock) -> PyTree:
        return jax.lax.cond(clock.update % self.period == 0, lambda: online, lambda: target)


@dataclass(frozen=True)
class Polyak:
    """After every update the share `rate` of the way towards the online network (Lillicrap et al. 2016)."""

    rate: float = 0.005

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"the Polyak rate must be above 0 and at most 1, not {self.rate}")

    def __call__(self, online: PyTree, target: PyTree, clock: Clock) -> PyTree:
        del clock

        def towards(new: Array, old: Array) -> Array:
            return old + self.rate * (new - old) if eqx.is_inexact_array(new) else new

        return jax.tree.map(towards, online, target)


Loss = Callable[[Network, Network, Any, PRNGKeyArray | None], tuple[Array, tuple[Network, dict[str, Array]]]]
"""loss(network, target, batch, key) -> (scalar, (the network with its statistics, metrics))."""


def taken(by_action: Array, actions: Array) -> Array:
    """The entries (batch, ...) of `by_action` (batch, actions, ...) for these actions (batch,)."""
    return jnp.take_along_axis(by_action, actions.reshape(-1, *[1] * (by_action.ndim - 1)), axis=1)[:, 0]


def action_value_learner(
    maker: Maker,
    optimizer: optax.GradientTransformation,
    data_loss: Loss,
    *,
    values: Callable[[Array], Array],
    following: CopyEvery | Polyak | None,
    score: Callable[[Array, Any], dict[str, Array]],
    fit: Callable[[Array, Array], Array] | None = None,
    regularizer: Regularizer | None = None,
    before: optax.GradientTransformation | None = None,
    sharpness_radius: float = 0.0,
) -> Learner:
    """A learner whose greedy action is the argmax of `values(outputs)`.

    data_loss: of a batch; see `Loss`. following: how the target network follows; None where the loss needs none, and
    is then given the online network. fit: the loss that fits outputs to given values, as in `View`.
    sharpness_radius: the gradient is taken at parameters moved this far up the gradient (SAM, Foret et al. 2021,
    equation 4; norm over all parameters); 0 takes it where they are. optimizer, regularizer, before: as in
    `supervised`.
    """
    maker = check_maker(maker)
    if not sharpness_radius >= 0:
        raise ValueError(f"sharpness_radius must not be negative, not {sharpness_radius}")
    penalty = NoPenalty() if regularizer is None else regularizer
    rule = optax.identity() if before is None else before

    def make(key) -> Network:
        return as_network(maker(key))

    def remember(networks: dict[str, Network]) -> PyTree:
        network = networks[ONLINE]
        return {"penalty": penalty.init(network), "rule": rule.init(trained_stages(network))}

    def init(key) -> LearnerState:
        network = make(key)
        networks = {ONLINE: network} if following is None else {ONLINE: network, TARGET: network}
        followers = () if following is None else ((TARGET, ONLINE),)
        memory = remember(networks)
        return LearnerState(networks, {ONLINE: init_stages(optimizer, network)}, memory, followers, origin)

    def target_of(state: LearnerState) -> Network:
        return state.networks[ONLINE if following is None else TARGET]

    def update(state: LearnerState, batch: Any, key):
        parameters, rest = split_trainable(state.networks[ONLINE])

        def loss(parameters):
            network = eqx.combine(parameters, rest)
            value, (called, metrics) = data_loss(network, target_of(state), batch, key)
            return value + penalty.penalty(network, state.memory["penalty"]), (value, called, metrics)

        gradients, (value, called, metrics) = jax.grad(loss, has_aux=True)(parameters)
        if sharpness_radius > 0:
            scale = sharpness_radius / (jnp.sqrt(sum_of_squares(gradients)) + 1e-12)
            moved = jax.tree.map(lambda p, g: p + scale * g, parameters, gradients)
            gradients, _ = jax.grad(loss, has_aux=True)(moved)
        network, states, rule_state = descend(
            state.networks[ONLINE], called, gradients, optimizer, state.optimizer[ONLINE], rule, state.memory["rule"]
        )
        networks = {**state.networks, ONLINE: network}
        memory = {**state.memory, "rule": rule_state}
        new = LearnerState(networks, {ONLINE: states}, memory, state.followers, state.origin)
        return new, {"loss": value, **metrics}

    def periodic(state: LearnerState, clock: Clock) -> LearnerState:
        assert following is not None
        online, rest = eqx.partition(state.networks[ONLINE], eqx.is_array)
        target = eqx.filter(state.networks[TARGET], eqx.is_array)
        networks = {**state.networks, TARGET: eqx.combine(following(online, target, clock), rest)}
        return LearnerState(networks, state.optimizer, state.memory, state.followers, state.origin)

    def predict(state: LearnerState, inputs: Array) -> Array:
        return values(state.networks[ONLINE](inputs).output)

    def act(state: LearnerState, observations: Array, key) -> Array:
        return jnp.argmax(predict(state, observations), axis=1).astype(jnp.int32)

    def switch(state: LearnerState, task_index, sample_previous, key) -> LearnerState:
        memory = {**state.memory, "penalty": penalty.switch(state.networks[ONLINE], state.memory["penalty"])}
        return LearnerState(state.networks, state.optimizer, memory, state.followers, state.origin)

    def view(state: LearnerState) -> View:
        def loss(network: Network, batch: Any, key) -> Array:
            value, _ = data_loss(network, target_of(state), batch, key)
            return value + penalty.penalty(network, state.memory["penalty"])

        def features(network: Network, inputs: Array) -> dict[str, Array]:
            return network(inputs).stages

        return View(state.networks[ONLINE], loss, optimizer, features, make, values, fit)

    origin = Origin({ONLINE: make}, {ONLINE: optimizer}, remember)
    return Learner(init, update, predict, score, switch, view, origin, act, None if following is None else periodic)
