"""Tasks over arrays, and streams of them.

A task is a data set, the rows that belong to it, and a transform with a small draw made afresh for every lane from its
key: labels, a permutation of the pixels. The arrays are shared by all tasks and lanes. A stream is an ordered, possibly
unbounded, lazy sequence of tasks; `take(n)` cuts it.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from neoteny.tasks.arrays import Arrays


class Transform(abc.ABC):
    """What a task does to the shared arrays: a draw made once per lane and task, applied to every batch.

    Subclasses are frozen dataclasses: equal transforms share one compiled program.
    """

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, targets: Array, features: int) -> PyTree:
        """The per-lane draw, from `targets` (n, ...) of the whole data set and the number of features of one input."""

    @abc.abstractmethod
    def __call__(self, drawn: PyTree, inputs: Array, targets: Array, rows: Array) -> tuple[Array, Array]:
        """The batch as the task shows it; `rows` (batch,) are its row numbers in the data set."""


@dataclass(frozen=True)
class Unchanged(Transform):
    """The data as they are."""

    def draw(self, key, targets, features):
        return ()

    def __call__(self, drawn, inputs, targets, rows):
        return inputs, targets


@dataclass(frozen=True)
class Centred(Transform):
    """Inputs less `mean`, divided by `scale`; 0.5 and 0.5 bring [0, 1] to [-1, 1]."""

    mean: float = 0.5
    scale: float = 0.5

    def draw(self, key, targets, features):
        return ()

    def __call__(self, drawn, inputs, targets, rows):
        return (inputs - self.mean) / self.scale, targets


@dataclass(frozen=True)
class RandomLabels(Transform):
    """Every input gets a label drawn uniformly from `classes`, independent of what it shows."""

    classes: int

    def draw(self, key, targets, features):
        return jax.random.randint(key, (targets.shape[0],), 0, self.classes, dtype=jnp.int32)

    def __call__(self, drawn, inputs, targets, rows):
        return inputs, drawn[rows]


@dataclass(frozen=True)
class PermutedPixels(Transform):
    """All inputs have their features (pixels and channels) permuted alike."""

    def draw(self, key, targets, features):
        return jax.random.permutation(key, features)

    def __call__(self, drawn, inputs, targets, rows):
        flat = inputs.reshape(inputs.shape[0], -1)
        return flat[:, drawn].reshape(inputs.shape), targets


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to learn.

    index: position in the stream. draw: which per-lane draw it uses; visits of one task share it. visit: 0 at the first
    visit. splits: name -> (m,) int32 row numbers of `data`.
    """

    name: str
    data: Arrays
    splits: dict[str, np.ndarray]
    transform: Transform
    index: int = 0
    draw: int = 0
    visit: int = 0

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split; KeyError naming the splits there are."""
        if split not in self.splits:
            raise KeyError(f"task {self.name!r} has no split {split!r}; its splits are {', '.join(self.splits)}")
        return self.splits[split]


@dataclass(frozen=True)
class Stream:
    """An ordered, lazy sequence of tasks; `length` None means without end. `make(i)` gives the i-th task."""

    make: Callable[[int], Task]
    length: int | None = None

    def __iter__(self) -> Iterator[Task]:
        for index in itertools.count() if self.length is None else range(self.length):
            yield self[index]

    def __getitem__(self, index: int) -> Task:
        if index < 0 or (self.length is not None and index >= self.length):
            raise IndexError(f"task {index} of a stream of {self.length}")
        return replace(self.make(index), index=index)

    def __len__(self) -> int:
        return self._bounded("len()")

    def _bounded(self, what: str) -> int:
        if self.length is None:
            raise ValueError(f"{what} needs a stream with an end; cut it first with take(n)")
        return self.length

    def take(self, count: int) -> Stream:
        """The first `count` tasks."""
        if count < 1:
            raise ValueError(f"take({count}): a stream needs at least one task")
        if self.length is not None and count > self.length:
            raise ValueError(f"take({count}): the stream has only {self.length} tasks")
        return Stream(self.make, count)

    def repeated(self, visits: int) -> Stream:
        """The whole stream `visits` times over; a task keeps its draw at every visit."""
        length = self._bounded("repeated()")
        if visits < 1:
            raise ValueError(f"repeated({visits}): at least one visit")

        def make(index: int) -> Task:
            visit, position = divmod(index, length)
            return replace(self[position], visit=visit)

        return Stream(make, length * visits)

    def shuffled(self, order: int) -> Stream:
        """The tasks in the random order numbered `order`; order 0 is the order given."""
        length = self._bounded("shuffled()")
        positions = np.arange(length) if order == 0 else np.random.default_rng(order).permutation(length)
        return Stream(lambda index: self[int(positions[index])], length)

    def then(self, other: Stream) -> Stream:
        """This stream, then the other; draws of the two stay apart."""
        length = self._bounded("then()")

        @cache
        def offset() -> int:
            return 1 + max(task.draw for task in self)

        def make(index: int) -> Task:
            if index < length:
                return self[index]
            task = other[index - length]
            return replace(task, draw=task.draw + offset())

        return Stream(make, None if other.length is None else length + other.length)


def _from(data: Arrays | np.ndarray, targets: np.ndarray | None) -> Arrays:
    if isinstance(data, Arrays):
        if targets is not None:
            raise TypeError("give either an Arrays data set or inputs with targets, not both")
        return data
    if targets is None:
        raise TypeError("inputs given as an array need their targets: permuted(inputs, targets, tasks=...)")
    from neoteny.tasks.images import from_arrays

    return from_arrays(data, targets)


def single(data: Arrays | np.ndarray, targets: np.ndarray | None = None) -> Stream:
    """A stream of one task: the data as they are."""
    arrays = _from(data, targets)
    return Stream(lambda index: Task(arrays.name, arrays, arrays.splits, Unchanged()), 1)


def random_labels(
    data: Arrays | np.ndarray,
    targets: np.ndarray | None = None,
    *,
    tasks: int | None = None,
    classes: int | None = None,
) -> Stream:
    """The same inputs with labels drawn anew for every task (Zhang et al. 2017; Lyle et al. 2023, case study 1).

    `classes` defaults to the data set's own number; `tasks` None gives a stream without end.
    """
    arrays = _from(data, targets)
    count = classes if classes is not None else arrays.classes
    if count is None or count < 2:
        raise ValueError(f"random_labels needs at least two classes, and {arrays.name} has {count}; give classes=")

    def make(index: int) -> Task:
        return Task(f"labels-{index}", arrays, arrays.splits, RandomLabels(count), draw=index)

    return Stream(make, tasks)


def permuted(
    data: Arrays | np.ndarray,
    targets: np.ndarray | None = None,
    *,
    tasks: int | None = None,
    first_unchanged: bool = False,
) -> Stream:
    """The same data with another permutation of the pixels in every task (Goodfellow et al. 2013).

    `first_unchanged` leaves the first task as it is. `tasks` None gives a stream without end.
    """
    arrays = _from(data, targets)

    def make(index: int) -> Task:
        transform = Unchanged() if first_unchanged and index == 0 else PermutedPixels()
        return Task(f"permuted-{index}", arrays, arrays.splits, transform, draw=index)

    return Stream(make, tasks)


def class_incremental(
    data: Arrays | np.ndarray, targets: np.ndarray | None = None, *, tasks: int, local: bool = False
) -> Stream:
    """The classes in order, split into `tasks` groups of equal size, one larger where they do not divide.

    local: labels count from 0 in every task, for a head of its own (`networks.head_per_task`); else they keep their
    number, for one head with all classes.
    """
    arrays = _from(data, targets)
    if arrays.classes is None:
        raise ValueError(f"class_incremental needs class labels, and {arrays.name} has none")
    if not 1 <= tasks <= arrays.classes:
        raise ValueError(f"tasks must be between 1 and the {arrays.classes} classes of {arrays.name}, not {tasks}")
    groups = [group.tolist() for group in np.array_split(np.arange(arrays.classes), tasks)]
    if local:
        from neoteny.tasks.subsets import subset

        return domains([subset(arrays, classes=group) for group in groups])

    def make(index: int) -> Task:
        members = groups[index]
        splits = {name: rows[np.isin(arrays.targets[rows], members)] for name, rows in arrays.splits.items()}
        return Task("classes-" + "-".join(map(str, members)), arrays, splits, Unchanged(), draw=index)

    return Stream(make, tasks)


def domains(data: Sequence[Arrays], *, transform: Transform | None = None) -> Stream:
    """One data set after another; all must have one input shape. transform: what every task does to its batches."""
    if not data:
        raise ValueError("domains needs at least one data set")
    shapes = {arrays.input_shape for arrays in data}
    if len(shapes) > 1:
        raise ValueError(f"the data sets of a domain sequence must have one input shape, not {sorted(shapes)}")
    shown = Unchanged() if transform is None else transform
    return Stream(lambda index: Task(data[index].name, data[index], data[index].splits, shown, draw=index), len(data))
