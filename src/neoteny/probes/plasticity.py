"""Plasticity: how well a network can still fit new targets (Lyle et al. 2023, section 3.1 and appendix A).

A probe task is regression on g(x) = a + sin(1e5 f(x; omega_0)), f a freshly initialised network of the same
kind and a the mean prediction of the network under test, per output. A copy of the network is trained on
it; the network itself is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from neoteny.learners.learner import Batch, View, init_stages
from neoteny.networks.initializers import named_key
from neoteny.networks.network import Maker, Network, as_network, check_maker, split_trainable

FREQUENCY = 1e5
"""The factor inside the sine (Lyle et al. 2023, appendix A)."""

Loss = Callable[[Array, Array], Array]
"""loss(outputs (batch, ...), targets (batch, values)) -> scalar, what the probe trains on."""

Decode = Callable[[Array], Array]
"""decode(outputs (batch, ...)) -> (batch, values): the predictions in an output, for categorical heads."""


class Plasticity(NamedTuple):
    """Probe losses, each the mean over targets of the mean squared error over inputs and outputs.

    initial: before training. final: after it. rise: final less the reference's final, larger is worse.
    baseline: the targets' variance, the loss of the best constant. diverged: share of targets whose final
    loss was not finite and counts as its target's variance (nothing learned).
    """

    initial: Float[Array, ""]
    final: Float[Array, ""]
    rise: Float[Array, ""]
    baseline: Float[Array, ""]
    diverged: Float[Array, ""]


def plain(outputs: Array) -> Array:
    """The outputs themselves as predictions."""
    return outputs


def squared_error(outputs: Float[Array, "batch values"], targets: Float[Array, "batch values"]) -> Float[Array, ""]:
    """Squared error, mean over batch and outputs."""
    return jnp.mean(jnp.square(outputs - targets))


def plasticity(
    network: Network,
    maker: Maker,
    inputs: Float[Array, "n ..."],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    targets: int = 10,
    steps: int = 2000,
    batch_size: int | None = None,
    reference: Array | float | None = None,
    carried: dict[str, PyTree] | None = None,
    loss: Loss = squared_error,
    decode: Decode = plain,
) -> Plasticity:
    """How well copies of `network` fit `targets` random functions of `inputs` in `steps` updates.

    optimizer: applied to every stage apart, from fresh state, or from `carried` (stage -> state; then only
    those stages train). batch_size: None trains on all inputs at every step, a number on that many rows
    drawn anew (with replacement) each step; losses are always of all inputs, in evaluation mode. reference:
    the `final` of the network at t = 0; without one this measurement is itself the reference, and `rise` is
    exactly 0. loss and decode: for networks whose outputs are not the predictions; losses are reported in
    the decoded squared error. Give the same key to compare networks on the same random functions.
    ValueError for no targets or a negative number of steps.
    """
    sines = random_sines(maker, inputs, key=named_key(key, "targets"), targets=targets, decode=decode)
    fit = _Fit(inputs, optimizer, named_key(key, "batches"), steps, batch_size, loss, decode)
    return _measure(fit, network, sines, carried, reference)


def regret(
    network: Network,
    maker: Maker,
    inputs: Float[Array, "n ..."],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    targets: int = 10,
    steps: int = 2000,
    batch_size: int | None = None,
    loss: Loss = squared_error,
    decode: Decode = plain,
) -> Float[Array, ""]:
    """Final probe loss of `network` less a fresh network's on the same random functions; larger is worse.

    Both see the same sines and the same batches, each shifted by its own mean prediction, so that neither
    starts with an advantage. The fresh network is drawn apart from the targets'. Arguments as in
    `plasticity`.
    """
    sines = random_sines(maker, inputs, key=named_key(key, "targets"), targets=targets, decode=decode)
    fit = _Fit(inputs, optimizer, named_key(key, "batches"), steps, batch_size, loss, decode)
    fresh = as_network(maker(named_key(key, "fresh")))
    return _measure(fit, network, sines, None, None).final - _measure(fit, fresh, sines, None, None).final


def random_sines(
    maker: Maker,
    inputs: Float[Array, "n ..."],
    *,
    key: PRNGKeyArray,
    targets: int,
    decode: Decode = plain,
) -> Float[Array, "targets n values"]:
    """sin(1e5 f(x; omega_0)) of `targets` fresh networks: the probe's targets before the shift a.

    In float32 the argument of a network with outputs near 1 is off by about 0.01 rad, so compute them once
    and keep them: another compilation may give other numbers.
    """
    check_maker(maker)
    if targets < 1:
        raise ValueError(f"targets must be at least 1, not {targets}")

    def draw(index: Array) -> Array:
        fresh = as_network(maker(jax.random.fold_in(key, index)))
        return jnp.sin(FREQUENCY * decode(fresh(inputs).output))

    # The barrier keeps the compiler from computing the sines again inside the training loop.
    return jax.lax.optimization_barrier(jax.vmap(draw)(jnp.arange(targets)))


def view_plasticity(
    view: View,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    targets: int = 10,
    steps: int = 2000,
    batch_size: int | None = None,
    fresh: bool = False,
) -> dict[str, Float[Array, ""]]:
    """`plasticity` on the batch's inputs, recorded at places initial, final, baseline and diverged; where `fresh`, also
    `regret`, by a fresh network on the same targets, at twice the cost.

    A network whose outputs are distributions is trained by its own loss and measured in what they stand for. The rise
    is a difference of records (final at t less final at 0), so it is left to the analysis.
    """
    decode = view.decode or plain
    sines = random_sines(view.maker, batch.inputs, key=named_key(key, "targets"), targets=targets, decode=decode)
    fit = _Fit(
        batch.inputs, view.optimizer, named_key(key, "batches"), steps, batch_size, view.fit or squared_error, decode
    )
    measured = _measure(fit, view.network, sines, None, None)
    places = {
        "initial": measured.initial,
        "final": measured.final,
        "baseline": measured.baseline,
        "diverged": measured.diverged,
    }
    if fresh:
        other = as_network(view.maker(named_key(key, "fresh")))
        places["regret"] = measured.final - _measure(fit, other, sines, None, None).final
    return places


def view_regret(
    view: View,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    targets: int = 10,
    steps: int = 2000,
    batch_size: int | None = None,
) -> dict[str, Float[Array, ""]]:
    """`regret` on the batch's inputs, recorded at the place of the whole."""
    measured = regret(
        view.network,
        view.maker,
        batch.inputs,
        view.optimizer,
        key=key,
        targets=targets,
        steps=steps,
        batch_size=batch_size,
        loss=view.fit or squared_error,
        decode=view.decode or plain,
    )
    return {"": measured}


