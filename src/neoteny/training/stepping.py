"""Lanes one after another: what is done where a convolution must not run inside a loop, or with weights that differ by
lane.

Training calls one compiled update from Python, which keeps its state in place; other programs are called with packs of
a single lane. Keys, clocks and conditions are those of the programs for whole packs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neoteny.tasks.sources import Given
from neoteny.tasks.streams import Transform
from neoteny.training.clock import Clock
from neoteny.training.events import Reached
from neoteny.training.programs import Lanes, PackState, Programs


def over_lanes(programs: Programs, program: Any, mapped: tuple, *shared: Any, separately: bool, **static: Any) -> Any:
    """program(*mapped, *shared, **static) of a pack; `mapped` have a lane axis. Computed one lane after another if
    `separately`.
    """
    if not separately:
        return program(*mapped, *shared, **static)
    count = jax.tree.leaves(mapped)[0].shape[0]
    parts = [program(*programs.lanes(mapped, np.int32(lane), 1), *shared, **static) for lane in range(count)]
    return jax.tree.map(lambda *lanes: jnp.concatenate(lanes), *parts)


class Stepper:
    """Trains a pack lane by lane, update by update."""

    def __init__(self, programs: Programs, lanes: Lanes):
        self._programs = programs
        self._lanes = [
            ({name: column[lane] for name, column in lanes.values.items()}, seed)
            for lane, seed in enumerate(lanes.seeds)
        ]

    def chunk(
        self,
        state: PackState,
        task: Given,
        clock: Clock,
        steps: int,
        alive: np.ndarray,
        *,
        transform: Any,
        until: Reached | None,
    ) -> tuple[PackState, int, int]:
        """What `Programs.chunk` does: at most `steps` updates; with `until`, none once every living lane is held."""
        lanes, after = range(len(self._lanes)), clock
        if until is None:
            for lane in lanes:
                state, _, after = self._lane(state, lane, task, clock, steps, transform, None)
            return state, steps, int(after.env_step - clock.env_step)
        ran, clocks = {}, {}
        for lane in filter(alive.__getitem__, lanes):
            state, ran[lane], clocks[lane] = self._lane(state, lane, task, clock, steps, transform, until)
        # The clock is shared: it goes as far as the lane that took longest, and all others go along.
        longest = max(ran.values(), default=0)
        after = next((clocks[lane] for lane in ran if ran[lane] == longest), clock)
        for lane in lanes:
            if alive[lane]:
                state = self._follow(state, lane, task, clocks[lane], longest - ran[lane], transform)
            else:
                state, _, _ = self._lane(state, lane, task, clock, longest, transform, until, to_the_end=True)
        return state, longest, int(after.env_step - clock.env_step)

    def _lane(
        self,
        state: PackState,
        lane: int,
        task: Given,
        clock: Clock,
        steps: int,
        transform: Any,
        until: Reached | None,
        to_the_end: bool = False,
    ) -> tuple[PackState, int, Clock]:
        """The state after at most `steps` updates of a lane, until it is held; how many they were, and the clock."""
        values, seed = self._lanes[lane]
        one, done = self._programs.lane(state, np.int32(lane)), 0
        while done < steps and (until is None or to_the_end or not one.held):
            one, cost = self._programs.step(one, values, seed, task, clock, transform=transform, until=until)
            clock, done = self._ticked(clock, cost, transform), done + 1
        return self._programs.put(state, one, np.int32(lane)), done, clock

    def _follow(
        self, state: PackState, lane: int, task: Given, clock: Clock, updates: int, transform: Any
    ) -> PackState:
        """The state after so many more updates of the other lanes."""
        if updates == 0:
            return state
        values, seed = self._lanes[lane]
        one = self._programs.lane(state, np.int32(lane))
        for _ in range(updates):
            one, cost = self._programs.follow(one, values, seed, task, clock, transform=transform)
            clock = self._ticked(clock, cost, transform)
        return self._programs.put(state, one, np.int32(lane))

    def _ticked(self, clock: Clock, cost: Any, transform: Any) -> Clock:
        # Data cost no environment steps; asking for the number would wait for the update.
        return clock.tick() if isinstance(transform, Transform) else clock.tick(np.asarray(cost))
