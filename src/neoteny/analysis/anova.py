"""Analysis of variance of a balanced full factorial design, with the share of each effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Effect:
    """One main effect or interaction.

    F = (ss / df) / (residual ss / residual df) and p its upper tail. eta2 = ss / total; partial_eta2 = ss /
    (ss + residual ss); omega2 = (ss - df * residual mean square) / (total + residual mean square), negative
    for an effect smaller than noise would give. NaN where there is no residual or nothing varies.
    """

    factors: tuple[str, ...]
    ss: float
    df: int
    f: float
    p: float
    eta2: float
    partial_eta2: float
    omega2: float


@dataclass(frozen=True)
class Anova:
    """All effects, by order and then as the factors were given, with residual and total sums of squares.

    pooled: effects counted as residual because there were no replicates.
    """

    effects: tuple[Effect, ...]
    residual_ss: float
    residual_df: int
    total_ss: float
    pooled: tuple[tuple[str, ...], ...] = ()

    @property
    def interaction_share(self) -> float:
        """Interactions' part of the effects' sum of squares; noise counts: it alone gives 26/31 for 2^5."""
        return self._share([effect.ss for effect in self.effects])

    @property
    def shrunken_interaction_share(self) -> float:
        """The same from omega2, negative values taken as 0: what noise would give is taken out."""
        return self._share([max(effect.omega2, 0.0) for effect in self.effects])

    def _share(self, sizes: list[float]) -> float:
        total = sum(sizes)
        if not total > 0:
            return math.nan
        return sum(size for size, effect in zip(sizes, self.effects, strict=True) if len(effect.factors) > 1) / total


def anova(table: pl.DataFrame | Mapping[str, ArrayLike], factors: Sequence[str], response: str) -> Anova:
    """Fixed-effects analysis of variance with all interactions, by inclusion-exclusion of cell means.

    table: a frame or mapping with one row a run, holding the columns `factors` (labels) and `response`
    (numbers). Every combination of levels must occur, all equally often (replicates are seeds). Without
    replicates, interactions of three factors or more are pooled as residual and listed in `pooled`; with
    fewer factors there is no residual then, and F and p are NaN. For such a design types I, II and III agree.
    Raises ValueError if a cell is missing, the design is unbalanced, a factor has one level or a response is
    not finite.
    """
    if not factors or len(set(factors)) != len(factors):
        raise ValueError(f"factors must be one or more different column names; got {list(factors)}")
    y, cells = _cells(table, factors, response)
    levels, replicates = y.shape[:-1], y.shape[-1]
    # Differences from one response: exactly 0 for equal data, and large means cost no digits.
    y = y - y.flat[0]
    y = y - y.mean()
    floor = y.size * (16 * np.finfo(np.float64).eps * np.abs(y).max()) ** 2

    def squares(deviations: np.ndarray, times: float) -> float:
        total = times * float((deviations**2).sum())
        return total if total > floor else 0.0  # below the floor it is rounding

    means = y.mean(axis=-1)
    axes = range(len(factors))
    parts: dict[tuple[int, ...], tuple[float, int]] = {}
    effects_of: dict[tuple[int, ...], np.ndarray] = {(): means.mean(keepdims=True)}
    for order in range(1, len(factors) + 1):
        for subset in combinations(axes, order):
            marginal = means.mean(axis=tuple(axis for axis in axes if axis not in subset), keepdims=True)
            lower = sum(effects_of[smaller] for size in range(order) for smaller in combinations(subset, size))
            effects_of[subset] = marginal - lower
            df = math.prod(levels[axis] - 1 for axis in subset)
            parts[subset] = squares(effects_of[subset], y.size / effects_of[subset].size), df

    residual_ss, residual_df = squares(y - means[..., None], 1), cells * (replicates - 1)
    pooled = [subset for subset in parts if replicates == 1 and len(subset) >= 3]
    for subset in pooled:
        ss, df = parts.pop(subset)
        residual_ss, residual_df = residual_ss + ss, residual_df + df
    total_ss = squares(y, 1)

    def named(subset: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(factors[axis] for axis in subset)

    return Anova(
        tuple(_effect(named(subset), ss, df, residual_ss, residual_df, total_ss) for subset, (ss, df) in parts.items()),
        residual_ss,
        residual_df,
        total_ss,
        tuple(named(subset) for subset in pooled),
    )


def _effect(factors, ss: float, df: int, residual_ss: float, residual_df: int, total_ss: float) -> Effect:
    from scipy.special import fdtrc

    noise = residual_ss / residual_df if residual_df else math.nan
    f = _ratio(ss / df, noise)
    return Effect(
        factors,
        ss,
        df,
        f,
        math.nan if math.isnan(f) else float(fdtrc(df, residual_df, f)),
        _ratio(ss, total_ss),
        _ratio(ss, ss + residual_ss) if residual_df else math.nan,
        _ratio(ss - df * noise, total_ss + noise),
    )


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def _cells(table, factors: Sequence[str], response: str) -> tuple[np.ndarray, int]:
    """Responses as (levels of factor 1, ..., levels of the last, replicates), and the number of cells."""
    values = np.asarray(table[response], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{response} holds numbers that are not finite; leave those runs out by a stated rule first")
    codes, levels = [], []
    for factor in factors:
        names, code = np.unique(np.asarray(table[factor]), return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"factor {factor} has {len(names)} level; an effect takes at least two")
        codes.append(code)
        levels.append(len(names))
    cell = np.ravel_multi_index(tuple(codes), tuple(levels))
    counts = np.bincount(cell, minlength=math.prod(levels))
    if counts.min() != counts.max():
        raise ValueError(
            f"the design is not balanced: cells of {' x '.join(factors)} hold {counts.min()} to "
            f"{counts.max()} rows; every combination must occur equally often"
        )
    return values[np.argsort(cell, kind="stable")].reshape(*levels, counts[0]), len(counts)
