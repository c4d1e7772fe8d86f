"""From a result directory to claims.json, figures and report.html: all computed from the records, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from neoteny.analysis.claims import evaluate, write_claims
from neoteny.lab.results import Results, read, timed_packs
from neoteny.lab.store import write_atomic
from neoteny.lab.study import Study
from neoteny.report.figures import save
from neoteny.report.page import (
    ConfigField,
    Cost,
    NextCommand,
    Page,
    Paper,
    RenderedFigure,
    RunRow,
    Table,
    read_figure,
    render,
)

_CHIPS = {"holds": "holds", "fails": "fails", "inconclusive": "inconclusive", "not_run": "not run"}


def write_report(directory: Path | str, study: Study) -> tuple[Path, str]:
    """Write claims.json, figures/ and report.html; returns the report's path and a summary for a terminal."""
    folder = Path(directory)
    results = read(folder)
    claims = evaluate(study.claims, results.records, timed_packs(results))
    write_claims(folder / "claims.json", claims)
    figures = _draw(study, results.records, folder)
    page = _page(study, results, claims, figures)
    path = folder / "report.html"
    write_atomic(path, render(page).encode())
    return path, summary(claims, page)


def summary(claims: list[dict[str, Any]], page: Page) -> str:
    """The verdicts and the state of the runs as plain text."""
    lines = [f"{claim['id']:<8} {_CHIPS[claim['verdict']]:<13} {claim['statement']}" for claim in claims]
    counts = {s: sum(run.status == s for run in page.runs) for s in ("finished", "diverged", "failed", "pending")}
    lines.append(", ".join(f"{count} runs {status}" for status, count in counts.items() if count))
    return "\n".join(lines)


def _draw(study: Study, frame: pl.DataFrame, folder: Path) -> tuple[RenderedFigure, ...]:
    drawn = []
    for figure in study.figures:
        made = None if frame.is_empty() else figure.draw(frame)
        if made is not None:
            paths = save(made, folder / "figures", figure.name)
            drawn.append(read_figure(figure.name, figure.caption, list(paths), page_folder=folder, title=figure.title))
    return tuple(drawn)


def _tables(study: Study, frame: pl.DataFrame) -> tuple[Table, ...]:
    drawn = [] if frame.is_empty() else [(table, table.draw(frame)) for table in study.tables]
    return tuple(Table(t.title, made[0], tuple(made[1]), t.caption) for t, made in drawn if made is not None)


def _page(study: Study, results: Results, claims: list[dict[str, Any]], figures: tuple[RenderedFigure, ...]) -> Page:
    plan = results.plan
    preset = plan["preset"]
    return Page(
        title=study.title,
        study=study.name,
        preset=preset,
        question=study.question,
        subtitle=study.presets.get(preset, ""),
        paper=Paper(study.paper, study.paper_url),
        answer=() if study.summary is None or results.records.is_empty() else study.summary(results.records),
        verdicts=tuple(claims),
        tables=_tables(study, results.records),
        figures=figures,
        costs=_costs(results),
        runs=_runs(results),
        configuration=_configuration(study, plan),
        next_commands=tuple(
            NextCommand(f"neoteny run {study.name} --preset {name}", text)
            for name, text in study.presets.items()
            if name not in (preset, "smoke")
        ),
        environment=_environment(results),
        notes=(*study.notes, *_notes(results)),
    )


def _last_flops(results: Results) -> Mapping[str, dict[str, float]]:
    """Run -> its accounts at its last record."""
    accounts = ["flops_train", "flops_forward", "flops_probe", "flops_search"]
    last = results.records.group_by("run").agg(*[pl.col(name).max() for name in accounts])
    return {row["run"]: row for row in last.iter_rows(named=True)}


def _costs(results: Results) -> tuple[Cost, ...]:
    flops = _last_flops(results)
    costs = []
    for pack in results.plan["packs"]:
        timings = results.timings.filter(pl.col("pack") == pack["name"])
        if timings.is_empty():
            continue
        runs = [flops[run] for run in pack["runs"] if run in flops]

        def account(name: str, runs: list[dict[str, float]] = runs) -> float | None:
            return sum(run[name] for run in runs) if runs else None

        costs.append(
            Cost(
                experiment=pack["experiment"],
                pack=pack["name"],
                lanes=len(pack["runs"]),
                updates=int(timings["updates"].sum()) // len(pack["runs"]),
                seconds=float(timings["seconds"].sum()),
                compile_seconds=float(timings["compile_seconds"].sum()),
                compilations=int(timings["compilations"].sum()),
                flops_train=account("flops_train"),
                flops_forward=account("flops_forward"),
                flops_probe=account("flops_probe"),
                flops_search=account("flops_search"),
            )
        )
    return tuple(costs)


def _runs(results: Results) -> tuple[RunRow, ...]:
    diverged = {
        row["run"]: int(row["value"])
        for row in results.records.filter(pl.col("metric") == "diverged").iter_rows(named=True)
    }
    axes = _axes(results.plan)
    rows = []
    for pack in results.plan["packs"]:
        manifest = results.manifests[pack["name"]]
        for run in pack["runs"]:
            config = results.plan["runs"][run]["config"]
            setting = ", ".join(f"{name} {config[name]}" for name in axes[pack["experiment"]])
            status = "pending" if manifest is None or manifest.status == "running" else manifest.status
            if status == "finished" and run in diverged:
                status = "diverged"
            error = manifest.traceback or "" if manifest is not None else ""
            rows.append(RunRow(run, pack["experiment"], setting or "the only run", status, diverged.get(run), error))
    return tuple(rows)


def _values(plan: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Experiment -> field -> the values its runs have, in order of appearance."""
    values: dict[str, dict[str, list[Any]]] = {}
    for run in plan["runs"].values():
        fields = values.setdefault(run["experiment"], {})
        for name, value in run["config"].items():
            seen = fields.setdefault(name, [])
            if value not in seen:
                seen.append(value)
    return values


def _axes(plan: Mapping[str, Any]) -> dict[str, list[str]]:
    return {e: [name for name, seen in fields.items() if len(seen) > 1] for e, fields in _values(plan).items()}


def _configuration(study: Study, plan: Mapping[str, Any]) -> dict[str, tuple[ConfigField, ...]]:
    return {
        experiment: tuple(ConfigField(name, tuple(seen), axis=len(seen) > 1) for name, seen in fields.items())
        for experiment, fields in _values(plan).items()
    }


def _environment(results: Results) -> dict[str, str]:
    from neoteny import __version__

    shown: dict[str, str] = {"neoteny": __version__}
    for manifest in results.manifests.values():
        if manifest is not None:
            shown.update({name: str(value) for name, value in manifest.machine.items()})
            shown.update({f"data {name}": f"SHA-256 {digest[:16]}" for name, digest in manifest.data.items()})
    return shown


def _notes(results: Results) -> tuple[str, ...]:
    notes = {note for manifest in results.manifests.values() if manifest is not None for note in manifest.accepted}
    unfinished = [
        name for name, manifest in results.manifests.items() if manifest is None or manifest.status != "finished"
    ]
    if unfinished:
        notes.add(
            f"{len(unfinished)} of {len(results.manifests)} packs are not finished; the numbers here are of the rest"
        )
    return tuple(sorted(notes))
