"""The models compared, by name: the rungs of the ladder, S4D and S5, all in one block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from neoteny.networks import Layer
from neoteny.networks.lru import LadderMixer, Rung
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


RUNGS: dict[str, Rung] = {
    "rnn_tanh": Rung.DENSE_TANH,
    "rnn_relu": Rung.DENSE_RELU,
    "rnn_linear": Rung.DENSE_LINEAR,
    "complex": Rung.DIAGONAL,
    "exponential": Rung.EXPONENTIAL,
    "stable": Rung.STABLE,
    "ring": Rung.RING,
    "lru": Rung.LRU,
}
"""The library's name of each rung."""

STATE_SPACE: dict[str, Callable[..., Layer]] = {
    "s4d": S4D,
    "s4d_delta_b": partial(S4D, discretization=Discretization.DELTA_B),
    "s4d_untied": partial(S4D, tied=False),
    "s5": S5,
}
"""The state-space layers, as functions of width, state and key."""


def mixer(config: Config) -> Mixer | None:
    """The recurrent layer that this configuration's model is about; None for a bag of symbols, which has none."""
    if config.model == "bag":
        return None
    if config.model in RUNGS:
        return LadderMixer(
            RUNGS[config.model],
            config.state,
            r_min=config.r_min,
            r_max=config.r_max,
            max_phase=config.max_phase,
            bidirectional=config.bidirectional,
        )
    layer = STATE_SPACE[config.model]
    return lambda width, key: layer(width, config.state, key=key, bidirectional=config.bidirectional)
