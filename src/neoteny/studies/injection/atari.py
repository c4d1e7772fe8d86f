"""Plasticity injection on Atari: the paper's own setting (Nikishin et al. 2023), and one that two CPU cores can do.

A Double DQN plays one game; at `inject_at` frames a copy is forked, injected, and trained on beside the agent itself,
with the same draws. Lengths are in frames, four of which make an action of the agent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from neoteny.agents.atari import FRAME_SKIP, AtariDQN
from neoteny.interventions import Inject
from neoteny.lab.configs import Lane
from neoteny.lab.study import StudyFigure
from neoteny.probes import dead_units, dormant_units, feature_rank, weight_norm
from neoteny.studies.games import atari_agent, atari_experiment, atari_rounds
from neoteny.studies.injection.gains import mean_over_seeds
from neoteny.studies.injection.relabel import PARAMETERS, output_jump
from neoteny.training.events import AnyTask, Event, Fork, Intervene, Probe, Save, Switch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = "dense1"
"""First stage of the head; the encoder is the convolutions."""

_ZOO = AtariDQN()


@dataclass(frozen=True)
class AtariConfig:
    """One game, one agent. Defaults are DQN Zoo's and the paper's."""

    game: str = "phoenix"
    frames: int = 200_000_000
    inject_at: int = 50_000_000  # frames; 0: never
    evaluate_every: int = 2_000_000  # frames
    episodes: int = 10  # of an evaluation, side by side
    evaluation_limit: int = _ZOO.evaluation_limit  # steps
    replay: int = _ZOO.replay  # steps
    learning_starts: int = _ZOO.learning_starts  # steps, with random actions
    exploration: int = 4 * _ZOO.epsilon_steps  # frames over which epsilon falls
    epsilon_end: float = _ZOO.epsilon_end
    target_every: int = 16 * _ZOO.target_period  # frames
    update_every: int = 16  # frames, of all games of a lane together
    envs: int = _ZOO.envs
    width: int = _ZOO.width
    batch: int = _ZOO.batch
    sticky: float = _ZOO.sticky
    segment: int = 4 * _ZOO.segment  # frames
    noops: int = _ZOO.noops  # at most so many begin an episode
    life_loss: bool = _ZOO.life_loss  # ends what is learned from, not the episode
    frame_limit: int = _ZOO.frame_limit  # of an episode
    learning_rate: Lane[float] = _ZOO.learning_rate
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("frames", "evaluate_every", "episodes", "exploration", "target_every", "update_every", "segment"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("target_every", "evaluate_every"):
            if getattr(self, name) % self.update_every:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of update_every")
        for name in ("frames", "inject_at"):
            if getattr(self, name) % self.evaluate_every:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be a multiple of evaluate_every ({self.evaluate_every})"
                )
        if not 0 <= self.inject_at < self.frames:
            raise ValueError(f"inject_at must lie before the end ({self.frames}) or be 0, not {self.inject_at}")
        if self.update_every % (FRAME_SKIP * self.envs):
            raise ValueError(
                f"update_every ({self.update_every}) must be a multiple of the {FRAME_SKIP * self.envs} frames of one "
                "action in all games of a lane"
            )


def agent(config: Any) -> AtariDQN:
    """DQN Zoo's agent with what the configuration says."""
    return replace(
        atari_agent(config),
        period=config.update_every // (FRAME_SKIP * config.envs),
        envs=config.envs,
        target_period=config.target_every // config.update_every,
        evaluation_limit=config.evaluation_limit,
        sticky=config.sticky,
    )


SAVES = 5
"""Networks are saved after so many equal parts of a run, or as near as evaluations are: `frames800000`."""


