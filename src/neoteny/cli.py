"""The command line: `neoteny studies | plan | run | resume | status | report | doctor`."""

from __future__ import annotations

import dataclasses
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from neoteny.errors import UsageError

USAGE = """neoteny: a laboratory for networks that must keep learning

  neoteny studies                 the studies there are
  neoteny plan STUDY [...]        what a run would do and cost; computes and writes nothing
  neoteny run STUDY [...]         run a study to its report
  neoteny resume DIR              go on where a run stopped
  neoteny status DIR              how far it is
  neoteny report DIR              claims and report again, from the records alone
  neoteny doctor                  devices, extras and data sets: what is here, how to get the rest

`neoteny run STUDY --help` lists presets, experiments and fields of that study."""


def _parse(options_type: type, arguments: Sequence[str], prog: str, description: str) -> Any:
    """Arguments as this dataclass; a UsageError of one line for what does not fit."""
    import tyro

    flags = {f"--{item.name.replace('_', '-')}" for item in dataclasses.fields(options_type)} | {"--help", "-h"}
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name.startswith("--") and name not in flags:
            near = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"unknown option {argument.split('=')[0]}; {hint}`{prog} --help` lists them")
    if "--help" in arguments or "-h" in arguments:
        return tyro.cli(options_type, args=list(arguments), prog=prog, description=description)
    try:
        return tyro.cli(options_type, args=list(arguments), prog=prog, description=description, console_outputs=False)
    except SystemExit as error:
        raise UsageError(f"could not read `{' '.join(arguments)}`; `{prog} --help` says what each option takes") from error


def _axis_type(field_type: Any) -> Any:
    return tuple[field_type, ...] | None


def _run_options(study: Any) -> type:
    """The options of `run` and `plan` for this study: the fixed ones, and one for each field of its experiments."""
    import tyro

    from neoteny.lab import configs
    from neoteny.lab.execute import COMMIT_SECONDS
    from neoteny.lab.plan import LANES_PER_PACK

    declared: list[tuple[str, Any, Any]] = []

    def option(name: str, kind: Any, default: Any, text: str) -> None:
        declared.append((name, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default)))

    presets = "; ".join(f"{name}: {text}" for name, text in study.presets.items())
    option("preset", str, "quick", presets)
    option("experiment", tuple[str, ...], (), f"of {', '.join(e.name for e in study.experiments)}; all if none is named")
    option("out", Path | None, None, "where results go; results/STUDY-PRESET if not given")
    option("seeds", int | None, None, "seeds 0 to N-1")
    option("lanes", int, LANES_PER_PACK, "runs stepped together at most")
    option("workers", int, 1, "processes, one pack each, each on its share of the cores")
    option("commit_seconds", float, COMMIT_SECONDS, "commit at least this often; 0 commits after every chunk")
    option("allow_drift", bool, False, "go on although the machine or jax differ from the last commit")
    option("accept_code", bool, False, "go on although sources changed; the report will say so")
    fixed = {name for name, _, _ in declared}
    for experiment in study.experiments:
        for field in configs.fields(experiment.config).values():
            if field.name == "seed":
                option_name, text = "seed", "seeds, named one by one"
            else:
                option_name, text = field.name, f"default {field.default}" + (" (lanes)" if field.lane else "")
            if option_name not in fixed:
                option(option_name, _axis_type(field.type), None, text)
                fixed.add(option_name)
    return dataclasses.make_dataclass("Options", declared, frozen=True)


def _request(study: Any, options: Any):
    from neoteny.lab import configs
    from neoteny.lab.plan import Request

    overrides: dict[str, tuple[Any, ...]] = {}
    for experiment in study.experiments:
        for name in configs.fields(experiment.config):
            values = getattr(options, name)
            if values is not None:
                overrides[name] = tuple(values)
    if options.seeds is not None:
        if options.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, not {options.seeds}")
        if "seed" in overrides:
            raise UsageError("give either --seeds N or --seed VALUES, not both")
        overrides["seed"] = tuple(range(options.seeds))
    if options.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {options.workers}")
    return Request(study.name, options.preset, tuple(options.experiment), overrides, options.lanes)


def _study_argument(command: str, arguments: Sequence[str]):
    from neoteny.studies import STUDIES, load_study

    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"`neoteny {command}` needs a study: {', '.join(STUDIES)}")
    study = load_study(arguments[0])
    options = _parse(_run_options(study), arguments[1:], f"neoteny {command} {study.name}", study.title)
    return study, options


def _directory_argument(command: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"`neoteny {command}` needs the directory of a run: neoteny {command} DIR")
    return Path(arguments[0]), list(arguments[1:])


def _studies(arguments: Sequence[str]) -> int:
    from neoteny.studies import STUDIES

    if arguments:
        raise UsageError(f"`neoteny studies` takes no arguments, not {' '.join(arguments)}")
    for name, question in STUDIES.items():
        print(f"{name:<12} {question}")
    return 0


def _plan(arguments: Sequence[str]) -> int:
    study, options = _study_argument("plan", arguments)
    from neoteny.lab.estimate import describe
    from neoteny.lab.plan import make_plan

    print(describe(study, make_plan(study, _request(study, options))))
    return 0


