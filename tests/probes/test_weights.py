import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import Chain, Layer, Network, PerExample, Statistic
from neoteny.probes.weights import (
    gradient_norm,
    kernel_rank,
    kernels,
    weight_change,
    weight_norm,
    weight_rank,
)


class Scale(Layer):
    """A layer with a statistic of two dimensions, which is no kernel."""

    scale: jax.Array
    seen: Statistic

    def __call__(self, x, *, train=False, key=None):
        return x * self.scale, self


class Rectify(Layer):
    def __call__(self, x, *, train=False, key=None):
        return jax.nn.relu(x), self


def linear(weight, bias):
    layer = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.key(0))
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (jnp.asarray(weight), jnp.asarray(bias)))


def make(seed: int) -> Network:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    scale = Scale(jnp.asarray(draw(5)), Statistic(jnp.full((3, 3), 100.0)))
    hidden = Chain(PerExample(linear(draw(5, 4), draw(5))), scale, Rectify())
    return Network(hidden=hidden, gate=Rectify(), head=linear(draw(3, 5), draw(3)))


def squared(network, batch, key):
    return jnp.mean(jnp.sum(jnp.square(network(batch.inputs).output - batch.targets), axis=1))


def view(network) -> View:
    return View(network, squared, optax.sgd(0.1), lambda n, x: n(x).stages, lambda key: network)


@pytest.fixture
def batch():
    rng = np.random.default_rng(7)
    return Batch(jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), jnp.asarray(rng.normal(size=(6, 3)), jnp.float32))


def weights(network):
    hidden, head = network.stages[0].layers[0].module, network.stages[2].module
    return np.float64(hidden.weight), np.float64(head.weight)


