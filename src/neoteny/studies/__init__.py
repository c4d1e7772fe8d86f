"""The studies, by name. Each lives in a module of this room that declares `STUDY`; it is imported when it is asked
for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping

from neoteny.errors import UsageError
from neoteny.lab.study import Study

STUDIES: Mapping[str, str] = {
    "tunnel": "Do deep classifiers split into an extractor and a tunnel? (Masarczyk et al. 2023)",
    "injection": "Is lost plasticity the limit, and do injected parameters lift it? (Nikishin et al. 2023)",
    "lru": "Do long sequences need more than a linear, stable, normalised recurrence? (Orvieto et al. 2023)",
    "plasticity": "Does a network stay able to learn when its targets keep changing? (Lyle et al. 2023)",
    "rank": "Does the rank of its features tell how good an offline agent is? (Gulcehre et al. 2022)",
}
"""Name -> the question it asks."""


def load_study(name: str) -> Study:
    """The study of this name; UsageError naming the studies there are."""
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown study {name!r}; {hint}the studies are {', '.join(STUDIES)}")
    return importlib.import_module(f"neoteny.studies.{name}").STUDY
