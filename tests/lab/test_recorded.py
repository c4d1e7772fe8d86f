"""Data sets recorded by other runs: what is played, that it is written once, and one line for mistakes."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import optax
import polars as pl
import pytest

from device_loop import Corridor
from host_emulators import Ladder
from neoteny.cli import main
from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.checkpoint import find
from neoteny.lab.configs import Lane
from neoteny.lab.recorded import Behaviour, Recording, recorded
from neoteny.lab.study import Experiment, Study
from neoteny.learners.dqn import dqn
from neoteny.networks import mlp
from neoteny.studies.rank import STUDY as RANK
from neoteny.studies.rank.lanes import SET, set_name, with_set
from neoteny.studies.rank.settings import Config as RankConfig
from neoteny.studies.rank.settings import stream as rank_stream
from neoteny.tasks import DeviceExperience, HostExperience, LinearEpsilon, catch, environments
from neoteny.tasks.sources import as_inputs
from neoteny.tasks.transitions import load_npz, read_minari
from neoteny.tasks.transitions.data import ARRAYS
from neoteny.training import Save, Switch, Train
from neoteny.training.runner import Runner
from neoteny.training.stored import load
from training_cases import EXPERIMENT


@dataclass(frozen=True)
class Config:
    updates: int = 10
    learning_rate: Lane[float] = 1e-2
    seed: Lane[int] = 0


LADDER = Ladder()


def script(config, tasks):
    (task,) = tasks
    return (
        Switch(task),
        Train(task, config.updates, record_every=config.updates),
        Save("early"),
        Train(task, config.updates, record_every=config.updates),
        Save("late/one", full=True),
    )


def source(config):
    return DeviceExperience(
        batch_size=4, learning_starts=10, capacity=40, epsilon=LinearEpsilon(1.0, 0.1, 20), evaluation_limit=20
    )


def ladder_source(config):
    return HostExperience(
        batch_size=4, period=1, learning_starts=10, capacity=40, stack=2, segment=10, evaluation_limit=20
    )


def learner(shape, actions):
    return lambda config: dqn(mlp(shape, (8,), actions), optax.adam(config.learning_rate), target_period=5)


def experiment(name, environment, learner, source):
    def axes(preset):
        return {"seed": (0, 1)}

    return Experiment(name, Config, axes, lambda config: environments([environment]), learner, script, source)


CATCH = experiment("catch", catch(), learner((10, 5), 3), source)
CORRIDOR = experiment("corridor", Corridor(), learner((2,), 3), source)
LADDERS = experiment("ladder", LADDER, learner((8,), 3), ladder_source)
DATA = replace(EXPERIMENT, name="data", axes=lambda preset: {"steps": (2,), "seed": (0,)})
STUDY = Study(
    "agents", "Agents", "Nobody", "https://example.org", "What do they do?", (CATCH, CORRIDOR, LADDERS, DATA), (),
    presets={"smoke": "seconds"},
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _registered():
    from neoteny import studies

    module = types.ModuleType("neoteny.studies.agents")
    module.STUDY = STUDY
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(studies.STUDIES, "agents", "a question")
        patch.setitem(sys.modules, "neoteny.studies.agents", module)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents") / "run"
    assert main(["run", "agents", "--preset", "smoke", "--out", str(folder)]) == 0
    return folder


def runs_of(directory, experiment):
    runs = json.loads((directory / "plan.json").read_text())["runs"]
    return [name for name, run in runs.items() if run["experiment"] == experiment]


BOTH = ("early", "late/one")
NOISY = Behaviour(steps=400, epsilon=0.5, noise=0.3, seed=3, random=True)


@pytest.fixture(scope="module")
def corridor_set():
    return recorded("agents/corridor", Config(), BOTH, NOISY)


@pytest.fixture(scope="module")
def ladder_set():
    return recorded("agents/ladder", Config(), BOTH, NOISY)


def within_four_errors(rate: float, expected: float, count: int) -> bool:
    return abs(rate - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)


def test_a_compiled_environment_is_recorded_step_by_step(corridor_set):
    data = corridor_set
    assert data.obs.shape == (1_200, 2)
    assert data.actions == 3
    np.testing.assert_array_equal(data.obs[:, 0], data.step)
    np.testing.assert_array_equal(data.next_obs[:, 0], data.step + 1)  # seen before the reset
    np.testing.assert_array_equal(data.next_obs[:, 1], data.obs[:, 1])
    np.testing.assert_array_equal(data.reward, data.executed_action)
    np.testing.assert_array_equal(data.truncated, data.step == 4)
    assert not data.terminated.any()
    assert len(np.unique(data.obs[:, 1])) == len(data.returns) == 240
    sums = [data.executed_action[data.episode == number].sum() for number in range(240)]
    np.testing.assert_array_equal(data.returns, sums)


def test_an_emulator_on_the_host_is_recorded_step_by_step(ladder_set):
    data = ladder_set
    assert data.obs.shape == (1_200, 8)  # two frames side by side
    older, now = data.obs[:, :4], data.obs[:, 4:]
    np.testing.assert_array_equal(now[:, 2], data.step)
    np.testing.assert_array_equal(data.next_obs[:, 4:][:, 2], data.step + 1)
    np.testing.assert_array_equal(data.next_obs[:, 4:][:, 3], data.executed_action)
    np.testing.assert_array_equal(data.next_obs[:, :4], now)
    assert not older[data.step == 0].any()
    np.testing.assert_array_equal(data.terminated, (data.step == 8) & (now[:, 1] % 2 == 0))
    ends = np.flatnonzero(data.last)
    whole = ends[~np.isin(ends, [399, 799, 1_199])]
    np.testing.assert_array_equal(data.returns[data.episode[whole]], np.where(data.terminated[whole], 45, 78))
    assert data.truncated[whole].any()
    assert not np.any(data.terminated & data.truncated)


@pytest.mark.parametrize("which", ["corridor_set", "ladder_set"])
def test_every_policy_ends_with_its_own_episode(which, request):
    data = request.getfixturevalue(which)
    ends = np.array([399, 799, 1_199])
    assert np.all(data.terminated[ends] | data.truncated[ends])
    assert np.all(data.step[ends[:-1] + 1] == 0)
    assert data.about["policies"][0] == {"run": "random"}
    assert [(each["save"], each["update"]) for each in data.about["policies"][1:]] == [("early", 10), ("late/one", 20)]
    assert (data.about["steps"], data.about["noise"], data.about["epsilon"]) == (400, 0.3, 0.5)


@pytest.mark.parametrize("which", ["corridor_set", "ladder_set"])
def test_noise_and_exploration_are_as_likely_as_they_say(which, request):
    data = request.getfixturevalue(which)
    changed = float(np.mean(data.chosen_action != data.executed_action))
    assert within_four_errors(changed, 0.3 * 2 / 3, len(data))
    # the first policy is uniform, whatever its network says
    counts = np.bincount(data.chosen_action[:400], minlength=3)
    assert all(within_four_errors(count / 400, 1 / 3, 400) for count in counts)


def test_what_is_told_of_the_behaviour(corridor_set, ladder_set):
    assert corridor_set.about["environment"] == str(Corridor())
    assert corridor_set.about["mean_return"] == pytest.approx(corridor_set.returns.mean())
    # five actions of 0, 1 or 2 have mean 5; a hundred episodes of variance 10 / 3
    assert abs(corridor_set.about["random_return"] - 5) <= 4 * np.sqrt(10 / 3 / 100)
    assert ladder_set.about["random_return"] == 45  # the emulators' first episodes terminate, whatever is done
    (known,) = corridor_set.about["runs"].values()
    assert known == {"experiment": "agents/corridor", "config": configs.config_to_json(Config())}


@pytest.mark.parametrize(("name", "save"), [("catch", "early"), ("catch", None), ("ladder", "late/one")])
def test_without_exploration_the_actions_are_the_networks_own(directory, tmp_path, name, save):
    run = runs_of(directory, name)[1]  # the second lane of its pack
    text = f"{directory}:{run}" + (f":{save}" if save else "")
    out = tmp_path / "set.npz"
    assert main(["record", text, "--steps", "60", "--epsilon", "0", "--out", str(out)]) == 0
    data = load_npz(out)
    stored = load(find(text))
    network = jax.tree.map(lambda leaf: leaf[0], stored.learner.networks["online"])
    greedy = np.argmax(np.asarray(network(as_inputs(jax.numpy.asarray(data.obs))).output), axis=1)
    np.testing.assert_array_equal(data.chosen_action, greedy)
    np.testing.assert_array_equal(data.executed_action, greedy)


def test_truth_values_are_bytes_that_a_network_sees_as_one():
    data = recorded("agents/catch", Config(), ("early",), Behaviour(steps=45))
    assert data.obs.dtype == np.uint8
    assert data.obs.shape == (45, 10, 5)
    assert set(np.unique(data.obs)) == {0, 255}
    np.testing.assert_array_equal(np.bincount(data.episode), [9] * 5)
    assert data.terminated[data.last].all()
    assert set(np.unique(data.returns)) <= {-1.0, 1.0}


def cached() -> dict[str, float]:
    from neoteny.lab.throughput import cache_directory

    return {path.name: path.stat().st_mtime_ns for path in (cache_directory() / "transitions").glob("*.npz")}


def test_data_are_written_once_and_another_seed_makes_others(corridor_set):
    before = cached()
    again = recorded("agents/corridor", Config(), BOTH, NOISY)
    assert cached() == before
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(corridor_set, name), err_msg=name)
    other = recorded("agents/corridor", Config(), BOTH, replace(NOISY, seed=4))
    assert len(cached()) == len(before) + 1
    assert other.name != corridor_set.name
    assert not np.array_equal(other.chosen_action, corridor_set.chosen_action)
    assert recorded("agents/corridor", Config(seed=1), BOTH, NOISY).name not in (other.name, corridor_set.name)


def test_an_experiment_of_ones_own_is_named_by_its_source(corridor_set):
    own = recorded(CORRIDOR, Config(), BOTH, NOISY)
    for name in ("obs", "chosen_action", "reward"):
        np.testing.assert_array_equal(getattr(own, name), getattr(corridor_set, name), err_msg=name)
    assert re.fullmatch(r"own-[0-9a-f]{12}/corridor", next(iter(own.about["runs"].values()))["experiment"])
    scope: dict = {}
    exec("def made(config):\n    return None", scope)
    typed = replace(CORRIDOR, config=int, stream=scope["made"], learner=scope["made"], script=scope["made"])
    with pytest.raises(UsageError, match="is in no file"):
        recorded(replace(typed, source=None), Config())


RECORDING = Recording.of("agents/catch", Config(), ("early",), Behaviour(steps=900, noise=0.1, random=True))
LEARNING = RankConfig(file=RECORDING, updates=10, width=8, episodes=4, batch=16)


def test_a_recording_in_a_configuration_comes_back_and_names_the_run():
    stored = json.loads(json.dumps(configs.config_to_json(LEARNING)))
    back = configs.config_from_json(RankConfig, stored)
    assert back == LEARNING
    assert hash(back.file) == hash(RECORDING)
    names = {
        configs.run_name("rank", "sweep", replace(LEARNING, file=file))
        for file in (
            RECORDING,
            "",
            replace(RECORDING, saves=BOTH),
            replace(RECORDING, behaviour=replace(RECORDING.behaviour, seed=1)),
            Recording.of("agents/catch", Config(seed=1), ("early",), RECORDING.behaviour),
        )
    }
    assert len(names) == 5
    default = RankConfig()
    fields = {name: [getattr(default, name)] * 2 for name in SET}
    files = [configs.canonical(configs.to_json(LEARNING.file)), "mine.npz"]
    kept, given = with_set(pl.DataFrame(fields | {"file": files}))["set"]
    assert re.fullmatch(r"Catch, noise 0\.1, recorded [0-9a-f]{12} ", set_name(kept))
    assert set_name(given) == "Catch, noise 0.1, file mine.npz "


def test_a_run_of_the_rank_study_learns_from_what_another_run_did():
    task, quiet, noisy = rank_stream(LEARNING)
    data = RECORDING.load()
    np.testing.assert_array_equal(task.data.inputs[:, 0], data.obs)
    assert (quiet.index, noisy.index) == (1, 2)
    runner = Runner(RANK.experiment("sweep"), [LEARNING], ["offline"])
    runner.check()
    records = [record for tick in runner.ticks() for record in tick.records]
    assert {record.step for record in records if record.metric == "return"} == {0, 10}
    known = {record.place: record.value for record in records if record.metric == "behaviour"}
    assert known["random"] == pytest.approx(data.about["random_return"])
    losses = [record.value for record in records if record.metric == "train_loss"]
    assert losses
    assert np.all(np.isfinite(losses))
    with pytest.raises(UsageError, match="judge the policy in the environment the data come from"):
        rank_stream(replace(LEARNING, level="cartpole"))
    with pytest.raises(UsageError, match="breakout has no data of its own"):
        rank_stream(RankConfig(level="breakout"))


def test_the_command_records_several_checkpoints_to_a_minari_set(directory, tmp_path, capsys):
    pytest.importorskip("minari")
    first, second = runs_of(directory, "catch")
    out = tmp_path / "sets" / "catch-dqn-v0"
    texts = [f"{directory}:{first[:9]}:early", f"{directory}:{second}"]
    assert main(["record", *texts, "--steps", "90", "--noise", "0.2", "--random", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "270 transitions of 30 episodes of Catch-bsuite, 3 actions, observations uint8 (10, 5)" in shown
    assert f"data: {out}" in shown
    data = read_minari(out.parent, out.name)
    assert len(data) == 270
    assert [each["run"] for each in data.about["policies"]] == ["random", first, second]
    task, *_ = rank_stream(RankConfig(file=str(out), width=8))
    np.testing.assert_array_equal(task.data.inputs[:, 1], data.next_obs)


def test_without_a_place_the_data_are_in_the_cache(directory, capsys):
    text = f"{directory}:{runs_of(directory, 'corridor')[0]}:early"
    for _ in range(2):
        assert main(["record", text, "--steps", "20"]) == 0
        path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("data: "))
        assert path.name in cached()
        assert len(load_npz(path)) == 20


def test_mistakes_are_one_line_and_nothing_is_written(directory, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_bytes(b"")
    catches, corridors, data = (runs_of(directory, name)[0] for name in ("catch", "corridor", "data"))
    good = f"{directory}:{catches}"
    before = cached()
    for arguments, message in (
        ([], "`neoteny record` needs checkpoints of agents: neoteny record DIR:RUN or DIR:RUN:SAVE"),
        (["--steps", "3"], "`neoteny record` needs checkpoints of agents"),
        (["nowhere:abc"], "nowhere/plan.json is not there"),
        ([f"{good}:nope"], f"run {catches} has no save 'nope'; it has early, late/one"),
        ([f"{directory}:{data}"], f"{data} is on labels-1 here, which is data; only what an agent does in an"),
        ([good, f"{directory}:{corridors}"], f"{corridors} plays Corridor(time_limit=5, actions=3), and {catches} C"),
        ([good, "--stpes", "3"], "did you mean --steps?"),
        ([good, "--steps", "0"], "steps must be at least 1, not 0"),
        ([good, "--noise", "2"], "noise is a probability, not 2.0"),
        ([good, "--seed", "-1"], "seed must be from 0 to 2147483647, not -1"),
        ([good, "--random", "yes"], "--random takes no value, not `yes`"),
        ([good, "--out", "there.npz"], "there.npz exists; remove it, or give another --out"),
        ([good, "--out", "set"], "--out set: give FILE.npz, or a folder whose name ends in a version for Minari"),
    ):  # fmt: skip
        assert main(["record", *arguments]) == 2, arguments
        shown = capfd.readouterr()
        assert shown.out == ""
        assert re.fullmatch(r"neoteny: [^\n]+\n", shown.err), shown.err
        assert message in shown.err
    assert cached() == before
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


def test_mistakes_in_python_are_named_before_anything_is_trained():
    with pytest.raises(UsageError, match="unknown study 'agnets'; did you mean 'agents'"):
        recorded("agnets/catch", Config())
    with pytest.raises(UsageError, match="there are agents/catch, agents/corridor, agents/ladder, agents/data"):
        recorded("agents/pong", Config())
    with pytest.raises(UsageError, match="has no save 'middle'; it has early, late/one"):
        recorded("agents/catch", Config(seed=9), ("middle",))
    with pytest.raises(UsageError, match="this learner does not act"):
        recorded("agents/data", DATA.config(steps=2))


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["record", "--help"])
    assert "--epsilon" in capsys.readouterr().out
