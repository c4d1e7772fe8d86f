"""The fold of a pack's state over its script, cut into chunks, one tick at a time.

Whoever drives the runner (a store, a person in memory) takes what a tick yields and may stop, commit or go on after
any.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from neoteny.lab.configs import host_view, lane_columns
from neoteny.lab.records import Record
from neoteny.lab.rings import RingRows
from neoteny.lab.study import Experiment
from neoteny.learners.learner import LearnerState
from neoteny.tasks.environments import EnvironmentTask, HostEnvironment
from neoteny.tasks.host_experience import HostExperience, HostPlay
from neoteny.tasks.sources import Given, Minibatch
from neoteny.tasks.streams import Task
from neoteny.training.changes import Changes, ready
from neoteny.training.clock import Clock
from neoteny.training.compilations import CompilationCounter
from neoteny.training.events import AnyTask, Evaluate, Event, Intervene, Probe, Save, Switch, Train
from neoteny.training.hosting import HostLoop, Stretch
from neoteny.training.ledger import Ledger
from neoteny.training.measuring import Measurer
from neoteny.training.outlines import Outliner
from neoteny.training.placing import PlacedData, data_of, shown
from neoteny.training.programs import Lanes, PackState, programs_for
from neoteny.training.standing import Outline, Standing, arrays_of, from_arrays
from neoteny.training.stepping import Stepper
from neoteny.training.tracing import Tracer, split_shapes
from neoteny.training.unfolding import Branch, PlainEvent, Rejoin, Step, read_after, unfold

TICK_SECONDS = 0.5
"""How long a chunk should last, so that progress is live and an interrupt is answered soon. Chunking changes no
bits.
"""


class Cursor(NamedTuple):
    """Where a run stands: at this step of the unfolded script, this many updates into it."""

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


def _script(experiment: Experiment, config: Any) -> tuple[tuple[AnyTask, ...], tuple[Event, ...]]:
    view = host_view(config)
    stream = experiment.stream(view)
    if stream.length is None:
        raise ValueError(f"{experiment.name}: the stream has no end; cut it with take(n)")
    tasks = tuple(stream)
    return tasks, tuple(experiment.script(view, tasks))


def _prefix(depth: int) -> str:
    """What the names of a stored standing begin with: nothing for the run's own, then one for every fork."""
    return f"branch{depth}:" if depth else ""


def _check_task(event: PlainEvent, position: int, current: AnyTask | None, trained: bool) -> None:
    """ValueError for what an event cannot do with an environment."""
    task = event.on if isinstance(event, Intervene) else event.task  # pyright: ignore[reportAttributeAccessIssue]
    if task is None or isinstance(task, Task):
        return
    kind = type(event).__name__
    if isinstance(event, Evaluate | Probe) and event.samples is None:
        what = "episodes to play" if isinstance(event, Evaluate) else "transitions to look at"
        raise ValueError(f"event {position}: {kind} on an environment needs samples=, the number of {what}")
    if isinstance(event, Probe | Intervene) and (current is None or task.index != current.index or not trained):
        raise ValueError(
            f"event {position}: {kind} on {task.name} looks at its replay, which is there only after Train({task.name})"
        )


