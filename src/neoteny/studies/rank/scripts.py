"""What happens in a run of the rank study: training between checkpoints, and what is measured at each."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from neoteny.probes import (
    FeatureProbe,
    NetworkProbe,
    ViewProbe,
    constant_fraction,
    dead_units,
    effective_rank,
    entropy_rank,
    measurement,
    numerical_rank,
    participation_ratio,
    stable_rank,
)
from neoteny.studies.rank.settings import CHECKPOINTS, DELTAS, FEWER_STATES, Config, transitions
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.streams import Task
from neoteny.tasks.transitions import TransitionSet
from neoteny.tasks.transitions.behaviour import returns_summary
from neoteny.training.events import Evaluate, Event, Probe, Switch, Train

RECORD_EVERY = 1_000
"""Updates between records of the training metrics and checks for divergence, at most."""


def largest_value(view, batch, key) -> dict[str, jax.Array]:
    """The largest output in size on the states measured."""
    del key
    return {"": jnp.max(jnp.abs(view.network(batch.inputs).output))}


def on_fewer(features: np.ndarray, states: int) -> object:
    """The effective rank on the first so many states."""
    return effective_rank(features[:states])


def centred_rank(features: np.ndarray) -> object:
    """The effective rank of the features less their mean over the states."""
    return effective_rank(features - features.mean(axis=0, keepdims=True, dtype=np.float64))


@dataclass(frozen=True)
class BehaviourReturns:
    """Returns that belong to the data, as a probe: of the uniformly random policy (NaN if unknown), of the behaviour on
    average and at its best.
    """

    random: float
    mean: float
    best: float

    @classmethod
    def of(cls, data: TransitionSet) -> BehaviourReturns:
        """Of a data set."""
        told = returns_summary(data, float(data.about.get("random_return", math.nan)))
        return cls(told["random_return"], told["mean_return"], told["best_return"])

    def __call__(self, network) -> dict[str, float]:
        del network
        return {"random": self.random, "mean": self.mean, "best": self.best}


LARGEST_OUTPUT = ViewProbe("largest_value", largest_value)
CONSTANT_UNITS = measurement(constant_fraction)
SIZES = FeatureProbe("states", len), FeatureProbe("units", lambda features: features.shape[1])
VARIANTS = (
    *(FeatureProbe(f"effective_rank_{delta:g}", functools.partial(effective_rank, delta=delta)) for delta in DELTAS),
    *(FeatureProbe(f"effective_rank_n{n}", functools.partial(on_fewer, states=n)) for n in FEWER_STATES),
    FeatureProbe("effective_rank_centred", centred_rank),
    *(FeatureProbe(rank.__name__, rank) for rank in (entropy_rank, numerical_rank, stable_rank, participation_ratio)),
)
"""What the conclusions must not depend on: measured after the last update."""


def checkpoints(updates: int) -> tuple[int, ...]:
    """The updates after which everything is measured in a run of so many."""
    return (*(step for step in CHECKPOINTS if step < updates), updates)


def script(config: Config, tasks: tuple[Task | EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Measure and judge at every checkpoint; the variants, and the policy under noise, after the last."""
    data, quiet, *noisy = tasks
    assert isinstance(data, Task)
    episodes = config.episodes or (100 if config.level == "catch" else 20)
    returns = NetworkProbe("behaviour", BehaviourReturns.of(transitions(config)))
    events: list[Event] = [Switch(data)]
    before = 0
    for step in checkpoints(config.updates):
        if step > before:
            events.append(Train(data, step - before, record_every=min(RECORD_EVERY, step - before)))
        last = step == config.updates
        shown = (effective_rank, dead_units, CONSTANT_UNITS, LARGEST_OUTPUT, *SIZES, returns)
        events += [
            Probe(*shown, *(VARIANTS if last else ()), on=data, split="dev", samples=config.states),
            Evaluate(data, "dev", samples=config.states),
            Evaluate(quiet, samples=episodes),
        ]
        if last:
            events += [Evaluate(each, samples=episodes) for each in noisy]
        before = step
    return tuple(events)
