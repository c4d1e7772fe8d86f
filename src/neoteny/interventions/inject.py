"""Plasticity injection: fresh trainable parameters without a change of predictions (Nikishin et al. 2023).

The head h_theta is frozen; a fresh draw theta' is added twice, once trained and once frozen and subtracted:
Q(x) = h_theta(z) + [h_theta'1(z) - h_theta'2(z)]. Outputs, the gradient of the encoder and the number of trained
parameters stay as they were (section 3 of the paper). Gradients reach the encoder through all three heads.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from neoteny.interventions.draws import followers, fresh_moments, fresh_network, like, select, selected
from neoteny.interventions.intervention import EMPTY, Intervention
from neoteny.interventions.reset import ONLINE
from neoteny.learners.learner import LearnerState
from neoteny.networks.dense import Dense
from neoteny.networks.heads import Heads
from neoteny.networks.initializers import named_key
from neoteny.networks.injected import Folded, Injected
from neoteny.networks.nature import SharedBias
from neoteny.networks.network import Chain, Frozen, Layer, Maker, Network, Statistic, as_network, split_trainable

MomentsName = Literal["fresh", "inherit", "reset_all"]


class InjectedMoments(enum.Enum):
    """What optimiser state the new head begins with. The encoder's goes on, but for `RESET_ALL`."""

    FRESH = "fresh"
    """Zero moments and a count of its own, so that bias correction begins again with them."""
    INHERIT = "inherit"
    """Moments and count of the head it takes over from."""
    RESET_ALL = "reset_all"
    """An ablation: everything begins again, the encoder's state too."""


class Variant(enum.Enum):
    """The intervention of the paper, and ablations of it."""

    INJECT = "inject"
    """Only theta'_1 is trained."""
    PLACEBO = "placebo"
    """The pair is added, but theta goes on being trained and the pair is frozen: a control up to rounding."""
    TRAIN_ALL = "train_all"
    """All three heads are trained, from fresh optimiser state."""
    STOP_Z = "stop_z"
    """No gradient goes to the encoder through theta'_2: wrong on purpose."""


def inject(
    state: LearnerState,
    key: PRNGKeyArray,
    *,
    stage: str | int,
    networks: Sequence[str] = ONLINE,
    moments: InjectedMoments | MomentsName = InjectedMoments.FRESH,
    variant: Variant = Variant.INJECT,
    freeze_encoder: bool = False,
    maker: Maker | None = None,
) -> LearnerState:
    """Freeze the head from `stage` on and add a fresh pair, in each of the networks and, by the same draw, in its
    followers.

    stage: name or position of the head's first stage; 0 injects the whole network. The stages keep their names; the
    output of a head's stage has then the units of all heads, one after another. Again at the same stage, a further
    pair is added; at an earlier one, the whole head so far is frozen. moments: of the new head. freeze_encoder: the
    stages before the head are trained no more (an ablation). maker: what the new head is drawn from, if it is to be
    another than the learner's own: a network with stages of the same names from `stage` on, for growing; only the
    output's shape must agree, and only equal shapes can `inherit`.

    Where pairs were allocated by `prepare_injection`, one of them is put in force and structure stays as it is, so
    `Intervene(..., when=...)` may inject lanes at different times. A lane with no pair left stays as it is.

    A stage the learner keeps frozen has no optimiser state and gets none. KeyError for unknown names; ValueError
    without an origin, for a stage inside a head injected before, and where shapes do not allow what is asked.
    """
    moments = InjectedMoments(moments)
    if variant is Variant.PLACEBO and moments is not InjectedMoments.FRESH:
        raise ValueError("a placebo goes on with the optimiser state there is; leave moments out")
    changes = {}
    for network in selected(state, networks):
        online = state.networks[network]
        split = _position(online, stage)
        head, again, gated = online.names[split:], *_standing(online.stages[split])
        if gated and (variant is not Variant.INJECT or freeze_encoder):
            raise ValueError(
                "a pair allocated by prepare_injection takes part in no ablation; inject without preparing"
            )
        fresh = _drawn(state, key, network, head, maker)
        encoder = () if not freeze_encoder else online.names[:split]
        made, states = {}, dict(state.optimizer.get(network, {}))
        for name in (network, *followers(state, network)):
            old = state.networks[name]
            stages = {
                n: _next_slot(old.stage(n), fresh.stage(n), n)
                if gated
                else _opened(old.stage(n), fresh.stage(n), n, head, again, variant)
                for n in head
            }
            made[name] = old.replace(**stages, **{n: _frozen(old.stage(n)) for n in encoder})
        for name in (n for n in head if n in states):
            before, after = online.stage(name), made[network].stage(name)
            begun = _moments(state, network, name, after, variant, moments)
            states[name] = select(_has_room(before), begun, states[name]) if gated else begun
        for name in (n for n in online.names[:split] if n in states):
            if name in encoder:
                del states[name]
            elif moments is InjectedMoments.RESET_ALL:
                begun = fresh_moments(state, network, name, online.stage(name))
                states[name] = select(_has_room(online.stages[split]), begun, states[name]) if gated else begun
        changes[network] = (made, states, () if gated else (*encoder, *head))
    return _changed(state, changes)


