"""How a probe is applied by a run: on features, on the host, with or without labels; or on a view, in the program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

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


class LayerMeasure(Enum):
    """What a layer probe measures of every stage (docs/probes.md)."""

    ACCURACY = "accuracy"
    """Linear-probe accuracy."""
    RANK = "rank"
    """Numerical rank."""
    VARIANCES = "variances"
    """Variance within classes and between their means."""
    SIMILARITY = "similarity"
    """CKA and mean absolute difference of every pair of stages."""
    TUNNEL = "tunnel"
    """Where the tunnel starts: needs the linear probes, and the network's own accuracy."""


@dataclass(frozen=True)
class LayerProbe:
    """Measures every hidden stage with the labels of a task: fitted on its split `fit`, measured on its split `test`.

    The probes of one event share one pass of features. stages: which ones, in the network's order (empty: all but
    the last stage). pool: "gap" averages over positions first. threshold: of the tunnel. tolerances: of the rank;
    the first is recorded as `numerical_rank`, others with their value. fit_samples: the first so many rows of `fit`
    (None: all). rank_samples: test rows whose rank is taken (None: all). similarity_samples: test rows compared by
    CKA. l2, epochs, learning_rate, batch_size, standardize: of the linear probe.
    """

    name: str
    measures: tuple[LayerMeasure, ...] = tuple(LayerMeasure)
    fit: str = "train"
    test: str = "test"
    stages: tuple[str, ...] = ()
    pool: Literal["flat", "gap"] = "flat"
    threshold: float = 0.95
    tolerances: tuple[float, ...] = (1e-3,)
    fit_samples: int | None = None
    rank_samples: int | None = None
    similarity_samples: int = 2_000
    l2: float = 1e-4
    epochs: int = 30
    learning_rate: float = 1e-3
    batch_size: int | None = None
    standardize: bool = True

    @property
    def fits(self) -> bool:
        """Whether a linear layer is trained."""
        return bool({LayerMeasure.ACCURACY, LayerMeasure.TUNNEL} & set(self.measures))

    def select(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The stages to measure, of a network with these stage names; ValueError for one it lacks."""
        for name in self.stages:
            if name not in names:
                raise ValueError(f"{self.name}: no stage {name!r}; the stages are {', '.join(names)}")
        return tuple(name for name in names if name in self.stages) if self.stages else (names[:-1] or names)


def merged(probes: Sequence[LayerProbe]) -> list[LayerProbe]:
    """Layer probes that differ in nothing but what they measure made one, so that nothing is computed twice."""
    together: dict[LayerProbe, list[LayerMeasure]] = {}
    for probe in probes:
        measures = together.setdefault(replace(probe, name="layers", measures=()), [])
        measures += [measure for measure in probe.measures if measure not in measures]
    return [replace(probe, measures=tuple(measures)) for probe, measures in together.items()]


Measurement = FeatureProbe | ViewProbe | NetworkProbe | LayerProbe


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

    if isinstance(probe, FeatureProbe | ViewProbe | NetworkProbe | LayerProbe):
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
