"""Rings as the store sees them: rows written in order, round and round, of which a commit stores only the new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class RingRows(NamedTuple):
    """A ring of `capacity` rows, zero at first, of which `written` were ever written; row i lies at i modulo capacity.

    name: path of its rows in the state. since: number that changes when the ring begins anew or goes another way.
    read(start, stop) -> path below `name` -> rows [start, stop) (lanes, stop - start, ...).
    """

    name: str
    since: int
    capacity: int
    written: int
    read: Callable[[int, int], dict[str, np.ndarray]]

    @property
    def oldest(self) -> int:
        """The first row that is still there."""
        return max(0, self.written - self.capacity)
