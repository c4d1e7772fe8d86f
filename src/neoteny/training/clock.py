"""The clock: one unbatched set of counters shared by all lanes of a pack, so periodic work is a real branch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Counter = Any
"""One int32 scalar: a NumPy array on the host between chunks, traced inside them."""


class Clock(NamedTuple):
    """Counters since the run began, but for `task_update`, which counts updates since the last `Switch`."""

    update: Counter
    env_step: Counter
    task: Counter
    task_update: Counter

    @classmethod
    def start(cls) -> Clock:
        """All zero, on the host."""
        return cls(*(np.zeros((), np.int32) for _ in cls._fields))

    def tick(self, env_steps: Counter = 0) -> Clock:
        """One update and so many environment steps later."""
        return self._replace(
            update=self.update + 1, env_step=self.env_step + env_steps, task_update=self.task_update + 1
        )

    def switched(self, task: int) -> Clock:
        """At the beginning of the task at this position of the stream (host side)."""
        return self._replace(task=np.asarray(task, np.int32), task_update=np.zeros((), np.int32))

    def advanced(self, updates: int, env_steps: int = 0) -> Clock:
        """So many updates and environment steps later (host side)."""
        return self._replace(
            update=np.asarray(self.update + updates, np.int32),
            env_step=np.asarray(self.env_step + env_steps, np.int32),
            task_update=np.asarray(self.task_update + updates, np.int32),
        )
