"""The paper's claims, RNK-1 to RNK-10, as functions of the records."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from neoteny.analysis import (
    Above,
    Coefficient,
    Interval,
    Outcome,
    Verdict,
    all_of,
    association,
    cluster_bootstrap,
    detect_phases,
    inconclusive,
    mean_estimate,
    named,
    not_run,
    partial_spearman,
    simpson,
    spearman,
    verdict,
    wilson_interval,
)
from neoteny.analysis.claims import Claim
from neoteny.studies.rank.lanes import column, final_lanes, ranks, series, set_name, varied
from neoteny.studies.rank.scripts import VARIANTS

DECADE = 10**0.5 * 1.01
"""Learning rates within a decade of the best: at most this factor above or below it."""

HIGH_RATE, TANH_RATE = 1e-2, 3.16e-3
"""From these learning rates on collapse is looked for (RNK-3), and tanh compared with ReLU (RNK-7)."""

LEAST_SHARE = 0.05
"""Lower bound a share must clear to count as more than an accident (RNK-3, RNK-4)."""

LEAST_AGREEMENT = 0.8
"""Share of the variants whose verdict must be that of the default (RNK-10)."""

RESAMPLES = 10_000

Judge = Callable[[pl.DataFrame], Verdict]


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _reported(name: str, found: Verdict) -> Verdict:
    return named(f"{name} (reported, not claimed)", found)


def _resampled(lanes: pl.DataFrame, statistic: Callable[[np.ndarray], float]) -> Interval:
    """Of a statistic of row numbers, whole seeds resampled; equal draws in another order are computed once."""
    known: dict[bytes, float] = {}

    def once(rows: np.ndarray) -> float:
        ordered = np.sort(rows)
        key = ordered.tobytes()
        if key not in known:
            known[key] = statistic(ordered)
        return known[key]

    return cluster_bootstrap(lanes["seed"].to_numpy(), once, rng=_rng(), resamples=RESAMPLES)


def _rho(lanes: pl.DataFrame, x: np.ndarray, y: np.ndarray, method: Coefficient = Coefficient.SPEARMAN) -> Interval:
    return association(x, y, method=method, clusters=lanes["seed"].to_numpy(), rng=_rng(), resamples=RESAMPLES)


def _per_seed(lanes: pl.DataFrame, measure: Callable[[pl.DataFrame], float], name: str, above: float) -> Verdict:
    """The same measured in every seed alone: mean, Student's t interval, and the range in words."""
    values = np.array([measure(part) for part in lanes.sort("seed").partition_by("seed", maintain_order=True)])
    found = verdict(mean_estimate(values), Above(above))
    told = ", ".join(f"{value:.3g}" for value in values)
    return _reported(f"{name}, seed by seed", replace(found, reason=f"{found.reason}; seeds: {told}"))


def _counted(found: Verdict, lanes: pl.DataFrame) -> Verdict:
    """With the number of diverged lanes in the reason."""
    lost = int(lanes["diverged"].sum())
    told = f"; {lost} of {len(lanes)} lanes diverged, their rank counts as 0" if lost else ""
    return replace(found, reason=found.reason + told)


def _of_each_set(judge: Judge) -> Callable[[pl.DataFrame], Verdict]:
    """A claim about the lanes of each data set; it holds if it holds of all."""

    def claim(frame: pl.DataFrame) -> Verdict:
        return _each_set(final_lanes(frame), judge)

    return claim


def _each_set(lanes: pl.DataFrame, judge: Judge) -> Verdict:
    if lanes.is_empty():
        return not_run("needs finished runs of sweep")
    found = {}
    for (name,), part in lanes.partition_by("set", as_dict=True, maintain_order=True).items():
        differing = varied(part)
        if differing:
            told = f"the runs differ in {', '.join(differing)}; a claim is about one value of each"
            found[set_name(str(name))] = not_run(told)
        else:
            found[set_name(str(name))] = judge(part)
    if len(found) == 1:
        return next(iter(found.values()))
    parts = [named(name, one) for name, one in found.items()]
    inner = [named(f"{name}: {each.name}", each) for name, one in found.items() for each in one.parts]
    return replace(all_of(parts), parts=(*(replace(part, parts=()) for part in parts), *inner))