class Runner:
    """One pack: runs of equal structure, stepped together.

    configs: one configuration a lane. names: the runs' names. lanes: at least this many lanes; dummy lanes repeat the
    last run and are recorded nowhere (bits depend on a pack's size, so a run alone can be compared with itself in
    company).
    """

    def __init__(self, experiment: Experiment, configs: Sequence[Any], names: Sequence[str], lanes: int = 0):
        self.names = tuple(names)
        self.tasks, self.script = _script(experiment, configs[0])
        self.steps = unfold(self.script)
        padded = [*configs, *[configs[-1]] * (lanes - len(configs))]
        columns = lane_columns(padded)
        seeds = np.asarray([config.seed for config in padded], np.int32)
        self.lanes = Lanes(columns, seeds)
        self.source = experiment.source(host_view(configs[0])) if experiment.source else Minibatch()
        self.programs = programs_for(experiment.learner, configs[0], self.source)
        self.cursor = Cursor()
        self.branch_ledger = Ledger(len(padded))
        self._standings: list[Standing] = []
        self._read_after = read_after(self.steps)
        self._seconds_per_update: float | None = None
        self._counter = CompilationCounter()
        self.data = PlacedData(self.tasks)
        self.tracer = Tracer(self.programs, self.lanes, self.source, self.data, self.tasks[0])
        self.changes = Changes(self.programs, self.lanes, self.data, self.tracer)
        self.stepper = Stepper(self.programs, self.lanes)
        self.host = HostLoop(self.programs, self.lanes)
        self.outliner = Outliner(self.steps, self.tracer, self.changes)
        self.measurer = Measurer(
            self.programs,
            self.lanes,
            len(self.names),
            self.source,
            self.data,
            self.tracer,
            self.changes,
            self.host,
        )

    @property
    def here(self) -> Standing:
        """Where the run stands, or the branch under way, once `ticks` has begun or `restore` brought it back."""
        assert self._standings, "nothing has been computed yet"
        return self._standings[-1]

    @property
    def outermost(self) -> Standing:
        """Where the run itself stands: while a branch is under way, at its fork."""
        assert self._standings, "nothing has been computed yet"
        return self._standings[0]

    @property
    def state(self) -> PackState:
        """Everything the pack computes with."""
        return self.here.state

    @property
    def clock(self) -> Clock:
        """The counters all lanes share."""
        return self.here.clock

    @property
    def ledger(self) -> Ledger:
        """What the run has cost on the way to here."""
        return self.here.ledger

    @property
    def alive(self) -> np.ndarray:
        """Which lanes are (still) finite."""
        return self.here.alive

    @property
    def training_spent(self) -> np.ndarray:
        """Operations of training in every lane (lanes,), those of finished branches among them."""
        return self.ledger.train + self.branch_ledger.train

    # What is known beforehand -------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[PlainEvent, ...]:
        """The events of the script in the order they happen, those of branches among them."""
        return tuple(step.event for step in self.steps if not isinstance(step.event, Branch | Rejoin))

    @property
    def branches(self) -> int:
        """Branches of all forks."""
        return sum(isinstance(step.event, Branch) for step in self.steps)

    def plan(self) -> Plan:
        """Updates and events of one lane of this script, those of branches among them."""
        return Plan(sum(e.steps for e in self.events if isinstance(e, Train)), len(self.events))

    def check(self) -> Plan:
        """The plan, after tracing what can go wrong: the learner, its metrics, the order of events. ValueError if it
        does.
        """
        for position, step, stack in self.outliner.walk():
            event, (state, bank, current, trained, _) = step.event, stack[-1]
            if not isinstance(event, Branch | Rejoin | Save):
                _check_task(event, position, current, trained)
            if isinstance(event, Train):
                if current is None or event.task.index != current.index:
                    raise ValueError(
                        f"event {position}: Train({event.task.name}) needs Switch({event.task.name}) before it"
                    )
                self.tracer.check_outputs(event.task, state.learner)
                names = self.tracer.metric_names(event.task, state.learner)
                if event.until is not None and event.until.metric not in names:
                    raise ValueError(f"until: no training metric {event.until.metric!r}; there are {', '.join(names)}")
            elif isinstance(event, Evaluate | Probe):
                if isinstance(event.task, Task):
                    event.task.rows(event.split)
                if isinstance(event, Probe):
                    self.tracer.check_probes(event, state.learner, bank)
        planned = self.plan()
        if planned.updates > np.iinfo(np.int32).max:
            raise ValueError(
                f"{planned.updates:,} updates are more than the clock can count ({np.iinfo(np.int32).max:,})"
            )
        return planned

    @property
    def updates_before(self) -> int:
        """Updates of one lane that lie before the cursor, of those the script bounds."""
        before = sum(step.event.steps for step in self.steps[: self.cursor.event] if isinstance(step.event, Train))
        return before + self.cursor.done

    def data_sets(self) -> dict[str, str]:
        """Name -> digest of every data set the tasks use; of an emulator on the host, what it is."""
        found: dict[str, str] = {}
        used = [data for task in self.tasks if (data := data_of(task)) is not None]
        for data in {id(data): data for data in used}.values():
            if found.setdefault(data.name, data.digest) != data.digest:
                raise ValueError(f"two different data sets are both called {data.name!r}; give each a name of its own")
        for task in self.tasks:
            if isinstance(task, EnvironmentTask) and isinstance(task.environment, HostEnvironment):
                found |= {task.name: task.environment.version} if task.environment.version else {}
        return found

    def state_bytes(self) -> int:
        """Bytes of the pack's state where it is largest, replays on the host among them."""

        def count(outline: Outline) -> int:
            held, replay = (outline.state, outline.bank), 0
            if isinstance(outline.task, EnvironmentTask) and isinstance(self.source, HostExperience):
                replay = self.source.bytes(outline.task) * len(self.lanes.seeds)
            return replay + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))

        return max(sum(map(count, stack)) for _, _, stack in self.outliner.walk())

    def training_flops(self) -> float:
        """Floating-point operations of training one lane through the whole script (bounds, where `until` may hold
        lanes).
        """
        return sum(
            step.event.steps * self.tracer.update_flops(step.event.task, stack[-1].state.learner)
            for _, step, stack in self.outliner.walk()
            if isinstance(step.event, Train)
        )

    # Storing ------------------------------------------------------------------------------------------------------

    @property
    def storable(self) -> bool:
        """Whether the run can be stored where it stands: amid a segment of a host environment it cannot."""
        return all(standing.storable for standing in self._standings)

    def arrays(self, *, rings: bool = True) -> dict[str, np.ndarray]:
        """Everything needed to go on, as arrays by path; within a fork, of every standing to come back to.

        rings: with the rows of rings, which `rings()` gives too.
        """
        stored = {f"branches.{name}": account for name, account in self.branch_ledger.arrays().items()}
        for depth, standing in enumerate(self._standings):
            stored.update({f"{_prefix(depth)}{name}": array for name, array in standing.arrays(rings=rings).items()})
        return stored

    def rings(self) -> list[RingRows]:
        """The rings, replay among them, whose rows a store writes apart."""
        return [ring for depth, standing in enumerate(self._standings) for ring in standing.rings(_prefix(depth))]

    def networks(self) -> Any:
        """The learner's main network, every array with a leading lane axis; in dead lanes, the last finite one."""
        return self._view_network(self.changes.living(self.state, self.alive))

    def networks_from(self, name: str, saved: Mapping[str, np.ndarray]) -> Any:
        """The same from what the save kept under this name holds, of networks or `full`."""
        position, full = self._save(name)
        learner = self.outliner.after(position).state.learner
        if full:
            return self._view_network(self.learner_from(name, saved))
        networks = from_arrays(learner.networks, saved, lanes=False)
        return self._view_network(eqx.tree_at(lambda s: s.networks, learner, networks))

    def learner_from(self, name: str, saved: Mapping[str, np.ndarray]) -> LearnerState:
        """The learner states that the full save kept under this name holds; ValueError if it is not full."""
        position, full = self._save(name)
        if not full:
            raise ValueError(f"the save {name!r} holds networks only; it would need Save(..., full=True)")
        return from_arrays(self.outliner.after(position).state.learner, saved, lanes=False)

    def saved_learner(self, name: str, saved: Mapping[str, np.ndarray]) -> tuple[LearnerState, AnyTask | None, int]:
        """The learner states of a save, the task begun last and the updates before it (bounds, where `until` holds).

        Of a save of networks only, everything but the networks is 0: fit for what looks at networks and features.
        """
        position, full = self._save(name)
        outline = self.outliner.after(position)
        if full:
            learner = self.learner_from(name, saved)
        else:
            shapes, rest = split_shapes(outline.state.learner)
            zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
            networks = from_arrays(outline.state.learner.networks, saved, lanes=False)
            learner = eqx.tree_at(lambda s: s.networks, eqx.combine(zeros, rest), networks)
        updates = [0]
        for step in self.steps[:position]:
            if isinstance(step.event, Branch):
                updates.append(updates[-1])
            elif isinstance(step.event, Rejoin):
                updates.pop()
            elif isinstance(step.event, Train):
                updates[-1] += step.event.steps
        return learner, outline.task, updates[-1]

    def is_full(self, name: str) -> bool:
        """Whether the save under this name keeps the whole learner state."""
        return self._save(name)[1]

    @property
    def saves(self) -> tuple[str, ...]:
        """Names under which the script saves, those within branches as BRANCH/NAME."""
        return tuple(self._save_places)

    @property
    def _save_places(self) -> dict[str, int]:
        return {step.save_name: place for place, step in enumerate(self.steps) if isinstance(step.event, Save)}

    def _save(self, name: str) -> tuple[int, bool]:
        """Where the script saves under this name, and whether in full."""
        saves = self._save_places
        if name not in saves:
            raise KeyError(f"the script has no save {name!r}; it has {', '.join(saves) or 'none'}")
        event = self.steps[saves[name]].event
        assert isinstance(event, Save)
        return saves[name], event.full

    def _view_network(self, learner: Any) -> Any:
        return self.programs.learner(self.tracer.values).view(learner).network

    def learner_text(self) -> str:
        """What the learner computes for one lane on the first task, as lowered text, whoever wrote it."""
        return self.tracer.learner_text(self.tasks[0])

    def restore(self, cursor: Cursor, stored: dict[str, np.ndarray]) -> None:
        """Go on from stored arrays; ValueError names what does not fit."""
        stack = self.outliner.at(cursor.event, cursor.done > 0)
        self._standings = []
        for depth, outline in enumerate(stack):
            standing = Standing.from_arrays(outline, stored, _prefix(depth))
            standing.play = self._play(outline.task)
            standing.restore_play(stored, _prefix(depth))
            self._standings.append(standing)
        self.branch_ledger.restore({name: stored[f"branches.{name}"] for name in self.branch_ledger.arrays()})
        self.cursor = cursor

    def begin(self, standing: Standing) -> None:
        """Begin the script where another run stood, and not from a fresh initialisation."""
        self._standings, self.cursor = [standing], Cursor()

    def _play(self, task: AnyTask | None) -> HostPlay | None:
        """New episodes and an empty replay, if the task's environments are on the host."""
        if not isinstance(task, EnvironmentTask) or not isinstance(self.source, HostExperience):
            return None
        ends = sum(isinstance(step.event, Train) and step.event.task.index == task.index for step in self.steps)
        return self.source.start(task, self.lanes.seeds.tolist(), ends)

    # The fold -----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the whole script is done."""
        return self.cursor.event >= len(self.steps)

    def ticks(self) -> Iterator[Tick]:
        """Go on from the cursor to the end of the script; after each tick the runner is fit to be stored."""
        if not self._standings:
            with self._timed() as timed:
                count = len(self.lanes.seeds)
                state = self.programs.init(self.lanes)
                self._standings = [Standing(state, Clock.start(), Ledger(count), np.ones(count, bool))]
                jax.block_until_ready(state)
            yield timed.tick(0, "init")
        while not self.finished:
            position = self.cursor.event
            step = self.steps[position]
            if isinstance(step.event, Train):
                yield from self._train(step.event)
            else:
                with self._timed() as timed:
                    records, saves = self._apply(step)
                    jax.block_until_ready(self.state)
                self.cursor = Cursor(position + 1)
                yield timed.tick(position, type(step.event).__name__.lower(), records=records, saves=saves)

    def _timed(self) -> _Stopwatch:
        return _Stopwatch(self._counter)

    def _train(self, event: Train) -> Iterator[Tick]:
        position, done = self.cursor
        arrays = self.data.arrays(event.task, "train")
        flops = self.tracer.update_flops(event.task, self.state.learner)
        acting = self.tracer.acting_flops(event.task, self.state.learner)
        here = self.here
        if done == 0:
            here.state = ready(here.state, self.tracer.metric_names(event.task, here.state.learner))
        taken_before = np.asarray(self.state.taken)
        while True:
            boundary = min(event.steps, (done // event.record_every + 1) * event.record_every)
            with self._timed() as timed:
                steps = min(boundary - done, self._chunk_length())
                here.state, stretch = self._chunk(event, arrays, steps, event.steps - done)
                taken, ran = np.asarray(self.state.taken), stretch.updates
                here.ledger.train += flops * (taken - taken_before) + acting * stretch.asked
                updates, taken_before = int((taken - taken_before)[: len(self.names)].sum()), taken
                here.clock = here.clock.advanced(ran, stretch.env_steps)
                done += ran
                unmet = self.alive & ~np.asarray(self.state.held)
                over = done >= event.steps or (event.until is not None and not unmet.any())
                if over and here.play is not None:
                    here.play.cut_off()
                records = self._record_training(event, position) if over or done == boundary else []
                if over and event.until is not None:
                    records += self._record_taken(event, position, taken)
            here.trained = here.trained or over
            self._learn_speed(ran, timed)
            self.cursor = Cursor(position + 1) if over else Cursor(position, done)
            yield timed.tick(position, "train", updates=updates, records=records)
            if over:
                return

    def _chunk(self, event: Train, arrays: Given, steps: int, remaining: int) -> tuple[PackState, Stretch]:
        """The state after at most so many of the updates that remain, and what they were."""
        here, transform = self.here, shown(event.task)
        separately = self.tracer.lane_by_lane(event.task, here.state.learner)
        if here.play is not None:
            return self.host.chunk(
                here.state,
                here.play,
                here.clock,
                steps,
                remaining,
                here.alive,
                separately=separately,
                until=event.until,
            )
        if separately:
            state, ran, env_steps = self.stepper.chunk(
                here.state, arrays, here.clock, steps, here.alive, transform=transform, until=event.until
            )
        else:
            state, ran, env_steps = self.programs.chunk(
                here.state,
                self.lanes,
                arrays,
                here.clock,
                np.int32(steps),
                here.alive,
                transform=transform,
                until=event.until,
            )
        return state, Stretch(int(ran), int(env_steps), int(env_steps))

    def _chunk_length(self) -> int:
        if self._seconds_per_update is None:
            return 1
        return max(1, int(TICK_SECONDS / self._seconds_per_update))

    def _learn_speed(self, ran: int, timed: _Stopwatch) -> None:
        if timed.compilations == 0 and ran > 0:
            self._seconds_per_update = max(timed.seconds / ran, 1e-7)

    def _record(
        self, lane: int, task: AnyTask, position: int, metric: str, value: float, split: str = "", place: str = ""
    ) -> Record:
        return Record(
            run=self.names[lane],
            branch=self.steps[position].branch,
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
        state, was_alive = self.state, self.alive
        last_finite, alive = self.programs.check(state.learner.networks, state.last_finite, was_alive)
        cleared = {name: np.zeros(len(counted), np.float32) for name in totals}
        self.here.state = state._replace(last_finite=last_finite, totals=cleared, counted=np.zeros_like(counted))
        self.here.alive = np.asarray(alive).copy()
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

    def _apply(self, step: Step) -> tuple[list[Record], dict[str, dict[str, np.ndarray]]]:
        """Do what the step says: its records and saves."""
        here, event, position = self.here, step.event, self.cursor.event
        records, saves = [], {}
        if isinstance(event, Switch):
            here.task, here.clock = event.task, here.clock.switched(event.task.index)
            here.state = self.changes.switched(here.state, event.task, here.clock)
            here.trained, here.source_since = False, position
            if here.play is not None:
                here.play.close()
            here.play = self._play(event.task)
        elif isinstance(event, Evaluate):
            records = self._evaluate(event, position)
        elif isinstance(event, Probe):
            records = self._probe(event, position)
        elif isinstance(event, Intervene):
            self._intervene(event, step.number)
        elif isinstance(event, Save):
            living = self.changes.living(here.state, here.alive)
            kept = arrays_of(here.state.learner if event.full else living.networks)
            saves = {step.save_name: {path: array[: len(self.names)] for path, array in kept.items()}}
            if event.name in self._read_after[position]:
                here.bank[event.name] = self.programs.copy(living.networks)
        elif isinstance(event, Branch):
            self._standings.append(self._begin_branch(here, position))
        elif isinstance(event, Rejoin):
            self._standings.pop()
            if here.play is not None:
                here.play.close()
            self.branch_ledger.add(here.ledger, since=self.here.ledger)
        self.here.bank = {name: kept for name, kept in self.here.bank.items() if name in self._read_after[position]}
        return records, saves

    def _begin_branch(self, parent: Standing, position: int) -> Standing:
        """A standing of its own where the parent stands; training in it leaves the parent's arrays alone."""
        return replace(
            parent,
            state=self.programs.copy(parent.state),
            ledger=parent.ledger.copy(),
            bank=dict(parent.bank),
            source_since=position,
            play=None if parent.play is None else parent.play.copies(),
        )

    def _intervene(self, event: Intervene, number: int) -> None:
        here = self.here
        task = event.on or here.task or self.tasks[0]
        read = {name: here.bank[name] for name in event.intervention.saves}
        here.ledger.forward += self.tracer.intervention_flops(event, task, here.state.learner, read)
        here.state = self.changes.intervened(
            here.state, event, task, number, here.alive, read, here.clock, here.trained, here.play
        )

    def _evaluate(self, event: Evaluate, position: int) -> list[Record]:
        readings = self.measurer.evaluate(event, self.changes.living(self.state, self.alive), self.clock.update)
        split = event.split if isinstance(event.task, Task) else ""
        for reading in readings:
            self.ledger.forward += reading.flops
        return [
            self._record(lane, event.task, position, reading.metric, reading.values[lane], split=split)
            for lane in range(len(self.names))
            for reading in readings
        ]

    def _probe(self, event: Probe, position: int) -> list[Record]:
        records: list[Record] = []
        living, experience = self.changes.living(self.state, self.alive), None
        if not isinstance(event.task, Task):
            assert event.samples is not None, "checked before"
            here = self.here
            experience = self.changes.experience(event.task, here.state.source, here.play, here.clock, event.samples)
        for reading in self.measurer.probe(event, living, self.clock.update, self.here.bank, experience):
            self.ledger.probe += reading.flops
            records += [
                self._record(
                    lane,
                    event.task,
                    position,
                    reading.metric,
                    reading.values[lane],
                    reading.split or event.split,
                    reading.place,
                )
                for lane in range(len(self.names))
                if self.alive[lane]
            ]
        return records


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
