"""The structure of a pack's state at every step of its script, found by tracing and computed by no program."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from neoteny.tasks.streams import Task
from neoteny.training.changes import Changes, ready
from neoteny.training.clock import Clock
from neoteny.training.events import Intervene, Save, Switch, Train
from neoteny.training.placing import AnyTask, shown
from neoteny.training.standing import Outline
from neoteny.training.tracing import Tracer, signature
from neoteny.training.unfolding import Branch, Rejoin, Step, read_after

Stack = tuple[Outline, ...]
"""The run's own standing, then those of the branches under way, innermost last."""


def _data(task: AnyTask) -> Hashable:
    return (shown(task), id(task.data)) if isinstance(task, Task) else shown(task)


class Outliner:
    """Walks the steps of a pack over shapes alone; what is alike is traced once."""

    def __init__(self, steps: Sequence[Step], tracer: Tracer, changes: Changes):
        self._steps, self._tracer, self._changes = steps, tracer, changes
        self._read_after = read_after(steps)
        self._found: dict[Hashable, Any] = {}

    def walk(self) -> Iterator[tuple[int, Step, Stack]]:
        """(position, step, the stack before it), for every step."""
        stack: Stack = (self._initial(),)
        for position, step in enumerate(self._steps):
            yield position, step, stack
            stack = self._after(position, stack)

    def at(self, position: int, begun: bool) -> Stack:
        """The stack before the step at this position, or within it if it has `begun`."""
        stack: Stack = (self._initial(),)
        for index in range(position):
            stack = self._after(index, stack)
        return (*stack[:-1], self._trained(stack[-1], self._steps[position])) if begun else stack

    def after(self, position: int) -> Outline:
        """The innermost outline right after this step."""
        return self._after(position, self.at(position, False))[-1]

    def _initial(self) -> Outline:
        return Outline(self._tracer.initial(), {}, None)

    def _after(self, position: int, stack: Stack) -> Stack:
        step, here = self._steps[position], stack[-1]
        event = step.event
        if isinstance(event, Branch):
            stack = (*stack, here._replace(source_since=position))
        elif isinstance(event, Rejoin):
            stack = stack[:-1]
        else:
            stack = (*stack[:-1], self._changed(position, step, here))
        *outer, here = stack
        bank = {name: kept for name, kept in here.bank.items() if name in self._read_after[position]}
        return (*outer, here._replace(bank=bank))

    def _changed(self, position: int, step: Step, here: Outline) -> Outline:
        event = step.event
        if isinstance(event, Switch):
            return self._switched(here, event)._replace(trained=False, source_since=position)
        if isinstance(event, Train):
            return self._trained(here, step)._replace(trained=True)
        if isinstance(event, Intervene):
            return self._intervened(here, event)
        if isinstance(event, Save):
            return here._replace(bank={**here.bank, event.name: here.state.learner.networks})
        return here

    def _once(self, place: Hashable, trace: Callable[[], Any]) -> Any:
        if place not in self._found:
            self._found[place] = trace()
        return self._found[place]

    def _switched(self, here: Outline, event: Switch) -> Outline:
        task = event.task
        place = ("switch", _data(task), signature(here.state))

        def trace() -> Any:
            return jax.eval_shape(lambda state: self._changes.switched(state, task, Clock.start()), here.state)

        return here._replace(state=self._once(place, trace), task=task)

    def _trained(self, here: Outline, step: Step) -> Outline:
        assert isinstance(step.event, Train)
        metrics = self._tracer.metric_names(step.event.task, here.state.learner)

        def trace() -> Any:
            return jax.eval_shape(lambda state: ready(state, metrics), here.state)

        return here._replace(state=self._once(("ready", metrics, signature(here.state)), trace))

    def _intervened(self, here: Outline, event: Intervene) -> Outline:
        task = event.on or here.task or self._tracer.first_task
        read = {name: here.bank[name] for name in event.intervention.saves}
        all_alive = np.ones(here.state.counted.shape, bool)
        samples = min(event.samples, len(task.rows("train"))) if isinstance(task, Task) else event.samples
        state = signature((here.state, read))
        place = (event.intervention, event.when, samples, here.trained, _data(task), state)

        def trace() -> Any:
            def intervene(state, bank):
                return self._changes.intervened(state, event, task, 0, all_alive, bank, Clock.start(), here.trained)

            return jax.eval_shape(intervene, here.state, read)

        return here._replace(state=self._once(place, trace))
