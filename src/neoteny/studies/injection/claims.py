"""The paper's claims, as functions of the records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from neoteny.analysis import (
    Above,
    Below,
    Equivalent,
    Interval,
    NonInferior,
    Verdict,
    all_of,
    association,
    holm_verdicts,
    named,
    not_run,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.analysis.verdicts import inconclusive
from neoteny.studies.injection.gains import (
    AXES,
    GAMES_STRUCTURE,
    GROWTH_STRUCTURE,
    ILLUSTRATION_STRUCTURE,
    MDP_STRUCTURE,
    PROXIES,
    along,
    at_fork,
    differing,
    extreme,
    gain_at,
    game_gains,
    growth_areas,
    last_fork,
    mean_over_seeds,
    paired_gains,
    performance_of,
    reached_threshold,
    regressions,
    relabel_rows,
    reward_rates,
    slowing,
    spectral_gains,
    why_unfit,
)
from neoteny.studies.injection.relabel import DEFAULT, TUNED

LEAST_UPDATES = 1_000
"""Updates of `mdp` below which a gain says nothing."""


def _predictions_stay(frame: pl.DataFrame) -> Verdict:
    injected = (pl.col("branch") == "inject") & (pl.col("metric") == "output_jump")
    jumps = frame.filter(injected)
    if jumps.is_empty():
        return not_run("needs runs of relabel, settings, mdp, games or atari")

    def judged(mine: pl.DataFrame) -> Verdict:
        return verdict(extreme(mine["value"], mine["seed"].n_unique()), Equivalent(0.0, 1e-5))

    by_experiment = jumps.partition_by("experiment", as_dict=True, maintain_order=True)
    parts = tuple(named(f"largest jump in {name}", judged(mine)) for (name,), mine in by_experiment.items())
    return replace(judged(jumps), parts=parts)


def _count_stays(frame: pl.DataFrame) -> Verdict:
    counted = (pl.col("metric") == "parameters") & (pl.col("place") == "trained")
    rows = frame.filter(pl.col("experiment").is_in(["relabel", "settings"]) & counted)
    keys = ["run", "task"]
    one, two = (rows.filter(pl.col("branch") == arm).select(*keys, "value") for arm in ("inject", "control"))
    paired = one.join(two, on=keys, how="inner", suffix="_control")
    if paired.is_empty():
        return not_run("needs runs of relabel or settings")
    more = paired["value"] - paired["value_control"]
    return verdict(extreme(more, rows["seed"].n_unique()), Equivalent(0.0, 0.0))


def _restores(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    unfit = why_unfit(rows, ("control", "inject"), "default Adam")
    if unfit is not None:
        return unfit
    found = verdict(mean_over_seeds(gain_at(rows, "inject", last_fork(rows))), Above(0.0))
    beside = {
        "the whole network injected, so that no encoder is in the way": gain_at(rows, "inject_whole", last_fork(rows)),
        "injected again half way": gain_at(rows, "inject_twice", last_fork(rows)),
        "with spectral normalisation of the encoder": spectral_gains(frame),
    }
    parts = tuple(
        named(f"{name} (reported, not claimed)", verdict(mean_over_seeds(gains), Above(0.0)))
        for name, gains in beside.items()
        if len(gains) > 1
    )
    return replace(found, parts=parts)


def _inactive(frame: pl.DataFrame) -> Verdict:
    default, tuned = relabel_rows(frame, DEFAULT), relabel_rows(frame, TUNED)
    unfit = why_unfit(tuned, ("control", "inject"), "tuned Adam") or why_unfit(
        default, ("control", "inject"), "default Adam"
    )
    if unfit is not None:
        return unfit
    margin = Equivalent(-2.0, 2.0)
    return all_of(
        [
            named(
                "tuned Adam, last fork", verdict(mean_over_seeds(gain_at(tuned, "inject", last_fork(tuned))), margin)
            ),
            named("default Adam, after task 1", verdict(mean_over_seeds(gain_at(default, "inject", 1)), margin)),
        ]
    )


def _no_drop(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    unfit = why_unfit(rows, ("inject", "reset"), "default Adam")
    if unfit is not None:
        return unfit
    first = paired_gains(performance_of(rows, following=False), "inject", "reset")
    # A seed is one unit: the mean over its forks.
    by_seed = first.group_by("seed").agg(pl.col("value").mean()).sort("seed")["value"].to_numpy()
    return verdict(mean_over_seeds(by_seed), Above(0.0))


def _final_performance(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    unfit = why_unfit(rows, ("inject", "reset", "shrink_perturb"), "default Adam")
    if unfit is not None:
        return unfit
    others = ("reset", "shrink_perturb")
    values = [gain_at(rows, "inject", last_fork(rows), other) for other in others]
    estimates = [lambda level, v=v: mean_over_seeds(v, level) for v in values]
    not_worse = [
        named(f"inject less {other.replace('_', ' ')}", found)
        for other, found in zip(others, holm_verdicts(estimates, NonInferior(1.0)), strict=True)
    ]
    better = [
        named(f"superior to {other.replace('_', ' ')} (reported, not claimed)", found)
        for other, found in zip(others, holm_verdicts(estimates, Above(0.0)), strict=True)
    ]
    return replace(all_of(not_worse), parts=(*not_worse, *better))


def _optimizer_reset(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    return why_unfit(rows, ("inject", "reset_all"), "default Adam") or verdict(
        mean_over_seeds(gain_at(rows, "inject", last_fork(rows), "reset_all")), Above(0.0)
    )


def _all_heads(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    return why_unfit(rows, ("inject", "train_all"), "default Adam") or verdict(
        mean_over_seeds(gain_at(rows, "inject", last_fork(rows), "train_all")), NonInferior(1.0)
    )


def _growth_area(areas: pl.DataFrame, arm: str, other: str) -> np.ndarray:
    """Mean over all tasks, each as dear as any, of one arm less the other: (seeds,)."""
    finished = areas.group_by("arm", "seed").agg(pl.col("value").mean(), pl.len(), pl.col("tasks").first())
    finished = finished.filter(pl.col("len") == pl.col("tasks"))
    one, two = (finished.filter(pl.col("arm") == name).select("seed", "value") for name in (arm, other))
    paired = one.join(two, on="seed", how="inner", suffix="_other").sort("seed")
    return (paired["value"] - paired["value_other"]).to_numpy()


def _growth_pays(frame: pl.DataFrame) -> Verdict:
    areas = growth_areas(frame) if "arm" in frame.columns else pl.DataFrame()
    if areas.is_empty():
        return not_run("needs runs of growth")
    mixed = differing(frame.filter(pl.col("experiment") == "growth"), GROWTH_STRUCTURE)
    if mixed:
        return not_run(f"the runs of growth differ in {', '.join(mixed)}; the claim is about one value of each")
    if areas["tasks"][0] < 3:
        return not_run("needs growth over at least three tasks")
    values = _growth_area(areas, "grow", "large")
    if len(values) < 2:
        return not_run("needs at least two finished runs of growth with the arms grow and large")
    found = verdict(mean_over_seeds(values), Above(0.0))
    whole = _growth_area(areas, "grow_whole", "large")
    if len(whole) < 2:
        return found
    reported = named("a whole network injected (reported, not claimed)", verdict(mean_over_seeds(whole), Above(0.0)))
    return replace(found, parts=(reported,))


def _proxies(rows: pl.DataFrame) -> pl.DataFrame:
    """Columns proxy, run, seed, fork, value: what was measured at every fork, before it."""
    parts = []
    for name, place in PROXIES.items():
        chosen = rows.filter((pl.col("metric") == name) & (pl.col("branch") == ""))
        if place is not None:
            chosen = chosen.filter(pl.col("place") == place)
        parts.append(chosen.select("run", "seed", "value", proxy=pl.lit(name), fork=pl.col("task") + 1))
    return pl.concat(parts)


def _proxies_do_not_tell(frame: pl.DataFrame) -> Verdict:
    rows = relabel_rows(frame, DEFAULT)
    unfit = why_unfit(rows, ("control", "inject"), "default Adam")
    if unfit is not None:
        return unfit
    gains = paired_gains(performance_of(rows), "inject").rename({"value": "gain"})
    proxies, parts = _proxies(rows), []
    missing = [name for name in PROXIES if name not in set(proxies["proxy"])]
    if missing:
        return not_run(f"needs records of {', '.join(missing)} at the forks")
    for (name,), measured in proxies.partition_by("proxy", as_dict=True, maintain_order=True).items():
        both = measured.join(gains, on=["run", "seed", "fork"], how="inner")
        rho = association(
            both["value"].to_numpy(), both["gain"].to_numpy(), clusters=both["seed"], rng=np.random.default_rng(0)
        )
        parts.append(named(f"|Spearman| of {name} and gain", verdict(_size(rho), Below(0.5))))
    return all_of(parts)


def _size(estimate: Interval) -> Interval:
    """The interval of an absolute value, from that of the value."""
    sizes = abs(estimate.low), abs(estimate.high)
    low = 0.0 if estimate.low <= 0 <= estimate.high else min(sizes)
    return Interval(abs(estimate.value), low, max(sizes), estimate.n, estimate.level)


def _gain_follows(frame: pl.DataFrame) -> Verdict:
    if "tasks" not in frame.columns or (frame["tasks"] < 3).any():
        return not_run("needs at least three tasks")
    expected = {"steps_per_task": Above(0.0), "learning_rate": Above(0.0), "width": Below(0.0)}
    parts = []
    for axis, expectation in expected.items():
        gains = along(frame, axis)
        if gains.is_empty() or gains["setting"].n_unique() < 3:
            parts.append(named(AXES[axis], not_run("needs runs of relabel and of settings on both sides of it")))
            continue
        # Only seeds that every setting has: a seed is resampled with all its settings.
        common = gains.group_by("seed").agg(pl.col("setting").n_unique() == gains["setting"].n_unique())
        gains = gains.join(common.filter(pl.col("setting")).select("seed"), on="seed", how="semi")
        rho = association(gains["setting"], gains["value"], clusters=gains["seed"], rng=np.random.default_rng(0))
        parts.append(named(f"Spearman of {AXES[axis]} and gain", verdict(rho, expectation)))
    return all_of(parts)


def _diagnosis_works(frame: pl.DataFrame) -> Verdict:
    rows = frame.filter(pl.col("experiment") == "mdp")
    mixed = differing(rows, MDP_STRUCTURE)
    if mixed:
        return not_run(f"the runs of mdp differ in {', '.join(mixed)}; the claim is about one value of each")
    if rows.is_empty() or rows["updates"][0] < LEAST_UPDATES:
        return not_run(f"needs runs of mdp of at least {LEAST_UPDATES} updates")
    gains = at_fork(paired_gains(reward_rates(frame), "inject"), 0)
    if len(gains) < 2:
        return not_run("needs at least two finished runs of mdp")
    found = verdict(mean_over_seeds(gains), Above(0.0))
    return replace(found, parts=_games_reported(frame))


def _games_reported(frame: pl.DataFrame) -> tuple[Verdict, ...]:
    """The gain in every game and at every fork: reported, and no part of the verdict."""
    gains = game_gains(frame)
    if gains.is_empty() or differing(frame.filter(pl.col("experiment") == "games"), GAMES_STRUCTURE):
        return ()
    parts = []
    for (game, fork), mine in sorted(gains.partition_by("game", "fork", as_dict=True).items()):
        if mine.height > 1:
            name = f"{str(game).replace('_', ' ')}, injected at {25 * fork} % (reported, not claimed)"
            parts.append(named(name, verdict(mean_over_seeds(mine.sort("seed")["value"].to_numpy()), Above(0.0))))
    return tuple(parts)


def _warm_starts_slow_down(frame: pl.DataFrame) -> Verdict:
    found = regressions(frame)
    if found.is_empty() or found["task"].n_unique() < 3 or found["seed"].n_unique() < 2:
        return not_run("needs at least two runs of illustration with at least three policies")
    mixed = differing(frame.filter(pl.col("experiment") == "illustration"), ILLUSTRATION_STRUCTURE)
    if mixed:
        return not_run(f"the runs of illustration differ in {', '.join(mixed)}; the claim is about one value of each")
    what = reached_threshold(found)
    if what is None:
        return inconclusive("no loss that is counted was reached by the networks begun anew in every task and run")
    return verdict(mean_over_seeds(slowing(found, what)), Above(0.0))


CLAIMS = (
    Claim(
        "INJ-1",
        "Injection does not change predictions: the largest output jump over all forks, of the target network too "
        "where there is one, is at most 1e-5",
        "section 3: by construction",
        _predictions_stay,
    ),
    Claim(
        "INJ-2",
        "The number of trained parameters is unchanged: after less before, at equal width, is 0",
        "section 3: by construction",
        _count_stays,
    ),
    Claim(
        "INJ-3",
        "Injection restores learning where it was lost: gain in training accuracy (points) at the last fork under "
        "default Adam is above 0",
        "figures on Atari: unlocks some games that had plateaued",
        _restores,
    ),
    Claim(
        "INJ-4",
        "Injection is inactive where plasticity is intact: gain within 2 points of 0 under tuned Adam at the last "
        "fork, and under default Adam after task 1",
        "a healthy agent (Robotank) is not affected",
        _inactive,
    ),
    Claim(
        "INJ-5",
        "Injection avoids the drop of a head reset: training accuracy in the first 2 % of steps after the fork, on the "
        "task that goes on, injection less reset, is above 0",
        "resets need the replay buffer to recover, injection does not",
        _no_drop,
    ),
    Claim(
        "INJ-6",
        "At the end injection is not worse than a head reset or shrink and perturb by 1 point or more (last fork, "
        "default Adam; Holm over both)",
        "aggregate over 57 games: about 20 % better than the other dynamic methods",
        _final_performance,
    ),
    Claim(
        "INJ-7",
        "Resetting the encoder's optimiser state too hurts: gain with fresh moments for the new head alone less gain "
        "with all reset is above 0",
        "an appendix figure, direction as reported",
        _optimizer_reset,
    ),
    Claim(
        "INJ-8",
        "Training all three heads is not better than training the new one alone by 1 point or more",
        "an ablation, direction as reported",
        _all_heads,
    ),
    Claim(
        "INJ-9",
        "Diagnosis works in reinforcement learning: gain in rewards of a hundred steps, classification MDP with random "
        "labels, Double DQN forked half way, is above 0; games of MinAtar are reported",
        "some Atari games are unlocked, others are not affected",
        _diagnosis_works,
    ),
    Claim(
        "INJ-10",
        "Growth is compute efficient: area under the curve of training accuracy over operations, of the network grown "
        "half way less that of the large one, is above 0",
        "the same aggregate as large from the start, about 20 A100 hours less",
        _growth_pays,
    ),
    Claim(
        "INJ-11",
        "Proxies at the fork do not predict the gain: |Spearman| is below 0.5 for each",
        "left open there",
        _proxies_do_not_tell,
    ),
    Claim(
        "INJ-12",
        "The gain grows with updates per task and learning rate and shrinks with width: Spearman above 0, above 0, "
        "below 0",
        "sensitivity study: grows with replay ratio and learning rate, shrinks with network size",
        _gain_follows,
    ),
    Claim(
        "INJ-13",
        "Value regression with a warm start gets slower along the sequence of stored policies: slope by task of "
        "log(updates to a fixed loss), warm start less begun anew, is above 0",
        "a figure on Up'n'Down: needs more and more updates",
        _warm_starts_slow_down,
    ),
)
