"""Ranks against closed forms on matrices of known singular values, and against a paper's printed code."""

import ast
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.probes import arrays, rank
from neoteny.probes.arrays import centre, flatten_features, pool_features, singular_values
from neoteny.probes.dormancy import dead_fraction
from neoteny.probes.rank import (
    effective_rank,
    entropy_rank,
    feature_rank,
    numerical_rank,
    numerical_ranks,
    participation_ratio,
    stable_rank,
)

RANKS = (effective_rank, numerical_rank, feature_rank, stable_rank, entropy_rank, participation_ratio)
SCALE_FREE = (effective_rank, numerical_rank, stable_rank, entropy_rank, participation_ratio)


def orthonormal(rng, size, count):
    """(size, count) with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((size, count)))[0]


def matrix(values, n, d, seed=0):
    """An (n, d) matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    return orthonormal(rng, n, len(values)) * np.asarray(values, float) @ orthonormal(rng, d, len(values)).T


def centred_matrix(values, n, d, seed=0):
    """An (n, d) matrix of zero column means with the given singular values; needs len(values) < n."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((n, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    return left * np.asarray(values, float) @ orthonormal(rng, d, len(values)).T


def paper_code(features, delta=0.01):
    """arXiv:2207.02099, appendix A.11."""
    s = np.linalg.svd(features, compute_uv=False)
    c = np.cumsum(s)
    return len(s) - np.count_nonzero(c >= (1 - delta) * np.sum(s)) + 1


spectra = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8).map(lambda s: sorted(s, reverse=True))
seeds = st.integers(0, 2**32 - 1)


class TestClosedForms:
    # One number tells every variant from every other: singular values or squares, which sum, which threshold.
    values = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)

    @pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (6, 6), (300, 7)])
    def test_known_singular_values(self, n, d):
        features = matrix(self.values, n, d)
        s = np.array(self.values)
        p = s / s.sum()
        np.testing.assert_allclose(singular_values(features)[:6], s, rtol=1e-12)
        # Cumulative shares: .508 .762 .889 .952 .984 1; of the squares: .750 .938 .984 .996 .999 1.
        assert effective_rank(features) == 6
        assert effective_rank(features, delta=0.02) == 5
        assert effective_rank(features, delta=0.1) == 4
        assert effective_rank(features, delta=0.4) == 2
        np.testing.assert_allclose(stable_rank(features), (s**2).sum() / 64, rtol=1e-12)
        np.testing.assert_allclose(entropy_rank(features), math.exp(-(p * np.log(p)).sum()), rtol=1e-12)
        np.testing.assert_allclose(participation_ratio(features), (s**2).sum() ** 2 / (s**4).sum(), rtol=1e-12)
        assert feature_rank(features, epsilon=3.0 / math.sqrt(n)) == 2
        assert feature_rank(features, epsilon=0.3 / math.sqrt(n)) == 5

    @pytest.mark.parametrize("r", [1, 2, 7, 50, 99, 101, 150])
    def test_effective_rank_of_equal_singular_values_is_the_ceiling(self, r):
        assert effective_rank(np.eye(r)) == math.ceil(0.99 * r)
        assert effective_rank(matrix([3.0] * r, r + 5, r + 2)) == math.ceil(0.99 * r)

    def test_effective_rank_on_its_threshold(self):
        assert effective_rank(np.eye(4), delta=0.5) == 2
        assert effective_rank(np.eye(100)) in (99, 100)  # 0.99 * 100 is not exact

    @pytest.mark.parametrize("probe", [stable_rank, entropy_rank, participation_ratio])
    def test_equal_singular_values_count_as_many(self, probe):
        np.testing.assert_allclose(probe(matrix([2.0] * 9, 30, 20)), 9, rtol=1e-12)

    def test_numerical_rank_thresholds_variances(self):
        # Relative variances 1, 1e-2, 1.01e-3 | 0.99e-3, 1e-5: a threshold on s itself would count all five.
        features = centred_matrix(np.sqrt([1.0, 1e-2, 1.01e-3, 0.99e-3, 1e-5]), 60, 12)
        assert numerical_rank(features) == 3
        assert numerical_rank(features, tolerance=1e-2 * 1.01) == 1
        assert numerical_rank(features, tolerance=1e-4) == 4
        assert numerical_rank(features, tolerance=1e-6) == 5

    def test_numerical_rank_is_centred_and_the_others_are_not(self):
        features = centred_matrix([1.0, 1.0, 1.0], 50, 8)
        moved = features + 1000.0
        assert numerical_rank(moved) == 3
        assert effective_rank(features) == 3
        assert effective_rank(moved) == 1
        assert stable_rank(moved) < 1.01
        assert entropy_rank(moved) < 1.1
        assert participation_ratio(moved) < 1.01
        assert feature_rank(features) == 3
        assert feature_rank(moved) == 4

    def test_numerical_rank_agrees_with_the_covariance(self):
        rng = np.random.default_rng(3)
        for _ in range(20):
            features = rng.standard_normal((80, 10)) * 10.0 ** rng.uniform(-3, 0, 10) + rng.standard_normal(10)
            eigenvalues = np.linalg.eigvalsh(np.cov(features, rowvar=False))
            assert numerical_rank(features) == (eigenvalues > 1e-3 * eigenvalues.max()).sum()

    def test_numerical_rank_of_few_samples_is_bounded(self):
        rng = np.random.default_rng(0)
        assert numerical_rank(rng.standard_normal((5, 40))) == 4
        assert numerical_rank(rng.standard_normal((4000, 12))) == 12

    def test_feature_rank_has_a_scale(self):
        features = matrix([1.0, 0.5, 0.25], 100, 5)  # over sqrt(n): 0.1, 0.05, 0.025
        assert [feature_rank(features * a) for a in (1.0, 0.3, 0.15, 0.01)] == [3, 2, 1, 0]
        assert feature_rank(features, epsilon=0.05 * (1 + 1e-9)) == 1

    def test_digits_survive_that_a_gram_matrix_loses(self):
        np.testing.assert_allclose(singular_values(matrix([1.0, 1e-11], 500, 2))[1], 1e-11, rtol=1e-3)
        np.testing.assert_allclose(singular_values(matrix([1.0, 1e-11], 2, 500))[1], 1e-11, rtol=1e-3)

    def test_smallest_ranks(self):
        row, column = np.zeros((20, 6)), np.zeros((20, 6))
        row[3], column[:, 2] = 1.5, 1.5
        for probe in RANKS:
            assert probe(row) == pytest.approx(1)
        for probe in (effective_rank, feature_rank, stable_rank, entropy_rank, participation_ratio):
            assert probe(column) == pytest.approx(1)
        assert numerical_rank(column) == 0  # the column is constant

    def test_relu_features_have_at_most_as_many_ranks_as_live_units(self):
        rng = np.random.default_rng(1)
        for live in (1, 4, 9):
            features = np.maximum(rng.standard_normal((200, 16)), 0)
            features[:, live:] = 0
            assert effective_rank(features, delta=1e-9) == live

    @given(seed=seeds, scale=st.floats(1e-3, 1e3))
    @settings(max_examples=60, deadline=None)
    def test_relu_features_have_no_more_ranks_than_live_units(self, seed, scale):
        rng = np.random.default_rng(seed)
        features = np.maximum(rng.standard_normal((30, 12)) + rng.uniform(-4, 1, 12), 0).astype(np.float32) * scale
        live = 12 - 12 * dead_fraction(features)
        assert effective_rank(features) <= round(live)
        assert effective_rank(features, delta=1e-12) <= round(live)

    def test_a_jax_program_counts_the_same_on_a_hundred_matrices(self):
        @jax.jit
        def counted(features):
            values = jnp.cumsum(jnp.linalg.svd(features, compute_uv=False), axis=-1)
            return jnp.sum(values < 0.99 * values[..., -1:], axis=-1) + 1

        rng = np.random.default_rng(0)
        features = jnp.asarray(rng.standard_normal((100, 40, 12)) * 10.0 ** rng.uniform(-2, 0, (100, 1, 12)), "float32")
        found = effective_rank(features)
        np.testing.assert_array_equal(found, [paper_code(np.asarray(each, np.float64)) for each in features])
        np.testing.assert_array_equal(found, counted(features))
        assert len(np.unique(found)) > 3


class TestPaperCode:
    @given(seed=seeds, n=st.integers(1, 40), d=st.integers(1, 12), delta=st.sampled_from([0.01, 0.05, 0.1]))
    @settings(max_examples=60, deadline=None)
    def test_effective_rank_agrees(self, seed, n, d, delta):
        rng = np.random.default_rng(seed)
        features = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-2, 0, d)
        assert effective_rank(features, delta) == paper_code(features, delta)

    def test_they_differ_on_the_zero_matrix_only(self):
        assert paper_code(np.zeros((5, 3))) == 1
        assert effective_rank(np.zeros((5, 3))) == 0


class TestInvariance:
    @given(values=spectra, seed=seeds)
    @settings(max_examples=40, deadline=None)
    def test_rotation_and_permutation(self, values, seed):
        rng = np.random.default_rng(seed)
        features = matrix(values, 20, 9, seed)
        rotated = features @ orthonormal(rng, 9, 9)
        permuted = rng.permutation(rng.permutation(features), axis=1)
        for probe in (stable_rank, entropy_rank, participation_ratio):
            np.testing.assert_allclose([probe(rotated), probe(permuted)], probe(features), rtol=1e-9)
        # Counts jump, so thresholds are asked for from both sides of where rounding may put them.
        for probe, threshold in ((effective_rank, 0.01), (numerical_rank, 1e-3), (feature_rank, 0.01)):
            bounds = sorted((probe(features, threshold * (1 - 1e-9)), probe(features, threshold * (1 + 1e-9))))
            for same in (rotated, permuted):
                assert bounds[0] <= probe(same, threshold) <= bounds[1]

    @given(seed=seeds, power=st.integers(-200, 200))
    @settings(max_examples=40, deadline=None)
    def test_scale(self, seed, power):
        features = np.random.default_rng(seed).standard_normal((12, 5))
        # Powers of two scale without rounding.
        for probe in SCALE_FREE:
            np.testing.assert_allclose(probe(features * 2.0**power), probe(features), rtol=1e-10)

    @pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
    def test_scales_whose_squares_leave_float64(self, scale):
        features = centred_matrix([1.0, 0.5, 0.25], 30, 6) * scale
        expected = [3, 3, 21 / 16, (21 / 16) ** 2 / (273 / 256)]
        measured = [p(features) for p in (effective_rank, numerical_rank, stable_rank, participation_ratio)]
        np.testing.assert_allclose(measured, expected, rtol=1e-10)

    @given(seed=seeds, offset=st.floats(-100, 100))
    @settings(max_examples=30, deadline=None)
    def test_numerical_rank_ignores_a_constant_row(self, seed, offset):
        features = centred_matrix([1.0, 0.3, 0.1, 0.01], 20, 6, seed)
        assert numerical_rank(features + offset * np.arange(6)) == 3

    @given(seed=seeds)
    @settings(max_examples=20, deadline=None)
    def test_duplicated_samples_change_nothing(self, seed):
        features = np.random.default_rng(seed).standard_normal((15, 6))
        for probe in RANKS:
            np.testing.assert_allclose(probe(np.concatenate([features, features])), probe(features), rtol=1e-9)

    @given(values=spectra, seed=seeds, thresholds=st.tuples(st.floats(1e-4, 0.9), st.floats(1e-4, 0.9)))
    @settings(max_examples=40, deadline=None)
    def test_monotone_in_the_threshold(self, values, seed, thresholds):
        features = matrix(values, 16, 8, seed)
        low, high = sorted(thresholds)
        for probe in (effective_rank, numerical_rank, feature_rank):
            assert probe(features, low) >= probe(features, high)

    @given(values=spectra, seed=seeds)
    @settings(max_examples=40, deadline=None)
    def test_order_of_the_soft_ranks(self, values, seed):
        features = matrix(values, 16, 8, seed)
        m = len(values)
        assert 1 - 1e-9 <= stable_rank(features) <= participation_ratio(features) * (1 + 1e-9)
        assert participation_ratio(features) <= entropy_rank(features) * (1 + 1e-9) <= m * (1 + 2e-9)


class TestEdges:
    @pytest.mark.parametrize("probe", RANKS)
    def test_zero_matrix(self, probe):
        assert probe(np.zeros((6, 4))) == 0
        assert probe(np.zeros((4, 6))) == 0
        assert probe(np.zeros((1, 1))) == 0

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e10 + 0.1, -7.7e-8])
    @pytest.mark.parametrize("n", [3, 10, 1000])
    def test_constant_features(self, n, value):
        features = np.full((n, 5), value) * np.array([1.0, 0.1, 3.3, -0.7, 1e-3])
        assert numerical_rank(features) == 0
        assert effective_rank(features) == 1

    @pytest.mark.parametrize("probe", RANKS)
    def test_one_sample(self, probe):
        assert probe([[1.0, -2.0, 0.5]]) == pytest.approx(0 if probe is numerical_rank else 1)

    @pytest.mark.parametrize("probe", RANKS)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_number_spoils_its_own_lane(self, probe, bad):
        good = np.random.default_rng(0).standard_normal((2, 3, 10, 4))
        good[0, 0] = 0
        spoilt = good.copy()
        spoilt[1, 0, 7, 2] = bad
        result = probe(spoilt)
        assert result.shape == (2, 3)
        assert np.isnan(result[1, 0])
        assert result[0, 0] == 0
        rest = np.arange(6).reshape(2, 3) != 3
        np.testing.assert_array_equal(result[rest], probe(good)[rest])
        assert np.isnan(probe(spoilt[1, 0]))
        assert np.isnan(singular_values(spoilt)[1, 0]).all()

    @pytest.mark.parametrize("probe", RANKS)
    def test_lanes_are_measured_one_by_one(self, probe):
        rng = np.random.default_rng(0)
        features = rng.standard_normal((2, 3, 12, 5)) * 10.0 ** rng.uniform(-2, 1, (2, 3, 1, 5))
        single = [[probe(lane) for lane in row] for row in features]
        np.testing.assert_allclose(probe(features), single, rtol=1e-12)
        assert len(np.unique(single)) > 1

    @pytest.mark.parametrize("probe", RANKS)
    def test_results_are_float64(self, probe):
        features = np.random.default_rng(0).standard_normal((6, 3))
        assert isinstance(probe(features), float)
        assert probe(features[None]).dtype == np.float64
        assert probe(features[None]).shape == (1,)
        assert probe(np.zeros((0, 6, 3))).shape == (0,)

    @pytest.mark.parametrize("probe", RANKS)
    def test_inputs_are_left_alone(self, probe):
        features = np.random.default_rng(0).standard_normal((2, 6, 3))
        features[1, 0, 0] = np.nan
        before = features.copy()
        probe(features)
        np.testing.assert_array_equal(features, before)

    @pytest.mark.parametrize("probe", RANKS)
    def test_a_lane_on_which_lapack_fails_is_nan(self, probe, monkeypatch):
        features = np.random.default_rng(0).standard_normal((3, 8, 4))
        expected = probe(features)
        values = centre(arrays.unit_scale(features)) if probe is numerical_rank else features
        svd = np.linalg.svd

        def failing(a, compute_uv):
            if any(np.array_equal(part, values[1]) for part in a.reshape(-1, 8, 4)):
                raise np.linalg.LinAlgError("SVD did not converge")
            return svd(a, compute_uv=compute_uv)

        monkeypatch.setattr(np.linalg, "svd", failing)
        result = probe(features)
        assert np.isnan(result[1])
        np.testing.assert_allclose(result[[0, 2]], expected[[0, 2]], rtol=1e-12)
        assert np.isnan(probe(features[1]))


class TestErrors:
    @pytest.mark.parametrize("probe", RANKS)
    @pytest.mark.parametrize("features", [1.0, [1.0, 2.0]])
    def test_too_few_dimensions(self, probe, features):
        with pytest.raises(ValueError, match=r"features has shape .*samples second to last.*flatten_features"):
            probe(features)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
    def test_nothing_to_measure(self, shape):
        with pytest.raises(ValueError, match="at least one sample and one unit"):
            effective_rank(np.zeros(shape))

    def test_complex(self):
        with pytest.raises(ValueError, match="features is complex"):
            effective_rank(np.ones((3, 2), complex))

    @pytest.mark.parametrize("bad", [0, 1, -0.1, 1.5, math.nan, math.inf])
    def test_shares(self, bad):
        with pytest.raises(ValueError, match=r"delta is .* above 0 and below 1"):
            effective_rank(np.eye(2), delta=bad)
        with pytest.raises(ValueError, match=r"tolerance is .* above 0 and below 1"):
            numerical_rank(np.eye(2), tolerance=bad)

    @pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
    def test_epsilon(self, bad):
        with pytest.raises(ValueError, match=r"epsilon is .* positive"):
            feature_rank(np.eye(2), epsilon=bad)


class TestInputs:
    @pytest.mark.parametrize("probe", RANKS)
    def test_anything_that_becomes_an_array(self, probe):
        torch = pytest.importorskip("torch")
        features = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
        expected = probe(features)
        for same in (
            features.tolist(),
            jnp.asarray(features),
            torch.from_numpy(features),
            features[::-1][::-1],
        ):
            assert probe(same) == expected
        assert probe(features.astype(np.float64)) == expected

    def test_computes_in_float64(self):
        # In float32 the second singular value would be noise of 1e-7.
        features = np.zeros((50, 2), np.float32)
        features[0, 0], features[1, 1] = 1.0, 1e-12
        assert singular_values(features).dtype == np.float64
        np.testing.assert_allclose(singular_values(features), [1.0, 1e-12], rtol=1e-6)
        assert singular_values(jnp.ones((4, 3), jnp.bfloat16))[0] == pytest.approx(math.sqrt(12))

    def test_integers_and_booleans(self):
        assert effective_rank(np.eye(4, dtype=np.int8)) == 4
        assert effective_rank(np.eye(4, dtype=bool)) == 4

    @pytest.mark.parametrize("name", ["arrays", "rank", "dormancy", "similarity", "tunnel"])
    def test_modules_do_not_import_jax(self, name):
        tree = ast.parse((Path(rank.__file__).parent / f"{name}.py").read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        allowed = {
            "__future__",
            "collections.abc",
            "functools",
            "math",
            "typing",
            "numpy",
            "numpy.typing",
            "jaxtyping",
            "threadpoolctl",
            "neoteny.probes.arrays",
        }
        assert imported <= allowed


class TestStageOutputs:
    def test_flatten(self):
        output = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
        np.testing.assert_array_equal(flatten_features(output, lanes=1), output.reshape(2, 3, 120))
        np.testing.assert_array_equal(flatten_features(output), output.reshape(2, 360))
        assert flatten_features(output[0, :, 0, 0]).shape == (3, 6)
        assert flatten_features(jnp.ones((3, 2, 2), jnp.float32)).dtype == np.float32

    def test_pool(self):
        output = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
        pooled = pool_features(output, lanes=1)
        assert pooled.shape == (2, 3, 6)
        assert pooled.dtype == np.float64
        np.testing.assert_allclose(pooled, output.astype(np.float64).mean(axis=(2, 3)), rtol=1e-12)
        np.testing.assert_array_equal(pool_features(output[0, :, 0, 0]), output[0, :, 0, 0])

    def test_errors(self):
        with pytest.raises(ValueError, match=r"activations has shape \(3, 4\), too few axes for lanes=1"):
            flatten_features(np.ones((3, 4)), lanes=1)
        with pytest.raises(ValueError, match="lanes is -1"):
            pool_features(np.ones((3, 4)), lanes=-1)


@pytest.mark.parametrize("shape", [(700, 530), (530, 700)])
def test_large_matrices_are_counted_exactly_on_both_sides_of_every_tolerance(shape, monkeypatch):
    tolerances = (1e-2, 1e-3, 1e-4)
    shares = [1.0, *(t * side for t in tolerances for side in (1 + 1e-6, 1 - 1e-6)), 1e-12]
    features = centred_matrix(np.sqrt(shares), *shape) + 3.0
    counts = (2, 4, 6)
    assert numerical_ranks(features, tolerances) == counts
    assert numerical_ranks(features * 1e6, tolerances) == counts
    assert numerical_ranks(features[:, ::-1], tolerances) == counts
    assert numerical_ranks(np.zeros(shape), tolerances) == (0, 0, 0)
    assert numerical_ranks(np.full(shape, 7.0), tolerances) == (0, 0, 0)
    broken = features.copy()
    broken[0, 0] = np.nan
    assert np.isnan(numerical_ranks(np.stack([broken, features]), tolerances)[0][0])
    assert numerical_ranks(np.stack([broken, features]), tolerances)[0][1] == counts[0]
    monkeypatch.setattr(rank, "GRAM_UNITS", 10**9)
    assert numerical_ranks(features, tolerances) == counts, "as from the singular values"


def test_tolerances_too_small_for_a_gram_matrix_take_singular_values():
    features = centred_matrix([1.0, 1e-5], 600, 520)
    assert numerical_rank(features, 1e-11) == 2
    assert numerical_rank(features, 1e-9) == 1
