"""Do examples pull in the same direction?  Cosines of single examples' gradients (Lyle et al. 2023, section 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import split_trainable

CLUSTERS = 10
"""Of the rows of a matrix of cosines, for display (Lyle et al. 2023, figure 2)."""

ROUNDS = 50
"""Of k-means; it settles long before."""


def gradient_covariance(
    example_loss: Callable[[PyTree, PyTree], Array], params: PyTree, examples: PyTree
) -> Float[Array, "n n"]:
    """Cosines of the gradients of single examples: C_ij = <g_i, g_j> / (|g_i| |g_j|).

    example_loss(params, example) -> scalar; examples: a tree of arrays (n, ...), whose leading axis is taken away.
    Called a covariance in the paper, but nothing is centred and norms are divided out. Symmetric, 1 on the diagonal; a
    gradient that is 0 or not finite has NaN in its row and column. Holds n gradients at once. ValueError where the
    leading axes differ.
    """
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(examples)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"examples must be arrays with one leading axis of examples; theirs are {sizes}")
    gradients = jax.vmap(jax.grad(example_loss), in_axes=(None, 0))(params, examples)
    count = sizes.pop()
    rows = [leaf.reshape(count, -1) for leaf in jax.tree.leaves(gradients)]
    rows = [row.astype(jnp.promote_types(row.dtype, jnp.float32)) for row in rows]
    # Scaled by the largest entry first: squares of tiny gradients would vanish.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(row), axis=1) for row in rows]), axis=0)
    rows = [row / largest[:, None] for row in rows]
    norms = jnp.sqrt(sum(jnp.sum(jnp.square(row), axis=1) for row in rows))
    products = jnp.asarray(sum((row / norms[:, None]) @ (row / norms[:, None]).T for row in rows))
    cosines = jnp.clip((products + products.T) / 2, -1, 1)
    kept = jnp.isfinite(jnp.diagonal(cosines))
    exact = jnp.where(jnp.eye(count, dtype=bool), 1, cosines)
    return jnp.where(kept[:, None] & kept[None, :], exact, jnp.nan)


class Interference(NamedTuple):
    """A matrix of cosines in four numbers.

    negative: share of pairs of different examples whose gradients point away from each other. mean: of the cosines of
    all such pairs. rank: exp of the entropy of the matrix's normalised eigenvalues, 1 where all gradients are one and n
    where they are orthogonal. left_out: examples without a gradient, which count in none of these. NaN without pairs.
    """

    negative: Float[Array, ""]
    mean: Float[Array, ""]
    rank: Float[Array, ""]
    left_out: Float[Array, ""]


def interference(cosines: Float[Array, "n n"]) -> Interference:
    """What the cosines of `gradient_covariance` say; the summaries are a choice of this library."""
    cosines = jnp.asarray(cosines)
    kept = jnp.isfinite(jnp.diagonal(cosines))
    both = kept[:, None] & kept[None, :]
    pairs = both & ~jnp.eye(len(cosines), dtype=bool)
    count = jnp.sum(pairs)
    held = jnp.where(both, cosines, 0)
    eigenvalues = jnp.clip(jnp.linalg.eigvalsh(held), 0)
    share = eigenvalues / jnp.sum(eigenvalues)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
    return Interference(
        jnp.sum(pairs & (held < 0)) / count,
        jnp.sum(jnp.where(pairs, held, 0)) / count,
        jnp.where(kept.any(), jnp.exp(entropy), jnp.nan),
        jnp.sum(~kept).astype(cosines.dtype),
    )


def example_losses(view: View, key: PRNGKeyArray) -> tuple[Callable[[PyTree, Batch], Array], PyTree]:
    """(example_loss, params) of a learner's training loss, for `gradient_covariance` on a batch of its own.

    An example keeps a batch axis of 1. Random numbers (dropout) are the same for every example.
    """
    parameters, rest = split_trainable(view.network)

    def example_loss(parameters: PyTree, example: Batch) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return view.loss(eqx.combine(parameters, rest), alone, key)

    return example_loss, parameters


def view_cosines(view: View, batch: Batch, key: PRNGKeyArray) -> Float[Array, "n n"]:
    """`gradient_covariance` of a learner's training loss on `batch`."""
    count = batch.inputs.shape[0]
    # What a batch says of itself as a whole (episodes that ended) is the same for every example.
    examples = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else jnp.broadcast_to(leaf, (count,)), batch)
    loss, parameters = example_losses(view, key)
    return gradient_covariance(loss, parameters, examples)


def view_interference(view: View, batch: Batch, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """`interference` of the training loss on `batch`, at places negative, mean, rank and left_out."""
    return interference(view_cosines(view, batch, key))._asdict()


def cluster_order(cosines: ArrayLike, *, clusters: int = CLUSTERS, rng: np.random.Generator) -> np.ndarray:
    """An order of the rows (n,) in which those of one k-means cluster are together, for display.

    cosines: (n, n), every row a point of n numbers; rows that are not finite come last. k-means++ seeding by `rng`;
    larger clusters first, and within one the rows nearest to its centre. ValueError for other shapes or no clusters.
    """
    from scipy.cluster.vq import kmeans2

    matrix = np.asarray(cosines, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or clusters < 1:
        raise ValueError(f"cluster_order takes (n, n) and clusters >= 1, not {matrix.shape} and {clusters}")
    finite = np.isfinite(np.diagonal(matrix))
    rows = np.flatnonzero(finite)
    if not len(rows):
        return np.arange(len(matrix))
    points = matrix[np.ix_(rows, rows)]
    distinct = len(np.unique(points, axis=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a cluster that is left empty keeps its centre, and has no rows
        centres, member = kmeans2(points, min(clusters, distinct), iter=ROUNDS, minit="++", rng=rng)
    distances = np.linalg.norm(points - centres[member], axis=1)
    sizes = np.bincount(member, minlength=len(centres))
    place = np.lexsort((distances, member, -sizes[member]))
    return np.concatenate([rows[place], np.flatnonzero(~finite)])
