"""The measuring half of a pack: evaluations and probes. They read learner states and change nothing."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from neoteny.probes.layers import LayerKeys, LayerLabels, LayerMeasurement, LayerTable, StageFeatures, stage_features
from neoteny.probes.linear import Fitting, Sizes, train_and_predict
from neoteny.probes.measurement import FeatureProbe, LayerMeasure, LayerProbe, NetworkProbe, ViewProbe, merged
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.host_experience import HostExperience
from neoteny.tasks.streams import Task
from neoteny.training.changes import Changes, lane_of
from neoteny.training.events import AnyTask, Evaluate, Probe
from neoteny.training.hosting import HostLoop
from neoteny.training.keys import Purpose, named_key, root_key
from neoteny.training.ledger import count_flops
from neoteny.training.placing import PlacedData, shown
from neoteny.training.programs import Bank, Lanes, Programs
from neoteny.training.stepping import over_lanes
from neoteny.training.tracing import Tracer

FEATURE_BYTES = 2 * 2**30
"""Features a layer probe holds at once, of as many stages and lanes as fit; a bound on memory."""

EVALUATION_ROWS = 1_000
"""Rows of one evaluation batch; a bound on memory, no part of any result's meaning."""


LENGTH = "length"
"""The score of a played episode by which its cost is counted: steps, on average."""


class Reading(NamedTuple):
    """One quantity of every lane that is no dummy, values (lanes,), and the operations a lane spent since the last.

    split: where it was measured, if not where the event says.
    """

    metric: str
    place: str
    values: np.ndarray
    flops: float | np.ndarray = 0.0
    split: str = ""


