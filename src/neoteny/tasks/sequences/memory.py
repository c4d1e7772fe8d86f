"""Tasks that need memory and little else: a pattern of bits, a delay, then the pattern again.

Only patterns are stored; the transform lays them out in time inside the program, so that a delay of thousands of steps
costs no memory on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import jax
import jax.numpy as jnp
import numpy as np

from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sequences.rows import from_parts, positive
from neoteny.tasks.streams import Stream, Task, Transform


class Between(Enum):
    """What is shown during the delay."""

    SILENCE = "silence"
    """Nothing: the copying problem (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016)."""
    DISTRACTORS = "distractors"
    """Random bits to be ignored: delayed recall. They are fixed for every example and lane."""


@dataclass(frozen=True)
class Recall(Transform):
    """Patterns (batch, steps, bits) as sequences (batch, steps + delay + steps, bits + 2).

    First the pattern, its steps marked by 1 in channel `bits`; then the delay; then `steps` steps marked by 1 in
    channel bits + 1, during which nothing else is shown and the pattern is to be given back. Targets stay the pattern
    (batch, steps, bits): the network's last `steps` outputs.
    """

    delay: int
    between: Between = Between.SILENCE

    def draw(self, key, targets, features):
        return jax.random.bits(key, (), jnp.uint32)

    def __call__(self, drawn, inputs, targets, rows):
        batch, steps, bits = inputs.shape
        shown = jnp.zeros((batch, steps + self.delay + steps, bits + 2), jnp.float32)
        shown = shown.at[:, :steps, :bits].set(inputs)
        shown = shown.at[:, :steps, bits].set(1).at[:, steps + self.delay :, bits + 1].set(1)
        if self.between is Between.DISTRACTORS and self.delay:

            def noise(row):
                return jax.random.bernoulli(jax.random.fold_in(jax.random.key(drawn), row), 0.5, (self.delay, bits))

            shown = shown.at[:, steps : steps + self.delay, :bits].set(jax.vmap(noise)(rows).astype(jnp.float32))
        return shown, targets


def patterns(examples: int = 10_000, *, steps: int = 20, bits: int = 7, test: int = 1_000, seed: int = 0) -> Arrays:
    """Random bits: inputs (n, steps, bits) uint8 of 0 and 255, targets the same as 0.0 and 1.0, for `recall`."""
    count = positive(examples, "examples") + positive(test, "test")
    shape = (count, positive(steps, "steps"), positive(bits, "bits"))
    drawn = np.random.default_rng([seed, 3]).integers(0, 2, shape, dtype=np.uint8)
    parts = {"train": drawn[:examples], "test": drawn[examples:]}
    return from_parts(
        f"patterns-{examples}-{steps}-{bits}-{seed}",
        {split: (part * np.uint8(255), part.astype(np.float32)) for split, part in parts.items()},
        classes=None,
        source=f"generated, seed {seed}; the copying problem, Hochreiter & Schmidhuber 1997",
    )


def recall(data: Arrays, delay: int, *, between: Between = Between.SILENCE) -> Stream:
    """A stream of one task: give these patterns back after a delay; with SILENCE, the copying problem."""
    transform = Recall(positive(delay, "delay", least=0), between)
    return Stream(lambda _: Task(f"{data.name}-delay{delay}", data, data.splits, transform), 1)