def _with_parts(found: Verdict, lanes: pl.DataFrame, *reported: Verdict) -> Verdict:
    return replace(_counted(found, lanes), parts=(*found.parts, *reported))


# What is restricted -----------------------------------------------------------------------------------------------


def best_rate(lanes: pl.DataFrame) -> float:
    """The learning rate with the highest mean return; of equal ones the smallest."""
    means = lanes.group_by("learning_rate").agg(pl.col("return").mean()).sort("learning_rate")
    return float(means["learning_rate"][int(np.argmax(means["return"].to_numpy()))])


def restricted(lanes: pl.DataFrame) -> pl.DataFrame:
    """Q with ReLU, at learning rates within a decade around the best of them."""
    chosen = lanes.filter((pl.col("objective") == "q") & (pl.col("activation") == "relu"))
    if chosen.is_empty():
        return chosen
    best = best_rate(chosen)
    return chosen.filter((pl.col("learning_rate") <= best * DECADE) & (pl.col("learning_rate") >= best / DECADE))


def _restricted_rho(lanes: pl.DataFrame, rank: str = "rank") -> Verdict:
    part = restricted(lanes)
    if part.is_empty():
        return not_run("needs lanes of q with ReLU")
    estimate = _rho(part, ranks(part, rank), column(part, "return"))
    found = verdict(estimate, Above(0.0))
    # above 0.3, and the whole interval above 0
    if found.outcome is Outcome.HOLDS and not estimate.value > 0.3:
        found = replace(found, outcome=Outcome.INCONCLUSIVE, reason=f"{found.reason}, but rho is not above 0.3")
    return found


def _link_in_restricted(lanes: pl.DataFrame) -> Verdict:
    part = restricted(lanes)
    found = _restricted_rho(lanes)
    if part.is_empty():
        return found
    finite = part.filter(~pl.col("diverged"))

    def rho(rows: pl.DataFrame) -> float:
        return spearman(ranks(rows), column(rows, "return"))

    beside = [
        _reported(
            "Kendall's tau-b", verdict(_rho(part, ranks(part), column(part, "return"), Coefficient.KENDALL), Above(0.0))
        ),
        _per_seed(part, rho, "rho", 0.3),
    ]
    if 0 < len(finite) < len(part):
        without = _rho(finite, ranks(finite), column(finite, "return"))
        beside.append(_reported("rho without diverged lanes", verdict(without, Above(0.3))))
    noisy = column(part, "noisy_return")
    if not np.isnan(noisy).any():
        beside.append(_reported("rho with the return under noise", verdict(_rho(part, ranks(part), noisy), Above(0.3))))
    return _with_parts(found, part, *beside)


def _difference(lanes: pl.DataFrame, rank: str = "rank") -> Interval | None:
    part = restricted(lanes)
    if part.is_empty():
        return None
    x, y, inside = ranks(lanes, rank), column(lanes, "return"), lanes["run"].is_in(part["run"].to_list()).to_numpy()

    def statistic(rows: np.ndarray) -> float:
        few = rows[inside[rows]]
        return spearman(x[few], y[few]) - spearman(x[rows], y[rows])

    return _resampled(lanes, statistic)


