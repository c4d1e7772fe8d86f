"""Fixed data sets of transitions as arrays, and as the arrays a task is learned from (arXiv:2207.02099)."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.images import cut, shuffled

NO_ACTION = -1
"""Stands for the next action where the data hold none: at the last transition of an episode."""

DEV_SHARE = 0.1
"""Share of the episodes kept apart, for probes and scores (section 7.1 of the specification)."""

TYPES: dict[str, type] = {
    "chosen_action": np.int32,
    "executed_action": np.int32,
    "reward": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "next_chosen_action": np.int32,
    "next_executed_action": np.int32,
    "episode": np.int32,
    "step": np.int32,
}
"""Arrays with one number a transition, and their types."""


NEXT_ACTIONS = ("next_chosen_action", "next_executed_action")


class Action(StrEnum):
    """Which of the two stored actions counts: CHOSEN makes noise part of the environment, EXECUTED of the behaviour."""

    CHOSEN = "chosen"
    EXECUTED = "executed"


@dataclass(frozen=True, eq=False)
class TransitionSet:
    """Transitions of whole episodes, in the order they happened.

    obs, next_obs: (n, *shape) uint8 or float32; next_obs is what was seen before any reset. chosen_action: what the
    behaviour asked for; executed_action: what was done, another one where noise intervened. reward: of the step.
    terminated: no future; truncated: cut off, and the future still has a value. next_*_action: those of the next
    transition, NO_ACTION at the last of an episode. episode: 0, 0, ..., 1, ...; step: 0, 1, ... within each. actions:
    how many there are. about: what made the data, numbers and text alone. loose: the transitions are a sample of their
    episodes, sorted by episode, each with its next action; what one shows next need not be here. UsageError if these do
    not fit together.
    """

    name: str
    obs: np.ndarray
    chosen_action: np.ndarray
    executed_action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_chosen_action: np.ndarray
    next_executed_action: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    actions: int
    about: Mapping[str, Any] = field(default_factory=dict)
    loose: bool = False

    def __post_init__(self):
        count = len(self.obs)
        if count == 0:
            raise UsageError(f"{self.name}: there are no transitions")
        for name in ARRAYS:
            array = getattr(self, name)
            if len(array) != count:
                raise UsageError(
                    f"{self.name}: {name} has {len(array)} rows and obs has {count}; give one a transition"
                )
            if name in TYPES and (array.ndim != 1 or array.dtype != TYPES[name]):
                raise UsageError(
                    f"{self.name}: {name} is {array.dtype}{array.shape}; expected {np.dtype(TYPES[name])}({count},)"
                )
        if self.obs.shape != self.next_obs.shape or self.obs.dtype != self.next_obs.dtype:
            raise UsageError(f"{self.name}: obs and next_obs must have one shape and type")
        if self.obs.dtype not in (np.uint8, np.float32):
            raise UsageError(f"{self.name}: observations must be uint8 or float32, not {self.obs.dtype}")
        for name in ("chosen_action", "executed_action"):
            action = getattr(self, name)
            if action.min() < 0 or action.max() >= self.actions:
                raise UsageError(f"{self.name}: {name} must be from 0 to {self.actions - 1}")
        if not self.loose:
            self._check_order()
        elif np.any(np.diff(self.episode) < 0):
            raise UsageError(f"{self.name}: loose transitions must be sorted by episode")

    def _check_order(self) -> None:
        """UsageError naming the first transition that is out of its episode's order."""
        last = self.last
        begins = np.concatenate([[True], last[:-1]])
        before = np.concatenate([[-1], self.step[:-1]])
        wrong = np.flatnonzero(self.step != np.where(begins, 0, before + 1))
        jumps = np.flatnonzero(np.diff(self.episode) != begins[1:])
        ended = np.flatnonzero((self.terminated | self.truncated) & ~last)
        apart = np.flatnonzero([not np.array_equal(self.next_obs[i], self.obs[i + 1]) for i in np.flatnonzero(~last)])
        strays = np.flatnonzero(
            (self.next_chosen_action != _following(self.chosen_action, last))
            | (self.next_executed_action != _following(self.executed_action, last))
        )
        for rows, what in (
            (strays, "its next action is not that of the next transition"),
            (wrong, "its step does not follow the one before"),
            (jumps, "its episode is followed by another than the next"),
            (ended, "the episode goes on after its end"),
            (np.flatnonzero(~last)[apart], "next_obs is not what is seen next"),
        ):
            if len(rows):
                raise UsageError(f"{self.name}: transition {int(rows[0])}: {what}")

    def __len__(self) -> int:
        return len(self.obs)

    @cached_property
    def last(self) -> np.ndarray:
        """(n,) whether a transition is the last of its episode."""
        return np.concatenate([self.episode[1:] != self.episode[:-1], [True]])

    @cached_property
    def returns(self) -> np.ndarray:
        """(episodes,) undiscounted returns, in the order they happened; NaN of loose transitions, a part of theirs."""
        if self.loose:
            return np.full(len(np.unique(self.episode)), np.nan)
        return np.bincount(self.episode - self.episode[0], weights=self.reward)

    @property
    def learnable(self) -> np.ndarray:
        """(n,) whether a transition may be learned from: it terminated, or its next action is known.

        The action after the last stored step of a truncated episode is unknown, so every objective does without it.
        """
        return self.terminated | (self.next_chosen_action != NO_ACTION)

    def rows(self, share: float = 1.0) -> dict[str, np.ndarray]:
        """Rows to learn from by split, cut by whole episodes: train, and dev, a tenth of the episodes.

        share: the part of the training episodes to use. The same episodes on every machine; rows of dev are in a fixed
        random order, so that any first so many are a sample.
        """
        if not 0 < share <= 1:
            raise UsageError(f"the share of the data must be above 0 and at most 1, not {share}")
        episodes = np.unique(self.episode)
        if len(episodes) < 2:
            raise UsageError(f"{self.name}: {len(episodes)} episode cannot be split; give at least 2")
        train, dev = cut(episodes, None, max(1, round(DEV_SHARE * len(episodes))))
        train = shuffled(train)[: max(1, round(share * len(train)))]
        learnable = self.learnable

        def of(chosen: np.ndarray) -> np.ndarray:
            return np.flatnonzero(np.isin(self.episode, chosen) & learnable).astype(np.int32)

        return {"train": of(train), "dev": shuffled(of(dev))}

    def arrays(self, action: Action = Action.CHOSEN, share: float = 1.0) -> Arrays:
        """As the arrays of a task: inputs (n, 2, *shape), what was seen and what was seen next; targets (n, 4)
        float32, action, reward, terminated and next action. `classes` is the number of actions. share: of the training
        episodes, see `rows`.
        """
        action = Action(action)
        taken = self.chosen_action if action is Action.CHOSEN else self.executed_action
        following = self.next_chosen_action if action is Action.CHOSEN else self.next_executed_action
        targets = np.stack([taken, self.reward, self.terminated, np.maximum(following, 0)], axis=1).astype(np.float32)
        splits = self.rows(share)
        if len(splits["train"]) == 0 or len(splits["dev"]) == 0:
            raise UsageError(f"{self.name}: a split has no transitions to learn from; give more or longer episodes")
        inputs = np.stack([self.obs, self.next_obs], axis=1)
        part = "" if share == 1 else f"-share{share:g}"
        return Arrays(
            f"{self.name}-{action}{part}", inputs, targets, splits, self.actions, source=json.dumps(dict(self.about))
        )

    def save(self, path: Path | str) -> None:
        """Write as `.npz`, whole or not at all: the arrays, and `about` as JSON."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        about = json.dumps({**self.about, "name": self.name, "actions": self.actions, "loose": self.loose})
        try:
            with open(partial, "wb") as file:
                np.savez_compressed(file, about=np.array(about), **{name: getattr(self, name) for name in ARRAYS})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


ARRAYS = tuple(item.name for item in fields(TransitionSet) if item.name not in ("name", "actions", "about", "loose"))
"""The arrays of a `TransitionSet`, by their names in a file."""


def _following(action: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(n,) the action of the next transition, NO_ACTION after the last of an episode."""
    return np.where(last, NO_ACTION, np.concatenate([action[1:], [NO_ACTION]]))


