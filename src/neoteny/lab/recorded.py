"""Data sets of transitions recorded by other runs: a run is named by its configuration, its saved policies play.

What is recorded follows from the run, the weights its saves hold, and how they are played; a set is written once, in
the cache directory, under a digest of all that.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoteny.errors import UsageError
from neoteny.lab import configs
from neoteny.lab.checkpoint import Checkpoint, find
from neoteny.lab.fingerprint import own_files
from neoteny.lab.plan import Pack, Plan, Request, Run
from neoteny.lab.store import Store
from neoteny.lab.study import Experiment, Study
from neoteny.lab.throughput import cache_directory

if TYPE_CHECKING:
    from neoteny.tasks.transitions import TransitionSet

VERSION = 1
"""Of what a recording means: a change of it makes other data from the same run."""

STEPS = 20_000
"""Steps each policy is played for, if nothing is said (the specification has 20,000 to 100,000)."""


@dataclass(frozen=True)
class Behaviour:
    """How saved policies are played.

    steps: of every policy; the last episode of each is truncated where they end. epsilon: probability that the policy
    takes a uniformly random action; it has chosen that. noise: probability that another uniformly random action is
    executed instead of the chosen one. random: the uniformly random policy is recorded first, for as many steps.
    """

    steps: int = STEPS
    epsilon: float = 0.05
    noise: float = 0.0
    seed: int = 0
    random: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, not {self.steps}")
        for name in ("epsilon", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a probability, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed must be from 0 to {2**31 - 1}, not {self.seed}")


@dataclass(frozen=True)
class Recording:
    """What `recorded` makes, fit to be a field of another run's configuration, whose name then follows from it.

    experiment: "STUDY/EXPERIMENT". config: the run's configuration as canonical JSON. saves: as `recorded` takes them.
    """

    experiment: str
    config: str
    saves: tuple[str, ...] = ()
    behaviour: Behaviour = Behaviour()

    @classmethod
    def of(
        cls, experiment: str, config: Any, saves: Sequence[str] = (), behaviour: Behaviour | None = None
    ) -> Recording:
        """The recording of the run with this configuration."""
        text = configs.canonical(configs.config_to_json(config))
        return cls(experiment, text, tuple(saves), behaviour or Behaviour())

    def load(self) -> TransitionSet:
        """The data; see `recorded`."""
        return _loaded(self)


@functools.cache
def _loaded(recording: Recording) -> TransitionSet:
    _, experiment = _found(recording.experiment)
    config = configs.config_from_json(experiment.config, json.loads(recording.config))
    return recorded(recording.experiment, config, recording.saves, recording.behaviour)


def recorded(
    experiment: str | Experiment,
    config: Any,
    saves: Sequence[str] = (),
    behaviour: Behaviour | None = None,
) -> TransitionSet:
    """The transitions that the saved policies of one run meet in the run's own environment, one policy after another.

    experiment: whose learner acts, "STUDY/EXPERIMENT" of a study of the library or one of your own. config: of the run,
    which is trained and kept in the cache directory if it is not there. saves: names of `Save`s of its script; without
    any, the policy at the run's end. Observations are what the network is shown: float32, or uint8, which it sees
    divided by 255 (truth values are 0 and 255), frames of a stack side by side along the last axis. The data are
    written once. `about` says which policies played what, and the returns of the uniformly random policy and of the
    behaviour.

    UsageError for a save or experiment that is not there and for a learner that does not act; RuntimeError with its
    traceback if the run fails.
    """
    study, found = _found(experiment)
    return _written(_trained(study, found, config, tuple(saves)), behaviour or Behaviour())[0]


@dataclass(frozen=True)
class Options:
    """What `neoteny record` is told: as in `Behaviour`, and where the data go."""

    steps: int = STEPS
    """steps of every checkpoint"""
    epsilon: float = 0.05
    """probability of a uniformly random action, of the policy"""
    noise: float = 0.0
    """probability that a uniformly random action is executed instead of the chosen one"""
    seed: int = 0
    """of all draws"""
    random: bool = False
    """record the uniformly random policy first, for as many steps"""
    out: Path | None = None
    """FILE.npz, or FOLDER/NAME-v0 for a Minari data set; a file in the cache directory if not given"""


def record_checkpoints(texts: Sequence[str], options: Options) -> tuple[Path, str]:
    """Record the checkpoints `DIR:RUN[:SAVE]`; where the data lie, and what they are in words."""
    behaviour = Behaviour(**{field.name: getattr(options, field.name) for field in fields(Behaviour)})
    write = None if options.out is None else _writer(options.out)
    checkpoints = [find(text) for text in texts]
    data, path = _written(checkpoints, behaviour)
    if write is not None:
        path = write(data)
    about = data.about
    told = (
        f"{len(data):,} transitions of {len(data.returns):,} episodes of {about['environment']}, {data.actions} "
        f"actions, observations {data.obs.dtype} {data.obs.shape[1:]}; mean return {about['mean_return']:g}, of the "
        f"best tenth in a row {about['best_return']:g}, of the random policy {about['random_return']:g}"
    )
    return path, told


def _writer(out: Path) -> Callable[[TransitionSet], Path]:
    """Writes data where `--out` says; UsageError if that is there, or is no place for data."""
    if out.suffix != ".npz" and not re.search(r"[\w-]-v\d+$", out.name):
        raise UsageError(f"--out {out}: give FILE.npz, or a folder whose name ends in a version for Minari: {out}-v0")
    if out.exists():
        raise UsageError(f"{out} exists; remove it, or give another --out")

    def write(data: TransitionSet) -> Path:
        if out.suffix == ".npz":
            out.parent.mkdir(parents=True, exist_ok=True)
            data.save(out)
            return out
        from neoteny.tasks.transitions import write_minari

        return write_minari(data, out.parent, out.name)

    return write


def written_once(path: Path, make: Callable[[], TransitionSet]) -> TransitionSet:
    """The data of the `.npz` at `path`, made and written, whole or not at all, if it is not there."""
    from neoteny.tasks.transitions import load_npz

    if not path.is_file():
        fresh = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            fresh.save(written)
            with contextlib.suppress(FileExistsError):  # another process was first; its file counts
                os.link(written, path)
    return load_npz(path)


def _written(checkpoints: Sequence[Checkpoint], behaviour: Behaviour) -> tuple[TransitionSet, Path]:
    """The data these checkpoints make, and the file that holds them."""
    policies = [[each.run, each.save, weights(each)] for each in checkpoints]
    known = configs.digest({"version": VERSION, "policies": policies, **asdict(behaviour)})
    name = f"{checkpoints[0].pack.experiment}-{known}"
    path = cache_directory() / "transitions" / f"{name}.npz"

    def make() -> TransitionSet:
        from neoteny.training.recording import record

        return record(checkpoints, behaviour, name)

    return written_once(path, make), path


def weights(checkpoint: Checkpoint) -> str:
    """SHA-256 of the file that holds a checkpoint."""
    store = Store(checkpoint.directory).pack(checkpoint.pack.name)
    entry = checkpoint.manifest.state if checkpoint.save is None else store.entry(checkpoint.manifest, checkpoint.save)
    assert entry is not None, "a checkpoint without a save has a state"
    return entry.sha256


def _found(experiment: str | Experiment) -> tuple[Study, Experiment]:
    """The experiment and its study; one of a person's own has a study named by the source it is written in."""
    if isinstance(experiment, str):
        from neoteny.studies import load_study

        name, _, part = experiment.partition("/")
        study = load_study(name)
        if part not in [each.name for each in study.experiments]:
            there = ", ".join(f"{name}/{each.name}" for each in study.experiments)
            raise UsageError(f"there is no experiment {experiment!r}; there are {there}")
        return study, study.experiment(part)
    files = own_files(experiment)
    if not files:
        raise UsageError(
            f"the experiment {experiment.name!r} is in no file, and its runs are named by their source; write it in one"
        )
    source = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return Study(f"own-{configs.digest(source)}", experiment.name, "", "", "", (experiment,), ()), experiment


