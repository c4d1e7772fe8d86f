"""Sets of transitions: their order, splits, files, what noise does, and the task made of them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask, Specification, Step
from neoteny.tasks.streams import Task
from neoteny.tasks.transitions import (
    LEVELS,
    NO_ACTION,
    Action,
    AsOutcomes,
    NoisyActions,
    OfflineSource,
    RamRecipe,
    Recipe,
    TransitionSet,
    from_episodes,
    generate,
    load_npz,
    offline,
    read_minari,
    read_unplugged,
    record_ram,
    returns_summary,
    write_minari,
)
from neoteny.tasks.transitions.data import ARRAYS


def made(lengths=(3, 2, 4, 1, 5, 2, 3, 3, 2, 4), truncated=(1, 4), dtype=np.float32, seed=0) -> TransitionSet:
    """Episodes of these lengths; those numbered `truncated` are cut off."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, list] = {name: [] for name in ARRAYS if not name.startswith("next_") or name == "next_obs"}
    for episode, length in enumerate(lengths):
        seen = rng.integers(0, 255, (length + 1, 2, 2)).astype(dtype)
        for step in range(length):
            last = step == length - 1
            values = {
                "obs": seen[step], "next_obs": seen[step + 1], "chosen_action": rng.integers(3),
                "executed_action": rng.integers(3), "reward": rng.normal(),
                "terminated": last and episode not in truncated, "truncated": last and episode in truncated,
                "episode": episode, "step": step,
            }  # fmt: skip
            for name, value in values.items():
                arrays[name].append(value)
    return from_episodes("made", {name: np.array(values) for name, values in arrays.items()}, 3, {"level": "none"})


def same(one: TransitionSet, other: TransitionSet) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
    assert (one.name, one.actions, dict(one.about)) == (other.name, other.actions, dict(other.about))


def test_next_actions_are_those_of_the_following_transition_and_none_at_the_end():
    data = made()
    assert data.next_chosen_action[0] == data.chosen_action[1]
    assert data.next_executed_action[0] == data.executed_action[1]
    assert np.all(data.next_chosen_action[data.last] == NO_ACTION)
    assert np.all(data.next_chosen_action[~data.last] >= 0)


def test_returns_are_the_sums_of_rewards():
    data = made()
    assert data.returns[1] == pytest.approx(float(data.reward[3:5].sum()), rel=1e-6)


def test_the_last_transition_of_a_truncated_episode_is_dropped_and_that_of_a_terminated_one_kept():
    data = made()
    ends = np.flatnonzero(data.last)
    assert data.learnable[~data.last].all()
    assert [bool(each) for each in data.learnable[ends]] == [n not in (1, 4) for n in range(10)]


def test_no_episode_is_in_both_splits_and_every_learnable_transition_in_one():
    data = made()
    splits = data.rows()
    train, dev = (set(data.episode[splits[name]]) for name in ("train", "dev"))
    assert not train & dev
    assert len(dev) == 1
    together = np.sort(np.concatenate([splits["train"], splits["dev"]]))
    np.testing.assert_array_equal(together, np.flatnonzero(data.learnable))
    fewer = data.rows(0.4)
    assert set(data.episode[fewer["train"]]) < train
    np.testing.assert_array_equal(fewer["dev"], splits["dev"])


@pytest.mark.parametrize(
    ("field", "row", "value", "what"),
    [
        ("step", 1, 5, "its step does not follow"),
        ("episode", 4, 3, "followed by another"),
        ("terminated", 0, True, "goes on after its end"),
        ("next_obs", 0, 9.5, "not what is seen next"),
        ("next_chosen_action", 0, NO_ACTION, "not that of the next transition"),
        ("chosen_action", 0, 3, "must be from 0 to 2"),
    ],
)
def test_what_is_out_of_order_is_refused(field, row, value, what):
    data = made()
    changed = getattr(data, field).copy()
    changed[row] = value
    if field == "episode":
        changed[3:5] = value
    with pytest.raises(UsageError, match=what):
        replace(data, **{field: changed})


