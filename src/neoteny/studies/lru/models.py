"""The models compared, by name: the rungs of the ladder, S4D and S5, all in one block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jaxtyping import Array

from neoteny.networks import Layer
from neoteny.networks.lru import LRU, S4D, S5, SLOW, Block, ComplexDiagonal, DenseRecurrence, Exponential

if TYPE_CHECKING:
    from neoteny.studies.lru.sequences import Config

__all__ = ["SLOW", "TITLES", "DenseRecurrence", "ModelName", "block", "dense_recurrence", "lru", "mixer"]

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


def dense_recurrence(width: int, state: int, activation: Literal["tanh", "relu", "linear"], *, key: Array) -> Layer:
    """A dense recurrent layer; linear is the identity."""
    return DenseRecurrence(width, state, activation, key=key)


def lru(width: int, state: int, *, key: Array, r_min: float | Array, r_max: float | Array) -> Layer:
    """The LRU with all phases."""
    return LRU(width, state, key=key, r_min=r_min, r_max=r_max)


def mixer(config: Config, width: int, *, key: Array) -> Layer:
    """The recurrent layer that this configuration's model is about."""
    state, both = config.state, config.bidirectional
    ring = {"r_min": config.r_min, "r_max": config.r_max, "max_phase": config.max_phase, "bidirectional": both}
    match config.model:
        case "rnn_tanh" | "rnn_relu" | "rnn_linear":
            return DenseRecurrence(width, state, config.model.removeprefix("rnn_"), key=key)
        case "complex":
            return ComplexDiagonal(width, state, key=key, **ring)
        case "exponential":
            return Exponential(width, state, key=key, **ring)
        case "stable" | "ring":
            return LRU(width, state, key=key, gamma=False, **ring)
        case "lru":
            return LRU(width, state, key=key, **ring)
        case "s4d":
            return S4D(width, state, key=key, bidirectional=both)
        case "s4d_delta_b":
            return S4D(width, state, key=key, discretisation="delta_b", bidirectional=both)
        case "s4d_untied":
            return S4D(width, state, key=key, tied=False, bidirectional=both)
        case "s5":
            return S5(width, state, key=key, bidirectional=both)
        case "bag":
            raise ValueError("a bag of symbols has no recurrence")


def block(config: Config, width: int, *, key: Array) -> Layer:
    """Norm, recurrence, GELU, GLU and the residual sum around them."""
    return Block(mixer(config, width, key=key), width, key=key, dropout=config.dropout, half_glu=config.half_glu)
