"""Offline objectives against tables, dynamic programming and each other."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import CopyEvery, OfflineObjective, Outcomes, Polyak, Scalar, offline_q
from neoteny.learners.learner import Batch
from neoteny.learners.offline_q import rank_penalty
from neoteny.networks import Dense, Network, mlp
from neoteny.probes import effective_rank
from neoteny.probes.dormancy import dead_fraction
from neoteny.training.clock import Clock

STATES, ACTIONS, DISCOUNT = 5, 2, 0.9


def table(key):
    return Network(table=Dense(STATES, ACTIONS, key=key, use_bias=False))


def batch(seed: int = 0, rows: int = 40, over: float = 0.3) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        jnp.asarray(np.eye(STATES)[rng.integers(0, STATES, rows)], jnp.float32),
        Outcomes(
            jnp.asarray(rng.integers(0, ACTIONS, rows), jnp.int32),
            jnp.asarray(rng.normal(size=rows), jnp.float32),
            jnp.asarray(rng.random(rows) < over),
            jnp.asarray(np.eye(STATES)[rng.integers(0, STATES, rows)], jnp.float32),
            jnp.asarray(rng.integers(0, ACTIONS, rows), jnp.int32),
        ),
    )


def clock(update: int) -> Clock:
    return Clock(*(jnp.int32(value) for value in (update, 0, 0, update)))


def prepared(objective, maker=table, optimizer=None, seed=5, **settings):
    """A learner, and a state whose target network is another draw."""
    learner = offline_q(maker, optimizer or optax.sgd(0.5), objective=objective, discount=DISCOUNT, **settings)
    state = learner.init(jax.random.key(0))
    if "target" in state.networks:
        other = learner.init(jax.random.key(seed)).networks["target"]
        state = eqx.tree_at(lambda s: s.networks["target"], state, other)
    return learner, state


def online(state) -> np.ndarray:
    leaves = jax.tree.leaves(eqx.filter(state.networks["online"], eqx.is_array))
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in leaves])


def updated(objective, data, **settings) -> np.ndarray:
    learner, state = prepared(objective, **settings)
    return online(learner.update(state, data, jax.random.key(1))[0])


@pytest.mark.parametrize("double", [False, True])
def test_behaviour_values_are_q_where_the_next_action_is_the_greedy_one(double):
    _, state = prepared("q", double=double)
    data = batch()
    chooser = state.networks["online" if double else "target"]
    greedy = jnp.argmax(chooser(data.targets.next_observations).output, axis=1).astype(jnp.int32)
    same = data._replace(targets=data.targets._replace(next_actions=greedy))
    other = data._replace(targets=data.targets._replace(next_actions=1 - greedy))
    np.testing.assert_array_equal(updated("bve", same, double=double), updated("q", same, double=double))
    assert not np.allclose(updated("bve", other, double=double), updated("q", other, double=double))


@pytest.mark.parametrize("objective", ["q", "bve"])
def test_after_termination_and_without_discount_the_target_is_the_reward(objective):
    data = batch(over=1.1)
    assert bool(data.targets.terminated.all())
    rate, rows = 0.5, 40
    _, state = prepared(objective)
    before = np.asarray(state.networks["online"].stage("table").weight.T, np.float64)
    expected = before.copy()
    for row in range(rows):
        s, a = int(np.argmax(data.inputs[row])), int(data.targets.actions[row])
        expected[s, a] += rate * (float(data.targets.rewards[row]) - before[s, a]) / rows
    np.testing.assert_allclose(updated(objective, data), expected.T.ravel(), atol=1e-6)
    going_on = data._replace(targets=data.targets._replace(terminated=jnp.zeros(rows, bool)))
    learner = offline_q(table, optax.sgd(rate), objective=objective, discount=0.0)
    undiscounted = online(learner.update(state, going_on, jax.random.key(1))[0])
    np.testing.assert_allclose(undiscounted, expected.T.ravel(), atol=1e-6)
    assert not np.allclose(updated(objective, going_on), expected.T.ravel())  # what did not terminate bootstraps


def test_cloning_sees_neither_reward_nor_future_and_has_no_target():
    data = batch()
    other = batch(seed=1)
    changed = data._replace(targets=other.targets._replace(actions=data.targets.actions))
    np.testing.assert_array_equal(updated("bc", data), updated("bc", changed))
    relabelled = data._replace(targets=data.targets._replace(actions=1 - data.targets.actions))
    assert not np.allclose(updated("bc", data), updated("bc", relabelled))
    _, state = prepared("bc")
    assert set(state.networks) == {"online"}


@pytest.mark.parametrize("objective", ["q", "bve"])
def test_no_gradient_goes_through_the_target(objective):
    learner, state = prepared(objective)
    data = batch()

    def loss(target):
        moved = eqx.tree_at(lambda s: s.networks["target"], state, target)
        return learner.view(moved).loss(state.networks["online"], data, None)

    # the target matters for the value, and an update of the online network alone leaves it as it is
    target = state.networks["target"]
    shifted = jax.tree.map(lambda x: x + 1.0, target)
    assert float(loss(shifted)) != pytest.approx(float(loss(target)))
    gradients = jax.tree.leaves(eqx.filter_grad(loss)(target))
    assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_the_target_changes_at_copy_steps_alone():
    learner, state = prepared("q", following=CopyEvery(3))
    assert learner.periodic is not None
    start = np.asarray(state.networks["target"].stage("table").weight)
    for step in range(1, 7):
        state, _ = learner.update(state, batch(seed=step), jax.random.key(step))
        state = learner.periodic(state, clock(step))
        target = np.asarray(state.networks["target"].stage("table").weight)
        if step % 3:
            np.testing.assert_array_equal(target, start)
        else:
            np.testing.assert_array_equal(target, np.asarray(state.networks["online"].stage("table").weight))
            assert not np.array_equal(target, start)
            start = target


def test_polyak_goes_a_share_of_the_way():
    learner, state = prepared("q", following=Polyak(0.25))
    assert learner.periodic is not None
    old, new = (np.asarray(state.networks[n].stage("table").weight) for n in ("target", "online"))
    moved = learner.periodic(state, clock(1)).networks["target"].stage("table").weight
    np.testing.assert_allclose(np.asarray(moved), old + 0.25 * (new - old), rtol=1e-6)


def chain(episodes: int = 400, seed: int = 0) -> Batch:
    """Transitions of a uniformly random walk on five states: action 1 goes right, 0 left; 1 for leaving on the right,
    0.3 on the left, -0.05 a step.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(episodes):
        state, action = int(rng.integers(STATES)), int(rng.integers(ACTIONS))
        while True:
            following = state + (1 if action else -1)
            over = not 0 <= following < STATES
            reward = -0.05 + (1.0 if following == STATES else 0.3 if following < 0 else 0.0)
            after = int(rng.integers(ACTIONS))
            rows.append((state, action, reward, over, 0 if over else following, after))
            if over:
                break
            state, action = following, after
    states, actions, rewards, over, following, after = map(np.array, zip(*rows, strict=True))
    eye = np.eye(STATES, dtype=np.float32)
    return Batch(
        jnp.asarray(eye[states]),
        Outcomes(
            jnp.asarray(actions, jnp.int32), jnp.asarray(rewards, jnp.float32), jnp.asarray(over),
            jnp.asarray(eye[following]), jnp.asarray(after, jnp.int32),
        ),
    )  # fmt: skip


