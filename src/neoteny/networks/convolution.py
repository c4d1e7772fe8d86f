"""Convolution and pooling of feature maps (batch, height, width, channels).

Inside a loop (`scan`, `fori_loop`) or with batched weights (`vmap`), XLA:CPU runs convolutions an order of
magnitude slower than the same sums written as patches times a matrix, and its windowed maximum likewise. So
convolution has two lowerings of one definition, chosen by the platform the program is compiled for, and
pooling is written with slices.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from neoteny.networks._checks import feature_map, features_last, pair, positive
from neoteny.networks.initializers import Initializer, he, named_key
from neoteny.networks.network import Layer

Sizes = int | Sequence[int]
"""One number for height and width, or (height, width)."""


Pads = tuple[tuple[int, int], ...]
"""Zeros (before, after) along height and along width."""

PARTS = 4
"""Parts of the batch that a kernel's gradient is summed over on CPU; see benchmarks/resnet.md."""


class Padding(enum.StrEnum):
    """SAME: ceil(size / stride) outputs, an odd zero at the far end. VALID: no zeros.

    A number instead, where layers take one, is that many zeros on each side.
    """

    SAME = "SAME"
    VALID = "VALID"


PaddingLike = Padding | Literal["SAME", "VALID"] | int


class Lowering(enum.StrEnum):
    """How a convolution is computed. AUTO: patches times a matrix on CPU, XLA's convolution elsewhere."""

    AUTO = "auto"
    PATCHES = "patches"
    CONVOLUTION = "convolution"


LoweringLike = Lowering | Literal["auto", "patches", "convolution"]


def as_padding(padding: PaddingLike) -> Padding | int:
    """`padding` in its checked form; ValueError if it is none of those."""
    if isinstance(padding, int | np.integer) and not isinstance(padding, bool) and padding >= 0:
        return int(padding)
    if padding in tuple(Padding):
        return Padding(padding)
    raise ValueError(f"padding must be 'SAME', 'VALID' or a number of pixels, got {padding!r}")


def as_lowering(lowering: LoweringLike) -> Lowering:
    """`lowering` in its checked form; ValueError if it is none of those."""
    if lowering in tuple(Lowering):
        return Lowering(lowering)
    raise ValueError(f"lowering must be one of {', '.join(map(repr, map(str, Lowering)))}, got {lowering!r}")