def prepare_injection(
    state: LearnerState, *, stage: str | int, networks: Sequence[str] = ONLINE, slots: int = 1
) -> LearnerState:
    """Allocate pairs for later injections at `stage`; until one is in force nothing is computed differently.

    Then injecting changes no structure, and lanes of one program may inject at different times, `slots` times each.
    A pair not in force is in no update, decay or norm.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    changes = {}
    for network in selected(state, networks):
        online = state.networks[network]
        split = _position(online, stage)
        head = online.names[split:]
        for name in head:
            if isinstance(online.stage(name), Injected | Folded):
                raise ValueError(f"stage {name!r} is injected or prepared already; prepare before, with enough slots")
        made, states = {}, dict(state.optimizer.get(network, {}))
        for name in (network, *followers(state, network)):
            old = state.networks[name]
            made[name] = old.replace(**{n: _prepared(old.stage(n), n, head, slots) for n in head})
        for name in (n for n in head if n in states):
            states[name] = _carried(state, network, name, made[network].stage(name))
        changes[network] = (made, states, head)
    return _changed(state, changes)


def fold_linear(state: LearnerState, *, networks: Sequence[str] = ONLINE) -> LearnerState:
    """Collapse the frozen heads of purely linear injected heads into one, exactly: a matrix theta + sum of the
    positives but the newest - sum of the negatives. Followers too.

    A head whose outputs share one bias is folded too. ValueError where the last stage is not an injected linear head by
    itself (a head of several stages is no linear function, nor are pairs that are not yet in force).
    """
    changes = {}
    for network in selected(state, networks):
        name = state.networks[network].names[-1]
        made = {
            n: state.networks[n].replace(**{name: _folded(state.networks[n].stage(name), name)})
            for n in (network, *followers(state, network))
        }
        states = dict(state.optimizer.get(network, {}))
        if name in states:
            states[name] = _carried(state, network, name, made[network].stage(name))
        changes[network] = (made, states, (name,))
    return _changed(state, changes)


# Stages -----------------------------------------------------------------------------------------------------------


def _position(network: Network, stage: str | int) -> int:
    """The position of the head's first stage."""
    if isinstance(stage, str):
        position = network.index(stage)
    elif isinstance(stage, int | np.integer) and not isinstance(stage, bool):
        if not -len(network.names) <= stage < len(network.names):
            raise ValueError(f"no stage number {stage}; the stages are {', '.join(network.names)}")
        position = int(stage) % len(network.names)
    else:
        raise TypeError(f"stage must be a stage's name or its position, not {stage!r}")
    if isinstance(network.stages[-1], Heads):
        raise ValueError(
            "a network with a head for each task cannot be injected: the heads of a pair do not follow tasks"
        )
    opened = network.stages[position]
    if isinstance(opened, Injected) and not opened.opens:
        opening = (n for n, s in zip(network.names, network.stages, strict=True) if isinstance(s, Injected) and s.opens)
        first = next(opening)
        raise ValueError(
            f"stage {network.names[position]!r} lies inside a head injected at {first!r}; inject there or before"
        )
    return position


