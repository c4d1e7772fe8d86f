"""The LRU and its ladder: initialisation against its distributions, layers against float64 loops."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from neoteny.learners.optimizers import adamw_groups
from neoteny.networks import Chain, Dense, Layer, identity, relu, split_trainable, tanh
from neoteny.networks.lru import (
    LRU,
    DenseRecurrence,
    InitScale,
    LadderMixer,
    Parameterization,
    Rung,
    gamma_log_of,
    ring,
)
from neoteny.networks.recurrent import slow_parameters
from neoteny.networks.residual_sequence import (
    GLU,
    Gate,
    RecurrentStack,
    ResidualBlock,
    SequenceDropout,
    sequence_network,
)
from neoteny.networks.s4d import S4D
from neoteny.networks.s5 import S5
from neoteny.networks.sequence import Embedding, LastSteps, Padded

KEY = jax.random.key(0)
WIDTH, STATE = 3, 4


def inputs(batch=2, length=9, width=WIDTH, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, width)), jnp.float32)


def as_double(layer):
    """The layer's arrays by name, in float64."""
    return {name: np.asarray(value, np.float64) for name, value in vars(layer).items() if eqx.is_array(value)}


# Initialisation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.5, 0.9), (0.9, 0.999), (0.999, 0.9999), (0.0, 0.3)])
def test_eigenvalues_are_uniform_in_area_on_the_ring(r_min, r_max):
    nu, theta = (np.asarray(x, np.float64) for x in ring(KEY, 100_000, r_min=r_min, r_max=r_max, max_phase=1.5))
    square = np.exp(-2 * nu)
    assert np.all(np.isfinite(np.log(nu)))
    assert np.all(np.isfinite(np.log(theta)))
    # float32 resolves nu to a few parts in 1e7, so 1 - square is known relatively, square absolutely.
    uniform = ((1 - square) - (1 - r_max**2)) / (r_max**2 - r_min**2)
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(theta / 1.5, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(uniform, theta)[0, 1]) < 0.02


@pytest.mark.parametrize("nu", [1e-7, 1e-5, 1e-4, 0.1, 5.0])
def test_gamma_keeps_its_digits_next_to_the_unit_circle(nu):
    nu = np.float32(nu)
    exact = 0.5 * math.log(-math.expm1(-2 * float(nu)))
    np.testing.assert_allclose(gamma_log_of(jnp.asarray(nu)), exact, rtol=3e-7, atol=3e-8)


def test_radii_and_phase_may_be_traced():
    @functools.partial(jax.jit)
    def moduli(r_min, r_max, phase):
        layer = LRU(2, 50, key=KEY, r_min=r_min, r_max=r_max, max_phase=phase)
        return jnp.abs(layer.lam), jnp.angle(layer.lam)

    modulus, phase = jax.vmap(moduli)(jnp.array([0.5, 0.9]), jnp.array([0.6, 0.999]), jnp.array([0.1, 3.0]))
    for lane, (low, high, widest) in enumerate([(0.5, 0.6, 0.1), (0.9, 0.999, 3.0)]):
        assert low - 1e-6 <= modulus[lane].min() <= modulus[lane].max() <= high + 1e-6
        assert 0 < phase[lane].min() <= phase[lane].max() <= widest
    alone = LRU(2, 50, key=KEY, r_min=0.9, r_max=0.999, max_phase=3.0).lam
    np.testing.assert_allclose(modulus[1], jnp.abs(alone), rtol=1e-6)


@pytest.mark.parametrize(
    "radii", [{"r_min": -0.1}, {"r_max": 1.1}, {"r_min": 0.9, "r_max": 0.5}, {"r_min": 1.0}, {"r_max": 0.0}]
)
def test_what_is_no_ring_is_refused(radii):
    with pytest.raises(ValueError, match="r_m"):
        LRU(2, 2, key=KEY, **radii)
    with pytest.raises(ValueError, match="max_phase"):
        LRU(2, 2, key=KEY, max_phase=0.0)