def _weakens(lanes: pl.DataFrame) -> Verdict:
    estimate = _difference(lanes)
    if estimate is None:
        return not_run("needs lanes of q with ReLU, and others")
    x, y, seeds = ranks(lanes), column(lanes, "return"), lanes["seed"].to_numpy()
    cells = np.array((lanes["objective"] + "/" + lanes["activation"]).to_list())
    beside = [
        _reported("pooled rho", verdict(_rho(lanes, x, y), Above(0.0))),
        _reported("pooled Kendall's tau-b", verdict(_rho(lanes, x, y, Coefficient.KENDALL), Above(0.0))),
    ]
    finite = lanes.filter(~pl.col("diverged"))
    if 0 < len(finite) < len(lanes):
        without = _rho(finite, ranks(finite), column(finite, "return"))
        beside.append(_reported("pooled rho without diverged lanes", verdict(without, Above(0.0))))
    covariates = np.stack([np.log10(column(lanes, "learning_rate")), _known(column(lanes, "dead"), 1.0)], axis=1)
    given = association(x, y, clusters=seeds, covariates=covariates, rng=_rng(), resamples=RESAMPLES)
    beside.append(_reported("partial rho given log learning rate and dead share", verdict(given, Above(0.0))))
    for what, labels in (("objective and activation", cells), ("learning rate", column(lanes, "learning_rate"))):
        report = simpson(x, y, labels, clusters=seeds, rng=_rng(), resamples=RESAMPLES)
        told = f"{'reversed' if report.reversed else 'not reversed'} within cells of one {what}: mean {report.mean:.3g}"
        beside += [
            _reported(f"rho within {label if isinstance(label, str) else f'{label:.3g}'}", verdict(each, Above(0.0)))
            for label, each in report.within.items()
        ]
        mean = Verdict(Outcome.INCONCLUSIVE, report.mean, None, report.pooled.n, f"Simpson: {told}")
        beside.append(_reported(f"mean rho within one {what}", mean))
    return _with_parts(verdict(estimate, Above(0.0)), lanes, *beside)


def _known(values: np.ndarray, otherwise: float) -> np.ndarray:
    """`otherwise` in place of NaN: a lane that diverged has no live unit to speak of."""
    return np.where(np.isnan(values), otherwise, values)


# Bootstrapping ----------------------------------------------------------------------------------------------------


def _share(lanes: pl.DataFrame, which: np.ndarray) -> Verdict:
    """Wilson's interval of a share of lanes against LEAST_SHARE; lanes of one seed are not independent, so the seeds'
    own shares are beside it.
    """
    estimate = wilson_interval(int(which.sum()), len(which))
    return verdict(replace(estimate, n=lanes["seed"].n_unique()), Above(LEAST_SHARE))


def _too_few(lanes: int) -> str:
    """In words, if a share among so many lanes could not be shown to be below LEAST_SHARE even if it were none."""
    none = wilson_interval(0, lanes)
    if none.high <= LEAST_SHARE:
        return ""
    return f"; it cannot fail here: none of {lanes} lanes would leave a share of {none.high:.3f} possible"


def _mean(lanes: pl.DataFrame, name: str) -> float:
    return float(np.mean(column(lanes, name)))


def _collapse_without(lanes: pl.DataFrame) -> Verdict:
    high = lanes.filter(pl.col("learning_rate") >= HIGH_RATE * 0.999)
    claimed, beside, most = [], [], 0
    for objective in ("bc", "bve"):
        part = high.filter(pl.col("objective") == objective)
        if part.is_empty():
            return not_run(f"needs lanes of {objective} at learning rates from {HIGH_RATE:g}")
        most = max(most, len(part))
        found = _counted(_share(part, part["collapsed"].to_numpy()), part)
        claimed.append(named(f"collapse rate of {objective}", found))
        beside.append(
            _per_seed(part, lambda rows: _mean(rows, "collapsed"), f"collapse rate of {objective}", 0.0)
        )  # fmt: skip
        for (name,), cell in part.partition_by("activation", as_dict=True, maintain_order=True).items():
            beside.append(_reported(f"of {objective}, {name}", _share(cell, cell["collapsed"].to_numpy())))
    whole = all_of(claimed)
    return replace(whole, reason=whole.reason + _too_few(most), parts=(*claimed, *beside))


