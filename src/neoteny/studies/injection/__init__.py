"""Is an agent that stops improving limited by lost plasticity, and does injecting fresh parameters restore it?

Nikishin, Oh, Ostrovski, Lyle, Pascanu, Dabney and Barreto: Deep reinforcement learning with plasticity injection,
NeurIPS 2023 (arXiv:2305.15555). The head is frozen, and a fresh one is added twice, once trained and once frozen and
subtracted: predictions and the number of trained parameters stay as they were.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.lab.study import Study
from neoteny.studies.injection import atari, learning
from neoteny.studies.injection.claims import CLAIMS
from neoteny.studies.injection.figures import ADAMS, FIGURES
from neoteny.studies.injection.gains import (
    gain_at,
    game_gains,
    game_returns,
    last_fork,
    mean_over_seeds,
    relabel_rows,
    why_unfit,
)
from neoteny.studies.injection.games import games
from neoteny.studies.injection.growth import growth
from neoteny.studies.injection.illustration import illustration
from neoteny.studies.injection.mdp import mdp
from neoteny.studies.injection.relabel import relabel, settings

PRESETS = {
    "smoke": "seconds, to see that everything works; its numbers mean nothing",
    "quick": (
        "reduced: 5,000 MNIST digits, width 128, 18 tasks, 10 seeds; a classification MDP of 30,000 updates; four "
        "games of MinAtar for 240,000 frames, 5 seeds; planned for an hour and a quarter on two CPU cores"
    ),
    "paper": (
        "5,000 MNIST digits, width 512, 30 tasks of 1,500 steps, 10 seeds; MinAtar for the published 5 million frames: "
        "for a GPU"
    ),
}


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """The gains at the first and the last fork in words, and where the dead units were."""
    told = []
    for setting, name in ADAMS.items():
        rows = relabel_rows(frame, setting)
        if why_unfit(rows, ("control", "inject"), name) is not None:
            continue
        last = last_fork(rows)
        gains = gain_at(rows, "inject", last)
        early, late = mean_over_seeds(gain_at(rows, "inject", 1)), mean_over_seeds(gains)
        told.append(
            f"{name[0].upper()}{name[1:]}: injection gains {early.value:+.1f} points on the next task after task 1 and "
            f"{late.value:+.1f} after task {last} (95 % [{late.low:.1f}, {late.high:.1f}], {late.n} seeds; median "
            f"{np.median(gains):+.1f})."
        )
        dead = rows.filter((pl.col("metric") == "dead_units") & (pl.col("branch") == "") & (pl.col("task") == last - 1))
        shares = {
            place: 100 * float(np.mean(dead.filter(pl.col("place") == place)["value"].to_numpy()))
            for place in ("hidden1", "hidden2")
        }
        told.append(
            f"At that fork {shares['hidden1']:.0f} % of the encoder's units were dead and {shares['hidden2']:.0f} % of "
            "the head's."
        )
    told += _told_of_games(frame)
    told += learning.told_of_learning(frame)
    told += atari.told_of_atari(frame)
    return tuple(told)


def _told_of_games(frame: pl.DataFrame) -> list[str]:
    """What the agents reached in every game, beside what random actions give."""
    returns = game_returns(frame)
    if returns.is_empty():
        return []
    own = returns.filter((pl.col("experiment") == "games") & (pl.col("branch") == ""))
    told = []
    for (game,), rows in sorted(own.partition_by("game", as_dict=True).items()):
        first = rows.filter(pl.col("step") == 1)["value"].to_numpy()
        last = rows.filter(pl.col("frame") == pl.col("frames"))["value"].to_numpy()
        if len(first) and len(last):
            reached = mean_over_seeds(last)
            told.append(
                f"{str(game).replace('_', ' ').capitalize()}: mean return {reached.value:.1f} at the end "
                f"(95 % [{reached.low:.1f}, {reached.high:.1f}], {reached.n} seeds), random actions {first.mean():.1f}."
            )
    gains = game_gains(frame)
    if not gains.is_empty():
        forks = gains.group_by("game", "fork").agg(pl.col("value"), pl.len()).filter(pl.col("len") > 1)
        intervals = [mean_over_seeds(np.asarray(values)) for values in forks["value"].to_list()]
        told.append(
            f"Injection gained, with an interval above 0, at {sum(each.low > 0 for each in intervals)} of "
            f"{len(intervals)} forks of the games, and lost at {sum(each.high < 0 for each in intervals)}."
        )
    return told


STUDY = Study(
    name="injection",
    title="Plasticity injection",
    paper=(
        "Nikishin, Oh, Ostrovski, Lyle, Pascanu, Dabney, Barreto: Deep reinforcement learning with plasticity "
        "injection, NeurIPS 2023"
    ),
    paper_url="https://arxiv.org/abs/2305.15555",
    question=(
        "When a network stops improving, is lost plasticity the limit? Inject fresh parameters into a copy, change "
        "nothing else, and compare."
    ),
    experiments=(relabel, settings, growth, mdp, games, illustration, learning.learning, atari.atari),
    claims=CLAIMS,
    figures=(*FIGURES, *learning.FIGURES, *atari.FIGURES),
    presets={**PRESETS, **learning.PRESETS, **atari.PRESETS},
    notes=(
        "The paper's experiments are on Atari; the claims are about labels that change, where loss of plasticity is "
        "known to happen, a classification MDP and MinAtar. No claim is about the experiments `learning` and `atari`.",
        "Copies share every draw with the untreated one. A copy that diverged counts with the worst value of any.",
        "Of several claims the paper's own numbers were not seen, only their direction: docs/studies/injection.md.",
    ),
    summary=summary,
    tables=learning.TABLES,
)
