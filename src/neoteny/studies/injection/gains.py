"""What the records say of the copies: their performance, and paired gains over the untreated one."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import polars as pl

from neoteny.analysis import Interval, Verdict, mean_estimate, not_run
from neoteny.studies.injection.illustration import IllustrationConfig
from neoteny.studies.injection.relabel import DEFAULT

STRUCTURE = ("data", "width", "batch", "tasks", "steps_per_task", "learning_rate", "spectral")
"""What must be one setting for the claims about `relabel`; `settings` varies four of them."""

AXES = {"steps_per_task": "updates per task", "learning_rate": "learning rate", "width": "width"}

PROXIES = {"dead_units": "all", "dormant_units": "all", "feature_rank": None, "weight_norm": "all"}
"""Measurements at the fork that might stand for the gain -> their place, None where there is but one."""


def relabel_rows(frame: pl.DataFrame, adam: tuple[float, float], experiment: str = "relabel") -> pl.DataFrame:
    """Records of `relabel` (or `settings`) with this Adam, none where the experiment is not among them."""
    if not {"tasks", "adam_b2"} <= set(frame.columns):
        return frame.clear()
    mine = (pl.col("adam_b2") == adam[0]) & (pl.col("adam_eps_root") == adam[1])
    return frame.filter((pl.col("experiment") == experiment) & mine)


def varied(rows: pl.DataFrame) -> list[str]:
    """The fields of `STRUCTURE`, and `arms`, in which these rows differ."""
    return differing(rows, (*STRUCTURE, "arms"))


def performance_of(rows: pl.DataFrame, *, following: bool = True, whole: bool = False) -> pl.DataFrame:
    """Training accuracy in points of every copy: columns run, seed, fork (tasks done before), branch, value.

    following: on the next task, the mean over the last tenth of the steps (over all of them if `whole`: the area under
    the curve); else on the task it was forked in, over the first steps. A copy that diverged has the worst value that
    any has.
    """
    end = (pl.col("task") + 1) * pl.col("steps_per_task")  # of the task's own training, in updates
    inside = rows.filter(pl.col("branch") != "").with_columns(
        beyond=pl.col("step") > end, fork=pl.when(pl.col("step") > end).then(pl.col("task") + 1).otherwise("task")
    )
    inside = inside.filter(~pl.col("beyond") if following else pl.col("beyond"))
    keys = ["run", "seed", "fork", "branch"]
    value = pl.col("value").mean() if whole else pl.col("value").sort_by("step").last()
    found = inside.filter(pl.col("metric") == "train_accuracy").group_by(keys).agg(value=100 * value)
    died = inside.filter(pl.col("metric") == "diverged").select(keys)
    # the copies that a run would have had, had it not diverged before: those that others have
    ended = rows.filter((pl.col("metric") == "diverged") & (pl.col("branch") == ""))
    ended = ended.select("run", "seed", ended=pl.col("step") / pl.col("steps_per_task"))
    missed = found.select("fork", "branch").unique().join(ended, how="cross").filter(pl.col("fork") >= pl.col("ended"))
    return with_the_worst(found, pl.concat([died, missed.select(keys)]), keys)


def with_the_worst(found: pl.DataFrame, died: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """`found` (keys, value), where what diverged (keys) has the least value that any has."""
    if not died.is_empty() and not found.is_empty():
        died = died.unique().with_columns(value=pl.lit(found["value"].min(), pl.Float64))
        found = pl.concat(
            [
                found.join(died, on=keys, how="anti"),
                died.select(pl.col(name).cast(kind) for name, kind in found.schema.items()),
            ]
        )
    return found.sort(keys)


def paired_gains(performance: pl.DataFrame, arm: str, other: str = "control") -> pl.DataFrame:
    """Columns run, seed, fork, value: the arm's performance less the other's, of the same copies' parent."""
    one, two = (performance.filter(pl.col("branch") == name).drop("branch") for name in (arm, other))
    paired = one.join(two, on=["run", "seed", "fork"], how="inner", suffix="_other")
    return paired.select("run", "seed", "fork", value=pl.col("value") - pl.col("value_other")).sort("fork", "seed")


def at_fork(differences: pl.DataFrame, fork: int) -> np.ndarray:
    """Of this fork, in the order of seeds."""
    return differences.filter(pl.col("fork") == fork).sort("seed")["value"].to_numpy()


def mean_over_seeds(values: np.ndarray, level: float = 0.95) -> Interval:
    """Mean over seeds; bootstrap from six seeds on, Student's t below."""
    return mean_estimate(values, rng=np.random.default_rng(0), level=level)


def why_unfit(rows: pl.DataFrame, arms: tuple[str, ...], name: str) -> Verdict | None:
    """Why these records of `relabel` cannot decide; None if they can."""
    mixed = varied(rows)
    if mixed:
        return not_run(f"the runs differ in {', '.join(mixed)}; claims are about one value of each")
    if rows.is_empty() or rows["tasks"][0] < 3:
        return not_run(f"needs runs of relabel with {name} and at least three tasks")
    performance = performance_of(rows)
    for arm in arms:
        last = performance.filter((pl.col("fork") == rows["tasks"][0]) & (pl.col("branch") == arm))
        if last.height < 2:
            return not_run(f"needs at least two finished runs of relabel with {name} and the arm {arm}")
    return None


