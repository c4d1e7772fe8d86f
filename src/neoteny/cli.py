"""The command line: `neoteny COMMAND ...`; `USAGE` lists the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from neoteny.errors import UsageError

USAGE = """neoteny: a laboratory for networks that must keep learning

  neoteny studies                 the studies there are
  neoteny plan STUDY [...]        what a run would do and cost; computes and writes nothing
  neoteny run STUDY [...]         run a study to its report
  neoteny resume DIR              go on where a run stopped
  neoteny status DIR              how far it is
  neoteny report DIR [--docs D]   claims and report again, from the records alone; results into D/STUDY.md
                                  [--section S]: into the section of another preset there
  neoteny probe DIR:RUN[:SAVE]    what each layer of a stored network does: linear probes, rank, CKA, tunnel
  neoteny diagnose DIR:RUN[:SAVE] is a stored run limited by lost plasticity? inject a copy and compare
  neoteny record DIR:RUN[:SAVE]   play stored agents and keep every transition, as a data set to learn from offline
  neoteny doctor                  devices, extras and data sets: what is here, how to get the rest

`neoteny run STUDY --help` lists presets, experiments and fields of that study."""


def _parse(options_type: type, arguments: Sequence[str], prog: str, description: str) -> Any:
    """Arguments as this dataclass; a UsageError of one line for what does not fit."""
    import tyro

    hints = typing.get_type_hints(options_type, include_extras=True)
    options = {f"--{name.replace('_', '-')}": name for name in hints}
    if "--help" in arguments or "-h" in arguments:
        return tyro.cli(options_type, args=["--help"], prog=prog, description=description)
    help_hint = f"`{prog} --help` lists the options"
    groups: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            given, equals, value = argument.partition("=")
            option = given.replace("_", "-")
            if option not in options:
                near = difflib.get_close_matches(option, options, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UsageError(f"unknown option {given}; {hint}{help_hint}")
            if option in groups:
                raise UsageError(f"{option} is given twice; give it once, with all its values after it")
            groups[option] = [value] if equals else []
        elif not groups:
            raise UsageError(f"unexpected {argument!r} before the first option; {help_hint}")
        else:
            groups[option].append(argument)
    values: dict[str, Any] = {}
    for option, texts in groups.items():
        name = options[option]
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                parsed = tyro.cli(options_type, args=[option, *texts], console_outputs=False)
        except SystemExit as error:
            instead = f"not `{' '.join(texts)}`" if texts else "and none is given"
            raise UsageError(f"{option} takes {_spelt(hints[name])}, {instead}") from error
        values[name] = getattr(parsed, name)
        if not texts and values[name] == ():
            raise UsageError(f"{option} takes {_spelt(hints[name])}, and none is given")
    return options_type(**values)


_SPELT = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    str: ("a name", "names"),
    Path: ("a path", "paths"),
}


def _spelt(kind: Any) -> str:
    """What an option of this type takes, in words."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    many = typing.get_origin(kind) is tuple
    if many:
        kind = typing.get_args(kind)[0]
    if kind is bool and not many:
        return "no value"
    if typing.get_origin(kind) is Literal:
        return f"{'one or more' if many else 'one'} of {', '.join(map(str, typing.get_args(kind)))}"
    named = [k for k in (typing.get_args(kind) or (kind,)) if k in _SPELT]
    if not named:
        return "a value"
    return f"one or more {_SPELT[named[0]][1]}" if many else _SPELT[named[0]][0]


def _sayable(kind: Any) -> Any:
    """The type of a field without the dataclasses it may hold besides, which have no words on a command line."""
    told = tuple(each for each in typing.get_args(kind) if not dataclasses.is_dataclass(each))
    return told[0] if len(told) == 1 and len(typing.get_args(kind)) > 1 else kind


def _any_of(kinds: list[Any]) -> Any:
    """The type of a field that several experiments have: what any of them takes."""
    if all(typing.get_origin(kind) is Literal for kind in kinds):
        return Literal[tuple(dict.fromkeys(value for kind in kinds for value in typing.get_args(kind)))]
    return kinds[0]


