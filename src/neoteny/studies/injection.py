"""Is an agent that stops improving limited by lost plasticity, and does injecting fresh parameters restore it?

Nikishin, Oh, Ostrovski, Lyle, Pascanu, Dabney and Barreto: Deep reinforcement learning with plasticity injection,
NeurIPS 2023 (arXiv:2305.15555). The head is frozen, and a fresh one is added twice, once trained and once frozen and
subtracted: predictions and the number of trained parameters stay as they were. Two questions are asked of supervised
networks whose labels are redrawn for every task, where plasticity is known to be lost.

Q1, `relabel` and `settings`: copies forked from one network at several tasks, with the same draws and each treated in
its own way, learn the next labels; the gain over the untreated copy says whether lost plasticity was the limit.
Q4, `growth`: a small network into which a larger head is injected half way, against a large one from the start, at
equal operations for every task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    mean_estimate,
    not_run,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.interventions import Inject, InjectedMoments, Intervention, Reset, ShrinkPerturb, Variant
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment, Study, StudyFigure
from neoteny.learners.learner import Batch, Learner, LearnerState, attach, detach
from neoteny.learners.supervised import supervised
from neoteny.networks import MLP, Network, mlp, split_trainable
from neoteny.probes import NetworkProbe, ViewProbe, dead_units, dormant_units, feature_rank, weight_norm
from neoteny.studies import injection_atari
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.images import whole
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Stream, Task, random_labels
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Save, Switch, Train
from neoteny.training.ledger import count_flops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAM_EPS = 1e-9
"""Adam's epsilon outside the root (Lyle et al. 2023, section 3.1)."""

HEAD = "hidden2"
"""First stage of the head; the encoder is the first hidden stage."""

DEFAULT, TUNED = (0.999, 0.0), (0.9, 1e-3)
"""(adam_b2, adam_eps_root) of Adam as it comes, and as Lyle et al. 2023 tune it, where plasticity survives."""


# Q1: label re-randomisation ---------------------------------------------------------------------------------------

ARMS: dict[str, Intervention | None] = {
    "control": None,
    "inject": Inject(HEAD),
    "placebo": Inject(HEAD, variant=Variant.PLACEBO),
    "reset": Reset(("hidden2", "head")),
    "shrink_perturb": ShrinkPerturb(shrink=0.5, perturb=0.5),
    "fresh": Reset(None),
    "inherit": Inject(HEAD, moments=InjectedMoments.INHERIT),
    "reset_all": Inject(HEAD, moments=InjectedMoments.RESET_ALL),
    "train_all": Inject(HEAD, variant=Variant.TRAIN_ALL),
    "stop_z": Inject(HEAD, variant=Variant.STOP_Z),
    "frozen_encoder": Inject(HEAD, freeze_encoder=True),
    "inject_whole": Inject(0),
}
"""What is done to the copies. `fresh` is a new network with a new optimiser, the ceiling; `inject_whole` has no
encoder, to tell a dead encoder from a dead head."""

CORE = ("control", "inject", "placebo", "reset", "shrink_perturb", "fresh")
"""The arms of every fork; the last fork has all."""

Arms = Literal["all", "pair"]


@dataclass(frozen=True)
class Config:
    """One run of label re-randomisation with forks."""

    data: str = "mnist_digits"
    width: int = 512
    batch: int = 512
    tasks: int = 30
    steps_per_task: int = 1_500
    arms: Arms = "all"  # pair: control and inject only, after the last task only
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    seed: Lane[int] = 0

    def __post_init__(self):
        _check_config(self, ("width", "batch", "tasks", "steps_per_task"))


