from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from neoteny.learners.learner import Batch, View
from neoteny.networks.network import Network, split_trainable
from neoteny.probes.curvature import (
    hessian_spectrum,
    hessian_vector_products,
    largest_eigenvalues,
    output_noise_loss,
    output_sharpness,
    output_spectrum,
    sharpness,
    spectral_density,
    training_spectrum,
)

KEY = jax.random.key(3)


@partial(jax.jit, static_argnames=("iterations", "draws"))
def _of_quadratic(matrix, key, iterations, draws):
    start = jnp.zeros(len(matrix), matrix.dtype)
    return hessian_spectrum(lambda v: 0.5 * v @ matrix @ v, start, key=key, iterations=iterations, draws=draws)


def of_quadratic(matrix, *, iterations=80, draws=1):
    """The spectrum of v A v / 2."""
    return _of_quadratic(jnp.asarray(matrix), KEY, iterations, draws)


def symmetric(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return q @ np.diag(eigenvalues) @ q.T


class Tanh(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


def network(key, sizes=(8, 12, 6, 3)) -> Network:
    layers = [eqx.nn.Linear(i, o, key=jax.random.fold_in(key, n)) for n, (i, o) in enumerate(pairwise(sizes))]
    return Network(one=Tanh(layers[0]), two=Tanh(layers[1]), head=layers[2])


def batch(seed=0, n=32, inputs=8, outputs=3):
    rng = np.random.default_rng(seed)
    return Batch(jnp.asarray(rng.normal(size=(n, inputs))), jnp.asarray(rng.normal(size=(n, outputs))))


def squared(network, data, key):
    return jnp.mean(jnp.square(network(data.inputs).output - data.targets))


def view(network) -> View:
    return View(network, squared, optax.sgd(0.1), lambda n, x: n(x).stages, lambda key: network)


def dense_hessian(loss, params):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda v: loss(unravel(v))))(flat))


def test_eigenvalues_of_a_network_equal_the_dense_hessian_in_float64():
    with jax.enable_x64(True):
        net = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            network(jax.random.key(0)),
        )
        data = batch()
        params, rest = split_trainable(net)
        loss = lambda p: squared(eqx.combine(p, rest), data, None)  # noqa: E731
        exact = np.linalg.eigvalsh(dense_hessian(loss, params))
        assert len(exact) == 207
        # As many iterations as numbers: with full re-orthogonalisation every distinct eigenvalue is found.
        spectrum = jax.jit(
            lambda p, k, iterations: hessian_spectrum(loss, p, key=k, iterations=iterations),
            static_argnames="iterations",
        )
        full = spectrum(params, KEY, iterations=500)
        assert full.eigenvalues.shape == full.weights.shape == (1, 207)
        np.testing.assert_allclose(full.eigenvalues[0], exact, atol=1e-8)
        short = spectrum(params, KEY, iterations=80)
        np.testing.assert_allclose(short.largest, exact[-1], atol=1e-8)
        np.testing.assert_allclose(short.smallest, exact[0], atol=1e-8)
        assert exact[0] < 0  # so smallest is not the floor of a masked spectrum


EIGENVALUES = np.array([-3.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0])
"""One size for all quadratics, so that few programs are compiled."""


def test_known_spectrum_and_its_weights():
    matrix = symmetric(EIGENVALUES)
    vectors = np.linalg.eigh(matrix)[1]
    start = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 0), (12,), jnp.float32), np.float64)
    components = (vectors.T @ (start / np.linalg.norm(start))) ** 2
    with jax.enable_x64(True):
        double = of_quadratic(matrix)
        assert double.eigenvalues.dtype == np.float64
        np.testing.assert_allclose(double.eigenvalues[0], EIGENVALUES, atol=1e-10)
        np.testing.assert_allclose(double.weights[0], components, atol=1e-10)
    # The same start in either precision: a key must not give other numbers in float64 mode.
    single = of_quadratic(jnp.asarray(matrix, jnp.float32))
    assert single.eigenvalues.dtype == np.float32
    np.testing.assert_allclose(single.eigenvalues[0], EIGENVALUES, atol=1e-4)
    np.testing.assert_allclose(single.weights[0], components, atol=1e-4)