def _run_options(study: Any) -> type:
    """The options of `run` and `plan` for this study: the fixed ones, and its experiments' fields."""
    import tyro

    from neoteny.lab import configs
    from neoteny.lab.execute import COMMIT_SECONDS
    from neoteny.lab.plan import LANES_PER_PACK

    options: dict[str, tuple[str, Any, Any]] = {}

    def option(name: str, kind: Any, default: Any, text: str) -> None:
        annotated = Annotated[kind, tyro.conf.arg(help=text)]
        options.setdefault(name, (name, annotated, dataclasses.field(default=default)))

    presets = "; ".join(f"{name}: {text}" for name, text in study.presets.items())
    experiments = ", ".join(experiment.name for experiment in study.experiments)
    option("preset", str, "quick", presets)
    option("experiment", tuple[str, ...], (), f"of {experiments}; all if none is named")
    option("out", Path | None, None, "where results go; results/STUDY-PRESET if not given")
    option("seeds", int | None, None, "seeds 0 to N-1")
    option("lanes", int, LANES_PER_PACK, "runs stepped together at most")
    option(
        "workers",
        int | None,
        None,
        "processes, one pack each, each on its share of the cores; if not given, one a core where JAX finds no "
        "accelerator (and 1 for the preset smoke)",
    )
    option("commit_seconds", float, COMMIT_SECONDS, "commit at least this often; 0 commits after every chunk")
    option("allow_drift", bool, False, "go on although the machine or jax differ from the last commit")
    option("accept_code", bool, False, "go on although sources changed; the report will say so")
    kinds: dict[str, list[Any]] = {}
    for experiment in study.experiments:
        for field in configs.fields(experiment.config).values():
            kinds.setdefault(field.name, []).append(_sayable(field.type))
    for experiment in study.experiments:
        for field in configs.fields(experiment.config).values():
            text = f"default {field.default}" + (" (lanes)" if field.lane else "")
            if field.name == "seed":
                text = "seeds, named one by one"
            option(field.name, tuple[_any_of(kinds[field.name]), ...], (), text)
    return dataclasses.make_dataclass("Options", list(options.values()), frozen=True)


def _request(study: Any, options: Any):
    from neoteny.lab import configs
    from neoteny.lab.execute import default_workers
    from neoteny.lab.plan import Request

    overrides: dict[str, tuple[Any, ...]] = {}
    for experiment in study.experiments:
        for name in configs.fields(experiment.config):
            values = getattr(options, name)
            if values:
                overrides[name] = values
    if options.seeds is not None:
        if options.seeds < 1:
            raise UsageError(f"--seeds must be at least 1, not {options.seeds}")
        if "seed" in overrides:
            raise UsageError("give either --seeds N or --seed VALUES, not both")
        overrides["seed"] = tuple(range(options.seeds))
    workers = _workers(options.workers, 1 if options.preset == "smoke" else default_workers())
    return Request(
        study.name, options.preset, tuple(options.experiment), overrides, lanes=options.lanes, workers=workers
    )


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
    from neoteny.lab.execute import prepare
    from neoteny.lab.plan import Plan, extend_plan, make_plan
    from neoteny.lab.store import Store, locked

    request = _request(study, options)
    store = Store(options.out or Path("results") / f"{study.name}-{options.preset}")
    how = _how(options)
    if store.is_foreign():
        raise UsageError(f"{store.directory} exists and is no result directory of neoteny; give another --out")
    if store.plan_path.exists():
        with locked(store.directory):
            content = store.plan()
            plan = extend_plan(Plan.from_json(content, study), study, request)
            workers = _workers(options.workers, content["workers"])
            return _execute(store, plan, study, how, workers, prepare(store, plan, study, how, workers))
    plan = make_plan(study, request)
    workers = min(request.workers, len(plan.packs))
    # Everything that can be wrong comes out here, before anything is written.
    updates = prepare(store, plan, study, how, workers)
    with locked(store.directory):
        if store.plan_path.exists():
            raise UsageError(f"another process just began a run in {store.directory}; run this again to extend it")
        return _execute(store, plan, study, how, workers, updates)


def _workers(asked: int | None, otherwise: int) -> int:
    """Processes to use: as asked, else this many."""
    if asked is not None and asked < 1:
        raise UsageError(f"--workers must be at least 1, not {asked}")
    return otherwise if asked is None else asked


def _how(given: Any):
    """How packs are run, from the options of `run` or `resume`."""
    from neoteny.lab.execute import Options

    if not given.commit_seconds >= 0:
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
    from neoteny.lab.execute import prepare
    from neoteny.lab.plan import Plan
    from neoteny.lab.store import Store, locked
    from neoteny.studies import load_study

    store = Store(directory)
    how = _how(options)
    store.plan()  # before the lock, which would make a directory that is not there
    with locked(store.directory):
        content = store.plan()
        study = load_study(content["study"])
        plan, workers = Plan.from_json(content, study), _workers(options.workers, content["workers"])
        return _execute(store, plan, study, how, workers, prepare(store, plan, study, how, workers))


