"""`neoteny probe`: the layer-wise page of a stored checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neoteny.errors import UsageError
from neoteny.lab.checkpoint import Checkpoint, find

if TYPE_CHECKING:
    from neoteny.probes import LayerTable
    from neoteny.tasks.streams import Task
    from neoteny.training.stored import Stored


@dataclass(frozen=True)
class Options:
    """What to measure, and on what."""

    data: str | None = None
    """another data set, by name: its own linear probes, on the features the run learned"""
    task: int | None = None
    """a task of the run's stream, counted from 0; if not given, the one it was on"""
    samples: int | None = None
    """rows of each split at most; all if not given"""
    pool: Literal["flat", "gap"] = "flat"
    """gap: averaged over positions first"""
    threshold: float = 0.95
    """share of the network's accuracy at which the tunnel starts"""
    epochs: int = 30
    """epochs of the linear probes"""
    out: Path | None = None
    """where the page goes; DIR/probes/CHECKPOINT if not given"""


def probe_checkpoint(text: str, options: Options) -> tuple[Path, str]:
    """Measure every layer of the checkpoint `DIR:RUN[:SAVE]` and write the page; its path, and a table as text."""
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"--samples must be at least 1, not {options.samples}")
    if options.data is not None and options.task is not None:
        raise UsageError("give either --data or --task, not both")
    checkpoint = find(text)
    from neoteny.report.layers import describe, write_layers
    from neoteny.training.stored import answering, load

    stored = load(checkpoint)
    task = _task(stored, options)
    if options.data is None:  # a run may have looked back since, with another head
        stored = stored._replace(learner=answering(stored.learner, task.index))
    table = _measure(checkpoint, stored, task, options)
    folder = options.out or checkpoint.directory / "probes" / _folder_name(checkpoint, options)
    path = write_layers(folder, table, _subject(checkpoint, stored, task, options))
    return path, describe(table)


def _folder_name(checkpoint: Checkpoint, options: Options) -> str:
    parts = [checkpoint.run, checkpoint.save, *(f"{name}-{value}" for name, value in _given(options).items())]
    return "-".join(part.replace("/", "_").replace(":", "_") for part in parts if part)


def _given(options: Options) -> dict[str, str]:
    """Options that are not as if nothing were said, but for where the page goes: name -> value."""
    values = {field.name: (getattr(options, field.name), field.default) for field in dataclasses.fields(Options)}
    return {name: str(value) for name, (value, usual) in values.items() if name != "out" and value != usual}


def _task(stored: Stored, options: Options) -> Task:
    """The task to measure on."""
    from neoteny.tasks.streams import Task

    tasks = stored.runner.tasks
    if options.task is not None and not 0 <= options.task < len(tasks):
        raise UsageError(f"--task must be from 0 to {len(tasks) - 1}, not {options.task}: the stream's tasks")
    own = (stored.task or tasks[0]) if options.task is None else tasks[options.task]
    if not isinstance(own, Task):
        raise UsageError(f"{own.name} is an environment; layers are measured on data with labels, of another run")
    return own if options.data is None or options.task is not None else _other(options.data, own)


def _other(name: str, own: Task) -> Task:
    """A task of another data set, shown as the run's own are if that asks for no draw."""
    import jax

    from neoteny.tasks import catalogue
    from neoteny.tasks.streams import Task, Unchanged

    data = catalogue.load(name)
    if data.input_shape != own.data.input_shape:
        raise UsageError(
            f"--data {name} has inputs of shape {data.input_shape}, and the run was trained on {own.data.name} with "
            f"{own.data.input_shape}; give a data set of that shape"
        )
    drawn = jax.eval_shape(
        lambda: own.transform.draw(jax.random.key(0), jax.numpy.asarray(own.data.targets), own.data.inputs[0].size)
    )
    return Task(name, data, data.splits, Unchanged() if jax.tree.leaves(drawn) else own.transform)


def _measure(checkpoint: Checkpoint, stored: Stored, task: Task, options: Options) -> LayerTable:
    import numpy as np

    from neoteny.probes import LayerMeasure, LayerProbe
    from neoteny.training.events import Probe

    # Another data set's classes are not what the network's outputs stand for.
    measures = [each for each in LayerMeasure if options.data is None or each is not LayerMeasure.TUNNEL]
    try:
        probe = LayerProbe(
            "probe", tuple(measures), pool=options.pool, threshold=options.threshold, epochs=options.epochs
        )
        event = Probe(probe, on=task, samples=options.samples)
        stored.runner.tracer.check_probes(event, stored.learner, {})
        tables, _ = stored.runner.measurer.layer_tables(probe, event, stored.learner, np.int32(stored.update))
    except (ValueError, KeyError) as error:
        raise UsageError(f"{checkpoint.study.name}/{checkpoint.pack.experiment}: {error.args[0]}") from error
    return tables[0]


def _subject(checkpoint: Checkpoint, stored: Stored, task: Task, options: Options):
    from neoteny import __version__
    from neoteny.lab.configs import config_to_json
    from neoteny.report.layers import Subject

    rows = {split: len(task.rows(split)[: options.samples]) for split in ("train", "test")}
    own = options.data is None
    return Subject(
        study=checkpoint.study.name,
        preset=checkpoint.plan.request.preset,
        experiment=checkpoint.pack.experiment,
        checkpoint=checkpoint.label,
        data=f"{task.data.name}, {rows['train']:,} train and {rows['test']:,} test rows"
        + (f", task {task.index}" if own and len(stored.runner.tasks) > 1 else ""),
        update=stored.update,
        threshold=options.threshold,
        configuration=config_to_json(checkpoint.plan.runs[checkpoint.run].config),
        environment={
            "neoteny": __version__,
            f"data {task.data.name}": f"SHA-256 {task.data.digest[:16]}",
            "linear probes": f"{options.epochs} epochs, features {'pooled' if options.pool == 'gap' else 'flattened'}",
        },
        command=" ".join(
            [
                f"neoteny probe {checkpoint.directory}:{checkpoint.label}",
                *(f"--{name} {value}" for name, value in _given(options).items()),
            ]
        ),
    )
