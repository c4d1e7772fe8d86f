"""The page of a diagnosis: the answer, the paired gains it rests on, and the curves of the copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from neoteny.analysis.aggregates import Interval, mean_estimate
from neoteny.analysis.diagnosis import Diagnosis, Limited
from neoteny.lab.diagnose import WHOLE, Scores, as_json
from neoteny.lab.store import to_json_bytes, write_atomic
from neoteny.report import formats
from neoteny.report.figures import curves, intervals, save, settings
from neoteny.report.page import ConfigField, NextCommand, Page, RenderedFigure, Table, read_figure, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEANINGS = {
    Limited.YES: "With fresh parameters in the head and nothing else changed it learns better: lost plasticity is a "
    "limit of this run.",
    Limited.NO: "Fresh parameters in the head change next to nothing: what limits this run, if anything, is not "
    "plasticity lost in its head.",
    Limited.UNDECIDED: "The interval neither lies above 0 nor within the margin of it: more `--lanes` narrow it.",
}


@dataclass(frozen=True)
class Subject:
    """What was diagnosed, and how. configuration: of the run. command: makes the page again; narrower: with twice as
    many pairs.
    """

    study: str
    preset: str
    experiment: str
    checkpoint: str
    update: int
    horizon: int
    lanes: int
    stage: str
    task: str
    margin: float
    configuration: Mapping[str, Any]
    environment: Mapping[str, str]
    command: str
    narrower: str


def write_diagnosis(folder: Path, found: Diagnosis, scores: Scores, subject: Subject) -> Path:
    """Write report.html, diagnosis.json and figures/ into `folder`; returns the page's path."""
    rendered = []
    for name, (title, caption, figure) in _figures(scores).items():
        paths = save(figure, folder / "figures", name)
        rendered.append(read_figure(name, caption, list(paths), page_folder=folder, title=title))
    write_atomic(folder / "diagnosis.json", to_json_bytes(as_json(found, scores, subject)))
    path = folder / "report.html"
    write_atomic(path, render(_page(found, scores, subject, rendered)).encode())
    return path


def describe(found: Diagnosis, scores: Scores) -> str:
    """The answer as plain text."""
    lines = [f"{found.answer}: {_basis(found, scores)}"]
    for arm in scores.curves:
        if arm != "control":
            gain = _estimate(scores.gain(arm))
            lines.append(f"  {arm:<12} gain {formats.number(gain.value)} {formats.interval((gain.low, gain.high))}")
    lines += [f"  {arm} left out: {why}" for arm, why in scores.left_out.items()]
    return "\n".join([*lines, *(f"  {line}" for line in _of_the_encoder(found, scores))])


def _of_the_encoder(found: Diagnosis, scores: Scores) -> tuple[str, ...]:
    """What the copy without an encoder adds, where the head alone is not said to be the limit."""
    if WHOLE not in scores.curves or found.answer is Limited.YES:
        return ()
    gain = _estimate(scores.gain(WHOLE))
    shown = f"{formats.number(gain.value)} {formats.interval((gain.low, gain.high))}"
    if gain.low > 0:
        return (f"The whole network injected gains {shown}: plasticity is lost before the head, in the encoder.",)
    return (f"The whole network injected gains {shown}: the encoder is not told to be the limit either.",)


def _estimate(values: np.ndarray) -> Interval:
    return mean_estimate(values, rng=np.random.default_rng(0))


def _basis(found: Diagnosis, scores: Scores) -> str:
    gain = found.gain
    return (
        f"injection gains {formats.number(gain.value)} in {scores.metric} over the untreated copy "
        f"(95 % {formats.interval((gain.low, gain.high))}, {gain.n} pairs; margin {formats.number(found.margin)})"
    )


def _figures(scores: Scores) -> dict[str, tuple[str, str, Figure]]:
    """Name -> title, caption, figure."""
    rows = [
        {"arm": arm, "pair": lane, "update": int(update), "value": float(value)}
        for arm, curve in scores.curves.items()
        for lane, values in enumerate(curve)
        for update, value in zip(scores.updates, values, strict=True)
    ]
    looks = settings(pl.DataFrame({"arm": list(scores.curves)}), ("arm",))
    gains = [
        {"arm": arm, "pair": lane, "value": float(value)}
        for arm in scores.curves
        if arm != "control"
        for lane, value in enumerate(scores.gain(arm))
    ]
    metric = scores.metric
    return {
        "curves": (
            "The copies while they train on",
            "Mean over pairs of copies, each part of the horizon averaged. All copies of a pair have the same draws. "
            "The placebo is left out: it begins as the control, and its gain is below.",
            curves(
                pl.DataFrame(rows).filter(pl.col("arm") != "placebo"),
                x="update",
                by=("arm",),
                seeds="pair",
                settings={key: look for key, look in looks.items() if key != ("placebo",)},
                x_label="updates since the fork",
                y_label=metric,
            ),
        ),
        "gains": (
            "Gain over the untreated copy",
            "In the last tenth of the horizon. The placebo adds the pair of heads but trains the old one: its gain is "
            "what rounding grows to. Whiskers are Student's t; the answer's interval is a bootstrap from six pairs on.",
            intervals(
                pl.DataFrame(gains),
                by=("arm",),
                seeds="pair",
                settings={key: look for key, look in looks.items() if key != ("control",)},
                value_label=f"gain in {metric}",
                reference=0.0,
            ),
        ),
    }


def _page(found: Diagnosis, scores: Scores, subject: Subject, figures: list[RenderedFigure]) -> Page:
    rows = []
    for arm, curve in scores.curves.items():
        row: list[object] = [arm, float(curve[:, -1].mean()), float(curve.mean())]
        for values in (scores.gain(arm), scores.area_gain(arm)):
            gain = _estimate(values)
            row.append(
                "" if arm == "control" else f"{formats.number(gain.value)} {formats.interval((gain.low, gain.high))}"
            )
        rows.append(tuple(row))
    notes = [f"`{arm}` was left out: {why}" for arm, why in scores.left_out.items()]
    notes += [
        f"{count} of {subject.lanes} copies of `{arm}` diverged; they count with the worst value of any."
        for arm, count in scores.diverged.items()
    ]
    notes.append(
        "The interval is over draws from here on (minibatches, exploration, new tasks, the new head), for this one "
        "network: it says nothing of other seeds."
    )
    return Page(
        title=f"Diagnosis: {found.answer}",
        study=subject.study,
        preset=subject.preset,
        question=f"Is `{subject.checkpoint}` limited by lost plasticity?",
        subtitle=f"experiment {subject.experiment}, after {subject.update:,} updates; {subject.task}; head from "
        f"{subject.stage} on; {subject.lanes} pairs, {subject.horizon:,} updates each",
        answer=(
            f"{str(found.answer).capitalize()}: {_basis(found, scores)}.",
            " ".join((_MEANINGS[found.answer], *_of_the_encoder(found, scores))),
        ),
        tables=(
            Table(
                f"What the copies reached ({scores.metric})",
                ("copy", "final", "mean", "gain, final", "gain, mean"),
                tuple(rows),
            ),
        ),
        figures=tuple(figures),
        configuration={
            subject.experiment: tuple(ConfigField(name, (value,)) for name, value in subject.configuration.items())
        },
        next_commands=(NextCommand(subject.narrower, "a narrower interval"),),
        environment=subject.environment,
        notes=tuple(notes),
        made_by=subject.command,
    )
