"""What a run of the rank study is: its configuration, and the recorded data it learns from."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from neoteny.errors import UsageError
from neoteny.lab.configs import Lane, digest
from neoteny.lab.recorded import Recording, written_once
from neoteny.lab.throughput import cache_directory
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.gymnax_environments import Gymnax, minatar
from neoteny.tasks.streams import Stream
from neoteny.tasks.transitions import (
    LEVELS,
    Action,
    NoisyActions,
    Recipe,
    TransitionSet,
    generate,
    load_npz,
    offline,
    read_minari,
)

DELTAS = (0.05, 0.1)
"""Of the effective rank: the variants; the paper's 0.01 is the measure's own."""

STATES, FEWER_STATES = 2_048, (128, 512)
"""States the rank is measured on, at most, and the variants."""

CHECKPOINTS = (0, 10, 30, 100, 300, 1_000, 3_000, 10_000, 20_000)
"""Updates after which everything is measured, of those within a run; a run's last update is one too."""

RATES = (1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)
"""Learning rates of the sweep."""

LARGEST_VALUE = 1e6
"""A run whose values exceed it in size has diverged, as one with numbers that are not finite has."""

LevelName = Literal["catch", "mountain_car", "cartpole", "asterix", "breakout", "freeway", "seaquest", "space_invaders"]
ActivationName = Literal["relu", "tanh", "elu"]
ObjectiveName = Literal["q", "bve", "bc"]


GAME_LIMIT = 10_000
"""Steps after which an evaluated episode of a MinAtar game is given up."""


@dataclass(frozen=True)
class Config:
    """One network trained on one recorded data set, measured and judged at checkpoints."""

    level: LevelName = "catch"
    noise: float = 0.1  # probability that a random action replaced the chosen one
    action: Literal["chosen", "executed"] = "chosen"  # noise of the environment, or of the behaviour
    data_episodes: int = 0  # recorded; 0: the level's own number
    data_seed: int = 0
    data_share: float = 1.0  # of the training episodes
    file: str | Recording = ""  # an .npz or Minari set of this level, or another run's, instead of recording it
    objective: ObjectiveName = "q"
    double: bool = True  # Q: the online network chooses the next action
    activation: ActivationName = "relu"
    width: int = 56
    depth: int = 2  # hidden layers
    features: Literal["learned", "frozen"] = "learned"  # frozen: the hidden layers stay as drawn
    layer_norm: bool = False
    dropout: float = 0.0
    weight_decay: float = 0.0  # decoupled, times the learning rate
    sharpness_radius: float = 0.0  # of SAM; 0: plain gradients
    rank_coefficient: float = 0.0  # of the penalty s_1^2 - s_m^2
    huber: bool = False
    batch: int = 64
    updates: int = 20_000
    target_period: int = 1_000
    polyak: float = 0.0  # instead of the period; 0: copies
    discount: float = 0.99
    states: int = STATES  # of the dev episodes, that the rank is measured on
    allow_small_n: bool = False  # fewer states than units
    episodes: int = 0  # of every evaluation; 0: 100 for Catch, 20 for others
    learning_rate: Lane[float] = 3.16e-4
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("width", "depth", "batch", "updates", "target_period", "states"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("weight_decay", "sharpness_radius", "rank_coefficient", "episodes", "seed", "data_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("noise", "discount", "polyak"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not 0 < self.data_share <= 1:
            raise ValueError(f"data_share must be above 0 and at most 1, not {self.data_share}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if self.data_episodes < 0 or self.data_episodes == 1:
            raise ValueError(f"data_episodes must be at least 2, or 0 for the level's own, not {self.data_episodes}")


def recipe(config: Config) -> Recipe:
    """How the configuration's data are made."""
    return Recipe(config.level, config.noise, config.data_episodes, config.data_seed)


@functools.cache
def recorded(made: Recipe) -> TransitionSet:
    """The data of a recipe, made once on this machine and kept in the cache directory."""
    path = cache_directory() / "transitions" / f"{made.name}-{digest(asdict(made))}.npz"
    return written_once(path, lambda: generate(made))


@functools.cache
def _loaded(path: str, stamp: float) -> TransitionSet:
    del stamp
    folder = Path(path)
    return read_minari(folder.parent, folder.name) if folder.is_dir() else load_npz(path)


def transitions(config: Config) -> TransitionSet:
    """The recorded data of a configuration."""
    if isinstance(config.file, Recording):
        return config.file.load()
    if config.file:
        path = Path(config.file)
        return _loaded(str(path), path.stat().st_mtime if path.exists() else 0.0)
    if config.level not in LEVELS:
        raise UsageError(
            f"{config.level} has no data of its own: play an agent with `neoteny record`, and give its --file"
        )
    return recorded(recipe(config))


def environment(level: LevelName) -> Gymnax:
    """Where the policies of a level are judged."""
    return LEVELS[level].environment if level in LEVELS else minatar(level)


def limit(level: LevelName) -> int:
    """Steps of an episode at most."""
    return LEVELS[level].limit if level in LEVELS else GAME_LIMIT


@functools.cache
def _arrays(data: TransitionSet, action: str, share: float) -> Arrays:
    return data.arrays(Action(action), share)


def stream(config: Config) -> Stream:
    """The recorded task; then its environment without noise and, if the data have some, with it."""
    quiet = environment(config.level)
    noisy = (NoisyActions(quiet, config.noise),) if config.noise else ()
    data = _arrays(transitions(config), config.action, config.data_share)
    states = min(config.states, len(data.splits["dev"]))
    if states < config.width and not config.allow_small_n:
        raise UsageError(
            f"{data.name} has {states} states to measure the rank of {config.width} units on; record more episodes "
            "(--data-episodes), or say --allow-small-n True"
        )
    return offline(data, (quiet, *noisy))
