"""The 405 lanes of the rank study on one data set, against a PyTorch loop that trains them one after another.

    python benchmarks/offline_rank.py [--updates N] [--sample N] [--threads N] [--out FILE]

neoteny: 45 lanes of each of the nine structures in one compiled program, through the runner that `neoteny run` uses,
training alone, compilation counted apart. PyTorch: the same double DQN, behaviour values or cloning in eager mode, for
a sample of lanes spread over the structures; the mean of these times 405 is what the loop would take. Both see
minibatches of the same recorded data. Each says whether it learns the same thing: the mean loss of its last hundredth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from neoteny.studies.rank import STUDY
from neoteny.studies.rank.experiments import ACTIVATIONS, OBJECTIVES
from neoteny.studies.rank.settings import RATES, Config, stream
from neoteny.training.events import Switch, Train
from neoteny.training.runner import Runner

SEEDS = range(5)
STRUCTURES = [(objective, activation) for objective in OBJECTIVES for activation in ACTIVATIONS]
LANES = len(RATES) * len(SEEDS) * len(STRUCTURES)


def _lanes(config: Config) -> list[Config]:
    return [replace(config, learning_rate=rate, seed=seed) for rate in RATES for seed in SEEDS]


def neoteny_seconds(config: Config) -> dict[str, float]:
    """Seconds of training 45 lanes of one structure, and of compiling; the lanes' median loss at the last record."""
    sweep = STUDY.experiment("sweep")
    every = max(1, config.updates // 100)
    training = replace(
        sweep, script=lambda view, tasks: (Switch(tasks[0]), Train(tasks[0], view.updates, record_every=every))
    )
    runner = Runner(training, _lanes(config), [f"lane{n}" for n in range(45)])
    seconds, compiling, losses = 0.0, 0.0, []
    for tick in runner.ticks():
        seconds += tick.seconds - tick.compile_seconds
        compiling += tick.compile_seconds
        losses = [record.value for record in tick.records if record.metric == "train_loss"] or losses
    return {"seconds": seconds, "compile_seconds": compiling, "median_loss": float(np.median(losses))}


def torch_seconds(config: Config, threads: int) -> dict[str, float]:
    """Seconds of training one lane in eager PyTorch, and the mean loss of the last hundredth of its updates."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    data = stream(config)[0].data
    rows = data.splits["train"]
    inputs = torch.from_numpy(data.inputs[rows].reshape(len(rows), 2, -1))
    targets = torch.from_numpy(data.targets[rows])
    actions, following = targets[:, 0].long(), targets[:, 3].long()
    rewards, discounts = targets[:, 1], config.discount * (1 - targets[:, 2])
    unit = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "elu": torch.nn.ELU}[config.activation]

    def network() -> torch.nn.Sequential:
        sizes, layers = [inputs.shape[2], *[config.width] * config.depth], []
        for before, after in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(before, after), unit()]
        made = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], data.classes or 0))
        for layer in made:
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.orthogonal_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
        return made

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    adam = torch.optim.Adam(online.parameters(), lr=config.learning_rate)
    draws = torch.Generator().manual_seed(config.seed)
    per_epoch, order, losses = len(rows) // config.batch, torch.empty(0), []
    start = time.perf_counter()
    for update in range(config.updates):
        if update % per_epoch == 0:
            order = torch.randperm(len(rows), generator=draws)
        batch = order[update % per_epoch * config.batch :][: config.batch]
        outputs = online(inputs[batch, 0])
        if config.objective == "bc":
            loss = torch.nn.functional.cross_entropy(outputs, actions[batch])
        else:
            with torch.no_grad():
                after = target(inputs[batch, 1])
                best = online(inputs[batch, 1]).argmax(1) if config.objective == "q" else following[batch]
                goal = rewards[batch] + discounts[batch] * after.gather(1, best[:, None])[:, 0]
            loss = 0.5 * (outputs.gather(1, actions[batch, None])[:, 0] - goal).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        if (update + 1) % config.target_period == 0:
            target.load_state_dict(online.state_dict())
        if update >= config.updates - max(1, config.updates // 100):
            losses.append(float(loss.detach()))
    return {"seconds": time.perf_counter() - start, "loss": float(np.mean(losses))}


def main() -> None:
    """Measure both and print, or write, how much longer the loop takes."""
    parser = argparse.ArgumentParser(description="405 lanes at once, against one after another")
    parser.add_argument("--updates", type=int, default=2_000, help="of every lane (default 2,000)")
    parser.add_argument("--sample", type=int, default=9, help="lanes of the loop that are trained (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, fastest here on 1 (default 1)")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    base = Config(updates=options.updates)
    stream(base)  # recorded before anything is measured
    ours, theirs = {}, {}
    for objective, activation in STRUCTURES:
        config = replace(base, objective=objective, activation=activation)
        ours[f"{objective}/{activation}"] = neoteny_seconds(config)
    for number in range(options.sample):
        objective, activation = STRUCTURES[number % len(STRUCTURES)]
        config = replace(base, objective=objective, activation=activation, seed=number % len(SEEDS))
        theirs[f"{objective}/{activation}, seed {config.seed}, lane {number}"] = torch_seconds(config, options.threads)
    sweep = sum(each["seconds"] for each in ours.values())
    compiling = sum(each["compile_seconds"] for each in ours.values())
    loop = LANES * float(np.mean([each["seconds"] for each in theirs.values()]))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "updates": options.updates,
        "cores": os.cpu_count(),
        "load_before": busy,
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "neoteny")},
        "neoteny": {"seconds": sweep, "compile_seconds": compiling, "structures": ours},
        "loop": {"seconds_scaled": loop, "sampled": theirs, "threads": options.threads},
        "ratio": loop / sweep,
        "ratio_with_compilation": loop / (sweep + compiling),
    }
    print(f"{LANES} lanes of {options.updates:,} updates: neoteny {sweep:.1f} s and {compiling:.1f} s of compiling")
    print(f"one after another in PyTorch, scaled from {options.sample}: {loop:.0f} s")
    print(f"{result['ratio']:.1f} times as long, {result['ratio_with_compilation']:.1f} with compilation")
    if busy > 0.5:
        print(f"the load was {busy:.1f} before: others used the CPUs, so measure again")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
