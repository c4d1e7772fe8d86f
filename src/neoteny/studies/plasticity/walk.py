"""Case study 2, gradient descent against a random walk in steps of equal lengths.

A twin of the network that learns takes a Gaussian step as long as every gradient step. If the landscape grows sharp and
gradients come to point away from each other along the one path and not along the other, it is the gradient that leads
there, and not the distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import Learner
from neoteny.learners.random_walk import random_walk
from neoteny.networks import mlp
from neoteny.probes import ViewProbe, gradient_covariance, output_spectrum, sharpness, view_cosines, weight_norm
from neoteny.studies.plasticity.shared import SQUARED, check_positive, check_probability, pooled, source
from neoteny.tasks.classification import ClassificationMDP, Goal, Labels
from neoteny.tasks.environments import EnvironmentTask, environments
from neoteny.tasks.streams import Stream
from neoteny.training.events import Event, Probe, Switch, Train

ITERATIONS = (1, 20)
"""After how many iterations the two are compared, besides the end (figure 2 of the paper)."""


@dataclass(frozen=True)
class WalkConfig:
    """One network on the easy MDP: the one that learns, or its twin."""

    data: str = "mnist_digits"
    pool: int = 2  # side of the squares of pixels that are averaged
    labels: Literal["true", "random"] = "true"
    path: Literal["gradient", "walk"] = "gradient"
    width: int = 64
    batch: int = 512
    iteration: int = 1_000  # updates
    target_period: int = 5_000  # updates
    periods: int = 5
    capacity: int = 10_000
    epsilon: float = 0.1
    lanczos: int = 80  # Hessian-vector products
    spectrum_samples: int = 1_024
    gradients: int = 512  # examples whose gradients are compared
    shown: int = 40  # of them in the figure
    learning_rate: Lane[float] = 1e-3
    seed: Lane[int] = 0

    def __post_init__(self):
        check_positive(
            self, "pool", "width", "batch", "iteration", "target_period", "periods", "capacity", "lanczos",
            "spectrum_samples", "gradients", "shown", "learning_rate",
        )  # fmt: skip
        check_probability(self, "epsilon")


def stream(config: WalkConfig) -> Stream:
    """One MDP."""
    return environments([ClassificationMDP(pooled(config.data, config.pool), Labels(config.labels), Goal.DENSE)])


def learner(config: WalkConfig) -> Learner:
    """DQN with SGD, or the walk beside it; the walk's replay is what the network that learns has played."""
    data = pooled(config.data, config.pool)
    learned = dqn(
        mlp(data.input_shape, [config.width] * 2, data.classes or 0),
        optax.sgd(config.learning_rate),
        double=False,
        values=SQUARED,
        target_period=config.target_period,
    )
    return random_walk(learned) if config.path == "walk" else learned


@dataclass(frozen=True)
class OutputSpectrum:
    """The spectrum of the loss without targets, from so many products."""

    iterations: int

    def __call__(self, view, batch, key) -> dict[str, Any]:
        return output_spectrum(view, batch, key, iterations=self.iterations)


def cosines(view, batch, key) -> dict[str, jax.Array]:
    """Every cosine of two gradients, at place `i|j`, i < j: for the figure."""
    matrix = view_cosines(view, batch, key)
    return {f"{i}|{j}": matrix[i, j] for i in range(len(matrix)) for j in range(i + 1, len(matrix))}


COSINES = ViewProbe("gradient_cosines", cosines)


def looks(config: WalkConfig, task: EnvironmentTask, last: bool) -> tuple[Event, ...]:
    """Curvature, interference, and at the end a matrix of cosines to show."""
    spectrum = ViewProbe("output_spectrum", OutputSpectrum(config.lanczos))
    shown = (Probe(COSINES, on=task, samples=config.shown),) if last else ()
    return (
        Probe(spectrum, sharpness, on=task, samples=config.spectrum_samples),
        Probe(gradient_covariance, on=task, samples=config.gradients),
        Probe(weight_norm, on=task, samples=1),
        *shown,
    )


def times(config: WalkConfig) -> tuple[int, ...]:
    """Updates after which the two are compared; the first comes after one, before which there is no experience."""
    end = config.periods * config.target_period
    middle = {count * config.iteration for count in ITERATIONS}
    return tuple(sorted({1, end, *(at for at in middle if at < end)}))


def script(config: WalkConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Train, and look on the way."""
    (task,) = tasks
    events: list[Event] = [Switch(task)]
    before, points = 0, times(config)
    for at in points:
        events += [Train(task, at - before, record_every=config.iteration), *looks(config, task, at == points[-1])]
        before = at
    return tuple(events)


SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (8,),
        "batch": (16,),
        "iteration": (5,),
        "target_period": (10,),
        "periods": (2,),
        "capacity": (200,),
        "lanczos": (8,),
        "spectrum_samples": (64,),
        "gradients": (32,),
        "shown": (6,),
        "seed": (0, 1),
    },
    "quick": {"seed": tuple(range(10))},
    "paper": {"data": ("mnist",), "pool": (1,), "width": (512,), "seed": tuple(range(10))},
}
"""Preset -> the fields in which it differs from the defaults."""


def axes(preset: str) -> dict | list[dict]:
    """Both paths, every seed."""
    return {**SIZES[preset], "path": ("gradient", "walk")} if preset in SIZES else []


walk = Experiment("walk", WalkConfig, axes, stream, learner, script, source)
