"""Executors: run the packs of a plan here, or one pack a process. Nothing else between packs meets JAX."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from neoteny.errors import UsageError
from neoteny.lab.fingerprint import available_cores, changed_files, code_fingerprint, machine
from neoteny.lab.plan import Pack, Plan
from neoteny.lab.records import Record, Timing
from neoteny.lab.store import Manifest, PackStore, Store, StoreError, discard, locked
from neoteny.lab.study import Study

if TYPE_CHECKING:
    from neoteny.training.runner import Runner, Tick

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
        again = self.signum is not None
        self.signum = signum
        if multiprocessing.parent_process() is not None:
            return  # the parent tells, and passes the signal on
        if again:
            raise KeyboardInterrupt  # asked twice: the last commit stands
        if sys.stderr.isatty():
            print("finishing the chunk under way, then stopping; once more stops at once", file=sys.stderr, flush=True)

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """With the handlers in place; outside the main thread, where Python allows none, without."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
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


def make_runner(study: Study, plan: Plan, pack: Pack) -> Runner:
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


def default_workers() -> int:
    """One process a core where JAX has nothing but the CPU to compute on, else one; JAX is not started to find out.

    Two processes of one thread each step small networks nearly twice as fast as one of two threads.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    only_cpu = asked == "cpu" or not (asked or metadata.entry_points(group="jax_plugins") or find_spec("libtpu"))
    return max(1, len(available_cores())) if only_cpu else 1


def worker_cores(workers: int) -> list[list[int]]:
    """The cores of each worker of a pool: equal shares, so that a pack finds as many wherever it runs.

    Empty lists where there is but one worker, or where the system pins no process.
    """
    cores = available_cores()
    if workers == 1 or not cores:
        return [[] for _ in range(workers)]
    share = max(1, len(cores) // workers)
    return [[cores[(slot * share + i) % len(cores)] for i in range(share)] for slot in range(workers)]


def prepare(store: Store, plan: Plan, study: Study, options: Options, workers: int = 1) -> dict[str, int]:
    """The packs that are not finished, and how many lane-updates each will take; nothing is written.

    UsageError for all that can be seen beforehand: a configuration that cannot be run, damaged files, other
    data, and sources or a machine other than those of the last commit, where that was not accepted.
    """
    manifests = {pack.name: store.pack(pack.name).manifest() for pack in plan.packs}
    for name, manifest in manifests.items():
        if manifest is not None:
            store.pack(name).verify(manifest)
    waiting = [pack for pack in plan.packs if not _is_finished(manifests[pack.name])]
    if not waiting:
        return {}
    here = machine(len(worker_cores(workers)[0]))
    for pack in plan.packs:
        manifest = manifests[pack.name]
        if manifest is None or manifest.state is None:
            continue
        changed = changed_files(manifest.code, code_fingerprint(study.experiment(pack.experiment)))
        if changed and not options.accept_code:
            raise UsageError(
                f"the sources changed since {store.directory} was begun: {', '.join(changed)}; "
                f"use another --out, or go on with --accept-code (the report will say so)"
            )
        drift = _drift(manifest, here)
        if drift and manifest.status != "finished" and not options.allow_drift:
            raise UsageError(
                f"the machine differs from the one {store.directory} was begun on: {'; '.join(drift)}; "
                f"go on with --allow-drift (the report will say so)"
            )
    begun = {name: digest for each in manifests.values() if each is not None for name, digest in each.data.items()}
    planned: dict[str, str] = {}
    updates = {}
    for pack in waiting:
        # The packs of a directory are compared with each other, so a data set must be one and the same in all.
        updates[pack.name], data = _outlook(study, plan, pack)
        own = manifests[pack.name]
        lost = set() if own is None or own.state is None else set(own.data) - set(data)
        differing = sorted({*lost, *(name for name in data if begun.get(name, data[name]) != data[name])})
        if differing and data:
            raise UsageError(
                f"the data differ from those {store.directory} was begun with: {', '.join(differing)}; "
                f"restore them, or use another --out"
            )
        twice = sorted(name for name in data if planned.setdefault(name, data[name]) != data[name])
        if twice:
            raise UsageError(
                f"different data of this plan go by one name: {', '.join(twice)}; give each a name of its own"
            )
    return updates


def _is_finished(manifest: Manifest | None) -> bool:
    return manifest is not None and manifest.status == "finished"


def _drift(manifest: Manifest, here: Mapping[str, object]) -> list[str]:
    """What differs between the machine of the last commit and this one."""
    return [
        f"{name} was {manifest.machine.get(name)}, is {value}"
        for name, value in here.items()
        if manifest.machine.get(name) != value
    ]


def _outlook(study: Study, plan: Plan, pack: Pack) -> tuple[int, dict[str, str]]:
    """Lane-updates of a pack and the fingerprints of its data; 0 and none if its code raises: it will fail as a pack,
    and the others will run.
    """
    try:
        runner = make_runner(study, plan, pack)
    except UsageError:
        raise
    except Exception:
        return 0, {}
    return runner.plan().updates * len(pack.runs), runner.data_sets()


def _opening_manifest(store: Store, plan: Plan, pack: Pack, study: Study, options: Options) -> Manifest:
    """The manifest to go on from: a first one, or the last commit's with what was accepted."""
    code, here = code_fingerprint(study.experiment(pack.experiment)), machine()
    stored = store.pack(pack.name).manifest()
    if stored is None or stored.state is None:
        number = 0 if stored is None else stored.commit
        first = Manifest(pack.name, number, "running", (0, 0), machine=here, code=code)
        return replace(first, accepted=_accepted_elsewhere(store, plan, pack, first))
    accepted = list(stored.accepted)
    changed, drift = changed_files(stored.code, code), _drift(stored, here)
    if changed and options.accept_code:
        accepted.append(f"pack {pack.name}: sources changed before commit {stored.commit + 1}: {', '.join(changed)}")
    if drift and options.allow_drift:
        accepted.append(f"pack {pack.name}: machine changed before commit {stored.commit + 1}: {'; '.join(drift)}")
    return replace(stored, accepted=tuple(accepted), code=code, machine=here, traceback=None)


