import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks import (
    Chain,
    Dense,
    LayerNorm,
    Norm,
    check_maker,
    crelu,
    he,
    lecun,
    mlp,
    named_key,
    orthogonal,
    relu,
    split_trainable,
    tanh,
    torch_uniform,
)

KEY = jax.random.key(5)


def dense_layers(network):
    return {
        name: next(
            layer for layer in (stage.layers if isinstance(stage, Chain) else (stage,)) if isinstance(layer, Dense)
        )
        for name, stage in zip(network.names, network.stages, strict=True)
    }


def test_forward_pass_and_stages(waves):
    network = mlp((2, 3), [5, 4], 2, initializer=waves, head_initializer=waves)(KEY)
    assert network.names == ("hidden1", "hidden2", "head")
    x = np.random.default_rng(0).normal(size=(7, 2, 3))
    out = jax.jit(lambda n, x: n(x))(network, jnp.asarray(x, jnp.float32))
    y = x.reshape(7, 6)
    for name, layer in dense_layers(network).items():
        y = y @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias, np.float64)
        y = y if name == "head" else np.maximum(y, 0)
        np.testing.assert_allclose(out.stages[name], y, atol=1e-5)
    np.testing.assert_array_equal(out.output, out.stages["head"])


def test_norm_comes_before_the_activation(waves):
    network = mlp(6, [5], 2, norm=Norm.LAYER, activation=tanh, initializer=waves)(KEY)
    x = np.random.default_rng(0).normal(size=(7, 6))
    layer = dense_layers(network)["hidden1"]
    pre = x @ np.asarray(layer.weight, np.float64).T + np.asarray(layer.bias, np.float64)
    expected = np.tanh((pre - pre.mean(-1, keepdims=True)) / np.sqrt(pre.var(-1, keepdims=True) + 1e-5))
    out = jax.jit(lambda n, x: n(x))(network, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(out.stages["hidden1"], expected, atol=1e-5)


def test_inputs_are_flattened_whatever_in_size_says(waves):
    image = jnp.ones((2, 4, 3, 1))
    for in_size in (12, (4, 3, 1), [12]):
        made = mlp(in_size, [5], 2, initializer=waves, head_initializer=waves)(KEY)
        assert eqx.filter_eval_shape(lambda n: n(image).output, made).shape == (2, 2)
    linear = mlp((4, 3, 1), [], 2, head_initializer=waves)(KEY)
    assert linear.names == ("head",)
    assert eqx.filter_eval_shape(lambda n: n(image).output, linear).shape == (2, 2)


def test_crelu_doubles_what_the_next_layer_sees(waves):
    maker = mlp(6, [5, 4], 2, activation=crelu, norm=Norm.GROUP, initializer=waves, head_initializer=waves)
    network = eqx.filter_eval_shape(maker, KEY)
    assert {name: layer.weight.shape for name, layer in dense_layers(network).items()} == {
        "hidden1": (5, 6),
        "hidden2": (4, 10),
        "head": (2, 8),
    }
    stages = eqx.filter_eval_shape(lambda n, x: n(x).stages, network, jnp.ones((3, 6)))
    assert {name: stage.shape for name, stage in stages.items()} == {
        "hidden1": (3, 10),
        "hidden2": (3, 8),
        "head": (3, 2),
    }


@pytest.mark.parametrize("norm", [Norm.LAYER, Norm.BATCH, Norm.GROUP, LayerNorm])
def test_norm_does_not_change_the_dense_draws(norm):
    plain = dense_layers(mlp(8, [8, 8], 2, initializer=torch_uniform)(KEY))
    other = dense_layers(mlp(8, [8, 8], 2, initializer=torch_uniform, norm=norm)(KEY))
    for name, layer in plain.items():
        np.testing.assert_array_equal(layer.weight, other[name].weight)
        np.testing.assert_array_equal(layer.bias, other[name].bias)


def test_another_stage_does_not_change_the_draws_of_the_others():
    short, long = dense_layers(mlp(8, [8], 2)(KEY)), dense_layers(mlp(8, [8, 8], 2)(KEY))
    np.testing.assert_array_equal(short["hidden1"].weight, long["hidden1"].weight)
    np.testing.assert_array_equal(short["head"].weight, long["head"].weight)
    assert not np.array_equal(long["hidden1"].weight, long["hidden2"].weight)


def test_initialisers_reach_their_stages():
    layers = dense_layers(mlp(8, [8, 8], 8, initializer=orthogonal, head_initializer=he)(KEY))
    for name, initializer in (("hidden1", orthogonal), ("hidden2", orthogonal), ("head", he)):
        expected = initializer.weight(named_key(named_key(KEY, name), "weight"), (8, 8), 8)
        np.testing.assert_array_equal(layers[name].weight, expected.T)


def test_default_initialisation_keeps_the_second_moment():
    network = mlp(1000, [1000, 1000], 1000)(KEY)
    out = network(jax.random.normal(jax.random.key(1), (200, 1000)))
    for name in network.names:
        # ReLU halves the pre-activations' second moment of 2; the head, of gain 1, keeps it.
        assert float(jnp.mean(out.stages[name] ** 2)) == pytest.approx(1, rel=0.15)
    assert mlp(2, [2], 2).initializer == he
    assert mlp(2, [2], 2).head_initializer == lecun


def test_equal_arguments_give_equal_makers():
    a, b = mlp((2, 3), [4, 5], 2, norm=Norm.LAYER), mlp(6, (4, 5), np.int64(2), norm=Norm.LAYER)
    assert a == b
    assert hash(a) == hash(b)
    assert mlp(6, [4], 2) == mlp(6, [4], 2, norm=None) == mlp(6, [4], 2, norm=Norm.NONE)
    others = [mlp(7, [4], 2), mlp(6, [5], 2), mlp(6, [4], 3), mlp(6, [4], 2, norm=Norm.LAYER)]
    others += [mlp(6, [4], 2, activation=tanh), mlp(6, [4], 2, initializer=lecun)]
    others += [mlp(6, [4], 2, head_initializer=he)]
    assert len({mlp(6, [4], 2), *others}) == 8
    assert check_maker(a) is a
    assert dataclasses.replace(a, out_size=3) == mlp(6, (4, 5), 3, norm=Norm.LAYER)


def test_one_static_structure_for_every_trace(waves):
    traces = []

    @eqx.filter_jit
    def evaluate(network, x):
        traces.append(1)
        return network(x).output

    for seed in range(3):
        maker = mlp(6, [4], 2, norm=Norm.BATCH, initializer=waves, head_initializer=waves)
        evaluate(maker(jax.random.key(seed)), jnp.ones((1, 6)))
    assert len(traces) == 1


def test_lanes_equal_single_networks(waves):
    maker = mlp(6, [8, 8], 2, norm=Norm.BATCH, activation=crelu, initializer=waves, head_initializer=waves)
    keys = jax.random.split(KEY, 3)
    x = jnp.sin(jnp.arange(90.0)).reshape(3, 5, 6)

    def train(network, x):
        out = network(x, train=True)
        return out.output, out.network(x).output

    networks = jax.jit(jax.vmap(maker))(keys)
    outputs, evaluated = jax.jit(jax.vmap(train))(networks, x)
    single = jax.jit(lambda key, x: train(maker(key), x))
    for lane in range(3):
        expected, then = single(keys[lane], x[lane])
        np.testing.assert_allclose(outputs[lane], expected, atol=1e-5)
        np.testing.assert_allclose(evaluated[lane], then, atol=1e-5)
    assert not np.allclose(outputs[0], outputs[1])


def test_lanes_draw_what_single_networks_draw():
    maker = mlp(8, [8, 8], 2, norm=Norm.BATCH)
    keys = jax.random.split(KEY, 3)
    networks = jax.jit(jax.vmap(maker))(keys)
    for index, key in enumerate(keys):
        for lanes, single in zip(jax.tree.leaves(networks), jax.tree.leaves(maker(key)), strict=True):
            np.testing.assert_allclose(lanes[index], single, rtol=1e-6)


@pytest.mark.parametrize("norm", list(Norm))
def test_structure_is_known_without_computing(norm):
    maker = mlp(8, [8], 2, norm=norm)
    shapes, network = eqx.filter_eval_shape(maker, KEY), maker(KEY)
    assert jax.tree.structure(shapes) == jax.tree.structure(network)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(network), strict=True):
        assert (shape.shape, shape.dtype, shape.weak_type) == (leaf.shape, leaf.dtype, leaf.weak_type)
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


