"""Q3: Double DQN on the games of MinAtar, with injected copies forked after a quarter, a half and three quarters.

A copy goes on for a quarter of the run; what it is compared with is the run itself, which goes on with the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neoteny.interventions import Inject
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.dqn import MINATAR_TARGET_PERIOD, dqn, minatar_rmsprop
from neoteny.learners.learner import Learner
from neoteny.networks.minatar import minatar as minatar_network
from neoteny.studies.injection.relabel import tenth
from neoteny.tasks.environments import EnvironmentTask, environments
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.gymnax_environments import minatar
from neoteny.tasks.streams import Stream
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Switch, Train

Game = Literal["asterix", "breakout", "freeway", "seaquest", "space_invaders"]

GAMES: tuple[Game, ...] = ("breakout", "asterix", "seaquest", "space_invaders", "freeway")
"""`quick` plays the first four."""

GAME_HEAD = "dense1"
"""First stage of the head; the convolution is the encoder."""

QUARTERS = (1, 2, 3)
"""After how many quarters of a run copies are forked."""


@dataclass(frozen=True)
class GamesConfig:
    """One agent on one game."""

    game: Game = "breakout"
    frames: int = 1_000_000  # steps of the game after the first random ones; MinAtar skips none
    period: int = 1  # frames between updates
    learning_starts: int = 5_000
    capacity: int = 100_000
    exploration: int = 100_000  # frames over which epsilon falls to 0.1
    episodes: int = 10  # of every evaluation
    evaluation_limit: int = 10_000
    learning_rate: Lane[float] = 2.5e-4
    seed: Lane[int] = 0

    def __post_init__(self):
        check_games(self)
        if self.frames % (4 * self.period):
            raise ValueError(
                f"frames must be a multiple of 4 periods, not {self.frames}: copies are forked after quarters"
            )


def check_games(config) -> None:
    """ValueError naming a field that is out of its range."""
    for name in ("frames", "period", "learning_starts", "capacity", "exploration", "episodes", "evaluation_limit"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
    if not config.learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, not {config.learning_rate}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, not {config.seed}")


def games_stream(config) -> Stream:
    """One game."""
    return environments([minatar(config.game)])


def games_learner(config) -> Learner:
    """Double DQN with the network, optimiser and target period of Young & Tian 2019."""
    shown = minatar(config.game).specification
    maker = minatar_network(shown.shape, shown.actions)
    return dqn(maker, minatar_rmsprop(config.learning_rate), target_period=MINATAR_TARGET_PERIOD)


def games_source(config) -> DeviceExperience:
    """Replay and exploration of Young & Tian 2019."""
    return DeviceExperience(
        period=config.period,
        learning_starts=config.learning_starts,
        capacity=config.capacity,
        epsilon=LinearEpsilon(1.0, 0.1, config.exploration),
        evaluation_limit=config.evaluation_limit,
    )


def updates_of(config) -> int:
    """Updates of a run."""
    return config.frames // config.period


def games_script(config: GamesConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Four quarters; the first update comes after random steps alone, whose returns are recorded with it."""
    (task,) = tasks
    quarter = updates_of(config) // 4
    every = tenth(quarter)  # the last of which is the final performance
    events: list[Event] = [
        Switch(task),
        Train(task, 1, record_every=1),
        Train(task, quarter - 1, record_every=every),
    ]
    for _ in QUARTERS:
        events += [
            Evaluate(task, samples=config.episodes),
            Fork({"inject": (Intervene(Inject(GAME_HEAD)),)}, then=(Train(task, quarter, record_every=every),)),
            Train(task, quarter, record_every=every),
        ]
    events.append(Evaluate(task, samples=config.episodes))
    return tuple(events)


GAMES_SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "game": ("breakout",),
        "frames": (40,),
        "learning_starts": (60,),
        "capacity": (200,),
        "exploration": (20,),
        "episodes": (2,),
        "evaluation_limit": (20,),
        "seed": (0, 1),
    },
    "quick": {"game": GAMES[:4], "frames": (240_000,), "period": (4,), "seed": tuple(range(5))},
    "paper": {"game": GAMES, "frames": (5_000_000,), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults."""


def games_axes(preset: str) -> dict | list[dict]:
    """All games, every seed."""
    return GAMES_SIZES.get(preset, [])


games = Experiment("games", GamesConfig, games_axes, games_stream, games_learner, games_script, games_source)
