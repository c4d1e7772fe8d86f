"""Heads with injected pairs: what plasticity injection makes of the stages of a head (Nikishin et al. 2023).

    Q(x) = h_1(z) + sum_i [ h_{i+1}(z) - n_i(z) ],    z the encoder's output.

Every pair (h_{i+1}, n_i) begins as two copies of one draw, so that its bracket is zero bit for bit; h_1, ..., h_k and
all n_i are frozen, and only the newest head is trained. A head of several stages stays several stages: each maps the
values of all branches, the first one spreads the encoder's output to them, the last one sums.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from neoteny.networks.network import Branches, Frozen, Layer, Statistic


class Injected(Layer):
    """One stage of an injected head.

    heads: h_1, ..., h_{k+1}, the newest last; negatives: n_1, ..., n_k. opens: the first stage of the head; closes: the
    last. active: () int32, how many pairs are in force, in stages whose pairs were allocated beforehand; None: all.
    detach: no gradient goes to the encoder through the negatives (wrong, on purpose: an ablation).
    All branches get the same key, so that dropout cancels too.
    """

    heads: tuple[Layer, ...]
    negatives: tuple[Layer, ...]
    active: Statistic | None
    opens: bool = eqx.field(static=True)
    closes: bool = eqx.field(static=True)
    detach: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Any, *, train=False, key=None):
        layers = (*self.heads, *self.negatives)
        inputs = (x,) * len(layers) if self.opens else x.values
        called = [layer(value, train=train, key=key) for layer, value in zip(layers, inputs, strict=True)]
        outputs, updated = (tuple(part) for part in zip(*called, strict=True))
        count = len(self.heads)
        new = Injected(updated[:count], updated[count:], self.active, self.opens, self.closes, self.detach)
        if not self.closes:
            return Branches(outputs), new
        return self._sum(outputs[:count], outputs[count:]), new

    def _sum(self, heads: tuple[Array, ...], negatives: tuple[Array, ...]) -> Array:
        shapes = {output.shape[1:] for output in (*heads, *negatives)}
        if len(shapes) > 1:
            raise ValueError(f"all heads of an injected network must give one output shape, not {sorted(shapes)}")
        if self.detach:
            negatives = tuple(map(jax.lax.stop_gradient, negatives))
        if self.active is None:
            total = heads[0]
            for head, negative in zip(heads[1:], negatives, strict=True):
                # The bracket first: it is exactly 0 at injection, and the sum then exactly what it was.
                total = total + (head - negative)
            return total
        # A slot not yet in force holds nothing, and the newest head stands in its place.
        active, newest = self.active.value, heads[-1]
        chosen = [jnp.where(i < active, head, newest) for i, head in enumerate(heads[:-1])] + [newest]
        total = chosen[0]
        for i, negative in enumerate(negatives):
            total = jnp.where(i < active, total + (chosen[i + 1] - negative), total)
        return total


class Folded(Layer):
    """A linear head with all frozen heads collapsed into one: fixed(z) + last(z)."""

    fixed: Frozen
    last: Layer

    def __call__(self, x, *, train=False, key=None):
        constant, fixed = self.fixed(x, train=train, key=key)
        trained, last = self.last(x, train=train, key=key)
        return constant + trained, Folded(fixed, last)


def injections(layer: Layer) -> int | Int32[Array, ""]:
    """How many pairs of this stage are in force; 0 for a stage that is not injected."""
    if not isinstance(layer, Injected):
        return 0
    return len(layer.negatives) if layer.active is None else layer.active.value
