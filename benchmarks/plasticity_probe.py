"""The plasticity probe with ten targets against one, cold and warm, and what arithmetic allows.

    python benchmarks/plasticity_probe.py [--width 128] [--batch 128] [--steps 500] [--rounds 5]

An MLP on 2,048 digits, Adam. Both take turns; ratios are formed within a round; a first call compiles. Every target
has parameters of its own, so ten of them are ten times the floating-point operations of one: the last lines set their
time against that of matrix products on this machine. See plasticity_probe.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PRODUCT = 1_024
"""Rows and columns of the matrices whose products give the rate of this machine."""


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall-clock time of a call, results waited for."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def rate_of_products(rounds: int) -> float:
    """Floating-point operations a second in products of large matrices, the best of so many rounds."""
    import jax

    matrix = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
    product = jax.jit(lambda a: a @ a)
    seconds_of(lambda: product(matrix))
    return 2 * PRODUCT**3 / min(seconds_of(lambda: product(matrix)) for _ in range(5 * rounds))


def main() -> None:
    """Time both in turn and print seconds, their ratio and its bound."""
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

    programs = {targets: jax.jit(partial(measure, targets)) for targets in (1, options.targets)}
    cold = {targets: seconds_of(lambda p=p: p(network, inputs, jax.random.key(0))) for targets, p in programs.items()}
    warm: dict[int, list[float]] = {targets: [] for targets in programs}
    for number in range(1, options.rounds + 1):
        for targets, program in programs.items():
            key = jax.random.key(number)
            warm[targets].append(seconds_of(lambda p=program, k=key: p(network, inputs, k)))
    for targets, spent in warm.items():
        middle = statistics.median(spent)
        per_step = 1e3 * middle / options.steps
        print(f"{targets:3} targets: first call {cold[targets]:.2f} s, then {middle:.2f} s, {per_step:.2f} ms a step")
    ratios = [many / one for one, many in zip(*warm.values(), strict=True)]
    print(
        f"{options.targets} targets take {statistics.median(ratios):.2f} times as long as one "
        f"({min(ratios):.2f} to {max(ratios):.2f}); the first calls {cold[options.targets] / cold[1]:.2f} times"
    )
    # The gradient by the inputs is not taken, so the first layer is two products and the others three.
    first, others = int(np.prod(data.input_shape)) * options.width, options.width**2 + 10 * options.width
    flops = 2 * options.batch * (2 * first + 3 * others)
    rate = rate_of_products(options.rounds)
    least = options.targets * flops / rate
    one = statistics.median(warm[1]) / options.steps
    print(
        f"{flops / 1e6:.0f} MFLOP a target and step: at {rate / 1e9:.0f} GFLOP/s, the rate of {PRODUCT} x {PRODUCT} "
        f"products here, {options.targets} targets take {1e3 * least:.2f} ms a step at least, {least / one:.2f} times "
        "one target as measured"
    )
    print(f"jax {jax.__version__} on {len(jax.devices())} {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
