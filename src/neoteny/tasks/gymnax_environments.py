"""Environments that run inside the compiled program, by gymnax: the MinAtar games, bsuite, classic control."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from neoteny.errors import UsageError
from neoteny.tasks.environments import DeviceEnvironment, Specification, Step

MINATAR_GAMES = {
    "asterix": "Asterix-MinAtar",
    "breakout": "Breakout-MinAtar",
    "freeway": "Freeway-MinAtar",
    "seaquest": "Seaquest-MinAtar",
    "space_invaders": "SpaceInvaders-MinAtar",
}
"""MinAtar's own names of its games, and gymnax's."""

FREEWAY_LIMIT = 2500
"""Steps of an episode of Freeway; the other games of MinAtar have no limit (Young & Tian 2019). See `minatar`."""

STICKY_PROBABILITY = 0.1
"""Probability that MinAtar repeats the last action instead (Young & Tian 2019, section 2)."""

_BINARY = ("MinAtar", "bsuite")
_NEVER = 2**31 - 1


@cache
def _made(name: str, minimal_actions: bool) -> tuple[Any, Any]:
    try:
        import gymnax
    except ImportError:
        raise UsageError(f"{name} needs gymnax, which is not installed: pip install 'neoteny[gymnax]'") from None
    if name not in gymnax.registered_envs:
        raise UsageError(f"gymnax has no environment {name!r}; it has {', '.join(sorted(gymnax.registered_envs))}")
    arguments = {} if minimal_actions or not name.endswith("-MinAtar") else {"use_minimal_action_set": False}
    with jax.ensure_compile_time_eval():  # some make arrays of their own, which would else be the caller's tracers
        environment, parameters = gymnax.make(name, **arguments)
    if not hasattr(environment.action_space(parameters), "n"):
        raise UsageError(f"{name} has continuous actions; only environments with a number of actions are supported")
    # The limit is kept by `Gymnax`, in its own count.
    return environment, parameters.replace(max_steps_in_episode=_NEVER)


class GymnaxState(NamedTuple):
    """inner: gymnax's own. last_action, time: () int32, of this episode."""

    inner: PyTree
    last_action: Array
    time: Array


@dataclass(frozen=True)
class Gymnax(DeviceEnvironment):
    """An environment of gymnax by its name there.

    sticky: probability that the last action is repeated instead of the one given (the first of an episode: action 0).
    time_limit: steps of an episode; it is then truncated, not terminated. minimal_actions: only the actions a MinAtar
    game uses, not all six.
    """

    name: str
    sticky: float = 0.0
    time_limit: int | None = None
    minimal_actions: bool = True

    def __post_init__(self):
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky is a probability below 1, not {self.sticky}")
        if self.time_limit is not None and self.time_limit < 1:
            raise ValueError(f"time_limit must be at least 1 step, or None for no limit, not {self.time_limit}")

    def __str__(self) -> str:
        return self.name

    @property
    def specification(self) -> Specification:
        environment, parameters = _made(self.name, self.minimal_actions)
        space = environment.observation_space(parameters)
        binary = self.name.rsplit("-", 1)[-1] in _BINARY
        actions = environment.action_space(parameters).n
        return Specification(tuple(space.shape), "bool" if binary else "float32", int(actions), self.time_limit)

    def reset(self, key):
        environment, parameters = _made(self.name, self.minimal_actions)
        frame, inner = environment.reset_env(key, parameters)
        zero = jnp.zeros((), jnp.int32)
        return GymnaxState(_settled(inner), zero, zero), frame.astype(self.specification.dtype)

    def step(self, state, action, key):
        environment, parameters = _made(self.name, self.minimal_actions)
        if self.sticky > 0:
            stuck = jax.random.bernoulli(jax.random.fold_in(key, 0), self.sticky)
            action = jnp.where(stuck, state.last_action, action)
            key = jax.random.fold_in(key, 1)
        frame, inner, reward, terminated, _ = environment.step_env(key, state.inner, action, parameters)
        time = state.time + 1
        truncated = jnp.zeros((), bool) if self.time_limit is None else (time >= self.time_limit) & ~terminated
        stepped = GymnaxState(_like(inner, state.inner), action.astype(jnp.int32), time)
        reward = jnp.asarray(reward, jnp.float32)
        return stepped, Step(frame.astype(self.specification.dtype), reward, jnp.asarray(terminated, bool), truncated)


def _settled(state: PyTree) -> PyTree:
    """Arrays without weak types: gymnax begins some counters as Python numbers."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(jnp.asarray(leaf), jnp.asarray(leaf).dtype), state)


def _like(state: PyTree, before: PyTree) -> PyTree:
    """`state` in the types it had before, so that it can be carried through a loop."""
    return jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), state, before)


def minatar(game: str, *, sticky: float = STICKY_PROBABILITY, minimal_actions: bool = False) -> Gymnax:
    """A game of MinAtar by gymnax, with the published options: sticky actions, all six actions, no time limit but
    Freeway's.

    game: asterix, breakout, freeway, seaquest or space_invaders. Difficulty rises with time, as by default there.

    What is known to differ from the package `minatar` (1.0.15). Asterix: what is new there takes any free row of the
    eight, and does not come if there is none; gymnax looks at seven of them in random order and, if none is free,
    empties the last it looked at. Freeway: terminated by step 2,501 there, here truncated after 2,500, so that the last
    frame keeps its value. Seaquest: a submarine that is hit by moving onto a bullet may still shoot there, not here. A
    sticky first action is 0 here, and the last of the episode before there.
    """
    if game not in MINATAR_GAMES:
        raise UsageError(f"MinAtar has no game {game!r}; it has {', '.join(MINATAR_GAMES)}")
    return Gymnax(MINATAR_GAMES[game], sticky, FREEWAY_LIMIT if game == "freeway" else None, minimal_actions)


def catch() -> Gymnax:
    """bsuite's Catch: a ball falls ten rows, the paddle must be under it; +1 or -1 (Osband et al. 2020)."""
    return Gymnax("Catch-bsuite")
