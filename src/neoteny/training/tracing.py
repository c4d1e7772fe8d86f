"""What tracing finds out about a pack's programs: names, shapes and costs. Nothing is compiled or computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax

from neoteny.learners.learner import attach, detach
from neoteny.probes.measurement import ViewProbe
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Task
from neoteny.training.changes import Bank
from neoteny.training.events import Intervene, Probe
from neoteny.training.ledger import count_flops
from neoteny.training.placing import PlacedData
from neoteny.training.programs import Lanes, PackState, Programs


def split_shapes(tree: Any) -> tuple[Any, Any]:
    """A tree of shapes as (shapes, everything else)."""
    return eqx.partition(tree, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def one_lane(learner: Any) -> tuple[Any, Any]:
    """(shapes, everything else) of one lane of a pack's learner states, given as arrays or as shapes."""
    dynamic, static = eqx.partition(learner, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dynamic), static


def signature(tree: Any) -> Hashable:
    """Structure, shapes and types of a tree of arrays or shapes: equal for trees that programs cannot tell apart."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class Tracer:
    """Traces what the programs of a pack do to learner states of a given structure, once for tasks alike.

    `learner` is the pack's learner states, or their shapes; an intervention may have changed their structure.
    """

    def __init__(self, programs: Programs, lanes: Lanes, source: Minibatch, data: PlacedData, first_task: Task):
        self.first_task = first_task
        self._programs, self._lanes, self._source, self._data = programs, lanes, source, data
        self.values = {name: column[0] for name, column in lanes.values.items()}
        self.seed = lanes.seeds[0]
        self._found: dict[tuple, Any] = {}

    def initial(self) -> PackState:
        """The shapes of the pack's state before the first task."""
        return jax.eval_shape(self._programs.init, self._lanes)

    def _once(self, what: Hashable, task: Task, learner: Any, compute: Callable[[Any, Any], Any]) -> Any:
        """compute(shapes, static) of one lane, once for each structure of the state and shape of the data."""
        shapes, static = one_lane(learner)
        place = (
            what,
            signature(learner),
            task.transform,
            task.data.inputs.shape,
            task.data.targets.shape,
            task.data.classes,
        )
        if place not in self._found:
            self._found[place] = compute(shapes, static)
        return self._found[place]

    def batch_shape(self, task: Task, size: int) -> Any:
        """The shapes of a batch of `size`."""
        return jax.eval_shape(
            lambda seed, data: self._programs.batch_lane(seed, data, task.transform, size),
            self.seed,
            self._data.data(task),
        )

    def metric_names(self, task: Task, learner: Any) -> tuple[str, ...]:
        """Names of the training metrics an update gives."""

        def find(shapes: Any, static: Any) -> tuple[str, ...]:
            return tuple(jax.eval_shape(self._update(static), shapes, self._training_batch(task))[1])

        return self._once("metrics", task, learner, find)

    def update_flops(self, task: Task, learner: Any) -> float:
        """Operations of one update of one lane."""

        def count(shapes: Any, static: Any) -> float:
            return count_flops(self._update(static), shapes, self._training_batch(task))

        return self._once("update", task, learner, count)

    def _training_batch(self, task: Task) -> Any:
        return self.batch_shape(task, self._source.batch_size)

    def _update(self, static: Any) -> Callable:
        def update(dynamic, batch):
            state = eqx.combine(dynamic, static)
            new, metrics = self._programs.update_lane(state, batch, self.values, self.seed, 0, 0)
            return eqx.filter(new, eqx.is_array), metrics

        return update

    def flops(self, what: Hashable, function: Callable, task: Task, size: int, subject: Any) -> float:
        """Operations of function(subject, values, batch) for one lane and a batch of `size`; `what` names it.

        subject: the learner states, or a tree that holds them.
        """

        def count(shapes: Any, static: Any) -> float:
            return count_flops(
                lambda d, v, b: function(eqx.combine(d, static), v, b),
                shapes,
                self.values,
                self.batch_shape(task, size),
            )

        return self._once((what, size), task, subject, count)

    def view_probe_flops(self, probe: ViewProbe, task: Task, size: int, learner: Any, saved: Bank) -> float:
        """Operations of a view probe on one lane and `size` rows."""
        return self.flops(probe, self._view_probe(probe), task, size, (learner, dict(saved)))

    def intervention_flops(self, event: Intervene, task: Task, learner: Any, saved: Bank) -> float:
        """Operations of an intervention on one lane, with what it looks at."""

        def lane(subject, values, batch):
            state, saved = subject
            changed = self._programs.intervene_lane(
                event.intervention, event.when, state, values, self.seed, batch, 0, saved
            )
            return eqx.filter(changed, eqx.is_array)

        rows = min(event.samples, len(task.rows("train")))
        return self.flops((event.intervention, event.when), lane, task, rows, (learner, dict(saved)))

    def _view_probe(self, probe: ViewProbe) -> Callable:
        def lane(subject, values, batch):
            state, saved = subject
            return self._programs.view_probe_lane(probe, state, values, self.seed, batch, 0, saved)

        return lane

    def stage_names(self, task: Task, learner: Any) -> tuple[str, ...]:
        """The network's stages, in its order."""

        def find(shapes: Any, static: Any) -> tuple[str, ...]:
            names: list[str] = []

            def trace(dynamic, values, batch):
                outputs = self._programs.features_lane(eqx.combine(dynamic, static), values, batch)
                names.extend(outputs)  # jax would give the names back sorted, and their order is the network's
                return outputs

            jax.eval_shape(trace, shapes, self.values, self.batch_shape(task, 1))
            return tuple(names)

        return self._once("stages", task, learner, find)

    def check_outputs(self, task: Task, learner: Any) -> None:
        """ValueError if the network has fewer outputs than the task has classes."""
        classes = task.data.classes
        if classes is None:
            return

        def find(shapes: Any, static: Any) -> int:
            outputs = jax.eval_shape(
                lambda d, v, b: self._programs.learner(v).predict(eqx.combine(d, static), b.inputs),
                shapes,
                self.values,
                self.batch_shape(task, 2),
            )
            return outputs.shape[-1]

        outputs = self._once("outputs", task, learner, find)
        if outputs < classes:
            raise ValueError(f"the network has {outputs} outputs and {task.data.name} has {classes} classes")

    def check_probes(self, event: Probe, learner: Any, bank: Bank) -> None:
        """Trace the view probes, so that one that does not fit fails before anything is computed."""
        task = event.task
        rows = min(len(task.rows(event.split)), event.samples or len(task.rows(event.split)))
        for probe in event.probes:
            if isinstance(probe, ViewProbe):
                lane = self._view_probe(probe)

                def trace(shapes: Any, static: Any, lane: Callable = lane) -> None:
                    jax.eval_shape(
                        lambda d, v, b: lane(eqx.combine(d, static), v, b),
                        shapes,
                        self.values,
                        self.batch_shape(task, rows),
                    )

                saved = {name: bank[name] for name in probe.saves}
                self._once(("fits", probe, rows), task, (learner, saved), trace)

    def learner_text(self, task: Task) -> str:
        """What the learner computes for one lane on a task, as lowered text, whoever wrote it.

        Initialisation, one update, the switch to a task, scores and features.
        """
        learner = jax.eval_shape(self._programs.init_lane, self.values, self.seed)
        dynamic, static = split_shapes(learner)

        def everything(values, seed, dynamic, batch):
            state = eqx.combine(dynamic, static)
            learner = self._programs.learner(values)
            switched = learner.switch(attach(state, learner), jax.numpy.int32(0), None, jax.random.key(0))
            computed = (
                self._programs.init_lane(values, seed),
                self._programs.update_lane(state, batch, values, seed, 0, 0),
                detach(switched),
                self._programs.score_lane(state, values, batch),
                self._programs.features_lane(state, values, batch),
            )
            return eqx.filter(computed, eqx.is_array)

        lowered = jax.jit(everything).lower(self.values, self.seed, dynamic, self._training_batch(task))
        return lowered.as_text()