@pytest.mark.parametrize("parameterization", list(Parameterization))
def test_parameterisations_start_at_the_same_eigenvalues(parameterization):
    stable = LRU(2, 100, key=KEY, r_min=0.3, r_max=0.99)
    other = LRU(2, 100, key=KEY, r_min=0.3, r_max=0.99, parameterization=parameterization)
    np.testing.assert_allclose(other.lam, stable.lam, rtol=2e-6)


def test_only_the_stable_one_stays_inside_the_unit_disk():
    for parameterization, inside in ((Parameterization.STABLE, True), (Parameterization.EXPONENTIAL, False)):
        layer = LRU(2, 20, key=KEY, r_min=0.9, r_max=0.999, parameterization=parameterization)
        pushed = jax.tree.map(lambda x: x - 10.0, layer.eigenvalues)
        modulus = jnp.abs(eqx.tree_at(lambda n: n.eigenvalues, layer, pushed).lam)
        assert bool(jnp.all(modulus <= 1)) is inside


@pytest.mark.parametrize("scale", list(InitScale))
def test_scales_of_the_projections(scale):
    layer = LRU(200, 300, key=KEY, init_scale=scale)
    b, c = (1 / 400, 1 / 300) if scale is InitScale.PUBLISHED_CODE else (2 / 500, 1 / 500)
    for array, variance in ((layer.B_re, b), (layer.B_im, b), (layer.C_re, c), (layer.C_im, c), (layer.D, 1)):
        np.testing.assert_allclose(np.var(array), variance, rtol=0.04 if array.size > 1000 else 0.3)
    assert not np.allclose(layer.B_re, layer.B_im)


def test_gamma_gives_states_the_energy_of_their_inputs():
    layer = LRU(1, 300, key=KEY, r_min=0.5, r_max=0.95, max_phase=math.pi)
    u = inputs(32, 400, 1)
    h = layer.states(u)[:, 200:]
    driving = jnp.sum(jnp.square(layer.B_re) + jnp.square(layer.B_im))
    np.testing.assert_allclose(jnp.mean(jnp.sum(jnp.abs(h) ** 2, -1)) / driving, 1, rtol=0.05)
    without = LRU(1, 300, key=KEY, r_min=0.5, r_max=0.95, max_phase=math.pi, gamma=False)
    gain = jnp.mean(jnp.sum(jnp.abs(without.states(u)[:, 200:]) ** 2, -1)) / driving
    formula = math.log((1 - 0.25) / (1 - 0.95**2)) / (0.95**2 - 0.25)
    np.testing.assert_allclose(gain, formula, rtol=0.15)


def test_gradients_do_not_overflow_at_initialisation():
    for r_min, r_max in ((0.0, 1.0), (0.999, 0.9999)):
        layer = LRU(4, 64, key=KEY, r_min=r_min, r_max=r_max)

        def loss(layer):
            return jnp.mean(jnp.square(layer(inputs(1, 4096, 4))[0]))

        gradients = jax.jit(jax.grad(loss))(layer)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((layer, gradients)))


@pytest.mark.parametrize(
    "mixer",
    [*(LadderMixer(rung, 64) for rung in Rung), lambda w, key: S4D(w, 64, key=key), lambda w, key: S5(w, 64, key=key)],
)
def test_nothing_explodes_at_initialisation(mixer):
    """4,096 steps of white noise. Where nothing decays a state is a random walk: sqrt(4096) = 64 times its input."""
    x = inputs(1, 4096, 8)

    @jax.jit
    @jax.vmap
    def run(key):
        layer = mixer(8, key)
        y, state = layer.unroll(x, layer.initial_state(1))
        return jnp.sqrt(jnp.mean(jnp.square(y))), jnp.sqrt(jnp.mean(jnp.square(jnp.abs(state))))

    for sizes in run(jax.random.split(KEY, 3)):
        assert np.all(sizes > 1e-3)
        assert np.all(sizes < 200)


@pytest.mark.parametrize("state", [1, 2, 16, 64, 128])
def test_the_dense_matrix_is_scaled_to_the_unit_disk_where_it_leaves_it(state):
    keys = jax.random.split(KEY, 6)
    drawn = jax.vmap(lambda key: DenseRecurrence(2, state, key=key, max_radius=None).A)(keys)
    scaled = jax.jit(jax.vmap(lambda key: DenseRecurrence(2, state, key=key).A))(keys)
    before, after = (np.abs(np.linalg.eigvals(np.asarray(a, np.float64))).max(axis=-1) for a in (drawn, scaled))
    assert np.any(before > 1)
    np.testing.assert_allclose(after, np.minimum(before, 1), rtol=1e-5)
    np.testing.assert_allclose(scaled, drawn / np.maximum(before, 1)[:, None, None], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="max_radius"):
        DenseRecurrence(2, state, key=KEY, max_radius=0.0)


