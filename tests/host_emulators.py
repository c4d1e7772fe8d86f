"""Made-up emulators on the host whose every frame is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from device_loop import LAST, NEXT, REWARD
from neoteny.tasks.environments import Emulators, HostEnvironment, HostStep, Specification


@dataclass(frozen=True)
class Ladder(HostEnvironment):
    """Frames (seed, number of the episode, time, last action). Episodes terminate after nine steps with even numbers,
    are truncated after twelve otherwise; at time 5 a life is lost; the reward is the time.
    """

    life_loss: bool = True
    log: list = field(default_factory=list, compare=False)

    @property
    def specification(self):
        return Specification((4,), "float32", 3, 12)

    def start(self, count, seed):
        self.log.append(seed)
        return LadderEmulators(count, seed)


class LadderEmulators(Emulators):
    def __init__(self, count, seed):
        self.seed, self.episode = seed % 1000, np.full(count, -1)
        self.time, self.action = np.zeros(count, int), np.zeros(count, int)

    def shown(self):
        seeds = self.seed * 10 + np.arange(len(self.time))
        return np.stack([seeds, self.episode, self.time, self.action], axis=1).astype(np.float32)

    def reset(self, which=None):
        which = np.arange(len(self.time)) if which is None else which
        self.episode[which] += 1
        self.time[which] = self.action[which] = 0
        return self.shown()[which]

    def step(self, actions):
        self.time += 1
        self.action = np.asarray(actions).astype(int)
        terminated = (self.time == 9) & (self.episode % 2 == 0)
        return HostStep(self.shown(), self.time.astype(np.float32), terminated, self.time == 12, self.time == 5)

    def close(self):
        pass


@dataclass(frozen=True)
class PaidLadder(Ladder):
    """The ladder with the action as the reward, so that returns tell what was chosen."""

    def start(self, count, seed):
        self.log.append(seed)
        return PaidLadderEmulators(count, seed)


class PaidLadderEmulators(LadderEmulators):
    def step(self, actions):
        step = super().step(actions)
        return step._replace(reward=self.action.astype(np.float32))


@dataclass(frozen=True)
class HostMaze(HostEnvironment):
    """The maze of `device_loop`, on the host, in bytes."""

    life_loss: bool = True

    @property
    def specification(self):
        return Specification((5,), "uint8", 2, 7)

    def start(self, count, seed):
        return HostMazeEmulators(count, seed)


class HostMazeEmulators(Emulators):
    def __init__(self, count, seed):
        self.rng, self.place, self.time = np.random.default_rng(seed), np.zeros(count, int), np.zeros(count, int)

    def shown(self):
        return 255 * np.eye(5, dtype=np.uint8)[self.place]

    def reset(self, which=None):
        which = np.arange(len(self.place)) if which is None else which
        self.place[which], self.time[which] = self.rng.integers(0, LAST, len(which)), 0
        return self.shown()[which]

    def step(self, actions):
        reward = np.asarray(REWARD, np.float32)[self.place, actions]
        self.place, self.time = np.asarray(NEXT)[self.place, actions], self.time + 1
        over = self.place == LAST
        return HostStep(self.shown(), reward, over, (self.time >= 7) & ~over, np.zeros(len(over), bool))

    def close(self):
        pass