def _good_without_collapse(lanes: pl.DataFrame) -> Verdict:
    part = lanes.filter(pl.col("objective") == "q")
    if part.is_empty():
        return not_run("needs lanes of q")
    cut = np.quantile(column(lanes, "return"), 0.9)
    good = (column(part, "return") >= cut) & (column(part, "score") > column(part, "behaviour"))
    keeps = good & ~part["collapsed"].to_numpy() & ~part["diverged"].to_numpy()
    beside = _per_seed(part.with_columns(pl.Series("keeps", keeps)), lambda r: _mean(r, "keeps"), "share", 0.0)
    return _with_parts(_share(part, keeps), part, beside)


# Dead units -------------------------------------------------------------------------------------------------------


def _relu(lanes: pl.DataFrame) -> pl.DataFrame:
    return lanes.filter(pl.col("activation") == "relu")


def _live_explains(lanes: pl.DataFrame, rank: str = "rank") -> Verdict:
    part = _relu(lanes)
    if part.is_empty():
        return not_run("needs lanes of ReLU")
    return verdict(_rho(part, ranks(part, rank), _known(column(part, "live"), 0.0)), Above(0.5))


def _dead_explain(lanes: pl.DataFrame) -> Verdict:
    part = _relu(lanes)
    found = _live_explains(lanes)
    if part.is_empty():
        return found
    finite = part.filter(~pl.col("diverged"))
    alive = finite.filter(pl.col("live") > 0.5 * pl.col("units"))
    beside = []
    if 0 < len(finite) < len(part):
        without = _rho(finite, ranks(finite), column(finite, "live"))
        beside.append(_reported("rho without diverged lanes", verdict(without, Above(0.5))))
    if len(alive):
        share = _share(alive, alive["collapsed"].to_numpy())
        beside.append(_reported("collapse rate of lanes with more than half their units live", share))
    return _with_parts(found, part, *beside)


def _rate_kills(lanes: pl.DataFrame) -> Verdict:
    claimed = []
    for objective in ("q", "bc"):
        part = _relu(lanes).filter(pl.col("objective") == objective)
        if part.is_empty():
            return not_run(f"needs lanes of {objective} with ReLU")
        rates, dead = np.log10(column(part, "learning_rate")), _known(column(part, "dead"), 1.0)
        claimed.append(named(f"rho of {objective}", _counted(verdict(_rho(part, rates, dead), Above(0.0)), part)))
    return all_of(claimed)


def _tanh_keeps(lanes: pl.DataFrame) -> Verdict:
    high = lanes.filter(pl.col("learning_rate") >= TANH_RATE * 0.999)
    pairs = ("learning_rate", "objective", "seed")

    def of(activation: str) -> pl.DataFrame:
        part = high.filter(pl.col("activation") == activation)
        share = (
            pl.Series("share", ranks(part) / column(part, "most")) if len(part) else pl.Series("share", [], pl.Float64)
        )
        return part.select(*pairs, "collapsed", "diverged").with_columns(share)

    both = of("tanh").join(of("relu"), on=pairs, how="inner", suffix="_relu")
    if both.is_empty():
        return not_run(f"needs pairs of tanh and ReLU lanes at learning rates from {TANH_RATE:g}")
    difference = (both["share"] - both["share_relu"]).to_numpy()
    estimate = _resampled(both, lambda rows: float(difference[rows].mean()))
    lost = (
        f"{int(both['diverged'].sum())} of {len(both)} tanh and {int(both['diverged_relu'].sum())} ReLU lanes diverged"
    )
    found = verdict(estimate, Above(0.0))
    return replace(found, reason=f"{found.reason}; {lost}")


# Confounders ------------------------------------------------------------------------------------------------------


