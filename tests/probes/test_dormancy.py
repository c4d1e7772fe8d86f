"""Dead, dormant and constant units: counted by hand, told apart, lane by lane."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.probes.dormancy import constant_fraction, dead_fraction, dormant_fraction

PROBES = (dead_fraction, dormant_fraction, constant_fraction)
seeds = st.integers(0, 2**32 - 1)


def relu_output(seed, *shape, dead=()):
    activations = np.maximum(np.random.default_rng(seed).standard_normal(shape), 0)
    activations[..., list(dead)] = 0
    return activations


class TestDead:
    def test_counted_by_hand(self):
        # Unit 0 never fires, 1 fires once, 2 is tiny, 3 is -0.0 throughout, 4 sums to 0 without being 0.
        activations = np.array([[0.0, 0.0, 1e-300, -0.0, 1.0], [0.0, 5.0, 0.0, -0.0, -1.0], [0.0, 0.0, 0.0, -0.0, 0.0]])
        assert dead_fraction(activations) == 2 / 5

    def test_a_channel_is_dead_at_every_position_or_not(self):
        activations = np.zeros((4, 3, 3, 2))
        activations[2, 1, 1, 0] = 1.0
        assert dead_fraction(activations) == 1 / 2
        assert dead_fraction(activations.reshape(4, 18)) == 17 / 18

    def test_more_samples_never_kill(self):
        activations = relu_output(0, 200, 30) * (np.random.default_rng(1).random((200, 30)) < 0.02)
        shares = [dead_fraction(activations[:n]) for n in (1, 5, 25, 200)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[-1]


class TestDormant:
    def test_counted_by_hand(self):
        # Means of |a|: 0, 0.01, 0.03, 2, 1.96; the layer's: 0.8; the scores: 0, 0.0125, 0.0375, 2.5, 2.45.
        mean = np.array([0.0, 0.01, 0.03, 2.0, 1.96])
        activations = np.stack([mean * 2, mean * 0, mean])
        assert dormant_fraction(activations) == 2 / 5
        assert dormant_fraction(activations, tau=0.04) == 3 / 5
        assert dormant_fraction(activations, tau=0.012) == 1 / 5
        assert dormant_fraction(activations, tau=0) == dead_fraction(activations) == 1 / 5

    def test_the_threshold_itself_is_dormant(self):
        assert dormant_fraction([[0.25, 1.75]], tau=0.25) == 1 / 2
        assert dormant_fraction([[0.25, 1.75]], tau=0.25 * (1 - 1e-9)) == 0

    def test_the_absolute_value_is_taken_first(self):
        activations = np.array([[1.0, 1.0], [-1.0, 1.0]])
        assert dormant_fraction(activations) == 0
        assert dormant_fraction(-activations) == 0

    def test_zero_layer(self):
        assert dormant_fraction(np.zeros((5, 4))) == 1
        assert dormant_fraction(np.zeros((5, 4)), tau=0) == 1

    def test_an_even_layer_has_none(self):
        assert dormant_fraction(np.full((5, 4), 1e-12)) == 0

    def test_the_mean_is_over_positions_too(self):
        activations = np.zeros((2, 2, 2, 2))
        activations[..., 1] = 1.0
        activations[0, 0, 0, 0] = 0.16  # a mean of 0.02, and a layer mean of 0.51: a score of 0.039
        assert dormant_fraction(activations) == 0
        activations[0, 0, 0, 0] = 0.08  # a score of 0.0198
        assert dormant_fraction(activations) == 1 / 2

    def test_accumulates_in_float64(self):
        # In float32 the first sum overflows, and then both units are at most any share of an infinite mean.
        activations = np.full((10, 2), 3e38, np.float32)
        activations[:, 1] = 3e36
        assert dormant_fraction(activations) == 1 / 2


class TestConstant:
    def test_counted_by_hand(self):
        activations = np.array([[1.0, 1.0, 0.0, -1.0], [1.0, 1.0 + 1e-5, 0.0, -1.0 + 1e-8]])
        assert constant_fraction(activations) == 3 / 4
        assert constant_fraction(activations, tolerance=1e-4) == 1
        assert constant_fraction(activations, tolerance=1e-9) == 2 / 4

    def test_saturated_tanh_is_constant_and_not_dead(self):
        activations = np.tanh(np.random.default_rng(0).standard_normal((50, 4)) + np.array([0, 40, -40, 0]))
        assert constant_fraction(activations) == 2 / 4
        assert dead_fraction(activations) == 0
        assert dormant_fraction(activations) == 0


class TestTogether:
    def test_they_are_three_different_numbers(self):
        # A dead unit; a nearly silent one; a constant loud one; a live one.
        activations = np.array([[0.0, 0.001, 3.0, 1.0], [0.0, 0.0, 3.0, 2.0]])
        assert dead_fraction(activations) == 1 / 4
        assert dormant_fraction(activations) == 2 / 4
        assert constant_fraction(activations) == 2 / 4
        assert constant_fraction(activations, tolerance=0.01) == 3 / 4

    @given(seed=seeds, tau=st.floats(0, 0.99))
    @settings(max_examples=40, deadline=None)
    def test_the_dead_are_dormant_and_constant(self, seed, tau):
        activations = relu_output(seed, 10, 8) * (np.random.default_rng(seed).random(8) < 0.5)
        assert dead_fraction(activations) <= dormant_fraction(activations, tau)
        assert dead_fraction(activations) <= constant_fraction(activations)
        assert dormant_fraction(activations, tau / 2) <= dormant_fraction(activations, tau)

    @given(seed=seeds, power=st.integers(-100, 100))
    @settings(max_examples=40, deadline=None)
    def test_scale_and_order_change_nothing(self, seed, power):
        rng = np.random.default_rng(seed)
        activations = relu_output(seed, 10, 8, dead=(1, 5)) * 10.0 ** rng.uniform(-3, 0, 8)
        for probe in (dead_fraction, dormant_fraction):
            assert probe(activations * 2.0**power) == probe(activations)
        for probe in PROBES:
            assert probe(rng.permutation(rng.permutation(activations), axis=1)) == probe(activations)

    @pytest.mark.parametrize("probe", PROBES)
    @pytest.mark.parametrize("shape", [(7, 6), (7, 3, 2, 6)])
    def test_lanes_are_kept(self, probe, shape):
        output = np.stack([relu_output(0, *shape), relu_output(1, *shape, dead=(0, 1)), np.zeros(shape)])
        result = probe(output, lanes=1)
        assert result.shape == (3,)
        assert result.tolist() == [0, 2 / 6, 1]
        assert result.tolist() == [probe(lane) for lane in output]
        # The same layer with all lanes taken for samples: no unit is dead in every one of them.
        assert probe(output) == 0
        np.testing.assert_array_equal(probe(np.stack([output, output]), lanes=2), [result, result])

    @pytest.mark.parametrize("probe", PROBES)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_number_spoils_its_own_lane(self, probe, bad):
        output = np.stack([relu_output(lane, 6, 2, 2, 4, dead=(2,)) for lane in range(3)])
        expected = probe(output, lanes=1)
        output[1, :, 0, 1, 3] = bad  # all samples of one unit, so that max - min is inf - inf
        result = probe(output, lanes=1)
        assert np.isnan(result[1])
        np.testing.assert_array_equal(result[[0, 2]], expected[[0, 2]])
        assert np.isnan(probe(output))

    def test_infinity_with_a_threshold_of_zero(self):
        assert np.isnan(dormant_fraction([[np.inf, 0.0], [1.0, 2.0]], tau=0))

    @pytest.mark.parametrize("probe", PROBES)
    def test_results_are_float64(self, probe):
        assert isinstance(probe(np.ones((3, 2), np.float32)), float)
        assert probe(np.ones((1, 3, 2), np.float32), lanes=1).dtype == np.float64
        assert probe(np.ones((0, 3, 2)), lanes=1).shape == (0,)

    @pytest.mark.parametrize("probe", PROBES)
    def test_anything_that_becomes_an_array(self, probe):
        torch = pytest.importorskip("torch")
        activations = relu_output(0, 6, 5, dead=(2,)).astype(np.float32)
        for same in (activations.tolist(), jnp.asarray(activations), torch.from_numpy(activations)):
            assert probe(same) == probe(activations) == 1 / 5
        assert probe(jnp.asarray(activations, jnp.bfloat16)) == 1 / 5


class TestErrors:
    @pytest.mark.parametrize("probe", PROBES)
    def test_shapes(self, probe):
        with pytest.raises(ValueError, match=r"activations has shape \(3,\), too few axes for lanes=0"):
            probe(np.ones(3))
        with pytest.raises(ValueError, match=r"activations has shape \(2, 3\), too few axes for lanes=1.*units last"):
            probe(np.ones((2, 3)), lanes=1)
        with pytest.raises(ValueError, match="lanes is -1"):
            probe(np.ones((2, 3)), lanes=-1)
        with pytest.raises(ValueError, match="at least one sample and one unit"):
            probe(np.ones((0, 3)))
        with pytest.raises(ValueError, match="activations is complex"):
            probe(np.ones((2, 3), complex))

    @pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan, math.inf])
    def test_tau(self, bad):
        with pytest.raises(ValueError, match=r"tau is .* below 1"):
            dormant_fraction(np.ones((2, 3)), tau=bad)

    @pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
    def test_tolerance(self, bad):
        with pytest.raises(ValueError, match=r"tolerance is .* positive"):
            constant_fraction(np.ones((2, 3)), tolerance=bad)