def _standing(opened: Layer) -> tuple[bool, bool]:
    """Whether the head that this stage opens is injected already, and whether in pairs allocated beforehand."""
    return isinstance(opened, Injected), isinstance(opened, Injected) and opened.active is not None


def _has_room(layer: Any) -> Bool[Array, ""]:
    return layer.active.value < len(layer.negatives)


def _drawn(state: LearnerState, key: PRNGKeyArray, network: str, head: tuple[str, ...], maker: Maker | None) -> Network:
    """A draw of its own: no other intervention, and no initialisation, gets it from the same key."""
    key = named_key(key, "inject")
    if maker is None:
        return fresh_network(state, key, network)
    fresh = as_network(maker(named_key(key, network)))
    there = fresh.names[fresh.index(head[0]) :]
    if there != head:
        raise ValueError(f"the new head must have the stages {', '.join(head)}; its maker gives {', '.join(there)}")
    return fresh


def _innermost(layer: Layer) -> Layer:
    """The newest head's layer, whatever was injected or frozen."""
    while True:
        if isinstance(layer, Injected):
            layer = layer.heads[-1]
        elif isinstance(layer, Frozen):
            layer = layer.layer
        elif isinstance(layer, Folded):
            layer = layer.last
        else:
            return layer


def _shaped(fresh: Layer, stage: Layer) -> Layer:
    """`fresh` in the structure and types of the newest head's layer, or, where it is another size, in its types."""
    old = _innermost(stage)
    arrays, drawn = (jax.tree.leaves(eqx.filter(layer, eqx.is_array)) for layer in (old, fresh))
    if [a.shape for a in arrays] == [a.shape for a in drawn]:
        return like(fresh, old, "the new head")
    kinds = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    kind = jnp.result_type(*kinds) if kinds else None
    return jax.tree.map(
        lambda a: (
            jax.lax.convert_element_type(a, kind if eqx.is_inexact_array(a) and kind is not None else a.dtype)
            if eqx.is_array(a)
            else a
        ),
        fresh,
    )


def _frozen(layer: Layer) -> Frozen:
    return layer if isinstance(layer, Frozen) else Frozen(layer)


def _copy(layer: Layer) -> Layer:
    """Arrays of their own: a program that donates its state must not be given one buffer twice."""
    return jax.tree.map(lambda a: jnp.copy(a) if eqx.is_array(a) else a, layer)


def _opened(stage: Any, fresh: Layer, name: str, head: tuple[str, ...], again: bool, variant: Variant) -> Injected:
    """The stage with one more pair; `again` if it has pairs of the same head."""
    heads, negatives = (stage.heads, stage.negatives) if again else ((stage,), ())
    shaped = _shaped(fresh, stage)
    positive, negative = _copy(shaped), _copy(shaped)
    opens, closes = name == head[0], name == head[-1]
    if variant is Variant.TRAIN_ALL:
        return Injected((*heads, positive), (*negatives, negative), None, opens, closes)
    if variant is Variant.PLACEBO:
        return Injected((*heads, Frozen(positive)), (*negatives, Frozen(negative)), None, opens, closes)
    negatives = (*map(_frozen, negatives), Frozen(negative))
    return Injected((*map(_frozen, heads), positive), negatives, None, opens, closes, variant is Variant.STOP_Z)


def _prepared(stage: Layer, name: str, head: tuple[str, ...], slots: int) -> Injected:
    """The stage with pairs that are not in force. What they hold is finite and otherwise means nothing."""
    heads = tuple(Frozen(_copy(stage)) for _ in range(slots))
    negatives = tuple(Frozen(_copy(stage)) for _ in range(slots))
    none = Statistic(jnp.zeros((), jnp.int32))
    return Injected((*heads, stage), negatives, none, name == head[0], name == head[-1])