def convolve(
    x: Float[Array, "batch height width in_channels"],
    weight: Float[Array, "kernel_height kernel_width in_channels out_channels"],
    *,
    stride: Sizes = 1,
    padding: PaddingLike = Padding.SAME,
    lowering: LoweringLike = Lowering.AUTO,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """Cross-correlation of `x` with `weight` (no flip, as usual in networks).

    The lowerings agree to rounding, in value and in derivatives of every order. Patches hold kernel_height *
    kernel_width copies of the input.
    """
    feature_map(x, "convolve")
    features_last(x, weight.shape[2], "convolve", "in_channels")
    strides, kernel = pair(stride, "stride"), (weight.shape[0], weight.shape[1])
    lowering = as_lowering(lowering)
    pads = _pads(x.shape[1:3], kernel, strides, as_padding(padding))

    def patches(x: Array, weight: Array) -> Array:
        turned = weight.reshape(-1, weight.shape[-1]).T
        # Behind the barrier its gradient is made as (out_channels, patch): the other way round costs twice as much.
        return _columns(x, kernel, strides, pads) @ lax.optimization_barrier(turned).T

    def convolution(x: Array, weight: Array) -> Array:
        return _convolution(x, weight, strides, pads)

    if lowering is Lowering.PATCHES:
        return patches(x, weight)
    if lowering is Lowering.CONVOLUTION:
        return convolution(x, weight)
    # Both are traced, and only the one of the platform is lowered: it costs nothing when the program runs.
    return lax.platform_dependent(x, weight, cpu=patches, default=convolution)


def _xla_convolution(x: Array, weight: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return lax.conv_general_dilated(x, weight, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolution(x: Array, weight: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """XLA's convolution, with the derivative by the kernel in a form whose transpose is fast on CPU."""
    return _xla_convolution(x, weight, strides, pads)


@_convolution.defjvp
def _convolution_jvp(strides, pads, primals, tangents):
    (x, weight), (dx, dweight) = primals, tangents

    def whole(x: Array, dweight: Array) -> Array:
        return _convolution(x, dweight, strides, pads)

    def by_parts(x: Array, dweight: Array) -> Array:
        # Transposed, this sums the kernel's gradient over parts of the batch: a long sum for a few outputs, which
        # XLA:CPU computes on one core if it is one convolution, and on several if it is several.
        parts = jnp.array_split(x, min(PARTS, x.shape[0]))
        return jnp.concatenate([_convolution(part, dweight, strides, pads) for part in parts])

    tangent = _convolution(dx, weight, strides, pads)
    return _convolution(x, weight, strides, pads), tangent + lax.platform_dependent(
        x, dweight, cpu=by_parts, default=whole
    )


def spatial_size(size: Sequence[int], window: Sizes, stride: Sizes, padding: PaddingLike) -> tuple[int, int]:
    """(height, width) after a convolution or pooling; ValueError if the window does not fit."""
    windows, strides = pair(window, "window"), pair(stride, "stride")
    pads = _pads(tuple(size), windows, strides, as_padding(padding))
    height, width = ((n + sum(p) - w) // s + 1 for n, p, w, s in zip(size, pads, windows, strides, strict=True))
    return height, width


class Conv2d(Layer):
    """2-D convolution: (batch, height, width, in_channels) to (batch, height', width', out_channels).

    ValueError if the input is not a feature map of `in_channels`, or smaller than the kernel.
    """

    weight: Float[Array, "kernel_height kernel_width in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    stride: tuple[int, int] = eqx.field(static=True)
    padding: Padding | int = eqx.field(static=True)
    lowering: Lowering = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sizes,
        *,
        key: PRNGKeyArray,
        stride: Sizes = 1,
        padding: PaddingLike = Padding.SAME,
        initializer: Initializer = he,
        use_bias: bool = True,
        lowering: LoweringLike = Lowering.AUTO,
    ):
        shape = (
            *pair(kernel, "kernel"),
            positive(in_channels, "in_channels"),
            positive(out_channels, "out_channels"),
        )
        fan_in = shape[0] * shape[1] * shape[2]
        self.stride = pair(stride, "stride")
        self.padding = as_padding(padding)
        self.lowering = as_lowering(lowering)
        self.weight = initializer.weight(named_key(key, "weight"), shape, fan_in)
        self.bias = initializer.bias(named_key(key, "bias"), shape[-1:], fan_in) if use_bias else None

    def __call__(self, x, *, train=False, key=None):
        feature_map(x, "Conv2d")
        features_last(x, self.weight.shape[2], "Conv2d", "in_channels")
        y = convolve(x, self.weight, stride=self.stride, padding=self.padding, lowering=self.lowering)
        return (y if self.bias is None else y + self.bias), self


class MaxPool2d(Layer):
    """Maximum over windows; `stride` defaults to the window. Equal maxima share the gradient."""

    window: tuple[int, int] = eqx.field(static=True)
    stride: tuple[int, int] = eqx.field(static=True)
    padding: Padding | int = eqx.field(static=True)

    def __init__(self, window: Sizes, *, stride: Sizes | None = None, padding: PaddingLike = Padding.VALID):
        self.window = pair(window, "window")
        self.stride = self.window if stride is None else pair(stride, "stride")
        self.padding = _pool_padding(padding, self.window)

    def __call__(self, x, *, train=False, key=None):
        feature_map(x, "MaxPool2d")
        pads = _pads(x.shape[1:3], self.window, self.stride, self.padding)
        return _pairwise(jnp.maximum, _windows(x, self.window, self.stride, pads, fill=-jnp.inf)), self


class AveragePool2d(Layer):
    """Mean over windows, padding not counted; `stride` defaults to the window."""

    window: tuple[int, int] = eqx.field(static=True)
    stride: tuple[int, int] = eqx.field(static=True)
    padding: Padding | int = eqx.field(static=True)

    def __init__(self, window: Sizes, *, stride: Sizes | None = None, padding: PaddingLike = Padding.VALID):
        self.window = pair(window, "window")
        self.stride = self.window if stride is None else pair(stride, "stride")
        self.padding = _pool_padding(padding, self.window)

    def __call__(self, x, *, train=False, key=None):
        feature_map(x, "AveragePool2d")
        pads = _pads(x.shape[1:3], self.window, self.stride, self.padding)
        total = _pairwise(jnp.add, _windows(x, self.window, self.stride, pads, fill=0.0))
        inside = np.pad(np.ones((1, *x.shape[1:3], 1)), ((0, 0), *pads, (0, 0)))
        count = sum(_strided(inside, self.window, self.stride))
        return total / jnp.asarray(count, x.dtype), self


class GlobalAveragePool(Layer):
    """Mean over height and width: (batch, height, width, channels) to (batch, channels)."""

    def __call__(self, x, *, train=False, key=None):
        feature_map(x, "GlobalAveragePool")
        return jnp.mean(x, axis=(1, 2)), self


def _pool_padding(padding: PaddingLike, window: tuple[int, int]) -> Padding | int:
    padding = as_padding(padding)
    # A window wholly inside the padding has no maximum and no mean.
    if isinstance(padding, int) and padding >= min(window):
        raise ValueError(f"padding must be smaller than the window {window}, got {padding}")
    return padding


def _pads(size: tuple[int, ...], window: tuple[int, int], stride: tuple[int, int], padding: Padding | int) -> Pads:
    """Zeros (before, after) along height and along width; ValueError if the window does not fit."""
    if isinstance(padding, int):
        pads = ((padding, padding),) * 2
    elif padding is Padding.VALID:
        pads = ((0, 0),) * 2
    else:
        # ceil(n / s) outputs; of an odd number of zeros the extra one comes last, as in TensorFlow and XLA.
        missing = tuple(max((-(-n // s) - 1) * s + w - n, 0) for n, w, s in zip(size, window, stride, strict=True))
        pads = tuple((m // 2, m - m // 2) for m in missing)
    if any(n + sum(p) < w for n, p, w in zip(size, pads, window, strict=True)):
        raise ValueError(f"a window of {window} does not fit into a map of {tuple(size)} with padding {padding}")
    return pads


def _strided(x, window: tuple[int, int], stride: tuple[int, int]) -> list:
    """For every place in the window, row-major: the cells it falls on, (batch, height', width', channels)."""
    (height, width), (down, right) = window, stride
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    return [x[:, i : i + rows : down, j : j + columns : right] for i in range(height) for j in range(width)]


def _windows(
    x: Array,
    window: tuple[int, int],
    stride: tuple[int, int],
    pads: Pads,
    *,
    fill: float,
) -> list[Array]:
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill) if any(map(any, pads)) else x
    return _strided(padded, window, stride)


def _columns(x: Array, window: tuple[int, int], stride: tuple[int, int], pads: Pads) -> Array:
    """The cells of every window side by side, row-major, channels last: (batch, height', width', cells * channels).

    First along the width, then along the height: as many copies as the window has rows and columns, not cells.
    """
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0))) if any(map(any, pads)) else x
    wide = jnp.concatenate(_strided(padded, (1, window[1]), (1, stride[1])), axis=-1)
    return jnp.concatenate(_strided(wide, (window[0], 1), (stride[0], 1)), axis=-1)


def _pairwise(operation: Callable[[Array, Array], Array], arrays: list[Array]) -> Array:
    """Reduce by pairs: XLA fuses this into one pass where a stacked or windowed reduction is many."""
    while len(arrays) > 2:
        arrays = [reduce(operation, arrays[i : i + 2]) for i in range(0, len(arrays), 2)]
    return reduce(operation, arrays)
