"""Progress of a plan: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from neoteny.lab.execute import Progress
from neoteny.report.formats import rough_duration

PLAIN_SECONDS = 15.0
"""How often a plain line is written where there is no terminal."""


SETTLED_SECONDS = 3.0
"""No time left is told before so many seconds of work, compiling apart: it would be absurd."""


class _Totals:
    """Progress of all packs together."""

    def __init__(self, totals: dict[str, int]):
        self.totals = totals
        self.done = dict.fromkeys(totals, 0)
        self.finished = 0
        self._compiling = dict.fromkeys(totals, 0.0)
        self._start: float | None = None
        self._start_done = 0

    def take(self, progress: Progress) -> None:
        self.totals[progress.pack] = progress.total
        self.done[progress.pack] = progress.done
        self._compiling[progress.pack] = progress.compile_seconds
        self.finished += progress.status != "running"
        if self._start is None:
            self._start, self._start_done = time.perf_counter(), sum(self.done.values())

    def line(self) -> str:
        """Lane-updates done, how many a second without the time spent compiling, and the updates' time left."""
        done, total = sum(self.done.values()), sum(self.totals.values())
        passed = 0.0 if self._start is None else time.perf_counter() - self._start
        worked = max(passed - sum(self._compiling.values()), 0.0)
        told = f"{done:,}/{total:,} updates ({100 * done / max(total, 1):.0f} %)"
        if worked < SETTLED_SECONDS or done == self._start_done:
            return told
        rate = (done - self._start_done) / worked
        if done < total:
            left = f", {rough_duration((total - done) / rate)} left"
        else:
            left = ", measuring" if self.finished < len(self.totals) else ""
        return f"{told}, {rate:,.0f} updates/s{left}"


@contextmanager
def shown(totals: Mapping[str, int]) -> Iterator[Callable[[Progress], None]]:
    """Show progress while the block runs; totals: pack -> lane-updates it will take."""
    state = _Totals(dict(totals))
    if sys.stderr.isatty():
        with _bar(state) as take:
            yield take
        return
    last = time.perf_counter()

    def tell(progress: Progress) -> None:
        nonlocal last
        state.take(progress)
        line, now = state.line(), time.perf_counter()
        if now - last >= PLAIN_SECONDS or progress.status != "running":
            print(f"pack {state.finished}/{len(state.totals)} done: {line}", file=sys.stderr, flush=True)
            last = now

    yield tell


@contextmanager
def _bar(state: _Totals) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        shown_task = bar.add_task("compiling", total=sum(state.totals.values()), line="")

        def take(progress: Progress) -> None:
            state.take(progress)
            what = f"pack {min(state.finished + 1, len(state.totals))}/{len(state.totals)}"
            bar.update(
                shown_task,
                description=what,
                completed=sum(state.done.values()),
                total=sum(state.totals.values()),
                line=state.line(),
            )

        yield take
