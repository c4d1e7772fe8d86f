"""The random walk: lengths, directions, and a leader that is not disturbed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from neoteny.learners import Batch, Scalar, Transitions, dqn, random_walk, supervised
from neoteny.learners.random_walk import gaussian_step, step_length
from neoteny.networks import mlp, split_trainable
from neoteny.training.clock import Clock

RNG = np.random.default_rng(0)
MAKER = mlp(5, [7], 3)


def transitions(rows: int = 16) -> Transitions:
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    actions = jnp.asarray(RNG.integers(3, size=rows), jnp.int32)
    return Transitions(draw(rows, 5), actions, draw(rows), jnp.full(rows, 0.9), draw(rows, 5), 0.0, 0.0, 0.0)


def vector(network) -> np.ndarray:
    leaves = jax.tree.leaves(split_trainable(network)[0])
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def test_a_gaussian_step_has_its_length_and_no_direction():
    like = split_trainable(MAKER(jax.random.key(0)))[0]
    along = vector(like) / np.linalg.norm(vector(like))
    steps = jax.vmap(lambda i: gaussian_step(like, jnp.float32(0.37), jax.random.fold_in(jax.random.key(1), i)))(
        jnp.arange(400)
    )
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(400, -1) for leaf in jax.tree.leaves(steps)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 0.37, rtol=1e-6)
    cosines = flat @ along / 0.37
    error = cosines.std(ddof=1) / 20
    assert abs(cosines.mean()) < 3 * error
    assert abs(cosines.std(ddof=1) - 1 / np.sqrt(flat.shape[1])) < 0.2 / np.sqrt(flat.shape[1])


def test_every_step_is_as_long_as_the_learner_s_and_in_another_direction():
    plain = dqn(MAKER, optax.sgd(0.3), target_period=3)
    walk, state = random_walk(plain), random_walk(plain).init(jax.random.key(0))
    update, alone, leader = jax.jit(walk.update), jax.jit(plain.update), plain.init(jax.random.key(0))
    clock, cosines = Clock.start(), []
    for number in range(12):
        batch, key = transitions(), jax.random.fold_in(jax.random.key(2), number)
        before = vector(state.networks["online"])
        state, metrics = update(state, batch, key)
        old, (leader, _) = vector(leader.networks["online"]), alone(leader, batch, key)
        learned, walked = vector(leader.networks["online"]) - old, vector(state.networks["online"]) - before
        np.testing.assert_allclose(metrics["step"], np.linalg.norm(learned), rtol=1e-5)
        # What is left is the rounding of parameters to float32.
        np.testing.assert_allclose(np.linalg.norm(walked), np.linalg.norm(learned), rtol=1e-4)
        cosines.append(walked @ learned / np.linalg.norm(walked) / np.linalg.norm(learned))
        clock = clock.tick()
        state, leader = walk.periodic(state, clock), plain.periodic(leader, clock)
        for name in ("online", "target"):
            np.testing.assert_array_equal(vector(state.networks[f"leader_{name}"]), vector(leader.networks[name]))
    assert abs(np.mean(cosines)) < 3 * np.std(cosines, ddof=1) / np.sqrt(12)
    assert np.abs(vector(state.networks["target"]) - vector(state.networks["online"])).max() == 0  # 12 is a multiple
    assert np.abs(vector(state.networks["target"]) - vector(state.networks["leader_target"])).max() > 0


def test_probes_see_the_walk_and_the_leader_acts():
    plain = dqn(MAKER, optax.sgd(0.3), double=False, values=Scalar(None), target_period=3)
    walk = random_walk(plain)
    state, _ = walk.update(walk.init(jax.random.key(0)), transitions(), jax.random.key(1))
    assert walk.view(state).network is state.networks["online"]
    x = transitions(64).observations
    chosen = np.asarray(jnp.argmax(state.networks["leader_online"](x).output, axis=1))
    np.testing.assert_array_equal(walk.act(state, x, jax.random.key(0)), chosen)
    np.testing.assert_array_equal(walk.predict(state, x), state.networks["online"](x).output)
    clock = Clock.start()
    for number in range(4):  # the target is copied after the third
        state, _ = walk.update(state, transitions(), jax.random.key(number))
        clock = clock.tick()
        state = walk.periodic(state, clock)
    data, target = transitions(), state.networks["target"]
    assert np.abs(vector(target) - vector(state.networks["leader_target"])).max() > 0
    best = np.asarray(target(data.next_observations).output).max(axis=1)
    taken = np.asarray(state.networks["online"](data.observations).output)[np.arange(16), np.asarray(data.actions)]
    expected = 0.5 * np.mean((np.asarray(data.rewards) + 0.9 * best - taken) ** 2)
    loss = walk.view(state).loss(state.networks["online"], data, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert state.followers == (("target", "online"), ("leader_target", "leader_online"))


def test_a_supervised_learner_walks_too():
    walk = random_walk(supervised(MAKER, optax.adam(1e-2)))
    state = walk.switch(walk.init(jax.random.key(0)), jnp.int32(0), None, jax.random.key(1))
    data = transitions(32)
    new, metrics = walk.update(state, Batch(data.observations, data.actions), jax.random.key(2))
    length = step_length(state.networks["online"], new.networks["online"])
    np.testing.assert_allclose(length, metrics["step"], rtol=1e-4)
    assert walk.act is None
    assert walk.periodic is None
