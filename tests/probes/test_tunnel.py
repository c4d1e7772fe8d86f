"""The start of the tunnel on curves worked out by hand, and the measures out of distribution against NumPy's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.probes.tunnel import (
    alignment,
    ood_correlation,
    ood_retained,
    trivially_separable,
    tunnel_percent,
    tunnel_start,
)

CURVE = [0.30, 0.47, 0.475, 0.49, 0.46, 0.50]


class TestStart:
    @pytest.mark.parametrize(("final", "threshold", "expected"), [
        (0.50, 0.90, (2, True)),
        (0.50, 0.95, (3, True)),  # 0.475 is 0.95 * 0.5 in float64 too
        (0.50, 0.96, (4, True)),
        (0.50, 0.99, (6, True)),
        (0.50, 1.00, (6, True)),
        (0.51, 1.00, (6, False)),
        (0.60, 0.95, (6, False)),
        (0.30, 0.95, (1, True)),
    ])  # fmt: skip
    def test_worked_out_by_hand(self, final, threshold, expected):
        assert tunnel_start(CURVE, final, threshold) == expected

    def test_the_default_is_the_papers(self):
        assert tunnel_start(CURVE, 0.5) == tunnel_start(CURVE, 0.5, 0.95) == (3, True)

    def test_the_layer_is_an_integer_and_its_number_not_its_index(self):
        layer, found = tunnel_start(np.array([0.1, 0.9]), np.float64(0.9))
        assert (layer, found) == (2, True)
        assert type(layer) is int
        assert type(found) is bool

    def test_a_later_dip_does_not_move_it(self):
        assert tunnel_start([0.2, 0.9, 0.1, 0.9], 0.9) == (2, True)

    def test_not_found_is_the_last_layer(self):
        assert tunnel_start([0.1, 0.2, 0.3], 0.9) == (3, False)

    @given(
        st.lists(st.floats(0, 1), min_size=1, max_size=12),
        st.floats(0, 1),
        st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
    )
    @settings(max_examples=200, deadline=None)
    def test_monotone_in_the_threshold(self, curve, final, thresholds):
        low, high = sorted(thresholds)
        assert tunnel_start(curve, final, low).layer <= tunnel_start(curve, final, high).layer
        assert tunnel_start(curve, final, low).found >= tunnel_start(curve, final, high).found

    @pytest.mark.parametrize(("curve", "final"), [([0.1, math.nan], 0.5), ([0.1, 0.2], math.nan), ([math.inf], 0.5)])
    def test_what_is_not_finite_has_no_start(self, curve, final):
        layer, found = tunnel_start(curve, final)
        assert math.isnan(layer)
        assert not found
        assert not trivially_separable(tunnel_start(curve, final))

    def test_trivially_separable_is_the_first_layer_found(self):
        assert trivially_separable(tunnel_start([0.9, 0.9], 0.9))
        assert not trivially_separable(tunnel_start([0.1, 0.9], 0.9))
        assert not trivially_separable(tunnel_start([0.1], 0.9)), "the only layer, and not found"

    def test_percent(self):
        assert tunnel_percent(5, 11) == pytest.approx(100 * 6 / 11)
        assert tunnel_percent(11, 11) == 0

    def test_errors(self):
        with pytest.raises(ValueError, match="give one accuracy a layer"):
            tunnel_start([], 0.5)
        with pytest.raises(ValueError, match="give one accuracy a layer"):
            tunnel_start([[0.1]], 0.5)
        with pytest.raises(ValueError, match="give a positive share"):
            tunnel_start([0.5], 0.5, 0)
        with pytest.raises(ValueError, match="layers are counted from 1"):
            tunnel_percent(0, 5)
        with pytest.raises(ValueError, match="layers are counted from 1"):
            tunnel_percent(6, 5)


class TestOutOfDistribution:
    def test_retained(self):
        assert ood_retained([0.2, 0.5, 0.4]) == pytest.approx(80)
        assert ood_retained([0.2, 0.3, 0.4]) == 100
        np.testing.assert_allclose(ood_retained([[0.2, 0.5, 0.4], [0.5, 0.1, 0.1]]), [80, 20])

    def test_retained_of_nothing_is_nan(self):
        assert math.isnan(ood_retained([0.0, 0.0]))
        np.testing.assert_array_equal(np.isnan(ood_retained([[0.1, math.nan], [0.1, 0.1]])), [True, False])

    def test_correlation_is_pearsons(self):
        rng = np.random.default_rng(0)
        ours, theirs = rng.random((2, 4, 11))
        expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
        np.testing.assert_allclose(ood_correlation(ours, theirs), expected, rtol=1e-12)
        assert ood_correlation(ours[0], 2 * ours[0] + 1) == pytest.approx(1)
        assert ood_correlation(ours[0], -ours[0]) == pytest.approx(-1)

    @pytest.mark.parametrize("constant", [0.0, 0.1, 0.3])
    def test_correlation_with_a_constant_curve_is_nan(self, constant):
        assert math.isnan(ood_correlation([0.1, 0.2, 0.4], [constant] * 3))
        assert math.isnan(ood_correlation([0.1, math.inf, 0.4], [0.1, 0.2, 0.3]))

    def test_alignment(self):
        assert alignment(0.9, 0.5, id_chance=0.1, ood_chance=0.2) == pytest.approx(0.8 * 0.3)
        np.testing.assert_allclose(alignment([0.1, 0.6], [0.7, 0.6], id_chance=0.1, ood_chance=0.1), [0, 0.25])

    def test_errors(self):
        with pytest.raises(ValueError, match="give one accuracy a layer to each"):
            ood_correlation([0.1, 0.2], [0.1])
        with pytest.raises(ValueError, match="give one accuracy a layer"):
            ood_retained(0.3)
