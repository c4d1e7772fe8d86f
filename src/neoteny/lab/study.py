"""Experiments and studies: what a study file declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from neoteny.analysis.claims import Claim
    from neoteny.learners.learner import Learner
    from neoteny.tasks.experience import DeviceExperience
    from neoteny.tasks.host_experience import HostExperience
    from neoteny.tasks.sources import Minibatch
    from neoteny.tasks.streams import Stream
    from neoteny.tasks.transitions import OfflineSource
    from neoteny.training.events import Event

Axes = Mapping[str, Sequence[Any]]
"""Field -> its values."""

PRESETS = ("smoke", "quick", "paper")
"""Every study has these; a study may list more."""


@dataclass(frozen=True)
class Experiment:
    """One experiment of a study.

    config: a frozen dataclass of fields. axes(preset) -> {field: values}, whose product is the runs, or several such
    products.
    stream(config) -> tasks (over arrays, or environments) and script(config, tasks) -> events are called once on the
    host, where Lane fields are not there. learner(config) is called inside the traced program, where Lane fields are
    traced scalars.
    source(config) -> how tasks are sampled, and policies learned from records judged, or how experience is gathered in
    environments. lanes: runs stepped together at most, where one lane's memory is large; None leaves it to whoever runs
    it.
    """

    name: str
    config: type
    axes: Callable[[str], Axes | Sequence[Axes]]
    stream: Callable[[Any], Stream]
    learner: Callable[[Any], Learner]
    script: Callable[[Any, tuple[Any, ...]], tuple[Event, ...]]
    source: Callable[[Any], Minibatch | OfflineSource | DeviceExperience | HostExperience] | None = None
    lanes: int | None = None


@dataclass(frozen=True)
class StudyFigure:
    """A figure of a study: draw(frame of all records) -> figure, or None if its records are not there."""

    name: str
    title: str
    caption: str
    draw: Callable[[pl.DataFrame], Figure | None]


@dataclass(frozen=True)
class StudyTable:
    """A table of a study: draw(frame of all records) -> (header, rows of text), or None without its records."""

    name: str
    title: str
    caption: str
    draw: Callable[[pl.DataFrame], tuple[tuple[str, ...], Sequence[tuple[str, ...]]] | None]


@dataclass(frozen=True)
class Study:
    """Named experiments, the claims and figures over all their records, and what the report says of them."""

    name: str
    title: str
    paper: str
    paper_url: str
    question: str
    experiments: tuple[Experiment, ...]
    claims: tuple[Claim, ...]
    figures: tuple[StudyFigure, ...] = ()
    presets: Mapping[str, str] = field(default_factory=dict)
    """Preset -> what it is and how long it takes, in a sentence; at least smoke, quick and paper."""
    notes: tuple[str, ...] = ()
    summary: Callable[[pl.DataFrame], tuple[str, ...]] | None = None
    """Paragraphs that answer the question from the records, shown at the top of the report."""
    tables: tuple[StudyTable, ...] = ()
    """Shown after the verdicts, in the report and on the study's page of the documentation."""

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name; KeyError naming those there are."""
        for item in self.experiments:
            if item.name == name:
                return item
        names = ", ".join(item.name for item in self.experiments)
        raise KeyError(f"study {self.name!r} has no experiment {name!r}; it has {names}")