def test_lengths_and_types_must_agree():
    data = made()
    with pytest.raises(UsageError, match="reward has 3 rows"):
        replace(data, reward=data.reward[:3])
    with pytest.raises(UsageError, match="expected int32"):
        replace(data, chosen_action=data.chosen_action.astype(np.int64))
    with pytest.raises(UsageError, match="lack chosen_action"):
        from_episodes("x", {"obs": data.obs}, 3, {})


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_npz_gives_back_what_was_written(tmp_path, dtype):
    data = made(dtype=dtype)
    data.save(tmp_path / "set.npz")
    same(load_npz(tmp_path / "set.npz"), data)


def test_files_that_are_no_sets_are_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        load_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UsageError, match="it lacks about, obs"):
        load_npz(tmp_path / "other.npz")


def test_minari_gives_back_what_was_written_by_its_own_loader(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    data = made(dtype=np.uint8)
    where = write_minari(data, tmp_path, "made/test-v0")
    same(read_minari(tmp_path, "made/test-v0"), data)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    theirs = minari.load_dataset("made/test-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (10, len(data))
    first = theirs[0]
    assert len(first.observations) == len(first.actions) + 1
    np.testing.assert_array_equal(first.observations[-1], data.next_obs[2])
    assert where.is_dir()
    with pytest.raises(UsageError, match="exists"):
        write_minari(data, tmp_path, "made/test-v0")
    with pytest.raises(UsageError, match="no Minari data set"):
        read_minari(tmp_path, "made/other-v0")


def varint(number: int) -> bytes:
    found = b""
    while True:
        byte, number = number & 0x7F, number >> 7
        found += bytes([byte | (0x80 if number else 0)])
        if not number:
            return found


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features) -> bytes:
    """A serialised tf.train.Example of floats and whole numbers."""
    entries = b""
    for name, values in features.items():
        whole = np.issubdtype(np.asarray(values).dtype, np.integer)
        packed = b"".join(varint(int(v) % 2**64) for v in np.ravel(values)) if whole else np.float32(values).tobytes()
        feature = field(3 if whole else 2, field(1, packed))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def records(*examples: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(e)) + b"\0" * 4 + e + b"\0" * 4 for e in examples)


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_records_in_the_style_of_rl_unplugged_are_read(tmp_path, opened):
    rows = [
        example(
            o_t=np.float32([i, i + 0.5]), a_t=i % 3, r_t=np.float32([i * 2]), d_t=np.float32([i != 2]),
            o_tp1=np.float32([i + 1, 0]), a_tp1=(i + 1) % 3, episode_id=[7, 300, 7, 300][i],
        )
        for i in range(4)
    ]  # fmt: skip
    with opened(tmp_path / "part", "wb") as file:
        file.write(records(*rows))
    data = read_unplugged([tmp_path / "part"], "unplugged", 3, shape=(2,))
    np.testing.assert_array_equal(data.obs[:, 0], [0, 2, 1, 3])
    np.testing.assert_array_equal(data.chosen_action, [0, 2, 1, 0])
    np.testing.assert_array_equal(data.reward, [0, 4, 2, 6])
    np.testing.assert_array_equal(data.terminated, [False, True, False, False])
    np.testing.assert_array_equal(data.next_chosen_action, [1, NO_ACTION, 2, 1])
    np.testing.assert_array_equal(data.episode, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.step, [0, 1, 0, 1])
    assert data.learnable.all()
    assert len(read_unplugged([tmp_path / "part"], "few", 3, shape=(2,), limit=2)) == 2


def test_damaged_records_are_refused(tmp_path):
    whole = records(example(o_t=np.float32([1.0])))
    (tmp_path / "cut").write_bytes(whole[:-9])
    (tmp_path / "lacking").write_bytes(whole)
    with pytest.raises(UsageError, match="ends within a record"):
        read_unplugged([tmp_path / "cut"], "x", 3)
    with pytest.raises(UsageError, match="record 0 lacks a_t"):
        read_unplugged([tmp_path / "lacking"], "x", 3)


@pytest.mark.parametrize("action", list(Action))
def test_a_task_shows_observations_and_what_followed(action):
    data = made()
    arrays = data.arrays(action)
    rows = np.arange(len(data))
    shown, after = AsOutcomes()((), jnp.asarray(arrays.inputs), jnp.asarray(arrays.targets), rows)
    np.testing.assert_array_equal(shown, data.obs)
    np.testing.assert_array_equal(after.next_observations, data.next_obs)
    np.testing.assert_array_equal(after.actions, getattr(data, f"{action}_action"))
    following = getattr(data, f"next_{action}_action")
    np.testing.assert_array_equal(np.asarray(after.next_actions)[following >= 0], following[following >= 0])
    np.testing.assert_array_equal(after.terminated, data.terminated)  # truncation is no termination
    np.testing.assert_allclose(after.rewards, data.reward)
    assert arrays.classes == 3


