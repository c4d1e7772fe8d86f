"""Does the rank of its features tell how good an offline agent is?

Gulcehre, Srinivasan, Sygnowski, Ostrovski, Farajtabar, Hoffman, Pascanu and Doucet: An empirical study of implicit
regularization in deep offline RL, TMLR 2022 (arXiv:2207.02099). Earlier work tied poor offline value learning to a
collapse of the rank of the penultimate features, blamed on bootstrapping. The link shows in restricted settings and
fades in wide sweeps; learning rate, activation and dead units confound it.
"""

from __future__ import annotations

import polars as pl

from neoteny.lab.study import Study
from neoteny.studies.rank.claims import CLAIMS
from neoteny.studies.rank.experiments import interventions, sweep
from neoteny.studies.rank.figures import FIGURES
from neoteny.studies.rank.lanes import final_lanes, set_name

PRESETS = {
    "smoke": "Catch, 100 recorded episodes, 300 updates, one seed: a minute, to see that all works; its numbers mean "
    "nothing",
    "quick": "Catch at two levels of noise and CartPole, 405 lanes each of 20,000 updates, 5 seeds; some settings one "
    "at a time: planned for about an hour on two CPU cores",
    "paper": "three environments at six levels of noise, 405 lanes each of 100,000 updates: for a GPU",
}


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each data set."""
    lanes = final_lanes(frame)
    if lanes.is_empty():
        return ()
    told = []
    for name, part in lanes.sort("level", "noise").partition_by("set", as_dict=True, maintain_order=True).items():
        finite = part.filter(~pl.col("diverged"))
        told.append(
            f"{set_name(name[0])}: {len(part)} lanes, {len(part) - len(finite)} of them diverged; effective rank from "
            f"{finite['rank'].min():g} to {finite['rank'].max():g} of {part['most'].max():g}, normalised return from "
            f"{part['score'].min():.2f} to {part['score'].max():.2f}."
            if len(finite)
            else f"{set_name(name[0])}: all {len(part)} lanes diverged."
        )
    return tuple(told)


STUDY = Study(
    name="rank",
    title="Effective rank in offline RL",
    paper=(
        "Gulcehre, Srinivasan, Sygnowski, Ostrovski, Farajtabar, Hoffman, Pascanu, Doucet: An empirical study of "
        "implicit regularization in deep offline RL, TMLR 2022"
    ),
    paper_url="https://arxiv.org/abs/2207.02099",
    question=(
        "Does the rank of the features tell how good an offline agent is, or do learning rate, activation and dead "
        "units tell both?"
    ),
    experiments=(sweep, interventions),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "The data are recorded by this library's own agents, not the paper's: values differ from the paper by design. "
        "The thresholds of the verdicts are this study's, set before anything was run.",
        "A diverged lane (numbers that are not finite, or values beyond a million) is kept: its return is that of its "
        "last finite policy, and where lanes are ordered by rank its own counts as 0, below all others. Claims say how "
        "many there were.",
        "Lanes of one seed share draws and all lanes share the data: intervals resample whole seeds.",
    ),
    summary=summary,
)
