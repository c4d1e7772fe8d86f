"""What is compared: the networks, batch sizes and data, for every contestant alike. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS = 5_000
"""Rows of every data set, as many as the offline MNIST digits have."""

LABEL_NOISE = 0.25
"""Share of labels drawn at random, so that the loss is well above zero while first updates are compared."""


@dataclass(frozen=True)
class Case:
    """An MLP with ReLU, softmax cross-entropy and Adam(1e-3), trained on `ROWS` rows held in memory.

    sizes: features, hidden widths, classes. batch: rows of a minibatch. lanes: how many networks are
    trained together when more than one is.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    lanes: int
    learning_rate: float = 1e-3

    @property
    def title(self) -> str:
        """For tables, such as MLP 784-256-10, batch 128."""
        return f"MLP {'-'.join(map(str, self.sizes))}, batch {self.batch}"

    def matmul_flops(self) -> int:
        """Operations of one update's matrix products."""
        return sum(2 * m * k * n for m, k, n in (dot.shape for dot in self.dots()))

    def dots(self) -> list[Dot]:
        """The matrix products of one update: forward, weight gradients, and input gradients but the first."""
        found = []
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True), 1):
            found.append(Dot(f"forward {layer}", "forward", (self.batch, fan_in, fan_out)))
            found.append(Dot(f"dW {layer}", "weight", (fan_in, self.batch, fan_out)))
            if layer > 1:
                found.append(Dot(f"dX {layer}", "input", (self.batch, fan_out, fan_in)))
        return found


@dataclass(frozen=True)
class Dot:
    """A product of (m, k) by (k, n); `role` says which operand is stored transposed.

    forward: none. weight: the left one, stored (k, m). input: the right one, stored (n, k).
    """

    name: str
    role: str
    shape: tuple[int, int, int]

    def operands(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes as stored."""
        m, k, n = self.shape
        return ((k, m) if self.role == "weight" else (m, k)), ((n, k) if self.role == "input" else (k, n))


CASES = (
    Case("medium", (784, 256, 256, 256, 10), 128, 8),
    Case("wide", (784, 1024, 1024, 10), 512, 8),
    Case("small", (50, 56, 56, 3), 64, 45),
)


def data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and int32 labels: noisy class prototypes; 784 pixels are uint8, mostly zero, as in MNIST."""
    rng = np.random.default_rng(0)
    features, classes = case.sizes[0], case.sizes[-1]
    shown_class = rng.integers(0, classes, ROWS)
    noisy = rng.random(ROWS) < LABEL_NOISE
    labels = np.where(noisy, rng.integers(0, classes, ROWS), shown_class).astype(np.int32)
    if features == 784:
        strokes = rng.random((classes, features)) < 0.2
        shown = np.where(rng.random((ROWS, features)) < 0.1, rng.random((ROWS, features)) < 0.2, strokes[shown_class])
        return np.where(shown, rng.integers(64, 256, (ROWS, features)), 0).astype(np.uint8), labels
    prototypes = rng.normal(size=(classes, features))
    return (prototypes[shown_class] + 2.0 * rng.normal(size=(ROWS, features))).astype(np.float32), labels
