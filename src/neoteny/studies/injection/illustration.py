"""Q5: what losing plasticity looks like. Policies stored along the training of one MinAtar agent give regression tasks
(states and Monte-Carlo returns), learned one after another by one network, and each by a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray, PyTree

from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.descent import descend
from neoteny.learners.learner import Batch, View, init_stages
from neoteny.networks.network import Network, split_trainable
from neoteny.probes import ViewProbe
from neoteny.studies.games import Game, check_minatar, minatar_learner, minatar_source, minatar_stream
from neoteny.studies.injection.games import updates_of
from neoteny.tasks.environments import DeviceEnvironment, EnvironmentTask
from neoteny.tasks.experience import network_input
from neoteny.tasks.gymnax_environments import minatar
from neoteny.training.events import Event, Probe, Save, Switch, Train
from neoteny.training.keys import Purpose, named_key

THRESHOLDS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Losses whose first reaching is counted, as shares of the returns' variance; a claim reads one."""

TAIL = 400
"""Further steps played for the returns of those that are kept: 0.99^400 is 2 %."""

SMOOTHING = 0.95
"""Weight of the past in the running mean of minibatch losses."""


class Set(NamedTuple):
    """A regression set: states as stored (n, *shape), actions (n,), and returns (n,) of mean 0 and variance 1."""

    states: Bool[Array, "n ..."]
    actions: Int32[Array, " n"]
    returns: Float[Array, " n"]