# The layer ------------------------------------------------------------------------------------------------


def loop(layer, u, *, reverse=False):
    """States by the definition, complex128."""
    lam, arrays = np.asarray(layer.lam, complex), as_double(layer)
    gamma = np.exp(arrays["gamma_log"]) if "gamma_log" in arrays else 1.0
    driven = gamma * (u @ (arrays["B_re"] + 1j * arrays["B_im"]))
    h, states = np.zeros((u.shape[0], lam.size), complex), np.zeros_like(driven)
    for k in range(u.shape[1])[:: -1 if reverse else 1]:
        h = lam * h + driven[:, k]
        states[:, k] = h
    return states


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("gamma", [False, True])
def test_the_layer_is_its_formula(bidirectional, gamma):
    layer, x = LRU(WIDTH, STATE, key=KEY, gamma=gamma, bidirectional=bidirectional), inputs()
    arrays, u = as_double(layer), np.asarray(x, np.float64)
    y = arrays["D"] * u
    for direction in range(1 + bidirectional):
        c = arrays["C_re"][direction] + 1j * arrays["C_im"][direction]
        y = y + (loop(layer, u, reverse=direction == 1) @ c).real
    np.testing.assert_allclose(layer(x)[0], y, atol=3e-6)


def with_readout(layer, change):
    """`layer` with its C, or the parts of it, changed."""
    return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if path[-1].name[0] == "C" else x, layer)


@pytest.mark.parametrize("kind", [LRU, DenseRecurrence, S4D, S5])
def test_bidirectional_on_the_reversed_sequence_swaps_its_halves(kind):
    layer, x = kind(WIDTH, STATE, key=KEY, bidirectional=True), inputs()
    swapped, forwards, backwards = (
        with_readout(layer, change) for change in (lambda c: c[::-1], lambda c: c[:1], lambda c: c[1:])
    )
    np.testing.assert_allclose(swapped(x[:, ::-1])[0][:, ::-1], layer(x)[0], atol=2e-6)
    assert not np.allclose(layer(x[:, ::-1])[0][:, ::-1], layer(x)[0], atol=1e-2)
    halves = forwards(x)[0] + backwards(x[:, ::-1])[0][:, ::-1] - layer.D * x
    np.testing.assert_allclose(halves, layer(x)[0], atol=2e-6)
    later = x.at[:, 5].add(10.0)
    changed = np.abs(layer(later)[0] - layer(x)[0]).max(axis=(0, 2)) > 1e-4
    assert np.all(changed)
    assert not np.any(np.abs(forwards(later)[0] - forwards(x)[0])[:, :5] > 1e-4)


def test_conjugate_pairs_are_a_real_dense_linear_network():
    layer, x = LRU(WIDTH, STATE, key=KEY, gamma=False), inputs()
    lam, arrays = np.asarray(layer.lam, complex), as_double(layer)
    dense = DenseRecurrence(WIDTH, 2 * STATE, identity, key=KEY)
    a = np.kron(np.diag(lam.real), np.eye(2)) + np.kron(np.diag(lam.imag), [[0, 1], [-1, 0]])  # h A, h a row
    b, c = np.zeros((WIDTH, 2 * STATE)), np.zeros((2 * STATE, WIDTH))
    b[:, ::2], b[:, 1::2] = arrays["B_re"], arrays["B_im"]
    c[::2], c[1::2] = arrays["C_re"][0], -arrays["C_im"][0]
    # In another basis, so that the dense matrix is dense.
    basis = np.random.default_rng(0).normal(size=(2 * STATE, 2 * STATE))
    values = (np.linalg.inv(basis) @ a @ basis, b @ basis, (np.linalg.inv(basis) @ c)[None], arrays["D"])
    dense = eqx.tree_at(
        lambda n: (n.A, n.B, n.C, n.D), dense, tuple(jnp.asarray(value, jnp.float32) for value in values)
    )
    np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(values[0]))[::1].real.sum(), 2 * lam.real.sum())
    np.testing.assert_allclose(dense(x)[0], layer(x)[0], atol=2e-4)


