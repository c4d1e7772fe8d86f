"""What happens in a run of the tunnel study: training, and what is looked at when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from neoteny.interventions import ResetOptimizer, Splice, UseHead, restored, spliced
from neoteny.networks import Network, Point
from neoteny.probes import LayerMeasure, LayerProbe, NetworkProbe, ViewProbe, weight_change
from neoteny.studies.tunnel.models import bound_of_updates, hidden_stages, measurement_points, updates_per_epoch
from neoteny.studies.tunnel.settings import DYNAMICS, DYNAMICS_SAMPLES, RHO, TOLERANCES, Config
from neoteny.tasks.streams import Task
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Reached, Save, Switch, Train


def train_event(config: Config, task: Task) -> Train:
    """To the accuracy at which training stops, or to the end of the epochs."""
    epoch = updates_per_epoch(config, len(task.rows("train")))
    until = Reached("accuracy", config.stop, window=math.ceil(epoch / 5)) if config.stop else None
    return Train(task, config.epochs * epoch, until=until, record_every=epoch)


def _scores(task: Task) -> tuple[Event, ...]:
    return Evaluate(task, "train"), Evaluate(task, "test")


def _layers(config: Config, *measures: LayerMeasure, **settings: Any) -> LayerProbe:
    shared = {"threshold": RHO, "epochs": config.probe_epochs, "rank_samples": config.rank_samples or None}
    return LayerProbe("layers", measures, **shared, **settings)


ACCURACY, RANK, VARIANCES, SIMILARITY, TUNNEL = LayerMeasure


def _accuracy_of(network: Network, batch: Any) -> jax.Array:
    return jnp.mean((jnp.argmax(network(batch.inputs).output, axis=-1) == batch.targets).astype(jnp.float32))


def reset_accuracy(view, batch, key, saved) -> dict[str, jax.Array]:
    """Accuracy with so many layers as they were before training: the last ("last:m") or the first ("first:m").

    The head is kept. m counts from 0, none, to all hidden layers.
    """
    del key
    network, start = view.network, saved["init"]["online"]
    hidden = len(network.names) - 1

    def both(count):
        last = restored(network, start, hidden - count, jnp.int32(hidden))
        first = restored(network, start, jnp.int32(0), count)
        return _accuracy_of(last, batch), _accuracy_of(first, batch)

    last, first = jax.lax.map(both, jnp.arange(hidden + 1, dtype=jnp.int32))
    return {f"{name}:{m}": values[m] for name, values in (("last", last), ("first", first)) for m in range(hidden + 1)}


def swap_accuracy(view, batch, key, saved) -> dict[str, jax.Array]:
    """Accuracy of the combinations of two tasks' extractors and tunnels, for every layer K they may be cut after.

    "E1T1" and "E2T2" are the two checkpoints, "E1T2:K" and "E2T1:K" the swaps. The head is the one in use.
    """
    del key
    one, two = (saved[name]["online"] for name in ("task1", "task2"))
    hidden = len(one.names) - 1

    def both(cut):
        swaps = spliced(one, two, cut, view.network), spliced(two, one, cut, view.network)
        return tuple(_accuracy_of(network, batch) for network in swaps)

    first, second = jax.lax.map(both, jnp.arange(hidden + 1, dtype=jnp.int32))
    cuts = range(1, hidden + 1)
    return {
        "E1T1": second[0],
        "E2T2": first[0],
        **{f"E1T2:{cut}": first[cut] for cut in cuts},
        **{f"E2T1:{cut}": second[cut] for cut in cuts},
    }


def change_rms(network: Network, saved) -> dict[str, float]:
    """Change of every layer's weights since initialisation, root mean square."""
    return {name: change.rms for name, change in weight_change(saved["init"]["online"], network).items()}


def change_relative(network: Network, saved) -> dict[str, float]:
    """Change of every layer's weights since initialisation, relative to their norm there."""
    return {name: change.relative for name, change in weight_change(saved["init"]["online"], network).items()}


@dataclass(frozen=True)
class PlaceNumber:
    """The number of each measurement point that papers know it by: "block" or "convolution"."""

    kind: Literal["block", "convolution"]
    points: tuple[Point, ...]

    def __call__(self, network: Network) -> dict[str, float]:
        """{stage: number}; a dense stage has none."""
        del network
        numbers = {point.stage: getattr(point, self.kind) for point in self.points}
        return {stage: float(number) for stage, number in numbers.items() if number is not None}


