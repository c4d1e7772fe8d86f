"""The Hessian of a loss, by Lanczos on Hessian-vector products (Ghorbani et al. 2019, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import Network, split_trainable
from neoteny.probes.weights import ALL

BREAKDOWN = 1e-10
"""Lanczos ends when beta falls below this share of the matrix's size as seen so far: the space is exhausted.

In float32 ten roundings (1.2e-6) take its place, since the products are no more exact than that.
"""

SHARPNESS_ITERATIONS = 20
"""Hessian-vector products `sharpness` takes."""


class Spectrum(NamedTuple):
    """Eigenvalues of a Hessian with their share of the spectral density.

    eigenvalues and weights are (draws, min(iterations, parameters)): the nodes of one Lanczos run a row,
    ascending; all weights sum to 1, and sum(weights * eigenvalues) estimates trace / parameters. largest
    and smallest are over all draws. If the Krylov space is exhausted early, the remaining nodes have weight
    0 and lie within the spectrum.
    """

    eigenvalues: Float[Array, "draws iterations"]
    weights: Float[Array, "draws iterations"]
    largest: Float[Array, ""]
    smallest: Float[Array, ""]


def hessian_spectrum(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    *,
    key: PRNGKeyArray,
    iterations: int = 80,
    draws: int = 1,
) -> Spectrum:
    """Spectrum of the Hessian of `loss(params) -> scalar`, by stochastic Lanczos quadrature.

    params: any tree of floating-point arrays (None where there is nothing), n numbers in all. `draws`
    random starting vectors, one after another, with full re-orthogonalisation; memory is min(iterations, n)
    x n numbers, and `hessian_vector_products` says how many products are taken. Computed in the parameters'
    own precision (float32 at least); the starting vectors do not depend on it. A zero Hessian gives zeros,
    a non-finite one NaN. ValueError for no parameters, iterations or draws.
    """
    flat, unravel = ravel_pytree(params)
    count = hessian_vector_products(params, iterations=iterations, draws=draws) // draws
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    gradient = jax.grad(loss)

    def product(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        _, tangent = jax.jvp(gradient, (params,), (unravel(vector.astype(flat.dtype)),))
        return ravel_pytree(tangent)[0].astype(dtype)

    def draw(index: Array) -> tuple[Array, Array]:
        # Drawn in float32 whatever the mode: a key would give other numbers in float64.
        start = jax.random.normal(jax.random.fold_in(key, index), flat.shape, jnp.float32).astype(dtype)
        return _quadrature(_tridiagonal(product, start, count))

    eigenvalues, weights = jax.lax.map(draw, jnp.arange(draws))
    return Spectrum(eigenvalues, weights / draws, jnp.max(eigenvalues), jnp.min(eigenvalues))


def hessian_vector_products(params: PyTree, *, iterations: int = 80, draws: int = 1) -> int:
    """Hessian-vector products `hessian_spectrum` takes with these arguments: draws * min(iterations, n)."""
    size = sum(math.prod(array.shape) for array in jax.tree.leaves(params))
    if size == 0:
        raise ValueError("there are no parameters to take a Hessian by")
    if iterations < 1 or draws < 1:
        raise ValueError(f"iterations and draws must be at least 1, not {iterations} and {draws}")
    return draws * min(iterations, size)


def _tridiagonal(product: Callable[[Array], Array], start: Float[Array, " n"], count: int) -> Float[Array, "m m"]:
    """The tridiagonal matrix of `count` Lanczos steps from `start`."""
    tolerance = max(BREAKDOWN, 10 * float(jnp.finfo(start.dtype).eps))
    basis = jnp.zeros((count, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))

    def step(carry, index):
        basis, before, size, active = carry
        vector = product(basis[index])
        alpha = basis[index] @ vector
        # Full re-orthogonalisation, twice: once leaves a residue of its own rounding. Rows not yet filled
        # are zero and take nothing away.
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
        beta = jnp.linalg.norm(vector)
        size = jnp.maximum(size, jnp.abs(alpha) + before + beta)
        more = active & (beta > tolerance * size)
        following = jnp.where(more, vector / jnp.where(more, beta, 1), 0)
        basis = basis.at[index + 1].set(following, mode="drop")
        kept = jnp.where(more, beta, 0)
        return (basis, kept, size, more), (jnp.where(active, alpha, 0), kept, active)

    nothing = jnp.zeros((), start.dtype)
    _, (alpha, beta, active) = jax.lax.scan(step, (basis, nothing, nothing, jnp.asarray(True)), jnp.arange(count))
    # A step past the end becomes a node of its own, with no weight. At the first Rayleigh quotient it is
    # within the spectrum, so neither the largest nor the smallest eigenvalue needs a mask.
    alpha = jnp.where(active, alpha, alpha[0])
    return jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)


def _quadrature(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Nodes, and as weights the eigenvectors' squared first entries; NaN if the matrix is not finite."""
    finite = jnp.isfinite(matrix).all()
    eigenvalues, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, 0))
    return jnp.where(finite, eigenvalues, jnp.nan), jnp.where(finite, jnp.square(vectors[0]), jnp.nan)


