"""Q-learning on classification MDPs: which design choices and interventions keep an agent plastic (sections 4 and 5).

The states are classes, what is seen of one is an image, and targets move with the network. The probe task is fitted by
copies of the network along the way; what it ends at, less what it ended at in the beginning, is the loss of plasticity.
The statistics that might explain it are measured beside it (case study 3), and the width sweep asks whether size helps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import optax

from neoteny.interventions import Intervention, LeaveFollowers, Redo, Reset, ResetOptimizer, ShrinkPerturb
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import Learner
from neoteny.learners.values import TwoHot, Values
from neoteny.networks import Maker, Norm, cnn, mlp, resnet, vit, with_spectral_norm
from neoteny.probes import (
    ViewProbe,
    dead_units,
    dormant_units,
    effective_rank,
    feature_rank,
    numerical_rank,
    output_sharpness,
    view_plasticity,
    weight_norm,
    weight_rank,
)
from neoteny.regularizers import L2, L2ToInit, NoPenalty, Regularizer
from neoteny.studies.plasticity.shared import (
    DISCOUNT,
    SQUARED,
    TARGET_PERIOD,
    check_positive,
    check_probability,
    pooled,
    source,
)
from neoteny.tasks.classification import ClassificationMDP, Goal, Labels
from neoteny.tasks.environments import EnvironmentTask, environments
from neoteny.tasks.streams import Stream
from neoteny.training.events import Event, Intervene, Probe, Switch, Train


@dataclass(frozen=True)
class Treatment:
    """What is done about loss of plasticity: to the network, to the loss, or at every copy of the target network."""

    norm: Norm = Norm.NONE
    spectral: bool = False
    penalty: Callable[[Any], Regularizer] = field(default=lambda _: NoPenalty())
    at_target: Intervention | None = None


TREATMENTS = {
    "none": Treatment(),
    "layer_norm": Treatment(norm=Norm.LAYER),
    "reset_last": Treatment(at_target=LeaveFollowers(Reset(stages=("head",)))),
    "shrink_perturb": Treatment(at_target=LeaveFollowers(ShrinkPerturb(shrink=0.8, perturb=0.2))),
    "weight_decay": Treatment(penalty=L2),
    "spectral_norm": Treatment(spectral=True),
    "reset_optimizer": Treatment(at_target=ResetOptimizer()),
    "redo": Treatment(at_target=LeaveFollowers(Redo(tau=0.025))),
    "l2_to_init": Treatment(penalty=L2ToInit),
}
"""Section 5 of the paper; Sokar et al. 2023 (redo) and Kumar et al. 2023 (l2_to_init) beside it.

Interventions leave the target network as it is: with both changed, nothing of what was learned would be left.
"""

TreatmentName = Literal[
    "none", "layer_norm", "reset_last", "shrink_perturb", "weight_decay", "spectral_norm", "reset_optimizer", "redo",
    "l2_to_init",
]  # fmt: skip
NetworkName = Literal["mlp", "cnn", "resnet18", "vit"]

FIRST_DENSE = {"mlp": "hidden1", "cnn": "dense1"}
"""The stage with the first linear layer, whose norm spectral normalisation holds."""

BINS = 51
"""Of the two-hot support from -1 to 1 / (1 - discount); the paper does not give them."""


@dataclass(frozen=True)
class AgentConfig:
    """One agent on one classification MDP."""

    data: str = "mnist_digits"
    pool: int = 1  # side of the squares of pixels that are averaged
    labels: Literal["true", "random"] = "true"
    goal: Literal["dense", "sparse"] = "dense"
    network: NetworkName = "mlp"
    width: int = 512  # of the MLP
    treatment: TreatmentName = "none"
    output: Literal["scalar", "two_hot"] = "scalar"
    iterations: int = 100
    updates: int = 1_000  # of an iteration; one environment step each
    batch: int = 128
    capacity: int = 10_000
    epsilon: float = 0.1
    target_period: int = TARGET_PERIOD
    optimizer: Literal["adam", "sgd"] = "adam"
    probe_every: int = 5  # iterations
    probe_targets: int = 10
    probe_steps: int = 2_000
    probe_samples: int = 2_048  # inputs from the replay
    learning_rate: Lane[float] = 1e-3
    l2: Lane[float] = 1e-5  # coefficient of weight_decay and l2_to_init
    seed: Lane[int] = 0

    def __post_init__(self):
        check_positive(
            self, "pool", "width", "iterations", "updates", "batch", "capacity", "target_period", "probe_every",
            "probe_targets", "probe_steps", "probe_samples", "learning_rate",
        )  # fmt: skip
        check_probability(self, "epsilon")
        if not self.l2 >= 0:
            raise ValueError(f"l2 must not be negative, not {self.l2}")
        if self.iterations % self.probe_every:
            raise ValueError(
                f"iterations ({self.iterations}) must be a multiple of probe_every ({self.probe_every}): the last "
                "probe is at the end"
            )
        treatment = TREATMENTS[self.treatment]
        if (treatment.spectral or treatment.norm is not Norm.NONE) and self.network not in FIRST_DENSE:
            raise ValueError(f"treatment {self.treatment} is for the networks mlp and cnn, not for {self.network}")


def values(config: AgentConfig) -> Values:
    """What the outputs stand for."""
    return TwoHot(-1.0, 1 / (1 - DISCOUNT), BINS) if config.output == "two_hot" else SQUARED


def maker(config: AgentConfig) -> Maker:
    """The networks of the paper's appendix A; pooling of the CNN is a choice."""
    data, treatment = pooled(config.data, config.pool), TREATMENTS[config.treatment]
    shape, outputs = data.input_shape, values(config).outputs(data.classes or 0)
    match config.network:
        case "mlp":
            made: Maker = mlp(shape, [config.width] * 2, outputs, norm=treatment.norm)
        case "cnn":
            made = cnn(shape, outputs, channels=(64, 64), kernels=(5, 3), dense=(256, 256), norm=treatment.norm)
        case "resnet18":
            made = resnet(shape, outputs, depth=18)
        case "vit":
            made = vit(shape, outputs)
    return with_spectral_norm(made, (FIRST_DENSE[config.network],)) if treatment.spectral else made


