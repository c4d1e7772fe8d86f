"""The paper's claims, as functions of the records."""

from __future__ import annotations

import numpy as np
import polars as pl

from neoteny.analysis import (
    Above,
    Below,
    Interval,
    NonInferior,
    Verdict,
    all_of,
    association,
    mean_estimate,
    paired_difference,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.studies.plasticity.labels import DEFAULT, TUNED
from neoteny.studies.plasticity.runs import (
    FACTORIAL,
    SETTINGS,
    accuracy_by_task,
    by_task,
    change,
    last_third,
    together,
    why_unfit,
)


def _default_collapses(frame: pl.DataFrame) -> Verdict:
    unfit = why_unfit(frame, DEFAULT)
    if unfit is not None:
        return unfit
    (default,) = together(accuracy_by_task(frame, DEFAULT))
    return verdict(mean_estimate(change(default)), Below(-10.0))


def _tuned_does_not(frame: pl.DataFrame) -> Verdict:
    unfit = why_unfit(frame, DEFAULT, TUNED)
    if unfit is not None:
        return unfit
    default, tuned = together(accuracy_by_task(frame, DEFAULT), accuracy_by_task(frame, TUNED))
    return all_of(
        [
            _named("tuned Adam's change is above -5 points", verdict(mean_estimate(change(tuned)), NonInferior(5.0))),
            _named("tuned less default", verdict(paired_difference(change(tuned), change(default)), Above(0.0))),
        ]
    )


def _dead_units(frame: pl.DataFrame) -> Verdict:
    unfit = why_unfit(frame, DEFAULT, TUNED)
    if unfit is not None:
        return unfit
    default, tuned, accuracy = together(
        by_task(frame, DEFAULT, "dead_units", "all"),
        by_task(frame, TUNED, "dead_units", "all"),
        accuracy_by_task(frame, DEFAULT),
    )
    # Probes of a diverged run are not recorded: it is missing here, and n says how many seeds are left.
    more = verdict(paired_difference(default[:, -1], tuned[:, -1]), Above(0.2))
    seeds = np.repeat(np.arange(len(default)), default.shape[1])
    kept = ~np.isnan(default.ravel())
    rho = association(
        default.ravel()[kept], accuracy.ravel()[kept], clusters=seeds[kept], rng=np.random.default_rng(0)
    )
    return all_of(
        [
            _named("dead share at the end, default less tuned", more),
            _named("Spearman of dead share and accuracy over default Adam's tasks", verdict(rho, Below(0.0))),
        ]
    )


def _which_change(frame: pl.DataFrame) -> Verdict:
    unfit = why_unfit(frame, *SETTINGS)
    if unfit is not None:
        return unfit
    none, b2, root, both = (
        last_third(v) for v in together(*(accuracy_by_task(frame, setting) for setting in FACTORIAL))
    )
    b2_effect = verdict(mean_estimate((b2 + both - none - root) / 2), Above(0.0))
    root_effect = verdict(mean_estimate((root + both - none - b2) / 2), Above(0.0))
    effects = [_named("main effect of b2 = 0.9", b2_effect), _named("main effect of eps_root = 1e-3", root_effect)]
    interaction = _effect("interaction (reported, not claimed)", mean_estimate(both - b2 - root + none))
    decided = all_of(effects)
    parts = (*effects, interaction)
    return Verdict(decided.outcome, decided.measured, decided.interval, decided.n, decided.reason, parts)


def _named(name: str, found: Verdict) -> Verdict:
    return Verdict(found.outcome, found.measured, found.interval, found.n, found.reason, found.parts, name)


def _effect(name: str, estimate: Interval) -> Verdict:
    """An effect size that no claim is about, with the verdict on its being above zero."""
    return _named(name, verdict(estimate, Above(0.0)))


CLAIMS = (
    Claim(
        "UPL-1",
        "Default Adam collapses under label resets: "
        "accuracy of the last third of tasks less the first third is below -10 points",
        "figure 1: falls to chance after some resets",
        _default_collapses,
    ),
    Claim(
        "UPL-2",
        "Tuned Adam does not: its change is above -5 points, and above default Adam's",
        "figure 1: stays stable",
        _tuned_does_not,
    ),
    Claim(
        "UPL-3",
        "Collapse goes with dead ReLUs: "
        "a dead share at least 0.2 above tuned Adam's, and falling accuracy where it rises",
        "figure 1: default Adam kills most ReLUs",
        _dead_units,
    ),
    Claim(
        "UPL-4",
        "Both changes matter: main effects on the last third's accuracy (points) of b2 = 0.9 and of eps_root = 1e-3 "
        "are above 0",
        "not in the paper, which changes both at once",
        _which_change,
    ),
)
