"""Does a network stay able to learn when its targets keep changing?

Lyle, Zheng, Nikishin, Avila Pires, Pascanu and Dabney: Understanding plasticity in neural networks, ICML 2023
(arXiv:2303.01486). Case study 1, optimiser instability: the same images get new random labels after every task. With
Adam's defaults the second moment lags a thousand steps behind the abrupt change of targets, updates grow several times
too large, and units die; with a short second moment and a constant inside the root they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optax
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
    not_run,
    paired_difference,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.interventions import Intervention, Redo, Reset, ShrinkPerturb
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment, Study, StudyFigure
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import Norm, mlp
from neoteny.probes import dead_units, dormant_units, effective_rank, sharpness, weight_norm, weight_rank
from neoteny.regularizers import L2, L2ToInit, NoPenalty, Regularizer
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.images import whole
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Stream, Task, random_labels
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Reached, Switch, Train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAM_EPS = 1e-9
"""Adam's epsilon outside the root (section 3.1 of the paper)."""


@dataclass(frozen=True)
class Remedy:
    """What is done about loss of plasticity: to the network, to the loss, or at the end of every task."""

    norm: Norm = Norm.NONE
    penalty: Callable[[float], Regularizer] = field(default=lambda _: NoPenalty())
    at_task_end: Intervention | None = None


REMEDIES = {
    "none": Remedy(),
    "reset_last": Remedy(at_task_end=Reset(stages=("head",))),
    "shrink_perturb": Remedy(at_task_end=ShrinkPerturb(shrink=0.8, perturb=0.2)),
    "redo": Remedy(at_task_end=Redo(tau=0.025)),
    "layer_norm": Remedy(norm=Norm.LAYER),
    "l2": Remedy(penalty=L2),
    "l2_to_init": Remedy(penalty=L2ToInit),
}
"""Sokar et al. 2023 (redo), Kumar et al. 2023 (l2_to_init), and section 5 of the paper for the others."""

RemedyName = Literal["none", "reset_last", "shrink_perturb", "redo", "layer_norm", "l2", "l2_to_init"]


