"""Stored runs that go on in another way: copies of one run's state in all lanes, each with draws of its own to come."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import numpy as np

from neoteny.errors import UsageError
from neoteny.lab.checkpoint import Checkpoint
from neoteny.lab.execute import make_runner
from neoteny.lab.store import Store, StoreError, discard
from neoteny.tasks.streams import Task
from neoteny.training.clock import Clock
from neoteny.training.events import AnyTask, Event, Train
from neoteny.training.ledger import Ledger
from neoteny.training.programs import PackState
from neoteny.training.runner import Cursor, Runner
from neoteny.training.standing import Standing


def continued(
    checkpoint: Checkpoint, lanes: int, script: Callable[[tuple[AnyTask, ...], AnyTask], tuple[Event, ...]]
) -> Runner:
    """A runner that stands where the stored run stood, `lanes` times, and goes on with script(tasks, task begun last).

    Lanes differ in what is drawn from now on (minibatches, exploration, interventions, new tasks) and in nothing else:
    a task under way stays the run's own. A run that was stopped within a branch goes on from where it forked. From a
    full save the source of the task begins anew.

    UsageError for a run that diverged or has begun no task, and for a save of networks only; StoreError for files that
    are damaged.
    """
    study, pack = checkpoint.study, checkpoint.pack
    experiment, config = study.experiment(pack.experiment), checkpoint.plan.runs[checkpoint.run].config
    standing, position = _standing(checkpoint)
    lane = slice(checkpoint.lane, checkpoint.lane + 1)
    if not standing.alive[lane].all():
        raise UsageError(f"run {checkpoint.run} diverged before this; nothing can go on from it")
    copies = [replace(config, seed=_seed(config.seed, number)) for number in range(lanes)]
    planned = replace(experiment, script=lambda _, tasks: script(tasks, tasks[position]))
    runner = Runner(planned, copies, [f"copy{number}" for number in range(lanes)])
    state = jax.tree.map(lambda leaf: leaf[lane] if eqx.is_array(leaf) else leaf, standing.state)
    play = standing.play
    if play is not None:
        ends = sum(isinstance(event, Train) for event in runner.events)
        play = play.copies([checkpoint.lane] * lanes, runner.lanes.seeds.tolist(), ends)
    elif state.source is None and not isinstance(standing.task, Task):
        name = "its task" if standing.task is None else standing.task.name
        raise UsageError(
            f"a save holds no experience, and {name} is an environment; go on from the run's last commit instead"
        )
    if state.source is None and play is None:
        # The run's own draw of the task, in a runner of this run alone; the learner is not told of a new task.
        alone = Runner(experiment, [config], [checkpoint.run])
        state = state._replace(source=alone.changes.switched(state, alone.tasks[position], standing.clock).source)
    repeated = jax.tree.map(lambda leaf: jax.numpy.repeat(leaf, lanes, axis=0) if eqx.is_array(leaf) else leaf, state)
    runner.begin(
        Standing(repeated, standing.clock, Ledger(lanes), np.ones(lanes, bool), runner.tasks[position], play=play)
    )
    return runner


def _seed(seed: int, number: int) -> int:
    """Seeds of copies: as if drawn, so that they meet no seed a person chose."""
    return zlib.crc32(f"copy {number} of {seed}".encode()) & 0x7FFFFFFF


def _standing(checkpoint: Checkpoint) -> tuple[Standing, int]:
    """Where the checkpoint's whole pack stood, at the fork if a branch was under way, without a source if it is a save;
    and the place of its task in the stream.
    """
    whole = make_runner(checkpoint.study, checkpoint.plan, checkpoint.pack)
    store = Store(checkpoint.directory).pack(checkpoint.pack.name)
    manifest = checkpoint.manifest
    try:
        if checkpoint.save is None:
            whole.restore(Cursor(*manifest.cursor), store.state(manifest))
            return whole.outermost, _place(checkpoint, whole, whole.outermost.task)
        if not whole.is_full(checkpoint.save):
            raise UsageError(
                f"the save {checkpoint.save!r} holds networks only, and training needs the optimiser's state too; "
                f"give {checkpoint.directory}:{checkpoint.run}, the last commit, or a full save"
            )
        saved = store.arrays(manifest, checkpoint.save)
        learner, task, update = whole.saved_learner(checkpoint.save, saved)
    except (ValueError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        raise StoreError(
            f"{checkpoint.label} does not fit the study: {error.args[0]}; {discard(store.directory)}"
        ) from error
    count = len(next(iter(saved.values())))
    zeros = np.zeros(count, np.int32)
    state = PackState(learner, None, learner.networks, {}, zeros, zeros, zeros, np.zeros(count, bool))
    known = store.records(manifest)
    steps, frames = (np.asarray(known.column(name)) for name in ("step", "env_steps"))
    env_step = int(frames[steps <= update].max(initial=0))
    place = _place(checkpoint, whole, task)
    clock = Clock(*(np.asarray(value, np.int32) for value in (update, env_step, whole.tasks[place].index, 0)))
    return Standing(state, clock, Ledger(count), _finite(learner.networks, count), task), place


def _place(checkpoint: Checkpoint, runner: Runner, task: AnyTask | None) -> int:
    """Where in the stream the task begun last lies."""
    for place, each in enumerate(runner.tasks):
        if each is task:
            return place
    raise UsageError(f"run {checkpoint.run} has begun no task here; take a later checkpoint")


def _finite(networks: Any, count: int) -> np.ndarray:
    """Which lanes' networks are finite."""
    found = np.ones(count, bool)
    for leaf in jax.tree.leaves(eqx.filter(networks, eqx.is_inexact_array)):
        found &= np.isfinite(np.asarray(leaf)).reshape(count, -1).all(axis=1)
    return found
