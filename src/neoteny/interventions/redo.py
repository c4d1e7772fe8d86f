"""ReDo: recycle dormant units (Sokar et al. 2023, definition 3.1 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from neoteny.interventions.draws import (
    followers,
    fresh_network,
    fresh_stage,
    rebuilt,
    selected,
    stage_names,
)
from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.interventions.reset import ONLINE
from neoteny.learners.learner import LearnerState
from neoteny.networks.dense import Dense
from neoteny.networks.network import Chain, Layer, Network, PerExample, split_trainable

Features = Callable[[Network, Array], dict[str, Array]]
"""features(network, inputs) -> {stage: (batch, ..., units)}."""

TAU = 0.025
"""The threshold of a dormant unit (Sokar et al. 2023, section 5)."""


def stage_outputs(network: Network, inputs: Array) -> dict[str, Array]:
    """Every stage's output in evaluation mode."""
    return network(inputs).stages


def dormant_units(activations: Float[Array, "batch ... units"], tau: float | Array = TAU) -> Bool[Array, " units"]:
    """Which units' mean |a|, over all other axes, is <= tau * its mean over units; all in a zero layer."""
    scores = jnp.mean(jnp.abs(activations), axis=tuple(range(activations.ndim - 1)))
    return scores <= tau * jnp.mean(scores)


def redo(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    inputs: Float[Array, "batch ..."],
    tau: float | Array = TAU,
    stages: Sequence[str] | None = None,
    networks: Sequence[str] = ONLINE,
    features: Features = stage_outputs,
) -> LearnerState:
    """Recycle the dormant units of hidden stages, as measured on `inputs`.

    A recycled unit's incoming weights, bias and normalisation parameters are drawn again from the maker,
    its outgoing weights are set to zero, and the optimiser's moments of all those entries too; counts and
    every other entry are untouched. stages: those to recycle in; None for every stage with a kernel but the
    last. A network's followers are changed at the same entries by the same draw. Units are those of a
    network before any change.

    Units are followed through chains: a stage's units are the outputs of its last kernel, and the next
    kernel after it takes them in, once or (flattened, channels last) once a place. ValueError naming the
    stage where this cannot be: layers with several kernels or branches, activations that change the number
    of units, and channels-first convolutions. Such networks need `stages` that leave those out. Functions
    of the recycled units' next stage keep their values exactly where the recycled units were silent (tau =
    0) and the stage has no normalisation over units.
    """
    new_networks, new_states = {}, {}
    for network in selected(state, networks):
        online = state.networks[network]
        fresh = fresh_network(state, key, network)
        incoming, outgoing = _masks(online, features(online, inputs), tau, stages)
        touched = [name for name in online.names if name in incoming]
        for name in (network, *followers(state, network)):
            old = state.networks[name]
            changed = {}
            for stage in touched:
                parameters, rest = split_trainable(old.stage(stage))
                drawn, _ = split_trainable(fresh_stage(old.stage(stage), fresh, stage))
                mixed = jax.tree.map(_recycled, parameters, drawn, incoming[stage], outgoing[stage])
                changed[stage] = eqx.combine(mixed, rest)
            new_networks[name] = old.replace(**changed)
        held = state.optimizer.get(network, {})
        if any(stage in held for stage in touched):
            optimizer = state.require_origin().optimizers[network]
            new_states[network] = {
                stage: _cleared(optimizer, held[stage], jax.tree.map(jnp.logical_or, incoming[stage], outgoing[stage]))
                for stage in touched
                if stage in held
            }
    return rebuilt(state, new_networks, new_states)


def _recycled(old: Array, new: Array, incoming: Array, outgoing: Array) -> Array:
    """Outgoing wins: an entry from one recycled unit to another is zero."""
    return jnp.where(outgoing, jnp.zeros_like(old), jnp.where(incoming, new, old))


def _cleared(optimizer: optax.GradientTransformation, state: PyTree, mask: PyTree) -> PyTree:
    """The optimiser state with zero wherever it holds something about a masked entry."""
    return optax.tree_utils.tree_map_params(
        optimizer, lambda moment, where: jnp.where(where, jnp.zeros_like(moment), moment), state, mask
    )


