"""Data sets held as arrays on the host, with named splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory.

    inputs: (n, height, width, channels) or (n, features); uint8 is divided by 255 when batches are made, anything else
    must be float32, or, in sequences of tokens (n, length), whole numbers of any other type with 0 for padding.
    targets: (n,) int32 class labels, or (n, outputs) float32 for regression. splits: name -> (m,) int32 row numbers,
    always with "train". classes: number of classes, None for regression. source: where it came from, with its citation
    or terms in a few words. tokens: rows an embedding table needs, padding included; 0 where inputs are no tokens.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    splits: dict[str, np.ndarray]
    classes: int | None
    source: str = ""
    class_names: tuple[str, ...] = field(default=())
    tokens: int = 0

    def __post_init__(self):
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"{self.name}: {len(self.inputs)} inputs and {len(self.targets)} targets; give one target an input"
            )
        if "train" not in self.splits:
            raise ValueError(f"{self.name}: no split called 'train'; the splits are {', '.join(self.splits) or 'none'}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays and splits: the identity of the data in every run's hash."""
        sha = hashlib.sha256()
        for array in (self.inputs, self.targets, *(self.splits[name] for name in sorted(self.splits))):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()
