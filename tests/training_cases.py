"""A small experiment with every kind of event and random consumer, for the tests of the fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import optax

from neoteny.interventions import Redo, ShrinkPerturb
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners import supervised
from neoteny.networks import mlp
from neoteny.probes import dead_units, effective_rank, gradient_norm, weight_rank
from neoteny.tasks import Arrays, Minibatch, random_labels
from neoteny.training import Evaluate, Intervene, Probe, Save, Switch, Train
from neoteny.training.runner import Runner


def small_data(rows: int = 96, features: int = 12, classes: int = 3) -> Arrays:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (rows, features), dtype=np.uint8)
    split = np.arange(rows, dtype=np.int32)
    targets = rng.integers(0, classes, rows).astype(np.int32)
    return Arrays("small", inputs, targets, {"train": split[: rows * 2 // 3], "test": split[rows * 2 // 3 :]}, classes)


DATA = small_data()


@dataclass(frozen=True)
class Config:
    tasks: int = 2
    steps: int = 30
    width: int = 8
    learning_rate: Lane[float] = 1e-2
    adam_b2: Lane[float] = 0.999
    seed: Lane[int] = 0


def stream(config):
    return random_labels(DATA, tasks=config.tasks)


def learner(config):
    return supervised(mlp(12, [config.width, config.width], 3), optax.adam(config.learning_rate, b2=config.adam_b2))


def script(config, tasks):
    events = []
    for task in tasks:
        events += [
            Switch(task),
            Train(task, config.steps, record_every=10),
            Evaluate(task, "train"),
            Evaluate(task, "test"),
            Probe(dead_units, effective_rank, gradient_norm, weight_rank, on=task, samples=32),
            Intervene(ShrinkPerturb(), on=task),
            Intervene(Redo(tau=0.5), on=task),
            Save(f"after-{task.index}"),
        ]
    return tuple(events)


def source(config):
    return Minibatch(16)


EXPERIMENT = Experiment("small", Config, lambda preset: {}, stream, learner, script, source)


def make_runner(configs, *, lanes: int = 0, experiment: Experiment = EXPERIMENT) -> Runner:
    return Runner(experiment, configs, [f"run-{c.seed}-{c.adam_b2}" for c in configs], lanes)


def finish(runner: Runner):
    """Run to the end: (records, saves, ticks)."""
    records, saves, ticks = [], {}, []
    for tick in runner.ticks():
        records += tick.records
        saves |= tick.saves
        ticks.append(tick)
    return records, saves, ticks


def same(one, other):
    """Arrays of the same names, and equal bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
