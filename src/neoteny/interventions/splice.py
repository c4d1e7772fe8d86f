"""Splice: the first layers of one network and the rest of another (Masarczyk et al., arXiv:2305.19753, section 4).

A network is stages, the last of which is the head. Cut after stage K (counted from 1), stages 1 to K are the
*extractor*, the stages from K + 1 up to the head are the *tunnel*. The parts come from saves of one lane; whatever a
stage holds comes with it, running moments of batch norm too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from neoteny.interventions.draws import followers, fresh_moments, like, rebuilt, select, selected
from neoteny.interventions.intervention import EMPTY, Context, Intervention
from neoteny.interventions.reset import ONLINE, Moments
from neoteny.learners.learner import LearnerState
from neoteny.networks.heads import Heads, use_head
from neoteny.networks.network import Layer, Network

Position = int | Int[Array, ""]
"""A number of stages; if it is traced, lanes may differ in it."""

Saved = Mapping[str, Network]
"""The networks a save kept, by name."""


def spliced(extractor: Network, tunnel: Network, stage: Position, head: Network | None = None) -> Network:
    """Stages 1 to `stage` of `extractor`, the others of `tunnel`, and the head of `head` (None: of `tunnel`).

    0 takes everything from the tunnel's network, the number of hidden stages all but the head from the extractor's.
    Which head is in use is as in the network it is taken from. ValueError for a number of stages there is not, or
    networks that do not fit.
    """
    hidden = len(tunnel.names) - 1
    _check_positions(tunnel, 0, stage, hidden)
    made = _taken(tunnel, extractor, 0, stage)
    if head is None:
        return made
    return made.replace(**{tunnel.names[-1]: _alike(head, tunnel, tunnel.names[-1])})


def restored(network: Network, saved: Network, first: Position, last: Position) -> Network:
    """`network` with stages first + 1 to `last` as they are in `saved`: `last - first` of them, none if that is 0."""
    _check_positions(network, first, last, len(network.names))
    return _taken(network, saved, first, last)


def splice(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    extractor: Saved | None,
    tunnel: Saved | None,
    stage: Position,
    head: Saved | None = None,
    networks: Sequence[str] = ONLINE,
    moments: Moments = Moments.FRESH,
) -> LearnerState:
    """`spliced` for a learner's state: extractor, tunnel and head each from a save, or as they are now where None.

    The head in use stays the one in use. moments: of the stages that come from a save. Followers are spliced from the
    same saves, with the network of their own name where the save has it. Nothing is drawn.
    """
    del key
    sources = {name: source for name, source in (("extractor", extractor), ("tunnel", tunnel)) if source is not None}

    def change(network: Network, name: str, leader: str) -> Network:
        parts = {part: _of(source, name, leader) for part, source in sources.items()}
        tail = network if head is None else _of(head, name, leader)
        made = spliced(parts.get("extractor", network), parts.get("tunnel", network), stage, tail)
        return _head_in_use(made, network)

    def moved(network: Network, position: int) -> bool | Array:
        if position == len(network.names) - 1:
            return head is not None
        front = position < stage
        if not isinstance(front, jax.Array):
            return ("extractor" if front else "tunnel") in sources
        return (front & (extractor is not None)) | (~front & (tunnel is not None))

    return _changed(state, networks, moments, change, moved)


def restore(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    saved: Saved,
    first: Position = 0,
    last: Position | None = None,
    networks: Sequence[str] = ONLINE,
    moments: Moments = Moments.FRESH,
) -> LearnerState:
    """`restored` for a learner's state: stages first + 1 to `last` (None: all) as a save has them.

    From a save made before training this is the reset to the lane's own initial values. The head in use stays the
    one in use. Nothing is drawn.
    """
    del key

    def end(network: Network) -> Position:
        return len(network.names) if last is None else last

    def change(network: Network, name: str, leader: str) -> Network:
        return _head_in_use(restored(network, _of(saved, name, leader), first, end(network)), network)

    def moved(network: Network, position: int) -> bool | Array:
        return (first <= position) & (position < end(network))

    return _changed(state, networks, moments, change, moved)


def _changed(
    state: LearnerState,
    networks: Sequence[str],
    moments: Moments,
    change: Callable[[Network, str, str], Network],
    moved: Callable[[Network, int], bool | Array],
) -> LearnerState:
    made, states = {}, {}
    for network in selected(state, networks):
        for name in (network, *followers(state, network)):
            made[name] = change(state.networks[name], name, network)
        if moments is Moments.KEEP:
            continue
        held = state.optimizer.get(network, {})
        states[network] = {
            name: _where(
                moved(made[network], position),
                lambda name=name, network=network: fresh_moments(state, network, name, made[network].stage(name)),
                held[name],
            )
            for position, name in enumerate(made[network].names)
            if name in held
        }
    return rebuilt(state, made, states)


def _where(chosen: bool | Array, new: Callable, old):
    if isinstance(chosen, jax.Array):
        return select(chosen, new(), old)
    return new() if chosen else old


def _of(saved: Saved, name: str, leader: str) -> Network:
    """What the save kept of the network called `name`, or of the one it follows."""
    for each in (name, leader):
        if each in saved:
            return saved[each]
    raise KeyError(f"the save has no network {name!r}; it has {', '.join(saved)}")


def _head_in_use(made: Network, before: Network) -> Network:
    heads = before.stages[-1]
    return use_head(made, heads.task.value) if isinstance(heads, Heads) else made


def _check_positions(network: Network, first: Position, last: Position, most: int) -> None:
    """ValueError unless 0 <= first <= last <= most, as far as they are known."""
    for position in (first, last):
        if isinstance(position, jax.Array):
            if position.ndim or not jnp.issubdtype(position.dtype, jnp.integer):
                raise ValueError(f"a stage number must be one integer, not {position.dtype} of shape {position.shape}")
        elif not 0 <= position <= most:
            raise ValueError(f"no stage number {position}; the stages are {', '.join(network.names)}, counted from 1")
    if isinstance(first, int) and isinstance(last, int) and first > last:
        raise ValueError(f"stages {first + 1} to {last} are none; first must not be beyond last")


def _taken(network: Network, other: Network, first: Position, last: Position) -> Network:
    """`network` with the stages at first <= position < last of `other`."""
    exchanged = {}
    for position, name in enumerate(network.names):
        chosen = (first <= position) & (position < last)
        if isinstance(chosen, jax.Array):
            exchanged[name] = select(chosen, _alike(other, network, name), network.stage(name))
        elif chosen:
            exchanged[name] = _alike(other, network, name)
    return network.replace(**exchanged)


def _alike(other: Network, network: Network, name: str) -> Layer:
    return like(other.stage(name), network.stage(name), f"stage {name!r}")


@dataclass(frozen=True)
class Splice(Intervention):
    """`splice` as an intervention: extractor, tunnel and head are names of saves, None for the network as it is."""

    extractor: str | None
    tunnel: str | None
    stage: int
    head: str | None = None
    networks: tuple[str, ...] = ONLINE
    moments: Moments = Moments.FRESH

    @property
    def saves(self) -> tuple[str, ...]:
        """The saves it reads."""
        return tuple(dict.fromkeys(name for name in (self.extractor, self.tunnel, self.head) if name is not None))

    def __call__(self, state, key, context=EMPTY):
        def read(name: str | None) -> Saved | None:
            return None if name is None else context.require_saved(name)

        return splice(
            state,
            key,
            extractor=read(self.extractor),
            tunnel=read(self.tunnel),
            stage=self.stage,
            head=read(self.head),
            networks=self.networks,
            moments=self.moments,
        )


@dataclass(frozen=True)
class Restore(Intervention):
    """`restore` as an intervention: stages first + 1 to `last` (None: all) as the save of this name has them."""

    save: str
    first: int = 0
    last: int | None = None
    networks: tuple[str, ...] = ONLINE
    moments: Moments = Moments.FRESH

    @property
    def saves(self) -> tuple[str, ...]:
        """The save it reads."""
        return (self.save,)

    def __call__(self, state, key, context=EMPTY):
        return restore(
            state,
            key,
            saved=context.require_saved(self.save),
            first=self.first,
            last=self.last,
            networks=self.networks,
            moments=self.moments,
        )


@dataclass(frozen=True)
class UseHead(Intervention):
    """Answer with the head of another task: for looking back; `Switch` does it by itself when a task begins.

    task: position in the stream. A network with one head stays as it is.
    """

    task: int
    networks: tuple[str, ...] = ONLINE

    def __call__(self, state: LearnerState, key: PRNGKeyArray | None, context: Context = EMPTY) -> LearnerState:
        del key
        named = [n for network in selected(state, self.networks) for n in (network, *followers(state, network))]
        return rebuilt(state, {name: use_head(state.networks[name], self.task) for name in named}, {})
