import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners.learner import Batch, View, init_stages
from neoteny.networks import BatchNorm, Chain, Dense, Network, mlp
from neoteny.networks.dense import Flatten
from neoteny.probes.plasticity import Plasticity, plasticity, random_sines, regret, view_plasticity

KEY = jax.random.key(11)
MLP = mlp(3, [8], 2)


def on_grid(tree, step):
    return jax.tree.map(lambda a: jnp.round(a / step) * step if eqx.is_array(a) else a, tree)


def MAKER(key):
    """An MLP whose outputs on INPUTS are exact in float32: every compilation gives the same sin(1e5 f)."""
    return on_grid(MLP(key), 1 / 16)


INPUTS = on_grid(jnp.asarray(np.random.default_rng(0).normal(size=(24, 3)), jnp.float32), 1 / 8)


@eqx.filter_jit
def _descend(network, rate, key, maker):
    return plasticity(network, maker, INPUTS, optax.sgd(rate), key=key, targets=3, steps=20)


def descend(network, rate=0.1, key=KEY, maker=MAKER):
    """The probe with plain gradient descent; the rate is traced, so one program serves most tests."""
    return _descend(network, jnp.float32(rate), key, maker)


ADAM = optax.adam(1e-2)


@eqx.filter_jit
def carry_on(network, carried, reference):
    """The probe with Adam from a given state."""
    return plasticity(network, MAKER, INPUTS, ADAM, key=KEY, targets=3, steps=20, carried=carried, reference=reference)


def zero_maker(key):
    return jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, MAKER(key))


def with_bias(network, shift):
    return eqx.tree_at(lambda n: n.stages[-1].bias, network, network.stages[-1].bias + jnp.asarray(shift))


def squared(network, batch, key):
    return jnp.mean(jnp.square(network(batch.inputs).output - batch.targets))


def assert_bitwise(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(b).view(np.uint8)),
        eqx.filter(one, eqx.is_array),
        eqx.filter(other, eqx.is_array),
    )


def reference(network, sines, steps, rate):
    """Gradient descent on the probe's targets in float64 NumPy, for one hidden layer: (initial, final)."""
    x = np.float64(INPUTS)
    initials, finals = [], []
    for sine in np.float64(sines):
        (_, dense, _), head = network.stages[0].layers, network.stages[1]
        w, b, v, c = (np.float64(a).T for a in (dense.weight, dense.bias, head.weight, head.bias))

        def predict(w, b, v, c):
            hidden = np.maximum(x @ w + b, 0)
            return hidden, hidden @ v + c

        goal = predict(w, b, v, c)[1].mean(axis=0) + sine
        initials.append(np.mean((predict(w, b, v, c)[1] - goal) ** 2))
        for _ in range(steps):
            hidden, output = predict(w, b, v, c)
            delta = 2 * (output - goal) / goal.size
            back = (delta @ v.T) * (hidden > 0)
            v, c = v - rate * hidden.T @ delta, c - rate * delta.sum(0)
            w, b = w - rate * x.T @ back, b - rate * back.sum(0)
        finals.append(np.mean((predict(w, b, v, c)[1] - goal) ** 2))
    return np.mean(initials), np.mean(finals)


def sines_of(key=KEY, targets=3, maker=MAKER):
    return random_sines(maker, INPUTS, key=jax.random.fold_in(key, zlib.crc32(b"targets")), targets=targets)


def test_probe_losses_equal_a_numpy_reference():
    network = MAKER(jax.random.key(1))
    measured = descend(network)
    initial, final = reference(network, sines_of(), steps=20, rate=0.1)
    np.testing.assert_allclose(measured.initial, initial, rtol=1e-4)
    np.testing.assert_allclose(measured.final, final, rtol=1e-4)
    assert final < 0.9 * initial
    np.testing.assert_allclose(measured.baseline, np.var(np.float64(sines_of()), axis=1).mean(), rtol=1e-5)
    assert float(measured.diverged) == 0


def test_targets_are_sines_of_fresh_networks():
    sines = np.asarray(random_sines(MLP, INPUTS, key=KEY, targets=20))
    assert sines.shape == (20, 24, 2)
    assert np.abs(sines).max() <= 1
    assert 0.4 < sines.var() < 0.6  # 1/2 for an argument that goes around many times
    assert abs(sines.mean()) < 0.1
    correlations = np.corrcoef(sines.reshape(20, -1))
    assert np.abs(correlations - np.eye(20)).max() < 0.7  # every target has its own network


