"""S4D and S5 against published values, float64 recurrences and the dense systems they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from neoteny.networks.initializers import named_key
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


def test_s4d_initial_scales():
    """Each part of C has half of a variance of 1; log Delta is uniform between log 1e-3 and log 1e-1."""
    layer = S4D(400, 32, key=KEY)
    for part in (layer.C_re, layer.C_im):
        assert scipy.stats.kstest(np.ravel(part) * np.sqrt(2), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(np.ravel(layer.C_re), np.ravel(layer.C_im))[0, 1]) < 0.05
    assert layer.delta_log.shape == (400, 1)
    share = (np.ravel(layer.delta_log) - np.log(1e-3)) / np.log(100)
    assert scipy.stats.kstest(share, "uniform").pvalue > 1e-3
    np.testing.assert_allclose(-np.exp(layer.A_re_log), -0.5, rtol=1e-6)
    np.testing.assert_allclose(np.var(layer.D), 1, rtol=0.2)


@pytest.mark.parametrize("how", list(Discretization))
def test_s4d_kernel_is_its_recurrence_over_long_sequences(how):
    """4,096 steps of an impulse in complex128, and white noise by convolution against the layer's own recurrence."""
    layer, length = S4D(3, 64, key=KEY, discretization=how), 4096
    a = -np.exp(np.asarray(layer.A_re_log, float)) + 1j * np.asarray(layer.A_im, float)
    transition, factor = discrete(a, np.exp(np.asarray(layer.delta_log, float)), how)
    weight = (np.asarray(layer.C_re[0], float) + 1j * np.asarray(layer.C_im[0], float)) * factor
    state, expected = np.ones_like(transition), np.zeros((length, 3))
    for step in range(length):
        expected[step] = 2 * np.sum(weight * state, axis=-1).real
        state = transition * state
    (kernel,) = np.asarray(layer.kernel(length), float)
    largest = np.abs(expected).max(axis=0)
    assert np.all(np.abs(kernel - expected) <= 1e-4 * largest)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(1, length, 3)), jnp.float32)
    whole, _ = layer(u)
    stepped, _ = layer.unroll(u, layer.initial_state(1))
    assert np.max(np.abs(whole - stepped)) <= 1e-4 * np.max(np.abs(whole))


@pytest.mark.parametrize("how", [Discretization.ZOH, Discretization.BILINEAR])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("step_per_state", [False, True])
def test_s5_is_the_dense_real_system_it_was_drawn_as(how, blocks, step_per_state):
    """x' = M (S x + B u), y = 2 Re(C V V^H x) + D u, with real S, B and complex C as they are drawn and V the
    eigenvectors of positive imaginary part; M, real and commuting with S, holds the time steps of the states.
    """
    layer = S5(WIDTH, STATE, key=KEY, blocks=blocks, discretization=how, step_per_state=step_per_state)
    half, size = STATE // 2, STATE // blocks
    assert layer.delta_log.shape == (half if step_per_state else 1,)
    s = np.kron(np.eye(blocks), legs_matrix(size))
    v = np.kron(np.eye(blocks), hippo_legs(size)[1][:, size // 2 :])  # (state, half)
    steps = np.broadcast_to(np.exp(np.asarray(layer.delta_log, float)), half)
    m = 2 * ((v * steps) @ v.conj().T).real
    np.testing.assert_allclose(m @ s, s @ m, atol=1e-12)
    b = np.asarray(jax.random.normal(named_key(KEY, "B"), (WIDTH, STATE)), float).T / np.sqrt(WIDTH)
    parts = np.asarray(jax.random.normal(named_key(KEY, "C"), (2, 1, STATE, WIDTH)), float) / np.sqrt(STATE)
    c = (parts[0, 0] + 1j * parts[1, 0]).T  # (width, state)
    readout = 2 * (c @ v @ v.conj().T).real
    if how is Discretization.ZOH:
        transition = scipy.linalg.expm(m @ s)
        bbar = np.linalg.solve(s, (transition - np.eye(STATE)) @ b)
    else:
        left = np.linalg.inv(np.eye(STATE) - m @ s / 2)
        transition, bbar = left @ (np.eye(STATE) + m @ s / 2), left @ m @ b
    u, x = inputs(), np.zeros((2, STATE))
    y = layer(jnp.asarray(u, jnp.float32))[0]
    for k in range(LENGTH):
        x = x @ transition.T + u[:, k] @ bbar.T
        np.testing.assert_allclose(y[:, k], x @ readout.T + np.asarray(layer.D) * u[:, k], atol=1e-5)


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
