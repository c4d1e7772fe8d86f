import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layer_reference as reference
from neoteny.networks import VGG, Conv2d, GroupNorm, Norm, crelu, named_key, split_trainable, tanh, vgg

KEY = jax.random.key(3)
SHAPE = (9, 8, 3)
CIFAR = (32, 32, 3)


def small(waves, norm=None, **arguments):
    # channels 2, 4, 8 and dense 3, 5
    draws = {"initializer": waves, "head_initializer": waves}
    return vgg(SHAPE, 4, depth=(1, 2, 1), width=1 / 32, dense=(96, 160), norm=norm, **draws, **arguments)


def randomised(network):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype) if leaf.ndim == 1 else leaf, network
    )


def in_float64(network):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network)


def expected_stages(network, x, train):
    """Every stage's output by the definition; a pooling lies before conv2, conv4 and dense1."""
    network = in_float64(network)

    def normalised(x, layers):
        if not layers:
            return x
        (norm,) = layers
        return reference.group_norm(x, norm) if isinstance(norm, GroupNorm) else reference.batch_norm(x, norm, train)

    outputs = {}
    for name in ("conv1", "conv2", "conv3", "conv4", "dense1", "dense2"):
        if name in ("conv2", "conv4", "dense1"):
            x = reference.max_pool(x)
        if name == "dense1":
            x = x.reshape(len(x), -1)
        layers = [layer for layer in network.stage(name).layers if jax.tree.leaves(layer)]
        kernel, *norm = layers
        linear = (
            reference.convolution(x, kernel.weight, kernel.bias)
            if kernel.weight.ndim == 4
            else x @ kernel.weight.T + kernel.bias
        )
        outputs[name] = x = reference.relu(normalised(linear, norm))
    head = network.stage("head")
    return outputs | {"head": x @ head.weight.T + head.bias}


def images(batch=3):
    return np.random.default_rng(1).normal(size=(batch, *SHAPE))


@pytest.mark.parametrize("norm", [None, Norm.BATCH, Norm.GROUP])
def test_forward_pass_is_that_of_the_definition(waves, norm):
    network, x = randomised(small(waves, norm)(KEY)), images()
    train, evaluate = jax.jit(lambda n, x: (n(x, train=True), n(x)))(network, jnp.asarray(x, jnp.float32))
    for out, mode in ((train, True), (evaluate, False)):
        expected = expected_stages(network, x, mode)
        assert tuple(out.stages) == tuple(expected) == network.names
        for name in network.names:
            np.testing.assert_allclose(out.stages[name], expected[name], rtol=1e-4, atol=1e-4)
    moved = not eqx.tree_equal(train.network, network)
    assert moved == (norm is Norm.BATCH)


def test_gradient_is_that_of_the_definition(waves):
    network, x = randomised(small(waves, Norm.BATCH)(KEY)), images()
    weights = np.random.default_rng(2).normal(size=(3, 4))
    direction = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), split_trainable(network)[0]
    )
    with jax.enable_x64(True):
        trained, rest = split_trainable(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), network))

        def loss(trained):
            return jnp.sum(eqx.combine(trained, rest)(jnp.asarray(x), train=True).output * weights)

        value, gradient = jax.jit(jax.value_and_grad(loss))(trained)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)))

    def moved(step):
        network = jax.tree.map(lambda leaf, d: leaf + step * d, in_float64(trained), direction)
        return np.sum(expected_stages(eqx.combine(network, in_float64(rest)), x, True)["head"] * weights)

    assert float(value) == pytest.approx(moved(0.0), rel=1e-10)
    step = 1e-6
    assert float(slope) == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # of the networks with batch norm and 512-10 alone after the convolutions, in public PyTorch code
    [(11, 9_231_114), (13, 9_416_010), (16, 14_728_266), (19, 20_040_522)],
)
def test_published_parameter_counts(depth, parameters):
    def count(norm):
        maker = vgg(CIFAR, 10, depth=depth, norm=norm)
        trained = eqx.filter_eval_shape(lambda key: split_trainable(maker(key))[0], KEY)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))

    dense = 2 * (512 * 512 + 512)
    normalised = count(Norm.BATCH)
    assert normalised - dense - 2 * 2 * 512 == parameters
    channels = sum(n * c for n, c in zip(vgg(CIFAR, 10, depth=depth).groups, (64, 128, 256, 512, 512), strict=True))
    assert normalised - count(None) == 2 * (channels + 2 * 512)