def gain_at(rows: pl.DataFrame, arm: str, fork: int, other: str = "control") -> np.ndarray:
    return at_fork(paired_gains(performance_of(rows), arm, other), fork)


def last_fork(rows: pl.DataFrame) -> int:
    return int(rows["tasks"][0])


def extreme(values: pl.Series, seeds: int) -> Interval:
    """The value farthest from 0: an exact quantity, so its interval is a point. n: seeds."""
    found = values.to_numpy()
    farthest = float(found[np.argmax(np.abs(found))])
    return Interval(farthest, farthest, farthest, seeds)


def along(frame: pl.DataFrame, axis: str) -> pl.DataFrame:
    """Gains at the last fork along one axis, default Adam: columns seed, setting, value. The middle is `relabel`'s."""
    middle, others = relabel_rows(frame, DEFAULT), relabel_rows(frame, DEFAULT, "settings")
    if middle.is_empty() or others.is_empty() or varied(middle):
        return pl.DataFrame()
    for name in STRUCTURE:
        if name != axis:
            others = others.filter(pl.col(name) == middle[name][0])
    rows = pl.concat([middle, others])
    columns = rows.select("run", "tasks", setting=pl.col(axis).cast(pl.Float64)).unique()
    gains = paired_gains(performance_of(rows), "inject").join(columns, on="run", how="inner")
    return gains.filter(pl.col("fork") == pl.col("tasks")).select("seed", "setting", "value").sort("setting", "seed")


def spectral_gains(frame: pl.DataFrame) -> np.ndarray:
    """Gain of injection at the last fork where the encoder is spectrally normalised: (seeds,), default Adam."""
    gains = along(frame, "spectral")
    return np.array([]) if gains.is_empty() else gains.filter(pl.col("setting") == 1)["value"].to_numpy()


def growth_accuracy(frame: pl.DataFrame) -> pl.DataFrame:
    """Accuracy in points at the end of every task: columns arm, seed, task, value."""
    rows = frame.filter((pl.col("experiment") == "growth") & (pl.col("metric") == "accuracy"))
    return rows.select("arm", "seed", "task", "tasks", "small", "large", value=100 * pl.col("value"))


def growth_areas(frame: pl.DataFrame) -> pl.DataFrame:
    """Area under the curve of training accuracy, in points, over the updates of every task, divided by their number:
    columns arm, seed, task, tasks, value. A run that diverged has the least area that any has in a task, from the one
    on in which it did.
    """
    mine = frame.filter(pl.col("experiment") == "growth")
    rows = mine.filter(pl.col("metric") == "train_accuracy")
    rows = rows.sort("run", "step").with_columns(
        updates=pl.col("step") - pl.col("step").shift(1, fill_value=0).over("run")
    )
    area = 100 * (pl.col("value") * pl.col("updates")).sum() / pl.col("updates").sum()
    keys = ["arm", "seed", "task", "tasks"]
    found = rows.group_by(keys).agg(value=area)
    died = mine.filter(pl.col("metric") == "diverged").select("arm", "seed", "tasks", ended="task")
    lost = found.select("task").unique().join(died, how="cross").filter(pl.col("task") >= pl.col("ended"))
    return with_the_worst(found, lost.select(keys), keys)


# Reinforcement learning -------------------------------------------------------------------------------------------

MDP_STRUCTURE = (
    "data", "labels", "goal", "width", "batch", "updates", "capacity", "epsilon", "target_period", "learning_rate",
    "adam_b2", "adam_eps_root",
)  # fmt: skip
"""What must be one setting for the claim about `mdp`."""

GROWTH_STRUCTURE = (
    "small", "large", "data", "batch", "tasks", "steps_per_task", "learning_rate", "adam_b2", "adam_eps_root",
)  # fmt: skip
"""What must be one setting for the claim about `growth`."""

ILLUSTRATION_STRUCTURE = tuple(field.name for field in fields(IllustrationConfig) if field.name != "seed")
"""What must be one setting for the claim about `illustration`."""

GAMES_STRUCTURE = ("frames", "period", "learning_starts", "capacity", "exploration", "learning_rate")
"""What must be one setting for what is said about `games`."""


