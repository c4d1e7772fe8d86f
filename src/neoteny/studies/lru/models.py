"""The models compared, by name: the rungs of the ladder, S4D and S5, all in one block."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from jaxtyping import Array

from neoteny.networks import Layer, identity, relu, tanh
from neoteny.networks.lru import LRU, DenseRecurrence, Parameterization
from neoteny.networks.recurrent import Mixer
from neoteny.networks.s4d import S4D, Discretization
from neoteny.networks.s5 import S5

if TYPE_CHECKING:
    from neoteny.studies.lru.sequences import Config

ModelName = Literal[
    "rnn_tanh", "rnn_relu", "rnn_linear", "complex", "exponential", "stable", "ring", "lru", "s4d", "s5",
    "s4d_delta_b", "s4d_untied", "bag",
]  # fmt: skip

TITLES: dict[str, str] = {
    "bag": "bag of symbols",
    "rnn_tanh": "dense tanh",
    "rnn_relu": "dense ReLU",
    "rnn_linear": "dense linear",
    "complex": "complex diagonal",
    "exponential": "exponential",
    "stable": "stable exponential",
    "ring": "ring initialisation",
    "lru": "gamma: the LRU",
    "s4d": "S4D",
    "s5": "S5",
    "s4d_delta_b": "S4D, Delta * B",
    "s4d_untied": "S4D, Delta untied",
}
"""Names of the models in figures, in their order there."""


ACTIVATIONS = {"tanh": tanh, "relu": relu, "linear": identity}


def dense_recurrence(width: int, state: int, activation: Literal["tanh", "relu", "linear"], *, key: Array) -> Layer:
    """A dense recurrent layer; linear is the identity."""
    return DenseRecurrence(width, state, ACTIVATIONS[activation], key=key)


def mixer(config: Config) -> Mixer:
    """The recurrent layer that this configuration's model is about."""
    state, both = config.state, config.bidirectional
    diagonal = partial(
        LRU, r_min=config.r_min, r_max=config.r_max, max_phase=config.max_phase, gamma=False, bidirectional=both
    )

    def make(width: int, key: Array) -> Layer:
        match config.model:
            case "rnn_tanh":
                return DenseRecurrence(width, state, tanh, key=key)
            case "rnn_relu":
                return DenseRecurrence(width, state, relu, key=key)
            case "rnn_linear":
                return DenseRecurrence(width, state, identity, key=key)
            case "complex":
                return diagonal(width, state, key=key, parameterization=Parameterization.CARTESIAN)
            case "exponential":
                return diagonal(width, state, key=key, parameterization=Parameterization.EXPONENTIAL)
            case "stable" | "ring":
                return diagonal(width, state, key=key)
            case "lru":
                return diagonal(width, state, key=key, gamma=True)
            case "s4d":
                return S4D(width, state, key=key)
            case "s4d_delta_b":
                return S4D(width, state, key=key, discretization=Discretization.DELTA_B)
            case "s4d_untied":
                return S4D(width, state, key=key, tied=False)
            case "s5":
                return S5(width, state, key=key, bidirectional=both)
            case "bag":
                raise ValueError("a bag of symbols has no recurrence")

    return make


ONE_WAY = frozenset({"rnn_tanh", "rnn_relu", "rnn_linear", "s4d", "s4d_delta_b", "s4d_untied", "bag"})
"""Models without a bidirectional form."""
