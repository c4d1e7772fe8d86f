"""Stored policies played again with every step written down: a data set of transitions.

Compiled environments are played in one scan, emulators on the host step by step. Every draw follows from the
behaviour's seed, the policy's number and the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from neoteny import __version__
from neoteny.errors import UsageError
from neoteny.lab.checkpoint import Checkpoint
from neoteny.lab.configs import config_to_json
from neoteny.lab.recorded import Behaviour, weights
from neoteny.learners.learner import LearnerState
from neoteny.tasks.atari import Atari, choices
from neoteny.tasks.environments import EnvironmentTask, HostEnvironment
from neoteny.tasks.experience import DeviceExperience, Experience, network_input
from neoteny.tasks.gymnax_environments import Gymnax
from neoteny.tasks.host_experience import HostExperience, draws
from neoteny.tasks.replay import as_observation
from neoteny.tasks.transitions import TransitionSet, from_episodes, returns_summary
from neoteny.tasks.transitions.offline import noisy_action
from neoteny.training.keys import Purpose, named_key, root_key
from neoteny.training.placing import shown
from neoteny.training.programs import given
from neoteny.training.runner import Runner
from neoteny.training.stored import load

RANDOM_EPISODES, RANDOM_EPISODES_ON_HOST = 100, 10
"""Episodes of the uniformly random policy whose mean return is kept with the data."""


class _Player(NamedTuple):
    """A stored policy. learner: its state, every array with a lane axis of 1. task: where it plays. source: how it
    gathers experience. known: what of it is kept with the data.
    """

    runner: Runner
    learner: LearnerState
    task: EnvironmentTask
    source: Experience
    known: dict[str, Any]

    @property
    def place(self) -> tuple[Any, int]:
        """Equal for policies that play in the same environment and see it alike."""
        return shown(self.task), self.source.stack


def acting_source(runner: Runner) -> Experience:
    """How the runner's learner gathers experience; UsageError if it does not act."""
    acts = runner.programs.learner(runner.tracer.values).act is not None
    if not acts or not isinstance(runner.source, Experience):
        raise UsageError("this learner does not act in an environment; only what an agent does can be recorded")
    return runner.source


def record(checkpoints: Sequence[Checkpoint], behaviour: Behaviour, name: str) -> TransitionSet:
    """What the policies of these checkpoints do, one after another; see `neoteny.lab.recorded`.

    UsageError for checkpoints that do not act, or not all in one environment.
    """
    players = [_player(checkpoint) for checkpoint in checkpoints]
    first = players[0]
    for checkpoint, player in zip(checkpoints, players, strict=True):
        if player.place != first.place:
            raise UsageError(
                f"{checkpoint.label} plays {player.task.environment}, and {checkpoints[0].label} "
                f"{first.task.environment}; record them apart"
            )
    played = [(first, 1.0)] if behaviour.random else []
    played += [(player, behaviour.epsilon) for player in players]
    play = _on_host if isinstance(first.task.environment, HostEnvironment) else _Device()
    total, arrays, episodes = behaviour.steps * len(played), {}, 0
    for number, (player, epsilon) in enumerate(played):
        rows = play(player, behaviour, number, epsilon)
        rows["truncated"] = rows["truncated"] & ~rows["terminated"]
        rows["truncated"][-1] |= not rows["terminated"][-1]
        rows["episode"] = rows["episode"] + episodes
        episodes = int(rows["episode"][-1]) + 1
        for field, values in rows.items():
            if field not in arrays:
                arrays[field] = np.empty((total, *values.shape[1:]), values.dtype)
            arrays[field][number * behaviour.steps :][: behaviour.steps] = values
    about = _about(checkpoints, players, behaviour)
    data = from_episodes(name, arrays, first.task.specification.actions, about)
    return replace(data, about={**about, **returns_summary(data, _random_return(first, behaviour))})


def _player(checkpoint: Checkpoint) -> _Player:
    stored = load(checkpoint)
    if not isinstance(stored.task, EnvironmentTask):
        what = "has begun no task here" if stored.task is None else f"is on {stored.task.name} here, which is data"
        raise UsageError(f"{checkpoint.label} {what}; only what an agent does in an environment can be recorded")
    source = acting_source(stored.runner)
    known = {
        "run": checkpoint.run,
        "save": checkpoint.save or "",
        "update": stored.update,
        "weights": weights(checkpoint),
    }
    return _Player(stored.runner, stored.learner, stored.task, source, known)


