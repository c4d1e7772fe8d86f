import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layer_reference as reference
from neoteny.networks import (
    BatchNorm,
    Conv2d,
    GroupNorm,
    Layer,
    Norm,
    Residual,
    ResNet,
    Shortcut,
    Statistic,
    crelu,
    identity,
    named_key,
    resnet,
    split_trainable,
)

KEY = jax.random.key(3)
SHAPE = (7, 6, 3)  # odd and even: where a stride's padding shows
CIFAR = (32, 32, 3)
VARIANTS = [(Norm.BATCH, "padded"), (Norm.BATCH, "projection"), (Norm.GROUP, "padded"), (Norm.NONE, "projection")]


def small(waves, norm=Norm.BATCH, shortcut="padded", depth=8, **arguments):
    return resnet(
        SHAPE,
        4,
        depth=depth,
        width=0.125,
        norm=norm,
        shortcut=shortcut,
        initializer=waves,
        head_initializer=waves,
        **arguments,
    )


def randomised(network):
    """Scales, biases and running moments that are neither 0 nor 1, nor equal among features."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype) if leaf.ndim == 1 else leaf

    return jax.tree.map(draw, network)


def images(batch=3, shape=SHAPE):
    return np.random.default_rng(1).normal(size=(batch, *shape))


def in_float64(network):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), network)


def expected_stages(maker, network, x, train):
    """Every stage's output by the definition, following the paper's block and not the library's chain."""
    network = in_float64(network)

    def normalised(x, layers):
        if not layers:
            return x
        (norm,) = layers
        return reference.group_norm(x, norm) if isinstance(norm, GroupNorm) else reference.batch_norm(x, norm, train)

    def sequence(x, layers, stride=1):
        convolution, *norm = layers
        padding = (convolution.weight.shape[0] - 1) // 2
        return normalised(reference.convolution(x, convolution.weight, convolution.bias, stride, padding), norm)

    outputs = {}
    for name in network.names[:-1]:
        block = network.stage(name)
        if name == "block1":
            *stem, _, block = block.layers
            x = reference.relu(sequence(x, stem))
        layers = [layer for layer in block.body.layers if isinstance(layer, Conv2d | BatchNorm | GroupNorm)]
        half = len(layers) // 2
        before, channels = x, layers[0].weight.shape[-1]
        stride = 2 if channels > x.shape[-1] else 1
        y = sequence(reference.relu(sequence(x, layers[:half], stride)), layers[half:])
        if stride == 2 and maker.shortcut is Shortcut.PADDED:
            before = np.zeros_like(y)
            before[..., : x.shape[-1]] = x[:, ::2, ::2]
        elif stride == 2:
            before = sequence(x, block.shortcut.layers, 2)
        outputs[name] = x = reference.relu(before + y)
    head = network.stage("head").layers[-1]
    return outputs | {"head": x.mean((1, 2)) @ head.weight.T + head.bias}


