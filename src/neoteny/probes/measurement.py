"""How a probe is applied by a run: on features, on the host; or on a view, inside the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Stages(Enum):
    """Which stages' outputs a feature probe looks at."""

    PENULTIMATE = "penultimate"
    """The features: the stage before the last (the only one, if there is one)."""
    HIDDEN = "hidden"
    """Every stage but the last, each recorded under its name, and their mean under `all`."""


@dataclass(frozen=True)
class FeatureProbe:
    """A NumPy measurement of one stage's output: function(features (n, ...)) -> scalar, called for every lane."""

    name: str
    function: Callable[[np.ndarray], object]
    stages: Stages = Stages.PENULTIMATE

    def select(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The stages to look at, of a network with these stage names."""
        hidden = names[:-1] or names
        return hidden if self.stages is Stages.HIDDEN else hidden[-1:]


@dataclass(frozen=True)
class ViewProbe:
    """A JAX measurement: function(view, batch, key) -> {place: scalar}, traced once and mapped over lanes."""

    name: str
    function: Callable[..., Mapping[str, object]]


Measurement = FeatureProbe | ViewProbe


def measurement(probe: object) -> Measurement:
    """What a person passes as a probe, as a measurement.

    A measurement is itself; one of this package's probe functions has its own; any other function is taken for one of
    features (n, d) -> scalar, recorded under its own name.
    """
    from neoteny.probes import KNOWN

    if isinstance(probe, FeatureProbe | ViewProbe):
        return probe
    if not callable(probe):
        raise TypeError(f"a probe is a function of features or a measurement, not {type(probe).__name__}")
    known = KNOWN.get(probe)
    if known is not None:
        return known
    name = getattr(probe, "__name__", "")
    if name in ("", "<lambda>"):
        raise TypeError("a probe needs a name to be recorded under; wrap it: FeatureProbe('my_probe', function)")
    return FeatureProbe(name, probe)
