"""From an interval and what was claimed to a verdict.

The rule is one for all studies: a claim *holds* if the whole interval lies inside what was claimed, *fails*
if it lies wholly outside, and is *inconclusive* otherwise. A claim without data is *not run*.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from neoteny.analysis.aggregates import Interval, _check_level


class Outcome(enum.StrEnum):
    """What became of a claim; the values are those of claims.json."""

    HOLDS = "holds"
    FAILS = "fails"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not_run"


@dataclass(frozen=True)
class Verdict:
    """An outcome and what it rests on.

    measured: the estimate, None if there is none (as for a claim of several parts). interval: (low, high). n:
    seeds, or the fewest over the parts. parts: verdicts this one is made of. name: which part this is, if it
    is one.
    """

    outcome: Outcome
    measured: float | None
    interval: tuple[float, float] | None
    n: int
    reason: str
    parts: tuple[Verdict, ...] = ()
    name: str = ""


def named(name: str, found: Verdict) -> Verdict:
    """`found` as the part of this name."""
    return replace(found, name=name)


@dataclass(frozen=True)
class Above:
    """The claim that the quantity is greater than `threshold`; the threshold itself lies outside."""

    threshold: float

    def __post_init__(self):
        _require_finite(self, self.threshold)

    def contains(self, low: float, high: float) -> bool:
        """True if the whole interval is inside the claim."""
        return low > self.threshold

    def excludes(self, low: float, high: float) -> bool:
        """True if the whole interval is outside the claim."""
        return high <= self.threshold

    def __str__(self):
        return f"above {self.threshold:g}"


@dataclass(frozen=True)
class Below:
    """The claim that the quantity is less than `threshold`; the threshold itself lies outside."""

    threshold: float

    def __post_init__(self):
        _require_finite(self, self.threshold)

    def contains(self, low: float, high: float) -> bool:
        """True if the whole interval is inside the claim."""
        return high < self.threshold

    def excludes(self, low: float, high: float) -> bool:
        """True if the whole interval is outside the claim."""
        return low >= self.threshold

    def __str__(self):
        return f"below {self.threshold:g}"


@dataclass(frozen=True)
class AtMost:
    """The claim that the quantity is no greater than `bound`, the bound included."""

    bound: float

    def __post_init__(self):
        _require_finite(self, self.bound)

    def contains(self, low: float, high: float) -> bool:
        """True if the whole interval is inside the claim."""
        return high <= self.bound

    def excludes(self, low: float, high: float) -> bool:
        """True if the whole interval is outside the claim."""
        return low > self.bound

    def __str__(self):
        return f"at most {self.bound:g}"


@dataclass(frozen=True)
class Equivalent:
    """The claim that the quantity lies in [`low`, `high`], bounds included.

    An interval at level 1 - 2a inside the bounds is the two one-sided tests procedure (TOST, Schuirmann 1987)
    at level a for each side: a 95 % interval is TOST at 2.5 %, and TOST at 5 % takes a 90 % interval. With
    low = high it is equality, for quantities without sampling error.
    """

    low: float
    high: float

    def __post_init__(self):
        _require_finite(self, self.low, self.high)
        if self.low > self.high:
            raise ValueError(f"Equivalent needs low <= high; got low={self.low}, high={self.high}")

    def contains(self, low: float, high: float) -> bool:
        """True if the whole interval is inside the claim."""
        return self.low <= low and high <= self.high

    def excludes(self, low: float, high: float) -> bool:
        """True if the whole interval is outside the claim."""
        return high < self.low or low > self.high

    def __str__(self):
        return f"within [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class NonInferior:
    """The claim that a difference, larger being better, is greater than -`margin`: at most that much is lost.

    Where smaller is better, change the sign of the difference.
    """

    margin: float

    def __post_init__(self):
        _require_finite(self, self.margin)
        if self.margin < 0:
            raise ValueError(f"NonInferior takes the margin as a size, 0 or more; got {self.margin}")

    def contains(self, low: float, high: float) -> bool:
        """True if the whole interval is inside the claim."""
        return low > -self.margin

    def excludes(self, low: float, high: float) -> bool:
        """True if the whole interval is outside the claim."""
        return high <= -self.margin

    def __str__(self):
        return f"above {-self.margin:g} (non-inferior)"


@dataclass(frozen=True)
class AllOf:
    """The claim that every part is true. `names` says what each part is about; empty, or one a part."""

    parts: tuple[Expectation, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.parts:
            raise ValueError("AllOf needs at least one part")
        if self.names and len(self.names) != len(self.parts):
            raise ValueError(f"AllOf has {len(self.parts)} parts and {len(self.names)} names")


Simple = Above | Below | AtMost | Equivalent | NonInferior
Expectation = Simple | AllOf
Estimate = Interval | None
"""None, or an interval of n = 0, stands for no data."""


def verdict(estimate: Estimate | Sequence, expectation: Expectation) -> Verdict:
    """What `estimate` says about `expectation`.

    Holds if the whole interval is inside what was claimed, fails if it is wholly outside, else inconclusive.
    Inconclusive also if n < 2 or anything is NaN; not run without data (None, or n = 0). For `AllOf`,
    `estimate` is a sequence with one estimate for each part (nested like the parts), or one interval that
    every part is asked about; the parts are put together by `all_of`. Raises ValueError if the sequence has
    another length than the parts, and TypeError for anything else.
    """
    if isinstance(expectation, AllOf):
        if estimate is None or isinstance(estimate, Interval):
            estimates: Sequence = [estimate] * len(expectation.parts)
        else:
            estimates = estimate
        if len(estimates) != len(expectation.parts):
            raise ValueError(f"{len(estimates)} estimates for {len(expectation.parts)} parts; give one for each part")
        names = expectation.names or ("",) * len(expectation.parts)
        return all_of(
            [
                replace(verdict(each, part), name=name)
                for each, part, name in zip(estimates, expectation.parts, names, strict=True)
            ]
        )
    if not isinstance(expectation, Simple):
        raise TypeError(
            f"an expectation is one of Above, Below, AtMost, Equivalent, NonInferior, AllOf; got {expectation!r}"
        )
    if estimate is None:
        return not_run("no data")
    if not isinstance(estimate, Interval):
        raise TypeError(f"an estimate is an Interval or None; got {type(estimate).__name__}")
    if estimate.n == 0:
        return not_run("no data")
    low, high = estimate.low, estimate.high

    def decided(outcome: Outcome, reason: str) -> Verdict:
        return Verdict(outcome, estimate.value, (low, high), estimate.n, reason)

    if math.isnan(estimate.value):
        return decided(Outcome.INCONCLUSIVE, "the estimate is not a number")
    if estimate.n < 2:
        return decided(Outcome.INCONCLUSIVE, f"n = {estimate.n}: an interval takes at least two")
    if math.isnan(low) or math.isnan(high):
        return decided(Outcome.INCONCLUSIVE, "there is no interval: its bounds are not numbers")
    shown = f"the {100 * estimate.level:g} % interval [{low:.4g}, {high:.4g}]"
    if expectation.contains(low, high):
        return decided(Outcome.HOLDS, f"{shown} is wholly {expectation}")
    if expectation.excludes(low, high):
        return decided(Outcome.FAILS, f"no part of {shown} is {expectation}")
    return decided(Outcome.INCONCLUSIVE, f"{shown} is partly, not wholly, {expectation}")


def all_of(parts: Sequence[Verdict]) -> Verdict:
    """One verdict from several: holds if all hold, fails if any fails, not run if any was not and none fails.

    Otherwise inconclusive. `n` is the fewest over the parts. Raises ValueError without parts.
    """
    if not parts:
        raise ValueError("all_of needs at least one verdict")

    def which(outcome: Outcome) -> str:
        return ", ".join(part.name or f"part {i}" for i, part in enumerate(parts, start=1) if part.outcome is outcome)

    outcomes = {part.outcome for part in parts}
    if Outcome.FAILS in outcomes:
        outcome, reason = Outcome.FAILS, f"fails: {which(Outcome.FAILS)}"
    elif Outcome.NOT_RUN in outcomes:
        outcome, reason = Outcome.NOT_RUN, f"not run: {which(Outcome.NOT_RUN)}"
    elif Outcome.INCONCLUSIVE in outcomes:
        outcome, reason = Outcome.INCONCLUSIVE, f"inconclusive: {which(Outcome.INCONCLUSIVE)}"
    else:
        outcome, reason = Outcome.HOLDS, f"all {len(parts)} parts hold"
    return Verdict(outcome, None, None, min(part.n for part in parts), reason, tuple(parts))


def not_run(reason: str) -> Verdict:
    """The verdict of a claim without data."""
    return Verdict(Outcome.NOT_RUN, None, None, 0, reason)


def inconclusive(reason: str, estimate: Estimate = None) -> Verdict:
    """A verdict withheld for `reason`, such as a setting that cannot test the claim; `estimate` is shown."""
    if estimate is None:
        return Verdict(Outcome.INCONCLUSIVE, None, None, 0, reason)
    return Verdict(Outcome.INCONCLUSIVE, estimate.value, (estimate.low, estimate.high), estimate.n, reason)


def holm(p_values: ArrayLike) -> Float[np.ndarray, " tests"]:
    """p values adjusted by Holm's step-down procedure (Holm 1979); reject where the result is at most alpha.

    p_values: (tests,). A NaN stays NaN but keeps its place in the family. Raises ValueError outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"p_values must be a vector; its shape is {p.shape}")
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p values must lie between 0 and 1")
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, kind="stable")
    adjusted = np.empty_like(filled)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(filled[order] * np.arange(len(p), 0, -1)))
    return np.where(np.isnan(p), np.nan, adjusted)


