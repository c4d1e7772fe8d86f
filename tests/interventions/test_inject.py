"""The invariants of plasticity injection (section 9 of its specification), on MLPs and convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intervention_states import KEY, bits, lane, noisy, stacked
from neoteny.interventions import (
    FoldLinear,
    HeadNormAbove,
    Inject,
    InjectedMoments,
    PrepareInjection,
    Variant,
    fold_linear,
    inject,
    prepare_injection,
    reset,
)
from neoteny.learners import Batch, LearnerState, Origin, attach, init_stages, supervised
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import Transitions
from neoteny.networks import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    Folded,
    Injected,
    Network,
    Norm,
    cnn,
    head_per_task,
    injections,
    minatar,
    mlp,
    nature,
    split_trainable,
)
from neoteny.networks.activations import Activation, relu
from neoteny.regularizers import L2, L2ToInit
from neoteny.training import Fork, Intervene, Save, Switch, Train
from neoteny.training.clock import Clock
from training_cases import EXPERIMENT, Config, finish, make_runner

MLP = mlp(7, [6, 5], 3)
CNN = cnn((6, 6, 2), 3, channels=(3,), dense=(5,))
MINATAR = minatar((6, 6, 2), 3, channels=3, width=5)
NATURE = nature(3, input_shape=(36, 36, 1), width=32)
EVERY_SPLIT = [(MLP, (7,), stage) for stage in ("hidden1", "hidden2", "head")]
EVERY_SPLIT += [(MINATAR, (6, 6, 2), stage) for stage in ("conv1", "dense1", "head")]
EVERY_SPLIT += [(NATURE, (36, 36, 1), "dense1")]
ENCODER_AND_HEAD = [(maker, shape, stage) for maker, shape, stage in EVERY_SPLIT if stage in ("hidden2", "dense1")]


def inputs(shape, rows=256, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, *shape)))


def batch(shape, step, rows=16):
    labels = np.random.default_rng(1_000 + step).integers(0, 3, rows)
    return Batch(inputs(shape, rows, step), jnp.asarray(labels, jnp.int32))


def wide(maker):
    """The maker with float64 arrays, if these are switched on."""

    def make(key):
        return jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, maker(key))

    return make


def two_networks(maker, optimizer=None) -> LearnerState:
    """An online network and a target with parameters of its own, both some way from initialisation."""
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    online, target = noisy(maker(jax.random.key(0)), 1), noisy(maker(jax.random.key(0)), 2)
    origin = Origin({"online": maker}, {"online": optimizer})
    states = {"online": noisy(init_stages(optimizer, online), 3)}
    return LearnerState({"online": online, "target": target}, states, None, (("target", "online"),), origin)


def run(learner, state, shape, steps, start=0):
    update = eqx.filter_jit(learner.update)
    for step in range(start, start + steps):
        state, metrics = update(state, batch(shape, step), jax.random.fold_in(KEY, step))
    return state, metrics


def head_of(state, stage):
    network = state.networks["online"]
    return network.stages[network.index(stage) :]


def encoder_of(tree, stage):
    return tree.stages[: tree.index(stage)]


def relative(one, other):
    scale = max(1.0, float(np.max(np.abs(np.asarray(one)))))
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other)))) / scale


def gradient(network, data):
    def loss(network):
        logits = network(data.inputs).output
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, data.targets))

    return eqx.filter_grad(loss)(network)


# Predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("maker", "shape", "stage"), EVERY_SPLIT)
def test_predictions_stay_in_online_and_target_after_one_two_and_three_injections(maker, shape, stage, double):
    with jax.enable_x64(double):
        state = two_networks(wide(maker) if double else maker)
        x = inputs(shape).astype(jnp.float64 if double else jnp.float32)
        before = {name: network(x).output for name, network in state.networks.items()}
        for count in (1, 2, 3):
            state = inject(state, jax.random.key(count), stage=stage)
            for name, network in state.networks.items():
                after = network(x).output
                assert after.dtype == x.dtype
                np.testing.assert_array_equal(after, before[name])  # op by op: bit for bit
                if count == 3:
                    compiled = eqx.filter_jit(network)(x).output
                    assert relative(before[name], compiled) <= (1e-12 if double else 1e-5)
                assert injections(network.stage(stage)) == count
            # Between injections the newest head moves, in the online network alone.
            trained, rest = split_trainable(state.networks["online"])
            moved = eqx.combine(noisy(trained, count), rest)
            state = eqx.tree_at(lambda s: s.networks["online"], state, moved)
            before["online"] = moved(x).output


def test_an_injection_before_an_earlier_one_freezes_all_of_it():
    state = two_networks(MLP)
    x = inputs((7,))
    for stage in ("head", "hidden2", "hidden1", "hidden1"):
        before = [network(x).output for network in state.networks.values()]
        state = inject(state, KEY, stage=stage)
        for network, outputs in zip(state.networks.values(), before, strict=True):
            np.testing.assert_array_equal(network(x).output, outputs)
    assert trained_count(state.networks["online"]) == trained_count(MLP(KEY))
    with pytest.raises(ValueError, match="'head' lies inside a head injected at 'hidden1'"):
        inject(state, KEY, stage="head")


def trained_count(network):
    return sum(array.size for array in jax.tree.leaves(split_trainable(network)[0]))


def test_trained_parameters_keep_their_number_and_stored_ones_grow_by_two_heads():
    state = two_networks(MLP)
    after = inject(state, KEY, stage="hidden2")
    encoder, head = 7 * 6 + 6, 6 * 5 + 5 + 5 * 3 + 3
    assert trained_count(after.networks["online"]) == encoder + head
    stored = sum(a.size for a in jax.tree.leaves(eqx.filter(after.networks["online"], eqx.is_array)))
    assert stored == encoder + 3 * head


def test_the_pair_is_the_same_in_online_and_target_and_theta_is_each_ones_own():
    before = two_networks(MLP)
    after = inject(before, KEY, stage="hidden2")
    online, target = after.networks["online"], after.networks["target"]
    for name in ("hidden2", "head"):
        one, other = online.stage(name), target.stage(name)
        assert bits(one.heads[1]) == bits(other.heads[1]) == bits(one.negatives[0].layer)
        assert bits(one.negatives) == bits(other.negatives)
        for network in ("online", "target"):
            kept = after.networks[network].stage(name).heads[0].layer
            assert bits(kept) == bits(before.networks[network].stage(name))
    assert bits(online.stage("hidden1")) == bits(before.networks["online"].stage("hidden1"))
    assert jax.tree.structure(online) == jax.tree.structure(target)  # so a whole copy synchronises them


def test_batch_norm_and_dropout_of_all_branches_cancel_in_training_too():
    def maker(key):
        one, two, head = (jax.random.fold_in(key, n) for n in range(3))
        return Network(
            hidden1=Chain(Dense(7, 6, key=one), Activation(relu)),
            hidden2=Chain(Dense(6, 5, key=two), BatchNorm(5), Activation(relu), Dropout(0.5)),
            head=Dense(5, 3, key=head),
        )

    state = two_networks(maker)
    network, x, key = state.networks["online"], inputs((7,)).astype(jnp.float32), jax.random.key(9)
    after = inject(state, KEY, stage="hidden2").networks["online"]
    called = after(x, train=True, key=key)
    np.testing.assert_array_equal(called.output, network(x, train=True, key=key).output)
    stage = called.network.stage("hidden2")
    assert bits(stage.heads[1]) == bits(stage.negatives[0].layer)  # statistics follow alike
    assert bits(stage.heads[1]) != bits(after.stage("hidden2").heads[1])
    np.testing.assert_array_equal(called.network(x).output, network(x, train=True, key=key).network(x).output)


# Gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_only_the_new_head_and_the_encoder_have_gradients(maker, shape, stage):
    state = inject(two_networks(maker), KEY, stage=stage)
    found = gradient(state.networks["online"], batch(shape, 0))
    for injected in found.stages[found.index(stage) :]:
        for leaf in jax.tree.leaves((injected.heads[0], injected.negatives)):
            np.testing.assert_array_equal(leaf, 0)
        # One bias shared by all outputs (Nature) moves no softmax: its gradient is 0.
        trained = [leaf for leaf in jax.tree.leaves(injected.heads[1]) if leaf.size > 1]
        assert all(np.any(np.asarray(leaf) != 0) for leaf in trained)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(encoder_of(found, stage)))


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_the_encoders_gradient_is_the_same_right_after(maker, shape, stage):
    state = two_networks(maker)
    data = batch(shape, 0)
    before = encoder_of(gradient(state.networks["online"], data), stage)
    after = encoder_of(gradient(inject(state, KEY, stage=stage).networks["online"], data), stage)
    wrong = inject(state, KEY, stage=stage, variant=Variant.STOP_Z).networks["online"]
    stopped = encoder_of(gradient(wrong, data), stage)
    for one, other, without in zip(*map(jax.tree.leaves, (before, after, stopped)), strict=True):
        scale = np.max(np.abs(one))
        assert np.max(np.abs(one - other)) <= 1e-6 * scale
        assert np.max(np.abs(one - without)) > 1e-2 * scale


def dense(stage):
    """Weight and bias of a frozen or free dense stage, float64."""
    layers = [a for a in jax.tree.leaves(eqx.filter(stage, eqx.is_array))]
    return [np.asarray(a, np.float64) for a in layers]


def reference_encoder_gradient(network, data):
    """By hand: MLP 7-6-5-3 injected at hidden2; the input gradients of the three heads are summed."""
    x, y = np.asarray(data.inputs), np.asarray(data.targets)
    w, b = dense(network.stage("hidden1"))
    first = x @ w.T + b
    z = np.maximum(first, 0)
    hidden, head = network.stage("hidden2"), network.stage("head")
    branches = [(1, hidden.heads[0], head.heads[0]), (1, hidden.heads[1], head.heads[1])]
    branches += [(-1, hidden.negatives[0], head.negatives[0])]
    output = 0
    for sign, one, two in branches:
        (w1, b1), (w2, b2) = dense(one), dense(two)
        output = output + sign * (np.maximum(z @ w1.T + b1, 0) @ w2.T + b2)
    shares = np.exp(output - output.max(axis=1, keepdims=True))
    error = (shares / shares.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(y)
    back = 0
    for sign, one, two in branches:
        (w1, b1), (w2, _) = dense(one), dense(two)
        back = back + sign * ((error @ w2) * (z @ w1.T + b1 > 0)) @ w1
    back = back * (first > 0)
    return [back.T @ x, back.sum(0)]


def summed_encoder_gradient(network, stage, data):
    """The encoder's gradient from the input gradients of theta, theta'_1 and -theta'_2, each a network of its own."""
    split = network.index(stage)
    encoder = Network(**dict(zip(network.names[:split], network.stages[:split], strict=True)))
    injected = dict(zip(network.names[split:], network.stages[split:], strict=True))
    heads = [
        (1, Network(**{name: layer.heads[0].layer for name, layer in injected.items()})),
        (1, Network(**{name: layer.heads[1] for name, layer in injected.items()})),
        (-1, Network(**{name: layer.negatives[0].layer for name, layer in injected.items()})),
    ]
    parameters, rest = eqx.partition(encoder, eqx.is_inexact_array)
    z, back = jax.vjp(lambda held: eqx.combine(held, rest)(data.inputs).output, parameters)
    parts = [(sign, *jax.vjp(lambda z, head=head: head(z).output, z)) for sign, head in heads]
    outputs = sum(sign * output for sign, output, _ in parts)
    error = (jax.nn.softmax(outputs) - jnp.eye(outputs.shape[1])[data.targets]) / len(data.targets)
    (found,) = back(sum(sign * head_back(error)[0] for sign, _, head_back in parts))
    return found.stages


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_after_ten_updates_the_gradient_sums_three_heads_in_every_network(maker, shape, stage):
    """With weight decay, momentum and clipping on."""
    with jax.enable_x64(True):
        optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, momentum=0.9))
        learner = supervised(wide(maker), optimizer, before=optax.clip_by_global_norm(0.5))
        state, data = learner.init(KEY), batch(shape, 99)
        for variant, agrees in ((Variant.INJECT, True), (Variant.STOP_Z, False)):
            after, _ = run(learner, inject(state, KEY, stage=stage, variant=variant), shape, 10)
            network = after.networks["online"]
            found = jax.tree.leaves(encoder_of(gradient(network, data), stage))
            reference = jax.tree.leaves(summed_encoder_gradient(network, stage, data))
            assert len(found) == len(reference) > 0
            for one, other in zip(found, reference, strict=True):
                scale = np.max(np.abs(other))
                assert bool(np.max(np.abs(one - other)) <= 1e-9 * scale) is agrees


