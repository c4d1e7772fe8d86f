"""The host source on a made-up emulator whose every frame is known, and its exact return from a store."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax
import pytest

from device_loop import LAST, Corridor, optimal_values
from host_emulators import HostMaze, Ladder
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import detach
from neoteny.networks import Dense, Network
from neoteny.tasks.environments import EnvironmentTask, Specification
from neoteny.tasks.experience import LinearEpsilon, as_network_sees, network_input
from neoteny.tasks.host_experience import ATARI, HostExperience
from neoteny.tasks.replay import as_observation, as_observations
from neoteny.training.clock import Clock
from neoteny.training.keys import Purpose

SMALL = HostExperience(
    batch_size=16, envs=2, period=2, learning_starts=40, capacity=120, stack=2, discount=0.9, reward_bound=None,
    epsilon=LinearEpsilon(0.5, 0.1, 200), segment=100,
)  # fmt: skip


def policy(observations: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Greedy by the time shown."""
    return (observations[..., -1, 2].astype(int) % 3).astype(np.int32)


def test_batches_tell_what_happened():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1, 2])
    kinds = {"terminated": 0, "life": 0, "cut": 0, "segment": 0}
    for update in range(60):
        batch, cost = play.next(policy, update)
        assert cost.steps == (44 if update == 0 else 4)
        for lane in range(3):
            for row in range(16):
                older, now = batch.observations[lane, row]
                seed, episode, time, _ = now
                if time == 0:
                    assert not older.any()
                else:
                    np.testing.assert_array_equal(older[:3], [seed, episode, time - 1])
                assert batch.rewards[lane, row] == time + 1
                over = (time == 8 and episode % 2 == 0) or time == 4
                assert batch.discounts[lane, row] == (0.0 if over else np.float32(0.9))
                if over:
                    kinds["life" if time == 4 else "terminated"] += 1
                    continue
                after = batch.next_observations[lane, row]
                np.testing.assert_array_equal(after[0], now)
                np.testing.assert_array_equal(after[1], [seed, episode, time + 1, batch.actions[lane, row]])
                kinds["cut"] += time == 11
    assert kinds["terminated"] > 0
    assert kinds["life"] > 0
    assert kinds["cut"] > 0


def test_a_life_lost_ends_no_episode_and_can_be_ignored():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0])
    play.next(policy, 0)
    rows = play.replays[0].ring.rows
    lost = rows.frame[:22, :, 2] == 4
    assert rows.terminated[:22][lost].all()
    assert not rows.ended[:22][lost].any()
    other = SMALL.start(EnvironmentTask("ladder", Ladder(life_loss=False)), [0])
    other.next(policy, 0)
    assert not other.replays[0].ring.rows.terminated[:22][lost].any()


def test_every_segment_cuts_off_all_episodes_and_begins_anew_from_its_own_seed():
    environment = Ladder()
    play = SMALL.start(EnvironmentTask("ladder", environment), [0, 1])
    for update in range(41):
        play.next(policy, update)
    # 20 slots of filling and 2 an update: 102, so two segments of 50 slots are over.
    assert len(environment.log) == 2 * 3
    assert len(set(environment.log)) == 6
    for rows in (replay.ring.rows for replay in play.replays):
        for slot in (49, 99):
            assert rows.ended[slot % 60].all()
    again = Ladder()
    SMALL.start(EnvironmentTask("ladder", again), [0, 1]).fill()
    assert again.log == environment.log[:2]


def test_returns_are_those_of_whole_episodes():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0])
    episodes = returns = 0.0
    for update in range(40):
        batch, _ = play.next(policy, update)
        episodes, returns = episodes + batch.episodes[0], returns + batch.returns[0]
    # 50 slots hold 9 + 12 + 9 + 12 = 42, twice, in two environments; each fifth episode is cut off by the segment.
    assert episodes == 2 * 2 * 4
    assert returns == 2 * 2 * (45 + 78 + 45 + 78)