@pytest.mark.parametrize("activation", [tanh, relu, identity])
def test_the_dense_layer_is_its_formula(activation):
    layer, x = DenseRecurrence(WIDTH, STATE, activation, key=KEY), inputs()
    arrays, h = as_double(layer), np.zeros((2, STATE))
    function = {tanh: np.tanh, relu: lambda z: np.maximum(z, 0), identity: lambda z: z}[activation]
    for k in range(x.shape[1]):
        h = function(h @ arrays["A"] + np.asarray(x[:, k], np.float64) @ arrays["B"])
        y = h @ arrays["C"][0] + arrays["D"] * np.asarray(x[:, k], np.float64)
        np.testing.assert_allclose(layer(x)[0][:, k], y, atol=5e-6)


def test_dense_eigenvalues_fill_the_unit_disk():
    eigenvalues = np.linalg.eigvals(np.asarray(DenseRecurrence(1, 400, key=KEY, max_radius=None).A, np.float64))
    assert scipy.stats.kstest(np.minimum(np.abs(eigenvalues) ** 2, 1), "uniform").statistic < 0.06


# Whole, in stretches, step by step -------------------------------------------------------------------------

LAYERS = {
    "lru": functools.partial(LRU, WIDTH, STATE),
    "dense": functools.partial(DenseRecurrence, WIDTH, STATE),
    "s4d": functools.partial(S4D, WIDTH, STATE),
    "s5": functools.partial(S5, WIDTH, STATE),
    "block": functools.partial(ResidualBlock, WIDTH, LadderMixer(Rung.LRU, STATE)),
    "stack": lambda key: RecurrentStack(
        ResidualBlock(WIDTH, LadderMixer(Rung.LRU, STATE), key=key),
        ResidualBlock(WIDTH, LadderMixer(Rung.DENSE_TANH, STATE), key=jax.random.key(1)),
    ),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_steps_and_stretches_equal_the_whole(name):
    layer, x = LAYERS[name](key=KEY), inputs()
    reset = np.zeros((2, 9), bool)
    reset[0, 5] = reset[1, 2] = True

    @eqx.filter_jit
    def run(layer, x, reset):
        whole, _ = layer(x)
        stretches, state = [], layer.initial_state(2)
        for piece in (slice(0, 4), slice(4, 9)):
            y, state = layer.unroll(x[:, piece], state)
            stretches.append(y)
        stepped, at = [], layer.initial_state(2)
        cut, _ = layer.unroll(x, layer.initial_state(2), reset=reset)
        for k in range(9):
            y, at = layer.step(x[:, k], at, reset=reset[:, k])
            stepped.append(y)
        tail, _ = layer(x[:1, 5:])
        return whole, jnp.concatenate(stretches, 1), cut, jnp.stack(stepped, 1), tail

    whole, stretches, cut, stepped, tail = run(layer, x, jnp.asarray(reset))
    np.testing.assert_allclose(stretches, whole, atol=1e-5)
    np.testing.assert_allclose(stepped, cut, atol=1e-5)
    np.testing.assert_allclose(cut[0, :5], whole[0, :5], atol=1e-5)
    np.testing.assert_allclose(cut[0, 5:], tail[0], atol=1e-5)
    assert not np.allclose(cut[0, 5:], whole[0, 5:], atol=1e-3)


@pytest.mark.parametrize("kind", [LRU, DenseRecurrence, S4D, S5])
def test_what_reads_the_future_cannot_step(kind):
    layer = kind(2, 2, key=KEY, bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        layer.step(jnp.ones((1, 2)), layer.initial_state(1))
    with pytest.raises(ValueError, match="bidirectional"):
        layer.unroll(jnp.ones((1, 3, 2)), layer.initial_state(1))


@pytest.mark.parametrize("kind", [LRU, DenseRecurrence, S4D, S5])
def test_a_step_of_other_shapes_is_refused(kind):
    layer = kind(WIDTH, STATE, key=KEY)
    x, state = jnp.ones((2, WIDTH)), layer.initial_state(2)
    layer.step(x, state, reset=jnp.zeros(2, bool))
    wrong = [
        (x[0], state, None),
        (x[:, :2], state, None),
        (x[:, None], state, None),
        (x, layer.initial_state(1), None),
        (x, state[..., :1], None),
        (x, state, jnp.zeros((2, 1), bool)),
        (x, state, jnp.zeros(1, bool)),
    ]
    for inputs, before, reset in wrong:
        with pytest.raises(ValueError, match=rf"a step of {kind.__name__} takes x \(batch, 3\), a state \(batch, "):
            layer.step(inputs, before, reset=reset)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [LRU, DenseRecurrence, S4D, S5])
def test_padding_changes_no_real_step(kind, bidirectional):
    layer = ResidualBlock(WIDTH, lambda width, key: kind(width, STATE, key=key, bidirectional=bidirectional), key=KEY)
    x, mask = inputs(), jnp.arange(9) < jnp.array([[9], [6]])
    y, _ = layer(Padded(jnp.where(mask[..., None], x, 0), mask))
    np.testing.assert_allclose(y.values[0], layer(x[:1])[0][0], atol=1e-5)
    np.testing.assert_allclose(y.values[1, :6], layer(x[1:, :6])[0][0], atol=1e-5)
    assert not np.any(y.values[1, 6:])


# The ladder, blocks, networks -------------------------------------------------------------------------------


PARAMETERS = {
    Rung.DIAGONAL: ("Cartesian", False),
    Rung.EXPONENTIAL: ("Exponential", False),
    Rung.STABLE: ("StableExponential", False),
    Rung.RING: ("StableExponential", False),
    Rung.LRU: ("StableExponential", True),
    Rung.SMALL_PHASE: ("StableExponential", True),
}
"""Parameterisation and gamma of the diagonal rungs."""


@pytest.mark.parametrize("rung", list(Rung))
def test_rungs_are_what_they_say(rung):
    disk = LadderMixer(rung, 200)(2, KEY)
    chosen = LadderMixer(rung, 200, r_min=0.9, r_max=0.99, max_phase=0.2)(2, KEY)
    assert not disk.bidirectional
    assert LadderMixer(rung, 4, bidirectional=True)(2, KEY).bidirectional
    dense = {Rung.DENSE_TANH: tanh, Rung.DENSE_RELU: relu, Rung.DENSE_LINEAR: identity}
    if rung in dense:
        assert (type(disk), disk.activation) == (DenseRecurrence, dense[rung])
        assert eqx.tree_equal(chosen, disk)
        return
    assert (type(disk.eigenvalues).__name__, disk.gamma_log is not None) == PARAMETERS[rung]
    widest = math.pi / 10 if rung is Rung.SMALL_PHASE else 2 * math.pi
    for layer, low, high, phase in ((disk, 0.0, 1.0, widest), (chosen, 0.9, 0.99, 0.2)):
        square, angle = np.abs(layer.lam) ** 2, np.angle(layer.lam) % (2 * math.pi)
        assert scipy.stats.kstest((square - low**2) / (high**2 - low**2), "uniform").pvalue > 1e-3
        assert scipy.stats.kstest(angle / phase, "uniform").pvalue > 1e-3


def slow_names(tree):
    """Names of the innermost fields that `slow_parameters` marks, and of the others."""
    marks = jax.tree_util.tree_leaves_with_path(slow_parameters(tree))
    return tuple({path[-1].name for path, marked in marks if marked is wanted} for wanted in (True, False))


SYSTEM = {
    "lru": (functools.partial(LRU, WIDTH, STATE), {"nu_log", "theta_log", "gamma_log", "B_re", "B_im"}),
    "exponential": (
        functools.partial(LRU, WIDTH, STATE, parameterization="exponential", gamma=False),
        {"nu", "theta", "B_re", "B_im"},
    ),
    "cartesian": (
        functools.partial(LRU, WIDTH, STATE, parameterization="cartesian", gamma=False),
        {"lam_re", "lam_im", "B_re", "B_im"},
    ),
    "dense": (functools.partial(DenseRecurrence, WIDTH, STATE), {"A", "B"}),
    "s4d": (functools.partial(S4D, WIDTH, STATE), {"A_re_log", "A_im", "delta_log"}),
    "s4d untied": (functools.partial(S4D, WIDTH, STATE, tied=False), {"A_re_log", "A_im", "delta_log", "delta_B_log"}),
    "s5": (functools.partial(S5, WIDTH, STATE), {"A_re", "A_im", "B_re", "B_im", "delta_log"}),
}


@pytest.mark.parametrize("name", list(SYSTEM))
def test_slow_are_the_fields_of_the_system(name):
    """Everything but C, D, and what is around the recurrent layer, at any depth and among the trained arrays alone."""
    make, expected = SYSTEM[name]
    layer = make(key=KEY)
    slow, others = slow_names(layer)
    assert slow == expected
    assert {other[0] for other in others} == {"C", "D"}
    block = ResidualBlock(WIDTH, lambda width, key: make(key=key), key=KEY)
    for tree in (block, RecurrentStack(block), split_trainable({"stage": block})[0]):
        slow, others = slow_names(tree)
        assert slow == expected
        assert {"weight", "bias"} < others


class LowRank(Layer):
    """x W + x A B, as in low-rank adaptation: fields with the names of another layer's system."""

    A: jax.Array
    B: jax.Array
    B_re: jax.Array

    def __call__(self, x, *, train=False, key=None):
        return x @ self.A @ (self.B + self.B_re), self


def test_fields_of_the_same_name_in_other_layers_are_not_slow():
    other = LowRank(jnp.ones((3, 1)), jnp.ones((1, 3)), jnp.ones((1, 3)))
    tree = Chain(other, DenseRecurrence(WIDTH, STATE, key=KEY), other)
    marks = slow_parameters(tree)
    assert jax.tree.structure(marks) == jax.tree.structure(tree)
    assert [jax.tree.leaves(layer) for layer in marks.layers] == [[False] * 3, [True, True, False, False], [False] * 3]


@pytest.mark.parametrize("name", list(SYSTEM))
def test_weight_decay_leaves_the_system_bitwise_as_it_is(name):
    params = eqx.filter(SYSTEM[name][0](key=KEY), eqx.is_inexact_array)
    gradients = jax.tree.map(lambda x: 0.1 + jnp.sin(x), params)

    def stepped(decay):
        rule = adamw_groups(1e-2, weight_decay=decay, slow=slow_parameters, factor=0.25)
        return optax.apply_updates(params, rule.update(gradients, rule.init(params), params)[0])

    leaves = zip(jax.tree_util.tree_leaves_with_path(stepped(0.0)), jax.tree.leaves(stepped(0.5)), strict=True)
    for (path, plain), decayed in leaves:
        assert np.array_equal(plain, decayed) is (path[-1].name in SYSTEM[name][1]), path


@pytest.mark.parametrize("gate", list(Gate))
def test_gated_linear_unit(gate):
    layer, z = GLU(WIDTH, gate, key=KEY), np.asarray(inputs(), np.float64)
    y = z @ np.asarray(layer.dense.weight, np.float64).T + np.asarray(layer.dense.bias, np.float64)
    value, gates = (y[..., :WIDTH], y[..., WIDTH:]) if gate is Gate.FULL else (z, y)
    np.testing.assert_allclose(layer(inputs())[0], value / (1 + np.exp(-gates)), atol=1e-6)


def test_dropout_of_sequences_drops_features_for_all_steps():
    x = jnp.ones((200, 5, 20))
    y, _ = SequenceDropout(0.25)(x, train=True, key=KEY)
    assert np.all(y == y[:, :1])
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(np.mean(y), 1, atol=0.03)
    assert SequenceDropout(0.25)(x)[0] is x
    with pytest.raises(ValueError, match="needs a key"):
        SequenceDropout(0.25)(x, train=True)
    with pytest.raises(ValueError, match="rate"):
        SequenceDropout(1.0)


def test_a_block_is_its_formula_and_moves_its_statistics():
    block, x = ResidualBlock(WIDTH, LadderMixer(Rung.LRU, STATE), key=KEY), inputs()
    mean, deviation = np.mean(x, (0, 1)), np.sqrt(np.var(x, (0, 1)) + 1e-5)
    z = jax.nn.gelu(block.mixer(jnp.asarray((x - mean) / deviation))[0], approximate=False)
    expected = x + block.glu(z)[0]
    y, moved = block(x, train=True)
    np.testing.assert_allclose(y, expected, atol=2e-3)  # whichever form of GELU
    np.testing.assert_allclose(moved.norm.mean.value, 0.1 * mean, rtol=1e-4, atol=1e-6)
    assert eqx.tree_equal(moved.mixer, block.mixer)


def two_blocks(r_min=0.5, r_max=0.99):
    mixer = LadderMixer(Rung.LRU, 8, r_min=r_min, r_max=r_max)
    return sequence_network(mixer, encoder=1, width=8, depth=2, head=2, dropout=0.1)


def test_makers_compare_by_value():
    assert two_blocks() == two_blocks()
    assert hash(two_blocks()) == hash(two_blocks())
    assert two_blocks() != two_blocks(r_min=0.4)
    assert two_blocks()(KEY).names == ("encoder", "block1", "block2", "head")


def test_a_network_learns_what_only_memory_can_tell():
    """Was the first of 20 steps high or low? Sequences are new in every update and in the evaluation.

    The mean over time knows no order. A network without memory sees 20 steps of which k are high, so its loss is at
    least the mean of the entropy of k / 20, 0.667; with memory it is near 0.
    """
    optimizer = optax.adam(1e-2)

    def draw(key, number):
        x = jax.random.normal(key, (number, 20, 1))
        return x, (x[:, 0, 0] > 0).astype(jnp.int32)

    @eqx.filter_jit
    def update(network, state, key):
        x, labels = draw(jax.random.fold_in(key, 0), 32)

        def loss(network):
            done = network(x, train=True, key=jax.random.fold_in(key, 1))
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(done.output, labels)), done.network

        (_, network), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(network)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(network, updates), state

    def learned(maker):
        network = maker(KEY)
        state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))
        for step in range(800):
            network, state = update(network, state, jax.random.fold_in(KEY, step))
        x, labels = draw(jax.random.key(1), 512)
        return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(x).output, labels)))

    assert learned(two_blocks()) < 0.3
    assert learned(two_blocks(r_min=0.0, r_max=0.01)) > 0.6