def _accepted_elsewhere(store: Store, plan: Plan, pack: Pack, first: Manifest) -> tuple[str, ...]:
    """Notes where a pack begins with other sources or on another machine than packs of its experiment before it."""
    notes = []
    for other in plan.packs:
        stored = store.pack(other.name).manifest()
        if other.experiment == pack.experiment and stored is not None and stored.state is not None:
            changed, drift = changed_files(stored.code, first.code), _drift(stored, first.machine)
            if changed:
                notes.append(f"pack {pack.name}: other sources than pack {other.name}: {', '.join(changed)}")
            if drift:
                notes.append(f"pack {pack.name}: another machine than pack {other.name}: {'; '.join(drift)}")
    return tuple(notes)


class _Journal:
    """What a pack gave since its last commit, and the commits."""

    def __init__(self, pack: Pack, store: PackStore, manifest: Manifest):
        self.manifest = manifest
        self.compile_seconds = 0.0
        self._pack, self._store = pack, store
        self._records: list[Record] = []
        self._timings: list[Timing] = []
        self._saves: dict = {}

    def take(self, tick: Tick) -> None:
        """Keep what a tick gave for the next commit."""
        self._records.extend(tick.records)
        self._saves.update(tick.saves)
        self._timings.append(
            Timing(
                self._pack.name,
                tick.event,
                tick.kind,
                tick.updates,
                tick.seconds,
                tick.compilations,
                tick.compile_seconds,
            )
        )
        self.compile_seconds += tick.compile_seconds

    def commit(self, runner: Runner) -> float:
        """Commit everything up to where the runner is; returns the seconds it took."""
        start = time.perf_counter()
        self.manifest = self._store.commit(
            replace(self.manifest, data=runner.data_sets()),
            status="finished" if runner.finished else "running",
            cursor=(runner.cursor.event, runner.cursor.done),
            state=runner.arrays(rings=False),
            rings=runner.rings(),
            records=self._records,
            timings=self._timings,
            saves=self._saves,
        )
        seconds = time.perf_counter() - start
        self._records, self._saves = [], {}
        self._timings = [Timing(self._pack.name, runner.cursor.event, "commit", 0, seconds, 0, 0.0)]
        return seconds

    def fail(self, error_text: str) -> None:
        """Note that the pack failed; its last commit stays what it goes on from."""
        self._store.commit(
            self.manifest,
            status="failed",
            cursor=self.manifest.cursor,
            state=None,
            records=(),
            timings=(),
            saves={},
            traceback=error_text,
        )


def run_pack(
    store: Store,
    plan: Plan,
    pack: Pack,
    study: Study,
    options: Options,
    stop: StopFlag,
    report: Callable[[Progress], None],
) -> str:
    """Run a pack from its last commit to its end; returns its status. A failure keeps its traceback."""
    # The directory is locked already; but a pool process may have outlived the one that locked it.
    with locked(store.pack(pack.name).directory):
        journal = _Journal(pack, store.pack(pack.name), _opening_manifest(store, plan, pack, study, options))
        try:
            runner = make_runner(study, plan, pack)
            _fold(runner, journal, store.pack(pack.name), pack, options, stop, report)
        except (StoreError, Interrupted):
            raise
        except Exception:
            # Whatever a study's code raises ends its own pack only.
            journal.fail(traceback.format_exc())
            report(Progress(pack.name, 0, 0, journal.compile_seconds, "failed"))
            return "failed"
        _remember_throughput(study, pack, runner, store)
        return "finished"