def script(config: AtariConfig, tasks: tuple[AnyTask, ...]) -> tuple[Event, ...]:
    """Train and evaluate in turn; after `inject_at` frames an injected copy goes the same way first."""
    task = tasks[0]
    count = config.frames // config.evaluate_every
    saved = {-(-count * part // SAVES) for part in range(1, SAVES + 1)}

    def rounds(start: int, stop: int) -> tuple[Event, ...]:
        """Between these frames."""
        events: list[Event] = []
        for number in range(start // config.evaluate_every + 1, stop // config.evaluate_every + 1):
            events += atari_rounds(config, task, config.evaluate_every, frames_an_update=config.update_every)
            if number in saved:
                events.append(Save(f"frames{number * config.evaluate_every}"))
        return tuple(events)

    if config.inject_at == 0:
        return Switch(task), *rounds(0, config.frames)
    look = output_jump("before")
    rest = rounds(config.inject_at, config.frames)
    return (
        Switch(task),
        *rounds(0, config.inject_at),
        Probe(dead_units, dormant_units, feature_rank, on=task, samples=512),
        Probe(weight_norm, on=task, samples=1),
        Save("before"),
        Fork({"inject": (Intervene(Inject(HEAD)), Probe(look, PARAMETERS, on=task, samples=256))}, then=rest),
        *rest,
    )


SIZES: dict[str, dict[str, tuple] | list[dict[str, tuple]]] = {
    "smoke": {
        "game": ("freeway",),
        "frames": (3_200,),
        "inject_at": (1_600,),
        "evaluate_every": (1_600,),
        "episodes": (2,),
        "evaluation_limit": (50,),
        "replay": (400,),
        "learning_starts": (200,),
        "exploration": (1_600,),
        "target_every": (800,),
        "segment": (800,),
        "width": (32,),
        "batch": (8,),
        "seed": (0,),
    },
    "atari": {
        "game": ("freeway",),
        "frames": (960_000,),
        "inject_at": (0,),
        "evaluate_every": (160_000,),
        "episodes": (4,),
        "replay": (100_000,),
        "learning_starts": (10_000,),
        "exploration": (80_000,),
        "epsilon_end": (0.02,),
        "target_every": (16_000,),
        "segment": (80_000,),
        "seed": (0, 1),
    },
    "paper": {
        "game": ("assault", "phoenix", "robotank", "space_invaders"),
        "seed": tuple(range(5)),
    },
}
"""Preset -> the fields in which it differs from the defaults.

`atari` is for two CPU cores and an hour: two agents, a small replay, a target period to match, and soon little
exploration (on Freeway an action must be kept up to cross the road, which random ones never do). `paper` has the
paper's four show cases.
"""

PRESETS = {"atari": "real Atari Freeway, 960,000 frames of each of two agents: about an hour on two CPU cores"}
"""Presets that this experiment adds to the study's."""


def axes(preset: str) -> Any:
    """Every game and seed; nothing in presets that are not for Atari."""
    return SIZES.get(preset, ())


atari = atari_experiment(AtariConfig, axes, agent, script)


RANDOM = {
    "assault": 222.4, "freeway": 0.0, "phoenix": 761.4, "pong": -20.7, "robotank": 2.2, "space_invaders": 148.0,
}  # fmt: skip
"""Mean scores of random actions (Wang et al. 2016, tables of the appendix)."""


def told_of_atari(frame: pl.DataFrame) -> list[str]:
    """What the agents reached in games with two finished runs or more, in words, beside random actions."""
    if not {"game", "update_every"} <= set(frame.columns):
        return []
    mine = (pl.col("experiment") == "atari") & (pl.col("metric") == "return") & (pl.col("branch") == "")
    ends = frame.filter(mine & (pl.col("step") * pl.col("update_every") == pl.col("frames")))
    told = []
    for (game, frames), rows in sorted(ends.partition_by("game", "frames", as_dict=True).items()):
        if rows.height > 1:
            reached = mean_over_seeds(rows.sort("seed")["value"].to_numpy())
            random = "" if game not in RANDOM else f"; random actions {RANDOM[str(game)]:g}"
            told.append(
                f"Atari {str(game).replace('_', ' ')}, {int(str(frames)) / 1e6:g} million frames: evaluated return "
                f"{reached.value:.1f} [{reached.low:.1f}, {reached.high:.1f}], {reached.n} seeds{random}."
            )
    return told


def returns_figure(frame: pl.DataFrame) -> Figure | None:
    """Evaluated returns of the agent and of its injected copy, by game."""
    from neoteny.report.figures import curves

    if "game" not in frame.columns:
        return None
    rows = frame.filter((pl.col("experiment") == "atari") & (pl.col("metric") == "return"))
    if rows.is_empty():
        return None
    named = pl.when(pl.col("branch") == "").then(pl.lit("agent")).otherwise(pl.col("branch"))
    rows = rows.with_columns(branch=named, step=FRAME_SKIP * pl.col("env_steps") / 1e6)
    games = rows["game"].unique().to_list()
    references = {"random actions": RANDOM[games[0]]} if len(games) == 1 and games[0] in RANDOM else None
    return curves(
        rows,
        x="step",
        by=("branch",),
        panel="game",
        x_label="million frames",
        y_label="return",
        references=references,
        share_y=False,
    )


FIGURES = (
    StudyFigure(
        "atari_returns",
        "Atari: return of evaluated episodes",
        "Episodes in emulators of their own, with the evaluation's epsilon. The injected copy is forked from the agent "
        "and shares its draws.",
        returns_figure,
    ),
)
