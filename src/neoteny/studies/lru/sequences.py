"""Training on sequences: the ladder, the stability table, discretisations, recall and text, on one configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array

from neoteny.errors import UsageError
from neoteny.lab.configs import Lane
from neoteny.lab.study import Experiment
from neoteny.learners.learner import Learner
from neoteny.learners.optimizers import adamw_groups, warmup_cosine
from neoteny.learners.supervised import CROSS_ENTROPY, Objective, supervised
from neoteny.networks import Chain, Dense, Layer, gelu, lecun, named_key
from neoteny.networks.activations import Activation
from neoteny.networks.recurrent import slow_parameters
from neoteny.networks.residual_sequence import Gate, SequenceNetwork, sequence_network
from neoteny.networks.sequence import Compare, Embedding, LastSteps, MeanPool, Pairs
from neoteny.studies.lru.models import ModelName, mixer
from neoteny.tasks import places, sequences
from neoteny.tasks.arrays import Arrays
from neoteny.tasks.sources import Minibatch
from neoteny.tasks.streams import Stream, Task, single
from neoteny.training.events import Evaluate, Event, Switch, Train

DataName = Literal[
    "digits",
    "permuted_digits",
    "scifar",
    "scifar_grey",
    "listops",
    "text",
    "retrieval",
    "pathfinder",
    "pathx",
    "recall",
]

PATTERN = (20, 7)
"""Steps and bits of a pattern to be recalled."""

SIZES: dict[str, int] = {
    "digits": 16, "permuted_digits": 16, "scifar": 32, "scifar_grey": 32, "listops": 2_000, "text": 4_096,
    "retrieval": 4_000, "pathfinder": 32, "pathx": 128, "recall": 256,
}  # fmt: skip
"""The size of each task where none is chosen: of the archive's tasks theirs (Tay et al. 2021, Long Range Arena)."""