def _places(config: Config) -> tuple[NetworkProbe, ...]:
    """The block and the convolution of every measurement point; nothing of an MLP."""
    points = measurement_points(config)
    kinds: tuple[Literal["block", "convolution"], ...] = ("block", "convolution")
    return tuple(NetworkProbe(kind, PlaceNumber(kind, points)) for kind in kinds) if points else ()


RESETS = ViewProbe("reset_accuracy", reset_accuracy, saves=("init",))
SWAPS = ViewProbe("swap_accuracy", swap_accuracy, saves=("task1", "task2"))
CHANGES = (
    NetworkProbe("weight_change", change_rms, saves=("init",)),
    NetworkProbe("weight_change_relative", change_relative, saves=("init",)),
)


def depth_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Train, then look at every layer: probes, rank, variances, similarity, transfer, weights, resets; and controls."""
    task = tasks[0]
    light = _layers(config, ACCURACY, RANK, tolerances=TOLERANCES)
    if not config.controls:
        return (
            Switch(task),
            Save("init"),
            train_event(config, task),
            *_looks(config, tasks),
        )
    controls: dict[str, tuple[Event, ...]] = {"raw": (Probe(_layers(config, ACCURACY, standardize=False), on=task),)}
    if config.network != "mlp":
        controls["gap"] = (Probe(_layers(config, ACCURACY, TUNNEL, pool="gap"), on=task),)
    for samples in (1_000, 5_000):
        if samples < len(task.rows("train")):
            fewer = {"fit_samples": samples, "rank_samples": samples}
            controls[f"n {samples}"] = (Probe(replace(light, **fewer), on=task),)
    return (
        Switch(task),
        Save("init"),
        Fork({"untrained": (Probe(light, on=task),)}),
        train_event(config, task),
        *_looks(config, tasks),
        Fork(controls),
    )


def _looks(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Everything that is measured of every trained network."""
    return (
        *_scores(tasks[0]),
        Probe(_layers(config, *LayerMeasure, tolerances=TOLERANCES), on=tasks[0]),
        *(Probe(_layers(config, ACCURACY), on=other) for other in tasks[1:]),
        Probe(RESETS, *CHANGES, *_places(config), on=tasks[0], split="test"),
    )


def light_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Train, then where the tunnel starts, and transfer."""
    task = tasks[0]
    return (
        Switch(task),
        train_event(config, task),
        *_scores(task),
        Probe(_layers(config, ACCURACY, RANK, TUNNEL), on=task),
        *(Probe(_layers(config, ACCURACY), on=other) for other in tasks[1:]),
    )


def dynamics_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """The rank of every layer while training begins."""
    task = tasks[0]
    events: list[Event] = [Switch(task)]
    bound = bound_of_updates(config, len(task.rows("train")))
    before = 0
    for step in (step for step in DYNAMICS if step <= bound):
        if step:
            events.append(Train(task, step - before))
        events.append(Probe(_layers(config, RANK, tolerances=TOLERANCES), on=task, samples=DYNAMICS_SAMPLES))
        before = step
    return (*events, *_scores(task))


def swap_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Two tasks in order; then extractors and tunnels exchanged at every layer, with and without a new linear probe."""
    one, two = tasks
    stages = hidden_stages(config)
    last = Probe(_layers(config, ACCURACY, stages=stages[-1:]), on=one)
    return (
        Switch(one),
        train_event(config, one),
        *_scores(one),
        Save("task1"),
        Probe(_layers(config, ACCURACY, TUNNEL), on=one),
        Intervene(ResetOptimizer()),
        Switch(two),
        train_event(config, two),
        *_scores(two),
        Save("task2"),
        Probe(SWAPS, on=two, split="test"),
        Probe(_layers(config, ACCURACY), on=two),
        Intervene(UseHead(0)),
        Evaluate(one, "test"),
        Probe(SWAPS, on=one, split="test"),
        Probe(_layers(config, ACCURACY), on=one),
        Fork(
            {f"E2T1 {cut}": (Intervene(Splice("task2", "task1", cut)),) for cut in range(1, len(stages) + 1)},
            then=(last, Probe(_layers(config, ACCURACY, stages=stages[-1:]), on=two)),
        ),
    )
