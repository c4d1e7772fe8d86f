"""Where a pack stands on one way through its script: the run's own, or that of a branch under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from neoteny.lab.rings import RingRows
from neoteny.networks.network import Network
from neoteny.tasks.host_experience import HostPlay
from neoteny.tasks.sources import Ring
from neoteny.training.clock import Clock
from neoteny.training.ledger import Ledger
from neoteny.training.placing import AnyTask
from neoteny.training.programs import Bank, PackState

PLAY = "play"
"""What the names of a host source's arrays begin with."""

PLAY_ROWS = f"{PLAY}.rows"


class Outline(NamedTuple):
    """Shapes and types of a standing: the state, the bank of saves to be read later, and the task begun last.

    trained: whether anything was trained since. source_since: the step that last gave the source a state of its own.
    """

    state: PackState
    bank: Bank
    task: AnyTask | None
    trained: bool = False
    source_since: int = 0


@dataclass
class Standing:
    """All that the next event depends on, and what it has cost so far.

    bank: saves that a later event reads. task: the one begun last, and `trained` whether anything was trained since.
    source_since: the step that last gave the source a state of its own. alive: lanes that are (still) finite. play: the
    emulators and the replay of the task begun last, where they are on the host.
    """

    state: PackState
    clock: Clock
    ledger: Ledger
    alive: np.ndarray
    task: AnyTask | None = None
    bank: dict[str, dict[str, Network]] = field(default_factory=dict)
    trained: bool = False
    source_since: int = 0
    play: HostPlay | None = None

    @property
    def storable(self) -> bool:
        """Whether all there is can be stored: amid a segment, emulators cannot."""
        return self.play is None or self.play.at_boundary

    def arrays(self, *, rings: bool = True) -> dict[str, np.ndarray]:
        """Everything needed to go on, as arrays by path; the rows of rings only if `rings`."""
        state = self.state if rings else self.state._replace(source=_without_rows(self.state.source))
        stored = {**arrays_of(state, "state"), **arrays_of(self.bank, "bank")}
        stored.update({f"ledger.{name}": account for name, account in self.ledger.arrays().items()})
        stored.update({f"clock.{name}": np.asarray(value) for name, value in self.clock._asdict().items()})
        stored["alive"] = self.alive
        if self.play is not None:
            stored.update({f"{PLAY}.{name}": array for name, array in self.play.arrays().items()})
            rows = self.play.rows._asdict() if rings else {}
            stored.update({f"{PLAY_ROWS}.{name}": array.copy() for name, array in rows.items()})
        return stored

    def rings(self, prefix: str) -> list[RingRows]:
        """The rings of the source, whose rows are stored apart."""
        if self.play is not None:
            rows, name = self.play.rows, f"{prefix}{PLAY_ROWS}"
            return [RingRows(name, self.source_since, self.play.layout.capacity, self.play.written, _reader(rows))]
        found = jax.tree_util.tree_leaves_with_path(self.state.source, is_leaf=_is_ring)
        return [
            _ring_rows(f"{prefix}state.source{jax.tree_util.keystr(path)}", ring, self.source_since)
            for path, ring in found
            if _is_ring(ring)
        ]

    def restore_play(self, stored: Mapping[str, np.ndarray], prefix: str = "") -> None:
        """Let a new play go on from what `arrays` gave; ValueError for what does not fit."""
        if self.play is None:
            return

        def found(name: str) -> np.ndarray:
            if name not in stored:
                raise ValueError(f"the stored state lacks {name}")
            return stored[name]

        self.play.restore(
            {name: found(f"{prefix}{PLAY}.{name}") for name in self.play.arrays()},
            {name: found(f"{prefix}{PLAY_ROWS}.{name}") for name in self.play.rows._fields},
        )

    @classmethod
    def from_arrays(cls, outline: Outline, stored: Mapping[str, np.ndarray], prefix: str = "") -> Standing:
        """The standing that `arrays` gave, names of whose arrays then got the prefix; ValueError for what does not
        fit.
        """
        ledger = Ledger(len(stored[f"{prefix}alive"]))
        ledger.restore({name: stored[f"{prefix}ledger.{name}"] for name in ledger.arrays()})
        return cls(
            state=from_arrays(outline.state, stored, f"{prefix}state"),
            clock=Clock(*(stored[f"{prefix}clock.{name}"] for name in Clock._fields)),
            ledger=ledger,
            alive=stored[f"{prefix}alive"].copy(),
            task=outline.task,
            trained=outline.trained,
            source_since=outline.source_since,
            bank=from_arrays(dict(outline.bank), stored, f"{prefix}bank"),
        )


