"""Supervised learning: cross-entropy or regression on batches, an optax transformation for every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from neoteny.learners.descent import descend, trained_stages
from neoteny.learners.learner import Batch, Learner, LearnerState, Origin, View, init_stages
from neoteny.networks.heads import has_heads, use_head
from neoteny.networks.network import Maker, Network, as_network, check_maker, split_trainable
from neoteny.networks.sequence import values_of
from neoteny.regularizers import NoPenalty, Regularizer


@dataclass(frozen=True)
class Objective:
    """A loss per example and the scores evaluation reports; both take outputs and targets, batch first."""

    loss: Callable[[Array, Array], Array]
    score: Callable[[Array, Array], dict[str, Array]]


def _cross_entropy_loss(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _classification_score(logits: Array, labels: Array) -> dict[str, Array]:
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {"loss": _cross_entropy_loss(logits, labels), "accuracy": correct}


def _squared_error(outputs: Array, targets: Array) -> Array:
    return jnp.mean(jnp.square(outputs - targets).reshape(outputs.shape[0], -1), axis=-1)


def _regression_score(outputs: Array, targets: Array) -> dict[str, Array]:
    return {"loss": _squared_error(outputs, targets)}


CROSS_ENTROPY = Objective(_cross_entropy_loss, _classification_score)
"""Softmax cross-entropy on int32 labels, in nats; scores `loss` and `accuracy`."""

SQUARED_ERROR = Objective(_squared_error, _regression_score)
"""Squared error, mean over outputs; score `loss`."""

ONLINE = "online"


def supervised(
    maker: Maker,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective = CROSS_ENTROPY,
    regularizer: Regularizer | None = None,
    before: optax.GradientTransformation | None = None,
    frozen: tuple[str, ...] = (),
) -> Learner:
    """A learner that fits targets to inputs.

    maker: key -> network. optimizer: applied to every stage apart, each with its own moments and count; its
    hyper-parameters may be traced numbers. A network with a head for each task (`head_per_task`) uses the head of the
    task begun last, with moments of its own. regularizer: a penalty added to the loss. before: a rule on the whole
    gradient before the stages' own (clipping by global norm). frozen: stages that are not trained and hold no
    optimiser state.
    """
    maker = check_maker(maker)
    penalty = NoPenalty() if regularizer is None else regularizer
    rule = optax.identity() if before is None else before

    def make(key) -> Network:
        network = as_network(maker(key))
        for name in frozen:
            network.index(name)
        return network

    def remember(networks: dict[str, Network]) -> PyTree:
        network = networks[ONLINE]
        return {"penalty": penalty.init(network), "rule": rule.init(trained_stages(network, frozen))}

    def init(key) -> LearnerState:
        network = make(key)
        states = {name: s for name, s in init_stages(optimizer, network).items() if name not in frozen}
        return LearnerState({ONLINE: network}, {ONLINE: states}, remember({ONLINE: network}), (), origin)

    def data_loss(network: Network, batch: Batch, key):
        result = network(batch.inputs, train=True, key=key)
        return jnp.mean(objective.loss(result.output, batch.targets)), result

    def update(state: LearnerState, batch: Batch, key):
        network = state.networks[ONLINE]
        parameters, rest = split_trainable(network)

        def loss(parameters):
            network = eqx.combine(parameters, rest)
            value, result = data_loss(network, batch, key)
            return value + penalty.penalty(network, state.memory["penalty"]), (value, result)

        gradients, (value, result) = jax.grad(loss, has_aux=True)(parameters)
        network, states, rule_state = descend(
            network, result.network, gradients, optimizer, state.optimizer[ONLINE], rule, state.memory["rule"]
        )
        scores = {n: jnp.mean(s) for n, s in objective.score(result.output, batch.targets).items() if n != "loss"}
        memory = {**state.memory, "rule": rule_state}
        new = LearnerState({ONLINE: network}, {ONLINE: states}, memory, state.followers, state.origin)
        return new, {"loss": value, **scores}

    def predict(state: LearnerState, inputs: Array) -> Array:
        return state.networks[ONLINE](inputs).output

    def switch(state: LearnerState, task_index, sample_previous, key) -> LearnerState:
        network = state.networks[ONLINE]
        memory = {**state.memory, "penalty": penalty.switch(network, state.memory["penalty"])}
        states = state.optimizer[ONLINE]
        if has_heads(network):
            name = network.names[-1]
            network = use_head(network, task_index)
            if name in states:  # the new head's moments are its own
                states = {**states, name: optimizer.init(split_trainable(network.stage(name))[0])}
        networks, held = {**state.networks, ONLINE: network}, {**state.optimizer, ONLINE: states}
        return LearnerState(networks, held, memory, state.followers, state.origin)

    def view(state: LearnerState) -> View:
        def loss(network: Network, batch: Batch, key) -> Array:
            value, _ = data_loss(network, batch, key)
            return value + penalty.penalty(network, state.memory["penalty"])

        def features(network: Network, inputs: Array) -> dict[str, Array]:
            return {name: values_of(output) for name, output in network(inputs).stages.items()}

        return View(state.networks[ONLINE], loss, optimizer, features, make)

    origin = Origin({ONLINE: make}, {ONLINE: optimizer}, remember)
    return Learner(init, update, predict, objective.score, switch, view, origin)
