"""What recurrent layers share: whole sequences, carried states and single steps, all of one meaning.

A recurrent layer is a `Layer` of sequences (batch, length, width) that can also be run from a state: `unroll` over a
stretch with episode boundaries, as a policy is trained, and `step` by step, as it acts. Both equal the whole sequence.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from neoteny.networks._checks import features_last
from neoteny.networks.network import Layer
from neoteny.networks.sequence import Sequences, join, split

Carried = PyTree[Array]
"""The state of a recurrent layer: arrays whose first axis is the batch."""


class RecurrentLayer(Layer):
    """A layer of sequences that can be run from a state.

    Called on sequences (batch, length, width) it starts from `initial_state`, and keeps the mask of `Padded` ones.
    """

    slow: ClassVar[frozenset[str]] = frozenset()
    """Names of the layer's own fields that the published recipes train with a lower learning rate and without weight
    decay: what makes the eigenvalues, the input map, the time step and the normalisation."""

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
        """Output and state of one step: `unroll` of a stretch of length 1. ValueError for shapes that do not fit."""


def slow_parameters(tree: PyTree) -> PyTree:
    """True at every leaf that lies in a field its recurrent layer declares to be `slow`, False at all others.

    For `neoteny.learners.optimizers.adamw_groups`. A field of the same name in any other layer is not meant.
    """

    def declares(node: object) -> bool:
        return isinstance(node, RecurrentLayer) and bool(node.slow)

    def marked(node: PyTree) -> PyTree:
        if not declares(node):
            return False
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].name in node.slow, node)

    return jax.tree.map(marked, tree, is_leaf=declares)


def check_one_way(bidirectional: bool) -> None:
    """ValueError where a layer reads the future: it cannot be run from a state."""
    if bidirectional:
        raise ValueError("a bidirectional layer needs the whole sequence; it has no state to step from")


def check_step(name: str, x: Array, state: Array, reset: Array | None, width: int, entries: tuple[int, ...]) -> None:
    """ValueError unless x is (batch, width), the state (batch, *entries) and the reset, if there is one, (batch,)."""
    batch = x.shape[:1]
    fits = x.ndim == 2 and x.shape[1] == width and state.shape == (*batch, *entries)
    if not fits or (reset is not None and reset.shape != batch):
        expected = f"x (batch, {width}), a state (batch, {', '.join(map(str, entries))}) and reset (batch,) or None"
        got = f"{x.shape}, {state.shape} and {None if reset is None else reset.shape}"
        raise ValueError(f"a step of {name} takes {expected}; got shapes {got}")


def directions(bidirectional: bool) -> tuple[bool, ...]:
    """Whether each scan of a layer is reversed: forwards, and from the end where it is bidirectional."""
    return (False, True) if bidirectional else (False,)


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