def from_episodes(name: str, arrays: Mapping[str, np.ndarray], actions: int, about: Mapping[str, Any]) -> TransitionSet:
    """A set from arrays without next actions, which are those of the following transition of the same episode.

    arrays: obs, chosen_action, reward, next_obs, terminated, truncated, episode, step, and executed_action, by default
    the chosen one. Numbers may have any type.
    """
    given = dict(arrays)
    if "chosen_action" in given:
        given.setdefault("executed_action", given["chosen_action"])
    missing = [each for each in ARRAYS if each not in given and each not in NEXT_ACTIONS]
    if missing:
        raise UsageError(f"{name}: the transitions lack {', '.join(missing)}")
    episode = np.asarray(given["episode"])
    last = np.concatenate([episode[1:] != episode[:-1], [True]])
    for which in ("chosen_action", "executed_action"):
        given[f"next_{which}"] = _following(np.asarray(given[which]), last)
    for each in ("obs", "next_obs"):
        array = np.asarray(given[each])
        given[each] = array if array.dtype == np.uint8 else array.astype(np.float32)
    typed = {each: np.asarray(given[each]).astype(kind) for each, kind in TYPES.items()}
    return TransitionSet(name, **{**given, **typed}, actions=actions, about=dict(about))


def load_npz(path: Path | str) -> TransitionSet:
    """The set that `save` wrote; UsageError naming what a file lacks."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give the path of an .npz of transitions")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UsageError(f"{path} holds one array; give an .npz of transitions")
        with file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as .npz: {error}") from error
    missing = [name for name in ("about", *ARRAYS) if name not in held]
    if missing:
        raise UsageError(f"{path} is no set of transitions: it lacks {', '.join(missing)}")
    try:
        about = json.loads(str(held.pop("about")))
    except ValueError as error:
        raise UsageError(f"{path} is no set of transitions: what it says about itself is no JSON") from error
    if not isinstance(about, dict) or not {"name", "actions"} <= set(about):
        raise UsageError(f"{path} is no set of transitions: what it says about itself lacks name or actions")
    name, actions, loose = about.pop("name"), about.pop("actions"), about.pop("loose", False)
    return TransitionSet(name, **{each: held[each] for each in ARRAYS}, actions=actions, about=about, loose=loose)
