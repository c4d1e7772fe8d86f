"""Theory and toy problems: forward gain, circular law, learning a filter, learning a phase (sections 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Batch, Learner, View
from neoteny.learners.supervised import SQUARED_ERROR, supervised
from neoteny.networks import Layer, Network, Statistic, identity
from neoteny.networks.lru import LRU, DenseRecurrence, LadderMixer, Rung
from neoteny.probes import NetworkProbe, ViewProbe
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sequences import filtered_waves
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Task, single
from neoteny.training.events import Event, Probe, Switch, Train


def _positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")


CHANNELS = 16
"""Inputs of a layer whose gain is measured; the more, the more alike are the rows of B."""


def _nothing() -> Arrays:
    """One row, for runs that only look at a fresh network."""
    inputs, rows = np.zeros((1, 1, CHANNELS), np.float32), {"train": np.zeros(1, np.int32)}
    return Arrays("nothing", inputs, np.zeros((1, 1), np.float32), rows, None, "made up")


NOTHING = _nothing()


# Theory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theory:
    """A fresh recurrence, looked at and not trained: the gain on a `ring`, or the spectrum of the LRU's ring on [0, 1]
    (`disk`) or of a Gaussian matrix (`dense`).
    """

    kind: Literal["ring", "disk", "dense"] = "ring"
    state: int = 500
    length: int = 10_000  # steps of white noise, of which the second half is measured
    r_min: Lane[float] = 0.0
    r_max: Lane[float] = 0.9
    seed: Lane[int] = 0

    def __post_init__(self):
        _positive(self, "state", "length")
        if not 0 <= self.r_min <= self.r_max < 1:
            raise ValueError(f"0 <= r_min <= r_max < 1 is needed, not {self.r_min} and {self.r_max}")


def forward_gain(r_min: float, r_max: float) -> float:
    """E||h||^2 / E||B u||^2 of white noise on a ring of eigenvalues (arXiv:2303.06349, proposition 3.3)."""
    if r_min == r_max:
        return 1 / (1 - r_max**2)
    return math.log((1 - r_min**2) / (1 - r_max**2)) / (r_max**2 - r_min**2)


def _diagonal(network: Network) -> LRU:
    layer = network.stage("mixer")
    assert isinstance(layer, LRU)
    return layer


def _measured_gain(length: int, view: View, batch: Batch, key: Array) -> Mapping[str, Array]:
    """Mean ||h||^2 over the second half of as many steps of the layer on white noise u of unit variance, over
    E||B u||^2, the sum of the squares of B.
    """
    layer = _diagonal(view.network)

    def step(h: Array, index: Array) -> tuple[Array, Array]:
        u = jax.random.normal(jax.random.fold_in(key, index), (1, layer.width))
        _, h = layer.step(u, h)
        return h, jnp.sum(jnp.square(jnp.abs(h)))

    _, squares = jax.lax.scan(step, layer.initial_state(1), jnp.arange(length))
    driving = jnp.sum(jnp.square(layer.B_re) + jnp.square(layer.B_im))
    return {"": jnp.mean(squares[length // 2 :]) / driving}


def disk_distance(eigenvalues: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of |lambda|^2 from uniform on [0, 1]: (n,) complex to a number in [0, 1]."""
    square = np.clip(np.sort(np.abs(eigenvalues) ** 2), 0, 1)
    n = len(square)
    above = np.arange(1, n + 1) / n - square
    return float(max(above.max(), (square - np.arange(n) / n).max()))


def _spectrum(network: Network) -> Mapping[str, float]:
    layer = network.stage("mixer")
    if isinstance(layer, DenseRecurrence):
        return {"": disk_distance(np.linalg.eigvals(np.asarray(layer.A, np.float64)))}
    return {"": disk_distance(np.asarray(_diagonal(network).lam, np.complex128))}