def differing(rows: pl.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Those of these fields in which the rows differ."""
    return [name for name in names if name in rows.columns and rows[name].n_unique() > 1]


def reward_rates(frame: pl.DataFrame) -> pl.DataFrame:
    """Rewards of a hundred steps of every copy of `mdp`, over the last tenth of its updates: columns as of
    `performance_of`, with fork 0. A copy that diverged has the worst value that any has.
    """
    whole = frame.filter(pl.col("experiment") == "mdp")
    rows = whole.filter(pl.col("branch") != "").with_columns(fork=pl.lit(0))
    keys = ["run", "seed", "fork", "branch"]
    last = pl.col("value").sort_by("step").last()
    found = rows.filter(pl.col("metric") == "train_reward").group_by(keys).agg(value=100 * last)
    died = rows.filter(pl.col("metric") == "diverged").select(keys)
    # a run that diverged before it was forked has no copies
    ended = whole.filter((pl.col("metric") == "diverged") & (pl.col("branch") == "")).select("run", "seed")
    missed = found.select("fork", "branch").unique().join(ended, how="cross")
    return with_the_worst(found, pl.concat([died, missed.select(keys)]), keys)


def game_returns(frame: pl.DataFrame) -> pl.DataFrame:
    """Mean return of the episodes that ended between records of `games`, `illustration` and `learning`, exploration
    included: columns experiment, run, seed, game, frames (of the run), branch, event, step, frame (so far), episodes
    (an update, in the mean), value; none where no episode ended.
    """
    rows = frame.filter(pl.col("experiment").is_in(["games", "illustration", "learning"]))
    keys = ["experiment", "run", "seed", "game", "frames", "period", "branch", "event", "step"]
    if rows.is_empty() or "game" not in rows.columns:
        return pl.DataFrame()
    one, two = (
        rows.filter(pl.col("metric") == metric).select(*keys, "value") for metric in ("train_returns", "train_episodes")
    )
    both = one.join(two.rename({"value": "episodes"}), on=keys, how="inner").filter(pl.col("episodes") > 0)
    means = both.with_columns(value=pl.col("value") / pl.col("episodes"), frame=pl.col("step") * pl.col("period"))
    return means.drop("period").sort("experiment", "game", "run", "branch", "event", "step")


def game_gains(frame: pl.DataFrame) -> pl.DataFrame:
    """Return of every injected copy of `games` in the last tenth of a quarter less that of its run at the same step:
    columns game, fork (quarters done before), seed, value. What diverged has the worst return that any has there.
    """
    returns = game_returns(frame)
    if returns.is_empty():
        return returns
    returns = returns.filter(pl.col("experiment") == "games")
    quarters = pl.col("frame") * 4 / pl.col("frames")
    ends = returns.filter(quarters == quarters.floor()).with_columns(fork=(quarters - 1).cast(pl.Int64))
    runs = returns.select("run", "seed", "game", "frames").unique()
    died = frame.filter((pl.col("experiment") == "games") & (pl.col("metric") == "diverged"))
    found = []
    for run, seed, game, frames in runs.sort("game", "seed").iter_rows():
        worst = float(returns.filter(pl.col("game") == game)["value"].to_numpy().min())
        ours = died.filter(pl.col("run") == run).with_columns(frame=pl.col("step") * pl.col("period"))
        lost = list(ours.select("branch", "frame").iter_rows())
        for fork in (1, 2, 3):
            pair = []
            for branch in ("inject", ""):
                mine = ends.filter((pl.col("run") == run) & (pl.col("branch") == branch) & (pl.col("fork") == fork))
                begun, end = fork * frames / 4, (fork + 1) * frames / 4
                gone = any(
                    (name == branch and begun < frame <= end) or (name == "" and frame <= begun) for name, frame in lost
                )
                pair.append(worst if gone else float(mine["value"][0]) if mine.height else None)
            if None not in pair:
                found.append({"game": game, "fork": fork, "seed": seed, "value": pair[0] - pair[1]})
    return pl.DataFrame(found)


def regressions(frame: pl.DataFrame) -> pl.DataFrame:
    """What `illustration` measured: columns run, seed, game, updates, task (from 1), arm, what, value."""
    rows = frame.filter((pl.col("experiment") == "illustration") & (pl.col("metric") == "regression"))
    if rows.is_empty():
        return pl.DataFrame()
    parts = pl.col("place").str.split("/")
    return rows.select(
        "run", "seed", "game", "updates", "value", task=parts.list.get(0).cast(pl.Int64), arm=parts.list.get(1),
        what=parts.list.get(2),
    )  # fmt: skip


def reached_threshold(found: pl.DataFrame) -> str | None:
    """The lowest of the counted losses that the networks begun anew reached in every task and run; None if none."""
    anew = found.filter((pl.col("arm") == "reset") & pl.col("what").str.starts_with("updates-"))
    reached = anew.group_by("what").agg((pl.col("value") <= pl.col("updates")).all().alias("all"))
    names = reached.filter(pl.col("all"))["what"].to_list()
    return min(names, key=lambda name: float(name.removeprefix("updates-")), default=None)


def slowing(found: pl.DataFrame, what: str) -> np.ndarray:
    """Slope, by task, of the log of updates to the loss, warm start less begun anew: (seeds,)."""
    slopes = []
    for _, mine in sorted(found.filter(pl.col("what") == what).partition_by("seed", as_dict=True).items()):
        arms = [mine.filter(pl.col("arm") == arm).sort("task") for arm in ("warm", "reset")]
        logs = [np.log(part["value"].to_numpy()) for part in arms]
        slopes.append(float(np.polyfit(arms[0]["task"].to_numpy(), logs[0] - logs[1], 1)[0]))
    return np.asarray(slopes)