def test_repeated_eigenvalues_end_early_without_inventing_any():
    with jax.enable_x64(True):
        spectrum = of_quadratic(symmetric(np.array([-4.0] * 5 + [-1.0] * 7)))
        np.testing.assert_allclose([spectrum.smallest, spectrum.largest], [-4, -1], atol=1e-9)
        weighty = np.asarray(spectrum.eigenvalues[spectrum.weights > 1e-9])
        np.testing.assert_allclose(np.sort(weighty), [-4, -1], atol=1e-9)
        np.testing.assert_allclose(spectrum.weights.sum(), 1, atol=1e-12)


def test_low_rank_in_float32_has_no_spurious_outliers():
    spectrum = of_quadratic(jnp.asarray(symmetric(np.array([10.0, 5.0] + [0.0] * 10)), jnp.float32))
    np.testing.assert_allclose([spectrum.largest, spectrum.smallest], [10, 0], atol=1e-4)
    moderate = spectrum.eigenvalues[(spectrum.eigenvalues > 1e-3) & (spectrum.weights > 1e-5)]
    np.testing.assert_allclose(jnp.sort(moderate), [5, 10], rtol=1e-5)


def test_the_end_is_relative_to_the_size_of_the_matrix():
    with jax.enable_x64(True):
        spectrum = of_quadratic(1e-12 * symmetric(EIGENVALUES))
        np.testing.assert_allclose(spectrum.eigenvalues[0] * 1e12, EIGENVALUES, atol=1e-8)


def test_the_identity_zero_and_non_finite_matrices():
    identity = of_quadratic(3 * jnp.eye(12))
    np.testing.assert_allclose([identity.largest, identity.smallest], 3, rtol=1e-6)
    zero = of_quadratic(jnp.zeros((12, 12)))
    assert float(zero.largest) == float(zero.smallest) == 0
    assert not np.asarray(zero.eigenvalues).any()
    np.testing.assert_allclose(zero.weights.sum(), 1, rtol=1e-6)
    for part in of_quadratic(jnp.eye(12).at[3, 3].set(jnp.inf)):
        assert np.isnan(part).all()


def test_one_parameter():
    np.testing.assert_allclose(hessian_spectrum(lambda v: v**2, jnp.ones(()), key=KEY).largest, 2)


def test_zero_network_has_no_curvature():
    drawn = network(jax.random.key(0), (3, 4, 3, 2))
    net = jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, drawn)
    data = Batch(jnp.ones((4, 3)), jnp.zeros((4, 2)))
    flat = view(net)._replace(loss=lambda n, b, k: jnp.mean(n(b.inputs).output ** 4))
    assert float(sharpness(flat, data, KEY)["all"]) == 0


def test_trace_of_the_density_is_the_mean_eigenvalue():
    spectrum = of_quadratic(jnp.asarray(symmetric(EIGENVALUES), jnp.float32), draws=400)
    np.testing.assert_allclose(spectrum.weights.sum(), 1, rtol=1e-5)
    per_draw = 400 * np.sum(spectrum.weights * spectrum.eigenvalues, axis=1)
    error = per_draw.std(ddof=1) / np.sqrt(400)
    assert error < 0.1
    assert abs(per_draw.mean() - EIGENVALUES.mean()) < 4 * error
    assert len(np.unique(per_draw.round(4))) > 390  # every draw has its own start
    exact = of_quadratic(2.5 * jnp.eye(12), draws=400)
    np.testing.assert_allclose(jnp.sum(exact.weights * exact.eigenvalues), 2.5, rtol=1e-5)


def test_density_integrates_to_one_and_peaks_at_the_eigenvalues():
    spectrum = of_quadratic(jnp.diag(jnp.array([1.0] * 9 + [5.0] * 3)), draws=400)
    grid = jnp.linspace(-2, 8, 2001)
    density = spectral_density(spectrum, grid, width=0.2)
    np.testing.assert_allclose(jnp.sum(density) * 0.005, 1, rtol=1e-3)
    np.testing.assert_allclose(grid[jnp.argmax(density)], 1, atol=0.02)
    np.testing.assert_allclose(jnp.sum(density[grid > 3]) * 0.005, 0.25, atol=0.03)
    with pytest.raises(ValueError, match="width"):
        spectral_density(spectrum, grid, width=0.0)


