"""Recorded transitions as a task: shuffled minibatches of them to learn from, and an environment to be judged in."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from neoteny.errors import UsageError
from neoteny.learners.learner import Batch, Outcomes, Transitions
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask, Specification
from neoteny.tasks.experience import Act, DeviceExperience
from neoteny.tasks.sources import Minibatch, SourceState, TaskArrays
from neoteny.tasks.streams import Stream, Task, Transform


@dataclass(frozen=True)
class AsOutcomes(Transform):
    """Rows of `TransitionSet.arrays` as observations and their `Outcomes`."""

    def draw(self, key, targets, features):
        return ()

    def __call__(self, drawn, inputs, targets, rows):
        return inputs[:, 0], Outcomes(
            actions=targets[:, 0].astype(jnp.int32),
            rewards=targets[:, 1],
            terminated=targets[:, 2] > 0,
            next_observations=inputs[:, 1],
            next_actions=targets[:, 3].astype(jnp.int32),
        )  # pyright: ignore[reportReturnType]


def noisy_action(key: PRNGKeyArray, action: Array, probability: float, actions: int) -> Array:
    """`action` () int32, or with this probability one drawn uniformly from all."""
    intervene, which = jax.random.split(key)
    drawn = jax.random.randint(which, (), 0, actions, dtype=jnp.int32)
    return jnp.where(jax.random.uniform(intervene) < probability, drawn, action).astype(jnp.int32)


@dataclass(frozen=True)
class NoisyActions(DeviceEnvironment):
    """An environment in which, at each step, a uniformly random action replaces the one given with `probability`."""

    environment: DeviceEnvironment
    probability: float

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the noise is a probability, not {self.probability}")

    def __str__(self) -> str:
        return f"{self.environment} with action noise {self.probability:g}"

    @property
    def specification(self) -> Specification:
        return self.environment.specification

    def show(self, observations):
        return self.environment.show(observations)

    def reset(self, key):
        return self.environment.reset(key)

    def step(self, state, action, key):
        noise_key, world_key = jax.random.split(key)
        executed = noisy_action(noise_key, action, self.probability, self.specification.actions)
        return self.environment.step(state, executed, world_key)


def offline(data: Arrays, judged_in: tuple[DeviceEnvironment, ...] = ()) -> Stream:
    """A stream of the recorded task and then of the environments a policy is judged in, which nothing is trained on.

    data: from `TransitionSet.arrays`. UsageError if an environment shows or takes something else than the data.
    """
    shape, actions = data.input_shape[1:], data.classes
    for environment in judged_in:
        shown = environment.specification
        if (shown.shape, shown.actions) != (shape, actions):
            raise UsageError(
                f"{data.name} has observations {shape} and {actions} actions, {environment} has {shown.shape} and "
                f"{shown.actions}; judge the policy in the environment the data come from"
            )

    def make(index: int) -> Task | EnvironmentTask:
        if index == 0:
            return Task(data.name, data, data.splits, AsOutcomes())
        environment = judged_in[index - 1]
        return EnvironmentTask(str(environment), environment, draw=index)

    return Stream(make, 1 + len(judged_in))  # pyright: ignore[reportArgumentType]


GREEDY = DeviceExperience(evaluation_epsilon=0.0)
"""How a policy is judged: as it is, without exploration."""


@dataclass(frozen=True)
class OfflineSource:
    """Shuffled minibatches of a recorded task; environments are played in evaluations alone.

    playing: how episodes are played there.
    """

    batch_size: int = 64
    playing: DeviceExperience = GREEDY
    compiled = True

    def __post_init__(self):
        Minibatch(self.batch_size)  # its checks are this one's

    @property
    def _minibatch(self) -> Minibatch:
        return Minibatch(self.batch_size)

    def init(self, task: TaskArrays, transform: Transform, key: PRNGKeyArray) -> SourceState:
        """The state at the beginning of the recorded task."""
        return self._minibatch.init(task, transform, key)

    def next(
        self, state: SourceState, task: TaskArrays, transform: Transform, task_update: Array, key: PRNGKeyArray
    ) -> tuple[SourceState, Batch]:
        """The batch of update number `task_update`; see `Minibatch.next`."""
        return self._minibatch.next(state, task, transform, task_update, key)

    def empty(self, task: EnvironmentTask, count: int) -> Transitions:
        """`count` transitions of an environment, inside a trace, for their shapes."""
        return self.playing.empty(task, count)

    def evaluate(self, task: EnvironmentTask, act: Act, key: PRNGKeyArray, episodes: int) -> dict[str, Array]:
        """Mean return and length of so many episodes; see `DeviceExperience.evaluate`."""
        return self.playing.evaluate(task, act, key, episodes)