def test_trained_parameters_are_dense_and_norm_but_no_statistics(waves):
    network = mlp(6, [8], 2, norm=Norm.BATCH, initializer=waves, head_initializer=waves)(KEY)
    trained, rest = split_trainable(network)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 6 * 8 + 8 + 2 * 8 + 8 * 2 + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(rest)) == 2 * 8


def test_gradient_reaches_every_parameter(waves):
    maker = mlp(6, [16, 16], 2, norm=Norm.LAYER, activation=tanh, initializer=waves, head_initializer=waves)
    network, x = jax.jit(maker)(KEY), jnp.sin(jnp.arange(120.0)).reshape(20, 6)
    trained, rest = split_trainable(network)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(eqx.combine(p, rest)(x).output ** 2)))(trained)
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) == 10
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in leaves)
    assert all(math.isfinite(float(jnp.sum(leaf))) for leaf in leaves)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_size": 0}, ValueError, "in_size must be"),
        ({"in_size": (3, 0)}, ValueError, r"in_size\[1\] must be"),
        ({"hidden": [4, 0]}, ValueError, r"hidden\[1\] must be"),
        ({"hidden": 4}, ValueError, "hidden must be a sequence"),
        ({"out_size": 1.5}, ValueError, "out_size must be"),
        ({"activation": "relu"}, TypeError, "activation must be a function"),
        ({"norm": "layer"}, TypeError, "norm must make a layer"),
        ({"norm": LayerNorm(4)}, TypeError, "norm must make a layer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mlp(**({"in_size": 6, "hidden": [4], "out_size": 2, "activation": relu} | arguments))


def test_wrong_input(waves):
    with pytest.raises(ValueError, match="in_size=6"):
        mlp(6, [4], 2, initializer=waves, head_initializer=waves)(KEY)(jnp.ones((2, 7)))
