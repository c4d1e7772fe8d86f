"""Every example runs, in a small size, and gives what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path_factory):
    """Imports an example by file name, as a module that its dataclasses can be looked up in."""
    if "NEOTENY_CACHE" not in os.environ:
        monkeypatch.setenv("NEOTENY_CACHE", str(tmp_path_factory.mktemp("cache")))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_example_has_a_test_here():
    tested = {"own_network", "compare_remedies", "own_study", "read_results", "offline_atari"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_own_network(example):
    result = example("own_network").main(task_count=2, steps=3, seeds=2, probe_steps=2)
    frame = result.frame()
    assert set(result.metrics()) >= {"accuracy", "dead_units", "effective_rank", "plasticity"}
    # Probes saw the example's own stages.
    places = frame.filter(frame["metric"] == "dead_units")["place"].unique().sort().to_list()
    assert places == ["all", "first", "second"]
    assert frame["seed"].n_unique() == 2
    assert frame["task"].n_unique() == 2


def test_compare_remedies_pairs_seeds(example, capsys):
    module = example("compare_remedies")
    # The learner that is put together in the example, twice: equal seeds give equal runs, and no difference.
    learner = module.make_learners(width=4)["shrink and perturb"]
    module.make_learners = lambda width: {"none": learner, "again": learner}
    accuracy = module.main(task_count=2, steps=5, seeds=2)
    assert accuracy["none"].shape == (2,)
    assert np.isfinite(accuracy["none"]).all()
    np.testing.assert_array_equal(accuracy["none"], accuracy["again"])
    assert "+0.0 [+0.0, +0.0]" in capsys.readouterr().out


def test_before_each_task_leaves_the_first_task_alone(example):
    import equinox as eqx
    import jax
    import optax

    from neoteny import learners, networks
    from neoteny.interventions import ShrinkPerturb
    from neoteny.learners import attach

    module = example("compare_remedies")
    plain = learners.supervised(networks.mlp(3, [4], 2), optax.adam(1e-3))
    changed = module.before_each_task(plain, ShrinkPerturb(shrink=0.5, perturb=0.0))
    key = jax.random.key(0)
    state = attach(changed.init(key), changed)

    def weights(state):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(eqx.filter(state.networks, eqx.is_inexact_array))])

    first, second = (changed.switch(state, np.int32(task), None, key) for task in (0, 1))
    np.testing.assert_array_equal(weights(first), weights(state))
    np.testing.assert_allclose(weights(second), 0.5 * weights(state), rtol=1e-6)


def test_own_study_runs_to_its_report_and_is_read(example, tmp_path, capsys):
    study = example("own_study")
    out = tmp_path / "own"
    assert "OWN-1" in study.run(out, "smoke")
    assert (out / "report.html").exists()
    (claim,) = json.loads((out / "claims.json").read_text())
    assert claim["n"] == 2
    # A second call has nothing left to compute, and says the same.
    before = (out / "plan.json").read_bytes()
    study.run(out, "smoke")
    assert (out / "plan.json").read_bytes() == before

    table = example("read_results").main(out)
    assert "8 runs" in capsys.readouterr().out
    assert table.columns == ["between_tasks", "learning_rate", "task", "seeds", "mean", "sd"]
    assert table["seeds"].unique().to_list() == [2]
    # Two settings of each, first and last task.
    assert len(table) == 8


def test_offline_atari(example, tmp_path, capsys):
    pytest.importorskip("ale_py")
    pytest.importorskip("minari")
    module = example("offline_atari")
    sizes = ["--steps", "2200", "--updates", "3"]  # an episode takes 2,048
    data = module.main([str(tmp_path), *sizes])
    told = capsys.readouterr().out
    assert len(data) == 2_200
    assert data.obs.shape == (2_200, 128)
    assert all(f"{objective}: " in told and "effective_rank" in told for objective in ("bve", "q"))
    again = module.main([str(tmp_path), *sizes])  # read, not recorded
    np.testing.assert_array_equal(again.obs, data.obs)
