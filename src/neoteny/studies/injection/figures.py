"""The study's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from neoteny.lab.study import StudyFigure
from neoteny.studies.injection.gains import (
    AXES,
    GAMES_STRUCTURE,
    MDP_STRUCTURE,
    along,
    differing,
    game_gains,
    game_returns,
    growth_accuracy,
    last_fork,
    paired_gains,
    performance_of,
    reached_threshold,
    regressions,
    relabel_rows,
    reward_rates,
    varied,
)
from neoteny.studies.injection.mdp import MDP_ARMS
from neoteny.studies.injection.relabel import ARMS, CORE, DEFAULT, TUNED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAMS = {DEFAULT: "default Adam", TUNED: "tuned Adam"}


def _with_adam(frame: pl.DataFrame) -> pl.DataFrame:
    """Runs of `relabel` with a column `adam` in words."""
    parts = [relabel_rows(frame, setting).with_columns(adam=pl.lit(name)) for setting, name in ADAMS.items()]
    return pl.concat(parts)


def _accuracy_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    rows = _with_adam(frame).filter((pl.col("metric") == "accuracy") & (pl.col("branch") == ""))
    if rows.is_empty() or varied(rows):
        return None
    rows = rows.with_columns(pl.col("value") * 100, pl.col("task") + 1)
    return curves(
        rows,
        x="task",
        by=("adam",),
        x_label="task (labels redrawn before each)",
        y_label="accuracy (%)",
        references={"chance": 10.0},
    )


def _looks(arms: list[str]) -> dict:
    from neoteny.report.figures import settings as looks

    names = [arm for arm in ARMS if arm in arms]
    return looks(pl.DataFrame({"branch": names}), ("branch",), {(arm,): arm.replace("_", " ") for arm in names})


def _gains_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    parts = []
    for setting, name in ADAMS.items():
        rows = relabel_rows(frame, setting)
        if rows.is_empty() or varied(rows):
            continue
        performance = performance_of(rows)
        for arm in CORE[1:]:
            gains = paired_gains(performance, arm)
            parts.append(gains.with_columns(branch=pl.lit(arm), adam=pl.lit(name)))
    drawn = pl.concat(parts) if parts else pl.DataFrame()
    if drawn.is_empty():
        return None
    return curves(
        drawn,
        x="fork",
        by=("branch",),
        panel="adam",
        settings=_looks(list(CORE[1:])),
        x_label="tasks before the fork",
        y_label="gain (points)",
        references={"control": 0.0},
    )


def _last_gains_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    rows = relabel_rows(frame, DEFAULT)
    if rows.is_empty() or varied(rows):
        return None
    performance = performance_of(rows)
    arms = [arm for arm in ARMS if arm != "control"]
    gains = pl.concat([paired_gains(performance, arm).with_columns(branch=pl.lit(arm)) for arm in arms])
    last = gains.filter(pl.col("fork") == last_fork(rows))
    if last.is_empty():
        return None
    there = [arm for arm in arms if arm in set(last["branch"])]
    return intervals(
        last, by=("branch",), settings=_looks(there), value_label="gain over control (points)", reference=0.0
    )


def _learning_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    rows = relabel_rows(frame, DEFAULT)
    if rows.is_empty() or varied(rows):
        return None
    last = last_fork(rows)
    chosen = rows.filter(
        (pl.col("metric") == "train_accuracy") & (pl.col("task") == last) & pl.col("branch").is_in(CORE)
    )
    if chosen.is_empty():
        return None
    chosen = chosen.with_columns(pl.col("value") * 100, step=pl.col("step") - last * pl.col("steps_per_task"))
    return curves(
        chosen,
        x="step",
        by=("branch",),
        settings=_looks(list(CORE)),
        x_label="updates after the last fork",
        y_label="training accuracy (%)",
    )


def _dead_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    dead = (pl.col("metric") == "dead_units") & (pl.col("branch") == "") & pl.col("place").is_in(["hidden1", "hidden2"])
    rows = _with_adam(frame).filter(dead)
    if rows.is_empty() or varied(rows):
        return None
    named = pl.when(pl.col("place") == "hidden1").then(pl.lit("encoder")).otherwise(pl.lit("head"))
    rows = rows.with_columns(pl.col("value") * 100, pl.col("task") + 1, place=named)
    return curves(rows, x="task", by=("place",), panel="adam", x_label="task", y_label="dead units (%)")


def _settings_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    parts = [
        gains.with_columns(axis=pl.lit(name), level=pl.col("setting").map_elements(lambda v: f"{v:g}", pl.String))
        for axis, name in AXES.items()
        if not (gains := along(frame, axis)).is_empty()
    ]
    if not parts:
        return None
    drawn = pl.concat(parts).with_columns(setting=pl.concat_str(["axis", "level"], separator=" "))
    return intervals(drawn, by=("setting",), value_label="gain over control at the last fork (points)", reference=0.0)


def _growth_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    accuracy = growth_accuracy(frame) if "arm" in frame.columns else pl.DataFrame()
    if accuracy.is_empty() or accuracy.select("small", "large", "tasks").n_unique() > 1:
        return None
    return curves(
        accuracy.with_columns(pl.col("task") + 1),
        x="task",
        by=("arm",),
        x_label="task (each as dear as any, for every arm)",
        y_label="accuracy (%)",
    )


def _mdp_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    rows = frame.filter((pl.col("experiment") == "mdp") & (pl.col("metric") == "train_reward"))
    if rows.is_empty() or differing(rows, MDP_STRUCTURE):
        return None
    names = list(MDP_ARMS)
    drawn = rows.filter(pl.col("branch").is_in(names)).with_columns(value=100 * pl.col("value"))
    return curves(
        drawn,
        x="step",
        by=("branch",),
        settings=_looks(names),
        x_label="updates (copies are forked half way)",
        y_label="rewards of 100 steps",
        references={"any action": 10.0},
    )


def _mdp_gains_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    rows = frame.filter(pl.col("experiment") == "mdp")
    if rows.is_empty() or differing(rows, MDP_STRUCTURE):
        return None
    rates = reward_rates(frame)
    arms = [arm for arm in MDP_ARMS if arm != "control"]
    gains = pl.concat([paired_gains(rates, arm).with_columns(branch=pl.lit(arm)) for arm in arms])
    if gains.is_empty():
        return None
    return intervals(
        gains,
        by=("branch",),
        settings=_looks([arm for arm in arms if arm in set(gains["branch"])]),
        value_label="gain over control (rewards of 100 steps)",
        reference=0.0,
    )


def _games_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    returns = game_returns(frame)
    if returns.is_empty() or differing(frame.filter(pl.col("experiment") == "games"), GAMES_STRUCTURE):
        return None
    returns = returns.filter(pl.col("experiment") == "games")
    if returns.is_empty():
        return None
    percent = (100 * pl.col("frame") / pl.col("frames") - 1e-6).floor() // 25 * 25
    copy = pl.when(pl.col("branch") == "").then(pl.lit("untreated")).otherwise(
        pl.format("injected at {} %", percent.cast(pl.Int64))
    )  # fmt: skip
    drawn = returns.with_columns(copy=copy, game=pl.col("game").str.replace_all("_", " ")).sort("game", "copy", "step")
    return curves(
        drawn.filter(pl.col("step") > 1),
        x="frame",
        by=("copy",),
        panel="game",
        x_label="frames",
        y_label="mean return",
        share_y=False,
        show_seeds=False,
    )


def _game_gains_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    gains = game_gains(frame)
    if gains.is_empty() or differing(frame.filter(pl.col("experiment") == "games"), GAMES_STRUCTURE):
        return None
    drawn = gains.with_columns(
        pl.format("{} %", 25 * pl.col("fork")).alias("injected at"), game=pl.col("game").str.replace_all("_", " ")
    )
    return intervals(drawn, by=("injected at",), panel="game", value_label="gain in mean return", reference=0.0)


def _regression_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    found = regressions(frame)
    if found.is_empty() or found.select("game", "updates").n_unique() > 1:
        return None
    what = reached_threshold(found)
    if what is None:
        return None
    drawn = found.filter(pl.col("what") == what).with_columns(
        network=pl.when(pl.col("arm") == "warm").then(pl.lit("warm start")).otherwise(pl.lit("begun anew"))
    )
    return curves(
        drawn,
        x="task",
        by=("network",),
        x_label="policy",
        y_label=f"updates to a loss of {what.removeprefix('updates-')}",
        y_log=True,
    )


FIGURES = (
    StudyFigure(
        "accuracy",
        "Accuracy at the end of each task",
        "How well the labels of each task are fitted when its budget of steps is spent, on 4,096 images; the network "
        "that copies are forked from.",
        _accuracy_figure,
    ),
    StudyFigure(
        "gains",
        "Gain of each treatment, by time of the fork",
        "Training accuracy in the last tenth of the next task's steps, less that of the untreated copy with the same "
        "draws. Placebo adds the pair but trains the old head: it should be zero up to what rounding grows to.",
        _gains_figure,
    ),
    StudyFigure(
        "learning",
        "The next task after the last fork",
        "Training accuracy of the copies under default Adam while they learn the task after the last.",
        _learning_figure,
    ),
    StudyFigure(
        "last_gains",
        "All treatments and ablations at the last fork",
        "Gain over the untreated copy under default Adam. Fresh is a new network with a new optimiser.",
        _last_gains_figure,
    ),
    StudyFigure(
        "dead_units",
        "Dead units in encoder and head",
        "Share of units that are exactly zero on all images. A head cannot help an encoder that is dead.",
        _dead_figure,
    ),
    StudyFigure(
        "settings",
        "Gain and setting",
        "Gain of injection at the last fork under default Adam, one field varied at a time.",
        _settings_figure,
    ),
    StudyFigure(
        "growth",
        "Growing half way",
        "Accuracy at the end of each task at equal operations for every task. A larger head (grow) or a whole larger "
        "network (grow whole) is injected into a small network half way.",
        _growth_figure,
    ),
    StudyFigure(
        "mdp",
        "A classification MDP with random labels",
        "Rewards of a hundred steps of Double DQN, exploration included, of the copies after the fork half way.",
        _mdp_figure,
    ),
    StudyFigure(
        "mdp_gains",
        "Gains in the classification MDP",
        "In the last tenth of the updates after the fork, less the untreated copy with the same draws.",
        _mdp_gains_figure,
    ),
    StudyFigure(
        "games",
        "Learning curves on MinAtar",
        "Mean return of the episodes that ended, exploration included: of the run, and of copies injected after a "
        "quarter, a half and three quarters that go on for a quarter with the run's own draws.",
        _games_figure,
    ),
    StudyFigure(
        "game_gains",
        "Gains on MinAtar",
        "Mean return in the last tenth of a quarter, injected less untreated.",
        _game_gains_figure,
    ),
    StudyFigure(
        "regression",
        "Learning the values of stored policies one after another",
        "Updates to a loss that networks begun anew reach for every policy, as a share of the returns' variance. One "
        "more than there are where it was not reached.",
        _regression_figure,
    ),
)