def _fold(
    runner: Runner,
    journal: _Journal,
    pack_store: PackStore,
    pack: Pack,
    options: Options,
    stop: StopFlag,
    report: Callable[[Progress], None],
) -> None:
    """Restore the runner, take it to the end of its script, and commit now and then."""
    from neoteny.training.runner import Cursor

    total = runner.plan().updates * len(pack.runs)

    def tell() -> None:
        done = total if runner.finished else runner.updates_before * len(pack.runs)
        status = "finished" if runner.finished else "running"
        report(Progress(pack.name, done, total, journal.compile_seconds, status))

    if journal.manifest.state is not None:
        try:
            runner.restore(Cursor(*journal.manifest.cursor), pack_store.state(journal.manifest))
        except (ValueError, KeyError) as error:
            path = pack_store.directory / journal.manifest.state.path
            raise StoreError(f"{path} does not fit: {error.args[0]}; {discard(pack_store.directory)}") from error
    if not runner.finished:
        tell()
    last_commit, cost = time.perf_counter(), 0.0
    for tick in runner.ticks():
        journal.take(tick)
        since = time.perf_counter() - last_commit
        at_event_end = (
            runner.cursor.done == 0 and since * COMMIT_SHARE >= cost and since >= min(1.0, options.commit_seconds)
        )
        due = runner.finished or stop.signum is not None or since >= options.commit_seconds or at_event_end
        # Amid a segment of a host environment there is nothing to commit: the last commit stands.
        if due and runner.storable:
            cost = journal.commit(runner)
            last_commit = time.perf_counter()
        tell()
        stop.raise_if_set()


def _remember_throughput(study: Study, pack: Pack, runner: Runner, store: Store) -> None:
    from neoteny.lab.throughput import SHORTEST, remember

    pack_store = store.pack(pack.name)
    manifest = pack_store.manifest()
    if manifest is None:
        return
    timings = pack_store.timings(manifest)
    worked = sum(timings["seconds"].to_pylist()) - sum(timings["compile_seconds"].to_pylist())
    if worked >= SHORTEST:
        remember(study.name, pack.experiment, float(runner.training_spent[: len(pack.runs)].sum()) / worked)


def run_in_process(
    store: Store,
    plan: Plan,
    study: Study,
    packs: Sequence[Pack],
    options: Options,
    report: Callable[[Progress], None],
) -> list[str]:
    """Run packs one after another here; returns their statuses."""
    statuses = []
    with StopFlag().installed() as stop:
        for pack in packs:
            statuses.append(run_pack(store, plan, pack, study, options, stop, report))
            stop.raise_if_set()
    return statuses


def _worker(
    cores: list[int],
    directory: str,
    study_name: str,
    content: dict,
    pack: Pack,
    options: Options,
    messages: multiprocessing.Queue,
) -> None:
    """A pool process: pin to its cores before JAX starts its threads, then run one pack."""
    if cores:
        os.sched_setaffinity(0, cores)
    from neoteny.studies import load_study
    from neoteny.training.compilations import use_compilation_cache

    use_compilation_cache()
    parent = multiprocessing.parent_process()
    with StopFlag().installed() as stop:

        def report(progress: Progress) -> None:
            if parent is not None and not parent.is_alive():
                stop.signum = signal.SIGTERM  # nobody waits for this pack any more
            messages.put(progress)

        try:
            study = load_study(study_name)
            plan = Plan.from_json(content, study)
            status = run_pack(Store(Path(directory)), plan, pack, study, options, stop, report)
            messages.put((pack.name, status, ""))
        except Interrupted as interrupted:
            messages.put((pack.name, "interrupted", str(interrupted.signum)))
        except UsageError as error:
            messages.put((pack.name, "error", str(error)))


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started here never see Ctrl-C of the terminal: their parent tells them to stop."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _huge_pages() -> Iterator[None]:
    """Processes started here get large arrays in huge pages, unless GLIBC_TUNABLES says something else.

    XLA asks the system anew for the large arrays of every update, and the system clears them page by page: a fifth of
    the time of an update of sequence networks. Other C libraries than glibc do not look at the variable.
    """
    name = "GLIBC_TUNABLES"
    if name in os.environ:
        yield
        return
    os.environ[name] = "glibc.malloc.hugetlb=1"
    try:
        yield
    finally:
        del os.environ[name]


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
    shares = worker_cores(workers)
    waiting, free = list(packs), list(range(workers))
    running: dict[str, tuple[BaseProcess, int]] = {}
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
                with _sigint_blocked(), _huge_pages():
                    process.start()
                running[pack.name] = (process, slot)
            if stop.signum is not None:
                for process, _ in running.values():
                    process.terminate()
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
            elif status in ("died", "interrupted"):
                how = f"died with exit code {detail}" if status == "died" else f"was stopped by signal {detail}"
                errors.append(
                    f"the process of pack {name} {how}; go on from its last commit with: "
                    f"neoteny resume {store.directory}"
                )
        stop.raise_if_set()
    if errors:
        raise StoreError(errors[0])
    return [statuses[pack.name] for pack in packs]
