import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intervention_states import ADAM, KEY, aged_state, bits, changed, lane, maker, stacked
from neoteny.interventions import (
    Context,
    Moments,
    Nothing,
    Reset,
    ResetOptimizer,
    reset,
    reset_optimizer,
)
from neoteny.learners.learner import LearnerState, detach, init_stages
from neoteny.networks import Network, mlp

HEAD = ".networks['online'].stages[2]"
TARGET_HEAD = ".networks['target'].stages[2]"
HEAD_STATE = ".optimizer['online']['head']"


def under(paths, *prefixes):
    return all(path.startswith(prefixes) for path in paths)


def test_reset_of_the_head_changes_the_head_its_follower_and_its_moments_and_no_other_bit():
    state = aged_state()
    after = reset(state, KEY, stages=("head",))
    moved = changed(state, after)
    assert under(moved, HEAD, TARGET_HEAD, HEAD_STATE)
    everything = {path for path in bits(state) if path.startswith((HEAD_STATE, TARGET_HEAD))}
    # Nothing of them is left: count, both moments, weight and bias (the online bias was 0 already).
    assert moved >= everything | {f"{HEAD}.weight"}


def test_reset_draws_from_the_maker_and_the_follower_gets_the_same_draw():
    state = aged_state()
    after = reset(state, KEY, stages=("hidden1", "head"))
    online, target = after.networks["online"], after.networks["target"]
    for name in ("hidden1", "head"):
        assert bits(online.stage(name)) == bits(target.stage(name))
    weight = np.asarray(after.networks["online"].stage("head").weight)
    assert not np.array_equal(weight, state.networks["online"].stage("head").weight)
    np.testing.assert_array_equal(online.stage("hidden1").layers[2].mean.value, 0)  # statistics begin again
    again = reset(state, jax.random.key(6), stages=("head",))
    assert not np.array_equal(weight, again.networks["online"].stage("head").weight)


def test_fresh_moments_are_those_of_init_and_kept_ones_keep_every_bit():
    state = aged_state()
    fresh = reset(state, KEY, stages=("head",)).optimizer["online"]["head"]
    assert int(fresh[0].count) == 0
    assert bits(fresh) == bits(ADAM.init(maker(KEY).stage("head")))
    kept = reset(state, KEY, stages=("head",), moments=Moments.KEEP)
    assert bits(kept.optimizer) == bits(state.optimizer)
    assert int(kept.optimizer["online"]["head"][0].count) == 17
    assert bits(kept.networks) == bits(reset(state, KEY, stages=("head",)).networks)


def test_networks_have_draws_of_their_own():
    after = reset(aged_state(), KEY, stages=None, networks=("online", "critic"))
    online, critic = (after.networks[name].stage("head").weight for name in ("online", "critic"))
    assert not np.array_equal(online, critic)
    assert bits(after.networks["critic"]) == bits(after.networks["critic_target"])
    alone = reset(aged_state(), KEY, stages=None, networks=("critic",))
    assert bits(alone.networks["critic"]) == bits(after.networks["critic"])
    assert bits(alone.networks["online"]) == bits(aged_state().networks["online"])


def test_frozen_stages_stay_without_optimiser_state():
    state = aged_state(frozen=("hidden2",))
    after = reset(state, KEY, stages=None)
    assert set(after.optimizer["online"]) == {"hidden1", "head"}
    changed(state, after)


def test_stage_numbers():
    state = aged_state()
    named = reset(state, KEY, stages=("head",))
    for number in (-1, 2, jnp.int32(2), jnp.int32(-1)):
        assert bits(reset(state, KEY, stages=number)) == bits(named)
    with pytest.raises(ValueError, match="no stage number 3"):
        reset(state, KEY, stages=3)
    with pytest.raises(ValueError, match="one integer"):
        reset(state, KEY, stages=jnp.array([1, 2]))


