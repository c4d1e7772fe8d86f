"""The device source: how much it plays, what it draws, and that lanes differ where they must."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from device_loop import Corridor, Loop, Maze
from neoteny.learners.dqn import dqn
from neoteny.networks import mlp
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.training.clock import Clock

SMALL = DeviceExperience(batch_size=16, learning_starts=20, capacity=64, epsilon=LinearEpsilon(1.0, 0.2, 50))


def learner(inputs: int = 2, actions: int = 3):
    return dqn(mlp(inputs, [8], actions), optax.adam(1e-2), target_period=5)


def test_epsilon_falls_linearly_and_is_one_before_learning():
    epsilon = LinearEpsilon(0.9, 0.1, 100)
    found = [float(epsilon(jnp.int32(steps))) for steps in (-1, 0, 25, 100, 5_000)]
    assert found == pytest.approx([1.0, 0.9, 0.7, 0.1, 0.1])


@pytest.mark.parametrize(("envs", "period"), [(1, 1), (2, 4)])
def test_the_clock_counts_every_step_and_every_step_is_kept(envs, period):
    source = DeviceExperience(batch_size=8, envs=envs, period=period, learning_starts=21, capacity=400, stack=2)
    loop = Loop(learner(4), source, Corridor(), [0, 1])
    loop.run(1)
    filling = -(-21 // envs)
    assert int(loop.clock.env_step) == (filling + period) * envs
    loop.run(6)
    assert int(loop.clock.env_step) == (filling + 7 * period) * envs
    _, state = loop.state
    written = filling + 7 * period
    assert np.asarray(state.replay.ring.written).tolist() == [written, written]
    frames = np.asarray(state.replay.ring.rows.frame)[:, :written]
    ended = np.asarray(state.replay.ring.rows.ended)[:, :written]
    # The corridor is five steps long: nothing is lost or kept twice, whatever the chunk.
    assert frames[..., 0].tolist() == [[[t % 5] * envs for t in range(written)]] * 2
    assert (ended == (frames[..., 0] == 4)).all()
    assert (frames[:, written - 1, :, 0] != 0).any()


def test_batches_tell_what_happened():
    source = DeviceExperience(batch_size=64, learning_starts=20, capacity=64, discount=0.9, stack=2)
    loop = Loop(learner(4), source, Corridor(), [0, 1, 2])
    loop.run_keeping_batches(60)
    for batch in loop.batches[::7]:
        older, now = batch.observations[..., :2], batch.observations[..., 2:]
        np.testing.assert_array_equal(batch.next_observations[..., :2], now)
        # Time goes on by one, to the fifth frame that only the end of an episode shows, which still has a value.
        np.testing.assert_array_equal(batch.next_observations[..., 2], now[..., 0] + 1)
        np.testing.assert_array_equal(batch.next_observations[..., 3], now[..., 1])
        np.testing.assert_allclose(batch.discounts, 0.9)
        first = now[..., 0] == 0
        assert (older[first] == 0).all()
        np.testing.assert_array_equal(older[~first][:, 1], now[~first][:, 1])
        np.testing.assert_array_equal(batch.rewards, batch.actions)
        assert set(np.unique(now[..., 0])) <= {0, 1, 2, 3, 4}
    seen = np.concatenate([batch.next_observations[..., 2].ravel() for batch in loop.batches])
    assert (seen == 5).mean() == pytest.approx(0.2, abs=0.05)


def test_finished_episodes_are_counted_once_with_their_return():
    loop = Loop(learner(), SMALL, Corridor(), [0, 1])
    loop.run_keeping_batches(100)
    assert loop.batches[0].episodes.tolist() == [4.0, 4.0]  # 21 steps
    total = sum(batch.episodes for batch in loop.batches)
    assert total.tolist() == [120 // 5] * 2
    rows = loop.state[1].replay.ring.rows
    assert rows.reward.shape == (2, 64, 1)
    late = np.asarray([batch.returns for batch in loop.batches[-50:]]).sum(axis=0)
    order = np.argsort(np.arange(120 - 64, 120) % 64)
    played = np.roll(np.asarray(rows.reward)[:, :, 0], -(120 % 64), axis=1)
    assert order.shape == (64,)
    np.testing.assert_allclose(late, played[:, -50:].sum(axis=1))


def test_actions_are_random_while_the_replay_fills_and_greedy_mostly_after():
    source = DeviceExperience(learning_starts=600, capacity=2_000, epsilon=LinearEpsilon(0.1, 0.1, 1))
    task = EnvironmentTask("corridor", Corridor(actions=4))
    clock = Clock.start()

    def act(observations, key):
        return jnp.full(observations.shape[0], 3, jnp.int32)

    state = source.init(task, jax.random.key(0))
    step = jax.jit(lambda s, c, k: source.next(s, task, act, c, k))
    state, _, cost = step(state, clock, jax.random.key(1))
    assert int(cost) == 601
    filling = np.asarray(state.replay.ring.rows.action)[:600, 0]
    assert np.bincount(filling, minlength=4).min() > 110
    for update in range(1, 400):
        clock = clock.tick()
        state, _, cost = step(state, clock, jax.random.key(1 + update))
        assert int(cost) == 1
    greedy = np.asarray(state.replay.ring.rows.action)[600:1000, 0] == 3
    assert greedy.mean() == pytest.approx(0.925, abs=0.04)  # 0.9 greedy, and a fourth of the random ones


def test_four_lanes_differ_in_everything_drawn_and_one_seed_repeats():
    loop = Loop(learner(), SMALL, Corridor(), [0, 1, 2, 3])
    weights = np.asarray(loop.state[0].networks["online"].stages[0].layers[1].weight)
    loop.run_keeping_batches(3)
    rows = loop.state[1].replay.ring.rows
    by_lane = {
        "initialisation": weights.reshape(4, -1),
        "environment": np.asarray(rows.frame)[..., 1].reshape(4, -1),
        "exploration": np.asarray(rows.action).reshape(4, -1)[:, :20],
        # Where in its replay a lane draws from, apart from what is there.
        "minibatches": np.concatenate([b.observations[..., 0] for b in loop.batches], axis=1),
    }
    for what, values in by_lane.items():
        assert len({row.tobytes() for row in values}) == 4, what
    again = Loop(learner(), SMALL, Corridor(), [2, 2, 7, 0])
    again.run_keeping_batches(3)
    for a, b in zip(jax.tree.leaves(loop.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(a[2], b[0])
        np.testing.assert_array_equal(b[0], b[1])
        np.testing.assert_array_equal(a[0], b[3])


def test_chunks_of_any_length_give_the_same_bits():
    one, many = (Loop(learner(), SMALL, Corridor(), [0, 1]) for _ in range(2))
    one.run(80)
    for updates in (1, 7, 30, 42):
        many.run(updates)
    for a, b in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluation_plays_whole_episodes_by_its_own_rule():
    source = DeviceExperience(epsilon=LinearEpsilon(1.0, 1.0), evaluation_limit=50)
    task = EnvironmentTask("corridor", Corridor(time_limit=7))

    def act(observations, key):
        return jnp.full(observations.shape[0], 2, jnp.int32)

    found = source.evaluate(task, act, jax.random.key(0), 10)
    assert {name: float(value) for name, value in found.items()} == {"return": 14.0, "length": 7.0, "unfinished": 0.0}
    short = DeviceExperience(evaluation_limit=4).evaluate(task, act, jax.random.key(0), 10)
    assert {name: float(value) for name, value in short.items()} == {"return": 8.0, "length": 4.0, "unfinished": 1.0}
    half = DeviceExperience(evaluation_epsilon=0.6, evaluation_limit=50).evaluate(task, act, jax.random.key(0), 400)
    assert float(half["return"]) == pytest.approx(7 * (0.4 * 2 + 0.6 * 1), abs=0.4)
    maze = EnvironmentTask("maze", Maze())
    # From 0 and 2 by action 1 to 3 and then to the end: episodes of different length, each counted to its own end.
    lengths = source.evaluate(maze, lambda o, key: jnp.where(o[:, 1] > 0, 0, 1), jax.random.key(1), 2_000)
    assert float(lengths["length"]) == pytest.approx((3 + 2 + 2 + 1) / 4, abs=0.1)
    assert float(lengths["return"]) == pytest.approx((0.3 - 0.1 + 1 + 0.5 + 1 - 0.1 + 1 + 1) / 4, abs=0.1)


def test_a_look_into_the_replay_shows_what_is_there_and_changes_nothing():
    loop = Loop(learner(), SMALL, Corridor(), [0])
    loop.run(30)
    lane = jax.tree.map(lambda x: x[0], loop.state[1])
    seen = SMALL.sample(lane, loop.task, loop.clock, jax.random.key(0), 500)
    assert seen.inputs.shape == (500, 2)
    kept = set(np.asarray(lane.replay.ring.rows.frame)[:50, 0, 1].tolist())
    assert set(np.asarray(seen.inputs)[:, 1].tolist()) <= kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": 0}, "period must be at least 1"),
        ({"envs": 3}, "multiple of envs"),
        ({"learning_starts": 3, "stack": 4}, "learning_starts must be at least 5"),
        ({"discount": 1.5}, "discount"),
        ({"epsilon": None}, None),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    if message is None:
        with pytest.raises(ValueError, match="probability"):
            LinearEpsilon(1.5, 0.0, 10)
        return
    with pytest.raises(ValueError, match=message):
        DeviceExperience(**change)