def test_sines_against_float64():
    outputs = jax.vmap(lambda n: MAKER(jax.random.fold_in(KEY, n))(INPUTS).output)(jnp.arange(4))
    exact = np.sin(1e5 * np.float64(outputs))
    # The outputs are exact, so there is one rounding of the argument: half a unit in its last place.
    bound = 1e5 * np.abs(np.float64(outputs)) * 2.0**-24 + 1e-6
    assert np.all(np.abs(random_sines(MAKER, INPUTS, key=KEY, targets=4) - exact) <= bound)


def test_the_network_and_its_optimiser_state_are_not_touched():
    network = MAKER(jax.random.key(1))
    carried = init_stages(ADAM, network)
    before = jax.tree.map(lambda a: np.array(a) if eqx.is_array(a) else a, (network, carried))
    assert carry_on(network, carried, jnp.float32(0)).final > 0
    descend(network)
    assert_bitwise((network, carried), before)


def test_degenerate_zero_network_has_nothing_to_learn():
    measured = descend(zero_maker(KEY), maker=zero_maker)
    assert [float(value) for value in measured] == [0, 0, 0, 0, 0]


def test_rise_is_zero_at_the_reference_and_a_difference_later():
    network = MAKER(jax.random.key(1))
    assert float(descend(network).rise) == 0
    start = carry_on(network, init_stages(ADAM, network), jnp.float32(0))
    assert float(start.rise) == float(start.final)
    assert float(carry_on(network, init_stages(ADAM, network), start.final).rise) == 0
    aged = MAKER(jax.random.key(2))
    later = carry_on(aged, init_stages(ADAM, aged), start.final)
    np.testing.assert_allclose(later.rise, later.final - start.final, rtol=1e-5)
    assert float(later.rise) != 0


def test_a_constant_added_to_the_output_changes_nothing():
    network = MAKER(jax.random.key(1))
    plain, shifted = descend(network), descend(with_bias(network, [3.0, -2.0]))
    np.testing.assert_allclose(shifted.initial, plain.initial, rtol=1e-5)
    np.testing.assert_allclose(shifted.final, plain.final, rtol=1e-4)


def test_without_learning_the_final_loss_is_the_initial_one():
    still = descend(MAKER(jax.random.key(1)), rate=0.0)
    np.testing.assert_allclose(still.final, still.initial, rtol=1e-6)


def test_same_key_same_functions_another_key_others():
    network = MAKER(jax.random.key(1))
    one, two, other = descend(network), descend(network), descend(network, key=jax.random.key(12))
    assert_bitwise(one, two)
    assert float(one.baseline) != float(other.baseline)
    assert float(one.final) != float(other.final)


def test_diverged_targets_count_as_their_variance_and_are_flagged():
    measured = descend(MAKER(jax.random.key(1)), rate=1e20)
    assert float(measured.diverged) == 1
    np.testing.assert_allclose(measured.final, measured.baseline, rtol=1e-6)
    broken = descend(with_bias(MAKER(jax.random.key(1)), jnp.nan))
    assert float(broken.diverged) == 1
    np.testing.assert_allclose([broken.final, broken.initial], broken.baseline, rtol=1e-6)


def test_carried_state_is_used_and_stages_without_one_stay_frozen():
    network = MAKER(jax.random.key(1))
    fresh = init_stages(ADAM, network)
    # A large second moment makes Adam's steps small.
    heavy = {
        name: (state[0]._replace(nu=jax.tree.map(lambda a: a + 1e6, state[0].nu)), *state[1:])
        for name, state in fresh.items()
    }
    quick, slow = (carry_on(network, state, jnp.float32(0)) for state in (fresh, heavy))
    assert slow.initial - slow.final < 0.2 * (quick.initial - quick.final)
    frozen = carry_on(network, {}, jnp.float32(0))
    np.testing.assert_allclose(frozen.final, frozen.initial, rtol=1e-6)


def test_minibatches_train_and_losses_are_of_all_inputs():
    network = MAKER(jax.random.key(1))
    small = eqx.filter_jit(
        lambda n: plasticity(n, MAKER, INPUTS, optax.sgd(0.1), key=KEY, targets=3, steps=20, batch_size=6)
    )(network)
    full = descend(network)
    np.testing.assert_allclose(small.initial, full.initial, rtol=1e-6)
    assert float(small.final) != float(full.final)
    assert small.final < small.initial


def normed_maker(key):
    hidden = Chain(Flatten(), Dense(3, 4, key=key), BatchNorm(4))
    return Network(hidden=hidden, head=Dense(4, 2, key=jax.random.fold_in(key, 1)))


