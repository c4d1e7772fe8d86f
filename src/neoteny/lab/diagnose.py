"""`neoteny diagnose`: fork a stored run, inject one copy, and say whether lost plasticity limits it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from neoteny.analysis.diagnosis import MARGIN, Diagnosis, diagnose_gains
from neoteny.errors import UsageError
from neoteny.lab.checkpoint import Checkpoint, find

if TYPE_CHECKING:
    from neoteny.interventions import Intervention
    from neoteny.lab.records import Record
    from neoteny.training.events import AnyTask
    from neoteny.training.runner import Runner

PARTS = 10
"""A horizon is recorded in this many parts; the last is the final performance (the paper's last 10 % of the budget)."""

DEFAULT_HORIZON = 1_000
"""Updates where the script holds no training to go by."""


@dataclass(frozen=True)
class Options:
    """How the copies go on."""

    horizon: int | None = None
    """updates of every copy; as many as the run's last training if not given"""
    lanes: int = 8
    """copies of each kind: pairs with draws of their own, over which the interval is"""
    stage: str | None = None
    """first stage of the head; the last stage but one if not given"""
    task: Literal["current", "next"] = "current"
    """current: go on with the task under way; next: begin the next one (a new draw of it where the stream has ended)"""
    margin: float = MARGIN
    """share of the score range within which a gain counts as none"""
    out: Path | None = None
    """where the page goes; DIR/diagnoses/CHECKPOINT if not given"""


@dataclass(frozen=True)
class Scores:
    """What the copies reached. metric: what is compared, more being better. curves: arm -> (lanes, parts). updates:
    (parts,) since the fork. score_range: that of the metric if it has one, else of all values seen. left_out: arm ->
    why it could not be made. diverged: arm -> lanes.
    """

    metric: str
    curves: Mapping[str, np.ndarray]
    updates: np.ndarray
    score_range: float
    left_out: Mapping[str, str]
    diverged: Mapping[str, int]

    def gain(self, arm: str) -> np.ndarray:
        """Final performance of an arm less the control's: (lanes,)."""
        return self.curves[arm][:, -1] - self.curves["control"][:, -1]

    def area_gain(self, arm: str) -> np.ndarray:
        """The same of the mean over the whole horizon."""
        return self.curves[arm].mean(axis=1) - self.curves["control"].mean(axis=1)


def diagnose(text: str, options: Options) -> tuple[Path, str]:
    """Diagnose the checkpoint `DIR:RUN[:SAVE]` and write the page; its path, and the answer as text."""
    if options.horizon is not None and options.horizon < PARTS:
        raise UsageError(f"--horizon must be at least {PARTS} updates, not {options.horizon}")
    if options.lanes < 2:
        raise UsageError(f"--lanes must be at least 2, not {options.lanes}: an interval takes two pairs")
    if not options.margin > 0:
        raise UsageError(f"--margin must be positive, not {options.margin}")
    checkpoint = find(text)
    from neoteny.report.diagnosis import describe, write_diagnosis

    scores, subject = _measure(checkpoint, options)
    found = decide(scores, options.margin)
    folder = options.out or checkpoint.directory / "diagnoses" / "-".join(
        part.replace("/", "_") for part in (checkpoint.run, checkpoint.save) if part
    )
    return write_diagnosis(folder, found, scores, subject), describe(found, scores)


def decide(scores: Scores, margin: float) -> Diagnosis:
    """The answer from the injected copies' paired gains."""
    return diagnose_gains(scores.gain("inject"), scores.score_range, margin=margin, rng=np.random.default_rng(0))


WHOLE = "inject_whole"
"""The arm that has no encoder: it tells one that has died from a head that is not the limit."""


def _arms(stage: str, names: Sequence[str]) -> dict[str, Intervention | None]:
    from neoteny.interventions import Inject, Reset, Variant

    head = tuple(names[names.index(stage) :])
    arms: dict[str, Intervention | None] = {
        "control": None,
        "inject": Inject(stage),
        "reset": Reset(head),
        "placebo": Inject(stage, variant=Variant.PLACEBO),
    }
    return arms if stage == names[0] else arms | {WHOLE: Inject(0)}


def _command(checkpoint: Checkpoint, options: Options) -> str:
    """What makes the page again."""
    words = ["neoteny", "diagnose", f"{checkpoint.directory}:{checkpoint.label}"]
    for field in fields(Options):
        value = getattr(options, field.name)
        if value != field.default:
            words += [f"--{field.name}", str(value)]
    return shlex.join(words)


def _measure(checkpoint: Checkpoint, options: Options):
    """The copies trained, and what the page says of them."""
    from neoteny import __version__
    from neoteny.lab.configs import config_to_json
    from neoteny.report.diagnosis import Subject
    from neoteny.training.compilations import use_compilation_cache
    from neoteny.training.continuing import continued
    from neoteny.training.events import Event, Fork, Intervene, Switch, Train

    use_compilation_cache()
    try:
        drafted = _draft(checkpoint, options)
        begins, arms = options.task == "next", drafted.arms
        horizon = options.horizon or _trained(checkpoint)
        part = -(-horizon // PARTS)

        def script(tasks: tuple[AnyTask, ...], own: AnyTask) -> tuple[Event, ...]:
            on = _next(tasks, own) if begins else own
            then = (*((Switch(on),) if begins else ()), Train(on, horizon, record_every=part))
            branches: dict[str, tuple[Event, ...]] = {
                name: () if arm is None else (Intervene(arm),) for name, arm in arms.items()
            }
            return (Fork(branches, then=then),)

        runner = continued(checkpoint, options.lanes, script)
        begun = int(runner.clock.update)
        records = _run(runner)
    except (ValueError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{checkpoint.study.name}/{checkpoint.pack.experiment}: {error.args[0]}") from error
    scores = scores_of(records, tuple(arms), options.lanes, begun, drafted.left_out)
    subject = Subject(
        study=checkpoint.study.name,
        preset=checkpoint.plan.request.preset,
        experiment=checkpoint.pack.experiment,
        checkpoint=checkpoint.label,
        update=begun,
        horizon=horizon,
        lanes=options.lanes,
        stage=drafted.stage,
        task=f"{drafted.task}, {'begun anew' if begins else 'under way'}",
        margin=options.margin,
        configuration=config_to_json(checkpoint.plan.runs[checkpoint.run].config),
        environment={"neoteny": __version__},
        command=_command(checkpoint, options),
        narrower=_command(checkpoint, replace(options, lanes=2 * options.lanes)),
    )
    return scores, subject


class Draft(NamedTuple):
    """What can be done with a checkpoint. stage: the head's first. task: name of the one the copies go on with. arms:
    those that can be made; left_out: arm -> why it cannot.
    """

    stage: str
    task: str
    arms: Mapping[str, Intervention | None]
    left_out: Mapping[str, str]


def _draft(checkpoint: Checkpoint, options: Options) -> Draft:
    """The script decided, on a single copy: it is let go before all the others, and its replay with it."""
    from neoteny.training.continuing import continued

    runner = continued(checkpoint, 1, lambda tasks, own: ())
    task = runner.here.task
    assert task is not None
    names = runner.state.learner.networks["online"].names
    stage = names[max(len(names) - 2, 0)] if options.stage is None else options.stage
    if stage not in names:
        raise UsageError(f"--stage {stage!r} is no stage of the network; its stages are {', '.join(names)}")
    arms, left_out = _possible(runner, _arms(stage, names), task)
    if options.task == "next":
        _check_next(runner, task)
        task = _next(runner.tasks, task)
    return Draft(stage, task.name, arms, left_out)


def _trained(checkpoint: Checkpoint) -> int:
    """Updates of the last training of the run's own script."""
    from neoteny.lab.execute import make_runner
    from neoteny.training.events import Train

    steps = make_runner(checkpoint.study, checkpoint.plan, checkpoint.pack).steps
    trained = [step.event.steps for step in steps if isinstance(step.event, Train) and not step.branch]
    return max(trained[-1], PARTS) if trained else DEFAULT_HORIZON


def _next(tasks: Sequence[AnyTask], own: AnyTask) -> AnyTask:
    """The task after this one; where the stream has ended, a new draw of it."""
    after = [each for each in tasks if each.index == own.index + 1]
    if after:
        return after[0]
    draw = max(each.draw for each in tasks) + 1
    return replace(own, name=f"{own.name}, drawn anew", index=own.index + 1, draw=draw)


def _check_next(runner: Runner, own: AnyTask) -> None:
    """UsageError where the stream has ended with a task that draws nothing."""
    import jax

    ended = all(each.index != own.index + 1 for each in runner.tasks)
    if ended and not jax.tree.leaves(runner.changes.draw(own)):
        raise UsageError("--task next: the stream has ended, and its last task draws nothing that could be drawn anew")


def _possible(
    runner: Runner, arms: Mapping[str, Intervention | None], task: AnyTask
) -> tuple[dict[str, Intervention | None], dict[str, str]]:
    """The arms that can be made of this state, and why the others cannot; injection must be possible."""
    import jax

    from neoteny.training.events import Intervene

    made, left_out = {}, {}
    for name, arm in arms.items():
        try:
            if arm is not None:
                event = Intervene(arm)
                here = runner.here
                jax.eval_shape(
                    lambda state, e=event, here=here: runner.changes.intervened(
                        state, e, task, 0, here.alive, {}, here.clock, here.trained
                    ),
                    here.state,
                )
        except ValueError as error:
            if name == "inject":
                raise
            left_out[name] = str(error.args[0])
        else:
            made[name] = arm
    return made, left_out


def _run(runner: Runner) -> list[Record]:
    """All records of the copies, with progress shown."""
    from neoteny.lab.execute import Progress
    from neoteny.lab.progress import shown

    lanes = len(runner.names)
    total = runner.plan().updates * lanes
    records: list[Record] = []
    with shown({"copies": total}) as take:
        for tick in runner.ticks():
            records.extend(tick.records)
            status = "finished" if runner.finished else "running"
            take(Progress("copies", runner.updates_before * lanes, total, tick.compile_seconds, status))
    return records


def scores_of(
    records: Sequence[Record], arms: tuple[str, ...], lanes: int, begun: int, left_out: Mapping[str, str]
) -> Scores:
    """The copies' curves from their training records.

    Compared is the mean return of finished episodes; in an environment where none ends, the mean reward of a step; of
    data, training accuracy, or the training loss with its sign changed. A copy that diverged has the worst value of
    any from then on.
    """
    metrics = {record.metric for record in records}
    acting = {"train_episodes", "train_returns"} <= metrics
    ended = any(record.value > 0 for record in records if record.metric == "train_episodes")
    episodic = acting and (ended or "train_reward" not in metrics)
    known = (name for name in ("reward", "accuracy") if f"train_{name}" in metrics)
    name = "return" if episodic else next(known, "loss")
    steps = sorted({record.step for record in records if record.metric.startswith("train_")})
    if not steps:
        raise UsageError("every copy diverged at once; there is nothing to compare")
    shape = (lanes, len(steps))

    def lane_of(record: Record) -> int:
        return int(record.run.removeprefix("copy"))

    def table(metric: str, arm: str) -> np.ndarray:
        values = np.full(shape, np.nan)
        for record in records:
            if record.metric == metric and record.branch == arm:
                values[lane_of(record), steps.index(record.step)] = record.value
        return values

    curves = {}
    for arm in arms:
        if episodic:
            with np.errstate(invalid="ignore", divide="ignore"):
                curves[arm] = _held(table("train_returns", arm) / table("train_episodes", arm))
        else:
            curves[arm] = table(f"train_{name}", arm) * (-1.0 if name == "loss" else 1.0)
    dead = dict.fromkeys(arms, 0)
    for record in records:
        if record.metric == "diverged" and record.branch in dead:
            curves[record.branch][lane_of(record), np.asarray(steps) >= record.step] = np.nan
            dead[record.branch] += 1
    seen = np.concatenate([curve.ravel() for curve in curves.values()])
    if not np.isfinite(seen).any():
        raise UsageError("no copy finished an episode; give a longer --horizon")
    worst, best = float(np.nanmin(seen)), float(np.nanmax(seen))
    filled = {arm: np.where(np.isfinite(curve), curve, worst) for arm, curve in curves.items()}
    return Scores(
        metric={"loss": "minus loss"}.get(name, name),
        curves=filled,
        updates=np.asarray(steps) - begun,
        score_range=1.0 if name == "accuracy" else best - worst,
        left_out=left_out,
        diverged={arm: count for arm, count in dead.items() if count},
    )


def _held(values: np.ndarray) -> np.ndarray:
    """Where no episode ended, the value of the part before; the first one after, where there is none before."""
    for lane in values:
        finite = np.flatnonzero(np.isfinite(lane))
        if len(finite):
            places = np.searchsorted(finite, np.arange(len(lane)), side="right") - 1
            lane[:] = lane[finite[np.maximum(places, 0)]]
    return values


def as_json(found: Diagnosis, scores: Scores, subject: Any) -> dict[str, Any]:
    """The answer and what it rests on, for other programs."""
    import math

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    gain = found.gain
    return {
        "checkpoint": subject.checkpoint,
        "answer": str(found.answer),
        "metric": scores.metric,
        "gain": number(gain.value),
        "interval": [number(gain.low), number(gain.high)],
        "n": gain.n,
        "margin": number(found.margin),
        "horizon": subject.horizon,
        "stage": subject.stage,
        "arms": {
            arm: {"final": float(curve[:, -1].mean()), "area": float(curve.mean())}
            for arm, curve in scores.curves.items()
        },
        "left_out": dict(scores.left_out),
        "diverged": dict(scores.diverged),
    }
