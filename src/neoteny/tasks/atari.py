"""Atari games on the host: envpool, fast, and the Arcade Learning Environment itself (ale-py), the reference.

Both give 84 x 84 grey frames, the maximum over the last two of `frame_skip` emulated ones (Mnih et al. 2015). Every
setting that papers differ in (Machado et al. 2018) is a field, and none is left to a library's default.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from neoteny.errors import UsageError
from neoteny.tasks.environments import Emulators, HostEnvironment, HostStep, Specification

SIZE = 84
"""Height and width of a frame (Mnih et al. 2015)."""


class Engine(enum.Enum):
    """What emulates. ALE steps its emulators one after another; ENVPOOL in threads."""

    ENVPOOL = "envpool"
    ALE = "ale"


class Choices(NamedTuple):
    """What the emulator says a game has."""

    modes: tuple[int, ...]
    difficulties: tuple[int, ...]
    minimal_actions: int
    actions: int


def _ale():
    try:
        import ale_py
    except ImportError:
        raise UsageError("Atari games need ale-py, which is not installed: pip install 'neoteny[atari]'") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def _rom(game: str) -> str:
    from ale_py import roms

    known = sorted(roms.get_all_rom_ids())
    if game not in known:
        raise UsageError(f"there is no Atari game {game!r}; there are {', '.join(known)}")
    return str(roms.get_rom_path(game))


@cache
def choices(game: str) -> Choices:
    """Modes, difficulties and numbers of actions of a game, asked from the emulator."""
    emulator = _ale().ALEInterface()
    emulator.loadROM(_rom(game))
    return Choices(
        tuple(map(int, emulator.getAvailableModes())),
        tuple(map(int, emulator.getAvailableDifficulties())),
        len(emulator.getMinimalActionSet()),
        len(emulator.getLegalActionSet()),
    )


@dataclass(frozen=True)
class Atari(HostEnvironment):
    """One Atari game.

    game: as ale-py calls it ("breakout", "space_invaders"). mode, difficulty: None for the game's first. sticky:
    probability, at every emulated frame, that the action before goes on (0 in Mnih et al. 2015, 0.25 in Machado et al.
    2018). frame_skip: emulated frames an action lasts. noops: every episode begins with 1 to `noops` of them, one frame
    each; 0 for none. life_loss: losing a life counts as termination for learning, while the episode goes on.
    frame_limit: emulated frames after which an episode is truncated. full_actions: all 18 actions instead of those the
    game uses.
    """

    game: str
    mode: int | None = None
    difficulty: int | None = None
    sticky: float = 0.0
    frame_skip: int = 4
    noops: int = 30
    life_loss: bool = True
    frame_limit: int = 108_000
    full_actions: bool = False
    engine: Engine = Engine.ENVPOOL

    def __post_init__(self):
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky is a probability below 1, not {self.sticky}")
        if self.frame_skip < 1 or self.noops < 0:
            raise ValueError(f"frame_skip must be at least 1 and noops 0, not {self.frame_skip} and {self.noops}")
        if self.frame_limit < self.frame_skip:
            raise ValueError(f"frame_limit must be at least one action of {self.frame_skip}, not {self.frame_limit}")
        if self.engine is Engine.ENVPOOL and self.noops < 1:
            raise ValueError("envpool begins every episode with at least one no-op; use noops=1 or engine=Engine.ALE")

    def __str__(self) -> str:
        setting = "" if self.mode is None and self.difficulty is None else f"-m{self.mode}-d{self.difficulty}"
        return self.game + setting

    @property
    def specification(self) -> Specification:
        self.check()
        known = choices(self.game)
        actions = known.actions if self.full_actions else known.minimal_actions
        return Specification((SIZE, SIZE, 1), "uint8", actions, self.frame_limit // self.frame_skip)

    @property
    def version(self) -> str:
        package = "envpool" if self.engine is Engine.ENVPOOL else "ale-py"
        return f"{package} {metadata.version(package)}"

    def check(self) -> None:
        """UsageError naming what the emulator has, if it does not have this mode or difficulty."""
        known = choices(self.game)
        for what, value, there in (
            ("mode", self.mode, known.modes),
            ("difficulty", self.difficulty, known.difficulties),
        ):
            if value is not None and value not in there:
                raise UsageError(f"{self.game} has no {what} {value}; it has {', '.join(map(str, there))}")

    def start(self, count: int, seed: int) -> Emulators:
        self.check()
        return _Envpool(self, count, seed) if self.engine is Engine.ENVPOOL else _Arcade(self, count, seed)


class _Envpool(Emulators):
    """`count` emulators of envpool."""

    def __init__(self, game: Atari, count: int, seed: int):
        try:
            import envpool
        except ImportError:
            raise UsageError(
                "this engine needs envpool, which is not installed: pip install 'neoteny[atari]'"
            ) from None
        known = choices(game.game)
        name = "".join(part.capitalize() for part in game.game.split("_")) + "-v5"
        self._pool = envpool.make_gymnasium(
            name,
            num_envs=count,
            seed=seed,
            stack_num=1,
            frame_skip=game.frame_skip,
            noop_max=game.noops,
            repeat_action_probability=game.sticky,
            mode=known.modes[0] if game.mode is None else game.mode,
            difficulty=known.difficulties[0] if game.difficulty is None else game.difficulty,
            full_action_space=game.full_actions,
            max_episode_steps=game.specification.time_limit,
            img_height=SIZE,
            img_width=SIZE,
            gray_scale=True,
            use_inter_area_resize=True,
            use_fire_reset=False,
            episodic_life=False,
            zero_discount_on_life_loss=False,
            reward_clip=False,
        )
        self._all = np.arange(count, dtype=np.int32)
        self._lives = np.zeros(count, np.int32)

    def reset(self, which: Int32[np.ndarray, " some"] | None = None) -> UInt8[np.ndarray, "some height width 1"]:
        rows = self._all if which is None else np.asarray(which, np.int32)
        frames, info = self._pool.reset(rows)
        order = np.argsort(info["env_id"])
        self._lives[info["env_id"]] = info["lives"]
        return np.moveaxis(frames[order], 1, -1)

    def step(self, actions: Int32[np.ndarray, " envs"]) -> HostStep:
        frames, rewards, terminated, truncated, info = self._pool.step(np.asarray(actions, np.int32), self._all)
        order = np.argsort(info["env_id"])
        lives = info["lives"][order]
        lost, self._lives = lives < self._lives, lives.copy()
        return HostStep(
            np.moveaxis(frames[order], 1, -1),
            rewards[order].astype(np.float32),
            terminated[order].astype(bool),
            (truncated & ~terminated)[order].astype(bool),
            lost,
        )

    def close(self) -> None:
        self._pool.close()


@cache
def _area(source: int) -> np.ndarray:
    """(84, source): each output pixel's share of every input pixel, by the area they have in common."""
    edges = np.arange(SIZE + 1) * (source / SIZE)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0.0) * (SIZE / source)).astype(np.float32)