def _trained(study: Study, experiment: Experiment, config: Any, saves: tuple[str, ...]) -> list[Checkpoint]:
    """The saves of the run with this configuration, trained in the cache directory if it is not there."""
    from neoteny.lab import execute
    from neoteny.lab.progress import shown
    from neoteny.lab.store import locked
    from neoteny.training.compilations import use_compilation_cache
    from neoteny.training.recording import acting_source

    run = configs.run_name(study.name, experiment.name, config)
    pack = Pack(configs.digest((run,)), experiment.name, (run,), 1)
    plan = Plan(Request(study.name, "recorded", (experiment.name,)), {run: Run(run, experiment.name, config)}, (pack,))
    store = Store(cache_directory() / "runs" / run)
    pack_store = store.pack(pack.name)
    manifest = pack_store.manifest()
    if manifest is None or manifest.status != "finished":
        use_compilation_cache()
        runner = execute.make_runner(study, plan, pack)
        acting_source(runner)
        _check_saves(run, saves, runner.saves)
        with locked(store.directory):
            updates = execute.prepare(store, plan, study, execute.Options())
            store.write_plan(plan.to_json())
            try:
                with shown(updates) as take:
                    execute.run_in_process(store, plan, study, [pack], execute.Options(), take)
            except execute.Interrupted as interrupted:
                raise KeyboardInterrupt from interrupted
        manifest = pack_store.manifest()
        assert manifest is not None, "it was just run"
        if manifest.status != "finished":
            raise RuntimeError(manifest.traceback)
    _check_saves(run, saves, pack_store.saves(manifest))
    return [Checkpoint(store.directory, study, plan, pack, 0, run, save, manifest) for save in (saves or (None,))]


def _check_saves(run: str, asked: Sequence[str], there: Sequence[str]) -> None:
    for save in asked:
        if save not in there:
            raise UsageError(f"run {run} has no save {save!r}; it has {', '.join(there) or 'none'}")