def solved(data: Batch, objective: str) -> np.ndarray:
    """The fixed point of the data's own averages, in float64."""
    states, following = (np.asarray(x).argmax(1) for x in (data.inputs, data.targets.next_observations))
    actions, after = np.asarray(data.targets.actions), np.asarray(data.targets.next_actions)
    rewards, over = np.asarray(data.targets.rewards, np.float64), np.asarray(data.targets.terminated)
    values = np.zeros((STATES, ACTIONS))
    for _ in range(2_000):
        future = values[following].max(1) if objective == "q" else values[following, after]
        targets = rewards + DISCOUNT * ~over * future
        values = np.array(
            [[targets[(states == s) & (actions == a)].mean() for a in range(ACTIONS)] for s in range(STATES)]
        )
    return values


@pytest.mark.parametrize("objective", ["q", "bve"])
def test_on_a_chain_the_values_converge_to_those_of_dynamic_programming(objective):
    data = chain()
    learner, state = prepared(objective, optimizer=optax.sgd(4.0), following=CopyEvery(20))
    assert learner.periodic is not None

    @jax.jit
    def train(state):
        def one(step, state):
            state, _ = learner.update(state, data, jax.random.key(0))
            return learner.periodic(state, Clock(step + 1, 0, 0, step + 1))

        return jax.lax.fori_loop(0, 3_000, one, state)

    found = np.asarray(train(state).networks["online"].stage("table").weight.T)
    exact = solved(data, objective)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    if objective == "q":  # deterministic: the best values are known in closed form
        right = [0.9 ** (4 - s) - 0.05 * sum(0.9**k for k in range(5 - s)) for s in range(STATES)]
        np.testing.assert_allclose(found[1:, 1], right[1:], atol=1e-3)


