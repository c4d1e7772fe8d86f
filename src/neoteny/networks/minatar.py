"""The network of MinAtar's DQN (Young & Tian 2019): a quarter of the Nature network's size."""

from __future__ import annotations

from collections.abc import Sequence

from neoteny.networks.activations import ActivationFunction, relu
from neoteny.networks.cnn import CNN, cnn
from neoteny.networks.convolution import Lowering, LoweringLike, Padding
from neoteny.networks.initializers import Initializer, torch_uniform
from neoteny.networks.normalization import Normalizer


def minatar(
    input_shape: Sequence[int],
    out_size: int,
    *,
    channels: int = 16,
    width: int = 128,
    activation: ActivationFunction = relu,
    norm: Normalizer | None = None,
    initializer: Initializer = torch_uniform,
    lowering: LoweringLike = Lowering.AUTO,
) -> CNN:
    """A maker of conv1 (16 filters 3x3, no padding), dense1 (128), head; ReLU, PyTorch's default initialisation.

    input_shape: (10, 10, channels) of the game. `norm`, such as `Norm.LAYER`, comes before each activation.
    """
    return cnn(
        input_shape,
        out_size,
        channels=(channels,),
        dense=(width,),
        kernels=3,
        pools=1,
        padding=Padding.VALID,
        activation=activation,
        norm=norm,
        initializer=initializer,
        head_initializer=initializer,
        lowering=lowering,
    )
