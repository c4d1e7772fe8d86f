"""VGG networks for small images: Simonyan & Zisserman 2015, with the dense layers in use for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PRNGKeyArray

from neoteny.networks._checks import image_shape, positive, positives, scaled
from neoteny.networks.activations import Activation, ActivationFunction, check_activation, output_size, relu
from neoteny.networks.convolution import (
    Conv2d,
    Lowering,
    LoweringLike,
    MaxPool2d,
    Padding,
    as_lowering,
    spatial_size,
)
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import Initializer, he, lecun, named_key
from neoteny.networks.mlp import dense_stages
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import Normalizer, check_norm, norm_layers
from neoteny.networks.points import Point

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each group, by depth (Simonyan & Zisserman 2015, table 1: A, B, D, E)."""

CHANNELS = (64, 128, 256, 512, 512)
"""Channels of each group (same table)."""

POOL = 2
"""Window and stride of the max pooling after each group."""


@dataclass(frozen=True)
class VGG:
    """A maker of VGG networks; made by `vgg`, which checks and normalises the arguments."""

    input_shape: tuple[int, int, int]
    out_size: int
    groups: tuple[int, ...]
    channels: tuple[int, ...]
    dense: tuple[int, ...]
    activation: ActivationFunction
    norm: Normalizer
    initializer: Initializer
    head_initializer: Initializer
    lowering: Lowering

    def size(self) -> tuple[int, int]:
        """(height, width) after the last pooling; ValueError naming the stage before the pooling that does not fit."""
        size = self.input_shape[:2]
        for group in range(1, len(self.groups) + 1):
            try:
                size = spatial_size(size, POOL, POOL, Padding.VALID)
            except ValueError as error:
                last = f"conv{sum(self.groups[:group])}"
                raise ValueError(f"the pooling after {last} of input_shape={self.input_shape}: {error}") from None
        return size

    def points(self) -> tuple[Point, ...]:
        """The measurement points, one for each hidden stage: every convolution's and dense layer's activation."""
        blocks = [group for group, count in enumerate(self.groups, 1) for _ in range(count)]
        convolutions = [Point(f"conv{index}", block, index, index) for index, block in enumerate(blocks, 1)]
        dense = [Point(f"dense{index}", None, None, len(blocks)) for index in range(1, len(self.dense) + 1)]
        return *convolutions, *dense

    def __call__(self, key: PRNGKeyArray) -> Network:
        stages: dict[str, Layer] = {}
        inputs, pool = self.input_shape[-1], ()
        for count, outputs in zip(self.groups, self.channels, strict=True):
            for _ in range(count):
                name = f"conv{len(stages) + 1}"
                convolution = Conv2d(
                    inputs,
                    outputs,
                    3,
                    key=named_key(key, name),
                    padding=1,
                    initializer=self.initializer,
                    lowering=self.lowering,
                )
                norm, activation = norm_layers(self.norm, outputs), Activation(self.activation)
                stages[name] = Chain(*pool, convolution, *norm, activation)
                inputs, pool = output_size(self.activation, outputs), ()
            pool = (MaxPool2d(POOL),)
        height, width = self.size()
        dense, size = dense_stages(
            "dense", height * width * inputs, self.dense, self.activation, self.norm, self.initializer, key, before=pool
        )
        head = Dense(size, self.out_size, key=named_key(key, "head"), initializer=self.head_initializer)
        return Network(**stages, **dense, head=head)


def vgg(
    input_shape: Sequence[int],
    out_size: int,
    *,
    depth: int | Sequence[int] = 19,
    width: float = 1.0,
    dense: Sequence[int] = (512, 512),
    activation: ActivationFunction = relu,
    norm: Normalizer | None = None,
    initializer: Initializer = he,
    head_initializer: Initializer = lecun,
    lowering: LoweringLike = Lowering.CONVOLUTION,
) -> VGG:
    """A maker of a VGG network on (batch, height, width, channels) with stages conv1, ..., dense1, ..., head.

    `depth` is 11, 13, 16 or 19, or the number of convolutions in each of up to five groups: (2, 2, 4) is the
    beginning of VGG-19. A convolutional stage is 3 x 3 convolution with bias, norm (if any), activation; the
    max pooling after a group opens the next stage, so that every hidden stage's output is that of an
    activation: the 18 measurement points of VGG-19. `width` multiplies all hidden sizes, those of `dense`
    too. For CIFAR the dense layers are of 512 units, not of 4096 as for ImageNet, and have the norm as well.
    Draws are as in `mlp`. ValueError if the map gets smaller than a pooling window: five groups need 32 x 32.
    """
    if isinstance(depth, int | np.integer):
        if depth not in CONVOLUTIONS:
            known = ", ".join(map(str, CONVOLUTIONS))
            raise ValueError(f"depth must be one of {known} or the convolutions in each group, got {depth!r}")
        groups = CONVOLUTIONS[int(depth)]
    else:
        groups = positives(depth, "depth")
        if not 1 <= len(groups) <= len(CHANNELS):
            raise ValueError(f"depth must name the convolutions of 1 to {len(CHANNELS)} groups, got {groups}")
    if not dense:
        raise ValueError("dense must name at least one layer: the last pooling needs a stage to open")
    maker = VGG(
        image_shape(input_shape),
        positive(out_size, "out_size"),
        groups,
        scaled(CHANNELS[: len(groups)], width),
        scaled(positives(dense, "dense"), width),
        check_activation(activation),
        check_norm(norm),
        initializer,
        head_initializer,
        as_lowering(lowering),
    )
    maker.size()  # so that an image too small shows here and not in the traced program
    return maker
