"""Atari offline: record a DQN that learns from the console's memory, keep it as a Minari data set, learn from that.

    python examples/offline_atari.py datasets [--game Freeway] [--steps 50000] [--updates 5000]

Needs the extras `atari` and `offline`. The data set is read back by Minari's own loader; if it is there already, it is
not recorded again. Values of the data's policy (behaviour values) are learned next to double Q-learning, and what
becomes of the rank of their features is told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import optax

import neoteny
from neoteny.learners import offline_q
from neoteny.learners.offline_q import OfflineObjective
from neoteny.networks import mlp
from neoteny.probes import dead_units, effective_rank
from neoteny.tasks.transitions import RamRecipe, TransitionSet, offline, read_minari, record_ram, write_minari


def data_set(folder: Path, recipe: RamRecipe) -> TransitionSet:
    """The recorded transitions, through Minari."""
    name = f"ale/{recipe.game.lower()}/dqn-learning-{recipe.steps}-v0"
    if not (folder / name).is_dir():
        write_minari(record_ram(recipe), folder, name)
    return read_minari(folder, name)


def ranks(data: TransitionSet, updates: int, objective: OfflineObjective, seeds: int = 3) -> dict[str, float]:
    """Mean over seeds, after so many updates, of what the episodes kept apart show of the last hidden layer."""
    learner = offline_q(mlp(128, (256, 256), data.actions), optax.adam(3e-4), objective=objective)
    result = neoteny.run(
        learner, offline(data.arrays()), seeds=seeds, steps=updates, batch_size=64, probes=(effective_rank, dead_units),
        evaluate=("dev",),
    )  # fmt: skip
    frame = result.frame()
    found = frame.filter(frame["place"].is_in(["hidden2", ""]))
    return {
        metric: float(np.mean(part["value"].to_numpy()))
        for (metric,), part in found.partition_by("metric", as_dict=True, maintain_order=True).items()
        if metric in ("effective_rank", "dead_units", "accuracy", "value")
    }


def main(arguments: list[str] | None = None) -> TransitionSet:
    """Record or read, learn, and print."""
    parser = argparse.ArgumentParser(description="offline learning from Atari's memory")
    parser.add_argument("folder", type=Path, help="where Minari data sets are kept")
    parser.add_argument("--game", default="Freeway")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--updates", type=int, default=5_000)
    options = parser.parse_args(arguments)
    data = data_set(options.folder, RamRecipe(options.game, steps=options.steps))
    about = data.about
    print(
        f"{len(data):,} steps of {options.game} (mode {about['mode']}, difficulty {about['difficulty']}, sticky "
        f"{about['sticky']}, ALE {about['ale_version']}) in {len(data.returns)} episodes; returns "
        f"{np.array2string(data.returns, precision=0)}"
    )
    for objective in (OfflineObjective.BVE, OfflineObjective.Q):
        told = ", ".join(f"{name} {value:.3g}" for name, value in ranks(data, options.updates, objective).items())
        print(f"{objective.value}: {told}")
    return data


if __name__ == "__main__":
    main()
