"""Linear probes: a float64 reference of the same training, closed cases, and scikit-learn's logistic regression."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neoteny
from neoteny import learners, networks, tasks
from neoteny.probes.linear import Fitting, Sizes, fit, linear_probe, linear_probes, number_classes


def blobs(seed, n, d, classes, spread=1.0):
    """Gaussian classes around random centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, d))
    labels = rng.integers(0, classes, n)
    return (centres[labels] + spread * rng.standard_normal((n, d))).astype(np.float32), labels


def reference(train, labels, key, fitting, classes):
    """The definition in float64 NumPy: weights (classes, d), biases, mean and scale."""
    x = np.asarray(train, np.float64)
    n, d = x.shape
    mean, scale = (x.mean(0), np.maximum(x.std(0), 1e-6)) if fitting.standardize else (np.zeros(d), np.ones(d))
    x, y = (x - mean) / scale, np.eye(classes)[labels]
    batch = fitting.batch(n)
    parameters = [np.zeros((classes, d)), np.zeros(classes)]
    first, second = [0.0, 0.0], [0.0, 0.0]
    total, count = fitting.epochs * (n // batch), 0
    for epoch in range(fitting.epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n))
        for step in range(n // batch):
            rows = order[step * batch : (step + 1) * batch]
            logits = x[rows] @ parameters[0].T + parameters[1]
            share = np.exp(logits - logits.max(1, keepdims=True))
            error = (share / share.sum(1, keepdims=True) - y[rows]) / len(rows)
            gradients = [error.T @ x[rows] + fitting.l2 * parameters[0], error.sum(0)]
            rate = fitting.learning_rate * (1 + np.cos(np.pi * count / total)) / 2
            count += 1
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                step_size = first[i] / (1 - 0.9**count) / (np.sqrt(second[i] / (1 - 0.999**count)) + 1e-8)
                parameters[i] = parameters[i] - rate * step_size
    return *parameters, mean, scale


@pytest.mark.parametrize("fitting", [
    Fitting(epochs=4, learning_rate=1e-2, batch_size=17),
    Fitting(epochs=3, learning_rate=1e-2, batch_size=17, l2=0.3),
    Fitting(epochs=3, learning_rate=1e-2, batch_size=17, standardize=False),
])  # fmt: skip
def test_training_is_the_float64_definition(fitting):
    # Batches in which four classes cannot have equal shares: the bias of one that has a quarter gets a gradient of
    # exactly 0 in the first update, and Adam would make a step of what rounding leaves of it.
    train, labels = blobs(0, 100, 7, 4)
    train = 3 * train + 5 if fitting.standardize else train
    key = jax.random.key(3)
    weight, bias, mean, scale = reference(train, labels, key, fitting, 4)
    sizes = Sizes(4, fitting.epochs, fitting.batch(100))
    model = fit(jnp.asarray(train), jnp.asarray(labels, jnp.int32), key, *fitting[:1], fitting.learning_rate,
                fitting.standardize, sizes)  # fmt: skip
    np.testing.assert_allclose(model.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(model.scale, scale, rtol=1e-5)
    np.testing.assert_allclose(model.weight, weight, atol=2e-4)
    np.testing.assert_allclose(model.bias, bias, atol=2e-4)
    test, tested = blobs(1, 500, 7, 4)
    test = 3 * test + 5 if fitting.standardize else test
    expected = np.mean((((test - mean) / scale) @ weight.T + bias).argmax(1) == tested)
    measured = linear_probes({"a": train}, labels, {"a": test}, tested, key=key, fitting=fitting)["a"]
    assert measured.accuracy == pytest.approx(expected, abs=0.003)
    assert 0.3 < expected < 0.99, "a test that the majority class or a perfect probe would pass shows nothing"


def test_the_penalty_is_half_l2_times_the_squared_weights_and_leaves_biases_free():
    # One class in four samples, and features without information: the bias alone fits, to the log odds of the classes.
    rng = np.random.default_rng(0)
    labels = np.tile([0, 0, 0, 1], 100)
    train = rng.standard_normal((400, 3)).astype(np.float32)
    model = fit(jnp.asarray(train), jnp.asarray(labels, jnp.int32), jax.random.key(0), 100.0, 1e-2, True,
                Sizes(2, 60, 40))  # fmt: skip
    assert float(jnp.abs(model.weight).max()) < 0.01
    np.testing.assert_allclose(model.bias[0] - model.bias[1], np.log(3), atol=0.02)


def test_separable_classes_are_told_apart_and_random_labels_are_not():
    train, labels = blobs(0, 400, 20, 5, spread=0.05)
    test, tested = blobs(1, 300, 20, 5, spread=0.05)
    assert linear_probe(train, labels, test, tested) == 1.0
    rng = np.random.default_rng(0)
    shuffled = rng.integers(0, 5, 300)
    assert linear_probe(train, labels, test, shuffled) == pytest.approx(0.2, abs=0.08)


def digits():
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, labels = inputs[order], labels[order]
    return inputs[:1200], labels[:1200], inputs[1200:], labels[1200:]


def logistic_regression(train, labels, test, tested, l2=1e-4):
    from sklearn.linear_model import LogisticRegression

    mean, scale = train.mean(0), np.maximum(train.std(0), 1e-6)
    model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=5000)
    return model.fit((train - mean) / scale, labels).score((test - mean) / scale, tested)


def test_digits_agree_with_logistic_regression_to_a_point():
    split = digits()
    assert linear_probe(*split) == pytest.approx(logistic_regression(*split), abs=0.01)


def test_a_cifar_stage_agrees_with_logistic_regression_to_a_point():
    if not (Path(os.environ.get("NEOTENY_DATA", "/nowhere")) / "cifar10.npz").exists():
        pytest.skip("needs NEOTENY_DATA with cifar10.npz")
    data = tasks.cifar10()
    rows = [data.splits["train"][:4000], data.splits["test"][:2000]]
    (inputs, labels), (tested_inputs, tested) = (
        ((data.inputs[each].astype(np.float32) / 255), data.targets[each]) for each in rows
    )
    learner = learners.supervised(networks.mlp(inputs.shape[1:], [48, 48], 10), optax.adam(1e-3))
    stream = tasks.single(tasks.from_arrays(inputs, labels, dev=0, test=0))
    result = neoteny.run(learner, stream, seeds=6, steps=400)
    found, theirs = [], []
    for seed in range(6):
        network = result.network(seed)
        train, test = (np.asarray(network(jnp.asarray(each)).stages["hidden2"]) for each in (inputs, tested_inputs))
        found.append(linear_probe(train, labels, test, tested))
        theirs.append(logistic_regression(train, labels, test, tested))
    assert min(found) > 0.25, "there is something to agree on"
    # of one network, 2,000 images leave the difference of two such probes uncertain by most of a point
    assert np.mean(found) == pytest.approx(np.mean(theirs), abs=0.01)


def test_scale_and_shift_of_the_features_change_nothing():
    train, labels, test, tested = digits()
    plain = linear_probe(train, labels, test, tested, epochs=3)
    assert linear_probe(64 * train, labels, 64 * test, tested, epochs=3) == plain
    assert linear_probe(train + 8, labels, test + 8, tested, epochs=3) == pytest.approx(plain, abs=0.005)


def test_a_layer_without_variance_is_degenerate_and_scores_the_majority_class():
    labels, tested = np.array([2] * 30 + [5] * 50 + [9] * 20), np.array([5] * 10 + [2] * 25 + [9] * 5)
    rng = np.random.default_rng(0)
    train = np.broadcast_to(np.float32(rng.standard_normal(6) / 3), (100, 6))
    found = linear_probes({"flat": train}, labels, {"flat": rng.standard_normal((40, 6))}, tested)["flat"]
    assert found.degenerate
    assert found.accuracy == 10 / 40
    varied, _ = blobs(0, 100, 6, 3)
    assert not linear_probes({"a": varied}, labels, {"a": varied[:40]}, tested)["a"].degenerate


def test_a_unit_that_is_dead_in_train_and_fires_in_test_changes_nothing():
    train, labels = blobs(0, 300, 5, 3)
    test, tested = blobs(1, 200, 5, 3)
    dead = np.full((300, 1), 0.3, np.float32)
    fires = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32)
    with_dead = linear_probe(np.hstack([train, dead]), labels, np.hstack([test, fires]), tested, epochs=5)
    assert with_dead == linear_probe(train, labels, test, tested, epochs=5)


