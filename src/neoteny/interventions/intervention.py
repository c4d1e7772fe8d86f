"""The protocol of interventions: frozen dataclasses whose call maps a learner's state to a state."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Array, PRNGKeyArray

from neoteny.learners.learner import LearnerState
from neoteny.networks.network import Network


@dataclass(frozen=True, eq=False)
class Context:
    """What an event supplies to an intervention: a batch of training data, and networks saved before.

    inputs: (batch, ...). loss(network) -> scalar, the training loss on the same batch. saved: save -> name ->
    network, for the saves the intervention declares. Made inside the traced program; never an argument or a result
    of one.
    """

    inputs: Array | None = None
    loss: Callable[[Network], Array] | None = None
    saved: Mapping[str, Mapping[str, Network]] = field(default_factory=dict)

    def require_inputs(self) -> Array:
        """The inputs, or a ValueError saying how to supply them."""
        if self.inputs is None:
            raise ValueError("this intervention looks at data; give its event a task: Intervene(..., on=task)")
        return self.inputs

    def require_saved(self, name: str) -> Mapping[str, Network]:
        """The networks kept by `Save(name)`, or a ValueError saying how to have them."""
        if name not in self.saved:
            raise ValueError(
                f"no saved networks {name!r} here; the script needs Save({name!r}) before this, and the intervention "
                "must name it in its property `saves`"
            )
        return self.saved[name]


EMPTY = Context()
"""No data."""


class Intervention(abc.ABC):
    """A change of parameters and optimiser state together.

    Subclasses are frozen dataclasses of plain values (numbers, text, tuples, enums), so that they can be
    written in a configuration. The call is pure, works under jit and vmap, and keeps the structure, shapes
    and types of the state unless the class says otherwise; the caller gates it. Followers get the same
    draws as the network they follow.
    """

    @property
    def saves(self) -> tuple[str, ...]:
        """Names of the saves it reads, whose networks `context.saved` then holds."""
        return ()

    @abc.abstractmethod
    def __call__(self, state: LearnerState, key: PRNGKeyArray, context: Context = EMPTY) -> LearnerState:
        """The changed state. The state must have its origin attached where fresh parameters are drawn."""


@dataclass(frozen=True)
class Nothing(Intervention):
    """The state as it is."""

    def __call__(self, state, key, context=EMPTY):
        return state