@dataclass(frozen=True)
class Config:
    """One model trained on one task."""

    data: DataName = "digits"
    size: int = 0  # side of the pictures, length of a text or expression, or delay of a recall; 0 for that of SIZES
    examples: int = 0  # training examples, 0 for all there are
    tested: int = 2_000  # test examples, a fixed random part; 0 for all there are
    model: ModelName = "lru"
    depth: int = 2
    width: int = 64
    state: int = 64
    batch: int = 50
    steps: int = 600
    dropout: float = 0.0
    half_glu: bool = False  # z * sigmoid(W z), one linear map fewer
    bidirectional: bool = False
    learning_rate: Lane[float] = 4e-3
    factor: Lane[float] = 0.25  # of the learning rate, for eigenvalues, input matrix and gamma
    weight_decay: Lane[float] = 0.05
    r_min: Lane[float] = 0.9
    r_max: Lane[float] = 0.999
    max_phase: Lane[float] = 6.283185307179586
    seed: Lane[int] = 0

    def __post_init__(self):
        if self.size == 0:
            object.__setattr__(self, "size", SIZES[self.data])
        for name in ("size", "depth", "width", "state", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("examples", "tested", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        pictures = {"digits": (28,), "permuted_digits": (28,), "scifar": (), "scifar_grey": ()}
        if self.data in pictures and 32 % self.size and self.size not in pictures[self.data]:
            raise ValueError(
                f"size: pictures of {self.data} have a side that divides 32, such as 8, 16 or 32; not {self.size}"
            )
        if self.bidirectional and self.model == "bag":
            raise ValueError("bidirectional: a bag of symbols has no direction; leave it False")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.learning_rate > 0 or not self.factor > 0 or not self.weight_decay >= 0:
            raise ValueError(
                "learning_rate and factor must be positive and weight_decay not negative, not "
                f"{self.learning_rate}, {self.factor}, {self.weight_decay}"
            )
        if not 0 <= self.r_min <= self.r_max <= 1 or self.r_min == 1 or self.r_max == 0:
            raise ValueError(
                f"0 <= r_min <= r_max <= 1 with r_min < 1 and r_max > 0 are needed, not {self.r_min} and {self.r_max}"
            )
        if not 0 < self.max_phase <= 6.2832:
            raise ValueError(f"max_phase must be above 0 and at most 2 pi, not {self.max_phase}")


# Data -------------------------------------------------------------------------------------------------------------


def _archive(name: str) -> Path | None:
    root = places.data_folder()
    return root / name if root is not None and (root / name).is_dir() else None


def data_of(config: Config) -> Arrays:
    """The task's data: the archive's files in NEOTENY_DATA (listops, aan, pathfinder32, pathfinder128) if they are
    there, else what the task's own generator gives; of `examples`, a fixed random part.
    """
    few = config.examples
    match config.data:
        case "digits" | "permuted_digits":
            data = sequences.sequential_digits(config.size, permutation=1 if config.data == "permuted_digits" else None)
        case "scifar" | "scifar_grey":
            data = sequences.sequential_cifar10(grey=config.data == "scifar_grey", pool=32 // config.size)
        case "text":
            return sequences.imdb(config.size, examples=few or None)
        case "listops":
            folder = _archive("listops")
            if folder is not None:
                data = sequences.listops_tsv(folder, length=config.size)
            else:
                # shorter expressions are shallower: the archive's 500 to 2,000 tokens go with a depth of 10
                least, depth = (500, 10) if config.size >= 2_000 else (config.size // 10, 5)
                return sequences.listops(few or 96_000, min_length=least, max_length=config.size, max_depth=depth)
        case "retrieval":
            folder = _archive("aan")
            if folder is None:
                raise UsageError(
                    f"retrieval: no folder aan with the archive's pairs in {places.VARIABLE}; get them from the Long "
                    "Range Arena, or choose other tasks with --data"
                )
            data = sequences.aan(folder, config.size)
        case "pathfinder" | "pathx":
            folder = _archive(f"pathfinder{config.size}")
            if folder is None:
                return sequences.pathfinder(few or 160_000, side=config.size)
            data = sequences.pathfinder_archive(folder / "curv_contour_length_14")
        case "recall":
            steps, bits = PATTERN
            return sequences.patterns(few or 10_000, steps=steps, bits=bits)
    return fewer(data, few) if few else data


def fewer(data: Arrays, examples: int) -> Arrays:
    """`data` with only so many training examples, chosen once for all; the other splits as they are."""
    rows = data.splits["train"]
    if examples > len(rows):
        raise UsageError(f"examples={examples}, and {data.name} has {len(rows)} to train on")
    chosen = data.splits["train"][:examples]
    splits = {**data.splits, "train": chosen}
    return Arrays(
        f"{data.name}-{examples}", data.inputs, data.targets, splits, data.classes, data.source, data.class_names,
        data.tokens,
    )  # fmt: skip


def stream(config: Config) -> Stream:
    """The one task; a recall is laid out in time by its transform."""
    data = data_of(config)
    return sequences.recall(data, config.size) if config.data == "recall" else single(data)


# Learner ----------------------------------------------------------------------------------------------------------


def _bits_loss(logits: Array, bits: Array) -> Array:
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, bits).reshape(len(logits), -1), axis=-1)


def _bits_score(logits: Array, bits: Array) -> dict[str, Array]:
    right = ((logits > 0) == (bits > 0.5)).astype(jnp.float32)
    return {"loss": _bits_loss(logits, bits), "accuracy": jnp.mean(right.reshape(len(logits), -1), axis=-1)}


BITS = Objective(_bits_loss, _bits_score)
"""Cross-entropy of every bit, in nats; scores `loss` and `accuracy`, the share of bits given back."""


def maker(config: Config) -> SequenceNetwork:
    """Encoder, blocks, head, by the task's kind of input and output."""
    data, width = data_of(config), config.width
    return sequence_network(
        mixer(config),
        encoder=partial(_embedding, config, data.tokens) if data.tokens else _channels(config, data),
        width=width,
        depth=0 if config.model == "bag" else config.depth,
        head=partial(_head, config, PATTERN[1] if config.data == "recall" else data.classes or 1),
        dropout=config.dropout,
        gate=Gate.HALF if config.half_glu else Gate.FULL,
    )


def _channels(config: Config, data: Arrays) -> int:
    """Input channels of a task without tokens; a recall's bits have two marks beside them."""
    return PATTERN[1] + 2 if config.data == "recall" else data.input_shape[-1]


def _embedding(config: Config, tokens: int, key: Array) -> Layer:
    embedding = Embedding(tokens, config.width, key=key)
    return Chain(Pairs(), embedding) if config.data == "retrieval" else embedding


def _head(config: Config, outputs: int, key: Array) -> Layer:
    """The last steps of a recall, the mean over time of all others, of a pair compared; then a linear readout."""
    pooled: list[Layer] = [LastSteps(PATTERN[0]) if config.data == "recall" else MeanPool()]
    features = config.width
    if config.data == "retrieval":
        pooled.append(Compare())
        features = 4 * config.width
    if config.model == "bag":
        # the baseline that knows which symbols there are and not in which order
        pooled += [Dense(features, 4 * config.width, key=named_key(key, "hidden")), Activation(gelu)]
        features = 4 * config.width
    return Chain(*pooled, Dense(features, outputs, key=key, initializer=lecun))


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine; eigenvalues, B and gamma at a factor of the rate and without decay."""
    return adamw_groups(
        warmup_cosine(config.learning_rate, config.steps),
        weight_decay=config.weight_decay,
        slow=slow_parameters,
        factor=config.factor,
    )


def learner(config: Config) -> Learner:
    """Supervised learning of classes, or of the bits of a recall."""
    objective = BITS if config.data == "recall" else CROSS_ENTROPY
    return supervised(maker(config), optimizer(config), objective=objective)


EVALUATION_STEPS = 65_536
"""Time steps evaluated at once: rows of a batch times their length, a bound on memory."""


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """The first update apart, for the loss before learning; then all the others, then the test split."""
    (task,) = tasks
    length = config.size + 2 * PATTERN[0] if config.data == "recall" else task.data.inputs.shape[1]
    events: list[Event] = [Switch(task), Train(task, 1, record_every=1)]
    if config.steps > 1:
        events.append(Train(task, config.steps - 1))
    events.append(Evaluate(task, "test", samples=config.tested or None, at_once=max(1, EVALUATION_STEPS // length)))
    return tuple(events)


def source(config: Config) -> Minibatch:
    """Shuffled minibatches."""
    return Minibatch(config.batch)


# Experiments ------------------------------------------------------------------------------------------------------

LADDER: tuple[ModelName, ...] = (
    "rnn_tanh", "rnn_relu", "rnn_linear", "complex", "exponential", "stable", "ring", "lru", "s4d", "s5",
)  # fmt: skip
"""From the dense recurrent network to the LRU, one change at a time; then the state-space layers in the same block."""

GLOROT = {"r_min": (0.0,), "r_max": (1.0,)}
"""Eigenvalues uniform on the unit disk: the spectrum of a Glorot matrix, where no ring was chosen."""

TABLE = {
    # data: shared fields, and (r_min, r_max) of the LRU and of the ring alone
    "scifar": ({"width": (512,), "state": (384,), "steps": (180_000,), "batch": (50,), "factor": (0.25,),
                "dropout": (0.1,), "learning_rate": (4e-3,)}, (0.9, 0.999), (0.9, 0.99)),
    "listops": ({"width": (128,), "state": (256,), "steps": (80_000,), "batch": (32,),
                 "factor": (0.5,), "dropout": (0.0,), "learning_rate": (2e-3,)}, (0.0, 0.99), (0.0, 1.0)),
    "text": ({"width": (256,), "state": (192,), "steps": (50_000,), "batch": (32,), "factor": (0.1,),
              "dropout": (0.1,), "learning_rate": (2e-3,)}, (0.5, 0.9), (0.0, 0.9)),
    "retrieval": ({"width": (128,), "state": (256,), "steps": (100_000,), "batch": (64,),
                   "factor": (0.5,), "dropout": (0.1,), "learning_rate": (2e-3,)}, (0.5, 0.9), (0.5, 0.9)),
    "pathfinder": ({"width": (192,), "state": (256,), "steps": (500_000,), "batch": (64,),
                    "factor": (0.25,), "dropout": (0.0,), "learning_rate": (2e-3,), "bidirectional": (True,)},
                   (0.9, 0.999), (0.9, 0.999)),
    "pathx": ({"width": (128,), "state": (256,), "steps": (250_000,), "batch": (32,), "factor": (0.25,),
               "dropout": (0.0,), "learning_rate": (2e-3,), "bidirectional": (True,), "half_glu": (True,),
               "max_phase": (0.3141592653589793,)}, (0.999, 0.9999), (0.999, 0.9999)),
}  # fmt: skip
"""The paper's table of settings (specification, section 3). Learning rates other than sCIFAR's are choices."""

SMOKE = {
    "size": (8,), "examples": (40,), "depth": (1,), "width": (4,), "state": (4,), "batch": (8,), "steps": (5,),
    "seed": range(2),
}  # fmt: skip
QUICK = {"steps": (400,), "seed": range(5)}
PAPER = {"depth": (6,), "tested": (0,), "seed": range(3)}


def _rungs(models: tuple[ModelName, ...], common: dict, chosen: tuple[float, float], ring: tuple[float, float]) -> list:
    """An axis product for each of the models, with the ring of each."""
    blocks = []
    for model in models:
        radii = {"lru": chosen, "ring": ring}.get(model)
        where = GLOROT if radii is None else {"r_min": (radii[0],), "r_max": (radii[1],)}
        blocks.append({**common, "model": (model,), **where})
    return blocks


def ladder_axes(preset: str) -> list[dict]:
    """Every rung and both state-space layers: on sequential digits (quick), on the Long Range Arena (paper)."""
    if preset == "paper":
        return [
            one
            for data, (fields, chosen, ring) in TABLE.items()
            for one in _rungs(LADDER, {"data": (data,), **PAPER, **fields}, chosen, ring)
        ]
    common = SMOKE if preset == "smoke" else QUICK
    return _rungs(LADDER, {"data": ("digits",), **common}, (0.9, 0.999), (0.9, 0.99))


def stability_axes(preset: str) -> dict | list[dict]:
    """Without stability, with it, and with gamma, over the inner and the outer radius."""
    models = ("exponential", "ring", "lru")
    if preset == "smoke":
        return {**SMOKE, "model": models, "r_min": (0.9,), "r_max": (0.999,)}
    if preset == "paper":
        fields, _, _ = TABLE["scifar"]
        base = {"data": ("scifar",), **PAPER, **fields}
        return {**base, "model": models, "r_min": (0.0, 0.5, 0.9), "r_max": (0.9, 0.99, 0.999)}
    return {**QUICK, "steps": (300,), "model": models, "r_min": (0.9,), "r_max": (0.9, 0.999)}


def discretisation_axes(preset: str) -> dict:
    """S4D with Delta * B for the exact input, and with Delta of A and B untied; S4D itself is the ladder's."""
    models = ("s4d_delta_b", "s4d_untied")
    if preset == "smoke":
        return {**SMOKE, **GLOROT, "model": models}
    if preset == "paper":
        fields, _, _ = TABLE["scifar"]
        return {"data": ("scifar",), **PAPER, **fields, **GLOROT, "model": models}
    return {**QUICK, **GLOROT, "model": models}


def recall_axes(preset: str) -> dict:
    """Gamma (the model ring has none) by range of phases, near the unit circle."""
    both = {"data": ("recall",), "model": ("ring", "lru"), "max_phase": (6.283185307179586, 0.3141592653589793)}
    radii = {"r_min": (0.999,), "r_max": (0.9999,)}
    if preset == "smoke":
        return {**SMOKE, **both, **radii}
    if preset == "paper":
        return {**both, **radii, **PAPER, "size": (1_024,), "width": (128,), "state": (256,), "steps": (100_000,),
                "batch": (32,)}  # fmt: skip
    return {**both, **radii, **QUICK, "size": (256,), "depth": (1,), "steps": (600,), "batch": (32,)}


def text_axes(preset: str) -> list[dict]:
    """The LRU on bytes of reviews, and a bag of the same bytes with the same budget."""
    if preset == "smoke":
        common = {**SMOKE, "data": ("listops",), "size": (30,)}
    elif preset == "paper":
        common = {"data": ("text",), **PAPER, **TABLE["text"][0]}
    else:
        common = {**QUICK, "data": ("text",), "size": (512,), "steps": (600,), "batch": (32,)}
    return [{**common, "model": (model,), "r_min": (0.5,), "r_max": (0.9,)} for model in ("bag", "lru")]


LANES = 5
"""Runs stepped together: a lane of sequences holds hundreds of megabytes, and more of them are no faster."""


def _experiment(name: str, axes: Callable) -> Experiment:
    return Experiment(name, Config, axes, stream, learner, script, source, LANES)


ladder = _experiment("ladder", ladder_axes)
stability = _experiment("stability", stability_axes)
discretisation = _experiment("discretisation", discretisation_axes)
recall = _experiment("recall", recall_axes)
text = _experiment("text", text_axes)
