"""CKA against its definition by Gram matrices, class variances against a double loop over samples."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoteny.probes import similarity
from neoteny.probes.similarity import (
    cka_matrix,
    class_variances,
    linear_cka,
    mean_absolute_difference,
    variance_ratio,
)

seeds = st.integers(0, 2**32 - 1)
SHAPES = [(40, 5, 7), (5, 40, 30), (6, 3, 50), (12, 12, 12), (2, 1, 1)]


def defined_cka(x, y):
    n = len(x)
    h = np.eye(n) - np.full((n, n), 1 / n)
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    return np.trace(k @ l) / (np.linalg.norm(k) * np.linalg.norm(l))


def defined_variances(features, labels):
    """Loops over samples and over ordered pairs of classes."""
    classes = [[f for f, label in zip(features, labels, strict=True) if label == c] for c in sorted(set(labels))]
    means = [sum(c) / len(c) for c in classes]
    within = np.mean([np.mean([((f - m) ** 2).sum() for f in c]) for c, m in zip(classes, means, strict=True)])
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
    return within, np.mean(pairs) if pairs else np.nan


def pair(seed, n, d, e):
    """Two representations that share a part, uncentred."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 2))
    x = shared @ rng.standard_normal((2, d)) + rng.standard_normal((n, d)) + 3.0
    y = shared @ rng.standard_normal((2, e)) + rng.standard_normal((n, e)) - 1.0
    return x, y


def orthonormal(rng, size, count):
    return np.linalg.qr(rng.standard_normal((size, count)))[0]


