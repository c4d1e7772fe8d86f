"""Q1: labels redrawn for every task, and copies forked from one network at several tasks.

Each copy is treated in its own way and learns the next labels with the same draws; the gain over the untreated one says
whether lost plasticity was the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neoteny.interventions import Inject, InjectedMoments, Intervention, Reset, ShrinkPerturb, Variant, Widen
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import MLP, Maker, Network, mlp, split_trainable, with_spectral_norm
from neoteny.probes import NetworkProbe, ViewProbe, dead_units, dormant_units, feature_rank, weight_norm
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.images import whole
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Stream, Task, random_labels
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Save, Switch, Train

ADAM_EPS = 1e-9
"""Adam's epsilon outside the root (Lyle et al. 2023, section 3.1)."""

ENCODER, HEAD = "hidden1", "hidden2"
"""The encoder, and the first stage of the head."""

DEFAULT, TUNED = (0.999, 0.0), (0.9, 1e-3)
"""(adam_b2, adam_eps_root) of Adam as it comes, and as Lyle et al. 2023 tune it, where plasticity survives."""


TREATMENTS: dict[str, Intervention | None] = {
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
"""What is done to the copies at any width. `fresh` is a new network with a new optimiser, the ceiling; `inject_whole`
has no encoder, to tell a dead encoder from a dead head."""

ARMS = (*TREATMENTS, "widen", "inject_twice")
"""All copies; `widen` has a head of twice the hidden width, in which the old one goes on; `inject_twice` is injected
again half way through the task that follows.
"""

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
    spectral: bool = False  # spectral normalisation of the encoder
    learning_rate: Lane[float] = 1e-3
    adam_b2: Lane[float] = 0.999
    adam_eps_root: Lane[float] = 0.0
    seed: Lane[int] = 0

    def __post_init__(self):
        check_config(self, ("width", "batch", "tasks", "steps_per_task"))


def check_config(config: Any, positive: tuple[str, ...]) -> None:
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


def _maker(config: Config, head: int) -> Maker:
    made = network(images(config.data), config.width, head)
    return with_spectral_norm(made, (ENCODER,)) if config.spectral else made


def adam(config: Any) -> optax.GradientTransformation:
    """update = rate * m / (sqrt(v + eps_root) + eps)."""
    return optax.adam(config.learning_rate, b2=config.adam_b2, eps=ADAM_EPS, eps_root=config.adam_eps_root)


def learner(config: Config) -> Learner:
    """An MLP of two equally wide hidden stages trained with Adam."""
    return supervised(_maker(config, config.width), adam(config))


def source(config: Any) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


@dataclass(frozen=True)
class OutputJump:
    """max |Q - Q_before| / max(1, max |Q_before|) on a batch, against the networks kept by a save: of the online
    network, or of every network kept by a later save.
    """

    before: str
    after: str | None = None

    def __call__(self, view, batch, key, saved) -> dict[str, Any]:
        now = {"online": view.network} if self.after is None else saved[self.after]
        return {name: self._jump(saved[self.before][name], network, batch.inputs) for name, network in now.items()}

    def _jump(self, before: Network, after: Network, inputs: Array) -> Array:
        old, new = before(inputs).output, after(inputs).output
        return jnp.max(jnp.abs(new - old)) / jnp.maximum(1.0, jnp.max(jnp.abs(old)))


def output_jump(before: str, after: str | None = None) -> ViewProbe:
    """The probe that measures it."""
    return ViewProbe("output_jump", OutputJump(before, after), saves=(before,) if after is None else (before, after))


def count_parameters(network: Network) -> dict[str, float]:
    """How many parameters are trained, and how many numbers are stored."""
    trained, stored = split_trainable(network)[0], eqx.filter(network, eqx.is_inexact_array)
    return {
        "trained": float(sum(a.size for a in jax.tree.leaves(trained))),
        "stored": float(sum(a.size for a in jax.tree.leaves(stored))),
    }


PARAMETERS = NetworkProbe("parameters", count_parameters)


def tenth(steps: int) -> int:
    """Steps of a tenth of the budget, the last of which is the final performance."""
    return max(1, math.ceil(steps / 10))


def _start(steps: int) -> int:
    """The first two hundredths of the budget, where a drop shows."""
    return max(1, math.ceil(steps / 50))


def _treated(name: str, config: Config) -> tuple[Event, ...]:
    if name == "widen":
        return (Intervene(Widen(_maker(config, 2 * config.width))),)
    treatment = TREATMENTS[name]
    return () if treatment is None else (Intervene(treatment),)


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Fit each task's labels; at some, fork copies that go on with the same labels, and copies that get the next."""
    steps, points = config.steps_per_task, forks(config)
    every = tenth(steps)
    half = 5 * every if 5 * every < steps else steps // 2  # where a record ends, if there are so many
    events: list[Event] = []
    for done, (task, following) in enumerate(pairwise(tasks), 1):
        events += [
            Switch(task),
            Train(task, steps, record_every=every),
            Evaluate(task, "train", samples=4_096),
            Probe(dead_units, on=task),
        ]
        if done not in points:
            continue
        names = ("control", "inject") if config.arms == "pair" else ARMS if done == points[-1] else CORE
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
                {name: (*_treated(name, config), Probe(look, PARAMETERS, on=task, samples=512)) for name in same},
                then=(Train(task, _start(steps), record_every=_start(steps)),),
            ),
            Fork(
                {name: _treated(name, config) for name in names if name != "inject_twice"},
                then=(Switch(following), Train(following, steps, record_every=every)),
            ),
        ]
        if "inject_twice" in names:
            inject = Intervene(Inject(HEAD))
            one, two = ((Train(following, n, record_every=every),) if n else () for n in (half, steps - half))
            events.append(Fork({"inject_twice": (inject, Switch(following), *one, inject, *two)}))
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
        sizes["seed"] = tuple(range(6))
    rates = {**sizes, "learning_rate": (Config.learning_rate / 4, Config.learning_rate * 4)}
    if preset == "smoke":  # one program instead of five
        return [rates]
    return [
        {**sizes, "steps_per_task": (steps // 2, 2 * steps)},
        rates,
        {**sizes, "width": (width // 2, 2 * width)},
        {**sizes, "spectral": (True,)},
    ]


relabel = Experiment("relabel", Config, relabel_axes, stream, learner, script, source)
settings = Experiment("settings", Config, settings_axes, stream, learner, script, source)
