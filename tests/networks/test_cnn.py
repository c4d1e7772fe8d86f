import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from neoteny.networks import (
    Chain,
    Conv2d,
    Lowering,
    Norm,
    cnn,
    convolve,
    crelu,
    named_key,
    relu,
    split_trainable,
    tanh,
)

KEY = jax.random.key(5)
SHAPE = (9, 8, 3)


def weights(network):
    return {
        name: next(leaf for leaf in jax.tree.leaves(stage) if leaf.ndim > 1)
        for name, stage in zip(network.names, network.stages, strict=True)
    }


def test_forward_pass_and_stages(waves):
    network = cnn(
        SHAPE, 2, channels=(4, 6), dense=(5,), kernels=(5, 3), strides=(1, 2), pools=(2, 1), norm=Norm.LAYER,
        initializer=waves,
        head_initializer=waves,
    )(KEY)  # fmt: skip
    assert network.names == ("conv1", "conv2", "dense1", "head")
    x = jnp.sin(jnp.arange(2 * 9 * 8 * 3.0)).reshape(2, *SHAPE)
    out = jax.jit(lambda n, x: n(x).stages)(network, x)
    assert {name: stage.shape[1:] for name, stage in out.items()} == {
        "conv1": (4, 4, 4),
        "conv2": (2, 2, 6),
        "dense1": (5,),
        "head": (2,),
    }

    def convolution(x, weight, stride=1):
        return convolve(jnp.asarray(x), weight, stride=stride, lowering=Lowering.CONVOLUTION)  # one operation

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    first, second, hidden, head = (network.stage(name) for name in network.names)
    assert isinstance(first, Chain)
    kernel, _, _, _ = first.layers
    y = np.maximum(norm(np.asarray(convolution(x, kernel.weight) + kernel.bias)), 0)
    y = y[:, :8].reshape(2, 4, 2, 4, 2, 4).max((2, 4))
    np.testing.assert_allclose(out["conv1"], y, atol=2e-4)
    kernel = second.layers[0]
    y = np.maximum(norm(np.asarray(convolution(y, kernel.weight, 2) + kernel.bias)), 0)
    np.testing.assert_allclose(out["conv2"], y, atol=2e-4)
    dense = hidden.layers[1]
    y = np.maximum(norm(y.reshape(2, 24) @ np.asarray(dense.weight).T + np.asarray(dense.bias)), 0)
    np.testing.assert_allclose(out["dense1"], y, atol=2e-4)
    y = y @ np.asarray(head.weight).T + np.asarray(head.bias)
    np.testing.assert_allclose(out["head"], y, atol=2e-4)


def test_crelu_doubles_what_the_next_layer_sees(waves):
    maker = cnn(
        SHAPE,
        2,
        channels=(4, 6),
        dense=(5,),
        activation=crelu,
        norm=Norm.GROUP,
        initializer=waves,
        head_initializer=waves,
    )
    network = eqx.filter_eval_shape(maker, KEY)
    assert {name: weight.shape for name, weight in weights(network).items()} == {
        "conv1": (3, 3, 3, 4),
        "conv2": (3, 3, 8, 6),
        "dense1": (5, 2 * 2 * 12),
        "head": (2, 10),
    }
    assert eqx.filter_eval_shape(lambda n, x: n(x).output, network, jnp.ones((3, *SHAPE))).shape == (3, 2)


def test_without_dense_stages_or_convolutions(waves):
    head_only = cnn(SHAPE, 2, channels=(4,), dense=(), initializer=waves, head_initializer=waves)(KEY)
    assert head_only.names == ("conv1", "head")
    assert eqx.filter_eval_shape(head_only, jnp.ones((3, *SHAPE))).output.shape == (3, 2)
    dense_only = cnn(SHAPE, 2, channels=(), dense=(5,), initializer=waves, head_initializer=waves)(KEY)
    assert dense_only.names == ("dense1", "head")
    assert eqx.filter_eval_shape(dense_only, jnp.ones((3, *SHAPE))).output.shape == (3, 2)


def test_draws_depend_on_the_stage_alone(waves):
    draws = {"initializer": waves, "head_initializer": waves}
    plain = weights(cnn(SHAPE, 2, channels=(4, 4), pools=1, dense=(288,), **draws)(KEY))
    for other in (
        cnn(SHAPE, 2, channels=(4, 4), pools=1, dense=(288,), **draws, norm=Norm.BATCH),
        cnn(SHAPE, 2, channels=(4, 4, 4), pools=1, dense=(288,), **draws),
        cnn(SHAPE, 2, channels=(4, 4), pools=1, dense=(288, 288), **draws),
    ):
        drawn = weights(other(KEY))
        for name, weight in plain.items():
            np.testing.assert_array_equal(weight, drawn[name])
    layer = Conv2d(3, 4, 3, key=named_key(KEY, "conv1"), initializer=waves)
    np.testing.assert_array_equal(plain["conv1"], layer.weight)


