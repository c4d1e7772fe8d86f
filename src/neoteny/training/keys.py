"""Named random keys: the lane's root folded with a name, then with counters. Nothing splits and carries.

A draw therefore depends only on what it is for and when, never on what else was drawn: adding a probe or an evaluation
leaves every other draw as it was. Updates count within their task, interventions among themselves, and probes by the
number of updates and their own name.
"""

from __future__ import annotations

import zlib
from enum import Enum

import jax
from jaxtyping import Array, PRNGKeyArray


class Purpose(Enum):
    """What a key is for; its value is the name that is hashed into the key."""

    INIT = "init"
    DATA = "data"
    BATCH = "batch"
    UPDATE = "update"
    SWITCH = "switch"
    ENVIRONMENT = "environment"
    EXPLORATION = "exploration"
    PROBE = "probe"
    INTERVENTION = "intervention"
    EVALUATE = "evaluate"

    @property
    def code(self) -> int:
        """CRC-32 of the name."""
        return zlib.crc32(self.value.encode())


def root_key(seed: Array | int) -> PRNGKeyArray:
    """The root key of a lane with this seed."""
    return jax.random.key(seed)


def named_key(root: PRNGKeyArray, purpose: Purpose, *counters: Array | int) -> PRNGKeyArray:
    """The key for `purpose` at these counters (step, task, event, ...)."""
    key = jax.random.fold_in(root, purpose.code)
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
