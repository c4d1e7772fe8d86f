"""Q2: a classification MDP whose images mean something or nothing, learned by Double DQN and forked half way.

Targets of Q-learning move with the network, so plasticity may be lost without any change of task; and the reward rate
of the best policy is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neoteny.interventions import Inject, Intervention, Reset, ShrinkPerturb, Variant
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import Learner
from neoteny.probes import dead_units
from neoteny.studies.injection.relabel import HEAD, PARAMETERS, adam, check_config, images, network, output_jump, tenth
from neoteny.tasks.classification import ClassificationMDP, Goal, Labels
from neoteny.tasks.environments import EnvironmentTask, environments
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.streams import Stream
from neoteny.training.events import Event, Fork, Intervene, Probe, Save, Switch, Train

MDP_ARMS: dict[str, Intervention | None] = {
    "control": None,
    "inject": Inject(HEAD),
    "placebo": Inject(HEAD, variant=Variant.PLACEBO),
    "reset": Reset(("hidden2", "head")),
    "shrink_perturb": ShrinkPerturb(shrink=0.5, perturb=0.5),
    "fresh": Reset(None),
}
"""What is done to the copies, as in Q1. `fresh` begins with the replay there is: the ceiling of what the data allow."""

TARGET_PERIOD = 1_000
"""Updates between copies of the target network (Lyle et al. 2023, section 5.1)."""

DISCOUNT = 0.99
"""Not given there; a choice."""


@dataclass(frozen=True)
class MDPConfig:
    """One run of Q-learning on a classification MDP, forked half way."""

    data: str = "mnist_digits"
    labels: Literal["random", "true"] = "random"
    goal: Literal["dense", "sparse"] = "dense"
    width: int = 512
    batch: int = 128
    updates: int = 50_000  # before and after the fork together; one environment step each
    capacity: int = 10_000
    epsilon: float = 0.1
    target_period: int = TARGET_PERIOD
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    seed: Lane[int] = 0

    def __post_init__(self):
        check_config(self, ("width", "batch", "updates", "capacity", "target_period"))
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability, not {self.epsilon}")
        if self.updates < 2:
            raise ValueError(f"updates must be at least 2, not {self.updates}: copies are forked half way")


def mdp_stream(config: MDPConfig) -> Stream:
    """One MDP; random labels are drawn for every lane and stay as they are."""
    return environments([ClassificationMDP(images(config.data), Labels(config.labels), Goal(config.goal))])


def mdp_learner(config: MDPConfig) -> Learner:
    """Double DQN on an MLP of two hidden stages, with Adam."""
    maker = network(images(config.data), config.width, config.width)
    return dqn(maker, adam(config), target_period=config.target_period)


def mdp_source(config: MDPConfig) -> DeviceExperience:
    """One step an update, epsilon-greedy."""
    return DeviceExperience(
        batch_size=config.batch,
        learning_starts=config.capacity // 10,
        capacity=config.capacity,
        discount=DISCOUNT,
        epsilon=LinearEpsilon(config.epsilon, config.epsilon, 1),
    )


def mdp_script(config: MDPConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Half of the updates, then copies that make the other half."""
    (task,) = tasks
    before, after = config.updates // 2, config.updates - config.updates // 2
    branches: dict[str, tuple[Event, ...]] = {
        name: () if arm is None else (Intervene(arm),) for name, arm in MDP_ARMS.items()
    }
    # The target network is no part of what a probe sees; both are compared as they were kept.
    jump = Probe(output_jump("before", "injected"), on=task, samples=256)
    branches["inject"] += (Save("injected"), jump)
    return (
        Switch(task),
        Train(task, before, record_every=tenth(before)),
        Probe(dead_units, on=task, samples=2_048),
        Probe(PARAMETERS, on=task, samples=1),
        Save("before"),
        Fork(branches, then=(Train(task, after, record_every=tenth(after)),)),
    )


MDP_SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "data": ("digits",),
        "width": (16,),
        "batch": (16,),
        "updates": (40,),
        "capacity": (200,),
        "seed": (0, 1),
    },
    "quick": {"width": (128,), "batch": (64,), "updates": (30_000,), "seed": tuple(range(10))},
    "paper": {"seed": tuple(range(10))},
}
"""Preset -> the fields in which it differs from the defaults."""


def mdp_axes(preset: str) -> dict | list[dict]:
    """Random labels, every seed."""
    return MDP_SIZES.get(preset, [])


mdp = Experiment("mdp", MDPConfig, mdp_axes, mdp_stream, mdp_learner, mdp_script, mdp_source)
