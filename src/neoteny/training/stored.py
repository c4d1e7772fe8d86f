"""Stored checkpoints as learner states: one run of a pack, fit to be measured."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax

from neoteny.interventions import UseHead
from neoteny.lab.checkpoint import Checkpoint
from neoteny.lab.execute import make_runner
from neoteny.lab.store import Store, StoreError, discard
from neoteny.learners.learner import LearnerState
from neoteny.training.events import AnyTask
from neoteny.training.runner import Cursor, Runner


class Stored(NamedTuple):
    """A checkpoint's run alone.

    runner: with one lane, nothing computed. learner: its state, every array with a lane axis of 1; of a save of
    networks only, all else is 0. task: the one begun last. update: updates before this moment (bounds, where `until`
    may have held lanes).
    """

    runner: Runner
    learner: LearnerState
    task: AnyTask | None
    update: int


def load(checkpoint: Checkpoint) -> Stored:
    """The checkpoint from its directory, at the fork if a branch was under way.

    StoreError for files that are damaged, UsageError for a changed study.
    """
    study, pack = checkpoint.study, checkpoint.pack
    whole = make_runner(study, checkpoint.plan, pack)
    store = Store(checkpoint.directory).pack(pack.name)
    try:
        if checkpoint.save is None:
            whole.restore(Cursor(*checkpoint.manifest.cursor), store.state(checkpoint.manifest))
            own = whole.outermost
            learner = whole.changes.living(own.state, own.alive)
            task, update = own.task, int(own.clock.update)
        else:
            saved = store.arrays(checkpoint.manifest, checkpoint.save)
            learner, task, update = whole.saved_learner(checkpoint.save, saved)
    except (ValueError, KeyError) as error:
        raise StoreError(
            f"{checkpoint.label} does not fit the study: {error.args[0]}; {discard(store.directory)}"
        ) from error
    alone = Runner(study.experiment(pack.experiment), [checkpoint.plan.runs[checkpoint.run].config], [checkpoint.run])
    lane = slice(checkpoint.lane, checkpoint.lane + 1)
    one = jax.tree.map(lambda leaf: leaf[lane] if eqx.is_array(leaf) else leaf, learner)
    return Stored(alone, one, task, update)


def answering(learner: LearnerState, task: int) -> LearnerState:
    """A learner's state with a lane axis, the head of this task in use; one with a single head is as it was."""
    return eqx.filter_vmap(lambda state: UseHead(task)(state, None))(learner)
