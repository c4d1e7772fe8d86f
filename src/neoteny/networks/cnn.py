"""Small convolutional networks: convolutions, then dense layers, such as the CNN of Lyle et al. 2023."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PRNGKeyArray

from neoteny.networks._checks import image_shape, positive, positives
from neoteny.networks.activations import Activation, ActivationFunction, check_activation, output_size, relu
from neoteny.networks.convolution import (
    Conv2d,
    Lowering,
    LoweringLike,
    MaxPool2d,
    Padding,
    PaddingLike,
    as_lowering,
    as_padding,
    spatial_size,
)
from neoteny.networks.dense import Dense, Flatten
from neoteny.networks.initializers import Initializer, he, lecun, named_key
from neoteny.networks.mlp import dense_stages
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import Normalizer, check_norm, norm_layers


@dataclass(frozen=True)
class CNN:
    """A maker of small convolutional networks; made by `cnn`, which checks and normalises the arguments."""

    input_shape: tuple[int, int, int]
    out_size: int
    channels: tuple[int, ...]
    dense: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    pools: tuple[int, ...]
    padding: Padding | int
    activation: ActivationFunction
    norm: Normalizer
    initializer: Initializer
    head_initializer: Initializer
    lowering: Lowering

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each convolutional stage's output; ValueError naming the stage too small."""
        sizes, size = [], self.input_shape[:2]
        for index, (kernel, stride, pool) in enumerate(zip(self.kernels, self.strides, self.pools, strict=True), 1):
            try:
                size = spatial_size(size, kernel, stride, self.padding)
                size = spatial_size(size, pool, pool, Padding.VALID)
            except ValueError as error:
                raise ValueError(f"conv{index} of input_shape={self.input_shape}: {error}") from None
            sizes.append(size)
        return sizes

    def __call__(self, key: PRNGKeyArray) -> Network:
        stages: dict[str, Layer] = {}
        inputs = self.input_shape[-1]
        plan = zip(self.channels, self.kernels, self.strides, self.pools, strict=True)
        for index, (outputs, kernel, stride, pool) in enumerate(plan, 1):
            name = f"conv{index}"
            convolution = Conv2d(
                inputs,
                outputs,
                kernel,
                key=named_key(key, name),
                stride=stride,
                padding=self.padding,
                initializer=self.initializer,
                lowering=self.lowering,
            )
            norm, activation = norm_layers(self.norm, outputs), Activation(self.activation)
            stages[name] = Chain(convolution, *norm, activation, *(() if pool == 1 else (MaxPool2d(pool),)))
            inputs = output_size(self.activation, outputs)
        height, width = [self.input_shape[:2], *self.sizes()][-1]
        dense, size = dense_stages(
            "dense", height * width * inputs, self.dense, self.activation, self.norm, self.initializer, key
        )
        head = Dense(size, self.out_size, key=named_key(key, "head"), initializer=self.head_initializer)
        return Network(**stages, **dense, head=head if dense else Chain(Flatten(), head))


def cnn(
    input_shape: Sequence[int],
    out_size: int,
    *,
    channels: Sequence[int] = (32, 64),
    dense: Sequence[int] = (256,),
    kernels: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    pools: int | Sequence[int] = 2,
    padding: PaddingLike = Padding.SAME,
    activation: ActivationFunction = relu,
    norm: Normalizer | None = None,
    initializer: Initializer = he,
    head_initializer: Initializer = lecun,
    lowering: LoweringLike = Lowering.AUTO,
) -> CNN:
    """A maker of a CNN on (batch, height, width, channels) with stages conv1, ..., dense1, ..., head.

    A convolutional stage is convolution, norm (if any), activation, max pooling over pool x pool windows (1:
    none); its output is taken at its end. `kernels`, `strides` and `pools` are one number for all stages or
    one a stage. Dense stages and draws are as in `mlp`. ValueError naming the stage if the map gets smaller
    than a window.
    """
    channels = positives(channels, "channels")
    maker = CNN(
        image_shape(input_shape),
        positive(out_size, "out_size"),
        channels,
        positives(dense, "dense"),
        _each(kernels, len(channels), "kernels"),
        _each(strides, len(channels), "strides"),
        _each(pools, len(channels), "pools"),
        as_padding(padding),
        check_activation(activation),
        check_norm(norm),
        initializer,
        head_initializer,
        as_lowering(lowering),
    )
    maker.sizes()  # so that a window that does not fit shows here and not in the traced program
    return maker


def _each(values: int | Sequence[int], stages: int, name: str) -> tuple[int, ...]:
    """One number a stage."""
    if isinstance(values, int | np.integer):
        return (positive(values, name),) * stages
    numbers = positives(values, name)
    if len(numbers) != stages:
        raise ValueError(f"{name} must be one number, or one for each of the {stages} channels; got {numbers}")
    return numbers