class _Fit(NamedTuple):
    """How a copy is trained."""

    inputs: Array
    optimizer: optax.GradientTransformation
    key: PRNGKeyArray
    steps: int
    batch_size: int | None
    loss: Loss
    decode: Decode


def _measure(
    fit: _Fit,
    network: Network,
    sines: Float[Array, "targets n values"],
    carried: dict[str, PyTree] | None,
    reference: Array | float | None,
) -> Plasticity:
    if fit.steps < 0:
        raise ValueError(f"steps must not be negative, got {fit.steps}")
    if fit.batch_size is not None and fit.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {fit.batch_size}")
    predictions = fit.decode(network(fit.inputs).output)
    if predictions.shape != sines.shape[1:]:
        raise ValueError(
            f"the network predicts {predictions.shape} and the maker's networks {sines.shape[1:]}; "
            "the probe needs networks of the same outputs"
        )
    states = init_stages(fit.optimizer, network) if carried is None else carried
    shift = jnp.mean(predictions, axis=0)

    def lane(sine: Array) -> tuple[Array, Array]:
        return _train(fit, network, states, shift + sine)

    initial, final = jax.vmap(lane)(sines)
    # a is constant over inputs, so the variance is that of the sines, finite even if the network is not.
    variance = jnp.mean(jnp.var(sines, axis=1), axis=-1)
    kept = jnp.isfinite(final)
    final = jnp.mean(jnp.where(kept, final, variance))
    # Mean and difference may be fused into one multiply-add: of equal numbers that leaves a rounding.
    origin = final if reference is None else reference
    rise = jnp.where(final == origin, 0, final - origin)
    return Plasticity(
        initial=jnp.mean(jnp.where(jnp.isfinite(initial), initial, variance)),
        final=final,
        rise=rise,
        baseline=jnp.mean(variance),
        diverged=jnp.mean(~kept, dtype=final.dtype),
    )


def _train(fit: _Fit, network: Network, states: dict[str, PyTree], goals: Array) -> tuple[Array, Array]:
    """Loss on all inputs before and after training a copy on `goals` (n, values)."""
    arrays, static = eqx.partition(network, eqx.is_array)

    def evaluate(network: Network) -> Array:
        return squared_error(fit.decode(network(fit.inputs).output), goals)

    def step(carry, index: Array):
        arrays, states = carry
        key = jax.random.fold_in(fit.key, index)
        row_key, layer_key = jax.random.split(key)
        x, y = fit.inputs, goals
        if fit.batch_size is not None:
            rows = jax.random.randint(row_key, (fit.batch_size,), 0, len(goals))
            x, y = x[rows], y[rows]
        parameters, rest = split_trainable(eqx.combine(arrays, static))

        def objective(parameters: PyTree) -> tuple[Array, Network]:
            result = eqx.combine(parameters, rest)(x, train=True, key=layer_key)
            return fit.loss(result.output, y), result.network

        gradient, called = jax.grad(objective, has_aux=True)(parameters)
        stages, updated = {}, {}
        for name, state in states.items():
            held = parameters.stage(name)
            change, updated[name] = fit.optimizer.update(gradient.stage(name), state, held)
            # Statistics are those the forward pass gathered; parameters are the updated ones.
            _, gathered = split_trainable(called.stage(name))
            stages[name] = eqx.combine(optax.apply_updates(held, change), gathered)
        moved = eqx.filter(called.replace(**stages), eqx.is_array)
        return (moved, updated), None

    (trained, _), _ = jax.lax.scan(step, (arrays, states), jnp.arange(fit.steps))
    return evaluate(network), evaluate(eqx.combine(trained, static))