def test_after_ten_updates_the_encoders_gradient_is_the_sum_over_three_heads():
    with jax.enable_x64(True):
        learner = supervised(wide(MLP), optax.adam(3e-2))
        state, _ = run(learner, learner.init(KEY), (7,), 20)
        data = batch((7,), 99)
        for variant, agrees in ((Variant.INJECT, True), (Variant.STOP_Z, False)):
            after, _ = run(learner, inject(state, KEY, stage="hidden2", variant=variant), (7,), 10)
            network = after.networks["online"]
            found = jax.tree.leaves(gradient(network, data).stage("hidden1"))
            for one, reference in zip(found, reference_encoder_gradient(network, data), strict=True):
                assert (relative(one, reference) <= 1e-10) is agrees


# Training ---------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "momentum": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-2, momentum=0.9)),
    "rmsprop": optax.chain(
        optax.add_decayed_weights(0.1), optax.rmsprop(1e-3, decay=0.95, centered=True, momentum=0.9)
    ),
}


@pytest.mark.parametrize(
    ("maker", "shape", "stage", "optimizer"),
    [
        *((MLP, (7,), "hidden2", name) for name in OPTIMIZERS),
        (MLP, (7,), "hidden1", "adamw"),
        (MINATAR, (6, 6, 2), "dense1", "adamw"),
        (MINATAR, (6, 6, 2), "conv1", "momentum"),
        (NATURE, (36, 36, 1), "dense1", "rmsprop"),
        (NATURE, (36, 36, 1), "dense1", "momentum"),
    ],
)
def test_frozen_heads_keep_every_bit_under_decay_momentum_and_clipping(maker, shape, stage, optimizer):
    learner = supervised(maker, OPTIMIZERS[optimizer], before=optax.clip_by_global_norm(0.05), regularizer=L2(1e-3))
    state, _ = run(learner, learner.init(KEY), shape, 3)
    for count in (1, 2):
        state = inject(state, jax.random.key(count), stage=stage)
        after, _ = run(learner, state, shape, 100)
        for old, new in zip(head_of(state, stage), head_of(after, stage), strict=True):
            assert bits((old.heads[:-1], old.negatives)) == bits((new.heads[:-1], new.negatives))
            fresh, trained = bits(old.heads[-1]), bits(new.heads[-1])
            assert all(fresh[path] != trained[path] for path in fresh)
        state = after