def _is_ring(node: Any) -> bool:
    return isinstance(node, Ring)


def _without_rows(source: Any) -> Any:
    return jax.tree.map(lambda node: node._replace(rows=()) if _is_ring(node) else node, source, is_leaf=_is_ring)


def _fetched(leaf: jax.Array | np.ndarray, rows: slice) -> np.ndarray:
    """Rows (lanes, rows, ...) on the host; from an accelerator only these are fetched."""
    on_host = isinstance(leaf, np.ndarray) or all(device.platform == "cpu" for device in leaf.devices())
    return np.asarray(leaf)[:, rows] if on_host else np.asarray(leaf[:, rows])


def _ring_rows(name: str, ring: Ring, since: int) -> RingRows:
    """A ring as the store sees it; every leaf (lanes, capacity, ...)."""
    capacity = jax.tree.leaves(ring.rows)[0].shape[1]
    return RingRows(f"{name}.rows", since, capacity, int(np.asarray(ring.written)[0]), _reader(ring.rows))


def _reader(ring_rows: Any) -> Callable[[int, int], dict[str, np.ndarray]]:
    """read(start, stop) of a ring's rows, every leaf (lanes, capacity, ...); see `RingRows`."""
    paths, leaves = paths_of(ring_rows), jax.tree.leaves(ring_rows)
    capacity = leaves[0].shape[1]

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        # At most once round: one stretch of places, or the end and the beginning.
        first, last = start % capacity, start % capacity + stop - start
        stretches = [slice(first, min(last, capacity)), slice(0, max(0, last - capacity))]
        return {
            path: np.concatenate([_fetched(leaf, stretch) for stretch in stretches], axis=1)
            for path, leaf in zip(paths, leaves, strict=True)
        }

    return read


def _is_leaf(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def paths_of(tree: Any) -> list[str]:
    """The path of every array of a tree, as text, in leaf order."""
    arrays = eqx.filter(tree, _is_leaf)
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]


def arrays_of(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    """A tree's arrays on the host: name and path -> array."""
    leaves = jax.device_get(jax.tree.leaves(eqx.filter(tree, eqx.is_array)))
    return {f"{name}{path}": np.asarray(leaf) for path, leaf in zip(paths_of(tree), leaves, strict=True)}


def from_arrays(outline: Any, stored: Mapping[str, np.ndarray], name: str = "", *, lanes: bool = True) -> Any:
    """The tree of this outline with the arrays that `arrays_of` gave; ValueError naming one that does not fit.

    lanes: the number of lanes must be the outline's too.
    """
    dynamic, static = eqx.partition(outline, _is_leaf)
    first, leaves = (0 if lanes else 1), []
    for path, expected in zip(paths_of(outline), jax.tree.leaves(dynamic), strict=True):
        place = f"{name}{path}"
        if place not in stored:
            raise ValueError(f"the stored state lacks {place}")
        array = stored[place]
        if array.shape[first:] != expected.shape[first:] or array.dtype != expected.dtype:
            raise ValueError(f"{place} is {array.dtype}{array.shape}; expected {expected.dtype}{expected.shape}")
        leaves.append(jax.device_put(array))
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static)
