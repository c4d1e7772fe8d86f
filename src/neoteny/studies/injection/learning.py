"""The DQN of the games, as Young & Tian 2019 published it, learning alone: does it reach what they report?

Preset `minatar`: Breakout and Space Invaders for the published 5 million frames, the other games for one million.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from neoteny.agents import MinAtarDQN
from neoteny.analysis import Interval
from neoteny.lab.study import Experiment, StudyFigure, StudyTable
from neoteny.learners.learner import Learner
from neoteny.studies.games import minatar_source, minatar_stream
from neoteny.studies.injection.gains import game_returns, mean_over_seeds
from neoteny.studies.injection.games import (
    GAMES_SIZES,
    Game,
    GamesConfig,
    updates_of,
)
from neoteny.studies.injection.relabel import tenth
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.gymnax_environments import minatar
from neoteny.training.events import Evaluate, Event, Switch, Train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_FRAMES = MinAtarDQN().frames

SOURCE = (
    "Young & Tian 2019, learning curves of the published code: mean return with exploration, 30 runs, each game's best "
    "step size, read from the figure; repeated by Greenquist 2026 (github.com/nickgreenquist/deep-rl-from-scratch, 3 "
    "runs, the last 500,000 of 5 million frames)"
)


@dataclass(frozen=True)
class Published:
    """What the published DQN reaches in 5 million frames.

    score: read from the paper's curves. mean, deviation: of three runs of an independent repetition, which gives the
    interval that the paper's figure does not.
    """

    score: float
    mean: float
    deviation: float

    @property
    def range(self) -> tuple[float, float]:
        """95 % Student's t interval of the repetition, made wide enough to hold the paper's score."""
        half = 4.303 * self.deviation / 3**0.5  # t of 0.975 with two degrees of freedom
        return min(self.score, self.mean - half), max(self.score, self.mean + half)


PUBLISHED: dict[str, Published] = {
    "asterix": Published(16.5, 16.8, 1.2),
    "breakout": Published(10.0, 10.3, 0.4),
    "freeway": Published(50.5, 53.4, 0.2),
    "seaquest": Published(20.0, 19.7, 4.1),
    "space_invaders": Published(45.0, 44.7, 0.5),
}
"""See `SOURCE`. The repetition's numbers are those of its better optimiser or step size: Adam on Breakout, centred
RMSProp elsewhere, at 1e-4 on Asterix."""


def learning_learner(config) -> Learner:
    """The published DQN: not Double DQN, as in `games`."""
    return replace(MinAtarDQN(), learning_rate=config.learning_rate).learner(minatar(config.game).specification)


RECORDS = 10
"""Records of the training metrics between two evaluations."""


def learning_script(config: GamesConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Train and evaluate ten times in turn; the first update comes after random steps alone."""
    (task,) = tasks
    updates = updates_of(config)
    part = tenth(updates)
    events: list[Event] = [Switch(task), Train(task, 1, record_every=1)]
    done = 1
    for end in (*range(part, updates, part), updates):
        if end > done:
            events.append(Train(task, end - done, record_every=max(1, part // RECORDS)))
        events.append(Evaluate(task, samples=config.episodes))
        done = end
    return tuple(events)


SEEDS = (0, 1, 2)
MILLION: tuple[Game, ...] = ("asterix", "freeway", "seaquest")
WHOLE: tuple[Game, ...] = ("breakout", "space_invaders")
"""Games that are played for one million frames, and for the published five."""


def learning_axes(preset: str) -> dict | list[dict]:
    """In the preset `minatar` alone, and a few steps in `smoke`."""
    if preset == "smoke":
        return GAMES_SIZES["smoke"]
    if preset != "minatar":
        return []
    return [
        {"game": WHOLE, "frames": (PUBLISHED_FRAMES,), "seed": SEEDS},
        {"game": MILLION, "frames": (1_000_000,), "seed": SEEDS},
    ]


learning = Experiment(
    "learning", GamesConfig, learning_axes, minatar_stream, learning_learner, learning_script, minatar_source
)

PRESETS = {
    "minatar": (
        "the published DQN on MinAtar, 3 seeds: Breakout and Space Invaders for the published 5 million frames, "
        "Asterix, Freeway and Seaquest for a million; about four hours on two CPU cores, and it may be interrupted"
    )
}
"""Presets that this experiment adds to the study's."""


class Learned(NamedTuple):
    """What the agents of one game reached: mean returns with exploration, over seeds.

    final: of the episodes that ended in the last tenth of the frames. start: of those played at random before learning.
    gain: final less start.
    """

    game: str
    frames: int
    final: Interval
    start: Interval
    gain: Interval

    @property
    def verdict(self) -> str:
        """In words: where `final` lies to the published range, or, of a shorter run, its gain to random play."""
        published = PUBLISHED.get(self.game)
        if published is not None and self.frames == PUBLISHED_FRAMES:
            low, high = published.range
            if low <= self.final.value <= high:
                return "in the published range"
            side = "below" if self.final.value < low else "above"
            overlaps = self.final.low <= high and self.final.high >= low
            return f"{side} the published range{', which its interval reaches' if overlaps else ''}"
        if self.gain.low > 0:
            return "above random play"
        return "not told apart from random play" if self.gain.high > 0 else "below random play"


def learned(frame: pl.DataFrame) -> list[Learned]:
    """Of every game and length of `learning` that at least two finished runs have. A run that diverged has the least
    return that any has in the game.
    """
    returns = game_returns(frame)
    if returns.is_empty():
        return []
    returns = returns.filter(pl.col("experiment") == "learning")
    records = frame.filter(pl.col("experiment") == "learning")
    died = set(records.filter(pl.col("metric") == "diverged")["run"])
    done = records.filter(pl.col("step") * pl.col("period") == pl.col("frames"))["run"]
    returns = returns.filter(pl.col("run").is_in([*died, *done]))
    found = []
    for (game, frames), rows in sorted(returns.partition_by("game", "frames", as_dict=True).items()):
        length = int(str(frames))
        finals, starts = [], []
        for (run,), mine in sorted(rows.partition_by("run", as_dict=True).items()):
            last = mine.filter(pl.col("frame") > 0.9 * length)
            lost = run in died or last.is_empty()
            finals.append(rows["value"].to_numpy().min() if lost else _mean_return(last))
            starts.append(mine.sort("step")["value"].to_numpy()[0])
        if len(finals) > 1:
            final, start = np.asarray(finals), np.asarray(starts)
            final, start, gain = (mean_over_seeds(each) for each in (final, start, final - start))
            found.append(Learned(str(game), length, final, start, gain))
    return found


def _mean_return(rows: pl.DataFrame) -> float:
    """Of all episodes that ended between these records, which are equally far apart."""
    return float(np.average(rows["value"].to_numpy(), weights=rows["episodes"].to_numpy()))


def told_of_learning(frame: pl.DataFrame) -> list[str]:
    """What the published agent reached, in words."""
    return [
        f"The published DQN on {_title(each.game)}, {each.frames / 1e6:g} million frames: mean return "
        f"{_interval(each.final)}, {each.final.n} seeds; random actions {each.start.value:.1f}: {each.verdict}."
        for each in learned(frame)
    ]


def _title(game: str) -> str:
    return " ".join(word.capitalize() for word in game.split("_"))


def _interval(estimate: Interval) -> str:
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def beside_the_published(frame: pl.DataFrame) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """Rows of the table: every game beside the published scores, which are those of 5 million frames."""
    rows = []
    for each in learned(frame):
        published = PUBLISHED.get(each.game)
        theirs = "" if published is None else "{:g} [{:.1f}, {:.1f}]".format(published.score, *published.range)
        rows.append(
            (
                _title(each.game),
                f"{each.frames / 1e6:g} M",
                str(each.final.n),
                _interval(each.final),
                f"{each.start.value:.2f}",
                theirs,
                each.verdict,
            )
        )
    header = ("game", "frames", "seeds", "mean return", "random actions", "published at 5 M", "reading")
    return (header, rows) if rows else None


TABLES = (
    StudyTable(
        "minatar_dqn",
        "The published DQN on MinAtar",
        "Mean return, exploration included, of the episodes that ended in the last tenth of the frames, with 95 % "
        f"intervals over seeds. Published: {SOURCE}; in brackets the interval of that repetition, made wide enough to "
        "hold the paper's score. A reading is where the mean lies to that range; runs shorter than the published ones "
        "are read against random play.",
        beside_the_published,
    ),
)


def learning_figure(frame: pl.DataFrame) -> Figure | None:
    """Learning curves by game, with the published range where the runs are as long as those published."""
    from neoteny.report.figures import curves

    returns = game_returns(frame)
    if returns.is_empty():
        return None
    rows = returns.filter(pl.col("experiment") == "learning")
    if rows.is_empty():
        return None
    drawn = rows.select("game", "seed", "value", millions=pl.col("frame") / 1e6, curve=pl.lit("DQN"))
    parts = [drawn.with_columns(pl.col("seed").cast(pl.Int64))]
    for (game, frames), _ in sorted(rows.partition_by("game", "frames", as_dict=True).items()):
        if frames == PUBLISHED_FRAMES and game in PUBLISHED:
            for end, height in zip(("least", "greatest"), PUBLISHED[str(game)].range, strict=True):
                line = {"game": game, "seed": 0, "value": height, "curve": f"published at the end, {end}"}
                parts.append(pl.DataFrame([{**line, "millions": at} for at in (0.0, PUBLISHED_FRAMES / 1e6)]))
    drawn = pl.concat([part.select("game", "seed", "value", "millions", "curve") for part in parts])
    return curves(
        drawn.with_columns(pl.col("game").map_elements(_title, pl.String)),
        x="millions",
        by=("curve",),
        panel="game",
        x_label="million frames",
        y_label="mean return",
        share_y=False,
        show_seeds=False,
    )


FIGURES = (
    StudyFigure(
        "learning_games",
        "The published DQN on MinAtar",
        "Mean return of the episodes that ended between two records, exploration included. Horizontal lines: the range "
        "of what is published for 5 million frames.",
        learning_figure,
    ),
)
