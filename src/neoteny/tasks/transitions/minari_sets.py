"""Minari data sets as sets of transitions, in local folders: written, and read by Minari's own loader.

A Minari episode of T actions holds T + 1 observations, so what follows each action is the next of them. Actions are the
chosen ones; the executed ones, where they differ, are in the infos under `executed_action`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from neoteny.errors import UsageError
from neoteny.tasks.transitions.data import NO_ACTION, TransitionSet, from_episodes

FOLDER = "MINARI_DATASETS_PATH"
"""Environment variable by which Minari knows its folder."""

ABOUT, EXECUTED = "neoteny", "executed_action"
"""Names of the metadata and of the info that Minari has no place of its own for."""


def _minari() -> Any:
    try:
        import minari
    except ImportError:
        raise UsageError("Minari data sets need minari, which is missing: pip install 'neoteny[offline]'") from None
    return minari


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Minari's folder is `path` inside."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = before


def write_minari(data: TransitionSet, folder: Path | str, name: str) -> Path:
    """Write as the Minari data set `name` ("ale/freeway/dqn-mixed-v0") in a folder; gives the data set's own folder.

    UsageError if there is one of that name already, or if the transitions are loose: an episode of Minari is all that
    was seen, one after the other.
    """
    if data.loose:
        raise UsageError(f"{data.name} holds a sample of its episodes; Minari takes whole ones; use save for an .npz")
    minari = _minari()
    from gymnasium import spaces

    folder = Path(folder)
    if (folder / name).exists():
        raise UsageError(f"{folder / name} exists; remove it, or give another name")
    folder.mkdir(parents=True, exist_ok=True)
    byte = data.obs.dtype == np.uint8
    low, high = (0, 255) if byte else (-np.inf, np.inf)
    observation_space = spaces.Box(low, high, data.obs.shape[1:], data.obs.dtype.type)
    with _folder(folder), warnings.catch_warnings():
        # of authors, code and environments that a data set of one's own need not name
        warnings.filterwarnings("ignore", category=UserWarning, module=r"minari\.")
        made = minari.create_dataset_from_buffers(
            name,
            [_episode(data, rows) for rows in _episodes(data)],
            observation_space=observation_space,
            action_space=spaces.Discrete(data.actions),
            algorithm_name="neoteny",
            description=data.name,
            data_format="hdf5",
            jpeg_encoding=False,
        )
        made.storage.update_metadata({ABOUT: json.dumps({**data.about, "name": data.name}), **_versions(data)})
    return folder / name


def _versions(data: TransitionSet) -> dict[str, str]:
    return {"minari_written_by": metadata.version("minari"), "ale_version": str(data.about.get("ale_version", ""))}


def _episodes(data: TransitionSet) -> list[np.ndarray]:
    return np.split(np.arange(len(data)), np.flatnonzero(data.last)[:-1] + 1)


def _episode(data: TransitionSet, rows: np.ndarray) -> Any:
    from minari.data_collector import EpisodeBuffer

    truncated = data.truncated[rows].copy()
    truncated[-1] |= not data.terminated[rows[-1]]  # Minari's episodes end one way or the other
    return EpisodeBuffer(
        observations=[*data.obs[rows], data.next_obs[rows[-1]]],
        actions=data.chosen_action[rows].astype(np.int64).tolist(),
        rewards=data.reward[rows].tolist(),
        terminations=data.terminated[rows].tolist(),
        truncations=truncated.tolist(),
        infos={EXECUTED: np.concatenate([[NO_ACTION], data.executed_action[rows]])},
    )


def read_minari(folder: Path | str, name: str) -> TransitionSet:
    """The Minari data set `name` of a folder, whoever wrote it, if its actions are numbers from 0 on.

    UsageError for a data set that is not there, or whose actions or observations are of another kind.
    """
    minari = _minari()
    if not (Path(folder) / name).is_dir():
        raise UsageError(f"there is no Minari data set {name!r} in {folder}")
    from gymnasium import spaces

    with _folder(Path(folder)):
        found = minari.load_dataset(name)
        if not isinstance(found.action_space, spaces.Discrete) or found.action_space.start != 0:
            raise UsageError(f"{name}: its actions are {found.action_space}; only numbers from 0 on are supported")
        if not isinstance(found.observation_space, spaces.Box):
            raise UsageError(f"{name}: its observations are {found.observation_space}; only arrays are supported")
        episodes = list(found.iterate_episodes())
        about = json.loads(found.storage.metadata.get(ABOUT, "{}"))
    parts: dict[str, list[np.ndarray]] = {}
    for number, episode in enumerate(episodes):
        count = len(episode.rewards)
        infos = episode.infos or {}
        executed = np.asarray(infos[EXECUTED])[1:] if EXECUTED in infos else np.asarray(episode.actions)
        for key, values in (
            ("obs", episode.observations[:-1]),
            ("next_obs", episode.observations[1:]),
            ("chosen_action", episode.actions),
            ("executed_action", executed),
            ("reward", episode.rewards),
            ("terminated", episode.terminations),
            ("truncated", episode.truncations),
            ("episode", np.full(count, number)),
            ("step", np.arange(count)),
        ):
            parts.setdefault(key, []).append(np.asarray(values))
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    return from_episodes(about.pop("name", name.replace("/", "-")), arrays, int(found.action_space.n), about)