def test_q_learning_with_its_target():
    learner = dqn(
        MINATAR,
        optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(1e-2, centered=True, momentum=0.9)),
        target_period=4,
        before=optax.clip_by_global_norm(0.1),
    )
    update = eqx.filter_jit(lambda s, b, k, c: learner.periodic(learner.update(s, b, k)[0], c))
    clock = Clock.start()

    def train(state, steps):
        nonlocal clock
        for step in range(steps):
            clock = clock.tick()
            seen, after = (inputs((6, 6, 2), 16, 2 * int(clock.update) + i).astype(jnp.float32) for i in (0, 1))
            actions = batch((6, 6, 2), step).targets
            rewards, discounts = seen[:, 0, 0, 0], jnp.full(16, 0.9)
            state = update(state, Transitions(seen, actions, rewards, discounts, after), KEY, clock)
        return state

    state = train(learner.init(KEY), 6)  # two updates after a copy: the networks differ
    assert bits(state.networks["online"]) != bits(state.networks["target"])
    x = inputs((6, 6, 2)).astype(jnp.float32)
    before = {name: network(x).output for name, network in state.networks.items()}
    injected = inject(state, KEY, stage="dense1")
    for name, network in injected.networks.items():
        np.testing.assert_array_equal(network(x).output, before[name])
    one = train(injected, 1)
    assert bits(one.networks["target"]) == bits(injected.networks["target"])
    copied = train(one, 1)  # the eighth update copies all, the frozen head too
    assert bits(copied.networks["target"]) == bits(copied.networks["online"])
    later = train(copied, 3)
    for old, new in zip(head_of(injected, "dense1"), head_of(later, "dense1"), strict=True):
        assert bits((old.heads[0], old.negatives)) == bits((new.heads[0], new.negatives))
        assert bits(old.heads[1]) != bits(new.heads[1])


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_clipping_by_the_global_norm_sees_trained_parameters_only(maker, shape, stage):
    clip, rate = 1e-3, 0.5
    learner = supervised(maker, optax.sgd(rate), before=optax.clip_by_global_norm(clip))
    state = inject(learner.init(KEY), KEY, stage=stage)
    after, _ = run(learner, state, shape, 1)
    changes = [
        np.asarray(new, np.float64) - np.asarray(old, np.float64)
        for old, new in zip(
            *(jax.tree.leaves(split_trainable(s.networks["online"])[0]) for s in (state, after)), strict=True
        )
    ]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(c**2) for c in changes)), rate * clip, rtol=1e-3)


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_moments(maker, shape, stage):
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = two_networks(maker, optimizer)
    network = state.networks["online"]
    encoder, head = network.names[: network.index(stage)], network.names[network.index(stage) :]
    held = state.optimizer["online"]
    fresh = inject(state, KEY, stage=stage).optimizer["online"]
    for name in encoder:
        assert bits(fresh[name]) == bits(held[name])
    for name in head:
        assert int(fresh[name][0].count) == 0
        assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(fresh[name]))
        shapes = [leaf.shape for leaf in jax.tree.leaves(held[name])]
        assert [leaf.shape for leaf in jax.tree.leaves(fresh[name])] == shapes  # none for frozen heads
    inherited = inject(state, KEY, stage=stage, moments="inherit").optimizer["online"]
    for name in held:
        assert list(bits(inherited[name]).values()) == list(bits(held[name]).values())
    nothing = inject(state, KEY, stage=stage, moments=InjectedMoments.RESET_ALL).optimizer["online"]
    for name in encoder:
        assert bits(nothing[name]) == bits(init_stages(optimizer, network)[name])
    for name in head:
        assert bits(nothing[name]) == bits(fresh[name])
    with pytest.raises(ValueError, match="'other' is not a valid"):
        inject(state, KEY, stage="head", moments="other")


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_the_first_adam_update_of_the_new_head_has_the_size_of_the_learning_rate(maker, shape, stage):
    rate = 1e-3
    learner = supervised(maker, optax.adam(rate, eps=1e-12), before=optax.clip_by_global_norm(1.0))
    state, _ = run(learner, learner.init(KEY), shape, 50)
    state = inject(state, KEY, stage=stage)
    found = gradient(state.networks["online"], batch(shape, 50))
    after, _ = run(learner, state, shape, 1, start=50)
    slopes = found.stages[found.index(stage) :]
    for old, new, slope in zip(*(head_of(s, stage) for s in (state, after)), slopes, strict=True):
        for one, other, g in zip(*map(jax.tree.leaves, (old.heads[1], new.heads[1], slope.heads[1])), strict=True):
            steps = np.abs(np.asarray(one - other))[np.abs(np.asarray(g)) > 1e-6]
            # One bias shared by all outputs (Nature) moves no softmax.
            assert len(steps) > 0 or g.size == 1
            np.testing.assert_allclose(steps, rate, rtol=1e-2)


