import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.networks import BatchNorm, GroupNorm, LayerNorm, Norm, Statistic, split_trainable

EPSILON = 1e-5
RNG = np.random.default_rng(0)


@eqx.filter_jit
def apply(layer, x, train=False):
    """One program for a layer and a shape, where eager calls would compile every operation."""
    return layer(x, train=train)


def randomised(layer):
    """The layer with a scale and a bias that are neither 1 nor 0, nor equal among features."""
    scale = jnp.asarray(RNG.normal(size=layer.size), jnp.float32)
    bias = jnp.asarray(RNG.normal(size=layer.size), jnp.float32)
    return eqx.tree_at(lambda n: (n.scale, n.bias), layer, (scale, bias))


def normalised(x, axes, layer):
    """The definition in float64, two passes."""
    centred = x - x.mean(axes, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + EPSILON)
    return y * np.asarray(layer.scale, np.float64) + np.asarray(layer.bias, np.float64)


def group_normalised(x, layer):
    batch, size, groups = x.shape[0], layer.size, layer.groups
    y = np.empty_like(x).reshape(batch, -1, size)
    flat, width = x.reshape(batch, -1, size), size // groups
    for b in range(batch):
        for g in range(groups):
            cells = flat[b, :, g * width : (g + 1) * width]
            y[b, :, g * width : (g + 1) * width] = (cells - cells.mean()) / np.sqrt(cells.var() + EPSILON)
    y = y.reshape(x.shape)
    return y * np.asarray(layer.scale, np.float64) + np.asarray(layer.bias, np.float64)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 4, 6)])
@pytest.mark.parametrize("train", [False, True])
def test_layer_norm(shape, train):
    layer = randomised(LayerNorm(6))
    x = RNG.normal(2, 3, size=shape)
    y, same = apply(layer, jnp.asarray(x, jnp.float32), train)
    np.testing.assert_allclose(y, normalised(x, -1, layer), atol=2e-6)
    assert eqx.tree_equal(same, layer)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 4, 6), (2, 7, 6)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_norm(shape, groups):
    layer = randomised(GroupNorm(6, groups))
    x = RNG.normal(2, 3, size=shape) * np.arange(1, 7)
    y, same = apply(layer, jnp.asarray(x, jnp.float32), True)
    np.testing.assert_allclose(y, group_normalised(x, layer), atol=2e-6)
    assert eqx.tree_equal(same, layer)


def test_group_norm_of_one_feature_a_group_normalises_over_places():
    layer = randomised(GroupNorm(3, 3))
    x = RNG.normal(size=(2, 4, 5, 3))
    np.testing.assert_allclose(apply(layer, jnp.asarray(x, jnp.float32))[0], normalised(x, (1, 2), layer), atol=2e-6)


@pytest.mark.parametrize("shape", [(8, 6), (3, 5, 4, 6)])
def test_batch_norm_trains_by_the_batch_and_moves_its_statistics(shape):
    layer = randomised(BatchNorm(6, momentum=0.25))
    x = RNG.normal(2, 3, size=shape) * np.arange(1, 7)
    axes = tuple(range(len(shape) - 1))
    mean, variance = np.zeros(6), np.ones(6)
    for factor in (1.0, 2.0):
        y, layer = apply(layer, jnp.asarray(factor * x, jnp.float32), True)
        np.testing.assert_allclose(y, normalised(factor * x, axes, layer), atol=3e-6)
        mean = 0.75 * mean + 0.25 * factor * x.mean(axes)
        variance = 0.75 * variance + 0.25 * factor**2 * x.var(axes, ddof=1)
        np.testing.assert_allclose(layer.mean.value, mean, rtol=1e-5)
        np.testing.assert_allclose(layer.variance.value, variance, rtol=1e-5)
    y, same = apply(layer, jnp.asarray(x, jnp.float32))
    expected = (x - mean) / np.sqrt(variance + EPSILON) * np.asarray(layer.scale) + np.asarray(layer.bias)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    assert eqx.tree_equal(same, layer)


def test_batch_norm_statistics_are_not_trained_and_pass_no_gradient():
    layer = BatchNorm(3)
    trained, rest = split_trainable(layer)
    assert len(jax.tree.leaves(trained)) == 2
    assert trained.mean.value is None
    assert isinstance(rest.mean, Statistic)
    assert len(jax.tree.leaves(rest)) == 2

    def moved(x):
        _, updated = layer(x, train=True)
        return jnp.sum(updated.mean.value) + jnp.sum(updated.variance.value)

    assert not np.any(jax.jit(jax.grad(moved))(jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)))


def test_batch_norm_update_keeps_structure_and_types():
    layer = BatchNorm(3)
    _, updated = apply(layer, jnp.ones((5, 3)), True)
    assert jax.tree.structure(layer) == jax.tree.structure(updated)
    for before, after in zip(jax.tree.leaves(layer), jax.tree.leaves(updated), strict=True):
        assert (before.dtype, before.weak_type) == (after.dtype, after.weak_type) == (jnp.float32, False)


def test_batch_norm_does_not_train_on_one_value():
    with pytest.raises(ValueError, match="at least two values per feature"):
        BatchNorm(3)(jnp.ones((1, 3)), train=True)
    assert apply(BatchNorm(3), jnp.ones((1, 3)))[0].shape == (1, 3)
    assert apply(BatchNorm(3), jnp.ones((1, 2, 1, 3)), True)[0].shape == (1, 2, 1, 3)


LAYERS = [LayerNorm(4), GroupNorm(4, 1), GroupNorm(4, 2), BatchNorm(4)]


