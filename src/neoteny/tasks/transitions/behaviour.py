"""Data sets made by an agent that learns while it is recorded: every transition, from random to good.

Section 7.1 of the study's specification (arXiv:2207.02099; its data come from arXiv:2103.09575, whose are not public).
One compiled loop plays, records and learns; the recipe determines every draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from neoteny.errors import UsageError
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import LearnerState, Transitions, detach
from neoteny.networks import mlp
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.experience import DeviceExperience, network_input
from neoteny.tasks.gymnax_environments import Gymnax, catch
from neoteny.tasks.transitions.data import TransitionSet, from_episodes
from neoteny.tasks.transitions.offline import noisy_action
from neoteny.training.clock import Clock
from neoteny.training.keys import Purpose, named_key, root_key

VERSION = 1
"""Of the recipe's meaning: a change of it makes other data from the same numbers."""

HIDDEN = (56, 56)
"""Widths of the behaviour agent, those of RL Unplugged's bsuite agent."""

JUDGED = 100
"""Episodes of the uniformly random policy whose mean return is kept with the data."""

BEST_SHARE = 0.1
"""The best behaviour return is the best mean over so large a share of successive episodes."""


def with_velocity(observation: Array) -> Array:
    """MountainCar's scripted controller: push in the direction of the velocity, right if it stands still."""
    return jnp.where(observation[1] >= 0, 2, 0).astype(jnp.int32)


@dataclass(frozen=True)
class Level:
    """An environment to record: its limit of steps, the episodes of a full set, and the scripted policy if it needs
    one.
    """

    environment: Gymnax
    limit: int
    episodes: int
    script: Callable[[Array], Array] | None = None
    scripted: float = 0.0


LEVELS = {
    "catch": Level(catch(), 9, 2_000),
    "mountain_car": Level(Gymnax("MountainCar-v0", time_limit=200), 200, 500, with_velocity, 0.3),
    "cartpole": Level(Gymnax("CartPole-v1", time_limit=500), 500, 500),
}
"""Level -> what it is. Catch ends by itself after nine steps."""


@dataclass(frozen=True)
class Recipe:
    """Everything a generated data set follows from.

    noise: probability that a uniformly random action replaces the chosen one. episodes: 0 for the level's own number.
    epsilon falls from 1 to `epsilon_end` over the first half of the episodes. One update of the agent (double DQN,
    Adam) follows every step. The level's script, if it has one, plays its share of the episodes.
    """

    level: str = "catch"
    noise: float = 0.1
    episodes: int = 0
    seed: int = 0
    learning_rate: float = 3e-4
    batch: int = 64
    discount: float = 0.99
    epsilon_end: float = 0.05
    target_period: int = 500
    version: int = VERSION

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UsageError(f"there is no level {self.level!r} to record; there are {', '.join(LEVELS)}")
        if not 0 <= self.noise <= 1:
            raise UsageError(f"noise is a probability, not {self.noise}")
        if self.episodes < 0 or self.episodes == 1:
            raise UsageError(f"a set needs at least 2 episodes, or 0 for the level's own number, not {self.episodes}")

    @property
    def count(self) -> int:
        """Episodes of the set."""
        return self.episodes or LEVELS[self.level].episodes

    @property
    def name(self) -> str:
        """What the set is called, by all that makes it."""
        return f"{self.level}-noise{self.noise:g}-episodes{self.count}-seed{self.seed}"


class _Rows(NamedTuple):
    """What is recorded, arrays (capacity, ...)."""

    obs: Array
    chosen_action: Array
    executed_action: Array
    reward: Array
    next_obs: Array
    terminated: Array
    truncated: Array
    episode: Array
    step: Array
    scripted: Array


class _Recording(NamedTuple):
    environment: Any
    obs: Array
    learner: LearnerState
    rows: _Rows
    written: Array
    episode: Array
    step: Array


def generate(recipe: Recipe) -> TransitionSet:
    """Play and record; seconds to a minute. `about` holds the recipe, and the returns of the random policy and of the
    behaviour at its best and on average.
    """
    recorded, random_return = _played(recipe)
    rows, written = jax.device_get(recorded)
    held = {name: np.asarray(array)[: int(written)] for name, array in rows._asdict().items()}
    first = held["step"] == 0
    about = {**asdict(recipe), "episodes": recipe.count, "scripted_share": float(np.mean(held.pop("scripted")[first]))}
    level = LEVELS[recipe.level]
    data = from_episodes(recipe.name, held, level.environment.specification.actions, about)
    about.update(returns_summary(data, float(random_return)))
    return from_episodes(recipe.name, held, data.actions, about)


