"""neoteny: a laboratory for networks that must keep learning.

Rooms (`networks`, `tasks`, `learners`, `interventions`, `regularizers`, `probes`, `analysis`, ...) and the functions
`run`, `load`, `arrays` and `recorded` are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from neoteny import (
        agents,
        analysis,
        interventions,
        lab,
        learners,
        networks,
        probes,
        regularizers,
        report,
        studies,
        tasks,
        training,
    )
    from neoteny.lab.direct import Result, run
    from neoteny.lab.recorded import recorded
    from neoteny.lab.results import arrays, load

_ROOMS = (
    "agents",
    "analysis",
    "interventions",
    "lab",
    "learners",
    "networks",
    "probes",
    "regularizers",
    "report",
    "studies",
    "tasks",
    "training",
)
_FUNCTIONS = {
    "run": "neoteny.lab.direct",
    "Result": "neoteny.lab.direct",
    "load": "neoteny.lab.results",
    "arrays": "neoteny.lab.results",
    "recorded": "neoteny.lab.recorded",
}

__all__ = [
    "Result",
    "agents",
    "analysis",
    "arrays",
    "interventions",
    "lab",
    "learners",
    "load",
    "networks",
    "probes",
    "recorded",
    "regularizers",
    "report",
    "run",
    "studies",
    "tasks",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"neoteny.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'neoteny' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
