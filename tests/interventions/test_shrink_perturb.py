import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intervention_states import ADAM, KEY, aged_state, bits, changed, lane, maker, stacked
from neoteny.interventions import Moments, ShrinkPerturb, shrink_perturb
from neoteny.interventions.draws import fresh_network
from neoteny.learners.learner import init_stages
from neoteny.networks.network import split_trainable


def test_parameters_are_shrunk_and_a_fresh_draw_is_added_scaled():
    state = aged_state()
    after = shrink_perturb(state, KEY, shrink=0.8, perturb=0.2)
    fresh = fresh_network(state, KEY, "online")
    for name in ("online", "target"):  # the follower by its own parameters and the same draw
        olds, draws, news = (
            jax.tree.leaves(split_trainable(network)[0])
            for network in (state.networks[name], fresh, after.networks[name])
        )
        assert len(news) == 8
        for old, draw, new in zip(olds, draws, news, strict=True):
            expected = 0.8 * np.float64(old) + 0.2 * np.float64(draw)
            np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-7)


def test_shrink_one_perturb_zero_is_the_identity():
    state = aged_state()
    assert changed(state, shrink_perturb(state, KEY, shrink=1.0, perturb=0.0)) == set()


def test_statistics_moments_and_other_networks_are_untouched():
    state = aged_state()
    moved = changed(state, shrink_perturb(state, KEY))
    assert all(path.startswith((".networks['online']", ".networks['target']")) for path in moved)
    assert not any(path.endswith(".value") for path in moved)
    only = changed(state, shrink_perturb(state, KEY, stages=("hidden2",)))
    assert only
    assert all(".stages[1]" in path for path in only)


def test_declared_moments_begin_again():
    state = aged_state()
    after = shrink_perturb(state, KEY, moments=Moments.FRESH)
    assert bits(after.optimizer["online"]) == bits(init_stages(ADAM, maker(KEY)))
    assert bits(after.optimizer["critic"]) == bits(state.optimizer["critic"])
    assert int(after.optimizer["online"]["head"][0].count) == 0


def test_every_key_is_a_fresh_draw():
    state = aged_state()
    weights = [
        np.asarray(shrink_perturb(state, jax.random.key(n)).networks["online"].stage("head").weight) for n in range(3)
    ]
    assert not np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[1], weights[2])
    twice = [shrink_perturb(state, KEY), shrink_perturb(state, KEY)]
    assert bits(twice[0]) == bits(twice[1])


def test_lanes_with_strengths_of_their_own():
    states = [aged_state(seed=s) for s in range(2)]
    keys, shrinks = jax.random.split(KEY, 2), jnp.array([0.5, 1.0])
    run = jax.jit(jax.vmap(lambda s, k, a: shrink_perturb(s, k, shrink=a, perturb=1 - a)))
    after = run(stacked(states), keys, shrinks)
    assert changed(states[1], lane(after, 1)) == set()
    alone = shrink_perturb(states[0], keys[0], shrink=0.5, perturb=0.5)
    for one, other in zip(jax.tree.leaves(lane(after, 0)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_intervention_equals_the_function():
    state = aged_state()
    intervention = ShrinkPerturb(0.6, 0.1, stages=("head",), moments=Moments.FRESH)
    expected = shrink_perturb(state, KEY, shrink=0.6, perturb=0.1, stages=("head",), moments=Moments.FRESH)
    assert bits(intervention(state, KEY)) == bits(expected)
    with pytest.raises(KeyError, match="no stage"):
        ShrinkPerturb(stages=("tail",))(state, KEY)
