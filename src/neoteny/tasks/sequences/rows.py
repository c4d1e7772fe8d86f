"""What the sequence tasks share: texts as padded rows of tokens, and data sets made of them with their splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import Size, _with_cuts, shuffled

BYTES = 257
"""Rows of an embedding table for bytes: padding is 0, byte b is token b + 1."""


def padded_rows(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Row i holds the first `length` of flat[starts[i] : starts[i] + lengths[i]], filled up with 0 at the end.

    flat: (total,) tokens from 1; starts, lengths: (n,). Returns (n, length) of flat's type.
    """
    kept = np.minimum(lengths, length)
    rows = np.zeros((len(starts), length), flat.dtype)
    real = np.arange(length) < kept[:, None]
    # ordinal of every kept token within its row, then its place in `flat`
    within = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
    rows[real] = flat[np.repeat(starts, kept) + within]
    return rows


def byte_rows(texts: Sequence[bytes], length: int) -> np.ndarray:
    """Texts as rows of tokens (n, length) int16: byte + 1, cut at `length` bytes, padded with 0."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    flat = np.frombuffer(b"".join(texts), np.uint8).astype(np.int16) + np.int16(1)
    return padded_rows(flat, np.cumsum(lengths) - lengths, lengths, length)


def from_parts(
    name: str,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    classes: int | None,
    tokens: int = 0,
    dev: Size = 0,
    test: Size = 0,
    source: str,
    class_names: tuple[str, ...] = (),
) -> Arrays:
    """A data set of parts split -> (inputs, targets), each in a fixed random order; dev and test cut where missing.

    tokens: rows of the embedding table, 0 where inputs are no tokens.
    """
    if "train" not in parts:
        raise UsageError(f"{name}: no training part; there are {', '.join(parts) or 'none'}")
    splits, start = {}, 0
    for split, (inputs, targets) in parts.items():
        if len(inputs) != len(targets):
            raise UsageError(f"{name}: {split} has {len(inputs)} inputs and {len(targets)} targets; give one an input")
        if len(inputs) == 0:
            raise UsageError(f"{name}: {split} is empty")
        splits[split] = shuffled(np.arange(start, start + len(inputs)))
        start += len(inputs)
    inputs = np.concatenate([part[0] for part in parts.values()])
    targets = np.concatenate([part[1] for part in parts.values()])
    targets = targets.astype(np.float32 if classes is None else np.int32)
    if classes is not None and not 0 <= targets.min() <= targets.max() < classes:
        raise UsageError(
            f"{name}: labels go from {targets.min()} to {targets.max()}; with {classes} classes 0 is first"
        )
    splits = _with_cuts(name, splits, None if classes is None else targets, dev, test)
    for array in (inputs, targets, *splits.values()):
        array.setflags(write=False)
    return Arrays(name, inputs, targets, splits, classes, source, class_names, tokens)


def positive(value: int, name: str, least: int = 1) -> int:
    """`value`, or a UsageError if it is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)
