"""MinAtar DQN: environment steps a second of neoteny and of a plain PyTorch loop on MinAtar's own package.

Both play Breakout with sticky actions and all six actions, keep 100,000 steps, and make one update of 32 for every step
with the network, optimiser and target period of Young & Tian 2019. See minatar_dqn.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contestants import Block, Process, alternate, spread
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners import Learner, dqn, minatar_rmsprop
from neoteny.networks import minatar as network
from neoteny.tasks import DeviceExperience, LinearEpsilon, Stream, environments, minatar
from neoteny.training.events import Event, Switch, Train
from neoteny.training.runner import Runner
from ticking import Ticking

GAME, CAPACITY, BATCH, FILLED = "breakout", 100_000, 32, 20_000
EPSILON, DISCOUNT, TARGET_PERIOD, RATE = 0.1, 0.99, 1_000, 2.5e-4
SHAPE, ACTIONS = (10, 10, 4), 6
FOREVER = 10**8
"""Updates in the script; the benchmark stops asking for ticks long before."""


@dataclass(frozen=True)
class Config:
    """One lane."""

    seed: Lane[int] = 0


def _stream(config: Config) -> Stream:
    return environments([minatar(GAME)])


def _learner(config: Config) -> Learner:
    return dqn(network(SHAPE, ACTIONS), minatar_rmsprop(RATE), double=False, target_period=TARGET_PERIOD)


def _source(config: Config) -> DeviceExperience:
    return DeviceExperience(
        batch_size=BATCH,
        capacity=CAPACITY,
        learning_starts=FILLED,
        discount=DISCOUNT,
        epsilon=LinearEpsilon(EPSILON, EPSILON, 1),
    )


def _script(config: Config, tasks) -> tuple[Event, ...]:
    return Switch(tasks[0]), Train(tasks[0], FOREVER, record_every=1_000)


EXPERIMENT = Experiment("minatar", Config, lambda preset: {}, _stream, _learner, _script, _source)


class Neoteny(Ticking):
    """A pack of lanes, with a record every 1,000 updates; one update a step of the environment."""

    def __init__(self, lanes: int):
        names = [f"lane-{seed}" for seed in range(lanes)]
        super().__init__(Runner(EXPERIMENT, [Config(seed) for seed in range(lanes)], names))


class Torch:
    """A plain loop in the manner of CleanRL: gymnasium, a NumPy replay, one update a step, everything in one file."""

    def __init__(self, threads: int):
        import gymnasium
        import torch
        from minatar.gym import register_envs
        from torch import nn

        if f"MinAtar/{GAME.capitalize()}-v0" not in gymnasium.registry:
            register_envs()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        self._torch, self._rng = torch, np.random.default_rng(0)
        # Version 0 has all six actions and sticky actions of 0.1.
        self._env = gymnasium.make(f"MinAtar/{GAME.capitalize()}-v0").unwrapped

        def network() -> nn.Module:
            layers = (nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 6))
            return nn.Sequential(*layers)

        self._online, self._target = network(), network()
        self._target.load_state_dict(self._online.state_dict())
        self._optimizer = torch.optim.RMSprop(
            self._online.parameters(), lr=RATE, alpha=0.95, centered=True, eps=0.01, foreach=True
        )
        self._frames = np.zeros((CAPACITY, *SHAPE), bool)
        self._next = np.zeros((CAPACITY, *SHAPE), bool)
        self._actions = np.zeros(CAPACITY, np.int64)
        self._rewards = np.zeros(CAPACITY, np.float32)
        self._over = np.zeros(CAPACITY, np.float32)
        self._written = self._updates = 0
        self._seen, _ = self._env.reset(seed=0)
        while self._written < FILLED:
            self._step(random=True)
        self.detail: dict[str, Any] = {"threads": threads}

    def _step(self, random: bool = False) -> None:
        torch = self._torch
        if random or self._rng.random() < EPSILON:
            action = int(self._rng.integers(ACTIONS))
        else:
            with torch.inference_mode():
                shown = torch.from_numpy(self._seen).permute(2, 0, 1)[None].float()
                action = int(self._online(shown).argmax(1))
        after, reward, terminated, _, _ = self._env.step(action)
        place = self._written % CAPACITY
        self._frames[place], self._next[place] = self._seen, after
        self._actions[place], self._rewards[place], self._over[place] = action, reward, terminated
        self._written += 1
        self._seen = self._env.reset()[0] if terminated else after

    def _update(self) -> float:
        torch = self._torch
        rows = self._rng.integers(0, min(self._written, CAPACITY), BATCH)
        frames = torch.from_numpy(self._frames[rows]).permute(0, 3, 1, 2).float()
        after = torch.from_numpy(self._next[rows]).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            following = self._target(after).amax(1)
            goal = torch.from_numpy(self._rewards[rows]) + DISCOUNT * following * torch.from_numpy(1 - self._over[rows])
        chosen = self._online(frames).gather(1, torch.from_numpy(self._actions[rows])[:, None])[:, 0]
        loss = torch.nn.functional.smooth_l1_loss(chosen, goal)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._updates += 1
        if self._updates % TARGET_PERIOD == 0:
            self._target.load_state_dict(self._online.state_dict())
        return float(loss.detach())

    def train(self, seconds: float) -> Block:
        """A step and an update, again and again until the time is over."""
        start, cpu, done, loss = time.perf_counter(), time.process_time(), 0, float("nan")
        while time.perf_counter() - start < seconds:
            for _ in range(20):
                self._step()
                loss = self._update()
            done += 20
        now = time.perf_counter() - start
        return Block(now / done, now, time.process_time() - cpu, loss)


def main() -> None:
    """Blocks of every contestant in turn; prints and writes steps a second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a block")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--lanes", type=int, default=8, help="lanes of the larger pack")
    parser.add_argument("--out", type=Path, help="results as JSON")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    contestants = [
        Process("neoteny, 1 lane", Neoteny, 1),
        # Agents in packs of their own, one a core at a time: `neoteny run --lanes 1`.
        Process(f"neoteny, 1 lane in each of {cores} processes", Neoteny, 1, copies=cores),
        Process(f"neoteny, {options.lanes} lanes", Neoteny, options.lanes),
        # What `neoteny run` does: lanes alike spread over one process a core.
        Process(f"neoteny, {options.lanes} lanes in {cores} processes", Neoteny, options.lanes // cores, copies=cores),
        *(Process(f"torch, {threads} thread(s)", Torch, threads) for threads in sorted({1, cores})),
        Process(f"torch, {cores} processes of one thread", Torch, 1, copies=cores),
    ]
    others = alternate(contestants, seconds=options.seconds, repeats=options.repeats)
    singles = [contestant for contestant in contestants if "thread(s)" in contestant.name]
    best = [min(blocks, key=lambda b: b.per_update) for blocks in zip(*(c.blocks for c in singles), strict=True)]
    results: dict[str, Any] = {"others_share_of_cpus": others}
    for contestant in contestants:
        rates = [1 / block.per_update for block in contestant.blocks]
        ratios = [one.per_update / block.per_update for one, block in zip(best, contestant.blocks, strict=True)]
        results[contestant.name] = {"steps_per_second": spread(rates), "times_torch": spread(ratios)}
        shown = results[contestant.name]
        print(
            f"{contestant.name:40} {shown['steps_per_second']['median']:8.0f} steps/s in all"
            f"   x {shown['times_torch']['median']:.2f} of the faster single torch loop"
        )
        contestant.close()
        results[contestant.name]["detail"] = contestant.detail
    print(f"others used {max(others):.0%} of the CPUs at most")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