def test_equal_arguments_give_equal_makers():
    a = cnn(SHAPE, 2, channels=[4, 4], kernels=3, strides=[1, 1], pools=2, padding="SAME", lowering="auto")
    b = cnn(list(SHAPE), 2, channels=(4, 4), kernels=(3, 3))
    assert a == b
    assert hash(a) == hash(b)
    others = [
        cnn(SHAPE, 2, channels=(4, 4), kernels=(3, 2)),
        cnn(SHAPE, 2, channels=(4, 4), padding=1),
        cnn(SHAPE, 2, channels=(4, 4), lowering=Lowering.PATCHES),
        cnn(SHAPE, 2, channels=(4, 4), activation=tanh),
        cnn(SHAPE, 2, channels=(4, 4), norm=Norm.LAYER),
    ]
    assert len({a, *others}) == 6


def test_trains_by_lanes_inside_a_loop(waves):
    maker = cnn(
        (6, 6, 1),
        2,
        channels=(4,),
        kernels=2,
        dense=(8,),
        norm=Norm.BATCH,
        initializer=waves,
        head_initializer=waves,
    )
    x = jnp.sin(jnp.arange(144.0)).reshape(4, 6, 6, 1)

    def step(_, network):
        trained, rest = split_trainable(network)

        def loss(trained):
            out = eqx.combine(trained, rest)(x, train=True)
            return jnp.mean((out.output - 1) ** 2), out.network

        gradients, network = jax.grad(loss, has_aux=True)(trained)
        _, rest = split_trainable(network)
        return eqx.combine(jax.tree.map(lambda p, g: p - 0.02 * g, trained, gradients), rest)

    def run(key, steps):
        return lax.fori_loop(0, steps, step, maker(key))

    keys = jax.random.split(KEY, 2)
    networks = jax.jit(jax.vmap(run, (0, None)))(keys, 20)
    evaluate = jax.jit(jax.vmap(lambda n: jnp.mean((n(x, train=True).output - 1) ** 2)))
    assert (np.asarray(evaluate(networks)) < 0.5 * np.asarray(evaluate(jax.jit(jax.vmap(maker))(keys)))).all()
    alone = jax.jit(run)(keys[1], 20)
    for lane, leaf in zip(jax.tree.leaves(networks), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(lane[1], leaf, atol=1e-4)
    shapes = eqx.filter_eval_shape(maker, KEY)
    assert jax.tree.structure(shapes) == jax.tree.structure(alone)
    assert all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in jax.tree.leaves(alone))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (9, 8)}, ValueError, r"input_shape must be \(height, width, channels\)"),
        ({"input_shape": (9, 0, 3)}, ValueError, r"input_shape\[1\] must be"),
        ({"out_size": 0}, ValueError, "out_size must be"),
        ({"channels": (4, 0)}, ValueError, r"channels\[1\] must be"),
        ({"dense": (0,)}, ValueError, r"dense\[0\] must be"),
        ({"kernels": (3,)}, ValueError, "kernels must be one number, or one for each of the 2 channels"),
        ({"strides": 0}, ValueError, "strides must be"),
        ({"pools": (2, 0)}, ValueError, r"pools\[1\] must be"),
        ({"padding": "FULL"}, ValueError, "padding must be"),
        ({"lowering": "fast"}, ValueError, "lowering must be"),
        ({"activation": "relu"}, TypeError, "activation must be a function"),
        ({"norm": "layer"}, TypeError, "norm must make a layer"),
        ({"padding": "VALID", "kernels": 5}, ValueError, "conv2 of input_shape=.*: a window"),
        ({"pools": 5}, ValueError, "conv2 of input_shape=.*: a window"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    valid = {"input_shape": SHAPE, "out_size": 2, "channels": (4, 4), "dense": (5,), "activation": relu}
    with pytest.raises(error, match=message):
        cnn(**(valid | arguments))


def test_wrong_input(waves):
    maker = cnn(SHAPE, 2, initializer=waves, head_initializer=waves)
    network = eqx.filter_eval_shape(maker, KEY)
    with pytest.raises(ValueError, match="in_channels=3"):
        eqx.filter_eval_shape(lambda n, x: n(x).output, network, jnp.ones((1, 9, 8, 1)))
    with pytest.raises(ValueError, match="in_size="):
        eqx.filter_eval_shape(lambda n, x: n(x).output, network, jnp.ones((1, 12, 12, 3)))
