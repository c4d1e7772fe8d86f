"""How far a result directory is, from its plan and manifests alone."""

from __future__ import annotations

import re
from pathlib import Path

from neoteny.lab.store import Store


def _cause(traceback: str) -> str:
    """The line of a traceback that says what was raised; JAX adds notes after it."""
    lines = traceback.strip().splitlines()
    raised = [line for line in lines if re.match(r"[\w.]+(:|$)", line)]
    return raised[-1] if raised else lines[-1]


def describe(directory: Path) -> str:
    """One line for the whole, one for each pack."""
    store = Store(directory)
    plan = store.plan()
    manifests = {pack["name"]: store.pack(pack["name"]).manifest() for pack in plan["packs"]}
    finished = sum(m is not None and m.status == "finished" for m in manifests.values())
    runs, packs = len(plan["runs"]), len(plan["packs"])
    lines = [f"{plan['study']}, preset {plan['preset']}: {runs} runs in {packs} packs, {finished} finished"]
    for pack in plan["packs"]:
        manifest = manifests[pack["name"]]
        if manifest is None:
            standing = "not begun"
        elif manifest.status == "finished":
            standing = f"finished, {manifest.commit} commits"
        else:
            event, done = manifest.cursor
            standing = f"{manifest.status}, at event {event} after {done} updates of it, {manifest.commit} commits"
        if manifest is not None and manifest.traceback:
            standing += f": {_cause(manifest.traceback)}"
        lines.append(f"  {pack['name']}  {pack['experiment']:<12} {len(pack['runs'])} runs  {standing}")
    if finished < len(plan["packs"]):
        lines.append(f"go on with: neoteny resume {directory}")
    return "\n".join(lines)