def _run(arguments: Sequence[str]) -> int:
    study, options = _study_argument("run", arguments)
    from neoteny.lab.plan import Plan, extend_plan, make_plan
    from neoteny.lab.store import Store

    request = _request(study, options)
    store = Store(options.out or Path("results") / f"{study.name}-{options.preset}")
    if store.plan_path.exists():
        content = store.plan()
        plan = extend_plan(Plan.from_json(content, study), study, request)
    elif store.directory.exists() and (not store.directory.is_dir() or any(store.directory.iterdir())):
        raise UsageError(f"{store.directory} exists and is no result directory of neoteny; give another --out")
    else:
        plan = make_plan(study, request)
    return _execute(store, plan, study, _options(options), options.workers)


def _options(given: Any):
    from neoteny.lab.execute import Options

    if given.commit_seconds < 0:
        raise UsageError(f"--commit-seconds must not be negative, not {given.commit_seconds}")
    return Options(given.commit_seconds, given.allow_drift, given.accept_code)


@dataclasses.dataclass(frozen=True)
class _ResumeOptions:
    workers: int | None = None
    commit_seconds: float = 60.0
    allow_drift: bool = False
    accept_code: bool = False


def _resume(arguments: Sequence[str]) -> int:
    directory, rest = _directory_argument("resume", arguments)
    options = _parse(_ResumeOptions, rest, "neoteny resume DIR", "Go on where a run stopped.")
    from neoteny.lab.plan import Plan
    from neoteny.lab.store import Store
    from neoteny.studies import load_study

    store = Store(directory)
    content = store.plan()
    study = load_study(_from_plan(content, store, "study"))
    plan = Plan.from_json(content, study)
    workers = options.workers or content.get("workers", 1)
    return _execute(store, plan, study, _options(options), workers)


def _from_plan(content: Any, store: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise UsageError(f"{store.plan_path} is damaged (no {name}); restore it, or start again in another directory")
    return content[name]


def _execute(store: Any, plan: Any, study: Any, options: Any, workers: int) -> int:
    from neoteny.lab import execute
    from neoteny.lab.progress import shown
    from neoteny.report.assemble import write_report

    from neoteny.training.compilations import use_compilation_cache

    use_compilation_cache()
    packs = execute.unfinished(store, plan)
    execute.check_resumable(store, plan, study, options)
    updates = {}
    for pack in packs:
        # Everything a configuration can get wrong comes out here, before anything is written.
        updates[pack.name] = execute.make_runner(study, plan, pack).plan().updates * len(pack.runs)
    content = {**plan.to_json(), "workers": workers}
    if not store.plan_path.exists() or store.plan() != content:
        store.write_plan(content)
    try:
        with shown(updates) as take:
            if workers > 1 and len(packs) > 1:
                statuses = execute.run_in_pool(store, plan, study, packs, options, take, workers)
            else:
                statuses = execute.run_in_process(store, plan, study, packs, options, take)
    except execute.Interrupted as interrupted:
        print(f"stopped; everything so far is kept. Go on with: neoteny resume {store.directory}", file=sys.stderr)
        return 128 + interrupted.signum if interrupted.signum == signal.SIGTERM else 130
    except UsageError as error:
        print(f"neoteny: {error}", file=sys.stderr)
        return 1
    path, summary = write_report(store.directory, study)
    print(summary)
    print(f"report: {path}")
    failed = statuses.count("failed")
    if failed:
        print(f"{failed} pack(s) failed; the report shows why. Try again with: neoteny resume {store.directory}", file=sys.stderr)
    return 1 if failed else 0


def _status(arguments: Sequence[str]) -> int:
    directory, rest = _directory_argument("status", arguments)
    _no_more("status", rest)
    from neoteny.lab.status import describe

    print(describe(directory))
    return 0


def _report(arguments: Sequence[str]) -> int:
    directory, rest = _directory_argument("report", arguments)
    _no_more("report", rest)
    from neoteny.lab.store import Store
    from neoteny.report.assemble import write_report
    from neoteny.studies import load_study

    store = Store(directory)
    path, summary = write_report(directory, load_study(_from_plan(store.plan(), store, "study")))
    print(summary)
    print(f"report: {path}")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    _no_more("doctor", arguments)
    from neoteny.lab.doctor import describe

    print(describe())
    return 0


def _no_more(command: str, arguments: Sequence[str]) -> None:
    if arguments:
        raise UsageError(f"`neoteny {command}` does not take {' '.join(arguments)}")


COMMANDS = {
    "studies": _studies,
    "plan": _plan,
    "run": _run,
    "resume": _resume,
    "status": _status,
    "report": _report,
    "doctor": _doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        from neoteny import __version__

        print(f"neoteny {__version__}")
        return 0
    command = COMMANDS.get(given[0])
    try:
        if command is None:
            near = difflib.get_close_matches(given[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"unknown command {given[0]!r}; {hint}the commands are {', '.join(COMMANDS)}")
        return command(given[1:])
    except UsageError as error:
        print(f"neoteny: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output (a pager, head) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
