"""Checks of sizes and shapes that every layer shares: a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array


def positive(value: object, name: str) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def positives(values: Sequence[int], name: str) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least 1; may be empty."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a sequence of positive whole numbers, got {values!r}")
    return tuple(positive(value, f"{name}[{index}]") for index, value in enumerate(values))


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """(height, width) from one number for both or from two."""
    if isinstance(value, int | np.integer):
        return positive(value, name), positive(value, name)
    sizes = positives(value, name)
    if len(sizes) != 2:
        raise ValueError(f"{name} must be one number or (height, width), got {value!r}")
    return sizes[0], sizes[1]


def image_shape(value: Sequence[int]) -> tuple[int, int, int]:
    """(height, width, channels)."""
    shape = positives(value, "input_shape")
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {tuple(value)}")
    return shape[0], shape[1], shape[2]


def scaled(sizes: Sequence[int], width: float) -> tuple[int, ...]:
    """`sizes` times the factor `width`, rounded, none below 1."""
    if isinstance(width, bool) or not isinstance(width, int | float | np.number) or not 0 < width < float("inf"):
        raise ValueError(f"width, the factor of all hidden sizes, must be a positive number, got {width!r}")
    return tuple(max(round(float(width) * size), 1) for size in sizes)


def features_last(x: Array, size: int, layer: str, argument: str) -> None:
    """`x` is a batch whose last axis has `size` entries."""
    if x.ndim < 2 or x.shape[-1] != size:
        raise ValueError(
            f"{layer} was made with {argument}={size} and expects (batch, ..., {size}); got an input of shape {x.shape}"
        )


def feature_map(x: Array, layer: str) -> None:
    """`x` is (batch, height, width, channels)."""
    if x.ndim != 4:
        raise ValueError(f"{layer} expects (batch, height, width, channels); got an input of shape {x.shape}")
