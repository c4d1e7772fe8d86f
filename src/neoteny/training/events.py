"""Events: what will happen in a run, decided before anything is computed.

A script is a finite tuple of these. What depends on results is never the list but a value inside the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from neoteny.interventions import Intervention
from neoteny.tasks.environments import EnvironmentTask
from neoteny.tasks.streams import Task

AnyTask = Task | EnvironmentTask
"""What a stream may hold: a task over arrays, or an environment to act in."""


@dataclass(frozen=True)
class Reached:
    """Condition: the training metric of `window` successive batches was at or above `threshold` (below if
    `falling`).
    """

    metric: str
    threshold: float
    window: int = 1
    falling: bool = False


@dataclass(frozen=True)
class Switch:
    """Begin a task: the learner is told, and the source makes the task's draw."""

    task: AnyTask


@dataclass(frozen=True)
class Train:
    """Train on the task begun last, for `steps` updates.

    until: a lane that meets the condition is held from then on, and `steps` is the bound. record_every: training
    metrics are averaged over this many updates and recorded; lanes are checked for divergence at the same points.
    """

    task: AnyTask
    steps: int
    until: Reached | None = None
    record_every: int = 100

    def __post_init__(self):
        if self.steps < 1 or self.record_every < 1:
            raise ValueError(
                f"Train needs steps and record_every of at least 1, not {self.steps} and {self.record_every}"
            )


@dataclass(frozen=True)
class Evaluate:
    """Score the network on a split of a task, under the task's own draw; training state is not touched.

    On an environment: play `samples` episodes, in environments and with draws of its own.
    """

    task: AnyTask
    split: str = "train"
    samples: int | None = None


class Probe:
    """Measure with these probes on the first `samples` rows of a split of the task `on` (None: all rows).

    On an environment: on so many transitions drawn from its replay.
    """

    def __init__(self, *probes: object, on: AnyTask, split: str = "train", samples: int | None = None):
        from neoteny.probes.measurement import measurement

        if not probes:
            raise ValueError("Probe needs at least one probe")
        self.probes = tuple(measurement(probe) for probe in probes)
        self.task, self.split, self.samples = on, split, samples

    @property
    def saves(self) -> tuple[str, ...]:
        """Names of the saves the probes read."""
        return tuple(name for probe in self.probes for name in getattr(probe, "saves", ()))


@dataclass(frozen=True)
class Intervene:
    """Apply an intervention to the lanes where `when(state)` is true (all lanes if None).

    `on` gives the task whose batch the intervention may look at, `samples` how many of its training rows.
    """

    intervention: Intervention
    on: AnyTask | None = None
    when: Callable | None = None
    samples: int = 512


@dataclass(frozen=True)
class Save:
    """Keep the networks under this name, or the whole learner state if `full`.

    Later interventions and probes that name the save are given its networks.
    """

    name: str
    full: bool = False


@dataclass(frozen=True)
class Fork:
    """Try several ways on from here: every branch starts from the same state and clock, hence has the same draws.

    branches: name -> its events. then: events that every branch has after its own. Records carry the branch's name,
    and what a branch saves is kept as `branch/name`. Afterwards the run goes on from the state before the fork.
    """

    branches: Mapping[str, tuple[Event, ...]]
    then: tuple[Event, ...] = field(default=())

    def __post_init__(self):
        if not self.branches:
            raise ValueError("a Fork needs at least one branch: Fork({'control': ()}, then=(...))")
        for name, events in self.branches.items():
            if not name or "/" in name:
                raise ValueError(f"a branch needs a name without '/', not {name!r}")
            if not isinstance(events, tuple):
                raise TypeError(f"the branch {name!r} takes a tuple of events, not {type(events).__name__}")
        if not isinstance(self.then, tuple):
            raise TypeError(f"then takes a tuple of events, not {type(self.then).__name__}")


Event = Switch | Train | Evaluate | Probe | Intervene | Save | Fork
"""What a script may hold."""
