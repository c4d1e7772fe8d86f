"""Forks, and saves that are read later: branches share every draw, leave the parent alone, and are resumed exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.interventions import Intervention, Reset, ShrinkPerturb
from neoteny.interventions.intervention import EMPTY
from neoteny.lab import store
from neoteny.lab.store import PackStore
from neoteny.learners.learner import attach
from neoteny.networks.network import Chain, PerExample, split_trainable
from neoteny.probes import NetworkProbe, ViewProbe, weight_norm
from neoteny.tasks import random_labels
from neoteny.training import Evaluate, Fork, Intervene, Probe, Reached, Save, Switch, Train
from neoteny.training import runner as runner_module
from neoteny.training.runner import Cursor
from training_cases import DATA, EXPERIMENT, Config, finish, make_runner, same

CONFIGS = [Config(seed=seed) for seed in range(4)]


@dataclass(frozen=True)
class BackTo(Intervention):
    """The networks are again what they were when they were saved."""

    source: str

    @property
    def saves(self):
        return (self.source,)

    def __call__(self, state, key, context=EMPTY):
        return eqx.tree_at(lambda s: s.networks, state, dict(context.require_saved(self.source)))


@dataclass(frozen=True)
class Normalise(Intervention):
    """Puts a trained normalisation at the end of a stage: another structure."""

    stage: str = "hidden2"

    def __call__(self, state, key, context=EMPTY):
        network = state.networks["online"]
        old = network.stage(self.stage)
        new = Chain(old, PerExample(eqx.nn.LayerNorm(8)))
        fresh = state.require_origin().optimizers["online"].init(split_trainable(new)[0])
        optimizer = {"online": {**state.optimizer["online"], self.stage: fresh}}
        networks = {"online": network.replace(**{self.stage: new})}
        return type(state)(networks, optimizer, state.memory, state.followers, state.origin)


def squared_distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(((a - b) ** 2).sum() for a, b in pairs)


CHANGE = NetworkProbe(
    "change", lambda network, saved: {"": float(squared_distance(network, saved["start"]["online"]))}, ("start",)
)
TRACED_CHANGE = ViewProbe(
    "traced_change",
    lambda view, batch, key, saved: {"": squared_distance(view.network, saved["start"]["online"])},
    ("start",),
)


def runner_of(events, configs=CONFIGS, tasks=1):
    experiment = replace(
        EXPERIMENT,
        script=lambda config, given: tuple(events(given)),
        stream=lambda config: random_labels(DATA, tasks=tasks),
    )
    return make_runner(configs, experiment=experiment)


def without(records, *fields):
    return [record._replace(**{name: None for name in fields}) for record in records]


def before(task):
    return (Switch(task), Train(task, 10, record_every=5), Save("start"))


def after(task):
    return (Train(task, 7, record_every=5), Evaluate(task, "test"), Probe(weight_norm, CHANGE, on=task, samples=16))


@pytest.fixture(scope="module")
def plain():
    runner = runner_of(lambda tasks: (*before(tasks[0]), *after(tasks[0])))
    return runner, *finish(runner)


def test_an_idle_branch_and_the_parent_do_what_the_run_does_without_a_fork(plain):
    whole, records, saves, _ = plain

    def events(tasks):
        (task,) = tasks
        branches = {"control": (), "reset": (Intervene(Reset(stages=("head",))), Save("at"))}
        return (*before(task), Fork(branches, then=after(task)), *after(task))

    runner = runner_of(events)
    found, found_saves, _ = finish(runner)
    same(runner.here.arrays(), whole.here.arrays())
    same(found_saves["start"], saves["start"])
    assert found_saves.keys() == {"start", "reset/at"}
    first = len(records) - len([r for r in records if r.event >= 3])
    expected = without(records, "branch", "event")
    parent = [record for record in found if not record.branch]
    control = [record for record in found if record.branch == "control"]
    reset = [record for record in found if record.branch == "reset"]
    assert without(parent, "branch", "event") == expected
    assert without(control, "branch", "event") == expected[first:]
    assert len(reset) == len(control)
    assert [r.value for r in reset] != [r.value for r in control]
    assert len({record.event for record in found if record.metric == "accuracy"}) == 3
    # All that was trained counts as spent: two branches, and the run itself.
    per_update = runner.tracer.update_flops(runner.tasks[0], runner.state.learner)
    np.testing.assert_allclose(runner.training_spent, (10 + 3 * 7) * per_update)
    np.testing.assert_allclose(runner.ledger.train, (10 + 7) * per_update)
    assert runner.plan() == (31, 14)
    assert runner.training_flops() == pytest.approx(31 * per_update)


def test_interventions_have_the_same_draws_in_every_branch():
    def events(tasks):
        (task,) = tasks
        perturb = Intervene(ShrinkPerturb(), on=task)
        return (
            *before(task),
            perturb,
            Fork({"one": (perturb, Save("at")), "two": (Train(task, 3), perturb, Save("at")), "none": ()}),
            Fork({"later": (perturb, Save("at"))}),
            perturb,
            Save("at"),
        )

    _, saves, _ = finish(runner_of(events))
    same(saves["one/at"], saves["later/at"])
    same(saves["one/at"], saves["at"])
    path = next(iter(saves["at"]))
    # The branch that trained before had the same noise on other weights.
    assert (saves["two/at"][path] != saves["at"][path]).any()


@pytest.mark.parametrize("inside", [False, True])
def test_saved_networks_come_back_after_training_and_are_compared_with(inside):
    def events(tasks):
        (task,) = tasks
        body = (
            Save("start"),
            Train(task, 6),
            Save("trained"),
            Probe(CHANGE, TRACED_CHANGE, on=task, samples=8),
            Intervene(BackTo("start")),
            Save("back"),
            Probe(CHANGE, TRACED_CHANGE, on=task, samples=8),
        )
        first = (Switch(task), Train(task, 4))
        return (*first, Fork({"there": body})) if inside else (*first, *body)

    records, saves, _ = finish(runner_of(events))
    prefix = "there/" if inside else ""
    start, trained = saves[f"{prefix}start"], saves[f"{prefix}trained"]
    same(start, saves[f"{prefix}back"])
    expected = sum(((trained[path] - start[path]) ** 2).reshape(4, -1).sum(1) for path in start)
    assert np.all(np.asarray(expected) > 0)
    for metric in ("change", "traced_change"):
        values = [record.value for record in records if record.metric == metric]
        np.testing.assert_allclose(values[:4], expected, rtol=1e-5)
        assert values[4:] == [0.0] * 4


def test_a_save_that_nobody_reads_is_not_kept():
    def events(tasks):
        (task,) = tasks
        return (Save("start"), Save("never"), *before(task)[:2], Probe(CHANGE, on=task, samples=8), Train(task, 3))

    runner = runner_of(events)
    banks = {tick.event: set(runner.here.bank) for tick in runner.ticks()}
    assert banks[0] == banks[1] == banks[3] == {"start"}
    assert banks[4] == set()


def everything(tasks):
    """Two tasks; forks with structure changes, a fork in a fork, saves read across them, held lanes."""
    first, second = tasks
    until = Reached("accuracy", 0.7, window=2)
    inner = Fork({"a": (Train(first, 4), Save("end")), "b": (Intervene(BackTo("start")), Train(first, 4))})
    return (
        Switch(first),
        Train(first, 5),
        Save("start"),
        Train(first, 5),
        Fork(
            {
                "control": (Train(first, 6, record_every=4), inner),
                "norm": (Intervene(Normalise()), Save("full", full=True), Train(first, 6, record_every=4)),
                "next": (Switch(second), Train(second, 12, until=until, record_every=5)),
            },
            then=(Probe(weight_norm, on=first, samples=16), Evaluate(first, "test"), Save("end")),
        ),
        Switch(second),
        Train(second, 8),
        Probe(CHANGE, on=second, samples=8),
        Save("end"),
    )


def test_resume_from_every_tick_inside_forks(monkeypatch):
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: 4)
    whole = runner_of(everything, tasks=2)
    whole.check()
    records, saves, ticks = finish(whole)
    assert {r.branch for r in records} == {"", "control", "control/a", "control/b", "norm", "next"}
    assert "control/a/end" in saves
    depths = set()
    for stop in range(1, len(ticks) + 1, 3):
        first = runner_of(everything, tasks=2)
        kept, kept_saves, source = [], {}, first.ticks()
        for _ in range(stop):
            tick = next(source)
            kept += tick.records
            kept_saves |= tick.saves
        depths.add(len(first._standings))
        stored = store._npz_arrays(store._npz_bytes(first.arrays()))
        second = runner_of(everything, tasks=2)
        second.restore(first.cursor, stored)
        same(second.arrays(), first.arrays())
        rest, rest_saves, _ = finish(second)
        assert kept + rest == records, f"stopped after tick {stop}"
        same(second.arrays(), whole.arrays())
        found = kept_saves | rest_saves
        assert found.keys() == saves.keys()
        for name in saves:
            same(saves[name], found[name])
    assert depths == {1, 2, 3}


def test_a_change_of_structure_stays_in_its_branch_and_saves_are_read_by_name():
    runner = runner_of(everything, tasks=2)
    _, saves, _ = finish(runner)
    full = runner.learner_from("norm/full", saves["norm/full"])
    assert isinstance(full.networks["online"].stage("hidden2"), Chain)
    assert set(full.optimizer["online"]) == {"hidden1", "hidden2", "head"}
    attach(full, runner.programs.learner(runner.tracer.values))
    changed, plain = runner.networks_from("norm/end", saves["norm/end"]), runner.networks_from("end", saves["end"])
    assert len(jax.tree.leaves(changed)) == len(jax.tree.leaves(plain)) + 2
    x = jnp.asarray(DATA.inputs[:5] / 255.0, jnp.float32)
    assert jax.vmap(lambda n: n(x).output)(changed).shape == (4, 5, 3)
    with pytest.raises(KeyError, match="norm/end"):
        runner.networks_from("nowhere", {})
    with pytest.raises(ValueError, match="full=True"):
        runner.learner_from("end", saves["end"])


def test_a_dead_lane_lives_on_as_a_network_through_a_change_of_structure():
    def events(tasks):
        (task,) = tasks
        return (
            Switch(task),
            Train(task, 10, record_every=2),
            Intervene(Normalise()),
            Train(task, 6, record_every=2),
            Evaluate(task, "train"),
        )

    configs = [Config(seed=s, learning_rate=rate) for s, rate in enumerate((0.01, 1e38, 0.01, 0.01))]
    runner = runner_of(events, configs)
    records, _, _ = finish(runner)
    assert runner.alive.tolist() == [True, False, True, True]
    healthy, _, _ = finish(runner_of(events, [replace(c, learning_rate=0.01) for c in configs]))
    dead = configs[1].seed
    others = [r for r in records if r.run != f"run-{dead}-0.999"]
    assert others == [r for r in healthy if r.run != f"run-{dead}-0.999"]
    scores = [r.value for r in records if r.run == f"run-{dead}-0.999" and r.metric == "accuracy"]
    assert len(scores) == 1
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (lambda t: (Save("a"), Save("a")), "name of its own"),
        (lambda t: (Save("b/a"), Fork({"b": (Save("a"),)})), "name of its own"),
        (lambda t: (Intervene(BackTo("start"), on=t),), "reads the save 'start'"),
        (lambda t: (Fork({"b": (Save("start"),)}), Intervene(BackTo("start"), on=t)), "there: none"),
        (lambda t: (Fork({"b": (Train(t, 3),)}),), "needs Switch"),
    ],
)
def test_scripts_that_cannot_be_are_refused(events, message):
    with pytest.raises(ValueError, match=message):
        runner_of(lambda tasks: events(tasks[0])).check()


@pytest.mark.parametrize(
    ("branches", "error"), [({}, ValueError), ({"a/b": ()}, ValueError), ({"": ()}, ValueError), ({"a": []}, TypeError)]
)
def test_forks_that_cannot_be_are_refused(branches, error):
    with pytest.raises(error):
        Fork(branches)


def test_branches_share_the_programs_of_the_run():
    def events(forks):
        def make(tasks):
            (task,) = tasks
            branches = {f"b{i}": (Train(task, 3),) for i in range(forks)}
            return (Switch(task), Train(task, 3), Evaluate(task), Fork(branches, then=(Evaluate(task),)))

        return make

    def compiled(forks):
        runner = runner_of(events(forks))
        jax.clear_caches()
        return sum(tick.compilations for tick in finish(runner)[2])

    assert compiled(4) == compiled(1)


def test_a_commit_in_a_branch_goes_through_the_store(tmp_path):
    runner = runner_of(everything, tasks=2)
    pack = PackStore(tmp_path)
    for tick in runner.ticks():
        if len(runner._standings) == 3 and tick.kind == "train":
            break
    manifest = pack.commit(
        store.Manifest("p", 0, "running", (0, 0)),
        status="running",
        cursor=(runner.cursor.event, runner.cursor.done),
        state=runner.arrays(),
        records=[],
        timings=[],
        saves={"control/a/end": {"x": np.ones(2)}},
    )
    assert pack.saves(manifest) == ("control/a/end",)
    again = runner_of(everything, tasks=2)
    again.restore(Cursor(*manifest.cursor), pack.state(manifest))
    same(again.arrays(), runner.arrays())
