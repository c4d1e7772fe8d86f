"""The paper's claims, TUN-1 to TUN-12, as functions of the records."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from neoteny.analysis import (
    Above,
    AtMost,
    Below,
    Equivalent,
    Interval,
    NonInferior,
    Verdict,
    all_of,
    inconclusive,
    mean_estimate,
    named,
    not_run,
    paired_difference,
    spearman,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.analysis.verdicts import Outcome
from neoteny.probes import ood_correlation, ood_retained
from neoteny.studies.tunnel.runs import (
    AFTER_TASK_1,
    AT_THE_END,
    STRUCTURE,
    UNFIT,
    Run,
    Runs,
    chosen_runs,
    deepest,
    looked_at,
    swap_family,
    swapped,
    swaps,
    whole_networks,
)
from neoteny.studies.tunnel.settings import CONVERGED, RHO, RHOS, TOLERANCES


def _estimate(values: np.ndarray) -> Interval:
    """Mean over seeds; bootstrapped from six seeds on, Student's t below."""
    return mean_estimate(values, rng=np.random.default_rng(0))


def _part(name: str, values: np.ndarray, expectation) -> Verdict:
    return named(name, verdict(_estimate(values), expectation))


def _reported(name: str, values: np.ndarray, expectation) -> Verdict:
    return _part(f"{name} (reported, not claimed)", values, expectation)


def _told(runs: Runs, claimed: Sequence[Verdict], reported: Sequence[Verdict] = ()) -> Verdict:
    """The verdict of a claim: withheld where the setting cannot test it, with the counter-checks beside it."""
    decided = claimed[0] if len(claimed) == 1 else all_of(list(claimed))
    parts = (*(claimed if len(claimed) > 1 else ()), *reported)
    outcome, reason = decided.outcome, decided.reason
    if runs.excluded:
        reason += f"; {runs.excluded} runs are left out, diverged or with a training accuracy below {CONVERGED}"
    if runs.aside:
        reason += f"; {runs.aside}"
    unable = _unable(runs)
    if unable and outcome is not Outcome.NOT_RUN:
        outcome, reason = Outcome.INCONCLUSIVE, f"setting: {unable}; else: {reason}"
    return Verdict(outcome, decided.measured, decided.interval, decided.n, reason, parts)


def _unable(runs: Runs) -> str:
    """Why runs that were fitted cannot test for a tunnel all the same; empty if they can."""
    if runs.data in UNFIT:
        return f"{runs.data} cannot test for a tunnel"
    trivial = sum(run.trivial for run in runs.fitted)
    if trivial:
        return f"in {trivial} of {len(runs.fitted)} runs the first layer already separates the classes (K = 1)"
    return ""


def _unfit(runs: Runs, what: str) -> Verdict | None:
    """Why these runs cannot decide a claim; None if they can."""
    if runs.varied:
        return not_run(f"the runs differ in {', '.join(runs.varied)}; a claim is about one value of each")
    if not runs.fitted and runs.excluded:
        return inconclusive(f"setting: none of {runs.excluded} runs of {what} reached training accuracy {CONVERGED}")
    if not runs.fitted and runs.aside:
        return inconclusive(f"setting: {runs.aside}")
    if not runs.fitted:
        return not_run(f"needs finished runs of {what}")
    return None


def _without_start(runs: Runs) -> str:
    """Why nothing can be said about the inside of a tunnel: runs in which no layer reaches the threshold."""
    lacking = sum(not run.start().found for run in runs.fitted)
    return (
        f"in {lacking} of {len(runs.fitted)} runs no layer reaches {RHO} of the accuracy: no tunnel" if lacking else ""
    )


def _of_each_network(judge: Callable[[Runs], Verdict]) -> Callable[[pl.DataFrame], Verdict]:
    """A claim about the inside of tunnels, of the deepest MLP of `depth` and of each network of `families`.

    It holds if it holds of all that can test it; a setting in which K = 1, or in which there is no tunnel, cannot.
    """

    def of(name: str, runs: Runs) -> Verdict:
        unfit, without = _unfit(runs, name), _without_start(runs)
        if unfit is not None:
            return unfit
        return inconclusive(f"setting: {without}") if without else judge(runs)

    def claim(frame: pl.DataFrame) -> Verdict:
        each = looked_at(frame)
        if not each:
            return not_run("needs finished runs of depth or of families")
        found = {name: named(name, of(name, runs)) for name, runs in each.items()}
        if len(found) == 1:
            return named("", next(iter(found.values())))
        left = [name for name, runs in each.items() if not runs.fitted or _unable(runs) or _without_start(runs)]
        able = [one for name, one in found.items() if name not in left]
        if not able:
            reasons = "; ".join(f"{name}: {one.reason}" for name, one in found.items())
            return Verdict(Outcome.INCONCLUSIVE, None, None, 0, reasons, tuple(found.values()))
        decided = able[0] if len(able) == 1 else all_of(able)
        reason = decided.reason + (f"; not judged by {', '.join(left)}: see its part" if left else "")
        return Verdict(decided.outcome, None, None, decided.n, reason, tuple(found.values()))

    return claim