@cache
def gain_probe(length: int) -> ViewProbe:
    """The forward gain over so many steps; the slowest mode at r_max = 0.999 forgets in 1,000."""
    return ViewProbe("forward_gain", partial(_measured_gain, length))


DISK = NetworkProbe("disk_distance", _spectrum)


def theory_learner(config: Theory) -> Learner:
    """A single mixer, without gamma; it is never trained."""

    def make(key):
        if config.kind == "dense":
            # The law is about the Gaussian matrix as it is drawn.
            return Network(mixer=DenseRecurrence(CHANNELS, config.state, identity, key=key, max_radius=None))
        low, high = (config.r_min, config.r_max) if config.kind == "ring" else (0.0, 1.0)
        return Network(mixer=LadderMixer(Rung.RING, config.state, r_min=low, r_max=high)(CHANNELS, key))

    return supervised(make, optax.sgd(0.0), objective=SQUARED_ERROR)


def theory_script(config: Theory, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Look once."""
    return (Switch(tasks[0]), Probe(gain_probe(config.length) if config.kind == "ring" else DISK, on=tasks[0]))


RINGS = ((0.0, 0.9), (0.5, 0.99), (0.9, 0.99), (0.9, 0.999))
"""(r_min, r_max) on which the formula is checked (specification, section 6)."""


def theory_axes(preset: str) -> list[dict]:
    """The four rings whose gains the paper's formula is checked on, the ring on [0, 1], and a dense matrix."""
    smoke = preset == "smoke"
    seeds, state, length = (range(2), (16,), (50,)) if smoke else (range(20), (500,), (10_000,))
    return [
        *(
            {"kind": ("ring",), "state": state, "length": length, "r_min": (low,), "r_max": (high,), "seed": seeds}
            for low, high in RINGS
        ),
        {"kind": ("disk", "dense"), "state": state, "seed": seeds},
    ]


theory = Experiment(
    "theory", Theory, theory_axes, lambda _: single(NOTHING), theory_learner, theory_script, lambda _: Minibatch(1)
)


# Learning a filter ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """One recurrent layer that learns a causal filter of waves."""

    model: Literal["linear", "tanh"] = "linear"
    state: int = 100
    length: int = 100
    examples: int = 32
    steps: int = 400
    learning_rate: Lane[float] = 1e-3
    seed: Lane[int] = 0

    def __post_init__(self):
        _positive(self, "state", "length", "examples", "steps")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")


class _OneOutput(Layer):
    """(batch, length, 1) to (batch, length)."""

    def __call__(self, x, *, train=False, key=None):
        return x[..., 0], self


def filter_learner(config: Filter) -> Learner:
    """Adam on the mean squared error of every step."""

    rung = Rung.DENSE_TANH if config.model == "tanh" else Rung.DENSE_LINEAR

    def make(key):
        return Network(mixer=LadderMixer(rung, config.state)(1, key), head=_OneOutput())

    return supervised(make, optax.adam(config.learning_rate), objective=SQUARED_ERROR)


def filter_script(config: Filter, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """A fixed number of steps; the training loss is recorded."""
    return (Switch(tasks[0]), Train(tasks[0], config.steps, record_every=min(50, config.steps)))


RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates at each of which linear is compared with tanh."""


def filter_axes(preset: str) -> dict:
    """Both recurrences at five learning rates."""
    both = ("linear", "tanh")
    if preset == "smoke":
        return {"model": both, "state": (4,), "length": (16,), "examples": (4,), "steps": (5,),
                "learning_rate": RATES[2:4], "seed": range(2)}  # fmt: skip
    return {"model": both, "learning_rate": RATES, "steps": (2_000 if preset == "paper" else 400,), "seed": range(5)}


filters = Experiment(
    "filter", Filter, filter_axes,
    lambda config: single(filtered_waves(config.examples, length=config.length)),
    filter_learner, filter_script, lambda config: Minibatch(config.examples),
)  # fmt: skip


# Learning a phase -------------------------------------------------------------------------------------------------

POWER = 100
MODULUS = 0.99
"""|lambda*|; the paper gives none. Its hundredth power is 0.37, far from both 0 and 1."""


@dataclass(frozen=True)
class Phase:
    """Fit lambda^100 to lambda*^100 from the right modulus and a wrong phase."""

    parametrisation: Literal["cartesian", "exponential"] = "exponential"
    theta: Lane[float] = 0.1  # phase of lambda*
    steps: int = 500
    learning_rate: Lane[float] = 1e-3
    seed: Lane[int] = 0

    def __post_init__(self):
        _positive(self, "steps")
        if not self.learning_rate > 0 or not 0 < self.theta < math.pi:
            raise ValueError(f"learning_rate > 0 and 0 < theta < pi are needed, not {self.learning_rate}, {self.theta}")


class Eigenvalue(Layer):
    """lambda^100 - lambda*^100 as (batch, 2), whatever the input.

    `p` is (re, im), or (nu, theta) of exp(-nu + i theta).
    """

    p: Float[Array, " 2"]
    target: Statistic
    exponential: bool = eqx.field(static=True)

    def __init__(self, theta: Array, exponential: bool, key: Array):
        # Within half the distance between neighbouring minima, which are 2 pi / 100 apart.
        start = theta + jax.random.uniform(key, (), minval=0.25, maxval=0.75) * math.pi / POWER
        nu = jnp.float32(-math.log(MODULUS))
        self.exponential = exponential
        self.p = jnp.stack([nu, start] if exponential else [MODULUS * jnp.cos(start), MODULUS * jnp.sin(start)])
        self.target = Statistic(MODULUS**POWER * jnp.stack([jnp.cos(POWER * theta), jnp.sin(POWER * theta)]))

    def __call__(self, x, *, train=False, key=None):
        if self.exponential:
            modulus, angle = jnp.exp(-POWER * self.p[0]), POWER * self.p[1]
        else:
            modulus = jnp.exp(POWER / 2 * jnp.log(jnp.sum(jnp.square(self.p))))
            angle = POWER * jnp.arctan2(self.p[1], self.p[0])
        found = modulus * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) - self.target.value
        return jnp.broadcast_to(found, (x.shape[0], 2)), self


def phase_learner(config: Phase) -> Learner:
    """Adam on 1/2 |lambda^100 - lambda*^100|^2, the mean of the squares of real and imaginary part."""

    def make(key):
        return Network(eigenvalue=Eigenvalue(jnp.asarray(config.theta), config.parametrisation == "exponential", key))

    return supervised(make, optax.adam(config.learning_rate), objective=SQUARED_ERROR)


ZERO = Arrays(
    "zero",
    np.zeros((1, 1), np.float32),
    np.zeros((1, 2), np.float32),
    {"train": np.zeros(1, np.int32)},
    None,
    "made up",
)


def phase_script(config: Phase, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """A fixed number of steps; the last records are the loss at the end."""
    return (Switch(tasks[0]), Train(tasks[0], config.steps, record_every=min(10, config.steps)))


def phase_axes(preset: str) -> dict:
    """Both parametrisations from a small phase to pi / 2, at three learning rates."""
    if preset == "smoke":
        return {"parametrisation": ("cartesian", "exponential"), "theta": (1.57,), "steps": (5,), "seed": range(2)}
    fractions = (0.02, 0.25, 0.5, 0.75, 0.98)
    return {
        "parametrisation": ("cartesian", "exponential"),
        "theta": tuple(round(fraction * math.pi / 2, 4) for fraction in fractions),
        "learning_rate": (1e-4, 1e-3, 1e-2),
        "seed": range(5),
    }


phase = Experiment(
    "phase", Phase, phase_axes, lambda _: single(ZERO), phase_learner, phase_script, lambda _: Minibatch(1)
)
