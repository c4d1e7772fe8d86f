"""Case study 1, optimiser instability: the same images get new random labels after every task.

With Adam's defaults the second moment lags a thousand steps behind the abrupt change of targets, updates grow several
times too large, and units die; with a short second moment and a constant inside the root they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import optax

from neoteny.interventions import Intervention, Redo, Reset, ShrinkPerturb
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import Norm, mlp
from neoteny.probes import dead_units, dormant_units, effective_rank, sharpness, weight_norm, weight_rank
from neoteny.regularizers import L2, L2ToInit, NoPenalty, Regularizer
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.images import whole
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Stream, Task, random_labels
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Reached, Switch, Train

ADAM_EPS = 1e-9
"""Adam's epsilon outside the root (section 3.1 of the paper)."""


@dataclass(frozen=True)
class Remedy:
    """What is done about loss of plasticity: to the network, to the loss, to the learning rate (a factor), or at the
    end of every task.
    """

    norm: Norm = Norm.NONE
    penalty: Callable[[float], Regularizer] = field(default=lambda _: NoPenalty())
    rate: float = 1.0
    at_task_end: Intervention | None = None


REMEDIES = {
    "none": Remedy(),
    "reset_last": Remedy(at_task_end=Reset(stages=("head",))),
    "shrink_perturb": Remedy(at_task_end=ShrinkPerturb(shrink=0.8, perturb=0.2)),
    "redo": Remedy(at_task_end=Redo(tau=0.025)),
    "layer_norm": Remedy(norm=Norm.LAYER),
    "l2": Remedy(penalty=L2),
    "l2_to_init": Remedy(penalty=L2ToInit),
    "third_rate": Remedy(rate=1 / 3),
}
"""Sokar et al. 2023 (redo), Kumar et al. 2023 (l2_to_init), and section 5 of the paper for the others."""

RemedyName = Literal["none", "reset_last", "shrink_perturb", "redo", "layer_norm", "l2", "l2_to_init", "third_rate"]


@dataclass(frozen=True)
class Config:
    """One run of label re-randomisation."""

    data: str = "mnist_digits"
    width: int = 512
    depth: int = 2
    batch: int = 256
    tasks: int = 15
    steps_per_task: int = 1_000
    until_fitted: bool = False  # a task ends once a whole epoch is fitted; steps_per_task is then the bound
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    remedy: RemedyName = "none"
    l2: Lane[float] = 1e-5  # coefficient of the remedies l2 and l2_to_init
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("width", "depth", "batch", "tasks", "steps_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.adam_b2 < 1:
            raise ValueError(f"adam_b2 must be in [0, 1), not {self.adam_b2}")
        for name in ("adam_eps_root", "l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")


SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (16,),
        "batch": (64,),
        "tasks": (2,),
        "steps_per_task": (20,),
        "seed": (0, 1),
    },
    "demo": {"width": (128,), "batch": (128,), "tasks": (10,), "steps_per_task": (500,), "seed": tuple(range(4))},
    "quick": {"tasks": (12,), "seed": tuple(range(5))},
    "quick_full": {"width": (1024,), "batch": (512,), "tasks": (20,), "seed": tuple(range(5))},
    "paper": {"width": (1024,), "batch": (512,), "tasks": (30,), "steps_per_task": (3_000,), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults, for all experiments."""
DEFAULT, TUNED = (0.999, 0.0), (0.9, 1e-3)
"""(adam_b2, adam_eps_root) of Adam as it comes, and as the paper tunes it."""

OPTIMIZERS = {"adam_b2": (0.999, 0.9), "adam_eps_root": (0.0, 1e-3)}
"""The 2 x 2 factorial of the paper's two changes to Adam; the first of each is the default."""


_whole = cache(whole)


def images(name: str) -> Arrays:
    """The images whose labels are drawn: all there are, since nothing is asked of images not seen."""
    return _whole(load(name))


def stream(config: Config) -> Stream:
    """The same images, with labels drawn anew for every task and lane."""
    return random_labels(images(config.data), tasks=config.tasks)


def learner(config: Config) -> Learner:
    """An MLP trained with Adam; update = rate * m / (sqrt(v + eps_root) + eps)."""
    data, remedy = images(config.data), REMEDIES[config.remedy]
    return supervised(
        mlp(data.input_shape, [config.width] * config.depth, data.classes or 0, norm=remedy.norm),
        optax.adam(config.learning_rate * remedy.rate, b2=config.adam_b2, eps=ADAM_EPS, eps_root=config.adam_eps_root),
        regularizer=remedy.penalty(config.l2),
    )


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Fit each task's labels, look at the network when the budget is spent, then draw new labels."""
    epoch = math.ceil(len(tasks[0].rows("train")) / config.batch)
    until = Reached("accuracy", 1.0, window=epoch) if config.until_fitted else None
    remedy = REMEDIES[config.remedy].at_task_end
    events: list[Event] = []
    for task in tasks:
        events += [
            Switch(task),
            Train(task, config.steps_per_task, until=until),
            Evaluate(task, "train", samples=4_096),
            Probe(dead_units, dormant_units, on=task),  # on all rows: a sample overstates
            Probe(effective_rank, on=task, samples=2_048),
            Probe(weight_norm, weight_rank, on=task, samples=1),
            Probe(sharpness, on=task, samples=256),
        ]
        if remedy is not None:
            events.append(Intervene(remedy, on=task))
    return tuple(events)


def source(config: Config) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


def case1_axes(preset: str) -> dict | list[dict]:
    """Four Adam settings, every seed; only the default and the tuned one where that is dear."""
    if preset not in SIZES:
        return []
    if preset == "quick_full":
        return [{**SIZES[preset], "adam_b2": (b2,), "adam_eps_root": (root,)} for b2, root in (DEFAULT, TUNED)]
    return {**SIZES[preset], **OPTIMIZERS}


def remedies_axes(preset: str) -> dict | list[dict]:
    """Default Adam with every remedy, some of them in small presets; `none` is case 1's own default setting. Not where
    width makes it dear.
    """
    if preset == "quick_full" or preset not in SIZES:
        return []
    few = {
        "smoke": ("layer_norm", "redo"),
        "demo": ("layer_norm", "redo"),
        "quick": ("third_rate",),
    }
    fewer_seeds = {"seed": (0, 1, 2)} if preset == "quick" else {}
    return {**SIZES[preset], **fewer_seeds, "remedy": few.get(preset, tuple(REMEDIES)[1:])}


case1 = Experiment("case1", Config, case1_axes, stream, learner, script, source)
remedies = Experiment("remedies", Config, remedies_axes, stream, learner, script, source)