def _masks(
    network: Network, outputs: dict[str, Array], tau: float | Array, stages: Sequence[str] | None
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(incoming, outgoing): for every stage with entries of recycled units, masks like its parameters."""
    parameters = {name: split_trainable(network.stage(name))[0] for name in network.names}
    names = stage_names(network, stages)
    if stages is None:
        names = tuple(name for name in names[:-1] if _has_kernel(parameters[name]))
    incoming: dict[str, PyTree] = {}
    outgoing: dict[str, PyTree] = {}
    for name in names:
        dormant = dormant_units(outputs[name], tau)
        following = [n for n in network.names[network.index(name) + 1 :] if _has_kernel(parameters[n])]
        if not following:
            raise ValueError(f"redo: no kernel takes in the units of stage {name!r}; leave it out of stages")
        receiver = following[0]
        for stage in (name, receiver):
            nothing = jax.tree.map(lambda array: jnp.zeros(array.shape, bool), parameters[stage])
            incoming.setdefault(stage, nothing)
            outgoing.setdefault(stage, nothing)
        incoming[name] = _either(incoming[name], _incoming(parameters[name], dormant, name))
        outgoing[receiver] = _either(outgoing[receiver], _outgoing(parameters[receiver], dormant, receiver, name))
    return incoming, outgoing


def _either(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.logical_or, one, other)


def _is_kernel(array: Array) -> bool:
    return array.ndim >= 2


def _has_kernel(parameters: PyTree) -> bool:
    return any(map(_is_kernel, jax.tree.leaves(parameters)))


def _layers(layer: Layer) -> list:
    """The modules of nested chains, in order."""
    if isinstance(layer, Chain):
        return [inner for part in layer.layers for inner in _layers(part)]
    if isinstance(layer, PerExample):
        return [layer.module]
    return [layer]


def _with_layers(layer: Layer, masks: list) -> Layer:
    """`layer` with the modules of nested chains exchanged; takes them off the front of `masks`."""
    if isinstance(layer, Chain):
        return eqx.tree_at(lambda chain: chain.layers, layer, tuple(_with_layers(part, masks) for part in layer.layers))
    if isinstance(layer, PerExample):
        return PerExample(masks.pop(0))
    return masks.pop(0)


def _kernel_axes(layer: object, stage: str) -> tuple[int, int]:
    """(input axis, output axis) of the layer's one kernel."""
    inner = jax.tree.leaves(layer, is_leaf=lambda node: isinstance(node, eqx.Module) and node is not layer)
    nested = any(isinstance(node, eqx.Module) and _has_kernel(node) for node in inner)
    if nested or sum(map(_is_kernel, jax.tree.leaves(layer))) != 1:
        raise ValueError(
            f"redo cannot tell which weights belong to a unit of stage {stage!r}: its {type(layer).__name__} "
            "holds several kernels or layers; name stages to recycle in that neither have one nor feed one"
        )
    if isinstance(layer, Dense | eqx.nn.Linear):
        return 1, 0
    if isinstance(layer, Layer):
        return -2, -1  # any other layer's kernel is (..., inputs, outputs)
    raise ValueError(
        f"redo does not know the axes of the kernel of {type(layer).__name__} in stage {stage!r}; write the "
        "stage with this package's layers"
    )


def _along(mask: Array, array: Array, axis: int) -> Array:
    """A vector of flags as a mask of `array`, along one of its axes."""
    shape = [1] * array.ndim
    shape[axis] = mask.size
    return jnp.broadcast_to(mask.reshape(shape), array.shape)


def _incoming(parameters: Layer, dormant: Bool[Array, " units"], stage: str) -> Layer:
    """Marks everything that makes the dormant units: from the last kernel on, the entries of those units."""
    layers = _layers(parameters)
    holders = [index for index, layer in enumerate(layers) if _has_kernel(layer)]
    if not holders:
        raise ValueError(f"redo: stage {stage!r} has no kernel, so it has no units of its own; leave it out of stages")
    last = holders[-1]
    _, axis = _kernel_axes(layers[last], stage)
    units = next(array.shape[axis] for array in jax.tree.leaves(layers[last]) if _is_kernel(array))
    if units != dormant.size:
        raise ValueError(
            f"redo: stage {stage!r} puts out {dormant.size} units and its last kernel makes {units}; "
            "leave it out of stages"
        )

    def mark(array: Array, here: bool) -> Array:
        if here and _is_kernel(array):
            return _along(dormant, array, axis)
        return dormant if here and array.shape == (units,) else jnp.zeros(array.shape, bool)

    masks = [
        jax.tree.map(lambda array, here=index >= last: mark(array, here), layer) for index, layer in enumerate(layers)
    ]
    return _with_layers(parameters, masks)


def _outgoing(parameters: Layer, dormant: Bool[Array, " units"], stage: str, source: str) -> Layer:
    """Marks the entries of the stage's first kernel that take in the dormant units."""
    layers = _layers(parameters)
    first = next(index for index, layer in enumerate(layers) if _has_kernel(layer))
    axis, _ = _kernel_axes(layers[first], stage)

    def mark(array: Array, here: bool) -> Array:
        if not (here and _is_kernel(array)):
            return jnp.zeros(array.shape, bool)
        places, left = divmod(array.shape[axis], dormant.size)
        if left or not places:
            raise ValueError(
                f"redo: stage {stage!r} takes in {array.shape[axis]} values, no multiple of the "
                f"{dormant.size} units of stage {source!r}; leave {source!r} out of stages"
            )
        # Feature maps are flattened channels last, so the units repeat once a place.
        return _along(jnp.tile(dormant, places), array, axis)

    masks = [
        jax.tree.map(lambda array, here=index == first: mark(array, here), layer) for index, layer in enumerate(layers)
    ]
    return _with_layers(parameters, masks)


@dataclass(frozen=True)
class Redo(Intervention):
    """`redo` as an intervention, on the batch its event supplies."""

    tau: float = TAU
    stages: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ONLINE

    def __call__(self, state, key, context=EMPTY):
        return redo(
            state,
            key,
            inputs=context.require_inputs(),
            tau=self.tau,
            stages=self.stages,
            networks=self.networks,
        )
