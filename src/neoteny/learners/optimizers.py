"""Optimisers whose settings differ between the parameters of one stage, and the schedule of the sequence papers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

Rate = float | Array | Callable[[Array], Array]
"""A learning rate, a traced number, or a schedule count -> rate."""


def in_fields(tree: PyTree, names: Collection[str]) -> PyTree:
    """True at every leaf of `tree` that lies in a field (or under a key) called one of `names`, at any depth."""

    def inside(path: tuple, _: object) -> bool:
        entries = (getattr(entry, "name", getattr(entry, "key", None)) for entry in path)
        return any(entry in names for entry in entries)

    return jax.tree_util.tree_map_with_path(inside, tree)


def scale_fields(factor: float | Array, names: Collection[str]) -> optax.GradientTransformation:
    """Updates of the fields called one of `names` times `factor`, the others as they are."""

    def scaled(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, slow: u * factor if slow else u, updates, in_fields(updates, names))

    return optax.stateless(scaled)


def adamw_groups(
    rate: Rate,
    *,
    weight_decay: float | Array,
    slow: Collection[str] = (),
    factor: float | Array = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) in two groups, by the names of the fields the parameters live in.

    Fields called one of `slow` (eigenvalues, input matrix and normalisation of a recurrence: arXiv:2303.06349, section
    4 and table 10) learn at `factor` times the rate and are not decayed: decay would pull |lambda| towards exp(-1). All
    others learn at the rate and are decayed by rate * weight_decay. Names that no parameter has are ignored, so that
    one optimiser serves every stage.
    """
    names = frozenset(slow)

    def decayed(params: PyTree) -> PyTree:
        return jax.tree.map(lambda inside: not inside, in_fields(params, names))

    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        scale_fields(factor, names),
        optax.scale_by_learning_rate(cast(optax.ScalarOrSchedule, rate)),
    )


def warmup_cosine(
    peak: float | Array, steps: int, *, warmup: float = 0.1, floor: float = 1e-7
) -> Callable[[Array], Array]:
    """Linear from `floor` to `peak` over the first `warmup` share of the steps, then a cosine down to `floor`.

    The schedule of arXiv:2303.06349, table 10; `peak` may be a traced number. After `steps` it stays at `floor`.
    ValueError unless steps >= 1 and 0 <= warmup < 1.
    """
    if steps < 1 or not 0 <= warmup < 1:
        raise ValueError(f"warmup_cosine needs steps >= 1 and 0 <= warmup < 1, not {steps} and {warmup}")
    rising = warmup * steps

    def schedule(count: Array) -> Array:
        step = jnp.asarray(count, jnp.float32)
        rise = step / rising if rising else jnp.ones_like(step)
        fall = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((step - rising) / (steps - rising), 0, 1)))
        return floor + (peak - floor) * jnp.where(step < rising, rise, fall)

    return schedule
