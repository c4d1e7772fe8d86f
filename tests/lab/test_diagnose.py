"""`neoteny diagnose`: copies of a stored run, from its last commit and from a full save."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from device_loop import Corridor
from host_emulators import PaidLadder
from neoteny.cli import main
from neoteny.errors import UsageError
from neoteny.interventions import Inject
from neoteny.lab.checkpoint import find
from neoteny.lab.diagnose import Options, Scores, _arms, _measure, decide, scores_of
from neoteny.lab.execute import make_runner
from neoteny.lab.records import Record
from neoteny.lab.store import Store
from neoteny.learners import dqn
from neoteny.networks import mlp
from neoteny.report.diagnosis import describe
from neoteny.tasks.environments import environments
from neoteny.tasks.experience import DeviceExperience, LinearEpsilon
from neoteny.tasks.host_experience import HostExperience
from neoteny.training.continuing import continued
from neoteny.training.events import Fork, Intervene, Save, Switch, Train
from neoteny.training.runner import Cursor, Runner
from neoteny.training.standing import arrays_of
from neoteny.training.stored import load

BEGUN = 100


def record(arm, lane, step, metric, value):
    return Record(f"copy{lane}", arm, 0, 0, 0, "", 0, step, 0, metric, "", value, 0.0, 0.0, 0.0, 0.0)


def records_of(metric, tables):
    """arm -> (lanes, parts) as training records."""
    return [
        record(arm, lane, BEGUN + 10 * (part + 1), f"train_{metric}", value)
        for arm, table in tables.items()
        for lane, values in enumerate(table)
        for part, value in enumerate(values)
    ]


def test_gains_are_paired_and_of_the_last_part():
    tables = {"control": [[0.1, 0.5], [0.2, 0.9]], "inject": [[0.3, 0.6], [0.2, 0.95]]}
    scores = scores_of(records_of("accuracy", tables), ("control", "inject"), 2, BEGUN, {})
    np.testing.assert_allclose(scores.gain("inject"), [0.1, 0.05])
    np.testing.assert_allclose(scores.area_gain("inject"), [0.15, 0.025])
    assert list(scores.updates) == [10, 20]
    assert (scores.metric, scores.score_range) == ("accuracy", 1.0)


def test_of_a_loss_less_is_better_and_its_range_is_what_was_seen():
    tables = {"control": [[3.0, 2.0], [4.0, 2.0]], "inject": [[3.0, 1.0], [3.0, 1.5]]}
    scores = scores_of(records_of("loss", tables), ("control", "inject"), 2, BEGUN, {})
    np.testing.assert_allclose(scores.gain("inject"), [1.0, 0.5])
    assert scores.score_range == 3.0


def test_returns_are_means_over_episodes_and_held_where_none_ended():
    returns = {"control": [[6.0, 0.0], [0.0, 2.0]], "inject": [[0.0, 9.0], [4.0, 4.0]]}
    episodes = {"control": [[2.0, 0.0], [0.0, 1.0]], "inject": [[0.0, 3.0], [1.0, 2.0]]}
    given = [*records_of("returns", returns), *records_of("episodes", episodes), *records_of("loss", returns)]
    scores = scores_of(given, ("control", "inject"), 2, BEGUN, {})
    np.testing.assert_allclose(scores.curves["control"], [[3.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(scores.curves["inject"], [[3.0, 3.0], [4.0, 2.0]])
    assert scores.metric == "return"
    none = {arm: [[0.0, 0.0]] * 2 for arm in returns}
    with pytest.raises(UsageError, match="no copy finished an episode"):
        scores_of([*records_of("returns", none), *records_of("episodes", none)], ("control", "inject"), 2, BEGUN, {})


def test_where_no_episode_ends_the_reward_of_a_step_counts():
    rewards = {"control": [[0.1, 0.2], [0.2, 0.3]], "inject": [[0.1, 0.4], [0.2, 0.6]]}
    none = {arm: [[0.0, 0.0]] * 2 for arm in rewards}
    given = [
        *records_of("returns", none), *records_of("episodes", none), *records_of("reward", rewards),
        *records_of("loss", none),
    ]  # fmt: skip
    scores = scores_of(given, ("control", "inject"), 2, BEGUN, {})
    assert scores.metric == "reward"
    np.testing.assert_allclose(scores.gain("inject"), [0.2, 0.3])
    some = {arm: [[1.0, 1.0]] * 2 for arm in rewards}
    again = scores_of([*given[8:], *records_of("returns", rewards), *records_of("episodes", some)],
                      ("control", "inject"), 2, BEGUN, {})  # fmt: skip
    assert again.metric == "return"


def test_a_copy_that_diverged_counts_with_the_worst():
    tables = {"control": [[0.4, 0.5]] * 2, "inject": [[0.3, 0.9]] * 2}
    given = [
        r for r in records_of("accuracy", tables) if not (r.run == "copy1" and r.branch == "inject" and r.step > 110)
    ]
    given.append(record("inject", 1, 120, "diverged", 117))
    scores = scores_of(given, ("control", "inject"), 2, BEGUN, {})
    np.testing.assert_allclose(scores.gain("inject"), [0.4, -0.2])
    assert scores.diverged == {"inject": 1}
    assert decide(scores, 0.05).answer == "undecided"


def test_an_agent_s_copy_that_diverged_keeps_no_return_from_before():
    returns = {"control": [[4.0, 5.0, 6.0]] * 2, "inject": [[3.0, 9.0, 9.0], [8.0, 9.0, 9.0]]}
    episodes = {arm: [[1.0, 1.0, 1.0]] * 2 for arm in returns}
    given = [
        r
        for r in (*records_of("returns", returns), *records_of("episodes", episodes))
        if not (r.run == "copy1" and r.branch == "inject" and r.step > 110)
    ]
    given.append(record("inject", 1, 120, "diverged", 117))
    scores = scores_of(given, ("control", "inject"), 2, BEGUN, {})
    np.testing.assert_allclose(scores.curves["inject"], [[3.0, 9.0, 9.0], [8.0, 3.0, 3.0]])
    np.testing.assert_allclose(scores.gain("inject"), [3.0, -3.0])
    assert scores.diverged == {"inject": 1}


def test_a_large_paired_gain_is_told():
    lanes = np.random.default_rng(0).normal(0, 0.01, (8, 2))
    curves = {"control": 0.3 + lanes, "inject": 0.6 - lanes}
    assert decide(Scores("accuracy", curves, np.array([1, 2]), 1.0, {}, {}), 0.05).answer == "plasticity-limited"


@pytest.mark.parametrize(
    ("head", "whole", "words"),
    [
        (0.0, 0.3, "plasticity is lost before the head"),
        (0.0, 0.0, "the encoder is not told to be the limit either"),
        (0.3, 0.3, None),
    ],
)
def test_a_dead_encoder_is_told_from_a_head_that_is_no_limit(head, whole, words):
    lanes = np.random.default_rng(0).normal(0, 0.01, (8, 2))
    curves = {"control": 0.3 + lanes, "inject": 0.3 + head - lanes / 9, "inject_whole": 0.3 + whole - lanes / 9}
    scores = Scores("accuracy", curves, np.array([1, 2]), 1.0, {}, {})
    told = describe(decide(scores, 0.05), scores)
    assert ("plasticity-limited" in told) == (words is None)
    assert words is None or words in told


def test_the_whole_network_is_injected_too_where_there_is_an_encoder():
    assert list(_arms("hidden2", ("hidden1", "hidden2", "head"))) == [
        "control", "inject", "reset", "placebo", "inject_whole",
    ]  # fmt: skip
    assert list(_arms("hidden1", ("hidden1", "hidden2", "head"))) == ["control", "inject", "reset", "placebo"]


@pytest.fixture
def saving(tiny, tmp_path, monkeypatch):
    """A finished run of `tiny` that also keeps the whole learner at its end; its directory and a run."""

    def script(config, tasks):
        return (*tiny.script(config, tasks), Save("all", full=True))

    experiment = replace(tiny.one, script=script)
    monkeypatch.setattr(tiny, "STUDY", replace(tiny.STUDY, experiments=(experiment,)))
    directory = tmp_path / "saving"
    assert main(["run", "tiny", "--preset", "smoke", "--out", str(directory)]) == 0
    return directory, next(iter(json.loads((directory / "plan.json").read_text())["runs"]))


def test_copies_begin_where_the_run_stood_and_differ_in_what_is_drawn_later(saving):
    directory, run = saving
    last, save = (continued(find(f"{directory}:{name}"), 3, lambda tasks, task: ()) for name in (run, f"{run}:all"))
    assert int(last.clock.update) == int(save.clock.update) == 10
    assert len(set(np.asarray(last.lanes.seeds))) == 3
    for one, other in zip(jax.tree.leaves(last.state.learner), jax.tree.leaves(save.state.learner), strict=True):
        np.testing.assert_array_equal(one, other)
    for runner in (last, save):
        for leaf in jax.tree.leaves((runner.state.learner, runner.state.source.drawn)):
            assert leaf.shape[0] == 3
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    for one, other in zip(*(jax.tree.leaves(r.state.source.drawn) for r in (last, save)), strict=True):
        np.testing.assert_array_equal(one, other)  # the labels the run learned, not new ones


@pytest.mark.parametrize("place", ["", ":all"])
def test_a_diagnosis_from_the_command_line(saving, tmp_path, capsys, place):
    directory, run = saving
    out = tmp_path / "page"
    arguments = ["diagnose", f"{directory}:{run}{place}", "--horizon", "20", "--lanes", "3", "--out", str(out)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].split(":")[0] in ("plasticity-limited", "not limited", "undecided")
    found = json.loads((out / "diagnosis.json").read_text())
    assert found["answer"] in told
    assert found["n"] == 3
    assert list(found["arms"]) == ["control", "inject", "reset", "placebo"]
    control, placebo = found["arms"]["control"], found["arms"]["placebo"]
    assert placebo["area"] == pytest.approx(control["area"], abs=0.02)  # one draw for both, up to rounding
    page = (out / "report.html").read_text()
    assert found["answer"] in page
    assert "<svg" in page or "data:image/svg" in page
    assert f"neoteny diagnose {directory}:{run}{place} --horizon 20 --lanes 3 --out {out}" in page
    assert "--lanes 6" in page
    again = tmp_path / "again"
    assert main([*arguments[:-1], str(again)]) == 0
    assert json.loads((again / "diagnosis.json").read_text()) == found


def test_the_next_task_is_a_new_draw_where_the_stream_has_ended(saving, tmp_path):
    directory, run = saving
    out = tmp_path / "next"
    assert (
        main(["diagnose", f"{directory}:{run}", "--task", "next", "--horizon", "20", "--lanes", "2", "--out", str(out)])
        == 0
    )
    assert "drawn anew" in (out / "report.html").read_text()


def test_what_cannot_be_diagnosed_is_told_in_one_line(saving, capsys):
    directory, run = saving
    for rest, words in (
        ([f"{directory}:nothing"], "has no run 'nothing'"),
        ([f"{directory}:{run}:other"], "has no save 'other'"),
        ([f"{directory}:{run}:last/of it"], "holds networks only"),
        ([f"{directory}:{run}", "--lanes", "1"], "--lanes must be at least 2"),
        ([f"{directory}:{run}", "--horizon", "3"], "--horizon must be at least 10"),
        ([f"{directory}:{run}", "--margin", "0"], "--margin must be positive"),
        ([f"{directory}:{run}", "--stage", "body"], "its stages are hidden1, head"),
        ([f"{directory}:{run}", "--task", "last"], "--task takes one of current, next"),
        ([], "needs a checkpoint"),
    ):
        assert main(["diagnose", *rest]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert len(told.strip().splitlines()) == 1
    assert not (directory / "diagnoses").exists()


def test_a_run_stopped_within_a_branch_is_the_run_as_it_forked(tiny, tmp_path, monkeypatch, interrupt):
    def script(config, tasks):
        task, _ = tasks
        fork = Fork({"injected": (Intervene(Inject("hidden1")),)}, then=(Train(task, 6),))
        return (Switch(task), Train(task, 5), Save("before"), fork, Train(task, 5))

    experiment = replace(tiny.one, script=script)
    monkeypatch.setattr(tiny, "STUDY", replace(tiny.STUDY, experiments=(experiment,)))
    directory = tmp_path / "forked"
    interrupt(1, "intervene")
    assert main(["run", "tiny", "--preset", "smoke", "--out", str(directory)]) == 130
    checkpoint = find(f"{directory}:{list(json.loads((directory / 'plan.json').read_text())['runs'])[1]}")
    stored = Store(directory).pack(checkpoint.pack.name)
    whole = make_runner(checkpoint.study, checkpoint.plan, checkpoint.pack)
    assert whole.steps[checkpoint.manifest.cursor[0]].branch == "injected"
    runner = continued(checkpoint, 2, lambda tasks, own: ())
    assert int(runner.clock.update) == 5
    assert runner.here.task is runner.tasks[0]
    before, found = stored.arrays(checkpoint.manifest, "before"), arrays_of(runner.state.learner.networks)
    assert found.keys() == before.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, before[path][[checkpoint.lane] * 2])
    alone = load(checkpoint)
    assert alone.task is not None
    assert (alone.update, alone.task.index) == (5, whole.tasks[0].index)
    for path, array in arrays_of(alone.learner.networks).items():
        np.testing.assert_array_equal(array, before[path][[checkpoint.lane]])


ACTING = {
    "batch_size": 8, "envs": 2, "period": 2, "learning_starts": 12, "capacity": 48, "stack": 2,
    "epsilon": LinearEpsilon(1.0, 0.2, 50),
}  # fmt: skip
"""24 slots of two environments, written over from the tenth update on."""

AGENTS = {
    "device": (Corridor(), DeviceExperience(**ACTING)),
    "host": (PaidLadder(), HostExperience(**ACTING, reward_bound=None, segment=20)),
}


@pytest.fixture(params=list(AGENTS))
def agent(request, tiny, tmp_path, monkeypatch):
    """The last run of a finished pack of agents, whose replays were written over in part."""
    environment, source = AGENTS[request.param]
    inputs = environment.specification.shape[0] * source.stack

    def script(config, tasks):
        return (Switch(tasks[0]), Train(tasks[0], 13))

    experiment = replace(
        tiny.one,
        script=script,
        stream=lambda config: environments([environment]),
        learner=lambda config: dqn(mlp(inputs, [8], 3), optax.adam(config.rate / 10), target_period=5),
        source=lambda config: source,
    )
    monkeypatch.setattr(tiny, "STUDY", replace(tiny.STUDY, experiments=(experiment,)))
    directory = tmp_path / "agents"
    assert main(["run", "tiny", "--preset", "smoke", "--out", str(directory)]) == 0
    return find(f"{directory}:{list(json.loads((directory / 'plan.json').read_text())['runs'])[-1]}")


def experience(standing, lane):
    """All that a lane's replay holds: every transition that may be drawn, or the whole ring on the device."""
    play = standing.play
    if play is None:
        return [np.asarray(leaf)[lane] for leaf in jax.tree.leaves(standing.state.source)]
    first, length = play.layout.stretch(play.written)
    slots, envs = np.meshgrid(first + np.arange(length), np.arange(play.source.envs))
    return list(play.layout.read_frames(play.replays[lane], slots.ravel(), envs.ravel())[:5])