def _drops(lanes: pl.DataFrame) -> dict[str, Callable[[np.ndarray], float]]:
    """Confounder -> how much smaller |rho| is given it, of row numbers."""
    x, y = ranks(lanes), column(lanes, "return")
    indicators = {
        name: np.stack(
            [(lanes[name] == level).to_numpy().astype(float) for level in sorted(lanes[name].unique())[1:]], 1
        )
        for name in ("activation", "objective")
        if lanes[name].n_unique() > 1
    }
    given = {"log learning rate": np.log10(column(lanes, "learning_rate"))[:, None], **indicators}

    def drop(rows: np.ndarray, covariates: np.ndarray) -> float:
        return abs(spearman(x[rows], y[rows])) - abs(partial_spearman(x[rows], y[rows], covariates[rows]))

    return {name: functools.partial(drop, covariates=covariates) for name, covariates in given.items()}


def _rate_confounds(lanes: pl.DataFrame) -> Verdict:
    drops = _drops(lanes)
    if set(drops) != {"log learning rate", "activation", "objective"}:
        return not_run("needs lanes of several activations and objectives")
    rate = drops["log learning rate"]
    claimed = [
        named(
            f"drop given learning rate less drop given {name}",
            verdict(_resampled(lanes, lambda rows, other=drops[name]: rate(rows) - other(rows)), Above(0.0)),
        )
        for name in ("activation", "objective")
    ]
    everything = np.arange(len(lanes))
    beside = [
        _reported(
            f"drop given {name}", Verdict(Outcome.INCONCLUSIVE, drop(everything), None, 0, "a value, not a claim")
        )
        for name, drop in drops.items()
    ]
    return replace(_counted(all_of(claimed), lanes), parts=(*claimed, *beside))


# Phases -----------------------------------------------------------------------------------------------------------