class TestCKA:
    @pytest.mark.parametrize(("n", "d", "e"), SHAPES)
    def test_definition(self, n, d, e):
        x, y = pair(0, n, d, e)
        np.testing.assert_allclose(linear_cka(x, y), defined_cka(x, y), rtol=1e-10)

    def test_closed_form(self):
        # Orthonormal centred a, b, c: x = [a, b] and y = [a, 2c] share a. K = aa' + bb', L = aa' + 4cc'.
        columns = np.random.default_rng(0).standard_normal((30, 3))
        a, b, c = np.linalg.qr(columns - columns.mean(axis=0))[0].T
        x, y = np.stack([a, b], axis=1), np.stack([a, 2 * c], axis=1)
        np.testing.assert_allclose(linear_cka(x, y), 1 / np.sqrt(2 * 17), rtol=1e-12)
        np.testing.assert_allclose(linear_cka(x + 5, y - 7), 1 / np.sqrt(2 * 17), rtol=1e-9)
        np.testing.assert_allclose(linear_cka(x[:, 1:], y), 0, atol=1e-15)

    @pytest.mark.parametrize(("n", "d", "e"), SHAPES)
    def test_self_similarity_is_one(self, n, d, e):
        for features in pair(1, n, d, e):
            assert linear_cka(features, features) == pytest.approx(1, abs=1e-12)
            assert linear_cka(features, features) <= 1

    def test_the_two_forms_agree(self):
        # Zero units change nothing, and enough of them make the form over samples the cheaper one.
        x, y = pair(2, 30, 4, 6)
        wide = np.concatenate([x, np.zeros((30, 200))], axis=1)
        np.testing.assert_allclose(linear_cka(wide, y), linear_cka(x, y), rtol=1e-12)

    @given(seed=seeds, shape=st.sampled_from(SHAPES[:4]))
    @settings(max_examples=30, deadline=None)
    def test_invariances(self, seed, shape):
        n, d, e = shape
        x, y = pair(seed, n, d, e)
        rng = np.random.default_rng(seed)
        expected = linear_cka(x, y)
        order = rng.permutation(n)
        same = [
            linear_cka(y, x),
            linear_cka(x @ orthonormal(rng, d, d), y @ orthonormal(rng, e, e)),
            linear_cka(x * -3.7, y * 1e-6),
            linear_cka(x + 10 * rng.standard_normal(d), y),
            linear_cka(x[order], y[order]),
            linear_cka(np.concatenate([x, x]), np.concatenate([y, y])),
        ]
        np.testing.assert_allclose(same, expected, rtol=1e-8)
        assert 0 <= expected <= 1

    def test_it_sees_what_it_should(self):
        x, y = pair(3, 40, 5, 5)
        assert abs(linear_cka(x[::-1], y) - linear_cka(x, y)) > 0.05  # samples in another order
        stretched = x * np.array([10.0, 1, 1, 1, 1])  # not isotropic
        assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 0.01

    @pytest.mark.parametrize("scale", [1e-300, 1e-90, 1e90, 1e300])
    def test_scales_whose_fourth_powers_leave_float64(self, scale):
        x, y = pair(4, 20, 3, 4)
        np.testing.assert_allclose(linear_cka(x * scale, y), linear_cka(x, y), rtol=1e-10)
        nearly_constant = np.concatenate([np.ones((20, 1)), x * 1e-200], axis=1)
        np.testing.assert_allclose(linear_cka(nearly_constant, y), linear_cka(x, y), rtol=1e-10)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
    def test_a_constant_representation_has_none(self, value):
        x, _ = pair(5, 10, 3, 3)
        constant = np.full((10, 4), value)
        assert np.isnan(linear_cka(x, constant))
        assert np.isnan(linear_cka(constant, x))
        assert np.isnan(linear_cka(constant, constant))

    def test_one_sample(self):
        assert np.isnan(linear_cka([[1.0, 2.0]], [[3.0]]))

    @pytest.mark.parametrize(("n", "d", "e"), [(30, 4, 5), (5, 30, 20)])
    def test_lanes(self, n, d, e):
        pairs = [[pair(10 * i + j, n, d, e) for j in range(3)] for i in range(2)]
        x = np.array([[p[0] for p in row] for row in pairs])
        y = np.array([[p[1] for p in row] for row in pairs])
        expected = np.array([[defined_cka(*p) for p in row] for row in pairs])
        np.testing.assert_allclose(linear_cka(x, y), expected, rtol=1e-10)
        np.testing.assert_allclose(linear_cka(x, y[0, 0])[1, 2], defined_cka(x[1, 2], y[0, 0]), rtol=1e-10)
        # Every layer against every other: leading axes are broadcast.
        table = linear_cka(x[0, :, None], x[0, None, :])
        assert table.shape == (3, 3)
        np.testing.assert_allclose(table, table.T, rtol=1e-12)
        np.testing.assert_allclose(np.diag(table), 1, rtol=1e-12)
        np.testing.assert_allclose(table[0, 2], defined_cka(x[0, 0], x[0, 2]), rtol=1e-10)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_number_spoils_its_own_lane(self, bad):
        x, y = (np.stack(part) for part in zip(*(pair(s, 20, 3, 4) for s in range(4)), strict=True))
        expected = linear_cka(x, y)
        x[1, 3, 2], y[2, 0, 0] = bad, bad
        result = linear_cka(x, y)
        np.testing.assert_array_equal(np.isnan(result), [False, True, True, False])
        np.testing.assert_array_equal(result[[0, 3]], expected[[0, 3]])

    def test_results_and_inputs(self):
        torch = pytest.importorskip("torch")
        x, y = (part.astype(np.float32) for part in pair(0, 20, 3, 4))
        expected = linear_cka(x, y)
        assert isinstance(expected, float)
        assert linear_cka(x[None], y).shape == (1,)
        assert linear_cka(x.tolist(), jnp.asarray(y)) == expected
        assert linear_cka(torch.from_numpy(x), y) == expected
        np.testing.assert_allclose(expected, defined_cka(x.astype(float), y.astype(float)), rtol=1e-10)

    def test_errors(self):
        with pytest.raises(ValueError, match="x has 10 samples and y has 9"):
            linear_cka(np.ones((10, 2)), np.ones((9, 2)))
        with pytest.raises(ValueError, match=r"leading axes of x, \(2,\), and of y, \(3,\), do not broadcast"):
            linear_cka(np.ones((2, 10, 2)), np.ones((3, 10, 2)))
        with pytest.raises(ValueError, match="x has shape"):
            linear_cka(np.ones(10), np.ones((10, 2)))
        with pytest.raises(ValueError, match="y has shape"):
            linear_cka(np.ones((10, 2)), np.ones(10))