def test_the_reward_is_the_mean_of_all_steps_since_the_last_batch():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1])
    before = 0
    for update in range(19):
        reward = play.next(policy, update)[0].reward
        np.testing.assert_allclose(reward, play.rows.reward[:, before : play.written].mean(axis=(1, 2)), rtol=1e-6)
        before = play.written
    assert before == 20 + 2 * 19
    assert not play.sample(4, 0).reward.any()


def test_what_is_stored_at_a_boundary_goes_on_exactly():
    def begin():
        return SMALL.start(EnvironmentTask("ladder", Ladder()), [3, 4])

    whole = begin()
    updates = 0
    while updates == 0 or not whole.at_boundary:
        whole.next(policy, updates)
        updates += 1
    assert whole.written == 50
    stored, rows = whole.arrays(), copy.deepcopy(whole.rows._asdict())
    resumed = begin()
    resumed.restore(stored, rows)
    for update in range(updates, updates + 30):
        expected, found = whole.next(policy, update)[0], resumed.next(policy, update)[0]
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.rows, resumed.rows, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not whole.at_boundary
    with pytest.raises(ValueError, match="amid a segment"):
        whole.arrays()


def test_episodes_can_be_cut_off_anywhere_and_keep_their_future():
    """Training ends amid a segment: whoever was under way was cut off, with the frame after its last action kept."""
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1], ends=1)
    play.next(policy, 0)
    play.next(policy, 1)
    assert not play.at_boundary
    shown, last = play._table.frames[:, :, -1].copy(), play.written - 1
    before = play.cuts.copy()
    play.cut_off()
    assert play.at_boundary
    assert play.segment == 1
    assert (play.cuts == before + 1).all()
    for lane, replay in enumerate(play.replays):
        assert replay.ring.rows.ended[last].all()
        assert not replay.ring.rows.terminated[last].any()
        batch = play.layout.read_frames(replay, np.asarray([last, last]), np.asarray([0, 1]))
        np.testing.assert_array_equal(batch.next_observations[:, 1], shown[lane])
        np.testing.assert_array_equal(batch.discounts, np.float32([0.9, 0.9]))
    play.cut_off()
    assert play.segment == 1, "nothing is under way any more"


def test_playing_ahead_changes_when_it_is_played_and_nothing_else():
    one, other = (SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1]) for _ in range(2))
    for update in range(40):
        (expected, cost), (found, same) = one.next(policy, update), other.next(policy, update)
        assert cost == same
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.at_boundary == other.at_boundary
        if not other.at_boundary:
            other.play_ahead(policy)
            assert not other.at_boundary


def test_copies_go_on_by_themselves():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [3, 4])
    for update in range(120):
        play.next(policy, update)
    play.cut_off()
    assert play.cuts.min() > play.layout.finals, "the table of last frames went round"
    copied, second, longer = play.copies(), play.copies([1, 1], [4, 9]), play.copies(ends=7)
    assert longer.layout.finals == play.layout.finals + 7
    for other in (copied, longer):
        for a, b in zip(play.sample(200, 0), other.sample(200, 0), strict=True):
            np.testing.assert_array_equal(a, b)
    untouched = copy.deepcopy(copied.rows)
    expected = [play.next(policy, update)[0] for update in range(120, 124)]
    for a, b in zip(untouched, copied.rows, strict=True):
        np.testing.assert_array_equal(a, b)
    found = [copied.next(policy, update)[0] for update in range(120, 124)]
    others = [second.next(policy, update)[0] for update in range(120, 124)]
    for a, b, c in zip(expected, found, others, strict=True):
        np.testing.assert_array_equal(a.observations, b.observations)
        np.testing.assert_array_equal(a.observations[1], c.observations[0])
    assert not np.array_equal(others[-1].observations[0], others[-1].observations[1])


def test_lanes_differ_in_emulators_exploration_and_draws_and_one_seed_repeats():
    def batches(seeds):
        play = SMALL.start(EnvironmentTask("ladder", Ladder()), seeds)
        return play, [play.next(policy, update)[0] for update in range(3)]

    play, found = batches([0, 1, 2, 3])
    seeds = {rows.frame[0, 0, 0] for rows in (r.ring.rows for r in play.replays)}
    assert len(seeds) == 4
    assert len({rows.action[:20].tobytes() for rows in (r.ring.rows for r in play.replays)}) == 4
    assert len({found[2].observations[lane, :, 1, 1:3].tobytes() for lane in range(4)}) == 4
    _, again = batches([2, 2])
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.observations[2], b.observations[0])
        np.testing.assert_array_equal(b.observations[0], b.observations[1])


