"""The compiled programs of a pack: lanes by vmap, data as arguments, one program for each structure and batch shape.

Every program rebuilds the learner from the lane's traced configuration fields, so runs that differ only in numbers
share it. Only `chunk` donates its state.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, PRNGKeyArray, PyTree

from neoteny.interventions import Context, Intervention
from neoteny.lab.configs import canonical, structure, traced_view
from neoteny.learners.learner import Batch, Learner, LearnerState, attach, detach
from neoteny.networks.network import Network
from neoteny.probes.measurement import ViewProbe
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask
from neoteny.tasks.experience import as_network_sees, network_input
from neoteny.tasks.replay import as_observation, as_observations
from neoteny.tasks.sources import DataArrays, Given, TaskArrays, take_batch
from neoteny.tasks.streams import Transform
from neoteny.training.clock import Clock
from neoteny.training.events import Reached
from neoteny.training.keys import Purpose, named_key, root_key


class Lanes(NamedTuple):
    """What makes the lanes of a pack differ: values (field -> (lanes,)) and their seeds (lanes,)."""

    values: Mapping[str, Array | np.ndarray]
    seeds: Int32[Array, " lanes"] | Int32[np.ndarray, " lanes"]


class PackState(NamedTuple):
    """Everything a pack computes with; every leaf has a leading lane axis.

    source: what the task's source keeps, None before the first task. last_finite: the networks at the last check that
    found them finite. totals: sums of the training metrics since the last record, over `counted` updates. taken:
    updates of this `Train`; streak: successive batches that met its condition; held: lanes that met it.
    """

    learner: LearnerState
    source: Any
    last_finite: dict[str, Network]
    totals: dict[str, Array]
    counted: Int32[Array, " lanes"] | Int32[np.ndarray, " lanes"]
    taken: Int32[Array, " lanes"] | Int32[np.ndarray, " lanes"]
    streak: Int32[Array, " lanes"] | Int32[np.ndarray, " lanes"]
    held: Bool[Array, " lanes"] | Bool[np.ndarray, " lanes"]


Bank = Mapping[str, dict[str, Network]]
"""Save -> the networks it kept, every array with a leading lane axis."""


def acting(learner: LearnerState) -> LearnerState:
    """What a learner acts with where environments are on the host: its networks but those that follow others."""
    following = {name for name, _ in learner.followers}
    return LearnerState({name: net for name, net in learner.networks.items() if name not in following}, {})


def together(leading: LearnerState, state: PackState) -> PackState:
    """The state from which `apart` took these networks."""
    learner = state.learner
    networks = {**learner.networks, **leading.networks}
    return state._replace(
        learner=LearnerState(networks, learner.optimizer, learner.memory, learner.followers, learner.origin)
    )


def apart(state: PackState) -> tuple[LearnerState, PackState]:
    """The networks that act, which must outlive the next update, and all else."""
    learner = state.learner
    leading = acting(learner)
    rest = {name: network for name, network in learner.networks.items() if name not in leading.networks}
    return leading, state._replace(
        learner=LearnerState(rest, learner.optimizer, learner.memory, learner.followers, learner.origin)
    )


def _strong(tree: PyTree) -> PyTree:
    """The same arrays without weak types: a stored and reloaded state then has the very same types."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_array(x) else x, tree)


def _select(choose: Array | np.ndarray, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(choose, a, b) if eqx.is_array(a) else a, yes, no)


def _copy(tree: PyTree) -> PyTree:
    """The same values in arrays of their own, which a program that donates the others leaves alone."""
    return jax.tree.map(jnp.copy, tree)


def _lane(tree: PyTree, lane) -> PyTree:
    """One lane of a tree with a leading lane axis."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, lane, keepdims=False), tree)


def _lanes(tree: PyTree, first, count: int) -> PyTree:
    """A tree of `count` lanes from the `first` on."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, count), tree)


def _put(tree: PyTree, one: PyTree, lane) -> PyTree:
    """The tree with one lane exchanged."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, lane, 0), tree, one)


def _all_finite(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _batch(data: DataArrays | None, shown: Transform | EnvironmentTask, drawn: PyTree, rows) -> Any:
    """One lane's rows to look at: of the data set as the task shows it, or of experience drawn before."""
    if isinstance(shown, Transform):
        assert data is not None
        return take_batch(data, shown, drawn, rows)
    return jax.tree.map(lambda x: x[rows] if x.ndim else x, drawn)


def given(shown: EnvironmentTask, data: DataArrays | None, drawn: PyTree) -> EnvironmentTask:
    """The task with its environment's arrays and a lane's draw."""
    if not isinstance(shown.environment, DeviceEnvironment):
        return shown
    return replace(shown, environment=shown.environment.given(data, drawn))


