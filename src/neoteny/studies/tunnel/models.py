"""Networks, optimisers and sources of the tunnel study."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from neoteny.learners.learner import Learner
from neoteny.learners.supervised import supervised
from neoteny.networks import VGG, Maker, Point, ResNet, he, head_per_task, mlp, resnet, torch_uniform, vgg
from neoteny.studies.tunnel.settings import Config, halves, main_data, source_data
from neoteny.tasks.sources import Minibatch

SHORTENED = {"vgg7": (1, 1, 2), "vgg9": (1, 1, 2, 2)}
"""Convolutions of each group; VGG-11 has (1, 1, 2, 2, 2)."""


def maker(config: Config, shape: tuple[int, ...], classes: int) -> Maker:
    """The network of this configuration; every hidden stage is a measurement point."""
    if config.network == "mlp":
        initializer = {"he": he, "torch_uniform": torch_uniform}[config.init]
        return mlp(shape, [config.width] * (config.depth - 1), classes, initializer=initializer)
    if config.network in SHORTENED:
        return vgg(shape, classes, depth=SHORTENED[config.network], width=config.factor)
    depth = int(config.network.removeprefix("vgg").removeprefix("resnet"))
    make = vgg if config.network.startswith("vgg") else resnet
    return make(shape, classes, depth=depth, width=config.factor)


def updates_per_epoch(config: Config, rows: int) -> int:
    """Of `rows` training images; those that do not fill a batch wait for another epoch's order."""
    return max(1, rows // config.batch)


def bound_of_updates(config: Config, rows: int) -> int:
    """The most updates on one task."""
    return config.epochs * updates_per_epoch(config, rows)


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
    return supervised(made, _optimizer(config, bound_of_updates(config, len(data.splits["train"]))))


def swap_learner(config: Config) -> Learner:
    """A head for each of the two tasks."""
    tasks = halves(config.data, config.samples)
    classes = [task.classes or 0 for task in tasks]
    made = head_per_task(maker(config, tasks[0].input_shape, max(classes)), classes)
    return supervised(made, _optimizer(config, bound_of_updates(config, len(tasks[0].splits["train"]))))


def source(config: Config) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


def hidden_stages(config: Config) -> tuple[str, ...]:
    """The names of the measurement points, in order."""
    network = jax.eval_shape(maker(config, _input_shape(config), 2), jax.random.key(0))
    return network.names[:-1]


def measurement_points(config: Config) -> tuple[Point, ...]:
    """Of a convolutional network, with their places among its blocks and convolutions; none of an MLP."""
    made = maker(config, _input_shape(config), 2)
    return made.points() if isinstance(made, VGG | ResNet) else ()


def _input_shape(config: Config) -> tuple[int, ...]:
    return source_data(config.data).input_shape
