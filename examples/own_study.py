"""A complete study in one file: does resetting Adam's moments before each task help?

A study is experiments (a configuration, its axes, a stream, a learner, a script), the claims made over their
records, and figures. This one is small: permuted digits, two learning rates, three seeds.

    python examples/own_study.py results/own-study

Stopped and started again it goes on where it was; finished, it only writes the report again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import optax
import polars as pl

from neoteny.analysis import Above, Verdict, not_run, paired_difference, verdict
from neoteny.analysis.claims import Claim
from neoteny.interventions import Nothing, ResetOptimizer
from neoteny.lab.configs import Lane
from neoteny.lab.execute import Options, prepare, run_in_process
from neoteny.lab.plan import Plan, Request, extend_plan, make_plan
from neoteny.lab.progress import shown
from neoteny.lab.store import Store, locked
from neoteny.lab.study import Experiment, Study, StudyFigure
from neoteny.learners import Learner, supervised
from neoteny.networks import mlp
from neoteny.probes import dead_units, weight_norm
from neoteny.report.assemble import write_report
from neoteny.tasks import Minibatch, Stream, Task, digits, permuted
from neoteny.training.events import Evaluate, Event, Intervene, Probe, Switch, Train

# What a run is ------------------------------------------------------------------------------------

BETWEEN_TASKS = {"none": Nothing(), "reset_optimizer": ResetOptimizer()}


@dataclass(frozen=True)
class Config:
    """One run. Fields marked Lane may differ between the lanes of one compiled program."""

    width: int = 64
    tasks: int = 6
    steps_per_task: int = 200
    between_tasks: Literal["none", "reset_optimizer"] = "none"
    learning_rate: Lane[float] = 1e-3
    seed: Lane[int] = 0


SIZES = {
    "smoke": {"width": (8,), "tasks": (2,), "steps_per_task": (10,), "seed": (0, 1)},
    "quick": {"seed": (0, 1, 2)},
    "paper": {"width": (256,), "tasks": (20,), "steps_per_task": (2_000,), "seed": tuple(range(10))},
}


def axes(preset: str) -> dict:
    """Every combination of these values is a run."""
    return {"between_tasks": tuple(BETWEEN_TASKS), "learning_rate": (1e-3, 1e-2), **SIZES[preset]}


def stream(config: Config) -> Stream:
    """The digits with another permutation of the pixels in every task."""
    return permuted(digits(), tasks=config.tasks)


def learner(config: Config) -> Learner:
    """An MLP trained with Adam."""
    return supervised(mlp((8, 8, 1), [config.width, config.width], 10), optax.adam(config.learning_rate))


def script(config: Config, tasks: tuple[Task, ...]) -> tuple[Event, ...]:
    """What will happen, all of it known beforehand."""
    events: list[Event] = []
    for task in tasks:
        events += [
            Switch(task),
            Train(task, config.steps_per_task),
            Evaluate(task, "test"),
            Probe(dead_units, weight_norm, on=task, samples=512),
            Intervene(BETWEEN_TASKS[config.between_tasks]),
        ]
    return tuple(events)


permutations = Experiment("permutations", Config, axes, stream, learner, script, lambda _: Minibatch(64))


# What is asked of the records ---------------------------------------------------------------------


def _accuracy(frame: pl.DataFrame, between_tasks: str) -> np.ndarray:
    """Test accuracy in points, mean over tasks and learning rates: (seeds,)."""
    rows = frame.filter((pl.col("metric") == "accuracy") & (pl.col("between_tasks") == between_tasks))
    return 100 * rows.group_by("seed").agg(pl.col("value").mean()).sort("seed")["value"].to_numpy()


def _reset_helps(frame: pl.DataFrame) -> Verdict:
    none, reset = _accuracy(frame, "none"), _accuracy(frame, "reset_optimizer")
    if len(none) == 0 or len(none) != len(reset):
        return not_run("needs both values of between_tasks for the same seeds")
    return verdict(paired_difference(reset, none), Above(0.0))


def _accuracy_by_task(frame: pl.DataFrame):
    from neoteny.report.figures import curves

    rows = frame.filter(pl.col("metric") == "accuracy")
    return curves(rows, x="task", by=("between_tasks", "learning_rate"), y_label="test accuracy")


STUDY = Study(
    name="own",
    title="Resetting the optimiser between tasks",
    paper="no paper: an example",
    paper_url="https://arxiv.org/abs/2303.01486",
    question="Does a network learn the next permutation better when Adam's moments are reset before it?",
    experiments=(permutations,),
    claims=(
        Claim(
            "OWN-1",
            "Resetting Adam's moments before each task raises test accuracy",
            "not claimed",
            _reset_helps,
        ),
    ),
    figures=(
        StudyFigure("accuracy", "Test accuracy", "At the end of each task, on its own test images.", _accuracy_by_task),
    ),
    presets={"smoke": "seconds", "quick": "12 runs, under a minute", "paper": "40 runs of 40,000 updates"},
)


# Running it ---------------------------------------------------------------------------------------


def run(directory: Path | str, preset: str = "quick") -> str:
    """Run what is not finished yet and write the report; returns the verdicts as text."""
    store, request = Store(Path(directory)), Request(STUDY.name, preset)
    with locked(store.directory):
        if store.plan_path.exists():
            plan = extend_plan(Plan.from_json(store.plan(), STUDY), STUDY, request)
        else:
            plan = make_plan(STUDY, request)
        # Traces every pack: what a configuration can get wrong comes out here, before anything is computed.
        updates = prepare(store, plan, STUDY, Options())
        store.write_plan(plan.to_json())
        packs = [pack for pack in plan.packs if pack.name in updates]
        with shown(updates) as progress:
            statuses = run_in_process(store, plan, STUDY, packs, Options(), progress)
    path, summary = write_report(store.directory, STUDY)
    if "failed" in statuses:
        raise SystemExit(f"{summary}\na pack failed; {path} shows why")
    return f"{summary}\nreport: {path}"


if __name__ == "__main__":
    print(run(*sys.argv[1:3] or ["results/own-study"]))
