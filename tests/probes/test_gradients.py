"""Cosines of gradients against a loop, and what is made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import Batch, Scalar, Transitions, TwoHot, dqn, supervised
from neoteny.networks import mlp
from neoteny.networks.network import split_trainable
from neoteny.probes import KNOWN, cluster_order, gradient_covariance, interference, view_interference
from neoteny.probes.gradients import view_cosines

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 5)), jnp.float32)
Y = jnp.asarray(RNG.integers(3, size=16), jnp.int32)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), "b": jnp.asarray(RNG.normal(size=3), jnp.float32)}


def example_loss(params, example):
    x, y = example
    return optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(x) @ params["w"] + params["b"], y)


def looped(params, examples) -> np.ndarray:
    rows = []
    for i in range(len(examples[0])):
        gradient = jax.grad(example_loss)(params, jax.tree.map(lambda leaf, i=i: leaf[i], examples))
        rows.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]))
    rows = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_cosines_equal_a_loop():
    cosines = np.asarray(gradient_covariance(example_loss, PARAMS, (X, Y)))
    np.testing.assert_allclose(cosines, looped(PARAMS, (X, Y)), atol=2e-6)
    np.testing.assert_array_equal(cosines, cosines.T)
    np.testing.assert_array_equal(np.diagonal(cosines), 1)
    assert (cosines < -0.1).any()
    assert (cosines[~np.eye(16, dtype=bool)] > 0.1).any()


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_the_scale_of_the_loss_does_not_matter(scale):
    plain = gradient_covariance(example_loss, PARAMS, (X, Y))
    scaled = gradient_covariance(lambda p, e: scale * example_loss(p, e), PARAMS, (X, Y))
    np.testing.assert_allclose(scaled, plain, atol=1e-5)


def test_an_example_without_a_gradient_is_left_out_and_counted():
    weights = jnp.ones(16).at[3].set(0.0)
    cosines = gradient_covariance(lambda p, e: e[2] * example_loss(p, e[:2]), PARAMS, (X, Y, weights))
    missing = np.isnan(cosines)
    assert missing[3].all()
    assert missing[:, 3].all()
    assert missing.sum() == 31
    kept = [i for i in range(16) if i != 3]
    found, alone = interference(cosines), interference(np.asarray(cosines)[np.ix_(kept, kept)])
    assert (float(found.left_out), float(alone.left_out)) == (1, 0)
    for name in ("negative", "mean", "rank"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-5)


def test_summaries_of_known_matrices():
    same, apart = interference(jnp.ones((6, 6))), interference(jnp.eye(6))
    np.testing.assert_allclose([same.negative, same.mean, same.rank], [0, 1, 1], atol=1e-5)
    np.testing.assert_allclose([apart.negative, apart.mean, apart.rank], [0, 0, 6], rtol=1e-5)
    signs = jnp.array([1.0, 1.0, 1.0, -1.0])
    against = interference(jnp.outer(signs, signs))
    np.testing.assert_allclose([against.negative, against.mean, against.rank], [0.5, 0, 1], atol=1e-5)
    nothing = interference(jnp.full((3, 3), jnp.nan))
    assert np.isnan([nothing.negative, nothing.mean, nothing.rank]).all()
    assert float(nothing.left_out) == 3


def test_clusters_are_together_and_rows_without_a_gradient_last():
    member = np.array([0, 1, 2] * 4 + [0])
    points = np.eye(3)[member]
    cosines = points @ points.T
    cosines[5], cosines[:, 5] = np.nan, np.nan
    order = cluster_order(cosines, clusters=3, rng=np.random.default_rng(1))
    assert sorted(order) == list(range(13))
    assert order[-1] == 5
    shown = member[order[:-1]]
    assert (np.diff(shown) != 0).sum() == 2
    assert shown[0] == 0  # the largest first
    np.testing.assert_array_equal(order, cluster_order(cosines, clusters=3, rng=np.random.default_rng(1)))
    np.testing.assert_array_equal(cluster_order(np.full((2, 2), np.nan), rng=np.random.default_rng(0)), [0, 1])
    with pytest.raises(ValueError, match="clusters >= 1"):
        cluster_order(np.eye(3), clusters=0, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(n, n\)"):
        cluster_order(np.eye(3)[:2], rng=np.random.default_rng(0))


def test_examples_of_different_numbers_are_refused():
    with pytest.raises(ValueError, match="one leading axis"):
        gradient_covariance(example_loss, PARAMS, (X, Y[:4]))


def transitions(rows: int) -> Transitions:
    return Transitions(X[:rows], Y[:rows], X[:rows, 0], jnp.full(rows, 0.9), X[1 : rows + 1], 2.0, 3.0, 0.5)


@pytest.mark.parametrize("values", [Scalar(), TwoHot(-1.0, 5.0, 7)])
def test_any_learner_s_training_loss(values):
    learner = dqn(mlp(5, [6], values.outputs(3)), optax.sgd(0.1), values=values)
    view, data, key = learner.view(learner.init(jax.random.key(0))), transitions(8), jax.random.key(1)
    cosines = np.asarray(view_cosines(view, data, key))
    parameters, _ = split_trainable(view.network)
    rows = []
    for i in range(8):
        alone = data._replace(**{n: getattr(data, n)[i : i + 1] for n in data._fields[:5]})
        gradient = jax.grad(lambda n, alone=alone: view.loss(n, alone, key))(parameters)
        rows.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]))
    rows = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, rows @ rows.T, atol=1e-5)


def test_a_run_records_the_summaries():
    learner = supervised(mlp(5, [6], 3), optax.sgd(0.1))
    view = learner.view(learner.init(jax.random.key(0)))
    measured = view_interference(view, Batch(X, Y), jax.random.key(1))
    assert set(measured) == {"negative", "mean", "rank", "left_out"}
    assert 0 < float(measured["negative"]) < 1
    assert 1 < float(measured["rank"]) < 16
    assert KNOWN[gradient_covariance].name == "gradient_covariance"
