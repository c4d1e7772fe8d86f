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

from neoteny.tasks.sources import TaskArrays
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
        task: TaskArrays,
        clock: Clock,
        steps: int,
        alive: np.ndarray,
        *,
        transform: Transform,
        until: Reached | None,
    ) -> tuple[PackState, int]:
        """What `Programs.chunk` does: at most `steps` updates; with `until`, none once every living lane is held."""
        lanes = range(len(self._lanes))
        if until is None:
            for lane in lanes:
                state, _ = self._lane(state, lane, task, clock, steps, transform, None)
            return state, steps
        ran = {}
        for lane in filter(alive.__getitem__, lanes):
            state, ran[lane] = self._lane(state, lane, task, clock, steps, transform, until)
        # The clock is shared: it goes as far as the lane that took longest, and all others go along.
        longest = max(ran.values(), default=0)
        for lane in lanes:
            if alive[lane]:
                state = self._follow(state, lane, task, clock, ran[lane], longest, transform)
            else:
                state, _ = self._lane(state, lane, task, clock, longest, transform, until, to_the_end=True)
        return state, longest

    def _lane(
        self,
        state: PackState,
        lane: int,
        task: TaskArrays,
        clock: Clock,
        steps: int,
        transform: Transform,
        until: Reached | None,
        to_the_end: bool = False,
    ) -> tuple[PackState, int]:
        """The state after at most `steps` updates of a lane, until it is held; and how many they were."""
        values, seed = self._lanes[lane]
        one, done = self._programs.lane(state, np.int32(lane)), 0
        while done < steps and (until is None or to_the_end or not one.held):
            one = self._programs.step(one, values, seed, task, clock, transform=transform, until=until)
            clock, done = clock.tick(), done + 1
        return self._programs.put(state, one, np.int32(lane)), done

    def _follow(
        self, state: PackState, lane: int, task: TaskArrays, clock: Clock, ran: int, longest: int, transform: Transform
    ) -> PackState:
        if ran == longest:
            return state
        _, seed = self._lanes[lane]
        one, clock = self._programs.lane(state, np.int32(lane)), clock.advanced(ran)
        for _ in range(longest - ran):
            one = self._programs.follow(one, seed, task, clock, transform=transform)
            clock = clock.tick()
        return self._programs.put(state, one, np.int32(lane))
