"""Supervised learning against NumPy references in float64."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import SQUARED_ERROR, Batch, supervised
from neoteny.networks import BatchNorm, Chain, Dense, Network, Norm, mlp, relu
from neoteny.regularizers import L2, L2ToInit

MAKER = mlp(5, [7], 3)


def batch(seed: int = 0, rows: int = 11) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 5)).astype(np.float32)
    return Batch(jnp.asarray(inputs), jnp.asarray(rng.integers(0, 3, rows), jnp.int32))


def parameters(network: Network) -> list[np.ndarray]:
    dense = [
        layer for stage in network.stages for layer in getattr(stage, "layers", (stage,)) if isinstance(layer, Dense)
    ]
    return [np.asarray(array, np.float64) for layer in dense for array in (layer.weight.T, layer.bias)]


def reference_gradients(theta: list[np.ndarray], data: Batch) -> list[np.ndarray]:
    """Gradient of the mean cross-entropy of a one-hidden-layer ReLU network, written out."""
    w1, b1, w2, b2 = theta
    x, y = np.asarray(data.inputs, np.float64), np.asarray(data.targets)
    hidden = x @ w1 + b1
    active = np.maximum(hidden, 0)
    logits = active @ w2 + b2
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(3)[y]) / len(y)
    back = (error @ w2.T) * (hidden > 0)
    return [x.T @ back, back.sum(0), active.T @ error, error.sum(0)]


@pytest.mark.parametrize(("b2", "eps_root"), [(0.999, 0.0), (0.9, 0.0), (0.999, 1e-3), (0.9, 1e-3)])
def test_adam_equals_its_definition_for_100_steps(b2, eps_root):
    rate, b1, eps = 1e-2, 0.9, 1e-9
    learner = supervised(MAKER, optax.adam(rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root))
    state = learner.init(jax.random.key(0))
    theta = parameters(state.networks["online"])
    first, second = [0 * t for t in theta], [0 * t for t in theta]
    update = eqx.filter_jit(learner.update)
    for step in range(1, 101):
        data = batch(step)
        state, _ = update(state, data, jax.random.key(step))
        for i, gradient in enumerate(reference_gradients(theta, data)):
            first[i] = b1 * first[i] + (1 - b1) * gradient
            second[i] = b2 * second[i] + (1 - b2) * gradient**2
            mean, square = first[i] / (1 - b1**step), second[i] / (1 - b2**step)
            theta[i] = theta[i] - rate * mean / (np.sqrt(square + eps_root) + eps)
    for found, expected in zip(parameters(state.networks["online"]), theta, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    # The four settings lead to different places, so none of the arguments is ignored.
    other = supervised(MAKER, optax.adam(rate, b1=b1, b2=0.5, eps=eps, eps_root=eps_root))
    moved, _ = other.update(other.init(jax.random.key(0)), batch(1), jax.random.key(1))
    moved, _ = other.update(moved, batch(2), jax.random.key(2))
    assert not np.allclose(parameters(moved.networks["online"])[0], theta[0], atol=1e-3)


def test_eps_root_zero_is_plain_adam_bit_for_bit():
    plain = supervised(MAKER, optax.adam(1e-3))
    rooted = supervised(MAKER, optax.adam(1e-3, eps_root=0.0))
    one, _ = plain.update(plain.init(jax.random.key(0)), batch(), jax.random.key(1))
    other, _ = rooted.update(rooted.init(jax.random.key(0)), batch(), jax.random.key(1))
    for a, b in zip(parameters(one.networks["online"]), parameters(other.networks["online"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_metrics_are_those_before_the_update():
    learner = supervised(MAKER, optax.sgd(0.5))
    state = learner.init(jax.random.key(0))
    data = batch()
    scores = learner.score(learner.predict(state, data.inputs), data.targets)
    _, metrics = learner.update(state, data, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], scores["loss"].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], scores["accuracy"].mean(), rtol=1e-6)
    logits = np.asarray(learner.predict(state, data.inputs), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(11), np.asarray(data.targets)]
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)


def test_frozen_stages_stay_and_hold_no_optimiser_state():
    learner = supervised(MAKER, optax.adam(1e-2), frozen=("hidden1",))
    state = learner.init(jax.random.key(0))
    assert set(state.optimizer["online"]) == {"head"}
    new, _ = learner.update(state, batch(), jax.random.key(1))
    before, after = parameters(state.networks["online"]), parameters(new.networks["online"])
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert not np.array_equal(before[2], after[2])


def test_every_stage_has_a_count_of_its_own():
    learner = supervised(MAKER, optax.adam(1e-2))
    state = learner.init(jax.random.key(0))
    for step in range(3):
        state, _ = learner.update(state, batch(step), jax.random.key(step))
    counts = {name: int(optax.tree_utils.tree_get(s, "count")) for name, s in state.optimizer["online"].items()}
    assert counts == {"hidden1": 3, "head": 3}


def test_a_rule_before_the_stages_sees_the_whole_gradient():
    limit = 1e-3
    clipped = supervised(MAKER, optax.sgd(1.0), before=optax.clip_by_global_norm(limit))
    state = clipped.init(jax.random.key(0))
    new, _ = clipped.update(state, batch(), jax.random.key(1))
    moved = [
        a - b for a, b in zip(parameters(new.networks["online"]), parameters(state.networks["online"]), strict=True)
    ]
    assert np.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("kind", [L2, L2ToInit])
def test_penalties_reach_the_gradient(kind):
    plain = supervised(MAKER, optax.sgd(0.1))
    held = supervised(MAKER, optax.sgd(0.1), regularizer=kind(0.5))
    state, start = held.init(jax.random.key(0)), plain.init(jax.random.key(0))
    origin = parameters(start.networks["online"])
    for step in range(2):
        before = parameters(state.networks["online"])
        start = eqx.tree_at(lambda s: s.networks, start, state.networks)
        expected, _ = plain.update(start, batch(step), jax.random.key(step))
        state, _ = held.update(state, batch(step), jax.random.key(step))
        for i, (found, without) in enumerate(
            zip(parameters(state.networks["online"]), parameters(expected.networks["online"]), strict=True)
        ):
            pull = before[i] if kind is L2 else before[i] - origin[i]
            np.testing.assert_allclose(found, without - 0.1 * 2 * 0.5 * pull, rtol=1e-4, atol=1e-6)


def test_statistics_move_by_the_forward_pass_and_not_by_the_optimiser():
    def maker(key):
        one, two = jax.random.split(key)
        return Network(hidden=Chain(Dense(5, 7, key=one), BatchNorm(7)), head=Dense(7, 3, key=two))

    learner = supervised(maker, optax.sgd(0.0))
    state = learner.init(jax.random.key(0))
    new, _ = learner.update(state, batch(), jax.random.key(1))
    old_norm, new_norm = (s.networks["online"].stages[0].layers[1] for s in (state, new))
    hidden = np.asarray(state.networks["online"].stages[0].layers[0](batch().inputs)[0])
    np.testing.assert_allclose(new_norm.mean.value, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    assert not np.array_equal(old_norm.variance.value, new_norm.variance.value)
    np.testing.assert_array_equal(old_norm.scale, new_norm.scale)
    view = learner.view(new)
    view.loss(view.network, batch(), None)
    np.testing.assert_array_equal(view.network.stages[0].layers[1].mean.value, new_norm.mean.value)


def test_regression_fits_targets():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    data = Batch(inputs, inputs @ jnp.asarray(rng.normal(size=(5, 2)), jnp.float32))
    learner = supervised(mlp(5, [32], 2), optax.adam(1e-2), objective=SQUARED_ERROR)
    state = learner.init(jax.random.key(0))
    update = eqx.filter_jit(learner.update)
    losses = []
    for step in range(200):
        state, metrics = update(state, data, jax.random.key(step))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.02 * losses[0]
    expected = np.square(np.asarray(learner.predict(state, inputs)) - np.asarray(data.targets)).mean()
    assert float(learner.score(learner.predict(state, inputs), data.targets)["loss"].mean()) == pytest.approx(
        expected, rel=1e-4
    )


def test_layer_norm_starts_from_the_same_weights():
    plain = supervised(MAKER, optax.adam(1e-3)).init(jax.random.key(3))
    normed = supervised(mlp(5, [7], 3, norm=Norm.LAYER, activation=relu), optax.adam(1e-3)).init(jax.random.key(3))
    for a, b in zip(parameters(plain.networks["online"]), parameters(normed.networks["online"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_instantiated_network_is_refused():
    with pytest.raises(TypeError, match="lambda key"):
        supervised(MAKER(jax.random.key(0)), optax.adam(1e-3))
    with pytest.raises(KeyError, match="hidden1"):
        supervised(MAKER, optax.adam(1e-3), frozen=("hiden1",)).init(jax.random.key(0))
