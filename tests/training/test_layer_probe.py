"""Layer probes in a run: what they record, that they equal the functions on the same features, and disturb nothing."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.learners import supervised
from neoteny.networks import mlp
from neoteny.probes import (
    FeatureProbe,
    LayerMeasure,
    LayerProbe,
    Stages,
    class_variances,
    effective_rank,
    layerwise,
    linear_cka,
    linear_probe,
    numerical_rank,
    tunnel_start,
)
from neoteny.tasks import Arrays, Minibatch, domains, random_labels, single
from neoteny.training import Evaluate, Probe, Save, Switch, Train, measuring
from training_cases import DATA, EXPERIMENT, Config, finish, make_runner

SETTINGS = {"epochs": 3, "batch_size": 8}
SMALL = LayerProbe("layers", **SETTINGS)


def experiment(events, *, tasks=None, hidden=(8, 8, 6)):
    """Three hidden stages on `DATA` as it is, or on other tasks."""
    return replace(
        EXPERIMENT,
        stream=lambda config: single(DATA) if tasks is None else tasks,
        script=lambda config, given: tuple(events(given)),
        learner=lambda config: supervised(mlp(12, list(hidden), 3), optax.adam(config.learning_rate)),
        source=lambda config: Minibatch(16),
    )


def train_and(*more):
    return lambda tasks: [Switch(tasks[0]), Train(tasks[0], 20, record_every=20), *(m(tasks) for m in more)]


def values(records, metric, run="run-0-0.999"):
    return {r.place: r.value for r in records if r.metric == metric and r.run == run}


@pytest.fixture(scope="module")
def measured():
    probe = lambda tasks: Probe(SMALL, on=tasks[0])  # noqa: E731
    runner = make_runner(
        [Config(seed=s) for s in range(2)],
        experiment=experiment(train_and(probe, lambda tasks: Evaluate(tasks[0], "test"), lambda tasks: Save("end"))),
    )
    records, saves, _ = finish(runner)
    return runner, records, saves


def features_of(runner, saves, lane, split):
    networks = runner.networks_from("end", saves["end"])
    network = jax.tree.map(lambda leaf: leaf[lane] if isinstance(leaf, jax.Array) else leaf, networks)
    rows = DATA.splits[split]
    stages = network(jnp.asarray(DATA.inputs[rows], jnp.float32) / 255).stages
    return {name: np.asarray(stages[name]) for name in network.names[:-1]}, DATA.targets[rows]


@pytest.mark.parametrize("lane", [0, 1])
def test_records_are_the_functions_on_the_saved_networks_features(measured, lane):
    runner, records, saves = measured
    run = f"run-{lane}-0.999"
    (train, labels), (test, tested) = (features_of(runner, saves, lane, split) for split in ("train", "test"))
    final = next(r.value for r in records if r.metric == "accuracy" and r.split == "test" and r.run == run)
    assert values(records, "final_accuracy", run) == {"": pytest.approx(final)}
    assert list(values(records, "linear_probe", run)) == ["hidden1", "hidden2", "hidden3"]
    for name, value in values(records, "numerical_rank", run).items():
        assert value == numerical_rank(test[name])
    for name in test:
        within, between = class_variances(test[name], tested)
        assert values(records, "class_within", run)[name] == pytest.approx(within, rel=1e-5)
        assert values(records, "class_between", run)[name] == pytest.approx(between, rel=1e-5)
        assert values(records, "class_ratio", run)[name] == pytest.approx(within / between, rel=1e-5)
    pairs = {f"{a}:{b}": linear_cka(test[a], test[b]) for a, b in zip(test, [*test][1:], strict=False)}
    pairs["hidden1:hidden3"] = linear_cka(test["hidden1"], test["hidden3"])
    assert values(records, "linear_cka", run) == pytest.approx(pairs, rel=1e-4)
    difference = np.abs(test["hidden1"] - test["hidden2"]).mean()
    assert values(records, "mean_absolute_difference", run) == {"hidden1:hidden2": pytest.approx(difference, rel=1e-4)}
    probes = values(records, "linear_probe", run)
    key = runner.measurer._layer_keys(20)[lane].minibatches
    for name, value in probes.items():
        alone = linear_probe(train[name], labels, test[name], tested, key=key, **SETTINGS)
        assert value == pytest.approx(alone, abs=1.01 / len(tested)), "rounding may move a sample"
    start = tunnel_start(list(probes.values()), final)
    assert values(records, "tunnel_start", run) == {"": start.layer}
    assert values(records, "tunnel_found", run) == {"": float(start.found)}
    assert values(records, "rank_bound", run) == {"hidden1": 8, "hidden2": 8, "hidden3": 6}
    assert {r.split for r in records if r.metric in ("linear_probe", "linear_cka", "tunnel_start")} == {"test"}


def test_lanes_differ_and_repeat(measured):
    _, records, _ = measured
    ours = [r.value for r in records if r.metric == "class_within" and r.run == "run-0-0.999"]
    theirs = [r.value for r in records if r.metric == "class_within" and r.run == "run-1-0.999"]
    assert ours != theirs
    again = make_runner(
        [Config(seed=s) for s in range(2)],
        experiment=experiment(
            train_and(lambda t: Probe(SMALL, on=t[0]), lambda t: Evaluate(t[0], "test"), lambda t: Save("end"))
        ),
    )
    assert finish(again)[0] == records


def test_training_and_its_draws_are_as_without_the_probe(measured):
    runner, records, _ = measured
    plain = make_runner(
        [Config(seed=s) for s in range(2)],
        experiment=experiment(train_and(lambda t: Evaluate(t[0], "test"))),
    )
    records_plain, _, _ = finish(plain)
    theirs, ours = plain.arrays(), runner.arrays()
    for name in theirs:
        if name != "ledger.probe":
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    kept = [r._replace(flops_probe=0, event=0) for r in records if r.metric in ("accuracy", "loss", "train_loss")]
    assert kept == [r._replace(event=0) for r in records_plain if r.metric in ("accuracy", "loss", "train_loss")]
    assert (runner.ledger.probe > 0).all()


def test_little_memory_means_more_passes_and_the_same_numbers(measured, monkeypatch):
    _, records, _ = measured
    for size in (1, 8 * 96 * 4, 2 * 16 * 96 * 4):
        monkeypatch.setattr(measuring, "FEATURE_BYTES", size)
        again, _, _ = finish(
            make_runner(
                [Config(seed=s) for s in range(2)],
                experiment=experiment(
                    train_and(lambda t: Probe(SMALL, on=t[0]), lambda t: Evaluate(t[0], "test"), lambda t: Save("end"))
                ),
            )
        )
        assert [(r.metric, r.place, r.value) for r in again] == [(r.metric, r.place, r.value) for r in records]


def test_the_memory_bound_is_kept_and_nothing_is_left_out(monkeypatch):
    monkeypatch.setattr(measuring, "FEATURE_BYTES", 100)
    width = {"a": 10, "b": 2, "c": 3, "d": 30, "e": 1}
    parts = list(measuring._parts_of_layers(width, 3, 4))
    seen = [(name, lane) for stages, lanes in parts for name in stages for lane in lanes]
    assert sorted(seen) == sorted((name, lane) for name in width for lane in range(3))
    for stages, lanes in parts:
        assert len(stages) == len(lanes) == 1 or sum(width[name] for name in stages) * len(lanes) * 4 <= 100
    monkeypatch.setattr(measuring, "FEATURE_BYTES", 10**6)
    assert list(measuring._parts_of_layers(width, 3, 4)) == [(tuple(width), [0, 1, 2])]


def test_layer_probes_of_one_event_share_one_pass_and_nothing_is_recorded_twice(monkeypatch):
    passes = []
    original = measuring.Measurer._stage_features

    def counted(self, *arguments):
        passes.append(arguments[4])
        return original(self, *arguments)

    monkeypatch.setattr(measuring.Measurer, "_stage_features", counted)
    short = [replace(SMALL, name=name, measures=measures) for name, measures in (
        ("linear_probe", (LayerMeasure.ACCURACY,)),
        ("tunnel_start", (LayerMeasure.ACCURACY, LayerMeasure.TUNNEL)),
        ("linear_cka", (LayerMeasure.SIMILARITY,)),
    )]  # fmt: skip
    records, _, _ = finish(
        make_runner(
            [Config()],
            experiment=experiment(train_and(lambda t: Probe(*short, effective_rank, on=t[0]))),
        )
    )
    assert passes == [("hidden1", "hidden2", "hidden3")] * 2, "train and test"
    places = [(r.metric, r.place) for r in records if not r.metric.startswith("train_")]
    assert len(places) == len(set(places))
    metrics = {metric for metric, _ in places}
    assert metrics == {"linear_probe", "linear_probe_degenerate", "linear_cka", "mean_absolute_difference",
                       "final_accuracy", "tunnel_start", "tunnel_found", "trivially_separable", "tunnel_percent",
                       "effective_rank"}  # fmt: skip


def test_the_named_functions_are_layer_probes():
    probes = Probe(linear_probe, tunnel_start, class_variances, linear_cka, layerwise, on=None).probes
    assert all(isinstance(probe, LayerProbe) for probe in probes)
    assert [probe.fits for probe in probes] == [True, True, False, False, True]


def test_another_tasks_data_are_probed_with_a_linear_layer_of_their_own():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 7, 120).astype(np.int32)
    inputs = np.clip(40 * np.eye(7)[labels] @ rng.standard_normal((7, 12)) + 120, 0, 255).astype(np.uint8)
    rows = np.arange(120, dtype=np.int32)
    other = Arrays("other", inputs, labels, {"train": rows[:80], "test": rows[80:]}, 7)
    tasks = domains([DATA, other])
    probe = replace(SMALL, measures=(LayerMeasure.ACCURACY,), epochs=20)
    records, _, _ = finish(
        make_runner(
            [Config()],
            experiment=experiment(train_and(lambda t: Probe(probe, on=t[0]), lambda t: Probe(probe, on=t[1])),
                                  tasks=tasks),
        )
    )  # fmt: skip
    ours, theirs = ({r.place: r.value for r in records if r.metric == "linear_probe" and r.task == task}
                    for task in (0, 1))  # fmt: skip
    assert ours.keys() == theirs.keys()
    assert theirs["hidden1"] > 0.8, "seven clusters, and a network with three outputs"
    assert ours["hidden1"] < 0.6, "labels drawn at random"


def test_labels_drawn_per_lane_are_the_lanes_own():
    data = replace(DATA, splits={"train": DATA.splits["train"], "test": DATA.splits["train"]})
    probe = replace(SMALL, measures=(LayerMeasure.VARIANCES,))
    runner = make_runner(
        [Config(seed=s, learning_rate=0.0) for s in range(2)],
        experiment=experiment(
            lambda t: [Switch(t[1]), Train(t[1], 1), Save("end"), *(Probe(probe, on=task) for task in t)],
            tasks=random_labels(data, tasks=2),
        ),
    )
    records, saves, _ = finish(runner)
    for lane in (0, 1):
        features, _ = features_of(runner, saves, lane, "train")
        for task in runner.tasks:
            drawn = np.asarray(runner.changes.draw(task))[lane][data.splits["train"]]
            within, _ = class_variances(features["hidden2"], drawn)
            found = next(
                r.value for r in records
                if r.metric == "class_within" and r.task == task.index and r.place == "hidden2"
                and r.run == f"run-{lane}-0.999"
            )  # fmt: skip
            assert found == pytest.approx(within, rel=1e-5)


def test_wide_layers_rank_is_of_columns_drawn_once(monkeypatch):
    from neoteny.probes import layers

    monkeypatch.setattr(layers, "RANK_COLUMNS", 5)
    probe = replace(SMALL, measures=(LayerMeasure.RANK,), tolerances=(1e-3, 1e-1))
    events = lambda t: [Switch(t[0]), Train(t[0], 5), Probe(probe, on=t[0]), Probe(probe, on=t[0])]  # noqa: E731
    runner = make_runner([Config()], experiment=experiment(events))
    records, _, _ = finish(runner)
    assert values(records, "rank_units") == {"hidden1": 5, "hidden2": 5, "hidden3": 5}
    ranks = [r.value for r in records if r.metric == "numerical_rank"]
    assert ranks[:3] == ranks[3:]
    assert max(ranks) <= 5
    assert all(a >= b for a, b in zip(ranks, [r.value for r in records if r.metric == "numerical_rank_0.1"],
                                      strict=True))  # fmt: skip


def test_samples_bound_both_splits():
    records, _, _ = finish(
        make_runner([Config()], experiment=experiment(train_and(lambda t: Probe(SMALL, on=t[0], samples=20))))
    )
    assert set(values(records, "rank_samples").values()) == {20}


@pytest.mark.parametrize(("probe", "message"), [
    (replace(SMALL, test="validation"), "no split 'validation'"),
    (replace(SMALL, fit="validation"), "no split 'validation'"),
    (replace(SMALL, stages=("hidden9",)), "no stage 'hidden9'; the stages are hidden1"),
])  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_runs(probe, message):
    runner = make_runner([Config()], experiment=experiment(train_and(lambda t: Probe(probe, on=t[0]))))
    with pytest.raises((ValueError, KeyError), match=message):
        runner.check()


def test_chosen_stages_only():
    probe = replace(SMALL, stages=("hidden3", "head"))
    records, _, _ = finish(make_runner([Config()], experiment=experiment(train_and(lambda t: Probe(probe, on=t[0])))))
    assert list(values(records, "linear_probe")) == ["hidden3", "head"]


def test_feature_probes_beside_keep_their_own_split():
    rank = FeatureProbe("rank", effective_rank, Stages.HIDDEN)
    records, _, _ = finish(
        make_runner([Config()], experiment=experiment(train_and(lambda t: Probe(rank, SMALL, on=t[0]))))
    )
    assert {r.split for r in records if r.metric == "rank"} == {"train"}
    assert {r.split for r in records if r.metric == "linear_probe"} == {"test"}


def test_fewer_rows_may_be_fitted_and_all_of_the_other_split_are_measured():
    rows = DATA.splits["train"]
    labels, tested = DATA.targets[rows], DATA.targets[DATA.splits["test"]]
    part = len(rows) // 2
    probe = LayerProbe("layers", (LayerMeasure.ACCURACY, LayerMeasure.RANK), fit_samples=part, **SETTINGS)
    runner = make_runner(
        [Config(seed=0)], experiment=experiment(train_and(lambda t: Probe(probe, on=t[0]), lambda t: Save("end")))
    )
    records, saves, _ = finish(runner)
    (train, _), (test, _) = (features_of(runner, saves, 0, split) for split in ("train", "test"))
    key = runner.measurer._layer_keys(20)[0].minibatches
    for name, value in values(records, "linear_probe").items():
        alone = linear_probe(train[name][:part], labels[:part], test[name], tested, key=key, **SETTINGS)
        assert value == pytest.approx(alone, abs=1.01 / len(tested)), "rounding may move a sample"
    assert set(values(records, "rank_samples").values()) == {len(tested)}
