"""The Hessian of a loss, by Lanczos on Hessian-vector products (Ghorbani et al. 2019, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import Network, split_trainable
from neoteny.probes.weights import ALL

BREAKDOWN = 1e-10
"""Lanczos ends when beta falls below this share of the matrix's size as seen so far: the space is exhausted.

In float32 ten roundings (1.2e-6) take its place, since the products are no more exact than that.
"""

CHECK_EVERY = 10
"""Products between two looks at whether the largest eigenvalues have settled."""

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
    double: bool = False,
) -> Spectrum:
    """Spectrum of the Hessian of `loss(params) -> scalar`, by stochastic Lanczos quadrature.

    params: any tree of floating-point arrays (None where there is nothing), n numbers in all. `draws`
    random starting vectors, one after another, with full re-orthogonalisation; memory is min(iterations, n)
    x n numbers, and `hessian_vector_products` says how many products are taken. Computed in the parameters'
    own precision (float32 at least); the starting vectors do not depend on it. double: in float64, whatever
    the parameters are; the loss must follow the precision of its argument. A zero Hessian gives zeros, a
    non-finite one NaN. ValueError for no parameters, iterations or draws, and for `double` inside a compiled
    function, whose precision was chosen when it was traced.
    """
    if double:
        with jax.enable_x64(True):
            return hessian_spectrum(loss, in_double_precision(params), key=key, iterations=iterations, draws=draws)
    count = hessian_vector_products(params, iterations=iterations, draws=draws) // draws
    product, size, dtype = _products(loss, params)

    def draw(index: Array) -> tuple[Array, Array]:
        start = _starting_vector(jax.random.fold_in(key, index), size, dtype)
        return _quadrature(_tridiagonal(product, start, count))

    eigenvalues, weights = jax.lax.map(draw, jnp.arange(draws))
    return Spectrum(eigenvalues, weights / draws, jnp.max(eigenvalues), jnp.min(eigenvalues))


class Eigenvalues(NamedTuple):
    """The largest eigenvalues of a Hessian, descending, and for each how far the nearest true one may be.

    values, errors: (count,), NaN where the matrix has fewer that differ. products: Hessian-vector products taken.
    """

    values: Float[Array, " count"]
    errors: Float[Array, " count"]
    products: Int[Array, ""]


def largest_eigenvalues(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    *,
    key: PRNGKeyArray,
    count: int = 10,
    iterations: int = 80,
    tolerance: float = 1e-3,
    double: bool = False,
) -> Eigenvalues:
    """The `count` largest eigenvalues of the Hessian of `loss(params) -> scalar`, by Lanczos from one vector.

    It ends once every one of them is within `tolerance` of its own size of a true eigenvalue (the residual of
    its Ritz vector; Parlett 1998, section 13.2), and after `iterations` products at the latest; every
    `CHECK_EVERY` products that is looked at. A repeated eigenvalue is found once. Largest, not largest in
    size: a negative one is no outlier here. Memory, precision and `double` as in `hessian_spectrum`.
    ValueError for no parameters, iterations or eigenvalues, and for a tolerance that is not positive.
    """
    if count < 1 or not tolerance > 0:
        raise ValueError(f"count must be at least 1 and tolerance positive, not {count} and {tolerance}")
    if double:
        with jax.enable_x64(True):
            wide = in_double_precision(params)
            return largest_eigenvalues(loss, wide, key=key, count=count, iterations=iterations, tolerance=tolerance)
    steps = hessian_vector_products(params, iterations=iterations)
    product, size, dtype = _products(loss, params)
    found = min(count, steps)

    def ritz(state: _Lanczos) -> tuple[Array, Array]:
        """Values and errors (found,), descending; -inf where there is none."""
        matrix, taken = _matrix(state), jnp.arange(steps) < state.index
        matrix = jnp.where(jnp.isfinite(matrix).all(), matrix, 0)
        values, vectors = jnp.linalg.eigh(matrix)
        # Steps not taken are rows apart from the others, and nodes of their own.
        real = jnp.sum(jnp.square(vectors) * (taken & state.active)[:, None], axis=0) > 0.5
        last = jnp.clip(state.index - 1, 0)
        errors = jnp.abs(state.beta[last] * vectors[last])
        order = jnp.argsort(jnp.where(real, -values, jnp.inf))[:found]
        return jnp.where(real, values, -jnp.inf)[order], errors[order]

    def settled(state: _Lanczos) -> Array:
        values, errors = ritz(state)
        return ~state.more | jnp.all((errors <= tolerance * jnp.abs(values)) & jnp.isfinite(values))

    def advance(carry: tuple[_Lanczos, Array]) -> tuple[_Lanczos, Array]:
        state = jax.lax.fori_loop(
            0, jnp.minimum(CHECK_EVERY, steps - carry[0].index), lambda _, s: _advanced(product, s), carry[0]
        )
        return state, settled(state)

    state = _begun(_starting_vector(jax.random.fold_in(key, 0), size, dtype), steps)
    state, _ = jax.lax.while_loop(lambda c: (c[0].index < steps) & ~c[1], advance, (state, jnp.asarray(False)))
    values, errors = ritz(state)
    missing = ~jnp.isfinite(values) | ~jnp.isfinite(_matrix(state)).all()
    values, errors = jnp.where(missing, jnp.nan, values), jnp.where(missing, jnp.nan, errors)
    nothing = jnp.full(count - found, jnp.nan, dtype)
    return Eigenvalues(jnp.concatenate([values, nothing]), jnp.concatenate([errors, nothing]), state.index)


def in_double_precision(params: PyTree) -> PyTree:
    """The same numbers in float64, for a call outside of compiled functions and inside `jax.enable_x64(True)`."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "double precision cannot begin inside a compiled function: call this outside of jit, or compile the "
            "function itself inside `with jax.enable_x64(True)` on float64 parameters"
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)