# What the data say of themselves ----------------------------------------------------------------------------------


def _about(checkpoints: Sequence[Checkpoint], players: Sequence[_Player], behaviour: Behaviour) -> dict[str, Any]:
    """How the data were made, as JSON has it."""
    environment = players[0].task.environment
    runs = {
        each.run: {
            "experiment": f"{each.study.name}/{each.pack.experiment}",
            "config": config_to_json(each.plan.runs[each.run].config),
        }
        for each in checkpoints
    }
    about = {
        **asdict(behaviour),
        "runs": runs,
        "policies": [*([{"run": "random"}] if behaviour.random else []), *(player.known for player in players)],
        "environment": str(environment),
        "stack": players[0].source.stack,
        "neoteny": __version__,
        "jax": jax.__version__,
    }
    if isinstance(environment, HostEnvironment) and environment.version:
        about["emulator"] = environment.version
    if isinstance(environment, Gymnax):
        about |= {"gymnax": metadata.version("gymnax"), "sticky": environment.sticky}
    if isinstance(environment, Atari):
        first = choices(environment.game)
        about |= {
            "game": environment.game,
            "mode": first.modes[0] if environment.mode is None else environment.mode,
            "difficulty": first.difficulties[0] if environment.difficulty is None else environment.difficulty,
            "sticky": environment.sticky,
            "frame_skip": environment.frame_skip,
            "ale_version": metadata.version("ale-py"),
        }
    return json.loads(json.dumps(about))


def _random_return(player: _Player, behaviour: Behaviour) -> float:
    """Mean return of the uniformly random policy in episodes of its own."""
    task = player.task
    if isinstance(player.source, HostExperience):
        uniform = replace(player.source, evaluation_epsilon=1.0)

        def still(frames, counters):
            del counters
            return np.zeros(frames.shape[:2], np.int32)

        return float(uniform.evaluate(task, [behaviour.seed], still, RANDOM_EPISODES_ON_HOST, 0)["return"][0])
    assert isinstance(player.source, DeviceExperience)
    uniform = replace(player.source, evaluation_epsilon=1.0)

    @jax.jit
    def judged(data, drawn, key):
        playing = given(task, data, drawn)
        return uniform.evaluate(playing, lambda seen, _: jnp.zeros(seen.shape[0], jnp.int32), key, RANDOM_EPISODES)

    key = named_key(root_key(behaviour.seed), Purpose.EVALUATE)
    return float(judged(*_given(player), key)["return"])


def _given(player: _Player) -> tuple[Any, PyTree]:
    """The arrays the player's environment is made of, and the run's own draw of it."""
    drawn = player.runner.changes.draw(player.task)
    return player.runner.data.data(player.task), jax.tree.map(lambda leaf: leaf[0], drawn)


# Playing ----------------------------------------------------------------------------------------------------------


def _kept(observations: Any) -> Any:
    """Observations as a network is shown them, in a type that data have: uint8, truth values as 0 and 255, or
    float32.
    """
    if observations.dtype == bool:
        return observations.astype(np.uint8) * np.uint8(255)
    return observations if observations.dtype == np.uint8 else observations.astype(np.float32)