def test_a_penalty_and_a_rule_with_memories_follow():
    def learner(penalty):
        return supervised(MLP, optax.sgd(0.1), regularizer=penalty, before=optax.trace(0.9))

    with_memory = learner(L2ToInit(0.1))
    state, _ = run(with_memory, with_memory.init(KEY), (7,), 5)
    after = inject(state, KEY, stage="hidden2")
    old, new = state.memory, after.memory
    assert bits(new["penalty"].stage("hidden1")) == bits(old["penalty"].stage("hidden1"))
    for name in ("hidden2", "head"):
        drawn = after.networks["online"].stage(name).heads[1]
        assert bits(new["penalty"].stage(name).heads[1]) == bits(drawn)
        assert not jax.tree.leaves(new["penalty"].stage(name).negatives)
        assert all(np.all(np.asarray(a) == 0) for a in jax.tree.leaves(new["rule"].trace[name]))
    assert bits(new["rule"].trace["hidden1"]) == bits(old["rule"].trace["hidden1"])
    # At injection the new head is where it began: the penalty is the encoder's alone.
    view = with_memory.view(after)
    plain = learner(None).view(after)
    data = batch((7,), 7)
    pulled = view.loss(view.network, data, None) - plain.loss(plain.network, data, None)
    pairs = zip(
        *(jax.tree.leaves(tree.stage("hidden1")) for tree in (state.networks["online"], old["penalty"])), strict=True
    )
    np.testing.assert_allclose(pulled, 0.1 * sum(np.sum(np.square(a - b)) for a, b in pairs), rtol=1e-4)
    run(with_memory, after, (7,), 2)


