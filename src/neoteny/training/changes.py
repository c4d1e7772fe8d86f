"""What the events between training do to a pack's state: switches, interventions, saves.

Each works on arrays and, traced by `jax.eval_shape`, on shapes alike; so the structure of any later state is known
without computing it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.host_experience import HostPlay
from neoteny.tasks.streams import Task
from neoteny.training.clock import Clock
from neoteny.training.events import Intervene
from neoteny.training.placing import AnyTask, PlacedData, shown
from neoteny.training.programs import Bank, Lanes, PackState, Programs
from neoteny.training.stepping import over_lanes
from neoteny.training.tracing import Tracer


def leaves_alike(one: Any, other: Any) -> bool:
    """Whether two trees have the same structure, shapes and types."""
    (left, left_structure), (right, right_structure) = jax.tree.flatten(one), jax.tree.flatten(other)
    return left_structure == right_structure and all(
        (a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(left, right, strict=True)
    )


def ready(state: PackState, metrics: tuple[str, ...]) -> PackState:
    """The state at the beginning of a `Train`: nothing summed, no lane held."""
    lanes = state.counted.shape
    count, none = np.zeros(lanes, np.int32), np.zeros(lanes, bool)
    totals = {name: np.zeros(lanes, np.float32) for name in metrics}
    return state._replace(totals=totals, counted=count, taken=count, streak=count, held=none)


class Changes:
    """The changes of one pack."""

    def __init__(self, programs: Programs, lanes: Lanes, data: PlacedData, tracer: Tracer):
        self._programs, self._lanes, self._data, self._tracer = programs, lanes, data, tracer

    def draw(self, task: AnyTask) -> Any:
        """Every lane's draw of the task."""
        return self._programs.draw(self._lanes, self._data.data(task), np.int32(task.draw), transform=shown(task))

    def experience(self, task: AnyTask, source: Any, play: HostPlay | None, clock: Clock, count: int) -> Any:
        """Every lane's experience in an environment to look at: `count` transitions of its replay.

        On the host `play` has it; without, only the shapes are right, which is all that tracing needs.
        """
        if play is not None:
            return self._programs.seen(play.sample(count, int(clock.update)))
        if source is None:
            assert isinstance(task, EnvironmentTask)
            lanes = len(self._lanes.seeds)
            outline = self._tracer.batch_shape(task, count)
            return jax.tree.map(lambda leaf: jnp.zeros((lanes, *leaf.shape), leaf.dtype), outline)
        data = self._data.data(task)
        return self._programs.experience(source, self._lanes, data, clock, transform=shown(task), count=count)

    def living(self, state: PackState, alive: np.ndarray) -> Any:
        """Learner states to look at: in dead lanes, their last finite networks."""
        return state.learner if alive.all() else self._programs.substitute(state, alive)

    def switched(self, state: PackState, task: AnyTask, clock: Clock) -> PackState:
        """The state at the beginning of a task."""
        learner, source = self._programs.switch(
            state.learner,
            self._lanes,
            self._data.arrays(task, "train"),
            np.int32(task.draw),
            clock,
            transform=shown(task),
        )
        return state._replace(learner=learner, source=source)

    def intervened(
        self,
        state: PackState,
        event: Intervene,
        task: AnyTask,
        number: int,
        alive: np.ndarray,
        bank: Bank,
        clock: Clock,
        trained: bool,
        play: HostPlay | None = None,
    ) -> PackState:
        """The state after an intervention that looks at this task; at an environment only if `trained` in it.

        Where it changes the structure of the networks, dead lanes go on from their last finite ones, changed like the
        others.
        """

        drawn, rows = (), None
        if isinstance(task, Task):
            drawn, rows = self.draw(task), np.asarray(task.rows("train")[: event.samples], np.int32)
        elif trained:
            drawn, rows = self.experience(task, state.source, play, clock, event.samples), np.arange(event.samples)

        def intervene(learner: Any) -> Any:
            return over_lanes(
                self._programs,
                self._programs.intervene,
                (learner, self._lanes, drawn, {name: bank[name] for name in event.intervention.saves}),
                self._data.data(task),
                rows,
                np.int32(number),
                separately=self._tracer.lane_by_lane(task, learner),
                transform=shown(task),
                intervention=event.intervention,
                when=event.when,
            )

        learner = intervene(state.learner)
        if leaves_alike(learner.networks, state.last_finite):
            return state._replace(learner=learner)
        if not alive.all():
            learner = intervene(self.living(state, alive))
        return state._replace(learner=learner, last_finite=self._programs.copy(learner.networks))


def lane_of(tree: Any, lane: int) -> Any:
    """One lane of a tree of arrays with a leading lane axis."""
    return jax.tree.map(lambda x: x[lane], tree)
