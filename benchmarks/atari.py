"""Atari DQN: frames a second of neoteny and of stable-baselines3's DQN, with what emulator and network take alone.

Both play Pong with frame skip 4, keep 20,000 steps, and make one update of 32 for every four steps with the network of
Mnih et al. 2015, Adam and a constant epsilon. stable-baselines3 and torch may be installed elsewhere: `--packages`.
See atari.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from contestants import Block, Contestant, Process, alternate, spread
from neoteny.agents import AtariDQN
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners import Learner, Transitions, detach, dqn
from neoteny.tasks import HostExperience, LinearEpsilon, Stream, environments
from neoteny.tasks.experience import as_network_sees, network_input
from neoteny.tasks.replay import as_observation, as_observations
from neoteny.training.events import Event, Switch, Train
from neoteny.training.runner import Runner
from ticking import Ticking

GAME, CAPACITY, BATCH, FILLED = "pong", 20_000, 32, 4_000
EPSILON, DISCOUNT, TARGET_PERIOD, RATE = 0.1, 0.99, 2_500, 1e-4
STEPS, FRAMES = 4, 16
"""Steps of the agent, and frames of the game, for every update."""
FOREVER = 10**8
"""Updates in the script; the benchmark stops asking for ticks long before."""


@dataclass(frozen=True)
class Config:
    """One lane. games: played side by side. ahead: the steps of the next update while one is computed."""

    games: int = 1
    ahead: bool = True
    seed: Lane[int] = 0


def _agent(games: int) -> AtariDQN:
    return AtariDQN(
        replay=CAPACITY, learning_starts=FILLED, envs=games, period=STEPS // games, batch=BATCH, segment=10**6
    )


WORLD = _agent(1).environment(GAME)


def _stream(config: Config) -> Stream:
    return environments([WORLD])


def _learner(config: Any) -> Learner:
    network = _agent(1).network(WORLD.specification.actions)
    return dqn(network, optax.adam(RATE), double=False, target_period=TARGET_PERIOD)


def _source(config: Config) -> HostExperience:
    epsilon = LinearEpsilon(EPSILON, EPSILON, 1)
    return replace(_agent(config.games).source(), epsilon=epsilon, ahead=config.ahead)


def _script(config: Config, tasks) -> tuple[Event, ...]:
    return Switch(tasks[0]), Train(tasks[0], FOREVER, record_every=250)


EXPERIMENT = Experiment("atari", Config, lambda preset: {}, _stream, _learner, _script, _source)


class Neoteny(Ticking):
    """One lane, with a record every 250 updates."""

    def __init__(self, games: int, ahead: bool):
        super().__init__(Runner(EXPERIMENT, [Config(games, ahead)], ["one"]))


class StableBaselines:
    """DQN of stable-baselines3 with its own wrappers for Atari, in short stretches of `learn`."""

    def __init__(self, games: int, threads: int, packages: str):
        if packages:
            sys.path.append(packages)
        import ale_py
        import gymnasium
        import stable_baselines3
        import torch
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack

        gymnasium.register_envs(ale_py)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        self._games = games
        self._model = stable_baselines3.DQN(
            "CnnPolicy",
            VecFrameStack(make_atari_env(f"{GAME.capitalize()}NoFrameskip-v4", n_envs=games, seed=0), n_stack=4),
            learning_rate=RATE,
            buffer_size=CAPACITY,
            learning_starts=FILLED,
            batch_size=BATCH,
            gamma=DISCOUNT,
            train_freq=STEPS // games,
            gradient_steps=1,
            target_update_interval=TARGET_PERIOD * STEPS,
            exploration_initial_eps=EPSILON,
            exploration_final_eps=EPSILON,
            seed=0,
        )
        self._learn(FILLED + 40 * STEPS)
        self.detail: dict[str, Any] = {
            "threads": threads,
            "torch": str(torch.__version__),
            "stable_baselines3": stable_baselines3.__version__,
        }

    def _learn(self, steps: int) -> None:
        self._model.learn(steps, log_interval=10**9, reset_num_timesteps=False)

    def train(self, seconds: float) -> Block:
        """Stretches of 50 updates until the time is over."""
        start, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            self._learn(50 * STEPS)
            done += 50
        now = time.perf_counter() - start
        return Block(now / done, now, time.process_time() - cpu, float("nan"))


class Alone:
    """One part by itself, as often as an update needs it: what="emulator", "acting" or "update"."""

    def __init__(self, what: str, games: int = 1):
        self._once: Callable[[], Any] = getattr(self, f"_{what}")(games)
        for _ in range(3):
            self._once()
        self.detail: dict[str, Any] = {}

    def _emulator(self, games: int) -> Callable[[], Any]:
        emulators, rng = WORLD.start(games, 0), np.random.default_rng(0)
        emulators.reset()
        actions = WORLD.specification.actions

        def play() -> None:
            for _ in range(STEPS // games):
                step = emulators.step(rng.integers(0, actions, games).astype(np.int32))
                over = step.terminated | step.truncated
                if over.any():
                    emulators.reset(np.flatnonzero(over))

        return play

    def _state(self) -> tuple[Learner, Any]:
        learner = _learner(Config())
        return learner, detach(jax.jit(learner.init)(jax.random.key(0)))

    def _acting(self, games: int) -> Callable[[], Any]:
        learner, state = self._state()
        act = jax.jit(lambda shown: learner.act(state, network_input(as_observation(shown)), jax.random.key(0)))
        shown = np.random.default_rng(0).integers(0, 256, (games, 4, 84, 84, 1), np.uint8)

        def ask() -> None:
            for _ in range(STEPS // games):
                np.asarray(act(shown))

        return ask

    def _update(self, games: int) -> Callable[[], Any]:
        learner, self._held = self._state()

        def update(state: Any, batch: Any) -> Any:
            new, metrics = learner.update(state, as_network_sees(as_observations(batch)), jax.random.key(0))
            return detach(new), metrics

        rng, ones = np.random.default_rng(0), np.ones(BATCH, np.float32)
        frames = [rng.integers(0, 256, (BATCH, 4, 84, 84, 1), np.uint8) for _ in range(2)]
        batch = Transitions(frames[0], np.zeros(BATCH, np.int32), ones, ones, frames[1], ones[0], ones[0])
        step = jax.jit(update, donate_argnums=0)

        def once() -> None:
            self._held, metrics = step(self._held, batch)
            jax.block_until_ready((self._held, metrics))

        return once

    def train(self, seconds: float) -> Block:
        """Again and again until the time is over."""
        start, cpu, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            self._once()
            done += 1
        now = time.perf_counter() - start
        return Block(now / done, now, time.process_time() - cpu, float("nan"))


def _contestants(packages: str) -> tuple[list[Process], list[Process], list[Process]]:
    """neoteny, stable-baselines3, and parts alone."""
    every = sorted({1, len(os.sched_getaffinity(0))})
    ours: list[tuple[str, type[Contestant], tuple]] = [
        ("neoteny, 1 game", Neoteny, (1, True)),
        ("neoteny, 4 games", Neoteny, (4, True)),
        ("neoteny, 1 game, not ahead", Neoteny, (1, False)),
    ]
    theirs: list[tuple[str, type[Contestant], tuple]] = [
        (f"stable-baselines3, {games} game(s), {threads} thread(s)", StableBaselines, (games, threads, packages))
        for games in (1, 4)
        for threads in every
    ]
    floor: list[tuple[str, type[Contestant], tuple]] = [
        ("emulator alone, 1 game", Alone, ("emulator", 1)),
        ("emulators alone, 4 games", Alone, ("emulator", 4)),
        ("acting alone, 1 game", Alone, ("acting", 1)),
        ("acting alone, 4 games", Alone, ("acting", 4)),
        ("update alone", Alone, ("update",)),
    ]
    return tuple([Process(name, kind, *given) for name, kind, given in group] for group in (ours, theirs, floor))  # pyright: ignore


def main() -> None:
    """Blocks of every contestant in turn; prints and writes frames a second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=7.0, help="length of a block")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--packages", default="", help="folder that holds stable_baselines3 and torch, if not here")
    parser.add_argument("--out", type=Path, help="results as JSON")
    options = parser.parse_args()
    groups = _contestants(options.packages)
    everyone = [contestant for group in groups for contestant in group]
    others = alternate(everyone, seconds=options.seconds, repeats=options.repeats)
    best = [min(blocks, key=lambda b: b.per_update) for blocks in zip(*(c.blocks for c in groups[1]), strict=True)]
    results: dict[str, Any] = {"others_share_of_cpus": others}
    for contestant in everyone:
        rates = [FRAMES / block.per_update for block in contestant.blocks]
        ratios = [one.per_update / block.per_update for one, block in zip(best, contestant.blocks, strict=True)]
        cpu = [1e3 * block.cpu_seconds * block.per_update / block.seconds for block in contestant.blocks]
        contestant.close()
        shown = {
            "frames_per_second": spread(rates),
            "times_stable_baselines3": spread(ratios),
            "cpu_milliseconds_per_update": spread(cpu),
            "detail": contestant.detail,
        }
        results[contestant.name] = shown
        print(
            f"{contestant.name:42} {shown['frames_per_second']['median']:8.0f} frames/s   "
            f"x {shown['times_stable_baselines3']['median']:5.2f} of the fastest stable-baselines3   "
            f"{shown['cpu_milliseconds_per_update']['median']:6.1f} ms of CPU an update"
        )
    print(f"others used {max(others):.0%} of the CPUs at most")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