def _tunnel_exists(frame: pl.DataFrame) -> Verdict:
    runs = deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit
    percent = runs.measured(Run.percent)
    claimed = [
        _part("tunnel length (% of layers)", percent, Above(25.0)),
        _part("share of runs with a tunnel start", runs.measured(lambda run: run.start().found), Equivalent(1.0, 1.0)),
    ]
    untrained = runs.measured(lambda run: 100 * (_last(run, "linear_probe") - _last(run, "linear_probe", "untrained")))
    others = {
        name: other
        for name, other in looked_at(frame).items()
        if other.fitted and other.fitted[0].field("network") != "mlp"
    }
    return _told(
        runs,
        claimed,
        [
            *_lengths("tunnel length", runs),
            _reported("last layer's probe, trained less untrained (points)", untrained, Above(0.0)),
            *(
                part
                for name, other in others.items()
                for part in (
                    _reported(f"tunnel length of {name}", other.measured(Run.percent), Above(25.0)),
                    *_lengths(f"tunnel length of {name}", other),
                )
            ),
        ],
    )


def _lengths(name: str, runs: Runs) -> list[Verdict]:
    """The length of the tunnel at other thresholds and by other probes, of those that were measured."""
    thresholds = {f"rho {rho:g}": functools.partial(Run.percent, rho=rho) for rho in RHOS if rho != RHO}
    probes = {text: functools.partial(Run.percent, branch=branch) for branch, text in CONTROLS.items()}
    beside = {text: runs.measured(measure) for text, measure in (thresholds | probes).items()}
    return [_reported(f"{name}, {text}", v, Above(25.0)) for text, v in beside.items() if not np.isnan(v).all()]


CONTROLS = {
    "raw": "probes on features that are not standardised",
    "gap": "probes on features averaged over positions",
    "n 1000": "probes of 1,000 training images",
    "n 5000": "probes of 5,000 training images",
}
"""Branch of `depth` and `families` -> what is otherwise than in the claim."""

STRICT = 0.98
"""The threshold at which counter-checks cut the network (section 8 of the specification)."""


def _last(run: Run, metric: str, branch: str = "") -> float:
    found = run.curve(metric, branch=branch)
    return float(found[-1]) if len(found) else math.nan


def _slopes(runs: Runs, x: Callable[[Run], float], y: Callable[[Run], float]) -> np.ndarray:
    """One least-squares slope a seed, of those seeds that have every value of x (two at least)."""
    values = {x(run) for run in runs.fitted}
    slopes = []
    for seed in sorted({run.seed for run in runs.fitted}):
        points = sorted((x(run), y(run)) for run in runs.fitted if run.seed == seed)
        if len(points) == len(values) > 1:
            xs, ys = np.array(points, float).T
            slopes.append(np.polyfit(xs, ys, 1)[0])
    return np.array(slopes)


def _extractor_length(frame: pl.DataFrame) -> Verdict:
    runs = chosen_runs(frame, pl.col("experiment") == "depth")
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit

    def slopes(rho: float) -> np.ndarray:
        return _slopes(runs, lambda run: run.field("depth"), lambda run: run.start(rho).layer)

    if not len(slopes(RHO)):
        return not_run("needs fitted runs of depth at several depths with the same seeds")
    inside = Equivalent(-0.25, 0.25)
    return _told(
        runs,
        [_part("slope of K on depth (layers per layer)", slopes(RHO), inside)],
        [_reported(f"slope at rho {rho:g}", slopes(rho), inside) for rho in RHOS if rho != RHO],
    )


