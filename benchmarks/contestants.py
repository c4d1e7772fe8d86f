"""Contestants live in processes of their own and train in turn, so that none disturbs another's threads.

A contestant is anything with `train(seconds) -> Block`; `Process` builds one and asks it for blocks.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Block:
    """A stretch of training.

    per_update: seconds of one update of one lane. loss: mean training loss lately, NaN if there is none.
    """

    per_update: float
    seconds: float
    cpu_seconds: float
    loss: float


@dataclass(frozen=True)
class Step:
    """A lane before an update: parameters (weight (out, in), bias, ...) and Adam's two moments of them."""

    parameters: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]


class Contestant(Protocol):
    """Something that trains. `detail`: what was chosen or measured while it was built, for the JSON."""

    detail: dict[str, Any]

    def train(self, seconds: float) -> Block:
        """Train for about this long."""
        ...


class BuildError(RuntimeError):
    """A contestant could not be built; carries its traceback."""


def _serve(connection, build: Callable[..., Contestant], arguments: tuple, cores: tuple[int, ...]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)
    start = time.perf_counter()
    try:
        contestant = build(*arguments)
    except (
        RuntimeError,
        ImportError,
        ValueError,
    ):  # what a compiler or a missing package raises; shown by the parent
        connection.send(traceback.format_exc())
        return
    connection.send({"build_seconds": time.perf_counter() - start, **contestant.detail})
    while (seconds := connection.recv()) is not None:
        connection.send(contestant.train(seconds))
    connection.send(contestant.detail)


class Process:
    """One contestant in `copies` processes that train at once, each pinned to its share of the cores."""

    def __init__(self, name: str, build: Callable[..., Contestant], *arguments: Any, copies: int = 1):
        self.name, self.copies = name, copies
        context = multiprocessing.get_context("spawn")
        cores = sorted(os.sched_getaffinity(0))
        self._children = []
        for copy in range(copies):
            ours, theirs = context.Pipe()
            share = tuple(cores[copy::copies]) if copies > 1 else ()
            child = context.Process(target=_serve, args=(theirs, build, arguments, share))
            child.start()
            self._children.append((child, ours))
        self.blocks: list[Block] = []
        answers = [connection.recv() for _, connection in self._children]
        for answer in answers:
            if isinstance(answer, str):
                for child, _ in self._children:
                    child.terminate()
                    child.join()
                raise BuildError(answer)
        self.detail: dict[str, Any] = answers[0]

    def train(self, seconds: float, *, keep: bool = True) -> Block:
        """One block; of several copies the mean rate counts, as they share the work."""
        for _, connection in self._children:
            connection.send(seconds)
        parts = [connection.recv() for _, connection in self._children]
        block = Block(
            1 / sum(1 / part.per_update for part in parts),
            max(part.seconds for part in parts),
            sum(part.cpu_seconds for part in parts),
            parts[0].loss,
        )
        if keep:
            self.blocks.append(block)
        return block

    def close(self) -> None:
        """End its processes, and take what they know by now."""
        for child, connection in self._children:
            connection.send(None)
            self.detail.update(connection.recv())
            child.join()


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and minimum."""
    if len(values) == 1:
        return dict.fromkeys(("median", "q1", "q3", "min"), values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "min": min(values)}


def _busy_seconds() -> float:
    """CPU seconds anyone on this machine has used since it started, those taken by its host included."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft, stolen = map(int, file.readline().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def alternate(contestants: list[Process], *, seconds: float, repeats: int) -> list[float]:
    """A B C A B C ...: `repeats` blocks of each after one dropped; others' share of the CPUs by round."""
    for contestant in contestants:
        contestant.train(seconds, keep=False)
    others = []
    for _ in range(repeats):
        start, busy = time.perf_counter(), _busy_seconds()
        ours = sum(contestant.train(seconds).cpu_seconds for contestant in contestants)
        wall = time.perf_counter() - start
        others.append(max(0.0, _busy_seconds() - busy - ours) / (wall * (os.cpu_count() or 1)))
    return others


def measured(contestant: Process, reference: Process) -> dict[str, Any]:
    """Milliseconds an update and lane, and how many times as long as the reference within a round."""
    times = [1e3 * block.per_update for block in contestant.blocks]
    ratios = [a.per_update / b.per_update for a, b in zip(contestant.blocks, reference.blocks, strict=True)]
    return {
        "milliseconds": spread(times),
        "times_reference": spread(ratios),
        "copies": contestant.copies,
        "detail": contestant.detail,
        "last_loss": contestant.blocks[-1].loss,
        "blocks": [asdict(block) for block in contestant.blocks],
    }


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function called in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)
