"""Do deep classifiers split into an extractor and a tunnel?

Masarczyk, Ostaszewski, Imani, Pascanu, Milos and Trzcinski: The tunnel effect: building data representations in deep
neural networks, NeurIPS 2023 (arXiv:2305.19753). The first K layers of a trained, over-parameterised network (the
extractor) build linearly separable features; the others (the tunnel) add almost no accuracy, compress the features to
about as many dimensions as there are classes, and hurt transfer. K is the first layer whose linear probe reaches 95 %
of the network's own test accuracy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl

from neoteny.analysis import (
    Above,
    Below,
    Equivalent,
    Interval,
    NonInferior,
    Verdict,
    all_of,
    inconclusive,
    mean_estimate,
    not_run,
    paired_difference,
    spearman,
    verdict,
)
from neoteny.analysis.claims import Claim
from neoteny.errors import UsageError
from neoteny.interventions import ResetOptimizer, Splice, UseHead, restored, spliced
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment, Study, StudyFigure
from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import Maker, Network, he, head_per_task, mlp, resnet, torch_uniform, vgg
from neoteny.probes import LayerMeasure, LayerProbe, NetworkProbe, ViewProbe, tunnel_start, weight_change
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.generated import teacher
from neoteny.tasks.images import cifar10, cifar100, shuffled
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Centred, Stream, Task, Unchanged, domains
from neoteny.tasks.subsets import as_shape, class_numbers, subset
from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Reached, Save, Switch, Train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OOD_CLASSES = "apple,aquarium_fish,bottle,bridge,chair,clock,keyboard,mountain,orchid,spider"
"""The ten classes of CIFAR-100 that are probed out of distribution: none is close to a class of CIFAR-10."""

RHO, RHOS = 0.95, (0.90, 0.95, 0.98)
"""Share of the final accuracy at which the tunnel starts; the others are controls (section 2 of the specification)."""

TOLERANCES = (1e-3, 1e-2, 1e-4)
"""Of the numerical rank: the paper's, then the controls."""

CONVERGED = 0.95
"""Least training accuracy of a lane that claims are about: a network that is not trained has no tunnel to measure."""

DYNAMICS = (0, 1, 2, 5, 10, 20, 40, 75, 150, 300, 1_000)
"""Updates after which the rank of every layer is measured in `dynamics`."""

DYNAMICS_SAMPLES = 2_000

NetworkName = Literal["mlp", "vgg11", "vgg16", "vgg19", "resnet18", "resnet34"]


@dataclass(frozen=True)
class Config:
    """One network trained on one data set (in `swap`: on its two halves by class) and looked at layer by layer."""

    data: str = "cifar10"
    classes: int = 0  # 0: all; else the first so many of a fixed random order of classes
    samples: int = 10_000  # training images, the same number of each class
    ood: str = "cifar100"  # the data set probed out of distribution; "none"
    ood_classes: str = OOD_CLASSES  # names joined by commas; "all"
    network: NetworkName = "mlp"
    depth: int = 12  # linear layers of the MLP, one more than there are hidden layers
    width: int = 512  # of the MLP
    factor: float = 1.0  # width factor of VGG and ResNet
    init: Literal["he", "torch_uniform"] = "he"  # of the MLP
    normalise: bool = True  # pixels to [-1, 1] rather than [0, 1]
    batch: int = 128
    epochs: int = 100  # at most, on each task
    stop: float = 0.99  # stop once a fifth of an epoch was fitted this well, batch by batch; 0: never
    learning_rate: Lane[float] = 0.05
    momentum: Lane[float] = 0.9
    weight_decay: Lane[float] = 0.0
    drops: bool = False  # the rate is divided by 10 after a half and after three quarters of the epochs
    probe_epochs: int = 30  # of the linear probes
    controls: bool = False  # measure also untrained, with raw probe inputs, and on fewer images
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("samples", "depth", "width", "batch", "epochs", "probe_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2 linear layers, one of them hidden, not {self.depth}")
        if self.classes < 0:
            raise ValueError(f"classes must not be negative, not {self.classes}")
        if not 0 <= self.stop <= 1:
            raise ValueError(f"stop must be an accuracy from 0 to 1, not {self.stop}")
        for name in ("learning_rate", "factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, not {self.weight_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")


PRESETS = {
    "smoke": "8x8 digits, width 32, 2 epochs, one seed: seconds, to see that all works; its numbers mean nothing",
    "quick": "MLPs of width 512 on 10,000 images of CIFAR-10, 5 seeds: about 40 minutes on two CPU cores",
    "paper": "MLPs of width 1024, VGG-19 and ResNet-34 on the whole of CIFAR-10 and CIFAR-100, 3 seeds, for a GPU",
}


# Data -------------------------------------------------------------------------------------------------------------


@functools.cache
def _source_data(name: str) -> Arrays:
    """A data set by name; of CIFAR all training images, since no dev split is looked at."""
    whole = {"cifar10": lambda: cifar10(dev=0), "cifar100": lambda: cifar100(dev=0), "teacher": teacher}
    return whole[name]() if name in whole else load(name)


def class_order(classes: int) -> tuple[int, ...]:
    """A fixed random order of the classes, the same on every machine; `Config.classes` takes its beginning."""
    return tuple(int(each) for each in shuffled(np.arange(classes)))


@functools.cache
def main_data(name: str, classes: int, samples: int) -> Arrays:
    """The data set trained on: `samples` training images of the first `classes` classes, and all their test images."""
    data = _source_data(name)
    count = data.classes or 0
    if classes > count:
        raise UsageError(f"{name} has {count} classes, not {classes}")
    return _fitting(data, class_order(count)[:classes] if classes else None, samples)