def stream(config: AgentConfig) -> Stream:
    """One MDP; random labels are drawn for every lane and stay as they are."""
    return environments([ClassificationMDP(pooled(config.data, config.pool), Labels(config.labels), Goal(config.goal))])


def learner(config: AgentConfig) -> Learner:
    """DQN with Adam or SGD."""
    optimizer = optax.adam(config.learning_rate) if config.optimizer == "adam" else optax.sgd(config.learning_rate)
    return dqn(
        maker(config),
        optimizer,
        double=False,
        values=values(config),
        target_period=config.target_period,
        regularizer=TREATMENTS[config.treatment].penalty(config.l2),
    )


@dataclass(frozen=True)
class ProbeTask:
    """The plasticity probe of a configuration: equal ones share one compiled program."""

    targets: int
    steps: int
    batch_size: int
    fresh: bool

    def __call__(self, view, batch, key) -> dict[str, Any]:
        return view_plasticity(
            view, batch, key, targets=self.targets, steps=self.steps, batch_size=self.batch_size, fresh=self.fresh
        )


UNIT_SAMPLES = 5_000
"""Observations on which an MLP's dead units are counted, since fewer overstate. The feature maps of other networks are
too large for so many.
"""


def looks(config: AgentConfig, task: EnvironmentTask, *, last: bool = False) -> tuple[Event, ...]:
    """The probe task, and what might explain its result; the last time beside a fresh network on the same targets."""
    fitted = ProbeTask(config.probe_targets, config.probe_steps, config.batch, fresh=last)
    counted = UNIT_SAMPLES if config.network == "mlp" else config.probe_samples
    return (
        Probe(dead_units, dormant_units, on=task, samples=counted),
        Probe(feature_rank, effective_rank, numerical_rank, on=task, samples=config.probe_samples),
        Probe(weight_norm, weight_rank, on=task, samples=1),
        Probe(output_sharpness, on=task, samples=min(512, config.probe_samples)),
        Probe(ViewProbe("plasticity", fitted), on=task, samples=config.probe_samples),
    )