def test_every_copy_of_an_agent_has_the_experience_of_the_run(agent):
    whole = make_runner(agent.study, agent.plan, agent.pack)
    stored = Store(agent.directory).pack(agent.pack.name)
    whole.restore(Cursor(*agent.manifest.cursor), stored.state(agent.manifest))
    own = experience(whole.here, agent.lane)
    assert any((one != other).any() for one, other in zip(own, experience(whole.here, 0), strict=True))
    runner = continued(agent, 3, lambda tasks, task: (Train(task, 40),))
    for lane in range(3):
        for mine, held in zip(own, experience(runner.here, lane), strict=True):
            np.testing.assert_array_equal(held, mine)


def test_copies_of_an_agent_are_paired_and_none_is_held_but_those_that_train(agent, monkeypatch):
    begun, lanes, begin = weakref.WeakSet(), [], Runner.begin

    def noted(runner, standing):
        lanes.append((len(runner.names), len(begun)))
        begun.add(runner)
        begin(runner, standing)

    monkeypatch.setattr(Runner, "begin", noted)
    scores, _ = _measure(agent, Options(horizon=100, lanes=3))
    assert lanes == [(1, 0), (3, 0)]
    assert scores.metric == "return"
    assert list(scores.curves) == ["control", "inject", "reset", "placebo"]
    control = scores.curves["control"]
    np.testing.assert_allclose(scores.curves["placebo"][:, 0], control[:, 0], rtol=1e-6)
    assert (scores.curves["reset"][:, 0] != control[:, 0]).any()
    assert (scores.curves["inject"] != control).any()
    assert len({lane.tobytes() for lane in control.round(6)}) == 3
    with pytest.raises(UsageError, match="its last task draws nothing"):
        _measure(agent, Options(lanes=2, task="next"))