def _map_lanes(function: Callable, *mapped):
    """vmap on accelerators; on a CPU one lane after another, as fast for large work and with the memory of one lane."""
    if jax.default_backend() != "cpu" or jax.tree.leaves(mapped)[0].shape[0] == 1:
        return jax.vmap(function)(*mapped)
    return jax.lax.map(lambda lane: function(*lane), mapped)


class Programs:
    """The jitted functions of one pack. Arrays only go in and out; what they close over is static."""

    def __init__(self, make_learner: Callable[[Any], Learner], config: Any, source: Any):
        self._make_learner = make_learner
        self._config = config
        self._source = source
        self.init = jax.jit(self._init)
        self.switch = jax.jit(self._switch, static_argnames=("transform",))
        self.step = jax.jit(self._step_lane, static_argnames=("transform", "until"), donate_argnums=0)
        self.follow = jax.jit(self._follow_lane, static_argnames=("transform",), donate_argnums=0)
        self.learn = jax.jit(self._learn_lane, static_argnames=("until",), donate_argnums=1)
        self.learn_all = jax.jit(self._learn_all, static_argnames=("until",), donate_argnums=1)
        self.act = jax.jit(self._act_lane)
        self.act_all = jax.jit(jax.vmap(self._act_lane, in_axes=(0, 0, 0, 0, None)))
        self.seen = jax.jit(jax.vmap(lambda batch: as_network_sees(as_observations(batch))))
        self.chunk = jax.jit(self._chunk, static_argnames=("transform", "until"), donate_argnums=0)
        self.check = jax.jit(self._check)
        self.copy = jax.jit(_copy)
        self.lane = jax.jit(_lane)
        self.lanes = jax.jit(_lanes, static_argnames=("count",))
        self.put = jax.jit(_put, donate_argnums=0)
        self.substitute = jax.jit(self._substitute)
        self.draw = jax.jit(self._draw, static_argnames=("transform",))
        self.score = jax.jit(self._score, static_argnames=("transform",))
        self.experience = jax.jit(self._experience, static_argnames=("transform", "count"))
        self.play = jax.jit(self._play, static_argnames=("transform", "episodes"))
        self.features = jax.jit(self._features, static_argnames=("transform", "stages"))
        self.targets = jax.jit(self._targets, static_argnames=("transform",))
        self.view_probe = jax.jit(self._view_probe, static_argnames=("transform", "probe"))
        self.intervene = jax.jit(self._intervene, static_argnames=("transform", "intervention", "when"))

    def learner(self, values: Mapping[str, Array | np.ndarray]) -> Learner:
        """The learner of one lane, inside a trace."""
        return self._make_learner(traced_view(self._config, values))

    # One lane -----------------------------------------------------------------------------------------------------

    def init_lane(self, values, seed) -> LearnerState:
        """A fresh learner state of one lane."""
        learner = self.learner(values)
        return _strong(detach(learner.init(named_key(root_key(seed), Purpose.INIT))))

    def update_lane(self, learner_state, batch, values, seed, task, task_update):
        """One update of one lane."""
        key = named_key(root_key(seed), Purpose.UPDATE, task, task_update)
        state, metrics = self.learner(values).update(learner_state, batch, key)
        return detach(state), metrics

    def _next(self, learner: LearnerState, source, values, seed, task: Given, clock: Clock, transform):
        """A lane's source after the next batch, the batch, and the environment steps that took."""
        assert source is not None, "Train comes after Switch"
        key = named_key(root_key(seed), Purpose.BATCH, clock.task, clock.task_update)
        if isinstance(transform, Transform):
            assert isinstance(task, TaskArrays)
            source, batch = self._source.next(source, task, transform, clock.task_update, key)
            return source, batch, jnp.zeros((), jnp.int32)
        assert not isinstance(task, TaskArrays)
        playing = given(transform, task, source.drawn)
        source, batch, cost = self._source.next(source, playing, self._acting(learner, values), clock, key)
        return source, batch, jnp.asarray(cost, jnp.int32)

    def _acting(self, learner_state: LearnerState, values) -> Callable[[Array, PRNGKeyArray], Array]:
        """The lane's policy: act(observations, key) -> actions."""
        act = self.learner(values).act
        if act is None:
            raise ValueError("this learner gives no actions, so it cannot be trained in an environment")
        return lambda observations, key: act(learner_state, observations, key)

    def _step_lane(
        self, state: PackState, values, seed, task: Given, clock: Clock, transform, until: Reached | None
    ) -> tuple[PackState, Array]:
        """One lane's next batch and update, and the environment steps they took."""
        source, batch, cost = self._next(state.learner, state.source, values, seed, task, clock, transform)
        # The source follows the shared clock, whether the lane is held or not.
        return self._learned(state, batch, values, seed, clock, cost, until)._replace(source=source), cost

    def _learned(
        self, state: PackState, batch: Any, values, seed, clock: Clock, cost, until: Reached | None
    ) -> PackState:
        """A lane after an update from this batch, which took so many environment steps; the source as it was."""
        learner, metrics = self.update_lane(state.learner, batch, values, seed, clock.task, clock.task_update)
        periodic = self.learner(values).periodic
        if periodic is not None:
            learner = detach(periodic(learner, clock.tick(cost)))
        totals = {name: state.totals[name] + metrics[name] for name in state.totals}
        new = state._replace(learner=learner, totals=totals, counted=state.counted + 1, taken=state.taken + 1)
        if until is None:
            return new
        value = metrics[until.metric]
        met = value <= until.threshold if until.falling else value >= until.threshold
        streak = jnp.where(met, state.streak + 1, 0)
        # A held lane keeps its state.
        return _select(state.held, state, new)._replace(
            streak=jnp.where(state.held, state.streak, streak), held=state.held | (streak >= until.window)
        )

    def _learn_lane(
        self, leading: LearnerState, state: PackState, batch: Any, values, seed, clock: Clock, cost, until
    ) -> PackState:
        """A lane after an update from a batch of stacks of frames as stored, without its source.

        `leading` are the networks that act (see `acting`), `state` has all else.
        """
        seen = as_network_sees(as_observations(batch))
        return self._learned(together(leading, state), seen, values, seed, clock, cost, until)

    def _learn_all(
        self, leading: LearnerState, state: PackState, batch: Any, lanes: Lanes, clock: Clock, cost, until
    ) -> PackState:
        """The same of all lanes at once."""

        def lane(leading, state, batch, values, seed):
            return self._learn_lane(leading, state, batch, values, seed, clock, cost, until)

        return jax.vmap(lane)(leading, state, batch, lanes.values, lanes.seeds)

    def _act_lane(self, leading: LearnerState, frames, values, seed, counters) -> Array:
        """Actions (envs,) of one lane for stacks of frames as stored; the key is made from the counters (some,)."""
        key = root_key(seed)
        for counter in counters:
            key = jax.random.fold_in(key, counter)
        return self._acting(leading, values)(network_input(as_observation(frames)), key)

    def _follow_lane(self, state: PackState, values, seed, task: Given, clock: Clock, transform):
        """A lane that is held through one update of the others: its source follows the shared clock."""
        source, _, cost = self._next(state.learner, state.source, values, seed, task, clock, transform)
        return state._replace(source=source), cost

    # Packs --------------------------------------------------------------------------------------------------------

    def _init(self, lanes: Lanes) -> PackState:
        learner = jax.vmap(self.init_lane)(lanes.values, lanes.seeds)
        count = lanes.seeds.shape[0]
        zeros = jnp.zeros(count, jnp.int32)
        return PackState(
            learner=learner,
            source=None,
            last_finite=learner.networks,
            totals={},
            counted=zeros,
            taken=zeros,
            streak=zeros,
            held=jnp.zeros(count, bool),
        )

    def draw_lane(self, seed, data: DataArrays | None, draw, transform: Transform | EnvironmentTask) -> PyTree:
        """One lane's draw of the task numbered `draw`."""
        key = named_key(root_key(seed), Purpose.DATA, draw)
        if isinstance(transform, Transform):
            assert data is not None
            return transform.draw(key, data.targets, data.inputs[0].size)
        environment = transform.environment
        return environment.draw(key, data) if isinstance(environment, DeviceEnvironment) else ()

    def batch_lane(self, seed, data: DataArrays, transform: Transform, size: int) -> Batch:
        """A batch of one lane's task, for shapes and costs."""
        return take_batch(data, transform, self.draw_lane(seed, data, 0, transform), jnp.zeros(size, jnp.int32))

    def _switch(self, learner: LearnerState, lanes: Lanes, task: Given, draw, clock: Clock, transform):
        def lane(learner_state, values, seed):
            root = root_key(seed)
            key = named_key(root, Purpose.SWITCH, clock.task)
            learner = self.learner(values)
            switched = learner.switch(attach(learner_state, learner), clock.task, None, key)
            if isinstance(transform, Transform):
                source = self._source.init(task, transform, named_key(root, Purpose.DATA, draw))
            elif self._source.compiled:
                assert not isinstance(task, TaskArrays)
                drawn = self.draw_lane(seed, task, draw, transform)
                key = named_key(root, Purpose.ENVIRONMENT, clock.task)
                source = self._source.init(given(transform, task, drawn), key, drawn)
            else:
                source = None  # emulators and their replay are no part of any program
            return detach(switched), source

        return _strong(jax.vmap(lane)(learner, lanes.values, lanes.seeds))

    def _chunk(
        self, state: PackState, lanes: Lanes, task: Given, clock: Clock, steps, alive, transform, until
    ) -> tuple[PackState, Array, Array]:
        """At most `steps` updates; with `until`, none once every lane that is alive is held.

        The state, how many updates they were, and how many environment steps.
        """

        def gather(learner, source, values, seed, clock):
            return self._next(learner, source, values, seed, task, clock, transform)

        def learn(rest, batch, values, seed, clock, cost):
            return self._learned(rest, batch, values, seed, clock, cost, until)

        # The learner of a pack of one lane has no axis of lanes in the loop: with it XLA:CPU turns matrices over before
        # it multiplies them. A source keeps its axis: without it its ring would be copied at every update.
        alone, own = lanes.seeds.shape[0] == 1, (lanes.values, lanes.seeds)
        # What a batch costs is the same in every lane, as the clock is.
        gathered = jax.vmap(gather, in_axes=(None if alone else 0, 0, 0, 0, None), out_axes=(0, 0, None))
        learned = jax.vmap(learn, in_axes=(0, 0, 0, 0, None, None))

        def body(carry):
            rest, source, clock, index = carry
            # The source follows the shared clock, whether a lane is held or not.
            source, batch, cost = gathered(rest.learner, source, *own, clock)
            if alone:
                batch, values, seed = _lane((batch, *own), 0)
                rest = learn(rest, batch, values, seed, clock, cost)
            else:
                rest = learned(rest, batch, *own, clock, cost)
            return rest, source, clock.tick(cost), index + 1

        def unfinished(carry):
            rest, _, _, index = carry
            more = index < steps
            return more if until is None else more & jnp.any(alive & ~rest.held)

        rest = state._replace(source=None)
        begun = (_lane(rest, 0) if alone else rest, state.source, clock, jnp.zeros((), jnp.int32))
        rest, source, after, done = jax.lax.while_loop(unfinished, body, begun)
        rest = jax.tree.map(lambda x: x[None], rest) if alone else rest
        return rest._replace(source=source), done, after.env_step - clock.env_step

    def _check(self, networks, last_finite, alive: Array) -> tuple[dict[str, Network], Array]:
        """`last_finite` brought up to date, and which lanes are (still) finite."""

        def lane(networks, last, alive):
            finite = alive & _all_finite(networks)
            return _select(finite, networks, last), finite

        return jax.vmap(lane)(networks, last_finite, alive)

    def _substitute(self, state: PackState, alive: Array) -> LearnerState:
        """The learner states with the last finite networks in the lanes that are not alive."""
        networks = jax.vmap(_select)(alive, state.learner.networks, state.last_finite)
        return eqx.tree_at(lambda s: s.networks, state.learner, networks)

    def _draw(self, lanes: Lanes, data: DataArrays | None, draw, transform: Transform | EnvironmentTask) -> PyTree:
        return jax.vmap(lambda seed: self.draw_lane(seed, data, draw, transform))(lanes.seeds)

    def score_lane(self, learner_state, values, batch: Batch) -> dict[str, Array]:
        """Scores (batch,) of one lane's predictions."""
        learner = self.learner(values)
        return learner.score(learner.predict(learner_state, batch.inputs), batch.targets)

    def _score(self, learner_states, lanes: Lanes, drawn, data: DataArrays | None, rows, weights, transform: Transform):
        """Sums over the rows, each weighted: {metric: (lanes,)}."""

        def lane(learner_state, values, drawn):
            scores = self.score_lane(learner_state, values, _batch(data, transform, drawn, rows))
            return {name: jnp.sum(score * weights) for name, score in scores.items()}

        return jax.vmap(lane)(learner_states, lanes.values, drawn)

    def _experience(
        self, source, lanes: Lanes, data: DataArrays | None, clock: Clock, transform: EnvironmentTask, count: int
    ):
        """Every lane's experience to look at: `count` transitions of its replay."""

        def lane(source, seed):
            key = named_key(root_key(seed), Purpose.PROBE, clock.update, zlib.crc32(b"experience"))
            return self._source.sample(source, given(transform, data, source.drawn), clock, key, count)

        return _strong(jax.vmap(lane)(source, lanes.seeds))

    def _play(
        self,
        learner_states,
        lanes: Lanes,
        drawn,
        data: DataArrays | None,
        update,
        transform: EnvironmentTask,
        episodes: int,
    ):
        """Scores of every lane in episodes of its own: {metric: (lanes,)}."""

        def lane(learner_state, values, seed, drawn):
            key = named_key(root_key(seed), Purpose.EVALUATE, update)
            playing = given(transform, data, drawn)
            return self._source.evaluate(playing, self._acting(learner_state, values), key, episodes)

        return jax.vmap(lane)(learner_states, lanes.values, lanes.seeds, drawn)

    def features_lane(self, learner_state, values, batch: Batch) -> dict[str, Array]:
        """Every stage's output of one lane."""
        view = self.learner(values).view(learner_state)
        return view.features(view.network, batch.inputs)

    def _features(
        self, learner_states, lanes: Lanes, drawn, data: DataArrays | None, rows, transform, stages: tuple[str, ...]
    ):
        def lane(learner_state, values, drawn):
            outputs = self.features_lane(learner_state, values, _batch(data, transform, drawn, rows))
            return {name: outputs[name] for name in stages}

        return jax.vmap(lane)(learner_states, lanes.values, drawn)

    def _targets(self, lanes: Lanes, drawn, data: DataArrays, rows, transform: Transform):
        """Every lane's targets of these rows: (lanes, rows, ...)."""
        # Over the seeds too: some transforms draw nothing, and then only they say how many lanes there are.
        return jax.vmap(lambda _, drawn: take_batch(data, transform, drawn, rows).targets)(lanes.seeds, drawn)

    def view_probe_lane(
        self, probe: ViewProbe, learner_state, values, seed, batch: Batch, update, saved
    ) -> dict[str, Any]:
        """What a view probe measures on one lane; `saved` holds the networks it asks for."""
        learner = self.learner(values)
        key = named_key(root_key(seed), Purpose.PROBE, update, zlib.crc32(probe.name.encode()))
        view = learner.view(attach(learner_state, learner))
        return dict(probe.function(view, batch, key, saved) if probe.saves else probe.function(view, batch, key))

    def _view_probe(
        self,
        learner_states,
        lanes: Lanes,
        drawn,
        saved,
        data: DataArrays | None,
        rows,
        update,
        transform,
        probe: ViewProbe,
    ):
        def lane(learner_state, values, seed, drawn, saved):
            batch = _batch(data, transform, drawn, rows)
            return self.view_probe_lane(probe, learner_state, values, seed, batch, update, saved)

        return _map_lanes(lane, learner_states, lanes.values, lanes.seeds, drawn, saved)

    def intervene_lane(
        self,
        intervention: Intervention,
        when: Callable | None,
        learner_state: LearnerState,
        values,
        seed,
        batch: Batch | None,
        number,
        saved,
    ) -> LearnerState:
        """One lane after the intervention, the `number`-th on its way; `saved` holds the networks it asks for."""
        learner = self.learner(values)
        attached = attach(learner_state, learner)
        key = named_key(root_key(seed), Purpose.INTERVENTION, number)
        loss_key = named_key(root_key(seed), Purpose.PROBE, number)

        def loss(network: Network) -> Array:
            return learner.view(attached).loss(network, batch, loss_key)

        seen = Context(saved=saved) if batch is None else Context(inputs=batch.inputs, loss=loss, saved=saved)
        changed = detach(intervention(attached, key, seen))
        return changed if when is None else _select(when(attached), changed, learner_state)

    def _intervene(
        self,
        learner_states: LearnerState,
        lanes: Lanes,
        drawn,
        saved,
        data: DataArrays | None,
        rows,
        number,
        transform: Transform,
        intervention: Intervention,
        when: Callable | None,
    ) -> LearnerState:
        def lane(learner_state, values, seed, drawn, saved):
            batch = None if rows is None else _batch(data, transform, drawn, rows)
            return self.intervene_lane(intervention, when, learner_state, values, seed, batch, number, saved)

        return _strong(jax.vmap(lane)(learner_states, lanes.values, lanes.seeds, drawn, saved))


_made: OrderedDict[tuple, Programs] = OrderedDict()
_KEPT = 8
"""Structures whose programs are kept: packs of one structure come one after another."""


def programs_for(make_learner: Callable[[Any], Learner], config: Any, source: Any) -> Programs:
    """The programs of this structure; packs that differ only in lane fields share them, compiled once."""
    place = (make_learner, type(config), canonical(structure(config)), source)
    programs = _made.pop(place, None) or Programs(make_learner, config, source)
    _made[place] = programs
    while len(_made) > _KEPT:
        _made.popitem(last=False)
    return programs
