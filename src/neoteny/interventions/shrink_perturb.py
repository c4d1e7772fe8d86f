"""Shrink and perturb (Ash & Adams 2020, section 3; Lyle et al. 2023, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from neoteny.interventions.draws import (
    followers,
    fresh_moments,
    fresh_network,
    fresh_stage,
    rebuilt,
    selected,
    stage_names,
)
from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.interventions.reset import ONLINE, Moments
from neoteny.learners.learner import LearnerState
from neoteny.networks.network import Layer, split_trainable


def shrink_perturb(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    shrink: float | Array = 0.8,
    perturb: float | Array = 0.2,
    stages: Sequence[str] | None = None,
    networks: Sequence[str] = ONLINE,
    moments: Moments = Moments.KEEP,
) -> LearnerState:
    """theta <- shrink * theta + perturb * fresh draw, for all trained parameters of the stages.

    stages: names, None for all. The draw is from the maker, a new one for every key. Statistics are
    untouched. A network's followers are shrunk and perturbed by the same draw. moments: of those stages.
    KeyError for unknown names, ValueError without an origin. The defaults are not given in the papers; they
    are those of this laboratory.
    """

    def mixed(stage: Layer, drawn: Layer) -> Layer:
        parameters, rest = split_trainable(stage)
        fresh, _ = split_trainable(drawn)
        mix = jax.tree.map(lambda old, new: (shrink * old + perturb * new).astype(old.dtype), parameters, fresh)
        return eqx.combine(mix, rest)

    new_networks, new_states = {}, {}
    for network in selected(state, networks):
        fresh = fresh_network(state, key, network)
        names = stage_names(state.networks[network], stages)
        for name in (network, *followers(state, network)):
            old = state.networks[name]
            changed = {n: mixed(old.stage(n), fresh_stage(old.stage(n), fresh, n)) for n in names}
            new_networks[name] = old.replace(**changed)
        if moments is Moments.FRESH:
            held = state.optimizer.get(network, {})
            new_states[network] = {
                name: fresh_moments(state, network, name, new_networks[network].stage(name))
                for name in names
                if name in held
            }
    return rebuilt(state, new_networks, new_states)


@dataclass(frozen=True)
class ShrinkPerturb(Intervention):
    """`shrink_perturb` as an intervention."""

    shrink: float = 0.8
    perturb: float = 0.2
    stages: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ONLINE
    moments: Moments = Moments.KEEP

    def __call__(self, state, key, context=EMPTY):
        return shrink_perturb(
            state,
            key,
            shrink=self.shrink,
            perturb=self.perturb,
            stages=self.stages,
            networks=self.networks,
            moments=self.moments,
        )
