"""Naive width scaling: a running network goes on in a wider one, its new units drawn afresh (a baseline of Nikishin et
al. 2023, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from neoteny.interventions.draws import followers, selected
from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.interventions.reset import ONLINE
from neoteny.learners.learner import LearnerState
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Maker, as_network, split_trainable


def widen(state: LearnerState, key: PRNGKeyArray, *, maker: Maker, networks: Sequence[str] = ONLINE) -> LearnerState:
    """Exchange networks, and by the same draw their followers, for wider ones that hold them in their first units.

    maker: key -> a network of the same stages, no array of which is smaller in any axis. Old parameters and optimiser
    moments lie in the leading block of the new arrays; the rest is drawn, with zero moments, and counts go on. The new
    units are in use at once, so outputs change, and so does the number of trained parameters.

    KeyError for unknown networks; ValueError without an origin, for other stages, and where an array would have to
    shrink.
    """
    origin = state.require_origin()
    made, states = dict(state.networks), dict(state.optimizer)
    for network in selected(state, networks):
        drawn = as_network(maker(named_key(named_key(key, "widen"), network)))
        old = state.networks[network]
        if drawn.names != old.names:
            raise ValueError(
                f"the wider network must have the stages {', '.join(old.names)}; its maker gives "
                f"{', '.join(drawn.names)}"
            )
        for name in (network, *followers(state, network)):
            stages = {n: _holding(state.networks[name].stage(n), drawn.stage(n), f"stage {n!r}") for n in old.names}
            made[name] = drawn.replace(**stages)
        if network in states:
            optimizer = origin.optimizers[network]
            states[network] = {
                n: _holding(held, optimizer.init(split_trainable(made[network].stage(n))[0]), f"the state of {n!r}")
                for n, held in states[network].items()
            }
    memory = state.memory
    if origin.memory is not None:
        memory = _holding(memory, origin.memory(made), "the learner's memory")
    return LearnerState(made, states, memory, state.followers, state.origin)


def _holding(old: PyTree, new: PyTree, what: str) -> PyTree:
    """`new` with the arrays of `old` in the leading blocks of its own, in their types."""
    arrays, static = eqx.partition(new, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    held = jax.tree.leaves(eqx.filter(old, eqx.is_array))
    if len(held) != len(leaves):
        raise ValueError(f"{what} has {len(held)} arrays, and in the wider network {len(leaves)}")
    return eqx.combine(
        jax.tree.unflatten(structure, [_inside(a, b, what) for a, b in zip(held, leaves, strict=True)]), static
    )


def _inside(old: Array, new: Array, what: str) -> Array:
    if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        raise ValueError(f"{what} has an array of shape {old.shape}, which does not fit into {new.shape}")
    if old.shape == new.shape:
        return jnp.copy(old)
    return jax.lax.dynamic_update_slice(jax.lax.convert_element_type(new, old.dtype), old, (0,) * old.ndim)


@dataclass(frozen=True)
class Widen(Intervention):
    """`widen` as an intervention. Changes the structure of the state."""

    maker: Maker
    networks: tuple[str, ...] = ONLINE

    def __call__(self, state, key, context=EMPTY):
        return widen(state, key, maker=self.maker, networks=self.networks)
