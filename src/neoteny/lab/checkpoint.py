"""Stored checkpoints by name: `DIR:RUN[:SAVE]`, what of a run lies in a result directory. Needs no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoteny.errors import UsageError
from neoteny.lab.plan import Pack, Plan
from neoteny.lab.store import Manifest, Store
from neoteny.lab.study import Study

_LISTED = 12
"""Runs named in a message at most."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment: what it saved under the name `save`, or how it stands at its last commit (None).

    pack, lane: where the run lies. manifest: of the pack's last commit.
    """

    directory: Path
    study: Study
    plan: Plan
    pack: Pack
    lane: int
    run: str
    save: str | None
    manifest: Manifest

    @property
    def label(self) -> str:
        """RUN or RUN:SAVE."""
        return self.run if self.save is None else f"{self.run}:{self.save}"


def find(text: str) -> Checkpoint:
    """The checkpoint `DIR:RUN[:SAVE]`; the beginning of a run's name is enough if only one run has it.

    UsageError that lists the runs, or the saves, where there is none of this name.
    """
    from neoteny.studies import load_study

    directory, rest = _split(text)
    store = Store(directory)
    content = store.plan()
    manifests = {pack["name"]: store.pack(pack["name"]).manifest() for pack in content["packs"]}
    saves = {name: () if m is None else store.pack(name).saves(m) for name, m in manifests.items()}
    given, _, save = rest.partition(":")
    runs = [run for run in content["runs"] if given and run.startswith(given)]
    if given in content["runs"]:
        runs = [given]
    if len(runs) != 1:
        what = f"{directory} has no run {given!r}" if given else f"{text!r} names no run"
        if len(runs) > 1:
            what = f"{len(runs)} runs of {directory} begin with {given!r}"
        raise UsageError(f"{what}; give {directory}:RUN or {directory}:RUN:SAVE. {_listing(content, saves)}")
    (run,) = runs
    pack = next(pack for pack in content["packs"] if run in pack["runs"])
    manifest = manifests[pack["name"]]
    if manifest is None or (not save and manifest.state is None):
        raise UsageError(f"run {run} has no commit yet; go on with: neoteny resume {directory}")
    if save and save not in saves[pack["name"]]:
        there = ", ".join(saves[pack["name"]]) or "none"
        raise UsageError(f"run {run} has no save {save!r}; it has {there}, and {directory}:{run} is its last commit")
    study = load_study(content["study"])
    plan = Plan.from_json(content, study)
    held = next(each for each in plan.packs if each.name == pack["name"])
    return Checkpoint(directory, study, plan, held, pack["runs"].index(run), run, save or None, manifest)


def _split(text: str) -> tuple[Path, str]:
    """DIR and what comes after its colon; a DIR that is there may itself hold colons."""
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        directory = Path(":".join(parts[:count]))
        if Store(directory).plan_path.is_file():
            return directory, ":".join(parts[count:])
    return Path(parts[0]), ":".join(parts[1:])


def _listing(content: Mapping[str, Any], saves: Mapping[str, Sequence[str]]) -> str:
    """The runs of a plan and what they saved, in one line."""
    shown = []
    for pack in content["packs"]:
        held = ", ".join(saves[pack["name"]]) or "none"
        shown += [f"{run} ({pack['experiment']}; saves: {held})" for run in pack["runs"]]
    more = f", and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return f"The runs are {', '.join(shown[:_LISTED])}{more}"