def spectral_density(spectrum: Spectrum, grid: Float[Array, " g"], *, width: float) -> Float[Array, " g"]:
    """The spectral density at `grid`, each node a Gaussian of standard deviation `width`; its integral is 1.

    Ghorbani et al. 2019, equation 6. Grid and width are in units of the eigenvalues.
    """
    if not width > 0:
        raise ValueError(f"width must be positive, not {width}")
    distance = (jnp.asarray(grid)[:, None] - spectrum.eigenvalues.reshape(-1)) / width
    heights = jnp.exp(-0.5 * jnp.square(distance)) / (width * math.sqrt(2 * math.pi))
    return heights @ spectrum.weights.reshape(-1)


def sharpness(
    view: View, batch: Batch, key: PRNGKeyArray, *, iterations: int = SHARPNESS_ITERATIONS
) -> dict[str, Float[Array, ""]]:
    """Largest eigenvalue of the training loss's Hessian on `batch`, at place `all`.

    A lower bound, up to rounding. On MLPs 64-64x2-10, at initialisation and after 500 and 1000 Adam steps on
    true and on random labels, 20 products came within a relative 1e-5 of 120 (float32's own accuracy), 12
    within 2e-4 and 8 within 10 %. All products share one key: dropout masks are fixed.
    """
    loss_key, start_key = jax.random.split(key)
    parameters, rest = split_trainable(view.network)

    def loss(parameters: PyTree) -> Array:
        return view.loss(eqx.combine(parameters, rest), batch, loss_key)

    return {ALL: hessian_spectrum(loss, parameters, key=start_key, iterations=iterations).largest}


def output_noise_loss(
    network: Network, inputs: Array, *, key: PRNGKeyArray, scale: float = 1.0
) -> tuple[Callable[[PyTree], Array], PyTree]:
    """(loss, params) of mean (f(X) - sg f(X) + e)^2, whose Hessian is a curvature without targets.

    Lyle et al. 2023, appendix A: e ~ N(0, scale^2), one number an example and output, drawn once, so that
    all Hessian-vector products share it. Mean over examples and outputs. With scale 0 the Hessian at
    `params` is the Gauss-Newton part alone. Pass both results to `hessian_spectrum`.
    """
    parameters, rest = split_trainable(network)
    outputs = network(inputs).output
    noise = scale * jax.random.normal(key, outputs.shape, jnp.float32).astype(outputs.dtype)
    fixed = jax.lax.stop_gradient(outputs)

    def loss(parameters: PyTree) -> Array:
        return jnp.mean(jnp.square(eqx.combine(parameters, rest)(inputs).output - fixed + noise))

    return loss, parameters


def output_sharpness(
    view: View, batch: Batch, key: PRNGKeyArray, *, iterations: int = SHARPNESS_ITERATIONS
) -> dict[str, Float[Array, ""]]:
    """Largest eigenvalue of the Hessian of `output_noise_loss` on the batch's inputs, at place `all`."""
    noise_key, start_key = jax.random.split(key)
    loss, parameters = output_noise_loss(view.network, batch.inputs, key=noise_key)
    return {ALL: hessian_spectrum(loss, parameters, key=start_key, iterations=iterations).largest}
