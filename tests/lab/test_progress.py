"""What a line of progress says."""

import itertools

import pytest

from neoteny.lab import progress
from neoteny.lab.execute import Progress


@pytest.fixture
def totals(monkeypatch):
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(ticks))
    return progress._Totals({"a": 100, "b": 100})


def test_rate_and_time_left_while_updates_are_made(totals):
    totals.take(Progress("a", 0, 100, 0.0, "running"))
    totals.take(Progress("a", 50, 100, 0.0, "running"))
    assert totals.line() == "50/200 updates (25 %), 5 updates/s, 30 s left"


def test_measurements_after_the_last_update_are_said(totals):
    totals.take(Progress("a", 0, 100, 0.0, "running"))
    for pack in "ab":
        totals.take(Progress(pack, 100, 100, 0.0, "running"))
    assert totals.line() == "200/200 updates (100 %), 20 updates/s, measuring"
    for pack in "ab":
        totals.take(Progress(pack, 100, 100, 0.0, "finished"))
    assert totals.line() == "200/200 updates (100 %), 10 updates/s"
