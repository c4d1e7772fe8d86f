"""Layer-wise measurements of arrays: each column is the function of that name, and PyTorch's features will do."""

import jax
import numpy as np
import pytest

from neoteny.probes import (
    LayerMeasure,
    LayerProbe,
    class_variances,
    layers,
    layerwise,
    linear_cka,
    linear_probe,
    numerical_rank,
    tunnel_start,
    variance_ratio,
)


def network(seed, n):
    """Inputs of three classes, and three stages of features: dense, convolutional (n, h, w, c), dense again."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    inputs = np.random.default_rng(7).standard_normal((3, 8))[labels] + rng.standard_normal((n, 8))
    fixed = np.random.default_rng(8)
    first = np.maximum(inputs @ fixed.standard_normal((8, 12)), 0).astype(np.float32)
    second = np.maximum(first @ fixed.standard_normal((12, 18)), 0)
    third = np.maximum(second @ fixed.standard_normal((18, 12)), 0)
    return {"dense": first, "conv": second.reshape(n, 3, 2, 3), "last": third}, labels


@pytest.fixture(scope="module")
def split():
    return *network(0, 200), *network(1, 120)


@pytest.fixture(scope="module")
def table(split):
    return layerwise(*split, final_accuracy=0.6, epochs=3)


def test_every_column_is_the_function_of_its_name(split, table):
    train, labels, test, tested = split
    assert table.stages == ("dense", "conv", "last")
    for place, stage in enumerate(table.stages):
        fitted, measured = train[stage].reshape(200, -1), test[stage].reshape(120, -1)
        assert table.accuracy[place] == linear_probe(fitted, labels, measured, tested, epochs=3)
        measured = measured.astype(np.float32)
        assert table.ranks[1e-3][place] == numerical_rank(measured)
        np.testing.assert_allclose((table.within[place], table.between[place]), class_variances(measured, tested))
        np.testing.assert_allclose(table.ratio[place], variance_ratio(measured, tested))
        for other, name in enumerate(table.stages):
            np.testing.assert_allclose(
                table.cka[place, other], linear_cka(measured, test[name].reshape(120, -1)), rtol=1e-5
            )
    assert table.rank_bound.tolist() == [12, 18, 12]
    assert table.tunnel == tunnel_start(table.accuracy, 0.6)
    difference = np.abs(test["dense"] - test["last"]).mean()
    np.testing.assert_allclose(table.difference[0, 2], difference, rtol=1e-5)
    assert np.isnan(table.difference[0, 1]), "other widths do not compare"


def test_the_frame_has_a_row_a_stage(table):
    frame = table.frame()
    assert frame["stage"].to_list() == ["dense", "conv", "last"]
    assert frame["layer"].to_list() == [1, 2, 3]
    np.testing.assert_array_equal(frame["cka_to_last"], table.cka[:, 2])
    np.testing.assert_array_equal(frame["linear_probe"], table.accuracy)
    assert {"numerical_rank", "class_within", "class_between", "class_ratio"} < set(frame.columns)


def test_measurements_name_metric_and_place(table):
    found = {(metric, place): value for metric, place, value in table.measurements()}
    assert len(found) == len(list(table.measurements()))
    assert found["linear_cka", "dense:conv"] == table.cka[0, 1]
    assert ("mean_absolute_difference", "dense:conv") not in found
    assert ("linear_cka", "conv:dense") not in found
    assert found["tunnel_start", ""] == table.tunnel.layer
    assert found["tunnel_percent", ""] == pytest.approx(100 * (3 - table.tunnel.layer) / 3)


def test_without_the_final_accuracy_there_is_no_tunnel(split):
    table = layerwise(*split, epochs=1)
    assert table.tunnel is None
    assert not [metric for metric, _, _ in table.measurements() if metric.startswith("tunnel")]


def test_pooled_stages_are_averaged_over_positions(split):
    train, labels, test, tested = split
    pooled = layerwise(*split, pool="gap", epochs=3)
    flat = layerwise({"conv": train["conv"].mean((1, 2))}, labels, {"conv": test["conv"].mean((1, 2))}, tested,
                     epochs=3)  # fmt: skip
    assert pooled.rank_units.tolist() == [12, 3, 12]
    assert pooled.accuracy[1] == flat.accuracy[0]


def test_rank_columns_are_drawn_by_key_and_stage(split, monkeypatch):
    monkeypatch.setattr(layers, "RANK_COLUMNS", 10)
    train, labels, test, tested = split
    again = {"a": test["conv"], "b": test["conv"]}
    seen = []
    original = layers.numerical_ranks
    monkeypatch.setattr(layers, "numerical_ranks", lambda x, t: seen.append(x) or original(x, t))
    given = {"a": train["conv"], "b": train["conv"]}
    for key in (None, None, jax.random.key(4)):
        table = layerwise(given, labels, again, tested, epochs=1, key=key)
        assert table.rank_units.tolist() == [10, 10]
    flat = test["conv"].reshape(120, -1).astype(np.float32)
    columns = [[int(np.flatnonzero((flat == column[:, None]).all(0))[0]) for column in x.T] for x in seen]
    assert all(len(set(each)) == 10 and each == sorted(each) for each in columns)
    assert columns[0] == columns[2], "the same key, the same columns"
    assert columns[0] != columns[1], "another stage draws others"
    assert columns[0] != columns[4], "another key draws others"


def test_tolerances_of_the_rank(split):
    table = layerwise(*split, epochs=1, tolerances=(1e-3, 1e-1))
    names = [metric for metric in table.columns if metric.startswith("numerical_rank")]
    assert names == ["numerical_rank", "numerical_rank_0.1"]
    assert (table.ranks[1e-1] < table.ranks[1e-3]).any()


def test_the_rank_may_be_taken_of_fewer_samples():
    features = np.random.default_rng(3).standard_normal((120, 12)).astype(np.float32)
    features[:30, 4:] = 0
    for samples, rank in ((30, 4), (None, 12)):
        probe = LayerProbe("layers", (LayerMeasure.RANK,), rank_samples=samples)
        none = layers.LayerLabels(np.zeros(0, int), np.zeros(120, int))
        key = jax.random.key(0)
        measurement = layers.LayerMeasurement(probe, ["dense"], [none], [layers.LayerKeys(key, key)])
        measurement.take({(0, "dense"): layers.StageFeatures(None, features)})
        table = measurement.tables()[0]
        assert table.rank_samples.tolist() == [samples or 120]
        assert table.ranks[1e-3].tolist() == [rank]


def test_a_stage_that_is_not_finite_is_nan_and_no_other(split):
    train, labels, test, tested = split
    bad = {**test, "dense": np.where(test["dense"] > 1, np.inf, test["dense"])}
    table = layerwise(train, labels, bad, tested, final_accuracy=0.5, epochs=1)
    for column in (table.accuracy, table.ranks[1e-3], table.within, table.ratio, table.cka[1]):
        assert np.isnan(column).tolist() == [True, False, False]
    assert np.isnan(table.tunnel.layer)


def test_tensors_of_another_framework_will_do(split):
    torch = pytest.importorskip("torch")
    train, labels, test, tested = split
    tensors = [{name: torch.tensor(array) for name, array in features.items()} for features in (train, test)]
    table = layerwise(tensors[0], torch.tensor(labels), tensors[1], torch.tensor(tested), epochs=1)
    np.testing.assert_array_equal(table.accuracy, layerwise(*split, epochs=1).accuracy)


def test_what_does_not_fit_is_named(split):
    train, labels, test, tested = split
    with pytest.raises(ValueError, match="the same stages in the same order"):
        layerwise(train, labels, {"dense": test["dense"]}, tested)
    with pytest.raises(ValueError, match="stage 'dense' has 12 units in train and 11 in test"):
        layerwise(train, labels, {**test, "dense": test["dense"][:, :11]}, tested)
    with pytest.raises(ValueError, match="give labels of shape"):
        layerwise(train, labels[:7], test, tested)
    with pytest.raises(ValueError, match="test_labels are float64"):
        layerwise(train, labels, test, tested / 2)
    with pytest.raises(ValueError, match="pool is 'max'"):
        layerwise(*split, pool="max")