# Ablations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_a_placebo_and_pairs_not_in_force_are_the_control_up_to_rounding(maker, shape, stage):
    with jax.enable_x64(True):
        learner = supervised(wide(maker), optax.adamw(1e-2, weight_decay=0.1), before=optax.clip_by_global_norm(0.1))
        state, _ = run(learner, learner.init(KEY), shape, 5)
        placebo = inject(state, KEY, stage=stage, variant=Variant.PLACEBO)
        prepared = prepare_injection(state, stage=stage, slots=2)
        x = inputs(shape)
        control, *others = (run(learner, s, shape, 20)[0].networks["online"] for s in (state, placebo, prepared))
        for other in others:
            np.testing.assert_allclose(other(x).output, control(x).output, rtol=1e-10, atol=1e-12)
            encoders = (jax.tree.leaves(encoder_of(n, stage)) for n in (control, other))
            for one, two in zip(*encoders, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)
        frozen = others[0].stage("head")
        assert bits(frozen.heads[1]) == bits(placebo.networks["online"].stage("head").heads[1])
        assert trained_count(placebo.networks["online"]) == trained_count(state.networks["online"])


def test_all_heads_can_be_trained():
    learner = supervised(MLP, optax.adam(1e-2))
    state = inject(learner.init(KEY), KEY, stage="hidden2", variant=Variant.TRAIN_ALL)
    after, _ = run(learner, state, (7,), 3)
    for old, new in zip(head_of(state, "hidden2"), head_of(after, "hidden2"), strict=True):
        one, other = bits(old), bits(new)
        assert all(one[path] != other[path] for path in one)
    with pytest.raises(ValueError, match="three heads"):
        inject(learner.init(KEY), KEY, stage="head", variant=Variant.TRAIN_ALL, moments="inherit")
    with pytest.raises(ValueError, match="placebo goes on"):
        inject(learner.init(KEY), KEY, stage="head", variant=Variant.PLACEBO, moments="inherit")


def test_the_encoder_can_be_frozen():
    learner = supervised(MLP, optax.adamw(1e-2, weight_decay=0.1))
    state = inject(learner.init(KEY), KEY, stage="hidden2", freeze_encoder=True)
    assert set(state.optimizer["online"]) == {"hidden2", "head"}
    after, _ = run(learner, state, (7,), 3)
    assert bits(after.networks["online"].stage("hidden1")) == bits(state.networks["online"].stage("hidden1"))


# Draws ------------------------------------------------------------------------------------------------------------


def new_head(state):
    return np.asarray(state.networks["online"].stage("head").heads[1].weight)


