"""Speed as a function of length: one recurrent layer, tanh against LRU, timed by the packs that train it.

What is measured is wall-clock, so no record holds it: the claim reads the timings of the packs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import optax

from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import SQUARED_ERROR, supervised
from neoteny.networks import Network
from neoteny.networks.lru import LadderMixer, Rung
from neoteny.networks.sequence import MeanPool
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Task, single
from neoteny.training.events import Evaluate, Event, Switch, Train

ROUNDS = 6
"""Stretches of training timed apart; the first compiles and is left out."""


@dataclass(frozen=True)
class Speed:
    """One recurrent layer on noise."""

    model: Literal["tanh", "lru"] = "lru"
    length: int = 512
    width: int = 64
    state: int = 64
    batch: int = 16
    stretch: int = 10  # updates in each of the stretches timed
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("length", "width", "state", "batch", "stretch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@cache
def noise(batch: int, length: int, width: int) -> Arrays:
    """One batch of white noise, to be mapped to zero."""
    inputs = np.random.default_rng(0).standard_normal((batch, length, width), dtype=np.float32)
    rows = {"train": np.arange(batch, dtype=np.int32)}
    return Arrays(
        f"noise-{batch}-{length}-{width}", inputs, np.zeros((batch, width), np.float32), rows, None, "made up"
    )


def learner(config: Speed) -> Learner:
    """The layer and a mean over time; plain gradient descent with a rate too small to change anything."""

    def make(key):
        rung = Rung.DENSE_TANH if config.model == "tanh" else Rung.LRU
        layer = LadderMixer(rung, config.state, r_min=0.9, r_max=0.999)(config.width, key)
        return Network(mixer=layer, head=MeanPool())

    return supervised(make, optax.sgd(1e-6), objective=SQUARED_ERROR)


def script(config: Speed, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Forward and backward in `Train`, forward alone in `Evaluate`, each several times."""
    (task,) = tasks
    return (Switch(task), *(event for _ in range(ROUNDS) for event in (Train(task, config.stretch), Evaluate(task))))


def axes(preset: str) -> dict:
    """Lengths from 128 to 4,096; to 16,384 in the paper's preset."""
    both = {"model": ("tanh", "lru")}
    if preset == "smoke":
        return {**both, "length": (16,), "width": (4,), "state": (4,), "batch": (2,), "stretch": (2,)}
    if preset == "paper":
        sizes = {"width": (128,), "state": (256,), "batch": (32,)}
        return {**both, **sizes, "length": (128, 512, 1_024, 4_096, 16_384)}
    return {**both, "length": (128, 512, 1_024, 4_096)}


speed = Experiment(
    "speed", Speed, axes, lambda config: single(noise(config.batch, config.length, config.width)), learner, script,
    lambda config: Minibatch(config.batch),
)  # fmt: skip
