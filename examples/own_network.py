"""Does a network of your own stay able to learn when labels change?

An Equinox network, the digits that come with scikit-learn, new random labels for every task, and the
plasticity probe at the end of each: how well a copy of the network still fits functions it has never seen.

    python examples/own_network.py
"""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import polars as pl

import neoteny
from neoteny import learners, networks, probes, tasks


def my_network(key, inputs: int = 64, width: int = 64, classes: int = 10) -> networks.Network:
    """Ordinary Equinox modules of one example, as three named stages: probes look at stages."""
    one, two, three = jax.random.split(key, 3)
    first = eqx.nn.Sequential(
        [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(inputs, width, key=one), eqx.nn.Lambda(jax.nn.relu)]
    )
    second = eqx.nn.Sequential([eqx.nn.Linear(width, width, key=two), eqx.nn.Lambda(jax.nn.relu)])
    return networks.Network(first=first, second=second, head=eqx.nn.Linear(width, classes, key=three))


def main(task_count: int = 8, steps: int = 500, seeds: int = 4, probe_steps: int = 200) -> neoteny.Result:
    """Train, print the mean over seeds at the end of every task, and return the result."""
    stream = tasks.random_labels(tasks.digits(), tasks=task_count)
    learner = learners.supervised(my_network, optax.adam(1e-3))
    # The probe's own budget is 10 targets of 2,000 steps; a smaller one is bound to it here.
    plasticity = probes.ViewProbe("plasticity", partial(probes.view_plasticity, targets=2, steps=probe_steps))
    measured = [probes.dead_units, probes.effective_rank, plasticity]
    result = neoteny.run(learner, stream, seeds=seeds, steps=steps, probes=measured, samples=256)

    rows = result.frame().filter(
        (pl.col("metric") == "accuracy")
        | ((pl.col("metric") == "dead_units") & (pl.col("place") == "all"))
        | (pl.col("metric") == "effective_rank")
        | ((pl.col("metric") == "plasticity") & (pl.col("place") == "final"))
    )
    table = rows.pivot("metric", index="task", values="value", aggregate_function="mean")
    with pl.Config(tbl_rows=-1, float_precision=3, tbl_hide_dataframe_shape=True):
        print(table)
    return result


if __name__ == "__main__":
    main()
