"""`neoteny.run`: any learner on any stream, with probes, from a script or a notebook."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.configs import Lane
from neoteny.lab.execute import Options, Progress, make_runner, prepare, run_in_process
from neoteny.lab.plan import Plan, Request, extend_plan, make_plan
from neoteny.lab.progress import shown
from neoteny.lab.records import SCHEMA, Record, to_table
from neoteny.lab.results import join_records, load
from neoteny.lab.store import Store, locked
from neoteny.lab.study import Experiment, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from neoteny.interventions import Intervention
    from neoteny.learners.learner import Learner
    from neoteny.networks.network import Network
    from neoteny.tasks.streams import Stream

_FINAL = "final"
"""Name of the save that keeps the trained networks."""


@dataclass(frozen=True)
class Config:
    """What names a run made by `neoteny.run`: digests of what was passed, and the seed."""

    learner: str
    stream: str
    script: str
    steps: int
    batch_size: int
    seed: Lane[int] = 0


@dataclass(frozen=True, eq=False)
class Result:
    """What a run measured, and its networks.

    frame() gives all records as a polars frame; plot(metric) draws one; network(seed) is a trained network.
    """

    _records: pl.DataFrame
    _networks: Mapping[int, tuple[Any, int]]  # seed -> (a pack's networks, lane)

    def __repr__(self) -> str:
        seeds, metrics = ", ".join(map(str, self._networks)), ", ".join(self.metrics())
        return f"Result(seeds: {seeds}; {len(self._records)} records of {metrics})"

    def frame(self) -> pl.DataFrame:
        """All records: one row a measurement, with the columns of `neoteny.lab.records.Record` and `seed`."""
        return self._records

    def metrics(self) -> tuple[str, ...]:
        """The metrics recorded."""
        return tuple(self._records["metric"].unique(maintain_order=True))

    def network(self, seed: int) -> Network:
        """The trained network of this seed (of a diverged one, the last that was finite)."""
        import equinox as eqx
        import jax

        if seed not in self._networks:
            raise KeyError(f"no seed {seed}; the seeds are {', '.join(map(str, self._networks))}")
        networks, lane = self._networks[seed]
        dynamic, static = eqx.partition(networks, eqx.is_array)
        return eqx.combine(jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[lane]), dynamic), static)

    def plot(self, metric: str, *, split: str | None = None) -> Figure:
        """Mean over seeds with a 95 % band: training metrics against updates, others against the task.

        A metric measured at several places (stages) gets a line for each; evaluated on earlier tasks, a line
        for each task.
        """
        from neoteny.report.figures import curves

        rows = self._records.filter(pl.col("metric") == metric)
        if split is not None:
            rows = rows.filter(pl.col("split") == split)
        if rows.is_empty():
            raise KeyError(f"no records of {metric!r}; there are {', '.join(self.metrics())}")
        x = "step"
        by = [name for name in ("split", "place") if rows[name].n_unique() > 1]
        if not metric.startswith("train_"):
            at_end_of = self._records.group_by("event").agg(pl.col("step").max().alias("at"))
            rows = rows.join(at_end_of, on="event", how="left")
            if rows.group_by("seed", *by, "step").len()["len"].max() == 1:
                # One task at a time: its own number says more than the count of updates.
                if rows.group_by("seed", *by, "task").len()["len"].max() == 1:
                    x = "task"
            else:
                by.append("task")
        return curves(rows, x=x, by=by, y_label=metric.replace("_", " "))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _script_text(runner: Any) -> str:
    """The events and what they measure, in words: part of a run's name, so that other measurements make other runs."""
    from neoteny.training.events import Probe

    words = []
    for event in runner.script:
        if isinstance(event, Probe):
            names = ",".join(_probe_text(probe) for probe in event.probes)
            words.append(f"probe {event.task.index} {event.split} {event.samples} {names}")
        else:
            shown = {k: v.index if k in ("task", "on") and v is not None else v for k, v in vars(event).items()}
            words.append(f"{type(event).__name__} {shown}")
    return "\n".join(words)


