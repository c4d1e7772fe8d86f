"""The report of a study: what was asked, what was found, and what it cost, as one HTML file.

`Page` and the dataclasses it is made of hold the content; `render` turns them into text. The file loads
nothing: styles and images are inside it, and there are no scripts.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from neoteny.report import formats

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

VERDICTS = {"holds": "holds", "fails": "fails", "inconclusive": "inconclusive", "not_run": "not run"}
"""The outcomes of a claim and what they are called on the page."""

STATUSES = ("finished", "diverged", "failed", "pending")
"""What can have become of a run. A diverged run is a finished one: it counts as a result."""


@dataclass(frozen=True)
class Paper:
    """What the study is about: a citation in words and a link, of which only http and https are followed."""

    citation: str
    url: str = ""


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as bytes. media_type: of `image`. files: what it is also stored as, text -> path relative
    to the page."""

    name: str
    caption: str
    image: bytes
    media_type: str = "image/svg+xml"
    title: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.media_type not in ("image/svg+xml", "image/png"):
            raise ValueError(f"figure {self.name}: {self.media_type!r} is neither image/svg+xml nor image/png")


def read_figure(
    name: str, caption: str, paths: Sequence[Path], *, page_folder: Path, title: str = ""
) -> RenderedFigure:
    """The figure stored in `paths` (as `figures.save` returns them): the SVG in the page, links to every
    file.

    ValueError if there is no SVG among them, or a file is not below `page_folder`.
    """
    vectors = [path for path in paths if path.suffix == ".svg"]
    if not vectors:
        raise ValueError(f"figure {name}: no .svg among {', '.join(str(path) for path in paths) or 'no files'}")
    files = {path.suffix[1:].upper(): path.relative_to(page_folder).as_posix() for path in paths}
    return RenderedFigure(name, caption, vectors[0].read_bytes(), title=title, files=files)


@dataclass(frozen=True)
class Cost:
    """What one pack of an experiment cost.

    lanes: runs stepped together. updates: of one lane. flops_*: floating-point operations of all lanes, None
    where unknown. seconds: wall-clock time, compiling included. compile_seconds: the part of it spent
    compiling.
    """

    experiment: str
    pack: str
    lanes: int
    updates: int
    seconds: float | None = None
    compile_seconds: float | None = None
    compilations: int | None = None
    flops_train: float | None = None
    flops_forward: float | None = None
    flops_probe: float | None = None
    flops_search: float | None = None

    @property
    def flops(self) -> float | None:
        """All operations together, None if none is known."""
        return _sum(self.flops_train, self.flops_forward, self.flops_probe, self.flops_search)

    @property
    def running(self) -> float | None:
        """Seconds without compiling, None if unknown or not positive."""
        if self.seconds is None:
            return None
        left = self.seconds - (self.compile_seconds or 0.0)
        return left if left > 0 else None

    @property
    def updates_per_second(self) -> float | None:
        """Updates of all lanes in a second, compiling excluded."""
        return None if self.running is None else self.lanes * self.updates / self.running

    @property
    def flops_per_second(self) -> float | None:
        """Operations in a second, compiling excluded."""
        return None if self.running is None or self.flops is None else self.flops / self.running


@dataclass(frozen=True)
class RunRow:
    """One run. status: one of STATUSES. diverged_at: the update after which it was no longer finite.
    error: traceback."""

    run: str
    experiment: str
    setting: str
    status: str
    diverged_at: int | None = None
    error: str = ""

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"run {self.run}: status {self.status!r} is none of {', '.join(STATUSES)}")


@dataclass(frozen=True)
class ConfigField:
    """A field of an experiment's Config: its value, or the values of its axis."""

    name: str
    values: tuple[object, ...]
    axis: bool = False
    help: str = ""