def _rank_collapses(runs: Runs) -> Verdict:

    def share(metric: str, branch: str = "") -> np.ndarray:
        return runs.measured(lambda run: _last(run, metric, branch) / run.classes)

    def fallen(rho: float) -> np.ndarray:
        return runs.measured(
            lambda run: run.curve("numerical_rank")[run.cut_at(rho) - 1] - _last(run, "numerical_rank")
        )

    return _told(
        runs,
        [
            _part("rank of the last layer / classes", share("numerical_rank"), AtMost(3.0)),
            _part("rank of layer K less rank of the last", fallen(RHO), Above(0.0)),
        ],
        [
            *(
                _reported(f"rank / classes with rank threshold {t:g}", share(f"numerical_rank_{t:g}"), AtMost(3.0))
                for t in TOLERANCES[1:]
            ),
            _reported("rank / classes of the untrained network", share("numerical_rank", "untrained"), AtMost(3.0)),
            _reported(f"rank of layer K at rho {STRICT:g} less rank of the last", fallen(STRICT), Above(0.0)),
        ],
    )


def _rank_by_step(run: pl.DataFrame, metric: str = "numerical_rank") -> dict[int, float]:
    """Update -> rank of the last layer."""
    rows = run.filter((pl.col("metric") == metric) & (pl.col("branch") == ""))
    last = rows.group_by("step", maintain_order=True).agg(pl.col("value").last())
    return dict(zip(last["step"].to_list(), last["value"].to_list(), strict=True))


def _half_way(ranks: Mapping[int, float]) -> float:
    """The first measured update at which the rank is half-way down from its start to its last value."""
    steps = sorted(ranks)
    level = (ranks[steps[0]] + ranks[steps[-1]]) / 2
    reached = [step for step in steps if ranks[step] <= level]
    return float(reached[0]) if reached and ranks[steps[-1]] < ranks[steps[0]] else math.nan


def _collapse_is_early(frame: pl.DataFrame) -> Verdict:
    rows = frame.filter((pl.col("experiment") == "dynamics") & (pl.col("network") == "mlp"))
    varied = [name for name in (*STRUCTURE, "depth", "samples") if len(rows) and rows[name].n_unique() > 1]
    if varied:
        return not_run(f"the runs differ in {', '.join(varied)}; a claim is about one value of each")
    ranks = _ranks_by_step(rows)
    if not ranks:
        return not_run("needs runs of dynamics of 75 updates or more")
    half = np.array([_half_way(each) for each in ranks])
    runs = Runs((), 0, rows["data"][0])
    others = frame.filter((pl.col("experiment") == "dynamics") & (pl.col("network") != "mlp"))
    name = "rank of the last layer after 75 updates / before the first"
    return _told(
        runs,
        [_part(name, _rank_ratio(ranks, 75), Below(0.5))],
        [
            _reported(
                f"the same after {max(max(each) for each in ranks):,} updates", _rank_ratio(ranks, None), Below(0.5)
            ),
            _reported("first measured update half-way down", half, Below(76)),
            *(
                _reported(f"the same with rank threshold {t:g}", _rank_ratio(found, 75), Below(0.5))
                for t in TOLERANCES[1:]
                if (found := _ranks_by_step(rows, f"numerical_rank_{t:g}"))
            ),
            *(
                _reported(f"{name}, of {network}", _rank_ratio(_ranks_by_step(part), 75), Below(0.5))
                for (network,), part in others.partition_by("network", as_dict=True, maintain_order=True).items()
            ),
        ],
    )


def _ranks_by_step(rows: pl.DataFrame, metric: str = "numerical_rank") -> list[dict[int, float]]:
    """One a run, of those measured before the first update and after 75."""
    parts = rows.partition_by("run", maintain_order=True) if len(rows) else []
    return [each for each in (_rank_by_step(run, metric) for run in parts) if 0 in each and 75 in each]


def _rank_ratio(ranks: Sequence[Mapping[int, float]], step: int | None) -> np.ndarray:
    """Rank after `step` updates (None: after all) over that before the first; NaN where that was 0."""
    return np.array(
        [each[max(each) if step is None else step] / each[0] if each[0] else math.nan for each in ranks], float
    )


