"""Sources of batches. A source owns how a task is sampled; this one draws shuffled minibatches inside the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PRNGKeyArray, PyTree

from neoteny.learners.learner import Batch
from neoteny.tasks.streams import Transform


class DataArrays(NamedTuple):
    """A data set's inputs (n, ...) and targets (n, ...) as arguments of a program, shared by all lanes."""

    inputs: Array
    targets: Array


class TaskArrays(NamedTuple):
    """A split of a task for training, from the host.

    rows: (capacity,) int32, its row numbers, padded. count: () int32, how many of them are real.
    """

    data: DataArrays
    rows: Any
    count: Any


Given = TaskArrays | DataArrays | None
"""What programs are given of a task: a split of a data set, the arrays its environment is made of, or nothing."""


class Ring(NamedTuple):
    """The newest rows of something endless, old ones overwritten in place.

    rows: pytree of (capacity, ...). written: () int32, rows ever written; the store commits only those written since
    the last commit.
    """

    rows: PyTree
    written: Array

    def write(self, rows: PyTree, at: Array) -> Ring:
        """With `rows` (n, ...) at the places [at, at + n) modulo the capacity, which n must divide.

        `at` must come from the shared clock: unbatched, so that lanes write by a slice and not by a scatter.
        """
        count = jax.tree.leaves(rows)[0].shape[0]

        def put(held: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(held, new.astype(held.dtype), at % held.shape[0], 0)

        return Ring(jax.tree.map(put, self.rows, rows), jnp.asarray(at + count, jnp.int32))


class SourceState(NamedTuple):
    """drawn: the task's draw for this lane. order: (capacity,) int32, the epoch's rows shuffled, padding last."""

    drawn: PyTree
    order: Any


def as_inputs(stored: Array) -> Array:
    """Stored inputs as the network sees them: uint8 becomes float32 in [0, 1]."""
    if stored.dtype != jnp.uint8:
        return stored
    # Behind a barrier, or XLA would multiply by a rounded 1 / 255 and give other floats than NumPy's x / 255.
    return stored.astype(jnp.float32) / jax.lax.optimization_barrier(jnp.float32(255.0))


def take_batch(data: DataArrays, transform: Transform, drawn: PyTree, rows: Int32[Array, " batch"]) -> Batch:
    """The batch at these row numbers as a task with this transform and draw shows it."""
    return Batch(*transform(drawn, as_inputs(data.inputs[rows]), data.targets[rows], rows))


@dataclass(frozen=True)
class Minibatch:
    """Shuffled minibatches without replacement: a new order each epoch, an incomplete last batch dropped.

    A task with fewer rows than `batch_size` repeats rows within a batch.
    """

    batch_size: int = 128
    compiled = True

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def init(self, task: TaskArrays, transform: Transform, key: PRNGKeyArray) -> SourceState:
        """The state at the beginning of a task; `key` is the task's own data key."""
        features = task.data.inputs[0].size
        return SourceState(transform.draw(key, task.data.targets, features), task.rows)

    def next(
        self, state: SourceState, task: TaskArrays, transform: Transform, task_update: Array, key: PRNGKeyArray
    ) -> tuple[SourceState, Batch]:
        """The batch of update number `task_update` of this task; `key` must be that update's own."""
        per_epoch = jnp.maximum(task.count // self.batch_size, 1)
        position = task_update % per_epoch

        def shuffle(_: Array) -> Array:
            # 31 random bits a row, below a bit that sorts padding last.
            padding = jnp.arange(task.rows.shape[0]) >= task.count
            draws = (jax.random.bits(key, task.rows.shape) >> 1) | (padding.astype(jnp.uint32) << 31)
            _, order = jax.lax.sort((draws, task.rows), num_keys=1)
            return order

        order = jax.lax.cond(position == 0, shuffle, lambda order: order, state.order)
        places = (position * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)) % task.count
        return state._replace(order=order), take_batch(task.data, transform, state.drawn, order[places])
