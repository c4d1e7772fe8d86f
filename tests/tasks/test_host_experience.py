"""The host source on a made-up emulator whose every frame is known, and its exact return from a store."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
import optax
import pytest

from device_loop import LAST, NEXT, REWARD, Corridor, optimal_values
from neoteny.learners.dqn import dqn
from neoteny.learners.learner import detach
from neoteny.networks import Dense, Network
from neoteny.tasks.environments import Emulators, EnvironmentTask, HostEnvironment, HostStep, Specification
from neoteny.tasks.experience import LinearEpsilon, as_network_sees, network_input
from neoteny.tasks.host_experience import ATARI, HostExperience
from neoteny.training.clock import Clock


@dataclass(frozen=True)
class Ladder(HostEnvironment):
    """Frames (seed, number of the episode, time, last action). Episodes terminate after nine steps with even numbers,
    are truncated after twelve otherwise; at time 5 a life is lost; the reward is the time.
    """

    life_loss: bool = True
    log: list = field(default_factory=list, compare=False)

    @property
    def specification(self):
        return Specification((4,), "float32", 3, 12)

    def start(self, count, seed):
        self.log.append(seed)
        return LadderEmulators(count, seed)


class LadderEmulators(Emulators):
    def __init__(self, count, seed):
        self.seed, self.episode = seed % 1000, np.full(count, -1)
        self.time, self.action = np.zeros(count, int), np.zeros(count, int)

    def shown(self):
        seeds = self.seed * 10 + np.arange(len(self.time))
        return np.stack([seeds, self.episode, self.time, self.action], axis=1).astype(np.float32)

    def reset(self, which=None):
        which = np.arange(len(self.time)) if which is None else which
        self.episode[which] += 1
        self.time[which] = self.action[which] = 0
        return self.shown()[which]

    def step(self, actions):
        self.time += 1
        self.action = np.asarray(actions).astype(int)
        terminated = (self.time == 9) & (self.episode % 2 == 0)
        return HostStep(self.shown(), self.time.astype(np.float32), terminated, self.time == 12, self.time == 5)

    def close(self):
        pass


SMALL = HostExperience(
    batch_size=16, envs=2, period=2, learning_starts=40, capacity=120, stack=2, discount=0.9, reward_bound=None,
    epsilon=LinearEpsilon(0.5, 0.1, 200), segment=100,
)  # fmt: skip


def policy(observations: np.ndarray) -> np.ndarray:
    """Greedy by the time shown."""
    return (observations[..., -2].astype(int) % 3).astype(np.int32)


def test_batches_tell_what_happened():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1, 2])
    kinds = {"terminated": 0, "life": 0, "cut": 0, "segment": 0}
    for update in range(60):
        batch, cost = play.next(policy, update)
        assert cost == (44 if update == 0 else 4)
        for lane in range(3):
            for row in range(16):
                older, now = batch.observations[lane, row, :4], batch.observations[lane, row, 4:]
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
                np.testing.assert_array_equal(after[:4], now)
                np.testing.assert_array_equal(after[4:], [seed, episode, time + 1, batch.actions[lane, row]])
                kinds["cut"] += time == 11
    assert kinds["terminated"] > 0
    assert kinds["life"] > 0
    assert kinds["cut"] > 0


def test_a_life_lost_ends_no_episode_and_can_be_ignored():
    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0])
    play.next(policy, 0)
    rows = play.rings()[0]
    lost = rows.frame[:22, :, 2] == 4
    assert rows.terminated[:22][lost].all()
    assert not rows.ended[:22][lost].any()
    other = SMALL.start(EnvironmentTask("ladder", Ladder(life_loss=False)), [0])
    other.next(policy, 0)
    assert not other.rings()[0].terminated[:22][lost].any()


def test_every_segment_cuts_off_all_episodes_and_begins_anew_from_its_own_seed():
    environment = Ladder()
    play = SMALL.start(EnvironmentTask("ladder", environment), [0, 1])
    for update in range(41):
        play.next(policy, update)
    # 20 slots of filling and 2 an update: 102, so two segments of 50 slots are over.
    assert len(environment.log) == 2 * 3
    assert len(set(environment.log)) == 6
    for rows in play.rings():
        for slot in (49, 99):
            assert rows.ended[slot % 60].all()
    again = Ladder()
    SMALL.start(EnvironmentTask("ladder", again), [0, 1])
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


def test_what_is_stored_at_a_boundary_goes_on_exactly():
    def begin():
        return SMALL.start(EnvironmentTask("ladder", Ladder()), [3, 4])

    whole = begin()
    updates = 0
    while updates == 0 or not whole.at_boundary:
        whole.next(policy, updates)
        updates += 1
    assert whole.written == 50
    stored, rings = copy.deepcopy(whole.arrays()), copy.deepcopy(whole.rings())
    resumed = begin()
    resumed.restore(stored, rings)
    for update in range(updates, updates + 30):
        expected, found = whole.next(policy, update)[0], resumed.next(policy, update)[0]
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
    for ours, theirs in zip(whole.rings(), resumed.rings(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not whole.at_boundary
    with pytest.raises(ValueError, match="amid a segment"):
        whole.arrays()


def test_lanes_differ_in_emulators_exploration_and_draws_and_one_seed_repeats():
    def batches(seeds):
        play = SMALL.start(EnvironmentTask("ladder", Ladder()), seeds)
        return play, [play.next(policy, update)[0] for update in range(3)]

    play, found = batches([0, 1, 2, 3])
    seeds = {rows.frame[0, 0, 0] for rows in play.rings()}
    assert len(seeds) == 4
    assert len({rows.action[:20].tobytes() for rows in play.rings()}) == 4
    assert len({found[2].observations[lane, :, 4:7][:, 1:].tobytes() for lane in range(4)}) == 4
    _, again = batches([2, 2])
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.observations[2], b.observations[0])
        np.testing.assert_array_equal(b.observations[0], b.observations[1])


def test_the_network_is_asked_only_after_the_replay_is_filled():
    asked = []

    def act(observations):
        asked.append(observations.shape)
        return policy(observations)

    play = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1])
    play.next(act, 0)
    assert asked == [(2, 2, 8)] * 2
    filling = np.concatenate([rows.action[:20].ravel() for rows in play.rings()])
    assert np.bincount(filling, minlength=3).min() > 12


def test_evaluation_has_its_own_emulators_and_changes_nothing():
    environment = Ladder()
    play = SMALL.start(EnvironmentTask("ladder", environment), [0, 1])
    play.next(policy, 0)
    training = list(environment.log)
    before = copy.deepcopy((play.rings(), play.cuts, play.written))
    found = play.evaluate(policy, 3, 0)
    assert not set(environment.log[len(training) :]) & set(training)
    np.testing.assert_array_equal(found["return"], [45.0, 45.0])
    np.testing.assert_array_equal(found["length"], [9.0, 9.0])
    np.testing.assert_array_equal(found["unfinished"], [0.0, 0.0])
    for a, b in zip(before[0], play.rings(), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    untouched = SMALL.start(EnvironmentTask("ladder", Ladder()), [0, 1])
    untouched.next(policy, 0)
    np.testing.assert_array_equal(play.next(policy, 1)[0].observations, untouched.next(policy, 1)[0].observations)


@dataclass(frozen=True)
class HostMaze(HostEnvironment):
    """The maze of `device_loop`, on the host, in bytes."""

    life_loss: bool = True

    @property
    def specification(self):
        return Specification((5,), "uint8", 2, 7)

    def start(self, count, seed):
        return HostMazeEmulators(count, seed)


class HostMazeEmulators(Emulators):
    def __init__(self, count, seed):
        self.rng, self.place, self.time = np.random.default_rng(seed), np.zeros(count, int), np.zeros(count, int)

    def shown(self):
        return 255 * np.eye(5, dtype=np.uint8)[self.place]

    def reset(self, which=None):
        which = np.arange(len(self.place)) if which is None else which
        self.place[which], self.time[which] = self.rng.integers(0, LAST, len(which)), 0
        return self.shown()[which]

    def step(self, actions):
        reward = np.asarray(REWARD, np.float32)[self.place, actions]
        self.place, self.time = np.asarray(NEXT)[self.place, actions], self.time + 1
        over = self.place == LAST
        return HostStep(self.shown(), reward, over, (self.time >= 7) & ~over, np.zeros(len(over), bool))

    def close(self):
        pass


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
    def act(state, shown):
        return jax.vmap(lambda s, o: learner.act(s, network_input(o), None))(state, shown)

    @jax.jit
    def update(state, batch, clock):
        def lane(state, batch):
            state, _ = learner.update(state, as_network_sees(batch), jax.random.key(0))
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
