"""The tasks' data where the programs compute: one copy of every data set, row lists padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from neoteny.tasks.sources import DataArrays, TaskArrays
from neoteny.tasks.streams import Task


class PlacedData:
    """The arrays of a stream's tasks on the device; tasks over one data set share them, and their programs."""

    def __init__(self, tasks: Sequence[Task]):
        self._device_arrays: dict[int, DataArrays] = {}
        self._capacity: dict[tuple[int, str], int] = {}
        for task in tasks:
            for split, rows in task.splits.items():
                place = (id(task.data), split)
                self._capacity[place] = max(self._capacity.get(place, 1), len(rows))

    @property
    def longest(self) -> int:
        """Rows of the largest split of any task."""
        return max(self._capacity.values())

    def data(self, task: Task) -> DataArrays:
        """The task's data set."""
        data = task.data
        if id(data) not in self._device_arrays:
            with jax.ensure_compile_time_eval():  # real arrays, even when first asked for inside a trace
                self._device_arrays[id(data)] = DataArrays(jax.device_put(data.inputs), jax.device_put(data.targets))
        return self._device_arrays[id(data)]

    def arrays(self, task: Task, split: str) -> TaskArrays:
        """A split of the task for training; ValueError if it has no rows."""
        rows = task.rows(split)
        if len(rows) == 0:
            raise ValueError(f"task {task.name!r} has no rows in its split {split!r}")
        padded = np.zeros(self._capacity[id(task.data), split], np.int32)
        padded[: len(rows)] = rows
        return TaskArrays(self.data(task), padded, np.asarray(len(rows), np.int32))
