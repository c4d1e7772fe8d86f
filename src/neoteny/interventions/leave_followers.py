"""An intervention on the networks that are trained alone, not on those that follow them."""

from __future__ import annotations

from dataclasses import dataclass

from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.learners.learner import LearnerState


@dataclass(frozen=True)
class LeaveFollowers(Intervention):
    """`intervention` with the followers put back as they were.

    A target network then goes on giving the values it had, and what was reset learns them again: with followers changed
    alike, a reset at every copy of the target would leave nothing of what was learned (Lyle et al. 2023, section 5, do
    not say which). Only for interventions that keep shapes.
    """

    intervention: Intervention

    @property
    def saves(self):
        return self.intervention.saves

    def __call__(self, state, key, context=EMPTY):
        changed = self.intervention(state, key, context)
        kept = {name: state.networks[name] for name, _ in state.followers}
        networks = {**changed.networks, **kept}
        return LearnerState(networks, changed.optimizer, changed.memory, changed.followers, changed.origin)
