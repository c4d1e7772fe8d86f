"""Records of the plasticity study: what its claims and figures ask of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from neoteny.analysis import Interval, Verdict, association, not_run
from neoteny.studies.plasticity.agents import AgentConfig

FACTORIAL = ((0.999, 0.0), (0.9, 0.0), (0.999, 1e-3), (0.9, 1e-3))
"""Neither change, each alone, both."""

SETTINGS: dict[tuple, str] = {
    (0.999, 0.0): "default Adam",
    (0.9, 0.0): "b2 = 0.9",
    (0.999, 1e-3): "eps_root = 1e-3",
    (0.9, 1e-3): "tuned: both",
}


STRUCTURE = ("data", "width", "depth", "batch", "tasks", "steps_per_task", "until_fitted", "learning_rate", "l2")
"""What must be one setting for the claims; the report draws a panel for each where there are several."""


def case1_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """The 2 x 2 factorial, without remedies; nothing where the experiment was not run."""
    if "remedy" not in frame.columns:
        return frame.clear()
    return frame.filter((pl.col("experiment") == "case1") & (pl.col("remedy") == "none"))


def varied(rows: pl.DataFrame) -> list[str]:
    """The fields of `STRUCTURE` in which these rows differ."""
    return [name for name in STRUCTURE if name in rows.columns and rows[name].n_unique() > 1]


def by_task(frame: pl.DataFrame, setting: tuple[float, float], metric: str, place: str = "") -> dict[int, np.ndarray]:
    """A metric at the end of every task: seed -> (tasks,), NaN where a diverged run has none; finished runs only."""
    rows = case1_rows(frame)
    found: dict[int, np.ndarray] = {}
    if rows.is_empty():
        return found
    rows = rows.filter((pl.col("adam_b2") == setting[0]) & (pl.col("adam_eps_root") == setting[1]))
    for (seed,), run in rows.partition_by("seed", as_dict=True, maintain_order=True).items():
        scored = run.filter(pl.col("metric") == "accuracy")["task"].n_unique()
        if scored < run["tasks"][0]:
            continue
        values = np.full(scored, np.nan)
        chosen = run.filter((pl.col("metric") == metric) & (pl.col("place") == place))
        values[chosen["task"].to_numpy()] = chosen["value"].to_numpy()
        found[seed] = values
    return found


def together(*columns: dict[int, np.ndarray]) -> list[np.ndarray]:
    """(seeds, tasks) of each, for the seeds that all have, in one order."""
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    return [np.array([column[seed] for seed in seeds]) for column in columns]


def accuracy_by_task(frame: pl.DataFrame, setting: tuple[float, float]) -> dict[int, np.ndarray]:
    """Accuracy in percent at the end of every task: seed -> (tasks,). A diverged run is scored by its last finite
    network.
    """
    return {seed: 100 * values for seed, values in by_task(frame, setting, "accuracy").items()}


def last_third(values: np.ndarray) -> np.ndarray:
    """Mean over the last third of tasks, for each seed."""
    third = values.shape[1] // 3
    return np.nanmean(values[:, -third:], axis=1)


def change(values: np.ndarray) -> np.ndarray:
    """Last third of tasks less first third, for each seed."""
    third = values.shape[1] // 3
    return last_third(values) - np.nanmean(values[:, :third], axis=1)


def why_unfit(frame: pl.DataFrame, *settings: tuple[float, float]) -> Verdict | None:
    """Why these records cannot decide a claim about these Adam settings; None if they can."""
    rows = case1_rows(frame)
    if rows.is_empty():
        return not_run(f"needs finished runs of case1 with {SETTINGS[settings[0]]}")
    mixed = varied(rows)
    if mixed:
        return not_run(f"the runs differ in {', '.join(mixed)}; claims are about one value of each")
    for setting in settings:
        accuracy = accuracy_by_task(frame, setting)
        if not accuracy:
            return not_run(f"needs finished runs of case1 with {SETTINGS[setting]}")
        if min(len(values) for values in accuracy.values()) < 3:
            return not_run("needs at least three tasks")
    if not set.intersection(*(set(accuracy_by_task(frame, setting)) for setting in settings)):
        return not_run("needs finished runs of the same seeds in every setting")
    return None


# Agents -----------------------------------------------------------------------------------------------------------

AGENT_FIELDS = tuple(field.name for field in dataclasses.fields(AgentConfig))

SETTING = ("data", "pool", "network", "labels", "goal", "optimizer")
"""What a treatment is compared within: one verdict each."""

AGENT_STRUCTURE = (
    "width", "iterations", "updates", "batch", "capacity", "epsilon", "target_period", "probe_every", "probe_targets",
    "probe_steps", "probe_samples", "learning_rate", "l2",
)  # fmt: skip
"""What must be one value for the claims about treatments."""

LEAST_UPDATES = 1_000
"""Updates of an agent below which nothing is claimed."""

NOTHING = ("none", "scalar")
"""(treatment, output) that the others are compared with."""

WIDTH_STRUCTURE = (*(name for name in AGENT_STRUCTURE if name not in ("width", "target_period")), *SETTING, "treatment",
                   "output")  # fmt: skip
"""What must be one value for the claim about widths."""

STATISTICS = {"weight_norm": "all", "weight_rank": "all", "dead_units": "all", "feature_rank": None}
"""Case study 3: what might explain loss of plasticity -> its place, None where there is but one."""

FEWEST_AGENTS = 6
"""Agents a correlation needs."""

FEWEST_SETTINGS = 3
"""Settings in which a statistic must have one sign before that is held against the claim that none has."""

GROUP = tuple(name for name in AGENT_FIELDS if name not in ("treatment", "output", "seed"))
"""What the agents of one correlation have in common."""


def agent_rows(frame: pl.DataFrame, *experiments: str) -> pl.DataFrame:
    """Records of agents of these experiments; empty where none was run."""
    if "probe_steps" not in frame.columns:
        return frame.clear()
    return frame.filter(pl.col("experiment").is_in(experiments))


def probed(frame: pl.DataFrame, *experiments: str) -> pl.DataFrame:
    """What the probe task gave along every finished run: columns run, experiment, the fields, iteration, initial,
    final, rise, regret, died.

    final: the probe loss after training. initial: `final` of the first probe (the paper's initial loss). rise: `final`
    less `initial`, exactly 0 at the first probe. regret: `final` less a fresh network's on the same targets, null where
    none was trained. A run that diverged goes on with its targets' variance as `final`: nothing learned. Runs that were
    not finished are left out.
    """
    rows = agent_rows(frame, *experiments)
    found = []
    for run in rows.partition_by("run", maintain_order=True) if len(rows) else []:
        settings = {name: run[name][0] for name in ("run", "experiment", *AGENT_FIELDS)}
        measured = run.filter(pl.col("metric") == "plasticity")
        curve = {step: dict(part.select("place", "value").iter_rows()) for (step,), part in
                 measured.partition_by("step", as_dict=True, maintain_order=True).items()}  # fmt: skip
        every = settings["probe_every"] * settings["updates"]
        expected = [1, *range(every, settings["iterations"] * settings["updates"] + 1, every)]
        died = "diverged" in run["metric"]
        if 1 not in curve or not (died or all(step in curve for step in expected)):
            continue
        first = curve[1]
        for step in expected:
            here = curve.get(step) or {"final": first["baseline"]}
            iteration = 0 if step == 1 else step // settings["updates"]
            found.append({**settings, "iteration": iteration, "initial": first["final"], "final": here["final"],
                          "rise": here["final"] - first["final"], "regret": here.get("regret"),
                          "died": died})  # fmt: skip
    return pl.DataFrame(found, infer_schema_length=None)


def at_end(table: pl.DataFrame) -> pl.DataFrame:
    """Its last probe of every run."""
    return table.filter(pl.col("iteration") == pl.col("iterations")) if len(table) else table


def growth_of_curvature(frame: pl.DataFrame) -> pl.DataFrame:
    """log(largest eigenvalue at the end / after the first update) of every finished run of interventions: columns as of
    `probed`, and value; runs without two positive ones are left out.
    """
    rows, ends = agent_rows(frame, "interventions"), at_end(probed(frame, "interventions"))
    if ends.is_empty():
        return ends
    sharp = rows.filter((pl.col("metric") == "output_sharpness") & (pl.col("value") > 0)).select("run", "step", "value")
    first = sharp.filter(pl.col("step") == 1).select("run", first="value")
    last = sharp.join(ends.select("run", step=pl.col("iterations") * pl.col("updates")), on=["run", "step"], how="semi")
    both = last.select("run", last="value").join(first, on="run", how="inner")
    return ends.join(both.select("run", value=(pl.col("last") / pl.col("first")).log()), on="run", how="inner")


def compared(
    table: pl.DataFrame, column: str, treated: tuple[str, str], other: tuple[str, str] = NOTHING
) -> dict[tuple, np.ndarray]:
    """Setting -> (seeds,) differences of a column, paired by seed; settings with two seeds or more."""
    if table.is_empty():
        return {}
    sides = []
    for treatment, output in (treated, other):
        chosen = (pl.col("treatment") == treatment) & (pl.col("output") == output)
        sides.append(table.filter(chosen).select(*SETTING, "seed", column))
    paired = sides[0].join(sides[1], on=[*SETTING, "seed"], how="inner", suffix="_other").sort(*SETTING, "seed")
    difference = paired.with_columns(difference=pl.col(column) - pl.col(f"{column}_other"))
    parts = difference.partition_by(SETTING, as_dict=True, maintain_order=True)
    return {key: part["difference"].to_numpy() for key, part in parts.items() if len(part) > 1}


def setting_name(setting: Sequence) -> str:
    """In words, of the values of `SETTING`."""
    data, pool, network, labels, goal, optimizer = setting
    pooled = f", pooled by {pool}" if pool > 1 else ""
    return f"{data}{pooled}, {network}, {labels} labels{'' if goal == 'dense' else ', sparse'}, {optimizer}"


def mixed_fields(rows: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """Those of these fields in which the rows differ."""
    return [name for name in names if name in rows.columns and rows[name].n_unique() > 1]


def why_agents_unfit(frame: pl.DataFrame, experiment: str, structure: Sequence[str]) -> Verdict | None:
    """Why these records of agents cannot decide; None if they can."""
    rows = agent_rows(frame, experiment)
    if rows.is_empty():
        return not_run(f"needs runs of {experiment}")
    mixed = mixed_fields(rows, structure)
    if mixed:
        return not_run(f"the runs of {experiment} differ in {', '.join(mixed)}; claims are about one value of each")
    if rows["iterations"][0] * rows["updates"][0] < LEAST_UPDATES:
        return not_run(f"needs runs of {experiment} of at least {LEAST_UPDATES} updates")
    return None


def correlations(frame: pl.DataFrame) -> dict[str, dict[str, Interval]]:
    """Statistic -> setting in words -> Spearman's correlation with the rise over the agents' last probes, resampled by
    seed.

    The agents of a setting differ in treatment, output and seed alone; the same agent in two experiments counts once.
    Agents that diverged, and runs of fewer than `LEAST_UPDATES` updates, are left out.
    """
    experiments = ("interventions", "combined", "falsification")
    ends, rows = at_end(probed(frame, *experiments)), agent_rows(frame, *experiments)
    found: dict[str, dict[str, Interval]] = {name: {} for name in STATISTICS}
    if ends.is_empty():
        return found
    ends = ends.with_columns(step=pl.col("iterations") * pl.col("updates"))
    ends = ends.filter(~pl.col("died") & (pl.col("step") >= LEAST_UPDATES))
    ends = ends.unique(AGENT_FIELDS, keep="first", maintain_order=True)
    called = group_names(ends.select(GROUP).unique(maintain_order=True).rows())
    for name, place in STATISTICS.items():
        chosen = rows.filter((pl.col("metric") == name) & pl.col("value").is_finite())
        if place is not None:
            chosen = chosen.filter(pl.col("place") == place)
        both = ends.join(chosen.select("run", "step", "value"), on=["run", "step"], how="inner").sort("run")
        for key, part in both.partition_by(GROUP, as_dict=True, maintain_order=True).items():
            if len(part) >= FEWEST_AGENTS:
                found[name][called[key]] = association(
                    part["value"].to_numpy(), part["rise"].to_numpy(), clusters=part["seed"].to_numpy(),
                    rng=np.random.default_rng(0),
                )  # fmt: skip
    return found


def group_names(keys: Sequence[tuple]) -> dict[tuple, str]:
    """Values of `GROUP` -> their setting in words, with the fields that tell apart those whose settings are one."""
    settings = {key: setting_name([key[GROUP.index(name)] for name in SETTING]) for key in keys}
    called = {}
    for key, setting in settings.items():
        alike = [other for other, name in settings.items() if name == setting]
        apart = [f"{name} {key[at]}" for at, name in enumerate(GROUP) if len({other[at] for other in alike}) > 1]
        called[key] = ", ".join([setting, *apart])
    return called


def width_sweep(frame: pl.DataFrame) -> pl.DataFrame:
    """The last probe of every agent of `width`; empty where they are not MLPs that nothing is done about, or differ in
    more than width and target period.
    """
    ends = at_end(probed(frame, "width"))
    if ends.is_empty() or mixed_fields(ends, WIDTH_STRUCTURE):
        return ends.clear()
    bare = (pl.col("treatment") == NOTHING[0]) & (pl.col("output") == NOTHING[1])
    return ends.filter((pl.col("network") == "mlp") & bare)


def slopes(ends: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of the width sweep, for every seed: slope of the rise on log2(width), and the rise at the largest width.

    At each width the rise is the mean over target periods. Seeds that lack one of the agents are left out.
    """
    if ends.is_empty() or ends["width"].n_unique() < 2:
        return np.array([]), np.array([])
    agents = ends.select("width", "target_period").n_unique()
    whole = ends.group_by("seed").agg(pl.len()).filter(pl.col("len") == agents).select("seed")
    means = ends.join(whole, on="seed", how="semi").group_by("seed", "width").agg(pl.col("rise").mean())
    tilt, wide = [], []
    for part in means.sort("seed", "width").partition_by("seed", maintain_order=True):
        tilt.append(float(np.polyfit(np.log2(part["width"].to_numpy()), part["rise"].to_numpy(), 1)[0]))
        wide.append(float(part["rise"][-1]))
    return np.array(tilt), np.array(wide)


# Walk -------------------------------------------------------------------------------------------------------------

WALK_STRUCTURE = (
    "data", "pool", "labels", "width", "batch", "iteration", "target_period", "periods", "capacity", "epsilon",
    "lanczos", "spectrum_samples", "gradients", "learning_rate",
)  # fmt: skip
"""What must be one value for the claims about the walk."""


def walk_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Records of `walk`; empty where it was not run."""
    return frame.filter(pl.col("experiment") == "walk") if "path" in frame.columns else frame.clear()


def gradient_less_walk(frame: pl.DataFrame, metric: str, place: str, *, log: bool = False) -> dict[int, np.ndarray]:
    """Update -> (seeds,) of a measurement along gradient descent less along the walk, paired by seed."""
    rows = walk_rows(frame).filter((pl.col("metric") == metric) & (pl.col("place") == place))
    if log:
        rows = rows.filter(pl.col("value") > 0).with_columns(pl.col("value").log())
    if rows.is_empty():
        return {}
    one, two = (rows.filter(pl.col("path") == path).select("step", "seed", "value") for path in ("gradient", "walk"))
    paired = one.join(two, on=["step", "seed"], how="inner", suffix="_walk").sort("step", "seed")
    paired = paired.with_columns(difference=pl.col("value") - pl.col("value_walk"))
    parts = paired.partition_by("step", as_dict=True, maintain_order=True)
    return {int(step): part["difference"].to_numpy() for (step,), part in parts.items()}
