"""Executors: run the packs of a plan in this process, or one pack a process. The only file of this room that
meets JAX.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from neoteny.errors import UsageError
from neoteny.lab.plan import Pack, Plan
from neoteny.lab.records import Record, Timing
from neoteny.lab.store import Manifest, Store, StoreError
from neoteny.lab.study import Study

COMMIT_SECONDS = 60.0
"""A commit at least this often, while there is progress to keep."""

COMMIT_SHARE = 0.02
"""Commits at event ends happen as long as they cost no more than this share of the time."""


@dataclass(frozen=True)
class Options:
    """How packs are run; none of it changes a result.

    commit_seconds: longest time between commits. allow_drift, accept_code: go on although machine or sources
    differ from those of the last commit; both are kept in the manifest and shown in the report.
    """

    commit_seconds: float = COMMIT_SECONDS
    allow_drift: bool = False
    accept_code: bool = False


@dataclass(frozen=True)
class Progress:
    """Sent after every tick: lane-updates of this pack done so far and in all, and how it stands."""

    pack: str
    done: int
    total: int
    compile_seconds: float
    status: str = "running"


class Interrupted(Exception):
    """A signal asked to stop; everything is committed."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class StopFlag:
    """Notes SIGINT and SIGTERM so that the chunk under way can finish and be committed."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def _note(self, signum: int, _: object) -> None:
        self.signum = signum

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """With the handlers in place."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def raise_if_set(self) -> None:
        """Interrupted, if a signal came."""
        if self.signum is not None:
            raise Interrupted(self.signum)


def make_runner(study: Study, plan: Plan, pack: Pack):
    """The runner of a pack, nothing computed yet; UsageError for what the configuration makes impossible."""
    from neoteny.training.runner import Runner

    runs = [plan.runs[name] for name in pack.runs]
    experiment = study.experiment(pack.experiment)
    try:
        runner = Runner(experiment, [run.config for run in runs], pack.runs, pack.lanes)
        runner.check()
        return runner
    except (ValueError, KeyError, TypeError) as error:
        message = error.args[0] if error.args else error
        raise UsageError(f"{study.name}/{experiment.name}: {message}") from error


def check_resumable(store: Store, plan: Plan, study: Study, options: Options) -> None:
    """UsageError if a pack was computed by other sources or on another machine and that was not accepted."""
    from neoteny.lab.fingerprint import changed_files, code_fingerprint, machine

    manifests = [(pack, store.pack(pack.name).manifest()) for pack in plan.packs]
    if all(manifest is not None and manifest.status == "finished" for _, manifest in manifests):
        return
    here = machine()
    for pack, manifest in manifests:
        if manifest is None:
            continue
        changed = changed_files(manifest.code, code_fingerprint(study.experiment(pack.experiment)))
        if changed and not options.accept_code:
            raise UsageError(
                f"the sources changed since {store.directory} was begun: {', '.join(changed)}; "
                "use another --out, or go on with --accept-code (the report will say so)"
            )
        drift = [name for name in here if manifest.machine.get(name) != here[name]]
        if drift and manifest.status != "finished" and not options.allow_drift:
            what = ", ".join(f"{name} was {manifest.machine.get(name)}, is {here[name]}" for name in drift)
            raise UsageError(
                f"the machine differs from the one {store.directory} was begun on: {what}; go on with --allow-drift"
            )


def _opening_manifest(store: Store, pack: Pack, study: Study, runner, options: Options) -> Manifest:
    """The manifest to go on from: the stored one, brought up to date with what was accepted, or a first one."""
    from neoteny.lab.fingerprint import changed_files, code_fingerprint, machine

    code, here, data = code_fingerprint(study.experiment(pack.experiment)), machine(), runner.data_sets()
    stored = store.pack(pack.name).manifest()
    if stored is None:
        return Manifest(pack.name, 0, "running", (0, 0), machine=here, code=code, data=data)
    if dict(stored.data) != data:
        names = [name for name in {*stored.data, *data} if stored.data.get(name) != data.get(name)]
        raise UsageError(
            f"the data differ from those {store.directory} was begun with: {', '.join(sorted(names))}"
        )
    accepted = list(stored.accepted)
    changed = changed_files(stored.code, code)
    if changed and options.accept_code:
        accepted.append(f"sources changed before commit {stored.commit + 1}: {', '.join(changed)}")
    drift = [name for name in here if stored.machine.get(name) != here[name]]
    if drift and options.allow_drift:
        accepted.append(f"machine changed before commit {stored.commit + 1}: {', '.join(drift)}")
    return replace(stored, accepted=tuple(accepted), code=code, machine=here, traceback=None)


