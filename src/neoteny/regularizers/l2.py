"""L2 penalties: towards zero, and towards the initial parameters (regenerative regularisation)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from neoteny.regularizers.regularizer import Parameters, Regularizer, chosen_parameters, sum_of_squares


@dataclass(frozen=True)
class L2(Regularizer):
    """coefficient * sum theta^2; gradient 2 * coefficient * theta. Has no memory.

    The weight decay of Lyle et al. 2023, section 5 (coefficient 1e-5), as part of the loss: with Adam the
    penalty's gradient goes through the moments, unlike decoupled decay.
    """

    coefficient: float | Array
    parameters: Parameters = Parameters.ALL

    def init(self, network):
        return ()

    def penalty(self, network, memory):
        return self.coefficient * sum_of_squares(chosen_parameters(network, self.parameters))

    def switch(self, network, memory):
        return memory


@dataclass(frozen=True)
class L2ToInit(Regularizer):
    """coefficient * sum (theta - theta_0)^2, theta_0 the parameters at the start, for all tasks.

    Kumar, Marklund & Van Roy 2023, "Maintaining plasticity in continual learning via regenerative
    regularization", equation 1. The memory is theta_0. After an intervention theta_0 is still the first
    draw.
    """

    coefficient: float | Array
    parameters: Parameters = Parameters.ALL

    def init(self, network):
        # Arrays of their own: a program that donates its state must not be given one buffer twice.
        return jax.tree.map(jnp.copy, chosen_parameters(network, self.parameters))

    def penalty(self, network, memory):
        difference = jax.tree.map(jnp.subtract, chosen_parameters(network, self.parameters), memory)
        return self.coefficient * sum_of_squares(difference)

    def switch(self, network, memory):
        return memory
