"""The tasks' data where the programs compute: one copy of every data set, row lists padded to the longest."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import jax
import numpy as np

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask
from neoteny.tasks.sources import DataArrays, Given, TaskArrays
from neoteny.tasks.streams import Task, Transform
from neoteny.training.events import AnyTask


def shown(task: AnyTask) -> Transform | EnvironmentTask:
    """What a program knows of a task beforehand; equal for tasks that share their programs."""
    if isinstance(task, Task):
        return task.transform
    return replace(task, name="", index=0, draw=0, visit=0)


def alike(task: AnyTask) -> Hashable:
    """Equal for tasks whose programs see the same shapes and classes."""
    if isinstance(task, Task):
        return task.transform, task.data.inputs.shape, task.data.targets.shape, task.data.classes
    return shown(task)


def data_of(task: AnyTask) -> Arrays | None:
    """The data set a task is over, or its environment made of; None where there is none."""
    if isinstance(task, Task):
        return task.data
    return task.environment.data if isinstance(task.environment, DeviceEnvironment) else None


class PlacedData:
    """The arrays of a stream's tasks on the device; tasks over one data set share them, and their programs.

    Most environments have none.
    """

    def __init__(self, tasks: Sequence[AnyTask]):
        self._device_arrays: dict[int, DataArrays] = {}
        self._capacity: dict[tuple[int, str], int] = {}
        for task in tasks:
            if not isinstance(task, Task):
                continue
            for split, rows in task.splits.items():
                place = (id(task.data), split)
                self._capacity[place] = max(self._capacity.get(place, 1), len(rows))

    @property
    def longest(self) -> int:
        """Rows of the largest split of any task, 0 if none has rows."""
        return max(self._capacity.values(), default=0)

    def data(self, task: AnyTask) -> DataArrays | None:
        """The task's data set, or what its environment is made of."""
        data = data_of(task)
        if data is None:
            return None
        if id(data) not in self._device_arrays:
            with jax.ensure_compile_time_eval():  # real arrays, even when first asked for inside a trace
                self._device_arrays[id(data)] = DataArrays(jax.device_put(data.inputs), jax.device_put(data.targets))
        return self._device_arrays[id(data)]

    def arrays(self, task: AnyTask, split: str) -> Given:
        """A split of the task for training, or what its environment is made of; ValueError if it has no rows."""
        if not isinstance(task, Task):
            return self.data(task)
        rows = task.rows(split)
        if len(rows) == 0:
            raise ValueError(f"task {task.name!r} has no rows in its split {split!r}")
        padded = np.zeros(self._capacity[id(task.data), split], np.int32)
        padded[: len(rows)] = rows
        data = self.data(task)
        assert data is not None
        return TaskArrays(data, padded, np.asarray(len(rows), np.int32))
