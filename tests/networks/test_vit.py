"""The vision transformer against NumPy, its stages and its arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import Attention, split_trainable, vit

KEY = jax.random.key(0)
SMALL = {"patch": 3, "size": 8, "hidden": 12, "blocks": 2, "heads": 2}


def softmax(x):
    shares = np.exp(x - x.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def test_attention_equals_the_definition_head_by_head():
    layer = Attention(8, 2, key=KEY)
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    w, b = (np.asarray(a, np.float64) for a in (layer.projections.weight, layer.projections.bias))
    projected = x @ w.T + b
    heads = []
    for head in range(2):
        q, k, v = (projected[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        heads.append(softmax(q @ k.swapaxes(1, 2) / 2.0) @ v)
    expected = np.concatenate(heads, axis=-1) @ np.asarray(layer.output.weight, np.float64).T + layer.output.bias
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32))[0], expected, atol=1e-5)


def test_without_positions_the_order_of_patches_does_not_matter_and_with_them_it_does():
    network = vit((6, 6, 1), 4, **SMALL)(KEY)
    image = jax.random.uniform(jax.random.key(3), (1, 6, 6, 1))
    turned = jnp.roll(image, 3, axis=2)  # the patches of a row exchanged
    assert np.abs(network(image).output - network(turned).output).max() > 1e-4
    embedding = network.stage("embed").layers[1]
    bare = jax.tree.map(lambda a: jnp.zeros_like(a) if a is embedding.embedding else a, network)
    np.testing.assert_allclose(bare(image).output, bare(turned).output, atol=1e-6)


def test_stages_shapes_and_patches_that_do_not_divide_the_image():
    network = vit((28, 28, 1), 10)(KEY)
    result = network(jnp.zeros((2, 28, 28, 1)))
    assert list(result.stages) == ["embed", "block1", "pool", "head"]
    assert [result.stages[name].shape for name in result.stages] == [(2, 100, 256), (2, 100, 256), (2, 256), (2, 10)]
    corner = jnp.zeros((1, 28, 28, 1)).at[0, 27, 27].set(1.0)
    assert np.abs(network(corner).stages["embed"] - network(0 * corner).stages["embed"]).max() > 0  # no pixel is lost
    count = sum(a.size for a in jax.tree.leaves(split_trainable(network)[0]))
    block = 256 * 768 + 768 + 256 * 256 + 256 + 256 * 1024 + 1024 + 1024 * 256 + 256 + 4 * 256
    assert count == 9 * 256 + 256 + 100 * 256 + block + 2 * 256 + 2560 + 10


def test_dropout_acts_in_training_alone():
    network = vit((6, 6, 1), 4, dropout=0.5, **SMALL)(KEY)
    x = jax.random.uniform(KEY, (4, 6, 6, 1))
    one, two = (network(x, train=True, key=jax.random.key(k)).output for k in (1, 2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(network(x).output, network(x).output)
    with pytest.raises(ValueError, match="key"):
        network(x, train=True)


def test_equal_arguments_give_equal_makers_and_blocks_have_draws_of_their_own():
    assert vit((6, 6, 1), 4, **SMALL) == vit([6, 6, 1], 4, **SMALL)
    network = vit((6, 6, 1), 4, **SMALL)(KEY)
    weights = [jax.tree.leaves(network.stage(name)) for name in ("block1", "block2")]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(*weights, strict=True) if a.ndim == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"heads": 3}, "divide"), ({"dropout": 1.0}, "rate"), ({"patch": 0}, "patch"), ({"blocks": 0}, "blocks")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit((6, 6, 1), 4, **{**SMALL, **arguments})
