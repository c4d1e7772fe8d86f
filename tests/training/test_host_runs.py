"""Host environments as tasks of a run: the same events, records and commits as on the device, at segment ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from host_emulators import Ladder
from neoteny.interventions import Inject, Redo, Reset, ShrinkPerturb
from neoteny.lab.store import Manifest, PackStore
from neoteny.learners import dqn
from neoteny.networks import cnn, mlp
from neoteny.probes import effective_rank, gradient_norm, weight_norm
from neoteny.tasks.environments import Specification, environments
from neoteny.tasks.experience import LinearEpsilon
from neoteny.tasks.host_experience import HostExperience
from neoteny.training import Evaluate, Fork, Intervene, Probe, Reached, Save, Switch, Train
from neoteny.training import runner as runner_module
from neoteny.training.runner import Cursor
from training_cases import EXPERIMENT, Config, finish, make_runner, same

CONFIGS = [Config(seed=seed) for seed in range(3)]
SOURCE = HostExperience(
    batch_size=8, envs=2, period=2, learning_starts=12, capacity=48, stack=2, discount=0.9, reward_bound=None,
    epsilon=LinearEpsilon(1.0, 0.2, 50), evaluation_epsilon=0.0, segment=20,
)  # fmt: skip
"""24 slots of two environments: six to begin with and two an update; a segment is ten slots, or five updates."""


def learner(config):
    return dqn(mlp(8, [8], 3), optax.adam(config.learning_rate), target_period=5)


def script(tasks):
    first, second = tasks
    return (
        Switch(first),
        Train(first, 12, record_every=4),
        Evaluate(first, samples=3),
        Probe(effective_rank, gradient_norm, weight_norm, on=first, samples=10),
        Save("start", full=True),
        Intervene(ShrinkPerturb()),
        Intervene(Redo(tau=0.5), on=first, samples=16),
        Fork(
            {"idle": (), "inject": (Intervene(Inject("head")),)},
            then=(Train(first, 5), Evaluate(first, samples=2)),
        ),
        Train(first, 5),
        Switch(second),
        Intervene(Reset(stages=("head",))),
        Train(second, 8, record_every=4),
        Evaluate(first, samples=2),
    )


def runner_of(events=script, configs=CONFIGS, make=learner, source=SOURCE, worlds=None, lanes=0):
    experiment = replace(
        EXPERIMENT,
        script=lambda config, tasks: tuple(events(tasks)),
        learner=make,
        stream=lambda config: environments(worlds or [Ladder(), Ladder(life_loss=False)]),
        source=lambda config: source,
    )
    return make_runner(configs, experiment=experiment, lanes=lanes)


@pytest.fixture(scope="module")
def whole():
    runner = runner_of()
    runner.check()
    return runner, *finish(runner)


def test_the_clock_and_the_replay_follow_the_emulators(whole):
    runner, records, _, _ = whole
    steps = 12 + 17 * 4 + 12 + 8 * 4
    assert int(runner.clock.env_step) == steps
    assert records[-1].env_steps == steps
    assert {r.env_steps for r in records if r.event == 1} == {12 + n * 4 for n in (4, 8, 12)}
    play = runner.here.play
    assert play.written == 6 + 8 * 2
    assert play.segment == 3, "twice after ten slots, and where training ends"
    episodes = {r.run: 0.0 for r in records}
    for r in records:
        if r.event == 1 and r.metric == "train_episodes":
            episodes[r.run] += 4 * r.value
    # Three segments of ten slots: nine steps to the end, in two environments; the rest is cut off and has no return.
    assert set(episodes.values()) == {6.0}


@pytest.mark.parametrize("length", [1, 3])
def test_bits_do_not_depend_on_the_chunks(whole, monkeypatch, length):
    runner, records, _, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: length)
    cut = runner_of()
    found, _, _ = finish(cut)
    assert found == records
    same(cut.arrays(), runner.arrays())


def test_every_commit_can_be_resumed_and_holds_new_rows_only(whole, monkeypatch, tmp_path):
    runner, records, _, _ = whole
    monkeypatch.setattr(runner_module.Runner, "_chunk_length", lambda self: 3)
    pack = PackStore(tmp_path)
    first, manifest, kept, amid, resumed, starts = runner_of(), Manifest("p", 0, "running", (0, 0)), [], 0, 0, {}
    for tick in first.ticks():
        kept += tick.records
        if not first.storable:
            with pytest.raises(ValueError, match="amid a segment"):
                first.arrays()
            amid += 1
            continue
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
        pack.verify(manifest)
        same(pack.state(manifest), first.arrays())
        for block in manifest.blocks:
            starts.setdefault((block.ring, block.since), set()).add((block.start, block.stop))
        if resumed % 3 == 0 or first.cursor.done:
            second = runner_of()
            second.restore(Cursor(*manifest.cursor), pack.state(manifest))
            rest, _, _ = finish(second)
            assert kept + rest == records, f"at {manifest.cursor}"
            same(second.arrays(), runner.arrays())
        resumed += 1
    assert amid > 3
    assert resumed > 10
    assert len(starts) == 4, "the run's two rings and those of two branches"
    for blocks in starts.values():
        rows = [row for start, stop in blocks for row in range(start, stop)]
        assert len(rows) == len(set(rows)) > 0


def test_a_full_replay_is_filled_in_parts_that_can_be_stored(tmp_path):
    source = replace(SOURCE, learning_starts=48)
    events = lambda tasks: (Switch(tasks[0]), Train(tasks[0], 3, record_every=3))  # noqa: E731
    records, _, _ = finish(runner_of(events, source=source))
    first, kept = runner_of(events, source=source), []
    for tick in first.ticks():
        kept += tick.records
        play = first.here.play
        if play is not None and play.segment == 1 and first.storable:
            break
    assert not play.filled
    assert first.cursor == Cursor(1, 0)
    second = runner_of(events, source=source)
    second.restore(first.cursor, first.arrays())
    rest, _, _ = finish(second)
    assert kept + rest == records


def test_looking_changes_nothing():
    def bare(tasks):
        return (Switch(tasks[0]), Train(tasks[0], 6), Train(tasks[0], 6))

    def watched(tasks):
        task = tasks[0]
        looks = (
            Evaluate(task, samples=2),
            Evaluate(tasks[1], samples=2),
            Probe(effective_rank, gradient_norm, on=task, samples=9),
            Save("here"),
        )
        return (Switch(task), Train(task, 6), *looks, Train(task, 6), *looks[:-1])

    one, other = runner_of(bare), runner_of(watched)
    finish(one)
    finish(other)
    ledgers = ("ledger.forward", "ledger.probe")
    same(
        {n: a for n, a in one.arrays().items() if n not in ledgers},
        {n: a for n, a in other.arrays().items() if n not in ledgers},
    )


def test_an_evaluation_plays_whole_episodes_with_draws_of_its_own(whole):
    _, records, _, _ = whole
    returns = [r for r in records if r.event == 2]
    values = {(r.run, r.metric): r.value for r in returns}
    for run in {r.run for r in returns}:
        assert values[run, "length"] == 9
        assert values[run, "return"] == 45
        assert values[run, "unfinished"] == 0
    world = Ladder()
    runner = runner_of(lambda tasks: (Switch(tasks[0]), Train(tasks[0], 1)), worlds=[world])
    finish(runner)
    played = len(world.log)
    runner = runner_of(
        lambda tasks: (Switch(tasks[0]), Train(tasks[0], 1), Evaluate(tasks[0], samples=2)), worlds=[world]
    )
    finish(runner)
    training, evaluation = world.log[played : 2 * played], world.log[2 * played :]
    assert training == world.log[:played]
    assert len(set(evaluation)) == 3
    assert not set(evaluation) & set(training)


def test_acting_is_counted_where_the_network_was_asked():
    runner = runner_of(lambda tasks: (Switch(tasks[0]), Train(tasks[0], 6), Evaluate(tasks[0], samples=4)))
    finish(runner)
    task, shapes = runner.tasks[0], runner.state.learner
    act = runner.tracer.acting_flops(task, shapes)
    # Epsilon is 1 at the first step of learning, so no network is asked there, nor while the replay fills.
    asked = (6 * 2 - 1) * 2
    np.testing.assert_allclose(runner.ledger.train, 6 * runner.tracer.update_flops(task, shapes) + asked * act)
    np.testing.assert_allclose(runner.ledger.forward, 4 * 9 * act)


def test_an_idle_branch_has_the_experience_of_the_run(whole):
    _, records, _, _ = whole

    def of(branch, first=0):
        return [
            (r.run, r.metric, r.value, r.env_steps)
            for r in records
            if r.branch == branch and r.task == 0 and r.event > first and r.metric.startswith("train_")
        ]

    idle = of("idle")
    assert len(idle) > 0
    assert idle == of("", 7)
    assert of("inject") != idle
    # The injected pair changes no prediction, so the first episodes of both go the same way.
    played = [[row for row in rows if row[1] in ("train_episodes",)] for rows in (idle, of("inject"))]
    assert played[0] == played[1]


def test_held_lanes_go_on_acting():
    until = Reached("loss", 130.0, window=1, falling=True)
    events = lambda tasks: (Switch(tasks[0]), Train(tasks[0], 40, until=until), Train(tasks[0], 3))  # noqa: E731
    runner = runner_of(events)
    records, _, _ = finish(runner)
    taken = [r.value for r in records if r.metric == "updates_taken"]
    assert len(taken) == 3
    assert len(set(taken)) > 1
    assert max(taken) < 40
    assert int(runner.clock.update) == max(taken) + 3
    assert runner.here.play.written == 6 + 2 * int(runner.clock.update)


def test_lanes_differ_and_one_seed_repeats(whole):
    runner, _, _, _ = whole
    play = runner.here.play
    for leaf in (play.rows.frame, play.rows.action):
        assert len({lane[: play.written].tobytes() for lane in leaf}) == 3
    again = runner_of(configs=[CONFIGS[1], CONFIGS[2], CONFIGS[2]])
    finish(again)
    for mine, theirs in zip(again.here.play.rows, play.rows, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[1])
        np.testing.assert_array_equal(mine[1], theirs[2])
        np.testing.assert_array_equal(mine[2], theirs[2])


@dataclass(frozen=True)
class Pictures(Ladder):
    """The ladder as pictures of bytes: the numbers of the frame, in the corner of a 6 x 6 image."""

    @property
    def specification(self):
        return Specification((6, 6, 1), "uint8", 3, 12)

    def start(self, count, seed):
        return _Painted(super().start(count, seed))


class _Painted:
    def __init__(self, inner):
        self.inner = inner

    def paint(self, shown):
        frames = np.zeros((len(shown), 6, 6, 1), np.uint8)
        frames[:, 0, :4, 0] = shown.astype(int) % 251
        return frames

    def reset(self, which=None):
        return self.paint(self.inner.reset(which))

    def step(self, actions):
        step = self.inner.step(actions)
        return step._replace(frame=self.paint(step.frame))

    def close(self):
        pass


def convolutional(lowering):
    def make(config):
        maker = cnn((6, 6, 2), 3, channels=(4,), kernels=(3,), strides=(1,), pools=1, dense=(8,), lowering=lowering)
        return dqn(maker, optax.adam(config.learning_rate), target_period=5)

    return make


def test_convolutions_are_computed_one_lane_after_another_with_the_same_results():
    """On a CPU; with patches all lanes are one program."""
    found = {}
    for lowering in ("convolution", "patches"):
        runner = runner_of(make=convolutional(lowering), worlds=[Pictures(), Pictures(life_loss=False)])
        runner.check()
        separately = runner.tracer.lane_by_lane(runner.tasks[0], runner.tracer.initial().learner)
        assert separately == (lowering == "convolution")
        found[lowering], _, _ = finish(runner)
    for one, other in zip(found["convolution"], found["patches"], strict=True):
        assert (one.run, one.metric, one.step, one.env_steps) == (other.run, other.metric, other.step, other.env_steps)
        if one.metric in ("train_loss", "train_value") and one.event == 1:
            np.testing.assert_allclose(one.value, other.value, rtol=1e-3)


def test_a_lane_does_not_depend_on_its_neighbours():
    def of(configs, lanes=0):
        runner = runner_of(
            lambda tasks: (Switch(tasks[0]), Train(tasks[0], 7, record_every=3)),
            configs=configs, make=convolutional("convolution"), worlds=[Pictures()], lanes=lanes,
        )  # fmt: skip
        records, _, _ = finish(runner)
        return [(r.step, r.metric, r.value) for r in records if r.run == "run-1-0.999"]

    assert of(CONFIGS) == of(CONFIGS[1:2])


def counting(config):
    """A learner whose policy is the number of its updates modulo 3."""
    made = learner(config)

    def bias(state):
        return jnp.round(state.networks["online"].stage("head").bias)

    def update(state, batch, key):
        new, metrics = made.update(state, batch, key)
        return eqx.tree_at(lambda s: s.networks["online"].stage("head").bias, new, bias(state) + 1), metrics

    def act(state, seen, key):
        return jnp.full(seen.shape[0], bias(state)[0] % 3).astype(jnp.int32)

    return made._replace(update=update, act=act)


@pytest.mark.parametrize("ahead", [True, False])
def test_the_policy_is_one_update_older_only_where_it_was_played_ahead(ahead):
    source = replace(SOURCE, ahead=ahead, epsilon=LinearEpsilon(0.0, 0.0, 1), capacity=100)
    events = lambda tasks: (Switch(tasks[0]), Train(tasks[0], 9), Train(tasks[0], 3))  # noqa: E731
    runner = runner_of(events, source=source, make=counting)
    finish(runner)
    played = runner.here.play.rows.action[:, 6:30].reshape(3, 12, 4)
    # Segments begin before updates 2 and 7, the second training before update 9.
    newest = [*range(12)]
    older = [0, 0, 2, 2, 3, 4, 5, 7, 7, 9, 9, 10]
    expected = np.asarray(older if ahead else newest)
    np.testing.assert_array_equal(played, np.broadcast_to(expected[:, None] % 3, (3, 12, 4)))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (lambda a, b: (Switch(a), Train(a, 1), Evaluate(a)), "samples="),
        (lambda a, b: (Switch(a), Probe(effective_rank, on=a, samples=4)), "only after Train"),
        (lambda a, b: (Switch(a), Train(a, 1), Switch(b), Intervene(Redo(), on=b)), "only after Train"),
        (lambda a, b: (Train(a, 1),), "needs Switch"),
    ],
)
def test_what_an_environment_cannot_do_is_refused(events, message):
    with pytest.raises(ValueError, match=message):
        runner_of(lambda tasks: events(*tasks)).check()


def test_a_policy_that_follows_another_network_is_refused():
    def follower(config):
        made = learner(config)
        return made._replace(act=lambda state, seen, key: state.networks["target"](seen).output.argmax(1))

    with pytest.raises(ValueError, match="follows"):
        runner_of(lambda tasks: (Switch(tasks[0]), Train(tasks[0], 1)), make=follower).check()