@dataclass(frozen=True)
class Config:
    """One run of label re-randomisation."""

    data: str = "mnist_digits"
    width: int = 512
    depth: int = 2
    batch: int = 256
    tasks: int = 15
    steps_per_task: int = 1_000
    until_fitted: bool = False  # a task ends once a whole epoch is fitted; steps_per_task is then the bound
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    remedy: RemedyName = "none"
    l2: Lane[float] = 1e-5  # coefficient of the remedies l2 and l2_to_init
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("width", "depth", "batch", "tasks", "steps_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.adam_b2 < 1:
            raise ValueError(f"adam_b2 must be in [0, 1), not {self.adam_b2}")
        for name in ("adam_eps_root", "l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")


SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (16,),
        "batch": (64,),
        "tasks": (2,),
        "steps_per_task": (20,),
        "seed": (0, 1),
    },
    "demo": {"width": (128,), "batch": (128,), "tasks": (10,), "steps_per_task": (500,), "seed": tuple(range(4))},
    "quick": {"seed": tuple(range(5))},
    "quick_full": {"width": (1024,), "batch": (512,), "tasks": (20,), "seed": tuple(range(5))},
    "paper": {"width": (1024,), "batch": (512,), "tasks": (30,), "steps_per_task": (3_000,), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults, for all experiments."""

PRESETS = {
    "smoke": "a few seconds, to see that everything works; its numbers mean nothing",
    "demo": "5,000 MNIST digits, width 128, 4 seeds: about three minutes on two CPU cores",
    "quick": "5,000 MNIST digits, width 512, 5 seeds: about an hour on two CPU cores",
    "quick_full": "the paper's width of 1024, 20 tasks, 5 seeds: several hours on two CPU cores",
    "paper": "width 1024, batch 512, 30 tasks of 3,000 steps (90,000 in all), for a GPU",
}

DEFAULT, TUNED = (0.999, 0.0), (0.9, 1e-3)
"""(adam_b2, adam_eps_root) of Adam as it comes, and as the paper tunes it."""

OPTIMIZERS = {"adam_b2": (0.999, 0.9), "adam_eps_root": (0.0, 1e-3)}
"""The 2 x 2 factorial of the paper's two changes to Adam; the first of each is the default."""


_whole = cache(whole)


def images(name: str) -> Arrays:
    """The images whose labels are drawn: all there are, since nothing is asked of images not seen."""
    return _whole(load(name))


def stream(config: Config) -> Stream:
    """The same images, with labels drawn anew for every task and lane."""
    return random_labels(images(config.data), tasks=config.tasks)


def learner(config: Config) -> Learner:
    """An MLP trained with Adam; update = rate * m / (sqrt(v + eps_root) + eps)."""
    data, remedy = images(config.data), REMEDIES[config.remedy]
    return supervised(
        mlp(data.input_shape, [config.width] * config.depth, data.classes or 0, norm=remedy.norm),
        optax.adam(config.learning_rate, b2=config.adam_b2, eps=ADAM_EPS, eps_root=config.adam_eps_root),
        regularizer=remedy.penalty(config.l2),
    )


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Fit each task's labels, look at the network when the budget is spent, then draw new labels."""
    epoch = math.ceil(len(tasks[0].rows("train")) / config.batch)
    until = Reached("accuracy", 1.0, window=epoch) if config.until_fitted else None
    remedy = REMEDIES[config.remedy].at_task_end
    events: list[Event] = []
    for task in tasks:
        events += [
            Switch(task),
            Train(task, config.steps_per_task, until=until),
            Evaluate(task, "train", samples=4_096),
            Probe(dead_units, dormant_units, on=task),  # on all rows: a sample overstates
            Probe(effective_rank, on=task, samples=2_048),
            Probe(weight_norm, weight_rank, on=task, samples=1),
            Probe(sharpness, on=task, samples=512),
        ]
        if remedy is not None:
            events.append(Intervene(remedy, on=task))
    return tuple(events)


def source(config: Config) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


def case1_axes(preset: str) -> dict | list[dict]:
    """Four Adam settings, every seed; only the default and the tuned one where that is dear."""
    if preset == "quick_full":
        return [{**SIZES[preset], "adam_b2": (b2,), "adam_eps_root": (root,)} for b2, root in (DEFAULT, TUNED)]
    return {**SIZES[preset], **OPTIMIZERS}


def remedies_axes(preset: str) -> dict | list[dict]:
    """Default Adam with every remedy; `none` is case 1's own default setting. Not where width makes it dear."""
    if preset == "quick_full":
        return []
    names = ("layer_norm", "redo") if preset in ("smoke", "demo") else tuple(REMEDIES)[1:]
    return {**SIZES[preset], "remedy": names}


case1 = Experiment("case1", Config, case1_axes, stream, learner, script, source)
remedies = Experiment("remedies", Config, remedies_axes, stream, learner, script, source)


# Claims -----------------------------------------------------------------------------------------------------------

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


def _case1(frame: pl.DataFrame) -> pl.DataFrame:
    """The 2 x 2 factorial, without remedies."""
    return frame.filter((pl.col("experiment") == "case1") & (pl.col("remedy") == "none"))


def _varied(rows: pl.DataFrame) -> list[str]:
    """The fields of `STRUCTURE` in which these rows differ."""
    return [name for name in STRUCTURE if name in rows.columns and rows[name].n_unique() > 1]


def _by_task(frame: pl.DataFrame, setting: tuple[float, float], metric: str, place: str = "") -> dict[int, np.ndarray]:
    """A metric at the end of every task: seed -> (tasks,), NaN where a diverged run has none; finished runs only."""
    rows = _case1(frame).filter((pl.col("adam_b2") == setting[0]) & (pl.col("adam_eps_root") == setting[1]))
    found: dict[int, np.ndarray] = {}
    for (seed,), run in rows.partition_by("seed", as_dict=True, maintain_order=True).items():
        scored = run.filter(pl.col("metric") == "accuracy")["task"].n_unique()
        if scored < run["tasks"][0]:
            continue
        values = np.full(scored, np.nan)
        chosen = run.filter((pl.col("metric") == metric) & (pl.col("place") == place))
        values[chosen["task"].to_numpy()] = chosen["value"].to_numpy()
        found[seed] = values
    return found


def _together(*columns: dict[int, np.ndarray]) -> list[np.ndarray]:
    """(seeds, tasks) of each, for the seeds that all have, in one order."""
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    return [np.array([column[seed] for seed in seeds]) for column in columns]


def _accuracy(frame: pl.DataFrame, setting: tuple[float, float]) -> dict[int, np.ndarray]:
    """Accuracy in percent at the end of every task: seed -> (tasks,). A diverged run is scored by its last finite
    network.
    """
    return {seed: 100 * values for seed, values in _by_task(frame, setting, "accuracy").items()}


def _last_third(values: np.ndarray) -> np.ndarray:
    """Mean over the last third of tasks, for each seed."""
    third = values.shape[1] // 3
    return np.nanmean(values[:, -third:], axis=1)


def _change(values: np.ndarray) -> np.ndarray:
    """Last third of tasks less first third, for each seed."""
    third = values.shape[1] // 3
    return _last_third(values) - np.nanmean(values[:, :third], axis=1)


def _unfit(frame: pl.DataFrame, *settings: tuple[float, float]) -> Verdict | None:
    """Why these records cannot decide a claim about these Adam settings; None if they can."""
    rows = _case1(frame)
    varied = _varied(rows)
    if varied:
        return not_run(f"the runs differ in {', '.join(varied)}; claims are about one value of each")
    for setting in settings:
        accuracy = _accuracy(frame, setting)
        if not accuracy:
            return not_run(f"needs finished runs of case1 with {SETTINGS[setting]}")
        if min(len(values) for values in accuracy.values()) < 3:
            return not_run("needs at least three tasks")
    return None


def _default_collapses(frame: pl.DataFrame) -> Verdict:
    unfit = _unfit(frame, DEFAULT)
    if unfit is not None:
        return unfit
    (default,) = _together(_accuracy(frame, DEFAULT))
    return verdict(mean_estimate(_change(default)), Below(-10.0))


def _tuned_does_not(frame: pl.DataFrame) -> Verdict:
    unfit = _unfit(frame, DEFAULT, TUNED)
    if unfit is not None:
        return unfit
    default, tuned = _together(_accuracy(frame, DEFAULT), _accuracy(frame, TUNED))
    return all_of(
        [
            _named("tuned Adam's change is above -5 points", verdict(mean_estimate(_change(tuned)), NonInferior(5.0))),
            _named("tuned less default", verdict(paired_difference(_change(tuned), _change(default)), Above(0.0))),
        ]
    )


def _dead_units(frame: pl.DataFrame) -> Verdict:
    unfit = _unfit(frame, DEFAULT, TUNED)
    if unfit is not None:
        return unfit
    default, tuned, accuracy = _together(
        _by_task(frame, DEFAULT, "dead_units", "all"),
        _by_task(frame, TUNED, "dead_units", "all"),
        _accuracy(frame, DEFAULT),
    )
    # Probes of a diverged run are not recorded: it is missing here, and n says how many seeds are left.
    more = verdict(paired_difference(default[:, -1], tuned[:, -1]), Above(0.2))
    seeds = np.repeat(np.arange(len(default)), default.shape[1])
    kept = ~np.isnan(default.ravel())
    together = association(
        default.ravel()[kept], accuracy.ravel()[kept], clusters=seeds[kept], rng=np.random.default_rng(0)
    )
    return all_of(
        [
            _named("dead share at the end, default less tuned", more),
            _named("Spearman of dead share and accuracy over default Adam's tasks", verdict(together, Below(0.0))),
        ]
    )


def _which_change(frame: pl.DataFrame) -> Verdict:
    unfit = _unfit(frame, *SETTINGS)
    if unfit is not None:
        return unfit
    none, b2, root, both = (_last_third(v) for v in _together(*(_accuracy(frame, setting) for setting in FACTORIAL)))
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


# Figures ----------------------------------------------------------------------------------------------------------


def _measured(frame: pl.DataFrame, metric: str, place: str | None, scale: float) -> pl.DataFrame:
    """One row a run and task, with whether the run diverged and its panel; `place` None where there is only one."""
    diverged = frame.filter(pl.col("metric") == "diverged")["run"].unique().to_list()
    varied = _varied(frame)
    rows = frame.filter(pl.col("metric") == metric)
    if place is not None:
        rows = rows.filter(pl.col("place") == place)
    panel = pl.concat_str([pl.lit(f"{name} ") + pl.col(name).cast(pl.String) for name in varied], separator=", ")
    return rows.with_columns(
        pl.col("value") * scale,
        (pl.col("task") + 1).alias("task"),
        pl.col("run").is_in(diverged).alias("diverged"),
        (panel if varied else pl.lit("")).alias("panel"),
    )


def _draw(rows: pl.DataFrame, by: tuple[str, ...], labels: dict[tuple, str], **labelled: Any) -> Figure:
    """A line for each setting against the task, in a panel for each structure."""
    from neoteny.report.figures import curves, settings

    panel = "panel" if rows["panel"].n_unique() > 1 else None
    looks = settings(rows, by, labels)
    return curves(rows, x="task", by=by, panel=panel, diverged="diverged", settings=looks, **labelled)


def _curve(
    metric: str, y_label: str, *, place: str | None = "", scale: float = 1.0, y_log: bool = False, chance: bool = False
) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        rows = _measured(_case1(frame), metric, place, scale)
        if rows.is_empty():
            return None
        ten_classes = chance and set(rows["data"]) <= {"mnist_digits", "digits", "mnist", "fashion_mnist", "cifar10"}
        return _draw(
            rows,
            ("adam_b2", "adam_eps_root"),
            SETTINGS,
            x_label="task (labels redrawn before each)",
            y_label=y_label,
            y_log=y_log,
            references={"chance": 10.0} if ten_classes else None,
        )

    return draw


def _remedies_figure(
    metric: str, y_label: str, place: str = "", scale: float = 1.0
) -> Callable[[pl.DataFrame], Figure | None]:
    def draw(frame: pl.DataFrame) -> Figure | None:
        default = (pl.col("adam_b2") == DEFAULT[0]) & (pl.col("adam_eps_root") == DEFAULT[1])
        rows = _measured(frame.filter(default), metric, place, scale)
        if rows["remedy"].n_unique() < 2:
            return None
        labels = {(name,): name.replace("_", " ") for name in REMEDIES}
        return _draw(rows, ("remedy",), labels, x_label="task", y_label=y_label)

    return draw


FIGURES = (
    StudyFigure(
        "accuracy",
        "Accuracy at the end of each task",
        "How well the labels of each task are fitted when its budget of steps is spent, on 4,096 images. "
        "A network that stays able to learn gives a flat line.",
        _curve("accuracy", "accuracy (%)", scale=100, chance=True),
    ),
    StudyFigure(
        "dead_units",
        "Dead units",
        "Share of hidden units that are exactly zero on all training images, mean of the hidden stages.",
        _curve("dead_units", "dead units (%)", place="all", scale=100),
    ),
    StudyFigure(
        "effective_rank",
        "Effective rank of the features",
        "Number of singular values of the last hidden stage's output that make up 99 % of their sum "
        "(Kumar et al. 2021).",
        _curve("effective_rank", "effective rank", place=None),
    ),
    StudyFigure(
        "weight_norm",
        "Weight norm",
        "Global L2 norm of all kernels.",
        _curve("weight_norm", "weight norm", place="all"),
    ),
    StudyFigure(
        "sharpness",
        "Sharpness",
        "Largest eigenvalue of the Hessian of the training loss on 512 images of the task just learned, by Lanczos.",
        _curve("sharpness", "largest Hessian eigenvalue", place="all", y_log=True),
    ),
    StudyFigure(
        "remedies",
        "Remedies under default Adam",
        "Accuracy at the end of each task with what is done about loss of plasticity; none is default Adam above.",
        _remedies_figure("accuracy", "accuracy (%)", scale=100),
    ),
    StudyFigure(
        "remedies_dead_units",
        "Dead units under the remedies",
        "Share of dead units, as above.",
        _remedies_figure("dead_units", "dead units (%)", "all", 100),
    ),
)


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each Adam setting, and what the claims alone would hide."""
    told, starts = [], {}
    if _varied(_case1(frame)):
        return (f"Several settings of {', '.join(_varied(_case1(frame)))}: the figures have a panel for each.",)
    for setting, name in SETTINGS.items():
        if _unfit(frame, setting) is not None:
            continue
        accuracy, dead = _together(_accuracy(frame, setting), _by_task(frame, setting, "dead_units", "all"))
        first = starts[setting] = float(np.nanmean(accuracy[:, : accuracy.shape[1] // 3]))
        told.append(
            f"{name[0].upper()}{name[1:]}: {first:.0f} % of labels fitted in the first third of tasks, "
            f"{float(np.nanmean(_last_third(accuracy))):.0f} % in the last, "
            f"{100 * float(np.nanmean(dead[:, -1])):.0f} % of units dead at the end."
        )
    if DEFAULT in starts and TUNED in starts and starts[TUNED] < 0.5 * starts[DEFAULT]:
        told.append(
            "Mind the level: tuned Adam is stable here, but fits far fewer labels than default Adam does at first. "
            "With eps_root = 1e-3 inside the root, updates are small once gradients are, so a budget this short is not "
            "enough for it."
        )
    return tuple(told)


STUDY = Study(
    name="plasticity",
    title="Loss of plasticity under changing labels",
    paper="Lyle, Zheng, Nikishin, Avila Pires, Pascanu, Dabney: Understanding plasticity in neural networks, ICML 2023",
    paper_url="https://arxiv.org/abs/2303.01486",
    question=(
        "The same images get new random labels, again and again. Does the network fit the last labels as well as the "
        "first, and if it does not, is Adam to blame?"
    ),
    experiments=(case1, remedies),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "The paper gives neither the batch size nor the number of steps between label resets; those here are choices.",
        "A diverged run counts with its last finite network: none is dropped.",
    ),
    summary=summary,
)
