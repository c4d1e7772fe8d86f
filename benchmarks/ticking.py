"""A runner that trains on and on, as a contestant: what a user of neoteny gets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from contestants import Block
from neoteny.training.runner import Runner, Tick


class Ticking:
    """Ticks of a runner whose script does not end: chunks, records, checks for divergence.

    Ready once `quiet` ticks in a row compiled nothing and a loss was recorded: chunk lengths settle after the first
    chunks, and the record program is compiled at the first record. detail: seconds of compiling and the first loss.
    """

    def __init__(self, runner: Runner, quiet: int = 3):
        self._ticks: Iterator[Tick] = runner.ticks()
        self._loss, settled, compiling, first = float("nan"), 0, 0.0, None
        while settled < quiet or first is None:
            tick = self._next()
            compiling += tick.compile_seconds
            settled = settled + 1 if tick.updates and tick.compilations == 0 else 0
            first = self._loss if first is None and np.isfinite(self._loss) else first
        self.detail: dict[str, Any] = {"compile_seconds": compiling, "first_loss": first}

    def _next(self) -> Tick:
        tick = next(self._ticks)
        losses = [record.value for record in tick.records if record.metric == "train_loss"]
        self._loss = float(np.mean(losses)) if losses else self._loss
        return tick

    def train(self, seconds: float) -> Block:
        """Ticks until the time is over; seconds an update of a lane."""
        start, cpu, updates = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds or updates == 0:
            updates += self._next().updates
        now = time.perf_counter() - start
        return Block(now / updates, now, time.process_time() - cpu, self._loss)