def lane_phases(table: pl.DataFrame) -> pl.DataFrame:
    """One row a lane of Q with ReLU: seed, set, learning rate, and what its series of ranks shows."""
    chosen = table.filter((pl.col("objective") == "q") & (pl.col("activation") == "relu"))
    rows = []
    for part in chosen.partition_by("run", maintain_order=True) if len(chosen) else []:
        part = part.sort("step")
        found = detect_phases(column(part, "rank"), column(part, "return"), float(part["most"][0]))
        rows.append(
            {
                **{name: part[name][0] for name in ("run", "set", "seed", "learning_rate")},
                "fall": found.bottom is not None,
                "rise": found.top is not None,
                "all_three": found.all_three,
                "together": found.together,
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def _phases_occur(frame: pl.DataFrame) -> Verdict:
    table = series(frame)
    if table.is_empty():
        return not_run("needs finished runs of sweep")

    def judge(lanes: pl.DataFrame) -> Verdict:
        phases = lane_phases(table.filter(pl.col("run").is_in(lanes["run"].to_list())))
        if phases.is_empty():
            return not_run("needs lanes of q with ReLU")
        flags = phases["all_three"].to_numpy().astype(float)
        rho = phases["together"].fill_null(float("nan")).to_numpy()

        def mean_rho(rows: np.ndarray) -> float:
            seen = rho[rows][~np.isnan(rho[rows])]
            return float(seen.mean()) if len(seen) else math.nan

        share = _resampled(phases, lambda rows: float(flags[rows].mean()))
        together = _resampled(phases, mean_rho)
        claimed = [
            named("share of lanes with all three phases", verdict(share, Above(0.1))),
            named("rho of rank and return in the rise", verdict(together, Above(0.0))),
        ]
        beside = [
            _reported(f"share with a {name}", verdict(_resampled(phases, _mean_of(phases, name)), Above(0.1)))
            for name in ("fall", "rise")
        ]
        return replace(all_of(claimed), parts=(*claimed, *beside))

    return _each_set(final_lanes(frame), judge)


def _mean_of(phases: pl.DataFrame, name: str) -> Callable[[np.ndarray], float]:
    values = phases[name].to_numpy().astype(float)
    return lambda rows: float(values[rows].mean())


# Sensitivity ------------------------------------------------------------------------------------------------------


def _sign(value: float | None) -> int:
    return 0 if value is None or math.isnan(value) else int(np.sign(value))


def _does_not_depend(lanes: pl.DataFrame) -> Verdict:
    judges: Mapping[str, Callable[[pl.DataFrame, str], Verdict]] = {
        "RNK-1": _restricted_rho,
        "RNK-2": lambda rows, rank: verdict(_difference(rows, rank), Above(0.0)),
        "RNK-5": _live_explains,
    }
    parts, same = [], []
    for claim, judge in judges.items():
        default = judge(lanes, "rank")
        if default.outcome is Outcome.NOT_RUN:
            return not_run(f"{claim}: {default.reason}")
        for probe in VARIANTS:
            if np.isnan(column(lanes.filter(~pl.col("diverged")), probe.name)).any():
                return not_run(f"{probe.name} was not measured of every lane")
            other = judge(lanes, probe.name)
            agrees = other.outcome is default.outcome and _sign(other.measured) == _sign(default.measured)
            same.append(agrees)
            told = f"{'as' if agrees else 'not as'} with the default ({default.outcome.value})"
            parts.append(
                _reported(f"{claim} by {probe.name}", replace(other, reason=f"{told}; {other.reason}", parts=()))
            )
    share, seeds = float(np.mean(same)), lanes["seed"].n_unique()
    if seeds < 2:
        return inconclusive(f"n = {seeds}: verdicts to compare take at least two seeds")
    outcome = Outcome.HOLDS if share >= LEAST_AGREEMENT else Outcome.FAILS
    reason = f"{sum(same)} of {len(same)} verdicts are those of the default; claimed is a share of {LEAST_AGREEMENT:g}"
    return Verdict(outcome, share, None, seeds, reason, tuple(parts))


CLAIMS = (
    Claim(
        "RNK-1",
        "Rank and return are associated in a restricted setting: Q, ReLU, learning rates near the best",
        "rho > 0.3 and interval above 0; Kumar et al. (2020) report the link as general",
        _of_each_set(_link_in_restricted),
    ),
    Claim(
        "RNK-2",
        "The association weakens in the full sweep",
        "rho restricted less rho pooled > 0",
        _of_each_set(_weakens),
    ),
    Claim(
        "RNK-3",
        "Bootstrapping is not necessary for collapse: cloning and behaviour values collapse at large learning rates",
        "collapse rates of both above 0, lower bound above 0.05",
        _of_each_set(_collapse_without),
    ),
    Claim(
        "RNK-4",
        "Bootstrapping is not sufficient for collapse: Q lanes are among the best, above the behaviour, without it",
        "share above 0, lower bound above 0.05",
        _of_each_set(_good_without_collapse),
    ),
    Claim(
        "RNK-5",
        "Dead units explain the collapse of ReLU networks: rank goes with live units",
        "rho > 0.5",
        _of_each_set(_dead_explain),
    ),
    Claim(
        "RNK-6",
        "Larger learning rates give more dead ReLU units, also without bootstrapping",
        "section 7, figures 11 to 14: rho > 0 for Q and for cloning",
        _of_each_set(_rate_kills),
    ),
    Claim(
        "RNK-7",
        "tanh keeps rank better than ReLU at large learning rates",
        "share of the largest rank, tanh less ReLU > 0",
        _of_each_set(_tanh_keeps),
    ),
    Claim(
        "RNK-8",
        "The learning rate is the strongest confounder of rank and return",
        "the drop in |rho| given it is larger than given activation or objective",
        _of_each_set(_rate_confounds),
    ),
    Claim(
        "RNK-9",
        "Three phases occur: rank falls, rises with return, collapses",
        "abstract: three phases; share > 0.1 of Q lanes with ReLU, and rho > 0 in the rise",
        _phases_occur,
    ),
    Claim(
        "RNK-10",
        "Conclusions do not depend on how rank is measured",
        "the same sign and verdict of RNK-1, 2 and 5 in 80 % of the variants",
        _of_each_set(_does_not_depend),
    ),
)
