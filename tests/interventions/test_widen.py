"""Naive width scaling: the old network goes on in the first units of a wider one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intervention_states import KEY, bits, noisy
from neoteny.interventions import Widen, widen
from neoteny.learners import Batch, LearnerState, Origin, init_stages, supervised
from neoteny.networks import minatar, mlp

NARROW, WIDE = mlp(7, [6, 5], 3), mlp(7, [6, 9], 3)


def two_networks(maker=NARROW) -> LearnerState:
    """An online network and a target with parameters of its own, and moments that are not zero."""
    optimizer = optax.adam(1e-2)
    online, target = noisy(maker(jax.random.key(0)), 1), noisy(maker(jax.random.key(0)), 2)
    states = {"online": noisy(init_stages(optimizer, online), 3)}
    origin = Origin({"online": maker}, {"online": optimizer})
    return LearnerState({"online": online, "target": target}, states, None, (("target", "online"),), origin)


def test_old_parameters_lie_in_the_leading_blocks_and_the_rest_is_the_same_draw_in_all():
    before = two_networks()
    after = widen(before, KEY, maker=WIDE)
    for name, network in after.networks.items():
        old = before.networks[name]
        assert bits(network.stage("hidden1")) == bits(old.stage("hidden1"))
        for mine, kept in zip(*(jax.tree.leaves(n.stage("hidden2")) for n in (network, old)), strict=True):
            np.testing.assert_array_equal(mine[:5], kept)
        np.testing.assert_array_equal(network.stage("head").weight[:, :5], old.stage("head").weight)
        np.testing.assert_array_equal(network.stage("head").bias, old.stage("head").bias)
        assert network.stage("head").weight.shape == (3, 9)
    online, target = (after.networks[name].stage("head").weight[:, 5:] for name in ("online", "target"))
    np.testing.assert_array_equal(online, target)
    assert np.all(np.asarray(online) != 0)
    assert not np.array_equal(online, WIDE(KEY).stage("head").weight[:, 5:])
    assert bits(widen(before, KEY, maker=WIDE)) == bits(after) == bits(Widen(WIDE)(before, KEY))
    assert bits(widen(before, jax.random.key(9), maker=WIDE)) != bits(after)


def test_old_units_compute_what_they_did():
    before = two_networks()
    after = widen(before, KEY, maker=WIDE)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 7)), jnp.float32)
    one, two = (state.networks["online"](x).stages["hidden2"] for state in (before, after))
    np.testing.assert_allclose(two[:, :5], one, rtol=1e-6)
    assert np.any(np.asarray(two[:, 5:]) != 0)


def test_moments_and_counts_go_on_and_new_ones_are_zero():
    before = two_networks()
    after = widen(before, KEY, maker=WIDE)
    assert bits(after.optimizer["online"]["hidden1"]) == bits(before.optimizer["online"]["hidden1"])
    old, new = (state.optimizer["online"]["head"][0] for state in (before, after))
    assert int(new.count) == int(old.count)
    for mine, kept in ((new.mu, old.mu), (new.nu, old.nu)):
        np.testing.assert_array_equal(mine.weight[:, :5], kept.weight)
        np.testing.assert_array_equal(mine.weight[:, 5:], 0)


@pytest.mark.parametrize(
    ("narrow", "wide", "shape"),
    [(NARROW, WIDE, (7,)), (minatar((6, 6, 2), 3, width=5), minatar((6, 6, 2), 3, width=8), (6, 6, 2))],
)
def test_the_wider_network_is_trained_as_a_whole(narrow, wide, shape):
    learner = supervised(narrow, optax.adamw(1e-2, weight_decay=0.1), before=optax.clip_by_global_norm(0.1))
    rng = np.random.default_rng(0)
    rows = Batch(
        jnp.asarray(rng.normal(size=(16, *shape)), jnp.float32), jnp.asarray(rng.integers(0, 3, 16), jnp.int32)
    )
    state = learner.init(KEY)
    for step in range(3):
        state, _ = learner.update(state, rows, jax.random.key(step))
    state = widen(state, KEY, maker=wide)
    after, _ = learner.update(state, rows, KEY)
    for old, new in zip(*(jax.tree.leaves(s.networks["online"]) for s in (state, after)), strict=True):
        assert np.any(np.asarray(old) != np.asarray(new))


def test_what_does_not_fit_is_refused():
    state = two_networks()
    with pytest.raises(
        ValueError, match=r"stage 'hidden2' has an array of shape \(5, 6\), which does not fit into \(4, 6\)"
    ):
        widen(state, KEY, maker=mlp(7, [6, 4], 3))
    with pytest.raises(ValueError, match="must have the stages hidden1, hidden2, head; its maker gives hidden1, head"):
        widen(state, KEY, maker=mlp(7, [6], 3))
    with pytest.raises(KeyError, match="no network 'critic'"):
        widen(state, KEY, maker=WIDE, networks=("critic",))
