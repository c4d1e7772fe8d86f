"""What this machine was seen to do, so that a plan can tell how long it will take."""

from __future__ import annotations

import json
import os
from pathlib import Path

from neoteny.errors import UsageError
from neoteny.lab.store import to_json_bytes, write_atomic

SHORTEST = 10.0
"""Runs of fewer seconds of work say little about long ones, and are not remembered."""


def cache_directory() -> Path:
    """Where neoteny keeps what it can make again: NEOTENY_CACHE, else the user's cache directory."""
    chosen = os.environ.get("NEOTENY_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neoteny"


def _path() -> Path:
    return cache_directory() / "throughput.json"


def _table() -> dict[str, float]:
    try:
        table = json.loads(_path().read_bytes())
    except (OSError, ValueError):
        return {}
    # Damage costs an estimate, nothing more.
    pairs = table.items() if isinstance(table, dict) else ()
    return {name: rate for name, rate in pairs if isinstance(rate, float) and rate > 0}


def remember(study: str, experiment: str, flops_per_second: float) -> None:
    """Note the training FLOP/s of a finished pack, compiling apart; a cache that cannot be written is no failure."""
    table = {**_table(), f"{study}/{experiment}": flops_per_second}
    try:
        write_atomic(_path(), to_json_bytes(table))
    except UsageError:
        return


def recall(study: str, experiment: str) -> float | None:
    """Training FLOP/s seen for this experiment on this machine, None if it never ran here."""
    return _table().get(f"{study}/{experiment}")
