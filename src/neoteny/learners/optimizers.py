"""Optimisers whose settings differ between the parameters of one stage, and the schedule of the sequence papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

Rate = float | Array | Callable[[Array], Array]
"""A learning rate, a traced number, or a schedule count -> rate."""


Marks = Callable[[PyTree], PyTree]
"""tree -> the same tree with True at the leaves that are meant and False at the others, such as `slow_parameters`."""


def nothing(tree: PyTree) -> PyTree:
    """False at every leaf."""
    return jax.tree.map(lambda _: False, tree)


def scale_marked(factor: float | Array, marks: Marks) -> optax.GradientTransformation:
    """Updates of the parameters that are marked times `factor`, the others as they are."""

    def scaled(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, slow: u * factor if slow else u, updates, marks(updates))

    return optax.stateless(scaled)


def adamw_groups(
    rate: Rate,
    *,
    weight_decay: float | Array,
    slow: Marks = nothing,
    factor: float | Array = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) in two groups.

    Parameters that `slow` marks (`slow_parameters`: eigenvalues, input matrix and normalisation of a recurrence;
    arXiv:2303.06349, section 4 and table 10) learn at `factor` times the rate and are not decayed: decay would pull
    |lambda| towards exp(-1). All others learn at the rate and are decayed by rate * weight_decay. A stage without any
    that is marked is all of the second group, so one optimiser serves every stage.
    """

    def decayed(params: PyTree) -> PyTree:
        return jax.tree.map(lambda inside: not inside, slow(params))

    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        scale_marked(factor, slow),
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
