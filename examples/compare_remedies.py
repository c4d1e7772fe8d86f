"""Which remedy keeps a network able to learn?  Four learners on one stream, side by side.

A remedy is part of the network (layer norm), of the loss (a penalty) or of the change of task (an
intervention). Runs with the same seed share their initial weights, labels and batches, so learners are
compared seed by seed.

    python examples/compare_remedies.py
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl

import neoteny
from neoteny import learners, networks, tasks
from neoteny.analysis import paired_difference
from neoteny.interventions import Intervention, ShrinkPerturb
from neoteny.regularizers import L2ToInit


# --8<-- [start:before]
def before_each_task(learner: learners.Learner, intervention: Intervention) -> learners.Learner:
    """The learner with `intervention` applied before every task but the first.

    A learner is a named tuple of pure functions: here one of them is exchanged.
    """

    def switch(state, task_index, sample_previous, key):
        state = learner.switch(state, task_index, sample_previous, key)
        now, static = eqx.partition(state, eqx.is_array)
        changed = eqx.filter(intervention(state, key), eqx.is_array)
        first = task_index == 0
        return eqx.combine(jax.tree.map(lambda old, new: jnp.where(first, old, new), now, changed), static)

    return learner._replace(switch=switch)


# --8<-- [end:before]


def make_learners(width: int) -> dict[str, learners.Learner]:
    """The learners to compare, by name."""
    plain = networks.mlp((8, 8, 1), [width, width], 10)
    normed = networks.mlp((8, 8, 1), [width, width], 10, norm=networks.Norm.LAYER)
    adam = optax.adam(1e-3, eps=1e-9)
    return {
        "none": learners.supervised(plain, adam),
        "layer norm": learners.supervised(normed, adam),
        "L2 to initial weights": learners.supervised(plain, adam, regularizer=L2ToInit(1e-4)),
        "shrink and perturb": before_each_task(
            learners.supervised(plain, adam), ShrinkPerturb(shrink=0.8, perturb=0.2)
        ),
    }


def last_tasks(result: neoteny.Result, count: int) -> np.ndarray:
    """Accuracy in percent, mean over the last `count` tasks: (seeds,) in the order of seeds."""
    rows = result.frame().filter(pl.col("metric") == "accuracy")
    rows = rows.filter(pl.col("task") > pl.col("task").max() - count)
    return 100 * rows.group_by("seed").agg(pl.col("value").mean()).sort("seed")["value"].to_numpy()


def main(task_count: int = 10, steps: int = 300, seeds: int = 4, width: int = 64) -> dict[str, np.ndarray]:
    """Print accuracy over the last three tasks and the paired difference to `none`, with 95 % intervals."""
    stream = tasks.random_labels(tasks.digits(), tasks=task_count)
    accuracy = {
        name: last_tasks(neoteny.run(learner, stream, seeds=seeds, steps=steps), min(3, task_count))
        for name, learner in make_learners(width).items()
    }
    print(f"{'remedy':<24}{'accuracy (%)':>14}   difference to none")
    for name, values in accuracy.items():
        line = f"{name:<24}{values.mean():>14.1f}"
        if name != "none":
            gain = paired_difference(values, accuracy["none"])
            line += f"   {gain.value:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
        print(line)
    return accuracy


if __name__ == "__main__":
    main()
