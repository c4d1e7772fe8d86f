import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intervention_states import KEY, aged_state, bits, changed, lane, maker, stacked
from neoteny.interventions import Context, Redo, dormant_units, redo
from neoteny.interventions.draws import fresh_network
from neoteny.learners.learner import LearnerState
from neoteny.networks import Chain, Dense, Network, cnn
from neoteny.networks.activations import Activation, crelu, relu
from neoteny.networks.dense import Flatten

INPUTS = jnp.asarray(np.random.default_rng(3).normal(size=(16, 4)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4, 4, 2)), jnp.float32)


def plain_maker(key) -> Network:
    """4 inputs, two hidden stages of 6 and 5 units without normalisation, 3 outputs."""
    one, two, head = (jax.random.fold_in(key, n) for n in range(3))
    return Network(
        hidden1=Chain(Dense(4, 6, key=one), Activation(relu)),
        hidden2=Chain(Dense(6, 5, key=two), Activation(relu)),
        head=Dense(5, 3, key=head),
    )


def with_dead(state, dead: dict[str, list[int]], position=0):
    """`state` with these units of the online network made silent by their bias, for every input."""
    network = state.networks["online"]
    for name, units in dead.items():
        where = lambda n, name=name: n.stage(name).layers[position].bias  # noqa: E731
        network = eqx.tree_at(where, network, where(network).at[jnp.array(units)].set(-1e3))
    networks = {**state.networks, "online": network}
    return LearnerState(networks, state.optimizer, state.memory, state.followers, state.origin)


def some_dead():
    """A state in which hidden1 has the dead units 1 and 4, and hidden2 the dead unit 2, and no others."""
    state = with_dead(aged_state(plain_maker), {"hidden1": [1, 4], "hidden2": [2]})
    stages = state.networks["online"](INPUTS).stages
    for name, dead in (("hidden1", [1, 4]), ("hidden2", [2])):
        silent = np.flatnonzero(~np.asarray(stages[name]).any(axis=0))
        np.testing.assert_array_equal(silent, dead)
    return state


def test_dormant_units_by_definition():
    activations = jnp.array([[1.0, -0.05, 0.0, 2.0], [-3.0, 0.05, 0.0, 2.0]])
    # Scores 2, 0.05, 0, 2; their mean is 1.0125.
    np.testing.assert_array_equal(dormant_units(activations, 0.025), [False, False, True, False])
    np.testing.assert_array_equal(dormant_units(activations, 0.05), [False, True, True, False])
    assert dormant_units(jnp.zeros((3, 4))).all()
    maps = jnp.zeros((2, 3, 3, 2)).at[0, 1, 1, 0].set(1.0)
    np.testing.assert_array_equal(dormant_units(maps, 0.0), [False, True])
    assert not dormant_units(jnp.full((3, 4), jnp.nan)).any()


def test_recycling_silent_units_keeps_the_function_bit_by_bit():
    state = some_dead()
    after = redo(state, KEY, inputs=INPUTS, tau=0.0)
    before_pass, after_pass = state.networks["online"](INPUTS), after.networks["online"](INPUTS)
    np.testing.assert_array_equal(after_pass.output, before_pass.output)
    # And the units live again, at least on some input.
    assert np.asarray(after_pass.stages["hidden1"])[:, [1, 4]].any(axis=0).all()


def test_entries_of_recycled_units_and_no_others_change():
    state = some_dead()
    after = redo(state, KEY, inputs=INPUTS, tau=0.0)
    fresh = fresh_network(state, KEY, "online")
    for name in ("online", "target"):  # the follower's own activations do not matter
        old, new = state.networks[name], after.networks[name]
        (one_old, _), (one_new, _), (one_fresh, _) = (n.stage("hidden1").layers for n in (old, new, fresh))
        incoming = np.zeros((6, 4), bool)
        incoming[[1, 4]] = True
        np.testing.assert_array_equal(one_new.weight, np.where(incoming, one_fresh.weight, one_old.weight))
        np.testing.assert_array_equal(one_new.bias, np.where(incoming[:, 0], one_fresh.bias, one_old.bias))
        (two_old, _), (two_new, _), (two_fresh, _) = (n.stage("hidden2").layers for n in (old, new, fresh))
        expected = np.array(two_old.weight)
        expected[2] = two_fresh.weight[2]
        expected[:, [1, 4]] = 0  # outgoing weights are zero, those to another recycled unit too
        np.testing.assert_array_equal(two_new.weight, expected)
        expected = np.array(old.stage("head").weight)
        expected[:, 2] = 0
        np.testing.assert_array_equal(new.stage("head").weight, expected)
        np.testing.assert_array_equal(new.stage("head").bias, old.stage("head").bias)
    assert bits(after.networks["critic"]) == bits(state.networks["critic"])
    assert bits(after.memory) == bits(state.memory)