def test_a_policy_acts_step_by_step_and_learns_from_stretches():
    """REINFORCE: the first of an episode's 4 observations says which of 2 actions is paid at its end.

    Episodes begin at any step of a stretch and go on in the next one. Without memory half of the episodes are paid.
    """
    episode, batch, length = 4, 32, 12
    offset = jnp.arange(batch) % episode
    parts = (
        Dense(1, 8, key=KEY),
        RecurrentStack(ResidualBlock(8, LadderMixer(Rung.LRU, 8, r_min=0.8, r_max=0.99), key=KEY)),
        Dense(8, 2, key=KEY),
    )
    optimizer = optax.adam(1e-2)

    def act(policy, state, cue, key):
        encoder, memory, head = policy

        def step(carried, time):
            (state, cue), draw = carried, jax.random.fold_in(key, time)
            first, last = (time + offset) % episode == 0, (time + offset) % episode == episode - 1
            cue = jnp.where(first, jax.random.bernoulli(jax.random.fold_in(draw, 0), 0.5, (batch,)), cue)
            seen = jnp.where(first, 2.0 * cue - 1, 0.0)[:, None]
            z, state = memory.step(encoder(seen)[0], state, reset=first)
            logits = head(z)[0]
            action = jax.random.categorical(jax.random.fold_in(draw, 1), logits)
            return (state, cue), (seen, first, action, last, (action == cue) & last, logits)

        carried, steps = jax.lax.scan(step, (state, cue), jnp.arange(length))
        return carried, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)

    @eqx.filter_jit
    def update(policy, state, cue, optimizer_state, key):
        (after, cue), (seen, first, action, last, paid, acted) = act(policy, state, cue, key)

        def loss(policy):
            encoder, memory, head = policy
            z, end = memory.unroll(encoder(seen)[0], state, reset=first)
            logits = head(z)[0]
            chosen = -optax.softmax_cross_entropy_with_integer_labels(logits, action)
            return -jnp.mean(jnp.where(last, (paid - 0.5) * chosen, 0)), (logits, end)

        (_, (logits, end)), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(policy)
        pairs = zip(jax.tree.leaves((logits, end)), jax.tree.leaves((acted, after)), strict=True)
        apart = jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in pairs]))
        changes, optimizer_state = optimizer.update(gradients, optimizer_state)
        return eqx.apply_updates(policy, changes), after, cue, optimizer_state, jnp.sum(paid) / jnp.sum(last), apart

    policy, state, cue = parts, parts[1].initial_state(batch), jnp.zeros(batch, bool)
    optimizer_state, rewards = optimizer.init(eqx.filter(policy, eqx.is_inexact_array)), []
    for number in range(150):
        policy, state, cue, optimizer_state, paid, apart = update(
            policy, state, cue, optimizer_state, jax.random.fold_in(KEY, number)
        )
        assert apart < 1e-4
        rewards.append(float(paid))
    assert np.mean(rewards[:5]) < 0.7
    assert np.mean(rewards[-20:]) > 0.9


