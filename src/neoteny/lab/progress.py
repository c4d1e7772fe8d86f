"""Progress of a plan: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from neoteny.lab.execute import Progress

PLAIN_SECONDS = 15.0
"""How often a plain line is written where there is no terminal."""


def spell_seconds(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Totals:
    """Progress of all packs together."""

    def __init__(self, totals: dict[str, int]):
        self.totals = totals
        self.done = dict.fromkeys(totals, 0)
        self.finished = 0
        self._start: float | None = None
        self._start_done = 0

    def take(self, progress: Progress) -> None:
        self.totals[progress.pack] = progress.total
        self.done[progress.pack] = progress.done
        self.finished += progress.status != "running"

    def rate(self) -> float:
        """Lane-updates a second since the first one."""
        done, now = sum(self.done.values()), time.perf_counter()
        if self._start is None:
            self._start, self._start_done = now, done
        elapsed = now - self._start
        return (done - self._start_done) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        done, total, rate = sum(self.done.values()), sum(self.totals.values()), self.rate()
        left = f", {spell_seconds((total - done) / rate)} left" if rate > 0 and done < total else ""
        share = 100 * done / max(total, 1)
        return f"{done:,}/{total:,} updates ({share:.0f} %), {rate:,.0f} updates/s{left}"


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