def test_the_copy_gathers_statistics_as_in_training():
    network = normed_maker(jax.random.key(0))
    still = descend(network, rate=0.0, maker=normed_maker)
    # Nothing is trained, but the running moments move towards those of the inputs: the predictions change.
    assert abs(float(still.final - still.initial)) > 1e-4
    np.testing.assert_array_equal(network.stages[0].layers[2].mean.value, 0)


def test_decoded_predictions_are_what_is_compared():
    def decode(outputs):
        return outputs[:, :1]

    def loss(outputs, targets):
        return jnp.mean(jnp.square(outputs[:, :1] - targets))

    network = MAKER(jax.random.key(1))
    measured = eqx.filter_jit(
        lambda n: plasticity(n, MAKER, INPUTS, ADAM, key=KEY, targets=3, steps=20, decode=decode, loss=loss)
    )(network)
    sines = np.float64(sines_of())[:, :, :1]
    output = np.float64(network(INPUTS).output)[:, :1]
    exact = np.mean((output - output.mean(0) - sines) ** 2)
    np.testing.assert_allclose(measured.initial, exact, rtol=1e-4)
    assert measured.final < measured.initial


def test_regret_is_the_difference_of_finals_on_the_same_functions():
    network = MAKER(jax.random.key(1))
    fresh = MAKER(jax.random.fold_in(KEY, zlib.crc32(b"fresh")))
    difference = descend(network).final - descend(fresh).final
    value = eqx.filter_jit(lambda n: regret(n, MAKER, INPUTS, optax.sgd(0.1), key=KEY, targets=3, steps=20))(network)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(value, difference, atol=1e-6)
    # The fresh network is none of the targets' networks: it would know the answer.
    for index in range(3):
        omega = MAKER(jax.random.fold_in(jax.random.fold_in(KEY, zlib.crc32(b"targets")), index))
        assert not np.array_equal(omega.stages[1].weight, fresh.stages[1].weight)
    view = View(network, squared, optax.sgd(0.1), lambda n, x: n(x).stages, MAKER)
    beside = eqx.filter_jit(
        lambda v: view_plasticity(v, Batch(INPUTS, INPUTS[:, :2]), KEY, targets=3, steps=20, fresh=True)
    )(view)
    np.testing.assert_allclose(beside["regret"], value, atol=1e-6)
    np.testing.assert_allclose(beside["final"], descend(network).final, atol=1e-6)


def test_view_probe_equals_the_function_and_lanes_equal_runs_alone():
    def probe(network):
        view = View(network, squared, ADAM, lambda n, x: n(x).stages, MAKER)
        return view_plasticity(view, Batch(INPUTS, INPUTS[:, :2]), KEY, targets=3, steps=20)

    networks = [MAKER(jax.random.key(s)) for s in range(3)]
    networks[1] = with_bias(networks[1], jnp.nan)
    lanes = eqx.filter_jit(eqx.filter_vmap(probe))(
        jax.tree.map(lambda *a: jnp.stack(a) if eqx.is_array(a[0]) else a[0], *networks)
    )
    assert set(lanes) == {"initial", "final", "baseline", "diverged"}
    for lane, network in enumerate(networks):
        # The default optimiser state is a fresh one.
        alone = carry_on(network, init_stages(ADAM, network), jnp.float32(0))
        for place, values in lanes.items():
            np.testing.assert_allclose(values[lane], alone._asdict()[place], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(lanes["diverged"], [0, 1, 0])


def test_what_cannot_be_measured_is_said():
    network = MAKER(jax.random.key(1))
    with pytest.raises(ValueError, match="targets"):
        plasticity(network, MAKER, INPUTS, ADAM, key=KEY, targets=0)
    with pytest.raises(ValueError, match="steps"):
        plasticity(network, MAKER, INPUTS, ADAM, key=KEY, targets=1, steps=-1)
    with pytest.raises(ValueError, match="batch_size"):
        plasticity(network, MAKER, INPUTS, ADAM, key=KEY, targets=1, batch_size=0)
    with pytest.raises(ValueError, match="same outputs"):
        plasticity(network, mlp(3, [8], 5), INPUTS, ADAM, key=KEY, targets=1, steps=1)
    with pytest.raises(TypeError, match="maker"):
        plasticity(network, network, INPUTS, ADAM, key=KEY)


def test_result_has_the_fields_of_the_contract():
    assert Plasticity._fields[:3] == ("initial", "final", "rise")
