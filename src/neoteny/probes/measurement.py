"""How a probe is applied by a run: on features, on the host; or on a view, inside the program."""

from __future__ import annotations

import inspect
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


class Units(Enum):
    """How a feature probe wants a stage's output (n, ..., units)."""

    FLAT = "flat"
    """As features (n, d): places and channels are all features."""
    LAST = "last"
    """As it is: a unit of a convolution is a channel at all places."""


@dataclass(frozen=True)
class FeatureProbe:
    """A NumPy measurement of one stage's output: function(features) -> scalar, called for every lane."""

    name: str
    function: Callable[[np.ndarray], object]
    stages: Stages = Stages.PENULTIMATE
    units: Units = Units.FLAT

    def select(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The stages to look at, of a network with these stage names."""
        hidden = names[:-1] or names
        return hidden if self.stages is Stages.HIDDEN else hidden[-1:]

    def measure(self, output: np.ndarray) -> float:
        """The measurement of one lane's stage output (n, ..., units)."""
        shown = output.reshape(len(output), -1) if self.units is Units.FLAT else output
        return float(np.asarray(self.function(shown)))


@dataclass(frozen=True)
class ViewProbe:
    """A JAX measurement: function(view, batch, key) -> {place: scalar}, traced once and mapped over lanes.

    saves: names of earlier saves; if there are any, the function's last argument is {save: {name: network}}.
    """

    name: str
    function: Callable[..., Mapping[str, object]]
    saves: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkProbe:
    """A NumPy measurement of the parameters: function(network) -> {place: scalar}, called for every lane on the
    host.

    saves: names of earlier saves; if there are any, the function's last argument is {save: {name: network}}.
    """

    name: str
    function: Callable[..., Mapping[str, float]]
    saves: tuple[str, ...] = ()


Measurement = FeatureProbe | ViewProbe | NetworkProbe


def _required_arguments(function: Callable) -> int:
    """How many arguments a call must give; 1 where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sum(p.default is inspect.Parameter.empty and p.kind in kinds for p in parameters)


def measurement(probe: object) -> Measurement:
    """What a person passes as a probe, as a measurement.

    A measurement is itself; one of this package's probe functions has its own; any other function is taken for one of
    features (n, d) -> scalar, recorded under its own name.
    """
    from neoteny.probes import KNOWN

    if isinstance(probe, FeatureProbe | ViewProbe | NetworkProbe):
        return probe
    if not callable(probe):
        raise TypeError(f"a probe is a function of features or a measurement, not {type(probe).__name__}")
    known = KNOWN.get(probe)
    if known is not None:
        return known
    if _required_arguments(probe) > 1:
        raise TypeError(
            f"{getattr(probe, '__name__', probe)} needs more than features, so a run cannot apply it by itself; "
            "wrap it in a function of features (n, d), or in a ViewProbe"
        )
    name = getattr(probe, "__name__", "")
    if name in ("", "<lambda>"):
        raise TypeError("a probe needs a name to be recorded under; wrap it: FeatureProbe('my_probe', function)")
    return FeatureProbe(name, probe)
