"""All stages of a network, layer by layer: linear probe, rank, class variances, similarity, the start of the tunnel.

The measurements of Masarczyk et al., arXiv:2305.19753, of features as arrays: a run's, a stored checkpoint's, or those
of a network in another framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from neoteny.networks.initializers import named_key
from neoteny.probes.arrays import as_labels, flatten_features, pool_features
from neoteny.probes.linear import (
    Fitting,
    Item,
    as_probe_features,
    check_fitting,
    check_pool,
    number_classes,
    train_items,
)
from neoteny.probes.measurement import LayerMeasure, LayerProbe
from neoteny.probes.rank import numerical_ranks
from neoteny.probes.similarity import cka_matrix, class_variances, mean_absolute_difference
from neoteny.probes.tunnel import TunnelStart, trivially_separable, tunnel_percent, tunnel_start

if TYPE_CHECKING:
    import polars as pl

RANK_COLUMNS = 8_000
"""Of layers wider than this the rank is taken on so many columns, drawn once per layer (the paper's setting)."""


@dataclass(frozen=True, eq=False)
class LayerTable:
    """What was measured of one network; arrays are (layers,) or (layers, layers), in the order of `stages`.

    accuracy, degenerate: of the linear probes. ranks: tolerance -> numerical rank; no rank exceeds rank_bound =
    min(rank_samples - 1, rank_units). within, between, ratio: class variances. cka, difference: of pairs of stages, and
    NaN where widths differ or exceed 8,000 for the difference. final_accuracy: of the network itself. What was not
    measured is None.
    """

    stages: tuple[str, ...]
    accuracy: np.ndarray | None = None
    degenerate: np.ndarray | None = None
    ranks: Mapping[float, np.ndarray] = field(default_factory=dict)
    rank_samples: np.ndarray | None = None
    rank_units: np.ndarray | None = None
    rank_bound: np.ndarray | None = None
    within: np.ndarray | None = None
    between: np.ndarray | None = None
    ratio: np.ndarray | None = None
    cka: np.ndarray | None = None
    difference: np.ndarray | None = None
    final_accuracy: float | None = None
    tunnel: TunnelStart | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Metric -> one value a stage."""
        given = {
            "linear_probe": self.accuracy,
            "linear_probe_degenerate": self.degenerate,
            **{_rank_name(place, tolerance): rank for place, (tolerance, rank) in enumerate(self.ranks.items())},
            "rank_samples": self.rank_samples,
            "rank_units": self.rank_units,
            "rank_bound": self.rank_bound,
            "class_within": self.within,
            "class_between": self.between,
            "class_ratio": self.ratio,
        }
        return {metric: values for metric, values in given.items() if values is not None}

    def frame(self) -> pl.DataFrame:
        """One row a stage: its number, name, every column, and its CKA with the last stage."""
        import polars as pl

        columns: dict[str, object] = {"layer": range(1, len(self.stages) + 1), "stage": self.stages, **self.columns}
        if self.cka is not None:
            columns["cka_to_last"] = self.cka[:, -1]
        return pl.DataFrame(columns)

    def measurements(self) -> Iterator[tuple[str, str, float]]:
        """(metric, place, value) of everything measured: the rows a run records."""
        for metric, values in self.columns.items():
            for stage, value in zip(self.stages, values, strict=True):
                yield metric, stage, float(value)
        for i, one in enumerate(self.stages):
            for j, other in enumerate(self.stages[:i]):
                if self.cka is not None:
                    yield "linear_cka", f"{other}:{one}", float(self.cka[j, i])
                if self.difference is not None and not np.isnan(self.difference[j, i]):
                    yield "mean_absolute_difference", f"{other}:{one}", float(self.difference[j, i])
        if self.tunnel is not None and self.final_accuracy is not None:
            yield "final_accuracy", "", self.final_accuracy
            yield "tunnel_start", "", float(self.tunnel.layer)
            yield "tunnel_found", "", float(self.tunnel.found)
            yield "trivially_separable", "", float(trivially_separable(self.tunnel))
            if not np.isnan(self.tunnel.layer):
                yield "tunnel_percent", "", tunnel_percent(self.tunnel.layer, len(self.stages))


def _rank_name(place: int, tolerance: float) -> str:
    return "numerical_rank" if place == 0 else f"numerical_rank_{tolerance:g}"


class StageFeatures(NamedTuple):
    """Features of one stage of one network: those of the split it is fitted on (None: nothing is), and the test's."""

    train: Float32[np.ndarray, "n d"] | None
    test: Float32[np.ndarray, "m d"]


class LayerLabels(NamedTuple):
    """The labels of both splits, in whole numbers; none of train where nothing is fitted."""

    train: Int[np.ndarray, " n"]
    test: Int[np.ndarray, " m"]


class LayerKeys(NamedTuple):
    """Keys of one network's measurements: of the order of minibatches, and of the columns whose rank is taken."""

    minibatches: PRNGKeyArray
    columns: PRNGKeyArray


class LayerMeasurement:
    """Measures the stages of several networks, given a few stages at a time so that not all need be in memory."""

    def __init__(
        self, probe: LayerProbe, stages: Sequence[str], labels: Sequence[LayerLabels], keys: Sequence[LayerKeys]
    ):
        self._probe, self._stages, self._labels, self._keys = probe, tuple(stages), labels, keys
        self._fitting = Fitting(probe.l2, probe.epochs, probe.learning_rate, probe.batch_size, probe.standardize)
        check_fitting(self._fitting)
        self._found: list[dict[str, dict[str, float]]] = [{} for _ in labels]
        self._held: list[dict[str, np.ndarray]] = [{} for _ in labels]

    def take(self, features: Mapping[tuple[int, str], StageFeatures]) -> None:
        """Measure these stages of these networks (number, stage)."""
        probes = self._linear(features)
        for (network, stage), given in features.items():
            found = probes.get((network, stage), {})
            if LayerMeasure.RANK in self._probe.measures:
                found |= self._rank(network, stage, given.test)
            if LayerMeasure.VARIANCES in self._probe.measures:
                within, between = class_variances(given.test, self._labels[network].test)
                ratio = within / between if between > 0 else np.nan
                found |= {"within": float(within), "between": float(between), "ratio": float(ratio)}
            if LayerMeasure.SIMILARITY in self._probe.measures:
                self._held[network][stage] = given.test[: self._probe.similarity_samples].copy()
            self._found[network][stage] = found

    def tables(self, final_accuracy: Sequence[float] | None = None) -> list[LayerTable]:
        """A table for each network, once every stage was given."""
        return [
            self._table(network, None if final_accuracy is None else float(final_accuracy[network]))
            for network in range(len(self._labels))
        ]

    def _linear(self, features: Mapping[tuple[int, str], StageFeatures]) -> dict[tuple[int, str], dict[str, float]]:
        if not self._probe.fits:
            return {}
        items = []
        for (network, _), given in features.items():
            labels = self._labels[network]
            assert given.train is not None, "a linear probe needs features to fit"
            fitted, tested = number_classes(labels.train, labels.test)
            items.append(Item(given.train, fitted, given.test, tested, self._keys[network].minibatches))
        results = train_items(items, self._fitting)
        return {
            place: {"accuracy": accuracy, "degenerate": degenerate}
            for place, (accuracy, degenerate) in zip(features, results, strict=True)
        }

    def _rank(self, network: int, stage: str, test: np.ndarray) -> dict[str, float]:
        test = test[: self._probe.rank_samples]
        n, width = test.shape
        if width > RANK_COLUMNS:
            key = named_key(self._keys[network].columns, stage)
            test = test[:, np.sort(np.asarray(jax.random.permutation(key, width))[:RANK_COLUMNS])]
        units = test.shape[1]
        ranks = numerical_ranks(test, self._probe.tolerances)
        sizes = {"rank_samples": n, "rank_units": units, "rank_bound": min(n - 1, units)}
        return {**{f"rank {place}": float(rank) for place, rank in enumerate(ranks)}, **sizes}

    def _table(self, network: int, final_accuracy: float | None) -> LayerTable:
        stages, found = self._stages, self._found[network]

        def column(name: str) -> np.ndarray | None:
            return np.array([found[stage][name] for stage in stages]) if name in found[stages[0]] else None

        accuracy = column("accuracy")
        ranks = {tolerance: column(f"rank {place}") for place, tolerance in enumerate(self._probe.tolerances)}
        cka = difference = None
        if LayerMeasure.SIMILARITY in self._probe.measures:
            held = [self._held[network][stage] for stage in stages]
            cka, difference = cka_matrix(held), _differences(held)
        tunnel = None
        if LayerMeasure.TUNNEL in self._probe.measures and final_accuracy is not None:
            assert accuracy is not None, "the tunnel needs the linear probes"
            tunnel = tunnel_start(accuracy, final_accuracy, self._probe.threshold)
        return LayerTable(
            stages,
            accuracy,
            column("degenerate"),
            {tolerance: rank for tolerance, rank in ranks.items() if rank is not None},
            column("rank_samples"),
            column("rank_units"),
            column("rank_bound"),
            column("within"),
            column("between"),
            column("ratio"),
            cka,
            difference,
            final_accuracy,
            tunnel,
        )


def _differences(held: Sequence[np.ndarray]) -> np.ndarray:
    """Mean absolute difference of every pair of one width; of stages too wide to hold in float64 pairs, NaN."""
    found = np.full((len(held), len(held)), np.nan)
    for i, x in enumerate(held):
        for j, y in enumerate(held[: i + 1]):
            if x.shape == y.shape and x.shape[1] <= RANK_COLUMNS:
                found[i, j] = found[j, i] = float(mean_absolute_difference(x, y))
    return found


def layerwise(
    train_features: Mapping[str, ArrayLike],
    train_labels: ArrayLike,
    test_features: Mapping[str, ArrayLike],
    test_labels: ArrayLike,
    *,
    final_accuracy: float | None = None,
    pool: Literal["flat", "gap"] = "flat",
    threshold: float = 0.95,
    tolerances: Sequence[float] = (1e-3,),
    similarity_samples: int = 2_000,
    l2: float = 1e-4,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> LayerTable:
    """Everything `LayerProbe` measures, of features from any framework: {stage: (n, ...)} in the network's order.

    A stage's output is flattened, or averaged over positions (channels last) with pool="gap". Linear probes are fitted
    on the train features and scored on the test features; all else is of the test features, and similarity of their
    first `similarity_samples`. final_accuracy: of the network itself on the test split, for the start of the tunnel
    (None: not measured). key: orders minibatches and draws the 8,000 columns of wider stages whose rank is taken.
    ValueError for features and labels that do not fit.
    """
    if not train_features or list(train_features) != list(test_features):
        raise ValueError(
            "train and test features must have the same stages in the same order; they have "
            f"{', '.join(train_features) or 'none'} and {', '.join(test_features) or 'none'}"
        )
    measures = tuple(LayerMeasure)
    probe = LayerProbe(
        "layerwise",
        measures,
        pool=pool,
        threshold=threshold,
        tolerances=tuple(tolerances),
        similarity_samples=similarity_samples,
        l2=l2,
        epochs=epochs,
        learning_rate=learning_rate,
    )
    given = {}
    for stage in train_features:
        train, test = (
            as_probe_features(stage_features(features[stage], pool), f"{split} features of stage {stage!r}")
            for split, features in (("train", train_features), ("test", test_features))
        )
        if train.shape[1] != test.shape[1]:
            raise ValueError(f"stage {stage!r} has {train.shape[1]} units in train and {test.shape[1]} in test")
        as_labels(train_labels, train.shape, "train_labels", f"the train features of {stage!r}")
        as_labels(test_labels, test.shape, "test_labels", f"the test features of {stage!r}")
        given[0, stage] = StageFeatures(train, test)
    shared = jax.random.key(0) if key is None else key
    labels = LayerLabels(np.asarray(train_labels), np.asarray(test_labels))
    measurement = LayerMeasurement(probe, tuple(train_features), [labels], [LayerKeys(shared, shared)])
    measurement.take(given)
    return measurement.tables(None if final_accuracy is None else [final_accuracy])[0]


def stage_features(output: ArrayLike, pool: Literal["flat", "gap"], lanes: int = 0) -> np.ndarray:
    """A stage's output (*lanes, n, ...) as float32 features (*lanes, n, d), flattened or pooled."""
    check_pool(pool)
    shaped = pool_features(output, lanes=lanes) if pool == "gap" else flatten_features(output, lanes=lanes)
    return as_probe_features(shaped, "features")