@dataclass(frozen=True)
class NextCommand:
    """A command worth running next: what it gives, and how long it is expected to take in seconds, None if
    unknown."""

    command: str
    gives: str
    seconds: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of values under headings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a report.

    answer: paragraphs. verdicts: as in claims.json (id, statement, paper, measured, interval, n, verdict,
    reason, parts). configuration: experiment -> its fields. environment: name -> text (versions, machine).
    notes: what a reader must know before believing the numbers, such as code that changed between runs. made_by:
    the command that makes the page. In all texts, words between backticks are set as code.
    """

    title: str
    study: str
    preset: str
    question: str
    subtitle: str = ""
    paper: Paper | None = None
    answer: tuple[str, ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[RenderedFigure, ...] = ()
    costs: tuple[Cost, ...] = ()
    runs: tuple[RunRow, ...] = ()
    configuration: Mapping[str, tuple[ConfigField, ...]] = field(default_factory=dict)
    next_commands: tuple[NextCommand, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    made_by: str = "neoteny report"


def render(page: Page) -> str:
    """The page as one self-contained HTML5 document.

    ValueError for a verdict without id or statement, or with an outcome that is none of VERDICTS.
    """
    verdicts = [_verdict(entry) for entry in page.verdicts]
    outcomes = Counter(verdict["verdict"] for verdict in verdicts)
    statuses = Counter(run.status for run in page.runs)
    flops = _sum(*(cost.flops for cost in page.costs))
    seconds = _sum(*(cost.seconds for cost in page.costs))
    return _template().render(
        page=page,
        verdicts=verdicts,
        outcomes={name: outcomes[name] for name in VERDICTS if outcomes[name]},
        outcome_names=VERDICTS,
        statuses={name: statuses[name] for name in STATUSES if statuses[name]},
        flops=flops,
        seconds=seconds,
        totals=_totals(page.costs),
        # a kind of computation that nothing used would only be a column of zeros
        kinds={kind: name for kind, name in _KINDS.items() if _totals(page.costs)[f"flops_{kind}"]},
        images={figure.name: _data_uri(figure) for figure in page.figures},
        runs_by_experiment=_by_experiment(page.runs),
        troubled=[run for run in page.runs if run.status in ("failed", "diverged")],
        anchors={figure.name: f"figure-{index}" for index, figure in enumerate(page.figures, 1)},
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=formats.number,
        interval=formats.interval,
        flops=formats.flops,
        prefixed=formats.prefixed,
        duration=formats.duration,
        value=formats.value,
        values=formats.values,
        rough_duration=formats.rough_duration,
        prose=_prose,
        path=lambda text: quote(text),
        weblink=_weblink,
        whisker=_whisker,
    )
    return environment.from_string(resources.files("neoteny.report").joinpath("page.html.jinja").read_text("utf-8"))


def _sum(*terms: float | None) -> float | None:
    known = [term for term in terms if term is not None and not math.isnan(term)]
    return sum(known) if known else None


def _verdict(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of claims.json with every field there, checked."""
    for name in ("id", "statement", "verdict"):
        if not entry.get(name):
            raise ValueError(f"a verdict has no {name!r}: {dict(entry)}")
    return _filled(entry)


