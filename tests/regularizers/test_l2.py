import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import BatchNorm, Chain, Dense, Network
from neoteny.networks.network import split_trainable
from neoteny.regularizers import L2, L2ToInit, NoPenalty, Parameters


def maker(key) -> Network:
    one, two = jax.random.split(key)
    hidden = Chain(Dense(3, 4, key=one), BatchNorm(4))
    network = Network(hidden=hidden, head=Dense(4, 2, key=two))
    # Statistics far from zero: a penalty that held them too would show.
    return eqx.tree_at(lambda n: n.stages[0].layers[1].mean.value, network, jnp.full(4, 50.0))


def gradient(regularizer, network, memory):
    parameters, rest = split_trainable(network)
    return jax.grad(lambda p: regularizer.penalty(eqx.combine(p, rest), memory))(parameters)


def moved(network):
    return jax.tree.map(lambda a: a + 0.5 if eqx.is_inexact_array(a) else a, network)


@pytest.mark.parametrize("kind", list(Parameters))
def test_l2_value_and_gradient(kind):
    network = moved(maker(jax.random.key(0)))
    regularizer = L2(0.3, kind)
    parameters = split_trainable(network)[0]
    assert len(jax.tree.leaves(parameters)) == 6
    counted = [a for a in jax.tree.leaves(parameters) if kind is Parameters.ALL or a.ndim >= 2]
    exact = 0.3 * sum((np.float64(a) ** 2).sum() for a in counted)
    np.testing.assert_allclose(regularizer.penalty(network, regularizer.init(network)), exact, rtol=1e-6)
    for slope, array in zip(
        jax.tree.leaves(gradient(regularizer, network, ())), jax.tree.leaves(parameters), strict=True
    ):
        expected = 0.6 * array if kind is Parameters.ALL or array.ndim >= 2 else jnp.zeros_like(array)
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", list(Parameters))
def test_l2_to_init_value_and_gradient(kind):
    start = maker(jax.random.key(0))
    regularizer = L2ToInit(0.3, kind)
    memory = regularizer.init(start)
    assert float(regularizer.penalty(start, memory)) == 0
    assert not any(np.asarray(a).any() for a in jax.tree.leaves(gradient(regularizer, start, memory)))
    later = moved(start)
    counts = [a.size for a in jax.tree.leaves(split_trainable(start)[0]) if kind is Parameters.ALL or a.ndim >= 2]
    np.testing.assert_allclose(regularizer.penalty(later, memory), 0.3 * 0.25 * sum(counts), rtol=1e-5)
    for slope in jax.tree.leaves(gradient(regularizer, later, memory)):
        counted = kind is Parameters.ALL or slope.ndim >= 2
        np.testing.assert_allclose(slope, 0.3 if counted else 0.0, rtol=1e-5)


def test_the_initial_parameters_are_kept_over_tasks_and_are_arrays_of_their_own():
    start = maker(jax.random.key(0))
    regularizer = L2ToInit(1.0)
    memory = regularizer.init(start)
    switched = regularizer.switch(moved(start), memory)
    for kept, first in zip(jax.tree.leaves(switched), jax.tree.leaves(split_trainable(start)[0]), strict=True):
        np.testing.assert_array_equal(kept, first)
        assert kept is not first


def test_no_penalty():
    network = maker(jax.random.key(0))
    nothing = NoPenalty()
    assert float(nothing.penalty(network, nothing.init(network))) == 0
    assert jax.tree.leaves(nothing.switch(network, nothing.init(network))) == []


def test_lanes_with_coefficients_of_their_own():
    networks = [moved(maker(jax.random.key(s))) for s in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *networks)
    coefficients = jnp.array([0.0, 0.1, 2.0])

    def lane(network, coefficient):
        memory = L2ToInit(coefficient).init(jax.tree.map(jnp.zeros_like, network))
        return L2(coefficient).penalty(network, ()), L2ToInit(coefficient).penalty(network, memory)

    one, other = jax.jit(jax.vmap(lane))(stacked, coefficients)
    exact = [float(L2(float(c)).penalty(n, ())) for n, c in zip(networks, coefficients, strict=True)]
    np.testing.assert_allclose(one, exact, rtol=1e-6)
    np.testing.assert_allclose(other, exact, rtol=1e-6)


def test_regularizers_are_values():
    assert L2(0.1) == L2(0.1) != L2(0.1, Parameters.KERNELS)
    assert len({L2(0.1), L2(0.1), L2ToInit(0.1), NoPenalty(), NoPenalty()}) == 3
