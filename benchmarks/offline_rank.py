"""The 405 lanes of the rank study on one data set, against a PyTorch loop that trains them one after another.

    python benchmarks/offline_rank.py [--updates N] [--sample N] [--out FILE]

neoteny: the 45 lanes of each of the nine structures shared out to a process a core, as `neoteny run` does, each share
in one compiled program, through the same runner; training alone, the slowest counts; compilation counted apart.
PyTorch: the same double DQN, behaviour values or cloning in eager mode, in a process of its own, with the number of
threads and the kind of Adam it is fastest with; for a sample of lanes of every structure, whose mean times 405 is what
the loop would take. The two take turns. Both see minibatches of the same recorded data, and both tell the loss of one
lane of every structure at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from neoteny.lab.execute import default_workers, worker_cores
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


def pin(cores: list[int]) -> None:
    """Keep this process on its share of the cores, as a worker of `neoteny run` is."""
    if cores:
        os.sched_setaffinity(0, cores)


def neoteny_seconds(config: Config, share: slice) -> dict[str, float]:
    """Seconds of training these of the 45 lanes of one structure, and of compiling; the last loss of the lane with the
    configuration's own learning rate and seed, NaN if it is not among them.
    """
    sweep = STUDY.experiment("sweep")
    every = last_part(config)
    training = replace(
        sweep, script=lambda view, tasks: (Switch(tasks[0]), Train(tasks[0], view.updates, record_every=every))
    )
    lanes = _lanes(config)[share]
    runner = Runner(training, lanes, [f"lane{n}" for n in range(len(lanes))])
    seconds, compiling, losses = 0.0, 0.0, []
    for tick in runner.ticks():
        seconds += tick.seconds - tick.compile_seconds
        compiling += tick.compile_seconds
        losses = [record for record in tick.records if record.metric == "train_loss"] or losses
    own = f"lane{lanes.index(config)}" if config in lanes else ""
    loss = [math.nan, *(record.value for record in losses if record.run == own)][-1]
    return {"seconds": seconds, "compile_seconds": compiling, "loss": loss}


def last_part(config: Config) -> int:
    """Updates whose loss is compared."""
    return max(1, config.updates // 10)


def torch_seconds(config: Config, threads: int, fused: bool) -> dict[str, float]:
    """Seconds of training one lane in eager PyTorch, and the loss of the last of its updates."""
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
    adam = torch.optim.Adam(online.parameters(), lr=config.learning_rate, fused=fused)
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
        if update >= config.updates - last_part(config):
            losses.append(float(loss.detach()))
    return {"seconds": time.perf_counter() - start, "loss": float(np.mean(losses))}


def fastest_torch(ask: Callable[..., dict[str, float]], config: Config) -> tuple[dict[str, float], tuple[int, bool]]:
    """Milliseconds of an update by number of threads and kind of Adam, and the fastest pair."""
    short, found = replace(config, updates=500), {}
    ask(torch_seconds, short, 1, False)  # what is done once
    for threads in sorted({1, os.cpu_count() or 1}):
        for fused in (False, True):
            seconds = min(ask(torch_seconds, short, threads, fused)["seconds"] for _ in range(2))
            found[threads, fused] = 1e3 * seconds / short.updates
    told = {
        f"{threads} threads, {'fused' if fused else 'plain'} Adam": each for (threads, fused), each in found.items()
    }
    return told, min(found, key=found.__getitem__)


def main() -> None:
    """Measure both and print, or write, how much longer the loop takes."""
    parser = argparse.ArgumentParser(description="405 lanes at once, against one after another")
    parser.add_argument("--updates", type=int, default=2_000, help="of every lane (default 2,000)")
    parser.add_argument("--sample", type=int, default=2, help="lanes of the loop trained of each structure (default 2)")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    busy = os.getloadavg()[0]
    base = Config(updates=options.updates)
    stream(base)  # recorded before anything is measured
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = {}, {}
    with ExitStack() as stack:
        right = stack.enter_context(ProcessPoolExecutor(1, spawn))
        workers = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=pin, initargs=(cores,)))
            for cores in worker_cores(default_workers())
        ]
        size = -(-len(RATES) * len(SEEDS) // len(workers))
        shares = [slice(start, start + size) for start in range(0, len(workers) * size, size)]

        def side_by_side(config: Config) -> dict[str, float]:
            """The lanes shared out to the workers; the slowest counts."""
            asked = [each.submit(neoteny_seconds, config, share) for each, share in zip(workers, shares, strict=True)]
            parts = [each.result() for each in asked]
            found = {name: max(part[name] for part in parts) for name in ("seconds", "compile_seconds")}
            return {**found, "loss": float(np.nansum([part["loss"] for part in parts]))}

        def ask(measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
            return right.submit(measure, *arguments).result()

        settings, (threads, fused) = fastest_torch(ask, base)
        for objective, activation in STRUCTURES:
            config = replace(base, objective=objective, activation=activation)
            name = f"{objective}/{activation}"
            ours[name] = side_by_side(config)
            lanes = [ask(torch_seconds, replace(config, seed=seed), threads, fused) for seed in range(options.sample)]
            theirs[name] = {
                "seconds": float(np.mean([lane["seconds"] for lane in lanes])),
                "loss": lanes[0]["loss"],
            }
    sweep = sum(each["seconds"] for each in ours.values())
    compiling = sum(each["compile_seconds"] for each in ours.values())
    loop = LANES * float(np.mean([each["seconds"] for each in theirs.values()]))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "updates": options.updates,
        "cores": os.cpu_count(),
        "load_before": busy,
        "versions": {name: metadata.version(name) for name in ("jax", "torch", "neoteny")},
        "neoteny": {
            "seconds": sweep, "compile_seconds": compiling, "workers": len(workers), "structures": ours,
        },
        "loop": {
            "seconds_scaled": loop, "structures": theirs, "threads": threads, "fused": fused,
            "milliseconds_of_an_update": settings,
        },
        "ratio": loop / sweep,
        "ratio_with_compilation": loop / (sweep + compiling),
    }  # fmt: skip
    print(f"{LANES} lanes of {options.updates:,} updates: neoteny {sweep:.1f} s and {compiling:.1f} s of compiling")
    print(f"PyTorch, ms of an update: {', '.join(f'{name} {each:.3f}' for name, each in settings.items())}")
    print(f"one after another in PyTorch, scaled from {len(STRUCTURES) * options.sample}: {loop:.0f} s")
    print(f"{result['ratio']:.1f} times as long, {result['ratio_with_compilation']:.1f} with compilation")
    for name, each in ours.items():
        print(f"loss at the end, {name}: {each['loss']:.4g} neoteny, {theirs[name]['loss']:.4g} PyTorch")
    if busy > 0.5:
        print(f"the load was {busy:.1f} before: others used the CPUs, so measure again")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