def _filled(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A claim, or a part of one (with a name where a claim has id and statement), with every field there."""
    fields = ("id", "statement", "name", "paper", "measured", "interval", "n", "verdict", "reason")
    outcome = entry.get("verdict")
    if outcome not in VERDICTS:
        whose = entry.get("id") or f"part {entry.get('name')!r}"
        raise ValueError(f"{whose}: verdict {outcome!r} is none of {', '.join(VERDICTS)}")
    parts = [_filled(part) for part in entry.get("parts") or ()]
    return {**{name: entry.get(name) for name in fields}, "parts": parts}


_KINDS = {"train": "Training", "forward": "Forward", "probe": "Probes", "search": "Search"}


def _totals(costs: Sequence[Cost]) -> dict[str, float | None]:
    names = ("seconds", "compile_seconds", "compilations", *(f"flops_{kind}" for kind in _KINDS))
    return {
        "lanes": _sum(*(cost.lanes for cost in costs)),
        "updates": _sum(*(cost.lanes * cost.updates for cost in costs)),
        **{name: _sum(*(getattr(cost, name) for cost in costs)) for name in names},
    }


def _by_experiment(runs: Sequence[RunRow]) -> dict[str, list[RunRow]]:
    grouped: dict[str, list[RunRow]] = {}
    for run in runs:
        grouped.setdefault(run.experiment, []).append(run)
    return grouped


def _data_uri(figure: RenderedFigure) -> str:
    # as an image, not inline: ids inside one SVG cannot meet those of another, and nothing in it can run
    return f"data:{figure.media_type};base64,{base64.b64encode(figure.image).decode('ascii')}"


def _prose(text: str) -> Markup:
    """Escaped text, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without a partner stands for itself
        pieces[-2:] = ["`".join(pieces[-2:])]
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(piece) if index % 2 else escape(piece) for index, piece in enumerate(pieces))


def _weblink(url: str) -> str:
    """`url` if it is one of the web, else nothing."""
    return url if urlsplit(url).scheme in ("http", "https") else ""


_WHISKER_WIDTH, _WHISKER_HEIGHT, _WHISKER_MARGIN = 132, 22, 7


def _whisker(verdict: Mapping[str, Any]) -> Markup:
    """Measured value, interval, zero and the paper's value (where it is a number) on a scale of their own."""
    from markupsafe import Markup

    measured, paper = _plain(verdict["measured"]), _paper_value(verdict["paper"])
    low, high = (_plain(bound) for bound in (verdict["interval"] or (None, None)))
    if measured is None:
        return Markup("")
    shown = [item for item in (0.0, measured, low, high, paper) if item is not None]
    start, span = min(shown), (max(shown) - min(shown)) or 1.0
    middle = _WHISKER_HEIGHT / 2

    def at(item: float) -> str:
        inner = _WHISKER_WIDTH - 2 * _WHISKER_MARGIN
        return f"{_WHISKER_MARGIN + inner * (item - start) / span:.1f}"

    zero = '<line class="zero" x1="{0}" x2="{0}" y1="1" y2="{1}"/>'
    parts = [Markup(zero).format(at(0.0), _WHISKER_HEIGHT - 1)]
    if low is not None or high is not None:  # a bound without end reaches the edge
        left, right = ("0" if low is None else at(low)), (str(_WHISKER_WIDTH) if high is None else at(high))
        line = '<line class="reach" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        parts.append(Markup(line).format(left, right, middle))
    if paper is not None:
        diamond = '<path class="paper" d="M{0} {1}l4 -5 4 5 -4 5z"/>'
        parts.append(Markup(diamond).format(f"{float(at(paper)) - 4:.1f}", middle))
    parts.append(Markup('<circle class="dot" cx="{0}" cy="{1}" r="3.6"/>').format(at(measured), middle))
    said = f"measured {formats.number(measured)}, interval {formats.interval([low, high])}"
    said += "" if paper is None else f", paper {formats.number(paper)}"
    frame = '<svg class="whisker" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img">{2}{3}</svg>'
    title = Markup("<title>{}</title>").format(said)
    return Markup(frame).format(_WHISKER_WIDTH, _WHISKER_HEIGHT, title, Markup("").join(parts))


def _paper_value(said: object) -> float | None:
    """The paper's value as a number where it is nothing else; papers are quoted in words too ("near
    chance")."""
    if not isinstance(said, str):
        return _plain(said)
    try:
        return _plain(float(said.replace("−", "-")))
    except ValueError:
        return None


def _plain(item: object) -> float | None:
    """`item` if it is a finite number."""
    if isinstance(item, bool) or not isinstance(item, Real) or not math.isfinite(item):
        return None
    return float(item)
