"""`neoteny.run`: a person's own network and arrays, in memory and in a directory."""

from __future__ import annotations

import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import optax
import polars as pl
import pytest

import neoteny
from neoteny import learners, networks, probes, tasks
from neoteny.errors import UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (120, 4, 4), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 120)


def my_net(key):
    one, two = jax.random.split(key)
    hidden = eqx.nn.Sequential(
        [eqx.nn.Lambda(lambda x: x.ravel()), eqx.nn.Linear(16, 8, key=one), eqx.nn.Lambda(jax.nn.relu)]
    )
    return networks.Network(hidden=hidden, head=eqx.nn.Linear(8, 3, key=two))


def feature_mean(features):
    return features.mean()


def run(out=None, seeds=3, rate=1e-2, **more):
    stream = tasks.permuted(IMAGES, LABELS, tasks=2)
    learner = learners.supervised(my_net, optax.adam(rate))
    measured = [probes.effective_rank, probes.dead_units, feature_mean]
    return neoteny.run(learner, stream, seeds=seeds, steps=20, batch_size=16, probes=measured, out=out, **more)


@pytest.fixture(scope="module")
def result():
    return run()


def test_records_of_every_seed_task_and_probe(result):
    frame = result.frame()
    assert set(frame["seed"]) == {0, 1, 2}
    assert {"accuracy", "loss", "train_loss", "effective_rank", "dead_units", "feature_mean"} <= set(result.metrics())
    counts = frame.filter(pl.col("metric") == "accuracy").group_by("seed").len()
    assert counts["len"].to_list() == [2, 2, 2]
    assert frame.filter(pl.col("metric") == "accuracy")["value"].n_unique() > 1


def test_a_network_comes_back_trained_and_differs_by_seed(result):
    network = result.network(1)
    output = network(IMAGES[:5, ..., None].astype(np.float32) / 255).output
    assert output.shape == (5, 3)
    weights = [np.asarray(result.network(seed).stages[1].module.weight) for seed in (0, 1)]
    assert not np.array_equal(*weights)
    with pytest.raises(KeyError, match="seeds are 0, 1, 2"):
        result.network(7)


def test_plots_and_the_metrics_there_are(result):
    for metric in ("accuracy", "train_loss", "dead_units"):
        assert result.plot(metric).axes
    with pytest.raises(KeyError, match="accuracy"):
        result.plot("acuracy")


def test_a_directory_holds_the_same_and_goes_on(result, tmp_path):
    out = tmp_path / "kept"
    kept = run(out)
    assert kept.frame().equals(result.frame())
    for one, other in zip(jax.tree.leaves(kept.network(2)), jax.tree.leaves(result.network(2)), strict=True):
        np.testing.assert_array_equal(one, other)
    again = run(out)
    assert again.frame().equals(kept.frame())
    more = run(out, seeds=5)
    assert set(more.frame()["seed"]) == set(range(5))
    assert more.frame().filter(pl.col("seed") < 3).equals(kept.frame())
    with pytest.raises(UsageError, match="another"):
        run(out, rate=5e-3)


def test_seen_tasks_are_scored_again(result):
    frame = run(seen_tasks=True, evaluate=("train", "test")).frame()
    scored = frame.filter((pl.col("metric") == "accuracy") & (pl.col("seed") == 0))
    assert sorted(zip(scored["task"], scored["split"], strict=True)) == sorted(
        [(0, "train"), (0, "test"), (0, "train"), (0, "test"), (1, "train"), (1, "test")]
    )


def test_mistakes_are_told_in_one_line():
    learner = learners.supervised(my_net, optax.adam(1e-3))
    with pytest.raises(UsageError, match="take"):
        neoteny.run(learner, tasks.permuted(IMAGES, LABELS))
    with pytest.raises(TypeError, match="supervised"):
        neoteny.run(my_net, tasks.permuted(IMAGES, LABELS, tasks=1))
    with pytest.raises(UsageError, match="split"):
        neoteny.run(learner, tasks.permuted(IMAGES, LABELS, tasks=1), evaluate=("valid",))
    with pytest.raises(UsageError, match="seed"):
        neoteny.run(learner, tasks.permuted(IMAGES, LABELS, tasks=1), seeds=())
    with pytest.raises(TypeError, match="lambda key"):
        learners.supervised(my_net(jax.random.key(0)), optax.adam(1e-3))
    with pytest.raises(TypeError, match="name"):
        neoteny.run(learner, tasks.permuted(IMAGES, LABELS, tasks=1), probes=[lambda features: 0.0])


def test_importing_neoteny_imports_no_extra_and_no_jax():
    code = (
        "import sys, neoteny; heavy = {'jax', 'torch', 'mlxtend', 'sklearn', 'PIL', 'datasets', 'matplotlib', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    code = (
        "import sys, neoteny; neoteny.run, neoteny.tasks, neoteny.probes, neoteny.networks, neoteny.learners;"
        "print(sorted({'torch', 'mlxtend', 'sklearn', 'PIL', 'datasets'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
