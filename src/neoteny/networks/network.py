"""Networks: an ordered tuple of named stages, and the protocol every layer follows.

A stage is the unit that probes look at and interventions act on. One call of a network returns its output, the
output of every stage, and the network with updated statistics (running moments of batch norm, for example).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree


class Statistic(eqx.Module):
    """An array a layer updates by itself, such as a running mean: saved with the network, never trained."""

    value: Array


class Layer(eqx.Module):
    """A batched map. Calling it returns the output and the layer with updated statistics (itself if it has none)."""

    @abc.abstractmethod
    def __call__(self, x: Array, *, train: bool = False, key: PRNGKeyArray | None = None) -> tuple[Array, Self]:
        """Map a batch `x` (samples first, channels last). `train` selects batch moments and dropout; `key` feeds
        them.
        """


class Frozen(Layer):
    """A layer whose parameters are constant: no gradient, no optimiser state, no decay. Gradients pass through it to
    its input, and its statistics go on.
    """

    layer: Layer

    def __call__(self, x, *, train=False, key=None):
        held = jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_inexact_array(a) else a, self.layer)
        output, layer = held(x, train=train, key=key)
        return output, Frozen(layer)


class Branches(NamedTuple):
    """Values that run side by side through several stages, as those of an injected head do."""

    values: tuple[Any, ...]

    def joined(self) -> Array:
        """All of them as one array, units (the last axis) of one branch after those of another."""
        arrays = [value.joined() if isinstance(value, Branches) else value for value in self.values]
        return jnp.concatenate(arrays, axis=-1)


class Chain(Layer):
    """Layers applied one after another as one layer."""

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer):
        self.layers = layers

    def __call__(self, x, *, train=False, key=None):
        updated = []
        for index, layer in enumerate(self.layers):
            x, layer = layer(x, train=train, key=None if key is None else jax.random.fold_in(key, index))
            updated.append(layer)
        return x, type(self)(*updated)


def _is_any_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


class PerExample(Layer):
    """Any Equinox-style module written for a single example, mapped over the batch.

    Its arrays are leaves; what else it holds (functions, numbers, flags) is static, so that it can cross programs.
    """

    arrays: PyTree
    rest: PyTree = eqx.field(static=True)

    def __init__(self, module: Callable):
        self.arrays, self.rest = eqx.partition(module, _is_any_array)

    @property
    def module(self) -> Callable:
        """The module as it was given, with the arrays it has now."""
        return eqx.combine(self.arrays, self.rest)

    def __call__(self, x, *, train=False, key=None):
        return jax.vmap(self.module)(x), self


class Pass(NamedTuple):
    """What one forward pass gives: `output` (batch, outputs), `stages` name -> (batch, ...), and the updated
    network. Where a stage gives branches, its entry has the units of all of them.
    """

    output: Array
    stages: dict[str, Array]
    network: Network


class Network(eqx.Module):
    """An ordered tuple of named stages.

    `Network(hidden=..., head=...)`: keyword order is stage order. A value that is not a `Layer` is taken for an
    Equinox-style module of one example and mapped over the batch.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    stages: tuple[Layer, ...]

    def __init__(self, **stages: Layer | Callable):
        if not stages:
            raise ValueError("a network needs at least one stage: Network(hidden=..., head=...)")
        self.names = tuple(stages)
        self.stages = tuple(s if isinstance(s, Layer) else PerExample(s) for s in stages.values())

    def __call__(self, x: Array, *, train: bool = False, key: PRNGKeyArray | None = None) -> Pass:
        outputs, updated = {}, {}
        for index, (name, stage) in enumerate(zip(self.names, self.stages, strict=True)):
            stage_key = None if key is None else jax.random.fold_in(key, index)
            x, updated[name] = stage(x, train=train, key=stage_key)
            outputs[name] = x.joined() if isinstance(x, Branches) else x
        return Pass(x, outputs, Network(**updated))

    def stage(self, name: str) -> Layer:
        """The stage called `name`; KeyError naming the stages there are."""
        return self.stages[self.index(name)]

    def index(self, name: str) -> int:
        """Position of the stage called `name`."""
        if name not in self.names:
            raise KeyError(f"no stage {name!r}; the stages are {', '.join(self.names)}")
        return self.names.index(name)

    def replace(self, **stages: Layer) -> Network:
        """This network with the named stages exchanged."""
        for name in stages:
            self.index(name)
        return Network(**{name: stages.get(name, stage) for name, stage in zip(self.names, self.stages, strict=True)})


Maker = Callable[[PRNGKeyArray], Network]
"""`maker(key) -> Network`: people pass makers, so that every seed has its own initialisation."""


def as_network(made: object) -> Network:
    """A maker's result as a `Network`: other callables become a network of the single stage `body`."""
    if isinstance(made, Layer):
        made = Network(body=made)
    if isinstance(made, Network):
        _check_leaves(made)
        return made
    if not callable(made):
        raise TypeError(f"a maker must return a network, that is something callable; it returned {type(made).__name__}")
    return Network(body=made)


def _check_leaves(network: Network) -> None:
    """TypeError naming a field that is neither an array nor static: every program would take it for a traced array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        if not _is_any_array(leaf):
            raise TypeError(
                f"{jax.tree_util.keystr(path)} of the network is {leaf!r}, no array; declare it with "
                "eqx.field(static=True), or make it an array if it is to be trained"
            )


def check_maker(maker: object) -> Maker:
    """`maker` itself, or a TypeError if it is an instantiated module: then every seed would share one
    initialisation.
    """
    if isinstance(maker, eqx.Module):
        raise TypeError(
            f"expected a maker, a function key -> network, and got an instantiated {type(maker).__name__}; "
            "pass `lambda key: MyNet(key=key)` so that every seed gets its own initialisation"
        )
    if not callable(maker):
        raise TypeError(f"expected a maker, a function key -> network, and got {type(maker).__name__}")
    return cast(Maker, maker)


def _is_untrained(node: object) -> bool:
    return isinstance(node, Statistic | Frozen)


def trainable_spec(tree: PyTree) -> PyTree:
    """True at every floating-point array that is trained: all but those inside a `Statistic` or a `Frozen` layer."""
    return jax.tree.map(
        lambda node: jax.tree.map(lambda _: False, node) if _is_untrained(node) else eqx.is_inexact_array(node),
        tree,
        is_leaf=_is_untrained,
    )


def split_trainable(tree: PyTree) -> tuple[PyTree, PyTree]:
    """`tree` as (trained arrays, everything else); `eqx.combine` puts them together again."""
    return eqx.partition(tree, trainable_spec(tree))
