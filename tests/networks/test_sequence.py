"""Padding changes nothing: masked layers on padded sequences against plain layers on the real steps alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import BatchNorm, Dense
from neoteny.networks.sequence import (
    Compare,
    Embedding,
    LastSteps,
    MaskedBatchNorm,
    MeanPool,
    Padded,
    Pairs,
    Positionwise,
    join,
    masked_mean,
)

LENGTHS = (5, 2, 1)


def padded(width=3, fill=0.0):
    values = np.asarray(jax.random.normal(jax.random.key(0), (3, 6, width))) + 2
    mask = np.arange(6) < np.array(LENGTHS)[:, None]
    return Padded(jnp.where(mask[..., None], values, fill), jnp.asarray(mask)), values, mask


def test_the_mean_is_of_real_steps_whatever_the_padding_holds():
    x, values, _ = padded(fill=7.0)
    expected = np.stack([values[i, :length].mean(0) for i, length in enumerate(LENGTHS)])
    np.testing.assert_allclose(masked_mean(x), expected, rtol=1e-6)
    np.testing.assert_allclose(MeanPool()(jnp.asarray(values))[0], values.mean(1), rtol=1e-6)
    empty = Padded(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), bool))
    assert not np.any(masked_mean(empty))


@pytest.mark.parametrize("fill", [0.0, 100.0])
def test_masked_batch_norm_is_batch_norm_of_the_real_steps(fill):
    x, values, mask = padded(fill=fill)
    y, layer = MaskedBatchNorm(3)(x, train=True)
    real = jnp.asarray(values[mask])[:, None]
    expected, plain = BatchNorm(3)(real, train=True)
    np.testing.assert_allclose(y.values[mask], expected[:, 0], atol=1e-5)
    assert not np.any(y.values[~mask])
    np.testing.assert_allclose(layer.mean.value, plain.mean.value, rtol=1e-5)
    np.testing.assert_allclose(layer.variance.value, plain.variance.value, rtol=1e-5)
    np.testing.assert_allclose(layer(x)[0].values[mask], plain(real)[0][:, 0], atol=1e-5)


def test_without_padding_masked_batch_norm_is_batch_norm():
    values = jax.random.normal(jax.random.key(1), (4, 5, 3))
    one, first = MaskedBatchNorm(3)(values, train=True)
    other, second = BatchNorm(3)(values, train=True)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(first.variance.value, second.variance.value, rtol=1e-5)
    with pytest.raises(ValueError, match="two steps"):
        MaskedBatchNorm(3)(values[:1, :1], train=True)


def test_gradients_ignore_padding():
    x, _, mask = padded(fill=3.0)

    def loss(values):
        return jnp.sum(jnp.sin(masked_mean(MaskedBatchNorm(3)(Padded(values, x.mask), train=True)[0])))

    gradient = jax.grad(loss)(x.values)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[~mask])
    assert np.any(gradient[mask])


def test_the_embedding_masks_padding_and_refuses_what_is_no_token():
    layer = Embedding(5, 4, key=jax.random.key(0))
    tokens = jnp.asarray([[1, 4, 0], [2, 0, 0]], jnp.int16)
    (values, mask), _ = layer(tokens)
    assert np.array_equal(mask, tokens > 0)
    assert np.array_equal(values[0, 1], layer.weight[4])
    assert not np.any(values[1, 1:])
    assert np.isnan(layer(jnp.asarray([[9]]))[0].values).all()
    with pytest.raises(ValueError, match="whole numbers"):
        layer(jnp.ones((1, 3)))


def test_positionwise_last_steps_and_pairs():
    x, values, mask = padded()
    dense = Dense(3, 2, key=jax.random.key(2))
    y, _ = Positionwise(dense)(x)
    np.testing.assert_allclose(y.values[mask], dense(jnp.asarray(values[mask]))[0], rtol=1e-5, atol=1e-6)
    assert not np.any(y.values[~mask])
    plain = jnp.asarray(values)
    assert np.array_equal(LastSteps(2)(plain)[0], plain[:, -2:])
    with pytest.raises(ValueError, match="padded"):
        LastSteps(2)(x)
    tokens = jnp.arange(12).reshape(3, 2, 2)
    apart, _ = Pairs()(tokens)
    assert np.array_equal(apart, np.concatenate([tokens[:, 0], tokens[:, 1]]))
    together, _ = Compare()(apart.astype(jnp.float32))
    assert together.shape == (3, 8)
    assert np.array_equal(together[1, :2], tokens[1, 0])
    assert np.array_equal(together[1, 4:6], tokens[1, 0] * tokens[1, 1])
    assert join(plain, None) is plain