def test_linear_network_has_the_hessian_of_its_inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 5))
    layer = eqx.nn.Linear(5, 1, use_bias=False, key=jax.random.key(0))
    loss, params = output_noise_loss(Network(head=layer), jnp.asarray(x, jnp.float32), key=KEY)
    spectrum = hessian_spectrum(loss, params, key=KEY)
    exact = np.linalg.eigvalsh(2 * x.T @ x / 40)
    np.testing.assert_allclose(spectrum.eigenvalues[0], exact, rtol=2e-5)
    data = Batch(jnp.asarray(x, jnp.float32), jnp.zeros((40, 1)))
    measured = output_sharpness(view(Network(head=layer)), data, KEY)["all"]
    np.testing.assert_allclose(measured, exact[-1], rtol=2e-5)


def test_noise_loss_without_noise_is_gauss_newton_and_with_noise_is_not():
    with jax.enable_x64(True):
        net = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            network(jax.random.key(1), (3, 4, 3, 2)),
        )
        x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))
        params, rest = split_trainable(net)
        flat, unravel = ravel_pytree(params)
        jacobian = np.asarray(jax.jacobian(lambda v: eqx.combine(unravel(v), rest)(x).output.reshape(-1))(flat))
        gauss_newton = 2 * jacobian.T @ jacobian / 20
        loss, same = output_noise_loss(net, x, key=KEY, scale=0.0)
        np.testing.assert_allclose(dense_hessian(loss, same), gauss_newton, atol=1e-12)
        noisy, same = output_noise_loss(net, x, key=KEY)
        assert np.abs(dense_hessian(noisy, same) - gauss_newton).max() > 1e-2
        assert float(noisy(params)) == float(noisy(params)) > 0.3  # e is drawn once, of variance 1


def test_products_are_counted_as_they_are_taken():
    params = {"a": jnp.zeros((3, 4)), "b": None, "c": jnp.zeros(2)}
    assert hessian_vector_products(params) == 14
    assert hessian_vector_products(params, iterations=5, draws=3) == 15
    spectrum = hessian_spectrum(lambda p: jnp.sum(p["a"] ** 2), params, key=KEY, iterations=5, draws=3)
    assert spectrum.eigenvalues.size == 15


@pytest.mark.parametrize(("iterations", "draws"), [(0, 1), (5, 0)])
def test_nothing_to_do_is_an_error(iterations, draws):
    with pytest.raises(ValueError, match="at least 1"):
        hessian_spectrum(jnp.sum, jnp.zeros(3), key=KEY, iterations=iterations, draws=draws)
    with pytest.raises(ValueError, match="no parameters"):
        hessian_spectrum(lambda p: 0.0, (None,), key=KEY)


def test_lanes_equal_runs_alone_and_a_dead_lane_stays_alone():
    nets = [network(jax.random.key(s), (3, 4, 3, 2)) for s in range(3)]
    nets[1] = jax.tree.map(lambda a: a * jnp.nan if eqx.is_array(a) else a, nets[1])
    stacked = jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *nets)
    data = jax.tree.map(lambda a: a.astype(jnp.float32), batch(inputs=3, outputs=2))

    def measure(net):
        return sharpness(view(net), data, KEY)["all"]

    lanes = eqx.filter_jit(eqx.filter_vmap(measure))(stacked)
    alone = eqx.filter_jit(measure)
    assert np.isnan(lanes[1])
    for lane in (0, 2):
        np.testing.assert_allclose(lanes[lane], alone(nets[lane]), rtol=1e-4)


def test_sharpness_is_of_the_training_loss_and_its_default_is_as_accurate_as_stated():
    net = network(jax.random.key(5))
    data = jax.tree.map(lambda a: a.astype(jnp.float32), batch())
    params, rest = split_trainable(net)
    exact = np.linalg.eigvalsh(dense_hessian(lambda p: squared(eqx.combine(p, rest), data, None), params))[-1]
    measured = eqx.filter_jit(lambda n: sharpness(view(n), data, KEY)["all"])(net)
    np.testing.assert_allclose(measured, exact, rtol=1e-4)


def in_double(net: Network) -> Network:
    return jax.tree.map(lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, net)