def test_a_lane_alone_is_the_same_lane_among_45():
    data = batch()
    maker = mlp(STATES, [8, 8], ACTIONS)
    rates = jnp.logspace(-4, -2, 45)

    def run(rate, seed):
        learner = offline_q(maker, optax.adam(rate), objective="q", discount=DISCOUNT, following=CopyEvery(10))
        state = learner.init(jax.random.key(seed))
        assert learner.periodic is not None

        def one(step, state):
            state, _ = learner.update(state, data, jax.random.fold_in(jax.random.key(seed), step))
            return learner.periodic(state, Clock(step + 1, 0, 0, step + 1))

        after = jax.lax.fori_loop(0, 100, one, state)
        return eqx.filter(after.networks["online"], eqx.is_array)

    together = jax.jit(jax.vmap(run))(rates, jnp.arange(45))
    alone = jax.jit(run)(rates[7], jnp.int32(7))
    for whole, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(whole)[7], np.asarray(one), atol=1e-5)
    assert not np.allclose(np.asarray(jax.tree.leaves(together)[0])[7], np.asarray(jax.tree.leaves(together)[0])[8])


def test_dead_features_have_no_rank_and_leave_the_choice_to_the_bias():
    maker = mlp(STATES, [8], ACTIONS)
    learner, state = prepared("q", maker=maker)
    network = state.networks["online"]
    hidden, head = network.stage("hidden1"), network.stage("head")
    dead = jax.tree.map(lambda x: jnp.full_like(x, -1.0) if eqx.is_inexact_array(x) else x, hidden)
    for best in range(ACTIONS):
        biased = eqx.tree_at(lambda h: h.bias, head, jnp.eye(ACTIONS)[best])
        moved = eqx.tree_at(lambda s: s.networks["online"], state, network.replace(hidden1=dead, head=biased))
        assert learner.act is not None
        assert np.all(np.asarray(learner.act(moved, batch().inputs, jax.random.key(0))) == best)
        features = np.asarray(moved.networks["online"](batch().inputs).stages["hidden1"])
        assert effective_rank(features) == 0
        assert dead_fraction(features) == 1


def test_the_rank_penalty_is_the_spread_of_the_squared_singular_values():
    for shape in ((20, 6), (6, 20)):
        features = np.random.default_rng(0).normal(size=shape)
        s = np.linalg.svd(features, compute_uv=False)
        assert float(rank_penalty(jnp.asarray(features, jnp.float32))) == pytest.approx(
            s[0] ** 2 - s[-1] ** 2, rel=1e-4
        )
    maker = mlp(STATES, [8], ACTIONS)
    plain, pressed = (updated("q", batch(), maker=maker, rank_coefficient=c) for c in (None, 0.1))
    assert np.all(np.isfinite(pressed))
    assert not np.allclose(plain, pressed)


def test_sam_takes_the_gradient_up_the_slope():
    data, radius, rate = batch(), 0.1, 0.5
    learner, state = prepared("bc")

    def loss(weight):
        network = eqx.tree_at(lambda n: n.stage("table").weight, state.networks["online"], weight)
        return learner.view(state).loss(network, data, None)

    weight = state.networks["online"].stage("table").weight
    gradient = jax.grad(loss)(weight)
    up = jax.grad(loss)(weight + radius * gradient / jnp.linalg.norm(gradient))
    expected = np.asarray(weight - rate * up).ravel()
    np.testing.assert_allclose(updated("bc", data, sharpness_radius=radius), expected, atol=1e-6)
    assert not np.allclose(updated("bc", data), expected, atol=1e-6)


def test_dropout_is_drawn_from_the_key_and_absent_when_acting():
    maker = mlp(STATES, [32], ACTIONS, dropout=0.5)
    learner, state = prepared("q", maker=maker)
    one, two = (online(learner.update(state, batch(), jax.random.key(seed))[0]) for seed in (1, 2))
    assert not np.allclose(one, two)
    outputs = [learner.predict(state, batch().inputs) for _ in range(2)]
    np.testing.assert_array_equal(*map(np.asarray, outputs))


def test_huber_bounds_the_gradient():
    data = batch()
    far = data._replace(targets=data.targets._replace(rewards=data.targets.rewards + 100))
    _, state = prepared("q")
    square, huber = (np.abs(updated("q", far, values=Scalar(b)) - online(state)).sum() for b in (None, 1.0))
    assert square > 50 * huber


def test_what_does_not_fit_is_refused():
    from neoteny.learners import Categorical

    with pytest.raises(ValueError, match="not a valid OfflineObjective"):
        offline_q(table, optax.sgd(0.1), objective="sarsa")  # pyright: ignore
    with pytest.raises(ValueError, match="one number an action"):
        offline_q(table, optax.sgd(0.1), values=Categorical(-1, 1))
    with pytest.raises(ValueError, match="Polyak"):
        Polyak(0.0)
    learner = offline_q(table, optax.sgd(0.1), objective=OfflineObjective.Q)
    wrong, state = Batch(batch().inputs, batch().targets.actions), learner.init(jax.random.key(0))
    with pytest.raises(TypeError, match="batches of transitions"):
        learner.update(state, wrong, jax.random.key(0))
