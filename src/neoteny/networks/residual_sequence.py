"""Deep sequence networks: residual blocks around a recurrent layer, an encoder before them and a readout after.

x + Drop(GLU(Drop(GELU(mixer(norm(x))))))        (Orvieto et al. 2023, appendix A; Gu et al. 2022; Smith et al. 2023)
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from neoteny.networks._checks import positive
from neoteny.networks.activations import gelu
from neoteny.networks.dense import Dense
from neoteny.networks.initializers import lecun, named_key
from neoteny.networks.network import Chain, Layer, Network
from neoteny.networks.recurrent import Carried, Mixer, RecurrentLayer
from neoteny.networks.sequence import MaskedBatchNorm, MeanPool, Positionwise, join, split


class Gate(enum.Enum):
    """The gated linear unit of a block: FULL is (W1 z) sigmoid(W2 z), HALF is z sigmoid(W2 z), as for PathX."""

    FULL = "full"
    HALF = "half"


class GLU(Layer):
    """A gated linear unit on the last axis, which keeps its size (Dauphin et al. 2017).

    FULL computes both products as one, with a kernel (2 width, width).
    """

    dense: Dense
    gate: Gate = eqx.field(static=True)

    def __init__(self, width: int, gate: Gate = Gate.FULL, *, key: PRNGKeyArray):
        self.gate = Gate(gate)
        outputs = 2 * width if self.gate is Gate.FULL else width
        self.dense = Dense(width, outputs, key=named_key(key, "dense"), initializer=lecun)

    def __call__(self, x, *, train=False, key=None):
        y, _ = self.dense(x)
        if self.gate is Gate.HALF:
            return x * jax.nn.sigmoid(y), self
        value, gate = jnp.split(y, 2, axis=-1)
        return value * jax.nn.sigmoid(gate), self


class SequenceDropout(Layer):
    """Dropout of whole features of a sequence: with `train`, (batch, length, width) loses the same at every step.

    This is the dropout of the public code of S4, S5 and the LRU; it also draws `length` times fewer numbers than
    dropping entry by entry. ValueError when training without a key.
    """

    rate: float = eqx.field(static=True)

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise ValueError(f"rate, the probability of dropping a feature, must be in [0, 1), got {rate}")
        self.rate = float(rate)

    def __call__(self, x, *, train=False, key=None):
        if not train or self.rate == 0:
            return x, self
        if key is None:
            raise ValueError("SequenceDropout needs a key to train: network(x, train=True, key=key)")
        kept = jax.random.bernoulli(key, 1 - self.rate, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]))
        return x * jnp.where(kept, 1 / (1 - self.rate), 0).astype(x.dtype), self


class ResidualBlock(RecurrentLayer):
    """x + Drop(GLU(Drop(GELU(mixer(norm(x)))))): pre-norm, both dropouts with the same rate.

    `norm` and `mixer` take sequences (batch, length, width), `Padded` ones included. The block is a recurrent layer if
    its mixer is one: `unroll` and `step` normalise by the running statistics and drop nothing, as in evaluation.
    """

    norm: Layer
    mixer: Layer
    dropout: SequenceDropout
    glu: GLU

    def __init__(
        self,
        width: int,
        mixer: Mixer,
        *,
        key: PRNGKeyArray,
        dropout: float = 0.0,
        gate: Gate = Gate.FULL,
        norm: Callable[[int], Layer] = MaskedBatchNorm,
    ):
        positive(width, "width")
        self.norm = norm(width)
        self.mixer = mixer(width, named_key(key, "mixer"))
        self.dropout = SequenceDropout(dropout)
        self.glu = GLU(width, gate, key=named_key(key, "glu"))

    def __call__(self, x, *, train=False, key=None):
        values, mask = split(x)
        normalised, norm = self.norm(x, train=train)
        mixed, mixer = self.mixer(normalised, train=train, key=None if key is None else named_key(key, "mixer"))
        z = self._position(split(mixed)[0], train, key)
        updated = eqx.tree_at(lambda block: (block.norm, block.mixer), self, (norm, mixer))
        return join(values + z, mask), updated

    def _position(self, z: Array, train: bool, key: PRNGKeyArray | None) -> Array:
        """What follows the mixer, step by step."""
        inner, outer = (None, None) if key is None else (named_key(key, "inner"), named_key(key, "outer"))
        z, _ = self.dropout(gelu(z), train=train, key=inner)
        z, _ = self.glu(z)
        return self.dropout(z, train=train, key=outer)[0]

    def initial_state(self, batch: int) -> Carried:
        return self._recurrent().initial_state(batch)

    def unroll(self, x, state, *, reset=None):
        mixed, state = self._recurrent().unroll(self.norm(x)[0], state, reset=reset)
        return x + self._position(mixed, False, None), state

    def step(self, x, state, *, reset=None):
        mixed, state = self._recurrent().step(self.norm(x[:, None])[0][:, 0], state, reset=reset)
        return x + self._position(mixed[:, None], False, None)[:, 0], state

    def _recurrent(self) -> RecurrentLayer:
        if not isinstance(self.mixer, RecurrentLayer):
            raise TypeError(f"{type(self.mixer).__name__} carries no state from step to step")
        return self.mixer


class RecurrentStack(RecurrentLayer):
    """Recurrent layers one after another as one, for instance the blocks of a policy; its state is theirs."""

    layers: tuple[RecurrentLayer, ...]

    def __init__(self, *layers: RecurrentLayer):
        self.layers = layers

    def __call__(self, x, *, train=False, key=None):
        x, updated = Chain(*self.layers)(x, train=train, key=key)
        return x, RecurrentStack(*updated.layers)  # type: ignore[arg-type]

    def initial_state(self, batch: int) -> Carried:
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def unroll(self, x, state, *, reset=None):
        states = []
        for layer, carried in zip(self.layers, state, strict=True):
            x, carried = layer.unroll(x, carried, reset=reset)
            states.append(carried)
        return x, tuple(states)

    def step(self, x, state, *, reset=None):
        states = []
        for layer, carried in zip(self.layers, state, strict=True):
            x, carried = layer.step(x, carried, reset=reset)
            states.append(carried)
        return x, tuple(states)


Stage = Callable[[PRNGKeyArray], Layer]
"""`stage(key) -> Layer`: a maker of what comes before or after the blocks."""


@dataclass(frozen=True)
class SequenceNetwork:
    """A maker of deep sequence networks; made by `sequence_network`, which checks the arguments."""

    mixer: Mixer | None
    encoder: Stage | int
    width: int
    depth: int
    head: Stage | int
    dropout: float
    gate: Gate
    norm: Callable[[int], Layer]

    def __call__(self, key: PRNGKeyArray) -> Network:
        encoder_key, head_key = named_key(key, "encoder"), named_key(key, "head")
        if isinstance(self.encoder, int):
            encoder = Positionwise(Dense(self.encoder, self.width, key=encoder_key, initializer=lecun))
        else:
            encoder = self.encoder(encoder_key)
        if isinstance(self.head, int):
            head = Chain(MeanPool(), Dense(self.width, self.head, key=head_key, initializer=lecun))
        else:
            head = self.head(head_key)
        blocks: dict[str, Layer] = {
            f"block{index}": ResidualBlock(
                self.width,
                self.mixer,
                key=named_key(key, f"block{index}"),
                dropout=self.dropout,
                gate=self.gate,
                norm=self.norm,
            )
            for index in range(1, self.depth + 1)
            if self.mixer is not None
        }
        return Network(encoder=encoder, **blocks, head=head)


def sequence_network(
    mixer: Mixer | None,
    *,
    encoder: Stage | int,
    width: int,
    depth: int,
    head: Stage | int,
    dropout: float = 0.0,
    gate: Gate | str = Gate.FULL,
    norm: Callable[[int], Layer] = MaskedBatchNorm,
) -> SequenceNetwork:
    """A maker of a sequence network with stages encoder, block1, ..., blockN, head.

    `mixer(width, key)` makes the recurrent layer of each block, for instance `LadderMixer(Rung.LRU, state)`; None goes
    with depth 0, a baseline without blocks. `encoder` is the number of input channels for a linear encoder, or a maker
    of a layer that gives (batch, length, width), such as an `Embedding` of tokens. `head` is the number of outputs of a
    linear readout of the mean over time, (batch, outputs), or a maker of another layer that reads (batch, length,
    width), such as a `Chain` of `LastSteps` and `Dense`. A stage's draws depend on its name alone. TypeError or
    ValueError names an argument that does not fit.
    """
    if mixer is None:
        if depth != 0:
            raise ValueError(f"a network without a mixer has no blocks: depth must be 0, not {depth}")
    else:
        if not callable(mixer) or isinstance(mixer, Layer):
            raise TypeError(f"mixer must make a layer of a width and a key, such as LadderMixer(...); got {mixer!r}")
        positive(depth, "depth")
    SequenceDropout(dropout)
    return SequenceNetwork(
        mixer,
        encoder if callable(encoder) else positive(encoder, "encoder"),
        positive(width, "width"),
        depth,
        head if callable(head) else positive(head, "head"),
        float(dropout),
        Gate(gate),
        norm,
    )
