"""The replay against lists in plain Python: every transition that can be drawn, at every place the ring can have."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from neoteny.tasks.environments import Specification
from neoteny.tasks.replay import Layout, Slot, as_observations

LIMIT = 7
CAPACITY = 24


def history(length: int, envs: int, seed: int = 0) -> list[list[dict]]:
    """A made-up history: slots, each a list of what happened in every environment.

    Frames are numbered through, so that any two differ. Episodes terminate at random or are cut off after LIMIT steps;
    some lose a life on the way.
    """
    rng = np.random.default_rng(seed)
    numbers = itertools.count(1)
    frame = [next(numbers) for _ in range(envs)]
    age, cuts = [0] * envs, [0] * envs
    slots = []
    for _ in range(length):
        slot = []
        for env in range(envs):
            over = rng.random() < 0.15
            cut = not over and age[env] + 1 == LIMIT
            life = not over and not cut and rng.random() < 0.1
            after = next(numbers)
            slot.append(
                {
                    "frame": frame[env],
                    "action": int(rng.integers(5)),
                    "reward": float(np.float32(rng.normal())),
                    "terminated": over or life,
                    "ended": over or cut,
                    "age": age[env],
                    "cuts": cuts[env],
                    "after": after,
                }
            )
            cuts[env] += cut
            frame[env], age[env] = (next(numbers), 0) if over or cut else (after, age[env] + 1)
        slots.append(slot)
    return slots


def picture(number: int) -> np.ndarray:
    """A frame (2, 1, 1) of two bytes that stands for this number."""
    return np.asarray(divmod(number, 256), np.uint8).reshape(2, 1, 1)


def filled(layout: Layout, slots: list[list[dict]]):
    @partial(jax.jit, donate_argnums=0)
    def write(replay, at, slot, after):
        return layout.write(replay, at, slot, after)

    replay = layout.empty()
    for at, happened in enumerate(slots):
        column = {name: np.asarray([one[name] for one in happened]) for name in happened[0]}
        slot = Slot(
            frame=np.stack([picture(n) for n in column["frame"]]),
            action=column["action"].astype(np.int32),
            reward=column["reward"].astype(np.float32),
            terminated=column["terminated"],
            ended=column["ended"],
            age=np.minimum(column["age"], layout.stack - 1).astype(np.uint8),
            cuts=column["cuts"].astype(np.int32),
        )
        replay = write(replay, jnp.int32(at), slot, np.stack([picture(n) for n in column["after"]]))
    return replay


def stack_of(frames: list[int], size: int) -> np.ndarray:
    """The newest `size` of an episode's frames so far as channels, zeros first if there are fewer."""
    known = [picture(n) for n in frames[-size:]]
    return np.concatenate([np.zeros((2, 1, 1), np.uint8)] * (size - len(known)) + known, axis=-1)


def reference(slots: list[list[dict]], start: int, env: int, layout: Layout) -> dict:
    """The transition that begins there, by walking through the lists."""

    def episode_until(at: int) -> list[int]:
        frames = [slots[at][env]["frame"]]
        while at > 0 and not slots[at - 1][env]["ended"]:
            at -= 1
            frames.insert(0, slots[at][env]["frame"])
        return frames

    total, discount, at = 0.0, 1.0, start
    frames = episode_until(start)
    for _ in range(layout.steps):
        happened = slots[at][env]
        total += discount * float(np.clip(happened["reward"], -0.5, 0.5) if layout.reward_bound else happened["reward"])
        discount *= layout.discount
        following = stack_of([*frames, happened["after"]], layout.stack)
        frames = [*frames, happened["after"]]
        at += 1
        if happened["terminated"]:
            return {"reward": total, "discount": 0.0, "next": following}
        if happened["ended"]:
            break
    return {"reward": total, "discount": discount, "next": following}


@pytest.mark.parametrize("written", [9, 24, 25, 61])
@pytest.mark.parametrize(
    ("stack", "steps", "envs", "bound"), [(1, 1, 1, None), (3, 1, 2, 0.5), (1, 3, 2, None), (4, 5, 1, 0.5)]
)
def test_every_transition_equals_the_lists(written, stack, steps, envs, bound):
    spec = Specification((2, 1, 1), "uint8", 5, LIMIT)
    layout = Layout(spec, CAPACITY, envs, stack, steps, 0.9, bound)
    slots = history(written, envs)
    replay = filled(layout, slots)
    first, length = map(int, layout.stretch(jnp.int32(written)))
    assert first == (0 if written <= CAPACITY else written - CAPACITY + stack - 1)
    assert first + length == written - steps
    assert int(replay.ring.written) == written
    drawn = [(slot, env) for slot in range(first, first + length) for env in range(envs)]
    where = np.asarray(drawn, np.int32)
    batch = jax.jit(layout.read)(replay, where[:, 0], where[:, 1])
    seen = set()
    for row, (slot, env) in enumerate(drawn):
        expected = reference(slots, slot, env, layout)
        episode, at = [slots[slot][env]["frame"]], slot
        while at > 0 and not slots[at - 1][env]["ended"]:
            at -= 1
            episode.insert(0, slots[at][env]["frame"])
        np.testing.assert_array_equal(batch.observations[row], stack_of(episode, stack))
        assert int(batch.actions[row]) == slots[slot][env]["action"]
        assert float(batch.rewards[row]) == pytest.approx(expected["reward"], abs=1e-5)
        assert float(batch.discounts[row]) == pytest.approx(expected["discount"], rel=1e-6)
        if expected["discount"] > 0:  # what follows a termination is never looked at
            np.testing.assert_array_equal(batch.next_observations[row], expected["next"])
        seen.add(float(batch.discounts[row]))
    if written > CAPACITY:
        assert 0.0 in seen
        assert len(seen) > 1