def test_reset_optimizer_leaves_parameters_alone():
    state = aged_state()
    after = reset_optimizer(state, KEY)
    assert bits(after.networks) == bits(state.networks)
    assert bits(after.optimizer["online"]) == bits(init_stages(ADAM, state.networks["online"]))
    assert bits(after.optimizer["critic"]) == bits(state.optimizer["critic"])
    assert under(changed(state, reset_optimizer(state, KEY, stages=("head",))), HEAD_STATE)


def test_lanes_may_reset_different_stages():
    states = [aged_state(seed=s) for s in range(3)]
    keys, numbers = jax.random.split(KEY, 3), jnp.array([0, 2, -2])
    run = jax.jit(jax.vmap(lambda s, k, n: reset(s, k, stages=n)))
    after = run(stacked(states), keys, numbers)
    for index, number in enumerate((0, 2, 1)):
        alone = reset(states[index], keys[index], stages=number)
        changed(states[index], lane(after, index))
        for one, other in zip(jax.tree.leaves(lane(after, index)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_nothing_moves_but_types_are_kept_when_the_maker_draws_weakly_typed_numbers():
    def weak(key):
        network = maker(key)
        return eqx.tree_at(lambda n: n.stages[2].bias, network, jnp.asarray(0.0) * jnp.ones(3))

    state = aged_state(weak)
    after = jax.jit(lambda s: reset(s, KEY, stages=None))(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((after.networks, after.optimizer)))


def test_structure_is_kept_when_each_draw_has_functions_of_its_own():
    def lambdas(key):
        one, two = jax.random.split(key)
        body = eqx.nn.Lambda(lambda x: jnp.tanh(x))
        return Network(
            hidden=eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=one), body]), head=eqx.nn.Linear(3, 2, key=two)
        )

    state = aged_state(lambdas)
    after = reset(state, KEY, stages=None)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert not np.array_equal(
        after.networks["online"].stages[1].module.weight, state.networks["online"].stages[1].module.weight
    )


def test_a_stage_that_was_changed_cannot_be_drawn_and_others_can():
    state = aged_state()
    wide = mlp(4, [7], 3)(KEY).stage("head")
    networks = {name: network.replace(head=wide) for name, network in state.networks.items()}
    state = LearnerState(networks, state.optimizer, None, state.followers, state.origin)
    with pytest.raises(ValueError, match=r"stage 'head' at .*weight has shape \(3, 7\).*\(3, 5\)"):
        reset(state, KEY, stages=("head",))
    reset(state, KEY, stages=("hidden2",))


def test_what_is_not_there_is_named():
    state = aged_state()
    with pytest.raises(KeyError, match="no network 'actor'; the networks are online"):
        reset(state, KEY, stages=None, networks=("actor",))
    with pytest.raises(KeyError, match="no stage 'body'; the stages are hidden1"):
        reset(state, KEY, stages=("body",))
    with pytest.raises(TypeError, match="tuple of names"):
        reset(state, KEY, stages="head")
    with pytest.raises(TypeError, match="tuple of names"):
        reset(state, KEY, stages=None, networks="online")
    with pytest.raises(KeyError, match="no maker for network 'target'"):
        reset(state, KEY, stages=None, networks=("target",))
    with pytest.raises(ValueError, match="origin"):
        reset(detach(state), KEY, stages=("head",))


def test_interventions_equal_their_functions_and_are_values():
    state = aged_state()
    assert bits(Reset(("head",))(state, KEY)) == bits(reset(state, KEY, stages=("head",)))
    keep = Reset(-1, moments=Moments.KEEP)
    assert bits(keep(state, KEY, Context())) == bits(reset(state, KEY, stages=("head",), moments=Moments.KEEP))
    assert bits(ResetOptimizer()(state, KEY)) == bits(reset_optimizer(state, KEY))
    assert Nothing()(state, KEY) is state
    assert len({Reset(("head",)), Reset(("head",)), Nothing(), ResetOptimizer()}) == 3


def test_optimisers_with_schedules_and_several_parts():
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(1e-2, 0, 10)))
    state = aged_state(optimizer=optimizer)
    after = reset_optimizer(state, KEY)
    assert bits(after.optimizer["online"]) == bits(init_stages(optimizer, state.networks["online"]))
