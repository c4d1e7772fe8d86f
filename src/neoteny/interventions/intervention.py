"""The protocol of interventions: frozen dataclasses whose call maps a learner's state to a state."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, PRNGKeyArray

from neoteny.learners.learner import LearnerState
from neoteny.networks.network import Network


@dataclass(frozen=True, eq=False)
class Context:
    """What an event supplies to an intervention: a batch of training data, if the event names a task.

    inputs: (batch, ...). loss(network) -> scalar, the training loss on the same batch. Made inside the
    traced program; never an argument or a result of one.
    """

    inputs: Array | None = None
    loss: Callable[[Network], Array] | None = None

    def require_inputs(self) -> Array:
        """The inputs, or a ValueError saying how to supply them."""
        if self.inputs is None:
            raise ValueError("this intervention looks at data; give its event a task: Intervene(..., on=task)")
        return self.inputs


EMPTY = Context()
"""No data."""


class Intervention(abc.ABC):
    """A change of parameters and optimiser state together.

    Subclasses are frozen dataclasses of plain values (numbers, text, tuples, enums), so that they can be
    written in a configuration. The call is pure, works under jit and vmap, and keeps the structure, shapes
    and types of the state unless the class says otherwise; the caller gates it. Followers get the same
    draws as the network they follow.
    """

    @abc.abstractmethod
    def __call__(self, state: LearnerState, key: PRNGKeyArray, context: Context = EMPTY) -> LearnerState:
        """The changed state. The state must have its origin attached where fresh parameters are drawn."""


@dataclass(frozen=True)
class Nothing(Intervention):
    """The state as it is."""

    def __call__(self, state, key, context=EMPTY):
        return state
