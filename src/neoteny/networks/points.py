"""Where a deep network is measured: one point for every hidden stage, with its place among the convolutions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """The output of the hidden stage `stage`, after its activation, and how papers may number it.

    block: number of the residual block (ResNet) or of the group between poolings (VGG), from 1; None of a
    dense stage. convolution: number of the last convolution before the point along the main path, from 1;
    None of a dense stage. convolutions: how many convolutions there are up to the point, those of shortcuts
    counted as well.
    """

    stage: str
    block: int | None
    convolution: int | None
    convolutions: int
