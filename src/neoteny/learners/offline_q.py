"""Learning from a fixed data set of transitions: Q-learning, the behaviour's own values, and cloning it.

The three objectives of the study of effective rank (arXiv:2207.02099) share network, optimiser and policy, the argmax
of the outputs; they differ in what is bootstrapped: the value of the best next action, of the next action in the data
(behaviour value estimation, SARSA; arXiv:2103.09575), or nothing.
"""

from __future__ import annotations

from enum import StrEnum

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from neoteny.learners.action_values import CopyEvery, Polyak, action_value_learner, taken
from neoteny.learners.learner import Batch, Learner, Outcomes
from neoteny.learners.values import Scalar, Values
from neoteny.networks.network import Maker, Network
from neoteny.regularizers import Regularizer

CLONING_LOSS = optax.softmax_cross_entropy_with_integer_labels


class OfflineObjective(StrEnum):
    """What is learned from the data: Q the best policy's values, BVE the behaviour's own, BC its actions."""

    Q = "q"
    BVE = "bve"
    BC = "bc"


def bootstrap_actions(
    objective: OfflineObjective, chooser: Float[Array, "batch actions"], next_actions: Int32[Array, " batch"]
) -> Int32[Array, " batch"]:
    """The next actions whose target values are used: those of the data for BVE, else the best by `chooser`."""
    if objective is OfflineObjective.BVE:
        return next_actions
    return jax.lax.stop_gradient(jnp.argmax(chooser, axis=1)).astype(jnp.int32)


def rank_penalty(features: Float[Array, "batch units"]) -> Float[Array, ""]:
    """s_1^2 - s_m^2 with s the singular values of the features, m the smaller of batch and units.

    The penalty of Kumar et al., arXiv:2010.14498, section 5: it is 0 when all singular values are equal.
    """
    tall = features if features.shape[0] >= features.shape[1] else features.T
    squares = jnp.linalg.eigvalsh(tall.T @ tall)
    return squares[-1] - squares[0]


def offline_q(
    maker: Maker,
    optimizer: optax.GradientTransformation,
    *,
    objective: OfflineObjective = OfflineObjective.Q,
    double: bool = True,
    discount: float | Array = 0.99,
    values: Values | None = None,
    following: CopyEvery | Polyak | None = None,
    rank_coefficient: float | Array | None = None,
    sharpness_radius: float = 0.0,
    regularizer: Regularizer | None = None,
    before: optax.GradientTransformation | None = None,
) -> Learner:
    """A learner from batches whose inputs are observations and whose targets are `Outcomes`.

    maker: key -> network with an output an action; dropout and layer normalisation are the network's. double: with Q,
    the online network chooses the next action and the target network values it; otherwise the target network does
    both. values: `Scalar(None)` (default), half the squared error; `Scalar(1.0)` is the Huber loss. following: how the
    target network follows, by default a copy every 1,000 updates; cloning has none. rank_coefficient: times
    `rank_penalty` of the stage before the last, added to the loss. sharpness_radius: see `action_value_learner`.
    ValueError for values that are no single number an action.

    Metrics of an update: loss, value (mean over the batch of the largest output), and error (mean absolute TD error)
    or accuracy (share of the data's actions that are the greedy ones).
    """
    objective = OfflineObjective(objective)
    form = Scalar(None) if values is None else values
    if not isinstance(form, Scalar):
        raise ValueError(f"offline_q learns one number an action; give values=Scalar(...), not {form!r}")
    cloning = objective is OfflineObjective.BC
    follow = CopyEvery(1_000) if following is None else following

    def losses(network: Network, target: Network, outputs: Array, after: Outcomes) -> tuple[Array, dict[str, Array]]:
        if cloning:
            agree = jnp.argmax(outputs, axis=1) == after.actions
            return CLONING_LOSS(outputs, after.actions), {"accuracy": jnp.mean(agree.astype(jnp.float32))}
        next_values = target(after.next_observations).output
        chooser = network(after.next_observations).output if double else next_values
        following_values = taken(next_values, bootstrap_actions(objective, chooser, after.next_actions))
        discounts = discount * (1.0 - after.terminated.astype(jnp.float32))
        found, errors = form.loss(taken(outputs, after.actions), after.rewards, discounts, following_values)
        return found, {"error": jnp.mean(jnp.abs(errors))}

    def data_loss(network: Network, target: Network, batch: Batch, key):
        result = network(batch.inputs, train=True, key=key)
        found, metrics = losses(network, target, result.output, _outcomes(batch))
        total = jnp.mean(found)
        if rank_coefficient is not None:
            features = result.stages[(network.names[:-1] or network.names)[-1]]
            total = total + rank_coefficient * rank_penalty(features.reshape(features.shape[0], -1))
        return total, (result.network, {"value": jnp.mean(jnp.max(result.output, axis=1)), **metrics})

    def score(outputs: Array, targets: Outcomes) -> dict[str, Array]:
        agree = (jnp.argmax(outputs, axis=1) == targets.actions).astype(jnp.float32)
        return {"value": jnp.max(outputs, axis=1), "accuracy": agree}

    return action_value_learner(
        maker,
        optimizer,
        data_loss,
        values=lambda outputs: outputs,
        following=None if cloning else follow,
        score=score,
        regularizer=regularizer,
        before=before,
        sharpness_radius=sharpness_radius,
    )


def _outcomes(batch: Batch) -> Outcomes:
    if not isinstance(batch.targets, Outcomes):
        raise TypeError(
            f"offline_q needs batches of transitions (tasks.transitions), not targets of {type(batch.targets).__name__}"
        )
    return batch.targets