def _probe_text(probe: Any) -> str:
    settings = {name: value for name, value in vars(probe).items() if name != "function"}
    return f"{type(probe).__name__} {settings} {_function_text(probe.function)}"


def _function_text(function: Any) -> str:
    """A probe's function in words: its name, its source where there is one, and what a partial one was given."""
    if isinstance(function, partial):
        return f"{_function_text(function.func)} {function.args} {sorted(function.keywords.items())}"
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return f"{getattr(function, '__qualname__', type(function).__name__)} {_digest(source)} {held}"


def _stream_digest(stream: Stream) -> str:
    sha = hashlib.sha256()
    for task in stream:
        sha.update(f"{task.name} {task.data.digest} {task.transform} {task.draw} {task.visit}".encode())
        for name in sorted(task.splits):
            sha.update(name.encode())
            sha.update(np.ascontiguousarray(task.splits[name]).data)
    return sha.hexdigest()[:16]


def run(
    learner: Learner,
    stream: Stream,
    *,
    seeds: int | Sequence[int] = 8,
    steps: int = 1_000,
    batch_size: int = 128,
    probes: Sequence[object] = (),
    evaluate: Sequence[str] = ("train",),
    seen_tasks: bool = False,
    samples: int | None = 2_048,
    at_task_end: Intervention | None = None,
    out: Path | str | None = None,
) -> Result:
    """Train `learner` on every task of `stream` in turn and measure at the end of each; all seeds in one program.

    seeds: how many (0 to n-1), or which. steps: updates on each task, of batches of `batch_size`. probes: functions of
    `neoteny.probes`, measurements, or functions of features (n, d). evaluate: the splits scored at the end of a task,
    those of all tasks seen so far if `seen_tasks`. samples: rows a probe looks at (None: all). at_task_end: an
    intervention after the measurements of every task. out: a directory to keep results in, where an interrupted run
    goes on; in memory if None. UsageError for what cannot be run.
    """
    from neoteny.interventions import Intervention as InterventionType
    from neoteny.learners.learner import Learner as LearnerType
    from neoteny.tasks.sources import Minibatch
    from neoteny.tasks.streams import Stream as StreamType
    from neoteny.tasks.streams import Task
    from neoteny.training.compilations import use_compilation_cache
    from neoteny.training.events import Evaluate, Intervene, Probe, Save, Switch, Train
    from neoteny.training.runner import Runner

    if not isinstance(learner, LearnerType):
        raise TypeError(f"run needs a learner, such as neoteny.learners.supervised(...), not {type(learner).__name__}")
    if not isinstance(stream, StreamType):
        raise TypeError(
            f"run needs a stream, such as neoteny.tasks.single(images, labels), not {type(stream).__name__}"
        )
    if isinstance(evaluate, str):
        raise TypeError(f"evaluate takes a tuple of splits: evaluate=({evaluate!r},)")
    if at_task_end is not None and not isinstance(at_task_end, InterventionType):
        raise TypeError(f"at_task_end takes an intervention, such as Redo(), not {type(at_task_end).__name__}")
    if stream.length is None:
        raise UsageError("the stream has no end; cut it first: stream.take(20)")
    if not all(isinstance(task, Task) for task in stream):
        raise UsageError(
            "run trains on data; to learn in environments, write an Experiment whose source is a DeviceExperience"
        )
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UsageError("run needs at least one seed, and each seed once")

    def script(_: Any, tasks: tuple) -> tuple:
        events = []
        for position, task in enumerate(tasks):
            events += [Switch(task), Train(task, steps)]
            looked_at = tasks[: position + 1] if seen_tasks else (task,)
            events += [Evaluate(each, split) for each in looked_at for split in evaluate]
            if probes:
                events.append(Probe(*probes, on=task, samples=samples))
            if at_task_end is not None:
                events.append(Intervene(at_task_end, on=task))
        return (*events, Save(_FINAL))

    # Functions of their own for every call: programs are shared between packs by the function that makes the learner.
    def make_learner(_: Any) -> Learner:
        return learner

    def experiment(axes: dict[str, tuple]) -> Experiment:
        source = Minibatch(batch_size)
        return Experiment("run", Config, lambda _: axes, lambda _: stream, make_learner, script, lambda _: source)

    use_compilation_cache()
    try:
        draft = Runner(experiment({}), [Config("", "", "", steps, batch_size)], ["draft"])
        draft.check()
    except (ValueError, KeyError) as error:
        raise UsageError(str(error.args[0])) from error
    axes = {
        "learner": (_digest(draft.learner_text()),),
        "stream": (_stream_digest(stream),),
        "script": (_digest(_script_text(draft)),),
        "steps": (steps,),
        "batch_size": (batch_size,),
        "seed": chosen,
    }
    study = Study("run", "", "", "", "", (experiment(axes),), (), presets={"direct": ""})
    request = Request("run", "direct", lanes=max(len(chosen), 1))
    if out is None:
        return _in_memory(study, make_plan(study, request), chosen)
    return _in_directory(study, request, Store(Path(out)), chosen)