def _products(loss: Callable[[PyTree], Array], params: PyTree) -> tuple[Callable[[Array], Array], int, jnp.dtype]:
    """Hessian times vector, the number of parameters, and the precision of the vectors."""
    flat, unravel = ravel_pytree(params)
    dtype = jnp.promote_types(flat.dtype, jnp.float32)
    gradient = jax.grad(loss)

    def product(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        _, tangent = jax.jvp(gradient, (params,), (unravel(vector.astype(flat.dtype)),))
        return ravel_pytree(tangent)[0].astype(dtype)

    return product, flat.size, dtype


def _starting_vector(key: PRNGKeyArray, size: int, dtype: jnp.dtype) -> Float[Array, " n"]:
    # Drawn in float32 whatever the mode: a key would give other numbers in float64.
    return jax.random.normal(key, (size,), jnp.float32).astype(dtype)


def hessian_vector_products(params: PyTree, *, iterations: int = 80, draws: int = 1) -> int:
    """Hessian-vector products `hessian_spectrum` takes with these arguments: draws * min(iterations, n)."""
    size = sum(math.prod(array.shape) for array in jax.tree.leaves(params))
    if size == 0:
        raise ValueError("there are no parameters to take a Hessian by")
    if iterations < 1 or draws < 1:
        raise ValueError(f"iterations and draws must be at least 1, not {iterations} and {draws}")
    return draws * min(iterations, size)


class _Lanczos(NamedTuple):
    """A Lanczos iteration: the basis, the tridiagonal matrix so far, and where it stands.

    basis: (m, n), rows not yet filled are zero. alpha, beta: (m,), diagonal and what is beside it. active: (m,), the
    steps that had a vector. size: the matrix's size as seen so far. more: whether the space goes on.
    """

    basis: Float[Array, "m n"]
    alpha: Float[Array, " m"]
    beta: Float[Array, " m"]
    active: Bool[Array, " m"]
    size: Float[Array, ""]
    more: Bool[Array, ""]
    index: Int[Array, ""]


def _begun(start: Float[Array, " n"], count: int) -> _Lanczos:
    zeros = jnp.zeros(count, start.dtype)
    basis = jnp.zeros((count, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    going = jnp.asarray(True)
    return _Lanczos(basis, zeros, zeros, jnp.zeros(count, bool), zeros[0], going, jnp.zeros((), jnp.int32))


def _advanced(product: Callable[[Array], Array], state: _Lanczos) -> _Lanczos:
    """One step further."""
    basis, index = state.basis, state.index
    tolerance = max(BREAKDOWN, 10 * float(jnp.finfo(basis.dtype).eps))
    before = jnp.where(index > 0, state.beta[index - 1], 0)
    vector = product(basis[index])
    alpha = basis[index] @ vector
    # The recurrence first, then full re-orthogonalisation: alone, that would leave a residue of its own rounding. Rows
    # not yet filled are zero and take nothing away.
    vector = vector - alpha * basis[index] - before * basis[index - 1]
    vector = vector - (basis @ vector) @ basis
    beta = jnp.linalg.norm(vector)
    size = jnp.maximum(state.size, jnp.abs(alpha) + before + beta)
    more = state.more & (beta > tolerance * size)
    following = jnp.where(more, vector / jnp.where(more, beta, 1), 0)
    return _Lanczos(
        basis.at[index + 1].set(following, mode="drop"),
        state.alpha.at[index].set(jnp.where(state.more, alpha, 0)),
        state.beta.at[index].set(jnp.where(more, beta, 0)),
        state.active.at[index].set(state.more),
        size,
        more,
        index + 1,
    )


def _matrix(state: _Lanczos) -> Float[Array, "m m"]:
    """The tridiagonal matrix.

    A step past the end becomes a node of its own, with no weight. At the first Rayleigh quotient it is within the
    spectrum, so neither the largest nor the smallest eigenvalue needs a mask.
    """
    alpha = jnp.where(state.active, state.alpha, state.alpha[0])
    return jnp.diag(alpha) + jnp.diag(state.beta[:-1], 1) + jnp.diag(state.beta[:-1], -1)


def _tridiagonal(product: Callable[[Array], Array], start: Float[Array, " n"], count: int) -> Float[Array, "m m"]:
    """The tridiagonal matrix of `count` Lanczos steps from `start`."""
    return _matrix(jax.lax.fori_loop(0, count, lambda _, state: _advanced(product, state), _begun(start, count)))


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


def training_spectrum(
    view: View, batch: Batch, key: PRNGKeyArray, *, iterations: int = 80, draws: int = 1
) -> dict[str, Float[Array, ""]]:
    """`hessian_spectrum` of the training loss on `batch`, of any learner; places as in `spectrum_places`."""
    loss_key, start_key = jax.random.split(key)
    parameters, rest = split_trainable(view.network)

    def loss(parameters: PyTree) -> Array:
        return view.loss(eqx.combine(parameters, rest), batch, loss_key)

    return spectrum_places(hessian_spectrum(loss, parameters, key=start_key, iterations=iterations, draws=draws))


def output_spectrum(
    view: View, batch: Batch, key: PRNGKeyArray, *, iterations: int = 80, draws: int = 1
) -> dict[str, Float[Array, ""]]:
    """`hessian_spectrum` of `output_noise_loss` on the batch's inputs; places as in `spectrum_places`."""
    noise_key, start_key = jax.random.split(key)
    loss, parameters = output_noise_loss(view.network, batch.inputs, key=noise_key)
    return spectrum_places(hessian_spectrum(loss, parameters, key=start_key, iterations=iterations, draws=draws))


def spectrum_places(spectrum: Spectrum) -> dict[str, Float[Array, ""]]:
    """A spectrum as records: places `largest`, `smallest` and `mean` (trace / parameters), and the nodes of the density
    as `eigenvalue:i` and `weight:i`, i from 0 over all draws.
    """
    nodes, weights = spectrum.eigenvalues.reshape(-1), spectrum.weights.reshape(-1)
    return {
        "largest": spectrum.largest,
        "smallest": spectrum.smallest,
        "mean": jnp.sum(weights * nodes),
        **{f"eigenvalue:{i}": node for i, node in enumerate(nodes)},
        **{f"weight:{i}": weight for i, weight in enumerate(weights)},
    }