def test_the_network_is_asked_only_after_the_replay_is_filled():
    asked = []

    def act(observations, counters):
        asked.append((observations.shape, counters.tolist()))
        return policy(observations, counters)

    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1])
    play.next(act, 0)
    assert asked == [((2, 2, 2, 4), [Purpose.EXPLORATION.code, 0, 20 + step]) for step in range(2)]
    filling = np.concatenate([rows.action[:20].ravel() for rows in (r.ring.rows for r in play.replays)])
    assert np.bincount(filling, minlength=3).min() > 12


def test_evaluation_has_its_own_emulators_and_changes_nothing():
    environment = Ladder()
    play = SMALL.start(EnvironmentTask("ladder", environment), [0, 1])
    play.next(policy, 0)
    training = list(environment.log)
    before = copy.deepcopy((play.rows, play.cuts, play.written))
    found = SMALL.evaluate(play.task, play.seeds, policy, 3, 0)
    assert not set(environment.log[len(training) :]) & set(training)
    np.testing.assert_array_equal(found["return"], [45.0, 45.0])
    np.testing.assert_array_equal(found["length"], [9.0, 9.0])
    np.testing.assert_array_equal(found["unfinished"], [0.0, 0.0])
    for a, b in zip(before[0], play.rows, strict=True):
        np.testing.assert_array_equal(a, b)
    untouched = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1])
    untouched.next(policy, 0)
    np.testing.assert_array_equal(play.next(policy, 1)[0].observations, untouched.next(policy, 1)[0].observations)


def test_learning_from_host_experience_finds_the_optimal_values():
    """Episodes are cut off by the time limit and by segments, which must leave no trace in the values."""
    source = HostExperience(
        envs=2, period=1, stack=1, learning_starts=200, capacity=2_000, segment=40, discount=0.9, reward_bound=None,
        epsilon=LinearEpsilon(1.0, 0.9, 10),
    )  # fmt: skip
    learner = dqn(lambda key: Network(table=Dense(5, 2, key=key, use_bias=False)), optax.sgd(1.0), target_period=25)
    play = source.start(EnvironmentTask("maze", HostMaze()), [0, 1])
    state = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 2))

    @jax.jit
    def act(state, shown, counters):
        return jax.vmap(lambda s, o: learner.act(s, network_input(as_observation(o)), None))(state, shown)

    @jax.jit
    def update(state, batch, clock):
        def lane(state, batch):
            state, _ = learner.update(state, as_network_sees(as_observations(batch)), jax.random.key(0))
            return detach(learner.periodic(state, clock))

        return jax.vmap(lane)(state, batch)

    state = detach(state)
    for number in range(2_500):  # a hundred copies to the target, each of which takes a tenth of the error away
        batch, _ = play.next(partial(act, state), number)
        state = update(state, batch, Clock(*(np.int32(n) for n in (number + 1, 0, 0, number + 1))))
    found = np.asarray(state.networks["online"].stages[0].weight)
    for lane in range(2):
        np.testing.assert_allclose(found[lane].T[:LAST], optimal_values(0.9)[:LAST], atol=1e-3)


def test_a_million_atari_frames_fit_in_memory():
    layout = ATARI.layout(EnvironmentTask("atari", Frames()), ATARI.segment)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(layout.empty)))
    assert size < 1.01 * 1_000_000 * 84 * 84


@dataclass(frozen=True)
class Frames(Ladder):
    """The shape of Atari."""

    @property
    def specification(self):
        return Specification((84, 84, 1), "uint8", 18, 27_000)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="multiple of period x envs"):
        HostExperience(segment=1_001)
    with pytest.raises(ValueError, match="needs a host environment"):
        SMALL.start(EnvironmentTask("corridor", Corridor()), [0])
