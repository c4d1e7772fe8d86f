"""Training where environments are on the host: emulators and replay there, one compiled update for all lanes.

While an update is computed the steps before the next one are played. Where a convolution must not run with weights that
differ by lane, lanes are computed one after another, as in `stepping`; they play side by side all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from neoteny.learners.learner import LearnerState
from neoteny.tasks.host_experience import HostAct, HostPlay
from neoteny.training.clock import Clock
from neoteny.training.events import Reached
from neoteny.training.programs import Lanes, PackState, Programs, acting, apart, together


class Stretch(NamedTuple):
    """What a chunk did: updates, environment steps, and in how many of these the network was asked."""

    updates: int
    env_steps: int
    asked: int


class HostLoop:
    """Trains a pack whose environments are on the host."""

    def __init__(self, programs: Programs, lanes: Lanes):
        self._programs, self._lanes = programs, lanes
        self._each = [
            ({name: column[lane] for name, column in lanes.values.items()}, seed)
            for lane, seed in enumerate(lanes.seeds)
        ]

    def policy(self, learner: LearnerState, *, separately: bool) -> HostAct:
        """The policy of learner states with a lane axis."""
        return self._policy(self._parts(acting(learner), separately), separately)

    def _parts(self, tree: Any, separately: bool) -> list[Any]:
        if not separately:
            return [tree]
        return [self._programs.lane(tree, np.int32(lane)) for lane in range(len(self._each))]

    def _policy(self, leading: Sequence[LearnerState], separately: bool) -> HostAct:
        programs, lanes = self._programs, self._lanes

        def act(shown: np.ndarray, counters: np.ndarray) -> np.ndarray:
            if not separately:
                return np.asarray(programs.act_all(leading[0], shown, lanes.values, lanes.seeds, counters))
            each = zip(leading, shown, self._each, strict=True)
            # All are begun before the first is waited for.
            chosen = [programs.act(one, frames, *lane, counters) for one, frames, lane in each]
            return np.stack([np.asarray(actions) for actions in chosen])

        return act

    def chunk(
        self,
        state: PackState,
        play: HostPlay,
        clock: Clock,
        steps: int,
        remaining: int,
        alive: np.ndarray,
        *,
        separately: bool,
        until: Reached | None,
    ) -> tuple[PackState, Stretch]:
        """At most `steps` of the `remaining` updates of a `Train`, none beyond the end of a segment; with `until`, none
        once every living lane is held. Before the first update of a task, a part of what fills the replay.
        """
        if not play.filled:
            play.fill()
            return state, Stretch(0, 0, 0)
        # What no update changes stays behind.
        parts = [apart(part) for part in self._parts(state._replace(last_finite={}, source=None), separately)]
        ran = env_steps = asked = 0
        while ran < steps:
            newest = self._policy([leading for leading, _ in parts], separately)
            batch, cost = play.next(newest, int(clock.task_update))
            parts = self._learn(parts, batch, clock, np.int32(cost.steps), separately, until)
            clock, ran = clock.advanced(1, cost.steps), ran + 1
            env_steps, asked = env_steps + cost.steps, asked + cost.asked
            if until is not None and not (alive & ~self._held(parts)).any():
                break
            if play.at_boundary:
                break
            if play.source.ahead and until is None and ran < remaining:
                play.play_ahead(newest)
        return self._joined(state, parts, separately), Stretch(ran, env_steps, asked)

    def _learn(
        self, parts: list, batch: Any, clock: Clock, cost: np.int32, separately: bool, until: Reached | None
    ) -> list:
        programs = self._programs
        if not separately:
            leading, rest = parts[0]
            return [apart(programs.learn_all(leading, rest, batch, self._lanes, clock, cost, until=until))]
        learned = []
        for number, ((leading, rest), lane) in enumerate(zip(parts, self._each, strict=True)):
            own = jax.tree.map(lambda leaf, number=number: leaf[number], batch)
            learned.append(apart(programs.learn(leading, rest, own, *lane, clock, cost, until=until)))
        return learned

    def _held(self, parts: list) -> np.ndarray:
        return np.atleast_1d(np.squeeze(np.stack([np.asarray(rest.held) for _, rest in parts])))

    def _joined(self, state: PackState, parts: list, separately: bool) -> PackState:
        """The pack's state with what the updates changed."""
        for number, (leading, rest) in enumerate(parts):
            whole = together(leading, rest)
            if not separately:
                return whole._replace(last_finite=state.last_finite, source=state.source)
            changed = self._programs.put(state._replace(last_finite={}, source=None), whole, np.int32(number))
            state = changed._replace(last_finite=state.last_finite, source=state.source)
        return state
