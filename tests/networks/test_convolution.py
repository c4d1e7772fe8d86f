import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from scipy.signal import correlate

from neoteny.networks import (
    AveragePool2d,
    Conv2d,
    GlobalAveragePool,
    Lowering,
    MaxPool2d,
    Padding,
    convolve,
    spatial_size,
)

KEY = jax.random.key(0)
CASES = [
    # size, kernel, stride, padding
    ((5, 7), (3, 2), 1, "VALID"),
    ((5, 7), (2, 3), 1, "SAME"),
    ((5, 8), (3, 2), 2, "VALID"),
    ((5, 8), (3, 2), 2, "SAME"),
    ((9, 6), (2, 3), (3, 2), "SAME"),
    ((9, 6), (3, 2), (3, 2), 2),
    ((6, 5), (1, 1), 2, "VALID"),
    ((6, 5), (2, 1), 3, "SAME"),
    ((2, 2), (3, 3), 1, 1),
]


def zeros_around(size, kernel, stride, padding):
    """Padding by its definition: SAME gives ceil(n / s) outputs and puts an odd zero last."""
    if padding == "SAME":
        pads = []
        for n, k, s in zip(size, kernel, stride, strict=True):
            missing = max((int(np.ceil(n / s)) - 1) * s + k - n, 0)
            pads.append((missing // 2, missing - missing // 2))
        return pads
    return [(0, 0)] * 2 if padding == "VALID" else [(padding, padding)] * 2


def reference(x, weight, stride, padding):
    """scipy's correlation of the padded map at stride 1, channel by channel, then every stride-th entry."""
    stride = (stride, stride) if isinstance(stride, int) else stride
    padded = np.pad(x, ((0, 0), *zeros_around(x.shape[1:3], weight.shape[:2], stride, padding), (0, 0)))
    outputs = [
        [
            sum(correlate(image[..., c], weight[..., c, o], mode="valid") for c in range(x.shape[-1]))
            for o in range(weight.shape[-1])
        ]
        for image in padded
    ]
    return np.moveaxis(np.asarray(outputs), 1, -1)[:, :: stride[0], :: stride[1]]


def arrays(size, kernel):
    rng = np.random.default_rng(1)
    return rng.normal(size=(2, *size, 3)), rng.normal(size=(*kernel, 3, 4))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_lowerings_agree_in_value_and_gradients(size, kernel, stride, padding):
    x, weight = arrays(size, kernel)
    expected = reference(x, weight, stride, padding)

    def evaluate(x, weight, lowering):
        def loss(x, weight):
            y = convolve(x, weight, stride=stride, padding=padding, lowering=lowering)
            return jnp.sum(jnp.sin(y) * np.arange(expected.size).reshape(expected.shape)), y

        gradients, y = jax.grad(loss, (0, 1), has_aux=True)(x, weight)
        return y, *gradients

    with jax.enable_x64(True):
        results = jax.jit(lambda x, w: [evaluate(x, w, lowering) for lowering in ("patches", "convolution")])(x, weight)
        for y, input_gradient, weight_gradient in results:
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(input_gradient, results[0][1], rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(weight_gradient, results[0][2], rtol=1e-10, atol=1e-10)
    assert expected.shape[1:3] == spatial_size(size, kernel, stride, padding)


def test_gradient_is_that_of_the_definition():
    x, weight = arrays((5, 6), (3, 2))  # by finite differences of scipy's correlation
    direction = np.random.default_rng(2).normal(size=weight.shape)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda w: jnp.sum(convolve(x, w, stride=2) ** 2)))(weight)

    def loss(w):
        return np.sum(reference(x, w, 2, "SAME") ** 2)

    step = 1e-4
    finite = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    assert np.sum(np.asarray(gradient) * direction) == pytest.approx(finite, rel=1e-9)


@pytest.mark.parametrize("lowering", list(Lowering))
def test_inside_a_loop_with_batched_weights_and_second_derivatives(lowering):
    x, weight = arrays((5, 6), (3, 3))
    x, weights = jnp.asarray(x, jnp.float32), jnp.asarray([weight, 2 * weight], jnp.float32)

    def loss(weight):
        return jnp.mean(jnp.tanh(convolve(x, weight, stride=2, lowering=lowering)))

    def step(_, weight):
        _, curvature = jax.jvp(jax.grad(loss), (weight,), (weight,))
        return weight - 0.1 * jax.grad(loss)(weight) - 0.1 * curvature

    looped = jax.jit(jax.vmap(lambda w, n: lax.fori_loop(0, n, step, w), (0, None)))(weights, 3)
    unlooped = jax.jit(lambda w: step(2, step(1, step(0, w))))
    for lane in range(2):
        expected = unlooped(weights[lane])
        np.testing.assert_allclose(looped[lane], expected, atol=1e-5)


def test_auto_lowers_to_one_matrix_product_on_cpu_alone():
    x, weight = jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
    traced = jax.jit(jax.grad(lambda w: jnp.sum(convolve(x, w) ** 2))).trace(weight)
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    elsewhere = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in on_cpu
    assert "stablehlo.dot_general" in on_cpu
    assert "stablehlo.convolution" in elsewhere
    assert "stablehlo.dot_general" not in elsewhere


def test_layer(waves):
    layer = Conv2d(3, 4, 3, key=KEY, stride=2, padding=1, initializer=waves)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3))
    y, same = jax.jit(lambda layer, x: layer(x))(layer, jnp.asarray(x, jnp.float32))
    expected = reference(x, np.asarray(layer.weight, np.float64), 2, 1) + np.asarray(layer.bias, np.float64)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert jax.tree.structure(same) == jax.tree.structure(layer)
    assert Conv2d(3, 4, 3, key=KEY, initializer=waves, use_bias=False).bias is None


