"""Parameter groups inside a stage, against AdamW written out in float64, and the schedule at its corners."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import Batch, supervised
from neoteny.learners.optimizers import adamw_groups, nothing, warmup_cosine
from neoteny.networks import Chain, Dense, Layer, Network, split_trainable

SLOW = frozenset({"nu_log", "theta_log", "gamma_log", "B_re", "B_im"})


def marked(tree):
    """True in the fields, or under the keys, called one of SLOW."""

    def inside(path, _):
        return any(getattr(entry, "name", getattr(entry, "key", None)) in SLOW for entry in path)

    return jax.tree_util.tree_map_with_path(inside, tree)


class Mixer(Layer):
    """Stands for a recurrent layer: the same field names, no recurrence."""

    nu_log: jax.Array
    theta_log: jax.Array
    gamma_log: jax.Array
    B_re: jax.Array
    B_im: jax.Array
    C_re: jax.Array

    def __init__(self, width, key):
        keys = iter(jax.random.split(key, 6))
        self.nu_log, self.theta_log, self.gamma_log = (jax.random.normal(next(keys), (width,)) for _ in range(3))
        self.B_re, self.B_im, self.C_re = (jax.random.normal(next(keys), (width, width)) for _ in range(3))

    def __call__(self, x, *, train=False, key=None):
        state = x @ self.B_re * jnp.exp(self.gamma_log - jnp.exp(self.nu_log)) + jnp.sin(x @ self.B_im + self.theta_log)
        return state @ self.C_re, self


def maker(key):
    first, second, third = jax.random.split(key, 3)
    return Network(block=Chain(Mixer(4, first), Dense(4, 4, key=second)), head=Dense(4, 3, key=third))


def stepped(weight_decay, *, steps=1, rate=0.1, factor=0.25):
    learner = supervised(maker, adamw_groups(rate, weight_decay=weight_decay, slow=marked, factor=factor))
    state = learner.init(jax.random.key(0))
    batch = Batch(jax.random.normal(jax.random.key(1), (8, 4)), jnp.arange(8) % 3)
    for step in range(steps):
        state, _ = learner.update(state, batch, jax.random.key(step))
    return state.networks["online"]


def test_decay_leaves_the_slow_group_bitwise_and_changes_the_rest():
    plain, decayed = stepped(0.0), stepped(0.5)
    one, other = plain.stage("block").layers, decayed.stage("block").layers
    for name in SLOW:
        assert np.array_equal(getattr(one[0], name), getattr(other[0], name)), name
    assert not np.array_equal(one[0].C_re, other[0].C_re)
    assert not np.array_equal(one[1].weight, other[1].weight)
    assert not np.array_equal(plain.stage("head").weight, decayed.stage("head").weight)


def test_two_steps_are_adamw_by_hand_in_both_groups():
    rng = np.random.default_rng(0)
    params = {"nu_log": rng.normal(size=3), "C_re": rng.normal(size=3)}
    rate, decay, factor, b1, b2, eps = 0.1, 0.3, 0.25, 0.9, 0.999, 1e-8
    rule = adamw_groups(rate, weight_decay=decay, slow=marked, factor=factor)
    with jax.enable_x64(True):
        held = {name: jnp.asarray(value) for name, value in params.items()}
        state = rule.init(held)
        m = v = dict.fromkeys(params, 0.0)
        for step in (1, 2):
            gradient = {name: rng.normal(size=3) for name in params}
            change, state = rule.update({n: jnp.asarray(g) for n, g in gradient.items()}, state, held)
            held = optax.apply_updates(held, change)
            m = {n: b1 * m[n] + (1 - b1) * gradient[n] for n in params}
            v = {n: b2 * v[n] + (1 - b2) * gradient[n] ** 2 for n in params}
            for name in params:
                adam = m[name] / (1 - b1**step) / (np.sqrt(v[name] / (1 - b2**step)) + eps)
                slow = name in SLOW
                params[name] = params[name] - rate * (factor if slow else 1.0) * (
                    adam + (0.0 if slow else decay) * params[name]
                )
        for name, expected in params.items():
            np.testing.assert_allclose(held[name], expected, rtol=1e-12)


def test_the_factor_scales_the_slow_group_alone():
    start = maker(jax.random.key(0))
    whole, quarter = stepped(0.0, factor=1.0), stepped(0.0, factor=0.25)
    chosen = marked(split_trainable(whole)[0])
    rows = zip(
        *(jax.tree.leaves(split_trainable(tree)[0]) for tree in (whole, quarter)), jax.tree.leaves(chosen), strict=True
    )
    assert sum(jax.tree.leaves(chosen)) == len(SLOW)
    learner = supervised(maker, optax.sgd(0.0))
    begun = jax.tree.leaves(split_trainable(learner.init(jax.random.key(0)).networks["online"])[0])
    del start
    for (one, other, slow), origin in zip(rows, begun, strict=True):
        np.testing.assert_allclose(other - origin, (one - origin) * (0.25 if slow else 1.0), rtol=1e-3, atol=1e-7)


def test_without_marks_it_is_adamw():
    params, gradient = {"nu_log": jnp.ones(2)}, {"nu_log": jnp.array([0.3, -2.0])}
    assert nothing(params) == {"nu_log": False}
    rule, plain = adamw_groups(0.1, weight_decay=0.3, factor=0.25), optax.adamw(0.1, weight_decay=0.3)
    ours, theirs = (each.update(gradient, each.init(params), params)[0]["nu_log"] for each in (rule, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_traced_settings_and_lanes():
    def lane(rate, decay, factor):
        rule = adamw_groups(warmup_cosine(rate, 10), weight_decay=decay, slow=marked, factor=factor)
        params = {"nu_log": jnp.ones(2), "C_re": jnp.ones(2)}
        return rule.update(params, rule.init(params), params)[0]["nu_log"]

    rates = jnp.asarray([1e-3, 1e-2])
    out = eqx.filter_jit(jax.vmap(lane, in_axes=(0, None, None)))(rates, 0.1, 0.5)
    assert out.shape == (2, 2)


def test_the_schedule_at_its_corners():
    schedule = warmup_cosine(1e-2, 100, warmup=0.1, floor=1e-7)
    np.testing.assert_allclose(schedule(jnp.asarray(0)), 1e-7, rtol=1e-5)
    np.testing.assert_allclose(schedule(jnp.asarray(5)), (1e-2 + 1e-7) / 2, rtol=1e-5)
    np.testing.assert_allclose(schedule(jnp.asarray(10)), 1e-2, rtol=1e-5)
    np.testing.assert_allclose(schedule(jnp.asarray(55)), (1e-2 + 1e-7) / 2, rtol=1e-4)
    np.testing.assert_allclose(schedule(jnp.asarray([100, 1000])), 1e-7, rtol=1e-2)
    np.testing.assert_allclose(warmup_cosine(1.0, 4, warmup=0.0)(jnp.asarray(0)), 1.0, rtol=1e-6)
    for steps, warmup in ((0, 0.1), (10, 1.0), (10, -0.1)):
        with pytest.raises(ValueError, match="warmup_cosine"):
            warmup_cosine(1.0, steps, warmup=warmup)
