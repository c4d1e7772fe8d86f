"""Residual networks of basic blocks: He et al. 2016, those for CIFAR and those for ImageNet on a CIFAR stem."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from neoteny.networks._checks import image_shape, positive, scaled
from neoteny.networks.activations import Activation, ActivationFunction, check_activation, output_size, relu
from neoteny.networks.convolution import Conv2d, GlobalAveragePool, Lowering, LoweringLike, as_lowering
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import Initializer, he, lecun, named_key
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import Norm, Normalizer, check_norm, norm_layers
from neoteny.networks.points import Point

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks of each group, by depth, of the networks for ImageNet (He et al. 2016, table 1)."""

IMAGENET_CHANNELS = (64, 128, 256, 512)
"""Channels of each group of the networks for ImageNet (same table)."""

CIFAR_CHANNELS = (16, 32, 64)
"""Channels of each group of the networks for CIFAR, of depth 6n + 2 with n blocks a group (section 4.2)."""


class Shortcut(enum.StrEnum):
    """The shortcut of a block that changes the size (He et al. 2016, section 3.3). All others are the identity.

    PADDED, option A: every stride-th place, and zeros for the channels added, which come last. PROJECTION,
    option B: a 1 x 1 convolution with that stride, and the norm.
    """

    PADDED = "padded"
    PROJECTION = "projection"


class PaddedShortcut(Layer):
    """Every stride-th place of the map, and zeros after its channels until there are `channels`."""

    stride: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)

    def __call__(self, x, *, train=False, key=None):
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1]))), self


class Residual(Layer):
    """activation(body(x) + shortcut(x)); `body` and `shortcut` map to equal shapes."""

    body: Layer
    shortcut: Layer
    activation: ActivationFunction = eqx.field(static=True)

    def __call__(self, x, *, train=False, key=None):
        keys = (None, None) if key is None else (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1))
        y, body = self.body(x, train=train, key=keys[0])
        z, shortcut = self.shortcut(x, train=train, key=keys[1])
        return self.activation(y + z), Residual(body, shortcut, self.activation)