class _Device:
    """Plays compiled environments; policies of one structure share a program."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, player: _Player, behaviour: Behaviour, number: int, epsilon: float) -> dict[str, np.ndarray]:
        programs = player.runner.programs
        if programs not in self._compiled:
            self._compiled[programs] = jax.jit(_scanned(player, behaviour.steps))
        learner = programs.lane(player.learner, np.int32(0))
        key = jax.random.fold_in(root_key(behaviour.seed), number)
        rows = self._compiled[programs](
            learner, player.runner.tracer.values, *_given(player), key, np.float32(epsilon), np.float32(behaviour.noise)
        )
        return {field: np.array(values) for field, values in jax.device_get(rows).items()}


def _scanned(player: _Player, steps: int) -> Callable:
    """The program that plays so many steps of a policy: rows by field, arrays (steps, ...)."""
    programs, task, stack = player.runner.programs, player.task, player.source.stack
    actions = task.specification.actions

    def play(learner, values, data, drawn, key, epsilon, noise):
        environment: Any = given(task, data, drawn).environment
        act = programs.learner(values).act
        assert act is not None, "checked before"

        def see(frames: Array) -> Array:
            return environment.show(as_observation(frames[None]))[0]

        def begin(key: Array) -> tuple[PyTree, Array]:
            inner, frame = environment.reset(key)
            return inner, jnp.zeros((stack, *frame.shape), frame.dtype).at[-1].set(frame)

        def one(held, at):
            inner, frames, episode, within = held
            keys = jax.random.split(named_key(key, Purpose.EXPLORATION, at), 6)
            act_key, choice_key, random_key, noise_key, world_key, reset_key = keys
            obs = see(frames)
            greedy = act(learner, network_input(obs[None]), act_key)[0]
            anything = jax.random.randint(random_key, (), 0, actions, dtype=jnp.int32)
            chosen = jnp.where(jax.random.uniform(choice_key) < epsilon, anything, greedy).astype(jnp.int32)
            executed = noisy_action(noise_key, chosen, noise, actions)
            after, step = environment.step(inner, executed, world_key)
            following = jnp.concatenate([frames[1:], step.frame[None]])
            row = {
                "obs": _kept(obs),
                "next_obs": _kept(see(following)),
                "chosen_action": chosen,
                "executed_action": executed,
                "reward": step.reward,
                "terminated": step.terminated,
                "truncated": step.truncated,
                "episode": episode,
                "step": within,
            }
            ended = step.terminated | step.truncated
            begun = jax.tree.map(lambda new, old: jnp.where(ended, new, old), begin(reset_key), (after, following))
            return (*begun, episode + ended, jnp.where(ended, 0, within + 1)), row

        zero = jnp.zeros((), jnp.int32)
        start = (*begin(named_key(key, Purpose.ENVIRONMENT)), zero, zero)
        return jax.lax.scan(one, start, jnp.arange(steps, dtype=jnp.int32))[1]

    return play


def _on_host(player: _Player, behaviour: Behaviour, number: int, epsilon: float) -> dict[str, np.ndarray]:
    """The same in an emulator."""
    task, runner, environment = player.task, player.runner, player.task.environment
    assert isinstance(environment, HostEnvironment)
    policy = runner.host.policy(player.learner, separately=runner.tracer.lane_by_lane(task, player.learner))
    shape, kind, actions = task.specification.shape, task.specification.dtype, task.specification.actions
    start = int(draws(behaviour.seed, Purpose.ENVIRONMENT, number).integers(2**31 - 1))
    emulator = environment.start(1, start)

    def begin() -> np.ndarray:
        frames = np.zeros((player.source.stack, *shape), kind)
        frames[-1] = emulator.reset(np.zeros(1, np.int32))[0]
        return frames

    def see(frames: np.ndarray) -> np.ndarray:
        return _kept(np.asarray(as_observation(jnp.asarray(frames[None])))[0])

    frames, episode, within = begin(), 0, 0
    obs, rows = see(frames), None
    for at in range(behaviour.steps):
        rng = draws(behaviour.seed, Purpose.EXPLORATION, number, at)
        explores, intervenes = rng.random(2) < (epsilon, behaviour.noise)
        anything, instead = rng.integers(0, actions, 2)
        if explores:
            chosen = anything
        else:
            counters = np.asarray([Purpose.EXPLORATION.code, number, at], np.uint32)
            chosen = policy(frames[None, None], counters)[0, 0]
        executed = instead if intervenes else chosen
        step = emulator.step(np.asarray([executed], np.int32))
        frames = np.concatenate([frames[1:], step.frame])
        following = see(frames)
        row = {
            "obs": obs,
            "next_obs": following,
            "chosen_action": np.int32(chosen),
            "executed_action": np.int32(executed),
            "reward": np.float32(step.reward[0]),
            "terminated": np.bool_(step.terminated[0]),
            "truncated": np.bool_(step.truncated[0]),
            "episode": np.int32(episode),
            "step": np.int32(within),
        }
        if rows is None:
            rows = {field: np.empty((behaviour.steps, *value.shape), value.dtype) for field, value in row.items()}
        for field, value in row.items():
            rows[field][at] = value
        if step.terminated[0] or step.truncated[0]:
            frames, episode, within = begin(), episode + 1, 0
            following = see(frames)
        else:
            within += 1
        obs = following
    emulator.close()
    assert rows is not None, "there is at least one step"
    return rows
