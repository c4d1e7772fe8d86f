"""Linear probes of every layer of an MLP-12 on 10,000 CIFAR-10 images: neoteny against scikit-learn, stage by stage.

    python benchmarks/layerwise.py [--width 512] [--features FILE] [--repeats 3]

The network (12 layers, 11 of them hidden) is trained here first, or its features are read from FILE, where a first call
keeps them. NEOTENY_DATA must hold CIFAR-10. Needs scikit-learn (extra `vision`).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np

TRAIN, TEST, DEPTH, L2 = 10_000, 5_000, 12, 1e-4


def trained_features(width: int, updates: int) -> dict[str, np.ndarray]:
    """Train the MLP by SGD with momentum 0.9 and return every hidden stage's features: train/NAME, test/NAME."""
    import jax.numpy as jnp
    import optax

    import neoteny
    from neoteny import learners, networks, tasks

    data = tasks.cifar10()
    rows = {"train": data.splits["train"][:TRAIN], "test": data.splits["test"][:TEST]}
    inputs = {split: 2 * data.inputs[chosen].astype(np.float32) / 255 - 1 for split, chosen in rows.items()}
    labels = {split: data.targets[chosen] for split, chosen in rows.items()}
    maker = networks.mlp(inputs["train"].shape[1:], [width] * (DEPTH - 1), 10)
    learner = learners.supervised(maker, optax.sgd(0.01, momentum=0.9))
    stream = tasks.single(tasks.from_arrays(inputs["train"], labels["train"], dev=0, test=0))
    result = neoteny.run(learner, stream, seeds=1, steps=updates)
    print(f"trained for {updates} updates: {result.frame().filter(metric='accuracy')['value'][-1]:.3f} of train right")
    network = result.network(0)
    found: dict[str, np.ndarray] = {f"labels/{split}": each for split, each in labels.items()}
    for split, images in inputs.items():
        passed = network(jnp.asarray(images))
        found[f"predicted/{split}"] = np.asarray(passed.output.argmax(1))
        found.update({f"{split}/{name}": np.asarray(passed.stages[name]) for name in network.names[:-1]})
    return found


def logistic_regression(train, labels, test, tested, iterations: int) -> tuple[float, int]:
    """scikit-learn's accuracy on the same standardised features with the same penalty, and the iterations it took."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
    model = LogisticRegression(C=1 / (L2 * len(train)), max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when it stops short, and so does the table
        model.fit((train - mean) / scale, labels)
    return float(model.score((test - mean) / scale, tested)), int(model.n_iter_.max())


def main() -> None:
    """Train or read, then time both, and print accuracies side by side."""
    parser = argparse.ArgumentParser(description="linear probes, against scikit-learn")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--updates", type=int, default=3_000, help="of training the network")
    parser.add_argument("--features", type=Path, help="an .npz to read features from, or to keep them in")
    parser.add_argument("--repeats", type=int, default=3, help="times neoteny is timed after compiling")
    parser.add_argument("--iterations", type=int, default=1_000, help="of scikit-learn's solver at most")
    options = parser.parse_args()
    if options.features and options.features.exists():
        arrays = dict(np.load(options.features))
    else:
        arrays = trained_features(options.width, options.updates)
        if options.features:
            np.savez(options.features, **arrays)
    from neoteny.probes import linear_probes

    stages = [name.split("/")[1] for name in arrays if name.startswith("train/")]
    train, test = ({name: arrays[f"{split}/{name}"] for name in stages} for split in ("train", "test"))
    labels, tested = arrays["labels/train"], arrays["labels/test"]
    seconds = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        probes = linear_probes(train, labels, test, tested)
        seconds.append(time.perf_counter() - start)
    first, ours = seconds[0], statistics.median(seconds[1:])
    theirs: dict[str, tuple[float, int, float]] = {}
    for name in stages:
        start = time.perf_counter()
        accuracy, taken = logistic_regression(train[name], labels, test[name], tested, options.iterations)
        theirs[name] = accuracy, taken, time.perf_counter() - start
    print(f"{'stage':<10} {'neoteny':>9} {'scikit-learn':>13} {'iterations':>11} {'its seconds':>12}")
    for name in stages:
        accuracy, taken, spent = theirs[name]
        print(f"{name:<10} {probes[name].accuracy:>9.4f} {accuracy:>13.4f} {taken:>11} {spent:>12.2f}")
    total = sum(spent for _, _, spent in theirs.values())
    print(f"the network itself: {np.mean(arrays['predicted/test'] == tested):.4f}")
    print(
        f"all {len(stages)} stages of {train[stages[0]].shape}: neoteny {ours:.2f} s ({first:.2f} s with compiling), "
        f"scikit-learn {total:.2f} s: {total / ours:.1f} times as long ({total / first:.1f} with compiling)"
    )


if __name__ == "__main__":
    main()