class Counting(DeviceEnvironment):
    """Four steps; the frame shows the action that was done."""

    def __eq__(self, other):
        return isinstance(other, Counting)

    def __hash__(self):
        return 1

    @property
    def specification(self):
        return Specification((1,), "float32", 4)

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.zeros(1)

    def step(self, state, action, key):
        over = state + 1 >= 4
        return state + 1, Step(action[None].astype(jnp.float32), jnp.float32(1), over, jnp.zeros((), bool))


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_noise_replaces_the_action_as_often_as_it_says(probability):
    noisy = NoisyActions(Counting(), probability)
    keys = jax.random.split(jax.random.key(0), 4_000)
    done = jax.vmap(lambda key: noisy.step(jnp.int32(0), jnp.int32(2), key)[1].frame[0])(keys)
    changed = float(np.mean(np.asarray(done) != 2))
    expected = probability * 3 / 4  # one in four draws is the action itself
    assert abs(changed - expected) <= 4 * np.sqrt(expected * (1 - expected) / 4_000)


def test_a_stream_holds_the_data_and_the_environments_they_fit():
    data = made().arrays()
    with pytest.raises(UsageError, match="judge the policy in the environment"):
        offline(data, (Counting(),))
    catch = LEVELS["catch"].environment
    recorded = generate(Recipe("catch", 0.1, 10))
    task, quiet = offline(recorded.arrays(), (catch,))
    assert isinstance(task, Task)
    assert isinstance(quiet, EnvironmentTask)
    assert quiet.index == 1


