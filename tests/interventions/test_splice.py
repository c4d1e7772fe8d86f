"""Swaps between saves are exact: bitwise at the ends, batch-norm state with its layer, and nothing else changed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from intervention_states import KEY, aged_state, bits, changed, lane, maker, noisy, stacked
from neoteny.interventions import Context, Moments, Restore, Splice, UseHead, restore, restored, splice, spliced
from neoteny.learners import Batch, supervised
from neoteny.learners.learner import detach
from neoteny.networks import head_per_task

X = jax.random.normal(jax.random.key(3), (7, 4))
ONE, TWO = (noisy(maker(jax.random.key(seed)), seed) for seed in (20, 30))  # running moments differ too
HIDDEN = 2


def outputs(network) -> bytes:
    return np.asarray(network(X).output).tobytes()


def test_a_network_with_its_own_tunnel_is_itself_bitwise_at_every_stage():
    for stage in range(HIDDEN + 1):
        for network in (ONE, TWO):
            made = spliced(network, network, stage)
            assert bits(made) == bits(network)
            assert outputs(made) == outputs(network)


def test_every_stage_comes_from_where_the_cut_says_with_its_running_moments():
    for stage in range(HIDDEN + 1):
        made = spliced(ONE, TWO, stage)
        for position, name in enumerate(ONE.names):
            source = ONE if position < stage else TWO
            assert bits(made.stage(name)) == bits(source.stage(name)), (stage, name)
    mean = spliced(ONE, TWO, 1).stage("hidden1").layers[2].mean.value
    np.testing.assert_array_equal(mean, ONE.stage("hidden1").layers[2].mean.value)
    assert (mean != TWO.stage("hidden1").layers[2].mean.value).all()


def test_the_cut_may_be_traced_and_differ_between_lanes():
    cuts = jnp.arange(HIDDEN + 1)
    lanes = jax.jit(jax.vmap(lambda cut: spliced(ONE, TWO, cut, ONE)))(cuts)
    for cut in range(HIDDEN + 1):
        assert bits(lane(lanes, cut)) == bits(spliced(ONE, TWO, cut, ONE))


def test_resetting_no_layer_is_the_identity_and_all_layers_the_untrained_network():
    untrained, trained = maker(KEY), noisy(maker(KEY), 4)
    for position in range(len(trained.names) + 1):
        assert bits(restored(trained, untrained, position, position)) == bits(trained)
    assert bits(restored(trained, untrained, 0, len(trained.names))) == bits(untrained)
    one = restored(trained, untrained, 1, 2)
    assert bits(one.stage("hidden2")) == bits(untrained.stage("hidden2"))
    assert bits(one.stage("hidden1")) == bits(trained.stage("hidden1"))
    assert bits(one.stage("head")) == bits(trained.stage("head"))


def test_a_state_is_changed_in_the_stages_taken_and_their_moments_alone():
    state = aged_state()
    saved = {"online": ONE}
    found = changed(state, splice(state, KEY, extractor=saved, tunnel=None, stage=1))
    assert found
    assert all("hidden1" in path or "stages[0]" in path for path in found)
    assert any(path.startswith(".optimizer") for path in found)
    assert any("'target'" in path for path in found), "the follower goes along"
    assert not any("critic" in path for path in found)
    kept = changed(state, splice(state, KEY, extractor=saved, tunnel=None, stage=1, moments=Moments.KEEP))
    assert kept == {path for path in found if path.startswith(".networks")}


@pytest.mark.parametrize("moments", list(Moments))
def test_restoring_nothing_leaves_every_bit_of_the_state(moments):
    state = aged_state()
    assert not changed(state, restore(state, KEY, saved={"online": ONE}, first=1, last=1, moments=moments))


def test_traced_stages_restore_the_same_moments_as_known_ones():
    state, saved = aged_state(), {"online": ONE}
    traced = jax.jit(lambda n: detach(restore(state, KEY, saved=saved, first=n, last=n + 1)))
    for position in range(3):
        known = restore(state, KEY, saved=saved, first=position, last=position + 1)
        assert bits(traced(position)) == bits(detach(known))


def test_the_interventions_read_the_saves_they_declare():
    state = aged_state()
    context = Context(saved={"task1": {"online": ONE}, "task2": {"online": TWO}})
    swap = Splice("task1", "task2", 1, head="task1")
    assert swap.saves == ("task1", "task2")
    made = swap(state, KEY, context).networks["online"]
    assert bits(made) == bits(spliced(ONE, TWO, 1, ONE))
    assert Restore("task1").saves == ("task1",)
    assert bits(Restore("task1")(state, KEY, context).networks["online"]) == bits(ONE)
    with pytest.raises(ValueError, match="task3"):
        Splice("task1", "task3", 1)(state, KEY, context)


def test_lanes_are_spliced_each_from_its_own_saves():
    states, saves = [aged_state(seed=seed) for seed in range(2)], [{"online": n} for n in (ONE, TWO)]
    together = stacked([replace_origin(state, None) for state in states])

    def one(state, saved):
        return detach(splice(attach_origin(state, states[0]), KEY, extractor=saved, tunnel=None, stage=2))

    lanes = jax.vmap(one)(together, stacked(saves))
    for index in range(2):
        alone = splice(states[index], KEY, extractor=saves[index], tunnel=None, stage=2)
        assert bits(lane(lanes, index).networks) == bits(alone.networks)


def replace_origin(state, origin):
    return type(state)(state.networks, state.optimizer, state.memory, state.followers, origin)


def attach_origin(state, other):
    return replace_origin(state, other.origin)


def test_the_head_in_use_stays_and_another_can_be_asked_for():
    make = head_per_task(maker, (3, 3))
    state = aged_state(make=make)
    second = UseHead(1)(state, KEY)
    assert changed(state, second) == {f".networks['{name}'].stages[2].task.value" for name in ("online", "target")}
    made = splice(second, KEY, extractor=None, tunnel={"online": make(KEY)}, stage=1, head={"online": make(KEY)})
    assert int(made.networks["online"].stage("head").task.value) == 1
    with pytest.raises(ValueError, match="no head for task 2"):
        UseHead(2)(state, KEY)


def test_what_does_not_fit_is_said():
    state = aged_state()
    with pytest.raises(ValueError, match="no stage number 3"):
        splice(state, KEY, extractor={"online": ONE}, tunnel=None, stage=3)
    with pytest.raises(ValueError, match="first must not be beyond last"):
        restored(ONE, TWO, 2, 1)
    with pytest.raises(KeyError, match="no network 'online'"):
        splice(state, KEY, extractor={"actor": ONE}, tunnel=None, stage=1)
    with pytest.raises(ValueError, match="one integer"):
        spliced(ONE, TWO, jnp.float32(1))


def test_refitting_the_head_alone_moves_no_stage_by_a_bit():
    learner = supervised(maker, optax.sgd(0.1, momentum=0.9), frozen=("hidden1", "hidden2"))
    state = learner.init(KEY)
    spliced_state = splice(state, KEY, extractor={"online": ONE}, tunnel={"online": TWO}, stage=1)
    batch = Batch(X, jnp.arange(7, dtype=jnp.int32) % 3)
    after, _ = learner.update(spliced_state, batch, KEY)
    moved = {path for path in changed(spliced_state, after) if path.startswith(".networks")}
    trained = {path for path in moved if "mean" not in path and "variance" not in path}
    assert trained == {f".networks['online'].stages[2].{name}" for name in ("weight", "bias")}
    assert set(after.optimizer["online"]) == {"head"}
