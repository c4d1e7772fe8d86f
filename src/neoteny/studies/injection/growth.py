"""Q4: a small network into which a larger head is injected half way, against a large one from the start, at equal
operations for every task.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import equinox as eqx
import jax
import numpy as np
import optax

from neoteny.interventions import Inject, Intervention
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Batch, Learner, LearnerState, attach, detach
from neoteny.learners.supervised import supervised
from neoteny.studies.injection.relabel import (
    HEAD,
    PARAMETERS,
    SIZES,
    adam,
    check_config,
    images,
    network,
    source,
    tenth,
)
from neoteny.tasks.streams import Stream, Task, random_labels
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Switch, Train
from neoteny.training.ledger import count_flops

GrowthArm = Literal["grow", "grow_whole", "large", "small"]


@dataclass(frozen=True)
class GrowthConfig:
    """One run of a network that grows half way, or of one that is small or large from the start."""

    arm: GrowthArm = "grow"
    small: int = 64
    large: int = 256
    data: str = "mnist_digits"
    batch: int = 512
    tasks: int = 30
    steps_per_task: int = 1_500  # of the large network; the others take as many as cost the same
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    seed: Lane[int] = 0

    def __post_init__(self):
        check_config(self, ("small", "large", "batch", "tasks", "steps_per_task"))
        if self.tasks < 2:
            raise ValueError(f"tasks must be at least 2, not {self.tasks}: growth happens half way")


def growth_stream(config: GrowthConfig) -> Stream:
    """The same images with new labels for every task and lane."""
    return random_labels(images(config.data), tasks=config.tasks)


def growth_learner(config: GrowthConfig) -> Learner:
    """An MLP of two hidden stages, small unless the arm is the large one."""
    width = config.large if config.arm == "large" else config.small
    return supervised(network(images(config.data), width, width), adam(config))


def growing(config: GrowthConfig) -> Intervention:
    """The larger head for the small encoder; or a whole larger network beside the small one."""
    data = images(config.data)
    if config.arm == "grow_whole":
        return Inject(0, maker=network(data, config.large, config.large))
    return Inject(HEAD, maker=network(data, config.small, config.large))


@cache
def update_flops(data: str, width: int, batch: int, intervention: Intervention | None) -> float:
    """Operations of one update of the network of this width, after the intervention if there is one."""
    arrays = images(data)
    made = supervised(network(arrays, width, width), optax.adam(1e-3))

    def begin(key) -> LearnerState:
        state = attach(made.init(key), made)
        return detach(state if intervention is None else intervention(state, key))

    state = eqx.filter_eval_shape(begin, jax.random.key(0))
    shapes, static = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    inputs = jax.ShapeDtypeStruct((batch, *arrays.input_shape), np.float32)
    rows = Batch(*cast(tuple, (inputs, jax.ShapeDtypeStruct((batch,), np.int32))))

    def update(shapes, rows):
        return eqx.filter(made.update(eqx.combine(shapes, static), rows, jax.random.key(0)), eqx.is_array)

    return count_flops(update, shapes, rows)


def growth_script(config: GrowthConfig, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Every task costs every arm the same operations; half way the growing ones grow."""

    def steps(width: int, intervention: Intervention | None = None) -> int:
        cost = update_flops(config.data, width, config.batch, intervention)
        return max(1, round(config.steps_per_task * large / cost))

    large = update_flops(config.data, config.large, config.batch, None)
    grows = config.arm in ("grow", "grow_whole")
    before = steps(config.large if config.arm == "large" else config.small)
    after = steps(config.small, growing(config)) if grows else before
    events: list[Event] = []
    for index, task in enumerate(tasks):
        if grows and index == len(tasks) // 2:
            events.append(Intervene(growing(config)))
        count = before if index < len(tasks) // 2 else after
        events += [Switch(task), Train(task, count, record_every=tenth(count)), Evaluate(task, "train", samples=4_096)]
        if index in (0, len(tasks) - 1):
            events.append(Probe(PARAMETERS, on=task, samples=1))
    return tuple(events)


def growth_axes(preset: str) -> dict | list[dict]:
    """All arms, every seed."""
    if preset not in SIZES:
        return []
    sizes: dict[str, tuple] = {name: values for name, values in SIZES[preset].items() if name != "width"}
    if preset == "smoke":
        sizes |= {"small": (8,), "large": (32,)}
    if preset == "quick":
        sizes |= {"tasks": (12,), "steps_per_task": (400,), "seed": tuple(range(6))}
    arms = ("grow", "large") if preset == "smoke" else ("grow", "grow_whole", "large", "small")
    return {**sizes, "arm": arms}


growth = Experiment("growth", GrowthConfig, growth_axes, growth_stream, growth_learner, growth_script, source)
