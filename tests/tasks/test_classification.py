"""Classification MDPs against their tables: rewards, what follows, best values, labels of a lane."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners import dqn
from neoteny.networks import mlp
from neoteny.tasks import (
    ClassificationMDP,
    DeviceExperience,
    Goal,
    Labels,
    LinearEpsilon,
    environments,
    from_arrays,
    whole,
)
from neoteny.tasks.sources import DataArrays
from neoteny.training.events import Evaluate, Probe, Switch, Train
from neoteny.training.runner import Runner

CLASSES, EACH, STEPS = 4, 15, 20_000
GAMMA = 0.9


def images(classes=CLASSES, each=EACH):
    """Images (2, 2, 1) that say their own row number, in mixed order of classes."""
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(classes, dtype=np.int32), each))
    rows = np.arange(len(targets))
    inputs = np.stack([rows % 256, rows // 256, targets * 0, targets * 0], axis=1).astype(np.uint8)
    return whole(from_arrays(inputs.reshape(-1, 2, 2, 1), targets, name="rows"))


IMAGES = images()


def given(mdp, seed=0):
    data = DataArrays(jnp.asarray(mdp.data.inputs), jnp.asarray(mdp.data.targets))
    drawn = mdp.draw(jax.random.key(seed), data)
    return mdp.given(data, drawn), drawn


def labels_of(drawn, count):
    """The state that every row stands for, from the lane's draw."""
    rows, starts = np.asarray(drawn.rows), np.asarray(drawn.starts)
    labels = np.full(count, -1)
    for label in range(len(starts) - 1):
        labels[rows[starts[label] : starts[label + 1]]] = label
    return labels


def played(mdp, seed=0):
    """States, rows, actions, rewards and following states of STEPS steps with half of the actions right."""
    environment, drawn = given(mdp, seed)

    def one(carry, key):
        state, frame = carry
        choose, pick, world = jax.random.split(key, 3)
        other = jax.random.randint(pick, (), 0, mdp.classes)
        action = jnp.where(jax.random.bernoulli(choose), state.label, other)
        after, step = environment.step(state, action, world)
        return (after, step.frame), (state.label, frame[0], action, step.reward, after.label, step.terminated)

    first = environment.reset(jax.random.key(seed + 1))
    keys = jax.random.split(jax.random.key(seed + 2), STEPS)
    _, seen = jax.jit(lambda first, keys: jax.lax.scan(one, first, keys))(first, keys)
    return [np.asarray(each) for each in seen], drawn


@pytest.mark.parametrize("labels", list(Labels))
@pytest.mark.parametrize("goal", list(Goal))
def test_rewards_and_what_follows_are_those_of_the_tables(labels, goal):
    mdp = ClassificationMDP(IMAGES, labels, goal)
    (states, rows, actions, rewards, following, terminated), drawn = played(mdp)
    given_rewards, probabilities = mdp.tables()
    np.testing.assert_array_equal(rewards, given_rewards[states, actions])
    assert not terminated.any()
    # What is seen is an image of the state, and every image of it as often as any other.
    np.testing.assert_array_equal(labels_of(drawn, len(IMAGES.targets))[rows], states)
    for state in range(CLASSES):
        there = np.asarray(drawn.rows)[drawn.starts[state] : drawn.starts[state + 1]]
        counts = np.bincount(rows[states == state], minlength=len(IMAGES.targets))[there]
        assert abs(counts / counts.mean() - 1).max() < 6 / np.sqrt(counts.mean())
        for action in range(CLASSES):
            chosen = (states == state) & (actions == action)
            share = np.bincount(following[chosen], minlength=CLASSES) / chosen.sum()
            expected = probabilities[state, action]
            spread = np.sqrt(expected * (1 - expected) / chosen.sum())
            assert (abs(share - expected) <= 5 * spread).all(), (state, action, share)


def value_iteration(rewards, probabilities):
    values = np.zeros_like(rewards)
    for _ in range(2_000):
        values = rewards + GAMMA * probabilities @ values.max(axis=1)
    return values


