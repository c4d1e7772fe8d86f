"""One head a task: what is masked, what a task's training may touch, and whose moments they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import Batch, supervised
from neoteny.networks import Heads, head_per_task, mlp, split_trainable, use_head
from neoteny.networks.heads import MASKED

MAKER = head_per_task(mlp(4, (6,), 3), (3, 2))
X = jax.random.normal(jax.random.key(1), (8, 4))


def batch(classes: int) -> Batch:
    return Batch(X, jnp.arange(8, dtype=jnp.int32) % classes)


def test_every_task_has_its_own_linear_map_and_masked_outputs():
    network = MAKER(jax.random.key(0))
    features = network(X).stages["hidden1"]
    for task, classes in enumerate((3, 2)):
        logits = use_head(network, task)(X).output
        head = network.stage("head")
        expected = np.asarray(features, np.float64) @ np.asarray(head.weight[task], np.float64)
        np.testing.assert_allclose(logits[:, :classes], expected[:, :classes], atol=1e-5)
        assert (logits[:, classes:] == MASKED).all()
    assert not np.array_equal(head.weight[0], head.weight[1])


def test_hidden_stages_are_those_of_the_network_without_heads():
    one, many = mlp(4, (6,), 3)(jax.random.key(0)), MAKER(jax.random.key(0))
    np.testing.assert_array_equal(one(X).stages["hidden1"], many(X).stages["hidden1"])


def test_gradients_of_other_heads_and_of_masked_outputs_are_exactly_zero():
    network = use_head(MAKER(jax.random.key(0)), 1)
    parameters, rest = split_trainable(network)

    def loss(parameters):
        import equinox as eqx

        logits = eqx.combine(parameters, rest)(X).output
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch(2).targets).mean()

    head = jax.grad(loss)(parameters).stage("head")
    assert (head.weight[0] == 0).all()
    assert (head.bias[0] == 0).all()
    assert (head.weight[1, :, 2] == 0).all()
    assert (head.weight[1, :, :2] != 0).any()


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2, weight_decay=0.1)])
def test_a_finished_tasks_head_is_not_moved_by_momentum_or_decay(optimizer):
    learner = supervised(MAKER, optimizer)
    update = jax.jit(learner.update)
    state = learner.init(jax.random.key(0))
    for _ in range(3):
        state, _ = update(state, batch(3), jax.random.key(2))
    kept = state.networks["online"].stage("head").weight
    state = learner.switch(state, jnp.int32(1), None, jax.random.key(3))
    assert int(state.networks["online"].stage("head").task.value) == 1
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state.optimizer["online"]["head"]))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(state.optimizer["online"]["hidden1"]))
    for _ in range(3):
        state, _ = update(state, batch(2), jax.random.key(2))
    head = state.networks["online"].stage("head").weight
    np.testing.assert_array_equal(head[0], kept[0])
    assert (head[1] != kept[1]).any()


def test_lanes_may_be_at_different_tasks():
    network = MAKER(jax.random.key(0))
    together = jax.vmap(lambda task: use_head(network, task)(X).output)(jnp.arange(2))
    for task in range(2):
        np.testing.assert_allclose(together[task], use_head(network, task)(X).output, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="no head for task 2"):
        use_head(MAKER(jax.random.key(0)), 2)
    with pytest.raises(ValueError, match="at least one task"):
        Heads(4, (), key=jax.random.key(0))
    with pytest.raises(ValueError, match="Heads; head_per_task replaces a Dense head"):
        head_per_task(MAKER, (2,))(jax.random.key(0))
    single = mlp(4, (6,), 3)(jax.random.key(0))
    assert use_head(single, 5) is single