@pytest.mark.parametrize(("norm", "shortcut"), VARIANTS)
def test_forward_pass_is_that_of_the_definition(waves, norm, shortcut):
    maker = small(waves, norm, shortcut)
    network = randomised(maker(KEY))
    x = images()
    train, evaluate = jax.jit(lambda n, x: (n(x, train=True), n(x)))(network, jnp.asarray(x, jnp.float32))
    assert tuple(train.stages) == ("block1", "block2", "block3", "head")
    for out, mode in ((train, True), (evaluate, False)):
        expected = expected_stages(maker, network, x, mode)
        for name in network.names:
            np.testing.assert_allclose(out.stages[name], expected[name], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(out.output, out.stages["head"])


@pytest.mark.parametrize(("norm", "shortcut"), VARIANTS[1:3])
def test_gradient_is_that_of_the_definition(waves, norm, shortcut):
    maker, x = small(waves, norm, shortcut), images()
    network = randomised(maker(KEY))
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
        return np.sum(expected_stages(maker, eqx.combine(network, in_float64(rest)), x, True)["head"] * weights)

    assert float(value) == pytest.approx(moved(0.0), rel=1e-10)
    step = 1e-6
    assert float(slope) == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


def test_batch_moments_are_kept_in_the_stage_they_belong_to(waves):
    network = small(waves, Norm.BATCH, "projection")(KEY)
    updated = jax.jit(lambda n, x: n(x, train=True).network)(network, jnp.asarray(images(), jnp.float32))
    assert jax.tree.structure(network) == jax.tree.structure(updated)

    def statistics(stage):
        nodes = jax.tree.leaves(stage, is_leaf=lambda node: isinstance(node, Statistic))
        return [node.value for node in nodes if isinstance(node, Statistic)]

    counts = {}
    for name in network.names:
        pairs = list(zip(statistics(network.stage(name)), statistics(updated.stage(name)), strict=True))
        assert all(np.any(before != after) for before, after in pairs)
        counts[name] = len(pairs)
    assert counts == {"block1": 6, "block2": 6, "block3": 6, "head": 0}  # mean and variance: stem or shortcut, two
    trained, rest = split_trainable(updated)
    before, _ = split_trainable(network)
    assert eqx.tree_equal(trained, before)
    assert len(jax.tree.leaves(rest)) == 18


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [
        # 0.27, 0.46, 0.66, 0.85 and 1.7 million: He et al. 2016, table 6
        (20, 269_722),
        (32, 464_154),
        (44, 658_586),
        (56, 853_018),
        (110, 1_727_962),
        # the CIFAR-10 networks of public PyTorch code with projections: 11.17 and 21.28 million
        (18, 11_173_962),
        (34, 21_282_122),
        # 432 + 2 (2304) + (4608 + 9216) + (18432 + 36864) convolutions, 2 (240) norm, 650 head
        (8, 75_290),
    ],
)
def test_published_parameter_counts(depth, parameters):
    maker = resnet(CIFAR, 10, depth=depth)
    trained = eqx.filter_eval_shape(lambda key: split_trainable(maker(key))[0], KEY)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)) == parameters


@pytest.mark.parametrize(
    ("depth", "groups", "channels"),
    [(18, (2, 2, 2, 2), (64, 128, 256, 512)), (34, (3, 4, 6, 3), (64, 128, 256, 512)), (20, (3, 3, 3), (16, 32, 64))],
)
def test_shapes_of_the_stages(depth, groups, channels):
    network = eqx.filter_eval_shape(resnet(CIFAR, 7, depth=depth), KEY)
    out = eqx.filter_eval_shape(lambda n, x: n(x, train=True), network, jnp.ones((2, *CIFAR)))
    expected = [
        (2, 32 >> group, 32 >> group, size)
        for group, (count, size) in enumerate(zip(groups, channels, strict=True))
        for _ in range(count)
    ]
    assert [out.stages[name].shape for name in network.names] == [*expected, (2, 7)]
    assert [point.stage for point in resnet(CIFAR, 7, depth=depth).points()] == list(network.names[:-1])


def test_points_count_convolutions_with_and_without_shortcuts():
    points = resnet(CIFAR, 10, depth=34).points()
    assert [point.block for point in points] == list(range(1, 17))
    assert [point.convolution for point in points] == list(range(3, 34, 2))
    assert points[3].convolutions == points[3].convolution + 1 == 10
    assert (points[-1].convolution, points[-1].convolutions) == (33, 36)
    assert [p.convolutions - p.convolution for p in resnet(CIFAR, 10, depth=20).points()] == [0] * 9
    projected = resnet(CIFAR, 10, depth=20, shortcut="projection").points()
    assert [p.convolutions - p.convolution for p in projected] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_convolutions_of_the_network_are_those_of_the_points():
    for maker in (resnet(CIFAR, 10, depth=18), resnet(CIFAR, 10, depth=20)):
        network, total = eqx.filter_eval_shape(maker, KEY), 0
        for point in maker.points():
            leaves = jax.tree.leaves(network.stage(point.stage))
            total += sum(leaf.ndim == 4 for leaf in leaves)
            assert total == point.convolutions