def _next_slot(stage: Any, fresh: Layer, name: str) -> Injected:
    """A prepared stage with its next pair in force, or as it is if none is left."""
    active, *earlier = stage.active.value, *stage.heads[:-1]
    newest = stage.heads[-1]
    fresh = like(fresh, newest, f"the new head's stage {name!r} among prepared ones")
    heads = tuple(Frozen(select(i == active, newest, held.layer)) for i, held in enumerate(earlier))
    negatives = tuple(Frozen(select(i == active, fresh, held.layer)) for i, held in enumerate(stage.negatives))
    taken = jnp.minimum(active + 1, len(stage.negatives)).astype(active.dtype)
    trained = select(_has_room(stage), fresh, newest)
    return Injected((*heads, trained), negatives, Statistic(taken), stage.opens, stage.closes)


def _folded(stage: Layer, name: str) -> Folded:
    if not isinstance(stage, Injected) or not (stage.opens and stage.closes):
        raise ValueError(f"fold_linear: stage {name!r} is not an injected head by itself")
    if stage.active is not None or stage.detach or not isinstance(stage.negatives[-1], Frozen):
        raise ValueError(f"fold_linear: stage {name!r} has pairs not in force, or is an ablation")
    *heads, newest = stage.heads
    terms = [(1, head) for head in heads] + [(-1, negative) for negative in stage.negatives]
    constants = [(sign, _linear(layer, name)) for sign, layer in terms]
    first = constants[0][1]
    parameters = [(sign, (dense.weight, dense.bias)) for sign, dense in constants]
    total = jax.tree.map(
        lambda *arrays: sum(s * a for (s, _), a in zip(parameters, arrays, strict=True)), *(p for _, p in parameters)
    )
    dense = eqx.tree_at(lambda d: (d.weight, d.bias), first, total, is_leaf=lambda leaf: leaf is None)
    return Folded(Frozen(dense), newest)


def _linear(layer: Layer, name: str) -> Dense:
    """The layer as one dense map; a bias that all outputs share becomes one of each."""
    match layer:
        case Frozen():
            return _linear(layer.layer, name)
        case Dense():
            return layer
        case Chain(layers=(Dense() as dense, SharedBias(bias=shared))):
            bias = shared if dense.bias is None else dense.bias + shared
            spread = jnp.broadcast_to(bias, (dense.out_size,))
            return eqx.tree_at(lambda d: d.bias, dense, spread, is_leaf=lambda leaf: leaf is None)
        case Folded():
            one, other = _linear(layer.fixed, name), _linear(layer.last, name)
            return jax.tree.map(jnp.add, one, other)
    raise ValueError(
        f"fold_linear: stage {name!r} is made of {type(layer).__name__}, and only Dense is folded, alone or with a "
        "bias that its outputs share"
    )


# Optimiser state and memory ---------------------------------------------------------------------------------------


def _moments(
    state: LearnerState, network: str, name: str, stage: Layer, variant: Variant, moments: InjectedMoments
) -> PyTree:
    if variant is Variant.PLACEBO or (moments is InjectedMoments.INHERIT and variant is not Variant.TRAIN_ALL):
        return _carried(state, network, name, stage)
    if moments is InjectedMoments.INHERIT:
        raise ValueError("three heads cannot inherit the moments of one; use moments='fresh'")
    return _begun(state, network, stage)


def _begun(state: LearnerState, network: str, stage: Layer) -> PyTree:
    """Fresh optimiser state of a stage."""
    optimizers = state.require_origin().optimizers
    if network not in optimizers:
        raise KeyError(f"the origin has no optimiser for network {network!r}; it has them for {', '.join(optimizers)}")
    begun = optimizers[network].init(split_trainable(stage)[0])
    return jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype) if eqx.is_array(a) else a, begun)


def _carried(state: LearnerState, network: str, name: str, stage: Layer) -> PyTree:
    """The optimiser state the stage called `name` has, in the structure that `stage` needs."""
    held = state.optimizer[network][name]
    return like(held, _begun(state, network, stage), f"the optimiser state of the new head's stage {name!r}")