class Measurer:
    """Applies evaluations and probes to the learner states of a pack; `count` of its lanes are no dummies."""

    def __init__(
        self,
        programs: Programs,
        lanes: Lanes,
        count: int,
        source: Any,
        data: PlacedData,
        tracer: Tracer,
        changes: Changes,
        host: HostLoop,
    ):
        self._programs, self._lanes, self._count, self._source, self._data = programs, lanes, count, source, data
        self._tracer, self._changes, self._host = tracer, changes, host

    def _parts(self, rows: np.ndarray, at_once: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
        """Rows in parts of one size, so that every split has the same program, the last one padded; and how many are
        real.
        """
        size = min(at_once or EVALUATION_ROWS, self._data.longest or len(rows))
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
        for part, real in self._parts(rows, event.at_once):
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
        if isinstance(self._source, HostExperience):
            act = self._host.policy(learner, separately=self._tracer.lane_by_lane(task, learner))
            scored = self._source.evaluate(task, self._lanes.seeds.tolist(), act, episodes, int(update))
        else:
            drawn, data = self._changes.draw(task), self._data.data(task)
            scored = self._programs.play(
                learner, self._lanes, drawn, data, update, transform=shown(task), episodes=episodes
            )
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
        on_layers = [probe for probe in event.probes if isinstance(probe, LayerProbe)]
        for probe in merged(on_layers):
            yield from self._layers(probe, event, learner, update)

    def _layers(self, probe: LayerProbe, event: Probe, learner: Any, update) -> list[Reading]:
        tables, flops = self.layer_tables(probe, event, learner, update)
        found: dict[tuple[str, str], np.ndarray] = {}
        for lane, table in enumerate(tables):
            for metric, place, value in table.measurements():
                found.setdefault((metric, place), np.full(self._count, np.nan))[lane] = value
        readings = [Reading(metric, place, values, split=probe.test) for (metric, place), values in found.items()]
        return _charged(readings, flops)

    def layer_tables(self, probe: LayerProbe, event: Probe, learner: Any, update) -> tuple[list[LayerTable], float]:
        """What a layer probe measures of every lane, on the task and as many rows as the event says, and its cost.

        One pass of features, or several over a few stages each where they would fill the memory.
        """
        task = event.task
        assert isinstance(task, Task), "checked before"
        drawn = self._changes.draw(task)
        shapes = self._tracer.stage_shapes(task, learner)
        stages = probe.select(tuple(shapes))
        test = np.asarray(task.rows(probe.test)[: event.samples], np.int32)
        fit = task.rows(probe.fit)[: probe.fit_samples][: event.samples]
        train = np.asarray(fit, np.int32) if probe.fits else test[:0]
        labels = [
            LayerLabels(ours, theirs)
            for ours, theirs in zip(self._targets(task, drawn, train), self._targets(task, drawn, test), strict=True)
        ]
        measurement = LayerMeasurement(probe, stages, labels, self._layer_keys(update))
        width = {name: _width(shapes[name], probe.pool) for name in stages}
        flops, rows = 0.0, len(train) + len(test)
        forward = rows * self._tracer.flops("features", self._programs.features_lane, task, 1, learner)
        for part, lanes in _parts_of_layers(width, self._count, 4 * rows):
            fitted = self._stage_features(learner, task, drawn, train, part, lanes, probe.pool) if probe.fits else {}
            tested = self._stage_features(learner, task, drawn, test, part, lanes, probe.pool)
            measurement.take(
                {
                    (lane, name): StageFeatures(fitted[name][place] if fitted else None, tested[name][place])
                    for name in part
                    for place, lane in enumerate(lanes)
                }
            )
            flops += forward
        if probe.fits:
            classes = len(np.unique(labels[0].train))
            flops += sum(_fitting_flops(probe, len(train), len(test), width[name], classes) for name in stages)
        final = None
        if LayerMeasure.TUNNEL in probe.measures:
            final, cost = self._final_accuracy(Evaluate(task, probe.test, event.samples), learner)
            flops += cost
        return measurement.tables(final), flops

    def _targets(self, task: Task, drawn, rows: np.ndarray) -> np.ndarray:
        found = self._programs.targets(self._lanes, drawn, self._data.data(task), rows, transform=task.transform)
        return np.asarray(found)[: self._count]

    def _layer_keys(self, update) -> list[LayerKeys]:
        def keys(seed):
            root, name = root_key(seed), zlib.crc32(b"linear_probe")
            # The columns are drawn once for a layer, so that its rank can be followed over time.
            columns = named_key(root, Purpose.PROBE, zlib.crc32(b"numerical_rank"))
            return named_key(root, Purpose.PROBE, update, name), columns

        found = jax.vmap(keys)(self._lanes.seeds)
        return [LayerKeys(found[0][lane], found[1][lane]) for lane in range(self._count)]

    def _stage_features(
        self, learner: Any, task: Task, drawn, rows: np.ndarray, stages: tuple[str, ...], lanes: list[int], pool
    ) -> dict[str, np.ndarray]:
        """{stage: (lanes, rows, units)} of these lanes, float32."""
        found: dict[str, np.ndarray] = {}
        begun = 0
        for part, real in self._parts(rows):
            outputs = self._over_lanes(
                self._programs.features,
                task,
                learner,
                (drawn,),
                self._data.data(task),
                part,
                transform=task.transform,
                stages=stages,
            )
            for name, output in outputs.items():
                features = stage_features(np.asarray(output)[lanes, :real], pool, lanes=1)
                if name not in found:
                    found[name] = np.empty((len(lanes), len(rows), features.shape[-1]), np.float32)
                found[name][:, begun : begun + real] = features
            begun += real
        return found

    def _final_accuracy(self, event: Evaluate, learner: Any) -> tuple[list[float], float]:
        readings = self.evaluate(event, learner)
        for reading in readings:
            if reading.metric == "accuracy":
                cost = float(sum(np.sum(each.flops) for each in readings))
                return [float(value) for value in reading.values[: self._count]], cost
        raise ValueError("the start of the tunnel needs a learner that scores `accuracy`")

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


def _width(shape: tuple[int, ...], pool: str) -> int:
    return shape[-1] if pool == "gap" and shape else math.prod(shape)


def _parts_of_layers(
    width: Mapping[str, int], lanes: int, bytes_a_unit: int
) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Stages and lanes whose features together stay below FEATURE_BYTES, or a single one of each."""
    waiting: list[str] = []
    everyone = list(range(lanes))
    for name, units in width.items():
        taken = sum(width[each] for each in waiting)
        if waiting and (taken + units) * bytes_a_unit * lanes > FEATURE_BYTES:
            yield tuple(waiting), everyone
            waiting = []
        together = max(1, FEATURE_BYTES // (units * bytes_a_unit))
        if together < lanes:
            for start in range(0, lanes, together):
                yield (name,), everyone[start : start + together]
        else:
            waiting.append(name)
    if waiting:
        yield tuple(waiting), everyone


def _fitting_flops(probe: LayerProbe, train: int, test: int, width: int, classes: int) -> float:
    fitting = Fitting(batch_size=probe.batch_size)
    sizes = Sizes(classes, probe.epochs, fitting.batch(train))
    shapes = (
        jax.ShapeDtypeStruct((train, width), np.float32),
        jax.ShapeDtypeStruct((train,), np.int32),
        jax.ShapeDtypeStruct((test, width), np.float32),
    )
    return count_flops(
        lambda x, y, z, key: train_and_predict(x, y, z, key, probe.l2, probe.learning_rate, probe.standardize, sizes),
        *shapes,
        jax.random.key(0),
    )


def _charged(readings: list[Reading], flops: float | np.ndarray) -> list[Reading]:
    """The readings, what they cost together charged to the first."""
    return [readings[0]._replace(flops=flops), *readings[1:]] if readings else []
