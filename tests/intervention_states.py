"""States the intervention tests act on."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from neoteny.learners.learner import LearnerState, Origin, init_stages
from neoteny.networks import BatchNorm, Chain, Dense, Network
from neoteny.networks.activations import Activation, relu
from neoteny.networks.dense import Flatten

ADAM = optax.adam(1e-2)
KEY = jax.random.key(5)


def maker(key) -> Network:
    """4 inputs, two hidden stages of 6 and 5 units (the first with batch norm), 3 outputs."""
    one, two, head = (jax.random.fold_in(key, n) for n in range(3))
    return Network(
        hidden1=Chain(Flatten(), Dense(4, 6, key=one), BatchNorm(6), Activation(relu)),
        hidden2=Chain(Dense(6, 5, key=two), Activation(relu)),
        head=Dense(5, 3, key=head),
    )


def noisy(tree, seed: int):
    """Every array of the tree plus distinct positive numbers, so that none equals a fresh one."""
    rng = np.random.default_rng(seed)

    def change(leaf):
        if not eqx.is_array(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return leaf + 17
        return leaf + jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype)

    return jax.tree.map(change, tree)


def aged_state(make=maker, optimizer=ADAM, seed=0, frozen=()) -> LearnerState:
    """Two trained networks, online and critic, and a follower of each, all with parameters of their own."""
    networks = {
        "online": make(jax.random.key(seed)),
        "target": noisy(make(jax.random.key(seed)), seed + 1),
        "critic": make(jax.random.key(seed + 100)),
        "critic_target": noisy(make(jax.random.key(seed + 100)), seed + 2),
    }
    states = {
        name: {s: v for s, v in noisy(init_stages(optimizer, networks[name]), seed + 3).items() if s not in frozen}
        for name in ("online", "critic")
    }
    followers = (("target", "online"), ("critic_target", "critic"))
    return LearnerState(networks, states, {"kept": jnp.arange(3.0)}, followers, origin_of(make, optimizer))


@functools.cache
def origin_of(make, optimizer) -> Origin:
    """One origin for states of one kind: origins compare by identity, and lanes must have the same."""
    return Origin({"online": make, "critic": make}, {"online": optimizer, "critic": optimizer})


def bits(tree) -> dict[str, bytes]:
    """Path -> the array's bytes, for every array of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def changed(before, after) -> set[str]:
    """Paths at which two states differ in a bit; AssertionError if their structures or types do."""
    one, two = (eqx.filter(tree, eqx.is_array) for tree in (before, after))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    types = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (one, two)]
    assert types[0] == types[1]
    a, b = bits(one), bits(two)
    return {path for path in a if a[path] != b[path]}


def stacked(states):
    """States of several seeds as lanes."""
    return jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *states)


def lane(tree, index: int):
    return jax.tree.map(lambda a: a[index] if eqx.is_array(a) else a, tree)
