"""The measuring half of a pack: evaluations and probes. They read learner states and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from neoteny.probes.measurement import FeatureProbe, NetworkProbe, ViewProbe
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.streams import Task
from neoteny.training.changes import Changes, lane_of
from neoteny.training.events import Evaluate, Probe
from neoteny.training.placing import AnyTask, PlacedData, shown
from neoteny.training.programs import Bank, Lanes, Programs
from neoteny.training.stepping import over_lanes
from neoteny.training.tracing import Tracer

EVALUATION_ROWS = 1_000
"""Rows of one evaluation batch; a bound on memory, no part of any result's meaning."""


LENGTH = "length"
"""The score of a played episode by which its cost is counted: steps, on average."""


class Reading(NamedTuple):
    """One quantity of every lane that is no dummy, values (lanes,), and the operations a lane spent since the last."""

    metric: str
    place: str
    values: np.ndarray
    flops: float | np.ndarray = 0.0


class Measurer:
    """Applies evaluations and probes to the learner states of a pack; `count` of its lanes are no dummies."""

    def __init__(
        self, programs: Programs, lanes: Lanes, count: int, data: PlacedData, tracer: Tracer, changes: Changes
    ):
        self._programs, self._lanes, self._count, self._data = programs, lanes, count, data
        self._tracer, self._changes = tracer, changes

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Rows in parts of one size, so that every split has the same program, the last one padded; and how many are
        real.
        """
        size = min(EVALUATION_ROWS, self._data.longest or len(rows))
        for start in range(0, len(rows), size):
            real = rows[start : start + size]
            part = np.zeros(size, np.int32)
            part[: len(real)] = real
            yield part, len(real)

    def _over_lanes(self, program: Any, task: AnyTask, learner: Any, mapped: tuple, *shared: Any, **static: Any) -> Any:
        separately = self._tracer.lane_by_lane(task, learner)
        subject = (learner, self._lanes, *mapped)
        return over_lanes(self._programs, program, subject, *shared, separately=separately, **static)

    def evaluate(self, event: Evaluate, learner: Any, update: Any = 0) -> list[Reading]:
        """Mean scores over the rows of the split, or over episodes of an environment; the cost is that of the first
        reading.
        """
        task = event.task
        if not isinstance(task, Task):
            return self._play(task, event.samples, learner, update)
        rows = task.rows(event.split)[: event.samples]
        drawn, data = self._changes.draw(task), self._data.data(task)
        sums: dict[str, np.ndarray] = {}
        for part, real in self._parts(rows):
            weights = (np.arange(len(part)) < real).astype(np.float32)
            scored = self._over_lanes(
                self._programs.score, task, learner, (drawn,), data, part, weights, transform=shown(task)
            )
            for name, value in scored.items():
                sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
        flops = len(rows) * self._tracer.flops("score", self._programs.score_lane, task, 1, learner)
        return _charged([Reading(name, "", total / len(rows)) for name, total in sums.items()], flops)

    def _play(self, task: EnvironmentTask, episodes: int | None, learner: Any, update: Any) -> list[Reading]:
        """Scores in so many episodes, in environments and with draws of their own."""
        assert episodes is not None, "checked before"
        scored = self._programs.play(learner, self._lanes, update, transform=shown(task), episodes=episodes)
        readings = [Reading(name, "", np.asarray(values, np.float64)) for name, values in scored.items()]
        length = next(reading.values for reading in readings if reading.metric == LENGTH)
        return _charged(readings, episodes * length * self._tracer.acting_flops(task, learner))

    def probe(self, event: Probe, learner: Any, update: Any, bank: Bank, experience: Any = None) -> Iterator[Reading]:
        """What the event's probes measure at this update; `bank` holds the saves they read.

        experience: in an environment, the transitions (lanes, samples, ...) to look at.
        """
        task = event.task
        if isinstance(task, Task):
            rows = np.asarray(task.rows(event.split)[: event.samples], np.int32)
            drawn = self._changes.draw(task)
        else:
            assert event.samples is not None, "checked before"
            rows, drawn = np.arange(event.samples, dtype=np.int32), experience
        on_features = [probe for probe in event.probes if isinstance(probe, FeatureProbe)]
        if on_features:
            yield from self._features(on_features, learner, drawn, rows, task)
        on_networks = [probe for probe in event.probes if isinstance(probe, NetworkProbe)]
        if on_networks:
            yield from self._networks(on_networks, learner, bank)
        for probe in event.probes:
            if isinstance(probe, ViewProbe):
                yield from self._view(probe, learner, drawn, rows, task, update, bank)

    def _view(self, probe: ViewProbe, learner: Any, drawn, rows, task: AnyTask, update, bank: Bank) -> list[Reading]:
        saved = {name: bank[name] for name in probe.saves}
        measured = self._over_lanes(
            self._programs.view_probe,
            task,
            learner,
            (drawn, saved),
            self._data.data(task),
            rows,
            update,
            transform=shown(task),
            probe=probe,
        )
        flops = self._tracer.view_probe_flops(probe, task, len(rows), learner, saved)
        return _charged([Reading(probe.name, place, np.asarray(values)) for place, values in measured.items()], flops)

    def _features(self, probes: list[FeatureProbe], learner: Any, drawn, rows, task: AnyTask) -> list[Reading]:
        names = self._tracer.stage_names(task, learner)
        stages = tuple(name for name in names if any(name in probe.select(names) for probe in probes))
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in stages}
        for part, real in self._parts(rows):
            outputs = self._over_lanes(
                self._programs.features,
                task,
                learner,
                (drawn,),
                self._data.data(task),
                part,
                transform=shown(task),
                stages=stages,
            )
            for name, output in outputs.items():
                pieces[name].append(np.asarray(output)[:, :real])
        flops = len(rows) * self._tracer.flops("features", self._programs.features_lane, task, 1, learner)
        features = {name: np.concatenate(parts, axis=1) for name, parts in pieces.items()}
        readings: list[Reading] = []
        for probe in probes:
            selected = probe.select(names)
            measured = {
                name: np.asarray([probe.measure(lane) for lane in features[name][: self._count]]) for name in selected
            }
            readings += [Reading(probe.name, name, values) for name, values in measured.items()]
            if len(selected) > 1:
                readings.append(Reading(probe.name, "all", np.mean(list(measured.values()), axis=0)))
        return _charged(readings, flops)

    def _networks(self, probes: list[NetworkProbe], learner: Any, bank: Bank) -> Iterator[Reading]:
        network = jax.device_get(self._programs.learner(self._tracer.values).view(learner).network)
        for probe in probes:
            saved, lanes = jax.device_get({name: bank[name] for name in probe.saves}), []
            for lane in range(self._count):
                shown, kept = lane_of(network, lane), lane_of(saved, lane)
                lanes.append(probe.function(shown, kept) if probe.saves else probe.function(shown))
            for place in lanes[0]:
                yield Reading(probe.name, place, np.asarray([measured[place] for measured in lanes]))


def _charged(readings: list[Reading], flops: float | np.ndarray) -> list[Reading]:
    """The readings, what they cost together charged to the first."""
    return [readings[0]._replace(flops=flops), *readings[1:]] if readings else []