Change = tuple[dict[str, Network], dict[str, PyTree], tuple[str, ...]]
"""Networks (leader and followers), optimiser states of the leader, and the stages whose structure changed."""


def _changed(state: LearnerState, changes: dict[str, Change]) -> LearnerState:
    networks, optimizer = dict(state.networks), dict(state.optimizer)
    for network, (made, states, _) in changes.items():
        networks.update(made)
        if network in optimizer:
            optimizer[network] = states
    memory = state.memory
    remember = state.require_origin().memory
    if remember is not None and any(restructured for *_, restructured in changes.values()):
        memory = _remembered(memory, remember(networks), networks, changes)
    return LearnerState(networks, optimizer, memory, state.followers, state.origin)


def _remembered(old: PyTree, fresh: PyTree, networks: dict[str, Network], changes: dict[str, Change]) -> PyTree:
    """The memory in its new structure: as it was, but as of networks just made in stages whose structure changed.

    What belongs to a stage is known by its path: under the stage's name, or its place in a network.
    """
    names = {name for _, _, restructured in changes.values() for name in restructured}
    places = {networks[n].names.index(s) for n, (_, _, restructured) in changes.items() for s in restructured}

    def is_changed(path: tuple) -> bool:
        in_stages = False
        for entry in path:
            if isinstance(entry, jax.tree_util.DictKey) and entry.key in names:
                return True
            if in_stages and isinstance(entry, jax.tree_util.SequenceKey) and entry.idx in places:
                return True
            in_stages = isinstance(entry, jax.tree_util.GetAttrKey) and entry.name == "stages"
        return False

    kept = dict(jax.tree_util.tree_leaves_with_path(eqx.filter(old, eqx.is_array)))
    arrays, static = eqx.partition(fresh, eqx.is_array)
    return eqx.combine(
        jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if is_changed(path) else kept[path], arrays), static
    )


# As events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inject(Intervention):
    """`inject` as an intervention. Changes the structure of the state, except at stages prepared before."""

    stage: str | int
    networks: tuple[str, ...] = ONLINE
    moments: InjectedMoments = InjectedMoments.FRESH
    variant: Variant = Variant.INJECT
    freeze_encoder: bool = False
    maker: Maker | None = None

    def __call__(self, state, key, context=EMPTY):
        return inject(
            state,
            key,
            stage=self.stage,
            networks=self.networks,
            moments=self.moments,
            variant=self.variant,
            freeze_encoder=self.freeze_encoder,
            maker=self.maker,
        )


@dataclass(frozen=True)
class PrepareInjection(Intervention):
    """`prepare_injection` as an intervention. Changes the structure of the state."""

    stage: str | int
    networks: tuple[str, ...] = ONLINE
    slots: int = 1

    def __call__(self, state, key, context=EMPTY):
        del key
        return prepare_injection(state, stage=self.stage, networks=self.networks, slots=self.slots)


@dataclass(frozen=True)
class FoldLinear(Intervention):
    """`fold_linear` as an intervention. Changes the structure of the state."""

    networks: tuple[str, ...] = ONLINE

    def __call__(self, state, key, context=EMPTY):
        del key
        return fold_linear(state, networks=self.networks)


@dataclass(frozen=True)
class HeadNormAbove:
    """For `Intervene(Inject(...), when=...)`: the norm of the trained head's kernels exceeds `factor` times that of a
    fresh draw.

    A rule of this laboratory. The paper's appendix has a heuristic for the time of injection that may look at weight
    norms too; this is not claimed to be it.
    """

    stage: str | int
    factor: float = 2.0
    network: str = "online"

    def __call__(self, state: LearnerState) -> Bool[Array, ""]:
        online = state.networks[self.network]
        head = online.names[_position(online, self.stage) :]
        fresh = fresh_network(state, jax.random.key(0), self.network)
        now, drawn = (
            sum(
                jnp.sum(jnp.square(array))
                for name in head
                for array in jax.tree.leaves(split_trainable(_innermost(network.stage(name)))[0])
                if array.ndim >= 2
            )
            for network in (online, fresh)
        )
        return jnp.asarray(now > self.factor**2 * drawn)