def test_width_multiplies_the_channels():
    for width, channels in ((0.25, (16, 32, 64, 128)), (2, (128, 256, 512, 1024)), (0.01, (1, 1, 3, 5))):
        assert resnet(CIFAR, 10, width=width).channels == channels


def test_draws_depend_on_the_stage_alone(waves):
    def kernels(network):
        return [leaf for leaf in jax.tree.leaves(network) if leaf.ndim == 4]

    plain = small(waves, Norm.NONE)(KEY)
    normed, deeper = small(waves, Norm.BATCH)(KEY), small(waves, Norm.NONE, depth=14)(KEY)
    for a, b in zip(kernels(plain), kernels(normed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert eqx.tree_equal(plain.stage("block1"), deeper.stage("block1"))
    drawn = kernels(plain)
    assert len({float(kernel.ravel()[0]) for kernel in drawn}) == len(drawn) == 7
    stem = plain.stage("block1").layers[0]
    key = named_key(named_key(KEY, "block1"), "stem")
    np.testing.assert_array_equal(stem.weight, Conv2d(3, 2, 3, key=key, initializer=waves).weight)
    other = small(waves, Norm.NONE)(jax.random.key(4))
    assert all(np.any(a != b) for a, b in zip(drawn, kernels(other), strict=True))


def test_bias_only_without_norm(waves):
    def biased(network):
        convolutions = jax.tree.leaves(network, is_leaf=lambda node: isinstance(node, Conv2d))
        return {node.bias is not None for node in convolutions if isinstance(node, Conv2d)}

    assert biased(small(waves, Norm.NONE)(KEY)) == {True}
    assert biased(small(waves, Norm.BATCH)(KEY)) == {False}


def test_equal_arguments_give_equal_makers():
    a = resnet(list(CIFAR), 10, depth=20, norm=Norm.BATCH, shortcut="padded", lowering="convolution")
    assert a == resnet(CIFAR, 10, depth=20)
    assert hash(a) == hash(resnet(CIFAR, 10, depth=20))
    assert isinstance(a, ResNet)
    assert resnet(CIFAR, 10, depth=18).shortcut is Shortcut.PROJECTION
    others = [{"depth": 18}, {"width": 0.5}, {"shortcut": "projection"}, {"norm": None}, {"lowering": "auto"}]
    for other in others:
        assert resnet(CIFAR, 10, **({"depth": 20} | other)) != a


class Drawn(Layer):
    def __call__(self, x, *, train=False, key=None):
        return x + jax.random.normal(key, x.shape), self


def test_residual_gives_each_part_its_own_key():
    residual = Residual(Drawn(), Drawn(), identity)
    y, updated = residual(jnp.zeros((1000,)), key=KEY)
    assert float(jnp.var(y)) == pytest.approx(2, rel=0.2)  # 4 if both drew the same
    assert jax.tree.structure(updated) == jax.tree.structure(residual)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_shape": (32, 32)}, ValueError, r"input_shape must be \(height, width, channels\)"),
        ({"out_size": 0}, ValueError, "out_size must be"),
        ({"depth": 19}, ValueError, "depth must be 18, 34 or 6n"),
        ({"depth": 2}, ValueError, "depth must be 18, 34 or 6n"),
        ({"width": 0}, ValueError, "width, the factor of all hidden sizes, must be a positive number"),
        ({"width": float("nan")}, ValueError, "width, the factor"),
        ({"shortcut": "identity"}, ValueError, "shortcut must be one of 'padded', 'projection'"),
        ({"activation": crelu}, ValueError, "activation must keep the number of channels"),
        ({"activation": "relu"}, TypeError, "activation must be a function"),
        ({"norm": "batch"}, TypeError, "norm must make a layer"),
        ({"lowering": "fast"}, ValueError, "lowering must be"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        resnet(**({"input_shape": CIFAR, "out_size": 10} | arguments))