@pytest.mark.parametrize("goal", list(Goal))
def test_value_iteration_agrees_with_policy_iteration(goal):
    rewards, probabilities = ClassificationMDP(IMAGES, goal=goal).tables()
    values = value_iteration(rewards, probabilities)
    policy, every = np.zeros(CLASSES, int), np.arange(CLASSES)
    for _ in range(CLASSES**2):
        exact = np.linalg.solve(np.eye(CLASSES) - GAMMA * probabilities[every, policy], rewards[every, policy])
        policy = (rewards + GAMMA * probabilities @ exact).argmax(axis=1)
    np.testing.assert_allclose(values.max(axis=1), exact, rtol=1e-12)
    if goal is Goal.DENSE:
        np.testing.assert_allclose(values, np.eye(CLASSES) + GAMMA / (1 - GAMMA), rtol=1e-12)
        return
    # Far from the last state a wrong action, after which any state may follow, is worth more than a step on.
    np.testing.assert_array_equal(policy == every, [False, True, True, True])
    jump = GAMMA * exact.mean()
    np.testing.assert_allclose(exact, [jump, GAMMA**2 * exact[3], GAMMA * exact[3], 1 + GAMMA * jump], rtol=1e-12)


def test_random_labels_are_the_lanes_own_fixed_and_independent_of_the_class():
    many = images(classes=4, each=500)
    mdp = ClassificationMDP(many, Labels.RANDOM)
    one, again, other = (labels_of(given(mdp, seed)[1], len(many.targets)) for seed in (0, 0, 1))
    assert (one >= 0).all()
    np.testing.assert_array_equal(one, again)
    for mean, expected in (((one == other).mean(), 0.25), ((one == many.targets).mean(), 0.25)):
        assert mean == pytest.approx(expected, abs=5 * np.sqrt(0.25 * 0.75 / len(one)))
    true = labels_of(given(ClassificationMDP(many))[1], len(many.targets))
    np.testing.assert_array_equal(true, many.targets)


@dataclass(frozen=True)
class Config:
    seed: Lane[int] = 0


def source(config):
    return DeviceExperience(
        batch_size=32, learning_starts=50, capacity=2_000, discount=0.5, epsilon=LinearEpsilon(0.2, 0.2, 1),
        evaluation_limit=40,
    )  # fmt: skip


def runner(mdp, events, seeds=(0, 1)):
    experiment = Experiment(
        "labels", Config, lambda preset: {}, lambda config: environments([mdp]),
        lambda config: dqn(mlp(mdp.images.input_shape, [64], mdp.classes), optax.adam(3e-3), target_period=50),
        lambda config, tasks: events(tasks[0]), source,
    )  # fmt: skip
    made = Runner(experiment, [Config(seed) for seed in seeds], [f"lane{seed}" for seed in seeds])
    made.check()
    return made


def test_a_network_is_shown_the_images_and_learns_their_values():
    """Every image tells its class by one bright pixel; the values are known."""
    targets = np.tile(np.arange(4, dtype=np.int32), 10)
    inputs = (np.eye(4, dtype=np.uint8)[targets] * 255).reshape(-1, 2, 2, 1)
    mdp = ClassificationMDP(whole(from_arrays(inputs, targets, name="pixels")))

    def events(task):
        from neoteny.probes import dead_units

        return (
            Switch(task), Train(task, 1_500, record_every=500), Evaluate(task, samples=3),
            Probe(dead_units, on=task, samples=16),
        )  # fmt: skip

    run = runner(mdp, events)
    records = [record for tick in run.ticks() for record in tick.records]
    rewards = [r.value for r in records if r.metric == "train_reward" and r.step == 1_500]
    # A fifth of the actions is random, a quarter of those right.
    assert np.mean(rewards) == pytest.approx(0.85, abs=0.05)
    returns = [r.value for r in records if r.metric == "return"]
    assert returns == [40.0, 40.0]
    expected = np.eye(4) + 0.5 / (1 - 0.5)
    for lane in range(2):
        network = jax.tree.map(lambda x, lane=lane: x[lane], run.state.learner.networks["online"])
        values = network(jnp.asarray(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1))).output
        np.testing.assert_allclose(values, expected, atol=0.15)


def test_lanes_differ_and_the_images_are_no_part_of_the_state():
    mdp = ClassificationMDP(IMAGES, Labels.RANDOM)
    run = runner(mdp, lambda task: (Switch(task), Train(task, 4)))
    list(run.ticks())
    drawn = run.state.source.drawn
    assert drawn.rows.shape == (2, len(IMAGES.targets))
    assert (np.asarray(drawn.rows[0]) != np.asarray(drawn.rows[1])).any()
    assert not any(leaf.dtype == np.uint8 and leaf.size > 10_000 for leaf in jax.tree.leaves(run.state))
    assert run.data_sets() == {IMAGES.name: IMAGES.digest}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ClassificationMDP(images(each=5), Labels.RANDOM), "need 40 images"),
        (lambda: ClassificationMDP(IMAGES, split="later"), "no split 'later'"),
        (lambda: ClassificationMDP(IMAGES).reset(jax.random.key(0)), "given"),
    ],
)
def test_what_cannot_be_played_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()
