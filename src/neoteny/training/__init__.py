"""Training: inside a pack. Events, the fold over a script, the clock, named keys and the compute ledger.

Names are imported when they are first used: sources of batches need the clock and the keys, and events need the tasks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Reached, Save, Switch, Train
    from neoteny.training.keys import Purpose, named_key, root_key
    from neoteny.training.ledger import count_flops

_MODULES = {
    **dict.fromkeys(
        ("Evaluate", "Event", "Fork", "Intervene", "Probe", "Reached", "Save", "Switch", "Train"), "events"
    ),
    **dict.fromkeys(("Purpose", "named_key", "root_key"), "keys"),
    "count_flops": "ledger",
}

__all__ = [
    "Evaluate",
    "Event",
    "Fork",
    "Intervene",
    "Probe",
    "Purpose",
    "Reached",
    "Save",
    "Switch",
    "Train",
    "count_flops",
    "named_key",
    "root_key",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