def _check_config(config: Any, positive: tuple[str, ...]) -> None:
    """ValueError naming a field that is out of its range."""
    for name in (*positive, "learning_rate"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, not {getattr(config, name)}")
    if not 0 <= config.adam_b2 < 1:
        raise ValueError(f"adam_b2 must be in [0, 1), not {config.adam_b2}")
    if not config.adam_eps_root >= 0:
        raise ValueError(f"adam_eps_root must not be negative, not {config.adam_eps_root}")
    if config.seed < 0:
        raise ValueError(f"seed must not be negative, not {config.seed}")


def forks(config: Config) -> tuple[int, ...]:
    """After how many tasks copies are forked: 1, and a sixth, a third, two thirds and all of them."""
    if config.arms == "pair":
        return (config.tasks,)
    parts = (math.ceil(config.tasks * sixths / 6) for sixths in (1, 2, 4, 6))
    return tuple(sorted({1, *parts}))


_whole = cache(whole)


def images(name: str) -> Arrays:
    """The images whose labels are drawn: all there are, since nothing is asked of images not seen."""
    return _whole(load(name))


def stream(config: Config) -> Stream:
    """The same images with new labels for every task and lane; one task more, which only forked copies see."""
    return random_labels(images(config.data), tasks=config.tasks + 1)


def network(data: Arrays, encoder: int, head: int) -> MLP:
    """Two hidden stages; the first is the encoder."""
    return mlp(data.input_shape, [encoder, head], data.classes or 0)


def adam(config: Any) -> optax.GradientTransformation:
    """update = rate * m / (sqrt(v + eps_root) + eps)."""
    return optax.adam(config.learning_rate, b2=config.adam_b2, eps=ADAM_EPS, eps_root=config.adam_eps_root)


def learner(config: Config) -> Learner:
    """An MLP of two equally wide hidden stages trained with Adam."""
    return supervised(network(images(config.data), config.width, config.width), adam(config))


def source(config: Any) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


@dataclass(frozen=True)
class OutputJump:
    """max |Q - Q_saved| / max(1, max |Q_saved|) on a batch, against the networks kept by a save."""

    save: str

    def __call__(self, view, batch, key, saved) -> dict[str, Any]:
        before, after = (n(batch.inputs).output for n in (saved[self.save]["online"], view.network))
        return {"online": jnp.max(jnp.abs(after - before)) / jnp.maximum(1.0, jnp.max(jnp.abs(before)))}


def output_jump(save: str) -> ViewProbe:
    """The probe that measures it."""
    return ViewProbe("output_jump", OutputJump(save), saves=(save,))


def count_parameters(network: Network) -> dict[str, float]:
    """How many parameters are trained, and how many numbers are stored."""
    trained, stored = split_trainable(network)[0], eqx.filter(network, eqx.is_inexact_array)
    return {
        "trained": float(sum(a.size for a in jax.tree.leaves(trained))),
        "stored": float(sum(a.size for a in jax.tree.leaves(stored))),
    }


PARAMETERS = NetworkProbe("parameters", count_parameters)


def _tenth(steps: int) -> int:
    """Steps of a tenth of the budget, the last of which is the final performance."""
    return max(1, math.ceil(steps / 10))


def _start(steps: int) -> int:
    """The first two hundredths of the budget, where a drop shows."""
    return max(1, math.ceil(steps / 50))


def _treated(name: str) -> tuple[Event, ...]:
    treatment = ARMS[name]
    return () if treatment is None else (Intervene(treatment),)


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Fit each task's labels; at some, fork copies that go on with the same labels, and copies that get the next."""
    steps, points = config.steps_per_task, forks(config)
    events: list[Event] = []
    for done, (task, following) in enumerate(pairwise(tasks), 1):
        events += [
            Switch(task),
            Train(task, steps, record_every=_tenth(steps)),
            Evaluate(task, "train", samples=4_096),
            Probe(dead_units, on=task),
        ]
        if done not in points:
            continue
        names = ("control", "inject") if config.arms == "pair" else tuple(ARMS) if done == points[-1] else CORE
        events += [
            Probe(dormant_units, on=task),
            Probe(feature_rank, on=task, samples=2_048),
            Probe(weight_norm, on=task, samples=1),
            Save(f"before-{done}"),
        ]
        look = output_jump(f"before-{done}")
        same = [name for name in ("control", "inject", "placebo", "reset") if name in names]
        events += [
            Fork(
                {name: (*_treated(name), Probe(look, PARAMETERS, on=task, samples=512)) for name in same},
                then=(Train(task, _start(steps), record_every=_start(steps)),),
            ),
            Fork(
                {name: _treated(name) for name in names},
                then=(Switch(following), Train(following, steps, record_every=_tenth(steps))),
            ),
        ]
    return tuple(events)


SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (32,),
        "batch": (64,),
        "tasks": (2,),
        "steps_per_task": (20,),
        "seed": (0, 1),
    },
    "quick": {"width": (128,), "batch": (128,), "tasks": (18,), "steps_per_task": (750,), "seed": tuple(range(10))},
    "paper": {"seed": tuple(range(10))},
}
"""Preset -> the fields in which it differs from the defaults."""

