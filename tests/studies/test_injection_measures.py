"""What the injection study measures: jumps of outputs, numbers of parameters, regressions on what policies played."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from device_loop import LAST, NEXT, REWARD, Maze
from neoteny.interventions import Inject
from neoteny.learners import supervised
from neoteny.learners.learner import Batch, View, attach
from neoteny.networks import mlp
from neoteny.studies.injection.illustration import Regressions, Set, played
from neoteny.studies.injection.relabel import HEAD, OutputJump, count_parameters

# The package's own `illustration` is the experiment.
ILLUSTRATION = importlib.import_module("neoteny.studies.injection.illustration")


SMALL, TWO = mlp((6,), [16, 8], 3), mlp((5,), [16], 2)


def networks(*seeds, maker=SMALL):
    return [maker(jax.random.key(seed)) for seed in seeds]


def view_of(network, maker, optimizer):
    """Of a learner without losses and features, which none of these measurements asks for."""

    def unasked(*_):
        raise AssertionError

    return View(network, unasked, optimizer, unasked, maker)


@pytest.mark.parametrize("size", [0.1, 100.0])
def test_output_jumps_are_those_of_every_network(size):
    """At both sizes of outputs: those below 1 are not scaled up."""
    online, target, online_after, target_after, now = networks(0, 1, 2, 3, 4)
    inputs = size * np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)
    batch = Batch(jnp.asarray(inputs), jnp.zeros(32, jnp.int32))
    saved = {
        "before": {"online": online, "target": target},
        "after": {"online": online_after, "target": target_after},
    }
    view, key = view_of(now, None, optax.sgd(1.0)), jax.random.key(0)

    def jump(old, new):
        old, new = (np.asarray(network(batch.inputs).output, np.float64) for network in (old, new))
        assert (np.abs(old).max() > 1) == (size > 1)
        return np.abs(new - old).max() / max(1.0, np.abs(old).max())

    live, kept = OutputJump("before")(view, batch, key, saved), OutputJump("before", "after")(view, batch, key, saved)
    assert live == {"online": pytest.approx(jump(online, now), rel=1e-5)}
    expected = {"online": jump(online, online_after), "target": jump(target, target_after)}
    assert kept == pytest.approx(expected, rel=1e-5)
    assert min(*live.values(), *kept.values()) > 0.01
    assert OutputJump("before", "before")(view, batch, key, saved) == {"online": 0.0, "target": 0.0}


def test_injection_trains_as_many_parameters_as_before_and_stores_two_heads_more():
    learner = supervised(SMALL, optax.adam(1e-3))
    state = attach(learner.init(jax.random.key(0)), learner)
    encoder, head = 6 * 16 + 16, (16 * 8 + 8) + (8 * 3 + 3)
    assert count_parameters(state.networks["online"]) == {"trained": encoder + head, "stored": encoder + head}
    injected = Inject(HEAD)(state, jax.random.key(1))
    assert count_parameters(injected.networks["online"]) == {"trained": encoder + head, "stored": encoder + 3 * head}


def test_a_policy_is_played_as_it_acts():
    """In a maze whose values are known for every policy."""
    discount, envs, states = 0.9, 4, 2_000
    policies = [(np.asarray(one(jnp.eye(5)).output).argmax(axis=1), one) for one in networks(*range(9), maker=TWO)]
    # One that does the same everywhere would tell little.
    greedy, network = next(policy for policy in policies if set(policy[0][:LAST]) == {0, 1})

    def play(epsilon, discount):
        data = jax.jit(
            lambda key: played(Maze(), network, key, states=states, envs=envs, epsilon=epsilon, discount=discount)
        )(jax.random.key(0))
        return np.asarray(data.states).argmax(axis=1), np.asarray(data.actions), np.asarray(data.returns)

    values = np.zeros(5)
    for _ in range(500):
        values = np.asarray([REWARD[s][a] + discount * values[NEXT[s][a]] for s, a in enumerate(greedy)])
        values[LAST] = 0.0
    places, actions, returns = play(0.0, discount)
    assert len(set(places)) > 2
    np.testing.assert_array_equal(actions, greedy[places])
    expected = values[places]
    np.testing.assert_allclose(returns, (expected - expected.mean()) / expected.std(), atol=1e-4)
    places, actions, _ = play(0.5, discount)
    assert np.mean(actions != greedy[places]) == pytest.approx(0.25, abs=0.05)


def regression_set(size=64):
    """Returns that depend on state and action, of mean 0 and variance 1."""
    rng = np.random.default_rng(0)
    states, actions = rng.random((size, 6)) < 0.5, rng.integers(3, size=size)
    returns = (states * rng.standard_normal((3, 6))[actions]).sum(axis=1)
    scaled = (returns - returns.mean()) / returns.std()
    return Set(jnp.asarray(states), jnp.asarray(actions, jnp.int32), jnp.asarray(scaled, jnp.float32))


def regressions(policies, updates=400):
    """What the probe finds on policies that were saved in this order."""
    probe = Regressions(
        "breakout", len(policies), states=64, envs=2, batch=32, updates=updates, epsilon=0.1, discount=0.99
    )
    view = view_of(policies[-1], SMALL, optax.adam(1e-2))
    saved = {f"policy-{number}": {"online": policy} for number, policy in enumerate(policies, 1)}
    found = jax.jit(lambda key: probe(view, None, key, saved))(jax.random.key(5))
    return {place: float(value) for place, value in found.items()}


def test_a_warm_start_begins_where_the_regression_before_ended(monkeypatch):
    """Two policies whose sets are one and the same: the second time, nothing is left to learn but for a new network."""
    data = regression_set()
    monkeypatch.setattr(ILLUSTRATION, "played", lambda *_, **__: data)
    found = regressions(networks(0, 1))
    for place in ("1/warm", "1/reset", "2/reset"):
        assert found[f"{place}/updates-0.8"] > 3
        assert found[f"{place}/updates-0.3"] > 10
        assert found[f"{place}/loss"] < 0.1
    assert found["2/warm/updates-0.3"] == 1


def test_every_policy_plays_for_its_own_set(monkeypatch):
    policies, data, seen = networks(0, 1, 2), regression_set(), []
    shown = jnp.ones((1, 6))

    def noted(environment, network, key, **_):
        told = network(shown).output, jax.random.key_data(key)
        jax.debug.callback(lambda *told: seen.append(told), *told, ordered=True)
        return data

    monkeypatch.setattr(ILLUSTRATION, "played", noted)
    regressions(policies, updates=2)
    jax.effects_barrier()
    outputs, keys = zip(*seen, strict=True)
    for output, policy in zip(outputs, policies, strict=True):
        np.testing.assert_allclose(output, policy(shown).output, rtol=1e-5)
    assert len({tuple(np.ravel(key)) for key in keys}) == 3, "with draws of its own"
