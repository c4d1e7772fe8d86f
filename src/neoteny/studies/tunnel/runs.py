"""Records of the tunnel study, run by run: what its claims and figures ask of them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from neoteny.probes import tunnel_start
from neoteny.studies.tunnel.settings import CONVERGED, RHO, Config

UNFIT = ("digits", "mnist_digits", "mnist", "fashion_mnist", "teacher")
"""Data sets that cannot test the hypothesis: too easy, or made by a network. Verdicts on them are withheld."""

STRUCTURE = (
    "data", "ood", "ood_classes", "network", "width", "factor", "init", "normalise", "batch", "stop",
    "learning_rate", "momentum", "weight_decay", "drops", "probe_epochs", "rank_samples",
)  # fmt: skip
"""What must be one setting for a claim, besides what it varies."""

AFTER_TASK_1, AT_THE_END = 0, -1


@dataclass(frozen=True, eq=False)
class Run:
    """The records of one run, with what the claims ask of it."""

    rows: pl.DataFrame

    def field(self, name: str) -> Any:
        return self.rows[name][0]

    @functools.cached_property
    def seed(self) -> int:
        return int(self.field("seed"))

    def _values(self, metric: str, branch: str, task: int, split: str | None, when: int) -> pl.DataFrame:
        chosen = (pl.col("metric") == metric) & (pl.col("branch") == branch) & (pl.col("task") == task)
        found = self.rows.filter(chosen if split is None else chosen & (pl.col("split") == split))
        if found.is_empty():
            return found
        return found.filter(pl.col("event") == found["event"].unique().sort()[when])

    def curve(self, metric: str, *, branch: str = "", task: int = 0, when: int = AT_THE_END) -> np.ndarray:
        """(layers,) of a metric measured of every hidden stage, in the network's order; empty if it was not."""
        return self._values(metric, branch, task, None, when)["value"].to_numpy()

    def value(
        self, metric: str, place: str = "", *, branch: str = "", task: int = 0, split: str | None = None, when: int = -1
    ) -> float:
        """One number; NaN if it was not measured."""
        found = self._values(metric, branch, task, split, when).filter(pl.col("place") == place)["value"]
        return float(found[0]) if len(found) else math.nan

    def accuracy(self, split: str = "test", *, task: int = 0, when: int = AT_THE_END) -> float:
        return self.value("accuracy", task=task, split=split, when=when)

    @functools.cached_property
    def layers(self) -> int:
        """The number of measurement points."""
        return len(self.curve("linear_probe", when=AFTER_TASK_1))

    @functools.cached_property
    def classes(self) -> int:
        """The number of classes trained on."""
        return int(self.field("classes")) or CLASSES.get(self.field("data"), 10)

    @functools.cached_property
    def converged(self) -> bool:
        """Whether every task was fitted."""
        trained = [self.accuracy("train", task=task, when=AFTER_TASK_1) for task in (0, 1)]
        return all(math.isnan(each) or each >= CONVERGED for each in trained[1:]) and trained[0] >= CONVERGED

    def start(self, rho: float = RHO, branch: str = ""):
        """K and whether a layer fits, from the probes and the network's own test accuracy, after the first task."""
        curve = self.curve("linear_probe", branch=branch, when=AFTER_TASK_1)
        return tunnel_start(curve, self.accuracy(when=AFTER_TASK_1), rho)

    @functools.cached_property
    def cut(self) -> int:
        """K at the default threshold: the last extractor layer, counted from 1."""
        return self.cut_at(RHO)

    def cut_at(self, rho: float) -> int:
        """K at another threshold; all layers if none reaches it."""
        return int(self.start(rho).layer)

    @functools.cached_property
    def stages(self) -> tuple[str, ...]:
        """The names of the measurement points, in order."""
        return tuple(self._values("linear_probe", "", 0, None, AFTER_TASK_1)["place"].to_list())

    @functools.cached_property
    def trivial(self) -> bool:
        """Whether the first layer's features already separate the classes: such data cannot test for a tunnel."""
        return self.cut == 1 and bool(self.start().found)

    def percent(self, rho: float = RHO, branch: str = "") -> float:
        """Length of the tunnel in percent of the layers; NaN if the probes of a control were not trained."""
        if not len(self.curve("linear_probe", branch=branch, when=AFTER_TASK_1)):
            return math.nan
        return 100 * (self.layers - self.start(rho, branch).layer) / self.layers


CLASSES = {"cifar100": 100}
"""Classes of the known data sets that have not ten."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of one claim: those that were fitted, and how many were left out because they were not.

    unfitted: those of them that finished. aside: what else was left out, in words.
    """

    fitted: tuple[Run, ...]
    excluded: int
    data: str = ""
    varied: tuple[str, ...] = ()
    unfitted: tuple[Run, ...] = ()
    aside: str = ""

    def measured(self, measure: Callable[[Run], float]) -> np.ndarray:
        return np.array([measure(run) for run in self.fitted], float)