PRESETS = {
    "smoke": "a few seconds, to see that everything works; its numbers mean nothing",
    "quick": "5,000 MNIST digits, width 128, 18 tasks, 10 seeds: about 20 minutes on two CPU cores",
    "paper": "5,000 MNIST digits, width 512, 30 tasks of 1,500 steps, 10 seeds: for a GPU",
}


def relabel_axes(preset: str) -> list[dict]:
    """Default and tuned Adam, every seed, all arms."""
    if preset not in SIZES:
        return []
    return [{**SIZES[preset], "adam_b2": (b2,), "adam_eps_root": (root,)} for b2, root in (DEFAULT, TUNED)]


def settings_axes(preset: str) -> list[dict]:
    """Around default Adam's setting, one field at a time; the middle of each axis is `relabel`'s own run."""
    if preset not in SIZES:
        return []
    sizes = {**SIZES[preset], "arms": ("pair",)}
    width, steps = (sizes.get(name, (getattr(Config, name),))[0] for name in ("width", "steps_per_task"))
    if preset == "quick":
        sizes["seed"] = tuple(range(5))
    rates = {**sizes, "learning_rate": (Config.learning_rate / 4, Config.learning_rate * 4)}
    if preset == "smoke":  # one program instead of five
        return [rates]
    return [
        {**sizes, "steps_per_task": (steps // 2, 2 * steps)},
        rates,
        {**sizes, "width": (width // 2, 2 * width)},
    ]


relabel = Experiment("relabel", Config, relabel_axes, stream, learner, script, source)
settings = Experiment("settings", Config, settings_axes, stream, learner, script, source)


# Q4: growth -------------------------------------------------------------------------------------------------------

GrowthArm = Literal["grow", "grow_whole", "large", "small"]


@dataclass(frozen=True)
class GrowthConfig:
    """One run of a network that grows half way, or of one that is small or large from the start."""

    arm: GrowthArm = "grow"
    small: int = 64
    large: int = 256
    data: str = "mnist_digits"
    batch: int = 512
    tasks: int = 30
    steps_per_task: int = 1_500  # of the large network; the others take as many as cost the same
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    seed: Lane[int] = 0

    def __post_init__(self):
        _check_config(self, ("small", "large", "batch", "tasks", "steps_per_task"))
        if self.tasks < 2:
            raise ValueError(f"tasks must be at least 2, not {self.tasks}: growth happens half way")


def growth_stream(config: GrowthConfig) -> Stream:
    """The same images with new labels for every task and lane."""
    return random_labels(images(config.data), tasks=config.tasks)


def growth_learner(config: GrowthConfig) -> Learner:
    """An MLP of two hidden stages, small unless the arm is the large one."""
    width = config.large if config.arm == "large" else config.small
    return supervised(network(images(config.data), width, width), adam(config))


def growing(config: GrowthConfig) -> Intervention:
    """The larger head for the small encoder; or a whole larger network beside the small one."""
    data = images(config.data)
    if config.arm == "grow_whole":
        return Inject(0, maker=network(data, config.large, config.large))
    return Inject(HEAD, maker=network(data, config.small, config.large))


@cache
def _update_flops(data: str, width: int, batch: int, intervention: Intervention | None) -> float:
    """Operations of one update of the network of this width, after the intervention if there is one."""
    arrays = images(data)
    made = supervised(network(arrays, width, width), optax.adam(1e-3))

    def begin(key) -> LearnerState:
        state = attach(made.init(key), made)
        return detach(state if intervention is None else intervention(state, key))

    state = eqx.filter_eval_shape(begin, jax.random.key(0))
    shapes, static = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    inputs = jax.ShapeDtypeStruct((batch, *arrays.input_shape), np.float32)
    rows = Batch(*cast(tuple, (inputs, jax.ShapeDtypeStruct((batch,), np.int32))))

    def update(shapes, rows):
        return eqx.filter(made.update(eqx.combine(shapes, static), rows, jax.random.key(0)), eqx.is_array)

    return count_flops(update, shapes, rows)


def growth_script(config: GrowthConfig, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Every task costs every arm the same operations; half way the growing ones grow."""

    def steps(width: int, intervention: Intervention | None = None) -> int:
        cost = _update_flops(config.data, width, config.batch, intervention)
        return max(1, round(config.steps_per_task * large / cost))

    large = _update_flops(config.data, config.large, config.batch, None)
    grows = config.arm in ("grow", "grow_whole")
    before = steps(config.large if config.arm == "large" else config.small)
    after = steps(config.small, growing(config)) if grows else before
    events: list[Event] = []
    for index, task in enumerate(tasks):
        if grows and index == len(tasks) // 2:
            events.append(Intervene(growing(config)))
        count = before if index < len(tasks) // 2 else after
        events += [Switch(task), Train(task, count, record_every=_tenth(count)), Evaluate(task, "train", samples=4_096)]
        if index in (0, len(tasks) - 1):
            events.append(Probe(PARAMETERS, on=task, samples=1))
    return tuple(events)


def growth_axes(preset: str) -> dict | list[dict]:
    """All arms, every seed."""
    if preset not in SIZES:
        return []
    sizes: dict[str, tuple] = {name: values for name, values in SIZES[preset].items() if name != "width"}
    if preset == "smoke":
        sizes |= {"small": (8,), "large": (32,)}
    if preset == "quick":
        sizes |= {"tasks": (12,), "steps_per_task": (400,), "seed": tuple(range(6))}
    arms = ("grow", "large") if preset == "smoke" else ("grow", "grow_whole", "large", "small")
    return {**sizes, "arm": arms}


growth = Experiment("growth", GrowthConfig, growth_axes, growth_stream, growth_learner, growth_script, source)


# What is measured -------------------------------------------------------------------------------------------------

STRUCTURE = ("data", "width", "batch", "tasks", "steps_per_task", "learning_rate")
"""What must be one setting for the claims about `relabel`; `settings` varies three of them."""

AXES = {"steps_per_task": "updates per task", "learning_rate": "learning rate", "width": "width"}

PROXIES = {"dead_units": "all", "dormant_units": "all", "feature_rank": None, "weight_norm": "all"}
"""Measurements at the fork that might stand for the gain -> their place, None where there is but one."""


def _relabel(frame: pl.DataFrame, adam: tuple[float, float]) -> pl.DataFrame:
    if "adam_b2" not in frame.columns:  # none but runs on Atari
        return frame.clear()
    mine = (pl.col("adam_b2") == adam[0]) & (pl.col("adam_eps_root") == adam[1])
    return frame.filter((pl.col("experiment") == "relabel") & mine)


def _varied(rows: pl.DataFrame) -> list[str]:
    """The fields of `STRUCTURE` in which these rows differ."""
    return [name for name in STRUCTURE if name in rows.columns and rows[name].n_unique() > 1]


def _performance(rows: pl.DataFrame, *, following: bool = True, whole: bool = False) -> pl.DataFrame:
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
    died = inside.filter(pl.col("metric") == "diverged").select(keys).unique()
    if not died.is_empty() and not found.is_empty():
        found = found.join(died, on=keys, how="anti")
        found = pl.concat([found, died.with_columns(value=pl.lit(found["value"].min(), pl.Float64))])
    return found.sort(keys)


def _difference(performance: pl.DataFrame, arm: str, other: str = "control") -> pl.DataFrame:
    """Columns run, seed, fork, value: the arm's performance less the other's, of the same copies' parent."""
    one, two = (performance.filter(pl.col("branch") == name).drop("branch") for name in (arm, other))
    paired = one.join(two, on=["run", "seed", "fork"], how="inner", suffix="_other")
    return paired.select("run", "seed", "fork", value=pl.col("value") - pl.col("value_other")).sort("fork", "seed")


def _at(differences: pl.DataFrame, fork: int) -> np.ndarray:
    """Of this fork, in the order of seeds."""
    return differences.filter(pl.col("fork") == fork).sort("seed")["value"].to_numpy()


def _mean(values: np.ndarray, level: float = 0.95) -> Interval:
    """Mean over seeds; bootstrap from six seeds on, Student's t below."""
    return mean_estimate(values, rng=np.random.default_rng(0), level=level)


def _unfit(rows: pl.DataFrame, arms: tuple[str, ...], name: str) -> Verdict | None:
    """Why these records of `relabel` cannot decide; None if they can."""
    varied = _varied(rows)
    if varied:
        return not_run(f"the runs differ in {', '.join(varied)}; claims are about one value of each")
    if rows.is_empty() or rows["tasks"][0] < 3:
        return not_run(f"needs runs of relabel with {name} and at least three tasks")
    performance = _performance(rows)
    for arm in arms:
        last = performance.filter((pl.col("fork") == rows["tasks"][0]) & (pl.col("branch") == arm))
        if last.height < 2:
            return not_run(f"needs at least two finished runs of relabel with {name} and the arm {arm}")
    return None


def _gain(rows: pl.DataFrame, arm: str, fork: int, other: str = "control") -> np.ndarray:
    return _at(_difference(_performance(rows), arm, other), fork)


def _last(rows: pl.DataFrame) -> int:
    return int(rows["tasks"][0])


def _extreme(values: pl.Series) -> Interval:
    """The value farthest from 0: an exact quantity, so its interval is a point."""
    found = values.to_numpy()
    farthest = float(found[np.argmax(np.abs(found))])
    return Interval(farthest, farthest, farthest, len(found))


# Claims -----------------------------------------------------------------------------------------------------------


def _named(name: str, found: Verdict) -> Verdict:
    return Verdict(found.outcome, found.measured, found.interval, found.n, found.reason, found.parts, name)


def _predictions_stay(frame: pl.DataFrame) -> Verdict:
    injected = (pl.col("branch") == "inject") & (pl.col("metric") == "output_jump")
    jumps = frame.filter(pl.col("experiment").is_in(["relabel", "settings"]) & injected)["value"]
    if jumps.is_empty():
        return not_run("needs runs of relabel or settings")
    return verdict(_extreme(jumps), Equivalent(0.0, 1e-5))


def _count_stays(frame: pl.DataFrame) -> Verdict:
    counted = (pl.col("metric") == "parameters") & (pl.col("place") == "trained")
    rows = frame.filter(pl.col("experiment").is_in(["relabel", "settings"]) & counted)
    keys = ["run", "task"]
    one, two = (rows.filter(pl.col("branch") == arm).select(*keys, "value") for arm in ("inject", "control"))
    paired = one.join(two, on=keys, how="inner", suffix="_control")
    if paired.is_empty():
        return not_run("needs runs of relabel or settings")
    return verdict(_extreme(paired["value"] - paired["value_control"]), Equivalent(0.0, 0.0))


def _restores(frame: pl.DataFrame) -> Verdict:
    rows = _relabel(frame, DEFAULT)
    return _unfit(rows, ("control", "inject"), "default Adam") or verdict(
        _mean(_gain(rows, "inject", _last(rows))), Above(0.0)
    )


def _inactive(frame: pl.DataFrame) -> Verdict:
    default, tuned = _relabel(frame, DEFAULT), _relabel(frame, TUNED)
    unfit = _unfit(tuned, ("control", "inject"), "tuned Adam") or _unfit(default, ("control", "inject"), "default Adam")
    if unfit is not None:
        return unfit
    margin = Equivalent(-2.0, 2.0)
    return all_of(
        [
            _named("tuned Adam, last fork", verdict(_mean(_gain(tuned, "inject", _last(tuned))), margin)),
            _named("default Adam, after task 1", verdict(_mean(_gain(default, "inject", 1)), margin)),
        ]
    )


def _no_drop(frame: pl.DataFrame) -> Verdict:
    rows = _relabel(frame, DEFAULT)
    unfit = _unfit(rows, ("inject", "reset"), "default Adam")
    if unfit is not None:
        return unfit
    first = _difference(_performance(rows, following=False), "inject", "reset")
    # A seed is one unit: the mean over its forks.
    by_seed = first.group_by("seed").agg(pl.col("value").mean()).sort("seed")["value"].to_numpy()
    return verdict(_mean(by_seed), Above(0.0))


def _final_performance(frame: pl.DataFrame) -> Verdict:
    rows = _relabel(frame, DEFAULT)
    unfit = _unfit(rows, ("inject", "reset", "shrink_perturb"), "default Adam")
    if unfit is not None:
        return unfit
    others = ("reset", "shrink_perturb")
    values = [_gain(rows, "inject", _last(rows), other) for other in others]
    estimates = [lambda level, v=v: _mean(v, level) for v in values]
    not_worse = [
        _named(f"inject less {other.replace('_', ' ')}", found)
        for other, found in zip(others, holm_verdicts(estimates, NonInferior(1.0)), strict=True)
    ]
    better = [
        _named(f"superior to {other.replace('_', ' ')} (reported, not claimed)", found)
        for other, found in zip(others, holm_verdicts(estimates, Above(0.0)), strict=True)
    ]
    decided = all_of(not_worse)
    return Verdict(decided.outcome, None, None, decided.n, decided.reason, (*not_worse, *better))


def _optimizer_reset(frame: pl.DataFrame) -> Verdict:
    rows = _relabel(frame, DEFAULT)
    return _unfit(rows, ("inject", "reset_all"), "default Adam") or verdict(
        _mean(_gain(rows, "inject", _last(rows), "reset_all")), Above(0.0)
    )


def _all_heads(frame: pl.DataFrame) -> Verdict:
    rows = _relabel(frame, DEFAULT)
    return _unfit(rows, ("inject", "train_all"), "default Adam") or verdict(
        _mean(_gain(rows, "inject", _last(rows), "train_all")), NonInferior(1.0)
    )


def _growth_accuracy(frame: pl.DataFrame) -> pl.DataFrame:
    """Accuracy in points at the end of every task: columns arm, seed, task, value."""
    rows = frame.filter((pl.col("experiment") == "growth") & (pl.col("metric") == "accuracy"))
    return rows.select("arm", "seed", "task", "tasks", "small", "large", value=100 * pl.col("value"))


def _growth_area(accuracy: pl.DataFrame, arm: str, other: str) -> np.ndarray:
    """Mean accuracy over all tasks, each as dear as any, of one arm less the other: (seeds,)."""
    finished = accuracy.group_by("arm", "seed").agg(pl.col("value").mean(), pl.len(), pl.col("tasks").first())
    finished = finished.filter(pl.col("len") == pl.col("tasks"))
    one, two = (finished.filter(pl.col("arm") == name).select("seed", "value") for name in (arm, other))
    paired = one.join(two, on="seed", how="inner", suffix="_other").sort("seed")
    return (paired["value"] - paired["value_other"]).to_numpy()


def _growth_pays(frame: pl.DataFrame) -> Verdict:
    accuracy = _growth_accuracy(frame) if "arm" in frame.columns else pl.DataFrame()
    if accuracy.is_empty():
        return not_run("needs runs of growth")
    if accuracy.select("small", "large", "tasks").n_unique() > 1 or accuracy["tasks"][0] < 3:
        return not_run("needs growth at one pair of widths, with at least three tasks")
    values = _growth_area(accuracy, "grow", "large")
    if len(values) < 2:
        return not_run("needs at least two finished runs of growth with the arms grow and large")
    found = verdict(_mean(values), Above(0.0))
    whole = _growth_area(accuracy, "grow_whole", "large")
    if len(whole) < 2:
        return found
    reported = _named("a whole network injected (reported, not claimed)", verdict(_mean(whole), Above(0.0)))
    return Verdict(found.outcome, found.measured, found.interval, found.n, found.reason, (reported,))


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
    rows = _relabel(frame, DEFAULT)
    unfit = _unfit(rows, ("control", "inject"), "default Adam")
    if unfit is not None:
        return unfit
    gains = _difference(_performance(rows), "inject").rename({"value": "gain"})
    parts = []
    for (name,), measured in _proxies(rows).partition_by("proxy", as_dict=True, maintain_order=True).items():
        both = measured.join(gains, on=["run", "seed", "fork"], how="inner")
        rho = association(
            both["value"].to_numpy(), both["gain"].to_numpy(), clusters=both["seed"], rng=np.random.default_rng(0)
        )
        parts.append(_named(f"|Spearman| of {name} and gain", verdict(_size(rho), Below(0.5))))
    return all_of(parts)


def _size(estimate: Interval) -> Interval:
    """The interval of an absolute value, from that of the value."""
    sizes = abs(estimate.low), abs(estimate.high)
    low = 0.0 if estimate.low <= 0 <= estimate.high else min(sizes)
    return Interval(abs(estimate.value), low, max(sizes), estimate.n, estimate.level)


def _along(frame: pl.DataFrame, axis: str) -> pl.DataFrame:
    """Gains at the last fork along one axis, default Adam: columns seed, setting, value. The middle is `relabel`'s."""
    middle = _relabel(frame, DEFAULT)
    others = frame.filter(pl.col("experiment") == "settings")
    if middle.is_empty() or others.is_empty() or _varied(middle):
        return pl.DataFrame()
    for name in STRUCTURE:
        if name != axis:
            others = others.filter(pl.col(name) == middle[name][0])
    rows = pl.concat([middle, others])
    columns = rows.select("run", "tasks", setting=pl.col(axis).cast(pl.Float64)).unique()
    gains = _difference(_performance(rows), "inject").join(columns, on="run", how="inner")
    return gains.filter(pl.col("fork") == pl.col("tasks")).select("seed", "setting", "value").sort("setting", "seed")


def _gain_follows(frame: pl.DataFrame) -> Verdict:
    if "tasks" not in frame.columns or (frame["tasks"] < 3).any():
        return not_run("needs at least three tasks")
    expected = {"steps_per_task": Above(0.0), "learning_rate": Above(0.0), "width": Below(0.0)}
    parts = []
    for axis, expectation in expected.items():
        gains = _along(frame, axis)
        if gains.is_empty() or gains["setting"].n_unique() < 3:
            parts.append(_named(AXES[axis], not_run("needs runs of relabel and of settings on both sides of it")))
            continue
        # Only seeds that every setting has: a seed is resampled with all its settings.
        common = gains.group_by("seed").agg(pl.col("setting").n_unique() == gains["setting"].n_unique())
        gains = gains.join(common.filter(pl.col("setting")).select("seed"), on="seed", how="semi")
        rho = association(gains["setting"], gains["value"], clusters=gains["seed"], rng=np.random.default_rng(0))
        parts.append(_named(f"Spearman of {AXES[axis]} and gain", verdict(rho, expectation)))
    return all_of(parts)


CLAIMS = (
    Claim(
        "INJ-1",
        "Injection does not change predictions: the largest output jump of the online network over all forks is "
        "at most 1e-5",
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
        "INJ-10",
        "Growth is compute efficient: mean accuracy over tasks of the network grown half way less that of the large "
        "one, at equal operations for every task, is above 0",
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
)


# Figures ----------------------------------------------------------------------------------------------------------

ADAMS = {DEFAULT: "default Adam", TUNED: "tuned Adam"}


def _with_adam(frame: pl.DataFrame) -> pl.DataFrame:
    """Runs of `relabel` with a column `adam` in words."""
    parts = [_relabel(frame, setting).with_columns(adam=pl.lit(name)) for setting, name in ADAMS.items()]
    return pl.concat(parts)


def _accuracy_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    rows = _with_adam(frame).filter((pl.col("metric") == "accuracy") & (pl.col("branch") == ""))
    if rows.is_empty() or _varied(rows):
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
        rows = _relabel(frame, setting)
        if rows.is_empty() or _varied(rows):
            continue
        performance = _performance(rows)
        for arm in CORE[1:]:
            gains = _difference(performance, arm)
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

    rows = _relabel(frame, DEFAULT)
    if rows.is_empty() or _varied(rows):
        return None
    performance = _performance(rows)
    arms = [arm for arm in ARMS if arm != "control"]
    gains = pl.concat([_difference(performance, arm).with_columns(branch=pl.lit(arm)) for arm in arms])
    last = gains.filter(pl.col("fork") == _last(rows))
    if last.is_empty():
        return None
    there = [arm for arm in arms if arm in set(last["branch"])]
    return intervals(
        last, by=("branch",), settings=_looks(there), value_label="gain over control (points)", reference=0.0
    )


def _learning_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    rows = _relabel(frame, DEFAULT)
    if rows.is_empty() or _varied(rows):
        return None
    last = _last(rows)
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
    if rows.is_empty() or _varied(rows):
        return None
    named = pl.when(pl.col("place") == "hidden1").then(pl.lit("encoder")).otherwise(pl.lit("head"))
    rows = rows.with_columns(pl.col("value") * 100, pl.col("task") + 1, place=named)
    return curves(rows, x="task", by=("place",), panel="adam", x_label="task", y_label="dead units (%)")


def _settings_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals

    parts = [
        gains.with_columns(axis=pl.lit(name), level=pl.col("setting").map_elements(lambda v: f"{v:g}", pl.String))
        for axis, name in AXES.items()
        if not (gains := _along(frame, axis)).is_empty()
    ]
    if not parts:
        return None
    drawn = pl.concat(parts).with_columns(setting=pl.concat_str(["axis", "level"], separator=" "))
    return intervals(drawn, by=("setting",), value_label="gain over control at the last fork (points)", reference=0.0)


def _growth_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    accuracy = _growth_accuracy(frame) if "arm" in frame.columns else pl.DataFrame()
    if accuracy.is_empty() or accuracy.select("small", "large", "tasks").n_unique() > 1:
        return None
    return curves(
        accuracy.with_columns(pl.col("task") + 1),
        x="task",
        by=("arm",),
        x_label="task (each as dear as any, for every arm)",
        y_label="accuracy (%)",
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
)


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """The gains at the first and the last fork in words, and where the dead units were."""
    told = []
    for setting, name in ADAMS.items():
        rows = _relabel(frame, setting)
        if _unfit(rows, ("control", "inject"), name) is not None:
            continue
        last = _last(rows)
        early, late = (_mean(_gain(rows, "inject", fork)) for fork in (1, last))
        told.append(
            f"{name[0].upper()}{name[1:]}: injection gains {early.value:+.1f} points on the next task after task 1 and "
            f"{late.value:+.1f} after task {last} (95 % [{late.low:.1f}, {late.high:.1f}], {late.n} seeds)."
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
    return tuple(told)


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
    experiments=(relabel, settings, growth, injection_atari.atari),
    claims=CLAIMS,
    figures=(*FIGURES, *injection_atari.FIGURES),
    presets={**PRESETS, **injection_atari.PRESETS},
    notes=(
        "The paper's experiments are on Atari; these are supervised, where loss of plasticity is known to happen.",
        "Copies share every draw with the untreated one. A copy that diverged counts with the worst value of any.",
        "Of several claims the paper's own numbers were not seen, only their direction: docs/studies/injection.md.",
    ),
    summary=summary,
)
