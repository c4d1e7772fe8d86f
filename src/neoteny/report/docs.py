"""The results section of a study's page in the documentation: written from records by a command, never by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoteny.analysis.claims import evaluate
from neoteny.analysis.verdicts import Outcome
from neoteny.errors import UsageError
from neoteny.lab.results import Results, read, timed_packs
from neoteny.lab.store import write_atomic
from neoteny.lab.study import Study
from neoteny.report import formats
from neoteny.report.figures import house_style
from neoteny.report.page import VERDICTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
"""Of figures in the documentation, 8 inches wide."""


def write_docs(directory: Path | str, study: Study, folder: Path | str, section: str = "") -> Path:
    """Fill a results section of `folder`/STUDY.md from a result directory, and write its figures beside it.

    The section is what lies between `<!-- results: STUDY -->` and `<!-- /results: STUDY -->`; figures are
    `folder`/STUDY/NAME.png, and those no longer drawn are removed. A page may hold sections of its own for other
    results of the study: `section` goes between `<!-- results: STUDY SECTION -->` and its end, with figures in
    `folder`/STUDY/SECTION and without the claims that were not run. Equal records and timings give an equal
    page. Returns the page. UsageError if the page or its marks are not there, if nothing was recorded, or if `section`
    is not made of lower-case letters, digits and hyphens.
    """
    if section and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", section) is None:
        raise UsageError(f"the name of a section is made of lower-case letters, digits and hyphens, not {section!r}")
    folder, page = Path(folder), Path(folder) / f"{study.name}.md"
    mark = f"{study.name} {section}".rstrip()
    begin, end = f"<!-- results: {mark} -->", f"<!-- /results: {mark} -->"
    if not page.is_file():
        raise UsageError(f"no page {page}; write one with the lines {begin} and {end} where results belong")
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UsageError(f"{page} needs the lines {begin} and {end}, once each, where results belong")
    results = read(directory)
    if results.records.is_empty():
        raise UsageError(f"{directory} holds no records yet; nothing to write to {page}")
    figures = _figures(study, results, folder, Path(study.name, section))
    claims = evaluate(study.claims, results.records, timed_packs(results))
    if section:
        claims = [claim for claim in claims if claim["verdict"] != Outcome.NOT_RUN]
    written = section_text(study, results, claims, figures)
    before, after = text[: text.index(begin)], text[text.index(end) :]
    write_atomic(page, f"{before}{begin}\n{written}\n{after}".encode())
    return page


def _figures(study: Study, results: Results, docs: Path, place: Path) -> Mapping[str, str]:
    """Name -> path of every figure drawn, relative to the page in `docs`; they lie in `docs`/`place`."""
    folder = docs / place
    drawn: dict[str, str] = {}
    for figure in study.figures:
        made = figure.draw(results.records)
        if made is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _save(made, folder / f"{figure.name}.png")
            drawn[figure.name] = (place / f"{figure.name}.png").as_posix()
    if folder.is_dir():
        for stale in folder.glob("*.png"):
            if stale.stem not in drawn:
                stale.unlink()
    return drawn


def _save(figure: Figure, path: Path) -> None:
    with house_style():
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={})


def section_text(
    study: Study, results: Results, claims: Sequence[Mapping[str, Any]], figures: Mapping[str, str]
) -> str:
    """The section as Markdown: what was run, the answer, verdicts with numbers and intervals, and figures."""
    lines = ["", _what_was_run(study, results), ""]
    if study.summary is not None:
        lines += [line for told in study.summary(results.records) for line in (f"- {_cell(told)}",)] + [""]
    lines += _verdicts(claims) if claims else []
    for table in study.tables:
        drawn = table.draw(results.records)
        if drawn is not None:
            lines += ["", f"**{table.title}.** {table.caption}", "", *_table(*drawn)]
    for figure in study.figures:
        if figure.name in figures:
            lines += ["", f"**{figure.title}.** {figure.caption}", "", f"![{figure.title}]({figures[figure.name]})"]
    notes = [note for manifest in results.manifests.values() if manifest is not None for note in manifest.accepted]
    lines += [line for note in dict.fromkeys(notes) for line in ("", f"Accepted: {note}")]
    return "\n".join([*lines, ""])


def _what_was_run(study: Study, results: Results) -> str:
    plan, manifests = results.plan, results.manifests
    finished = sum(
        len(pack["runs"])
        for pack in plan["packs"]
        if (manifest := manifests[pack["name"]]) is not None and manifest.status == "finished"
    )
    machine: dict[str, str] = {}
    for manifest in manifests.values():
        if manifest is not None:
            machine.update({name: str(value) for name, value in manifest.machine.items()})
    seconds = float(results.timings["seconds"].sum())
    return (
        f"Preset `{plan['preset']}` ({study.presets.get(plan['preset'], '')}): {finished} of {len(plan['runs'])} runs "
        f"finished, in {formats.rough_duration(seconds)} of {plan['workers']} processes side by side, added up "
        f"({', '.join(f'{k} {v}' for k, v in machine.items())}). "
        "Intervals are 95 % over seeds. This section is written from the records by `neoteny report DIR --docs "
        "docs/studies`."
    )


def _verdicts(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two tables: the verdict of every claim, and the numbers it rests on."""
    lines = ["| claim | statement | the paper | verdict | why |", "|---|---|---|---|---|"]
    for claim in claims:
        verdict = VERDICTS[claim["verdict"]]
        lines.append(
            f"| {claim['id']} | {_cell(claim['statement'])} | {_cell(claim['paper'])} | **{verdict}** | "
            f"{_cell(claim['reason'])} |"
        )
    lines += ["", "| claim | quantity | measured | 95 % interval | seeds | verdict |", "|---|---|---|---|---|---|"]
    for claim in claims:
        for name, part in _quantities(claim["statement"], claim):
            lines.append(
                f"| {claim['id']} | {_cell(name)} | {formats.number(part['measured'])} | "
                f"{formats.interval(part['interval'])} | {part['n']} | {VERDICTS[part['verdict']]} |"
            )
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] * len(header)
    return [f"| {' | '.join(_cell(text) for text in row)} |" for row in (header, marks, *rows)]


def _quantities(name: str, verdict: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a verdict rests on: itself if it was measured, and its parts, however deep, each with where it belongs."""
    if verdict["measured"] is not None or not verdict["parts"]:
        yield name, verdict
    for part in verdict["parts"]:
        nested = bool(part["parts"]) and part["measured"] is None
        for below, quantity in _quantities(part["name"], part):
            yield (f"{part['name']}: {below}" if nested else below), quantity


def _cell(text: str) -> str:
    """Text that cannot end a cell of a table or open HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
