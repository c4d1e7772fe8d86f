"""Experience from emulators on the host, with the replay in host memory.

Emulators cannot all be saved. So every `segment` environment steps, and wherever training ends, all episodes are cut
off and emulators made anew from the lane's seed and the segment's number, in every run; there, and only there, a source
can be stored and go on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from neoteny.learners.learner import Transitions
from neoteny.tasks.environments import Emulators, EnvironmentTask, HostEnvironment
from neoteny.tasks.experience import Experience, LinearEpsilon
from neoteny.tasks.replay import Layout, Replay, Slot
from neoteny.tasks.sources import Ring
from neoteny.training.keys import Purpose

HostAct = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""act(frames (lanes, envs, stack, *shape) as stored, the newest last, counters) -> greedy actions (lanes, envs).
counters: (3,) uint32, what the key of a policy that draws is made from, for every lane.
"""


def draws(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """A generator for `purpose` at these counters, as `named_key` is on the device: nothing is carried."""
    return np.random.default_rng([seed, purpose.code, *counters])


ATARI_EPSILON = LinearEpsilon(1.0, 0.01, 1_000_000)
"""From 1 to 0.01 over 4 million frames (DQN Zoo)."""


@dataclass(frozen=True)
class HostExperience(Experience):
    """Emulators on the host. The defaults are DQN Zoo's for Atari, counted in actions of four frames.

    segment: environment steps between the points where a run can be stored; all episodes are cut off there. ahead: the
    steps before an update are played while the update before it is computed, so their policy is one update older than
    it could be, but for the first after such a point.
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
    ahead: bool = True
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

    def empty(self, task: EnvironmentTask, count: int) -> Transitions:
        """`count` transitions of one lane from an empty replay, inside a trace, for their shapes."""
        _host(task)
        return super().empty(task, count)

    def bytes(self, task: EnvironmentTask) -> int:
        """Bytes of a lane's replay when it is full."""
        leaves = jax.tree.leaves(jax.eval_shape(self.layout(task, self.segment // self.envs).empty))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def start(self, task: EnvironmentTask, seeds: Sequence[int], ends: int = 0) -> HostPlay:
        """All lanes at the beginning of a task; `ends` is how often at most `cut_off` will be called."""
        return HostPlay(self, task, seeds, ends)

    def evaluate(
        self, task: EnvironmentTask, seeds: Sequence[int], act: HostAct, episodes: int, number: int
    ) -> dict[str, np.ndarray]:
        """Mean return and length (lanes,) of as many episodes, in emulators of their own, the `number`-th time.

        `unfinished` is the share that reached `evaluation_limit`.
        """
        lanes, emulators = len(seeds), []
        table = _empty_table(task, lanes, episodes, self.stack)
        for lane, seed in enumerate(seeds):
            start = int(draws(seed, Purpose.EVALUATE, number).integers(2**31 - 1))
            emulators.append(_host(task).start(episodes, start))
            table.begin(lane, emulators[-1])
        over, returns = np.zeros((lanes, episodes), bool), np.zeros((lanes, episodes), np.float32)
        lengths, time = np.zeros((lanes, episodes), np.int32), 0
        while not over.all() and time < self.evaluation_limit:
            greedy = act(table.frames, _counters(Purpose.EVALUATE, number, time))
            for lane, seed in enumerate(seeds):
                rng = draws(seed, Purpose.EVALUATE, number, time)
                actions = _chosen(rng, greedy[lane], self.evaluation_epsilon, task.specification.actions)
                step = emulators[lane].step(actions)
                lengths[lane] += ~over[lane]
                returns[lane] += np.where(over[lane], 0.0, step.reward)
                ended = step.terminated | step.truncated
                over[lane] |= ended
                table.seat(lane, step.frame, ended, emulators[lane])
            time += 1
        for one in emulators:
            one.close()
        return {
            "return": returns.mean(axis=1),
            "length": lengths.mean(axis=1, dtype=np.float32),
            "unfinished": (~over).mean(axis=1, dtype=np.float32),
        }


def _host(task: EnvironmentTask) -> HostEnvironment:
    if not isinstance(task.environment, HostEnvironment):
        raise ValueError(f"{task.name} runs on the device; a host source needs a host environment")
    return task.environment


def _counters(purpose: Purpose, first: int, second: int) -> np.ndarray:
    return np.asarray([purpose.code, first, second], np.uint32)


def _chosen(rng: np.random.Generator, greedy: np.ndarray, epsilon: float, actions: int) -> np.ndarray:
    """The greedy actions, each exchanged for any one with this probability."""
    anything = rng.integers(0, actions, greedy.shape)
    return np.where(rng.random(greedy.shape) < epsilon, anything, greedy).astype(np.int32)


class Table(NamedTuple):
    """Episodes under way in all lanes (lanes, envs, ...): see `Playing`."""

    frames: np.ndarray
    age: np.ndarray
    score: np.ndarray

    def begin(self, lane: int, emulators: Emulators) -> None:
        """New episodes in all emulators of a lane."""
        self.frames[lane] = 0
        self.frames[lane, :, -1] = emulators.reset()
        self.age[lane], self.score[lane] = 0, 0.0

    def seat(self, lane: int, frame: np.ndarray, ended: np.ndarray, emulators: Emulators) -> None:
        """The frames after a step of a lane, new episodes where one has ended."""
        frames, age = self.frames[lane], self.age[lane]
        frames[:, :-1] = frames[:, 1:]
        frames[:, -1] = frame
        age[...] = np.minimum(age + 1, frames.shape[1] - 1)
        if ended.any():
            which = np.flatnonzero(ended)
            frames[which] = 0
            frames[which, -1] = emulators.reset(which)
            age[which], self.score[lane, which] = 0, 0.0


def _empty_table(task: EnvironmentTask, lanes: int, envs: int, stack: int) -> Table:
    shape, kind = task.specification.shape, task.specification.dtype
    counters = np.zeros((lanes, envs), np.uint8), np.zeros((lanes, envs), np.float32)
    return Table(np.zeros((lanes, envs, stack, *shape), kind), *counters)


class Cost(NamedTuple):
    """Environment steps of a lane before a batch, and in how many of them the network was asked."""

    steps: int
    asked: int


FILL_AT_ONCE = 2_000
"""Slots filled between two looks at whether to stop."""


class HostPlay:
    """The lanes of a pack on one task: emulators, what they show, and replays. It changes where it lies.

    rows: the rings (lanes, capacity, envs, ...). final: (lanes, finals, envs, *shape). cuts: (lanes, envs). written:
    slots so far. segment: how often all episodes were cut off. finished: (3, lanes), episodes that ended since the last
    batch, the sum of their returns, and all rewards of the steps since.
    """

    def __init__(self, source: HostExperience, task: EnvironmentTask, seeds: Sequence[int], ends: int = 0):
        self.source, self.task, self.environment, self.ends = source, task, _host(task), ends
        self.seeds = [int(seed) for seed in seeds]
        self.layout: Layout = source.layout(task, source.segment // source.envs, ends)
        empty, lanes = jax.eval_shape(self.layout.empty), len(self.seeds)
        # Zeros cost no memory before they are written to.
        self.rows = Slot(*(np.zeros((lanes, *leaf.shape), leaf.dtype) for leaf in empty.ring.rows))
        self.final = np.zeros((lanes, *empty.final.shape), empty.final.dtype)
        self.cuts = np.zeros((lanes, source.envs), np.int32)
        self.finished = np.zeros((3, lanes), np.float32)
        self.written = self.segment = 0
        self._asked, self._ahead = 0, False
        self._emulators: list[Emulators] = []
        self._table = _empty_table(task, lanes, source.envs, source.stack)

    # Protocol -----------------------------------------------------------------------------------------------------

    @property
    def filled(self) -> bool:
        """Whether there is enough to begin learning."""
        return self.written >= self.source.filling

    def fill(self) -> None:
        """A part of the random steps before the first update of a task, up to the end of the segment at most."""
        for _ in range(min(FILL_AT_ONCE, self.source.filling - self.written)):
            self._step(None)
            if not self._emulators:
                return

    def next(self, act: HostAct, task_update: int) -> tuple[Transitions, Cost]:
        """Play as long as `DeviceExperience.next` would, then a batch for every lane (lanes, batch, ...), observations
        as stacks of frames as stored (lanes, batch, stack, *shape); and what it cost.
        """
        source = self.source
        while not self.filled:
            self.fill()
        if not self._ahead:
            self._stretch(act)
        self._ahead = False
        rngs = [draws(seed, Purpose.BATCH, self.task.index, task_update) for seed in self.seeds]
        steps = source.period + (source.filling if task_update == 0 else 0)
        cost = Cost(steps * source.envs, self._asked * source.envs)
        episodes, returns, rewards = self.finished
        batch = self._drawn(source.batch_size, rngs)._replace(
            episodes=episodes, returns=returns, reward=rewards / np.float32(cost.steps)
        )
        self.finished, self._asked = np.zeros_like(self.finished), 0
        return batch, cost

    def play_ahead(self, act: HostAct) -> None:
        """Play the steps before the next batch already."""
        assert self._emulators, "a new segment begins with the newest policy"
        assert not self._ahead, "they were played already"
        self._stretch(act)
        self._ahead = True

    def sample(self, count: int, number: int) -> Transitions:
        """`count` transitions of every lane to look at, the `number`-th time; nothing changes."""
        none = np.zeros(len(self.seeds), np.float32)
        rngs = [draws(seed, Purpose.PROBE, self.task.index, number) for seed in self.seeds]
        return self._drawn(count, rngs)._replace(episodes=none, returns=none, reward=none)

    def cut_off(self) -> None:
        """Cut off all episodes under way; before the next step emulators are made anew."""
        if not self._emulators:
            return
        place = (self.written - 1) % self.layout.capacity
        for lane, replay in enumerate(self.replays):
            rows = replay.ring.rows
            cut = ~rows.ended[place] & ~rows.terminated[place]
            self.layout.keep_final(replay, cut, self.cuts[lane], self._table.frames[lane, :, -1])
            rows.ended[place] = True
            self.cuts[lane] += cut
        self.close()
        self.segment += 1

    def close(self) -> None:
        """Give back the emulators."""
        for one in self._emulators:
            one.close()
        self._emulators = []

    # Storing ------------------------------------------------------------------------------------------------------

    @property
    def at_boundary(self) -> bool:
        """Whether no episode is under way, so that what is stored now is all there is."""
        return not self._emulators and not self._ahead

    @property
    def replays(self) -> list[Replay]:
        """Every lane's replay, as views of the arrays of all lanes."""
        written: Any = np.asarray(self.written, np.int32)
        return [
            Replay(Ring(Slot(*(leaf[lane] for leaf in self.rows)), written), self.final[lane])
            for lane in range(len(self.seeds))
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the rings, in arrays of their own; only at a boundary."""
        if not self.at_boundary:
            raise ValueError(f"emulators cannot be stored amid a segment ({self.written} slots)")
        counts = {name: np.asarray(getattr(self, name), np.int64) for name in ("written", "segment")}
        return {name: getattr(self, name).copy() for name in ("final", "cuts", "finished")} | counts

    def restore(self, arrays: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> None:
        """Go on from what was stored at a boundary; `rows` (lanes, capacity, ...) become this play's own.

        ValueError naming an array that does not fit.
        """
        for name in ("final", "cuts", "finished"):
            _check_fits(name, arrays[name], getattr(self, name))
        for name, held in self.rows._asdict().items():
            _check_fits(f"rows.{name}", rows[name], held)
        self.close()
        self.rows = Slot(**rows)
        self.final, self.cuts, self.finished = (arrays[name].copy() for name in ("final", "cuts", "finished"))
        self.written, self.segment = int(arrays["written"]), int(arrays["segment"])
        self._asked, self._ahead = 0, False

    def copies(self, lanes: Sequence[int] | None = None, seeds: Sequence[int] | None = None, ends: int = 0) -> HostPlay:
        """The same at a boundary in arrays of its own: of all lanes, or of these, which go on with these seeds.

        ends: how much oftener `cut_off` will be called than was said at the start.
        """
        chosen = list(range(len(self.seeds))) if lanes is None else list(lanes)
        stored = self.arrays()
        other = HostPlay(self.source, self.task, self.seeds if seeds is None else seeds, self.ends + ends)
        kept = min(self.written, self.layout.capacity)
        for held, new in zip(self.rows, other.rows, strict=True):
            for place, lane in enumerate(chosen):
                new[place, :kept] = held[lane, :kept]
        for place, lane in enumerate(chosen):
            for env, newest in enumerate(self.cuts[lane]):
                numbers = np.arange(max(0, newest - self.layout.finals), newest)
                old, new = numbers % self.layout.finals, numbers % other.layout.finals
                other.final[place, new, env] = self.final[lane, old, env]
        stored |= {"final": other.final, "cuts": self.cuts[chosen], "finished": self.finished[:, chosen]}
        other.restore(stored, other.rows._asdict())
        return other

    # Playing ------------------------------------------------------------------------------------------------------

    @property
    def layout_segment(self) -> int:
        """Slots of a segment."""
        return self.source.segment // self.source.envs

    def _begin_segment(self) -> None:
        for lane, seed in enumerate(self.seeds):
            start = int(draws(seed, Purpose.ENVIRONMENT, self.task.index, self.segment).integers(2**31 - 1))
            self._emulators.append(self.environment.start(self.source.envs, start))
            self._table.begin(lane, self._emulators[-1])

    def _stretch(self, act: HostAct) -> None:
        for _ in range(self.source.period):
            self._step(act)

    def _step(self, act: HostAct | None) -> None:
        """One step of every emulator of every lane."""
        if not self._emulators:
            self._begin_segment()
        source, table, at = self.source, self._table, self.written
        epsilon = _epsilon(source.epsilon, (at - source.filling) * source.envs)
        # A network's opinion is not asked for where it cannot matter.
        if act is None or epsilon >= 1:
            greedy = np.zeros(table.age.shape, np.int32)
        else:
            greedy = np.asarray(act(table.frames, _counters(Purpose.EXPLORATION, self.task.index, at)))
            self._asked += 1
        for lane, (seed, replay, emulators) in enumerate(zip(self.seeds, self.replays, self._emulators, strict=True)):
            rng = draws(seed, Purpose.EXPLORATION, self.task.index, at)
            action = _chosen(rng, greedy[lane], epsilon, self.task.specification.actions)
            step = emulators.step(action)
            over = step.terminated | step.truncated
            terminated = step.terminated | (step.lost & self.environment.life_loss)
            slot = Slot(
                frame=table.frames[lane, :, -1],
                action=action,
                reward=step.reward,
                terminated=terminated,
                ended=over,
                age=table.age[lane],
                cuts=self.cuts[lane],
            )
            self.layout.write_in_place(replay, at, slot, step.frame)
            self.cuts[lane] += over & ~terminated
            table.score[lane] += step.reward
            # An episode that only the segment cuts off has no return to report.
            self.finished[:, lane] += over.sum(), table.score[lane][over].sum(), step.reward.sum()
            table.seat(lane, step.frame, over, emulators)
        self.written += 1
        if self.written % self.layout_segment == 0:
            self.cut_off()

    def _drawn(self, count: int, rngs: Sequence[np.random.Generator]) -> Transitions:
        """`count` transitions of every lane."""
        first, length = self.layout.stretch(self.written)
        batches = []
        for replay, rng in zip(self.replays, rngs, strict=True):
            slots = first + rng.integers(0, length, count)
            envs = rng.integers(0, self.source.envs, count)
            batches.append(self.layout.read_frames(replay, slots, envs))
        # The last three fields of a lane's batch are no arrays yet.
        fields = list(zip(*batches, strict=True))[:5]
        return Transitions(*(np.stack(parts) if len(batches) > 1 else parts[0][None] for parts in fields))


def _check_fits(name: str, array: np.ndarray, held: np.ndarray) -> None:
    if (held.shape, held.dtype) != (array.shape, array.dtype):
        raise ValueError(f"{name} is {array.dtype}{array.shape}; expected {held.dtype}{held.shape}")


def _epsilon(schedule: LinearEpsilon, steps: int) -> float:
    if steps < 0:
        return 1.0
    return schedule.start + min(steps / schedule.steps, 1.0) * (schedule.end - schedule.start)


ATARI = HostExperience()
"""DQN Zoo's Atari: batches of 32, an update every 16 frames, a replay of a million actions, 50,000 random ones first,
epsilon from 1 to 0.01 over 4 million frames, rewards clipped to +-1.
"""