def test_moments_of_recycled_entries_are_zero_and_counts_and_others_untouched():
    state = some_dead()
    after = redo(state, KEY, inputs=INPUTS, tau=0.0)
    for moment in ("mu", "nu"):
        old, new = (
            {name: getattr(s[0], moment) for name, s in tree.optimizer["online"].items()} for tree in (state, after)
        )
        expected = np.array(old["hidden1"].layers[0].weight)
        expected[[1, 4]] = 0
        np.testing.assert_array_equal(new["hidden1"].layers[0].weight, expected)
        expected = np.array(old["hidden1"].layers[0].bias)
        expected[[1, 4]] = 0
        np.testing.assert_array_equal(new["hidden1"].layers[0].bias, expected)
        expected = np.array(old["hidden2"].layers[0].weight)
        expected[2] = 0
        expected[:, [1, 4]] = 0
        np.testing.assert_array_equal(new["hidden2"].layers[0].weight, expected)
        expected = np.array(old["head"].weight)
        expected[:, 2] = 0
        np.testing.assert_array_equal(new["head"].weight, expected)
        np.testing.assert_array_equal(new["head"].bias, old["head"].bias)
    assert all(int(s[0].count) == 17 for s in after.optimizer["online"].values())
    assert bits(after.optimizer["critic"]) == bits(state.optimizer["critic"])


def test_nothing_changes_without_dormant_units():
    state = aged_state(plain_maker)
    assert changed(state, redo(state, KEY, inputs=INPUTS, tau=-1.0)) == set()


def test_the_threshold_is_a_share_of_the_layer_mean():
    state = some_dead()
    scores = np.abs(np.asarray(state.networks["online"](INPUTS).stages["hidden1"])).mean(axis=0)
    tau = float(np.sort(scores)[2] / scores.mean()) * 1.001  # one unit more than the two dead ones
    after = redo(state, KEY, inputs=INPUTS, tau=tau, stages=("hidden1",))
    rows = np.flatnonzero(~np.asarray(after.networks["online"].stage("hidden2").layers[0].weight).any(axis=0))
    np.testing.assert_array_equal(rows, np.sort(np.argsort(scores)[:3]))


def test_normalisation_parameters_of_a_recycled_unit_are_drawn_again_and_statistics_kept():
    state = aged_state(maker)
    network = state.networks["online"]
    norm = network.stage("hidden1").layers[2]
    scale, bias = jnp.full(6, 2.0), jnp.zeros(6).at[3].set(-1e3)
    network = eqx.tree_at(
        lambda n: (n.stage("hidden1").layers[2].scale, n.stage("hidden1").layers[2].bias),
        network,
        (scale, bias),
    )
    state = LearnerState({**state.networks, "online": network}, state.optimizer, None, (), state.origin)
    after = redo(state, KEY, inputs=INPUTS, tau=0.0, stages=("hidden1",)).networks["online"]
    renewed = after.stage("hidden1").layers[2]
    np.testing.assert_array_equal(renewed.scale, scale.at[3].set(1.0))
    np.testing.assert_array_equal(renewed.bias, np.zeros(6))
    assert bits(renewed.mean) == bits(norm.mean)
    np.testing.assert_array_equal(after(INPUTS).output, network(INPUTS).output)


def test_channels_of_convolutions_and_their_flattened_outputs():
    make = cnn((4, 4, 2), 3, channels=(3, 4), dense=(5,), pools=(1, 2))
    state = with_dead(aged_state(make), {"conv1": [2], "conv2": [0, 3]})
    after = redo(state, KEY, inputs=IMAGES, tau=0.0)
    old, new = state.networks["online"], after.networks["online"]
    fresh = fresh_network(state, KEY, "online")
    np.testing.assert_allclose(new(IMAGES).output, old(IMAGES).output, atol=1e-6)
    first, second = new.stage("conv1").layers[0], new.stage("conv2").layers[0]
    np.testing.assert_array_equal(first.weight[..., 2], fresh.stage("conv1").layers[0].weight[..., 2])
    np.testing.assert_array_equal(first.weight[..., :2], old.stage("conv1").layers[0].weight[..., :2])
    np.testing.assert_array_equal(second.weight[:, :, 2, :], 0)
    assert np.asarray(second.weight[:, :, :2, :]).all()
    dense = next(layer for layer in new.stage("dense1").layers if isinstance(layer, Dense)).weight
    assert dense.shape == (5, 16)  # 2 x 2 places of 4 channels, channels fastest
    np.testing.assert_array_equal(~np.asarray(dense).any(axis=0), [True, False, False, True] * 4)