def test_the_largest_eigenvalues_are_those_of_the_dense_hessian_within_their_stated_errors():
    with jax.enable_x64(True):
        data = batch()
        params, rest = split_trainable(in_double(network(jax.random.key(0))))
        loss = lambda p: squared(eqx.combine(p, rest), data, None)  # noqa: E731
        exact = np.linalg.eigvalsh(dense_hessian(loss, params))[::-1]
        found = jax.jit(lambda p: largest_eigenvalues(loss, p, key=KEY, count=10))(params)
        np.testing.assert_allclose(found.values, exact[:10], rtol=1e-3)
        nearest = np.abs(np.asarray(found.values)[:, None] - exact).min(axis=1)
        assert (nearest <= found.errors + 1e-10).all()
        assert (found.errors <= 1e-3 * np.abs(exact[:10])).all()
        assert 10 <= int(found.products) < 80  # it ended by itself
        few = largest_eigenvalues(loss, params, key=KEY, count=10, iterations=12)
        assert int(few.products) == 12
        assert (np.abs(np.asarray(few.values)[:, None] - exact).min(axis=1) <= few.errors + 1e-10).all()
        assert float(few.errors.max()) > 1e-3 * exact[9]  # and it says so where it could not


def test_eigenvalues_that_are_not_there_are_nan():
    def largest(matrix, count):
        start = jnp.zeros(len(matrix))
        return largest_eigenvalues(lambda v: 0.5 * v @ matrix @ v, start, key=KEY, count=count, iterations=50)

    matrix = jnp.asarray(symmetric(np.array([-4.0] * 5 + [-1.0] * 7)), jnp.float32)
    found = largest(matrix, 3)
    np.testing.assert_allclose(found.values[:2], [-1, -4], rtol=1e-5)
    assert np.isnan(found.values[2])
    assert np.isnan(largest(jnp.eye(12), 20).values[1:]).all()
    np.testing.assert_allclose(largest(jnp.eye(12), 20).values[0], 1, rtol=1e-6)
    assert np.isnan(largest(jnp.eye(12).at[3, 3].set(jnp.inf), 2).values).all()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"tolerance": 0.0}])
def test_no_eigenvalues_or_no_tolerance_is_an_error(wrong):
    with pytest.raises(ValueError, match="count must be at least 1 and tolerance positive"):
        largest_eigenvalues(jnp.sum, jnp.zeros(3), key=KEY, **wrong)


def test_double_precision_of_a_float32_network():
    net, data = network(jax.random.key(0)), batch()
    data = jax.tree.map(lambda a: np.asarray(a, np.float32), data)
    params, rest = split_trainable(net)
    loss = lambda p: squared(eqx.combine(p, rest), data, None)  # noqa: E731
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        exact = np.linalg.eigvalsh(dense_hessian(loss, wide))
    spectrum = hessian_spectrum(loss, params, key=KEY, iterations=100, double=True)
    assert spectrum.eigenvalues.dtype == np.float64
    np.testing.assert_allclose([spectrum.smallest, spectrum.largest], [exact[0], exact[-1]], rtol=1e-9)
    largest = largest_eigenvalues(loss, params, key=KEY, count=2, tolerance=1e-9, double=True)
    np.testing.assert_allclose(largest.values, exact[:-3:-1], rtol=1e-8)
    single = hessian_spectrum(loss, params, key=KEY, iterations=100)
    assert abs(float(single.largest) - exact[-1]) > 1e-9 * exact[-1]  # so that the option is what makes it exact
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda p: hessian_spectrum(loss, p, key=KEY, double=True))(params)


def test_spectra_of_a_learner_are_recorded_with_their_density():
    net = network(jax.random.key(5))
    data = jax.tree.map(lambda a: a.astype(jnp.float32), batch())
    params, rest = split_trainable(net)
    loss_key, start_key = jax.random.split(KEY)
    expected = hessian_spectrum(
        lambda p: squared(eqx.combine(p, rest), data, loss_key), params, key=start_key, iterations=15
    )
    found = training_spectrum(view(net), data, KEY, iterations=15)
    np.testing.assert_allclose(found["largest"], expected.largest, rtol=1e-5)
    np.testing.assert_allclose(found["smallest"], expected.smallest, rtol=1e-5)
    nodes = np.array([found[f"eigenvalue:{i}"] for i in range(15)])
    weights = np.array([found[f"weight:{i}"] for i in range(15)])
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found["mean"], nodes @ weights, rtol=1e-4, atol=1e-6)
    random = output_spectrum(view(net), data, KEY, iterations=15)
    sharp = output_sharpness(view(net), data, KEY, iterations=15)
    np.testing.assert_allclose(random["largest"], sharp["all"], rtol=1e-6)
