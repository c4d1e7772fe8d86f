"""Deep Q-learning: DQN (Mnih et al. 2015) and Double DQN (van Hasselt et al. 2016), on numbers or distributions.

Exploration, replay, n-step returns and the discount are the source's (`tasks.experience`); the target network is a
follower that is copied from the online one every `target_period` updates of the shared clock.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from neoteny.learners.action_values import CopyEvery, action_value_learner, taken
from neoteny.learners.learner import Learner, Transitions
from neoteny.learners.values import Scalar, Values
from neoteny.networks.network import Maker, Network
from neoteny.regularizers import Regularizer


def dqn(
    maker: Maker,
    optimizer: optax.GradientTransformation,
    *,
    double: bool = True,
    values: Values | None = None,
    target_period: int = 1_000,
    regularizer: Regularizer | None = None,
    before: optax.GradientTransformation | None = None,
) -> Learner:
    """A learner of action values from transitions.

    maker: key -> network with `values.outputs(actions)` outputs. double: the online network chooses the action whose
    target value is used; otherwise the target network does. values: `Scalar()` (default), `TwoHot` or `Categorical`.
    target_period: updates between copies of the online network. optimizer, regularizer, before: as in `supervised`.

    Metrics of an update: loss, value (mean over the batch of the greedy action's value), error (mean absolute TD
    error), episodes and returns (those that ended meanwhile, and the sum of their returns), reward (mean of a step
    meanwhile).
    """
    form = Scalar() if values is None else values

    def action_values(network: Network, observations: Array) -> Array:
        return form.expected(form.by_action(network(observations).output))

    def data_loss(network: Network, target: Network, batch: Transitions, key):
        result = network(batch.observations, train=True, key=key)
        following = form.by_action(target(batch.next_observations).output)
        chooser = action_values(network, batch.next_observations) if double else form.expected(following)
        best = jax.lax.stop_gradient(jnp.argmax(chooser, axis=1))
        by_action = form.by_action(result.output)
        losses, errors = form.loss(
            taken(by_action, batch.actions), batch.rewards, batch.discounts, taken(following, best)
        )
        metrics = {
            "value": jnp.mean(jnp.max(form.expected(by_action), axis=1)),
            "error": jnp.mean(jnp.abs(errors)),
            **{name: jnp.asarray(getattr(batch, name), jnp.float32) for name in ("episodes", "returns", "reward")},
        }
        return jnp.mean(losses), (result.network, metrics)

    def score(outputs: Array, targets: Array) -> dict[str, Array]:
        return {"value": jnp.max(outputs, axis=1)}

    return action_value_learner(
        maker,
        optimizer,
        data_loss,
        values=lambda outputs: form.expected(form.by_action(outputs)),
        following=CopyEvery(target_period),
        score=score,
        fit=lambda outputs, targets: jnp.mean(form.regression(form.by_action(outputs), targets)),
        regularizer=regularizer,
        before=before,
    )


def minatar_rmsprop(learning_rate: float = 2.5e-4) -> optax.GradientTransformation:
    """Centred RMSProp of MinAtar's DQN: decay 0.95, epsilon 0.01 added to the root, no momentum (Young & Tian 2019,
    published code).

    That code names a constant `GRAD_MOMENTUM`, after the decay of the gradient's moment in Mnih et al. 2015, and until
    2024 did not use it, which its author believes was meant (https://github.com/kenjyoung/MinAtar/pull/37); one stored
    version passes it as heavy-ball momentum, with which steady steps are twenty times as large.
    """
    return optax.rmsprop(learning_rate, decay=0.95, eps=0.01, eps_in_sqrt=False, centered=True, initial_scale=0.0)


def atari_rmsprop(learning_rate: float = 2.5e-4) -> optax.GradientTransformation:
    """Centred RMSProp of DQN Zoo: decay 0.95, epsilon 0.01 / 32^2 under the root, no momentum."""
    return optax.rmsprop(learning_rate, decay=0.95, eps=0.01 / 32**2, centered=True)


MINATAR_TARGET_PERIOD = 1_000
"""Updates between copies of the target network (Young & Tian 2019)."""

ATARI_TARGET_PERIOD = 7_500
"""Updates between copies: 120,000 frames at 16 frames an update (DQN Zoo)."""
