"""Small environments with known answers, and a loop of lanes as the pack's program has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from neoteny.learners.learner import Learner, detach
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask, Specification, Step
from neoteny.tasks.experience import DeviceExperience
from neoteny.training.clock import Clock
from neoteny.training.keys import Purpose, named_key, root_key

NEXT = ((1, 2), (3, 0), (0, 3), (2, 4), (4, 4))
REWARD = ((0.0, 0.3), (0.5, 0.0), (0.2, -0.1), (0.0, 1.0), (0.0, 0.0))
LAST = 4


@dataclass(frozen=True)
class Maze(DeviceEnvironment):
    """Five states, two actions; state 4 ends it. Frames are one-hot."""

    time_limit: int | None = None

    @property
    def specification(self):
        return Specification((5,), "bool", 2, self.time_limit)

    def reset(self, key):
        state = jax.random.randint(key, (), 0, LAST)
        return (state, jnp.zeros((), jnp.int32)), jnp.arange(5) == state

    def step(self, state, action, key):
        place, time = state
        reward, place = jnp.asarray(REWARD)[place, action], jnp.asarray(NEXT)[place, action]
        terminated, time = place == LAST, time + 1
        truncated = jnp.zeros((), bool) if self.time_limit is None else (time >= self.time_limit) & ~terminated
        return (place, time), Step(jnp.arange(5) == place, reward, terminated, truncated)


def optimal_values(discount: float) -> np.ndarray:
    """Q* of the maze (5, 2), by value iteration in float64."""
    values = np.zeros((5, 2))
    for _ in range(2_000):
        best = values.max(axis=1)  # stays 0 in the last state
        values = np.asarray(REWARD) + discount * best[np.asarray(NEXT)]
    return values


class CorridorState(NamedTuple):
    time: Array
    number: Array


@dataclass(frozen=True)
class Corridor(DeviceEnvironment):
    """Frames (time, number of the episode drawn at random); the reward is the action; cut off after `time_limit`."""

    time_limit: int = 5
    actions: int = 3

    @property
    def specification(self):
        return Specification((2,), "float32", self.actions, self.time_limit)

    def reset(self, key):
        state = CorridorState(jnp.zeros((), jnp.int32), jax.random.randint(key, (), 1, 1_000_000))
        return state, jnp.stack([state.time, state.number]).astype(jnp.float32)

    def step(self, state, action, key):
        state = state._replace(time=state.time + 1)
        frame = jnp.stack([state.time, state.number]).astype(jnp.float32)
        ended = state.time >= self.time_limit
        return state, Step(frame, action.astype(jnp.float32), jnp.zeros((), bool), ended)


class Loop:
    """Lanes of one learner, source and task under one clock."""

    def __init__(self, learner: Learner, source: DeviceExperience, environment: DeviceEnvironment, seeds):
        self.learner, self.source = learner, source
        self.task = EnvironmentTask("task", environment)
        self.seeds = jnp.asarray(seeds, jnp.int32)
        self.state = jax.jit(jax.vmap(self._init))(self.seeds)
        self.clock = Clock.start()
        self.batches: list = []

    def _init(self, seed):
        root = root_key(seed)
        state = detach(self.learner.init(named_key(root, Purpose.INIT)))
        return state, self.source.init(self.task, named_key(root, Purpose.DATA, 0))

    def _lane(self, state, seed, clock):
        learner_state, source_state = state
        key = named_key(root_key(seed), Purpose.BATCH, clock.task, clock.task_update)
        act = partial(self.learner.act, learner_state)
        source_state, batch, cost = self.source.next(source_state, self.task, act, clock, key)
        learner_state, metrics = self.learner.update(learner_state, batch, key)
        if self.learner.periodic is not None:
            learner_state = self.learner.periodic(learner_state, clock.tick())
        return (detach(learner_state), source_state), batch, metrics, cost

    def step(self, state, clock):
        """One update of all lanes."""
        lanes = jax.vmap(lambda s, seed: self._lane(s, seed, clock), out_axes=(0, 0, 0, None))
        state, batch, metrics, cost = lanes(state, self.seeds)
        clock = clock.tick()
        return state, clock._replace(env_step=clock.env_step + cost), batch, metrics

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _chunk(self, state, clock, updates):
        def body(carry):
            state, clock, index = carry
            state, clock, _, _ = self.step(state, clock)
            return state, clock, index + 1

        carry = (state, clock, jnp.int32(0))
        state, clock, _ = jax.lax.while_loop(lambda c: c[2] < updates, body, carry)
        return state, clock

    def run(self, updates: int) -> None:
        """That many updates in one program."""
        self.state, self.clock = self._chunk(self.state, self.clock, jnp.int32(updates))

    def run_keeping_batches(self, updates: int) -> None:
        """The same one by one, keeping the batches."""
        step = jax.jit(self.step)
        for _ in range(updates):
            self.state, self.clock, batch, _ = step(self.state, self.clock)
            self.batches.append(jax.device_get(batch))