def test_evaluations_begin_differently_by_seed_and_alike_for_one():
    source = OfflineSource()
    task = EnvironmentTask("catch", LEVELS["catch"].environment)

    def act(observations, key):
        return jnp.ones(observations.shape[0], jnp.int32)  # stay in the middle

    scores = [float(source.evaluate(task, act, jax.random.key(seed), 16)["return"]) for seed in (0, 0, 1, 2, 3)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


@pytest.fixture(scope="module")
def catch_set() -> TransitionSet:
    return generate(Recipe("catch", 0.3, 200))


def test_a_recorded_set_has_the_noise_and_the_episodes_it_says(catch_set):
    assert len(catch_set.returns) == 200
    assert np.all(np.bincount(catch_set.episode) == 9)
    changed = np.mean(catch_set.chosen_action != catch_set.executed_action)
    expected = 0.3 * 2 / 3
    assert abs(changed - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(catch_set))
    assert set(np.unique(catch_set.returns)) == {-1.0, 1.0}
    assert catch_set.about["random_return"] < catch_set.about["best_return"]


def test_what_was_executed_moves_the_paddle_and_the_last_of_an_episode_is_seen_before_the_reset(catch_set):
    """Catch: the paddle is in the last row and moves by action - 1 within the five columns; the ball falls to it."""
    before, after = (array.reshape(-1, 10, 5) for array in (catch_set.obs, catch_set.next_obs))
    paddle = before[:, 9].argmax(axis=1)
    replaced = catch_set.chosen_action != catch_set.executed_action
    assert replaced.sum() > 100
    going = ~catch_set.last  # at the end, ball and paddle share the last row
    moved = np.clip(paddle + catch_set.executed_action - 1, 0, 4)
    np.testing.assert_array_equal(after[going, 9].argmax(axis=1), moved[going])
    ends = np.flatnonzero(catch_set.last)
    ball = before[ends, 8].argmax(axis=1)
    assert np.all(after[ends, 9, ball] == 1)
    caught = moved[ends] == ball
    np.testing.assert_array_equal(catch_set.reward[ends], np.where(caught, 1.0, -1.0))


def test_the_behaviour_learns_while_it_is_recorded():
    returns = generate(Recipe("catch", 0.0, 1_000)).returns
    assert returns[-100:].mean() > returns[:100].mean() + 0.8


def test_the_best_return_is_the_best_tenth_of_successive_episodes():
    returns = np.repeat([0.0, 3.0, 1.0], [10, 2, 8]).astype(np.float32)
    count = len(returns)
    episode = np.arange(count)
    arrays = {
        "obs": np.zeros((count, 1)), "next_obs": np.ones((count, 1)), "chosen_action": np.zeros(count),
        "reward": returns, "terminated": np.ones(count), "truncated": np.zeros(count), "episode": episode,
        "step": np.zeros(count),
    }  # fmt: skip
    told = returns_summary(from_episodes("set", arrays, 2, {}), -1.0)
    assert told == {"random_return": -1.0, "mean_return": pytest.approx(0.7), "best_return": 3.0}


def test_one_recipe_is_one_set_and_another_seed_another(catch_set):
    same(generate(Recipe("catch", 0.3, 200)), catch_set)
    other = generate(Recipe("catch", 0.3, 200, seed=1))
    assert not np.array_equal(other.chosen_action, catch_set.chosen_action)


def test_mountain_car_is_scripted_for_its_share_and_truncated_not_terminated():
    data = generate(Recipe("mountain_car", 0.0, 40))
    assert 0.05 < data.about["scripted_share"] < 0.6
    lengths = np.bincount(data.episode)
    assert lengths.max() == 200
    long = np.flatnonzero(lengths == 200)
    ends = np.flatnonzero(data.last)
    assert np.all(data.truncated[ends[long]] ^ data.terminated[ends[long]])
    assert data.truncated[ends].any()
    assert np.all(data.returns == -lengths)


def test_a_recipe_is_checked():
    with pytest.raises(UsageError, match="no level"):
        Recipe("pong")
    with pytest.raises(UsageError, match="probability"):
        Recipe("catch", 1.5)


def test_atari_memory_is_recorded_by_a_policy():
    pytest.importorskip("ale_py")
    recipe = RamRecipe("Freeway", steps=120)
    data = record_ram(recipe, lambda memory, step: step % 3)
    assert data.obs.shape == (120, 128)
    assert data.obs.dtype == np.uint8
    np.testing.assert_array_equal(data.chosen_action, np.arange(120) % 3)
    assert data.truncated[-1]
    assert data.about["sticky"] == 0.25
    again = record_ram(recipe, lambda memory, step: step % 3)
    np.testing.assert_array_equal(again.obs, data.obs)
    with pytest.raises(UsageError, match="no game"):
        record_ram(RamRecipe("Nothing"))


def test_the_agent_that_is_recorded_from_atari_memory_learns():
    pytest.importorskip("ale_py")
    recipe = RamRecipe("Freeway", steps=240, batch=16, period=2, width=16)
    data = record_ram(recipe)
    same(record_ram(recipe), data)
    # a rate of nothing leaves the greedy actions of the first network
    still = record_ram(replace(recipe, learning_rate=1e-30))
    assert not np.array_equal(data.chosen_action, still.chosen_action)
    assert data.about["policy"] == "learning DQN"


@pytest.mark.parametrize("damage", ["cut", "empty", "array", "about", "list"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    path = tmp_path / "set.npz"
    data = made()
    data.save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        about = np.array("not JSON" if damage == "about" else "[1]")
        np.savez(path, about=about, **{name: getattr(data, name) for name in ARRAYS})
    with pytest.raises(UsageError, match=r"set\.npz"):
        load_npz(path)


def test_what_a_set_says_of_itself_does_not_change_what_it_is(tmp_path):
    data = replace(made(), about={"name": "other", "actions": 9, "loose": True})
    data.save(tmp_path / "set.npz")
    read = load_npz(tmp_path / "set.npz")
    assert (read.name, read.actions, read.loose) == ("made", 3, False)


def test_loose_transitions_have_no_returns_and_no_minari_episodes(tmp_path):
    pytest.importorskip("minari")
    data = replace(made(), loose=True)
    assert np.isnan(data.returns).all()
    with pytest.raises(UsageError, match="whole ones"):
        write_minari(data, tmp_path, "made/loose-v0")


def test_a_share_of_the_data_goes_by_a_name_of_its_own():
    data = generate(Recipe("catch", 0.1, 20))
    names = {data.arrays(action, share).name for action in Action for share in (1.0, 0.5, 0.1)}
    assert len(names) == 6