def holm_verdicts(
    estimates: Sequence[Callable[[float], Estimate]], expectation: Simple | Sequence[Simple], *, level: float = 0.95
) -> list[Verdict]:
    """Verdicts for a family of estimates, corrected for their number by Holm's procedure.

    expectation: one for all, or one for each estimate. estimates: functions level -> Interval, such as `lambda level:
    paired_difference(x, y, level=level)`; the intervals of one function must be nested as the level grows, so a
    bootstrap takes a generator of the same seed in every call.

    With r estimates undecided, those that hold at level 1 - (1 - level) / r hold; then r is what is left,
    until none is added. An interval at that level clears the threshold exactly when its p value is at most (1
    - level) / r, so this is Holm's rule without p values. *Fails* steps down in the same way and on its own.
    Each of the two is wrong anywhere in the family with probability at most (1 - level) / 2, for one-sided
    claims and two-sided intervals of equal tails, whatever the dependence. The interval in each verdict is
    the one that decided it, and for the others the one at the first, strictest level. Raises ValueError if an
    estimate both holds and fails (not nested), or if expectations are not as many as estimates.
    """
    _check_level(level)
    family = range(len(estimates))
    asked = [expectation] * len(estimates) if isinstance(expectation, Simple) else list(expectation)
    if len(asked) != len(estimates):
        raise ValueError(f"{len(asked)} expectations for {len(estimates)} estimates; give one, or one for each")
    holds = _step_down(estimates, asked, Outcome.HOLDS, level)
    fails = _step_down(estimates, asked, Outcome.FAILS, level)
    if both := sorted(holds.keys() & fails.keys()):
        raise ValueError(f"estimates {both} hold at one level and fail at another: their intervals are not nested")
    decided = holds | fails
    strictest = _adjusted(level, len(estimates))
    return [decided[i] if i in decided else _at(estimates[i], asked[i], strictest) for i in family]


def _step_down(estimates, asked: Sequence[Simple], outcome: Outcome, level: float) -> dict[int, Verdict]:
    decided: dict[int, Verdict] = {}
    while len(decided) < len(estimates):
        adjusted = _adjusted(level, len(estimates) - len(decided))
        found = {i: _at(estimates[i], asked[i], adjusted) for i in range(len(estimates)) if i not in decided}
        found = {i: each for i, each in found.items() if each.outcome is outcome}
        if not found:
            break
        decided |= found
    return decided


def _adjusted(level: float, remaining: int) -> float:
    return level if remaining <= 1 else 1 - (1 - level) / remaining


def _at(estimate: Callable[[float], Estimate], expectation: Simple, level: float) -> Verdict:
    given = verdict(estimate(level), expectation)
    return replace(given, reason=f"{given.reason} (Holm)")


def _require_finite(expectation: object, *numbers: float) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{type(expectation).__name__} needs finite bounds; got {', '.join(map(str, numbers))}")