def test_draws_differ_between_lanes_and_networks_and_repeat_with_the_key():
    states, keys = [two_networks(MLP), two_networks(MLP)], jax.random.split(KEY, 2)
    origin = states[0].origin
    states = [LearnerState(s.networks, s.optimizer, None, s.followers, origin) for s in states]
    after = jax.jit(jax.vmap(lambda s, k: inject(s, k, stage="hidden2")))(stacked(states), keys)
    first, second = (new_head(lane(after, i)) for i in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(first, new_head(inject(states[0], keys[0], stage="hidden2")), rtol=1e-6)
    again = inject(inject(states[0], keys[0], stage="head"), keys[1], stage="head")
    earlier, newest = (head for head in again.networks["online"].stage("head").heads[1:])
    assert not np.array_equal(earlier.layer.weight, newest.weight)


def test_a_draw_is_neither_the_initial_one_nor_a_resets():
    learner = supervised(MLP, optax.sgd(0.1))
    state = learner.init(KEY)
    initial = np.asarray(state.networks["online"].stage("head").weight)
    injected = new_head(inject(state, KEY, stage="head"))
    drawn = np.asarray(reset(state, KEY, stages=("head",)).networks["online"].stage("head").weight)
    assert not np.array_equal(injected, initial)
    assert not np.array_equal(injected, drawn)


# Growing, folding, gates ------------------------------------------------------------------------------------------


GROWN_NATURE = nature(3, input_shape=(36, 36, 1), width=40)


@pytest.mark.parametrize(
    ("maker", "shape", "stage", "grown"),
    [
        (MINATAR, (6, 6, 2), "dense1", minatar((6, 6, 2), 3, channels=3, width=40)),
        (NATURE, (36, 36, 1), "dense1", GROWN_NATURE),
    ],
)
def test_a_wider_head_of_a_convolutional_network_keeps_the_outputs_and_trains(maker, shape, stage, grown):
    learner = supervised(maker, optax.adamw(1e-2, weight_decay=0.1), before=optax.clip_by_global_norm(0.1))
    state, _ = run(learner, learner.init(KEY), shape, 2)
    after = inject(state, KEY, stage=stage, maker=grown)
    x = inputs(shape)
    np.testing.assert_array_equal(after.networks["online"](x).output, state.networks["online"](x).output)
    assert trained_count(after.networks["online"]) == trained_count(grown(KEY))
    later, _ = run(learner, after, shape, 2)
    for old, new in zip(head_of(after, stage), head_of(later, stage), strict=True):
        assert bits((old.heads[0], old.negatives)) == bits((new.heads[0], new.negatives))
        assert bits(old.heads[1]) != bits(new.heads[1])


@pytest.mark.parametrize("stage", ["hidden1", "hidden2"])
def test_a_wider_head_keeps_the_outputs_and_trains(stage):
    learner = supervised(MLP, optax.adam(1e-2))
    state, _ = run(learner, learner.init(KEY), (7,), 5)
    grown = mlp(7, [6, 40], 3)
    after = inject(state, KEY, stage=stage, maker=grown)
    x = inputs((7,))
    np.testing.assert_array_equal(after.networks["online"](x).output, state.networks["online"](x).output)
    assert trained_count(after.networks["online"]) == trained_count(grown(KEY))
    assert after.networks["online"](x).stages["hidden2"].shape == (256, 5 + 2 * 40)
    run(learner, after, (7,), 2)
    back = inject(after, KEY, stage=stage)  # and the learner's own size again
    np.testing.assert_array_equal(back.networks["online"](x).output, after.networks["online"](x).output)
    with pytest.raises(ValueError, match="has shape"):
        inject(state, KEY, stage=stage, maker=grown, moments="inherit")


def test_a_head_that_does_not_fit_is_refused():
    state = two_networks(MLP)
    with pytest.raises(ValueError, match="must have the stages hidden2, head; its maker gives hidden2, hidden3, head"):
        inject(state, KEY, stage="hidden2", maker=mlp(7, [6, 5, 4], 3))
    other = inject(state, KEY, stage="hidden2", maker=mlp(7, [6, 5], 1))
    with pytest.raises(ValueError, match="one output shape"):
        other.networks["online"](inputs((7,)))
    with pytest.raises(KeyError, match="no stage 'body'"):
        inject(state, KEY, stage="body")
    with pytest.raises(ValueError, match="no stage number 3; the stages are hidden1"):
        inject(state, KEY, stage=3)
    with pytest.raises(TypeError, match="name or its position"):
        inject(state, KEY, stage=True)
    assert bits(inject(state, KEY, stage=-2)) == bits(inject(state, KEY, stage="hidden2"))


@pytest.mark.parametrize(
    ("maker", "shape", "count", "fixed", "trained"),
    [
        *((MLP, (7,), count, 5 * 3 + 3, 5 * 3 + 3) for count in (1, 2, 3)),
        (MINATAR, (6, 6, 2), 2, 5 * 3 + 3, 5 * 3 + 3),
        (NATURE, (36, 36, 1), 2, 32 * 3 + 3, 32 * 3 + 1),  # one bias shared by all outputs becomes one of each
    ],
)
def test_folding_a_linear_head_equals_the_sum(maker, shape, count, fixed, trained):
    with jax.enable_x64(True):
        learner = supervised(wide(maker), optax.adam(1e-2))
        state = learner.init(KEY)
        for number in range(count):
            state, _ = run(learner, inject(state, jax.random.key(number), stage="head"), shape, 4)
        folded = fold_linear(state)
        assert isinstance(folded.networks["online"].stage("head"), Folded)
        x = inputs(shape)
        np.testing.assert_allclose(
            folded.networks["online"](x).output, state.networks["online"](x).output, rtol=1e-12, atol=1e-13
        )
        # It goes on as before, can be injected, and folded again.
        one, other = (run(learner, s, shape, 5)[0].networks["online"] for s in (state, folded))
        # The gradient of a shared bias is nothing but rounding under a softmax, and Adam makes steps of it.
        atol = 1e-12 if fixed == trained else 1e-9
        np.testing.assert_allclose(one(x).output, other(x).output, rtol=1e-10, atol=atol)
        again, _ = run(learner, inject(folded, KEY, stage="head"), shape, 3)
        refolded = fold_linear(again).networks["online"]
        np.testing.assert_allclose(refolded(x).output, again.networks["online"](x).output, rtol=1e-12, atol=1e-13)
        sizes = [leaf.size for leaf in jax.tree.leaves(eqx.filter(refolded.stage("head"), eqx.is_array))]
        assert sum(sizes) == fixed + trained


def test_what_cannot_be_folded():
    state = two_networks(MLP)
    with pytest.raises(ValueError, match="'head' is not an injected head by itself"):
        fold_linear(state)
    with pytest.raises(ValueError, match="'head' is not an injected head by itself"):
        fold_linear(inject(state, KEY, stage="hidden2"))
    with pytest.raises(ValueError, match="not in force"):
        fold_linear(prepare_injection(state, stage="head"))
    relu_head = Network(head=Chain(Dense(7, 3, key=KEY), Activation(relu)))
    with pytest.raises(ValueError, match="made of Chain, and only Dense"):
        fold_linear(inject(two_networks(lambda key: relu_head), KEY, stage="head"))


@pytest.mark.parametrize(("maker", "shape", "stage"), ENCODER_AND_HEAD)
def test_prepared_pairs_act_like_injections_when_put_in_force(maker, shape, stage):
    with jax.enable_x64(True):
        learner = supervised(wide(maker), optax.adamw(1e-2, weight_decay=0.1), before=optax.clip_by_global_norm(0.1))
        plain, _ = run(learner, learner.init(KEY), shape, 5)
        gated = prepare_injection(plain, stage=stage, slots=2)
        x = inputs(shape)
        for number in (1, 2):
            key = jax.random.key(number)
            before = gated.networks["online"](x).output
            structure = jax.tree.structure(gated)
            plain, gated = inject(plain, key, stage=stage), inject(gated, key, stage=stage)
            assert jax.tree.structure(gated) == structure
            np.testing.assert_array_equal(gated.networks["online"](x).output, before)
            assert int(injections(gated.networks["online"].stage(stage))) == number
            plain, gated = (run(learner, s, shape, 10)[0] for s in (plain, gated))
            np.testing.assert_allclose(
                gated.networks["online"](x).output, plain.networks["online"](x).output, rtol=1e-9, atol=1e-11
            )
        assert bits(inject(gated, KEY, stage=stage)) == bits(gated)  # no pair left
        assert bits(inject(gated, KEY, stage=stage, moments="reset_all")) == bits(gated)


def test_lanes_inject_at_different_times():
    learner = supervised(MLP, optax.adam(1e-2))
    states = [attach(learner.init(jax.random.key(s)), learner) for s in range(2)]
    prepared = [prepare_injection(s, stage="hidden2") for s in states]
    chosen = jnp.array([False, True])

    @jax.jit
    @jax.vmap
    def intervene(state, key, now):
        changed = inject(state, key, stage="hidden2")
        return jax.tree.map(lambda a, b: jnp.where(now, a, b) if eqx.is_array(a) else a, changed, state)

    after = intervene(stacked(prepared), jax.random.split(KEY, 2), chosen)
    counts = [int(injections(lane(after, i).networks["online"].stage("hidden2"))) for i in range(2)]
    assert counts == [0, 1]
    assert bits(lane(after, 0)) == bits(prepared[0])
    with pytest.raises(ValueError, match="no ablation"):
        inject(prepared[0], KEY, stage="hidden2", variant=Variant.PLACEBO)
    for stage in ("hidden1", "hidden2"):
        with pytest.raises(ValueError, match=r"'(hidden2|head)' is injected or prepared already"):
            prepare_injection(prepared[0], stage=stage)
    with pytest.raises(ValueError, match="at least 1"):
        prepare_injection(states[0], stage="hidden2", slots=0)


def test_the_time_can_depend_on_the_norm_of_the_head():
    state = two_networks(MLP)
    network = MLP(jax.random.key(0))
    when = HeadNormAbove("hidden2", factor=2.0)

    def scaled(factor):
        stages = {name: jax.tree.map(lambda a: a * factor, network.stage(name)) for name in ("hidden2", "head")}
        return LearnerState({"online": network.replace(**stages)}, state.optimizer, None, (), state.origin)

    assert not bool(when(scaled(1.0)))
    assert bool(when(scaled(4.0)))
    # The norm is the newest head's: an injection begins anew.
    assert not bool(when(inject(scaled(4.0), KEY, stage="hidden2")))


# As events and probes ---------------------------------------------------------------------------------------------


def test_interventions_equal_their_functions_and_are_values():
    state = two_networks(MLP)
    assert bits(Inject("hidden2")(state, KEY)) == bits(inject(state, KEY, stage="hidden2"))
    assert bits(PrepareInjection("head", slots=2)(state, KEY)) == bits(prepare_injection(state, stage="head", slots=2))
    once = inject(state, KEY, stage="head")
    assert bits(FoldLinear()(once, KEY)) == bits(fold_linear(once))
    assert len({Inject("head"), Inject("head"), Inject("head", variant=Variant.PLACEBO), FoldLinear()}) == 3


@dataclass(frozen=True)
class EveryLane:
    """For `when`: the lanes whose head has a weight above the threshold, so not all of them."""

    threshold: float

    def __call__(self, state):
        stage = state.networks["online"].stage("head")
        return jnp.max(stage.heads[-1].weight) > self.threshold


def in_a_run(tasks):
    first, second = tasks
    return [
        Switch(first),
        Train(first, 6),
        Intervene(PrepareInjection("hidden2")),
        Train(first, 4),
        Intervene(Inject("hidden2"), when=EveryLane(0.85)),
        Train(first, 4),
        Intervene(Inject("hidden1")),
        Train(first, 6),
        Fork({"control": (), "again": (Intervene(Inject("hidden1")),)}, then=(Switch(second), Train(second, 4))),
        Train(first, 4),
        Save("end"),
    ]


def test_a_run_killed_before_or_after_any_injection_goes_on_bit_for_bit():
    experiment = replace(EXPERIMENT, script=lambda config, tasks: tuple(in_a_run(tasks)))
    configs = [Config(seed=seed) for seed in range(4)]
    whole = make_runner(configs, experiment=experiment)
    whole.check()
    records, saves, ticks = finish(whole)
    earlier = whole.state.learner.networks["online"].stage("head").heads[0].layer
    counts = np.asarray(injections(earlier))
    assert 0 < counts.sum() < 4  # some lanes met the condition, not all
    stops = [n for n, tick in enumerate(ticks) if tick.kind == "intervene"]
    assert len(stops) == 4
    _, gated, earlier_stage, in_branch = stops
    for stop in (gated, gated + 1, earlier_stage, earlier_stage + 1, in_branch + 1):
        first = make_runner(configs, experiment=experiment)
        source, kept = first.ticks(), []
        for _ in range(stop):
            kept += next(source).records
        second = make_runner(configs, experiment=experiment)
        second.restore(first.cursor, first.arrays())
        rest, saves_rest, _ = finish(second)
        assert kept + rest == records
        for path, array in saves["end"].items():
            np.testing.assert_array_equal(array, saves_rest["end"][path], err_msg=path)


def test_stages_keep_their_names_and_show_the_units_of_all_heads():
    state = inject(two_networks(CNN), KEY, stage="conv1")
    stages = state.networks["online"](inputs((6, 6, 2), 4)).stages
    assert list(stages) == ["conv1", "dense1", "head"]
    assert stages["conv1"].shape == (4, 3, 3, 9)
    assert stages["dense1"].shape == (4, 15)
    assert stages["head"].shape == (4, 3)
    assert isinstance(state.networks["online"].stage("conv1"), Injected)


def test_layer_norm_stages_are_injected_too():
    state = two_networks(mlp(7, [6, 5], 3, norm=Norm.LAYER))
    x = inputs((7,))
    after = inject(state, KEY, stage="hidden1")
    np.testing.assert_array_equal(after.networks["target"](x).output, state.networks["target"](x).output)


def test_heads_by_task_are_refused():
    state = two_networks(head_per_task(MLP, (3, 3)))
    with pytest.raises(ValueError, match="a head for each task"):
        inject(state, KEY, stage="hidden2")


def test_a_stage_the_learner_freezes_stays_frozen():
    learner = supervised(MLP, optax.adam(1e-2), frozen=("hidden2",))
    state = inject(learner.init(KEY), KEY, stage="hidden2")
    assert set(state.optimizer["online"]) == {"hidden1", "head"}
    after, _ = run(learner, state, (7,), 2)
    assert bits(after.networks["online"].stage("hidden2")) == bits(state.networks["online"].stage("hidden2"))
