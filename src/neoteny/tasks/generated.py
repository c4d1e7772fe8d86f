"""Data sets that need no files: inputs drawn at random, classes given by a fixed random network."""

from __future__ import annotations

import functools

import numpy as np

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import from_arrays

TEACHER_SEED = 20_230_519
"""Any fixed number: the teacher and its inputs are the same on every machine."""


@functools.cache
def teacher(
    *, train: int = 20_000, test: int = 5_000, features: int = 64, classes: int = 10, width: int = 64, depth: int = 4
) -> Arrays:
    """Gaussian inputs (n, features) with the class a fixed random tanh network gives them.

    The teacher has `depth` hidden layers of `width` tanh units, weights N(0, 4 / fan_in), and `classes` linear outputs,
    each standardised over the inputs so that all classes occur; the largest is the class.
    """
    rng = np.random.Generator(np.random.PCG64(TEACHER_SEED))
    inputs = hidden = rng.standard_normal((train + test, features))
    for _ in range(depth):
        hidden = np.tanh(hidden @ (2 * rng.standard_normal((hidden.shape[1], width)) / np.sqrt(hidden.shape[1])))
    outputs = hidden @ rng.standard_normal((width, classes))
    outputs = (outputs - outputs.mean(axis=0)) / outputs.std(axis=0)
    rows = np.arange(train + test)
    return from_arrays(
        inputs.astype(np.float32),
        outputs.argmax(axis=1),
        name="teacher",
        splits={"train": rows[:train], "test": rows[train:]},
        dev=0,
        classes=classes,
        source=f"a fixed random tanh network of {depth} layers on {features} Gaussian inputs",
    )
