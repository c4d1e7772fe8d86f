"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PRNGKeyArray

from neoteny.networks._checks import positive, positives
from neoteny.networks.activations import Activation, ActivationFunction, check_activation, output_size, relu
from neoteny.networks.dense import Dense, Flatten
from neoteny.networks.dropout import Dropout
from neoteny.networks.initializers import Initializer, he, lecun, named_key
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import Normalizer, check_norm, norm_layers


@dataclass(frozen=True)
class MLP:
    """A maker of multilayer perceptrons; made by `mlp`, which checks and normalises the arguments."""

    in_size: int
    hidden: tuple[int, ...]
    out_size: int
    activation: ActivationFunction
    norm: Normalizer
    initializer: Initializer
    head_initializer: Initializer
    dropout: float = 0.0

    def __call__(self, key: PRNGKeyArray) -> Network:
        stages, size = dense_stages(
            "hidden", self.in_size, self.hidden, self.activation, self.norm, self.initializer, key, dropout=self.dropout
        )
        head = Dense(size, self.out_size, key=named_key(key, "head"), initializer=self.head_initializer)
        return Network(**stages, head=head if stages else Chain(Flatten(), head))


def mlp(
    in_size: int | Sequence[int],
    hidden: Sequence[int],
    out_size: int,
    *,
    activation: ActivationFunction = relu,
    norm: Normalizer | None = None,
    initializer: Initializer = he,
    head_initializer: Initializer = lecun,
    dropout: float = 0.0,
) -> MLP:
    """A maker of an MLP with stages hidden1, ..., hiddenN, head.

    A hidden stage is dense, norm (if any), activation, dropout (if any, at this rate); its output is taken after them.
    Inputs
    (batch, ...) are flattened; `in_size` is their number of features or their shape. `hidden` are the widths
    before the activation (CReLU doubles what the next layer sees). The head is linear, hence its initialiser
    of gain 1. Equal arguments give equal makers, and a layer's draws depend on its stage's name alone: not on
    norm, nor on other stages.
    """
    return MLP(
        positive(in_size, "in_size")
        if isinstance(in_size, int | np.integer)
        else math.prod(positives(in_size, "in_size")),
        positives(hidden, "hidden"),
        positive(out_size, "out_size"),
        check_activation(activation),
        check_norm(norm),
        initializer,
        head_initializer,
        Dropout(dropout).rate,
    )


def dense_stages(
    name: str,
    in_size: int,
    hidden: tuple[int, ...],
    activation: ActivationFunction,
    norm: Normalizer,
    initializer: Initializer,
    key: PRNGKeyArray,
    *,
    before: tuple[Layer, ...] = (),
    dropout: float = 0.0,
) -> tuple[dict[str, Layer], int]:
    """Stages name1, name2, ... of dense, norm, activation; and the last one's size.

    The first stage begins with the layers `before`, then flattens.
    """
    stages: dict[str, Layer] = {}
    for index, width in enumerate(hidden, 1):
        stage = f"{name}{index}"
        flatten = (*before, Flatten()) if index == 1 else ()
        dense = Dense(in_size, width, key=named_key(key, stage), initializer=initializer)
        dropped = (Dropout(dropout),) if dropout else ()
        stages[stage] = Chain(*flatten, dense, *norm_layers(norm, width), Activation(activation), *dropped)
        in_size = output_size(activation, width)
    return stages, in_size
