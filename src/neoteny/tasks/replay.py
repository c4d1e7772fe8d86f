"""Replay of experience. Every frame is kept once, in the type it came in; stacks of frames, n-step returns and what
follows a cut-off episode are put together when a batch is drawn.

A slot is one step in time of all environments of a lane, so all lanes write at one place and the ring has no holes:
what may be drawn is one stretch of slots, and every transition in it is drawn with equal probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, PRNGKeyArray, UInt8, UInt32

from neoteny.learners.learner import Transitions
from neoteny.tasks.environments import Specification
from neoteny.tasks.sources import Ring


class Slot(NamedTuple):
    """One step of `envs` environments. Fields of a ring have a leading axis of slots.

    frame: (envs, *shape), what was seen before the action. action, reward: what was done there and what it gave.
    terminated: what follows has no value. ended: the next slot begins a new episode. An episode that was cut off has
    ended and not terminated; one that goes on after a life was lost has terminated and not ended. age: earlier frames
    of the same episode, at most those of a stack. cuts: episodes cut off before, in this environment.
    """

    frame: Any
    action: Int32[Any, "*slots envs"]
    reward: Float32[Any, "*slots envs"]
    terminated: Bool[Any, "*slots envs"]
    ended: Bool[Any, "*slots envs"]
    age: UInt8[Any, "*slots envs"]
    cuts: Int32[Any, "*slots envs"]


class Replay(NamedTuple):
    """ring: of `Slot`. final: (kept, envs, *shape), the last frames of episodes that were cut off: the n-th in row n
    modulo kept.
    """

    ring: Ring
    final: Array


def as_observation(frames: Array) -> Array:
    """Frames (envs, stack, *shape), the oldest first, as one observation (envs, ..., channels * stack), unscaled."""
    last = frames.ndim - 2
    moved = jnp.moveaxis(frames, 1, last)
    return moved.reshape(*moved.shape[:last], -1)


def as_observations(batch: Transitions) -> Transitions:
    """A batch of stacks of frames (batch, stack, *shape), as the host keeps them, with observations of them."""
    here, following = as_observation(batch.observations), as_observation(batch.next_observations)
    return batch._replace(observations=here, next_observations=following)


def _words(key: PRNGKeyArray, count: int) -> UInt32[Array, " count"]:
    """Pseudo-random words from a key that is used for nothing else: a Weyl sequence from its first word, mixed, and
    mixed again with its last (the finaliser of MurmurHash3, Appleby 2011).

    One loop, where XLA:CPU runs Threefry for more than a few numbers as some ninety operations, 30 to 50 microseconds.
    """
    data = jax.random.key_data(key)
    words = data[0] + jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    return _mixed(_mixed(words) ^ data[-1])


def _mixed(words: UInt32[Array, " count"]) -> UInt32[Array, " count"]:
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


class _Told(NamedTuple):
    """Transitions (batch,) but for their frames. last: the slot of their last step. cut: the episode is cut off there.
    age, next_age: as in `Slot`, of the two observations.
    """

    actions: Any
    rewards: Any
    discounts: Any
    age: Any
    last: Any
    next_age: Any
    cut: Any


@dataclass(frozen=True)
class Layout:
    """How a replay is kept and read.

    capacity: slots. envs: environments of a lane. stack: frames an observation is made of; before an episode's first
    they are zero. steps: of a return before the value of what follows it. discount: gamma. reward_bound: rewards are
    clipped to +-bound when they are drawn, None for as they are. segment: all episodes are cut off every so many slots,
    besides what the environment's time limit does; None: never. ends: how often they are cut off besides.
    """

    specification: Specification
    capacity: int
    envs: int = 1
    stack: int = 1
    steps: int = 1
    discount: float = 0.99
    reward_bound: float | None = None
    segment: int | None = None
    ends: int = 0

    def __post_init__(self):
        for name in ("capacity", "envs", "stack", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.stack > 255:
            raise ValueError(f"stack must be at most 255, not {self.stack}")
        if self.capacity < self.fewest:
            raise ValueError(
                f"a replay of {self.capacity} slots is too small for stacks of {self.stack} and {self.steps}-step "
                f"returns; it needs {self.fewest}"
            )

    @property
    def fewest(self) -> int:
        """Slots from which a transition can be drawn, however the ring lies."""
        return self.stack + self.steps

    @property
    def cuts_off(self) -> bool:
        """Whether an episode can end with a future."""
        return self.segment is not None or self.specification.time_limit is not None

    @property
    def finals(self) -> int:
        """Rows for last frames: as many episodes as can be cut off while their slots are kept."""
        spans = [span for span in (self.specification.time_limit, self.segment) if span is not None]
        return 1 + self.ends + sum(self.capacity // span + 1 for span in spans)

    def empty(self, backend=jnp) -> Replay:
        """A replay before the first step."""
        shape, kind = self.specification.shape, self.specification.dtype
        slots, zeros = (self.capacity, self.envs), backend.zeros
        rows = Slot(
            frame=zeros((*slots, *shape), kind),
            action=zeros(slots, backend.int32),
            reward=zeros(slots, backend.float32),
            terminated=zeros(slots, bool),
            ended=zeros(slots, bool),
            age=zeros(slots, backend.uint8),
            cuts=zeros(slots, backend.int32),
        )
        return Replay(Ring(rows, zeros((), backend.int32)), zeros((self.finals, self.envs, *shape), kind))

    def write_in_place(self, replay: Replay, at: int, slot: Slot, frame: np.ndarray) -> None:
        """The same as `write` for a replay of NumPy arrays, changed where it lies; `written` is the caller's."""
        for held, new in zip(replay.ring.rows, slot, strict=True):
            held[at % self.capacity] = new
        self.keep_final(replay, slot.ended & ~slot.terminated, slot.cuts, frame)

    def keep_final(self, replay: Replay, cut: np.ndarray, cuts: np.ndarray, frame: np.ndarray) -> None:
        """Put the last frames of the episodes that are `cut` off (envs,) into a replay of NumPy arrays."""
        if cut.any():
            replay.final[cuts[cut] % self.finals, np.flatnonzero(cut)] = frame[cut]

    def write(self, replay: Replay, at: Array, slot: Slot, frame: Array) -> Replay:
        """With one more slot, the `at`-th; `frame` (envs, *shape) is what was seen after the action, before any
        reset.
        """
        ring = replay.ring.write(jax.tree.map(lambda leaf: leaf[None], slot), at)
        if not self.cuts_off:
            return Replay(ring, replay.final)
        places = (slot.cuts % self.finals, jnp.arange(self.envs))
        cut = (slot.ended & ~slot.terminated).reshape(-1, *[1] * (frame.ndim - 1))
        final = replay.final.at[places].set(jnp.where(cut, frame, replay.final[places]))
        return Replay(ring, final)

    def stretch(self, written: Any) -> tuple[Any, Any]:
        """First slot that may be drawn, and how many: their stacks and what follows them are all in the ring."""
        first = (written > self.capacity) * (written - self.capacity + self.stack - 1)
        return first, written - self.steps - first

    def sample(self, replay: Replay, written: Array, key: PRNGKeyArray, count: int) -> Transitions:
        """`count` transitions, each drawn uniformly from all that can be, with replacement."""
        first, length = self.stretch(written)
        slot_key, env_key = jax.random.split(key)
        # 32 bits, where `randint` takes 64: probabilities differ by a factor of 1 + length / 2^32 at most.
        bits = _words(slot_key, count)
        slots = first + (bits % jnp.asarray(length, jnp.uint32)).astype(jnp.int32)
        envs = jnp.zeros(count, jnp.int32) if self.envs == 1 else jax.random.randint(env_key, (count,), 0, self.envs)
        return self.read(replay, slots, envs)

    def read(self, replay: Replay, slots: Int[Any, " batch"], envs: Int[Any, " batch"]) -> Transitions:
        """The transitions that begin in these slots, counted from the first ever written."""
        rows: Slot = replay.ring.rows
        told = self._told(rows, slots, envs, jnp)
        following = self._frames(rows, told.last + 1, envs, told.next_age)
        if self.cuts_off:
            final = replay.final[rows.cuts[told.last % self.capacity, envs] % self.finals, envs]
            chosen = told.cut.reshape(-1, *[1] * (final.ndim - 1))
            newest = jnp.where(chosen, final, following[-1])
            following = [*following[:-1], newest]
        here = self._frames(rows, slots, envs, told.age)
        return Transitions(
            as_observation(jnp.stack(here, 1)),
            told.actions,
            told.rewards,
            told.discounts,
            as_observation(jnp.stack(following, 1)),
        )

    def read_frames(self, replay: Replay, slots: np.ndarray, envs: np.ndarray) -> Transitions:
        """The same of a replay of NumPy arrays, with observations as frames (batch, stack, *shape), the oldest first:
        to put them side by side is dear on the host, and cheap in a program.
        """
        rows: Slot = replay.ring.rows
        told = self._told(rows, slots, envs, np)
        following = self._stacks(rows, told.last + 1, envs, told.next_age)
        if told.cut.any():
            last, env = told.last[told.cut] % self.capacity, envs[told.cut]
            following[told.cut, -1] = replay.final[rows.cuts[last, env] % self.finals, env]
        here = self._stacks(rows, slots, envs, told.age)
        return Transitions(here, told.actions, told.rewards, told.discounts, following)

    def _told(self, rows: Slot, slots: Any, envs: Any, backend) -> _Told:
        """All but the frames of the transitions that begin in these slots."""
        taken = backend.zeros_like(slots)
        rewards = backend.zeros(slots.shape, backend.float32)
        going = backend.ones(slots.shape, bool)
        terminated = cut = backend.zeros(slots.shape, bool)
        for step in range(self.steps):
            place = ((slots + step) % self.capacity, envs)
            reward = rows.reward[place]
            if self.reward_bound is not None:
                reward = backend.clip(reward, -self.reward_bound, self.reward_bound)
            rewards = rewards + going * self._power(step) * reward
            taken = taken + going
            terminated = terminated | (going & rows.terminated[place])
            cut = cut | (going & rows.ended[place] & ~rows.terminated[place])
            going = going & ~rows.terminated[place] & ~rows.ended[place]
        powers = backend.asarray([self._power(n) for n in range(self.steps + 1)], backend.float32)
        discounts = backend.where(terminated, backend.float32(0), powers[taken])
        last = slots + taken - 1
        next_age = rows.age[last % self.capacity, envs].astype(backend.int32) + 1
        next_age = backend.where(cut, next_age, rows.age[(last + 1) % self.capacity, envs])
        here = (slots % self.capacity, envs)
        return _Told(rows.action[here], rewards.astype(backend.float32), discounts, rows.age[here], last, next_age, cut)

    def _power(self, steps: int) -> float:
        return self.discount**steps

    def _frames(self, rows: Slot, slots, envs, age) -> list[Array]:
        """Frames (batch, *shape) of the stack that ends in these slots, the oldest first."""
        frames = []
        for back in range(self.stack - 1, -1, -1):
            frame = rows.frame[(slots - back) % self.capacity, envs]
            if back > 0:
                known = (age >= back).reshape(-1, *[1] * (frame.ndim - 1))
                frame = jnp.where(known, frame, jnp.zeros_like(frame))
            frames.append(frame)
        return frames

    def _stacks(self, rows: Slot, slots: np.ndarray, envs: np.ndarray, age: np.ndarray) -> np.ndarray:
        """The stacks (batch, stack, *shape) that end in these slots, the oldest frame first."""
        back = np.arange(self.stack - 1, -1, -1)
        places = (slots[:, None] - back) % self.capacity * self.envs + envs[:, None]
        stacks = rows.frame.reshape(-1, *self.specification.shape)[places]
        unknown = age[:, None] < back
        if unknown.any():
            stacks[unknown] = 0
        return stacks
