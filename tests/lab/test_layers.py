"""`neoteny probe`: the right network of the right run, the numbers a run itself records, and one line for mistakes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neoteny
from neoteny.cli import main
from neoteny.interventions import ShrinkPerturb
from neoteny.lab.checkpoint import find
from neoteny.lab.study import Study
from neoteny.learners import supervised
from neoteny.networks import head_per_task, mlp
from neoteny.probes import LayerProbe
from neoteny.tasks import single
from neoteny.training import Intervene, Probe, Save, Switch, Train
from neoteny.training.stored import answering
from training_cases import DATA, EXPERIMENT

PROBE = LayerProbe("layers", epochs=4)


def script(config, tasks):
    (task,) = tasks
    return (
        Switch(task),
        Train(task, 15, record_every=15),
        Probe(PROBE, on=task),
        Save("early"),
        Train(task, 15, record_every=15),
        Intervene(ShrinkPerturb(), on=task),
        Probe(PROBE, on=task),
        Save("late/one", full=True),
    )


LAYERED = replace(
    EXPERIMENT,
    name="layered",
    axes=lambda preset: {"learning_rate": (1e-2, 3e-2), "seed": (0, 1)},
    stream=lambda config: single(DATA),
    script=script,
)
STUDY = Study("layered", "Layers", "Nobody", "https://example.org", "What do they do?", (LAYERED,), (),
              presets={"smoke": "seconds"})  # fmt: skip


def register(patch):
    from neoteny import studies

    patch.setitem(studies.STUDIES, "layered", "a question")
    module = types.ModuleType("neoteny.studies.layered")
    module.STUDY = STUDY
    patch.setitem(sys.modules, "neoteny.studies.layered", module)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layered") / "run:1"  # a colon in the directory's own name
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        assert main(["run", "layered", "--preset", "smoke", "--out", str(folder)]) == 0
        yield folder


def runs_of(directory):
    return list(json.loads((directory / "plan.json").read_text())["runs"])


@pytest.fixture(scope="module")
def records(directory):
    return neoteny.load(directory)


@pytest.mark.parametrize(("save", "event"), [("early", 2), ("late/one", 6), (None, 6)])
@pytest.mark.parametrize("lane", [0, 3])
def test_a_checkpoint_measures_as_the_run_itself_did(directory, records, tmp_path, capsys, lane, save, event):
    run = runs_of(directory)[lane]
    text = f"{directory}:{run}" + (f":{save}" if save else "")
    seen = {}
    from neoteny.report import layers as page

    with pytest.MonkeyPatch.context() as patch:
        write = page.write_layers
        patch.setattr(page, "write_layers", lambda f, table, s: seen.update(table=table) or write(f, table, s))
        assert main(["probe", text, "--epochs", "4", "--out", str(tmp_path / "page")]) == 0
    rows = records.filter((records["run"] == run) & (records["event"] == event))
    recorded = {(row["metric"], row["place"]): row["value"] for row in rows.iter_rows(named=True)}
    measured = {(metric, place): value for metric, place, value in seen["table"].measurements()}
    assert measured.keys() == recorded.keys()
    # Another size of pack is another program, and may round otherwise.
    for place, value in measured.items():
        tolerance = 1.5 / 32 if place[0] in ("linear_probe", "final_accuracy") else 1e-4
        assert value == pytest.approx(recorded[place], rel=1e-4, abs=tolerance), place
    shown = capsys.readouterr().out
    assert "hidden1" in shown
    assert f"page: {tmp_path / 'page' / 'report.html'}" in shown


def test_the_two_saves_differ(records):
    values = records.filter(records["metric"] == "class_within").group_by("event").agg(neoteny_mean())["value"]
    assert len(set(values)) == 2


def neoteny_mean():
    import polars as pl

    return pl.col("value").mean()


def test_the_page_holds_table_figures_and_what_was_measured(directory, capsys):
    run = runs_of(directory)[0]
    assert main(["probe", f"{directory}:{run[:8]}:early", "--epochs", "1"]) == 0
    folder = directory / "probes" / f"{run}-early-epochs-1"
    text = (folder / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    for needed in ("hidden1", "hidden2", "linear probe", "Similarity of stages", f"{run}:early", "after 15 updates",
                   "neoteny probe", "--epochs 1", "small"):  # fmt: skip
        assert needed in text
    assert "None" not in re.sub(r"data:[^\"]*", "", text)
    for name in ("linear_probe", "layers", "cka"):
        for kind in ("png", "svg", "pdf"):
            assert (folder / "figures" / f"{name}.{kind}").stat().st_size > 1000
    assert neoteny.load(directory).height > 0, "the directory is still a result directory"
    assert main(["status", str(directory)]) == 0


def test_another_data_set_is_probed_without_a_tunnel(directory, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, size in (("other", 12), ("wrong", 5)):
        np.savez(tmp_path / f"{name}.npz", x_train=rng.integers(0, 255, (60, size), dtype=np.uint8),
                 y_train=np.arange(60) % 6, x_test=rng.integers(0, 255, (30, size), dtype=np.uint8),
                 y_test=np.arange(30) % 6)  # fmt: skip
    checkpoint = f"{directory}:{runs_of(directory)[0]}:early"
    out = tmp_path / "page"
    assert main(["probe", checkpoint, "--data", f"npz:{tmp_path}/other.npz", "--epochs", "2", "--out", str(out)]) == 0
    text = (out / "report.html").read_text()
    assert "tunnel" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    assert "30 test rows" in text
    capsys.readouterr()
    assert main(["probe", checkpoint, "--data", f"npz:{tmp_path}/wrong.npz"]) == 2
    assert "give a data set of that shape" in capsys.readouterr().err


def test_mistakes_are_one_line_and_nothing_is_written(directory, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    first, *others = runs_of(directory)
    for arguments, message in (
        (["probe"], "`neoteny probe` needs a checkpoint: neoteny probe DIR:RUN"),
        (["probe", "--samples", "3"], "`neoteny probe` needs a checkpoint"),
        (["probe", "nowhere:abc"], "nowhere/plan.json is not there"),
        (["probe", str(directory)], f"names no run; give {directory}:RUN or {directory}:RUN:SAVE. The runs are {first} "
                                    "(layered; saves: early, late/one)"),
        (["probe", f"{directory}:zzz"], "has no run 'zzz'"),
        (["probe", f"{directory}:{first}:nope"], f"run {first} has no save 'nope'; it has early, late/one"),
        (["probe", f"{directory}:{first}", "--smaples", "3"], "did you mean --samples?"),
        (["probe", f"{directory}:{first}", "--samples", "0"], "--samples must be at least 1, not 0"),
        (["probe", f"{directory}:{first}", "--task", "1"], "--task must be from 0 to 0, not 1"),
        (["probe", f"{directory}:{first}", "--pool", "max"], "--pool takes one of flat, gap"),
        (["probe", f"{directory}:{first}", "--threshold", "0"], "threshold is 0.0; give a positive share"),
        (["probe", f"{directory}:{first}", "--epochs", "0"], "epochs and a batch_size of at least 1"),
        (["probe", f"{directory}:{first}", "--data", "nosuch"], "no data set called 'nosuch'"),
        (["probe", f"{directory}:{first}", "--data", "digits", "--task", "0"], "either --data or --task"),
    ):  # fmt: skip
        before = sorted(directory.rglob("*"))
        assert main(arguments) == 2, arguments
        shown = capfd.readouterr()
        assert shown.out == ""
        assert re.fullmatch(r"neoteny: [^\n]+\n", shown.err), shown.err
        assert message in shown.err
        assert sorted(directory.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []
    assert others, "several runs were listed"


def test_a_prefix_of_one_run_is_enough_and_of_several_is_not(directory, tmp_path):
    from neoteny.errors import UsageError

    runs = runs_of(directory)
    assert find(f"{directory}:{runs[2][:7]}").run == runs[2]
    assert find(f"{directory}:{runs[2]}").save is None
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    with pytest.raises(UsageError, match="names no run"):
        find(f"{copy}:")


def test_a_run_without_a_commit_says_how_to_go_on(stopped, capfd):
    content = json.loads((stopped / "plan.json").read_text())
    waiting = content["packs"][-1]["runs"][0]
    assert main(["probe", f"{stopped}:{waiting}"]) == 2
    assert f"run {waiting} has no commit yet; go on with: neoteny resume {stopped}" in capfd.readouterr().err


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    assert "--threshold" in capsys.readouterr().out


def test_a_network_with_a_head_for_each_task_answers_with_that_of_the_task_measured_on():
    learner = supervised(head_per_task(mlp(4, [3], 2), [2, 2]), optax.sgd(0.1))
    state = eqx.filter_vmap(learner.init)(jax.random.split(jax.random.key(0), 1))
    inputs = jnp.ones((5, 4))

    def outputs(state):
        return eqx.filter_vmap(lambda network: network(inputs).output)(state.networks["online"])

    first, second = answering(state, 0), answering(state, 1)
    assert state.networks["online"].stages[-1].task.value.tolist() == [0]
    assert second.networks["online"].stages[-1].task.value.tolist() == [1]
    np.testing.assert_array_equal(outputs(first), outputs(state))
    assert not np.allclose(outputs(first), outputs(second))
    np.testing.assert_array_equal(outputs(answering(second, 0)), outputs(state))