def _execute(store: Any, plan: Any, study: Any, options: Any, workers: int, updates: dict[str, int]) -> int:
    """Run the packs in `updates`, in a directory that is locked, and report; returns the exit code."""
    from neoteny.lab import execute
    from neoteny.lab.progress import shown
    from neoteny.training.compilations import use_compilation_cache

    use_compilation_cache()
    packs = [pack for pack in plan.packs if pack.name in updates]
    content = {**plan.to_json(), "workers": workers}
    if not store.plan_path.exists() or store.plan() != content:
        store.write_plan(content)
    try:
        with shown(updates) as take:
            if workers > 1:
                statuses = execute.run_in_pool(store, plan, study, packs, options, take, workers)
            else:
                statuses = execute.run_in_process(store, plan, study, packs, options, take)
        _write_report(store.directory, study)
    except execute.Interrupted as interrupted:
        go_on = f"Go on with: neoteny resume {store.directory}"
        print(f"stopped; all up to the last commit is kept. {go_on}", file=sys.stderr)
        return 128 + interrupted.signum
    except BrokenPipeError:
        raise
    except (UsageError, OSError) as error:
        _complain(error)
        return 1
    failed = statuses.count("failed")
    if failed:
        print(
            f"neoteny: {failed} of {len(plan.packs)} packs failed; the report shows why. "
            f"Try again with: neoteny resume {store.directory}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _write_report(directory: Path, study: Any) -> None:
    from neoteny.report.assemble import write_report

    path, summary = write_report(directory, study)
    print(summary)
    print(f"report: {path}")


def _complain(error: Exception) -> None:
    print(f"neoteny: {error}", file=sys.stderr)


def _status(arguments: Sequence[str]) -> int:
    directory, rest = _directory_argument("status", arguments)
    _no_more("status", rest)
    from neoteny.lab.status import describe

    print(describe(directory))
    return 0


@dataclasses.dataclass(frozen=True)
class _ReportOptions:
    docs: Path | None = None
    section: str = ""


def _report(arguments: Sequence[str]) -> int:
    directory, rest = _directory_argument("report", arguments)
    options = _parse(_ReportOptions, rest, "neoteny report DIR", "Claims and report again, from the records alone.")
    if options.section and options.docs is None:
        raise UsageError("--section names a section of a documentation page: give its folder by --docs")
    from neoteny.lab.store import Store
    from neoteny.studies import load_study

    study = load_study(Store(directory).plan()["study"])
    _write_report(directory, study)
    if options.docs is not None:
        from neoteny.report.docs import write_docs

        print(f"documentation: {write_docs(directory, study, options.docs, options.section)}")
    return 0


def _checkpoint_page(command: str, arguments: Sequence[str], options_type: type, measure: Callable, text: str) -> int:
    """A command about a stored checkpoint: measure(checkpoint, options) -> the page's path and what to print."""
    asks_help = bool(arguments) and arguments[0] in ("-h", "--help")
    if not arguments or (arguments[0].startswith("-") and not asks_help):
        raise UsageError(f"`neoteny {command}` needs a checkpoint: neoteny {command} DIR:RUN or DIR:RUN:SAVE")
    rest = arguments if asks_help else arguments[1:]
    options = _parse(options_type, rest, f"neoteny {command} DIR:RUN[:SAVE]", text)
    path, summary = measure(arguments[0], options)
    print(summary)
    print(f"page: {path}")
    return 0


def _probe(arguments: Sequence[str]) -> int:
    from neoteny.lab.layers import Options, probe_checkpoint

    text = "What each layer of a stored network does."
    return _checkpoint_page("probe", arguments, Options, probe_checkpoint, text)


def _diagnose(arguments: Sequence[str]) -> int:
    from neoteny.lab.diagnose import Options, diagnose

    return _checkpoint_page("diagnose", arguments, Options, diagnose, "Is a stored run limited by lost plasticity?")


def _record(arguments: Sequence[str]) -> int:
    from neoteny.lab.recorded import Options, record_checkpoints

    count = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    if count == 0 and arguments[:1] not in (["-h"], ["--help"]):
        raise UsageError(
            "`neoteny record` needs checkpoints of agents: neoteny record DIR:RUN or DIR:RUN:SAVE, one or several"
        )
    text = "Play stored agents in their environment and keep every transition."
    options = _parse(Options, arguments[count:], "neoteny record DIR:RUN[:SAVE] ...", text)
    path, told = record_checkpoints(arguments[:count], options)
    print(told)
    print(f"data: {path}")
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
    "probe": _probe,
    "diagnose": _diagnose,
    "record": _record,
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
    except BrokenPipeError:
        # Whoever read our output (a pager, head) has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, OSError) as error:
        # OSError: a path that may not be read, a full disk; its text names the file.
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
