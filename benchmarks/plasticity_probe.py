"""The plasticity probe with ten targets against one: what targets as lanes of one program cost.

    python benchmarks/plasticity_probe.py [--width 128] [--batch 128] [--steps 500] [--rounds 5]

An MLP on 2,048 digits, Adam. Both are compiled before they are timed, and take turns; the ratio is formed within a
round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import numpy as np


def main() -> None:
    """Time both in turn and print seconds and their ratio."""
    parser = argparse.ArgumentParser(description="the plasticity probe, ten targets against one")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=2_048)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import jax
    import jax.numpy as jnp
    import optax

    from neoteny import tasks
    from neoteny.networks import mlp
    from neoteny.probes import plasticity

    data = tasks.mnist_digits(dev=0, test=0)
    inputs = jnp.asarray(data.inputs[: options.samples].astype(np.float32) / 255)
    maker = mlp(data.input_shape, [options.width] * 2, 10)
    network = maker(jax.random.key(0))

    def measure(targets: int, network, inputs, key):
        return plasticity(
            network, maker, inputs, optax.adam(1e-3), key=key, targets=targets, steps=options.steps,
            batch_size=options.batch,
        )  # fmt: skip

    seconds: dict[int, list[float]] = {1: [], options.targets: []}
    programs = {targets: jax.jit(partial(measure, targets)) for targets in seconds}
    for number in range(options.rounds + 1):
        for targets, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(network, inputs, jax.random.key(number)))
            if number:  # the first call compiles
                seconds[targets].append(time.perf_counter() - start)
    for targets, spent in seconds.items():
        per_step = 1e3 * statistics.median(spent) / options.steps
        print(f"{targets:3} targets: {statistics.median(spent):6.2f} s, {per_step:.2f} ms a step")
    ratios = [many / one for one, many in zip(*seconds.values(), strict=True)]
    print(f"{options.targets} targets take {statistics.median(ratios):.2f} times as long as one")
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
