"""What tracing finds out about a pack's programs: names, shapes and costs. Nothing is compiled or computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from neoteny.learners.learner import Learner, LearnerState, attach, detach
from neoteny.probes.measurement import LayerProbe, ViewProbe
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.streams import Task
from neoteny.training.events import AnyTask, Intervene, Probe
from neoteny.training.ledger import count_flops, runs_convolution
from neoteny.training.placing import PlacedData, alike, shown
from neoteny.training.programs import Bank, Lanes, PackState, Programs, acting, given


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

    def __init__(self, programs: Programs, lanes: Lanes, source: Any, data: PlacedData, first_task: AnyTask):
        self.first_task = first_task
        self._programs, self._lanes, self._source, self._data = programs, lanes, source, data
        self.values = {name: column[0] for name, column in lanes.values.items()}
        self.seed = lanes.seeds[0]
        self._found: dict[tuple, Any] = {}

    def initial(self) -> PackState:
        """The shapes of the pack's state before the first task."""
        return jax.eval_shape(self._programs.init, self._lanes)

    def _once(self, what: Hashable, task: AnyTask, learner: Any, compute: Callable[[Any, Any], Any]) -> Any:
        """compute(shapes, static) of one lane, once for each structure of the state and shape of the data."""
        shapes, static = one_lane(learner)
        place = (what, signature(learner), alike(task))
        if place not in self._found:
            self._found[place] = compute(shapes, static)
        return self._found[place]

    def batch_shape(self, task: AnyTask, size: int) -> Any:
        """The shapes of a batch of `size`; from an environment, of experience to look at."""
        if isinstance(task, Task):
            return jax.eval_shape(
                lambda seed, data: self._programs.batch_lane(seed, data, task.transform, size),
                self.seed,
                self._data.data(task),
            )

        def look(seed, data):
            alone = shown(task)
            assert isinstance(alone, EnvironmentTask)
            drawn = self._programs.draw_lane(seed, data, 0, alone)
            return self._source.empty(given(alone, data, drawn), size)

        place = ("batch", size, alike(task))
        if place not in self._found:
            self._found[place] = jax.eval_shape(look, self.seed, self._data.data(task))
        return self._found[place]

    def acting_flops(self, task: AnyTask, learner: Any) -> float:
        """Operations of one lane's policy in one step of one environment; 0 for data."""
        if isinstance(task, Task):
            return 0.0

        def act(state, values, batch):
            acting = self._programs.learner(values).act
            if acting is None:
                raise ValueError("this learner gives no actions, so it cannot be trained in an environment")
            return acting(state, batch.inputs, jax.random.key(0))

        return self.flops("act", act, task, 1, learner)

    def metric_names(self, task: AnyTask, learner: Any) -> tuple[str, ...]:
        """Names of the training metrics an update gives."""

        def find(shapes: Any, static: Any) -> tuple[str, ...]:
            return tuple(jax.eval_shape(self._update(static), shapes, self._training_batch(task))[1])

        return self._once("metrics", task, learner, find)

    def update_flops(self, task: AnyTask, learner: Any) -> float:
        """Operations of one update of one lane."""

        def count(shapes: Any, static: Any) -> float:
            return count_flops(self._update(static), shapes, self._training_batch(task))

        return self._once("update", task, learner, count)

    def lane_by_lane(self, task: AnyTask, learner: Any) -> bool:
        """Whether lanes are computed one after another and updates outside loops: on a CPU, where XLA's convolution is
        an order of magnitude slower inside a loop, and slower again with weights that differ by lane.
        """
        platform = jax.default_backend()

        def find(shapes: Any, static: Any) -> bool:
            return runs_convolution(self._update(static), shapes, self._training_batch(task), platform=platform)

        return platform == "cpu" and self._once("convolves", task, learner, find)

    def _training_batch(self, task: AnyTask) -> Any:
        return self.batch_shape(task, self._source.batch_size)

    def _update(self, static: Any) -> Callable:
        def update(dynamic, batch):
            state = eqx.combine(dynamic, static)
            new, metrics = self._programs.update_lane(state, batch, self.values, self.seed, 0, 0)
            return eqx.filter(new, eqx.is_array), metrics

        return update

    def flops(self, what: Hashable, function: Callable, task: AnyTask, size: int, subject: Any) -> float:
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

    def view_probe_flops(self, probe: ViewProbe, task: AnyTask, size: int, learner: Any, saved: Bank) -> float:
        """Operations of a view probe on one lane and `size` rows."""
        return self.flops(probe, self._view_probe(probe), task, size, (learner, dict(saved)))

    def intervention_flops(self, event: Intervene, task: AnyTask, learner: Any, saved: Bank) -> float:
        """Operations of an intervention on one lane, with what it looks at."""

        def lane(subject, values, batch):
            state, saved = subject
            changed = self._programs.intervene_lane(
                event.intervention, event.when, state, values, self.seed, batch, 0, saved
            )
            return eqx.filter(changed, eqx.is_array)

        rows = min(event.samples, len(task.rows("train"))) if isinstance(task, Task) else event.samples
        return self.flops((event.intervention, event.when), lane, task, rows, (learner, dict(saved)))

    def _view_probe(self, probe: ViewProbe) -> Callable:
        def lane(subject, values, batch):
            state, saved = subject
            return self._programs.view_probe_lane(probe, state, values, self.seed, batch, 0, saved)

        return lane

    def stage_names(self, task: AnyTask, learner: Any) -> tuple[str, ...]:
        """The network's stages, in its order."""
        return tuple(self.stage_shapes(task, learner))

    def stage_shapes(self, task: AnyTask, learner: Any) -> dict[str, tuple[int, ...]]:
        """The shape of every stage's output of one example, in the network's order."""

        def find(shapes: Any, static: Any) -> dict[str, tuple[int, ...]]:
            found: dict[str, tuple[int, ...]] = {}

            def trace(dynamic, values, batch):
                outputs = self._programs.features_lane(eqx.combine(dynamic, static), values, batch)
                # jax would give the names back sorted, and their order is the network's
                found.update({name: output.shape[1:] for name, output in outputs.items()})
                return outputs

            jax.eval_shape(trace, shapes, self.values, self.batch_shape(task, 1))
            return found

        return self._once("stages", task, learner, find)

    def check_outputs(self, task: AnyTask, learner: Any) -> None:
        """ValueError if the network has fewer outputs than the task has classes or actions, or never acts in an
        environment.
        """
        classes = task.data.classes if isinstance(task, Task) else task.specification.actions
        if classes is None:
            return

        def find(shapes: Any, static: Any) -> int:
            def predict(dynamic: Any, values: Any, batch: Any) -> Any:
                made = self._programs.learner(values)
                state = eqx.combine(dynamic, static)
                if not isinstance(task, Task):
                    self._check_acting(made, state, batch)
                return made.predict(state, batch.inputs)

            return jax.eval_shape(predict, shapes, self.values, self.batch_shape(task, 2)).shape[-1]

        outputs = self._once("outputs", task, learner, find)
        if outputs < classes:
            name, what = (task.data.name, "classes") if isinstance(task, Task) else (task.name, "actions")
            raise ValueError(f"the network has {outputs} outputs and {name} has {classes} {what}")

    def _check_acting(self, learner: Learner, state: LearnerState, batch: Any) -> None:
        """ValueError for a learner that never acts or, on the host, acts by a network that follows another."""
        if learner.act is None:
            raise ValueError("this learner gives no actions, so it cannot be trained in an environment")
        if self._source.compiled:
            return
        try:
            learner.act(acting(state), batch.inputs, jax.random.key(0))
        except KeyError as error:
            raise ValueError(
                f"this learner acts by its network {error}, which follows another; on the host it must act by the "
                "network that is trained"
            ) from None

    def check_probes(self, event: Probe, learner: Any, bank: Bank) -> None:
        """ValueError or KeyError for a probe that does not fit: view probes are traced, layer probes looked through."""
        task = event.task
        for probe in event.probes:
            if isinstance(probe, LayerProbe):
                self._check_layers(probe, task, learner)
        rows = event.samples
        if isinstance(task, Task):
            rows = min(len(task.rows(event.split)), event.samples or len(task.rows(event.split)))
        assert rows is not None, "in an environment, samples is checked before"
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

    def _check_layers(self, probe: LayerProbe, task: AnyTask, learner: Any) -> None:
        if not isinstance(task, Task):
            raise ValueError(f"{probe.name} needs class labels, and {task.name} is an environment")
        if task.data.classes is None:
            raise ValueError(f"{probe.name} needs class labels, and {task.data.name} has none")
        for split in (probe.fit, probe.test) if probe.fits else (probe.test,):
            if len(task.rows(split)) == 0:
                raise ValueError(f"{probe.name}: task {task.name!r} has no rows in its split {split!r}")
        probe.select(self.stage_names(task, learner))

    def learner_text(self, task: AnyTask) -> str:
        """What the learner computes for one lane on a task, as lowered text, whoever wrote it.

        Initialisation, one update, the switch to a task, scores and features.
        """
        learner = jax.eval_shape(self._programs.init_lane, self.values, self.seed)
        dynamic, static = split_shapes(learner)

        def everything(values, seed, dynamic, batch):
            state = eqx.combine(dynamic, static)
            learner = self._programs.learner(values)
            switched = learner.switch(attach(state, learner), jnp.int32(0), None, jax.random.key(0))
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