def _transfer_drops(runs: Runs) -> Verdict:
    if not len(runs.fitted[0].curve("linear_probe", task=1)):
        return not_run("needs a data set to probe out of distribution: --ood")

    def drop(run: Run, rho: float = RHO) -> float:
        ood = run.curve("linear_probe", task=1)
        return 100 * (ood[run.cut_at(rho) - 1] - ood[-1])

    def together(run: Run) -> float:
        return _rank_correlation(run.curve("numerical_rank")[run.cut :], run.curve("linear_probe", task=1)[run.cut :])

    def retained(run: Run) -> float:
        return float(ood_retained(run.curve("linear_probe", task=1)))

    def correlated(run: Run) -> float:
        return float(ood_correlation(run.curve("linear_probe"), run.curve("linear_probe", task=1)))

    def beyond_peak(run: Run) -> float:
        return float(np.argmax(run.curve("linear_probe", task=1))) + 1 - run.cut

    return _told(
        runs,
        [
            _part("accuracy out of distribution, layer K less last (points)", runs.measured(drop), Above(0.0)),
            _part(
                "Spearman of rank and accuracy out of distribution in the tunnel", runs.measured(together), Above(0.0)
            ),
        ],
        [
            _reported("accuracy out of distribution kept at the last layer (%)", runs.measured(retained), Below(100.0)),
            _reported(
                "Pearson correlation over layers, in and out of distribution", runs.measured(correlated), Above(0.0)
            ),
            _reported("layer of the peak less K", runs.measured(beyond_peak), Equivalent(-1.0, 1.0)),
            _reported(
                f"layer K at rho {STRICT:g} less last (points)",
                runs.measured(lambda run: drop(run, STRICT)),
                Above(0.0),
            ),
        ],
    )


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; NaN below three points."""
    return spearman(x, y) if len(x) >= 3 else math.nan


def _more_classes(frame: pl.DataFrame) -> Verdict:
    rows = frame.filter(pl.col("experiment") == "classes")
    if rows.is_empty():
        return not_run("needs finished runs of classes")
    counts = rows.group_by("samples").agg(pl.col("classes").n_unique()).sort("classes", "samples")
    runs = chosen_runs(rows, pl.col("samples") == counts["samples"][-1])
    unfit = _unfit(runs, "classes")
    if unfit is not None:
        return unfit

    def slopes(rho: float) -> np.ndarray:
        return _slopes(runs, lambda run: math.log2(run.classes), lambda run: run.percent(rho))

    each = rows.filter(pl.col("classes") > 0).with_columns(each=pl.col("samples") // pl.col("classes"))
    per_class = np.array([])
    if len(each):
        alike = each.group_by("each").agg(pl.col("classes").n_unique()).sort("classes", "each")["each"][-1]
        per_class = _slopes(chosen_runs(each, pl.col("each") == alike), lambda run: math.log2(run.classes), Run.percent)
    if not len(slopes(RHO)):
        return not_run("needs fitted runs of classes with several numbers of classes and the same seeds")
    return _told(
        runs,
        [_part("slope of tunnel length (%) on log2(classes), equal samples", slopes(RHO), Below(0.0))],
        [
            *(_reported(f"slope at rho {rho:g}", slopes(rho), Below(0.0)) for rho in RHOS if rho != RHO),
            *([_reported("slope at equal samples of each class", per_class, Below(0.0))] if len(per_class) else []),
        ],
    )


def _more_samples(frame: pl.DataFrame) -> Verdict:
    few = frame.filter(pl.col("experiment") == "samples")
    if few.is_empty():
        return not_run("needs finished runs of samples")
    same = pl.col("depth").is_in(few["depth"].unique().to_list()) & (pl.col("network") == few["network"][0])
    rows = frame.filter(pl.col("experiment").is_in(["samples", "depth", "families"]) & same)
    least = int(few["samples"].min())  # pyright: ignore[reportArgumentType]
    runs = chosen_runs(rows, pl.col("samples").is_in([least, 4 * least]), free=("ood",))
    unfit = _unfit(runs, "samples")
    if unfit is not None:
        return unfit

    def difference(rho: float) -> Interval:
        one, four = (
            {run.seed: run.percent(rho) for run in runs.fitted if run.field("samples") == count}
            for count in (least, 4 * least)
        )
        seeds = sorted(set(one) & set(four))
        pairs = [four[seed] for seed in seeds], [one[seed] for seed in seeds]
        return paired_difference(*pairs, rng=np.random.default_rng(0))

    if not difference(RHO).n:
        return not_run("needs fitted runs at one and at four times the images with the same seeds")
    inside = Equivalent(-10.0, 10.0)
    return _told(
        runs,
        [named("tunnel length (%), four times the images less once", verdict(difference(RHO), inside))],
        [
            named(f"at rho {rho:g} (reported, not claimed)", verdict(difference(rho), inside))
            for rho in RHOS
            if rho != RHO
        ],
    )


def _resets_hurt(runs: Runs) -> Verdict:

    def ratio(run: Run, rho: float = RHO) -> float:
        change = run.curve("weight_change_relative")[: run.layers]
        tunnel, extractor = change[run.cut_at(rho) :], change[: run.cut_at(rho)]
        return float(tunnel.mean() / extractor.mean()) if len(tunnel) else math.nan

    def drop(run: Run, which: str, rho: float = RHO) -> float:
        count = run.layers - run.cut_at(rho)
        return 100 * (run.accuracy() - run.value("reset_accuracy", f"{which}:{count}")) if count else math.nan

    return _told(
        runs,
        [
            _part("relative weight change, tunnel / extractor", runs.measured(ratio), Below(1.0)),
            _part(
                "accuracy lost when the tunnel is reset (points)", runs.measured(lambda r: drop(r, "last")), Above(10.0)
            ),
        ],
        [
            _reported(
                "lost when as many first layers are reset (points)",
                runs.measured(lambda r: drop(r, "first")),
                Above(10.0),
            ),
            _reported(
                f"relative weight change at rho {STRICT:g}", runs.measured(lambda r: ratio(r, STRICT)), Below(1.0)
            ),
            _reported(
                f"lost when the tunnel at rho {STRICT:g} is reset (points)",
                runs.measured(lambda r: drop(r, "last", STRICT)),
                Above(10.0),
            ),
        ],
    )


def _difference(runs: Runs, one: str, other: str, task: int, rho: float = RHO) -> np.ndarray:
    return runs.measured(lambda run: swapped(run, one, task, rho) - swapped(run, other, task, rho))


def _interchangeable(frame: pl.DataFrame) -> Verdict:
    runs = swaps(frame)
    unfit = _unfit(runs, "swap that have a tunnel")
    if unfit is not None:
        return unfit
    inside = Equivalent(-5.0, 5.0)
    return _told(
        runs,
        [_part("accuracy on task 1, E1T1 less E1T2 (points)", _difference(runs, "E1T1", "E1T2", 0), inside)],
        [
            _reported("on task 2, E2T2 less E2T1", _difference(runs, "E2T2", "E2T1", 1), inside),
            _reported(f"E1T1 less E1T2 at rho {STRICT:g}", _difference(runs, "E1T1", "E1T2", 0, STRICT), inside),
        ],
    )


def _probe_recovers(frame: pl.DataFrame) -> Verdict:
    runs = swaps(frame)
    unfit = _unfit(runs, "swap that have a tunnel")
    if unfit is not None:
        return unfit
    return _told(
        runs,
        [
            _part(
                "accuracy on task 1, E2 (FT) less E2T1 (FT) (points)",
                _difference(runs, "E2 (FT)", "E2T1 (FT)", 0),
                Above(0.0),
            )
        ],
        [
            _reported("E2T1 (FT) less E2T1 as it is", _difference(runs, "E2T1 (FT)", "E2T1", 0), Above(0.0)),
            _reported(
                f"the claim's at rho {STRICT:g}", _difference(runs, "E2 (FT)", "E2T1 (FT)", 0, STRICT), Above(0.0)
            ),
        ],
    )


def _forgotten(run: Run) -> float:
    """Accuracy on task 1 after it less after task 2, in points."""
    return 100 * (run.accuracy(when=AFTER_TASK_1) - run.accuracy(when=AT_THE_END))


def _shorter_forgets_less(frame: pl.DataFrame) -> Verdict:
    runs = chosen_runs(swap_family(frame), free=("network",))
    whole = whole_networks(runs)
    unfit = _unfit(whole, "swap")
    if unfit is not None:
        return unfit
    forgetting, accuracy = [], []
    for full in whole.fitted:
        shorter = [
            run
            for run in runs.fitted
            if run.seed == full.seed and run.layers < full.layers and full.cut <= _shared_stages(run, full)
        ]
        if shorter:
            short = min(shorter, key=lambda run: run.layers)
            forgetting.append(_forgotten(short) - _forgotten(full))
            accuracy.append(100 * (short.accuracy(when=AFTER_TASK_1) - full.accuracy(when=AFTER_TASK_1)))
    if not forgetting:
        return not_run("needs fitted shorter networks, with the first K layers, and full ones of the same seeds")
    return _told(
        replace(whole, excluded=runs.excluded),
        [
            _part("forgetting of task 1, shortest with K layers less full (points)", np.array(forgetting), Below(0.0)),
            _part("accuracy on task 1, the same (points)", np.array(accuracy), NonInferior(2.0)),
        ],
    )


def _shared_stages(one: Run, other: Run) -> int:
    """How many first stages two networks have alike, by name."""
    alike = [a == b for a, b in zip(one.stages, other.stages, strict=False)]
    return alike.index(False) if False in alike else len(alike)


def _variances(runs: Runs) -> Verdict:

    def trend(metric: str, rho: float = RHO) -> np.ndarray:
        def of(run: Run) -> float:
            values = run.curve(metric)[run.cut_at(rho) :]
            return _rank_correlation(np.arange(len(values), dtype=float), values)

        return runs.measured(of)

    return _told(
        runs,
        [
            _part("Spearman of depth and variance within classes, in the tunnel", trend("class_within"), Below(0.0)),
            _part("Spearman of depth and variance between classes", trend("class_between"), Above(0.0)),
        ],
        [
            _reported("Spearman of depth and within / between", trend("class_ratio"), Below(0.0)),
            _reported(f"of depth and within classes at rho {STRICT:g}", trend("class_within", STRICT), Below(0.0)),
            _reported(f"of depth and between classes at rho {STRICT:g}", trend("class_between", STRICT), Above(0.0)),
        ],
    )


CLAIMS = (
    Claim(
        "TUN-1",
        "A tunnel exists in deep MLPs: it takes more than 25 % of the layers of the deepest",
        "layers after about the fifth of an MLP-12 (second-hand). Against it: no tunnel in VGGm-11 without early "
        "max-pools "
        "(Harun et al. 2024)",
        _tunnel_exists,
    ),
    Claim(
        "TUN-2",
        "The extractor's length does not depend on depth: the slope of K on depth is within 0.25 layers per layer",
        "all layers added to an MLP join the tunnel (second-hand)",
        _extractor_length,
    ),
    Claim(
        "TUN-3",
        "The rank collapses in the tunnel to about the number of classes: at most 3 times, and below the rank of "
        "layer K",
        "to about 10 for MLP and VGG (second-hand). Against it: ResNet-34 keeps a higher rank",
        _of_each_network(_rank_collapses),
    ),
    Claim(
        "TUN-4",
        "The collapse comes early: after 75 updates the last layer's rank is less than half of what it was",
        "early in training, and it stays; the number 75 is second-hand",
        _collapse_is_early,
    ),
    Claim(
        "TUN-5",
        "Accuracy out of distribution falls inside the tunnel, and follows the rank there",
        "highest just before the tunnel. Harun et al. 2024 agree in direction; it depends on resolution and "
        "augmentation",
        _of_each_network(_transfer_drops),
    ),
    Claim(
        "TUN-6",
        "More classes shorten the tunnel, at equal samples",
        "shorter with more classes (second-hand); Harun et al. 2024 agree",
        _more_classes,
    ),
    Claim(
        "TUN-7",
        "More samples do not change the tunnel's length: four times as many move it by less than 10 points",
        "unchanged from CIFAR-10 to CINIC-10 (second-hand). Harun et al. 2024 vary other factors",
        _more_samples,
    ),
    Claim(
        "TUN-8",
        "The tunnel's weights move less than the extractor's, but resetting them costs more than 10 points",
        "tunnel layers change little; resetting them hurts clearly (second-hand)",
        _of_each_network(_resets_hurt),
    ),
    Claim(
        "TUN-9",
        "Tunnels are interchangeable between tasks of equally many classes: within 5 points on task 1",
        "swapping costs nothing (second-hand). Against it: 20 to 26 points lost (Harun et al. 2024, ResNet-18)",
        _interchangeable,
    ),
    Claim(
        "TUN-10",
        "The second extractor alone, with a new probe, recovers task 1 better than with the first tunnel and a new "
        "probe",
        "E2 (FT) above E2T1 (FT) (second-hand). Against it: below by 5 to 6 points (Harun et al. 2024)",
        _probe_recovers,
    ),
    Claim(
        "TUN-11",
        "Networks shortened to at least the first K layers forget less, at an accuracy on task 1 at most 2 points "
        "lower",
        "shallower networks keep accuracy and forget less (second-hand)",
        _shorter_forgets_less,
    ),
    Claim(
        "TUN-12",
        "Inside the tunnel the variance within classes falls and the variance between classes rises",
        "so in VGG-19 (second-hand)",
        _of_each_network(_variances),
    ),
)
