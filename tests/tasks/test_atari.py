"""Atari: envpool against ale-py, and settings as the emulator itself knows them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from neoteny.errors import UsageError
from neoteny.tasks.atari import Atari, Engine, choices, resized


def test_modes_and_difficulties_are_those_of_the_emulator():
    assert choices("breakout").modes == tuple(range(0, 45, 4))
    assert choices("breakout").difficulties == (0, 1)
    assert choices("space_invaders").modes == tuple(range(16))
    assert choices("demon_attack").modes[0] == 1
    assert choices("centipede").modes == (22, 86)
    assert Atari("breakout").specification.actions == 4
    assert Atari("breakout", full_actions=True).specification.actions == 18
    assert Atari("pong").specification.time_limit == 27_000


def play(engine: Engine, game: str, actions: np.ndarray, **settings):
    emulators = Atari(game, engine=engine, noops=1, **settings).start(2, seed=3)
    first = emulators.reset()
    steps = [emulators.step(row) for row in actions]
    emulators.close()
    return first, steps


@pytest.mark.parametrize("game", ["breakout", "pong"])
def test_both_engines_show_and_give_the_same(game):
    """Without sticky actions and with a single no-op nothing is random."""
    actions = np.random.default_rng(0).integers(0, 4, (120, 2)).astype(np.int32)
    (first, fast), (reference_first, reference) = (play(engine, game, actions) for engine in Engine)
    assert first.shape == reference_first.shape == (2, 84, 84, 1)
    seen = 0.0
    shown = [first, *[s.frame for s in fast]]
    for ours, theirs in zip(shown, [reference_first, *[s.frame for s in reference]], strict=True):
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.max() <= 1  # rounding of a mean
        seen = max(seen, theirs.std())
    assert seen > 10
    for name in ("reward", "terminated", "truncated", "lost"):
        found, expected = (np.asarray([getattr(s, name) for s in steps]) for steps in (fast, reference))
        np.testing.assert_array_equal(found, expected)
    assert np.asarray([s.reward for s in reference]).any()
    if game == "breakout":
        assert np.asarray([s.lost for s in reference]).any()


@pytest.mark.parametrize("engine", Engine)
def test_the_frame_limit_cuts_off_and_only_those_asked_begin_anew(engine):
    emulators = Atari("pong", engine=engine, frame_limit=80).start(2, seed=0)
    emulators.reset()
    for at in range(1, 21):
        step = emulators.step(np.zeros(2, np.int32))
        assert not step.terminated.any()
        assert step.truncated.tolist() == [at == 20] * 2
    frames = emulators.reset(np.asarray([0, 1]))
    for _ in range(7):
        emulators.step(np.zeros(2, np.int32))
    one = emulators.reset(np.asarray([1]))
    assert (frames.shape, one.shape) == ((2, 84, 84, 1), (1, 84, 84, 1))
    for at in range(8, 21):
        step = emulators.step(np.zeros(2, np.int32))
        assert step.truncated.tolist() == [at == 20, False]
    emulators.close()


@pytest.mark.parametrize("engine", Engine)
def test_seeds_draw_no_ops_and_sticky_actions(engine):
    actions = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(np.int32)

    def frames(seed: int, sticky: float) -> np.ndarray:
        emulators = Atari("space_invaders", engine=engine, sticky=sticky, noops=1).start(2, seed)
        emulators.reset()
        found = np.stack([emulators.step(row).frame for row in actions])
        emulators.close()
        return found

    np.testing.assert_array_equal(frames(1, 0.25), frames(1, 0.25))
    assert not np.array_equal(frames(1, 0.25), frames(2, 0.25))
    np.testing.assert_array_equal(frames(1, 0.0), frames(2, 0.0))


def test_modes_change_the_game():
    actions = np.ones((30, 2), np.int32)
    for engine in Engine:
        plain, other = (play(engine, "breakout", actions, mode=mode)[1][-1].frame for mode in (0, 20))
        assert not np.array_equal(plain, other)


def test_resizing_is_by_area():
    rng = np.random.default_rng(0)
    screen = rng.integers(0, 256, (210, 160)).astype(np.uint8)
    # Every input pixel as 84 x 84 equal parts, then means of whole blocks.
    fine = np.repeat(np.repeat(screen.astype(float), 2, axis=0), 21, axis=1)  # 420 x 3360
    expected = fine.reshape(84, 5, 84, 40).mean(axis=(1, 3))
    assert np.abs(resized(screen) - expected).max() <= 0.501


def test_what_does_not_exist_is_one_clear_line():
    with pytest.raises(UsageError, match="breakout has no mode 3; it has 0, 4, 8"):
        Atari("breakout", mode=3).start(1, 0)
    with pytest.raises(UsageError, match="no difficulty 2"):
        Atari("breakout", difficulty=2).start(1, 0)
    with pytest.raises(UsageError, match="no Atari game 'chess_tournament'"):
        _ = Atari("chess_tournament").specification
    with pytest.raises(ValueError, match="at least one no-op"):
        Atari("breakout", noops=0)
    assert Atari("breakout", noops=0, engine=Engine.ALE).noops == 0


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    choices.cache_clear()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(UsageError, match=r"pip install 'neoteny\[atari\]'"):
        _ = Atari("breakout").specification
    choices.cache_clear()
