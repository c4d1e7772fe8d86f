"""Sources of experience: a learner acts in environments, what happens goes into a replay, and batches come out of it.

Everything about acting is the source's: exploration, replay, frame stacks, n-step returns, how often to learn. The
learner gives greedy actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray, PyTree

from neoteny.learners.learner import Transitions
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask
from neoteny.tasks.replay import Layout, Replay, Slot, as_observation
from neoteny.tasks.sources import as_inputs
from neoteny.training.clock import Clock
from neoteny.training.keys import Purpose, named_key

Act = Callable[[Array, PRNGKeyArray], Array]
"""act(observations (envs, ...), key) -> greedy actions (envs,) int32."""


@dataclass(frozen=True)
class LinearEpsilon:
    """Probability of a random action: from `start` to `end` over the first `steps` environment steps of learning.

    Before learning begins, while the replay fills, every action is random.
    """

    start: float = 1.0
    end: float = 0.1
    steps: int = 100_000

    def __post_init__(self):
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1):
            raise ValueError(f"epsilon is a probability, not {self.start} to {self.end}")
        if self.steps < 1:
            raise ValueError(f"epsilon needs at least 1 step to fall, not {self.steps}")

    def __call__(self, steps: Array) -> Array:
        """Epsilon after this many environment steps of learning; 1 if they are negative."""
        share = jnp.clip(steps / self.steps, 0.0, 1.0)
        return jnp.where(steps < 0, 1.0, self.start + share * (self.end - self.start))


def network_input(observations: Array) -> Array:
    """Stored observations as the network sees them: bytes in [0, 1], truth values as 0 and 1, float32."""
    return as_inputs(observations).astype(jnp.float32)


def as_network_sees(batch: Transitions, show: Callable[[Array], Array] = lambda observations: observations):
    """The batch with its observations as `show` gives them, as `network_input`."""
    return batch._replace(
        observations=network_input(show(batch.observations)),
        next_observations=network_input(show(batch.next_observations)),
    )


class Playing(NamedTuple):
    """Environments under way, leading axis envs.

    frames: (envs, stack, *shape), the newest last, zero before an episode's first. age: earlier frames of the episode
    among them. cuts: episodes cut off so far. score: return so far.
    """

    environment: PyTree
    frames: Array
    age: Array
    cuts: Array
    score: Float32[Array, " envs"]


class ExperienceState(NamedTuple):
    """A device source between two batches. drawn: what the environment drew for this lane."""

    playing: Playing
    replay: Replay
    drawn: PyTree = ()


class Finished(NamedTuple):
    """Episodes that ended, the sum of their returns, and all rewards of the steps since."""

    episodes: Float32[Array, ""]
    returns: Float32[Array, ""]
    rewards: Float32[Array, ""]


@dataclass(frozen=True)
class Experience:
    """What sources of experience are told, whether they play on the device or on the host.

    envs: environments a lane plays side by side. period: steps of each between two updates. learning_starts:
    environment steps with random actions before the first update of a task; they fill its new replay. capacity:
    environment steps the replay holds. stack, steps, discount, reward_bound: see `Layout`. epsilon: of the training
    policy, evaluation_epsilon: of the evaluated one. evaluation_limit: steps after which an evaluated episode is given
    up and counts with the return it has.
    """

    batch_size: int = 32
    envs: int = 1
    period: int = 1
    learning_starts: int = 5_000
    capacity: int = 100_000
    stack: int = 1
    steps: int = 1
    discount: float = 0.99
    reward_bound: float | None = None
    epsilon: LinearEpsilon = LinearEpsilon()
    evaluation_epsilon: float = 0.0
    evaluation_limit: int = 10_000

    def __post_init__(self):
        for name in ("batch_size", "envs", "period", "evaluation_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.capacity % self.envs:
            raise ValueError(f"capacity ({self.capacity}) must be a multiple of envs ({self.envs})")
        fewest = (self.stack + self.steps) * self.envs
        if self.learning_starts < fewest:
            raise ValueError(
                f"learning_starts must be at least {fewest} for one transition, not {self.learning_starts}"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], not {self.discount}")

    @property
    def filling(self) -> int:
        """Slots before learning begins."""
        return -(-self.learning_starts // self.envs)

    def shapes(self, task: EnvironmentTask, count: int) -> Transitions:
        """The shapes of a batch of `count` transitions of one lane."""

        return jax.eval_shape(lambda: self.empty(task, count))

    def empty(self, task: EnvironmentTask, count: int) -> Transitions:
        """`count` transitions of one lane from an empty replay, inside a trace, for their shapes."""
        layout, environment = self.layout(task), task.environment
        batch = layout.sample(layout.empty(), jnp.int32(layout.fewest), jax.random.key(0), count)
        none = jnp.zeros((), jnp.float32)
        batch = batch._replace(episodes=none, returns=none, reward=none)
        if isinstance(environment, DeviceEnvironment):
            return as_network_sees(batch, environment.show)
        return as_network_sees(batch)

    def layout(self, task: EnvironmentTask, segment: int | None = None, ends: int = 0) -> Layout:
        """How this source keeps the experience of a task."""
        return Layout(
            task.specification,
            self.capacity // self.envs,
            self.envs,
            self.stack,
            self.steps,
            self.discount,
            self.reward_bound,
            segment,
            ends,
        )


@dataclass(frozen=True)
class DeviceExperience(Experience):
    """Environments, replay and exploration inside the compiled program."""

    compiled = True

    def written(self, task_update: Array) -> Array:
        """Slots written before the update of this number."""
        return jnp.where(task_update == 0, 0, self.filling + task_update * self.period)

    # Protocol -----------------------------------------------------------------------------------------------------

    def init(self, task: EnvironmentTask, key: PRNGKeyArray, drawn: PyTree = ()) -> ExperienceState:
        """New episodes and an empty replay; `drawn` is kept beside them."""
        return ExperienceState(self._begin(task, key, self.envs), self.layout(task).empty(), drawn)

    def next(
        self, state: ExperienceState, task: EnvironmentTask, act: Act, clock: Clock, key: PRNGKeyArray
    ) -> tuple[ExperienceState, Transitions, Array]:
        """Play `period` steps (and before the first update those that fill the replay), then draw a batch.

        The last value is how many environment steps were taken.
        """
        layout = self.layout(task)
        before = self.written(clock.task_update)
        after = self.written(clock.task_update + 1)

        def step(at: Array, carry: tuple[ExperienceState, Finished]) -> tuple[ExperienceState, Finished]:
            state, finished = carry
            epsilon = self.epsilon((at - self.filling) * self.envs)
            playing, slot, frame, ended = self._play(
                task, state.playing, act, epsilon, named_key(key, Purpose.EXPLORATION, at - before)
            )
            replay = layout.write(state.replay, at, slot, frame)
            state = state._replace(playing=playing, replay=replay)
            return state, Finished(*(a + b for a, b in zip(finished, ended, strict=True)))

        none = Finished(*(jnp.zeros((), jnp.float32) for _ in Finished._fields))
        state, finished = jax.lax.fori_loop(before, after, step, (state, none))
        batch = self._drawn(task, layout, state.replay, after, named_key(key, Purpose.DATA), self.batch_size)
        steps = (after - before) * self.envs
        batch = batch._replace(
            episodes=finished.episodes, returns=finished.returns, reward=finished.rewards / steps.astype(jnp.float32)
        )
        return state, batch, steps

    def sample(self, state: ExperienceState, task: EnvironmentTask, clock: Clock, key: PRNGKeyArray, count: int):
        """`count` transitions to look at, from the replay as it is before the update of this clock."""
        return self._drawn(task, self.layout(task), state.replay, self.written(clock.task_update), key, count)

    def evaluate(self, task: EnvironmentTask, act: Act, key: PRNGKeyArray, episodes: int) -> dict[str, Array]:
        """Mean return and length of as many episodes, played side by side in environments of their own.

        `unfinished` is the share that reached `evaluation_limit`.
        """

        def one(carry):
            playing, over, returns, lengths, time = carry
            playing, slot, _, _ = self._play(
                task, playing, act, self.evaluation_epsilon, named_key(key, Purpose.EXPLORATION, time)
            )
            returns = returns + jnp.where(over, 0.0, slot.reward)
            lengths = lengths + ~over
            return playing, over | slot.ended, returns, lengths, time + 1

        playing = self._begin(task, named_key(key, Purpose.ENVIRONMENT), episodes)
        start = (
            playing, jnp.zeros(episodes, bool), jnp.zeros(episodes), jnp.zeros(episodes, jnp.int32),
            jnp.zeros((), jnp.int32),
        )  # fmt: skip
        limit = self.evaluation_limit
        _, over, returns, lengths, _ = jax.lax.while_loop(lambda c: ~jnp.all(c[1]) & (c[-1] < limit), one, start)
        return {
            "return": jnp.mean(returns),
            "length": jnp.mean(lengths.astype(jnp.float32)),
            "unfinished": jnp.mean((~over).astype(jnp.float32)),
        }

    # Playing ------------------------------------------------------------------------------------------------------

    def _drawn(
        self, task: EnvironmentTask, layout: Layout, replay: Replay, written: Array, key: PRNGKeyArray, count: int
    ) -> Transitions:
        return as_network_sees(layout.sample(replay, written, key, count), _device(task).show)

    def _begin(self, task: EnvironmentTask, key: PRNGKeyArray, envs: int) -> Playing:
        inner, first = jax.vmap(_device(task).reset)(jax.random.split(key, envs))
        frames = jnp.zeros((envs, self.stack, *first.shape[1:]), first.dtype).at[:, -1].set(first)
        zeros = jnp.zeros(envs, jnp.int32)
        return Playing(inner, frames, zeros, zeros, jnp.zeros(envs, jnp.float32))

    def _play(
        self, task: EnvironmentTask, playing: Playing, act: Act, epsilon: Array | float, key: PRNGKeyArray
    ) -> tuple[Playing, Slot, Array, Finished]:
        """One step of all environments: the slot it fills, the frame seen after it, and episodes that ended."""
        environment, envs = _device(task), playing.age.shape[0]
        act_key, choice_key, random_key, world_key, reset_key = jax.random.split(key, 5)
        greedy = act(network_input(environment.show(as_observation(playing.frames))), act_key)
        anything = jax.random.randint(random_key, (envs,), 0, task.specification.actions)
        action = jnp.where(jax.random.uniform(choice_key, (envs,)) < epsilon, anything, greedy).astype(jnp.int32)
        inner, step = jax.vmap(environment.step)(playing.environment, action, jax.random.split(world_key, envs))
        ended, cut = step.terminated | step.truncated, step.truncated & ~step.terminated
        slot = Slot(
            frame=playing.frames[:, -1],
            action=action,
            reward=step.reward,
            terminated=step.terminated,
            ended=ended,
            age=playing.age.astype(jnp.uint8),
            cuts=playing.cuts,
        )
        again, first = jax.vmap(environment.reset)(jax.random.split(reset_key, envs))
        score = playing.score + step.reward
        new = Playing(
            environment=_where(ended, again, inner),
            frames=_where(
                ended,
                jnp.zeros_like(playing.frames).at[:, -1].set(first),
                jnp.concatenate([playing.frames[:, 1:], step.frame[:, None]], axis=1),
            ),
            age=jnp.where(ended, 0, jnp.minimum(playing.age + 1, self.stack - 1)),
            cuts=playing.cuts + cut,
            score=jnp.where(ended, 0.0, score),
        )
        finished = Finished(
            jnp.sum(ended.astype(jnp.float32)), jnp.sum(jnp.where(ended, score, 0.0)), jnp.sum(step.reward)
        )
        return new, slot, step.frame, finished


def _device(task: EnvironmentTask) -> DeviceEnvironment:
    if not isinstance(task.environment, DeviceEnvironment):
        raise ValueError(f"{task.name} runs on the host; a device source needs a device environment")
    return task.environment


def _where(choose: Array, yes: PyTree, no: PyTree) -> PyTree:
    """Leaf by leaf, `yes` in the environments chosen (envs,)."""
    return jax.tree.map(lambda a, b: jnp.where(choose.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


MINATAR = DeviceExperience()
"""Young & Tian 2019 (their DQN's published code): batches of 32, one update a frame, replay of 100,000 frames, 5,000
random ones first, epsilon from 1 to 0.1 over 100,000, discount 0.99.
"""
