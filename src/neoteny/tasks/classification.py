"""Classification as a Markov decision process: a state is a class, what is seen of it is an image, an action names a
class (Lyle et al. 2023, section 3.2).

The rewards and what follows are known, so the best values are too, and how hard it is to tell states apart is chosen:
by the images, and by labels that mean something or nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.environments import DeviceEnvironment, Specification, Step
from neoteny.tasks.sources import DataArrays

FEWEST = 10
"""Images a class, on average, that random labels need so that no class stays empty (all but one case in 2,000)."""


class Labels(enum.StrEnum):
    """TRUE: an image's own class is its state ("easy"). RANDOM: a label drawn once for each image and lane ("hard")."""

    TRUE = "true"
    RANDOM = "random"


class Goal(enum.StrEnum):
    """DENSE: the right action gives 1 in every state, and any state may follow. SPARSE: it leads to the next state,
    the last one's to the first, and gives 1 in the last state only; after a wrong one any state may follow.
    """

    DENSE = "dense"
    SPARSE = "sparse"


class Classes(NamedTuple):
    """Images by class: rows (n,) of the data set, those of one class together; starts (classes + 1,), where each
    class begins among them.
    """

    rows: Int32[Array, " n"]
    starts: Int32[Array, " classes_and_1"]


class ClassificationState(NamedTuple):
    """The class, and the data set's row of the image that is seen."""

    label: Int32[Array, ""]
    row: Int32[Array, ""]


@dataclass(frozen=True)
class ClassificationMDP(DeviceEnvironment):
    """Name the state by its image. Episodes never end.

    images: a data set of any images with class labels; the rows of `split` are seen. Frames are row numbers, so that a
    replay holds four bytes a step; networks are shown the images. A stack of frames is not possible.
    """

    images: Arrays
    labels: Labels = Labels.TRUE
    goal: Goal = Goal.DENSE
    split: str = "train"

    def __post_init__(self):
        if self.images.classes is None or self.images.classes < 2:
            raise ValueError(f"a classification MDP needs images of two classes or more; {self.images.name} has none")
        if self.split not in self.images.splits:
            raise ValueError(f"{self.images.name} has no split {self.split!r}; it has {', '.join(self.images.splits)}")
        rows = self.images.splits[self.split]
        if self.labels is Labels.RANDOM and len(rows) < FEWEST * self.classes:
            raise ValueError(f"random labels of {self.classes} classes need {FEWEST * self.classes} images or more")
        seen = np.unique(self.images.targets[rows])
        if self.labels is Labels.TRUE and len(seen) < self.classes:
            missing = sorted(set(range(self.classes)) - set(seen.tolist()))
            raise ValueError(f"{self.images.name} shows no image of class {missing[0]} in its split {self.split!r}")

    def __str__(self) -> str:
        return f"classification of {self.images.name}, {self.labels} labels, {self.goal}"

    @property
    def classes(self) -> int:
        """States, and actions."""
        assert self.images.classes is not None
        return self.images.classes

    @property
    def specification(self) -> Specification:
        return Specification((1,), "int32", self.classes)

    @property
    def data(self) -> Arrays:
        return self.images

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (states, actions), and probabilities (states, actions, states) of what follows; float64."""
        count = self.classes
        right = np.eye(count)
        uniform = np.full((count, count, count), 1 / count)
        if self.goal is Goal.DENSE:
            return right, uniform
        following = np.roll(np.eye(count), 1, axis=1)  # state s + 1, and 0 after the last
        last = np.zeros((count, count))
        last[-1, -1] = 1
        return last, np.where(right[:, :, None] > 0, following[:, None, :], uniform)

    def draw(self, key, data):
        """Which images stand for which state."""
        assert data is not None
        rows = jnp.asarray(self.images.splits[self.split], jnp.int32)
        if self.labels is Labels.TRUE:
            labels = data.targets[rows]
        else:
            labels = jax.random.randint(key, rows.shape, 0, self.classes, dtype=jnp.int32)
        order = jnp.argsort(labels)
        starts = jnp.searchsorted(labels[order], jnp.arange(self.classes + 1)).astype(jnp.int32)
        return Classes(rows[order], starts)

    def given(self, data, drawn):
        assert data is not None
        return _Playable(self, data, drawn)

    def reset(self, key):
        raise ValueError(f"{self} is played with its images: environment.given(data, drawn).reset(key)")

    def step(self, state, action, key):
        raise ValueError(f"{self} is played with its images: environment.given(data, drawn).step(state, action, key)")


@dataclass(frozen=True, eq=False)
class _Playable(DeviceEnvironment):
    """The MDP with its images and a lane's labels, inside a program."""

    mdp: ClassificationMDP
    arrays: DataArrays
    classes: Classes

    @property
    def specification(self) -> Specification:
        return self.mdp.specification

    def show(self, observations):
        if observations.shape[-1] != 1:
            raise ValueError("images of a classification MDP cannot be stacked; leave stack at 1")
        return self.arrays.inputs[observations[:, 0]]

    def reset(self, key):
        label_key, image_key = jax.random.split(key)
        state = self._seen(jax.random.randint(label_key, (), 0, self.mdp.classes), image_key)
        return state, state.row[None]

    def step(self, state, action, key):
        label_key, image_key = jax.random.split(key)
        right = action == state.label
        label = jax.random.randint(label_key, (), 0, self.mdp.classes)
        rewarded = right
        if self.mdp.goal is Goal.SPARSE:
            label = jnp.where(right, (state.label + 1) % self.mdp.classes, label)
            rewarded = right & (state.label == self.mdp.classes - 1)
        after = self._seen(label, image_key)
        never = jnp.zeros((), bool)
        return after, Step(after.row[None], rewarded.astype(jnp.float32), never, never)

    def _seen(self, label: Array, key: Array) -> ClassificationState:
        """A random image of a class."""
        start, end = self.classes.starts[label], self.classes.starts[label + 1]
        return ClassificationState(label.astype(jnp.int32), self.classes.rows[jax.random.randint(key, (), start, end)])