def resized(screen: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "84 84"]:
    """The screen as 84 x 84 by area, rounded."""
    mean = _area(screen.shape[0]) @ screen.astype(np.float32) @ _area(screen.shape[1]).T
    return np.rint(mean).astype(np.uint8)


class _Arcade(Emulators):
    """`count` emulators of ale-py, one after another."""

    def __init__(self, game: Atari, count: int, seed: int):
        ale_py = _ale()
        self._game, self._limit = game, game.frame_limit // game.frame_skip
        self._emulators = []
        for number in range(count):
            emulator = ale_py.ALEInterface()
            emulator.setInt("random_seed", (seed + number) % 2**31)
            emulator.setFloat("repeat_action_probability", game.sticky)
            emulator.loadROM(_rom(game.game))
            if game.mode is not None:
                emulator.setMode(game.mode)
            if game.difficulty is not None:
                emulator.setDifficulty(game.difficulty)
            self._emulators.append(emulator)
        first = self._emulators[0]
        self._actions = first.getLegalActionSet() if game.full_actions else first.getMinimalActionSet()
        self._draws = [np.random.default_rng([seed, number]) for number in range(count)]
        self._lives, self._steps = np.zeros(count, np.int32), np.zeros(count, np.int64)

    def reset(self, which: Int32[np.ndarray, " some"] | None = None) -> UInt8[np.ndarray, "some height width 1"]:
        frames = []
        for number in range(len(self._emulators)) if which is None else which:
            emulator = self._emulators[number]
            emulator.reset_game()
            noops = 0 if self._game.noops == 0 else int(self._draws[number].integers(1, self._game.noops + 1))
            for _ in range(noops):
                emulator.act(0)
                if emulator.game_over():
                    emulator.reset_game()
            self._lives[number], self._steps[number] = emulator.lives(), 0
            frames.append(resized(emulator.getScreenGrayscale()))
        return np.stack(frames)[..., None]

    def step(self, actions: Int32[np.ndarray, " envs"]) -> HostStep:
        count = len(self._emulators)
        frames = np.zeros((count, SIZE, SIZE, 1), np.uint8)
        rewards, terminated, lost = np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, bool)
        for number, (emulator, action) in enumerate(zip(self._emulators, actions, strict=True)):
            screens = []
            for repeat in range(self._game.frame_skip):
                rewards[number] += emulator.act(self._actions[int(action)])
                if repeat >= self._game.frame_skip - 2 or emulator.game_over():
                    screens.append(emulator.getScreenGrayscale())
                if emulator.game_over():
                    break
            frames[number, ..., 0] = resized(np.maximum.reduce(screens[-2:]))
            terminated[number], lives = emulator.game_over(), emulator.lives()
            lost[number], self._lives[number] = lives < self._lives[number], lives
            self._steps[number] += 1
        return HostStep(frames, rewards, terminated, (self._steps >= self._limit) & ~terminated, lost)

    def close(self) -> None:
        self._emulators = []
