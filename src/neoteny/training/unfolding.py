"""A script as one line of steps: the branches of a fork come one after another, between marks.

Everything that must be known beforehand is read off this line: how long the run is, where a cursor stands, which
saves are still to be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neoteny.training.events import Evaluate, Event, Fork, Intervene, Probe, Save, Switch, Train


@dataclass(frozen=True)
class Branch:
    """Here a branch of a fork begins, from the state before the fork."""

    name: str


@dataclass(frozen=True)
class Rejoin:
    """Here a branch ends, and the state is again the one before the fork."""


PlainEvent = Switch | Train | Evaluate | Probe | Intervene | Save
"""An event that is no fork."""


class Step(NamedTuple):
    """One step of the line.

    branch: where it lies ("" outside forks, "inject", "inject/late"). number: how many interventions lie before it on
    the way to it, other branches not counted; so branches share the keys of interventions.
    """

    event: PlainEvent | Branch | Rejoin
    branch: str
    number: int

    @property
    def save_name(self) -> str:
        """The name a `Save` here is kept under."""
        assert isinstance(self.event, Save)
        return f"{self.branch}/{self.event.name}" if self.branch else self.event.name

    @property
    def reads(self) -> tuple[str, ...]:
        """The saves this step reads."""
        if isinstance(self.event, Intervene):
            return self.event.intervention.saves
        return self.event.saves if isinstance(self.event, Probe) else ()


def unfold(script: Sequence[Event]) -> tuple[Step, ...]:
    """The steps of a script; ValueError for a name saved twice, or one read that was not saved before."""
    steps = tuple(_steps(script, "", 0))
    names = Counter(step.save_name for step in steps if isinstance(step.event, Save))
    for name, count in names.items():
        if count > 1:
            raise ValueError(f"every Save of a script needs a name of its own, and {count} are called {name!r}")
    known: list[list[str]] = [[]]
    for position, step in enumerate(steps):
        if isinstance(step.event, Branch):
            known.append(list(known[-1]))
        elif isinstance(step.event, Rejoin):
            known.pop()
        elif isinstance(step.event, Save):
            known[-1].append(step.event.name)
        for name in step.reads:
            if name not in known[-1]:
                there = ", ".join(known[-1]) or "none"
                raise ValueError(
                    f"event {position}: it reads the save {name!r}, and no Save({name!r}) lies on its way "
                    f"before it (there: {there})"
                )
    return steps


def _steps(events: Sequence[Event], branch: str, number: int) -> Iterator[Step]:
    for event in events:
        if isinstance(event, Fork):
            for name, own in event.branches.items():
                inside = f"{branch}/{name}" if branch else name
                yield Step(Branch(name), inside, number)
                yield from _steps((*own, *event.then), inside, number)
                yield Step(Rejoin(), inside, number)
            continue
        yield Step(event, branch, number)
        number += isinstance(event, Intervene)


def read_after(steps: Sequence[Step]) -> tuple[frozenset[str], ...]:
    """For every step, the names of saves that a later one reads."""
    names: frozenset[str] = frozenset()
    found = []
    for step in reversed(steps):
        found.append(names)
        names |= frozenset(step.reads)
    return tuple(reversed(found))