def returns_summary(data: TransitionSet, random_return: float) -> dict[str, float]:
    """random_return, mean_return (of the behaviour) and best_return: the best mean of successive episodes."""
    window = max(1, round(BEST_SHARE * len(data.returns)))
    sums = np.concatenate([[0.0], np.cumsum(data.returns)])
    best = float(np.max((sums[window:] - sums[:-window]) / window))
    return {"random_return": random_return, "mean_return": float(data.returns.mean()), "best_return": best}


def _played(recipe: Recipe) -> tuple[tuple[_Rows, Array], Array]:
    level = LEVELS[recipe.level]
    environment, capacity = level.environment, level.limit * recipe.count
    actions, shape = environment.specification.actions, environment.specification.shape
    agent = dqn(mlp(shape, HIDDEN, actions), optax.adam(recipe.learning_rate), target_period=recipe.target_period)
    root = root_key(recipe.seed)

    def see(frame: Array) -> Array:
        return network_input(environment.show(frame[None]))[0]

    def begin(episode: Array) -> tuple[Any, Array]:
        inner, frame = environment.reset(named_key(root, Purpose.ENVIRONMENT, episode))
        return inner, see(frame)

    def choose(held: _Recording, key: Array) -> tuple[Array, Array]:
        """The action, and whether the script chose it."""
        half = max(1, recipe.count // 2)
        epsilon = 1 + jnp.minimum(held.episode / half, 1.0) * (recipe.epsilon_end - 1)
        greedy_key, explore_key, which_key = jax.random.split(key, 3)
        assert agent.act is not None
        greedy = agent.act(held.learner, held.obs[None], greedy_key)[0]
        anything = jax.random.randint(which_key, (), 0, actions, dtype=jnp.int32)
        chosen = jnp.where(jax.random.uniform(explore_key) < epsilon, anything, greedy)
        if level.script is None:
            return chosen, jnp.zeros((), bool)
        draw = jax.random.uniform(named_key(root, Purpose.EXPLORATION, held.episode))
        scripted = draw < level.scripted
        return jnp.where(scripted, level.script(held.obs), chosen), scripted

    def one(held: _Recording) -> _Recording:
        key = named_key(root, Purpose.BATCH, held.written)
        act_key, noise_key, world_key, sample_key, update_key = jax.random.split(key, 5)
        chosen, scripted = choose(held, act_key)
        executed = noisy_action(noise_key, chosen, recipe.noise, actions)
        inner, step = environment.step(held.environment, executed, world_key)
        seen = see(step.frame)
        row = _Rows(
            held.obs, chosen, executed, step.reward, seen, step.terminated, step.truncated, held.episode, held.step,
            scripted,
        )  # fmt: skip
        rows = jax.tree.map(
            lambda all_rows, new: jax.lax.dynamic_update_index_in_dim(all_rows, new, held.written, 0), held.rows, row
        )
        written = held.written + 1
        drawn = jax.random.randint(sample_key, (recipe.batch,), 0, written)
        discounts = recipe.discount * (1.0 - rows.terminated[drawn].astype(jnp.float32))
        batch = Transitions(
            rows.obs[drawn], rows.chosen_action[drawn], rows.reward[drawn], discounts, rows.next_obs[drawn]
        )
        learner, _ = agent.update(held.learner, batch, update_key)
        assert agent.periodic is not None
        learner = detach(agent.periodic(learner, Clock(written, written, 0, written)))
        ended = step.terminated | step.truncated
        episode = held.episode + ended
        again, first = begin(episode)
        return _Recording(
            jax.tree.map(lambda new, old: jnp.where(ended, new, old), again, inner),
            jnp.where(ended, first, seen),
            learner,
            rows,
            written,
            episode,
            jnp.where(ended, 0, held.step + 1),
        )

    @jax.jit
    def play() -> tuple[tuple[_Rows, Array], Array]:
        zero = jnp.zeros((), jnp.int32)
        inner, obs = begin(zero)
        truth, number = jnp.zeros(capacity, bool), jnp.zeros(capacity, jnp.int32)
        frames = jnp.zeros((capacity, *obs.shape), obs.dtype)
        rows = _Rows(
            frames, number, number, jnp.zeros(capacity, jnp.float32), frames, truth, truth, number, number, truth
        )
        learner = detach(agent.init(named_key(root, Purpose.INIT)))
        start = _Recording(inner, obs, learner, rows, zero, zero, zero)
        over = jax.lax.while_loop(lambda held: held.episode < recipe.count, one, start)

        def still(observations, key):
            return jnp.zeros(observations.shape[0], jnp.int32)

        uniform = DeviceExperience(evaluation_epsilon=1.0, evaluation_limit=level.limit + 1)
        judged = uniform.evaluate(
            EnvironmentTask("random", environment), still, named_key(root, Purpose.EVALUATE), JUDGED
        )
        return (over.rows, over.written), judged["return"]

    return play()
