"""The fold of a pack's state over its script, cut into chunks, one tick at a time.

Whoever drives the runner (a store, a person in memory) takes what a tick yields and may stop, commit or go on after
any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from neoteny.lab.configs import host_view, lane_columns
from neoteny.lab.records import Record
from neoteny.lab.study import Experiment
from neoteny.learners.learner import attach, detach
from neoteny.probes.measurement import FeatureProbe, NetworkProbe, ViewProbe
from neoteny.tasks.sources import DataArrays, Minibatch, TaskArrays
from neoteny.tasks.streams import Task
from neoteny.training.clock import Clock
from neoteny.training.compilations import CompilationCounter
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Save, Switch, Train
from neoteny.training.ledger import Ledger, count_flops
from neoteny.training.programs import Lanes, PackState, programs_for

EVALUATION_ROWS = 1_000
"""Rows of one evaluation batch; a bound on memory, no part of any result's meaning."""

TICK_SECONDS = 0.5
"""How long a chunk should last, so that progress is live and an interrupt is answered soon. Chunking changes no
bits.
"""


class Cursor(NamedTuple):
    """Where a run stands: at this event of the script, this many updates into it."""

    event: int = 0
    done: int = 0


@dataclass(frozen=True)
class Tick:
    """What one stretch of work gave. updates: lane-updates truly taken. saves: name -> path -> array (lanes, ...)."""

    event: int
    kind: str
    updates: int
    seconds: float
    compilations: int
    compile_seconds: float
    records: list[Record] = field(default_factory=list)
    saves: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


class Plan(NamedTuple):
    """What a script will do, known before anything is computed: updates and events of one lane."""

    updates: int
    events: int


def paths_of(tree: Any) -> list[str]:
    """The path of every array of a tree, as text, in leaf order."""
    arrays = eqx.filter(tree, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]


