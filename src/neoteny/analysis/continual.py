"""Forward transfer, forgetting and average performance along a sequence of tasks.

The definitions are those of Continual World (arXiv:2105.10919), as its published code computes
them. A curve tensor is (seeds, tasks, evaluations): entry (s, i, e) is the performance of seed s on task i,
in [0, 1], at evaluation e of the whole run. The run has one phase for each task, in order, all of one length,
and evaluations are evenly spaced at the *ends* of equal spans of training: T tasks with k evaluations a phase
have T * k evaluations, phase i holds numbers i * k to (i + 1) * k - 1, and there is none at step 0. So the
evaluation at a task boundary belongs to the finished task, and the start of a phase is no part of its area.

NaN in a curve gives NaN wherever it enters; nothing is dropped silently.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

LAST = 5
"""Evaluations averaged at the end of a phase or run in the published code."""

SATURATED = 1 - 1e-6
"""Baseline area above which there is no room for transfer: NaN, left out of the mean over tasks."""


def average_performance(curves: ArrayLike, *, last: int = LAST) -> Float[np.ndarray, " seeds"]:
    """Mean over tasks of the performance at the end of the run.

    curves: (seeds, tasks, evaluations). The end is the mean of the last `last` evaluations, or of as many as
    a phase has if it has fewer (`window`). Returns one value a seed.
    """
    curves = _curves(curves)
    return _end_of_run(curves, window(curves, last=last)).mean(axis=1)


def forgetting(curves: ArrayLike, *, last: int = LAST) -> Float[np.ndarray, " seeds"]:
    """Mean of `forgetting_by_task` over all tasks, one value a seed. curves: (seeds, tasks, evaluations)."""
    return forgetting_by_task(curves, last=last).mean(axis=1)


def forgetting_by_task(curves: ArrayLike, *, last: int = LAST) -> Float[np.ndarray, "seeds tasks"]:
    """Performance at the end of a task's own phase minus at the end of the run.

    Both ends are means of the last `last` evaluations, or of as many as a phase has. Zero for the last task.
    """
    curves = _curves(curves)
    count = window(curves, last=last)
    return _own_phases(curves)[:, :, -count:].mean(axis=2) - _end_of_run(curves, count)


def forward_transfer(curves: ArrayLike, baseline: ArrayLike) -> Float[np.ndarray, " seeds"]:
    """Mean over tasks of `forward_transfer_by_task`, without tasks whose baseline is saturated.

    curves: (seeds, tasks, evaluations) of the whole run; baseline: (baseline seeds, tasks, evaluations of one
    phase). Returns one value a seed; their mean is the published figure. NaN if every baseline is saturated.
    The spread of these values leaves out the baseline's own uncertainty: for an interval with both use
    `seed_bootstrap([curves, baseline], lambda c, b: forward_transfer(c, b).mean(), rng=rng)`.
    """
    transfer = forward_transfer_by_task(curves, baseline)
    measured = ~(_baseline_area(baseline) > SATURATED)
    if not measured.any():
        return np.full(len(transfer), np.nan)
    return transfer[:, measured].mean(axis=1)


def forward_transfer_by_task(curves: ArrayLike, baseline: ArrayLike) -> Float[np.ndarray, "seeds tasks"]:
    """(AUC - AUC_b) / (1 - AUC_b) of each task.

    AUC is the mean performance over the task's own phase. AUC_b is the same for training on that task alone
    from scratch, averaged over baseline seeds first, as the published code does; so the mean over seeds of
    the result is the ratio of seed means. baseline: (baseline seeds, tasks, evaluations), the same tasks in
    the same positions (a task visited twice has its baseline twice), evaluated at an even spacing over as
    many steps as one phase has, step 0 left out. NaN for tasks with AUC_b above `SATURATED`; values below -1
    occur.
    """
    curves = _curves(curves)
    area = _baseline_area(baseline)
    if len(area) != curves.shape[1]:
        raise ValueError(
            f"curves have {curves.shape[1]} tasks and the baseline has {len(area)}; give one for each task"
        )
    room = np.where(area > SATURATED, np.nan, 1 - area)
    return (_own_phases(curves).mean(axis=2) - area) / room


def window(curves: ArrayLike, *, last: int = LAST) -> int:
    """Evaluations that the end of a phase or run is averaged over: `last`, or all of a phase if fewer."""
    if last < 1:
        raise ValueError(f"last must be at least 1 evaluation; got {last}")
    _, tasks, evaluations = _curves(curves).shape
    return min(last, evaluations // tasks)


def _own_phases(
    curves: Float[np.ndarray, "seeds tasks evaluations"],
) -> Float[np.ndarray, "seeds tasks phase"]:
    """Each task's curve over its own phase."""
    seeds, tasks, evaluations = curves.shape
    phases = curves.reshape(seeds, tasks, tasks, evaluations // tasks)
    return phases[:, np.arange(tasks), np.arange(tasks)]


def _end_of_run(curves: np.ndarray, count: int) -> Float[np.ndarray, "seeds tasks"]:
    return curves[:, :, -count:].mean(axis=2)


def _baseline_area(baseline: ArrayLike) -> Float[np.ndarray, " tasks"]:
    baseline = np.asarray(baseline, dtype=np.float64)
    if baseline.ndim != 3 or baseline.size == 0:
        raise ValueError(f"baseline must be non-empty (seeds, tasks, evaluations); its shape is {baseline.shape}")
    return baseline.mean(axis=2).mean(axis=0)


def _curves(curves: ArrayLike) -> Float[np.ndarray, "seeds tasks evaluations"]:
    curves = np.asarray(curves, dtype=np.float64)
    if curves.ndim != 3 or curves.size == 0:
        raise ValueError(f"curves must be non-empty (seeds, tasks, evaluations); their shape is {curves.shape}")
    _, tasks, evaluations = curves.shape
    if evaluations % tasks:
        raise ValueError(
            f"{evaluations} evaluations do not divide into {tasks} phases of equal length; "
            "leave out the evaluation at step 0 and give as many for each phase"
        )
    return curves
