"""The plan of a study: its runs, and which pack holds which. Written before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.study import Experiment, Study

FORMAT = 1
"""Version of everything a result directory holds."""

LANES_PER_PACK = 32
"""Runs stepped together at most; more make further packs."""

LANES_WORTH_SPLITTING = 4
"""Runs alike are spread over the workers if each gets this many: fewer lanes step no faster apart."""


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    overrides: field -> values that replace the axis of that name in every experiment that has it. lanes: runs
    of a pack at most. pad: a pack has at least this many lanes, dummies included. workers: processes that packs
    are shared out to.
    """

    study: str
    preset: str
    experiments: tuple[str, ...] = ()
    overrides: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    lanes: int = LANES_PER_PACK
    pad: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Run:
    """One resolved configuration; `name` is its content hash."""

    name: str
    experiment: str
    config: Any


@dataclass(frozen=True)
class Pack:
    """Runs of equal structure, stepped together; `lanes` counts dummies too."""

    name: str
    experiment: str
    runs: tuple[str, ...]
    lanes: int


@dataclass(frozen=True)
class Plan:
    """Runs by name and the packs that hold them."""

    request: Request
    runs: Mapping[str, Run]
    packs: tuple[Pack, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        request = self.request
        return {
            "format": FORMAT,
            "study": request.study,
            "preset": request.preset,
            "experiments": list(request.experiments),
            "overrides": {name: configs.to_json(values) for name, values in request.overrides.items()},
            "lanes": request.lanes,
            "pad": request.pad,
            "workers": request.workers,
            "runs": {
                name: {"experiment": run.experiment, "config": configs.config_to_json(run.config)}
                for name, run in self.runs.items()
            },
            "packs": [
                {
                    "name": pack.name,
                    "experiment": pack.experiment,
                    "runs": list(pack.runs),
                    "lanes": pack.lanes,
                }
                for pack in self.packs
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], study: Study) -> Plan:
        """The plan that `to_json` wrote; UsageError if it is another study's, or this one cannot run it any more."""
        if content["study"] != study.name:
            raise UsageError(f"this directory holds study {content['study']!r}, not {study.name!r}; give another --out")
        request = Request(
            content["study"],
            content["preset"],
            tuple(content["experiments"]),
            {name: tuple(values) for name, values in content["overrides"].items()},
            content["lanes"],
            content["pad"],
            content["workers"],
        )
        runs = {}
        for name, run in content["runs"].items():
            config_type = _experiment(study, run["experiment"]).config
            runs[name] = Run(name, run["experiment"], configs.config_from_json(config_type, run["config"]))
        packs = tuple(Pack(p["name"], p["experiment"], tuple(p["runs"]), p["lanes"]) for p in content["packs"])
        return cls(request, runs, packs)


def _experiment(study: Study, name: str) -> Experiment:
    try:
        return study.experiment(name)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error


def resolve(study: Study, request: Request) -> dict[str, Run]:
    """The runs a request asks for, by name, in the order of the axes."""
    chosen = [_experiment(study, name) for name in request.experiments] or list(study.experiments)
    if request.preset not in study.presets:
        raise UsageError(f"study {study.name!r} has no preset {request.preset!r}; it has {', '.join(study.presets)}")
    known = {name for experiment in chosen for name in configs.fields(experiment.config)}
    for name in request.overrides:
        if name not in known:
            raise UsageError(f"unknown field {name!r}; the fields are {', '.join(sorted(known))}")
    runs: dict[str, Run] = {}
    for experiment in chosen:
        have = configs.fields(experiment.config)
        given = experiment.axes(request.preset)
        for block in (given,) if isinstance(given, Mapping) else given:
            axes = {**block, **{name: values for name, values in request.overrides.items() if name in have}}
            for config in configs.product(experiment.config, axes):
                name = configs.run_name(study.name, experiment.name, config)
                runs[name] = Run(name, experiment.name, config)
    if not runs:
        raise UsageError(f"preset {request.preset!r} of study {study.name!r} has no runs")
    return runs


def _packs(runs: Sequence[Run], request: Request) -> list[Pack]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        place = configs.canonical({"experiment": run.experiment, "structure": configs.structure(run.config)})
        groups.setdefault(place, []).append(run)
    packs = []
    for members in groups.values():
        # Equal shares: 40 runs with at most 32 lanes make two packs of 20, which share programs.
        count = max(-(-len(members) // request.lanes), min(request.workers, len(members) // LANES_WORTH_SPLITTING))
        share = -(-len(members) // count)
        for start in range(0, len(members), share):
            part = members[start : start + share]
            names = tuple(run.name for run in part)
            packs.append(Pack(configs.digest(names), part[0].experiment, names, max(len(part), request.pad)))
    return packs


def make_plan(study: Study, request: Request) -> Plan:
    """The plan for a new result directory."""
    if request.lanes < 1:
        raise UsageError(f"--lanes must be at least 1, not {request.lanes}")
    if request.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {request.workers}")
    runs = resolve(study, request)
    return Plan(request, runs, tuple(_packs(list(runs.values()), request)))


def extend_plan(plan: Plan, study: Study, request: Request) -> Plan:
    """`plan` with packs added for the runs that are new in `request`; the old packs stay as they are.

    UsageError if the request leaves out runs the plan has: that is another configuration, and belongs in
    another directory.
    """
    if (plan.request.study, plan.request.preset) != (request.study, request.preset):
        raise UsageError(
            f"this directory holds study {plan.request.study!r}, preset {plan.request.preset!r}; "
            f"asked for {request.study!r}, {request.preset!r}; give another --out"
        )
    runs = resolve(study, request)
    missing = [run for name, run in plan.runs.items() if name not in runs]
    if missing:
        raise UsageError(
            f"this directory holds another configuration ({_difference(plan.runs, runs)}); give another --out"
        )
    new = [run for name, run in runs.items() if name not in plan.runs]
    if not new:
        return plan
    packs = _packs(new, request)
    return Plan(request, {**plan.runs, **{run.name: run for run in new}}, (*plan.packs, *packs))


def _values(runs: Mapping[str, Run]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for run in runs.values():
        for name, value in configs.config_to_json(run.config).items():
            values.setdefault(name, set()).add(configs.canonical(value))
        values.setdefault("experiment", set()).add(run.experiment)
    return values


def _difference(held: Mapping[str, Run], asked: Mapping[str, Run]) -> str:
    """The fields in which two sets of runs differ, with the values of each."""
    ours, theirs = _values(held), _values(asked)
    parts = []
    for name in sorted(set(ours) | set(theirs)):
        a, b = ours.get(name, set()), theirs.get(name, set())
        if not a <= b:
            parts.append(f"{name}: there {', '.join(sorted(a))}; asked {', '.join(sorted(b)) or 'none'}")
    return "; ".join(parts) or "another combination of the same values"
