"""A step of gradient descent on a network, stage by stage: where the update of every learner here ends."""

from __future__ import annotations

from typing import cast

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from neoteny.networks.heads import Heads
from neoteny.networks.network import Layer, Network, Statistic, split_trainable


def trained_stages(network: Network, frozen: tuple[str, ...] = ()) -> dict[str, PyTree]:
    """The trained parameters of every stage that has some and is not `frozen`: what a rule on the whole sees."""
    stages = zip(network.names, network.stages, strict=True)
    parameters = {name: split_trainable(stage)[0] for name, stage in stages if name not in frozen}
    return {name: held for name, held in parameters.items() if jax.tree.leaves(held)}


def descend(
    network: Network,
    called: Network,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    states: dict[str, PyTree],
    rule: optax.GradientTransformation,
    rule_state: PyTree,
) -> tuple[Network, dict[str, PyTree], PyTree]:
    """The network, the stages' optimiser states and the rule's state after one step.

    gradients: like the network's trained parameters. called: the network as its forward pass returned it, whose
    statistics are kept. states: stage -> optimiser state; stages without one do not move. rule: applied to the whole
    gradient before the stages' own `optimizer`. Of heads for several tasks only the one in use moves.
    """
    parameters, rest = split_trainable(network)
    held = {name: parameters.stage(name) for name in states}
    ruled, rule_state = rule.update({name: gradients.stage(name) for name in states}, rule_state, held)
    stages, new_states = {}, {}
    for name, gradient in cast(dict, ruled).items():
        change, new_states[name] = optimizer.update(gradient, states[name], held[name])
        after = cast(Layer, eqx.combine(optax.apply_updates(held[name], change), rest.stage(name)))
        before = network.stage(name)
        if isinstance(after, Heads) and isinstance(before, Heads):
            after = after.keeping_others(before)
        stages[name] = after
    return _with_statistics(network.replace(**stages), called), new_states, rule_state


def _with_statistics(trained: Network, called: Network) -> Network:
    """`trained` with the statistics that `called` gathered during the forward pass."""

    def pick(old, new):
        return new if isinstance(new, Statistic) else old

    return jax.tree.map(pick, trained, called, is_leaf=lambda node: isinstance(node, Statistic))
