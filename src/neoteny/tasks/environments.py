"""Tasks to act in. An environment keeps `terminated` (no future) and `truncated` (cut off) apart, and never resets
itself: the observation after the last action of an episode is given as it is, and whoever plays begins anew.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sources import DataArrays
from neoteny.tasks.streams import Stream


@dataclass(frozen=True)
class Specification:
    """What an environment shows and takes.

    shape: of one frame, channels last. dtype: frames are stored in it, "bool", "uint8", "int32" or
    "float32". actions: how many.
    time_limit: steps after which an episode is truncated, None for no limit.
    """

    shape: tuple[int, ...]
    dtype: str
    actions: int
    time_limit: int | None = None


class Step(NamedTuple):
    """What one action led to.

    frame: what is seen after the action, before any reset. terminated: the episode is over and has no future.
    truncated: it is cut off, and its future still has a value.
    """

    frame: Array
    reward: Array
    terminated: Array
    truncated: Array


class DeviceEnvironment(abc.ABC):
    """One environment as pure functions, to be mapped and compiled. Subclasses are frozen dataclasses: equal ones share
    one program.
    """

    @property
    @abc.abstractmethod
    def specification(self) -> Specification:
        """Shapes and numbers, known without playing."""

    @property
    def data(self) -> Arrays | None:
        """Arrays the environment is made of, given to its programs as arguments; None if there are none."""
        return None

    def draw(self, key: PRNGKeyArray, data: DataArrays | None) -> PyTree:
        """What a lane draws once and keeps as long as it plays, whatever episodes it begins."""
        return ()

    def given(self, data: DataArrays | None, drawn: PyTree) -> DeviceEnvironment:
        """This environment with its arrays and a lane's draw, inside a program; only that one is played."""
        return self

    def show(self, observations: Array) -> Array:
        """Stored observations (batch, ...) as a network is shown them, before scaling."""
        return observations

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Array]:
        """The state at the beginning of an episode, and the first frame."""

    @abc.abstractmethod
    def step(self, state: PyTree, action: Array, key: PRNGKeyArray) -> tuple[PyTree, Step]:
        """The state after `action` () int32, and what it led to."""


class HostStep(NamedTuple):
    """What one action in each of several emulators led to, as in `Step`, arrays (envs, ...).

    lost: a life was lost; whether that counts as a termination is not the emulator's to say.
    """

    frame: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lost: np.ndarray


class Emulators(abc.ABC):
    """Several emulators of one environment side by side. They begin anew only when told to."""

    @abc.abstractmethod
    def reset(self, which: np.ndarray | None = None) -> np.ndarray:
        """Begin an episode in these (some,), in rising order, or in all of them; first frames (some, *shape)."""

    @abc.abstractmethod
    def step(self, actions: np.ndarray) -> HostStep:
        """One action (envs,) in every one of them."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what they hold."""


class HostEnvironment(abc.ABC):
    """An emulator on the host. Subclasses are frozen dataclasses that say which; `start` makes it.

    life_loss: whether losing a life counts as a termination for learning.
    """

    life_loss: bool

    @property
    @abc.abstractmethod
    def specification(self) -> Specification:
        """Shapes and numbers, known without playing."""

    @property
    def version(self) -> str:
        """What emulates, and in which version; a run goes on with no other. Empty if that cannot change."""
        return ""

    @abc.abstractmethod
    def start(self, count: int, seed: int) -> Emulators:
        """`count` emulators side by side, with draws of their own that follow from `seed`."""


@dataclass(frozen=True)
class EnvironmentTask:
    """An environment as one task of a stream.

    index: position in the stream. draw: which per-lane draw it uses; visits of one task share it. visit: 0 at the first
    visit.
    """

    name: str
    environment: DeviceEnvironment | HostEnvironment
    index: int = 0
    draw: int = 0
    visit: int = 0

    @property
    def specification(self) -> Specification:
        """The environment's shapes and numbers."""
        return self.environment.specification


def environments(members: Sequence[DeviceEnvironment | HostEnvironment], names: Sequence[str] | None = None) -> Stream:
    """One environment after another; all must show and take the same, so that one network serves them.

    `names` default to what the environments are called.
    """
    if not members:
        raise ValueError("environments needs at least one environment")
    seen = {(member.specification.shape, member.specification.actions) for member in members}
    if len(seen) > 1:
        listed = ", ".join(f"{shape} with {actions} actions" for shape, actions in sorted(seen))
        raise ValueError(f"the environments of a stream must have one shape and number of actions, not {listed}")
    called = [str(member) for member in members] if names is None else list(names)
    if len(called) != len(members):
        raise ValueError(f"{len(called)} names for {len(members)} environments")
    make = cast(Callable[[int], Any], lambda index: EnvironmentTask(called[index], members[index], draw=index))
    return Stream(make, len(members))
