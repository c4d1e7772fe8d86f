"""Deep Q-learning: DQN (Mnih et al. 2015) and Double DQN (van Hasselt et al. 2016), on numbers or distributions.

Exploration, replay, n-step returns and the discount are the source's (`tasks.experience`); the target network is a
follower that is copied from the online one every `target_period` updates of the shared clock.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from neoteny.learners.descent import descend, trained_stages
from neoteny.learners.learner import Learner, LearnerState, Origin, Transitions, View, init_stages
from neoteny.learners.supervised import ONLINE
from neoteny.learners.values import Scalar, Values
from neoteny.networks.network import Maker, Network, as_network, check_maker, split_trainable
from neoteny.regularizers import NoPenalty, Regularizer
from neoteny.training.clock import Clock

TARGET = "target"


def dqn(
    maker: Maker,
    optimizer: optax.GradientTransformation,
    *,
    double: bool = True,
    values: Values | None = None,
    target_period: int = 1_000,
    regularizer: Regularizer | None = None,
    before: optax.GradientTransformation | None = None,
) -> Learner:
    """A learner of action values from transitions.

    maker: key -> network with `values.outputs(actions)` outputs. double: the online network chooses the action whose
    target value is used; otherwise the target network does. values: `Scalar()` (default), `TwoHot` or `Categorical`.
    target_period: updates between copies of the online network. optimizer, regularizer, before: as in `supervised`.

    Metrics of an update: loss, value (mean over the batch of the greedy action's value), error (mean absolute TD
    error), episodes and returns (those that ended meanwhile, and the sum of their returns), reward (mean of a step
    meanwhile).
    """
    maker = check_maker(maker)
    if target_period < 1:
        raise ValueError(f"target_period must be at least 1 update, not {target_period}")
    form = Scalar() if values is None else values
    penalty = NoPenalty() if regularizer is None else regularizer
    rule = optax.identity() if before is None else before

    def make(key) -> Network:
        return as_network(maker(key))

    def remember(networks: dict[str, Network]) -> PyTree:
        network = networks[ONLINE]
        return {"penalty": penalty.init(network), "rule": rule.init(trained_stages(network))}

    def init(key) -> LearnerState:
        network = make(key)
        networks = {ONLINE: network, TARGET: network}
        memory = remember(networks)
        return LearnerState(networks, {ONLINE: init_stages(optimizer, network)}, memory, ((TARGET, ONLINE),), origin)

    def action_values(network: Network, observations: Array) -> Array:
        return form.expected(form.by_action(network(observations).output))

    def taken(by_action: Array, actions: Array) -> Array:
        return jnp.take_along_axis(by_action, actions.reshape(-1, *[1] * (by_action.ndim - 1)), axis=1)[:, 0]

    def data_loss(network: Network, target: Network, batch: Transitions, key):
        result = network(batch.observations, train=True, key=key)
        following = form.by_action(target(batch.next_observations).output)
        chooser = action_values(network, batch.next_observations) if double else form.expected(following)
        best = jax.lax.stop_gradient(jnp.argmax(chooser, axis=1))
        by_action = form.by_action(result.output)
        losses, errors = form.loss(
            taken(by_action, batch.actions), batch.rewards, batch.discounts, taken(following, best)
        )
        metrics = {
            "value": jnp.mean(jnp.max(form.expected(by_action), axis=1)),
            "error": jnp.mean(jnp.abs(errors)),
        }
        return jnp.mean(losses), (result.network, metrics)

    def update(state: LearnerState, batch: Transitions, key):
        network, target = state.networks[ONLINE], state.networks[TARGET]
        parameters, rest = split_trainable(network)

        def loss(parameters):
            network = eqx.combine(parameters, rest)
            value, (called, metrics) = data_loss(network, target, batch, key)
            return value + penalty.penalty(network, state.memory["penalty"]), (value, called, metrics)

        gradients, (value, called, metrics) = jax.grad(loss, has_aux=True)(parameters)
        network, states, rule_state = descend(
            network, called, gradients, optimizer, state.optimizer[ONLINE], rule, state.memory["rule"]
        )
        networks = {**state.networks, ONLINE: network}
        memory = {**state.memory, "rule": rule_state}
        new = LearnerState(networks, {ONLINE: states}, memory, state.followers, state.origin)
        finished = {name: jnp.asarray(getattr(batch, name), jnp.float32) for name in ("episodes", "returns", "reward")}
        return new, {"loss": value, **metrics, **finished}

    def periodic(state: LearnerState, clock: Clock) -> LearnerState:
        online, rest = eqx.partition(state.networks[ONLINE], eqx.is_array)
        target = eqx.filter(state.networks[TARGET], eqx.is_array)
        copied = jax.lax.cond(clock.update % target_period == 0, lambda: online, lambda: target)
        networks = {**state.networks, TARGET: eqx.combine(copied, rest)}
        return LearnerState(networks, state.optimizer, state.memory, state.followers, state.origin)

    def predict(state: LearnerState, inputs: Array) -> Array:
        return action_values(state.networks[ONLINE], inputs)

    def score(outputs: Array, targets: Array) -> dict[str, Array]:
        return {"value": jnp.max(outputs, axis=1)}

    def act(state: LearnerState, observations: Array, key) -> Array:
        return jnp.argmax(predict(state, observations), axis=1).astype(jnp.int32)

    def switch(state: LearnerState, task_index, sample_previous, key) -> LearnerState:
        memory = {**state.memory, "penalty": penalty.switch(state.networks[ONLINE], state.memory["penalty"])}
        return LearnerState(state.networks, state.optimizer, memory, state.followers, state.origin)

    def view(state: LearnerState) -> View:
        def loss(network: Network, batch: Transitions, key) -> Array:
            value, _ = data_loss(network, state.networks[TARGET], batch, key)
            return value + penalty.penalty(network, state.memory["penalty"])

        def features(network: Network, inputs: Array) -> dict[str, Array]:
            return network(inputs).stages

        def decode(outputs: Array) -> Array:
            return form.expected(form.by_action(outputs))

        def fit(outputs: Array, targets: Array) -> Array:
            return jnp.mean(form.regression(form.by_action(outputs), targets))

        return View(state.networks[ONLINE], loss, optimizer, features, make, decode, fit)

    origin = Origin({ONLINE: make}, {ONLINE: optimizer}, remember)
    return Learner(init, update, predict, score, switch, view, origin, act, periodic)


def minatar_rmsprop(learning_rate: float = 2.5e-4) -> optax.GradientTransformation:
    """Centred RMSProp of MinAtar's DQN: decay 0.95, momentum 0.95, epsilon 0.01 added to the root (Young & Tian 2019,
    published code).
    """
    return optax.rmsprop(
        learning_rate, decay=0.95, eps=0.01, eps_in_sqrt=False, centered=True, momentum=0.95, initial_scale=0.0
    )


def atari_rmsprop(learning_rate: float = 2.5e-4) -> optax.GradientTransformation:
    """Centred RMSProp of DQN Zoo: decay 0.95, epsilon 0.01 / 32^2 under the root, no momentum."""
    return optax.rmsprop(learning_rate, decay=0.95, eps=0.01 / 32**2, centered=True)


MINATAR_TARGET_PERIOD = 1_000
"""Updates between copies of the target network (Young & Tian 2019)."""

ATARI_TARGET_PERIOD = 7_500
"""Updates between copies: 120,000 frames at 16 frames an update (DQN Zoo)."""