class TestClassVariances:
    def test_closed_form(self):
        # Means (0, 0), (3, 4), (6, 8): squared distances 25, 25, 100. Spreads 1, 4 and 0.
        features = [[1, 0], [-1, 0], [0, 1], [0, -1], [3, 2], [3, 6], [6, 8]]
        within, between = class_variances(features, [0, 0, 0, 0, 5, 5, 2])
        assert within == pytest.approx((1 + 4 + 0) / 3)  # classes count alike, not samples
        assert between == pytest.approx((25 + 25 + 100) / 3)

    @given(seed=seeds, n=st.integers(2, 25), d=st.integers(1, 6), k=st.integers(1, 5))
    @settings(max_examples=50, deadline=None)
    def test_definition(self, seed, n, d, k):
        rng = np.random.default_rng(seed)
        features, labels = rng.standard_normal((n, d)) + 5, rng.integers(k, size=n)
        np.testing.assert_allclose(
            class_variances(features, labels), defined_variances(features, labels), rtol=1e-9, atol=1e-12
        )

    @given(seed=seeds)
    @settings(max_examples=30, deadline=None)
    def test_invariances(self, seed):
        rng = np.random.default_rng(seed)
        features, labels = rng.standard_normal((20, 4)), np.arange(20) % 4
        expected = np.array(class_variances(features, labels))
        order = rng.permutation(20)
        for same in (
            class_variances(features[order], labels[order]),
            class_variances(features, rng.permutation(4)[labels] * 7 - 3),  # other names, gaps, negative ones
            class_variances(features @ orthonormal(rng, 4, 4) + 100, labels),
            np.array(class_variances(features * -3, labels)) / 9,
        ):
            np.testing.assert_allclose(same, expected, rtol=1e-8)
        assert not np.allclose(class_variances(features, np.roll(labels, 1) // 2), expected)

    def test_classes_without_samples_do_not_count(self):
        features = np.random.default_rng(0).standard_normal((12, 3))
        dense, sparse = np.arange(12) % 3, np.array([0, 4, 9])[np.arange(12) % 3]
        assert class_variances(features, sparse) == class_variances(features, dense)

    def test_one_class(self):
        features = np.random.default_rng(0).standard_normal((12, 3))
        within, between = class_variances(features, np.full(12, 4))
        assert within == pytest.approx(features.var(axis=0).sum())
        assert np.isnan(between)

    def test_one_sample(self):
        within, between = class_variances([[1.0, 2.0]], [0])
        assert within == 0
        assert np.isnan(between)

    def test_collapsed_classes_have_no_variance_at_all(self):
        means = np.random.default_rng(0).standard_normal((4, 5)) * 0.1
        labels = np.arange(1000) % 4
        within, between = class_variances(means[labels], labels)
        assert within == 0
        np.testing.assert_allclose(between, defined_variances(means, range(4))[1], rtol=1e-12)
        assert class_variances(np.full((999, 3), 0.1), np.arange(999) % 3) == (0, 0)
        assert class_variances(np.zeros((6, 3)), np.arange(6) % 3) == (0, 0)

    def test_lanes_share_labels_or_have_their_own(self):
        rng = np.random.default_rng(0)
        features, labels = rng.standard_normal((2, 3, 12, 4)), rng.integers(3, size=(2, 3, 12))
        own = class_variances(features, labels)
        shared = class_variances(features, labels[0, 0])
        for lane in np.ndindex(2, 3):
            np.testing.assert_allclose([v[lane] for v in own], defined_variances(features[lane], labels[lane]))
            np.testing.assert_allclose([v[lane] for v in shared], defined_variances(features[lane], labels[0, 0]))
        assert own[0].shape == own[1].shape == (2, 3)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_bad_number_spoils_its_own_lane(self, bad):
        features, labels = np.random.default_rng(0).standard_normal((3, 10, 2)), np.arange(10) % 2
        expected = class_variances(features, labels)
        features[1, 4, 0] = bad
        for result, good in zip(class_variances(features, labels), expected, strict=True):
            assert np.isnan(result[1])
            np.testing.assert_array_equal(result[[0, 2]], good[[0, 2]])

    def test_results_and_inputs(self):
        torch = pytest.importorskip("torch")
        features = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
        labels = np.arange(10) % 3
        expected = class_variances(features, labels)
        assert all(isinstance(value, float) for value in expected)
        assert class_variances(features.tolist(), labels.tolist()) == expected
        assert class_variances(jnp.asarray(features), jnp.asarray(labels)) == expected
        assert class_variances(torch.from_numpy(features), torch.from_numpy(labels)) == expected
        assert class_variances(features, labels.astype(np.uint8)) == expected
        np.testing.assert_allclose(expected, defined_variances(features.astype(float), labels), rtol=1e-12)

    def test_errors(self):
        features = np.ones((2, 5, 3))
        with pytest.raises(ValueError, match=r"labels has shape \(4,\).*\(5,\) or \(2, 5\)"):
            class_variances(features, np.zeros(4, int))
        with pytest.raises(ValueError, match=r"labels has shape \(3, 5\)"):
            class_variances(features, np.zeros((3, 5), int))
        with pytest.raises(ValueError, match=r"give labels of shape \(5,\)$"):
            class_variances(features[0], np.zeros((5, 2), int))
        with pytest.raises(ValueError, match=r"labels are float64.*integer"):
            class_variances(features, np.zeros(5))
        with pytest.raises(ValueError, match="features has shape"):
            class_variances(np.ones(5), np.zeros(5, int))


class TestMatrix:
    @pytest.mark.parametrize("n", [5, 30, 400])
    def test_every_pair_is_linear_cka(self, n):
        rng = np.random.default_rng(0)
        layers = [rng.standard_normal((n, d)) + 2 for d in (3, 40, 9)]
        layers.append(layers[0] @ rng.standard_normal((3, 5)))
        expected = [[linear_cka(x, y) for y in layers] for x in layers]
        np.testing.assert_allclose(cka_matrix(layers), expected, rtol=1e-9)

    def test_both_forms_are_taken_and_agree(self, monkeypatch):
        rng = np.random.default_rng(0)
        layers = [rng.standard_normal((20, d)) for d in (4, 6)]
        centred = [similarity._centred(layer) for layer in layers]
        np.testing.assert_allclose(similarity._by_samples(centred), similarity._by_features(centred), rtol=1e-12)
        taken = []
        for name in ("_by_samples", "_by_features"):
            form = getattr(similarity, name)
            monkeypatch.setattr(similarity, name, lambda c, form=form, name=name: taken.append(name) or form(c))
        cka_matrix(layers)
        cka_matrix([np.tile(layer, 50) for layer in layers])
        assert taken == ["_by_features", "_by_samples"]

    def test_constant_and_bad_layers_are_nan_and_no_other(self):
        x, y = pair(0, 30, 4, 6)
        found = cka_matrix([x, np.ones((30, 3)), y, np.where(x > 2, np.nan, x)])
        good = np.ix_([0, 2], [0, 2])
        np.testing.assert_allclose(found[good], [[1, linear_cka(x, y)], [linear_cka(x, y), 1]], rtol=1e-9)
        found[good] = np.nan
        assert np.isnan(found).all()

    def test_errors(self):
        with pytest.raises(ValueError, match="the same samples"):
            cka_matrix([np.ones((4, 2)), np.ones((5, 2))])
        with pytest.raises(ValueError, match="without lanes"):
            cka_matrix([np.ones((2, 4, 2))])


class TestDifference:
    def test_definition(self):
        x, y = pair(0, 7, 3, 3)
        naive = np.mean([[abs(x[i, j] - y[i, j]) for j in range(3)] for i in range(7)])
        assert mean_absolute_difference(x, y) == pytest.approx(naive)
        assert mean_absolute_difference(x, x) == 0
        np.testing.assert_allclose(mean_absolute_difference(np.stack([x, y]), x), [0, naive])

    def test_bad_numbers_and_errors(self):
        x, y = pair(0, 7, 3, 3)
        found = mean_absolute_difference(np.stack([x, np.where(y > -1, np.inf, y)]), y)
        assert np.isfinite(found[0])
        assert np.isnan(found[1])
        with pytest.raises(ValueError, match="only equal widths compare"):
            mean_absolute_difference(x, y[:, :2])
        with pytest.raises(ValueError, match="the same samples"):
            mean_absolute_difference(x, y[:4])


class TestRatio:
    def test_it_is_within_over_between_and_has_no_scale(self):
        rng = np.random.default_rng(0)
        features, labels = rng.standard_normal((2, 30, 4)), np.arange(30) % 3
        within, between = class_variances(features, labels)
        np.testing.assert_allclose(variance_ratio(features, labels), within / between)
        np.testing.assert_allclose(variance_ratio(1e3 * features, labels), within / between)

    def test_without_distance_between_classes_it_is_nan(self):
        assert np.isnan(variance_ratio(np.ones((4, 2)), [0, 0, 1, 1]))
        assert np.isnan(variance_ratio(np.eye(4), [0, 0, 0, 0]))