def _fitting(data: Arrays, chosen: Sequence[int] | None, samples: int) -> Arrays:
    """`samples` training images of these classes; where they do not divide by the classes, a few fewer."""
    count = len(chosen) if chosen is not None else (data.classes or 1)
    return subset(data, classes=chosen, train=count * max(1, samples // count))


@functools.cache
def ood_data(name: str, classes: str, samples: int, shape: tuple[int, ...]) -> Arrays:
    """The data set probed out of distribution, in the shape the network takes: at most `samples` training images."""
    data = _source_data(name)
    chosen = None if classes == "all" or not data.class_names else class_numbers(data, _known(data, classes))
    labels = data.targets[data.splits["train"]]
    kept = range(data.classes or 0) if chosen is None else chosen
    fewest = min(int(np.sum(labels == each)) for each in kept)
    part = subset(data, classes=chosen, train=len(kept) * max(1, min(fewest, samples // len(kept))))
    return as_shape(part, shape)


def _known(data: Arrays, classes: str) -> tuple[str, ...]:
    """The class names asked for; all of them for a data set the default list is not about."""
    return data.class_names if classes == OOD_CLASSES and data.name != "cifar100" else tuple(classes.split(","))


@functools.cache
def halves(name: str, samples: int) -> tuple[Arrays, Arrays]:
    """The two tasks of `swap`: the first and the second half of the classes, labels of each from 0."""
    data = _source_data(name)
    order = tuple(range(data.classes or 0))
    first, second = order[: len(order) // 2], order[len(order) // 2 : 2 * (len(order) // 2)]
    return _fitting(data, first, samples // 2), _fitting(data, second, samples // 2)


def _shown(config: Config):
    return Centred() if config.normalise else Unchanged()


def stream(config: Config) -> Stream:
    """The data set trained on, and after it the one probed out of distribution, which nothing is trained on."""
    data = [main_data(config.data, config.classes, config.samples)]
    if config.ood != "none":
        data.append(ood_data(config.ood, config.ood_classes, config.samples, data[0].input_shape))
    return domains(data, transform=_shown(config))


def swap_stream(config: Config) -> Stream:
    """Two tasks of as many classes."""
    return domains(halves(config.data, config.samples), transform=_shown(config))


# Networks and learners --------------------------------------------------------------------------------------------


def maker(config: Config, shape: tuple[int, ...], classes: int) -> Maker:
    """The network of this configuration; every hidden stage is a measurement point."""
    if config.network == "mlp":
        initializer = {"he": he, "torch_uniform": torch_uniform}[config.init]
        return mlp(shape, [config.width] * (config.depth - 1), classes, initializer=initializer)
    depth = int(config.network.removeprefix("vgg").removeprefix("resnet"))
    make = vgg if config.network.startswith("vgg") else resnet
    return make(shape, classes, depth=depth, width=config.factor)


def _optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and L2; the rate divided by 10 at a half and three quarters of `steps`, if it drops."""

    def rate(count):
        drops = (count >= steps // 2).astype(jnp.int32) + (count >= 3 * steps // 4).astype(jnp.int32)
        return config.learning_rate * 0.1**drops

    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate if config.drops else config.learning_rate, momentum=config.momentum),
    )


def learner(config: Config) -> Learner:
    """One head for the classes trained on."""
    data = main_data(config.data, config.classes, config.samples)
    made = maker(config, data.input_shape, data.classes or 0)
    return supervised(made, _optimizer(config, _steps(config, len(data.splits["train"]))))


def swap_learner(config: Config) -> Learner:
    """A head for each of the two tasks."""
    tasks = halves(config.data, config.samples)
    classes = [task.classes or 0 for task in tasks]
    made = head_per_task(maker(config, tasks[0].input_shape, max(classes)), classes)
    return supervised(made, _optimizer(config, _steps(config, len(tasks[0].splits["train"]))))


def source(config: Config) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


def hidden_stages(config: Config) -> tuple[str, ...]:
    """The names of the measurement points, in order."""
    network = jax.eval_shape(maker(config, _input_shape(config), 2), jax.random.key(0))
    return network.names[:-1]


def _input_shape(config: Config) -> tuple[int, ...]:
    return _source_data(config.data).input_shape


# Scripts ----------------------------------------------------------------------------------------------------------


def _per_epoch(config: Config, rows: int) -> int:
    return max(1, rows // config.batch)


def _steps(config: Config, rows: int) -> int:
    return config.epochs * _per_epoch(config, rows)


def _train(config: Config, task: Task) -> Train:
    """To the accuracy at which training stops, or to the end of the epochs."""
    epoch = _per_epoch(config, len(task.rows("train")))
    until = Reached("accuracy", config.stop, window=math.ceil(epoch / 5)) if config.stop else None
    return Train(task, config.epochs * epoch, until=until, record_every=epoch)


def _scores(task: Task) -> tuple[Event, ...]:
    return Evaluate(task, "train"), Evaluate(task, "test")


def _layers(config: Config, *measures: LayerMeasure, **settings: Any) -> LayerProbe:
    return LayerProbe("layers", measures, threshold=RHO, epochs=config.probe_epochs, **settings)


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
            _train(config, task),
            *_looks(config, tasks),
        )
    controls: dict[str, tuple[Event, ...]] = {"raw": (Probe(_layers(config, ACCURACY, standardize=False), on=task),)}
    if config.network != "mlp":
        controls["gap"] = (Probe(_layers(config, ACCURACY, TUNNEL, pool="gap"), on=task),)
    for samples in (1_000, 5_000):
        if samples < len(task.rows("train")):
            controls[f"n {samples}"] = (Probe(light, on=task, samples=samples),)
    return (
        Switch(task),
        Save("init"),
        Fork({"untrained": (Probe(light, on=task),)}),
        _train(config, task),
        *_looks(config, tasks),
        Fork(controls),
    )


def _looks(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Everything that is measured of every trained network."""
    return (
        *_scores(tasks[0]),
        Probe(_layers(config, *LayerMeasure, tolerances=TOLERANCES), on=tasks[0]),
        *(Probe(_layers(config, ACCURACY), on=other) for other in tasks[1:]),
        Probe(RESETS, *CHANGES, on=tasks[0], split="test"),
    )


def light_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Train, then where the tunnel starts, and transfer."""
    task = tasks[0]
    return (
        Switch(task),
        _train(config, task),
        *_scores(task),
        Probe(_layers(config, ACCURACY, RANK, TUNNEL), on=task),
        *(Probe(_layers(config, ACCURACY), on=other) for other in tasks[1:]),
    )


def dynamics_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """The rank of every layer while training begins."""
    task = tasks[0]
    events: list[Event] = [Switch(task)]
    bound = _steps(config, len(task.rows("train")))
    before = 0
    for step in (step for step in DYNAMICS if step <= bound):
        if step:
            events.append(Train(task, step - before))
        events.append(Probe(_layers(config, RANK), on=task, samples=DYNAMICS_SAMPLES))
        before = step
    return (*events, *_scores(task))


def swap_script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """Two tasks in order; then extractors and tunnels exchanged at every layer, with and without a new linear probe."""
    one, two = tasks
    stages = hidden_stages(config)
    last = Probe(_layers(config, ACCURACY, stages=stages[-1:]), on=one)
    return (
        Switch(one),
        _train(config, one),
        *_scores(one),
        Save("task1"),
        Probe(_layers(config, ACCURACY, TUNNEL), on=one),
        Intervene(ResetOptimizer()),
        Switch(two),
        _train(config, two),
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


# Axes -------------------------------------------------------------------------------------------------------------

SMOKE = {
    "data": ("digits",),
    "ood": ("mnist_digits",),
    "samples": (400,),
    "depth": (4,),
    "width": (32,),
    "batch": (64,),
    "epochs": (2,),
    "probe_epochs": (2,),
    "seed": (0,),
}

MLP = {"width": (1024,), "momentum": (0.0,), "epochs": (1000,), "stop": (0.0,), "init": ("torch_uniform",)}
VGG = {
    "network": ("vgg19",),
    "learning_rate": (0.01,),
    "weight_decay": (1e-4,),
    "epochs": (160,),
    "stop": (0.0,),
    "drops": (True,),
}
RESNET = {**VGG, "network": ("resnet34",), "learning_rate": (0.1,), "epochs": (164,)}
WHOLE = {"samples": (50_000,), "seed": (0, 1, 2)}
"""The paper's settings (section 3 of the specification), one for each family of networks."""

FIVE, THREE = tuple(range(5)), tuple(range(3))
CLASS_COUNTS = (10, 25, 50, 100)


def depth_axes(preset: str) -> dict | list[dict]:
    """MLPs of several depths; controls at the deepest, which most claims are about."""
    if preset == "smoke":
        return {**SMOKE, "controls": (True,)}
    if preset == "paper":
        return [
            {**WHOLE, **MLP, "depth": (6, 8, 10)},
            {**WHOLE, **MLP, "depth": (12,), "controls": (True,)},
        ]
    quick = {"epochs": (70,), "seed": FIVE}
    return [{**quick, "depth": (12,), "controls": (True,)}, {**quick, "depth": (10, 8, 6)}]


def width_axes(preset: str) -> dict | list[dict]:
    """The deepest MLP, narrower and wider than in `depth`."""
    if preset == "smoke":
        return {**SMOKE, "width": (16,)}
    if preset == "paper":
        return [{**WHOLE, **MLP, "width": (256, 2048)}, {**WHOLE, **VGG, "factor": (0.25, 2.0)}]
    return {"width": (128,), "epochs": (70,), "seed": FIVE}


def families_axes(preset: str) -> list[dict]:
    """Convolutional networks: for a GPU."""
    if preset != "paper":
        return []
    return [{**WHOLE, **family, "data": ("cifar10", "cifar100"), "controls": (True,)} for family in (VGG, RESNET)]


def classes_axes(preset: str) -> dict | list[dict]:
    """Subsets of the classes of CIFAR-100 with as many images in all; in `paper` also with as many of each class."""
    if preset == "smoke":
        return {**SMOKE, "classes": (3, 6), "samples": (300,)}
    shared = {"data": ("cifar100",), "ood": ("cifar10",), "ood_classes": ("all",), "depth": (10,), "seed": THREE}
    if preset == "paper":
        shared = {**shared, **VGG}
        equal = {**shared, "classes": CLASS_COUNTS, "samples": (5_000,)}
        return [equal, *({**shared, "classes": (k,), "samples": (500 * k,)} for k in CLASS_COUNTS[1:])]
    return {**shared, "classes": CLASS_COUNTS, "samples": (1_800,)}


def samples_axes(preset: str) -> dict | list[dict]:
    """A quarter of the images of the same network in `depth`."""
    if preset == "smoke":
        return {**SMOKE, "samples": (100,)}
    if preset == "paper":
        return {**WHOLE, **MLP, "depth": (10,), "samples": (12_500,)}
    return {"samples": (2_500,), "depth": (10,), "epochs": (100,), "seed": FIVE}


def dynamics_axes(preset: str) -> dict | list[dict]:
    """One network, while training begins."""
    if preset == "smoke":
        return {**SMOKE, "ood": ("none",)}
    if preset == "paper":
        return [{**WHOLE, **MLP, "ood": ("none",)}, {**WHOLE, **VGG, "ood": ("none",)}]
    return {"depth": (10,), "ood": ("none",), "epochs": (13,), "seed": FIVE}


def swap_axes(preset: str) -> dict | list[dict]:
    """Two tasks; the full network, and shortened ones."""
    if preset == "smoke":
        return {**SMOKE, "ood": ("none",), "depth": (3, 4)}
    if preset == "paper":
        vgg = {**WHOLE, **VGG, "ood": ("none",)}
        return [
            {**vgg, "network": ("vgg19", "vgg16", "vgg11")},
            {**WHOLE, **MLP, "ood": ("none",), "depth": (4, 6, 12)},
        ]
    return {"depth": (10, 6, 4), "ood": ("none",), "epochs": (40,), "seed": FIVE}


depth = Experiment("depth", Config, depth_axes, stream, learner, depth_script, source)
width = Experiment("width", Config, width_axes, stream, learner, light_script, source)
families = Experiment("families", Config, families_axes, stream, learner, depth_script, source)
classes = Experiment("classes", Config, classes_axes, stream, learner, light_script, source)
samples = Experiment("samples", Config, samples_axes, stream, learner, light_script, source)
dynamics = Experiment("dynamics", Config, dynamics_axes, stream, learner, dynamics_script, source)
swap = Experiment("swap", Config, swap_axes, swap_stream, swap_learner, swap_script, source)


# Lanes ------------------------------------------------------------------------------------------------------------

UNFIT = ("digits", "mnist_digits", "mnist", "fashion_mnist", "teacher")
"""Data sets that cannot test the hypothesis: too easy, or made by a network. Verdicts on them are withheld."""

STRUCTURE = (
    "data", "ood", "ood_classes", "network", "width", "factor", "init", "normalise", "batch", "stop",
    "learning_rate", "momentum", "weight_decay", "drops", "probe_epochs",
)  # fmt: skip
"""What must be one setting for a claim, besides what it varies."""

AFTER_TASK_1, AT_THE_END = 0, -1


@dataclass(frozen=True, eq=False)
class _Run:
    """The records of one run, with what the claims ask of it."""

    rows: pl.DataFrame

    def field(self, name: str) -> Any:
        return self.rows[name][0]

    @functools.cached_property
    def seed(self) -> int:
        return int(self.field("seed"))

    def _values(self, metric: str, branch: str, task: int, split: str | None, when: int) -> pl.DataFrame:
        chosen = (pl.col("metric") == metric) & (pl.col("branch") == branch) & (pl.col("task") == task)
        found = self.rows.filter(chosen if split is None else chosen & (pl.col("split") == split))
        if found.is_empty():
            return found
        return found.filter(pl.col("event") == found["event"].unique().sort()[when])

    def curve(self, metric: str, *, branch: str = "", task: int = 0, when: int = AT_THE_END) -> np.ndarray:
        """(layers,) of a metric measured of every hidden stage, in the network's order; empty if it was not."""
        return self._values(metric, branch, task, None, when)["value"].to_numpy()

    def value(
        self, metric: str, place: str = "", *, branch: str = "", task: int = 0, split: str | None = None, when: int = -1
    ) -> float:
        """One number; NaN if it was not measured."""
        found = self._values(metric, branch, task, split, when).filter(pl.col("place") == place)["value"]
        return float(found[0]) if len(found) else math.nan

    def accuracy(self, split: str = "test", *, task: int = 0, when: int = AT_THE_END) -> float:
        return self.value("accuracy", task=task, split=split, when=when)

    @functools.cached_property
    def layers(self) -> int:
        """The number of measurement points."""
        return len(self.curve("linear_probe", when=AFTER_TASK_1))

    @functools.cached_property
    def classes(self) -> int:
        """The number of classes trained on."""
        return int(self.field("classes")) or CLASSES.get(self.field("data"), 10)

    @functools.cached_property
    def converged(self) -> bool:
        """Whether every task was fitted."""
        trained = [self.accuracy("train", task=task, when=AFTER_TASK_1) for task in (0, 1)]
        return all(math.isnan(each) or each >= CONVERGED for each in trained[1:]) and trained[0] >= CONVERGED

    def start(self, rho: float = RHO, branch: str = ""):
        """K and whether a layer fits, from the probes and the network's own test accuracy, after the first task."""
        curve = self.curve("linear_probe", branch=branch, when=AFTER_TASK_1)
        return tunnel_start(curve, self.accuracy(when=AFTER_TASK_1), rho)

    @functools.cached_property
    def cut(self) -> int:
        """K at the default threshold: the last extractor layer, counted from 1."""
        return int(self.start().layer)

    def percent(self, rho: float = RHO, branch: str = "") -> float:
        """Length of the tunnel in percent of the layers; NaN if the probes of a control were not trained."""
        if not len(self.curve("linear_probe", branch=branch, when=AFTER_TASK_1)):
            return math.nan
        return 100 * (self.layers - self.start(rho, branch).layer) / self.layers


CLASSES = {"cifar100": 100}
"""Classes of the known data sets that have not ten."""


@dataclass(frozen=True, eq=False)
class _Runs:
    """Runs of one claim: those that were fitted, and how many were left out because they were not."""

    fitted: tuple[_Run, ...]
    excluded: int
    data: str = ""
    varied: tuple[str, ...] = ()

    def measured(self, measure: Callable[[_Run], float]) -> np.ndarray:
        return np.array([measure(run) for run in self.fitted], float)


def _each_once(frame: pl.DataFrame) -> list[_Run]:
    """The runs of these records; of two that differ in nothing but `controls`, the one that has them."""
    fields = [field.name for field in dataclasses.fields(Config) if field.name != "controls"]
    found: dict[tuple, _Run] = {}
    for part in frame.partition_by("run", maintain_order=True) if len(frame) else []:
        run = _Run(part)
        place = (run.field("experiment"), *(run.field(name) for name in fields))
        if place not in found or run.field("controls"):
            found[place] = run
    return list(found.values())


def _finished(run: _Run) -> bool:
    return not math.isnan(run.accuracy()) and run.layers > 0


def _runs(frame: pl.DataFrame, *conditions: pl.Expr, free: Sequence[str] = ()) -> _Runs:
    """The finished runs that meet the conditions; `free` are the fields the claim varies."""
    rows = frame.filter(*conditions) if conditions else frame
    if rows.is_empty():
        return _Runs((), 0)
    found = _each_once(rows)
    diverged = [run for run in found if not _finished(run) and "diverged" in run.rows["metric"]]
    runs = sorted(filter(_finished, found), key=lambda run: run.seed)
    varied = [name for name in STRUCTURE if name not in free and len({run.field(name) for run in runs}) > 1]
    fitted = tuple(run for run in runs if run.converged)
    return _Runs(fitted, len(runs) - len(fitted) + len(diverged), rows["data"][0], tuple(varied))


def _deepest(frame: pl.DataFrame) -> _Runs:
    """The deepest MLPs of `depth`, which most claims are about."""
    rows = frame.filter(pl.col("experiment") == "depth")
    return _runs(rows, pl.col("depth") == rows["depth"].max()) if len(rows) else _Runs((), 0)


def _estimate(values: np.ndarray) -> Interval:
    """Mean over seeds; bootstrapped from six seeds on, Student's t below."""
    return mean_estimate(values, rng=np.random.default_rng(0))


def _named(name: str, found: Verdict) -> Verdict:
    return Verdict(found.outcome, found.measured, found.interval, found.n, found.reason, found.parts, name)


def _part(name: str, values: np.ndarray, expectation) -> Verdict:
    return _named(name, verdict(_estimate(values), expectation))


def _reported(name: str, values: np.ndarray, expectation) -> Verdict:
    return _part(f"{name} (reported, not claimed)", values, expectation)


def _told(runs: _Runs, claimed: Sequence[Verdict], reported: Sequence[Verdict] = ()) -> Verdict:
    """The verdict of a claim: withheld where the setting cannot test it, with the counter-checks beside it."""
    decided = claimed[0] if len(claimed) == 1 else all_of(list(claimed))
    parts = (*(claimed if len(claimed) > 1 else ()), *reported)
    reason = decided.reason
    if runs.excluded:
        reason += f"; {runs.excluded} runs are left out, diverged or with a training accuracy below {CONVERGED}"
    told = Verdict(decided.outcome, decided.measured, decided.interval, decided.n, reason, parts)
    if runs.data in UNFIT:
        why = f"setting: {runs.data} cannot test for a tunnel; {reason}"
        return Verdict(inconclusive("").outcome, told.measured, told.interval, told.n, why, parts)
    return told


def _unfit(runs: _Runs, what: str) -> Verdict | None:
    """Why these runs cannot decide a claim; None if they can."""
    if runs.varied:
        return not_run(f"the runs differ in {', '.join(runs.varied)}; a claim is about one value of each")
    if not runs.fitted and runs.excluded:
        return inconclusive(f"setting: none of {runs.excluded} runs of {what} reached training accuracy {CONVERGED}")
    if not runs.fitted:
        return not_run(f"needs finished runs of {what}")
    return None


# Claims -----------------------------------------------------------------------------------------------------------


def _tunnel_exists(frame: pl.DataFrame) -> Verdict:
    runs = _deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit
    trivial = [run for run in runs.fitted if run.start().found and run.cut == 1]
    percent = runs.measured(_Run.percent)
    if trivial:
        why = f"setting: in {len(trivial)} of {len(runs.fitted)} runs the first layer already separates the classes"
        return inconclusive(why, _estimate(percent))
    claimed = [
        _part("tunnel length (% of layers)", percent, Above(25.0)),
        _part("share of runs with a tunnel start", runs.measured(lambda run: run.start().found), Equivalent(1.0, 1.0)),
    ]
    untrained = runs.measured(lambda run: 100 * (_last(run, "linear_probe") - _last(run, "linear_probe", "untrained")))
    thresholds = {f"rho {rho:g}": functools.partial(_Run.percent, rho=rho) for rho in RHOS if rho != RHO}
    probes = {text: functools.partial(_Run.percent, branch=branch) for branch, text in CONTROLS.items()}
    beside = {text: runs.measured(measure) for text, measure in (thresholds | probes).items()}
    return _told(
        runs,
        claimed,
        [
            *(
                _reported(f"tunnel length, {text}", v, Above(25.0))
                for text, v in beside.items()
                if not np.isnan(v).all()
            ),
            _reported("last layer's probe, trained less untrained (points)", untrained, Above(0.0)),
        ],
    )


CONTROLS = {
    "raw": "probes on features that are not standardised",
    "gap": "probes on features averaged over positions",
    "n 1000": "probes trained on 1,000 images",
    "n 5000": "probes trained on 5,000 images",
}
"""Branch of `depth` -> what is otherwise than in the claim."""


def _last(run: _Run, metric: str, branch: str = "") -> float:
    found = run.curve(metric, branch=branch)
    return float(found[-1]) if len(found) else math.nan


def _slopes(runs: _Runs, x: Callable[[_Run], float], y: Callable[[_Run], float]) -> np.ndarray:
    """One least-squares slope a seed, of those seeds that have every value of x (two at least)."""
    values = {x(run) for run in runs.fitted}
    slopes = []
    for seed in sorted({run.seed for run in runs.fitted}):
        points = sorted((x(run), y(run)) for run in runs.fitted if run.seed == seed)
        if len(points) == len(values) > 1:
            xs, ys = np.array(points, float).T
            slopes.append(np.polyfit(xs, ys, 1)[0])
    return np.array(slopes)


def _extractor_length(frame: pl.DataFrame) -> Verdict:
    runs = _runs(frame, pl.col("experiment") == "depth")
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit

    def slopes(rho: float) -> np.ndarray:
        return _slopes(runs, lambda run: run.field("depth"), lambda run: run.start(rho).layer)

    if not len(slopes(RHO)):
        return not_run("needs fitted runs of depth at several depths with the same seeds")
    inside = Equivalent(-0.25, 0.25)
    return _told(
        runs,
        [_part("slope of K on depth (layers per layer)", slopes(RHO), inside)],
        [_reported(f"slope at rho {rho:g}", slopes(rho), inside) for rho in RHOS if rho != RHO],
    )


def _rank_collapses(frame: pl.DataFrame) -> Verdict:
    runs = _deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit

    def share(metric: str, branch: str = "") -> np.ndarray:
        return runs.measured(lambda run: _last(run, metric, branch) / run.classes)

    fallen = runs.measured(lambda run: run.curve("numerical_rank")[run.cut - 1] - _last(run, "numerical_rank"))
    return _told(
        runs,
        [
            _part("rank of the last layer / classes", share("numerical_rank"), Equivalent(0.0, 3.0)),
            _part("rank of layer K less rank of the last", fallen, Above(0.0)),
        ],
        [
            _reported(f"the same with rank threshold {t:g}", share(f"numerical_rank_{t:g}"), Equivalent(0.0, 3.0))
            for t in TOLERANCES[1:]
        ]
        + [_reported("of the untrained network", share("numerical_rank", "untrained"), Equivalent(0.0, 3.0))],
    )


def _rank_by_step(run: pl.DataFrame) -> dict[int, float]:
    """Update -> rank of the last layer."""
    rows = run.filter((pl.col("metric") == "numerical_rank") & (pl.col("branch") == ""))
    last = rows.group_by("step", maintain_order=True).agg(pl.col("value").last())
    return dict(zip(last["step"].to_list(), last["value"].to_list(), strict=True))


def _half_way(ranks: Mapping[int, float]) -> float:
    """The first measured update at which the rank is half-way down from its start to its last value."""
    steps = sorted(ranks)
    level = (ranks[steps[0]] + ranks[steps[-1]]) / 2
    reached = [step for step in steps if ranks[step] <= level]
    return float(reached[0]) if reached and ranks[steps[-1]] < ranks[steps[0]] else math.nan


def _collapse_is_early(frame: pl.DataFrame) -> Verdict:
    rows = frame.filter((pl.col("experiment") == "dynamics") & (pl.col("network") == "mlp"))
    varied = [name for name in (*STRUCTURE, "depth", "samples") if len(rows) and rows[name].n_unique() > 1]
    if varied:
        return not_run(f"the runs differ in {', '.join(varied)}; a claim is about one value of each")
    ranks = [_rank_by_step(run) for run in rows.partition_by("run", maintain_order=True)] if len(rows) else []
    ranks = [each for each in ranks if 0 in each and 75 in each]
    if not ranks:
        return not_run("needs runs of dynamics of 75 updates or more")
    ratio = np.array([each[75] / each[0] for each in ranks])
    half = np.array([_half_way(each) for each in ranks])
    last = np.array([each[max(each)] / each[0] for each in ranks])
    runs = _Runs((), 0, rows["data"][0])
    return _told(
        runs,
        [_part("rank of the last layer after 75 updates / before the first", ratio, Below(0.5))],
        [
            _reported(f"the same after {max(max(each) for each in ranks):,} updates", last, Below(0.5)),
            _reported("first measured update half-way down", half, Below(76)),
        ],
    )


def _transfer_drops(frame: pl.DataFrame) -> Verdict:
    runs = _deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit
    if not len(runs.fitted[0].curve("linear_probe", task=1)):
        return not_run("needs a data set to probe out of distribution: --ood")

    def drop(run: _Run) -> float:
        ood = run.curve("linear_probe", task=1)
        return 100 * (ood[run.cut - 1] - ood[-1])

    def together(run: _Run) -> float:
        return _rank_correlation(run.curve("numerical_rank")[run.cut :], run.curve("linear_probe", task=1)[run.cut :])

    def retained(run: _Run) -> float:
        ood = run.curve("linear_probe", task=1)
        return 100 * ood[-1] / ood.max()

    def beyond_peak(run: _Run) -> float:
        return float(np.argmax(run.curve("linear_probe", task=1))) + 1 - run.cut

    return _told(
        runs,
        [
            _part("accuracy out of distribution, layer K less last (points)", runs.measured(drop), Above(0.0)),
            _part(
                "Spearman of rank and accuracy out of distribution in the tunnel", runs.measured(together), Above(0.0)
            ),
        ],
        [
            _reported("accuracy out of distribution kept at the last layer (%)", runs.measured(retained), Below(100.0)),
            _reported("layer of the peak less K", runs.measured(beyond_peak), Equivalent(-1.0, 1.0)),
        ],
    )


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; NaN below three points."""
    return spearman(x, y) if len(x) >= 3 else math.nan


def _more_classes(frame: pl.DataFrame) -> Verdict:
    rows = frame.filter(pl.col("experiment") == "classes")
    if rows.is_empty():
        return not_run("needs finished runs of classes")
    counts = rows.group_by("samples").agg(pl.col("classes").n_unique()).sort("classes", "samples")
    runs = _runs(rows, pl.col("samples") == counts["samples"][-1])
    unfit = _unfit(runs, "classes")
    if unfit is not None:
        return unfit

    def slopes(rho: float) -> np.ndarray:
        return _slopes(runs, lambda run: math.log2(run.classes), lambda run: run.percent(rho))

    if not len(slopes(RHO)):
        return not_run("needs fitted runs of classes with several numbers of classes and the same seeds")
    return _told(
        runs,
        [_part("slope of tunnel length (%) on log2(classes), equal samples", slopes(RHO), Below(0.0))],
        [_reported(f"slope at rho {rho:g}", slopes(rho), Below(0.0)) for rho in RHOS if rho != RHO],
    )


def _more_samples(frame: pl.DataFrame) -> Verdict:
    few = frame.filter(pl.col("experiment") == "samples")
    if few.is_empty():
        return not_run("needs finished runs of samples")
    same = pl.col("depth").is_in(few["depth"].unique().to_list()) & (pl.col("network") == few["network"][0])
    rows = frame.filter(pl.col("experiment").is_in(["samples", "depth"]) & same)
    least = int(few["samples"].min())  # pyright: ignore[reportArgumentType]
    runs = _runs(rows, pl.col("samples").is_in([least, 4 * least]))
    unfit = _unfit(runs, "samples")
    if unfit is not None:
        return unfit

    def difference(rho: float) -> Interval:
        one, four = (
            {run.seed: run.percent(rho) for run in runs.fitted if run.field("samples") == count}
            for count in (least, 4 * least)
        )
        seeds = sorted(set(one) & set(four))
        pairs = [four[seed] for seed in seeds], [one[seed] for seed in seeds]
        return paired_difference(*pairs, rng=np.random.default_rng(0))

    if not difference(RHO).n:
        return not_run("needs fitted runs at one and at four times the images with the same seeds")
    inside = Equivalent(-10.0, 10.0)
    return _told(
        runs,
        [_named("tunnel length (%), four times the images less once", verdict(difference(RHO), inside))],
        [
            _named(f"at rho {rho:g} (reported, not claimed)", verdict(difference(rho), inside))
            for rho in RHOS
            if rho != RHO
        ],
    )


def _resets_hurt(frame: pl.DataFrame) -> Verdict:
    runs = _deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit

    def ratio(run: _Run) -> float:
        change = run.curve("weight_change_relative")[: run.layers]
        tunnel, extractor = change[run.cut :], change[: run.cut]
        return float(tunnel.mean() / extractor.mean()) if len(tunnel) else math.nan

    def drop(run: _Run, which: str) -> float:
        count = run.layers - run.cut
        return 100 * (run.accuracy() - run.value("reset_accuracy", f"{which}:{count}")) if count else math.nan

    return _told(
        runs,
        [
            _part("relative weight change, tunnel / extractor", runs.measured(ratio), Below(1.0)),
            _part(
                "accuracy lost when the tunnel is reset (points)", runs.measured(lambda r: drop(r, "last")), Above(10.0)
            ),
        ],
        [
            _reported(
                "lost when as many first layers are reset (points)",
                runs.measured(lambda r: drop(r, "first")),
                Above(10.0),
            )
        ],
    )


def _swaps(frame: pl.DataFrame) -> _Runs:
    """The full networks of `swap` that have a tunnel to exchange; VGG where there is one, as in the paper."""
    runs = _runs(_swap_family(frame), free=("network",))
    most = max((run.layers for run in runs.fitted), default=0)
    full = tuple(run for run in runs.fitted if run.layers == most and run.cut < run.layers)
    return _Runs(full, runs.excluded, runs.data, runs.varied)


def _swap_family(frame: pl.DataFrame) -> pl.DataFrame:
    rows = frame.filter(pl.col("experiment") == "swap")
    convolutional = rows.filter(pl.col("network") != "mlp")
    return rows if convolutional.is_empty() else convolutional


COMBINATIONS = ("E1T1", "E1T2", "E2T2", "E2T1", "E2T1 (FT)", "E2 (FT)")


def swapped(run: _Run, combination: str, task: int) -> float:
    """Test accuracy in points of a combination on a task (0 or 1), cut after the K measured after task 1."""
    cut = run.cut
    if combination in ("E1T1", "E2T2"):
        return 100 * run.value("swap_accuracy", combination, task=task)
    if combination == "E2 (FT)":
        return 100 * run.curve("linear_probe", task=task)[cut - 1]
    if combination == "E2T1 (FT)":
        return 100 * _only(run.curve("linear_probe", branch=f"E2T1 {cut}", task=task))
    return 100 * run.value("swap_accuracy", f"{combination}:{cut}", task=task)


def _only(values: np.ndarray) -> float:
    return float(values[0]) if len(values) else math.nan


def _difference(runs: _Runs, one: str, other: str, task: int) -> np.ndarray:
    return runs.measured(lambda run: swapped(run, one, task) - swapped(run, other, task))


def _interchangeable(frame: pl.DataFrame) -> Verdict:
    runs = _swaps(frame)
    unfit = _unfit(runs, "swap that have a tunnel")
    if unfit is not None:
        return unfit
    inside = Equivalent(-5.0, 5.0)
    return _told(
        runs,
        [_part("accuracy on task 1, E1T1 less E1T2 (points)", _difference(runs, "E1T1", "E1T2", 0), inside)],
        [_reported("on task 2, E2T2 less E2T1", _difference(runs, "E2T2", "E2T1", 1), inside)],
    )


def _probe_recovers(frame: pl.DataFrame) -> Verdict:
    runs = _swaps(frame)
    unfit = _unfit(runs, "swap that have a tunnel")
    if unfit is not None:
        return unfit
    return _told(
        runs,
        [
            _part(
                "accuracy on task 1, E2 (FT) less E2T1 (FT) (points)",
                _difference(runs, "E2 (FT)", "E2T1 (FT)", 0),
                Above(0.0),
            )
        ],
        [_reported("E2T1 (FT) less E2T1 as it is", _difference(runs, "E2T1 (FT)", "E2T1", 0), Above(0.0))],
    )


def _forgotten(run: _Run) -> float:
    """Accuracy on task 1 after it less after task 2, in points."""
    return 100 * (run.accuracy(when=AFTER_TASK_1) - run.accuracy(when=AT_THE_END))


def _shorter_forgets_less(frame: pl.DataFrame) -> Verdict:
    runs = _runs(_swap_family(frame), free=("network",))
    unfit = _unfit(runs, "swap")
    if unfit is not None:
        return unfit
    most = max(run.layers for run in runs.fitted)
    forgetting, accuracy = [], []
    for full in (run for run in runs.fitted if run.layers == most):
        shorter = [run for run in runs.fitted if run.seed == full.seed and full.cut <= run.layers < most]
        if shorter:
            short = min(shorter, key=lambda run: run.layers)
            forgetting.append(_forgotten(short) - _forgotten(full))
            accuracy.append(100 * (short.accuracy(when=AFTER_TASK_1) - full.accuracy(when=AFTER_TASK_1)))
    if not forgetting:
        return not_run("needs fitted shorter networks, with at least K layers, and full ones of the same seeds")
    return _told(
        runs,
        [
            _part("forgetting of task 1, shortest with K layers less full (points)", np.array(forgetting), Below(0.0)),
            _part("accuracy on task 1, the same (points)", np.array(accuracy), NonInferior(2.0)),
        ],
    )


def _variances(frame: pl.DataFrame) -> Verdict:
    runs = _deepest(frame)
    unfit = _unfit(runs, "depth")
    if unfit is not None:
        return unfit

    def trend(metric: str) -> np.ndarray:
        def of(run: _Run) -> float:
            values = run.curve(metric)[run.cut :]
            return _rank_correlation(np.arange(len(values), dtype=float), values)

        return runs.measured(of)

    return _told(
        runs,
        [
            _part("Spearman of depth and variance within classes, in the tunnel", trend("class_within"), Below(0.0)),
            _part("Spearman of depth and variance between classes", trend("class_between"), Above(0.0)),
        ],
        [_reported("Spearman of depth and within / between", trend("class_ratio"), Below(0.0))],
    )


CLAIMS = (
    Claim(
        "TUN-1",
        "A tunnel exists in deep MLPs: it takes more than 25 % of the layers of the deepest",
        "layers after about the fifth of an MLP-12 (second-hand). Against it: no tunnel in VGGm-11 without early "
        "max-pools "
        "(Harun et al. 2024)",
        _tunnel_exists,
    ),
    Claim(
        "TUN-2",
        "The extractor's length does not depend on depth: the slope of K on depth is within 0.25 layers per layer",
        "all layers added to an MLP join the tunnel (second-hand)",
        _extractor_length,
    ),
    Claim(
        "TUN-3",
        "The rank collapses in the tunnel to about the number of classes: at most 3 times, and below the rank of "
        "layer K",
        "to about 10 for MLP and VGG (second-hand). Against it: ResNet-34 keeps a higher rank",
        _rank_collapses,
    ),
    Claim(
        "TUN-4",
        "The collapse comes early: after 75 updates the last layer's rank is less than half of what it was",
        "early in training, and it stays; the number 75 is second-hand",
        _collapse_is_early,
    ),
    Claim(
        "TUN-5",
        "Accuracy out of distribution falls inside the tunnel, and follows the rank there",
        "highest just before the tunnel. Harun et al. 2024 agree in direction; it depends on resolution and "
        "augmentation",
        _transfer_drops,
    ),
    Claim(
        "TUN-6",
        "More classes shorten the tunnel, at equal samples",
        "shorter with more classes (second-hand); Harun et al. 2024 agree",
        _more_classes,
    ),
    Claim(
        "TUN-7",
        "More samples do not change the tunnel's length: four times as many move it by less than 10 points",
        "unchanged from CIFAR-10 to CINIC-10 (second-hand). Harun et al. 2024 vary other factors",
        _more_samples,
    ),
    Claim(
        "TUN-8",
        "The tunnel's weights move less than the extractor's, but resetting them costs more than 10 points",
        "tunnel layers change little; resetting them hurts clearly (second-hand)",
        _resets_hurt,
    ),
    Claim(
        "TUN-9",
        "Tunnels are interchangeable between tasks of equally many classes: within 5 points on task 1",
        "swapping costs nothing (second-hand). Against it: 20 to 26 points lost (Harun et al. 2024, ResNet-18)",
        _interchangeable,
    ),
    Claim(
        "TUN-10",
        "The second extractor alone, with a new probe, recovers task 1 better than with the first tunnel and a new "
        "probe",
        "E2 (FT) above E2T1 (FT) (second-hand). Against it: below by 5 to 6 points (Harun et al. 2024)",
        _probe_recovers,
    ),
    Claim(
        "TUN-11",
        "Networks shortened to at least K layers forget less, at an accuracy on task 1 at most 2 points lower",
        "shallower networks keep accuracy and forget less (second-hand)",
        _shorter_forgets_less,
    ),
    Claim(
        "TUN-12",
        "Inside the tunnel the variance within classes falls and the variance between classes rises",
        "so in VGG-19 (second-hand)",
        _variances,
    ),
)


# Figures ----------------------------------------------------------------------------------------------------------


def _all_runs(frame: pl.DataFrame, experiment: str) -> list[_Run]:
    """Every finished run of an experiment, fitted or not: figures hide none."""
    rows = frame.filter(pl.col("experiment") == experiment)
    return [run for run in _each_once(rows) if _finished(run)]


def _network(run: _Run) -> str:
    """What a panel is called."""
    if run.field("network") == "mlp":
        return f"MLP-{run.field('depth')}, width {run.field('width')}"
    return f"{run.field('network')}, {run.field('data')}"


def _table(rows: list[dict[str, Any]]) -> pl.DataFrame | None:
    return pl.DataFrame(rows, infer_schema_length=None) if rows else None


def _by_layer(runs: Sequence[_Run], curves: Mapping[str, Callable[[_Run], np.ndarray]]) -> pl.DataFrame | None:
    """One row a run, curve and layer."""
    return _table(
        [
            {"network": _network(run), "seed": run.seed, "layer": layer, "curve": name, "value": float(value)}
            for run in runs
            for name, measure in curves.items()
            for layer, value in enumerate(measure(run), 1)
        ]
    )


def _layer_figure(
    runs: Sequence[_Run], curves: Mapping[str, Callable[[_Run], np.ndarray]], **labelled: Any
) -> Figure | None:
    """A panel for each network, its mean K as a vertical line."""
    from neoteny.report.figures import curves as draw
    from neoteny.report.figures import settings

    table = _by_layer(runs, curves)
    if table is None:
        return None
    looks = settings(table, ("curve",), {(name,): name for name in curves})
    names = table["network"].unique(maintain_order=True).to_list()
    panel = "network" if len(names) > 1 else None
    figure = draw(table, x="layer", by=("curve",), panel=panel, settings=looks, columns=2, x_label="layer", **labelled)
    for axes, name in zip(figure.axes, names, strict=False):
        cuts = [run.start().layer for run in runs if _network(run) == name]
        axes.axvline(float(np.mean(cuts)), color="#666c74", linewidth=1.0, linestyle=(0, (4, 2)), zorder=1.1)
    return figure


def _looked_at(frame: pl.DataFrame) -> list[_Run]:
    """The runs looked at layer by layer, the deepest first."""
    found = _all_runs(frame, "depth") + _all_runs(frame, "families")
    return sorted(found, key=lambda run: (-run.layers, _network(run), run.seed))


def _percent(metric: str, **where: Any) -> Callable[[_Run], np.ndarray]:
    return lambda run: 100 * run.curve(metric, **where)


def _probes_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "in distribution": _percent("linear_probe"),
        "out of distribution": _percent("linear_probe", task=1),
        "in distribution, untrained": _percent("linear_probe", branch="untrained"),
    }
    return _layer_figure(_looked_at(frame), curves, y_label="linear probe accuracy (%)")


def _rank_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "trained": lambda run: run.curve("numerical_rank"),
        "untrained": lambda run: run.curve("numerical_rank", branch="untrained"),
    }
    return _layer_figure(
        _looked_at(frame), curves, y_label="numerical rank", y_log=True, references={"10 classes": 10.0}
    )


def _variance_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "within classes": lambda run: run.curve("class_within"),
        "between classes": lambda run: run.curve("class_between"),
        "within / between": lambda run: run.curve("class_ratio"),
    }
    return _layer_figure(_looked_at(frame), curves, y_label="variance of features", y_log=True)


def _change_figure(frame: pl.DataFrame) -> Figure | None:
    curves = {
        "relative to the initial norm": lambda run: run.curve("weight_change_relative")[: run.layers],
        "root mean square": lambda run: run.curve("weight_change")[: run.layers],
    }
    return _layer_figure(_looked_at(frame), curves, y_label="weight change", y_log=True)


def _reset_figure(frame: pl.DataFrame) -> Figure | None:
    def resets(which: str) -> Callable[[_Run], np.ndarray]:
        return lambda run: (
            100 * np.array([run.value("reset_accuracy", f"{which}:{m}") for m in range(1, run.layers + 1)])
        )

    from neoteny.report.figures import curves, settings

    table = _by_layer(_looked_at(frame), {"last layers": resets("last"), "first layers": resets("first")})
    if table is None:
        return None
    panel = "network" if table["network"].n_unique() > 1 else None
    looks = settings(table, ("curve",), {("last layers",): "last layers", ("first layers",): "first layers"})
    return curves(
        table, x="layer", by=("curve",), panel=panel, settings=looks, columns=2,
        x_label="layers put back to initialisation", y_label="test accuracy (%)",
    )  # fmt: skip


def _cka_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import heatmap

    runs = _looked_at(frame)
    if not runs:
        return None
    most = runs[0].layers
    matrices = [_cka(run) for run in runs if run.layers == most and _network(run) == _network(runs[0])]
    names = [str(layer) for layer in range(1, most + 1)]
    return heatmap(
        np.mean(matrices, axis=0), rows=names, columns=names, row_label="layer", column_label="layer",
        value_label="linear CKA", limits=(0.0, 1.0),
    )  # fmt: skip


def _cka(run: _Run) -> np.ndarray:
    """(layers, layers), 1 on the diagonal."""
    rows = run.rows.filter((pl.col("metric") == "linear_cka") & (pl.col("branch") == ""))
    stages = run._values("linear_probe", "", 0, None, AT_THE_END)["place"].to_list()
    matrix = np.eye(len(stages))
    for place, value in zip(rows["place"].to_list(), rows["value"].to_list(), strict=True):
        one, other = (stages.index(name) for name in place.split(":"))
        matrix[one, other] = matrix[other, one] = value
    return matrix


def _depth_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    parts = {"extractor (K)": lambda run: run.cut, "tunnel": lambda run: run.layers - run.cut}
    table = _table(
        [
            {"depth": run.field("depth"), "seed": run.seed, "part": name, "value": float(measure(run))}
            for run in _all_runs(frame, "depth")
            for name, measure in parts.items()
        ]
    )
    if table is None or table["depth"].n_unique() < 2:
        return None
    looks = settings(table, ("part",), {(name,): name for name in parts})
    return curves(table, x="depth", by=("part",), settings=looks, x_label="depth of the MLP", y_label="layers")


def _width_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    runs = [run for run in _all_runs(frame, "width") if run.field("network") == "mlp"]
    depths = {run.field("depth") for run in runs}
    runs += [run for run in _all_runs(frame, "depth") if run.field("depth") in depths]
    table = _table([{"width": run.field("width"), "seed": run.seed, "value": run.percent()} for run in runs])
    if table is None or table["width"].n_unique() < 2 or len(depths) != 1:
        return None
    return curves(
        table, x="width", by=(), x_log=True,
        x_label=f"width of the MLP of depth {depths.pop()}", y_label="tunnel length (% of layers)",
    )  # fmt: skip


def _classes_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves

    table = _table(
        [
            {"classes": run.classes, "seed": run.seed, "samples": run.field("samples"), "value": run.percent()}
            for run in _all_runs(frame, "classes")
        ]
    )
    if table is None or table["classes"].n_unique() < 2:
        return None
    equal = table.group_by("samples").len().sort("len", "samples")["samples"][-1]
    return curves(
        table.filter(pl.col("samples") == equal), x="classes", by=(), x_log=True,
        x_label=f"classes, {equal:,} training images in all", y_label="tunnel length (% of layers)",
    )  # fmt: skip


def _swap_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import intervals, settings

    runs = _swaps(frame)
    table = _table(
        [
            {"combination": name, "task": f"on task {task + 1}", "seed": run.seed, "value": swapped(run, name, task)}
            for run in runs.fitted
            for task in (0, 1)
            for name in COMBINATIONS
        ]
    )
    if table is None:
        return None
    looks = settings(table, ("combination",), {(name,): name for name in COMBINATIONS})
    return intervals(table, by=("combination",), panel="task", settings=looks, value_label="test accuracy (%)")


def _short_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    parts = {
        "task 1, before task 2": lambda run: 100 * run.accuracy(when=AFTER_TASK_1),
        "task 1, after task 2": lambda run: 100 * run.accuracy(when=AT_THE_END),
        "task 2": lambda run: 100 * run.accuracy(task=1),
    }
    table = _table(
        [
            {"layers": run.layers, "seed": run.seed, "part": name, "network": run.field("network"), "value": of(run)}
            for run in _all_runs(_swap_family(frame), "swap")
            for name, of in parts.items()
        ]
    )
    if table is None or table["layers"].n_unique() < 2:
        return None
    looks = settings(table, ("part",), {(name,): name for name in parts})
    return curves(table, x="layers", by=("part",), settings=looks, x_label="hidden layers", y_label="test accuracy (%)")


def _dynamics_figure(frame: pl.DataFrame) -> Figure | None:
    from neoteny.report.figures import curves, settings

    rows = frame.filter(
        (pl.col("experiment") == "dynamics") & (pl.col("metric") == "numerical_rank") & (pl.col("network") == "mlp")
    )
    if rows.is_empty():
        return None
    names = {run.field("run"): _network(run) for run in map(_Run, rows.partition_by("run", maintain_order=True))}
    rows = rows.with_columns(pl.col("run").replace_strict(names).alias("panel"))
    # on a logarithmic axis there is no 0: the untrained network stands at a half
    rows = rows.with_columns(pl.when(pl.col("step") == 0).then(0.5).otherwise(pl.col("step")).alias("update"))
    places = rows["place"].unique(maintain_order=True).to_list()
    looks = settings(rows, ("place",), {(name,): f"layer {number}" for number, name in enumerate(places, 1)})
    return curves(
        rows, x="update", by=("place",), panel="panel" if len(set(names.values())) > 1 else None, settings=looks,
        x_log=True, y_log=True, columns=2,
        x_label="updates (0 drawn at 0.5)", y_label="numerical rank",
    )  # fmt: skip


FIGURES = (
    StudyFigure(
        "probes",
        "Linear probes, layer by layer",
        "Test accuracy of a linear layer trained on the frozen features of each layer: of the data set trained on, of "
        "another one, and of the untrained network. The dashed line is K, the mean over seeds of the first layer that "
        "reaches 95 % of the network's own accuracy; what comes after it is the tunnel.",
        _probes_figure,
    ),
    StudyFigure(
        "rank",
        "Numerical rank, layer by layer",
        "Singular values of the covariance of test features above a thousandth of the largest. The dashed line is K.",
        _rank_figure,
    ),
    StudyFigure(
        "depth",
        "Extractor and tunnel against depth",
        "K and what is left. If the extractor's length does not depend on depth, its line is flat.",
        _depth_figure,
    ),
    StudyFigure(
        "width",
        "Tunnel length against width",
        "The deepest MLP, narrower or wider.",
        _width_figure,
    ),
    StudyFigure(
        "cka",
        "Similarity of layers",
        "Linear CKA of every pair of layers of the deepest network, mean over seeds.",
        _cka_figure,
    ),
    StudyFigure(
        "variances",
        "Variance within and between classes",
        "Of test features. Their scale drifts with depth; the ratio does not depend on it. The dashed line is K.",
        _variance_figure,
    ),
    StudyFigure(
        "weight_change",
        "How far weights moved",
        "Change of every layer's kernel from initialisation to the end of training. The dashed line is K.",
        _change_figure,
    ),
    StudyFigure(
        "resets",
        "Layers put back to their initialisation",
        "Test accuracy without any further training when the last, or the first, so many layers are as they were "
        "before "
        "training; the head is kept.",
        _reset_figure,
    ),
    StudyFigure(
        "dynamics",
        "Rank while training begins",
        "Numerical rank of every layer on 2,000 test images.",
        _dynamics_figure,
    ),
    StudyFigure(
        "classes",
        "Tunnel length against the number of classes",
        "Subsets of the classes of one data set, with as many training images in all.",
        _classes_figure,
    ),
    StudyFigure(
        "swaps",
        "Extractors and tunnels of two tasks exchanged",
        "E1T2 is the extractor after task 1 with the tunnel after task 2, cut after the K that was measured after "
        "task 1; "
        "each task is answered by its own head. FT: a linear probe trained on that task on frozen features, of the "
        "whole "
        "network (E2T1) or of the extractor alone (E2). Networks without a tunnel after task 1 are not here.",
        _swap_figure,
    ),
    StudyFigure(
        "shortened",
        "Shortened networks",
        "Two tasks in order, by networks of different depths.",
        _short_figure,
    ),
)


def summary(frame: pl.DataFrame) -> tuple[str, ...]:
    """What was measured, in a sentence for each network."""
    told = []
    runs = _looked_at(frame)
    for name in dict.fromkeys(_network(run) for run in runs):
        own = [run for run in runs if _network(run) == name]
        fitted = [run for run in own if run.converged]
        if not fitted:
            told.append(f"{name}: none of {len(own)} runs reached training accuracy {CONVERGED}.")
            continue
        cuts = sorted(run.cut for run in fitted)
        spread = f"{cuts[0]}" if cuts[0] == cuts[-1] else f"{cuts[0]} to {cuts[-1]}"
        accuracy = 100 * float(np.mean([run.accuracy() for run in fitted]))
        told.append(
            f"{name}: {accuracy:.0f} % test accuracy; the tunnel starts after layer {spread} of {fitted[0].layers} "
            f"(runs: {len(fitted)} fitted of {len(own)})."
        )
    return tuple(told)


STUDY = Study(
    name="tunnel",
    title="The tunnel effect",
    paper=(
        "Masarczyk, Ostaszewski, Imani, Pascanu, Milos, Trzcinski: The tunnel effect: building data representations in "
        "deep neural networks, NeurIPS 2023"
    ),
    paper_url="https://arxiv.org/abs/2305.19753",
    question=(
        "Do the first layers of a deep classifier do all the work, and what do the others do: compress, hurt transfer, "
        "and serve any task alike?"
    ),
    experiments=(depth, width, families, classes, samples, dynamics, swap),
    claims=CLAIMS,
    figures=FIGURES,
    presets=PRESETS,
    notes=(
        "No table of the paper was at hand: what it says is second-hand, from reading notes and "
        "re-implementations, and the "
        "thresholds of the verdicts are this study's, set before anything was run.",
        f"Runs whose training accuracy is below {CONVERGED} are left out of the claims, not of the figures.",
        "The linear probe's optimiser is a choice of this library (docs/probes.md); no epoch is chosen by the test "
        "images.",
        "K is the last layer of the extractor, counted from 1; layers are the outputs of hidden stages.",
    ),
    summary=summary,
)
