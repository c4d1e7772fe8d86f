"""Q3: Double DQN on the games of MinAtar, with injected copies forked after a quarter, a half and three quarters.

A copy goes on for a quarter of the run; what it is compared with is the run itself, which goes on with the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass

from neoteny.interventions import Inject
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.studies.games import (
    GAMES,
    MINATAR_SMOKE,
    Game,
    check_minatar,
    minatar_learner,
    minatar_source,
    minatar_stream,
)
from neoteny.studies.injection.relabel import output_jump, tenth
from neoteny.tasks.environments import EnvironmentTask
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Save, Switch, Train

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
        check_minatar(self)
        if self.frames % (4 * self.period):
            raise ValueError(
                f"frames must be a multiple of 4 periods, not {self.frames}: copies are forked after quarters"
            )


def updates_of(config) -> int:
    """Updates of a run."""
    return config.frames // config.period


def _injected(task: EnvironmentTask, number: int) -> tuple[Event, ...]:
    """Inject, and compare online and target networks with those before."""
    after = f"injected{number}"
    jump = output_jump(f"quarter{number}", after)
    return Intervene(Inject(GAME_HEAD)), Save(after), Probe(jump, on=task, samples=256)


def games_script(config: GamesConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Four quarters, the networks saved after each (`quarter1`); the first update comes after random steps alone, whose
    returns are recorded with it.
    """
    (task,) = tasks
    quarter = updates_of(config) // 4
    every = tenth(quarter)  # the last of which is the final performance
    events: list[Event] = [
        Switch(task),
        Train(task, 1, record_every=1),
        Train(task, quarter - 1, record_every=every),
    ]
    for number in QUARTERS:
        events += [
            Evaluate(task, samples=config.episodes),
            Save(f"quarter{number}"),
            Fork({"inject": _injected(task, number)}, then=(Train(task, quarter, record_every=every),)),
            Train(task, quarter, record_every=every),
        ]
    events += [Evaluate(task, samples=config.episodes), Save("quarter4")]
    return tuple(events)


GAMES_SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {"game": ("breakout",), **MINATAR_SMOKE},
    "quick": {"game": GAMES[:4], "frames": (240_000,), "period": (4,), "seed": tuple(range(5))},
    "paper": {"game": GAMES, "frames": (5_000_000,), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults."""


def games_axes(preset: str) -> dict | list[dict]:
    """All games, every seed."""
    return GAMES_SIZES.get(preset, [])


games = Experiment("games", GamesConfig, games_axes, minatar_stream, minatar_learner, games_script, minatar_source)
