"""Deep reinforcement learning with and without layer norm: MinAtar, and the paper's own Atari (section 6).

Nothing but the norm differs: Double DQN, its network, its optimiser and its replay are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from neoteny.agents.atari import FRAME_SKIP, AtariDQN
from neoteny.agents.minatar import MinAtarDQN
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.networks import Norm
from neoteny.probes import dead_units, effective_rank, feature_rank, gradient_covariance, output_sharpness, weight_norm
from neoteny.studies.games import (
    GAMES,
    MINATAR_SMOKE,
    Game,
    atari_agent,
    atari_experiment,
    atari_rounds,
    check_minatar,
    minatar_learner,
    minatar_source,
    minatar_stream,
)
from neoteny.studies.plasticity.shared import check_positive
from neoteny.tasks.environments import EnvironmentTask
from neoteny.training.events import AnyTask, Evaluate, Event, Probe, Switch, Train

PARTS = 10
"""Of a run of MinAtar; at the end of each it is evaluated and looked at."""


@dataclass(frozen=True)
class GameConfig:
    """One agent on one game of MinAtar. Defaults are the published ones."""

    game: Game = "breakout"
    layer_norm: bool = False
    frames: int = MinAtarDQN.frames  # after the first random ones; MinAtar skips none
    period: int = MinAtarDQN.period  # frames between updates
    learning_starts: int = MinAtarDQN.learning_starts
    capacity: int = MinAtarDQN.replay
    exploration: int = MinAtarDQN.epsilon_steps  # frames over which epsilon falls to 0.1
    episodes: int = 10  # of every evaluation
    evaluation_limit: int = MinAtarDQN.evaluation_limit
    learning_rate: Lane[float] = 2.5e-4
    seed: Lane[int] = 0

    def __post_init__(self):
        check_minatar(self)
        if self.frames % (PARTS * self.period):
            raise ValueError(f"frames must be a multiple of {PARTS} periods, not {self.frames}")


def _norm(layer_norm: bool) -> Norm:
    return Norm.LAYER if layer_norm else Norm.NONE


def game_learner(config: GameConfig) -> Learner:
    """Double DQN, with the norm or without."""
    return minatar_learner(config, norm=_norm(config.layer_norm))


def _looks(task: AnyTask) -> tuple[Event, ...]:
    return (
        Probe(dead_units, feature_rank, effective_rank, on=task, samples=512),
        Probe(weight_norm, on=task, samples=1),
        Probe(output_sharpness, on=task, samples=256),
        Probe(gradient_covariance, on=task, samples=128),
    )


def game_script(config: GameConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Train, evaluate and look, in turn."""
    (task,) = tasks
    updates = config.frames // config.period // PARTS
    one = (
        Train(task, updates, record_every=max(1, updates // 5)),
        Evaluate(task, samples=config.episodes),
        *_looks(task),
    )
    return Switch(task), *one * PARTS


GAME_SIZES: dict[str, dict[str, tuple]] = {
    "smoke": MINATAR_SMOKE,
    "minatar": {"game": GAMES, "frames": (400_000,), "period": (4,), "seed": tuple(range(5))},
    "paper": {"game": GAMES, "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults."""


def game_axes(preset: str) -> dict | list[dict]:
    """All games with and without layer norm, every seed; `smoke` with it alone."""
    if preset not in GAME_SIZES:
        return []
    return {**GAME_SIZES[preset], "layer_norm": (True,) if preset == "smoke" else (False, True)}


games = Experiment("games", GameConfig, game_axes, minatar_stream, game_learner, game_script, minatar_source)


# Atari ------------------------------------------------------------------------------------------------------------

ATARI = (
    "alien", "amidar", "assault", "asterix", "asteroids", "atlantis", "bank_heist", "battle_zone", "beam_rider",
    "berzerk", "bowling", "boxing", "breakout", "centipede", "chopper_command", "crazy_climber", "defender",
    "demon_attack", "double_dunk", "enduro", "fishing_derby", "freeway", "frostbite", "gopher", "gravitar", "hero",
    "ice_hockey", "jamesbond", "kangaroo", "krull", "kung_fu_master", "montezuma_revenge", "ms_pacman",
    "name_this_game", "phoenix", "pitfall", "pong", "private_eye", "qbert", "riverraid", "road_runner", "robotank",
    "seaquest", "skiing", "solaris", "space_invaders", "star_gunner", "surround", "tennis", "time_pilot", "tutankham",
    "up_n_down", "venture", "video_pinball", "wizard_of_wor", "yars_revenge", "zaxxon",
)  # fmt: skip
"""The 57 games (Bellemare et al. 2013)."""

_ZOO = AtariDQN()


@dataclass(frozen=True)
class AtariConfig:
    """One game, one agent: DQN Zoo's, with the paper's replay of 100,000 transitions and epsilon of 0.1."""

    game: str = "space_invaders"
    layer_norm: bool = False
    frames: int = 200_000_000
    evaluate_every: int = 2_000_000  # frames
    episodes: int = 10  # of an evaluation, side by side
    replay: int = 100_000  # steps
    learning_starts: int = 5_000  # steps, with random actions: 5 % of the replay
    exploration: int = 4 * _ZOO.epsilon_steps  # frames over which epsilon falls
    epsilon_end: float = 0.1
    width: int = _ZOO.width
    batch: int = _ZOO.batch
    segment: int = 4 * _ZOO.segment  # frames
    noops: int = _ZOO.noops  # at most so many begin an episode
    life_loss: bool = _ZOO.life_loss  # ends what is learned from, not the episode
    frame_limit: int = _ZOO.frame_limit  # of an episode
    learning_rate: Lane[float] = _ZOO.learning_rate
    seed: Lane[int] = 0

    def __post_init__(self):
        check_positive(
            self, "frames", "evaluate_every", "episodes", "replay", "learning_starts", "exploration", "width", "batch",
            "segment", "learning_rate",
        )  # fmt: skip
        every = FRAME_SKIP * _ZOO.period
        if self.evaluate_every % every or self.frames % self.evaluate_every:
            raise ValueError(
                f"evaluate_every ({self.evaluate_every}) must be a multiple of the {every} frames of an update, and "
                f"frames ({self.frames}) of it"
            )


def agent(config: AtariConfig) -> AtariDQN:
    """DQN Zoo's agent with what the configuration says."""
    return replace(atari_agent(config), norm=_norm(config.layer_norm))


def atari_script(config: AtariConfig, tasks: tuple[AnyTask, ...]) -> tuple[Event, ...]:
    """Train and evaluate in turn."""
    task = tasks[0]
    rounds = atari_rounds(config, task, config.frames, frames_an_update=FRAME_SKIP * _ZOO.period)
    return Switch(task), *rounds, *_looks(task)


def atari_axes(preset: str) -> dict | list[dict]:
    """57 games with and without layer norm, three seeds: `paper` alone."""
    return {"game": ATARI, "layer_norm": (False, True), "seed": (0, 1, 2)} if preset == "paper" else []


atari = atari_experiment(AtariConfig, atari_axes, agent, atari_script)
