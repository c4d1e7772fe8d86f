"""The protocol of regularisers: a penalty added to the loss, with a memory that may change with the task."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from neoteny.networks.network import Network, split_trainable


class Parameters(enum.Enum):
    """Which trained parameters a regulariser acts on."""

    ALL = "all"
    """Every trained parameter, biases and normalisation scales among them."""
    KERNELS = "kernels"
    """Trained arrays of two or more dimensions."""


def chosen_parameters(network: Network, parameters: Parameters) -> PyTree:
    """The network's trained parameters of this kind, in its structure, with None for all else."""
    trained, _ = split_trainable(network)
    if parameters is Parameters.ALL:
        return trained
    return jax.tree.map(lambda array: array if array.ndim >= 2 else None, trained)


def sum_of_squares(tree: PyTree) -> Float[Array, ""]:
    """Sum of squares over all entries of all arrays; 0 if there are none. Summed in float32 at least."""
    total = jnp.zeros((), jnp.float32)
    for array in jax.tree.leaves(tree):
        total = total + jnp.sum(jnp.square(array.astype(jnp.promote_types(array.dtype, jnp.float32))))
    return total


class Regularizer(abc.ABC):
    """A penalty on a network. Subclasses are frozen dataclasses; coefficients may be traced numbers.

    Convention of this room: coefficient * (sum of squares), without a factor 1/2, as in Continual World
    (Wołczyk et al. 2021) and Keras. A `weight_decay` w as PyTorch's SGD has it is the coefficient w / 2.
    """

    @abc.abstractmethod
    def init(self, network: Network) -> PyTree:
        """The memory at the start, of a network just made."""

    @abc.abstractmethod
    def penalty(self, network: Network, memory: PyTree) -> Float[Array, ""]:
        """What is added to the loss; differentiated by the network."""

    @abc.abstractmethod
    def switch(self, network: Network, memory: PyTree) -> PyTree:
        """The memory for the next task, of the network at the end of a task; same structure."""


@dataclass(frozen=True)
class NoPenalty(Regularizer):
    """Zero."""

    def init(self, network):
        return ()

    def penalty(self, network, memory):
        return jnp.zeros((), jnp.float32)

    def switch(self, network, memory):
        return memory
