"""One head a task as one stacked array, with a mask over the outputs a task does not have.

Tasks of a stream may have different numbers of classes, and lanes may be at different tasks: stacked heads keep one
structure, hence one compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from neoteny.networks._checks import features_last, positive, positives
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import Initializer, lecun, named_key
from neoteny.networks.network import Layer, Maker, Network, Statistic, as_network, check_maker

MASKED = -1e9
"""Logit of an output the task does not have. Finite, so that a label outside the task costs much but is no NaN."""


class Heads(Layer):
    """A linear head for each task; the one in use maps (batch, in_size) to (batch, out_size).

    classes: outputs of each task; out_size is the largest. `task` says which head is in use; `use_head` sets it.
    Outputs a task does not have are `MASKED`. Gradients of the heads not in use are exactly zero.
    """

    weight: Float[Array, "tasks in_size out_size"]
    bias: Float[Array, "tasks out_size"]
    task: Statistic
    in_size: int = eqx.field(static=True)
    classes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, in_size: int, classes: Sequence[int], *, key: PRNGKeyArray, initializer: Initializer = lecun):
        self.in_size = positive(in_size, "in_size")
        self.classes = positives(classes, "classes")
        if not self.classes:
            raise ValueError("heads need at least one task: classes=(5, 5) makes two")
        shape = (self.in_size, max(self.classes))
        keys = [named_key(key, f"head{number}") for number in range(len(self.classes))]
        self.weight = jnp.stack([initializer.weight(named_key(k, "weight"), shape, self.in_size) for k in keys])
        self.bias = jnp.stack([initializer.bias(named_key(k, "bias"), shape[1:], self.in_size) for k in keys])
        self.task = Statistic(jnp.zeros((), jnp.int32))

    def __call__(self, x, *, train=False, key=None):
        features_last(x, self.in_size, "Heads", "in_size")
        logits = x @ self.weight[self.task.value] + self.bias[self.task.value]
        used = jnp.arange(max(self.classes)) < jnp.asarray(self.classes)[self.task.value]
        return jnp.where(used, logits, MASKED), self

    def used_by(self, task: Int[Array, ""] | int) -> Heads:
        """These heads with another one in use."""
        return eqx.tree_at(lambda heads: heads.task.value, self, jnp.asarray(task, jnp.int32))

    def keeping_others(self, before: Heads) -> Heads:
        """These heads, but all not in use as they were `before`: momentum and decay must not move them."""

        def pick(new: Array, old: Array) -> Array:
            used = jnp.arange(len(self.classes)) == self.task.value
            return jnp.where(used.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        changed = pick(self.weight, before.weight), pick(self.bias, before.bias)
        return eqx.tree_at(lambda heads: (heads.weight, heads.bias), self, changed)


def has_heads(network: Network) -> bool:
    """Whether the network's last stage is a head for each task."""
    return isinstance(network.stages[-1], Heads)


def use_head(network: Network, task: Int[Array, ""] | int) -> Network:
    """The network with the head of this task in use (from 0); ValueError where the number is known and too large.

    A network with a single head is returned as it is.
    """
    heads = network.stages[-1]
    if not isinstance(heads, Heads):
        return network
    if not isinstance(task, jax.Array) and not 0 <= int(task) < len(heads.classes):
        raise ValueError(f"no head for task {int(task)}; the network has heads for {len(heads.classes)} tasks")
    return network.replace(**{network.names[-1]: heads.used_by(task)})


@dataclass(frozen=True)
class HeadPerTask:
    """A maker of networks with a head for each task; made by `head_per_task`."""

    maker: Maker
    classes: tuple[int, ...]
    initializer: Initializer

    def __call__(self, key: PRNGKeyArray) -> Network:
        network = as_network(self.maker(key))
        last = network.stages[-1]
        if not isinstance(last, Dense):
            raise ValueError(
                f"the last stage, {network.names[-1]!r}, is {type(last).__name__}; head_per_task replaces a Dense head"
            )
        name = network.names[-1]
        heads = Heads(last.in_size, self.classes, key=named_key(key, name), initializer=self.initializer)
        return network.replace(**{name: heads})


def head_per_task(maker: Maker, classes: Sequence[int], *, initializer: Initializer = lecun) -> HeadPerTask:
    """A maker of `maker`'s network with its linear head replaced by one head for each task.

    classes: the number of classes of each task, in the order of the stream. Learners use the head of the task begun
    last.
    """
    return HeadPerTask(check_maker(maker), positives(classes, "classes"), initializer)
