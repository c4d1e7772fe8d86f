"""Atari data sets of the console's 128 bytes of memory, recorded while a DQN of this library learns from them.

`ALE/<Game>-v5` of Gymnasium: an action lasts four frames, and with probability 0.25 each frame repeats the action
before (Machado et al. 2018). Written as Minari data sets by `write_minari`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neoteny.errors import UsageError
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import Transitions
from neoteny.networks import mlp
from neoteny.tasks.sources import as_inputs
from neoteny.tasks.transitions.data import TransitionSet, from_episodes
from neoteny.training.clock import Clock
from neoteny.training.keys import Purpose, named_key, root_key

Policy = Callable[[np.ndarray, int], int]
"""policy(memory (128,) uint8, step) -> action; the step counts from 0 over all episodes."""


@dataclass(frozen=True)
class RamRecipe:
    """What a recording follows from. game: as Gymnasium calls it ("Freeway"). The agent explores with an epsilon that
    falls from 1 to `epsilon_end` over the first half of the steps, and learns every `period` steps.
    """

    game: str
    steps: int = 50_000
    seed: int = 0
    sticky: float = 0.25
    frame_skip: int = 4
    mode: int = 0
    difficulty: int = 0
    width: int = 256
    learning_rate: float = 3e-4
    batch: int = 64
    period: int = 4
    discount: float = 0.99
    epsilon_end: float = 0.05
    target_period: int = 500

    def __post_init__(self):
        for name in ("steps", "frame_skip", "width", "batch", "period", "target_period"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.sticky < 1:
            raise UsageError(f"sticky is a probability below 1, not {self.sticky}")


def record_ram(recipe: RamRecipe, policy: Policy | None = None) -> TransitionSet:
    """Play so many steps and record them, the last episode truncated; the agent that learns meanwhile, or `policy`."""
    environment, version = _environment(recipe)
    actions = int(environment.action_space.n)  # pyright: ignore[reportAttributeAccessIssue] - always Discrete
    agent = _Agent(recipe, actions) if policy is None else None
    rows: dict[str, list] = {name: [] for name in ("obs", "next_obs", "chosen_action", "reward", "terminated")}
    rows |= {name: [] for name in ("truncated", "episode", "step")}
    seen, _ = environment.reset(seed=recipe.seed)
    episode, within = 0, 0
    for step in range(recipe.steps):
        action = int(policy(seen, step) if policy is not None else agent.act(seen, step))  # pyright: ignore
        following, reward, terminated, truncated, _ = environment.step(action)
        truncated = bool(truncated or step + 1 == recipe.steps) and not terminated
        values = (seen.copy(), following.copy(), action, float(reward), bool(terminated), truncated, episode, within)
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        if agent is not None:
            agent.learn(values, step)
        seen, within = following, within + 1
        if terminated or truncated:
            seen, _ = environment.reset()
            episode, within = episode + 1, 0
    environment.close()
    about = {**asdict(recipe), "ale_version": version, "policy": "learning DQN" if policy is None else "given"}
    return from_episodes(
        f"{recipe.game.lower()}-ram-seed{recipe.seed}", {k: np.array(v) for k, v in rows.items()}, actions, about
    )


def _environment(recipe: RamRecipe):
    try:
        import ale_py
        import gymnasium
    except ImportError:
        raise UsageError("Atari data sets need ale-py and gymnasium: pip install 'neoteny[atari]'") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    try:
        made = gymnasium.make(
            f"ALE/{recipe.game}-v5",
            obs_type="ram",
            frameskip=recipe.frame_skip,
            repeat_action_probability=recipe.sticky,
            mode=recipe.mode,
            difficulty=recipe.difficulty,
        )
    except gymnasium.error.Error as error:
        raise UsageError(f"Gymnasium has no game {recipe.game!r}: {error}") from error
    return made, metadata.version("ale-py")


class _Agent:
    """A double DQN that learns from what it has recorded; programs act and update, memory is on the host."""

    def __init__(self, recipe: RamRecipe, actions: int):
        self._recipe, self._actions = recipe, actions
        maker = mlp(128, (recipe.width, recipe.width), actions)
        learner = dqn(maker, optax.adam(recipe.learning_rate), target_period=recipe.target_period)
        self._root = root_key(recipe.seed)
        self._draws = np.random.default_rng(recipe.seed)
        self._state = jax.jit(learner.init)(named_key(self._root, Purpose.INIT))
        self._obs, self._next = (np.zeros((recipe.steps, 128), np.uint8) for _ in range(2))
        self._action, self._reward = np.zeros(recipe.steps, np.int32), np.zeros(recipe.steps, np.float32)
        self._over = np.zeros(recipe.steps, bool)
        self._updates = 0

        @jax.jit
        def greedy(state, seen):
            assert learner.act is not None
            return learner.act(state, as_inputs(seen[None]), self._root)[0]

        @jax.jit
        def update(state, obs, action, reward, over, following, count):
            discounts = recipe.discount * (1.0 - over.astype(jnp.float32))
            batch = Transitions(as_inputs(obs), action, jnp.clip(reward, -1, 1), discounts, as_inputs(following))
            state, _ = learner.update(state, batch, named_key(self._root, Purpose.UPDATE, count))
            assert learner.periodic is not None
            return learner.periodic(state, Clock(count, count, 0, count))

        self._greedy, self._update = greedy, update

    def act(self, seen: np.ndarray, step: int) -> int:
        half = max(1, self._recipe.steps // 2)
        epsilon = 1 + min(step / half, 1.0) * (self._recipe.epsilon_end - 1)
        if self._draws.random() < epsilon:
            return int(self._draws.integers(self._actions))
        return int(self._greedy(self._state, seen))

    def learn(self, values: tuple, step: int) -> None:
        self._obs[step], self._next[step], self._action[step], self._reward[step], self._over[step] = values[:5]
        if step < self._recipe.batch or step % self._recipe.period:
            return
        rows = self._draws.integers(step + 1, size=self._recipe.batch)
        self._updates += 1
        self._state = self._update(
            self._state, self._obs[rows], self._action[rows], self._reward[rows], self._over[rows], self._next[rows],
            np.int32(self._updates),
        )  # fmt: skip