def test_tokens_and_several_answers():
    maker = sequence_network(
        LadderMixer(Rung.DIAGONAL, 4),
        encoder=functools.partial(_embedding, 5),
        width=4,
        depth=1,
        head=3,
        gate="half",
    )
    assert maker(KEY)(jnp.array([[1, 2, 4, 0], [3, 0, 0, 0]])).output.shape == (2, 3)
    several = sequence_network(
        LadderMixer(Rung.DIAGONAL, 4),
        encoder=1,
        width=4,
        depth=1,
        head=lambda key: Chain(LastSteps(5), Dense(4, 3, key=key)),
    )
    assert several(KEY)(inputs(2, 9, 1)).output.shape == (2, 5, 3)
    without = sequence_network(None, encoder=1, width=4, depth=0, head=3)(KEY)
    assert without.names == ("encoder", "head")
    assert np.array_equal(without.stage("encoder").layer.weight, several(KEY).stage("encoder").layer.weight)
    mixed = without(inputs(2, 9, 1)[:, np.random.default_rng(0).permutation(9)]).output
    np.testing.assert_allclose(mixed, without(inputs(2, 9, 1)).output, atol=1e-6)


def _embedding(tokens, key):
    return Embedding(tokens, 4, key=key)


def test_what_makes_no_network_is_refused():
    with pytest.raises(TypeError, match="mixer must make a layer"):
        sequence_network(LRU(2, 2, key=KEY), encoder=1, width=2, depth=1, head=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth"):
        sequence_network(LadderMixer(Rung.LRU, 2), encoder=1, width=2, depth=0, head=1)
    with pytest.raises(ValueError, match="depth must be 0"):
        sequence_network(None, encoder=1, width=2, depth=1, head=1)
    with pytest.raises(ValueError, match="head"):
        sequence_network(LadderMixer(Rung.LRU, 2), encoder=1, width=2, depth=1, head=0)
    block = ResidualBlock(2, lambda width, key: GLU(width, key=key), key=KEY)
    with pytest.raises(TypeError, match="GLU carries no state"):
        block.initial_state(1)
    with pytest.raises(ValueError, match=r"sequences \(batch, length, 2\)"):
        LRU(2, 2, key=KEY)(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="width=2"):
        LRU(2, 2, key=KEY)(jnp.ones((3, 4, 5)))


def test_names_serve_where_the_choices_do():
    assert LadderMixer("lru", 4) == LadderMixer(Rung.LRU, 4)
    for wrong in (lambda: LadderMixer("gru", 4), lambda: LRU(3, 4, key=KEY, parameterization="polar")):
        with pytest.raises(ValueError, match="is not a valid"):
            wrong()
    named = LRU(3, 4, key=KEY, parameterization="cartesian", init_scale="paper_text")
    chosen = LRU(3, 4, key=KEY, parameterization=Parameterization.CARTESIAN, init_scale=InitScale.PAPER_TEXT)
    assert eqx.tree_equal(named, chosen)
