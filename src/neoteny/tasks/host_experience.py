"""Experience from emulators on the host, with the replay in host memory.

Emulators cannot all be saved. So every `segment` environment steps all episodes are cut off and emulators made anew
from the lane's seed and the segment's number, in every run; there, and only there, a source can be stored and go on
exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neoteny.learners.learner import Transitions
from neoteny.tasks.environments import EnvironmentTask, HostEnvironment
from neoteny.tasks.experience import Experience, LinearEpsilon
from neoteny.tasks.replay import Layout, Replay, Slot, as_observation
from neoteny.training.keys import Purpose

HostAct = Callable[[np.ndarray], np.ndarray]
"""act(observations (lanes, envs, ...) as stored) -> greedy actions (lanes, envs)."""


def draws(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """A generator for `purpose` at these counters, as `named_key` is on the device: nothing is carried."""
    return np.random.default_rng([seed, purpose.code, *counters])


ATARI_EPSILON = LinearEpsilon(1.0, 0.01, 1_000_000)
"""From 1 to 0.01 over 4 million frames (DQN Zoo)."""


@dataclass(frozen=True)
class HostExperience(Experience):
    """Emulators on the host. The defaults are DQN Zoo's for Atari, counted in actions of four frames.

    segment: environment steps between the points where a run can be stored; all episodes are cut off there.
    """

    period: int = 4
    learning_starts: int = 50_000
    capacity: int = 1_000_000
    stack: int = 4
    reward_bound: float | None = 1.0
    epsilon: LinearEpsilon = ATARI_EPSILON
    evaluation_epsilon: float = 0.01
    evaluation_limit: int = 27_000
    segment: int = 100_000
    compiled = False

    def __post_init__(self):
        super().__post_init__()
        update = self.period * self.envs
        for name in ("segment", "learning_starts"):
            if getattr(self, name) < 1 or getattr(self, name) % update:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be a multiple of period x envs ({update}), so that segments "
                    "end where updates do"
                )

    def start(self, task: EnvironmentTask, seeds: Sequence[int]) -> HostPlay:
        """All lanes at the beginning of a task."""
        return HostPlay(self, task, seeds)


class Table(NamedTuple):
    """Episodes under way in one lane: see `Playing`."""

    frames: np.ndarray
    age: np.ndarray
    score: np.ndarray


class HostPlay:
    """The lanes of a pack on one task: emulators, what they show, and replays. It changes where it lies."""

    def __init__(self, source: HostExperience, task: EnvironmentTask, seeds: Sequence[int]):
        if not isinstance(task.environment, HostEnvironment):
            raise ValueError(f"{task.name} runs on the device; a host source needs a host environment")
        self.source, self.task, self.environment = source, task, task.environment
        self.seeds = [int(seed) for seed in seeds]
        self.layout: Layout = source.layout(task, source.segment // source.envs)
        self.replays: list[Replay] = [self.layout.empty(np) for _ in self.seeds]
        self.cuts = np.zeros((len(self.seeds), source.envs), np.int32)
        self.written = 0
        self._emulators = []
        self._begin_segment()

    # Protocol -----------------------------------------------------------------------------------------------------

    def next(self, act: HostAct, task_update: int) -> tuple[Transitions, int]:
        """Play as long as `DeviceExperience.next` would, then a batch for every lane (lanes, batch, ...), observations
        as stored; and the environment steps taken.
        """
        source = self.source
        steps = source.period + (source.filling if task_update == 0 else 0)
        finished = np.zeros((3, len(self.seeds)), np.float32)
        for _ in range(steps):
            finished += self._play(act)
        batches = [
            self._draw(lane, source.batch_size, draws(seed, Purpose.BATCH, self.task.index, task_update))
            for lane, seed in enumerate(self.seeds)
        ]
        finished[2] /= steps * source.envs
        # The last three fields of a lane's batch are no arrays yet.
        batch = Transitions(*(np.stack(parts) for parts in list(zip(*batches, strict=True))[:5]), *finished)
        return batch, steps * source.envs

    def sample(self, count: int, number: int) -> Transitions:
        """`count` transitions of every lane to look at, the `number`-th time; nothing changes."""
        batches = [
            self._draw(lane, count, draws(seed, Purpose.PROBE, self.task.index, number))
            for lane, seed in enumerate(self.seeds)
        ]
        return Transitions(*(np.stack(parts) for parts in list(zip(*batches, strict=True))[:5]))

    def evaluate(self, act: HostAct, episodes: int, number: int) -> dict[str, np.ndarray]:
        """Mean return and length (lanes,) of as many episodes, in emulators of their own, the `number`-th time."""
        source, lanes = self.source, len(self.seeds)
        tables, emulators = [], []
        for seed in self.seeds:
            start = int(draws(seed, Purpose.EVALUATE, number).integers(2**31 - 1))
            emulators.append(self.environment.start(episodes, start))
            tables.append(self._seated(emulators[-1].reset()))
        over, returns = np.zeros((lanes, episodes), bool), np.zeros((lanes, episodes), np.float32)
        lengths, time = np.zeros((lanes, episodes), np.int32), 0
        while not over.all() and time < source.evaluation_limit:
            greedy = act(np.stack([as_observation(table.frames, np) for table in tables]))
            for lane, seed in enumerate(self.seeds):
                rng = draws(seed, Purpose.EVALUATE, number, time)
                actions = self._chosen(rng, greedy[lane], source.evaluation_epsilon)
                step = emulators[lane].step(actions)
                lengths[lane] += ~over[lane]
                returns[lane] += np.where(over[lane], 0.0, step.reward)
                ended = step.terminated | step.truncated
                over[lane] |= ended
                self._seat(tables[lane], step.frame, ended, emulators[lane])
            time += 1
        for one in emulators:
            one.close()
        return {
            "return": returns.mean(axis=1),
            "length": lengths.mean(axis=1, dtype=np.float32),
            "unfinished": (~over).mean(axis=1, dtype=np.float32),
        }

    def close(self) -> None:
        """Give back the emulators."""
        for one in self._emulators:
            one.close()
        self._emulators = []

    # Storing ------------------------------------------------------------------------------------------------------

    @property
    def at_boundary(self) -> bool:
        """Whether a segment has just begun, so that what is stored now is all there is."""
        return self.written % self.layout_segment == 0

    @property
    def layout_segment(self) -> int:
        """Slots of a segment."""
        return self.source.segment // self.source.envs

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the rings; only at a boundary."""
        if not self.at_boundary:
            raise ValueError(f"emulators cannot be stored amid a segment ({self.written} slots)")
        finals = np.stack([replay.final for replay in self.replays])
        return {"final": finals, "cuts": self.cuts, "written": np.asarray(self.written, np.int64)}

    def rings(self) -> list[Slot]:
        """The rows of every lane's ring (capacity, ...); row r holds the newest slot that is r modulo the capacity."""
        return [replay.ring.rows for replay in self.replays]

    def restore(self, arrays: dict[str, np.ndarray], rings: Sequence[Slot]) -> None:
        """Go on from what was stored at a boundary; emulators begin the next segment."""
        for replay, final, rows in zip(self.replays, arrays["final"], rings, strict=True):
            replay.final[...] = final
            for held, stored in zip(replay.ring.rows, rows, strict=True):
                held[...] = stored
        self.cuts = np.array(arrays["cuts"], np.int32)
        self.written = int(arrays["written"])
        self._begin_segment()

    # Playing ------------------------------------------------------------------------------------------------------

    def _begin_segment(self) -> None:
        self.close()
        segment = self.written // self.layout_segment
        for seed in self.seeds:
            start = int(draws(seed, Purpose.ENVIRONMENT, self.task.index, segment).integers(2**31 - 1))
            self._emulators.append(self.environment.start(self.source.envs, start))
        self._tables = [self._seated(one.reset()) for one in self._emulators]

    def _seated(self, first: np.ndarray) -> Table:
        frames = np.zeros((len(first), self.source.stack, *first.shape[1:]), first.dtype)
        frames[:, -1] = first
        return Table(frames, np.zeros(len(first), np.uint8), np.zeros(len(first), np.float32))

    def _seat(self, table: Table, frame: np.ndarray, ended: np.ndarray, emulators) -> None:
        """The frames after a step, new episodes where one has ended."""
        table.frames[:, :-1] = table.frames[:, 1:]
        table.frames[:, -1] = frame
        table.age[...] = np.minimum(table.age + 1, self.source.stack - 1)
        if ended.any():
            which = np.flatnonzero(ended)
            table.frames[which] = 0
            table.frames[which, -1] = emulators.reset(which)
            table.age[which], table.score[which] = 0, 0.0

    def _chosen(self, rng: np.random.Generator, greedy: np.ndarray, epsilon: float) -> np.ndarray:
        anything = rng.integers(0, self.task.specification.actions, greedy.shape)
        return np.where(rng.random(greedy.shape) < epsilon, anything, greedy).astype(np.int32)

    def _play(self, act: HostAct) -> np.ndarray:
        """One step of every emulator of every lane; (3, lanes): episodes that ended, their returns' sum, rewards."""
        source, at = self.source, self.written
        epsilon = _epsilon(source.epsilon, (at - source.filling) * source.envs)
        shown = np.stack([as_observation(table.frames, np) for table in self._tables])
        # A network's opinion is not asked for where it cannot matter.
        greedy = np.zeros(shown.shape[:2], np.int32) if epsilon >= 1 else np.asarray(act(shown))
        last = (at + 1) % self.layout_segment == 0
        finished = np.zeros((3, len(self.seeds)), np.float32)
        for lane, (seed, table, emulators) in enumerate(zip(self.seeds, self._tables, self._emulators, strict=True)):
            rng = draws(seed, Purpose.EXPLORATION, self.task.index, at)
            action = self._chosen(rng, greedy[lane], epsilon)
            step = emulators.step(action)
            over = step.terminated | step.truncated
            terminated = step.terminated | (step.lost & self.environment.life_loss)
            slot = Slot(
                frame=table.frames[:, -1],
                action=action,
                reward=step.reward,
                terminated=terminated,
                ended=over | last,
                age=table.age,
                cuts=self.cuts[lane],
            )
            self.layout.write_in_place(self.replays[lane], at, slot, step.frame)
            self.cuts[lane] += slot.ended & ~terminated
            table.score[...] += step.reward
            # An episode that only the segment cuts off has no return to report.
            finished[:, lane] = over.sum(), table.score[over].sum(), step.reward.sum()
            if not last:
                self._seat(table, step.frame, over, emulators)
        self.written += 1
        if last:
            self._begin_segment()
        return finished

    def _draw(self, lane: int, count: int, rng: np.random.Generator) -> Transitions:
        first, length = self.layout.stretch(self.written)
        slots = first + rng.integers(0, length, count)
        envs = rng.integers(0, self.source.envs, count)
        return self.layout.read(self.replays[lane], slots, envs, backend=np)


def _epsilon(schedule: LinearEpsilon, steps: int) -> float:
    if steps < 0:
        return 1.0
    return schedule.start + min(steps / schedule.steps, 1.0) * (schedule.end - schedule.start)


ATARI = HostExperience()
"""DQN Zoo's Atari: batches of 32, an update every 16 frames, a replay of a million actions, 50,000 random ones first,
epsilon from 1 to 0.01 over 4 million frames, rewards clipped to +-1.
"""
