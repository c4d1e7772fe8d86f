"""Small vision transformers (Dosovitskiy et al. 2021), such as that of Lyle et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from neoteny.networks._checks import features_last, image_shape, positive
from neoteny.networks.activations import Activation, ActivationFunction, check_activation, gelu, identity, output_size
from neoteny.networks.convolution import Conv2d, Lowering, LoweringLike, Padding, as_lowering, spatial_size
from neoteny.networks.dense import Dense
from neoteny.networks.dropout import Dropout
from neoteny.networks.initializers import Initializer, Normal, lecun, named_key
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import LayerNorm
from neoteny.networks.resnet import Residual

POSITIONS = Normal(0.02)
"""Standard deviation of the position embeddings, at a fan-in of 1 (Dosovitskiy et al. 2021, published code)."""


class Positions(Layer):
    """A feature map (batch, height, width, size) as tokens (batch, height * width, size), each with what is learned of
    its place added.
    """

    embedding: Float[Array, "tokens size"]

    def __init__(self, tokens: int, size: int, *, key: PRNGKeyArray):
        self.embedding = POSITIONS(key, (tokens, size), 1)

    def __call__(self, x, *, train=False, key=None):
        return x.reshape(x.shape[0], -1, x.shape[-1]) + self.embedding, self


class Attention(Layer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): (batch, tokens, size) to the same shape."""

    projections: Dense
    output: Dense
    size: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, heads: int, *, key: PRNGKeyArray, initializer: Initializer = lecun):
        self.size, self.heads = positive(size, "size"), positive(heads, "heads")
        if size % heads:
            raise ValueError(f"heads must divide size, and {heads} does not divide {size}")
        self.projections = Dense(size, 3 * size, key=named_key(key, "projections"), initializer=initializer)
        self.output = Dense(size, size, key=named_key(key, "output"), initializer=initializer)

    def __call__(self, x, *, train=False, key=None):
        features_last(x, self.size, "Attention", "size")
        width = self.size // self.heads
        projected, _ = self.projections(x)
        shape = (*x.shape[:2], self.heads, width)
        query, looked_at, value = (part.reshape(shape) for part in jnp.split(projected, 3, axis=-1))
        scores = jnp.einsum("bthd,bshd->bhts", query, looked_at) / math.sqrt(width)
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), value)
        return self.output(mixed.reshape(x.shape))[0], self


class TokenMean(Layer):
    """(batch, tokens, size) to (batch, size), the mean over tokens."""

    def __call__(self, x, *, train=False, key=None):
        return jnp.mean(x, axis=1), self


@dataclass(frozen=True)
class ViT:
    """A maker of vision transformers; made by `vit`, which checks and normalises the arguments."""

    input_shape: tuple[int, int, int]
    out_size: int
    patch: int
    size: int
    hidden: int
    blocks: int
    heads: int
    dropout: float
    activation: ActivationFunction
    initializer: Initializer
    head_initializer: Initializer
    lowering: Lowering

    def __call__(self, key: PRNGKeyArray) -> Network:
        embed = named_key(key, "embed")
        patches = Conv2d(
            self.input_shape[-1],
            self.size,
            self.patch,
            key=named_key(embed, "patches"),
            stride=self.patch,
            padding=Padding.SAME,
            initializer=self.initializer,
            lowering=self.lowering,
        )
        tokens = math.prod(spatial_size(self.input_shape[:2], self.patch, self.patch, Padding.SAME))
        positions = Positions(tokens, self.size, key=named_key(embed, "positions"))
        stages: dict[str, Layer] = {"embed": Chain(patches, positions, Dropout(self.dropout))}
        for number in range(1, self.blocks + 1):
            stages[f"block{number}"] = self._block(named_key(key, f"block{number}"))
        stages["pool"] = Chain(LayerNorm(self.size), TokenMean())
        head = Dense(self.size, self.out_size, key=named_key(key, "head"), initializer=self.head_initializer)
        return Network(**stages, head=head)

    def _block(self, key: PRNGKeyArray) -> Layer:
        """Attention, then a dense network on every token, both on normalised inputs and added to them."""
        inner = output_size(self.activation, self.hidden)
        attention = Attention(self.size, self.heads, key=named_key(key, "attention"), initializer=self.initializer)
        dense = (
            Dense(self.size, self.hidden, key=named_key(key, "dense1"), initializer=self.initializer),
            Activation(self.activation),
            Dropout(self.dropout),
            Dense(inner, self.size, key=named_key(key, "dense2"), initializer=self.initializer),
        )
        return Chain(
            Residual(Chain(LayerNorm(self.size), attention, Dropout(self.dropout)), Chain(), identity),
            Residual(Chain(LayerNorm(self.size), *dense, Dropout(self.dropout)), Chain(), identity),
        )


def vit(
    input_shape: Sequence[int],
    out_size: int,
    *,
    patch: int = 3,
    size: int = 256,
    hidden: int = 1024,
    blocks: int = 1,
    heads: int = 8,
    dropout: float = 0.1,
    activation: ActivationFunction = gelu,
    initializer: Initializer = lecun,
    head_initializer: Initializer = lecun,
    lowering: LoweringLike = Lowering.AUTO,
) -> ViT:
    """A maker of a vision transformer on (batch, height, width, channels) with stages embed, block1, ..., pool, head.

    Patches of patch x patch pixels, zeros beyond the far edges where they do not divide the image, become tokens of
    `size` features; every block is attention with `heads` heads and a dense layer of `hidden` units, each on
    layer-normalised inputs and added to them; `pool` is layer norm and the mean over tokens, and there is no class
    token. The defaults are the network of Lyle et al. 2023, appendix A, where it says what they are: heads, pooling and
    initialisation are choices of this library. Training passes need a key, for dropout. ValueError for sizes that do
    not fit.
    """
    if positive(size, "size") % positive(heads, "heads"):
        raise ValueError(f"heads must divide size, and {heads} does not divide {size}")
    Dropout(dropout)  # so that a rate out of range shows here and not in the traced program
    return ViT(
        image_shape(input_shape),
        positive(out_size, "out_size"),
        positive(patch, "patch"),
        size,
        positive(hidden, "hidden"),
        positive(blocks, "blocks"),
        heads,
        float(dropout),
        check_activation(activation),
        initializer,
        head_initializer,
        as_lowering(lowering),
    )
