"""The fold of a pack's state over its script, cut into chunks, one tick at a time.

Whoever drives the runner (a store, a person in memory) takes what a tick yields and may stop, commit or go on after
any.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from neoteny.lab.configs import host_view, lane_columns
from neoteny.lab.records import Record
from neoteny.lab.study import Experiment
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Task
from neoteny.training.clock import Clock
from neoteny.training.compilations import CompilationCounter
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Save, Switch, Train
from neoteny.training.ledger import Ledger
from neoteny.training.measuring import Measurer
from neoteny.training.placing import PlacedData
from neoteny.training.programs import Lanes, PackState, programs_for
from neoteny.training.tracing import Tracer, split_shapes

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
        self._seconds_per_update: float | None = None
        self._counter = CompilationCounter()
        self.data = PlacedData(self.tasks)
        self.tracer = Tracer(self.programs, self.lanes, self.source, self.data)
        self.measurer = Measurer(self.programs, self.lanes, len(self.names), self.data, self.tracer)

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
        state = self.tracer.initial()
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
                self.tracer.check_outputs(event.task, state.learner)
                names = self.tracer.metric_names(event.task, state.learner)
                if event.until is not None and event.until.metric not in names:
                    raise ValueError(f"until: no training metric {event.until.metric!r}; there are {', '.join(names)}")
            elif isinstance(event, Evaluate | Probe):
                event.task.rows(event.split)
                if isinstance(event, Probe):
                    self.tracer.check_probes(event, state.learner)
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
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.tracer.initial()))

    def training_flops(self) -> float:
        """Floating-point operations of training one lane through the whole script (bounds, where `until` may hold
        lanes).
        """
        total, learner = 0.0, self.tracer.initial().learner
        for event in self.script:
            if isinstance(event, Train):
                total += event.steps * self.tracer.update_flops(event.task, learner)
        return total

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
        state = self.tracer.initial()
        seen = None
        metrics: tuple[str, ...] = ()
        for index, event in enumerate(self.script[: cursor.event + 1]):
            reached = index < cursor.event
            if isinstance(event, Switch) and reached:
                seen = event.task
                state = jax.eval_shape(lambda s, e=event: self._switched(s, e), state)
            elif isinstance(event, Train) and (reached or cursor.done > 0):
                metrics = self.tracer.metric_names(event.task, state.learner)
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
        learner = self.tracer.initial().learner
        dynamic, static = split_shapes(learner.networks)
        leaves = [jax.numpy.asarray(saved[path]) for path in paths_of(learner.networks)]
        networks = eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static)
        return self._view_network(eqx.tree_at(lambda s: s.networks, learner, networks))

    def _view_network(self, learner: Any) -> Any:
        return self.programs.learner(self.tracer.values).view(learner).network

    def learner_text(self) -> str:
        """What the learner computes for one lane on the first task, as lowered text, whoever wrote it."""
        return self.tracer.learner_text(self.tasks[0])

    def restore(self, cursor: Cursor, stored: dict[str, np.ndarray]) -> None:
        """Go on from stored arrays; ValueError names what does not fit."""
        template = self._template(cursor)
        paths = paths_of(template)
        dynamic, static = split_shapes(template)
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
        arrays = self.data.arrays(event.task, "train")
        transform = event.task.transform
        flops = self.tracer.update_flops(event.task, self.state.learner)
        if done == 0:
            self._metrics = self.tracer.metric_names(event.task, self.state.learner)
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

    def _chunk_length(self) -> int:
        if self._seconds_per_update is None:
            return 1
        return max(1, int(TICK_SECONDS / self._seconds_per_update))

    def _learn_speed(self, ran: int, timed: _Stopwatch) -> None:
        if timed.compilations == 0 and ran > 0:
            self._seconds_per_update = max(timed.seconds / ran, 1e-7)

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
            task = event.on or self._task or self.tasks[0]
            self.ledger.forward += self.tracer.intervention_flops(event, task, self.state.learner)
            self.state = self._intervention(self.state, event, self._task, number)
            return [], {}
        return [], {event.name: self._saved(event)}

    def _switched(self, state: PackState, event: Switch) -> PackState:
        task = event.task
        learner, source = self.programs.switch(
            state.learner,
            self.lanes,
            self.data.arrays(task, "train"),
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

    def _evaluate(self, event: Evaluate, position: int) -> list[Record]:
        readings = self.measurer.evaluate(event, self._living())
        self.ledger.forward += sum(reading.flops for reading in readings)
        return [
            self._record(lane, event.task, position, reading.metric, reading.values[lane], split=event.split)
            for lane in range(len(self.names))
            for reading in readings
        ]

    def _probe(self, event: Probe, position: int) -> list[Record]:
        records: list[Record] = []
        for reading in self.measurer.probe(event, self._living(), self.clock.update):
            self.ledger.probe += reading.flops
            records += [
                self._record(
                    lane, event.task, position, reading.metric, reading.values[lane], event.split, reading.place
                )
                for lane in range(len(self.names))
                if self.alive[lane]
            ]
        return records

    def _intervention(self, state: PackState, event: Intervene, current: Task | None, number: int) -> PackState:
        task = event.on or current or self.tasks[0]
        learner = self.programs.intervene(
            state.learner,
            self.lanes,
            self.measurer.draw(task),
            self.data.data(task),
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