def _in_memory(study: Study, plan: Plan, seeds: tuple[int, ...]) -> Result:
    (pack,) = plan.packs
    runner = make_runner(study, plan, pack)
    records: list[Record] = []
    total = runner.plan().updates * len(pack.runs)
    with shown({pack.name: total}) as take:
        for tick in runner.ticks():
            records.extend(tick.records)
            done = runner.updates_before * len(pack.runs)
            take(Progress(pack.name, done, total, tick.compile_seconds, "finished" if runner.finished else "running"))
    runs = {
        name: {"experiment": "run", "config": configs.config_to_json(run.config)} for name, run in plan.runs.items()
    }
    frame = _tidy(join_records(to_table(records, SCHEMA), runs))
    networks = runner.networks()
    return Result(frame, {seed: (networks, lane) for lane, seed in enumerate(seeds)})


def _in_directory(study: Study, request: Request, store: Store, seeds: tuple[int, ...]) -> Result:
    if store.is_foreign():
        raise UsageError(f"{store.directory} exists and is no result directory of neoteny; give another out")
    plan = make_plan(study, request)
    if not store.plan_path.exists():
        prepare(store, plan, study, Options())  # what is wrong comes out before anything is written
    with locked(store.directory):
        if store.plan_path.exists():
            plan = extend_plan(Plan.from_json(store.plan(), study), study, request)
        updates = prepare(store, plan, study, Options())
        packs = [pack for pack in plan.packs if pack.name in updates]
        store.write_plan(plan.to_json())
        with shown(updates) as take:
            statuses = run_in_process(store, plan, study, packs, Options(), take)
    for pack, status in zip(packs, statuses, strict=True):
        manifest = store.pack(pack.name).manifest()
        if status == "failed" and manifest is not None:
            raise RuntimeError(manifest.traceback)
    found: dict[int, tuple[Any, int]] = {}
    for pack in plan.packs:
        pack_store = store.pack(pack.name)
        manifest = pack_store.manifest()
        assert manifest is not None, "every pack is finished here"
        networks = make_runner(study, plan, pack).networks_from(_FINAL, pack_store.arrays(manifest, _FINAL))
        found.update({plan.runs[name].config.seed: (networks, lane) for lane, name in enumerate(pack.runs)})
    return Result(_tidy(load(store.directory)), {seed: found[seed] for seed in seeds})


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the columns that are the same for every run made here."""
    told = frame.drop("experiment", "learner", "stream", "script", "steps", "batch_size", "branch", "trial")
    return told.select("seed", "metric", "value", pl.exclude("seed", "metric", "value"))