def test_vgg19_has_eighteen_points_and_the_pooling_is_none():
    maker = vgg(CIFAR, 10)
    points = maker.points()
    assert [point.stage for point in points] == [f"conv{i}" for i in range(1, 17)] + ["dense1", "dense2"]
    assert [point.block for point in points] == [1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, None, None]
    assert [point.convolution for point in points] == [*range(1, 17), None, None]
    assert [point.convolutions for point in points] == [*range(1, 17), 16, 16]
    network = eqx.filter_eval_shape(maker, KEY)
    out = eqx.filter_eval_shape(lambda n, x: n(x), network, jnp.ones((2, *CIFAR)))
    assert network.names == (*(point.stage for point in points), "head")
    sizes = [(32, 64)] * 2 + [(16, 128)] * 2 + [(8, 256)] * 4 + [(4, 512)] * 4 + [(2, 512)] * 4
    expected = [(2, size, size, channels) for size, channels in sizes]
    assert [out.stages[name].shape for name in network.names] == [*expected, (2, 512), (2, 512), (2, 10)]


def test_width_multiplies_convolutions_and_dense_layers():
    maker = vgg(CIFAR, 10, depth=11, width=0.25)
    assert maker.channels == (16, 32, 64, 128, 128)
    assert maker.dense == (128, 128)
    assert vgg(CIFAR, 10, width=2).channels[-1] == 1024


def test_shortened_network_begins_as_the_full_one(waves):
    draws = {"initializer": waves, "head_initializer": waves, "width": 1 / 32}
    full, short = vgg(CIFAR, 10, **draws)(KEY), vgg(CIFAR, 10, depth=(2, 2, 2), **draws)(KEY)
    assert short.names == (*full.names[:6], "dense1", "dense2", "head")
    for name in full.names[:6]:
        assert eqx.tree_equal(full.stage(name), short.stage(name))
    assert short.stage("dense1").layers[2].weight.shape == (16, 4 * 4 * 8)


def test_draws_depend_on_the_stage_alone(waves):
    def kernels(network):
        return [leaf for leaf in jax.tree.leaves(network) if leaf.ndim > 1]

    plain, normed = kernels(small(waves)(KEY)), kernels(small(waves, Norm.BATCH)(KEY))
    for a, b in zip(plain, normed, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain[2], Conv2d(4, 4, 3, key=named_key(KEY, "conv3"), initializer=waves).weight)
    assert len({float(kernel.ravel()[0]) for kernel in plain}) == len(plain) == 7
    other = kernels(small(waves)(jax.random.key(4)))
    assert all(np.any(a != b) for a, b in zip(plain, other, strict=True))


def test_crelu_doubles_what_the_next_layer_sees(waves):
    network = eqx.filter_eval_shape(small(waves, activation=crelu), KEY)
    assert network.stage("conv3").layers[0].weight.shape == (3, 3, 8, 4)
    assert eqx.filter_eval_shape(lambda n, x: n(x).output, network, jnp.ones((2, *SHAPE))).shape == (2, 4)


def test_equal_arguments_give_equal_makers():
    a = vgg(list(CIFAR), 10, depth=[2, 2, 3, 3, 3], dense=[512, 512], lowering="convolution")
    assert a == vgg(CIFAR, 10, depth=16)
    assert hash(a) == hash(vgg(CIFAR, 10, depth=16))
    assert isinstance(a, VGG)
    others = [{"depth": 19}, {"width": 0.5}, {"dense": (512,)}, {"norm": Norm.BATCH}, {"activation": tanh}]
    for other in others:
        assert vgg(CIFAR, 10, **({"depth": 16} | other)) != a


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (32, 32)}, ValueError, r"input_shape must be \(height, width, channels\)"),
        ({"input_shape": (28, 28, 1)}, ValueError, "the pooling after conv16 of input_shape=.*: a window"),
        ({"out_size": 0}, ValueError, "out_size must be"),
        ({"depth": 12}, ValueError, "depth must be one of 11, 13, 16, 19 or the convolutions in each group"),
        ({"depth": ()}, ValueError, "depth must name the convolutions of 1 to 5 groups"),
        ({"depth": (1,) * 6}, ValueError, "depth must name the convolutions of 1 to 5 groups"),
        ({"depth": (1, 0)}, ValueError, r"depth\[1\] must be"),
        ({"width": -1.0}, ValueError, "width, the factor of all hidden sizes, must be a positive number"),
        ({"dense": ()}, ValueError, "dense must name at least one layer"),
        ({"dense": (0,)}, ValueError, r"dense\[0\] must be"),
        ({"activation": "relu"}, TypeError, "activation must be a function"),
        ({"norm": "batch"}, TypeError, "norm must make a layer"),
        ({"lowering": "fast"}, ValueError, "lowering must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        vgg(**({"input_shape": CIFAR, "out_size": 10} | arguments))