def _split_shapes(tree: Any) -> tuple[Any, Any]:
    return eqx.partition(tree, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def _script(experiment: Experiment, config: Any) -> tuple[tuple[Task, ...], tuple[Event, ...]]:
    view = host_view(config)
    stream = experiment.stream(view)
    if stream.length is None:
        raise ValueError(f"{experiment.name}: the stream has no end; cut it with take(n)")
    tasks = tuple(stream)
    return tasks, tuple(experiment.script(view, tasks))


def _ready(state: PackState, metrics: tuple[str, ...]) -> PackState:
    """The state at the beginning of a `Train`: nothing summed, no lane held."""
    lanes = state.counted.shape
    count, none = np.zeros(lanes, np.int32), np.zeros(lanes, bool)
    totals = {name: np.zeros(lanes, np.float32) for name in metrics}
    return state._replace(totals=totals, counted=count, taken=count, streak=count, held=none)


class Runner:
    """One pack: runs of equal structure, stepped together.

    configs: one configuration a lane. names: the runs' names. lanes: at least this many lanes; dummy lanes repeat the
    last run and are recorded nowhere (bits depend on a pack's size, so a run alone can be compared with itself in
    company).
    """

    def __init__(self, experiment: Experiment, configs: Sequence[Any], names: Sequence[str], lanes: int = 0):
        self.names = tuple(names)
        self.tasks, self.script = _script(experiment, configs[0])
        names_saved = [event.name for event in self.script if isinstance(event, Save)]
        if len(set(names_saved)) < len(names_saved):
            raise ValueError("every Save of a script needs a name of its own")
        padded = [*configs, *[configs[-1]] * (lanes - len(configs))]
        columns = lane_columns(padded)
        seeds = np.asarray([config.seed for config in padded], np.int32)
        self.lanes = Lanes(columns, seeds)
        self.source = experiment.source(host_view(configs[0])) if experiment.source else Minibatch()
        self.programs = programs_for(experiment.learner, configs[0], self.source)
        self.ledger = Ledger(len(padded))
        self.clock = Clock.start()
        self.cursor = Cursor()
        self.alive = np.ones(len(padded), bool)
        self._state: PackState | None = None
        self._task: Task | None = None
        self._metrics: tuple[str, ...] = ()
        self._device_arrays: dict[int, DataArrays] = {}
        self._traced: dict[tuple, Any] = {}
        self._seconds_per_update: float | None = None
        self._counter = CompilationCounter()
        self._capacity = self._capacities()

    @property
    def state(self) -> PackState:
        """Everything the pack computes with, once `ticks` has made it or `restore` brought it back."""
        assert self._state is not None, "nothing has been computed yet"
        return self._state

    @state.setter
    def state(self, state: PackState) -> None:
        self._state = state

    # What is known beforehand -------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Updates and events of one lane of this script."""
        return Plan(sum(e.steps for e in self.script if isinstance(e, Train)), len(self.script))

    def check(self) -> Plan:
        """The plan, after tracing what can go wrong: the learner, its metrics, the order of events. ValueError if it
        does.
        """
        state = jax.eval_shape(self.programs.init, self.lanes)
        current: Task | None = None
        traced: set = set()
        for position, event in enumerate(self.script):
            if isinstance(event, Switch):
                current = event.task
            elif isinstance(event, Train):
                if current is None or event.task.index != current.index:
                    raise ValueError(
                        f"event {position}: Train({event.task.name}) needs Switch({event.task.name}) before it"
                    )
                self._check_outputs(event.task)
                names = self._metric_names(event.task, state.learner)
                if event.until is not None and event.until.metric not in names:
                    raise ValueError(f"until: no training metric {event.until.metric!r}; there are {', '.join(names)}")
            elif isinstance(event, Evaluate | Probe):
                event.task.rows(event.split)
                if isinstance(event, Probe):
                    self._check_probes(event, state.learner)
            elif isinstance(event, Intervene) and (event.intervention, event.when) not in traced:
                traced.add((event.intervention, event.when))
                self._template_of_intervention(state, event, current)
        planned = self.plan()
        if planned.updates > np.iinfo(np.int32).max:
            raise ValueError(
                f"{planned.updates:,} updates are more than the clock can count ({np.iinfo(np.int32).max:,})"
            )
        return planned

    def _template_of_intervention(self, state: PackState, event: Intervene, current: Task | None) -> PackState:
        return jax.eval_shape(lambda s: self._intervention(s, event, current, 0), state)

    def _check_probes(self, event: Probe, learner: Any) -> None:
        """Trace the view probes, so that one that does not fit fails before anything is computed."""
        rows = min(len(event.task.rows(event.split)), event.samples or len(event.task.rows(event.split)))
        (values, seed), (dynamic, static) = self._one_lane(), _split_shapes(learner)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dynamic)
        for probe in event.probes:
            if isinstance(probe, ViewProbe):

                def lane(dynamic, batch, probe: ViewProbe = probe):
                    return self.programs.view_probe_lane(probe, eqx.combine(dynamic, static), values, seed, batch, 0)

                def trace(lane: Callable = lane) -> None:
                    jax.eval_shape(lane, one, self._batch_shape(event.task, rows))

                self._once(("fits", probe), event.task, trace, rows)

    def _check_outputs(self, task: Task) -> None:
        classes = task.data.classes
        if classes is None:
            return

        def find() -> int:
            values, seed = self._one_lane()
            dynamic, static = _split_shapes(jax.eval_shape(self.programs.init_lane, values, seed))
            outputs = jax.eval_shape(
                lambda d, v, b: self.programs.learner(v).predict(eqx.combine(d, static), b.inputs),
                dynamic, values, self._batch_shape(task, 2),
            )  # fmt: skip
            return outputs.shape[-1]

        outputs = self._once("outputs", task, find)
        if outputs < classes:
            raise ValueError(f"the network has {outputs} outputs and {task.data.name} has {classes} classes")

    @property
    def updates_before(self) -> int:
        """Updates of one lane that lie before the cursor, of those the script bounds."""
        before = sum(e.steps for e in self.script[: self.cursor.event] if isinstance(e, Train))
        return before + self.cursor.done

    def data_sets(self) -> dict[str, str]:
        """Name -> digest of every data set the tasks use."""
        found: dict[str, str] = {}
        for data in {id(task.data): task.data for task in self.tasks}.values():
            if found.setdefault(data.name, data.digest) != data.digest:
                raise ValueError(f"two different data sets are both called {data.name!r}; give each a name of its own")
        return found

    def state_bytes(self) -> int:
        """Bytes of the pack's state before the first task."""
        return sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(self.programs.init, self.lanes))
        )

    def training_flops(self) -> float:
        """Floating-point operations of training one lane through the whole script (bounds, where `until` may hold
        lanes).
        """
        total = 0.0
        for event in self.script:
            if isinstance(event, Train):
                total += event.steps * self._flops_of_update(event.task)
        return total

    # Data ---------------------------------------------------------------------------------------------------------

    def _capacities(self) -> dict[tuple[int, str], int]:
        """Tasks over one data set share programs: their row arrays are padded to the longest."""
        capacity: dict[tuple[int, str], int] = {}
        for task in self.tasks:
            for split, rows in task.splits.items():
                place = (id(task.data), split)
                capacity[place] = max(capacity.get(place, 1), len(rows))
        return capacity

    def _data(self, task: Task) -> DataArrays:
        data = task.data
        if id(data) not in self._device_arrays:
            with jax.ensure_compile_time_eval():  # real arrays, even when first asked for inside a trace
                self._device_arrays[id(data)] = DataArrays(jax.device_put(data.inputs), jax.device_put(data.targets))
        return self._device_arrays[id(data)]

    def _arrays(self, task: Task, split: str) -> TaskArrays:
        rows = task.rows(split)
        if len(rows) == 0:
            raise ValueError(f"task {task.name!r} has no rows in its split {split!r}")
        padded = np.zeros(self._capacity[id(task.data), split], np.int32)
        padded[: len(rows)] = rows
        return TaskArrays(self._data(task), padded, np.asarray(len(rows), np.int32))

    # Storing ------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything needed to go on, as arrays by path."""
        state = eqx.filter(self.state, eqx.is_array)
        leaves = jax.device_get(jax.tree.leaves(state))
        stored = {f"state{path}": np.asarray(leaf) for path, leaf in zip(paths_of(self.state), leaves, strict=True)}
        stored.update({f"ledger.{name}": account for name, account in self.ledger.arrays().items()})
        stored.update({f"clock.{name}": np.asarray(value) for name, value in self.clock._asdict().items()})
        stored["alive"] = self.alive
        return stored

    def _template(self, cursor: Cursor) -> Any:
        """Structure, shapes and types of the state at the cursor, computed by no program."""
        state = jax.eval_shape(self.programs.init, self.lanes)
        seen = None
        metrics: tuple[str, ...] = ()
        for index, event in enumerate(self.script[: cursor.event + 1]):
            reached = index < cursor.event
            if isinstance(event, Switch) and reached:
                seen = event.task
                state = jax.eval_shape(lambda s, e=event: self._switched(s, e), state)
            elif isinstance(event, Train) and (reached or cursor.done > 0):
                metrics = self._metric_names(event.task, state.learner)
                state = jax.eval_shape(lambda s, m=metrics: _ready(s, m), state)
            elif isinstance(event, Intervene) and reached:
                state = self._template_of_intervention(state, event, seen)
        self._task, self._metrics = seen, metrics
        return state

    def networks(self) -> Any:
        """The learner's main network, every array with a leading lane axis; in dead lanes, the last finite one."""
        return self._view_network(self._living())

    def networks_from(self, saved: dict[str, np.ndarray]) -> Any:
        """The same from what a `Save` of networks kept."""
        learner = jax.eval_shape(self.programs.init, self.lanes).learner
        dynamic, static = _split_shapes(learner.networks)
        leaves = [jax.numpy.asarray(saved[path]) for path in paths_of(learner.networks)]
        networks = eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static)
        return self._view_network(eqx.tree_at(lambda s: s.networks, learner, networks))

    def _view_network(self, learner: Any) -> Any:
        return self.programs.learner(self._one_lane()[0]).view(learner).network

    def learner_text(self) -> str:
        """What the learner computes for one lane on the first task, as lowered text, whoever wrote it.

        Initialisation, one update, the switch to a task, scores and features.
        """
        task, (values, seed) = self.tasks[0], self._one_lane()
        learner = jax.eval_shape(self.programs.init_lane, values, seed)
        dynamic, static = _split_shapes(learner)
        batch = self._batch_shape(task, self.source.batch_size)

        def everything(values, seed, dynamic, batch):
            state = eqx.combine(dynamic, static)
            learner = self.programs.learner(values)
            switched = learner.switch(attach(state, learner), jax.numpy.int32(0), None, jax.random.key(0))
            computed = (
                self.programs.init_lane(values, seed),
                self.programs.update_lane(state, batch, values, seed, 0, 0),
                detach(switched),
                self.programs.score_lane(state, values, batch),
                self.programs.features_lane(state, values, batch),
            )
            return eqx.filter(computed, eqx.is_array)

        return jax.jit(everything).lower(values, seed, dynamic, batch).as_text()

    def restore(self, cursor: Cursor, stored: dict[str, np.ndarray]) -> None:
        """Go on from stored arrays; ValueError names what does not fit."""
        template = self._template(cursor)
        paths = paths_of(template)
        dynamic, static = _split_shapes(template)
        leaves = []
        for path, expected in zip(paths, jax.tree.leaves(dynamic), strict=True):
            name = f"state{path}"
            if name not in stored:
                raise ValueError(f"the stored state lacks {name}")
            array = stored[name]
            if array.shape != expected.shape or array.dtype != expected.dtype:
                raise ValueError(f"{name} is {array.dtype}{array.shape}; expected {expected.dtype}{expected.shape}")
            leaves.append(jax.device_put(array))
        self.state = eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static)
        self.ledger.restore({name: stored[f"ledger.{name}"] for name in self.ledger.arrays()})
        self.clock = Clock(*(stored[f"clock.{name}"] for name in Clock._fields))
        self.alive = stored["alive"].copy()
        self.cursor = cursor

    # The fold -----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the whole script is done."""
        return self.cursor.event >= len(self.script)

    def ticks(self) -> Iterator[Tick]:
        """Go on from the cursor to the end of the script; after each tick the runner is fit to be stored."""
        if self._state is None:
            with self._timed() as timed:
                self.state = self.programs.init(self.lanes)
                jax.block_until_ready(self.state)
            yield timed.tick(0, "init")
        while not self.finished:
            event = self.script[self.cursor.event]
            if isinstance(event, Train):
                yield from self._train(event)
            else:
                with self._timed() as timed:
                    records, saves = self._apply(event)
                    jax.block_until_ready(self.state)
                position = self.cursor.event
                self.cursor = Cursor(position + 1)
                yield timed.tick(position, type(event).__name__.lower(), records=records, saves=saves)

    def _timed(self) -> _Stopwatch:
        return _Stopwatch(self._counter)

    def _train(self, event: Train) -> Iterator[Tick]:
        position, done = self.cursor
        arrays = self._arrays(event.task, "train")
        transform = event.task.transform
        flops = self._flops_of_update(event.task)
        if done == 0:
            self._metrics = self._metric_names(event.task, self.state.learner)
            self.state = _ready(self.state, self._metrics)
        taken_before = np.asarray(self.state.taken)
        while True:
            boundary = min(event.steps, (done // event.record_every + 1) * event.record_every)
            with self._timed() as timed:
                steps = min(boundary - done, self._chunk_length())
                self.state, ran = self.programs.chunk(
                    self.state,
                    self.lanes,
                    arrays,
                    self.clock,
                    np.int32(steps),
                    self.alive,
                    transform=transform,
                    until=event.until,
                )
                ran = int(ran)
                taken = np.asarray(self.state.taken)
                self.ledger.train += flops * (taken - taken_before)
                updates, taken_before = int((taken - taken_before)[: len(self.names)].sum()), taken
                self.clock = self.clock.advanced(ran)
                done += ran
                unmet = self.alive & ~np.asarray(self.state.held)
                over = done >= event.steps or (event.until is not None and not unmet.any())
                records = self._record_training(event, position) if over or done == boundary else []
                if over and event.until is not None:
                    records += self._record_taken(event, position, taken)
            self._learn_speed(ran, timed)
            self.cursor = Cursor(position + 1) if over else Cursor(position, done)
            yield timed.tick(position, "train", updates=updates, records=records)
            if over:
                return

    def _metric_names(self, task: Task, learner: Any) -> tuple[str, ...]:
        def find() -> tuple[str, ...]:
            return self.programs.metric_names(self.lanes, learner, self._data(task), task.transform)

        return self._once("metrics", task, find)

    def _chunk_length(self) -> int:
        if self._seconds_per_update is None:
            return 1
        return max(1, int(TICK_SECONDS / self._seconds_per_update))

    def _learn_speed(self, ran: int, timed: _Stopwatch) -> None:
        if timed.compilations == 0 and ran > 0:
            self._seconds_per_update = max(timed.seconds / ran, 1e-7)

    def _once(self, what: Hashable, task: Task, compute: Callable[[], Any], *more: Any) -> Any:
        """What tracing finds out about a task's programs, traced once for tasks alike."""
        place = (what, task.transform, task.data.inputs.shape, task.data.targets.shape, *more)
        if place not in self._traced:
            self._traced[place] = compute()
        return self._traced[place]

    def _flops_of_update(self, task: Task) -> float:
        def count() -> float:
            values, seed = self._one_lane()
            learner = jax.eval_shape(self.programs.init_lane, values, seed)
            dynamic, static = _split_shapes(learner)
            batch = self._batch_shape(task, self.source.batch_size)
            return count_flops(
                lambda d, b, v, s: self.programs.update_lane(eqx.combine(d, static), b, v, s, 0, 0),
                dynamic,
                batch,
                values,
                seed,
            )

        return self._once("update", task, count)

    def _one_lane(self) -> tuple[dict[str, Any], Any]:
        return {name: column[0] for name, column in self.lanes.values.items()}, self.lanes.seeds[0]

    def _record(
        self, lane: int, task: Task, position: int, metric: str, value: float, split: str = "", place: str = ""
    ) -> Record:
        return Record(
            run=self.names[lane],
            branch="",
            trial=0,
            task=task.index,
            visit=task.visit,
            split=split,
            event=position,
            step=int(self.clock.update),
            env_steps=int(self.clock.env_step),
            metric=metric,
            place=place,
            value=float(value),
            flops_train=float(self.ledger.train[lane]),
            flops_forward=float(self.ledger.forward[lane]),
            flops_probe=float(self.ledger.probe[lane]),
            flops_search=float(self.ledger.search[lane]),
        )

    def _record_training(self, event: Train, position: int) -> list[Record]:
        totals = {name: np.asarray(total, np.float64) for name, total in self.state.totals.items()}
        counted = np.asarray(self.state.counted)
        was_alive = self.alive
        self.state, alive = self.programs.check(self.state, was_alive)
        self.alive = np.asarray(alive).copy()
        died = was_alive & ~self.alive
        records = []
        for lane in range(len(self.names)):
            if died[lane]:
                records.append(self._record(lane, event.task, position, "diverged", float(self.clock.update)))
            elif self.alive[lane] and counted[lane] > 0:
                for name, total in totals.items():
                    records.append(
                        self._record(lane, event.task, position, f"train_{name}", total[lane] / counted[lane])
                    )
        return records

    def _record_taken(self, event: Train, position: int, taken: np.ndarray) -> list[Record]:
        """How many updates each lane took before it met the condition, or all of them."""
        lanes = [lane for lane in range(len(self.names)) if self.alive[lane]]
        return [self._record(lane, event.task, position, "updates_taken", float(taken[lane])) for lane in lanes]

    def _apply(
        self, event: Switch | Evaluate | Probe | Intervene | Save
    ) -> tuple[list[Record], dict[str, dict[str, np.ndarray]]]:
        position = self.cursor.event
        if isinstance(event, Switch):
            self._task = event.task
            self.clock = self.clock.switched(event.task.index)
            self.state = self._switched(self.state, event)
            return [], {}
        if isinstance(event, Evaluate):
            return self._evaluate(event, position), {}
        if isinstance(event, Probe):
            return self._probe(event, position), {}
        if isinstance(event, Intervene):
            number = sum(isinstance(earlier, Intervene) for earlier in self.script[:position])
            self.ledger.forward += self._intervention_flops(event)
            self.state = self._intervention(self.state, event, self._task, number)
            self._traced.clear()  # an intervention may change the structure of what was traced
            return [], {}
        return [], {event.name: self._saved(event)}

    def _switched(self, state: PackState, event: Switch) -> PackState:
        task = event.task
        learner, source = self.programs.switch(
            state.learner,
            self.lanes,
            self._arrays(task, "train"),
            np.int32(task.draw),
            self.clock,
            transform=task.transform,
        )
        return state._replace(learner=learner, source=source)

    def _saved(self, event: Save) -> dict[str, np.ndarray]:
        kept = self.state.learner if event.full else self._living().networks
        leaves = jax.device_get(jax.tree.leaves(eqx.filter(kept, eqx.is_array)))
        return {path: np.asarray(leaf)[: len(self.names)] for path, leaf in zip(paths_of(kept), leaves, strict=True)}

    def _living(self):
        """Learner states to look at: in dead lanes, their last finite networks."""
        return self.state.learner if self.alive.all() else self.programs.substitute(self.state, self.alive)

    def _draw(self, task: Task):
        return self.programs.draw(self.lanes, self._data(task), np.int32(task.draw), transform=task.transform)

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Rows in parts of one size, so that every split has the same program, the last one padded; and how many are
        real.
        """
        size = min(EVALUATION_ROWS, max(self._capacity.values()))
        for start in range(0, len(rows), size):
            real = rows[start : start + size]
            part = np.zeros(size, np.int32)
            part[: len(real)] = real
            yield part, len(real)

    def _evaluate(self, event: Evaluate, position: int) -> list[Record]:
        task = event.task
        rows = task.rows(event.split)[: event.samples]
        learner, drawn, data = self._living(), self._draw(task), self._data(task)
        sums: dict[str, np.ndarray] = {}
        for part, real in self._parts(rows):
            weights = (np.arange(len(part)) < real).astype(np.float32)
            scored = self.programs.score(learner, self.lanes, drawn, data, part, weights, transform=task.transform)
            for name, value in scored.items():
                sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
        self.ledger.forward += len(rows) * self._count("score", self.programs.score_lane, task, 1)
        return [
            self._record(lane, task, position, name, value[lane] / len(rows), split=event.split)
            for lane in range(len(self.names))
            for name, value in sums.items()
        ]

    def _batch_shape(self, task: Task, size: int):
        return jax.eval_shape(
            lambda seed, data: self.programs.batch_lane(seed, data, task.transform, size),
            self.lanes.seeds[0],
            self._data(task),
        )

    def _lane_shapes(self) -> tuple[Any, Any]:
        """Shapes of one lane's learner state, and its static part."""
        dynamic, static = eqx.partition(self.state.learner, eqx.is_array)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dynamic), static

    def _count(self, what: Hashable, function: Callable, task: Task, size: int) -> float:
        """Operations of function(learner_state, values, batch) for one lane and a batch of `size`."""

        def count() -> float:
            dynamic, static = self._lane_shapes()
            batch = self._batch_shape(task, size)
            return count_flops(
                lambda d, v, b: function(eqx.combine(d, static), v, b), dynamic, self._one_lane()[0], batch
            )

        return self._once(what, task, count, size)

    def _intervention_flops(self, event: Intervene) -> float:
        task, seed = event.on or self._task or self.tasks[0], self.lanes.seeds[0]

        def lane(state, values, batch):
            changed = self.programs.intervene_lane(event.intervention, event.when, state, values, seed, batch, 0)
            return eqx.filter(changed, eqx.is_array)

        rows = min(event.samples, len(task.rows("train")))
        return self._count((event.intervention, event.when), lane, task, rows)

    def _probe(self, event: Probe, position: int) -> list[Record]:
        task = event.task
        rows = np.asarray(task.rows(event.split)[: event.samples], np.int32)
        learner, drawn, data = self._living(), self._draw(task), self._data(task)
        records: list[Record] = []

        def record(metric: str, place: str, values: np.ndarray) -> None:
            for lane in range(len(self.names)):
                if self.alive[lane]:
                    records.append(self._record(lane, task, position, metric, values[lane], event.split, place))

        on_features = [probe for probe in event.probes if isinstance(probe, FeatureProbe)]
        if on_features:
            self._probe_features(on_features, learner, drawn, rows, task, record)
        on_networks = [probe for probe in event.probes if isinstance(probe, NetworkProbe)]
        if on_networks:
            self._probe_networks(on_networks, learner, record)
        seed = self.lanes.seeds[0]
        for probe in event.probes:
            if isinstance(probe, ViewProbe):
                measured = self.programs.view_probe(
                    learner, self.lanes, drawn, data, rows, self.clock.update, transform=task.transform, probe=probe
                )

                def lane(state, values, batch, probe: ViewProbe = probe):
                    return self.programs.view_probe_lane(probe, state, values, seed, batch, 0)

                self.ledger.probe += self._count(probe, lane, task, len(rows))
                for place, values in measured.items():
                    record(probe.name, place, np.asarray(values))
        return records

    def _probe_features(self, probes: list[FeatureProbe], learner, drawn, rows, task: Task, record) -> None:
        names = self._stage_names(task)
        stages = tuple(name for name in names if any(name in probe.select(names) for probe in probes))
        pieces: dict[str, list[np.ndarray]] = {name: [] for name in stages}
        for part, real in self._parts(rows):
            outputs = self.programs.features(
                learner, self.lanes, drawn, self._data(task), part, transform=task.transform, stages=stages
            )
            for name, output in outputs.items():
                pieces[name].append(np.asarray(output)[:, :real])
        self.ledger.probe += len(rows) * self._count("features", self.programs.features_lane, task, 1)
        features = {name: np.concatenate(parts, axis=1) for name, parts in pieces.items()}
        for probe in probes:
            selected = probe.select(names)
            measured = {
                name: np.asarray([probe.measure(features[name][lane]) for lane in range(len(self.names))])
                for name in selected
            }
            for name, values in measured.items():
                record(probe.name, name, values)
            if len(selected) > 1:
                record(probe.name, "all", np.mean(list(measured.values()), axis=0))

    def _probe_networks(self, probes: list[NetworkProbe], learner, record) -> None:
        network = self._view_network(learner)
        dynamic, static = eqx.partition(network, eqx.is_array)
        held = jax.device_get(dynamic)
        for probe in probes:
            lanes = [
                probe.function(eqx.combine(jax.tree.map(lambda x, i=lane: x[i], held), static))
                for lane in range(len(self.names))
            ]
            for place in lanes[0]:
                record(probe.name, place, np.asarray([measured[place] for measured in lanes]))

    def _stage_names(self, task: Task) -> tuple[str, ...]:
        def find() -> tuple[str, ...]:
            dynamic, static = self._lane_shapes()
            names: list[str] = []

            def trace(dynamic, values, batch):
                outputs = self.programs.features_lane(eqx.combine(dynamic, static), values, batch)
                names.extend(outputs)  # jax would give the names back sorted, and their order is the network's
                return outputs

            jax.eval_shape(trace, dynamic, self._one_lane()[0], self._batch_shape(task, 1))
            return tuple(names)

        return self._once("stages", task, find)

    def _intervention(self, state: PackState, event: Intervene, current: Task | None, number: int) -> PackState:
        task = event.on or current or self.tasks[0]
        learner = self.programs.intervene(
            state.learner,
            self.lanes,
            self._draw(task),
            self._data(task),
            np.asarray(task.rows("train")[: event.samples], np.int32),
            np.int32(number),
            transform=task.transform,
            intervention=event.intervention,
            when=event.when,
        )
        return state._replace(learner=learner)


class _Stopwatch:
    """Seconds and compilations of a `with` block."""

    def __init__(self, counter: CompilationCounter):
        self._counter = counter

    def __enter__(self) -> _Stopwatch:
        self._start, self._before = time.perf_counter(), self._counter.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        after = self._counter.read()
        self.compilations = after[0] - self._before[0]
        self.compile_seconds = after[1] - self._before[1]

    def tick(self, event: int, kind: str, *, updates: int = 0, records=(), saves=None) -> Tick:
        return Tick(
            event, kind, updates, self.seconds, self.compilations, self.compile_seconds, list(records), saves or {}
        )
