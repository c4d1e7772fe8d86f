"""Q-learning against tables and value iteration in float64."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from device_loop import LAST, NEXT, REWARD, Loop, Maze, optimal_values
from neoteny.learners.dqn import atari_rmsprop, dqn, minatar_rmsprop
from neoteny.learners.learner import Transitions
from neoteny.learners.values import Categorical, Scalar, TwoHot
from neoteny.networks import Dense, Network, mlp
from neoteny.regularizers import L2
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.training.clock import Clock


def table(actions: int = 2, outputs: int | None = None):
    """A maker whose network on one-hot states is a table of values."""
    return lambda key: Network(table=Dense(5, outputs or actions, key=key, use_bias=False))


def batch(seed: int = 0, rows: int = 9, actions: int = 2, discount: float = 0.9) -> Transitions:
    rng = np.random.default_rng(seed)
    over = rng.random(rows) < 0.3
    return Transitions(
        jnp.asarray(np.eye(5)[rng.integers(0, 5, rows)], jnp.float32),
        jnp.asarray(rng.integers(0, actions, rows), jnp.int32),
        jnp.asarray(rng.normal(size=rows) * 2, jnp.float32),
        jnp.asarray(np.where(over, 0.0, discount), jnp.float32),
        jnp.asarray(np.eye(5)[rng.integers(0, 5, rows)], jnp.float32),
    )


def tables(state) -> tuple[np.ndarray, np.ndarray]:
    """The values of the online and the target network, a row for each state."""
    return tuple(np.asarray(state.networks[n].stage("table").weight.T, np.float64) for n in ("online", "target"))


def with_target(learner, state, seed: int = 5):
    other = learner.init(jax.random.key(seed)).networks["target"]
    return eqx.tree_at(lambda s: s.networks["target"], state, other)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bound", [None, 0.5])
def test_an_update_is_the_table_rule(double, bound):
    rate = 0.3
    learner = dqn(table(), optax.sgd(rate), double=double, values=Scalar(bound))
    state = with_target(learner, learner.init(jax.random.key(0)))
    data = batch()
    online, target = tables(state)
    new, metrics = learner.update(state, data, jax.random.key(1))
    expected, losses, errors = online.copy(), [], []
    for row in range(9):
        s, n = int(np.argmax(data.observations[row])), int(np.argmax(data.next_observations[row]))
        a = int(data.actions[row])
        best = int(np.argmax((online if double else target)[n]))
        error = float(data.rewards[row]) + float(data.discounts[row]) * target[n, best] - online[s, a]
        gradient = error if bound is None else np.clip(error, -bound, bound)
        expected[s, a] += rate * gradient / 9
        errors.append(abs(error))
        small = bound is None or abs(error) <= bound
        losses.append(0.5 * error**2 if small else bound * (abs(error) - 0.5 * bound))
    found, kept = tables(new)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(kept, target)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics["error"]) == pytest.approx(np.mean(errors), rel=1e-5)
    shown = [online[int(np.argmax(o))].max() for o in data.observations]
    assert float(metrics["value"]) == pytest.approx(np.mean(shown), rel=1e-5)


def test_double_and_plain_targets_differ_where_the_networks_disagree():
    data = batch(rows=40)
    losses = []
    for double in (False, True):
        learner = dqn(table(), optax.sgd(0.1), double=double)
        state = with_target(learner, learner.init(jax.random.key(0)))
        losses.append(float(learner.update(state, data, jax.random.key(1))[1]["loss"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_only_a_positive_discount_lets_the_future_count():
    learner = dqn(table(), optax.sgd(0.1))
    state = with_target(learner, learner.init(jax.random.key(0)))
    data = batch()
    shuffled = data._replace(next_observations=data.next_observations[::-1])

    def change(discounts):
        pair = [learner.update(state, d._replace(discounts=discounts), jax.random.key(1))[0] for d in (data, shuffled)]
        return np.abs(tables(pair[0])[0] - tables(pair[1])[0]).max()

    assert change(jnp.zeros(9)) == 0.0
    assert change(jnp.full(9, 0.9)) > 1e-3


def test_the_target_is_copied_on_the_shared_clock_by_a_real_branch():
    learner = dqn(table(), optax.sgd(0.5), target_period=4)
    state = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 3))
    moved = eqx.tree_at(lambda s: s.networks["online"].stages[0].weight, state, replace_fn=lambda w: w + 1)

    def lanes(state, clock):
        return jax.vmap(lambda s: learner.periodic(s, clock).networks["target"].stages[0].weight)(state)

    for update in range(1, 13):
        clock = Clock(*(np.int32(n) for n in (update, 0, 0, update)))
        came_from = moved.networks["online" if update % 4 == 0 else "target"]
        np.testing.assert_array_equal(lanes(moved, clock), came_from.stages[0].weight)
    equations = jax.make_jaxpr(lanes)(moved, clock).eqns
    assert "cond" in [equation.primitive.name for equation in equations]
    selected = [e for e in equations if e.primitive.name == "select_n" and e.outvars[0].aval.shape]
    assert not selected
    assert learner.init(jax.random.key(0)).followers == (("target", "online"),)


@pytest.mark.parametrize(
    ("values", "double", "optimizer", "tolerance"),
    [
        (Scalar(None), False, optax.sgd(1.0), 1e-4),
        (Scalar(), True, optax.sgd(1.0), 1e-4),
        (TwoHot(-1.0, 9.0, 41), True, optax.adam(0.05), 0.03),
        (Categorical(-1.0, 9.0, 41), False, optax.adam(0.05), 0.03),
    ],
)
def test_all_transitions_over_and_over_give_the_optimal_values(values, double, optimizer, tolerance):
    pairs = [(s, a) for s in range(5) for a in range(2) if s != LAST]
    data = Transitions(
        jnp.eye(5)[jnp.asarray([s for s, _ in pairs])],
        jnp.asarray([a for _, a in pairs], jnp.int32),
        jnp.asarray([REWARD[s][a] for s, a in pairs], jnp.float32),
        jnp.asarray([0.0 if NEXT[s][a] == LAST else 0.9 for s, a in pairs], jnp.float32),
        jnp.eye(5)[jnp.asarray([NEXT[s][a] for s, a in pairs])],
    )
    learner = dqn(table(outputs=values.outputs(2)), optimizer, double=double, values=values, target_period=20)

    def one(i, state):
        state, _ = learner.update(state, data, jax.random.key(0))
        return learner.periodic(state, Clock(i + 1, i + 1, 0, i + 1))

    state = jax.jit(lambda s: jax.lax.fori_loop(0, 4_000, one, s))(learner.init(jax.random.key(0)))
    found = np.asarray(learner.predict(state, jnp.eye(5)))
    np.testing.assert_allclose(found[:LAST], optimal_values(0.9)[:LAST], atol=tolerance)


@pytest.mark.parametrize(("steps", "time_limit"), [(1, None), (1, 3), (3, None)])
def test_learning_by_acting_finds_the_optimal_values(steps, time_limit):
    """Cut off after three steps, the values are those of the endless maze: its future is still counted.

    With three-step returns and random actions they are not Q*, but the greedy actions are; their returns are random, so
    the values are averages over many batches.
    """
    always_random = LinearEpsilon(1.0, 1.0, 1)
    source = DeviceExperience(learning_starts=100, capacity=4_000, steps=steps, discount=0.9, epsilon=always_random)
    learner = dqn(table(), optax.sgd(1.0 if steps == 1 else 0.1), target_period=25)
    loop = Loop(learner, source, Maze(time_limit), [0, 1])
    loop.run(4_000)
    best = optimal_values(0.9)[:LAST]
    for lane in range(2):
        found = np.asarray(loop.state[0].networks["online"].stages[0].weight)[lane].T[:LAST]
        if steps == 1:
            np.testing.assert_allclose(found, best, atol=1e-3)
        np.testing.assert_array_equal(found.argmax(1)[[1, 3]], best.argmax(1)[[1, 3]])


def test_acting_is_greedy():
    learner = dqn(table(3), optax.sgd(0.1))
    state = learner.init(jax.random.key(0))
    np.testing.assert_array_equal(learner.act(state, jnp.eye(5), jax.random.key(1)), tables(state)[0].argmax(1))


def test_rules_and_penalties_reach_the_gradient():
    data = batch()
    plain = dqn(table(), optax.sgd(0.1))
    state = plain.init(jax.random.key(0))
    free, _ = plain.update(state, data, jax.random.key(1))
    held = dqn(table(), optax.sgd(0.1), regularizer=L2(0.25))
    pulled, _ = held.update(held.init(jax.random.key(0)), data, jax.random.key(1))
    start = tables(state)[0]
    np.testing.assert_allclose(tables(pulled)[0], tables(free)[0] - 0.1 * 2 * 0.25 * start, atol=1e-6)
    clipped = dqn(table(), optax.sgd(1.0), before=optax.clip_by_global_norm(1e-3))
    moved, _ = clipped.update(clipped.init(jax.random.key(0)), data, jax.random.key(1))
    assert np.linalg.norm(tables(moved)[0] - start) == pytest.approx(1e-3, rel=1e-3)


def test_the_view_gives_the_training_loss_of_any_network():
    learner = dqn(mlp(5, [7], 2), optax.sgd(0.1), regularizer=L2(0.01))
    state = with_target(learner, learner.init(jax.random.key(0)))
    data = batch()
    _, metrics = learner.update(state, data, jax.random.key(1))
    view = learner.view(state)
    plain = dqn(mlp(5, [7], 2), optax.sgd(0.1))
    without = float(plain.view(state).loss(view.network, data, None))
    assert without == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert float(view.loss(view.network, data, None)) > without
    assert set(view.features(view.network, data.inputs)) == {"hidden1", "head"}


def test_centred_rmsprop_equals_its_definition():
    """Both presets against float64, neither with momentum: epsilon beside the root, and epsilon under it."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(30, 6))
    for optimizer, scaled in (
        (minatar_rmsprop(1e-2), lambda v: np.sqrt(v) + 0.01),
        (atari_rmsprop(1e-2), lambda v: np.sqrt(v + 0.01 / 32**2)),
    ):
        found, state = jnp.zeros(6), optimizer.init(jnp.zeros(6))
        expected, mean, square = (np.zeros(6) for _ in range(3))
        for gradient in gradients:
            change, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, found)
            found = optax.apply_updates(found, change)
            mean = 0.95 * mean + 0.05 * gradient
            square = 0.95 * square + 0.05 * gradient**2
            expected = expected - 1e-2 * gradient / scaled(square - mean**2)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_period_of_no_updates_is_refused():
    with pytest.raises(ValueError, match="target_period"):
        dqn(table(), optax.sgd(0.1), target_period=0)
