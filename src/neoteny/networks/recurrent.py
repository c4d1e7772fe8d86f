"""What recurrent layers share: whole sequences, carried states and single steps, all of one meaning.

A recurrent layer is a `Layer` of sequences (batch, length, width) that can also be run from a state: `unroll` over a
stretch with episode boundaries, as a policy is trained, and `step` by step, as it acts. Both equal the whole sequence.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from neoteny.networks._checks import features_last
from neoteny.networks.network import Layer
from neoteny.networks.sequence import Sequences, join, split

Carried = PyTree[Array]
"""The state of a recurrent layer: arrays whose first axis is the batch."""

SLOW = frozenset(
    [
        *("A", "B", "A_re", "A_im", "A_re_log", "B_re", "B_im", "delta_log", "delta_B_log"),
        *("lam_re", "lam_im", "nu", "nu_log", "theta", "theta_log", "gamma_log"),
    ]
)
"""Names of the fields that the published recipes train with a lower learning rate and without weight decay: what makes
the eigenvalues, the input map, the time step and the normalisation, of every recurrent layer here."""


class RecurrentLayer(Layer):
    """A layer of sequences that can be run from a state.

    Called on sequences (batch, length, width) it starts from `initial_state`, and keeps the mask of `Padded` ones.
    """

    @abc.abstractmethod
    def initial_state(self, batch: int) -> Carried:
        """The state before the first step of `batch` sequences: zero."""

    @abc.abstractmethod
    def unroll(
        self, x: Float[Array, "batch length width"], state: Carried, *, reset: Bool[Array, "batch length"] | None = None
    ) -> tuple[Float[Array, "batch length width"], Carried]:
        """Outputs of a stretch that begins in `state`, and the state after it; `reset` marks first steps of episodes,
        into which no state passes. ValueError for a bidirectional layer, which has no state to carry.
        """

    @abc.abstractmethod
    def step(
        self, x: Float[Array, "batch width"], state: Carried, *, reset: Bool[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch width"], Carried]:
        """Output and state of one step: `unroll` of a stretch of length 1."""


R = TypeVar("R", bound=RecurrentLayer)


def over_sequences(layer: R, x: Sequences, run: Callable[[Array], Array], name: str, width: int) -> tuple[Sequences, R]:
    """`run` on the values of sequences, with the checks and the mask that every recurrent layer needs.

    Padding is at the end and zero, so it reaches no real step: not forwards, and backwards the state is still zero.
    """
    values, mask = split(x)
    features_last(values, width, name, "width")
    if values.ndim != 3:
        raise ValueError(f"{name} expects sequences (batch, length, {width}); got shape {values.shape}")
    return join(run(values), mask), layer


def kept(reset: Bool[Array, " batch"] | None, state: Array) -> Array:
    """`state` (batch, ...), zero where `reset`."""
    if reset is None:
        return state
    return jnp.where(reset.reshape(-1, *[1] * (state.ndim - 1)), jnp.zeros_like(state), state)


Mixer = Callable[[int, PRNGKeyArray], Layer]
"""`mixer(width, key) -> Layer` of sequences (batch, length, width) to the same: what a residual block mixes time by."""
