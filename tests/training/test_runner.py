"""The fold: exactness, independence of lanes, held and dead lanes, and how many programs a pack compiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from neoteny.interventions import Intervention, Reset
from neoteny.lab.study import Experiment
from neoteny.learners import supervised
from neoteny.networks import mlp
from neoteny.probes import ViewProbe
from neoteny.tasks import Minibatch, class_incremental, permuted, random_labels
from neoteny.training import Evaluate, Intervene, Probe, Reached, Save, Switch, Train, measuring
from neoteny.training import runner as runner_module
from neoteny.training.runner import Cursor
from training_cases import DATA, EXPERIMENT, Config, finish, make_runner


def final(runner):
    return {name: value for name, value in runner.arrays().items() if not name.startswith("ledger")}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def events_experiment(events, *, make=None, tasks=2, make_stream=None, batch=16):
    """EXPERIMENT with another script (tasks -> events) and perhaps another learner or stream."""
    return replace(
        EXPERIMENT,
        script=lambda config, given: tuple(events(given)),
        learner=make or EXPERIMENT.learner,
        stream=make_stream or (lambda config: random_labels(DATA, tasks=tasks)),
        source=lambda config: Minibatch(batch),
    )


@pytest.fixture(scope="module")
def whole():
    runner = make_runner([Config(seed=seed) for seed in range(4)])
    records, saves, ticks = finish(runner)
    return runner, records, saves, ticks


def test_the_same_seed_repeats_every_bit(whole):
    runner, records, saves, _ = whole
    again = make_runner([Config(seed=seed) for seed in range(4)])
    records_again, saves_again, _ = finish(again)
    assert records_again == records
    assert_same(final(runner), final(again))
    assert saves_again.keys() == saves.keys() == {"after-0", "after-1"}
    for name in saves:
        assert_same(saves[name], saves_again[name])


@pytest.mark.parametrize("length", [1, 3, 7])
def test_bits_do_not_depend_on_how_training_is_cut_into_chunks(whole, monkeypatch, length):
    runner, records, _, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: length)
    cut = make_runner([Config(seed=seed) for seed in range(4)])
    records_cut, _, ticks = finish(cut)
    assert sum(tick.kind == "train" for tick in ticks) >= 2 * 30 / length
    assert records_cut == records
    assert_same(final(runner), final(cut))


def test_bits_do_not_depend_on_neighbours_or_position(whole):
    runner, records, _, _ = whole
    others = make_runner([Config(seed=9, adam_b2=0.5), Config(seed=2), Config(seed=8), Config(seed=7)])
    records_other, _, _ = finish(others)
    assert [r for r in records if r.run == "run-2-0.999"] == [r for r in records_other if r.run == "run-2-0.999"]
    ours, theirs = final(runner), final(others)
    for name in ours:
        if name.startswith("state.learner"):
            np.testing.assert_array_equal(ours[name][2], theirs[name][1], err_msg=name)


def test_a_lane_equals_the_same_run_alone_bit_for_bit_when_padded_to_one_size(whole):
    _, records, _, _ = whole
    alone = make_runner([Config(seed=1)], lanes=4)
    records_alone, saves, _ = finish(alone)
    assert records_alone == [r for r in records if r.run == "run-1-0.999"]
    assert all(array.shape[0] == 1 for array in saves["after-0"].values()), "dummy lanes must not be kept"


def test_a_lane_equals_the_same_run_alone_to_rounding_for_100_updates():
    experiment = events_experiment(lambda tasks: [Switch(tasks[0]), Train(tasks[0], 100)], tasks=1)
    packed = make_runner([Config(seed=seed) for seed in range(8)], experiment=experiment)
    alone = make_runner([Config(seed=5)], experiment=experiment)
    finish(packed), finish(alone)
    for name, array in final(alone).items():
        if name.startswith("state.learner.networks"):
            np.testing.assert_allclose(final(packed)[name][5], array[0], rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_seeds_differ_in_every_random_consumer():
    drawn = {}

    @dataclass(frozen=True)
    class KeyBits(Intervention):
        """Leaves a trace of its key in a bias."""

        def __call__(self, state, key, context=None):
            network = state.networks["online"]
            noise = jax.random.normal(key, network.stage("head").bias.shape)
            head = network.stage("head")
            head = jax.tree.map(lambda x: x + 0 * x, head)
            return replace_head(state, head, noise)

    def replace_head(state, head, noise):
        import equinox as eqx

        return eqx.tree_at(lambda s: s.networks["online"].stages[-1].bias, state, noise)

    key_probe = ViewProbe("key", lambda view, batch, key: {"": jax.random.uniform(key)})
    label_probe = ViewProbe(
        "batch", lambda view, batch, key: {str(i): batch.targets[i].astype(jnp.float32) for i in range(16)}
    )

    def dropout_like(config):
        base = EXPERIMENT.learner(config)

        def update(state, batch, key):
            state, metrics = base.update(state, batch, key)
            return state, {**metrics, "update_key": jax.random.uniform(key), "first_row": batch.inputs[0].sum()}

        return base._replace(update=update)

    experiment = events_experiment(
        lambda tasks: [
            Save("init", full=True),
            Switch(tasks[0]),
            Train(tasks[0], 1, record_every=1),
            Probe(key_probe, label_probe, on=tasks[0], samples=16),
            Intervene(KeyBits(), on=tasks[0]),
            Save("changed"),
            Intervene(Reset(stages=("hidden1",)), on=tasks[0]),
            Save("reset"),
        ],
        make=dropout_like,
        tasks=1,
    )
    records, saves, _ = finish(make_runner([Config(seed=seed) for seed in (0, 1)], experiment=experiment))
    for record in records:
        drawn.setdefault(record.metric, {}).setdefault(record.run, []).append(record.value)

    def differs(metric):
        one, other = drawn[metric].values()
        return one != other

    assert differs("train_update_key"), "update"
    assert differs("train_first_row"), "minibatch order"
    assert differs("key"), "probe"
    assert differs("batch"), "the task's labels"

    def arrays_differ(save, path):
        array = saves[save][path]
        return not np.array_equal(array[0], array[1])

    kernels = [path for path in saves["init"] if path.endswith("weight") and ".networks" in path]
    assert len(kernels) == 3
    assert all(arrays_differ("init", path) for path in kernels), "initialisation"
    bias = next(path for path in saves["changed"] if "stages[2]" in path and path.endswith("bias"))
    assert arrays_differ("changed", bias), "intervention"
    hidden = next(path for path in saves["reset"] if "stages[0]" in path and path.endswith("weight"))
    assert arrays_differ("reset", hidden), "reset draws"


def test_probes_and_evaluations_leave_training_as_it_was(whole):
    def bare(tasks):
        return [event for task in tasks for event in (Switch(task), Train(task, 30, record_every=10))]

    def watched(tasks):
        return [
            event
            for task in tasks
            for event in (
                Switch(task),
                Train(task, 30, record_every=10),
                Evaluate(task, "test"),
                Probe(*EXPERIMENT.script(Config(), tasks)[4].probes, on=task, samples=20),
            )
        ]

    one = make_runner([Config(seed=s) for s in range(4)], experiment=events_experiment(bare))
    other = make_runner([Config(seed=s) for s in range(4)], experiment=events_experiment(watched))
    records, _, _ = finish(one)
    watched_records, _, _ = finish(other)
    assert_same(final(one), final(other))
    assert [(r.run, r.metric, r.value) for r in records] == [
        (r.run, r.metric, r.value) for r in watched_records if r.metric.startswith("train_")
    ]


def test_resume_from_every_tick_gives_the_same_bits(whole):
    runner, records, _, ticks = whole
    stop_at = range(1, len(ticks), 4)
    for stop in stop_at:
        first = make_runner([Config(seed=seed) for seed in range(4)])
        kept, source = [], first.ticks()
        for _ in range(stop):
            kept += next(source).records
        stored, cursor = first.arrays(), first.cursor
        second = make_runner([Config(seed=seed) for seed in range(4)])
        second.restore(cursor, stored)
        rest, _, _ = finish(second)
        assert kept + rest == records, f"stopped after tick {stop}"
        assert_same(final(runner), final(second))


def test_a_state_that_does_not_fit_is_named():
    runner = make_runner([Config()])
    next(runner.ticks())
    stored = runner.arrays()
    name = next(n for n in stored if n.endswith("weight"))
    with pytest.raises(ValueError, match="lacks"):
        make_runner([Config()]).restore(Cursor(), {n: a for n, a in stored.items() if n != name})
    with pytest.raises(ValueError, match="expected"):
        make_runner([Config()]).restore(Cursor(), {**stored, name: stored[name][..., :1]})


def test_programs_of_a_pack_are_compiled_once_whatever_the_number_of_tasks(whole):
    def compilations(tasks):
        runner = make_runner([Config(seed=seed, tasks=tasks) for seed in range(4)])
        jax.clear_caches()
        return sum(tick.compilations for tick in finish(runner)[2])

    few, many = compilations(1), compilations(4)
    # init, switch, chunk, check, draw, score, features, one view probe, two interventions
    assert few == 10
    assert many == few


def test_until_holds_each_lane_where_it_met_the_condition():
    until = Reached("accuracy", 1.0, window=4)
    events = lambda tasks: [Switch(tasks[0]), Train(tasks[0], 3_000, until=until, record_every=50), Save("end")]  # noqa: E731
    held = make_runner([Config(seed=s) for s in range(4)], experiment=events_experiment(events, tasks=1))
    _, saves, _ = finish(held)
    taken = np.asarray(held.state.taken)
    assert held.state.held.all()
    assert len(set(taken.tolist())) > 1, "the seeds of this case need different numbers of steps"
    assert taken.max() < 3_000
    per_update = held.tracer.update_flops(held.tasks[0], held.state.learner)
    np.testing.assert_allclose(held.ledger.train, per_update * taken)
    # Each lane stayed where it met the condition: the same program, ended there, has the same bits. Plain training is
    # another program and leads to the same place but for rounding.
    for lane in range(4):
        ended, plain = (
            finish(make_runner([Config(seed=s) for s in range(4)], experiment=events_experiment(events, tasks=1)))[1]
            for events in (
                lambda t, n=int(taken[lane]): [Switch(t[0]), Train(t[0], n, until=until), Save("end")],
                lambda t, n=int(taken[lane]): [Switch(t[0]), Train(t[0], n), Save("end")],
            )
        )
        for path, array in saves["end"].items():
            np.testing.assert_array_equal(array[lane], ended["end"][path][lane], err_msg=path)
            np.testing.assert_allclose(array[lane], plain["end"][path][lane], rtol=1e-3, atol=1e-4, err_msg=path)


def test_until_with_a_metric_that_is_not_there_is_refused():
    events = lambda tasks: [Switch(tasks[0]), Train(tasks[0], 10, until=Reached("acuracy", 1.0))]  # noqa: E731
    with pytest.raises(ValueError, match="there are accuracy, loss"):
        make_runner([Config()], experiment=events_experiment(events)).check()


def test_training_without_a_switch_is_refused():
    with pytest.raises(ValueError, match="needs Switch"):
        make_runner([Config()], experiment=events_experiment(lambda tasks: [Train(tasks[0], 10)])).check()


def test_gated_interventions_touch_only_their_lanes():
    def large_norm(state):
        return jnp.abs(state.networks["online"].stage("head").weight).max() > 0.9

    events = lambda tasks: [  # noqa: E731
        Switch(tasks[0]),
        Save("before", full=True),
        Intervene(Reset(stages=("head",)), on=tasks[0], when=large_norm),
        Save("after", full=True),
    ]
    runner = make_runner([Config(seed=s) for s in range(6)], experiment=events_experiment(events, tasks=1))
    _, saves, _ = finish(runner)
    path = next(p for p in saves["before"] if "stages[2]" in p and p.endswith("weight") and ".networks" in p)
    chosen = np.abs(saves["before"][path]).max(axis=(1, 2)) > 0.9
    assert 0 < chosen.sum() < 6, "the case needs lanes on both sides"
    changed = (saves["before"][path] != saves["after"][path]).any(axis=(1, 2))
    np.testing.assert_array_equal(changed, chosen)


def test_a_lane_that_diverges_is_marked_kept_and_does_not_poison_others():
    def learner(config):
        return supervised(mlp(12, [8, 8], 3), optax.sgd(config.learning_rate))

    events = lambda tasks: [  # noqa: E731
        event
        for task in tasks
        for event in (
            Switch(task),
            Train(task, 40, record_every=10),
            Evaluate(task, "train"),
            Probe(gradient_norm_probe, on=task, samples=16),
        )
    ]
    from neoteny.probes import gradient_norm as gradient_norm_probe

    experiment = events_experiment(events, make=learner)
    configs = [Config(seed=s, learning_rate=rate) for s, rate in enumerate((0.1, 1e30, 0.1, 0.1))]
    runner = make_runner(configs, experiment=experiment)
    records, _, _ = finish(runner)
    assert runner.alive.tolist() == [True, False, True, True]
    dead = [r for r in records if r.run == "run-1-0.999"]
    (mark,) = [r for r in dead if r.metric == "diverged"]
    assert mark.value == mark.step == 10
    assert not [r for r in dead if r.metric.startswith("train_")]
    assert not [r for r in dead if r.metric == "gradient_norm"]
    scores = [r.value for r in dead if r.metric == "accuracy"]
    assert len(scores) == 2
    assert np.isfinite(scores).all(), "the last finite network is scored"
    healthy = make_runner([replace(c, learning_rate=0.1) for c in configs], experiment=experiment)
    others = [r for r in finish(healthy)[0] if r.run != "run-1-0.999"]
    assert [r for r in records if r.run != "run-1-0.999"] == others


def test_records_say_where_and_when(whole):
    _, records, _, _ = whole
    first = [r for r in records if r.run == "run-0-0.999"]
    losses = [r for r in first if r.metric == "train_loss"]
    assert [r.step for r in losses] == [10, 20, 30, 40, 50, 60]
    assert [r.task for r in losses] == [0, 0, 0, 1, 1, 1]
    assert {r.place for r in first if r.metric == "dead_units"} == {"hidden1", "hidden2", "all"}
    assert {r.place for r in first if r.metric == "effective_rank"} == {"hidden2"}
    assert {r.split for r in first if r.metric == "accuracy"} == {"train", "test"}
    costs = [(r.flops_train, r.flops_forward, r.flops_probe) for r in first]
    assert costs == sorted(costs)
    assert costs[-1] > (0, 0, 0)


def test_evaluation_counts_every_row_once_whatever_the_batch(monkeypatch):
    events = lambda tasks: [Switch(tasks[0]), Train(tasks[0], 5), Evaluate(tasks[0], "train")]  # noqa: E731
    whole_records, _, _ = finish(make_runner([Config()], experiment=events_experiment(events)))
    monkeypatch.setattr(measuring, "EVALUATION_ROWS", 7)
    parts, _, _ = finish(make_runner([Config()], experiment=events_experiment(events)))
    for one, other in zip(whole_records, parts, strict=True):
        assert (one.metric, one.flops_forward) == (other.metric, other.flops_forward)
        np.testing.assert_allclose(one.value, other.value, rtol=1e-6)
    accuracy = next(r.value for r in parts if r.metric == "accuracy")
    assert (accuracy * 64) == pytest.approx(round(accuracy * 64)), "a share of the 64 training rows"


def test_tasks_of_different_sizes_share_their_programs():
    def stream(config):
        return class_incremental(DATA, tasks=3)

    experiment: Experiment = replace(
        EXPERIMENT,
        stream=stream,
        script=lambda config, tasks: tuple(
            e for t in tasks for e in (Switch(t), Train(t, 10), Evaluate(t, "train"), Evaluate(tasks[0], "test"))
        ),
    )
    runner = make_runner([Config(seed=s) for s in range(2)], experiment=experiment)
    assert len({len(task.rows("train")) for task in runner.tasks}) > 1
    counts = {}
    for tick in runner.ticks():
        counts.setdefault(tick.event, 0)
        counts[tick.event] += tick.compilations
    later = sum(count for event, count in counts.items() if event >= 4)
    assert later == 0


def test_permuted_tasks_train_and_differ_by_lane():
    experiment = replace(
        EXPERIMENT,
        stream=lambda config: permuted(DATA, tasks=2, first_unchanged=True),
        script=lambda config, tasks: tuple(e for t in tasks for e in (Switch(t), Train(t, 10), Evaluate(t, "train"))),
    )
    runner = make_runner([Config(seed=s) for s in range(2)], experiment=experiment)
    finish(runner)
    drawn = np.asarray(runner.state.source.drawn)
    assert drawn.shape == (2, 12)
    assert (np.sort(drawn, axis=1) == np.arange(12)).all()
    assert (drawn[0] != drawn[1]).any()


def diverging_learner(config):
    return supervised(mlp(12, [8, 8], 3), optax.sgd(config.learning_rate))


@pytest.mark.parametrize("until", [None, Reached("accuracy", 0.9, window=3)])
def test_resume_keeps_dead_and_held_lanes(monkeypatch, until):
    def events(tasks):
        return [
            event
            for task in tasks
            for event in (Switch(task), Train(task, 60, until=until, record_every=10), Evaluate(task, "train"))
        ]

    experiment = events_experiment(events, make=diverging_learner)
    configs = [Config(seed=s, learning_rate=rate) for s, rate in enumerate((0.5, 1e30, 0.5, 0.3))]
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: 4)
    whole = make_runner(configs, experiment=experiment)
    records, _, ticks = finish(whole)
    assert not whole.alive[1]
    for stop in range(2, len(ticks), 7):
        first = make_runner(configs, experiment=experiment)
        kept, source = [], first.ticks()
        for _ in range(stop):
            kept += next(source).records
        second = make_runner(configs, experiment=experiment)
        second.restore(first.cursor, first.arrays())
        rest, _, _ = finish(second)
        assert kept + rest == records, f"stopped after tick {stop}"
        assert_same(final(whole), final(second))


def test_one_diverged_lane_does_not_keep_the_others_from_ending_early():
    until = Reached("loss", 10.0, falling=True)  # met by every finite lane at once
    events = lambda tasks: [Switch(tasks[0]), Train(tasks[0], 200, until=until, record_every=10)]  # noqa: E731
    experiment = events_experiment(events, make=diverging_learner, tasks=1)
    configs = [Config(seed=s, learning_rate=rate) for s, rate in enumerate((0.1, 1e30, 0.1, 0.1))]
    runner = make_runner(configs, experiment=experiment)
    records, _, _ = finish(runner)
    assert runner.clock.update <= 20
    assert {r.value for r in records if r.metric == "updates_taken"} == {1.0}
