"""Environments by gymnax: as published, played against MinAtar's own package where it is not random."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks import gymnax_environments
from neoteny.tasks.environments import EnvironmentTask, environments
from neoteny.tasks.gymnax_environments import MINATAR_GAMES, Gymnax, catch, minatar

CHANNELS = {"asterix": 4, "breakout": 4, "freeway": 7, "seaquest": 10, "space_invaders": 6}


@pytest.mark.parametrize("game", MINATAR_GAMES)
def test_the_games_of_minatar_show_what_their_own_package_says(game):
    from minatar import Environment

    original = Environment(game)
    spec = minatar(game).specification
    assert spec.shape == tuple(original.state_shape()) == (10, 10, CHANNELS[game])
    assert (spec.dtype, spec.actions) == ("bool", original.num_actions())
    assert minatar(game, minimal_actions=True).specification.actions == len(original.minimal_action_set())
    assert minatar(game).sticky == original.sticky_action_prob
    assert spec.time_limit == (2500 if game == "freeway" else None)


def beside(original, step, state, action: int):
    """One action here and in MinAtar's own package, which agree: (state, frame, reward, terminated)."""
    state, after = step(state, jnp.int32(action), jax.random.key(0))
    reward, terminated = original.act(action)
    np.testing.assert_array_equal(after.frame, original.state())
    assert (float(after.reward), bool(after.terminated)) == (reward, terminated)
    assert not bool(after.truncated)
    return state, after.frame, reward, terminated


def test_breakout_plays_like_its_own_package():
    """Step for step, over episodes of the same actions; only where the ball starts is random."""
    from minatar import Environment

    environment, rng = minatar("breakout", sticky=0.0), np.random.default_rng(0)
    step, reset = jax.jit(environment.step), jax.jit(environment.reset)
    original = Environment("breakout", sticky_action_prob=0.0)
    steps = rewards = 0
    for episode in range(12):
        state, frame = reset(jax.random.key(episode))
        original.reset()
        left = bool(frame[3, 0, 1])
        original.env.ball_x, original.env.ball_dir = (0, 2) if left else (9, 3)
        original.env.last_x = original.env.ball_x
        np.testing.assert_array_equal(frame, original.state())
        for _ in range(200):
            # Mostly under the ball, so that games are long and bricks fall.
            ball, paddle = np.argwhere(np.asarray(frame)[..., 1])[0][1], np.argwhere(np.asarray(frame)[9, :, 0])[0][0]
            follow = 1 if ball < paddle else 3 if ball > paddle else 0
            action = follow if rng.random() < 0.9 else int(rng.integers(6))
            state, frame, reward, terminated = beside(original, step, state, action)
            steps, rewards = steps + 1, rewards + reward
            if terminated:
                break
    assert steps > 200
    assert rewards > 10


def hunting(frame):
    """An action of Space Invaders: out of the way of bullets, else under where the nearest alien will be, and fire."""
    cannon, danger = int(np.argmax(frame[9, :, 0])), frame[6:, :, 5].any(axis=0)
    columns = np.flatnonzero(frame[..., 1].any(axis=0)) + (1 if frame[..., 3].any() else -1)
    goal = columns[np.abs(columns - cannon).argmin()]
    if danger[cannon]:
        moves = [move for move in (-1, 1) if 0 <= cannon + move <= 9 and not danger[cannon + move]]
        return 2 + moves[0] if moves else 0
    move = int(np.sign(goal - cannon))
    blocked = not 0 <= cannon + move <= 9 or danger[cannon + move]
    return 5 if move == 0 or blocked else 2 + move


def test_space_invaders_plays_like_its_own_package():
    """Step for step, over episodes of the same actions: nothing in this game is random."""
    from minatar import Environment

    environment, rng = minatar("space_invaders", sticky=0.0), np.random.default_rng(0)
    step, reset = jax.jit(environment.step), jax.jit(environment.reset)
    original = Environment("space_invaders", sticky_action_prob=0.0)
    actions = environment.specification.actions
    steps, waves, ends, directions = 0, 0, set(), set()
    for noise in (0.1, 0.1, 0.1, 0.1, 1.0, 1.0):
        state, frame = reset(jax.random.key(0))
        original.reset()
        np.testing.assert_array_equal(frame, original.state())
        for _ in range(600):
            shown = np.asarray(frame)
            directions |= {channel for channel in (2, 3) if shown[..., channel].any()}
            action = int(rng.integers(actions)) if rng.random() < noise else hunting(shown)
            state, frame, _, terminated = beside(original, step, state, action)
            steps += 1
            if terminated:
                ends.add("bullet" if frame[9, np.argmax(frame[9, :, 0]), 5] else "alien")
                break
        waves = max(waves, original.env.difficulty_ramp())
    assert steps > 1_000
    assert waves > 1, "each wave moves faster than the last"
    assert ends == {"bullet", "alien"}
    assert directions == {2, 3}


