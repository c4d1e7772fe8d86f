"""The learner protocol: a NamedTuple of pure functions over one state, and the view of it that probes get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray, PyTree

from neoteny.networks.network import Maker, Network, split_trainable

if TYPE_CHECKING:
    from neoteny.training.clock import Clock


class Batch(NamedTuple):
    """A supervised batch: `inputs` (batch, ...) float32, `targets` (batch,) int32 labels or (batch, outputs)
    float32.
    """

    inputs: Array
    targets: Array


class Transitions(NamedTuple):
    """A batch to learn values from.

    observations, next_observations: (batch, ...) as the network sees them. rewards: (batch,), the discounted sum of the
    steps between the two. discounts: (batch,), what the value of the next observation counts: gamma^n, 0 after
    termination. episodes, returns: () float32, episodes that ended since the last batch, and the sum of their returns.
    reward: () float32, mean reward of a step since then.
    """

    observations: Any
    actions: Int32[Any, " batch"]
    rewards: Float32[Any, " batch"]
    discounts: Float32[Any, " batch"]
    next_observations: Any
    episodes: Any = 0.0
    returns: Any = 0.0
    reward: Any = 0.0

    @property
    def inputs(self) -> Array:
        """What goes through the network first, as in a supervised batch."""
        return self.observations

    @property
    def targets(self) -> Array:
        """The actions."""
        return self.actions


class Outcomes(NamedTuple):
    """What a data set says happened after its observations: the targets of a `Batch` of transitions.

    actions: (batch,). rewards: (batch,). terminated: (batch,), there is no future. next_observations: (batch, ...) as
    the network sees them. next_actions: (batch,), those of the data; of no meaning after termination.
    """

    actions: Int32[Any, " batch"]
    rewards: Float32[Any, " batch"]
    terminated: Bool[Any, " batch"]
    next_observations: Any
    next_actions: Int32[Any, " batch"]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a state came from: what makes fresh parameters and fresh optimiser state of the same structure.

    `makers` and `optimizers` are by network name. An origin may close over traced hyper-parameters, so it never leaves
    the program it was made in: the runner detaches it at the boundary and attaches it again inside. `memory` gives the
    learner's memory as it is of networks just made, for interventions that change their structure; None if a memory
    never depends on it.
    """

    makers: dict[str, Maker]
    optimizers: dict[str, optax.GradientTransformation]
    memory: Callable[[dict[str, Network]], PyTree] | None = None


class LearnerState(eqx.Module):
    """All a learner holds between updates.

    networks: name -> network ("online" is the trained one). followers: ((target, online), ...) pairs that get every
    draw of the network they follow. optimizer: network -> stage -> optimiser state; a frozen stage has no entry.
    memory: what regularisers and losses keep.
    """

    networks: dict[str, Network]
    optimizer: dict[str, dict[str, PyTree]]
    memory: PyTree = None
    followers: tuple[tuple[str, str], ...] = eqx.field(static=True, default=())
    origin: Origin | None = eqx.field(static=True, default=None)

    def require_origin(self) -> Origin:
        """The origin, or a ValueError saying how to attach one."""
        if self.origin is None:
            raise ValueError("this state has no origin to draw fresh parameters from; use attach(state, learner) first")
        return self.origin


class View(NamedTuple):
    """All that probes see of a learner.

    loss(network, batch, key) -> scalar, the training loss without updating statistics. features(network, inputs) ->
    {stage: (batch, ...)}. `optimizer` is the per-stage transformation, `maker` makes a fresh network. Where outputs are
    not themselves the numbers they stand for, `decode(outputs)` -> (batch, values) reads them, and `fit(outputs,
    targets (batch, values))` -> scalar is the loss that fits them; None: outputs, and squared error.
    """

    network: Network
    loss: Callable[[Network, Any, PRNGKeyArray | None], Array]
    optimizer: optax.GradientTransformation
    features: Callable[[Network, Array], dict[str, Array]]
    maker: Maker
    decode: Callable[[Array], Array] | None = None
    fit: Callable[[Array, Array], Array] | None = None


class Learner(NamedTuple):
    """Pure functions; the state is the caller's.

    init(key) -> state. update(state, batch, key) -> (state, metrics: {name: scalar}). predict(state, inputs) ->
    outputs. score(outputs, targets) -> {metric: (batch,)} per example, for evaluation. switch(state, task_index,
    sample_previous, key) -> state, called when a new task begins. view(state) -> View. act(state, observations, key) ->
    actions, None for learners that never act. periodic(state, clock) -> state, called after every update with the
    shared clock, for work done now and then (`lax.cond` on the clock is a real branch); None if there is none.
    """

    init: Callable[[PRNGKeyArray], LearnerState]
    update: Callable[[LearnerState, Any, PRNGKeyArray], tuple[LearnerState, dict[str, Array]]]
    predict: Callable[[LearnerState, Array], Array]
    score: Callable[[Array, Array], dict[str, Array]]
    switch: Callable[[LearnerState, Array, Callable | None, PRNGKeyArray], LearnerState]
    view: Callable[[LearnerState], View]
    origin: Origin
    act: Callable[[LearnerState, Array, PRNGKeyArray], Array] | None = None
    periodic: Callable[[LearnerState, Clock], LearnerState] | None = None


def attach(state: LearnerState, learner: Learner) -> LearnerState:
    """`state` with the learner's origin, so that interventions can draw fresh parameters and moments."""
    return LearnerState(state.networks, state.optimizer, state.memory, state.followers, learner.origin)


def detach(state: LearnerState) -> LearnerState:
    """`state` without its origin: only arrays, fit to cross a program boundary or to be stored."""
    return LearnerState(state.networks, state.optimizer, state.memory, state.followers, None)


def init_stages(optimizer: optax.GradientTransformation, network: Network) -> dict[str, PyTree]:
    """Fresh optimiser state for every stage that has trained parameters: stage -> state."""
    states = {}
    for name, stage in zip(network.names, network.stages, strict=True):
        parameters, _ = split_trainable(stage)
        if jax.tree.leaves(parameters):
            states[name] = optimizer.init(parameters)
    return states
