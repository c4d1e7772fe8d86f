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
    output_noise_loss,
    output_sharpness,
    sharpness,
    spectral_density,
)

KEY = jax.random.key(3)


def quadratic(matrix):
    return lambda v: 0.5 * v @ matrix @ v


def symmetric(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return q @ np.diag(eigenvalues) @ q.T


class Tanh(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


def trainable_network(key, sizes=(8, 12, 6, 3)) -> Network:
    layers = [
        eqx.nn.Linear(i, o, key=jax.random.fold_in(key, n))
        for n, (i, o) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    ]
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
    return np.asarray(jax.hessian(lambda v: loss(unravel(v)))(flat))


def test_eigenvalues_of_a_network_equal_the_dense_hessian_in_float64():
    with jax.enable_x64(True):
        net = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            trainable_network(jax.random.key(0)),
        )
        data = batch()
        params, rest = split_trainable(net)
        loss = lambda p: squared(eqx.combine(p, rest), data, None)  # noqa: E731
        exact = np.linalg.eigvalsh(dense_hessian(loss, params))
        assert len(exact) == 207
        # As many iterations as numbers: Lanczos with full re-orthogonalisation finds every distinct eigenvalue.
        full = hessian_spectrum(loss, params, key=KEY, iterations=500)
        assert full.eigenvalues.shape == full.weights.shape == (1, 207)
        np.testing.assert_allclose(full.eigenvalues[0], exact, atol=1e-8)
        short = hessian_spectrum(loss, params, key=KEY, iterations=80)
        np.testing.assert_allclose(short.largest, exact[-1], atol=1e-8)
        np.testing.assert_allclose(short.smallest, exact[0], atol=1e-8)
        assert exact[0] < 0  # so smallest is not the floor of a masked spectrum
        measured = sharpness(view(net), data, KEY, iterations=60)["all"]
        np.testing.assert_allclose(measured, exact[-1], atol=1e-8)


def test_known_spectrum_and_its_weights():
    with jax.enable_x64(True):
        eigenvalues = np.array([-3.0, -1.0, 0.5, 2.0, 7.0])
        q = np.linalg.eigh(symmetric(eigenvalues))[1]
        spectrum = hessian_spectrum(quadratic(symmetric(eigenvalues)), jnp.zeros(5), key=KEY)
        np.testing.assert_allclose(spectrum.eigenvalues[0], eigenvalues, atol=1e-10)
        start = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 0), (5,), jnp.float32), np.float64)
        components = (q.T @ (start / np.linalg.norm(start))) ** 2
        np.testing.assert_allclose(spectrum.weights[0], components, atol=1e-10)


def test_repeated_eigenvalues_end_early_without_inventing_any():
    with jax.enable_x64(True):
        matrix = symmetric(np.array([-4.0] * 5 + [-1.0] * 7))
        spectrum = hessian_spectrum(quadratic(matrix), jnp.zeros(12), key=KEY)
        np.testing.assert_allclose([spectrum.smallest, spectrum.largest], [-4, -1], atol=1e-9)
        weighty = np.asarray(spectrum.eigenvalues[spectrum.weights > 1e-9])
        np.testing.assert_allclose(np.sort(weighty), [-4, -1], atol=1e-9)
        np.testing.assert_allclose(spectrum.weights.sum(), 1, atol=1e-12)


def test_low_rank_in_float32_has_no_spurious_outliers():
    matrix = jnp.asarray(symmetric(np.array([10.0, 5.0] + [0.0] * 48)), jnp.float32)
    spectrum = hessian_spectrum(quadratic(matrix), jnp.zeros(50), key=KEY, iterations=40)
    np.testing.assert_allclose([spectrum.largest, spectrum.smallest], [10, 0], atol=1e-4)
    moderate = spectrum.eigenvalues[(spectrum.eigenvalues > 1e-3) & (spectrum.weights > 1e-5)]
    np.testing.assert_allclose(jnp.sort(moderate), [5, 10], rtol=1e-5)


def test_the_end_is_relative_to_the_size_of_the_matrix():
    with jax.enable_x64(True):
        eigenvalues = np.linspace(1, 2, 10)
        spectrum = hessian_spectrum(quadratic(1e-12 * symmetric(eigenvalues)), jnp.zeros(10), key=KEY)
        np.testing.assert_allclose(spectrum.eigenvalues[0] * 1e12, eigenvalues, rtol=1e-8)


