"""The network of Atari's DQN (Mnih et al. 2015), as in DQN Zoo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Array, Float, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.activations import ActivationFunction, relu
from neoteny.networks.cnn import CNN, cnn
from neoteny.networks.convolution import Lowering, LoweringLike, Padding
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import Initializer, named_key, torch_uniform
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.normalization import Normalizer


class SharedBias(Layer):
    """x + b with one trained number b for all outputs."""

    bias: Float[Array, " 1"]

    def __init__(self, in_size: int, *, key: PRNGKeyArray, initializer: Initializer):
        self.bias = initializer.bias(named_key(key, "bias"), (1,), in_size)

    def __call__(self, x, *, train=False, key=None):
        return x + self.bias, self


@dataclass(frozen=True)
class Nature:
    """A maker of Nature networks; made by `nature`."""

    body: CNN
    shared_bias: bool

    def __call__(self, key: PRNGKeyArray) -> Network:
        network = self.body(key)
        if not self.shared_bias:
            return network
        size, initializer, head_key = self.body.dense[-1], self.body.head_initializer, named_key(key, "head")
        weights = Dense(size, self.body.out_size, key=head_key, initializer=initializer, use_bias=False)
        return network.replace(head=Chain(weights, SharedBias(size, key=head_key, initializer=initializer)))


def nature(
    out_size: int,
    *,
    input_shape: Sequence[int] = (84, 84, 4),
    width: int = 512,
    shared_bias: bool = True,
    activation: ActivationFunction = relu,
    norm: Normalizer | None = None,
    initializer: Initializer = torch_uniform,
    lowering: LoweringLike = Lowering.AUTO,
) -> Nature:
    """A maker of conv1 (32 filters 8x8, stride 4), conv2 (64 4x4, stride 2), conv3 (64 3x3), dense1 (512), head.

    Weights and biases are uniform in +-1/sqrt(fan_in). `shared_bias`: the head has one bias for all outputs, as the
    Double DQN of DQN Zoo has. The convolutions are the encoder, dense1 and head the head of Nikishin et al. 2023.
    """
    body = cnn(
        input_shape,
        positive(out_size, "out_size"),
        channels=(32, 64, 64),
        dense=(positive(width, "width"),),
        kernels=(8, 4, 3),
        strides=(4, 2, 1),
        pools=1,
        padding=Padding.VALID,
        activation=activation,
        norm=norm,
        initializer=initializer,
        head_initializer=initializer,
        lowering=lowering,
    )
    return Nature(body, shared_bias)
