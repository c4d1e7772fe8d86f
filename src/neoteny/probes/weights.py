"""How large and how degenerate the weights are, and how large the gradient (Lyle et al. 2023, section 3.3).

A kernel is a trained array of two or more dimensions; biases, scales and running statistics are none.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import Network, split_trainable
from neoteny.probes.arrays import singular_values

ALL = "all"
"""The place of a number about the whole network; the other places are stage names."""

RANK_THRESHOLD = 0.01
"""A singular value counts when it exceeds this share of the kernel's largest."""


def kernels(tree: PyTree) -> list[Array]:
    """The kernels of a network or layer, in its order: trained arrays with ndim >= 2."""
    parameters, _ = split_trainable(tree)
    return [array for array in jax.tree.leaves(parameters) if array.ndim >= 2]


def global_norm(arrays: list[Array]) -> Float[Array, ""]:
    """sqrt of the sum of squares over all entries of all arrays; 0 for none. Summed in float32 at least."""
    total = jnp.zeros((), jnp.float32)
    for array in arrays:
        array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
        total = total + jnp.sum(jnp.square(array))
    return jnp.sqrt(total)


def weight_norm(view: View, batch: Batch, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """Global L2 norm over kernels: of every stage that has one, and of the network at place `all`.

    Lyle et al. 2023, section 3.3. Batch and key are not looked at.
    """
    del batch, key
    stages = {name: kernels(stage) for name, stage in zip(view.network.names, view.network.stages, strict=True)}
    return _norms(stages)


def gradient_norm(view: View, batch: Batch, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """Global L2 norm of the training loss's gradient on `batch`: of every trained stage, and at place `all`.

    Over all trained parameters, biases and scales among them. The key feeds the loss (dropout).
    """
    parameters, rest = split_trainable(view.network)
    gradient = jax.grad(lambda p: view.loss(eqx.combine(p, rest), batch, key))(parameters)
    return _norms({name: jax.tree.leaves(stage) for name, stage in zip(gradient.names, gradient.stages, strict=True)})


def _norms(stages: dict[str, list[Array]]) -> dict[str, Float[Array, ""]]:
    norms = {name: global_norm(arrays) for name, arrays in stages.items() if arrays}
    return {**norms, ALL: global_norm([array for arrays in stages.values() for array in arrays])}


def kernel_rank(matrix: np.ndarray, threshold: float = RANK_THRESHOLD) -> float:
    """The number of singular values s_i > threshold * s_1 of a matrix (rows, columns), in float64.

    NaN if an entry is not finite, 0 for a zero matrix.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"kernel_rank takes a matrix, not an array of shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        return float("nan")
    if matrix.size == 0:
        return 0.0
    values = singular_values(matrix)
    return float(np.sum(values > threshold * values[0]))


def weight_rank(network: Network, threshold: float = RANK_THRESHOLD) -> dict[str, float]:
    """Mean over layers of `kernel_rank`: of every stage that has a kernel, and of the network at place `all`.

    On the host, of one network (no lane axis). A kernel of more than two dimensions is unfolded to (inputs
    and places, output channels). NaN at `all` if the network has no kernel. Lyle et al. 2023, section 3.3,
    do not define their weight rank; the threshold is the usual one.
    """
    stages = {
        name: [kernel_rank(matrix, threshold) for matrix in _matrices(stage)]
        for name, stage in zip(network.names, network.stages, strict=True)
    }
    ranks = [rank for values in stages.values() for rank in values]
    means = {name: float(np.mean(values)) for name, values in stages.items() if values}
    return {**means, ALL: float(np.mean(ranks)) if ranks else float("nan")}


def _matrices(stage: PyTree) -> list[np.ndarray]:
    """Every kernel with the output axis last (Equinox convolutions have it first) and all others made one."""
    matrices = []
    for node in jax.tree.leaves(stage, is_leaf=lambda node: isinstance(node, eqx.nn.Conv)):
        for kernel in kernels(node):
            array = np.asarray(kernel)
            if isinstance(node, eqx.nn.Conv):
                array = np.moveaxis(array, 0, -1)
            matrices.append(array.reshape(-1, array.shape[-1]))
    return matrices