@pytest.mark.parametrize("layer", LAYERS, ids=["layer", "group1", "group2", "batch"])
@pytest.mark.parametrize("value", [0.1, -1e6])
def test_constant_inputs_give_the_bias_and_finite_gradients(layer, value):
    layer = randomised(layer)
    x = jnp.full((3, 2, 2, 4), value)

    def total(x, layer):
        y, _ = layer(x, train=True)
        return jnp.sum(y * jnp.arange(y.size).reshape(y.shape)), y

    (gradient, gradients), y = eqx.filter_jit(
        lambda x, layer: (
            eqx.filter_grad(lambda both: total(*both)[0])((x, layer)),
            total(x, layer)[1],
        )
    )(x, layer)
    np.testing.assert_allclose(y, np.broadcast_to(layer.bias, y.shape), atol=1e-6)
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("layer", "axes"), [(GroupNorm(8, 1), (1, 2, 3)), (BatchNorm(8), (0, 1, 2))])
def test_one_pass_moments_survive_a_large_mean(layer, axes):
    # Unshifted, E[x^2] - E[x]^2 in float32 loses everything here: 1e8 * 6e-8 is the variance itself.
    x = (RNG.normal(size=(4, 8, 8, 8)) + 1e4).astype(np.float32).astype(np.float64)
    y, _ = apply(layer, jnp.asarray(x, jnp.float32), True)
    np.testing.assert_allclose(y, normalised(x, axes, layer), atol=1e-5)


def test_one_pass_error_with_an_outlying_shift_stays_within_its_bound():
    x = RNG.normal(size=(1, 16, 16, 4)).astype(np.float32).astype(np.float64)
    x[0, 0, 0, 0] = 1e4
    y, _ = apply(GroupNorm(4, 1), jnp.asarray(x, jnp.float32))
    expected = normalised(x, (1, 2, 3), GroupNorm(4, 1))
    np.testing.assert_allclose(y, expected, rtol=1e-7 * x.size, atol=1e-7 * x.size * np.abs(expected).max())


@pytest.mark.parametrize(
    ("layer", "reference"),
    [
        (GroupNorm(6, 2), lambda x: (x.reshape(3, 10, 2, 3), (1, 3))),
        (LayerNorm(6), lambda x: (x, -1)),
        (BatchNorm(6), lambda x: (x, (0, 1, 2))),
    ],
    ids=["group", "layer", "batch"],
)
def test_gradients_are_those_of_the_two_pass_definition(layer, reference):
    x, weight = RNG.normal(1, 2, size=(3, 5, 2, 6)), RNG.normal(size=(3, 5, 2, 6))

    def two_pass(x):
        cells, axes = reference(x)
        centred = cells - cells.mean(axes, keepdims=True)
        return (centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + EPSILON)).reshape(x.shape)

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(layer(x, train=True)[0] ** 2 * weight)))(x)
        expected = jax.jit(jax.grad(lambda x: jnp.sum(two_pass(x) ** 2 * weight)))(x)
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    scale=st.floats(0.5, 1e3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 100),
    layer=st.sampled_from(LAYERS),
)
def test_invariance_to_scale_and_shift(scale, shift, seed, layer):
    x = np.random.default_rng(seed).normal(size=(3, 2, 2, 4))
    y, _ = apply(layer, jnp.asarray(x, jnp.float32), True)
    z, _ = apply(layer, jnp.asarray(scale * x + scale * shift, jnp.float32), True)
    # epsilon breaks the invariance, by epsilon over the smallest variance of four or more normal values;
    # rounding the shifted input by its size over its spread.
    spread = np.sqrt(x.var(-1).min())
    assert np.abs(y - z).max() < 3 * EPSILON * (1 + 1 / scale**2) / spread**2 + 1e-5 + 1e-6 * abs(shift) / spread


def test_half_precision_inputs_keep_their_type_and_float32_moments():
    x = jnp.full((2, 64, 64, 2), 8.0, jnp.float16).at[:, ::2].set(-8.0)  # the sum of squares overflows float16
    for layer in (GroupNorm(2, 1, affine=False), BatchNorm(2, affine=False)):
        y, _ = apply(layer, x, True)
        assert y.dtype == jnp.float16
        np.testing.assert_allclose(y, np.sign(x), atol=1e-3)


def test_without_affine_parameters_nothing_is_trained():
    for layer in (LayerNorm(4, affine=False), GroupNorm(4, 2, affine=False), BatchNorm(4, affine=False)):
        assert not jax.tree.leaves(split_trainable(layer)[0])
        assert apply(layer, jnp.ones((2, 4)), True)[0].shape == (2, 4)


@pytest.mark.parametrize(("size", "groups"), [(64, 4), (16, 1), (48, 3), (50, 2), (20, 1), (7, 1), (34, 2)])
def test_named_group_norm_has_groups_of_about_sixteen(size, groups):
    layer = Norm.GROUP(size)
    assert isinstance(layer, GroupNorm)
    assert layer.groups == groups


def test_named_norms():
    assert isinstance(Norm.LAYER(4), LayerNorm)
    assert isinstance(Norm.BATCH(4), BatchNorm)
    x = jnp.ones((2, 4))
    assert Norm.NONE(4)(x)[0] is x
    assert Norm("layer") is Norm.LAYER


def test_errors():
    for make in (LayerNorm, BatchNorm, lambda size: GroupNorm(size, 1)):
        with pytest.raises(ValueError, match="size must be a positive whole number"):
            make(0)
        with pytest.raises(ValueError, match="size=4"):
            make(4)(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="groups must divide size, and 3 does not divide 4"):
        GroupNorm(4, 3)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        LayerNorm(4, epsilon=0)
    with pytest.raises(ValueError, match="momentum"):
        BatchNorm(4, momentum=0)
