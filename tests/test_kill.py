"""Kill a run with SIGKILL at ten random moments, resume each time: the very same records and parameters."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from neoteny.lab.results import load
from neoteny.lab.store import Store

KILLS = 10

SMALL = "--preset smoke --experiment remedies --remedy redo shrink_perturb --tasks 3 --steps-per-task 600 --seeds 2"
ONE_SETTING = "--adam-b2 0.999 --adam-eps-root 0"
RUN = f"run plasticity {SMALL} {ONE_SETTING} --commit-seconds 0".split()


ATARI = "--preset smoke --experiment atari --width 16 --batch 4 --evaluation-limit 20 --episodes 1 --replay 300"
ATARI_RUN = f"run injection {ATARI} --commit-seconds 0".split()
"""Segments of 200 steps, so that commits lie within training too; the ring of 300 steps goes round."""


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "neoteny.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def commits(directory: Path) -> int:
    """Commits of all packs so far."""
    store, total = Store(directory), 0
    if not store.plan_path.exists():
        return 0
    for pack in store.plan()["packs"]:
        manifest = store.pack(pack["name"]).manifest()
        total += 0 if manifest is None else manifest.commit
    return total


def states(directory: Path) -> dict[str, dict[str, np.ndarray]]:
    store = Store(directory)
    packs = [store.pack(pack["name"]) for pack in store.plan()["packs"]]
    return {pack.directory.name: pack.state(pack.manifest()) for pack in packs}


def killed_run(run: list[str], killed: Path, in_all: int, kills: int) -> None:
    """The run of so many commits in all, killed so often on the way, and resumed each time."""
    rng = random.Random(0)
    # The moments: after so many commits of the run, and then a random while, which may end inside another commit.
    moments = sorted(rng.sample(range(0, in_all - 1), kills))
    done = 0
    for moment in moments:
        process = start(*(run if not (killed / "plan.json").exists() else ["resume"]), *_where(killed))
        while commits(killed) <= moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    assert done == kills, f"only {done} kills came before the end of the run"
    finish(start("resume", killed, "--commit-seconds", 0))


def assert_same_results(whole: Path, killed: Path) -> None:
    """The very same records, and states in every array."""
    one, other = load(whole), load(killed)
    assert len(one) > 0
    assert one.equals(other)
    expected, found = states(whole), states(killed)
    assert expected.keys() == found.keys()
    for pack in expected:
        assert expected[pack].keys() == found[pack].keys()
        for path, array in expected[pack].items():
            np.testing.assert_array_equal(array, found[pack][path], err_msg=f"{pack} {path}")


def test_a_run_killed_ten_times_is_the_run_never_killed(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(*RUN, "--out", whole))
    killed_run(RUN, killed, commits(whole), KILLS)
    assert len(load(whole)) > 100
    assert_same_results(whole, killed)


def test_a_run_on_atari_killed_is_the_run_never_killed(tmp_path):
    """Emulators on the host, which nobody can save: replay, networks and records are the same to the bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(*ATARI_RUN, "--out", whole))
    # At the ends of segments and events, those of a branch among them.
    assert commits(whole) > 12
    killed_run(ATARI_RUN, killed, commits(whole), 2)
    assert_same_results(whole, killed)
    state = next(iter(states(whole).values()))
    assert state["play.rows.frame"].shape == (1, 300, 1, 84, 84, 1)
    assert state["play.rows.frame"][:, -1].any()


def _where(directory: Path) -> list[object]:
    if not (directory / "plan.json").exists():
        return ["--out", directory]
    return [directory, "--commit-seconds", 0]