def test_weight_norm_is_the_frobenius_norm_of_the_kernels_alone(batch):
    network = make(0)
    hidden, head = weights(network)
    norms = weight_norm(view(network), batch, jax.random.key(0))
    assert set(norms) == {"hidden", "head", "all"}  # the stage without parameters has none
    np.testing.assert_allclose(norms["hidden"], np.sqrt((hidden**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(norms["head"], np.sqrt((head**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(norms["all"], np.sqrt((hidden**2).sum() + (head**2).sum()), rtol=1e-6)


def test_kernels_are_trained_arrays_of_two_or_more_dimensions():
    assert [k.shape for k in kernels(make(0))] == [(5, 4), (3, 5)]


def test_norm_of_half_precision_does_not_overflow(batch):
    network = make(0)
    large = jax.tree.map(lambda a: jnp.full(a.shape, 300.0, jnp.float16) if eqx.is_inexact_array(a) else a, network)
    norm = weight_norm(view(large), batch, jax.random.key(0))["all"]
    np.testing.assert_allclose(norm, 300 * np.sqrt(35), rtol=1e-3)


def test_gradient_norm_against_the_closed_form_of_a_linear_network(batch):
    network = Network(head=linear(np.ones((3, 4), np.float32), np.zeros(3, np.float32)))
    x, y = np.float64(batch.inputs), np.float64(batch.targets)
    residual = x @ np.ones((4, 3)) - y
    square = ((2 * residual.T @ x / 6) ** 2).sum() + ((2 * residual.mean(0)) ** 2).sum()
    norms = gradient_norm(view(network), batch, jax.random.key(0))
    np.testing.assert_allclose(norms["head"], np.sqrt(square), rtol=1e-5)
    np.testing.assert_allclose(norms["all"], np.sqrt(square), rtol=1e-5)


def test_gradient_norms_of_stages_add_up_in_squares_and_leave_statistics_out(batch):
    norms = gradient_norm(view(make(1)), batch, jax.random.key(0))
    assert set(norms) == {"hidden", "head", "all"}
    np.testing.assert_allclose(norms["all"] ** 2, norms["hidden"] ** 2 + norms["head"] ** 2, rtol=1e-5)
    assert norms["hidden"] > 0


def test_lanes_are_measured_apart(batch):
    stacked = jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *[make(s) for s in range(3)])
    for probe in (weight_norm, gradient_norm):
        measure = eqx.filter_jit(eqx.filter_vmap(lambda n, p=probe: p(view(n), batch, jax.random.key(0))))
        lanes = measure(stacked)
        for lane in range(3):
            alone = probe(view(make(lane)), batch, jax.random.key(0))
            for place, value in alone.items():
                np.testing.assert_allclose(lanes[place][lane], value, rtol=1e-5)


def test_kernel_rank_counts_values_above_a_share_of_the_largest():
    assert kernel_rank(np.diag([5.0, 0.051, 0.049, 0.0])) == 2  # the threshold is 0.05
    assert kernel_rank(np.diag([5.0, 0.051, 0.049, 0.0]), threshold=0.5) == 1
    assert kernel_rank(np.zeros((3, 4))) == 0
    assert np.isnan(kernel_rank(np.array([[1.0, np.inf]])))


def test_kernel_rank_does_not_depend_on_scale_even_where_float32_would_vanish():
    matrix = np.diag([1.0, 0.5, 0.001])
    assert kernel_rank(1e-30 * matrix) == kernel_rank(1e30 * matrix) == 2


def test_weight_rank_is_a_mean_over_layers_not_over_stages():
    one = linear(np.diag([1.0, 1, 1, 0]).astype(np.float32), np.zeros(4, np.float32))
    two = linear(np.diag([1.0, 1, 0, 0]).astype(np.float32), np.zeros(4, np.float32))
    head = linear(np.diag([1.0, 0, 0, 0]).astype(np.float32), np.zeros(4, np.float32))
    network = Network(hidden=Chain(PerExample(one), PerExample(two)), head=head)
    assert weight_rank(network) == {"hidden": 2.5, "head": 1.0, "all": 2.0}


def test_convolutions_are_unfolded_by_output_channel_in_either_layout():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(2, 3, 3))
    convolution = eqx.nn.Conv2d(2, 4, 3, key=jax.random.key(0))
    # Every output channel is a multiple of one filter: rank 1 unfolded by output, more along any other axis.
    kernel = jnp.asarray(np.arange(1, 5)[:, None, None, None] * direction, jnp.float32)
    convolution = eqx.tree_at(lambda c: c.weight, convolution, kernel)
    assert weight_rank(Network(conv=convolution))["all"] == 1

    class Last(Layer):
        weight: jax.Array

        def __call__(self, x, *, train=False, key=None):
            return x, self

    assert weight_rank(Network(conv=Last(jnp.moveaxis(kernel, (0, 1), (3, 2)))))["all"] == 1


def test_weight_rank_without_kernels_is_nan():
    assert np.isnan(weight_rank(Network(gate=Rectify()))["all"])


def test_weight_change_is_of_the_kernels_between_two_checkpoints():
    initial, before, after = make(0), make(1), make(2)
    changes = weight_change(before, after, initial)
    assert set(changes) == {"hidden", "head", "all"}
    moved = [b - a for a, b in zip(weights(before), weights(after), strict=True)]
    start = weights(initial)
    for name, difference, origin in zip(("hidden", "head"), moved, start, strict=True):
        np.testing.assert_allclose(changes[name].rms, np.linalg.norm(difference) / np.sqrt(difference.size))
        np.testing.assert_allclose(changes[name].relative, np.linalg.norm(difference) / np.linalg.norm(origin))
    total = np.sqrt(sum((d**2).sum() for d in moved))
    np.testing.assert_allclose(changes["all"].rms, total / np.sqrt(20 + 15))
    np.testing.assert_allclose(changes["all"].relative, total / np.sqrt(sum((o**2).sum() for o in start)))
    assert weight_change(before, before, initial)["all"] == (0, 0)
    assert weight_change(before, after)["head"].relative == weight_change(before, after, before)["head"].relative


def test_weight_change_of_what_is_not_finite_or_began_at_zero():
    network = make(0)
    zero = jax.tree.map(lambda x: 0 * x if eqx.is_array(x) else x, network)
    bad = jax.tree.map(lambda x: x * jnp.inf if eqx.is_array(x) else x, network)
    from_zero = weight_change(zero, network)["hidden"]
    assert np.isnan(from_zero.relative)
    assert from_zero.rms > 0
    assert np.isnan(weight_change(network, bad)["all"]).all()


def test_weight_change_of_different_networks_is_named():
    network = make(0)
    with pytest.raises(ValueError, match="stage 'head' has other kernels in these checkpoints"):
        weight_change(network, network.replace(head=PerExample(linear(np.ones((2, 5)), np.ones(2)))))