def test_the_same_arrays_are_read_alike_by_numpy():
    layout = Layout(Specification((2, 1, 1), "uint8", 5, LIMIT), CAPACITY, 2, 3, 3, 0.9)
    replay = filled(layout, history(40, 2))
    first, length = map(int, layout.stretch(jnp.int32(40)))
    slots, envs = np.arange(first, first + length, dtype=np.int32), np.arange(length, dtype=np.int32) % 2
    by_jax = layout.read(replay, slots, envs)
    by_numpy = as_observations(layout.read_frames(jax.tree.map(np.asarray, replay), slots, envs))
    for a, b in zip(by_jax, by_numpy, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-6)


def test_the_last_frame_of_a_cut_off_episode_is_kept_however_many_there_are():
    """Without a single termination, as many episodes are cut off as can be while a slot is kept."""
    spec = Specification((2, 1, 1), "uint8", 5, 2)
    layout = Layout(spec, 11, stack=2, discount=0.5)
    numbers = itertools.count(1)
    slots, frame = [], next(numbers)
    for at in range(40):
        after, ended = next(numbers), at % 2 == 1
        slots.append(
            [
                dict(
                    frame=frame,
                    action=0,
                    reward=0.0,
                    terminated=False,
                    ended=ended,
                    age=at % 2,
                    cuts=at // 2,
                    after=after,
                )
            ]
        )
        frame = next(numbers) if ended else after
    replay = filled(layout, slots)
    first, length = map(int, layout.stretch(jnp.int32(40)))
    where = np.arange(first, first + length, dtype=np.int32)
    batch = layout.read(replay, where, np.zeros(length, np.int32))
    np.testing.assert_allclose(batch.discounts, 0.5)
    for row, slot in enumerate(where):
        np.testing.assert_array_equal(batch.next_observations[row][..., -1:], picture(slots[slot][0]["after"]))


def test_draws_are_uniform_over_slots_and_environments():
    layout = Layout(Specification((1,), "float32", 5), 16, envs=3, stack=2, steps=2)
    replay = layout.empty()
    written = jnp.int32(21)
    rows = replay.ring.rows
    number = jnp.arange(16 * 3, dtype=jnp.int32).reshape(16, 3)
    replay = replay._replace(ring=replay.ring._replace(rows=rows._replace(action=number)))
    drawn = np.asarray(layout.sample(replay, written, jax.random.key(3), 40_000).actions)
    first, length = map(int, layout.stretch(written))
    possible = {int(number[slot % 16, env]) for slot in range(first, first + length) for env in range(3)}
    assert len(possible) == 3 * (16 - 2 - 1)
    values, counts = np.unique(drawn, return_counts=True)
    assert set(values.tolist()) == possible
    assert stats.chisquare(counts).pvalue > 1e-3
    again = layout.sample(replay, written, jax.random.key(3), 40_000).actions
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, layout.sample(replay, written, jax.random.key(4), 40_000).actions)


def test_draws_of_a_batch_and_of_successive_updates_are_independent():
    layout = Layout(Specification((1,), "float32", 5), 17)
    replay = layout.empty()
    number = jnp.arange(17, dtype=jnp.int32).reshape(17, 1)
    replay = replay._replace(ring=replay.ring._replace(rows=replay.ring.rows._replace(action=number)))
    keys = jax.vmap(lambda at: jax.random.fold_in(jax.random.key(7), at))(jnp.arange(20_000))
    drawn = np.asarray(jax.vmap(lambda key: layout.sample(replay, jnp.int32(17), key, 4).actions)(keys))
    assert set(np.unique(drawn)) == set(range(16))
    for one, other in ((drawn[:, 0], drawn[:, 1]), (drawn[:, 1], drawn[:, 3]), (drawn[:-1, 2], drawn[1:, 2])):
        counts = np.bincount(16 * one + other, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_frames_are_kept_once_and_as_they_come():
    layout = Layout(Specification((84, 84, 1), "uint8", 6, 27_000), 1_000, stack=4, steps=3)
    frames = jax.eval_shape(layout.empty)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frames))
    assert size < 1_003 * (84 * 84 + 20)


def test_a_replay_too_small_for_its_transitions_is_refused():
    with pytest.raises(ValueError, match="needs 7"):
        Layout(Specification((1,), "float32", 2), 6, stack=4, steps=3)
    with pytest.raises(ValueError, match="stack must be at least 1"):
        Layout(Specification((1,), "float32", 2), 6, stack=0)