def test_equinox_linear_layers_are_recycled_too():
    def make(key):
        one, two = jax.random.split(key)
        hidden = Chain(Flatten(), Network(x=eqx.nn.Linear(4, 4, key=one)).stages[0], Activation(relu))
        return Network(hidden=hidden, head=eqx.nn.Linear(4, 4, key=two))

    state = aged_state(make)
    where = lambda n: n.stages[0].layers[1].module.bias  # noqa: E731
    network = eqx.tree_at(where, state.networks["online"], jnp.array([1.0, -1e3, 1.0, 1.0]))
    state = LearnerState({**state.networks, "online": network}, state.optimizer, None, (), state.origin)
    after = redo(state, KEY, inputs=INPUTS, tau=0.0).networks["online"]
    fresh = fresh_network(state, KEY, "online")
    weight, drawn, old = (n.stages[0].layers[1].module.weight for n in (after, fresh, network))
    np.testing.assert_array_equal(weight[1], drawn[1])
    np.testing.assert_array_equal(weight[np.array([0, 2, 3])], old[np.array([0, 2, 3])])
    np.testing.assert_array_equal(after.stages[1].module.weight[:, 1], 0)
    assert np.asarray(after.stages[1].module.weight)[:, [0, 2, 3]].all()


def test_lanes_recycle_their_own_units():
    states = [with_dead(aged_state(plain_maker, seed=s), {"hidden1": dead}) for s, dead in enumerate(([0], [1, 2, 5]))]
    keys = jax.random.split(KEY, 2)
    run = jax.jit(jax.vmap(lambda s, k: redo(s, k, inputs=INPUTS, tau=0.0)))
    after = run(stacked(states), keys)
    for index, state in enumerate(states):
        alone = redo(state, keys[index], inputs=INPUTS, tau=0.0)
        changed(state, lane(after, index))
        for one, other in zip(jax.tree.leaves(lane(after, index)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_optimisers_other_than_adam():
    for optimizer in (optax.sgd(0.1), optax.chain(optax.clip(1.0), optax.rmsprop(0.1, momentum=0.9))):
        state = with_dead(aged_state(plain_maker, optimizer), {"hidden2": [0]})
        after = redo(state, KEY, inputs=INPUTS, tau=0.0)
        changed(state, after)
        for path, array in jax.tree_util.tree_flatten_with_path(after.optimizer["online"]["head"])[0]:
            if array.shape == (5, 3):
                assert not np.asarray(array[0]).any(), path
                assert np.asarray(array[1:]).all(), path


def test_frozen_stages_have_no_moments_to_clear():
    state = with_dead(aged_state(plain_maker, frozen=("hidden1",)), {"hidden1": [0]})
    after = redo(state, KEY, inputs=INPUTS, tau=0.0)
    assert set(after.optimizer["online"]) == {"hidden2", "head"}


def test_intervention_takes_its_inputs_from_the_context():
    state = some_dead()
    after = Redo(tau=0.0)(state, KEY, Context(inputs=INPUTS))
    assert bits(after) == bits(redo(state, KEY, inputs=INPUTS, tau=0.0))
    with pytest.raises(ValueError, match="on=task"):
        Redo()(state, KEY)


def test_networks_it_cannot_follow_are_refused_by_stage():
    def crelus(key):
        one, two = jax.random.split(key)
        hidden = Chain(Dense(4, 3, key=one), Activation(crelu))
        return Network(hidden=hidden, head=Dense(6, 2, key=two))

    with pytest.raises(ValueError, match="'hidden' puts out 6 units and its last kernel makes 3"):
        redo(aged_state(crelus), KEY, inputs=INPUTS)
    with pytest.raises(ValueError, match="takes in the units of stage 'head'"):
        redo(aged_state(plain_maker), KEY, inputs=INPUTS, stages=("head",))
    with pytest.raises(KeyError, match="no stage"):
        redo(aged_state(plain_maker), KEY, inputs=INPUTS, stages=("body",))


def test_branches_and_unknown_layers_are_refused():
    class Block(Dense):
        """A dense layer beside another one."""

        side: Dense

        def __init__(self, key):
            super().__init__(4, 4, key=key)
            self.side = Dense(4, 4, key=key)

        def __call__(self, x, *, train=False, key=None):
            return x @ self.weight.T + self.side(x)[0], self

    def branched(key):
        return Network(hidden=Block(key), head=Dense(4, 2, key=key))

    with pytest.raises(ValueError, match="several kernels or layers"):
        redo(aged_state(branched), KEY, inputs=INPUTS)

    def foreign(key):
        return Network(hidden=eqx.nn.MLP(4, 4, 4, 0, key=key), head=Dense(4, 2, key=key))

    with pytest.raises(ValueError, match="MLP"):
        redo(aged_state(foreign), KEY, inputs=INPUTS)
