"""The experiments of the rank study and the settings of its presets."""

from __future__ import annotations

from typing import Any

from neoteny.lab.study import Experiment
from neoteny.studies.rank.models import learner, source
from neoteny.studies.rank.scripts import script
from neoteny.studies.rank.settings import RATES, Config, stream

LANES = 45
"""Learning rates times seeds: one program for each activation and objective."""

OBJECTIVES, ACTIVATIONS = ("q", "bve", "bc"), ("relu", "tanh", "elu")
FIVE = tuple(range(5))

SETS: dict[str, list[dict[str, tuple]]] = {
    "quick": [
        {"level": ("catch",), "noise": (0.1, 0.3)},
        {"level": ("cartpole",), "noise": (0.1,)},
    ],
    "paper": [{"level": ("catch", "mountain_car", "cartpole"), "noise": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)}],
}
"""Preset -> the recorded data."""

SMOKE: dict[str, tuple] = {
    "level": ("catch",),
    "noise": (0.1,),
    "data_episodes": (100,),
    "updates": (300,),
    "episodes": (10,),
}

ONE_AT_A_TIME: tuple[dict[str, tuple], ...] = (
    {},
    {"features": ("frozen",)},
    {"layer_norm": (True,)},
    {"dropout": (0.1,)},
    {"weight_decay": (1e-2,)},
    {"sharpness_radius": (0.05,)},
    {"rank_coefficient": (1e-4,)},
    {"batch": (16, 256)},
    {"target_period": (100, 5_000)},
    {"width": (256,)},
    {"data_share": (0.1,)},
    {"double": (False,)},
)
"""What differs from the baseline, the first, in each block of `interventions`."""


def sweep_axes(preset: str) -> dict | list[dict]:
    """Learning rate, seed, activation and objective on every data set."""
    if preset == "smoke":
        rates, seeds, activations = (1e-4, 1e-3, 1e-1), (0,), ("relu", "tanh")
        blocks: list[dict[str, tuple]] = [SMOKE]
    else:
        rates, seeds, activations = RATES, FIVE, ACTIVATIONS
        blocks = SETS.get(preset, [])
    shared: dict[str, Any] = {
        "objective": OBJECTIVES,
        "activation": activations,
        "learning_rate": rates,
        "seed": seeds,
    }
    longer = {"updates": (100_000,)} if preset == "paper" else {}
    return [{**block, **longer, **shared} for block in blocks]


def interventions_axes(preset: str) -> list[dict]:
    """Q-learning with ReLU on one data set, one setting at a time otherwise, at three learning rates."""
    if preset == "smoke":
        shared = {**SMOKE, "learning_rate": (1e-3,), "seed": (0,)}
        return [{**shared, **change} for change in ONE_AT_A_TIME[:3]]
    if preset not in SETS:
        return []
    shared = {"level": ("catch",), "noise": (0.1,), "learning_rate": RATES[3:8:2], "seed": FIVE}
    return [{**shared, **change} for change in ONE_AT_A_TIME]


sweep = Experiment("sweep", Config, sweep_axes, stream, learner, script, source, lanes=LANES)
interventions = Experiment("interventions", Config, interventions_axes, stream, learner, script, source, lanes=LANES)