def test_sticky_actions_repeat_the_action_before():
    environment = Gymnax("Catch-bsuite", sticky=0.3)

    def run(key):
        state, _ = environment.reset(key)

        def one(state, at):
            # Even steps ask for 2, odd ones for 0: what is repeated shows.
            state, _ = environment.step(state, 2 - 2 * (at % 2), jax.random.fold_in(key, at))
            return state, state.last_action

        return jax.lax.scan(one, state, jnp.arange(6, dtype=jnp.int32))[1]

    done = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4_000)))
    asked = np.tile([2, 0, 2, 0, 2, 0], (4_000, 1))
    before = np.concatenate([np.zeros((4_000, 1), int), done[:, :-1]], axis=1)
    stuck = done != asked
    assert (done[stuck] == before[stuck]).all()
    # A repeat of the very action asked for does not show.
    shows = before != asked
    assert stuck[shows].mean() == pytest.approx(0.3, abs=0.01)
    assert not stuck[~shows].any()


def test_a_time_limit_cuts_off_and_does_not_terminate():
    for limit, expected in ((4, (False, True)), (9, (True, False)), (None, (True, False))):
        environment = Gymnax("Catch-bsuite", time_limit=limit)
        step = jax.jit(environment.step)
        state, frame = environment.reset(jax.random.key(0))
        for at in range(1, 10):
            state, after = step(state, jnp.int32(1), jax.random.key(at))
            if after.terminated or after.truncated:
                break
        assert (bool(after.terminated), bool(after.truncated)) == expected
        assert at == (4 if limit == 4 else 9)
        # The frame is the last one and not the next episode's first: the ball has fallen as far as there were steps.
        assert np.asarray(after.frame)[at].any()
        assert np.asarray(frame)[0].any()


def test_episodes_are_longer_than_gymnax_would_have_them():
    environment = minatar("seaquest")
    state, _ = environment.reset(jax.random.key(0))
    state = state._replace(inner=state.inner.replace(time=jnp.asarray(5_000, jnp.int32)))
    _, after = environment.step(state, jnp.int32(0), jax.random.key(1))
    assert not bool(after.truncated)


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "DeepSea-bsuite", "Asterix-MinAtar"])
def test_environments_keep_their_types_in_a_loop(name):
    environment = Gymnax(name, sticky=0.1, time_limit=50)

    def play(key):
        state, frame = environment.reset(key)
        assert frame.shape == environment.specification.shape
        assert str(frame.dtype) == environment.specification.dtype

        def one(at, carry):
            state, total = carry
            state, after = environment.step(state, at % environment.specification.actions, jax.random.fold_in(key, at))
            return state, total + after.reward

        return jax.lax.fori_loop(0, 20, one, (state, jnp.float32(0)))[1]

    assert np.isfinite(jax.jit(play)(jax.random.key(0)))


def test_a_stream_of_environments_is_like_any_other():
    stream = environments([minatar("breakout"), minatar("asterix")])
    tasks = list(stream.repeated(2))
    assert [task.name for task in tasks] == ["Breakout-MinAtar", "Asterix-MinAtar"] * 2
    assert [(task.index, task.draw, task.visit) for task in tasks] == [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]
    assert tasks[0] == EnvironmentTask("Breakout-MinAtar", minatar("breakout"))
    assert hash(tasks[0]) == hash(EnvironmentTask("Breakout-MinAtar", minatar("breakout")))
    with pytest.raises(ValueError, match="one shape and number of actions"):
        environments([minatar("breakout"), minatar("freeway")])
    with pytest.raises(ValueError, match="at least one"):
        environments([])
    with pytest.raises(ValueError, match="1 names for 2"):
        environments([catch(), catch()], names=["one"])


def test_what_does_not_exist_is_one_clear_line():
    with pytest.raises(UsageError, match="no environment 'Tetris'"):
        _ = Gymnax("Tetris").specification
    with pytest.raises(UsageError, match="no game 'pong'"):
        minatar("pong")
    with pytest.raises(UsageError, match="continuous actions"):
        _ = Gymnax("Pendulum-v1").specification
    with pytest.raises(ValueError, match="sticky"):
        minatar("breakout", sticky=1.0)
    with pytest.raises(ValueError, match="time_limit"):
        Gymnax("Catch-bsuite", time_limit=0)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    gymnax_environments._made.cache_clear()
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(UsageError, match=r"pip install 'neoteny\[gymnax\]'"):
        _ = catch().specification
    gymnax_environments._made.cache_clear()
