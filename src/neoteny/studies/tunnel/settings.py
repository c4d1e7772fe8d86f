"""What a run of the tunnel study is: its configuration, and the data it is trained on and probed with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neoteny.errors import UsageError
from neoteny.lab.configs import Lane
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.catalogue import load
from neoteny.tasks.generated import teacher
from neoteny.tasks.images import cifar10, cifar100, shuffled
from neoteny.tasks.streams import Centred, Stream, Unchanged, domains
from neoteny.tasks.subsets import as_shape, class_numbers, subset

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

NetworkName = Literal["mlp", "vgg7", "vgg9", "vgg11", "vgg16", "vgg19", "resnet18", "resnet34"]
"""vgg7 and vgg9 are the first three and four groups of vgg11: shortened networks for `swap`."""


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
    rank_samples: int = 0  # test images whose rank is taken; 0: all
    controls: bool = False  # measure also untrained, with raw probe inputs, and on fewer images
    seed: Lane[int] = 0

    def __post_init__(self):
        for name in ("samples", "depth", "width", "batch", "epochs", "probe_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2 linear layers, one of them hidden, not {self.depth}")
        for name in ("classes", "rank_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.ood == self.data:
            raise ValueError(f"ood must be another data set than data, or none, not {self.ood}")
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


# Data -------------------------------------------------------------------------------------------------------------


@functools.cache
def source_data(name: str) -> Arrays:
    """A data set by name; of CIFAR all training images, since no dev split is looked at."""
    whole = {"cifar10": lambda: cifar10(dev=0), "cifar100": lambda: cifar100(dev=0), "teacher": teacher}
    return whole[name]() if name in whole else load(name)


def class_order(classes: int) -> tuple[int, ...]:
    """A fixed random order of the classes, the same on every machine; `Config.classes` takes its beginning."""
    return tuple(int(each) for each in shuffled(np.arange(classes)))


@functools.cache
def main_data(name: str, classes: int, samples: int) -> Arrays:
    """The data set trained on: `samples` training images of the first `classes` classes, and all their test images."""
    data = source_data(name)
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
    data = source_data(name)
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
    data = source_data(name)
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