def test_lanes_and_stages_are_what_they_are_alone():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((2, 3, 90, 4)), rng.standard_normal((2, 3, 50, 4))
    labels, tested = rng.integers(0, 3, (2, 3, 90)), rng.integers(0, 3, (2, 3, 50))
    key = jax.random.key(5)
    packed = linear_probe(train, labels, test, tested, key=key)
    assert packed.shape == (2, 3)
    assert len(np.unique(packed)) > 1
    for lane in np.ndindex(2, 3):
        assert linear_probe(train[lane], labels[lane], test[lane], tested[lane], key=key) == packed[lane]
    stages = linear_probes({"a": train, "b": train[..., :2]}, labels, {"a": test, "b": test[..., :2]}, tested, key=key)
    np.testing.assert_array_equal(stages["a"].accuracy, packed)
    np.testing.assert_array_equal(stages["b"].accuracy, linear_probe(
        train[..., :2], labels, test[..., :2], tested, key=key))  # fmt: skip


def test_the_key_orders_minibatches_and_repeats():
    train, labels = blobs(0, 300, 20, 10, spread=3)
    test, tested = blobs(1, 2000, 20, 10, spread=3)
    found = [linear_probe(train, labels, test, tested, epochs=2, key=jax.random.key(k)) for k in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1
    assert linear_probe(train, labels, test, tested, epochs=2) == found[0]


def test_one_lane_that_is_not_finite_is_nan_and_no_other():
    train, labels = blobs(0, 100, 4, 3)
    lanes = np.stack([train, train])
    lanes[0, 3, 2] = np.inf
    found = linear_probe(lanes, labels, np.stack([train, train]), labels)
    assert np.isnan(found[0])
    assert found[1] == linear_probe(train, labels, train, labels)
    assert np.isnan(linear_probe(train, labels, np.where(train > 2, np.nan, train), labels))


def test_labels_are_any_integers_and_unseen_ones_are_errors():
    train, labels = blobs(0, 300, 6, 3, spread=0.01)
    test, tested = blobs(1, 90, 6, 3, spread=0.01)
    assert linear_probe(train, 10 * labels - 7, test, 10 * tested - 7) == 1.0
    seen = labels != 1
    expected = np.mean(tested != 1)
    assert linear_probe(train[seen], labels[seen], test, tested) == pytest.approx(expected)
    numbered = number_classes(np.array([7, -2, 7]), np.array([-2, 9, 7, 0, -5]))
    assert [array.tolist() for array in numbered] == [[1, 0, 1], [0, -1, 1, -1, -1]]


def test_permuted_class_labels_change_nothing_but_ties():
    train, labels, test, tested = digits()
    order = np.random.default_rng(0).permutation(10)
    plain = linear_probe(train, labels, test, tested, epochs=5)
    assert linear_probe(train, order[labels], test, order[tested], epochs=5) == pytest.approx(plain, abs=0.004)


def test_pooled_features_are_means_over_positions():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((200, 4, 3, 6)), rng.standard_normal((80, 4, 3, 6))
    labels, tested = rng.integers(0, 3, 200), rng.integers(0, 3, 80)
    pooled = linear_probe(train, labels, test, tested, pool="gap", epochs=3)
    assert pooled == linear_probe(train.mean((1, 2)), labels, test.mean((1, 2)), tested, epochs=3)


def test_small_sets_take_small_batches_so_that_epochs_hold_as_many_updates():
    assert [Fitting().batch(n) for n in (50_000, 49_919, 10_000, 1_200, 10)] == [128, 127, 25, 3, 1]
    assert Fitting(batch_size=64).batch(10) == 10


@pytest.mark.parametrize(("change", "message"), [
    ({"train_features": np.zeros(5)}, "must be (..., n, d)"),
    ({"test_features": np.zeros((4, 3))}, "all but the number of samples must be equal"),
    ({"train_labels": np.zeros(4)}, "train_labels are float64; give one integer a sample"),
    ({"train_labels": np.zeros(3, int)}, "give labels of shape (5,)"),
    ({"test_labels": np.zeros((4, 1), int)}, "give labels of shape (4,)"),
    ({"l2": -1}, "l2 of at least 0"),
    ({"learning_rate": 0}, "a positive learning_rate"),
    ({"epochs": 0}, "epochs and a batch_size of at least 1"),
    ({"batch_size": 0}, "epochs and a batch_size of at least 1"),
    ({"pool": "max"}, "it must be 'flat' or 'gap'"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    given = {
        "train_features": np.zeros((5, 2)),
        "train_labels": np.zeros(5, int),
        "test_features": np.zeros((4, 2)),
        "test_labels": np.zeros(4, int),
    } | change
    positional = [given.pop(name) for name in ("train_features", "train_labels", "test_features", "test_labels")]
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_probe(*positional, **given)
