"""S4D and S5 against published values, float64 recurrences and the dense systems they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.networks.s4d import S4D, Discretization, Spectrum, hippo_legs
from neoteny.networks.s5 import S5

KEY = jax.random.key(0)
WIDTH, STATE, LENGTH = 2, 8, 20


def inputs(length=LENGTH):
    return np.random.default_rng(0).normal(size=(2, length, WIDTH))


def legs_matrix(size):
    """S by its definition, entry by entry."""
    s = np.zeros((size, size))
    for n in range(size):
        for k in range(size):
            a = -np.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1.0) if n == k else 0.0
            s[n, k] = a + np.sqrt(n + 0.5) * np.sqrt(k + 0.5)
    return s


def test_legs_values_and_vectors():
    eigenvalues, vectors = hippo_legs(8)
    np.testing.assert_allclose(eigenvalues.real, -0.5)
    np.testing.assert_allclose(eigenvalues.imag[4:], [0.42748871, 1.95779415, 5.35420852, 19.85741037], atol=1e-8)
    np.testing.assert_allclose(vectors @ np.diag(eigenvalues) @ vectors.conj().T, legs_matrix(8), atol=1e-12)
    np.testing.assert_allclose(vectors.conj().T @ vectors, np.eye(8), atol=1e-12)


def test_spectra():
    np.testing.assert_allclose(Spectrum.LEGS(4), hippo_legs(8)[0][4:])
    np.testing.assert_allclose(Spectrum.LINEAR(3), [-0.5, -0.5 + 1j * np.pi, -0.5 + 2j * np.pi])
    np.testing.assert_allclose(Spectrum.INVERSE(2).imag, [4 / np.pi * (4 - 1), 4 / np.pi * (4 / 3 - 1)])


def discrete(a, delta, how):
    """(Abar, factor of B) by the formulas, complex128."""
    if how is Discretization.BILINEAR:
        return (1 + delta * a / 2) / (1 - delta * a / 2), delta / (1 - delta * a / 2)
    transition = np.exp(delta * a)
    return transition, (transition - 1) / a if how is Discretization.ZOH else delta + 0 * a


@pytest.mark.parametrize("how", list(Discretization))
@pytest.mark.parametrize("spectrum", list(Spectrum))
@pytest.mark.parametrize("tied", [True, False])
def test_s4d_is_its_recurrence_with_conjugates_written_out(how, spectrum, tied):
    layer = S4D(WIDTH, STATE, key=KEY, spectrum=spectrum, discretization=how, tied=tied)
    of_b = layer.delta_log
    if not tied:
        of_b = layer.delta_log + 0.7
        layer = jax.tree_util.tree_map_with_path(
            lambda path, x: x + 0.7 if path[-1].name == "delta_B_log" else x, layer
        )
    a = -np.exp(np.asarray(layer.A_re_log, float)) + 1j * np.asarray(layer.A_im, float)
    c = np.asarray(layer.C_re[0], float) + 1j * np.asarray(layer.C_im[0], float)
    transition, _ = discrete(a, np.exp(np.asarray(layer.delta_log, float)), how)
    _, factor = discrete(a, np.exp(np.asarray(of_b, float)), how)
    pairs = [np.concatenate((x, x.conj()), axis=-1) for x in (transition, factor, c)]
    u, h = inputs(), np.zeros((2, WIDTH, STATE), complex)
    y = jax.jit(lambda layer, u: layer(u)[0])(layer, jnp.asarray(u, jnp.float32))
    for k in range(LENGTH):
        h = pairs[0] * h + pairs[1] * u[:, k, :, None]
        whole = np.sum(pairs[2] * h, axis=-1)
        np.testing.assert_allclose(whole.imag, 0, atol=1e-12)
        np.testing.assert_allclose(y[:, k], whole.real + np.asarray(layer.D) * u[:, k], atol=2e-5)


def test_convolution_does_not_wrap():
    layer = S4D(WIDTH, STATE, key=KEY)
    u = inputs()
    late = np.array(u)
    late[:, -1] += 100
    y, z = (layer(jnp.asarray(x, jnp.float32))[0] for x in (u, late))
    np.testing.assert_allclose(y[:, :-1], z[:, :-1], atol=2e-3)


def test_zero_order_hold_becomes_delta_b_for_small_steps():
    a = jnp.array([-0.5 + 3j, -2 - 1j], jnp.complex64)
    for delta in (1e-2, 1e-3, 1e-4):
        held = Discretization.ZOH.input_factor(a, jnp.float32(delta))
        simple = Discretization.DELTA_B.input_factor(a, jnp.float32(delta))
        assert np.max(np.abs(held / simple - 1)) < 2 * delta
    exact = (np.exp(1e-4 * np.asarray(a, complex)) - 1) / np.asarray(a, complex)
    np.testing.assert_allclose(Discretization.ZOH.input_factor(a, jnp.float32(1e-4)), exact, rtol=1e-6)


@pytest.mark.parametrize("how", [Discretization.ZOH, Discretization.BILINEAR])
@pytest.mark.parametrize("blocks", [1, 2])
def test_s5_is_the_dense_system_it_diagonalises(how, blocks):
    """x' = S x + B u with real S, B: the scan must give what the matrix exponential of S gives."""
    layer = S5(WIDTH, STATE, key=KEY, blocks=blocks, discretization=how, step_per_state=False)
    half, size = STATE // 2, STATE // blocks
    s = np.kron(np.eye(blocks), legs_matrix(size))
    upper = np.kron(np.eye(blocks), hippo_legs(size)[1][:, size // 2 :])
    v = np.concatenate((upper, upper.conj()), axis=1)
    btilde = np.asarray(layer.B_re, float).T + 1j * np.asarray(layer.B_im, float).T  # (half, width)
    ctilde = np.asarray(layer.C_re[0], float).T + 1j * np.asarray(layer.C_im[0], float).T  # (width, half)
    b = v @ np.concatenate((btilde, btilde.conj()))
    np.testing.assert_allclose(b.imag, 0, atol=1e-6)
    delta = float(np.exp(layer.delta_log[0]))
    if how is Discretization.ZOH:
        import scipy.linalg

        transition = scipy.linalg.expm(delta * s)
        bbar = np.linalg.solve(s, (transition - np.eye(STATE)) @ b)
    else:
        left = np.linalg.inv(np.eye(STATE) - delta / 2 * s)
        transition, bbar = left @ (np.eye(STATE) + delta / 2 * s), delta * left @ b
    c = np.concatenate((ctilde, ctilde.conj()), axis=1) @ v.conj().T
    u, x = inputs(), np.zeros((2, STATE))
    y = layer(jnp.asarray(u, jnp.float32))[0]
    for k in range(LENGTH):
        x = x @ transition.T + u[:, k] @ bbar.T
        np.testing.assert_allclose(y[:, k], (x @ c.T).real + np.asarray(layer.D) * u[:, k], atol=1e-5)
    assert half == layer.A_re.shape[0]


def test_s5_initial_scales():
    layer = S5(100, 64, key=KEY)
    b = np.asarray(layer.B_re) + 1j * np.asarray(layer.B_im)
    np.testing.assert_allclose(np.mean(np.abs(b) ** 2), 1 / 100, rtol=0.1)
    c = np.asarray(layer.C_re) + 1j * np.asarray(layer.C_im)
    np.testing.assert_allclose(np.mean(np.abs(c) ** 2), 2 / 64, rtol=0.1)
    assert layer.delta_log.shape == (32,)
    assert np.log(1e-3) <= layer.delta_log.min() < layer.delta_log.max() <= np.log(1e-1)


def test_s5_clips_real_parts():
    layer = S5(WIDTH, STATE, key=KEY, clip=True)
    pushed = jax.tree_util.tree_map_with_path(lambda path, x: x + 5 if path[-1].name == "A_re" else x, layer)
    assert np.all(np.abs(pushed.discrete()[0]) < 1)
    loose = S5(WIDTH, STATE, key=KEY)
    pushed = jax.tree_util.tree_map_with_path(lambda path, x: x + 5 if path[-1].name == "A_re" else x, loose)
    assert np.all(np.abs(pushed.discrete()[0]) > 1)


def test_odd_states_are_refused():
    with pytest.raises(ValueError, match="even"):
        S4D(2, 7, key=KEY)
    with pytest.raises(ValueError, match="2 blocks = 6"):
        S5(2, 8, key=KEY, blocks=3)
