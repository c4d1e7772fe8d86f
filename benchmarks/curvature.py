"""The ten largest Hessian eigenvalues of a 784-512-512-10 MLP on 1,024 digits: neoteny against PyHessian.

    python benchmarks/curvature.py --packages DIR [--updates 500] [--rounds 5]

DIR holds PyHessian: pip install --no-deps --target DIR pyhessian. Needs PyTorch (extra `bench`). The network is trained
here first, and both are given the same weights, images and loss, and as many threads as there are cores. They take
turns; the ratio is formed within a round. Eigenvalues of both are compared with neoteny's in float64 at a tolerance of
1e-6.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, WIDTH, COUNT, TOLERANCE, MOST = 1_024, 512, 10, 1e-3, 100
"""TOLERANCE and MOST iterations an eigenvalue are PyHessian's defaults."""


def trained(updates: int) -> tuple[Any, Any]:
    """The trained network, and a batch (images, labels) as NumPy arrays."""
    import optax

    import neoteny
    from neoteny import learners, networks, tasks

    data = tasks.mnist_digits(dev=0, test=0)
    inputs = data.inputs.reshape(len(data.inputs), -1).astype(np.float32) / 255
    maker = networks.mlp(784, [WIDTH, WIDTH], 10)
    stream = tasks.single(tasks.from_arrays(inputs, data.targets, dev=0, test=0))
    result = neoteny.run(learners.supervised(maker, optax.adam(1e-3)), stream, seeds=1, steps=updates)
    rows = np.random.default_rng(0).permutation(len(inputs))[:IMAGES]
    return result.network(0), (inputs[rows], data.targets[rows].astype(np.int64))


def in_torch(network: Any) -> Any:
    """The same network in PyTorch."""
    import jax
    import torch

    matrices = [np.asarray(leaf) for leaf in jax.tree.leaves(network)]
    weights, biases = ([a for a in matrices if a.ndim == n] for n in (2, 1))
    layers: list[Any] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def main() -> None:
    """Time both in turn and print seconds, ratio and errors."""
    parser = argparse.ArgumentParser(description="the largest Hessian eigenvalues, against PyHessian")
    parser.add_argument("--packages", type=Path, required=True, help="where PyHessian was installed")
    parser.add_argument("--updates", type=int, default=500, help="of training the network")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sys.path.append(str(options.packages))
    import equinox as eqx
    import jax
    import optax
    import torch
    from pyhessian import hessian

    from neoteny.networks import split_trainable
    from neoteny.probes import largest_eigenvalues

    network, (images, labels) = trained(options.updates)
    parameters, rest = split_trainable(network)

    def loss(parameters: Any, images: Any) -> Any:
        outputs = eqx.combine(parameters, rest)(images).output
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels.astype(np.int32)).mean()

    @jax.jit
    def ours(parameters: Any, images: Any, key: Any) -> Any:
        return largest_eigenvalues(
            lambda p: loss(p, images), parameters, key=key, count=COUNT, tolerance=TOLERANCE, iterations=MOST
        )

    model, batch = in_torch(network), (torch.tensor(images), torch.tensor(labels))

    def theirs() -> list[float]:
        return hessian(model, torch.nn.CrossEntropyLoss(), data=batch, cuda=False).eigenvalues(
            maxIter=MOST, tol=TOLERANCE, top_n=COUNT
        )[0]

    exact = largest_eigenvalues(
        lambda p: loss(p, images), parameters, key=jax.random.key(1), count=COUNT, tolerance=1e-6, iterations=300,
        double=True,
    )  # fmt: skip
    start = time.perf_counter()
    jax.block_until_ready(ours(parameters, images, jax.random.key(0)))
    print(f"neoteny's first call, compiling included: {time.perf_counter() - start:.1f} s")
    seconds: dict[str, list[float]] = {"neoteny": [], "PyHessian": []}
    for number in range(options.rounds):
        start = time.perf_counter()
        found = jax.block_until_ready(ours(parameters, images, jax.random.key(number)))
        seconds["neoteny"].append(time.perf_counter() - start)
        start = time.perf_counter()
        other = theirs()
        seconds["PyHessian"].append(time.perf_counter() - start)
    for name, values in (("neoteny", np.asarray(found.values)), ("PyHessian", np.sort(other)[::-1])):
        error = np.abs(values / np.asarray(exact.values) - 1)
        median = statistics.median(seconds[name])
        print(f"{name:10} {median:7.2f} s, largest relative error {error.max():.1e}, of the first {error[0]:.1e}")
    ratios = [b / a for a, b in zip(seconds["neoteny"], seconds["PyHessian"], strict=True)]
    low, middle, high = (float(np.quantile(ratios, share)) for share in (0.25, 0.5, 0.75))
    products = int(found.products)
    print(f"neoteny is {middle:.1f} times as fast ({low:.1f} to {high:.1f}), with {products} Hessian-vector products")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