def test_the_identity_and_zero_and_one_parameter():
    identity = hessian_spectrum(quadratic(3 * jnp.eye(6)), jnp.zeros(6), key=KEY)
    np.testing.assert_allclose([identity.largest, identity.smallest], 3, rtol=1e-6)
    zero = hessian_spectrum(lambda v: jnp.sum(v), jnp.ones(6), key=KEY)
    assert float(zero.largest) == float(zero.smallest) == 0
    assert not np.asarray(zero.eigenvalues).any()
    np.testing.assert_allclose(zero.weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(hessian_spectrum(lambda v: v**2, jnp.ones(()), key=KEY).largest, 2)


def test_zero_network_has_no_curvature_in_its_hidden_layers():
    net = jax.tree.map(
        lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, trainable_network(jax.random.key(0))
    )
    data = Batch(jnp.ones((4, 8)), jnp.zeros((4, 3)))
    flat = view(net)._replace(loss=lambda n, b, k: jnp.mean(n(b.inputs).output ** 4))
    assert float(sharpness(flat, data, KEY)["all"]) == 0


def test_a_non_finite_hessian_gives_nan():
    spectrum = hessian_spectrum(lambda v: jnp.sum(jnp.sqrt(v) * v), jnp.array([1.0, 0.0, -1.0]), key=KEY)
    for part in spectrum:
        assert np.isnan(part).all()


def test_trace_of_the_density_is_the_mean_eigenvalue():
    eigenvalues = np.array([-1.0, 0.0, 0.0, 1.0, 2.0, 4.0, 9.0, 16.0])
    matrix = jnp.asarray(symmetric(eigenvalues), jnp.float32)
    spectrum = hessian_spectrum(quadratic(matrix), jnp.zeros(8), key=KEY, draws=400)
    np.testing.assert_allclose(spectrum.weights.sum(), 1, rtol=1e-5)
    per_draw = 400 * np.sum(spectrum.weights * spectrum.eigenvalues, axis=1)
    error = per_draw.std(ddof=1) / np.sqrt(400)
    assert error < 0.3
    assert abs(per_draw.mean() - eigenvalues.mean()) < 4 * error
    assert len(np.unique(per_draw.round(4))) > 390  # every draw has its own start


def test_trace_of_one_draw_is_exact_for_a_multiple_of_the_identity():
    spectrum = hessian_spectrum(quadratic(2.5 * jnp.eye(7)), jnp.zeros(7), key=KEY, draws=3)
    np.testing.assert_allclose(jnp.sum(spectrum.weights * spectrum.eigenvalues), 2.5, rtol=1e-6)


def test_the_start_does_not_depend_on_the_precision():
    matrix = symmetric(np.linspace(-1, 3, 30))
    single = hessian_spectrum(
        quadratic(jnp.asarray(matrix, jnp.float32)), jnp.zeros(30), key=KEY, iterations=4
    )
    with jax.enable_x64(True):
        double = hessian_spectrum(quadratic(matrix), jnp.zeros(30), key=KEY, iterations=4)
        assert double.eigenvalues.dtype == np.float64
    assert single.eigenvalues.dtype == np.float32
    np.testing.assert_allclose(single.eigenvalues, double.eigenvalues, atol=1e-4)


def test_linear_network_has_the_hessian_of_its_inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 5))
    layer = eqx.nn.Linear(5, 1, use_bias=False, key=jax.random.key(0))
    loss, params = output_noise_loss(Network(head=layer), jnp.asarray(x, jnp.float32), key=KEY)
    spectrum = hessian_spectrum(loss, params, key=KEY)
    np.testing.assert_allclose(spectrum.eigenvalues[0], np.linalg.eigvalsh(2 * x.T @ x / 40), rtol=2e-5)


def test_noise_loss_without_noise_is_gauss_newton_and_with_noise_is_not():
    with jax.enable_x64(True):
        net = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a,
            trainable_network(jax.random.key(1), (3, 4, 3, 2)),
        )
        x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))
        params, rest = split_trainable(net)
        flat, unravel = ravel_pytree(params)
        jacobian = np.asarray(
            jax.jacobian(lambda v: eqx.combine(unravel(v), rest)(x).output.reshape(-1))(flat)
        )
        gauss_newton = 2 * jacobian.T @ jacobian / 20
        loss, same = output_noise_loss(net, x, key=KEY, scale=0.0)
        np.testing.assert_allclose(dense_hessian(loss, same), gauss_newton, atol=1e-12)
        noisy, same = output_noise_loss(net, x, key=KEY)
        assert np.abs(dense_hessian(noisy, same) - gauss_newton).max() > 1e-2
        assert float(noisy(params)) == float(noisy(params)) > 0.3  # e is drawn once, of variance 1


def test_density_integrates_to_one_and_peaks_at_the_eigenvalues():
    spectrum = hessian_spectrum(
        quadratic(jnp.diag(jnp.array([1.0, 1.0, 1.0, 5.0]))), jnp.zeros(4), key=KEY, draws=50
    )
    grid = jnp.linspace(-2, 8, 2001)
    density = spectral_density(spectrum, grid, width=0.2)
    np.testing.assert_allclose(jnp.sum(density) * 0.005, 1, rtol=1e-3)
    np.testing.assert_allclose(grid[jnp.argmax(density)], 1, atol=0.02)
    with pytest.raises(ValueError, match="width"):
        spectral_density(spectrum, grid, width=0.0)


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
    nets = [trainable_network(jax.random.key(s)) for s in range(3)]
    nets[1] = jax.tree.map(lambda a: a * jnp.nan if eqx.is_array(a) else a, nets[1])
    stacked = jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *nets)
    data = jax.tree.map(lambda a: a.astype(jnp.float32), batch())
    for probe in (sharpness, output_sharpness):
        lanes = eqx.filter_jit(eqx.filter_vmap(lambda n, p=probe: p(view(n), data, KEY)["all"]))(stacked)
        assert np.isnan(lanes[1])
        for lane in (0, 2):
            np.testing.assert_allclose(lanes[lane], probe(view(nets[lane]), data, KEY)["all"], rtol=1e-4)


def test_default_iterations_reach_the_stated_accuracy():
    net = trainable_network(jax.random.key(5))
    data = jax.tree.map(lambda a: a.astype(jnp.float32), batch())
    reference = sharpness(view(net), data, KEY, iterations=150)["all"]
    np.testing.assert_allclose(sharpness(view(net), data, KEY)["all"], reference, rtol=1e-4)
