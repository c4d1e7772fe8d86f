"""Fresh parameters and fresh optimiser state of the structure a state already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from neoteny.learners.learner import LearnerState
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Layer, Network, as_network, split_trainable


def selected(state: LearnerState, networks: Sequence[str]) -> tuple[str, ...]:
    """`networks` if the state has them all; KeyError naming the ones there are."""
    if isinstance(networks, str):
        raise TypeError(f"networks must be a tuple of names, not the text {networks!r}; write ({networks!r},)")
    for name in networks:
        if name not in state.networks:
            raise KeyError(f"no network {name!r}; the networks are {', '.join(state.networks)}")
    return tuple(networks)


def stage_names(network: Network, stages: Sequence[str] | None) -> tuple[str, ...]:
    """`stages` if the network has them all, every stage for None; KeyError naming the ones there are."""
    if stages is None:
        return network.names
    if isinstance(stages, str):
        raise TypeError(f"stages must be a tuple of names, not the text {stages!r}; write ({stages!r},)")
    for name in stages:
        network.index(name)
    return tuple(stages)


def followers(state: LearnerState, name: str) -> tuple[str, ...]:
    """The networks that follow the network called `name`."""
    return tuple(follower for follower, leader in state.followers if leader == name)


def fresh_network(state: LearnerState, key: PRNGKeyArray, name: str) -> Network:
    """A new draw from the maker of the network called `name`; every network has a draw of its own."""
    makers = state.require_origin().makers
    if name not in makers:
        raise KeyError(f"the origin has no maker for network {name!r}; it has makers for {', '.join(makers)}")
    return as_network(makers[name](named_key(key, name)))


def fresh_stage(stage: Layer, fresh: Network, name: str) -> Layer:
    """The stage of `fresh` called `name`, in the structure and types of `stage`.

    ValueError where an array has another shape, as after an intervention that changed the stage.
    """
    return like(fresh.stage(name), stage, f"stage {name!r}")


def like(new: PyTree, old: PyTree, what: str) -> PyTree:
    """The arrays of `new` in the places and types of the arrays of `old`; all else is `old`'s.

    Functions and other static values of a second draw need not be equal to the first's, and a structure
    that changed would be a new program. ValueError naming the array whose shape differs.
    """
    kept, static = eqx.partition(old, eqx.is_array)
    paths, structure = jax.tree_util.tree_flatten_with_path(kept)
    arrays = jax.tree.leaves(eqx.filter(new, eqx.is_array))
    if len(arrays) != len(paths):
        raise ValueError(
            f"{what} has {len(paths)} arrays, and a fresh draw has {len(arrays)}; its structure was changed"
        )
    converted = []
    for (path, array), drawn in zip(paths, arrays, strict=True):
        if array.shape != drawn.shape:
            raise ValueError(
                f"{what} at {jax.tree_util.keystr(path)} has shape {array.shape}, and a fresh draw "
                f"{drawn.shape}; its structure was changed"
            )
        # Keys have no numbers to convert. A converted number is strongly typed: resuming does not recompile.
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        converted.append(drawn if is_key else jax.lax.convert_element_type(drawn, array.dtype))
    return eqx.combine(jax.tree.unflatten(structure, converted), static)


def fresh_moments(state: LearnerState, network: str, name: str, stage: Layer) -> PyTree:
    """Fresh optimiser state for `stage` in the structure of the state the stage called `name` has now."""
    optimizers = state.require_origin().optimizers
    if network not in optimizers:
        raise KeyError(f"the origin has no optimiser for network {network!r}; it has them for {', '.join(optimizers)}")
    drawn = optimizers[network].init(split_trainable(stage)[0])
    return like(drawn, state.optimizer[network][name], f"the optimiser state of stage {name!r}")


def select(chosen: Array, new: PyTree, old: PyTree) -> PyTree:
    """The arrays of `new` where `chosen` (a boolean scalar), else those of `old`; all else is `old`'s."""
    new_arrays = eqx.filter(new, eqx.is_array)
    old_arrays, static = eqx.partition(old, eqx.is_array)
    arrays = jax.tree.map(lambda a, b: jnp.where(chosen, a, b), new_arrays, old_arrays)
    return eqx.combine(arrays, static)


def rebuilt(
    state: LearnerState, networks: Mapping[str, Network], optimizer: Mapping[str, Mapping[str, PyTree]]
) -> LearnerState:
    """`state` with the named networks and the named stages' optimiser states exchanged."""
    states = {
        network: {name: optimizer.get(network, {}).get(name, kept) for name, kept in stages.items()}
        for network, stages in state.optimizer.items()
    }
    everything = {name: networks.get(name, network) for name, network in state.networks.items()}
    return LearnerState(everything, states, state.memory, state.followers, state.origin)