def each_once(frame: pl.DataFrame) -> list[Run]:
    """The runs of these records; of two that differ in nothing but `controls`, the one that has them."""
    fields = [field.name for field in dataclasses.fields(Config) if field.name != "controls"]
    found: dict[tuple, Run] = {}
    for part in frame.partition_by("run", maintain_order=True) if len(frame) else []:
        run = Run(part)
        place = (run.field("experiment"), *(run.field(name) for name in fields))
        if place not in found or run.field("controls"):
            found[place] = run
    return list(found.values())


def finished(run: Run) -> bool:
    """Whether the network was trained and looked at to the end, with numbers to show for it."""
    probes = run.curve("linear_probe", when=AFTER_TASK_1)
    return not math.isnan(run.accuracy()) and len(probes) > 0 and bool(np.isfinite(probes).all())


def chosen_runs(frame: pl.DataFrame, *conditions: pl.Expr, free: Sequence[str] = ()) -> Runs:
    """The finished runs that meet the conditions; `free` are the fields the claim varies."""
    rows = frame.filter(*conditions) if conditions else frame
    if rows.is_empty():
        return Runs((), 0)
    found = each_once(rows)
    diverged = [run for run in found if not finished(run) and ("diverged" in run.rows["metric"] or run.layers > 0)]
    runs = sorted(filter(finished, found), key=lambda run: run.seed)
    varied = [name for name in STRUCTURE if name not in free and len({run.field(name) for run in runs}) > 1]
    fitted, unfitted = (tuple(run for run in runs if run.converged is which) for which in (True, False))
    return Runs(fitted, len(unfitted) + len(diverged), rows["data"][0], tuple(varied), unfitted)


def deepest(frame: pl.DataFrame) -> Runs:
    """The deepest MLPs of `depth`, which most claims are about."""
    rows = frame.filter(pl.col("experiment") == "depth")
    return chosen_runs(rows, pl.col("depth") == rows["depth"].max()) if len(rows) else Runs((), 0)


def looked_at(frame: pl.DataFrame) -> dict[str, Runs]:
    """The networks every layer of which was looked at: the deepest MLP of `depth`, and each of `families`."""
    found = {}
    mlps = deepest(frame)
    if mlps.fitted or mlps.excluded:
        found[network_name(mlps.fitted[0]) if mlps.fitted else "the deepest MLP"] = mlps
    rows = frame.filter(pl.col("experiment") == "families")
    for (network, data), part in rows.partition_by("network", "data", as_dict=True, maintain_order=True).items():
        runs = chosen_runs(part)
        if runs.fitted or runs.excluded:
            found[f"{network}, {data}"] = runs
    return found


def swaps(frame: pl.DataFrame) -> Runs:
    """The full networks of `swap` that have a tunnel to exchange; VGG where there is one, as in the paper."""
    whole = whole_networks(chosen_runs(swap_family(frame), free=("network",)))
    full = tuple(run for run in whole.fitted if run.cut < run.layers)
    without = len(whole.fitted) - len(full)
    aside = f"{without} of {len(whole.fitted)} runs have no tunnel after task 1 to exchange" if without else ""
    return dataclasses.replace(whole, fitted=full, aside=aside)


def whole_networks(runs: Runs) -> Runs:
    """Of networks and shortened ones the whole ones: those with the most layers, fitted or not."""
    most = max((run.layers for run in (*runs.fitted, *runs.unfitted)), default=0)
    fitted, unfitted = (tuple(run for run in part if run.layers == most) for part in (runs.fitted, runs.unfitted))
    return dataclasses.replace(
        runs, fitted=fitted, unfitted=unfitted, excluded=runs.excluded - len(runs.unfitted) + len(unfitted)
    )


def swap_family(frame: pl.DataFrame) -> pl.DataFrame:
    """The runs of `swap`: the convolutional networks where there are any."""
    rows = frame.filter(pl.col("experiment") == "swap")
    convolutional = rows.filter(pl.col("network") != "mlp")
    return rows if convolutional.is_empty() else convolutional


COMBINATIONS = ("E1T1", "E1T2", "E2T2", "E2T1", "E2T1 (FT)", "E2 (FT)")


def swapped(run: Run, combination: str, task: int, rho: float = RHO) -> float:
    """Test accuracy in points of a combination on a task (0 or 1), cut after the K measured after task 1."""
    cut = run.cut_at(rho)
    if combination in ("E1T1", "E2T2"):
        return 100 * run.value("swap_accuracy", combination, task=task)
    if combination == "E2 (FT)":
        return 100 * run.curve("linear_probe", task=task)[cut - 1]
    if combination == "E2T1 (FT)":
        return 100 * _only(run.curve("linear_probe", branch=f"E2T1 {cut}", task=task))
    return 100 * run.value("swap_accuracy", f"{combination}:{cut}", task=task)


def _only(values: np.ndarray) -> float:
    return float(values[0]) if len(values) else math.nan


def all_runs(frame: pl.DataFrame, experiment: str) -> list[Run]:
    """Every finished run of an experiment, fitted or not: figures hide none."""
    rows = frame.filter(pl.col("experiment") == experiment)
    return [run for run in each_once(rows) if finished(run)]


def network_name(run: Run) -> str:
    """What a panel is called."""
    if run.field("network") == "mlp":
        return f"MLP-{run.field('depth')}, width {run.field('width')}"
    return f"{run.field('network')}, {run.field('data')}"
