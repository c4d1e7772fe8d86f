"""Environments as tasks of a run: acting inside the chunk, replay that is stored by its new rows, played episodes."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from device_loop import Corridor
from neoteny.interventions import Inject, Redo, Reset, ShrinkPerturb
from neoteny.lab.store import Manifest, PackStore, StoreError
from neoteny.learners import supervised
from neoteny.learners.dqn import dqn
from neoteny.networks import mlp
from neoteny.probes import effective_rank, gradient_norm, weight_norm
from neoteny.tasks.environments import environments
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.training import Evaluate, Fork, Intervene, Probe, Reached, Save, Switch, Train
from neoteny.training import runner as runner_module
from neoteny.training.runner import Cursor
from training_cases import EXPERIMENT, Config, finish, make_runner, same

CONFIGS = [Config(seed=seed) for seed in range(3)]
SOURCE = DeviceExperience(
    batch_size=8, envs=2, period=2, learning_starts=12, capacity=48, stack=2, epsilon=LinearEpsilon(1.0, 0.2, 50)
)
"""24 slots of two environments: six to begin with and two an update, so the ring is full after nine updates."""


def learner(config):
    return dqn(mlp(4, [8], 3), optax.adam(config.learning_rate), target_period=5)


def script(tasks):
    first, second = tasks
    return (
        Switch(first),
        Train(first, 12, record_every=4),
        Evaluate(first, samples=3),
        Probe(effective_rank, gradient_norm, weight_norm, on=first, samples=10),
        Save("start"),
        Intervene(ShrinkPerturb()),
        Intervene(Redo(tau=0.5), on=first, samples=16),
        Fork(
            {"idle": (), "reset": (Intervene(Reset(stages=("head",))),)},
            then=(Train(first, 5), Evaluate(first, samples=2)),
        ),
        Train(first, 5),
        Switch(second),
        Intervene(ShrinkPerturb()),
        Train(second, 6, record_every=4),
        Evaluate(first, samples=2),
    )


def runner_of(events=script, configs=CONFIGS, make=learner, source=SOURCE, limits=(5, 7)):
    experiment = replace(
        EXPERIMENT,
        script=lambda config, tasks: tuple(events(tasks)),
        learner=make,
        stream=lambda config: environments([Corridor(limit) for limit in limits]),
        source=lambda config: source,
    )
    return make_runner(configs, experiment=experiment)


@pytest.fixture(scope="module")
def whole():
    runner = runner_of()
    runner.check()
    return runner, *finish(runner)


def test_the_clock_and_the_replay_follow_the_environments(whole):
    runner, records, _, _ = whole
    # Twelve steps to fill the replay of each task, four an update.
    steps = 12 + 17 * 4 + 12 + 6 * 4
    assert int(runner.clock.env_step) == steps
    assert records[-1].env_steps == steps
    assert {r.env_steps for r in records if r.event == 1} == {12 + n * 4 for n in (4, 8, 12)}
    ring = runner.state.source.replay.ring
    assert np.asarray(ring.written).tolist() == [18] * 3
    assert np.asarray(ring.rows.frame)[:, :18, :, 0].tolist() == [[[t % 7] * 2 for t in range(18)]] * 3
    numbers = np.asarray(ring.rows.frame)[..., 1]
    assert len({lane.tobytes() for lane in numbers}) == 3, "every lane has episodes of its own"


def test_a_target_is_copied_by_the_shared_clock():
    runner = runner_of(
        lambda tasks: (Switch(tasks[0]), Train(tasks[0], 10), Save("ten"), Train(tasks[0], 1), Save("eleven"))
    )
    _, saves, _ = finish(runner)
    for name, alike in (("ten", True), ("eleven", False)):
        path = next(p for p in saves[name] if "online" in p and p.endswith("weight"))
        target = saves[name][path.replace("online", "target")]
        assert np.array_equal(saves[name][path], target) == alike


@pytest.mark.parametrize("length", [1, 3])
def test_bits_do_not_depend_on_the_chunks(whole, monkeypatch, length):
    runner, records, _, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: length)
    cut = runner_of()
    found, _, _ = finish(cut)
    assert found == records
    same(cut.arrays(), runner.arrays())


def test_commits_hold_new_rows_only_and_every_one_can_be_resumed(whole, monkeypatch, tmp_path):
    runner, records, _, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: 3)
    pack = PackStore(tmp_path)
    first, manifest, kept, starts = runner_of(), Manifest("p", 0, "running", (0, 0)), [], {}
    for number, tick in enumerate(first.ticks()):
        kept += tick.records
        manifest = pack.commit(
            manifest,
            status="running",
            cursor=(first.cursor.event, first.cursor.done),
            state=first.arrays(rings=False),
            rings=first.rings(),
            records=[],
            timings=[],
            saves={},
        )
        assert pack.manifest() == manifest
        pack.verify(manifest)
        same(pack.state(manifest), first.arrays())
        for block in manifest.blocks:
            starts.setdefault((block.ring, block.since), set()).add((block.start, block.stop))
        if number % 4 == 2:
            second = runner_of()
            second.restore(Cursor(*manifest.cursor), pack.state(manifest))
            rest, _, _ = finish(second)
            assert kept + rest == records, f"after tick {number}"
            same(second.arrays(), runner.arrays())
    assert kept == records
    # The run's two rings and those of two branches; a row is written once in each.
    assert len(starts) == 4
    for blocks in starts.values():
        rows = [row for start, stop in blocks for row in range(start, stop)]
        assert len(rows) == len(set(rows)) > 0
    stored = {block.file.path for block in manifest.blocks}
    assert stored == {f"blocks/{path.name}" for path in (tmp_path / "blocks").iterdir()}


def test_an_agent_killed_before_or_after_an_injection_goes_on_bit_for_bit():
    """Online, target, their pairs, moments, replay and environments are all in what is stored."""

    def decaying(config):
        optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(1e-2, centered=True, momentum=0.9))
        return dqn(mlp(4, [8, 6], 3), optimizer, target_period=3, before=optax.clip_by_global_norm(0.5))

    def events(tasks):
        first, _ = tasks
        return (
            Switch(first), Train(first, 7), Intervene(Inject("hidden2")), Train(first, 5),
            Fork({"idle": (), "again": (Intervene(Inject("hidden1")),)}, then=(Train(first, 4),)),
            Train(first, 4), Save("end", full=True),
        )  # fmt: skip

    uninterrupted = runner_of(events, make=decaying)
    uninterrupted.check()
    records, saves, ticks = finish(uninterrupted)
    stops = [n for n, tick in enumerate(ticks) if tick.kind == "intervene"]
    assert len(stops) == 2
    for stop in (stops[0], stops[0] + 1, stops[1] + 1):
        first = runner_of(events, make=decaying)
        source, kept = first.ticks(), []
        for _ in range(stop):
            kept += next(source).records
        second = runner_of(events, make=decaying)
        second.restore(first.cursor, first.arrays())
        rest, saves_rest, _ = finish(second)
        assert kept + rest == records
        same(saves["end"], saves_rest["end"])


def test_a_damaged_block_is_named(tmp_path):
    runner = runner_of(lambda tasks: (Switch(tasks[0]), Train(tasks[0], 3)))
    finish(runner)
    pack = PackStore(tmp_path)
    manifest = pack.commit(
        Manifest("p", 0, "running", (0, 0)),
        status="running",
        cursor=(1, 0),
        state=runner.arrays(rings=False),
        rings=runner.rings(),
        records=[],
        timings=[],
        saves={},
    )
    path = tmp_path / manifest.blocks[0].file.path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=path.name):
        pack.verify(manifest)


def test_looking_changes_nothing():
    def bare(tasks):
        return (Switch(tasks[0]), Train(tasks[0], 6), Train(tasks[0], 6))

    def watched(tasks):
        task = tasks[0]
        looks = (
            Evaluate(task, samples=2),
            Evaluate(tasks[1], samples=2),
            Probe(effective_rank, gradient_norm, on=task, samples=9),
        )
        return (Switch(task), Train(task, 6), *looks, Train(task, 6), *looks)

    one, other = runner_of(bare), runner_of(watched)
    finish(one)
    finish(other)
    ledgers = ("ledger.forward", "ledger.probe")
    same(
        {n: a for n, a in one.arrays().items() if n not in ledgers},
        {n: a for n, a in other.arrays().items() if n not in ledgers},
    )


def test_an_evaluation_plays_whole_episodes():
    def always_one(config):
        made = learner(config)
        return made._replace(act=lambda state, observations, key: jnp.ones(observations.shape[0], jnp.int32))

    def events(tasks):
        return (Switch(tasks[0]), Evaluate(tasks[0], samples=4), Evaluate(tasks[1], samples=4))

    records, _, _ = finish(runner_of(events, make=always_one))
    values = {(r.task, r.metric): r.value for r in records}
    assert values[0, "return"] == values[0, "length"] == 5
    assert values[1, "return"] == values[1, "length"] == 7
    assert {r.split for r in records} == {""}


def test_acting_is_counted():
    runner = runner_of(lambda tasks: (Switch(tasks[0]), Train(tasks[0], 6), Evaluate(tasks[0], samples=4)))
    finish(runner)
    task, shapes = runner.tasks[0], runner.state.learner
    act = runner.tracer.acting_flops(task, shapes)
    assert 2 * (4 * 8 + 8 * 3) <= act < 4 * (4 * 8 + 8 * 3)
    np.testing.assert_allclose(runner.ledger.train, 6 * runner.tracer.update_flops(task, shapes) + 36 * act)
    np.testing.assert_allclose(runner.ledger.forward, 4 * 5 * act)


def test_an_idle_branch_has_the_experience_of_the_run(whole):
    _, records, _, _ = whole

    def of(branch):
        return [(r.run, r.metric, r.value, r.env_steps) for r in records if r.branch == branch]

    idle = of("idle")
    assert len(idle) > 0
    after = [(r.run, r.metric, r.value, r.env_steps) for r in records if not r.branch and r.task == 0 and r.event > 7]
    trained = [row for row in idle if row[1].startswith("train_")]
    assert trained == [row for row in after if row[1].startswith("train_")]
    assert of("reset") != idle


def test_an_agent_alone_is_the_agent_in_company_up_to_rounding(whole):
    _, records, _, _ = whole
    found, _, _ = finish(runner_of(configs=CONFIGS[1:2]))
    mine = [r for r in records if r.run == found[0].run]
    assert [r._replace(value=0.0) for r in found] == [r._replace(value=0.0) for r in mine]
    np.testing.assert_allclose([r.value for r in found], [r.value for r in mine], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("threshold", "updates"), [(1e9, 3), (-1.0, 9)])
def test_an_agent_alone_is_held_as_in_company(threshold, updates):
    until = Reached("loss", threshold, window=3, falling=True)
    events = lambda tasks: (Switch(tasks[0]), Train(tasks[0], 9, until=until), Train(tasks[0], 3))  # noqa: E731
    for configs in (CONFIGS, CONFIGS[:1]):
        runner = runner_of(events, configs=configs)
        records, _, _ = finish(runner)
        assert [r.value for r in records if r.metric == "updates_taken"] == [updates] * len(configs)
        assert int(runner.clock.update) == updates + 3


def test_held_lanes_go_on_acting():
    until = Reached("loss", 5.0, window=3, falling=True)
    events = lambda tasks: (Switch(tasks[0]), Train(tasks[0], 9, until=until), Train(tasks[0], 3))  # noqa: E731
    runner = runner_of(events)
    records, _, _ = finish(runner)
    taken = [r.value for r in records if r.metric == "updates_taken"]
    assert len(taken) == 3
    assert len({int(w) for w in np.asarray(runner.state.source.replay.ring.written)}) == 1
    assert int(runner.clock.env_step) == 12 + 4 * int(runner.clock.update)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (lambda a, b: (Switch(a), Train(a, 1), Evaluate(a)), "samples="),
        (lambda a, b: (Switch(a), Train(a, 1), Probe(effective_rank, on=a)), "samples="),
        (lambda a, b: (Switch(a), Probe(effective_rank, on=a, samples=4)), "only after Train"),
        (lambda a, b: (Switch(a), Train(a, 1), Probe(effective_rank, on=b, samples=4)), "only after Train"),
        (lambda a, b: (Switch(a), Train(a, 1), Switch(b), Intervene(Redo(), on=b)), "only after Train"),
        (lambda a, b: (Switch(a), Intervene(Redo())), "looks at data"),
        (lambda a, b: (Train(a, 1),), "needs Switch"),
    ],
)
def test_what_an_environment_cannot_do_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        runner_of(lambda tasks: events(*tasks)).check()


def test_learners_that_do_not_fit_are_refused():
    def silent(config):
        return supervised(mlp(4, [8], 3), optax.sgd(0.1))

    def narrow(config):
        return dqn(mlp(4, [8], 2), optax.sgd(0.1))

    def events(tasks):
        return (Switch(tasks[0]), Train(tasks[0], 1))

    with pytest.raises(ValueError, match=r"2 outputs .* 3 actions"):
        runner_of(events, make=narrow).check()
    with pytest.raises(ValueError, match="no actions"):
        runner_of(events, make=silent).check()


def test_visits_of_an_environment_share_their_programs():
    def events(tasks):
        return [e for task in tasks for e in (Switch(task), Train(task, 3), Evaluate(task, samples=2))]

    runner = runner_of(events, limits=(5, 5, 5))
    counts = {}
    for tick in runner.ticks():
        counts[tick.event] = counts.get(tick.event, 0) + tick.compilations
    assert sum(count for event, count in counts.items() if event >= 3) == 0
