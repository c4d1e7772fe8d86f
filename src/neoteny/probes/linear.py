"""Linear probes: how well one linear layer on frozen features tells classes apart (Masarczyk et al., arXiv:2305.19753).

A probe is multinomial logistic regression on standardised features, trained by Adam for a fixed number of epochs.
The test features decide nothing but the accuracy: no epoch, no learning rate and no scale is chosen by them.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray
from numpy.typing import ArrayLike

from neoteny.probes.arrays import PerLane, as_labels, as_real, pool_features

STD_FLOOR = 1e-6
"""The least standard deviation a feature is divided by."""

BATCH_SIZE = 128
"""Rows of a minibatch at most (Harun et al., arXiv:2405.15018)."""

UPDATES_PER_EPOCH = 390
"""Smaller minibatches where 128 rows would give fewer updates an epoch: as many as for the paper's 50,000 images.

Updates, not epochs, decide how far a probe comes: in batches of 128 the probe of 1,200 digits ends at 90 %, and at 97 %
like this.
"""

STACK_BYTES = 2**30
"""Training features stepped together on an accelerator at most; a bound on memory."""

Pool = Literal["flat", "gap"]
"""Features as they are, (..., n, d), or averaged over positions, (n, ..., channels)."""


class LinearProbe(NamedTuple):
    """Test accuracy of a linear probe; `degenerate` where no feature varies and the majority class is all it can say."""

    accuracy: PerLane
    degenerate: np.bool_ | Bool[np.ndarray, "*lanes"]


class Fitting(NamedTuple):
    """How a linear probe is trained: the defaults are this library's choice (docs/probes.md)."""

    l2: float = 1e-4
    epochs: int = 30
    learning_rate: float = 1e-3
    batch_size: int | None = None
    standardize: bool = True

    def batch(self, n: int) -> int:
        """Rows of a minibatch of n rows."""
        if self.batch_size is not None:
            return min(self.batch_size, n)
        return max(1, min(BATCH_SIZE, n // UPDATES_PER_EPOCH))


class LinearModel(NamedTuple):
    """logits = weight @ ((x - mean) / scale) + bias. varies: whether any feature does."""

    mean: Float32[Array, " d"]
    scale: Float32[Array, " d"]
    weight: Float32[Array, "classes d"]
    bias: Float32[Array, " classes"]
    varies: Bool[Array, ""]


class Item(NamedTuple):
    """One probe to train: features of one stage of one network, labels from 0 (-1: none of the classes), its key."""

    train: Float32[np.ndarray, "n d"]
    train_labels: Int32[np.ndarray, " n"]
    test: Float32[np.ndarray, "m d"]
    test_labels: Int32[np.ndarray, " m"]
    key: PRNGKeyArray


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    l2: float = 1e-4,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    key: PRNGKeyArray | None = None,
    batch_size: int | None = None,
    standardize: bool = True,
    pool: Pool = "flat",
) -> PerLane:
    """Test accuracy of one linear layer with bias, trained on frozen features (..., n, d) of the train split.

    Features are standardised by the train split's mean and deviation (floor 1e-6). The loss is the mean cross-entropy
    plus l2 / 2 * ||W||^2, the biases free: scikit-learn's LogisticRegression with C = 1 / (l2 * n). Adam from zero
    weights, the learning rate falling along a cosine to 0 over `epochs` epochs of shuffled minibatches.
    batch_size: None takes 128 rows, fewer if there would be less than 390 updates an epoch (50,000 rows give so many).

    labels: any integers, (n,) or (..., n); test labels that the train split lacks count as errors. key: orders the
    minibatches, alike in all lanes (None: a fixed one). standardize: False takes the features as they are. pool: "gap"
    takes a stage's output (n, ..., channels) and averages it over positions first. Computed in float32. NaN where a
    feature is not finite; where none varies over the train split, the share of its most frequent class in the test
    split. Masarczyk et al., arXiv:2305.19753; the optimiser is this library's choice. ValueError for shapes or settings
    that do not fit.
    """
    fitting = Fitting(l2, epochs, learning_rate, batch_size, standardize)
    named = linear_probes(
        {"": train_features}, train_labels, {"": test_features}, test_labels, key=key, fitting=fitting, pool=pool
    )
    return named[""].accuracy


def linear_probes(
    train_features: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test_features: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    fitting: Fitting = Fitting(),  # noqa: B008 (a tuple of numbers)
    pool: Pool = "flat",
) -> dict[str, LinearProbe]:
    """`linear_probe` of every stage: {stage: (..., n, d)}, with one program for all stages of one width.

    Every stage's probe sees the same minibatches, and is bit for bit what it would be alone.
    """
    if set(train_features) != set(test_features):
        differing = ", ".join(sorted(set(train_features) ^ set(test_features)))
        raise ValueError(f"train and test features must have the same stages; only one of them has {differing}")
    _check(fitting)
    shared = jax.random.key(0) if key is None else key
    items: dict[Hashable, Item] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in train_features:
        where = f" of stage {name!r}" if name else ""
        train = as_probe_features(train_features[name], f"train features{where}", pool)
        test = as_probe_features(test_features[name], f"test features{where}", pool)
        if train.shape[:-2] != test.shape[:-2] or train.shape[-1] != test.shape[-1]:
            raise ValueError(
                f"train features{where} have shape {train.shape} and test features {test.shape}; "
                "all but the number of samples must be equal"
            )
        fitted = as_labels(train_labels, train.shape, "train_labels", "train features")
        tested = as_labels(test_labels, test.shape, "test_labels", "test features")
        shapes[name] = train.shape[:-2]
        for lane in np.ndindex(shapes[name]):
            numbered = number_classes(fitted[lane], tested[lane])
            items[name, lane] = Item(train[lane], numbered[0], test[lane], numbered[1], shared)
    found = dict(zip(items, train_items(list(items.values()), fitting), strict=True))
    probes = {}
    for name, lanes in shapes.items():
        accuracy, degenerate = np.empty(lanes), np.empty(lanes, bool)
        for lane in np.ndindex(lanes):
            accuracy[lane], degenerate[lane] = found[name, lane]
        probes[name] = LinearProbe(accuracy[()], degenerate[()])
    return probes


def as_probe_features(features: ArrayLike, name: str, pool: Pool = "flat") -> np.ndarray:
    """Features (..., n, d) as float32, pooled if asked; ValueError for other shapes."""
    if pool not in ("flat", "gap"):
        raise ValueError(f"pool is {pool!r}; it must be 'flat' or 'gap'")
    real = as_real(features, name)
    if pool == "gap":
        real = pool_features(real)
    if real.ndim < 2 or 0 in real.shape:
        raise ValueError(
            f"{name} has shape {real.shape}; it must be (..., n, d) with at least one sample and one unit: "
            "flatten_features brings a stage's output into that shape"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite there, and its lane NaN
        return real.astype(np.float32, copy=False)


def number_classes(train: Int[np.ndarray, " n"], test: Int[np.ndarray, " m"]) -> tuple[np.ndarray, np.ndarray]:
    """Both with the train split's classes numbered from 0; -1 for a test label of no such class."""
    classes, numbered = np.unique(train, return_inverse=True)
    places = np.minimum(np.searchsorted(classes, test), len(classes) - 1)
    return numbered.astype(np.int32), np.where(classes[places] == test, places, -1).astype(np.int32)


def train_items(items: Sequence[Item], fitting: Fitting) -> list[tuple[float, bool]]:
    """(accuracy, degenerate) of every item, in order; items of one shape share a compiled program.

    On a CPU each core takes one item after another; on an accelerator items of one shape are stepped together, as many
    as `STACK_BYTES` holds.
    """
    results: list[tuple[float, bool]] = [(float("nan"), False)] * len(items)
    groups: dict[tuple, list[int]] = {}
    for place, item in enumerate(items):
        if np.isfinite(item.train).all() and np.isfinite(item.test).all():
            groups.setdefault((item.train.shape, item.test.shape, _classes(item)), []).append(place)
    for (shape, _, classes), places in groups.items():
        sizes = Sizes(classes, fitting.epochs, fitting.batch(shape[0]))
        if jax.default_backend() == "cpu":
            found = _one_by_one([items[place] for place in places], fitting, sizes)
        else:
            together = max(1, STACK_BYTES // (4 * shape[0] * shape[1]))
            parts = [places[start : start + together] for start in range(0, len(places), together)]
            found = [each for part in parts for each in _stacked([items[p] for p in part], fitting, sizes)]
        for place, prediction in zip(places, found, strict=True):
            results[place] = _score(items[place], prediction)
    return results


class Sizes(NamedTuple):
    """What the compiled program of a probe depends on besides the features' shape."""

    classes: int
    epochs: int
    batch: int


class Prediction(NamedTuple):
    """Classes predicted for the test features, whether any train feature varies, and whether training stayed finite."""

    labels: Int32[Array, "*items m"] | np.ndarray
    varies: Bool[Array, "*items"] | np.ndarray
    finite: Bool[Array, "*items"] | np.ndarray


def _classes(item: Item) -> int:
    return int(item.train_labels.max()) + 1


def _score(item: Item, prediction: Prediction) -> tuple[float, bool]:
    if not prediction.varies:
        majority = np.bincount(item.train_labels).argmax()
        return float(np.mean(item.test_labels == majority)), True
    if not prediction.finite:
        return float("nan"), False
    return float(np.mean(prediction.labels == item.test_labels)), False


def _settings(fitting: Fitting) -> tuple[np.float32, np.float32, np.bool_]:
    return np.float32(fitting.l2), np.float32(fitting.learning_rate), np.bool_(fitting.standardize)


def _one_by_one(items: Sequence[Item], fitting: Fitting, sizes: Sizes) -> list[Prediction]:
    def run(item: Item) -> Prediction:
        return jax.device_get(_train_one(*item[:3], item.key, *_settings(fitting), sizes=sizes))

    first = run(items[0])  # alone, so that the program is compiled once
    with ThreadPoolExecutor(_cores()) as pool:
        return [first, *pool.map(run, items[1:])]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stacked(items: Sequence[Item], fitting: Fitting, sizes: Sizes) -> list[Prediction]:
    arrays = [np.stack(column) for column in zip(*(item[:3] for item in items), strict=True)]
    keys = jnp.stack([item.key for item in items])
    found = jax.device_get(_train_many(*arrays, keys, *_settings(fitting), sizes=sizes))
    return [Prediction(*each) for each in zip(*found, strict=True)]


def train_and_predict(train, labels, test, key, l2, learning_rate, standardize, sizes: Sizes) -> Prediction:
    """What one probe computes: arguments as the fields of `Item` and `Fitting`."""
    model = fit(train, labels, key, l2, learning_rate, standardize, sizes)
    finite = jnp.all(jnp.isfinite(model.weight)) & jnp.all(jnp.isfinite(model.bias))
    return Prediction(predict(model, test), model.varies, finite)


def _train_stack(train, labels, test, keys, l2, learning_rate, standardize, sizes: Sizes) -> Prediction:
    def one(train, labels, test, key):
        return train_and_predict(train, labels, test, key, l2, learning_rate, standardize, sizes)

    return jax.vmap(one)(train, labels, test, keys)


_train_one = jax.jit(train_and_predict, static_argnames=("sizes",))
_train_many = jax.jit(_train_stack, static_argnames=("sizes",))


def fit(
    features: Float[Array, "n d"],
    labels: Int32[Array, " n"],
    key: PRNGKeyArray,
    l2: Float[Array, ""] | float,
    learning_rate: Float[Array, ""] | float,
    standardize: Bool[Array, ""] | bool,
    sizes: Sizes,
) -> LinearModel:
    """The linear model that `linear_probe` trains; labels are 0 to sizes.classes - 1."""
    n, d = features.shape
    classes, epochs, batch = sizes
    mean, deviation = _moments(features)
    varies = jnp.any(deviation > 0)
    mean = jnp.where(standardize, mean, 0.0)
    scale = jnp.where(standardize, jnp.maximum(deviation, STD_FLOOR), 1.0)
    inverse = 1 / scale
    per_epoch = n // batch
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs * per_epoch))
    # Zero weights: a feature that is constant over the train split is exactly 0 there, so its weight stays exactly 0,
    # and whatever it does in the test split, divided by the floor, changes nothing.
    start = jnp.zeros((classes, d), jnp.float32), jnp.zeros(classes, jnp.float32)

    def loss(parameters, inputs, targets):
        weight, bias = parameters
        # Classes first: (batch, d) by (classes, d) is twice as fast on a CPU as by (d, classes).
        logits = jnp.einsum("bd,cd->bc", inputs, weight) + bias
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(entropy) + l2 / 2 * jnp.sum(jnp.square(weight))

    def epoch(number, carry):
        order = jax.random.permutation(jax.random.fold_in(key, number), n)

        def step(index, carry):
            parameters, state = carry
            rows = jax.lax.dynamic_slice(order, (index * batch,), (batch,))
            gradient = jax.grad(loss)(parameters, (features[rows] - mean) * inverse, labels[rows])
            change, state = optimizer.update(gradient, state, parameters)
            return optax.apply_updates(parameters, change), state

        return jax.lax.fori_loop(0, per_epoch, step, carry)

    (weight, bias), _ = jax.lax.fori_loop(0, epochs, epoch, (start, optimizer.init(start)))
    return LinearModel(mean, scale, weight, bias, varies)


def predict(model: LinearModel, features: Float[Array, "m d"]) -> Int32[Array, " m"]:
    """The class with the largest logit, for every row."""

    def one(row):
        return jnp.argmax(model.weight @ ((row - model.mean) / model.scale) + model.bias)

    return jax.lax.map(one, features, batch_size=BATCH_SIZE).astype(jnp.int32)


def _moments(features: Float[Array, "n d"]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Mean and standard deviation (divisor n) of every column; exact for a constant one."""
    first = features[0]
    mean = first + jnp.mean(features - first, axis=0)
    return mean, jnp.sqrt(jnp.mean(jnp.square(features - mean), axis=0))


def _check(fitting: Fitting) -> None:
    if fitting.epochs < 1 or (fitting.batch_size is not None and fitting.batch_size < 1):
        raise ValueError(
            f"a linear probe needs epochs and a batch_size of at least 1, not {fitting.epochs} and {fitting.batch_size}"
        )
    if not fitting.l2 >= 0 or not fitting.learning_rate > 0:
        raise ValueError(
            f"a linear probe needs l2 of at least 0 and a positive learning_rate, not {fitting.l2} and "
            f"{fitting.learning_rate}"
        )
