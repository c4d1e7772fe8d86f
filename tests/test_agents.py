"""The agents are the published ones, number by number, and take other numbers."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.agents import AtariDQN, MinAtarDQN
from neoteny.errors import UsageError
from neoteny.learners import Transitions, atari_rmsprop, minatar_rmsprop
from neoteny.tasks.atari import Atari
from neoteny.tasks.environments import EnvironmentTask


def same_steps(learner, optimizer, shape):
    """Whether a stage's optimiser is this one, by three steps from the same gradients."""
    network = learner.origin.makers["online"](jax.random.key(0))
    mine = learner.origin.optimizers["online"]
    parameters = network.stage("head")
    held, other = mine.init(parameters), optimizer.init(parameters)
    for number in range(3):
        gradient = jax.tree.map(lambda x, number=number: jnp.cos(x + number), parameters)
        one, held = mine.update(gradient, held, parameters)
        two, other = optimizer.update(gradient, other, parameters)
        if not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)):
            return False
    return True


def test_atari_is_dqn_zoo_s_double_q():
    """https://github.com/google-deepmind/dqn_zoo, double_q/run_atari.py, in actions of four frames."""
    agent = AtariDQN()
    source, world = agent.source(), agent.environment("pong")
    assert (source.batch_size, source.capacity, source.learning_starts) == (32, 1_000_000, 50_000)
    assert (source.period * 4, source.envs, source.stack, source.steps) == (16, 1, 4, 1)
    assert (source.discount, source.reward_bound, source.evaluation_epsilon) == (0.99, 1.0, 0.01)
    assert [float(source.epsilon(jnp.int32(n))) for n in (-1, 0, 500_000, 1_000_000)] == pytest.approx(
        [1.0, 1.0, 0.505, 0.01]
    )
    assert agent.target_period * 16 == 120_000
    assert (world.noops, world.life_loss, world.frame_limit, world.frame_skip, world.sticky) == (
        30,
        True,
        108_000,
        4,
        0,
    )
    assert source.evaluation_limit * 4 == 108_000
    assert same_steps(agent.learner(6), atari_rmsprop(2.5e-4), ())
    assert not same_steps(agent.learner(6), optax.rmsprop(2.5e-4, decay=0.95), ())
    network = agent.network(6)(jax.random.key(0))
    assert network.names == ("conv1", "conv2", "conv3", "dense1", "head")
    assert sum(leaf.size for leaf in jax.tree.leaves(network)) == 77_984 + 3136 * 512 + 512 + 512 * 6 + 1


def test_minatar_is_the_published_dqn():
    """https://github.com/kenjyoung/MinAtar, examples/dqn.py."""
    agent = MinAtarDQN()
    source, world = agent.source(), agent.environment("breakout")
    assert (source.batch_size, source.capacity, source.learning_starts) == (32, 100_000, 5_000)
    assert (source.period, source.envs, source.stack, source.steps, source.discount) == (1, 1, 1, 1, 0.99)
    assert source.reward_bound is None
    assert [float(source.epsilon(jnp.int32(n))) for n in (-1, 0, 50_000, 100_000)] == pytest.approx(
        [1.0, 1.0, 0.55, 0.1]
    )
    assert (agent.target_period, agent.frames, agent.double) == (1_000, 5_000_000, False)
    assert (world.sticky, world.specification.actions) == (0.1, 6)
    learner = agent.learner(world.specification)
    assert same_steps(learner, minatar_rmsprop(2.5e-4), ())
    assert not same_steps(learner, atari_rmsprop(2.5e-4), ())


def test_the_error_is_bounded_and_the_online_network_chooses():
    def gradient(agent, reward):
        learner = agent.learner(replace(agent.environment("breakout").specification))
        state = learner.init(jax.random.key(0))
        seen = jnp.ones((1, 10, 10, 4))
        batch = Transitions(seen, jnp.zeros(1, int), jnp.full(1, reward), jnp.zeros(1), seen)
        view = learner.view(state)
        return jax.grad(lambda n: view.loss(n, batch, None))(view.network).stage("head").bias

    agent = MinAtarDQN()
    np.testing.assert_allclose(np.abs(gradient(agent, 100.0)).max(), 1.0)
    assert np.abs(gradient(replace(agent, bound=None), 100.0)).max() > 50


def test_fields_reach_where_they_belong():
    agent = AtariDQN(width=64, replay=8_000, learning_starts=80, envs=4, period=1, sticky=0.25, segment=400)
    source = agent.source()
    assert (source.envs, source.capacity, source.segment, source.filling) == (4, 8_000, 400, 20)
    assert agent.environment("pong").sticky == 0.25
    assert agent.network(6)(jax.random.key(0)).stage("dense1") is not None
    assert source.shapes(EnvironmentTask("pong", agent.environment("pong")), 5).observations.shape == (5, 84, 84, 4)


def test_a_mode_the_emulator_has_not_is_refused_before_anything_runs():
    with pytest.raises(UsageError, match="pong has no mode 7"):
        _ = Atari("pong", mode=7).specification