@dataclass(frozen=True)
class IllustrationConfig:
    """One agent, its stored policies and the regressions."""

    game: Game = "breakout"
    frames: int = 1_000_000
    period: int = 1
    policies: int = 20
    states: int = 5_000  # of a regression set
    envs: int = 25  # side by side, in which a policy is played
    batch: int = 32
    updates: int = 1_000  # of a regression
    learning_starts: int = 5_000
    capacity: int = 100_000
    exploration: int = 100_000
    episodes: int = 10
    evaluation_limit: int = 10_000
    learning_rate: Lane[float] = 2.5e-4
    seed: Lane[int] = 0

    def __post_init__(self):
        check_minatar(self)
        for name in ("policies", "states", "envs", "batch", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.states % self.envs:
            raise ValueError(f"states ({self.states}) must be a multiple of envs ({self.envs})")
        if self.frames % (self.policies * self.period):
            raise ValueError(f"frames ({self.frames}) must be a multiple of policies times period ({self.policies})")


def monte_carlo(
    rewards: Float[Array, "time envs"], ended: Bool[Array, "time envs"], discount: float
) -> Float[Array, "time envs"]:
    """Discounted returns from every step on, to the end of its episode or of the stretch."""

    def back(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, over = step
        here = reward + discount * jnp.where(over, 0.0, after)
        return here, here

    return jax.lax.scan(back, jnp.zeros(rewards.shape[1]), (rewards, ended), reverse=True)[1]


def played(
    environment: DeviceEnvironment,
    network: Network,
    key: PRNGKeyArray,
    *,
    states: int,
    envs: int,
    epsilon: float,
    discount: float,
) -> Set:
    """States that a network's epsilon-greedy policy comes to, and the returns from there on."""

    def step(carry: tuple[PyTree, Array], at: Array) -> tuple[tuple[PyTree, Array], tuple[Array, ...]]:
        inner, frames = carry
        choose, other, world, new = jax.random.split(named_key(key, Purpose.EXPLORATION, at), 4)
        greedy = jnp.argmax(network(network_input(frames)).output, axis=1)
        anything = jax.random.randint(other, (envs,), 0, environment.specification.actions)
        actions = jnp.where(jax.random.uniform(choose, (envs,)) < epsilon, anything, greedy).astype(jnp.int32)
        inner, after = jax.vmap(environment.step)(inner, actions, jax.random.split(world, envs))
        ended = after.terminated | after.truncated
        again, first = jax.vmap(environment.reset)(jax.random.split(new, envs))

        def renewed(one: Array, two: Array) -> Array:
            return jnp.where(ended.reshape(-1, *[1] * (one.ndim - 1)), one, two)

        carry = jax.tree.map(renewed, again, inner), renewed(first, after.frame)
        return carry, (frames, actions, after.reward, ended)

    kept = states // envs
    begun = jax.vmap(environment.reset)(jax.random.split(named_key(key, Purpose.ENVIRONMENT), envs))
    _, (frames, actions, rewards, ended) = jax.lax.scan(step, begun, jnp.arange(kept + TAIL))
    returns = monte_carlo(rewards, ended, discount)[:kept].reshape(-1)
    scaled = (returns - jnp.mean(returns)) / jnp.maximum(jnp.std(returns), 1e-6)
    return Set(frames[:kept].reshape(-1, *frames.shape[2:]), actions[:kept].reshape(-1), scaled)


class Regression(NamedTuple):
    """A network that learns returns, and its optimiser's state by stage."""

    network: Network
    optimizer: dict[str, PyTree]


def begun(view: View, key: PRNGKeyArray) -> Regression:
    """A new network of the agent's kind."""
    network = view.maker(key)
    return Regression(network, init_stages(view.optimizer, network))


def fitted(
    view: View, start: Regression, data: Set, key: PRNGKeyArray, *, updates: int, batch: int
) -> tuple[Regression, Float[Array, " updates"]]:
    """After so many updates on the squared error of the action taken; and the minibatch losses."""
    rule = optax.identity()
    dynamic, static = eqx.partition(start, eqx.is_array)

    def one(held: Regression, at: Array) -> tuple[Regression, Array]:
        current = eqx.combine(held, static)
        rows = jax.random.randint(named_key(key, Purpose.BATCH, at), (batch,), 0, data.returns.shape[0])
        inputs, actions, returns = network_input(data.states[rows]), data.actions[rows], data.returns[rows]
        parameters, rest = split_trainable(current.network)

        def loss(parameters: Network) -> tuple[Array, Network]:
            result = eqx.combine(parameters, rest)(inputs, train=True, key=key)
            errors = jnp.take_along_axis(result.output, actions[:, None], axis=1)[:, 0] - returns
            return jnp.mean(jnp.square(errors)), result.network

        gradients, (value, called) = _with_value(loss, parameters)
        network, states, _ = descend(
            current.network, called, gradients, view.optimizer, current.optimizer, rule, rule.init(parameters)
        )
        return eqx.filter(Regression(network, states), eqx.is_array), value

    dynamic, losses = jax.lax.scan(one, dynamic, jnp.arange(updates))
    return eqx.combine(dynamic, static), losses


def _with_value(loss, parameters):
    (value, called), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
    return gradients, (value, called)


def smoothed(losses: Float[Array, " updates"]) -> Float[Array, " updates"]:
    """Running mean from the first loss on."""

    def one(mean: Array, loss: Array) -> tuple[Array, Array]:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        return mean, mean

    return jax.lax.scan(one, losses[0], losses)[1]


def updates_to(curve: Float[Array, " updates"], threshold: float) -> Int32[Array, ""]:
    """Number of the first update at or below the threshold; one more than there are if none is."""
    reached = curve <= threshold
    return jnp.where(jnp.any(reached), jnp.argmax(reached) + 1, curve.shape[0] + 1)


def save_name(number: int) -> str:
    """The save of the `number`-th policy, from 1."""
    return f"policy-{number}"


@dataclass(frozen=True)
class Regressions:
    """A view probe: the regressions on the policies' sets, in order, warm started and reset every time.

    Places are TASK/ARM/updates-THRESHOLD and TASK/ARM/loss; TASK is the policy's number.
    """

    game: Game
    policies: int
    states: int
    envs: int
    batch: int
    updates: int
    epsilon: float
    discount: float

    def __call__(self, view: View, batch: Batch, key: PRNGKeyArray, saved) -> dict[str, Array]:
        environment = minatar(self.game)
        fit = partial(fitted, view, updates=self.updates, batch=self.batch)
        policies = [saved[save_name(number)]["online"] for number in range(1, self.policies + 1)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(eqx.filter(p, eqx.is_array) for p in policies))
        rest = eqx.filter(policies[0], eqx.is_array, inverse=True)
        first = begun(view, jax.random.fold_in(key, 0))
        warm, static = eqx.partition(first, eqx.is_array)

        def task(warm: Regression, given: tuple[Network, Array]) -> tuple[Regression, dict[str, Array]]:
            policy, number = given
            play, learn, new = jax.random.split(jax.random.fold_in(key, number + 1), 3)
            data = played(
                environment, eqx.combine(policy, rest), play, states=self.states, envs=self.envs,
                epsilon=self.epsilon, discount=self.discount,
            )  # fmt: skip
            # Both see the same minibatches.
            after, losses = fit(eqx.combine(warm, static), data, learn)
            _, fresh = fit(begun(view, new), data, learn)
            return eqx.filter(after, eqx.is_array), {"warm": smoothed(losses), "reset": smoothed(fresh)}

        _, curves = jax.lax.scan(task, warm, (stacked, jnp.arange(self.policies)))
        found = {}
        for arm, curve in curves.items():
            for number in range(self.policies):
                place = f"{number + 1}/{arm}"
                found[f"{place}/loss"] = curve[number, -1]
                for threshold in THRESHOLDS:
                    found[f"{place}/updates-{threshold}"] = updates_to(curve[number], threshold)
        return found


def illustration_script(config: IllustrationConfig, tasks: tuple[EnvironmentTask, ...]) -> tuple[Event, ...]:
    """Store the policy at equal distances, then the regressions on all of them."""
    (task,) = tasks
    step = updates_of(config) // config.policies
    events: list[Event] = [Switch(task)]
    for number in range(1, config.policies + 1):
        events += [Train(task, step, record_every=step), Save(save_name(number))]
    source = minatar_source(config)
    function = Regressions(
        config.game, config.policies, config.states, config.envs, config.batch, config.updates, source.epsilon.end,
        source.discount,
    )  # fmt: skip
    saves = tuple(save_name(number) for number in range(1, config.policies + 1))
    return (*events, Probe(ViewProbe("regression", function, saves=saves), on=task, samples=1))


ILLUSTRATION_SIZES: dict[str, dict[str, tuple]] = {
    "smoke": {
        "frames": (20,),
        "policies": (2,),
        "states": (20,),
        "envs": (2,),
        "batch": (8,),
        "updates": (10,),
        "learning_starts": (60,),
        "capacity": (200,),
        "exploration": (20,),
        "seed": (0, 1),
    },
    "quick": {"frames": (240_000,), "period": (4,), "seed": tuple(range(5))},
    "paper": {"frames": (5_000_000,), "seed": tuple(range(5))},
}
"""Preset -> the fields in which it differs from the defaults."""


def illustration_axes(preset: str) -> dict | list[dict]:
    """One game, every seed."""
    return ILLUSTRATION_SIZES.get(preset, [])


illustration = Experiment(
    "illustration", IllustrationConfig, illustration_axes, minatar_stream, minatar_learner, illustration_script,
    minatar_source,
)  # fmt: skip