def run_pack(
    store: Store,
    plan: Plan,
    pack: Pack,
    study: Study,
    options: Options,
    stop: StopFlag,
    report: Callable[[Progress], None],
) -> str:
    """Run a pack from its last commit to its end; returns its status. A failure is committed with its
    traceback.
    """
    from neoteny.training.runner import Cursor

    pack_store = store.pack(pack.name)
    runner = make_runner(study, plan, pack)
    manifest = _opening_manifest(store, pack, study, runner, options)
    total = runner.plan().updates * len(pack.runs)
    if manifest.state is not None:
        cursor = Cursor(*manifest.cursor)
        try:
            runner.restore(cursor, pack_store.state(manifest))
        except (ValueError, KeyError) as error:
            raise StoreError(
                f"{pack_store.directory / manifest.state.path} does not fit: {error.args[0]}"
            ) from error
    records: list[Record] = []
    timings: list[Timing] = []
    saves: dict = {}
    compile_seconds = 0.0

    def commit(status: str) -> float:
        nonlocal manifest
        start = time.perf_counter()
        manifest = pack_store.commit(
            manifest,
            status=status,
            cursor=tuple(runner.cursor),
            state=runner.arrays(),
            records=records,
            timings=timings,
            saves=saves,
        )
        records.clear(), timings.clear(), saves.clear()
        cost = time.perf_counter() - start
        timings.append(Timing(pack.name, runner.cursor.event, "commit", 0, cost, 0, 0.0))
        return cost

    report(Progress(pack.name, runner.updates_before * len(pack.runs), total, 0.0))
    last_commit, cost = time.perf_counter(), 0.0
    try:
        for tick in runner.ticks():
            records.extend(tick.records)
            saves.update(tick.saves)
            timings.append(
                Timing(
                    pack.name,
                    tick.event,
                    tick.kind,
                    tick.updates,
                    tick.seconds,
                    tick.compilations,
                    tick.compile_seconds,
                )
            )
            compile_seconds += tick.compile_seconds
            report(Progress(pack.name, runner.updates_before * len(pack.runs), total, compile_seconds))
            since = time.perf_counter() - last_commit
            at_event_end = (
                runner.cursor.done == 0
                and since * COMMIT_SHARE >= cost
                and since >= min(1.0, options.commit_seconds)
            )
            if runner.finished or stop.signum is not None or since >= options.commit_seconds or at_event_end:
                cost = commit("finished" if runner.finished else "running")
                last_commit = time.perf_counter()
            stop.raise_if_set()
    except (StoreError, Interrupted):
        raise
    except Exception:
        # Whatever a study's code raises ends its pack only: it is kept, shown in the report, and makes the exit code 1.
        pack_store.commit(
            manifest,
            status="failed",
            cursor=manifest.cursor,
            state=None,
            records=(),
            timings=(),
            saves={},
            traceback=traceback.format_exc(),
        )
        report(Progress(pack.name, runner.updates_before * len(pack.runs), total, compile_seconds, "failed"))
        return "failed"
    report(Progress(pack.name, total, total, compile_seconds, "finished"))
    _remember_throughput(study, pack, runner, store)
    return "finished"


def _remember_throughput(study: Study, pack: Pack, runner, store: Store) -> None:
    from neoteny.lab.throughput import remember

    timings = store.pack(pack.name).timings(store.pack(pack.name).manifest())
    seconds = sum(timings["seconds"].to_pylist())
    if seconds > 0:
        remember(study.name, pack.experiment, float(runner.ledger.train[: len(pack.runs)].sum()) / seconds)


def unfinished(store: Store, plan: Plan) -> list[Pack]:
    """The packs that are not finished, in order."""
    packs = []
    for pack in plan.packs:
        manifest = store.pack(pack.name).manifest()
        if manifest is None or manifest.status != "finished":
            packs.append(pack)
    return packs


def run_in_process(
    store: Store,
    plan: Plan,
    study: Study,
    packs: Sequence[Pack],
    options: Options,
    report: Callable[[Progress], None],
) -> list[str]:
    """Run packs one after another here; returns their statuses."""
    with StopFlag().installed() as stop:
        return [run_pack(store, plan, pack, study, options, stop, report) for pack in packs]


def _worker(
    core_share, directory: str, study_name: str, content: dict, pack: Pack, options: Options, messages
) -> None:
    """A pool process: pin to its cores before JAX starts its threads, then run one pack."""
    if core_share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, core_share)
    from neoteny.studies import load_study
    from neoteny.training.compilations import use_compilation_cache

    use_compilation_cache()
    try:
        study = load_study(study_name)
        plan = Plan.from_json(content, study)
        with StopFlag().installed() as stop:
            status = run_pack(Store(Path(directory)), plan, pack, study, options, stop, messages.put)
        messages.put((pack.name, status, ""))
    except Interrupted as interrupted:
        messages.put((pack.name, "interrupted", str(interrupted.signum)))
    except UsageError as error:
        messages.put((pack.name, "error", str(error)))


def run_in_pool(
    store: Store,
    plan: Plan,
    study: Study,
    packs: Sequence[Pack],
    options: Options,
    report: Callable[[Progress], None],
    workers: int,
) -> list[str]:
    """Run packs in `workers` processes, one pack a process, each pinned to its share of the cores."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [cores[i::workers] for i in range(workers)]
    waiting, running, free = list(packs), {}, list(range(workers))
    statuses: dict[str, str] = {}
    errors: list[str] = []
    content = plan.to_json()
    with StopFlag().installed() as stop:
        while (waiting and stop.signum is None and not errors) or running:
            while waiting and free and stop.signum is None and not errors:
                pack, slot = waiting.pop(0), free.pop(0)
                process = context.Process(
                    target=_worker,
                    args=(shares[slot], str(store.directory), study.name, content, pack, options, messages),
                )
                process.start()
                running[pack.name] = (process, slot)
            if stop.signum is not None:
                for process, _ in running.values():
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGTERM)
            try:
                message = messages.get(timeout=0.2)
            except queue.Empty:
                for name, (process, _) in running.items():
                    if process.exitcode not in (None, 0) and messages.empty():
                        messages.put((name, "died", str(process.exitcode)))
                continue
            if isinstance(message, Progress):
                report(message)
                continue
            name, status, detail = message
            if name not in running:
                continue
            process, slot = running.pop(name)
            process.join()
            free.append(slot)
            statuses[name] = status
            if status == "error":
                errors.append(detail)
            elif status == "died":
                errors.append(
                    f"the process of pack {name} died with exit code {detail}; resume to go on from its last commit"
                )
        stop.raise_if_set()
    if errors:
        raise StoreError(errors[0])
    return [statuses[pack.name] for pack in packs if pack.name in statuses]
