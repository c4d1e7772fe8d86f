"""A random walk beside a learner, in steps of the same lengths (Lyle et al. 2023, section 4.2)."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from neoteny.learners.learner import Learner, LearnerState
from neoteny.learners.supervised import ONLINE
from neoteny.networks.initializers import named_key
from neoteny.networks.network import split_trainable
from neoteny.training.clock import Clock

LEADER = "leader_"
"""What the names of the networks that learn begin with."""


def step_length(before: PyTree, after: PyTree) -> Float[Array, ""]:
    """L2 norm of the change of all trained parameters."""
    changes = jax.tree.map(jnp.subtract, split_trainable(after)[0], split_trainable(before)[0])
    return jnp.sqrt(sum(jnp.sum(jnp.square(change)) for change in jax.tree.leaves(changes)))


def gaussian_step(like: PyTree, length: Float[Array, ""], key: PRNGKeyArray) -> PyTree:
    """A step of this length in a direction drawn uniformly, of the structure of the arrays `like`."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)]
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(each)) for each in drawn))
    return jax.tree.unflatten(structure, [each * (length / norm) for each in drawn])


def random_walk(learner: Learner) -> Learner:
    """A learner whose network takes, at every update, a Gaussian step as long as the one `learner` takes.

    Both begin alike. The networks that learn are kept under `leader_NAME`; they act, and their updates are the same as
    in a run of `learner` of the same seed. `online` is the walk, which probes see, and its followers follow it.
    Optimiser state is the leader's, so interventions that reset some do not fit. Metrics are the leader's, and `step`,
    the length.
    """

    def apart(state: LearnerState) -> tuple[LearnerState, LearnerState]:
        """(leader, walk), each as a state of `learner`."""
        leading = {name.removeprefix(LEADER): net for name, net in state.networks.items() if name.startswith(LEADER)}
        walking = {name: net for name, net in state.networks.items() if not name.startswith(LEADER)}
        pairs = tuple(pair for pair in state.followers if not pair[0].startswith(LEADER))
        return (
            LearnerState(leading, state.optimizer, state.memory, pairs, state.origin),
            LearnerState(walking, state.optimizer, state.memory, pairs, state.origin),
        )

    def together(leader: LearnerState, walk: LearnerState) -> LearnerState:
        networks = {**walk.networks, **{f"{LEADER}{name}": net for name, net in leader.networks.items()}}
        pairs = tuple((f"{LEADER}{follower}", f"{LEADER}{leading}") for follower, leading in leader.followers)
        return LearnerState(networks, leader.optimizer, leader.memory, (*leader.followers, *pairs), leader.origin)

    def init(key) -> LearnerState:
        state = learner.init(key)
        return together(state, state)

    def update(state: LearnerState, batch, key):
        leader, walk = apart(state)
        new, metrics = learner.update(leader, batch, key)
        length = step_length(leader.networks[ONLINE], new.networks[ONLINE])
        parameters, rest = split_trainable(walk.networks[ONLINE])
        step = gaussian_step(parameters, length, named_key(key, "random_walk"))
        moved = eqx.combine(jax.tree.map(jnp.add, parameters, step), rest)
        networks = {**walk.networks, ONLINE: moved}
        walk = LearnerState(networks, walk.optimizer, walk.memory, walk.followers, walk.origin)
        return together(new, walk), {**metrics, "step": length}

    def predict(state: LearnerState, inputs: Array) -> Array:
        return learner.predict(apart(state)[1], inputs)

    def switch(state: LearnerState, task_index, sample_previous, key) -> LearnerState:
        leader, walk = apart(state)
        return together(
            learner.switch(leader, task_index, sample_previous, key),
            learner.switch(walk, task_index, sample_previous, key),
        )

    def view(state: LearnerState):
        return learner.view(apart(state)[1])

    def act(state: LearnerState, observations: Array, key) -> Array:
        assert learner.act is not None
        return learner.act(apart(state)[0], observations, key)

    def periodic(state: LearnerState, clock: Clock) -> LearnerState:
        assert learner.periodic is not None
        leader, walk = apart(state)
        return together(learner.periodic(leader, clock), learner.periodic(walk, clock))

    return learner._replace(
        init=init,
        update=update,
        predict=predict,
        switch=switch,
        view=view,
        act=None if learner.act is None else act,
        periodic=None if learner.periodic is None else periodic,
    )