@dataclass(frozen=True)
class ResNet:
    """A maker of residual networks; made by `resnet`, which checks and normalises the arguments."""

    input_shape: tuple[int, int, int]
    out_size: int
    groups: tuple[int, ...]
    channels: tuple[int, ...]
    shortcut: Shortcut
    activation: ActivationFunction
    norm: Normalizer
    initializer: Initializer
    head_initializer: Initializer
    lowering: Lowering

    def points(self) -> tuple[Point, ...]:
        """The measurement points, one for each block: the activation after its second convolution and the sum."""
        points, convolutions = [], 1
        for block, (inputs, outputs, stride) in enumerate(self._blocks(), 1):
            projected = self.shortcut is Shortcut.PROJECTION and (stride > 1 or inputs != outputs)
            convolutions += 3 if projected else 2
            points.append(Point(f"block{block}", block, 2 * block + 1, convolutions))
        return tuple(points)

    def __call__(self, key: PRNGKeyArray) -> Network:
        stages: dict[str, Layer] = {}
        for block, (inputs, outputs, stride) in enumerate(self._blocks(), 1):
            stage_key = named_key(key, f"block{block}")
            stem = self._stem(named_key(stage_key, "stem")) if block == 1 else ()
            residual = self._residual(inputs, outputs, stride, stage_key)
            stages[f"block{block}"] = Chain(*stem, residual) if stem else residual
        head = Dense(self.channels[-1], self.out_size, key=named_key(key, "head"), initializer=self.head_initializer)
        return Network(**stages, head=Chain(GlobalAveragePool(), head))

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of every block: each group but the first halves the map."""
        blocks, inputs = [], self.channels[0]
        for group, (count, outputs) in enumerate(zip(self.groups, self.channels, strict=True)):
            for index in range(count):
                blocks.append((inputs, outputs, 2 if group > 0 and index == 0 else 1))
                inputs = outputs
        return blocks

    def _stem(self, key: PRNGKeyArray) -> tuple[Layer, ...]:
        return (
            *self._convolution(self.input_shape[-1], self.channels[0], 3, 1, key),
            Activation(self.activation),
        )

    def _residual(self, inputs: int, outputs: int, stride: int, key: PRNGKeyArray) -> Residual:
        body = Chain(
            *self._convolution(inputs, outputs, 3, stride, named_key(key, "convolution1")),
            Activation(self.activation),
            *self._convolution(outputs, outputs, 3, 1, named_key(key, "convolution2")),
        )
        if stride == 1 and inputs == outputs:
            shortcut = Chain()
        elif self.shortcut is Shortcut.PADDED:
            shortcut = PaddedShortcut(stride, outputs)
        else:
            shortcut = Chain(*self._convolution(inputs, outputs, 1, stride, named_key(key, "shortcut")))
        return Residual(body, shortcut, self.activation)

    def _convolution(self, inputs: int, outputs: int, kernel: int, stride: int, key: PRNGKeyArray) -> tuple[Layer, ...]:
        convolution = Conv2d(
            inputs,
            outputs,
            kernel,
            key=key,
            stride=stride,
            padding=kernel // 2,
            initializer=self.initializer,
            use_bias=self.norm is Norm.NONE,  # a norm's own bias would make another one idle
            lowering=self.lowering,
        )
        return convolution, *norm_layers(self.norm, outputs)


def resnet(
    input_shape: Sequence[int],
    out_size: int,
    *,
    depth: int = 18,
    width: float = 1.0,
    shortcut: Shortcut | Literal["padded", "projection"] | None = None,
    activation: ActivationFunction = relu,
    norm: Normalizer | None = Norm.BATCH,
    initializer: Initializer = he,
    head_initializer: Initializer = lecun,
    lowering: LoweringLike = Lowering.CONVOLUTION,
) -> ResNet:
    """A maker of a ResNet on (batch, height, width, channels) with stages block1, ..., blockN, head.

    `depth` 18 or 34: four groups of 64 to 512 channels. `depth` 6n + 2 (8, 20, 32, ...): three groups of n
    blocks of 16 to 64 channels. `width` multiplies the channels. All begin with the CIFAR stem, one 3 x 3
    convolution without pooling, which belongs to stage block1; so every hidden stage's output is a
    measurement point, that of a block. A block is convolution, norm, activation, convolution, norm, plus
    shortcut, activation; kernels are 3 x 3, padding is 1 on every side, and the first convolution of a group
    but the first has stride 2. The head takes the mean over places. Convolutions have a bias only without
    norm. `shortcut`, for blocks that change the size: by default as published, PADDED for 6n + 2 and
    PROJECTION for 18 and 34. A layer's draws depend on its stage and its place in it alone, not on norm or depth.
    """
    depth = positive(depth, "depth")
    if depth in BLOCKS:
        groups, channels, published = BLOCKS[depth], IMAGENET_CHANNELS, Shortcut.PROJECTION
    elif depth >= 8 and depth % 6 == 2:
        groups, channels, published = ((depth - 2) // 6,) * 3, CIFAR_CHANNELS, Shortcut.PADDED
    else:
        raise ValueError(f"depth must be 18, 34 or 6n + 2 (8, 14, 20, 26, 32, ...), got {depth}")
    if shortcut is not None and shortcut not in tuple(Shortcut):
        raise ValueError(f"shortcut must be one of {', '.join(map(repr, map(str, Shortcut)))}, got {shortcut!r}")
    if output_size(check_activation(activation), 2) != 2:
        raise ValueError("activation must keep the number of channels, as a block adds its input to its output")
    return ResNet(
        image_shape(input_shape),
        positive(out_size, "out_size"),
        groups,
        scaled(channels, width),
        published if shortcut is None else Shortcut(shortcut),
        activation,
        check_norm(norm),
        initializer,
        head_initializer,
        as_lowering(lowering),
    )
