"""Reset: stages drawn again, optimiser state begun again (Nikishin et al. 2022; Lyle et al. 2023)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from neoteny.interventions.draws import (
    followers,
    fresh_moments,
    fresh_network,
    fresh_stage,
    rebuilt,
    select,
    selected,
    stage_names,
)
from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.learners.learner import LearnerState
from neoteny.networks.network import Network


class Moments(enum.Enum):
    """What happens to the optimiser state (moments and counts) of the stages an intervention changes."""

    KEEP = "keep"
    """It goes on."""
    FRESH = "fresh"
    """It begins again, counts included."""


ONLINE = ("online",)


def reset(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    stages: Sequence[str] | int | Int[Array, ""] | None,
    networks: Sequence[str] = ONLINE,
    moments: Moments = Moments.FRESH,
) -> LearnerState:
    """Draw stages again, parameters and statistics; every other leaf of the state is untouched.

    stages: names; or one position in the order of stages, negative from the end (-1: the last), which may
    be traced and differ between lanes; or None for all. networks: each gets its own draw, and its followers
    the same. moments: of the stages drawn again. Stages without optimiser state (frozen ones) have none to
    reset. KeyError for unknown names, ValueError without an origin.
    """
    new_networks, new_states = {}, {}
    for network in selected(state, networks):
        fresh = fresh_network(state, key, network)
        chosen = _chosen(state.networks[network], stages)
        for name in (network, *followers(state, network)):
            old = state.networks[name]
            drawn = {stage: fresh_stage(old.stage(stage), fresh, stage) for stage in chosen}
            exchanged = {stage: _where(chosen[stage], drawn[stage], old.stage(stage)) for stage in chosen}
            new_networks[name] = old.replace(**exchanged)
        if moments is Moments.FRESH:
            new_states[network] = _fresh_states(state, network, new_networks[network], chosen)
    return rebuilt(state, new_networks, new_states)


def reset_optimizer(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    stages: Sequence[str] | int | Int[Array, ""] | None = None,
    networks: Sequence[str] = ONLINE,
) -> LearnerState:
    """Begin the stages' optimiser state again, moments and counts; nothing is drawn."""
    del key
    new_states = {}
    for network in selected(state, networks):
        kept = state.networks[network]
        new_states[network] = _fresh_states(state, network, kept, _chosen(kept, stages))
    return rebuilt(state, {}, new_states)


def _chosen(network: Network, stages: Sequence[str] | int | Array | None) -> dict[str, Array | bool]:
    """The stages that may change, with whether they do: True, or a traced boolean."""
    if isinstance(stages, int):
        if not -len(network.names) <= stages < len(network.names):
            raise ValueError(f"no stage number {stages}; the stages are {', '.join(network.names)}")
        return {network.names[stages]: True}
    if isinstance(stages, Array):
        if stages.ndim or not jnp.issubdtype(stages.dtype, jnp.integer):
            raise ValueError(f"a stage number must be one integer, not {stages.dtype} of shape {stages.shape}")
        position = jnp.where(stages < 0, stages + len(network.names), stages)
        return {name: position == index for index, name in enumerate(network.names)}
    return dict.fromkeys(stage_names(network, stages), True)


def _where(chosen, new, old):
    return new if chosen is True else select(chosen, new, old)


def _fresh_states(state: LearnerState, network: str, made: Network, chosen: dict[str, Array | bool]) -> dict:
    held = state.optimizer.get(network, {})
    return {
        name: _where(chosen[name], fresh_moments(state, network, name, made.stage(name)), held[name])
        for name in chosen
        if name in held
    }


@dataclass(frozen=True)
class Reset(Intervention):
    """`reset` as an intervention; stages as names, or one position (-1: the last stage), or None for all."""

    stages: tuple[str, ...] | int | None
    networks: tuple[str, ...] = ONLINE
    moments: Moments = Moments.FRESH

    def __call__(self, state, key, context=EMPTY):
        return reset(state, key, stages=self.stages, networks=self.networks, moments=self.moments)


@dataclass(frozen=True)
class ResetOptimizer(Intervention):
    """`reset_optimizer` as an intervention."""

    stages: tuple[str, ...] | int | None = None
    networks: tuple[str, ...] = ONLINE

    def __call__(self, state, key, context=EMPTY):
        return reset_optimizer(state, key, stages=self.stages, networks=self.networks)