def script(config: AgentConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Train; look after the first update, before which there is no experience, and every so many iterations.

    An intervention follows every copy of the target network; what is due at the same update is measured before it.
    """
    (task,) = tasks
    end, intervention = config.iterations * config.updates, TREATMENTS[config.treatment].at_target
    looked = set(range(0, end + 1, config.probe_every * config.updates)) - {0}
    changed = set() if intervention is None else set(range(config.target_period, end, config.target_period))
    events: list[Event] = [Switch(task), Train(task, 1, record_every=1), *looks(config, task)]
    before = 1
    for at in sorted(looked | changed):
        if at > before:
            events.append(Train(task, at - before, record_every=config.updates))
        if at in looked:
            events += looks(config, task, last=at == end)
        if at in changed and intervention is not None:
            events.append(Intervene(intervention, on=task))
        before = at
    return tuple(events)


# Presets ----------------------------------------------------------------------------------------------------------

SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (16,),
        "iterations": (2,),
        "updates": (20,),
        "probe_every": (2,),
        "batch": (16,),
        "capacity": (200,),
        "target_period": (20,),
        "probe_targets": (2,),
        "probe_steps": (10,),
        "probe_samples": (64,),
        "seed": (0, 1),
    },
    "quick": {
        "width": (128,),
        "iterations": (20,),
        "probe_every": (10,),
        "probe_targets": (3,),
        "probe_steps": (1_000,),
        "seed": tuple(range(5)),
    },
    "paper": {"seed": tuple(range(5))},
    "paper_long": {"iterations": (1_000,), "probe_every": (50,), "data": ("mnist", "cifar10"), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults."""

MAIN = ("layer_norm", "reset_last", "shrink_perturb", "weight_decay", "spectral_norm", "reset_optimizer")
"""What the paper compares with doing nothing."""

EASY_AND_HARD = ("true", "random")

SGD = {"optimizer": ("sgd",), "learning_rate": (1e-2,)}
"""The other optimiser; the paper does not give its learning rate."""


def interventions_axes(preset: str) -> list[dict]:
    """Every treatment alone, and two-hot outputs alone; in `paper` on both data sets and all four networks, in
    `paper_long` with the MLP for a million updates, as in the paper's appendix.
    """
    if preset not in SIZES:
        return []
    sizes = SIZES[preset]
    if preset == "smoke":
        return [{**sizes, "treatment": ("none", "reset_last")}]
    if preset == "paper_long":
        return [{**sizes, "treatment": ("none", *MAIN)}, {**sizes, "output": ("two_hot",)}]
    alone = {**sizes, "treatment": ("none", *MAIN), "labels": EASY_AND_HARD}
    two_hot = {**sizes, "output": ("two_hot",), "labels": EASY_AND_HARD}
    if preset == "quick":
        return [alone, two_hot]
    beside = {**alone, "treatment": ("none", *MAIN, "redo", "l2_to_init")}
    bare = tuple(name for name in (*MAIN, "l2_to_init", "none") if name not in ("layer_norm", "spectral_norm"))
    both = {"data": ("mnist", "cifar10")}
    return [
        {**beside, **both, "network": ("mlp", "cnn")},
        {**alone, **both, "network": ("resnet18", "vit"), "treatment": bare},
        {**two_hot, **both, "network": ("mlp", "cnn", "resnet18", "vit")},
    ]


def combined_axes(preset: str) -> dict | list[dict]:
    """Two-hot outputs with every other treatment; in `quick` with layer norm, the paper's other recommendation."""
    if preset not in ("quick", "paper"):
        return []
    sizes = {**SIZES[preset], "output": ("two_hot",), "treatment": MAIN}
    if preset == "quick":
        return {**sizes, "treatment": ("layer_norm",), "seed": (0, 1, 2)}
    both = {"data": ("mnist", "cifar10"), "labels": EASY_AND_HARD}
    bare = ("reset_last", "shrink_perturb", "weight_decay", "reset_optimizer")
    return [
        {**sizes, **both, "network": ("mlp", "cnn")},
        {**sizes, **both, "network": ("resnet18", "vit"), "treatment": bare},
    ]


def width_axes(preset: str) -> dict | list[dict]:
    """Widths by target periods, nothing done about it."""
    match preset:
        case "smoke":
            return {**SIZES["smoke"], "width": (8,)}
        case "quick":
            sizes = {**SIZES["quick"], "pool": (2,), "iterations": (10,)}
            return {**sizes, "width": (16, 64, 256), "target_period": (1, 100, 1_000)}
        case "paper":
            widths = tuple(16 * factor for factor in (1, 2, 4, 8, 12, 16))
            return {**SIZES["paper"], "data": ("mnist",), "width": widths, "target_period": (1, 100, 1_000)}
    return []


def falsification_axes(preset: str) -> dict | list[dict]:
    """128 agents: tasks by observations by optimisers by seeds. In `quick` a sparse goal and another optimiser beside
    the settings of `interventions`, on smaller images, with the treatments that differ most.
    """
    if preset == "quick":
        few = ("none", "layer_norm", "shrink_perturb")
        small = {**SIZES["quick"], "pool": (2,), "probe_every": (20,), "treatment": few}
        return [{**small, "goal": ("sparse",)}, {**small, **SGD}]
    if preset != "paper":
        return []
    grid = {
        "data": ("mnist", "cifar10"),
        "labels": EASY_AND_HARD,
        "goal": ("dense", "sparse"),
        "seed": tuple(range(8)),
    }
    return [grid, {**grid, **SGD}]


def _experiment(name: str, axes: Callable[[str], Any]) -> Experiment:
    return Experiment(name, AgentConfig, axes, stream, learner, script, source)


interventions = _experiment("interventions", interventions_axes)
combined = _experiment("combined", combined_axes)
width = _experiment("width", width_axes)
falsification = _experiment("falsification", falsification_axes)