@settings(max_examples=12, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_pooling(size, window, stride, padding):
    if padding == "VALID" and (window[0] > size[0] or window[1] > size[1]):
        with pytest.raises(ValueError, match="does not fit"):
            MaxPool2d(window, stride=stride)(jnp.zeros((1, *size, 1)))
        return
    # Negative values too, so that padding with zeros would show.
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32) - 2
    pads = zeros_around(size, window, stride, padding)
    padded = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)), constant_values=np.nan)
    height, width = spatial_size(size, window, stride, padding)
    cells = np.stack(
        [
            np.stack(
                [
                    padded[:, i : i + window[0], j : j + window[1]].reshape(2, -1, 3)
                    for j in range(0, width * stride[1], stride[1])
                ],
                axis=1,
            )
            for i in range(0, height * stride[0], stride[0])
        ],
        axis=1,
    )
    pools = [pool(window, stride=stride, padding=padding) for pool in (MaxPool2d, AveragePool2d)]
    largest, mean = jax.jit(lambda x: [pool(x)[0] for pool in pools])(x)
    np.testing.assert_array_equal(largest, np.nanmax(cells, axis=3))
    np.testing.assert_allclose(mean, np.nanmean(cells, axis=3), rtol=1e-5)


def test_pooling_stride_defaults_to_the_window():
    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    np.testing.assert_array_equal(MaxPool2d((2, 3))(x)[0][0, ..., 0], [[8, 11], [20, 23], [32, 35]])
    np.testing.assert_array_equal(AveragePool2d(3)(x)[0][0, ..., 0], [[7, 10], [25, 28]])
    np.testing.assert_array_equal(GlobalAveragePool()(x)[0], [[17.5]])


def test_pooling_with_a_number_of_pixels():
    x = -jnp.ones((1, 2, 2, 1))
    np.testing.assert_array_equal(MaxPool2d(2, padding=1)(x)[0], -np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(AveragePool2d(2, padding=1)(x)[0], -np.ones((1, 2, 2, 1)))
    for pool in (MaxPool2d, AveragePool2d):
        with pytest.raises(ValueError, match="padding must be smaller than the window"):
            pool(2, padding=2)


def test_max_pool_gradient_goes_to_the_maximum_and_is_shared_by_equals():
    x = jnp.asarray([[1.0, 5.0, 2.0, 2.0], [3.0, 4.0, 2.0, 2.0]])[None, ..., None]
    gradient = jax.grad(lambda x: jnp.sum(MaxPool2d(2)(x)[0]))(x)
    expected = [[0, 1, 0.25, 0.25], [0, 0, 0.25, 0.25]]
    np.testing.assert_array_equal(gradient[0, ..., 0], expected)


def test_max_pool_spreads_nan():
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(MaxPool2d(2)(x)[0][0, ..., 0]), [[False, True], [False, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be"),
        ({"out_channels": -2}, "out_channels must be"),
        ({"kernel": 0}, "kernel must be"),
        ({"kernel": (3, 3, 3)}, "kernel must be one number or"),
        ({"kernel": "33"}, "kernel must be a sequence"),
        ({"stride": 0}, "stride must be"),
        ({"stride": (1, 0)}, r"stride\[1\] must be"),
        ({"padding": "same"}, "padding must be"),
        ({"padding": -1}, "padding must be"),
        ({"lowering": "im2col"}, "lowering must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Conv2d(**({"in_channels": 3, "out_channels": 4, "kernel": 3, "key": KEY} | arguments))


def test_bad_inputs(waves):
    layer = Conv2d(3, 4, 3, key=KEY, padding=Padding.VALID, initializer=waves)
    with pytest.raises(ValueError, match="Conv2d was made with in_channels=3"):
        layer(jnp.zeros((1, 5, 5, 2)))
    with pytest.raises(ValueError, match=r"Conv2d expects \(batch, height, width, channels\)"):
        layer(jnp.zeros((5, 5, 3)))
    with pytest.raises(ValueError, match=r"window of \(3, 3\) does not fit into a map of \(2, 5\)"):
        layer(jnp.zeros((1, 2, 5, 3)))
